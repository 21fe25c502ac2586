//! The bytes of a record.
//!
//! ```text
//!  0       4           8                8+H                      N-4        N
//!  +-------+-----------+----------------+------------------------+----------+
//!  | magic | H, u32 LE | header, JSON   | inline bodies, raw     | CRC-32   |
//!  +-------+-----------+----------------+------------------------+----------+
//! ```
//!
//! The magic names the kind and the version of the format. The header is JSON, so that a newer version can add a member
//! with a default and a person can read a record on a disk; the inline bodies stand behind it as raw bytes, because a
//! state may hold bytes that no JSON string can. The checksum (CRC-32, ISO-HDLC) covers everything before it.
//!
//! A sample of every version is kept in `fixtures/records/` and must stay readable.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Attributes, Body, Decision, KeyRecord, LeaseRecord, Participant, Staged, StagedState, StateValue, Subject, TxnPage,
    TxnRecord, is_zero,
};
use crate::ids::{BodyId, Xid};
use crate::keys::{Key, MessageId, Namespace, QueueId, QueueName};

const KEY_MAGIC: [u8; 4] = *b"LKK1";
/// A transaction of keys alone. Version 2 has messages too; what can be written as version 1 still is.
const TXN_MAGIC: [u8; 4] = *b"LKT1";
const TXN_MAGIC_2: [u8; 4] = *b"LKT2";
const TXN_PAGE_MAGIC: [u8; 4] = *b"LKP1";
const PREFIX_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 4;

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Offset in bytes of what is wrong.
    pub offset: u64,
    /// What is wrong.
    pub detail: String,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.offset, self.detail)
    }
}

impl std::error::Error for DecodeError {}

#[derive(Serialize, Deserialize)]
struct KeyHeader {
    version: i64,
    fencing_token: i64,
    updated_at_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<ValueHeader>,
    #[serde(default)]
    attributes: Attributes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<LeaseRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    staged: Option<StagedHeader>,
}

#[derive(Serialize, Deserialize)]
struct ValueHeader {
    etag: Arc<str>,
    bytes: u64,
    /// Absent: the bytes follow the header, in the order in which the header mentions them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<BodyId>,
}

#[derive(Serialize, Deserialize)]
struct StagedHeader {
    version: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    put: Option<ValueHeader>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    remove: bool,
    #[serde(default)]
    attributes: Attributes,
}

#[derive(Serialize, Deserialize)]
struct TxnHeader {
    participants: Vec<ParticipantHeader>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    decision: Option<Decision>,
}

/// A key has `key`, a message has `queue` and `message`.
#[derive(Serialize, Deserialize)]
struct ParticipantHeader {
    namespace: Namespace,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Key>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<QueueName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    lease_id: Xid,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    enlisted: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    lost: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    epoch: u32,
}

/// Writes a key record down.
pub fn encode_key(record: &KeyRecord) -> Arc<[u8]> {
    let mut inline: Vec<&[u8]> = Vec::new();
    let state = record.state.as_ref().map(|value| value_header(value, &mut inline));
    let staged = record.staged.as_ref().map(|staged| StagedHeader {
        version: staged.version,
        put: match &staged.state {
            StagedState::Put(value) => Some(value_header(value, &mut inline)),
            StagedState::Untouched | StagedState::Remove => None,
        },
        remove: staged.state == StagedState::Remove,
        attributes: staged.attributes,
    });
    let header = KeyHeader {
        version: record.version,
        fencing_token: record.fencing_token,
        updated_at_ms: record.updated_at_ms,
        state,
        attributes: record.attributes,
        lease: record.lease.clone(),
        staged,
    };
    seal(KEY_MAGIC, &header, &inline)
}

/// Writes a transaction record down.
pub fn encode_txn(record: &TxnRecord) -> Arc<[u8]> {
    let is_message = |member: &Participant| matches!(member.subject, Subject::Message { .. });
    let holds_messages = record.participants.iter().any(is_message);
    let magic = if holds_messages { TXN_MAGIC_2 } else { TXN_MAGIC };
    seal(magic, &txn_header(record), &[])
}

