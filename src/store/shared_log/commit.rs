//! Group commit: one append and one `fdatasync` for all batches that wait.
//!
//! A writer puts its batch into the queue. If nobody leads, it leads; else it sleeps until it is answered or handed the
//! lead. The leader takes what has queued up and, under the exclusive lock of the store:
//!
//! 1. catches up with what other processes have appended ([`settle_and_hold`](Core::settle_and_hold));
//! 2. rolls to a new segment if the current one is full;
//! 3. checks the preconditions of every batch in the order of the queue, against the index and the batches before it;
//! 4. appends one frame with all batches that hold, and syncs it;
//! 5. moves the mark, so that every process knows of it;
//! 6. applies it to the index;
//! 7. gives the lock back, hands on the lead, and answers.
//!
//! The lead goes to the next writer in the queue. When many wait, it goes to a thread of the engine's own instead, which
//! keeps it as long as somebody waits: it runs already when a group is done, while the next writer would have to be woken
//! first, among all those that were just answered. It also wakes only one of those before it goes on; that one wakes the
//! rest while the next group is on its way to the disk. So that groups stay large when the disk is quick, it gives those who
//! were just answered a moment to come back.
//!
//! # What each failure leaves
//!
//! - Before 4: nothing. The whole group is answered with the error, certainly not done.
//! - Killed in 4, or the power lost: a frame behind the mark, whole or torn. The next one under the lock applies or cuts it.
//!   Nobody was told anything.
//! - Append or sync fails in 4: after a failed sync nobody knows what the disk holds, and another sync may lie. So the file is
//!   cut back to where it was and the engine latches: every call from then on is refused until the root is opened anew. If
//!   cutting back could be synced, the group was certainly not done; else nobody knows. If there was only no space for the
//!   append and cutting back could be synced, nothing is in doubt: the group is refused, the next one tries again.
//! - Killed in 5 or 6: as in 4, the frame is whole.
//! - 5 fails: the frame is durable, but others would not see it. Unknown, and latched.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::mem;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Step;
use super::engine::Core;
use super::follow::{Heard, Tail};
use super::frame::{
    FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileKind, FrameKind, PAYLOAD_BYTES_MAX, begin_frame,
    encode_frame, finish_frame,
};
use super::index::{Changes, Index, etag_of};
use super::keeper::Task;
use super::lock::Mode;
use super::mark::Position;
use super::operation::{OVERHEAD_BYTES, push_body, push_body_file, push_delete, push_drop_body, push_put};
use super::segment::{LogFile, remove_file};
use crate::store::{Batch, BodyId, Change, Etag, StoreError, Written};

/// No group has more batches.
const GROUP_BATCHES_MAX: usize = 1024;
/// A group that has reached this size takes no further batch.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A batch of this size might not fit into a frame together with a group.
const BATCH_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - GROUP_BYTES_MAX;
/// With fewer waiting, the next one leads itself, which saves waking somebody who then wakes it.
const HAND_OVER_MIN: usize = 4;
/// How long a group is gathered. Less than many a disk takes to sync, and only while many write.
const GATHER_MAX: Duration = Duration::from_micros(500);
/// Room is made in steps of at least so many bytes.
const ROOM_BYTES_MIN: u64 = 16 * 1024;
/// Longest name that the format holds; contract and keys allow 512 bytes.
const NAME_BYTES_MAX: usize = u16::MAX as usize;

/// Who waits to be written.
pub(super) struct Queue {
    pub(super) pending: VecDeque<Arc<Request>>,
    /// Somebody leads. While nobody does, nobody waits.
    pub(super) led: bool,
    /// The lead is the engine's own thread's to take.
    handed_over: bool,
    closed: bool,
    /// With so many waiting, whoever gathers a group has enough.
    gathered_at: usize,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            pending: VecDeque::new(),
            led: false,
            handed_over: false,
            closed: false,
            gathered_at: usize::MAX,
        }
    }
}

/// What is to be written.
pub(super) enum Order {
    /// A batch, and which of its bodies have been written to files of their own.
    Batch { batch: Batch, body_files: Vec<BodyId> },
    /// That a snapshot exists.
    Compacted(u32),
}

/// An order in the queue.
pub(super) struct Request {
    order: Order,
    bytes: usize,
    state: Mutex<State>,
    changed: Condvar,
}

