//! What the adversaries of a run did, and what became of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use ledgermq::pbft::{Envelope, Signed};

use crate::property::{Promise, World, promise};

/// Of one adversary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deed {
    /// Messages that it sent, to each receiver.
    pub sent: u64,
    /// Those of them, and requests, that no correct replica would send.
    pub lies: u64,
    /// Messages that it held back for a while.
    pub delayed: u64,
    /// What it kept to itself: messages, requests, answers.
    pub withheld: u64,
    /// Lies that no signature covers: nobody takes them.
    pub unsigned: u64,
    /// Lies and answers that a correct core heard.
    pub heard: u64,
    /// Those of them that it refused; the others it took for true, or for possible.
    pub refused: u64,
    /// Slots for which its key signed more than one content.
    pub contradictions: u64,
}

impl Deed {
    /// Whether it was more than an idle threat.
    pub const fn is_evil(&self) -> bool {
        self.withheld + self.delayed + self.unsigned + self.heard + self.contradictions > 0
    }

    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.lies += other.lies;
        self.delayed += other.delayed;
        self.withheld += other.withheld;
        self.unsigned += other.unsigned;
        self.heard += other.heard;
        self.refused += other.refused;
        self.contradictions += other.contradictions;
    }
}

/// Of all adversaries of a run, by instance.
#[derive(Debug, Default)]
pub struct Deeds {
    of: BTreeMap<usize, Deed>,
    said: BTreeMap<(usize, Promise), BTreeSet<[u8; 64]>>,
}

impl Deeds {
    pub fn of(&mut self, at: usize) -> &mut Deed {
        self.of.entry(at).or_default()
    }

    pub fn sent(&mut self, at: usize, _: &Envelope, is_lie: bool, after: Duration) {
        let deed = self.of(at);
        deed.sent += 1;
        deed.lies += u64::from(is_lie);
        deed.delayed += u64::from(!after.is_zero());
    }

    /// A correct core heard something of an adversary.
    pub fn heard(&mut self, liar: Option<usize>, refused: bool) {
        if let Some(liar) = liar {
            let deed = self.of(liar);
            deed.heard += 1;
            deed.refused += u64::from(refused);
        }
    }

    /// An instance signs something.
    pub fn said(&mut self, world: &World, at: usize, signed: &Signed) {
        if world.faulty.contains(&at) {
            let slot = (world.identities[at], promise(&signed.content));
            let contents = self.said.entry(slot).or_default();
            // Ed25519 is deterministic: another signature is one of something else.
            let another = contents.insert(signed.signature.0);
            let second = another && contents.len() == 2;
            self.of(at).contradictions += u64::from(second);
        }
    }
}

/// What adversaries of each kind did in many runs.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<&'static str, (u64, u64, Deed)>);

impl Tally {
    /// One adversary's run.
    pub fn add(&mut self, kind: &'static str, deed: Deed) {
        let (runs, evil, sum) = self.0.entry(kind).or_default();
        *runs += 1;
        *evil += u64::from(deed.is_evil());
        sum.add(&deed);
    }

    /// The kinds, with in how many runs they took part, and in how many they did evil.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        self.0.iter().map(|(kind, (runs, evil, _))| (*kind, *runs, *evil))
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "adversary             runs  evil in     lies  delayed withheld unsigned    heard  refused  twofold"
        )?;
        for (kind, (runs, evil, deed)) in &self.0 {
            let Deed { lies, delayed, withheld, unsigned, heard, refused, contradictions, .. } = deed;
            writeln!(
                f,
                "{kind:<21} {runs:>4} {evil:>8} {lies:>8} {delayed:>8} {withheld:>8} {unsigned:>8} {heard:>8} {refused:>8} {contradictions:>8}"
            )?;
        }
        Ok(())
    }
}
