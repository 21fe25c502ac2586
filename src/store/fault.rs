//! A wrapper for tests that makes a good store behave like one on a bad day.
//!
//! # What may be injected, and why everything above must live with it
//!
//! - [`Fault::FailBefore`]: the caller sees [`StoreError::NotDone`] and nothing has happened. A connection refused, a full
//!   disk, a lock not had in time. Trying again must be right.
//! - [`Fault::LoseAnswer`]: the caller sees [`StoreError::Unknown`], but it *was* done. A time-out or a killed connection
//!   after the store had acted. The caller must read and find its own write.
//! - [`Fault::Delay`]: the call begins late and then goes well. A slow disk, a busy peer. Leases run out meanwhile; nobody
//!   may act on what was true before.
//! - [`Fault::Refuse`]: the caller sees [`StoreError::Unavailable`] and nothing has happened. A latched engine, a service
//!   that is away. It must be passed on, not tried for ever.
//! - [`FaultStore::set_outage`]: the same for every call until it ends. Whoever waits must be served when it is over.
//!
//! Inside a streamed body, [`Fault::FailBefore`], [`Fault::LoseAnswer`] and [`Fault::Refuse`] are all the same broken
//! stream: an [`io::Error`] from `read` or `write`. A lost answer to a call that changes nothing (a read, a listing,
//! opening a body) is a failure before it: it is certain that nothing was done.
//!
//! # What is never injected
//!
//! Lies: a `Done` that was not done, an old record after a newer one, bytes that nobody wrote. The contract rules them
//! out, so nothing above an engine defends against them; that engines notice damage is tested on their own files.
//! Changes are always reported to watchers, for the same reason.
//!
//! # Seeds
//!
//! What happens to the n-th call of an operation depends on the seed, the operation and n alone, whatever other threads
//! do in between. So a failed test that prints its seed can be run again; `{fault_store}` shows it.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::retry::Sleeper;
use super::{
    Batch, BodyId, BodyWriter, Capabilities, ChangeListener, Listed, RecordKey, Store, StoreError, Stored, Written,
};
use crate::metrics::Report;

/// What a store can be asked to do; calls are counted separately for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// [`Store::read`].
    Read,
    /// [`Store::write`].
    Write,
    /// [`Store::list`].
    List,
    /// [`Store::body_writer`].
    BodyWriter,
    /// A `write` on a body writer.
    BodyWrite,
    /// [`BodyWriter::finish`].
    BodyFinish,
    /// [`Store::body_reader`].
    BodyReader,
    /// A `read` on a body reader.
    BodyRead,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 8] = [
        Self::Read,
        Self::Write,
        Self::List,
        Self::BodyWriter,
        Self::BodyWrite,
        Self::BodyFinish,
        Self::BodyReader,
        Self::BodyRead,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::List => "list",
            Self::BodyWriter => "body_writer",
            Self::BodyWrite => "body write",
            Self::BodyFinish => "body finish",
            Self::BodyReader => "body_reader",
            Self::BodyRead => "body read",
        }
    }
}

/// What goes wrong with one call. The [module documentation](self) says what each stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Certainly not done.
    FailBefore,
    /// Done, but nobody says so.
    LoseAnswer,
    /// Done after a pause of this length.
    Delay(Duration),
    /// Not served.
    Refuse,
}

/// Which calls go wrong: at random by rates, or exactly named ones.
#[derive(Debug, Clone)]
pub struct FaultPlan {
    seed: u64,
    rates: Vec<(Operation, Fault, f64)>,
}

impl FaultPlan {
    /// Nothing goes wrong by chance. The seed matters once there are rates.
    pub fn quiet(seed: u64) -> Self {
        Self {
            seed,
            rates: Vec::new(),
        }
    }

    /// Lets this share of the calls (0 to 1) go wrong in this way. Rates of one operation are tried in the order they
    /// were added, and the first that strikes is what happens.
    pub fn rate(mut self, operation: Operation, fault: Fault, share: f64) -> Self {
        self.rates.push((operation, fault, share));
        self
    }

