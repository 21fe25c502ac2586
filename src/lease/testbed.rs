//! What tests of the services over records begin with: a memory store behind a wrapper that can make it fail, a clock
//! that stands still, and the services on top.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::rules::{Credentials, Expected};
use super::table::{KeyName, KeyTable};
use super::{Leases, TtlLimits, Wanted};
use crate::clock::ManualClock;
use crate::error::Error;
use crate::ids::{IdMaker, Xid};
use crate::keys::{Key, Namespace, RecordKey};
use crate::keys::{MessageId, QueueId};
use crate::news::Listener;
use crate::record::{Attributes, KeyRecord};
use crate::state::{Announced, OutgoingBytes, StateLimits, States};
use crate::store::Store;
use crate::store::fault::{Fault, FaultPlan, FaultStore, Operation};
use crate::store::memory::MemoryStore;
use crate::store::single::SingleRecordStore;

/// A state above this many bytes is streamed into the store while it arrives.
pub(crate) const SPOOL_BYTES: usize = 8 * 1024;
/// One state of each kind: inside the record, in one batch with it, streamed ahead of it.
pub(crate) const SIZES: [usize; 3] = [100, 6_000, 50_000];

/// One server's services.
pub(crate) struct Testbed {
    /// The store without faults.
    pub(crate) memory: MemoryStore,
    /// The store that the services use.
    pub(crate) faulty: Arc<FaultStore>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) leases: Leases,
    pub(crate) states: States,
    pub(crate) table: Arc<KeyTable>,
    pub(crate) ended: Arc<Ended>,
    /// Happens when the next call with [`Fault::Delay`](crate::store::fault::Fault::Delay) is delayed.
    pub(crate) meanwhile: Meanwhile,
}

/// What somebody else does while a call is delayed.
pub(crate) type Meanwhile = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// Notes which keys were reported free.
#[derive(Default)]
pub(crate) struct Ended(Mutex<Vec<String>>);

impl Ended {
    /// The keys that were reported since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Listener for Ended {
    fn lease_ended(&self, key: &RecordKey) {
        self.0.lock().push(key.as_str().to_owned());
    }

    fn visible(&self, _: &QueueId, _: MessageId, _: i64) {}

    fn gone(&self, _: &QueueId, _: MessageId) {}
}

impl Testbed {
    /// Services over a store of their own.
    pub(crate) fn new() -> Self {
        Self::over(MemoryStore::new(), ManualClock::at_wall_ms(1_767_261_600_000))
    }

    /// The same over a store that takes one record a batch.
    pub(crate) fn in_steps() -> Self {
        let clock = ManualClock::at_wall_ms(1_767_261_600_000);
        Self::over_store(MemoryStore::new(), clock, |store| {
            Arc::new(SingleRecordStore::new(store))
        })
    }

    /// Another server over the same store, with the same clock.
    pub(crate) fn another(&self) -> Self {
        let clock = Arc::clone(&self.clock);
        if self.table.committer().in_steps() {
            return Self::over_store(self.memory.handle(), clock, |store| {
                Arc::new(SingleRecordStore::new(store))
            });
        }
        Self::over(self.memory.handle(), clock)
    }

    /// The same over a store that takes one record a batch, through a wrapper.
    pub(crate) fn another_behind(&self, wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>) -> Self {
        Self::over_store(self.memory.handle(), Arc::clone(&self.clock), |store| {
            wrap(Arc::new(SingleRecordStore::new(store)))
        })
    }

    fn over(memory: MemoryStore, clock: Arc<ManualClock>) -> Self {
        Self::over_store(memory, clock, |store| store)
    }

    fn over_store(
        memory: MemoryStore,
        clock: Arc<ManualClock>,
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
    ) -> Self {
        let meanwhile = Meanwhile::default();
        let delayed = meanwhile.clone();
        let sleep = Arc::new(move |_: Duration| {
            let happens = delayed.lock().take();
            happens.into_iter().for_each(|happens| happens());
        });
        let faulty = Arc::new(FaultStore::new(Arc::new(memory.handle()), FaultPlan::quiet(0), sleep));
        let ended = Arc::new(Ended::default());
        let store: Arc<dyn Store> = wrap(faulty.clone());
        let table = KeyTable::new(store, clock.clone(), ended.clone());
        let (table, ids) = (Arc::new(table), Arc::new(IdMaker::new(clock.clone())));
        let ttl = TtlLimits {
            default_seconds: 30,
            max_seconds: 1800,
        };
        let limits = StateLimits {
            raw_bytes_max: 1 << 20,
            spool_bytes_max: SPOOL_BYTES,
        };
        Self {
            memory,
            faulty,
            clock,
            leases: Leases::new(table.clone(), ids.clone(), ttl),
            states: States::new(table.clone(), ids, limits),
            table,
            ended,
            meanwhile,
        }
    }

