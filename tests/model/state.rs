//! The state of the model: what the correct replicas have said, and where they are in the views.
//!
//! Messages are not listed. What a correct replica said follows from its state, which only grows,
//! and whatever was said can be heard at any time from then on, or never; so loss, delay,
//! duplication and reordering are in the model without a queue. What the faulty replica can sign
//! it can say at any time; so nothing of it is in the state at all.

use std::fmt;

use crate::bounds::{Bounds, MAX_NUMBERS, MAX_VIEWS, REPLICAS};

/// The most fresh batches that can come up for one number in one view.
const MAX_FRESH: u8 = 3;

/// A batch's digest: of the null batch, or of one that was first proposed in some view.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(u8);

impl Digest {
    /// The null batch.
    pub const NULL: Self = Self(0);

    /// The batch that was the `nth` to be proposed for its number in `view`.
    pub fn fresh(view: usize, nth: usize) -> Self {
        assert!(view < MAX_VIEWS && nth < usize::from(MAX_FRESH));
        Self(1 + view as u8 * MAX_FRESH + nth as u8)
    }

    /// The view that first proposed it, and which of its batches it is.
    pub fn origin(self) -> Option<(usize, usize)> {
        let index = self.0.checked_sub(1)?;
        Some((usize::from(index / MAX_FRESH), usize::from(index % MAX_FRESH)))
    }

    /// All that can come up in a run.
    pub fn all(bounds: &Bounds) -> impl Iterator<Item = Self> + use<> {
        let fresh: Vec<usize> = (0..bounds.views).map(|view| bounds.fresh(view)).collect();
        let fresh = fresh.into_iter().enumerate();
        let fresh = fresh.flat_map(|(view, count)| (0..count).map(move |nth| Self::fresh(view, nth)));
        std::iter::once(Self::NULL).chain(fresh)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin() {
            None => write!(f, "null"),
            Some((view, nth)) => write!(f, "{}{view}", ["A", "B", "C"][nth]),
        }
    }
}

/// A set of digests.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digests(u16);

impl Digests {
    pub fn has(self, digest: Digest) -> bool {
        self.0 & 1 << digest.0 != 0
    }

    pub fn add(&mut self, digest: Digest) {
        self.0 |= 1 << digest.0;
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn iter(self) -> impl Iterator<Item = Digest> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let lowest = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            (lowest < u16::BITS).then_some(Digest(lowest as u8))
        })
    }
}

impl fmt::Debug for Digests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// What a correct replica has done about one number in one view. Without mistakes, each set has at
/// most one member.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Agreed to: PRE-PREPARE or PREPARE was said.
    pub accepted: Digests,
    /// Prepared: COMMIT was said.
    pub prepared: Digests,
    /// At or below the stable checkpoint that the view began with: nothing is said here.
    pub closed: bool,
}

impl Slot {
    /// Whether a fresh proposal may still be agreed to.
    pub fn is_open(&self) -> bool {
        !self.closed && self.accepted.is_empty()
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { closed: true, .. } => write!(f, "closed"),
            Self { accepted, .. } if accepted.is_empty() => write!(f, "-"),
            Self { accepted, prepared, .. } => write!(f, "accepted {accepted:?} prepared {prepared:?}"),
        }
    }
}

/// A certificate that a batch was prepared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Proof {
    pub view: u8,
    pub digest: Digest,
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in view {}", self.digest, self.view)
    }
}

/// The content of a VIEW-CHANGE: C, and P by number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewChange {
    /// The number of the stable checkpoint; 0 is the genesis.
    pub stable: u8,
    pub prepared: [Option<Proof>; MAX_NUMBERS],
}

/// O: what a new view begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Proposals {
    /// min-s: numbers up to here are stable.
    pub stable: u8,
    /// What is carried over for each number; nothing at or below min-s and above max-s.
    pub carried: [Option<Digest>; MAX_NUMBERS],
}

/// A correct replica.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replica {
    /// The view that it is in, or on its way to.
    pub view: u8,
    /// It said VIEW-CHANGE for `view`, which has not begun here.
    pub changing: bool,
    pub slots: [[Slot; MAX_NUMBERS]; MAX_VIEWS],
    /// The VIEW-CHANGEs that it said, by view.
    pub said: [Option<ViewChange>; MAX_VIEWS],
}

impl Replica {
    /// Whether it votes in `view`.
    pub fn is_in(&self, view: usize) -> bool {
        usize::from(self.view) == view && !self.changing
    }
}

/// Everything. The faulty replica's place stays empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct State {
    pub replicas: [Replica; REPLICAS],
    /// O of the NEW-VIEWs of correct primaries, by view.
    pub begun: [Option<Proposals>; MAX_VIEWS],
}
