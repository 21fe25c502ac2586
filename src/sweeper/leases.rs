//! Expired leases that nobody has met since, and transactions of which nobody lives.
//!
//! Every lease has a record of its transaction or a pointer, so this looks at what is or was held and not at every key there
//! is. Decisions that were taken and not carried out are carried out on the way.

use super::Pace;
use crate::error::Error;
use crate::lease::rules;
use crate::lease::table::{KeyName, KeyTable, Step};
use crate::txn::book::Noted;

/// Records of transactions looked at between two pauses.
const BATCH: usize = 128;

/// Clears every expired lease with what it had staged, and forgets every transaction without a living member. Returns how
/// many of both there were. A damaged record is passed over: whoever needs it will hear of it.
pub fn sweep_leases(table: &KeyTable, pace: &Pace) -> Result<usize, Error> {
    let book = table.committer().book();
    let (mut cleared, mut after) = (0, None);
    loop {
        let page = book.page(after.as_ref(), BATCH)?;
        for noted in page.noted {
            match noted.and_then(|noted| sweep_transaction(table, &noted)) {
                Ok(count) => cleared += count,
                Err(Error::CorruptRecord { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        match page.next {
            Some(next) if pace.goes_on() => after = Some(next),
            _ => return Ok(cleared),
        }
    }
}

fn sweep_transaction(table: &KeyTable, noted: &Noted) -> Result<usize, Error> {
    if noted.record.decision.is_some() {
        return Ok(usize::from(table.committer().carry_out(&noted.txn_id, None)?));
    }
    let mut cleared = 0;
    for member in &noted.record.participants {
        // A message needs no clearing: it comes back by itself.
        let Some(name) = KeyName::of(&member.subject) else {
            continue;
        };
        let Some(key) = table.read(&name)? else { continue };
        let is_held = key.lease.as_ref().is_some_and(|lease| lease.id == member.lease_id);
        if is_held && key.living_lease(table.now().unix()).is_none() {
            cleared += usize::from(clear(table, &name)?);
        }
    }
    // Clearing the last member may have done it.
    Ok(cleared + usize::from(table.committer().sweep(noted)?))
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
