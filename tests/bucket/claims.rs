// The body of every target whose store is a bucket: how each claim becomes a test, and the claims.

/// Makes a test of each function of a suite.
macro_rules! suite {
    ($module:ident: $($claim:ident),* $(,)?) => {
        mod $module {
            $(#[test] fn $claim() { crate::suite::$module::$claim(&super::BUCKET); })*
        }
    };
}

/// The same for claims that take long: with `LOCKD_LQ_EXTENDED=1`.
macro_rules! extended {
    ($name:ident of $module:ident: $($claim:ident),* $(,)?) => {
        mod $name {
            $(#[test] fn $claim() {
                let mode = crate::suite::queue_calls::Mode::Polling;
                if crate::suite::queue_calls::is_wanted(stringify!($module), crate::DEMANDS.suite, mode, true) {
                    crate::suite::$module::$claim(&super::BUCKET);
                }
            })*
        }
    };
}

const BUCKET: place::Bucket = place::Bucket {
    demands: DEMANDS,
    processes: false,
};

// The list of all claims is one for all backends.
#[cfg(not(feature = "lq"))]
include!("../suite/list.rs");
include!("../suite/list_queue.rs");

#[cfg(not(feature = "lq"))]
mod processes {
    const BUCKET: crate::place::Bucket = crate::place::Bucket {
        demands: crate::DEMANDS,
        processes: true,
    };

    include!("../suite/list_processes.rs");
}
