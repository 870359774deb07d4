//! Blocks with their certificates, byte for byte: whoever has the genesis document can verify them, and
//! so need not trust the node that gives them.
//!
//! ```text
//! answer: for each block    length u32 (big-endian) ‖ canonical (block, certificate?)
//! ```
//!
//! A certificate may be missing: then that of a later block proves this one, since blocks are chained.

use actix_web::HttpResponse;
use actix_web::web::{Data, Query};
use serde::Deserialize;

use super::answer::{BUNDLE_MEDIA_TYPE, read};
use super::{Context, Problem, query};
use crate::codec::{self, CodecError};
use crate::ledger::{Block, Certificate, MAX_BLOCK_BYTES};
use crate::types::Height;

/// An answer is closed when it has so many bytes. The last block may make it longer.
const ENOUGH_BYTES: usize = 8 << 20;

/// The most bytes of one block with its certificate: a certificate of 100 replicas has 7 KiB.
const MAX_CERTIFIED_BYTES: usize = MAX_BLOCK_BYTES + (1 << 20);

/// The most bytes of an answer.
pub const MAX_CERTIFIED_ANSWER: usize = ENOUGH_BYTES + MAX_CERTIFIED_BYTES + 4;

/// A block and its certificate, if the node has one.
pub type WithCertificate = (Block, Option<Certificate>);

/// `GET /v1/certified-blocks?from&limit`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CertifiedQuery {
    /// First height.
    from: Height,
    /// How many.
    limit: Option<usize>,
}

pub(super) async fn certified_blocks(
    context: Data<Context>,
    query: Query<CertifiedQuery>,
) -> Result<HttpResponse, Problem> {
    let limit = query::limit(query.limit, context.limits.max_page)?;
    let first = query.from.0.max(1);
    let bytes = read(&context, move |node| {
        let last = node.certified_height().0.min(first.saturating_add(limit as u64 - 1));
        let mut answer = Vec::new();
        for height in (first..=last).map(Height) {
            let Some(block) = node.block(height)? else { break };
            append(&(block, node.certificate(height)?), &mut answer);
            if answer.len() >= ENOUGH_BYTES {
                break;
            }
        }
        Ok(answer)
    })
    .await?;
    Ok(HttpResponse::Ok().content_type(BUNDLE_MEDIA_TYPE).body(bytes))
}

fn append(block: &WithCertificate, to: &mut Vec<u8>) {
    let bytes = codec::encode(block);
    to.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend_from_slice(&bytes);
}

/// Reads an answer; nothing of it is verified.
///
/// # Errors
/// [`CodecError`].
pub fn decode_certified(mut bytes: &[u8]) -> Result<Vec<WithCertificate>, CodecError> {
    let short = || CodecError::Malformed("the answer ends within a block".to_owned());
    let mut blocks = Vec::new();
    while !bytes.is_empty() {
        let (len, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
        let len = usize::try_from(u32::from_be_bytes(*len)).unwrap_or(usize::MAX);
        let (block, rest) = rest.split_at_checked(len).ok_or_else(short)?;
        blocks.push(codec::decode::<MAX_CERTIFIED_BYTES, WithCertificate>(block)?);
        bytes = rest;
    }
    Ok(blocks)
}
