//! One request on its way through a worker: what it says, its body, and the way back to its client.
//!
//! Two traps of the HTTP library shape this file. Turning a request into its writer drops the reader of its body, and
//! dropping a reader reads the rest of the body first: an endless upload would hold the worker for ever. And that drop
//! allocates as many bytes as are missing: a `Content-Length` beyond all memory would end the process. So a request whose
//! body was not read to its end never takes the ordinary way back; see [`Exchange::answer`].

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use lockd_client::wire::{headers, valid_correlation_id};
use tiny_http::{HTTPVersion, Method, Request, Response, StatusCode};

use super::edge::{Edge, UnderWay};
use super::reply::{Reply, ReplyBody};
use crate::clock::Moment;
use crate::error::Error;

/// A body may take this long in any case.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Beyond that it must have come at least this fast on the whole.
const BODY_BYTES_PER_SECOND_MIN: u64 = 64 * 1024;
/// How much of a body is read at once, in bytes.
const READ_BYTES: u64 = 64 * 1024;
/// The HTTP library reads bodies up to this size before it hands out the request.
const PRELOADED_BODY_BYTES: usize = 1024;
/// An unread rest above this is never handed to the HTTP library's drop.
const DROPPABLE_REST_BYTES: u64 = 1 << 30;

/// A request under treatment.
pub struct Exchange {
    request: Request,
    correlation_id: String,
    arrived: Moment,
    body_read: u64,
    body_ended: bool,
    under_way: UnderWay,
}

impl Exchange {
    /// Takes a request over; `make_id` is called when it brings no usable correlation id.
    pub fn new(request: Request, under_way: UnderWay, arrived: Moment, make_id: impl FnOnce() -> String) -> Self {
        let correlation_id = header_of(&request, headers::CORRELATION_ID)
            .and_then(valid_correlation_id)
            .map_or_else(make_id, str::to_owned);
        let length = request.body_length();
        let announces_body =
            length.is_some_and(|length| length != 0) || header_of(&request, "Transfer-Encoding").is_some();
        let asks_first = header_of(&request, "Expect").is_some();
        let preloaded = length.is_some_and(|length| length <= PRELOADED_BODY_BYTES) && !asks_first;
        Self {
            request,
            correlation_id,
            arrived,
            body_read: 0,
            body_ended: !announces_body || preloaded,
            under_way,
        }
    }

    /// The method.
    pub fn method(&self) -> &Method {
        self.request.method()
    }

    /// Path, as it came.
    pub fn path(&self) -> &str {
        self.request
            .url()
            .split_once('?')
            .map_or(self.request.url(), |(path, _)| path)
    }

    /// Query, as it came, without the question mark.
    pub fn query(&self) -> &str {
        self.request.url().split_once('?').map_or("", |(_, query)| query)
    }

    /// A header, trimmed; `None` when it is absent.
    pub fn header(&self, name: &str) -> Option<&str> {
        header_of(&self.request, name)
    }

    /// The correlation id: the client's, or a new one.
    pub fn correlation_id(&self) -> &str {
        &self.correlation_id
    }

    /// When the request was taken in.
    pub fn arrived(&self) -> Moment {
        self.arrived
    }

    /// The length that the client announced, in bytes.
    pub fn announced_length(&self) -> Option<u64> {
        self.request.body_length().map(|length| length as u64)
    }

    /// False when the length header cannot be understood, so that nobody knows where the body ends.
    pub fn has_sound_framing(&self) -> bool {
        self.request.body_length().is_some()
            || self.header("Content-Length").is_none()
            || self.header("Transfer-Encoding").is_some()
    }

