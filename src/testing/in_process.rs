//! A server and its client within one process, joined by a unix socket that nobody else sees.
//!
//! For programs that want leases and states without a daemon, and for tests that need no more than a client.

use std::fmt;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;

use lockd_client::{Client, ClientBuilder, Error as ClientError};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::server::{Parts, ServeError, Server};
use crate::settings::Listen;

/// The socket's name in its directory.
const SOCKET: &str = "lockd.sock";

/// A server and a client of it. Closed when dropped, in the configured way; while a test fails, at once.
///
/// ```
/// use lockd::{logging, server::Parts, settings::Settings, testing::InProcess};
///
/// let lockd = InProcess::start(Parts::new(Settings::default(), logging::off()), |client| client).unwrap();
/// let lease = lockd.client().acquire("orders/4711").unwrap();
/// lease.release().unwrap();
/// lockd.close().unwrap();
/// ```
pub struct InProcess {
    client: Client,
    server: Arc<Server>,
    directory: Mutex<Option<TempDir>>,
}

impl InProcess {
    /// Starts a server on `lockd.sock` in a fresh temporary directory that only this user can enter, and builds a client
    /// of it. Settings whose `listen` was not touched get that socket, settings with a unix socket of their own keep it,
    /// any other listener is an error.
    pub fn start(
        mut parts: Parts,
        options: impl FnOnce(ClientBuilder) -> ClientBuilder,
    ) -> Result<Self, InProcessError> {
        let directory = tempfile::Builder::new()
            .prefix("lockd-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(InProcessError::Directory)?;
        let configured = &parts.settings.listen;
        if *configured == Listen::default() {
            parts.settings.listen = Listen::Unix(directory.path().join(SOCKET));
        } else if !matches!(configured, Listen::Unix(_)) {
            return Err(InProcessError::NotUnix(configured.to_string()));
        }
        let server = Server::start(parts).map_err(InProcessError::Serve)?;
        let builder = Client::builder().endpoint(server.url());
        let client = options(builder).build().map_err(InProcessError::Client)?;
        Ok(Self {
            client,
            server: Arc::new(server),
            directory: Mutex::new(Some(directory)),
        })
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The server.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Closes the client, stops the server in the configured way (which may wait for leases that are still held), and
    /// removes the directory. Does nothing the second time. Fails if the directory cannot be removed.
    pub fn close(&self) -> io::Result<()> {
        self.client.close();
        self.server.shutdown();
        match self.directory.lock().take() {
            Some(directory) => directory.close(),
            None => Ok(()),
        }
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        if thread::panicking() {
            self.server.abort();
        }
        // Nobody is left to be told.
        let _ = self.close();
    }
}

/// Why there is no server in this process.
#[derive(Debug)]
#[non_exhaustive]
pub enum InProcessError {
    /// The settings name a listener that is no unix socket.
    NotUnix(String),
    /// No temporary directory is to be had.
    Directory(io::Error),
    /// The server says no.
    Serve(ServeError),
    /// The client could not be built.
    Client(ClientError),
}

impl fmt::Display for InProcessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUnix(listen) => write!(
                f,
                "a server in this process listens on a unix socket only, not on {listen}"
            ),
            Self::Directory(cause) => write!(f, "no directory for the socket: {cause}"),
            Self::Serve(cause) => cause.fmt(f),
            Self::Client(cause) => cause.fmt(f),
        }
    }
}

impl std::error::Error for InProcessError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotUnix(_) => None,
            Self::Directory(cause) => Some(cause),
            Self::Serve(cause) => Some(cause),
            Self::Client(cause) => Some(cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging;
    use crate::net::sever::ListenerAddr;
    use crate::settings::Settings;

    fn start() -> InProcess {
        InProcess::start(Parts::new(Settings::default(), logging::off()), |client| client).unwrap()
    }

    fn socket(lockd: &InProcess) -> std::path::PathBuf {
        match lockd.server().address() {
            ListenerAddr::Unix(path) => path.clone(),
            ListenerAddr::Tcp(address) => panic!("listens on {address}"),
        }
    }

    #[test]
    fn a_lease_and_its_state_work_over_the_socket() {
        let lockd = start();
        assert_eq!(
            lockd.client().endpoints(),
            [format!("unix://{}", socket(&lockd).display())]
        );
        let lease = lockd.client().acquire("k").unwrap();
        lease.save(&[1, 2]).unwrap();
        assert_eq!(lease.load::<Vec<i32>>().unwrap(), Some(vec![1, 2]));
        lease.keepalive(std::time::Duration::from_secs(60)).unwrap();
        lease.update(&b"{}"[..]).unwrap();
        lease.release().unwrap();
        assert_eq!(lockd.client().describe("k").unwrap().version, 1);
        assert_eq!(lockd.client().get_public("k").unwrap().into_bytes().unwrap(), b"{}");
    }

    #[test]
    fn only_this_user_can_reach_the_socket() {
        let lockd = start();
        let directory = socket(&lockd).parent().unwrap().to_owned();
        let mode = directory.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn closing_removes_the_directory_and_may_be_repeated() {
        let lockd = start();
        let socket = socket(&lockd);
        assert!(socket.ends_with(SOCKET) && socket.exists());
        lockd.close().unwrap();
        assert!(!socket.parent().unwrap().exists());
        lockd.close().unwrap();
        assert!(lockd.client().describe("k").unwrap_err().is_transport());
    }

    #[test]
    fn dropping_closes() {
        let lockd = start();
        let directory = socket(&lockd).parent().unwrap().to_owned();
        drop(lockd);
        assert!(!directory.exists());
    }

    #[test]
    fn other_listeners_are_refused_and_a_socket_of_ones_own_is_kept() {
        let with = |listen| {
            let settings = Settings {
                listen,
                ..Settings::default()
            };
            InProcess::start(Parts::new(settings, logging::off()), |client| client)
        };
        let refused = with(Listen::loopback_any_port()).err().unwrap();
        assert!(
            matches!(&refused, InProcessError::NotUnix(listen) if listen == "127.0.0.1:0"),
            "{refused}"
        );
        let own = tempfile::tempdir().unwrap();
        let path = own.path().join("own.sock");
        let lockd = with(Listen::Unix(path.clone())).unwrap();
        assert_eq!(socket(&lockd), path);
        lockd.close().unwrap();
        assert!(own.path().exists());
    }
}
