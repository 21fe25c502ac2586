//! Bodies that no record names: what a crash leaves between writing a body and the record that was to name it, or between
//! a record and the dropping of the body before.
//!
//! A body may move from one record to another (a message that dies), and this reads record by record while others write.
//! So records are read kind by kind in the direction of such moves, and then all of them once more: a body would have to
//! move forth and back in the right moments of one pass to be overlooked. When anything cannot be read or understood,
//! nothing is dropped at all.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Pace;
use crate::error::Error;
use crate::ids::BodyId;
use crate::lease::table::KeyTable;
use crate::record::bodies_named_by;
use crate::store::RecordKey;

/// Records read between two pauses.
const BATCH: usize = 256;
/// No more bodies are judged in one pass.
const CANDIDATES_MAX: usize = 100_000;
/// Messages before dead messages, then everything.
const ORDER: [&str; 3] = ["m/", "d/", ""];

/// Drops bodies that were left alone for longer than `grace` and that no record names. Returns how many there were.
pub fn sweep_bodies(table: &KeyTable, grace: Duration, pace: &Pace) -> Result<usize, Error> {
    let store = table.store();
    let candidates = store.leftovers(grace)?;
    let mut candidates: BTreeSet<BodyId> = candidates.into_iter().take(CANDIDATES_MAX).collect();
    for prefix in ORDER {
        let mut after: Option<RecordKey> = None;
        loop {
            if candidates.is_empty() {
                return Ok(0);
            }
            let page = store.list(prefix, after.as_ref(), BATCH)?;
            for listed in &page {
                // One that is gone names nothing.
                let Some(stored) = store.read(&listed.key)? else {
                    continue;
                };
                let named = bodies_named_by(&listed.key, &stored.value).map_err(|cause| Error::CorruptRecord {
                    key: listed.key.clone(),
                    cause,
                })?;
                let Some(named) = named else { return Ok(0) };
                for body in &named {
                    candidates.remove(body);
                }
            }
            match page.last() {
                Some(last) if page.len() == BATCH => after = Some(last.key.clone()),
                _ => break,
            }
            if !pace.goes_on() {
                return Ok(0);
            }
        }
    }
    let left_over: Vec<BodyId> = candidates.into_iter().collect();
    let mut dropped = 0;
    for batch in left_over.chunks(BATCH) {
        table.drop_bodies(batch.to_vec())?;
        dropped += batch.len();
        if !pace.goes_on() {
            break;
        }
    }
    Ok(dropped)
}
