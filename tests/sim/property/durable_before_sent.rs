//! Durable before sent: no correct replica sends what is not on its disk, nor votes for bodies that
//! are not; and no key ever signs two contents for one kind, view and sequence number, over all
//! its lives.

use std::collections::{BTreeMap, BTreeSet};

use ledgermq::codec;
use ledgermq::crypto::blake3_plain;
use ledgermq::pbft::message::Content;
use ledgermq::pbft::{Signed, WalEntry};
use ledgermq::types::{Hash, SeqNum, View};

use super::{Broken, Property, Seen, World, ensure};

/// Kind, view and number: what a key signs once.
pub type Promise = (&'static str, Option<View>, Option<SeqNum>);

#[derive(Default)]
pub struct DurableBeforeSent {
    /// Entries that were ever on each instance's disk.
    durable: BTreeMap<usize, BTreeSet<Hash>>,
    promises: BTreeMap<(usize, Promise), Hash>,
}

impl Property for DurableBeforeSent {
    fn name(&self) -> &'static str {
        "durable before sent"
    }

    fn check(&mut self, world: &World, at: usize, seen: &Seen) -> Result<(), Broken> {
        if world.faulty.contains(&at) {
            return Ok(());
        }
        match seen {
            Seen::Synced(entries) => {
                self.durable.entry(at).or_default().extend(entries);
                Ok(())
            }
            Seen::Sent(signed) => self.sent(at, signed),
            _ => Ok(()),
        }
    }
}

impl DurableBeforeSent {
    fn sent(&mut self, at: usize, signed: &Signed) -> Result<(), Broken> {
        let entry = blake3_plain(&WalEntry::Sent(signed.clone()).encode());
        let durable = self.durable.get(&at).is_some_and(|entries| entries.contains(&entry));
        ensure!(durable, "replica {at} sent what is not on its disk: {:?}", signed.content);
        let content = blake3_plain(&codec::encode(&signed.content));
        let promise = promise(&signed.content);
        let kept = *self.promises.entry((at, promise)).or_insert(content) == content;
        ensure!(kept, "replica {at} contradicts itself: {:?}", signed.content);
        Ok(())
    }
}

pub fn promise(content: &Content) -> Promise {
    // A view is given up once and begun once, whatever is stable then.
    let whole_view = matches!(content, Content::ViewChange(_) | Content::NewView(_));
    (content.signature_kind().as_str(), content.view(), (!whole_view).then(|| content.sequence()))
}
