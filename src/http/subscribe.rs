//! Streams of deliveries: a thread writes each, from its first message to its end.
//!
//! Until there is a first message a subscription is parked like any dequeue, so an idle one costs no thread and has had no
//! head yet. Afterwards the thread asks the dispatcher for more, leases what is suggested, up to a page at a time, and
//! writes and flushes each message by itself. While it writes it is not with the dispatcher: a slow client holds nobody up.
//! What was leased and certainly not written is given back; what was written stays leased to its client.
//!
//! A stream ends with its closing line when nothing is left (without patience) or the server drains, and without one when
//! its client is gone.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::Service;
use super::chunked::Chunked;
use super::delivery::Unwritten;
use super::dequeue::{Guest, ParkedConsumer, WantedMessages};
use super::multipart::DeliveryWriter;
use super::reply::Reply;
use super::responder::Responder;
use crate::clock::Moment;
use crate::dispatch::{Consumer, Patience, Purpose, QueueJob, StreamId, Wish};
use crate::queue::Delivered;
use crate::threads;

const SYS: &str = "api.http.router.queue";
/// How often a stream that writes one message after the other looks for its client.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The threads of streams, so that the end of the server can wait for them.
#[derive(Default)]
pub struct Streams {
    next: AtomicU64,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Watches, which nothing but the end of the server ends.
    watches: Mutex<HashMap<u64, Sender<()>>>,
    ending: AtomicBool,
    subscriptions: Arc<AtomicUsize>,
}

/// Counts a subscription as open until it is dropped.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Streams {
    /// A name for one more.
    pub(super) fn name(&self) -> StreamId {
        StreamId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// How many subscriptions and watches are being written.
    pub(super) fn open(&self) -> (usize, usize) {
        (self.subscriptions.load(Ordering::Relaxed), self.watches.lock().len())
    }

    fn note_subscription(&self) -> Open {
        self.subscriptions.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(&self.subscriptions))
    }

    /// Runs a stream on a thread of its own.
    pub(super) fn start(&self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = threads::spawn(name, body)?;
        let mut threads = self.threads.lock();
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// Remembers how to reach a watch, until [`forget_watch`](Self::forget_watch).
    pub(super) fn remember_watch(&self, number: u64, poke: Sender<()>) {
        self.watches.lock().insert(number, poke);
    }

    pub(super) fn forget_watch(&self, number: u64) {
        self.watches.lock().remove(&number);
    }

    /// True once watches have to end.
    pub(super) fn are_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Ends all watches.
    pub fn end_watches(&self) {
        self.ending.store(true, Ordering::SeqCst);
        for poke in self.watches.lock().values() {
            // A watch that was poked already will see the flag.
            let _ = poke.try_send(());
        }
    }

    /// Waits for all streams. Nobody starts one any more.
    pub fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// How a stream ended.
enum End {
    /// There is nothing left, or nobody gets anything any more: the closing line says so.
    Well(&'static str),
    /// Its client is gone.
    ClientGone,
}

/// A stream on its thread.
struct Stream {
    service: Arc<Service>,
    id: StreamId,
    wanted: WantedMessages,
    writer: DeliveryWriter,
    answer: Chunked,
    written: usize,
    /// When the client was last looked for.
    looked: Moment,
}

impl Service {
    /// Begins a stream with its first messages.
    pub(super) fn start_stream(
        self: &Arc<Self>,
        id: StreamId,
        mut responder: Responder,
        wanted: WantedMessages,
        first: Vec<Delivered>,
    ) {
        if let Some(first) = first.first() {
            responder.correlate(&first.record.correlation_id);
        }
        let service = Arc::clone(self);
        let queue = wanted.queue.clone();
        let leased = Arc::new(Mutex::new(first));
        let taken = Arc::clone(&leased);
        let started = self.messages.streams.start("queue-stream", move || {
            let first = std::mem::take(&mut *taken.lock());
            let closed = (Arc::clone(&service), wanted.queue.clone());
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                service.run_stream(id, responder, wanted, first);
            }));
            closed.0.dispatcher.stream_closed(closed.1, id);
            if outcome.is_err() {
                log::error!(logger: closed.0.edge.log, target: SYS, "queue.subscribe.panic");
            }
        });
        if let Err(cause) = started {
            let error = cause.to_string();
            log::error!(logger: self.edge.log, target: SYS, error; "queue.subscribe.no_thread");
            // The way back went with the thread that did not start, and answered so.
            self.give_back(&leased.lock());
            self.dispatcher.stream_closed(queue, id);
        }
    }

    fn run_stream(
        self: Arc<Self>,
        id: StreamId,
        mut responder: Responder,
        wanted: WantedMessages,
        first: Vec<Delivered>,
    ) {
        let _open = self.messages.streams.note_subscription();
        let writer = DeliveryWriter::new();
        responder.park(&self.edge);
        let peer = responder.peer();
        let reply = Reply::empty(200).with("Content-Type", writer.content_type());
        let Ok(mut answer) = responder.begin(&self.edge, reply) else {
            return self.give_back(&first);
        };
        answer.be_patient();
        log::info!(logger: self.edge.log, target: SYS, namespace = wanted.queue.namespace.as_str(),
            queue = wanted.queue.queue.as_str(), owner = &*wanted.request.owner, prefetch = wanted.page;
            "queue.subscribe.connect");
        let (mailbox, jobs) = unbounded();
        let wish = Wish {
            queue: wanted.queue.clone(),
            purpose: Purpose::Take {
                count: wanted.page,
                stream: Some(id),
            },
            patience: match wanted.patience {
                Patience::None => Patience::None,
                Patience::Until(_) | Patience::Endless => Patience::Endless,
            },
            looks: wanted.patience == Patience::None,
        };
        // The only sender goes along with the consumer: when the dispatcher has ended, nobody waits for it.
        let consumer = Consumer::new(wish, ParkedConsumer(Guest::Thread { peer, mailbox }));
        let mut stream = Stream {
            service: self,
            id,
            wanted,
            writer,
            answer,
            written: 0,
            looked: Moment::ZERO,
        };
        let end = match stream.begin(first) {
            Ok(()) => stream.run(consumer, &jobs),
            Err(_) => End::ClientGone,
        };
        stream.end(end);
    }
}

