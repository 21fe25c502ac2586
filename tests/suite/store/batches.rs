//! All of a batch or nothing of it, also in the eyes of others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use lockd::store::{Batch, Change, Precondition, Written};

use super::Fixture;
use super::tools::*;

pub(crate) fn a_refused_batch_changes_nothing_and_names_the_first_obstacle(fixture: &Fixture) {
    let place = fixture();
    let store = place.handle();
    if !store.capabilities().atomic_batch {
        return skipped("atomic batches");
    }
    let etag = put(&*store, "there", Precondition::Absent, b"old");
    let fine = [
        record("new-1", Precondition::Absent, put_change(b"new")),
        record("new-2", Precondition::Any, put_change(b"new")),
        record("there", Precondition::Matches(etag.clone()), Change::Delete),
    ];
    let obstacles = [
        record("x", Precondition::Matches(etag.clone()), put_change(b"new")),
        record("y", Precondition::Matches(etag.clone()), Change::Delete),
    ];
    for first in 0..=fine.len() {
        for second in first + 1..=fine.len() + 1 {
            let mut records = fine.to_vec();
            records.insert(first, obstacles[0].clone());
            records.insert(second, obstacles[1].clone());
            let answer = store.write(batch(records)).unwrap();
            assert_eq!(answer, Written::Refused { index: first });
            assert_eq!(list(&*store, "", None, 10), ["there"]);
            assert_eq!(store.read(&key("there")).unwrap().unwrap().etag, etag);
        }
    }
    // What was refused was refused for the obstacles alone.
    assert!(matches!(store.write(batch(fine.to_vec())), Ok(Written::Done(_))));
    assert_eq!(list(&*store, "", None, 10), ["new-1", "new-2"]);
}

pub(crate) fn a_batch_happens_as_a_whole(fixture: &Fixture) {
    let place = fixture();
    let (store, other) = (place.handle(), place.handle());
    // A batch without records is legal on every engine: nothing can stand against it.
    assert_eq!(store.write(Batch::default()), Ok(Written::Done(vec![])));
    if !store.capabilities().atomic_batch {
        return skipped("atomic batches");
    }
    let names: Vec<String> = (0..100).map(|n| format!("r/{n:03}")).collect();
    let creates = names
        .iter()
        .map(|name| record(name, Precondition::Absent, put_change(name.as_bytes())));
    let etags = done(&*store, batch(creates.collect()));
    assert_eq!(list(&*other, "", None, 1000), names);
    for (name, etag) in names.iter().zip(&etags) {
        let stored = other.read(&key(name)).unwrap().unwrap();
        assert_eq!(
            (Some(&stored.etag), &*stored.value),
            (etag.as_ref(), name.as_bytes()),
            "{name}"
        );
    }

    let changes = names.iter().zip(&etags).enumerate().map(|(n, (name, etag))| {
        let precondition = Precondition::Matches(etag.clone().unwrap());
        let change = if n % 2 == 0 { Change::Delete } else { put_change(b"odd") };
        record(name, precondition, change)
    });
    let new_etags = done(&*store, batch(changes.collect()));
    for (n, name) in names.iter().enumerate() {
        let stored = other.read(&key(name)).unwrap();
        assert_eq!(stored.map(|stored| stored.etag), new_etags[n], "{name}");
        assert_eq!(new_etags[n].is_none(), n % 2 == 0, "{name}");
        assert!(!etags.contains(&new_etags[n]), "{name}");
    }
}

/// A reader that finds the last record of a batch finds the first one too, however it was stored.
pub(crate) fn nobody_sees_half_of_a_batch_after_the_other_half(fixture: &Fixture) {
    let place = fixture();
    let store = place.handle();
    if !store.capabilities().atomic_batch {
        return skipped("atomic batches");
    }
    let names = ["first", "second", "third"];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for from in 0..names.len() {
            let (store, stop) = (place.handle(), &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let mut least = 0;
                    for name in names.iter().cycle().skip(from).take(names.len()) {
                        let round = number(store.read(&key(name)).unwrap());
                        assert!(least <= round, "{name} is of round {round}, another was of {least}");
                        least = round;
                    }
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        for round in up_to_in_a_second(10_000) {
            let writes = names.map(|name| record(name, Precondition::Any, put_change(round.to_string().as_bytes())));
            done(&*store, batch(writes.to_vec()));
        }
    });
}
