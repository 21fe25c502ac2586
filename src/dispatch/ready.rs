//! What this server knows of one queue's messages: which can be delivered, which will be and when, which are being tried.
//!
//! ```text
//!  ids, oldest first:   |<------ known ------>|<------ beyond ------>|
//!                                         frontier
//!
//!                       +--------+  take   +--------+
//!      heard, scanned ->| ready  |-------->| trying |--> hidden (delivered, or not yet visible), ready, gone
//!                       +--------+         +--------+
//!                           ^
//!      its time has come    |
//!                       +--------+
//!      heard, scanned ->| hidden |
//!                       +--------+
//! ```
//!
//! It is a memory aid, never the truth: what it suggests is decided by a conditional write, and forgetting something costs
//! a look at the store. So it is bounded. Of a long backlog only the oldest part is known; the **frontier** says how far.
//! What is enqueued beyond it is not taken in, because a scan will come to it. When there is no room for a ready message,
//! the newest one goes and the frontier moves back before it. When there is no room for a hidden one, the one with the
//! latest time goes, and at that time everything counts as beyond the frontier again.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::keys::MessageId;

/// How much is kept of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadyLimits {
    /// Messages that can be delivered.
    pub ready_max: usize,
    /// Messages that cannot be delivered yet.
    pub hidden_max: usize,
    /// Messages that others have changed and nobody has looked at.
    pub changed_max: usize,
}

/// A look during which more than this is heard is given up.
const HEARD_MAX: usize = 64 * 1024;

impl Default for ReadyLimits {
    fn default() -> Self {
        Self {
            ready_max: 4096,
            hidden_max: 64 * 1024,
            changed_max: 4096,
        }
    }
}

/// What is known of a message that somebody has looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It can be delivered from this time on (milliseconds of Unix time); the time may have passed.
    From(i64),
    /// There is no such message (any more), or it will never be delivered.
    Gone,
}

/// Up to where the messages of a queue are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frontier {
    /// Nothing is known.
    Start,
    /// Everything up to this id is known, the id included.
    After(MessageId),
    /// Everything is known.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready(i64),
    Hidden(i64),
    Trying { from: i64, heard: Heard },
}

/// What was heard of a message while it was being tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    From(i64),
    Gone,
}

/// The knowledge about one queue.
#[derive(Debug)]
pub struct ReadySet {
    limits: ReadyLimits,
    places: HashMap<MessageId, Place>,
    ready: BTreeSet<(i64, MessageId)>,
    /// The ids of `ready`: the newest one is the first to go.
    ready_ids: BTreeSet<MessageId>,
    hidden: BTreeSet<(i64, MessageId)>,
    frontier: Frontier,
    /// The newest id that was ever met.
    newest: Option<MessageId>,
    /// From this time on a hidden message that was forgotten may be deliverable.
    forgotten_from: Option<i64>,
    changed: HashSet<MessageId>,
    look: Option<Look>,
}

/// A look at the store that is under way.
#[derive(Debug, Default)]
struct Look {
    /// What was heard since it began; what it sees of these messages may be older than that.
    heard: HashMap<MessageId, Found>,
    /// More was heard than is kept: what it sees cannot be trusted.
    is_lost: bool,
}

impl ReadySet {
    /// Knows nothing.
    pub fn new(limits: ReadyLimits) -> Self {
        Self {
            limits,
            places: HashMap::new(),
            ready: BTreeSet::new(),
            ready_ids: BTreeSet::new(),
            hidden: BTreeSet::new(),
            frontier: Frontier::Start,
            newest: None,
            forgotten_from: None,
            changed: HashSet::new(),
            look: None,
        }
    }

    /// How many messages there are, as far as known.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// How many messages can be delivered, as far as known.
    pub fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// How many messages cannot be delivered yet, as far as known.
    pub fn hidden_len(&self) -> usize {
        self.hidden.len()
    }

    /// How many messages are being tried.
    pub fn trying_len(&self) -> usize {
        self.places.len() - self.ready.len() - self.hidden.len()
    }

    /// True while messages are being tried.
    pub fn is_trying(&self) -> bool {
        self.trying_len() != 0
    }

    /// The message that would be delivered next.
    pub fn head(&self) -> Option<MessageId> {
        self.ready.first().map(|(_, id)| *id)
    }

