//! The judge is judged: it finds nothing wrong with histories that are known to be right, and catches what it is there for.
//!
//! A history is written as calls with the span in which they were under way; wall time is far from the end of any lease
//! unless a history is about that.

use crate::history::{Entry, Stamp, judge};
use crate::linear::{Model, Operation, Verdict, check};
use crate::model::{Answer, Call, KeyNo, LeaseNo, TxnNo, ValueNo};

const NOW_MS: i64 = 1_000_000_000;
const TTL: i64 = 30;

/// A history in the making.
#[derive(Default)]
struct Told(Vec<Entry>);

impl Told {
    fn add(mut self, span: (u64, u64), key: KeyNo, call: Call, answer: Answer) -> Self {
        self.0.push(Entry {
            client: 0,
            server: 0,
            group: 0,
            key,
            call,
            answer,
            called: Stamp {
                order: span.0,
                wall_ms: NOW_MS,
            },
            ended: Stamp {
                order: span.1,
                wall_ms: NOW_MS,
            },
            note: String::new(),
        });
        self
    }

    /// The wall clock shows so many seconds more from the last entry on.
    fn later(mut self, seconds: i64) -> Self {
        let last = self.0.last_mut().unwrap();
        last.called.wall_ms += 1000 * seconds;
        last.ended.wall_ms += 1000 * seconds;
        self
    }

    fn acquire(self, span: (u64, u64), lease: LeaseNo, token: i64, version: i64, value: ValueNo) -> Self {
        self.acquire_in(span, 0, lease, 0, token, version, value)
    }

    #[allow(clippy::too_many_arguments, reason = "the columns of a table")]
    fn acquire_in(
        self,
        span: (u64, u64),
        key: KeyNo,
        lease: LeaseNo,
        txn: TxnNo,
        token: i64,
        version: i64,
        value: ValueNo,
    ) -> Self {
        let granted = Answer::Granted {
            token,
            version,
            value,
            expires_at_unix: NOW_MS / 1000 + TTL,
        };
        self.add(span, key, acquire_call(lease, txn), granted)
    }

    fn update(self, span: (u64, u64), lease: LeaseNo, value: ValueNo, version: i64) -> Self {
        self.add(span, 0, Call::Update { lease, value }, Answer::Staged(version))
    }

    fn release(self, span: (u64, u64), lease: LeaseNo) -> Self {
        self.add(span, 0, release_call(lease), Answer::Released)
    }

    fn read(self, span: (u64, u64), version: i64, value: ValueNo) -> Self {
        self.read_of(span, 0, version, value)
    }

    fn read_of(self, span: (u64, u64), key: KeyNo, version: i64, value: ValueNo) -> Self {
        let seen = match value {
            0 => Answer::NoState,
            value => Answer::State { version, value },
        };
        self.add(span, key, Call::ReadPublic, seen)
    }

    fn unanswered(self, called: u64, key: KeyNo, call: Call) -> Self {
        self.add((called, called + 1), key, call, Answer::Unknown)
    }

    #[track_caller]
    fn is_right(&self) {
        if let Err(history) = judge(&self.0, &names()) {
            panic!("{history}");
        }
    }

    /// It cannot be, and the report shows the calls.
    #[track_caller]
    fn is_wrong(&self) {
        let history = judge(&self.0, &names()).expect_err("the judge has found nothing");
        assert!(history.contains("No order of these calls"), "{history}");
        assert!(history.lines().count() > self.0.len());
    }
}

fn names() -> Vec<String> {
    vec!["a".to_owned(), "b".to_owned()]
}

fn acquire_call(lease: LeaseNo, txn: TxnNo) -> Call {
    Call::Acquire {
        lease,
        txn,
        ttl_seconds: TTL,
    }
}

fn release_call(lease: LeaseNo) -> Call {
    Call::Release { lease, rollback: false }
}

/// State 7 is committed with version 1 in the events 1 to 6.
fn saved() -> Told {
    Told::default()
        .acquire((1, 2), 1, 1, 0, 0)
        .update((3, 4), 1, 7, 1)
        .release((5, 6), 1)
}

