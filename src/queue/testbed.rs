//! What tests of queues begin with: a store behind a wrapper that can make it fail, a clock that stands still, services on
//! top, and a listener that remembers what it heard.

use std::io::Read;
use std::sync::Arc;

use parking_lot::Mutex;

use super::rules::{Holder, Intent, Nack, NewMessage, StateHolder};
use super::{DeliverRequest, Delivered, EnqueueMeta, Enqueued, NotDelivered, Queues};
use crate::clock::{ManualClock, SharedClock};
use crate::error::Error;
use crate::ids::{IdMaker, Xid};
use crate::keys::{Key, MessageId, Namespace, QueueId, QueueName, RecordKey};
use crate::lease::rules::{Credentials, Expected};
use crate::lease::table::{KeyName, KeyTable};
use crate::lease::{Leases, TtlLimits, Wanted};
use crate::news::{Listener, News};
use crate::record::Attributes;
use crate::state::{Announced, OutgoingBytes, StateLimits, States};
use crate::store::Store;
use crate::store::fault::{FaultPlan, FaultStore};
use crate::store::memory::MemoryStore;

/// A payload above this many bytes is streamed into the store while it arrives.
pub(crate) const SPOOL_BYTES: usize = 16 * 1024;
/// One payload of each kind: none, inside the record, in one batch with it, streamed ahead of it.
pub(crate) const SIZES: [usize; 4] = [0, 100, 6_000, 50_000];

/// One server's services.
pub(crate) struct Bed {
    pub(crate) store: Arc<FaultStore>,
    pub(crate) queues: Queues,
    pub(crate) leases: Leases,
    pub(crate) states: States,
    pub(crate) table: Arc<KeyTable>,
    pub(crate) heard: Arc<Heard>,
    /// A memory store, if that is what is underneath, and the clock that the test moves, if it does.
    pub(crate) memory: Option<MemoryStore>,
    pub(crate) clock: Arc<ManualClock>,
}

/// Remembers what it was told.
#[derive(Default)]
pub(crate) struct Heard(Mutex<Vec<News>>);

impl Heard {
    /// What was told since the last call.
    pub(crate) fn take(&self) -> Vec<News> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Listener for Heard {
    fn lease_ended(&self, _: &RecordKey) {}

    fn visible(&self, queue: &QueueId, id: MessageId, from_ms: i64) {
        let queue = queue.clone();
        self.0.lock().push(News::Visible { queue, id, from_ms });
    }

    fn gone(&self, queue: &QueueId, id: MessageId) {
        let queue = queue.clone();
        self.0.lock().push(News::Gone { queue, id });
    }
}

impl Bed {
    /// Services over a memory store of their own, at a round second.
    pub(crate) fn new() -> Self {
        let memory = MemoryStore::new();
        let clock = ManualClock::at_wall_ms(1_767_261_600_000);
        let mut bed = Self::over(Arc::new(memory.handle()), clock.clone(), clock, FaultPlan::quiet(0));
        bed.memory = Some(memory);
        bed
    }

    /// Services over any store.
    pub(crate) fn over(store: Arc<dyn Store>, shared: SharedClock, clock: Arc<ManualClock>, plan: FaultPlan) -> Self {
        let store = Arc::new(FaultStore::new(store, plan, Arc::new(|_| {})));
        let heard = Arc::new(Heard::default());
        let table = KeyTable::new(store.clone(), shared.clone(), heard.clone());
        let (table, ids) = (Arc::new(table), Arc::new(IdMaker::new(shared)));
        let ttl = TtlLimits {
            default_seconds: 30,
            max_seconds: 1800,
        };
        let limits = StateLimits {
            raw_bytes_max: 1 << 20,
            spool_bytes_max: SPOOL_BYTES,
        };
        Self {
            store,
            queues: Queues::new(table.clone(), ids.clone(), SPOOL_BYTES),
            leases: Leases::new(table.clone(), ids.clone(), ttl),
            states: States::new(table.clone(), ids, limits),
            table,
            heard,
            memory: None,
            clock,
        }
    }

    pub(crate) fn enqueue(&self, payload: &[u8], message: NewMessage) -> Result<Enqueued, Error> {
        let mut writer = self.queues.enqueue_writer(EnqueueMeta {
            queue: queue(),
            message,
        });
        for piece in payload.chunks(1000) {
            writer.push(piece)?;
        }
        writer.finish()
    }

    /// A message with defaults and a small payload.
    #[track_caller]
    pub(crate) fn message(&self) -> MessageId {
        self.enqueue(b"hello", message()).expect("a good store takes it").id
    }

    pub(crate) fn deliver(&self, id: MessageId) -> Result<Delivered, NotDelivered> {
        self.queues.deliver(&queue(), id, &request(30))
    }

    /// The same, and insists.
    #[track_caller]
    pub(crate) fn take(&self, id: MessageId) -> (Delivered, Holder) {
        let delivered = self.deliver(id).expect("the message can be delivered");
        let by = holder(&delivered);
        (delivered, by)
    }

    /// The same with state.
    #[track_caller]
    pub(crate) fn take_with_state(&self, id: MessageId) -> (Delivered, Holder) {
        self.take_as(
            id,
            &DeliverRequest {
                with_state: true,
                ..request(30)
            },
        )
    }

    /// The same as asked for.
    #[track_caller]
    pub(crate) fn take_as(&self, id: MessageId, request: &DeliverRequest) -> (Delivered, Holder) {
        let delivered = (self.queues.deliver(&queue(), id, request)).expect("the message can be delivered");
        let by = holder(&delivered);
        (delivered, by)
    }

