//! Consumers: subscriptions that are taken up again, by as many workers as one likes, until they are stopped.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::batch::Dequeue;
use super::message::Message;
use super::restart::RestartPolicy;
use super::subscribe::{Ended, panicked};
use crate::acquire::host_name;
use crate::call::CallOptions;
use crate::cancel::CancelToken;
use crate::client::Client;
use crate::error::{BoxError, ConsumerError, Error};
use crate::for_update::from_handler;
use crate::logging::{Span, event};
use crate::threads;
use crate::wire::codes;

type Handler = dyn Fn(Message) -> Result<(), BoxError> + Send + Sync;
type ErrorHandler = dyn Fn(&ConsumerFailure<'_>) -> Result<(), BoxError> + Send + Sync;
type StartHook = dyn Fn(u32) + Send + Sync;
type StopHook = dyn Fn(u32, Option<&Error>) + Send + Sync;

/// What a consumer does: which queue it subscribes to, what it does with a message, and what with a failure.
///
/// A subscription that ends is taken up again: at once when it ended well, else after the pauses of the [`RestartPolicy`]. A
/// refusal that will not change (401, 403, `namespace_forbidden` and their like) ends the consumer.
#[derive(Clone)]
#[must_use]
pub struct Consumer {
    subscription: Dequeue,
    handler: Arc<Handler>,
    name: Option<String>,
    workers: u32,
    restart: RestartPolicy,
    error_handler: Option<Arc<ErrorHandler>>,
    on_start: Option<Arc<StartHook>>,
    on_stop: Option<Arc<StopHook>>,
}

/// A failure of a consumer, as its error handler sees it.
#[derive(Debug)]
#[non_exhaustive]
pub struct ConsumerFailure<'a> {
    /// Name of the consumer.
    pub consumer: &'a str,
    /// The queue.
    pub queue: &'a str,
    /// It subscribes with state.
    pub with_state: bool,
    /// Failures in a row, this one included.
    pub attempt: u32,
    /// The pause before the restart.
    pub restart_in: Duration,
    /// What failed: the subscription or the handler.
    pub error: &'a Error,
}

impl Consumer {
    /// A consumer of this queue (or with these options) that hands every message to the handler. What the handler must do is told
    /// at [`Client::subscribe`]; all workers share it. Without an explicit [`Dequeue::owner`] each worker has one of its own,
    /// `consumer-<name>-<host>-<pid>-<sequence>`.
    pub fn new(
        subscription: impl Into<Dequeue>,
        handler: impl Fn(Message) -> Result<(), BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            subscription: subscription.into(),
            handler: Arc::new(handler),
            name: None,
            workers: 1,
            restart: RestartPolicy::default(),
            error_handler: None,
            on_start: None,
            on_stop: None,
        }
    }

    /// A name for owners, logs and errors; default: that of the queue.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into()).filter(|name| !name.trim().is_empty());
        self
    }

    /// How many workers subscribe at the same time, each on a thread of its own. Default 1; 0 means 1.
    pub fn workers(mut self, count: u32) -> Self {
        self.workers = count.max(1);
        self
    }

    /// When a worker that failed starts again.
    pub fn restart(mut self, policy: RestartPolicy) -> Self {
        self.restart = policy;
        self
    }

    /// Hears of every failure, before the pause. An error of its own ends all consumers that were started together. Without
    /// it, failures are logged (`client.consumer.restart`, `client.consumer.stop`).
    pub fn on_error(
        mut self,
        handler: impl Fn(&ConsumerFailure<'_>) -> Result<(), BoxError> + Send + Sync + 'static,
    ) -> Self {
        self.error_handler = Some(Arc::new(handler));
        self
    }

    /// Hears of every subscription that begins, with its number (from 1).
    pub fn on_start(mut self, hook: impl Fn(u32) + Send + Sync + 'static) -> Self {
        self.on_start = Some(Arc::new(hook));
        self
    }

    /// Hears of every subscription that has ended, with its number and its error.
    pub fn on_stop(mut self, hook: impl Fn(u32, Option<&Error>) + Send + Sync + 'static) -> Self {
        self.on_stop = Some(Arc::new(hook));
        self
    }

    fn display_name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.subscription.queue_name()).trim()
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("name", &self.display_name())
            .field("subscription", &self.subscription)
            .field("workers", &self.workers)
            .field("restart", &self.restart)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Runs consumers until all have ended. The first one that ends with an error stops the others, and that error is returned.
    /// When the cancel token or the deadline of [`with_options`](Client::with_options) ends them, that is `Ok`.
    pub fn run_consumers(&self, consumers: impl IntoIterator<Item = Consumer>) -> Result<(), Error> {
        self.start_consumers(consumers)?.wait()
    }

    /// Starts consumers on threads of their own; otherwise as [`run_consumers`](Self::run_consumers).
    pub fn start_consumers(&self, consumers: impl IntoIterator<Item = Consumer>) -> Result<RunningConsumers, Error> {
        let consumers: Vec<Consumer> = consumers.into_iter().collect();
        if consumers.is_empty() {
            return Err(Error::invalid("at least one consumer config is required"));
        }
        for (index, consumer) in consumers.iter().enumerate() {
            if consumer.subscription.queue_name().trim().is_empty() {
                return Err(Error::invalid(format!("consumer config[{index}] queue is required")));
            }
            // A name that no server would take is an error of the start, not of every attempt.
            consumer.subscription.to_wire(self, &self.call)?;
        }
        let work = self.call.token().map_or_else(CancelToken::new, CancelToken::child);
        let group = Arc::new(Group {
            receive: work.child(),
            work,
            failure: Mutex::new(None),
        });
        let mut running = RunningConsumers {
            group: Arc::clone(&group),
            threads: Vec::new(),
        };
        for consumer in consumers {
            for _ in 0..consumer.workers {
                let worker = Worker::new(self, consumer.clone(), Arc::clone(&group));
                let name = format!("lockd-consume-{}", worker.sequence);
                let thread = threads::spawn(&name, move || worker.run())
                    .map_err(|error| Error::invalid(format!("start a consumer thread: {error}")))?;
                running.threads.push(thread);
            }
        }
        Ok(running)
    }
}

