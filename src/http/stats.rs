//! What is known of a queue at the moment: nothing is taken and nothing is counted.

use std::sync::Arc;

use lockd_client::wire::{QueueRequest, QueueStatsResponse, codes};

use super::dequeue::{Guest, ParkedConsumer};
use super::exchange::Exchange;
use super::queue::{json_or_nothing, queue_of, unix};
use super::reply::Failure;
use super::request::Query;
use super::responder::Responder;
use super::{Next, Reply, Service};
use crate::dispatch::{Consumer, Patience, Purpose, QueueCounts, Wish};
use crate::error::Error;
use crate::keys::{MessageId, QueueId};
use crate::news::Listener;
use crate::queue::Seen;

/// So often the message that seemed to be next may turn out not to be, before the queue counts as empty.
pub(super) const HEADS_MAX: usize = 64;

/// Statistics that wait for a look at their queue.
pub(super) struct ParkedStats {
    pub(super) responder: Responder,
    queue: QueueId,
    heads_tried: usize,
}

/// `POST /v1/queue/stats`
pub(super) fn stats(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    Ok(Next::Stats(queue_meant(service, exchange)?))
}

/// The queue that stats and watch mean.
pub(super) fn queue_meant(service: &Service, exchange: &mut Exchange) -> Result<QueueId, Failure> {
    let body = exchange.read_whole_body(&service.edge, service.limits.json_bytes_max)?;
    let body: QueueRequest = json_or_nothing(&body)?;
    let query = Query::parse(exchange.query());
    queue_of(&body.namespace, &body.queue, &query, service, codes::INVALID_QUEUE)
}

impl Service {
    /// Asks the dispatcher what comes next.
    pub(super) fn wait_for_stats(&self, responder: Responder, queue: QueueId) {
        self.hear_of_others(&queue);
        let wish = head_wish(queue.clone());
        let parked = ParkedStats {
            responder,
            queue,
            heads_tried: 0,
        };
        let guest = ParkedConsumer(Guest::Stats(Box::new(parked)));
        self.dispatcher.ask(Consumer::new(wish, guest));
    }

    /// The dispatcher says what comes next: answers, unless that is not true any more.
    pub(super) fn answer_stats(
        self: &Arc<Self>,
        consumer: Consumer<()>,
        mut parked: ParkedStats,
        head: Option<MessageId>,
        counts: QueueCounts,
    ) {
        let head = match head.map(|id| self.look_at_head(&parked.queue, id)) {
            None => None,
            Some(Ok(Some(seen))) => Some(seen),
            Some(Ok(None)) if parked.heads_tried < HEADS_MAX => {
                parked.heads_tried += 1;
                let guest = ParkedConsumer(Guest::Stats(Box::new(parked)));
                return self.dispatcher.ask_again(consumer.put_together(guest));
            }
            Some(Ok(None)) => None,
            Some(Err(cause)) => return self.fail_stats(parked, Some(&cause)),
        };
        let now_ms = self.edge.clock.wall_ms();
        let answer = QueueStatsResponse {
            namespace: parked.queue.namespace.as_str().to_owned(),
            queue: parked.queue.queue.as_str().to_owned(),
            waiting_consumers: count(counts.waiting),
            pending_candidates: count(counts.ready),
            total_consumers: count(self.messages.seats.taken()),
            has_active_watcher: counts.listening,
            available: head.is_some(),
            head_message_id: head.map(|head| head.id.to_string()).unwrap_or_default(),
            head_enqueued_at_unix: head.map_or(0, |head| unix(head.enqueued_at_ms)),
            head_not_visible_until_unix: head.map_or(0, |head| unix(head.visible_from_ms)),
            head_age_seconds: head.map_or(0, |head| unix(now_ms.saturating_sub(head.enqueued_at_ms)).max(0)),
            correlation_id: parked.responder.correlation_id().to_owned(),
        };
        // A client that does not hear of it has lost nothing.
        let _ = parked.responder.answer(&self.edge, Reply::json(200, &answer));
    }

    /// Looks whether a message can be delivered now, and tells the dispatcher if it cannot.
    pub(super) fn look_at_head(&self, queue: &QueueId, id: MessageId) -> Result<Option<Seen>, Error> {
        let seen = self.messages.queues.look(queue, id)?;
        match seen {
            Some(seen) if seen.visible_from_ms <= self.edge.clock.wall_ms() => return Ok(Some(seen)),
            Some(seen) => self.dispatcher.visible(queue, id, seen.visible_from_ms),
            None => Listener::gone(&self.dispatcher, queue, id),
        }
        Ok(None)
    }

    /// The store cannot say what comes next, or the server is ending.
    pub(super) fn fail_stats(&self, parked: ParkedStats, why: Option<&Error>) {
        let reply = match why {
            Some(why) => self.error_reply(why, "stats", parked.responder.correlation_id()),
            None => super::reply::busy(codes::SERVER_BUSY, "the server is ending", 1),
        };
        let _ = parked.responder.answer(&self.edge, reply);
    }
}

/// Who wants to know what comes next, now.
pub(super) fn head_wish(queue: QueueId) -> Wish {
    Wish {
        queue,
        purpose: Purpose::Head,
        patience: Patience::None,
        looks: true,
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
