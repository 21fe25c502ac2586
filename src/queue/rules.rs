//! The life of a message: pure functions from a record, a request and the time to a new record or a refusal.
//!
//! ```text
//!                          enqueue
//!                 no delay /     \ delay
//!                         v       v
//!      +---------------> READY <-- DELAYED <----------------+
//!      |                  |   (time passes)                 |
//!      |                  | deliver: attempts +1, token +1  |
//!      |                  v                                 |
//!      |  +--extend--> LEASED --+-- nack (failure: failures +1; defer: not) --+--> DEAD
//!      |  +--------------+ |    +-- rollback, give back ----+   failures reach max_attempts
//!      |                   |    |
//!      +---- LAPSED <------+    +-- ack, commit --> gone
//!             (the lease's time is over; nothing is counted)
//!
//!      READY, DELAYED, LAPSED --(its own time is over)--> gone
//! ```
//!
//! * At most one lease lives on a message. A lease until millisecond N is over at N, and the message is visible again
//!   from N on: both are the same number in the record.
//! * Every delivery raises the fencing token and the count of attempts by one. Nothing lowers either.
//! * Only a nack that says so counts as a failure. A message that was lost with its consumer is delivered again for ever.
//! * Every change raises the revision, which clients know as `meta_etag`.
//! * A message is never delivered once its failures have reached the maximum or its time is over; a living lease is
//!   allowed to finish, whatever the time of the message.
//! * Times are milliseconds, and nothing ends early: a delay of n seconds lasts n times 1000.

use std::sync::Arc;

use lockd_client::wire::{DEFAULT_MAX_ATTEMPTS, DEFAULT_PAYLOAD_TYPE, DEFAULT_VISIBILITY_SECONDS};

use crate::lease::rules::Now;
use crate::record::{MessageLease, MessagePayload, MessageRecord, StateGrant};

/// What a producer asks for. Numbers that are 0 or less mean their default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewMessage {
    /// Hidden for so many seconds.
    pub delay_seconds: i64,
    /// Visibility timeout that is stored and echoed.
    pub visibility_seconds: i64,
    /// Expires after so many seconds.
    pub ttl_seconds: i64,
    /// So many failed deliveries make it dead.
    pub max_attempts: i64,
    /// The text of a JSON object.
    pub attributes: Option<Arc<str>>,
    /// Media type of the payload; empty means bytes.
    pub payload_type: Arc<str>,
    /// Correlation id.
    pub correlation_id: Arc<str>,
}

/// A lease about to be granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageGrant {
    /// The lease, with its state lease if there is one.
    pub lease: MessageLease,
    /// Its life in seconds.
    pub visibility_seconds: i64,
}

/// The proof that a caller holds the lease of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    /// Lease id as the caller sent it.
    pub lease_id: String,
    /// Fencing token.
    pub fencing_token: i64,
    /// Transaction, if the caller named one.
    pub txn_id: Option<String>,
    /// The revision that the caller knows.
    pub meta_etag: Option<String>,
    /// The lease of the state, if the caller named it.
    pub state: Option<StateHolder>,
    /// The mark of the state, if the caller named it. Looked at by ack alone.
    pub state_etag: Option<String>,
}

/// The proof that a caller holds the lease of a message's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateHolder {
    /// Lease id as the caller sent it.
    pub lease_id: String,
    /// Token, if the caller named it.
    pub fencing_token: Option<i64>,
}

/// Why a message is given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// Counts as a failure or not.
    pub intent: Intent,
    /// Hidden for so many seconds; 0 and less mean not at all.
    pub delay_seconds: i64,
    /// What went wrong: the text of a JSON value. Nothing is kept of a deferral.
    pub last_error: Option<Arc<str>>,
}

/// What a nack means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// The consumer tried and failed.
    Failure,
    /// The consumer did not try.
    Defer,
}

/// What can be done with a message at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It can be delivered.
    Ready,
    /// It is delayed or leased.
    Hidden {
        /// Until when, in milliseconds of Unix time.
        until_ms: i64,
    },
    /// Its time is over: it has to be removed.
    Expired,
    /// It has failed too often: it has to be put aside.
    Dead,
}

