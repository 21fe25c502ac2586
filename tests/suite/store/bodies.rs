//! Bodies: small and streamed, unfinished and dropped.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::sync::Arc;

use lockd::store::{Batch, Precondition, StoreError, Written};

use super::Fixture;
use super::tools::*;

/// Around every size at which an engine might change its ways.
const BODY_SIZES: [usize; 9] = [0, 1, 4095, 4096, 4097, 65_535, 65_537, 1_048_577, 10_000_000];

pub(crate) fn bodies_of_a_batch_are_read_back(fixture: &Fixture) {
    let place = fixture();
    let (store, other) = (place.handle(), place.handle());
    let ids = BODY_SIZES.map(|size| body_id(&format!("batch-{size}")));
    let bodies = BODY_SIZES.map(|size| Arc::<[u8]>::from(body_bytes(size)));
    let whole = Batch {
        bodies: ids.clone().into_iter().zip(bodies).collect(),
        records: vec![record("names-them", Precondition::Absent, put_change(b"..."))],
        drop_bodies: vec![],
    };
    done(&*store, whole.clone());
    // As after a lost answer: the bodies come again with the same bytes.
    let again = Batch {
        records: vec![],
        ..whole
    };
    done(&*store, again);
    for (id, size) in ids.iter().zip(BODY_SIZES) {
        for store in [&store, &other] {
            assert!(read_body(&**store, id) == body_bytes(size), "body of {size} bytes");
        }
    }
}

pub(crate) fn streamed_bodies_are_read_back(fixture: &Fixture) {
    let place = fixture();
    let (store, other) = (place.handle(), place.handle());
    let mut rng = fastrand::Rng::with_seed(3);
    let mut ids = HashSet::new();
    for size in BODY_SIZES {
        let bytes = body_bytes(size);
        let mut writer = store.body_writer().unwrap();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, further) = rest.split_at(rng.usize(1..=rest.len().min(300_000)));
            writer.write_all(piece).unwrap();
            rest = further;
        }
        writer.flush().unwrap();
        let id = writer.finish().unwrap();
        done(
            &*store,
            batch(vec![record(
                &format!("names/{size}"),
                Precondition::Absent,
                put_change(b""),
            )]),
        );
        assert!(read_body(&*other, &id) == bytes, "body of {size} bytes");
        let name = id.as_str();
        let lawful = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
        assert!(name.bytes().all(lawful) && (1..=64).contains(&name.len()), "{name}");
        assert!(ids.insert(id), "the same name came twice");
    }
    // A fine reader gets the same as one that takes all at once.
    let id = write_body(&*store, b"one byte at a time");
    let mut reader = other.body_reader(&id).unwrap();
    for expected in b"one byte at a time" {
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [*expected]);
    }
    assert_eq!(reader.read(&mut [0; 10]).unwrap(), 0);
}

pub(crate) fn an_unfinished_body_harms_nobody(fixture: &Fixture) {
    let place = fixture();
    let store = place.handle();
    let mut slow = store.body_writer().unwrap();
    slow.write_all(&body_bytes(100_000)).unwrap();
    let mut dropped = store.body_writer().unwrap();
    dropped.write_all(&body_bytes(100_000)).unwrap();
    drop(dropped);
    let quick = write_body(&*store, b"quick");
    slow.write_all(b"end").unwrap();
    let slow = slow.finish().unwrap();
    assert_eq!(read_body(&*store, &quick), b"quick");
    assert!(read_body(&*store, &slow) == [body_bytes(100_000), b"end".to_vec()].concat());
    assert_eq!(list(&*store, "", None, 10), [""; 0]);
}

pub(crate) fn dropped_bodies_go_away_and_others_stay(fixture: &Fixture) {
    let place = fixture();
    let (store, other) = (place.handle(), place.handle());
    let streamed = write_body(&*store, b"streamed");
    let [in_batch, stays] = ["in-batch", "stays"].map(body_id);
    let bodies = [&in_batch, &stays].map(|id| (id.clone(), Arc::from(id.as_str().as_bytes())));
    let etags = done(
        &*store,
        Batch {
            bodies: bodies.to_vec(),
            records: vec![record("a", Precondition::Absent, put_change(b"names three"))],
            drop_bodies: vec![],
        },
    );
    let change = record(
        "a",
        Precondition::Matches(etags[0].clone().unwrap()),
        put_change(b"names one"),
    );
    let drops = Batch {
        bodies: vec![],
        records: vec![change],
        drop_bodies: vec![streamed.clone(), in_batch.clone(), body_id("never-was")],
    };
    done(&*other, drops.clone());
    // As after a crash between record and garbage: what is gone may be dropped again.
    done(
        &*store,
        Batch {
            records: vec![],
            ..drops
        },
    );
    for store in [&store, &other] {
        wait_until_missing(&**store, &streamed);
        wait_until_missing(&**store, &in_batch);
        assert_eq!(read_body(&**store, &stays), stays.as_str().as_bytes());
    }
}

pub(crate) fn a_body_is_readable_to_its_end_after_it_was_dropped(fixture: &Fixture) {
    let place = fixture();
    let (store, other) = (place.handle(), place.handle());
    let bytes = body_bytes(3_000_000);
    let streamed = write_body(&*store, &bytes);
    let small = body_id("small");
    done(
        &*store,
        Batch {
            bodies: vec![(small.clone(), Arc::from(&b"small"[..]))],
            ..Batch::default()
        },
    );
    let mut small_reader = store.body_reader(&small).unwrap();
    let mut reader = store.body_reader(&streamed).unwrap();
    let mut beginning = [0; 1000];
    reader.read_exact(&mut beginning).unwrap();
    done(
        &*other,
        Batch {
            drop_bodies: vec![streamed.clone(), small.clone()],
            ..Batch::default()
        },
    );
    wait_until_missing(&*store, &streamed);
    wait_until_missing(&*store, &small);
    let mut all = beginning.to_vec();
    reader.read_to_end(&mut all).unwrap();
    assert!(all == bytes);
    let mut text = String::new();
    small_reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "small");
}

pub(crate) fn a_body_that_never_was_is_missing(fixture: &Fixture) {
    let place = fixture();
    let store = place.handle();
    put(&*store, "never-was", Precondition::Absent, b"a record and no body");
    let body = body_id("never-was");
    let answer = store.body_reader(&body).err();
    assert_eq!(answer, Some(StoreError::BodyMissing { body }));
}

pub(crate) fn a_refused_batch_leaves_neither_bodies_nor_gaps(fixture: &Fixture) {
    let place = fixture();
    let store = place.handle();
    put(&*store, "a", Precondition::Absent, b"");
    let kept = write_body(&*store, b"kept");
    let new = body_id("new");
    let refused = Batch {
        bodies: vec![(new.clone(), Arc::from(&b"new"[..]))],
        records: vec![record("a", Precondition::Absent, put_change(b"names new, not kept"))],
        drop_bodies: vec![kept.clone()],
    };
    assert_eq!(store.write(refused.clone()), Ok(Written::Refused { index: 0 }));
    wait_until_missing(&*store, &new);
    assert_eq!(read_body(&*store, &kept), b"kept");
    // The next try, with the same body, is not hampered by the cleaning up after the first.
    let records = vec![record("a", Precondition::Any, put_change(b"names new, not kept"))];
    done(&*store, Batch { records, ..refused });
    assert_eq!(read_body(&*store, &new), b"new");
    wait_until_missing(&*store, &kept);
    assert_eq!(read_body(&*store, &new), b"new");
}
