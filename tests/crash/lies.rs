//! A store that lies, so that the judge can be seen to notice. It stands between a server of this test binary and the disk
//! engine; nothing that is shipped knows of it.
//!
//! Each lie is what one particular mistake in an engine or above it would look like from outside:
//!
//! | lie | how it is told | what would do the same |
//! |---|---|---|
//! | [`Lie::StaleRead`] | a share of the reads of a key show its record as it was one change ago | a snapshot that was taken too late |
//! | [`Lie::CachedRead`] | a share of the reads of a key show what this server has last seen of it | a cache, a reader that does not catch up |
//! | [`Lie::LostWrite`] | a share of the batches are called done, and nothing is written | an answer before the sync, a frame cut by mistake |
//! | [`Lie::TokenReuse`] | a share of the released records go to the disk with the fencing counter one lower | a counter that is not part of the record |
//! | [`Lie::DoubleGrant`] | a share of the reads of a leased key show no lease, and the conditional write goes through | a lease decided without its record |
//! | [`Lie::EarlyRead`] | a share of the commits can be read for a moment, and then their server dies before it writes them | an index that is ahead of the sync |
//!
//! What a store is also allowed to do, and what hides mistakes if it never does, is to have no feed ([`Told::deaf`]): a
//! server that hears of every change takes it up within a fraction of a millisecond, and then it makes no difference to any
//! client that it forgot to catch up before it answered.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lockd::keys;
use lockd::record::{KeyRecord, decode_key, encode_key};
use lockd::store::{
    Batch, BodyId, BodyWriter, Capabilities, Change, ChangeListener, Etag, Listed, RecordKey, Store, StoreError,
    Stored, Written,
};
use parking_lot::Mutex;
use rustix::process::{Signal, getpid, kill_process};

/// How long others may read what is about to be lost: enough for a few requests.
const EARLY: Duration = Duration::from_millis(50);

/// What a store may lie about; see the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    StaleRead,
    CachedRead,
    LostWrite,
    TokenReuse,
    DoubleGrant,
    EarlyRead,
}

impl Lie {
    pub(crate) const ALL: [Lie; 6] = [
        Lie::StaleRead,
        Lie::CachedRead,
        Lie::LostWrite,
        Lie::TokenReuse,
        Lie::DoubleGrant,
        Lie::EarlyRead,
    ];

    /// The share of the occasions on which it is told.
    fn share(self) -> f64 {
        match self {
            Lie::LostWrite => 0.01,
            Lie::StaleRead | Lie::CachedRead | Lie::TokenReuse | Lie::DoubleGrant => 0.05,
            // Told once in the life of a server.
            Lie::EarlyRead => 0.15,
        }
    }
}

/// What a server is told about its store. Goes through the environment as text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// It hears nothing of others.
    pub(crate) deaf: bool,
    pub(crate) lie: Option<Lie>,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hearing = if self.deaf { "deaf" } else { "hearing" };
        match self.lie {
            None => f.write_str(hearing),
            Some(lie) => write!(f, "{hearing} {lie:?}"),
        }
    }
}

impl FromStr for Told {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (hearing, lie) = text.split_once(' ').unwrap_or((text, ""));
        let known = Lie::ALL.into_iter().find(|known| format!("{known:?}") == lie);
        if known.is_none() && !lie.is_empty() {
            return Err(format!("no such lie: {lie}"));
        }
        Ok(Self {
            deaf: hearing == "deaf",
            lie: known,
        })
    }
}

/// The last two states of a record that went through here.
#[derive(Clone, Default)]
struct Seen {
    before: Option<Stored>,
    now: Option<Stored>,
}

/// The store between a server and its engine.
pub(crate) struct ToldStore {
    inner: Arc<dyn Store>,
    told: Told,
    rng: Mutex<fastrand::Rng>,
    seen: Mutex<HashMap<RecordKey, Seen>>,
    early: Mutex<HashMap<RecordKey, Option<Stored>>>,
}

