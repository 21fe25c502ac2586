//! Subscriptions and watches: answers that stay open.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fixture::Backend;
use super::http::Connection;
use super::lockd_calls::wait_until;
use super::queue_calls::{
    Stream, assert_empty, enqueue, post, queue_server, queue_server_with, stats, take, wish, wish_waiting,
};

fn subscription(wait: i64, prefetch: i64) -> Value {
    let mut body = wish_waiting("q", wait);
    body["page_size"] = json!(prefetch);
    body
}

/// LQ-28: there is no head before there is a message.
pub fn a_subscription_says_nothing_before_its_first_message(backend: &dyn Backend) {
    for endpoint in ["subscribe", "subscribeWithState"] {
        let server = queue_server(backend);
        let Err(refused) = Stream::open(server.address, endpoint, &subscription(-1, 1)) else {
            panic!("the queue is empty")
        };
        assert_eq!(refused.error(), (409, "waiting".to_owned()));
        let mut waiting = Stream::request(server.address, endpoint, &subscription(0, 1));
        wait_until("it waits", || stats(server.address, "q")["waiting_consumers"] == 1);
        assert!(waiting.is_silent_for(Duration::from_millis(50)));
        enqueue(server.address, "q", b"x");
        let mut stream = Stream::begin(server.address, waiting).unwrap();
        stream.next().unwrap().ack().expect(200);
    }
}

/// LQ-29, LQ-30: each message is here before the next one exists, whatever its last bytes are.
pub fn every_message_of_a_stream_is_here_before_the_next_one_exists(backend: &dyn Backend) {
    let server = queue_server(backend);
    enqueue(server.address, "q", b"first");
    let mut stream = Stream::open(server.address, "subscribe", &subscription(5, 1)).unwrap();
    assert_eq!(stream.next().unwrap().payload, b"first");
    for payload in [
        &b""[..],
        b"\r",
        b"\r\n",
        b"\r\n--",
        b"\r\n--x--\r\n",
        &[b'\r'; 5_000],
        &[b'-'; 200_000],
    ] {
        enqueue(server.address, "q", payload);
        let message = stream.next().unwrap();
        assert!(message.payload == payload);
        assert_eq!(message.files, None);
        message.ack().expect(200);
    }
}

/// LQ-31.
pub fn a_stream_outlives_its_waiting_time(backend: &dyn Backend) {
    let server = queue_server(backend);
    enqueue(server.address, "q", b"1");
    let mut stream = Stream::open(server.address, "subscribe", &subscription(1, 1)).unwrap();
    stream.next().unwrap().ack().expect(200);
    assert!(stream.is_silent_for(Duration::from_millis(2_500)));
    enqueue(server.address, "q", b"2");
    assert_eq!(stream.next().unwrap().payload, b"2");
}

/// LQ-32, LQ-33.
pub fn a_stream_without_patience_ends_with_the_closing_line_when_nothing_is_left(backend: &dyn Backend) {
    let server = queue_server(backend);
    for number in 0..10 {
        enqueue(server.address, "q", format!("{number}").as_bytes());
    }
    let mut stream = Stream::open(server.address, "subscribe", &subscription(-1, 4)).unwrap();
    for number in 0..10 {
        let message = stream.next().unwrap();
        assert_eq!(message.payload, format!("{number}").as_bytes());
        message.ack().expect(200);
    }
    assert!(stream.next().is_none());
    assert_empty(server.address, "q");
}

/// LQ-34.
pub fn a_stream_whose_client_has_gone_leases_nothing_more(backend: &dyn Backend) {
    let server = queue_server(backend);
    enqueue(server.address, "q", b"1");
    let mut stream = Stream::open(server.address, "subscribe", &subscription(0, 1)).unwrap();
    let first = stream.next().unwrap();
    stream.abort();
    enqueue(server.address, "q", b"2");
    let second = take(server.address, "q");
    assert_eq!((second.payload.as_slice(), second.number("attempts")), (&b"2"[..], 1));
    // What it had got is still its own.
    assert_empty(server.address, "q");
    first.ack().expect(200);
}

