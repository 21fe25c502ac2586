//! What is in the store at this moment, in memory: names, etags, and where the bytes are.
//!
//! Values of up to [`INLINE_BYTES_MAX`] bytes are kept here; longer ones stay in the log and are read by offset, so memory
//! grows with the number of records and not with what they hold. Bytes that are read later carry their own checksum.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::mark::Position;
use super::operation::{Operation, Operations, Unreadable, Value};
use super::segment::{FileId, LogFile};
use crate::store::{BodyId, Etag, Precondition, RecordKey, StoreError};

/// Longest value that is kept in memory.
pub(super) const INLINE_BYTES_MAX: usize = 256;

/// The index over one log.
#[derive(Default)]
pub(super) struct Index {
    pub(super) records: BTreeMap<RecordKey, Record>,
    /// Bodies that live in the log. Those in files of their own are known to the file system alone.
    pub(super) bodies: BTreeMap<BodyId, Place>,
    /// Everything before this position has been applied.
    pub(super) applied: Position,
    /// Open files that places point into, the current segment among them.
    pub(super) files: HashMap<FileId, Arc<LogFile>>,
    /// The newest snapshot that places may point into, and where the log goes on behind it.
    pub(super) snapshot: Option<(u32, Position)>,
    /// Bytes of all live operations, about: what a snapshot would take.
    pub(super) live_bytes: u64,
}

/// A record as the index knows it.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) etag: u64,
    pub(super) place: Place,
}

/// Where bytes are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Memory(Arc<[u8]>),
    File(Spot),
}

/// A range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) offset: u64,
    pub(super) file: FileId,
    length: u32,
    crc: u32,
}

/// What applying operations has changed, for those who want to know.
#[derive(Default)]
pub(super) struct Changes {
    /// Records, if somebody listens.
    pub(super) keys: Option<Vec<RecordKey>>,
    /// Bodies that were dropped and are not in the log: files that may be removed.
    pub(super) dropped_files: Vec<BodyId>,
}

/// Bytes that are yet to be read; made under the lock of the index, read without it.
pub(super) enum Fetch {
    Ready(Arc<[u8]>),
    Read(Arc<LogFile>, Spot),
    /// The file is not open. Cannot happen as long as files are let go only when no place points into them.
    Lost,
}

impl Index {
    /// Applies the operations of one payload that begins at this offset of this file.
    pub(super) fn apply(
        &mut self,
        payload: &[u8],
        file: FileId,
        payload_offset: u64,
        changes: &mut Changes,
    ) -> Result<(), Unreadable> {
        for operation in Operations::new(payload) {
            match operation? {
                Operation::Put { etag, key, value } => {
                    let place = Place::of(value, file, payload_offset);
                    let size = cost(key, value.bytes.len());
                    let record = Record { etag, place };
                    if let Some(known) = self.records.get_mut(key) {
                        self.live_bytes = self.live_bytes + size - cost(key, known.place.length());
                        *known = record;
                    } else {
                        self.live_bytes += size;
                        self.records.insert(RecordKey::new(key), record);
                    }
                    changes.note(key);
                }
                Operation::Delete { key } => {
                    if let Some(gone) = self.records.remove(key) {
                        self.live_bytes -= cost(key, gone.place.length());
                    }
                    changes.note(key);
                }
                Operation::Body { id, value } => {
                    self.live_bytes += cost(id, value.bytes.len());
                    let place = Place::in_file(value, file, payload_offset);
                    if let Some(old) = self.bodies.insert(BodyId::new(id), place) {
                        self.live_bytes -= cost(id, old.length());
                    }
                }
                Operation::BodyFile { id } => changes.dropped_files.retain(|dropped| dropped.as_str() != id),
                Operation::DropBody { id } => {
                    let id = BodyId::new(id);
                    match self.bodies.remove(&id) {
                        Some(gone) => self.live_bytes -= cost(id.as_str(), gone.length()),
                        None => changes.dropped_files.push(id),
                    }
                }
            }
        }
        Ok(())
    }

