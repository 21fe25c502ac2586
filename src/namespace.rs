//! The configuration of a namespace: which engine answers its queries.

use std::sync::Arc;

use lockd_client::wire::QueryEngines;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::keys::{Namespace, namespace_record};
use crate::record::DecodeError;
use crate::state::hex;
use crate::store::{Batch, Change, Precondition, RecordWrite, Store, Written};

const ROUNDS_MAX: usize = 100;

/// An engine that looks a query up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preferred {
    /// The index.
    Index,
    /// A scan over all keys.
    Scan,
}

/// What to do when the preferred engine cannot answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// Scan over all keys.
    Scan,
    /// Nothing.
    None,
}

/// The engines of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engines {
    /// Asked first.
    pub preferred: Preferred,
    /// Asked when the first cannot answer.
    pub fallback: Fallback,
}

impl Default for Engines {
    fn default() -> Self {
        Self {
            preferred: Preferred::Index,
            fallback: Fallback::None,
        }
    }
}

impl Engines {
    /// As the wire shows them.
    pub fn to_wire(self) -> QueryEngines {
        let preferred_engine = match self.preferred {
            Preferred::Index => "index",
            Preferred::Scan => "scan",
        };
        let fallback_engine = match self.fallback {
            Fallback::Scan => "scan",
            Fallback::None => "none",
        };
        QueryEngines {
            preferred_engine: preferred_engine.to_owned(),
            fallback_engine: fallback_engine.to_owned(),
        }
    }
}

/// What to change; an absent member keeps its value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EnginesChange {
    /// New preferred engine.
    pub preferred: Option<Preferred>,
    /// New fallback.
    pub fallback: Option<Fallback>,
}

/// Configurations of namespaces over a store.
pub struct Namespaces {
    store: Arc<dyn Store>,
}

impl Namespaces {
    /// A service over this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The engines in force, and the etag of the stored document if there is one.
    pub fn read(&self, namespace: &Namespace) -> Result<(Engines, Option<String>), Error> {
        let key = namespace_record(namespace);
        let Some(stored) = self.store.read(&key)? else {
            return Ok((Engines::default(), None));
        };
        let engines = serde_json::from_slice(&stored.value).map_err(|cause| Error::CorruptRecord {
            key,
            cause: DecodeError {
                offset: 0,
                detail: cause.to_string(),
            },
        })?;
        Ok((engines, Some(etag_of(&stored.value))))
    }

    /// Changes the engines, if the stored document still has the expected etag.
    pub fn change(
        &self,
        namespace: &Namespace,
        change: EnginesChange,
        expected_etag: Option<&str>,
    ) -> Result<(Engines, String), Error> {
        let key = namespace_record(namespace);
        for _ in 0..ROUNDS_MAX {
            let precondition = self
                .store
                .read(&key)?
                .map_or(Precondition::Absent, |s| Precondition::Matches(s.etag));
            let (engines, etag) = self.read(namespace)?;
            if expected_etag.is_some_and(|expected| etag.as_deref() != Some(expected)) {
                return Err(Error::NamespaceConflict);
            }
            let engines = Engines {
                preferred: change.preferred.unwrap_or(engines.preferred),
                fallback: change.fallback.unwrap_or(engines.fallback),
            };
            let value: Arc<[u8]> = serde_json::to_vec(&engines).unwrap_or_default().into();
            let etag = etag_of(&value);
            let records = vec![RecordWrite {
                key: key.clone(),
                precondition,
                change: Change::Put(value),
            }];
            if let Written::Done(_) = self.store.write(Batch {
                records,
                ..Batch::default()
            })? {
                return Ok((engines, etag));
            }
        }
        Err(Error::Contended)
    }
}

fn etag_of(value: &[u8]) -> String {
    hex(&Sha256::digest(value))
}
