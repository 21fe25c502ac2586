//! Putting messages into a queue.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::required_queue;
use crate::acquire::seconds_up;
use crate::client::Client;
use crate::error::Error;
use crate::logging::event;
use crate::walk::{Body, Request, Route, Upload};
use crate::wire::{DEFAULT_PAYLOAD_TYPE, EnqueueRequest, EnqueueResponse};

/// Where to put a message, and how it is to be treated. `Enqueue::to("invoices")`, or simply `"invoices".into()`.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Enqueue {
    queue: String,
    namespace: Option<String>,
    delay: Duration,
    visibility: Duration,
    ttl: Duration,
    max_attempts: u32,
    attributes: Map<String, Value>,
    content_type: Option<String>,
}

impl Enqueue {
    /// A message for this queue, which need not exist: a queue is there as soon as something is in it.
    pub fn to(queue: impl Into<String>) -> Self {
        Self {
            queue: queue.into(),
            ..Self::default()
        }
    }

    /// Namespace of the queue; default: that of the client.
    pub fn namespace(mut self, name: impl Into<String>) -> Self {
        self.namespace = Some(name.into());
        self
    }

    /// Nobody gets the message before this time is over. Whole seconds, rounded up, like every duration of a message.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// A visibility timeout that is stored with the message and told in answers. Consumers bring their own.
    pub fn visibility(mut self, timeout: Duration) -> Self {
        self.visibility = timeout;
        self
    }

    /// The message is dropped when it has not been acknowledged after this time. Default: never.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Failed attempts, by nack with intent failure, after which nobody gets the message any more. Default: the server's
    /// choice, 5.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Adds something that comes back with every delivery. Numbers beyond 2^53 lose precision on other servers.
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.attributes.insert(name.into(), value.into());
        self
    }

    /// Media type of the payload, printable ASCII. Default `application/octet-stream`, or `application/json` for a payload
    /// made by [`Payload::json`].
    pub fn content_type(mut self, media_type: impl Into<String>) -> Self {
        self.content_type = Some(media_type.into()).filter(|text| !text.trim().is_empty());
        self
    }
}

impl From<&str> for Enqueue {
    fn from(queue: &str) -> Self {
        Self::to(queue)
    }
}

impl From<String> for Enqueue {
    fn from(queue: String) -> Self {
        Self::to(queue)
    }
}

impl From<&Enqueue> for Enqueue {
    fn from(request: &Enqueue) -> Self {
        request.clone()
    }
}

/// What a message carries.
pub struct Payload<'a> {
    source: Source<'a>,
    content_type: Option<&'static str>,
}

enum Source<'a> {
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
    Reader(Box<dyn Read + Send + 'a>),
}

impl<'a> Payload<'a> {
    /// Nothing.
    pub fn empty() -> Self {
        Source::Borrowed(&[]).into()
    }

    /// A source that is sent as it is read and never held in memory.
    pub fn reader(source: impl Read + Send + 'a) -> Self {
        Source::Reader(Box::new(source)).into()
    }

    /// A value as JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, Error> {
        let bytes = serde_json::to_vec(value).map_err(|error| Error::invalid(format!("encode payload: {error}")))?;
        Ok(Self {
            source: Source::Owned(bytes),
            content_type: Some("application/json"),
        })
    }
}

impl fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Borrowed(bytes) => write!(f, "Payload({} bytes)", bytes.len()),
            Source::Owned(bytes) => write!(f, "Payload({} bytes)", bytes.len()),
            Source::Reader(_) => f.write_str("Payload(reader)"),
        }
    }
}

impl<'a> From<Source<'a>> for Payload<'a> {
    fn from(source: Source<'a>) -> Self {
        Self {
            source,
            content_type: None,
        }
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Source::Borrowed(bytes).into()
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Payload<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Source::Borrowed(bytes).into()
    }
}

impl<'a> From<&'a Vec<u8>> for Payload<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Source::Borrowed(bytes).into()
    }
}

impl<'a> From<&'a str> for Payload<'a> {
    fn from(text: &'a str) -> Self {
        Source::Borrowed(text.as_bytes()).into()
    }
}

impl<'a> From<&'a String> for Payload<'a> {
    fn from(text: &'a String) -> Self {
        Source::Borrowed(text.as_bytes()).into()
    }
}

impl From<Vec<u8>> for Payload<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Source::Owned(bytes).into()
    }
}

impl From<String> for Payload<'_> {
    fn from(text: String) -> Self {
        Source::Owned(text.into_bytes()).into()
    }
}

