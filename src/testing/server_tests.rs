use std::net::TcpStream;

use lockd_client::{Acquire, Wait};

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::store::memory::MemoryStore;
use crate::store::{
    Batch, BodyId, BodyWriter, Capabilities, ChangeListener, Listed, RecordKey, StoreError, Stored, Written,
};
use crate::testing::child::{is_child, run_this_test_as_child};
use crate::testing::{Entry, Recorder};

/// How long a test waits for what must happen. Passing tests never wait this long.
const LONG: Duration = Duration::from_secs(30);

/// Some moment for clocks that stand still.
const WALL_MS: i64 = 1_767_261_600_000;

fn no_drain() -> CloseOptions {
    CloseOptions::new().drain_leases(Duration::ZERO)
}

fn at_once(key: &str) -> Acquire {
    Acquire::key(key).wait(Wait::No)
}

/// A server whose log is recorded.
fn recorded(builder: TestServerBuilder) -> (TestServer, Arc<Recorder>) {
    let recorder = Recorder::new(Level::Trace);
    (builder.logger(recorder.clone()).start().unwrap(), recorder)
}

/// Stops a server in the background and does something once its drain has begun. Returns how the drain began and what
/// came of it. Assertions belong after this: a panic inside would wait for a drain that nobody ends.
fn while_draining<T>(server: &TestServer, log: &Recorder, during: impl FnOnce() -> T) -> (Arc<Entry>, T) {
    thread::scope(|scope| {
        scope.spawn(|| server.server().shutdown());
        let begun = log.wait_for(LONG, |e| e.message == "shutdown.drain.begin");
        let result = during();
        (begun.expect("the drain begins"), result)
    })
}

#[test]
fn a_server_starts_on_a_free_port_with_a_client_that_works() {
    let server = TestServer::builder().start().unwrap();
    let address = server.socket_address().unwrap();
    assert!(address.ip().is_loopback() && address.port() != 0);
    assert_eq!(server.url(), format!("http://{address}"));
    assert_eq!(server.client().endpoints(), [server.url()]);
    let lease = server.client().acquire("k").unwrap();
    lease.save("text").unwrap();
    lease.release().unwrap();
    let state = server.client().get_public("k").unwrap();
    assert_eq!(state.into_json::<String>().unwrap().as_deref(), Some("text"));
}

#[test]
fn a_server_listens_on_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.sock");
    let server = TestServer::builder().unix_socket(&path).start().unwrap();
    assert_eq!(server.url(), format!("unix://{}", path.display()));
    assert_eq!(server.socket_address(), None);
    server.client().acquire("k").unwrap().release().unwrap();
}

#[test]
fn clients_go_through_the_chaos_proxy_unless_they_go_direct() {
    let server = TestServer::builder().chaos(ChaosConfig::default()).start().unwrap();
    assert_ne!(server.url(), server.direct_url());
    server.client().acquire("k").unwrap().release().unwrap();
    let through_proxy = server.proxy().unwrap().connections();
    assert!(1 <= through_proxy);
    let direct = server.new_client_for_endpoints([server.direct_url()], |b| b).unwrap();
    direct.acquire("k").unwrap().release().unwrap();
    assert_eq!(server.proxy().unwrap().connections(), through_proxy);
}

#[test]
fn chaos_on_a_unix_socket_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let builder = TestServer::builder().unix_socket(directory.path().join("s.sock"));
    let error = builder.chaos(ChaosConfig::default()).start().err().unwrap();
    assert!(matches!(error, StartError::ChaosNeedsTcp), "{error}");
}

#[test]
#[should_panic(expected = "built without a client")]
fn without_client_there_is_none() {
    let server = TestServer::builder().without_client().start().unwrap();
    let own = server.new_client(|b| b).unwrap();
    own.acquire("k").unwrap().release().unwrap();
    server.client();
}

#[test]
fn servers_over_one_store_see_the_same_leases() {
    let first = TestServer::builder().start().unwrap();
    let second = TestServer::builder().store(first.store()).start().unwrap();
    let lease = first.client().acquire("k").unwrap();
    assert!(second.client().acquire(at_once("k")).unwrap_err().is_waiting());
    lease.release().unwrap();
    let next = second.client().acquire(at_once("k")).unwrap();
    assert!(lease.fencing_token() < next.fencing_token());
    next.release().unwrap();
}

