//! Records of keys over a store: read, decide, write if nothing has changed, or start again.
//!
//! Every change of a key goes through [`KeyTable::change`]. Within the process, calls on one key take their turn at a
//! striped lock, so that contention costs a queue and not a storm of failed writes; between processes the conditional
//! write decides. The table also keeps the transaction records in step, in the same batch, and tells whoever waits when
//! a lease has ended.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::SharedClock;
use crate::error::Error;
use crate::ids::Xid;
use crate::keys::{self, Key, Namespace};
use crate::lease::rules::{Now, Refused};
use crate::queue::{News, QueueChanges};
use crate::record::{
    KeyRecord, LeaseRecord, Participant, RetiredRecord, Subject, TxnRecord, decode_key, decode_message, decode_retired,
    decode_txn, encode_key, encode_txn,
};
use crate::store::{
    Batch, BodyId, Change, Etag, Precondition, RecordKey, RecordWrite, Store, StoreError, Stored, Written,
};
use crate::txn;
use crate::txn::rules::Leased;

/// How often a change may lose its race against other writers before it gives up.
const ROUNDS_MAX: usize = 100;
const STRIPES: usize = 256;

/// Hears of keys whose lease has ended or will end sooner than it seemed. Must be quick: it runs inside the write.
pub trait LeaseEnds: Send + Sync {
    /// The lease on this key's record may be over.
    fn lease_ended(&self, key: &RecordKey);
}

/// A key in its namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyName {
    /// Namespace.
    pub namespace: Namespace,
    /// Key.
    pub key: Key,
}

impl KeyName {
    /// Where its record lives.
    pub fn record_key(&self) -> RecordKey {
        keys::key_record(&self.namespace, &self.key)
    }

    fn member(&self, lease_id: &Xid, enlisted: bool) -> Participant {
        Participant {
            subject: self.subject(),
            lease_id: lease_id.clone(),
            enlisted,
        }
    }

    /// This key as one that can take part in a transaction.
    pub fn subject(&self) -> Subject {
        Subject::Key {
            namespace: self.namespace.clone(),
            key: self.key.clone(),
        }
    }

    /// The key that takes part, if it is one.
    pub fn of(subject: &Subject) -> Option<KeyName> {
        match subject {
            Subject::Key { namespace, key } => Some(KeyName {
                namespace: namespace.clone(),
                key: key.clone(),
            }),
            Subject::Message { .. } => None,
        }
    }
}

/// Reads and changes key records. One per server.
pub struct KeyTable {
    store: Arc<dyn Store>,
    clock: SharedClock,
    waiters: Arc<dyn LeaseEnds>,
    queues: Arc<dyn QueueChanges>,
    stripes: Vec<Mutex<()>>,
    hasher: RandomState,
}

/// What one round of a change decides.
pub enum Step<T> {
    /// Nothing is written.
    Answer(T),
    /// The key's record becomes this one; afterwards the answer is given.
    Write(Box<KeyRecord>, T),
    /// The key's record and others become these; the view has collected them.
    WriteAll(Result<T, Error>),
}

impl KeyTable {
    /// A table over a store. Engines without atomic batches cannot keep transactions in step yet and are refused.
    ///
    /// `waiters` and `queues` hear of what other calls may be waiting for.
    pub fn new(
        store: Arc<dyn Store>,
        clock: SharedClock,
        waiters: Arc<dyn LeaseEnds>,
        queues: Arc<dyn QueueChanges>,
    ) -> Result<Self, StoreError> {
        if !store.capabilities().atomic_batch {
            return Err(StoreError::Unavailable {
                detail: "the store has no atomic batches".to_owned(),
            });
        }
        let stripes = (0..STRIPES).map(|_| Mutex::new(())).collect();
        Ok(Self {
            store,
            clock,
            waiters,
            queues,
            stripes,
            hasher: RandomState::new(),
        })
    }

    /// The store underneath.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The time, for rules.
    pub fn now(&self) -> Now {
        Now {
            ms: self.clock.wall_ms(),
        }
    }

    /// Reads the record of a key.
    pub fn read(&self, name: &KeyName) -> Result<Option<KeyRecord>, Error> {
        Ok(self.read_key(&name.record_key())?.map(|(record, _)| record))
    }

