//! The rules of leases: pure functions from a record, a request and the time to a new record or a refusal.
//!
//! No I/O, no clock, no threads. Whoever calls them reads the record, writes the new one on condition that nothing has
//! changed since, and starts again when it has.
//!
//! * At most one lease lives on a key; acquire is not re-entrant.
//! * Every grant raises the fencing token by exactly one. The token survives release, removal and expiry.
//! * A lease until second N is dead at second N.
//! * What a lease stages belongs to its transaction and becomes visible by release alone.

use std::sync::Arc;

use crate::ids::Xid;
use crate::record::{Attributes, KeyRecord, LeaseRecord, Staged, StagedState, StateValue};

/// Why a call on a key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The key has no such lease: never held, released, taken over, or the id is another.
    LeaseRequired,
    /// The lease id matches, but its time is over. The refusal clears it.
    LeaseExpired,
    /// The lease lives, but the token is not its.
    FencingMismatch,
    /// The call must name its transaction and does not.
    MissingTxn,
    /// The call names another transaction.
    TxnMismatch,
    /// Somebody else holds the key until this second (Unix time).
    Held {
        /// End of the holder's lease.
        until_unix: i64,
    },
    /// A create-only acquire met an existing record.
    AlreadyExists,
    /// The expected version is not the effective one.
    VersionConflict,
    /// The expected etag is not the effective one.
    EtagMismatch,
    /// The transaction lost a participant and had to be rolled back.
    TxnConflict,
}

/// A refusal, with what its caller may want to know, and what must be written because of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// The version to report: effective for conflicts, committed otherwise.
    pub version: i64,
    /// The etag to report, likewise.
    pub etag: Option<Arc<str>>,
    /// The record as it must be written now: an expired lease that somebody met is cleared.
    pub cleared: Option<Box<KeyRecord>>,
}

/// The proof that a caller holds a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Lease id as the caller sent it.
    pub lease_id: String,
    /// Fencing token.
    pub fencing_token: i64,
    /// Transaction id, if the caller sent one.
    pub txn_id: Option<String>,
}

/// What a caller expects of the state it is about to change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// The effective version.
    pub version: Option<i64>,
    /// The effective etag, without quotes.
    pub etag: Option<String>,
}

/// A lease about to be granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Its id.
    pub lease_id: Xid,
    /// Its transaction.
    pub txn_id: Xid,
    /// The caller named the transaction.
    pub explicit: bool,
    /// Who asks.
    pub owner: String,
    /// Life in seconds, within the server's bounds.
    pub ttl_seconds: i64,
    /// Only if the key has no record yet.
    pub create_only: bool,
}

/// A moment in both resolutions that records use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of Unix time.
    pub ms: i64,
}

impl Now {
    /// Whole seconds of Unix time, rounded down.
    pub fn unix(self) -> i64 {
        self.ms.div_euclid(1000)
    }

    /// When a lease of so many seconds ends: `floor(now + ttl)`.
    pub fn plus_ttl(self, ttl_seconds: i64) -> i64 {
        self.unix().saturating_add(ttl_seconds)
    }
}

/// Bounds a wanted time to live: 0 and less mean the default, too much means the maximum.
pub fn clamp_ttl(wanted_seconds: i64, default_seconds: i64, max_seconds: i64) -> i64 {
    if wanted_seconds <= 0 {
        default_seconds.min(max_seconds)
    } else {
        wanted_seconds.min(max_seconds)
    }
}

/// Grants a lease, unless one lives. Whatever an expired lease had staged is dropped.
pub fn acquire(record: Option<&KeyRecord>, grant: &Grant, now: Now) -> Result<KeyRecord, Refused> {
    if let Some(record) = record {
        if grant.create_only {
            return Err(refused(record, Reason::AlreadyExists));
        }
        if let Some(lease) = record.living_lease(now.unix()) {
            return Err(refused(
                record,
                Reason::Held {
                    until_unix: lease.expires_at_unix,
                },
            ));
        }
    }
    let mut granted = record.cloned().unwrap_or_default();
    granted.staged = None;
    granted.fencing_token += 1;
    granted.updated_at_ms = now.ms;
    granted.lease = Some(LeaseRecord {
        id: grant.lease_id.clone(),
        owner: grant.owner.clone(),
        txn_id: grant.txn_id.clone(),
        explicit: grant.explicit,
        expires_at_unix: now.plus_ttl(grant.ttl_seconds),
        epoch: 0,
    });
    Ok(granted)
}

