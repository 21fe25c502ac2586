//! What all requests of one listener share: the phase the server is in, how many requests are under way, the date, and
//! the way to a client's socket.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};
use socket2::Socket;
use tiny_http::Method;

use super::crew::Crew;
use super::intake::SOCKET_TIMEOUT;
use super::route::{self, Route};
use super::tally::{Call, Tally};
use crate::clock::{Moment, SharedClock};
use crate::logging::Logger;
use crate::net::peer::{Mark, Peer, PeerProbe, PeerState};
use crate::net::sever::{self, ListenerAddr};

/// How long a stopping server still carries out what clients ask on connections that they have.
const LATE_REQUESTS: Duration = Duration::from_secs(1);
/// More than passes from the time-out of a connection to the moment at which the library acts on it.
const UNREAD_MARGIN: Duration = Duration::from_secs(5);

/// Shared by intake and workers.
pub struct Edge {
    /// The time.
    pub clock: SharedClock,
    /// Where faults are told.
    pub log: Logger,
    /// The workers.
    pub crew: Crew,
    /// Where requests are counted, if anybody wants to know.
    pub tally: Option<Tally>,
    address: ListenerAddr,
    peers: PeerProbe,
    draining: AtomicBool,
    notifying: AtomicBool,
    closing: AtomicBool,
    drain_until: Mutex<Moment>,
    under_way: Mutex<usize>,
    none_under_way: Condvar,
    shut: AtomicBool,
    date: Mutex<(i64, Arc<str>)>,
}

/// Counts a request as under way until it is dropped.
pub struct UnderWay {
    edge: Arc<Edge>,
    /// Only where requests are counted.
    call: Option<Call>,
}

