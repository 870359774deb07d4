//! Ordered pipes into actors.
//!
//! `Recipient::send` is a future of its own for each message: two of them may be delivered in
//! either order, and a handler that awaits one holds its actor. A [`Feeder`] is one bounded queue
//! and one task that awaits each delivery, so that what one sender puts in arrives in that order,
//! and a sender is held back (or told) when the receiver cannot keep up.

use actix::Message;
use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler};
use tokio::sync::mpsc;

use super::Fatal;
use crate::metrics::QueueGauge;

/// One ordered, bounded pipe into an actor.
#[derive(Debug)]
pub struct Feeder<M> {
    name: &'static str,
    queue: mpsc::Sender<M>,
    gauge: QueueGauge,
    fatal: Fatal,
}

impl<M> Clone for Feeder<M> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            queue: self.queue.clone(),
            gauge: self.gauge.clone(),
            fatal: self.fatal.clone(),
        }
    }
}

/// The receiving half of a [`Feeder`], until it is connected to its actor.
#[derive(Debug)]
pub struct Mouth<M> {
    name: &'static str,
    queue: mpsc::Receiver<M>,
    gauge: QueueGauge,
}

/// A pipe of `capacity` messages, and its mouth. The mouth is connected when the actor exists:
/// actors that feed each other can so be built one after the other.
pub fn feeder<M>(
    name: &'static str,
    capacity: usize,
    gauge: QueueGauge,
    fatal: Fatal,
) -> (Feeder<M>, Mouth<M>) {
    let (sender, queue) = mpsc::channel(capacity);
    (Feeder { name, queue: sender, gauge: gauge.clone(), fatal }, Mouth { name, queue, gauge })
}

impl<M> Mouth<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    /// Starts to deliver to `actor`, on the current tokio runtime, until the feeders or the actor
    /// are gone.
    pub fn connect<A>(mut self, actor: Addr<A>)
    where
        A: Actor + Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        let task = async move {
            while let Some(message) = self.queue.recv().await {
                self.gauge.length.dec();
                if actor.send(message).await.is_err() {
                    tracing::debug!(pipe = self.name, "actor stopped, pipe closed");
                    return;
                }
            }
        };
        tokio::spawn(task);
    }

    /// The next message that was put in, for tests without an actor.
    #[cfg(test)]
    pub fn try_take(&mut self) -> Option<M> {
        self.queue.try_recv().ok()
    }
}

impl<M> Feeder<M> {
    /// Queues `message`, waiting while the pipe is full. A closed pipe means that the node stops.
    pub async fn put(&self, message: M) {
        match self.queue.try_send(message) {
            Ok(()) => self.gauge.length.inc(),
            Err(mpsc::error::TrySendError::Closed(_)) => self.log_left_over(),
            Err(mpsc::error::TrySendError::Full(message)) => {
                self.gauge.full.inc();
                match self.queue.send(message).await {
                    Ok(()) => self.gauge.length.inc(),
                    Err(_) => self.log_left_over(),
                }
            }
        }
    }

    /// Queues `message` from a handler, where nothing may wait. The pipe's capacity is above what
    /// the protocol can have in flight, so a full one is a broken invariant and stops the node.
    pub fn put_now(&self, message: M) {
        match self.queue.try_send(message) {
            Ok(()) => self.gauge.length.inc(),
            Err(mpsc::error::TrySendError::Closed(_)) => self.log_left_over(),
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.gauge.full.inc();
                self.fatal.stop(anyhow::anyhow!("pipe {} overflowed its bound", self.name));
            }
        }
    }

    fn log_left_over(&self) {
        tracing::debug!(pipe = self.name, "message left over at stop");
    }
}

#[cfg(test)]
mod tests {
    use super::super::fatal;
    use super::*;
    use crate::metrics::Metrics;

    #[derive(Debug, PartialEq, Message)]
    #[rtype(result = "()")]
    struct Number(u32);

    #[tokio::test]
    async fn a_pipe_that_overflows_its_bound_stops_the_node_and_is_counted() {
        let (fatal, mut reasons) = fatal();
        let gauge = Metrics::new().unwrap().queues.queue("numbers");
        let (pipe, mut mouth) = feeder("numbers", 1, gauge.clone(), fatal.clone());
        pipe.put_now(Number(1));
        assert_eq!((gauge.length.get(), gauge.full.get()), (1, 0));
        pipe.put_now(Number(2));
        assert_eq!((gauge.length.get(), gauge.full.get()), (1, 1));
        assert!(reasons.reason().await.to_string().contains("numbers"));
        assert_eq!(mouth.try_take(), Some(Number(1)));
        assert_eq!(mouth.try_take(), None);
    }
}
