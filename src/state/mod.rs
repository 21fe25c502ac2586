//! JSON state under a lease: read, replace, remove, attributes, describe.
//!
//! Only the holder changes a state, and what it changes is staged: nobody else sees any of it before the release commits
//! it. A refused change leaves everything as it was.

mod incoming;

use std::io::Read;
use std::sync::Arc;

pub use incoming::{Announced, Arrived, Incoming, hex};

use crate::error::Error;
use crate::ids::IdMaker;
use crate::lease::rules::{self, Credentials, Expected};
use crate::lease::table::{KeyName, KeyTable, Step};
use crate::record::{Attributes, Body, KeyRecord, Staged, StagedState, StateValue};
use crate::store::StoreError;

/// Reads and stages states.
pub struct States {
    table: Arc<KeyTable>,
    ids: Arc<IdMaker>,
    limits: StateLimits,
}

/// How large a state may be and how much of it is held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateLimits {
    /// Largest submitted state in bytes.
    pub raw_bytes_max: u64,
    /// How much of a state may be held in memory while it arrives, in bytes.
    pub spool_bytes_max: usize,
}

/// A state to be sent: its value and its bytes.
pub struct Outgoing {
    /// Etag and length.
    pub value: StateValue,
    /// The version that goes with it.
    pub version: i64,
    /// Its bytes.
    pub bytes: OutgoingBytes,
}

/// The bytes of a state.
pub enum OutgoingBytes {
    /// All of them.
    Whole(Arc<[u8]>),
    /// A reader that yields exactly as many as the value says.
    Stream(Box<dyn Read + Send>),
}

/// What a removal did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// There was something to remove.
    pub removed: bool,
    /// The effective version afterwards.
    pub version: i64,
}

impl States {
    /// A service over this table.
    pub fn new(table: Arc<KeyTable>, ids: Arc<IdMaker>, limits: StateLimits) -> Self {
        Self { table, ids, limits }
    }

    /// The state that the holder sees: staged, else committed. The transaction need not be named.
    pub fn read_leased(&self, name: &KeyName, by: &Credentials) -> Result<Option<Outgoing>, Error> {
        self.retry_lost_body(|| {
            let record = self.table.change(name, &[], |view| {
                let record = view.record().ok_or_else(rules::no_record)?;
                rules::check_lease(record, by, view.now())?;
                Ok(Step::Answer(record.clone()))
            })?;
            // Staged attributes raise the effective version, but the state that is returned is still the committed one.
            let state_is_staged = matches!(
                record.staged,
                Some(Staged {
                    state: StagedState::Put(_),
                    ..
                })
            );
            let version = if state_is_staged {
                record.effective_version()
            } else {
                record.version
            };
            self.outgoing(record.effective_state(), version)
        })
    }

    /// The committed state, whoever holds the key.
    pub fn read_public(&self, name: &KeyName) -> Result<Option<Outgoing>, Error> {
        self.retry_lost_body(|| match self.table.read(name)? {
            Some(record) => self.outgoing(record.state.as_ref(), record.version),
            None => Ok(None),
        })
    }

    /// Begins to take a new state in.
    pub fn incoming(&self, announced: Announced) -> Incoming<'_> {
        let limits = self.limits;
        Incoming::new(
            &**self.table.store(),
            &self.ids,
            limits.raw_bytes_max,
            limits.spool_bytes_max,
            announced,
        )
    }

    /// Stages a state that has arrived, and returns the record with it.
    pub fn update(
        &self,
        name: &KeyName,
        by: &Credentials,
        expected: &Expected,
        arrived: Arrived,
        attributes: Attributes,
    ) -> Result<KeyRecord, Error> {
        let written_ahead = arrived.written_ahead().cloned();
        let value = arrived.value;
        let outcome = self.table.change(name, &arrived.along, |view| {
            let record = view.record().ok_or_else(rules::no_record)?;
            let staged = rules::stage_state(record, by, expected, value.clone(), attributes, view.now())?;
            Ok(Step::Write(Box::new(staged.clone()), staged))
        });
        let certainly_not_staged = outcome.as_ref().is_err_and(Error::is_certainly_not_done);
        if let Some(body) = written_ahead.filter(|_| certainly_not_staged) {
            // The answer matters more than its garbage: a body that cannot be dropped now costs space and nothing else.
            let _ = self.table.drop_bodies(vec![body]);
        }
        outcome
    }

    /// Stages attributes, and returns the record with them.
    pub fn set_attributes(
        &self,
        name: &KeyName,
        by: &Credentials,
        expected: &Expected,
        attributes: Attributes,
    ) -> Result<KeyRecord, Error> {
        self.table.change(name, &[], |view| {
            let record = view.record().ok_or_else(rules::no_record)?;
            let staged = rules::stage_attributes(record, by, expected, attributes, view.now())?;
            Ok(Step::Write(Box::new(staged.clone()), staged))
        })
    }

    /// Stages the removal of the state.
    pub fn remove(&self, name: &KeyName, by: &Credentials, expected: &Expected) -> Result<Removal, Error> {
        self.table.change(name, &[], |view| {
            let record = view.record().ok_or_else(rules::no_record)?;
            match rules::stage_removal(record, by, expected, view.now())? {
                Some(staged) => {
                    let removal = Removal {
                        removed: true,
                        version: staged.effective_version(),
                    };
                    Ok(Step::Write(Box::new(staged), removal))
                }
                None => Ok(Step::Answer(Removal {
                    removed: false,
                    version: record.effective_version(),
                })),
            }
        })
    }

    /// The record of a key, for describe.
    pub fn describe(&self, name: &KeyName) -> Result<Option<KeyRecord>, Error> {
        self.table.read(name)
    }

    fn outgoing(&self, value: Option<&StateValue>, version: i64) -> Result<Option<Outgoing>, Error> {
        let Some(value) = value else { return Ok(None) };
        let bytes = match &value.body {
            Body::Inline(bytes) => OutgoingBytes::Whole(Arc::clone(bytes)),
            Body::Stored(id) => OutgoingBytes::Stream(self.table.store().body_reader(id)?),
        };
        Ok(Some(Outgoing {
            value: value.clone(),
            version,
            bytes,
        }))
    }

    /// Between reading a record and opening its body, a writer may replace the one and drop the other. Reading again
    /// finds the new record; a body that stays missing is reported.
    fn retry_lost_body(&self, read: impl Fn() -> Result<Option<Outgoing>, Error>) -> Result<Option<Outgoing>, Error> {
        const TRIES: usize = 10;
        for _ in 1..TRIES {
            match read() {
                Err(Error::Store(StoreError::BodyMissing { .. })) => {}
                other => return other,
            }
        }
        read()
    }
}

#[cfg(test)]
mod tests;