impl Edge {
    /// An edge for the listener with this address and so many workers.
    pub fn new(
        address: ListenerAddr,
        workers: usize,
        clock: SharedClock,
        log: Logger,
        tally: Option<Tally>,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            log,
            crew: Crew::new(workers),
            tally,
            address,
            peers: PeerProbe::new(),
            draining: AtomicBool::new(false),
            notifying: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            drain_until: Mutex::new(Moment::ZERO),
            under_way: Mutex::new(0),
            none_under_way: Condvar::new(),
            shut: AtomicBool::new(false),
            date: Mutex::new((i64::MIN, "".into())),
        })
    }

    /// From now on nothing new is granted; `notify` announces it on every answer.
    pub fn begin_drain(&self, until: Moment, notify: bool) {
        *self.drain_until.lock() = until;
        self.notifying.store(notify, Ordering::SeqCst);
        self.draining.store(true, Ordering::SeqCst);
    }

    /// From now on every answer is the last on its connection.
    pub fn begin_close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// True once the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// True once connections are being closed.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// True while answers must announce the shutdown.
    pub fn announces_shutdown(&self) -> bool {
        self.notifying.load(Ordering::SeqCst)
    }

    /// Seconds until the drain ends, rounded up, at least 1.
    pub fn drain_seconds_left(&self) -> i64 {
        let left = self.drain_until.lock().since(self.clock.now());
        i64::try_from(left.as_millis().div_ceil(1000))
            .unwrap_or(i64::MAX)
            .max(1)
    }

    /// Counts one more request as under way.
    pub fn enter(self: &Arc<Self>) -> UnderWay {
        *self.under_way.lock() += 1;
        UnderWay {
            edge: Arc::clone(self),
            call: self.tally.as_ref().map(Tally::come_in),
        }
    }

    /// How many requests are under way.
    pub(super) fn under_way(&self) -> usize {
        *self.under_way.lock()
    }

    /// Waits until no request is under way, but no longer than this, and shuts the edge. True: none is.
    ///
    /// There is no moment between the last answer and the shutting: a request that comes in then would be carried out and
    /// its connection cut before the answer. Clients that ask again and again may leave no such moment at all; so after a
    /// while nothing more is begun, and what remains is waited for.
    pub fn shut_when_quiet(&self, patience: Duration) -> bool {
        let began = self.clock.now();
        let mut under_way = self.under_way.lock();
        for until in [began.after((patience / 2).min(LATE_REQUESTS)), began.after(patience)] {
            while *under_way != 0 {
                let left = until.since(self.clock.now());
                if left.is_zero() || self.none_under_way.wait_for(&mut under_way, left).timed_out() {
                    break;
                }
            }
            self.shut.store(true, Ordering::SeqCst);
        }
        *under_way == 0
    }

    /// From now on nothing more is carried out.
    pub fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
    }

    /// True once nothing more is carried out.
    pub fn is_shut(&self) -> bool {
        self.shut.load(Ordering::SeqCst)
    }

    /// True while no request is under way.
    #[cfg(test)]
    pub(super) fn is_quiet(&self) -> bool {
        *self.under_way.lock() == 0
    }

    /// The date as HTTP writes it.
    pub fn http_date(&self) -> Arc<str> {
        let now = self.clock.wall_seconds();
        let mut date = self.date.lock();
        if date.0 != now {
            let since_epoch = Duration::from_secs(u64::try_from(now).unwrap_or(0));
            *date = (now, httpdate::fmt_http_date(UNIX_EPOCH + since_epoch).into());
        }
        Arc::clone(&date.1)
    }

    /// True when this client certainly has gone. What cannot be found out counts as still there.
    pub fn is_gone(&self, peer: Option<impl Into<Peer>>) -> bool {
        let Some(peer) = peer.map(Into::into) else { return false };
        match &self.address {
            ListenerAddr::Tcp(local) if local.ip().is_unspecified() => {
                !self.peers.gone_among(local.port(), &[peer]).is_empty()
            }
            ListenerAddr::Tcp(local) => self.peers.state(*local, peer) == PeerState::Gone,
            ListenerAddr::Unix(_) => false,
        }
    }

    /// Those of these clients that certainly have gone.
    pub fn gone_among(&self, peers: &[Peer]) -> Vec<Peer> {
        match &self.address {
            ListenerAddr::Tcp(local) => self.peers.gone_among(local.port(), peers),
            ListenerAddr::Unix(_) => Vec::new(),
        }
    }

    /// Tells the connection of this client from a later one from the same address; `None` when that cannot be known.
    pub fn mark(&self, peer: SocketAddr) -> Option<Mark> {
        match &self.address {
            ListenerAddr::Tcp(local) => self.peers.mark(*local, peer),
            ListenerAddr::Unix(_) => None,
        }
    }

    /// Clients that have closed their sending side. Empty where the kernel does not tell.
    pub fn half_closed(&self) -> Vec<SocketAddr> {
        match &self.address {
            ListenerAddr::Tcp(local) => self.peers.half_closed_on(local.port()).unwrap_or_default(),
            ListenerAddr::Unix(_) => Vec::new(),
        }
    }

    /// The connection of one client, beside the library that holds it; `None` when there is none any more. An error says that
    /// it cannot be had here.
    pub fn connection(&self, peer: Option<SocketAddr>) -> io::Result<Option<Socket>> {
        match (&self.address, peer) {
            (ListenerAddr::Tcp(local), Some(peer)) => sever::find_connection(*local, peer),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Cuts the connections of these clients, and says how many there were. What has been written to them still arrives.
    pub fn sever(&self, peers: &[SocketAddr]) -> usize {
        let ListenerAddr::Tcp(local) = &self.address else {
            return 0;
        };
        if peers.is_empty() {
            return 0;
        }
        sever::sever_those(*local, peers).unwrap_or_else(|cause| {
            let error = cause.to_string();
            log::debug!(logger: self.log, target: "api.http.server", error; "http.sever.failed");
            0
        })
    }

    /// Ends the reading side of these connections, and says how many there were. Answers still arrive. An error says that
    /// this cannot be done here.
    pub fn end_reading(&self, peers: &[Peer]) -> io::Result<usize> {
        match &self.address {
            ListenerAddr::Tcp(local) => sever::end_reading(*local, peers),
            ListenerAddr::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// True when the HTTP library may have given up to read a connection on which it has seen nothing for so long.
    pub(super) fn may_be_unread(&self, silence: Duration) -> bool {
        matches!(self.address, ListenerAddr::Tcp(_)) && SOCKET_TIMEOUT - UNREAD_MARGIN <= silence
    }

    /// Cuts all connections. What has been written to them still arrives.
    pub fn sever_all(&self) {
        if let Err(cause) = sever::sever_connections(&self.address) {
            let error = cause.to_string();
            log::warn!(logger: self.log, target: "api.http.server", error; "http.sever.failed");
        }
    }
}

impl UnderWay {
    /// Notes for the counts what the request wants.
    pub(super) fn is_for(&mut self, method: &Method, path: &str) {
        if let Some(call) = &mut self.call {
            call.is_for(route::route(method, path).map_or(route::UNKNOWN, Route::place));
        }
    }

    /// Counts the request: the status of its answer is known.
    pub(super) fn answered(&mut self, status: u16) {
        if let (Some(tally), Some(call)) = (&self.edge.tally, &mut self.call) {
            tally.answered(call, status);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let (Some(tally), Some(call)) = (&self.edge.tally, &self.call) {
            tally.ended(call);
        }
        let mut under_way = self.edge.under_way.lock();
        *under_way -= 1;
        if *under_way == 0 {
            self.edge.none_under_way.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::clock::SystemClock;
    use crate::logging;

    #[test]
    fn a_server_that_is_never_quiet_begins_nothing_more_and_finishes_what_it_has() {
        let listener = ListenerAddr::Tcp(SocketAddr::from(([127, 0, 0, 1], 1)));
        let edge = Edge::new(listener, 1, SystemClock::shared(), logging::off(), None);
        let request = edge.enter();
        thread::scope(|scope| {
            let shutting = scope.spawn(|| edge.shut_when_quiet(Duration::from_secs(60)));
            while !edge.is_shut() {
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(edge.under_way(), 1);
            assert!(!shutting.is_finished());
            drop(request);
            assert!(shutting.join().unwrap());
        });
    }
}
