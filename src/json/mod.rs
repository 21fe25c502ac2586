//! JSON as bytes: checks that a stream of bytes is one JSON value and drops the white space that means nothing.
//!
//! This is how a state gets into the store: what a client sent comes back byte for byte, only closer together. The order
//! of members, duplicate members, the spelling of numbers (`1.0`, `1e400`, forty digits), escapes (also lone surrogates)
//! and invalid UTF-8 inside strings all survive. A parser that builds values would lose most of these.
//!
//! What it accepts is the grammar of RFC 8259: exactly one value of any type. Refused are empty input, a second value, a
//! byte-order mark, raw control characters inside strings and everything else outside of the grammar.
//!
//! It is fed in pieces of any size and keeps one bit for each open array or object, so the memory it needs does not
//! depend on the input, and a deeply nested one cannot overflow the stack: there is no recursion. Left out on purpose: it
//! does not check that strings are UTF-8, does not compare member names, and does not limit the size of its input.

use std::error::Error;
use std::fmt;

#[cfg(test)]
mod tests;

/// How many arrays and objects may be open at once. Far more than programs send, and 125 kB of memory at most.
pub const DEPTH_MAX: usize = 1_000_000;

/// Checks one JSON value that comes in pieces, and writes it without insignificant white space.
///
/// ```
/// use lockd::json::JsonCompactor;
///
/// let mut compactor = JsonCompactor::new();
/// let mut out = Vec::new();
/// compactor.push(b"{ \"b\" : 1.", &mut out).unwrap();
/// compactor.push(b"0, \"a\": 2 }\n", &mut out).unwrap();
/// compactor.finish().unwrap();
/// assert_eq!(out, br#"{"b":1.0,"a":2}"#);
/// ```
#[derive(Debug)]
pub struct JsonCompactor {
    place: Place,
    open: OpenStack,
    /// Bytes of earlier pieces, so that errors can say where they are.
    taken_bytes: u64,
    failed: Option<JsonError>,
}

/// Compacts a value that is all there.
pub fn compact(input: &[u8]) -> Result<Vec<u8>, JsonError> {
    let mut compactor = JsonCompactor::new();
    let mut out = Vec::new();
    compactor.push(input, &mut out)?;
    compactor.finish()?;
    Ok(out)
}

impl JsonCompactor {
    /// A compactor that has seen nothing yet.
    pub fn new() -> Self {
        Self {
            place: Place::Value,
            open: OpenStack::default(),
            taken_bytes: 0,
            failed: None,
        }
    }

