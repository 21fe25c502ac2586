//! Records one at a time: values, preconditions, etags.

use std::collections::HashSet;

use lockd::store::{Change, Etag, Precondition};

use super::Fixture;
use super::tools::*;

pub(crate) fn a_put_is_read_back_by_every_handle(fixture: &Fixture) {
    let place = fixture();
    let (one, two) = (place.handle(), place.handle());
    let every_byte: Vec<u8> = (0..8 * 1024).map(|n| (n % 256) as u8).collect();
    let long_name = "x".repeat(512);
    let names = [
        "a",
        "A",
        "a/b",
        "a//b",
        "/a",
        "..",
        "a b",
        "%2F",
        "~!\"#$&'()*+,;:<=>?@[\\]^`{|}",
        &long_name,
    ];
    for (n, name) in names.into_iter().enumerate() {
        let value = if n == 0 { &[] } else { &every_byte[n..] };
        assert_eq!(read(&*one, name), None, "{name}");
        let etag = put(&*one, name, Precondition::Absent, value);
        for store in [&one, &two] {
            let stored = store.read(&key(name)).unwrap().unwrap();
            assert_eq!(*stored.value, *value, "{name}");
            assert_eq!(stored.etag, etag, "{name}");
        }
    }
}

pub(crate) fn a_put_happens_only_under_its_precondition(fixture: &Fixture) {
    let place = fixture();
    let store = place.handle();
    let never = Etag::new("never-seen");

    refuse(&*store, "a", Precondition::Matches(never.clone()), put_change(b"1"));
    assert_eq!(read(&*store, "a"), None);
    let first = put(&*store, "a", Precondition::Absent, b"2");
    refuse(&*store, "a", Precondition::Absent, put_change(b"3"));
    refuse(&*store, "a", Precondition::Matches(never), put_change(b"4"));
    assert_eq!(read(&*store, "a").as_deref(), Some(&b"2"[..]));

    let second = put(&*store, "a", Precondition::Matches(first.clone()), b"5");
    refuse(&*store, "a", Precondition::Matches(first), put_change(b"6"));
    let third = put(&*store, "a", Precondition::Any, b"7");
    refuse(&*store, "a", Precondition::Matches(second), put_change(b"8"));
    assert_eq!(read(&*store, "a").as_deref(), Some(&b"7"[..]));
    put(&*store, "a", Precondition::Matches(third), b"9");
    put(&*store, "b", Precondition::Any, b"10");
    assert_eq!(read(&*store, "a").as_deref(), Some(&b"9"[..]));
    assert_eq!(read(&*store, "b").as_deref(), Some(&b"10"[..]));
}

pub(crate) fn deleting_needs_its_precondition_too(fixture: &Fixture) {
    let place = fixture();
    let store = place.handle();
    for precondition in [Precondition::Any, Precondition::Absent] {
        delete(&*store, "a", precondition);
    }
    refuse(
        &*store,
        "a",
        Precondition::Matches(Etag::new("never-seen")),
        Change::Delete,
    );

    let first = put(&*store, "a", Precondition::Absent, b"1");
    let second = put(&*store, "a", Precondition::Any, b"2");
    refuse(&*store, "a", Precondition::Absent, Change::Delete);
    refuse(&*store, "a", Precondition::Matches(first), Change::Delete);
    assert_eq!(read(&*store, "a").as_deref(), Some(&b"2"[..]));

    delete(&*store, "a", Precondition::Matches(second.clone()));
    assert_eq!(read(&*store, "a"), None);
    assert_eq!(list(&*store, "", None, 10), [""; 0]);
    refuse(&*store, "a", Precondition::Matches(second.clone()), Change::Delete);
    refuse(&*store, "a", Precondition::Matches(second), put_change(b"3"));

    put(&*store, "a", Precondition::Absent, b"4");
    delete(&*store, "a", Precondition::Any);
    assert_eq!(read(&*store, "a"), None);
}

/// Also for bytes that were there before, in the same record or one of the same name: who holds an old etag must lose.
pub(crate) fn every_put_gives_a_new_etag(fixture: &Fixture) {
    let place = fixture();
    let stores = [place.handle(), place.handle()];
    let mut seen = HashSet::new();
    for round in 0..20 {
        let store = &*stores[round % 2];
        let etag = put(store, "a", Precondition::Any, b"the same");
        assert_eq!(store.read(&key("a")).unwrap().unwrap().etag, etag);
        assert!(seen.insert(etag.clone()), "{etag:?} came twice, in round {round}");
        if round % 5 == 4 {
            delete(store, "a", Precondition::Matches(etag));
        }
    }
}
