//! Long random histories on several servers over one store, with a plain model as the judge: on good days, where every
//! answer is foretold, and on bad ones, where calls fail or lose their answers and nothing may be lost or done by halves.
//!
//! A run prints its seed; `LOCKD_TEST_SEED=<seed>` runs the same again.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::rules::{Holder, Intent, Nack, NewMessage, Refusal};
use super::testbed::{Bed, SIZES, holder, message, queue, request, state_name, txn};
use super::*;
use crate::clock::ManualClock;
use crate::lease::table::KeyName;
use crate::store::fault::{Fault, FaultPlan, Operation};
use crate::store::memory::MemoryStore;
use crate::store::shared_log::{Options, SharedLogStore};
use crate::store::{Store, StoreError};

const START_MS: i64 = 1_767_261_600_000;

fn seed() -> u64 {
    let seed = match std::env::var("LOCKD_TEST_SEED") {
        Ok(text) => text.parse().expect("LOCKD_TEST_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    eprintln!("LOCKD_TEST_SEED={seed}");
    seed
}

/// Opens a handle of one and the same store, as often as one likes.
type Open = Box<dyn Fn() -> Arc<dyn Store>>;

/// Each kind of store.
fn stores() -> Vec<(&'static str, tempfile::TempDir, Open)> {
    let memory = MemoryStore::new();
    let dir = tempfile::tempdir().unwrap();
    let root: PathBuf = dir.path().join("store");
    vec![
        (
            "memory",
            tempfile::tempdir().unwrap(),
            Box::new(move || Arc::new(memory.handle())),
        ),
        (
            "shared log",
            dir,
            Box::new(move || Arc::new(SharedLogStore::open_as_another_process(&root, Options::default()).unwrap())),
        ),
    ]
}

/// What the judge knows of a message.
#[derive(Debug, Clone)]
struct Expected {
    payload: Vec<u8>,
    visible_from_ms: i64,
    expires_at_ms: Option<i64>,
    attempts: i64,
    failures: i64,
    max_attempts: i64,
    /// What the consumer of the latest delivery can prove; `None` when there is no lease, or when its consumer has never
    /// heard of it.
    by: Option<Holder>,
    leased: bool,
    delivered: Option<Delivered>,
    committed: Option<String>,
    staged: Option<String>,
    is_there: bool,
}

impl Expected {
    fn is_leased(&self, now_ms: i64) -> bool {
        self.leased && now_ms < self.visible_from_ms
    }

    fn can_be_delivered(&self, now_ms: i64) -> bool {
        self.is_there && !self.is_over(now_ms) && self.visible_from_ms <= now_ms
    }

    fn is_over(&self, now_ms: i64) -> bool {
        !self.is_leased(now_ms) && self.expires_at_ms.is_some_and(|expires_at_ms| expires_at_ms <= now_ms)
    }

    fn end_lease(&mut self) {
        self.leased = false;
        self.by = None;
        self.delivered = None;
        self.staged = None;
    }
}

struct Judge {
    beds: Vec<Bed>,
    /// The store without faults.
    clean: Arc<dyn Store>,
    clock: Arc<ManualClock>,
    rng: fastrand::Rng,
    messages: BTreeMap<MessageId, Expected>,
    /// Everything that consumers could prove at some time.
    old: Vec<(MessageId, Holder)>,
    /// How often each thing was seen to succeed, so that a history that shows nothing is noticed.
    counts: BTreeMap<&'static str, usize>,
}

impl Judge {
    fn new(open: &dyn Fn() -> Arc<dyn Store>, seed: u64, fault_rate: f64) -> Self {
        let clock = ManualClock::at_wall_ms(START_MS);
        // Ids are random too, and they decide about orders.
        fastrand::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let beds = (0..3)
            .map(|_| {
                let mut plan = FaultPlan::quiet(rng.u64(..));
                for operation in Operation::ALL {
                    for fault in [Fault::FailBefore, Fault::LoseAnswer, Fault::Refuse] {
                        plan = plan.rate(operation, fault, fault_rate);
                    }
                }
                Bed::over(open(), clock.clone(), clock.clone(), plan)
            })
            .collect();
        Self {
            beds,
            clean: open(),
            clock,
            rng,
            messages: BTreeMap::new(),
            old: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    fn bed(&mut self) -> usize {
        self.rng.usize(..self.beds.len())
    }

    fn now_ms(&self) -> i64 {
        START_MS
            + i64::try_from(
                crate::clock::Clock::now(&*self.clock)
                    .since(crate::clock::Moment::ZERO)
                    .as_millis(),
            )
            .unwrap()
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn record(&self, id: MessageId) -> Option<MessageRecord> {
        let stored = self.clean.read(&keys::message_record(&queue(), id)).unwrap()?;
        Some(decode_message(&stored.value).unwrap())
    }

    fn step(&mut self) {
        match self.rng.u32(..20) {
            0..4 => self.enqueue(),
            4..9 => self.deliver(),
            9..11 => self.finish(true),
            11 => self.finish(false),
            12..14 => self.nack(),
            14 => self.extend(),
            15 => self.give_back(),
            16 => self.save(),
            17 => self.scan(),
            _ => self.clock.advance(Duration::from_millis(self.rng.u64(..4_000))),
        }
    }

    fn enqueue(&mut self) {
        let bytes = if self.rng.u32(..8) == 0 {
            SIZES[self.rng.usize(..4)]
        } else {
            self.rng.usize(..40)
        };
        let payload: Vec<u8> = (0..bytes).map(|_| self.rng.u8(..)).collect();
        let new = NewMessage {
            delay_seconds: self.rng.i64(-2..4),
            ttl_seconds: if self.rng.bool() { 0 } else { self.rng.i64(1..60) },
            max_attempts: self.rng.i64(1..4),
            ..message()
        };
        let mut expected = Expected {
            payload: payload.clone(),
            visible_from_ms: self.now_ms() + new.delay_seconds.max(0) * 1000,
            expires_at_ms: (0 < new.ttl_seconds).then(|| self.now_ms() + new.ttl_seconds * 1000),
            attempts: 0,
            failures: 0,
            max_attempts: new.max_attempts,
            by: None,
            leased: false,
            delivered: None,
            committed: None,
            staged: None,
            is_there: true,
        };
        let bed = self.bed();
        let known = self.names();
        match self.beds[bed].enqueue(&payload, new) {
            Ok(enqueued) => {
                assert_eq!(enqueued.record.visible_from_ms, expected.visible_from_ms);
                self.count("enqueue");
                self.messages.insert(enqueued.id, expected);
            }
            Err(cause) => {
                // The producer does not know the id of what may have arrived all the same.
                let arrived: Vec<_> = self.names().difference(&known).copied().collect();
                assert!(arrived.is_empty() || is_unknown(&cause), "{cause}");
                for id in arrived {
                    expected.payload = payload.clone();
                    self.messages.insert(id, expected.clone());
                }
            }
        }
    }

    fn names(&self) -> HashSet<MessageId> {
        let rows = self
            .clean
            .list(&keys::message_prefix(&queue()), None, usize::MAX)
            .unwrap();
        rows.iter().map(|row| keys::message_of(&row.key).unwrap().1).collect()
    }

    fn any(&mut self) -> Option<MessageId> {
        // Mostly one that is there, sometimes one that is not any more.
        let there: Vec<MessageId> = (self.messages.iter())
            .filter(|(_, expected)| expected.is_there)
            .map(|(id, _)| *id)
            .collect();
        if there.is_empty() || self.rng.u32(..10) == 0 {
            let all: Vec<MessageId> = self.messages.keys().copied().collect();
            return self.rng.choice(all);
        }
        self.rng.choice(there)
    }

    fn deliver(&mut self) {
        let Some(id) = self.any() else { return };
        let (bed, now_ms) = (self.bed(), self.now_ms());
        let with_state = self.rng.u32(..3) == 0;
        let seconds = self.rng.i64(1..20);
        let wanted = DeliverRequest {
            with_state,
            ..request(seconds)
        };
        let before = self.record(id);
        let outcome = self.beds[bed].queues.deliver(&queue(), id, &wanted);
        let after = self.record(id);
        let expected = self.messages.get_mut(&id).unwrap();
        match outcome {
            Ok(delivered) => {
                assert!(expected.can_be_delivered(now_ms), "{expected:?}");
                expected.attempts += 1;
                expected.end_lease();
                expected.leased = true;
                expected.visible_from_ms = now_ms + seconds * 1000;
                expected.by = Some(holder(&delivered));
                let (payload, committed) = (expected.payload.clone(), expected.committed.clone());
                self.old.push((id, holder(&delivered)));
                if with_state {
                    if let Ok(seen) = self.beds[bed].load(&delivered) {
                        assert_eq!(seen, committed);
                    }
                    self.count("deliver with state");
                }
                if let Ok(mut reader) = self.beds[bed].queues.payload(&delivered.record).open() {
                    let mut bytes = Vec::new();
                    if std::io::Read::read_to_end(&mut reader, &mut bytes).is_ok() {
                        assert!(bytes == payload);
                    }
                }
                self.messages.get_mut(&id).unwrap().delivered = Some(delivered);
                self.count("deliver");
            }
            Err(NotDelivered::Gone) => {
                assert!(!expected.is_there || expected.is_over(now_ms), "{expected:?}");
                expected.is_there = false;
            }
            Err(NotDelivered::Hidden { until_ms }) => {
                assert!(expected.is_there && until_ms == expected.visible_from_ms && now_ms < until_ms);
            }
            Err(NotDelivered::StateHeld { .. }) => panic!("nobody leases a state by hand: {expected:?}"),
            Err(NotDelivered::Failed(cause)) => {
                if before != after {
                    assert!(is_unknown(&cause), "{cause}");
                    match after {
                        None => expected.is_there = false,
                        Some(record) => {
                            // Leased to a consumer that will never know.
                            expected.attempts += 1;
                            expected.end_lease();
                            expected.leased = true;
                            expected.visible_from_ms = record.visible_from_ms;
                        }
                    }
                }
            }
        }
        self.compare(id);
    }

    /// A consumer that holds a message, or one that held it at some time.
    fn consumer(&mut self, current: bool) -> Option<(MessageId, Holder)> {
        if !current {
            let old = &self.old;
            return (!old.is_empty()).then(|| old[self.rng.usize(..old.len())].clone());
        }
        let now_ms = self.now_ms();
        let holding: Vec<_> = (self.messages.iter())
            .filter(|(_, expected)| expected.is_there && expected.is_leased(now_ms))
            .filter_map(|(id, expected)| Some((*id, expected.by.clone()?)))
            .collect();
        self.rng.choice(holding)
    }

    /// What a call of a consumer must answer: whether it holds the message, and whether it knows the latest revision.
    fn foresee(&self, id: MessageId, by: &Holder) -> (bool, bool) {
        let expected = &self.messages[&id];
        let current = expected.by.as_ref();
        let holds = expected.is_there
            && expected.is_leased(self.now_ms())
            && current.is_some_and(|current| current.lease_id == by.lease_id);
        (
            holds,
            holds && current.is_some_and(|current| current.meta_etag == by.meta_etag),
        )
    }

    fn finish(&mut self, current: bool) {
        let Some((id, by)) = self.consumer(current) else { return };
        let (holds, _) = self.foresee(id, &by);
        let bed = self.bed();
        let before = self.record(id);
        let outcome = self.beds[bed].queues.ack(&queue(), id, &by);
        let done = self.judge(id, before, holds, outcome.map(drop));
        if done {
            self.messages.get_mut(&id).unwrap().is_there = false;
            self.count("ack");
        }
        self.compare(id);
    }

    fn nack(&mut self) {
        let is_current = self.rng.u32(..4) != 0;
        let Some((id, by)) = self.consumer(is_current) else {
            return;
        };
        let (_, may) = self.foresee(id, &by);
        let bed = self.bed();
        let nack = Nack {
            intent: if self.rng.bool() {
                Intent::Failure
            } else {
                Intent::Defer
            },
            delay_seconds: self.rng.i64(-1..3),
            last_error: None,
        };
        let (before, now_ms) = (self.record(id), self.now_ms());
        let outcome = self.beds[bed].queues.nack(&queue(), id, &by, &nack);
        if self.judge(id, before, may, outcome.map(drop)) {
            let expected = self.messages.get_mut(&id).unwrap();
            expected.failures += i64::from(nack.intent == Intent::Failure);
            expected.visible_from_ms = now_ms + nack.delay_seconds.max(0) * 1000;
            expected.committed = expected.staged.take().or(expected.committed.take());
            expected.end_lease();
            let over = expected
                .expires_at_ms
                .is_some_and(|expires_at_ms| expires_at_ms <= now_ms);
            if expected.max_attempts <= expected.failures && !over {
                expected.is_there = false;
                let dead = self.clean.read(&keys::dead_message_record(&queue(), id)).unwrap();
                let dead = decode_message(&dead.expect("a dead message is put aside").value).unwrap();
                assert_eq!(dead.failure_attempts, self.messages[&id].failures);
                self.count("death");
            }
            self.count("nack");
        }
        self.compare(id);
    }

    fn extend(&mut self) {
        let is_current = self.rng.u32(..4) != 0;
        let Some((id, by)) = self.consumer(is_current) else {
            return;
        };
        let (_, may) = self.foresee(id, &by);
        let bed = self.bed();
        let seconds = self.rng.i64(1..20);
        let (before, now_ms) = (self.record(id), self.now_ms());
        let outcome = self.beds[bed].queues.extend(&queue(), id, &by, seconds);
        if self.judge(id, before, may, outcome.map(drop)) {
            let meta_etag = self.record(id).map(|record| record.meta_etag());
            let expected = self.messages.get_mut(&id).unwrap();
            expected.visible_from_ms = now_ms + seconds * 1000;
            if let Some(by) = &mut expected.by {
                by.meta_etag = meta_etag;
                self.old.push((id, by.clone()));
            }
            self.count("extend");
        }
        self.compare(id);
    }

    fn give_back(&mut self) {
        let now_ms = self.now_ms();
        let leased: Vec<MessageId> = (self.messages.iter())
            .filter(|(_, expected)| expected.delivered.is_some())
            .map(|(id, _)| *id)
            .collect();
        let Some(id) = self.rng.choice(leased) else { return };
        let bed = self.bed();
        let expected = &self.messages[&id];
        let may = expected.is_there && expected.is_leased(now_ms);
        let delivered = expected.delivered.clone().unwrap();
        let before = self.record(id);
        let outcome = self.beds[bed].queues.give_back(&delivered);
        let after = self.record(id);
        if before == after {
            assert!(!may || outcome.is_err());
        } else {
            assert!(may && outcome.as_ref().err().is_none_or(is_unknown));
            let expected = self.messages.get_mut(&id).unwrap();
            expected.visible_from_ms = now_ms;
            expected.end_lease();
            self.count("give back");
        }
        self.compare(id);
    }

    /// A consumer with state saves it.
    fn save(&mut self) {
        let now_ms = self.now_ms();
        let leased: Vec<Delivered> = (self.messages.values())
            .filter(|expected| expected.is_there && expected.is_leased(now_ms))
            .filter_map(|expected| expected.delivered.clone())
            .filter(|delivered| delivered.state.is_some())
            .collect();
        let Some(delivered) = self.rng.choice(leased) else {
            return;
        };
        let bed = self.bed();
        let state = self.rng.u32(..1000).to_string();
        let name = state_name(delivered.id);
        let before = self.beds[bed].table.read(&name).ok().flatten();
        let outcome = self.beds[bed].save(&delivered, &state);
        if outcome.is_err() {
            // Whether it is staged is read from the record; if even that fails, the message is left to lapse.
            let stored = self
                .clean
                .read(&name.record_key())
                .unwrap()
                .expect("the state has a record");
            let after = crate::record::decode_key(&stored.value).unwrap();
            if before.as_ref() == Some(&after) {
                return;
            }
            let staged = after.staged.map(|staged| staged.state);
            let crate::record::StagedState::Put(value) = staged.unwrap_or_default() else {
                return;
            };
            let crate::record::Body::Inline(bytes) = value.body else {
                return;
            };
            let expected = self.messages.get_mut(&delivered.id).unwrap();
            expected.staged = Some(String::from_utf8(bytes.to_vec()).unwrap());
            return;
        }
        let expected = self.messages.get_mut(&delivered.id).unwrap();
        expected.staged = Some(state);
        self.count("save");
    }

    fn scan(&mut self) {
        let bed = self.bed();
        let now_ms = self.now_ms();
        let limit = 1 + self.rng.usize(..7);
        let mut seen = BTreeMap::new();
        let (mut after, mut faults) = (None, false);
        loop {
            match self.beds[bed].queues.scan(&queue(), after, limit) {
                Ok(page) => {
                    faults |= !page.faults.is_empty();
                    seen.extend(page.seen.iter().map(|seen| (seen.id, seen.visible_from_ms)));
                    after = page.next;
                }
                Err(_) => {
                    faults = true;
                    after = None;
                }
            }
            if after.is_none() {
                break;
            }
        }
        if faults {
            // What is over may or may not have been cleared away; everything else is still there.
            let names = self.names();
            for (id, expected) in &mut self.messages {
                if expected.is_over(now_ms) {
                    expected.is_there = names.contains(id);
                }
                assert_eq!(expected.is_there, names.contains(id), "{id} {expected:?}");
            }
            return;
        }
        for (id, expected) in &mut self.messages {
            expected.is_there &= !expected.is_over(now_ms);
            let found = seen.remove(id);
            assert_eq!(found.is_some(), expected.is_there, "{id} {expected:?}");
            assert!(found.is_none_or(|from_ms| from_ms == expected.visible_from_ms));
        }
        assert!(seen.is_empty());
        self.count("scan");
    }

    /// Judges a call of a consumer; true if it was done.
    fn judge(&mut self, id: MessageId, before: Option<MessageRecord>, may: bool, outcome: Result<(), Error>) -> bool {
        let after = self.record(id);
        match outcome {
            Ok(()) => {
                assert!(may, "{:?}", self.messages[&id]);
                true
            }
            Err(Error::MessageRefused(refusal)) => {
                assert!(!may, "{refusal:?} {:?}", self.messages[&id]);
                assert_eq!(before, after);
                self.count(match refusal {
                    Refusal::Gone => "gone",
                    Refusal::LeaseMismatch => "mismatch",
                    Refusal::LeaseExpired => "expired",
                    Refusal::StaleEtag => "stale",
                    _ => "other refusal",
                });
                false
            }
            Err(cause) if before == after => {
                assert!(
                    !matches!(cause, Error::Contended | Error::CorruptRecord { .. }),
                    "{cause}"
                );
                false
            }
            Err(cause) => {
                assert!(may && is_unknown(&cause), "{cause}");
                true
            }
        }
    }

    /// The record of a message agrees with what the judge knows.
    fn compare(&mut self, id: MessageId) {
        let expected = &self.messages[&id];
        let Some(record) = self.record(id) else {
            assert!(!expected.is_there, "{id} is lost: {expected:?}");
            return;
        };
        // An expired message stays until somebody looks.
        assert!(expected.is_there, "{id} is still there: {expected:?} {record:?}");
        let found = (
            record.visible_from_ms,
            record.expires_at_ms,
            record.attempts,
            record.fencing_token,
            record.failure_attempts,
            record.lease.is_some(),
        );
        let wanted = (
            expected.visible_from_ms,
            expected.expires_at_ms,
            expected.attempts,
            expected.attempts,
            expected.failures,
            expected.leased,
        );
        assert_eq!(found, wanted, "{id}");
    }

    /// Everything that is still there can be delivered and acknowledged, on a good day, and then nothing is left.
    fn drain(&mut self, open: &dyn Fn() -> Arc<dyn Store>) {
        let bed = Bed::over(open(), self.clock.clone(), self.clock.clone(), FaultPlan::quiet(0));
        self.clock.advance(Duration::from_secs(30));
        let now_ms = self.now_ms();
        let (mut drained, mut after) = (HashSet::new(), None);
        loop {
            let page = bed.queues.scan(&queue(), after, 10).unwrap();
            for seen in page.seen {
                let (delivered, by) = bed.take(seen.id);
                assert!(bed.bytes(&delivered) == self.messages[&seen.id].payload);
                bed.queues.ack(&queue(), seen.id, &by).unwrap();
                drained.insert(seen.id);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        for (id, expected) in &self.messages {
            let waits = expected.is_there && !expected.is_over(now_ms);
            assert_eq!(drained.contains(id), waits, "{id} {expected:?}");
        }
        let left = bed.record_names();
        let dead = left.iter().filter(|name| name.starts_with("d/")).count();
        // The states of dead messages stay as they are.
        let states = left.iter().filter(|name| name.starts_with("k/")).count();
        assert_eq!(left.len(), dead + states, "{left:?}");
        assert!(states <= dead, "{left:?}");
    }
}

fn is_unknown(cause: &Error) -> bool {
    matches!(cause, Error::Store(StoreError::Unknown { .. }))
}

#[test]
fn a_random_history_of_messages_agrees_with_a_plain_model() {
    for (kind, _dir, open) in stores() {
        let mut judge = Judge::new(&*open, seed(), 0.0);
        for _ in 0..if kind == "memory" { 4_000 } else { 600 } {
            judge.step();
        }
        judge.drain(&*open);
        if kind != "memory" {
            // Too short to show everything.
            continue;
        }
        let things = [
            "enqueue",
            "deliver",
            "deliver with state",
            "ack",
            "nack",
            "extend",
            "give back",
            "save",
            "scan",
            "death",
            "gone",
            "mismatch",
        ];
        for thing in things {
            assert!(
                judge.counts.contains_key(thing),
                "{kind}: {thing} was never seen: {:?}",
                judge.counts
            );
        }
    }
}

#[test]
fn no_message_is_lost_or_done_by_halves_when_calls_fail() {
    for (kind, _dir, open) in stores() {
        let mut judge = Judge::new(&*open, seed(), 0.04);
        for _ in 0..if kind == "memory" { 4_000 } else { 600 } {
            judge.step();
        }
        assert!(judge.beds.iter().all(|bed| 20 < bed.store.injected()));
        judge.drain(&*open);
    }
}

/// Messages and keys in transactions, decided from either side, on servers that fail: what belongs together happens
/// together. Each round has its own transaction with some messages and some keys.
#[test]
fn a_transaction_of_messages_and_keys_is_done_as_a_whole_or_not_at_all_when_calls_fail() {
    for (kind, _dir, open) in stores() {
        let mut judge = Judge::new(&*open, seed(), 0.05);
        let rounds = if kind == "memory" { 300 } else { 40 };
        let mut outcomes = HashSet::new();
        for round in 0..rounds {
            outcomes.insert(judge.transaction(round));
        }
        assert_eq!(
            outcomes.len(),
            2,
            "{kind}: some are committed and some are not: {outcomes:?}"
        );
    }
}

impl Judge {
    fn transaction(&mut self, round: usize) -> bool {
        let txn_id = txn('a');
        let good = Bed::over(
            Arc::clone(&self.clean),
            self.clock.clone(),
            self.clock.clone(),
            FaultPlan::quiet(0),
        );
        let mut held = Vec::new();
        for _ in 0..1 + self.rng.usize(..3) {
            let id = good.message();
            let wanted = DeliverRequest {
                with_state: self.rng.bool(),
                ..testbed::in_txn(&txn_id)
            };
            let (delivered, by) = good.take_as(id, &wanted);
            if delivered.state.is_some() && self.rng.bool() {
                good.save(&delivered, "1").unwrap();
            }
            held.push((id, by));
        }
        let staged: Vec<_> = (0..self.rng.usize(..3))
            .map(|n| good.stage(&format!("round-{round}-{n}"), Some(&txn_id), "1"))
            .collect();
        if self.rng.u32(..6) == 0 {
            self.clock.advance(Duration::from_secs(30));
        }
        let bed = self.bed();
        let bed = &self.beds[bed];
        let refused = match self.rng.choice(0..held.len() + staged.len()).unwrap() {
            at if at < held.len() => {
                let (id, by) = &held[at];
                match self.rng.u32(..3) {
                    0 => bed.queues.nack(&queue(), *id, by, &testbed::failure()).err(),
                    _ => bed.queues.ack(&queue(), *id, by).err(),
                }
            }
            at => {
                let (name, by) = &staged[at - held.len()];
                bed.leases.release(name, by, self.rng.u32(..3) == 0).err()
            }
        };
        let version = |name: &KeyName| good.table.read(name).unwrap().unwrap().version;
        let gone: Vec<bool> = (held.iter().map(|(id, _)| self.record(*id).is_none()))
            .chain(staged.iter().map(|(name, _)| version(name) == 1))
            .collect();
        assert!(gone.iter().all(|one| *one == gone[0]), "{gone:?} {refused:?}");
        let committed = gone[0];
        // Whoever hears of a refusal or a certain failure can rely on it.
        assert!(!committed || refused.as_ref().is_none_or(is_unknown), "{refused:?}");
        // Whatever is left is delivered again in the end, and leaves nothing behind.
        self.clock.advance(Duration::from_secs(31));
        for (id, _) in &held {
            if !committed {
                let (_, by) = good.take(*id);
                good.queues.ack(&queue(), *id, &by).unwrap();
            }
        }
        let left = good.record_names();
        assert!(
            left.iter()
                .all(|name| name.starts_with("k/default/round-") || name.starts_with("t/")),
            "{left:?}"
        );
        // The transactions of keys that nobody has touched since go with their keys; here they are out of the way.
        for (name, _) in &staged {
            let wanted = crate::lease::Wanted {
                name: name.clone(),
                owner: "next".to_owned(),
                ttl_seconds: 1,
                create_only: false,
                txn_id: None,
            };
            let granted = good.leases.acquire(&wanted).unwrap();
            good.leases.give_back(name, &granted).unwrap();
        }
        let left = good.record_names();
        assert!(left.iter().all(|name| name.starts_with("k/default/round-")), "{left:?}");
        committed
    }
}
