//! The disk engine: a log that any number of processes append to, with an index in memory in front of it.
//!
//! Every process that opens a root serves it; there is no active and no passive one. Each keeps its own index and reads
//! what the others append. The parts, in the order in which they are best read:
//!
//! | file | what |
//! |---|---|
//! | `frame`, `operation` | the bytes |
//! | `mark` | up to where the log is durable, known to everybody |
//! | `lock` | who may append |
//! | `commit` | how a write becomes durable, and what each failure leaves |
//! | `follow` | how what others wrote gets into the index, and what a torn tail is |
//! | `recover` | what is under the root, and how it is opened |
//! | `compact`, `keeper` | how history becomes a snapshot |
//! | `body` | large bodies |
//! | `watch` | hearing of others |
//! | [`verify`] | looking through a root that nobody serves |
//! | `network` | files on NFS |
//! | `segment`, `index`, `engine` | files, memory, and what holds it all |
//!
//! # Why each promise holds
//!
//! - *Acknowledged means durable.* An answer comes after the `fdatasync` of the frame that holds the write; a body's file
//!   and its directory entry are synced before that frame is written; a new segment and its entry before anything is in it.
//! - *Nothing is readable before it is durable.* An index takes up frames before the `mark` only, and the mark moves after the
//!   sync. What a dead writer left behind the mark is synced before the mark moves over it.
//! - *A batch is one step.* It is inside one frame with one checksum, and one frame is applied under one lock.
//! - *Later reads see it, in any process.* The mark moves before the answer, and every read looks at the mark first. It also
//!   moves before the writer's own index, so that no process shows what a later reader of another one does not find.
//! - *One writer at a time.* Appending needs the exclusive `flock` on a file that is never replaced, and its holder reads
//!   to the end of the log before it checks a precondition.
//! - *Killed at any moment, one valid state remains.* See `commit` and `compact`, step by step.
//!
//! # What is assumed
//!
//! `fdatasync` on a file returns only when its bytes and length are on stable storage, and `fsync` on a directory does so
//! for its names; `flock` is exclusive among all processes and freed when its holder dies; a `pwrite` of twenty bytes
//! inside a page is seen whole or is found out by its checksum. On a local disk all processes share one page cache. NFS is
//! version 4 with the locks of the server, and a machine that the server has given up is refused what it writes under a
//! lock that it held until then (see `follow`).
//!
//! Left out on purpose: encryption and compression, which belong above or below; a cache of values, which the page cache
//! is; finding bodies that no record names, which needs to understand records.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::unbounded;
use parking_lot::Mutex;

use super::{
    Batch, BodyId, BodyWriter, Capabilities, ChangeListener, Listed, RecordKey, Store, StoreError, Stored, Written,
};
use crate::clock::SystemClock;
use crate::metrics::{Report, level_of, to_f64};
use crate::threads;

use commit::Order;
use engine::{Core, Counting, Parts};
use follow::Heard;
use index::etag_of;
use keeper::Task;
use lock::{CommitLock, Mode};

mod body;
mod commit;
mod compact;
mod engine;
mod follow;
mod frame;
mod index;
mod keeper;
mod lock;
mod mark;
mod network;
mod operation;
mod recover;
mod segment;
pub mod verify;
mod watch;

/// How many rows a listing reads before it lets writers in.
const LIST_PAGE_ROWS: usize = 1024;
/// How often opening begins again because files were compacted away under its hands.
const LOAD_ATTEMPTS: usize = 3;

