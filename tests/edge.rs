//! The edge of the server against habits of the HTTP library that would hurt its users.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use lockd::logging;
use lockd::net::sever::ListenerAddr;
use lockd::server::{Parts, Server};
use lockd::settings::{Listen, Settings};

const PROBE: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n";
/// Conditions come true within this time, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

fn server(listen: Listen) -> Server {
    Server::start(Parts::new(
        Settings {
            listen,
            workers: 4,
            ..Settings::default()
        },
        logging::off(),
    ))
    .unwrap()
}

/// Sends on all connections, then wants an answer on each while all stay open.
fn all_are_served<S: Read + Write>(mut connections: Vec<S>) {
    for connection in &mut connections {
        connection.write_all(PROBE).unwrap();
    }
    for (number, connection) in connections.iter_mut().enumerate() {
        let mut status = [0; 12];
        connection
            .read_exact(&mut status)
            .unwrap_or_else(|cause| panic!("connection {number}: {cause}"));
        assert_eq!(&status, b"HTTP/1.1 200");
    }
}

/// tiny_http gives several connections of a burst to one idle thread; those behind the first waited until another
/// connection ended, in most bursts on a fresh server for ever.
#[test]
fn every_connection_of_a_burst_is_served() {
    for _ in 0..5 {
        let server = server(Listen::loopback_any_port());
        let ListenerAddr::Tcp(address) = *server.address() else {
            panic!("TCP was asked for")
        };
        // The second and third burst meet the idle threads that the one before has left.
        for _ in 0..3 {
            let connections = (0..64).map(|_| {
                let connection = TcpStream::connect(address).unwrap();
                connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                connection
            });
            all_are_served(connections.collect());
        }
    }
}

/// The same without addresses and without a kernel that could be asked.
#[test]
fn every_connection_of_a_burst_on_a_unix_socket_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockd.sock");
    let _server = server(Listen::Unix(path.clone()));
    for _ in 0..3 {
        let connections = (0..32).map(|_| {
            let connection = UnixStream::connect(&path).unwrap();
            connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            connection
        });
        all_are_served(connections.collect());
    }
}

/// Where sockets cannot be found, the library answers those who still have a body to send.
#[test]
fn a_refused_upload_on_a_unix_socket_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockd.sock");
    let _server = server(Listen::Unix(path.clone()));
    for (framing, body) in [
        ("Content-Length: 5000\r\n", vec![b' '; 5000]),
        ("Content-Length: 99999999999999\r\n", Vec::new()),
        ("Content-Length: 1, 1\r\n", Vec::new()),
        ("Transfer-Encoding: chunked\r\n", b"zz\r\n\r\n".to_vec()),
        ("Transfer-Encoding: chunked\r\n", b"3\r\n{} \r\n0\r\n\r\n".to_vec()),
    ] {
        let mut connection = UnixStream::connect(&path).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("POST /v1/update?key=a HTTP/1.1\r\nHost: test\r\n{framing}\r\n");
        connection.write_all(head.as_bytes()).unwrap();
        let _ = connection.write_all(&body);
        let mut answer = Vec::new();
        while !answer.ends_with(b"}\n") {
            let mut byte = [0];
            connection.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
        let answer = String::from_utf8(answer).unwrap();
        // An interim answer may come first.
        let last = answer.rsplit_once("HTTP/1.1 ").unwrap().1;
        assert!(last.starts_with("400 "), "{framing}: {answer}");
        assert!(last.contains("\r\nContent-Length: "), "{framing}: {answer}");
    }
    let connection = UnixStream::connect(&path).unwrap();
    all_are_served(vec![connection]);
}

fn address_of(server: &Server) -> SocketAddr {
    let ListenerAddr::Tcp(address) = *server.address() else {
        panic!("TCP was asked for")
    };
    address
}

fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let clock = SystemClock::new();
    let give_up = clock.now().after(PATIENCE);
    while !is_true() {
        assert!(clock.now() < give_up, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asks on a connection that goes on, and reads the whole answer.
fn is_well(connection: &mut TcpStream) -> bool {
    connection.write_all(PROBE).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    answer.starts_with(b"HTTP/1.1 200")
}

/// True when a new connection gets an answer soon.
fn is_served(address: SocketAddr) -> bool {
    let ask = || -> io::Result<[u8; 12]> {
        let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        connection.set_read_timeout(Some(Duration::from_secs(1)))?;
        connection.write_all(PROBE)?;
        let mut status = [0; 12];
        connection.read_exact(&mut status)?;
        Ok(status)
    };
    ask().is_ok_and(|status| &status == b"HTTP/1.1 200")
}

/// Clients that abort before they are looked at make threads of the HTTP library panic. That costs a thread that would have
/// ended anyway.
#[test]
fn connections_that_are_reset_at_once_harm_nobody() {
    let server = server(Listen::loopback_any_port());
    let address = address_of(&server);
    for _ in 0..300 {
        let mut connection = TcpStream::connect(address).unwrap();
        let _ = connection.write_all(PROBE);
        socket2::SockRef::from(&connection)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
    let connections = (0..64).map(|_| {
        let connection = TcpStream::connect(address).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        connection
    });
    all_are_served(connections.collect());
}

/// A daemon that may have few files open, killed when the test is over.
struct FrugalDaemon {
    child: Child,
    folder: tempfile::TempDir,
    address: SocketAddr,
}

impl FrugalDaemon {
    fn start(files: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        // The shell's limit holds for hard and soft, and the daemon cannot raise it.
        let child = Command::new("/bin/sh")
            .args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")])
            .args([
                env!("CARGO_BIN_EXE_lockd"),
                "--store",
                "mem://",
                "--listen",
                "127.0.0.1:0",
            ])
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut daemon = Self {
            child,
            folder,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        wait_until("the daemon listens", || {
            let log = daemon.log();
            let listening = log.lines().find(|line| line.contains("\"msg\":\"listening\""));
            listening.is_some_and(|line| {
                let (_, rest) = line.split_once("\"address\":\"").unwrap();
                daemon.address = rest.split_once('"').unwrap().0.parse().unwrap();
                true
            })
        });
        daemon
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for FrugalDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a request with a JSON body.
fn post(connection: &mut TcpStream, path: &str, token: i64, body: &str) {
    let length = body.len();
    write!(
        connection,
        "POST {path} HTTP/1.1\r\nHost: test\r\nX-Fencing-Token: {token}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
}

/// The head of the answer to an acquire, and the lease.
fn granted(connection: &mut TcpStream) -> (String, serde_json::Value) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let length = head.split("Content-Length: ").nth(1).unwrap();
    let mut body = vec![0; length.split("\r\n").next().unwrap().parse().unwrap()];
    connection.read_exact(&mut body).unwrap();
    (head, serde_json::from_slice(&body).unwrap())
}

fn release(connection: &mut TcpStream, lease: &serde_json::Value) {
    let (lease_id, txn_id) = (&lease["lease_id"], &lease["txn_id"]);
    let body = format!(r#"{{"key":"held","lease_id":{lease_id},"txn_id":{txn_id}}}"#);
    post(
        connection,
        "/v1/release",
        lease["fencing_token"].as_i64().unwrap(),
        &body,
    );
}

/// A thread, a stack and buffers for each connection on which nothing comes would be nine tenths of what a waiting client costs.
#[test]
#[cfg(target_os = "linux")]
fn of_very_many_who_wait_those_who_came_first_cost_no_thread_and_are_served_all_the_same() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    const WAITING: usize = 1300;
    let limit = getrlimit(Resource::Nofile);
    let files = 3500;
    if limit.maximum.is_some_and(|maximum| maximum < files) {
        eprintln!("SKIPPED: {files} open files are needed");
        return;
    }
    let current = limit.current.map(|current| current.max(files));
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    let daemon = FrugalDaemon::start(3500);
    let connect = || {
        let connection = TcpStream::connect(daemon.address).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection
    };
    let acquire = |connection: &mut TcpStream| {
        let body = r#"{"key":"held","owner":"test","ttl_seconds":600,"block_seconds":0}"#;
        post(connection, "/v1/acquire", 0, body);
    };
    let mut holder = connect();
    acquire(&mut holder);
    let (_, lease) = granted(&mut holder);
    let mut waiting: Vec<_> = (0..WAITING)
        .map(|_| {
            let mut connection = connect();
            acquire(&mut connection);
            connection
        })
        .collect();
    let threads = || {
        fs::read_dir(format!("/proc/{}/task", daemon.child.id()))
            .unwrap()
            .count()
    };
    wait_until("all have a thread", || WAITING <= threads());
    wait_until("many have none any more", || {
        threads() < WAITING - 100 || daemon.log().contains("http.readers.kept")
    });
    if daemon.log().contains("http.readers.kept") {
        eprintln!("SKIPPED: own sockets cannot be duplicated here");
        return;
    }
    // One who leaves is not served, although nobody reads its connection.
    drop(waiting.remove(1));
    release(&mut holder, &lease);
    for number in 1..WAITING {
        // They have come in this order, but for those whom two workers took up at the same moment.
        let mut served = take_served(&mut waiting);
        let (head, lease) = granted(&mut served);
        let is_last = head.contains("\r\nConnection: close\r\n");
        if number < 10 {
            assert!(is_last, "{head}");
        }
        if is_last {
            assert_eq!(served.read(&mut [0]).unwrap(), 0, "the connection has ended");
            // The next one is served when this is done.
            release(&mut connect(), &lease);
        } else {
            release(&mut served, &lease);
            let mut status = [0; 12];
            served.read_exact(&mut status).unwrap();
            assert_eq!(&status, b"HTTP/1.1 200");
        }
        // Who came last keeps its connection.
        assert!(!is_last || number < WAITING - 100, "{head}");
    }
}

/// Takes out the connection on which something has come.
fn take_served(waiting: &mut Vec<TcpStream>) -> TcpStream {
    let has_answer = |connection: &TcpStream| {
        connection.set_nonblocking(true).unwrap();
        let peeked = connection.peek(&mut [0]);
        connection.set_nonblocking(false).unwrap();
        peeked.is_ok()
    };
    let mut served = None;
    wait_until("somebody is served", || {
        served = waiting.iter().position(has_answer);
        served.is_some()
    });
    waiting.remove(served.unwrap())
}

/// When no descriptor is left, the HTTP library stops to accept for good, with an error or (when it lacks the second
/// descriptor of a connection) in a panic. Those who are connected are served on, and when there are descriptors again, so is
/// everybody.
#[test]
fn a_daemon_that_ran_out_of_descriptors_serves_again_when_there_are_some() {
    // Each connection takes two: one of the limits ends at the first of a pair, the other at the second.
    for files in [64, 65] {
        let daemon = FrugalDaemon::start(files);
        let mut before = TcpStream::connect(daemon.address).unwrap();
        before.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(is_well(&mut before));
        for _ in 0..2 {
            let told = |log: &str| log.matches("http.accept.failed").count() + log.matches("\"panic\"").count();
            let told_before = told(&daemon.log());
            let many: Vec<_> = (0..files)
                .map(|_| TcpStream::connect(daemon.address).unwrap())
                .collect();
            wait_until("descriptors are used up", || told_before < told(&daemon.log()));
            assert!(is_well(&mut before));
            drop(many);
            // Who still stood in the queue of the listener takes descriptors once more before it settles.
            wait_until("new connections are served, one after the other", || {
                (0..5).all(|_| is_served(daemon.address))
            });
        }
    }
}
