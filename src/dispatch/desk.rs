//! The dispatcher's part for queues: who gets which message suggested, and when the store is looked at.
//!
//! Book-keeping only, like [`waiters`](super::waiters): no thread, no clock, no store. Each call says what happened and
//! when, and puts into the [`Outbox`] what follows from it.
//!
//! Whoever has no patience hears that there is nothing when a round of looking at the store is over that began after it
//! came, so it never misses what was there before it; see [`one_queue`](super::one_queue).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::Parked;
use super::consumers::{Consumer, ConsumerId, Patience, Purpose};
use super::credit::{Room, StreamId};
use super::one_queue::Queue;
use super::poll::PollLimits;
use super::ready::{Found, Frontier, ReadyLimits};
use super::scanner::{ScanTask, ScanWhat, Scanned};
use super::trial::{Trial, TrialSink, Tried};
use crate::clock::Moment;
use crate::error::Error;
use crate::keys::{MessageId, QueueId};
use crate::logging::Logger;
use crate::net::peer::Peer;

const SYS: &str = "queue.dispatcher.core";
/// The wall clock may jump: what waits for a wall time is looked at again after this at the latest.
const RECHECK: Duration = Duration::from_secs(10);
/// How often to ask whether the clients of those who wait are still there.
const PEER_CHECK: Duration = Duration::from_secs(5);
/// A message whose try failed for a fault of the store is left alone for so long.
const AFTER_FAULT: Duration = Duration::from_secs(1);
/// A round that was begun reads on until so many pages of ready messages are known.
const HIGH_WATER_PAGES: usize = 4;

/// What the desk is told.
#[derive(Debug, Clone)]
pub struct DeskLimits {
    /// How often to poll.
    pub poll: PollLimits,
    /// How much to remember of a queue.
    pub ready: ReadyLimits,
    /// Messages of a page.
    pub page: usize,
    /// Queues that are remembered although nobody wants anything of them.
    pub queues_max: usize,
    /// Write a line for each look at the store.
    pub trace: Option<fn(&str)>,
}

/// The time, both ways.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    /// For waiting.
    pub now: Moment,
    /// For what is in records, in milliseconds of Unix time.
    pub wall_ms: i64,
}

/// What the desk knows of a queue, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Consumers that wait.
    pub waiting: usize,
    /// Messages that can be delivered, as far as known.
    pub ready: usize,
    /// Changes by other servers are listened to, because somebody waits.
    pub listening: bool,
}

/// What the desk asks of others. Whoever takes such a job owes the consumer an answer.
#[derive(Debug)]
pub enum QueueJob<C> {
    /// Try to deliver these messages.
    Deliver(Consumer<C>, Trial),
    /// This would be delivered next, as far as known.
    Head(Consumer<C>, Option<MessageId>, QueueCounts),
    /// There is nothing, and it does not wait (any longer).
    Empty(Consumer<C>),
    /// The store could not be looked at.
    Failed(Consumer<C>, Arc<Error>),
    /// The server drains.
    Refuse(Consumer<C>),
    /// Its client is gone: let go of it.
    Discard(Consumer<C>),
    /// Find out which of these clients are gone, and report them.
    CheckPeers(Vec<(ConsumerId, Peer)>),
}

impl<C> QueueJob<C> {
    /// The consumer that it is about, if it is about one.
    pub fn consumer(&self) -> Option<&Consumer<C>> {
        match self {
            Self::Deliver(consumer, _)
            | Self::Head(consumer, ..)
            | Self::Empty(consumer)
            | Self::Failed(consumer, _)
            | Self::Refuse(consumer)
            | Self::Discard(consumer) => Some(consumer),
            Self::CheckPeers(_) => None,
        }
    }
}

/// What follows from an event.
#[derive(Debug)]
pub struct Outbox<C> {
    /// For workers and streams.
    pub jobs: Vec<QueueJob<C>>,
    /// For the scanner.
    pub scans: Vec<ScanTask>,
}

