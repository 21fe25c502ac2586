//! Reading a multipart answer as it arrives.
//!
//! The parser pulls from any [`Read`] and never asks it for more than the next step needs: a part whose length is told is
//! handed out without a look at what follows, so a message is there as soon as its last byte is. What it keeps in memory is
//! bounded by [`HEAD_BYTES_MAX`] and one read, whatever the other side sends; how much of a body is kept is up to the caller.
//!
//! It takes what servers of this protocol send and no more: lines end in CR LF, headers are not folded, transfer encodings
//! are not decoded, multiparts do not nest.

use std::io::{self, Read};

/// Longest boundary, in bytes.
pub(crate) const BOUNDARY_BYTES_MAX: usize = 200;
/// Most bytes that the headers of one part, or what stands before the first part, may have.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most headers of one part.
const HEADERS_MAX: usize = 64;
/// So much is asked for at once.
const READ_BYTES: usize = 16 * 1024;
/// So much may follow the closing delimiter before the connection is given up.
const EPILOGUE_BYTES_MAX: usize = 64 * 1024;

/// Why the next step failed.
#[derive(Debug)]
pub(crate) enum PartsError {
    /// The source failed, or ended too early ([`io::ErrorKind::UnexpectedEof`]).
    Io(io::Error),
    /// What came is no multipart, or beyond a bound.
    Malformed(&'static str),
}

impl From<io::Error> for PartsError {
    fn from(error: io::Error) -> Self {
        PartsError::Io(error)
    }
}

/// What the headers of a part say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PartHead {
    /// Parameter `name` of the disposition; `None` when there is none.
    pub(crate) name: Option<String>,
    /// Media type; empty when not told.
    pub(crate) content_type: String,
    /// Length of the body in bytes, when told.
    pub(crate) length: Option<u64>,
}

/// Where the parser stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Before the first delimiter.
    Begin,
    /// In a body; how many bytes of it are left, when its length was told.
    Body { left: Option<u64> },
    /// Behind a body, before the delimiter.
    AfterBody,
    /// Behind the closing delimiter.
    End,
}

/// A multipart stream.
pub(crate) struct Parts<R> {
    source: R,
    /// CR LF, two dashes, the boundary.
    delimiter: Vec<u8>,
    buffer: Vec<u8>,
    /// What of the buffer is consumed.
    start: usize,
    stage: Stage,
}

impl<R: Read> Parts<R> {
    /// Reads the stream whose media type names this boundary.
    pub(crate) fn new(source: R, boundary: &str) -> Self {
        Self {
            source,
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            buffer: Vec::new(),
            start: 0,
            stage: Stage::Begin,
        }
    }

    /// The next part, or `None` behind the closing delimiter. What was not read of the part before is skipped.
    pub(crate) fn next_part(&mut self) -> Result<Option<PartHead>, PartsError> {
        match self.stage {
            Stage::End => return Ok(None),
            Stage::Begin => self.skip_preamble()?,
            Stage::Body { .. } => {
                let mut scratch = [0; 4096];
                while 0 < self.read_body(&mut scratch)? {}
                self.take_delimiter()?;
            }
            Stage::AfterBody => self.take_delimiter()?,
        }
        if self.is_closing_delimiter()? {
            self.stage = Stage::End;
            return Ok(None);
        }
        let head = self.read_head()?;
        self.stage = Stage::Body { left: head.length };
        Ok(Some(head))
    }

    /// Reads from the body of the current part; 0 at its end, and when there is no current part.
    pub(crate) fn read_body(&mut self, out: &mut [u8]) -> Result<usize, PartsError> {
        let Stage::Body { left } = self.stage else { return Ok(0) };
        if out.is_empty() {
            return Ok(0);
        }
        match left {
            Some(0) => {
                self.stage = Stage::AfterBody;
                Ok(0)
            }
            Some(left) => {
                let limit = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
                let count = match self.held().len() {
                    // Nothing is buffered: the bytes need not pass through the buffer.
                    0 => retrying(|| self.source.read(&mut out[..limit]))?,
                    held => self.hand_out(&mut out[..limit], held),
                };
                if count == 0 {
                    return Err(cut_off());
                }
                self.stage = Stage::Body {
                    left: Some(left - count as u64),
                };
                Ok(count)
            }
            None => loop {
                match self.find_delimiter() {
                    Found::At(0) => {
                        self.stage = Stage::AfterBody;
                        return Ok(0);
                    }
                    Found::Undecided(0) => {
                        if self.fill()? == 0 {
                            return Err(cut_off());
                        }
                    }
                    Found::At(offset) | Found::Undecided(offset) => return Ok(self.hand_out(out, offset)),
                }
            },
        }
    }

