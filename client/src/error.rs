//! What can go wrong, and what to do about it.
//!
//! Three families: the server answered with an error ([`Error::Api`]); no server gave a whole answer
//! ([`Error::Unreachable`], [`Error::Interrupted`]), where the request may or may not have been carried out; and everything
//! that this crate refuses or ends by itself. Branch with the predicates ([`Error::is_waiting`] and its sisters): they also
//! look into [`Error::Joined`].

use std::fmt;
use std::io;
use std::time::{Duration, SystemTime};

use crate::wire::{ErrorEnvelope, codes};

/// Any error, as handlers return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The error of every call.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The server answered with an error. Look at [`ApiError::code`] or use a predicate.
    Api(Box<ApiError>),
    /// No endpoint gave an answer. Whether the request was carried out is unknown unless nothing was [sent](Attempt::sent) in
    /// any attempt. Read back before you repeat a write.
    Unreachable(Unreachable),
    /// A server began to answer and the answer broke off or was late. The request was most likely carried out.
    Interrupted(Attempt),
    /// A body that cannot be sent twice was on its way when the endpoint failed. The upload did not complete; start it
    /// again from the beginning.
    BodyNotReplayable(Attempt),
    /// The endpoint failed while a message was on its way to it, or before it had answered. The message may be stored. Enqueue
    /// it again only if its consumers get over a duplicate.
    MaybeEnqueued(Attempt),
    /// The body to send could not be read. Nothing was stored.
    BodySource(io::Error),
    /// A success answer that makes no sense: undecodable, or without what it must contain. Is the other side lockd?
    BadAnswer {
        /// Who answered.
        endpoint: String,
        /// What is wrong with the answer.
        detail: String,
    },
    /// The caller cancelled. A request that was on its way may have been carried out.
    Cancelled,
    /// The caller's deadline passed. A request that was on its way may have been carried out.
    DeadlineExceeded,
    /// The waiting time of an acquire is over and the key is still held. Try later.
    AcquireTimedOut {
        /// How long it was tried.
        elapsed: Duration,
        /// Why the last attempt failed; normally `waiting`.
        last: Box<Error>,
    },
    /// The client does not know the fencing token of this lease: it was released, or acquired elsewhere and never
    /// [registered](crate::Client::register_token). Nothing was sent.
    MissingFencingToken,
    /// The server says that the lease was not released.
    ReleaseDenied,
    /// An argument that no server would take. Nothing was sent.
    InvalidArgument(String),
    /// The client cannot be built like this.
    InvalidConfig(String),
    /// The message was acknowledged or given back through this or another handle. Nothing was sent.
    MessageClosed,
    /// The lease of a message could not be prolonged while its handler was at work, for this reason. Somebody else may get
    /// the message; the handler was told by its cancel token.
    AutoExtend(Box<Error>),
    /// A consumer does not go on.
    Consumer(Box<ConsumerError>),
    /// A handler failed with an error that is not one of ours.
    Handler(BoxError),
    /// Several things failed in one call, the first one first.
    Joined(Vec<Error>),
}

/// The end of a consumer.
#[derive(Debug)]
#[non_exhaustive]
pub struct ConsumerError {
    /// Name of the consumer.
    pub consumer: String,
    /// The queue it worked on.
    pub queue: String,
    /// Why it does not go on.
    pub reason: String,
    /// What failed last.
    pub last: Error,
}

/// An error answer.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ApiError {
    /// Who answered.
    pub endpoint: String,
    /// The HTTP status.
    pub status: u16,
    /// The stable word to branch on, one of [`codes`]; empty when the body was not an error envelope.
    pub code: String,
    /// An explanation for people.
    pub detail: String,
    /// The coordinator to ask instead (other servers).
    pub leader_endpoint: String,
    /// The version that the call met; 0 when not told.
    pub current_version: i64,
    /// The state etag that the call met; empty when not told.
    pub current_etag: String,
    /// Time after which the call may be tried again.
    pub retry_after: Option<Duration>,
    /// State of the server's self-protection in lower case; empty when not told.
    pub qrf_state: String,
    /// The body as received, up to 64 KiB.
    pub body: Vec<u8>,
}