impl Stream {
    fn begin(&mut self, first: Vec<Delivered>) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.writer.begin(&mut bytes);
        self.answer.write(&bytes)?;
        self.write(first)
    }

    fn run(&mut self, mut consumer: Consumer<ParkedConsumer>, jobs: &Receiver<QueueJob<ParkedConsumer>>) -> End {
        let service = Arc::clone(&self.service);
        consumer.has_waited = false;
        service.dispatcher.ask(consumer);
        loop {
            let (mut consumer, mut trial) = match jobs.recv() {
                Ok(QueueJob::Deliver(consumer, trial)) => (consumer, trial),
                Ok(QueueJob::Empty(_)) => return End::Well("empty"),
                Ok(QueueJob::Discard(_)) => return End::ClientGone,
                Ok(QueueJob::Failed(_, cause)) => {
                    let error = cause.to_string();
                    log::warn!(logger: service.edge.log, target: SYS, error; "queue.subscribe.error");
                    return End::Well("error");
                }
                // The server drains, or is gone altogether.
                Ok(QueueJob::Refuse(_) | QueueJob::Head(..) | QueueJob::CheckPeers(_)) | Err(_) => {
                    return End::Well("context");
                }
            };
            if consumer.has_waited && service.edge.is_gone(self.answer.way().peer()) {
                return End::ClientGone;
            }
            let (leased, fault) = service.lease_suggested(&mut trial, &self.wanted.request);
            drop(trial);
            let got_nothing = leased.is_empty();
            if !got_nothing && self.client_has_left() {
                service.give_back(&leased);
                return End::ClientGone;
            }
            if self.write(leased).is_err() {
                return End::ClientGone;
            }
            if let Some(fault) = fault {
                let error = fault.to_string();
                log::warn!(logger: service.edge.log, target: SYS, error; "queue.subscribe.error");
                return End::Well("error");
            }
            consumer.has_waited = false;
            if got_nothing {
                service.dispatcher.ask_again(consumer);
            } else {
                service.dispatcher.ask(consumer);
            }
        }
    }

    /// Looks whether the client is there, but not for every message of a stream that is busy. The first thing that is written to
    /// a client that has left looks as if it had arrived.
    fn client_has_left(&mut self) -> bool {
        let edge = &self.service.edge;
        let now = edge.clock.now();
        if now.since(self.looked) < LOOK_EVERY {
            return false;
        }
        self.looked = now;
        edge.is_gone(self.answer.way().peer())
    }

    /// Writes and flushes each message by itself; what cannot be written any more is given back.
    fn write(&mut self, deliveries: Vec<Delivered>) -> io::Result<()> {
        for (number, delivered) in deliveries.iter().enumerate() {
            let written = (self.service)
                .write_delivery(&mut self.answer, &self.writer, delivered, None)
                .and_then(|()| self.answer.flush().map_err(Unwritten::Client));
            match written {
                Ok(()) => {
                    self.written += 1;
                    self.service.log_sent(delivered);
                }
                Err(Unwritten::Payload(cause)) => {
                    let error = cause.to_string();
                    log::warn!(logger: self.service.edge.log, target: SYS, mid:% = delivered.id, error;
                        "queue.subscribe.payload_missing");
                    self.service.give_back(std::slice::from_ref(delivered));
                }
                Err(Unwritten::Client(cause)) => {
                    let error = cause.to_string();
                    log::warn!(logger: self.service.edge.log, target: SYS, mid:% = delivered.id, error;
                        "queue.subscribe.write_error");
                    self.service.give_back(&deliveries[number..]);
                    return Err(cause);
                }
            }
        }
        Ok(())
    }

    fn end(self, end: End) {
        let Self {
            service,
            id,
            wanted,
            writer,
            mut answer,
            written,
            ..
        } = self;
        let status = match end {
            End::Well(status) => {
                let mut bytes = Vec::new();
                writer.end(&mut bytes);
                // A client that does not see the closing line sees that its connection has ended.
                let _ = answer.write(&bytes).and_then(|()| answer.finish());
                status
            }
            // Dropping the answer cuts the connection.
            End::ClientGone => "error",
        };
        log::info!(logger: service.edge.log, target: SYS, namespace = wanted.queue.namespace.as_str(),
            queue = wanted.queue.queue.as_str(), owner = &*wanted.request.owner, stream = id.0, status,
            delivered_count = written; "queue.subscribe.disconnect");
        service.log_disconnect(&wanted, if written == 0 { "empty" } else { "delivered" }, written);
    }
}
