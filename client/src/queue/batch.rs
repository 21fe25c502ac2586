//! Getting messages out of a queue, one or several per call.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::delivery::{Deliveries, payload_of};
use super::message::{Message, Origin};
use super::required_queue;
use crate::acquire::{Wait, default_owner, seconds_up};
use crate::call::CallOptions;
use crate::cancel::CancelToken;
use crate::client::Client;
use crate::error::Error;
use crate::logging::event;
use crate::walk::{Request, Route};
use crate::wire::{DequeueRequest, PAGE_SIZE_MAX};

/// What to take from a queue, and how patiently: for one message, for a batch, for a subscription. `Dequeue::from_queue("invoices")`, or simply `"invoices".into()`.
#[derive(Debug, Clone)]
#[must_use]
pub struct Dequeue {
    queue: String,
    namespace: Option<String>,
    owner: Option<String>,
    visibility: Duration,
    wait: Wait,
    page_size: u32,
    start_after: String,
    txn_id: String,
    with_state: bool,
    close_delay: Duration,
}

impl Dequeue {
    /// Messages of this queue.
    pub fn from_queue(queue: impl Into<String>) -> Self {
        Self {
            queue: queue.into(),
            namespace: None,
            owner: None,
            visibility: Duration::ZERO,
            wait: Wait::Forever,
            page_size: 1,
            start_after: String::new(),
            txn_id: String::new(),
            with_state: false,
            close_delay: Duration::ZERO,
        }
    }

    /// Namespace of the queue; default: that of the client.
    pub fn namespace(mut self, name: impl Into<String>) -> Self {
        self.namespace = Some(name.into());
        self
    }

    /// Who asks, for people who look at the server; default: host name and process id.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// How long a message is this consumer's alone, in whole seconds, rounded up. Default: the server's choice, 30 s.
    pub fn visibility(mut self, timeout: Duration) -> Self {
        self.visibility = timeout;
        self
    }

    /// What to do while there is nothing to deliver; default [`Wait::Forever`]. A dequeue whose waiting time is over fails with
    /// `waiting` ([`Error::is_waiting`]).
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    /// Most messages of one batch, or how many a subscription leases ahead: 1 to 64, default 1. The leases of a page run from
    /// the moment it is granted, also while its last message waits for its turn.
    pub fn page_size(mut self, count: u32) -> Self {
        self.page_size = count;
        self
    }

    /// A cursor. Servers accept it and do nothing with it.
    pub fn start_after(mut self, cursor: impl Into<String>) -> Self {
        self.start_after = cursor.into();
        self
    }

    /// Takes part in this transaction: its commit acknowledges the messages, its rollback gives them back.
    pub fn txn_id(mut self, id: impl Into<String>) -> Self {
        self.txn_id = id.into();
        self
    }

    /// Also leases the state of each message; see [`Message::state`].
    pub fn with_state(mut self, on: bool) -> Self {
        self.with_state = on;
        self
    }

    /// How long a message rests that is dropped or closed without ack or nack. Default: not at all.
    pub fn close_delay(mut self, delay: Duration) -> Self {
        self.close_delay = delay;
        self
    }

    pub(super) fn queue_name(&self) -> &str {
        &self.queue
    }

    pub(super) fn has_state(&self) -> bool {
        self.with_state
    }

    pub(super) fn owner_unless_given(mut self, owner: String) -> Self {
        self.owner.get_or_insert(owner);
        self
    }

    pub(super) fn close_after(&self) -> Duration {
        self.close_delay
    }

    /// The body of the request, as it is now: what is left of the caller's time is a part of it.
    pub(super) fn to_wire(&self, client: &Client, call: &CallOptions) -> Result<DequeueRequest, Error> {
        let owner = self.owner.clone().unwrap_or_else(default_owner);
        if owner.trim().is_empty() {
            return Err(Error::invalid("owner is required"));
        }
        Ok(DequeueRequest {
            queue: required_queue(&self.queue)?,
            namespace: client.inner.namespace(self.namespace.as_deref())?,
            owner: owner.trim().to_owned(),
            txn_id: self.txn_id.trim().to_owned(),
            visibility_timeout_seconds: seconds_up(self.visibility),
            wait_seconds: wait_seconds(self.wait, call.remaining()),
            page_size: i64::from(self.page_size).clamp(1, PAGE_SIZE_MAX),
            start_after: self.start_after.clone(),
        })
    }
}

/// What the server is told: -1 no waiting, 0 without end, else whole seconds, at least 1, and not longer than the caller has.
fn wait_seconds(wait: Wait, left: Option<Duration>) -> i64 {
    let span = match (wait, left) {
        (Wait::No, _) => return -1,
        (Wait::Forever, None) => return 0,
        (Wait::Forever, Some(left)) => left,
        (Wait::UpTo(span), left) => span.min(left.unwrap_or(span)),
    };
    seconds_up(span).max(1)
}

impl From<&str> for Dequeue {
    fn from(queue: &str) -> Self {
        Self::from_queue(queue)
    }
}

impl From<String> for Dequeue {
    fn from(queue: String) -> Self {
        Self::from_queue(queue)
    }
}

impl From<&Dequeue> for Dequeue {
    fn from(request: &Dequeue) -> Self {
        request.clone()
    }
}

