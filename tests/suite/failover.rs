//! The primary dies while an acquire-for-update is under way, and the backup finishes the work.
//!
//! On disk this is `TestDiskAcquireForUpdateCallbackFailoverMultiServer` with its subtests `disk/handler-start`,
//! `disk/before-save` and `disk/after-save`. Primary and backup serve one store together, so the state is seeded through
//! the backup, and nothing has to be taken over: the lease is in the store. That is why nothing is tolerated here either,
//! where a pair of active and standby may end with a conflict after the save.
//!
//! The primary either shuts down, as an operator would have it, or crashes: as a process it gets SIGTERM or SIGKILL.
//!
//! A new moment of death is a new [`Phase`] and one more call of `kill_at` in the handler.

use std::fmt;
use std::io::{Write, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use lockd::testing::{ChaosConfig, CloseOptions, Entry, Recorder, Watchdog, shared};
use lockd_client::{Acquire, CallOptions, Client, Error, Retries, UpdateContext, Wait};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::fixture::Backend;
use super::lockd_calls::wait_until;
use super::node::{Node, Wishes, client_of};

const KEY: &str = "failover";
const TTL: Duration = Duration::from_secs(20);
const READER: &str = "reader-multi";
/// A healthy update takes well below a second; this is for slow machines.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much longer than the proxy's first connection the handler rests, so that it is cut in between.
const CHAOS_MARGIN: Duration = Duration::from_millis(200);

/// When the primary dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    HandlerStart,
    BeforeSave,
    AfterSave,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HandlerStart => "handler-start",
            Self::BeforeSave => "before-save",
            Self::AfterSave => "after-save",
        })
    }
}

/// How it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Shutdown,
    Crash,
}

