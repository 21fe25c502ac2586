//! Linux: what the answers of the kernel say about a peer.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_sock_diag::constants::{TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT};
use netlink_packet_sock_diag::inet::StateFlags;
use parking_lot::Mutex;

use super::{Mark, Peer, PeerState};
use crate::net::sock_diag::{Family, SockDiag};

/// The kernel, asked by one thread at a time. An error says that nothing is known.
#[derive(Default)]
pub(super) struct Kernel {
    /// Opened with the first question and again after an error.
    diag: Mutex<Option<SockDiag>>,
}

impl Kernel {
    /// Asks a question that has an answer everywhere.
    pub(super) fn check(&self) -> io::Result<()> {
        self.with(|diag| diag.dump(Family::V4, StateFlags::LISTEN, 1, 0, &mut |_, _, _| {}))
    }

    /// See [`super::PeerProbe::state`].
    pub(super) fn state(&self, local: SocketAddr, peer: Peer) -> io::Result<PeerState> {
        self.with(|diag| state(diag, local, peer))
    }

    /// See [`super::PeerProbe::mark`].
    pub(super) fn mark(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Mark>> {
        self.with(|diag| {
            if !local.ip().is_unspecified()
                && let Some(found) = diag.lookup(local, remote)?
                && found.state != TCP_LISTEN
            {
                return Ok(Some(Mark(found.cookie)));
            }
            let mut mark = None;
            for family in [Family::V4, Family::V6] {
                diag.dump(family, ALIVE, local.port(), remote.port(), &mut |found, _, cookie| {
                    if key(&found) == key(&remote) {
                        mark = Some(Mark(cookie));
                    }
                })?;
                if mark.is_some() {
                    break;
                }
            }
            Ok(mark)
        })
    }

    /// See [`super::PeerProbe::gone_among`].
    pub(super) fn gone_among(&self, local_port: u16, peers: &[Peer]) -> io::Result<Vec<Peer>> {
        if peers.is_empty() {
            return Ok(Vec::new());
        }
        self.with(|diag| gone_among(diag, local_port, peers))
    }

    /// See [`super::PeerProbe::unread_on`].
    pub(super) fn unread_on(&self, local_port: u16) -> io::Result<usize> {
        self.with(|diag| {
            let mut unread = 0;
            for family in [Family::V4, Family::V6] {
                let mut count = |_, bytes: u32, _| unread += usize::from(bytes != 0);
                diag.dump(family, StateFlags::ESTABLISHED, local_port, 0, &mut count)?;
            }
            Ok(unread)
        })
    }

    /// See [`super::PeerProbe::half_closed_on`].
    pub(super) fn half_closed_on(&self, local_port: u16) -> io::Result<Vec<SocketAddr>> {
        self.with(|diag| {
            let mut remotes = Vec::new();
            for family in [Family::V4, Family::V6] {
                let mut collect = |remote, _, _| remotes.push(remote);
                diag.dump(family, StateFlags::CLOSE_WAIT, local_port, 0, &mut collect)?;
            }
            Ok(remotes)
        })
    }

    /// See [`super::PeerProbe::backlog_of`].
    pub(super) fn backlog_of(&self, local_port: u16) -> io::Result<u32> {
        self.with(|diag| {
            let mut backlog = 0;
            for family in [Family::V4, Family::V6] {
                // Of a listener, what waits to be read are the connections that wait to be accepted.
                let mut most = |_, waiting: u32, _| backlog = backlog.max(waiting);
                diag.dump(family, StateFlags::LISTEN, local_port, 0, &mut most)?;
            }
            Ok(backlog)
        })
    }

    fn with<T>(&self, question: impl FnOnce(&mut SockDiag) -> io::Result<T>) -> io::Result<T> {
        let mut slot = self.diag.lock();
        // Taken out, so that after an error the next question starts with a new socket.
        let mut diag = slot.take().map_or_else(SockDiag::open, Ok)?;
        let answer = question(&mut diag)?;
        *slot = Some(diag);
        Ok(answer)
    }
}

/// States in which the peer of an accepted socket has not gone. With TCP Fast Open, one can be accepted in `SYN_RECV`.
const ALIVE: StateFlags = StateFlags::ESTABLISHED.union(StateFlags::SYN_RECV);

fn state(diag: &mut SockDiag, local: SocketAddr, peer: Peer) -> io::Result<PeerState> {
    if !local.ip().is_unspecified() {
        match diag.lookup(local, peer.address)? {
            Some(found) if found.state != TCP_LISTEN && peer.is_another_than(Mark(found.cookie)) => {
                return Ok(PeerState::Gone);
            }
            Some(found) if found.state == TCP_ESTABLISHED => return Ok(PeerState::Connected),
            Some(found) if matches!(found.state, TCP_SYN_RECV | TCP_SYN_SENT) => return Ok(PeerState::Unknown),
            Some(found) if found.state != TCP_LISTEN => return Ok(PeerState::Gone),
            // Not found directly. Sockets of a routing domain (VRF) are found by search only, so search.
            Some(_) | None => {}
        }
    }
    if absent_among(diag, local.port(), peer.address.port(), &[peer])?.is_empty() {
        return Ok(PeerState::Connected);
    }
    match listener_is_visible(diag, local.port())? {
        true => Ok(PeerState::Gone),
        false => Ok(PeerState::Unknown),
    }
}

fn gone_among(diag: &mut SockDiag, local_port: u16, peers: &[Peer]) -> io::Result<Vec<Peer>> {
    let absent = absent_among(diag, local_port, 0, peers)?;
    if absent.is_empty() || listener_is_visible(diag, local_port)? {
        return Ok(absent);
    }
    Ok(Vec::new())
}

/// Those without a live connection to `local_port`. A `remote_port` that is not 0 says that all remotes have this port,
/// and saves work.
fn absent_among(diag: &mut SockDiag, local_port: u16, remote_port: u16, peers: &[Peer]) -> io::Result<Vec<Peer>> {
    let name = |peer: &Peer| (key(&peer.address), peer.mark);
    let mut missing: HashSet<((IpAddr, u16), Option<Mark>)> = peers.iter().map(name).collect();
    // A dump is not a picture of one moment, and may miss a socket beside one that closes. So it takes two of them to
    // make somebody gone.
    for _ in 0..2 {
        for family in [Family::V4, Family::V6] {
            diag.dump(family, ALIVE, local_port, remote_port, &mut |remote, _, cookie| {
                missing.remove(&(key(&remote), None));
                missing.remove(&(key(&remote), Some(Mark(cookie))));
            })?;
            if missing.is_empty() {
                return Ok(Vec::new());
            }
        }
    }
    Ok(peers
        .iter()
        .filter(|peer| missing.contains(&name(peer)))
        .copied()
        .collect())
}

fn listener_is_visible(diag: &mut SockDiag, local_port: u16) -> io::Result<bool> {
    let mut visible = false;
    for family in [Family::V4, Family::V6] {
        diag.dump(family, StateFlags::LISTEN, local_port, 0, &mut |_, _, _| visible = true)?;
        if visible {
            break;
        }
    }
    Ok(visible)
}

/// By what a remote is recognised: an IPv4 address is the same whether mapped to IPv6 or not.
fn key(remote: &SocketAddr) -> (IpAddr, u16) {
    (remote.ip().to_canonical(), remote.port())
}
