//! Who wants messages: requests that are parked until there is one, streams between two deliveries, and who only wants to
//! know what would come next.
//!
//! The [`Line`] of a queue is first come, first served. A stream that has as much as it asked for unacknowledged steps aside
//! for a moment; see [`credit`](super::credit).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Parked;
use super::credit::StreamId;
use crate::clock::Moment;
use crate::keys::QueueId;
use crate::net::peer::Peer;

/// Names a consumer while it is with the dispatcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConsumerId(pub(super) u64);

/// How long a consumer waits for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Not at all: it gets what there is, or hears at once that there is nothing.
    None,
    /// Until this moment.
    Until(Moment),
    /// For ever.
    Endless,
}

/// What a consumer wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To know which message would be delivered next. Nothing is taken.
    Head,
    /// Messages.
    Take {
        /// At most so many, at least 1.
        count: usize,
        /// The stream that they go to.
        stream: Option<StreamId>,
    },
}

/// A consumer and what it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Of which queue.
    pub queue: QueueId,
    /// What.
    pub purpose: Purpose,
    /// For how long.
    pub patience: Patience,
    /// The store is looked at for it before it hears that there is nothing, unless everything is known. Not for who comes
    /// back for more and can wait for the next wake-up.
    pub looks: bool,
}

/// A consumer on its way through the dispatcher.
#[derive(Debug)]
pub struct Consumer<C> {
    /// What it wants. Who hands it back may change that.
    pub wish: Wish,
    /// The request or stream itself.
    pub parked: C,
    /// It had to wait: its client may have gone meanwhile.
    pub has_waited: bool,
    pub(super) id: ConsumerId,
    /// When it came.
    pub(super) since: Moment,
    /// The round of looking at the store that must be over before it may hear that there is nothing.
    pub(super) needs_round: u64,
}

impl<C> Consumer<C> {
    /// A consumer that nobody has heard of yet.
    pub fn new(wish: Wish, parked: C) -> Self {
        Self {
            wish,
            parked,
            has_waited: false,
            id: ConsumerId(0),
            since: Moment::ZERO,
            needs_round: 0,
        }
    }

    /// The consumer without the request, to ask again with it.
    pub fn take_apart(self) -> (Consumer<()>, C) {
        let Self {
            wish,
            parked,
            has_waited,
            id,
            since,
            needs_round,
        } = self;
        let shell = Consumer {
            wish,
            parked: (),
            has_waited,
            id,
            since,
            needs_round,
        };
        (shell, parked)
    }

    fn is_patient(&self) -> bool {
        self.wish.patience != Patience::None
    }
}

impl Consumer<()> {
    /// The same consumer with its request.
    pub fn put_together<C>(self, parked: C) -> Consumer<C> {
        Consumer {
            wish: self.wish,
            parked,
            has_waited: self.has_waited,
            id: self.id,
            since: self.since,
            needs_round: self.needs_round,
        }
    }
}

/// The consumers of one queue that have nothing yet.
#[derive(Debug)]
pub(super) struct Line<C> {
    /// In the order in which they are served.
    order: BTreeMap<i64, Consumer<C>>,
    places: HashMap<ConsumerId, i64>,
    /// Those without patience, by the round they need.
    impatient: BTreeSet<(u64, ConsumerId)>,
    /// Streams that step aside.
    aside: HashMap<StreamId, Consumer<C>>,
    takers: usize,
    /// The latest round that anybody ever needed.
    latest_need: u64,
}

impl<C: Parked> Line<C> {
    pub(super) fn new() -> Self {
        Self {
            order: BTreeMap::new(),
            places: HashMap::new(),
            impatient: BTreeSet::new(),
            aside: HashMap::new(),
            takers: 0,
            latest_need: 0,
        }
    }

    /// Joins at the end.
    pub(super) fn push_back(&mut self, consumer: Consumer<C>) {
        let place = self.order.last_key_value().map_or(0, |(last, _)| last + 1);
        self.insert(place, consumer);
    }

    /// Comes back to the front: it was tried for and got nothing.
    pub(super) fn push_front(&mut self, consumer: Consumer<C>) {
        let place = self.order.first_key_value().map_or(0, |(first, _)| first - 1);
        self.insert(place, consumer);
    }

    /// A stream steps aside.
    pub(super) fn step_aside(&mut self, stream: StreamId, consumer: Consumer<C>) {
        self.aside.insert(stream, consumer);
    }

    /// A stream that stepped aside joins the line again. False: it does not stand aside.
    pub(super) fn step_in(&mut self, stream: StreamId) -> bool {
        let Some(consumer) = self.aside.remove(&stream) else {
            return false;
        };
        self.push_back(consumer);
        true
    }

    /// Who comes next.
    pub(super) fn first(&self) -> Option<&Consumer<C>> {
        self.order.values().next()
    }

    /// Takes who comes next out of the line.
    pub(super) fn pop_first(&mut self) -> Option<Consumer<C>> {
        let (_, consumer) = self.order.pop_first()?;
        self.forget(&consumer);
        Some(consumer)
    }

