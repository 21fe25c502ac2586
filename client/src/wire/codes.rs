//! Error codes: the stable words that programs branch on. Each is listed with the status that carries it.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*
    };
}

codes! {
    /// 400: the body is not the JSON that the endpoint takes, or it is too large.
    INVALID_BODY = "invalid_body";
    /// 400: the namespace is malformed or reserved.
    INVALID_NAMESPACE = "invalid_namespace";
    /// 400: the key is malformed.
    INVALID_KEY = "invalid_key";
    /// 400: no key was given.
    MISSING_KEY = "missing_key";
    /// 400: get without a key, or a leased get without a lease id.
    MISSING_PARAMS = "missing_params";
    /// 400: acquire without an owner.
    MISSING_OWNER = "missing_owner";
    /// 400: a transaction id that is no xid.
    INVALID_TXN = "invalid_txn";
    /// 400: no lease id was given.
    MISSING_LEASE = "missing_lease";
    /// 400: no transaction id was given.
    MISSING_TXN = "missing_txn";
    /// 400: no fencing token was given.
    MISSING_FENCING_TOKEN = "missing_fencing_token";
    /// 400: the fencing token is not a signed 64-bit integer.
    INVALID_FENCING_TOKEN = "invalid_fencing_token";
    /// 400: the expected version is not a signed 64-bit integer.
    INVALID_VERSION = "invalid_version";
    /// 400: the expected length is negative or no integer.
    INVALID_EXPECTED_BYTES = "invalid_expected_bytes";
    /// 400: the expected hash is not 64 hex digits.
    INVALID_EXPECTED_SHA256 = "invalid_expected_sha256";
    /// 400: no attribute was given, or a bad one.
    INVALID_METADATA = "invalid_metadata";
    /// 400: a namespace change without `query`.
    INVALID_NAMESPACE_REQUEST = "invalid_namespace_request";
    /// 403: the key has no such lease (any more).
    LEASE_REQUIRED = "lease_required";
    /// 403: the lease is over; this call has cleared it.
    LEASE_EXPIRED = "lease_expired";
    /// 403: the lease lives, but its token is another.
    FENCING_MISMATCH = "fencing_mismatch";
    /// 403: leases of queue state are renewed through their message.
    QUEUE_STATE_KEEPALIVE_UNSUPPORTED = "queue_state_keepalive_unsupported";
    /// 403: the caller may not use this namespace.
    NAMESPACE_FORBIDDEN = "namespace_forbidden";
    /// 404: there is no such endpoint or object.
    NOT_FOUND = "not_found";
    /// 405: the endpoint does not take this method.
    METHOD_NOT_ALLOWED = "method_not_allowed";
    /// 409: the key is held by another lease and the waiting time is over.
    WAITING = "waiting";
    /// 409: a create-only acquire met an existing key.
    ALREADY_EXISTS = "already_exists";
    /// 409: the expected version is not the current one.
    VERSION_CONFLICT = "version_conflict";
    /// 409: the expected state etag is not the current one.
    ETAG_MISMATCH = "etag_mismatch";
    /// 409: the transaction id is not that of the lease.
    TXN_MISMATCH = "txn_mismatch";
    /// 409: the transaction had to be decided against its caller: a participant was lost.
    TXN_CONFLICT = "txn_conflict";
    /// 409: a storage compare-and-swap was lost (other servers).
    CAS_MISMATCH = "cas_mismatch";
    /// 409: the body's length is not the announced one.
    EXPECTED_BYTES_MISMATCH = "expected_bytes_mismatch";
    /// 409: the body's hash is not the announced one.
    EXPECTED_SHA256_MISMATCH = "expected_sha256_mismatch";
    /// 409: the namespace configuration has another etag.
    NAMESPACE_CONFIG_CONFLICT = "namespace_config_conflict";
    /// 429: the server protects itself.
    THROTTLED = "throttled";
    /// 500: something unexpected.
    INTERNAL_ERROR = "internal_error";
    /// 503: the server is going down and takes no new leases.
    SHUTDOWN_DRAINING = "shutdown_draining";
    /// 503: this server is a standby.
    NODE_PASSIVE = "node_passive";
    /// 503: more requests are waiting than the server takes on.
    SERVER_BUSY = "server_busy";
    /// 503: the storage cannot serve at the moment.
    STORAGE_UNAVAILABLE = "storage_unavailable";
    /// 400: an enqueue that is not `multipart/*`.
    INVALID_CONTENT_TYPE = "invalid_content_type";
    /// 400: an enqueue whose parts are malformed, out of order or cut off.
    MULTIPART_ERROR = "multipart_error";
    /// 400: no queue was given.
    MISSING_QUEUE = "missing_queue";
    /// 400: a field that the call needs is empty.
    MISSING_FIELDS = "missing_fields";
    /// 400: the queue name is malformed.
    INVALID_QUEUE = "invalid_queue";
    /// 400: queue or message id cannot name a message.
    INVALID_QUEUE_KEY = "invalid_queue_key";
    /// 400: a nack with an intent other than `failure` and `defer`.
    INVALID_NACK_INTENT = "invalid_nack_intent";
    /// 400: a deferring nack with an error.
    INVALID_NACK_LAST_ERROR = "invalid_nack_last_error";
    /// 409: the message is leased, but not by this lease, token or transaction.
    QUEUE_MESSAGE_LEASE_MISMATCH = "queue_message_lease_mismatch";
    /// 409: extend lost a race (other servers).
    LEASE_CONFLICT = "lease_conflict";
    /// 409: the transaction is decided but not applied yet (other servers).
    TXN_PENDING = "txn_pending";
    /// 500: ack lost too many races (other servers).
    QUEUE_ACK_RETRY_EXCEEDED = "queue_ack_retry_exceeded";
    /// 501: a server without queues (other servers).
    QUEUE_DISABLED = "queue_disabled";
    /// 503: more consumers than the server takes on.
    QUEUE_BUSY = "queue_busy";
    /// 403: not allowed (other servers).
    FORBIDDEN = "forbidden";
    /// 401: not authenticated (other servers).
    UNAUTHORIZED = "unauthorized";
    /// 403: not allowed (other servers).
    PERMISSION_DENIED = "permission_denied";
}