    fn draw(&self, operation: Operation, call: u64) -> Option<Fault> {
        // Spreads the numbers of calls and operations over the seeds; any odd constants without pattern do.
        let mixed =
            (call.wrapping_mul(0x9e37_79b9_7f4a_7c15)) ^ (operation as u64 + 1).wrapping_mul(0xd1b5_4a32_d192_ed03);
        let mut rng = fastrand::Rng::with_seed(self.seed ^ mixed);
        (self.rates.iter())
            .filter(|(of, _, _)| *of == operation)
            .find(|(_, _, share)| rng.f64() < *share)
            .map(|(_, fault, _)| *fault)
    }
}

/// A store with a plan for what goes wrong. See the [module documentation](self).
pub struct FaultStore {
    inner: Arc<dyn Store>,
    faults: Arc<Faults>,
}

impl FaultStore {
    /// Wraps `inner`. Delays are spent in `sleep`.
    pub fn new(inner: Arc<dyn Store>, plan: FaultPlan, sleep: Sleeper) -> Self {
        let faults = Faults {
            plan,
            named: Mutex::new(Vec::new()),
            calls: Default::default(),
            injected: AtomicU64::new(0),
            outage: AtomicBool::new(false),
            sleep,
        };
        Self {
            inner,
            faults: Arc::new(faults),
        }
    }

    /// Lets the n-th call of an operation (the first is 1) go wrong, whatever the rates say.
    pub fn inject(&self, operation: Operation, call: u64, fault: Fault) {
        self.faults.named.lock().push((operation, call, fault));
    }

    /// Lets the next call of an operation go wrong.
    pub fn inject_next(&self, operation: Operation, fault: Fault) {
        self.inject(operation, self.calls(operation) + 1, fault);
    }

    /// While this is on, every call answers [`StoreError::Unavailable`] and the store is not healthy.
    pub fn set_outage(&self, on: bool) {
        self.faults.outage.store(on, Ordering::SeqCst);
    }

    /// How many calls of an operation have begun.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.faults.calls[operation as usize].load(Ordering::SeqCst)
    }

    /// How many calls have gone wrong so far, those during an outage included.
    pub fn injected(&self) -> u64 {
        self.faults.injected.load(Ordering::SeqCst)
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Faults { plan, .. } = &*self.faults;
        write!(f, "fault plan with seed {}: {:?}", plan.seed, plan.rates)
    }
}

impl Store for FaultStore {
    fn read(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        self.faults.around_question(Operation::Read, || self.inner.read(key))
    }

    fn write(&self, batch: Batch) -> Result<Written, StoreError> {
        self.faults.around_change(Operation::Write, || self.inner.write(batch))
    }

    fn list(&self, prefix: &str, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.faults
            .around_question(Operation::List, || self.inner.list(prefix, after, limit))
    }

    fn body_writer(&self) -> Result<Box<dyn BodyWriter>, StoreError> {
        let inner = self
            .faults
            .around_question(Operation::BodyWriter, || self.inner.body_writer())?;
        Ok(Box::new(Faulty {
            inner,
            faults: self.faults.clone(),
        }))
    }

    fn body_reader(&self, body: &BodyId) -> Result<Box<dyn Read + Send>, StoreError> {
        let inner = self
            .faults
            .around_question(Operation::BodyReader, || self.inner.body_reader(body))?;
        Ok(Box::new(Faulty {
            inner,
            faults: self.faults.clone(),
        }))
    }

    fn leftovers(&self, older_than: Duration) -> Result<Vec<BodyId>, StoreError> {
        self.faults
            .around_question(Operation::List, || self.inner.leftovers(older_than))
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
        !self.faults.outage.load(Ordering::SeqCst) && self.inner.healthy()
    }
}

/// The plan at work, shared with the streams of bodies.
struct Faults {
    plan: FaultPlan,
    named: Mutex<Vec<(Operation, u64, Fault)>>,
    calls: [AtomicU64; Operation::ALL.len()],
    injected: AtomicU64,
    outage: AtomicBool,
    sleep: Sleeper,
}

/// What is left of a fault when the call begins: delays are over by then, refusals and failures have been answered.
enum Course {
    Normal,
    AnswerLost(u64),
}

