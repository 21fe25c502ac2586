//! Bodies that no record names: what a crash leaves between writing a body and the record that was to name it, or between
//! a record and the dropping of the body before.
//!
//! A body may move from one record to another (a message that dies), and this reads record by record while others write.
//! So records are read kind by kind in the direction of such moves, and then all of them once more: a body would have to
//! move forth and back in the right moments of one pass to be overlooked. When anything cannot be read or understood,
//! nothing is dropped at all.
//!
//! How old a body is comes from two wall clocks: the one that dated it and the one that is asked now. If one of them is
//! wrong by days or has just been put right, a body that is being written this moment, and named in the next, looks old. So
//! a body goes only if it was left over in the pass before as well, which was hours ago by a clock that does not jump.

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

/// Drops bodies that were left alone for longer than `grace`, that were `noted` by the pass before, and that no record
/// names. Notes those that are old now. Returns how many it has dropped.
pub fn sweep_bodies(
    table: &KeyTable,
    grace: Duration,
    noted: &mut BTreeSet<BodyId>,
    pace: &Pace,
) -> Result<usize, Error> {
    let store = table.store();
    let old: BTreeSet<BodyId> = store.leftovers(grace)?.into_iter().collect();
    let mut candidates: BTreeSet<BodyId> = old.intersection(noted).take(CANDIDATES_MAX).cloned().collect();
    *noted = old;
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
