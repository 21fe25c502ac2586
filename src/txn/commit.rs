//! How a change of several records reaches the store.
//!
//! Where the store takes several records in one batch, a [`Plan`] is one batch, and that is all there is to say.
//!
//! # In steps
//!
//! An object store changes one record at a time. There a plan is carried out one record after another, in an order in which
//! stopping anywhere leaves something that is true, and that whoever comes next can go on from:
//!
//! 1. **The transaction first.** A lease is listed as a member before it is granted, marked as having staged something
//!    before it does, and marked as lost before what it staged is discarded. So of every key that has staged something in a
//!    transaction of several, the transaction's record knows.
//! 2. **The key second.** This write is the one that grants, renews, stages or ends the lease of this key.
//! 3. **Tidying up last.** Members that have gone are taken off the list.
//!
//! A transaction is **decided** by one write of its record: it takes the decision down, on condition that nobody has joined,
//! staged a first change or been marked as lost since it was read. From then on it is true, whatever happens, and it is
//! carried out: each member that it covers is ended, then the record is cleared of it. Ending a member ends its lease, so
//! what has been done is never done again.
//!
//! A decision may meet a member half-way: listed as having staged something, and not there yet. If its change arrives before
//! the decision is carried out, it is part of it. If not, the decision passes the key by: its lease goes on in the next
//! epoch, which changes its record, so that the change which is on its way is refused by the store, looks again, is listed
//! in that epoch and belongs to the next decision. The epoch is what tells the two apart for whoever is slow to carry the
//! first one out. A message that is about to be delivered is passed by in the same way; it needs no epoch, because each
//! delivery has a lease of its own.
//!
//! Until it is carried out, others may meet it, and they carry it out first:
//!
//! - whoever reads a key that holds staged changes of a named transaction looks at the transaction's record, so that nobody
//!   sees half of a decision after the other half, and nothing that was decided is discarded because its lease has expired.
//!   If the key is not listed there, somebody may have been quicker, and the key is read once more;
//! - whoever wants to change the transaction's record, as everybody must who takes a lapsed message or key over;
//! - a server that starts ([`Committer::finish_what_others_left`]), and every sweep.
//!
//! What is left when a server dies elsewhere in between is harmless: a member that was never granted counts for nothing, and
//! so does one that is marked as about to stage something and has not; a pointer to a lease that was never granted points
//! nowhere. The sweeper takes them away.

use std::sync::Arc;

use super::book::{Entry, Noted, TxnBook};
use super::plan::{Chore, Held, Plan, Tells, Turn, Witness};
use super::rules::{Leased, is_member_alive, leave};
use crate::clock::SharedClock;
use crate::error::Error;
use crate::ids::{BodyId, Xid};
use crate::lease::rules::{Now, cleared};
use crate::lease::view::View;
use crate::news::Listener;
use crate::record::{KeyRecord, LeaseRecord, MessageRecord, Participant, Subject, TxnRecord, decode_key, encode_key};
use crate::store::recent::Recent;
use crate::store::{Batch, Change, Etag, Precondition, RecordKey, RecordWrite, Store, StoreError, Stored, Written};

/// How often carrying out or tidying up may lose its race before it is left to others.
pub(super) const ROUNDS_MAX: usize = 50;
/// A member that was listed so recently may be about to be granted; in seconds.
const GRANT_GRACE_SECONDS: i64 = 60;
/// A pointer that is older and points nowhere is left over; in seconds.
const POINTER_GRACE_SECONDS: i64 = 3600;

/// Reads keys and transactions, and carries plans out.
pub struct Committer {
    store: Arc<dyn Store>,
    book: TxnBook,
    clock: SharedClock,
    listener: Arc<dyn Listener>,
    in_steps: bool,
    /// What holders will soon write again, unless reading is cheap.
    recent: Option<Recent>,
}

impl Committer {
    /// Over this store.
    pub fn new(store: Arc<dyn Store>, clock: SharedClock, listener: Arc<dyn Listener>) -> Self {
        let can = store.capabilities();
        Self {
            book: TxnBook::new(Arc::clone(&store)),
            in_steps: !can.atomic_batch,
            recent: (!can.cheap_reads).then(Recent::default),
            store,
            clock,
            listener,
        }
    }

    /// True where a plan is carried out one record after another.
    pub fn in_steps(&self) -> bool {
        self.in_steps
    }

