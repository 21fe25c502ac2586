//! The dispatcher: one thread that owns everything that waits.
//!
//! A request that cannot be answered yet is parked here and holds no thread. The dispatcher hears of events (a request
//! parks, a lease ends, a client is gone, the drain begins), knows what is due next, and hands jobs to the workers: "try
//! again, it may be yours now", "time is up". It never calls a store and never writes to a socket. It only suggests: the
//! worker's conditional write decides, so a wrong suggestion costs a retry and no promise.
//!
//! ```text
//!  workers --Event--> [channel] --> dispatcher thread --Job--> workers
//! ```
//!
//! Invariants: the state in `waiters` is touched by the dispatcher thread alone. Sending a job never blocks. A panic here
//! stops the daemon rather than leaving it half alive.

mod waiters;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, process};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use parking_lot::RwLock;

pub use waiters::WaitLimits;

use crate::clock::{Moment, SharedClock};
use crate::lease::table::LeaseEnds;
use crate::logging::Logger;
use crate::store::RecordKey;
use crate::threads;
use waiters::Waiters;

/// A turn of the loop that takes longer than this is logged: everybody who waits has waited for it.
const SLOW_TURN: Duration = Duration::from_millis(50);

/// What the dispatcher must know of a request that it parks.
pub trait Parked: Send + 'static {
    /// The client's address, if it has one that can be checked.
    fn peer(&self) -> Option<SocketAddr>;
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
enum Event<P> {
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
    CheckPeers(Vec<(WaiterId, SocketAddr)>),
}

/// Which keys somebody waits for. Written by the dispatcher, read by everybody who ends a lease or wants one.
#[derive(Debug, Default)]
pub struct WaitHint {
    count: AtomicUsize,
    keys: RwLock<HashSet<RecordKey>>,
    parked: AtomicUsize,
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

/// The way to the dispatcher thread. Cheap to clone; sending never blocks.
#[derive(Debug)]
pub struct Dispatcher<P> {
    events: Sender<Event<P>>,
    hint: Arc<WaitHint>,
}

impl<P> Clone for Dispatcher<P> {
    fn clone(&self) -> Self {
        Self {
            events: self.events.clone(),
            hint: Arc::clone(&self.hint),
        }
    }
}

impl<P: Parked> Dispatcher<P> {
    /// A dispatcher that is not running yet, and what [`Engine::start`] needs to run it.
    pub fn new(limits: WaitLimits, clock: SharedClock, log: Logger) -> (Self, Engine<P>) {
        let (events, inbox) = unbounded();
        let hint = Arc::new(WaitHint::default());
        let engine = Engine {
            inbox,
            waiters: Waiters::new(limits, Arc::clone(&hint)),
            clock,
            log,
        };
        (Self { events, hint }, engine)
    }

    /// True when somebody waits for this key.
    pub fn has_waiters(&self, key: &RecordKey) -> bool {
        self.hint.contains(key)
    }

    /// How many requests are parked, without those that are being tried at this moment.
    pub fn waiting(&self) -> usize {
        self.hint.parked.load(Ordering::SeqCst)
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

    /// From now on nobody waits: all that are parked are refused, and so is whoever comes.
    pub fn drain(&self) {
        self.send(Event::Drain);
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.send(Event::Stop);
    }

    fn send(&self, event: Event<P>) {
        // The thread is gone only when the server has stopped; then a parked request dies with this event and its
        // connection is closed with the others.
        let _ = self.events.send(event);
    }
}

impl<P: Parked> LeaseEnds for Dispatcher<P> {
    fn lease_ended(&self, key: &RecordKey) {
        if self.hint.contains(key) {
            self.send(Event::LeaseEnded(key.clone()));
        }
    }
}

/// The dispatcher's thread before it runs.
pub struct Engine<P> {
    inbox: Receiver<Event<P>>,
    waiters: Waiters<P>,
    clock: SharedClock,
    log: Logger,
}

impl<P: Parked> Engine<P> {
    /// Starts the thread. `hand_out` passes a job to the workers and never blocks.
    pub fn start(mut self, hand_out: impl Fn(Job<P>) + Send + 'static) -> io::Result<JoinHandle<()>> {
        threads::spawn("dispatcher", move || {
            let stops_the_daemon = StopOnPanic;
            self.run(&hand_out);
            std::mem::forget(stops_the_daemon);
        })
    }

    fn run(&mut self, hand_out: &dyn Fn(Job<P>)) {
        let mut jobs = Vec::new();
        while let Some(event) = self.next_event() {
            let began = self.clock.now();
            match event {
                Some(Event::Stop) => return,
                Some(event) => self.handle(event, began, &mut jobs),
                None => {}
            }
            self.waiters.tick(began, &mut jobs);
            jobs.drain(..).for_each(hand_out);
            let took = self.clock.now().since(began);
            if SLOW_TURN < took {
                let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                log::warn!(logger: self.log, target: "queue.dispatcher.core", took_ms, waiting = self.waiters.len();
                    "dispatcher.turn.slow");
            }
        }
    }

    /// Waits for the next event or the next due time. `None`: nobody is left who could send one.
    fn next_event(&self) -> Option<Option<Event<P>>> {
        let Some(due) = self.waiters.next_due() else {
            return self.inbox.recv().ok().map(Some);
        };
        match self.inbox.recv_timeout(due.since(self.clock.now())) {
            Ok(event) => Some(Some(event)),
            Err(RecvTimeoutError::Timeout) => Some(None),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    fn handle(&mut self, event: Event<P>, now: Moment, jobs: &mut Vec<Job<P>>) {
        match event {
            Event::Park { key, deadline, parked } => self.waiters.park(key, deadline, parked, now, jobs),
            Event::Tried { key, outcome } => self.waiters.tried(&key, outcome, now, jobs),
            Event::LeaseEnded(key) => self.waiters.lease_ended(&key, jobs),
            Event::Gone(ids) => self.waiters.gone(&ids, jobs),
            Event::Drain => self.waiters.drain(jobs),
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
