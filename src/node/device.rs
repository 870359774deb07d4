//! The device side of a node: Policy, Verifier and Ingress; and the upkeep of what lies behind.

use std::sync::Arc;

use actix::{Actor as _, Addr};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::history::Running;
use super::{Core, Shared};
use crate::actors::accepted::Ahead;
use crate::actors::downlink::Downlink;
use crate::actors::ingress::{Ingress, IngressLimits, IngressParts};
use crate::actors::node_keys::NodeKeys;
use crate::actors::policy::{Policy, PolicyParts};
use crate::actors::upkeep::Upkeep;
use crate::actors::verifier::{ResumeMessage, Verifier, VerifierParts};
use crate::device::keyring::KeyTerms;

/// Starts Policy, Verifier and Ingress.
pub(super) fn start_device_side(
    shared: &Arc<Shared>,
    mut core: Core,
    downlink: &Downlink,
) -> anyhow::Result<(Addr<Ingress>, Addr<Verifier>, Running)> {
    let finished = std::mem::take(&mut core.opened.finished);
    let policy = start_policy(shared, &core);
    let verifier = start_verifier(shared, &core, policy);
    let ingress = start_ingress(shared, &core, downlink, &verifier)?;
    let (finals_mouth, clients) = core.to_ingress;
    finals_mouth.connect(ingress.clone());
    tokio::spawn(clients.deliver(ingress.clone().recipient()));
    let running = core.history.replay(shared, finished, core.storage.recipient());
    Ok((ingress, verifier, running))
}

fn start_policy(shared: &Arc<Shared>, core: &Core) -> Addr<Policy> {
    let (opened, consensus) = (&core.opened, &core.consensus);
    Policy::new(PolicyParts {
        node: shared.key.node_id(),
        view: Arc::clone(&shared.view),
        bases: Arc::clone(&opened.bases),
        log: opened.log.clone(),
        admission: Arc::clone(&opened.admission),
        consensus: (consensus.clone().recipient(), consensus.clone().recipient()),
        room: Arc::clone(&shared.room),
        finals: core.finals.clone(),
        history: core.history.feed.clone(),
        metrics: shared.metrics.ingress.clone(),
        time: shared.metrics.stages.policy.clone(),
        fatal: shared.fatal.clone(),
    })
    .start()
}

fn start_verifier(shared: &Arc<Shared>, core: &Core, policy: Addr<Policy>) -> Addr<Verifier> {
    let (opened, storage, history) = (&core.opened, &core.storage, &core.history);
    Verifier::new(VerifierParts {
        network: shared.network_id,
        limits: shared.message_limits(),
        admission: Arc::clone(&opened.admission),
        log: opened.log.clone(),
        view: Arc::clone(&shared.view),
        bases: Arc::clone(&opened.bases),
        policy: (policy.clone().recipient(), policy.recipient()),
        storage: storage.clone().recipient(),
        take_up: storage.clone().recipient(),
        workers: shared.workers.clone(),
        ahead: Ahead::new(shared.metrics.queues.queue("ahead_kib")),
        history: (history.backlog.clone(), history.feed.clone()),
        patience: shared.config.mqtt.submit_timeout,
        clock: Arc::clone(&shared.clock),
        time: shared.metrics.stages.verify.clone(),
        fatal: shared.fatal.clone(),
    })
    .start()
}

fn start_ingress(
    shared: &Arc<Shared>,
    core: &Core,
    downlink: &Downlink,
    verifier: &Addr<Verifier>,
) -> anyhow::Result<Addr<Ingress>> {
    let (mqtt, node) = (&shared.config.mqtt, shared.key.node_id());
    let terms = KeyTerms {
        lifetime_ms: u64::try_from(mqtt.payload_key_lifetime.as_millis())?,
        max_messages: mqtt.payload_key_max_messages,
    };
    let ingress = Ingress::new(IngressParts {
        network: shared.network_id,
        node,
        view: Arc::clone(&shared.view),
        admission: Arc::clone(&core.opened.admission),
        keys: NodeKeys::new(shared.network_id, node, mqtt.kem_lifetime, terms, shared.clock.now())?,
        downlink: downlink.clone(),
        verifier: verifier.clone().recipient(),
        log: core.opened.log.clone(),
        clock: Arc::clone(&shared.clock),
        limits: IngressLimits {
            telemetry: shared.message_limits(),
            unregistered_messages_per_minute: mqtt.unregistered_messages_per_minute,
            unverified_replies_per_minute: mqtt.unverified_replies_per_minute,
            submit_timeout: mqtt.submit_timeout,
        },
        metrics: shared.metrics.ingress.clone(),
        time: shared.metrics.stages.decode.clone(),
        fatal: shared.fatal.clone(),
    });
    Ok(ingress.start())
}

/// Finishes what was accepted before the restart, one after the other, while the node runs: the
/// other nodes may have to come back before there is room for all of it.
pub(super) async fn resume(verifier: Addr<Verifier>, accepted: Vec<ResumeMessage>) {
    for message in accepted {
        if verifier.send(message).await.is_err() {
            return;
        }
    }
}

pub(super) fn start_upkeep(shared: &Arc<Shared>, core: &Core) -> (watch::Sender<bool>, Vec<JoinHandle<()>>) {
    let (stopping, stop) = watch::channel(false);
    let upkeep = Upkeep {
        store: Arc::clone(&core.opened.store),
        log: core.opened.log.clone(),
        marks: Arc::clone(&core.opened.marks),
        admission: Arc::clone(&core.opened.admission),
        backlog: core.history.backlog.clone(),
        bases: Arc::clone(&core.opened.bases),
        view: Arc::clone(&shared.view),
        interval: shared.config.storage.checkpoint_interval,
        bytes: shared.config.storage.checkpoint_bytes,
        time: shared.metrics.stages.index.clone(),
        clock: Arc::clone(&shared.clock),
        metrics: shared.metrics.storage.clone(),
        accepted: shared.metrics.queues.queue("accepted"),
        fatal: shared.fatal.clone(),
    };
    let index = tokio::spawn(upkeep.clone().index(stop.clone()));
    let checkpoint = tokio::spawn(upkeep.checkpoint(stop));
    (stopping, vec![index, checkpoint])
}
