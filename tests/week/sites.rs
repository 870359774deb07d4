//! Nodes that end and begin, and the end of the week.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ledgermq::ledger::{CertifiedBlock, Genesis};
use ledgermq::store::LedgerStore as _;
use ledgermq::types::NodeId;

use crate::clock::MINUTE;
use crate::node::{Running, wipe};
use crate::order::Ordered;
use crate::world::{Counts, Event, NODES, Site, World};

/// What is left of a week, for an audit.
pub struct Remains {
    pub genesis: Genesis,
    pub blocks: Vec<CertifiedBlock>,
    pub counts: Counts,
    /// Each node, its directory, and whether it lost its disk.
    pub sites: Vec<(NodeId, PathBuf, bool)>,
    pub refused: Vec<String>,
    pub _dir: tempfile::TempDir,
}

impl World {
    pub async fn kill(&mut self, at: usize, wiped: bool) {
        let Some(node) = self.sites[at].running.take() else { return };
        node.end().await;
        self.count("nodes killed");
        let site = &mut self.sites[at];
        if wiped {
            wipe(&site.dir);
            site.wiped = true;
            self.count("nodes wiped");
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
        let is_certified = |one: &&Arc<Ordered>| {
            one.sequence <= head && one.checkpoint.height <= certified
        };
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
        let mut sites = Vec::new();
        for site in self.sites {
            sites.push((site.key.node_id(), site.dir, site.wiped));
            site.running.unwrap().end().await;
        }
        let blocks = self.order.done.iter().filter_map(|one| one.certified.clone()).collect();
        let genesis = self.net.genesis.clone();
        let refused = self.order.refused;
        Remains { genesis, blocks, counts: self.counts, sites, refused, _dir: self.dir }
    }
}

