//! The switches in the environment.

use std::time::Duration;

use lockd::logging::{LogOptions, Logger, Output};
use log::LevelFilter;

/// Everything that the environment may say.
#[derive(Clone)]
pub(crate) struct Switches {
    pub(crate) producers: Option<usize>,
    pub(crate) consumers: Option<usize>,
    pub(crate) messages: Option<usize>,
    pub(crate) prefetch: Option<u32>,
    pub(crate) prefetch_double: Option<u32>,
    pub(crate) warmup: usize,
    pub(crate) debug: bool,
    pub(crate) extra: bool,
    pub(crate) trace_gaps: bool,
    pub(crate) cpu_profile: bool,
    pub(crate) ready_cache_trace: bool,
    pub(crate) ack_lease: AckLease,
    /// Of servers and clients.
    pub(crate) logger: Logger,
}

/// The switches of the cases that guard leases.
#[derive(Debug, Clone, Default)]
pub(crate) struct AckLease {
    pub(crate) producers: Option<usize>,
    pub(crate) consumers: Option<usize>,
    pub(crate) messages: Option<usize>,
    pub(crate) prefetch: Option<u32>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) allow_mismatch: bool,
}

impl Switches {
    /// Reads them; a number that is none is an error.
    pub(crate) fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let text = |name: &str| {
            variable(name)
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
        };
        let on = |name: &str| text(name).as_deref() == Some("1");
        let number = |name: &str| {
            let given = text(name).map(|text| text.parse::<u32>().ok().filter(|number| 0 < *number).ok_or(text));
            given
                .transpose()
                .map_err(|text| format!("{name}={text}: expected a number above zero"))
        };
        let count = |name: &str| Ok::<_, String>(number(name)?.map(|number| number as usize));
        let warmup = match text("MEM_LQ_BENCH_WARMUP") {
            None => 20,
            Some(text) => text
                .parse()
                .map_err(|_| format!("MEM_LQ_BENCH_WARMUP={text}: expected a number"))?,
        };
        let debug = on("MEM_LQ_BENCH_DEBUG");
        let level = match text("LOCKD_BENCH_LOG_LEVEL") {
            _ if on("MEM_LQ_BENCH_TRACE") => LevelFilter::Trace,
            _ if debug => LevelFilter::Debug,
            Some(text) => lockd::logging::parse_level(&text)
                .ok_or_else(|| format!("LOCKD_BENCH_LOG_LEVEL={text}: no such level"))?,
            None if on("MEM_LQ_BENCH_LOG_ERRORS") => LevelFilter::Error,
            None => LevelFilter::Off,
        };
        let output = text("LOCKD_BENCH_LOG_PATH").map_or(Output::Stderr, |path| Output::parse(&path));
        let logger = match level {
            LevelFilter::Off => lockd::logging::off(),
            level => LogOptions {
                level,
                output,
                ..LogOptions::default()
            }
            .build()
            .map_err(|error| error.to_string())?,
        };
        Ok(Self {
            producers: count("MEM_LQ_BENCH_PRODUCERS")?,
            consumers: count("MEM_LQ_BENCH_CONSUMERS")?,
            messages: count("MEM_LQ_BENCH_MESSAGES")?,
            prefetch: number("MEM_LQ_BENCH_PREFETCH")?,
            prefetch_double: number("MEM_LQ_BENCH_PREFETCH_DOUBLE")?,
            warmup,
            debug,
            extra: on("MEM_LQ_BENCH_EXTRA"),
            trace_gaps: on("MEM_LQ_BENCH_TRACE_GAPS"),
            cpu_profile: text("MEM_LQ_BENCH_CPUPROFILE").is_some(),
            ready_cache_trace: on("LOCKD_READY_CACHE_TRACE"),
            ack_lease: AckLease {
                producers: count("LOCKD_LQ_BENCH_PRODUCERS")?,
                consumers: count("LOCKD_LQ_BENCH_CONSUMERS")?,
                messages: count("LOCKD_LQ_BENCH_MESSAGES")?,
                prefetch: number("LOCKD_LQ_BENCH_PREFETCH")?,
                timeout: number("LOCKD_LQ_BENCH_TIMEOUT_SECONDS")?.map(|seconds| Duration::from_secs(seconds.into())),
                allow_mismatch: on("LOCKD_LQ_BENCH_ALLOW_MISMATCH"),
            },
            logger,
        })
    }
}
