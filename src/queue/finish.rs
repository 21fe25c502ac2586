//! What a consumer does with a message that it holds, and what becomes of one that nobody will get.

use super::deliver::with_state_lease_end;
use super::rules::{self, Holder, Nack, Refusal, Standing};
use super::{Delivered, Found, Place, Queues};
use crate::error::Error;
use crate::ids::Xid;
use crate::keys::{MessageId, QueueId};
use crate::lease::rules as lease_rules;
use crate::lease::table::{KeyName, View};
use crate::record::{Decision, KeyRecord, MessageRecord, StateGrant};
use crate::txn;

/// A lease that was prolonged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extended {
    /// The record with its new revision.
    pub record: MessageRecord,
    /// When the lease of the state ends now, in milliseconds of Unix time, if it was named.
    pub state_expires_at_ms: Option<i64>,
}

impl Queues {
    /// Removes a message that its consumer has dealt with, its state included, and returns its last record.
    ///
    /// In a transaction that the consumer named, this commits the whole transaction.
    pub fn ack(&self, queue: &QueueId, id: MessageId, by: &Holder) -> Result<MessageRecord, Error> {
        let place = Place { queue, id };
        let answer = self.table.transact(&[], |view| {
            let found = place.require(view)?;
            rules::ack(&found.record, by, view.now())?;
            if let Some((txn_id, lease_id)) = found.named_txn() {
                let settled = txn::settle(view, txn_id, lease_id, Decision::Commit, None)?;
                if settled.conflict {
                    return Ok(Err(Refusal::TxnConflict));
                }
                if settled.has_ended(&place.subject()) {
                    return Ok(Ok(found.record));
                }
            }
            place.remove(view, &found);
            place.finish_state(view, &found, StateEnd::Remove)?;
            Ok(Ok(found.record))
        })?;
        Ok(answer?)
    }

    /// Gives a message back, for another try or, when it has failed too often, to be put aside. What was staged of its
    /// state is committed. Returns the new record.
    ///
    /// In a transaction that the consumer named, this rolls the whole transaction back, and with it what was staged of the
    /// state; the message becomes what the nack says all the same.
    pub fn nack(&self, queue: &QueueId, id: MessageId, by: &Holder, nack: &Nack) -> Result<MessageRecord, Error> {
        let place = Place { queue, id };
        self.table.transact(&[], |view| {
            let found = place.require(view)?;
            let nacked = rules::nack(&found.record, by, nack, view.now())?;
            if let Some((txn_id, lease_id)) = found.named_txn() {
                let subject = place.subject();
                let settled = txn::settle(view, txn_id, lease_id, Decision::Rollback, Some((&subject, &nacked)))?;
                if settled.has_ended(&subject) {
                    return Ok(nacked);
                }
            }
            place.put_back(view, &found, &nacked);
            place.finish_state(view, &found, StateEnd::Commit)?;
            Ok(nacked)
        })
    }

    /// Sets the end of a message's lease anew, and that of its state's lease when it is named.
    pub fn extend(&self, queue: &QueueId, id: MessageId, by: &Holder, seconds: i64) -> Result<Extended, Error> {
        let place = Place { queue, id };
        self.table.transact(&[], |view| {
            let found = place.require(view)?;
            let record = rules::extend(&found.record, by, seconds, view.now())?;
            if by.state.is_some() {
                let granted = found.state_grant().ok_or(Refusal::LeaseRequired)?;
                place.extend_state(view, granted, record.visible_from_ms)?;
            }
            place.put(view, &found, &record);
            Ok(Extended {
                state_expires_at_ms: by.state.as_ref().map(|_| record.visible_from_ms),
                record,
            })
        })
    }

    /// Takes back a delivery that certainly did not reach its consumer: the message is visible again at once. Does nothing
    /// if the lease has ended otherwise.
    pub fn give_back(&self, delivered: &Delivered) -> Result<(), Error> {
        let place = Place {
            queue: &delivered.queue,
            id: delivered.id,
        };
        let given = delivered.record.lease.as_ref().map(|lease| &lease.id);
        self.table.transact(&[], |view| {
            let Some(found) = place.find(view)? else { return Ok(()) };
            let living = found.record.living_lease(view.now().ms);
            if living.is_none() || living.map(|lease| &lease.id) != given {
                return Ok(());
            }
            if let Some((txn_id, lease_id)) = found.named_txn() {
                // Only this lease ends: the others of its transaction have done nothing wrong.
                view.withdraw(txn_id, lease_id)?;
            }
            place.finish_state(view, &found, StateEnd::Drop)?;
            place.put(view, &found, &rules::given_back(&found.record, view.now()));
            Ok(())
        })
    }
}