    /// Takes the next piece of the input and appends to `out` what is left of it. After an error the compactor repeats
    /// that error for ever, and what was appended to `out` is of no use.
    pub fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), JsonError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.run(input, out).map_err(|(at, expected)| {
            let error = JsonError {
                offset: self.taken_bytes + at as u64,
                expected,
                found: input.get(at).copied(),
            };
            self.failed = Some(error);
            error
        })?;
        self.taken_bytes += input.len() as u64;
        Ok(())
    }

    /// Says that the input has ended. Fails if the value is not complete.
    pub fn finish(self) -> Result<(), JsonError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let expected = match self.place {
            Place::AfterValue if self.open.top.is_none() => return Ok(()),
            // Only the end of the input tells that a number at the top has ended.
            Place::Number(part) if part.may_end() && self.open.top.is_none() => return Ok(()),
            place => place.expected(self.open.top),
        };
        Err(JsonError {
            offset: self.taken_bytes,
            expected,
            found: None,
        })
    }

    /// The machine. Bytes that stay are copied in runs as long as possible: `input[kept..at]` is not copied yet.
    fn run(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), (usize, Expected)> {
        let mut place = self.place;
        let mut kept = 0;
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            match place {
                Place::Text { is_name } => {
                    at += plain_text_len(&input[at..]);
                    place = match input.get(at) {
                        None => break,
                        Some(b'"') if is_name => Place::Colon,
                        Some(b'"') => Place::AfterValue,
                        Some(b'\\') => Place::Escape { is_name },
                        Some(_) => return Err((at, Expected::StringByte)),
                    };
                }
                Place::Escape { is_name } => match byte {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => place = Place::Text { is_name },
                    b'u' => place = Place::Hex { is_name, left: 4 },
                    _ => return Err((at, Expected::Escape)),
                },
                Place::Hex { is_name, left } => match left {
                    _ if !byte.is_ascii_hexdigit() => return Err((at, Expected::HexDigit)),
                    1 => place = Place::Text { is_name },
                    _ => {
                        place = Place::Hex {
                            is_name,
                            left: left - 1,
                        }
                    }
                },
                Place::Word { word, seen } => {
                    let text = word.text().as_bytes();
                    if text[usize::from(seen)] != byte {
                        return Err((at, Expected::Word(word.text())));
                    }
                    let seen = seen + 1;
                    place = if usize::from(seen) == text.len() {
                        Place::AfterValue
                    } else {
                        Place::Word { word, seen }
                    };
                }
                Place::Number(mut part) => {
                    // To the end of the number or of this piece in one go: it makes number-heavy input twice as fast.
                    let next = loop {
                        let Some(&byte) = input.get(at) else { break None };
                        let Some(longer) = part.next(byte) else {
                            break Some(byte);
                        };
                        part = longer;
                        at += 1;
                        if part.takes_digits() {
                            at += digits_len(&input[at..]);
                        }
                    };
                    // The byte after a number is looked at again as what follows a value.
                    place = match next {
                        None => Place::Number(part),
                        Some(_) if part.may_end() => Place::AfterValue,
                        Some(_) => return Err((at, part.expected())),
                    };
                    continue;
                }
                _ if is_space(byte) => {
                    debug_assert!(place.is_between_tokens());
                    out.extend_from_slice(&input[kept..at]);
                    at += space_len(&input[at..]);
                    kept = at;
                    continue;
                }
                _ => place = self.token(place, byte).map_err(|expected| (at, expected))?,
            }
            at += 1;
        }
        out.extend_from_slice(&input[kept..]);
        self.place = place;
        Ok(())
    }

    /// Where the first byte of a token leads to, when it is not white space.
    #[inline]
    fn token(&mut self, place: Place, byte: u8) -> Result<Place, Expected> {
        match place {
            Place::AfterValue => match (byte, self.open.top) {
                (b',', Some(Container::Object)) => return Ok(Place::Name),
                (b',', Some(Container::Array)) => return Ok(Place::Value),
                (b'}', Some(Container::Object)) | (b']', Some(Container::Array)) => {
                    self.open.pop();
                    return Ok(Place::AfterValue);
                }
                _ => {}
            },
            Place::Name if byte == b'"' => return Ok(Place::Text { is_name: true }),
            Place::Colon if byte == b':' => return Ok(Place::Value),
            Place::FirstName => match byte {
                b'"' => return Ok(Place::Text { is_name: true }),
                b'}' => {
                    self.open.pop();
                    return Ok(Place::AfterValue);
                }
                _ => {}
            },
            Place::FirstElement if byte == b']' => {
                self.open.pop();
                return Ok(Place::AfterValue);
            }
            Place::Value | Place::FirstElement => match byte {
                b'"' => return Ok(Place::Text { is_name: false }),
                b'{' => {
                    self.open.push(Container::Object)?;
                    return Ok(Place::FirstName);
                }
                b'[' => {
                    self.open.push(Container::Array)?;
                    return Ok(Place::FirstElement);
                }
                b'-' => return Ok(Place::Number(NumberPart::Minus)),
                b'0' => return Ok(Place::Number(NumberPart::Zero)),
                b'1'..=b'9' => return Ok(Place::Number(NumberPart::Whole)),
                b't' => {
                    return Ok(Place::Word {
                        word: Word::True,
                        seen: 1,
                    });
                }
                b'f' => {
                    return Ok(Place::Word {
                        word: Word::False,
                        seen: 1,
                    });
                }
                b'n' => {
                    return Ok(Place::Word {
                        word: Word::Null,
                        seen: 1,
                    });
                }
                _ => {}
            },
            _ => {}
        }
        Err(place.expected(self.open.top))
    }
}

