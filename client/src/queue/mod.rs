//! Queues: putting messages in, getting them out, and what can be done with a message that one has.
//!
//! A delivery is a lease on a message. Its holder acknowledges it ([`MessageHandle::ack`]: done, gone), gives it back
//! ([`MessageHandle::nack`]: an attempt that failed; [`MessageHandle::defer`]: not now), or prolongs it. A [`Message`] that is
//! dropped without any of this is given back as a failure, so a handler that returns early or panics delays nobody. A message
//! can be delivered more than once, to a consumer that is slow or cut off: handlers must be idempotent.
//!
//! One message at a time ([`Client::dequeue`]), several ([`Client::dequeue_batch`]), a stream under one handler
//! ([`Client::subscribe`]), or workers that are restarted when they fail ([`Client::run_consumers`]).

mod batch;
mod consumer;
mod delivery;
mod enqueue;
mod extender;
mod message;
mod multipart;
mod rest;
mod restart;
mod settle;
mod sidecar;
mod stats;
mod subscribe;
mod watch;

pub use batch::Dequeue;
pub use consumer::{Consumer, ConsumerFailure, RunningConsumers};
pub use enqueue::{Enqueue, Payload};
pub use message::{Message, MessageHandle, MessageRef, PayloadReader};
pub use restart::RestartPolicy;
pub use sidecar::MessageState;
pub use watch::QueueWatch;

use crate::error::Error;
use crate::wire::normalize_queue;

/// A queue name that is not blank, in its one form when it has one; the server refuses the others.
fn required_queue(name: &str) -> Result<String, Error> {
    let name = name.trim();
    if name.is_empty() {
        return Err(Error::invalid("queue is required"));
    }
    Ok(normalize_queue(name).unwrap_or_else(|| name.to_owned()))
}
