//! The part of a node that executes, fetches and indexes, as Storage and the upkeep do.

use std::sync::{Arc, Mutex, Weak};

use actix::{Actor, Context, Handler, MessageResult};
use ledgermq::actors::storage::LookUpMessage;
use ledgermq::actors::view::RegisteredClient;
use ledgermq::actors::{FinalMessage, FinalVerdict};
use ledgermq::ledger::{Asked, Operation, Outcome, Rejection, SEQ_WINDOW, State};
use ledgermq::store::ledger::AdmissionRecord;
use ledgermq::store::{CertifiedCommit, LedgerStore, SledStore};
use ledgermq::types::{ClientId, Height, MessageSeq};

use crate::node::{Running, parsed};
use crate::order::Ordered;

pub fn catch_up_index(store: &SledStore) {
    for height in (store.indexed_height().0 + 1..=store.certified_height().0).map(Height) {
        let Some(block) = store.block(height).unwrap() else { break };
        store.index(&[block]).unwrap();
    }
}

impl Running {
    /// Shows readers the state.
    pub fn publish(&self, clients_changed: bool) {
        let state = self.state.lock().unwrap();
        for (id, record) in state.clients().filter(|_| clients_changed) {
            let client = RegisteredClient::new(
                parsed(&record.key),
                record.settings,
                record.registered,
                record.revoked,
                state.highest(id),
            );
            self.view.put_client(id.clone(), client);
        }
        self.view.put_policies(state.policies());
        for node in state.replicas().members() {
            if let Some(record) = state.history_digest(node) {
                self.view.put_digest(*node, *record);
            }
        }
        let (executed, certified_height) = (state.checkpoint(), self.store.certified_height());
        self.view.update_progress(|progress| {
            progress.executed = executed;
            progress.certified_height = certified_height;
        });
    }

    /// Executes a batch that was ordered.
    pub fn execute(&mut self, ordered: &Ordered) {
        let state = Arc::clone(&self.state);
        let mut state = state.lock().unwrap();
        if ordered.sequence <= state.head().sequence {
            return;
        }
        let executed = state.execute(ordered.sequence, &ordered.batch, &ordered.requests);
        assert_eq!(executed.checkpoint, ordered.checkpoint, "a node came to another result");
        self.store.commit(state.head(), executed.block.as_ref(), &executed.changes).unwrap();
        let mut own = Vec::new();
        for (request, (_, outcome)) in ordered.requests.iter().zip(&executed.outcomes) {
            if let (true, Asked::Write(_, telemetry)) = (request.node() == self.id, request.asked()) {
                let header = &telemetry.header;
                own.push(FinalMessage {
                    client: header.client.clone(),
                    stream: header.stream.clone(),
                    seq: header.seq,
                    header: telemetry.hash,
                    items: header.count,
                    verdict: self.verdict(outcome),
                });
            }
        }
        drop(state);
        self.awaiting.insert(ordered.sequence, own);
        self.publish(ordered.requests.iter().any(|request| matches!(request.asked(), Asked::Admin(_))));
    }

    /// Takes a batch that others executed and certified while this node was away.
    pub async fn fetch(&mut self, ordered: &Ordered) {
        {
            let state = Arc::clone(&self.state);
            let mut state = state.lock().unwrap();
            if ordered.sequence <= state.head().sequence {
                return;
            }
            let Some(certified) = &ordered.certified else {
                state.skip_to(&ordered.certificate.content).unwrap();
                self.store.commit(state.head(), None, &[]).unwrap();
                return;
            };
            let executed = state.apply(certified).unwrap();
            let commit = CertifiedCommit { head: state.head().clone(), certified, changes: executed.changes };
            self.store.commit_certified(&[commit]).unwrap();
            let mut outcomes = executed.outcomes.iter().map(|(_, outcome)| outcome);
            let mut own = Vec::new();
            for operation in &certified.block().operations {
                let outcome = if matches!(operation, Operation::Admin(_)) { None } else { outcomes.next() };
                let Operation::Write { request, .. } = operation else { continue };
                if request.node == self.id {
                    let header = ledgermq::device::Header::decode(&request.header).unwrap();
                    own.push(FinalMessage {
                        header: ledgermq::device::Header::hash_of(&request.header),
                        client: header.client,
                        stream: header.stream,
                        seq: header.seq,
                        items: header.count,
                        verdict: self.verdict(outcome.unwrap()),
                    });
                }
            }
            self.awaiting.insert(ordered.sequence, own);
        }
        self.publish(true);
        self.certify(ordered).await;
    }

