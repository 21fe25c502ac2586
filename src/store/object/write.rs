//! How one record is written: one conditional put, however often it has to be sent.
//!
//! # Lost answers
//!
//! A put whose answer was lost may have been carried out, may be carried out later, or never. Three facts settle almost
//! all of these cases:
//!
//! - Every put is conditional on a state that, once replaced, never comes again, because no two writes have the same bytes.
//!   So sending the same put twice cannot do it twice, and a late one can do no harm.
//! - The object holds the write id of whoever wrote it: if that is ours, it was done.
//! - The object also says what its write replaced: if that is the state that we wanted to replace, another writer was
//!   quicker, and ours was not done and never will be.
//!
//! What remains is a record that has been written over twice since, or is gone. Then the answer is
//! [`StoreError::Unknown`].
//!
//! One state does come again: that there is no object. A put that creates one and is carried out very late would bring
//! a record back that has lived and ended meanwhile. So its tombstone stays for a grace that is longer than a request
//! may take, before it is removed.

use std::sync::Arc;

use super::Core;
use super::bucket::{Condition, Failure, Put};
use super::envelope::{self, Basis, WriteId};
use crate::keys;
use crate::store::{Change, Etag, Precondition, RecordKey, RecordWrite, StoreError, Stored};

/// How often a write that has to look first may lose its race before it gives up.
const ROUNDS_MAX: usize = 100;

/// A record's object as read.
pub(super) struct Current {
    pub(super) etag: String,
    write_id: WriteId,
    basis: Basis,
    /// None: a tombstone.
    pub(super) value: Option<Arc<[u8]>>,
}

/// What became of a record write: its new etag (none for a deleted record), or a precondition that does not hold.
pub(super) type Outcome = Result<Option<Etag>, Refused>;

/// The precondition of a write does not hold.
pub(super) struct Refused;

impl Core {
    /// Reads a record; a tombstone is none.
    pub(super) fn read_record(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        let current = self.current(&self.record_name(key)?)?;
        Ok(current.and_then(|current| {
            Some(Stored {
                value: current.value?,
                etag: Etag::new(current.etag),
            })
        }))
    }

    /// Carries out one record write.
    pub(super) fn write_record(&self, write: &RecordWrite) -> Result<Outcome, StoreError> {
        let name = self.record_name(&write.key)?;
        let value = match &write.change {
            Change::Put(value) => Some(&**value),
            Change::Delete => None,
        };
        let outcome = match (&write.precondition, value) {
            (Precondition::Matches(etag), value) => self.replace(&name, etag.as_str(), value)?,
            (Precondition::Absent, Some(value)) => self.create(&name, value)?,
            (Precondition::Absent, None) => match self.current(&name)?.and_then(|current| current.value) {
                Some(_) => Err(Refused),
                None => Ok(None),
            },
            (Precondition::Any, Some(value)) => self.overwrite(&name, value)?,
            (Precondition::Any, None) if keys::is_used_once(&write.key) => {
                self.delete_for_good(&name)?;
                return Ok(Ok(None));
            }
            (Precondition::Any, None) => self.bury(&name)?,
        };
        if value.is_none() && outcome.is_ok() && keys::is_used_once(&write.key) {
            // Nothing is ever written under this name again but a late put of its creation, if there is one; see above.
            self.reaper.later_or_never(name);
        }
        Ok(outcome)
    }

    /// Puts a record where there is none, or a tombstone.
    fn create(&self, name: &str, value: &[u8]) -> Result<Outcome, StoreError> {
        let mut condition = Condition::Absent;
        for _ in 0..ROUNDS_MAX {
            if let Ok(etag) = self.put_settled(name, Some(value), &condition)? {
                return Ok(Ok(etag));
            }
            condition = match self.current(name)? {
                Some(current) if current.value.is_some() => return Ok(Err(Refused)),
                Some(tombstone) => Condition::Matches(tombstone.etag),
                None => Condition::Absent,
            };
        }
        Err(contended(name))
    }

