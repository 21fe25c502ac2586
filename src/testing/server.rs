//! A real server inside the test process, and clients of it.
//!
//! Nothing is simulated: the server is the daemon's own, on a real socket. It differs from a daemon only in its choices: a
//! free port of 127.0.0.1, memory as its store, a quick stop. Dropping it stops it like the end of a good test should,
//! or, when the test is failing, at once.
//!
//! Left out for now: TLS, which the server does not speak yet, and any store but memory. A test may hand in whatever
//! [`Store`] it has.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use crossbeam_channel::{RecvTimeoutError, bounded};
use lockd_client::{Client, ClientBuilder, Error as ClientError};
use log::Level;
use parking_lot::Mutex;

use super::capture::{PrintOnFailure, TestingLogger};
use super::chaos::{ChaosConfig, ChaosProxy};
use super::close_profile::{CloseDefaults, CloseOptions};
use crate::clock::{SharedClock, SystemClock};
use crate::logging::{self, Logger};
use crate::net::sever::ListenerAddr;
use crate::server::{Parts, ServeError, Server};
use crate::settings::{Listen, Settings, SettingsError, StoreLocation};
use crate::store::Store;
use crate::threads;

const START_TIMEOUT: Duration = Duration::from_secs(5);

/// Threads for requests; a test rarely needs more, and many servers may run side by side.
const WORKERS: usize = 8;

type Edit = Box<dyn FnOnce(&mut Settings)>;
type ClientOptions = Arc<dyn Fn(ClientBuilder) -> ClientBuilder + Send + Sync>;

/// A running server with its surroundings.
///
/// ```
/// use lockd::testing::TestServer;
///
/// let server = TestServer::builder().start().unwrap();
/// let lease = server.client().acquire("orders/4711").unwrap();
/// lease.save(&42).unwrap();
/// lease.release().unwrap();
/// let state = server.client().get_public("orders/4711").unwrap();
/// assert_eq!(state.into_json::<i32>().unwrap(), Some(42));
/// ```
pub struct TestServer {
    server: Arc<Server>,
    proxy: Option<ChaosProxy>,
    client_options: ClientOptions,
    client: Option<Client>,
    clients: Mutex<Vec<Client>>,
    /// Last, so that it prints what the end of the server has logged as well.
    shown_on_failure: Option<PrintOnFailure>,
}

impl TestServer {
    /// Begins a server with the usual choices.
    pub fn builder() -> TestServerBuilder {
        TestServerBuilder {
            settings: Settings {
                listen: Listen::loopback_any_port(),
                workers: WORKERS,
                ..Settings::default()
            },
            listen: None,
            store_url: None,
            edits: Vec::new(),
            store: None,
            logger: None,
            clock: SystemClock::shared(),
            client_options: Arc::new(|builder| builder),
            with_client: true,
            start_timeout: START_TIMEOUT,
            chaos: None,
            close_defaults: CloseDefaults::default(),
        }
    }

    /// The server itself. Its `shutdown` leaves clients and chaos proxy alone, as the loss of a real server would.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Where clients should connect: the chaos proxy if there is one, else the server.
    pub fn url(&self) -> String {
        match &self.proxy {
            Some(proxy) => format!("http://{}", proxy.address()),
            None => self.server.url(),
        }
    }

    /// The server's own address, past any chaos proxy.
    pub fn direct_url(&self) -> String {
        self.server.url()
    }

    /// The TCP address of [`url`](Self::url); `None` on a unix socket.
    pub fn socket_address(&self) -> Option<SocketAddr> {
        match (&self.proxy, self.server.address()) {
            (Some(proxy), _) => Some(proxy.address()),
            (None, ListenerAddr::Tcp(address)) => Some(*address),
            (None, ListenerAddr::Unix(_)) => None,
        }
    }

    /// The chaos proxy in front of the server, if there is one.
    pub fn proxy(&self) -> Option<&ChaosProxy> {
        self.proxy.as_ref()
    }