    /// Changes a key: calls `decide` with a view of its record until what it decides could be written.
    ///
    /// `bodies` are written along with the record that names them. Bodies that the changed records named before and no
    /// longer name are dropped.
    pub fn change<T>(
        &self,
        name: &KeyName,
        bodies: &[(BodyId, Arc<[u8]>)],
        mut decide: impl FnMut(&mut View<'_>) -> Result<Step<T>, Error>,
    ) -> Result<T, Error> {
        let record_key = name.record_key();
        let stripe = usize::try_from(self.hasher.hash_one(&record_key) % STRIPES as u64).unwrap_or(0);
        let _turn = self.stripes[stripe].lock();
        for _ in 0..ROUNDS_MAX {
            let found = self.read_key(&record_key)?;
            let mut view = View::new(self, Some(name));
            view.read.push((record_key.clone(), found));
            let (answer, bodies) = match decide(&mut view) {
                Ok(Step::Answer(answer)) => return Ok(answer),
                Ok(Step::Write(record, answer)) => {
                    view.put_key(name, &record)?;
                    (Ok(answer), bodies)
                }
                Ok(Step::WriteAll(answer)) => (answer, bodies),
                Err(Error::Refused(Refused {
                    cleared: Some(record),
                    reason,
                    version,
                    etag,
                })) => {
                    view.put_key(name, &record)?;
                    let refusal = Refused {
                        cleared: None,
                        reason,
                        version,
                        etag,
                    };
                    // What is written is the clearing alone: no record names the bodies of a refused change.
                    (Err(Error::Refused(refusal)), &[][..])
                }
                Err(other) => return Err(other),
            };
            if view.commit(bodies)? {
                return answer;
            }
        }
        Err(Error::Contended)
    }

    /// Changes records of which no single key stands at the centre: calls `decide` with a view until everything it has put
    /// there could be written in one step. If it has put nothing, or fails, nothing is written.
    ///
    /// No turn is taken, so this is for records that are not fought for.
    pub fn transact<T>(
        &self,
        bodies: &[(BodyId, Arc<[u8]>)],
        mut decide: impl FnMut(&mut View<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        for _ in 0..ROUNDS_MAX {
            let mut view = View::new(self, None);
            let answer = decide(&mut view)?;
            if view.is_unchanged() || view.commit(bodies)? {
                return Ok(answer);
            }
        }
        Err(Error::Contended)
    }

    /// Drops bodies that no record names.
    pub fn drop_bodies(&self, drop_bodies: Vec<BodyId>) -> Result<(), Error> {
        if !drop_bodies.is_empty() {
            self.store.write(Batch {
                drop_bodies,
                ..Batch::default()
            })?;
        }
        Ok(())
    }

    fn read_key(&self, record_key: &RecordKey) -> Result<Option<(KeyRecord, Etag)>, Error> {
        let Some(stored) = self.store.read(record_key)? else {
            return Ok(None);
        };
        match decode_key(&stored.value) {
            Ok(record) => Ok(Some((record, stored.etag))),
            Err(cause) => Err(Error::CorruptRecord {
                key: record_key.clone(),
                cause,
            }),
        }
    }

    /// The leases that take part in the transaction of this record; none if it is gone.
    pub fn members(&self, txn_record: &RecordKey) -> Result<Vec<Participant>, Error> {
        Ok(self
            .read_txn(txn_record)?
            .map(|(record, _)| record.participants)
            .unwrap_or_default())
    }

    fn read_txn(&self, record_key: &RecordKey) -> Result<Option<(TxnRecord, Etag)>, Error> {
        let Some(stored) = self.store.read(record_key)? else {
            return Ok(None);
        };
        match decode_txn(&stored.value) {
            Ok(record) => Ok(Some((record, stored.etag))),
            Err(cause) => Err(Error::CorruptRecord {
                key: record_key.clone(),
                cause,
            }),
        }
    }
}

/// What one round of a change has read and wants to write.
pub struct View<'a> {
    table: &'a KeyTable,
    /// The key that is being changed, if there is one that stands at the centre.
    name: Option<&'a KeyName>,
    now: Now,
    /// The keys that have been read so far; the one that is being changed comes first.
    read: Vec<(RecordKey, Option<(KeyRecord, Etag)>)>,
    /// Records of another kind that have been read so far.
    stored: Vec<(RecordKey, Option<Stored>)>,
    writes: Vec<PendingWrite>,
    /// Transactions as they will be. Several leases of one batch may belong to the same one.
    txns: Vec<PendingTxn>,
}

struct PendingWrite {
    write: RecordWrite,
    dropped: Vec<BodyId>,
    tells: Tells,
}

struct PendingTxn {
    txn_id: Xid,
    record: TxnRecord,
    precondition: Precondition,
}

/// Who must hear of a write once it is done.
enum Tells {
    Nobody,
    /// Whoever waits for the lease on this key.
    LeaseEnded,
    /// Whoever waits for messages of this queue.
    Queue(News),
}

impl<'a> View<'a> {
    fn new(table: &'a KeyTable, name: Option<&'a KeyName>) -> Self {
        Self {
            table,
            name,
            now: table.now(),
            read: Vec::new(),
            stored: Vec::new(),
            writes: Vec::with_capacity(2),
            txns: Vec::new(),
        }
    }

