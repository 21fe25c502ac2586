//! How a server learns what there is in a queue: by what it does itself, by its store's feed, and by polling. And what it
//! says of all that in its log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockd::store::{
    Batch, BodyId, BodyWriter, Capabilities, ChangeListener, Listed, RecordKey, Store, StoreError, Stored, Written,
};
use lockd::testing::{CaptureOptions, Entry, LogCapture};
use serde_json::{Value, json};

use super::fixture::{Backend, Place, TestServer};
use super::lockd_calls::wait_until;
use super::queue_calls::{
    Mode, Stream, assert_empty, dequeue_with, enqueue, queue_options, stats, take, until_some, wish, wish_waiting,
};

const POLL_BEGIN: &str = "queue.dispatcher.poll.begin";

/// Keeps what is logged under these names.
fn capture(names: &[&str]) -> Arc<LogCapture> {
    LogCapture::new(CaptureOptions {
        prefixes: names.iter().map(|name| (*name).to_owned()).collect(),
        ..CaptureOptions::default()
    })
}

/// How polls of a queue are set up for a test.
#[derive(Clone, Copy)]
struct Polls {
    feed: bool,
    interval: Duration,
    resilient: Duration,
}

fn serve(backend: &dyn Backend, place: &dyn Place, polls: Polls, log: &Arc<LogCapture>) -> TestServer {
    let mut options = queue_options(backend);
    let queue = &mut options.settings.queue;
    queue.watch_mem = polls.feed;
    queue.watch_disk = polls.feed;
    queue.poll_interval = polls.interval;
    queue.resilient_poll_interval = polls.resilient;
    options.logger = Some(log.clone());
    TestServer::start(place.store(), options)
}

/// LQ-69, LQ-70: an idle queue with a consumer is polled again and again, and never more often than the floor allows.
pub fn polls_of_an_idle_queue_keep_their_distance(backend: &dyn Backend) {
    let floor = Duration::from_millis(300);
    for feed in [true, false] {
        let log = capture(&[POLL_BEGIN]);
        let polls = Polls {
            feed,
            interval: floor,
            resilient: floor,
        };
        let server = serve(backend, &*backend.open(), polls, &log);
        enqueue(server.address, "q", b"x");
        take(server.address, "q").ack().expect(200);
        enqueue(server.address, "q", b"x");
        assert_eq!(log.len(), 0, "nobody waits");
        take(server.address, "q").ack().expect(200);
        let waiting = ["dequeue", "subscribe"].map(|endpoint| {
            let mut body = wish_waiting("q", 0);
            body["queue"] = json!(endpoint);
            Stream::request(server.address, endpoint, &body)
        });
        for queue in ["dequeue", "subscribe"] {
            let polls = || -> Vec<_> {
                let all = log.entries_since(0);
                let of_queue = all.into_iter().filter(|poll| poll.str_field("queue") == Some(queue));
                of_queue.collect()
            };
            let polls = until_some("polls come", || Some(polls()).filter(|polls| 4 <= polls.len()));
            assert_distances(&polls, floor);
        }
        drop(waiting);
        let line = log.lines_since(0).remove(0);
        assert!(
            line.contains("\"queue\":\"") && line.contains("\"namespace\":\"default\""),
            "{line}"
        );
    }
}

#[track_caller]
fn assert_distances(polls: &[Arc<Entry>], floor: Duration) {
    assert!(2 <= polls.len());
    for pair in polls.windows(2) {
        let distance = pair[1].at.duration_since(pair[0].at).unwrap();
        // The log is written a moment after the poll begins, and that moment is not always the same.
        assert!(floor <= distance + Duration::from_millis(100), "{distance:?}");
    }
}

/// LQ-70, step by step as the protocol describes it, with a feed and without, for a dequeue and for a subscription.
pub fn the_polling_interval_is_respected(backend: &dyn Backend) {
    let interval = Duration::from_secs(3);
    std::thread::scope(|scope| {
        for feed in [true, false] {
            for endpoint in ["dequeue", "subscribe"] {
                scope.spawn(move || respects_the_interval(backend, interval, feed, endpoint));
            }
        }
    });
}