    /// The store, to look at from behind or to share with another server.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self.server.store())
    }

    /// The client that came with the server.
    ///
    /// # Panics
    ///
    /// If the server was built [without a client](TestServerBuilder::without_client).
    pub fn client(&self) -> &Client {
        self.client
            .as_ref()
            .expect("this test server was built without a client")
    }

    /// One more client, with options on top of those of the server's builder. Its idle connections are closed at the
    /// stop.
    pub fn new_client(&self, options: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Result<Client, ClientError> {
        self.new_client_for_endpoints([self.url()], options)
    }

    /// The same for other endpoints: several servers, or the server without its proxy.
    pub fn new_client_for_endpoints<S: Into<String>>(
        &self,
        endpoints: impl IntoIterator<Item = S>,
        options: impl FnOnce(ClientBuilder) -> ClientBuilder,
    ) -> Result<Client, ClientError> {
        let builder = Client::builder().endpoints(endpoints);
        let client = options((self.client_options)(builder)).build()?;
        self.clients.lock().push(client.clone());
        Ok(client)
    }

    /// Closes clients and proxy, then stops the server by its close defaults. Returns when nothing of it runs any more.
    /// Does nothing the second time.
    pub fn stop(&self) {
        self.stop_with(CloseOptions::new());
    }

    /// The same; what these options name wins over the close defaults.
    pub fn stop_with(&self, options: CloseOptions) {
        self.close_surroundings();
        self.server.shutdown_with(options);
    }

    /// Ends the server as a crash would: no drain, no last answers, leases stay as they are. Clients and proxy are left
    /// alone.
    pub fn abort(&self) {
        self.server.abort();
    }

    fn close_surroundings(&self) {
        for client in self.client.iter().chain(&*self.clients.lock()) {
            client.close();
        }
        if let Some(proxy) = &self.proxy {
            proxy.close();
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if thread::panicking() {
            // Nothing is left to be observed; a drain would only keep the failure waiting.
            self.close_surroundings();
            self.abort();
        } else {
            self.stop();
        }
        drop(self.shown_on_failure.take());
    }
}

/// Collects the options of a [`TestServer`].
#[must_use]
pub struct TestServerBuilder {
    settings: Settings,
    listen: Option<Listen>,
    store_url: Option<String>,
    edits: Vec<Edit>,
    store: Option<Arc<dyn Store>>,
    logger: Option<LoggerChoice>,
    clock: SharedClock,
    client_options: ClientOptions,
    with_client: bool,
    start_timeout: Duration,
    chaos: Option<ChaosConfig>,
    close_defaults: CloseDefaults,
}

enum LoggerChoice {
    Given(Logger),
    OnFailure(Level),
}

impl TestServerBuilder {
    /// Replaces the base settings: a free port of 127.0.0.1, 8 workers, else the daemon's defaults. Mind their `listen`,
    /// which replaces the free port too.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Changes the settings after every other option has been applied; several edits run in the order given.
    pub fn edit(mut self, edit: impl FnOnce(&mut Settings) + 'static) -> Self {
        self.edits.push(Box::new(edit));
        self
    }

    /// Where to listen. Default: 127.0.0.1 and a free port.
    pub fn listen(mut self, listen: Listen) -> Self {
        self.listen = Some(listen);
        self
    }

    /// Listens on a unix socket at this path.
    pub fn unix_socket(self, path: impl Into<PathBuf>) -> Self {
        self.listen(Listen::Unix(path.into()))
    }

    /// The store by its URL. Default `mem://`, a fresh one.
    pub fn store_url(mut self, url: &str) -> Self {
        self.store_url = Some(url.to_owned());
        self
    }

    /// A store that is already open; it wins over any URL. Several servers may share one.
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Where the server logs. Default: nowhere.
    pub fn logger(mut self, logger: Logger) -> Self {
        self.logger = Some(LoggerChoice::Given(logger));
        self
    }

    /// Keeps the end of the server's log and prints it if the test fails, see [`TestingLogger`]. `Level::Debug` is a good
    /// choice. Drop the server in the test's own thread, or nobody knows of the failure.
    pub fn log_on_failure(mut self, level: Level) -> Self {
        self.logger = Some(LoggerChoice::OnFailure(level));
        self
    }

    /// The clock that decides about leases and the time of a stop. Default: the machine's.
    pub fn clock(mut self, clock: SharedClock) -> Self {
        self.clock = clock;
        self
    }

    /// Options for every client that this server makes.
    pub fn client_options(mut self, options: impl Fn(ClientBuilder) -> ClientBuilder + Send + Sync + 'static) -> Self {
        self.client_options = Arc::new(options);
        self
    }

    /// Makes no client.
    pub fn without_client(mut self) -> Self {
        self.with_client = false;
        self
    }

    /// How long the start may take. Default 5 s.
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.start_timeout = limit;
        self
    }

    /// Puts a [`ChaosProxy`] in front of the server. TCP only.
    pub fn chaos(mut self, config: ChaosConfig) -> Self {
        self.chaos = Some(config);
        self
    }

    /// How the server stops when the caller of a stop does not say. Without this call: drain 4 s, overall 5 s. With
    /// options: those instead. With an empty list: as in production.
    pub fn close_defaults(mut self, options: &[CloseOptions]) -> Self {
        self.close_defaults = CloseDefaults::from_options(options);
        self
    }

    /// Starts the server. When this returns, it serves.
    pub fn start(self) -> Result<TestServer, StartError> {
        let mut settings = self.settings;
        if let Some(listen) = self.listen {
            settings.listen = listen;
        }
        if let Some(url) = self.store_url {
            settings.store = StoreLocation::parse(&url).map_err(StartError::StoreUrl)?;
        }
        for edit in self.edits {
            edit(&mut settings);
        }
        settings.check().map_err(StartError::Settings)?;

        let (logger, shown_on_failure) = match self.logger {
            None => (logging::off(), None),
            Some(LoggerChoice::Given(logger)) => (logger, None),
            Some(LoggerChoice::OnFailure(level)) => {
                let logger = TestingLogger::new("server", level);
                let guard = logger.print_on_failure();
                (logger as Logger, Some(guard))
            }
        };
        if self.chaos.is_some() && matches!(settings.listen, Listen::Unix(_)) {
            return Err(StartError::ChaosNeedsTcp);
        }
        let parts = Parts {
            store: self.store,
            clock: self.clock,
            close_defaults: self.close_defaults.options(),
            ..Parts::new(settings, logger)
        };
        let server = start_within(parts, self.start_timeout)?;
        let proxy = match (self.chaos, server.address()) {
            (Some(config), ListenerAddr::Tcp(address)) => {
                Some(ChaosProxy::start(*address, config).map_err(StartError::Chaos)?)
            }
            _ => None,
        };
        let mut started = TestServer {
            server: Arc::new(server),
            proxy,
            client_options: self.client_options,
            client: None,
            clients: Mutex::default(),
            shown_on_failure,
        };
        if self.with_client {
            let client = started.new_client(|builder| builder).map_err(StartError::Client)?;
            started.client = Some(client);
        }
        Ok(started)
    }
}

