//! One request on its way through a worker: what it says, its body, and the way to its answer.
//!
//! The HTTP library reads bodies with little care, and this file makes up for it:
//!
//! - It says "end" both at the end of a chunked body and where the client broke off within a chunk. Which of the two it
//!   was, the kernel knows: a client that has sent its whole body still listens with both sides open. One that closes its
//!   sending side right behind a chunked body is refused, because nobody can tell whether that body is whole. On unix
//!   sockets the kernel cannot be asked, and such a body is taken for whole.
//! - An offer to upgrade takes the frame off the body: what is read then are the bytes of the connection.
//! - A request whose body was not read to its end leaves a connection of which nobody knows where the next request
//!   begins; see the module `cut`.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;

use chunked_transfer::Decoder;
use lockd_client::wire::{headers, valid_correlation_id};
use tiny_http::{HTTPVersion, Method, Request};

use super::edge::{Edge, UnderWay};
use super::reply::{Failure, Reply};
use super::responder::{Responder, Way};
use super::turns::{DROPPABLE_BODY_BYTES, Incoming, SafeRequest, Turn};
use crate::clock::Moment;
use crate::error::Error;
use crate::net::peer::Peer;

/// A body may take this long in any case.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Beyond that it must have come at least this fast on the whole.
const BODY_BYTES_PER_SECOND_MIN: u64 = 64 * 1024;
/// How much of a body is read at once, in bytes.
const READ_BYTES: u64 = 64 * 1024;
/// The HTTP library reads bodies up to this size before it hands out the request.
const PRELOADED_BODY_BYTES: u64 = 1024;

/// A request under treatment.
pub struct Exchange {
    // Dropped in this order: the request lets go of its connection before others get their turn.
    pub(super) request: SafeRequest,
    pub(super) under_way: UnderWay,
    pub(super) turn: Turn,
    correlation_id: String,
    arrived: Moment,
    has_waited: bool,
    body: Body,
    body_read: u64,
}

/// What is known about a body and how much of it is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// Nothing to come: there is none, or it is here already, or it has been read to its end.
    Here,
    /// So many bytes, at the pace of the client.
    Counted(u64),
    /// Chunks, taken apart by the library.
    Chunked,
    /// Chunks as they came over the connection.
    RawChunks,
    /// Nobody knows where it ends.
    Unframed,
}

impl Body {
    /// Reads what a request says about its body, and what the library makes of that.
    pub(super) fn of(request: &Request) -> Self {
        let (mut lengths, mut codings, mut is_sound) = (0, 0, true);
        let (mut expects, mut upgrades) = (false, None);
        for header in request.headers() {
            let is = |name: &str| header.field.as_str().as_str().eq_ignore_ascii_case(name);
            if is("Content-Length") {
                lengths += 1;
                is_sound &= header.value.as_str().trim().bytes().all(|byte| byte.is_ascii_digit());
            } else if is("Transfer-Encoding") {
                codings += 1;
                is_sound &= header.value.as_str().trim().eq_ignore_ascii_case("chunked");
            } else if is("Expect") {
                expects = true;
            } else if is("Connection") && upgrades.is_none() {
                // The library looks at the first one only.
                upgrades = Some(header.value.as_str().to_ascii_lowercase().contains("upgrade"));
            }
        }
        let is_raw = upgrades == Some(true);
        match (lengths, codings, request.body_length()) {
            _ if !is_sound => Self::Unframed,
            (0, 0, _) => Self::Here,
            (0, 1, _) if is_raw => Self::RawChunks,
            (0, 1, _) => Self::Chunked,
            (1, 0, Some(0)) => Self::Here,
            (1, 0, Some(length)) if length as u64 <= PRELOADED_BODY_BYTES && !expects && !is_raw => Self::Here,
            (1, 0, Some(length)) => Self::Counted(length as u64),
            _ => Self::Unframed,
        }
    }
}

impl Exchange {
    /// Takes a request over; `make_id` is called when it brings no usable correlation id.
    pub fn new(incoming: Incoming, turn: Turn, arrived: Moment, make_id: impl FnOnce() -> String) -> Self {
        let Incoming {
            request,
            has_waited,
            mut under_way,
        } = incoming;
        under_way.is_for(request.method(), path_of(&request));
        let correlation_id = header_of(&request, headers::CORRELATION_ID)
            .and_then(valid_correlation_id)
            .map_or_else(make_id, str::to_owned);
        let body = Body::of(&request);
        Self {
            request,
            under_way,
            turn,
            correlation_id,
            arrived,
            has_waited,
            body,
            body_read: 0,
        }
    }

    /// The method.
    pub fn method(&self) -> &Method {
        self.request.method()
    }

    /// Path, as it came.
    pub fn path(&self) -> &str {
        path_of(&self.request)
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

    /// True when the request had to wait for others of its connection, so that its client may be gone by now.
    pub fn has_waited(&self) -> bool {
        self.has_waited
    }

    /// The client's address, where there is one.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.request.remote_addr().copied()
    }

    /// False when nobody knows where the body ends.
    pub fn has_sound_framing(&self) -> bool {
        self.body != Body::Unframed
    }