/// LQ-35.
pub fn two_subscribers_share_a_queue_that_was_full_before_they_came(backend: &dyn Backend) {
    let server = queue_server(backend);
    for number in 0..8 {
        enqueue(server.address, "q", format!("{number}").as_bytes());
    }
    let address = server.address;
    let total = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let total = total.clone();
            let connection = Stream::request(address, "subscribe", &subscription(3, 1));
            std::thread::spawn(move || {
                let mut stream = Stream::begin(address, connection).unwrap();
                let mut handled = 0;
                while total.load(std::sync::atomic::Ordering::SeqCst) < 8 {
                    if stream.is_silent_for(Duration::from_millis(20)) {
                        continue;
                    }
                    let message = stream.next().unwrap();
                    std::thread::sleep(Duration::from_millis(5));
                    message.ack().expect(200);
                    handled += 1;
                    total.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
                handled
            })
        })
        .collect();
    for worker in workers {
        assert!(1 <= worker.join().unwrap());
    }
}

/// A subscriber that has as much as it asked for leaves the rest to others for a while, also to those who come later.
pub fn a_subscriber_with_its_hands_full_leaves_the_rest_to_others(backend: &dyn Backend) {
    let server = queue_server(backend);
    for _ in 0..40 {
        enqueue(server.address, "q", b"x");
    }
    let mut early = Stream::open(server.address, "subscribe", &subscription(5, 1)).unwrap();
    early.next().unwrap();
    // The others come to it one by one, over two seconds.
    std::thread::sleep(Duration::from_millis(150));
    let mut late = Stream::open(server.address, "subscribe", &subscription(5, 1)).unwrap();
    for _ in 0..5 {
        late.next().unwrap().ack().expect(200);
    }
    let left = stats(server.address, "q")["pending_candidates"].as_i64().unwrap();
    assert!(1 <= left, "the first one got all of them");
}

/// A subscriber that reads nothing holds up nobody, and what was leased for it and not written comes back when it goes.
pub fn a_subscriber_that_reads_nothing_holds_nobody_up(backend: &dyn Backend) {
    let server = queue_server(backend);
    // More than the buffers of a socket hold.
    let large = vec![b'x'; 8 * 1024 * 1024];
    for _ in 0..4 {
        enqueue(server.address, "q", &large);
    }
    let slow = Stream::request(server.address, "subscribe", &subscription(0, 2));
    wait_until("two are leased", || {
        stats(server.address, "q")["pending_candidates"] == 2
    });
    let mut quick = Stream::open(server.address, "subscribe", &subscription(0, 1)).unwrap();
    let mut got: Vec<_> = (0..2).map(|_| quick.next().unwrap()).collect();
    got.iter().for_each(|message| drop(message.ack().expect(200)));
    slow.abort();
    // The second one was never written; it may be that the first one was not, either.
    got.push(quick.next().unwrap());
    assert_eq!(got[2].number("attempts"), 2);
}

/// LQ-74, LQ-75 and the drain of streams: they end with the closing line at once, and holders may finish.
pub fn a_drain_ends_streams_and_lets_holders_finish(backend: &dyn Backend) {
    let server = queue_server_with(backend, |options| {
        options.close = options
            .close
            .drain_leases(Duration::from_secs(20))
            .shutdown_timeout(Duration::from_secs(30));
    });
    let address = server.address;
    for number in 0..4 {
        enqueue(address, "q", format!("{number}").as_bytes());
    }
    // A lock keeps the drain open.
    let lock = super::lockd_calls::hold(address, "lock");
    let mut stream = Stream::open(address, "subscribe", &subscription(5, 4)).unwrap();
    let held: Vec<_> = (0..4).map(|_| stream.next().unwrap()).collect();
    let parked = Stream::request(address, "dequeue", &wish_waiting("q", 0));
    let idle = Stream::request(address, "subscribe", &wish_waiting("q", 0));
    wait_until("all wait", || stats(address, "q")["waiting_consumers"] == 3);
    let stopping = {
        let server = server.server.clone();
        std::thread::spawn(move || server.shutdown())
    };
    assert!(stream.next().is_none());
    for mut refused in [parked, idle] {
        let answer = refused.read_answer();
        assert_eq!(answer.error(), (503, "shutdown_draining".to_owned()));
    }
    for endpoint in ["dequeue", "dequeueWithState", "subscribe", "subscribeWithState"] {
        let answer = post(address, endpoint, &wish("q"));
        assert_eq!(answer.error(), (503, "shutdown_draining".to_owned()));
        assert_eq!(answer.header("Shutdown-Imminent"), Some("true"));
        assert!(answer.header("Retry-After").is_some());
    }
    let answer = super::queue_calls::enqueue_with(address, &[], &json!({"queue": "q"}), b"x");
    assert_eq!(answer.error(), (503, "shutdown_draining".to_owned()));
    held[0].ack().expect(200);
    held[1].nack(&json!({})).expect(200);
    held[2].extend(60).expect(200);
    assert_eq!(stats(address, "q")["available"], true);
    lock.release().expect(200);
    stopping.join().unwrap();
}

