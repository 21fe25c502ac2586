//! A wrapper that tries again what certainly was not done.
//!
//! Only [`StoreError::NotDone`] is tried again, a bounded number of times, with pauses that grow and are jittered so that
//! many callers do not come back together. Every other answer is passed on at once: a failed precondition is an answer
//! and no fault, [`StoreError::Unknown`] is for the caller to resolve by reading, and corruption does not pass by itself.
//!
//! Left out on purpose: the inside of a streamed body. A [`BodyWriter`] and a body's reader are obtained with retries,
//! but a stream that breaks half-way cannot be repeated from here; whoever holds its source begins again.

use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::logging::Logger;
use crate::metrics::{Counter, Report};

use super::{
    Batch, BodyId, BodyWriter, Capabilities, ChangeListener, Listed, RecordKey, Store, StoreError, Stored, Written,
};

/// How a wrapper waits. Tests replace it; a server may hand in one that returns early when it shuts down.
pub type Sleeper = Arc<dyn Fn(Duration) + Send + Sync>;

/// Waits in the plain way: the calling thread sleeps.
pub fn thread_sleeper() -> Sleeper {
    Arc::new(thread::sleep)
}

/// How often to try and how long to pause in between.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Tries in all, the first one included. 0 counts as 1: there is always a first try.
    pub attempts: u32,
    /// The pause after the first failure, before jitter.
    pub base_delay: Duration,
    /// No pause is longer.
    pub max_delay: Duration,
    /// Each pause is this many times the one before. Less than 1, or no number, counts as 1.
    pub multiplier: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            base_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
            multiplier: 2.0,
        }
    }
}

impl RetryPolicy {
    /// The pause after this many failures (1 for the first), before jitter.
    pub fn delay(&self, failures: u32) -> Duration {
        // `max` also turns NaN into 1.
        let growth = self.multiplier.max(1.0).powf(f64::from(failures.saturating_sub(1)));
        Duration::try_from_secs_f64(self.base_delay.as_secs_f64() * growth)
            .unwrap_or(self.max_delay)
            .min(self.max_delay)
    }

    /// That pause with jitter: anything from half of it to all of it.
    pub(super) fn jittered_delay(&self, failures: u32) -> Duration {
        self.delay(failures).mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}

/// A store that tries again. See the [module documentation](self).
pub struct RetryStore {
    inner: Arc<dyn Store>,
    policy: RetryPolicy,
    logger: Logger,
    sleep: Sleeper,
    retries: Retries,
}

/// How often each operation was tried again.
#[derive(Default)]
struct Retries {
    read: Counter,
    write: Counter,
    list: Counter,
    body_writer: Counter,
    body_reader: Counter,
    leftovers: Counter,
}

impl RetryStore {
    /// Wraps `inner`. Each failed try is logged at warn as `storage transient error`.
    pub fn new(inner: Arc<dyn Store>, policy: RetryPolicy, logger: Logger, sleep: Sleeper) -> Self {
        Self {
            inner,
            policy,
            logger,
            sleep,
            retries: Retries::default(),
        }
    }

    fn retry<T>(
        &self,
        operation: &str,
        retries: &Counter,
        attempt: impl Fn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let max_attempts = self.policy.attempts.max(1);
        let mut failures = 0;
        loop {
            let error = match attempt() {
                Err(error @ StoreError::NotDone { .. }) => error,
                answer => return answer,
            };
            failures += 1;
            log::warn!(
                logger: self.logger, target: "storage.backend.core",
                operation = operation, attempt = failures, max_attempts = max_attempts, error:% = error;
                "storage transient error"
            );
            if failures == max_attempts {
                return Err(error);
            }
            (self.sleep)(self.policy.jittered_delay(failures));
            retries.add(1);
        }
    }
}

impl Store for RetryStore {
    fn read(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        self.retry("read", &self.retries.read, || self.inner.read(key))
    }