impl Default for JsonCompactor {
    fn default() -> Self {
        Self::new()
    }
}

/// Why bytes are not one JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonError {
    /// Where: counted in bytes from the beginning of the whole input.
    pub offset: u64,
    /// What could have stood there.
    pub expected: Expected,
    /// What stood there instead; nothing if the input ended.
    pub found: Option<u8>,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "invalid JSON at byte {}: expected {}, found ",
            self.offset, self.expected
        )?;
        match self.found {
            None => f.write_str("the end of the input"),
            Some(byte) if byte.is_ascii_graphic() => write!(f, "`{}`", char::from(byte)),
            Some(byte) => write!(f, "byte 0x{byte:02x}"),
        }
    }
}

impl Error for JsonError {}

/// What could have stood where an error was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// Any value.
    Value,
    /// The first element of an array, or its end.
    ValueOrArrayEnd,
    /// The name of another member.
    Name,
    /// The first member of an object, or its end.
    NameOrObjectEnd,
    /// The colon between name and value.
    Colon,
    /// Another element or the end of the array.
    CommaOrArrayEnd,
    /// Another member or the end of the object.
    CommaOrObjectEnd,
    /// Nothing: the value is complete.
    End,
    /// More of a string. Control characters below 0x20 have to be escaped.
    StringByte,
    /// One of `"\/bfnrtu`.
    Escape,
    /// One of four hexadecimal digits.
    HexDigit,
    /// A digit.
    Digit,
    /// A digit or a sign.
    DigitOrSign,
    /// The rest of `true`, `false` or `null`.
    Word(&'static str),
    /// No further array or object inside of [`DEPTH_MAX`] others.
    LessDepth,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Expected::Value => "a value",
            Expected::ValueOrArrayEnd => "a value or `]`",
            Expected::Name => "a member name in quotes",
            Expected::NameOrObjectEnd => "a member name in quotes or `}`",
            Expected::Colon => "`:`",
            Expected::CommaOrArrayEnd => "`,` or `]`",
            Expected::CommaOrObjectEnd => "`,` or `}`",
            Expected::End => "the end of the input",
            Expected::StringByte => "more of a string, with control characters escaped",
            Expected::Escape => "one of `\"\\/bfnrtu` after a backslash",
            Expected::HexDigit => "a hexadecimal digit",
            Expected::Digit => "a digit",
            Expected::DigitOrSign => "a digit, `+` or `-`",
            Expected::Word(word) => return write!(f, "`{word}`"),
            Expected::LessDepth => return write!(f, "at most {DEPTH_MAX} levels of nesting"),
        })
    }
}

/// What the input is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    // Between tokens, where white space means nothing:
    Value,
    FirstElement,
    Name,
    FirstName,
    Colon,
    AfterValue,
    // Inside of a token:
    Text { is_name: bool },
    Escape { is_name: bool },
    Hex { is_name: bool, left: u8 },
    Number(NumberPart),
    Word { word: Word, seen: u8 },
}

impl Place {
    fn is_between_tokens(self) -> bool {
        use Place::{AfterValue, Colon, FirstElement, FirstName, Name, Value};
        matches!(self, Value | FirstElement | Name | FirstName | Colon | AfterValue)
    }

