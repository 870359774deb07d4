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

/// One ordered, bounded pipe into an actor.
#[derive(Debug)]
pub struct Feeder<M> {
    name: &'static str,
    queue: mpsc::Sender<M>,
    fatal: Fatal,
}

impl<M> Clone for Feeder<M> {
    fn clone(&self) -> Self {
        Self { name: self.name, queue: self.queue.clone(), fatal: self.fatal.clone() }
    }
}

/// The receiving half of a [`Feeder`], until it is connected to its actor.
#[derive(Debug)]
pub struct Mouth<M>(&'static str, mpsc::Receiver<M>);

/// A pipe of `capacity` messages, and its mouth. The mouth is connected when the actor exists:
/// actors that feed each other can so be built one after the other.
pub fn feeder<M>(name: &'static str, capacity: usize, fatal: Fatal) -> (Feeder<M>, Mouth<M>) {
    let (queue, receiver) = mpsc::channel(capacity);
    (Feeder { name, queue, fatal }, Mouth(name, receiver))
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
            while let Some(message) = self.1.recv().await {
                if actor.send(message).await.is_err() {
                    tracing::debug!(pipe = self.0, "actor stopped, pipe closed");
                    return;
                }
            }
        };
        tokio::spawn(task);
    }
}

impl<M> Feeder<M> {
    /// Queues `message`, waiting while the pipe is full. A closed pipe means that the node stops.
    pub async fn put(&self, message: M) {
        if self.queue.send(message).await.is_err() {
            tracing::debug!(pipe = self.name, "message left over at stop");
        }
    }

    /// Queues `message` from a handler, where nothing may wait. The pipe's capacity is above what
    /// the protocol can have in flight, so a full one is a broken invariant and stops the node.
    pub fn put_now(&self, message: M) {
        match self.queue.try_send(message) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => {
                tracing::debug!(pipe = self.name, "message left over at stop");
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.fatal.stop(anyhow::anyhow!("pipe {} overflowed its bound", self.name));
            }
        }
    }

    /// Queues `message` if there is room; gives it back if not.
    pub fn try_put(&self, message: M) -> Result<(), M> {
        self.queue.try_send(message).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(message) | mpsc::error::TrySendError::Closed(message) => message,
        })
    }
}