/// How an engine behaves. The first one to open a root in a process decides for all its handles.
#[derive(Clone)]
pub struct Options {
    /// The longest wait for the lock of the store; then the answer is [`StoreError::Unavailable`], and for who comes next it
    /// is that after a twentieth, until the lock was had again.
    pub lock_wait: Duration,
    /// A segment that has reached this size is sealed.
    pub segment_bytes_max: u64,
    /// With less log than this since the last snapshot no compaction starts by itself.
    pub compact_bytes_min: u64,
    /// How long superseded files stay for those who may still be reading them.
    pub delete_grace: Duration,
    /// Bodies of a batch that are larger get a file of their own.
    pub body_bytes_in_log_max: usize,
    /// Zeroes are written ahead of the end of the log, at most so many bytes at once, so that a sync need not make a new
    /// length durable too. 0: never. Not done over a network.
    pub room_bytes_max: u64,
    /// For tests: called before each step on the disk, and may fail it.
    #[doc(hidden)]
    pub step_hook: Option<StepHook>,
    /// For tests: treat the root as if it were on NFS.
    #[doc(hidden)]
    pub as_if_network: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lock_wait: Duration::from_secs(5),
            segment_bytes_max: 64 * 1024 * 1024,
            compact_bytes_min: 128 * 1024 * 1024,
            delete_grace: Duration::from_secs(120),
            body_bytes_in_log_max: 64 * 1024,
            room_bytes_max: 1024 * 1024,
            step_hook: None,
            as_if_network: false,
        }
    }
}

/// Called before a step on the disk, with the file or directory if it is about to be synced. An error fails the step
/// without its being tried.
#[doc(hidden)]
pub type StepHook = Arc<dyn Fn(Step, Option<&File>) -> io::Result<()> + Send + Sync>;

/// The steps on the disk, for tests that fail them or die in them.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    Append,
    AppendSync,
    CutBack,
    CutBackSync,
    Mark,
    SettleSync,
    CutTornTail,
    CreateSegment,
    CreateSync,
    BodySync,
    DirSync,
    FormatSync,
    CreateSnapshot,
    SnapshotEntries,
    SnapshotEnd,
    SnapshotSync,
    Announce,
    RemoveOld,
}

/// What an engine has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Times that bytes of a file were forced to the disk.
    pub syncs: u64,
    /// Groups that were appended.
    pub commits: u64,
    /// Batches in those groups, refused ones included.
    pub batches: u64,
}

/// Why a root cannot be opened, in words for whoever chose it.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// The path does not begin at `/`.
    NotAbsolute,
    /// The directory above the root does not exist. Only the last component is made.
    ParentMissing,
    /// What is above the root is no directory.
    ParentNotADirectory,
    /// Something else has this name.
    NotADirectory,
    /// This process may not write there.
    NotWritable {
        /// What the system says.
        cause: io::Error,
    },
    /// The directory is not empty and holds no store.
    Foreign {
        /// One of the names in it.
        name: String,
    },
    /// The store is of a format that this version does not know.
    OtherFormat {
        /// The first line of its lock file.
        found: String,
    },
    /// A process that has stopped, or one that is very busy, holds the lock.
    Held {
        /// How long it was waited for.
        waited: Duration,
    },
    /// Something failed on the way.
    Io {
        /// What, and where.
        doing: String,
        /// What the system says.
        cause: io::Error,
    },
    /// The store cannot be read.
    Store(StoreError),
}

impl OpenError {
    fn io(doing: &str, path: &Path, cause: io::Error) -> Self {
        OpenError::Io {
            doing: format!("{doing} {}", path.display()),
            cause,
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::NotAbsolute => f.write_str("the path must be absolute"),
            OpenError::ParentMissing => f.write_str("the directory above it does not exist; make it first"),
            OpenError::ParentNotADirectory => f.write_str("what is above it is not a directory"),
            OpenError::NotADirectory => f.write_str("it is not a directory"),
            OpenError::NotWritable { cause } => write!(f, "it is not writable: {cause}"),
            OpenError::Foreign { name } => write!(f, "it holds no store, but something else ({name})"),
            OpenError::OtherFormat { found } => write!(
                f,
                "its format is {:?}, this version knows {:?}",
                found.trim_end(),
                mark::format_line().trim_end()
            ),
            OpenError::Held { waited } => write!(
                f,
                "another process has held its lock for more than {} ms; is one stopped?",
                waited.as_millis()
            ),
            OpenError::Io { doing, cause } => write!(f, "{doing}: {cause}"),
            OpenError::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::NotWritable { cause } | OpenError::Io { cause, .. } => Some(cause),
            OpenError::Store(error) => Some(error),
            _ => None,
        }
    }
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        OpenError::Store(error)
    }
}

