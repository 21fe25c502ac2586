//! The object engine: one object per record in a bucket of S3, of anything compatible with it, or of Azure Blob.
//!
//! Any number of servers serve one bucket at the same time, by compare-and-swap: each record is an object, and each write of
//! it is one conditional put. The parts, in the order in which they are best read:
//!
//! | file | what |
//! |---|---|
//! | `bucket` | what the engine needs of a store: the seam |
//! | `name`, `envelope` | where a record lies, and its bytes |
//! | `write` | how a record is written, and what a lost answer means |
//! | `body`, `reaper` | bodies as streams, and deleting at leisure |
//! | `probe`, `verify` | what a store must prove before it is used, and what a person may want to know before |
//! | `location` | which bucket, in a URL |
//! | `http`, `s3`, `credentials`, `azure`, `sign_azure` | the way there |
//!
//! # Why each promise holds
//!
//! - *Acknowledged means durable.* The store's own promise for a put that it has answered.
//! - *A batch is one step.* A batch holds one record, and that is one put with a condition. Bodies are put before.
//! - *Later reads see it.* Reads and listings of these stores are strongly consistent, and nothing is cached here.
//! - *An answer never guesses.* See `write`.
//! - *The store keeps its word.* It is tried when it is opened: a store that ignores conditions, as some do, is refused.
//!
//! # What is never relied on
//!
//! Conditional deletion, which some stores ignore and then delete anyway. A record ends as a tombstone, put under a
//! condition. Tombstones are removed only under names that are used once ([`keys::is_used_once`]); others are few and stay.
//!
//! Left out on purpose: a feed, which buckets have not; a cache; encryption, which belongs above or to the store.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use super::retry::{RetryPolicy, Sleeper, thread_sleeper};
use super::{
    Batch, BodyId, BodyWriter, Capabilities, ChangeListener, Listed, RecordKey, Store, StoreError, Stored, Written,
};
use crate::clock::{SharedClock, SystemClock};
use crate::ids::IdMaker;
use crate::keys;
use crate::logging::{self, Logger};

use bucket::{Bucket, Failure, Page};
use reaper::Reaper;

mod azure;
mod body;
mod bucket;
mod credentials;
mod envelope;
mod http;
mod location;
mod name;
mod probe;
mod reaper;
mod s3;
mod sign_azure;
pub mod verify;
mod write;

pub use http::Timeouts;
pub use location::{AwsLocation, AzureLocation, AzureSecret, Location, Lookup, S3Location, S3Secrets};
pub use s3::Encryption;

/// So many failures in a row make the store unhealthy, until something succeeds or some time has passed.
const FAILURES_MAX: u32 = 5;
/// An unhealthy store is given another chance after so long, or nobody would ever find out that it serves again.
const SULK_MS: i64 = 10_000;
/// Rows that are asked for at once.
const PAGE_ROWS: usize = 1000;

/// How an engine behaves.
#[derive(Clone)]
pub struct Options {
    /// How long to wait for the store.
    pub timeouts: Timeouts,
    /// How often one request is sent when its answers are lost, and the pauses in between. What was certainly not done is
    /// tried again by [`super::retry`], not here.
    pub settle: RetryPolicy,
    /// How long a dropped body stays for whoever is reading it.
    pub drop_grace: Duration,
    /// What time it is.
    pub clock: SharedClock,
    /// Where the engine logs.
    pub logger: Logger,
    /// How it waits.
    pub sleep: Sleeper,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            settle: RetryPolicy {
                attempts: 4,
                base_delay: Duration::from_millis(50),
                max_delay: Duration::from_secs(1),
                multiplier: 3.0,
            },
            drop_grace: Duration::from_secs(30),
            clock: SystemClock::shared(),
            logger: logging::off(),
            sleep: thread_sleeper(),
        }
    }
}

/// Why a bucket cannot be used, in words for whoever chose it.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// There are no credentials, or half of them.
    Credentials(String),
    /// The store cannot be reached, or does not let us in.
    Unusable {
        /// Which store.
        store: String,
        /// What it says.
        detail: String,
    },
    /// The store breaks a promise without which leases would be granted twice.
    BreaksPromise {
        /// Which store.
        store: String,
        /// Which promise, and what it did instead.
        detail: String,
    },
    /// A thread could not be started.
    System(io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credentials(detail) => f.write_str(detail),
            Self::Unusable { store, detail } => write!(f, "{store} cannot be used: {detail}"),
            Self::BreaksPromise { store, detail } => {
                write!(f, "{store} is not safe to use, so it is refused: {detail}")
            }
            Self::System(cause) => write!(f, "cannot start: {cause}"),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System(cause) => Some(cause),
            _ => None,
        }
    }
}