/// Why a test server did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The settings contradict each other.
    Settings(SettingsError),
    /// The store URL is none, or none of this version.
    StoreUrl(String),
    /// The server itself says no.
    Serve(ServeError),
    /// The server did not serve within the limit.
    Timeout(Duration),
    /// A chaos proxy relays TCP, and the server listens on a unix socket.
    ChaosNeedsTcp,
    /// The chaos proxy could not be set up.
    Chaos(io::Error),
    /// The client could not be built.
    Client(ClientError),
    /// No thread is to be had.
    System(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot start the test server: ")?;
        match self {
            Self::Settings(cause) => cause.fmt(f),
            Self::StoreUrl(complaint) => write!(f, "store: {complaint}"),
            Self::Serve(cause) => cause.fmt(f),
            Self::Timeout(limit) => write!(f, "it does not serve after {limit:?}"),
            Self::ChaosNeedsTcp => f.write_str("a chaos proxy relays TCP, not a unix socket"),
            Self::Chaos(cause) => write!(f, "chaos proxy: {cause}"),
            Self::Client(cause) => write!(f, "client: {cause}"),
            Self::System(cause) => cause.fmt(f),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Settings(cause) => Some(cause),
            Self::Serve(cause) => Some(cause),
            Self::Chaos(cause) | Self::System(cause) => Some(cause),
            Self::Client(cause) => Some(cause),
            Self::StoreUrl(_) | Self::Timeout(_) | Self::ChaosNeedsTcp => None,
        }
    }
}

/// Starts a server on a thread of its own, so that a start that hangs can be given up. The thread is then left behind:
/// it cannot be stopped, and a server that comes of it after all is aborted at once.
fn start_within(parts: Parts, limit: Duration) -> Result<Server, StartError> {
    let (done, started) = bounded(1);
    let starting = threads::spawn("test-start", move || {
        // Nobody waits any more if this fails; the server goes with the message.
        let _ = done.send(Server::start(parts));
    })
    .map_err(StartError::System)?;
    match started.recv_timeout(limit) {
        Ok(server) => {
            let _ = starting.join();
            server.map_err(StartError::Serve)
        }
        Err(RecvTimeoutError::Timeout) => Err(StartError::Timeout(limit)),
        Err(RecvTimeoutError::Disconnected) => {
            // The start panicked. Let it be seen here, where the test is.
            match starting.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => Err(StartError::Timeout(limit)),
            }
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
