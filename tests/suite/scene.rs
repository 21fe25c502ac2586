//! One place, some servers over it, and a clock that only the test moves: where most claims about leases begin.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockd::clock::{ManualClock, SharedClock};
use lockd::lease::table::KeyTable;
use lockd::news::NobodyListens;
use lockd::sweeper::{Pace, sweep_leases};

use super::fixture::{Backend, Place, ServerOptions, TestServer};

/// What the clock of every scene shows at first.
const BEGINNING_MS: i64 = 1_767_261_600_250;

/// Servers over one place with one clock.
pub struct Scene {
    pub place: Box<dyn Place>,
    pub clock: Arc<ManualClock>,
    pub servers: Vec<TestServer>,
    options: ServerOptions,
}

impl Scene {
    /// One server.
    pub fn open(backend: &dyn Backend) -> Self {
        Self::with_servers(backend, 1)
    }

    /// Several servers.
    pub fn with_servers(backend: &dyn Backend, count: usize) -> Self {
        Self::with_options(backend, count, |_| ())
    }

    /// Servers with other settings than usual.
    pub fn with_options(backend: &dyn Backend, count: usize, adjust: impl FnOnce(&mut ServerOptions)) -> Self {
        let clock = ManualClock::at_wall_ms(BEGINNING_MS);
        let shared: SharedClock = clock.clone();
        let mut options = ServerOptions {
            clock: shared,
            ..ServerOptions::default()
        };
        adjust(&mut options);
        let mut scene = Self {
            place: backend.open(),
            clock,
            servers: Vec::new(),
            options,
        };
        for _ in 0..count {
            scene.add_server();
        }
        scene
    }

    /// Starts one more server and returns its address.
    pub fn add_server(&mut self) -> SocketAddr {
        let server = TestServer::start(self.place.store(), self.options.clone());
        let address = server.address;
        self.servers.push(server);
        address
    }

    /// The address of the first server.
    pub fn address(&self) -> SocketAddr {
        self.servers[0].address
    }

    /// The addresses of all servers.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|server| server.address).collect()
    }

    /// Lets seconds pass.
    pub fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// What the clock shows, in whole seconds.
    pub fn now_unix(&self) -> i64 {
        use lockd::clock::Clock;
        self.clock.wall_seconds()
    }

    /// The names of all records that begin so.
    pub fn records(&self, prefix: &str) -> Vec<String> {
        let rows = self
            .place
            .store()
            .list(prefix, None, usize::MAX)
            .expect("the store lists");
        rows.iter().map(|row| row.key.as_str().to_owned()).collect()
    }

    /// Fails unless the store holds exactly so many bodies, where the backend can tell.
    #[track_caller]
    pub fn assert_bodies(&self, expected: usize, when: &str) {
        if let Some(bodies) = self.place.count_bodies() {
            assert_eq!(bodies, expected, "bodies in the store {when}");
        }
    }

    /// Fails if a record of a transaction is left, other than what the next sweep takes away.
    #[track_caller]
    pub fn assert_no_transactions(&self) {
        let clock: SharedClock = self.clock.clone();
        let table = KeyTable::new(self.place.store(), clock, Arc::new(NobodyListens));
        sweep_leases(&table, &Pace::without_pauses()).expect("the store can be swept");
        let mut left = Vec::new();
        let noted = table.committer().book().for_each(|noted| {
            left.push(noted);
            Ok(true)
        });
        noted.expect("the store can be read");
        assert!(left.is_empty(), "records of transactions are left: {left:#?}");
    }
}

/// An xid for a transaction that a client names.
pub fn txn_id(number: u32) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let mut text = String::from("d4k7q2m0h5r8");
    for shift in (0..7).rev() {
        text.push(char::from(ALPHABET[(number >> (5 * shift)) as usize & 31]));
    }
    text.push('g');
    text
}

/// The seed of a random run: the one asked for with `LOCKD_TEST_SEED`, or a new one. It is printed; a failed test shows it.
pub fn seed() -> u64 {
    let seed = match std::env::var("LOCKD_TEST_SEED") {
        Ok(text) => text.parse().expect("LOCKD_TEST_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    eprintln!("LOCKD_TEST_SEED={seed}");
    seed
}