#[test]
fn edits_come_last_and_contradictions_are_refused() {
    let server = TestServer::builder()
        .edit(|settings| settings.default_namespace = "mine".to_owned())
        .edit(|settings| assert_eq!(settings.default_namespace, "mine"))
        .start()
        .unwrap();
    let lease = server.client().acquire(Acquire::key("k").namespace("mine")).unwrap();
    lease.release().unwrap();

    let error = TestServer::builder()
        .edit(|settings| settings.workers = 0)
        .start()
        .err();
    assert!(matches!(error, Some(StartError::Settings(_))));
    let error = TestServer::builder().store_url("floppy://a").start().err();
    assert!(matches!(error, Some(StartError::StoreUrl(_))));
    TestServer::builder().store_url("mem://").start().unwrap();
}

#[test]
fn an_address_in_use_is_said() {
    let first = TestServer::builder().start().unwrap();
    let port = first.socket_address().unwrap().port();
    let taken = Listen::parse("tcp", &format!("127.0.0.1:{port}")).unwrap();
    let error = TestServer::builder().listen(taken).start().err().unwrap();
    assert!(matches!(error, StartError::Serve(ServeError::Listen { .. })), "{error}");
}

/// Answers the first question of the server's start only when it is let go.
struct HungStore(MemoryStore, crossbeam_channel::Receiver<()>);

impl Store for HungStore {
    fn read(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        self.0.read(key)
    }

    fn write(&self, batch: Batch) -> Result<Written, StoreError> {
        self.0.write(batch)
    }

    fn list(&self, prefix: &str, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.0.list(prefix, after, limit)
    }

    fn body_writer(&self) -> Result<Box<dyn BodyWriter>, StoreError> {
        self.0.body_writer()
    }

    fn body_reader(&self, body: &BodyId) -> Result<Box<dyn io::Read + Send>, StoreError> {
        self.0.body_reader(body)
    }

    fn watch(&self, listener: ChangeListener) -> bool {
        self.0.watch(listener)
    }

    fn capabilities(&self) -> Capabilities {
        let _ = self.1.recv();
        self.0.capabilities()
    }
}

#[test]
fn a_start_that_hangs_is_given_up_and_what_comes_of_it_goes() {
    let (let_go, held) = bounded(0);
    let store = Arc::new(HungStore(MemoryStore::new(), held));
    let error = TestServer::builder()
        .store(store.clone())
        .start_timeout(Duration::from_millis(50))
        .start()
        .err();
    assert!(matches!(error, Some(StartError::Timeout(limit)) if limit == Duration::from_millis(50)));
    drop(let_go);
    // The late server holds the store until it is gone.
    let clock = SystemClock::new();
    let until = clock.now().after(LONG);
    while Arc::strong_count(&store) != 1 {
        assert!(clock.now() < until, "the late server stays");
        thread::yield_now();
    }
}

#[test]
fn client_options_reach_every_client() {
    let recorder = Recorder::new(Level::Info);
    let logger = recorder.clone();
    let server = TestServer::builder()
        .client_options(move |builder| builder.logger(logger.clone()))
        .start()
        .unwrap();
    server.new_client(|b| b.default_namespace("other")).unwrap();
    let inits = recorder.events().iter().filter(|e| e.message == "client.init").count();
    assert_eq!(inits, 2);
}

#[test]
fn leases_expire_by_the_clock_that_was_handed_in() {
    let clock = ManualClock::at_wall_ms(WALL_MS);
    let server = TestServer::builder().clock(clock.clone()).start().unwrap();
    let lost = server.client().acquire("k").unwrap();
    assert!(server.client().acquire(at_once("k")).unwrap_err().is_waiting());
    clock.advance(Duration::from_secs(31));
    let next = server.client().acquire(at_once("k")).unwrap();
    assert!(lost.fencing_token() < next.fencing_token());
    next.release().unwrap();
}

/// TH-4: what the server makes of the layers, seen in its own log.
#[test]
fn a_test_server_drains_four_seconds_by_default_and_eight_as_in_production() {
    let none: &[CloseOptions] = &[];
    let own = [no_drain(), CloseOptions::new().drain_leases(Duration::from_secs(3))];
    let builders = [
        (TestServer::builder(), "4s"),
        (TestServer::builder().close_defaults(none), "8s"),
        (TestServer::builder().close_defaults(&own), "3s"),
    ];
    for (builder, grace) in builders {
        // The clock stands still, so only the release can end the drain. Not drain-aware: the client would give the lease
        // back by itself.
        let builder = builder.clock(ManualClock::at_wall_ms(WALL_MS));
        let (server, log) = recorded(builder.client_options(|b| b.drain_aware(false)));
        let lease = server.client().acquire("k").unwrap();
        let (begun, released) = while_draining(&server, &log, || lease.release());
        released.unwrap();
        assert_eq!(begun.str_field("grace_period"), Some(grace));
        assert_eq!(begun.int_field("active_leases"), Some(1));
        let complete = log.first(|e| e.message == "shutdown.drain.complete").unwrap();
        assert_eq!(complete.int_field("remaining"), Some(0), "{}", log.summary());
    }
}

