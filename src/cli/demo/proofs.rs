//! Checking: every proof bundle, with nothing but the genesis document; and what a changed one is
//! worth.
//!
//! The replicas are not believed here. They hand out bytes; what these prove is compared with what
//! the gateways were given to send.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context as _;
use futures::{StreamExt as _, stream};

use super::date;
use super::readings::{Expected, TEMPERATURE};
use super::screen::{Screen, count};
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

/// The bundle of the hottest hour, and the forged copy, in the demo's directory.
pub(super) const HOTTEST: &str = "hottest.lmqproof";
pub(super) const FORGED: &str = "forged.lmqproof";

/// What came of all bundles.
#[derive(Debug, Default)]
pub(super) struct Proofs {
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

/// Downloads and verifies every bundle, and tells what came of it. By the acks there are `finals`.
pub(super) async fn verify(
    network: &LocalNetwork,
    clients: &[ClientId],
    (expected, finals): (Expected, usize),
    screen: &Screen,
) -> anyhow::Result<Proofs> {
    screen.say("\n4. The proofs: every bundle, verified with the genesis document alone")?;
    let proofs = check(network, clients, expected, screen).await?;
    screen.say(format_args!(
        "   {} bundles hold, {} fail; they prove {} items",
        count(proofs.verified),
        count(proofs.failed),
        count(proofs.items)
    ))?;
    if let Some(more) = (proofs.verified + proofs.failed).checked_sub(finals).filter(|more| *more > 0) {
        screen.say(format_args!(
            "   {} of them are of what one replica wrote of a message that another one acknowledged",
            count(more)
        ))?;
    }
    if proofs.fault_count == 0 {
        screen
            .say("   all that the nodes said is written is among them, with the value that was sent, once")?;
    }
    for fault in &proofs.faults {
        screen.say(format_args!("   WRONG: {fault}"))?;
    }
    if let Some((_, proven, item)) = &proofs.hottest {
        screen.say(format_args!(
            "   the hottest hour: {} °C on {}, says {}; block {}, signed by {} of {} replicas",
            item.value,
            date(item.event_time),
            item.client,
            proven.block.height,
            proven.block.signed_by.len(),
            proven.replicas
        ))?;
    }
    Ok(proofs)
}

/// Changes one byte of a bundle and shows that it proves nothing any more; whether that is so.
pub(super) fn lie(network: &LocalNetwork, proofs: &Proofs, screen: &Screen) -> anyhow::Result<bool> {
    screen.say("\n6. A lie: somebody changes that temperature")?;
    let (bytes, _, item) = proofs.hottest.as_ref().context("no bundle proves a temperature")?;
    let forged = forge(bytes, item).context("a bundle does not contain the item that it proves")?;
    std::fs::write(network.dir().join(HOTTEST), bytes)?;
    std::fs::write(network.dir().join(FORGED), &forged.bytes)?;
    screen.say(format_args!(
        "   byte {} of {} in a copy of its bundle is changed: {} °C now reads {} °C",
        count(forged.at),
        count(bytes.len()),
        item.value,
        forged.claims
    ))?;
    let refused = match refusal(network.genesis(), &forged.bytes)? {
        Some(problem) => {
            screen.say(format_args!("   NOT PROVEN: {problem}"))?;
            true
        }
        None => {
            screen.say("   WRONG: the copy is believed")?;
            false
        }
    };
    let believed = believed_copies(network.genesis(), bytes)?;
    screen.say(format_args!(
        "   the same for each of its bytes: {} copies, {} believed",
        count(bytes.len()),
        count(believed)
    ))?;
    Ok(refused && believed == 0)
}

/// Downloads and verifies the bundles of all records of these clients; each from another replica, as
/// any is as good as the other.
async fn check(
    network: &LocalNetwork,
    clients: &[ClientId],
    expected: Expected,
    screen: &Screen,
) -> anyhow::Result<Proofs> {
    let mut paths = BTreeSet::new();
    for (at, client) in clients.iter().enumerate() {
        let records = network.records(at % network.replicas(), client).await?;
        paths.extend(records.into_iter().map(|record| record.bundle));
    }
    let verifier = Arc::new(Verifier::new(network.genesis())?);
    let mut check = Check { proofs: Proofs::default(), expected };
    let mut progress = screen.progress(paths.len(), "bundles verified");
    let mut verdicts = stream::iter(paths.iter().enumerate())
        .map(|(at, path)| judge(network, at % network.replicas(), path, &verifier))
        .buffer_unordered(AT_ONCE);
    while let Some((bytes, verdict)) = verdicts.next().await.transpose()? {
        check.add(bytes, verdict);
        progress.show(check.proofs.verified, "")?;
    }
    Ok(check.end())
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
        let verdict = prove(&verifier, &bytes);
        (bytes, verdict)
    });
    let (bytes, verdict) = judged.await.context("verification has failed")?;
    Ok((bytes, verdict.map_err(|problem| format!("{path}: {problem}"))))
}