impl<C> Default for Outbox<C> {
    fn default() -> Self {
        Self {
            jobs: Vec::new(),
            scans: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Patience(ConsumerId),
    Pace(ConsumerId, StreamId),
    Queue(QueueId),
}

/// All queues that somebody wants something of, or lately did.
pub(super) struct Desk<C> {
    limits: DeskLimits,
    sink: Arc<dyn TrialSink>,
    log: Logger,
    queues: HashMap<QueueId, Queue<C>>,
    whereabouts: HashMap<ConsumerId, QueueId>,
    due: BTreeSet<(Moment, Due)>,
    next_consumer: u64,
    uses: u64,
    next_peer_check: Option<Moment>,
    draining: bool,
}

impl<C: Parked> Desk<C> {
    pub(super) fn new(limits: DeskLimits, sink: Arc<dyn TrialSink>, log: Logger) -> Self {
        Self {
            limits,
            sink,
            log,
            queues: HashMap::new(),
            whereabouts: HashMap::new(),
            due: BTreeSet::new(),
            next_consumer: 0,
            uses: 0,
            next_peer_check: None,
            draining: false,
        }
    }

    /// Somebody comes and wants something.
    pub(super) fn ask(&mut self, mut consumer: Consumer<C>, time: Time, out: &mut Outbox<C>) {
        self.next_consumer += 1;
        consumer.id = ConsumerId(self.next_consumer);
        consumer.since = time.now;
        let looks = consumer.wish.looks;
        let (_, fresh, next_round) = self.open(&consumer.wish.queue);
        consumer.needs_round = if looks && !fresh { next_round } else { 0 };
        self.join(consumer, false, time, out);
    }

    /// Somebody was tried for and got nothing.
    pub(super) fn back(&mut self, consumer: Consumer<C>, time: Time, out: &mut Outbox<C>) {
        self.join(consumer, true, time, out);
    }

    fn join(&mut self, consumer: Consumer<C>, at_front: bool, time: Time, out: &mut Outbox<C>) {
        if self.draining && consumer.wish.purpose != Purpose::Head {
            out.jobs.push(QueueJob::Refuse(consumer));
            return;
        }
        let name = consumer.wish.queue.clone();
        let id = consumer.id;
        self.whereabouts.insert(id, name.clone());
        if let Patience::Until(deadline) = consumer.wish.patience {
            self.due.insert((deadline, Due::Patience(id)));
        }
        self.next_peer_check.get_or_insert(time.now.after(PEER_CHECK));
        self.open(&name);
        let Some(queue) = self.queues.get_mut(&name) else {
            return;
        };
        let page = match consumer.wish.purpose {
            Purpose::Take {
                count,
                stream: Some(stream),
            } => Some((stream, count)),
            _ => None,
        };
        match page.map(|(stream, count)| (stream, queue.credit.room(stream, count, time.now))) {
            Some((stream, Room::At(moment))) => {
                queue.line.step_aside(stream, consumer);
                self.due.insert((moment, Due::Pace(id, stream)));
            }
            _ if at_front => queue.line.push_front(consumer),
            _ => queue.line.push_back(consumer),
        }
        log::debug!(logger: self.log, target: SYS, namespace = name.namespace.as_str(), queue = name.queue.as_str(),
            waiters = queue.line.waiting(); "queue.dispatcher.waiter_added");
        self.turn(&name, time, out);
    }

    /// What came of messages that were suggested.
    pub(super) fn tried(
        &mut self,
        name: &QueueId,
        stream: Option<StreamId>,
        outcomes: &[(MessageId, Tried)],
        time: Time,
        out: &mut Outbox<C>,
    ) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        for (id, outcome) in outcomes {
            let found = match outcome {
                Tried::Delivered { until_ms } => {
                    if let Some(stream) = stream {
                        queue.credit.delivered(stream, *id, time.now);
                    }
                    Some(Found::From(*until_ms))
                }
                Tried::Found(found) => Some(*found),
                Tried::Faulty => Some(Found::From(time.wall_ms.saturating_add(millis(AFTER_FAULT)))),
                Tried::Untouched => None,
            };
            let mut lost: Vec<_> = queue.ready.tried(*id, found, time.wall_ms).into_iter().collect();
            if found == Some(Found::Gone) {
                lost.push(*id);
            }
            queue.settled(lost);
        }
        queue.poke_watchers();
        self.turn(name, time, out);
    }

    /// This server has written a message that can be delivered from this time on.
    pub(super) fn visible(&mut self, name: &QueueId, id: MessageId, from_ms: i64, time: Time, out: &mut Outbox<C>) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        let lost = queue.ready.heard(id, from_ms, time.wall_ms);
        queue.settled(lost);
        queue.poke_watchers();
        self.turn(name, time, out);
    }

