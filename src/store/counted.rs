//! A wrapper that counts what is asked of a store and how it answers, for whoever watches the daemon.
//!
//! It stands above retries: an error that was mended by trying again is none here. It costs an atomic addition a call, or
//! two when something is wrong, and is left out when nobody watches. What goes wrong inside a streamed body, after it was
//! begun, is not seen.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Batch, BodyId, BodyWriter, Capabilities, ChangeListener, Listed, RecordKey, Store, StoreError, Stored, Written,
};
use crate::metrics::{Counter, Report, level_of};

const OPERATIONS: [&str; 5] = ["read", "write", "list", "body_writer", "body_reader"];
const KINDS: [&str; 5] = ["not_done", "unknown", "corrupt", "unavailable", "body_missing"];

/// A store that counts. See the [module documentation](self).
pub struct CountedStore {
    inner: Arc<dyn Store>,
    calls: [Counter; OPERATIONS.len()],
    errors: [Counter; KINDS.len()],
    refused: Counter,
}

/// An index into [`OPERATIONS`].
#[derive(Clone, Copy)]
enum Operation {
    Read,
    Write,
    List,
    BodyWriter,
    BodyReader,
}

impl CountedStore {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            calls: OPERATIONS.map(|_| Counter::new()),
            errors: KINDS.map(|_| Counter::new()),
            refused: Counter::new(),
        }
    }

    fn counted<T>(&self, operation: Operation, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        self.calls[operation as usize].add(1);
        if let Err(error) = &answer {
            let kind = match error {
                StoreError::NotDone { .. } => 0,
                StoreError::Unknown { .. } => 1,
                StoreError::Corrupt { .. } => 2,
                StoreError::Unavailable { .. } => 3,
                StoreError::BodyMissing { .. } => 4,
            };
            self.errors[kind].add(1);
        }
        answer
    }
}

impl Store for CountedStore {
    fn read(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        self.counted(Operation::Read, self.inner.read(key))
    }

    fn write(&self, batch: Batch) -> Result<Written, StoreError> {
        let answer = self.counted(Operation::Write, self.inner.write(batch));
        if matches!(answer, Ok(Written::Refused { .. })) {
            self.refused.add(1);
        }
        answer
    }

    fn list(&self, prefix: &str, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.counted(Operation::List, self.inner.list(prefix, after, limit))
    }

    fn body_writer(&self) -> Result<Box<dyn BodyWriter>, StoreError> {
        self.counted(Operation::BodyWriter, self.inner.body_writer())
    }

    fn body_reader(&self, body: &BodyId) -> Result<Box<dyn Read + Send>, StoreError> {
        self.counted(Operation::BodyReader, self.inner.body_reader(body))
    }

    fn leftovers(&self, older_than: Duration) -> Result<Vec<BodyId>, StoreError> {
        self.counted(Operation::List, self.inner.leftovers(older_than))
    }

    fn watch(&self, listener: ChangeListener) -> bool {
        self.inner.watch(listener)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn report(&self, report: &mut Report) {
        for (operation, count) in OPERATIONS.iter().zip(&self.calls) {
            let help = "Calls of the store, whatever came of them.";
            report.count("lockd_store_calls", help, &[("operation", operation)], count.get());
        }
        for (kind, count) in KINDS.iter().zip(&self.errors) {
            let help = "Calls that the store could not answer, after all retries.";
            report.count("lockd_store_errors", help, &[("kind", kind)], count.get());
        }
        let help = "Writes that were refused because their precondition did not hold: two wanted the same.";
        report.count("lockd_store_refusals", help, &[], self.refused.get());
        let help = "1 while the store serves.";
        report.level(
            "lockd_store_healthy",
            help,
            &[],
            level_of(usize::from(self.inner.healthy())),
        );
        self.inner.report(report);
    }

    fn healthy(&self) -> bool {
        self.inner.healthy()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fault::{Fault, FaultPlan, FaultStore, Operation};
    use super::super::memory::MemoryStore;
    use super::super::{Change, Precondition, RecordWrite};
    use super::*;
    use crate::metrics::Value;

    #[test]
    fn calls_errors_and_refusals_are_counted() {
        let faulty = FaultStore::new(Arc::new(MemoryStore::new()), FaultPlan::quiet(1), Arc::new(|_| ()));
        faulty.inject(Operation::Write, 1, Fault::FailBefore);
        faulty.inject(Operation::Write, 3, Fault::LoseAnswer);
        faulty.inject(Operation::Read, 1, Fault::Refuse);
        let store = CountedStore::new(Arc::new(faulty));
        let create = |name: &str| Batch {
            records: vec![RecordWrite {
                key: RecordKey::new(name),
                precondition: Precondition::Absent,
                change: Change::Put(Arc::from(&b"value"[..])),
            }],
            ..Batch::default()
        };
        store.write(create("a")).unwrap_err();
        store.write(create("a")).unwrap();
        store.write(create("b")).unwrap_err();
        assert_eq!(store.write(create("b")), Ok(Written::Refused { index: 0 }));
        store.read(&RecordKey::new("a")).unwrap_err();
        let body = BodyId::new("none");
        assert!(store.body_reader(&body).is_err());

        let mut report = Report::new();
        store.report(&mut report);
        let told = |name: &str, label: &str| {
            let family = report.families().iter().find(|family| family.name == name).unwrap();
            let labelled = |labels: &[(&str, String)]| labels.first().map_or("", |(_, text)| text) == label;
            let sample = family.samples.iter().find(|(labels, _)| labelled(labels));
            sample.unwrap().1.clone()
        };
        assert_eq!(told("lockd_store_calls", "write"), Value::Count(4));
        assert_eq!(told("lockd_store_calls", "read"), Value::Count(1));
        assert_eq!(told("lockd_store_refusals", ""), Value::Count(1));
        for (kind, count) in [
            ("not_done", 1),
            ("unknown", 1),
            ("corrupt", 0),
            ("unavailable", 1),
            ("body_missing", 1),
        ] {
            assert_eq!(told("lockd_store_errors", kind), Value::Count(count), "{kind}");
        }
        assert_eq!(told("lockd_store_healthy", ""), Value::Level(1.0));
    }
}
