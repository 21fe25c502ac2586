//! What one round of a change of a key sees, and what it wants to be written.
//!
//! A change of a key is more than its record: a lease that begins joins its transaction, one that ends leaves it, a first
//! staging is noted there. The view works that out and collects it as one [`Plan`]. Where several records are one batch,
//! all of it is in the batch; where they are written one by one, some of it is left for afterwards, and the plan says in
//! which order the rest goes.

use std::sync::Arc;

use super::rules::Now;
use super::table::KeyName;
use crate::error::Error;
use crate::ids::{BodyId, Xid};
use crate::keys::{self, Namespace};
use crate::news::News;
use crate::record::{
    KeyRecord, LeaseRecord, MessageRecord, Participant, RetiredRecord, Subject, TxnRecord, decode_key, decode_message,
    decode_retired, encode_key,
};
use crate::store::{Change, Etag, Precondition, RecordKey, RecordWrite, Stored};
use crate::txn::book::Entry;
use crate::txn::commit::{Committer, ends_sooner, no_longer_named};
use crate::txn::plan::{Chore, Plan, PlannedWrite, Tells, Turn};
use crate::txn::rules::{self, Leased};

/// What one round of a change has read and wants to write.
pub struct View<'a> {
    committer: &'a Committer,
    /// The key that is being changed, if there is one that stands at the centre.
    name: Option<&'a KeyName>,
    now: Now,
    /// Keys are read as they are, although they may take part in something that is decided: for whoever carries it out.
    carries_out: bool,
    /// The keys that have been read so far; the one that is being changed comes first.
    read: Vec<(RecordKey, Option<(KeyRecord, Etag)>)>,
    /// Records of another kind that have been read so far.
    stored: Vec<(RecordKey, Option<Stored>)>,
    memory: Memory,
    /// Transactions as they will be. Several leases of one round may belong to the same one.
    txns: Vec<(Entry, TxnRecord)>,
    plan: Plan,
}

/// Whether a round may use, or has used, what this server remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Unused,
    Allowed,
    Used,
}

impl<'a> View<'a> {
    pub(super) fn of_nothing(committer: &'a Committer) -> Self {
        Self {
            committer,
            name: None,
            now: committer.now(),
            carries_out: false,
            read: Vec::new(),
            stored: Vec::new(),
            memory: Memory::Unused,
            txns: Vec::new(),
            plan: Plan::default(),
        }
    }

    pub(super) fn of_key(committer: &'a Committer, name: &'a KeyName, record_key: &RecordKey) -> Result<Self, Error> {
        let found = committer.read_key(record_key)?;
        Ok(Self {
            name: Some(name),
            read: vec![(record_key.clone(), found)],
            ..Self::of_nothing(committer)
        })
    }

    /// The same from memory, if this server has written the record last and knows that it is leased. See
    /// [`View::is_from_memory`].
    pub(super) fn of_remembered_key(
        committer: &'a Committer,
        name: &'a KeyName,
        record_key: &RecordKey,
    ) -> Option<Self> {
        let stored = committer.recent(record_key)?;
        let record = decode_key(&stored.value).ok()?;
        Some(Self {
            name: Some(name),
            read: vec![(record_key.clone(), Some((record, stored.etag)))],
            memory: Memory::Used,
            ..Self::of_nothing(committer)
        })
    }

    /// Records other than keys may come from memory.
    pub(super) fn or_from_memory(self) -> Self {
        Self {
            memory: Memory::Allowed,
            ..self
        }
    }

    /// Something was not read but remembered, and may be out of date. Then nothing of this round counts but a write of one
    /// record, which the store refuses if it is.
    pub(super) fn is_from_memory(&self) -> bool {
        self.memory == Memory::Used
    }

    /// For whoever carries out what is decided.
    pub(crate) fn to_carry_out(committer: &'a Committer) -> Self {
        Self {
            carries_out: true,
            ..Self::of_nothing(committer)
        }
    }

