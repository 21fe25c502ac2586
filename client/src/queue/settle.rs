//! What ends or prolongs a delivery: ack, nack, defer, extend.
//!
//! One call at a time per delivery, because each one sends the entity tag that the answer before it has brought.

use std::time::Duration;

use log::Level;
use log::kv::Value as Field;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::message::{MessageHandle, MessageShared, Settled};
use crate::acquire::seconds_up;
use crate::call::CallOptions;
use crate::error::Error;
use crate::logging::fields;
use crate::walk::{Answer, Request, Route};
use crate::wire::{AckRequest, AckResponse, ExtendRequest, ExtendResponse, NackRequest, NackResponse, codes, headers};

/// How a message is given back.
enum Return {
    /// An attempt that failed, perhaps with its reason.
    Failure(Option<Value>),
    /// Not now.
    Defer,
}

/// An answer, and the tokens that it may bring beyond what today's servers send.
#[derive(Deserialize)]
struct Reply<T> {
    #[serde(flatten)]
    answer: T,
    #[serde(default)]
    fencing_token: i64,
    #[serde(default)]
    state_fencing_token: i64,
}

impl MessageHandle {
    /// Acknowledges the message: the work is done and the message gone, with its state. A failure leaves it open for another
    /// try; [`Error::is_message_lost`] says that it is no longer this program's.
    ///
    /// When the answer to an ack was lost, the next one finds either the message or nothing. Nothing means that it is
    /// finished, and is a success; to an ack that was not sent before it is an error (`not_found`).
    pub fn ack(&self) -> Result<(), Error> {
        let shared = &self.shared;
        let mut settled = shared.open()?;
        let call = self.call_options();
        let request = AckRequest {
            namespace: shared.namespace.clone(),
            queue: shared.queue.clone(),
            message_id: shared.message_id.clone(),
            lease_id: shared.lease_id.clone(),
            txn_id: shared.txn_id.clone(),
            fencing_token: shared.fencing_token(),
            meta_etag: shared.meta_etag(),
            state_etag: shared.state_etag.clone(),
            state_lease_id: shared.state_lease_id.clone(),
            state_fencing_token: shared.state_fencing_token(),
        };
        let events = Events::of(self, &call, "ack");
        events.emit(Level::Trace, "start", &[]);
        let answer = events.ask("/v1/queue/ack", &request, None).inspect_err(|error| {
            if error.leaves_open() {
                *settled = Settled::PerhapsAcked;
            }
        })?;
        let may_repeat = answer.may_repeat || *settled == Settled::PerhapsAcked;
        match events.read::<AckResponse>(answer, &[]) {
            Ok(answer) => shared.note_correlation(&answer.correlation_id),
            Err(error) if may_repeat && error.has_code(codes::NOT_FOUND) => {
                events.emit(Level::Debug, "already_gone", &[]);
            }
            Err(error) => {
                if may_repeat || error.leaves_open() {
                    *settled = Settled::PerhapsAcked;
                }
                if error.is_message_lost() {
                    shared.note_loss(&error);
                }
                return Err(error);
            }
        }
        *settled = Settled::Acked;
        shared.forget();
        Ok(())
    }

    /// Gives the message back as a failed attempt; somebody gets it after this time. When its attempts are used up, nobody does.
    pub fn nack(&self, delay: Duration) -> Result<(), Error> {
        self.give_back(&self.call_options(), delay, Return::Failure(None))
    }

    /// As [`nack`](Self::nack), and stores why with the message.
    pub fn nack_because<T: Serialize + ?Sized>(&self, delay: Duration, reason: &T) -> Result<(), Error> {
        let reason = serde_json::to_value(reason).map_err(|error| Error::invalid(format!("encode reason: {error}")))?;
        self.give_back(&self.call_options(), delay, Return::Failure(Some(reason)))
    }

    /// Gives the message back without counting a failure: it is not its turn yet.
    pub fn defer(&self, delay: Duration) -> Result<(), Error> {
        self.give_back(&self.call_options(), delay, Return::Defer)
    }

    /// Gives the message back as a failed attempt, within the close timeout, unless it was settled or lost before.
    pub(super) fn close(&self) -> Result<(), Error> {
        let shared = &self.shared;
        if shared.lost.lock().is_some() {
            shared.forget();
            return Ok(());
        }
        let delay = shared.memory.lock().close_delay;
        let bounded = CallOptions::new().timeout(shared.inner.settings.close_timeout);
        let bounded = self.with_options(bounded).call_options();
        match self.give_back(&bounded, delay, Return::Failure(None)) {
            Err(Error::MessageClosed) => Ok(()),
            outcome => outcome,
        }
    }