    /// Takes one out, wherever it stands.
    pub(super) fn remove(&mut self, id: ConsumerId) -> Option<Consumer<C>> {
        if let Some(place) = self.places.get(&id) {
            let consumer = self.order.remove(place)?;
            self.forget(&consumer);
            return Some(consumer);
        }
        let stream = self.aside.iter().find(|(_, consumer)| consumer.id == id);
        let stream = stream.map(|(stream, _)| *stream)?;
        self.aside.remove(&stream)
    }

    /// Takes out everybody who has no patience and needs no later round than this.
    pub(super) fn pop_impatient(&mut self, round: u64) -> Vec<Consumer<C>> {
        let mut popped = Vec::new();
        while let Some((needs, id)) = self.impatient.first().copied()
            && needs <= round
        {
            self.impatient.remove(&(needs, id));
            popped.extend(self.remove(id));
        }
        popped
    }

    /// Takes everybody out.
    pub(super) fn drain(&mut self) -> Vec<Consumer<C>> {
        let mut all: Vec<_> = std::mem::take(&mut self.order).into_values().collect();
        all.extend(self.aside.drain().map(|(_, consumer)| consumer));
        self.places.clear();
        self.impatient.clear();
        self.takers = 0;
        all
    }

    /// True when nobody stands in the line. Some may stand aside.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// How many in the line want messages.
    pub(super) fn takers(&self) -> usize {
        self.takers
    }

    /// How many wait, aside or not.
    pub(super) fn waiting(&self) -> usize {
        self.order.len() - self.impatient.len() + self.aside.len()
    }

    /// True when somebody in the line waits for what may come.
    pub(super) fn somebody_waits(&self) -> bool {
        self.impatient.len() < self.order.len()
    }

    /// True when somebody in the line may need a later round than this.
    pub(super) fn needs_round_after(&self, round: u64) -> bool {
        round < self.latest_need && !self.order.is_empty()
    }

    /// The latest round that anybody ever needed.
    pub(super) fn latest_need(&self) -> u64 {
        self.latest_need
    }

    /// Everybody with a client whose connection can be checked.
    pub(super) fn peers(&self) -> impl Iterator<Item = (ConsumerId, Peer)> {
        let all = self.order.values().chain(self.aside.values());
        all.filter_map(|consumer| Some((consumer.id, consumer.parked.peer()?)))
    }

    fn insert(&mut self, place: i64, consumer: Consumer<C>) {
        self.places.insert(consumer.id, place);
        self.latest_need = self.latest_need.max(consumer.needs_round);
        if !consumer.is_patient() {
            self.impatient.insert((consumer.needs_round, consumer.id));
        }
        if matches!(consumer.wish.purpose, Purpose::Take { .. }) {
            self.takers += 1;
        }
        self.order.insert(place, consumer);
    }

    fn forget(&mut self, consumer: &Consumer<C>) {
        self.places.remove(&consumer.id);
        self.impatient.remove(&(consumer.needs_round, consumer.id));
        if matches!(consumer.wish.purpose, Purpose::Take { .. }) {
            self.takers -= 1;
        }
    }
}

/// Seats for consumers: how many there may be at one server at the same time.
#[derive(Debug)]
pub struct Seats {
    taken: AtomicUsize,
    max: usize,
    /// Somebody has been told that all are taken since the last one was given away.
    shortage_is_told: AtomicBool,
}

/// One consumer's seat, free again when this is dropped.
#[derive(Debug)]
pub struct Seat(Arc<Seats>);

impl Seats {
    /// So many.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            taken: AtomicUsize::new(0),
            max,
            shortage_is_told: AtomicBool::new(false),
        })
    }

    /// A seat, unless all are taken.
    pub fn take(self: &Arc<Self>) -> Option<Seat> {
        let taken = self.taken.fetch_add(1, Ordering::SeqCst);
        let seat = Seat(Arc::clone(self));
        let is_free = taken < self.max;
        if is_free {
            self.shortage_is_told.store(false, Ordering::Relaxed);
        }
        is_free.then_some(seat)
    }

    /// True for the first who is refused after somebody was not: that is worth a line in the log, and all further ones are
    /// not, however many come.
    pub fn is_new_shortage(&self) -> bool {
        !self.shortage_is_told.swap(true, Ordering::Relaxed)
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    /// How many there are.
    pub fn max(&self) -> usize {
        self.max
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_limited_and_free_again_when_their_consumer_leaves() {
        let seats = Seats::new(2);
        let (first, second) = (seats.take(), seats.take());
        assert!(first.is_some() && second.is_some());
        assert!(seats.take().is_none() && seats.is_new_shortage());
        assert!(seats.take().is_none() && !seats.is_new_shortage());
        assert_eq!(seats.taken(), 2);
        drop(first);
        assert!(seats.take().is_some());
        assert!(seats.is_new_shortage(), "one was free meanwhile");
        drop(second);
        assert_eq!(seats.taken(), 0);
    }
}
