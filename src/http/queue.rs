//! Queue calls that answer at once: enqueue, ack, nack, extend. And what all queue calls have in common.

use std::io;
use std::sync::Arc;

use lockd_client::wire::{
    AckRequest, AckResponse, EnqueueRequest, EnqueueResponse, ExtendRequest, ExtendResponse, NackRequest, NackResponse,
    codes,
};
use serde::de::DeserializeOwned;

use super::exchange::Exchange;
use super::multipart::{self, MultipartError, Parser, Piece};
use super::reply::{BadRequest, Failure, Reply};
use super::request::{self, Query};
use super::{Next, Service};
use crate::error::Error;
use crate::keys::{MessageId, Namespace, QueueId, QueueName};
use crate::queue::rules::{Holder, Intent, Nack, NewMessage, Refusal, StateHolder};
use crate::queue::{EnqueueMeta, EnqueueWriter, Queues};

const SYS: &str = "api.http.router.queue";
/// Longest media type of a payload: it becomes a line in the head of a part.
const PAYLOAD_TYPE_BYTES_MAX: usize = 1024;

/// `POST /v1/queue/enqueue`
pub(super) fn enqueue(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let boundary = multipart::boundary_of(exchange.header("Content-Type").unwrap_or_default())
        .map_err(|cause| BadRequest::new(code_of(cause), cause.to_string()))?;
    if service.edge.is_draining() {
        return Err(draining(service));
    }
    let query = exchange.query().to_owned();
    let mut intake = EnqueueIntake {
        service,
        query: Query::parse(&query),
        correlation_id: exchange.correlation_id().into(),
        meta: Vec::new(),
        step: EnqueueStep::Meta { is_open: false },
    };
    let mut parser = Parser::new(&boundary);
    let mut refusal = None;
    let read = exchange.read_body(&service.edge, u64::MAX, |bytes| {
        parser.push(bytes, |piece| intake.take(piece)).map_err(|failure| {
            refusal = Some(failure);
            // Never seen: the refusal goes first.
            Error::BodyUnreadable(io::ErrorKind::InvalidData.into())
        })
    });
    if let Some(failure) = refusal {
        return Err(failure);
    }
    read?;
    let enqueued = intake.finish()?.finish()?;
    let record = &enqueued.record;
    log::debug!(logger: service.edge.log, target: SYS, namespace = enqueued.queue.namespace.as_str(),
        queue = enqueued.queue.queue.as_str(), mid:% = enqueued.id, payload_bytes = record.payload.bytes,
        correlation = &*record.correlation_id; "queue.enqueue.success");
    let answer = EnqueueResponse {
        namespace: enqueued.queue.namespace.as_str().to_owned(),
        queue: enqueued.queue.queue.as_str().to_owned(),
        message_id: enqueued.id.to_string(),
        attempts: record.attempts,
        max_attempts: record.max_attempts,
        failure_attempts: record.failure_attempts,
        not_visible_until_unix: unix(record.visible_from_ms),
        visibility_timeout_seconds: record.visibility_seconds,
        payload_bytes: signed(record.payload.bytes),
        correlation_id: record.correlation_id.as_ref().to_owned(),
    };
    Ok(Next::Reply(Reply::json(200, &answer)))
}

fn code_of(error: MultipartError) -> &'static str {
    match error {
        MultipartError::NotMultipart => codes::INVALID_CONTENT_TYPE,
        _ => codes::MULTIPART_ERROR,
    }
}

impl From<MultipartError> for Failure {
    fn from(error: MultipartError) -> Self {
        BadRequest::new(code_of(error), error.to_string()).into()
    }
}

/// An enqueue whose body is coming in.
struct EnqueueIntake<'a> {
    service: &'a Service,
    query: Query<'a>,
    correlation_id: Arc<str>,
    meta: Vec<u8>,
    step: EnqueueStep<'a>,
}

