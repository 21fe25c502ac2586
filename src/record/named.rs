//! Which bodies a record names, whatever kind of record it is: what is left over in a store is what no record names.

use super::{Body, DecodeError, decode_key, decode_message, decode_retired, decode_txn, decode_txn_page};
use crate::ids::BodyId;
use crate::keys::RecordKey;

/// The bodies that a record names. `None`: a kind of record that this version does not know, so it may name any body.
pub fn bodies_named_by(key: &RecordKey, value: &[u8]) -> Result<Option<Vec<BodyId>>, DecodeError> {
    let kind = key.as_str().split_once('/').map_or("", |(kind, _)| kind);
    Ok(match kind {
        "k" => Some(decode_key(value)?.bodies().cloned().collect()),
        "m" | "d" => match decode_message(value)?.payload.body {
            Body::Stored(id) => Some(vec![id]),
            Body::Inline(_) => Some(vec![]),
        },
        // Pages of transactions lie beside them; neither names bodies.
        "t" => decode_txn(value)
            .map(drop)
            .or_else(|_| decode_txn_page(value).map(drop))
            .map(|()| Some(vec![]))?,
        "p" => decode_txn(value).map(|_| Some(vec![]))?,
        "r" => decode_retired(value).map(|_| Some(vec![]))?,
        "n" => Some(vec![]),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{KeyRecord, StateValue, TxnPage, TxnRecord, encode_key, encode_txn, encode_txn_page};

    #[test]
    fn bodies_of_every_kind_are_found_and_unknown_kinds_are_told_apart() {
        let body = BodyId::new("some-body");
        let record = KeyRecord {
            state: Some(StateValue {
                etag: "0".into(),
                bytes: 5_000,
                body: Body::Stored(body.clone()),
            }),
            ..KeyRecord::default()
        };
        let named = |key: &str, value: &[u8]| bodies_named_by(&RecordKey::new(key), value);
        assert_eq!(named("k/a/b", &encode_key(&record)), Ok(Some(vec![body])));
        assert_eq!(named("t/x", &encode_txn(&TxnRecord::default())), Ok(Some(vec![])));
        assert_eq!(named("t/0a1", &encode_txn_page(&TxnPage::new())), Ok(Some(vec![])));
        assert_eq!(named("p/x", &encode_txn(&TxnRecord::default())), Ok(Some(vec![])));
        assert_eq!(named("n/a", b"{}"), Ok(Some(vec![])));
        assert_eq!(named("z/new", b"?"), Ok(None));
        assert!(named("k/a/b", b"no record").is_err());
        assert!(named("m/a/q/0", b"no record").is_err());
    }
}
