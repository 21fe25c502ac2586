//! Raw bytes on a connection to a running server: whatever they are, the next client is served, nothing panics, and the
//! connection ends when its client has closed it.
//!
//! Two habits of the HTTP library cost a thread for good (see the changelog): a version above 1.1, and a length that nobody
//! can mean. Inputs with those are passed over, or the fuzzer would soon run out of threads.

#![no_main]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use libfuzzer_sys::{Corpus, fuzz_target};
use lockd::logging;
use lockd::net::sever::ListenerAddr;
use lockd::server::{Parts, Server};
use lockd::settings::{Listen, Settings};

/// Far longer than a sound server takes. Bodies are small here, and nobody who has closed its side waits for a lease.
const PATIENCE: Duration = Duration::from_secs(20);
const HEALTH_EVERY: u64 = 16;

static SERVER: OnceLock<Server> = OnceLock::new();
static RUNS: AtomicU64 = AtomicU64::new(0);

fuzz_target!(
    init: {
        let ours = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // The library's threads panic over a connection that was reset before it was looked at.
            let is_theirs = panic.location().is_some_and(|place| place.file().contains("tiny_http"));
            if !is_theirs {
                ours(panic);
            }
        }));
    },
    |data: &[u8]| -> Corpus {
        if is_passed_over(data) {
            return Corpus::Reject;
        }
        let address = address();
        let mut connection = connect(address);
        // The server may have closed it already.
        let _ = connection.write_all(data);
        let _ = connection.shutdown(Shutdown::Write);
        assert!(ends(connection), "the connection does not end");
        if RUNS.fetch_add(1, Ordering::Relaxed) % HEALTH_EVERY == 0 {
            let mut healthy = connect(address);
            healthy.write_all(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            healthy.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        Corpus::Keep
    }
);

fn is_passed_over(data: &[u8]) -> bool {
    let speaks_later_version = data.windows(7).any(|part| part == b"HTTP/2." || part == b"HTTP/3.");
    let has_long_number = data.windows(10).any(|part| part.iter().all(u8::is_ascii_digit));
    speaks_later_version || has_long_number
}

fn address() -> SocketAddr {
    let server = SERVER.get_or_init(|| {
        let settings = Settings {
            listen: Listen::loopback_any_port(),
            workers: 4,
            json_bytes_max: 64 * 1024,
            // A client that has gone is noticed only after seconds: nobody waits here.
            acquire_block_max: Duration::ZERO,
            ..Settings::default()
        };
        Server::start(Parts::new(settings, logging::off())).unwrap()
    });
    let ListenerAddr::Tcp(address) = *server.address() else {
        unreachable!("TCP was asked for")
    };
    address
}

fn connect(address: SocketAddr) -> TcpStream {
    let connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.set_write_timeout(Some(PATIENCE)).unwrap();
    connection
}

/// Reads until the server closes. A reset is an end as well.
fn ends(mut connection: TcpStream) -> bool {
    let mut answers = vec![0; 4096];
    loop {
        match connection.read(&mut answers) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(cause) => {
                return !matches!(
                    cause.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
            }
        }
    }
}
