//! From the listening socket to the workers' channel.
//!
//! The HTTP library accepts connections and reads heads on threads of its own; one intake thread takes the requests and
//! passes them on. When more wait than the limit allows, the intake answers 503 itself, so that overload costs the
//! clients a retry and the server no memory.
//!
//! Three habits of the library are mended here:
//!
//! - It may leave connections of a burst without a thread; see the module `usher`.
//! - Its accept loop ends at the first accept error, for example when the process is out of file descriptors, and without
//!   a word when the last descriptor goes while it takes a connection in. A new loop is then started on a clone of the
//!   listener, and the connections of the old one are served on.
//! - It sets no time-outs. The ones set on the *listening* socket are inherited by every accepted one (Linux), which
//!   bounds clients that send or read slowly, but also makes an idle `accept` time out; a probe of our own health endpoint,
//!   more often than that, keeps it awake.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use socket2::{Domain, SockRef, Socket, Type};
use tiny_http::{Request, Server};

use super::usher::Usher;
use crate::logging::Logger;
use crate::net::sever::ListenerAddr;
use crate::threads;

/// A client that neither sends nor takes a byte for so long is cut; an idle connection lives so long.
pub(super) const SOCKET_TIMEOUT: Duration = Duration::from_secs(60);
/// Well below the time-out, so that `accept` never sees it.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How soon to look again while requests come in or some connections still have something unread.
const LOOK_WHEN_BUSY_EVERY: Duration = Duration::from_millis(500);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Pauses between attempts to accept again.
const REBUILD_PAUSE_MIN: Duration = Duration::from_millis(50);
const REBUILD_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenOn {
    /// A TCP address; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// A unix socket. A stale one at this path is replaced.
    Unix(PathBuf),
}

/// A bound listener.
pub enum Bound {
    /// TCP.
    Tcp(TcpListener),
    /// Unix socket.
    Unix(UnixListener, PathBuf),
}

impl Bound {
    /// Binds and listens. From here on clients can connect; they are served once the intake runs.
    pub fn bind(on: &ListenOn) -> io::Result<Self> {
        match on {
            ListenOn::Tcp(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                socket.set_tcp_nodelay(true)?;
                socket.set_read_timeout(Some(SOCKET_TIMEOUT))?;
                socket.set_write_timeout(Some(SOCKET_TIMEOUT))?;
                socket.bind(&(*address).into())?;
                socket.listen(BACKLOG)?;
                Ok(Self::Tcp(socket.into()))
            }
            ListenOn::Unix(path) => {
                remove_stale_socket(path)?;
                Ok(Self::Unix(UnixListener::bind(path)?, path.clone()))
            }
        }
    }

    /// The address, with the port that the system chose.
    pub fn address(&self) -> io::Result<ListenerAddr> {
        Ok(match self {
            Self::Tcp(listener) => ListenerAddr::Tcp(listener.local_addr()?),
            Self::Unix(_, path) => ListenerAddr::Unix(path.clone()),
        })
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => Self::Tcp(listener.try_clone()?),
            Self::Unix(listener, path) => Self::Unix(listener.try_clone()?, path.clone()),
        })
    }

    fn serve(&self) -> io::Result<Server> {
        let server = match self.try_clone()? {
            Self::Tcp(listener) => Server::from_listener(listener, None),
            Self::Unix(listener, _) => Server::from_listener(listener, None),
        };
        server.map_err(|cause| io::Error::other(cause.to_string()))
    }

    /// Ends listening: new connections are refused from now on, the accept loop wakes up and ends.
    fn close(&self) {
        let closed = match self {
            Self::Tcp(listener) => SockRef::from(listener).shutdown(std::net::Shutdown::Both),
            Self::Unix(listener, path) => {
                let _ = std::fs::remove_file(path);
                SockRef::from(listener).shutdown(std::net::Shutdown::Both)
            }
        };
        // Not connected is what some systems say of a listener; it has stopped all the same.
        drop(closed);
    }
}

/// A socket file that nobody listens on is a leftover; one that answers belongs to somebody.
fn remove_stale_socket(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(cause) => Err(cause),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the path exists and is no socket",
        )),
        Ok(_) if UnixStream::connect(path).is_ok() => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another server listens on this socket",
        )),
        Ok(_) => std::fs::remove_file(path),
    }
}

/// The running intake.
pub struct Intake {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

struct Shared {
    listener: Bound,
    log: Logger,
    take: Box<dyn Fn(Request) + Send + Sync>,
    tend: Box<dyn Fn() + Send + Sync>,
    stopping: AtomicBool,
    wishes: Mutex<Wishes>,
    wish_made: Condvar,
    usher: Usher,
    /// Requests have come in since the keeper looked last.
    busy: AtomicBool,
    servers: Mutex<Vec<(Arc<Server>, JoinHandle<()>)>>,
}

/// What the keeper thread is asked to do.
#[derive(Default)]
struct Wishes {
    stop: bool,
    /// An accept loop has died.
    accept_again: bool,
    /// Connections have come; some of the same burst may be without a thread.
    usher: bool,
}

impl Intake {
    /// Starts to take requests and calls `take` with each. `take` must not block. `tend` is called every few seconds.
    pub fn start(
        listener: Bound,
        log: Logger,
        take: impl Fn(Request) + Send + Sync + 'static,
        tend: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let address = listener.address()?;
        let usher = Usher::new(&address);
        let shared = Arc::new(Shared {
            listener,
            log,
            take: Box::new(take),
            tend: Box::new(tend),
            stopping: AtomicBool::new(false),
            wishes: Mutex::new(Wishes::default()),
            wish_made: Condvar::new(),
            usher,
            busy: AtomicBool::new(false),
            servers: Mutex::new(Vec::new()),
        });
        shared.add_server()?;
        let keeper = Arc::clone(&shared);
        let keeper = threads::spawn("http-keeper", move || keeper.keep_accepting())?;
        Ok(Self {
            shared,
            keeper: Some(keeper),
        })
    }

