//! Queues at several servers over one store, wherever these run, and when one of them crashes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lockd::testing::shared;
use lockd_client::{Consumer, Dequeue, Wait};
use parking_lot::Mutex;
use serde_json::json;

use super::fixture::Backend;
use super::lockd_calls::wait_until;
use super::node::{Node, client_of};
use super::queue_calls::{assert_empty, enqueue, stats, take, take_by, wish_waiting};

fn start_two(backend: &dyn Backend) -> [Node; 2] {
    let place = backend.open();
    [(); 2].map(|()| Node::start(&*place))
}

/// LQ-55.
pub fn a_message_is_taken_at_one_server_and_finished_at_another(backend: &dyn Backend) {
    let _turn = shared();
    let nodes = start_two(backend);
    let [a, b] = nodes.each_ref().map(Node::address);
    for round in 0..5 {
        let id = enqueue(a, "q", b"x");
        let message = take(b, "q");
        assert_eq!((message.id(), message.number("attempts")), (id, 1), "{round}");
        assert_empty(a, "q");
        message.at([a, b][round % 2]).ack().expect(200);
        assert_empty(a, "q");
        assert_empty(b, "q");
    }
}

/// LQ-18: who waits at one server gets what another one takes in, by the report of the store or at the poll floor.
pub fn a_waiting_consumer_gets_what_another_server_takes_in(backend: &dyn Backend) {
    let _turn = shared();
    let nodes = start_two(backend);
    let [a, b] = nodes.each_ref().map(Node::address);
    for _ in 0..3 {
        let waiting = thread::spawn(move || take_by(b, "dequeue", &wish_waiting("q", 20)));
        wait_until("it waits", || stats(b, "q")["waiting_consumers"] == 1);
        enqueue(a, "q", b"x");
        waiting.join().unwrap().ack().expect(200);
    }
}

/// LQ-54. What was delivered and not finished comes again when its time is over, at another server.
pub fn messages_survive_the_crash_of_the_server_that_delivered_them(backend: &dyn Backend) {
    let _turn = shared();
    let [a, b] = start_two(backend);
    let all: BTreeSet<String> = (0..10).map(|_| enqueue(a.address(), "q", b"x")).collect();
    let brief = json!({"queue": "q", "owner": "brief", "visibility_timeout_seconds": 2, "wait_seconds": 10});
    let taken = take_by(a.address(), "dequeue", &brief);
    a.crash();
    let mut again = BTreeSet::new();
    while again.len() < all.len() {
        let message = take(b.address(), "q");
        if message.id() == taken.id() {
            assert_eq!(message.number("attempts"), 2);
        }
        assert!(again.insert(message.id()), "an acknowledged message came again");
        message.ack().expect(200);
    }
    assert_eq!(again, all);
    assert_empty(b.address(), "q");
}

/// At least once: nothing is lost that was enqueued, and consumers go on at the server that is left.
pub fn consumers_move_on_when_their_server_crashes(backend: &dyn Backend) {
    const MESSAGES: usize = 60;
    let _turn = shared();
    let [first, second] = start_two(backend);
    let both = client_of([first.url(), second.url()], |client| client.endpoint_shuffle(false));
    let handled = Arc::new(Mutex::new(BTreeSet::<String>::new()));
    let noted = Arc::clone(&handled);
    let request = Dequeue::from_queue("moving")
        .visibility(Duration::from_secs(4))
        .wait(Wait::UpTo(Duration::from_secs(2)));
    let consumer = Consumer::new(request, move |message| {
        let text = String::from_utf8(message.bytes()?)?;
        noted.lock().insert(text);
        message.ack()?;
        Ok(())
    });
    let running = both.start_consumers([consumer.workers(3)]).unwrap();
    for n in 0..MESSAGES {
        second.client().enqueue("moving", format!("{n}")).unwrap();
        if n == MESSAGES / 2 {
            wait_until("some are handled", || 5 <= handled.lock().len());
            first.crash();
        }
    }
    wait_until("everything is handled", || handled.lock().len() == MESSAGES);
    running.stop();
    running.wait().unwrap();
}
