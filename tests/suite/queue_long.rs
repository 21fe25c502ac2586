//! Queues under more load and for longer than a plain run of the suites has time for: with `LOCKD_LQ_EXTENDED=1`.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::fixture::{Backend, TestServer};
use super::http::{Connection, chunked};
use super::process::Daemon;
use super::queue_calls::{
    Stream, assert_empty, dequeue_with, enqueue, enqueue_body, queue_options, queue_server, take, wish_waiting,
};

/// LQ-4: a payload of 64 MiB goes in without an announced length and comes out as it was.
pub fn a_payload_of_64_mib_comes_back_whole(backend: &dyn Backend) {
    let server = queue_server(backend);
    let payload: Vec<u8> = (0..64 * 1024 * 1024_u32).map(|at| (at ^ (at >> 9)) as u8).collect();
    let mut connection = Connection::open(server.address);
    connection.send(
        b"POST /v1/queue/enqueue HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\
          Content-Type: multipart/related; boundary=b\r\n\r\n",
    );
    connection.send(&chunked(&enqueue_body("b", "{\"queue\":\"q\"}", &payload), 100_000));
    let answer = connection.read_answer().expect(200);
    assert_eq!(answer.field("payload_bytes"), json!(payload.len()));
    let message = take(server.address, "q");
    assert!(message.payload == payload);
    message.ack().expect(200);
}

/// LQ-4: the server holds a small part of a payload at a time. In memory, which holds all of it, there is nothing to prove.
pub fn a_payload_streams_through_a_server_that_has_little_memory(backend: &dyn Backend) {
    const MIB: usize = 1024 * 1024;
    if backend.name() == "mem" {
        return;
    }
    let place = backend.open();
    let (daemon, address) = Daemon::on_tcp(&*place);
    let before = daemon.peak_resident_kib();
    let mut connection = Connection::open(address);
    connection.send(
        b"POST /v1/queue/enqueue HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\
          Content-Type: multipart/related; boundary=b\r\n\r\n",
    );
    let frame = enqueue_body("b", "{\"queue\":\"q\"}", b"");
    let (head, tail) = frame.split_at(frame.len() - "\r\n--b--\r\n".len());
    let mut send = |bytes: &[u8]| {
        connection.send(format!("{:x}\r\n", bytes.len()).as_bytes());
        connection.send(bytes);
        connection.send(b"\r\n");
    };
    send(head);
    for number in 0..256 {
        send(&vec![number as u8; MIB]);
    }
    send(tail);
    connection.send(b"0\r\n\r\n");
    let answer = connection.read_answer().expect(200);
    assert_eq!(answer.field("payload_bytes"), json!(256 * MIB));
    let message = take(address, "q");
    assert!(
        message
            .payload
            .chunks(MIB)
            .enumerate()
            .all(|(number, mib)| mib == vec![number as u8; MIB])
    );
    message.ack().expect(200);
    let more = daemon.peak_resident_kib() - before;
    assert!(more < 40 * 1024, "{more} KiB more than at first");
}

/// LQ-67: somebody who only listens hears that the connection is there.
pub fn a_watch_is_kept_alive(backend: &dyn Backend) {
    let server = queue_server(backend);
    let mut watch = Stream::request(server.address, "watch", &json!({"queue": "q"}));
    watch.try_read_head().unwrap().expect(200);
    let first = watch.try_read_chunk().unwrap().unwrap();
    assert!(first.starts_with(b"id: 1\n"));
    for _ in 0..2 {
        let began = Instant::now();
        assert_eq!(watch.try_read_chunk().unwrap().unwrap(), b": keepalive\n\n");
        assert!(Duration::from_millis(19_500) <= began.elapsed());
    }
}

/// LQ-55: what one server takes in, the other gives out, once.
pub fn a_thousand_messages_pass_from_server_to_server_once(backend: &dyn Backend) {
    shared_out(backend, 2, 4, 4, 250);
}

/// Producers and consumers at one server.
pub fn a_crowd_loses_nothing_and_gets_nothing_twice(backend: &dyn Backend) {
    shared_out(backend, 1, 12, 12, 20);
}

/// Producers and consumers at three servers, some of the consumers with subscriptions.
pub fn a_crowd_at_three_servers_loses_nothing_and_gets_nothing_twice(backend: &dyn Backend) {
    shared_out(backend, 3, 6, 9, 50);
}

/// Everybody enqueues and consumes at the servers in turn; every message is acknowledged once, at its first delivery.
fn shared_out(backend: &dyn Backend, servers: usize, producers: usize, consumers: usize, each: usize) {
    let place = backend.open();
    let servers: Vec<_> = (0..servers)
        .map(|_| {
            let mut options = queue_options(backend);
            options.settings.queue.poll_interval = Duration::from_millis(100);
            TestServer::start(place.store(), options)
        })
        .collect();
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let total = producers * each;
    let acked = Mutex::new(BTreeMap::new());
    let count = AtomicUsize::new(0);
    let sent = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for producer in 0..producers {
            let (addresses, sent) = (&addresses, &sent);
            scope.spawn(move || {
                for number in 0..each {
                    let address = addresses[(producer + number) % addresses.len()];
                    let id = enqueue(address, "q", format!("{producer} {number}").as_bytes());
                    sent.lock().unwrap().push(id);
                }
            });
        }
        for consumer in 0..consumers {
            let (addresses, acked, count) = (&addresses, &acked, &count);
            scope.spawn(move || {
                let address = addresses[consumer % addresses.len()];
                let handle = |message: &super::queue_calls::Message| {
                    assert_eq!(message.number("attempts"), 1);
                    let other = addresses[(consumer + 1) % addresses.len()];
                    message.at(other).ack().expect(200);
                    *acked.lock().unwrap().entry(message.id()).or_insert(0) += 1;
                    count.fetch_add(1, Ordering::SeqCst);
                };
                while count.load(Ordering::SeqCst) < total {
                    let mut body = wish_waiting("q", 1);
                    body["page_size"] = json!(1 + consumer % 4);
                    if consumer % 3 == 0 {
                        body["wait_seconds"] = json!(-1);
                        if let Ok(mut stream) = Stream::open(address, "subscribe", &body) {
                            while let Some(message) = stream.next() {
                                handle(&message);
                            }
                        }
                    } else if let Ok(messages) = dequeue_with(address, "dequeue", &body) {
                        messages.iter().for_each(handle);
                    }
                }
            });
        }
    });
    let acked = acked.into_inner().unwrap();
    let mut sent = sent.into_inner().unwrap();
    sent.sort();
    assert_eq!(acked.keys().cloned().collect::<Vec<_>>(), sent);
    assert!(acked.values().all(|times| *times == 1));
    addresses.iter().for_each(|address| assert_empty(*address, "q"));
}
