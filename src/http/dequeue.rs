//! Dequeue and the beginning of subscriptions: a consumer is parked with the dispatcher, gets messages suggested, and is
//! answered by whichever worker leased them.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use lockd_client::wire::{DequeueRequest, PAGE_SIZE_MAX, codes};

use super::delivery::Unwritten;
use super::exchange::Exchange;
use super::multipart::DeliveryWriter;
use super::queue::{draining, json_or_nothing, or, queue_of};
use super::reply::{BadRequest, Failure, Reply};
use super::request::Query;
use super::responder::Responder;
use super::stats::ParkedStats;
use super::{Next, Service};
use crate::clock::Moment;
use crate::dispatch::{Consumer, Parked, Patience, Purpose, QueueJob, Seat, Trial, Wish};
use crate::error::Error;
use crate::ids::Xid;
use crate::keys::QueueId;
use crate::lease::rules::clamp_ttl;
use crate::net::peer::Peer;
use crate::queue::{DeliverRequest, Delivered};

const SYS: &str = "api.http.router.queue";

/// Who is parked with the dispatcher until a queue has something.
pub struct ParkedConsumer(pub(super) Guest);

/// What is parked, and who takes the dispatcher's jobs for it.
pub(super) enum Guest {
    /// A dequeue, or a subscription before its first delivery: any worker.
    Dequeue(Box<ParkedDequeue>),
    /// Statistics: any worker.
    Stats(Box<ParkedStats>),
    /// A thread that waits for its answer.
    Thread {
        /// Its client.
        peer: Option<Peer>,
        /// The way to it.
        mailbox: Sender<QueueJob<ParkedConsumer>>,
    },
}

impl Parked for ParkedConsumer {
    fn peer(&self) -> Option<Peer> {
        match &self.0 {
            Guest::Dequeue(parked) => parked.responder.peer(),
            Guest::Stats(parked) => parked.responder.peer(),
            Guest::Thread { peer, .. } => *peer,
        }
    }
}

/// A dequeue that waits.
pub(super) struct ParkedDequeue {
    responder: Responder,
    wanted: WantedMessages,
    /// When the page was begun and is to be answered, however full it is.
    fill_until: Option<Moment>,
    deliveries: Vec<Delivered>,
}

/// What a dequeue or subscription asks for.
pub(super) struct WantedMessages {
    pub(super) queue: QueueId,
    pub(super) request: DeliverRequest,
    /// Most messages of an answer, or how many a subscription leases ahead.
    pub(super) page: usize,
    pub(super) wait_seconds: i64,
    pub(super) patience: Patience,
    pub(super) subscribes: bool,
    pub(super) arrived: Moment,
    /// Held as long as this is.
    pub(super) _seat: Seat,
}

/// Which of the four calls it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) with_state: bool,
    pub(super) subscribes: bool,
}

