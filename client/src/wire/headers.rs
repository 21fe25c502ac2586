//! Names of the request and response headers. Header names are case-insensitive on the wire.

/// Correlation id of a request, echoed on every answer.
pub const CORRELATION_ID: &str = "X-Correlation-Id";
/// Lease id as granted by acquire.
pub const LEASE_ID: &str = "X-Lease-ID";
/// Fencing token, a base-10 signed 64-bit integer, first grant of a key = 1.
pub const FENCING_TOKEN: &str = "X-Fencing-Token";
/// Transaction id (an xid).
pub const TXN_ID: &str = "X-Txn-ID";
/// Version that the caller expects; a base-10 signed 64-bit integer.
pub const IF_VERSION: &str = "X-If-Version";
/// State etag that the caller expects, with or without double quotes.
pub const IF_STATE_ETAG: &str = "X-If-State-ETag";
/// SHA-256 of the raw body, 64 hex digits.
pub const EXPECTED_SHA256: &str = "X-Expected-SHA256";
/// Length of the raw body in bytes.
pub const EXPECTED_BYTES: &str = "X-Expected-Bytes";
/// The attribute `query_hidden`, as a boolean word.
pub const META_QUERY_HIDDEN: &str = "X-Lockd-Meta-Query-Hidden";
/// Version of the key, a base-10 signed 64-bit integer.
pub const KEY_VERSION: &str = "X-Key-Version";
/// Etag of a state or of a namespace configuration, without quotes.
pub const ETAG: &str = "ETag";
/// Etag precondition of a namespace configuration.
pub const IF_MATCH: &str = "If-Match";
/// Whole seconds, at least 1, after which a refused call may be tried again.
pub const RETRY_AFTER: &str = "Retry-After";
/// `true` on every answer while a server drains.
pub const SHUTDOWN_IMMINENT: &str = "Shutdown-Imminent";
/// State of the server's self-protection, on 429 answers.
pub const QRF_STATE: &str = "X-Lockd-QRF-State";