/// One handle on a store on a disk.
pub struct SharedLogStore {
    engine: Arc<Engine>,
    /// Tells this handle's writes from those of the others.
    handle: u64,
}

impl SharedLogStore {
    /// Opens a root, which is made if only its last component is missing. The same root opened again in this process is
    /// another handle on the same engine, whatever its options.
    pub fn open(root: &Path, options: Options) -> Result<Self, OpenError> {
        let files = recover::open_root(root)?;
        let metadata = files.commit.metadata();
        let metadata = metadata.map_err(|cause| OpenError::io("measuring the lock file of", root, cause))?;
        let slot = slot_of((metadata.dev(), metadata.ino()));
        let mut slot = slot.lock();
        // One that has latched is not opened again; this is how its root gets a new one.
        let engine = match slot.upgrade().filter(|engine| engine.core.check_latch().is_ok()) {
            Some(engine) => engine,
            None => {
                let engine = Arc::new(Engine::open(root, files, options)?);
                *slot = Arc::downgrade(&engine);
                engine
            }
        };
        Ok(Self::on(engine))
    }

    /// Opens a root with an engine of its own, as another process would have.
    #[doc(hidden)]
    pub fn open_as_another_process(root: &Path, options: Options) -> Result<Self, OpenError> {
        let files = recover::open_root(root)?;
        Ok(Self::on(Arc::new(Engine::open(root, files, options)?)))
    }

    /// Another handle on the same engine, as another server would have.
    pub fn handle(&self) -> Self {
        Self::on(self.engine.clone())
    }

    /// What the engine has done since it was opened.
    pub fn counters(&self) -> Counters {
        self.engine.core.counting.counters()
    }

    /// How many bodies the log itself holds; the others are files.
    #[doc(hidden)]
    pub fn bodies_in_log(&self) -> usize {
        self.core().index.read().bodies.len()
    }

    /// Writes a snapshot now. False: another process is writing one. It happens by itself when the log has outgrown what
    /// is live in it.
    pub fn compact(&self) -> Result<bool, StoreError> {
        self.engine.core.compact()
    }

    fn on(engine: Arc<Engine>) -> Self {
        let handle = engine.core.handles.fetch_add(1, Ordering::Relaxed);
        Self { engine, handle }
    }

    fn core(&self) -> &Core {
        &self.engine.core
    }

    fn write_body_files(&self, batch: &Batch, made: &mut Vec<BodyId>) -> Result<Vec<BodyId>, StoreError> {
        let core = self.core();
        let mut in_files = Vec::new();
        for (id, bytes) in &batch.bodies {
            if core.options.body_bytes_in_log_max < bytes.len() {
                if core.write_body_file(id, bytes)? {
                    made.push(id.clone());
                }
                in_files.push(id.clone());
            }
        }
        Ok(in_files)
    }
}

impl Drop for SharedLogStore {
    fn drop(&mut self) {
        let mut listeners = self.core().listeners.lock();
        listeners.retain(|(handle, _)| *handle != self.handle);
    }
}

impl Store for SharedLogStore {
    fn read(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        let found = self.core().fetch_fresh(|index| {
            let record = index.records.get(key)?;
            Some((record.etag, index.fetch(&record.place)))
        })?;
        Ok(found.map(|(number, value)| Stored {
            value,
            etag: etag_of(number),
        }))
    }

    fn write(&self, batch: Batch) -> Result<Written, StoreError> {
        let core = self.core();
        core.check_latch()?;
        if batch.bodies.is_empty() && batch.records.is_empty() && batch.drop_bodies.is_empty() {
            return Ok(Written::Done(vec![]));
        }
        let keys: Vec<RecordKey> = batch.records.iter().map(|write| write.key.clone()).collect();
        let dropped = batch.drop_bodies.clone();
        let mut made = Vec::new();
        let answer = (self.write_body_files(&batch, &mut made))
            .and_then(|body_files| core.commit(Order::Batch { batch, body_files }));
        match &answer {
            Ok(Written::Done(_)) => {
                core.let_body_files_go(dropped);
                core.tell(Some(self.handle), &keys);
            }
            // Perhaps a record names them now.
            Err(StoreError::Unknown { .. }) => {}
            // Before the answer, so that the same batch tried again does not meet its own cleaning up.
            Ok(Written::Refused { .. }) | Err(_) => made.iter().for_each(|id| core.remove_body_file(id)),
        }
        answer
    }