enum State {
    Waiting,
    Lead,
    Answered {
        answer: Result<Written, StoreError>,
        /// Others of the group, whom this one tells their answers first.
        others: Answers,
    },
}

/// What a group is told, one by one.
type Answers = Vec<(Arc<Request>, Result<Written, StoreError>)>;

impl Core {
    /// Writes one order in a group with others.
    pub(super) fn commit(&self, order: Order) -> Result<Written, StoreError> {
        self.check_latch()?;
        let bytes = order_bytes(&order)?;
        let request = Arc::new(Request {
            order,
            bytes,
            state: Mutex::new(State::Waiting),
            changed: Condvar::new(),
        });
        let leads = {
            let mut queue = self.queue.lock();
            queue.pending.push_back(request.clone());
            if queue.pending.len() == queue.gathered_at {
                self.handed_over.notify_one();
            }
            !mem::replace(&mut queue.led, true)
        };
        if leads || request.wait_for_answer_or_lead() {
            self.lead();
        }
        request.answer()
    }

    /// Commits one group and hands on the lead. The caller's own request is at the head of the queue.
    fn lead(&self) {
        let group = take_group(&mut self.queue.lock());
        let lead = Lead {
            core: self,
            group,
            hands_on: true,
        };
        let answers = self.answers_of(&lead.group);
        // Hand on first: the next group can go to the disk while this one is answered.
        lead.end();
        answers
            .into_iter()
            .for_each(|(request, answer)| request.set_answer(answer));
    }

    fn answers_of(&self, group: &[Arc<Request>]) -> Answers {
        match self.commit_group(group) {
            Ok(answers) => group.iter().cloned().zip(answers.into_iter().map(Ok)).collect(),
            Err(error) => group
                .iter()
                .map(|request| (request.clone(), Err(error.clone())))
                .collect(),
        }
    }

    /// The engine's own thread: leads whenever the lead is handed over to it, until nobody waits.
    pub(super) fn lead_for_many(&self) {
        loop {
            {
                let mut queue = self.queue.lock();
                while !queue.handed_over && !queue.closed {
                    self.handed_over.wait(&mut queue);
                }
                if !queue.handed_over {
                    return;
                }
                queue.handed_over = false;
            }
            let mut answered = 0;
            loop {
                let group = {
                    let mut queue = self.queue.lock();
                    self.gather(&mut queue, answered);
                    queue.led = !queue.pending.is_empty();
                    take_group(&mut queue)
                };
                if group.is_empty() {
                    break;
                }
                answered = group.len();
                let lead = Lead {
                    core: self,
                    group,
                    hands_on: false,
                };
                let mut answers = self.answers_of(&lead.group);
                lead.end();
                if let Some((first, answer)) = answers.pop() {
                    first.set(State::Answered {
                        answer,
                        others: answers,
                    });
                }
            }
        }
    }

    /// Waits a little for those who have just been answered and will write again, so that groups stay large when the disk
    /// is quick: until half of all who are about are in the queue.
    fn gather(&self, queue: &mut MutexGuard<'_, Queue>, answered: usize) {
        let wanted = (answered + queue.pending.len()) / 2;
        if queue.pending.len() < wanted {
            queue.gathered_at = wanted;
            self.handed_over.wait_for(queue, GATHER_MAX);
            queue.gathered_at = usize::MAX;
        }
    }

    /// Ends the engine's own thread once nobody waits.
    pub(super) fn close_queue(&self) {
        self.queue.lock().closed = true;
        self.handed_over.notify_all();
    }
}

fn take_group(queue: &mut Queue) -> Vec<Arc<Request>> {
    let mut group: Vec<Arc<Request>> = Vec::new();
    let mut bytes = 0;
    while group.len() < GROUP_BATCHES_MAX
        && let Some(next) = queue.pending.front()
        && (group.is_empty() || bytes + next.bytes <= GROUP_BYTES_MAX)
        && (group.is_empty() || !(next.goes_alone() || group.iter().any(|request| request.goes_alone())))
    {
        bytes += next.bytes;
        group.extend(queue.pending.pop_front());
    }
    group
}

impl Core {
    fn commit_group(&self, group: &[Arc<Request>]) -> Result<Vec<Written>, StoreError> {
        let mut heard = self.new_heard();
        let result = self.with_lock(Mode::Exclusive, || self.commit_locked(group, &mut heard));
        self.tell_heard(heard);
        result.map_err(|error| self.latch_if_corrupt(error))
    }