/// Why a call on a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such message (any more): never enqueued, acknowledged, expired or dead.
    Gone,
    /// The message is leased, but not by this lease, token or transaction.
    LeaseMismatch,
    /// The message, or its state, is not leased by the caller.
    LeaseRequired,
    /// The lease is the caller's, but its time is over.
    LeaseExpired,
    /// The lease of the state is the caller's, but the token is not.
    StateFencingMismatch,
    /// The caller does not know the latest revision.
    StaleEtag,
    /// The transaction lost a participant and had to be rolled back; the message is visible again.
    TxnConflict,
}

/// A new message.
pub fn enqueued(new: NewMessage, payload: MessagePayload, now: Now) -> MessageRecord {
    let or_default = |wanted: i64, default: i64| if wanted <= 0 { default } else { wanted };
    MessageRecord {
        enqueued_at_ms: now.ms,
        updated_at_ms: now.ms,
        revision: 1,
        visible_from_ms: later(now, new.delay_seconds),
        expires_at_ms: (0 < new.ttl_seconds).then(|| later(now, new.ttl_seconds)),
        visibility_seconds: or_default(new.visibility_seconds, DEFAULT_VISIBILITY_SECONDS),
        attempts: 0,
        failure_attempts: 0,
        max_attempts: or_default(new.max_attempts, DEFAULT_MAX_ATTEMPTS),
        fencing_token: 0,
        lease: None,
        state_etag: None,
        attributes: new.attributes,
        last_error: None,
        payload,
        payload_type: if new.payload_type.is_empty() {
            DEFAULT_PAYLOAD_TYPE.into()
        } else {
            new.payload_type
        },
        correlation_id: new.correlation_id,
    }
}

/// Looks at a message.
pub fn standing(record: &MessageRecord, now: Now) -> Standing {
    if record.living_lease(now.ms).is_some() {
        return Standing::Hidden {
            until_ms: record.visible_from_ms,
        };
    }
    if record
        .expires_at_ms
        .is_some_and(|expires_at_ms| expires_at_ms <= now.ms)
    {
        return Standing::Expired;
    }
    if record.max_attempts <= record.failure_attempts {
        return Standing::Dead;
    }
    if now.ms < record.visible_from_ms {
        return Standing::Hidden {
            until_ms: record.visible_from_ms,
        };
    }
    Standing::Ready
}

/// When a lease of so many seconds ends.
pub fn lease_end(visibility_seconds: i64, now: Now) -> i64 {
    later(now, visibility_seconds)
}

/// The record of a message that is ready after it was leased. Whoever calls this has looked at its standing.
pub fn delivered(record: &MessageRecord, grant: MessageGrant, now: Now) -> MessageRecord {
    // The first grant of a state marks it, and no other message ever has the same lease.
    let first_mark = || (grant.lease.state.as_ref()).map(|state| state.lease_id.as_str().into());
    MessageRecord {
        state_etag: record.state_etag.clone().or_else(first_mark),
        visible_from_ms: lease_end(grant.visibility_seconds, now),
        visibility_seconds: grant.visibility_seconds,
        attempts: record.attempts.saturating_add(1),
        fencing_token: record.fencing_token.saturating_add(1),
        last_error: None,
        lease: Some(grant.lease),
        ..changed(record, now)
    }
}

/// Checks whether the caller may acknowledge the message. A stale revision does not matter while the lease lives: a
/// consumer may renew it on one thread and finish on another.
pub fn ack(record: &MessageRecord, by: &Holder, now: Now) -> Result<(), Refusal> {
    check_lease(record, by, now)?;
    let mark = record.state_etag.as_deref();
    if by.state_etag.as_deref().is_some_and(|known| Some(known) != mark) {
        return Err(Refusal::StaleEtag);
    }
    Ok(())
}

/// The record after the consumer has given the message back.
pub fn nack(record: &MessageRecord, by: &Holder, nack: &Nack, now: Now) -> Result<MessageRecord, Refusal> {
    check_lease(record, by, now)?;
    check_revision(record, by)?;
    Ok(nacked(record, nack, now))
}

/// The same without the checks, for a message whose transaction was rolled back because of it.
pub fn nacked(record: &MessageRecord, nack: &Nack, now: Now) -> MessageRecord {
    let (failures, last_error) = match nack.intent {
        Intent::Failure => (1, nack.last_error.clone()),
        Intent::Defer => (0, None),
    };
    MessageRecord {
        visible_from_ms: later(now, nack.delay_seconds),
        failure_attempts: record.failure_attempts.saturating_add(failures),
        last_error,
        lease: None,
        ..changed(record, now)
    }
}

