//! A message that was delivered to this program.
//!
//! A [`Message`] is the right to work on it and the duty to settle it: dropped without ack or nack, it is given back as a
//! failed attempt. A [`MessageHandle`] is a handle to the same delivery, cheap to clone and to send to other threads, with
//! every call that can be made about it; it has no duty. What answers teach (entity tag, end of the lease, tokens) is
//! remembered once for all handles.

use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::delivery::Content;
use super::extender::Extender;
use super::required_queue;
use super::sidecar::MessageState;
use crate::call::CallOptions;
use crate::cancel::CancelToken;
use crate::client::Client;
use crate::error::Error;
use crate::inner::Inner;
use crate::lease::{LeaseRef, Session};
use crate::state::interrupted;
use crate::wire::Delivery;

/// A message that this program holds.
///
/// Dropping it closes it, as [`Message::close`] does: unless it was acknowledged or given back before, it is given back as a
/// failed attempt, within the close timeout at most, errors swallowed; a message that could not be given back returns by itself
/// after its visibility timeout. [`Message::detach`] leaves the lease alone.
pub struct Message {
    handle: MessageHandle,
    content: Mutex<Content>,
    state: Option<MessageState>,
    endpoint: Arc<str>,
    extender: Mutex<Option<Extender>>,
    heir: Option<Heir>,
    armed: bool,
}

/// Who gives a message back that its handler has dropped unsettled: the subscription, once it knows how the handler ended.
/// A stream that is to be closed must be closed before; else the server delivers the message into it again.
pub(super) type Heir = Arc<Mutex<Inheritance>>;

/// What became of a message in the hands of a handler.
#[derive(Debug, Default)]
pub(super) enum Inheritance {
    /// The handler is at work.
    #[default]
    Open,
    /// It has dropped the message.
    Dropped(MessageHandle),
    /// The handler has ended; the message, if it lives on elsewhere, is on its own.
    Over,
}

/// A handle to a delivery.
#[derive(Clone)]
pub struct MessageHandle {
    pub(super) shared: Arc<MessageShared>,
    pub(super) call: CallOptions,
}

/// What all handles of one delivery share.
pub(super) struct MessageShared {
    pub(super) inner: Arc<Inner>,
    pub(super) namespace: String,
    pub(super) queue: String,
    pub(super) message_id: String,
    pub(super) lease_id: String,
    pub(super) txn_id: String,
    pub(super) state_etag: String,
    pub(super) state_lease_id: String,
    facts: Facts,
    pub(super) memory: Mutex<Memory>,
    /// What became of the delivery. Held during every call about it, so that each one sends the entity tag of the one before.
    pub(super) settled: Mutex<Settled>,
    /// Cancelled when the work on the message is in vain.
    pub(super) token: CancelToken,
    pub(super) lost: Mutex<Option<String>>,
}

/// What a delivery says and no answer changes.
#[derive(Debug, Clone, Default)]
struct Facts {
    attempts: i64,
    failure_attempts: i64,
    max_attempts: i64,
    attributes: Map<String, Value>,
    content_type: String,
    payload_bytes: i64,
    cursor: String,
}

/// What answers have taught us.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    pub(super) meta_etag: String,
    pub(super) lease_expires_at_unix: i64,
    pub(super) state_lease_expires_at_unix: i64,
    pub(super) not_visible_until_unix: i64,
    pub(super) visibility_seconds: i64,
    pub(super) correlation_id: String,
    /// The tokens as last seen. Those in the table of the client are newer, as long as they are there.
    pub(super) fencing_token: i64,
    pub(super) state_fencing_token: i64,
    /// How long the message rests when it is closed without being settled.
    pub(super) close_delay: Duration,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    Open,
    /// An ack was sent, and nobody knows whether it was carried out.
    PerhapsAcked,
    Acked,
    GivenBack,
}

/// What a message gets from the call that brought it.
pub(super) struct Origin {
    pub(super) endpoint: Arc<str>,
    pub(super) close_delay: Duration,
    /// Options of the calls about the message.
    pub(super) call: CallOptions,
    pub(super) token: CancelToken,
    pub(super) heir: Option<Heir>,
}

