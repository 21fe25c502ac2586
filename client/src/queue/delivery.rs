//! Deliveries as they come out of an answer: description, payload, description, payload.

use std::io::{self, Read};
use std::sync::Arc;

use parking_lot::Mutex;

use super::multipart::{self, Parts, PartsError};
use crate::call::CallOptions;
use crate::error::Error;
use crate::leave::Leave;
use crate::state::interrupted;
use crate::walk::Answer;
use crate::wire::Delivery;

/// Largest description of a message that is read, in bytes. Attributes are the only part of it that can be large.
const META_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A payload of this size or less is in memory before its message is handed out, so that the stream moves on whatever the
/// consumer does with it.
const PREFETCH_BYTES: u64 = 256 * 1024;

/// The deliveries of one answer.
pub(super) struct Deliveries {
    parts: Parts<Box<dyn Read + Send>>,
    endpoint: Arc<str>,
    call: CallOptions,
    leave: Arc<Leave>,
    /// Counts the payloads, so that a reader of an old one notices that it has passed.
    number: u64,
}

/// One delivery; its payload is still to be read.
pub(super) struct Received {
    pub(super) delivery: Delivery,
    /// Length of the payload in bytes; `None` when the stream does not tell.
    length: Option<u64>,
    has_payload: bool,
}

impl Deliveries {
    /// Takes a success answer.
    pub(super) fn of(answer: Answer, call: &CallOptions) -> Result<Self, Error> {
        let endpoint = Arc::clone(&answer.endpoint);
        let Some(boundary) = multipart::boundary(answer.content_type()) else {
            return Err(Error::BadAnswer {
                endpoint: endpoint.to_string(),
                detail: format!("expected a multipart answer, not {:?}", answer.content_type()),
            });
        };
        let leave = Arc::new(Leave::default());
        Ok(Self {
            parts: Parts::new(answer.into_stream_to_leave(&leave), &boundary),
            leave,
            endpoint,
            call: call.clone(),
            number: 0,
        })
    }

    pub(super) fn endpoint(&self) -> &Arc<str> {
        &self.endpoint
    }

    /// The next delivery, or `None` when the server has ended the stream. What was not read of the payload before is
    /// skipped.
    pub(super) fn next(&mut self) -> Result<Option<Received>, Error> {
        self.number += 1;
        loop {
            let Some(head) = self.next_part("meta", true)? else {
                self.parts.finish();
                return Ok(None);
            };
            let mut meta = Vec::new();
            if head.is_some_and(|length| META_BYTES_MAX as u64 <= length) {
                return Err(self.too_large());
            }
            self.read_into(&mut meta, META_BYTES_MAX)?;
            let delivery: Delivery = serde_json::from_slice(&meta)
                .map_err(|error| self.bad(format!("the description of a message: {error}")))?;
            let payload = self.next_part("payload", false)?;
            // A description without a message is legal and says nothing.
            if !delivery.message.message_id.is_empty() {
                return Ok(Some(Received {
                    delivery,
                    length: payload.flatten(),
                    has_payload: payload.is_some(),
                }));
            }
        }
    }

    /// The length of the next part, which must have this name; `None` at the end of the stream.
    fn next_part(&mut self, name: &str, may_be_unnamed: bool) -> Result<Option<Option<u64>>, Error> {
        let head = self.parts.next_part().map_err(|error| self.failed(error))?;
        let Some(head) = head else { return Ok(None) };
        match head.name.as_deref() {
            Some(given) if given == name => Ok(Some(head.length)),
            None if may_be_unnamed => Ok(Some(head.length)),
            given => Err(self.bad(format!(
                "expected the part {name:?}, not {:?}",
                given.unwrap_or_default()
            ))),
        }
    }

    /// Reads the current part to its end.
    fn read_into(&mut self, bytes: &mut Vec<u8>, bytes_max: usize) -> Result<(), Error> {
        let mut piece = [0; 8192];
        loop {
            match self.parts.read_body(&mut piece).map_err(|error| self.failed(error))? {
                0 => return Ok(()),
                count if bytes_max < bytes.len() + count => return Err(self.too_large()),
                count => bytes.extend_from_slice(&piece[..count]),
            }
        }
    }

    fn too_large(&self) -> Error {
        self.bad("the description of a message is too large".to_owned())
    }

    /// What is here or arrives within a moment, in a stream that nobody wants to read any further. Then the connection is closed.
    pub(super) fn rest(&mut self) -> Vec<Delivery> {
        self.leave.leave();
        let mut rest = Vec::new();
        while let Ok(Some(received)) = self.next() {
            rest.push(received.delivery);
            if self.leave.is_over() {
                break;
            }
        }
        self.end();
        rest
    }

    /// Closes the connection; from here on the stream is broken off.
    pub(super) fn end(&mut self) {
        self.number += 1;
        self.parts = Parts::new(Box::new(io::empty()), "");
    }

    fn failed(&self, error: PartsError) -> Error {
        match error {
            PartsError::Io(error) => interrupted(&self.call, &self.endpoint, error),
            PartsError::Malformed(text) => self.bad(text.to_owned()),
        }
    }

    fn bad(&self, detail: String) -> Error {
        Error::BadAnswer {
            endpoint: self.endpoint.to_string(),
            detail,
        }
    }

    /// Reads the whole payload of the delivery that was received last.
    pub(super) fn read_payload(&mut self) -> Result<Content, Error> {
        let mut bytes = Vec::new();
        self.read_into(&mut bytes, usize::MAX)?;
        Ok(Content::Memory(io::Cursor::new(bytes)))
    }
}

/// Deliveries that a message may still read its payload from.
pub(super) type SharedDeliveries = Arc<Mutex<Deliveries>>;

/// The payload of a delivery: read now when it is small, else as the consumer reads it.
pub(super) fn payload_of(deliveries: &SharedDeliveries, received: &Received) -> Result<Content, Error> {
    if !received.has_payload {
        return Ok(Content::Closed);
    }
    let mut guard = deliveries.lock();
    match received.length {
        Some(length) if length <= PREFETCH_BYTES => guard.read_payload(),
        _ => Ok(Content::Stream {
            number: guard.number,
            deliveries: Arc::clone(deliveries),
        }),
    }
}

/// What is left of a payload.
pub(super) enum Content {
    Memory(io::Cursor<Vec<u8>>),
    Stream { deliveries: SharedDeliveries, number: u64 },
    Closed,
}

impl Read for Content {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Content::Memory(bytes) => bytes.read(out),
            Content::Closed => Ok(0),
            Content::Stream { deliveries, number } => {
                let mut deliveries = deliveries.lock();
                if deliveries.number != *number {
                    return Err(io::Error::other("the stream has moved on to the next message"));
                }
                deliveries.parts.read_body(out).map_err(|error| match error {
                    PartsError::Io(error) => error,
                    PartsError::Malformed(text) => io::Error::new(io::ErrorKind::InvalidData, text),
                })
            }
        }
    }
}

impl Content {
    /// True when reading it reads from the server.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Content::Stream { .. })
    }
}
