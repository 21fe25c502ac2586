//! Messages as a stream: one request, one handler, one message after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::batch::Dequeue;
use super::delivery::{Deliveries, SharedDeliveries, payload_of};
use super::extender::Extender;
use super::message::{Heir, Inheritance, Message, Origin};
use super::rest::Rest;
use crate::call::CallOptions;
use crate::cancel::CancelToken;
use crate::client::Client;
use crate::clock;
use crate::error::{BoxError, Error};
use crate::for_update::from_handler;
use crate::logging::{event, fields};
use crate::walk::{Request, Route};
use crate::wire::{DequeueRequest, codes};

/// Two requests of a subscription that finds nothing begin no closer to each other than this, in the end.
const REPOST_INTERVAL_MAX: Duration = Duration::from_millis(50);
const REPOST_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// Why a subscription ended.
pub(super) enum Ended {
    /// The subscription itself failed.
    Subscription(Error),
    /// The handler failed, or the lease of its message could not be prolonged.
    Handler(Error),
}

impl Ended {
    pub(super) fn into_error(self) -> Error {
        match self {
            Ended::Subscription(error) | Ended::Handler(error) => error,
        }
    }
}

impl Client {
    /// Runs the handler for each message of a queue, one after the other, while its lease is prolonged. The handler settles the
    /// message; one that it drops unsettled is given back as a failed attempt. [`Dequeue::page_size`] messages are leased ahead;
    /// when the subscription ends, what of them nobody has seen is given back at once.
    ///
    /// Returns `Ok` when the server ends the stream, which it does when it goes down, and with [`Wait::No`](crate::Wait::No)
    /// when the queue is empty: subscribe again. An error of the handler, a panic of it, or a lease that could not be prolonged
    /// ends the subscription with that error; so does everything that goes wrong on the way, except `waiting` and `cas_mismatch`,
    /// which lead to a new request. [`run_consumers`](Self::run_consumers) restarts by itself.
    ///
    /// There is no time limit but the deadline of [`with_options`](Client::with_options). Its cancel token ends the
    /// subscription; the handler finds a child of it in [`MessageHandle::cancel_token`](super::MessageHandle), and its calls about
    /// the message obey that.
    pub fn subscribe(
        &self,
        request: impl Into<Dequeue>,
        mut handler: impl FnMut(Message) -> Result<(), BoxError>,
    ) -> Result<(), Error> {
        let work = self.call.token().map_or_else(CancelToken::new, CancelToken::child);
        self.subscribe_under(&self.call, &work, &request.into(), &mut handler)
            .map_err(Ended::into_error)
    }

    /// Receives under `call`; the handlers work under children of `work`.
    pub(super) fn subscribe_under(
        &self,
        call: &CallOptions,
        work: &CancelToken,
        request: &Dequeue,
        handler: &mut dyn FnMut(Message) -> Result<(), BoxError>,
    ) -> Result<(), Ended> {
        let (inner, cid) = (&self.inner, self.inner.cid(call));
        let wire = request.to_wire(self, call).map_err(Ended::Subscription)?;
        let who = fields!(
            queue = wire.queue.as_str(),
            owner = wire.owner.as_str(),
            stateful = request.has_state()
        );
        event!(
            inner.log,
            Info,
            cid,
            "client.queue.subscribe.begin",
            queue = wire.queue.as_str(),
            owner = wire.owner.as_str(),
            stateful = request.has_state(),
            prefetch = wire.page_size,
            wait_seconds = wire.wait_seconds
        );
        let deliveries = self.receive(call, request, wire.clone()).map_err(Ended::Subscription)?;
        let endpoint = Arc::clone(deliveries.endpoint());
        let deliveries = Arc::new(Mutex::new(deliveries));
        let rest = Rest::of(self, &deliveries);
        let delivered = self.hand_out(call, work, request, &deliveries, &rest, handler);
        rest.join();
        let delivered = delivered?;
        let mut all = who.to_vec();
        all.extend(fields!(endpoint = &*endpoint, delivered = delivered));
        inner
            .log
            .emit(log::Level::Info, cid, "client.queue.subscribe.complete", &all);
        Ok(())
    }