    fn commit_locked(&self, group: &[Arc<Request>], heard: &mut Heard) -> Result<Vec<Written>, StoreError> {
        let (file, offset, sequence, _segment_lock) = {
            let mut tail = self.tail.lock();
            self.settle_and_hold(&mut tail, heard)?;
            if self.options.segment_bytes_max <= tail.offset {
                let rolled = self.roll(&mut tail);
                if rolled.is_err() {
                    tail.held = None;
                }
                rolled.map_err(StoreError::before_the_write)?;
            }
            (tail.file.clone(), tail.offset, tail.sequence, tail.held.take())
            // Let go: nobody moves the tail while this process holds the lock of the store, and readers that come now
            // find the mark where they are.
        };
        if let [request] = group
            && let Order::Compacted(number) = request.order
        {
            let frame = encode_frame(FrameKind::Compacted, sequence, file.header.salt, &number.to_le_bytes());
            self.append(&file, offset, &frame)?;
            heard.compacted = Some(number);
            self.advance(&file, offset + frame.len() as u64, sequence + 1, |_| ())?;
            return Ok(vec![Written::Done(vec![])]);
        }
        let plan = Plan::make(group, &self.index.read(), sequence);
        if plan.next_sequence == sequence {
            return Ok(plan.answers);
        }
        let mut frame = plan.frame;
        finish_frame(&mut frame, FrameKind::Group, sequence, file.header.salt);
        self.append(&file, offset, &frame)?;
        self.counting.committed(group.len());
        self.advance(&file, offset + frame.len() as u64, plan.next_sequence, |index| {
            let payload = &frame[FRAME_HEADER_BYTES..];
            let applied = index.apply(
                payload,
                file.id(),
                offset + FRAME_HEADER_BYTES as u64,
                &mut Changes::default(),
            );
            debug_assert!(applied.is_ok(), "what was just encoded can be read");
        })?;
        Ok(plan.answers)
    }

    /// Appends a frame and makes it durable, or leaves the file as it was. Unless it was just that there was no space, it
    /// latches.
    fn append(&self, file: &LogFile, offset: u64, frame: &[u8]) -> Result<(), StoreError> {
        let written = (self.counting.step(Step::Append)).and_then(|()| file.file.write_all_at(frame, offset));
        // Nothing was asked to be durable yet, so there is no doubt about what is.
        let is_just_full = (written.as_ref().err())
            .is_some_and(|cause| matches!(cause.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded));
        let appended = written
            .map(|()| self.make_room(file, offset + frame.len() as u64))
            .and_then(|()| self.counting.sync(&file.file, Step::AppendSync));
        let Err(cause) = appended else { return Ok(()) };
        let cut_back = (self.counting.step(Step::CutBack))
            .and_then(|()| file.file.set_len(offset))
            .and_then(|()| self.counting.sync(&file.file, Step::CutBackSync));
        let detail = file.failed("appending to", &cause).to_string();
        if !is_just_full || cut_back.is_err() {
            self.latch(StoreError::Unavailable { detail: detail.clone() });
        }
        Err(match cut_back {
            Ok(()) => StoreError::NotDone { detail },
            Err(_) => StoreError::Unknown { detail },
        })
    }

    /// Writes zeroes ahead when the log has just used up its room. They become durable with what was appended. If there is
    /// no space for them, the next append does without, as if there were no such thing.
    fn make_room(&self, file: &LogFile, end: u64) {
        let room_bytes_max = self.options.room_bytes_max;
        let has_room = file.file.metadata().is_ok_and(|metadata| end < metadata.len());
        if self.network || room_bytes_max == 0 || has_room {
            return;
        }
        // Little for a little log, and nothing that the next segment would have to do without.
        let room_bytes = end.clamp(ROOM_BYTES_MIN.min(room_bytes_max), room_bytes_max);
        let wanted = (end + room_bytes).min(self.options.segment_bytes_max);
        let bytes = usize::try_from(wanted.saturating_sub(end)).unwrap_or(0);
        let _ = file.file.write_all_at(&vec![0; bytes], end);
    }

