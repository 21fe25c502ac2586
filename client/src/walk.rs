//! The walk: one logical request, tried at one endpoint after the other until somebody answers.
//!
//! An answer of any status ends the walk, with one exception: a 503 that says `node_passive`, or says nothing, from an
//! endpoint that is not the last one. So a failed connect moves on, and a refusal does not.
//!
//! A reused connection that turns out to be dead is replaced by a fresh one, once and silently, when that cannot do harm:
//! nothing of the request was written, or nothing was answered and the request may be repeated.

use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::{self, HeaderMap};
use ureq::{BodyReader, SendBody};

use crate::call::CallOptions;
use crate::cancel::CancelToken;
use crate::clock;
use crate::endpoints::Endpoint;
use crate::error::{ApiError, Attempt, Error, TransportError, Unreachable};
use crate::inner::Inner;
use crate::leave::Leave;
use crate::logging::{Span, event};
use crate::transport::{self, Exchange, Trace};
use crate::wire::{ErrorEnvelope, codes, headers};

/// Opening a connection may take this long, also in calls without a limit of their own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest JSON answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Largest error body that is kept, in bytes.
const ERROR_BYTES_MAX: u64 = 64 * 1024;

/// What to send.
pub(crate) struct Request<'a> {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Body<'a>,
    /// Limit of each attempt, including the reading of the answer. `None`: the caller's deadline alone.
    pub(crate) timeout: Option<Duration>,
    /// Carrying the request out twice is the same as once.
    pub(crate) repeatable: bool,
}