/// Writes a page of transactions down.
pub fn encode_txn_page(page: &TxnPage) -> Arc<[u8]> {
    let headers: BTreeMap<&Xid, TxnHeader> = page.iter().map(|(id, record)| (id, txn_header(record))).collect();
    seal(TXN_PAGE_MAGIC, &headers, &[])
}

fn txn_header(record: &TxnRecord) -> TxnHeader {
    let participants = record
        .participants
        .iter()
        .map(|member| {
            let (namespace, key, queue, message) = match &member.subject {
                Subject::Key { namespace, key } => (namespace, Some(key.clone()), None, None),
                Subject::Message { queue, id } => {
                    (&queue.namespace, None, Some(queue.queue.clone()), Some(id.to_string()))
                }
            };
            ParticipantHeader {
                namespace: namespace.clone(),
                key,
                queue,
                message,
                lease_id: member.lease_id.clone(),
                enlisted: member.enlisted,
                lost: member.lost,
                epoch: member.epoch,
            }
        })
        .collect();
    TxnHeader {
        participants,
        decision: record.decision,
    }
}

/// Reads a key record.
pub fn decode_key(bytes: &[u8]) -> Result<KeyRecord, DecodeError> {
    let (header, mut inline): (KeyHeader, _) = open(KEY_MAGIC, bytes)?;
    let state = header.state.map(|value| value_from(value, &mut inline)).transpose()?;
    let staged = header
        .staged
        .map(|staged| staged_from(staged, &mut inline))
        .transpose()?;
    inline.must_be_used_up()?;
    Ok(KeyRecord {
        version: header.version,
        fencing_token: header.fencing_token,
        updated_at_ms: header.updated_at_ms,
        state,
        attributes: header.attributes,
        lease: header.lease,
        staged,
    })
}

/// Reads a transaction record.
pub fn decode_txn(bytes: &[u8]) -> Result<TxnRecord, DecodeError> {
    let magic = if bytes.starts_with(&TXN_MAGIC_2) {
        TXN_MAGIC_2
    } else {
        TXN_MAGIC
    };
    let (header, inline): (TxnHeader, _) = open(magic, bytes)?;
    inline.must_be_used_up()?;
    txn_from(header)
}

/// Reads a page of transactions.
pub fn decode_txn_page(bytes: &[u8]) -> Result<TxnPage, DecodeError> {
    let (headers, inline): (BTreeMap<Xid, TxnHeader>, _) = open(TXN_PAGE_MAGIC, bytes)?;
    inline.must_be_used_up()?;
    let records = headers.into_iter().map(|(id, header)| Ok((id, txn_from(header)?)));
    records.collect()
}

fn txn_from(header: TxnHeader) -> Result<TxnRecord, DecodeError> {
    let participants = header.participants.into_iter().map(participant_from);
    Ok(TxnRecord {
        participants: participants.collect::<Result<_, _>>()?,
        decision: header.decision,
    })
}

fn participant_from(header: ParticipantHeader) -> Result<Participant, DecodeError> {
    let message = header.message.as_deref().map(MessageId::parse);
    let subject = match (header.key, header.queue, message) {
        (Some(key), None, None) => Subject::Key {
            namespace: header.namespace,
            key,
        },
        (None, Some(queue), Some(Some(id))) => Subject::Message {
            queue: QueueId {
                namespace: header.namespace,
                queue,
            },
            id,
        },
        _ => return Err(error(PREFIX_BYTES, "a participant is neither a key nor a message")),
    };
    Ok(Participant {
        subject,
        lease_id: header.lease_id,
        enlisted: header.enlisted,
        lost: header.lost,
        epoch: header.epoch,
    })
}

fn value_header<'a>(value: &'a StateValue, inline: &mut Vec<&'a [u8]>) -> ValueHeader {
    let body = match &value.body {
        Body::Inline(bytes) => {
            inline.push(bytes);
            None
        }
        Body::Stored(id) => Some(id.clone()),
    };
    ValueHeader {
        etag: Arc::clone(&value.etag),
        bytes: value.bytes,
        body,
    }
}