enum EnqueueStep<'a> {
    /// The part `meta` is awaited, or coming in.
    Meta { is_open: bool },
    /// The part `payload` is awaited, or coming in.
    Payload { writer: EnqueueWriter<'a>, is_open: bool },
    /// All is here. What follows is not looked at.
    Done(EnqueueWriter<'a>),
    /// Something was refused.
    Failed,
}

impl<'a> EnqueueIntake<'a> {
    fn take(&mut self, piece: Piece<'_>) -> Result<(), Failure> {
        let step = std::mem::replace(&mut self.step, EnqueueStep::Failed);
        self.step = match (step, piece) {
            (EnqueueStep::Meta { is_open: false }, Piece::Part(Some(name))) if name == "meta" => {
                EnqueueStep::Meta { is_open: true }
            }
            (EnqueueStep::Meta { is_open: true }, Piece::Data(data)) => {
                let limit = service_limit(self.service);
                if limit < (self.meta.len() + data.len()) as u64 {
                    return Err(Error::BodyTooLarge { limit }.into());
                }
                self.meta.extend_from_slice(data);
                EnqueueStep::Meta { is_open: true }
            }
            (EnqueueStep::Meta { is_open: true }, Piece::PartEnd) => EnqueueStep::Payload {
                writer: self.begin()?,
                is_open: false,
            },
            (EnqueueStep::Payload { writer, is_open: false }, Piece::Part(Some(name))) if name == "payload" => {
                EnqueueStep::Payload { writer, is_open: true }
            }
            (EnqueueStep::Payload { mut writer, .. }, Piece::Data(data)) => {
                writer.push(data)?;
                EnqueueStep::Payload { writer, is_open: true }
            }
            (EnqueueStep::Payload { writer, .. }, Piece::PartEnd | Piece::End) => EnqueueStep::Done(writer),
            (EnqueueStep::Done(writer), _) => EnqueueStep::Done(writer),
            (_, Piece::Part(_)) => return Err(malformed("the parts must be meta and payload, in this order")),
            _ => return Err(malformed("the part meta is missing")),
        };
        Ok(())
    }

    /// The part `meta` is complete.
    fn begin(&self) -> Result<EnqueueWriter<'a>, Failure> {
        let bad =
            |cause: serde_json::Error| BadRequest::new(codes::INVALID_BODY, format!("failed to parse meta: {cause}"));
        let meta: EnqueueRequest = serde_json::from_slice(&self.meta).map_err(bad)?;
        let queue = queue_of(
            &meta.namespace,
            &meta.queue,
            &self.query,
            self.service,
            codes::INVALID_QUEUE,
        )?;
        let payload_type = meta.payload_content_type.trim();
        if PAYLOAD_TYPE_BYTES_MAX < payload_type.len() || payload_type.chars().any(char::is_control) {
            return Err(BadRequest::new(codes::INVALID_BODY, "payload_content_type is no media type").into());
        }
        let attributes = meta.attributes.filter(|attributes| !attributes.is_empty());
        let attributes = attributes
            .as_ref()
            .map(serde_json::to_string)
            .transpose()
            .map_err(bad)?;
        let message = NewMessage {
            delay_seconds: meta.delay_seconds,
            visibility_seconds: meta.visibility_timeout_seconds,
            ttl_seconds: meta.ttl_seconds,
            max_attempts: meta.max_attempts,
            attributes: attributes.map(Arc::from),
            payload_type: payload_type.into(),
            correlation_id: Arc::clone(&self.correlation_id),
        };
        let queues: &'a Queues = &self.service.messages.queues;
        Ok(queues.enqueue_writer(EnqueueMeta { queue, message }))
    }

    /// The body has ended.
    fn finish(self) -> Result<EnqueueWriter<'a>, Failure> {
        match self.step {
            EnqueueStep::Done(writer) => Ok(writer),
            _ => Err(malformed("the body ended before its last part did")),
        }
    }
}

fn service_limit(service: &Service) -> u64 {
    service.limits.json_bytes_max
}

fn malformed(detail: &str) -> Failure {
    BadRequest::new(codes::MULTIPART_ERROR, detail).into()
}

