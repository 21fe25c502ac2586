//! Places in the bucket that `LOCKD_STORE` names: every server opens it through an engine of its own, as a daemon does.
//!
//! The variable is mandatory. Without it, or with one that cannot be right, the first test that needs the bucket ends the
//! whole run with one clear line. Everything lies below a prefix of this run, a place each, and is removed with the place.

use std::env;
use std::io::{Write, stderr};
use std::net::SocketAddr;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockd::logging;
use lockd::store::Store;
use lockd::store::object::{Location, ObjectStore, OpenError, Options};
use lockd::store::retry::{RetryPolicy, RetryStore, thread_sleeper};
use uuid::Uuid;

use crate::suite::fixture::{Backend, Place};
use crate::suite::queue_calls::Mode;

/// What a suite demands of its bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demands {
    /// The name of the suite.
    pub(crate) suite: &'static str,
    /// The scheme of its URLs.
    pub(crate) scheme: &'static str,
    /// Beginnings of the names of variables that daemons need.
    pub(crate) variables: &'static [&'static str],
}

/// The backend of a whole target.
pub(crate) struct Bucket {
    pub(crate) demands: Demands,
    /// Servers are daemons, processes of their own.
    pub(crate) processes: bool,
}

impl Backend for Bucket {
    fn name(&self) -> &'static str {
        self.demands.suite
    }

    fn open(&self) -> Box<dyn Place> {
        Box::new(BucketPlace::new(self.demands, self.processes))
    }

    fn queue_mode(&self) -> Mode {
        Mode::Polling
    }
}

/// A prefix of its own.
pub(crate) struct BucketPlace {
    demands: Demands,
    url: String,
    processes: bool,
}

impl BucketPlace {
    pub(crate) fn new(demands: Demands, processes: bool) -> Self {
        static PLACES: AtomicUsize = AtomicUsize::new(0);
        static RUN: OnceLock<Uuid> = OnceLock::new();
        let url = env::var("LOCKD_STORE").unwrap_or_else(|_| demands.refuse("LOCKD_STORE is not set"));
        let (url, query) = url.split_once('?').unwrap_or((&url, ""));
        let (run, number) = (RUN.get_or_init(Uuid::now_v7), PLACES.fetch_add(1, Ordering::Relaxed));
        let url = format!("{}/it-{run}/{number}?{query}", url.trim_end_matches('/'));
        if !url.starts_with(&format!("{}://", demands.scheme)) {
            demands.refuse(&format!("LOCKD_STORE must begin with {}://", demands.scheme));
        }
        Self {
            demands,
            url,
            processes,
        }
    }

    fn location(&self) -> Location {
        let location = Location::parse(&self.url, &|name| env::var(name).ok()).expect("the scheme was checked");
        location.unwrap_or_else(|reason| self.demands.refuse(&reason))
    }

    #[cfg_attr(feature = "lq", allow(dead_code, reason = "no proxy without the other claims"))]
    /// Where the store listens. Only one on loopback and without TLS can be put behind a proxy.
    pub(crate) fn upstream(&self) -> SocketAddr {
        let endpoint = match self.location() {
            Location::S3(location) => location.endpoint,
            Location::Aws(location) => location.endpoint.expect("a double"),
            Location::Azure(location) => location.endpoint.expect("a double"),
            other => panic!("{other:?}"),
        };
        let address = endpoint.strip_prefix("http://").expect("plain HTTP");
        address
            .split('/')
            .next()
            .unwrap_or_default()
            .parse()
            .expect("an address on loopback")
    }

    #[cfg_attr(feature = "lq", allow(dead_code, reason = "no proxy without the other claims"))]
    /// The same place by another address.
    pub(crate) fn location_at(&self, address: SocketAddr) -> Location {
        let (old, new) = (self.upstream().to_string(), address.to_string());
        let mut location = self.location();
        match &mut location {
            Location::S3(location) => location.endpoint = location.endpoint.replace(&old, &new),
            Location::Aws(location) => {
                location.endpoint = location.endpoint.as_ref().map(|text| text.replace(&old, &new));
            }
            Location::Azure(location) => {
                location.endpoint = location.endpoint.as_ref().map(|text| text.replace(&old, &new));
            }
            other => panic!("{other:?}"),
        }
        location
    }

