//! Looks at a queue, to find what can be delivered and to clear away what cannot any more.

use super::rules::{self, Standing};
use super::{Place, Queues};
use crate::error::Error;
use crate::keys::{self, MessageId, QueueId};
use crate::record::MessageRecord;
use crate::store::Etag;

/// A message that can be delivered, now or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: MessageId,
    /// From when on, in milliseconds of Unix time.
    pub visible_from_ms: i64,
    /// When it was enqueued, likewise.
    pub enqueued_at_ms: i64,
}

/// A page of a queue.
#[derive(Debug, Default)]
pub struct Page {
    /// Its messages in the order of their ids.
    pub seen: Vec<Seen>,
    /// Where the next page begins; `None` when there is none.
    pub next: Option<MessageId>,
    /// What could not be read or cleared away. The other messages are not held up by it.
    pub faults: Vec<Error>,
}

impl Queues {
    /// Looks at up to `limit` messages behind `after`, or from the oldest on. Expired messages are removed and dead ones
    /// put aside on the way, so a page may show fewer than there is room for, or none at all, and still have a next one.
    ///
    /// A page is no snapshot: a message that comes or goes meanwhile may be seen or not.
    pub fn scan(&self, queue: &QueueId, after: Option<MessageId>, limit: usize) -> Result<Page, Error> {
        let after = after.map(|id| keys::message_record(queue, id));
        let listed = self
            .table
            .store()
            .list(&keys::message_prefix(queue), after.as_ref(), limit)?;
        let is_full = limit <= listed.len();
        let mut page = Page::default();
        let (mut last, mut over) = (None, Vec::new());
        for row in listed {
            let Some((_, id)) = keys::message_of(&row.key) else {
                continue;
            };
            last = Some(id);
            match self.glance(queue, id, Some(&row.etag)) {
                Ok(Some(Glance::Stays(seen))) => page.seen.push(seen),
                Ok(Some(Glance::Over)) => over.push(id),
                Ok(None) => {}
                Err(cause) => page.faults.push(cause),
            }
        }
        page.next = last.filter(|_| is_full);
        if !over.is_empty() {
            self.clear_page(queue, &over, &mut page);
        }
        Ok(page)
    }

    /// Looks at one message: for reports of the store's feed. One that has expired or died is cleared away.
    pub fn look(&self, queue: &QueueId, id: MessageId) -> Result<Option<Seen>, Error> {
        match self.glance(queue, id, None)? {
            None => Ok(None),
            Some(Glance::Stays(seen)) => Ok(Some(seen)),
            Some(Glance::Over) => Ok(self.clear_away(queue, &[id])?.pop()),
        }
    }

    /// Reads one message and changes nothing. If its mark is known and has been met before, it need not be read.
    fn glance(&self, queue: &QueueId, id: MessageId, etag: Option<&Etag>) -> Result<Option<Glance>, Error> {
        let now = self.table.now();
        if let (Some(glances), Some(etag)) = (&self.glances, etag)
            && let Some(seen) = glances.get(id, etag, now.ms)
        {
            return Ok(Some(Glance::Stays(seen)));
        }
        let Some((record, etag)) = self.read_marked(queue, id)? else {
            return Ok(None);
        };
        Ok(Some(match rules::standing(&record, now) {
            Standing::Ready | Standing::Hidden { .. } => {
                let seen = seen(id, &record);
                if let Some(glances) = &self.glances {
                    glances.put(seen, etag, &record);
                }
                Glance::Stays(seen)
            }
            Standing::Expired | Standing::Dead => Glance::Over,
        }))
    }

    /// Clears away what a page has shown to be over: in one write where the store can do that, because a queue may hold
    /// very many such messages. If one of them turns out to be damaged, one by one, so that it holds up no other.
    fn clear_page(&self, queue: &QueueId, over: &[MessageId], page: &mut Page) {
        if self.table.store().capabilities().atomic_batch {
            match self.clear_away(queue, over) {
                Ok(stayed) => return page.take_in(stayed),
                Err(Error::CorruptRecord { .. }) => {}
                Err(cause) => return page.faults.push(cause),
            }
        }
        for id in over {
            match self.clear_away(queue, &[*id]) {
                Ok(stayed) => page.take_in(stayed),
                Err(cause) => page.faults.push(cause),
            }
        }
    }

    /// Clears messages away, and returns those that somebody has changed meanwhile so that they can stay.
    fn clear_away(&self, queue: &QueueId, over: &[MessageId]) -> Result<Vec<Seen>, Error> {
        self.table.transact(&[], |view| {
            let mut stayed = Vec::new();
            for id in over {
                let place = Place { queue, id: *id };
                let Some(found) = place.find(view)? else { continue };
                match rules::standing(&found.record, view.now()) {
                    Standing::Ready | Standing::Hidden { .. } => stayed.push(seen(*id, &found.record)),
                    Standing::Expired | Standing::Dead => place.put_away(view, &found)?,
                }
            }
            Ok(stayed)
        })
    }
}

/// What a look at a message shows.
enum Glance {
    Stays(Seen),
    Over,
}

impl Page {
    fn take_in(&mut self, stayed: Vec<Seen>) {
        for seen in stayed {
            let at = self.seen.partition_point(|other| other.id < seen.id);
            self.seen.insert(at, seen);
        }
    }
}

fn seen(id: MessageId, record: &MessageRecord) -> Seen {
    Seen {
        id,
        visible_from_ms: record.visible_from_ms,
        enqueued_at_ms: record.enqueued_at_ms,
    }
}
