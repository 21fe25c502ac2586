//! The daemon put together: builds every part, starts the threads, and takes them down again in order.
//!
//! A stop has two phases, timed by [`DrainPlan`]: the **drain**, in which nothing new is granted, whoever waits is sent
//! away and holders may finish; and the **HTTP phase**, in which nothing new is accepted, answers under way are finished,
//! and then every connection is cut. What has been written to a connection still arrives, and nothing is carried out whose
//! answer could not be written any more, unless it outlasts the HTTP phase.
//!
//! A [`Server`] in a process of somebody else's behaves like the daemon: it can be stopped from any thread, also from a
//! handler of a client of its own.

mod stores;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::clock::{SharedClock, SystemClock};
use crate::dispatch::{
    DeskLimits, Dispatcher, HandOut, PollLimits, QUEUES_REMEMBERED, ReadyLimits, ScanTask, Seats, Seen, WaitLimits,
    look_at,
};
use crate::drain_plan::{CloseOptions, DRAIN_CHECK_EVERY, DrainPlan};
use crate::error::Error;
use crate::exporter;
use crate::http::edge::Edge;
use crate::http::intake::{Bound, Intake, ListenOn};
use crate::http::scrape::Scrapes;
use crate::http::tally::Tally;
use crate::http::{HttpLimits, ParkedAcquire, ParkedConsumer, QueueParts, Service, Streams, WorkQueue};
use crate::ids::IdMaker;
use crate::keys::{self, Namespace};
use crate::lease::table::KeyTable;
use crate::lease::{Leases, TtlLimits};
use crate::logging::Logger;
use crate::metrics::Counter;
use crate::namespace::Namespaces;
use crate::net::sever::ListenerAddr;
use crate::news::Listener;
use crate::queue::Queues;
use crate::settings::{Listen, QueueSettings, Settings};
use crate::state::{StateLimits, States};
use crate::store::counted::CountedStore;
use crate::store::object;
use crate::store::shared_log::OpenError;
use crate::store::{Store, StoreError};
use crate::sweeper::{SweepPlan, Sweeper};
use crate::threads;

const SYS_INIT: &str = "server.lifecycle.init";
const SYS_SHUTDOWN: &str = "server.shutdown.controller";

/// Requests that wait for a worker; more are shed with 503.
const QUEUED_REQUESTS_MAX: usize = 16 * 1024;
/// How often a key that somebody waits for is looked at although nothing was heard: with and without a change feed.
const RECHECK_WITH_FEED: Duration = Duration::from_secs(10);
const RECHECK_WITHOUT_FEED: Duration = Duration::from_secs(3);
/// How often the clients of parked requests are looked for.
const PEER_CHECK: Duration = Duration::from_secs(5);
/// More living leases than this are not counted one by one for the log.
const COUNTED_LEASES_MAX: usize = 1_000;

/// Why a server did not start or could not stop cleanly.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeError {
    /// The address cannot be listened on.
    Listen {
        /// The address as configured.
        address: String,
        /// Why not.
        cause: io::Error,
    },
    /// The store cannot be used.
    Store(StoreError),
    /// The directory of the store cannot be used.
    OpenDisk {
        /// The directory as configured.
        root: PathBuf,
        /// Why not.
        cause: OpenError,
    },
    /// The bucket cannot be used.
    OpenBucket(object::OpenError),
    /// The settings contradict each other.
    Settings(String),
    /// A thread or a signal handler could not be set up.
    System(io::Error),
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen { address, cause } => write!(f, "cannot listen on {address}: {cause}"),
            Self::Store(cause) => write!(f, "cannot use the store: {cause}"),
            Self::OpenDisk { root, cause } => write!(f, "cannot use the store in {}: {cause}", root.display()),
            Self::OpenBucket(cause) => cause.fmt(f),
            Self::Settings(detail) => f.write_str(detail),
            Self::System(cause) => write!(f, "cannot start: {cause}"),
        }
    }
}

impl std::error::Error for ServeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Listen { cause, .. } | Self::System(cause) => Some(cause),
            Self::Store(cause) => Some(cause),
            Self::OpenDisk { cause, .. } => Some(cause),
            Self::OpenBucket(cause) => Some(cause),
            Self::Settings(_) => None,
        }
    }
}

impl From<io::Error> for ServeError {
    fn from(cause: io::Error) -> Self {
        Self::System(cause)
    }
}

impl From<StoreError> for ServeError {
    fn from(cause: StoreError) -> Self {
        Self::Store(cause)
    }
}

