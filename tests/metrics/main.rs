//! What the daemon tells those who watch it, and that nobody keeps it from telling.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod page;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use lockd::settings::Listen;
use lockd::store::fault::{FaultPlan, FaultStore};
use lockd::store::memory::MemoryStore;
use lockd::testing::{TestServer, TestServerBuilder};
use lockd_client::Enqueue;
use page::{PATIENCE, Page, ask};

fn builder() -> TestServerBuilder {
    TestServer::builder().edit(|settings| settings.metrics_listen = Some(Listen::loopback_any_port()))
}

fn server() -> (TestServer, SocketAddr) {
    let server = builder().start().unwrap();
    let address = server.server().metrics_address().unwrap();
    (server, address)
}

/// One request to the clients' port, on a connection of its own.
fn request(server: &TestServer, method: &str, path: &str) -> u16 {
    ask(
        server.socket_address().unwrap(),
        method,
        path,
        "Content-Length: 0\r\nConnection: close\r\n",
    )
    .status
}

#[test]
fn requests_are_counted_by_route_and_status() {
    let (server, metrics) = server();
    let before = Page::scrape(metrics);
    for number in 0..3 {
        let lease = server.client().acquire(format!("orders/{number}").as_str()).unwrap();
        lease.save(&number).unwrap();
        lease.release().unwrap();
    }
    assert_eq!(request(&server, "POST", "/v1/acquire"), 400);
    assert_eq!(request(&server, "GET", "/v1/acquire"), 405);
    assert_eq!(request(&server, "POST", "/nowhere"), 404);
    let after = Page::scrape(metrics);
    let rose = |route: &str, status: u16| {
        let figure = format!("lockd_http_requests_total{{route=\"{route}\",status=\"{status}\"}}");
        after.get(&figure) - before.get(&figure)
    };
    for (route, status, count) in [
        ("acquire", 200, 3.0),
        ("update", 200, 3.0),
        ("release", 200, 3.0),
        ("acquire", 400, 1.0),
        ("unknown", 405, 1.0),
        ("unknown", 404, 1.0),
        ("enqueue", 200, 0.0),
    ] {
        assert_eq!(rose(route, status), count, "{route} {status}");
    }
    let timed = |page: &Page| page.get("lockd_http_request_duration_seconds_count{route=\"acquire\"}");
    assert_eq!(timed(&after) - timed(&before), 4.0);
}

#[test]
fn a_request_whose_client_left_is_counted_as_abandoned() {
    let (server, metrics) = server();
    let _held = server.client().acquire("orders").unwrap();
    let mut waiting = TcpStream::connect(server.socket_address().unwrap()).unwrap();
    post(
        &mut waiting,
        "/v1/acquire",
        br#"{"key":"orders","owner":"impatient","block_seconds":0}"#,
    );
    eventually(|| server.server().waiting() == 1);
    drop(waiting);
    eventually(|| Page::scrape(metrics).get("lockd_http_requests_abandoned_total{route=\"acquire\"}") == 1.0);
}

#[test]
fn both_formats_tell_the_same_and_are_well_formed() {
    let (server, metrics) = server();
    let lease = server.client().acquire("orders").unwrap();
    lease.release().unwrap();
    let (old, open) = (Page::scrape(metrics), Page::scrape_open(metrics));
    let names: BTreeSet<_> = old.names().iter().map(|name| name.trim_end_matches("_total")).collect();
    assert_eq!(names, open.names());
    assert_eq!(
        old.get("lockd_http_requests_total{route=\"acquire\",status=\"200\"}"),
        1.0
    );
    assert_eq!(
        open.get("lockd_http_requests_total{route=\"acquire\",status=\"200\"}"),
        1.0
    );
    assert_eq!(old.sum("lockd_build_info"), 1.0);
}

#[test]
fn the_listener_knows_its_pages_and_no_others() {
    let (server, metrics) = server();
    assert_eq!(ask(metrics, "GET", "/healthz", "").status, 200);
    assert_eq!(ask(metrics, "GET", "/readyz", "").status, 200);
    assert_eq!(ask(metrics, "GET", "/v1/acquire", "").status, 404);
    let refused = ask(metrics, "POST", "/metrics", "Content-Length: 0\r\n");
    assert!(
        refused.status == 405 && refused.head.contains("\r\nAllow: GET, HEAD"),
        "{refused:?}"
    );
    let head = ask(metrics, "HEAD", "/metrics?x=1", "");
    assert!(
        head.status == 200 && head.body.is_empty() && !head.head.contains("Content-Length: 0"),
        "{head:?}"
    );
    // And the clients' port knows nothing of them.
    assert_eq!(request(&server, "GET", "/metrics"), 404);
}

