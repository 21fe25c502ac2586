//! The dispatcher: one thread that owns everything that waits.
//!
//! A request that cannot be answered yet is parked here and holds no thread. The dispatcher hears of events (a request
//! parks, a lease ends, a message is enqueued, a client is gone, the drain begins), knows what is due next, and hands jobs
//! to the workers: "try again, it may be yours now", "deliver these", "time is up". It never calls a store and never writes
//! to a socket. It only suggests: the worker's conditional write decides, so a wrong suggestion costs a retry and no
//! promise.
//!
//! ```text
//!  workers --Event--> [channel] --> dispatcher thread --Job, QueueJob--> workers, streams
//!                         ^              |
//!                         +-- Scanned -- scanner thread: pages of a queue, when somebody wants something of it
//! ```
//!
//! | file | |
//! |---|---|
//! | `waiters` | requests that wait for keys |
//! | `desk` | who gets which message suggested, and when a queue is looked at |
//! | `one_queue` | one queue there, and the rounds in which it is looked at |
//! | `ready` | what is known of a queue's messages |
//! | `consumers` | who wants messages, in which order |
//! | `credit` | how much a stream may have unacknowledged |
//! | `poll` | when a queue is polled |
//! | `trial` | messages that were suggested, until it is known what came of them |
//! | `scanner` | the thread that looks at the store |
//! | `survey` | how queues are doing, for people |
//!
//! Invariants: the state in `waiters` and `desk` is touched by the dispatcher thread alone. Sending a job never blocks. A
//! panic here stops the daemon rather than leaving it half alive.

mod consumers;
mod credit;
mod desk;
mod one_queue;
mod poll;
mod ready;
mod scanner;
mod survey;
mod trial;
mod waiters;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, process};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use parking_lot::RwLock;

pub use consumers::{Consumer, ConsumerId, Patience, Purpose, Seat, Seats, Wish};
pub use credit::StreamId;
pub use desk::{DeskLimits, QueueCounts, QueueJob};
pub use poll::PollLimits;
pub use ready::{Found, Frontier, ReadyLimits};
pub use scanner::{ScanTask, ScanWhat, Scanned, Seen, look_at};
pub use survey::{QueueLevels, Survey};
pub use trial::{Trial, TrialSink, Tried};
pub use waiters::WaitLimits;

use crate::clock::{Moment, SharedClock};
use crate::error::Error;
use crate::keys::{MessageId, QueueId};
use crate::logging::Logger;
use crate::net::peer::Peer;
use crate::news::Listener;
use crate::store::RecordKey;
use crate::threads;
use desk::{Desk, Outbox, Time};
use scanner::Scanner;
use waiters::Waiters;

/// How many queues the dispatcher remembers although nobody wants anything of them.
pub const QUEUES_REMEMBERED: usize = 1024;

/// A turn of the loop that takes longer than this is logged: everybody who waits has waited for it.
const SLOW_TURN: Duration = Duration::from_millis(50);

/// What the dispatcher must know of a request that it parks.
pub trait Parked: Send + 'static {
    /// The client's address, if it has one that can be checked.
    fn peer(&self) -> Option<Peer>;
}

/// Names a parked request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(u64);

/// A request that waits for a key.
#[derive(Debug)]
pub struct Waiter<P> {
    /// Its name.
    pub id: WaiterId,
    /// The record it waits for.
    pub key: RecordKey,
    /// When its patience ends; `None` is never.
    pub deadline: Option<Moment>,
    /// The request.
    pub parked: P,
}

/// Everything that can wake the dispatcher.
#[derive(Debug)]
enum Event<P, C> {
    Park {
        key: RecordKey,
        deadline: Option<Moment>,
        parked: P,
    },
    Tried {
        key: RecordKey,
        outcome: Outcome<P>,
    },
    LeaseEnded(RecordKey),
    Gone(Vec<WaiterId>),
    Drain,
    Stop,
    /// A consumer wants something.
    Ask(Box<Consumer<C>>),
    /// A consumer was tried for and got nothing.
    Back(Box<Consumer<C>>),
    /// What came of messages that were suggested.
    TriedMessages {
        queue: QueueId,
        stream: Option<StreamId>,
        outcomes: Vec<(MessageId, Tried)>,
    },
    /// This server has written a message.
    Visible {
        queue: QueueId,
        id: MessageId,
        from_ms: i64,
    },
    /// This server has removed a message.
    Removed(QueueId, MessageId),
    /// Whoever held a message has finished with it.
    Settled(QueueId, MessageId),
    /// Another server has changed messages.
    Changed(Vec<(QueueId, MessageId)>),
    Scanned(Box<Scanned>),
    StreamClosed(QueueId, StreamId),
    Watch {
        queue: QueueId,
        number: u64,
        watcher: Sender<()>,
    },
    Unwatch(QueueId, u64),
    /// Somebody wants to know how queues are doing, about this many of them.
    Survey(usize, Sender<Survey>),
    ConsumersGone(Vec<ConsumerId>),
}

