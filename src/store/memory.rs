//! The memory engine: an ordered map that lives as long as the process.
//!
//! It is the reference that the other engines are compared with, so it keeps every promise of the contract in the plainest
//! way: one lock around everything, so that a batch is one step by itself. Several servers of one process share a store
//! through [`MemoryStore::handle`]; a handle hears of the writes of all the others and never of its own.
//!
//! One lock is enough: reading a record and replacing it takes 0.3 us among a thousand records and 2.5 us among a million,
//! a small part of what the HTTP requests around it cost, whether one thread does it or eight. What can be done outside
//! the lock (making etags, freeing what was replaced, telling listeners) is. Long listings let go of it between pages.
//!
//! Left out on purpose: any limit on size (the limits on requests are above), and any life after the process.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::mem;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::{
    Batch, BodyId, BodyWriter, Capabilities, Change, ChangeListener, Etag, Listed, Precondition, RecordKey,
    RecordWrite, Store, StoreError, Stored, Written,
};

/// How many rows a listing reads before it lets writers in.
const LIST_PAGE_ROWS: usize = 1024;

/// The first chunk of a streamed body has this many bytes; each further one twice as many as the one before.
const CHUNK_BYTES_MIN: usize = 4 * 1024;

/// No chunk of a streamed body is larger.
const CHUNK_BYTES_MAX: usize = 1024 * 1024;

/// One handle on a memory store.
pub struct MemoryStore {
    shared: Arc<Shared>,
    /// Tells this handle's writes from those of the others.
    handle: u64,
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Records.
    pub records: usize,
    /// Bodies, whether a record names them or not.
    pub bodies: usize,
    /// Bytes in those bodies.
    pub body_bytes: u64,
}

impl MemoryStore {
    /// A new, empty store.
    pub fn new() -> Self {
        Self::on(Arc::new(Shared::default()))
    }

    /// Another handle on the same records and bodies, as another server would have.
    pub fn handle(&self) -> Self {
        Self::on(self.shared.clone())
    }

    /// What is stored at this moment.
    pub fn counts(&self) -> StoreCounts {
        let data = self.shared.data.read();
        StoreCounts {
            records: data.records.len(),
            bodies: data.bodies.len(),
            body_bytes: data.body_bytes,
        }
    }

    fn on(shared: Arc<Shared>) -> Self {
        let handle = shared.handles.fetch_add(1, Ordering::Relaxed);
        Self { shared, handle }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.shared
            .listeners
            .lock()
            .retain(|(handle, _)| *handle != self.handle);
    }
}

impl Store for MemoryStore {
    fn read(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        Ok(self.shared.data.read().records.get(key).cloned())
    }

    fn write(&self, batch: Batch) -> Result<Written, StoreError> {
        let etags: Vec<Option<Etag>> = batch.records.iter().map(|write| self.shared.etag_for(write)).collect();
        // Freed only after the lock is gone.
        let mut garbage = Garbage::default();
        {
            let mut data = self.shared.data.write();
            if let Some(index) = batch.records.iter().position(|write| !data.allows(write)) {
                return Ok(Written::Refused { index });
            }
            data.apply(&batch, &etags, &mut garbage);
        }
        self.shared.tell_others(self.handle, &batch.records);
        Ok(Written::Done(etags))
    }

    fn list(&self, prefix: &str, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let mut rows: Vec<Listed> = Vec::new();
        let mut cursor = after.cloned();
        loop {
            let page_rows = LIST_PAGE_ROWS.min(limit - rows.len());
            let page_start = rows.len();
            let from = match &cursor {
                Some(key) if prefix <= key.as_str() => Bound::Excluded(key.as_str()),
                _ => Bound::Included(prefix),
            };
            rows.extend(
                (self.shared.data.read().records)
                    .range::<str, _>((from, Bound::Unbounded))
                    .take(page_rows)
                    .take_while(|(key, _)| key.as_str().starts_with(prefix))
                    .map(|(key, stored)| Listed {
                        key: key.clone(),
                        etag: stored.etag.clone(),
                    }),
            );
            if rows.len() == limit || rows.len() - page_start < page_rows {
                return Ok(rows);
            }
            cursor = rows.last().map(|row| row.key.clone());
        }
    }

    fn body_writer(&self) -> Result<Box<dyn BodyWriter>, StoreError> {
        Ok(Box::new(MemoryBodyWriter {
            shared: self.shared.clone(),
            chunks: Vec::new(),
        }))
    }

    fn body_reader(&self, body: &BodyId) -> Result<Box<dyn Read + Send>, StoreError> {
        match self.shared.data.read().bodies.get(body) {
            Some(found) => Ok(Box::new(MemoryBodyReader {
                body: found.clone(),
                chunk: 0,
                offset: 0,
            })),
            None => Err(StoreError::BodyMissing { body: body.clone() }),
        }
    }

