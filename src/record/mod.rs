//! What is kept of a key, of a transaction and of a message, and how it is written down.
//!
//! Everything that one decision must see together lives in one record, so that one conditional write can decide it on
//! any store: the committed state, the lease, and what that lease has staged.
//!
//! A record of a key is kept for ever once created, because it holds the fencing counter, which must outlive releases
//! and removals. A record of a message is kept until the message has been dealt with.

mod codec;
mod message;
mod message_codec;
mod named;
mod retired;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use codec::{DecodeError, decode_key, decode_txn, decode_txn_page, encode_key, encode_txn, encode_txn_page};
pub use message::{MessageLease, MessagePayload, MessageRecord, StateGrant};
pub use message_codec::{decode_message, encode_message};
pub use named::bodies_named_by;
pub use retired::{RetiredRecord, decode_retired, encode_retired};

use crate::ids::{BodyId, Xid};
use crate::keys::{Key, MessageId, Namespace, QueueId};

/// A state of up to so many bytes lives inside the record; a larger one is a body of its own.
pub const INLINE_BYTES_MAX: usize = 4 * 1024;

/// All that is kept of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyRecord {
    /// Committed version; 0 until something is committed. Never goes back.
    pub version: i64,
    /// The token of the latest grant; 0 until the first. Never goes back.
    pub fencing_token: i64,
    /// When this record last changed in any way, in milliseconds of Unix time.
    pub updated_at_ms: i64,
    /// The committed state.
    pub state: Option<StateValue>,
    /// The committed attributes.
    pub attributes: Attributes,
    /// The current lease, which may be over already: nobody clears it at the second it ends.
    pub lease: Option<LeaseRecord>,
    /// What the current lease has staged. Only ever there together with a lease.
    pub staged: Option<Staged>,
}

/// One JSON state: insignificant white space removed, everything else as it was submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateValue {
    /// SHA-256 of the bytes, lower-case hex.
    pub etag: Arc<str>,
    /// Length in bytes.
    pub bytes: u64,
    /// Where the bytes are.
    pub body: Body,
}

/// Where the bytes of a state are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// In the record itself.
    Inline(Arc<[u8]>),
    /// In a body of the store.
    Stored(BodyId),
}

/// Named properties of a key beside its state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Attributes {
    /// Hidden from queries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_hidden: Option<bool>,
}

impl Attributes {
    /// These attributes with the given ones laid over them.
    pub fn overlaid(self, over: Attributes) -> Attributes {
        Attributes {
            query_hidden: over.query_hidden.or(self.query_hidden),
        }
    }
}

/// The exclusive right to change a key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LeaseRecord {
    /// Its id.
    pub id: Xid,
    /// Who holds it.
    pub owner: String,
    /// The transaction to which everything staged under it belongs.
    pub txn_id: Xid,
    /// The transaction may span other keys; then there is a record of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub explicit: bool,
    /// The lease is over when the clock shows this second (Unix time).
    pub expires_at_unix: i64,
    /// How often a decision of its transaction has passed this lease by when it was about to stage something. Only where a
    /// batch changes one record.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epoch: u32,
}

/// Epochs begin at 0, which is not written down.
pub(crate) fn is_zero(epoch: &u32) -> bool {
    *epoch == 0
}

impl LeaseRecord {
    /// True while the lease lives. Equality is the end: a lease until second N is dead at N.
    pub fn is_alive(&self, now_unix: i64) -> bool {
        now_unix < self.expires_at_unix
    }
}

/// What a lease has prepared and a release will commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// The version that the key will have after the commit.
    pub version: i64,
    /// What becomes of the state.
    pub state: StagedState,
    /// Attributes to lay over the committed ones.
    pub attributes: Attributes,
}

/// What a staged change does to the state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StagedState {
    /// Nothing: only attributes are staged.
    #[default]
    Untouched,
    /// Replace it.
    Put(StateValue),
    /// Remove it.
    Remove,
}

impl KeyRecord {
    /// The version that the holder works with: the staged one, else the committed one.
    pub fn effective_version(&self) -> i64 {
        self.staged.as_ref().map_or(self.version, |staged| staged.version)
    }

    /// The state that the holder sees.
    pub fn effective_state(&self) -> Option<&StateValue> {
        match self.staged.as_ref().map(|staged| &staged.state) {
            Some(StagedState::Put(value)) => Some(value),
            Some(StagedState::Remove) => None,
            Some(StagedState::Untouched) | None => self.state.as_ref(),
        }
    }

    /// The attributes that the holder sees.
    pub fn effective_attributes(&self) -> Attributes {
        self.staged
            .as_ref()
            .map_or(self.attributes, |staged| self.attributes.overlaid(staged.attributes))
    }

    /// Etag of the committed state.
    pub fn committed_etag(&self) -> Option<&Arc<str>> {
        self.state.as_ref().map(|value| &value.etag)
    }

    /// The lease, if it lives.
    pub fn living_lease(&self, now_unix: i64) -> Option<&LeaseRecord> {
        self.lease.as_ref().filter(|lease| lease.is_alive(now_unix))
    }

    /// The bodies of the store that this record names.
    pub fn bodies(&self) -> impl Iterator<Item = &BodyId> {
        let staged = match self.staged.as_ref().map(|staged| &staged.state) {
            Some(StagedState::Put(value)) => Some(value),
            _ => None,
        };
        self.state.iter().chain(staged).filter_map(|value| match &value.body {
            Body::Stored(id) => Some(id),
            Body::Inline(_) => None,
        })
    }
}

/// All that is kept of one transaction while keys and messages take part in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TxnRecord {
    /// The leases that belong to it, in the order they joined.
    pub participants: Vec<Participant>,
    /// What was decided and may not have reached every member yet. Only where a batch changes one record.
    pub decision: Option<Decision>,
}

/// What becomes of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// What was staged becomes the truth on every key, and messages are dealt with.
    Commit,
    /// What was staged is dropped on every key, and messages are visible again.
    Rollback,
}

/// Several transactions in one record, by id.
pub type TxnPage = BTreeMap<Xid, TxnRecord>;

/// One lease of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Participant {
    /// What is leased.
    pub subject: Subject,
    /// The lease that takes part. When the subject has another lease now, this one was lost.
    pub lease_id: Xid,
    /// The decision covers it, and losing it decides against the whole transaction. A key is covered once something is
    /// staged on it, a message from its delivery on.
    pub enlisted: bool,
    /// It was covered and its lease ended before the decision: what it had staged is gone, or about to go.
    pub lost: bool,
    /// The epoch of the lease in which it was covered. A decision covers what was staged in this epoch and nothing later:
    /// whoever comes late to carry one out finds the lease in another epoch and leaves it alone.
    pub epoch: u32,
}

/// What a lease of a transaction is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A key.
    Key {
        /// Its namespace.
        namespace: Namespace,
        /// The key.
        key: Key,
    },
    /// A message.
    Message {
        /// Its queue.
        queue: QueueId,
        /// Its id.
        id: MessageId,
    },
}
