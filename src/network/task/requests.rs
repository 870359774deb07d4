//! Requests on direct streams, ours and those of others.

use std::sync::Arc;

use futures::FutureExt;
use libp2p::PeerId;
use libp2p::request_response::{
    self, InboundFailure, InboundRequestId, Message, OutboundFailure, OutboundRequestId, ResponseChannel,
};
use tokio::sync::oneshot;

use super::Task;
use crate::network::conduct::Offence;
use crate::network::handle::{NetworkEvent, Places, RequestError, Responder};
use crate::network::protocol::{Answers, PeerRequest, PeerResponse};
use crate::network::settings::OUTBOUND_REQUESTS_PER_PEER;
use crate::network::stream::{self, Breach, Carried, Lane};

/// Names one of our requests; each lane counts for itself.
pub(super) type OutboundId = (Lane, OutboundRequestId);

/// Names a request of a peer; each lane counts for itself.
pub(super) type InboundId = (Lane, InboundRequestId);

/// One of our requests that has no answer yet.
#[derive(Debug)]
pub(super) struct Waiting {
    wants: Answers,
    answer: oneshot::Sender<Result<PeerResponse, RequestError>>,
}

type DirectEvent = request_response::Event<Result<Carried, Breach>, PeerResponse>;

impl Task {
    pub(super) fn on_request_command(
        &mut self,
        to: PeerId,
        request: PeerRequest,
        answer: oneshot::Sender<Result<PeerResponse, RequestError>>,
    ) {
        let refused = match self.peers.get_mut(&to) {
            None => Some(RequestError::NotConnected),
            Some(peer) if peer.outbound >= OUTBOUND_REQUESTS_PER_PEER => Some(RequestError::Busy),
            Some(peer) => {
                peer.outbound += 1;
                None
            }
        };
        if let Some(error) = refused {
            let _caller_gone = answer.send(Err(error));
            return;
        }
        let (lane, wants) = (Lane::of(&request), request.wants());
        let carried = Carried { request, places: Vec::new() };
        let id = self.swarm.behaviour_mut().lane(lane).send_request(&to, Ok(carried));
        self.outbound.insert((lane, id), Waiting { wants, answer });
    }

    pub(super) fn on_direct_event(&mut self, lane: Lane, event: DirectEvent) {
        match event {
            DirectEvent::Message {
                peer, message: Message::Request { request, request_id, channel }, ..
            } => match request {
                Ok(carried) => self.on_request((lane, request_id), peer, carried, channel),
                Err(breach) => self.on_offence(peer, Offence::Garbage, &breach.0),
            },
            DirectEvent::Message { peer, message: Message::Response { request_id, response }, .. } => {
                self.on_response(peer, (lane, request_id), response);
            }
            DirectEvent::OutboundFailure { peer, request_id, error, .. } => {
                self.on_request_failed(peer, (lane, request_id), error);
            }
            DirectEvent::InboundFailure { peer, request_id, error, .. } => {
                self.sending.remove(&(lane, request_id));
                self.on_inbound_failure(&peer, &error);
            }
            DirectEvent::ResponseSent { request_id, .. } => {
                self.sending.remove(&(lane, request_id));
                self.metrics.requests_in.with_label_values(&["answered"]).inc();
            }
        }
    }

    /// A peer asks: the node is told if the peer has a place left, else the peer is told to wait.
    fn on_request(
        &mut self,
        id: InboundId,
        from: PeerId,
        carried: Carried,
        channel: ResponseChannel<PeerResponse>,
    ) {
        let Some(peer) = self.peers.get(&from) else { return };
        let (node, free) = (peer.node, Arc::clone(&peer.request_places));
        let Carried { request, mut places } = carried;
        if let PeerRequest::Bundle(bundle) | PeerRequest::Forward(bundle) = &request
            && bundle.node != node
        {
            self.on_offence(from, Offence::Garbage, &"a bundle in another node's name");
            return;
        }
        let Ok(place) = free.try_acquire_owned() else {
            self.metrics.requests_in.with_label_values(&["busy"]).inc();
            self.on_answer(id, channel, PeerResponse::Busy, Places::new());
            return;
        };
        places.push(place);
        self.metrics.requests_in.with_label_values(&["delivered"]).inc();
        let (answer, answered) = oneshot::channel();
        let given = async move {
            let (response, places) = answered.await.unwrap_or((PeerResponse::Busy, Places::new()));
            (id, channel, response, places)
        };
        self.answers.push(given.boxed());
        let responder = Responder { answer, places };
        self.outbox.push_back(NetworkEvent::Request { from: node, request, responder });
    }

    /// The places are held until the answer is sent: who reads slowly shall not make this node keep
    /// one long answer after the other in memory.
    pub(super) fn on_answer(
        &mut self,
        id: InboundId,
        channel: ResponseChannel<PeerResponse>,
        response: PeerResponse,
        places: Places,
    ) {
        // An error means that the peer is gone or has given up; otherwise an event says what became of it.
        let on_its_way = self.swarm.behaviour_mut().lane(id.0).send_response(channel, response).is_ok();
        if on_its_way && !places.is_empty() {
            self.sending.insert(id, places);
        }
    }

    fn on_response(&mut self, peer: PeerId, id: OutboundId, response: PeerResponse) {
        let Some(waiting) = self.take_waiting(&peer, id) else { return };
        let (outcome, result) = match response {
            PeerResponse::Busy => ("busy", Ok(PeerResponse::Busy)),
            response if waiting.wants.is(&response) => ("answered", Ok(response)),
            _ => {
                self.on_offence(peer, Offence::Garbage, &"an answer to another question");
                ("failed", Err(RequestError::Failed("an answer of the wrong kind".to_owned())))
            }
        };
        self.metrics.requests_out.with_label_values(&[outcome]).inc();
        let _caller_gone = waiting.answer.send(result);
    }

    fn on_request_failed(&mut self, peer: PeerId, id: OutboundId, error: OutboundFailure) {
        let Some(waiting) = self.take_waiting(&peer, id) else { return };
        let (outcome, failure) = match error {
            OutboundFailure::Timeout => ("timed_out", RequestError::TimedOut),
            OutboundFailure::DialFailure => ("failed", RequestError::NotConnected),
            OutboundFailure::Io(error) if stream::is_too_long(&error) => {
                ("failed", RequestError::OutOfLimits)
            }
            OutboundFailure::Io(error) => {
                if stream::is_garbage(&error) {
                    self.on_offence(peer, Offence::Garbage, &error);
                }
                ("failed", RequestError::Failed(error.to_string()))
            }
            error => ("failed", RequestError::Failed(error.to_string())),
        };
        self.metrics.requests_out.with_label_values(&[outcome]).inc();
        let _caller_gone = waiting.answer.send(Err(failure));
    }

    fn on_inbound_failure(&self, peer: &PeerId, error: &InboundFailure) {
        self.metrics.requests_in.with_label_values(&["failed"]).inc();
        match error {
            InboundFailure::Io(error) if stream::is_too_long(error) => {
                tracing::error!(%peer, "an answer was longer than the protocol allows and was not sent");
            }
            error => tracing::debug!(%peer, %error, "a request of a peer failed"),
        }
    }

    fn take_waiting(&mut self, peer: &PeerId, id: OutboundId) -> Option<Waiting> {
        let waiting = self.outbound.remove(&id)?;
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.outbound = peer.outbound.saturating_sub(1);
        }
        Some(waiting)
    }
}
