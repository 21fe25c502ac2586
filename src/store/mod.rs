//! Where bytes live: the contract that every storage engine keeps, and nothing about leases or queues.
//!
//! A store holds two kinds of things. **Records** are small (a few kilobytes), named, and changed only by conditional
//! writes: each carries an [`Etag`] that is new after every change. **Bodies** are blobs of any size under a name that is
//! never used twice; they are written once, become visible only when a record names them, and are dropped when no record
//! names them any more.
//!
//! # The promises of an engine
//!
//! 1. A write that was answered with [`Written::Done`] survives the loss of power (the memory engine: the life of the
//!    process, which is all it promises). Nothing becomes readable before it is that durable.
//! 2. The preconditions of a [`Batch`] and its effects are one step: no other writer comes in between.
//! 3. With [`Capabilities::atomic_batch`], either all of a batch happens or none of it. Without it, a batch holds at
//!    most one record write.
//! 4. After a `Done` every later read through any handle, in any process, sees the new record or a newer one.
//! 5. An answer never guesses. [`StoreError`] keeps "certainly not done" apart from "nobody knows".
//! 6. Bodies come first, the record second, garbage last: a crash in between leaves at worst a body without a record.
//!
//! The same suite (`tests/suite/store.rs`) runs against every engine, also behind [`fault`].

use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

pub mod counted;
pub mod fault;
pub mod memory;
pub mod object;
pub mod recent;
pub mod reopened;
pub mod retry;
pub mod shared_log;
pub mod single;

use crate::metrics::Report;

// Names are below this floor: records hold them, and they are built without a store at hand.
pub use crate::ids::BodyId;
pub use crate::keys::RecordKey;

/// Marks one state of one record. Opaque: two etags of the same record are equal or not, nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Etag(Arc<str>);

impl Etag {
    /// Wraps the engine's own mark.
    pub fn new(mark: impl Into<Arc<str>>) -> Self {
        Self(mark.into())
    }

    /// The mark as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A record as read: its bytes and the etag that a conditional write must name to change just this state.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The record's bytes.
    pub value: Arc<[u8]>,
    /// Its mark.
    pub etag: Etag,
}

/// What must hold of a record for a write to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// Anything: overwrite blindly.
    Any,
    /// There is no such record.
    Absent,
    /// The record is in exactly this state.
    Matches(Etag),
}

/// What a write does to a record.
#[derive(Debug, Clone)]
pub enum Change {
    /// Replace its bytes (or create it).
    Put(Arc<[u8]>),
    /// Delete it. Deleting what is not there is done already.
    Delete,
}

/// One conditional change of one record.
#[derive(Debug, Clone)]
pub struct RecordWrite {
    /// Which record.
    pub key: RecordKey,
    /// What must hold.
    pub precondition: Precondition,
    /// What to do.
    pub change: Change,
}

/// Everything that one decision writes. Each record at most once. A batch without record writes has no precondition and
/// just stores and drops its bodies.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Bodies to write along with the records; for those small enough to be held in memory. Larger ones go through
    /// [`Store::body_writer`] first. The same batch may be tried again with the same bodies: then they are overwritten
    /// with themselves.
    pub bodies: Vec<(BodyId, Arc<[u8]>)>,
    /// Conditional changes. All preconditions hold, or nothing of the batch happens.
    pub records: Vec<RecordWrite>,
    /// Bodies that no record names once the batch is done. Removed after it, at leisure; one that is not there is fine.
    /// A refused batch removes none.
    pub drop_bodies: Vec<BodyId>,
}

/// The answer to a write that the store could decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Done and durable. One etag for each record write, in order; `None` for a deleted record.
    Done(Vec<Option<Etag>>),
    /// Nothing happened, because the precondition of the record write at this index does not hold. The bodies of the
    /// batch are gone again too, though perhaps only at leisure.
    Refused {
        /// Index into [`Batch::records`]: the first one whose precondition does not hold.
        index: usize,
    },
}

/// One row of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The record's name.
    pub key: RecordKey,
    /// Its mark at the time of listing.
    pub etag: Etag,
}

/// What an engine can do beyond the minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// A batch may change several records at once.
    pub atomic_batch: bool,
    /// [`Store::watch`] reports the writes of others. Without it they are found by polling.
    pub feed: bool,
    /// Other processes or handles may write to the same store at the same time.
    pub shared: bool,
    /// Reading a record costs no more than a look into memory, also when it must be fresh.
    pub cheap_reads: bool,
}

