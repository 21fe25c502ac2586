//! What a group or a snapshot says, operation by operation. Pure, like [`frame`](super::frame).
//!
//! ```text
//! payload    operation*
//! operation  1 put         etag u64, key, value
//!            2 delete      key
//!            3 body        id, value          a body that lives in the log
//!            4 body file   id                 a body that was written to a file of its own
//!            5 drop body   id
//! key, id    length u16, bytes
//! value      length u32, bytes
//! ```

use super::frame::{read_u32, read_u64};

/// One operation as it lies in a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation<'a> {
    Put { etag: u64, key: &'a str, value: Value<'a> },
    Delete { key: &'a str },
    Body { id: &'a str, value: Value<'a> },
    BodyFile { id: &'a str },
    DropBody { id: &'a str },
}

/// Bytes, and where in the payload they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Value<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

/// Bytes that an operation takes beyond its key and value.
pub(super) const OVERHEAD_BYTES: usize = 15;

pub(super) fn push_put(payload: &mut Vec<u8>, etag: u64, key: &str, value: &[u8]) {
    payload.push(1);
    payload.extend_from_slice(&etag.to_le_bytes());
    push_name(payload, key);
    push_value(payload, value);
}

pub(super) fn push_delete(payload: &mut Vec<u8>, key: &str) {
    payload.push(2);
    push_name(payload, key);
}

pub(super) fn push_body(payload: &mut Vec<u8>, id: &str, value: &[u8]) {
    payload.push(3);
    push_name(payload, id);
    push_value(payload, value);
}

pub(super) fn push_body_file(payload: &mut Vec<u8>, id: &str) {
    payload.push(4);
    push_name(payload, id);
}

pub(super) fn push_drop_body(payload: &mut Vec<u8>, id: &str) {
    payload.push(5);
    push_name(payload, id);
}

fn push_name(payload: &mut Vec<u8>, name: &str) {
    // Names are at most 512 bytes; the engine refuses longer ones before it gets here.
    payload.extend_from_slice(&(name.len() as u16).to_le_bytes());
    payload.extend_from_slice(name.as_bytes());
}

fn push_value(payload: &mut Vec<u8>, value: &[u8]) {
    payload.extend_from_slice(&(value.len() as u32).to_le_bytes());
    payload.extend_from_slice(value);
}

/// Walks the operations of a payload. The last item is an error if the payload cannot be read to its end.
pub(super) struct Operations<'a> {
    payload: &'a [u8],
    at: usize,
}

/// A payload that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

impl<'a> Operations<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Self {
        Self { payload, at: 0 }
    }

    fn read(&mut self) -> Result<Operation<'a>, Unreadable> {
        Ok(match self.take(1)?[0] {
            1 => Operation::Put {
                etag: read_u64(self.take(8)?, 0),
                key: self.name()?,
                value: self.value()?,
            },
            2 => Operation::Delete { key: self.name()? },
            3 => Operation::Body {
                id: self.name()?,
                value: self.value()?,
            },
            4 => Operation::BodyFile { id: self.name()? },
            5 => Operation::DropBody { id: self.name()? },
            _ => return Err(Unreadable),
        })
    }

    fn name(&mut self) -> Result<&'a str, Unreadable> {
        let length = self.take(2)?;
        let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
        str::from_utf8(self.take(length)?).map_err(|_| Unreadable)
    }

    fn value(&mut self) -> Result<Value<'a>, Unreadable> {
        let length = read_u32(self.take(4)?, 0) as usize;
        let at = self.at;
        let bytes = self.take(length)?;
        Ok(Value { bytes, at })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Unreadable> {
        let bytes = self.payload.get(self.at..self.at + count).ok_or(Unreadable)?;
        self.at += count;
        Ok(bytes)
    }
}

impl<'a> Iterator for Operations<'a> {
    type Item = Result<Operation<'a>, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.payload.len() {
            return None;
        }
        let item = self.read();
        if item.is_err() {
            self.at = self.payload.len();
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_come_back_and_a_shortened_payload_is_unreadable() {
        let mut payload = Vec::new();
        push_put(&mut payload, 9, "k/a", b"value");
        push_delete(&mut payload, "k/b");
        push_body(&mut payload, "small", b"");
        push_body_file(&mut payload, "large");
        push_drop_body(&mut payload, "old");
        let read: Vec<Operation<'_>> = Operations::new(&payload).map(Result::unwrap).collect();
        assert_eq!(
            read,
            [
                Operation::Put {
                    etag: 9,
                    key: "k/a",
                    value: Value {
                        bytes: b"value",
                        at: 18
                    }
                },
                Operation::Delete { key: "k/b" },
                Operation::Body {
                    id: "small",
                    value: Value { bytes: b"", at: 41 }
                },
                Operation::BodyFile { id: "large" },
                Operation::DropBody { id: "old" },
            ]
        );
        assert_eq!(Operations::new(b"\x09").next(), Some(Err(Unreadable)));
        let last = payload.len() - 1;
        assert_eq!(Operations::new(&payload[..last]).last(), Some(Err(Unreadable)));
    }
}
