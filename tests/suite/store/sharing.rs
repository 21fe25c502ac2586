//! Several handles at once: the feed of changes, lost races, fresh reads.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use lockd::store::{ChangeListener, Precondition, RecordKey, Store, Written};
use parking_lot::Mutex;

use super::Fixture;
use super::tools::*;

pub(crate) fn a_handle_hears_of_the_changes_of_others_and_not_of_its_own(fixture: &Fixture) {
    let place = fixture();
    let (one, two, three) = (place.handle(), place.handle(), place.handle());
    let heard = Heard::default();
    let watching = one.watch(heard.listener("one"));
    assert_eq!(watching, one.capabilities().feed);
    if !watching {
        return skipped("a feed of changes");
    }
    assert!(one.watch(heard.listener("one again")));
    assert!(two.watch(heard.listener("two")));
    assert!(three.watch(heard.listener("three")));

    put(&*one, "by-one", Precondition::Absent, b"");
    let etag = put(&*two, "by-two", Precondition::Absent, b"");
    heard.wait_for("one", "by-two");
    heard.wait_for("one again", "by-two");
    heard.wait_for("two", "by-one");
    heard.wait_for("three", "by-one");
    heard.wait_for("three", "by-two");

    // Updates and deletions are changes as well.
    heard.forget();
    put(&*two, "by-two", Precondition::Matches(etag), b"updated");
    delete(&*two, "by-two", Precondition::Any);
    heard.wait_for("one", "by-two");
    heard.wait_for("three", "by-two");
    heard.forget();
    put(&*two, "to-delete", Precondition::Absent, b"");
    heard.wait_for("one", "to-delete");
    heard.forget();
    delete(&*two, "to-delete", Precondition::Any);
    heard.wait_for("one", "to-delete");

    // What is heard after a handle's own writes shows that these were not heard late.
    heard.forget();
    put(&*one, "by-one", Precondition::Any, b"");
    put(&*one, "by-one-too", Precondition::Any, b"");
    put(&*two, "last", Precondition::Any, b"");
    heard.wait_for("one", "last");
    heard.wait_for("one again", "last");
    for listener in ["one", "one again"] {
        assert!(
            !heard.has(listener, "by-one") && !heard.has(listener, "by-one-too"),
            "{listener}"
        );
    }

    if one.capabilities().atomic_batch {
        let names = ["m/1", "m/2", "m/3"];
        let writes = names.map(|name| record(name, Precondition::Absent, put_change(b"")));
        done(&*two, batch(writes.to_vec()));
        for name in names {
            heard.wait_for("one", name);
        }
    }
}

pub(crate) fn what_a_handle_hears_of_is_readable_already(fixture: &Fixture) {
    const ROUNDS: usize = 20;
    let place = fixture();
    let (watcher, writer) = (place.handle(), place.handle());
    let (told, news) = crossbeam_channel::unbounded();
    let (has_read, read_since) = crossbeam_channel::unbounded();
    // An engine that reports too early does so inside the write. So the listener holds it there until the record has
    // been read, though not for ever: an engine that reports under a lock of its own is in its right.
    let listener = move |keys: &[RecordKey]| {
        keys.iter().for_each(|key| told.send(key.clone()).unwrap());
        let _ = read_since.recv_timeout(Duration::from_millis(50));
    };
    if !watcher.watch(Arc::new(listener)) {
        return skipped("a feed of changes");
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..ROUNDS {
                put(&*writer, &format!("n/{round}"), Precondition::Absent, b"");
            }
        });
        let mut heard = HashSet::new();
        while heard.len() < ROUNDS {
            let key = news.recv_timeout(PATIENCE).expect("every change is reported");
            assert!(watcher.read(&key).unwrap().is_some(), "{key}");
            has_read.send(()).unwrap();
            heard.insert(key);
        }
    });
}

pub(crate) fn increments_by_compare_and_swap_are_never_lost(fixture: &Fixture) {
    let place = fixture();
    let stores = [place.handle(), place.handle()];
    let (won, lost) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for n in 0..8 {
            let (store, won, lost) = (&*stores[n % 2], &won, &lost);
            scope.spawn(move || {
                for _ in up_to_in_a_second(10_000) {
                    let outcome = if increment(store) { won } else { lost };
                    outcome.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let won = won.into_inner();
    eprintln!("{won} increments, {} lost races", lost.into_inner());
    assert!(0 < won);
    for store in stores {
        assert_eq!(number(store.read(&key("counter")).unwrap()), won);
    }
}

/// Adds one to a record, unless somebody else was quicker.
fn increment(store: &dyn Store) -> bool {
    let stored = store.read(&key("counter")).unwrap();
    let precondition = match &stored {
        Some(stored) => Precondition::Matches(stored.etag.clone()),
        None => Precondition::Absent,
    };
    let next = number(stored) + 1;
    let write = record("counter", precondition, put_change(next.to_string().as_bytes()));
    match store.write(batch(vec![write])).unwrap() {
        Written::Done(_) => true,
        Written::Refused { index } => {
            assert_eq!(index, 0);
            false
        }
    }
}

pub(crate) fn an_acknowledged_write_is_seen_by_every_later_read(fixture: &Fixture) {
    let place = fixture();
    // In turns first: this leaves nothing to the luck of threads meeting.
    let stores = [place.handle(), place.handle(), place.handle()];
    for round in 1..=100_u64 {
        put(
            &*stores[round as usize % 3],
            "turns",
            Precondition::Any,
            round.to_string().as_bytes(),
        );
        for store in &stores {
            assert_eq!(number(store.read(&key("turns")).unwrap()), round);
        }
    }

    let writer = place.handle();
    let acknowledged = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            let (store, acknowledged, stop) = (place.handle(), &acknowledged, &stop);
            scope.spawn(move || {
                let mut last = 0;
                while !stop.load(Ordering::SeqCst) {
                    let floor = acknowledged.load(Ordering::SeqCst).max(last);
                    last = number(store.read(&key("a")).unwrap());
                    assert!(floor <= last, "{last} was read after {floor} was acknowledged or read");
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        for round in up_to_in_a_second(10_000) {
            put(&*writer, "a", Precondition::Any, round.to_string().as_bytes());
            acknowledged.store(round, Ordering::SeqCst);
        }
    });
}

/// Who heard of which change.
#[derive(Default, Clone)]
struct Heard(Arc<Mutex<HashSet<(&'static str, String)>>>);

impl Heard {
    fn listener(&self, who: &'static str) -> ChangeListener {
        let heard = self.clone();
        Arc::new(move |keys| {
            let names = keys.iter().map(|key| (who, key.as_str().to_owned()));
            heard.0.lock().extend(names);
        })
    }

    fn has(&self, who: &'static str, name: &str) -> bool {
        self.0.lock().contains(&(who, name.to_owned()))
    }

    fn wait_for(&self, who: &'static str, name: &str) {
        wait_until(&format!("{who} hears of {name}"), || self.has(who, name));
    }

    fn forget(&self) {
        self.0.lock().clear();
    }
}
