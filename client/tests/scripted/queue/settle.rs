//! Ack and nack when an answer is lost on the way.

use lockd_client::{Client, Message};

use super::{delivered, meta};
use crate::support::{Reply, Seen, Server, client_of, dead_url, refusal};

/// Answers the calls about message 1 in this way, the n-th one with n.
fn server(settle: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |seen: &Seen| match seen.path.as_str() {
        "/v1/queue/dequeue" => delivered(vec![(meta(1), b"hello")]),
        _ => settle(seen.index),
    })
}

fn gone(_: usize) -> Reply {
    refusal(404, "not_found")
}

/// A message that the first server delivers.
fn message_of(client: &Client) -> Message {
    client.dequeue("invoices").unwrap()
}

/// LQ-37: a server carries out an ack and goes before it has answered; the next one knows the message no more. The handler has
/// done its work and must not hear of a failure.
#[test]
fn an_ack_that_finds_nothing_after_a_lost_answer_has_succeeded() {
    let first = server(|_| Reply::Close);
    let second = server(gone);
    let client = client_of(&[&first, &second]).build().unwrap();
    let message = message_of(&client);
    message.ack().unwrap();
    assert!(message.is_settled() && message.lost().is_none());
    assert_eq!(second.one_at("/v1/queue/ack").json()["lease_id"], "lease-1");

    // Nobody else to ask: the caller asks again.
    let alone = server(|index| match index {
        1 => Reply::Close,
        2 => refusal(503, "server_busy"),
        _ => gone(index),
    });
    let client = client_of(&[&alone]).build().unwrap();
    let message = message_of(&client);
    let lost = message.ack().unwrap_err();
    assert!(lost.is_transport() && !message.is_settled(), "{lost}");
    assert_eq!(message.ack().unwrap_err().status(), Some(503));
    message.ack().unwrap();
    assert!(message.is_settled());
    assert!(message.ack().unwrap_err().is_message_closed());
    assert_eq!(alone.seen_at("/v1/queue/ack").len(), 3);
}

/// LQ-37: without such an attempt before it, somebody else has finished the message, and the caller hears of it.
#[test]
fn an_ack_that_finds_nothing_at_its_first_attempt_has_failed() {
    let server = server(gone);
    let dead = dead_url();
    for endpoints in [vec![server.url()], vec![server.url(), dead]] {
        let client = Client::builder()
            .endpoints(endpoints)
            .endpoint_shuffle(false)
            .build()
            .unwrap();
        let message = message_of(&client);
        let error = message.ack().unwrap_err();
        assert!(error.has_code("not_found") && error.is_message_lost(), "{error}");
        assert!(message.lost().is_some());
    }
    // Asked after one that nothing was sent to.
    let client = Client::builder()
        .endpoints([dead_url(), server.url()])
        .endpoint_shuffle(false)
        .build()
        .unwrap();
    let error = message_of(&client).ack().unwrap_err();
    assert!(error.has_code("not_found"), "{error}");
}

/// What became of a nack cannot be told from the answer to the next one: the message is there either way.
#[test]
fn a_nack_that_meets_another_version_after_a_lost_answer_says_so() {
    let first = server(|_| Reply::Close);
    let second = server(|index| match index {
        0 => refusal(409, "cas_mismatch"),
        _ => agreeable_nack(),
    });
    let client = client_of(&[&first, &second]).build().unwrap();
    let message = message_of(&client);
    let error = message.nack(std::time::Duration::ZERO).unwrap_err();
    assert!(error.has_code("cas_mismatch"), "{error}");
    assert!(!message.is_settled());
}

fn agreeable_nack() -> Reply {
    Reply::json(
        200,
        r#"{"requeued":true,"meta_etag":"m-etag-1-nacked","correlation_id":"corr-1"}"#,
    )
}
