//! Who waits for which key, in which order, and when somebody has to look again.
//!
//! Book-keeping only: no thread, no channel, no clock. Each call says what happened and when, and returns the jobs that
//! follow from it. Waiters of one key are served in the order of their arrival, one at a time: the first is handed out
//! to be tried, and while it is out the others stay.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::{Job, Outcome, Parked, WaitHint, Waiter, WaiterId};
use crate::clock::Moment;
use crate::net::peer::Peer;
use crate::store::RecordKey;

/// How often to look again although nothing was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitLimits {
    /// Longest time between two looks at a key that somebody waits for. Covers what no event announces: a wall clock
    /// that jumped, a release on another server where the store has no feed.
    pub recheck: Duration,
    /// How often to ask whether the clients of parked requests are still there.
    pub peer_check: Duration,
}

/// All parked requests of a server.
pub(super) struct Waiters<P> {
    limits: WaitLimits,
    hint: Arc<WaitHint>,
    parked: HashMap<WaiterId, Waiter<P>>,
    keys: HashMap<RecordKey, KeyQueue>,
    due: BTreeSet<(Moment, Due)>,
    next_id: u64,
    next_peer_check: Option<Moment>,
    draining: bool,
}

#[derive(Default)]
struct KeyQueue {
    /// Arrival order. Ids of waiters that are gone stay in here until they come up.
    order: VecDeque<WaiterId>,
    /// How many of them are parked.
    parked: usize,
    /// The first one is out to be tried.
    trying: bool,
    /// The lease ended while it was out: what it finds may be old.
    again: bool,
    recheck: Option<Moment>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Deadline(WaiterId),
    Recheck(RecordKey),
}

impl<P: Parked> Waiters<P> {
    pub(super) fn new(limits: WaitLimits, hint: Arc<WaitHint>) -> Self {
        Self {
            limits,
            hint,
            parked: HashMap::new(),
            keys: HashMap::new(),
            due: BTreeSet::new(),
            next_id: 0,
            next_peer_check: None,
            draining: false,
        }
    }

    /// A request joins the queue of its key.
    pub(super) fn park(
        &mut self,
        key: RecordKey,
        deadline: Option<Moment>,
        parked: P,
        now: Moment,
        jobs: &mut Vec<Job<P>>,
    ) {
        self.next_id += 1;
        let waiter = Waiter {
            id: WaiterId(self.next_id),
            key,
            deadline,
            parked,
        };
        if self.draining {
            jobs.push(Job::Refuse(waiter));
            return;
        }
        let key = waiter.key.clone();
        self.store(waiter, now, |queue, id| queue.order.push_back(id));
        let is_first = self
            .keys
            .get(&key)
            .is_some_and(|queue| queue.parked == 1 && !queue.trying);
        if is_first {
            // The mark comes first, then the look: whoever ends the lease after this line sees the mark and tells us,
            // whoever ended it before is seen by the look.
            self.hint.insert(&key);
            self.try_first(&key, jobs);
        }
    }

    /// The first waiter of a key comes back from being tried.
    pub(super) fn tried(&mut self, key: &RecordKey, outcome: Outcome<P>, now: Moment, jobs: &mut Vec<Job<P>>) {
        let Some(queue) = self.keys.get_mut(key) else { return };
        queue.trying = false;
        let again = std::mem::take(&mut queue.again);
        let look_at = match outcome {
            Outcome::StillHeld { waiter, until } if !self.draining => {
                self.store(waiter, now, |queue, id| queue.order.push_front(id));
                if again { now } else { until }
            }
            Outcome::StillHeld { waiter, .. } => {
                jobs.push(Job::Refuse(waiter));
                now
            }
            Outcome::Answered {
                held_until: Some(until),
            } if !again => until,
            Outcome::Answered { .. } => now,
        };
        if now < look_at {
            self.look_again_at(key, look_at.min(now.after(self.limits.recheck)));
        } else {
            self.try_first(key, jobs);
        }
        self.forget_if_empty(key);
    }

    /// The lease on a key may have ended.
    pub(super) fn lease_ended(&mut self, key: &RecordKey, jobs: &mut Vec<Job<P>>) {
        match self.keys.get_mut(key) {
            Some(queue) if queue.trying => queue.again = true,
            Some(_) => self.try_first(key, jobs),
            None => {}
        }
    }

    /// The clients of these waiters are not there any more.
    pub(super) fn gone(&mut self, ids: &[WaiterId], jobs: &mut Vec<Job<P>>) {
        for id in ids {
            if let Some(waiter) = self.take(*id) {
                let key = waiter.key.clone();
                jobs.push(Job::Discard(waiter));
                self.forget_if_empty(&key);
            }
        }
    }