impl Client {
    /// Puts a message into a queue. When this returns, the message is as safe as the server's store makes it, and consumers
    /// that wait have been woken.
    ///
    /// A message is not sent twice: once any of it was on its way, a failure is [`Error::MaybeEnqueued`] or
    /// [`Error::Interrupted`], and only an endpoint that could not be reached, or that said it was a standby, is passed over.
    /// No time limit but the deadline of [`with_options`](Client::with_options).
    pub fn enqueue<'a>(
        &self,
        request: impl Into<Enqueue>,
        payload: impl Into<Payload<'a>>,
    ) -> Result<EnqueueResponse, Error> {
        self.enqueue_payload(&request.into(), payload.into())
    }

    /// Puts a value into a queue, as JSON; see [`enqueue`](Self::enqueue).
    pub fn enqueue_json<T: Serialize + ?Sized>(
        &self,
        request: impl Into<Enqueue>,
        value: &T,
    ) -> Result<EnqueueResponse, Error> {
        self.enqueue_payload(&request.into(), Payload::json(value)?)
    }

    fn enqueue_payload(&self, request: &Enqueue, payload: Payload<'_>) -> Result<EnqueueResponse, Error> {
        let (inner, cid) = (&self.inner, self.inner.cid(&self.call));
        let queue = required_queue(&request.queue)?;
        let content_type = match (&request.content_type, payload.content_type) {
            (Some(explicit), _) => explicit.trim(),
            (None, implied) => implied.unwrap_or(DEFAULT_PAYLOAD_TYPE),
        };
        if !content_type.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) {
            return Err(Error::invalid(format!("invalid payload content type {content_type:?}")));
        }
        let meta = EnqueueRequest {
            namespace: inner.namespace(request.namespace.as_deref())?,
            queue: queue.clone(),
            delay_seconds: seconds_up(request.delay),
            visibility_timeout_seconds: seconds_up(request.visibility),
            ttl_seconds: seconds_up(request.ttl),
            max_attempts: request.max_attempts.into(),
            attributes: Some(request.attributes.clone()).filter(|attributes| !attributes.is_empty()),
            payload_content_type: content_type.to_owned(),
        };
        let mut upload = MessageUpload::new(&meta, payload.source, &new_boundary())?;
        event!(
            inner.log,
            Info,
            cid,
            "client.queue.enqueue.begin",
            queue = queue.as_str(),
            content_type = content_type
        );
        let transport_error = |error: &Error| {
            event!(inner.log, Error, cid, "client.queue.enqueue.transport_error",
                queue = queue.as_str(), error = %error);
        };
        let mut wire = Request::new("POST", "/v1/queue/enqueue", None).body(Body::Upload(&mut upload));
        let answer = inner
            .walk(&self.call, &mut wire, Route::Any)
            .inspect_err(transport_error)?;
        let endpoint = Arc::clone(&answer.endpoint);
        if answer.status != 200 {
            event!(
                inner.log,
                Warn,
                cid,
                "client.queue.enqueue.error",
                queue = queue.as_str(),
                endpoint = &*endpoint,
                status = answer.status
            );
            return Err(answer.into_error());
        }
        let stored: EnqueueResponse = answer.into_json().inspect_err(transport_error)?;
        event!(
            inner.log,
            Info,
            cid,
            "client.queue.enqueue.success",
            queue = queue.as_str(),
            mid = stored.message_id.as_str(),
            attempts = stored.attempts,
            max_attempts = stored.max_attempts,
            endpoint = &*endpoint
        );
        Ok(stored)
    }
}

/// 60 hex digits that nobody who chooses a payload can foresee: the standard library keys its hasher with random numbers of
/// the system.
fn new_boundary() -> String {
    let keyed = RandomState::new();
    let mut digits: String = (0..4_u8).map(|turn| format!("{:016x}", keyed.hash_one(turn))).collect();
    digits.truncate(60);
    digits
}

/// The two parts of an enqueue: the description of the message, then its payload.
struct MessageUpload<'a> {
    boundary: String,
    /// Everything in front of the payload.
    head: Vec<u8>,
    payload: Source<'a>,
    /// Everything behind it.
    tail: Vec<u8>,
    /// How much was taken: of the head, then of the payload, then of the tail.
    taken: usize,
    section: Section,
    touched: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    Head,
    Payload,
    Tail,
}

impl<'a> MessageUpload<'a> {
    fn new(meta: &EnqueueRequest, payload: Source<'a>, boundary: &str) -> Result<Self, Error> {
        let encode = |error| Error::invalid(format!("encode request: {error}"));
        let mut head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"meta\"\r\nContent-Type: application/json\r\n\r\n"
        )
        .into_bytes();
        serde_json::to_writer(&mut head, meta).map_err(encode)?;
        head.extend_from_slice(
            format!(
                "\n\r\n--{boundary}\r\nContent-Disposition: form-data; name=\"payload\"\r\nContent-Type: {}\r\n\r\n",
                meta.payload_content_type
            )
            .as_bytes(),
        );
        Ok(Self {
            boundary: boundary.to_owned(),
            head,
            payload,
            tail: format!("\r\n--{boundary}--\r\n").into_bytes(),
            taken: 0,
            section: Section::Head,
            touched: false,
        })
    }
}

