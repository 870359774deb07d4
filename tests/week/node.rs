//! A node: its real ledger state and store, log, judging, admission and history, put together as
//! `src/node` does, without its network and its actors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::Actor as _;
use ledgermq::actors::accepted::{LogRecord, LoggedMessage};
use ledgermq::actors::admission::{Admission, Standing};
use ledgermq::actors::bases::{Bases, BasesLimits};
use ledgermq::actors::history::{
    Backlog, DigestTerms, Finished, HistoryFeed, HistoryParts, HistoryTask, replay,
};
use ledgermq::actors::verifier::Workers;
use ledgermq::actors::view::LedgerView;
use ledgermq::actors::{FinalMessage, FinalVerdict, fatal};
use ledgermq::clock::{Clock as _, SharedClock};
use ledgermq::crypto::{SecretKey, VerifyingKey};
use ledgermq::device::telemetry::{Content, Limits, Message};
use ledgermq::history::{HistoryStore, Location, SqlHistory};
use ledgermq::ledger::{AdmittedMessage, Genesis, HistoryDigest, State, VerifiedRequest};
use ledgermq::metrics::Metrics;
use ledgermq::policy::Decision;
use ledgermq::store::ledger::AdmissionRecord;
use ledgermq::store::log::{Holder, LogSettings, Position};
use ledgermq::store::{LedgerStore, Log, SledStore, StoreSettings};
use ledgermq::types::{ClientId, Hash, MessageSeq, NodeId, SeqNum, Stream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock::{HOUR, WeekClock};
use crate::gate::Gate;
use crate::ledger::LookUps;

/// What all nodes share.
pub struct Net {
    pub genesis: Genesis,
    pub clock: Arc<WeekClock>,
}

/// What a node answers to a message.
pub enum Answer {
    /// In its log; the request to write what its policy picked, if any.
    Accepted(Option<Arc<VerifiedRequest>>),
    /// It has it already.
    Known,
    Refused(&'static str),
}

/// What a node has said of the messages of clients.
pub type Told = (ClientId, MessageSeq, Hash);

/// A running node. `ledger.rs` is the part of it that executes.
pub struct Running {
    pub net: Arc<Net>,
    pub id: NodeId,
    pub state: Arc<Mutex<State>>,
    pub store: Arc<SledStore>,
    pub view: Arc<LedgerView>,
    pub bases: Arc<Bases>,
    pub admission: Admission,
    log: Log,
    backlog: Backlog,
    feed: HistoryFeed,
    pub history: Arc<Gate>,
    digests: Arc<Mutex<Vec<HistoryDigest>>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    /// Fates that are not final, by the batch that they rest on.
    pub awaiting: BTreeMap<SeqNum, Vec<FinalMessage>>,
    /// Requests of messages that are not final.
    pub open: BTreeMap<(ClientId, MessageSeq), Arc<VerifiedRequest>>,
    /// Messages that became final here and whose clients are to be told.
    pub told: Vec<Told>,
    /// Rows that the history was given.
    pub offered: u64,
    pub resumed: usize,
    pub replayed: usize,
}

pub fn history_location(dir: &Path) -> Location {
    Location::of_node(None, dir).unwrap()
}

fn open_store(dir: &Path, net: &Net) -> SledStore {
    // The database's own threads take a moment to end after it was closed.
    for _ in 0..200 {
        match SledStore::open(&dir.join("ledger"), &StoreSettings::new(net.genesis.network_id())) {
            Ok(store) => return store,
            Err(ledgermq::store::StoreError::InUse(_)) => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the store stays in use");
}

/// The accepted messages of a log: those whose fate is not known, and the others.
type Replayed = (Vec<(AdmissionRecord, Position, LoggedMessage, Decision)>, Vec<(AdmissionRecord, Finished)>);

fn read_log(replay: ledgermq::store::log::Replay) -> Replayed {
    let (mut unfinished, mut finished) = (BTreeMap::new(), Vec::new());
    for entry in replay {
        let (position, entry) = entry.unwrap();
        match LogRecord::decode(&entry.bytes).unwrap() {
            LogRecord::Accepted(message, decision) => {
                let content = Content::decode(&message.content).unwrap();
                let header = ledgermq::device::Header::decode(content.header()).unwrap();
                let hash = ledgermq::device::Header::hash_of(content.header());
                let client = message.client.clone();
                let record = AdmissionRecord { client, seq: header.seq, header: hash, items: header.count };
                unfinished.insert((record.client.clone(), record.seq), (record, position, message, decision));
            }
            LogRecord::Final { client, seq, is_written } => {
                let Some((record, position, message, decision)) = unfinished.remove(&(client, seq)) else {
                    continue;
                };
                let key = (record.client.clone(), record.seq, record.header);
                finished.push((record, Finished { position, key, message, decision, is_written }));
            }
        }
    }
    let mut unfinished: Vec<_> = unfinished.into_values().collect();
    unfinished.sort_by_key(|(_, position, ..)| *position);
    (unfinished, finished)
}

impl Running {
    /// Opens what is in `dir`, as a start does.
    pub async fn open(net: &Arc<Net>, key: &SecretKey, dir: &Path) -> Self {
        let network = net.genesis.network_id();
        let store = open_store(dir, net);
        let state = match store.load().unwrap() {
            Some(snapshot) => State::restore(network, snapshot.head, snapshot.entries).unwrap(),
            None => {
                let state = State::genesis(&net.genesis);
                store.commit(state.head(), None, &state.as_changes()).unwrap();
                state
            }
        };
        let admission = Admission::restore(store.admissions().unwrap());
        crate::ledger::catch_up_index(&store);
        let clock: SharedClock = Arc::clone(&net.clock) as SharedClock;
        let mut settings = LogSettings::new(network, clock);
        settings.segment_bytes = 64 * 1024;
        let (log, entries) = Log::open(&dir.join("log"), settings).unwrap();
        let (unfinished, finished) = read_log(entries);
        let metrics = Metrics::new().unwrap();
        let store = Arc::new(store);
        let limits = BasesLimits { cached_items: 16, open_items: 100_000 };
        let gauge = metrics.queues.queue("open_items");
        let bases = Bases::new(Arc::clone(&store) as Arc<dyn LedgerStore>, limits, gauge);
        let mut node = Self::start(net, key, dir, (log, store, state, admission, Arc::new(bases), metrics));
        node.take_up(unfinished, finished).await;
        node
    }

    fn start(
        net: &Arc<Net>,
        key: &SecretKey,
        dir: &Path,
        parts: (Log, Arc<SledStore>, State, Admission, Arc<Bases>, Arc<Metrics>),
    ) -> Self {
        let (log, store, state, admission, bases, metrics) = parts;
        let (network, view) = (net.genesis.network_id(), Arc::<LedgerView>::default());
        let history = Arc::new(Gate::new(SqlHistory::new(history_location(dir), network, key.node_id())));
        let digests: Arc<Mutex<Vec<HistoryDigest>>> = Arc::default();
        let made = Arc::clone(&digests);
        let parts = HistoryParts {
            store: Arc::clone(&history) as Arc<dyn HistoryStore>,
            network,
            key: key.clone(),
            log: log.clone(),
            view: Arc::clone(&view),
            submit: Arc::new(move |digest| made.lock().unwrap().push(digest)),
            terms: DigestTerms { interval: Duration::from_millis(5 * HOUR), max_rows: 60 },
            clock: Arc::clone(&net.clock) as SharedClock,
            metrics: metrics.history.clone(),
            fatal: fatal().0,
        };
        let (stop, stopping) = watch::channel(false);
        let (task, feed) = HistoryTask::new(parts, stopping);
        let node = Self {
            net: Arc::clone(net),
            id: key.node_id(),
            state: Arc::new(Mutex::new(state)),
            store,
            view,
            bases,
            admission,
            log,
            backlog: Backlog::new(64 << 20, metrics.queues.queue("history_kib")),
            feed,
            history,
            digests,
            stop,
            task: tokio::spawn(async {}),
            awaiting: BTreeMap::new(),
            open: BTreeMap::new(),
            told: Vec::new(),
            offered: 0,
            resumed: 0,
            replayed: 0,
        };
        node.publish(true);
        Self { task: tokio::spawn(task.run()), ..node }
    }

    /// What the log has of before the start.
    async fn take_up(
        &mut self,
        unfinished: Vec<(AdmissionRecord, Position, LoggedMessage, Decision)>,
        finished: Vec<(AdmissionRecord, Finished)>,
    ) {
        let network = self.net.genesis.network_id();
        for (record, _) in &finished {
            self.admission.note_final(record);
        }
        for (record, finished) in finished.iter().filter(|(_, finished)| finished.is_written) {
            if !self.is_indexed(record) {
                let message = finished.message.verify(&network).unwrap();
                self.bases.resume(record.seq, message.items(), &finished.decision).unwrap();
            }
        }
        for (record, position, message, decision) in &unfinished {
            self.admission.resume(record, *position);
            let message = message.verify(&network).unwrap();
            self.bases.resume(record.seq, message.items(), decision).unwrap();
        }
        let finished: Vec<_> = finished.into_iter().map(|(_, finished)| finished).collect();
        (self.resumed, self.replayed) = (unfinished.len(), finished.len());
        let look_ups = LookUps::new(&self.state, &self.store).start().recipient();
        let to = (self.backlog.clone(), self.feed.clone());
        let history = Arc::clone(&self.history) as Arc<dyn HistoryStore>;
        tokio::spawn(replay(finished, history, to, look_ups, (Workers::new(), network)));
        for (record, position, message, decision) in unfinished {
            let message = Arc::new(message.verify(&network).unwrap());
            let place = self.backlog.place(&message).await.unwrap();
            place.pin(position);
            self.offered += 1;
            self.feed.decided(Arc::clone(&message), decision.bytes(), position, Arc::new(place));
            let known = final_message(&message, FinalVerdict::NotWritten);
            if !self.knows_fate(known.clone()).await {
                match self.request(&message, &decision) {
                    Some(request) => {
                        self.open.insert((record.client, record.seq), request);
                    }
                    None => self.tell(known).await,
                }
            }
        }
    }

    /// A message of a client came; as Verifier and Policy do.
    pub async fn accept(&mut self, client: &ClientId, stream: &Stream, bytes: &[u8]) -> Answer {
        let Some(registered) = self.view.client(client) else { return Answer::Refused("not registered") };
        if registered.revoked.is_some() {
            return Answer::Refused("revoked");
        }
        let content = Content::decode(bytes).unwrap();
        let network = self.net.genesis.network_id();
        let Ok(verified) = content.verify(&registered.key, &network, client, stream) else {
            return Answer::Refused("signature");
        };
        let hash = verified.signed().hash();
        match self.admission.judge(client, verified.header().seq, &hash) {
            Standing::New => {}
            Standing::Pending { .. } => return Answer::Known,
            Standing::Final(_) | Standing::Settled => {
                self.told.push((client.clone(), verified.header().seq, hash));
                return Answer::Known;
            }
            Standing::Reused => return Answer::Refused("seq reused"),
            Standing::TooOld => return Answer::Refused("seq too old"),
        }
        let message = verified.check_body(&Limits::default(), self.net.clock.now()).unwrap();
        let policies = self.view.policies();
        if self.bases.check_quota(&policies, stream.as_str(), message.items()).unwrap().is_err() {
            return Answer::Refused("too many items");
        }
        let logged = LoggedMessage {
            client: client.clone(),
            stream: stream.clone(),
            key: registered.key.public(),
            content: bytes.to_vec(),
        };
        self.admit(Arc::new(message), logged).await
    }

    async fn admit(&mut self, message: Arc<Message>, logged: LoggedMessage) -> Answer {
        let history = self.backlog.place(&message).await.unwrap();
        let place = self.admission.place().await.unwrap();
        let header = message.header();
        let (client, seq) = (header.client.clone(), header.seq);
        let record = AdmissionRecord {
            client: client.clone(),
            seq,
            header: message.signed().hash(),
            items: header.count,
        };
        let first_needed = self.log.last().next();
        let received = self.net.clock.monotonic();
        assert_eq!(self.admission.admit(&record, first_needed, received, place), Standing::New);
        history.pin(first_needed);
        let policies = self.view.policies();
        let decision = self.bases.judge(&policies, header.stream.as_str(), seq, message.items()).unwrap();
        let entry = LogRecord::Accepted(logged, decision.clone()).entry();
        let position = self.log.append(vec![entry]).await.unwrap();
        self.admission.logged(&client, seq, position);
        self.offered += 1;
        self.feed.decided(Arc::clone(&message), decision.bytes(), position, Arc::new(history));
        let request = self.request(&message, &decision);
        match &request {
            Some(request) => {
                self.open.insert((client, seq), Arc::clone(request));
            }
            None => self.tell(final_message(&message, FinalVerdict::NotWritten)).await,
        }
        Answer::Accepted(request)
    }

    fn request(&self, message: &Message, decision: &Decision) -> Option<Arc<VerifiedRequest>> {
        let signed = message.signed();
        let parts = AdmittedMessage {
            header: signed.header(),
            header_bytes: signed.bytes(),
            signature: signed.signature(),
            client_key: signed.client_key(),
            items: message.item_bytes(),
        };
        let picked = decision.picked();
        let request = || VerifiedRequest::from_admitted(self.id, parts, &picked).unwrap();
        (!picked.is_empty()).then(|| Arc::new(request()))
    }

    /// A message is final, as Finals and Ingress do.
    pub async fn tell(&mut self, message: FinalMessage) {
        self.bases.settled(&message);
        let FinalMessage { client, seq, header, verdict, .. } = &message;
        let settled = self.admission.settle(client, *seq, header, verdict.clone());
        if settled.is_none() {
            return;
        }
        self.feed.is_final(&message);
        self.open.remove(&(client.clone(), *seq));
        self.told.push((client.clone(), *seq, *header));
        let is_written = matches!(verdict, FinalVerdict::Written { .. });
        let record = LogRecord::Final { client: client.clone(), seq: *seq, is_written };
        self.log.append(vec![record.entry()]).await.unwrap();
    }

    /// Makes the store durable and cuts the log, as the upkeep does.
    pub async fn save(&self) {
        let end = self.log.last().next();
        let ingress = self.admission.needed_from().unwrap_or(end).min(end);
        let history = self.backlog.needed_from().unwrap_or(end).min(end);
        let accepted = self.admission.take_changed();
        self.log.synced(self.log.last()).await.unwrap();
        self.store.put_admissions(&accepted).unwrap();
        self.store.make_durable().unwrap();
        self.log.set_low_mark(Holder::Consensus, end);
        self.log.set_low_mark(Holder::Ingress, ingress);
        self.log.set_low_mark(Holder::History, history);
        self.log.cut(self.log.low_mark());
    }

    /// Digests that the history wants to have on the ledger.
    pub fn take_digests(&self) -> Vec<HistoryDigest> {
        std::mem::take(&mut *self.digests.lock().unwrap())
    }

    /// Whether the history has every row that it was given.
    pub fn is_written_up(&self) -> bool {
        self.history.is_gone() || self.history.taken() >= self.offered
    }

    /// Whether nothing of it is in the log alone.
    pub fn is_settled(&self) -> bool {
        self.is_written_up() && self.backlog.needed_from().is_none() && self.open.is_empty()
    }

    pub fn begin_stop(&self) {
        self.stop.send_replace(true);
    }

    pub fn has_stopped(&self) -> bool {
        self.task.is_finished()
    }

    /// As `kill -9` does, or after an orderly stop.
    pub async fn end(self) {
        self.task.abort();
        let _cancelled = self.task.await;
    }
}

pub fn final_message(message: &Message, verdict: FinalVerdict) -> FinalMessage {
    let header = message.header();
    FinalMessage {
        client: header.client.clone(),
        stream: header.stream.clone(),
        seq: header.seq,
        header: message.signed().hash(),
        items: header.count,
        verdict,
    }
}

/// A registered key, as the ledger view has it.
pub fn parsed(key: &ledgermq::types::PublicKey) -> VerifyingKey {
    VerifyingKey::parse(key).unwrap()
}

/// Removes the log, the ledger and the history of a node that does not run.
pub fn wipe(dir: &PathBuf) {
    std::fs::remove_dir_all(dir).unwrap();
    std::fs::create_dir_all(dir).unwrap();
}
