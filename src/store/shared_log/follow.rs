//! Catching up: applying to the index what the log holds, whoever wrote it.
//!
//! Two situations, and what lies between them is the whole argument:
//!
//! - **Up to the mark** ([`Core::follow_to`]) everything is durable and never changes again. No lock is needed. What cannot
//!   be read there is damage.
//! - **Behind the mark** ([`Core::settle`]) lies what a writer left who was killed, or cut off by a loss of power, before it
//!   could move the mark. Only who holds the exclusive lock looks there, so nobody is writing. Whole frames are synced, since
//!   it is not known whether their writer came to that: otherwise somebody could read what the next loss of power takes
//!   away. Then the mark moves, and then they are applied like everything before the mark. Bytes that are no frame are a
//!   torn tail if nothing valid follows them, and are cut; if a valid frame follows, they are damage. Zeroes are room that
//!   somebody has made for what comes next.
//!
//! A disk that loses power may have written the end of a frame and not its beginning, so whoever enters a segment looks at
//! all of the room once. After that only a process of this machine can have died there, and it leaves a beginning: a look
//! at the first bytes is enough.
//!
//! # On NFS
//!
//! Only the lock of a file's own descriptor makes what is read from it fresh, so whoever reads a segment locks it; and as
//! there are cases in which not even that does, reads go past the cache ([`network`](super::network)). And only that lock
//! keeps a machine that was given up from writing late: the server frees all locks of a machine that it has not
//! heard of for a while, another one takes them, and what the first one still has in its memory is refused if the lock
//! under which it was written was one of that very file. The lock of the store is on another file and does not help there.
//! So a commit holds its segment exclusively from before it looks for the end until its frame is synced
//! ([`Core::settle_and_hold`]).

use std::sync::Arc;
use std::time::Duration;

use super::Step;
use super::engine::Core;
use super::frame::{
    FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileKind, Flaw, FrameKind, holds_a_frame, is_room, read_u32,
};
use super::index::{Changes, Index};
use super::lock::{Mode, try_lock};
use super::mark::{Position, write_mark};
use super::operation::Operations;
use super::recover;
use super::segment::{FrameReader, LogFile, ReadError, is_missing};
use crate::store::StoreError;

/// How often a commit looks for the end of a log that others take further.
const HOLD_ATTEMPTS: usize = 10;
/// Between two attempts to lock a segment.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// How far the log has been read.
pub(super) struct Tail {
    pub(super) file: Arc<LogFile>,
    pub(super) offset: u64,
    /// The number that the next frame must carry.
    pub(super) sequence: u64,
    pub(super) reader: FrameReader,
    /// On NFS: the lock of `file`, while a commit prepares.
    pub(super) held: Option<SegmentLock>,
    /// All that lies behind the end of the file has been looked at since it was entered, and was room. From then on only
    /// processes of this machine that were killed can leave something there, and they leave it at the end.
    pub(super) room_is_clean: bool,
}

/// What was news on the way.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) changes: Changes,
    /// The newest snapshot that the log speaks of.
    pub(super) compacted: Option<u32>,
}

impl Tail {
    pub(super) fn position(&self) -> Position {
        Position {
            segment: self.file.number(),
            offset: self.offset,
        }
    }
}

impl Core {
    /// Applies what lies before the mark.
    pub(super) fn follow_to(&self, tail: &mut Tail, mark: Position, heard: &mut Heard) -> Result<(), StoreError> {
        while tail.position() < mark {
            match self.follow_segment(tail, mark, heard) {
                Err(error) if is_missing(&error) => self.reload(tail, error, heard)?,
                followed => followed?,
            }
        }
        Ok(())
    }

    /// Applies what lies before the mark in the segment that the tail is in, and enters the next one.
    fn follow_segment(&self, tail: &mut Tail, mark: Position, heard: &mut Heard) -> Result<(), StoreError> {
        let file = tail.file.clone();
        let _fresh = self.freshen(tail, &file)?;
        let in_last = file.number() == mark.segment;
        let end = if in_last { mark.offset } else { file.len_bytes()? };
        while Arc::ptr_eq(&tail.file, &file) && tail.offset < end {
            self.read_and_apply(tail, end, heard)?
                .map_err(|flaw| file.corrupt(tail.offset, flaw))?;
        }
        if Arc::ptr_eq(&tail.file, &file) && !in_last {
            // The mark is in a later segment, so this one must have led there.
            return Err(file.corrupt(tail.offset, Flaw::Short));
        }
        Ok(())
    }

