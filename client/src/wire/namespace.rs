use serde::{Deserialize, Serialize};

/// Body of `POST /v1/namespace`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NamespaceRequest {
    /// Namespace; empty means the query parameter, then the server's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// What to change. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<QueryEngines>,
}

/// Which engine answers queries of a namespace. An absent field keeps its value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueryEngines {
    /// `index` or `scan`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub preferred_engine: String,
    /// `scan` or `none`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fallback_engine: String,
}

/// Answer of `/v1/namespace`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamespaceConfig {
    /// Namespace in its normal form.
    pub namespace: String,
    /// The engines in force.
    pub query: QueryEngines,
}