/// Names a message that was dequeued elsewhere.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct MessageRef {
    queue: String,
    namespace: Option<String>,
    message_id: String,
    lease_id: String,
    fencing_token: i64,
    txn_id: String,
    meta_etag: String,
    state: Option<(String, i64)>,
    state_etag: String,
}

impl MessageRef {
    /// The message of this id in this queue, held under this lease with this fencing token.
    pub fn new(
        queue: impl Into<String>,
        message_id: impl Into<String>,
        lease_id: impl Into<String>,
        fencing_token: i64,
    ) -> Self {
        Self {
            queue: queue.into(),
            message_id: message_id.into(),
            lease_id: lease_id.into(),
            fencing_token,
            ..Self::default()
        }
    }

    /// Namespace of the queue; default: that of the client.
    pub fn namespace(mut self, name: impl Into<String>) -> Self {
        self.namespace = Some(name.into());
        self
    }

    /// Entity tag of the message. Nack and extend need it.
    pub fn meta_etag(mut self, etag: impl Into<String>) -> Self {
        self.meta_etag = etag.into();
        self
    }

    /// Transaction of the delivery. The server knows it by itself.
    pub fn txn_id(mut self, id: impl Into<String>) -> Self {
        self.txn_id = id.into();
        self
    }

    /// Lease of the message's state and its fencing token.
    pub fn state_lease(mut self, lease_id: impl Into<String>, fencing_token: i64) -> Self {
        self.state = Some((lease_id.into(), fencing_token));
        self
    }

    /// Etag of the marker of the message's state; sent with an ack.
    pub fn state_etag(mut self, etag: impl Into<String>) -> Self {
        self.state_etag = etag.into();
        self
    }
}

impl Message {
    pub(super) fn received(client: &Client, delivery: Delivery, content: Content, origin: Origin) -> Self {
        let inner = &client.inner;
        let told = delivery.message;
        {
            let mut tokens = inner.tokens.lock();
            tokens.insert(told.lease_id.clone(), told.fencing_token);
            if !told.state_lease_id.is_empty() {
                tokens.insert(told.state_lease_id.clone(), told.state_fencing_token);
            }
        }
        let shared = Arc::new(MessageShared {
            inner: Arc::clone(inner),
            namespace: told.namespace,
            queue: told.queue,
            message_id: told.message_id,
            lease_id: told.lease_id,
            txn_id: told.txn_id,
            state_etag: told.state_etag,
            state_lease_id: told.state_lease_id,
            facts: Facts {
                attempts: told.attempts,
                failure_attempts: told.failure_attempts,
                max_attempts: told.max_attempts,
                attributes: told.attributes.unwrap_or_default(),
                content_type: told.payload_content_type,
                payload_bytes: told.payload_bytes,
                cursor: delivery.next_cursor,
            },
            memory: Mutex::new(Memory {
                meta_etag: told.meta_etag,
                lease_expires_at_unix: told.lease_expires_at_unix,
                state_lease_expires_at_unix: told.state_lease_expires_at_unix,
                not_visible_until_unix: told.not_visible_until_unix,
                visibility_seconds: told.visibility_timeout_seconds,
                correlation_id: told.correlation_id,
                fencing_token: told.fencing_token,
                state_fencing_token: told.state_fencing_token,
                close_delay: origin.close_delay,
            }),
            settled: Mutex::new(Settled::Open),
            token: origin.token,
            lost: Mutex::new(None),
        });
        let handle = MessageHandle {
            shared,
            call: origin.call,
        };
        let state = handle.state_session(&told.state_txn_id).map(MessageState::new);
        Self {
            handle,
            content: Mutex::new(content),
            state,
            endpoint: origin.endpoint,
            extender: Mutex::new(None),
            heir: origin.heir,
            armed: true,
        }
    }

