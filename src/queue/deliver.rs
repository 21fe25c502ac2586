//! A message on its way out.

use std::io::{Cursor, Read};
use std::sync::Arc;

use super::rules::{self, MessageGrant, Standing};
use super::{Found, Place, Queues, StateEnd};
use crate::error::Error;
use crate::ids::Xid;
use crate::keys::{MessageId, QueueId};
use crate::lease::rules::{self as lease_rules, Grant};
use crate::lease::table::View;
use crate::record::{Attributes, Body, KeyRecord, MessageLease, MessageRecord, Participant, StateGrant};
use crate::store::{Store, StoreError};
use crate::txn::rules as txn_rules;

/// A wish for the lease of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliverRequest {
    /// Who asks.
    pub owner: Arc<str>,
    /// Life of the lease in seconds, within the server's bounds.
    pub visibility_seconds: i64,
    /// Transaction to take part in.
    pub txn_id: Option<Xid>,
    /// Lease the state of the message along.
    pub with_state: bool,
}

/// A message that is leased to whoever asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// Queue.
    pub queue: QueueId,
    /// Message.
    pub id: MessageId,
    /// The record, with its lease.
    pub record: MessageRecord,
    /// The lease of the state, if it was asked for.
    pub state: Option<StateLease>,
}

/// A state that is leased along with its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateLease {
    /// Its id.
    pub lease_id: Xid,
    /// Its token: the state counts its own grants.
    pub fencing_token: i64,
    /// The mark of the state: the same for all deliveries of the message.
    pub state_etag: Arc<str>,
    /// When it ends, in milliseconds of Unix time: with the lease of the message.
    pub expires_at_ms: i64,
}

/// Why a message was not delivered.
#[derive(Debug)]
pub enum NotDelivered {
    /// There is no such message any more, be it that it has expired or died this moment.
    Gone,
    /// It is delayed or leased.
    Hidden {
        /// Until when, in milliseconds of Unix time.
        until_ms: i64,
    },
    /// Somebody else has leased its state by hand.
    StateHeld {
        /// Until when, in milliseconds of Unix time.
        until_ms: i64,
    },
    /// It is not known or could not be done; after [`StoreError::Unknown`] the message may be hidden for the time asked.
    Failed(Error),
}

impl From<Error> for NotDelivered {
    fn from(cause: Error) -> Self {
        Self::Failed(cause)
    }
}

/// The bytes that a message carries.
pub struct Payload {
    bytes: u64,
    body: Body,
    store: Arc<dyn Store>,
}

impl Payload {
    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All of them, if they are at hand.
    pub fn inline(&self) -> Option<&Arc<[u8]>> {
        match &self.body {
            Body::Inline(bytes) => Some(bytes),
            Body::Stored(_) => None,
        }
    }

    /// A reader that yields exactly as many as there are. Opened while the message is leased, it reads to the end, whatever
    /// becomes of the message.
    pub fn open(&self) -> Result<Box<dyn Read + Send>, StoreError> {
        match &self.body {
            Body::Inline(bytes) => Ok(Box::new(Cursor::new(Arc::clone(bytes)))),
            Body::Stored(id) => self.store.body_reader(id),
        }
    }
}

impl Queues {
    /// Leases a message to whoever asks, if it can be delivered now. One conditional write decides.
    ///
    /// A message that turns out to have expired or died is removed or put aside by the same call.
    pub fn deliver(&self, queue: &QueueId, id: MessageId, request: &DeliverRequest) -> Result<Delivered, NotDelivered> {
        let place = Place { queue, id };
        self.table.transact(&[], |view| {
            let Some(found) = place.find(view)? else {
                return Ok(Err(NotDelivered::Gone));
            };
            match rules::standing(&found.record, view.now()) {
                Standing::Ready => self.lease(view, place, &found, request),
                Standing::Hidden { until_ms } => Ok(Err(NotDelivered::Hidden { until_ms })),
                Standing::Expired | Standing::Dead => {
                    place.put_away(view, &found)?;
                    Ok(Err(NotDelivered::Gone))
                }
            }
        })?
    }

    /// The bytes that a message carries.
    pub fn payload(&self, record: &MessageRecord) -> Payload {
        Payload {
            bytes: record.payload.bytes,
            body: record.payload.body.clone(),
            store: Arc::clone(self.table.store()),
        }
    }

