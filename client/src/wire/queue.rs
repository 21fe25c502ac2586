use serde::{Deserialize, Serialize};

use super::error::is_zero;

/// Longest queue name, in bytes, after lower-casing.
pub const QUEUE_NAME_BYTES_MAX: usize = 128;

/// Most messages that one dequeue answers with, and most that a subscription leases ahead.
pub const PAGE_SIZE_MAX: i64 = 64;

/// Media type of a payload when the producer names none.
pub const DEFAULT_PAYLOAD_TYPE: &str = "application/octet-stream";

/// Failed attempts before a message is dead, when the producer names no number.
pub const DEFAULT_MAX_ATTEMPTS: i64 = 5;

/// Visibility timeout stored with a message when the producer names none, in seconds.
pub const DEFAULT_VISIBILITY_SECONDS: i64 = 30;

/// Part `meta` of `POST /v1/queue/enqueue`. The one request that is lenient: unknown fields are skipped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EnqueueRequest {
    /// Namespace; empty or `null` means the server's default.
    #[serde(deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Queue; empty means the one named in the query.
    pub queue: String,
    /// Seconds until the message can be delivered; 0 and less mean at once.
    pub delay_seconds: i64,
    /// Stored with the message and echoed; a dequeue brings its own. 0 and less mean 30 s.
    pub visibility_timeout_seconds: i64,
    /// Seconds until the message expires undelivered; 0 and less mean never.
    pub ttl_seconds: i64,
    /// Failed attempts before the message is dead; 0 and less mean 5.
    pub max_attempts: i64,
    /// Anything that shall come back with every delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes: Option<serde_json::Map<String, serde_json::Value>>,
    /// Media type of the payload; empty means `application/octet-stream`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub payload_content_type: String,
}

/// Answer to enqueue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EnqueueResponse {
    /// Namespace in its one form.
    pub namespace: String,
    /// Queue in its one form.
    pub queue: String,
    /// Id of the new message: a UUID of version 7, lower case.
    pub message_id: String,
    /// Deliveries so far: 0.
    pub attempts: i64,
    /// Failed attempts before the message is dead.
    pub max_attempts: i64,
    /// Failed attempts so far, left out while 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub failure_attempts: i64,
    /// The message can be delivered from this second on (Unix time).
    pub not_visible_until_unix: i64,
    /// Visibility timeout as stored, in seconds.
    pub visibility_timeout_seconds: i64,
    /// Length of the payload in bytes.
    pub payload_bytes: i64,
    /// Correlation id that every later answer about this message shows.
    pub correlation_id: String,
}

/// Body of `POST /v1/queue/dequeue`, `dequeueWithState`, `subscribe` and `subscribeWithState`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DequeueRequest {
    /// Namespace; empty means the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Queue.
    pub queue: String,
    /// Who asks. Free text, never empty.
    pub owner: String,
    /// Transaction to take part in (an xid); empty means that the server mints one per message.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub txn_id: String,
    /// Life of the lease in seconds; 0 and less mean the server's default (30 s), more than its maximum is cut to it.
    pub visibility_timeout_seconds: i64,
    /// How long to wait for a message, in seconds: -1 not at all, 0 without limit.
    pub wait_seconds: i64,
    /// Most messages in one answer (1 to 64), or how many a subscription leases ahead; 0 and less mean 1.
    pub page_size: i64,
    /// Accepted and without effect.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub start_after: String,
}

/// Part `meta` of a delivery.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Delivery {
    /// The message and its lease.
    pub message: DeliveredMessage,
    /// In the schema, never sent by servers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub next_cursor: String,
}

