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
//! A connection is known by its peer's address. A client that aborts may come again from the same address while a request
//! of the connection before is still parked here; whoever parks leaves a mark that tells the two apart. On a unix socket
//! there is no address: there, everybody has their turn at once.

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
use crate::net::peer::Mark;

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
    lines: HashMap<SocketAddr, Line>,
    /// What waits on connections that are gone, but for a request that is still parked.
    displaced: HashMap<u64, VecDeque<Incoming>>,
    /// Lines so far.
    count: u64,
    /// Those that were ended, since when.
    ended: HashMap<SocketAddr, Moment>,
}

/// The requests of one connection.
struct Line {
    /// Tells it from a later one of the same address.
    number: u64,
    waiting: VecDeque<Incoming>,
    /// The mark of the connection, once the request that has the turn is parked.
    parked_at: Option<Mark>,
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
    /// The address, and the number of the line.
    peer: Option<(SocketAddr, u64)>,
}

impl Turns {
    /// No connection yet.
    pub(super) fn new(hand_out: impl Fn(Incoming, Turn) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            connections: Mutex::new(Connections::default()),
            hand_out: Box::new(hand_out),
        })
    }

    /// Puts a request into the line of its connection. Where a request of its address is parked, `mark_of` tells whether
    /// that belongs to the same connection or to one that is gone; it is not asked otherwise.
    pub(super) fn enter(
        self: &Arc<Self>,
        mut incoming: Incoming,
        mark_of: impl Fn(SocketAddr) -> Option<Mark>,
    ) -> Place {
        let turn = |peer| Turn {
            turns: Arc::clone(self),
            peer,
        };
        let Some(peer) = incoming.peer() else {
            return Place::First(incoming, turn(None));
        };
        if let Some((number, parked_at)) = self.parked(peer)
            && mark_of(peer).is_some_and(|mark| mark != parked_at)
        {
            self.connections.lock().displace(peer, number);
        }
        let mut connections = self.connections.lock();
        if !connections.ended.is_empty() && connections.ended.contains_key(&peer) {
            return Place::Ended(incoming);
        }
        connections.count += 1;
        let number = connections.count;
        match connections.lines.entry(peer) {
            Entry::Vacant(vacant) => {
                vacant.insert(Line {
                    number,
                    waiting: VecDeque::new(),
                    parked_at: None,
                });
                Place::First(incoming, turn(Some((peer, number))))
            }
            Entry::Occupied(mut line) => {
                incoming.has_waited = true;
                let waiting = &mut line.get_mut().waiting;
                waiting.push_back(incoming);
                Place::Waits {
                    is_too_long: waiting.len() == WAITING_MAX,
                }
            }
        }
    }

    fn parked(&self, peer: SocketAddr) -> Option<(u64, Mark)> {
        let connections = self.connections.lock();
        let line = connections.lines.get(&peer)?;
        Some((line.number, line.parked_at?))
    }

    /// Forgets that a connection was ended: its peer has opened another one.
    pub(super) fn renew(&self, peer: SocketAddr) {
        self.connections.lock().ended.remove(&peer);
    }

    /// True while a request of this peer is under treatment.
    pub(super) fn is_taken(&self, peer: SocketAddr) -> bool {
        self.connections.lock().lines.contains_key(&peer)
    }

    fn pass_on(self: &Arc<Self>, peer: SocketAddr, number: u64) {
        let next = self.connections.lock().next(peer, number);
        if let Some(next) = next {
            let turn = Turn {
                turns: Arc::clone(self),
                peer: Some((peer, number)),
            };
            (self.hand_out)(next, turn);
        }
    }
}

impl Connections {
    /// The connection of this line is gone, and its address is that of another one.
    fn displace(&mut self, peer: SocketAddr, number: u64) {
        if let Entry::Occupied(line) = self.lines.entry(peer)
            && line.get().number == number
        {
            let line = line.remove();
            if !line.waiting.is_empty() {
                self.displaced.insert(number, line.waiting);
            }
        }
    }

    /// What has the turn next in this line; a line without one is forgotten.
    fn next(&mut self, peer: SocketAddr, number: u64) -> Option<Incoming> {
        if let Entry::Occupied(mut line) = self.lines.entry(peer)
            && line.get().number == number
        {
            line.get_mut().parked_at = None;
            let next = line.get_mut().waiting.pop_front();
            if next.is_none() {
                line.remove();
            }
            return next;
        }
        let next = self.displaced.get_mut(&number)?.pop_front();
        if next.is_none() {
            self.displaced.remove(&number);
        }
        next
    }
}

impl Turn {
    /// The request that has the turn waits for something, on the connection with this mark.
    pub(super) fn park(&self, mark: Mark) {
        let Some((peer, number)) = self.peer else { return };
        if let Some(line) = self.turns.connections.lock().lines.get_mut(&peer)
            && line.number == number
        {
            line.parked_at = Some(mark);
        }
    }