    /// Gives a message back that nobody has looked at, within the close timeout: somebody else gets it at once.
    pub(super) fn return_unseen(&self) -> Result<(), Error> {
        let bounded = CallOptions::new().timeout(self.shared.inner.settings.close_timeout);
        let bounded = self.with_options(bounded).call_options();
        let outcome = self.give_back(&bounded, Duration::ZERO, Return::Defer);
        if outcome.is_err() {
            self.shared.forget();
        }
        outcome
    }

    /// Closes where nobody can be told of an error. It has been logged as an event, and nobody tries again.
    pub(super) fn close_or_forget(&self) {
        if self.close().is_err() {
            self.shared.forget();
        }
    }

    fn give_back(&self, call: &CallOptions, delay: Duration, how: Return) -> Result<(), Error> {
        let shared = &self.shared;
        let mut settled = shared.open()?;
        let (intent, last_error) = match how {
            Return::Failure(reason) => ("failure", reason),
            Return::Defer => ("defer", None),
        };
        let delay_seconds = seconds_up(delay);
        let request = NackRequest {
            namespace: shared.namespace.clone(),
            queue: shared.queue.clone(),
            message_id: shared.message_id.clone(),
            lease_id: shared.lease_id.clone(),
            txn_id: shared.txn_id.clone(),
            fencing_token: shared.fencing_token(),
            meta_etag: shared.meta_etag(),
            state_etag: String::new(),
            delay_seconds,
            intent: intent.to_owned(),
            last_error,
            state_lease_id: shared.state_lease_id.clone(),
            state_fencing_token: shared.state_fencing_token(),
        };
        let events = Events::of(self, call, "nack");
        events.emit(
            Level::Trace,
            "start",
            &fields!(delay_seconds = delay_seconds, intent = intent),
        );
        let answer: NackResponse = events.send("/v1/queue/nack", &request, None, &[])?;
        shared.note_correlation(&answer.correlation_id);
        if !answer.meta_etag.is_empty() {
            shared.memory.lock().meta_etag = answer.meta_etag;
        }
        *settled = Settled::GivenBack;
        shared.forget();
        Ok(())
    }

    /// Prolongs the lease, and that of the state, to this time from now; zero means the visibility timeout of the delivery.
    /// Returns the new end of the lease (Unix time).
    pub fn extend(&self, by: Duration) -> Result<i64, Error> {
        self.extend_under(&self.call_options(), by, None)
    }

    /// As [`extend`](Self::extend); each attempt at an endpoint may take so long.
    pub(super) fn extend_under(
        &self,
        call: &CallOptions,
        by: Duration,
        attempt_timeout: Option<Duration>,
    ) -> Result<i64, Error> {
        let shared = &self.shared;
        let _settled = shared.open()?;
        let extend_by_seconds = seconds_up(by);
        let request = ExtendRequest {
            namespace: shared.namespace.clone(),
            queue: shared.queue.clone(),
            message_id: shared.message_id.clone(),
            lease_id: shared.lease_id.clone(),
            txn_id: shared.txn_id.clone(),
            fencing_token: shared.fencing_token(),
            meta_etag: shared.meta_etag(),
            extend_by_seconds,
            state_lease_id: shared.state_lease_id.clone(),
            state_fencing_token: shared.state_fencing_token(),
        };
        let events = Events::of(self, call, "extend");
        events.emit(Level::Trace, "start", &fields!(extend_seconds = extend_by_seconds));
        let answer: ExtendResponse = events.send(
            "/v1/queue/extend",
            &request,
            attempt_timeout,
            &["lease_expires_at_unix"],
        )?;
        shared.note_correlation(&answer.correlation_id);
        let mut memory = shared.memory.lock();
        memory.meta_etag = answer.meta_etag;
        memory.lease_expires_at_unix = answer.lease_expires_at_unix;
        memory.not_visible_until_unix = answer.lease_expires_at_unix;
        if 0 < answer.visibility_timeout_seconds {
            memory.visibility_seconds = answer.visibility_timeout_seconds;
        }
        if 0 < answer.state_lease_expires_at_unix {
            memory.state_lease_expires_at_unix = answer.state_lease_expires_at_unix;
        }
        Ok(answer.lease_expires_at_unix)
    }

    /// The options of a call about the message: with its correlation id, unless there is an explicit one.
    pub(super) fn call_options(&self) -> CallOptions {
        match self.call.cid() {
            Some(_) => self.call.clone(),
            None => self
                .call
                .clone()
                .correlation_id(&self.shared.memory.lock().correlation_id),
        }
    }
}

