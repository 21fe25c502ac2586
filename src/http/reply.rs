//! Answers, and the only place where an error of the domain becomes a status code.
//!
//! The code is for programs, the message for people; what only an operator should know goes to the log. A refusal by the
//! rules carries the version and etag that it met, so that a client can decide without asking again.

use std::io::Read;
use std::sync::Arc;

use lockd_client::wire::{ErrorEnvelope, codes, headers};
use serde::Serialize;

use crate::error::Error;
use crate::lease::rules::{Now, Reason, Refused};
use crate::queue::rules::Refusal;
use crate::store::StoreError;

/// An answer before it is written.
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Content type, where there is content.
    pub content_type: Option<&'static str>,
    /// Headers beyond those that every answer has.
    pub headers: Vec<(&'static str, String)>,
    /// Content.
    pub body: ReplyBody,
}

/// The content of an answer.
pub enum ReplyBody {
    /// None.
    Empty,
    /// Bytes made for this answer.
    Bytes(Vec<u8>),
    /// Bytes that others hold as well.
    Shared(Arc<[u8]>),
    /// Of unknown length, written after the head.
    Open,
    /// A reader and how many bytes of it to send.
    Stream {
        /// Yields the bytes.
        reader: Box<dyn Read + Send>,
        /// How many there are.
        length: u64,
    },
}

impl ReplyBody {
    /// The content, unless it is a stream. Errors never are.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Shared(bytes) => bytes,
            Self::Empty | Self::Open | Self::Stream { .. } => &[],
        }
    }
}

const JSON: &str = "application/json";

impl Reply {
    /// An answer without content.
    pub fn empty(status: u16) -> Self {
        Self {
            status,
            content_type: None,
            headers: Vec::new(),
            body: ReplyBody::Empty,
        }
    }

    /// One JSON object and a line feed.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        let mut bytes = Vec::with_capacity(256);
        if serde_json::to_writer(&mut bytes, value).is_err() {
            // Wire types have string keys and no fallible parts; if one ever fails, say so instead of half an answer.
            return Self::error(500, codes::INTERNAL_ERROR, "the answer could not be written down");
        }
        bytes.push(b'\n');
        Self {
            status,
            content_type: Some(JSON),
            headers: Vec::new(),
            body: ReplyBody::Bytes(bytes),
        }
    }

    /// A stored JSON state.
    pub fn state(body: ReplyBody) -> Self {
        Self {
            status: 200,
            content_type: Some(JSON),
            headers: Vec::new(),
            body,
        }
    }

    /// An error with nothing but a code and an explanation.
    pub fn error(status: u16, code: &str, detail: impl Into<String>) -> Self {
        Self::from_envelope(
            status,
            ErrorEnvelope {
                error: code.to_owned(),
                detail: detail.into(),
                ..Default::default()
            },
        )
    }

    /// There was nothing in time. Zero seconds: it may be tried again at once.
    pub fn waiting(detail: &str, retry_after_seconds: i64) -> Self {
        Self::from_envelope(
            409,
            ErrorEnvelope {
                error: codes::WAITING.to_owned(),
                detail: detail.to_owned(),
                retry_after_seconds,
                ..Default::default()
            },
        )
    }

    /// The same answer with another header.
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    /// The status code as text.
    pub fn status_text(&self) -> &'static str {
        match self.status {
            200 => "200",
            204 => "204",
            400 => "400",
            403 => "403",
            404 => "404",
            405 => "405",
            409 => "409",
            503 => "503",
            _ => "500",
        }
    }

    /// What `Content-Length` says; an answer 204 has none.
    pub fn content_length(&self) -> Option<u64> {
        match &self.body {
            ReplyBody::Empty => (self.status != 204).then_some(0),
            ReplyBody::Bytes(bytes) => Some(bytes.len() as u64),
            ReplyBody::Shared(bytes) => Some(bytes.len() as u64),
            ReplyBody::Open => None,
            ReplyBody::Stream { length, .. } => Some(*length),
        }
    }

    fn from_envelope(status: u16, envelope: ErrorEnvelope) -> Self {
        let retry_after = envelope.retry_after_seconds;
        let reply = Self::json(status, &envelope);
        if 0 < retry_after {
            reply.with(headers::RETRY_AFTER, retry_after)
        } else {
            reply
        }
    }
}

/// A request that cannot be understood or is not allowed, found before any rule was asked.
#[derive(Debug)]
pub struct BadRequest {
    /// Status code.
    pub status: u16,
    /// Code for programs.
    pub code: &'static str,
    /// Explanation for people.
    pub detail: String,
}

impl BadRequest {
    /// Status 400 with this code.
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status: 400,
            code,
            detail: detail.into(),
        }
    }
}

