//! How much a stream of deliveries may have unacknowledged before others come first.
//!
//! Soft on purpose: acknowledgements may go to another server, and a consumer may hold messages for as long as it likes.
//! So a stream with no room left is not refused but passed over for [`PACE`], and then gets as much again. That is enough
//! for several streams to share a queue, also when one of them came a moment earlier than the others.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Moment;
use crate::keys::MessageId;

/// How long a stream without room waits after its last delivery.
pub const PACE: Duration = Duration::from_millis(50);

/// Names a stream at this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// What a stream may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// So many, now.
    Now(usize),
    /// Some, from this moment on.
    At(Moment),
}

/// The streams of one queue and what they hold.
#[derive(Debug, Default)]
pub(super) struct Credit {
    streams: HashMap<StreamId, Account>,
    holders: HashMap<MessageId, StreamId>,
}

#[derive(Debug)]
struct Account {
    held: usize,
    last: Moment,
}

impl Credit {
    /// A message went to a stream.
    pub(super) fn delivered(&mut self, stream: StreamId, id: MessageId, now: Moment) {
        self.settled(id);
        self.holders.insert(id, stream);
        let account = self.streams.entry(stream).or_insert(Account { held: 0, last: now });
        account.held += 1;
        account.last = now;
    }

    /// A message was acknowledged, given back, or its lease is over. Returns who held it.
    pub(super) fn settled(&mut self, id: MessageId) -> Option<StreamId> {
        let stream = self.holders.remove(&id)?;
        self.streams.get_mut(&stream)?.held -= 1;
        Some(stream)
    }

    /// How much a stream that asks for `page` at a time may get.
    pub(super) fn room(&self, stream: StreamId, page: usize, now: Moment) -> Room {
        let Some(account) = self.streams.get(&stream) else {
            return Room::Now(page);
        };
        if account.held < page {
            return Room::Now(page - account.held);
        }
        let again = account.last.after(PACE);
        if again <= now { Room::Now(page) } else { Room::At(again) }
    }

    /// A stream has ended. What it holds stays leased to its client.
    pub(super) fn closed(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
        self.holders.retain(|_, holder| *holder != stream);
    }

    /// True when there is no stream.
    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(number: u128) -> MessageId {
        MessageId::new(Uuid::from_u128(number))
    }

    #[test]
    fn a_stream_has_room_for_its_page_and_then_waits_for_acknowledgements() {
        let (mut credit, stream) = (Credit::default(), StreamId(1));
        let now = Moment::ZERO.after(Duration::from_secs(1));
        assert_eq!(credit.room(stream, 2, now), Room::Now(2));
        credit.delivered(stream, id(1), now);
        assert_eq!(credit.room(stream, 2, now), Room::Now(1));
        credit.delivered(stream, id(2), now);
        assert_eq!(credit.room(stream, 2, now), Room::At(now.after(PACE)));
        assert_eq!(credit.settled(id(1)), Some(stream));
        assert_eq!(credit.settled(id(1)), None);
        assert_eq!(credit.room(stream, 2, now), Room::Now(1));
    }

    #[test]
    fn a_stream_that_acknowledges_nothing_gets_more_after_a_pause() {
        let (mut credit, stream) = (Credit::default(), StreamId(1));
        let now = Moment::ZERO.after(Duration::from_secs(1));
        credit.delivered(stream, id(1), now);
        let later = now.after(PACE);
        assert_eq!(credit.room(stream, 1, later), Room::Now(1));
        credit.delivered(stream, id(2), later);
        assert_eq!(credit.room(stream, 1, later), Room::At(later.after(PACE)));
    }

    #[test]
    fn a_message_that_comes_again_counts_once() {
        let mut credit = Credit::default();
        let now = Moment::ZERO;
        credit.delivered(StreamId(1), id(1), now);
        credit.delivered(StreamId(2), id(1), now);
        assert_eq!(credit.room(StreamId(1), 1, now), Room::Now(1));
        assert_eq!(credit.settled(id(1)), Some(StreamId(2)));
        credit.delivered(StreamId(2), id(1), now);
        credit.closed(StreamId(2));
        assert_eq!(credit.settled(id(1)), None);
    }
}