    fn write(&self, batch: Batch) -> Result<Written, StoreError> {
        // A copy for each try is cheap: names and bytes are shared.
        self.retry("write", &self.retries.write, || self.inner.write(batch.clone()))
    }

    fn list(&self, prefix: &str, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.retry("list", &self.retries.list, || self.inner.list(prefix, after, limit))
    }

    fn body_writer(&self) -> Result<Box<dyn BodyWriter>, StoreError> {
        self.retry("body_writer", &self.retries.body_writer, || self.inner.body_writer())
    }

    fn body_reader(&self, body: &BodyId) -> Result<Box<dyn Read + Send>, StoreError> {
        self.retry("body_reader", &self.retries.body_reader, || {
            self.inner.body_reader(body)
        })
    }

    fn leftovers(&self, older_than: Duration) -> Result<Vec<BodyId>, StoreError> {
        self.retry("leftovers", &self.retries.leftovers, || {
            self.inner.leftovers(older_than)
        })
    }

    fn watch(&self, listener: ChangeListener) -> bool {
        self.inner.watch(listener)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn report(&self, report: &mut Report) {
        let Retries {
            read,
            write,
            list,
            body_writer,
            body_reader,
            leftovers,
        } = &self.retries;
        for (operation, count) in [
            ("read", read),
            ("write", write),
            ("list", list),
            ("body_writer", body_writer),
            ("body_reader", body_reader),
            ("leftovers", leftovers),
        ] {
            let help = "Requests to the store that were tried again.";
            report.count("lockd_store_retries", help, &[("operation", operation)], count.get());
        }
        self.inner.report(report);
    }

    fn healthy(&self) -> bool {
        self.inner.healthy()
    }
}

#[cfg(test)]
mod tests {
    use log::kv::Key;
    use parking_lot::Mutex;

    use super::super::fault::{Fault, FaultPlan, FaultStore, Operation};
    use super::super::memory::MemoryStore;
    use super::super::{Change, Precondition, RecordWrite};
    use super::*;
    use crate::logging::raise_max_level;
    use crate::metrics::Value;

    /// Keeps what is logged, one line each.
    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl log::Log for Lines {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            let value = |key: &str| record.key_values().get(Key::from_str(key)).unwrap();
            let keys = ["operation", "attempt", "max_attempts", "error"];
            let values = keys.map(|key| format!("{key}={}", value(key)));
            let (level, origin) = (record.level(), record.target());
            let line = format!("{level} {origin}: {} {}", record.args(), values.join(" "));
            self.0.lock().push(line);
        }

        fn flush(&self) {}
    }

    struct Scene {
        faulty: Arc<FaultStore>,
        store: RetryStore,
        lines: Arc<Lines>,
        pauses: Arc<Mutex<Vec<Duration>>>,
    }

    fn scene(policy: RetryPolicy) -> Scene {
        raise_max_level(log::LevelFilter::Warn);
        let pauses = Arc::new(Mutex::new(Vec::new()));
        let noted = pauses.clone();
        let sleep: Sleeper = Arc::new(move |pause| noted.lock().push(pause));
        let lines = Arc::new(Lines::default());
        let faulty = Arc::new(FaultStore::new(
            Arc::new(MemoryStore::new()),
            FaultPlan::quiet(1),
            sleep.clone(),
        ));
        let store = RetryStore::new(faulty.clone(), policy, lines.clone(), sleep);
        Scene {
            faulty,
            store,
            lines,
            pauses,
        }
    }

    fn create() -> Batch {
        Batch {
            records: vec![RecordWrite {
                key: RecordKey::new("a"),
                precondition: Precondition::Absent,
                change: Change::Put(Arc::from(&b"value"[..])),
            }],
            ..Batch::default()
        }
    }

