//! `GET /v1/evidence`: proofs that replicas are faulty, as this node saw them.
//!
//! The list says what each piece is about; whoever wants to be sure takes the bytes and checks them
//! with `ledgermq evidence verify`, which needs the genesis document and trusts no node.

use actix_web::HttpResponse;
use actix_web::http::header;
use actix_web::web::{Data, Json, Path, Query};
use serde::{Deserialize, Serialize};

use super::answer::{Answer, BUNDLE_MEDIA_TYPE, read};
use super::{Context, Problem, query};
use crate::ledger::ReplicaSet;
use crate::pbft::evidence::Fault;
use crate::store::evidence::{EvidenceKey, StoredEvidence};
use crate::types::{Hash, Timestamp};

/// `GET /v1/evidence?limit&cursor`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EvidenceQuery {
    limit: Option<usize>,
    cursor: Option<String>,
}

/// A piece of evidence in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceJson {
    /// The hash of its bytes.
    pub id: Hash,
    /// Who did what, and where.
    #[serde(flatten)]
    pub fault: Fault,
    /// The replica's number.
    pub replica: Option<u16>,
    /// When this node first saw it.
    pub seen: Timestamp,
    /// The length of its file.
    pub bytes: u64,
    /// Path of its file.
    pub file: String,
}

/// `GET /v1/evidence`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceListJson {
    /// The oldest first.
    pub evidence: Vec<EvidenceJson>,
    /// The `cursor` of the next page, if there is one.
    pub next: Option<String>,
}

impl EvidenceJson {
    fn new(stored: StoredEvidence, replicas: &ReplicaSet) -> Self {
        let StoredEvidence { key: EvidenceKey { seen, id }, fault, bytes } = stored;
        let replica = replicas.index_of(&fault.node).and_then(|index| u16::try_from(index).ok());
        Self { id, fault, replica, seen, bytes, file: format!("/v1/evidence/{id}") }
    }
}

pub(super) async fn list(context: Data<Context>, query: Query<EvidenceQuery>) -> Answer<EvidenceListJson> {
    let EvidenceQuery { limit, cursor } = query.into_inner();
    let limit = query::limit(limit, context.limits.max_page)?;
    let wrong = |_| Problem::bad_request("cursor is not one that an earlier answer gave as `next`");
    let after = cursor.map(|cursor| cursor.parse().map_err(wrong)).transpose()?;
    // It waits for a piece that is being written, and so for the disk.
    let page = read(&context, move |node| Ok(node.evidence(after, limit))).await?;
    let replicas = &context.node.genesis().replicas;
    Ok(Json(EvidenceListJson {
        evidence: page.evidence.into_iter().map(|stored| EvidenceJson::new(stored, replicas)).collect(),
        next: page.next.map(|key| key.to_string()),
    }))
}

pub(super) async fn file(context: Data<Context>, id: Path<Hash>) -> Result<HttpResponse, Problem> {
    let id = id.into_inner();
    let found = read(&context, move |node| node.evidence_bytes(&id)).await?;
    let bytes = found.ok_or_else(|| {
        Problem::not_found(format!("this node has no evidence {id}; another one may have it"))
    })?;
    let disposition = format!("attachment; filename=\"{id}.lmqevidence\"");
    Ok(HttpResponse::Ok()
        .content_type(BUNDLE_MEDIA_TYPE)
        .insert_header((header::CONTENT_DISPOSITION, disposition))
        .body(bytes))
}