/// An event of a watch.
#[derive(Debug, PartialEq)]
struct Event {
    id: String,
    data: Value,
}

/// A watch under way.
struct Watching {
    connection: Connection,
    arrived: String,
}

impl Watching {
    fn open(address: std::net::SocketAddr, queue: &str) -> Self {
        let mut connection = Stream::request(address, "watch", &json!({"queue": queue}));
        let head = connection.try_read_head().unwrap().expect(200);
        assert_eq!(head.header("Content-Type"), Some("text/event-stream"));
        assert_eq!(head.header("Cache-Control"), Some("no-cache"));
        assert_eq!(head.header("Connection"), Some("keep-alive"));
        assert_eq!(head.header("X-Accel-Buffering"), Some("no"));
        assert!(head.is_chunked());
        Self {
            connection,
            arrived: String::new(),
        }
    }

    /// The next block, up to its empty line; `None` at the end.
    fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.arrived.split_once("\n\n") {
                let block = block.to_owned();
                self.arrived = rest.to_owned();
                return Some(block);
            }
            let chunk = self.connection.try_read_chunk().expect("the watch goes on")?;
            self.arrived.push_str(&String::from_utf8(chunk).unwrap());
        }
    }

    #[track_caller]
    fn event(&mut self) -> Event {
        let block = self.block().expect("an event");
        let lines: Vec<&str> = block.split('\n').collect();
        assert_eq!(lines.len(), 3, "{block:?}");
        assert!(!block.contains('\r'));
        assert_eq!(lines[1], "event: queue_watch");
        Event {
            id: lines[0].strip_prefix("id: ").expect("an id").to_owned(),
            data: serde_json::from_str(lines[2].strip_prefix("data: ").expect("data")).unwrap(),
        }
    }
}

/// LQ-67 but for the heartbeat, LQ-68, LQ-66.
pub fn a_watch_tells_of_every_change_of_the_head_and_changes_nothing(backend: &dyn Backend) {
    let server = queue_server(backend);
    let mut watch = Watching::open(server.address, "Q");
    let first = watch.event();
    assert_eq!((first.id.as_str(), &first.data["available"]), ("1", &json!(false)));
    assert_eq!(first.data["queue"], "q");
    assert_eq!(first.data.get("head_message_id"), None);
    assert!(first.data["changed_at_unix"].is_i64() && first.data["correlation_id"].is_string());
    let id = enqueue(server.address, "q", b"1");
    let second = watch.event();
    assert_eq!((second.id.as_str(), &second.data["available"]), ("2", &json!(true)));
    assert_eq!(second.data["head_message_id"], json!(id));
    // Another message behind it is no news.
    enqueue(server.address, "q", b"2");
    assert!(watch.connection.is_silent_for(Duration::from_millis(100)));
    let message = take(server.address, "q");
    assert_eq!(message.number("attempts"), 1);
    let third = watch.event();
    assert_eq!((third.id.as_str(), &third.data["available"]), ("3", &json!(true)));
    assert_ne!(third.data["head_message_id"], json!(id));
    take(server.address, "q").ack().expect(200);
    assert_eq!(watch.event().data["available"], false);
    // A second watch knows where things stand, and a message that comes back is news.
    let mut other = Watching::open(server.address, "q");
    assert_eq!(other.event().data["available"], false);
    message.nack(&json!({"delay_seconds": 1})).expect(200);
    let began = Instant::now();
    assert_eq!(other.event().data["head_message_id"], json!(id));
    assert!(began.elapsed() < Duration::from_secs(15));
    other.connection.abort();
}

/// A watch ends with the server, and after its own client.
pub fn a_watch_ends_when_the_server_stops(backend: &dyn Backend) {
    let server = queue_server(backend);
    let mut watch = Watching::open(server.address, "q");
    watch.event();
    let began = Instant::now();
    server.server.shutdown();
    assert_eq!(watch.block(), None);
    assert!(began.elapsed() < Duration::from_secs(4));
}