/// Consumers at work. Dropping it stops them and waits for the handlers that are running.
#[derive(Debug)]
#[must_use = "dropping it stops the consumers"]
pub struct RunningConsumers {
    group: Arc<Group>,
    threads: Vec<JoinHandle<()>>,
}

impl RunningConsumers {
    /// Takes no more messages. Handlers that are running finish their message and may settle it; what was leased ahead is given
    /// back. Returns at once.
    pub fn stop(&self) {
        self.group.receive.cancel();
    }

    /// Stops, and also tells the handlers that are running, by the cancel token of their message.
    pub fn cancel(&self) {
        self.group.work.cancel();
    }

    /// Waits until all have ended; see [`Client::run_consumers`]. To stop from another thread use
    /// [`stopper`](Self::stopper).
    pub fn wait(mut self) -> Result<(), Error> {
        self.join();
        match self.group.failure.lock().take() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// A switch that does what [`stop`](Self::stop) does.
    pub fn stopper(&self) -> CancelToken {
        self.group.receive.clone()
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // A worker catches the panics of its caller's functions; what is left has been reported by the runtime.
            let _ = thread.join();
        }
    }
}

impl Drop for RunningConsumers {
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}

/// What consumers that were started together share.
#[derive(Debug)]
struct Group {
    /// Cancelled: no more messages.
    receive: CancelToken,
    /// Cancelled: no more work either. Parent of the former.
    work: CancelToken,
    failure: Mutex<Option<Error>>,
}

impl Group {
    /// The first error counts, and stops everybody.
    fn fail(&self, error: Error) {
        self.failure.lock().get_or_insert(error);
        self.work.cancel();
    }
}

/// Numbers the workers of this process.
static SEQUENCE: AtomicU64 = AtomicU64::new(1);

struct Worker {
    client: Client,
    consumer: Consumer,
    group: Arc<Group>,
    name: String,
    queue: String,
    subscription: Dequeue,
    sequence: u64,
}

impl Worker {
    fn new(client: &Client, consumer: Consumer, group: Arc<Group>) -> Self {
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let name = consumer.display_name().to_owned();
        let owner = format!("consumer-{name}-{}-{}-{sequence}", host_name(), std::process::id());
        Self {
            client: client.clone(),
            queue: consumer.subscription.queue_name().trim().to_owned(),
            subscription: consumer.subscription.clone().owner_unless_given(sanitized(&owner)),
            name,
            consumer,
            group,
            sequence,
        }
    }

    fn run(&self) {
        let mut failures = 0_u32;
        let mut attempt = 0_u32;
        while !self.is_over() {
            attempt = attempt.saturating_add(1);
            match self.attempt(attempt) {
                Ok(()) => failures = 0,
                Err(_) if self.is_over() => break,
                Err(ended) => {
                    failures = failures.saturating_add(1);
                    match self.after_failure(failures, ended) {
                        Ok(pause) => {
                            self.group.receive.wait(pause);
                        }
                        Err(error) => return self.group.fail(error),
                    }
                }
            }
        }
    }

    /// True when the caller has had enough.
    fn is_over(&self) -> bool {
        self.group.receive.is_cancelled() || self.client.call.remaining().is_some_and(|left| left.is_zero())
    }

