//! Leases over a store: acquire, keepalive, release.
//!
//! The rules are in [`rules`], the reading and writing in [`table`] and [`view`]; this file puts them together. It knows nothing of
//! HTTP and does not wait: an acquire that meets a held key is refused with the time until which it is held, and whoever
//! wants to wait parks the request with the dispatcher and tries again.

pub mod rules;
pub mod table;
pub mod view;

use std::sync::Arc;

use crate::error::Error;
use crate::ids::{IdMaker, Xid};
use crate::record::{Decision, KeyRecord};
use crate::txn::rules::{Leased, give_up, is_member_alive, leave};
use crate::txn::settle;
use rules::{Credentials, Grant, Reason, ReleaseCase, clamp_ttl};
use table::{KeyName, KeyTable, Step, View};

/// Bounds of a lease's life, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TtlLimits {
    /// Used when a request names none.
    pub default_seconds: i64,
    /// Longer wishes are cut to this.
    pub max_seconds: i64,
}

impl TtlLimits {
    fn clamp(self, wanted_seconds: i64) -> i64 {
        clamp_ttl(wanted_seconds, self.default_seconds, self.max_seconds)
    }
}

/// A wish for a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which key.
    pub name: KeyName,
    /// Who asks.
    pub owner: String,
    /// Wanted life in seconds; bounded by [`TtlLimits`].
    pub ttl_seconds: i64,
    /// Only if the key has no record yet.
    pub create_only: bool,
    /// Transaction to join.
    pub txn_id: Option<Xid>,
}

/// Grants, renews and ends leases.
pub struct Leases {
    table: Arc<KeyTable>,
    ids: Arc<IdMaker>,
    ttl: TtlLimits,
}

impl Leases {
    /// A service over this table.
    pub fn new(table: Arc<KeyTable>, ids: Arc<IdMaker>, ttl: TtlLimits) -> Self {
        Self { table, ids, ttl }
    }

    /// Tries once to get a lease. On success the record holds it, and its answer survives whatever the store survives.
    pub fn acquire(&self, wanted: &Wanted) -> Result<KeyRecord, Error> {
        let lease_id = self.ids.xid();
        let grant = Grant {
            lease_id,
            explicit: wanted.txn_id.is_some(),
            txn_id: wanted.txn_id.clone().unwrap_or_else(|| self.ids.xid()),
            owner: wanted.owner.clone(),
            ttl_seconds: self.ttl.clamp(wanted.ttl_seconds),
            create_only: wanted.create_only,
        };
        self.table.change(&wanted.name, &[], |view| {
            let mut granted = rules::acquire(view.record(), &grant, view.now())?;
            if view.record().is_none() {
                // The key may have had a record that was deleted for its age. Its deletion came before the look that found
                // none, so what was kept of it is seen now.
                let (retired, _) = view.retired(&wanted.name.namespace)?;
                granted.fencing_token += retired.fencing_token;
            }
            Ok(Step::Write(Box::new(granted.clone()), granted))
        })
    }

    /// Renews a lease and returns its record.
    pub fn keepalive(&self, name: &KeyName, by: &Credentials, ttl_seconds: i64) -> Result<KeyRecord, Error> {
        if name.key.is_queue_state() {
            return Err(Error::QueueStateKeepalive);
        }
        let ttl_seconds = self.ttl.clamp(ttl_seconds);
        self.table.change(name, &[], |view| {
            let record = view.record().ok_or_else(rules::no_record)?;
            let renewed = rules::keepalive(record, by, ttl_seconds, view.now())?;
            Ok(Step::Write(Box::new(renewed.clone()), renewed))
        })
    }