#[test]
fn a_server_that_nobody_watches_has_no_such_listener() {
    let server = TestServer::builder().start().unwrap();
    assert_eq!(server.server().metrics_address(), None);
}

#[test]
fn queues_are_told_by_name_with_their_messages_and_consumers() {
    let (server, metrics) = server();
    let client = server.client();
    for number in 0..5 {
        client.enqueue_json(Enqueue::to("invoices"), &number).unwrap();
    }
    // The server knows of a queue's messages once somebody has wanted one.
    let message = client.dequeue("invoices").unwrap();
    let level = |page: &Page, name: &str, queue: &str| {
        page.get(&format!(
            "{name}{{lockd_namespace=\"default\",lockd_queue=\"{queue}\"}}"
        ))
    };
    eventually(|| {
        let page = Page::scrape(metrics);
        level(&page, "lockd_queue_pending", "invoices") == 4.0
            && level(&page, "lockd_queue_in_flight", "invoices") == 1.0
    });
    message.ack().unwrap();
    eventually(|| level(&Page::scrape(metrics), "lockd_queue_in_flight", "invoices") == 0.0);
    assert!(1.0 <= Page::scrape(metrics).get("lockd_queue_scans_total"));

    let mut waiting = TcpStream::connect(server.socket_address().unwrap()).unwrap();
    let body = br#"{"queue":"empty","owner":"me","wait_seconds":0}"#;
    post(&mut waiting, "/v1/queue/dequeue", body);
    eventually(|| {
        let page = Page::scrape(metrics);
        level(&page, "lockd_queue_waiters", "empty") == 1.0
            && page.get("lockd_parked_requests{kind=\"consumer\"}") == 1.0
            && page.get("lockd_queue_consumers") == 1.0
    });
}

#[test]
fn the_fullest_queues_are_told_one_by_one_and_the_others_together() {
    let (server, metrics) = server();
    let client = server.client();
    for number in 0..103 {
        let queue = format!("q-{number:03}");
        for message in 0..=usize::from(number < 100) {
            client.enqueue_json(Enqueue::to(queue.as_str()), &message).unwrap();
        }
        drop(client.dequeue(queue.as_str()).unwrap());
    }
    eventually(|| {
        let page = Page::scrape(metrics);
        let told = |queue: &str, namespace: &str| {
            let labels = format!("{{lockd_namespace=\"{namespace}\",lockd_queue=\"{queue}\"}}");
            ["lockd_queue_pending", "lockd_queue_in_flight"]
                .map(|name| page.get(&format!("{name}{labels}")))
                .iter()
                .sum::<f64>()
        };
        page.get("lockd_queues_known") == 103.0
            && told("q-000", "default") == 2.0
            && told("q-099", "default") == 2.0
            && told("q-100", "default") == 0.0
            && told("(others)", "(others)") == 3.0
    });
}

#[test]
fn parked_acquires_and_open_subscriptions_are_told() {
    let (server, metrics) = server();
    let _held = server.client().acquire("orders").unwrap();
    let mut waiting = TcpStream::connect(server.socket_address().unwrap()).unwrap();
    post(
        &mut waiting,
        "/v1/acquire",
        br#"{"key":"orders","owner":"patient","block_seconds":0}"#,
    );
    let mut watching = TcpStream::connect(server.socket_address().unwrap()).unwrap();
    post(&mut watching, "/v1/queue/watch", br#"{"queue":"invoices"}"#);
    let mut subscribing = TcpStream::connect(server.socket_address().unwrap()).unwrap();
    post(
        &mut subscribing,
        "/v1/queue/subscribe",
        br#"{"queue":"invoices","owner":"me","wait_seconds":0}"#,
    );
    server.client().enqueue_json(Enqueue::to("invoices"), &1).unwrap();
    let all = |acquires: f64, streams: f64| {
        let page = Page::scrape(metrics);
        page.get("lockd_parked_requests{kind=\"acquire\"}") == acquires
            && page.get("lockd_streams_open{kind=\"subscription\"}") == streams
            && page.get("lockd_streams_open{kind=\"watch\"}") == streams
    };
    eventually(|| all(1.0, 1.0));
    drop((waiting, watching, subscribing));
    eventually(|| all(0.0, 0.0));
}

#[test]
fn a_disk_tells_its_syncs_and_the_size_of_its_groups() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("disk://{}/store", folder.path().display());
    let server = builder().store_url(&url).start().unwrap();
    let metrics = server.server().metrics_address().unwrap();
    let before = Page::scrape(metrics);
    let lease = server.client().acquire("orders").unwrap();
    lease.save(&1).unwrap();
    lease.release().unwrap();
    let after = Page::scrape(metrics);
    let rose = |figure: &str| after.get(figure) - before.get(figure);
    assert_eq!(
        rose("lockd_log_group_writes_sum"),
        rose("lockd_store_calls_total{operation=\"write\"}")
    );
    assert!(2.0 <= rose("lockd_log_syncs_total"), "{after:?}");
    assert_eq!(
        rose("lockd_log_syncs_total"),
        rose("lockd_log_sync_duration_seconds_count")
    );
    assert!(1.0 <= after.get("lockd_log_records"));
    assert_eq!(after.get("lockd_store_healthy"), 1.0);
}