#[test]
fn one_after_the_other_is_right() {
    saved()
        .read((7, 8), 1, 7)
        .acquire((9, 10), 2, 2, 1, 7)
        .update((11, 12), 2, 8, 2)
        .add(
            (13, 14),
            0,
            Call::ReadLeased { lease: 2 },
            Answer::State { version: 2, value: 8 },
        )
        .read((15, 16), 1, 7)
        .add((17, 18), 0, Call::Remove { lease: 2 }, Answer::Staged(3))
        .release((19, 20), 2)
        .read((21, 22), 3, 0)
        .is_right();
}

#[test]
fn a_read_beside_a_commit_may_see_either_state() {
    for (version, value) in [(0, 0), (1, 7)] {
        Told::default()
            .acquire((1, 2), 1, 1, 0, 0)
            .update((3, 4), 1, 7, 1)
            .release((5, 9), 1)
            .read((6, 8), version, value)
            .is_right();
    }
}

#[test]
fn a_stale_read_is_caught() {
    saved().read((7, 8), 0, 0).is_wrong();
}

#[test]
fn two_reads_that_see_a_commit_and_then_do_not_are_caught_although_it_is_under_way() {
    Told::default()
        .acquire((1, 2), 1, 1, 0, 0)
        .update((3, 4), 1, 7, 1)
        .release((5, 20), 1)
        .read((6, 8), 1, 7)
        .read((9, 10), 0, 0)
        .is_wrong();
}

#[test]
fn a_lost_update_is_caught() {
    saved()
        .acquire((7, 8), 2, 2, 0, 0)
        .update((9, 10), 2, 8, 1)
        .release((11, 12), 2)
        .is_wrong();
}

#[test]
fn a_state_that_shows_before_its_commit_is_caught() {
    Told::default()
        .acquire((1, 2), 1, 1, 0, 0)
        .update((3, 4), 1, 7, 1)
        .read((5, 6), 1, 7)
        .is_wrong();
}

#[test]
fn a_token_that_goes_back_stays_or_jumps_is_caught() {
    for token in [0, 1, 3] {
        saved().acquire((7, 8), 2, token, 1, 7).is_wrong();
    }
    saved().acquire((7, 8), 2, 2, 1, 7).is_right();
}

#[test]
fn two_living_leases_on_a_key_are_caught() {
    Told::default()
        .acquire((1, 2), 1, 1, 0, 0)
        .acquire((3, 4), 2, 2, 0, 0)
        .is_wrong();
}

#[test]
fn a_refusal_because_of_a_lease_that_nobody_holds_is_caught() {
    saved().add((7, 8), 0, acquire_call(2, 0), Answer::Waiting).is_wrong();
    Told::default()
        .acquire((1, 2), 1, 1, 0, 0)
        .add((3, 4), 0, acquire_call(2, 0), Answer::Waiting)
        .is_right();
}

#[test]
fn a_lease_that_is_over_may_be_taken_over_and_one_that_is_not_may_not() {
    for (seconds, right) in [(TTL + 1, true), (TTL - 1, false)] {
        let mut told = Told::default()
            .acquire((1, 2), 1, 1, 0, 0)
            .update((3, 4), 1, 7, 1)
            .acquire((5, 6), 2, 2, 0, 0)
            .later(seconds);
        if let Answer::Granted { expires_at_unix, .. } = &mut told.0[2].answer {
            *expires_at_unix += seconds;
        }
        if right {
            told.is_right();
        } else {
            told.is_wrong();
        }
    }
    // Its holder hears of it, and what it had staged is gone.
    Told::default()
        .acquire((1, 2), 1, 1, 0, 0)
        .update((3, 4), 1, 7, 1)
        .add((5, 6), 0, Call::Update { lease: 1, value: 8 }, Answer::NotHolder)
        .is_wrong();
    Told::default()
        .acquire((1, 2), 1, 1, 0, 0)
        .update((3, 4), 1, 7, 1)
        .add((5, 6), 0, Call::Update { lease: 1, value: 8 }, Answer::NotHolder)
        .later(TTL)
        .release((7, 8), 1)
        .later(TTL)
        .read((9, 10), 0, 0)
        .later(TTL)
        .is_right();
}