/// A handle on a bucket. Each handle has connections of its own.
pub struct ObjectStore {
    core: Arc<Core>,
}

struct Core {
    bucket: Arc<dyn Bucket>,
    /// Nothing, or ends with a slash.
    prefix: String,
    options: Options,
    ids: IdMaker,
    reaper: Reaper,
    health: Health,
}

/// What the latest requests have shown.
#[derive(Default)]
struct Health {
    failures_in_a_row: AtomicU32,
    last_failure_ms: AtomicI64,
}

impl ObjectStore {
    /// Opens a bucket: finds credentials, looks whether the bucket is there, and proves that the store keeps the promises
    /// that everything here rests on. That takes some twenty small requests.
    pub fn open(location: &Location, options: Options) -> Result<Self, OpenError> {
        let (bucket, prefix) = location.connect(&options)?;
        let store = Self::over(bucket, prefix, options)?;
        probe::check(&store.core, probe::RACES_AT_START)?;
        Ok(store)
    }

    fn over(bucket: Arc<dyn Bucket>, prefix: String, options: Options) -> Result<Self, OpenError> {
        let reaper = Reaper::start(
            Arc::clone(&bucket),
            Arc::clone(&options.clock),
            Arc::clone(&options.logger),
            options.drop_grace,
        );
        let core = Core {
            bucket,
            prefix,
            ids: IdMaker::new(Arc::clone(&options.clock)),
            reaper: reaper.map_err(OpenError::System)?,
            health: Health::default(),
            options,
        };
        Ok(Self { core: Arc::new(core) })
    }

    /// Removes everything under the prefix of this store: for tests, and for whoever wants to be rid of it.
    pub fn remove_everything(&self) -> Result<(), StoreError> {
        loop {
            let page = self.core.page(&self.core.prefix, None, PAGE_ROWS)?;
            for row in page.rows {
                self.core
                    .noted(self.core.bucket.delete(&row.name))
                    .map_err(Failure::of_question)?;
            }
            if !page.more {
                return Ok(());
            }
        }
    }
}

impl Store for ObjectStore {
    fn read(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        self.core.read_record(key)
    }

    fn write(&self, batch: Batch) -> Result<Written, StoreError> {
        self.core.write_batch(&batch)
    }

    fn list(&self, prefix: &str, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.core.list_records(prefix, after, limit)
    }

    fn body_writer(&self) -> Result<Box<dyn BodyWriter>, StoreError> {
        Ok(self.core.stream_body())
    }

    fn body_reader(&self, body: &BodyId) -> Result<Box<dyn Read + Send>, StoreError> {
        self.core.open_body(body)
    }

    fn leftovers(&self, older_than: Duration) -> Result<Vec<BodyId>, StoreError> {
        self.core.leftovers(older_than)
    }

    fn watch(&self, _: ChangeListener) -> bool {
        false
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            atomic_batch: false,
            feed: false,
            shared: true,
            cheap_reads: false,
        }
    }

    fn healthy(&self) -> bool {
        let health = &self.core.health;
        let last_failure_ms = health.last_failure_ms.load(Ordering::Relaxed);
        health.failures_in_a_row.load(Ordering::Relaxed) < FAILURES_MAX
            || SULK_MS < self.core.options.clock.wall_ms().saturating_sub(last_failure_ms)
    }
}

impl Core {
    fn write_batch(&self, batch: &Batch) -> Result<Written, StoreError> {
        if 1 < batch.records.len() {
            return Err(StoreError::Unavailable {
                detail: "an object store changes one record at a time".to_owned(),
            });
        }
        for (n, (id, bytes)) in batch.bodies.iter().enumerate() {
            if let Err(error) = self.put_body(id, bytes) {
                self.drop_bodies(&batch.bodies[..=n]);
                return Err(error);
            }
        }
        let etags = match batch.records.first().map(|write| self.write_record(write)) {
            None => Vec::new(),
            Some(Ok(Ok(etag))) => vec![etag],
            Some(Ok(Err(_refused))) => {
                self.drop_bodies(&batch.bodies);
                return Ok(Written::Refused { index: 0 });
            }
            // The record may name them.
            Some(Err(unknown @ StoreError::Unknown { .. })) => return Err(unknown),
            Some(Err(error)) => {
                self.drop_bodies(&batch.bodies);
                return Err(error);
            }
        };
        batch.drop_bodies.iter().for_each(|id| self.drop_body(id));
        Ok(Written::Done(etags))
    }

    fn drop_bodies(&self, bodies: &[(BodyId, Arc<[u8]>)]) {
        bodies.iter().for_each(|(id, _)| self.drop_body(id));
    }

