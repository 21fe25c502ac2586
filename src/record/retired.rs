//! What is kept of keys that were deleted for their age.
//!
//! A key's record holds its fencing token, which must never go back. When retention deletes records, the greatest token
//! among them is kept here, one number for a namespace, and whoever comes to a key without a record begins above it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::DecodeError;
use super::codec::{open, seal};

const RETIRED_MAGIC: [u8; 4] = *b"LKR1";

/// What is kept of all deleted keys of one namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredRecord {
    /// The greatest fencing token that any of them had. Never goes back.
    pub fencing_token: i64,
}

/// Writes the record down.
pub fn encode_retired(record: &RetiredRecord) -> Arc<[u8]> {
    seal(RETIRED_MAGIC, record, &[])
}

/// Reads the record.
pub fn decode_retired(bytes: &[u8]) -> Result<RetiredRecord, DecodeError> {
    let (record, inline) = open(RETIRED_MAGIC, bytes)?;
    inline.must_be_used_up()?;
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::super::codec::tests::fixture;
    use super::*;

    /// The record that `fixtures/records/retired-v1.bin` holds.
    const SAMPLE: RetiredRecord = RetiredRecord { fencing_token: 4711 };

    #[test]
    #[ignore = "writes fixtures"]
    fn write_samples() {
        let path = format!("{}/fixtures/records/retired-v1.bin", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, encode_retired(&SAMPLE)).unwrap();
    }

    #[test]
    fn the_kept_sample_is_still_readable() {
        assert_eq!(decode_retired(&fixture("retired-v1.bin")), Ok(SAMPLE));
    }
}