impl MessageShared {
    /// Begins a call about the message: nobody else makes one while the guard lives.
    fn open(&self) -> Result<parking_lot::MutexGuard<'_, Settled>, Error> {
        let settled = self.settled.lock();
        match *settled {
            Settled::Open | Settled::PerhapsAcked => Ok(settled),
            Settled::Acked | Settled::GivenBack => Err(Error::MessageClosed),
        }
    }

    fn note_loss(&self, error: &Error) {
        self.lost.lock().get_or_insert_with(|| error.to_string());
    }

    /// A function of its own, because the lock must not be held while the other fields of a request are filled in.
    fn meta_etag(&self) -> String {
        self.memory.lock().meta_etag.clone()
    }

    fn note_correlation(&self, id: &str) {
        if !id.is_empty() {
            id.clone_into(&mut self.memory.lock().correlation_id);
        }
    }

    /// Takes over the tokens that an answer brings, if it brings any.
    fn note_tokens(&self, header: Option<&str>, message: i64, state: i64) {
        self.inner.refresh_token(&self.lease_id, header);
        let mut tokens = self.inner.tokens.lock();
        for (lease_id, token) in [(&self.lease_id, message), (&self.state_lease_id, state)] {
            if 0 < token && !lease_id.is_empty() {
                tokens.insert(lease_id.clone(), token);
            }
        }
    }
}

/// The log events of one call about a message, and the call itself.
struct Events<'a> {
    handle: &'a MessageHandle,
    call: &'a CallOptions,
    name: &'static str,
}

impl<'a> Events<'a> {
    fn of(handle: &'a MessageHandle, call: &'a CallOptions, name: &'static str) -> Self {
        Self { handle, call, name }
    }

    fn emit(&self, level: Level, what: &str, more: &[(&'static str, Field<'_>)]) {
        let shared = &self.handle.shared;
        if !shared.inner.log.wants(level) {
            return;
        }
        let mut all = fields!(queue = shared.queue.as_str(), mid = shared.message_id.as_str()).to_vec();
        all.extend_from_slice(more);
        let event = format!("client.queue.{}.{what}", self.name);
        shared.inner.log.emit(level, shared.inner.cid(self.call), &event, &all);
    }

    /// Makes the call. `told` names the numbers of the answer that the success event shows.
    fn send<T: DeserializeOwned>(
        &self,
        path: &'static str,
        request: &impl Serialize,
        attempt_timeout: Option<Duration>,
        told: &[&'static str],
    ) -> Result<T, Error> {
        let answer = self.ask(path, request, attempt_timeout)?;
        self.read(answer, told).inspect_err(|error| {
            if error.is_message_lost() {
                self.handle.shared.note_loss(error);
            }
        })
    }

    /// The first half of a call: the answer, whatever it says.
    fn ask(
        &self,
        path: &'static str,
        request: &impl Serialize,
        attempt_timeout: Option<Duration>,
    ) -> Result<Answer, Error> {
        let inner = &self.handle.shared.inner;
        let mut http = Request::new("POST", path, attempt_timeout).json(request)?;
        let answer = inner.walk(self.call, &mut http, Route::Any)?;
        inner.note_shutdown(self.call, &answer);
        Ok(answer)
    }

    /// The second half: what it says.
    fn read<T: DeserializeOwned>(&self, answer: Answer, told: &[&'static str]) -> Result<T, Error> {
        let shared = &self.handle.shared;
        let endpoint = std::sync::Arc::clone(&answer.endpoint);
        if answer.status != 200 {
            self.emit(
                Level::Warn,
                "error",
                &fields!(endpoint = &*endpoint, status = answer.status),
            );
            return Err(answer.into_error());
        }
        let header = answer.header(headers::FENCING_TOKEN).map(str::to_owned);
        let value: Value = answer.into_json()?;
        let mut more = fields!(endpoint = &*endpoint).to_vec();
        more.extend(
            told.iter()
                .filter_map(|name| Some((*name, Field::from(value.get(name)?.as_i64()?)))),
        );
        self.emit(Level::Trace, "success", &more);
        let reply: Reply<T> = serde_json::from_value(value).map_err(|error| Error::BadAnswer {
            endpoint: endpoint.to_string(),
            detail: error.to_string(),
        })?;
        shared.note_tokens(header.as_deref(), reply.fencing_token, reply.state_fencing_token);
        Ok(reply.answer)
    }
}
