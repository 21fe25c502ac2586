//! The bytes of a message record: the frame of every record (see [`super::codec`]), and behind the header the attributes,
//! the last error and an inline payload, each as it came.
//!
//! What has the value that a message begins with is left out of the header, because messages are what a store holds most
//! of. These values belong to the format and stay what they are.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, Inline, error, open, seal};
use super::{Body, MessageLease, MessagePayload, MessageRecord};
use crate::ids::BodyId;

const MESSAGE_MAGIC: [u8; 4] = *b"LKM1";

const FIRST_REVISION: u64 = 1;
const PLAIN_MAX_ATTEMPTS: i64 = 5;
const PLAIN_VISIBILITY_SECONDS: i64 = 30;
const PLAIN_PAYLOAD_TYPE: &str = "application/octet-stream";

#[derive(Serialize, Deserialize)]
struct MessageHeader<'a> {
    enqueued_at_ms: i64,
    /// Absent: when it was enqueued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    updated_at_ms: Option<i64>,
    /// Absent: when it was enqueued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    visible_from_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<i64>,
    #[serde(default = "first_revision", skip_serializing_if = "is_first_revision")]
    revision: u64,
    #[serde(default = "plain_visibility", skip_serializing_if = "is_plain_visibility")]
    visibility_seconds: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    attempts: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    failure_attempts: i64,
    #[serde(default = "plain_max_attempts", skip_serializing_if = "is_plain_max_attempts")]
    max_attempts: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    fencing_token: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<MessageLease>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state_etag: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attributes_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_error_bytes: Option<u64>,
    payload_bytes: u64,
    /// Absent: the bytes come last behind the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_body: Option<BodyId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_type: Option<Arc<str>>,
    #[serde(borrow)]
    correlation_id: Cow<'a, str>,
}

/// Writes a message record down.
pub fn encode_message(record: &MessageRecord) -> Arc<[u8]> {
    let changed = |time_ms: i64| (time_ms != record.enqueued_at_ms).then_some(time_ms);
    let mut inline: Vec<&[u8]> = Vec::with_capacity(3);
    let text = |text: &Option<Arc<str>>| text.as_ref().map(|text| text.len() as u64);
    let header = MessageHeader {
        enqueued_at_ms: record.enqueued_at_ms,
        updated_at_ms: changed(record.updated_at_ms),
        visible_from_ms: changed(record.visible_from_ms),
        expires_at_ms: record.expires_at_ms,
        revision: record.revision,
        visibility_seconds: record.visibility_seconds,
        attempts: record.attempts,
        failure_attempts: record.failure_attempts,
        max_attempts: record.max_attempts,
        fencing_token: record.fencing_token,
        lease: record.lease.clone(),
        state_etag: record.state_etag.clone(),
        attributes_bytes: text(&record.attributes),
        last_error_bytes: text(&record.last_error),
        payload_bytes: record.payload.bytes,
        payload_body: record.stored_body().cloned(),
        payload_type: (*record.payload_type != *PLAIN_PAYLOAD_TYPE).then(|| Arc::clone(&record.payload_type)),
        correlation_id: (&*record.correlation_id).into(),
    };
    inline.extend(record.attributes.as_deref().map(str::as_bytes));
    inline.extend(record.last_error.as_deref().map(str::as_bytes));
    if let Body::Inline(bytes) = &record.payload.body {
        inline.push(bytes);
    }
    seal(MESSAGE_MAGIC, &header, &inline)
}