fn value_from(header: ValueHeader, inline: &mut Inline<'_>) -> Result<StateValue, DecodeError> {
    let body = match header.body {
        Some(id) => Body::Stored(id),
        None => Body::Inline(inline.take(header.bytes)?.into()),
    };
    Ok(StateValue {
        etag: header.etag,
        bytes: header.bytes,
        body,
    })
}

fn staged_from(header: StagedHeader, inline: &mut Inline<'_>) -> Result<Staged, DecodeError> {
    let state = match (header.put, header.remove) {
        (Some(value), false) => StagedState::Put(value_from(value, inline)?),
        (None, true) => StagedState::Remove,
        (None, false) => StagedState::Untouched,
        (Some(_), true) => return Err(error(PREFIX_BYTES, "a state is staged both as new and as removed")),
    };
    Ok(Staged {
        version: header.version,
        state,
        attributes: header.attributes,
    })
}

pub(super) fn seal(magic: [u8; 4], header: &impl Serialize, inline: &[&[u8]]) -> Arc<[u8]> {
    let inline_bytes: usize = inline.iter().map(|body| body.len()).sum();
    let mut out = Vec::with_capacity(PREFIX_BYTES + 384 + inline_bytes + CHECKSUM_BYTES);
    out.extend_from_slice(&magic);
    out.extend_from_slice(&[0; 4]);
    serde_json::to_writer(&mut out, header).expect("a header has string keys only and a vector takes every byte");
    let header_bytes =
        u32::try_from(out.len() - PREFIX_BYTES).expect("names and owners bound a header far below 4 GiB");
    out[4..PREFIX_BYTES].copy_from_slice(&header_bytes.to_le_bytes());
    for body in inline {
        out.extend_from_slice(body);
    }
    let checksum = crc32fast::hash(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out.into()
}

pub(super) fn open<'a, T: Deserialize<'a>>(magic: [u8; 4], bytes: &'a [u8]) -> Result<(T, Inline<'a>), DecodeError> {
    if bytes.len() < PREFIX_BYTES + CHECKSUM_BYTES {
        return Err(error(bytes.len(), "the record is cut short"));
    }
    if bytes[..4] != magic {
        return Err(error(0, "not a record of this kind and version"));
    }
    let (sealed, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    if crc32fast::hash(sealed).to_le_bytes() != checksum {
        return Err(error(sealed.len(), "the checksum does not match"));
    }
    let header_bytes = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let header_end = usize::try_from(header_bytes)
        .ok()
        .and_then(|length| length.checked_add(PREFIX_BYTES));
    let Some(header) = header_end.and_then(|end| sealed.get(PREFIX_BYTES..end)) else {
        return Err(error(4, "the header is longer than the record"));
    };
    let parsed = serde_json::from_slice(header).map_err(|cause| {
        error(
            PREFIX_BYTES + cause.column().saturating_sub(1),
            &format!("bad header: {cause}"),
        )
    })?;
    let at = PREFIX_BYTES + header.len();
    Ok((
        parsed,
        Inline {
            rest: &sealed[at..],
            at,
        },
    ))
}

/// The bytes behind the header that no value has claimed yet.
pub(super) struct Inline<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Inline<'a> {
    /// Offset of the next byte.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn take(&mut self, bytes: u64) -> Result<&'a [u8], DecodeError> {
        let split = usize::try_from(bytes)
            .ok()
            .and_then(|bytes| self.rest.split_at_checked(bytes));
        let Some((taken, rest)) = split else {
            return Err(error(self.at, "a value is longer than the record"));
        };
        self.rest = rest;
        self.at += taken.len();
        Ok(taken)
    }

    pub(super) fn must_be_used_up(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(error(self.at, "bytes that belong to nothing"))
        }
    }
}

