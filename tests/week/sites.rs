//! Nodes that end and begin, and the end of the week.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ledgermq::history::Location;
use ledgermq::history::audit::AuditedLedger;
use ledgermq::store::LedgerStore as _;
use ledgermq::types::NodeId;

use crate::audited::{follow, no_false_alarm};
use crate::clock::MINUTE;
use crate::node::{Running, history_location, wipe};
use crate::order::Ordered;
use crate::world::{Counts, Event, Loss, NODES, Site, World};

/// What is left of a week, for an audit.
pub struct Remains {
    pub ledger: AuditedLedger,
    pub counts: Counts,
    /// Each node, its directory, and whether it lost its history.
    pub sites: Vec<(NodeId, PathBuf, bool)>,
    pub refused: Vec<String>,
    pub _dir: tempfile::TempDir,
}

impl World {
    pub async fn kill(&mut self, at: usize, loss: Loss) {
        let Some(node) = self.sites[at].running.take() else { return };
        node.end().await;
        self.count("nodes killed");
        let site = &mut self.sites[at];
        site.has_lost |= loss != Loss::Nothing;
        match loss {
            Loss::Nothing => {}
            Loss::History => {
                std::fs::remove_dir_all(site.dir.join("history")).unwrap();
                self.count("histories lost");
            }
            Loss::Everything => {
                wipe(&site.dir);
                self.count("nodes wiped");
            }
        }
    }

    /// Waits for the last digest, as an orderly stop does, while everything else goes on.
    pub async fn stop(&mut self, at: usize) {
        let Some(node) = &self.sites[at].running else { return };
        node.begin_stop();
        let mut waited = 0;
        while self.sites[at].running.as_ref().is_some_and(|node| !node.has_stopped()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.submit_digests();
            waited += 1;
            // Its patience is soon over.
            self.net.clock.set(self.now + waited * 60);
        }
        if let Some(node) = self.sites[at].running.take() {
            node.end().await;
        }
        self.count("nodes stopped");
    }

    pub async fn start(&mut self, at: usize) {
        if self.sites[at].running.is_some() {
            return;
        }
        let site = &mut self.sites[at];
        site.starts += 1;
        let node = Running::open(&self.net, &site.key, &site.dir).await;
        let head = node.state.lock().unwrap().head().sequence;
        // What was executed and not certified before is certified again.
        let certified = node.store.certified_height();
        let is_certified = |one: &&Arc<Ordered>| one.sequence <= head && one.checkpoint.height <= certified;
        site.certified = self.order.done.iter().take_while(is_certified).count();
        let (resumed, replayed, requests) =
            (node.resumed, node.replayed, node.open.values().cloned().collect::<Vec<_>>());
        site.running = Some(node);
        *self.counts.entry("messages resumed").or_default() += resumed;
        *self.counts.entry("messages of the log offered again").or_default() += replayed;
        for request in requests {
            self.send(at, request);
        }
        self.hear(at);
        self.soon(10, 90_000, Event::CatchUp(at));
    }

    /// Lets everything come to an end, and stops all nodes.
    pub async fn end(mut self) -> Remains {
        for at in 0..NODES {
            self.sites[at].cut_off_until = 0;
            self.start(at).await;
            if let Some(node) = &self.sites[at].running {
                node.history.unplug(false);
            }
            self.at(self.now, Event::CatchUp(at));
        }
        for _ in 0..200 {
            let time = self.now + 20 * MINUTE;
            self.run_until(time).await;
            let is_over = |site: &Site| site.running.as_ref().is_none_or(Running::is_settled);
            if self.sites.iter().all(is_over) && self.order.is_idle() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for round in 0..400 {
            if round == 0 {
                self.sites.iter().filter_map(|site| site.running.as_ref()).for_each(Running::begin_stop);
            }
            self.submit_digests();
            let time = self.now + 100;
            self.run_events(time).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let sites = self.histories();
        for site in &mut self.sites {
            site.running.take().unwrap().end().await;
        }
        follow(&mut self.ledger, &self.order.blocks());
        let refused = self.order.refused;
        Remains { ledger: self.ledger, counts: self.counts, sites, refused, _dir: self.dir }
    }

    /// Where the histories are, of nodes that run and of others.
    fn histories(&self) -> Vec<(NodeId, PathBuf, bool)> {
        self.sites.iter().map(|site| (site.key.node_id(), site.dir.clone(), site.has_lost)).collect()
    }

    /// Audits the histories as they are while everything goes on.
    pub async fn audit(&mut self) {
        follow(&mut self.ledger, &self.order.blocks());
        let is_there = |(_, dir, _): &(NodeId, PathBuf, bool)| match history_location(dir) {
            Location::Sqlite(path) => path.metadata().is_ok_and(|file| file.len() > 0),
            Location::Postgres(_) => true,
        };
        let histories: Vec<_> = self.histories().into_iter().filter(is_there).collect();
        let reports = no_false_alarm(&histories, &self.ledger).await;
        for report in reports.iter().flat_map(|report| &report.nodes) {
            *self.counts.entry("rows audited on the way").or_default() += report.rows as usize;
            *self.counts.entry("rows audited that no digest covered").or_default() +=
                report.not_covered as usize;
            *self.counts.entry("rows audited that were not final").or_default() += report.not_final as usize;
        }
    }
}
