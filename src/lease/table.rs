//! Records of keys over a store: read, decide, write if nothing has changed, or start again.
//!
//! Every change of a key goes through [`KeyTable::change`]. Within the process, calls on one key take their turn at a
//! striped lock, so that contention costs a queue and not a storm of failed writes; between processes the conditional
//! write decides. What a change means for transactions is worked out by the [`View`]; how several records reach the store
//! is the business of [`crate::txn::commit`].

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use super::view::View;
use crate::clock::SharedClock;
use crate::error::Error;
use crate::keys::{self, Key, Namespace};
use crate::lease::rules::{Now, Refused};
use crate::news::Listener;
use crate::record::{KeyRecord, LeaseRecord, Participant, Subject};
use crate::store::{Batch, BodyId, RecordKey, Store, StoreError};
use crate::txn::commit::Committer;
use crate::txn::plan::Chore;

/// How often a change may lose its race against other writers before it gives up.
const ROUNDS_MAX: usize = 100;
const STRIPES: usize = 256;
/// Where each round costs requests over a network, those who lose make room for each other, a little longer each time.
const PAUSE_MS_MAX: u64 = 200;

/// A key in its namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyName {
    /// Namespace.
    pub namespace: Namespace,
    /// Key.
    pub key: Key,
}

impl KeyName {
    /// Where its record lives.
    pub fn record_key(&self) -> RecordKey {
        keys::key_record(&self.namespace, &self.key)
    }

    pub(super) fn member(&self, lease: &LeaseRecord, enlisted: bool) -> Participant {
        Participant {
            subject: self.subject(),
            lease_id: lease.id.clone(),
            enlisted,
            lost: false,
            epoch: lease.epoch,
        }
    }

    /// This key as one that can take part in a transaction.
    pub fn subject(&self) -> Subject {
        Subject::Key {
            namespace: self.namespace.clone(),
            key: self.key.clone(),
        }
    }

    /// The key that takes part, if it is one.
    pub fn of(subject: &Subject) -> Option<KeyName> {
        match subject {
            Subject::Key { namespace, key } => Some(KeyName {
                namespace: namespace.clone(),
                key: key.clone(),
            }),
            Subject::Message { .. } => None,
        }
    }
}

/// Reads and changes key records. One per server.
pub struct KeyTable {
    committer: Committer,
    stripes: Vec<Mutex<()>>,
    hasher: RandomState,
}

/// What one round of a change decides.
pub enum Step<T> {
    /// Nothing is written.
    Answer(T),
    /// The key's record becomes this one; afterwards the answer is given.
    Write(Box<KeyRecord>, T),
    /// The key's record and others become these; the view has collected them.
    WriteAll(Result<T, Error>),
}