    fn watch(&self, listener: ChangeListener) -> bool {
        self.shared.listeners.lock().push((self.handle, listener));
        true
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            atomic_batch: true,
            feed: true,
            shared: true,
            cheap_reads: true,
        }
    }
}

/// What all handles of one store have in common.
#[derive(Default)]
struct Shared {
    data: RwLock<Data>,
    listeners: Mutex<Vec<(u64, ChangeListener)>>,
    handles: AtomicU64,
    etags: AtomicU64,
    body_ids: AtomicU64,
}

impl Shared {
    /// The etag that this write will give its record. Numbers of refused writes are lost, which nobody minds.
    fn etag_for(&self, write: &RecordWrite) -> Option<Etag> {
        match write.change {
            Change::Put(_) => {
                let number = self.etags.fetch_add(1, Ordering::Relaxed);
                Some(Etag::new(number.to_string()))
            }
            Change::Delete => None,
        }
    }

    /// Runs the listeners of all other handles, with no lock held.
    fn tell_others(&self, writer: u64, writes: &[RecordWrite]) {
        let others: Vec<ChangeListener> = (self.listeners.lock().iter())
            .filter(|(handle, _)| *handle != writer)
            .map(|(_, listener)| listener.clone())
            .collect();
        if others.is_empty() || writes.is_empty() {
            return;
        }
        let keys: Vec<RecordKey> = writes.iter().map(|write| write.key.clone()).collect();
        for listener in others {
            listener(&keys);
        }
    }
}

#[derive(Default)]
struct Data {
    records: BTreeMap<RecordKey, Stored>,
    bodies: HashMap<BodyId, Arc<Body>>,
    body_bytes: u64,
}

/// What a write has thrown out.
#[derive(Default)]
struct Garbage {
    records: Vec<Stored>,
    bodies: Vec<Arc<Body>>,
}

impl Data {
    fn allows(&self, write: &RecordWrite) -> bool {
        match &write.precondition {
            Precondition::Any => true,
            Precondition::Absent => !self.records.contains_key(&write.key),
            Precondition::Matches(etag) => self.records.get(&write.key).is_some_and(|stored| stored.etag == *etag),
        }
    }

    fn apply(&mut self, batch: &Batch, etags: &[Option<Etag>], garbage: &mut Garbage) {
        for (id, bytes) in &batch.bodies {
            let body = Body {
                chunks: vec![Chunk::Whole(bytes.clone())],
            };
            garbage.bodies.extend(self.put_body(id.clone(), body));
        }
        for (write, etag) in batch.records.iter().zip(etags) {
            let old = match (&write.change, etag) {
                (Change::Put(value), Some(etag)) => {
                    let new = Stored {
                        value: value.clone(),
                        etag: etag.clone(),
                    };
                    // One way down the map, whether the record is there or not: among many records that is what a write costs.
                    match self.records.entry(write.key.clone()) {
                        Entry::Occupied(mut place) => Some(place.insert(new)),
                        Entry::Vacant(place) => {
                            place.insert(new);
                            None
                        }
                    }
                }
                _ => self.records.remove(&write.key),
            };
            garbage.records.extend(old);
        }
        for id in &batch.drop_bodies {
            if let Some(body) = self.bodies.remove(id) {
                self.body_bytes -= body.len_bytes();
                garbage.bodies.push(body);
            }
        }
    }

    fn put_body(&mut self, id: BodyId, body: Body) -> Option<Arc<Body>> {
        self.body_bytes += body.len_bytes();
        let old = self.bodies.insert(id, Arc::new(body));
        if let Some(old) = &old {
            self.body_bytes -= old.len_bytes();
        }
        old
    }
}

struct Body {
    chunks: Vec<Chunk>,
}

/// A piece of a body, kept as it came so that nothing is copied once more.
enum Chunk {
    /// Handed in with a batch.
    Whole(Arc<[u8]>),
    /// Filled by a [`MemoryBodyWriter`].
    Streamed(Vec<u8>),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Streamed(bytes) => bytes,
        }
    }
}

impl Body {
    fn len_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes().len() as u64).sum()
    }
}

/// Holds what has come so far; the store learns of it at the end.
struct MemoryBodyWriter {
    shared: Arc<Shared>,
    /// Filled up to their capacity, except for the last.
    chunks: Vec<Vec<u8>>,
}

