//! What the daemon tells those who watch it, and that nobody keeps it from telling.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod page;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use lockd::settings::Listen;
use lockd::testing::{TestServer, TestServerBuilder};
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
    let body = br#"{"key":"orders","owner":"impatient","block_seconds":0}"#;
    let mut waiting = TcpStream::connect(server.socket_address().unwrap()).unwrap();
    write!(
        waiting,
        "POST /v1/acquire HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    waiting.write_all(body).unwrap();
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
    let without_suffix: Vec<_> = old
        .names()
        .iter()
        .map(|name| name.trim_end_matches("_total").to_owned())
        .collect();
    let open_names: Vec<_> = open.names().iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(without_suffix, open_names);
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

fn eventually(condition: impl Fn() -> bool) {
    use lockd::clock::{Clock, SystemClock};
    let clock = SystemClock::new();
    let give_up = clock.now().after(PATIENCE);
    while !condition() {
        assert!(clock.now() < give_up, "it does not come true");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