/// The record after its lease was prolonged: it ends so many seconds from now, be that sooner or later than before.
pub fn extend(record: &MessageRecord, by: &Holder, seconds: i64, now: Now) -> Result<MessageRecord, Refusal> {
    if record.lease.is_none() {
        return Err(Refusal::LeaseRequired);
    }
    check_lease(record, by, now)?;
    check_revision(record, by)?;
    let seconds = if seconds <= 0 {
        record.visibility_seconds
    } else {
        seconds
    };
    Ok(MessageRecord {
        visible_from_ms: later(now, seconds),
        visibility_seconds: seconds,
        ..changed(record, now)
    })
}

/// The record after its transaction was rolled back: visible at once, no failure counted.
pub fn rolled_back(record: &MessageRecord, now: Now) -> MessageRecord {
    MessageRecord {
        last_error: Some(r#"{"reason":"txn_rollback"}"#.into()),
        ..given_back(record, now)
    }
}

/// The record after a delivery that certainly did not reach its consumer: visible at once. The attempt stays counted.
pub fn given_back(record: &MessageRecord, now: Now) -> MessageRecord {
    MessageRecord {
        visible_from_ms: now.ms,
        lease: None,
        ..changed(record, now)
    }
}

/// The record of a dead message as it is put aside. `reason` is the text of a JSON object with what must be said of it;
/// what its last consumer said is kept beside it.
pub fn dead(record: &MessageRecord, time_rfc3339: &str, now: Now) -> MessageRecord {
    let last_error = match &record.last_error {
        Some(last) => format!(r#","last_error":{last}"#),
        None => String::new(),
    };
    let reason = format!(r#"{{"reason":"max_attempts_exceeded","time_rfc3339":"{time_rfc3339}"{last_error}}}"#);
    MessageRecord {
        last_error: Some(reason.into()),
        lease: None,
        ..changed(record, now)
    }
}

/// Checks that the caller holds a living lease, and the state lease that it names.
fn check_lease(record: &MessageRecord, by: &Holder, now: Now) -> Result<(), Refusal> {
    let Some(lease) = &record.lease else {
        // Not leased at all, for instance since the caller's own nack. Who does not know that yet hears that it is stale.
        check_revision(record, by)?;
        return Err(Refusal::LeaseRequired);
    };
    let same_txn = by
        .txn_id
        .as_deref()
        .is_none_or(|txn_id| txn_id == lease.txn_id.as_str());
    if lease.id.as_str() != by.lease_id || record.fencing_token != by.fencing_token || !same_txn {
        return Err(Refusal::LeaseMismatch);
    }
    if record.visible_from_ms <= now.ms {
        return Err(Refusal::LeaseExpired);
    }
    match (&by.state, &lease.state) {
        (None, _) => Ok(()),
        (Some(named), Some(granted)) => check_state(named, granted),
        (Some(_), None) => Err(Refusal::LeaseRequired),
    }
}

fn check_state(named: &StateHolder, granted: &StateGrant) -> Result<(), Refusal> {
    if named.lease_id != granted.lease_id.as_str() {
        return Err(Refusal::LeaseRequired);
    }
    if named.fencing_token.is_some_and(|token| token != granted.fencing_token) {
        return Err(Refusal::StateFencingMismatch);
    }
    Ok(())
}

fn check_revision(record: &MessageRecord, by: &Holder) -> Result<(), Refusal> {
    match &by.meta_etag {
        Some(known) if *known != record.meta_etag() => Err(Refusal::StaleEtag),
        _ => Ok(()),
    }
}

/// The record as it goes into any change.
fn changed(record: &MessageRecord, now: Now) -> MessageRecord {
    MessageRecord {
        updated_at_ms: now.ms,
        revision: record.revision.saturating_add(1),
        ..record.clone()
    }
}

/// The time so many seconds from now; now if they are not positive.
fn later(now: Now, seconds: i64) -> i64 {
    now.ms.saturating_add(seconds.max(0).saturating_mul(1000))
}

/// The lease of a state ends with a whole second, and not before the lease of its message does.
pub fn state_lease_end_unix(message_lease_end_ms: i64) -> i64 {
    message_lease_end_ms
        .div_euclid(1000)
        .saturating_add(i64::from(message_lease_end_ms.rem_euclid(1000) != 0))
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
