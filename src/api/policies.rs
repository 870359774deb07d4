//! `GET /v1/policies`: the write policies in force, and who set which version at which height.
//!
//! Everything is read from the blocks that put the versions in force, so whoever wants to be sure looks
//! them up there and checks the admin's signature.

use actix_web::web::{Data, Json, Path, Query};
use serde::{Deserialize, Serialize};

use super::answer::{Answer, read};
use super::view::{NodeView, ViewError};
use super::{Context, Problem, query};
use crate::ledger::{AdminAction, Operation, Policies};
use crate::policy::PolicySet;
use crate::types::{Height, PublicKey, Timestamp};

/// The most versions on one page, each with all of its rules.
const MAX_VERSIONS: usize = 20;

/// `GET /v1/policies?before&limit`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PoliciesQuery {
    before: Option<u64>,
    limit: Option<usize>,
}

/// A version of the policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersionJson {
    /// Its number; 0 at genesis.
    pub version: u64,
    /// The block that put it in force.
    pub height: Height,
    /// The operation of that block.
    pub operation: u32,
    /// The time of that block.
    pub time: Timestamp,
    /// Who set it; nobody at genesis.
    pub admin: Option<PublicKey>,
    /// What it says.
    #[serde(flatten)]
    pub policies: PolicySet,
}

/// `GET /v1/policies`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoliciesJson {
    /// The version in force.
    pub current: PolicyVersionJson,
    /// Versions that were set, the newest first.
    pub history: Vec<PolicyVersionJson>,
    /// The `before` of the next page, if there is one.
    pub next: Option<u64>,
}

pub(super) async fn list(context: Data<Context>, query: Query<PoliciesQuery>) -> Answer<PoliciesJson> {
    let PoliciesQuery { before, limit } = query.into_inner();
    let limit = query::limit(limit, context.limits.max_page)?.min(MAX_VERSIONS);
    read(&context, move |node| {
        let policies = node.policies();
        let certified = certified(node, &policies);
        let end = before.unwrap_or(u64::MAX).min(certified.saturating_add(1));
        let first = end.saturating_sub(limit as u64).max(1);
        let history = (first..end).rev().map(|version| version_of(node, &policies, version));
        Ok(PoliciesJson {
            current: version_of(node, &policies, certified)?,
            history: history.collect::<Result<_, _>>()?,
            next: (first > 1 && first < end).then_some(first),
        })
    })
    .await
    .map(Json)
}

pub(super) async fn version(context: Data<Context>, version: Path<u64>) -> Answer<PolicyVersionJson> {
    let version = version.into_inner();
    let found = read(&context, move |node| {
        let policies = node.policies();
        let is_there = version <= certified(node, &policies);
        is_there.then(|| version_of(node, &policies, version)).transpose()
    })
    .await?;
    found
        .map(Json)
        .ok_or_else(|| Problem::not_found(format!("there is no version {version} of the policies (yet)")))
}

/// The last version that a quorum has certified.
fn certified(node: &dyn NodeView, policies: &Policies) -> u64 {
    let height = node.certified_height();
    let last = policies.places.iter().rev().find(|(_, (at, _))| *at <= height);
    last.map_or(0, |(version, _)| *version)
}

fn version_of(
    node: &dyn NodeView,
    policies: &Policies,
    version: u64,
) -> Result<PolicyVersionJson, ViewError> {
    let Some((height, operation)) = policies.places.get(&version).copied() else {
        let time = node.genesis().created;
        let (height, operation, policies) = (Height(0), 0, PolicySet::default());
        return Ok(PolicyVersionJson { version, height, operation, time, admin: None, policies });
    };
    let block = node.block(height)?;
    let time = block.as_ref().map_or(Timestamp(0), |block| block.header.timestamp);
    let set = block.and_then(|block| block.operations.into_iter().nth(operation as usize));
    match set {
        Some(Operation::Admin(admin)) => match admin.action {
            AdminAction::SetPolicies { policies, .. } => {
                Ok(PolicyVersionJson { version, height, operation, time, admin: Some(admin.admin), policies })
            }
            _ => Err(missing(height, operation)),
        },
        _ => Err(missing(height, operation)),
    }
}

fn missing(height: Height, operation: u32) -> ViewError {
    ViewError::Failed(format!("operation {operation} of block {height} does not set policies"))
}