    /// Ends a lease and commits what it staged, or drops it. Ending what is not there is done already.
    pub fn release(&self, name: &KeyName, by: &Credentials, rollback: bool) -> Result<Released, Error> {
        self.table.change(name, &[], |view| {
            let Some(record) = view.record() else {
                return Ok(Step::Answer(Released::NothingHeld));
            };
            match rules::release_case(record, by, view.now())? {
                ReleaseCase::NothingHeld => Ok(Step::Answer(Released::NothingHeld)),
                ReleaseCase::Expired(cleared) => Ok(Step::Write(cleared, Released::TooLate)),
                ReleaseCase::Held => end_lease(view, name, rollback),
            }
        })
    }

    /// How many leases live, on whichever server they were granted; stops counting at `limit`. Every living lease has a
    /// transaction record or a pointer, so this looks at what is held and not at every key there is.
    pub fn count_living(&self, limit: usize) -> Result<usize, Error> {
        let mut living = 0;
        self.table.committer().book().for_each(|noted| {
            for member in &noted.record.participants {
                // Messages come back by themselves, whoever holds them.
                let Some(name) = KeyName::of(&member.subject) else {
                    continue;
                };
                let key = self.table.read(&name)?.map(Leased::Key);
                living += usize::from(is_member_alive(member, key.as_ref(), self.table.now()));
            }
            Ok(living < limit)
        })?;
        Ok(living.min(limit))
    }

    /// Takes back a grant whose answer could not be delivered.
    pub fn give_back(&self, name: &KeyName, granted: &KeyRecord) -> Result<(), Error> {
        let Some(lease) = &granted.lease else { return Ok(()) };
        let by = Credentials {
            lease_id: lease.id.as_str().to_owned(),
            fencing_token: granted.fencing_token,
            txn_id: Some(lease.txn_id.as_str().to_owned()),
        };
        self.table.change(name, &[], |view| {
            let Some(record) = view.record() else {
                return Ok(Step::Answer(()));
            };
            match rules::release_case(record, &by, view.now())? {
                // Only this lease ends: the others of its transaction have done nothing wrong.
                ReleaseCase::Held => Ok(Step::Write(Box::new(rules::cleared(record, view.now())), ())),
                ReleaseCase::NothingHeld | ReleaseCase::Expired(_) => Ok(Step::Answer(())),
            }
        })
    }
}

/// What a release did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// The lease is gone; what it staged is committed or, on request, dropped.
    Done,
    /// There was no such lease.
    NothingHeld,
    /// The lease had expired: whatever it had staged is lost. The wire cannot say so; the log does.
    TooLate,
}

fn end_lease(view: &mut View<'_>, name: &KeyName, rollback: bool) -> Result<Step<Released>, Error> {
    let now = view.now();
    let Some(record) = view.record().cloned() else {
        return Ok(Step::Answer(Released::NothingHeld));
    };
    let Some(lease) = record.lease.clone() else {
        return Ok(Step::Answer(Released::NothingHeld));
    };
    if !lease.explicit || (record.staged.is_none() && !rollback) {
        let ended = if rollback {
            rules::cleared(&record, now)
        } else {
            rules::committed(&record, now)
        };
        return Ok(Step::Write(Box::new(ended), Released::Done));
    }
    let wanted = if rollback { Decision::Rollback } else { Decision::Commit };
    if record.staged.is_none() {
        view.edit_txn(&lease.txn_id, |txn| give_up(txn, &lease.id))?;
    }
    let settled = settle(view, &lease.txn_id, &lease.id, wanted, None)?;
    if !settled.has_ended(&name.subject()) {
        // A rollback may be asked for by a member that has staged nothing; its own lease ends with it.
        view.put_decided(name, &rules::cleared(&record, now));
        view.edit_txn(&lease.txn_id, |txn| leave(txn, &lease.id))?;
    }
    if settled.conflict {
        return Ok(Step::WriteAll(Err(Error::Refused(rules::refused(
            &record,
            Reason::TxnConflict,
        )))));
    }
    Ok(Step::WriteAll(Ok(Released::Done)))
}

#[cfg(test)]
pub(crate) mod testbed;
#[cfg(test)]
mod tests;
