//! The suite of all stores against the object engine: plainly, and behind calls that fail.

use std::sync::Arc;

use lockd::store::Store;

use crate::place::BucketPlace;
use crate::{DEMANDS, store_suite};

store_suite::store_suite!(object, || BucketOfStore::boxed());
store_suite::store_suite!(object_behind_failing_calls, || store_suite::retried(
    BucketOfStore::boxed()
));

struct BucketOfStore(BucketPlace);

impl BucketOfStore {
    fn boxed() -> Box<dyn store_suite::Place> {
        Box::new(Self(BucketPlace::new(DEMANDS, false)))
    }
}

impl store_suite::Place for BucketOfStore {
    fn handle(&self) -> Arc<dyn Store> {
        Arc::new(self.0.engine())
    }
}
