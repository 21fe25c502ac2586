//! The suite of all stores against the object engine, over the bucket that `LOCKD_STORE` names. `ci/backend` starts a
//! server for it; without one it fails and says what to set.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is how a test fails, and seeds are printed"
)]

use std::sync::Arc;
use std::time::Duration;

use lockd::store::Store;
use lockd::store::object::{Location, ObjectStore, Options};
use store_suite::Place;

#[path = "suite/store.rs"]
mod store_suite;

store_suite::store_suite!(object, || BucketPlace::boxed());
store_suite::store_suite!(object_behind_failing_calls, || store_suite::retried(
    BucketPlace::boxed()
));

struct BucketPlace {
    location: Location,
    cleaner: ObjectStore,
}

impl BucketPlace {
    fn boxed() -> Box<dyn Place> {
        let url = std::env::var("LOCKD_STORE").expect("LOCKD_STORE names the bucket to test with, see fixtures/env");
        let (url, query) = url.split_once('?').unwrap_or((&url, ""));
        let url = format!("{url}/it-{}?{query}", uuid::Uuid::now_v7());
        let location = Location::parse(&url, &|name| std::env::var(name).ok())
            .expect("an object store")
            .unwrap();
        Box::new(Self {
            cleaner: ObjectStore::open(&location, options()).unwrap(),
            location,
        })
    }
}

fn options() -> Options {
    Options {
        drop_grace: Duration::from_secs(1),
        ..Options::default()
    }
}

impl Place for BucketPlace {
    fn handle(&self) -> Arc<dyn Store> {
        Arc::new(ObjectStore::open(&self.location, options()).unwrap())
    }
}

impl Drop for BucketPlace {
    fn drop(&mut self) {
        if let Err(error) = self.cleaner.remove_everything() {
            eprintln!("left behind: {error}");
        }
    }
}
