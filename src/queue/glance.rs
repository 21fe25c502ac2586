//! What earlier looks at messages have shown, so that the next look reads only what has changed since.
//!
//! A listing tells the mark of each record, and a record with the same mark holds the same message. Where each read is a
//! request over a network, a consumer that waits beside a hundred leased messages would otherwise read all of them at
//! each poll. What is kept is a memory aid of bounded size: what is not there is read.

use std::collections::HashMap;
use std::mem;

use parking_lot::Mutex;

use super::scan::Seen;
use crate::keys::MessageId;
use crate::record::MessageRecord;
use crate::store::Etag;

/// How many messages are remembered, twice: those met lately, and those met before.
const KEPT_MAX: usize = 8 * 1024;

/// Remembers messages that can be delivered, now or later.
#[derive(Default)]
pub(super) struct Glances(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<MessageId, Kept>,
    old: HashMap<MessageId, Kept>,
}

#[derive(Clone)]
struct Kept {
    etag: Etag,
    seen: Seen,
    /// From this time on it has to be looked at again.
    until_ms: i64,
}

impl Glances {
    /// What the message with this mark has shown, if that still holds.
    pub(super) fn get(&self, id: MessageId, etag: &Etag, now_ms: i64) -> Option<Seen> {
        let mut kept = self.0.lock();
        let holds = |found: &Kept| found.etag == *etag && now_ms < found.until_ms;
        if let Some(found) = kept.young.get(&id) {
            return holds(found).then_some(found.seen);
        }
        // Those that are met again and again stay.
        let found = kept.old.remove(&id)?;
        let seen = holds(&found).then_some(found.seen)?;
        kept.put(id, found);
        Some(seen)
    }

    /// Remembers what a message has shown.
    pub(super) fn put(&self, seen: Seen, etag: Etag, record: &MessageRecord) {
        // Once it is over, somebody has to clear it away.
        let is_worn_out = record.max_attempts <= record.failure_attempts;
        let until_ms = if is_worn_out {
            i64::MIN
        } else {
            record.expires_at_ms.unwrap_or(i64::MAX)
        };
        self.0.lock().put(seen.id, Kept { etag, seen, until_ms });
    }
}

impl Generations {
    fn put(&mut self, id: MessageId, kept: Kept) {
        if KEPT_MAX <= self.young.len() {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(id, kept);
    }
}
