//! What calls cost in requests to the store, which is what its provider bills. The table is printed with `--nocapture`.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::DEMANDS;
use crate::place::{BucketPlace, retried};
use crate::proxy::{METHODS, Proxy, Rates};
use crate::suite::fixture::{ServerOptions, TestServer};
use crate::suite::lockd_calls::{get_public, hold, hold_in};
use crate::suite::queue_calls::{dequeue_with, enqueue, take, take_by, wish_waiting};
use crate::suite::scene::txn_id;

/// Counts what each call costs.
struct Bill {
    proxy: Proxy,
    last: [u64; METHODS.len()],
    table: String,
}

impl Bill {
    /// What was spent since the last call. `most`: everything but deletions, which are free and happen at leisure.
    #[track_caller]
    fn entry(&mut self, what: &str, most: u64) {
        // What is done after the answer belongs to the call as well.
        thread::sleep(Duration::from_millis(300));
        let now = self.proxy.by_method();
        let spent: Vec<u64> = now.iter().zip(self.last).map(|(now, last)| now - last).collect();
        let texts: Vec<String> = (METHODS.iter().zip(&spent).filter(|(_, count)| 0 < **count))
            .map(|(method, count)| format!("{count} {method}"))
            .collect();
        self.table += &format!("{what:<52} {}\n", texts.join(", "));
        self.last = now;
        let paid: u64 = spent[..METHODS.len() - 1].iter().sum();
        assert!(paid <= most, "{what} costs {texts:?}\n{}", self.table);
    }
}

fn server_and_bill(place: &BucketPlace, change: impl FnOnce(&mut ServerOptions)) -> (TestServer, Bill) {
    let proxy = Proxy::start(place.upstream(), Rates::NONE, 0, &[]);
    let mut options = ServerOptions::default();
    change(&mut options);
    let server = TestServer::start(retried(place.engine_behind(proxy.address()).unwrap()), options);
    let mut bill = Bill {
        proxy,
        last: [0; METHODS.len()],
        table: String::new(),
    };
    bill.entry("start", 40);
    (server, bill)
}

#[test]
fn every_call_costs_few_requests() {
    let place = BucketPlace::new(DEMANDS, false);
    let (server, mut bill) = server_and_bill(&place, |_| ());
    let address = server.address;
    let small = "1";
    let large = format!("\"{}\"", "x".repeat(10_000));

    let held = hold(address, "k");
    bill.entry("acquire of a key that never was", 4);
    held.update(small).expect(200);
    bill.entry("update, up to 4 KiB", 1);
    held.keepalive(30).expect(200);
    bill.entry("keepalive", 1);
    held.get().expect(200);
    bill.entry("get by the holder, up to 4 KiB", 1);
    held.release().expect(200);
    bill.entry("release", 1);
    let held = hold(address, "k");
    bill.entry("acquire", 3);
    held.update(&large).expect(200);
    bill.entry("update, more than 4 KiB", 2);
    held.release().expect(200);
    bill.entry("release", 1);
    get_public(address, "k").expect(200);
    bill.entry("get, public, more than 4 KiB", 2);

    let id = txn_id(1);
    let [one, two] = ["t/1", "t/2"].map(|key| hold_in(address, key, &id));
    bill.entry("two acquires with a transaction id", 14);
    one.update(small).expect(200);
    two.update(small).expect(200);
    bill.entry("two updates with it", 10);
    one.release().expect(200);
    bill.entry("release of both", 16);

    enqueue(address, "q", b"x");
    bill.entry("enqueue, up to 4 KiB", 1);
    take(address, "q").ack().expect(200);
    bill.entry("the first dequeue of a queue, and ack", 5);
    enqueue(address, "q", b"x");
    bill.entry("enqueue, up to 4 KiB", 1);
    let message = take(address, "q");
    bill.entry("dequeue", 2);
    message.extend(30).expect(200);
    bill.entry("extend", 1);
    // Its mark has changed.
    let mut message = message;
    message.meta["meta_etag"] = json!("");
    message.ack().expect(200);
    bill.entry("ack", 1);
    enqueue(address, "q", &[0; 10_000]);
    bill.entry("enqueue, more than 4 KiB", 2);
    let message = take(address, "q");
    bill.entry("dequeue of that", 3);
    message.nack(&json!({})).expect(200);
    bill.entry("nack", 1);
    take(address, "q").ack().expect(200);
    bill.entry("dequeue and ack of that", 4);
    assert!(dequeue_with(address, "dequeue", &wish_waiting("q", -1)).is_err());
    bill.entry("dequeue from an empty queue, without waiting", 1);
    eprintln!("requests to the store\n{}", bill.table);
}

/// The default poll floor, and what it lets through; however many messages are leased meanwhile, they are not read again
/// and again.
#[test]
fn waiting_costs_one_listing_per_poll() {
    let place = BucketPlace::new(DEMANDS, false);
    let (server, mut bill) = server_and_bill(&place, |options| {
        options.settings.queue.poll_jitter = Duration::ZERO;
    });
    let address = server.address;
    let floor = server_floor();
    for queue in ["empty", "busy"] {
        let messages = if queue == "busy" { 20 } else { 0 };
        for _ in 0..messages {
            enqueue(address, queue, b"x");
        }
        for _ in 0..messages {
            let mut wish = wish_waiting(queue, 10);
            wish["visibility_timeout_seconds"] = json!(600);
            take_by(address, "dequeue", &wish);
        }
        bill.entry(&format!("({messages} messages are leased)"), 4 * messages + 1);
        let began = Instant::now();
        let waited = dequeue_with(address, "dequeue", &wish_waiting(queue, 10));
        assert!(waited.is_err());
        let polls = 2 + began.elapsed().as_millis().div_ceil(floor.as_millis()) as u64;
        // Each of them is looked at once.
        bill.entry(
            &format!("10 s of waiting beside {messages} leased messages"),
            polls + messages,
        );
    }
    eprintln!("requests to the store, poll floor {floor:?}\n{}", bill.table);
}

/// Nobody asks for anything: what the sweeps cost.
#[test]
fn an_idle_server_costs_two_listings_per_sweep() {
    let place = BucketPlace::new(DEMANDS, false);
    let sweep = Duration::from_secs(2);
    let (server, mut bill) = server_and_bill(&place, |options| options.settings.sweeper_interval = sweep);
    let began = Instant::now();
    thread::sleep(5 * sweep);
    let sweeps = 1 + began.elapsed().as_millis().div_ceil(sweep.as_millis()) as u64;
    bill.entry("an idle server for five sweeps", 2 * sweeps);
    eprintln!("requests to the store\n{}", bill.table);
    drop(server);
}

fn server_floor() -> Duration {
    ServerOptions::default().settings.queue.poll_interval
}
