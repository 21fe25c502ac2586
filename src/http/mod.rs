//! The HTTP edge: the only floor that knows status codes and headers.
//!
//! ```text
//!  socket -> HTTP library (a thread per connection) -> intake -> [channel] -> workers -> handlers -> answer
//!                                                                   ^  |
//!                                                    dispatcher ----+  +---> dispatcher (must wait)
//! ```
//!
//! A worker takes a request, reads its body within bounds of size and time, calls one short handler and writes the
//! answer. A handler that finds that its caller must wait hands the way back to the dispatcher and forgets the request.

mod chunked;
mod crew;
mod cut;
mod delivery;
mod dequeue;
pub mod edge;
mod exchange;
pub mod intake;
mod lease;
pub mod multipart;
mod namespace;
mod queue;
mod readers;
mod reply;
mod report;
pub mod request;
mod responder;
mod route;
pub mod scrape;
mod state;
mod stats;
mod subscribe;
pub mod tally;
mod turns;
mod usher;
mod watch;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use lockd_client::wire::codes;
use parking_lot::Mutex;
use tiny_http::Request;

use crate::clock::Moment;
use crate::dispatch::{Dispatcher, Job, QueueJob, Seats};
use crate::error::Error;
use crate::ids::IdMaker;
use crate::keys::{Namespace, QueueId};
use crate::lease::rules::Now;
use crate::lease::{Leases, TtlLimits, Wanted};
use crate::metrics::Counter;
use crate::namespace::Namespaces;
use crate::net::peer::Peer;
use crate::queue::Queues;
use crate::record::KeyRecord;
use crate::state::States;
use crate::store::Store;
pub use dequeue::ParkedConsumer;
use dequeue::{Guest, WantedMessages};
use edge::Edge;
use exchange::{Body, Exchange};
pub use lease::ParkedAcquire;
use lease::WaitingAcquire;
use reply::{BadRequest, Failure, Reply, busy};
use responder::Responder;
use route::{NoRoute, Route, route};
pub use subscribe::Streams;
use turns::{Incoming, Place, Turn, Turns};

/// A client that has sent its last byte and waits for nothing is left alone by the HTTP library within this time, or never.
const STUCK_AFTER: Duration = Duration::from_secs(3);
const STUCK_LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bounds that requests meet.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Used when a request names no namespace.
    pub default_namespace: Namespace,
    /// Largest JSON body and largest submitted state, in bytes.
    pub json_bytes_max: u64,
    /// Zero: nobody waits for a lease.
    pub acquire_block: Duration,
    /// How many requests may wait for a worker before new ones are shed.
    pub queued_max: usize,
}

/// Everything that handlers use. One per server, shared by its workers.
pub struct Service {
    /// Phase, date, sockets.
    pub edge: Arc<Edge>,
    /// Leases.
    pub leases: Leases,
    /// States.
    pub states: States,
    /// Namespace configurations.
    pub namespaces: Namespaces,
    /// Queues.
    pub messages: QueueParts,
    /// Whoever waits.
    pub dispatcher: Dispatcher<ParkedAcquire, ParkedConsumer>,
    /// Ids for keys and correlation.
    pub ids: Arc<IdMaker>,
    /// The store, asked for its health alone.
    pub store: Arc<dyn Store>,
    /// Bounds.
    pub limits: HttpLimits,
    /// The requests of each connection.
    pub turns: Arc<Turns>,
    /// Where workers find what to do.
    pub queue: WorkQueue,
    /// Clients that seem to be forgotten.
    pub half_closed: Mutex<HalfClosed>,
}

/// What the handlers of queues use.
pub struct QueueParts {
    /// Messages.
    pub queues: Queues,
    /// How many consumers there may be.
    pub seats: Arc<Seats>,
    /// Bounds of the life of a message's lease.
    pub visibility: TtlLimits,
    /// Changes by other servers are heard of.
    pub feed: bool,
    /// The threads of subscriptions and watches.
    pub streams: Streams,
    /// Looks at the store for the dispatcher.
    pub scans: Counter,
}