/// Every endpoint of a walk failed.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unreachable {
    /// The failed attempts, in the order they were made. A passed-over standby (503 `node_passive`) has no entry.
    pub attempts: Vec<Attempt>,
    /// Every endpoint that was asked, in that order.
    pub order: Vec<String>,
}

/// One failed attempt at one endpoint.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attempt {
    /// The endpoint.
    pub endpoint: String,
    /// What happened.
    pub cause: TransportError,
    /// Any of the request was sent: it may have been carried out.
    pub sent: bool,
}

/// Why an exchange with one endpoint failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum TransportError {
    /// The time for this attempt was over; the phase says during what.
    Timeout(&'static str),
    /// The network said no: refused, reset, closed in the middle, name unknown.
    Io(io::Error),
    /// What came back is not HTTP, or breaks its rules.
    Protocol(String),
}

impl Error {
    /// The server's answer, when there is one among the causes.
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Error::Api(api) => Some(api),
            Error::Joined(all) => all.iter().find_map(Error::api),
            Error::AcquireTimedOut { last, .. } | Error::AutoExtend(last) => last.api(),
            Error::Consumer(end) => end.last.api(),
            _ => None,
        }
    }

    /// The HTTP status of the server's answer.
    pub fn status(&self) -> Option<u16> {
        self.api().map(|api| api.status)
    }

    /// The error code of the server's answer, when it has one.
    pub fn code(&self) -> Option<&str> {
        self.api().map(|api| api.code.as_str()).filter(|code| !code.is_empty())
    }

    /// True when the server answered with this code, also as one of several joined errors.
    pub fn has_code(&self, code: &str) -> bool {
        self.any(&|error| matches!(error, Error::Api(api) if api.code == code))
    }

    /// When the server wants to be asked again.
    pub fn retry_after(&self) -> Option<Duration> {
        self.api().and_then(|api| api.retry_after)
    }

    /// The key is held by somebody else, or the queue has nothing to deliver. Wait and try again.
    pub fn is_waiting(&self) -> bool {
        self.has_code(codes::WAITING)
    }

    /// A create-only acquire met a key that exists. Retrying will not help.
    pub fn is_already_exists(&self) -> bool {
        self.has_code(codes::ALREADY_EXISTS)
    }

    /// The lease is gone: released, expired or taken over. Acquire again and start from fresh state.
    pub fn is_lease_required(&self) -> bool {
        self.has_code(codes::LEASE_REQUIRED)
    }

    /// Any of the answers that mean "you do not hold this lease (any more)": `lease_required`, `lease_expired`,
    /// `fencing_mismatch`.
    pub fn is_lease_lost(&self) -> bool {
        self.is_lease_required() || self.has_code(codes::LEASE_EXPIRED) || self.has_code(codes::FENCING_MISMATCH)
    }

    /// Any of the answers to ack, nack and extend that mean "this delivery is not yours any more": the message is gone, its
    /// lease is over, or somebody else holds it. After an ack it is usually good news: somebody has done the work.
    pub fn is_message_lost(&self) -> bool {
        self.is_lease_lost() || self.has_code(codes::NOT_FOUND) || self.has_code(codes::QUEUE_MESSAGE_LEASE_MISMATCH)
    }

    /// The message was acknowledged or given back already; nothing was sent.
    pub fn is_message_closed(&self) -> bool {
        self.any(&|error| matches!(error, Error::MessageClosed))
    }

    /// The state is not the one that the write expected (`version_conflict` or `etag_mismatch`). Read again and decide anew;
    /// after a repeated update it can also mean that the first try did arrive.
    pub fn is_conflict(&self) -> bool {
        self.has_code(codes::VERSION_CONFLICT) || self.has_code(codes::ETAG_MISMATCH)
    }

    /// The server is a standby. The walk moves on by itself; seen only when no other endpoint took over.
    pub fn is_node_passive(&self) -> bool {
        self.has_code(codes::NODE_PASSIVE)
    }

    /// The server is going down and takes no new leases.
    pub fn is_shutdown_draining(&self) -> bool {
        self.has_code(codes::SHUTDOWN_DRAINING)
    }

    /// The caller cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.any(&|error| matches!(error, Error::Cancelled))
    }

    /// Some time limit was over: the caller's deadline, the waiting time of an acquire, or the time for one attempt.
    pub fn is_timeout(&self) -> bool {
        self.any(&|error| match error {
            Error::DeadlineExceeded | Error::AcquireTimedOut { .. } => true,
            _ => error.last_transport_error().is_some_and(TransportError::is_timeout),
        })
    }

    /// No whole answer came from any server. The request may have been carried out.
    pub fn is_transport(&self) -> bool {
        self.any(&|error| {
            matches!(
                error,
                Error::Unreachable(_) | Error::Interrupted(_) | Error::BodyNotReplayable(_) | Error::MaybeEnqueued(_)
            )
        })
    }

    /// The client knows no fencing token for the lease; nothing was sent.
    pub fn is_missing_fencing_token(&self) -> bool {
        self.any(&|error| matches!(error, Error::MissingFencingToken))
    }

    /// The last thing that the network did to this call.
    pub fn last_transport_error(&self) -> Option<&TransportError> {
        match self {
            Error::Unreachable(unreachable) => unreachable.attempts.last().map(|attempt| &attempt.cause),
            Error::Interrupted(attempt) | Error::BodyNotReplayable(attempt) | Error::MaybeEnqueued(attempt) => {
                Some(&attempt.cause)
            }
            _ => None,
        }
    }

    /// False when no request of the call can have been carried out unbeknown to its caller.
    pub(crate) fn leaves_open(&self) -> bool {
        self.any(&|error| match error {
            Error::Unreachable(unreachable) => unreachable.attempts.iter().any(|attempt| attempt.sent),
            Error::Interrupted(_) | Error::BadAnswer { .. } | Error::Cancelled | Error::DeadlineExceeded => true,
            _ => false,
        })
    }

    /// True when the predicate holds for this error or for one of the errors inside it.
    pub(crate) fn any(&self, predicate: &dyn Fn(&Error) -> bool) -> bool {
        match self {
            Error::Joined(all) => all.iter().any(|error| error.any(predicate)),
            Error::AcquireTimedOut { last, .. } | Error::AutoExtend(last) => predicate(self) || last.any(predicate),
            Error::Consumer(end) => predicate(self) || end.last.any(predicate),
            single => predicate(single),
        }
    }

    /// One error from many: none for an empty list, the thing itself for a single one.
    pub(crate) fn join(mut all: Vec<Error>) -> Option<Error> {
        match all.len() {
            0 => None,
            1 => all.pop(),
            _ => Some(Error::Joined(all)),
        }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Error {
        Error::InvalidArgument(text.into())
    }
}

