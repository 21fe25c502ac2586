//! Compaction: a snapshot of what is live takes the place of the history before it.
//!
//! 1. Take `compact.lock`: one process compacts at a time. Nobody else waits for it.
//! 2. Note the position up to which this process has applied the log. Everything before it is in the index.
//! 3. Write all that is in the index to a new file, page by page, while writers go on. So the pages are of different moments,
//!    all of them after the noted position. That is good enough: who loads the snapshot goes on from the noted position, and
//!    doing the operations since then once more ends in the same state, because each of them sets or removes, and the last
//!    one counts. The snapshot never runs ahead of the log: only what is durable gets into an index.
//! 4. Write the end, sync the file, then its directory. From here on recovery prefers it.
//! 5. Say in the log that it exists. Everybody who reads that points its index into the snapshot and lets the old files go.
//! 6. After a grace remove segments before the noted one and older snapshots. Whoever started to recover from them has had
//!    this long; who has them open reads on.
//!
//! Killed before 4 is done, it leaves a snapshot without an end, which does not exist and goes with the next cleaning.
//! Killed between 4 and 6, it leaves two sets that are both valid. Killed in 6, the newer one, and parts of the older.

use std::collections::HashSet;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::Step;
use super::commit::Order;
use super::engine::Core;
use super::frame::{
    FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileKind, Flaw, FrameKind, begin_frame, encode_frame,
    finish_frame,
};
use super::index::{Fetch, Index, Place};
use super::lock::{Mode, try_lock};
use super::mark::Position;
use super::operation::{Operation, Operations, push_body, push_put};
use super::recover::read_snapshot;
use super::segment::{FileId, LogFile, list_files, remove_file};
use crate::store::{BodyId, RecordKey, StoreError};

/// A frame of a snapshot is closed when it has this size.
const ENTRIES_BYTES: usize = 256 * 1024;
/// How many records are looked up at once, under the lock of the index.
const PAGE_ROWS: usize = 256;

impl Core {
    /// True when the log since the last snapshot has outgrown what is live, so that a restart reads at most about twice
    /// what it needs.
    pub(super) fn compaction_is_due(&self) -> bool {
        let index = self.index.read();
        let since_snapshot: u64 = (index.files.values())
            .filter(|file| file.header.kind == FileKind::Segment)
            .filter(|file| index.snapshot.is_none_or(|(_, start)| start.segment <= file.number()))
            .map(|file| file.len_bytes().unwrap_or(0))
            .sum();
        self.options.compact_bytes_min.max(index.live_bytes) <= since_snapshot
    }

