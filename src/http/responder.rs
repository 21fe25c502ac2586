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
use crate::clock::Moment;
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
    parked_since: Option<Moment>,
}

impl Responder {
    pub(super) fn new(writer: Box<dyn Write + Send>, way: Way, under_way: UnderWay, turn: Turn) -> Self {
        Self {
            writer: Some(writer),
            under_way,
            turn,
            way,
            parked_since: None,
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
        let now = edge.clock.now();
        self.parked_since = Some(now);
        if let Some(peer) = &mut self.way.peer
            && peer.mark.is_none()
        {
            peer.mark = edge.mark(peer.address);
            if let Some(mark) = peer.mark {
                self.turn.park(mark, now);
            }
        }
    }

    /// The waiting is over. Where nobody reads the connection any more, the client must hear that this answer is the last.
    fn unpark(&mut self, edge: &Edge) {
        if let Some(since) = self.parked_since.take() {
            let is_unread = self.turn.unpark() || edge.may_be_unread(edge.clock.now().since(since));
            self.way.is_last |= is_unread;
        }
    }

    /// Answers. An error means that the client certainly has not received all of it.
    pub fn answer(mut self, edge: &Edge, reply: Reply) -> io::Result<()> {
        let Some(mut writer) = self.writer.take() else {
            return Ok(());
        };
        self.under_way.answered(reply.status);
        self.unpark(edge);
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
        self.unpark(edge);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;
    use tiny_http::TestRequest;

    use super::super::turns::{Incoming, Place, Turns};
    use super::*;
    use crate::clock::ManualClock;
    use crate::logging;
    use crate::net::sever::ListenerAddr;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The library stops to read a connection after a minute without a byte, and has closed it before a client could use
    /// it again.
    #[test]
    fn who_has_waited_until_nobody_reads_any_more_hears_that_the_answer_is_the_last() {
        let tcp = ListenerAddr::Tcp("127.0.0.1:9".parse().unwrap());
        let unix = ListenerAddr::Unix("lockd.sock".into());
        for (listener, seconds, is_last) in [(&tcp, 50, false), (&tcp, 58, true), (&unix, 58, false)] {
            let clock = ManualClock::at_wall_ms(0);
            let edge = Edge::new(listener.clone(), 1, clock.clone(), logging::off(), None);
            let turns = Turns::new(|_, _| unreachable!("nobody waits"));
            let incoming = Incoming::new(TestRequest::new().into(), edge.enter());
            let Place::First(incoming, turn) = turns.enter(incoming, |_| None) else {
                panic!("it has no turn");
            };
            let way = Way {
                correlation_id: String::new(),
                peer: incoming.peer().map(Peer::from),
                head_only: false,
                keeps_alive_1_0: false,
                is_last: false,
                is_1_0: false,
            };
            let sink = Sink::default();
            let mut responder = Responder::new(Box::new(sink.clone()), way, edge.enter(), turn);
            responder.park(&edge);
            clock.advance(Duration::from_secs(seconds));
            responder.answer(&edge, Reply::empty(200)).unwrap();
            let sent = String::from_utf8(sink.0.lock().clone()).unwrap();
            assert_eq!(
                sent.contains("\r\nConnection: close\r\n"),
                is_last,
                "{listener:?}, {seconds} s: {sent}"
            );
        }
    }
}