/// A message as delivered, with the lease that its consumer holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeliveredMessage {
    /// Namespace in its one form.
    pub namespace: String,
    /// Queue in its one form.
    pub queue: String,
    /// Id of the message.
    pub message_id: String,
    /// Deliveries so far, this one included: the first is 1.
    pub attempts: i64,
    /// Failed attempts before the message is dead.
    pub max_attempts: i64,
    /// Failed attempts so far, left out while 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub failure_attempts: i64,
    /// Nobody else gets the message before this second (Unix time).
    pub not_visible_until_unix: i64,
    /// Life of the lease as it was granted, in seconds.
    pub visibility_timeout_seconds: i64,
    /// What the producer sent along.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes: Option<serde_json::Map<String, serde_json::Value>>,
    /// Media type of the payload.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub payload_content_type: String,
    /// Length of the payload in bytes.
    pub payload_bytes: i64,
    /// Correlation id of the enqueue.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub correlation_id: String,
    /// Lease of the message.
    pub lease_id: String,
    /// The lease is over when the clock shows this second (Unix time).
    pub lease_expires_at_unix: i64,
    /// Fencing token: 1 at the first delivery of a message, one more at each further one.
    pub fencing_token: i64,
    /// Transaction of the lease, given or minted.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub txn_id: String,
    /// Marks this revision of the message; nack and extend must name it.
    pub meta_etag: String,
    /// Etag of the marker of the message's state; only from the calls with state, like the four below.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state_etag: String,
    /// Lease of the state key `q/<queue>/state/<message id>`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state_lease_id: String,
    /// End of that lease (Unix time, seconds).
    #[serde(skip_serializing_if = "is_zero")]
    pub state_lease_expires_at_unix: i64,
    /// Fencing token of that lease.
    #[serde(skip_serializing_if = "is_zero")]
    pub state_fencing_token: i64,
    /// Transaction of that lease: the same as `txn_id`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state_txn_id: String,
}

/// Body of `POST /v1/queue/ack`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AckRequest {
    /// Namespace; empty means the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Queue.
    pub queue: String,
    /// Message.
    pub message_id: String,
    /// Lease under which it was delivered.
    pub lease_id: String,
    /// Transaction of that lease; empty means that of the message.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub txn_id: String,
    /// Token of that lease.
    pub fencing_token: i64,
    /// Revision of the message as last seen. A live lease beats a stale one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub meta_etag: String,
    /// Etag of the marker of the message's state.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state_etag: String,
    /// Lease of the message's state. Given: the state ends with the message.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state_lease_id: String,
    /// Token of that lease.
    #[serde(skip_serializing_if = "is_zero")]
    pub state_fencing_token: i64,
}

/// Answer to ack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AckResponse {
    /// Always true.
    pub acked: bool,
    /// Correlation id of the message.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub correlation_id: String,
}

/// Body of `POST /v1/queue/nack`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NackRequest {
    /// Namespace; empty means the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Queue.
    pub queue: String,
    /// Message.
    pub message_id: String,
    /// Lease under which it was delivered.
    pub lease_id: String,
    /// Transaction of that lease; empty means that of the message.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub txn_id: String,
    /// Token of that lease.
    pub fencing_token: i64,
    /// Revision of the message as last seen; required and strict.
    pub meta_etag: String,
    /// Accepted and without effect.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state_etag: String,
    /// Seconds until the message can be delivered again; 0 and less mean at once.
    #[serde(skip_serializing_if = "is_zero")]
    pub delay_seconds: i64,
    /// `failure` (or empty): counts as a failed attempt. `defer`: does not. Case and surrounding space do not matter.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub intent: String,
    /// What went wrong, any JSON; not with `defer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<serde_json::Value>,
    /// Lease of the message's state. Given: it ends too, and what it staged is committed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state_lease_id: String,
    /// Token of that lease.
    #[serde(skip_serializing_if = "is_zero")]
    pub state_fencing_token: i64,
}

/// Answer to nack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NackResponse {
    /// Always true, also when the message is dead now.
    pub requeued: bool,
    /// The new revision of the message.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub meta_etag: String,
    /// Correlation id of the message.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub correlation_id: String,
}

/// Body of `POST /v1/queue/extend`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExtendRequest {
    /// Namespace; empty means the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Queue.
    pub queue: String,
    /// Message.
    pub message_id: String,
    /// Lease under which it was delivered.
    pub lease_id: String,
    /// Transaction of that lease; empty means that of the message.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub txn_id: String,
    /// Token of that lease.
    pub fencing_token: i64,
    /// Revision of the message as last seen; required and strict.
    pub meta_etag: String,
    /// New life in seconds, counted from now; 0 and less mean the visibility timeout of the delivery.
    pub extend_by_seconds: i64,
    /// Lease of the message's state, which is prolonged along.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state_lease_id: String,
    /// Token of that lease.
    #[serde(skip_serializing_if = "is_zero")]
    pub state_fencing_token: i64,
}