impl KeyTable {
    /// A table over a store. `listener` hears of what other calls may be waiting for.
    pub fn new(store: Arc<dyn Store>, clock: SharedClock, listener: Arc<dyn Listener>) -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::new(())).collect();
        Self {
            committer: Committer::new(store, clock, listener),
            stripes,
            hasher: RandomState::new(),
        }
    }

    /// The store underneath.
    pub fn store(&self) -> &Arc<dyn Store> {
        self.committer.store()
    }

    /// What carries changes out, and knows the transactions.
    pub fn committer(&self) -> &Committer {
        &self.committer
    }

    /// The time, for rules.
    pub fn now(&self) -> Now {
        self.committer.now()
    }

    /// Reads the record of a key.
    pub fn read(&self, name: &KeyName) -> Result<Option<KeyRecord>, Error> {
        let found = self.committer.read_key(&name.record_key())?;
        Ok(found.map(|(record, _)| record))
    }

    /// Changes a key: calls `decide` with a view of its record until what it decides could be written.
    ///
    /// `bodies` are written along with the record that names them. Bodies that the changed records named before and no
    /// longer name are dropped.
    pub fn change<T>(
        &self,
        name: &KeyName,
        bodies: &[(BodyId, Arc<[u8]>)],
        decide: impl FnMut(&mut View<'_>) -> Result<Step<T>, Error>,
    ) -> Result<T, Error> {
        let mut if_given_up = Vec::new();
        let outcome = self.change_in_rounds(name, bodies, decide, &mut if_given_up);
        match &outcome {
            // It may have been done.
            Err(Error::Store(StoreError::Unknown { .. })) => {}
            _ => self.committer.do_chores(&if_given_up),
        }
        outcome
    }

    /// `if_given_up`: what earlier rounds have prepared and this call has come to nothing with.
    fn change_in_rounds<T>(
        &self,
        name: &KeyName,
        bodies: &[(BodyId, Arc<[u8]>)],
        mut decide: impl FnMut(&mut View<'_>) -> Result<Step<T>, Error>,
        if_given_up: &mut Vec<Chore>,
    ) -> Result<T, Error> {
        let record_key = name.record_key();
        let stripe = usize::try_from(self.hasher.hash_one(&record_key) % STRIPES as u64).unwrap_or(0);
        let _turn = self.stripes[stripe].lock();
        let mut remembered = View::of_remembered_key(&self.committer, name, &record_key);
        for round in 0..ROUNDS_MAX {
            self.make_room(round);
            let mut view = match remembered.take() {
                Some(view) => view,
                None => View::of_key(&self.committer, name, &record_key)?,
            };
            let decided = decide(&mut view);
            if view.is_from_memory() && !matches!(decided, Ok(Step::Write(..) | Step::WriteAll(_))) {
                continue;
            }
            let (answer, bodies) = match decided {
                Ok(Step::Answer(answer)) => return Ok(answer),
                Ok(Step::Write(record, answer)) => {
                    view.put_key(name, &record)?;
                    (Ok(answer), bodies)
                }
                Ok(Step::WriteAll(answer)) => (answer, bodies),
                Err(Error::Refused(Refused {
                    cleared: Some(record),
                    reason,
                    version,
                    etag,
                })) => {
                    view.put_key(name, &record)?;
                    let refusal = Refused {
                        cleared: None,
                        reason,
                        version,
                        etag,
                    };
                    // What is written is the clearing alone: no record names the bodies of a refused change.
                    (Err(Error::Refused(refusal)), &[][..])
                }
                Err(other) => return Err(other),
            };
            let is_from_memory = view.is_from_memory();
            let plan = view.into_plan(bodies);
            if is_from_memory && !plan.is_one_record() {
                continue;
            }
            let prepared = plan.if_given_up.clone();
            match self.committer.commit(plan) {
                Ok(true) => {
                    if_given_up.clear();
                    return answer;
                }
                Ok(false) => *if_given_up = prepared,
                Err(error) => {
                    *if_given_up = prepared;
                    return Err(error);
                }
            }
        }
        Err(Error::Contended)
    }

    /// Changes records of which no single key stands at the centre: calls `decide` with a view until everything it has put
    /// there could be written. If it has put nothing, or fails, nothing is written.
    ///
    /// No turn is taken, so this is for records that are not fought for.
    pub fn transact<T>(
        &self,
        bodies: &[(BodyId, Arc<[u8]>)],
        mut decide: impl FnMut(&mut View<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        for round in 0..ROUNDS_MAX {
            self.make_room(round);
            let mut view = View::of_nothing(&self.committer);
            if round == 0 {
                view = view.or_from_memory();
            }
            let decided = decide(&mut view);
            let is_from_memory = view.is_from_memory();
            if is_from_memory && decided.is_err() {
                continue;
            }
            let answer = decided?;
            let plan = view.into_plan(bodies);
            if is_from_memory && !plan.is_one_record() {
                continue;
            }
            if plan.writes.is_empty() {
                return Ok(answer);
            }
            // The next round makes new ids, so what this one has prepared is of no use to it.
            let prepared = plan.if_given_up.clone();
            match self.committer.commit(plan) {
                Ok(true) => return Ok(answer),
                Ok(false) => self.committer.do_chores(&prepared),
                Err(unknown @ Error::Store(StoreError::Unknown { .. })) => return Err(unknown),
                Err(error) => {
                    self.committer.do_chores(&prepared);
                    return Err(error);
                }
            }
        }
        Err(Error::Contended)
    }

    /// Drops bodies that no record names.
    pub fn drop_bodies(&self, drop_bodies: Vec<BodyId>) -> Result<(), Error> {
        if !drop_bodies.is_empty() {
            self.store().write(Batch {
                drop_bodies,
                ..Batch::default()
            })?;
        }
        Ok(())
    }

    fn make_room(&self, round: usize) {
        if self.committer.in_steps() && 1 < round {
            let most_ms = (2 << round.min(10)).min(PAUSE_MS_MAX);
            std::thread::sleep(Duration::from_millis(fastrand::u64(..=most_ms)));
        }
    }
}
