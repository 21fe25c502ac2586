//! What every store must do, written once and run against every engine.
//!
//! A test target brings the suite in as `store_suite` and names a fixture, a function that opens a [`Place`]:
//!
//! ```ignore
//! #[path = "suite/store.rs"]
//! mod store_suite;
//!
//! store_suite::store_suite!(disk, || Box::new(DiskPlace::new()));
//! ```
//!
//! Each claim then is a test of its own, `disk::deleting_needs_its_precondition_too` and so on. Claims that need a
//! capability say aloud that they were skipped where the engine lacks it. [`retried`] puts any fixture behind failing calls
//! and the retries that hide them; the suite must pass there unchanged.
//!
//! Random runs print their seed; `LOCKD_TEST_SEED=<seed>` runs the same again.

use std::env;
use std::sync::{Arc, OnceLock};

use lockd::logging;
use lockd::store::Store;
use lockd::store::fault::{Fault, FaultPlan, FaultStore, Operation};
use lockd::store::retry::{RetryPolicy, RetryStore, Sleeper};
use parking_lot::Mutex;

#[path = "store/batches.rs"]
pub(crate) mod batches;
#[path = "store/bodies.rs"]
pub(crate) mod bodies;
#[path = "store/history.rs"]
pub(crate) mod history;
#[path = "store/listings.rs"]
pub(crate) mod listings;
#[path = "store/records.rs"]
pub(crate) mod records;
#[path = "store/sharing.rs"]
pub(crate) mod sharing;
#[path = "store/tools.rs"]
mod tools;

/// One store, empty at first, gone when this is dropped.
pub(crate) trait Place: Send + Sync {
    /// Another handle on this store, as another server would have. The store is empty at the first call. An engine that
    /// is not shared gives the same handle again.
    fn handle(&self) -> Arc<dyn Store>;
}

/// Makes a module with one test for each claim. Needs this file as `crate::store_suite`.
macro_rules! store_suite {
    ($module:ident, $fixture:expr) => {
        $crate::store_suite::store_suite! {
            $module, $fixture;
            records {
                a_put_is_read_back_by_every_handle,
                a_put_happens_only_under_its_precondition,
                deleting_needs_its_precondition_too,
                every_put_gives_a_new_etag,
            }
            batches {
                a_refused_batch_changes_nothing_and_names_the_first_obstacle,
                a_batch_happens_as_a_whole,
                nobody_sees_half_of_a_batch_after_the_other_half,
            }
            listings {
                listings_are_in_byte_order_below_their_prefix,
                listings_go_on_after_a_row_and_stop_at_their_limit,
                a_long_listing_is_whole,
                paging_lists_what_stays_exactly_once_while_others_write,
            }
            bodies {
                bodies_of_a_batch_are_read_back,
                streamed_bodies_are_read_back,
                an_unfinished_body_harms_nobody,
                dropped_bodies_go_away_and_others_stay,
                a_body_is_readable_to_its_end_after_it_was_dropped,
                a_body_that_never_was_is_missing,
                a_refused_batch_leaves_neither_bodies_nor_gaps,
            }
            sharing {
                a_handle_hears_of_the_changes_of_others_and_not_of_its_own,
                what_a_handle_hears_of_is_readable_already,
                increments_by_compare_and_swap_are_never_lost,
                an_acknowledged_write_is_seen_by_every_later_read,
            }
            history {
                a_lost_answer_can_be_resolved_by_reading,
                a_random_history_agrees_with_a_plain_map,
                a_random_history_agrees_with_a_plain_map_when_calls_fail,
            }
        }
    };
    ($module:ident, $fixture:expr; $($group:ident { $($claim:ident,)* })*) => {
        mod $module {
            #[allow(unused_imports, reason = "the fixture is written in the terms of its target")]
            use super::*;
            $($(
                #[test]
                fn $claim() {
                    let fixture: &$crate::store_suite::Fixture = &$fixture;
                    $crate::store_suite::$group::$claim(fixture);
                }
            )*)*
        }
    };
}
pub(crate) use store_suite;

/// Opens a new place.
pub(crate) type Fixture<'a> = dyn Fn() -> Box<dyn Place> + Sync + 'a;

/// Puts a place behind calls that fail one time in five and retries that hide it.
pub(crate) fn retried(place: Box<dyn Place>) -> Box<dyn Place> {
    let seed = seed();
    Box::new(Retried {
        place,
        rng: Mutex::new(fastrand::Rng::with_seed(seed)),
    })
}

struct Retried {
    place: Box<dyn Place>,
    rng: Mutex<fastrand::Rng>,
}

impl Place for Retried {
    fn handle(&self) -> Arc<dyn Store> {
        let mut plan = FaultPlan::quiet(self.rng.lock().u64(..));
        for operation in Operation::ALL {
            // Streams are not retried by the wrapper: it cannot know what has gone through.
            if !matches!(
                operation,
                Operation::BodyWrite | Operation::BodyFinish | Operation::BodyRead
            ) {
                plan = plan.rate(operation, Fault::FailBefore, 0.2);
            }
        }
        let no_sleep: Sleeper = Arc::new(|_| ());
        let faulty = FaultStore::new(self.place.handle(), plan, no_sleep.clone());
        // One call in 10^17 fails in spite of this.
        let policy = RetryPolicy {
            attempts: 25,
            ..RetryPolicy::default()
        };
        // Thousands of injected failures in the log would hide what matters.
        Arc::new(RetryStore::new(Arc::new(faulty), policy, logging::off(), no_sleep))
    }
}

/// The seed of all random runs of this process: the one asked for, or a new one.
fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    let seed = *SEED.get_or_init(|| match env::var("LOCKD_TEST_SEED") {
        Ok(text) => text.parse().expect("LOCKD_TEST_SEED is a number"),
        Err(_) => fastrand::u64(..),
    });
    eprintln!("LOCKD_TEST_SEED={seed}");
    seed
}