    fn list_records(&self, prefix: &str, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let after = after.map(RecordKey::as_str).filter(|after| prefix <= *after);
        // Behind everything that begins with the prefix.
        if after.is_some_and(|after| !after.starts_with(prefix)) {
            return Ok(Vec::new());
        }
        let records = self.records_prefix();
        let within = [
            &records,
            &*name::encode_prefix(prefix).ok_or_else(|| unspeakable(prefix))?,
        ]
        .concat();
        let mut cursor = match after {
            Some(after) => Some([&records, &*name::encode(after).ok_or_else(|| unspeakable(after))?].concat()),
            None => None,
        };
        let mut rows = Vec::new();
        while rows.len() < limit {
            let page = self.page(&within, cursor.as_deref(), PAGE_ROWS.min(limit - rows.len()))?;
            cursor = page.rows.last().map(|row| row.name.clone());
            for row in page.rows {
                // What else lies here is none of ours.
                let Some(key) = row
                    .name
                    .strip_prefix(&records)
                    .and_then(name::decode)
                    .map(RecordKey::new)
                else {
                    continue;
                };
                if row.bytes != envelope::TOMBSTONE_BYTES {
                    rows.push(Listed {
                        key,
                        etag: super::Etag::new(row.etag),
                    });
                } else if keys::is_used_once(&key) {
                    // Whoever wrote it may have died before it could remove it.
                    self.reaper.later_or_never(row.name);
                }
            }
            if !page.more || cursor.is_none() {
                break;
            }
        }
        Ok(rows)
    }

    /// Bodies that were put before so long, and no upload that was begun before.
    fn leftovers(&self, older_than: Duration) -> Result<Vec<BodyId>, StoreError> {
        let age_ms = i64::try_from(older_than.as_millis()).unwrap_or(i64::MAX);
        let before_ms = self.options.clock.wall_ms().saturating_sub(age_ms);
        let bodies = format!("{}b/", self.prefix);
        // Not all stores list uploads; those that do not end them by themselves.
        let _ = self.noted(self.bucket.abort_uploads_before(&bodies, before_ms));
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.page(&bodies, cursor.as_deref(), PAGE_ROWS)?;
            cursor = page.rows.last().map(|row| row.name.clone());
            let old = page.rows.into_iter().filter(|row| row.modified_ms < before_ms);
            found.extend(old.filter_map(|row| Some(BodyId::new(row.name.strip_prefix(&bodies)?))));
            if !page.more || cursor.is_none() {
                return Ok(found);
            }
        }
    }

    fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        self.noted(self.bucket.list(prefix, after, limit))
            .map_err(Failure::of_question)
    }

    fn records_prefix(&self) -> String {
        format!("{}r/", self.prefix)
    }

    fn record_name(&self, key: &RecordKey) -> Result<String, StoreError> {
        let encoded = name::encode(key.as_str()).ok_or_else(|| unspeakable(key.as_str()))?;
        let name = self.records_prefix() + &encoded;
        if name::NAME_BYTES_MAX < name.len() {
            return Err(StoreError::Unavailable {
                detail: format!("{name} is too long for the name of an object"),
            });
        }
        Ok(name)
    }

    fn body_name(&self, id: &BodyId) -> Result<String, StoreError> {
        let lawful = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let name = id.as_str();
        if (1..=64).contains(&name.len()) && name.bytes().all(lawful) {
            Ok(format!("{}b/{name}", self.prefix))
        } else {
            Err(StoreError::Unavailable {
                detail: format!("{name:?} is no name of a body"),
            })
        }
    }

    fn attempts(&self) -> u32 {
        self.options.settle.attempts.max(1)
    }

    /// Waits before a request is sent again; not before the first time.
    fn pause_before(&self, attempt: u32) {
        if 0 < attempt {
            (self.options.sleep)(self.options.settle.jittered_delay(attempt));
        }
    }

    /// Lets the health of the store follow what became of a request.
    fn noted<T>(&self, answer: Result<T, Failure>) -> Result<T, Failure> {
        match &answer {
            Ok(_) => self.health.failures_in_a_row.store(0, Ordering::Relaxed),
            Err(failure) => {
                self.health.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
                let now_ms = self.options.clock.wall_ms();
                self.health.last_failure_ms.store(now_ms, Ordering::Relaxed);
                log::debug!(
                    logger: self.options.logger, target: "storage.object", error:% = failure;
                    "request failed"
                );
            }
        }
        answer
    }
}

fn unspeakable(key: &str) -> StoreError {
    StoreError::Unavailable {
        detail: format!("{key:?} is no name of a record"),
    }
}