impl Write for MemoryBodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let capacity = match self.chunks.last_mut() {
                Some(last) if last.len() < last.capacity() => {
                    let (fits, further) = rest.split_at(rest.len().min(last.capacity() - last.len()));
                    last.extend_from_slice(fits);
                    rest = further;
                    continue;
                }
                Some(full) => (2 * full.len()).min(CHUNK_BYTES_MAX),
                None => CHUNK_BYTES_MIN,
            };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BodyWriter for MemoryBodyWriter {
    fn finish(mut self: Box<Self>) -> Result<BodyId, StoreError> {
        if let Some(last) = self.chunks.last_mut() {
            last.shrink_to_fit();
        }
        // Callers name their own bodies otherwise, so the two cannot meet.
        let number = self.shared.body_ids.fetch_add(1, Ordering::Relaxed);
        let id = BodyId::new(format!("memory-{number}"));
        let chunks = mem::take(&mut self.chunks).into_iter().map(Chunk::Streamed).collect();
        self.shared.data.write().put_body(id.clone(), Body { chunks });
        Ok(id)
    }
}

/// Walks the chunks of a body, which it keeps alive.
struct MemoryBodyReader {
    body: Arc<Body>,
    chunk: usize,
    offset: usize,
}

impl Read for MemoryBodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(chunk) = self.body.chunks.get(self.chunk) {
            let rest = &chunk.bytes()[self.offset..];
            if rest.is_empty() {
                self.chunk += 1;
                self.offset = 0;
                continue;
            }
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            self.offset += count;
            return Ok(count);
        }
        Ok(0)
    }
}

// What every engine must do is in tests/suite/store.rs; here is what only this one shows.
#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, precondition: Precondition) -> RecordWrite {
        RecordWrite {
            key: RecordKey::new(key),
            precondition,
            change: Change::Put(Arc::from(&b"value"[..])),
        }
    }

    #[test]
    fn counts_follow_what_is_stored() {
        let store = MemoryStore::new();
        let [first, second] = ["first", "second"].map(BodyId::new);
        let batch = Batch {
            bodies: vec![
                (first.clone(), Arc::from(&[0; 10][..])),
                (second.clone(), Arc::from(&[0; 7][..])),
            ],
            records: vec![put("a", Precondition::Absent), put("b", Precondition::Absent)],
            drop_bodies: vec![],
        };
        store.write(batch.clone()).unwrap();
        let both = StoreCounts {
            records: 2,
            bodies: 2,
            body_bytes: 17,
        };
        assert_eq!(store.handle().counts(), both);

        // Refused: not even the bodies are written.
        assert_eq!(store.write(batch.clone()).unwrap(), Written::Refused { index: 0 });
        assert_eq!(store.counts(), both);

        // Tried again: the bodies count once.
        let again = Batch {
            records: vec![],
            ..batch
        };
        store.write(again).unwrap();
        assert_eq!(store.counts(), both);

        let drops = Batch {
            drop_bodies: vec![first.clone(), second, first],
            ..Batch::default()
        };
        store.write(drops).unwrap();
        let none = StoreCounts {
            records: 2,
            ..StoreCounts::default()
        };
        assert_eq!(store.counts(), none);
    }

    #[test]
    fn a_streamed_body_takes_up_its_own_size_and_is_there_only_when_finished() {
        let store = MemoryStore::new();
        let mut dropped = store.body_writer().unwrap();
        dropped.write_all(&[1; 100_000]).unwrap();
        drop(dropped);
        assert_eq!(store.counts(), StoreCounts::default());

        let mut writer = store.body_writer().unwrap();
        writer.write_all(&[2; 5_000_001]).unwrap();
        assert_eq!(store.counts(), StoreCounts::default());
        let id = writer.finish().unwrap();
        let data = store.shared.data.read();
        assert_eq!(data.body_bytes, 5_000_001);
        let chunks = data.bodies[&id].chunks.iter();
        let allocated: usize = chunks
            .map(|chunk| match chunk {
                Chunk::Whole(_) => panic!("a streamed body came in one piece"),
                Chunk::Streamed(bytes) => bytes.capacity(),
            })
            .sum();
        assert!(allocated < 5_100_000, "{allocated} bytes are allocated");
    }

    #[test]
    fn a_handle_that_is_gone_is_told_no_more() {
        let store = MemoryStore::new();
        let told = Arc::new(AtomicU64::new(0));
        let other = store.handle();
        let count = told.clone();
        assert!(other.watch(Arc::new(move |keys| {
            count.fetch_add(keys.len() as u64, Ordering::Relaxed);
        })));
        let batch = Batch {
            records: vec![put("a", Precondition::Any)],
            ..Batch::default()
        };
        store.write(batch.clone()).unwrap();
        assert_eq!(told.load(Ordering::Relaxed), 1);
        drop(other);
        store.write(batch).unwrap();
        assert_eq!(told.load(Ordering::Relaxed), 1);
        assert_eq!(Arc::strong_count(&told), 1);
    }
}
