//! A wrapper for tests that makes a store behave like a bucket: one record a batch, and no feed.
//!
//! What is done without atomic batches is done over this in the tests of the floors above, a thousand times as often as a
//! real bucket would allow.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::Report;

use super::{
    Batch, BodyId, BodyWriter, Capabilities, ChangeListener, Listed, RecordKey, Store, StoreError, Stored, Written,
};

/// A store that takes one record a batch. See the [module documentation](self).
pub struct SingleRecordStore {
    inner: Arc<dyn Store>,
}

impl SingleRecordStore {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner }
    }
}

impl Store for SingleRecordStore {
    fn read(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        self.inner.read(key)
    }

    fn write(&self, batch: Batch) -> Result<Written, StoreError> {
        if 1 < batch.records.len() {
            return Err(StoreError::Unavailable {
                detail: "one record a batch".to_owned(),
            });
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

    fn watch(&self, _: ChangeListener) -> bool {
        false
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            atomic_batch: false,
            feed: false,
            ..self.inner.capabilities()
        }
    }

    fn report(&self, report: &mut Report) {
        self.inner.report(report);
    }

    fn healthy(&self) -> bool {
        self.inner.healthy()
    }
}