/// `POST /v1/queue/ack`
pub(super) fn ack(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let body: AckRequest = strict_json(&exchange.read_whole_body(&service.edge, service.limits.json_bytes_max)?)?;
    let query = Query::parse(exchange.query());
    let namespace = namespace_of(&body.namespace, &query, service)?;
    let (queue, id) = message_of(namespace, &body.queue, &body.message_id, &body.lease_id)?;
    let by = Holder {
        lease_id: body.lease_id.trim().to_owned(),
        fencing_token: body.fencing_token,
        txn_id: filled(&body.txn_id),
        meta_etag: filled(&body.meta_etag),
        state: state_holder(&body.state_lease_id, body.state_fencing_token),
        state_etag: filled(&body.state_etag),
    };
    let record = logged(service, "ack", &queue, id, &by, || {
        service.messages.queues.ack(&queue, id, &by)
    })?;
    let answer = AckResponse {
        acked: true,
        correlation_id: record.correlation_id.as_ref().to_owned(),
    };
    Ok(Next::Correlated(Reply::json(200, &answer), record.correlation_id))
}

/// `POST /v1/queue/nack`
pub(super) fn nack(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let body: NackRequest = strict_json(&exchange.read_whole_body(&service.edge, service.limits.json_bytes_max)?)?;
    let query = Query::parse(exchange.query());
    let namespace = namespace_of(&body.namespace, &query, service)?;
    let meta_etag = required_etag(&body.meta_etag)?;
    let (queue, id) = message_of(namespace, &body.queue, &body.message_id, &body.lease_id)?;
    let by = Holder {
        lease_id: body.lease_id.trim().to_owned(),
        fencing_token: body.fencing_token,
        txn_id: filled(&body.txn_id),
        meta_etag: Some(meta_etag),
        state: state_holder(&body.state_lease_id, body.state_fencing_token),
        state_etag: None,
    };
    let intent = match body.intent.trim().to_ascii_lowercase().as_str() {
        "" | "failure" => Intent::Failure,
        "defer" => Intent::Defer,
        _ => return Err(BadRequest::new(codes::INVALID_NACK_INTENT, "intent is failure or defer").into()),
    };
    if intent == Intent::Defer && body.last_error.is_some() {
        return Err(BadRequest::new(codes::INVALID_NACK_LAST_ERROR, "a deferral has no last_error").into());
    }
    let nack = Nack {
        intent,
        delay_seconds: body.delay_seconds,
        last_error: body.last_error.map(|error| error.to_string().into()),
    };
    let record = logged(service, "nack", &queue, id, &by, || {
        service.messages.queues.nack(&queue, id, &by, &nack)
    })?;
    service.dispatcher.settled(queue, id);
    let answer = NackResponse {
        requeued: true,
        meta_etag: record.meta_etag(),
        correlation_id: record.correlation_id.as_ref().to_owned(),
    };
    Ok(Next::Correlated(Reply::json(200, &answer), record.correlation_id))
}

/// `POST /v1/queue/extend`
pub(super) fn extend(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let body: ExtendRequest = strict_json(&exchange.read_whole_body(&service.edge, service.limits.json_bytes_max)?)?;
    let query = Query::parse(exchange.query());
    let namespace = namespace_of(&body.namespace, &query, service)?;
    let meta_etag = required_etag(&body.meta_etag)?;
    let (queue, id) = message_of(namespace, &body.queue, &body.message_id, &body.lease_id)?;
    let by = Holder {
        lease_id: body.lease_id.trim().to_owned(),
        fencing_token: body.fencing_token,
        txn_id: filled(&body.txn_id),
        meta_etag: Some(meta_etag),
        state: state_holder(&body.state_lease_id, body.state_fencing_token),
        state_etag: None,
    };
    let extended = logged(service, "extend", &queue, id, &by, || {
        service.messages.queues.extend(&queue, id, &by, body.extend_by_seconds)
    })?;
    let record = extended.record;
    let answer = ExtendResponse {
        lease_expires_at_unix: unix(record.visible_from_ms),
        visibility_timeout_seconds: record.visibility_seconds,
        meta_etag: record.meta_etag(),
        state_lease_expires_at_unix: extended.state_expires_at_ms.map_or(0, unix),
        correlation_id: record.correlation_id.as_ref().to_owned(),
    };
    Ok(Next::Correlated(Reply::json(200, &answer), record.correlation_id))
}