/// Answer to extend.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExtendResponse {
    /// The lease is over when the clock shows this second (Unix time).
    pub lease_expires_at_unix: i64,
    /// Life of the lease as set by this call, in seconds.
    pub visibility_timeout_seconds: i64,
    /// The new revision of the message.
    pub meta_etag: String,
    /// End of the state lease (Unix time, seconds), when it was prolonged too.
    #[serde(skip_serializing_if = "is_zero")]
    pub state_lease_expires_at_unix: i64,
    /// Correlation id of the message.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub correlation_id: String,
}

/// Body of `POST /v1/queue/stats` and `POST /v1/queue/watch`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueRequest {
    /// Namespace; empty means the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Queue.
    pub queue: String,
}

/// Answer to stats.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueStatsResponse {
    /// Namespace in its one form.
    pub namespace: String,
    /// Queue in its one form.
    pub queue: String,
    /// Consumers that wait for this queue at this server.
    pub waiting_consumers: i64,
    /// Messages that this server knows to be ready and has not handed out.
    pub pending_candidates: i64,
    /// Consumers at this server, over all queues.
    pub total_consumers: i64,
    /// A change feed is running for this queue.
    pub has_active_watcher: bool,
    /// There is a message that could be delivered now.
    pub available: bool,
    /// The message that would be delivered next.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub head_message_id: String,
    /// When it was enqueued (Unix time, seconds).
    #[serde(skip_serializing_if = "is_zero")]
    pub head_enqueued_at_unix: i64,
    /// Since when it can be delivered (Unix time, seconds).
    #[serde(skip_serializing_if = "is_zero")]
    pub head_not_visible_until_unix: i64,
    /// How long ago it was enqueued, in seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub head_age_seconds: i64,
    /// Correlation id of this call.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub correlation_id: String,
}

/// Data of an event of `POST /v1/queue/watch`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueWatchEvent {
    /// Namespace in its one form.
    pub namespace: String,
    /// Queue in its one form.
    pub queue: String,
    /// There is a message that could be delivered now.
    pub available: bool,
    /// The message that would be delivered next.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub head_message_id: String,
    /// When the server saw the change (Unix time, seconds).
    pub changed_at_unix: i64,
    /// Correlation id of the watch call.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub correlation_id: String,
}

/// Brings a queue name into its one form: trimmed and lower case, 1 to 128 characters of `a-z 0-9 . _ -`; `None` for
/// anything else.
pub fn normalize_queue(name: &str) -> Option<String> {
    let name = name.trim().to_ascii_lowercase();
    let legal = name.bytes().all(super::is_name_byte);
    (!name.is_empty() && name.len() <= QUEUE_NAME_BYTES_MAX && legal).then_some(name)
}

fn null_as_empty<'de, D: serde::Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(input)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enqueue_takes_a_null_namespace_and_skips_what_it_does_not_know() {
        let request: EnqueueRequest = serde_json::from_str(r#"{"namespace":null,"queue":"q","colour":7}"#).unwrap();
        assert_eq!((request.namespace.as_str(), request.queue.as_str()), ("", "q"));
    }

    #[test]
    fn every_other_request_refuses_what_it_does_not_know() {
        assert!(serde_json::from_str::<DequeueRequest>(r#"{"colour":7}"#).is_err());
        assert!(serde_json::from_str::<AckRequest>(r#"{"colour":7}"#).is_err());
        assert!(serde_json::from_str::<NackRequest>(r#"{"colour":7}"#).is_err());
        assert!(serde_json::from_str::<ExtendRequest>(r#"{"colour":7}"#).is_err());
        assert!(serde_json::from_str::<QueueRequest>(r#"{"colour":7}"#).is_err());
    }

    #[test]
    fn queue_names_have_one_form() {
        assert_eq!(normalize_queue(" Orders ").as_deref(), Some("orders"));
        assert_eq!(normalize_queue(&"q".repeat(128)).map(|name| name.len()), Some(128));
        for bad in ["", " ", "a/b", "a b", &"q".repeat(129)] {
            assert_eq!(normalize_queue(bad), None, "{bad:?}");
        }
    }
}