    /// How far the queue is known.
    pub fn frontier(&self) -> Frontier {
        self.frontier
    }

    /// The newest message that was ever met.
    pub fn newest(&self) -> Option<MessageId> {
        self.newest
    }

    /// True when others have changed messages that nobody has looked at and nobody is trying.
    pub fn has_changes(&self) -> bool {
        self.changed.iter().any(|id| !self.is_tried(*id))
    }

    /// The next time at which something hidden can be delivered (milliseconds of Unix time).
    pub fn next_due(&self) -> Option<i64> {
        let hidden = self.hidden.first().map(|(from, _)| *from);
        hidden.into_iter().chain(self.forgotten_from).min()
    }

    /// A message of this server was written: it can be delivered from this time on. Returns a message that had to be
    /// forgotten for it.
    pub fn heard(&mut self, id: MessageId, from: i64, now_ms: i64) -> Option<MessageId> {
        self.note(id, Found::From(from));
        if self.is_beyond(id) {
            return None;
        }
        self.put(id, from, now_ms)
    }

    /// A message of this server was removed, or will never be delivered again.
    pub fn gone(&mut self, id: MessageId) {
        self.note(id, Found::Gone);
        self.changed.remove(&id);
        match self.places.get_mut(&id) {
            Some(Place::Trying { heard, .. }) => *heard = Heard::Gone,
            Some(_) => self.forget(id),
            None => {}
        }
    }

    /// Another server has changed a message; how is not known.
    pub fn changed(&mut self, id: MessageId) {
        if self.look.is_none() && self.is_beyond(id) {
            return;
        }
        self.changed.insert(id);
        if self.limits.changed_max < self.changed.len() {
            self.changed.clear();
            self.frontier = Frontier::Start;
        }
    }

    /// Moves what can be delivered by now to where it is taken from. Returns those that were hidden until now.
    pub fn promote(&mut self, now_ms: i64) -> Vec<MessageId> {
        let mut due = Vec::new();
        while let Some((from, id)) = self.hidden.first().copied()
            && from <= now_ms
        {
            due.push(id);
            self.put(id, from, now_ms);
        }
        if self.forgotten_from.is_some_and(|from| from <= now_ms) {
            self.forgotten_from = None;
            self.frontier = Frontier::Start;
        }
        due
    }

    /// Takes up to `count` messages that can be delivered, the ones that wait longest first. Nobody else gets them before
    /// [`tried`](Self::tried) says what came of it.
    pub fn take(&mut self, count: usize) -> Vec<MessageId> {
        let mut taken = Vec::with_capacity(count.min(self.ready.len()));
        while taken.len() < count
            && let Some((from, id)) = self.ready.pop_first()
        {
            self.ready_ids.remove(&id);
            let heard = Heard::Nothing;
            self.places.insert(id, Place::Trying { from, heard });
            taken.push(id);
        }
        taken
    }

    /// What came of a message that was taken; `None`: nobody tried it. Returns a message that had to be forgotten.
    pub fn tried(&mut self, id: MessageId, outcome: Option<Found>, now_ms: i64) -> Option<MessageId> {
        let Some(Place::Trying { from, heard }) = self.places.get(&id).copied() else {
            return None;
        };
        self.places.remove(&id);
        if let Some(found) = outcome {
            self.note(id, found);
        }
        match (outcome, heard) {
            (Some(Found::Gone), _) | (_, Heard::Gone) => {
                self.changed.remove(&id);
                None
            }
            (Some(Found::From(found)), Heard::From(heard)) => self.put(id, found.min(heard), now_ms),
            (Some(Found::From(found)), Heard::Nothing) => self.put(id, found, now_ms),
            (None, Heard::From(heard)) => self.put(id, heard.min(from), now_ms),
            (None, Heard::Nothing) => self.put(id, from, now_ms),
        }
    }

    /// A look at the store begins. Ends with [`merge`](Self::merge) or [`abort_look`](Self::abort_look).
    pub fn begin_look(&mut self) {
        self.look = Some(Look::default());
    }

    /// The same, at the messages that others have changed.
    pub fn begin_look_at_changes(&mut self) -> Vec<MessageId> {
        self.begin_look();
        // What is being tried is looked at once that is over.
        let (later, now): (HashSet<_>, HashSet<_>) = self.changed.drain().partition(|id| {
            let place = self.places.get(id);
            matches!(place, Some(Place::Trying { .. }))
        });
        self.changed = later;
        now.into_iter().collect()
    }

