//! Order, prefix, cursor and limit of a listing, and paging while others write.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use lockd::store::{Listed, Precondition};

use super::Fixture;
use super::tools::*;

pub(crate) fn listings_are_in_byte_order_below_their_prefix(fixture: &Fixture) {
    let place = fixture();
    let store = place.handle();
    let sorted = [
        "!", "A", "B/a", "a", "a!", "a-b", "a/", "a/b", "a/b/c", "a0", "aa", "b", "b/a", "~", "~~",
    ];
    let mut mixed = sorted;
    fastrand::Rng::with_seed(5).shuffle(&mut mixed);
    for name in mixed {
        put(&*store, name, Precondition::Absent, name.as_bytes());
    }
    assert_eq!(list(&*store, "", None, 100), sorted);
    for prefix in [
        "!", "A", "a", "a/", "a/b", "a/b/c/", "aa", "aaa", "b", "~", "~~~", "B/", "zz", " ",
    ] {
        let expected: Vec<&str> = sorted.into_iter().filter(|name| name.starts_with(prefix)).collect();
        assert_eq!(list(&*store, prefix, None, 100), expected, "below {prefix:?}");
    }
    for Listed { key, etag } in store.list("", None, 100).unwrap() {
        assert_eq!(store.read(&key).unwrap().unwrap().etag, etag, "{key}");
    }
}

pub(crate) fn listings_go_on_after_a_row_and_stop_at_their_limit(fixture: &Fixture) {
    let place = fixture();
    let store = place.handle();
    let names = ["a", "k/1", "k/10", "k/2", "k/3", "l"];
    for name in names {
        put(&*store, name, Precondition::Absent, b"");
    }
    for prefix in ["", "k/", "k/1", "l", "m"] {
        // Rows that are listed, gone, outside the prefix on either side, or just beside others.
        for after in [
            None,
            Some("a"),
            Some("k/"),
            Some("k/1"),
            Some("k/11"),
            Some("k/3"),
            Some("l"),
            Some("z"),
        ] {
            for limit in [0, 1, 2, 4, 6, 7, usize::MAX] {
                let mut expected: Vec<&str> = names.into_iter().filter(|name| name.starts_with(prefix)).collect();
                expected.retain(|name| after.is_none_or(|after| after < *name));
                expected.truncate(limit);
                let listed = list(&*store, prefix, after, limit);
                assert_eq!(listed, expected, "below {prefix:?} after {after:?} limit {limit}");
            }
        }
    }
}

/// Engines read in pages of their own, a thousand rows at a time or so; nobody must notice.
pub(crate) fn a_long_listing_is_whole(fixture: &Fixture) {
    let place = fixture();
    let store = place.handle();
    let names: Vec<String> = (0..2_500).map(|n| format!("k/{n:04}")).collect();
    let per_batch = if store.capabilities().atomic_batch { 500 } else { 1 };
    for some in names.chunks(per_batch) {
        let writes = some
            .iter()
            .map(|name| record(name, Precondition::Absent, put_change(b"")));
        done(&*store, batch(writes.collect()));
    }
    put(&*store, "j", Precondition::Absent, b"");
    put(&*store, "l", Precondition::Absent, b"");
    for limit in [999, 1_000, 1_001, 2_048, 2_499, 2_500, 2_501, usize::MAX] {
        let listed = list(&*store, "k/", None, limit);
        assert!(
            listed == names[..limit.min(names.len())],
            "limit {limit}: {} rows",
            listed.len()
        );
    }
}

pub(crate) fn paging_lists_what_stays_exactly_once_while_others_write(fixture: &Fixture) {
    let place = fixture();
    let (reader, writer) = (place.handle(), place.handle());
    let stays: Vec<String> = (0..50).map(|n| format!("k/{n:02}")).collect();
    for name in &stays {
        put(&*writer, name, Precondition::Absent, b"");
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = fastrand::Rng::with_seed(11);
            while !stop.load(Ordering::SeqCst) {
                let name = &stays[rng.usize(..stays.len())];
                put(&*writer, name, Precondition::Any, b"changed");
                let visitor = format!("{name}/visitor");
                match rng.bool() {
                    true => drop(put(&*writer, &visitor, Precondition::Any, b"")),
                    false => delete(&*writer, &visitor, Precondition::Any),
                }
            }
        });
        let _stop = StopAtEnd(&stop);
        for page_rows in [1, 3, 7, 50].into_iter().cycle().take(40) {
            let mut listed: Vec<String> = Vec::new();
            loop {
                let page = list(&*reader, "k/", listed.last().map(String::as_str), page_rows);
                let last_page = page.len() < page_rows;
                assert!(
                    listed.last() < page.first() || last_page,
                    "{page:?} comes after {listed:?}"
                );
                listed.extend(page);
                if last_page {
                    break;
                }
            }
            assert!(listed.is_sorted_by(|a, b| a < b), "{listed:?}");
            listed.retain(|name| !name.ends_with("/visitor"));
            assert_eq!(listed, stays);
        }
    });
}