impl Client {
    /// Takes one message, whatever [`Dequeue::page_size`] says. When there is none in time, the error is `waiting`
    /// ([`Error::is_waiting`]). Payloads of more than 256 KiB are read from the server as they are read from the message.
    ///
    /// The call has no time limit but the deadline of [`with_options`](Client::with_options). The message does not inherit
    /// deadline and cancel token.
    pub fn dequeue(&self, request: impl Into<Dequeue>) -> Result<Message, Error> {
        let request = request.into().page_size(1);
        let wire = request.to_wire(self, &self.call)?;
        let mut deliveries = self.ask(&request, &wire)?;
        let endpoint = Arc::clone(deliveries.endpoint());
        let Some(received) = deliveries.next()? else {
            return Err(empty(&endpoint));
        };
        let shared = Arc::new(Mutex::new(deliveries));
        let content = payload_of(&shared, &received)?;
        if !content.is_stream() {
            // The end of the answer, which is due, gives the connection back. It is of no other interest.
            let _ = shared.lock().next();
        }
        let cursor = received.delivery.next_cursor.clone();
        let message = Message::received(self, received.delivery, content, self.origin(&request, &endpoint));
        self.log_success(&request, &wire, &endpoint, &cursor, 1);
        Ok(message)
    }

    /// Takes up to [`Dequeue::page_size`] messages, at least one. All payloads are in memory when this returns. Otherwise as
    /// [`dequeue`](Self::dequeue).
    ///
    /// When the answer breaks off, what had arrived is returned; the rest comes back after its visibility timeout.
    pub fn dequeue_batch(&self, request: impl Into<Dequeue>) -> Result<Vec<Message>, Error> {
        let request = request.into();
        let wire = request.to_wire(self, &self.call)?;
        let mut deliveries = self.ask(&request, &wire)?;
        let endpoint = Arc::clone(deliveries.endpoint());
        let mut cursor = String::new();
        let mut messages = Vec::new();
        loop {
            let next = deliveries.next().and_then(|received| match received {
                None => Ok(None),
                Some(received) => deliveries
                    .read_payload()
                    .map(|content| Some((received.delivery, content))),
            });
            match next {
                Ok(None) if messages.is_empty() => return Err(empty(&endpoint)),
                Ok(None) => break,
                Ok(Some((delivery, content))) => {
                    cursor.clone_from(&delivery.next_cursor);
                    let origin = self.origin(&request, &endpoint);
                    messages.push(Message::received(self, delivery, content, origin));
                }
                Err(error) if messages.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        self.log_success(&request, &wire, &endpoint, &cursor, messages.len());
        Ok(messages)
    }

    /// Sends a dequeue and returns what is delivered.
    fn ask(&self, request: &Dequeue, wire: &DequeueRequest) -> Result<Deliveries, Error> {
        let (inner, cid) = (&self.inner, self.inner.cid(&self.call));
        event!(
            inner.log,
            Info,
            cid,
            "client.queue.dequeue.begin",
            queue = wire.queue.as_str(),
            owner = wire.owner.as_str(),
            stateful = request.with_state,
            visibility_seconds = wire.visibility_timeout_seconds,
            wait_seconds = wire.wait_seconds,
            page_size = wire.page_size,
            start_after = wire.start_after.as_str()
        );
        let path = match request.with_state {
            false => "/v1/queue/dequeue",
            true => "/v1/queue/dequeueWithState",
        };
        let mut http = Request::new("POST", path, None).json(wire)?;
        let answer = inner.walk(&self.call, &mut http, Route::Any)?;
        inner.note_shutdown(&self.call, &answer);
        if answer.status != 200 {
            event!(
                inner.log,
                Warn,
                cid,
                "client.queue.dequeue.error",
                queue = wire.queue.as_str(),
                owner = wire.owner.as_str(),
                endpoint = &*answer.endpoint,
                status = answer.status
            );
            return Err(answer.into_error());
        }
        Deliveries::of(answer, &self.call)
    }

    fn origin(&self, request: &Dequeue, endpoint: &Arc<str>) -> Origin {
        Origin {
            endpoint: Arc::clone(endpoint),
            close_delay: request.close_delay,
            call: CallOptions::new(),
            token: CancelToken::new(),
            heir: None,
        }
    }

    fn log_success(&self, request: &Dequeue, wire: &DequeueRequest, endpoint: &str, cursor: &str, messages: usize) {
        event!(
            self.inner.log,
            Info,
            self.inner.cid(&self.call),
            "client.queue.dequeue.success",
            queue = wire.queue.as_str(),
            owner = wire.owner.as_str(),
            stateful = request.with_state,
            endpoint = endpoint,
            next_cursor = cursor,
            messages = messages
        );
    }
}

fn empty(endpoint: &str) -> Error {
    Error::BadAnswer {
        endpoint: endpoint.to_owned(),
        detail: "empty dequeue response".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_told_how_long_the_consumer_waits() {
        let seconds = |wait, left: Option<u64>| wait_seconds(wait, left.map(Duration::from_millis));
        assert_eq!(seconds(Wait::No, Some(5_000)), -1);
        assert_eq!(seconds(Wait::Forever, None), 0);
        assert_eq!(seconds(Wait::Forever, Some(2_500)), 3);
        assert_eq!(seconds(Wait::UpTo(Duration::from_millis(1_200)), None), 2);
        assert_eq!(seconds(Wait::UpTo(Duration::from_secs(9)), Some(2_500)), 3);
        assert_eq!(seconds(Wait::UpTo(Duration::ZERO), None), 1);
    }
}