    /// This server has removed a message, or found it removed.
    pub(super) fn removed(&mut self, name: &QueueId, id: MessageId, time: Time, out: &mut Outbox<C>) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        queue.ready.gone(id);
        queue.settled([id]);
        queue.poke_watchers();
        self.turn(name, time, out);
    }

    /// Whoever was given a message has finished with it, for good or for now.
    pub(super) fn settled(&mut self, name: &QueueId, id: MessageId, time: Time, out: &mut Outbox<C>) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        queue.settled([id]);
        self.turn(name, time, out);
    }

    /// Another server has changed these messages.
    pub(super) fn changed(&mut self, messages: &[(QueueId, MessageId)], time: Time, out: &mut Outbox<C>) {
        let mut names: Vec<&QueueId> = Vec::new();
        for (name, id) in messages {
            let Some(queue) = self.queues.get_mut(name) else {
                continue;
            };
            queue.ready.changed(*id);
            if names.last() != Some(&name) {
                names.push(name);
            }
        }
        for name in names {
            if let Some(queue) = self.queues.get_mut(name) {
                queue.poke_watchers();
            }
            self.turn(name, time, out);
        }
    }

    /// The scanner has done a task.
    pub(super) fn scanned(&mut self, scanned: Scanned, time: Time, out: &mut Outbox<C>) {
        let Scanned { task, outcome } = scanned;
        let name = &task.queue;
        let Some(queue) = self.queues.get_mut(name) else { return };
        queue.is_looking = false;
        match outcome {
            Ok(seen) => {
                log::trace!(logger: self.log, target: SYS, namespace = name.namespace.as_str(),
                    queue = name.queue.as_str(), seen = seen.found.len(); "queue.dispatcher.fetch.success");
                let frontier = queue.go_on(&task.what, &seen);
                let lost = queue.ready.merge(&seen.found, frontier, time.wall_ms);
                queue.settled(lost);
                if let Some(trace) = self.limits.trace {
                    trace(&format!(
                        "ready_cache refresh namespace={} queue={} seen={} ready={} hidden={} all={}",
                        name.namespace,
                        name.queue,
                        seen.found.len(),
                        queue.ready.ready_len(),
                        queue.ready.hidden_len(),
                        queue.ready.frontier() == Frontier::End
                    ));
                }
                queue.poke_watchers();
            }
            Err(fault) => {
                let unseen = match task.what {
                    ScanWhat::Messages(ids) => ids,
                    ScanWhat::Page { .. } => Vec::new(),
                };
                queue.ready.abort_look(unseen);
                queue.round = None;
                // Whoever is here has to make do with that; only who comes from now on is looked for at once.
                queue.rounds_begun = queue.rounds_begun.max(queue.line.latest_need());
                queue.rounds_done = queue.rounds_begun;
                queue.rest_until = Some(time.now.after(self.limits.poll.floor.max(AFTER_FAULT)));
                let detail = fault.to_string();
                log::warn!(logger: self.log, target: SYS, namespace = name.namespace.as_str(),
                    queue = name.queue.as_str(), error = detail; "queue.dispatcher.fetch.error");
                let fault = Arc::new(fault);
                for consumer in queue.line.pop_impatient(queue.rounds_done) {
                    self.whereabouts.remove(&consumer.id);
                    out.jobs.push(QueueJob::Failed(consumer, Arc::clone(&fault)));
                }
            }
        }
        self.turn(&task.queue, time, out);
    }

    /// A stream has ended.
    pub(super) fn stream_closed(&mut self, name: &QueueId, stream: StreamId) {
        if let Some(queue) = self.queues.get_mut(name) {
            queue.credit.closed(stream);
        }
    }

    /// Somebody wants a word whenever a queue may have changed.
    pub(super) fn watch(&mut self, name: &QueueId, number: u64, watcher: Sender<()>, time: Time, out: &mut Outbox<C>) {
        let (queue, ..) = self.open(name);
        queue.watchers.push((number, watcher));
        self.turn(name, time, out);
    }

    /// Not any more.
    pub(super) fn unwatch(&mut self, name: &QueueId, number: u64) {
        if let Some(queue) = self.queues.get_mut(name) {
            queue.watchers.retain(|(known, _)| *known != number);
        }
    }

    /// The clients of these consumers are not there any more.
    pub(super) fn gone(&mut self, ids: &[ConsumerId], out: &mut Outbox<C>) {
        for id in ids {
            if let Some(consumer) = self.take_out(*id) {
                log::trace!(logger: self.log, target: SYS, namespace = consumer.wish.queue.namespace.as_str(),
                    queue = consumer.wish.queue.queue.as_str(); "queue.dispatcher.wait.context_done");
                out.jobs.push(QueueJob::Discard(consumer));
            }
        }
    }

    /// From now on nobody waits, and nobody gets anything.
    pub(super) fn drain(&mut self, out: &mut Outbox<C>) {
        self.draining = true;
        for queue in self.queues.values_mut() {
            for consumer in queue.line.drain() {
                self.whereabouts.remove(&consumer.id);
                out.jobs.push(QueueJob::Refuse(consumer));
            }
        }
        self.due.retain(|(_, due)| matches!(due, Due::Queue(_)));
    }

    /// Does everything that is due.
    pub(super) fn tick(&mut self, time: Time, out: &mut Outbox<C>) {
        while let Some((at, _)) = self.due.first()
            && *at <= time.now
        {
            match self.due.pop_first() {
                Some((_, Due::Patience(id))) => {
                    let Some(mut consumer) = self.take_out(id) else {
                        continue;
                    };
                    consumer.wish.patience = Patience::None;
                    out.jobs.push(QueueJob::Empty(consumer));
                }
                Some((_, Due::Pace(id, stream))) => {
                    let Some(name) = self.whereabouts.get(&id).cloned() else {
                        continue;
                    };
                    let Some(queue) = self.queues.get_mut(&name) else {
                        continue;
                    };
                    queue.line.step_in(stream);
                    self.turn(&name, time, out);
                }
                Some((_, Due::Queue(name))) => {
                    if let Some(queue) = self.queues.get_mut(&name) {
                        queue.due = None;
                    }
                    self.turn(&name, time, out);
                }
                None => {}
            }
        }
        if self.next_peer_check.is_some_and(|at| at <= time.now) {
            let peers: Vec<_> = self.queues.values().flat_map(|queue| queue.line.peers()).collect();
            if !peers.is_empty() {
                out.jobs.push(QueueJob::CheckPeers(peers));
            }
            self.next_peer_check = (!self.whereabouts.is_empty()).then(|| time.now.after(PEER_CHECK));
        }
    }

    /// When [`tick`](Self::tick) has something to do next.
    pub(super) fn next_due(&self) -> Option<Moment> {
        let first = self.due.first().map(|(at, _)| *at);
        first.into_iter().chain(self.next_peer_check).min()
    }

    pub(super) fn queues(&self) -> impl Iterator<Item = (&QueueId, &Queue<C>)> {
        self.queues.iter()
    }

    /// How many consumers are with the desk.
    pub(super) fn len(&self) -> usize {
        self.whereabouts.len()
    }

    fn take_out(&mut self, id: ConsumerId) -> Option<Consumer<C>> {
        let name = self.whereabouts.remove(&id)?;
        self.queues.get_mut(&name)?.line.remove(id)
    }

    /// The queue of this name, whether it is fresh, and the number of the next round.
    fn open(&mut self, name: &QueueId) -> (&mut Queue<C>, bool, u64) {
        self.uses += 1;
        if !self.queues.contains_key(name) {
            self.forget_an_idle_queue();
            self.queues.insert(name.clone(), Queue::new(&self.limits));
        }
        let queue = self.queues.get_mut(name).expect("it was put there above");
        queue.used = self.uses;
        let (fresh, next_round) = (queue.is_fresh(&self.limits), queue.rounds_begun + 1);
        (queue, fresh, next_round)
    }

    fn forget_an_idle_queue(&mut self) {
        if self.queues.len() < self.limits.queues_max {
            return;
        }
        let idle = self.queues.iter().filter(|(_, queue)| queue.is_idle());
        let oldest = idle.min_by_key(|(_, queue)| queue.used).map(|(name, _)| name.clone());
        if let Some(queue) = oldest.as_ref().and_then(|name| self.queues.remove(name))
            && let (Some(due), Some(name)) = (queue.due, oldest)
        {
            self.due.remove(&(due, Due::Queue(name)));
        }
    }

    /// Whatever has happened to a queue: serves who can be served, looks at the store if that is called for, and notes
    /// when to come back.
    fn turn(&mut self, name: &QueueId, time: Time, out: &mut Outbox<C>) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        let due = queue.ready.promote(time.wall_ms);
        if !due.is_empty() {
            queue.settled(due);
            queue.poke_watchers();
        }
        self.serve(name, time, out);
        self.look(name, time, out);
        self.note_due(name, time);
    }

    /// Hands out what there is.
    fn serve(&mut self, name: &QueueId, time: Time, out: &mut Outbox<C>) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        while let Some(first) = queue.line.first()
            && 0 < queue.ready.ready_len()
        {
            let purpose = first.wish.purpose;
            let takers = queue.line.takers();
            let Some(mut consumer) = queue.line.pop_first() else {
                return;
            };
            let Purpose::Take { count, stream } = purpose else {
                self.whereabouts.remove(&consumer.id);
                let counts = queue.counts(&self.limits);
                out.jobs.push(QueueJob::Head(consumer, queue.ready.head(), counts));
                continue;
            };
            let room = stream.map_or(Room::Now(count), |stream| queue.credit.room(stream, count, time.now));
            let room = match (room, stream) {
                (Room::At(moment), Some(stream)) => {
                    self.due.insert((moment, Due::Pace(consumer.id, stream)));
                    queue.line.step_aside(stream, consumer);
                    continue;
                }
                (Room::At(_), None) => count,
                (Room::Now(room), _) => room,
            };
            let share = queue.ready.ready_len().div_ceil(takers.max(1));
            let ids = queue.ready.take(count.min(room).min(share).max(1));
            self.whereabouts.remove(&consumer.id);
            if let Patience::Until(deadline) = consumer.wish.patience {
                self.due.remove(&(deadline, Due::Patience(consumer.id)));
            }
            log::debug!(logger: self.log, target: SYS, namespace = name.namespace.as_str(),
                queue = name.queue.as_str(), candidates = ids.len(); "queue.dispatcher.deliver.to_waiter");
            consumer.has_waited |= consumer.since < time.now;
            let trial = Trial::new(name.clone(), stream, ids, Arc::clone(&self.sink));
            out.jobs.push(QueueJob::Deliver(consumer, trial));
        }
        if 0 < queue.ready.ready_len() {
            return;
        }
        for consumer in queue.line.pop_impatient(queue.rounds_done) {
            self.whereabouts.remove(&consumer.id);
            out.jobs.push(match consumer.wish.purpose {
                Purpose::Head => QueueJob::Head(consumer, None, queue.counts(&self.limits)),
                Purpose::Take { .. } => QueueJob::Empty(consumer),
            });
        }
    }

    /// Begins a round, goes on with one, or ends it.
    fn look(&mut self, name: &QueueId, time: Time, out: &mut Outbox<C>) {
        loop {
            let Some(queue) = self.queues.get_mut(name) else { return };
            if queue.is_looking {
                return;
            }
            if queue.round.is_none() {
                let is_poll = queue.poll_due(&self.limits).is_some_and(|due| due <= time.now);
                if !is_poll && !queue.wants_a_round(time.now) {
                    return;
                }
                queue.begin_round(&self.limits, is_poll, time.now);
                if is_poll {
                    log::trace!(logger: self.log, target: SYS, namespace = name.namespace.as_str(),
                        queue = name.queue.as_str(), waiters = queue.line.waiting(); "queue.dispatcher.poll.begin");
                }
            }
            let Some(round) = &queue.round else { return };
            let was_poll = round.is_poll;
            let somebody_wants = !queue.line.is_empty() || (was_poll && !queue.watchers.is_empty());
            // Who reads on while the first consumers are busy spares the next ones the wait.
            let reads_on = (1..HIGH_WATER_PAGES * self.limits.page).contains(&queue.ready.ready_len())
                && queue.ready.frontier() != Frontier::End;
            if !somebody_wants && !reads_on {
                queue.round = None;
                return;
            }
            let task = queue.next_task(self.limits.page);
            if let Some(what) = task {
                queue.is_looking = true;
                let queue = name.clone();
                out.scans.push(ScanTask { queue, what });
                return;
            }
            queue.round = None;
            queue.rounds_done = queue.rounds_begun;
            if was_poll {
                log::trace!(logger: self.log, target: SYS, namespace = name.namespace.as_str(),
                    queue = name.queue.as_str(), ready = queue.ready.ready_len(); "queue.dispatcher.poll.complete");
            }
            self.serve(name, time, out);
        }
    }

    fn note_due(&mut self, name: &QueueId, time: Time) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        let mut due = None;
        let mut consider = |moment: Moment| due = Some(due.map_or(moment, |due: Moment| due.min(moment)));
        if queue.has_company()
            && let Some(from_ms) = queue.ready.next_due()
        {
            let left_ms = u64::try_from(from_ms.saturating_sub(time.wall_ms)).unwrap_or(0);
            consider(time.now.after(Duration::from_millis(left_ms).min(RECHECK)));
        }
        if queue.round.is_none() && !queue.is_looking {
            if let Some(moment) = queue.poll_due(&self.limits) {
                consider(moment);
            }
            if let Some(rest_until) = queue.rest_until.filter(|until| time.now < *until)
                && !queue.line.is_empty()
            {
                consider(rest_until);
            }
        }
        if due != queue.due {
            if let Some(old) = std::mem::replace(&mut queue.due, due) {
                self.due.remove(&(old, Due::Queue(name.clone())));
            }
            if let Some(due) = due {
                self.due.insert((due, Due::Queue(name.clone())));
            }
        }
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