impl Death {
    fn befall(self, node: &Node) {
        match self {
            Self::Shutdown => node.shutdown(),
            Self::Crash => node.crash(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Document {
    payload: String,
    #[serde(default)]
    owner: String,
    count: u32,
    blob: String,
}

impl Document {
    fn seed(backend: &dyn Backend) -> Self {
        let blob_bytes = if backend.name() == "disk" { 458_752 } else { 425_984 };
        Self {
            payload: format!("{}-multi", backend.name()),
            owner: String::new(),
            count: 2,
            blob: "x".repeat(blob_bytes),
        }
    }

    /// What the handler makes of it.
    fn changed(&self) -> Self {
        Self {
            owner: READER.to_owned(),
            count: self.count + 1,
            ..self.clone()
        }
    }
}

pub fn an_update_survives_a_kill_at_handler_start(backend: &dyn Backend) {
    update_survives(backend, Phase::HandlerStart, Death::Shutdown, false);
}

pub fn an_update_survives_a_kill_before_save(backend: &dyn Backend) {
    update_survives(backend, Phase::BeforeSave, Death::Shutdown, false);
}

pub fn an_update_survives_a_kill_after_save(backend: &dyn Backend) {
    update_survives(backend, Phase::AfterSave, Death::Shutdown, false);
}

pub fn an_update_survives_a_kill_at_handler_start_behind_chaos(backend: &dyn Backend) {
    update_survives(backend, Phase::HandlerStart, Death::Shutdown, true);
}

pub fn an_update_survives_a_kill_before_save_behind_chaos(backend: &dyn Backend) {
    update_survives(backend, Phase::BeforeSave, Death::Shutdown, true);
}

pub fn an_update_survives_a_kill_after_save_behind_chaos(backend: &dyn Backend) {
    update_survives(backend, Phase::AfterSave, Death::Shutdown, true);
}

pub fn an_update_survives_a_crash_at_handler_start(backend: &dyn Backend) {
    update_survives(backend, Phase::HandlerStart, Death::Crash, false);
}

pub fn an_update_survives_a_crash_before_save(backend: &dyn Backend) {
    update_survives(backend, Phase::BeforeSave, Death::Crash, false);
}

pub fn an_update_survives_a_crash_after_save(backend: &dyn Backend) {
    update_survives(backend, Phase::AfterSave, Death::Crash, false);
}

/// A pair of servers over one store, and a client that asks the primary first.
struct Pair {
    primary: Node,
    backup: Node,
    client: Client,
    log: Arc<Recorder>,
}

impl Pair {
    fn start(backend: &dyn Backend) -> Self {
        Self::start_with(backend, Wishes::default(), false)
    }

    /// The wishes are those for the primary.
    fn start_with(backend: &dyn Backend, wishes: Wishes, shuffle: bool) -> Self {
        let place = backend.open();
        let primary = Node::start_with(&*place, wishes);
        let backup = Node::start(&*place);
        let log = Recorder::new(log::Level::Trace);
        let client = client_of([primary.url(), backup.url()], |builder| {
            builder
                .endpoint_shuffle(shuffle)
                .http_timeout(Duration::from_secs(2))
                .failure_retries(Retries::Limited(5))
                .logger(log.clone())
        });
        Self {
            primary,
            backup,
            client: client.with_options(CallOptions::new().timeout(PATIENCE)),
            log,
        }
    }

    fn seed(&self, document: &Document) {
        let lease = self.backup.client().acquire(request()).unwrap();
        lease.save(document).unwrap();
        lease.release().unwrap();
    }

    /// The first answer of the backup after the first failure at the primary, both after this entry. By time and by
    /// arrival: equal times prove no order.
    fn way_over(&self, after: &Entry) -> (Option<Arc<Entry>>, Option<Arc<Entry>>) {
        let (primary, backup) = (self.primary.url(), self.backup.url());
        let follows = |entry: &Entry, earlier: &Entry| earlier.position < entry.position;
        let failed = self.log.first_after(after.at, |entry| {
            entry.is("client.http.error", &primary) && follows(entry, after)
        });
        let served = failed.as_ref().and_then(|failed| {
            self.log.first_after(failed.at, |entry| {
                entry.is("client.http.success", &backup) && follows(entry, failed)
            })
        });
        (failed, served)
    }
}

fn request() -> Acquire {
    Acquire::key(KEY).ttl(TTL).wait(Wait::Forever)
}

fn chaos(backend: &dyn Backend, phase: Phase) -> ChaosConfig {
    let (seed, disconnect_seconds) = match backend.name() {
        "disk" => (4242, 3),
        "nfs" => (1024, 2),
        _ => (4242, 1),
    };
    ChaosConfig {
        seed: seed + phase as u64,
        delay_min: Duration::from_millis(5),
        delay_max: Duration::from_millis(20),
        disconnect_after: Some(Duration::from_secs(disconnect_seconds)),
        disconnects_max: 1,
        ..ChaosConfig::default()
    }
}

/// TH-15 to TH-21.
fn update_survives(backend: &dyn Backend, phase: Phase, death: Death, with_chaos: bool) {
    let _turn = shared();
    let what = format!("{}/{phase}", backend.name());
    let watchdog = Watchdog::start(&what, PATIENCE * 2).unwrap();
    let chaos = with_chaos.then(|| chaos(backend, phase));
    let rest = chaos.as_ref().and_then(|chaos| chaos.disconnect_after);
    let wishes = Wishes {
        chaos,
        ..Wishes::default()
    };
    let pair = Pair::start_with(backend, wishes, false);
    let log = pair.log.clone();
    watchdog.note("client log", move || log.summary());
    let (primary, backup) = (pair.primary.url(), pair.backup.url());
    let seed = Document::seed(backend);
    pair.seed(&seed);

    let runs = AtomicUsize::new(0);
    let kill_at = |now: Phase| {
        if now == phase {
            death.befall(&pair.primary);
        }
    };
    let outcome = pair.client.acquire_for_update(request(), |ctx| {
        runs.fetch_add(1, Ordering::SeqCst);
        kill_at(Phase::HandlerStart);
        let snapshot: Document = ctx.snapshot()?.ok_or("the snapshot is empty")?;
        assert_eq!((snapshot.payload.as_str(), snapshot.count), (seed.payload.as_str(), 2));
        assert_eq!(snapshot.blob.len(), seed.blob.len());
        kill_at(Phase::BeforeSave);
        if let Some(rest) = rest {
            ctx.cancel_token().wait(rest + CHAOS_MARGIN);
        }
        ctx.save(&snapshot.changed())?;
        kill_at(Phase::AfterSave);
        Ok(())
    });

    let acquired = pair
        .log
        .first(|entry| entry.message == "client.acquire_for_update.acquired");
    let (failed, served) = match &acquired {
        Some(acquired) => pair.way_over(acquired),
        None => (None, None),
    };
    let what = format!("{what} death={death:?} chaos={with_chaos}");
    print_summary(&what, &pair.log, failed.as_deref(), served.as_deref());

    // 1, 2: the handler ran, and everything went well in one round.
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    outcome.unwrap();
    // 3: the state is what the handler made of it.
    let verifier = pair.backup.client().acquire(request()).unwrap();
    let stored: Document = verifier.load().unwrap().expect("a state");
    verifier.release().unwrap();
    assert!(
        stored == seed.changed(),
        "{}/{}/{}/{}",
        stored.payload,
        stored.owner,
        stored.count,
        stored.blob.len()
    );
    // 4: the primary granted the lease.
    let acquired = acquired.expect("the lease was acquired");
    assert_eq!(acquired.str_field("endpoint"), Some(&*primary));
    // 5, 6, 7: the primary failed, then the backup answered, and well.
    let failed = failed.expect("client.http.error at the primary");
    let served = served.expect("client.http.success at the backup after it");
    assert!(failed.at <= served.at && failed.position < served.position);
    assert_eq!(served.int_field("status"), Some(200), "{served}");
    let endpoints = [&failed, &served].map(|entry| entry.str_field("endpoint"));
    assert_eq!(endpoints, [Some(&*primary), Some(&*backup)]);
    assert_ne!(primary, backup);
}

/// Straight to standard error, past the capture of the test runner: the log of every run must show that the failover
/// took place, also of those that passed.
fn print_summary(what: &str, log: &Recorder, failed: Option<&Entry>, served: Option<&Entry>) {
    let field = |entry: Option<&Entry>, name: &str| match entry.and_then(|entry| entry.field(name)) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "-".to_owned(),
    };
    let line = |entry: Option<&Entry>| entry.map_or_else(|| "MISSING".to_owned(), Entry::to_string);
    let text = format!(
        "failover log summary: test={what} alternate={} status={} transport_error={} error_endpoint={}\n\
         failed at the primary: {}\nserved by the backup: {}\n{}\n",
        field(served, "endpoint"),
        field(served, "status"),
        failed.is_some(),
        field(failed, "endpoint"),
        line(failed),
        line(served),
        log.summary(),
    );
    print_straight(&text);
}

fn print_straight(text: &str) {
    stderr().lock().write_all(text.as_bytes()).unwrap();
}

/// `TestAcquireForUpdateFailoverMultiServer` of the client: the same with the walk in random order, as it is by default.
pub fn an_update_survives_whichever_server_granted_its_lease(backend: &dyn Backend) {
    let _turn = shared();
    let _watchdog = Watchdog::start("shuffled failover", PATIENCE * 2).unwrap();
    let pair = Pair::start_with(backend, Wishes::default(), true);
    let seed = Document::seed(backend);
    pair.seed(&seed);
    let granted_by_primary = |ctx: &UpdateContext| ctx.endpoint() == Some(&*pair.primary.url());
    let survivor = pair.client.acquire_for_update(request(), |ctx| {
        let snapshot: Document = ctx.snapshot()?.ok_or("the snapshot is empty")?;
        let (victim, survivor) = match granted_by_primary(ctx) {
            true => (&pair.primary, &pair.backup),
            false => (&pair.backup, &pair.primary),
        };
        victim.shutdown();
        ctx.save(&snapshot.changed())?;
        Ok(survivor)
    });
    let state = survivor.unwrap().client().get_public(KEY).unwrap();
    assert!(
        state.into_json::<Document>().unwrap() == Some(seed.changed()),
        "{}",
        pair.log.summary()
    );
}

/// A server that drains asks for its leases back, and a drain-aware client gives them back while the handler is still at
/// it. What the handler then saves is refused, and it runs again elsewhere: late, but not lost.
///
/// Who refuses is a matter of moments: the server while the lease is gone there and the client does not know it yet, the
/// client itself from then on. The latter once ended the whole update with "fencing token required", about one time in
/// two; it is what this handler waits for.
pub fn a_drain_under_a_handler_makes_it_run_again_elsewhere(backend: &dyn Backend) {
    let _turn = shared();
    let _watchdog = Watchdog::start("drain under a handler", PATIENCE * 2).unwrap();
    let wishes = Wishes {
        close: CloseOptions::new()
            .drain_leases(Duration::from_secs(8))
            .shutdown_timeout(Duration::from_secs(10)),
        ..Wishes::default()
    };
    let pair = Pair::start_with(backend, wishes, false);
    let seed = Document::seed(backend);
    pair.seed(&seed);
    let mut granted_by = Vec::new();
    thread::scope(|scope| {
        // The renewal after half of this is what the announcement of the drain comes back with.
        let request = request().ttl(Duration::from_secs(4));
        let mut update = |ctx: &mut UpdateContext| {
            let snapshot: Document = ctx.snapshot()?.ok_or("the snapshot is empty")?;
            assert_eq!(snapshot.count, 2);
            granted_by.push(ctx.endpoint().unwrap().to_owned());
            if granted_by.len() == 1 {
                scope.spawn(|| pair.primary.shutdown());
                wait_until("the lease is given back", || ctx.is_released());
            }
            ctx.save(&snapshot.changed())?;
            Ok(())
        };
        let outcome = pair.client.acquire_for_update(request, &mut update);
        outcome.unwrap_or_else(|error| panic!("{error}: {}", pair.log.summary()));
    });
    assert_eq!(
        granted_by,
        [pair.primary.url(), pair.backup.url()],
        "{}",
        pair.log.summary()
    );
    let state = pair.backup.client().get_public(KEY).unwrap();
    assert!(state.into_json::<Document>().unwrap() == Some(seed.changed()));
}

/// RemoveFailoverMultiServer, TH-22.
pub fn a_removal_survives_the_loss_of_its_server(backend: &dyn Backend) {
    let _turn = shared();
    let watchdog = Watchdog::start("remove failover", PATIENCE * 2).unwrap();
    let pair = Pair::start(backend);
    let log = pair.log.clone();
    watchdog.note("client log", move || log.summary());
    let (primary, backup) = (pair.primary.url(), pair.backup.url());
    pair.seed(&Document::seed(backend));

    let lease = pair.client.acquire(request()).unwrap();
    assert_eq!(lease.endpoint(), Some(&*primary));
    pair.primary.shutdown();
    let outcome = lease.remove();

    let begun = pair.log.first(|entry| entry.message == "client.remove.start");
    let (failed, _) = begun.as_ref().map_or((None, None), |begun| pair.way_over(begun));
    let removed = failed.as_ref().and_then(|failed| {
        pair.log.first_after(failed.at, |entry| {
            entry.message == "client.remove.success" && failed.position < entry.position
        })
    });
    print_straight(&format!(
        "remove-state failover log summary: test={} initial={primary} success_endpoint={} error_present={}\n{}\n",
        backend.name(),
        removed
            .as_ref()
            .and_then(|entry| entry.str_field("endpoint"))
            .unwrap_or("-"),
        failed.is_some(),
        pair.log.summary(),
    ));

    assert!(outcome.unwrap().removed);
    assert!(begun.is_some() && failed.is_some(), "client.http.error at the primary");
    let removed = removed.expect("client.remove.success");
    assert_eq!(removed.str_field("endpoint"), Some(&*backup));
    lease.release().unwrap();
    let next = pair.backup.client().acquire(request()).unwrap();
    assert_eq!(next.load::<Value>().unwrap(), None);
    next.release().unwrap();
}

/// With nobody left the client says so, names both, and tells an unknown outcome from a refusal.
pub fn without_any_server_the_client_names_everyone_it_asked(backend: &dyn Backend) {
    let _turn = shared();
    let pair = Pair::start(backend);
    let lease = pair.client.acquire(request()).unwrap();
    pair.primary.shutdown();
    pair.backup.shutdown();
    let error = lease.save(&json!({})).unwrap_err();
    assert!(error.is_transport() && !error.is_lease_lost(), "{error}");
    let Error::Unreachable(unreachable) = &error else {
        panic!("{error}")
    };
    assert_eq!(unreachable.order, [pair.primary.url(), pair.backup.url()]);
    let text = error.to_string();
    assert!(text.contains("all endpoints unreachable"), "{text}");
    let _ = lease.detach();
}