    /// A handle to use elsewhere. The duty stays with this value.
    pub fn handle(&self) -> MessageHandle {
        self.handle.clone()
    }

    /// The JSON state that belongs to the message; `None` unless it was dequeued with [`Dequeue::with_state`](super::Dequeue).
    pub fn state(&self) -> Option<&MessageState> {
        self.state.as_ref()
    }

    /// The payload as a stream. It can be read once: a second reader goes on where the first one stopped, and after
    /// [`bytes`](Self::bytes), [`json`](Self::json), [`copy_to`](Self::copy_to) or the end of the delivery there is nothing left.
    pub fn payload(&self) -> PayloadReader<'_> {
        PayloadReader { message: self }
    }

    /// What is left of the payload, read into memory.
    pub fn bytes(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.payload()
            .read_to_end(&mut bytes)
            .map_err(|error| self.broken_off(error))?;
        self.close_payload();
        Ok(bytes)
    }

    /// The payload, decoded from JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.bytes()?).map_err(|error| Error::BadAnswer {
            endpoint: self.endpoint.to_string(),
            detail: format!("the payload is not what was expected: {error}"),
        })
    }

    /// Writes what is left of the payload. Returns the number of bytes. An error of the writer is an
    /// [`Error::Handler`].
    pub fn copy_to(&self, writer: &mut dyn Write) -> Result<u64, Error> {
        let mut payload = self.payload();
        let mut piece = vec![0; 64 * 1024];
        let mut total = 0;
        loop {
            let count = payload.read(&mut piece).map_err(|error| self.broken_off(error))?;
            if count == 0 {
                break;
            }
            writer
                .write_all(&piece[..count])
                .map_err(|error| Error::Handler(error.into()))?;
            total += count as u64;
        }
        self.close_payload();
        Ok(total)
    }

    /// Lets go of the payload. The lease is not touched.
    pub fn close_payload(&self) {
        *self.content.lock() = Content::Closed;
    }

    fn broken_off(&self, error: io::Error) -> Error {
        interrupted(&self.call, &self.endpoint, error)
    }

    /// Prolongs the lease on a thread of its own, each time by its visibility timeout, at half of it (but every 250 ms to 30 s),
    /// until the message is settled or dropped. When that fails, [`cancel_token`](MessageHandle::cancel_token) is cancelled and
    /// [`lost`](MessageHandle::lost) tells why. Messages of a subscription need it only beyond their handler.
    pub fn start_auto_extend(&self) -> Result<(), Error> {
        let extender = Extender::new();
        extender
            .keep(&self.handle)
            .map_err(|error| Error::invalid(format!("start the extending thread: {error}")))?;
        // The old thread, if any, is stopped and joined by its drop, outside the lock.
        let old = self.extender.lock().replace(extender);
        drop(old);
        Ok(())
    }

    /// Gives the message back as a failed attempt, after the delay given to [`Dequeue::close_delay`](super::Dequeue) or
    /// [`set_close_delay`](MessageHandle::set_close_delay), unless it was settled or lost before. Bounded by the close timeout,
    /// whatever deadline and cancel token say.
    pub fn close(mut self) -> Result<(), Error> {
        self.armed = false;
        self.let_go()
    }

    /// Gives up the duty: the message stays leased until a handle settles it or its visibility timeout is over.
    pub fn detach(mut self) -> MessageHandle {
        self.armed = false;
        self.handle.clone()
    }

    fn let_go(&mut self) -> Result<(), Error> {
        drop(self.extender.get_mut().take());
        let outcome = self.handle.close();
        *self.content.get_mut() = Content::Closed;
        outcome
    }
}

impl Deref for Message {
    type Target = MessageHandle;

    fn deref(&self) -> &MessageHandle {
        &self.handle
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Some(heir) = self.heir.take() {
            let mut inheritance = heir.lock();
            if let Inheritance::Open = *inheritance {
                *inheritance = Inheritance::Dropped(self.handle.clone());
                return;
            }
        }
        drop(self.extender.get_mut().take());
        self.handle.close_or_forget();
    }
}