/// Everything a server is built from. The settings alone are enough.
pub struct Parts {
    /// What it is told.
    pub settings: Settings,
    /// Where it logs.
    pub logger: Logger,
    /// What it keeps things in; `None` opens what the settings name. Several servers may share one.
    pub store: Option<Arc<dyn Store>>,
    /// What time it is.
    pub clock: SharedClock,
    /// What a stop does when its caller does not say, on top of the settings.
    pub close_defaults: CloseOptions,
}

impl Parts {
    /// The usual parts for these settings.
    pub fn new(settings: Settings, logger: Logger) -> Self {
        Self {
            settings,
            logger,
            store: None,
            clock: SystemClock::shared(),
            close_defaults: CloseOptions::new(),
        }
    }
}

/// A running server.
pub struct Server {
    address: ListenerAddr,
    metrics_address: Option<SocketAddr>,
    service: Arc<Service>,
    store: Arc<dyn Store>,
    logger: Logger,
    close_defaults: CloseOptions,
    running: Mutex<Option<Running>>,
    stopped: (Mutex<bool>, Condvar),
}

/// What must be taken down.
struct Running {
    intake: Intake,
    dispatcher: JoinHandle<()>,
    sweeper: Sweeper,
    scrapes: Option<Scrapes>,
}

impl Server {
    /// Starts a server. When this returns, it serves.
    pub fn start(parts: Parts) -> Result<Self, ServeError> {
        let Parts {
            settings,
            logger,
            store,
            clock,
            close_defaults,
        } = parts;
        let queue_feed = stores::wants_queue_feed(&settings, store.is_some());
        let store = match store {
            Some(store) => store,
            None => stores::open(&settings, &logger)?,
        };
        let bare_store = Arc::clone(&store);
        let store = match &settings.metrics_listen {
            Some(_) => Arc::new(CountedStore::new(store)),
            None => store,
        };
        let queue_feed = queue_feed && store.capabilities().feed;
        let default_namespace = Namespace::parse(&settings.default_namespace)
            .map_err(|cause| ServeError::Settings(format!("default-namespace: {cause}")))?;
        let listener = bind(&settings.listen)?;
        let address = listener.address()?;
        let metrics_listener = settings.metrics_listen.as_ref().map(bind_metrics).transpose()?;
        let tally = metrics_listener.is_some().then(|| Tally::new(Arc::clone(&clock)));

        let feed = store.capabilities().feed;
        let recheck = if feed { RECHECK_WITH_FEED } else { RECHECK_WITHOUT_FEED };
        let limits = WaitLimits {
            recheck,
            peer_check: PEER_CHECK,
        };
        let desk = desk_limits(&settings.queue, queue_feed);
        log_queue_settings(&logger, &settings, &desk.poll);
        let (dispatcher, engine) = Dispatcher::new(limits, desk, Arc::clone(&clock), Arc::clone(&logger));
        listen_to_others(&*store, &dispatcher, queue_feed);

        let ids = Arc::new(IdMaker::new(Arc::clone(&clock)));
        let table = Arc::new(KeyTable::new(
            Arc::clone(&store),
            Arc::clone(&clock),
            Arc::new(dispatcher.clone()),
        ));
        if let Err(cause) = table.committer().finish_what_others_left() {
            // Whoever meets what was left finishes it.
            let error = cause.to_string();
            log::warn!(logger: logger, target: SYS_INIT, error; "txn.recovery.failed");
        }
        let sweeper = Sweeper::start(
            Arc::clone(&table),
            Arc::clone(&clock),
            Arc::clone(&logger),
            SweepPlan {
                interval: settings.sweeper_interval,
                retention: Some(settings.retention).filter(|retention| !retention.is_zero()),
                janitor_interval: settings.janitor_interval(),
            },
        )?;
        let ttl = TtlLimits {
            default_seconds: whole_seconds(settings.default_ttl),
            max_seconds: whole_seconds(settings.max_ttl),
        };
        let state_limits = StateLimits {
            raw_bytes_max: settings.json_bytes_max,
            spool_bytes_max: usize::try_from(settings.payload_spool_bytes).unwrap_or(usize::MAX),
        };
        let queue = WorkQueue::new();
        let messages = QueueParts {
            queues: Queues::new(Arc::clone(&table), Arc::clone(&ids), state_limits.spool_bytes_max),
            seats: Seats::new(settings.queue.max_consumers),
            visibility: ttl,
            feed: queue_feed,
            streams: Streams::default(),
            scans: Counter::new(),
        };
        let service = Arc::new(Service {
            messages,
            edge: Edge::new(address.clone(), settings.workers, clock, Arc::clone(&logger), tally),
            leases: Leases::new(Arc::clone(&table), Arc::clone(&ids), ttl),
            states: States::new(table, Arc::clone(&ids), state_limits),
            namespaces: Namespaces::new(Arc::clone(&store)),
            dispatcher,
            ids,
            store: Arc::clone(&store),
            limits: HttpLimits {
                default_namespace,
                json_bytes_max: settings.json_bytes_max,
                acquire_block: settings.acquire_block_max,
                queued_max: QUEUED_REQUESTS_MAX,
            },
            turns: queue.turns(),
            queue,
            half_closed: Mutex::default(),
        });

        let dispatcher = engine.start(hand_out(&service))?;
        start_workers(&service, settings.workers)?;
        let (taker, tender) = (Arc::clone(&service), Arc::clone(&service));
        let intake = Intake::start(
            listener,
            Arc::clone(&logger),
            move |request| taker.take(request),
            move || tender.tend(),
        )?;
        let scrapes = metrics_listener
            .map(|listener| exporter::start(listener, &service, Arc::clone(&logger)))
            .transpose()?;
        let metrics_address = scrapes.as_ref().map(Scrapes::address).transpose()?;
        let configured = CloseOptions::new()
            .notify(true)
            .drain_leases(settings.drain_grace)
            .shutdown_timeout(settings.shutdown_timeout);
        let network = settings.listen.network();
        log::info!(logger: logger, target: SYS_INIT, network, address:% = shown(&address), mtls = false; "listening");
        if let Some(address) = metrics_address {
            log::info!(logger: logger, target: SYS_INIT, address:%; "metrics listening");
        }
        Ok(Self {
            address,
            metrics_address,
            service,
            store: bare_store,
            logger,
            close_defaults: close_defaults.over(configured),
            running: Mutex::new(Some(Running {
                intake,
                dispatcher,
                sweeper,
                scrapes,
            })),
            stopped: (Mutex::new(false), Condvar::new()),
        })
    }