    fn replace(&self, name: &str, etag: &str, value: Option<&[u8]>) -> Result<Outcome, StoreError> {
        // An etag that was not the store's could be a quoted list or a star to it.
        if etag.is_empty()
            || !etag
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b',' && byte != b'*')
        {
            return Ok(Err(Refused));
        }
        self.put_settled(name, value, &Condition::Matches(etag.to_owned()))
    }

    /// Puts a record whatever is there; still one write after another.
    fn overwrite(&self, name: &str, value: &[u8]) -> Result<Outcome, StoreError> {
        for _ in 0..ROUNDS_MAX {
            let condition = match self.current(name)? {
                Some(current) => Condition::Matches(current.etag),
                None => Condition::Absent,
            };
            if let Ok(etag) = self.put_settled(name, Some(value), &condition)? {
                return Ok(Ok(etag));
            }
        }
        Err(contended(name))
    }

    /// Ends a record, if there is one.
    fn bury(&self, name: &str) -> Result<Outcome, StoreError> {
        for _ in 0..ROUNDS_MAX {
            let current = match self.current(name)? {
                Some(current) if current.value.is_some() => current,
                _ => return Ok(Ok(None)),
            };
            if self.put_settled(name, None, &Condition::Matches(current.etag))?.is_ok() {
                return Ok(Ok(None));
            }
        }
        Err(contended(name))
    }

    /// Removes an object whose name is used once, whatever it holds.
    fn delete_for_good(&self, name: &str) -> Result<(), StoreError> {
        let mut last = Failure::NotDone(String::new());
        for attempt in 0..self.attempts() {
            self.pause_before(attempt);
            match self.noted(self.bucket.delete(name)) {
                Ok(()) => return Ok(()),
                Err(failure @ Failure::Denied(_)) => return Err(failure.of_change()),
                // What was deleted may be deleted again.
                Err(failure) => last = failure,
            }
        }
        Err(last.of_question())
    }

    /// One put that is sent until its outcome is known, or cannot be known.
    fn put_settled(&self, name: &str, value: Option<&[u8]>, condition: &Condition) -> Result<Outcome, StoreError> {
        let write_id = WriteId::from_uuid(&self.ids.uuid());
        let basis = Basis::of(match condition {
            Condition::Matches(etag) => Some(etag),
            Condition::None | Condition::Absent => None,
        });
        let bytes = envelope::encode(&write_id, &basis, value);
        let done = |etag: String| Ok(Ok(value.map(|_| Etag::new(etag))));
        let mut failure = Failure::NotDone(String::new());
        let mut is_lost = false;
        for attempt in 0..self.attempts() {
            self.pause_before(attempt);
            match self.noted(self.bucket.put(name, &bytes, condition)) {
                Ok(Put::Done(etag)) => return done(etag),
                Ok(Put::Refused) if !is_lost => return Ok(Err(Refused)),
                // Perhaps refused because the earlier one has been carried out.
                Ok(Put::Refused) => {}
                Err(Failure::Lost(detail)) => {
                    is_lost = true;
                    failure = Failure::Lost(detail);
                }
                Err(other) => {
                    if !is_lost {
                        failure = other.clone();
                    }
                    if matches!(other, Failure::Denied(_)) {
                        break;
                    }
                    continue;
                }
            }
            match self.current(name) {
                Ok(Some(current)) if current.write_id == write_id => return done(current.etag),
                Ok(Some(current)) if *condition == Condition::Matches(current.etag.clone()) => {}
                Ok(Some(current)) if current.basis == basis => return Ok(Err(Refused)),
                Ok(None) if *condition == Condition::Absent => {}
                Ok(_) => break,
                // Nothing learnt: the next try tells.
                Err(_) => {}
            }
        }
        Err(failure.of_change())
    }

    /// What a record's object holds now.
    pub(super) fn current(&self, name: &str) -> Result<Option<Current>, StoreError> {
        let Some(object) = self.noted(self.bucket.get(name)).map_err(Failure::of_question)? else {
            return Ok(None);
        };
        let envelope = envelope::decode(&object.bytes, name)?;
        Ok(Some(Current {
            write_id: envelope.write_id,
            basis: envelope.basis,
            value: envelope.value.map(Arc::from),
            etag: object.etag,
        }))
    }
}

fn contended(name: &str) -> StoreError {
    StoreError::NotDone {
        detail: format!("others were quicker at {name}, over and over"),
    }
}