    /// Ends the connection: nobody has a turn on it any more. To be called when its socket is shut down and the request
    /// that had the turn is gone. What waits is dropped, what still comes is [`Place::Ended`].
    pub(super) fn end_connection(mut self, now: Moment) {
        let Some((peer, number)) = self.peer.take() else { return };
        let waiting = {
            let mut connections = self.turns.connections.lock();
            connections.ended.retain(|_, since| now.since(*since) < ENDED_KEPT);
            match connections.lines.entry(peer) {
                Entry::Occupied(line) if line.get().number == number => {
                    let waiting = line.remove().waiting;
                    connections.ended.insert(peer, now);
                    Some(waiting)
                }
                _ => connections.displaced.remove(&number),
            }
        };
        // In their order, since the writer of each waits for the one before.
        drop(waiting);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((peer, number)) = self.peer.take() {
            self.turns.pass_on(peer, number);
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
        let edge = Edge::new(listener, 1, ManualClock::at_wall_ms(0), logging::off(), None);
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
        let mut turn = first(turns.enter(request(&edge, PEER, "/0"), |_| None));
        for path in ["/1", "/2", "/3"] {
            let place = turns.enter(request(&edge, PEER, path), |_| None);
            assert!(matches!(place, Place::Waits { is_too_long: false }));
        }
        // Another connection knows nothing of it.
        drop(first(
            turns.enter(request(&edge, "127.0.0.1:40001", "/other"), |_| None),
        ));
        for path in ["/1", "/2", "/3"] {
            assert!(served.lock().is_empty());
            drop(turn);
            let (next, next_turn) = served.lock().pop().unwrap();
            assert_eq!(next, path);
            turn = next_turn;
        }
        drop(turn);
        assert!(!turns.is_taken(PEER.parse().unwrap()));
        drop(first(turns.enter(request(&edge, PEER, "/4"), |_| None)));
    }

    #[test]
    fn a_line_that_becomes_too_long_is_told_once() {
        let (turns, _served, edge) = turns();
        let turn = first(turns.enter(request(&edge, PEER, "/"), |_| None));
        let told = (0..2 * WAITING_MAX)
            .filter(|_| {
                let place = turns.enter(request(&edge, PEER, "/"), |_| None);
                matches!(place, Place::Waits { is_too_long: true })
            })
            .count();
        assert_eq!(told, 1);
        turn.end_connection(Moment::ZERO);
    }

    #[test]
    fn nobody_has_a_turn_on_a_connection_that_was_ended() {
        let (turns, served, edge) = turns();
        let turn = first(turns.enter(request(&edge, PEER, "/0"), |_| None));
        turns.enter(request(&edge, PEER, "/1"), |_| None);
        turn.end_connection(Moment::ZERO);
        assert!(served.lock().is_empty());
        assert!(matches!(
            turns.enter(request(&edge, PEER, "/2"), |_| None),
            Place::Ended(_)
        ));
        assert!(edge.is_quiet(), "all of them are gone");
        turns.renew(PEER.parse().unwrap());
        drop(first(turns.enter(request(&edge, PEER, "/3"), |_| None)));
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

    #[test]
    fn a_connection_from_the_address_of_one_that_is_gone_does_not_wait_for_it() {
        let (turns, served, edge) = turns();
        let [old, new] = marks();
        let parked = first(turns.enter(request(&edge, PEER, "/parked"), |_| panic!("nothing is parked")));
        parked.park(old);
        let waits = turns.enter(request(&edge, PEER, "/behind"), |_| Some(old));
        assert!(matches!(waits, Place::Waits { is_too_long: false }));
        // The mark cannot be known: it waits, to be on the safe side.
        let waits = turns.enter(request(&edge, PEER, "/unknown"), |_| None);
        assert!(matches!(waits, Place::Waits { .. }));
        let other = first(turns.enter(request(&edge, PEER, "/new"), |_| Some(new)));
        assert!(turns.is_taken(PEER.parse().unwrap()));
        // Both lines go on by themselves.
        drop(parked);
        for path in ["/behind", "/unknown"] {
            let (served, turn) = served.lock().remove(0);
            assert_eq!(served, path);
            drop(turn);
        }
        let waits = turns.enter(request(&edge, PEER, "/second"), |_| Some(new));
        assert!(matches!(waits, Place::Waits { .. }));
        drop(other);
        let (path, turn) = served.lock().remove(0);
        assert_eq!(path, "/second");
        drop(turn);
        assert!(!turns.is_taken(PEER.parse().unwrap()));
        assert!(turns.connections.lock().displaced.is_empty());
    }

    /// The marks of two connections.
    fn marks() -> [Mark; 2] {
        [Mark::for_tests(1), Mark::for_tests(2)]
    }
}