    /// Tells the others what has been made durable, then takes it up into memory. Readers of this process that find the
    /// mark ahead of the index meanwhile wait for the tail.
    fn advance(
        &self,
        file: &Arc<LogFile>,
        offset: u64,
        sequence: u64,
        apply: impl FnOnce(&mut Index),
    ) -> Result<(), StoreError> {
        let position = Position {
            segment: file.number(),
            offset,
        };
        let mut tail = self.tail.lock();
        self.move_mark(position)?;
        (tail.offset, tail.sequence) = (offset, sequence);
        let mut index = self.index.write();
        apply(&mut index);
        index.applied = position;
        Ok(())
    }

    /// Seals the current segment and goes on in a new one. The new one exists durably before the seal names it, and on NFS it
    /// is locked by then: later it could be somebody else's end of the log already.
    fn roll(&self, tail: &mut Tail) -> Result<(), StoreError> {
        let header = FileHeader {
            kind: FileKind::Segment,
            number: tail.file.number() + 1,
            start_segment: 0,
            start_offset: 0,
            sequence: tail.sequence + 1,
            salt: fastrand::u64(..),
        };
        let made = (self.counting.step(Step::CreateSegment))
            .and_then(|()| LogFile::create(&self.log_dir, header, &self.counting));
        let next = Arc::new(made.map_err(|cause| StoreError::NotDone {
            detail: format!("making a segment: {cause}"),
        })?);
        let next_held = match self.network {
            true => Some(self.lock_segment(&next, Mode::Exclusive)?),
            false => None,
        };
        let number = next.number().to_le_bytes();
        let seal = encode_frame(FrameKind::Seal, tail.sequence, tail.file.header.salt, &number);
        let sealed = tail.file.clone();
        let appended = self.append(&sealed, tail.offset, &seal);
        if matches!(appended, Err(StoreError::NotDone { .. })) {
            // Nobody will ever go on there, and the next attempt makes another.
            let _ = remove_file(&self.log_dir, next.id());
        }
        appended?;
        // What is left of its room is of no use any more. It does no harm if this does not last.
        let _ = sealed.file.set_len(tail.offset + seal.len() as u64);
        self.move_mark(Position {
            segment: next.number(),
            offset: FILE_HEADER_BYTES as u64,
        })?;
        self.enter_segment(tail, next)?;
        tail.held = next_held;
        // Asks whether it is time to compact; the keeper is gone only when the whole engine goes.
        let _ = self.tasks.send(Task::ConsiderCompaction);
        Ok(())
    }
}

/// The lead, until it is handed on. A leader that panics must not leave the others waiting for ever.
struct Lead<'a> {
    core: &'a Core,
    group: Vec<Arc<Request>>,
    /// Somebody else leads next.
    hands_on: bool,
}

impl Lead<'_> {
    /// The group is committed and will be told.
    fn end(mut self) {
        self.group.clear();
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if !self.group.is_empty() {
            let error = StoreError::Unavailable {
                detail: "a writer has panicked".to_owned(),
            };
            self.core.latch(error.clone());
            for request in &self.group {
                request.set_answer(Err(StoreError::Unknown {
                    detail: "the writer of the group has panicked".to_owned(),
                }));
            }
            // The thread that leads for many may be the one that is gone, so nobody is left to wait for.
            let mut queue = self.core.queue.lock();
            queue.led = false;
            let waiting: Vec<Arc<Request>> = queue.pending.drain(..).collect();
            drop(queue);
            waiting
                .iter()
                .for_each(|request| request.set_answer(Err(error.clone())));
            return;
        }
        if !self.hands_on {
            return;
        }
        let mut queue = self.core.queue.lock();
        queue.led = !queue.pending.is_empty();
        // After a panic the thread may be gone.
        if HAND_OVER_MIN <= queue.pending.len() && self.core.check_latch().is_ok() {
            queue.handed_over = true;
            drop(queue);
            self.core.handed_over.notify_one();
        } else if let Some(next) = queue.pending.front().cloned() {
            drop(queue);
            next.set(State::Lead);
        }
    }
}

impl Request {
    /// True for what has a frame of its own.
    fn goes_alone(&self) -> bool {
        matches!(self.order, Order::Compacted(_))
    }

    /// True: lead. False: there is an answer.
    fn wait_for_answer_or_lead(&self) -> bool {
        let mut state = self.state.lock();
        while matches!(*state, State::Waiting) {
            self.changed.wait(&mut state);
        }
        matches!(*state, State::Lead)
    }

    fn set(&self, new: State) {
        *self.state.lock() = new;
        self.changed.notify_one();
    }

