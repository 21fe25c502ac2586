//! The words that client and server exchange: bodies, headers, error codes.
//!
//! This module is the ground floor of the house. It uses `serde` (and `serde_json` where a field may be any JSON), knows of no transport, no clock and
//! no storage, and is shared by the client and the daemon, so that the two can never disagree about a name.
//!
//! Requests are strict (an unknown field is an error, because a misspelt option that is silently ignored costs more than
//! it saves); answers are lenient (a client skips what it does not know, so a newer server can say more). Optional
//! numbers are left out rather than sent as `null`, which other clients of this protocol do not accept.

pub mod codes;
mod error;
pub mod headers;
mod lease;
mod namespace;
mod queue;
mod state;

pub use error::ErrorEnvelope;
pub use lease::{
    AcquireRequest, AcquireResponse, KeepaliveRequest, KeepaliveResponse, ReleaseRequest, ReleaseResponse,
};
pub use namespace::{NamespaceConfig, NamespaceRequest, QueryEngines};
pub use queue::{
    AckRequest, AckResponse, DEFAULT_MAX_ATTEMPTS, DEFAULT_PAYLOAD_TYPE, DEFAULT_VISIBILITY_SECONDS, DeliveredMessage,
    Delivery, DequeueRequest, EnqueueRequest, EnqueueResponse, ExtendRequest, ExtendResponse, NackRequest,
    NackResponse, PAGE_SIZE_MAX, QUEUE_NAME_BYTES_MAX, QueueRequest, QueueStatsResponse, QueueWatchEvent,
    normalize_queue,
};
pub use state::{
    DescribeResponse, MetadataAttributes, MetadataRequest, MetadataResponse, RemoveResponse, UpdateResponse,
};

/// Longest namespace name and longest key, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Longest correlation id, in bytes; every byte is printable ASCII (0x20 to 0x7e).
pub const CORRELATION_ID_BYTES_MAX: usize = 128;

/// The port of a lockd server when an address names none.
pub const DEFAULT_PORT: u16 = 9341;

/// The namespace used when a request names none and the server was not told otherwise.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Largest body that a server reads for a namespace configuration, in bytes.
pub const NAMESPACE_BODY_BYTES_MAX: usize = 32 * 1024;

/// Largest body that a server reads for a metadata change, in bytes.
pub const METADATA_BODY_BYTES_MAX: usize = 4 * 1024;

/// Trims a correlation id and returns it when it may be sent: 1 to 128 bytes of printable ASCII.
pub fn valid_correlation_id(id: &str) -> Option<&str> {
    let id = id.trim();
    let printable = id.bytes().all(|b| (0x20..=0x7e).contains(&b));
    (!id.is_empty() && id.len() <= CORRELATION_ID_BYTES_MAX && printable).then_some(id)
}

/// Brings a namespace into its one form: trimmed and lower case, 1 to 128 characters of `a-z 0-9 . _ -`.
///
/// Returns `None` for anything else. An empty name is not replaced by a default here, and a reserved name (one that
/// begins with a dot) passes: what to do with either differs between client and server.
pub fn normalize_namespace(name: &str) -> Option<String> {
    let name = name.trim().to_ascii_lowercase();
    let legal = name.bytes().all(is_name_byte);
    (!name.is_empty() && name.len() <= NAME_BYTES_MAX && legal).then_some(name)
}

/// True for the bytes that names are made of, after lower-casing: `a-z 0-9 . _ -`.
pub fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_ids_are_trimmed_and_bounded() {
        assert_eq!(valid_correlation_id("  abc "), Some("abc"));
        assert_eq!(valid_correlation_id(""), None);
        assert_eq!(valid_correlation_id("   "), None);
        assert_eq!(valid_correlation_id(&"x".repeat(129)), None);
        assert_eq!(valid_correlation_id(&"x".repeat(128)).map(str::len), Some(128));
        assert_eq!(valid_correlation_id("a\u{1}b"), None);
        assert_eq!(valid_correlation_id("\u{fc}"), None);
    }

    #[test]
    fn namespaces_are_lower_cased_and_checked() {
        assert_eq!(normalize_namespace(" Shop ").as_deref(), Some("shop"));
        assert_eq!(normalize_namespace(".txns").as_deref(), Some(".txns"));
        assert_eq!(normalize_namespace(""), None);
        assert_eq!(normalize_namespace("a b"), None);
        assert_eq!(normalize_namespace(&"n".repeat(129)), None);
    }
}