fn prove(verifier: &Verifier, bytes: &[u8]) -> Verdict {
    let bundle = ProofBundle::decode(bytes).map_err(|error| error.to_string())?;
    verifier.verify(&bundle).map_err(|error| error.to_string())
}

/// The checks as they go on.
struct Check {
    proofs: Proofs,
    expected: Expected,
}

impl Check {
    fn add(&mut self, bytes: Vec<u8>, verdict: Verdict) {
        let proven = match verdict {
            Ok(proven) => proven,
            Err(problem) => {
                self.proofs.failed += 1;
                return self.fault(problem);
            }
        };
        self.proofs.verified += 1;
        let mut hotter = None;
        for record in &proven.records {
            self.proofs.items += 1;
            if let Err(problem) = self.expected.tick_off(&record.item) {
                self.fault(problem);
            }
            if self.is_hotter(&record.item) {
                hotter = Some(record.item.clone());
            }
        }
        if let Some(item) = hotter {
            self.proofs.hottest = Some((bytes, proven, item));
        }
    }

    fn is_hotter(&self, item: &Item) -> bool {
        let Value::Float(value) = item.value else { return false };
        if item.service != TEMPERATURE {
            return false;
        }
        match &self.proofs.hottest {
            Some((_, _, Item { value: Value::Float(hottest), event_time, .. })) => {
                // Of several hours the first: bundles come in any order.
                value > *hottest || (value >= *hottest && item.event_time < *event_time)
            }
            _ => true,
        }
    }

    fn fault(&mut self, problem: String) {
        self.proofs.fault_count += 1;
        if self.proofs.faults.len() < FAULTS_SHOWN {
            self.proofs.faults.push(problem);
        }
    }

    fn end(mut self) -> Proofs {
        match self.expected.missing() {
            0 => {}
            missing => {
                self.fault(format!("{missing} items that a node said are written are proven by no bundle"))
            }
        }
        self.proofs
    }
}

/// A copy of a bundle in which somebody has changed a measurement.
struct Forged {
    bytes: Vec<u8>,
    /// Which byte, from 0.
    at: usize,
    /// What the copy claims.
    claims: Value,
}

/// Changes one byte of a bundle so that `item` reads otherwise; none if the item is not in it.
fn forge(bytes: &[u8], item: &Item) -> Option<Forged> {
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
fn refusal(genesis: &Genesis, copy: &[u8]) -> anyhow::Result<Option<String>> {
    Ok(prove(&Verifier::new(genesis)?, copy).err())
}

/// Changes each byte of a bundle in turn; gives how many copies still prove something.
fn believed_copies(genesis: &Genesis, bytes: &[u8]) -> anyhow::Result<usize> {
    let verifier = Verifier::new(genesis)?;
    let mut copy = bytes.to_vec();
    let mut believed = 0;
    for at in 0..copy.len() {
        copy[at] ^= 0x01;
        believed += usize::from(prove(&verifier, &copy).is_ok());
        copy[at] ^= 0x01;
    }
    Ok(believed)
}