/// Checks the lease alone, as a read does: id, life, token.
pub fn check_lease(record: &KeyRecord, credentials: &Credentials, now: Now) -> Result<(), Refused> {
    let lease = match &record.lease {
        Some(lease) if lease.id.as_str() == credentials.lease_id => lease,
        _ => return Err(refused(record, Reason::LeaseRequired)),
    };
    if !lease.is_alive(now.unix()) {
        let mut refusal = refused(record, Reason::LeaseExpired);
        refusal.cleared = Some(Box::new(cleared(record, now)));
        return Err(refusal);
    }
    if record.fencing_token != credentials.fencing_token {
        return Err(refused(record, Reason::FencingMismatch));
    }
    Ok(())
}

/// Checks lease and transaction, as every change does.
pub fn check_holder(record: &KeyRecord, credentials: &Credentials, now: Now) -> Result<(), Refused> {
    check_lease(record, credentials, now)?;
    let lease_txn = record.lease.as_ref().map(|lease| lease.txn_id.as_str());
    match credentials.txn_id.as_deref() {
        None => Err(refused(record, Reason::MissingTxn)),
        given if given == lease_txn => Ok(()),
        Some(_) => Err(refused(record, Reason::TxnMismatch)),
    }
}

/// Sets the end of a lease anew. A shorter life is honoured too.
pub fn keepalive(
    record: &KeyRecord,
    credentials: &Credentials,
    ttl_seconds: i64,
    now: Now,
) -> Result<KeyRecord, Refused> {
    check_holder(record, credentials, now)?;
    let mut renewed = record.clone();
    if let Some(lease) = &mut renewed.lease {
        lease.expires_at_unix = now.plus_ttl(ttl_seconds);
    }
    renewed.updated_at_ms = now.ms;
    Ok(renewed)
}

/// Stages a new state, in place of whatever state or removal was staged before. Attributes stay and are laid over.
pub fn stage_state(
    record: &KeyRecord,
    credentials: &Credentials,
    expected: &Expected,
    value: StateValue,
    attributes: Attributes,
    now: Now,
) -> Result<KeyRecord, Refused> {
    check_holder(record, credentials, now)?;
    check_version(record, expected)?;
    check_etag(record, expected)?;
    let mut staged = staging(record);
    staged.state = StagedState::Put(value);
    staged.attributes = staged.attributes.overlaid(attributes);
    Ok(with_staged(record, staged, now))
}

/// Stages attributes.
pub fn stage_attributes(
    record: &KeyRecord,
    credentials: &Credentials,
    expected: &Expected,
    attributes: Attributes,
    now: Now,
) -> Result<KeyRecord, Refused> {
    check_holder(record, credentials, now)?;
    check_version(record, expected)?;
    let mut staged = staging(record);
    staged.attributes = staged.attributes.overlaid(attributes);
    Ok(with_staged(record, staged, now))
}

/// Stages the removal of the state, or answers `None` when there is none to remove.
///
/// The etag is checked before the version, unlike in an update: clients that send both rely on it.
pub fn stage_removal(
    record: &KeyRecord,
    credentials: &Credentials,
    expected: &Expected,
    now: Now,
) -> Result<Option<KeyRecord>, Refused> {
    check_holder(record, credentials, now)?;
    check_etag(record, expected)?;
    check_version(record, expected)?;
    let state_is_staged = matches!(
        record.staged,
        Some(Staged {
            state: StagedState::Put(_),
            ..
        })
    );
    if record.state.is_none() && !state_is_staged {
        return Ok(None);
    }
    let staged = Staged {
        version: record.effective_version().max(record.version) + 1,
        state: StagedState::Remove,
        attributes: Attributes::default(),
    };
    Ok(Some(with_staged(record, staged, now)))
}

/// What a release finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReleaseCase {
    /// Nothing of the caller's is there (any more). The answer is still "released".
    NothingHeld,
    /// A lease is recorded but its time is over: staging is dropped and the lease cleared.
    Expired(Box<KeyRecord>),
    /// The caller holds the lease.
    Held,
}

