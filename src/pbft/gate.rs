//! The gate before costly checks: how much of them one replica can make the others do.
//!
//! ```text
//! bytes ─▶ Signed ─authenticate: 1 signature─▶ Authentic ─▶ Gate ─┬─ Check ─prove: up to
//!                                                                 │  256 × (q-1) signatures─▶ Verified
//!                                                                 ├─ Known ─▶ Verified
//!                                                                 └─ Later: dropped
//! ```
//!
//! A VIEW-CHANGE proves what was prepared, a NEW-VIEW what it proposes, each with hundreds of
//! signatures. Only a replica can make others look at them at all, since its own signature is
//! checked first. The gate bounds the rest for each sender and kind: [`BURST`] of them at once, then
//! one every [`REFILL`]; what was verified is known again byte for byte, for nothing; and who sent a
//! proof that does not hold, which no correct replica does, waits for [`PENANCE`].
//!
//! An honest message gets through nevertheless. Everybody has an account of its own, which only
//! messages with its signature are charged to. Others may repeat old ones of it, but what is for a
//! lower view than the highest that was seen with its signature is dropped for nothing, so what it
//! says now has the account to itself as soon as it was heard once; and it is repeated at least
//! every two seconds until the view begins. What is dropped and still matters, since a NEW-VIEW
//! names it, is fetched with that.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::codec;
use crate::crypto::blake3_plain;
use crate::ledger::ReplicaSetKeys;
use crate::pbft::message::{Authentic, Content, MessageError, Verified};
use crate::types::{Hash, NetworkId, NodeId, View};

/// Costly messages of one sender and kind that are checked without a pause: those of a few views
/// that fail at once, one after the other.
pub const BURST: u32 = 4;

/// Time in which a sender may have one more checked: the shortest that a view lasts at default
/// settings. At most 768 signatures for n = 4, about a twentieth of one processor.
pub const REFILL: Duration = Duration::from_secs(1);

/// How long nothing more is checked of a sender whose proof did not hold.
pub const PENANCE: Duration = Duration::from_secs(60);

/// What to do with a message.
#[derive(Debug)]
pub enum Pass {
    /// It was verified before.
    Known(Verified),
    /// Check what it proves, with [`Ticket::check`], and say how that ended, with [`Gate::settle`].
    Check(Ticket),
    /// Not now: it is for a view that its sender is beyond, or its sender has had its share.
    Later,
}

/// A message whose proofs are to be checked.
#[derive(Debug)]
pub struct Ticket {
    message: Authentic,
    account: Option<(Kind, NodeId)>,
    content: Hash,
}

impl Ticket {
    /// Checks the message; this is the costly part.
    pub fn check(
        self,
        keys: &ReplicaSetKeys,
        network: &NetworkId,
    ) -> (Settlement, Result<Verified, MessageError>) {
        let Self { message, account, content } = self;
        let result = message.prove(keys, network);
        (Settlement { account, content, holds: result.is_ok() }, result)
    }

    /// Takes a message as checked that was verified elsewhere.
    pub const fn checked(&self) -> Settlement {
        Settlement { account: self.account, content: self.content, holds: true }
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy)]
pub struct Settlement {
    account: Option<(Kind, NodeId)>,
    content: Hash,
    holds: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    ViewChange,
    NewView,
}

/// What one sender has had of one kind.
#[derive(Debug, Clone, Copy)]
struct Account {
    /// The highest view that was seen with its signature.
    highest: View,
    /// The last content that was verified.
    known: Option<Hash>,
    left: u32,
    /// When `left` was last counted up; in the future after a bad proof.
    counted: Duration,
}

/// See the module. At most one account for each replica and kind.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    accounts: BTreeMap<(Kind, NodeId), Account>,
}

impl Gate {
    /// Decides on a message whose signature is its sender's.
    pub fn admit(&mut self, now: Duration, message: Authentic) -> Pass {
        let (kind, view) = match message.content() {
            Content::ViewChange(view_change) => (Kind::ViewChange, view_change.view),
            Content::NewView(new_view) => (Kind::NewView, new_view.view),
            // One signature, which is checked.
            _ => return Pass::Check(Ticket { message, account: None, content: Hash([0; 32]) }),
        };
        let owner = (kind, message.sender());
        let content = blake3_plain(&codec::encode(message.content()));
        let fresh = Account { highest: view, known: None, left: BURST, counted: now };
        let account = self.accounts.entry(owner).or_insert(fresh);
        if account.known == Some(content) {
            return Pass::Known(message.known());
        }
        if view < account.highest {
            return Pass::Later;
        }
        account.highest = view;
        account.refill(now);
        if account.left == 0 {
            return Pass::Later;
        }
        account.left -= 1;
        Pass::Check(Ticket { message, account: Some(owner), content })
    }

    /// Notes how a check ended.
    pub fn settle(&mut self, now: Duration, settlement: Settlement) {
        let Settlement { account, content, holds } = settlement;
        let Some(account) = account.and_then(|owner| self.accounts.get_mut(&owner)) else { return };
        if holds {
            account.known = Some(content);
        } else {
            account.left = 0;
            account.counted = now + PENANCE;
        }
    }
}

impl Account {
    fn refill(&mut self, now: Duration) {
        while self.left < BURST && self.counted + REFILL <= now {
            self.left += 1;
            self.counted += REFILL;
        }
        if self.left == BURST {
            self.counted = self.counted.max(now);
        }
    }
}
