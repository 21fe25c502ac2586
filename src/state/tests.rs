use std::time::Duration;

use super::*;
use crate::lease::rules::Reason;
use crate::lease::testbed::{SIZES, Testbed, name, state_of};
use crate::store::fault::{Fault, Operation};
use crate::store::{Batch, Store};

const STREAMED: usize = SIZES[2];

/// A key `a` with a staged state of this size.
fn staged(bytes: usize) -> (Testbed, Credentials) {
    let bed = Testbed::new();
    let by = bed.hold("a");
    bed.update("a", &by, &state_of(bytes, 'o')).unwrap();
    (bed, by)
}

#[test]
fn a_state_that_breaks_off_on_its_way_leaves_the_old_one_alone() {
    for old in SIZES {
        let (bed, by) = staged(old);
        let bodies = bed.memory.counts().bodies;
        for operation in [Operation::BodyWriter, Operation::BodyWrite, Operation::BodyFinish] {
            for fault in [Fault::FailBefore, Fault::Refuse] {
                bed.faulty.inject_next(operation, fault);
                let error = bed.update("a", &by, &state_of(STREAMED, 'n')).unwrap_err();
                assert!(
                    matches!(
                        error,
                        Error::Store(StoreError::NotDone { .. } | StoreError::Unavailable { .. })
                    ),
                    "{error}"
                );
                assert_eq!(bed.memory.counts().bodies, bodies, "{operation:?} {fault:?} over {old}");
            }
        }
        assert_eq!(bed.read("a", &by).unwrap(), Some(state_of(old, 'o')));
    }
}

#[test]
fn a_state_that_is_no_json_leaves_nothing_wherever_that_shows() {
    let (bed, by) = staged(SIZES[0]);
    for size in SIZES {
        for broken in [
            state_of(size, 'n')[..size - 1].to_owned(),
            format!("{}]", state_of(size, 'n')),
        ] {
            let error = bed.update("a", &by, &broken).unwrap_err();
            assert!(matches!(error, Error::InvalidJson(_)), "{error}");
        }
    }
    assert_eq!(bed.memory.counts().bodies, 0);
    assert_eq!(bed.read("a", &by).unwrap(), Some(state_of(SIZES[0], 'o')));
}

/// A body that streamed into the store ahead of its record was left behind when the record could not be written.
#[test]
fn an_update_that_was_not_done_leaves_no_body() {
    for (old, new) in SIZES.into_iter().flat_map(|old| SIZES.map(|new| (old, new))) {
        let (bed, by) = staged(old);
        let bodies = bed.memory.counts().bodies;
        for operation in [Operation::Read, Operation::Write] {
            bed.faulty.inject_next(operation, Fault::FailBefore);
            let error = bed.update("a", &by, &state_of(new, 'n')).unwrap_err();
            assert!(matches!(error, Error::Store(StoreError::NotDone { .. })), "{error}");
            assert_eq!(bed.memory.counts().bodies, bodies, "{new} bytes over {old}");
            assert_eq!(bed.read("a", &by).unwrap(), Some(state_of(old, 'o')));
        }
    }
}

#[test]
fn an_update_whose_answer_is_lost_is_found_done() {
    for (old, new) in SIZES.into_iter().flat_map(|old| SIZES.map(|new| (old, new))) {
        let (bed, by) = staged(old);
        bed.faulty.inject_next(Operation::Write, Fault::LoseAnswer);
        let record = bed.update("a", &by, &state_of(new, 'n')).unwrap();
        assert_eq!(record.effective_version(), 1);
        assert_eq!(bed.read("a", &by).unwrap(), Some(state_of(new, 'n')));
        assert_eq!(
            bed.memory.counts().bodies,
            usize::from(4096 < new),
            "{new} bytes over {old}"
        );
    }
}

/// Nobody knows whether the record names the body, so it must stay: an orphan costs space, a lost state is lost.
#[test]
fn an_update_of_unknown_outcome_keeps_its_body() {
    for new in SIZES {
        let (bed, by) = staged(SIZES[0]);
        bed.faulty.inject_next(Operation::Write, Fault::LoseAnswer);
        let reads = bed.faulty.calls(Operation::Read);
        bed.faulty.inject(Operation::Read, reads + 2, Fault::FailBefore);
        let error = bed.update("a", &by, &state_of(new, 'n')).unwrap_err();
        assert!(matches!(error, Error::Store(StoreError::Unknown { .. })), "{error}");
        assert_eq!(bed.read("a", &by).unwrap(), Some(state_of(new, 'n')));
    }
}

