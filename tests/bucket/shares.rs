//! Shared access signatures, which an account gives to whoever shall do some things in a container and no others.

use std::env;
use std::io::{Read, Write};

use data_encoding::BASE64;
use hmac::Mac;
use lockd::store::Store;
use s3::signing::HmacSha256;
use url::form_urlencoded::Serializer;

use crate::DEMANDS;
use crate::place::BucketPlace;

/// What a server needs to be allowed: to read, create, write, delete and list, in the order that the signature wants.
const RIGHTS: &str = "rcwdl";
const VERSION: &str = "2021-12-02";
const UNTIL: &str = "2099-01-01T00:00:00Z";

/// A signature for the container, see "Create a service SAS" in the documentation of Azure Storage.
fn signature(place: &BucketPlace, rights: &str) -> Option<String> {
    let Ok(key) = env::var("LOCKD_AZURE_ACCOUNT_KEY") else {
        eprintln!("skipped: without the key of the account nobody can sign");
        return None;
    };
    let (account, container) = place.account_and_container();
    // Permissions, start, end, resource, policy, address, protocol, version, kind of resource, and seven that are not used.
    let resource = format!("/blob/{account}/{container}");
    let fields = [
        rights, "", UNTIL, &resource, "", "", "", VERSION, "c", "", "", "", "", "", "", "",
    ];
    let mut mac = HmacSha256::new_from_slice(&BASE64.decode(key.as_bytes()).unwrap()).unwrap();
    mac.update(fields.join("\n").as_bytes());
    let signature = BASE64.encode(&mac.finalize().into_bytes());
    let query = [
        ("sv", VERSION),
        ("sr", "c"),
        ("sp", rights),
        ("se", UNTIL),
        ("sig", &signature),
    ];
    Some(Serializer::new(String::new()).extend_pairs(query).finish())
}

#[test]
fn a_shared_access_signature_that_allows_what_is_needed_is_enough() {
    let place = BucketPlace::new(DEMANDS, true);
    // Makes the container, which such a signature cannot.
    drop(place.engine());
    let Some(token) = signature(&place, RIGHTS) else { return };
    let store = place.engine_with(&[("LOCKD_AZURE_SAS_TOKEN", &token)]).unwrap();
    // Of several blocks.
    let bytes = vec![b'x'; 20_000_000];
    let mut writer = store.body_writer().unwrap();
    writer.write_all(&bytes).unwrap();
    let body = writer.finish().unwrap();
    let mut read = Vec::new();
    store.body_reader(&body).unwrap().read_to_end(&mut read).unwrap();
    assert!(read == bytes);
}

#[test]
fn a_right_that_a_shared_access_signature_lacks_is_missed_at_the_start() {
    let place = BucketPlace::new(DEMANDS, true);
    drop(place.engine());
    // Whoever may write may create.
    for missing in ['r', 'w', 'd', 'l'] {
        let rights: String = (RIGHTS.chars())
            .filter(|right| *right != missing && (missing != 'w' || *right != 'c'))
            .collect();
        let Some(token) = signature(&place, &rights) else {
            return;
        };
        let error = place.engine_with(&[("LOCKD_AZURE_SAS_TOKEN", &token)]).err();
        let error = error
            .unwrap_or_else(|| panic!("it opens without {missing}"))
            .to_string();
        assert!(error.contains("no right to do that"), "without {missing}: {error}");
        assert!(!error.contains("sig="), "the signature is a secret: {error}");
    }
}
