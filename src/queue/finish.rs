//! What a consumer does with a message that it holds, and what becomes of one that nobody will get.

use std::time::{Duration, UNIX_EPOCH};

use super::deliver::with_state_lease_end;
use super::rules::{self, Holder, Nack, Refusal, Standing};
use super::{Delivered, Found, Place, Queues};
use crate::error::Error;
use crate::keys::{MessageId, QueueId};
use crate::lease::rules as lease_rules;
use crate::lease::table::View;
use crate::record::{MessageRecord, StateGrant};

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
    pub fn ack(&self, queue: &QueueId, id: MessageId, by: &Holder) -> Result<MessageRecord, Error> {
        let place = Place { queue, id };
        self.table.transact(&[], |view| {
            let found = place.require(view)?;
            rules::ack(&found.record, by, view.now())?;
            place.remove(view, &found);
            place.remove_state(view, &found)?;
            Ok(found.record)
        })
    }

    /// Gives a message back, for another try or, when it has failed too often, to be put aside. What was staged of its
    /// state is committed. Returns the new record.
    pub fn nack(&self, queue: &QueueId, id: MessageId, by: &Holder, nack: &Nack) -> Result<MessageRecord, Error> {
        let place = Place { queue, id };
        self.table.transact(&[], |view| {
            let found = place.require(view)?;
            let nacked = rules::nack(&found.record, by, nack, view.now())?;
            place.end_state(view, &found, StateEnd::Commit)?;
            if rules::standing(&nacked, view.now()) == Standing::Dead {
                place.bury(view, &found, &rules::dead(&nacked, &rfc3339(view.now().ms), view.now()));
            } else {
                place.put(view, &found, &nacked);
            }
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
            place.end_state(view, &found, StateEnd::Drop)?;
            place.put(view, &found, &rules::given_back(&found.record, view.now()));
            Ok(())
        })
    }
}

/// What becomes of what was staged when the lease of a state ends and the state stays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StateEnd {
    Commit,
    Drop,
}

impl Found {
    fn state_grant(&self) -> Option<&StateGrant> {
        self.record.lease.as_ref().and_then(|lease| lease.state.as_ref())
    }
}

impl Place<'_> {
    /// Removes an expired message, or puts a dead one aside.
    pub(super) fn put_away(self, view: &mut View<'_>, found: &Found) -> Result<(), Error> {
        if rules::standing(&found.record, view.now()) == Standing::Dead {
            let dead = rules::dead(&found.record, &rfc3339(view.now().ms), view.now());
            self.bury(view, found, &dead);
            return Ok(());
        }
        self.remove(view, found);
        self.remove_state(view, found)
    }

    /// Removes the state of a message that goes. A state that somebody else has leased by hand is left to them.
    fn remove_state(self, view: &mut View<'_>, found: &Found) -> Result<(), Error> {
        if found.record.state_etag.is_none() {
            return Ok(());
        }
        let name = self.state_key();
        let Some(state) = view.other(&name)? else { return Ok(()) };
        let granted = found.state_grant().map(|granted| &granted.lease_id);
        match state.living_lease(view.now().unix()) {
            Some(living) if Some(&living.id) != granted => Ok(()),
            _ => view.delete_key(&name),
        }
    }

    /// Ends the lease of the state that was granted along. One that has ended otherwise needs nothing.
    fn end_state(self, view: &mut View<'_>, found: &Found, end: StateEnd) -> Result<(), Error> {
        let Some(granted) = found.state_grant() else {
            return Ok(());
        };
        let name = self.state_key();
        let Some(state) = view.other(&name)? else { return Ok(()) };
        let Some(lease) = state.lease.as_ref().filter(|lease| lease.id == granted.lease_id) else {
            return Ok(());
        };
        let now = view.now();
        let ended = if end == StateEnd::Commit && lease.is_alive(now.unix()) {
            lease_rules::committed(&state, now)
        } else {
            lease_rules::cleared(&state, now)
        };
        view.put_key(&name, &ended)
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

/// A time as RFC 3339 in UTC.
fn rfc3339(time_ms: i64) -> String {
    let since_epoch = Duration::from_millis(u64::try_from(time_ms).unwrap_or(0));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since_epoch).to_string()
}
