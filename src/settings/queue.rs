//! What the daemon is told about queues.

use std::time::Duration;

use super::error::SettingsError;
use super::layers::Layers;
use super::values::{parse_bool, parse_duration};

/// Largest page of a look at a queue.
pub const LIST_PAGE_SIZE_MAX: usize = 1024;

/// What the daemon is told about queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSettings {
    /// How many consumers may wait or be served at the same time.
    pub max_consumers: usize,
    /// The shortest time between two polls of a queue, and how often one is polled where there is no feed.
    pub poll_interval: Duration,
    /// Up to this much is added to that at random.
    pub poll_jitter: Duration,
    /// How often a queue is polled although there is a feed.
    pub resilient_poll_interval: Duration,
    /// How many messages one page of a look at a queue has, 1 to [`LIST_PAGE_SIZE_MAX`].
    pub list_page_size: usize,
    /// Hear of what other servers of a memory store change.
    pub watch_mem: bool,
    /// Hear of what other servers of a disk store change.
    pub watch_disk: bool,
    /// Write a line to standard error for each look at a queue.
    pub trace_ready: bool,
}

impl Default for QueueSettings {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            max_consumers: (64 * processors).clamp(128, 4096),
            poll_interval: Duration::from_secs(3),
            poll_jitter: Duration::from_millis(500),
            resilient_poll_interval: Duration::from_secs(5 * 60),
            list_page_size: 128,
            watch_mem: true,
            watch_disk: true,
            trace_ready: false,
        }
    }
}

impl QueueSettings {
    /// Takes over what is given. Zero means the default, but for the jitter.
    pub(super) fn read(&mut self, layers: &Layers<'_>) -> Result<(), SettingsError> {
        let span = |name: &str| layers.option(name).map(|given| given.read(parse_duration)).transpose();
        let positive = |name: &str| Ok::<_, SettingsError>(span(name)?.filter(|span| !span.is_zero()));
        let count = |name: &str| {
            let number = |text: &str| text.trim().parse().map_err(|_| "expected a number".to_owned());
            let given = layers.option(name).map(|given| given.read(number)).transpose()?;
            Ok::<_, SettingsError>(given.filter(|number: &usize| *number != 0))
        };
        let switch = |name: &str| layers.option(name).map(|given| given.read(parse_bool)).transpose();
        self.max_consumers = count("queue-max-consumers")?.unwrap_or(self.max_consumers);
        self.list_page_size = count("queue-list-page-size")?.unwrap_or(self.list_page_size);
        self.poll_interval = positive("queue-poll-interval")?.unwrap_or(self.poll_interval);
        self.poll_jitter = span("queue-poll-jitter")?.unwrap_or(self.poll_jitter);
        let resilient = positive("queue-resilient-poll-interval")?;
        self.resilient_poll_interval = resilient.unwrap_or(self.resilient_poll_interval);
        self.watch_disk = switch("disk-queue-watch")?.unwrap_or(self.watch_disk);
        self.watch_mem = switch("disable-mem-queue-watch")?.map_or(self.watch_mem, |disabled| !disabled);
        // No flag has this name: it is the variable LOCKD_READY_CACHE_TRACE alone.
        let trace = layers.option("ready-cache-trace");
        self.trace_ready = trace.is_some_and(|given| given.text.trim() == "1");
        Ok(())
    }

    /// Checks what single values cannot show.
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        if (1..=LIST_PAGE_SIZE_MAX).contains(&self.list_page_size) {
            return Ok(());
        }
        Err(SettingsError::Conflict(format!(
            "queue-list-page-size ({}): expected 1 to {LIST_PAGE_SIZE_MAX}",
            self.list_page_size
        )))
    }
}