    /// Passes the body on piece by piece, until its end. Fails when it is larger than `limit` bytes, ends early, comes too
    /// slowly, or when clients hold up too many workers already.
    pub fn read_body(
        &mut self,
        edge: &Edge,
        limit: u64,
        mut take: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Failure> {
        let announced = match self.body {
            Body::Here => Some(self.request.body_length().unwrap_or(0) as u64),
            Body::Counted(length) => Some(length),
            _ => None,
        };
        let announced_max = limit.min(DROPPABLE_BODY_BYTES);
        if announced.is_some_and(|announced| announced_max < announced) {
            return Err(Error::BodyTooLarge { limit: announced_max }.into());
        }
        if announced == Some(self.body_read) {
            return Ok(());
        }
        let _held_up = match self.body {
            Body::Here => None,
            _ => Some(
                edge.crew
                    .try_held_up()
                    .ok_or(Failure::Busy("too many uploads at the same time"))?,
            ),
        };
        let (began, peer) = (edge.clock.now(), self.peer());
        let mut source = Source::new(&mut self.request, self.body);
        let mut buffer = vec![0; to_usize(announced.map_or(READ_BYTES, |length| length.min(READ_BYTES)))];
        while announced != Some(self.body_read) {
            let room = announced.map_or(READ_BYTES, |length| (length - self.body_read).min(READ_BYTES));
            let room = &mut buffer[..to_usize(room)];
            let count = match source.read(room) {
                Ok(count) => count,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) => return Err(Error::BodyUnreadable(cause).into()),
            };
            if count == 0 {
                if announced.is_some() || source.is_within_chunk().unwrap_or_else(|| edge.is_gone(peer)) {
                    return Err(unreadable(io::ErrorKind::UnexpectedEof, "it ended early"));
                }
                break;
            }
            self.body_read += count as u64;
            if limit < self.body_read {
                return Err(Error::BodyTooLarge { limit }.into());
            }
            take(&room[..count])?;
            let allowed = BODY_TIME + Duration::from_secs(self.body_read / BODY_BYTES_PER_SECOND_MIN);
            if allowed < edge.clock.now().since(began) {
                return Err(unreadable(io::ErrorKind::TimedOut, "it came too slowly"));
            }
        }
        self.body = Body::Here;
        Ok(())
    }

    /// Reads a body of at most `limit` bytes into memory.
    pub fn read_whole_body(&mut self, edge: &Edge, limit: u64) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        self.read_body(edge, limit, |bytes| {
            body.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(body)
    }

    /// Gives up on the rest of the request; what remains is the way back. For requests whose body was read.
    pub fn into_responder(self) -> Result<Responder, Box<Exchange>> {
        if self.body != Body::Here {
            return Err(Box::new(self));
        }
        let says = |word| {
            self.header("Connection")
                .is_some_and(|connection| contains_ignoring_case(connection, word))
        };
        let is_1_0 = *self.request.http_version() <= HTTPVersion(1, 0);
        let is_last = says("close") || says("upgrade") || is_1_0 && !says("keep-alive");
        let way = Way {
            peer: self.peer().map(Peer::from),
            head_only: *self.request.method() == Method::Head,
            keeps_alive_1_0: is_1_0 && !is_last,
            is_last,
            is_1_0,
            correlation_id: self.correlation_id,
        };
        let writer = self.request.take().into_writer();
        Ok(Responder::new(writer, way, self.under_way, self.turn))
    }

    /// Answers. An error means that the client certainly has not received all of it.
    pub fn answer(self, edge: &Edge, reply: Reply) -> io::Result<()> {
        match self.into_responder() {
            Ok(responder) => responder.answer(edge, reply),
            Err(unread) => unread.answer_and_cut(edge, reply),
        }
    }

    /// True when the bytes behind the head are still in our hands: the library reads no further until we let go.
    pub(super) fn holds_reader(&self) -> bool {
        matches!(self.body, Body::Counted(_) | Body::Chunked | Body::RawChunks)
    }
}

/// Where the bytes of a body come from.
enum Source<'a> {
    Library(&'a mut dyn Read),
    RawChunks(Decoder<&'a mut dyn Read>),
}

impl<'a> Source<'a> {
    /// Tells a client that asked before sending to go on.
    fn new(request: &'a mut Request, body: Body) -> Self {
        let reader = request.as_reader();
        match body {
            Body::RawChunks => Self::RawChunks(Decoder::new(reader)),
            _ => Self::Library(reader),
        }
    }

    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Library(reader) => reader.read(room),
            Self::RawChunks(decoder) => decoder.read(room),
        }
    }

    /// Whether the end that was just read lies within a chunk; `None` when the library does not tell.
    fn is_within_chunk(&self) -> Option<bool> {
        match self {
            Self::Library(_) => None,
            Self::RawChunks(decoder) => Some(decoder.remaining_chunks_size().is_some()),
        }
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn contains_ignoring_case(text: &str, word: &str) -> bool {
    text.as_bytes()
        .windows(word.len())
        .any(|part| part.eq_ignore_ascii_case(word.as_bytes()))
}

fn unreadable(kind: io::ErrorKind, why: &str) -> Failure {
    Error::BodyUnreadable(io::Error::new(kind, why)).into()
}

fn path_of(request: &Request) -> &str {
    let url = request.url();
    url.split_once('?').map_or(url, |(path, _)| path)
}

fn header_of<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request
        .headers()
        .iter()
        .find(|header| header.field.as_str().as_str().eq_ignore_ascii_case(name))
        .map(|header| header.value.as_str().trim())
}
