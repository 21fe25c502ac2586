//! Messages with state.

use std::time::Duration;

use lockd_client::wire::MetadataAttributes;
use lockd_client::{Dequeue, Message, WriteOptions};
use serde_json::json;

use super::{agreeable, delivered, meta};
use crate::support::{Reply, Seen, Server, client_of};

fn script(seen: &Seen) -> Reply {
    match seen.path.as_str() {
        "/v1/queue/dequeueWithState" => delivered(vec![(meta(1).with_state(), b"hello")]),
        "/v1/get" if seen.index == 1 => Reply::empty(204).header("X-Fencing-Token", "19"),
        "/v1/get" => Reply::json(200, r#"{"step":2}"#)
            .header("ETag", "\"state-2\"")
            .header("X-Key-Version", "2"),
        "/v1/update" => Reply::json(200, r#"{"new_version":1,"new_state_etag":"state-1","bytes":10}"#)
            .header("X-Fencing-Token", "21"),
        "/v1/metadata" => Reply::json(200, r#"{"namespace":"default","key":"k","version":2,"metadata":{}}"#)
            .header("X-Fencing-Token", "22"),
        _ => agreeable(seen),
    }
}

fn dequeue(server: &Server) -> Message {
    let client = client_of(&[server]).build().unwrap();
    let request = Dequeue::from_queue("invoices").with_state(true).page_size(8);
    client.dequeue(request).unwrap()
}

/// CL-35, CL-37, the seed's TestClientDequeueWithState: extend and ack name the lease of the state, and the answer prolongs both.
#[test]
fn client_dequeue_with_state() {
    let server = Server::start(script);
    let message = dequeue(&server);
    assert_eq!(server.one_at("/v1/queue/dequeueWithState").json()["page_size"], 1);
    assert_eq!(message.state_lease_id(), "state-lease-1");
    assert_eq!((message.state_etag(), message.state_fencing_token()), ("s-etag-1", 17));
    assert_eq!(message.state_lease_expires_at_unix(), 1_790_000_031);

    message.extend(Duration::from_secs(60)).unwrap();
    let extend = server.one_at("/v1/queue/extend").json();
    assert_eq!(extend["state_lease_id"], "state-lease-1");
    assert_eq!(extend["state_fencing_token"], 17);
    assert_eq!(message.lease_expires_at_unix(), 1_790_000_075);
    assert_eq!(message.state_lease_expires_at_unix(), 1_790_000_075);

    message.ack().unwrap();
    assert_eq!(
        server.one_at("/v1/queue/ack").json(),
        json!({
            "namespace": "default", "queue": "invoices", "message_id": "msg-1", "lease_id": "lease-1", "txn_id": "txn-1",
            "fencing_token": 11, "meta_etag": "m-etag-1-extended", "state_etag": "s-etag-1",
            "state_lease_id": "state-lease-1", "state_fencing_token": 17,
        })
    );
    assert_eq!(
        message.state_lease_id(),
        "state-lease-1",
        "what was told stays readable"
    );
    let error = message.state().unwrap().save(&1).unwrap_err();
    assert!(error.is_missing_fencing_token(), "{error}");
}

/// CL-39: the state has a key of its own, learns version and etag from answers alone, and its newest token goes with the message.
#[test]
fn the_state_of_a_message_is_an_ordinary_key_under_its_own_lease() {
    let server = Server::start(script);
    let message = dequeue(&server);
    let state = message.state().unwrap();
    assert_eq!(state.key(), "q/invoices/state/msg-1");
    assert_eq!((state.version(), state.etag().as_str()), (0, ""));

    assert!(state.load::<serde_json::Value>().unwrap().is_none());
    assert_eq!(state.fencing_token(), Some(19));
    state.save(&json!({"step": 1})).unwrap();
    assert_eq!((state.version(), state.etag().as_str()), (1, "state-1"));
    state
        .update_metadata(MetadataAttributes {
            query_hidden: Some(true),
        })
        .unwrap();
    state.remove().unwrap();

    let get = server.one_at("/v1/get");
    assert_eq!(get.query, "key=q%2Finvoices%2Fstate%2Fmsg-1&namespace=default");
    assert_eq!(get.header("x-lease-id"), Some("state-lease-1"));
    assert_eq!(get.header("x-fencing-token"), Some("17"));
    assert_eq!(get.header("x-correlation-id"), Some("corr-1"));
    let update = server.one_at("/v1/update");
    assert_eq!(update.header("x-fencing-token"), Some("19"));
    assert_eq!(update.header("x-txn-id"), Some("txn-1"));
    assert_eq!(
        (update.header("x-if-version"), update.header("x-if-state-etag")),
        (None, None)
    );
    let metadata = server.one_at("/v1/metadata");
    assert_eq!(metadata.header("x-fencing-token"), Some("21"));
    assert_eq!(metadata.header("x-if-version"), Some("1"));
    let remove = server.one_at("/v1/remove");
    assert_eq!(remove.header("x-fencing-token"), Some("22"));
    assert_eq!(remove.header("x-if-version"), Some("2"));
    assert_eq!(remove.header("x-if-state-etag"), Some("state-1"));

    message.close().unwrap();
    let nack = server.one_at("/v1/queue/nack").json();
    assert_eq!(nack["state_lease_id"], "state-lease-1");
    assert_eq!(nack["state_fencing_token"], 22);
    assert_eq!((&nack["intent"], nack.get("state_etag")), (&json!("failure"), None));
}

#[test]
fn explicit_options_beat_what_the_state_remembers() {
    let server = Server::start(script);
    let message = dequeue(&server);
    let state = message.state().unwrap();
    let options = WriteOptions::new()
        .if_version(9)
        .if_state_etag("mine")
        .fencing_token(99)
        .txn_id("other");
    state.save_with(&json!({}), &options).unwrap();
    let update = server.one_at("/v1/update");
    assert_eq!(update.header("x-if-version"), Some("9"));
    assert_eq!(update.header("x-if-state-etag"), Some("mine"));
    assert_eq!(update.header("x-fencing-token"), Some("99"));
    assert_eq!(update.header("x-txn-id"), Some("other"));
    message.ack().unwrap();
}
