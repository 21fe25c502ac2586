//! Server-sent events about the head of a queue: a thread writes each stream. Nothing is taken and nothing is counted.
//!
//! The dispatcher has a word for the thread whenever something about the queue may have changed; the thread then asks
//! what comes next, and tells its client if that is news. Where changes of other servers are not heard of, it asks every
//! second anyway.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, unbounded};
use lockd_client::wire::QueueWatchEvent;

use super::chunked::Chunked;
use super::dequeue::{Guest, ParkedConsumer};
use super::exchange::Exchange;
use super::reply::{Failure, Reply};
use super::responder::Responder;
use super::stats::{HEADS_MAX, head_wish, queue_meant};
use super::{Next, Service};
use crate::dispatch::{Consumer, QueueJob, Wish};
use crate::keys::{MessageId, QueueId};

const SYS: &str = "api.http.router.queue";
const HEARTBEAT: Duration = Duration::from_secs(20);
/// How often to look where nothing is heard of other servers.
const LOOK_WITHOUT_FEED: Duration = Duration::from_secs(1);
/// How often to find out whether the client is still there.
const PEER_CHECK: Duration = Duration::from_secs(5);
/// Shortest time between two looks, however much happens.
const LOOK_PAUSE: Duration = Duration::from_millis(25);

/// `POST /v1/queue/watch`
pub(super) fn watch(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    Ok(Next::Watch(queue_meant(service, exchange)?))
}

/// A watch on its thread.
struct Watch {
    service: Arc<Service>,
    queue: QueueId,
    correlation_id: String,
    answer: Chunked,
    /// What was told last.
    told: Option<Option<MessageId>>,
    events: u64,
}

impl Service {
    /// Begins a watch.
    pub(super) fn start_watch(self: &Arc<Self>, responder: Responder, queue: QueueId) {
        let service = Arc::clone(self);
        let started = self.messages.streams.start("queue-watch", move || {
            let log = Arc::clone(&service.edge.log);
            let watch = std::panic::AssertUnwindSafe(|| service.run_watch(responder, queue));
            if std::panic::catch_unwind(watch).is_err() {
                log::error!(logger: log, target: SYS, "queue.watch.panic");
            }
        });
        if let Err(cause) = started {
            let error = cause.to_string();
            log::error!(logger: self.edge.log, target: SYS, error; "queue.watch.no_thread");
        }
    }

    fn run_watch(self: Arc<Self>, mut responder: Responder, queue: QueueId) {
        responder.park(&self.edge);
        let reply = Reply::empty(200)
            .with("Content-Type", "text/event-stream")
            .with("Cache-Control", "no-cache")
            .with("Connection", "keep-alive")
            .with("X-Accel-Buffering", "no");
        let correlation_id = responder.correlation_id().to_owned();
        let Ok(mut answer) = responder.begin(&self.edge, reply) else {
            return;
        };
        answer.be_patient();
        let number = self.messages.streams.name().0;
        log::info!(logger: self.edge.log, target: SYS, namespace = queue.namespace.as_str(),
            queue = queue.queue.as_str(), watch = number, cid = correlation_id.as_str(); "queue.watch.connect");
        if !self.messages.feed {
            log::debug!(logger: self.edge.log, target: SYS, namespace = queue.namespace.as_str(),
                queue = queue.queue.as_str(); "queue.watch.feed_unavailable");
        }
        let (poke, pokes) = bounded(1);
        self.messages.streams.remember_watch(number, poke.clone());
        self.dispatcher.watch(queue.clone(), number, poke);
        self.hear_of_others(&queue);
        let watch = Watch {
            service: Arc::clone(&self),
            queue: queue.clone(),
            correlation_id,
            answer,
            told: None,
            events: 0,
        };
        let events = watch.run(&pokes);
        self.dispatcher.unwatch(queue.clone(), number);
        self.messages.streams.forget_watch(number);
        log::info!(logger: self.edge.log, target: SYS, namespace = queue.namespace.as_str(),
            queue = queue.queue.as_str(), watch = number, events; "queue.watch.disconnect");
    }
}

impl Watch {
    /// Runs to the end. Returns how many events were told.
    fn run(mut self, pokes: &Receiver<()>) -> u64 {
        // An error is a client that is gone; dropping the answer cuts its connection.
        if self.tell(pokes).is_ok() {
            let events = self.events;
            let _ = self.answer.finish();
            return events;
        }
        self.events
    }

    /// Tells what there is to tell until the server ends, or the store has no answer.
    fn tell(&mut self, pokes: &Receiver<()>) -> io::Result<()> {
        let service = Arc::clone(&self.service);
        let clock = &service.edge.clock;
        let mut heartbeat = clock.now().after(HEARTBEAT);
        while !service.messages.streams.are_ending() {
            let looked = clock.now();
            let Some(head) = self.head() else { return Ok(()) };
            if self.told != Some(head) {
                self.told = Some(head);
                self.write_event(head)?;
                heartbeat = clock.now().after(HEARTBEAT);
            }
            let patience = if service.messages.feed {
                PEER_CHECK
            } else {
                LOOK_WITHOUT_FEED
            };
            loop {
                let left = heartbeat.since(clock.now()).min(patience);
                let poked = pokes.recv_timeout(left);
                if service.messages.streams.are_ending() {
                    break;
                }
                if heartbeat <= clock.now() {
                    self.answer.write(b": keepalive\n\n")?;
                    self.answer.flush()?;
                    heartbeat = clock.now().after(HEARTBEAT);
                }
                if service.edge.is_gone(self.answer.way().peer()) {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                if poked.is_ok() || !service.messages.feed || poked == Err(RecvTimeoutError::Disconnected) {
                    break;
                }
            }
            std::thread::sleep(LOOK_PAUSE.saturating_sub(clock.now().since(looked)));
        }
        Ok(())
    }

    /// What would be delivered next; `None` when nobody can say any more.
    fn head(&self) -> Option<Option<MessageId>> {
        let (mailbox, answers) = unbounded();
        let peer = self.answer.way().peer();
        let wish: Wish = head_wish(self.queue.clone());
        let guest = ParkedConsumer(Guest::Thread { peer, mailbox });
        self.service.dispatcher.ask(Consumer::new(wish, guest));
        for _ in 0..HEADS_MAX {
            let (consumer, head) = match answers.recv() {
                Ok(QueueJob::Head(consumer, head, _)) => (consumer, head),
                Ok(_) | Err(_) => return None,
            };
            let Some(id) = head else { return Some(None) };
            match self.service.look_at_head(&self.queue, id) {
                Ok(Some(_)) => return Some(Some(id)),
                Ok(None) => self.service.dispatcher.ask_again(consumer),
                Err(_) => return None,
            }
        }
        Some(None)
    }

    fn write_event(&mut self, head: Option<MessageId>) -> io::Result<()> {
        self.events += 1;
        let event = QueueWatchEvent {
            namespace: self.queue.namespace.as_str().to_owned(),
            queue: self.queue.queue.as_str().to_owned(),
            available: head.is_some(),
            head_message_id: head.map(|id| id.to_string()).unwrap_or_default(),
            changed_at_unix: self.service.edge.clock.wall_seconds(),
            correlation_id: self.correlation_id.clone(),
        };
        let data = serde_json::to_string(&event)?;
        let frame = format!("id: {}\nevent: queue_watch\ndata: {data}\n\n", self.events);
        self.answer.write(frame.as_bytes())?;
        self.answer.flush()
    }
}
