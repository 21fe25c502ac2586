//! The bytes of records: whatever they are, they decode or they do not, without a panic; and what decodes survives being
//! written down and read again.
//!
//! The first byte chooses the kind of record and whether the rest is taken as it is. A checksum is not found by chance, so
//! otherwise the rest is a header, a line feed and what stands behind the header, and is sealed here.

#![no_main]

use std::fmt::Debug;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use lockd::record::{
    DecodeError, decode_key, decode_message, decode_retired, decode_txn, encode_key, encode_message, encode_retired,
    encode_txn,
};

const MAGICS: [&[u8; 4]; 5] = [b"LKK1", b"LKT1", b"LKT2", b"LKM1", b"LKR1"];
const AS_IT_IS: u8 = 0x80;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, rest)) = data.split_first() else {
        return;
    };
    let kind = usize::from(choice & !AS_IT_IS) % MAGICS.len();
    let bytes = if choice & AS_IT_IS == 0 {
        sealed(MAGICS[kind], rest)
    } else {
        rest.to_vec()
    };
    match MAGICS[kind] {
        b"LKK1" => check(&bytes, decode_key, encode_key),
        b"LKT1" | b"LKT2" => check(&bytes, decode_txn, encode_txn),
        b"LKM1" => check(&bytes, decode_message, encode_message),
        _ => check(&bytes, decode_retired, encode_retired),
    }
});

fn sealed(magic: &[u8; 4], rest: &[u8]) -> Vec<u8> {
    let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    let (header, inline) = (&rest[..end], rest.get(end + 1..).unwrap_or_default());
    let length = u32::try_from(header.len()).unwrap().to_le_bytes();
    let mut bytes = [&magic[..], &length, header, inline].concat();
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

fn check<T: PartialEq + Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    encode: impl Fn(&T) -> Arc<[u8]>,
) {
    match decode(bytes) {
        Ok(record) => {
            let again = encode(&record);
            assert_eq!(decode(&again).as_ref(), Ok(&record));
            assert_eq!(encode(&record), again);
        }
        Err(error) => assert!(error.offset <= bytes.len() as u64, "{error}"),
    }
}
