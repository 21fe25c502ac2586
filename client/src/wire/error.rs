use serde::{Deserialize, Serialize};

/// The body of every error answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorEnvelope {
    /// The code that programs branch on; one of [`codes`](super::codes).
    pub error: String,
    /// An explanation for people. Nothing parses it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The coordinator to ask instead (other servers).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub leader_endpoint: String,
    /// The version that the call met, when it is above 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub current_version: i64,
    /// The state etag that the call met, when there is one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub current_etag: String,
    /// Whole seconds after which the call may be tried again, when above 0; equal to the `Retry-After` header.
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: i64,
}

pub(super) fn is_zero(value: &i64) -> bool {
    *value == 0
}