/// Reads a message record.
pub fn decode_message(bytes: &[u8]) -> Result<MessageRecord, DecodeError> {
    let (header, mut inline): (MessageHeader<'_>, _) = open(MESSAGE_MAGIC, bytes)?;
    let attributes = text_from(header.attributes_bytes, &mut inline)?;
    let last_error = text_from(header.last_error_bytes, &mut inline)?;
    let body = match header.payload_body {
        Some(id) => Body::Stored(id),
        None => Body::Inline(inline.take(header.payload_bytes)?.into()),
    };
    inline.must_be_used_up()?;
    Ok(MessageRecord {
        enqueued_at_ms: header.enqueued_at_ms,
        updated_at_ms: header.updated_at_ms.unwrap_or(header.enqueued_at_ms),
        revision: header.revision,
        visible_from_ms: header.visible_from_ms.unwrap_or(header.enqueued_at_ms),
        expires_at_ms: header.expires_at_ms,
        visibility_seconds: header.visibility_seconds,
        attempts: header.attempts,
        failure_attempts: header.failure_attempts,
        max_attempts: header.max_attempts,
        fencing_token: header.fencing_token,
        lease: header.lease,
        state_etag: header.state_etag,
        attributes,
        last_error,
        payload: MessagePayload {
            bytes: header.payload_bytes,
            body,
        },
        payload_type: header.payload_type.unwrap_or_else(|| PLAIN_PAYLOAD_TYPE.into()),
        correlation_id: (&*header.correlation_id).into(),
    })
}

fn text_from(bytes: Option<u64>, inline: &mut Inline<'_>) -> Result<Option<Arc<str>>, DecodeError> {
    let Some(bytes) = bytes else { return Ok(None) };
    let at = inline.at();
    match std::str::from_utf8(inline.take(bytes)?) {
        Ok(text) => Ok(Some(text.into())),
        Err(cause) => Err(error(at + cause.valid_up_to(), "JSON that is not UTF-8")),
    }
}

fn first_revision() -> u64 {
    FIRST_REVISION
}

fn is_first_revision(revision: &u64) -> bool {
    *revision == FIRST_REVISION
}

fn plain_visibility() -> i64 {
    PLAIN_VISIBILITY_SECONDS
}

fn is_plain_visibility(seconds: &i64) -> bool {
    *seconds == PLAIN_VISIBILITY_SECONDS
}

fn plain_max_attempts() -> i64 {
    PLAIN_MAX_ATTEMPTS
}

fn is_plain_max_attempts(attempts: &i64) -> bool {
    *attempts == PLAIN_MAX_ATTEMPTS
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Xid;
    use crate::record::StateGrant;
    use crate::record::codec::tests::fixture;

    /// The record that `fixtures/records/message-v1.bin` holds: everything that a message can have.
    fn sample() -> MessageRecord {
        MessageRecord {
            enqueued_at_ms: 1_767_261_612_345,
            updated_at_ms: 1_767_261_613_456,
            revision: 7,
            visible_from_ms: 1_767_261_633_456,
            expires_at_ms: Some(1_767_265_212_345),
            visibility_seconds: 20,
            attempts: 4,
            failure_attempts: 2,
            max_attempts: 9,
            fencing_token: 4,
            lease: Some(MessageLease {
                id: Xid::parse("d4k7q2m0h5r8e1t6n9b0").unwrap(),
                owner: "worker-7".into(),
                txn_id: Xid::parse("d4k7q2m0h5r8e1t6n9bg").unwrap(),
                explicit: true,
                state: Some(StateGrant {
                    lease_id: Xid::parse("d4k7q2m0h5r8e1t6n9c0").unwrap(),
                    fencing_token: 3,
                }),
            }),
            state_etag: Some("d4k7q2m0h5r8e1t6n9a0".into()),
            attributes: Some(r#"{"tenant":"n\u00fcrnberg","n":1.50}"#.into()),
            last_error: Some(r#"{"code":"E42"}"#.into()),
            payload: MessagePayload {
                bytes: 6,
                body: Body::Inline(b"a\r\n\0\xff-".as_slice().into()),
            },
            payload_type: "application/x-order".into(),
            correlation_id: "order \"4711\"".into(),
        }
    }

    /// A message as it is when nothing is asked for and nothing has happened.
    fn plain() -> MessageRecord {
        MessageRecord {
            enqueued_at_ms: 1_767_261_612_345,
            updated_at_ms: 1_767_261_612_345,
            revision: 1,
            visible_from_ms: 1_767_261_612_345,
            expires_at_ms: None,
            visibility_seconds: 30,
            attempts: 0,
            failure_attempts: 0,
            max_attempts: 5,
            fencing_token: 0,
            lease: None,
            state_etag: None,
            attributes: None,
            last_error: None,
            payload: MessagePayload {
                bytes: 0,
                body: Body::Inline([].into()),
            },
            payload_type: "application/octet-stream".into(),
            correlation_id: "0198f2aa-6d10-7c3b-9e55-0b1c2d3e4f50".into(),
        }
    }

    fn stored() -> MessageRecord {
        MessageRecord {
            payload: MessagePayload {
                bytes: 1 << 33,
                body: Body::Stored(BodyId::new("0198d2b4-6c11-7d3e-9a55-3f0c2f6f7a10")),
            },
            ..sample()
        }
    }

    /// Run by hand when a version is added, never to mend a failing test:
    /// `cargo test --lib write_message_sample -- --ignored`
    #[test]
    #[ignore = "writes fixtures"]
    fn write_message_sample() {
        let path = format!("{}/fixtures/records/message-v1.bin", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, encode_message(&sample())).unwrap();
    }

    #[test]
    fn a_kept_message_of_every_version_is_still_readable() {
        assert_eq!(decode_message(&fixture("message-v1.bin")).unwrap(), sample());
    }

    #[test]
    fn messages_survive_being_written_and_read() {
        for record in [plain(), sample(), stored()] {
            assert_eq!(decode_message(&encode_message(&record)).unwrap(), record);
        }
    }

    #[test]
    fn a_plain_message_takes_little_room() {
        let bytes = encode_message(&plain()).len();
        assert!(bytes <= 128, "{bytes} bytes");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_of_a_message_is_noticed() {
        let good = encode_message(&sample());
        for at in 0..good.len() {
            assert!(decode_message(&good[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut bad = good.to_vec();
                bad[at] ^= 1 << bit;
                assert!(decode_message(&bad).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    /// Whatever bytes stand under a good checksum, reading them ends with a record or an error.
    #[test]
    fn random_damage_under_a_good_checksum_does_not_panic() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut readable = 0;
        for _ in 0..20_000 {
            let record = [plain(), sample(), stored()][rng.usize(..3)].clone();
            let mut bytes = encode_message(&record).to_vec();
            bytes.truncate(bytes.len() - 4);
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(4..bytes.len());
                match rng.u32(..3) {
                    0 => bytes[at] = rng.u8(..),
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, *b"09,{}\"".get(rng.usize(..6)).unwrap_or(&0)),
                }
            }
            bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
            readable += usize::from(decode_message(&bytes).is_ok());
        }
        assert!(0 < readable);
    }

    #[test]
    fn damage_under_a_good_checksum_is_an_error_and_no_panic() {
        let header = |extra: &str| format!(r#"{{"enqueued_at_ms":1,"payload_bytes":2,"correlation_id":"c"{extra}}}"#);
        for (extra, behind) in [
            ("", &b"x"[..]),
            ("", b"xyz"),
            (r#","attributes_bytes":3"#, b"xy"),
            (r#","attributes_bytes":18446744073709551615"#, b"xy"),
            (r#","last_error_bytes":1"#, b"\xffxy"),
            (r#","lease":{"id":1}"#, b"xy"),
        ] {
            let text = header(extra);
            let raw: &serde_json::Value = &serde_json::from_str(&text).unwrap();
            assert!(decode_message(&seal(MESSAGE_MAGIC, raw, &[behind])).is_err(), "{text}");
        }
        assert!(decode_message(&seal(MESSAGE_MAGIC, &[1], &[])).is_err());
        assert!(decode_message(&seal(*b"LKK1", &[1], &[])).is_err());
    }
}