    /// This server does so many more writes and then no more, as if it had died.
    pub(crate) fn die_after(&self, writes: u64) {
        let done = self.faulty.calls(Operation::Write);
        for call in 1..=500 {
            self.faulty
                .inject(Operation::Write, done + writes + call, Fault::Refuse);
        }
    }

    /// Asks for a lease of 30 seconds.
    pub(crate) fn acquire(&self, key: &str, txn_id: Option<&Xid>) -> Result<(KeyRecord, Credentials), Error> {
        let granted = self.leases.acquire(&wanted(key, txn_id))?;
        let lease = granted.lease.as_ref().expect("a grant holds a lease");
        let by = Credentials {
            lease_id: lease.id.as_str().to_owned(),
            fencing_token: granted.fencing_token,
            txn_id: Some(lease.txn_id.as_str().to_owned()),
        };
        Ok((granted, by))
    }

    /// The same, and insists.
    #[track_caller]
    pub(crate) fn hold(&self, key: &str) -> Credentials {
        self.acquire(key, None).expect("the key is free").1
    }

    /// The same in a named transaction.
    #[track_caller]
    pub(crate) fn hold_in(&self, key: &str, txn_id: &Xid) -> Credentials {
        self.acquire(key, Some(txn_id)).expect("the key is free").1
    }

    /// Takes a state in and stages it.
    pub(crate) fn update(&self, key: &str, by: &Credentials, state: &str) -> Result<KeyRecord, Error> {
        self.update_if(key, by, state, &Expected::default())
    }

    /// The same under preconditions.
    pub(crate) fn update_if(
        &self,
        key: &str,
        by: &Credentials,
        state: &str,
        expected: &Expected,
    ) -> Result<KeyRecord, Error> {
        let mut incoming = self.states.incoming(Announced::default());
        for piece in state.as_bytes().chunks(1000) {
            incoming.push(piece)?;
        }
        let arrived = incoming.finish()?;
        self.states
            .update(&name(key), by, expected, arrived, Attributes::default())
    }

    /// The state that the holder sees.
    pub(crate) fn read(&self, key: &str, by: &Credentials) -> Result<Option<String>, Error> {
        let Some(outgoing) = self.states.read_leased(&name(key), by)? else {
            return Ok(None);
        };
        let mut text = String::new();
        match outgoing.bytes {
            OutgoingBytes::Whole(bytes) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
            OutgoingBytes::Stream(mut reader) => drop(reader.read_to_string(&mut text).unwrap()),
        }
        Ok(Some(text))
    }

    /// All records as they are, faults or not.
    pub(crate) fn records(&self) -> Vec<(String, Vec<u8>)> {
        let rows = self.memory.list("", None, usize::MAX).unwrap();
        rows.into_iter()
            .map(|row| {
                let value = self
                    .memory
                    .read(&row.key)
                    .unwrap()
                    .expect("nobody deletes meanwhile")
                    .value;
                (row.key.as_str().to_owned(), value.to_vec())
            })
            .collect()
    }

    /// The record of a key as it is.
    #[track_caller]
    pub(crate) fn record(&self, key: &str) -> KeyRecord {
        self.table.read(&name(key)).unwrap().expect("the key has a record")
    }
}

/// A key of the default namespace.
pub(crate) fn name(key: &str) -> KeyName {
    KeyName {
        namespace: Namespace::parse("default").unwrap(),
        key: Key::parse(key).unwrap(),
    }
}

/// A wish for 30 seconds.
pub(crate) fn wanted(key: &str, txn_id: Option<&Xid>) -> Wanted {
    Wanted {
        name: name(key),
        owner: "test".to_owned(),
        ttl_seconds: 30,
        create_only: false,
        txn_id: txn_id.cloned(),
    }
}

/// A transaction that a client names.
pub(crate) fn txn(last: char) -> Xid {
    Xid::parse(&format!("d4k7q2m0h5r8e1t6n9{last}g")).unwrap()
}

/// A state that is this long.
pub(crate) fn state_of(bytes: usize, letter: char) -> String {
    format!("\"{}\"", letter.to_string().repeat(bytes - 2))
}