    /// Where it listens, with the port that the system chose.
    pub fn address(&self) -> &ListenerAddr {
        &self.address
    }

    /// Where it listens, as a client writes it.
    pub fn url(&self) -> String {
        match &self.address {
            ListenerAddr::Tcp(address) => format!("http://{address}"),
            ListenerAddr::Unix(path) => format!("unix://{}", path.display()),
        }
    }

    /// Where its metrics are, with the port that the system chose; `None` when nobody asked for them.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// The store that it serves.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// How many requests wait for a key, without those that are being looked at right now.
    pub fn waiting(&self) -> usize {
        self.service.dispatcher.waiting()
    }

    /// Stops in the way that was configured.
    pub fn shutdown(&self) {
        self.shutdown_with(CloseOptions::new());
    }

    /// Stops; what the options leave open is as configured. Returns when nothing of the server runs any more. Whoever
    /// calls while another call is at it waits for the same end.
    pub fn shutdown_with(&self, options: CloseOptions) {
        let plan = DrainPlan::new(options.over(self.close_defaults), None);
        self.stop(|server, running| {
            let began = server.service.edge.clock.now();
            let edge = &server.service.edge;
            edge.begin_drain(began.after(plan.drain()), plan.notify());
            server.service.dispatcher.drain();
            server.drain(&plan);
            edge.begin_close();
            running.intake.stop_accepting();
            server.service.messages.streams.end_watches();
            let patience = plan.http_phase(edge.clock.now().since(began));
            if !edge.shut_when_quiet(patience.unwrap_or(Duration::MAX)) {
                log::warn!(logger: server.logger, target: SYS_SHUTDOWN, "shutdown.http.timeout_force_close");
            }
        });
    }

    /// Ends as a crash would: no drain, no answers, nothing given back. What was acknowledged stays in the store.
    pub fn abort(&self) {
        self.stop(|server, running| {
            server.service.edge.begin_close();
            server.service.edge.shut();
            running.intake.stop_accepting();
            server.service.edge.sever_all();
            server.service.dispatcher.drain();
            server.service.messages.streams.end_watches();
        });
    }

