//! Checking: every proof bundle, with nothing but the genesis document; and what a changed one is
//! worth.
//!
//! The replicas are not believed here. They hand out bytes; what these prove is compared with what
//! the gateways were given to send.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context as _;
use futures::{StreamExt as _, stream};

use super::readings::{Expected, TEMPERATURE};
use super::screen::Screen;
use crate::cli::local::LocalNetwork;
use crate::device::{Item, Value};
use crate::ledger::Genesis;
use crate::ledger::proof::{ProofBundle, Proven, Verifier};
use crate::types::ClientId;

/// Bundles that are fetched and verified at once.
const AT_ONCE: usize = 16;

/// Faults that are shown; more are only counted.
const FAULTS_SHOWN: usize = 5;

/// The bit of a 64-bit float, in its second byte, that is flipped: it makes 35.6 °C 39.6 °C.
const FLIP: u64 = 0x02 << 48;

/// What came of all bundles.
#[derive(Debug, Default)]
pub(super) struct Audited {
    /// Bundles that hold.
    pub(super) verified: usize,
    /// Bundles that do not.
    pub(super) failed: usize,
    /// Items that the bundles prove.
    pub(super) items: usize,
    /// What is wrong, the first few.
    pub(super) faults: Vec<String>,
    /// How much is wrong.
    pub(super) fault_count: usize,
    /// The bundle of the highest temperature, as it was downloaded, and that item.
    pub(super) hottest: Option<(Vec<u8>, Proven, Item)>,
}

/// Downloads and verifies the bundles of all records of these clients; each from another replica, as
/// any is as good as the other.
pub(super) async fn audit(
    network: &LocalNetwork,
    clients: &[ClientId],
    expected: Expected,
    screen: &Screen,
) -> anyhow::Result<Audited> {
    let mut paths = BTreeSet::new();
    for (at, client) in clients.iter().enumerate() {
        let records = network.records(at % network.replicas(), client).await?;
        paths.extend(records.into_iter().map(|record| record.bundle));
    }
    let verifier = Arc::new(Verifier::new(network.genesis())?);
    let mut audit = Audit { audited: Audited::default(), expected };
    let mut progress = screen.progress(paths.len(), "bundles verified");
    let mut verdicts = stream::iter(paths.iter().enumerate())
        .map(|(at, path)| judge(network, at % network.replicas(), path, &verifier))
        .buffer_unordered(AT_ONCE);
    while let Some((bytes, verdict)) = verdicts.next().await.transpose()? {
        audit.add(bytes, verdict);
        progress.show(audit.audited.verified, "")?;
    }
    Ok(audit.end())
}

type Verdict = Result<Proven, String>;

async fn judge(
    network: &LocalNetwork,
    replica: usize,
    path: &str,
    verifier: &Arc<Verifier>,
) -> anyhow::Result<(Vec<u8>, Verdict)> {
    let bytes = network.fetch(replica, path).await?;
    let verifier = Arc::clone(verifier);
    let judged = tokio::task::spawn_blocking(move || {
        let verdict = verify(&verifier, &bytes);
        (bytes, verdict)
    });
    let (bytes, verdict) = judged.await.context("verification has failed")?;
    Ok((bytes, verdict.map_err(|problem| format!("{path}: {problem}"))))
}

fn verify(verifier: &Verifier, bytes: &[u8]) -> Verdict {
    let bundle = ProofBundle::decode(bytes).map_err(|error| error.to_string())?;
    verifier.verify(&bundle).map_err(|error| error.to_string())
}

/// The audit as it goes on.
struct Audit {
    audited: Audited,
    expected: Expected,
}

impl Audit {
    fn add(&mut self, bytes: Vec<u8>, verdict: Verdict) {
        let proven = match verdict {
            Ok(proven) => proven,
            Err(problem) => {
                self.audited.failed += 1;
                return self.fault(problem);
            }
        };
        self.audited.verified += 1;
        let mut hotter = None;
        for record in &proven.records {
            self.audited.items += 1;
            if let Err(problem) = self.expected.tick_off(&record.item) {
                self.fault(problem);
            }
            if self.is_hotter(&record.item) {
                hotter = Some(record.item.clone());
            }
        }
        if let Some(item) = hotter {
            self.audited.hottest = Some((bytes, proven, item));
        }
    }

    fn is_hotter(&self, item: &Item) -> bool {
        let Value::Float(value) = item.value else { return false };
        let so_far = match &self.audited.hottest {
            Some((_, _, Item { value: Value::Float(value), .. })) => *value,
            _ => f64::NEG_INFINITY,
        };
        item.service == TEMPERATURE && value > so_far
    }

    fn fault(&mut self, problem: String) {
        self.audited.fault_count += 1;
        if self.audited.faults.len() < FAULTS_SHOWN {
            self.audited.faults.push(problem);
        }
    }

    fn end(mut self) -> Audited {
        match self.expected.missing() {
            0 => {}
            missing => self.fault(format!("{missing} items that were sent are proven by no bundle")),
        }
        self.audited
    }
}

/// A copy of a bundle in which somebody has changed a measurement.
pub(super) struct Forged {
    pub(super) bytes: Vec<u8>,
    /// Which byte, from 0.
    pub(super) at: usize,
    /// What the copy claims.
    pub(super) claims: Value,
}

/// Changes one byte of a bundle so that `item` reads otherwise; none if the item is not in it.
pub(super) fn forge(bytes: &[u8], item: &Item) -> Option<Forged> {
    let Value::Float(value) = item.value else { return None };
    let claims = Value::Float(f64::from_bits(value.to_bits() ^ FLIP));
    let (honest, forged) = (item.encode(), Item { value: claims.clone(), ..item.clone() }.encode());
    let start = bytes.windows(honest.len()).position(|window| window == honest)?;
    let mut copy = bytes.to_vec();
    copy.get_mut(start..start + forged.len())?.copy_from_slice(&forged);
    let at = start + honest.iter().zip(&forged).position(|(one, other)| one != other)?;
    Some(Forged { bytes: copy, at, claims })
}

/// Why a copy proves nothing; none if it proves something, which must not be.
pub(super) fn refusal(genesis: &Genesis, copy: &[u8]) -> anyhow::Result<Option<String>> {
    Ok(verify(&Verifier::new(genesis)?, copy).err())
}

/// Changes each byte of a bundle in turn; gives how many copies still prove something.
pub(super) fn believed_copies(genesis: &Genesis, bytes: &[u8]) -> anyhow::Result<usize> {
    let verifier = Verifier::new(genesis)?;
    let mut copy = bytes.to_vec();
    let mut believed = 0;
    for at in 0..copy.len() {
        copy[at] ^= 0x01;
        believed += usize::from(verify(&verifier, &copy).is_ok());
        copy[at] ^= 0x01;
    }
    Ok(believed)
}