    /// Stops to accept. Connections that are there are served on.
    pub fn stop_accepting(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.listener.close();
    }

    /// Stops altogether and waits for the threads.
    pub fn stop(mut self) {
        self.stop_accepting();
        self.shared.wish(|wishes| wishes.stop = true);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        let servers = std::mem::take(&mut *self.shared.servers.lock());
        for (server, thread) in servers {
            server.unblock();
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn add_server(self: &Arc<Self>) -> io::Result<()> {
        let server = Arc::new(self.listener.serve()?);
        let (shared, taken) = (Arc::clone(self), Arc::clone(&server));
        let thread = threads::spawn("http-intake", move || shared.take_requests(&taken))?;
        self.servers.lock().push((server, thread));
        Ok(())
    }

    /// Takes requests until the intake stops. When the accept loop has died, the keeper starts another, and this thread
    /// goes on with the connections of the old one.
    fn take_requests(&self, server: &Server) {
        loop {
            match server.recv() {
                Ok(request) => {
                    // Who takes his own probe for company never comes to rest.
                    if !self.usher.is_own(request.url()) {
                        self.busy.store(true, Ordering::Relaxed);
                        if self.usher.is_news(request.remote_addr()) {
                            self.wish(|wishes| wishes.usher = true);
                        }
                    }
                    (self.take)(request);
                }
                Err(_) if self.wishes.lock().stop => return,
                Err(_) if self.stopping.load(Ordering::SeqCst) => {}
                Err(cause) => {
                    let error = cause.to_string();
                    log::warn!(logger: self.log, target: "api.http.server", error; "http.accept.failed");
                    self.wish(|wishes| wishes.accept_again = true);
                }
            }
        }
    }

    fn wish(&self, change: impl FnOnce(&mut Wishes)) {
        change(&mut self.wishes.lock());
        self.wish_made.notify_all();
    }

    /// Waits for a wish, but no longer than this; `None` once the intake stops.
    fn next_wish(&self, patience: Duration) -> Option<Wishes> {
        let mut wishes = self.wishes.lock();
        if !wishes.stop && !wishes.accept_again && !wishes.usher {
            self.wish_made.wait_for(&mut wishes, patience);
        }
        let wish = std::mem::take(&mut *wishes);
        wishes.stop = wish.stop;
        (!wish.stop).then_some(wish)
    }

    /// Seats connections, keeps the accept loop awake and replaces it when it has died.
    fn keep_accepting(self: &Arc<Self>) {
        let mut pause = REBUILD_PAUSE_MIN;
        let mut next_look = PROBE_EVERY;
        while let Some(wish) = self.next_wish(next_look) {
            if self.stopping.load(Ordering::SeqCst) {
                continue;
            }
            (self.tend)();
            let settled = self.usher.seat_everybody(|span| self.pause(span));
            let busy = self.busy.swap(false, Ordering::Relaxed);
            next_look = if busy || wish.usher || !settled {
                LOOK_WHEN_BUSY_EVERY
            } else {
                PROBE_EVERY
            };
            // The loop may also have died without a word: in a panic, at the last file descriptor.
            let suspicious = !wish.usher && (!busy || self.usher.somebody_waits_outside());
            let is_dead = wish.accept_again || (suspicious && !self.is_well());
            if !is_dead {
                if suspicious {
                    pause = REBUILD_PAUSE_MIN;
                }
                continue;
            }
            // What made accept fail (no descriptors, most likely) will make it fail again at once.
            self.pause(pause);
            pause = (pause * 2).min(REBUILD_PAUSE_MAX);
            // All who waited meanwhile are accepted at once, and may be too many again.
            next_look = LOOK_WHEN_BUSY_EVERY;
            match self.add_server() {
                Ok(()) => log::warn!(logger: self.log, target: "api.http.server", "http.accept.rebuilt"),
                Err(cause) => {
                    let error = cause.to_string();
                    log::warn!(logger: self.log, target: "api.http.server", error; "http.accept.failed");
                    self.wish(|wishes| wishes.accept_again = true);
                }
            }
        }
    }

    fn is_well(&self) -> bool {
        let Err(cause) = self.usher.probe() else { return true };
        let error = cause.to_string();
        log::warn!(logger: self.log, target: "api.http.server", error; "http.probe.failed");
        false
    }

    /// Waits, but not beyond the stop.
    fn pause(&self, span: Duration) {
        let mut wishes = self.wishes.lock();
        self.wish_made.wait_while_for(&mut wishes, |wishes| !wishes.stop, span);
    }
}
