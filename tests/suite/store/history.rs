//! Bad days and long random histories, with a plain map as the judge.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;

use lockd::store::fault::{Fault, FaultPlan, FaultStore, Operation};
use lockd::store::{Batch, BodyId, Change, Etag, Precondition, Store, StoreError, Stored, Written};

use super::tools::*;
use super::{Fixture, seed};

/// What every caller does about `Unknown`: read, look for the own mark, and only then try again.
pub(crate) fn a_lost_answer_can_be_resolved_by_reading(fixture: &Fixture) {
    let place = fixture();
    let mut seeds = fastrand::Rng::with_seed(seed());
    let stores: Vec<FaultStore> = (0..2)
        .map(|_| {
            let plan = FaultPlan::quiet(seeds.u64(..)).rate(Operation::Write, Fault::LoseAnswer, 0.3);
            FaultStore::new(place.handle(), plan, Arc::new(|_| ()))
        })
        .collect();
    thread::scope(|scope| {
        for thread in 0..4 {
            let store = &stores[thread % 2];
            scope.spawn(move || (0..20).for_each(|n| append_mark(store, &format!("{thread}.{n} "))));
        }
    });
    let text = read(&*place.handle(), "marks").unwrap();
    let mut marks: Vec<&str> = str::from_utf8(&text).unwrap().split_whitespace().collect();
    assert_eq!(marks.len(), 80, "each mark exactly once: {marks:?}");
    marks.sort_unstable();
    marks.dedup();
    assert_eq!(marks.len(), 80, "each mark exactly once: {marks:?}");
    assert!(stores.iter().all(|store| 0 < store.injected()));
}

