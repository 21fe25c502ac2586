//! One HTTP request to a store, and what its failure means.
//!
//! Connections are kept and used again, which is most of what makes an object store bearable: so every answer's body is
//! read to its end, those of errors too. A redirect is never followed, because a signature is good for one host.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use ureq::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, Error, Timeout};

use super::bucket::Failure;

/// Idle connections that are kept for a store; about what a server has workers.
const IDLE_CONNECTIONS_MAX: usize = 64;
const IDLE_CONNECTION_AGE: Duration = Duration::from_secs(20);
/// How much of an error's body is read for its message.
const ERROR_BYTES_MAX: u64 = 64 * 1024;
/// Nothing that is read whole is larger: records, pages of a listing.
const WHOLE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection to stand, the TLS handshake included.
    pub connect: Duration,
    /// For the head of an answer, once the request is sent.
    pub answer: Duration,
    /// For the next bytes of a body, either way.
    pub stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            answer: Duration::from_secs(15),
            stall: Duration::from_secs(15),
        }
    }
}

/// Sends requests.
pub(super) struct Http {
    agent: Agent,
}

/// An answer whose body has not been read.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    body: Body,
}

impl Http {
    /// `secure`: TLS will be spoken, so certificates are needed.
    pub(super) fn new(timeouts: Timeouts, secure: bool) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(IDLE_CONNECTIONS_MAX)
            .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
            .max_idle_age(IDLE_CONNECTION_AGE)
            .timeout_resolve(Some(timeouts.connect))
            .timeout_connect(Some(timeouts.connect))
            .timeout_recv_response(Some(timeouts.answer))
            .timeout_per_read(Some(timeouts.stall.max(timeouts.answer)))
            .timeout_per_write(Some(timeouts.stall))
            .user_agent(concat!("lockd/", env!("CARGO_PKG_VERSION")));
        if secure {
            config = config.tls_config(TlsConfig::builder().root_certs(trusted_roots()).build());
        }
        Self {
            agent: config.build().new_agent(),
        }
    }

    /// Sends a request without a body.
    pub(super) fn send(&self, method: Method, url: &str, headers: HeaderMap) -> Result<Answer, Failure> {
        let request = with_headers(method, url, headers, ())?;
        Answer::of(self.agent.run(request))
    }

    /// Sends a request with a body, which may be empty.
    pub(super) fn send_bytes(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        bytes: &[u8],
    ) -> Result<Answer, Failure> {
        let request = with_headers(method, url, headers, bytes)?;
        Answer::of(self.agent.run(request))
    }
}

impl Answer {
    fn of(outcome: Result<Response<Body>, Error>) -> Result<Self, Failure> {
        match outcome {
            Ok(response) => {
                let (head, body) = response.into_parts();
                Ok(Self {
                    status: head.status.as_u16(),
                    headers: head.headers,
                    body,
                })
            }
            Err(error) => Err(failure_of(&error)),
        }
    }

    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The etag without quotes. Every store sends one with what it has stored.
    pub(super) fn etag(&self) -> Result<String, Failure> {
        match self.header("etag").map(unquoted) {
            Some(etag) if !etag.is_empty() => Ok(etag.to_owned()),
            _ => Err(Failure::Lost("the store's answer carries no etag".to_owned())),
        }
    }

    /// Reads the whole body. An answer that breaks off is a lost one.
    pub(super) fn bytes(mut self) -> Result<Vec<u8>, Failure> {
        let read = self.body.with_config().limit(WHOLE_BYTES_MAX).read_to_vec();
        read.map_err(|error| Failure::Lost(format!("the answer broke off: {error}")))
    }

    /// Reads the whole body as text.
    pub(super) fn text(self) -> Result<String, Failure> {
        let not_utf8 = |_| Failure::Lost("the answer is no text".to_owned());
        String::from_utf8(self.bytes()?).map_err(not_utf8)
    }

    /// The body as a stream that ends with an error if it ends early.
    pub(super) fn into_reader(self) -> (u64, Box<dyn Read + Send>) {
        let bytes_left = self.body.content_length().unwrap_or(0);
        let reader = self.body.into_with_config().limit(u64::MAX).reader();
        (bytes_left, Box::new(reader))
    }

    /// Reads what remains, so that the connection can be used again.
    pub(super) fn drain(mut self) {
        let _ = io::copy(&mut self.body.as_reader().take(ERROR_BYTES_MAX), &mut io::sink());
    }

    /// Takes an answer that says no apart.
    pub(super) fn refusal(mut self) -> Refusal {
        let mut bytes = Vec::new();
        let _ = self.body.as_reader().take(ERROR_BYTES_MAX).read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let code = (self.header("x-ms-error-code").map(str::to_owned)).or_else(|| element(&text, "Code"));
        Refusal {
            status: self.status,
            code: code.unwrap_or_default(),
            message: element(&text, "Message").unwrap_or_default(),
        }
    }
}

/// An answer that says no.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// The store's own word for it, or nothing.
    pub(super) code: String,
    message: String,
}

