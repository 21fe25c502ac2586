//! What puts say of encryption.

use std::sync::Arc;

use lockd::store::object::{Encryption, Location, ObjectStore, Options};
use lockd::store::{Batch, BodyId, Store};

use crate::DEMANDS;
use crate::place::BucketPlace;
use crate::proxy::{Proxy, Rates};

/// Whatever is put is put with the encryption that was asked for: records, bodies, and bodies in parts.
#[test]
fn every_put_asks_for_the_encryption_that_was_set() {
    let place = BucketPlace::new(DEMANDS, false);
    let proxy = Proxy::start(place.upstream(), Rates::NONE, 0, &[]);
    let settings = [
        (Encryption::BucketDefault, None, None),
        (Encryption::Managed, Some("AES256"), None),
        (Encryption::Kms(None), Some("aws:kms"), None),
        (
            Encryption::Kms(Some("a-key".to_owned())),
            Some("aws:kms"),
            Some("a-key"),
        ),
    ];
    for (encryption, algorithm, key_id) in settings {
        let mut location = place.location_at(proxy.address());
        match &mut location {
            Location::S3(location) => location.encryption = encryption.clone(),
            Location::Aws(location) => location.encryption = encryption.clone(),
            other => panic!("{other:?}"),
        }
        proxy.keep_heads();
        // A store that has no such keys refuses the first put, which was asked for all the same.
        if let Ok(store) = ObjectStore::open(&location, Options::default()) {
            let bodies = vec![(BodyId::new("b"), Arc::from(&b"body"[..]))];
            let batch = Batch {
                bodies,
                ..Batch::default()
            };
            store.write(batch).unwrap();
            let mut writer = store.body_writer().unwrap();
            writer.write_all(&vec![b'x'; 6 * 1024 * 1024]).unwrap();
            writer.finish().unwrap();
        }
        let heads = proxy.heads();
        let puts = (heads.iter()).filter(|head| head.starts_with("PUT ") && !head.contains("partNumber="));
        let begun = (heads.iter()).filter(|head| head.starts_with("POST ") && head.contains("uploads="));
        let objects: Vec<&String> = puts.chain(begun).collect();
        assert!(!objects.is_empty());
        for head in objects {
            let found = header(head, "x-amz-server-side-encryption");
            assert_eq!(found.as_deref(), algorithm, "{encryption:?}: {head}");
            let found = header(head, "x-amz-server-side-encryption-aws-kms-key-id");
            assert_eq!(found.as_deref(), key_id, "{encryption:?}: {head}");
            // What is not signed could be taken off on the way.
            let signed = header(head, "authorization").unwrap_or_default();
            assert_eq!(
                signed.contains("x-amz-server-side-encryption"),
                algorithm.is_some(),
                "{head}"
            );
        }
    }
}

fn header(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}
