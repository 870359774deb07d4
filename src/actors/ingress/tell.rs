//! What a client is told of a message whose fate is known.
//!
//! The mark that the message is done goes into the log before the ack leaves: so whatever the client
//! sends after it finds the message done, also after a restart. An ack for what is on no ledger waits
//! until the message is on disk, since its client may delete its copy then.

use actix::Handler;

use super::{Ingress, MAX_STREAMS, Reply, Topic, send};
use crate::actors::accepted::LogRecord;
use crate::actors::finals::TellFinal;
use crate::actors::{FinalMessage, FinalVerdict};
use crate::device::codes::{ACCEPTED_BEFORE, UnauthReason};
use crate::device::control::Ack;
use crate::device::telemetry::Reference;
use crate::ledger::Rejection;

impl Ingress {
    /// The answer to a message whose fate is known.
    pub(super) fn final_reply(&mut self, message: &FinalMessage) -> Reply {
        let FinalMessage { client, stream, seq, header, items, verdict } = message;
        let (written, height, block) = match verdict {
            FinalVerdict::Written { items, height, block } => (items.clone(), Some(*height), Some(*block)),
            FinalVerdict::NotWritten => (Vec::new(), None, None),
            FinalVerdict::Rejected(rejection) => return self.rejection(message, rejection),
        };
        let ack = Ack {
            stream: stream.clone(),
            seq: *seq,
            header: *header,
            items: *items,
            written,
            height,
            block,
            server_time: self.now(),
        };
        let is_first =
            self.streams.len() < MAX_STREAMS && self.streams.insert((client.clone(), stream.clone()));
        let topic = if is_first { Topic::Datas(stream.clone()) } else { Topic::Success(stream.clone()) };
        Reply::Ack(topic, ack)
    }

    fn rejection(&self, message: &FinalMessage, rejection: &Rejection) -> Reply {
        match rejection.error_code() {
            Some(code) => {
                let reference = Reference { seq: Some(message.seq), header: Some(message.header) };
                // What is final was accepted, whatever became of it.
                let detail = format!("{ACCEPTED_BEFORE}{rejection}");
                self.error(message.stream.clone(), reference, code, detail)
            }
            None if matches!(rejection, Rejection::Revoked { .. }) => self.unauth(UnauthReason::Revoked),
            None => self.unauth(UnauthReason::NotRegistered),
        }
    }
}

impl Handler<TellFinal> for Ingress {
    type Result = ();

    fn handle(&mut self, TellFinal { message, place }: TellFinal, _: &mut Self::Context) {
        let reply = self.final_reply(&message);
        let (downlink, log, fatal) =
            (self.parts.downlink.clone(), self.parts.log.clone(), self.parts.fatal.clone());
        // As many at once as there are places.
        tokio::spawn(async move {
            // In the log before anything that the client sends after the ack: so a restart knows
            // that this message is done.
            let mark = LogRecord::Final {
                client: message.client.clone(),
                seq: message.seq,
                is_written: matches!(message.verdict, FinalVerdict::Written { .. }),
            };
            let logged = match log.append(vec![mark.entry()]).await {
                // No other node has it, and its client may delete it now: the disk comes first. For
                // what a quorum wrote or refused nobody has to wait.
                Ok(mark) if message.verdict == FinalVerdict::NotWritten => log.synced(mark).await,
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = logged {
                return fatal.stop(anyhow::Error::new(error).context("writing the log"));
            }
            send(&downlink, &message.client, reply).await;
            drop(place);
        });
    }
}