/// An update that met an expired lease was written along with the clearing of that lease, as a body that nobody named.
#[test]
fn a_refused_update_leaves_no_body_also_when_it_clears_the_lease() {
    for size in SIZES {
        let (bed, by) = staged(SIZES[0]);
        bed.clock.advance(Duration::from_secs(31));
        for reason in [Reason::LeaseExpired, Reason::LeaseRequired] {
            let error = bed.update("a", &by, &state_of(size, 'n')).unwrap_err();
            assert_eq!(error.reason(), Some(reason));
            assert_eq!(bed.memory.counts().bodies, 0, "{size} bytes, {reason:?}");
        }
    }
}

#[test]
fn a_refusal_is_told_even_if_its_garbage_cannot_be_dropped() {
    let (bed, by) = staged(SIZES[0]);
    let expected = Expected {
        version: Some(7),
        etag: None,
    };
    // The only write of a refused update is the one that drops its body.
    bed.faulty.inject_next(Operation::Write, Fault::FailBefore);
    let error = bed
        .update_if("a", &by, &state_of(STREAMED, 'n'), &expected)
        .unwrap_err();
    assert_eq!(error.reason(), Some(Reason::VersionConflict));
    assert_eq!(bed.faulty.injected(), 1);
}

#[test]
fn a_body_that_is_gone_is_reported_and_not_looked_for_without_end() {
    let (bed, by) = staged(STREAMED);
    let body = bed.record("a").bodies().next().cloned().unwrap();
    let drop_bodies = Batch {
        drop_bodies: vec![body],
        ..Batch::default()
    };
    bed.memory.write(drop_bodies).unwrap();
    let error = bed.states.read_leased(&name("a"), &by).map(drop).unwrap_err();
    assert!(matches!(error, Error::Store(StoreError::BodyMissing { .. })), "{error}");
}

/// Between the record and its body a reader may be overtaken by a writer that replaces the one and drops the other.
#[test]
fn a_reader_that_is_overtaken_finds_the_new_state() {
    for new in SIZES {
        let (bed, by) = staged(STREAMED);
        bed.faulty
            .inject_next(Operation::BodyReader, Fault::Delay(Duration::ZERO));
        let (other, holder) = (bed.another(), by.clone());
        *bed.meanwhile.lock() = Some(Box::new(move || {
            other.update("a", &holder, &state_of(new, 'n')).unwrap();
        }));
        assert_eq!(bed.read("a", &by).unwrap(), Some(state_of(new, 'n')));
        assert!(bed.meanwhile.lock().is_none(), "the writer came in between");
    }
}

/// What was true before a delay is not acted on after it: the conditional write finds out.
#[test]
fn a_change_that_is_overtaken_decides_anew() {
    let (bed, by) = staged(SIZES[0]);
    let overtake = |happens: Box<dyn FnOnce() + Send>| {
        bed.faulty.inject_next(Operation::Write, Fault::Delay(Duration::ZERO));
        *bed.meanwhile.lock() = Some(happens);
    };
    let (other, holder) = (bed.another(), by.clone());
    overtake(Box::new(move || {
        other.leases.release(&name("a"), &holder, false).unwrap();
    }));
    let error = bed.update("a", &by, &state_of(SIZES[1], 'n')).unwrap_err();
    assert_eq!(error.reason(), Some(Reason::LeaseRequired));
    assert_eq!(bed.memory.counts().bodies, 0);
    assert_eq!(bed.record("a").version, 1);

    let by = bed.hold("a");
    let (clock, other) = (bed.clock.clone(), bed.another());
    overtake(Box::new(move || {
        clock.advance(Duration::from_secs(31));
        other.hold("a");
    }));
    let error = bed.leases.keepalive(&name("a"), &by, 30).unwrap_err();
    assert_eq!(error.reason(), Some(Reason::LeaseRequired));
    assert_eq!(bed.record("a").fencing_token, 3);
}

#[test]
fn a_read_that_failed_can_be_tried_again() {
    let (bed, by) = staged(STREAMED);
    for operation in [Operation::Read, Operation::BodyReader] {
        bed.faulty.inject_next(operation, Fault::FailBefore);
        assert!(bed.read("a", &by).is_err());
        assert_eq!(bed.read("a", &by).unwrap(), Some(state_of(STREAMED, 'o')));
    }
}

#[test]
fn a_state_over_the_limit_is_refused_as_soon_as_that_shows() {
    let bed = Testbed::new();
    let mut incoming = bed.states.incoming(Announced::default());
    let piece = [b' '; 1 << 16];
    let pushed = (0..).take_while(|_| incoming.push(&piece).is_ok()).count();
    assert_eq!(pushed, 16, "spaces count: the limit is one of what is sent");
    assert_eq!(bed.memory.counts().bodies, 0);
}
