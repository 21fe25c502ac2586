//! The two multipart shapes of the queue, read and written as streams.
//!
//! A [`Parser`] is pushed the bytes of a body as they arrive and passes on parts and their data; it holds back no more than
//! could be the beginning of a delimiter. What stands before the first delimiter and behind the closing one is skipped.
//!
//! A [`DeliveryWriter`] makes the parts of deliveries. Behind each payload it writes the next delimiter at once, up to where
//! it does not yet matter whether another delivery or the end follows. So a reader that must see a delimiter to know where
//! a payload ends never waits for the next message.

use std::fmt;

/// Longest boundary that is taken, in bytes.
const BOUNDARY_BYTES_MAX: usize = 200;
/// Longest head of a part, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Why a body is not what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MultipartError {
    /// The media type is not `multipart/*`.
    NotMultipart,
    /// The media type names no usable boundary.
    NoBoundary,
    /// The head of a part cannot be understood.
    BadHead,
    /// Behind a delimiter comes neither a part nor the end.
    BadDelimiter,
}

impl fmt::Display for MultipartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotMultipart => "Content-Type must be multipart",
            Self::NoBoundary => "the boundary is missing or malformed",
            Self::BadHead => "the head of a part is malformed",
            Self::BadDelimiter => "a delimiter is malformed",
        })
    }
}

/// Finds the boundary in a media type.
pub fn boundary_of(content_type: &str) -> Result<String, MultipartError> {
    let (media_type, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    let is_multipart = media_type
        .trim()
        .split_at_checked("multipart/".len())
        .is_some_and(|(kind, subtype)| kind.eq_ignore_ascii_case("multipart/") && !subtype.is_empty());
    if !is_multipart {
        return Err(MultipartError::NotMultipart);
    }
    let boundary = parameter(parameters, "boundary").ok_or(MultipartError::NoBoundary)?;
    let legal = boundary.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if boundary.is_empty() || BOUNDARY_BYTES_MAX < boundary.len() || !legal || boundary.ends_with(' ') {
        return Err(MultipartError::NoBoundary);
    }
    Ok(boundary)
}

/// A parameter of a header value: `; name=value` or `; name="value"`.
fn parameter(mut text: &str, wanted: &str) -> Option<String> {
    loop {
        text = text.trim_start_matches([';', ' ', '\t']);
        let (name, rest) = text.split_once('=')?;
        let (value, rest) = match rest.trim_start().strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let (value, rest) = rest.split_once(';').unwrap_or((rest, ""));
                (value.trim().to_owned(), rest)
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        text = rest;
    }
}

/// The text up to the closing quote, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// What a parser has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A part of this name begins.
    Part(Option<String>),
    /// More of its data.
    Data(&'a [u8]),
    /// It is complete.
    PartEnd,
    /// The closing delimiter: no part follows.
    End,
}

/// Takes a multipart body apart.
#[derive(Debug)]
pub struct Parser {
    /// Line feed, two dashes and the boundary.
    delimiter: Vec<u8>,
    held: Vec<u8>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first delimiter.
    Preamble,
    /// Behind a delimiter, where it says whether a part follows.
    Delimited,
    Head,
    DataStart,
    Data,
    Epilogue,
}

impl Parser {
    /// A parser for parts between this boundary.
    pub fn new(boundary: &str) -> Self {
        Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            // The first delimiter may stand at the very beginning.
            held: b"\r\n".to_vec(),
            state: State::Preamble,
        }
    }

    /// Takes the next bytes of the body.
    pub fn push<E: From<MultipartError>>(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.state == State::Epilogue {
            return Ok(());
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        let mut rest = &held[..];
        while let Some(used) = self.step(rest, &mut take)? {
            rest = &rest[used..];
        }
        let kept = rest.len();
        held.drain(..held.len() - kept);
        self.held = held;
        Ok(())
    }

    /// Does one thing with what is there; `None` when more is needed. Otherwise says how many bytes are done with.
    fn step<E: From<MultipartError>>(
        &mut self,
        rest: &[u8],
        take: &mut impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<Option<usize>, E> {
        match self.state {
            State::Preamble | State::Data => {
                let in_data = self.state == State::Data;
                let (data, next) = match find_delimiter(rest, &self.delimiter) {
                    Find::At(at) => (at, Some(at + self.delimiter.len())),
                    Find::NotBefore(at) => (at, None),
                };
                if in_data && data != 0 {
                    take(Piece::Data(&rest[..data]))?;
                }
                let Some(next) = next else {
                    return Ok((data != 0).then_some(data));
                };
                if in_data {
                    take(Piece::PartEnd)?;
                }
                self.state = State::Delimited;
                Ok(Some(next))
            }
            State::Delimited => {
                if rest.starts_with(b"--") {
                    self.state = State::Epilogue;
                    take(Piece::End)?;
                    return Ok(Some(rest.len()));
                }
                let blanks = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
                match &rest[blanks..] {
                    [b'\r', b'\n', ..] => {
                        self.state = State::Head;
                        // The line feed stays: a head without fields is an empty line right behind it.
                        Ok(Some(blanks))
                    }
                    [] | [b'\r'] | [b'-'] if blanks < HEAD_BYTES_MAX => Ok(None),
                    _ => Err(MultipartError::BadDelimiter.into()),
                }
            }
            State::Head => {
                let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") else {
                    return if HEAD_BYTES_MAX < rest.len() {
                        Err(MultipartError::BadHead.into())
                    } else {
                        Ok(None)
                    };
                };
                let name = part_name(&rest[..end])?;
                self.state = State::DataStart;
                take(Piece::Part(name))?;
                Ok(Some(end + 4))
            }
            State::DataStart => {
                // A part without data may go without the line feed that belongs to the delimiter.
                let delimiter = &self.delimiter[2..];
                if rest.len() <= delimiter.len() && delimiter.starts_with(rest) {
                    return Ok(None);
                }
                if rest.len() <= delimiter.len() || !is_delimiter(rest, delimiter) {
                    self.state = State::Data;
                    return Ok(Some(0));
                }
                take(Piece::PartEnd)?;
                self.state = State::Delimited;
                Ok(Some(delimiter.len()))
            }
            State::Epilogue => Ok(None),
        }
    }
}

enum Find {
    /// Here is one.
    At(usize),
    /// None begins before this place; there one may begin.
    NotBefore(usize),
}

/// Looks for a delimiter and the byte behind it that makes it one.
fn find_delimiter(bytes: &[u8], delimiter: &[u8]) -> Find {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == b'\r').map(|at| from + at) {
        let found = &bytes[at..];
        if found.len() <= delimiter.len() {
            if delimiter.starts_with(found) {
                return Find::NotBefore(at);
            }
        } else if is_delimiter(found, delimiter) {
            return Find::At(at);
        }
        from = at + 1;
    }
    Find::NotBefore(bytes.len())
}