impl TransportError {
    /// True when a time limit of this attempt was over.
    pub fn is_timeout(&self) -> bool {
        match self {
            TransportError::Timeout(_) => true,
            TransportError::Io(error) => error.kind() == io::ErrorKind::TimedOut,
            TransportError::Protocol(_) => false,
        }
    }

    /// True when the peer ended the connection before the exchange was complete.
    pub fn is_end_of_file(&self) -> bool {
        matches!(self, TransportError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    }

    pub(crate) fn from_io(error: io::Error) -> Self {
        match error.downcast::<ureq::Error>() {
            Ok(inner) => inner.into(),
            Err(error) => TransportError::Io(error),
        }
    }
}

impl From<ureq::Error> for TransportError {
    fn from(error: ureq::Error) -> Self {
        match error {
            ureq::Error::Io(error) => TransportError::Io(error),
            ureq::Error::Timeout(phase) => TransportError::Timeout(phase_name(phase)),
            ureq::Error::HostNotFound => {
                TransportError::Io(io::Error::new(io::ErrorKind::NotFound, "host name not found"))
            }
            other => TransportError::Protocol(other.to_string()),
        }
    }
}

fn phase_name(phase: ureq::Timeout) -> &'static str {
    match phase {
        ureq::Timeout::Connect => "connect",
        ureq::Timeout::Resolve => "resolve",
        _ => "exchange",
    }
}