impl Faults {
    /// Counts a call and does what is planned for it up to the point where the real call would be made.
    fn begin(&self, operation: Operation) -> Result<Course, StoreError> {
        let call = self.calls[operation as usize].fetch_add(1, Ordering::SeqCst) + 1;
        let name = operation.name();
        if self.outage.load(Ordering::SeqCst) {
            self.injected.fetch_add(1, Ordering::SeqCst);
            let detail = format!("injected outage at {name} {call}");
            return Err(StoreError::Unavailable { detail });
        }
        let Some(fault) = self.fault_of(operation, call) else {
            return Ok(Course::Normal);
        };
        self.injected.fetch_add(1, Ordering::SeqCst);
        match fault {
            Fault::FailBefore => Err(StoreError::NotDone {
                detail: format!("injected before {name} {call}"),
            }),
            Fault::Refuse => Err(StoreError::Unavailable {
                detail: format!("injected at {name} {call}"),
            }),
            Fault::LoseAnswer => Ok(Course::AnswerLost(call)),
            Fault::Delay(pause) => {
                (self.sleep)(pause);
                Ok(Course::Normal)
            }
        }
    }

    fn fault_of(&self, operation: Operation, call: u64) -> Option<Fault> {
        let mut named = self.named.lock();
        match named.iter().position(|(of, at, _)| (*of, *at) == (operation, call)) {
            Some(place) => Some(named.swap_remove(place).2),
            None => self.plan.draw(operation, call),
        }
    }

    /// A call that changes something. Its answer is lost only if it was a success: an error is known as such.
    fn around_change<T>(
        &self,
        operation: Operation,
        call: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let course = self.begin(operation)?;
        let answer = call()?;
        match course {
            Course::Normal => Ok(answer),
            Course::AnswerLost(number) => Err(StoreError::Unknown {
                detail: format!("injected after {} {number}", operation.name()),
            }),
        }
    }

    /// A call that changes nothing.
    fn around_question<T>(
        &self,
        operation: Operation,
        call: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match self.begin(operation)? {
            Course::Normal => call(),
            Course::AnswerLost(number) => Err(StoreError::NotDone {
                detail: format!("injected after {} {number}", operation.name()),
            }),
        }
    }
}

/// A stream of a body that may break.
struct Faulty<T> {
    inner: T,
    faults: Arc<Faults>,
}

impl<T: Read> Read for Faulty<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.faults
            .around_question(Operation::BodyRead, || Ok(()))
            .map_err(io::Error::other)?;
        self.inner.read(buffer)
    }
}

