//! Queues over a store: enqueue, deliver, ack, nack, extend, and the looks that find what can be delivered.
//!
//! A message is one record, and what becomes of it is decided by one conditional write: the [`rules`] decide, and the
//! batch that is written holds everything that must happen along with it (the lease of the state that belongs to the
//! message, the keys of its transaction). So any number of servers work on one store, and whoever loses a race finds out
//! from the record what there is left to do. An enqueue, a delivery and an ack without state or transaction are one write
//! each.
//!
//! ```text
//! m/<namespace>/<queue>/<message id>   the message; sorts by the time of its enqueue
//! d/<namespace>/<queue>/<message id>   the message once it is dead; nothing reads it yet
//! k/<namespace>/q/<queue>/state/<id>   the state that belongs to the message: a key like any other
//! ```
//!
//! The state of a message is leased together with it and ends with it: an ack removes it, a nack commits what was staged,
//! and what a lapsed lease had staged is dropped.
//!
//! This module waits for nothing, and remembers nothing but what spares it a request. Whoever keeps an eye on which messages
//! are ready implements [`Listener`](crate::news::Listener) and is told of every durable change that went through here;
//! changes that other servers make are found by the store's feed and by [`Queues::scan`].

mod deliver;
mod enqueue;
mod finish;
mod glance;
pub mod rules;
mod scan;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

pub use deliver::{DeliverRequest, Delivered, NotDelivered, Payload, StateLease};
pub use enqueue::{EnqueueMeta, EnqueueWriter, Enqueued};
pub use finish::Extended;
pub(crate) use finish::StateEnd;
pub use scan::{Page, Seen};

use crate::error::Error;
use crate::ids::IdMaker;
use crate::keys::{self, MessageId, QueueId};
use crate::lease::table::{KeyName, KeyTable, View};
use crate::news::News;
use crate::record::{MessageLease, MessageRecord, Subject, decode_message, encode_message};
use crate::store::{Change, Etag, Precondition, RecordKey, RecordWrite, Stored};
use glance::Glances;
use rules::{Refusal, Standing};

/// Messages of all queues of a store. One per server, over the same table as its leases.
pub struct Queues {
    table: Arc<KeyTable>,
    ids: Arc<IdMaker>,
    spool_bytes_max: usize,
    /// Where a read costs a request.
    glances: Option<Glances>,
}

impl Queues {
    /// A service over this table. Of a payload on its way in, at most `spool_bytes_max` bytes are held in memory.
    pub fn new(table: Arc<KeyTable>, ids: Arc<IdMaker>, spool_bytes_max: usize) -> Self {
        let reads_cost = !table.store().capabilities().atomic_batch;
        Self {
            table,
            ids,
            spool_bytes_max,
            glances: reads_cost.then(Glances::default),
        }
    }

    /// Reads a message, for whoever wants to know everything about it.
    pub fn read(&self, queue: &QueueId, id: MessageId) -> Result<Option<MessageRecord>, Error> {
        Ok(self.read_marked(queue, id)?.map(|(record, _)| record))
    }

    /// The same with the mark of its record.
    fn read_marked(&self, queue: &QueueId, id: MessageId) -> Result<Option<(MessageRecord, Etag)>, Error> {
        let record_key = keys::message_record(queue, id);
        let Some(stored) = self.table.store().read(&record_key)? else {
            return Ok(None);
        };
        Ok(Some((decode(&record_key, &stored)?, stored.etag)))
    }
}

/// A message as one round of a change has found it.
pub(crate) struct Found {
    record_key: RecordKey,
    record: MessageRecord,
    etag: Etag,
}

/// A message in its queue, as functions of this floor pass it around.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) queue: &'a QueueId,
    pub(crate) id: MessageId,
}

impl Place<'_> {
    pub(crate) fn find(self, view: &mut View<'_>) -> Result<Option<Found>, Error> {
        let record_key = keys::message_record(self.queue, self.id);
        let Some(stored) = view.stored(&record_key)? else {
            return Ok(None);
        };
        Ok(Some(Found {
            record: decode(&record_key, &stored)?,
            record_key,
            etag: stored.etag,
        }))
    }

    fn require(self, view: &mut View<'_>) -> Result<Found, Error> {
        self.find(view)?.ok_or(Error::MessageRefused(Refusal::Gone))
    }

    /// The key that holds the state of the message.
    fn state_key(self) -> KeyName {
        KeyName {
            namespace: self.queue.namespace.clone(),
            key: keys::queue_state_key(&self.queue.queue, self.id),
        }
    }

    /// The message becomes this record.
    fn put(self, view: &mut View<'_>, found: &Found, record: &MessageRecord) {
        let write = RecordWrite {
            key: found.record_key.clone(),
            precondition: Precondition::Matches(found.etag.clone()),
            change: Change::Put(encode_message(record)),
        };
        let news = News::Visible {
            queue: self.queue.clone(),
            id: self.id,
            from_ms: record.visible_from_ms,
        };
        view.put_stored(write, Vec::new(), Some(news));
        // Its consumer will end or prolong this lease, and with it nothing else.
        let alone = |lease: &MessageLease| !lease.explicit && lease.state.is_none();
        if record.lease.as_ref().is_some_and(alone) {
            view.put_is_held_until(record.visible_from_ms);
        }
    }

    /// The message goes, and its payload with it.
    pub(crate) fn remove(self, view: &mut View<'_>, found: &Found) {
        let dropped = found.record.stored_body().cloned().into_iter().collect();
        view.put_stored(self.removal(found), dropped, Some(self.gone()));
    }

    /// The message is visible again as this record, or put aside if it has failed too often.
    pub(crate) fn put_back(self, view: &mut View<'_>, found: &Found, record: &MessageRecord) {
        if rules::standing(record, view.now()) == Standing::Dead {
            self.bury(view, found, record);
        } else {
            self.put(view, found, record);
        }
    }

    /// The message is put aside with its payload.
    fn bury(self, view: &mut View<'_>, found: &Found, record: &MessageRecord) {
        let now = view.now();
        let dead = rules::dead(record, &rfc3339(now.ms), now);
        let write = RecordWrite {
            key: keys::dead_message_record(self.queue, self.id),
            precondition: Precondition::Any,
            change: Change::Put(encode_message(&dead)),
        };
        view.put_stored(write, Vec::new(), None);
        view.put_stored(self.removal(found), Vec::new(), Some(self.gone()));
    }

    /// This message as one that can take part in a transaction.
    fn subject(self) -> Subject {
        Subject::Message {
            queue: self.queue.clone(),
            id: self.id,
        }
    }

    fn removal(self, found: &Found) -> RecordWrite {
        RecordWrite {
            key: found.record_key.clone(),
            precondition: Precondition::Matches(found.etag.clone()),
            change: Change::Delete,
        }
    }

    fn gone(self) -> News {
        News::Gone {
            queue: self.queue.clone(),
            id: self.id,
        }
    }
}

/// A time as RFC 3339 in UTC.
fn rfc3339(time_ms: i64) -> String {
    let since_epoch = Duration::from_millis(u64::try_from(time_ms).unwrap_or(0));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since_epoch).to_string()
}

fn decode(record_key: &RecordKey, stored: &Stored) -> Result<MessageRecord, Error> {
    decode_message(&stored.value).map_err(|cause| Error::CorruptRecord {
        key: record_key.clone(),
        cause,
    })
}

#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod history_tests;
#[cfg(test)]
pub(crate) mod testbed;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod txn_tests;
