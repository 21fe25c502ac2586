//! The JSON state that belongs to a message and survives its redelivery.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::lease::Session;
use crate::state::State;
use crate::wire::{MetadataAttributes, MetadataResponse, RemoveResponse, UpdateResponse};
use crate::write::{StateInput, WriteOptions};

/// The state of a message that was dequeued with [`Dequeue::with_state`](super::Dequeue).
///
/// What is saved is staged: nack and defer commit it, and the next delivery reads it; ack and the end of the lease drop it.
/// Version and etag are learnt from reads and writes and sent as preconditions, as under any lease. The lease of the state is
/// prolonged with the message, never alone.
#[derive(Debug, Clone)]
pub struct MessageState {
    session: Session,
}

impl MessageState {
    pub(super) fn new(session: Session) -> Self {
        Self { session }
    }

    /// The key under which the state is stored.
    pub fn key(&self) -> &str {
        self.session.key()
    }

    /// Namespace of the key.
    pub fn namespace(&self) -> &str {
        self.session.namespace()
    }

    /// Lease of the state.
    pub fn lease_id(&self) -> &str {
        self.session.lease_id()
    }

    /// Transaction to which everything staged belongs.
    pub fn txn_id(&self) -> &str {
        self.session.txn_id()
    }

    /// Fencing token of the lease; `None` once the message is settled.
    pub fn fencing_token(&self) -> Option<i64> {
        self.session.fencing_token()
    }

    /// The version as last seen; 0 when there is no state or nothing is known.
    pub fn version(&self) -> i64 {
        self.session.version()
    }

    /// The etag as last seen; empty when there is no state or nothing is known.
    pub fn etag(&self) -> String {
        self.session.state_etag()
    }

    /// Reads the state, staged changes included.
    pub fn get(&self) -> Result<State, Error> {
        self.session.get()
    }

    /// Reads and decodes the state; `None` when there is none.
    pub fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        self.session.load()
    }

    /// Stages a value as the new state.
    pub fn save<T: Serialize + ?Sized>(&self, value: &T) -> Result<UpdateResponse, Error> {
        self.session.save(value)
    }

    /// As [`save`](Self::save), with options that beat what the handle remembers.
    pub fn save_with<T: Serialize + ?Sized>(&self, value: &T, options: &WriteOptions) -> Result<UpdateResponse, Error> {
        self.session.save_with(value, options)
    }

    /// Stages a new state, in JSON.
    pub fn update<'a>(&self, body: impl Into<StateInput<'a>>) -> Result<UpdateResponse, Error> {
        self.session.update(body)
    }

    /// As [`update`](Self::update), with options that beat what the handle remembers.
    pub fn update_with<'a>(
        &self,
        body: impl Into<StateInput<'a>>,
        options: &WriteOptions,
    ) -> Result<UpdateResponse, Error> {
        self.session.update_with(body, options)
    }

    /// Stages attributes of the key.
    pub fn update_metadata(&self, attributes: MetadataAttributes) -> Result<MetadataResponse, Error> {
        self.session.update_metadata(attributes)
    }

    /// As [`update_metadata`](Self::update_metadata), with options that beat what the handle remembers.
    pub fn update_metadata_with(
        &self,
        attributes: MetadataAttributes,
        options: &WriteOptions,
    ) -> Result<MetadataResponse, Error> {
        self.session.update_metadata_with(attributes, options)
    }

    /// Stages the removal of the state.
    pub fn remove(&self) -> Result<RemoveResponse, Error> {
        self.session.remove()
    }

    /// As [`remove`](Self::remove), with options that beat what the handle remembers.
    pub fn remove_with(&self, options: &WriteOptions) -> Result<RemoveResponse, Error> {
        self.session.remove_with(options)
    }
}