    /// From now on nobody waits.
    pub(super) fn drain(&mut self, jobs: &mut Vec<Job<P>>) {
        self.draining = true;
        let ids: Vec<WaiterId> = self.parked.keys().copied().collect();
        for id in ids {
            if let Some(waiter) = self.take(id) {
                let key = waiter.key.clone();
                jobs.push(Job::Refuse(waiter));
                self.forget_if_empty(&key);
            }
        }
    }

    /// Does everything that is due.
    pub(super) fn tick(&mut self, now: Moment, jobs: &mut Vec<Job<P>>) {
        while let Some((at, _)) = self.due.first()
            && *at <= now
        {
            match self.due.pop_first() {
                Some((_, Due::Deadline(id))) => {
                    if let Some(waiter) = self.take(id) {
                        let key = waiter.key.clone();
                        jobs.push(Job::TimeUp(waiter));
                        self.forget_if_empty(&key);
                    }
                }
                Some((_, Due::Recheck(key))) => {
                    if let Some(queue) = self.keys.get_mut(&key) {
                        queue.recheck = None;
                        if !queue.trying {
                            self.try_first(&key, jobs);
                        }
                    }
                }
                None => {}
            }
        }
        if self.next_peer_check.is_some_and(|at| at <= now) {
            let peers: Vec<(WaiterId, Peer)> = self
                .parked
                .values()
                .filter_map(|waiter| Some((waiter.id, waiter.parked.peer()?)))
                .collect();
            if !peers.is_empty() {
                jobs.push(Job::CheckPeers(peers));
            }
            self.next_peer_check = (!self.parked.is_empty()).then(|| now.after(self.limits.peer_check));
        }
    }

    /// When [`tick`](Self::tick) has something to do next.
    pub(super) fn next_due(&self) -> Option<Moment> {
        let first = self.due.first().map(|(at, _)| *at);
        first.into_iter().chain(self.next_peer_check).min()
    }

    /// How many requests are parked.
    pub(super) fn len(&self) -> usize {
        self.parked.len()
    }

    fn store(&mut self, waiter: Waiter<P>, now: Moment, place: impl FnOnce(&mut KeyQueue, WaiterId)) {
        if let Some(deadline) = waiter.deadline {
            self.due.insert((deadline, Due::Deadline(waiter.id)));
        }
        let queue = self.keys.entry(waiter.key.clone()).or_default();
        queue.parked += 1;
        place(queue, waiter.id);
        self.parked.insert(waiter.id, waiter);
        self.hint.set_parked(self.parked.len());
        self.next_peer_check.get_or_insert(now.after(self.limits.peer_check));
    }

    fn take(&mut self, id: WaiterId) -> Option<Waiter<P>> {
        let waiter = self.parked.remove(&id)?;
        self.hint.set_parked(self.parked.len());
        if let Some(deadline) = waiter.deadline {
            self.due.remove(&(deadline, Due::Deadline(id)));
        }
        if let Some(queue) = self.keys.get_mut(&waiter.key) {
            queue.parked -= 1;
        }
        Some(waiter)
    }

    fn try_first(&mut self, key: &RecordKey, jobs: &mut Vec<Job<P>>) {
        self.look_no_more(key);
        while let Some(id) = self.keys.get_mut(key).and_then(|queue| queue.order.pop_front()) {
            if let Some(waiter) = self.take(id) {
                if let Some(queue) = self.keys.get_mut(key) {
                    queue.trying = true;
                }
                jobs.push(Job::Try(waiter));
                return;
            }
        }
    }

    fn look_again_at(&mut self, key: &RecordKey, at: Moment) {
        self.look_no_more(key);
        if let Some(queue) = self.keys.get_mut(key).filter(|queue| 0 < queue.parked) {
            queue.recheck = Some(at);
            self.due.insert((at, Due::Recheck(key.clone())));
        }
    }

    fn look_no_more(&mut self, key: &RecordKey) {
        if let Some(at) = self.keys.get_mut(key).and_then(|queue| queue.recheck.take()) {
            self.due.remove(&(at, Due::Recheck(key.clone())));
        }
    }

    fn forget_if_empty(&mut self, key: &RecordKey) {
        if self
            .keys
            .get(key)
            .is_some_and(|queue| queue.parked == 0 && !queue.trying)
        {
            self.look_no_more(key);
            self.keys.remove(key);
            self.hint.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "waiters_tests.rs"]
mod tests;