    /// Where transactions are written down.
    pub fn book(&self) -> &TxnBook {
        &self.book
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

    /// A record as this server has last written it, where reading costs something. It may be out of date: good for nothing but
    /// the condition of a write.
    pub(crate) fn recent(&self, record_key: &RecordKey) -> Option<Stored> {
        self.recent.as_ref()?.get(record_key, self.now().ms)
    }

    /// Reads the record of a key. If it takes part in something that is decided, that is carried out first.
    pub fn read_key(&self, record_key: &RecordKey) -> Result<Option<(KeyRecord, Etag)>, Error> {
        let mut looked_at = None;
        for _ in 0..ROUNDS_MAX {
            let found = self.read_key_as_it_is(record_key)?;
            let Some((record, etag)) = &found else { return Ok(found) };
            let lease = record.lease.as_ref().filter(|lease| lease.explicit);
            let Some(lease) = lease.filter(|_| self.in_steps && record.staged.is_some()) else {
                return Ok(found);
            };
            if looked_at.as_ref() == Some(etag) {
                return Ok(found);
            }
            let entry = self.book.read(&lease.txn_id)?;
            if is_decided(&entry) {
                self.carry_out_entry(&entry, None)?;
            } else if is_listed(&entry, lease) {
                return Ok(found);
            } else {
                // It may have been decided and carried out since the key was read.
                looked_at = Some(etag.clone());
            }
        }
        Err(Error::Contended)
    }

    /// Reads a transaction. If it is decided, that is carried out first.
    pub fn read_txn(&self, txn_id: &Xid) -> Result<Entry, Error> {
        for _ in 0..ROUNDS_MAX {
            let entry = self.book.read(txn_id)?;
            if entry.record().is_none_or(|record| record.decision.is_none()) {
                return Ok(entry);
            }
            self.carry_out_entry(&entry, None)?;
        }
        Err(Error::Contended)
    }

    /// Carries a plan out. False: somebody else was quicker, and the round must begin again.
    pub fn commit(&self, plan: Plan) -> Result<bool, Error> {
        let told: Vec<(RecordKey, Tells)> = (plan.writes.iter())
            .map(|planned| (planned.write.key.clone(), planned.tells.clone()))
            .collect();
        let afterwards = plan.afterwards.clone();
        let is_done = if self.in_steps {
            self.commit_in_steps(plan)?
        } else {
            self.commit_as_batch(plan)?
        };
        if is_done {
            for (key, tells) in &told {
                match tells {
                    Tells::Nobody => {}
                    Tells::LeaseEnded => self.listener.lease_ended(key),
                    Tells::Queue(news) => news.tell(&*self.listener),
                }
            }
            self.do_chores(&afterwards);
        }
        Ok(is_done)
    }

    /// Does what is left to do. What fails is left to whoever meets it.
    pub fn do_chores(&self, chores: &[Chore]) {
        for chore in chores {
            let _ = match chore {
                Chore::CarryOut { txn_id, back } => self.carry_out(txn_id, back.as_deref()).map(drop),
                Chore::Forget { txn_id, lease_id } => self.forget(txn_id, lease_id),
                Chore::EndPointer(txn_id) => self.write_one(self.book.pointer_end(txn_id), &[]).map(drop),
                Chore::EndLease { key, lease_id } => self.end_lease(key, lease_id),
            };
        }
    }

    /// Carries out every decision that was taken and not carried out. For a server that starts, where plans are carried out
    /// in steps; elsewhere there are none.
    pub fn finish_what_others_left(&self) -> Result<(), Error> {
        if !self.in_steps {
            return Ok(());
        }
        self.book.for_each(|noted| {
            if noted.record.decision.is_some() {
                self.carry_out(&noted.txn_id, None)?;
            }
            Ok(true)
        })
    }

    /// Carries out what a transaction has decided and takes it off the record. True: it was decided.
    pub fn carry_out(&self, txn_id: &Xid, back: Option<&(Subject, MessageRecord)>) -> Result<bool, Error> {
        let entry = self.book.read(txn_id)?;
        if is_decided(&entry) {
            self.carry_out_entry(&entry, back)?;
        }
        Ok(is_decided(&entry))
    }

    fn carry_out_entry(&self, entry: &Entry, back: Option<&(Subject, MessageRecord)>) -> Result<(), Error> {
        let Some((record, decision)) = entry.record().and_then(|record| Some((record, record.decision?))) else {
            return Ok(());
        };
        // Messages first: their states follow them.
        let is_message = |member: &&Participant| matches!(member.subject, Subject::Message { .. });
        let covered = || record.participants.iter().filter(|member| member.enlisted);
        let mut remaining = TxnRecord::default();
        for member in covered()
            .filter(is_message)
            .chain(covered().filter(|member| !is_message(member)))
        {
            if super::end_member(self, member, decision, back)? {
                remaining.participants.push(Participant {
                    enlisted: false,
                    ..member.clone()
                });
            }
        }
        for member in record.participants.iter().filter(|member| !member.enlisted) {
            if self.may_be_alive(member)? {
                remaining.participants.push(member.clone());
            }
        }
        // If somebody else has been quicker, the record is as it should be already.
        self.write_txn(entry, remaining)?;
        Ok(())
    }

    /// Takes away what nobody lives of: the record of a transaction without a living member, a pointer that points nowhere.
    /// True: it is gone.
    pub fn sweep(&self, noted: &Noted) -> Result<bool, Error> {
        if self.may_any_be_alive(&noted.record.participants)? {
            return Ok(false);
        }
        if !noted.is_pointer {
            let entry = self.read_txn(&noted.txn_id)?;
            // What was looked at is what goes.
            return Ok(entry.record() == Some(&noted.record) && self.write_txn(&entry, TxnRecord::default())?);
        }
        let age_seconds = self.now().unix().saturating_sub(noted.txn_id.made_at_unix());
        if (age_seconds < POINTER_GRACE_SECONDS && self.in_steps) || self.book.pointer(&noted.txn_id)?.is_none() {
            return Ok(false);
        }
        self.write_one(self.book.pointer_end(&noted.txn_id), &[])
    }

    fn write_txn(&self, entry: &Entry, record: TxnRecord) -> Result<bool, Error> {
        for write in self.book.writes_of(&[(entry.clone(), record)]) {
            if !self.write_one(write, &[])? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn end_lease(&self, key: &RecordKey, lease_id: &Xid) -> Result<(), Error> {
        for _ in 0..ROUNDS_MAX {
            let Some((before, etag)) = self.read_key_as_it_is(key)? else {
                return Ok(());
            };
            if before.lease.as_ref().is_none_or(|lease| lease.id != *lease_id) {
                return Ok(());
            }
            let after = cleared(&before, self.now());
            if self.replace_key(key, etag, &before, &after)? {
                self.listener.lease_ended(key);
                return Ok(());
            }
        }
        Err(Error::Contended)
    }

    fn replace_key(&self, key: &RecordKey, etag: Etag, before: &KeyRecord, after: &KeyRecord) -> Result<bool, Error> {
        let write = RecordWrite {
            key: key.clone(),
            precondition: Precondition::Matches(etag),
            change: Change::Put(encode_key(after)),
        };
        self.write_one(write, &no_longer_named(before, Some(after)))
    }

    /// Takes a lease that has ended off the list. What it had staged and lost stays listed while somebody lives who may
    /// still decide.
    fn forget(&self, txn_id: &Xid, lease_id: &Xid) -> Result<(), Error> {
        for _ in 0..ROUNDS_MAX {
            let entry = self.read_txn(txn_id)?;
            let Some(record) = entry.record() else { return Ok(()) };
            let is_lost = |member: &Participant| member.lost && member.lease_id == *lease_id;
            let mut left = if record.participants.iter().any(is_lost) {
                record.clone()
            } else {
                leave(record, lease_id)
            };
            let others: Vec<Participant> = (left.participants.iter())
                .filter(|member| member.lease_id != *lease_id)
                .cloned()
                .collect();
            if !self.may_any_be_alive(&others)? {
                left.participants.clear();
            }
            if self.write_txn(&entry, left)? {
                return Ok(());
            }
        }
        Err(Error::Contended)
    }

    /// True when the member's lease may be about to be granted.
    pub(super) fn may_come(&self, member: &Participant) -> bool {
        let age_seconds = self.now().unix().saturating_sub(member.lease_id.made_at_unix());
        self.in_steps && !member.lost && (0..GRANT_GRACE_SECONDS).contains(&age_seconds)
    }

    /// True when the member's lease lives, or may be about to be granted.
    fn may_be_alive(&self, member: &Participant) -> Result<bool, Error> {
        Ok(self.may_come(member) || is_member_alive(member, self.leased(member)?.as_ref(), self.now()))
    }

    /// Writes a record as it is, so that every write on condition that it is the same as before is refused. False: somebody
    /// else has changed it. If nobody knows whether it was done, its value does not tell either, so that is an error.
    pub(super) fn touch(&self, key: RecordKey, stored: Stored) -> Result<bool, Error> {
        let write = RecordWrite {
            key,
            precondition: Precondition::Matches(stored.etag),
            change: Change::Put(stored.value),
        };
        let batch = Batch {
            records: vec![write],
            ..Batch::default()
        };
        Ok(matches!(self.store.write(batch)?, Written::Done(_)))
    }

    fn leased(&self, member: &Participant) -> Result<Option<Leased>, Error> {
        View::to_carry_out(self).leased(&member.subject)
    }

    fn may_any_be_alive(&self, members: &[Participant]) -> Result<bool, Error> {
        for member in members {
            if self.may_be_alive(member)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The record of a key, whatever is decided about it.
    pub(crate) fn read_key_as_it_is(&self, record_key: &RecordKey) -> Result<Option<(KeyRecord, Etag)>, Error> {
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

    /// Everything at once.
    fn commit_as_batch(&self, plan: Plan) -> Result<bool, Error> {
        let witness = Witness::of(&plan.writes);
        let held: Vec<Held> = plan.writes.iter().map(Held::by).collect();
        let mut batch = Batch {
            bodies: plan.bodies,
            ..Batch::default()
        };
        for planned in plan.writes {
            batch.drop_bodies.extend(planned.dropped);
            batch.records.push(planned.write);
        }
        debug_assert!(
            holds_each_record_once(&batch.records),
            "a store may refuse such a batch"
        );
        let written = self.write_and_find_out(batch, witness);
        self.remember(held, &written);
        Ok(matches!(written?, Written::Done(_)))
    }

    /// Remembers what holders will write again, and forgets what else may have changed.
    fn remember(&self, held: Vec<Held>, written: &Result<Written, Error>) {
        let Some(recent) = &self.recent else { return };
        let mut etags = match written {
            Ok(Written::Done(etags)) => etags.as_slice(),
            _ => &[],
        }
        .iter();
        for Held { key, value } in held {
            match (etags.next().cloned().flatten(), value) {
                (Some(etag), Some((value, until_ms))) => recent.remember(key, Stored { value, etag }, until_ms),
                _ => recent.forget(&key),
            }
        }
    }

    /// One after another, in the order of their turns.
    fn commit_in_steps(&self, mut plan: Plan) -> Result<bool, Error> {
        plan.writes.sort_by_key(|planned| planned.turn);
        // The record that names them is the first that is about a key or a message.
        let names_bodies = plan.writes.iter().position(|planned| Turn::Key <= planned.turn);
        for (number, planned) in plan.writes.into_iter().enumerate() {
            let bodies = match names_bodies {
                Some(named) if named == number => plan.bodies.clone(),
                _ => Vec::new(),
            };
            let held = Held::by(&planned);
            let is_written = self.write_with(planned.write, bodies, planned.dropped, held)?;
            if !is_written && planned.turn != Turn::Pointer {
                return Ok(false);
            }
            self.do_chores(planned.then.as_slice());
        }
        Ok(true)
    }

    fn write_one(&self, write: RecordWrite, dropped: &[BodyId]) -> Result<bool, Error> {
        let held = Held {
            key: write.key.clone(),
            value: None,
        };
        self.write_with(write, Vec::new(), dropped.to_vec(), held)
    }

    fn write_with(
        &self,
        write: RecordWrite,
        bodies: Vec<(BodyId, Arc<[u8]>)>,
        drop_bodies: Vec<BodyId>,
        held: Held,
    ) -> Result<bool, Error> {
        let witness = Some(Witness::to(&write));
        let batch = Batch {
            bodies,
            records: vec![write],
            drop_bodies,
        };
        let written = self.write_and_find_out(batch, witness);
        self.remember(vec![held], &written);
        Ok(matches!(written?, Written::Done(_)))
    }

    /// Writes a batch. If nobody knows whether it was done and the witness reads as it was to be, it was. If it does not,
    /// the batch may still arrive, so it is neither repeated nor taken for undone.
    /// Then no etags are known.
    fn write_and_find_out(&self, batch: Batch, witness: Option<Witness>) -> Result<Written, Error> {
        match self.store.write(batch) {
            Err(unknown @ StoreError::Unknown { .. }) => match witness {
                Some(witness) if witness.was_written(&*self.store) => Ok(Written::Done(Vec::new())),
                _ => Err(unknown.into()),
            },
            answer => Ok(answer?),
        }
    }
}

fn is_decided(entry: &Entry) -> bool {
    entry.record().is_some_and(|record| record.decision.is_some())
}

/// True when a decision would cover what is staged under this lease.
fn is_listed(entry: &Entry, lease: &LeaseRecord) -> bool {
    let is_it = |member: &Participant| member.enlisted && member.lease_id == lease.id && member.epoch == lease.epoch;
    entry
        .record()
        .is_some_and(|record| record.participants.iter().any(is_it))
}

fn holds_each_record_once(records: &[RecordWrite]) -> bool {
    (records.iter().enumerate()).all(|(at, write)| records[..at].iter().all(|earlier| earlier.key != write.key))
}

/// The bodies that a record names no longer.
pub fn no_longer_named(before: &KeyRecord, after: Option<&KeyRecord>) -> Vec<BodyId> {
    before
        .bodies()
        .filter(|old| !after.is_some_and(|after| after.bodies().any(|new| new == *old)))
        .cloned()
        .collect()
}

/// True when whoever waits for the old lease to end need not wait that long any more.
pub fn ends_sooner(old: Option<&LeaseRecord>, new: Option<&LeaseRecord>) -> bool {
    match (old, new) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(old), Some(new)) => new.id == old.id && new.expires_at_unix < old.expires_at_unix,
    }
}