    /// Runs the handler for each delivery, until the server ends the stream. Returns how many there were.
    fn hand_out(
        &self,
        call: &CallOptions,
        work: &CancelToken,
        request: &Dequeue,
        deliveries: &SharedDeliveries,
        rest: &Arc<Rest>,
        handler: &mut dyn FnMut(Message) -> Result<(), BoxError>,
    ) -> Result<u64, Ended> {
        let endpoint = Arc::clone(deliveries.lock().endpoint());
        let extender = Extender::new();
        let mut delivered = 0_u64;
        loop {
            let received = deliveries.lock().next().map_err(Ended::Subscription)?;
            let Some(received) = received else { return Ok(delivered) };
            if let Err(error) = call.check() {
                // It came too late to be handled.
                rest.give_back(Some(received.delivery));
                return Err(Ended::Subscription(error));
            }
            let content = match payload_of(deliveries, &received) {
                Ok(content) => content,
                Err(error) => {
                    rest.give_back(Some(received.delivery));
                    return Err(Ended::Subscription(error));
                }
            };
            let token = work.child();
            let mut options = CallOptions::new().cancel(token.clone());
            if let Some(deadline) = call.deadline_at() {
                options = options.deadline(deadline);
            }
            let heir = Heir::default();
            let origin = Origin {
                endpoint: Arc::clone(&endpoint),
                close_delay: request.close_after(),
                call: options,
                token,
                heir: Some(Arc::clone(&heir)),
            };
            delivered += 1;
            // A payload that is still on its way needs the connection.
            let watch = match call.token() {
                Some(token) if !content.is_stream() => {
                    let weak = Arc::downgrade(rest);
                    token.watch(weak)
                }
                _ => None,
            };
            let message = Message::received(self, received.delivery, content, origin);
            let outcome = handle(&extender, message, handler);
            drop(watch);
            if outcome.is_err() {
                // First, so that the message does not come again into a stream that ends.
                rest.give_back(None);
            }
            if let Inheritance::Dropped(message) = std::mem::replace(&mut *heir.lock(), Inheritance::Over) {
                message.close_or_forget();
            }
            outcome.map_err(Ended::Handler)?;
        }
    }

    /// Asks until there is something to deliver.
    fn receive(&self, call: &CallOptions, request: &Dequeue, mut wire: DequeueRequest) -> Result<Deliveries, Error> {
        let inner = &self.inner;
        let path = match request.has_state() {
            false => "/v1/queue/subscribe",
            true => "/v1/queue/subscribeWithState",
        };
        let mut interval = REPOST_INTERVAL_MIN;
        loop {
            let begun = clock::now();
            let mut http = Request::new("POST", path, None)
                .header("Accept", "multipart/related")
                .json(&wire)?;
            let answer = inner.walk(call, &mut http, Route::Any)?;
            inner.note_shutdown(call, &answer);
            if answer.status == 200 {
                return Deliveries::of(answer, call);
            }
            let error = answer.into_error();
            if !error.is_waiting() && !error.has_code(codes::CAS_MISMATCH) {
                return Err(error);
            }
            // The server has held the request open, or has something better to do: either way the next one is not sent sooner
            // after this one than it asked for.
            let apart = error.retry_after().unwrap_or(interval);
            call.sleep(apart.saturating_sub(begun.elapsed()))?;
            interval = (interval * 2).min(REPOST_INTERVAL_MAX);
            wire.wait_seconds = request.to_wire(self, call)?.wait_seconds;
        }
    }
}

/// Runs the handler for one message. Its failure and that of the lease are joined.
fn handle(
    extender: &Extender,
    message: Message,
    handler: &mut dyn FnMut(Message) -> Result<(), BoxError>,
) -> Result<(), Error> {
    extender
        .keep(&message)
        .map_err(|error| Error::invalid(format!("start the extending thread: {error}")))?;
    let handled = catch_unwind(AssertUnwindSafe(|| handler(message)));
    let not_prolonged = extender.release().map(|error| Error::AutoExtend(Box::new(error)));
    let failed = match handled {
        Ok(outcome) => outcome.err().map(from_handler),
        Err(panic) => Some(panicked("message handler", &*panic)),
    };
    match Error::join(not_prolonged.into_iter().chain(failed).collect()) {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

/// The error that a panic of a caller's function is.
pub(super) fn panicked(what: &str, panic: &(dyn std::any::Any + Send)) -> Error {
    let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text.as_str(),
        (None, None) => "no message",
    };
    Error::Handler(format!("lockd: consumer {what} panic: {text}").into())
}
