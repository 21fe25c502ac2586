//! What can go wrong in our domain, free of HTTP.
//!
//! A refusal is an answer: the rules looked at the record and said no. The rest are faults. Only `http::reply` knows
//! which status code either becomes.

use std::fmt;
use std::io;

use crate::json::JsonError;
use crate::lease::rules::{Reason, Refused};
use crate::queue::rules::Refusal;
use crate::record::DecodeError;
use crate::store::{RecordKey, StoreError};

/// Why a call on leases, state or namespaces did not do what was asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The rules refuse it. Nothing was changed, but that an expired lease may have been cleared.
    Refused(Refused),
    /// The rules refuse it of this message. Nothing was changed, but that a transaction may have been rolled back.
    MessageRefused(Refusal),
    /// The submitted state is not one JSON value.
    InvalidJson(JsonError),
    /// The submitted body is larger than the server takes.
    BodyTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The submitted body has another length than announced.
    ExpectedBytesMismatch {
        /// Announced length in bytes.
        expected: u64,
        /// Length that arrived.
        actual: u64,
    },
    /// The submitted body has another hash than announced.
    ExpectedSha256Mismatch {
        /// Announced SHA-256, hex.
        expected: String,
        /// SHA-256 of what arrived, lower-case hex.
        actual: String,
    },
    /// The body ended early, came too slowly or could not be read.
    BodyUnreadable(io::Error),
    /// The namespace configuration is not in the state that the caller expected.
    NamespaceConflict,
    /// Renewing the lease of a queue message's state is the business of its message.
    QueueStateKeepalive,
    /// The server goes down and grants nothing new.
    Draining {
        /// Seconds until it will be gone, at least 1.
        retry_after_seconds: i64,
    },
    /// Many writers changed the same records over and over; this one never came through. Nothing was changed.
    Contended,
    /// A record that the store returned is damaged.
    CorruptRecord {
        /// Which record.
        key: RecordKey,
        /// What is wrong with it.
        cause: DecodeError,
    },
    /// The store failed.
    Store(StoreError),
}

impl Error {
    /// True when nothing was changed and nothing will be: what was prepared for the change can go.
    pub fn is_certainly_not_done(&self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::MessageRefused(_)
                | Self::Contended
                | Self::CorruptRecord { .. }
                | Self::Store(StoreError::NotDone { .. })
        )
    }

    /// The reason, if this is a refusal by the rules.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused(refusal) => Some(refusal.reason),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => f.write_str(explain(refusal.reason)),
            Self::MessageRefused(refusal) => f.write_str(explain_message(*refusal)),
            Self::InvalidJson(cause) => write!(f, "the state is not one JSON value: {cause}"),
            Self::BodyTooLarge { limit } => write!(f, "http: request body too large (limit {limit} bytes)"),
            Self::ExpectedBytesMismatch { expected, actual } => {
                write!(f, "expected {expected} bytes, got {actual}")
            }
            Self::ExpectedSha256Mismatch { expected, actual } => write!(f, "expected sha256 {expected}, got {actual}"),
            Self::BodyUnreadable(cause) => write!(f, "the request body could not be read: {cause}"),
            Self::NamespaceConflict => f.write_str("the namespace configuration has changed"),
            Self::QueueStateKeepalive => f.write_str("extend the queue message instead"),
            Self::Draining { .. } => f.write_str("the server is shutting down"),
            Self::Contended => f.write_str("too many concurrent writers on the same key"),
            Self::CorruptRecord { key, cause } => write!(f, "record {key} is damaged: {cause}"),
            Self::Store(cause) => cause.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::InvalidJson(cause) => Some(cause),
            Self::BodyUnreadable(cause) => Some(cause),
            Self::CorruptRecord { cause, .. } => Some(cause),
            Self::Store(cause) => Some(cause),
            _ => None,
        }
    }
}

impl From<Refused> for Error {
    fn from(refusal: Refused) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::MessageRefused(refusal)
    }
}

impl From<StoreError> for Error {
    fn from(cause: StoreError) -> Self {
        Self::Store(cause)
    }
}

impl From<JsonError> for Error {
    fn from(cause: JsonError) -> Self {
        Self::InvalidJson(cause)
    }
}

fn explain(reason: Reason) -> &'static str {
    match reason {
        Reason::LeaseRequired => "the key is not held by this lease",
        Reason::LeaseExpired => "the lease has expired",
        Reason::FencingMismatch => "the fencing token is not that of the lease",
        Reason::MissingTxn => "the transaction id is missing",
        Reason::TxnMismatch => "the lease belongs to another transaction",
        Reason::Held { .. } => "lease already held",
        Reason::AlreadyExists => "the key exists already",
        Reason::VersionConflict => "state version mismatch",
        Reason::EtagMismatch => "state etag mismatch",
        Reason::TxnConflict => "a participant of the transaction was lost; all of it was rolled back",
    }
}

fn explain_message(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Gone => "message not found",
        Refusal::LeaseMismatch => "the message is leased, but not by this lease, token and transaction",
        Refusal::LeaseRequired => "the message is not held by this lease",
        Refusal::LeaseExpired => "the lease has expired",
        Refusal::StateFencingMismatch => "the fencing token is not that of the state's lease",
        Refusal::StaleEtag => "the message has changed since",
        Refusal::TxnConflict => "a participant of the transaction was lost; all of it was rolled back",
    }
}