    fn set_answer(&self, answer: Result<Written, StoreError>) {
        self.set(State::Answered {
            answer,
            others: Vec::new(),
        });
    }

    fn answer(&self) -> Result<Written, StoreError> {
        let answered = mem::replace(&mut *self.state.lock(), State::Waiting);
        match answered {
            State::Answered { answer, others } => {
                others
                    .into_iter()
                    .for_each(|(request, answer)| request.set_answer(answer));
                answer
            }
            // A leader is always part of the group it commits.
            State::Waiting | State::Lead => Err(StoreError::Unknown {
                detail: "a write was left without an answer".to_owned(),
            }),
        }
    }
}

/// What a group comes to.
struct Plan {
    frame: Vec<u8>,
    next_sequence: u64,
    answers: Vec<Written>,
}

impl Plan {
    fn make(group: &[Arc<Request>], index: &Index, sequence: u64) -> Self {
        let mut plan = Self {
            frame: begin_frame(),
            next_sequence: sequence,
            answers: Vec::with_capacity(group.len()),
        };
        // What the batches before have made of a record: its number, or nothing.
        let mut changed: HashMap<&str, Option<u64>> = HashMap::new();
        for request in group {
            let Order::Batch { batch, body_files } = &request.order else {
                // It has a frame of its own, so it is always alone in its group and does not come here.
                plan.answers.push(Written::Refused { index: 0 });
                continue;
            };
            let current = |name: &str| match changed.get(name) {
                Some(number) => *number,
                None => index.records.get(name).map(|record| record.etag),
            };
            let refused = (batch.records.iter())
                .position(|write| !Index::allows(&write.precondition, current(write.key.as_str())));
            if let Some(index) = refused {
                plan.answers.push(Written::Refused { index });
                continue;
            }
            let etags = plan.add(batch, body_files, &mut changed);
            plan.answers.push(Written::Done(etags));
        }
        plan
    }

    fn add<'a>(
        &mut self,
        batch: &'a Batch,
        body_files: &[BodyId],
        changed: &mut HashMap<&'a str, Option<u64>>,
    ) -> Vec<Option<Etag>> {
        for (id, bytes) in &batch.bodies {
            if body_files.contains(id) {
                push_body_file(&mut self.frame, id.as_str());
            } else {
                push_body(&mut self.frame, id.as_str(), bytes);
            }
            self.next_sequence += 1;
        }
        let mut etags = Vec::with_capacity(batch.records.len());
        for write in &batch.records {
            let name = write.key.as_str();
            match &write.change {
                Change::Put(value) => {
                    push_put(&mut self.frame, self.next_sequence, name, value);
                    changed.insert(name, Some(self.next_sequence));
                    etags.push(Some(etag_of(self.next_sequence)));
                }
                Change::Delete => {
                    push_delete(&mut self.frame, name);
                    changed.insert(name, None);
                    etags.push(None);
                }
            }
            self.next_sequence += 1;
        }
        for id in &batch.drop_bodies {
            push_drop_body(&mut self.frame, id.as_str());
            self.next_sequence += 1;
        }
        etags
    }
}

/// The size of an order in a frame, or why it can never be written.
fn order_bytes(order: &Order) -> Result<usize, StoreError> {
    let Order::Batch { batch, body_files } = order else {
        return Ok(FRAME_HEADER_BYTES);
    };
    let mut bytes = 0;
    let mut add = |name: &str, value_bytes: usize| {
        bytes += OVERHEAD_BYTES + name.len() + value_bytes;
        name.len() <= NAME_BYTES_MAX
    };
    let mut names_fit = true;
    for (id, body) in &batch.bodies {
        let in_file = body_files.contains(id);
        names_fit &= add(id.as_str(), if in_file { 0 } else { body.len() });
    }
    for write in &batch.records {
        let value_bytes = match &write.change {
            Change::Put(value) => value.len(),
            Change::Delete => 0,
        };
        names_fit &= add(write.key.as_str(), value_bytes);
    }
    for id in &batch.drop_bodies {
        names_fit &= add(id.as_str(), 0);
    }
    if names_fit && bytes <= BATCH_BYTES_MAX {
        return Ok(bytes);
    }
    Err(StoreError::NotDone {
        detail: format!("a batch of {bytes} bytes is beyond the limit of {BATCH_BYTES_MAX}, or a name in it is"),
    })
}
