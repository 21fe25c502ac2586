//! What a durable write of this server has to tell whoever waits for it: a lease that is over, a message that can be
//! delivered, a message that is gone.
//!
//! Leases, queues and transactions tell; the dispatcher listens. They know this module and not each other for it. What
//! other servers of the store write is heard by the store's feed or found by a look, never here.

use crate::keys::{MessageId, QueueId};
use crate::store::RecordKey;

/// Hears of every durable write after which somebody may have to wait no longer. Must be quick: it runs inside the call
/// that wrote.
pub trait Listener: Send + Sync {
    /// The lease on this key's record is over, or will end sooner than it seemed.
    fn lease_ended(&self, key: &RecordKey);

    /// The message can be delivered from this time on (milliseconds of Unix time), which may be past. For a message that
    /// was just leased this is when its lease lapses.
    fn visible(&self, queue: &QueueId, id: MessageId, visible_from_ms: i64);

    /// The message will not be delivered again.
    fn gone(&self, queue: &QueueId, id: MessageId);
}

/// For whoever has nobody who waits.
#[derive(Debug, Clone, Copy)]
pub struct NobodyListens;

impl Listener for NobodyListens {
    fn lease_ended(&self, _: &RecordKey) {}

    fn visible(&self, _: &QueueId, _: MessageId, _: i64) {}

    fn gone(&self, _: &QueueId, _: MessageId) {}
}

/// What a write has to tell of a message, until it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// See [`Listener::visible`].
    Visible {
        /// Queue.
        queue: QueueId,
        /// Message.
        id: MessageId,
        /// From when on.
        from_ms: i64,
    },
    /// See [`Listener::gone`].
    Gone {
        /// Queue.
        queue: QueueId,
        /// Message.
        id: MessageId,
    },
}

impl News {
    pub(crate) fn tell(&self, listener: &dyn Listener) {
        match self {
            Self::Visible { queue, id, from_ms } => listener.visible(queue, *id, *from_ms),
            Self::Gone { queue, id } => listener.gone(queue, *id),
        }
    }
}