    /// What may stand here, for errors.
    fn expected(self, inside: Option<Container>) -> Expected {
        match self {
            Place::Value => Expected::Value,
            Place::FirstElement => Expected::ValueOrArrayEnd,
            Place::Name => Expected::Name,
            Place::FirstName => Expected::NameOrObjectEnd,
            Place::Colon => Expected::Colon,
            Place::AfterValue => match inside {
                Some(Container::Array) => Expected::CommaOrArrayEnd,
                Some(Container::Object) => Expected::CommaOrObjectEnd,
                None => Expected::End,
            },
            Place::Text { .. } => Expected::StringByte,
            Place::Escape { .. } => Expected::Escape,
            Place::Hex { .. } => Expected::HexDigit,
            Place::Number(part) if part.may_end() => Place::AfterValue.expected(inside),
            Place::Number(part) => part.expected(),
            Place::Word { word, .. } => Expected::Word(word.text()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    True,
    False,
    Null,
}

impl Word {
    fn text(self) -> &'static str {
        match self {
            Word::True => "true",
            Word::False => "false",
            Word::Null => "null",
        }
    }
}

/// How far a number has come, named after the byte before: `-12.50e+7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NumberPart {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    Sign,
    Power,
}

impl NumberPart {
    /// The part that this byte leads to; nothing if it does not go on the number.
    fn next(self, byte: u8) -> Option<NumberPart> {
        use NumberPart::{Exponent, Fraction, Minus, Point, Power, Sign, Whole, Zero};
        match (self, byte) {
            (Whole, b'0'..=b'9') | (Minus, b'1'..=b'9') => Some(Whole),
            (Minus, b'0') => Some(Zero),
            (Zero | Whole, b'.') => Some(Point),
            (Point | Fraction, b'0'..=b'9') => Some(Fraction),
            (Zero | Whole | Fraction, b'e' | b'E') => Some(Exponent),
            (Exponent, b'+' | b'-') => Some(Sign),
            (Exponent | Sign | Power, b'0'..=b'9') => Some(Power),
            _ => None,
        }
    }

    /// Whether any number of digits may follow here.
    fn takes_digits(self) -> bool {
        use NumberPart::{Fraction, Power, Whole};
        matches!(self, Whole | Fraction | Power)
    }

    fn may_end(self) -> bool {
        use NumberPart::{Fraction, Power, Whole, Zero};
        matches!(self, Zero | Whole | Fraction | Power)
    }

    /// What may stand here when the number must not end yet.
    fn expected(self) -> Expected {
        match self {
            NumberPart::Exponent => Expected::DigitOrSign,
            _ => Expected::Digit,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Array,
    Object,
}

/// The arrays and objects that are open: the innermost as a value, those around it as one bit each (1: an object).
#[derive(Debug, Default)]
struct OpenStack {
    top: Option<Container>,
    depth: usize,
    /// Bit `n % 64` of word `n / 64` is level `n + 1`. Words above the depth hold what was there before.
    words: Vec<u64>,
}

impl OpenStack {
    fn push(&mut self, container: Container) -> Result<(), Expected> {
        if self.depth == DEPTH_MAX {
            return Err(Expected::LessDepth);
        }
        let (word, bit) = (self.depth / 64, self.depth % 64);
        if word == self.words.len() {
            self.words.push(0);
        }
        self.words[word] = self.words[word] & !(1 << bit) | u64::from(container == Container::Object) << bit;
        self.depth += 1;
        self.top = Some(container);
        Ok(())
    }

    fn pop(&mut self) {
        self.depth -= 1;
        self.top = self
            .depth
            .checked_sub(1)
            .map(|level| match self.words[level / 64] >> (level % 64) & 1 {
                0 => Container::Array,
                _ => Container::Object,
            });
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// How many bytes of white space the input begins with.
fn space_len(input: &[u8]) -> usize {
    // Indented text is mostly spaces: eight at a time.
    let mut len = 1;
    while input.get(len..len + 8) == Some(b"        ") {
        len += 8;
    }
    len + input[len..].iter().take_while(|byte| is_space(**byte)).count()
}

/// How many digits the input begins with.
fn digits_len(input: &[u8]) -> usize {
    input.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

/// How many bytes the input begins with that may stand in a string as they are and do not end it.
fn plain_text_len(input: &[u8]) -> usize {
    // Eight bytes in one word. For each byte of the word, the highest bit of the result says whether it is special. The
    // subtraction borrows from the next byte only when this one is special, so the lowest mark is always right.
    const ONES: u64 = u64::MAX / 255;
    const HIGH_BITS: u64 = ONES * 0x80;
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGH_BITS;

    let (words, rest) = input.as_chunks::<8>();
    for (index, bytes) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*bytes);
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let special = below(word, 0x20) | quote | backslash;
        if special != 0 {
            return index * 8 + special.trailing_zeros() as usize / 8;
        }
    }
    let is_plain = |byte: &&u8| **byte >= 0x20 && !matches!(**byte, b'"' | b'\\');
    words.len() * 8 + rest.iter().take_while(is_plain).count()
}