    /// One subscription between its hooks.
    fn attempt(&self, attempt: u32) -> Result<(), Ended> {
        if let Some(hook) = &self.consumer.on_start {
            guarded("start hook", || hook(attempt)).map_err(Ended::Handler)?;
        }
        let mut call = CallOptions::new().cancel(self.group.receive.clone());
        if let Some(deadline) = self.client.call.deadline_at() {
            call = call.deadline(deadline);
        }
        if let Some(id) = self.client.call.cid() {
            call = call.correlation_id(id);
        }
        let handler = &self.consumer.handler;
        let outcome = self
            .client
            .subscribe_under(&call, &self.group.work, &self.subscription, &mut |message| {
                handler(message)
            });
        if let Some(hook) = &self.consumer.on_stop {
            let error = match &outcome {
                Ok(()) => None,
                // The end that the caller wanted is no error.
                Err(_) if self.is_over() => None,
                Err(Ended::Subscription(error) | Ended::Handler(error)) => Some(error),
            };
            guarded("stop hook", || hook(attempt, error)).map_err(Ended::Handler)?;
        }
        outcome
    }

    /// Decides about a failed subscription: the pause before the next one, or the error that ends the consumer.
    fn after_failure(&self, failures: u32, ended: Ended) -> Result<Duration, Error> {
        // What a handler met with a message says nothing about the subscription.
        let fatal = matches!(&ended, Ended::Subscription(error) if is_final(error));
        let error = ended.into_error();
        let policy = &self.consumer.restart;
        if policy.gives_up_after(failures) {
            let limit = policy.max_failures.unwrap_or(0);
            return Err(self.end(failures, format!("exceeded max failures ({limit})"), error));
        }
        let pause = match fatal {
            true => Duration::ZERO,
            false => policy.pause(failures, fastrand::f64()),
        };
        if let Some(handler) = &self.consumer.error_handler {
            let failure = ConsumerFailure {
                consumer: &self.name,
                queue: &self.queue,
                with_state: self.subscription.has_state(),
                attempt: failures,
                restart_in: pause,
                error: &error,
            };
            let heard = guarded("error handler", || handler(&failure));
            if let Err(raised) = heard.and_then(|outcome| outcome.map_err(from_handler)) {
                return Err(self.ended("error handler".to_owned(), raised));
            }
        } else if !fatal {
            event!(self.client.inner.log, Warn, self.client.inner.cid(&self.client.call), "client.consumer.restart",
                consumer = self.name.as_str(), queue = self.queue.as_str(),
                stateful = self.subscription.has_state(), attempt = failures,
                restart_in = %Span(pause), error = %error);
        }
        match fatal {
            true => Err(self.end(failures, "non-retryable error".to_owned(), error)),
            false => Ok(pause),
        }
    }

    /// The error of a consumer that gives up, logged unless somebody has heard of it.
    fn end(&self, failures: u32, reason: String, error: Error) -> Error {
        if self.consumer.error_handler.is_none() {
            event!(self.client.inner.log, Error, self.client.inner.cid(&self.client.call), "client.consumer.stop",
                consumer = self.name.as_str(), queue = self.queue.as_str(),
                stateful = self.subscription.has_state(), attempt = failures, error = %error);
        }
        self.ended(reason, error)
    }

    fn ended(&self, reason: String, error: Error) -> Error {
        Error::Consumer(Box::new(ConsumerError {
            consumer: self.name.clone(),
            queue: self.queue.clone(),
            reason,
            last: error,
        }))
    }
}

/// True for refusals that will not change.
fn is_final(error: &Error) -> bool {
    const CODES: [&str; 4] = [
        codes::NAMESPACE_FORBIDDEN,
        codes::FORBIDDEN,
        codes::UNAUTHORIZED,
        codes::PERMISSION_DENIED,
    ];
    matches!(error.status(), Some(401 | 403)) || CODES.iter().any(|code| error.has_code(code))
}

/// Runs a function of the caller; a panic becomes an error.
fn guarded<T>(what: &str, function: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(function)).map_err(|panic| panicked(what, &*panic))
}

/// The text with every run of characters outside `A-Z a-z 0-9 . _ -` replaced by one dash.
fn sanitized(text: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut clean = String::with_capacity(text.len());
    let mut replacing = false;
    for c in text.chars() {
        match (legal(c), replacing) {
            (true, _) => clean.push(c),
            (false, false) => clean.push('-'),
            (false, true) => {}
        }
        replacing = !legal(c);
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_made_of_plain_characters() {
        assert_eq!(sanitized("consumer-a b//c-Host.x_1"), "consumer-a-b-c-Host.x_1");
        assert_eq!(sanitized("\u{fc}ber"), "-ber");
    }
}