/// `POST /v1/queue/dequeue`, `dequeueWithState`, `subscribe`, `subscribeWithState`
pub(super) fn dequeue(service: &Service, exchange: &mut Exchange, call: Call) -> Result<Next, Failure> {
    let body = exchange.read_whole_body(&service.edge, service.limits.json_bytes_max)?;
    let body: DequeueRequest = json_or_nothing(&body)?;
    let query = Query::parse(exchange.query());
    let queue = queue_of(&body.namespace, &body.queue, &query, service, codes::INVALID_QUEUE)?;
    let owner = or(&body.owner, query.get("owner"));
    if owner.is_empty() {
        return Err(BadRequest::new(codes::MISSING_OWNER, "owner is required").into());
    }
    let txn_id = match body.txn_id.trim() {
        "" => None,
        text => Some(Xid::parse(text).ok_or_else(|| BadRequest::new(codes::INVALID_TXN, "txn_id must be an xid"))?),
    };
    if service.edge.is_draining() {
        log::info!(logger: service.edge.log, target: SYS, namespace = queue.namespace.as_str(),
            queue = queue.queue.as_str(), owner; "queue.{}.reject_shutdown", call.event());
        return Err(draining(service));
    }
    let Some(seat) = service.messages.seats.take() else {
        if service.messages.seats.is_new_shortage() {
            log::warn!(logger: service.edge.log, target: "queue.dispatcher.core",
                max_consumers = service.messages.seats.max(); "queue.dispatcher.consumer_limit");
        }
        return Ok(Next::Reply(super::reply::busy(
            codes::QUEUE_BUSY,
            "too many consumers",
            1,
        )));
    };
    let patience = match body.wait_seconds {
        ..0 => Patience::None,
        0 => Patience::Endless,
        seconds => {
            let wait = Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX));
            Patience::Until(exchange.arrived().after(wait))
        }
    };
    if patience == Patience::None {
        service.hear_of_others(&queue);
    }
    let page = body.page_size.clamp(1, PAGE_SIZE_MAX);
    let page = if call.with_state && !call.subscribes {
        1
    } else {
        usize::try_from(page).unwrap_or(1)
    };
    let visibility = &service.messages.visibility;
    log::info!(logger: service.edge.log, target: SYS, namespace = queue.namespace.as_str(),
        queue = queue.queue.as_str(), owner, block_seconds = body.wait_seconds,
        block_mode = block_mode(body.wait_seconds), cid = exchange.correlation_id(); "queue.consumer.connect");
    Ok(Next::Wait(Box::new(WantedMessages {
        queue,
        request: DeliverRequest {
            owner: owner.into(),
            visibility_seconds: clamp_ttl(
                body.visibility_timeout_seconds,
                visibility.default_seconds,
                visibility.max_seconds,
            ),
            txn_id,
            with_state: call.with_state,
        },
        page,
        wait_seconds: body.wait_seconds,
        patience,
        subscribes: call.subscribes,
        arrived: exchange.arrived(),
        _seat: seat,
    })))
}

impl Call {
    fn event(self) -> &'static str {
        match (self.subscribes, self.with_state) {
            (true, _) => "subscribe",
            (false, true) => "dequeue_state",
            (false, false) => "dequeue",
        }
    }
}

fn block_mode(wait_seconds: i64) -> String {
    match wait_seconds {
        ..0 => "nowait".to_owned(),
        0 => "forever".to_owned(),
        seconds => format!("{seconds}s"),
    }
}

impl Service {
    /// Hands a consumer over to the dispatcher.
    pub(super) fn wait_for_messages(&self, mut responder: Responder, wanted: WantedMessages) {
        if wanted.patience != Patience::None {
            responder.park(&self.edge);
        }
        let wish = Wish {
            queue: wanted.queue.clone(),
            purpose: Purpose::Take {
                count: wanted.page,
                stream: None,
            },
            patience: wanted.patience,
            looks: true,
        };
        let parked = ParkedDequeue {
            responder,
            wanted,
            fill_until: None,
            deliveries: Vec::new(),
        };
        let guest = ParkedConsumer(Guest::Dequeue(Box::new(parked)));
        self.dispatcher.ask(Consumer::new(wish, guest));
    }

    /// Whoever does not wait must see what other servers had acknowledged before it came. A read makes a store with a feed
    /// report that first.
    pub(super) fn hear_of_others(&self, queue: &QueueId) {
        if self.messages.feed {
            // Whatever is wrong with the store shows when a message is leased.
            let _ = self
                .messages
                .queues
                .read(queue, crate::keys::MessageId::new(uuid::Uuid::nil()));
        }
    }