/// The payload of a message.
#[derive(Debug)]
pub struct PayloadReader<'a> {
    message: &'a Message,
}

impl Read for PayloadReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // A settled message has no payload any more, also when a handle elsewhere has settled it.
        match self.message.is_settled() {
            true => Ok(0),
            false => self.message.content.lock().read(out),
        }
    }
}

impl Client {
    /// A handle to a message that was dequeued elsewhere, perhaps by another process. It has no payload.
    pub fn message(&self, message: MessageRef) -> Result<MessageHandle, Error> {
        let required = |text: &str, what: &str| match text.trim() {
            "" => Err(Error::invalid(format!("{what} is required"))),
            text => Ok(text.to_owned()),
        };
        let (state_lease_id, state_fencing_token) = message.state.unwrap_or_default();
        if message.fencing_token <= 0 || (!state_lease_id.is_empty() && state_fencing_token <= 0) {
            return Err(Error::MissingFencingToken);
        }
        Ok(MessageHandle {
            shared: Arc::new(MessageShared {
                inner: Arc::clone(&self.inner),
                namespace: self.inner.namespace(message.namespace.as_deref())?,
                queue: required_queue(&message.queue)?,
                message_id: required(&message.message_id, "message_id")?,
                lease_id: required(&message.lease_id, "lease_id")?,
                txn_id: message.txn_id,
                state_etag: message.state_etag,
                state_lease_id,
                facts: Facts::default(),
                memory: Mutex::new(Memory {
                    meta_etag: message.meta_etag,
                    fencing_token: message.fencing_token,
                    state_fencing_token,
                    ..Memory::default()
                }),
                settled: Mutex::new(Settled::Open),
                token: CancelToken::new(),
                lost: Mutex::new(None),
            }),
            call: self.call.clone(),
        })
    }
}

