//! The way back to a client whose request has been read.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use lockd_client::wire::headers;
use tiny_http::StatusCode;

use super::chunked::Chunked;
use super::edge::{Edge, UnderWay};
use super::reply::{Reply, ReplyBody};
use super::turns::Turn;
use crate::net::peer::Peer;

/// What an answer depends on besides its content.
pub(super) struct Way {
    pub(super) correlation_id: String,
    pub(super) peer: Option<Peer>,
    /// The client wants the head alone.
    pub(super) head_only: bool,
    /// A client of HTTP/1.0 has asked to keep the connection.
    pub(super) keeps_alive_1_0: bool,
    /// The connection ends with this answer.
    pub(super) is_last: bool,
    /// The client does not understand chunks.
    pub(super) is_1_0: bool,
}

/// Answers one request, once.
pub struct Responder {
    // Dropped in this order: the answer is complete before the next request gets its turn.
    writer: Option<Box<dyn Write + Send>>,
    under_way: UnderWay,
    turn: Turn,
    way: Way,
}

impl Responder {
    pub(super) fn new(writer: Box<dyn Write + Send>, way: Way, under_way: UnderWay, turn: Turn) -> Self {
        Self {
            writer: Some(writer),
            under_way,
            turn,
            way,
        }
    }

    /// The correlation id of the request.
    pub fn correlation_id(&self) -> &str {
        &self.way.correlation_id
    }

    /// The client, where it has an address.
    pub fn peer(&self) -> Option<Peer> {
        self.way.peer
    }

    /// The client's address, where there is one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.way.peer.map(|peer| peer.address)
    }

    /// From here on the request waits for something. Its client may go, and come again from the same address, before
    /// anybody looks: so its connection is marked.
    pub(super) fn park(&mut self, edge: &Edge) {
        if let Some(peer) = &mut self.way.peer
            && peer.mark.is_none()
        {
            peer.mark = edge.mark(peer.address);
            if let Some(mark) = peer.mark {
                self.turn.park(mark);
            }
        }
    }

    /// Answers. An error means that the client certainly has not received all of it.
    pub fn answer(mut self, edge: &Edge, reply: Reply) -> io::Result<()> {
        let Some(mut writer) = self.writer.take() else {
            return Ok(());
        };
        self.under_way.answered(reply.status);
        // A client that does not read makes us wait here.
        let _held_up = edge.crew.held_up();
        let mut head = head(edge, &self.way, &reply);
        match reply.body {
            _ if self.way.head_only => writer.write_all(&head)?,
            ReplyBody::Empty | ReplyBody::Open => writer.write_all(&head)?,
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
                    edge.sever(self.address().as_slice());
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        writer.flush()
    }

    /// Answers with another correlation id than that of the request.
    pub(super) fn correlate(&mut self, correlation_id: &str) {
        correlation_id.clone_into(&mut self.way.correlation_id);
    }

    /// Begins an answer without a length. Nothing is sent before its first flush.
    pub(super) fn begin(mut self, edge: &Arc<Edge>, reply: Reply) -> io::Result<Chunked> {
        let writer = self.writer.take().ok_or(io::ErrorKind::NotConnected)?;
        self.under_way.answered(reply.status);
        let is_chunked = !self.way.is_1_0;
        // Without chunks, the end of the connection is the end of the answer.
        self.way.is_last |= !is_chunked;
        let reply = Reply {
            body: ReplyBody::Open,
            ..reply
        };
        let reply = if is_chunked {
            reply.with("Transfer-Encoding", "chunked")
        } else {
            reply
        };
        let head = head(edge, &self.way, &reply);
        Ok(Chunked::new(Arc::clone(edge), self, writer, head, is_chunked))
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
            self.under_way.answered(500);
            let _ = writer.write_all(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
            let _ = writer.flush();
        }
    }
}

/// Status line and headers, up to and with the empty line.
pub(super) fn head(edge: &Edge, way: &Way, reply: &Reply) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    let reason = StatusCode(reply.status).default_reason_phrase();
    push(&mut head, &["HTTP/1.1 ", reply.status_text(), " ", reason, "\r\n"]);
    push(&mut head, &["Date: ", &edge.http_date(), "\r\n"]);
    let mut put = |name: &str, value: &str| push(&mut head, &[name, ": ", value, "\r\n"]);
    if let Some(content_type) = reply.content_type {
        put("Content-Type", content_type);
    }
    put(headers::CORRELATION_ID, &way.correlation_id);
    for (name, value) in &reply.headers {
        put(name, value);
    }
    if edge.announces_shutdown() {
        put(headers::SHUTDOWN_IMMINENT, "true");
    }
    if let Some(length) = reply.content_length() {
        put("Content-Length", &length.to_string());
    }
    if way.is_last || edge.is_closing() {
        put("Connection", "close");
    } else if way.keeps_alive_1_0 {
        put("Connection", "keep-alive");
    }
    push(&mut head, &["\r\n"]);
    head
}

fn push(head: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        head.extend_from_slice(part.as_bytes());
    }
}
