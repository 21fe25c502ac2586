//! Transactions where a batch changes one record: several servers at once, whose calls to the store meet in an order that a
//! seed decides, each call alone. `LOCKD_TEST_OPERATIONS` says how many orders are tried, `LOCKD_TEST_SEED` tries one again.

use std::collections::BTreeSet;
use std::env;
use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::lease::rules::Credentials;
use crate::lease::testbed::{Testbed, name, txn};
use crate::metrics::Report;
use crate::store::{
    Batch, BodyId, BodyWriter, Capabilities, ChangeListener, Listed, RecordKey, Store, StoreError, Stored, Written,
};
use crate::txn::tests::assert_nothing_left;

/// Lets one worker at a time go on, up to its next call to the store.
struct Schedule {
    places: Mutex<Places>,
    changed: Condvar,
}

struct Places {
    rng: fastrand::Rng,
    /// Workers that stand before a call.
    waiting: BTreeSet<usize>,
    /// How many have not ended and do not wait.
    running: usize,
    /// Who may make its call.
    turn: Option<usize>,
    /// The worker with the highest rank goes first. Now and then one comes to be the last: that finds what needs somebody to
    /// be slow at one place for long, which choosing anew at each call hardly ever does.
    ranks: Vec<i64>,
    last_rank: i64,
    /// In which order they did.
    course: String,
}

impl Places {
    /// Once nobody runs, somebody may.
    fn stop_running(&mut self) {
        self.running -= 1;
        if self.running == 0 && !self.waiting.is_empty() {
            if self.rng.u8(..6) == 0 {
                let slow = self.rng.usize(..self.ranks.len());
                self.last_rank -= 1;
                self.ranks[slow] = self.last_rank;
            }
            self.turn = self.waiting.iter().copied().max_by_key(|worker| self.ranks[*worker]);
        }
    }
}

impl Schedule {
    fn new(seed: u64, workers: usize) -> Arc<Self> {
        let places = Places {
            rng: fastrand::Rng::with_seed(seed),
            waiting: BTreeSet::new(),
            running: workers,
            turn: None,
            ranks: vec![0; workers],
            last_rank: 0,
            course: String::new(),
        };
        Arc::new(Self {
            places: Mutex::new(places),
            changed: Condvar::new(),
        })
    }

    fn wait(&self, worker: usize, call: char) {
        let mut places = self.places.lock();
        places.waiting.insert(worker);
        places.stop_running();
        self.changed.notify_all();
        self.changed
            .wait_while(&mut places, |places| places.turn != Some(worker));
        places.turn = None;
        places.waiting.remove(&worker);
        places.running += 1;
        places.course += &format!(" {worker}{call}");
    }

    fn end(&self) {
        self.places.lock().stop_running();
        self.changed.notify_all();
    }
}

/// The store as one worker sees it.
struct Scheduled {
    inner: Arc<dyn Store>,
    schedule: Arc<Schedule>,
    worker: usize,
}

impl Store for Scheduled {
    fn read(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        self.schedule.wait(self.worker, 'r');
        self.inner.read(key)
    }

    fn write(&self, batch: Batch) -> Result<Written, StoreError> {
        self.schedule.wait(self.worker, 'w');
        self.inner.write(batch)
    }

    fn list(&self, prefix: &str, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.schedule.wait(self.worker, 'l');
        self.inner.list(prefix, after, limit)
    }

    fn body_writer(&self) -> Result<Box<dyn BodyWriter>, StoreError> {
        self.inner.body_writer()
    }

    fn body_reader(&self, body: &BodyId) -> Result<Box<dyn Read + Send>, StoreError> {
        self.inner.body_reader(body)
    }

    fn leftovers(&self, older_than: Duration) -> Result<Vec<BodyId>, StoreError> {
        self.inner.leftovers(older_than)
    }

    fn watch(&self, listener: ChangeListener) -> bool {
        self.inner.watch(listener)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn report(&self, report: &mut Report) {
        self.inner.report(report);
    }

    fn healthy(&self) -> bool {
        self.inner.healthy()
    }
}

/// What one worker does, at a server of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Course {
    /// Stages something on the third key for the first time, and then ends its lease.
    StageAndRelease,
    /// Stages something on it as well, while the other one is at it.
    Stage,
    /// Ends the lease of the first or second key, which has staged something.
    Release(usize, bool),
    /// Reads the first and then the second key, and does so twice.
    Look,
    /// Prolongs the lease of the third key.
    Keepalive,
}

