//! The checker: what all nodes have, against what every client was told.
//!
//! ```text
//! chains of all nodes ──▶ each whole and certified, by genesis alone ──▶ all the same
//! messages and acks   ──▶ what was promised is there, once, where the ack says; nothing else is there
//! proof bundles       ──▶ each proves a message that was sent, in that block
//! ```
//!
//! | a client was told | what must be on the ledger when all is quiet |
//! | --- | --- |
//! | signed success | every item, exactly once, and the block that the ack names holds the message |
//! | PUBACK alone | every item, exactly once: a node promised to finish it |
//! | nothing | no item twice |
//!
//! It is pure, so that its own tests can show it each kind of wrong: see `checker_tests.rs`.

use std::collections::BTreeMap;
use std::fmt;

use ledgermq::device::control::Ack;
use ledgermq::ledger::proof::Proven;
use ledgermq::ledger::{Certificate, Genesis, Header, ReplicaSetKeys};
use ledgermq::types::{ClientId, Hash, Height, MessageSeq};

/// One node's ledger, as its API shows it.
#[derive(Debug, Clone)]
pub struct Chain {
    pub node: usize,
    pub blocks: Vec<ChainBlock>,
}

#[derive(Debug, Clone)]
pub struct ChainBlock {
    /// What the node says is the hash.
    pub hash: Hash,
    pub header: Header,
    /// None where the block was looked at before, and its header alone is compared again.
    pub body: Option<Body>,
}

#[derive(Debug, Clone)]
pub struct Body {
    pub certificate: Option<Certificate>,
    pub writes: Vec<Write>,
}

/// A write operation of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub operation: u32,
    pub client: ClientId,
    pub seq: MessageSeq,
    /// Hash of the message's header.
    pub message: Hash,
    /// The items that this operation wrote.
    pub written: Vec<u32>,
}

/// A message as its client knows it.
#[derive(Debug, Clone)]
pub struct Sent {
    pub client: ClientId,
    pub seq: MessageSeq,
    pub message: Hash,
    pub items: u32,
    pub told: Told,
}

/// The most that a client was told about a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    Nothing,
    Puback,
    Success(Box<Ack>),
    /// No message of these tests may be refused.
    Refused(String),
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A node has not the same number of blocks as the others.
    Behind { node: usize, has: usize, others: usize },
    /// A block does not follow the one before it, or is not the one that its place asks for.
    Gap { node: usize, height: Height },
    /// A block's hash is not that of its header, or its header breaks a rule.
    BadHeader { node: usize, height: Height },
    /// No quorum of the replicas of genesis signed the block.
    BadCertificate { node: usize, height: Height, why: String },
    /// It has the block without a certificate: one that a kill took from it is fetched again.
    Uncertified { node: usize, height: Height },
    /// Two nodes have different blocks.
    Fork { height: Height, nodes: (usize, usize) },
    /// A client has signed success, and an item is not there.
    AckedLost { client: ClientId, seq: MessageSeq },
    /// A client has a PUBACK, and an item is not there.
    PubackedLost { client: ClientId, seq: MessageSeq },
    /// The block that an ack names is another, or does not hold the message.
    WrongPlace { client: ClientId, seq: MessageSeq },
    /// An item was written twice.
    Doubled { client: ClientId, seq: MessageSeq, item: u32 },
    /// Something was written that no client sent.
    Foreign { height: Height, operation: u32 },
    /// A node refused a good message.
    Refused { client: ClientId, seq: MessageSeq, why: String },
    /// A proof bundle does not hold, or proves something else.
    BadProof { place: String, why: String },
}

impl Violation {
    /// Whether time can mend it: a node that still finishes what it acknowledged, is behind, or fetches.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::PubackedLost { .. } | Self::Behind { .. } | Self::Uncertified { .. })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Where items were written: over all audits of a network, since each looks at new blocks only.
#[derive(Debug, Default)]
pub struct Written {
    /// Of each message: item, and the block that wrote it.
    items: BTreeMap<(ClientId, MessageSeq, Hash), Vec<(u32, Height)>>,
    foreign: Vec<(ClientId, MessageSeq, Hash, Height, u32)>,
    doubled: Vec<Violation>,
}

impl Written {
    /// Takes in the writes of a block.
    pub fn add(&mut self, height: Height, write: &Write) {
        let key = (write.client.clone(), write.seq, write.message);
        self.foreign.push((write.client.clone(), write.seq, write.message, height, write.operation));
        let items = self.items.entry(key).or_default();
        for item in &write.written {
            if items.iter().any(|(other, _)| other == item) {
                let (client, seq) = (write.client.clone(), write.seq);
                self.doubled.push(Violation::Doubled { client, seq, item: *item });
            }
            items.push((*item, height));
        }
    }

