//! Requests of one connection, one after the other.
//!
//! A client may send further requests before it has the answer to the first. The HTTP library hands them all out at
//! once, and lets the writer of each answer wait for the one before. A worker that waited along would be lost for as long
//! as the first request is parked, and what the requests do would happen in any order. So a connection has one *turn*:
//! the request that has it is treated, those behind it stay here, without a worker, until the turn is passed on.
//!
//! A turn can also end a connection for good: when it is not known where the next request begins, what the library still
//! reads as requests must not be obeyed.
//!
//! A connection is known by its peer's address. On a unix socket there is none: there, everybody has their turn at once.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tiny_http::Request;

use super::edge::UnderWay;
use crate::clock::Moment;

/// Longest line of requests behind the one that has the turn. A client that sends more is cut off.
const WAITING_MAX: usize = 256;
/// How long a connection that has been ended is remembered. What was left of it is read within moments.
const ENDED_KEPT: Duration = Duration::from_secs(60);
/// The HTTP library allocates what is missing of a body when it lets go of a request. A length above this is taken for
/// a lie, and such a request is never let go of.
pub(super) const DROPPABLE_BODY_BYTES: u64 = 1 << 30;

/// A request that can be dropped at any time, whatever length it announces.
pub struct SafeRequest(Option<Request>);

impl SafeRequest {
    /// True when it must never be let go of.
    pub(super) fn announces_too_much(&self) -> bool {
        self.body_length()
            .is_some_and(|length| DROPPABLE_BODY_BYTES < length as u64)
    }

    /// The request itself, to be consumed.
    pub(super) fn take(mut self) -> Request {
        self.0.take().expect("taken once")
    }
}

impl Deref for SafeRequest {
    type Target = Request;

    fn deref(&self) -> &Request {
        self.0.as_ref().expect("there until taken")
    }
}

impl DerefMut for SafeRequest {
    fn deref_mut(&mut self) -> &mut Request {
        self.0.as_mut().expect("there until taken")
    }
}

impl Drop for SafeRequest {
    /// Lets the library answer 500, which nobody hears where the connection has been ended.
    fn drop(&mut self) {
        if self.0.is_some() && self.announces_too_much() {
            // Costs the thread and the descriptors of its connection.
            std::mem::forget(self.0.take());
        }
    }
}

/// A request that has come in.
pub struct Incoming {
    pub(super) request: SafeRequest,
    /// Others of its connection were before it.
    pub(super) has_waited: bool,
    pub(super) under_way: UnderWay,
}

impl Incoming {
    /// Takes a request over.
    pub(super) fn new(request: Request, under_way: UnderWay) -> Self {
        Self {
            request: SafeRequest(Some(request)),
            has_waited: false,
            under_way,
        }
    }

    /// Where it comes from.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.request.remote_addr().copied()
    }
}

/// Who has the turn on which connection.
pub struct Turns {
    connections: Mutex<Connections>,
    /// Takes what has its turn now. Must not block.
    hand_out: Box<dyn Fn(Incoming, Turn) + Send + Sync>,
}

#[derive(Default)]
struct Connections {
    /// Those with a request under treatment, and what waits behind it.
    lines: HashMap<SocketAddr, VecDeque<Incoming>>,
    /// Those that were ended, since when.
    ended: HashMap<SocketAddr, Moment>,
}

/// What is to be done with a request that has come in.
pub(super) enum Place {
    /// It has the turn.
    First(Incoming, Turn),
    /// It waits. When its line has just become too long, the connection is to be cut.
    Waits {
        /// Cut it.
        is_too_long: bool,
    },
    /// Its connection has been ended, or another one from the same address.
    Ended(Incoming),
}

/// The right to be treated now. Dropping it passes it on.
pub struct Turn {
    turns: Arc<Turns>,
    peer: Option<SocketAddr>,
}

impl Turns {
    /// No connection yet.
    pub(super) fn new(hand_out: impl Fn(Incoming, Turn) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            connections: Mutex::new(Connections::default()),
            hand_out: Box::new(hand_out),
        })
    }

    /// Puts a request into the line of its connection.
    pub(super) fn enter(self: &Arc<Self>, mut incoming: Incoming) -> Place {
        let turn = |peer| Turn {
            turns: Arc::clone(self),
            peer,
        };
        let Some(peer) = incoming.peer() else {
            return Place::First(incoming, turn(None));
        };
        let mut connections = self.connections.lock();
        if !connections.ended.is_empty() && connections.ended.contains_key(&peer) {
            return Place::Ended(incoming);
        }
        match connections.lines.entry(peer) {
            Entry::Vacant(vacant) => {
                vacant.insert(VecDeque::new());
                Place::First(incoming, turn(Some(peer)))
            }
            Entry::Occupied(mut line) => {
                incoming.has_waited = true;
                line.get_mut().push_back(incoming);
                Place::Waits {
                    is_too_long: line.get().len() == WAITING_MAX,
                }
            }
        }
    }

    /// Forgets that a connection was ended: its peer has opened another one.
    pub(super) fn renew(&self, peer: SocketAddr) {
        self.connections.lock().ended.remove(&peer);
    }

    /// True while a request of this peer is under treatment.
    pub(super) fn is_taken(&self, peer: SocketAddr) -> bool {
        self.connections.lock().lines.contains_key(&peer)
    }

    fn pass_on(self: &Arc<Self>, peer: SocketAddr) {
        let next = {
            let mut connections = self.connections.lock();
            let Entry::Occupied(mut line) = connections.lines.entry(peer) else {
                return;
            };
            let next = line.get_mut().pop_front();
            if next.is_none() {
                line.remove();
            }
            next
        };
        if let Some(next) = next {
            let turn = Turn {
                turns: Arc::clone(self),
                peer: Some(peer),
            };
            (self.hand_out)(next, turn);
        }
    }
}