    fn is_unchanged(&self) -> bool {
        self.writes.is_empty() && self.txns.is_empty()
    }

    /// The time of this round.
    pub fn now(&self) -> Now {
        self.now
    }

    /// The record of the key that is being changed.
    pub fn record(&self) -> Option<&KeyRecord> {
        self.name
            .and(self.read.first())
            .and_then(|(_, found)| found.as_ref())
            .map(|(record, _)| record)
    }

    /// The record of another key.
    pub fn other(&mut self, name: &KeyName) -> Result<Option<KeyRecord>, Error> {
        Ok(self.load(name)?.map(|(record, _)| record.clone()))
    }

    /// A record of another kind than a key's or a transaction's. Within a round it is always the same.
    pub fn stored(&mut self, record_key: &RecordKey) -> Result<Option<Stored>, Error> {
        if let Some((_, found)) = self.stored.iter().find(|(known, _)| known == record_key) {
            return Ok(found.clone());
        }
        let found = self.table.store.read(record_key)?;
        self.stored.push((record_key.clone(), found.clone()));
        Ok(found)
    }

    /// What a member of a transaction has leased, as it is kept.
    pub fn leased(&mut self, subject: &Subject) -> Result<Option<Leased>, Error> {
        match subject {
            Subject::Key { .. } => {
                let Some(name) = KeyName::of(subject) else {
                    return Ok(None);
                };
                Ok(self.other(&name)?.map(Leased::Key))
            }
            Subject::Message { queue, id } => {
                let record_key = keys::message_record(queue, *id);
                let Some(stored) = self.stored(&record_key)? else {
                    return Ok(None);
                };
                match decode_message(&stored.value) {
                    Ok(record) => Ok(Some(Leased::Message(record))),
                    Err(cause) => Err(Error::CorruptRecord { key: record_key, cause }),
                }
            }
        }
    }

    /// What is kept of the deleted keys of a namespace; nothing if none was deleted.
    pub fn retired(&self, namespace: &Namespace) -> Result<(RetiredRecord, Option<Etag>), Error> {
        let key = keys::retired_record(namespace);
        let Some(stored) = self.table.store.read(&key)? else {
            return Ok((RetiredRecord::default(), None));
        };
        match decode_retired(&stored.value) {
            Ok(record) => Ok((record, Some(stored.etag))),
            Err(cause) => Err(Error::CorruptRecord { key, cause }),
        }
    }

    /// Adds the write of a record of another kind to the batch, with the bodies that no record names after it and what
    /// those who wait for messages must hear of it.
    pub fn put_stored(&mut self, write: RecordWrite, dropped: Vec<BodyId>, news: Option<News>) {
        self.writes.push(PendingWrite {
            write,
            dropped,
            tells: news.map_or(Tells::Nobody, Tells::Queue),
        });
    }