    fn of(&self, sent: &Sent) -> &[(u32, Height)] {
        let key = (sent.client.clone(), sent.seq, sent.message);
        self.items.get(&key).map_or(&[], Vec::as_slice)
    }
}

/// Checks each chain by itself and all against each other.
pub fn check_chains(genesis: &Genesis, keys: &ReplicaSetKeys, chains: &[Chain]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let most = chains.iter().map(|chain| chain.blocks.len()).max().unwrap_or_default();
    for chain in chains {
        let (node, has) = (chain.node, chain.blocks.len());
        if has < most {
            violations.push(Violation::Behind { node, has, others: most });
        }
        violations.extend(check_chain(genesis, keys, chain));
    }
    let Some((first, others)) = chains.split_first() else { return violations };
    for other in others {
        let pairs = first.blocks.iter().zip(&other.blocks);
        // The first difference is the fork; all that follows hangs on it.
        if let Some((one, _)) = pairs.into_iter().find(|(one, two)| one.hash != two.hash) {
            let nodes = (first.node, other.node);
            violations.push(Violation::Fork { height: one.header.height, nodes });
        }
    }
    violations
}

fn check_chain(genesis: &Genesis, keys: &ReplicaSetKeys, chain: &Chain) -> Vec<Violation> {
    let (node, network) = (chain.node, genesis.network_id());
    let mut violations = Vec::new();
    let (mut previous, mut expected) = (Hash(network.0), Height(1));
    for block in &chain.blocks {
        let header = &block.header;
        if header.height != expected || header.previous != previous {
            // What follows cannot be judged without it.
            violations.push(Violation::Gap { node, height: expected });
            return violations;
        }
        if header.check(&network).is_err() || header.hash() != block.hash {
            violations.push(Violation::BadHeader { node, height: header.height });
        }
        if let Some(body) = &block.body {
            let height = header.height;
            violations.extend(match &body.certificate {
                None => Some(Violation::Uncertified { node, height }),
                Some(certificate) => header
                    .check_certified(&network, certificate, keys)
                    .err()
                    .map(|error| Violation::BadCertificate { node, height, why: error.to_string() }),
            });
        }
        (previous, expected) = (block.hash, expected.next());
    }
    violations
}

/// Checks what is written against what the clients sent and were told.
pub fn check_records(hashes: &[Hash], written: &Written, sent: &[Sent]) -> Vec<Violation> {
    let mut violations = written.doubled.clone();
    let known: BTreeMap<_, _> =
        sent.iter().map(|sent| ((&sent.client, sent.seq, sent.message), sent.items)).collect();
    for (client, seq, message, height, operation) in &written.foreign {
        let all = written.items.get(&(client.clone(), *seq, *message)).map_or(&[][..], Vec::as_slice);
        let items = known.get(&(client, *seq, *message));
        if items.is_none_or(|items| all.iter().any(|(item, _)| item >= items)) {
            violations.push(Violation::Foreign { height: *height, operation: *operation });
        }
    }
    violations.extend(sent.iter().filter_map(|sent| check_sent(hashes, written.of(sent), sent)));
    violations
}

fn check_sent(hashes: &[Hash], written: &[(u32, Height)], sent: &Sent) -> Option<Violation> {
    let (client, seq) = (sent.client.clone(), sent.seq);
    let whole = (0..sent.items).all(|item| written.iter().any(|(other, _)| *other == item));
    match &sent.told {
        Told::Nothing => None,
        Told::Refused(why) => Some(Violation::Refused { client, seq, why: why.clone() }),
        Told::Puback => (!whole).then_some(Violation::PubackedLost { client, seq }),
        Told::Success(_) if !whole => Some(Violation::AckedLost { client, seq }),
        Told::Success(ack) => {
            // Of several blocks the ack names the highest that it knows of.
            let named = ack.height.and_then(|height| {
                let block = hashes.get(usize::try_from(height.0).ok()?.checked_sub(1)?)?;
                let is_that = ack.block == Some(*block);
                (is_that && written.iter().any(|(_, at)| *at == height)).then_some(())
            });
            let all = ack.written.len() == sent.items as usize;
            (named.is_none() || !all).then_some(Violation::WrongPlace { client, seq })
        }
    }
}

/// Checks what a bundle proves of a write at this place.
pub fn check_proof(
    height: Height,
    hash: Hash,
    write: &Write,
    proven: &Result<Proven, String>,
) -> Option<Violation> {
    let place = format!("{height}/{}", write.operation);
    let why = match proven {
        Err(why) => why.clone(),
        Ok(proven) => {
            let block = (proven.block.height, proven.block.hash, proven.block.operation);
            let message = (&proven.client, proven.seq, proven.header_hash);
            if block == (height, hash, write.operation)
                && message == (&write.client, write.seq, write.message)
                && proven.records.len() == write.written.len()
            {
                return None;
            }
            "it proves something else".to_owned()
        }
    };
    Some(Violation::BadProof { place, why })
}
