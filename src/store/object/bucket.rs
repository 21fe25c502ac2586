//! What the engine needs of an object store: the seam between it and the transports.
//!
//! Names are whole object names without the bucket; etags are the store's own, without quotes. A transport sends each
//! request once and says what became of it; trying again is the business of whoever knows what a second try may do.

use std::fmt;
use std::io::Read;

use crate::store::StoreError;

/// A bucket or container in which objects are read, put under conditions, listed and deleted.
pub(super) trait Bucket: Send + Sync + 'static {
    /// Reads a small object whole.
    fn get(&self, name: &str) -> Result<Option<Object>, Failure>;

    /// Opens an object for reading from the byte at `from`. With an etag only that state of it.
    fn open(&self, name: &str, from: u64, etag: Option<&str>) -> Result<Option<Opened>, Failure>;

    /// Replaces or creates an object in one step with its condition.
    fn put(&self, name: &str, bytes: &[u8], condition: &Condition) -> Result<Put, Failure>;

    /// Deletes an object, whatever it holds. One that is not there is fine.
    fn delete(&self, name: &str) -> Result<(), Failure>;

    /// Deletes an object if it is in this state; for whoever wants to know whether the store looks at the condition.
    fn delete_if(&self, name: &str, etag: &str) -> Result<(), Failure>;

    /// Lists objects whose name begins with `prefix` and is greater than `after`, in byte order, at most `limit`. `limit`
    /// is at least 1.
    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, Failure>;

    /// Begins an object that is put in parts, and names the upload. Nothing is visible before [`Bucket::finish_upload`].
    fn begin_upload(&self, name: &str) -> Result<String, Failure>;

    /// Puts one part, counted from 1, and returns what the end must name it by. The same part may be put again.
    fn put_part(&self, name: &str, upload: &str, number: u32, bytes: &[u8]) -> Result<String, Failure>;

    /// Makes the parts the object.
    fn finish_upload(&self, name: &str, upload: &str, parts: &[String]) -> Result<(), Failure>;

    /// Throws away what was put so far.
    fn abort_upload(&self, name: &str, upload: &str) -> Result<(), Failure>;

    /// Throws away uploads of objects whose name begins with `prefix` that were begun before this time (milliseconds of
    /// Unix time) and never finished. Stores that do so by themselves need nothing.
    fn abort_uploads_before(&self, prefix: &str, time_ms: i64) -> Result<(), Failure> {
        let _ = (prefix, time_ms);
        Ok(())
    }

    /// Every part but the last has this size in bytes.
    fn part_bytes(&self) -> usize;

    /// Which store this is, for messages.
    fn describe(&self) -> String;

    /// Names etags without quotes from now on.
    fn use_plain_etags(&self) {}

    /// Makes sure that the bucket is there. Returns when it is, or makes it where that is the custom.
    fn check_bucket(&self) -> Result<(), Failure>;
}

/// A small object as read.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) bytes: Vec<u8>,
    pub(super) etag: String,
}

/// An object that is being read.
pub(super) struct Opened {
    pub(super) etag: String,
    /// How many bytes there are from where it was opened.
    pub(super) bytes_left: u64,
    pub(super) reader: Box<dyn Read + Send>,
}

/// What must hold of an object for a put to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    /// Anything. Only for names that are written once.
    None,
    /// There is no such object.
    Absent,
    /// The object is in this state.
    Matches(String),
}

/// The answer to a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Put {
    /// Done; the object's new etag.
    Done(String),
    /// The condition does not hold.
    Refused,
}

/// A part of a listing.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) rows: Vec<Row>,
    /// There may be more after the last row.
    pub(super) more: bool,
}

/// One object in a listing.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) etag: String,
    pub(super) bytes: u64,
    /// When it was put, in milliseconds of Unix time by the clock of the store.
    pub(super) modified_ms: i64,
}

/// Why a request brought no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// It has certainly not been carried out, and may be later.
    NotDone(String),
    /// Nobody knows whether it has been carried out.
    Lost(String),
    /// The store will not do it: rights, credentials, a bucket that is not there. Certainly not carried out.
    Denied(String),
}

impl Failure {
    /// For a request that changes nothing: there is nothing to have been done.
    pub(super) fn of_question(self) -> StoreError {
        match self {
            Self::NotDone(detail) | Self::Lost(detail) => StoreError::NotDone { detail },
            Self::Denied(detail) => StoreError::Unavailable { detail },
        }
    }

    /// For a request that changes something.
    pub(super) fn of_change(self) -> StoreError {
        match self {
            Self::NotDone(detail) => StoreError::NotDone { detail },
            Self::Lost(detail) => StoreError::Unknown { detail },
            Self::Denied(detail) => StoreError::Unavailable { detail },
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDone(detail) | Self::Lost(detail) | Self::Denied(detail) => f.write_str(detail),
        }
    }
}
