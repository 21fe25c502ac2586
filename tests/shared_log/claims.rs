// How each claim about a store on a file system becomes a test: in a directory of its own, in the way that `SERVERS` and
// `MODE` of the module around it say.

/// Makes a test of each function of a suite.
macro_rules! suite {
    ($module:ident: $($claim:ident),* $(,)?) => {
        mod $module {
            $(#[test] fn $claim() {
                let how = (super::SERVERS, super::MODE);
                crate::place::run(crate::DEMANDS, stringify!($claim), how, crate::suite::$module::$claim);
            })*
        }
    };
}

/// The same for claims that take long: with `LOCKD_LQ_EXTENDED=1`.
macro_rules! extended {
    ($name:ident of $module:ident: $($claim:ident),* $(,)?) => {
        mod $name {
            $(#[test] fn $claim() {
                if crate::suite::queue_calls::is_wanted(stringify!($module), crate::DEMANDS.suite, super::MODE, true) {
                    let how = (super::SERVERS, super::MODE);
                    crate::place::run(crate::DEMANDS, stringify!($claim), how, crate::suite::$module::$claim);
                }
            })*
        }
    };
}