    /// Stages a state under the lease that came along with a message.
    pub(crate) fn save(&self, delivered: &Delivered, state: &str) -> Result<(), Error> {
        let mut incoming = self.states.incoming(Announced::default());
        incoming.push(state.as_bytes())?;
        let arrived = incoming.finish()?;
        let name = state_name(delivered.id);
        let (by, expected) = (state_credentials(delivered), Expected::default());
        (self.states)
            .update(&name, &by, &expected, arrived, Attributes::default())
            .map(drop)
    }

    /// The state as the consumer of a message sees it.
    pub(crate) fn load(&self, delivered: &Delivered) -> Result<Option<String>, Error> {
        let by = state_credentials(delivered);
        let outgoing = self.states.read_leased(&state_name(delivered.id), &by)?;
        Ok(outgoing.map(|outgoing| match outgoing.bytes {
            OutgoingBytes::Whole(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            OutgoingBytes::Stream(_) => unreachable!("these states are small"),
        }))
    }

    /// Leases an ordinary key and stages a state on it.
    pub(crate) fn stage(&self, key: &str, txn_id: Option<&Xid>, state: &str) -> (KeyName, Credentials) {
        let name = KeyName {
            namespace: queue().namespace,
            key: Key::parse(key).unwrap(),
        };
        let wanted = Wanted {
            name: name.clone(),
            owner: "test".to_owned(),
            ttl_seconds: 30,
            create_only: false,
            txn_id: txn_id.cloned(),
        };
        let granted = self.leases.acquire(&wanted).unwrap();
        let lease = granted.lease.unwrap();
        let by = Credentials {
            lease_id: lease.id.as_str().to_owned(),
            fencing_token: granted.fencing_token,
            txn_id: Some(lease.txn_id.as_str().to_owned()),
        };
        let mut incoming = self.states.incoming(Announced::default());
        incoming.push(state.as_bytes()).unwrap();
        let arrived = incoming.finish().unwrap();
        let expected = Expected::default();
        (self.states)
            .update(&name, &by, &expected, arrived, Attributes::default())
            .unwrap();
        (name, by)
    }

    /// What everybody sees of a key: its committed version, and whether it is leased.
    #[track_caller]
    pub(crate) fn key(&self, name: &KeyName) -> (i64, bool) {
        let record = self.table.read(name).unwrap().expect("the key has a record");
        (record.version, record.lease.is_some())
    }

    /// The bytes that a message carries.
    pub(crate) fn bytes(&self, delivered: &Delivered) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut reader = self.queues.payload(&delivered.record).open().unwrap();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// The names of all records.
    pub(crate) fn record_names(&self) -> Vec<String> {
        let rows = self.store.list("", None, usize::MAX).unwrap();
        rows.into_iter().map(|row| row.key.as_str().to_owned()).collect()
    }
}

/// The queue of all these tests.
pub(crate) fn queue() -> QueueId {
    QueueId {
        namespace: Namespace::parse("default").unwrap(),
        queue: QueueName::parse("orders").unwrap(),
    }
}

/// The key of a message's state.
pub(crate) fn state_name(id: MessageId) -> KeyName {
    KeyName {
        namespace: queue().namespace,
        key: crate::keys::queue_state_key(&queue().queue, id),
    }
}

pub(crate) fn message() -> NewMessage {
    NewMessage {
        correlation_id: "c-1".into(),
        ..NewMessage::default()
    }
}

pub(crate) fn request(visibility_seconds: i64) -> DeliverRequest {
    DeliverRequest {
        owner: "worker".into(),
        visibility_seconds,
        txn_id: None,
        with_state: false,
    }
}

pub(crate) fn in_txn(txn_id: &Xid) -> DeliverRequest {
    DeliverRequest {
        txn_id: Some(txn_id.clone()),
        ..request(30)
    }
}

/// A transaction that a client names.
pub(crate) fn txn(last: char) -> Xid {
    Xid::parse(&format!("d4k7q2m0h5r8e1t6n9{last}g")).unwrap()
}

/// What a consumer sends along to read and change the state of its message.
pub(crate) fn state_credentials(delivered: &Delivered) -> Credentials {
    let state = delivered.state.as_ref().expect("the message was delivered with state");
    let lease = delivered.record.lease.as_ref().expect("a delivery holds a lease");
    Credentials {
        lease_id: state.lease_id.as_str().to_owned(),
        fencing_token: state.fencing_token,
        txn_id: Some(lease.txn_id.as_str().to_owned()),
    }
}

/// What a consumer can prove after a delivery.
pub(crate) fn holder(delivered: &Delivered) -> Holder {
    let lease = delivered.record.lease.as_ref().expect("a delivery holds a lease");
    Holder {
        lease_id: lease.id.as_str().to_owned(),
        fencing_token: delivered.record.fencing_token,
        txn_id: Some(lease.txn_id.as_str().to_owned()),
        meta_etag: Some(delivered.record.meta_etag()),
        state: delivered.state.as_ref().map(|state| StateHolder {
            lease_id: state.lease_id.as_str().to_owned(),
            fencing_token: Some(state.fencing_token),
        }),
        state_etag: delivered
            .state
            .as_ref()
            .map(|state| state.state_etag.as_ref().to_owned()),
    }
}

pub(crate) fn failure() -> Nack {
    Nack {
        intent: Intent::Failure,
        delay_seconds: 0,
        last_error: None,
    }
}

pub(crate) fn deferral() -> Nack {
    Nack {
        intent: Intent::Defer,
        delay_seconds: 0,
        last_error: None,
    }
}