/// Appends a mark to a record, exactly once, whatever becomes of the answers.
fn append_mark(store: &dyn Store, mark: &str) {
    loop {
        let stored = store.read(&key("marks")).unwrap();
        let (precondition, mut text) = match stored {
            Some(stored) => (Precondition::Matches(stored.etag), stored.value.to_vec()),
            None => (Precondition::Absent, Vec::new()),
        };
        let known: HashSet<String> = String::from_utf8_lossy(&text)
            .split_inclusive(' ')
            .map(str::to_owned)
            .collect();
        if known.contains(mark) {
            return;
        }
        text.extend(mark.as_bytes());
        match store.write(batch(vec![record("marks", precondition, put_change(&text))])) {
            Ok(Written::Done(_)) => return,
            Ok(Written::Refused { .. }) | Err(StoreError::Unknown { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

pub(crate) fn a_random_history_agrees_with_a_plain_map(fixture: &Fixture) {
    let place = fixture();
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut judge = Judge::default();
    let stores = [place.handle(), place.handle()];
    for _ in 0..1_000 {
        judge.step(&*stores[rng.usize(..2)], &mut rng);
    }
}

pub(crate) fn a_random_history_agrees_with_a_plain_map_when_calls_fail(fixture: &Fixture) {
    let place = fixture();
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut judge = Judge::default();
    let stores = [(); 2].map(|()| {
        let mut plan = FaultPlan::quiet(rng.u64(..));
        for operation in Operation::ALL {
            for fault in [Fault::FailBefore, Fault::LoseAnswer, Fault::Refuse] {
                plan = plan.rate(operation, fault, 0.1);
            }
        }
        FaultStore::new(place.handle(), plan, Arc::new(|_| ()))
    });
    for _ in 0..1_000 {
        judge.step(&stores[rng.usize(..2)], &mut rng);
    }
    assert!(stores.iter().all(|store| 100 < store.injected()));
    // In the end, without faults, everything is as it should be.
    judge.compare_all(&*place.handle());
}

/// A plain map that says what a store must answer. Nothing is certain about a store that errs, except what its errors say.
#[derive(Default)]
struct Judge {
    records: BTreeMap<String, (Vec<u8>, Etag)>,
    bodies: BTreeMap<BodyId, Vec<u8>>,
    gone_bodies: Vec<BodyId>,
    /// Of all records, present and past.
    etags: Vec<Etag>,
    next_body: u64,
}

impl Judge {
    fn step(&mut self, store: &dyn Store, rng: &mut fastrand::Rng) {
        match rng.u32(..10) {
            0..6 => self.step_write(store, rng),
            6 => self.step_read(store, rng),
            7 => self.step_list(store, rng),
            8 => self.step_stream(store, rng),
            _ => self.step_read_body(store, rng),
        }
    }

    fn step_write(&mut self, store: &dyn Store, rng: &mut fastrand::Rng) {
        let most = if store.capabilities().atomic_batch { 4 } else { 1 };
        let mut names = HashSet::new();
        let mut whole = Batch::default();
        for _ in 0..rng.usize(..=most) {
            let name = random_name(rng);
            if !names.insert(name.clone()) {
                continue;
            }
            let current = self.records.get(&name).map(|(_, etag)| etag.clone());
            let precondition = match (rng.u32(..8), current) {
                (0, _) => Precondition::Any,
                (1, _) => Precondition::Absent,
                (2, _) => Precondition::Matches(self.old_etag(rng)),
                (_, Some(etag)) => Precondition::Matches(etag),
                (_, None) => Precondition::Absent,
            };
            let change = match rng.u32(..4) {
                0 => Change::Delete,
                _ => put_change(&body_bytes(rng.usize(..100))),
            };
            whole.records.push(record(&name, precondition, change));
        }
        if rng.u32(..4) == 0 {
            self.next_body += 1;
            let id = body_id(&format!("random-{}", self.next_body));
            whole.bodies.push((id, Arc::from(body_bytes(rng.usize(..10_000)))));
        }
        if rng.u32(..4) == 0 {
            whole.drop_bodies.extend(self.some_body(rng));
        }
        match store.write(whole.clone()) {
            Ok(Written::Refused { index }) => {
                assert_eq!(Some(index), self.first_refused(&whole), "{whole:?}");
                self.gone_bodies.extend(whole.bodies.into_iter().map(|(id, _)| id));
            }
            Ok(Written::Done(etags)) => {
                assert_eq!(None, self.first_refused(&whole), "{whole:?}");
                assert_eq!(etags.len(), whole.records.len());
                self.apply(&whole, &etags);
            }
            Err(StoreError::Unknown { .. }) => self.resolve(store, &whole),
            Err(StoreError::NotDone { .. } | StoreError::Unavailable { .. }) => {
                self.gone_bodies.extend(whole.bodies.into_iter().map(|(id, _)| id));
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Finds out by reading whether a batch was done, as any caller would; it must have been done as a whole or not.
    fn resolve(&mut self, store: &dyn Store, whole: &Batch) {
        let now: Vec<Option<Etag>> = (whole.records.iter())
            .map(|write| until_served(|| store.read(&write.key)).map(|stored| stored.etag))
            .collect();
        let before: Vec<Option<Etag>> = (whole.records.iter())
            .map(|write| self.records.get(write.key.as_str()).map(|(_, etag)| etag.clone()))
            .collect();
        if now != before {
            assert_eq!(
                None,
                self.first_refused(whole),
                "done in spite of a precondition: {whole:?}"
            );
            self.apply(whole, &now);
        } else if self.first_refused(whole).is_some() {
            self.gone_bodies.extend(whole.bodies.iter().map(|(id, _)| id.clone()));
        } else {
            // The records do not tell. Doing the rest again settles it: bodies may be written and dropped twice.
            let rest = Batch {
                records: vec![],
                ..whole.clone()
            };
            let answer = until_served(|| match store.write(rest.clone()) {
                Err(StoreError::Unknown { detail }) => Err(StoreError::NotDone { detail }),
                answer => answer,
            });
            assert_eq!(answer, Written::Done(vec![]));
            self.apply(&rest, &[]);
        }
    }

    fn first_refused(&self, whole: &Batch) -> Option<usize> {
        whole.records.iter().position(|write| {
            let current = self.records.get(write.key.as_str()).map(|(_, etag)| etag);
            match &write.precondition {
                Precondition::Any => false,
                Precondition::Absent => current.is_some(),
                Precondition::Matches(etag) => current != Some(etag),
            }
        })
    }

    fn apply(&mut self, whole: &Batch, etags: &[Option<Etag>]) {
        for (write, etag) in whole.records.iter().zip(etags) {
            let name = write.key.as_str().to_owned();
            match &write.change {
                Change::Put(value) => {
                    let etag = etag.clone().expect("a put record has an etag");
                    assert!(!self.etags.contains(&etag), "{etag:?} came twice");
                    self.etags.push(etag.clone());
                    self.records.insert(name, (value.to_vec(), etag));
                }
                Change::Delete => {
                    assert_eq!(*etag, None, "a deleted record has no etag");
                    self.records.remove(&name);
                }
            }
        }
        self.bodies
            .extend(whole.bodies.iter().map(|(id, bytes)| (id.clone(), bytes.to_vec())));
        for id in &whole.drop_bodies {
            self.bodies.remove(id);
            self.gone_bodies.push(id.clone());
        }
    }

    fn step_read(&self, store: &dyn Store, rng: &mut fastrand::Rng) {
        let name = random_name(rng);
        if let Some(answer) = served(store.read(&key(&name))) {
            self.compare(&name, answer);
        }
    }

    fn compare(&self, name: &str, answer: Option<Stored>) {
        let answer = answer.map(|stored| (stored.value.to_vec(), stored.etag));
        assert_eq!(answer.as_ref(), self.records.get(name), "{name}");
    }

    fn compare_all(&self, store: &dyn Store) {
        for name in self.records.keys() {
            self.compare(name, store.read(&key(name)).unwrap());
        }
        let names: Vec<&String> = self.records.keys().collect();
        assert_eq!(list(store, "", None, usize::MAX).iter().collect::<Vec<_>>(), names);
        for (id, bytes) in &self.bodies {
            assert!(read_body(store, id) == *bytes, "{id:?}");
        }
        for id in &self.gone_bodies {
            wait_until_missing(store, id);
        }
    }

    fn step_list(&self, store: &dyn Store, rng: &mut fastrand::Rng) {
        let mut prefix = random_name(rng);
        prefix.truncate(rng.usize(..=prefix.len()));
        let after = rng.bool().then(|| random_name(rng));
        let limit = rng.usize(..30);
        let Some(rows) = served(store.list(&prefix, after.as_deref().map(key).as_ref(), limit)) else {
            return;
        };
        let rows: Vec<(&str, &Etag)> = rows.iter().map(|row| (row.key.as_str(), &row.etag)).collect();
        let expected: Vec<(&str, &Etag)> = (self.records.iter())
            .filter(|(name, _)| name.starts_with(&prefix) && after.as_ref().is_none_or(|after| after < *name))
            .map(|(name, (_, etag))| (name.as_str(), etag))
            .take(limit)
            .collect();
        assert_eq!(rows, expected, "below {prefix:?} after {after:?} limit {limit}");
    }

    fn step_stream(&mut self, store: &dyn Store, rng: &mut fastrand::Rng) {
        let bytes = body_bytes(rng.usize(..20_000));
        let Some(mut writer) = served(store.body_writer()) else {
            return;
        };
        // A broken stream or a lost answer leaves a body that nobody can name: nothing to check.
        if writer.write_all(&bytes).is_ok()
            && rng.u32(..4) != 0
            && let Ok(id) = writer.finish()
        {
            assert!(self.bodies.insert(id.clone(), bytes).is_none(), "{id:?} came twice");
        }
    }

    fn step_read_body(&self, store: &dyn Store, rng: &mut fastrand::Rng) {
        if let Some(id) = self.some_body(rng) {
            let mut bytes = Vec::new();
            if let Some(mut reader) = served(store.body_reader(&id))
                && reader.read_to_end(&mut bytes).is_ok()
            {
                assert!(bytes == self.bodies[&id], "{id:?}");
            }
        }
    }

    fn some_body(&self, rng: &mut fastrand::Rng) -> Option<BodyId> {
        let count = self.bodies.len();
        (0 < count).then(|| self.bodies.keys().nth(rng.usize(..count)).cloned())?
    }

    /// An etag that some record has or had.
    fn old_etag(&self, rng: &mut fastrand::Rng) -> Etag {
        rng.choice(&self.etags).cloned().unwrap_or(Etag::new("none"))
    }
}

/// The answer, if there was one; an error that is none of those of a bad day is a failure.
fn served<T>(answer: Result<T, StoreError>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(StoreError::NotDone { .. } | StoreError::Unavailable { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

fn until_served<T>(call: impl Fn() -> Result<T, StoreError>) -> T {
    (0..1_000)
        .find_map(|_| served(call()))
        .expect("the faults of a bad day are rare enough")
}

/// Few enough that names meet again, close enough that prefixes matter.
fn random_name(rng: &mut fastrand::Rng) -> String {
    (0..rng.usize(1..=3))
        .map(|_| *rng.choice(&['a', 'b', '/']).unwrap())
        .collect()
}
