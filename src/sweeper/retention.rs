//! Keys and dead messages that have not changed for longer than they are to be kept.
//!
//! A key under a lease stays, whoever holds it and whether it is over or not: the pass over leases clears it first. So does
//! the state of a message that is still in its queue. With a key go its state, its attributes and its bodies; what stays
//! is its fencing token, in the record of the namespace's deleted keys, so that tokens never go back.

use std::time::Duration;

use super::Pace;
use crate::error::Error;
use crate::keys;
use crate::lease::rules::Now;
use crate::lease::table::{KeyName, KeyTable, View};
use crate::record::{KeyRecord, decode_message, encode_retired};
use crate::store::{Change, Precondition, RecordKey, RecordWrite, Stored};

/// Records looked at between two pauses.
const BATCH: usize = 256;

/// Deletes every key and every dead message that has not changed for `retention`. Returns how many there were. A damaged
/// record is passed over: it stays for whoever repairs it.
pub fn sweep_retention(table: &KeyTable, retention: Duration, pace: &Pace) -> Result<usize, Error> {
    let retention_ms = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
    let is_due = |updated_at_ms: i64, now: Now| updated_at_ms.saturating_add(retention_ms) <= now.ms;
    let keys = each_record(table, keys::KEY_PREFIX, pace, |record_key| {
        retire_key(table, record_key, &is_due)
    })?;
    let messages = each_record(table, keys::DEAD_PREFIX, pace, |record_key| {
        delete_dead_message(table, record_key, &is_due)
    })?;
    Ok(keys + messages)
}

/// Calls `act` for every record below a prefix and counts those for which it says true.
fn each_record(
    table: &KeyTable,
    prefix: &str,
    pace: &Pace,
    act: impl Fn(&RecordKey) -> Result<bool, Error>,
) -> Result<usize, Error> {
    let (mut count, mut after) = (0, None);
    loop {
        let page = table.store().list(prefix, after.as_ref(), BATCH)?;
        for listed in &page {
            match act(&listed.key) {
                Ok(done) => count += usize::from(done),
                Err(Error::CorruptRecord { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        match page.last() {
            Some(last) if page.len() == BATCH && pace.goes_on() => after = Some(last.key.clone()),
            _ => return Ok(count),
        }
    }
}

fn retire_key(table: &KeyTable, record_key: &RecordKey, is_due: &dyn Fn(i64, Now) -> bool) -> Result<bool, Error> {
    let Some((namespace, key)) = keys::key_of(record_key) else {
        return Ok(false);
    };
    let name = KeyName { namespace, key };
    let may_go = |record: &KeyRecord| record.lease.is_none() && is_due(record.updated_at_ms, table.now());
    // Most stay, and a look is cheaper than a round of a change.
    if !table.read(&name)?.is_some_and(|record| may_go(&record)) {
        return Ok(false);
    }
    table.transact(&[], |view| {
        let Some(record) = view.other(&name)?.filter(|record| may_go(record)) else {
            return Ok(false);
        };
        if let Some(message) = keys::message_of_state(&name.namespace, &name.key)
            && view.stored(&message)?.is_some()
        {
            return Ok(false);
        }
        raise_retired_token(view, &name, record.fencing_token)?;
        view.delete_key(&name)?;
        Ok(true)
    })
}

/// Keeps the token of a key that is about to go.
fn raise_retired_token(view: &mut View<'_>, name: &KeyName, fencing_token: i64) -> Result<(), Error> {
    let key = keys::retired_record(&name.namespace);
    let (mut retired, etag) = view.retired(&name.namespace)?;
    if retired.fencing_token < fencing_token {
        retired.fencing_token = fencing_token;
        let write = RecordWrite {
            key,
            precondition: etag.map_or(Precondition::Absent, Precondition::Matches),
            change: Change::Put(encode_retired(&retired)),
        };
        view.put_stored(write, vec![], None);
    }
    Ok(())
}

fn delete_dead_message(
    table: &KeyTable,
    record_key: &RecordKey,
    is_due: &dyn Fn(i64, Now) -> bool,
) -> Result<bool, Error> {
    let decode = |stored: &Stored| {
        decode_message(&stored.value).map_err(|cause| Error::CorruptRecord {
            key: record_key.clone(),
            cause,
        })
    };
    table.transact(&[], |view| {
        let Some(stored) = view.stored(record_key)? else {
            return Ok(false);
        };
        let record = decode(&stored)?;
        if !is_due(record.updated_at_ms, view.now()) {
            return Ok(false);
        }
        let write = RecordWrite {
            key: record_key.clone(),
            precondition: Precondition::Matches(stored.etag),
            change: Change::Delete,
        };
        view.put_stored(write, record.stored_body().cloned().into_iter().collect(), None);
        Ok(true)
    })
}
