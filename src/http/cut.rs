//! Answers to requests whose body is not read to its end, with which the connection ends as well.
//!
//! What is left of such a body is of no use, and no request can follow that we would know where to find. The library has
//! no way to end a connection: it would read the rest of the body as long as it may take, allocate as many bytes as are
//! missing, or take the rest for the next request. So the answer goes straight to the socket, which we find in spite of the
//! library (see `net::sever`), and then both directions are shut down.
//!
//! Between answer and end we read for a moment, and throw it away: bytes that arrive at a closed socket make the kernel
//! send a reset, and a client that is still sending would see that instead of its answer.
//!
//! Where sockets cannot be found (unix sockets; containers that forbid `pidfd_getfd`), the library answers and reads the rest.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use lockd_client::wire::headers;
use socket2::Socket;
use tiny_http::{Header, Method, Response, StatusCode};

use super::edge::Edge;
use super::exchange::Exchange;
use super::reply::Reply;
use super::responder::{Way, head};

/// How long the rest of a body is read after the answer: in all, in silence (so many steps), and up to so many bytes.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_STEP: Duration = Duration::from_millis(250);
const LINGER_PAUSES_MAX: usize = 4;
const LINGER_BYTES_MAX: usize = 64 << 20;

impl Exchange {
    /// Answers and ends the connection. An error means that the client certainly has not received all of it.
    pub(super) fn answer_and_cut(mut self, edge: &Edge, reply: Reply) -> io::Result<()> {
        self.under_way.answered(reply.status);
        let outcome = match edge.connection(self.peer()) {
            Ok(Some(socket)) => self.answer_on(&socket, edge, reply),
            Ok(None) => Err(ErrorKind::NotConnected.into()),
            Err(_) => return self.answer_by_library(edge, reply),
        };
        let (request, under_way, turn) = (self.request, self.under_way, self.turn);
        // Only now the library goes on reading what it has buffered, and must find that the connection has ended.
        drop(request);
        turn.end_connection(edge.clock.now());
        drop(under_way);
        outcome
    }

    fn answer_on(&self, mut socket: &Socket, edge: &Edge, reply: Reply) -> io::Result<()> {
        let held_up = edge.crew.try_held_up();
        let outcome = socket.write_all(&self.whole_answer(edge, reply));
        if outcome.is_ok() && held_up.is_some() && self.holds_reader() {
            // The client sees the end of the answer; we see what it still sends.
            let _ = socket.shutdown(Shutdown::Write);
            linger(edge, socket);
        }
        let _ = socket.shutdown(Shutdown::Both);
        outcome
    }

    fn whole_answer(&self, edge: &Edge, reply: Reply) -> Vec<u8> {
        let way = Way {
            correlation_id: self.correlation_id().to_owned(),
            peer: self.peer().map(Into::into),
            head_only: *self.method() == Method::Head,
            keeps_alive_1_0: false,
            is_last: true,
            is_1_0: false,
        };
        let mut answer = head(edge, &way, &reply);
        if !way.head_only {
            answer.extend_from_slice(reply.body.bytes());
        }
        answer
    }

    fn answer_by_library(self, edge: &Edge, reply: Reply) -> io::Result<()> {
        let _held_up = edge.crew.held_up();
        if self.request.announces_too_much() {
            // The only way to the writer that leaves the reader alone begins with an interim answer. The stream is then
            // forgotten on purpose, as a request would be (see `SafeRequest`).
            let answer = self.whole_answer(edge, reply);
            let interim = Response::empty(StatusCode(102));
            let mut stream = self.request.take().upgrade("HTTP/1.1", interim);
            let outcome = stream.write_all(&answer).and_then(|()| stream.flush());
            std::mem::forget(stream);
            return outcome;
        }
        let mut fields = Vec::new();
        fields.extend(Header::from_bytes(headers::CORRELATION_ID, self.correlation_id()));
        fields.extend(
            reply
                .content_type
                .map(|kind| Header::from_bytes("Content-Type", kind))
                .and_then(Result::ok),
        );
        fields.extend(
            reply
                .headers
                .iter()
                .flat_map(|(name, value)| Header::from_bytes(*name, value.as_str())),
        );
        let bytes = reply.body.bytes();
        let response = Response::new(StatusCode(reply.status), fields, bytes, Some(bytes.len()), None);
        self.request.take().respond(response)
    }
}

/// Reads and throws away until the client is done, but not for long.
fn linger(edge: &Edge, mut socket: &Socket) {
    if socket.set_read_timeout(Some(LINGER_STEP)).is_err() {
        return;
    }
    let until = edge.clock.now().after(LINGER);
    let (mut waste, mut bytes, mut pauses) = (vec![0; 64 * 1024], 0, 0);
    while bytes < LINGER_BYTES_MAX && pauses < LINGER_PAUSES_MAX && edge.clock.now() < until {
        match socket.read(&mut waste) {
            Ok(0) => return,
            Ok(count) => bytes += count,
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => pauses += 1,
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
