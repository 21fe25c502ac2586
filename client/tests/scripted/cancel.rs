//! Cancelling and deadlines, wherever a call may be.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use lockd_client::{Acquire, CallOptions, CancelToken, Client, Error, State};

use crate::support::{Recorder, Reply, Server, client_of, eventually, obliging, refusal};

/// Far longer than a cancelled call may take, far shorter than it would take uncancelled.
const PROMPT: Duration = Duration::from_secs(20);

/// Runs a call on a thread, cancels it once `begun` holds, and returns its error.
fn cancel_once(
    client: &Client,
    begun: impl Fn() -> bool,
    call: impl FnOnce(Client) -> Result<(), Error> + Send,
) -> Error {
    let token = CancelToken::new();
    let bound = client.with_options(CallOptions::new().cancel(token.clone()));
    thread::scope(|scope| {
        let running = scope.spawn(move || call(bound));
        eventually("the call has begun", begun);
        let cancelled_at = Instant::now();
        token.cancel();
        let error = running.join().unwrap().unwrap_err();
        assert!(
            cancelled_at.elapsed() < PROMPT,
            "{error} after {:?}",
            cancelled_at.elapsed()
        );
        error
    })
}

#[test]
fn a_waiting_acquire_is_cut_off_at_once_and_its_server_sees_it_go() {
    let (server, recorder) = (Server::start(|_| Reply::Silence), Recorder::shared());
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let error = cancel_once(
        &client,
        || server.seen().len() == 1,
        |client| client.acquire("k").map(drop),
    );
    assert!(matches!(error, Error::Cancelled), "{error}");
    eventually("the connection is gone", || server.hung_up() == 1);
    assert_eq!(recorder.one("client.acquire.context").level, log::Level::Error);
    assert!(recorder.has("client.http.error"));
}

#[test]
fn a_pause_between_two_attempts_is_cut_short() {
    let server = Server::start(|_| refusal(409, "waiting").header("Retry-After", "3600"));
    let recorder = Recorder::shared();
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let begun = || recorder.has("client.acquire.backoff");
    let error = cancel_once(&client, begun, |client| client.acquire("k").map(drop));
    assert!(matches!(error, Error::Cancelled), "{error}");
}

/// However the body is framed: one that ends with its connection once passed for complete when it had been cut off, because
/// the error of the cut looked like the end of the connection.
#[test]
fn reading_a_state_is_cut_off_in_the_middle_of_its_body() {
    for framing in [
        "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n",
        "Content-Length: 9\r\n\r\n{\"a\":",
        "\r\n{\"a\":",
    ] {
        let (half, listener) = (
            format!("HTTP/1.1 200 OK\r\n{framing}"),
            TcpListener::bind("127.0.0.1:0").unwrap(),
        );
        let url = format!("http://{}", listener.local_addr().unwrap());
        let recorder = Recorder::shared();
        let client = client_of(&[])
            .endpoint(url)
            .http_timeout(Duration::from_secs(600))
            .logger(recorder.clone())
            .build()
            .unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap())
                    .lines()
                    .map_while(Result::ok);
                assert!(lines.any(|line| line.is_empty()));
                stream.write_all(half.as_bytes()).unwrap();
                // Until the client goes away.
                let _ = lines.next();
            });
            let token = CancelToken::new();
            let bound = client.with_options(CallOptions::new().cancel(token.clone()));
            let answer = scope.spawn(move || bound.get_public("k").map(State::into_bytes));
            eventually("the answer has begun", || recorder.has("client.http.success"));
            token.cancel();
            match answer.join().unwrap() {
                Ok(read) => {
                    let error = read.unwrap_err();
                    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
                    assert!(inner.is_some_and(Error::is_cancelled), "{error}");
                }
                Err(error) => assert!(error.is_cancelled(), "{error}"),
            }
        });
    }
}

/// A listener that accepts nobody: once its queue is full, a connect hangs until it is cut off.
#[cfg(target_os = "linux")]
#[test]
fn a_connect_that_hangs_is_cut_off() {
    use socket2::{Domain, Socket, Type};
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    // The queue of length 0 holds one; the second one already waits for its handshake.
    let _first = std::net::TcpStream::connect(address).unwrap();
    let second = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
    assert!(second.is_err(), "the queue is not full");

    let recorder = Recorder::shared();
    let client = client_of(&[])
        .endpoint(address.to_string())
        .logger(recorder.clone())
        .build()
        .unwrap();
    let begun = || recorder.has("client.http.attempt");
    let error = cancel_once(&client, begun, |client| client.acquire("k").map(drop));
    assert!(matches!(error, Error::Cancelled), "{error}");
}

#[test]
fn nothing_is_sent_under_a_cancelled_token() {
    let server = Server::start(obliging);
    let client = client_of(&[&server]).build().unwrap();
    let token = CancelToken::new();
    token.cancel();
    let bound = client.with_options(CallOptions::new().cancel(token));
    assert!(bound.describe("k").unwrap_err().is_cancelled());
    assert!(bound.acquire(Acquire::key("k")).unwrap_err().is_cancelled());
    assert!(server.seen().is_empty());
}

/// The end of the caller's patience stops the walk: the next endpoint is not asked.
#[test]
fn a_deadline_ends_the_walk() {
    let (silent, second) = (Server::start(|_| Reply::Silence), Server::start(obliging));
    let client = client_of(&[&silent, &second]).build().unwrap();
    let bound = client.with_options(CallOptions::new().timeout(Duration::from_millis(100)));
    let error = bound.describe("k").unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded), "{error}");
    assert!(error.is_timeout());
    assert!(second.seen().is_empty());
}

/// A lease does not inherit the deadline under which it was acquired.
#[test]
fn a_lease_outlives_the_deadline_of_its_acquire() {
    let server = Server::start(obliging);
    let client = client_of(&[&server]).build().unwrap();
    let token = CancelToken::new();
    let lease = client
        .with_options(CallOptions::new().cancel(token.clone()))
        .acquire("k")
        .unwrap();
    token.cancel();
    lease.update("{}").unwrap();
    let bound = lease.with_options(CallOptions::new().cancel(token));
    assert!(bound.update("{}").unwrap_err().is_cancelled());
}
