//! Checkpoint stability (1999, section 4.3): a certificate has a quorum of distinct, good
//! signatures, and the correct ones among the signers have executed what it says; no replica's low
//! watermark moves without one, beyond what it executed, or back.

use std::collections::{BTreeMap, BTreeSet};

use ledgermq::codec;
use ledgermq::crypto::{SignatureKind, VerifyingKey};
use ledgermq::ledger::{Certificate, CheckpointContent};
use ledgermq::types::{PublicKey, SeqNum, Signature};

use super::{Broken, Property, Seen, World, ensure};

#[derive(Default)]
pub struct CheckpointStability {
    /// What each replica reached, by its number.
    reached: BTreeSet<(usize, CheckpointContent)>,
    certified: BTreeSet<SeqNum>,
    /// Signatures that were checked.
    checked: BTreeSet<(u16, CheckpointContent, Signature)>,
    keys: BTreeMap<u16, VerifyingKey>,
    stable: BTreeMap<usize, SeqNum>,
}

impl Property for CheckpointStability {
    fn name(&self) -> &'static str {
        "checkpoint stability"
    }

    fn check(&mut self, world: &World, at: usize, seen: &Seen) -> Result<(), Broken> {
        if world.faulty.contains(&at) {
            return Ok(());
        }
        match seen {
            Seen::Started(_) => drop(self.stable.remove(&at)),
            Seen::Reached(content) | Seen::Skipped(content) => {
                self.reached.insert((world.identities[at], *content));
            }
            Seen::Certified(certificate) => self.certified(world, at, certificate)?,
            Seen::Stepped(status) => {
                let stable = status.0.stable;
                let before = self.stable.insert(at, stable).unwrap_or_default();
                ensure!(before <= stable, "the low watermark of {at} went back from {before} to {stable}");
                ensure!(stable <= status.0.executed, "{at} has {stable} stable and not executed");
                let proved = stable == SeqNum(0) || self.certified.contains(&stable);
                ensure!(proved, "{at} has {stable} stable without a certificate");
            }
            _ => {}
        }
        Ok(())
    }
}

impl CheckpointStability {
    fn certified(&mut self, world: &World, at: usize, certificate: &Certificate) -> Result<(), Broken> {
        let content = certificate.content;
        let signers: BTreeSet<u16> = certificate.signatures.iter().map(|(number, _)| *number).collect();
        let whole = signers.len() == certificate.signatures.len() && signers.len() >= world.quorum;
        ensure!(whole, "the certificate of {} has {} signers", content.sequence, signers.len());
        for (number, signature) in &certificate.signatures {
            ensure!(self.is_good(world, *number, content, *signature), "a bad signature in {certificate:?}");
            let identity = usize::from(*number);
            // Its own state may still have to follow, in the effects of this very step.
            let excused = world.is_faulty_replica(identity) || identity == world.identities[at];
            let has = self.reached.contains(&(identity, content)) || self.passed_over(identity, &content);
            let lied = !excused && !has;
            ensure!(!lied, "replica {identity} signed {content:?} without having it");
        }
        self.certified.insert(content.sequence);
        Ok(())
    }

    /// Whether it had this very block and state at an earlier number, and another correct replica has it
    /// at this one: it may pass numbers over that changed nothing, and sign for that, and lose power
    /// before its ledger has the number. The log has it, and brings it back.
    fn passed_over(&self, identity: usize, content: &CheckpointContent) -> bool {
        let of = |at: usize| self.reached.iter().filter(move |(of, _)| *of == at).map(|(_, reached)| reached);
        let same = |reached: &CheckpointContent| {
            (reached.height, reached.block, reached.state) == (content.height, content.block, content.state)
        };
        let earlier = of(identity).any(|reached| same(reached) && reached.sequence < content.sequence);
        earlier && self.reached.iter().any(|(at, reached)| *at != identity && reached == content)
    }

    fn is_good(
        &mut self,
        world: &World,
        number: u16,
        content: CheckpointContent,
        signature: Signature,
    ) -> bool {
        if self.checked.contains(&(number, content, signature)) {
            return true;
        }
        let Some(node) = world.replicas.members().get(usize::from(number)) else { return false };
        let key =
            self.keys.entry(number).or_insert_with(|| VerifyingKey::parse(&PublicKey::from(*node)).unwrap());
        let bytes = codec::encode(&content);
        let good = key.verify(SignatureKind::Checkpoint, &world.network, &bytes, &signature).is_ok();
        good && self.checked.insert((number, content, signature))
    }
}