/// TH-23, and the drain ends when its time is over although a lease is still held.
#[test]
fn a_draining_server_refuses_to_acquire_and_stops_in_time() {
    let clock = ManualClock::at_wall_ms(WALL_MS);
    let drain = Duration::from_millis(1_500);
    let (server, log) = recorded(
        TestServer::builder()
            .clock(clock.clone())
            .close_defaults(&[CloseOptions::new().drain_leases(drain)])
            .client_options(|b| b.drain_aware(false)),
    );
    let held = server.client().acquire("held").unwrap();
    let (_, refused) = while_draining(&server, &log, || {
        let refused = server.client().acquire(at_once("other"));
        clock.advance(drain);
        refused
    });
    let error = refused.unwrap_err();
    assert!(error.is_shutdown_draining(), "{error}");
    assert_eq!(
        (error.status(), error.retry_after()),
        (Some(503), Some(Duration::from_secs(2)))
    );
    let complete = log.first(|e| e.message == "shutdown.drain.complete").unwrap();
    assert_eq!(complete.int_field("remaining"), Some(1));
    assert_eq!(complete.str_field("elapsed"), Some("1.5s"));
    let _ = held.detach();
}

#[test]
fn options_of_the_call_win_over_close_defaults() {
    let (server, log) = recorded(TestServer::builder());
    let lease = server.client().acquire("k").unwrap();
    server.stop_with(no_drain());
    assert!(
        log.first(|e| e.message == "shutdown.drain.skip").is_some(),
        "{}",
        log.summary()
    );
    let _ = lease.detach();
}

/// TH-7.
#[test]
fn a_stop_closes_the_proxy_and_a_direct_shutdown_leaves_it() {
    let server = TestServer::builder().chaos(ChaosConfig::default()).start().unwrap();
    let proxy = server.socket_address().unwrap();
    server.server().shutdown();
    TcpStream::connect(proxy).expect("the proxy still listens");
    server.stop();
    assert!(TcpStream::connect(proxy).is_err());
}

#[test]
fn a_stopped_server_is_gone_and_may_be_stopped_again() {
    let server = TestServer::builder().start().unwrap();
    let address = server.socket_address().unwrap();
    server.stop();
    assert!(TcpStream::connect(address).is_err());
    server.stop();
    server.abort();
}

#[test]
fn an_abort_drains_nothing_and_leaves_leases_behind() {
    let (server, log) = recorded(TestServer::builder());
    let survivor = TestServer::builder().store(server.store()).start().unwrap();
    let lease = server.client().acquire("k").unwrap();
    server.abort();
    assert!(
        log.first(|e| e.message.starts_with("shutdown.drain")).is_none(),
        "{}",
        log.summary()
    );
    assert!(survivor.client().acquire(at_once("k")).unwrap_err().is_waiting());
    let _ = lease.detach();
    survivor.stop_with(no_drain());
}

#[test]
fn a_server_dropped_by_a_good_test_drains_and_by_a_failing_one_does_not() {
    let quick = CloseOptions::new().drain_leases(Duration::from_millis(1));
    let (server, log) = recorded(TestServer::builder().close_defaults(&[quick]));
    drop(server);
    assert!(
        log.first(|e| e.message == "shutdown.drain.begin").is_some(),
        "{}",
        log.summary()
    );

    let (server, log) = recorded(TestServer::builder());
    let failing = threads::spawn("failing", move || {
        let _dropped_by_the_panic = server;
        panic!("a failing test");
    });
    assert!(failing.unwrap().join().is_err());
    assert!(
        log.first(|e| e.message.starts_with("shutdown.drain")).is_none(),
        "{}",
        log.summary()
    );
    assert!(log.first(|e| e.message == "stopped").is_some(), "{}", log.summary());
}

#[test]
fn the_log_of_the_server_is_shown_when_the_test_fails() {
    let name = "testing::server::tests::the_log_of_the_server_is_shown_when_the_test_fails";
    if is_child() {
        let _server = TestServer::builder().log_on_failure(Level::Debug).start().unwrap();
        panic!("meant to fail");
    }
    let child = run_this_test_as_child(name, &[]);
    assert!(!child.status.success());
    let log = child.stdout.split("server log (last ").nth(1).unwrap_or_default();
    assert!(log.contains("] listening ") && log.contains("] stopped"), "{child:?}");
}
