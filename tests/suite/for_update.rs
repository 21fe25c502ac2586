//! Acquire-for-update on one server: read, change, save and release in one call.
//!
//! lockd v0.9.0 has the same scenarios as `TestMemAcquireForUpdate...`; the doc of each claim names its own. What happens
//! when the server goes away meanwhile is in [`failover`](super::failover).

use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use lockd::clock::{Clock, SystemClock};
use lockd::testing::{ChaosConfig, TestServer, Watchdog, shared};
use lockd_client::{Acquire, BoxError, CallOptions, CancelToken, Client, Retries, UpdateContext, Wait};
use serde_json::{Value, json};

use super::fixture::{Backend, serve};
use super::lockd_calls::wait_until;

fn start(backend: &dyn Backend) -> TestServer {
    serve(&*backend.open()).start().unwrap()
}

fn patient(key: &str) -> Acquire {
    Acquire::key(key)
        .ttl(Duration::from_secs(45))
        .wait(Wait::UpTo(Duration::from_secs(20)))
}

fn seed(client: &Client, key: &str, state: &Value) {
    let lease = client.acquire(patient(key)).unwrap();
    lease.save(state).unwrap();
    lease.release().unwrap();
}

fn public(client: &Client, key: &str) -> Option<Value> {
    client.get_public(key).unwrap().into_json().unwrap()
}

/// AcquireIfNotExists, the part of acquire-for-update.
pub fn a_handler_does_not_run_without_its_lease(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    let create = || Acquire::key("created").if_not_exists(true);
    client
        .acquire_for_update(create(), |ctx| Ok(ctx.save(&json!({"n": 1}))?))
        .unwrap();
    for wanted in [create(), create().wait(Wait::No)] {
        let error = client
            .acquire_for_update(wanted, |_| -> Result<(), BoxError> {
                panic!("the handler must not run")
            })
            .unwrap_err();
        assert!(error.is_already_exists(), "{error}");
    }
    let held = client.acquire(patient("created")).unwrap();
    let error = client
        .acquire_for_update(Acquire::key("created").wait(Wait::No), |_| -> Result<(), BoxError> {
            panic!("the handler must not run")
        })
        .unwrap_err();
    assert!(error.is_waiting(), "{error}");
    held.release().unwrap();
}

/// AutoKeyAcquireForUpdate.
pub fn a_handler_learns_the_key_that_was_generated(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let key = server
        .client()
        .acquire_for_update(Acquire::generated_key(), |ctx| {
            ctx.save(&json!({"made": "up"}))?;
            Ok(ctx.key().to_owned())
        })
        .unwrap();
    assert!(!key.is_empty());
    assert_eq!(public(server.client(), &key), Some(json!({"made": "up"})));
}

/// RemoveAcquireForUpdate on memory.
pub fn what_a_handler_saved_can_be_removed(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    client
        .acquire_for_update(patient("k"), |ctx| Ok(ctx.save(&json!({"n": 1}))?))
        .unwrap();
    let lease = client.acquire(patient("k")).unwrap();
    assert_eq!(lease.load::<Value>().unwrap(), Some(json!({"n": 1})));
    assert!(lease.remove().unwrap().removed);
    lease.release().unwrap();
    assert_eq!(public(client, "k"), None);
}

/// RemoveAcquireForUpdate, subtest remove-in-handler.
pub fn a_handler_may_remove_what_it_has_read(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    seed(client, "k", &json!({"n": 1}));
    client
        .acquire_for_update(patient("k"), |ctx| {
            assert_eq!(ctx.snapshot::<Value>()?, Some(json!({"n": 1})));
            assert!(ctx.remove()?.removed);
            assert_eq!(ctx.load::<Value>()?, None);
            Ok(())
        })
        .unwrap();
    assert_eq!(public(client, "k"), None);
}

/// RemoveAcquireForUpdate, subtest remove-and-recreate.
pub fn a_handler_may_remove_and_save_anew(backend: &dyn Backend) {
    let _turn = shared();
    let _watchdog = Watchdog::start("remove and recreate", Duration::from_secs(60)).unwrap();
    let server = start(backend);
    let client = server.client();
    seed(client, "k", &json!({"count": 1, "old": true}));
    client
        .acquire_for_update(patient("k"), |ctx| {
            let count = ctx.snapshot::<Value>()?.unwrap()["count"].as_i64().unwrap();
            assert!(ctx.remove()?.removed);
            ctx.save(&json!({"count": count + 1}))?;
            Ok(())
        })
        .unwrap();
    assert_eq!(public(client, "k"), Some(json!({"count": 2})));
}

/// AcquireForUpdateConcurrency: four workers, six rounds each.
pub fn handlers_on_one_key_lose_no_increment(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let runs = AtomicI64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            let (client, runs) = (server.client().clone(), &runs);
            scope.spawn(move || {
                for _ in 0..6 {
                    let increment = |ctx: &mut UpdateContext| {
                        runs.fetch_add(1, Ordering::SeqCst);
                        let count = ctx
                            .snapshot::<Value>()?
                            .map_or(0, |state| state["count"].as_i64().unwrap());
                        ctx.save(&json!({"count": count + 1}))?;
                        Ok(())
                    };
                    client.acquire_for_update(patient("counter"), increment).unwrap();
                }
            });
        }
    });
    assert_eq!(runs.into_inner(), 24, "nothing failed, so no handler ran twice");
    assert_eq!(public(server.client(), "counter"), Some(json!({"count": 24})));
}

