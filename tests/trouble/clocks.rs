//! Wall clocks that jump, and servers of one root whose clocks disagree. What holds then and what does not stands in
//! `src/clock.rs`; this is where it comes from.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use lockd::clock::ManualClock;
use lockd::store::shared_log::{Options, SharedLogStore};
use lockd::testing::TestServer;
use serde_json::{Value, json};

use crate::{acquire, http, read, release, update};

const NOW_MS: i64 = 1_800_000_000_000;
const HOUR_MS: i64 = 3_600_000;

/// Aborted at the end: a stop takes time, and these clocks stand still.
struct Standing(TestServer);

impl Drop for Standing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A server on this root as if in a process of its own, with a clock of its own.
fn start(root: &Path, wall_ms: i64) -> (Standing, SocketAddr, Arc<ManualClock>) {
    let clock = ManualClock::at_wall_ms(wall_ms);
    let store = SharedLogStore::open_as_another_process(root, Options::default()).unwrap();
    let server = TestServer::builder()
        .store(Arc::new(store))
        .clock(clock.clone())
        .without_client()
        .start()
        .unwrap();
    let address = server.socket_address().unwrap();
    (Standing(server), address, clock)
}

fn granted(server: SocketAddr, key: &str) -> Value {
    acquire(server, key).expect(200).json()
}

#[track_caller]
fn is_no_holder(answer: &http::Answer) {
    let (status, code) = answer.error();
    assert!(
        status == 403 && ["lease_required", "lease_expired"].contains(&&*code),
        "{answer:?}"
    );
}

#[test]
fn a_clock_that_jumps_forwards_ends_leases_early_and_nothing_of_the_old_holder_gets_through() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, address, clock) = start(&dir.path().join("store"), NOW_MS);
    let first = granted(address, "key");
    update(address, "key", &first, b"{\"by\":1}").expect(200);
    clock.set_wall_ms(NOW_MS + HOUR_MS);
    let second = granted(address, "key");
    assert_eq!(
        (&first["fencing_token"], &second["fencing_token"]),
        (&json!(1), &json!(2))
    );
    is_no_holder(&update(address, "key", &first, b"{\"by\":1}"));
    update(address, "key", &second, b"{\"by\":2}").expect(200);
    // Back again: who has lost his lease does not get it back, and the new one lives an hour longer than it was asked for.
    clock.set_wall_ms(NOW_MS);
    is_no_holder(&update(address, "key", &first, b"{\"by\":1}"));
    // A release says "released" to anybody and ends nobody else's lease.
    release(address, "key", &first).expect(200);
    let waiting = acquire(address, "key");
    assert_eq!(waiting.error(), (409, "waiting".to_owned()));
    release(address, "key", &second).expect(200);
    assert_eq!(read(address, "key").body, b"{\"by\":2}");
    assert_eq!(granted(address, "key")["fencing_token"], 3);
}

#[test]
fn a_clock_that_jumps_backwards_prolongs_leases_and_turns_no_token_back() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, address, clock) = start(&dir.path().join("store"), NOW_MS);
    let first = granted(address, "key");
    clock.set_wall_ms(NOW_MS - HOUR_MS);
    let waiting = acquire(address, "key");
    assert_eq!(waiting.error(), (409, "waiting".to_owned()));
    // Its holder goes on, and can give it back at any time.
    update(address, "key", &first, b"{\"by\":1}").expect(200);
    release(address, "key", &first).expect(200);
    let second = granted(address, "key");
    assert_eq!(second["fencing_token"], 2);
    assert_eq!(second["expires_at_unix"], (NOW_MS - HOUR_MS) / 1000 + 60);
    // Forgotten, it is over when the clock has come to its end again.
    clock.set_wall_ms(NOW_MS - HOUR_MS + 59_999);
    assert_eq!(acquire(address, "key").status, 409);
    clock.set_wall_ms(NOW_MS - HOUR_MS + 60_000);
    assert_eq!(granted(address, "key")["fencing_token"], 3);
}

/// The server that is ahead takes the leases of the other one for over as soon as they are granted. So two callers may
/// believe at the same time that they hold the key; but one of them is told otherwise whenever it calls, by either server.
#[test]
fn servers_with_different_clocks_grant_too_early_but_each_key_still_has_one_holder_and_rising_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let (_behind, behind, _) = start(&root, NOW_MS);
    let (_ahead, ahead, ahead_clock) = start(&root, NOW_MS + HOUR_MS);
    let mut saved = 0;
    for round in 0..5 {
        let first = granted(behind, "key");
        update(behind, "key", &first, format!("{{\"lost\":{round}}}").as_bytes()).expect(200);
        let second = granted(ahead, "key");
        assert_eq!(first["fencing_token"], 2 * round + 1);
        assert_eq!(second["fencing_token"], 2 * round + 2);
        for server in [behind, ahead] {
            is_no_holder(&update(server, "key", &first, b"{\"late\":true}"));
            release(server, "key", &first).expect(200);
        }
        // For the server behind the new lease lives for an hour and a minute.
        assert_eq!(acquire(behind, "key").error(), (409, "waiting".to_owned()));
        let state = format!("{{\"round\":{round}}}");
        for server in [behind, ahead] {
            update(server, "key", &second, state.as_bytes()).expect(200);
        }
        release(behind, "key", &second).expect(200);
        saved += 1;
        for server in [behind, ahead] {
            let answer = read(server, "key");
            assert_eq!(answer.body, state.as_bytes());
            assert_eq!(answer.header("X-Key-Version"), Some(saved.to_string().as_str()));
        }
    }
    // A holder that is gone holds up the server behind for as long as the clocks are apart; the other one does not wait.
    granted(ahead, "key");
    assert_eq!(acquire(behind, "key").status, 409);
    ahead_clock.set_wall_ms(NOW_MS + HOUR_MS + 60_000);
    granted(ahead, "key");
}