    /// True if a record is in the state that a precondition asks for; `current` is its etag.
    pub(super) fn allows(precondition: &Precondition, current: Option<u64>) -> bool {
        match precondition {
            Precondition::Any => true,
            Precondition::Absent => current.is_none(),
            Precondition::Matches(etag) => current.is_some_and(|current| etag_of(current) == *etag),
        }
    }

    /// How to get at the bytes of a place.
    pub(super) fn fetch(&self, place: &Place) -> Fetch {
        match place {
            Place::Memory(bytes) => Fetch::Ready(bytes.clone()),
            Place::File(spot) => match self.files.get(&spot.file) {
                Some(file) => Fetch::Read(file.clone(), *spot),
                None => Fetch::Lost,
            },
        }
    }

    /// The records whose state differs between two indexes.
    pub(super) fn keys_that_differ(&self, other: &Self) -> Vec<RecordKey> {
        let etag = |index: &Self, key: &RecordKey| index.records.get(key).map(|record| record.etag);
        let changed = self.records.keys().filter(|key| etag(self, key) != etag(other, key));
        let new = other.records.keys().filter(|key| !self.records.contains_key(*key));
        changed.chain(new).cloned().collect()
    }

    /// Records below a prefix and behind a name, in order.
    pub(super) fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a RecordKey>,
    ) -> impl Iterator<Item = (&'a RecordKey, &'a Record)> {
        let from = match after {
            Some(key) if prefix <= key.as_str() => Bound::Excluded(key.as_str()),
            _ => Bound::Included(prefix),
        };
        (self.records.range::<str, _>((from, Bound::Unbounded)))
            .take_while(move |(key, _)| key.as_str().starts_with(prefix))
    }
}

impl Place {
    fn of(value: Value<'_>, file: FileId, payload_offset: u64) -> Self {
        if value.bytes.len() <= INLINE_BYTES_MAX {
            Place::Memory(value.bytes.into())
        } else {
            Self::in_file(value, file, payload_offset)
        }
    }

    fn in_file(value: Value<'_>, file: FileId, payload_offset: u64) -> Self {
        Place::File(Spot {
            offset: payload_offset + value.at as u64,
            file,
            // Bounded by the payload.
            length: value.bytes.len() as u32,
            crc: crc32fast::hash(value.bytes),
        })
    }

    pub(super) fn length(&self) -> usize {
        match self {
            Place::Memory(bytes) => bytes.len(),
            Place::File(spot) => spot.length as usize,
        }
    }

    /// The file it points into, if any.
    pub(super) fn file(&self) -> Option<FileId> {
        match self {
            Place::Memory(_) => None,
            Place::File(spot) => Some(spot.file),
        }
    }

    /// Points to where a snapshot has the same bytes.
    pub(super) fn move_to(&mut self, value: Value<'_>, file: FileId, payload_offset: u64) {
        if matches!(self, Place::File(_)) {
            *self = Self::in_file(value, file, payload_offset);
        }
    }
}

impl Fetch {
    /// Gets the bytes and checks them.
    pub(super) fn bytes(self) -> Result<Arc<[u8]>, StoreError> {
        match self {
            Fetch::Ready(bytes) => Ok(bytes),
            Fetch::Read(file, spot) => {
                let bytes = file.read_at(spot.offset, spot.length as usize)?;
                if crc32fast::hash(&bytes) == spot.crc {
                    Ok(bytes.into())
                } else {
                    Err(file.corrupt(spot.offset, super::frame::Flaw::Checksum))
                }
            }
            Fetch::Lost => Err(StoreError::NotDone {
                detail: "a file of the log was let go too early".to_owned(),
            }),
        }
    }
}

impl Changes {
    fn note(&mut self, key: &str) {
        if let Some(keys) = &mut self.keys {
            keys.push(RecordKey::new(key));
        }
    }
}

/// The etag of a record whose last put has this number.
pub(super) fn etag_of(number: u64) -> Etag {
    Etag::new(format!("{number:x}"))
}

fn cost(name: &str, value_bytes: usize) -> u64 {
    (super::operation::OVERHEAD_BYTES + name.len() + value_bytes) as u64
}