    /// Compacts now. False: another process is at it.
    pub(super) fn compact(&self) -> Result<bool, StoreError> {
        let compact_file = self.compact_file.lock();
        match try_lock(&compact_file, Mode::Exclusive) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(cause) => {
                return Err(StoreError::NotDone {
                    detail: format!("locking for compaction: {cause}"),
                });
            }
        }
        let written = self.write_snapshot().and_then(|file| {
            let answer = self.commit(Order::Compacted(file.number));
            if matches!(answer, Err(StoreError::NotDone { .. })) {
                // Otherwise each attempt on a full disk would leave one more.
                let _ = remove_file(&self.log_dir, file);
            }
            answer.map(|_| true)
        });
        let _ = fs2::FileExt::unlock(&*compact_file);
        written
    }

    fn write_snapshot(&self) -> Result<FileId, StoreError> {
        let (start, sequence) = {
            // Under both, so that position and number belong together.
            let tail = self.tail.lock();
            (tail.position(), tail.sequence)
        };
        let header = FileHeader {
            kind: FileKind::Snapshot,
            number: start.segment,
            start_segment: start.segment,
            start_offset: start.offset,
            sequence,
            salt: fastrand::u64(..),
        };
        let failed = |cause: std::io::Error| StoreError::NotDone {
            detail: format!("making a snapshot: {cause}"),
        };
        self.counting.step(Step::CreateSnapshot).map_err(failed)?;
        let file = LogFile::create(&self.log_dir, header, &self.counting).map_err(failed)?;
        let mut writer = SnapshotWriter {
            core: self,
            offset: FILE_HEADER_BYTES as u64,
            frame: begin_frame(),
            frames: 0,
            operations: 0,
            file,
        };
        let written = writer.write_all();
        if written.is_err() {
            let _ = remove_file(&self.log_dir, writer.file.id());
        }
        written.map(|()| writer.file.id())
    }

    /// Moves into the newest snapshot that is whole, whether the log has spoken of it yet or not.
    pub(super) fn adopt_newest(&self) -> Result<(), StoreError> {
        let files = list_files(&self.log_dir).map_err(|cause| StoreError::NotDone {
            detail: format!("listing {}: {cause}", self.log_dir.display()),
        })?;
        // None is no error here: whoever misses something will say so.
        let _ = (files.iter().rev().filter(|found| found.is_snapshot)).find(|found| self.adopt(found.number).is_ok());
        Ok(())
    }

    /// Points the index into a snapshot that the log speaks of, and lets go of the files that are then no longer needed.
    pub(super) fn adopt(&self, number: u32) -> Result<(), StoreError> {
        let _adopting = self.adopting.lock();
        if self.index.read().snapshot.is_some_and(|(newest, _)| number <= newest) {
            return Ok(());
        }
        let snapshot = Arc::new(LogFile::open(&self.log_dir, FileKind::Snapshot, number)?);
        let start = Position {
            segment: snapshot.header.start_segment,
            offset: snapshot.header.start_offset,
        };
        if self.index.read().applied < start {
            // Files would be let go that the tail still goes through.
            return Err(StoreError::NotDone {
                detail: "a snapshot is ahead of what was read".to_owned(),
            });
        }
        self.index.write().files.insert(snapshot.id(), snapshot.clone());
        read_snapshot(&snapshot, |payload, payload_offset| {
            self.index
                .write()
                .point_into(payload, snapshot.id(), payload_offset, start.segment)
        })?;
        // Everything that was in the old files is in the snapshot, so this finds none of them; but a file that is let go too
        // early would cost somebody a read, and looking costs little.
        let needed = self.files_in_use();
        let mut index = self.index.write();
        index.snapshot = Some((number, start));
        (index.files).retain(|other, _| !replaced_by(snapshot.id(), start.segment, *other) || needed.contains(other));
        Ok(())
    }

    /// Removes the files that the newest snapshot has made superfluous.
    pub(super) fn remove_old_files(&self) -> Result<(), StoreError> {
        let Some((newest, start)) = self.index.read().snapshot else {
            return Ok(());
        };
        let compact_file = self.compact_file.lock();
        // Nobody else writes a snapshot now, so one without an end will never have one.
        if !matches!(try_lock(&compact_file, Mode::Exclusive), Ok(true)) {
            return Ok(());
        }
        let failed = |cause: std::io::Error| StoreError::NotDone {
            detail: format!("removing old files of the log: {cause}"),
        };
        let removed = list_files(&self.log_dir).map_err(failed).and_then(|files| {
            for found in files {
                let limit = if found.is_snapshot { newest } else { start.segment };
                if found.number < limit {
                    (self.counting.step(Step::RemoveOld))
                        .and_then(|()| remove_file(&self.log_dir, found))
                        .map_err(failed)?;
                }
            }
            Ok(())
        });
        let _ = fs2::FileExt::unlock(&*compact_file);
        removed
    }
}

impl Core {
    /// The files that the index points into.
    fn files_in_use(&self) -> HashSet<FileId> {
        let mut files = HashSet::new();
        let mut after: Option<RecordKey> = None;
        loop {
            let index = self.index.read();
            let page = index
                .records
                .range::<RecordKey, _>((after_bound(&after), Bound::Unbounded))
                .take(PAGE_ROWS);
            let mut last = None;
            for (key, record) in page {
                files.extend(record.place.file());
                last = Some(key.clone());
            }
            match last {
                Some(key) => after = Some(key),
                None => {
                    files.extend(index.bodies.values().filter_map(Place::file));
                    return files;
                }
            }
        }
    }
}

impl Index {
    /// Moves places out of files that a snapshot replaces, where the snapshot holds the same state.
    fn point_into(
        &mut self,
        payload: &[u8],
        snapshot: FileId,
        payload_offset: u64,
        start_segment: u32,
    ) -> Result<(), Flaw> {
        let replaced = |place: &Place| {
            let other = place.file();
            other.is_some_and(|other| replaced_by(snapshot, start_segment, other))
        };
        for operation in Operations::new(payload) {
            match operation.map_err(|_| Flaw::Payload)? {
                Operation::Put { etag, key, value } => {
                    if let Some(record) = self.records.get_mut(key)
                        && record.etag == etag
                        && replaced(&record.place)
                    {
                        record.place.move_to(value, snapshot, payload_offset);
                    }
                }
                Operation::Body { id, value } => {
                    if let Some(place) = self.bodies.get_mut(&BodyId::new(id))
                        && replaced(place)
                    {
                        place.move_to(value, snapshot, payload_offset);
                    }
                }
                _ => return Err(Flaw::Payload),
            }
        }
        Ok(())
    }
}

