//! A server that a test reaches through its socket alone, so that it makes no difference where it runs: in the process of
//! the test, or as a daemon that can be killed like any other process.

use std::net::SocketAddr;
use std::time::Duration;

use lockd::testing::{ChaosConfig, ChaosProxy, CloseOptions, TestServer};
use lockd_client::{Client, ClientBuilder};
use parking_lot::Mutex;
use rustix::process::Signal;

use super::fixture::{Place, no_drain, serve};
use super::process::Daemon;

/// How clients of a node wait for its answers.
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);

/// A server of a place.
pub enum Node {
    /// In this process.
    Here(TestServer),
    /// A process of its own.
    Apart(Apart),
}

/// A daemon with its surroundings.
pub struct Apart {
    daemon: Mutex<Daemon>,
    address: SocketAddr,
    proxy: Option<ChaosProxy>,
    client: Client,
}

/// What a test wishes of a node.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// How it ends when it is asked to.
    pub close: CloseOptions,
    /// What stands between it and its clients.
    pub chaos: Option<ChaosConfig>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            close: no_drain(),
            chaos: None,
        }
    }
}

impl Node {
    /// Starts a server without drain.
    pub fn start(place: &dyn Place) -> Self {
        Self::start_with(place, Wishes::default())
    }

    /// Starts a server.
    pub fn start_with(place: &dyn Place, wishes: Wishes) -> Self {
        if place.servers_are_processes() {
            Self::Apart(Apart::start(place, wishes))
        } else {
            let builder = serve(place).close_defaults(&[wishes.close]);
            let builder = match wishes.chaos {
                Some(chaos) => builder.chaos(chaos),
                None => builder,
            };
            Self::Here(builder.start().unwrap())
        }
    }

    /// Where clients should connect.
    pub fn url(&self) -> String {
        match self {
            Self::Here(server) => server.url(),
            Self::Apart(apart) => match &apart.proxy {
                Some(proxy) => format!("http://{}", proxy.address()),
                None => format!("http://{}", apart.address),
            },
        }
    }

    /// The same as an address.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Here(server) => server.socket_address().expect("the suite talks TCP"),
            Self::Apart(apart) => apart.proxy.as_ref().map_or(apart.address, ChaosProxy::address),
        }
    }

    /// A client of this node alone.
    pub fn client(&self) -> &Client {
        match self {
            Self::Here(server) => server.client(),
            Self::Apart(apart) => &apart.client,
        }
    }

    /// Ends it as its operator would. Returns when it has ended.
    pub fn shutdown(&self) {
        match self {
            Self::Here(server) => server.server().shutdown(),
            Self::Apart(apart) => {
                let mut daemon = apart.daemon.lock();
                daemon.signal(Signal::TERM);
                let status = daemon.wait();
                assert!(status.success(), "{status}: {}", daemon.log());
            }
        }
    }

    /// Ends it as a crash would: a process is killed.
    pub fn crash(&self) {
        match self {
            Self::Here(server) => server.abort(),
            Self::Apart(apart) => {
                let mut daemon = apart.daemon.lock();
                daemon.signal(Signal::KILL);
                daemon.wait();
            }
        }
    }
}

impl Apart {
    fn start(place: &dyn Place, wishes: Wishes) -> Self {
        let seconds = |span: Option<Duration>| format!("{}ms", span.unwrap_or_default().as_millis());
        let arguments = [
            "--max-ttl=120s",
            "--acquire-block=10s",
            "--workers=8",
            "--log-level=debug",
            &format!("--drain-grace={}", seconds(wishes.close.drain)),
            &format!("--shutdown-timeout={}", seconds(wishes.close.overall)),
        ];
        let (daemon, address) = Daemon::on_tcp_with(place, &arguments);
        let proxy = wishes.chaos.map(|chaos| ChaosProxy::start(address, chaos).unwrap());
        let endpoint = proxy.as_ref().map_or(address, ChaosProxy::address);
        Self {
            daemon: Mutex::new(daemon),
            address,
            proxy,
            client: client_of([format!("http://{endpoint}")], |builder| builder),
        }
    }
}

/// A client of several nodes.
pub fn client_of<S: Into<String>>(
    endpoints: impl IntoIterator<Item = S>,
    options: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> Client {
    let builder = Client::builder().endpoints(endpoints).http_timeout(HTTP_TIMEOUT);
    options(builder).build().unwrap()
}