    /// Does a job of the dispatcher. Jobs for threads of their own never come here.
    pub(super) fn do_queue_job(self: &Arc<Self>, job: QueueJob<ParkedConsumer>) {
        match job {
            QueueJob::Deliver(consumer, trial) => {
                if let (consumer, ParkedConsumer(Guest::Dequeue(parked))) = consumer.take_apart() {
                    self.deliver_suggested(consumer, *parked, trial);
                }
            }
            QueueJob::Head(consumer, head, counts) => {
                if let (consumer, ParkedConsumer(Guest::Stats(parked))) = consumer.take_apart() {
                    self.answer_stats(consumer, *parked, head, counts);
                }
            }
            QueueJob::Empty(consumer) => self.finish_dequeue(consumer, None),
            QueueJob::Failed(consumer, fault) => self.finish_dequeue(consumer, Some(&fault)),
            QueueJob::Refuse(consumer) => {
                let draining = Error::Draining {
                    retry_after_seconds: self.edge.drain_seconds_left(),
                };
                self.finish_dequeue(consumer, Some(&draining));
            }
            QueueJob::Discard(consumer) => match consumer.parked.0 {
                Guest::Dequeue(parked) => self.let_go(*parked),
                Guest::Stats(parked) => parked.responder.abandon(),
                Guest::Thread { .. } => {}
            },
            QueueJob::CheckPeers(peers) => {
                let addresses: Vec<_> = peers.iter().map(|(_, address)| *address).collect();
                let gone: std::collections::HashSet<_> = self.edge.gone_among(&addresses).into_iter().collect();
                if !gone.is_empty() {
                    let consumers = peers.into_iter().filter(|(_, address)| gone.contains(address));
                    self.dispatcher.consumers_gone(consumers.map(|(id, _)| id).collect());
                }
            }
        }
    }

    /// Leases what was suggested and answers, or wants more.
    fn deliver_suggested(self: &Arc<Self>, mut consumer: Consumer<()>, mut parked: ParkedDequeue, mut trial: Trial) {
        if consumer.has_waited && self.edge.is_gone(parked.responder.peer()) {
            drop(trial);
            return self.let_go(parked);
        }
        let subscribes = parked.wanted.subscribes;
        let stream = subscribes.then(|| self.messages.streams.name());
        if let Some(stream) = stream {
            trial.count_for(stream);
        }
        let (leased, fault) = self.lease_suggested(&mut trial, &parked.wanted.request);
        // The report comes before the answer, so that an ack never comes before the report.
        drop(trial);
        parked.deliveries.extend(leased);
        if let (Some(stream), false) = (stream, parked.deliveries.is_empty()) {
            let ParkedDequeue {
                responder,
                wanted,
                deliveries,
                ..
            } = parked;
            return self.start_stream(stream, responder, wanted, deliveries);
        }
        let missing = parked.wanted.page.saturating_sub(parked.deliveries.len());
        match fault {
            Some(fault) if parked.deliveries.is_empty() => {
                let reply = self.failure_reply(fault.into(), "dequeue", parked.responder.correlation_id());
                self.end_empty(parked, reply, "error");
            }
            None if missing != 0 => {
                if parked.deliveries.is_empty() {
                    let guest = ParkedConsumer(Guest::Dequeue(Box::new(parked)));
                    return self.dispatcher.ask_again(consumer.put_together(guest));
                }
                if consumer.wish.patience != Patience::None {
                    let now = self.edge.clock.now();
                    let window = self.fill_window(&parked.wanted);
                    let until = *parked.fill_until.get_or_insert_with(|| now.after(window));
                    let until = match parked.wanted.patience {
                        Patience::Until(deadline) => until.min(deadline),
                        Patience::None | Patience::Endless => until,
                    };
                    if until <= now {
                        return self.answer_messages(parked);
                    }
                    consumer.wish.patience = Patience::Until(until);
                }
                consumer.wish.purpose = Purpose::Take {
                    count: missing,
                    stream: None,
                };
                let guest = ParkedConsumer(Guest::Dequeue(Box::new(parked)));
                self.dispatcher.ask(consumer.put_together(guest));
            }
            Some(_) | None => self.answer_messages(parked),
        }
    }

    /// How long a page that is not full waits for more.
    fn fill_window(&self, wanted: &WantedMessages) -> Duration {
        let page = u32::try_from(wanted.page).unwrap_or(u32::MAX);
        if self.messages.feed {
            (Duration::from_millis(5) * page.min(8)).min(Duration::from_millis(50))
        } else {
            (Duration::from_millis(50) * page.min(5)).min(Duration::from_millis(250))
        }
    }

