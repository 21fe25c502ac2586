//! What one round of a change wants to be written, and what is known of it afterwards.

use std::sync::Arc;

use crate::ids::{BodyId, Xid};
use crate::news::News;
use crate::record::{MessageRecord, Subject};
use crate::store::{Change, RecordKey, RecordWrite, Store};

/// What one round of a change wants to be written.
#[derive(Default)]
pub struct Plan {
    /// Bodies that go along with the records.
    pub bodies: Vec<(BodyId, Arc<[u8]>)>,
    /// The writes, in any order.
    pub writes: Vec<PlannedWrite>,
    /// What is left to do afterwards. Failing at it is no failure.
    pub afterwards: Vec<Chore>,
    /// What is left to do if this and all further rounds come to nothing.
    pub if_given_up: Vec<Chore>,
}

impl Plan {
    /// Adds a write that drops no bodies and wakes nobody. A record that is written already stays as it is.
    pub fn push(&mut self, turn: Turn, write: RecordWrite) {
        if self.writes.iter().any(|earlier| earlier.write.key == write.key) {
            return;
        }
        self.writes.push(PlannedWrite {
            turn,
            write,
            dropped: Vec::new(),
            tells: Tells::Nobody,
            then: None,
            held_until_ms: None,
        });
    }

    /// True when all there is to it is one record, so that its condition guards everything that was decided. A pointer that
    /// goes along with it in the same batch needs no guard of its own.
    pub fn is_one_record(&self) -> bool {
        let ends_pointer =
            |planned: &&PlannedWrite| planned.turn == Turn::Pointer && matches!(planned.write.change, Change::Delete);
        let mut others = self.writes.iter().filter(|planned| !ends_pointer(planned));
        others.next().is_some_and(|planned| Turn::Key <= planned.turn)
            && others.next().is_none()
            && self.if_given_up.is_empty()
    }
}

/// One record of a plan.
pub struct PlannedWrite {
    /// When it is due, where writes go one by one.
    pub turn: Turn,
    /// The write.
    pub write: RecordWrite,
    /// Bodies that the record names no longer.
    pub dropped: Vec<BodyId>,
    /// Who must hear of it once the plan is carried out.
    pub tells: Tells,
    /// Where writes go one by one: what is left to do as soon as this one is done, whatever becomes of the others.
    pub then: Option<Chore>,
    /// The record is leased until this time (milliseconds of Unix time) to somebody who will write it again, and who takes
    /// part in no transaction of several.
    pub held_until_ms: Option<i64>,
}

/// Who must hear of a write once it is done.
#[derive(Debug, Clone)]
pub enum Tells {
    /// Nobody waits for that.
    Nobody,
    /// Whoever waits for the lease on this key.
    LeaseEnded,
    /// Whoever waits for messages of this queue.
    Queue(News),
}

/// The order of writes that go one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// The pointer of a new transaction. That it is there already is fine: an earlier round has put it.
    Pointer,
    /// The record of a transaction.
    Transaction,
    /// Keys other than the one that the change is about.
    OtherKeys,
    /// The key that the change is about.
    Key,
    /// A record of another kind, a message for instance.
    Stored,
    /// The end of one.
    StoredGone,
    /// The end of a key that went with it.
    KeyGone,
}

/// Something to do after the fact.
#[derive(Debug, Clone)]
pub enum Chore {
    /// Carry out what a transaction has decided.
    CarryOut {
        /// The transaction.
        txn_id: Xid,
        /// What a message becomes by a rollback, when that is more than being visible again.
        back: Option<Box<(Subject, MessageRecord)>>,
    },
    /// Take a lease that has ended off the list of its transaction.
    Forget {
        /// The transaction.
        txn_id: Xid,
        /// The lease.
        lease_id: Xid,
    },
    /// Remove a pointer.
    EndPointer(Xid),
    /// End a lease that nobody was told of.
    EndLease {
        /// The key's record.
        key: RecordKey,
        /// The lease.
        lease_id: Xid,
    },
}

/// A record that is written, and its bytes and until when it is leased, if its holder will write it again.
pub(super) struct Held {
    pub(super) key: RecordKey,
    pub(super) value: Option<(Arc<[u8]>, i64)>,
}

impl Held {
    pub(super) fn by(planned: &PlannedWrite) -> Self {
        let value = match (&planned.write.change, planned.held_until_ms) {
            (Change::Put(value), Some(until_ms)) => Some((Arc::clone(value), until_ms)),
            _ => None,
        };
        Self {
            key: planned.write.key.clone(),
            value,
        }
    }
}

/// The record of a batch that tells afterwards whether the batch was done.
pub(super) struct Witness {
    key: RecordKey,
    /// `None`: it is not there any more.
    value: Option<Arc<[u8]>>,
}

impl Witness {
    /// The record at the centre, else one that holds something new, else one that is gone. The last tells little: somebody
    /// else may have removed it; but then a batch that only removes things has nothing left to do.
    pub(super) fn of(writes: &[PlannedWrite]) -> Option<Self> {
        let is_put = |planned: &&PlannedWrite| matches!(planned.write.change, Change::Put(_));
        let chosen = (writes.iter().filter(is_put))
            .find(|planned| planned.turn == Turn::Key)
            .or_else(|| writes.iter().find(is_put))
            .or_else(|| writes.first())?;
        Some(Self::to(&chosen.write))
    }

    pub(super) fn to(write: &RecordWrite) -> Self {
        Self {
            key: write.key.clone(),
            value: match &write.change {
                Change::Put(value) => Some(Arc::clone(value)),
                Change::Delete => None,
            },
        }
    }

    pub(super) fn was_written(&self, store: &dyn Store) -> bool {
        store
            .read(&self.key)
            .is_ok_and(|found| found.map(|found| found.value) == self.value)
    }
}