    #[test]
    fn what_was_not_done_is_tried_again_and_each_failure_logged() {
        let scene = scene(RetryPolicy::default());
        scene.faulty.inject(Operation::Write, 1, Fault::FailBefore);
        scene.faulty.inject(Operation::Write, 2, Fault::FailBefore);
        assert!(matches!(scene.store.write(create()), Ok(Written::Done(_))));
        assert_eq!(scene.faulty.calls(Operation::Write), 3);
        let mut report = Report::new();
        scene.store.report(&mut report);
        let told = &report.families()[0].samples;
        assert!(
            told.contains(&(vec![("operation", "write".to_owned())], Value::Count(2))),
            "{told:?}"
        );
        assert!(
            told.contains(&(vec![("operation", "read".to_owned())], Value::Count(0))),
            "{told:?}"
        );
        assert_eq!(
            *scene.lines.0.lock(),
            [1, 2].map(|attempt| format!(
                "WARN storage.backend.core: storage transient error operation=write attempt={attempt} max_attempts=6 \
                 error=not done: injected before write {attempt}"
            ))
        );
        let pauses = scene.pauses.lock();
        assert_eq!(pauses.len(), 2);
        for (pause, full_ms) in pauses.iter().zip([100, 200]) {
            let full = Duration::from_millis(full_ms);
            assert!(full / 2 <= *pause && *pause <= full, "{pause:?} of {full:?}");
        }
    }

    #[test]
    fn the_last_failure_is_the_answer_when_attempts_are_used_up() {
        for attempts in [0, 1, 3] {
            let scene = scene(RetryPolicy {
                attempts,
                ..RetryPolicy::default()
            });
            for call in 1..=10 {
                scene.faulty.inject(Operation::Read, call, Fault::FailBefore);
            }
            let answer = scene.store.read(&RecordKey::new("a"));
            assert!(matches!(answer, Err(StoreError::NotDone { .. })), "{answer:?}");
            let tries = attempts.max(1);
            assert_eq!(scene.faulty.calls(Operation::Read), u64::from(tries));
            assert_eq!(scene.lines.0.lock().len(), tries as usize);
            assert_eq!(
                scene.pauses.lock().len(),
                tries as usize - 1,
                "no pause after the last try"
            );
        }
    }

    #[test]
    fn no_other_answer_is_tried_again() {
        let lost = scene(RetryPolicy::default());
        lost.faulty.inject(Operation::Write, 1, Fault::LoseAnswer);
        let answer = lost.store.write(create());
        assert!(matches!(answer, Err(StoreError::Unknown { .. })), "{answer:?}");
        assert_eq!(lost.faulty.calls(Operation::Write), 1);

        // It was done all the same, so the precondition now fails, and that is an answer.
        assert_eq!(lost.store.write(create()), Ok(Written::Refused { index: 0 }));
        assert_eq!(lost.faulty.calls(Operation::Write), 2);

        let refused = scene(RetryPolicy::default());
        refused.faulty.inject(Operation::List, 1, Fault::Refuse);
        let answer = refused.store.list("", None, 1);
        assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
        assert_eq!(refused.faulty.calls(Operation::List), 1);

        let body = BodyId::new("none");
        let answer = refused.store.body_reader(&body).err();
        assert_eq!(answer, Some(StoreError::BodyMissing { body }));
        assert_eq!(refused.faulty.calls(Operation::BodyReader), 1);
        assert!(refused.lines.0.lock().is_empty() && refused.pauses.lock().is_empty());
    }

    #[test]
    fn pauses_grow_up_to_their_limit() {
        let policy = RetryPolicy::default();
        let delays_ms = [1, 2, 3, 4, 5, 6, 7, 8, u32::MAX].map(|failures| policy.delay(failures).as_millis());
        assert_eq!(delays_ms, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        for multiplier in [f64::NAN, -1.0, 0.0] {
            let level = RetryPolicy { multiplier, ..policy };
            assert_eq!(level.delay(9), policy.base_delay);
        }
    }
}