    /// The record of a transaction as it is, or as this round has left it; an empty one if there is none.
    pub fn txn(&self, txn_id: &Xid) -> Result<(TxnRecord, Option<Etag>), Error> {
        if let Some(pending) = self.txns.iter().find(|pending| pending.txn_id == *txn_id) {
            let etag = match &pending.precondition {
                Precondition::Matches(etag) => Some(etag.clone()),
                Precondition::Absent | Precondition::Any => None,
            };
            return Ok((pending.record.clone(), etag));
        }
        Ok(self
            .table
            .read_txn(&keys::txn_record(txn_id))?
            .map_or((TxnRecord::default(), None), |(record, etag)| (record, Some(etag))))
    }

    /// Writes a key's record, and whatever its transaction must know of the change: a lease that begins joins, a lease
    /// that ends leaves, a first staging enlists. Not for the members of a decided transaction: see `put_decided`.
    pub fn put_key(&mut self, name: &KeyName, record: &KeyRecord) -> Result<(), Error> {
        let before = self.load(name)?.map(|(before, _)| before);
        let old_lease = before.and_then(|before| before.lease.clone());
        let had_staged = before.is_some_and(|before| before.staged.is_some());
        let same_lease = old_lease.as_ref().map(|lease| &lease.id) == record.lease.as_ref().map(|lease| &lease.id);
        if same_lease {
            if let Some(lease) = record.lease.as_ref().filter(|lease| lease.explicit && !had_staged)
                && record.staged.is_some()
            {
                let (txn, etag) = self.txn(&lease.txn_id)?;
                self.put_txn(
                    &lease.txn_id,
                    &txn::rules::join(&txn, name.member(&lease.id, true)),
                    etag,
                );
            }
        } else {
            self.change_membership(name, old_lease.as_ref(), record.lease.as_ref())?;
        }
        self.put_decided(name, record);
        Ok(())
    }

    /// Writes a key's record and nothing else; its transaction is written by whoever decides it.
    pub fn put_decided(&mut self, name: &KeyName, record: &KeyRecord) {
        self.write_key(name, Some(record));
    }

    /// Deletes a key with its record, and takes its lease out of its transaction. Only for keys that nobody can ever
    /// acquire again, or together with keeping its fencing token: it must not start anew.
    pub fn delete_key(&mut self, name: &KeyName) -> Result<(), Error> {
        let before = self.load(name)?.map(|(before, _)| before);
        if let Some(old) = before.and_then(|before| before.lease.clone()) {
            self.leave(&old.txn_id, &old.id, old.explicit)?;
        }
        self.write_key(name, None);
        Ok(())
    }

    /// The same for a member of a transaction that is being decided.
    pub fn delete_decided(&mut self, name: &KeyName) {
        self.write_key(name, None);
    }

    fn write_key(&mut self, name: &KeyName, record: Option<&KeyRecord>) {
        let record_key = self.record_key(name);
        let before = self.found(&record_key);
        let precondition = match before {
            Some((_, etag)) => Precondition::Matches(etag.clone()),
            None => Precondition::Absent,
        };
        let dropped = before.map_or_else(Vec::new, |(before, _)| {
            before
                .bodies()
                .filter(|old| !record.is_some_and(|record| record.bodies().any(|new| new == *old)))
                .cloned()
                .collect()
        });
        let new_lease = record.and_then(|record| record.lease.as_ref());
        let ends = before.is_some_and(|(before, _)| ends_sooner(before.lease.as_ref(), new_lease));
        let change = record.map_or(Change::Delete, |record| Change::Put(encode_key(record)));
        let pending = PendingWrite {
            write: RecordWrite {
                key: record_key,
                precondition,
                change,
            },
            dropped,
            tells: if ends { Tells::LeaseEnded } else { Tells::Nobody },
        };
        // A batch holds each record once: what is put later in a round takes the place of what was put before.
        match (self.writes.iter_mut()).find(|earlier| earlier.write.key == pending.write.key) {
            Some(earlier) => *earlier = pending,
            None => self.writes.push(pending),
        }
    }

    /// Writes a transaction's record, or deletes it when nobody takes part any more.
    pub fn put_txn(&mut self, txn_id: &Xid, record: &TxnRecord, etag: Option<Etag>) {
        self.set_txn(
            txn_id,
            record.clone(),
            etag.map_or(Precondition::Absent, Precondition::Matches),
        );
    }

