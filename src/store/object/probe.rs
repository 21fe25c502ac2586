//! What a store must prove before it is used.
//!
//! Everything above rests on conditional puts, and stores that claim to speak the protocol differ in just these: some
//! ignore the conditions, some check them and then let two writers pass at once. On such a store a lease would be granted
//! twice, silently, on a bad day. So each start tries the promises on objects of its own, and refuses a store that breaks
//! one. The trial proves nothing about the worst of days; it finds the stores that never even tried.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::bucket::{Bucket, Condition, Failure, Put};
use super::{Core, OpenError};

/// A store that checks and writes in two steps doubles more than half of such races.
pub(super) const RACES_AT_START: usize = 3;
const RACERS: usize = 4;
/// How often a request of the trial is sent before its failure is believed.
const ATTEMPTS: u32 = 4;

/// Tries the store out, and removes what it has written.
pub(super) fn check(core: &Core, races: usize) -> Result<(), OpenError> {
    let place = format!("{}.lockd/probe-{}", core.prefix, core.ids.uuid());
    let mut names = vec![place.clone()];
    names.extend((0..races).map(|race| format!("{place}-race-{race}")));
    let trial = Trial { core, place: &place };
    let verdict = trial.run(&names[1..]);
    let removed = trial.remove(&names);
    verdict.and(removed).map_err(|verdict| {
        let store = core.bucket.describe();
        match verdict {
            Verdict::Unusable(detail) => OpenError::Unusable { store, detail },
            Verdict::BreaksPromise(detail) => OpenError::BreaksPromise { store, detail },
        }
    })
}

enum Verdict {
    Unusable(String),
    BreaksPromise(String),
}

impl From<Failure> for Verdict {
    fn from(failure: Failure) -> Self {
        Verdict::Unusable(failure.to_string())
    }
}

struct Trial<'a> {
    core: &'a Core,
    place: &'a str,
}

impl Trial<'_> {
    fn run(&self, race_places: &[String]) -> Result<(), Verdict> {
        let bucket = &*self.core.bucket;
        self.again(|| bucket.check_bucket())?;
        let first = self.create()?;
        if self.accepts(b"second", &Condition::Absent)? {
            return broken("an object that is there was created a second time (it ignores If-None-Match)");
        }
        self.read_back(b"first", &first)?;
        let second = self.replace(&first)?;
        if second == first {
            return broken("two different states of an object have the same etag");
        }
        for (stale, what) in [(first, "an old"), ("0000000000000000".to_owned(), "an unknown")] {
            if self.accepts(b"third", &Condition::Matches(stale))? {
                return broken(&format!(
                    "an object was replaced under {what} etag (it ignores If-Match)"
                ));
            }
        }
        self.read_back(b"second", &second)?;
        self.list_back(&second, 6)?;
        race_places.iter().try_for_each(|place| self.race(place))
    }

    /// Sent once only: a second try after a lost answer would be refused, rightly.
    fn create(&self) -> Result<String, Verdict> {
        let bucket = &*self.core.bucket;
        for attempt in 0..ATTEMPTS {
            self.core.pause_before(attempt);
            match bucket.put(self.place, b"first", &Condition::Absent) {
                Ok(Put::Done(etag)) => return Ok(etag),
                Ok(Put::Refused) if attempt == 0 => {
                    return broken("a new object was not created, as if it were there already");
                }
                Ok(Put::Refused) | Err(Failure::Lost(_) | Failure::NotDone(_)) => {
                    if let Ok(Some(found)) = bucket.get(self.place) {
                        return Ok(found.etag);
                    }
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        Err(Verdict::Unusable("it does not answer".to_owned()))
    }

    fn replace(&self, first: &str) -> Result<String, Verdict> {
        let bucket = &*self.core.bucket;
        let condition = Condition::Matches(first.to_owned());
        let mut quoted = true;
        for attempt in 0..ATTEMPTS {
            self.core.pause_before(attempt);
            match bucket.put(self.place, b"second", &condition) {
                Ok(Put::Done(etag)) => return Ok(etag),
                answer => {
                    let Some(found) = self.again(|| bucket.get(self.place))? else {
                        return broken("an object was gone as soon as it was written");
                    };
                    match answer {
                        _ if found.bytes == b"second" => return Ok(found.etag),
                        Err(failure @ Failure::Denied(_)) => return Err(failure.into()),
                        Ok(Put::Refused) if quoted => {
                            quoted = false;
                            bucket.use_plain_etags();
                        }
                        Ok(_) => return broken("an object could not be replaced under its own etag"),
                        Err(_) => {}
                    }
                }
            }
        }
        Err(Verdict::Unusable("it does not answer".to_owned()))
    }

    /// True if the store puts an object under a condition that does not hold.
    fn accepts(&self, bytes: &[u8], condition: &Condition) -> Result<bool, Verdict> {
        let answer = self.again(|| self.core.bucket.put(self.place, bytes, condition))?;
        Ok(answer != Put::Refused)
    }

    fn read_back(&self, bytes: &[u8], etag: &str) -> Result<(), Verdict> {
        match self.again(|| self.core.bucket.get(self.place))? {
            Some(found) if found.bytes == bytes && found.etag == etag => Ok(()),
            Some(found) if found.bytes == bytes => broken("a read shows another etag than the write"),
            _ => broken("a read after a write shows something else"),
        }
    }

    fn list_back(&self, etag: &str, bytes: u64) -> Result<(), Verdict> {
        let page = self.again(|| self.core.bucket.list(self.place, None, 10))?;
        match page.rows.iter().find(|row| row.name == self.place) {
            Some(row) if row.etag == etag && row.bytes == bytes => Ok(()),
            Some(_) => broken("a listing shows another etag or size than the write"),
            None => broken("a listing after a write does not show the object"),
        }
    }

    /// Several writers create one object at once: one of them must win.
    fn race(&self, place: &str) -> Result<(), Verdict> {
        let bucket: &dyn Bucket = &*self.core.bucket;
        let won = AtomicUsize::new(0);
        thread::scope(|scope| {
            for racer in 0..RACERS {
                let won = &won;
                scope.spawn(move || {
                    let bytes = racer.to_string();
                    if let Ok(Put::Done(_)) = bucket.put(place, bytes.as_bytes(), &Condition::Absent) {
                        won.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        match won.into_inner() {
            // None: the answer of the one was lost, which is no verdict.
            0 | 1 => Ok(()),
            several => broken(&format!(
                "{several} of {RACERS} writers created the same object at the same time (its conditions are not atomic)"
            )),
        }
    }

    /// All of them, also when one cannot be removed. Nothing here rests on deletions but that the bucket does not fill up.
    fn remove(&self, names: &[String]) -> Result<(), Verdict> {
        let bucket = &*self.core.bucket;
        let removed: Vec<Result<(), Failure>> = (names.iter()).map(|name| self.again(|| bucket.delete(name))).collect();
        for removed in removed {
            if let Err(denied @ Failure::Denied(_)) = removed {
                return Err(denied.into());
            }
        }
        Ok(())
    }

    fn again<T>(&self, call: impl Fn() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut attempt = 0;
        loop {
            self.core.pause_before(attempt);
            attempt += 1;
            match call() {
                Err(Failure::NotDone(_) | Failure::Lost(_)) if attempt < ATTEMPTS => {}
                answer => return answer,
            }
        }
    }
}

fn broken<T>(what: &str) -> Result<T, Verdict> {
    Err(Verdict::BreaksPromise(what.to_owned()))
}