#[test]
fn a_store_that_fails_is_told_by_the_kind_of_its_errors() {
    let faulty = Arc::new(FaultStore::new(
        Arc::new(MemoryStore::new()),
        FaultPlan::quiet(1),
        Arc::new(|_| ()),
    ));
    let server = builder().store(Arc::clone(&faulty) as _).start().unwrap();
    let metrics = server.server().metrics_address().unwrap();
    faulty.set_outage(true);
    assert!(server.client().get_public("orders").is_err());
    let page = Page::scrape(metrics);
    assert!(
        1.0 <= page.get("lockd_store_errors_total{kind=\"unavailable\"}"),
        "{page:?}"
    );
    assert_eq!(page.get("lockd_store_errors_total{kind=\"corrupt\"}"), 0.0);
    assert_eq!((page.get("lockd_store_healthy"), page.get("lockd_ready")), (0.0, 0.0));
    faulty.set_outage(false);
}

#[test]
#[cfg(target_os = "linux")]
fn the_process_is_told_under_the_usual_names() {
    let (_server, metrics) = server();
    let page = Page::scrape(metrics);
    for name in [
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
        "process_threads",
    ] {
        assert!(0.0 < page.sum(name), "{name}");
    }
    assert!(page.names().contains("process_cpu_seconds_total"));
}

/// Far more of each kind than there are places, all at the same time.
#[test]
fn clients_that_send_or_read_nothing_hold_up_nobody() {
    let (_server, metrics) = server();
    let mut slow = Vec::new();
    for _ in 0..50 {
        let silent = TcpStream::connect(metrics).unwrap();
        let mut half = TcpStream::connect(metrics).unwrap();
        let _ = half.write_all(b"GET /metrics HTTP/1.1\r\nHo");
        let mut deaf = TcpStream::connect(metrics).unwrap();
        let _ = deaf.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
        slow.extend([silent, half, deaf]);
    }
    for _ in 0..3 {
        assert!(Page::scrape(metrics).sum("lockd_build_info") == 1.0);
    }
}

#[test]
fn a_request_without_an_end_is_cut() {
    let (_server, metrics) = server();
    let mut endless = TcpStream::connect(metrics).unwrap();
    endless.set_read_timeout(Some(PATIENCE)).unwrap();
    let line = [b'a'; 1024];
    let refused = (0..1024).any(|_| endless.write_all(&line).is_err());
    let mut rest = Vec::new();
    let _ = endless.read_to_end(&mut rest);
    assert!(refused || rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}

#[test]
fn a_stop_ends_visits_under_way_and_the_listener() {
    let (server, metrics) = server();
    let mut half = TcpStream::connect(metrics).unwrap();
    half.set_read_timeout(Some(PATIENCE)).unwrap();
    half.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    // It has been accepted: who came after it was served.
    Page::scrape(metrics);
    server.stop();
    let ended = half.read(&mut [0; 1]);
    assert!(
        matches!(&ended, Ok(0))
            || ended
                .as_ref()
                .is_err_and(|cause| cause.kind() == ErrorKind::ConnectionReset),
        "{ended:?}"
    );
    assert!(TcpStream::connect(metrics).is_err());
}

#[test]
fn a_server_that_drains_can_be_watched_and_says_that_it_is_not_ready() {
    let (server, metrics) = server();
    let lease = server.client().acquire("orders").unwrap();
    let stopping = std::thread::scope(|scope| {
        let stopping = scope.spawn(|| server.server().shutdown());
        eventually(|| ask(metrics, "GET", "/readyz", "").status == 503);
        assert_eq!(ask(metrics, "GET", "/healthz", "").status, 200);
        assert_eq!(Page::scrape(metrics).sum("lockd_build_info"), 1.0);
        lease.release().unwrap();
        stopping.join()
    });
    stopping.unwrap();
}

/// Sends a request and waits for nothing.
fn post(connection: &mut TcpStream, path: &str, body: &[u8]) {
    let length = body.len();
    write!(
        connection,
        "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"
    )
    .unwrap();
    connection.write_all(body).unwrap();
}

fn eventually(condition: impl Fn() -> bool) {
    use lockd::clock::{Clock, SystemClock};
    let clock = SystemClock::new();
    let give_up = clock.now().after(PATIENCE);
    while !condition() {
        assert!(clock.now() < give_up, "it does not come true");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