    pub(crate) fn into_plan(mut self, bodies: &[(BodyId, Arc<[u8]>)]) -> Plan {
        for write in self.committer.book().writes_of(&self.txns) {
            self.plan.push(Turn::Transaction, write);
        }
        self.plan.bodies = bodies.to_vec();
        self.plan
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
        let mut found = match self.memory {
            Memory::Unused => None,
            Memory::Allowed | Memory::Used => self.committer.recent(record_key),
        };
        if found.is_some() {
            self.memory = Memory::Used;
        } else {
            found = self.committer.store().read(record_key)?;
        }
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
        let Some(stored) = self.committer.store().read(&key)? else {
            return Ok((RetiredRecord::default(), None));
        };
        match decode_retired(&stored.value) {
            Ok(record) => Ok((record, Some(stored.etag))),
            Err(cause) => Err(Error::CorruptRecord { key, cause }),
        }
    }

    /// Writes a record of another kind, with the bodies that no record names after it and what those who wait for messages
    /// must hear of it. Where records are written one by one, keys come before it, except for those that are deleted.
    pub fn put_stored(&mut self, write: RecordWrite, dropped: Vec<BodyId>, news: Option<News>) {
        let turn = match write.change {
            Change::Put(_) => Turn::Stored,
            Change::Delete => Turn::StoredGone,
        };
        self.plan.writes.push(PlannedWrite {
            turn,
            write,
            dropped,
            tells: news.map_or(Tells::Nobody, Tells::Queue),
            then: None,
            held_until_ms: None,
        });
    }

    /// Says that the record which was put last will be written again by whoever has leased it until this time (milliseconds
    /// of Unix time), so that it is worth remembering.
    pub(crate) fn put_is_held_until(&mut self, until_ms: i64) {
        if let Some(planned) = self.plan.writes.last_mut() {
            planned.held_until_ms = Some(until_ms);
        }
    }

    /// A transaction as it is written down, or as this round has left it; an empty one if there is none. Within a round it is
    /// read once, so that what is decided about it is decided about what is written back.
    pub fn txn(&mut self, txn_id: &Xid) -> Result<TxnRecord, Error> {
        Ok(self.pending_txn(txn_id)?.clone())
    }

    /// Changes a transaction's record; one without members goes. What stays as it is is not written.
    pub fn edit_txn(&mut self, txn_id: &Xid, change: impl FnOnce(&TxnRecord) -> TxnRecord) -> Result<(), Error> {
        let pending = self.pending_txn(txn_id)?;
        *pending = change(pending);
        Ok(())
    }

    fn pending_txn(&mut self, txn_id: &Xid) -> Result<&mut TxnRecord, Error> {
        let known = self.txns.iter().position(|(entry, _)| entry.txn_id() == txn_id);
        let place = match known {
            Some(place) => place,
            None => {
                let entry = self.committer.read_txn(txn_id)?;
                let record = entry.record().cloned().unwrap_or_default();
                self.txns.push((entry, record));
                self.txns.len() - 1
            }
        };
        Ok(&mut self.txns[place].1)
    }

    /// True where records are written one by one, so that a decision is taken down first and carried out afterwards.
    pub fn in_steps(&self) -> bool {
        self.committer.in_steps()
    }