/// What became of a waiter that was tried.
#[derive(Debug)]
pub enum Outcome<P> {
    /// It has its answer.
    Answered {
        /// When the key is held now (it was granted): until when. `None`: the next one may try at once.
        held_until: Option<Moment>,
    },
    /// The key is still held; the waiter goes back to the front.
    StillHeld {
        /// The waiter.
        waiter: Waiter<P>,
        /// Until when the key is held.
        until: Moment,
    },
}

/// What the dispatcher asks the workers to do.
#[derive(Debug)]
pub enum Job<P> {
    /// Try for this waiter, and report with [`Dispatcher::tried`] whatever comes of it.
    Try(Waiter<P>),
    /// Its patience is over: try a last time, then answer that the key is held.
    TimeUp(Waiter<P>),
    /// The server drains: answer so.
    Refuse(Waiter<P>),
    /// Its client is gone: let go of it.
    Discard(Waiter<P>),
    /// Find out which of these clients are gone, and report with [`Dispatcher::gone`].
    CheckPeers(Vec<(WaiterId, Peer)>),
}

/// Which keys somebody waits for. Written by the dispatcher, read by everybody who ends a lease or wants one.
#[derive(Debug, Default)]
pub struct WaitHint {
    count: AtomicUsize,
    keys: RwLock<HashSet<RecordKey>>,
    parked: AtomicUsize,
    consumers: AtomicUsize,
}

impl WaitHint {
    /// True when somebody waits for this key.
    pub fn contains(&self, key: &RecordKey) -> bool {
        self.count.load(Ordering::SeqCst) != 0 && self.keys.read().contains(key)
    }

    fn set_parked(&self, count: usize) {
        self.parked.store(count, Ordering::SeqCst);
    }

    fn insert(&self, key: &RecordKey) {
        let mut keys = self.keys.write();
        keys.insert(key.clone());
        self.count.store(keys.len(), Ordering::SeqCst);
    }

    fn remove(&self, key: &RecordKey) {
        let mut keys = self.keys.write();
        keys.remove(key);
        self.count.store(keys.len(), Ordering::SeqCst);
    }
}

/// The way to the dispatcher thread. Cheap to clone; sending never blocks. `P` are requests that wait for keys, `C` are
/// consumers of queues.
#[derive(Debug)]
pub struct Dispatcher<P, C> {
    events: Sender<Event<P, C>>,
    hint: Arc<WaitHint>,
}

impl<P, C> Clone for Dispatcher<P, C> {
    fn clone(&self) -> Self {
        Self {
            events: self.events.clone(),
            hint: Arc::clone(&self.hint),
        }
    }
}

impl<P: Parked, C: Parked> Dispatcher<P, C> {
    /// A dispatcher that is not running yet, and what [`Engine::start`] needs to run it.
    pub fn new(limits: WaitLimits, desk: DeskLimits, clock: SharedClock, log: Logger) -> (Self, Engine<P, C>) {
        let (events, inbox) = unbounded();
        let hint = Arc::new(WaitHint::default());
        let handle = Self {
            events,
            hint: Arc::clone(&hint),
        };
        let engine = Engine {
            inbox,
            waiters: Waiters::new(limits, hint),
            desk: Desk::new(desk, Arc::new(handle.clone()), Arc::clone(&log)),
            handle: handle.clone(),
            clock,
            log,
        };
        (handle, engine)
    }

    /// True when somebody waits for this key.
    pub fn has_waiters(&self, key: &RecordKey) -> bool {
        self.hint.contains(key)
    }

    /// How many requests are parked, for keys and for messages, without those that are being tried at this moment.
    pub fn waiting(&self) -> usize {
        self.hint.parked.load(Ordering::SeqCst) + self.hint.consumers.load(Ordering::SeqCst)
    }

    /// How many acquires are parked, and how many consumers of queues.
    pub fn parked(&self) -> (usize, usize) {
        let load = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        (load(&self.hint.parked), load(&self.hint.consumers))
    }