    fn stop(&self, prepare: impl FnOnce(&Self, &Running)) {
        let (stopped, signal) = &self.stopped;
        let Some(running) = self.running.lock().take() else {
            let mut stopped = stopped.lock();
            while !*stopped {
                signal.wait(&mut stopped);
            }
            return;
        };
        prepare(self, &running);
        self.service.edge.sever_all();
        let Running {
            intake,
            dispatcher,
            mut sweeper,
            scrapes,
        } = running;
        intake.stop();
        if let Some(scrapes) = scrapes {
            scrapes.stop();
        }
        let service = &self.service;
        (0..service.edge.crew.dismiss()).for_each(|_| service.queue.push_stop());
        service.edge.crew.join();
        sweeper.stop();
        service.dispatcher.stop();
        let _ = dispatcher.join();
        service.messages.streams.join();
        service.queue.clear();
        // A connection may have been accepted between the first cut and the end of the intake.
        self.service.edge.sever_all();
        log::info!(logger: self.logger, target: SYS_SHUTDOWN, "stopped");
        *stopped.lock() = true;
        signal.notify_all();
    }

    /// Waits until no lease lives or the time is up.
    fn drain(&self, plan: &DrainPlan) {
        let clock = &self.service.edge.clock;
        if plan.skips_drain() {
            log::info!(logger: self.logger, target: SYS_SHUTDOWN, "shutdown.drain.skip");
            return;
        }
        let began = clock.now();
        let active_leases = self.living_leases();
        log::info!(logger: self.logger, target: SYS_SHUTDOWN, active_leases,
            grace_period:? = plan.drain(); "shutdown.drain.begin");
        let mut remaining = active_leases;
        while remaining != 0 && clock.now().since(began) < plan.drain() {
            std::thread::sleep(DRAIN_CHECK_EVERY.min(plan.drain().saturating_sub(clock.now().since(began))));
            remaining = self.living_leases();
            log::debug!(logger: self.logger, target: SYS_SHUTDOWN, remaining; "shutdown.drain.sample");
        }
        log::info!(logger: self.logger, target: SYS_SHUTDOWN, remaining,
            elapsed:? = clock.now().since(began); "shutdown.drain.complete");
    }

    fn living_leases(&self) -> usize {
        self.service
            .leases
            .count_living(COUNTED_LEASES_MAX)
            .unwrap_or_else(|cause| {
                let error = cause.to_string();
                log::warn!(logger: self.logger, target: SYS_SHUTDOWN, error; "shutdown.drain.unknown");
                0
            })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.abort();
    }
}

/// Serves until SIGINT or SIGTERM, then stops in the configured way. A second signal ends the process at once.
pub fn run(settings: Settings, logger: Logger) -> Result<(), ServeError> {
    log::info!(logger: logger, target: SYS_INIT, version = env!("CARGO_PKG_VERSION"), pid = std::process::id();
        "welcome to lockd {}", env!("CARGO_PKG_VERSION"));
    raise_descriptor_limit(&logger);
    log_panics(&logger);
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let handle = signals.handle();
    let server = Arc::new(Server::start(Parts::new(settings, Arc::clone(&logger)))?);
    let mut stopping: Option<JoinHandle<()>> = None;
    for signal in signals.forever() {
        if stopping.is_some() {
            signal_hook::low_level::emulate_default_handler(signal)?;
        }
        log::info!(logger: logger, target: SYS_SHUTDOWN, signal; "shutdown.signal");
        let (server, handle) = (Arc::clone(&server), handle.clone());
        stopping = Some(threads::spawn("shutdown", move || {
            server.shutdown();
            handle.close();
        })?);
    }
    if let Some(stopping) = stopping {
        let _ = stopping.join();
    }
    Ok(())
}

/// A panic becomes a log line like everything else, also one in a thread of a library.
fn log_panics(logger: &Logger) {
    let logger = Arc::clone(logger);
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        let error = panic.to_string();
        log::error!(logger: logger, target: "server.lifecycle.core", thread, error; "panic");
    }));
}

/// Starts the threads that handle requests.
fn start_workers(service: &Arc<Service>, count: usize) -> io::Result<()> {
    let workers = (0..count)
        .map(|number| {
            let service = Arc::clone(service);
            threads::spawn(&format!("worker-{number}"), move || service.work())
        })
        .collect::<io::Result<Vec<_>>>()?;
    // The service owns its crew: a strong reference would keep both for ever.
    let service_of_crew = Arc::downgrade(service);
    service.edge.crew.begin(workers, move || {
        let service = service_of_crew.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        threads::spawn("worker-more", move || service.help_out())
    });
    Ok(())
}