    /// A look is over; this is what it found, and how far the queue is known now if that has changed. Returns messages
    /// that had to be forgotten.
    pub fn merge(&mut self, found: &[(MessageId, Found)], frontier: Option<Frontier>, now_ms: i64) -> Vec<MessageId> {
        let look = self.look.take().unwrap_or_default();
        if look.is_lost {
            self.frontier = Frontier::Start;
            return Vec::new();
        }
        self.frontier = frontier.unwrap_or(self.frontier);
        let mut forgotten = Vec::new();
        for (id, found) in found {
            self.meet(*id);
            if self.is_tried(*id) || look.heard.contains_key(id) {
                continue;
            }
            match found {
                Found::From(from) => forgotten.extend(self.put(*id, *from, now_ms)),
                Found::Gone => self.forget(*id),
            }
        }
        // What was enqueued behind the back of the scan, on the near side of where it is now.
        for (id, found) in look.heard {
            if let Found::From(from) = found
                && !self.places.contains_key(&id)
                && !self.is_beyond(id)
            {
                forgotten.extend(self.put(id, from, now_ms));
            }
        }
        let mut changed = std::mem::take(&mut self.changed);
        changed.retain(|id| !self.is_beyond(*id));
        self.changed = changed;
        forgotten
    }

    /// A look came to nothing. What it should have looked at must be looked at another time.
    pub fn abort_look(&mut self, unseen: Vec<MessageId>) {
        self.look = None;
        self.changed.extend(unseen);
    }

    fn is_beyond(&self, id: MessageId) -> bool {
        match self.frontier {
            Frontier::Start => !self.places.contains_key(&id),
            Frontier::After(last) => last < id && !self.places.contains_key(&id),
            Frontier::End => false,
        }
    }

    fn is_tried(&self, id: MessageId) -> bool {
        matches!(self.places.get(&id), Some(Place::Trying { .. }))
    }

    fn note(&mut self, id: MessageId, found: Found) {
        if let Some(look) = &mut self.look {
            if look.heard.len() < HEARD_MAX {
                look.heard.insert(id, found);
            } else {
                look.is_lost = true;
            }
        }
    }

    fn meet(&mut self, id: MessageId) {
        self.newest = self.newest.max(Some(id));
    }

    fn put(&mut self, id: MessageId, from: i64, now_ms: i64) -> Option<MessageId> {
        self.meet(id);
        if let Some(Place::Trying { heard, .. }) = self.places.get_mut(&id) {
            *heard = Heard::From(from);
            return None;
        }
        self.forget(id);
        if now_ms < from {
            self.places.insert(id, Place::Hidden(from));
            self.hidden.insert((from, id));
            if self.limits.hidden_max < self.hidden.len()
                && let Some((from, last)) = self.hidden.pop_last()
            {
                self.places.remove(&last);
                self.forgotten_from = Some(self.forgotten_from.map_or(from, |earlier| earlier.min(from)));
                return Some(last);
            }
            return None;
        }
        self.places.insert(id, Place::Ready(from));
        self.ready.insert((from, id));
        self.ready_ids.insert(id);
        if self.limits.ready_max < self.ready.len()
            && let Some(newest) = self.ready_ids.last().copied()
        {
            self.forget(newest);
            let before = newest.predecessor().map_or(Frontier::Start, Frontier::After);
            let reaches_further = match (self.frontier, before) {
                (Frontier::End, _) => true,
                (Frontier::After(now), Frontier::After(before)) => before < now,
                (Frontier::After(_), _) => true,
                (Frontier::Start, _) => false,
            };
            if reaches_further {
                self.frontier = before;
            }
            return Some(newest);
        }
        None
    }

    fn forget(&mut self, id: MessageId) {
        match self.places.remove(&id) {
            Some(Place::Ready(from)) => {
                self.ready.remove(&(from, id));
                self.ready_ids.remove(&id);
            }
            Some(Place::Hidden(from)) => {
                self.hidden.remove(&(from, id));
            }
            Some(trying @ Place::Trying { .. }) => {
                self.places.insert(id, trying);
            }
            None => {}
        }
    }
}

#[cfg(test)]
#[path = "ready_tests.rs"]
mod tests;
