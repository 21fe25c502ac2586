//! A state on its way in: validated, compacted, hashed and put down piece by piece.
//!
//! Never more than one copy is held in memory, and of a large state not even that: up to
//! [`INLINE_BYTES_MAX`] stays in the record, up to the spool limit travels with the record as one batch, and whatever is
//! larger streams into a body of the store while it is still arriving.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::ids::IdMaker;
use crate::json::JsonCompactor;
use crate::record::{Body, INLINE_BYTES_MAX, StateValue};
use crate::store::{BodyId, BodyWriter, Store, StoreError};

/// What the caller announced about the raw bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Announced {
    /// Length in bytes.
    pub bytes: Option<u64>,
    /// SHA-256, 64 hex digits in any case.
    pub sha256: Option<String>,
}

/// A state that has arrived whole and can be staged.
#[derive(Debug)]
pub struct Arrived {
    /// The value to put into the record.
    pub value: StateValue,
    /// A body that must be written along with the record.
    pub along: Vec<(BodyId, Arc<[u8]>)>,
}

impl Arrived {
    /// The body that is in the store already and must go if the state is not staged.
    pub fn written_ahead(&self) -> Option<&BodyId> {
        match &self.value.body {
            Body::Stored(id) if self.along.is_empty() => Some(id),
            _ => None,
        }
    }
}

/// Takes raw bytes in and makes a state of them.
pub struct Incoming<'a> {
    store: &'a dyn Store,
    ids: &'a IdMaker,
    spool_bytes_max: usize,
    raw_bytes_max: u64,
    announced: Announced,
    compactor: JsonCompactor,
    raw_bytes: u64,
    raw_hash: Option<Sha256>,
    compact_hash: Sha256,
    compact_bytes: u64,
    spool: Vec<u8>,
    body: Option<Box<dyn BodyWriter>>,
}

impl<'a> Incoming<'a> {
    /// Begins a state of at most `raw_bytes_max` submitted bytes, of which at most `spool_bytes_max` are held in memory.
    pub fn new(
        store: &'a dyn Store,
        ids: &'a IdMaker,
        raw_bytes_max: u64,
        spool_bytes_max: usize,
        announced: Announced,
    ) -> Self {
        let raw_hash = announced.sha256.is_some().then(Sha256::new);
        Self {
            store,
            ids,
            spool_bytes_max,
            raw_bytes_max,
            announced,
            compactor: JsonCompactor::new(),
            raw_bytes: 0,
            raw_hash,
            compact_hash: Sha256::new(),
            compact_bytes: 0,
            spool: Vec::new(),
            body: None,
        }
    }

    /// Takes the next raw bytes.
    pub fn push(&mut self, raw: &[u8]) -> Result<(), Error> {
        self.raw_bytes += raw.len() as u64;
        if self.raw_bytes_max < self.raw_bytes {
            return Err(Error::BodyTooLarge {
                limit: self.raw_bytes_max,
            });
        }
        if let Some(hash) = &mut self.raw_hash {
            hash.update(raw);
        }
        let from = self.spool.len();
        self.compactor.push(raw, &mut self.spool)?;
        self.account(from)?;
        Ok(())
    }

    /// Ends the state: it must be whole, and what was announced must be true.
    pub fn finish(mut self) -> Result<Arrived, Error> {
        std::mem::take(&mut self.compactor).finish()?;
        self.check_announced()?;
        let etag: Arc<str> = hex(&self.compact_hash.finalize()).into();
        let mut along = Vec::new();
        let body = match self.body {
            Some(mut writer) => {
                writer.write_all(&self.spool).map_err(|cause| not_written(&cause))?;
                Body::Stored(writer.finish()?)
            }
            None if self.spool.len() <= INLINE_BYTES_MAX => Body::Inline(self.spool.into()),
            None => {
                let id = BodyId::new(self.ids.uuid());
                along.push((id.clone(), self.spool.into()));
                Body::Stored(id)
            }
        };
        Ok(Arrived {
            value: StateValue {
                etag,
                bytes: self.compact_bytes,
                body,
            },
            along,
        })
    }

    /// Hashes what was added to the spool, and moves the spool into the store when it grows too large.
    fn account(&mut self, from: usize) -> Result<(), Error> {
        let added = &self.spool[from..];
        self.compact_hash.update(added);
        self.compact_bytes += added.len() as u64;
        if self.spool.len() <= self.spool_bytes_max.max(INLINE_BYTES_MAX) {
            return Ok(());
        }
        let writer = match &mut self.body {
            Some(writer) => writer,
            None => self.body.insert(self.store.body_writer()?),
        };
        writer.write_all(&self.spool).map_err(|cause| not_written(&cause))?;
        self.spool.clear();
        Ok(())
    }

    fn check_announced(&mut self) -> Result<(), Error> {
        if let Some(expected) = self.announced.bytes
            && expected != self.raw_bytes
        {
            return Err(Error::ExpectedBytesMismatch {
                expected,
                actual: self.raw_bytes,
            });
        }
        if let (Some(expected), Some(hash)) = (self.announced.sha256.take(), self.raw_hash.take()) {
            let actual = hex(&hash.finalize());
            if !expected.eq_ignore_ascii_case(&actual) {
                return Err(Error::ExpectedSha256Mismatch { expected, actual });
            }
        }
        Ok(())
    }
}

fn not_written(cause: &std::io::Error) -> Error {
    Error::Store(StoreError::NotDone {
        detail: format!("writing a body: {cause}"),
    })
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
