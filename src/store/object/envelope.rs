//! The bytes of a record's object.
//!
//! ```text
//! lockd-1 <write id, 32 hex> <what it replaced, 16 hex> <crc32 of the value, 8 hex> value LF <the value>
//! lockd-1 <write id, 32 hex> <what it replaced, 16 hex> <crc32 of nothing, 8 hex>   gone LF
//! ```
//!
//! The **write id** is new with every write. It makes no two writes of a record alike, so that the store's own etag, which
//! may be a hash of the bytes, never comes again; and it answers "was it I who wrote this?" after a lost answer. What the
//! write **replaced** (a hash of the etag that it was conditional on) answers the other half: a record that was written
//! right over the state that I wanted to replace has never been mine.
//!
//! A record that was deleted is a **tombstone**: it holds the place, so that its end is a conditional write like any other.
//! A tombstone is one byte shorter than the emptiest value, so a listing tells the two apart by their size.

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::store::StoreError;

const MAGIC: &[u8] = b"lockd-1 ";
const VALUE: &[u8] = b" value\n";
const GONE: &[u8] = b" gone\n";
const WRITE_ID_BYTES: usize = 32;
const BASIS_BYTES: usize = 16;
const CRC_BYTES: usize = 8;
const STEM_BYTES: usize = MAGIC.len() + WRITE_ID_BYTES + 1 + BASIS_BYTES + 1 + CRC_BYTES;

/// The exact size of a tombstone.
pub(super) const TOMBSTONE_BYTES: u64 = (STEM_BYTES + GONE.len()) as u64;

/// Marks one write. Never used twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WriteId([u8; WRITE_ID_BYTES]);

impl WriteId {
    /// Takes a UUID in its usual text.
    pub(super) fn from_uuid(text: &str) -> Self {
        let mut id = [b'0'; WRITE_ID_BYTES];
        for (place, byte) in id.iter_mut().zip(text.bytes().filter(|byte| *byte != b'-')) {
            *place = byte;
        }
        Self(id)
    }
}

/// The state that a write replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Basis([u8; BASIS_BYTES]);

impl Basis {
    /// The object in the state with this etag; none: there was no object.
    pub(super) fn of(etag: Option<&str>) -> Self {
        let mut basis = [b'0'; BASIS_BYTES];
        if let Some(etag) = etag {
            HEXLOWER.encode_mut(&Sha256::digest(etag)[..BASIS_BYTES / 2], &mut basis);
        }
        Self(basis)
    }
}

/// What an object holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Envelope<'a> {
    pub(super) write_id: WriteId,
    pub(super) basis: Basis,
    /// None: a tombstone.
    pub(super) value: Option<&'a [u8]>,
}

pub(super) fn encode(write_id: &WriteId, basis: &Basis, value: Option<&[u8]>) -> Vec<u8> {
    let (kind, value) = match value {
        Some(value) => (VALUE, value),
        None => (GONE, &[][..]),
    };
    let crc = format!(" {:08x}", crc32fast::hash(value));
    [MAGIC, &write_id.0, b" ", &basis.0, crc.as_bytes(), kind, value].concat()
}

/// Reads an object's bytes; `place` is its name, for the error.
pub(super) fn decode<'a>(bytes: &'a [u8], place: &str) -> Result<Envelope<'a>, StoreError> {
    let damaged = |offset: usize, detail: &str| StoreError::Corrupt {
        place: place.to_owned(),
        offset: offset as u64,
        detail: detail.to_owned(),
    };
    let rest = bytes
        .strip_prefix(MAGIC)
        .ok_or_else(|| damaged(0, "this is no record of a format that this version knows"))?;
    let (write_id, rest) = hex::<WRITE_ID_BYTES>(rest).ok_or_else(|| damaged(MAGIC.len(), "the head is damaged"))?;
    let (basis, rest) = (rest.strip_prefix(b" "))
        .and_then(hex::<BASIS_BYTES>)
        .ok_or_else(|| damaged(MAGIC.len() + WRITE_ID_BYTES, "the head is damaged"))?;
    let (crc, rest) = (rest.strip_prefix(b" "))
        .and_then(hex::<CRC_BYTES>)
        .ok_or_else(|| damaged(STEM_BYTES - CRC_BYTES, "the head is damaged"))?;
    let value = match (rest.strip_prefix(VALUE), rest) {
        (Some(value), _) => Some(value),
        (None, GONE) => None,
        _ => return Err(damaged(STEM_BYTES, "neither a value nor a tombstone")),
    };
    let expected = format!("{:08x}", crc32fast::hash(value.unwrap_or_default()));
    if expected.as_bytes() != crc {
        return Err(damaged(
            STEM_BYTES + VALUE.len(),
            "the value does not match its checksum",
        ));
    }
    Ok(Envelope {
        write_id: WriteId(*write_id),
        basis: Basis(*basis),
        value,
    })
}

fn hex<const N: usize>(bytes: &[u8]) -> Option<(&[u8; N], &[u8])> {
    bytes
        .split_first_chunk()
        .filter(|(digits, _)| digits.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> WriteId {
        WriteId::from_uuid("0198d2b4-9a00-7b11-8c21-6a4a3a2f9d77")
    }

    /// Written by the first version. Whatever comes later must read them.
    #[test]
    fn records_of_the_first_format_are_read() {
        let value = include_bytes!("../../../fixtures/records/object-v1.bin");
        let envelope = decode(value, "x").unwrap();
        assert_eq!((envelope.write_id, envelope.value), (id(), Some(&b"a value"[..])));
        assert_eq!(envelope.basis, Basis::of(Some("an etag")));
        let gone = include_bytes!("../../../fixtures/records/object-gone-v1.bin");
        assert_eq!(decode(gone, "x").unwrap().value, None);
        assert_eq!(gone.len() as u64, TOMBSTONE_BYTES);
        assert_eq!(encode(&id(), &Basis::of(Some("an etag")), Some(b"a value")), value);
        assert_eq!(encode(&id(), &Basis::of(None), None), gone);
    }

    #[test]
    fn a_tombstone_is_smaller_than_every_value() {
        assert!(TOMBSTONE_BYTES < encode(&id(), &Basis::of(None), Some(b"")).len() as u64);
    }

    #[test]
    fn every_damage_is_found_and_placed() {
        for value in [Some(&b"value\n\0\xff"[..]), Some(b""), None] {
            let good = encode(&id(), &Basis::of(Some("an etag")), value);
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x81;
                assert!(
                    matches!(decode(&bad, "x"), Err(StoreError::Corrupt { place, .. }) if place == "x"),
                    "{at}"
                );
                assert!(decode(&good[..at], "x").is_err(), "{at}");
            }
        }
    }
}