impl Course {
    /// `is_alone`: nobody else stages anything on the third key, for a decision to end its lease with. Returns whether the
    /// others were decided about before, so that what is staged on it now must be committed.
    fn run(self, server: &Testbed, held: &[Credentials; 3], is_alone: bool) -> bool {
        match self {
            Self::StageAndRelease => {
                let is_late = server.record("a").lease.is_none() && server.record("c").lease.is_some();
                let staged = server.update("c", &held[2], "3");
                assert!(staged.is_ok() || !is_alone, "its lease is not over: {staged:?}");
                server.leases.release(&name("c"), &held[2], false).unwrap();
                return is_late;
            }
            Self::Stage => drop(server.update("c", &held[2], "4")),
            Self::Release(key, rolls_back) => {
                let released = server.leases.release(&name(["a", "b"][key]), &held[key], rolls_back);
                released.unwrap();
            }
            Self::Look => {
                for _ in 0..2 {
                    let [first, second] = ["a", "b"].map(|key| server.record(key));
                    assert!(first.version <= second.version, "half of a decision");
                    let is_decided = [&first, &second].map(|record| record.lease.is_none());
                    assert!(is_decided[0] <= is_decided[1], "half of a decision");
                }
            }
            Self::Keepalive => drop(server.leases.keepalive(&name("c"), &held[2], 30)),
        }
        false
    }
}

/// Two keys of a transaction are staged, and somebody decides, or several do, while the third one is staged.
fn run(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let others = [
        Course::Stage,
        Course::Release(0, false),
        Course::Release(0, true),
        Course::Release(1, false),
        Course::Release(1, true),
        Course::Look,
        Course::Look,
        Course::Keepalive,
    ];
    let mut courses = vec![Course::StageAndRelease, Course::Release(0, rng.u8(..3) == 0)];
    courses.extend((0..rng.usize(..4)).map(|_| others[rng.usize(..others.len())]));

    let is_alone = !courses.contains(&Course::Stage);
    let bed = Testbed::in_steps();
    let held = ["a", "b", "c"].map(|key| bed.hold_in(key, &txn('t')));
    bed.update("a", &held[0], "1").unwrap();
    bed.update("b", &held[1], "2").unwrap();
    let schedule = Schedule::new(seed, courses.len());
    let ends: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (courses.iter().enumerate())
            .map(|(worker, course)| {
                let (bed, held, schedule) = (&bed, &held, Arc::clone(&schedule));
                scope.spawn(move || {
                    let server = bed.another_behind(|inner| {
                        Arc::new(Scheduled {
                            inner,
                            schedule: Arc::clone(&schedule),
                            worker,
                        })
                    });
                    let end =
                        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| course.run(&server, held, is_alone)));
                    schedule.end();
                    end
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });

    let context = format!("seed {seed}, {courses:?}:{}", schedule.places.lock().course);
    for (worker, end) in ends.iter().enumerate() {
        assert!(end.is_ok(), "worker {worker}, {context}");
    }
    let [a, b, c] = ["a", "b", "c"].map(|key| bed.record(key));
    if ends.iter().any(|end| matches!(end, Ok(true))) {
        assert_eq!(c.version, 1, "{context}");
    }
    assert_eq!(a.version, b.version, "{context}");
    let decides =
        |rolls_back| (courses.iter()).any(|course| matches!(course, Course::Release(_, way) if *way == rolls_back));
    if !decides(true) {
        assert_eq!((a.version, c.version), (1, 1), "{context}");
    }
    // The third key has been committed with the others or afterwards, or rolled back with them.
    assert!(c.version == 1 || a.version == 0, "{context}");
    if is_alone {
        assert_eq!(
            [&a, &b, &c].map(|record| record.lease.is_none()),
            [true; 3],
            "{context}"
        );
        assert_nothing_left(&bed);
    }
}

#[test]
fn in_whatever_order_servers_meet_there_is_one_decision_and_nobody_is_refused_for_it() {
    let given = |name| env::var(name).ok().map(|text| text.parse().expect("a number"));
    match given("LOCKD_TEST_SEED") {
        Some(seed) => run(seed),
        None => (0..given("LOCKD_TEST_OPERATIONS").unwrap_or(400)).for_each(|_| run(fastrand::u64(..))),
    }
}