impl Turn {
    /// Ends the connection: nobody has a turn on it any more. To be called when its socket is shut down and the request
    /// that had the turn is gone. What waits is dropped, what still comes is [`Place::Ended`].
    pub(super) fn end_connection(mut self, now: Moment) {
        let Some(peer) = self.peer.take() else { return };
        let waiting = {
            let mut connections = self.turns.connections.lock();
            connections.ended.retain(|_, since| now.since(*since) < ENDED_KEPT);
            connections.ended.insert(peer, now);
            connections.lines.remove(&peer)
        };
        // In their order, since the writer of each waits for the one before.
        drop(waiting);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(peer) = self.peer.take() {
            self.turns.pass_on(peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use tiny_http::TestRequest;

    use super::*;
    use crate::clock::ManualClock;
    use crate::http::edge::Edge;
    use crate::logging;
    use crate::net::sever::ListenerAddr;

    const PEER: &str = "127.0.0.1:40000";

    /// What has got its turn, by path.
    type Served = Arc<Mutex<Vec<(String, Turn)>>>;

    fn turns() -> (Arc<Turns>, Served, Arc<Edge>) {
        let served = Served::default();
        let taker = Arc::clone(&served);
        let turns = Turns::new(move |incoming, turn| {
            assert!(incoming.has_waited);
            taker.lock().push((incoming.request.url().to_owned(), turn));
        });
        let listener = ListenerAddr::Tcp("127.0.0.1:9341".parse().unwrap());
        let edge = Edge::new(listener, 1, ManualClock::at_wall_ms(0), logging::off());
        (turns, served, edge)
    }

    fn request(edge: &Arc<Edge>, peer: &str, path: &str) -> Incoming {
        let request = TestRequest::new()
            .with_remote_addr(peer.parse().unwrap())
            .with_path(path);
        Incoming::new(request.into(), edge.enter())
    }

    fn first(place: Place) -> Turn {
        match place {
            Place::First(incoming, turn) => {
                assert!(!incoming.has_waited);
                turn
            }
            _ => panic!("it has no turn"),
        }
    }

    #[test]
    fn requests_of_one_connection_are_served_one_after_the_other() {
        let (turns, served, edge) = turns();
        let mut turn = first(turns.enter(request(&edge, PEER, "/0")));
        for path in ["/1", "/2", "/3"] {
            let place = turns.enter(request(&edge, PEER, path));
            assert!(matches!(place, Place::Waits { is_too_long: false }));
        }
        // Another connection knows nothing of it.
        drop(first(turns.enter(request(&edge, "127.0.0.1:40001", "/other"))));
        for path in ["/1", "/2", "/3"] {
            assert!(served.lock().is_empty());
            drop(turn);
            let (next, next_turn) = served.lock().pop().unwrap();
            assert_eq!(next, path);
            turn = next_turn;
        }
        drop(turn);
        assert!(!turns.is_taken(PEER.parse().unwrap()));
        drop(first(turns.enter(request(&edge, PEER, "/4"))));
    }

    #[test]
    fn a_line_that_becomes_too_long_is_told_once() {
        let (turns, _served, edge) = turns();
        let turn = first(turns.enter(request(&edge, PEER, "/")));
        let told = (0..2 * WAITING_MAX)
            .filter(|_| {
                let place = turns.enter(request(&edge, PEER, "/"));
                matches!(place, Place::Waits { is_too_long: true })
            })
            .count();
        assert_eq!(told, 1);
        turn.end_connection(Moment::ZERO);
    }

    #[test]
    fn nobody_has_a_turn_on_a_connection_that_was_ended() {
        let (turns, served, edge) = turns();
        let turn = first(turns.enter(request(&edge, PEER, "/0")));
        turns.enter(request(&edge, PEER, "/1"));
        turn.end_connection(Moment::ZERO);
        assert!(served.lock().is_empty());
        assert!(matches!(turns.enter(request(&edge, PEER, "/2")), Place::Ended(_)));
        assert!(edge.wait_until_quiet(Duration::ZERO), "all of them are gone");
        turns.renew(PEER.parse().unwrap());
        drop(first(turns.enter(request(&edge, PEER, "/3"))));
    }

    #[test]
    fn a_request_that_lies_about_its_length_can_be_dropped() {
        let (_, _, edge) = turns();
        let request = TestRequest::new()
            .with_header(tiny_http::Header::from_bytes("Content-Length", usize::MAX.to_string()).unwrap());
        let incoming = Incoming::new(request.into(), edge.enter());
        assert!(incoming.request.announces_too_much());
        drop(incoming);
    }
}