/// Clients that have sent their last byte and have no request under treatment.
#[derive(Debug)]
pub struct HalfClosed {
    looked: Moment,
    since: HashMap<SocketAddr, Moment>,
}

impl Default for HalfClosed {
    fn default() -> Self {
        Self {
            looked: Moment::ZERO,
            since: HashMap::new(),
        }
    }
}

/// What a handler wants to happen next.
enum Next {
    /// Answer so.
    Reply(Reply),
    /// A lease was granted: answer so, and take it back if the answer cannot be delivered.
    Grant(Box<Grant>),
    /// The key is held: wait.
    Park(WaitingAcquire),
    /// Answer so, under this correlation id.
    Correlated(Reply, Arc<str>),
    /// Wait for messages.
    Wait(Box<WantedMessages>),
    /// Ask for what is known of a queue.
    Stats(QueueId),
    /// Tell of the changes of a queue.
    Watch(QueueId),
}

/// A lease on its way to its holder.
struct Grant {
    reply: Reply,
    wanted: Wanted,
    granted: KeyRecord,
}

/// What the workers take from their channel.
enum Work {
    /// A request that has its turn.
    Request(Box<Incoming>, Turn),
    Job(Box<Job<ParkedAcquire>>),
    QueueJob(Box<QueueJob<ParkedConsumer>>),
    /// A request of a connection that has been ended.
    Discard(Box<Incoming>),
    /// A client that sends without end.
    CutOff(SocketAddr),
    /// Clients that wait for an answer and send nothing.
    EndReading(Vec<Peer>),
    Stop,
}

/// The channel between whoever has work and the workers.
///
/// Requests are bounded by a count, jobs by the number of parked requests: the channel itself never blocks a sender,
/// which the dispatcher relies on.
#[derive(Clone)]
pub struct WorkQueue {
    sender: Sender<Work>,
    receiver: Receiver<Work>,
    queued: Arc<AtomicUsize>,
}