/// Looks at what a release is to end. Only a wrong transaction on a living lease is refused.
pub fn release_case(record: &KeyRecord, credentials: &Credentials, now: Now) -> Result<ReleaseCase, Refused> {
    let Some(lease) = &record.lease else {
        return Ok(ReleaseCase::NothingHeld);
    };
    if !lease.is_alive(now.unix()) {
        return Ok(ReleaseCase::Expired(Box::new(cleared(record, now))));
    }
    if lease.id.as_str() != credentials.lease_id || record.fencing_token != credentials.fencing_token {
        return Ok(ReleaseCase::NothingHeld);
    }
    if credentials.txn_id.as_deref() != Some(lease.txn_id.as_str()) {
        return Err(refused(record, Reason::TxnMismatch));
    }
    Ok(ReleaseCase::Held)
}

/// The record after its lease has ended and what it staged has become the truth.
pub fn committed(record: &KeyRecord, now: Now) -> KeyRecord {
    let mut done = record.clone();
    if let Some(staged) = done.staged.take() {
        // A commit of attributes alone leaves the version, although the answers announced one more: existing clients of
        // this protocol expect it so.
        match staged.state {
            StagedState::Put(value) => (done.version, done.state) = (staged.version, Some(value)),
            StagedState::Remove => (done.version, done.state) = (staged.version, None),
            StagedState::Untouched => {}
        }
        done.attributes = done.attributes.overlaid(staged.attributes);
    }
    done.lease = None;
    done.updated_at_ms = now.ms;
    done
}

/// The record after its lease has ended and what it staged was dropped.
pub fn cleared(record: &KeyRecord, now: Now) -> KeyRecord {
    KeyRecord {
        lease: None,
        staged: None,
        updated_at_ms: now.ms,
        ..record.clone()
    }
}

/// A refusal that reports the committed version and etag.
pub fn refused(record: &KeyRecord, reason: Reason) -> Refused {
    Refused {
        reason,
        version: record.version,
        etag: record.committed_etag().cloned(),
        cleared: None,
    }
}

/// The refusal for a key without a record.
pub fn no_record() -> Refused {
    Refused {
        reason: Reason::LeaseRequired,
        version: 0,
        etag: None,
        cleared: None,
    }
}

fn check_version(record: &KeyRecord, expected: &Expected) -> Result<(), Refused> {
    let Some(version) = expected.version else { return Ok(()) };
    // Staged attributes raise the effective version without every client noticing, so the committed version passes as
    // well, until a state or a removal is staged: then it is a stale writer's.
    let state_untouched = record
        .staged
        .as_ref()
        .is_none_or(|staged| staged.state == StagedState::Untouched);
    if version == record.effective_version() || (state_untouched && version == record.version) {
        return Ok(());
    }
    Err(conflict(record, Reason::VersionConflict))
}

fn check_etag(record: &KeyRecord, expected: &Expected) -> Result<(), Refused> {
    let Some(etag) = expected.etag.as_deref() else {
        return Ok(());
    };
    if etag == precondition_etag(record).map_or("", |etag| etag) {
        return Ok(());
    }
    Err(conflict(record, Reason::EtagMismatch))
}

/// The etag that preconditions are compared with: the staged state's, else the committed one, also after a staged
/// removal.
fn precondition_etag(record: &KeyRecord) -> Option<&Arc<str>> {
    match record.staged.as_ref().map(|staged| &staged.state) {
        Some(StagedState::Put(value)) => Some(&value.etag),
        _ => record.committed_etag(),
    }
}

fn conflict(record: &KeyRecord, reason: Reason) -> Refused {
    Refused {
        reason,
        version: record.effective_version(),
        etag: precondition_etag(record).cloned(),
        cleared: None,
    }
}

/// What is staged so far; the first staging of a lease announces the next version.
fn staging(record: &KeyRecord) -> Staged {
    record.staged.clone().unwrap_or_else(|| Staged {
        version: record.version + 1,
        state: StagedState::Untouched,
        attributes: Attributes::default(),
    })
}

fn with_staged(record: &KeyRecord, staged: Staged, now: Now) -> KeyRecord {
    KeyRecord {
        staged: Some(staged),
        updated_at_ms: now.ms,
        ..record.clone()
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