    fn list(&self, prefix: &str, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let mut rows: Vec<Listed> = Vec::new();
        let mut cursor = after.cloned();
        loop {
            let page_rows = LIST_PAGE_ROWS.min(limit - rows.len());
            let page: Vec<Listed> = self.core().fresh(|index| {
                let rows = index.range(prefix, cursor.as_ref()).take(page_rows);
                rows.map(|(key, record)| Listed {
                    key: key.clone(),
                    etag: etag_of(record.etag),
                })
                .collect()
            })?;
            let is_last = page.len() < page_rows;
            rows.extend(page);
            if is_last || rows.len() == limit {
                return Ok(rows);
            }
            cursor = rows.last().map(|row| row.key.clone());
        }
    }

    fn body_writer(&self) -> Result<Box<dyn BodyWriter>, StoreError> {
        self.core().check_latch()?;
        self.engine.core.stream_body()
    }

    fn body_reader(&self, body: &BodyId) -> Result<Box<dyn Read + Send>, StoreError> {
        let core = self.core();
        match core.fetch_fresh(|index| Some(((), index.fetch(index.bodies.get(body)?))))? {
            Some(((), bytes)) => Ok(Box::new(Cursor::new(bytes))),
            None => core.open_body_file(body),
        }
    }

    fn leftovers(&self, older_than: Duration) -> Result<Vec<BodyId>, StoreError> {
        self.core().check_latch()?;
        self.core().old_body_files(older_than)
    }

    fn watch(&self, listener: ChangeListener) -> bool {
        if !self.capabilities().feed {
            return false;
        }
        self.core().listeners.lock().push((self.handle, listener));
        true
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            atomic_batch: true,
            feed: self.engine.watcher.is_some(),
            shared: true,
            cheap_reads: !self.engine.core.network,
        }
    }

    fn report(&self, report: &mut Report) {
        let core = self.core();
        core.counting.report(report);
        let (records, live_bytes) = {
            let index = core.index.read();
            (index.records.len(), index.live_bytes)
        };
        report.level("lockd_log_records", "Records in the store.", &[], level_of(records));
        let help = "Bytes of the log that are live: what a compaction would leave.";
        report.level("lockd_log_live_bytes", help, &[], to_f64(live_bytes));
    }

    fn healthy(&self) -> bool {
        self.core().check_latch().is_ok()
    }
}

/// One open root with its threads, shared by the handles on it.
struct Engine {
    core: Arc<Core>,
    watcher: Option<notify::RecommendedWatcher>,
    keeper: Option<JoinHandle<()>>,
    leader: Option<JoinHandle<()>>,
}