impl ApiError {
    /// Reads an error answer. A body that is not an error envelope leaves everything but status, header and raw body empty.
    pub(crate) fn read(
        endpoint: &str,
        status: u16,
        headers: &ureq::http::HeaderMap,
        body: Vec<u8>,
        now: SystemTime,
    ) -> Self {
        use crate::wire::headers::{QRF_STATE, RETRY_AFTER};
        let text = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let mut api = ApiError {
            endpoint: endpoint.to_owned(),
            status,
            qrf_state: text(QRF_STATE).trim().to_ascii_lowercase(),
            ..ApiError::default()
        };
        // The header counts only together with an envelope: an error page of a proxy in between says nothing about us.
        if let Ok(envelope) = serde_json::from_slice::<ErrorEnvelope>(&body) {
            api.retry_after = parse_retry_after(text(RETRY_AFTER), now).or_else(|| {
                u64::try_from(envelope.retry_after_seconds)
                    .ok()
                    .filter(|s| 0 < *s)
                    .map(Duration::from_secs)
            });
            api.code = envelope.error;
            api.detail = envelope.detail;
            api.leader_endpoint = envelope.leader_endpoint;
            api.current_version = envelope.current_version;
            api.current_etag = envelope.current_etag;
        }
        api.body = body;
        api
    }
}