impl MessageHandle {
    /// The same delivery, its calls under these options. Without a correlation id of their own, they take that of the message.
    pub fn with_options(&self, options: CallOptions) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            call: options,
        }
    }

    /// Namespace of the queue.
    pub fn namespace(&self) -> &str {
        &self.shared.namespace
    }

    /// The queue.
    pub fn queue(&self) -> &str {
        &self.shared.queue
    }

    /// The id of the message. The same for every delivery of it.
    pub fn message_id(&self) -> &str {
        &self.shared.message_id
    }

    /// Deliveries so far, this one included.
    pub fn attempts(&self) -> i64 {
        self.shared.facts.attempts
    }

    /// Attempts that failed so far, this one not included.
    pub fn failure_attempts(&self) -> i64 {
        self.shared.facts.failure_attempts
    }

    /// Failed attempts after which the message is dead.
    pub fn max_attempts(&self) -> i64 {
        self.shared.facts.max_attempts
    }

    /// What the producer sent along.
    pub fn attributes(&self) -> &Map<String, Value> {
        &self.shared.facts.attributes
    }

    /// Media type of the payload.
    pub fn content_type(&self) -> &str {
        &self.shared.facts.content_type
    }

    /// Length of the payload in bytes, as announced.
    pub fn payload_bytes(&self) -> i64 {
        self.shared.facts.payload_bytes
    }

    /// Cursor behind the message; servers leave it empty.
    pub fn cursor(&self) -> &str {
        &self.shared.facts.cursor
    }

    /// Lease of the message.
    pub fn lease_id(&self) -> &str {
        &self.shared.lease_id
    }

    /// Transaction of the lease.
    pub fn txn_id(&self) -> &str {
        &self.shared.txn_id
    }

    /// Fencing token of the lease: it rises by one with each delivery. Hand it to systems that guard against stale holders.
    pub fn fencing_token(&self) -> i64 {
        self.shared.fencing_token()
    }

    /// Marks the revision of the message.
    pub fn meta_etag(&self) -> String {
        self.shared.memory.lock().meta_etag.clone()
    }

    /// When the lease is over, by the server's clock (Unix time).
    pub fn lease_expires_at_unix(&self) -> i64 {
        self.shared.memory.lock().lease_expires_at_unix
    }

    /// Nobody else gets the message before this second, by the server's clock (Unix time).
    pub fn not_visible_until_unix(&self) -> i64 {
        self.shared.memory.lock().not_visible_until_unix
    }

    /// Life of the lease as it was granted or extended last.
    pub fn visibility(&self) -> Duration {
        let seconds = self.shared.memory.lock().visibility_seconds;
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// The correlation id of the enqueue, which all calls about the message carry.
    pub fn correlation_id(&self) -> String {
        self.shared.memory.lock().correlation_id.clone()
    }

    /// Etag of the marker of the message's state; empty without state.
    pub fn state_etag(&self) -> &str {
        &self.shared.state_etag
    }

    /// Lease of the message's state; empty without state.
    pub fn state_lease_id(&self) -> &str {
        &self.shared.state_lease_id
    }

    /// Fencing token of that lease; 0 without state.
    pub fn state_fencing_token(&self) -> i64 {
        self.shared.state_fencing_token()
    }

    /// When that lease is over, by the server's clock (Unix time); 0 without state.
    pub fn state_lease_expires_at_unix(&self) -> i64 {
        self.shared.memory.lock().state_lease_expires_at_unix
    }

    /// Changes how long the message rests when it is closed without being settled.
    pub fn set_close_delay(&self, delay: Duration) {
        self.shared.memory.lock().close_delay = delay;
    }

    /// True once the message was acknowledged or given back through any handle.
    pub fn is_settled(&self) -> bool {
        // While a call is running its outcome is not known yet: not settled.
        self.shared
            .settled
            .try_lock()
            .is_some_and(|settled| matches!(*settled, Settled::Acked | Settled::GivenBack))
    }

    /// Cancelled when the work on the message is in vain: its lease could not be prolonged, or the subscription that brought it
    /// was cancelled. To be handed to whatever the work waits for.
    pub fn cancel_token(&self) -> CancelToken {
        self.shared.token.clone()
    }

    /// Why the message is not this program's any more, as far as answers have told.
    pub fn lost(&self) -> Option<String> {
        self.shared.lost.lock().clone()
    }

    fn state_session(&self, txn_id: &str) -> Option<Session> {
        let shared = &self.shared;
        if shared.state_lease_id.is_empty() {
            return None;
        }
        let key = format!("q/{}/state/{}", shared.queue, shared.message_id);
        let lease = LeaseRef::new(key, shared.state_lease_id.clone())
            .namespace(shared.namespace.clone())
            .txn_id(txn_id);
        let client = Client {
            inner: Arc::clone(&shared.inner),
            call: self.call_options(),
        };
        // Fails only for names that no server sends; then there is no state to work with.
        Session::adopt(&client, lease).ok()
    }
}

impl MessageShared {
    pub(super) fn fencing_token(&self) -> i64 {
        let newest = self.inner.tokens.lock().get(&self.lease_id).copied();
        newest.unwrap_or_else(|| self.memory.lock().fencing_token)
    }

    pub(super) fn state_fencing_token(&self) -> i64 {
        let newest = self.inner.tokens.lock().get(&self.state_lease_id).copied();
        newest.unwrap_or_else(|| self.memory.lock().state_fencing_token)
    }

    /// Drops what the client remembers by lease id, and keeps it here.
    pub(super) fn forget(&self) {
        let tokens = (self.fencing_token(), self.state_fencing_token());
        {
            let mut memory = self.memory.lock();
            (memory.fencing_token, memory.state_fencing_token) = tokens;
        }
        self.inner.forget(&self.lease_id);
        if !self.state_lease_id.is_empty() {
            self.inner.forget(&self.state_lease_id);
        }
    }
}

impl fmt::Debug for MessageHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageHandle")
            .field("namespace", &self.shared.namespace)
            .field("queue", &self.shared.queue)
            .field("message_id", &self.shared.message_id)
            .field("attempts", &self.shared.facts.attempts)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}
