//! Is the client of a parked request still there?
//!
//! While a request waits, nobody reads its connection, so nobody notices when the client goes away. A lease granted to it
//! would be held by nobody until it expires. The kernel knows: it has seen the FIN or RST. This module asks it about the
//! server-side socket of a connection, without having that socket.
//!
//! A connection is [`PeerState::Connected`] while its socket is established. A client that has closed its sending side
//! counts as [`PeerState::Gone`], although it might still read: no client of this protocol does that, and it looks the
//! same as one that has closed everything. So does a socket that does not exist any more. But that a socket is
//! not found is believed only if the kernel shows us the *listener*: in another network namespace or in a sandbox we would
//! find nothing at all, and would take everybody for gone. In all cases of doubt the answer is [`PeerState::Unknown`]; no
//! question blocks and none panics.
//!
//! A client that aborts may connect again from the same port before anybody asks. It is told from the one before by the
//! [`Mark`] of its socket, for whoever has asked for that in time.
//!
//! Left out on purpose: a machine that vanished without a FIN is found by keep-alive probes and by writing to it, not
//! here.
//! Unix sockets have no addresses to ask by. Everything but Linux answers `Unknown`.

use std::io;
use std::net::SocketAddr;

use socket2::Socket;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux::Kernel;

#[cfg(test)]
mod tests;

/// What is known about the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    /// The connection is established in both directions, as far as our kernel has heard.
    Connected,
    /// The peer has closed or aborted the connection.
    Gone,
    /// The kernel cannot or may not be asked. Carry on as if the peer were connected.
    Unknown,
}

/// Tells the socket of a connection from all others, also from a later one with the same addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark(u64);

impl Mark {
    /// The mark of a socket of ours; `None` where the kernel does not tell.
    pub(crate) fn of(socket: &Socket) -> Option<Self> {
        #[cfg(target_os = "linux")]
        {
            let cookie = rustix::net::sockopt::socket_cookie(socket).ok()?;
            // Netlink shows it as two halves, the low one first.
            Some(Self(if cfg!(target_endian = "big") {
                cookie.rotate_left(32)
            } else {
                cookie
            }))
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = socket;
            None
        }
    }

    /// Any mark.
    #[cfg(test)]
    pub(crate) fn for_tests(number: u64) -> Self {
        Self(number)
    }
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The mark of the socket on our side, if anybody has asked for it.
    pub mark: Option<Mark>,
}

impl Peer {
    #[cfg(target_os = "linux")]
    fn is_another_than(&self, mark: Mark) -> bool {
        self.mark.is_some_and(|known| known != mark)
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self { address, mark: None }
    }
}

/// Asks the kernel about connections. One per server; threads share it and wait for each other.
#[derive(Default)]
pub struct PeerProbe {
    kernel: Kernel,
}

impl PeerProbe {
    /// A probe. Never fails: where the kernel refuses, it knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the kernel answers at all. For a line in the log at start: without it, all answers are `Unknown`.
    pub fn check(&self) -> io::Result<()> {
        self.kernel.check()
    }

    /// The state of the connection that was accepted at `local` and came from `remote`. A `local` with a wildcard address
    /// (`0.0.0.0`, `[::]`) stands for all addresses of the machine and costs a search through its sockets.
    pub fn state(&self, local: SocketAddr, remote: impl Into<Peer>) -> PeerState {
        self.kernel.state(local, remote.into()).unwrap_or(PeerState::Unknown)
    }

    /// The mark of the socket of this connection; `None` when there is none, or it cannot be known.
    pub fn mark(&self, local: SocketAddr, remote: SocketAddr) -> Option<Mark> {
        self.kernel.mark(local, remote).ok().flatten()
    }

    /// Those of `peers` that were connected to `local_port` on some address of this machine and are gone, in the order
    /// given. One search through the sockets of the machine, a few if somebody is gone, however many peers there are.
    pub fn gone_among(&self, local_port: u16, peers: &[Peer]) -> Vec<Peer> {
        self.kernel.gone_among(local_port, peers).unwrap_or_default()
    }
}

impl PeerProbe {
    /// How many established connections of `local_port` have sent something that nobody has read yet.
    pub fn unread_on(&self, local_port: u16) -> io::Result<usize> {
        self.kernel.unread_on(local_port)
    }

    /// The clients of `local_port` that have closed their sending side while ours is open.
    pub fn half_closed_on(&self, local_port: u16) -> io::Result<Vec<SocketAddr>> {
        self.kernel.half_closed_on(local_port)
    }

    /// How many connections to the listener on `local_port` wait to be accepted.
    pub fn backlog_of(&self, local_port: u16) -> io::Result<u32> {
        self.kernel.backlog_of(local_port)
    }
}

/// A kernel that we do not know how to ask.
#[cfg(not(target_os = "linux"))]
#[derive(Default)]
struct Kernel;

#[cfg(not(target_os = "linux"))]
impl Kernel {
    fn check(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn state(&self, _local: SocketAddr, _peer: Peer) -> io::Result<PeerState> {
        Ok(PeerState::Unknown)
    }

    fn mark(&self, _local: SocketAddr, _remote: SocketAddr) -> io::Result<Option<Mark>> {
        Ok(None)
    }

    fn gone_among(&self, _local_port: u16, _peers: &[Peer]) -> io::Result<Vec<Peer>> {
        Ok(Vec::new())
    }

    fn unread_on(&self, _local_port: u16) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn half_closed_on(&self, _local_port: u16) -> io::Result<Vec<SocketAddr>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn backlog_of(&self, _local_port: u16) -> io::Result<u32> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