    /// Applies everything there is, cuts a torn tail, and leaves the mark at the end. Under the exclusive lock.
    pub(super) fn settle(&self, tail: &mut Tail, heard: &mut Heard) -> Result<(), StoreError> {
        let mark = self.mark()?;
        if let Some(mark) = mark {
            self.follow_to(tail, mark, heard)?;
        }
        let end = self.find_end(tail)?;
        if mark != Some(end) {
            // First the mark, then the index: otherwise this process could show what others do not find yet.
            self.move_mark(end).map_err(StoreError::before_the_write)?;
            self.follow_to(tail, end, heard)?;
        }
        Ok(())
    }

    /// The same, and leaves the segment that the log ends in locked, so that nobody else can have appended to it from before it
    /// was read until the lock is let go. It is needed on NFS alone.
    pub(super) fn settle_and_hold(&self, tail: &mut Tail, heard: &mut Heard) -> Result<(), StoreError> {
        if !self.network {
            return self.settle(tail, heard);
        }
        for _ in 0..HOLD_ATTEMPTS {
            tail.held = match self.lock_segment(&tail.file, Mode::Exclusive) {
                // The tail will find its way out of a segment that is gone.
                Err(error) if is_missing(&error) => None,
                locked => Some(locked?),
            };
            let settled = self.settle(tail, heard);
            if settled.is_err() {
                tail.held = None;
            }
            settled?;
            // Entering another segment lets go of the one before.
            if tail.held.is_some() {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable {
            detail: "the log has gone on to other segments each time its end was found".to_owned(),
        })
    }

    /// Where the log ends. What lies between the tail and the end is durable afterwards, and what is torn is cut.
    fn find_end(&self, tail: &mut Tail) -> Result<Position, StoreError> {
        let mut file = tail.file.clone();
        let mut offset = tail.offset;
        let mut sequence = tail.sequence;
        loop {
            let _fresh = self.freshen(tail, &file)?;
            let length = file.len_bytes()?;
            if length < offset {
                return Err(file.corrupt(length, Flaw::Shrunk));
            }
            let mut next = None;
            let is_current = Arc::ptr_eq(&file, &tail.file);
            let end = Position {
                segment: file.number(),
                offset,
            };
            if is_current && offset == length {
                tail.room_is_clean = !self.network;
            } else if is_current && tail.room_is_clean && begins_with_room(&file, offset, length)? {
                return Ok(end);
            }
            if offset < length {
                self.sync_settling(&file)?;
                tail.reader.forget();
            }
            while offset < length && next.is_none() {
                let flaw = match tail.reader.read(&file, offset, length) {
                    Ok((head, payload)) if head.sequence == sequence => {
                        match head.kind {
                            FrameKind::Group => sequence += Operations::new(payload).count() as u64,
                            FrameKind::Seal if head.length == 4 => next = Some(read_u32(payload, 0)),
                            FrameKind::Compacted => sequence += 1,
                            // Acknowledged by a newer version; cutting it would lose it.
                            _ => return Err(file.corrupt(offset, Flaw::Kind)),
                        }
                        offset += (FRAME_HEADER_BYTES + head.length) as u64;
                        continue;
                    }
                    Ok(_) => Flaw::Sequence,
                    Err(ReadError::Flaw(flaw)) => flaw,
                    Err(ReadError::Io(cause)) => return Err(file.failed("reading", &cause)),
                };
                if !self.is_all_room(&file, offset, length)? {
                    self.cut_torn_tail(&file, offset, length, flaw)?;
                }
                tail.room_is_clean = is_current && !self.network;
                tail.reader.forget();
                break;
            }
            let Some(number) = next else {
                return Ok(Position {
                    segment: file.number(),
                    offset,
                });
            };
            let sealed = file.number();
            file = Arc::new(LogFile::open(&self.log_dir, FileKind::Segment, number)?);
            if file.header.sequence != sequence + 1 || number <= sealed {
                return Err(file.corrupt(0, Flaw::Sequence));
            }
            (offset, sequence) = (FILE_HEADER_BYTES as u64, sequence + 1);
        }
    }

    fn sync_settling(&self, file: &LogFile) -> Result<(), StoreError> {
        (self.counting.sync(&file.file, Step::SettleSync)).map_err(|cause| {
            let error = file.failed("syncing", &cause);
            self.latch(StoreError::Unavailable {
                detail: error.to_string(),
            });
            error
        })
    }

    /// Moves the mark; if that fails, nobody else would learn what was written, so this engine stops.
    pub(super) fn move_mark(&self, position: Position) -> Result<(), StoreError> {
        let moved = self
            .counting
            .step(Step::Mark)
            .and_then(|()| write_mark(&self.commit_file, position))
            .and_then(|()| match self.network {
                // Giving the lock back would send it just as well, but could not say that it was refused because the lock had
                // been lost; then nobody else would learn of it, although the answer said done.
                true => self.commit_file.sync_data(),
                false => Ok(()),
            });
        moved.map_err(|cause| {
            let detail = format!("moving the mark of the log: {cause}");
            self.latch(StoreError::Unavailable { detail: detail.clone() });
            StoreError::Unknown { detail }
        })
    }

    /// Reads the next frame and applies it. The inner error: there is no such frame.
    fn read_and_apply(&self, tail: &mut Tail, end: u64, heard: &mut Heard) -> Result<Result<(), Flaw>, StoreError> {
        let Tail {
            file,
            offset,
            sequence,
            reader,
            ..
        } = tail;
        let (head, payload) = match reader.read(file, *offset, end) {
            Ok(frame) => frame,
            Err(ReadError::Flaw(flaw)) => return Ok(Err(flaw)),
            Err(ReadError::Io(cause)) => return Err(file.failed("reading", &cause)),
        };
        if head.sequence != *sequence {
            return Ok(Err(Flaw::Sequence));
        }
        let next = Position {
            segment: file.number(),
            offset: *offset + (FRAME_HEADER_BYTES + head.length) as u64,
        };
        let payload_offset = *offset + FRAME_HEADER_BYTES as u64;
        match head.kind {
            FrameKind::Group => {
                let numbers = Operations::new(payload).count() as u64;
                let mut index = self.index.write();
                if index
                    .apply(payload, file.id(), payload_offset, &mut heard.changes)
                    .is_err()
                {
                    return Err(file.corrupt(*offset, Flaw::Payload));
                }
                index.applied = next;
                drop(index);
                *sequence += numbers;
                *offset = next.offset;
            }
            FrameKind::Compacted if head.length == 4 => {
                heard.compacted = Some(read_u32(payload, 0));
                self.index.write().applied = next;
                *sequence += 1;
                *offset = next.offset;
            }
            FrameKind::Seal if head.length == 4 => {
                let number = read_u32(payload, 0);
                let file = LogFile::open(&self.log_dir, FileKind::Segment, number)?;
                self.enter_segment(tail, Arc::new(file))?;
            }
            _ => return Err(file.corrupt(*offset, Flaw::Kind)),
        }
        Ok(Ok(()))
    }

    /// Goes on in the segment that the last seal named.
    pub(super) fn enter_segment(&self, tail: &mut Tail, file: Arc<LogFile>) -> Result<(), StoreError> {
        if file.header.sequence != tail.sequence + 1 || file.number() <= tail.file.number() {
            return Err(file.corrupt(0, Flaw::Sequence));
        }
        tail.sequence += 1;
        tail.offset = FILE_HEADER_BYTES as u64;
        tail.held = None;
        tail.file = file.clone();
        tail.room_is_clean = false;
        let mut index: parking_lot::RwLockWriteGuard<'_, Index> = self.index.write();
        index.applied = tail.position();
        index.files.insert(file.id(), file);
        Ok(())
    }

    /// Begins again from the newest snapshot. Whoever sleeps longer than the grace of compaction finds the segments gone
    /// that it would have read next, and on NFS also the one it was reading; what they said is in the snapshot.
    fn reload(&self, tail: &mut Tail, missing: StoreError, heard: &mut Heard) -> Result<(), StoreError> {
        let (new_index, new_tail) = recover::load(&self.log_dir)?;
        if new_tail.position() <= tail.position() {
            return Err(missing);
        }
        let mut index = self.index.write();
        if let Some(keys) = &mut heard.changes.keys {
            keys.extend(index.keys_that_differ(&new_index));
        }
        *index = new_index;
        *tail = new_tail;
        Ok(())
    }

    /// True if nothing but zeroes lies behind this offset.
    fn is_all_room(&self, file: &LogFile, offset: u64, length: u64) -> Result<bool, StoreError> {
        Ok(begins_with_room(file, offset, length)?
            && is_room(&file.read_at(offset, usize::try_from(length - offset).unwrap_or(usize::MAX))?))
    }

    fn cut_torn_tail(&self, file: &LogFile, offset: u64, length: u64, flaw: Flaw) -> Result<(), StoreError> {
        // A segment is not much longer than its limit, and a tail is a part of it.
        let tail = file.read_at(offset, usize::try_from(length - offset).unwrap_or(usize::MAX))?;
        let behind = tail.get(1..).unwrap_or_default();
        if flaw == Flaw::Sequence || holds_a_frame(behind, file.header.salt) {
            return Err(file.corrupt(offset, flaw));
        }
        let cut = (self.counting.step(Step::CutTornTail))
            .and_then(|()| file.file.set_len(offset))
            .and_then(|()| self.counting.sync(&file.file, Step::SettleSync));
        cut.map_err(|cause| {
            let error = file.failed("cutting a torn tail of", &cause);
            self.latch(StoreError::Unavailable {
                detail: error.to_string(),
            });
            error
        })
    }

    /// On NFS only a lock on a file's own descriptor makes its reads fresh.
    fn freshen(&self, tail: &Tail, file: &Arc<LogFile>) -> Result<Option<SegmentLock>, StoreError> {
        let is_held = tail.held.as_ref().is_some_and(|held| Arc::ptr_eq(&held.0, file));
        if !self.network || is_held {
            return Ok(None);
        }
        self.lock_segment(file, Mode::Shared).map(Some)
    }

    /// Locks a segment. Who comes here holds the lock of the store, so nobody else wants this one for long.
    pub(super) fn lock_segment(&self, file: &Arc<LogFile>, mode: Mode) -> Result<SegmentLock, StoreError> {
        let start = self.clock.now();
        loop {
            match try_lock(&file.file, mode) {
                Ok(true) => return Ok(SegmentLock(file.clone())),
                Ok(false) if self.clock.now().since(start) < self.options.lock_wait => std::thread::sleep(LOCK_PAUSE),
                Ok(false) => {
                    return Err(StoreError::Unavailable {
                        detail: "a segment stays locked".to_owned(),
                    });
                }
                Err(cause) => return Err(file.failed("locking", &cause)),
            }
        }
    }
}

/// The lock of a segment's descriptor, held until dropped.
pub(super) struct SegmentLock(Arc<LogFile>);

impl Drop for SegmentLock {
    fn drop(&mut self) {
        let _ = fs2::FileExt::unlock(&self.0.file);
    }
}

impl StoreError {
    /// What leaves a doubt about what others had written leaves none about a write that has not begun.
    pub(super) fn before_the_write(self) -> Self {
        match self {
            StoreError::Unknown { detail } => StoreError::NotDone { detail },
            other => other,
        }
    }
}

/// True if no frame begins at this offset, not even a torn one: a writer writes from front to back.
fn begins_with_room(file: &LogFile, offset: u64, length: u64) -> Result<bool, StoreError> {
    let bytes = (FRAME_HEADER_BYTES as u64).min(length - offset);
    Ok(is_room(&file.read_at(offset, bytes as usize)?))
}