fn respects_the_interval(backend: &dyn Backend, interval: Duration, feed: bool, endpoint: &'static str) {
    let log = capture(&["queue.dispatcher.poll", "storage.list_objects.begin"]);
    let polls = Polls {
        feed,
        interval,
        resilient: interval,
    };
    let server = serve(backend, &*backend.open(), polls, &log);
    let address = server.address;
    let receive = |before: Duration| {
        let began = Instant::now();
        let connection = Stream::request(address, endpoint, &wish_waiting("q", 5));
        std::thread::sleep(before);
        enqueue(address, "q", b"x");
        let message = if endpoint == "dequeue" {
            let mut connection = connection;
            let answer = connection.read_answer().expect(200);
            super::queue_calls::deliveries(address, &answer).remove(0)
        } else {
            Stream::begin(address, connection).unwrap().next().unwrap()
        };
        assert!(began.elapsed() < Duration::from_secs(12));
        message.ack().expect(200);
    };
    receive(Duration::from_millis(150));
    receive(interval / 3);
    let position_of_the_idle_part = log.len();
    let last_ack = std::time::SystemTime::now();
    let idle = Stream::request(address, endpoint, &wish_waiting("q", 0));
    std::thread::sleep(interval * 3 + Duration::from_secs(1));
    idle.abort();
    assert_empty(address, "q");
    let listed = log.entries_since(position_of_the_idle_part);
    let late = |entry: &&Arc<Entry>| last_ack + interval / 2 <= entry.at;
    let begun: Vec<_> = listed
        .iter()
        .filter(|entry| entry.message == POLL_BEGIN)
        .filter(late)
        .cloned()
        .collect();
    assert_distances(&begun, interval);
    assert!(listed.iter().all(|entry| entry.message != "storage.list_objects.begin"));
}

/// An enqueue makes nobody poll: not while nobody waits, and not for those who do where changes are heard of.
pub fn an_enqueue_makes_nobody_poll(backend: &dyn Backend) {
    let place = backend.open();
    let often = |feed| Polls {
        feed,
        interval: Duration::from_millis(25),
        resilient: Duration::from_secs(300),
    };
    for feed in [true, false] {
        // An earlier server has left two messages.
        let log = capture(&[POLL_BEGIN]);
        let earlier = serve(backend, &*place, often(feed), &log);
        let ids = [1, 2].map(|_| enqueue(earlier.address, "q", b"x"));
        drop(earlier);
        let log = capture(&[POLL_BEGIN]);
        let server = serve(backend, &*place, often(feed), &log);
        let mut taken: Vec<_> = ids.iter().map(|_| take(server.address, "q")).collect();
        taken.iter().for_each(|message| drop(message.ack().expect(200)));
        taken.sort_by_key(super::queue_calls::Message::id);
        assert_eq!(ids.to_vec(), [taken[0].id(), taken[1].id()]);
        let position = log.len();
        enqueue(server.address, "q", b"x");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(log.count_since(position), 0, "with a feed: {feed}");
        take(server.address, "q").ack().expect(200);
        // Somebody waits. Polls come without a feed alone.
        let position = log.len();
        let mut waiting = Stream::request(server.address, "dequeue", &wish_waiting("q", 5));
        wait_until("it waits", || stats(server.address, "q")["waiting_consumers"] == 1);
        std::thread::sleep(Duration::from_millis(100));
        enqueue(server.address, "q", b"x");
        waiting.read_answer().expect(200);
        let polls = log.count_since(position);
        let hears = feed && place.store().capabilities().feed;
        assert_eq!(polls == 0, hears, "{polls} polls, with a feed: {feed}");
    }
}

/// A store that promises a feed and reports nothing, as one whose feed has been lost.
struct Deaf(Arc<dyn Store>);

impl Store for Deaf {
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

    fn body_reader(&self, body: &BodyId) -> Result<Box<dyn std::io::Read + Send>, StoreError> {
        self.0.body_reader(body)
    }

    fn watch(&self, _: ChangeListener) -> bool {
        true
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            feed: true,
            ..self.0.capabilities()
        }
    }
}