/// What becomes of the state of a message when the lease that was granted along ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateEnd {
    /// What was staged is the truth from now on.
    Commit,
    /// What was staged is dropped.
    Drop,
    /// The message goes, and all of its state with it.
    Remove,
}

impl Found {
    fn state_grant(&self) -> Option<&StateGrant> {
        self.record.lease.as_ref().and_then(|lease| lease.state.as_ref())
    }

    /// The transaction that the message takes part in, if its consumer named one, and the lease with which it does.
    pub(super) fn named_txn(&self) -> Option<(&Xid, &Xid)> {
        (self.record.lease.as_ref())
            .filter(|lease| lease.explicit)
            .map(|lease| (&lease.txn_id, &lease.id))
    }
}

impl Place<'_> {
    /// Removes an expired message, or puts a dead one aside.
    pub(super) fn put_away(self, view: &mut View<'_>, found: &Found) -> Result<(), Error> {
        if let Some(lapsed) = &found.record.lease
            && lapsed.explicit
        {
            view.leave(&lapsed.txn_id, &lapsed.id, true)?;
        }
        if rules::standing(&found.record, view.now()) == Standing::Dead {
            self.bury(view, found, &found.record);
            return self.end_state(view, found, StateEnd::Drop);
        }
        self.remove(view, found);
        self.end_state(view, found, StateEnd::Remove)
    }

    /// Ends the lease of the state because the consumer has ended that of its message.
    ///
    /// Keys may have been leased under the id of the state's transaction, even if the message takes no part in it. They go
    /// on by themselves: the state was not lost to them, its consumer has decided about it.
    fn finish_state(self, view: &mut View<'_>, found: &Found, end: StateEnd) -> Result<(), Error> {
        if let Some(granted) = found.state_grant()
            && let Some(state) = view.other(&self.state_key())?
            && let Some(lease) = state
                .lease
                .filter(|lease| lease.id == granted.lease_id && lease.explicit)
        {
            view.withdraw(&lease.txn_id, &lease.id)?;
        }
        self.end_state(view, found, end)
    }

    /// Ends the lease of the state along with that of its message, or removes the state along with its message.
    pub(super) fn end_state(self, view: &mut View<'_>, found: &Found, end: StateEnd) -> Result<(), Error> {
        match self.state_after(view, found, end)? {
            None => Ok(()),
            Some((name, Some(record))) => view.put_key(&name, &record),
            Some((name, None)) => view.delete_key(&name),
        }
    }

    /// The state and its record as they will be; no record: the state goes. `None`: there is nothing to change, because the
    /// message has no state, or its lease has ended otherwise, or somebody has leased the state by hand.
    pub(crate) fn state_after(
        self,
        view: &mut View<'_>,
        found: &Found,
        end: StateEnd,
    ) -> Result<Option<(KeyName, Option<KeyRecord>)>, Error> {
        if found.record.state_etag.is_none() {
            return Ok(None);
        }
        let name = self.state_key();
        let Some(state) = view.other(&name)? else {
            return Ok(None);
        };
        let now = view.now();
        let granted = found.state_grant().map(|granted| &granted.lease_id);
        let is_granted = state.lease.as_ref().is_some_and(|lease| Some(&lease.id) == granted);
        let is_living = state.living_lease(now.unix()).is_some();
        let after = match end {
            StateEnd::Remove if is_granted || !is_living => None,
            StateEnd::Commit if is_granted && is_living => Some(lease_rules::committed(&state, now)),
            StateEnd::Commit | StateEnd::Drop if is_granted => Some(lease_rules::cleared(&state, now)),
            _ => return Ok(None),
        };
        Ok(Some((name, after)))
    }

    fn extend_state(self, view: &mut View<'_>, granted: &StateGrant, end_ms: i64) -> Result<(), Error> {
        let name = self.state_key();
        let state = view.other(&name)?.ok_or(Refusal::LeaseRequired)?;
        match state.living_lease(view.now().unix()) {
            Some(living) if living.id == granted.lease_id => view.put_key(&name, &with_state_lease_end(state, end_ms)),
            _ => Err(Refusal::LeaseRequired.into()),
        }
    }
}
