//! Messages on their way to a client: from a lease to the bytes of two parts.

use std::io;

use lockd_client::wire::{DeliveredMessage, Delivery};

use super::Service;
use super::chunked::Chunked;
use super::multipart::{DeliveryWriter, PartHead};
use super::queue::{signed, unix};
use crate::dispatch::{Found, Trial, Tried};
use crate::error::Error;
use crate::queue::{DeliverRequest, Delivered, NotDelivered};
use crate::store::StoreError;

const SYS: &str = "api.http.router.queue";
/// A message whose record cannot be read is left alone for so long, so that it does not stand in the way of the others.
const DAMAGED_HIDDEN_MS: i64 = 60_000;

/// Why a delivery could not be written.
#[derive(Debug)]
pub(super) enum Unwritten {
    /// The client cannot be reached. It certainly has not received all of it.
    Client(io::Error),
    /// The payload cannot be had; nothing of this delivery was written.
    Payload(StoreError),
}

impl Service {
    /// Tries to lease what was suggested. Returns what was leased, and a fault of the store if one ended it early.
    pub(super) fn lease_suggested(
        &self,
        trial: &mut Trial,
        request: &DeliverRequest,
    ) -> (Vec<Delivered>, Option<Error>) {
        let (mut leased, mut fault) = (Vec::new(), None);
        trial.each(|queue, id| {
            if fault.is_some() {
                return None;
            }
            Some(match self.messages.queues.deliver(queue, id, request) {
                Ok(delivered) => {
                    let until_ms = delivered.record.visible_from_ms;
                    leased.push(delivered);
                    Tried::Delivered { until_ms }
                }
                Err(NotDelivered::Gone) => Tried::Found(Found::Gone),
                Err(NotDelivered::Hidden { until_ms } | NotDelivered::StateHeld { until_ms }) => {
                    Tried::Found(Found::From(until_ms))
                }
                Err(NotDelivered::Failed(cause)) => {
                    let error = cause.to_string();
                    log::warn!(logger: self.edge.log, target: SYS, namespace = queue.namespace.as_str(),
                        queue = queue.queue.as_str(), mid:% = id, error; "queue.delivery.failed");
                    if matches!(cause, Error::CorruptRecord { .. }) {
                        Tried::Found(Found::From(self.edge.clock.wall_ms() + DAMAGED_HIDDEN_MS))
                    } else {
                        fault = Some(cause);
                        Tried::Faulty
                    }
                }
            })
        });
        (leased, fault)
    }

    /// Takes back deliveries that certainly did not reach their client.
    pub(super) fn give_back(&self, deliveries: &[Delivered]) {
        for delivered in deliveries {
            let outcome = self.messages.queues.give_back(delivered);
            self.dispatcher.settled(delivered.queue.clone(), delivered.id);
            if let Err(cause) = outcome {
                let error = cause.to_string();
                log::warn!(logger: self.edge.log, target: SYS, namespace = delivered.queue.namespace.as_str(),
                    queue = delivered.queue.queue.as_str(), mid:% = delivered.id, error; "queue.give_back.failed");
            }
        }
    }

    /// Writes one delivery, up to and with the delimiter behind it.
    pub(super) fn write_delivery(
        &self,
        answer: &mut Chunked,
        writer: &DeliveryWriter,
        delivered: &Delivered,
        number: Option<usize>,
    ) -> Result<(), Unwritten> {
        let payload = self.messages.queues.payload(&delivered.record);
        let mut reader = match payload.inline() {
            Some(_) => None,
            None => Some(payload.open().map_err(Unwritten::Payload)?),
        };
        let mut bytes = Vec::with_capacity(2048);
        let head = PartHead {
            meta: &meta(delivered),
            payload_type: &delivered.record.payload_type,
            payload_bytes: payload.bytes(),
            number,
        };
        writer.head(&mut bytes, &head);
        if let Some(inline) = payload.inline() {
            bytes.extend_from_slice(inline);
        } else if let Some(reader) = &mut reader {
            answer.write(&bytes).map_err(Unwritten::Client)?;
            bytes.clear();
            answer.copy(&mut **reader, payload.bytes()).map_err(Unwritten::Client)?;
        }
        writer.tail(&mut bytes);
        answer.write(&bytes).map_err(Unwritten::Client)
    }

    /// Tells of deliveries that were written.
    pub(super) fn log_sent(&self, delivered: &Delivered) {
        let record = &delivered.record;
        let Some(lease) = &record.lease else { return };
        let state = delivered.state.as_ref();
        log::info!(logger: self.edge.log, target: SYS, namespace = delivered.queue.namespace.as_str(),
            queue = delivered.queue.queue.as_str(), mid:% = delivered.id, lease = lease.id.as_str(),
            fencing = record.fencing_token, txn_id = lease.txn_id.as_str(), attempts = record.attempts,
            max_attempts = record.max_attempts, visibility_timeout_seconds = record.visibility_seconds,
            state_lease = state.map(|state| state.lease_id.as_str()).unwrap_or_default(),
            state_fencing = state.map(|state| state.fencing_token).unwrap_or_default(),
            correlation = &*record.correlation_id; "queue.delivery.sent");
    }
}

/// The JSON of the part `meta`.
fn meta(delivered: &Delivered) -> Vec<u8> {
    let record = &delivered.record;
    let lease = record.lease.as_ref();
    let state = delivered.state.as_ref();
    let txn_id = lease.map(|lease| lease.txn_id.as_str().to_owned()).unwrap_or_default();
    let attributes = record.attributes.as_deref();
    let message = DeliveredMessage {
        namespace: delivered.queue.namespace.as_str().to_owned(),
        queue: delivered.queue.queue.as_str().to_owned(),
        message_id: delivered.id.to_string(),
        attempts: record.attempts,
        max_attempts: record.max_attempts,
        failure_attempts: record.failure_attempts,
        not_visible_until_unix: unix(record.visible_from_ms),
        visibility_timeout_seconds: record.visibility_seconds,
        attributes: attributes.and_then(|attributes| serde_json::from_str(attributes).ok()),
        payload_content_type: record.payload_type.as_ref().to_owned(),
        payload_bytes: signed(record.payload.bytes),
        correlation_id: record.correlation_id.as_ref().to_owned(),
        lease_id: lease.map(|lease| lease.id.as_str().to_owned()).unwrap_or_default(),
        lease_expires_at_unix: unix(record.visible_from_ms),
        fencing_token: record.fencing_token,
        meta_etag: record.meta_etag(),
        state_etag: state
            .map(|state| state.state_etag.as_ref().to_owned())
            .unwrap_or_default(),
        state_lease_id: state
            .map(|state| state.lease_id.as_str().to_owned())
            .unwrap_or_default(),
        state_lease_expires_at_unix: state.map_or(0, |state| unix(state.expires_at_ms)),
        state_fencing_token: state.map_or(0, |state| state.fencing_token),
        state_txn_id: state.map(|_| txn_id.clone()).unwrap_or_default(),
        txn_id,
    };
    let delivery = Delivery {
        message,
        next_cursor: String::new(),
    };
    serde_json::to_vec(&delivery).expect("wire types have string keys and no fallible parts")
}
