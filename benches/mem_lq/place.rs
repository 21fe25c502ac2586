//! Servers over one store, and a client of each.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockd::drain_plan::CloseOptions;
use lockd::logging::Logger;
use lockd::store::Store;
use lockd::store::memory::MemoryStore;
use lockd::testing::TestServer;
use lockd_client::Client;
use log::kv::{Key, Value, VisitSource};
use log::{Log, Metadata, Record};
use tempfile::TempDir;

use crate::cases::{Case, StoreKind};
use crate::switches::Switches;

/// What the workers of a case talk to.
pub(crate) struct Place {
    pub(crate) clients: Vec<Client>,
    /// Answers that said `waiting`; counted only when asked for.
    pub(crate) waiting_answers: Arc<AtomicU64>,
    servers: Vec<TestServer>,
    /// Goes last.
    _dir: Option<TempDir>,
}

impl Place {
    pub(crate) fn open(case: &Case, switches: &Switches) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let dir = match &case.root {
            Some(root) => Some(TempDir::with_prefix_in("mem-lq-", root)?),
            None => None,
        };
        let memory = MemoryStore::new();
        let waiting_answers = Arc::new(AtomicU64::new(0));
        let client_logger: Logger = match switches.extra {
            true => Arc::new(CountWaiting {
                inner: Arc::clone(&switches.logger),
                count: Arc::clone(&waiting_answers),
            }),
            false => Arc::clone(&switches.logger),
        };
        let (poll, jitter, resilient) = (case.poll, case.poll_jitter, case.resilient);
        let trace = switches.ready_cache_trace;
        // Everybody may wait at the same time.
        let consumers = case.consumers.max(128);
        let mut servers = Vec::new();
        for _ in 0..case.servers {
            let logger = Arc::clone(&client_logger);
            let builder = TestServer::builder()
                .logger(Arc::clone(&switches.logger))
                .client_options(move |client| client.logger(Arc::clone(&logger)))
                .edit(move |settings| {
                    settings.default_ttl = Duration::from_secs(30);
                    settings.max_ttl = Duration::from_secs(120);
                    settings.acquire_block_max = Duration::from_secs(5);
                    settings.queue.poll_interval = poll;
                    settings.queue.poll_jitter = jitter;
                    settings.queue.resilient_poll_interval = resilient;
                    settings.queue.trace_ready = trace;
                    settings.queue.max_consumers = consumers;
                });
            let builder = match (case.store, &dir) {
                (StoreKind::Disk, Some(dir)) => builder.store_url(&format!("disk://{}", dir.path().display())),
                _ => builder.store(Arc::new(memory.handle()) as Arc<dyn Store>),
            };
            servers.push(builder.start()?);
        }
        Ok(Self {
            clients: servers.iter().map(|server| server.client().clone()).collect(),
            waiting_answers,
            servers,
            _dir: dir,
        })
    }

    /// The client of the worker with this number.
    pub(crate) fn client(&self, worker: usize) -> &Client {
        &self.clients[worker % self.clients.len()]
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for server in &self.servers {
            server.stop_with(
                CloseOptions::new()
                    .drain_leases(Duration::ZERO)
                    .shutdown_timeout(Duration::from_secs(30)),
            );
        }
    }
}

/// Counts answers of status 409, which here all say `waiting` or that a lease is lost; the latter are counted elsewhere and are
/// few.
struct CountWaiting {
    inner: Logger,
    count: Arc<AtomicU64>,
}

impl Log for CountWaiting {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        struct Status(bool);
        impl<'kvs> VisitSource<'kvs> for Status {
            fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
                self.0 |= key.as_str() == "status" && value.to_u64() == Some(409);
                Ok(())
            }
        }
        if record.args().as_str() == Some("client.http.success") || record.args().to_string() == "client.http.success" {
            let mut status = Status(false);
            // A visitor that never fails cannot make this fail.
            let _ = record.key_values().visit(&mut status);
            self.count.fetch_add(u64::from(status.0), Ordering::Relaxed);
        }
        if self.inner.enabled(record.metadata()) {
            self.inner.log(record);
        }
    }

    fn flush(&self) {
        self.inner.flush();
    }
}
