//! Just enough HTTP/1.1 to read answers on a connection that is kept alive.
//!
//! Understands a status line, `Content-Length`, `Transfer-Encoding: chunked`, `Connection: close` and bodies that end
//! with the connection; skips every other header. One answer at a time: whoever asks again before the answer is complete
//! gets an error. Bodies are read whole into one reused buffer.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;

const READ_BYTES: usize = 2 * 1024;
const HEAD_BYTES_MAX: usize = 64 * 1024;
const BODY_BYTES_MAX: usize = 512 * 1024 * 1024;

/// An answer that has arrived completely.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
    /// The server ends the connection after this answer.
    pub(crate) close: bool,
}

/// Why bytes cannot be read as an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProtocolError(pub(crate) &'static str);

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for ProtocolError {}

/// Collects the bytes of one answer.
#[derive(Debug, Default)]
pub(crate) struct AnswerReader {
    bytes: Vec<u8>,
    filled: usize,
    head: Option<Head>,
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    status: u16,
    head_bytes: usize,
    framing: Framing,
    close: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

impl AnswerReader {
    /// Reads once. Returns 0 when the server has closed the connection.
    pub(crate) fn read_from(&mut self, source: &mut impl Read) -> io::Result<usize> {
        let wanted = match self.head {
            Some(Head {
                head_bytes,
                framing: Framing::Length(length),
                ..
            }) => (head_bytes + length).max(self.filled + 1),
            _ => self.filled + READ_BYTES,
        };
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        }
        let count = source.read(&mut self.bytes[self.filled..])?;
        self.filled += count;
        self.ended = count == 0;
        Ok(count)
    }

    /// The answer, if it is complete. [`AnswerReader::clear`] makes room for the next one.
    pub(crate) fn answer(&mut self) -> Result<Option<Answer<'_>>, ProtocolError> {
        let head = loop {
            if let Some(head) = self.head {
                break head;
            }
            let Some(head) = read_head(&self.bytes[..self.filled])? else {
                return Ok(None);
            };
            if (100..200).contains(&head.status) {
                self.bytes.copy_within(head.head_bytes..self.filled, 0);
                self.filled -= head.head_bytes;
                continue;
            }
            self.head = Some(head);
        };
        let body = match head.framing {
            Framing::Length(length) => {
                let end = head.head_bytes + length;
                if self.filled > end {
                    return Err(ProtocolError("bytes after the answer"));
                }
                (self.filled == end).then_some(head.head_bytes..end)
            }
            Framing::Chunked => {
                let body = join_chunks(&mut self.bytes[..self.filled], head.head_bytes)?;
                if let Some(body) = &body {
                    // From now on it is a body with a length, so that asking again gives the same answer.
                    self.filled = body.end;
                    self.head = Some(Head {
                        framing: Framing::Length(body.len()),
                        ..head
                    });
                }
                body
            }
            Framing::UntilClose => self.ended.then_some(head.head_bytes..self.filled),
        };
        if body.is_none() && self.filled > head.head_bytes + BODY_BYTES_MAX {
            return Err(ProtocolError("the body is too long"));
        }
        Ok(body.map(|body| Answer {
            status: head.status,
            body: &self.bytes[body],
            close: head.close,
        }))
    }

    /// Forgets the answer and keeps the buffer.
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
        self.head = None;
        self.ended = false;
    }
}

/// The value of a field of a flat JSON object, as raw text: the inside of a string, or the digits of a number. It is a
/// search, not a parser: escapes are not decoded, and the first occurrence of the name wins, wherever it stands.
pub(crate) fn json_field<'a>(body: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let name = name.as_bytes();
    let mut from = 0;
    while let Some(quote) = body[from..].iter().position(|byte| *byte == b'"') {
        let start = from + quote + 1;
        if let Some(rest) = body[start..]
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix(b"\""))
        {
            let rest = rest.trim_ascii_start();
            if let Some(value) = rest.strip_prefix(b":") {
                return Some(raw_value(value.trim_ascii_start()));
            }
        }
        from = start;
    }
    None
}

fn raw_value(text: &[u8]) -> &[u8] {
    if let Some(inside) = text.strip_prefix(b"\"") {
        let end = inside.iter().position(|byte| *byte == b'"').unwrap_or(inside.len());
        return &inside[..end];
    }
    let end = text
        .iter()
        .position(|byte| matches!(byte, b',' | b'}' | b' ' | b'\n'))
        .unwrap_or(text.len());
    &text[..end]
}