impl Write for Faulty<Box<dyn BodyWriter>> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.faults
            .around_question(Operation::BodyWrite, || Ok(()))
            .map_err(io::Error::other)?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl BodyWriter for Faulty<Box<dyn BodyWriter>> {
    fn finish(self: Box<Self>) -> Result<BodyId, StoreError> {
        let Faulty { inner, faults } = *self;
        faults.around_change(Operation::BodyFinish, || inner.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryStore;
    use super::super::{Change, Precondition, RecordWrite};
    use super::*;

    fn create(key: &str) -> Batch {
        Batch {
            records: vec![RecordWrite {
                key: RecordKey::new(key),
                precondition: Precondition::Absent,
                change: Change::Put(Arc::from(&b"value"[..])),
            }],
            ..Batch::default()
        }
    }

    fn over_memory(plan: FaultPlan) -> (MemoryStore, FaultStore, Arc<Mutex<Vec<Duration>>>) {
        let memory = MemoryStore::new();
        let pauses = Arc::new(Mutex::new(Vec::new()));
        let noted = pauses.clone();
        let sleep: Sleeper = Arc::new(move |pause| noted.lock().push(pause));
        let faulty = FaultStore::new(Arc::new(memory.handle()), plan, sleep);
        (memory, faulty, pauses)
    }

    #[test]
    fn each_fault_does_what_the_table_says() {
        let (memory, faulty, pauses) = over_memory(FaultPlan::quiet(0));
        let pause = Duration::from_secs(3);
        faulty.inject(Operation::Write, 1, Fault::FailBefore);
        faulty.inject(Operation::Write, 2, Fault::Refuse);
        faulty.inject(Operation::Write, 3, Fault::LoseAnswer);
        faulty.inject(Operation::Write, 4, Fault::Delay(pause));
        let there = |key| memory.read(&RecordKey::new(key)).unwrap().is_some();

        assert!(matches!(faulty.write(create("a")), Err(StoreError::NotDone { .. })));
        assert!(!there("a"));
        assert!(matches!(faulty.write(create("b")), Err(StoreError::Unavailable { .. })));
        assert!(!there("b"));
        assert!(matches!(faulty.write(create("c")), Err(StoreError::Unknown { .. })));
        assert!(there("c"));
        assert!(matches!(faulty.write(create("d")), Ok(Written::Done(_))));
        assert!(there("d"));
        assert_eq!(*pauses.lock(), [pause]);
        assert!(matches!(faulty.write(create("e")), Ok(Written::Done(_))));
        assert_eq!((faulty.calls(Operation::Write), faulty.injected()), (5, 4));

        faulty.inject_next(Operation::Read, Fault::LoseAnswer);
        let answer = faulty.read(&RecordKey::new("c"));
        assert!(matches!(answer, Err(StoreError::NotDone { .. })), "{answer:?}");
    }

    #[test]
    fn a_broken_stream_of_a_body_is_an_error_and_leaves_nothing() {
        let (memory, faulty, _) = over_memory(FaultPlan::quiet(0));
        faulty.inject(Operation::BodyWrite, 2, Fault::FailBefore);
        let mut writer = faulty.body_writer().unwrap();
        writer.write_all(b"first").unwrap();
        writer.write_all(b"second").unwrap_err();
        drop(writer);

        faulty.inject_next(Operation::BodyFinish, Fault::FailBefore);
        let answer = faulty.body_writer().unwrap().finish();
        assert!(matches!(answer, Err(StoreError::NotDone { .. })), "{answer:?}");
        assert_eq!(memory.counts().bodies, 0);

        let mut writer = faulty.body_writer().unwrap();
        writer.write_all(b"whole").unwrap();
        let id = writer.finish().unwrap();
        faulty.inject_next(Operation::BodyRead, Fault::Refuse);
        let mut text = String::new();
        faulty.body_reader(&id).unwrap().read_to_string(&mut text).unwrap_err();
        faulty.body_reader(&id).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "whole");

        // The one case that leaves a body behind which nobody knows.
        faulty.inject_next(Operation::BodyFinish, Fault::LoseAnswer);
        let answer = faulty.body_writer().unwrap().finish();
        assert!(matches!(answer, Err(StoreError::Unknown { .. })), "{answer:?}");
        assert_eq!(memory.counts().bodies, 2);
    }

    #[test]
    fn an_outage_lasts_until_it_ends() {
        let (_memory, faulty, _) = over_memory(FaultPlan::quiet(0));
        faulty.set_outage(true);
        assert!(!faulty.healthy());
        for _ in 0..3 {
            let answer = faulty.write(create("a"));
            assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
        }
        faulty.set_outage(false);
        assert!(faulty.healthy());
        assert!(matches!(faulty.write(create("a")), Ok(Written::Done(_))));
    }

    #[test]
    fn a_seed_decides_about_each_call_by_itself() {
        let courses = |seed: u64, interleaved: bool| {
            let plan = FaultPlan::quiet(seed)
                .rate(Operation::Read, Fault::FailBefore, 0.2)
                .rate(Operation::Read, Fault::Refuse, 0.2)
                .rate(Operation::List, Fault::Refuse, 0.9);
            let (_memory, faulty, _) = over_memory(plan);
            let read = || {
                if interleaved {
                    let _ = faulty.list("", None, 1);
                }
                match faulty.read(&RecordKey::new("a")) {
                    Ok(_) => 'o',
                    Err(StoreError::NotDone { .. }) => 'n',
                    Err(_) => 'u',
                }
            };
            (0..1000).map(|_| read()).collect::<String>()
        };
        let course = courses(7, false);
        assert_eq!(course, courses(7, true));
        assert_ne!(course, courses(8, false));
        // 200, 160 and 640 are expected; the seed is fixed, so this cannot fail now and then.
        for (letter, range) in [('n', 150..250), ('u', 110..210), ('o', 590..690)] {
            let count = course.chars().filter(|c| *c == letter).count();
            assert!(range.contains(&count), "{count} times {letter}");
        }
    }
}