    /// A quorum's word for a batch is here: what rests on it is final.
    pub async fn certify(&mut self, ordered: &Ordered) {
        self.store.put_certificate(&ordered.certificate).unwrap();
        let certified_height = self.store.certified_height();
        self.view.update_progress(|progress| {
            progress.certified = progress.certified.max(ordered.sequence);
            progress.certified_height = certified_height;
        });
        let later = self.awaiting.split_off(&ordered.sequence.next());
        for message in std::mem::replace(&mut self.awaiting, later).into_values().flatten() {
            self.tell(message).await;
        }
    }

    /// Indexes what is certified.
    pub fn index(&self) {
        let mut next = self.store.indexed_height().next();
        while next <= self.store.certified_height() {
            let Some(block) = self.store.block(next).unwrap() else { return };
            self.store.index(std::slice::from_ref(&block)).unwrap();
            self.bases.indexed(&block);
            next = next.next();
        }
    }

    fn verdict(&self, outcome: &Outcome) -> FinalVerdict {
        match outcome {
            Outcome::Written { height, items, .. } | Outcome::AlreadyWritten { height, items } => {
                self.written(items.clone(), *height)
            }
            Outcome::Rejected(rejection) => FinalVerdict::Rejected(*rejection),
            other => panic!("not the outcome of a write: {other:?}"),
        }
    }

    fn written(&self, items: Vec<u32>, height: Height) -> FinalVerdict {
        let block = self.store.header(height).unwrap().unwrap().hash();
        FinalVerdict::Written { items, height, block }
    }

    /// A message of before a restart: true if the ledger knows its fate, which is told then.
    pub async fn knows_fate(&mut self, mut message: FinalMessage) -> bool {
        let entry = self.state.lock().unwrap().written(&message.client, message.seq).cloned();
        let Some(entry) = entry else { return false };
        message.verdict = if entry.header == message.header {
            self.written(entry.written.iter().collect(), entry.height)
        } else {
            FinalVerdict::Rejected(Rejection::SeqReused)
        };
        if let FinalVerdict::Written { items, .. } = &message.verdict
            && items.len() < message.items as usize
        {
            return false;
        }
        if entry.height <= self.store.certified_height() {
            self.tell(message).await;
        } else {
            let sequence = self.store.header(entry.height).unwrap().unwrap().sequence;
            self.awaiting.entry(sequence).or_default().push(message);
        }
        true
    }

    /// Whether the index has what was written of a message.
    pub fn is_indexed(&self, record: &AdmissionRecord) -> bool {
        let state = self.state.lock().unwrap();
        match state.written(&record.client, record.seq) {
            Some(entry) => entry.height <= self.store.indexed_height(),
            None => record.seq.0 + SEQ_WINDOW < state.highest(&record.client).0,
        }
    }

    /// The highest seq of a client that this node knows of.
    pub fn last_seq(&self, client: &ClientId) -> MessageSeq {
        self.admission.highest(client).max(self.state.lock().unwrap().highest(client))
    }
}

/// Answers what the replay of the history asks the ledger.
pub struct LookUps {
    state: Weak<Mutex<State>>,
    store: Weak<SledStore>,
}

impl LookUps {
    pub fn new(state: &Arc<Mutex<State>>, store: &Arc<SledStore>) -> Self {
        Self { state: Arc::downgrade(state), store: Arc::downgrade(store) }
    }

    fn look_up(&self, asked: &LookUpMessage) -> Option<FinalVerdict> {
        let (state, store) = (self.state.upgrade()?, self.store.upgrade()?);
        let state = state.lock().unwrap();
        let Some(entry) = state.written(&asked.client, asked.seq) else {
            let highest = state.highest(&asked.client);
            let too_old = asked.seq.0 + SEQ_WINDOW < highest.0;
            let rejected = FinalVerdict::Rejected(Rejection::SeqTooOld { highest });
            return Some(if too_old { rejected } else { FinalVerdict::NotWritten });
        };
        if entry.header != asked.header {
            return Some(FinalVerdict::Rejected(Rejection::SeqReused));
        }
        let block = store.header(entry.height).unwrap()?.hash();
        let is_final = entry.height <= store.certified_height();
        let items = entry.written.iter().collect();
        is_final.then_some(FinalVerdict::Written { items, height: entry.height, block })
    }
}

impl Actor for LookUps {
    type Context = Context<Self>;
}

impl Handler<LookUpMessage> for LookUps {
    type Result = MessageResult<LookUpMessage>;

    fn handle(&mut self, asked: LookUpMessage, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.look_up(&asked))
    }
}