impl Refusal {
    /// What it means where no status has a meaning of its own.
    pub(super) fn into_failure(self, doing: &str) -> Failure {
        let Self { status, code, message } = self;
        let line = message.lines().next().unwrap_or_default();
        let mut detail = format!("{doing}: the store answered {status} {code} {line}")
            .trim_end()
            .to_owned();
        if let Some(advice) = advice_on(&code) {
            detail = format!("{detail} ({advice})");
        }
        match status {
            // A throttled request was turned away at the door; a conflict is told before anything is changed.
            429 | 409 => Failure::NotDone(detail),
            408 | 500.. => Failure::Lost(detail),
            _ => Failure::Denied(detail),
        }
    }
}

/// An etag as stores write it in headers and listings: with quotes or without, never weak where it matters.
pub(super) fn unquoted(etag: &str) -> &str {
    let etag = etag.trim();
    etag.strip_prefix('"')
        .and_then(|etag| etag.strip_suffix('"'))
        .unwrap_or(etag)
}

/// Makes a header of a value that may hold anything.
pub(super) fn put_header(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), Failure> {
    let value = HeaderValue::from_str(value).map_err(|_| {
        Failure::Denied(format!(
            "{name} cannot be sent: its value holds characters that no header may"
        ))
    })?;
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}

fn with_headers<T>(method: Method, url: &str, headers: HeaderMap, body: T) -> Result<Request<T>, Failure> {
    let mut request = Request::builder()
        .method(method)
        .uri(url)
        .body(body)
        .map_err(|error| Failure::Denied(format!("{url} is no address: {error}")))?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// What whoever runs the server can do about a refusal, by the words of S3 and of Azure for it.
fn advice_on(code: &str) -> Option<&'static str> {
    Some(match code {
        "SignatureDoesNotMatch" => "the secret does not belong to the access key",
        "InvalidAccessKeyId" => "the store does not know the access key",
        "AuthenticationFailed" => "the account's key or the token is wrong, or the token has ended",
        "AccessDenied" | "AllAccessDisabled" | "AuthorizationFailure" | "AuthorizationPermissionMismatch" => {
            "these credentials have no right to do that"
        }
        "RequestTimeTooSkewed" => "the clock of this machine is wrong",
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => "the session token is wrong or has ended",
        "NoSuchBucket" => "the bucket must be made first",
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
            "the bucket is in another region"
        }
        _ => return None,
    })
}

/// The same for connections that come to nothing, by the words of the system and of TLS.
fn advice_on_connection(error: &Error) -> Option<&'static str> {
    let text = error.to_string();
    if let Error::Io(cause) = error
        && cause.kind() == io::ErrorKind::ConnectionRefused
    {
        return Some("nobody listens there");
    }
    if text.contains("InvalidContentType") {
        return Some("that is no TLS; insecure=1 in the URL speaks plain HTTP");
    }
    text.contains("invalid peer certificate")
        .then_some("a certificate authority of your own can be named in SSL_CERT_FILE")
}

/// Before the connection stands, nothing has been asked for. After that nobody knows.
fn failure_of(error: &Error) -> Failure {
    let mut detail = error.to_string();
    if let Some(advice) = advice_on_connection(error) {
        detail = format!("{detail} ({advice})");
    }
    match error {
        Error::HostNotFound
        | Error::ConnectionFailed
        | Error::InvalidProxyUrl
        | Error::Tls(_)
        | Error::Rustls(_)
        | Error::Pem(_)
        | Error::Timeout(Timeout::Resolve | Timeout::Connect) => Failure::NotDone(detail),
        Error::BadUri(_) | Error::Http(_) => Failure::Denied(detail),
        Error::Io(cause) => match cause.kind() {
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::AddrNotAvailable => Failure::NotDone(detail),
            _ => Failure::Lost(detail),
        },
        _ => Failure::Lost(detail),
    }
}

/// The certificates that this machine trusts, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name; where there are none
/// at all, as in an empty container, the ones that browsers trust.
fn trusted_roots() -> RootCerts {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return RootCerts::WebPki;
    }
    let certificates = found
        .certs
        .iter()
        .map(|der| Certificate::from_der(der.as_ref()).to_owned());
    RootCerts::Specific(Arc::new(certificates.collect()))
}

/// The text of the first element of this name. Enough for the two words that matter in the body of an error.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, behind) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = behind.split_once("</")?;
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_an_error_are_found() {
        let xml = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Reduce\nyour rate</Message></Error>";
        assert_eq!(element(xml, "Code").as_deref(), Some("SlowDown"));
        assert_eq!(element(xml, "Other"), None);
        let failure = |status| {
            let refusal = Refusal {
                status,
                code: "SlowDown".to_owned(),
                message: "Reduce\nyour rate".to_owned(),
            };
            refusal.into_failure("putting x")
        };
        let detail = |status| format!("putting x: the store answered {status} SlowDown Reduce");
        assert_eq!(failure(429), Failure::NotDone(detail(429)));
        assert_eq!(failure(503), Failure::Lost(detail(503)));
        assert_eq!(failure(403), Failure::Denied(detail(403)));
    }

    #[test]
    fn etags_are_compared_without_quotes() {
        assert_eq!(unquoted("\"abc\""), "abc");
        assert_eq!(unquoted(" abc "), "abc");
        assert_eq!(unquoted("\"abc"), "\"abc");
    }
}
