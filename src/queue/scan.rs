//! Looks at a queue, to find what can be delivered and to clear away what cannot any more.

use super::rules::{self, Standing};
use super::{Place, Queues, decode};
use crate::error::Error;
use crate::keys::{self, MessageId, QueueId};

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
        let mut last = None;
        for row in listed {
            let Some((_, id)) = keys::message_of(&row.key) else {
                continue;
            };
            last = Some(id);
            match self.look(queue, id) {
                Ok(Some(seen)) => page.seen.push(seen),
                Ok(None) => {}
                Err(cause) => page.faults.push(cause),
            }
        }
        page.next = last.filter(|_| is_full);
        Ok(page)
    }

    /// Looks at one message: for reports of the store's feed. One that has expired or died is cleared away.
    pub fn look(&self, queue: &QueueId, id: MessageId) -> Result<Option<Seen>, Error> {
        let record_key = keys::message_record(queue, id);
        let Some(stored) = self.table.store().read(&record_key)? else {
            return Ok(None);
        };
        let record = decode(&record_key, &stored)?;
        match rules::standing(&record, self.table.now()) {
            Standing::Ready | Standing::Hidden { .. } => Ok(Some(Seen {
                id,
                visible_from_ms: record.visible_from_ms,
                enqueued_at_ms: record.enqueued_at_ms,
            })),
            Standing::Expired | Standing::Dead => self.clear_away(Place { queue, id }),
        }
    }

    /// Clears a message away, unless it turns out that somebody has changed it meanwhile so that it can stay.
    fn clear_away(&self, place: Place<'_>) -> Result<Option<Seen>, Error> {
        self.table.transact(&[], |view| {
            let Some(found) = place.find(view)? else {
                return Ok(None);
            };
            match rules::standing(&found.record, view.now()) {
                Standing::Ready | Standing::Hidden { .. } => Ok(Some(Seen {
                    id: place.id,
                    visible_from_ms: found.record.visible_from_ms,
                    enqueued_at_ms: found.record.enqueued_at_ms,
                })),
                Standing::Expired | Standing::Dead => {
                    place.put_away(view, &found)?;
                    Ok(None)
                }
            }
        })
    }
}