fn bind_metrics(listen: &Listen) -> Result<TcpListener, ServeError> {
    let bound = listen
        .socket_addresses()
        .and_then(|addresses| TcpListener::bind(&*addresses));
    bound.map_err(|cause| ServeError::Listen {
        address: listen.to_string(),
        cause,
    })
}

fn bind(listen: &Listen) -> Result<Bound, ServeError> {
    let failed = |cause| ServeError::Listen {
        address: listen.to_string(),
        cause,
    };
    if let Listen::Unix(path) = listen {
        return Bound::bind(&ListenOn::Unix(path.clone())).map_err(failed);
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in listen.socket_addresses().map_err(failed)? {
        match Bound::bind(&ListenOn::Tcp(address)) {
            Ok(bound) => return Ok(bound),
            Err(cause) => last = cause,
        }
    }
    Err(failed(last))
}

/// What other servers of the same store change may be what somebody waits for here.
fn listen_to_others(store: &dyn Store, dispatcher: &Dispatcher<ParkedAcquire, ParkedConsumer>, queue_feed: bool) {
    let dispatcher = dispatcher.clone();
    store.watch(Arc::new(move |changed| {
        for key in changed.iter().filter(|key| keys::is_key_record(key)) {
            dispatcher.lease_ended(key);
        }
        if queue_feed {
            let messages: Vec<_> = changed.iter().filter_map(keys::message_of).collect();
            if !messages.is_empty() {
                dispatcher.changed(messages);
            }
        }
    }));
}

/// Where the dispatcher's jobs go.
fn hand_out(service: &Arc<Service>) -> HandOut<ParkedAcquire, ParkedConsumer> {
    let (lease_jobs, queue_jobs) = (service.queue.clone(), service.queue.clone());
    // The dispatcher ends before the service does, which waits for it.
    let service = Arc::downgrade(service);
    let look = move |task: &ScanTask| -> Result<Seen, Error> {
        let Some(service) = service.upgrade() else {
            let detail = "the server has ended".to_owned();
            return Err(StoreError::Unavailable { detail }.into());
        };
        service.messages.scans.add(1);
        look_at(&service.messages.queues, task, |fault| {
            let error = fault.to_string();
            log::error!(logger: service.edge.log, target: "queue.dispatcher.core",
                namespace = task.queue.namespace.as_str(), queue = task.queue.queue.as_str(), error;
                "queue.dispatcher.fetch.damaged");
        })
    };
    HandOut {
        lease: Box::new(move |job| lease_jobs.push_job(job)),
        queue: Box::new(move |job| queue_jobs.push_queue_job(job)),
        look: Box::new(look),
    }
}

fn desk_limits(settings: &QueueSettings, feed: bool) -> DeskLimits {
    DeskLimits {
        poll: PollLimits {
            floor: settings.poll_interval,
            jitter: settings.poll_jitter,
            resilient: settings.resilient_poll_interval,
            feed,
        },
        ready: ReadyLimits::default(),
        page: settings.list_page_size,
        queues_max: QUEUES_REMEMBERED,
        trace: settings.trace_ready.then_some(to_stderr as fn(&str)),
    }
}

/// A line for whoever asked for one by an environment variable.
fn to_stderr(line: &str) {
    use std::io::Write;
    // There is nobody to tell that there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn log_queue_settings(logger: &Logger, settings: &Settings, poll: &PollLimits) {
    let target = "queue.dispatcher.core";
    let (mode, reason) = stores::watch_mode(settings, poll.feed);
    log::info!(logger: logger, target: target, max_consumers = settings.queue.max_consumers,
        poll_interval:? = poll.floor, poll_jitter:? = poll.jitter, resilient_poll_interval:? = poll.resilient,
        page_size = settings.queue.list_page_size, watch_mode = mode, watch_reason = reason;
        "queue.dispatcher.config");
    log::info!(logger: logger, target: target, enabled = poll.feed, mode, reason; "queue.dispatcher.watch_status");
}

fn whole_seconds(span: Duration) -> i64 {
    i64::try_from(span.as_secs()).unwrap_or(i64::MAX).max(1)
}

fn shown(address: &ListenerAddr) -> String {
    match address {
        ListenerAddr::Tcp(address) => address.to_string(),
        ListenerAddr::Unix(path) => path.display().to_string(),
    }
}

/// Every connection is a descriptor or two; the soft limit of a shell is far below what the system allows.
fn raise_descriptor_limit(logger: &Logger) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(cause) = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        )
    {
        let error = cause.to_string();
        log::debug!(logger: logger, target: SYS_INIT, error; "limits.descriptors.unchanged");
    }
}