    /// Passes the body on piece by piece, until its end. Fails when it ends early or comes too slowly.
    pub fn read_body(&mut self, edge: &Edge, mut take: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
        let began = edge.clock.now();
        let announced = self.announced_length();
        // One byte more than announced, so that the read that finds the end finds room.
        let wanted = announced.map_or(READ_BYTES, |length| length.saturating_add(1).min(READ_BYTES));
        let mut buffer = vec![0; usize::try_from(wanted).unwrap_or(0)];
        loop {
            let count = match self.request.as_reader().read(&mut buffer) {
                Ok(count) => count,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) => return Err(Error::BodyUnreadable(cause)),
            };
            if count == 0 {
                break;
            }
            self.body_read += count as u64;
            take(&buffer[..count])?;
            let allowed = BODY_TIME + Duration::from_secs(self.body_read / BODY_BYTES_PER_SECOND_MIN);
            if allowed < edge.clock.now().since(began) {
                return Err(Error::BodyUnreadable(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "it came too slowly",
                )));
            }
        }
        if announced.is_some_and(|announced| self.body_read < announced) {
            return Err(Error::BodyUnreadable(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it ended early",
            )));
        }
        self.body_ended = true;
        Ok(())
    }

    /// Reads a body of at most `limit` bytes into memory.
    pub fn read_whole_body(&mut self, edge: &Edge, limit: u64) -> Result<Vec<u8>, Error> {
        if self.announced_length().is_some_and(|length| limit < length) {
            return Err(Error::BodyTooLarge { limit });
        }
        let mut body = Vec::new();
        if self.announced_length() == Some(0) {
            return Ok(body);
        }
        self.read_body(edge, |bytes| {
            if limit < (body.len() + bytes.len()) as u64 {
                return Err(Error::BodyTooLarge { limit });
            }
            body.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(body)
    }

    /// Gives up on the rest of the request; what remains is the way back. For requests whose body was read.
    pub fn into_responder(self) -> Result<Responder, Box<Exchange>> {
        if !self.body_ended {
            return Err(Box::new(self));
        }
        let keeps_alive_1_0 = *self.request.http_version() == HTTPVersion(1, 0)
            && self
                .header("Connection")
                .is_some_and(|value| value.to_ascii_lowercase().contains("keep-alive"));
        let peer = self.request.remote_addr().copied();
        let head_only = *self.request.method() == Method::Head;
        Ok(Responder {
            writer: Some(self.request.into_writer()),
            correlation_id: self.correlation_id,
            peer,
            head_only,
            keeps_alive_1_0,
            _under_way: self.under_way,
        })
    }

    /// Answers. An error means that the client certainly has not received all of it.
    pub fn answer(self, edge: &Edge, reply: Reply) -> io::Result<()> {
        match self.into_responder() {
            Ok(responder) => responder.answer(edge, reply),
            Err(unread) => unread.answer_before_body(edge, reply),
        }
    }

    /// Answers a request whose body is still coming in: on a thread of its own, because what is left of the body is read
    /// and thrown away there.
    fn answer_before_body(self, edge: &Edge, reply: Reply) -> io::Result<()> {
        let rest = self
            .announced_length()
            .map_or(0, |length| length.saturating_sub(self.body_read));
        let peer = self.request.remote_addr().copied();
        let response = buffered_response(edge, &self.correlation_id, reply);
        let (request, under_way) = (self.request, self.under_way);
        if DROPPABLE_REST_BYTES < rest {
            // The only way to the writer that leaves the reader alone. The stream is then forgotten on purpose: dropping
            // it would allocate `rest` bytes. That leaks a connection, so the connection is cut.
            let stream = request.upgrade("none", response);
            edge.sever(peer);
            std::mem::forget(stream);
            return Ok(());
        }
        edge.linger(peer, move || {
            let outcome = request.respond(response);
            drop(under_way);
            outcome
        })
    }
}

/// The way back to a client whose request has been read.
pub struct Responder {
    writer: Option<Box<dyn Write + Send>>,
    correlation_id: String,
    peer: Option<SocketAddr>,
    head_only: bool,
    keeps_alive_1_0: bool,
    _under_way: UnderWay,
}

impl Responder {
    /// The correlation id of the request.
    pub fn correlation_id(&self) -> &str {
        &self.correlation_id
    }

    /// The client's address, where there is one.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Answers. An error means that the client certainly has not received all of it.
    pub fn answer(mut self, edge: &Edge, reply: Reply) -> io::Result<()> {
        let Some(mut writer) = self.writer.take() else {
            return Ok(());
        };
        let mut head = head(edge, &self.correlation_id, &reply);
        if edge.is_closing() {
            head.extend_from_slice(b"Connection: close\r\n");
        } else if self.keeps_alive_1_0 {
            head.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        head.extend_from_slice(b"\r\n");
        match reply.body {
            _ if self.head_only => writer.write_all(&head)?,
            ReplyBody::Empty => writer.write_all(&head)?,
            ReplyBody::Bytes(bytes) => {
                head.extend_from_slice(&bytes);
                writer.write_all(&head)?;
            }
            ReplyBody::Shared(bytes) => {
                writer.write_all(&head)?;
                writer.write_all(&bytes)?;
            }
            ReplyBody::Stream { mut reader, length } => {
                writer.write_all(&head)?;
                let sent = io::copy(&mut Read::by_ref(&mut reader).take(length), &mut writer)?;
                if sent < length {
                    // The length is announced already: all that is left is to cut the connection.
                    edge.sever(self.peer);
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        writer.flush()
    }

    /// Lets go of a client that is not there any more.
    pub fn abandon(mut self) {
        self.writer = None;
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        // Only a panic gets here with the writer in hand. A client that is not answered would wait for ever.
        if let Some(mut writer) = self.writer.take() {
            let _ = writer.write_all(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
            let _ = writer.flush();
        }
    }
}

fn header_of<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request
        .headers()
        .iter()
        .find(|header| header.field.as_str().as_str().eq_ignore_ascii_case(name))
        .map(|header| header.value.as_str().trim())
}

/// Status line and headers, without the empty line behind them.
fn head(edge: &Edge, correlation_id: &str, reply: &Reply) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    let status = StatusCode(reply.status);
    push(
        &mut head,
        &[
            "HTTP/1.1 ",
            reply.status_text(),
            " ",
            status.default_reason_phrase(),
            "\r\n",
        ],
    );
    push(&mut head, &["Date: ", &edge.http_date(), "\r\n"]);
    each_header(edge, correlation_id, reply, |name, value| {
        push(&mut head, &[name, ": ", value, "\r\n"]);
    });
    if let Some(length) = reply.content_length() {
        push(&mut head, &["Content-Length: ", &length.to_string(), "\r\n"]);
    }
    head
}

fn each_header(edge: &Edge, correlation_id: &str, reply: &Reply, mut put: impl FnMut(&str, &str)) {
    if let Some(content_type) = reply.content_type {
        put("Content-Type", content_type);
    }
    put(headers::CORRELATION_ID, correlation_id);
    for (name, value) in &reply.headers {
        put(name, value);
    }
    if edge.announces_shutdown() {
        put(headers::SHUTDOWN_IMMINENT, "true");
    }
}

fn push(head: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        head.extend_from_slice(part.as_bytes());
    }
}

/// The same answer for the HTTP library to send; only errors and other small answers come this way.
fn buffered_response(edge: &Edge, correlation_id: &str, reply: Reply) -> Response<io::Cursor<Vec<u8>>> {
    let mut fields = Vec::new();
    each_header(edge, correlation_id, &reply, |name, value| {
        fields.extend(tiny_http::Header::from_bytes(name, value));
    });
    let bytes = match reply.body {
        ReplyBody::Bytes(bytes) => bytes,
        ReplyBody::Shared(bytes) => bytes.to_vec(),
        ReplyBody::Empty | ReplyBody::Stream { .. } => Vec::new(),
    };
    let length = bytes.len();
    Response::new(
        StatusCode(reply.status),
        fields,
        io::Cursor::new(bytes),
        Some(length),
        None,
    )
}
