//! Expired leases that nobody has met since, and transactions of which nobody lives.
//!
//! Every lease has a record of its transaction, so this looks at what is or was held and not at every key there is.

use super::Pace;
use crate::error::Error;
use crate::ids::Xid;
use crate::keys::TXN_PREFIX;
use crate::lease::rules;
use crate::lease::table::{KeyName, KeyTable, Step};
use crate::record::TxnRecord;
use crate::store::RecordKey;
use crate::txn::rules::{Leased, is_member_alive};

/// Transactions looked at between two pauses.
const BATCH: usize = 128;

/// Clears every expired lease with what it had staged, and forgets every transaction without a living member. Returns how
/// many of both there were. A damaged record is passed over: whoever needs it will hear of it.
pub fn sweep_leases(table: &KeyTable, pace: &Pace) -> Result<usize, Error> {
    let (mut cleared, mut after) = (0, None);
    loop {
        let page = table.store().list(TXN_PREFIX, after.as_ref(), BATCH)?;
        for listed in &page {
            match sweep_transaction(table, &listed.key) {
                Ok(count) => cleared += count,
                Err(Error::CorruptRecord { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        match page.last() {
            Some(last) if page.len() == BATCH && pace.goes_on() => after = Some(last.key.clone()),
            _ => return Ok(cleared),
        }
    }
}

fn sweep_transaction(table: &KeyTable, record_key: &RecordKey) -> Result<usize, Error> {
    let (mut cleared, mut somebody_lives) = (0, false);
    for member in table.members(record_key)? {
        // A message needs no clearing: it comes back by itself.
        let Some(name) = KeyName::of(&member.subject) else {
            continue;
        };
        let Some(key) = table.read(&name)? else { continue };
        let is_held = key.lease.as_ref().is_some_and(|lease| lease.id == member.lease_id);
        if is_member_alive(&member, Some(&Leased::Key(key)), table.now()) {
            somebody_lives = true;
        } else if is_held {
            cleared += usize::from(clear(table, &name)?);
        }
    }
    if !somebody_lives {
        cleared += usize::from(forget(table, record_key)?);
    }
    Ok(cleared)
}

/// Clears the lease of a key if it is over, as whoever meets it does.
fn clear(table: &KeyTable, name: &KeyName) -> Result<bool, Error> {
    table.change(name, &[], |view| {
        let now = view.now();
        match view.record() {
            Some(record) if record.lease.is_some() && record.living_lease(now.unix()).is_none() => {
                Ok(Step::Write(Box::new(rules::cleared(record, now)), true))
            }
            _ => Ok(Step::Answer(false)),
        }
    })
}

/// Deletes the record of a transaction if there is still nobody who could decide it: its members were lost to others.
fn forget(table: &KeyTable, record_key: &RecordKey) -> Result<bool, Error> {
    let name = record_key.as_str().strip_prefix(TXN_PREFIX);
    let Some(txn_id) = name.and_then(Xid::parse) else {
        return Ok(false);
    };
    table.transact(&[], |view| {
        let (txn, etag) = view.txn(&txn_id)?;
        let Some(etag) = etag else { return Ok(false) };
        for member in &txn.participants {
            let leased = view.leased(&member.subject)?;
            if is_member_alive(member, leased.as_ref(), view.now()) {
                return Ok(false);
            }
        }
        view.put_txn(&txn_id, &TxnRecord::default(), Some(etag));
        Ok(true)
    })
}
