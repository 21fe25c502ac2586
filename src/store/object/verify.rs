//! Looks a bucket over for whoever has just set one up: credentials, rights, conditional writes, large bodies.
//!
//! What a server tries at each start is tried here as well, with more races, and the rest of what it will ever ask for.
//! Everything is written below a name of its own and removed again.

use std::io::{Read, Write};
use std::sync::Arc;

use super::bucket::{Condition, Failure, Put};
use super::{Core, Location, ObjectStore, OpenError, Options, probe};
use crate::store::{BodyWriter, StoreError};

/// Races for one object. A server tries a few at its start; a store that loses one in a hundred is found here.
const RACES: usize = 100;
/// A body of more than one part.
const LARGE_BODY_PARTS: usize = 2;

/// What one step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What was tried.
    pub name: &'static str,
    /// What is worth knowing about it, or why it failed.
    pub outcome: Result<String, String>,
}

/// What was found.
pub struct Examined {
    /// The steps, in order. The first one that fails is the last.
    pub steps: Vec<Step>,
    /// The store, if it may be used.
    pub store: Option<ObjectStore>,
}

impl Examined {
    fn note(&mut self, name: &'static str, outcome: Result<String, String>) -> bool {
        let is_well = outcome.is_ok();
        self.steps.push(Step { name, outcome });
        is_well
    }
}

/// Looks a bucket over.
pub fn examine(location: &Location, options: Options) -> Examined {
    let mut examined = Examined {
        steps: Vec::new(),
        store: None,
    };
    let connected = location.connect(&options);
    let (bucket, prefix) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            examined.note("Credentials", Err(error.to_string()));
            return examined;
        }
    };
    examined.note("Credentials", Ok("found".to_owned()));
    let reached = bucket.check_bucket().map_err(|failure| failure.to_string());
    if !examined.note("Bucket", reached.map(|()| bucket.describe())) {
        return examined;
    }
    let store = match ObjectStore::over(bucket, prefix, options) {
        Ok(store) => store,
        Err(error) => {
            examined.note("Bucket", Err(error.to_string()));
            return examined;
        }
    };
    let core = &store.core;
    let promises = probe::check(core, RACES).map_err(|error| match error {
        OpenError::BreaksPromise { detail, .. } => format!("it is not safe to use this store: {detail}"),
        OpenError::Unusable { detail, .. } => detail,
        other => other.to_string(),
    });
    if !examined.note("Conditional writes", promises.map(|()| format!("races: {RACES}"))) {
        return examined;
    }
    let large = large_body(core).map_err(|error| error.to_string());
    if !examined.note("Large bodies", large.map(|bytes| format!("bytes: {bytes}, in parts"))) {
        return examined;
    }
    let deletion = conditional_deletion(core).map_err(|failure| failure.to_string());
    let is_well = examined.note(
        "Deletion",
        deletion.map(|is_conditional| {
            let how = if is_conditional { "honours" } else { "ignores" };
            format!("the store {how} conditions, which nothing here relies on")
        }),
    );
    if is_well {
        examined.store = Some(store);
    }
    examined
}

fn large_body(core: &Arc<Core>) -> Result<u64, StoreError> {
    let piece = vec![b'x'; core.bucket.part_bytes()];
    let mut writer = core.stream_body();
    let not_written = |cause: std::io::Error| StoreError::NotDone {
        detail: cause.to_string(),
    };
    for _ in 0..LARGE_BODY_PARTS {
        writer.write_all(&piece).map_err(not_written)?;
    }
    writer.write_all(b"end").map_err(not_written)?;
    let id = BodyWriter::finish(writer)?;
    let read = core.open_body(&id).and_then(|mut reader| {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(not_written)?;
        Ok(bytes)
    });
    let name = core.body_name(&id)?;
    let deleted = core.bucket.delete(&name).map_err(Failure::of_change);
    let bytes = read?;
    deleted?;
    let expected = LARGE_BODY_PARTS * piece.len() + 3;
    if bytes.len() != expected || !bytes.ends_with(b"xend") {
        return Err(StoreError::Corrupt {
            place: name,
            offset: 0,
            detail: format!("{} bytes came back of {expected}", bytes.len()),
        });
    }
    Ok(expected as u64)
}

/// Whether a deletion under a condition that does not hold leaves the object alone.
fn conditional_deletion(core: &Core) -> Result<bool, Failure> {
    let name = format!("{}.lockd/verify-{}", core.prefix, core.ids.uuid());
    let Put::Done(_) = core.bucket.put(&name, b"x", &Condition::Absent)? else {
        return Err(Failure::Denied("a new object was not created".to_owned()));
    };
    let _ = core.bucket.delete_if(&name, "0000000000000000");
    let is_left = core.bucket.get(&name)?.is_some();
    core.bucket.delete(&name)?;
    if core.bucket.get(&name)?.is_some() {
        return Err(Failure::Denied(
            "an object is still there after it was deleted".to_owned(),
        ));
    }
    Ok(is_left)
}