/// Does a call on a message and tells its story in the log.
fn logged<T>(
    service: &Service,
    operation: &'static str,
    queue: &QueueId,
    id: MessageId,
    by: &Holder,
    call: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Failure> {
    let log = &service.edge.log;
    let (namespace, name, lease) = (queue.namespace.as_str(), queue.queue.as_str(), by.lease_id.as_str());
    let txn_id = by.txn_id.as_deref().unwrap_or_default();
    let state_lease = by
        .state
        .as_ref()
        .map(|state| state.lease_id.as_str())
        .unwrap_or_default();
    let outcome = call();
    match &outcome {
        Ok(_) => log::debug!(logger: log, target: SYS, namespace, queue = name, mid:% = id, lease, state_lease, txn_id;
            "queue.{operation}.success"),
        Err(cause) => {
            let error = cause.to_string();
            log::warn!(logger: log, target: SYS, namespace, queue = name, mid:% = id, lease, state_lease, txn_id, error;
                "queue.{operation}.error");
        }
    }
    outcome.map_err(Failure::from)
}

/// One JSON object with known members only. An empty body is refused like any other that is none.
pub(super) fn strict_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    request::json(body).map_err(|bad| {
        let detail = format!("failed to parse request: {}", bad.detail);
        BadRequest::new(bad.code, detail).into()
    })
}

/// The same; an empty body says nothing.
pub(super) fn json_or_nothing<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Failure> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    strict_json(body)
}

/// The namespace that a body names, else the query, else the default.
fn namespace_of(named: &str, query: &Query<'_>, service: &Service) -> Result<Namespace, Failure> {
    Ok(request::namespace(
        or(named, query.get("namespace")),
        &service.limits.default_namespace,
    )?)
}

/// The queue that a request means, in its body or its query.
pub(super) fn queue_of(
    namespace: &str,
    queue: &str,
    query: &Query<'_>,
    service: &Service,
    code: &'static str,
) -> Result<QueueId, Failure> {
    let namespace = namespace_of(namespace, query, service)?;
    let queue = or(queue, query.get("queue"));
    if queue.is_empty() {
        return Err(BadRequest::new(codes::MISSING_QUEUE, "queue is required").into());
    }
    let queue = QueueName::parse(queue).map_err(|cause| BadRequest::new(code, cause.to_string()))?;
    Ok(QueueId { namespace, queue })
}

/// The message that ack, nack and extend mean.
fn message_of(namespace: Namespace, queue: &str, id: &str, lease: &str) -> Result<(QueueId, MessageId), Failure> {
    let (queue, id) = (queue.trim(), id.trim());
    if queue.is_empty() || id.is_empty() || lease.trim().is_empty() {
        let detail = "queue, message_id and lease_id are required";
        return Err(BadRequest::new(codes::MISSING_FIELDS, detail).into());
    }
    let bad = |detail: String| Failure::from(BadRequest::new(codes::INVALID_QUEUE_KEY, detail));
    let queue = QueueName::parse(queue).map_err(|cause| bad(cause.to_string()))?;
    if !id
        .bytes()
        .all(|byte| lockd_client::wire::is_name_byte(byte.to_ascii_lowercase()))
    {
        return Err(bad("message_id is none".to_owned()));
    }
    // Nothing that was ever enqueued has another form of id.
    let id = MessageId::parse(&id.to_ascii_lowercase()).ok_or(Error::MessageRefused(Refusal::Gone))?;
    Ok((QueueId { namespace, queue }, id))
}

fn required_etag(text: &str) -> Result<String, Failure> {
    filled(text).ok_or_else(|| BadRequest::new(codes::MISSING_FIELDS, "meta_etag is required").into())
}

fn state_holder(lease_id: &str, fencing_token: i64) -> Option<StateHolder> {
    let lease_id = filled(lease_id)?;
    let fencing_token = Some(fencing_token).filter(|token| *token != 0);
    Some(StateHolder {
        lease_id,
        fencing_token,
    })
}

/// The server goes down.
pub(super) fn draining(service: &Service) -> Failure {
    Error::Draining {
        retry_after_seconds: service.edge.drain_seconds_left(),
    }
    .into()
}

/// A time in whole seconds, rounded down: what a lease promises ends no later than it says.
pub(super) fn unix(ms: i64) -> i64 {
    ms.div_euclid(1000)
}

pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The first text that is not blank, trimmed.
pub(super) fn or<'a>(first: &'a str, second: &'a str) -> &'a str {
    match first.trim() {
        "" => second.trim(),
        first => first,
    }
}

fn filled(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