/// A request body.
pub(crate) enum Body<'a> {
    Empty,
    Json(Vec<u8>),
    Bytes(&'a [u8]),
    /// Sent as it is read, once.
    Stream(&'a mut (dyn Read + Send)),
    /// Made while it is sent. A walk that fails once any of it was taken ends there: carrying it out twice does harm.
    Upload(&'a mut (dyn Upload + Send)),
}

/// A body that is made while it is sent.
pub(crate) trait Upload: Read {
    /// Media type of the whole.
    fn content_type(&self) -> String;
    /// Length of the whole in bytes, when it is known before.
    fn length(&self) -> Option<u64>;
    /// True when anything was taken since the start or the last rewind.
    fn touched(&self) -> bool;
    /// Goes back to the start. False when that cannot be done.
    fn rewind(&mut self) -> bool;
}

/// Whom to ask.
#[derive(Clone, Copy)]
pub(crate) enum Route<'a> {
    /// Every endpoint, in the order of the walk.
    Any,
    /// Every endpoint, this one first.
    Prefer(&'a str),
    /// This one and no other.
    Only(&'a str),
}

impl<'a> Request<'a> {
    pub(crate) fn new(method: &'static str, path: &'static str, timeout: Option<Duration>) -> Self {
        Self {
            method,
            path,
            query: Vec::new(),
            headers: Vec::new(),
            body: Body::Empty,
            timeout,
            repeatable: false,
        }
    }

    pub(crate) fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }

    pub(crate) fn query(mut self, name: &'static str, value: &str) -> Self {
        self.query.push((name, value.to_owned()));
        self
    }

    #[allow(clippy::needless_pass_by_value, reason = "callers hand in numbers and strings alike")]
    pub(crate) fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(crate) fn header_if(self, name: &'static str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.header(name, value),
            None => self,
        }
    }

    pub(crate) fn json(mut self, value: &impl serde::Serialize) -> Result<Self, Error> {
        let text = serde_json::to_vec(value).map_err(|error| Error::invalid(format!("encode request: {error}")))?;
        self.body = Body::Json(text);
        Ok(self)
    }

    pub(crate) fn body(mut self, body: Body<'a>) -> Self {
        self.body = body;
        self
    }

    fn path_and_query(&self) -> String {
        if self.query.is_empty() {
            return self.path.to_owned();
        }
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(self.query.iter().map(|(name, value)| (*name, value)))
            .finish();
        format!("{}?{query}", self.path)
    }
}

impl Inner {
    /// Makes the walk. The answer may have any status.
    pub(crate) fn walk(
        &self,
        call: &CallOptions,
        request: &mut Request<'_>,
        route: Route<'_>,
    ) -> Result<Answer, Error> {
        call.check()?;
        let order = match route {
            Route::Any => self.endpoints.order(None),
            Route::Prefer(name) => self.endpoints.order(Some(name)),
            Route::Only(name) => {
                let mut order = self.endpoints.order(Some(name));
                order.truncate(1);
                order
            }
        };
        let names = || -> Vec<String> { order.iter().map(|endpoint| endpoint.name.to_string()).collect() };
        let cid = self.cid(call);
        event!(self.log, Trace, cid, "client.http.order", endpoints = ?names());

        let total = order.len();
        let mut attempts: Vec<Attempt> = Vec::new();
        let mut body_sent = false;
        for (index, endpoint) in order.iter().enumerate() {
            let attempt = index + 1;
            let replayable = match &mut request.body {
                Body::Stream(_) => !body_sent,
                Body::Upload(upload) => !upload.touched() || upload.rewind(),
                _ => true,
            };
            if !replayable {
                let failed = attempts.pop().unwrap_or_else(|| standby(&order[index - 1]));
                let error = Error::BodyNotReplayable(failed);
                event!(self.log, Debug, cid, "client.http.builder_error", endpoint = &*endpoint.name, error = %error);
                return Err(error);
            }
            event!(
                self.log,
                Trace,
                cid,
                "client.http.attempt",
                endpoint = &*endpoint.name,
                attempt = attempt,
                total = total
            );
            let started = clock::now();
            let outcome = self.attempt(call, endpoint, request);
            let duration = Span(started.elapsed());
            body_sent = true;
            let mut answer = match outcome {
                Ok(answer) => answer,
                Err((Failure::Build(error), _)) => {
                    event!(self.log, Debug, cid, "client.http.builder_error",
                        endpoint = &*endpoint.name, error = %error);
                    return Err(error);
                }
                Err((Failure::Transport(cause), sent)) => {
                    // The caller's end of patience looks like a failure of the endpoint; it is logged as one and returned
                    // as what it is.
                    let ended = call.check().err();
                    event!(self.log, Trace, cid, "client.http.error",
                        endpoint = &*endpoint.name, attempt = attempt, total = total,
                        error = %cause, duration = %duration);
                    if cause.is_timeout() {
                        self.endpoints.drop_idle();
                    }
                    if let Some(ended) = ended {
                        return Err(ended);
                    }
                    let failed = Attempt {
                        endpoint: endpoint.name.to_string(),
                        cause,
                        sent,
                    };
                    if let Body::Upload(upload) = &request.body
                        && upload.touched()
                    {
                        return Err(Error::MaybeEnqueued(failed));
                    }
                    attempts.push(failed);
                    continue;
                }
            };
            *self.last_endpoint.lock() = Arc::clone(&endpoint.name);
            event!(self.log, Trace, cid, "client.http.success",
                endpoint = &*endpoint.name, attempt = attempt, total = total,
                status = answer.status, duration = %duration);
            if answer.status == 503 && attempt < total && answer.is_from_standby() {
                continue;
            }
            answer.may_repeat = attempts.iter().any(|attempt| attempt.sent);
            return Ok(answer);
        }
        let error = Error::Unreachable(Unreachable {
            attempts,
            order: names(),
        });
        event!(self.log, Debug, cid, "client.http.unreachable", order = ?names(), error = %error);
        Err(error)
    }

    /// One attempt at one endpoint, with at most one silent repetition on a fresh connection. A failure says whether any of
    /// the request was sent.
    fn attempt(
        &self,
        call: &CallOptions,
        endpoint: &Arc<Endpoint>,
        request: &mut Request<'_>,
    ) -> Result<Answer, (Failure, bool)> {
        let first = self.exchange(call, endpoint, request, false);
        match first {
            Err((Failure::Transport(cause), exchange))
                if !cause.is_timeout()
                    && exchange.reused_connection()
                    && (exchange.nothing_written() || (request.repeatable && exchange.nothing_received()))
                    && !matches!(request.body, Body::Stream(_))
                    && !matches!(&request.body, Body::Upload(upload) if upload.touched())
                    && call.check().is_ok() =>
            {
                let sent = !exchange.nothing_written();
                self.exchange(call, endpoint, request, true)
                    .map_err(|(failure, exchange)| (failure, sent || !exchange.nothing_written()))
            }
            other => other.map_err(|(failure, exchange)| (failure, !exchange.nothing_written())),
        }
    }

    fn exchange(
        &self,
        call: &CallOptions,
        endpoint: &Arc<Endpoint>,
        request: &mut Request<'_>,
        fresh: bool,
    ) -> Result<Answer, (Failure, Rc<Exchange>)> {
        let exchange = Exchange::new(call.token().cloned(), self.trace(call, endpoint));
        match self.exchange_as(&exchange, call, endpoint, request, fresh) {
            Ok(answer) => Ok(answer),
            Err(failure) => Err((failure, exchange)),
        }
    }

    fn exchange_as(
        &self,
        exchange: &Rc<Exchange>,
        call: &CallOptions,
        endpoint: &Arc<Endpoint>,
        request: &mut Request<'_>,
        fresh: bool,
    ) -> Result<Answer, Failure> {
        let mut builder = http::Request::builder()
            .method(request.method)
            .uri(endpoint.url(&request.path_and_query()));
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if let Some(id) = self.cid(call) {
            builder = builder.header(headers::CORRELATION_ID, id);
        }
        match &request.body {
            Body::Empty => {}
            Body::Json(_) | Body::Bytes(_) | Body::Stream(_) => {
                builder = builder.header("Content-Type", "application/json");
            }
            Body::Upload(upload) => {
                builder = builder.header("Content-Type", upload.content_type());
                if let Some(length) = upload.length() {
                    builder = builder.header("Content-Length", length);
                }
            }
        }
        let has_body = !matches!(request.method, "GET" | "DELETE");
        let mut source_error = None;
        let timeout = match (request.timeout, call.remaining()) {
            (Some(limit), Some(left)) => Some(limit.min(left)),
            (limit, left) => limit.or(left),
        };
        let _entered = transport::enter(exchange);
        let agent = endpoint.agent();
        let limits = Limits { timeout, fresh };
        let sent = match &mut request.body {
            Body::Empty if has_body => run(&agent, builder, &[][..], limits),
            Body::Empty => run(&agent, builder, (), limits),
            Body::Json(text) => run(&agent, builder, text.as_slice(), limits),
            Body::Bytes(bytes) => run(&agent, builder, *bytes, limits),
            Body::Stream(reader) => {
                let mut source = Source {
                    reader: *reader,
                    failure: &mut source_error,
                };
                run(&agent, builder, SendBody::from_reader(&mut source), limits)
            }
            Body::Upload(upload) => {
                let mut source = Source {
                    reader: *upload,
                    failure: &mut source_error,
                };
                run(&agent, builder, SendBody::from_reader(&mut source), limits)
            }
        };
        let response = match (source_error, sent) {
            (Some(error), _) => return Err(Failure::Build(Error::BodySource(error))),
            (None, sent) => sent?,
        };
        let (head, body) = response.into_parts();
        Ok(Answer {
            endpoint: Arc::clone(&endpoint.name),
            status: head.status.as_u16(),
            headers: head.headers,
            length: body.content_length(),
            may_repeat: false,
            body: AnswerBody::Stream(AnswerStream {
                reader: Box::new(body.into_reader()),
                call: call.clone(),
                trace: self.trace(call, endpoint),
                leave: None,
            }),
        })
    }
}

impl Inner {
    /// The low-level events of an exchange, when they are wanted.
    fn trace(&self, call: &CallOptions, endpoint: &Endpoint) -> Option<Trace> {
        self.settings.http_trace.then(|| Trace {
            log: self.log.clone(),
            endpoint: Arc::clone(&endpoint.name),
            cid: self.cid(call).map(str::to_owned),
        })
    }
}

/// A standby that was passed over, as the failed attempt of a body that can be sent only once.
fn standby(endpoint: &Endpoint) -> Attempt {
    Attempt {
        endpoint: endpoint.name.to_string(),
        cause: TransportError::Protocol("the server is a standby".to_owned()),
        sent: false,
    }
}

#[derive(Clone, Copy)]
struct Limits {
    timeout: Option<Duration>,
    fresh: bool,
}

fn run(
    agent: &ureq::Agent,
    builder: http::request::Builder,
    body: impl ureq::AsSendBody,
    limits: Limits,
) -> Result<http::Response<ureq::Body>, Failure> {
    let request = builder
        .body(body)
        .map_err(|error| Failure::Build(Error::invalid(format!("build request: {error}"))))?;
    let mut config = agent
        .configure_request(request)
        .timeout_global(limits.timeout)
        .timeout_connect(Some(CONNECT_TIMEOUT));
    if limits.fresh {
        // No idle connection is young enough for this one.
        config = config.max_idle_age(Duration::ZERO);
    }
    agent
        .run(config.build())
        .map_err(|error| Failure::Transport(error.into()))
}

enum Failure {
    /// The request itself is at fault; no other endpoint is asked.
    Build(Error),
    Transport(TransportError),
}

/// A body that remembers its own failure, so that it is not taken for one of the network.
struct Source<'a> {
    reader: &'a mut (dyn Read + Send),
    failure: &'a mut Option<io::Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                *self.failure = Some(io::Error::new(error.kind(), error.to_string()));
            }
        })
    }
}

