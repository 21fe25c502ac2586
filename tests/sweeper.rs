//! The sweeper in a running server: it comes by itself, clears what nobody touches, and stops with its server.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::Arc;
use std::time::Duration;

use lockd::clock::{Clock, ManualClock, SystemClock};
use lockd::server::{Parts, Server};
use lockd::settings::{Listen, Settings};
use lockd::store::Store;
use lockd::store::memory::MemoryStore;

const PATIENCE: Duration = Duration::from_secs(60);

/// A server over this store whose clock shows what it is told.
fn server(store: &MemoryStore, clock: Arc<ManualClock>, change: impl FnOnce(&mut Settings)) -> Server {
    let mut settings = Settings {
        listen: Listen::loopback_any_port(),
        workers: 2,
        sweeper_interval: Duration::from_secs(1),
        ..Settings::default()
    };
    change(&mut settings);
    Server::start(Parts {
        store: Some(Arc::new(store.handle())),
        clock,
        ..Parts::new(settings, lockd::logging::off())
    })
    .unwrap()
}

/// True for what is kept of a transaction: its record, or the pointer to its one lease.
fn is_of_txn(name: &str) -> bool {
    name.starts_with("t/") || name.starts_with("p/")
}

fn names(store: &MemoryStore) -> Vec<String> {
    let rows = store.list("", None, usize::MAX).unwrap();
    rows.into_iter().map(|row| row.key.as_str().to_owned()).collect()
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let clock = SystemClock::new();
    let start = clock.now();
    while !is_so() {
        assert!(clock.now().since(start) < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn client(server: &Server) -> lockd_client::Client {
    lockd_client::Client::builder().endpoint(server.url()).build().unwrap()
}

#[test]
fn an_expired_lease_is_cleared_without_anybody_coming_for_it() {
    let store = MemoryStore::new();
    let clock = ManualClock::at_wall_ms(1_767_261_600_000);
    let server = server(&store, clock.clone(), |_| ());
    let client = client(&server);
    let lease = client.acquire("a").unwrap();
    assert!(names(&store).iter().any(|name| is_of_txn(name)));
    clock.advance(Duration::from_secs(3600));
    wait_until("the lease is cleared", || names(&store) == ["k/default/a"]);
    drop(lease);
    let clock = SystemClock::new();
    let start = clock.now();
    drop(server);
    // It was asleep; stopping does not wait for its next turn.
    assert!(clock.now().since(start) < PATIENCE / 2);
}

#[test]
fn old_keys_go_when_that_is_configured_and_stay_when_it_is_not() {
    for (retention, stays) in [(Duration::ZERO, true), (Duration::from_secs(3600), false)] {
        let store = MemoryStore::new();
        let clock = ManualClock::at_wall_ms(1_767_261_600_000);
        let server = server(&store, clock.clone(), |settings| {
            settings.retention = retention;
            settings.janitor_interval = Duration::from_secs(1);
        });
        let client = client(&server);
        let hold = || client.acquire("a").unwrap();
        hold().release().unwrap();
        clock.advance(Duration::from_secs(2 * 3600));
        let held = client.acquire("b").unwrap();
        if stays {
            // Whoever was to delete it has had several turns of the pass over leases by then.
            clock.advance(Duration::from_secs(3600));
            wait_until("the lease is cleared", || {
                !names(&store).iter().any(|name| is_of_txn(name))
            });
            assert_eq!(names(&store), ["k/default/a", "k/default/b"]);
        } else {
            wait_until("the key is deleted", || {
                !names(&store).contains(&"k/default/a".to_owned())
            });
            assert_eq!(hold().fencing_token(), Some(2));
        }
        drop(held);
    }
}