/// AcquireForUpdateConnectionDrop: the caller goes away while its handler is busy.
pub fn a_cancelled_update_lets_go_of_its_lease(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let cancel = CancelToken::new();
    let client = server.client().with_options(CallOptions::new().cancel(cancel.clone()));
    let (started, has_started) = bounded(1);
    let updating = thread::spawn(move || {
        client.acquire_for_update(patient("k"), |ctx| {
            started.send(ctx.lease_id().to_owned())?;
            while !ctx.cancel_token().wait(Duration::from_secs(60)) {}
            // Whoever tries to go on all the same gets nowhere.
            ctx.save(&json!({"n": "never"}))?;
            Ok(())
        })
    });
    let first = has_started
        .recv_timeout(Duration::from_secs(30))
        .expect("the handler runs");
    let clock = SystemClock::new();
    let began = clock.now();
    cancel.cancel();
    let error = updating.join().unwrap().unwrap_err();
    let took = clock.now().since(began);
    assert!(error.is_cancelled(), "{error}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    // No waiting: the key is free, not merely soon to expire.
    let next = server.client().acquire(Acquire::key("k").wait(Wait::No)).unwrap();
    assert_ne!(next.lease_id(), first);
    assert_eq!(next.load::<Value>().unwrap(), None);
    next.release().unwrap();
}

/// AcquireForUpdateRandomPayloads: forty rounds, each finds what the one before has saved, byte for byte.
pub fn random_documents_survive_from_round_to_round(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut expected = Vec::new();
    for round in 0..40 {
        let document = random_document(&mut random, round);
        server
            .client()
            .acquire_for_update(patient("k"), |ctx| {
                let snapshot = ctx.take_snapshot().ok_or("the snapshot was taken")?;
                assert_eq!(snapshot.version, i64::try_from(round)?);
                assert!(snapshot.into_bytes()? == expected, "round {round}, seed {seed}");
                ctx.save(&document)?;
                Ok(())
            })
            .unwrap();
        expected = serde_json::to_vec(&document).unwrap();
    }
    let last = server.client().get_public("k").unwrap().into_bytes().unwrap();
    assert!(last == expected, "seed {seed}");
}

fn random_document(random: &mut fastrand::Rng, round: u64) -> Value {
    let strings: Vec<String> = (0..random.usize(..5))
        .map(|_| (0..random.usize(..300)).map(|_| random.char(..)).collect())
        .collect();
    let numbers: Vec<i64> = (0..random.usize(..50)).map(|_| random.i64(..)).collect();
    json!({"round": round, "strings": strings, "numbers": numbers, "ratio": random.f64()})
}

/// AcquireForUpdateCallbackSingleServer, and `TestAcquireForUpdateSingleServerWithChaos` of the client: the first
/// connection is cut while the handler is at it, and everything is slow.
pub fn a_handler_saves_although_its_connection_is_cut(backend: &dyn Backend) {
    let _turn = shared();
    let _watchdog = Watchdog::start("update behind chaos", Duration::from_secs(120)).unwrap();
    let chaos = ChaosConfig {
        seed: 4242,
        delay_min: Duration::from_millis(5),
        delay_max: Duration::from_millis(10),
        disconnect_after: Some(Duration::from_millis(150)),
        disconnects_max: 1,
        ..ChaosConfig::default()
    };
    let server = serve(&*backend.open()).chaos(chaos).start().unwrap();
    let direct = server
        .new_client_for_endpoints([server.direct_url()], |builder| builder)
        .unwrap();
    seed(&direct, "k", &json!({"owner": "seeder", "count": 1}));
    let client = server
        .new_client(|builder| builder.http_timeout(Duration::from_secs(2)))
        .unwrap();
    let proxy = server.proxy().unwrap();
    let request = patient("k").failure_retries(Retries::Limited(3));
    client
        .acquire_for_update(request, |ctx| {
            let mut state: Value = ctx.snapshot()?.unwrap();
            wait_until("the proxy has cut the connection", || proxy.disconnects() == 1);
            state["owner"] = json!("reader");
            state["count"] = json!(state["count"].as_i64().unwrap() + 1);
            save_insisting(ctx, &state)
        })
        .unwrap();
    assert_eq!(public(&direct, "k"), Some(json!({"owner": "reader", "count": 2})));
}

/// Saves, and when it is not known whether a save arrived, looks.
fn save_insisting(ctx: &UpdateContext, state: &Value) -> Result<(), BoxError> {
    let mut tries = 0;
    loop {
        let error = match ctx.save(state) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        tries += 1;
        if 4 < tries || !(error.is_conflict() || error.is_transport()) {
            return Err(error.into());
        }
        if ctx.load::<Value>().is_ok_and(|stored| stored.as_ref() == Some(state)) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
}