fn read_head(bytes: &[u8]) -> Result<Option<Head>, ProtocolError> {
    let Some(first_end) = line_end(bytes, 0) else {
        return too_long_or_unfinished(bytes);
    };
    let first = &bytes[..first_end];
    if !first.starts_with(b"HTTP/1.") || first.len() < 12 {
        return Err(ProtocolError("not an HTTP/1 status line"));
    }
    let digits = &first[9..12];
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(ProtocolError("not an HTTP/1 status line"));
    }
    let status = digits
        .iter()
        .fold(0, |number, digit| number * 10 + u16::from(digit - b'0'));
    let mut framing = Framing::UntilClose;
    let mut close = first[7] == b'0';
    let mut start = first_end + 2;
    loop {
        let Some(end) = line_end(bytes, start) else {
            return too_long_or_unfinished(bytes);
        };
        let line = &bytes[start..end];
        start = end + 2;
        if line.is_empty() {
            break;
        }
        // Three of the headers matter, and they begin with C or T.
        if !matches!(line[0], b'c' | b'C' | b't' | b'T') {
            continue;
        }
        if let Some(value) = header_value(line, b"content-length") {
            let length = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            match length {
                Some(length) if length <= BODY_BYTES_MAX && framing != Framing::Chunked => {
                    framing = Framing::Length(length);
                }
                Some(length) if length <= BODY_BYTES_MAX => {}
                _ => return Err(ProtocolError("a content length that cannot be")),
            }
        } else if let Some(value) = header_value(line, b"transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(ProtocolError("an unknown transfer encoding"));
            }
            framing = Framing::Chunked;
        } else if let Some(value) = header_value(line, b"connection") {
            close = value.eq_ignore_ascii_case(b"close");
        }
    }
    if status == 204 || status == 304 {
        framing = Framing::Length(0);
    }
    Ok(Some(Head {
        status,
        head_bytes: start,
        framing,
        close: close || framing == Framing::UntilClose,
    }))
}

fn too_long_or_unfinished(bytes: &[u8]) -> Result<Option<Head>, ProtocolError> {
    if bytes.len() > HEAD_BYTES_MAX {
        Err(ProtocolError("the head is too long"))
    } else {
        Ok(None)
    }
}

fn header_value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    if !start.eq_ignore_ascii_case(name) {
        return None;
    }
    rest.strip_prefix(b":").map(<[u8]>::trim_ascii)
}

/// Position of the next CR LF.
fn line_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(step) = bytes.get(at..)?.iter().position(|byte| *byte == b'\r') {
        at += step;
        if bytes.get(at + 1) == Some(&b'\n') {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// Moves the chunks of a body together once all have arrived; until then nothing is changed.
fn join_chunks(bytes: &mut [u8], body_start: usize) -> Result<Option<Range<usize>>, ProtocolError> {
    let mut at = body_start;
    loop {
        let Some((size, data)) = chunk_head(bytes, at)? else {
            return Ok(None);
        };
        at = data;
        if size == 0 {
            break;
        }
        at += size;
        match bytes.get(at..at + 2) {
            Some(b"\r\n") => at += 2,
            Some(_) => return Err(ProtocolError("a chunk is longer than it says")),
            None => return Ok(None),
        }
    }
    loop {
        let Some(end) = line_end(bytes, at) else {
            return Ok(None);
        };
        let last = end == at;
        at = end + 2;
        if last {
            break;
        }
    }
    if at < bytes.len() {
        return Err(ProtocolError("bytes after the answer"));
    }
    let (mut from, mut to) = (body_start, body_start);
    while let Some((size, data)) = chunk_head(bytes, from)? {
        if size == 0 {
            break;
        }
        bytes.copy_within(data..data + size, to);
        to += size;
        from = data + size + 2;
    }
    Ok(Some(body_start..to))
}

/// Size of the chunk that begins here, and where its data begin.
fn chunk_head(bytes: &[u8], at: usize) -> Result<Option<(usize, usize)>, ProtocolError> {
    let Some(end) = line_end(bytes, at) else {
        return Ok(None);
    };
    let line = &bytes[at..end];
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let size = str::from_utf8(digits)
        .ok()
        .and_then(|text| usize::from_str_radix(text, 16).ok());
    match size {
        Some(size) if size <= BODY_BYTES_MAX => Ok(Some((size, end + 2))),
        _ => Err(ProtocolError("a chunk size that cannot be")),
    }
}