    fn set_txn(&mut self, txn_id: &Xid, record: TxnRecord, precondition: Precondition) {
        match self.txns.iter_mut().find(|pending| pending.txn_id == *txn_id) {
            Some(pending) => pending.record = record,
            None => self.txns.push(PendingTxn {
                txn_id: txn_id.clone(),
                record,
                precondition,
            }),
        }
    }

    /// Reads the record of a key, unless it was read before.
    fn load(&mut self, name: &KeyName) -> Result<Option<&(KeyRecord, Etag)>, Error> {
        let record_key = self.record_key(name);
        if !self.read.iter().any(|(known, _)| *known == record_key) {
            let found = self.table.read_key(&record_key)?;
            self.read.push((record_key.clone(), found));
        }
        Ok(self.found(&record_key))
    }

    fn found(&self, record_key: &RecordKey) -> Option<&(KeyRecord, Etag)> {
        self.read
            .iter()
            .find(|(known, _)| known == record_key)
            .and_then(|(_, found)| found.as_ref())
    }

    fn record_key(&self, name: &KeyName) -> RecordKey {
        match self.read.first() {
            Some((own, _)) if self.name == Some(name) => own.clone(),
            _ => name.record_key(),
        }
    }

    fn change_membership(
        &mut self,
        name: &KeyName,
        old: Option<&LeaseRecord>,
        new: Option<&LeaseRecord>,
    ) -> Result<(), Error> {
        if let (Some(old), Some(new)) = (old, new)
            && old.txn_id == new.txn_id
        {
            let (txn, etag) = self.txn(&old.txn_id)?;
            let txn = txn::rules::join(&txn::rules::lose(&txn, &old.id), name.member(&new.id, false));
            self.put_txn(&new.txn_id, &txn, etag);
            return Ok(());
        }
        if let Some(old) = old {
            self.leave(&old.txn_id, &old.id, old.explicit)?;
        }
        if let Some(new) = new {
            self.join(&new.txn_id, name.member(&new.id, false), new.explicit)?;
        }
        Ok(())
    }

    /// A lease leaves its transaction without a decision. `explicit`: the transaction was named and may have other members.
    pub fn leave(&mut self, txn_id: &Xid, lease_id: &Xid, explicit: bool) -> Result<(), Error> {
        if !explicit {
            // A minted transaction has one member, and whoever joins it turns that member's lease explicit in the same
            // batch: this round would lose its race on the key's record.
            self.set_txn(txn_id, TxnRecord::default(), Precondition::Any);
            return Ok(());
        }
        let (txn, etag) = self.txn(txn_id)?;
        if etag.is_none() {
            return Ok(());
        }
        let mut left = txn::rules::lose(&txn, lease_id);
        // Once nobody of the transaction lives, there is nothing left to decide and its record goes.
        let mut somebody_lives = false;
        for member in left.participants.iter().filter(|member| member.lease_id != *lease_id) {
            let leased = self.leased(&member.subject)?;
            somebody_lives |= txn::rules::is_member_alive(member, leased.as_ref(), self.now);
        }
        if !somebody_lives {
            left.participants.clear();
        }
        self.put_txn(txn_id, &left, etag);
        Ok(())
    }

    /// A lease leaves a transaction as if it had never been part of it: what it has staged is dealt with otherwise.
    pub fn withdraw(&mut self, txn_id: &Xid, lease_id: &Xid) -> Result<(), Error> {
        if let (txn, Some(etag)) = self.txn(txn_id)? {
            self.put_txn(txn_id, &txn::rules::leave(&txn, lease_id), Some(etag));
        }
        Ok(())
    }

    /// A lease joins a transaction; a minted one that begins with it, or one that its holder has named.
    pub fn join(&mut self, txn_id: &Xid, member: Participant, explicit: bool) -> Result<(), Error> {
        let (mut txn, etag) = if explicit {
            self.txn(txn_id)?
        } else {
            (TxnRecord::default(), None)
        };
        // Joining a transaction that acquire minted: from now on the lease that it was minted for is one of several.
        for known in txn.participants.clone() {
            let Some(other) = KeyName::of(&known.subject) else {
                continue;
            };
            let Some(mut key) = self.other(&other)? else { continue };
            let Some(lease) = key
                .lease
                .as_mut()
                .filter(|lease| lease.id == known.lease_id && !lease.explicit)
            else {
                continue;
            };
            lease.explicit = true;
            let enlisted = key.staged.is_some();
            txn = txn::rules::join(&txn, other.member(&known.lease_id, enlisted));
            self.put_decided(&other, &key);
        }
        self.put_txn(txn_id, &txn::rules::join(&txn, member), etag);
        Ok(())
    }