    /// Reads what follows the closing delimiter, which should be nothing, so that the connection can serve again. Errors
    /// do not matter any more.
    pub(crate) fn finish(&mut self) {
        let mut scratch = [0; 1024];
        let mut seen = 0;
        while self.stage == Stage::End && seen < EPILOGUE_BYTES_MAX {
            match self.source.read(&mut scratch) {
                Ok(0) => return,
                Ok(count) => seen += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn held(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Reads once more. Returns the number of new bytes, 0 at the end of the source.
    fn fill(&mut self) -> Result<usize, PartsError> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let held = self.buffer.len();
        self.buffer.resize(held + READ_BYTES, 0);
        let outcome = retrying(|| self.source.read(&mut self.buffer[held..]));
        self.buffer.truncate(held + *outcome.as_ref().unwrap_or(&0));
        Ok(outcome?)
    }

    /// Moves up to `at_most` held bytes to the caller.
    fn hand_out(&mut self, out: &mut [u8], at_most: usize) -> usize {
        let count = at_most.min(out.len());
        out[..count].copy_from_slice(&self.held()[..count]);
        self.start += count;
        count
    }

    /// Has at least so many bytes held.
    fn hold(&mut self, count: usize) -> Result<(), PartsError> {
        while self.held().len() < count {
            if self.fill()? == 0 {
                return Err(cut_off());
            }
        }
        Ok(())
    }

    /// Consumes everything up to and including the first delimiter, which may lack the line break in front of it.
    fn skip_preamble(&mut self) -> Result<(), PartsError> {
        let opening = self.delimiter.len() - 2;
        self.hold(opening)?;
        if self.held().starts_with(&self.delimiter[2..]) {
            self.start += opening;
            return Ok(());
        }
        let mut skipped = 0;
        loop {
            match self.find_delimiter() {
                Found::At(offset) => {
                    self.start += offset + self.delimiter.len();
                    return Ok(());
                }
                Found::Undecided(offset) => {
                    self.start += offset;
                    skipped += offset;
                    if HEAD_BYTES_MAX < skipped {
                        return Err(PartsError::Malformed("there is no first part"));
                    }
                    if self.fill()? == 0 {
                        return Err(cut_off());
                    }
                }
            }
        }
    }

    fn take_delimiter(&mut self) -> Result<(), PartsError> {
        let length = self.delimiter.len();
        self.hold(length)?;
        if !self.held().starts_with(&self.delimiter) {
            return Err(PartsError::Malformed("a part is longer than it says"));
        }
        self.start += length;
        Ok(())
    }

    /// Consumes the rest of a delimiter's line. True for the closing one.
    fn is_closing_delimiter(&mut self) -> Result<bool, PartsError> {
        self.hold(2)?;
        if self.held().starts_with(b"--") {
            self.start += 2;
            return Ok(true);
        }
        let mut budget = HEAD_BYTES_MAX;
        let padding = self.read_line(&mut budget)?;
        match padding.iter().all(|byte| matches!(byte, b' ' | b'\t')) {
            true => Ok(false),
            false => Err(PartsError::Malformed("a delimiter does not end where it should")),
        }
    }

    fn read_head(&mut self) -> Result<PartHead, PartsError> {
        let mut head = PartHead::default();
        let mut budget = HEAD_BYTES_MAX;
        for _ in 0..=HEADERS_MAX {
            let line = self.read_line(&mut budget)?;
            if line.is_empty() {
                return Ok(head);
            }
            head.take(&line)?;
        }
        Err(PartsError::Malformed("a part has too many headers"))
    }

    /// A line without its end.
    fn read_line(&mut self, budget: &mut usize) -> Result<Vec<u8>, PartsError> {
        let mut searched = 0;
        loop {
            let held = self.held();
            if let Some(end) = held[searched..].windows(2).position(|pair| pair == b"\r\n") {
                let line = held[..searched + end].to_vec();
                self.start += line.len() + 2;
                *budget = budget
                    .checked_sub(line.len() + 2)
                    .ok_or(PartsError::Malformed("the headers of a part are too long"))?;
                return Ok(line);
            }
            // The last byte may be the first of a line's end.
            searched = held.len().saturating_sub(1);
            if *budget < held.len() {
                return Err(PartsError::Malformed("the headers of a part are too long"));
            }
            if self.fill()? == 0 {
                return Err(cut_off());
            }
        }
    }

    /// Looks for a delimiter in what is held.
    fn find_delimiter(&self) -> Found {
        let held = self.held();
        let mut from = 0;
        while let Some(offset) = held[from..].iter().position(|byte| *byte == b'\r') {
            let at = from + offset;
            let rest = &held[at..];
            match rest.strip_prefix(self.delimiter.as_slice()) {
                // A boundary that goes on is another one, and thus data.
                Some([first, second, ..]) => match (first, second) {
                    (b'-', b'-') | (b'\r', b'\n') | (b' ' | b'\t', _) => return Found::At(at),
                    _ => {}
                },
                Some(_) => return Found::Undecided(at),
                None if self.delimiter.starts_with(rest) => return Found::Undecided(at),
                None => {}
            }
            from = at + 1;
        }
        Found::Undecided(held.len())
    }
}

enum Found {
    /// The delimiter begins here.
    At(usize),
    /// Up to here there is none; what is behind may become one.
    Undecided(usize),
}

impl PartHead {
    fn take(&mut self, line: &[u8]) -> Result<(), PartsError> {
        const BAD_HEADER: PartsError = PartsError::Malformed("a header of a part is malformed");
        let line = std::str::from_utf8(line).map_err(|_| BAD_HEADER)?;
        let (name, value) = line.split_once(':').ok_or(BAD_HEADER)?;
        if name.is_empty() || name.contains(|c: char| c.is_ascii_whitespace()) {
            return Err(BAD_HEADER);
        }
        let value = value.trim();
        if name.eq_ignore_ascii_case("Content-Disposition") {
            self.name = parameter(value, "name");
        } else if name.eq_ignore_ascii_case("Content-Type") {
            value.clone_into(&mut self.content_type);
        } else if name.eq_ignore_ascii_case("Content-Length") {
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let length = value.parse().ok().filter(|_| digits).ok_or(BAD_HEADER)?;
            if self.length.is_some_and(|before| before != length) {
                return Err(BAD_HEADER);
            }
            self.length = Some(length);
        }
        Ok(())
    }
}

/// The boundary of a `multipart/...` media type; `None` for any other, and for a boundary that is missing or too long.
pub(crate) fn boundary(content_type: &str) -> Option<String> {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    let (family, _) = kind.split_once('/')?;
    if !family.eq_ignore_ascii_case("multipart") {
        return None;
    }
    parameter(content_type, "boundary").filter(|text| !text.is_empty() && text.len() <= BOUNDARY_BYTES_MAX)
}

/// A parameter of a header value such as `form-data; name="meta"`, unquoted.
fn parameter(value: &str, wanted: &str) -> Option<String> {
    let mut rest = &value[value.find(';')?..];
    while let Some(text) = rest.strip_prefix(';') {
        let (name, after) = text.split_once('=')?;
        let found;
        (found, rest) = parameter_value(after.trim_start())?;
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(found);
        }
    }
    None
}

/// A token or a quoted string, and what stands behind it.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    loop {
        match characters.next()? {
            (end, '"') => return Some((value, quoted[end + 1..].trim_start())),
            (_, '\\') => value.push(characters.next()?.1),
            (_, c) => value.push(c),
        }
    }
}

fn cut_off() -> PartsError {
    PartsError::Io(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the stream ended before its closing delimiter",
    ))
}

fn retrying(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
#[path = "multipart_tests.rs"]
mod tests;