/// An HTTP answer, its body still on the way.
pub(crate) struct Answer {
    pub(crate) endpoint: Arc<str>,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// Length of the body, when it was told and is what the body is framed by.
    pub(crate) length: Option<u64>,
    /// The same request was sent before in this walk and not answered: it may have been carried out then.
    pub(crate) may_repeat: bool,
    body: AnswerBody,
}

enum AnswerBody {
    Stream(AnswerStream),
    Kept(Vec<u8>),
}

/// The body of an answer as it arrives. Reading obeys the time limit and the cancel token of its call.
pub(crate) struct AnswerStream {
    reader: Box<BodyReader<'static>>,
    call: CallOptions,
    trace: Option<Trace>,
    leave: Option<Arc<Leave>>,
}

impl Read for AnswerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let exchange = Exchange::receiving(self.call.token().cloned(), self.trace.clone(), self.leave.clone());
        let _entered = transport::enter(&exchange);
        let error = match self.reader.read(buffer) {
            Ok(count) => return Ok(count),
            Err(error) => error,
        };
        if self.call.token().is_some_and(CancelToken::is_cancelled) {
            return Err(io::Error::other(Error::Cancelled));
        }
        Err(match TransportError::from_io(error) {
            TransportError::Io(error) => error,
            TransportError::Timeout(phase) => io::Error::new(io::ErrorKind::TimedOut, format!("timed out ({phase})")),
            TransportError::Protocol(text) => io::Error::new(io::ErrorKind::InvalidData, text),
        })
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The value of an etag header, quotes removed; empty when absent.
    pub(crate) fn etag(&self) -> String {
        self.header(headers::ETAG)
            .unwrap_or_default()
            .trim()
            .trim_matches('"')
            .to_owned()
    }

    /// Reads the JSON of a success answer.
    pub(crate) fn into_json<T: DeserializeOwned>(self) -> Result<T, Error> {
        let endpoint = Arc::clone(&self.endpoint);
        let bytes = self.into_bytes(ANSWER_BYTES_MAX)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::BadAnswer {
            endpoint: endpoint.to_string(),
            detail: error.to_string(),
        })
    }

    /// Reads the error that this answer is. Fails when the body breaks off.
    pub(crate) fn into_error(self) -> Error {
        let (endpoint, status, headers) = (Arc::clone(&self.endpoint), self.status, self.headers.clone());
        let body = self.into_bytes(ERROR_BYTES_MAX).unwrap_or_default();
        Error::Api(Box::new(ApiError::read(
            &endpoint,
            status,
            &headers,
            body,
            clock::wall(),
        )))
    }

    /// The body as it arrives, which can be left with all that is on its way.
    pub(crate) fn into_stream_to_leave(mut self, leave: &Arc<Leave>) -> Box<dyn Read + Send> {
        if let AnswerBody::Stream(stream) = &mut self.body {
            stream.leave = Some(Arc::clone(leave));
        }
        self.into_stream()
    }

    /// The body as it arrives.
    pub(crate) fn into_stream(self) -> Box<dyn Read + Send> {
        match self.body {
            AnswerBody::Stream(stream) => Box::new(stream),
            AnswerBody::Kept(bytes) => Box::new(io::Cursor::new(bytes)),
        }
    }

    fn into_bytes(self, limit: u64) -> Result<Vec<u8>, Error> {
        let endpoint = Arc::clone(&self.endpoint);
        let mut stream = match self.body {
            AnswerBody::Stream(stream) => stream,
            AnswerBody::Kept(bytes) => return Ok(bytes),
        };
        let mut bytes = Vec::new();
        let call = stream.call.clone();
        match (&mut stream).take(limit).read_to_end(&mut bytes) {
            Ok(_) => {
                // One more read sees the end, which gives the connection back to the pool.
                let _ = stream.read(&mut [0]);
                Ok(bytes)
            }
            Err(error) => Err(call.check().err().unwrap_or_else(|| {
                Error::Interrupted(Attempt {
                    endpoint: endpoint.to_string(),
                    cause: TransportError::Io(error),
                    sent: true,
                })
            })),
        }
    }

    /// The header `Content-Type`; empty when absent.
    pub(crate) fn content_type(&self) -> &str {
        self.header("Content-Type").unwrap_or_default()
    }

    /// For a 503: true when the next endpoint should be asked. Keeps the body for the caller.
    fn is_from_standby(&mut self) -> bool {
        let AnswerBody::Stream(stream) = &mut self.body else {
            return false;
        };
        let mut bytes = Vec::new();
        if stream.take(ERROR_BYTES_MAX).read_to_end(&mut bytes).is_err() || bytes.is_empty() {
            return true;
        }
        let passive =
            serde_json::from_slice::<ErrorEnvelope>(&bytes).is_ok_and(|envelope| envelope.error == codes::NODE_PASSIVE);
        self.body = AnswerBody::Kept(bytes);
        passive
    }
}

/// True for the statuses that mean success for calls that accept more than 200.
pub(crate) fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}