/// True when these bytes, which are more than a delimiter has, begin with one.
fn is_delimiter(bytes: &[u8], delimiter: &[u8]) -> bool {
    bytes.starts_with(delimiter) && matches!(bytes[delimiter.len()], b' ' | b'\t' | b'\r' | b'-')
}

/// The name of a part, from its head: lines that begin with a line feed each.
fn part_name(head: &[u8]) -> Result<Option<String>, MultipartError> {
    let head = std::str::from_utf8(head).map_err(|_| MultipartError::BadHead)?;
    let mut name = None;
    for line in head.split("\r\n").skip(1) {
        let (field, value) = line.split_once(':').ok_or(MultipartError::BadHead)?;
        if field.is_empty() || field.ends_with([' ', '\t']) {
            return Err(MultipartError::BadHead);
        }
        if field.eq_ignore_ascii_case("Content-Disposition") {
            let parameters = value.split_once(';').map_or("", |(_, parameters)| parameters);
            name = parameter(parameters, "name");
        }
    }
    Ok(name)
}

/// What a delivery says of itself beside its payload.
#[derive(Debug, Clone, Copy)]
pub struct PartHead<'a> {
    /// The JSON of the part `meta`, without a line feed.
    pub meta: &'a [u8],
    /// Media type of the payload.
    pub payload_type: &'a str,
    /// Length of the payload in bytes.
    pub payload_bytes: u64,
    /// The number of the delivery in an answer with several, which gives the parts file names.
    pub number: Option<usize>,
}

/// Makes the bytes around deliveries.
#[derive(Debug)]
pub struct DeliveryWriter {
    boundary: String,
}

impl DeliveryWriter {
    /// A writer with a boundary of its own: 60 hex digits.
    pub fn new() -> Self {
        let mut bytes = [0; 30];
        fastrand::fill(&mut bytes);
        Self {
            boundary: data_encoding::HEXLOWER.encode(&bytes),
        }
    }