    /// A decision that this round takes down is carried out when it is done. `back`: what a message becomes by a rollback,
    /// when that is more than being visible again.
    pub fn carry_out_afterwards(&mut self, txn_id: &Xid, back: Option<(Subject, MessageRecord)>) {
        self.plan.afterwards.push(Chore::CarryOut {
            txn_id: txn_id.clone(),
            back: back.map(Box::new),
        });
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
                self.edit_txn(&lease.txn_id, |txn| rules::join(txn, name.member(lease, true)))?;
            }
        } else {
            self.change_membership(name, old_lease.as_ref(), had_staged, record.lease.as_ref())?;
        }
        self.put_decided(name, record);
        Ok(())
    }

    /// Writes a key's record and nothing else; its transaction is written by whoever decides it.
    pub fn put_decided(&mut self, name: &KeyName, record: &KeyRecord) {
        let turn = if self.name == Some(name) {
            Turn::Key
        } else {
            Turn::OtherKeys
        };
        self.write_key(name, Some(record), turn);
    }

    /// Deletes a key with its record, and takes its lease out of its transaction. Only for keys that nobody can ever
    /// acquire again, or together with keeping its fencing token: it must not start anew.
    pub fn delete_key(&mut self, name: &KeyName) -> Result<(), Error> {
        let before = self.load(name)?.map(|(before, _)| before);
        let had_staged = before.is_some_and(|before| before.staged.is_some());
        if let Some(old) = before.and_then(|before| before.lease.clone()) {
            self.leave_having(&old.txn_id, &old.id, old.explicit, had_staged)?;
        }
        self.write_key(name, None, Turn::KeyGone);
        Ok(())
    }

    /// The same for a member of a transaction that is being decided.
    pub fn delete_decided(&mut self, name: &KeyName) {
        // Before the message that it goes with: as long as that is there, whoever comes next knows what is left to do.
        self.write_key(name, None, Turn::OtherKeys);
    }

    fn write_key(&mut self, name: &KeyName, record: Option<&KeyRecord>, turn: Turn) {
        let record_key = self.record_key(name);
        let before = self.found(&record_key);
        let precondition = match before {
            Some((_, etag)) => Precondition::Matches(etag.clone()),
            None => Precondition::Absent,
        };
        let dropped = before.map_or_else(Vec::new, |(before, _)| no_longer_named(before, record));
        let new_lease = record.and_then(|record| record.lease.as_ref());
        let ends = before.is_some_and(|(before, _)| ends_sooner(before.lease.as_ref(), new_lease));
        let planned = PlannedWrite {
            turn,
            write: RecordWrite {
                key: record_key,
                precondition,
                change: record.map_or(Change::Delete, |record| Change::Put(encode_key(record))),
            },
            dropped,
            tells: if ends { Tells::LeaseEnded } else { Tells::Nobody },
            then: None,
            held_until_ms: (new_lease.filter(|lease| !lease.explicit))
                .map(|lease| lease.expires_at_unix.saturating_mul(1000)),
        };
        // A round writes each record once: what is put later takes the place of what was put before.
        match (self.plan.writes.iter_mut()).find(|earlier| earlier.write.key == planned.write.key) {
            Some(earlier) => *earlier = planned,
            None => self.plan.writes.push(planned),
        }
    }

    /// Removes the pointer to a lease that was the only one of its transaction, and is no longer.
    fn end_pointer(&mut self, txn_id: &Xid) {
        if self.committer.in_steps() {
            self.plan.afterwards.push(Chore::EndPointer(txn_id.clone()));
        } else {
            self.plan.push(Turn::Pointer, self.committer.book().pointer_end(txn_id));
        }
    }

    fn change_membership(
        &mut self,
        name: &KeyName,
        old: Option<&LeaseRecord>,
        had_staged: bool,
        new: Option<&LeaseRecord>,
    ) -> Result<(), Error> {
        if let (Some(old), Some(new)) = (old, new)
            && old.txn_id == new.txn_id
        {
            if !old.explicit {
                self.end_pointer(&old.txn_id);
            }
            return self.edit_txn(&old.txn_id, |txn| {
                rules::join(&rules::lose(txn, &old.id), name.member(new, false))
            });
        }
        if let Some(old) = old {
            self.leave_having(&old.txn_id, &old.id, old.explicit, had_staged)?;
        }
        if let Some(new) = new {
            if self.name != Some(name) {
                // Not the last write of its round: if a later one is refused, this lease must not stand.
                self.plan.if_given_up.push(Chore::EndLease {
                    key: name.record_key(),
                    lease_id: new.id.clone(),
                });
            }
            self.join(&new.txn_id, name.member(new, false), new.explicit)?;
        }
        Ok(())
    }

    /// A lease leaves its transaction without a decision. `explicit`: the transaction was named and may have other members.
    pub fn leave(&mut self, txn_id: &Xid, lease_id: &Xid, explicit: bool) -> Result<(), Error> {
        self.leave_having(txn_id, lease_id, explicit, true)
    }

    /// `may_be_covered`: the decision may cover this member, so it must be marked as lost before it is.
    fn leave_having(
        &mut self,
        txn_id: &Xid,
        lease_id: &Xid,
        explicit: bool,
        may_be_covered: bool,
    ) -> Result<(), Error> {
        if !explicit {
            self.end_pointer(txn_id);
            return Ok(());
        }
        if self.committer.in_steps() {
            if may_be_covered {
                self.edit_txn(txn_id, |txn| rules::lose(txn, lease_id))?;
            }
            self.plan.afterwards.push(Chore::Forget {
                txn_id: txn_id.clone(),
                lease_id: lease_id.clone(),
            });
            return Ok(());
        }
        let mut left = rules::lose(&self.txn(txn_id)?, lease_id);
        // Once nobody of the transaction lives, there is nothing left to decide and its record goes.
        let mut somebody_lives = false;
        for member in left.participants.iter().filter(|member| member.lease_id != *lease_id) {
            let leased = self.leased(&member.subject)?;
            somebody_lives |= rules::is_member_alive(member, leased.as_ref(), self.now);
        }
        if !somebody_lives {
            left.participants.clear();
        }
        self.edit_txn(txn_id, |_| left)
    }

    /// A lease leaves a transaction as if it had never been part of it: what it has staged is dealt with otherwise.
    pub fn withdraw(&mut self, txn_id: &Xid, lease_id: &Xid) -> Result<(), Error> {
        self.edit_txn(txn_id, |txn| rules::leave(txn, lease_id))
    }

    /// A lease joins a transaction; a minted one that begins with it, or one that its holder has named.
    pub fn join(&mut self, txn_id: &Xid, member: Participant, explicit: bool) -> Result<(), Error> {
        if !explicit {
            let write = self.committer.book().pointer_write(txn_id, member);
            self.plan.push(Turn::Pointer, write);
            self.plan.if_given_up.push(Chore::EndPointer(txn_id.clone()));
            return Ok(());
        }
        let mut txn = self.txn(txn_id)?;
        let mut members = txn.participants.clone();
        if members.is_empty() {
            members.extend(self.committer.book().pointer(txn_id)?);
        }
        for known in members {
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
            // Joining a transaction that acquire made up the id for: from now on the lease that it was for is one of several.
            lease.explicit = true;
            txn = rules::join(&txn, other.member(lease, key.staged.is_some()));
            self.put_decided(&other, &key);
            let record_key = other.record_key();
            let written = (self.plan.writes.iter_mut()).find(|planned| planned.write.key == record_key);
            if let Some(planned) = written.filter(|_| self.committer.in_steps()) {
                planned.then = Some(Chore::EndPointer(txn_id.clone()));
            } else {
                self.end_pointer(txn_id);
            }
        }
        self.plan.if_given_up.push(Chore::Forget {
            txn_id: txn_id.clone(),
            lease_id: member.lease_id.clone(),
        });
        self.edit_txn(txn_id, |_| rules::join(&txn, member))
    }

    /// Reads the record of a key, unless it was read before.
    fn load(&mut self, name: &KeyName) -> Result<Option<&(KeyRecord, Etag)>, Error> {
        let record_key = self.record_key(name);
        if !self.read.iter().any(|(known, _)| *known == record_key) {
            let found = if self.carries_out {
                self.committer.read_key_as_it_is(&record_key)?
            } else {
                self.committer.read_key(&record_key)?
            };
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
}