/// Everything that can keep a handler from answering well.
#[derive(Debug)]
pub enum Failure {
    /// The request itself is at fault.
    Bad(BadRequest),
    /// The domain refused or failed.
    Domain(Error),
    /// Too much of this kind is going on: come back later.
    Busy(&'static str),
}

impl From<BadRequest> for Failure {
    fn from(bad: BadRequest) -> Self {
        Self::Bad(bad)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Domain(error)
    }
}

/// True when an operator should hear of it: it is nobody's mistake but ours or the store's.
pub fn is_fault(error: &Error) -> bool {
    matches!(error, Error::Store(_) | Error::CorruptRecord { .. } | Error::Contended)
}

/// The answer that goes with an error of the domain.
pub fn domain_reply(error: &Error, now: Now) -> Reply {
    let (status, code) = match error {
        Error::Refused(refusal) => return refusal_reply(refusal, error.to_string(), now),
        Error::MessageRefused(refusal) => message_refusal(*refusal),
        Error::InvalidJson(_) | Error::BodyTooLarge { .. } | Error::BodyUnreadable(_) => (400, codes::INVALID_BODY),
        Error::ExpectedBytesMismatch { .. } => (409, codes::EXPECTED_BYTES_MISMATCH),
        Error::ExpectedSha256Mismatch { .. } => (409, codes::EXPECTED_SHA256_MISMATCH),
        Error::NamespaceConflict => (409, codes::NAMESPACE_CONFIG_CONFLICT),
        Error::QueueStateKeepalive => (403, codes::QUEUE_STATE_KEEPALIVE_UNSUPPORTED),
        Error::Draining { retry_after_seconds } => {
            return busy(codes::SHUTDOWN_DRAINING, &error.to_string(), *retry_after_seconds);
        }
        Error::Contended => return busy(codes::STORAGE_UNAVAILABLE, &error.to_string(), 1),
        Error::Store(StoreError::NotDone { .. } | StoreError::Unavailable { .. } | StoreError::Unknown { .. }) => {
            return busy(codes::STORAGE_UNAVAILABLE, "the storage cannot serve at the moment", 1);
        }
        // What is damaged and where is for the log, not for a client.
        Error::Store(_) | Error::CorruptRecord { .. } => {
            return Reply::error(500, codes::INTERNAL_ERROR, "internal server error");
        }
    };
    Reply::error(status, code, error.to_string())
}

fn message_refusal(refusal: Refusal) -> (u16, &'static str) {
    match refusal {
        Refusal::Gone => (404, codes::NOT_FOUND),
        Refusal::LeaseMismatch => (409, codes::QUEUE_MESSAGE_LEASE_MISMATCH),
        Refusal::LeaseRequired => (403, codes::LEASE_REQUIRED),
        Refusal::LeaseExpired => (403, codes::LEASE_EXPIRED),
        Refusal::StateFencingMismatch => (403, codes::FENCING_MISMATCH),
        Refusal::StaleEtag => (409, codes::CAS_MISMATCH),
        Refusal::TxnConflict => (409, codes::TXN_CONFLICT),
    }
}

/// An answer 503 that asks to come back later.
pub fn busy(code: &str, detail: &str, retry_after_seconds: i64) -> Reply {
    Reply::from_envelope(
        503,
        ErrorEnvelope {
            error: code.to_owned(),
            detail: detail.to_owned(),
            retry_after_seconds: retry_after_seconds.max(1),
            ..Default::default()
        },
    )
}

fn refusal_reply(refusal: &Refused, detail: String, now: Now) -> Reply {
    let (status, code) = match refusal.reason {
        Reason::LeaseRequired => (403, codes::LEASE_REQUIRED),
        Reason::LeaseExpired => (403, codes::LEASE_EXPIRED),
        Reason::FencingMismatch => (403, codes::FENCING_MISMATCH),
        Reason::MissingTxn => (400, codes::MISSING_TXN),
        Reason::TxnMismatch => (409, codes::TXN_MISMATCH),
        Reason::Held { .. } => (409, codes::WAITING),
        Reason::AlreadyExists => (409, codes::ALREADY_EXISTS),
        Reason::VersionConflict => (409, codes::VERSION_CONFLICT),
        Reason::EtagMismatch => (409, codes::ETAG_MISMATCH),
        Reason::TxnConflict => (409, codes::TXN_CONFLICT),
    };
    let retry_after_seconds = match refusal.reason {
        Reason::Held { until_unix } => retry_after(until_unix, now),
        _ => 0,
    };
    // A create-only acquire learns that the key exists, and no more.
    let tells_version = refusal.reason != Reason::AlreadyExists;
    Reply::from_envelope(
        status,
        ErrorEnvelope {
            error: code.to_owned(),
            detail,
            current_version: if tells_version { refusal.version } else { 0 },
            current_etag: refusal
                .etag
                .as_deref()
                .filter(|_| tells_version)
                .unwrap_or_default()
                .to_owned(),
            retry_after_seconds,
            ..Default::default()
        },
    )
}

/// Whole seconds until a lease ends, rounded up, at least 1.
fn retry_after(until_unix: i64, now: Now) -> i64 {
    let left_ms = until_unix.saturating_mul(1000).saturating_sub(now.ms);
    left_ms
        .div_euclid(1000)
        .saturating_add(i64::from(left_ms.rem_euclid(1000) != 0))
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_retry_is_rounded_up_and_never_zero() {
        assert_eq!(retry_after(40, Now { ms: 2_500 }), 38);
        assert_eq!(retry_after(40, Now { ms: 2_000 }), 38);
        assert_eq!(retry_after(40, Now { ms: 39_999 }), 1);
        assert_eq!(retry_after(40, Now { ms: 41_000 }), 1);
    }

    #[test]
    fn every_status_that_is_answered_has_its_text() {
        for status in [200, 204, 400, 403, 404, 405, 409, 500, 503] {
            assert_eq!(Reply::empty(status).status_text(), status.to_string());
        }
    }
}