    /// The media type that goes with it.
    pub fn content_type(&self) -> String {
        format!("multipart/related; boundary={}", self.boundary)
    }

    /// What the body begins with.
    pub fn begin(&self, out: &mut Vec<u8>) {
        push(out, &["--", &self.boundary]);
    }

    /// Everything before the bytes of a payload.
    pub fn head(&self, out: &mut Vec<u8>, head: &PartHead<'_>) {
        let [meta_file, payload_file] = match head.number {
            Some(number) => [
                format!("; filename=\"meta-{number}.json\""),
                format!("; filename=\"payload-{number}\""),
            ],
            None => [String::new(), String::new()],
        };
        push(out, &["\r\nContent-Disposition: form-data; name=\"meta\"", &meta_file]);
        push(out, &["\r\nContent-Type: application/json\r\n\r\n"]);
        out.extend_from_slice(head.meta);
        push(out, &["\n\r\n--", &self.boundary]);
        push(
            out,
            &["\r\nContent-Disposition: form-data; name=\"payload\"", &payload_file],
        );
        push(out, &["\r\nContent-Length: ", &head.payload_bytes.to_string()]);
        // Whatever was stored, it cannot end the head.
        let payload_type: String = head.payload_type.chars().filter(|c| !c.is_control()).collect();
        push(out, &["\r\nContent-Type: ", &payload_type, "\r\n\r\n"]);
    }

    /// Behind the bytes of a payload.
    pub fn tail(&self, out: &mut Vec<u8>) {
        push(out, &["\r\n--", &self.boundary]);
    }

    /// What the body ends with.
    pub fn end(&self, out: &mut Vec<u8>) {
        push(out, &["--\r\n"]);
    }
}

impl Default for DeliveryWriter {
    fn default() -> Self {
        Self::new()
    }
}