impl Read for MessageUpload<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.touched = true;
        let mut filled = 0;
        while filled < out.len() {
            let free = &mut out[filled..];
            let bytes = match (self.section, &mut self.payload) {
                (Section::Head, _) => self.head.as_slice(),
                (Section::Payload, Source::Borrowed(bytes)) => bytes,
                (Section::Payload, Source::Owned(bytes)) => bytes.as_slice(),
                // What is there goes out before a source is asked that may take its time.
                (Section::Payload, Source::Reader(_)) if 0 < filled => break,
                (Section::Payload, Source::Reader(reader)) => match reader.read(free)? {
                    0 => &[],
                    count => return Ok(count),
                },
                (Section::Tail, _) => self.tail.as_slice(),
            };
            let rest = &bytes[self.taken.min(bytes.len())..];
            let count = rest.len().min(free.len());
            free[..count].copy_from_slice(&rest[..count]);
            filled += count;
            self.taken += count;
            if count == rest.len() {
                self.section = match self.section {
                    Section::Head => Section::Payload,
                    Section::Payload => Section::Tail,
                    Section::Tail => break,
                };
                self.taken = 0;
            }
        }
        Ok(filled)
    }
}

impl Upload for MessageUpload<'_> {
    fn content_type(&self) -> String {
        format!("multipart/related; boundary={}", self.boundary)
    }

    fn length(&self) -> Option<u64> {
        let payload = match &self.payload {
            Source::Borrowed(bytes) => bytes.len(),
            Source::Owned(bytes) => bytes.len(),
            Source::Reader(_) => return None,
        };
        Some((self.head.len() + payload + self.tail.len()) as u64)
    }

    fn touched(&self) -> bool {
        self.touched
    }

    fn rewind(&mut self) -> bool {
        if self.touched && matches!(self.payload, Source::Reader(_)) {
            return false;
        }
        (self.taken, self.section, self.touched) = (0, Section::Head, false);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invoice() -> EnqueueRequest {
        let attributes = serde_json::json!({"tenant": "acme"});
        EnqueueRequest {
            namespace: "default".to_owned(),
            queue: "invoices".to_owned(),
            delay_seconds: 0,
            visibility_timeout_seconds: 30,
            ttl_seconds: 300,
            max_attempts: 5,
            attributes: attributes.as_object().cloned(),
            payload_content_type: "text/plain".to_owned(),
        }
    }

    /// CL-33: the bytes of a known good conversation.
    #[test]
    fn a_message_is_sent_in_two_parts() {
        const BOUNDARY: &str = "5a1e6c0f9b2d4e7781c3a5d7f9e1b3c5d7f90b2d4f6182a3c4e5f6071800";
        let expected = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"meta\"\r\nContent-Type: application/json\r\n\r\n\
             {{\"namespace\":\"default\",\"queue\":\"invoices\",\"delay_seconds\":0,\"visibility_timeout_seconds\":30,\
             \"ttl_seconds\":300,\"max_attempts\":5,\"attributes\":{{\"tenant\":\"acme\"}},\
             \"payload_content_type\":\"text/plain\"}}\n\r\n\
             --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"payload\"\r\nContent-Type: text/plain\r\n\r\n\
             hello\r\n--{BOUNDARY}--\r\n"
        );
        assert_eq!(expected.len(), 553);
        let sources = [
            Source::Borrowed(b"hello"),
            Source::Owned(b"hello".to_vec()),
            Source::Reader(Box::new(&b"hello"[..])),
        ];
        for source in sources {
            let mut upload = MessageUpload::new(&invoice(), source, BOUNDARY).unwrap();
            let mut sent = Vec::new();
            let mut piece = [0; 13];
            loop {
                match upload.read(&mut piece).unwrap() {
                    0 => break,
                    count => sent.extend_from_slice(&piece[..count]),
                }
            }
            assert_eq!(String::from_utf8(sent).unwrap(), expected);
            assert!(upload.length().is_none_or(|length| length == 553));
        }
    }

    #[test]
    fn only_what_can_be_made_again_is_rewound() {
        let mut bytes = MessageUpload::new(&invoice(), Source::Borrowed(b"x"), "b").unwrap();
        let mut first = Vec::new();
        bytes.read_to_end(&mut first).unwrap();
        assert!(bytes.touched() && bytes.rewind() && !bytes.touched());
        let mut second = Vec::new();
        bytes.read_to_end(&mut second).unwrap();
        assert_eq!(first, second);
        assert_eq!(first.len() as u64, bytes.length().unwrap());

        let mut reader = MessageUpload::new(&invoice(), Source::Reader(Box::new(io::empty())), "b").unwrap();
        assert!(reader.rewind(), "nothing was taken");
        let _ = reader.read(&mut [0; 1]).unwrap();
        assert!(!reader.rewind());
    }

    #[test]
    fn boundaries_are_long_and_new_each_time() {
        let (first, second) = (new_boundary(), new_boundary());
        assert!(first.len() == 60 && first.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(first, second);
    }
}
