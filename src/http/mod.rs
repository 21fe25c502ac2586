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

pub mod edge;
mod exchange;
pub mod intake;
mod lease;
mod namespace;
mod reply;
pub mod request;
mod route;
mod state;
mod usher;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use lockd_client::wire::codes;
use tiny_http::Request;

use crate::dispatch::{Dispatcher, Job};
use crate::ids::IdMaker;
use crate::keys::Namespace;
use crate::lease::rules::Now;
use crate::lease::{Leases, Wanted};
use crate::namespace::Namespaces;
use crate::record::KeyRecord;
use crate::state::States;
use crate::store::Store;
use edge::{Edge, UnderWay};
use exchange::Exchange;
pub use lease::ParkedAcquire;
use lease::WaitingAcquire;
use reply::{BadRequest, Failure, Reply, busy};
use route::{NoRoute, Route, route};

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
    /// Whoever waits.
    pub dispatcher: Dispatcher<ParkedAcquire>,
    /// Ids for keys and correlation.
    pub ids: Arc<IdMaker>,
    /// The store, asked for its health alone.
    pub store: Arc<dyn Store>,
    /// Bounds.
    pub limits: HttpLimits,
    /// Uploads under way.
    pub uploads: Uploads,
}

/// Bounds how many workers may be busy with reading large bodies, so that slow uploads leave workers for the others.
#[derive(Debug)]
pub struct Uploads {
    under_way: AtomicUsize,
    max: usize,
}

/// A body of up to so many bytes is here before the worker is: no need to count it.
const SMALL_BODY_BYTES: u64 = 1024;

impl Uploads {
    /// At most so many at the same time.
    pub fn new(max: usize) -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            max,
        }
    }

    fn enter(&self, announced_length: Option<u64>) -> Option<UploadPermit<'_>> {
        if announced_length.is_some_and(|length| length <= SMALL_BODY_BYTES) {
            return Some(UploadPermit(None));
        }
        if self.max <= self.under_way.fetch_add(1, Ordering::SeqCst) {
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        Some(UploadPermit(Some(self)))
    }
}

struct UploadPermit<'a>(Option<&'a Uploads>);

impl Drop for UploadPermit<'_> {
    fn drop(&mut self) {
        if let Some(uploads) = self.0 {
            uploads.under_way.fetch_sub(1, Ordering::SeqCst);
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
}

/// A lease on its way to its holder.
struct Grant {
    reply: Reply,
    wanted: Wanted,
    granted: KeyRecord,
}

/// What the workers take from their channel.
enum Work {
    Request(Box<Request>, UnderWay),
    Job(Box<Job<ParkedAcquire>>),
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

    /// Queues a job of the dispatcher.
    pub fn push_job(&self, job: Job<ParkedAcquire>) {
        // The receiver lives in this very value.
        let _ = self.sender.send(Work::Job(Box::new(job)));
    }

    /// Tells one worker to stop once everything queued before is done.
    pub fn push_stop(&self) {
        let _ = self.sender.send(Work::Stop);
    }
}

impl Default for WorkQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl Service {
    /// Takes a request from the intake: queues it for the workers, or sheds it when too many wait already.
    pub fn take(&self, queue: &WorkQueue, request: Request) {
        let under_way = self.edge.enter();
        if self.limits.queued_max <= queue.queued.load(Ordering::Relaxed) {
            let exchange = self.exchange(request, under_way);
            // A client that does not hear of it comes back all the same.
            let _ = exchange.answer(&self.edge, busy(codes::SERVER_BUSY, "too many requests are waiting", 1));
            return;
        }
        queue.queued.fetch_add(1, Ordering::Relaxed);
        let _ = queue.sender.send(Work::Request(Box::new(request), under_way));
    }

    /// Works until told to stop. Each worker thread runs this.
    pub fn work(&self, queue: &WorkQueue) {
        while let Ok(work) = queue.receiver.recv() {
            match work {
                Work::Stop => return,
                Work::Request(request, under_way) => {
                    queue.queued.fetch_sub(1, Ordering::Relaxed);
                    self.unless_it_panics(|| self.serve(*request, under_way));
                }
                Work::Job(job) => self.unless_it_panics(|| self.do_job(*job)),
            }
        }
    }

    /// A panic costs the request that caused it, not the worker.
    fn unless_it_panics(&self, work: impl FnOnce()) {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
            log::error!(logger: self.edge.log, target: "api.http.server", "http.request.panic");
        }
    }

    fn exchange(&self, request: Request, under_way: UnderWay) -> Exchange {
        Exchange::new(request, under_way, self.edge.clock.now(), || self.ids.uuid())
    }

    fn serve(&self, request: Request, under_way: UnderWay) {
        let mut exchange = self.exchange(request, under_way);
        let (operation, outcome) = self.handle(&mut exchange);
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

    fn handle(&self, exchange: &mut Exchange) -> (&'static str, Result<Next, Failure>) {
        if !exchange.has_sound_framing() {
            return (
                "framing",
                Err(BadRequest::new(codes::INVALID_BODY, "Content-Length is not a length").into()),
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
            Ok(Route::Health) => ("health", Ok(Next::Reply(Reply::empty(200)))),
            Ok(Route::Ready) => {
                let ready = !self.edge.is_draining() && self.store.healthy();
                ("ready", Ok(Next::Reply(Reply::empty(if ready { 200 } else { 503 }))))
            }
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

    fn failure_reply(&self, failure: Failure, operation: &'static str, correlation_id: &str) -> Reply {
        let is_fault = failure.is_fault();
        let error = match &failure {
            Failure::Bad(bad) => bad.detail.clone(),
            Failure::Domain(error) => error.to_string(),
        };
        let level = if is_fault { log::Level::Error } else { log::Level::Debug };
        log::log!(logger: self.edge.log, target: "api.http.server", level, operation, error,
            cid = correlation_id; "http.request.failed");
        failure.into_reply(Now {
            ms: self.edge.clock.wall_ms(),
        })
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