impl Engine {
    fn open(root: &Path, files: recover::LockFiles, options: Options) -> Result<Self, OpenError> {
        let clock = SystemClock::shared();
        let counting = Counting::new(options.step_hook.clone());
        let network = options.as_if_network || network::is_on_nfs(&files.commit);
        let lock = CommitLock {
            commit: files.commit.clone(),
            turn: files.turn,
            clock: clock.clone(),
            wait: options.lock_wait,
            network,
            waited_in_vain: Cell::new(false),
        };
        {
            let _held = lock.acquire(Mode::Exclusive).map_err(|error| match error {
                StoreError::Unavailable { .. } => OpenError::Held {
                    waited: options.lock_wait,
                },
                error => OpenError::Store(error),
            })?;
            recover::make_store(root, &files.commit, &counting)?;
        }
        let log_dir = root.join(recover::LOG_DIR);
        let (index, tail) = load(&log_dir)?;
        let (tasks, told) = unbounded();
        let core = Arc::new(Core::new(Parts {
            log_dir,
            bodies_dir: root.join(recover::BODIES_DIR),
            options,
            clock,
            network,
            lock,
            compact_file: files.compact,
            counting,
            tail,
            index,
            tasks,
        }));
        core.catch_up_after_loading()?;
        let watcher = if network {
            None
        } else {
            watch::start(Arc::downgrade(&core), root)
        };
        let kept = core.clone();
        let keeper = threads::spawn("lockd-log", move || keeper::run(&kept, &told))
            .map_err(|cause| OpenError::io("starting the thread of", root, cause))?;
        let led = core.clone();
        let leader = threads::spawn("lockd-commit", move || led.lead_for_many())
            .map_err(|cause| OpenError::io("starting the second thread of", root, cause));
        let mut engine = Self {
            core,
            watcher,
            keeper: Some(keeper),
            leader: None,
        };
        // If it could not be started, the other one ends with the engine.
        engine.leader = Some(leader?);
        Ok(engine)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.watcher = None;
        let _ = self.core.tasks.send(Task::Stop);
        // A keeper that has panicked has nothing left to tidy up. It writes, so it ends before who leads.
        self.keeper.take().map(JoinHandle::join);
        self.core.close_queue();
        self.leader.take().map(JoinHandle::join);
    }
}

/// What was found, with its bytes.
type Fetched<T> = Result<Option<(T, Arc<[u8]>)>, StoreError>;

impl Core {
    /// Gets the bytes of what a fresh index shows. On NFS they may have been in a file that is gone, when this process has
    /// slept for longer than the grace of compaction; then they are in the snapshot that took its place.
    fn fetch_fresh<T>(&self, look: impl Fn(&index::Index) -> Option<(T, index::Fetch)>) -> Fetched<T> {
        let mut attempt = 1;
        loop {
            let Some((found, fetch)) = self.fresh(&look)? else {
                return Ok(None);
            };
            match fetch.bytes() {
                Ok(bytes) => return Ok(Some((found, bytes))),
                Err(error) if segment::is_missing(&error) && attempt < LOAD_ATTEMPTS => self.adopt_newest()?,
                Err(error) => return Err(self.latch_if_corrupt(error)),
            }
            attempt += 1;
        }
    }

    /// Reads the log behind the snapshot: most of it without a lock, the end under it.
    fn catch_up_after_loading(&self) -> Result<(), StoreError> {
        let mut heard = Heard::default();
        if !self.network
            && let Some(mark) = self.mark()?
        {
            self.follow_to(&mut self.tail.lock(), mark, &mut heard)?;
        }
        self.with_lock(Mode::Exclusive, || self.settle(&mut self.tail.lock(), &mut heard))?;
        // Dropped by batches that are durable; whoever wrote them may not have come to removing the files.
        self.let_body_files_go(self.with_files(heard.changes.dropped_files));
        Ok(())
    }
}

/// Loads, and begins again if a file has gone in the meantime because another process has compacted.
fn load(log_dir: &Path) -> Result<(index::Index, follow::Tail), StoreError> {
    let mut attempt = 1;
    loop {
        match recover::load(log_dir) {
            Err(error) if segment::is_missing(&error) && attempt < LOAD_ATTEMPTS => attempt += 1,
            loaded => return loaded,
        }
    }
}

/// Engines of this process that may still be open, by device and inode of their lock file. A `flock` belongs to an open
/// file, so two engines on one root would be safe; but each would keep an index, and wait for the other's lock.
type Registry = HashMap<(u64, u64), Arc<Mutex<Weak<Engine>>>>;

fn slot_of(root: (u64, u64)) -> Arc<Mutex<Weak<Engine>>> {
    static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);
    let mut registry = REGISTRY.lock();
    let registry = registry.get_or_insert_default();
    // Slots of engines that are gone, and that nobody is just opening.
    registry
        .retain(|_, slot| 1 < Arc::strong_count(slot) || slot.try_lock().is_none_or(|slot| 0 < slot.strong_count()));
    registry.entry(root).or_default().clone()
}
