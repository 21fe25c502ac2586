use serde::{Deserialize, Serialize};

use super::error::is_zero;

/// Body of `POST /v1/acquire`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AcquireRequest {
    /// Namespace; empty means the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Key; empty means that the server makes one up.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// Life of the lease in seconds. 0 and less mean the server's default (30 s); more than its maximum is cut to it.
    pub ttl_seconds: i64,
    /// Who asks. Free text, shown by describe, never empty.
    pub owner: String,
    /// How long to wait for a held key, in seconds: -1 not at all, 0 without limit.
    pub block_seconds: i64,
    /// Fail with `already_exists` when the key has ever been acquired before.
    #[serde(skip_serializing_if = "is_false")]
    pub if_not_exists: bool,
    /// Transaction to join (an xid); empty means that the server mints one for this lease alone.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub txn_id: String,
}

/// Answer to acquire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AcquireResponse {
    /// Namespace in its normal form.
    pub namespace: String,
    /// Id of the new lease.
    pub lease_id: String,
    /// Transaction to which everything staged under this lease belongs.
    pub txn_id: String,
    /// The key as it was asked for, or the generated one.
    pub key: String,
    /// Owner as given.
    pub owner: String,
    /// The lease is over when the clock shows this second (Unix time).
    pub expires_at_unix: i64,
    /// Committed version of the key, 0 when nothing was ever committed.
    pub version: i64,
    /// Etag of the committed state; empty when there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state_etag: String,
    /// Fencing token of this grant: it grows with every grant of the key and never restarts.
    pub fencing_token: i64,
    /// In the schema, never sent by servers.
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: i64,
    /// Correlation id of this call.
    pub correlation_id: String,
}

/// Body of `POST /v1/keepalive`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeepaliveRequest {
    /// Namespace; empty means the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Key as returned by acquire.
    pub key: String,
    /// Lease to renew.
    pub lease_id: String,
    /// New life in seconds, counted from now; it sets, it does not add.
    pub ttl_seconds: i64,
    /// Transaction of the lease; the header beats it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub txn_id: String,
    /// Some clients repeat the token here. Accepted and ignored: the header counts.
    #[serde(skip_serializing)]
    pub fencing_token: Option<i64>,
}

/// Answer to keepalive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeepaliveResponse {
    /// The lease is over when the clock shows this second (Unix time).
    pub expires_at_unix: i64,
    /// Effective version: the staged one when the lease has staged something, else the committed one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// Effective state etag, left out when there is no state.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state_etag: String,
}

/// Body of `POST /v1/release`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReleaseRequest {
    /// Namespace; empty means the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Key as returned by acquire.
    pub key: String,
    /// Lease to end.
    pub lease_id: String,
    /// Transaction of the lease.
    pub txn_id: String,
    /// Drop what was staged instead of committing it.
    pub rollback: bool,
    /// Accepted and ignored, as in keepalive.
    #[serde(skip_serializing)]
    pub fencing_token: Option<i64>,
}

/// Answer to release.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReleaseResponse {
    /// Always true: after a release the caller holds nothing, whatever was there before.
    pub released: bool,
}

fn is_false(value: &bool) -> bool {
    !*value
}