impl WorkQueue {
    /// An empty queue.
    pub fn new() -> Self {
        let (sender, receiver) = unbounded();
        Self {
            sender,
            receiver,
            queued: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// The requests of connections, those whose turn it is going into this queue.
    pub fn turns(&self) -> Arc<Turns> {
        let queue = self.clone();
        Turns::new(move |incoming, turn| queue.push_request(incoming, turn))
    }

    /// How many requests wait for a worker.
    fn len(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    fn push_request(&self, incoming: Incoming, turn: Turn) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        self.push(Work::Request(Box::new(incoming), turn));
    }

    fn push(&self, work: Work) {
        // The receiver lives in this very value.
        let _ = self.sender.send(work);
    }

    /// Drops what is left when nobody works any more. What follows from that is dropped as well.
    pub fn clear(&self) {
        while let Ok(work) = self.receiver.try_recv() {
            drop(work);
        }
    }

    /// Queues a job of the dispatcher.
    pub fn push_job(&self, job: Job<ParkedAcquire>) {
        self.push(Work::Job(Box::new(job)));
    }

    /// Queues a job of the dispatcher for a consumer, or hands it to the thread that waits for it.
    pub fn push_queue_job(&self, job: QueueJob<ParkedConsumer>) {
        let mailbox = match job.consumer().map(|consumer| &consumer.parked.0) {
            Some(Guest::Thread { mailbox, .. }) => Some(mailbox.clone()),
            _ => None,
        };
        match mailbox {
            // A thread that has ended wants nothing any more; what was suggested to it reports itself untouched.
            Some(mailbox) => drop(mailbox.send(job)),
            None => self.push(Work::QueueJob(Box::new(job))),
        }
    }

    /// Tells one worker to stop once everything queued before is done.
    pub fn push_stop(&self) {
        self.push(Work::Stop);
    }
}

impl Default for WorkQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl Service {
    /// Takes a request from the intake: queues it for the workers, or sheds it when too many wait already.
    pub fn take(&self, request: Request) {
        let incoming = Incoming::new(request, self.edge.enter());
        let peer = incoming.peer();
        match (self.turns.enter(incoming, |peer| self.edge.mark(peer)), peer) {
            (Place::First(incoming, turn), _) => self.admit(incoming, turn),
            (Place::Waits { is_too_long: true }, Some(peer)) => self.queue.push(Work::CutOff(peer)),
            (Place::Waits { .. }, _) => {}
            (Place::Ended(incoming), _) if self.edge.is_gone(peer) => {
                self.queue.push(Work::Discard(Box::new(incoming)));
            }
            // The client has connected anew from the same port.
            (Place::Ended(incoming), peer) => {
                peer.into_iter().for_each(|peer| self.turns.renew(peer));
                if let Place::First(incoming, turn) = self.turns.enter(incoming, |_| None) {
                    self.admit(incoming, turn);
                }
            }
        }
    }

    /// Ends connections that the HTTP library has forgotten.
    ///
    /// It does so with a request of a version above 1.1: its thread waits for itself and notices nothing any more, neither
    /// further requests nor the end of the connection. From outside that shows once the client has given up: a thread in
    /// its right mind sees that within moments and closes the connection. The stuck thread cannot be helped.
    fn cut_stuck_connections(&self) {
        let now = self.edge.clock.now();
        let mut seen = self.half_closed.lock();
        if now.since(seen.looked) < STUCK_LOOK_EVERY {
            return;
        }
        seen.looked = now;
        let before = std::mem::take(&mut seen.since);
        for peer in self.edge.half_closed() {
            if !self.turns.is_taken(peer) {
                seen.since.insert(peer, before.get(&peer).copied().unwrap_or(now));
            }
        }
        let is_stuck = |since: &Moment| STUCK_AFTER <= now.since(*since);
        let stuck: Vec<_> = (seen.since.iter())
            .filter(|(_, since)| is_stuck(since))
            .map(|(peer, _)| *peer)
            .collect();
        // Those that were not accepted yet are not found.
        let count = self.edge.sever(&stuck);
        if count != 0 {
            log::warn!(logger: self.edge.log, target: "api.http.server", count; "http.connection.stuck");
        }
    }

    fn admit(&self, incoming: Incoming, turn: Turn) {
        let is_full = self.limits.queued_max <= self.queue.len();
        // Who still has to send a body can be refused by a worker alone.
        if !is_full || Body::of(&incoming.request) != Body::Here {
            return self.queue.push_request(incoming, turn);
        }
        // A client that does not hear of it comes back all the same.
        let reply = busy(codes::SERVER_BUSY, "too many requests are waiting", 1);
        let _ = self.exchange(incoming, turn).answer(&self.edge, reply);
    }

    /// Works until told to stop. Each worker thread runs this.
    pub fn work(self: &Arc<Self>) {
        while let Ok(work) = self.queue.receiver.recv() {
            if !self.do_work(work) {
                return;
            }
        }
    }

    /// Works until told to stop, or until there is too little to do. Each replacement of a worker runs this.
    pub fn help_out(self: &Arc<Self>) {
        loop {
            let goes_on = match self.queue.receiver.recv_timeout(crew::IDLE_MAX) {
                Ok(work) => self.do_work(work),
                Err(RecvTimeoutError::Timeout) => !self.edge.crew.may_go(),
                Err(RecvTimeoutError::Disconnected) => false,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// False: stop.
    fn do_work(self: &Arc<Self>, work: Work) -> bool {
        match work {
            Work::Stop => return false,
            Work::Request(incoming, turn) => {
                self.queue.queued.fetch_sub(1, Ordering::Relaxed);
                self.unless_it_panics(|| self.serve(*incoming, turn));
            }
            Work::Job(job) => self.unless_it_panics(|| self.do_job(*job)),
            Work::QueueJob(job) => self.unless_it_panics(|| self.do_queue_job(*job)),
            Work::Discard(incoming) => drop(incoming),
            Work::CutOff(peer) => {
                self.edge.sever(&[peer]);
            }
            Work::EndReading(peers) => self.unless_it_panics(|| self.end_reading(&peers)),
        }
        true
    }

    /// A panic costs the request that caused it, not the worker.
    fn unless_it_panics(&self, work: impl FnOnce()) {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
            log::error!(logger: self.edge.log, target: "api.http.server", "http.request.panic");
        }
    }

    fn exchange(&self, incoming: Incoming, turn: Turn) -> Exchange {
        Exchange::new(incoming, turn, self.edge.clock.now(), || self.ids.uuid())
    }

    fn serve(self: &Arc<Self>, incoming: Incoming, turn: Turn) {
        let mut exchange = self.exchange(incoming, turn);
        let (operation, outcome) = if self.edge.is_shut() {
            // Its connection is being cut. A client that still hears this tries another server.
            let reply = busy(codes::NODE_PASSIVE, "the server has stopped", 1);
            ("stopped", Ok(Next::Reply(reply)))
        } else {
            self.handle(&mut exchange)
        };
        let delivered = match outcome {
            Ok(Next::Reply(reply)) => exchange.answer(&self.edge, reply),
            Ok(Next::Park(waiting)) => match exchange.into_responder() {
                Ok(responder) => {
                    self.park(responder, waiting);
                    Ok(())
                }
                Err(unread) => unread.answer(&self.edge, Reply::error(400, codes::INVALID_BODY, "unread body")),
            },
            Ok(Next::Grant(grant)) => match exchange.into_responder() {
                Ok(responder) => {
                    self.deliver(responder, grant.reply, &grant.wanted, &grant.granted);
                    Ok(())
                }
                Err(unread) => unread.answer(&self.edge, grant.reply),
            },
            Ok(Next::Correlated(reply, correlation_id)) => self.with_responder(exchange, |mut responder| {
                responder.correlate(&correlation_id);
                responder.answer(&self.edge, reply)
            }),
            Ok(Next::Wait(wanted)) => self.with_responder(exchange, |responder| {
                self.wait_for_messages(responder, *wanted);
                Ok(())
            }),
            Ok(Next::Stats(queue)) => self.with_responder(exchange, |responder| {
                self.wait_for_stats(responder, queue);
                Ok(())
            }),
            Ok(Next::Watch(queue)) => self.with_responder(exchange, |responder| {
                self.start_watch(responder, queue);
                Ok(())
            }),
            Err(failure) => {
                let reply = self.failure_reply(failure, operation, exchange.correlation_id());
                exchange.answer(&self.edge, reply)
            }
        };
        if let Err(cause) = delivered {
            let error = cause.to_string();
            log::debug!(logger: self.edge.log, target: "api.http.server", operation, error; "http.answer.undelivered");
        }
    }

    /// Goes on with the way back of a request whose body was read.
    fn with_responder(
        &self,
        exchange: Exchange,
        go_on: impl FnOnce(Responder) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        match exchange.into_responder() {
            Ok(responder) => go_on(responder),
            Err(unread) => unread.answer(&self.edge, Reply::error(400, codes::INVALID_BODY, "unread body")),
        }
    }

    fn handle(&self, exchange: &mut Exchange) -> (&'static str, Result<Next, Failure>) {
        if !exchange.has_sound_framing() {
            return (
                "framing",
                Err(BadRequest::new(codes::INVALID_BODY, "nobody knows where the body ends").into()),
            );
        }
        match route(exchange.method(), exchange.path()) {
            Ok(Route::Acquire) => ("acquire", lease::acquire(self, exchange)),
            Ok(Route::Keepalive) => ("keepalive", lease::keepalive(self, exchange)),
            Ok(Route::Release) => ("release", lease::release(self, exchange)),
            Ok(Route::Get) => ("get", state::get(self, exchange)),
            Ok(Route::Update) => ("update", state::update(self, exchange)),
            Ok(Route::Metadata) => ("metadata", state::metadata(self, exchange)),
            Ok(Route::Remove) => ("remove", state::remove(self, exchange)),
            Ok(Route::Describe) => ("describe", state::describe(self, exchange)),
            Ok(Route::NamespaceGet) => ("namespace", namespace::read(self, exchange)),
            Ok(Route::NamespaceSet) => ("namespace", namespace::set(self, exchange)),
            Ok(Route::Enqueue) => ("enqueue", queue::enqueue(self, exchange)),
            Ok(Route::Dequeue(call)) => ("dequeue", dequeue::dequeue(self, exchange, call)),
            Ok(Route::Ack) => ("ack", queue::ack(self, exchange)),
            Ok(Route::Nack) => ("nack", queue::nack(self, exchange)),
            Ok(Route::Extend) => ("extend", queue::extend(self, exchange)),
            Ok(Route::QueueStats) => ("stats", stats::stats(self, exchange)),
            Ok(Route::QueueWatch) => ("watch", watch::watch(self, exchange)),
            Ok(Route::Health) => ("health", Ok(Next::Reply(Reply::empty(200)))),
            Ok(Route::Ready) => (
                "ready",
                Ok(Next::Reply(Reply::empty(if self.is_ready() { 200 } else { 503 }))),
            ),
            Err(NoRoute::UnknownPath) => (
                "unknown",
                Ok(Next::Reply(Reply::error(
                    404,
                    codes::NOT_FOUND,
                    "there is no such endpoint",
                ))),
            ),
            Err(NoRoute::WrongMethod(allow)) => {
                let reply = Reply::error(405, codes::METHOD_NOT_ALLOWED, format!("this endpoint takes {allow}"));
                ("unknown", Ok(Next::Reply(reply.with("Allow", allow))))
            }
        }
    }

    /// True while new work is welcome: the server does not drain, and its store serves.
    pub fn is_ready(&self) -> bool {
        !self.edge.is_draining() && self.store.healthy()
    }

    fn failure_reply(&self, failure: Failure, operation: &'static str, correlation_id: &str) -> Reply {
        let (error, reply) = match failure {
            Failure::Domain(error) => return self.error_reply(&error, operation, correlation_id),
            Failure::Bad(bad) => {
                let error = bad.detail.clone();
                (error, Reply::error(bad.status, bad.code, bad.detail))
            }
            Failure::Busy(detail) => (detail.to_owned(), busy(codes::SERVER_BUSY, detail, 1)),
        };
        log::debug!(logger: self.edge.log, target: "api.http.server", operation, error, cid = correlation_id;
            "http.request.failed");
        reply
    }

    fn error_reply(&self, error: &Error, operation: &'static str, correlation_id: &str) -> Reply {
        let level = if reply::is_fault(error) {
            log::Level::Error
        } else {
            log::Level::Debug
        };
        let detail = error.to_string();
        log::log!(logger: self.edge.log, target: "api.http.server", level, operation, error = detail,
            cid = correlation_id; "http.request.failed");
        let now = Now {
            ms: self.edge.clock.wall_ms(),
        };
        reply::domain_reply(error, now)
    }

    fn do_job(&self, job: Job<ParkedAcquire>) {
        match job {
            Job::Try(waiter) => self.try_parked(waiter),
            Job::TimeUp(waiter) => self.time_up(waiter),
            Job::Refuse(waiter) => self.refuse_parked(waiter),
            Job::Discard(waiter) => waiter.parked.responder.abandon(),
            Job::CheckPeers(peers) => {
                let addresses: Vec<_> = peers.iter().map(|(_, address)| *address).collect();
                let gone = self.edge.gone_among(&addresses);
                if !gone.is_empty() {
                    let gone: std::collections::HashSet<_> = gone.into_iter().collect();
                    let waiters = peers.into_iter().filter(|(_, address)| gone.contains(address));
                    self.dispatcher.gone(waiters.map(|(id, _)| id).collect());
                }
            }
        }
    }
}
