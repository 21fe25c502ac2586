//! Identifiers: xids for leases and transactions, version-7 UUIDs for everything else, names of bodies.
//!
//! An xid is 12 bytes (4 of Unix time, 5 that mark machine and process, 3 of a counter) written as 20 characters of
//! lower-case base32hex. 12 bytes are 96 bits and 20 characters hold 100, so the last character is always `0` or `g`.
//! The form is that of <https://github.com/rs/xid>, which other programs of this protocol use.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use data_encoding::BASE32HEX_NOPAD;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::clock::SharedClock;

/// A lease or transaction id: 20 characters of `0-9a-v`, the last one `0` or `g`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Xid(Arc<str>);

impl Xid {
    /// Takes text that is an xid; case matters.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let alphabet = bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'v'));
        (bytes.len() == 20 && alphabet && matches!(bytes[19], b'0' | b'g')).then(|| Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// When it was made, in seconds of Unix time, if it was made as such ids should be.
    pub fn made_at_unix(&self) -> i64 {
        // The first 32 of 96 bits are the time: six characters of five bits, and the upper two bits of the seventh.
        let value = |byte: u8| i64::from(if byte <= b'9' { byte - b'0' } else { byte - b'a' + 10 });
        let head = self.0.bytes().take(7).fold(0, |bits, byte| bits << 5 | value(byte));
        head >> 3
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a body. Made once by whoever writes the body, never used again for another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct BodyId(Arc<str>);

impl BodyId {
    /// Wraps a name: lower-case letters, digits and `-`, at most 64 bytes.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Makes ids. One per server; ids of different servers differ in their five random bytes.
pub struct IdMaker {
    clock: SharedClock,
    process: [u8; 5],
    counter: AtomicU32,
    uuid_context: Mutex<UuidContext>,
}

/// Keeps the UUIDs of one millisecond apart and in order.
struct UuidContext {
    last_ms: i64,
    sequence: u16,
}

impl IdMaker {
    /// A maker with a random mark and a random start of its counter.
    pub fn new(clock: SharedClock) -> Self {
        let mut process = [0; 5];
        fastrand::Rng::new().fill(&mut process);
        Self {
            clock,
            process,
            counter: AtomicU32::new(fastrand::u32(..)),
            uuid_context: Mutex::new(UuidContext {
                last_ms: 0,
                sequence: 0,
            }),
        }
    }

    /// A new xid. Unique among 2^24 of the same second and process.
    pub fn xid(&self) -> Xid {
        let seconds = u32::try_from(self.clock.wall_seconds()).unwrap_or(u32::MAX);
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        let mut raw = [0; 12];
        raw[..4].copy_from_slice(&seconds.to_be_bytes());
        raw[4..9].copy_from_slice(&self.process);
        raw[9..].copy_from_slice(&count.to_be_bytes()[1..]);
        Xid(BASE32HEX_NOPAD.encode(&raw).to_ascii_lowercase().into())
    }

    /// A new version-7 UUID in canonical lower-case text (RFC 9562): 48 bits of Unix milliseconds, then a 12-bit
    /// sequence within the millisecond, then random bits. Texts of one maker sort in the order they were made, up to
    /// 4,096 a millisecond.
    pub fn uuid(&self) -> String {
        self.raw_uuid().to_string()
    }

    /// The same before it is text, for ids that are kept in great numbers.
    pub fn raw_uuid(&self) -> Uuid {
        let (ms, sequence) = {
            let now_ms = self.clock.wall_ms();
            let mut context = self.uuid_context.lock();
            if context.last_ms < now_ms {
                *context = UuidContext {
                    last_ms: now_ms,
                    sequence: 0,
                };
            } else if context.sequence == 0xfff {
                // The sequence is used up, or the clock has gone back: move on ahead of the clock.
                *context = UuidContext {
                    last_ms: context.last_ms + 1,
                    sequence: 0,
                };
            } else {
                context.sequence += 1;
            }
            (context.last_ms, context.sequence)
        };
        let mut tail = [0; 10];
        fastrand::fill(&mut tail);
        tail[..2].copy_from_slice(&sequence.to_be_bytes());
        let ms = u64::try_from(ms).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(ms, &tail).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::clock::{ManualClock, SystemClock};

    #[test]
    fn xids_have_their_form_and_differ() {
        let ids = IdMaker::new(SystemClock::shared());
        let mut seen = HashSet::new();
        for _ in 0..10_000 {
            let id = ids.xid();
            assert_eq!(Xid::parse(id.as_str()), Some(id.clone()));
            assert!(seen.insert(id));
        }
    }

    #[test]
    fn an_xid_tells_when_it_was_made() {
        let clock = ManualClock::at_wall_ms(1_767_261_645_999);
        assert_eq!(IdMaker::new(clock).xid().made_at_unix(), 1_767_261_645);
    }

    #[test]
    fn text_that_is_no_xid_is_refused() {
        for bad in [
            "",
            "d4k7q2m0h5r8e1t6n9b",
            "d4k7q2m0h5r8e1t6n9b1",
            "D4K7Q2M0H5R8E1T6N9B0",
            "d4k7q2m0h5r8e1t6w9b0",
        ] {
            assert_eq!(Xid::parse(bad), None, "{bad}");
        }
        assert!(Xid::parse("d4k7q2m0h5r8e1t6n9bg").is_some());
    }

    #[test]
    fn uuids_are_version_seven_and_sorted_even_when_the_clock_stands_or_goes_back() {
        let clock = ManualClock::at_wall_ms(1_767_261_600_000);
        let ids = IdMaker::new(clock.clone());
        let mut last = String::new();
        for round in 0..10_000 {
            if round == 5_000 {
                clock.set_wall_ms(1_767_261_000_000);
            }
            let id = ids.uuid();
            assert_eq!(&id[14..15], "7");
            assert!(last < id, "{last} {id}");
            last = id;
        }
    }
}
