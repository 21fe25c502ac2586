//! Servers whose store has bad days: a proxy cuts connections before and after a request was carried out, carries it out
//! late, answers with errors, loses answers. No lease is granted twice, no holder is refused what it may do, and nothing that was
//! acknowledged is lost, neither an update nor a message.
//!
//! `LOCKD_TEST_OPERATIONS` makes it last longer, `LOCKD_TEST_SEED` repeats what goes wrong, though not how threads meet.

use std::env;
use std::fmt;
use std::net::SocketAddr;

use lockd::store::object::{Location, ObjectStore, OpenError, Options};

use crate::DEMANDS;
use crate::place::{BucketPlace, retried};
use crate::proxy::{Proxy, Rates};
use crate::suite::fixture::{ServerOptions, TestServer};

#[path = "faults/leases.rs"]
mod leases;
#[path = "faults/messages.rs"]
mod messages;

const SERVERS: usize = 3;
const CLIENTS: usize = 8;

fn operations() -> u64 {
    env::var("LOCKD_TEST_OPERATIONS").map_or(800, |text| text.parse().unwrap())
}

/// Several servers, each with a proxy of its own between it and the store.
struct BadDay {
    servers: Vec<TestServer>,
    proxies: Vec<Proxy>,
}

/// What went wrong.
struct Faults {
    requests: u64,
    faults: u64,
}

impl BadDay {
    fn begin(place: &BucketPlace, seed: u64, rates: Rates) -> Self {
        let proxies: Vec<Proxy> = (0..SERVERS as u64)
            .map(|number| Proxy::start(place.upstream(), rates, seed ^ number, &[]))
            .collect();
        let start = |proxy: &Proxy| {
            // The trial at the start has bad days as well, and may come to no verdict.
            let engine = (0..20)
                .find_map(|_| place.engine_behind(proxy.address()).ok())
                .expect("one start in twenty succeeds");
            TestServer::start(retried(engine), ServerOptions::default())
        };
        Self {
            servers: proxies.iter().map(start).collect(),
            proxies,
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|server| server.address).collect()
    }

    fn faults(&self) -> Faults {
        let counts = self.proxies.iter().map(Proxy::counts);
        let (requests, faults) = counts.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        Faults { requests, faults }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, faults } = self;
        write!(f, "{requests} requests to the store, {faults} of which went wrong")
    }
}

/// A store that does not look at conditions is refused, and the refusal says so. The real one does; so they are taken off on
/// the way to it. Where requests are signed, that is found out by the signature.
#[test]
fn a_store_that_ignores_conditions_is_refused() {
    let place = BucketPlace::new(DEMANDS, false);
    for taken_off in [&["if-match", "if-none-match"][..], &["if-match"], &["if-none-match"]] {
        let proxy = Proxy::start(place.upstream(), Rates::NONE, 0, taken_off);
        match place.engine_behind(proxy.address()) {
            Err(OpenError::BreaksPromise { detail, .. }) => assert!(detail.contains("ignores If-"), "{detail}"),
            Err(OpenError::Unusable { detail, .. }) => {
                assert!(
                    detail.contains("answered 400") || detail.contains("answered 403"),
                    "{detail}"
                );
            }
            Ok(_) => panic!("a store without {taken_off:?} was taken"),
            Err(other) => panic!("{other}"),
        }
    }
    // What was refused was refused for that alone.
    let proxy = Proxy::start(place.upstream(), Rates::NONE, 0, &[]);
    place.engine_behind(proxy.address()).unwrap();
}

/// The same with a real one: the server that `LOCKD_TEST_BAD_STORE` names, where `LOCKD_TEST_BAD_KEY` is both halves of the
/// key.
#[test]
fn a_real_store_that_ignores_conditions_is_refused() {
    let Ok(url) = env::var("LOCKD_TEST_BAD_STORE") else {
        eprintln!("skipped: LOCKD_TEST_BAD_STORE names no store that ignores conditions");
        return;
    };
    let key = |name: &str| match name {
        "LOCKD_S3_ACCESS_KEY_ID" | "LOCKD_S3_SECRET_ACCESS_KEY" => env::var("LOCKD_TEST_BAD_KEY").ok(),
        _ => None,
    };
    let location = Location::parse(&url, &key).unwrap().unwrap();
    match ObjectStore::open(&location, Options::default()) {
        Err(OpenError::BreaksPromise { store, detail }) => eprintln!("{store}: {detail}"),
        Ok(_) => panic!("{url} was taken"),
        Err(other) => panic!("{other}"),
    }
}