fn push(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part: its name, its data, and whether it was complete.
    type Part = (Option<String>, Vec<u8>, bool);

    /// The parts of a body that arrives in pieces of this size: names and data, and whether the end was seen.
    fn parts(body: &[u8], piece: usize) -> Result<(Vec<Part>, bool), MultipartError> {
        let mut parser = Parser::new("b0und");
        let (mut parts, mut ended) = (Vec::new(), false);
        for piece in body.chunks(piece) {
            parser.push(piece, |piece| -> Result<(), MultipartError> {
                match piece {
                    Piece::Part(name) => parts.push((name, Vec::new(), false)),
                    Piece::Data(data) => parts.last_mut().expect("data is in a part").1.extend_from_slice(data),
                    Piece::PartEnd => parts.last_mut().expect("a part ends").2 = true,
                    Piece::End => ended = true,
                }
                Ok(())
            })?;
        }
        Ok((parts, ended))
    }

    fn in_all_pieces(body: &[u8]) -> Result<(Vec<Part>, bool), MultipartError> {
        let whole = parts(body, body.len());
        for piece in 1..body.len() {
            assert_eq!(parts(body, piece), whole, "in pieces of {piece} bytes");
        }
        whole
    }

    fn part(name: &str, data: &[u8], complete: bool) -> Part {
        (Some(name.to_owned()), data.to_vec(), complete)
    }

    #[test]
    fn parts_are_found_wherever_the_body_is_cut() {
        let body = b"--b0und\r\nContent-Disposition: form-data; name=\"meta\"\r\nContent-Type: application/json\r\n\r\n\
            {}\n\r\n--b0und\r\ncontent-type: text/plain\r\nCONTENT-DISPOSITION: form-data; filename=\"a;b\\\"\"; name=payload\
            \r\n\r\nhello\r\n--b0und--\r\nrest\r\n--b0und\r\n";
        let (found, ended) = in_all_pieces(body).unwrap();
        assert_eq!(found, [part("meta", b"{}\n", true), part("payload", b"hello", true)]);
        assert!(ended);
    }

    #[test]
    fn data_may_look_like_a_delimiter() {
        let data = b"\r\n--b0unt\r\n--b0undary\r\r\n--b0un\r\n\r\n--\r\n\r";
        let body = [
            &b"--b0und\r\nContent-Disposition: x; name=\"p\"\r\n\r\n"[..],
            data,
            b"\r\n--b0und--",
        ]
        .concat();
        let (found, ended) = in_all_pieces(&body).unwrap();
        assert_eq!(found, [part("p", data, true)]);
        assert!(ended);
    }

    #[test]
    fn empty_parts_heads_and_preambles_are_fine() {
        let body = b"before\r\n--b0und \t\r\n\r\n\r\n--b0und\r\nA: b\r\n\r\n--b0und\r\nA: b\r\n\r\n\r\n--b0und--";
        let (found, ended) = in_all_pieces(body).unwrap();
        assert_eq!(
            found,
            [(None, vec![], true), (None, vec![], true), (None, vec![], true)]
        );
        assert!(ended);
    }

    #[test]
    fn a_body_that_is_cut_off_has_an_incomplete_part() {
        let (found, ended) = parts(b"--b0und\r\nA: b\r\n\r\nhel", 100).unwrap();
        assert_eq!(found, [(None, b"hel".to_vec(), false)]);
        assert!(!ended);
        assert_eq!(parts(b"no delimiter at all", 3).unwrap(), (vec![], false));
    }

    #[test]
    fn malformed_heads_and_delimiters_are_refused() {
        for (body, error) in [
            (&b"--b0und\r\nno colon\r\n\r\n"[..], MultipartError::BadHead),
            (b"--b0und\r\nA : b\r\n\r\n", MultipartError::BadHead),
            (b"--b0und\r\nA: \xff\r\n\r\n", MultipartError::BadHead),
            (b"--b0und\rx", MultipartError::BadDelimiter),
            (b"--b0und-x", MultipartError::BadDelimiter),
        ] {
            assert_eq!(in_all_pieces(body), Err(error), "{}", String::from_utf8_lossy(body));
        }
        assert_eq!(
            parts(&[b"--b0und\r\nA: ", &[b'x'; 70_000][..]].concat(), 1000),
            Err(MultipartError::BadHead)
        );
    }

    #[test]
    fn the_boundary_comes_from_the_media_type() {
        for (content_type, boundary) in [
            ("multipart/related; boundary=abc", Ok("abc")),
            ("Multipart/Form-Data;charset=x; BOUNDARY=\"a b;c\"", Ok("a b;c")),
            ("multipart/mixed; boundary=\"\"", Err(MultipartError::NoBoundary)),
            ("multipart/mixed", Err(MultipartError::NoBoundary)),
            ("multipart/mixed; boundary=\"abc", Err(MultipartError::NoBoundary)),
            ("application/json", Err(MultipartError::NotMultipart)),
            ("multipart/", Err(MultipartError::NotMultipart)),
            ("", Err(MultipartError::NotMultipart)),
        ] {
            assert_eq!(boundary_of(content_type), boundary.map(str::to_owned), "{content_type}");
        }
        assert!(boundary_of(&format!("multipart/x; boundary={}", "b".repeat(201))).is_err());
    }

    #[test]
    fn deliveries_are_framed_byte_for_byte() {
        let writer = DeliveryWriter {
            boundary: "B".to_owned(),
        };
        let mut out = Vec::new();
        writer.begin(&mut out);
        for (number, payload) in [(None, &b"hello"[..]), (Some(1), b"")] {
            let head = PartHead {
                meta: b"{}",
                payload_type: "text/plain\r\nX: y",
                payload_bytes: payload.len() as u64,
                number,
            };
            writer.head(&mut out, &head);
            out.extend_from_slice(payload);
            writer.tail(&mut out);
        }
        writer.end(&mut out);
        let expected = "--B\r\n\
            Content-Disposition: form-data; name=\"meta\"\r\nContent-Type: application/json\r\n\r\n{}\n\r\n--B\r\n\
            Content-Disposition: form-data; name=\"payload\"\r\nContent-Length: 5\r\n\
            Content-Type: text/plainX: y\r\n\r\nhello\r\n--B\r\n\
            Content-Disposition: form-data; name=\"meta\"; filename=\"meta-1.json\"\r\n\
            Content-Type: application/json\r\n\r\n{}\n\r\n--B\r\n\
            Content-Disposition: form-data; name=\"payload\"; filename=\"payload-1\"\r\nContent-Length: 0\r\n\
            Content-Type: text/plainX: y\r\n\r\n\r\n--B--\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let boundary = DeliveryWriter::new().boundary;
        assert!(boundary.len() == 60 && boundary.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
