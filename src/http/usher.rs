//! Finds a thread for connections that the HTTP library has accepted and forgotten.
//!
//! The library (tiny_http 0.12) gives an accepted connection to a waiting thread of its pool if one seems to wait, and
//! starts a thread if none does. In a burst several connections are given to the same waiting thread, because it has not
//! woken up yet to say that it waits no more. Those behind the first stay in the pool's queue until some thread
//! becomes free, which is when *another connection ends*: with long-lived connections that may be never.
//!
//! A connection that ends at once is enough to free one of them: it gets a thread of its own (none waits), and when
//! that thread is done it takes the next connection from the queue. So after new connections were seen, the usher looks
//! for connections whose bytes nobody reads, and for each of them opens and closes a connection to our own listener, until
//! none is left. Where the kernel does not tell about unread bytes, it does so a few times blindly.
//!
//! Uploads and pipelined requests have unread bytes for good reasons. They cost a few idle connections, nothing else.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::net::peer::PeerProbe;
use crate::net::sever::ListenerAddr;

/// Pauses before each look: a thread that has been woken needs a moment to read.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
];
/// Connections opened after one look, and without one.
const OPENED_MAX: usize = 256;
const OPENED_BLINDLY: usize = 8;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds each step of a probe. When a living server takes longer, it gets a second accept loop, which does no harm.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Watches over the connections of one listener.
pub(super) struct Usher {
    reachable: ListenerAddr,
    port: Option<u16>,
    kernel: PeerProbe,
    /// What our own probe asks for; nobody else knows of it.
    probe_url: String,
    /// For each port that a client can have, a mark of the address that was last seen with it; 256 ports in a block, and a
    /// block where one of them was seen. Most daemons see few.
    seen: Vec<OnceLock<Box<[AtomicU32]>>>,
}

impl Usher {
    pub(super) fn new(listener: &ListenerAddr) -> Self {
        let (reachable, port) = match listener {
            ListenerAddr::Tcp(address) => (ListenerAddr::Tcp(reachable(*address)), Some(address.port())),
            unix @ ListenerAddr::Unix(_) => (unix.clone(), None),
        };
        let seen = (0..=u8::MAX).map(|_| OnceLock::new()).collect();
        Self {
            reachable,
            port,
            kernel: PeerProbe::new(),
            probe_url: format!("/healthz?probe={:016x}", fastrand::u64(..)),
            seen,
        }
    }

    /// True for what [`probe`](Self::probe) has sent: no sign that anybody is here.
    pub(super) fn is_own(&self, url: &str) -> bool {
        url == self.probe_url
    }

    /// True for the first request of a connection, as far as one can tell. Clients on a unix socket have no addresses:
    /// each of their requests may be one.
    pub(super) fn is_news(&self, client: Option<&SocketAddr>) -> bool {
        let Some(client) = client else { return true };
        let mut hasher = DefaultHasher::new();
        client.ip().hash(&mut hasher);
        // The low half is as good as any; a zero would look like an empty place.
        let mark = u32::try_from(hasher.finish() & u64::from(u32::MAX)).unwrap_or(1) | 1;
        let [high, low] = client.port().to_be_bytes();
        let block = self.seen[usize::from(high)].get_or_init(|| (0..=u8::MAX).map(|_| AtomicU32::new(0)).collect());
        block[usize::from(low)].swap(mark, Ordering::Relaxed) != mark
    }

    /// Looks until every connection that has sent something is being read, or for about a quarter of a second. False:
    /// some still are not.
    pub(super) fn seat_everybody(&self, pause: impl Fn(Duration)) -> bool {
        for span in PAUSES {
            pause(span);
            match self.port.map(|port| self.kernel.unread_on(port)) {
                Some(Ok(0)) => return true,
                Some(Ok(unread)) => self.open_and_close(unread.min(OPENED_MAX)),
                Some(Err(_)) | None => self.open_and_close(OPENED_BLINDLY),
            }
        }
        // Nobody knows when the kernel does not tell; the next new connection makes us look again.
        !matches!(self.port.map(|port| self.kernel.unread_on(port)), Some(Ok(1..)))
    }

    /// True when connections wait to be accepted, or when that cannot be known.
    pub(super) fn somebody_waits_outside(&self) -> bool {
        self.port
            .is_none_or(|port| self.kernel.backlog_of(port).unwrap_or(1) != 0)
    }

    /// Asks our own health endpoint through the listener, as a client would.
    pub(super) fn probe(&self) -> io::Result<()> {
        match &self.reachable {
            ListenerAddr::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, PROBE_TIMEOUT)?;
                stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
                ask_for_health(stream, &self.probe_url)
            }
            ListenerAddr::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
                ask_for_health(stream, &self.probe_url)
            }
        }
    }

    fn open_and_close(&self, count: usize) {
        for _ in 0..count {
            let opened = match &self.reachable {
                ListenerAddr::Tcp(address) => TcpStream::connect_timeout(address, CONNECT_TIMEOUT).map(drop),
                ListenerAddr::Unix(path) => UnixStream::connect(path).map(drop),
            };
            if opened.is_err() {
                return;
            }
        }
    }
}

fn ask_for_health(mut stream: impl Read + Write, url: &str) -> io::Result<()> {
    let request = format!("GET {url} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    if &status == b"HTTP/1.1 200" {
        Ok(())
    } else {
        Err(io::Error::other("the health endpoint is not well"))
    }
}

/// The address at which this machine reaches a listener of its own.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, v4.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, v6.port())),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_news_once() {
        let usher = Usher::new(&ListenerAddr::Tcp(SocketAddr::from(([127, 0, 0, 1], 9341))));
        let client = SocketAddr::from(([127, 0, 0, 1], 40_000));
        let another = SocketAddr::from(([10, 0, 0, 1], 40_000));
        assert!(usher.is_news(Some(&client)));
        assert!(!usher.is_news(Some(&client)));
        assert!(usher.is_news(Some(&another)));
        assert!(usher.is_news(Some(&client)));
        assert!(usher.is_news(None));
        for port in [0, 255, 256, u16::MAX] {
            let client = SocketAddr::from(([127, 0, 0, 1], port));
            assert!(usher.is_news(Some(&client)) && !usher.is_news(Some(&client)), "{port}");
        }
    }
}
