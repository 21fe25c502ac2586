//! Finds and closes the accepted connections of a listener in this process, whoever holds them.
//!
//! The HTTP library keeps its sockets to itself: when a server that is embedded in a larger program stops, connections
//! that clients keep alive would stay open, with a thread behind each of them. The process can still find them: `/proc`
//! lists its file descriptors, and `pidfd_getfd` on the process itself gives a safe duplicate of each. If the duplicate
//! turns out to be a connected stream socket at our address, it is shut down in both directions, which whoever holds the
//! original sees as the end of its input.
//!
//! Everything is checked on the duplicate, never on a number, so a descriptor that is closed and used again meanwhile is no
//! danger. Listening sockets stay untouched, and so do sockets that this process has connected *to* our address: ours
//! is their peer's address and not their own. What was written before still reaches the peer, followed by an orderly
//! end; only a client that goes on sending may see a reset after it.
//!
//! Only connections that are there already are found, so stop accepting first. Linux 5.6 or later; some container profiles
//! forbid `pidfd_getfd`. Then the answer is an error, and idle connections end when their clients close them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::ops::ControlFlow;
use std::path::PathBuf;

use socket2::{SockAddr, Socket, Type};

use super::peer::{Mark, Peer};

#[cfg(test)]
mod tests;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerAddr {
    /// A TCP address. A wildcard (`0.0.0.0`, `[::]`) stands for all addresses of the machine.
    Tcp(SocketAddr),
    /// The path of a Unix socket, spelled as it was when the listener was bound.
    Unix(PathBuf),
}

/// Shuts down every connection that was accepted at `local`, and says how many there were. An error says that nothing or
/// not everything could be looked at; connections found before it are shut down.
pub fn sever_connections(local: &ListenerAddr) -> io::Result<usize> {
    let mut severed = 0;
    each_connection(
        |address, _| match local {
            ListenerAddr::Tcp(local) => address.as_socket().is_some_and(|address| is_at(address, *local)),
            ListenerAddr::Unix(path) => address.as_pathname() == Some(path),
        },
        |connection| {
            severed += usize::from(connection.shutdown(Shutdown::Both).is_ok());
            ControlFlow::Continue(())
        },
    )?;
    Ok(severed)
}

/// Shuts down the connections that were accepted at `local` and came from one of these, and says how many there were.
pub fn sever_those(local: SocketAddr, remotes: &[SocketAddr]) -> io::Result<usize> {
    let key = |remote: SocketAddr| (remote.ip().to_canonical(), remote.port());
    let wanted: HashSet<_> = remotes.iter().copied().map(key).collect();
    let mut severed = 0;
    each_connection(
        |address, peer| {
            address.as_socket().is_some_and(|address| is_at(address, local))
                && peer.as_socket().is_some_and(|peer| wanted.contains(&key(peer)))
        },
        |connection| {
            severed += usize::from(connection.shutdown(Shutdown::Both).is_ok());
            ControlFlow::Continue(())
        },
    )?;
    Ok(severed)
}

/// Ends the reading side of the connections that were accepted at `local` and come from one of these, and says how many there
/// were. Whoever reads one of them sees the end of its input; what is written to it still arrives. A connection with another
/// mark than expected is left alone.
pub fn end_reading(local: SocketAddr, peers: &[Peer]) -> io::Result<usize> {
    let key = |remote: SocketAddr| (remote.ip().to_canonical(), remote.port());
    let mut wanted: HashMap<_, _> = peers.iter().map(|peer| (key(peer.address), peer.mark)).collect();
    let mut ended = 0;
    // There may be very many, so what rules most of them out is asked first.
    each_socket(|_, socket| {
        if let Some(peer) = socket.peer_addr().ok().and_then(|peer| peer.as_socket())
            && let Some(mark) = wanted.get(&key(peer))
            && socket
                .local_addr()
                .is_ok_and(|own| own.as_socket().is_some_and(|own| is_at(own, local)))
            && mark.is_none_or(|mark| Mark::of(&socket) == Some(mark))
        {
            wanted.remove(&key(peer));
            ended += usize::from(socket.shutdown(Shutdown::Read).is_ok());
        }
        if wanted.is_empty() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(ended)
}

/// A duplicate of the connection that was accepted at `local` and came from `remote`; `None` if there is none (any more).
pub fn find_connection(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Socket>> {
    let mut found = None;
    each_connection(
        |address, peer| {
            address.as_socket().is_some_and(|address| is_at(address, local))
                && peer.as_socket().is_some_and(|peer| is_same(peer, remote))
        },
        |connection| {
            found = Some(connection);
            ControlFlow::Break(())
        },
    )?;
    Ok(found)
}

/// Whether a socket with this address was accepted by a listener at `local`.
fn is_at(address: SocketAddr, local: SocketAddr) -> bool {
    is_same(address, local) || (local.ip().is_unspecified() && address.port() == local.port())
}

/// An IPv4 address is the same whether mapped to IPv6 or not.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
}

/// Shows a duplicate of each connected stream socket of this process whose own address and peer fit, until one was enough.
/// A connection with several descriptors is shown once.
fn each_connection(
    fits: impl Fn(&SockAddr, &SockAddr) -> bool,
    mut show: impl FnMut(Socket) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut shown = HashSet::new();
    each_socket(|name, socket| {
        let is_stream = socket.r#type().is_ok_and(|kind| kind == Type::STREAM);
        // A listener has no peer, and neither has a connection that was aborted.
        let (Ok(address), Ok(peer)) = (socket.local_addr(), socket.peer_addr()) else {
            return ControlFlow::Continue(());
        };
        if is_stream && fits(&address, &peer) && shown.insert(name) {
            return show(socket);
        }
        ControlFlow::Continue(())
    })
}

/// Shows a duplicate of each descriptor of this process that is a socket, until one was enough. The name is the same for all
/// descriptors of one socket.
///
/// Nothing but sockets is duplicated: with the duplicate of a file, the record locks of the process on it would go.
#[cfg(target_os = "linux")]
fn each_socket(mut show: impl FnMut(PathBuf, Socket) -> ControlFlow<()>) -> io::Result<()> {
    use rustix::io::Errno;
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

    let doing = |what: &'static str| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    let process = pidfd_open(getpid(), PidfdFlags::empty())
        .map_err(|errno| doing("cannot open our own process")(errno.into()))?;
    // Listed before the first duplicate is made, so that duplicates are not listed.
    let entries = std::fs::read_dir("/proc/self/fd").and_then(Iterator::collect::<io::Result<Vec<_>>>);
    for entry in entries.map_err(doing("cannot list our own files"))? {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Reads like `socket:[4711]`. Fails if closed meanwhile.
        let Some(name) = std::fs::read_link(entry.path())
            .ok()
            .filter(|name| name.to_string_lossy().starts_with("socket:"))
        else {
            continue;
        };
        let socket = match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
            Ok(duplicate) => Socket::from(duplicate),
            Err(Errno::BADF) => continue,
            Err(errno) => return Err(doing("cannot duplicate our own socket")(errno.into())),
        };
        if show(name, socket).is_break() {
            break;
        }
    }
    Ok(())
}

/// Other systems have no way to find the sockets.
#[cfg(not(target_os = "linux"))]
fn each_socket(_show: impl FnMut(PathBuf, Socket) -> ControlFlow<()>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