pub(super) fn error(offset: usize, detail: &str) -> DecodeError {
    DecodeError {
        offset: offset as u64,
        detail: detail.to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The record that `fixtures/records/key-v1.bin` holds.
    fn sample_key() -> KeyRecord {
        KeyRecord {
            version: 4,
            fencing_token: 12,
            updated_at_ms: 1_767_261_612_345,
            state: Some(StateValue {
                etag: "a31304597119c86f4d080ef4a861937f7fe9f2faab4c1f00cc8ec96220f49645".into(),
                bytes: 29,
                body: Body::Inline(br#"{"status":"new","total":1250}"#.as_slice().into()),
            }),
            attributes: Attributes {
                query_hidden: Some(true),
            },
            lease: Some(LeaseRecord {
                id: Xid::parse("d4k7q2m0h5r8e1t6n9b0").unwrap(),
                owner: "worker-7".to_owned(),
                txn_id: Xid::parse("d4k7q2m0h5r8e1t6n9bg").unwrap(),
                explicit: true,
                expires_at_unix: 1_767_261_645,
                epoch: 0,
            }),
            staged: Some(Staged {
                version: 5,
                state: StagedState::Put(StateValue {
                    etag: "1d25f3be50714228faff3ab6a7a08571619b2497bb38b356bdac6d4b4c313446".into(),
                    bytes: 9_000,
                    body: Body::Stored(BodyId::new("0198d2b4-6c11-7d3e-9a55-3f0c2f6f7a10")),
                }),
                attributes: Attributes {
                    query_hidden: Some(false),
                },
            }),
        }
    }

    /// The record that `fixtures/records/txn-v1.bin` holds.
    fn sample_txn() -> TxnRecord {
        TxnRecord {
            participants: vec![Participant {
                subject: Subject::Key {
                    namespace: Namespace::parse("shop").unwrap(),
                    key: Key::parse("orders/4711").unwrap(),
                },
                lease_id: Xid::parse("d4k7q2m0h5r8e1t6n9b0").unwrap(),
                enlisted: true,
                lost: false,
                epoch: 0,
            }],
            decision: None,
        }
    }

    /// The record that `fixtures/records/txn-v2.bin` holds.
    fn sample_txn_2() -> TxnRecord {
        let mut record = sample_txn();
        record.participants.push(Participant {
            subject: Subject::Message {
                queue: QueueId {
                    namespace: Namespace::parse("shop").unwrap(),
                    queue: QueueName::parse("invoices").unwrap(),
                },
                id: MessageId::parse("0198f2aa-6d10-7c3b-9e55-0b1c2d3e4f50").unwrap(),
            },
            lease_id: Xid::parse("d4k7q2m0h5r8e1t6n9c0").unwrap(),
            enlisted: true,
            lost: false,
            epoch: 0,
        });
        record
    }

    /// The page that `fixtures/records/txn-page-v1.bin` holds.
    fn sample_txn_page() -> TxnPage {
        let mut decided = sample_txn_2();
        decided.decision = Some(Decision::Commit);
        decided.participants[0].lost = true;
        let id = |last| Xid::parse(&format!("d4k7q2m0h5r8e1t6n9b{last}")).unwrap();
        TxnPage::from([(id('0'), sample_txn()), (id('g'), decided)])
    }

    /// The record that `fixtures/records/key-v1-epoch.bin` holds.
    fn sample_key_passed_by() -> KeyRecord {
        let mut record = sample_key();
        record.lease.as_mut().expect("the sample is leased").epoch = 3;
        record
    }

    /// The page that `fixtures/records/txn-page-v1-epoch.bin` holds.
    fn sample_txn_page_passed_by() -> TxnPage {
        let mut page = sample_txn_page();
        for record in page.values_mut() {
            record.participants[0].epoch = 3;
        }
        page
    }

    pub(in crate::record) fn fixture(name: &str) -> Vec<u8> {
        let path = format!("{}/fixtures/records/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(&path).unwrap_or_else(|cause| panic!("{path}: {cause}"))
    }

    /// Writes the samples of the newest version. Run by hand when a version is added, never to mend a failing test:
    /// `cargo test --lib write_samples -- --ignored`
    #[test]
    #[ignore = "writes fixtures"]
    fn write_samples() {
        let folder = format!("{}/fixtures/records", env!("CARGO_MANIFEST_DIR"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(format!("{folder}/key-v1.bin"), encode_key(&sample_key())).unwrap();
        std::fs::write(format!("{folder}/txn-v2.bin"), encode_txn(&sample_txn_2())).unwrap();
        std::fs::write(format!("{folder}/txn-page-v1.bin"), encode_txn_page(&sample_txn_page())).unwrap();
        let key = encode_key(&sample_key_passed_by());
        std::fs::write(format!("{folder}/key-v1-epoch.bin"), key).unwrap();
        let page = encode_txn_page(&sample_txn_page_passed_by());
        std::fs::write(format!("{folder}/txn-page-v1-epoch.bin"), page).unwrap();
    }

    #[test]
    fn kept_samples_of_every_version_are_still_readable() {
        assert_eq!(decode_key(&fixture("key-v1.bin")).unwrap(), sample_key());
        assert_eq!(decode_txn(&fixture("txn-v1.bin")).unwrap(), sample_txn());
        assert_eq!(decode_txn(&fixture("txn-v2.bin")).unwrap(), sample_txn_2());
        assert_eq!(decode_txn_page(&fixture("txn-page-v1.bin")).unwrap(), sample_txn_page());
        let passed_by = decode_key(&fixture("key-v1-epoch.bin")).unwrap();
        assert_eq!(passed_by, sample_key_passed_by());
        let passed_by = decode_txn_page(&fixture("txn-page-v1-epoch.bin")).unwrap();
        assert_eq!(passed_by, sample_txn_page_passed_by());
    }

    /// A server that knows of no epochs reads what it has always read, as long as no decision has passed anything by.
    #[test]
    fn what_no_decision_has_passed_by_is_written_as_ever() {
        assert_eq!(*encode_key(&sample_key()), *fixture("key-v1.bin"));
        assert_eq!(*encode_txn_page(&sample_txn_page()), *fixture("txn-page-v1.bin"));
    }

    #[test]
    fn a_transaction_of_keys_alone_is_written_as_ever() {
        assert_eq!(*encode_txn(&sample_txn()), *fixture("txn-v1.bin"));
        assert_eq!(encode_txn(&sample_txn_2())[..4], *b"LKT2");
    }

    #[test]
    fn a_participant_that_is_neither_key_nor_message_is_refused() {
        let lease = r#""namespace":"n","lease_id":"d4k7q2m0h5r8e1t6n9c0""#;
        for what in [
            "",
            r#","queue":"q""#,
            r#","queue":"q","message":"x""#,
            r#","key":"k","queue":"q","message":"0198f2aa-6d10-7c3b-9e55-0b1c2d3e4f50""#,
        ] {
            let text = format!(r#"{{"participants":[{{{lease}{what}}}]}}"#);
            let header: serde_json::Value = serde_json::from_str(&text).unwrap();
            for magic in [TXN_MAGIC, TXN_MAGIC_2] {
                assert!(decode_txn(&seal(magic, &header, &[])).is_err(), "{text}");
            }
        }
    }

    #[test]
    fn records_survive_being_written_and_read() {
        let mut removed = sample_key();
        removed.staged = Some(Staged {
            version: 6,
            state: StagedState::Remove,
            attributes: Attributes { query_hidden: None },
        });
        for record in [KeyRecord::default(), sample_key(), removed] {
            assert_eq!(decode_key(&encode_key(&record)).unwrap(), record);
        }
    }

    #[test]
    fn two_inline_states_keep_apart() {
        let mut record = sample_key();
        record.staged = Some(Staged {
            version: 5,
            state: StagedState::Put(StateValue {
                etag: "x".into(),
                bytes: 3,
                body: Body::Inline(b"\"\xff\"".as_slice().into()),
            }),
            attributes: Attributes::default(),
        });
        assert_eq!(decode_key(&encode_key(&record)).unwrap(), record);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = encode_key(&sample_key());
        for at in 0..good.len() {
            assert!(decode_key(&good[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut bad = good.to_vec();
                bad[at] ^= 1 << bit;
                assert!(decode_key(&bad).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_record_of_another_kind_is_refused() {
        assert_eq!(decode_key(&encode_txn(&sample_txn())).unwrap_err().offset, 0);
    }
}