/// LQ-71: what no feed reports is found by the resilient poll.
pub fn a_lost_feed_is_made_up_for_by_polling(backend: &dyn Backend) {
    let place = backend.open();
    let mut options = queue_options(backend);
    let queue = &mut options.settings.queue;
    queue.poll_interval = Duration::from_millis(50);
    queue.resilient_poll_interval = Duration::from_millis(200);
    let deaf = TestServer::start(Arc::new(Deaf(place.store())), options);
    let other = TestServer::start(place.store(), queue_options(backend));
    let mut stream = None;
    for number in 0..3 {
        let mut waiting = Stream::request(deaf.address, "dequeue", &wish_waiting("q", 20));
        wait_until("it waits", || stats(deaf.address, "q")["waiting_consumers"] == 1);
        enqueue(other.address, "q", format!("{number}").as_bytes());
        waiting.read_answer().expect(200);
        enqueue(other.address, "s", b"for the stream");
        let stream =
            stream.get_or_insert_with(|| Stream::open(deaf.address, "subscribe", &wish_waiting("s", 20)).unwrap());
        assert_eq!(stream.next().unwrap().payload, b"for the stream");
    }
}

/// LQ-72.
pub fn the_log_tells_the_story_of_a_message(backend: &dyn Backend) {
    let log = capture(&["queue."]);
    let mut options = queue_options(backend);
    options.logger = Some(log.clone());
    let server = TestServer::start(backend.open().store(), options);
    let address = server.address;
    enqueue(address, "q", b"x");
    let mut body = wish("q");
    body["txn_id"] = json!("d4k7q2m0h5r8e1t6n9bg");
    let message = dequeue_with(address, "dequeue", &body).unwrap().remove(0);
    let etag = message.extend(40).expect(200).field("meta_etag");
    message.nack(&json!({"meta_etag": etag})).expect(200);
    let mut stream = Stream::open(address, "subscribe", &wish_waiting("q", -1)).unwrap();
    let again = stream.next().unwrap();
    again.ack().expect(200);
    assert_eq!(again.ack().status, 404);
    assert!(stream.next().is_none());
    assert_empty(address, "q");
    let level = |name: &str| {
        let entry = until_some(name, || {
            let entries = log.entries_since(0);
            entries.into_iter().find(|entry| entry.message == name)
        });
        entry.level.unwrap()
    };
    for (name, expected) in [
        ("queue.dispatcher.config", log::Level::Info),
        ("queue.dispatcher.watch_status", log::Level::Info),
        ("queue.enqueue.success", log::Level::Debug),
        ("queue.consumer.connect", log::Level::Info),
        ("queue.consumer.disconnect", log::Level::Info),
        ("queue.dispatcher.waiter_added", log::Level::Debug),
        ("queue.dispatcher.deliver.to_waiter", log::Level::Debug),
        ("queue.delivery.sent", log::Level::Info),
        ("queue.extend.success", log::Level::Debug),
        ("queue.nack.success", log::Level::Debug),
        ("queue.subscribe.connect", log::Level::Info),
        ("queue.subscribe.disconnect", log::Level::Info),
        ("queue.ack.success", log::Level::Debug),
        ("queue.ack.error", log::Level::Warn),
    ] {
        assert_eq!(level(name), expected, "{name}");
    }
    let fields = |name: &str| -> Value {
        let lines = log.lines_since(0);
        let line = lines.iter().find(|line| line.contains(&format!("\"msg\":\"{name}\"")));
        serde_json::from_str(line.unwrap()).unwrap()
    };
    let sent = fields("queue.delivery.sent");
    assert_eq!(sent["mid"], json!(message.id()));
    assert_eq!(sent["txn_id"], json!("d4k7q2m0h5r8e1t6n9bg"));
    assert_eq!(
        (&sent["attempts"], &sent["max_attempts"], &sent["fencing"]),
        (&json!(1), &json!(5), &json!(1))
    );
    assert_eq!(sent["visibility_timeout_seconds"], json!(30));
    let acked = fields("queue.ack.success");
    assert_eq!(
        (&acked["mid"], &acked["txn_id"]),
        (&json!(message.id()), &again.meta["txn_id"])
    );
    let config = fields("queue.dispatcher.config");
    for name in [
        "max_consumers",
        "page_size",
        "poll_interval",
        "resilient_poll_interval",
        "watch_mode",
    ] {
        assert!(config.get(name).is_some(), "{name}");
    }
    let hears = backend.queue_mode() == Mode::Feed && server.server.store().capabilities().feed;
    assert_eq!(fields("queue.dispatcher.watch_status")["enabled"], json!(hears));
}