/// Why a store could not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// Certainly not done: trying again cannot do it twice. A read or a listing that failed for a passing cause is
    /// always this one, since it has nothing to do twice.
    NotDone {
        /// What went wrong, for the log.
        detail: String,
    },
    /// It may have been done or not. Never retried blindly: read, compare, decide.
    Unknown {
        /// What went wrong, for the log.
        detail: String,
    },
    /// The store holds something that it cannot have written.
    Corrupt {
        /// Which file, object or record.
        place: String,
        /// Offset in bytes inside it.
        offset: u64,
        /// What is wrong there.
        detail: String,
    },
    /// The store does not serve at all for now (latched after a failed write, unreachable, shut down).
    Unavailable {
        /// What went wrong, for the log.
        detail: String,
    },
    /// A record names a body that is not there.
    BodyMissing {
        /// Which body.
        body: BodyId,
    },
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDone { detail } => write!(f, "not done: {detail}"),
            Self::Unknown { detail } => write!(f, "unknown whether done: {detail}"),
            Self::Corrupt { place, offset, detail } => write!(f, "corrupt: {place} at byte {offset}: {detail}"),
            Self::Unavailable { detail } => write!(f, "store unavailable: {detail}"),
            Self::BodyMissing { body } => write!(f, "body {} is missing", body.as_str()),
        }
    }
}

impl std::error::Error for StoreError {}

/// Called with the keys that somebody else has changed. Must be quick and must not call the store: it may run inside
/// the other writer's call.
pub type ChangeListener = Arc<dyn Fn(&[RecordKey]) + Send + Sync>;

/// Receives a body piece by piece. Dropping it without [`finish`](BodyWriter::finish) leaves nothing behind.
pub trait BodyWriter: Write + Send {
    /// Makes the body as durable as the store's promise asks, so that a record may name it.
    fn finish(self: Box<Self>) -> Result<BodyId, StoreError>;
}

/// A place for records and bodies. See the [module documentation](self) for the promises.
pub trait Store: Send + Sync + 'static {
    /// Reads a record, or nothing when there is none.
    fn read(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError>;

    /// Does a whole batch, or says which precondition stands against it.
    fn write(&self, batch: Batch) -> Result<Written, StoreError>;

    /// Lists records whose name begins with `prefix` and is greater than `after`, in byte order, at most `limit`. Fewer
    /// rows than `limit` mean that there are no more. The listing as a whole is no snapshot: a record that is there from
    /// the first page to the last is listed exactly once, one that comes or goes in between may be listed or not.
    fn list(&self, prefix: &str, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Listed>, StoreError>;

    /// Begins a body that is too large to hold in memory. It is invisible until a record names it.
    fn body_writer(&self) -> Result<Box<dyn BodyWriter>, StoreError>;

    /// Reads a body from its beginning. A body that is dropped while it is being read stays readable to the end. One
    /// that is not there is [`StoreError::BodyMissing`].
    fn body_reader(&self, body: &BodyId) -> Result<Box<dyn Read + Send>, StoreError>;

    /// Bodies that were left alone for longer than this, whether a record names them or not, and uploads that were never
    /// finished: where to look for what a crash has left. An engine that cannot leave any has none to tell, and lists none.
    fn leftovers(&self, older_than: Duration) -> Result<Vec<BodyId>, StoreError> {
        let _ = older_than;
        Ok(Vec::new())
    }

    /// Registers one more listener for changes made through *other* handles or processes; a caller knows its own. A
    /// change is readable before it is reported. A report may name a record that has not changed, and several changes of
    /// one record may be reported once. Returns false when the engine has no feed. The listener is kept as long as this
    /// handle.
    fn watch(&self, listener: ChangeListener) -> bool;

    /// What this engine can do.
    fn capabilities(&self) -> Capabilities;

    /// Notes what this engine counts; what it counts is the same for all its handles. Nothing by default.
    fn report(&self, report: &mut Report) {
        let _ = report;
    }

    /// True while the store serves; false once it is latched or cannot be reached. Cheap: no I/O.
    fn healthy(&self) -> bool {
        true
    }
}