    fn lease(
        &self,
        view: &mut View<'_>,
        place: Place<'_>,
        found: &Found,
        request: &DeliverRequest,
    ) -> Result<Result<Delivered, NotDelivered>, Error> {
        let now = view.now();
        let mut lease = MessageLease {
            id: self.ids.xid(),
            owner: Arc::clone(&request.owner),
            txn_id: request.txn_id.clone().unwrap_or_else(|| self.ids.xid()),
            explicit: request.txn_id.is_some(),
            state: None,
        };
        let expires_at_ms = rules::lease_end(request.visibility_seconds, now);
        if request.with_state {
            match self.lease_state(view, place, found, &lease, expires_at_ms)? {
                Ok(granted) => lease.state = Some(granted),
                Err(held) => return Ok(Err(held)),
            }
        } else {
            // Nothing is left of the delivery that lapsed, or the lease of its state would outlive it.
            place.end_state(view, found, StateEnd::Drop)?;
        }
        place.leave_lapsed(view, found, &lease)?;
        if lease.explicit {
            let member = Participant {
                subject: place.subject(),
                lease_id: lease.id.clone(),
                enlisted: true,
                lost: false,
                epoch: 0,
            };
            view.join(&lease.txn_id, member, true)?;
        }
        let grant = MessageGrant {
            lease,
            visibility_seconds: request.visibility_seconds,
        };
        let record = rules::delivered(&found.record, grant, now);
        place.put(view, found, &record);
        let state = state_lease(&record);
        Ok(Ok(Delivered {
            queue: place.queue.clone(),
            id: place.id,
            record,
            state,
        }))
    }

    /// Leases the state along, unless somebody else holds it.
    fn lease_state(
        &self,
        view: &mut View<'_>,
        place: Place<'_>,
        found: &Found,
        message_lease: &MessageLease,
        expires_at_ms: i64,
    ) -> Result<Result<StateGrant, NotDelivered>, Error> {
        let name = place.state_key();
        let now = view.now();
        let mut before = view.other(&name)?;
        if let Some(record) = &mut before
            && let Some(living) = record.living_lease(now.unix())
        {
            // The lease that was granted along with the lapsed one of the message lives to the end of its second.
            let lapsed = found.record.lease.as_ref().and_then(|lease| lease.state.as_ref());
            if lapsed.is_none_or(|lapsed| lapsed.lease_id != living.id) {
                let until_ms = living.expires_at_unix.saturating_mul(1000);
                return Ok(Err(NotDelivered::StateHeld { until_ms }));
            }
            *record = lease_rules::cleared(record, now);
        }
        let grant = Grant {
            lease_id: self.ids.xid(),
            txn_id: message_lease.txn_id.clone(),
            explicit: message_lease.explicit,
            owner: message_lease.owner.as_ref().to_owned(),
            ttl_seconds: 0,
            create_only: false,
        };
        let granted = KeyRecord {
            attributes: hidden_unless_shown(before.as_ref()),
            ..lease_rules::acquire(before.as_ref(), &grant, now)?
        };
        let granted = with_state_lease_end(granted, expires_at_ms);
        view.put_key(&name, &granted)?;
        Ok(Ok(StateGrant {
            lease_id: grant.lease_id,
            fencing_token: granted.fencing_token,
        }))
    }
}

impl Place<'_> {
    /// The lapsed lease of a message leaves the transaction that its consumer named. A transaction that loses a message is
    /// lost, unless the message comes back to it with the new lease.
    fn leave_lapsed(self, view: &mut View<'_>, found: &Found, new: &MessageLease) -> Result<(), Error> {
        let Some(lapsed) = found.record.lease.as_ref().filter(|lapsed| lapsed.explicit) else {
            return Ok(());
        };
        if new.explicit && new.txn_id == lapsed.txn_id {
            return view.edit_txn(&new.txn_id, |txn| txn_rules::forget(txn, &self.subject()));
        }
        view.leave(&lapsed.txn_id, &lapsed.id, true)
    }
}

/// States of messages do not appear in queries, unless somebody has said that this one shall.
fn hidden_unless_shown(before: Option<&KeyRecord>) -> Attributes {
    let hidden = Attributes {
        query_hidden: Some(true),
    };
    before.map_or(hidden, |record| hidden.overlaid(record.attributes))
}

/// The record with its lease ending when that of its message does.
pub(super) fn with_state_lease_end(mut record: KeyRecord, message_lease_end_ms: i64) -> KeyRecord {
    if let Some(lease) = &mut record.lease {
        lease.expires_at_unix = rules::state_lease_end_unix(message_lease_end_ms);
    }
    record
}

/// What the consumer must know of the state that was leased along.
fn state_lease(record: &MessageRecord) -> Option<StateLease> {
    let granted = record.lease.as_ref()?.state.as_ref()?;
    Some(StateLease {
        lease_id: granted.lease_id.clone(),
        fencing_token: granted.fencing_token,
        state_etag: record.state_etag.clone()?,
        expires_at_ms: record.visible_from_ms,
    })
}