    /// Writes everything in one batch. False: somebody else was quicker, and nothing happened.
    fn commit(self, bodies: &[(BodyId, Arc<[u8]>)]) -> Result<bool, Error> {
        let mut batch = Batch {
            bodies: bodies.to_vec(),
            ..Batch::default()
        };
        let (mut freed, mut news) = (Vec::new(), Vec::new());
        for pending in self.writes {
            match pending.tells {
                Tells::Nobody => {}
                Tells::LeaseEnded => freed.push(pending.write.key.clone()),
                Tells::Queue(heard) => news.push(heard),
            }
            batch.drop_bodies.extend(pending.dropped);
            batch.records.push(pending.write);
        }
        batch
            .records
            .extend(self.txns.into_iter().filter_map(PendingTxn::into_write));
        debug_assert!(
            holds_each_record_once(&batch.records),
            "a store may refuse such a batch"
        );
        let own_key = self.name.map(KeyName::record_key);
        let Some(witness) = Witness::of(&batch.records, own_key.as_ref()) else {
            return Ok(true);
        };
        match self.table.store.write(batch) {
            Ok(Written::Refused { .. }) => return Ok(false),
            Ok(Written::Done(_)) => {}
            Err(unknown @ StoreError::Unknown { .. }) => {
                // If the witness reads as it was to be written, the whole batch was done. If it does not, the batch may
                // still arrive, so it is neither repeated nor taken for undone.
                if !witness.was_written(&*self.table.store) {
                    return Err(unknown.into());
                }
            }
            Err(other) => return Err(other.into()),
        }
        for key in &freed {
            self.table.waiters.lease_ended(key);
        }
        for heard in &news {
            heard.tell(&*self.table.queues);
        }
        Ok(true)
    }
}

impl PendingTxn {
    /// `None` if nobody joined and there was no record before.
    fn into_write(self) -> Option<RecordWrite> {
        let change = if self.record.participants.is_empty() {
            if self.precondition == Precondition::Absent {
                return None;
            }
            Change::Delete
        } else {
            Change::Put(encode_txn(&self.record))
        };
        Some(RecordWrite {
            key: keys::txn_record(&self.txn_id),
            precondition: self.precondition,
            change,
        })
    }
}

/// The record of a batch that tells afterwards whether the batch was done.
struct Witness {
    key: RecordKey,
    /// `None`: it is not there any more.
    value: Option<Arc<[u8]>>,
}

impl Witness {
    /// The record at the centre, else one that holds something new, else one that is gone. The last tells little: somebody
    /// else may have removed it; but then a batch that only removes things has nothing left to do.
    fn of(records: &[RecordWrite], own_key: Option<&RecordKey>) -> Option<Self> {
        let is_put = |write: &&RecordWrite| matches!(write.change, Change::Put(_));
        let chosen = (records.iter().filter(is_put))
            .find(|write| Some(&write.key) == own_key)
            .or_else(|| records.iter().find(is_put))
            .or_else(|| records.first())?;
        Some(Self {
            key: chosen.key.clone(),
            value: match &chosen.change {
                Change::Put(value) => Some(Arc::clone(value)),
                Change::Delete => None,
            },
        })
    }

    fn was_written(&self, store: &dyn Store) -> bool {
        store
            .read(&self.key)
            .is_ok_and(|found| found.map(|found| found.value) == self.value)
    }
}

fn holds_each_record_once(records: &[RecordWrite]) -> bool {
    (records.iter().enumerate()).all(|(at, write)| records[..at].iter().all(|earlier| earlier.key != write.key))
}

/// True when whoever waits for the old lease to end need not wait that long any more.
fn ends_sooner(old: Option<&LeaseRecord>, new: Option<&LeaseRecord>) -> bool {
    match (old, new) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(old), Some(new)) => new.id == old.id && new.expires_at_unix < old.expires_at_unix,
    }
}