    /// How queues are doing: the fullest ones one by one, at most so many, and the others together. `None` when the
    /// dispatcher does not answer in time.
    pub fn survey(&self, queues_max: usize, patience: Duration) -> Option<Survey> {
        let (asker, answer) = bounded(1);
        self.send(Event::Survey(queues_max, asker));
        answer.recv_timeout(patience).ok()
    }

    /// Parks a request until its key may be free, its deadline passes or the server drains.
    pub fn park(&self, key: RecordKey, deadline: Option<Moment>, parked: P) {
        self.send(Event::Park { key, deadline, parked });
    }

    /// Reports what became of a waiter handed out with [`Job::Try`].
    pub fn tried(&self, key: RecordKey, outcome: Outcome<P>) {
        self.send(Event::Tried { key, outcome });
    }

    /// Reports clients that are not there any more.
    pub fn gone(&self, waiters: Vec<WaiterId>) {
        self.send(Event::Gone(waiters));
    }

    /// Somebody wants something of a queue. A [`QueueJob`] answers.
    pub fn ask(&self, consumer: Consumer<C>) {
        self.send(Event::Ask(Box::new(consumer)));
    }

    /// A consumer was tried for and got nothing: it wants what comes next, before others.
    pub fn ask_again(&self, consumer: Consumer<C>) {
        self.send(Event::Back(Box::new(consumer)));
    }

    /// Reports consumers whose clients are not there any more.
    pub fn consumers_gone(&self, consumers: Vec<ConsumerId>) {
        self.send(Event::ConsumersGone(consumers));
    }

    /// Whoever was given a message has finished with it, for good or for now.
    pub fn settled(&self, queue: QueueId, id: MessageId) {
        self.send(Event::Settled(queue, id));
    }

    /// Another server has changed these messages.
    pub fn changed(&self, messages: Vec<(QueueId, MessageId)>) {
        self.send(Event::Changed(messages));
    }

    /// A stream has ended.
    pub fn stream_closed(&self, queue: QueueId, stream: StreamId) {
        self.send(Event::StreamClosed(queue, stream));
    }

    /// From now on `watcher` gets a word whenever this queue may have changed, unless it has one already. Ends with
    /// [`unwatch`](Self::unwatch) by the same number.
    pub fn watch(&self, queue: QueueId, number: u64, watcher: Sender<()>) {
        self.send(Event::Watch { queue, number, watcher });
    }

    /// Ends a watch.
    pub fn unwatch(&self, queue: QueueId, number: u64) {
        self.send(Event::Unwatch(queue, number));
    }

    /// From now on nobody waits: all that are parked are refused, and so is whoever comes.
    pub fn drain(&self) {
        self.send(Event::Drain);
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.send(Event::Stop);
    }

    fn send(&self, event: Event<P, C>) {
        // The thread is gone only when the server has stopped; then a parked request dies with this event and its
        // connection is closed with the others.
        let _ = self.events.send(event);
    }
}

impl<P: Parked, C: Parked> Listener for Dispatcher<P, C> {
    fn lease_ended(&self, key: &RecordKey) {
        if self.hint.contains(key) {
            self.send(Event::LeaseEnded(key.clone()));
        }
    }

    fn visible(&self, queue: &QueueId, id: MessageId, visible_from_ms: i64) {
        self.send(Event::Visible {
            queue: queue.clone(),
            id,
            from_ms: visible_from_ms,
        });
    }

    fn gone(&self, queue: &QueueId, id: MessageId) {
        self.send(Event::Removed(queue.clone(), id));
    }
}

impl<P: Parked, C: Parked> TrialSink for Dispatcher<P, C> {
    fn tried(&self, queue: &QueueId, stream: Option<StreamId>, outcomes: Vec<(MessageId, Tried)>) {
        self.send(Event::TriedMessages {
            queue: queue.clone(),
            stream,
            outcomes,
        });
    }
}

/// The dispatcher's thread before it runs.
pub struct Engine<P, C> {
    inbox: Receiver<Event<P, C>>,
    waiters: Waiters<P>,
    desk: Desk<C>,
    handle: Dispatcher<P, C>,
    clock: SharedClock,
    log: Logger,
}

/// Does a task of the scanner.
pub type Look = Box<dyn Fn(&ScanTask) -> Result<Seen, Error> + Send>;

/// Where the dispatcher's jobs go. None of these may block.
pub struct HandOut<P, C> {
    /// Requests that wait for keys: to the workers.
    pub lease: Box<dyn Fn(Job<P>) + Send>,
    /// Consumers of queues: to the workers, or to the thread of a stream.
    pub queue: Box<dyn Fn(QueueJob<C>) + Send>,
    /// Does a task of the scanner, on its thread.
    pub look: Look,
}