impl ToldStore {
    pub(crate) fn new(inner: Arc<dyn Store>, told: Told) -> Self {
        Self {
            inner,
            told,
            rng: Mutex::new(fastrand::Rng::new()),
            seen: Mutex::new(HashMap::new()),
            early: Mutex::new(HashMap::new()),
        }
    }

    /// True when this lie is to be told now.
    fn tells(&self, lie: Lie) -> bool {
        self.told.lie == Some(lie) && self.rng.lock().f64() < lie.share()
    }

    fn stale(&self, key: &RecordKey, now: Option<Stored>) -> Option<Stored> {
        let mut seen = self.seen.lock();
        let seen = seen.entry(key.clone()).or_default();
        let etag = |stored: &Option<Stored>| stored.as_ref().map(|stored| stored.etag.clone());
        if etag(&seen.now) != etag(&now) {
            seen.before = std::mem::replace(&mut seen.now, now.clone());
        }
        if self.tells(Lie::StaleRead) {
            return seen.before.clone();
        }
        now
    }

    /// Shows the batch to readers of this server, and dies.
    fn show_and_die(&self, batch: &Batch) {
        let put = |change: &Change| match change {
            Change::Put(value) => Some(Stored {
                value: value.clone(),
                etag: Etag::new("early"),
            }),
            Change::Delete => None,
        };
        self.early.lock().extend(
            (batch.records.iter())
                .filter(|write| keys::is_key_record(&write.key))
                .map(|write| (write.key.clone(), put(&write.change))),
        );
        thread::sleep(EARLY);
        // Whatever it returns, nothing comes after it.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

/// The record of a key without its lease.
fn without_lease(stored: Stored) -> Stored {
    let Ok(mut record) = decode_key(&stored.value) else {
        return stored;
    };
    (record.lease, record.staged) = (None, None);
    Stored {
        value: encode_key(&record),
        ..stored
    }
}

/// The record of a key that this change leaves without a lease.
fn released(change: &Change) -> Option<KeyRecord> {
    let Change::Put(value) = change else { return None };
    let record = decode_key(value).ok()?;
    (record.lease.is_none() && 0 < record.fencing_token).then_some(record)
}

/// Lets the next grant of a released key give the last token once more.
fn turn_back(change: &mut Change) {
    if let Some(mut record) = released(change) {
        record.fencing_token -= 1;
        *change = Change::Put(encode_key(&record));
    }
}

impl Store for ToldStore {
    fn read(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        if let Some(early) = self.early.lock().get(key) {
            return Ok(early.clone());
        }
        if self.tells(Lie::CachedRead)
            && let Some(seen) = self.seen.lock().get(key)
        {
            return Ok(seen.now.clone());
        }
        let now = self.inner.read(key)?;
        if !keys::is_key_record(key) {
            return Ok(now);
        }
        let shown = self.stale(key, now);
        Ok(match self.tells(Lie::DoubleGrant) {
            true => shown.map(without_lease),
            false => shown,
        })
    }

    fn write(&self, mut batch: Batch) -> Result<Written, StoreError> {
        let is_of_a_key = batch.records.iter().any(|write| keys::is_key_record(&write.key));
        if is_of_a_key && self.tells(Lie::LostWrite) {
            let etags = (batch.records.iter()).map(|write| match write.change {
                Change::Put(_) => Some(Etag::new("lost")),
                Change::Delete => None,
            });
            return Ok(Written::Done(etags.collect()));
        }
        if batch.records.iter().any(|write| released(&write.change).is_some()) && self.tells(Lie::EarlyRead) {
            self.show_and_die(&batch);
        }
        if self.tells(Lie::TokenReuse) {
            (batch.records.iter_mut())
                .filter(|write| keys::is_key_record(&write.key))
                .for_each(|write| turn_back(&mut write.change));
        }
        self.inner.write(batch)
    }

    fn list(&self, prefix: &str, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Listed>, StoreError> {
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
        !self.told.deaf && self.inner.watch(listener)
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = self.inner.capabilities();
        Capabilities {
            feed: capabilities.feed && !self.told.deaf,
            ..capabilities
        }
    }

    fn healthy(&self) -> bool {
        self.inner.healthy()
    }
}