/// True for what a snapshot takes the place of: the segments before the one where it goes on, and all other snapshots.
fn replaced_by(snapshot: FileId, start_segment: u32, other: FileId) -> bool {
    if other.is_snapshot {
        other != snapshot
    } else {
        other.number < start_segment
    }
}

/// Fills a snapshot.
struct SnapshotWriter<'a> {
    core: &'a Core,
    file: LogFile,
    offset: u64,
    frame: Vec<u8>,
    frames: u64,
    operations: u64,
}

impl SnapshotWriter<'_> {
    fn write_all(&mut self) -> Result<(), StoreError> {
        self.write_records()?;
        self.write_bodies()?;
        self.close_frame()?;
        self.step(Step::SnapshotEnd)?;
        let operations = self.operations.to_le_bytes();
        let end = encode_frame(FrameKind::End, self.frames + 1, self.file.header.salt, &operations);
        self.append(&end)?;
        (self.core.counting.sync(&self.file.file, Step::SnapshotSync))
            .and_then(|()| self.core.counting.sync_dir(&self.core.log_dir))
            .map_err(|cause| self.file.failed("syncing", &cause))?;
        self.step(Step::Announce)
    }

    fn write_records(&mut self) -> Result<(), StoreError> {
        let mut after: Option<RecordKey> = None;
        loop {
            let page: Vec<(RecordKey, u64, Fetch)> = {
                let index = self.core.index.read();
                (index
                    .records
                    .range::<RecordKey, _>((after_bound(&after), Bound::Unbounded)))
                .take(PAGE_ROWS)
                .map(|(key, record)| (key.clone(), record.etag, index.fetch(&record.place)))
                .collect()
            };
            let Some((last, _, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (key, etag, fetch) in page {
                push_put(&mut self.frame, etag, key.as_str(), &fetch.bytes()?);
                self.operation_added()?;
            }
        }
    }

    fn write_bodies(&mut self) -> Result<(), StoreError> {
        let mut after: Option<BodyId> = None;
        loop {
            // Bodies are larger: one page of them is fewer.
            let page: Vec<(BodyId, Fetch)> = {
                let index = self.core.index.read();
                (index.bodies.range::<BodyId, _>((after_bound(&after), Bound::Unbounded)))
                    .take(PAGE_ROWS)
                    .map(|(id, place)| (id.clone(), index.fetch(place)))
                    .collect()
            };
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (id, fetch) in page {
                push_body(&mut self.frame, id.as_str(), &fetch.bytes()?);
                self.operation_added()?;
            }
        }
    }

    fn operation_added(&mut self) -> Result<(), StoreError> {
        self.operations += 1;
        if self.frame.len() < ENTRIES_BYTES {
            return Ok(());
        }
        self.close_frame()
    }

    fn close_frame(&mut self) -> Result<(), StoreError> {
        if self.frame.len() == FRAME_HEADER_BYTES {
            return Ok(());
        }
        self.step(Step::SnapshotEntries)?;
        self.frames += 1;
        let mut frame = std::mem::replace(&mut self.frame, begin_frame());
        finish_frame(&mut frame, FrameKind::Entries, self.frames, self.file.header.salt);
        self.append(&frame)
    }

    fn append(&mut self, frame: &[u8]) -> Result<(), StoreError> {
        let written = self.file.file.write_all_at(frame, self.offset);
        written.map_err(|cause| self.file.failed("writing", &cause))?;
        self.offset += frame.len() as u64;
        Ok(())
    }

    fn step(&self, step: Step) -> Result<(), StoreError> {
        (self.core.counting.step(step)).map_err(|cause| self.file.failed("writing", &cause))
    }
}

fn after_bound<T>(after: &Option<T>) -> Bound<&T> {
    after.as_ref().map_or(Bound::Unbounded, Bound::Excluded)
}
