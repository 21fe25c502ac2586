//! What a suite needs of a backend: servers, alone or several over one store.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockd::clock::{SharedClock, SystemClock};
use lockd::drain_plan::CloseOptions;
use lockd::logging::Logger;
use lockd::net::sever::ListenerAddr;
use lockd::server::{Parts, Server};
use lockd::settings::{Listen, Settings};
use lockd::store::Store;
use lockd::testing::{PrintOnFailure, TestServerBuilder, TestingLogger};

use super::queue_calls::Mode;

/// A backend under test. Every call of `open` makes a fresh, empty place.
pub trait Backend: Sync {
    /// Its short name, for reports: `mem`, `disk`, ...
    fn name(&self) -> &'static str;

    /// A fresh place.
    fn open(&self) -> Box<dyn Place>;

    /// How queues learn of what other servers do.
    fn queue_mode(&self) -> Mode {
        Mode::Feed
    }
}

/// One place where a store lives; several handles may be open on it.
pub trait Place {
    /// Another handle on the store in this place, as another process would open it.
    fn store(&self) -> Arc<dyn Store>;

    /// How many bodies the store holds, named by a record or not; `None` if this backend cannot tell.
    fn count_bodies(&self) -> Option<usize> {
        None
    }

    /// The store as a daemon, a process of its own, is told it. Memory cannot be shared with another process, so there
    /// each daemon has its own.
    fn url(&self) -> String;

    /// Variables that a daemon needs beside the URL.
    fn variables(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Whether the servers of this place are daemons; see [`Node`](super::node::Node).
    fn servers_are_processes(&self) -> bool {
        false
    }
}

/// A server under test. Stops without drain when it is dropped.
pub struct TestServer {
    pub server: Arc<Server>,
    pub address: SocketAddr,
    /// Goes last: it shows what the end of the server has logged, too.
    _shown_on_failure: Option<PrintOnFailure>,
}

/// How a test wants its servers.
#[derive(Clone)]
pub struct ServerOptions {
    pub settings: Settings,
    pub clock: SharedClock,
    pub close: CloseOptions,
    /// What is logged down to this level is shown when the test fails.
    pub log: Option<log::Level>,
    /// Takes the log instead.
    pub logger: Option<Logger>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        let settings = Settings {
            listen: Listen::loopback_any_port(),
            workers: 8,
            ..Settings::default()
        };
        let close = CloseOptions::new()
            .drain_leases(Duration::ZERO)
            .shutdown_timeout(Duration::from_secs(5));
        Self {
            settings,
            clock: SystemClock::shared(),
            close,
            log: None,
            logger: None,
        }
    }
}

impl TestServer {
    /// Starts a server over this store.
    pub fn start(store: Arc<dyn Store>, options: ServerOptions) -> Self {
        let shown = options.log.map(|level| TestingLogger::new("server", level));
        let shown_on_failure = shown.as_ref().map(TestingLogger::print_on_failure);
        let shown = shown.map(|shown| shown as Logger);
        let logger = options.logger.or(shown).unwrap_or_else(lockd::logging::off);
        let parts = Parts {
            store: Some(store),
            clock: options.clock,
            close_defaults: options.close,
            ..Parts::new(options.settings, logger)
        };
        let server = Arc::new(Server::start(parts).expect("the server starts"));
        let ListenerAddr::Tcp(address) = *server.address() else {
            panic!("the suite talks TCP")
        };
        Self {
            server,
            address,
            _shown_on_failure: shown_on_failure,
        }
    }

    /// Starts a server with a store of its own, after changing what tests usually want.
    pub fn fresh_with(backend: &dyn Backend, change: impl FnOnce(&mut ServerOptions)) -> Self {
        let mut options = ServerOptions::default();
        change(&mut options);
        Self::start(backend.open().store(), options)
    }

    /// Waits until so many requests wait for a key at this server.
    #[track_caller]
    pub fn wait_until_waiting(&self, count: usize) {
        super::lockd_calls::wait_until("requests wait", || self.server.waiting() == count);
    }

    /// Starts a server with a store of its own.
    pub fn fresh(backend: &dyn Backend) -> Self {
        Self::start(backend.open().store(), ServerOptions::default())
    }
}

/// A server in the way users test their programs, with clients, over the store in this place. Its limits are those of the
/// lock suites; what it logs is shown when the test fails.
pub fn serve(place: &dyn Place) -> TestServerBuilder {
    lockd::testing::TestServer::builder()
        .store(place.store())
        .log_on_failure(log::Level::Debug)
        .edit(|settings| {
            settings.max_ttl = Duration::from_secs(120);
            settings.acquire_block_max = Duration::from_secs(10);
        })
        .client_options(|client| client.http_timeout(Duration::from_secs(60)))
}

/// No drain, and at most 10 s for all: how servers close whose tests leave leases behind.
pub fn no_drain() -> CloseOptions {
    CloseOptions::new()
        .drain_leases(Duration::ZERO)
        .shutdown_timeout(Duration::from_secs(10))
}