    /// There is no more for this consumer: answers with what it has, else that there is nothing, or why.
    fn finish_dequeue(&self, consumer: Consumer<ParkedConsumer>, why: Option<&Error>) {
        let (parked, why) = match (consumer.parked.0, why) {
            (Guest::Dequeue(parked), why) => (parked, why),
            (Guest::Stats(parked), why) => return self.fail_stats(*parked, why),
            (Guest::Thread { .. }, _) => return,
        };
        if !parked.deliveries.is_empty() {
            return self.answer_messages(*parked);
        }
        match why {
            Some(why) => {
                let reply = self.error_reply(why, "dequeue", parked.responder.correlation_id());
                self.end_empty(*parked, reply, "error");
            }
            None => {
                let reply = nothing_reply(parked.wanted.wait_seconds);
                self.end_empty(*parked, reply, "empty");
            }
        }
    }

    fn end_empty(&self, parked: ParkedDequeue, reply: Reply, status: &'static str) {
        self.log_disconnect(&parked.wanted, status, 0);
        // A client that does not hear of it has lost nothing.
        let _ = parked.responder.answer(&self.edge, reply);
    }

    /// The client has gone: what was leased for it goes back.
    fn let_go(&self, parked: ParkedDequeue) {
        self.give_back(&parked.deliveries);
        self.log_disconnect(&parked.wanted, "unknown", 0);
        parked.responder.abandon();
    }

    /// Writes all deliveries as one answer.
    fn answer_messages(&self, parked: ParkedDequeue) {
        let ParkedDequeue {
            mut responder,
            wanted,
            deliveries,
            ..
        } = parked;
        if let Some(first) = deliveries.first() {
            responder.correlate(&first.record.correlation_id);
        }
        let Err(cause) = self.write_messages(responder, &deliveries) else {
            deliveries.iter().for_each(|delivered| self.log_sent(delivered));
            self.log_disconnect(&wanted, "delivered", deliveries.len());
            return;
        };
        let error = match cause {
            Unwritten::Client(cause) => cause.to_string(),
            Unwritten::Payload(cause) => cause.to_string(),
        };
        log::warn!(logger: self.edge.log, target: SYS, namespace = wanted.queue.namespace.as_str(),
            queue = wanted.queue.queue.as_str(), error; "queue.delivery.undelivered");
        self.give_back(&deliveries);
        self.log_disconnect(&wanted, "error", 0);
    }

    fn write_messages(&self, responder: Responder, deliveries: &[Delivered]) -> Result<(), Unwritten> {
        // A client that does not read makes us wait here.
        let _held_up = self.edge.crew.held_up();
        let writer = DeliveryWriter::new();
        let reply = Reply::empty(200).with("Content-Type", writer.content_type());
        let mut answer = responder.begin(&self.edge, reply).map_err(Unwritten::Client)?;
        let mut bytes = Vec::new();
        writer.begin(&mut bytes);
        answer.write(&bytes).map_err(Unwritten::Client)?;
        for (number, delivered) in deliveries.iter().enumerate() {
            let number = (1 < deliveries.len()).then_some(number);
            self.write_delivery(&mut answer, &writer, delivered, number)?;
        }
        bytes.clear();
        writer.end(&mut bytes);
        answer.write(&bytes).map_err(Unwritten::Client)?;
        answer.finish().map_err(Unwritten::Client)
    }

    pub(super) fn log_disconnect(&self, wanted: &WantedMessages, status: &'static str, delivered_count: usize) {
        let waited = self.edge.clock.now().since(wanted.arrived);
        log::info!(logger: self.edge.log, target: SYS, namespace = wanted.queue.namespace.as_str(),
            queue = wanted.queue.queue.as_str(), owner = &*wanted.request.owner, status, delivered_count,
            block_seconds = wanted.wait_seconds, block_mode = block_mode(wanted.wait_seconds),
            elapsed:? = waited; "queue.consumer.disconnect");
    }
}

/// There was nothing in the time that the consumer had.
pub(super) fn nothing_reply(wait_seconds: i64) -> Reply {
    let retry_after_seconds = match wait_seconds {
        ..0 => 0,
        0 => 1,
        seconds => seconds,
    };
    Reply::waiting("no messages available", retry_after_seconds)
}