/// The value of a `Retry-After` header: seconds, also with a fraction, or an HTTP date. Nothing for what is past, not above
/// zero, or neither.
pub(crate) fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let span = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).ok()?,
    };
    (!span.is_zero()).then_some(span)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Api(api) => write!(f, "{api}"),
            Error::Unreachable(unreachable) => write!(f, "{unreachable}"),
            Error::Interrupted(attempt) => {
                write!(f, "lockd: answer of {} broke off: {}", attempt.endpoint, attempt.cause)
            }
            Error::BodyNotReplayable(attempt) => write!(
                f,
                "lockd: update stream body is not replayable ({} failed: {})",
                attempt.endpoint, attempt.cause
            ),
            Error::MaybeEnqueued(attempt) => write!(
                f,
                "lockd: enqueue was cut off, the message may be stored ({} failed: {})",
                attempt.endpoint, attempt.cause
            ),
            Error::BodySource(error) => write!(f, "lockd: reading the body to send: {error}"),
            Error::BadAnswer { endpoint, detail } => write!(f, "lockd: bad answer from {endpoint}: {detail}"),
            Error::Cancelled => f.write_str("lockd: cancelled"),
            Error::DeadlineExceeded => f.write_str("lockd: deadline exceeded"),
            Error::AcquireTimedOut { elapsed, .. } => {
                let elapsed = Duration::from_millis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
                write!(f, "lockd: acquire timed out after {}", crate::logging::Span(elapsed))
            }
            Error::MissingFencingToken => f.write_str("lockd: fencing token required"),
            Error::ReleaseDenied => f.write_str("lockd: release denied"),
            Error::InvalidArgument(text) | Error::InvalidConfig(text) => write!(f, "lockd: {text}"),
            Error::MessageClosed => f.write_str("lockd: queue handle already closed"),
            Error::AutoExtend(cause) => write!(f, "lockd: queue lease auto-extend failed: {cause}"),
            Error::Consumer(end) => {
                let ConsumerError {
                    consumer,
                    queue,
                    reason,
                    last,
                } = &**end;
                write!(f, "lockd: consumer {consumer:?} queue {queue:?} {reason}: {last}")
            }
            Error::Handler(error) => write!(f, "{error}"),
            Error::Joined(all) => {
                for (index, error) in all.iter().enumerate() {
                    if 0 < index {
                        f.write_str("; ")?;
                    }
                    write!(f, "{error}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Unreachable(unreachable) => unreachable.attempts.last().map(|last| &last.cause as _),
            Error::Interrupted(attempt) | Error::BodyNotReplayable(attempt) | Error::MaybeEnqueued(attempt) => {
                Some(&attempt.cause)
            }
            Error::BodySource(error) => Some(error),
            Error::Handler(error) => Some(error.as_ref()),
            Error::AcquireTimedOut { last, .. } | Error::AutoExtend(last) => Some(last.as_ref()),
            Error::Consumer(end) => Some(&end.last),
            _ => None,
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.as_str(), self.detail.as_str()) {
            ("", _) => write!(f, "lockd: status {}", self.status),
            (code, "") => write!(f, "lockd: {code}"),
            (code, detail) => write!(f, "lockd: {code} ({detail})"),
        }
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "lockd: all endpoints unreachable (attempted {})",
            self.order.join(",")
        )?;
        match self.attempts.last() {
            Some(last) => write!(f, ": {}", last.cause),
            None => Ok(()),
        }
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransportError::Timeout(phase) => write!(f, "timed out ({phase})"),
            TransportError::Io(error) => write!(f, "{error}"),
            TransportError::Protocol(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for TransportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TransportError::Io(error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use ureq::http::{HeaderMap, HeaderValue};

    use super::*;

    /// CL-12: float seconds, HTTP date, nothing for the rest.
    #[test]
    fn retry_after_is_seconds_or_a_date_to_come() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (text, expected) in [
            ("3", Some(Duration::from_secs(3))),
            (" 0.25 ", Some(Duration::from_millis(250))),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(Duration::from_secs(7))),
            ("Sun, 06 Nov 1994 08:49:20 GMT", None),
            ("0", None),
            ("-1", None),
            ("NaN", None),
            ("inf", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(parse_retry_after(text, now), expected, "{text:?}");
        }
    }

    fn read(headers: &[(&'static str, &'static str)], body: &str) -> ApiError {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        ApiError::read("http://a:1", 503, &map, body.as_bytes().to_vec(), UNIX_EPOCH)
    }

    #[test]
    fn the_header_beats_the_body_and_the_body_fills_in() {
        let body =
            r#"{"error":"waiting","detail":"held","retry_after_seconds":4,"current_version":7,"current_etag":"e"}"#;
        let both = read(&[("Retry-After", "2"), ("X-Lockd-QRF-State", "Engaged")], body);
        assert_eq!(both.retry_after, Some(Duration::from_secs(2)));
        assert_eq!(both.qrf_state, "engaged");
        assert_eq!((both.current_version, both.current_etag.as_str()), (7, "e"));
        assert_eq!(both.to_string(), "lockd: waiting (held)");
        assert_eq!(read(&[], body).retry_after, Some(Duration::from_secs(4)));
    }

    #[test]
    fn a_body_that_is_no_envelope_is_kept_and_nothing_is_guessed_from_it() {
        let page = read(&[("Retry-After", "2")], "<html>");
        assert_eq!(page.body, b"<html>");
        assert_eq!((page.code.as_str(), page.retry_after), ("", None));
        assert_eq!(page.to_string(), "lockd: status 503");
    }

    #[test]
    fn predicates_look_into_joined_errors() {
        let passive = Error::Api(Box::new(read(&[], r#"{"error":"node_passive"}"#)));
        let joined = Error::Joined(vec![Error::Cancelled, passive]);
        assert!(joined.is_node_passive() && joined.is_cancelled() && !joined.is_waiting());
        assert_eq!(joined.status(), Some(503));
    }
}
