use serde::{Deserialize, Serialize};

use super::error::is_zero;

/// Answer to `POST /v1/update` (and mutate).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateResponse {
    /// The version that the key will have once this lease is released.
    pub new_version: i64,
    /// Etag of the staged state: SHA-256 of its bytes in lower-case hex.
    pub new_state_etag: String,
    /// Length of the stored state in bytes, insignificant white space removed.
    pub bytes: i64,
    /// Effective attributes.
    pub metadata: MetadataAttributes,
}

/// Attributes of a key as answers show them. A `false` is not shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetadataAttributes {
    /// Hidden from queries.
    #[serde(skip_serializing_if = "is_not_true")]
    pub query_hidden: Option<bool>,
}

/// Body of `POST /v1/metadata`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetadataRequest {
    /// New value of the attribute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_hidden: Option<bool>,
}

/// Answer to `POST /v1/metadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetadataResponse {
    /// Namespace in its normal form.
    pub namespace: String,
    /// Key as given.
    pub key: String,
    /// Effective version.
    pub version: i64,
    /// Effective attributes.
    pub metadata: MetadataAttributes,
}

/// Answer to `POST /v1/remove`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RemoveResponse {
    /// False when there was no state to remove.
    pub removed: bool,
    /// The version that the key will have once this lease is released; left out when 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub new_version: i64,
}

/// Answer to `GET /v1/describe`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DescribeResponse {
    /// Namespace in its normal form.
    pub namespace: String,
    /// Key as given.
    pub key: String,
    /// Owner of the recorded lease, which may be over already.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// Id of the recorded lease.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub lease_id: String,
    /// When the recorded lease is over (Unix time).
    #[serde(skip_serializing_if = "is_zero")]
    pub expires_at_unix: i64,
    /// Committed version.
    pub version: i64,
    /// Etag of the committed state.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state_etag: String,
    /// When the key's record last changed in any way (Unix time).
    #[serde(skip_serializing_if = "is_zero")]
    pub updated_at_unix: i64,
    /// Committed attributes.
    pub metadata: MetadataAttributes,
}

fn is_not_true(value: &Option<bool>) -> bool {
    *value != Some(true)
}