    /// Another engine on this place for somebody whose variables differ in these.
    #[allow(dead_code, reason = "not every suite asks")]
    pub(crate) fn engine_with(&self, variables: &[(&str, &str)]) -> Result<ObjectStore, OpenError> {
        let other = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found
                .map(|(_, value)| (*value).to_owned())
                .or_else(|| env::var(name).ok())
        };
        let location = Location::parse(&self.url, &other)
            .expect("the scheme was checked")
            .unwrap();
        ObjectStore::open(&location, options())
    }

    /// Of a place at Azure.
    #[allow(dead_code, reason = "not every suite asks")]
    pub(crate) fn account_and_container(&self) -> (String, String) {
        match self.location() {
            Location::Azure(location) => (location.account, location.container),
            other => panic!("{other:?}"),
        }
    }

    #[cfg_attr(feature = "lq", allow(dead_code, reason = "no proxy without the other claims"))]
    /// This place as a daemon is told it that goes by another address.
    pub(crate) fn behind(&self, address: SocketAddr) -> Behind<'_> {
        Behind { place: self, address }
    }

    #[cfg_attr(feature = "lq", allow(dead_code, reason = "no proxy without the other claims"))]
    /// Another engine on this place that goes through a proxy.
    pub(crate) fn engine_behind(&self, address: SocketAddr) -> Result<ObjectStore, OpenError> {
        ObjectStore::open(&self.location_at(address), options())
    }

    /// Another engine on this place, without retries around it.
    pub(crate) fn engine(&self) -> ObjectStore {
        let location = self.location();
        ObjectStore::open(&location, options()).unwrap_or_else(|error| self.demands.refuse(&error.to_string()))
    }
}

impl Place for BucketPlace {
    fn store(&self) -> Arc<dyn Store> {
        retried(self.engine())
    }

    fn url(&self) -> String {
        self.url.clone()
    }

    fn variables(&self) -> Vec<(String, String)> {
        let needed = |name: &str| self.demands.variables.iter().any(|prefix| name.starts_with(prefix));
        env::vars()
            .filter(|(name, _)| needed(name) && name != "LOCKD_STORE")
            .collect()
    }

    fn servers_are_processes(&self) -> bool {
        self.processes
    }
}

/// Retries around an engine, as a daemon has them.
pub(crate) fn retried(engine: ObjectStore) -> Arc<dyn Store> {
    let policy = RetryPolicy::default();
    Arc::new(RetryStore::new(
        Arc::new(engine),
        policy,
        logging::off(),
        thread_sleeper(),
    ))
}

fn options() -> Options {
    Options {
        // Long enough for whoever reads on, short enough for whoever waits until a body is gone.
        drop_grace: Duration::from_secs(1),
        ..Options::default()
    }
}

/// A place behind a proxy, for daemons.
pub(crate) struct Behind<'a> {
    place: &'a BucketPlace,
    address: SocketAddr,
}

impl Behind<'_> {
    fn through(&self, text: &str) -> String {
        text.replace(&self.place.upstream().to_string(), &self.address.to_string())
    }
}

impl Place for Behind<'_> {
    fn store(&self) -> Arc<dyn Store> {
        retried(self.place.engine_behind(self.address).unwrap())
    }

    fn url(&self) -> String {
        self.through(&self.place.url)
    }

    fn variables(&self) -> Vec<(String, String)> {
        let variables = self.place.variables().into_iter();
        variables.map(|(name, value)| (name, self.through(&value))).collect()
    }

    fn servers_are_processes(&self) -> bool {
        true
    }
}

impl Drop for BucketPlace {
    fn drop(&mut self) {
        // What a failed test has left is to be looked at.
        if !std::thread::panicking()
            && let Err(error) = self.engine().remove_everything()
        {
            eprintln!("left behind in {}: {error}", self.demands.suite);
        }
    }
}

impl Demands {
    /// Past the capture of the test runner, and before any other test can say the same.
    fn refuse(self, reason: &str) -> ! {
        let suite = self.suite;
        let text = format!(
            "\nthe {suite} suite has no bucket to write to: {reason}\n\
             LOCKD_STORE must name one, as fixtures/env/.env.{suite} explains. `ci/backend {suite}` starts a server for it; \
             with one of your own, copy and edit that file, then:\n\
             \n    set -a && source .env.{suite} && set +a && cargo test --features integration-{suite} --test {suite}\n\n"
        );
        // If even this cannot be written, the exit status is all there is to say.
        let _ = stderr().lock().write_all(text.as_bytes());
        process::exit(1);
    }
}
