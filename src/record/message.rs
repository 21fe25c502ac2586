//! What is kept of a message.

use std::sync::Arc;

use super::Body;
use crate::ids::{BodyId, Xid};

/// All that is kept of one message, from its enqueue to its end. Times are milliseconds of Unix time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageRecord {
    /// When it was enqueued.
    pub enqueued_at_ms: i64,
    /// When this record last changed.
    pub updated_at_ms: i64,
    /// Rises by one with every change of this record; see [`meta_etag`](MessageRecord::meta_etag).
    pub revision: u64,
    /// It can be delivered from this time on. While it is leased, this is the end of the lease.
    pub visible_from_ms: i64,
    /// It expires undelivered at this time.
    pub expires_at_ms: Option<i64>,
    /// The visibility timeout that applies: the producer's until the first delivery, then that of the latest delivery or
    /// extension. Seconds.
    pub visibility_seconds: i64,
    /// Deliveries so far.
    pub attempts: i64,
    /// Deliveries that the consumer said had failed.
    pub failure_attempts: i64,
    /// So many failed deliveries make it dead.
    pub max_attempts: i64,
    /// The token of the latest lease; 0 until the first.
    pub fencing_token: i64,
    /// The current lease. It may have lapsed already: nobody clears it before the next delivery.
    pub lease: Option<MessageLease>,
    /// The mark of the state that belongs to the message. There from the first delivery with state on.
    pub state_etag: Option<Arc<str>>,
    /// What the producer sent along: the text of a JSON object.
    pub attributes: Option<Arc<str>>,
    /// What the consumer of the latest failed delivery said: the text of a JSON value.
    pub last_error: Option<Arc<str>>,
    /// What it carries.
    pub payload: MessagePayload,
    /// Media type of the payload.
    pub payload_type: Arc<str>,
    /// The correlation id of the enqueue.
    pub correlation_id: Arc<str>,
}

/// What a message carries: any bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessagePayload {
    /// Length in bytes.
    pub bytes: u64,
    /// Where they are.
    pub body: Body,
}

/// The exclusive right to work on a message. It ends when the message is visible again.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MessageLease {
    /// Its id.
    pub id: Xid,
    /// Who holds it.
    pub owner: Arc<str>,
    /// Its transaction; a mere label unless `explicit`.
    pub txn_id: Xid,
    /// The consumer named the transaction: the message takes part in it, and there is a record of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub explicit: bool,
    /// The lease of the state that was granted along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateGrant>,
}

/// A lease of the state of a message, as the message remembers it. The lease itself is in the record of the state's key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StateGrant {
    /// Its id.
    pub lease_id: Xid,
    /// Its token.
    pub fencing_token: i64,
}

impl MessageRecord {
    /// Marks this revision of the record: opaque to clients, never the same for two revisions of a message.
    pub fn meta_etag(&self) -> String {
        self.revision.to_string()
    }

    /// The lease, if it lives. Equality is the end: a lease until N is over at N.
    pub fn living_lease(&self, now_ms: i64) -> Option<&MessageLease> {
        self.lease.as_ref().filter(|_| now_ms < self.visible_from_ms)
    }

    /// The body of the store that this record names.
    pub fn stored_body(&self) -> Option<&BodyId> {
        match &self.payload.body {
            Body::Stored(id) => Some(id),
            Body::Inline(_) => None,
        }
    }
}