impl<P: Parked, C: Parked> Engine<P, C> {
    /// Starts the thread, and the scanner's.
    pub fn start(mut self, hand_out: HandOut<P, C>) -> io::Result<JoinHandle<()>> {
        let HandOut { lease, queue, look } = hand_out;
        let handle = self.handle.clone();
        let scanner = Scanner::start(look, move |scanned| handle.send(Event::Scanned(Box::new(scanned))))?;
        threads::spawn("dispatcher", move || {
            let stops_the_daemon = StopOnPanic;
            self.run(&*lease, &*queue, &scanner);
            std::mem::forget(stops_the_daemon);
        })
    }

    fn run(&mut self, to_lease: &dyn Fn(Job<P>), to_queue: &dyn Fn(QueueJob<C>), scanner: &Scanner) {
        let (mut jobs, mut out) = (Vec::new(), Outbox::default());
        while let Some(event) = self.next_event() {
            let time = Time {
                now: self.clock.now(),
                wall_ms: self.clock.wall_ms(),
            };
            match event {
                Some(Event::Stop) => return,
                Some(event) => self.handle(event, time, &mut jobs, &mut out),
                None => {}
            }
            self.waiters.tick(time.now, &mut jobs);
            self.desk.tick(time, &mut out);
            self.handle.hint.consumers.store(self.desk.len(), Ordering::SeqCst);
            jobs.drain(..).for_each(to_lease);
            out.jobs.drain(..).for_each(to_queue);
            out.scans.drain(..).for_each(|task| scanner.push(task));
            let took = self.clock.now().since(time.now);
            if SLOW_TURN < took {
                let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                let waiting = self.waiters.len() + self.desk.len();
                log::warn!(logger: self.log, target: "queue.dispatcher.core", took_ms, waiting;
                    "dispatcher.turn.slow");
            }
        }
    }

    /// Waits for the next event or the next due time. `None`: nobody is left who could send one.
    fn next_event(&self) -> Option<Option<Event<P, C>>> {
        let due = self.waiters.next_due().into_iter().chain(self.desk.next_due()).min();
        let Some(due) = due else {
            return self.inbox.recv().ok().map(Some);
        };
        match self.inbox.recv_timeout(due.since(self.clock.now())) {
            Ok(event) => Some(Some(event)),
            Err(RecvTimeoutError::Timeout) => Some(None),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    fn handle(&mut self, event: Event<P, C>, time: Time, jobs: &mut Vec<Job<P>>, out: &mut Outbox<C>) {
        match event {
            Event::Park { key, deadline, parked } => self.waiters.park(key, deadline, parked, time.now, jobs),
            Event::Tried { key, outcome } => self.waiters.tried(&key, outcome, time.now, jobs),
            Event::LeaseEnded(key) => self.waiters.lease_ended(&key, jobs),
            Event::Gone(ids) => self.waiters.gone(&ids, jobs),
            Event::Drain => {
                self.waiters.drain(jobs);
                self.desk.drain(out);
            }
            Event::Ask(consumer) => self.desk.ask(*consumer, time, out),
            Event::Back(consumer) => self.desk.back(*consumer, time, out),
            Event::TriedMessages {
                queue,
                stream,
                outcomes,
            } => self.desk.tried(&queue, stream, &outcomes, time, out),
            Event::Visible { queue, id, from_ms } => self.desk.visible(&queue, id, from_ms, time, out),
            Event::Removed(queue, id) => self.desk.removed(&queue, id, time, out),
            Event::Settled(queue, id) => self.desk.settled(&queue, id, time, out),
            Event::Changed(messages) => self.desk.changed(&messages, time, out),
            Event::Scanned(scanned) => self.desk.scanned(*scanned, time, out),
            Event::StreamClosed(queue, stream) => self.desk.stream_closed(&queue, stream),
            Event::Watch { queue, number, watcher } => self.desk.watch(&queue, number, watcher, time, out),
            Event::Unwatch(queue, number) => self.desk.unwatch(&queue, number),
            // Whoever asked may have lost patience.
            Event::Survey(queues_max, asker) => drop(asker.send(self.desk.survey(queues_max))),
            Event::ConsumersGone(ids) => self.desk.gone(&ids, out),
            Event::Stop => {}
        }
    }
}

/// A dispatcher that panicked leaves every waiter without hope; the service manager starts a sound one.
struct StopOnPanic;

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        process::abort();
    }
}