#[test]
fn a_release_without_an_answer_may_have_committed_may_not_have_or_may_yet() {
    let begun = || {
        Told::default()
            .acquire((1, 2), 1, 1, 0, 0)
            .update((3, 4), 1, 7, 1)
            .unanswered(5, 0, release_call(1))
    };
    begun().read((10, 11), 1, 7).is_right();
    begun().read((10, 11), 0, 0).is_right();
    begun().read((10, 11), 0, 0).read((12, 13), 1, 7).is_right();
    begun().read((10, 11), 1, 7).read((12, 13), 0, 0).is_wrong();
    // Not before it was called.
    let mut told = begun().read((10, 11), 1, 7);
    told.0[2].called.order = 20;
    told.is_wrong();
}

#[test]
fn an_update_without_an_answer_is_whole_or_absent() {
    let begun = || {
        Told::default()
            .acquire((1, 2), 1, 1, 0, 0)
            .update((3, 4), 1, 7, 1)
            .unanswered(5, 0, Call::Update { lease: 1, value: 8 })
            .release((10, 11), 1)
    };
    begun().read((12, 13), 1, 7).is_right();
    begun().read((12, 13), 1, 8).is_right();
    begun().read((12, 13), 1, 9).is_wrong();
    begun().read((12, 13), 2, 8).is_wrong();
    // After the release it is too late.
    begun().read((12, 13), 1, 7).read((14, 15), 1, 8).is_wrong();
}

#[test]
fn an_acquire_without_an_answer_may_hold_the_key_and_uses_up_one_token() {
    let begun = || saved().unanswered(7, 0, acquire_call(2, 0));
    begun().acquire((10, 11), 3, 2, 1, 7).is_right();
    begun().acquire((10, 11), 3, 3, 1, 7).is_right();
    begun().acquire((10, 11), 3, 4, 1, 7).is_wrong();
    begun().add((10, 11), 0, acquire_call(3, 0), Answer::Waiting).is_right();
}

/// Both keys are changed in transaction 9.
fn transaction() -> Told {
    Told::default()
        .acquire_in((1, 2), 0, 1, 9, 1, 0, 0)
        .acquire_in((3, 4), 1, 2, 9, 1, 0, 0)
        .update((5, 6), 1, 7, 1)
        .add((7, 8), 1, Call::Update { lease: 2, value: 8 }, Answer::Staged(1))
}

#[test]
fn a_transaction_is_seen_on_all_keys_at_once() {
    transaction()
        .release((9, 10), 1)
        .read_of((11, 12), 0, 1, 7)
        .read_of((13, 14), 1, 1, 8)
        .is_right();
    transaction()
        .release((9, 10), 1)
        .read_of((11, 12), 0, 1, 7)
        .read_of((13, 14), 1, 0, 0)
        .is_wrong();
    transaction()
        .unanswered(9, 0, release_call(1))
        .read_of((11, 12), 0, 1, 7)
        .read_of((13, 14), 1, 0, 0)
        .is_wrong();
    transaction()
        .unanswered(9, 0, release_call(1))
        .read_of((11, 12), 0, 0, 0)
        .read_of((13, 14), 1, 1, 8)
        .read_of((15, 16), 0, 0, 0)
        .is_wrong();
    transaction()
        .unanswered(9, 0, release_call(1))
        .read_of((11, 12), 1, 0, 0)
        .read_of((13, 14), 0, 1, 7)
        .read_of((15, 16), 1, 1, 8)
        .is_right();
}

