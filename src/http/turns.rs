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
use crate::net::peer::{Mark, Peer};

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
    /// Not before this moment, it is looked again whether too many are read that need not be.
    next_thinning: Option<Moment>,
}

/// The requests of one connection.
struct Line {
    /// Tells it from a later one of the same address.
    number: u64,
    waiting: VecDeque<Incoming>,
    /// Once the request that has the turn is parked, and until it is answered.
    parked: Option<ParkedAt>,
    /// Nothing more is read from the connection: the next answer is its last.
    is_unread: bool,
}

/// Where a request is parked.
#[derive(Debug, Clone, Copy)]
struct ParkedAt {
    mark: Mark,
    since: Moment,
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
        if let Some((number, parked_at)) = self.mark_of_parked(peer)
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
                    parked: None,
                    is_unread: false,
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

    fn mark_of_parked(&self, peer: SocketAddr) -> Option<(u64, Mark)> {
        let connections = self.connections.lock();
        let line = connections.lines.get(&peer)?;
        Some((line.number, line.parked?.mark))
    }

    /// When more than `most` connections with a parked request are read, names those whose request has waited longest, at
    /// least `least_wait`, until half as many are left. From here on their answer is their last: they are to be read no more.
    /// Until [`next_thinning_at`](Self::next_thinning_at) is called, nobody else is named.
    pub(super) fn thin_readers(&self, most: usize, least_wait: Duration, now: Moment) -> Vec<Peer> {
        let mut connections = self.connections.lock();
        if connections.lines.len() <= most || connections.next_thinning.is_some_and(|at| now < at) {
            return Vec::new();
        }
        // What waits behind a request was read before: such a client does not take its answers one by one.
        let mut read: Vec<_> = (connections.lines.iter_mut())
            .filter(|(_, line)| !line.is_unread && line.waiting.is_empty())
            .filter_map(|(address, line)| Some((line.parked?, *address, line)))
            .collect();
        if read.len() <= most {
            return Vec::new();
        }
        read.sort_unstable_by_key(|(parked, ..)| parked.since);
        read.truncate(read.len() - most / 2);
        let idle = read
            .into_iter()
            .take_while(|(parked, ..)| least_wait <= now.since(parked.since));
        let named: Vec<_> = idle
            .map(|(parked, address, line)| {
                line.is_unread = true;
                Peer {
                    address,
                    mark: Some(parked.mark),
                }
            })
            .collect();
        if !named.is_empty() {
            connections.next_thinning = Some(Moment::MAX);
        }
        named
    }

    /// Allows the next thinning, from this moment on.
    pub(super) fn next_thinning_at(&self, moment: Moment) {
        self.connections.lock().next_thinning = Some(moment);
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
        let mut connections = self.connections.lock();
        if let Some(never_begun) = connections.take_unread(peer, number) {
            drop(connections);
            // The client was told before that nothing would be done any more. In their order, since the writer of each
            // waits for the one before.
            return drop(never_begun);
        }
        let next = connections.next(peer, number);
        drop(connections);
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

    /// Forgets a line that is not read any more. Returns what was read of it all the same.
    fn take_unread(&mut self, peer: SocketAddr, number: u64) -> Option<VecDeque<Incoming>> {
        match self.lines.entry(peer) {
            Entry::Occupied(line) if line.get().number == number && line.get().is_unread => Some(line.remove().waiting),
            _ => None,
        }
    }

    /// What has the turn next in this line; a line without one is forgotten.
    fn next(&mut self, peer: SocketAddr, number: u64) -> Option<Incoming> {
        if let Entry::Occupied(mut line) = self.lines.entry(peer)
            && line.get().number == number
        {
            line.get_mut().parked = None;
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
    pub(super) fn park(&self, mark: Mark, since: Moment) {
        self.with_line(|line| line.parked = Some(ParkedAt { mark, since }));
    }

    /// The request that has the turn is about to be answered. True: that answer must say that it is the last.
    pub(super) fn unpark(&self) -> bool {
        self.with_line(|line| {
            line.parked = None;
            line.is_unread
        })
        .unwrap_or(false)
    }

    fn with_line<T>(&self, what: impl FnOnce(&mut Line) -> T) -> Option<T> {
        let (peer, number) = self.peer?;
        let mut connections = self.turns.connections.lock();
        let line = connections.lines.get_mut(&peer)?;
        (line.number == number).then(|| what(line))
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
    const PEER_2: &str = "127.0.0.1:50000";

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
        parked.park(old, Moment::ZERO);
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

    #[test]
    fn those_who_wait_longest_are_read_no_more_and_their_next_answer_is_the_last() {
        let (turns, served, edge) = turns();
        let second = |number: u64| Moment::ZERO.after(Duration::from_secs(number));
        let address = |number: u16| SocketAddr::from(([127, 0, 0, 1], 40_000 + number));
        let parked: Vec<_> = (0..6)
            .map(|number| {
                let turn = first(turns.enter(request(&edge, &address(number).to_string(), "/"), |_| None));
                turn.park(Mark::for_tests(u64::from(number)), second(u64::from(number)));
                turn
            })
            .collect();
        let _served_at_once = first(turns.enter(request(&edge, PEER_2, "/"), |_| None));
        let thin = |most, now| -> Vec<_> {
            let named = turns.thin_readers(most, Duration::from_secs(2), now);
            named.into_iter().map(|peer| peer.address).collect()
        };
        assert!(thin(6, second(60)).is_empty(), "they are not too many");
        assert!(thin(5, second(1)).is_empty(), "none has waited for long");
        // The second has sent another request.
        turns.enter(request(&edge, &address(1).to_string(), "/behind"), |_| None);
        assert_eq!(thin(4, second(4)), [address(0), address(2)]);
        assert!(thin(1, second(60)).is_empty(), "one at a time");
        turns.next_thinning_at(second(5));
        assert!(thin(1, second(4)).is_empty(), "it is too soon");
        assert_eq!(thin(2, second(60)), [address(3), address(4)]);
        // What was read before it could be stopped is never begun.
        turns.enter(request(&edge, &address(2).to_string(), "/late"), |_| None);
        let are_last: Vec<_> = parked.iter().map(Turn::unpark).collect();
        assert_eq!(are_last, [true, false, true, true, true, false]);
        drop(parked);
        let begun: Vec<_> = served.lock().drain(..).map(|(path, _)| path).collect();
        assert_eq!(begun, ["/behind"]);
        assert!((0..6).all(|number| !turns.is_taken(address(number))));
    }

    /// The marks of two connections.
    fn marks() -> [Mark; 2] {
        [Mark::for_tests(1), Mark::for_tests(2)]
    }
}