#[test]
fn a_transaction_with_a_lost_member_ends_in_a_conflict_and_changes_nothing() {
    let over = |mut told: Told| {
        // The lease on the second key ends long before the other one.
        let second = &mut told.0[1];
        if let (Answer::Granted { expires_at_unix, .. }, Call::Acquire { ttl_seconds, .. }) =
            (&mut second.answer, &mut second.call)
        {
            (*expires_at_unix, *ttl_seconds) = (NOW_MS / 1000 + 2, 2);
        }
        told
    };
    over(transaction())
        .add((9, 10), 0, release_call(1), Answer::Conflict)
        .later(10)
        .read_of((11, 12), 0, 0, 0)
        .read_of((13, 14), 1, 0, 0)
        .is_right();
    over(transaction())
        .add((9, 10), 0, release_call(1), Answer::Released)
        .later(10)
        .is_wrong();
    transaction()
        .add((9, 10), 0, release_call(1), Answer::Conflict)
        .is_wrong();
}

/// A counter, to test the search apart from the model: increments answer the new number.
struct Counter;

impl Model for Counter {
    type State = u32;
    type Action = u32;

    fn step(&self, state: &u32, answer: &u32) -> Vec<u32> {
        if state + 1 == *answer { vec![*answer] } else { vec![] }
    }
}

fn increment(called: u64, answered: Option<u64>, answer: u32) -> Operation<u32> {
    Operation {
        called,
        answered,
        action: answer,
    }
}

/// Against all orders, tried one by one: the search must come to the same on random small histories.
#[test]
fn the_search_agrees_with_trying_every_order() {
    let seed = std::env::var("LOCKD_SEED").map_or_else(|_| fastrand::u64(..), |text| text.parse().unwrap());
    eprintln!("LOCKD_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut right = 0;
    for _ in 0..3_000 {
        let operations: Vec<Operation<u32>> = (0..rng.usize(1..6))
            .map(|_| {
                let called = rng.u64(..20) * 2;
                let answered = (rng.u8(..5) != 0).then(|| called + 1 + rng.u64(..8) * 2);
                increment(called, answered, rng.u32(1..5))
            })
            .collect();
        let verdict = check(&Counter, 0, &operations, usize::MAX);
        let expected = some_order_works(&operations, &mut Vec::new(), 0);
        assert_eq!(
            matches!(verdict, Verdict::Linearizable { .. }),
            expected,
            "{operations:?}: {verdict:?}"
        );
        right += usize::from(expected);
    }
    // Both verdicts were really needed.
    assert!((100..2_900).contains(&right), "{right}");
}

/// Tries everything: each operation that may come next, and leaving out what was not answered.
fn some_order_works(operations: &[Operation<u32>], placed: &mut Vec<usize>, state: u32) -> bool {
    let left: Vec<usize> = (0..operations.len()).filter(|index| !placed.contains(index)).collect();
    if left.iter().all(|index| operations[*index].answered.is_none()) {
        return true;
    }
    left.iter().any(|index| {
        let operation = &operations[*index];
        let is_overtaking = left.iter().any(|other| {
            operations[*other]
                .answered
                .is_some_and(|answered| answered < operation.called)
        });
        if is_overtaking || state + 1 != operation.action {
            return false;
        }
        placed.push(*index);
        let works = some_order_works(operations, placed, state + 1);
        placed.pop();
        works
    })
}

#[test]
fn a_search_that_takes_too_long_says_so() {
    let together: Vec<Operation<u32>> = (0..20).map(|n| increment(u64::from(n), Some(100), n)).collect();
    let verdict = check(&AtMostHalf, 0, &together, 1_000);
    assert!(matches!(verdict, Verdict::Undecided { visited: 1_001 }), "{verdict:?}");
    let verdict = check(&AtMostHalf, 0, &together[..10], 1_000);
    assert!(matches!(verdict, Verdict::Linearizable { .. }), "{verdict:?}");
}

/// Takes ten different numbers in any order, and no more: there are very many ways to get stuck.
struct AtMostHalf;

impl Model for AtMostHalf {
    type State = u32;
    type Action = u32;

    fn step(&self, taken: &u32, number: &u32) -> Vec<u32> {
        if taken.count_ones() < 10 {
            vec![taken | 1 << number]
        } else {
            vec![]
        }
    }
}
