//! Acquire, read, let a handler work while the lease is kept alive, release: in one call.
//!
//! The handler must be idempotent. It runs again, in a new round with a new lease and a fresh snapshot, when it or what goes
//! on around it fails in a way that a new round may heal: the lease was lost, a time limit was over, an answer broke off, a
//! server was overloaded. Any other error of the handler is returned as it is. The release is attempted whatever happened,
//! a panic included; what the handler had staged is then rolled back, in all other cases committed.

use std::any::Any;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use log::Level;
use log::kv::Value;
use serde::de::DeserializeOwned;

use crate::acquire::Acquire;
use crate::call::CallOptions;
use crate::cancel::CancelToken;
use crate::client::Client;
use crate::error::{BoxError, Error};
use crate::inner::Retries;
use crate::lease::Session;
use crate::logging::{Span, event, fields};
use crate::retry::{Backoff, pause};
use crate::state::{State, interrupted};
use crate::threads;

/// So much of the snapshot is in memory before the handler starts, so that a server which goes down meanwhile has long
/// finished sending it. What is beyond streams as the handler reads, within the HTTP timeout of the read.
const SNAPSHOT_BYTES: usize = 4 * 1024 * 1024;
/// Shortest pause before a new round.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The lease is renewed at half its life, but not more often than this.
const KEEPALIVE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// What the handler of [`Client::acquire_for_update`] works with: all calls of a [`Session`], and the state as it was when
/// the lease was granted. Calls made through it end when [`cancel_token`](Self::cancel_token) is cancelled.
pub struct UpdateContext {
    session: Session,
    snapshot: Option<State>,
    token: CancelToken,
}

impl UpdateContext {
    /// Takes the snapshot. It is there once; later calls return `None`. [`Session::get`] reads anew.
    pub fn take_snapshot(&mut self) -> Option<State> {
        self.snapshot.take()
    }

    /// Takes and decodes the snapshot; `None` when the key has no state, or when it was taken before.
    pub fn snapshot<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let Some(state) = self.snapshot.take() else {
            return Ok(None);
        };
        let endpoint = self.session.endpoint().unwrap_or_default();
        state.into_json().map_err(
            |error| match error.get_ref().is_some_and(|inner| inner.is::<serde_json::Error>()) {
                true => Error::BadAnswer {
                    endpoint: endpoint.to_owned(),
                    detail: format!("the state is not what was expected: {error}"),
                },
                false => interrupted(&CallOptions::new(), endpoint, error),
            },
        )
    }

    /// True when the work is in vain: the caller cancelled, or the lease could not be renewed. The handler should return.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Cancelled when [`is_cancelled`](Self::is_cancelled) turns true; to be handed to whatever else the handler waits for.
    pub fn cancel_token(&self) -> CancelToken {
        self.token.clone()
    }
}

impl Deref for UpdateContext {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl fmt::Debug for UpdateContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateContext")
            .field("session", &self.session)
            .field("snapshot", &self.snapshot)
            .finish()
    }
}

impl Client {
    /// Acquires a lease, reads the state, runs the handler while the lease is renewed, and releases. Returns what the
    /// handler returned. See the table in the [crate docs](crate) for what leads to a new round, and thus to another run
    /// of the handler; it must be idempotent.
    ///
    /// The number of rounds is bounded by [`Acquire::failure_retries`] when set, else by that of the client. A renewal that
    /// fails cancels the handler's context; the handler is expected to notice and return.
    pub fn acquire_for_update<T>(
        &self,
        request: impl Into<Acquire>,
        mut handler: impl FnMut(&mut UpdateContext) -> Result<T, BoxError>,
    ) -> Result<T, Error> {
        let request = request.into();
        let mut rounds = Rounds {
            used: 0,
            limit: request.failure_retries.unwrap_or(self.inner.settings.failure_retries),
            backoff: request.backoff,
            delay: request.backoff.base,
        };
        loop {
            let (session, snapshot) = match self.handshake(&request) {
                Ok(begun) => begun,
                Err(failure) => {
                    self.after_failed_handshake(&request.key, &mut rounds, failure)?;
                    continue;
                }
            };
            let names = Names::of(&session);
            let endpoint = session.endpoint().unwrap_or_default().to_owned();
            names.log(self, Level::Info, "acquired", &fields!(endpoint = endpoint.as_str()));
            match self.work(&request, &session, snapshot, &mut handler, &mut rounds) {
                Ok(value) => {
                    names.log(self, Level::Info, "success", &[]);
                    return Ok(value);
                }
                Err(error) if error.is_node_passive() => {
                    names.log(self, Level::Warn, "node_passive", &fields!(error = %error));
                    return Err(error);
                }
                Err(error) => {
                    let healable = is_retryable(&error) || given_back_under(&session, &error);
                    if !healable || !rounds.another() {
                        names.log(self, Level::Error, "handler_error", &fields!(error = %error));
                        return Err(error);
                    }
                    let pause = rounds.next_pause(&error);
                    names.log_retry(self, "retry_after_handler_error", rounds.used, pause, &error);
                    self.call.sleep(pause)?;
                }
            }
        }
    }

    /// Acquire and first read, within the for-update timeout.
    fn handshake(&self, request: &Acquire) -> Result<(Session, State), HandshakeFailure> {
        let bounded = self.call.within(self.inner.settings.for_update_timeout);
        let lease = self
            .acquire_under(&bounded, request)
            .map_err(HandshakeFailure::Acquire)?;
        // From here on this call releases, exactly once and at the right moment; nothing is left to the drop.
        let session = lease.detach();
        let reading = session.with_options(bounded.clone());
        let outcome = reading.get().and_then(|mut state| {
            let endpoint = session.endpoint().unwrap_or_default();
            state
                .prefetch(SNAPSHOT_BYTES)
                .map_err(|error| interrupted(&bounded, endpoint, error))?;
            Ok(state)
        });
        match outcome {
            Ok(state) => Ok((session, state)),
            Err(error) => Err(HandshakeFailure::Snapshot(session, error)),
        }
    }

    /// Decides what a failed handshake leads to: a new round, after a pause, or the error.
    fn after_failed_handshake(&self, key: &str, rounds: &mut Rounds, failure: HandshakeFailure) -> Result<(), Error> {
        let cid = self.inner.cid(&self.call);
        let (names, error) = match failure {
            HandshakeFailure::Acquire(error) => (None, error),
            HandshakeFailure::Snapshot(session, error) => {
                let names = Names::of(&session);
                names.log(self, Level::Warn, "snapshot_error", &fields!(error = %error));
                let released = self.release_after(&session, false);
                let error = Error::join(std::iter::once(error).chain(released.err()).collect());
                // Joining at least one error gives one.
                (Some(names), error.unwrap_or(Error::Cancelled))
            }
        };
        if !is_retryable(&error) {
            return Err(error);
        }
        if !rounds.another() {
            event!(self.inner.log, Error, cid, "client.acquire_for_update.acquire_error",
                key = key, error = %error, retries = rounds.used);
            return Err(error);
        }
        let pause = rounds.next_pause(&error);
        match &names {
            Some(names) => names.log_retry(self, "retry_after_snapshot_failure", rounds.used, pause, &error),
            None => {
                let (retry_after, qrf_state) = wishes(&error);
                event!(self.inner.log, Debug, cid, "client.acquire_for_update.retry_after_acquire_error",
                    key = key, retries = rounds.used, delay = %Span(pause),
                    retry_after = %Span(retry_after), qrf_state = qrf_state, error = %error);
            }
        }
        self.call.sleep(pause)
    }

    /// Runs the handler under renewal, then releases. All that failed is joined: handler, renewal, release.
    fn work<T>(
        &self,
        request: &Acquire,
        session: &Session,
        snapshot: State,
        handler: &mut impl FnMut(&mut UpdateContext) -> Result<T, BoxError>,
        rounds: &mut Rounds,
    ) -> Result<T, Error> {
        let token = self.call.token().map_or_else(CancelToken::new, CancelToken::child);
        let mut options = CallOptions::new().cancel(token.clone());
        if let Some(deadline) = self.call.deadline_at() {
            options = options.deadline(deadline);
        }
        let session = session.with_options(options);
        let keeper = Keeper::start(&session, &token, request.ttl);

        let mut context = UpdateContext {
            session: session.clone(),
            snapshot: Some(snapshot),
            token: token.clone(),
        };
        let handled = catch_unwind(AssertUnwindSafe(|| handler(&mut context)));
        drop(context);
        token.cancel();
        let kept = keeper.map_or(Ok(()), Keeper::join);
        let handled = match handled {
            Ok(handled) => handled.map_err(from_handler),
            Err(panic) => {
                // Best effort: the panic is what the caller must hear of.
                let _ = self.release_after(&session, true);
                resume_unwind(panic)
            }
        };
        let released = self.release_after(&session, false);
        let (kept, released) = match &handled {
            Ok(_) => self.insist_on_release(&session, rounds, kept, released),
            Err(_) => (kept, released),
        };
        let (value, handler_error) = match handled {
            Ok(value) => (Some(value), None),
            Err(error) => (None, Some(error)),
        };
        let failures: Vec<Error> = [handler_error, kept.err(), released.err()]
            .into_iter()
            .flatten()
            .collect();
        match (value, Error::join(failures)) {
            (Some(value), None) => Ok(value),
            (_, Some(error)) => Err(error),
            // Without value there is a handler error, so this does not happen; it is no reason to panic either.
            (None, None) => Err(Error::Cancelled),
        }
    }

    /// Releases under the options of the caller, or within the close timeout once the caller has no more time.
    fn release_after(&self, session: &Session, rollback: bool) -> Result<(), Error> {
        match self.call.check() {
            Ok(()) if !rollback => session.release_as(&session.with_options(self.call.clone()).call, false),
            _ => session.close_with(rollback),
        }
    }

    /// The handler has done its work; if only the release met a standby, the release alone is repeated, with a budget of
    /// its own. When it gets through, a renewal that failed for the same reason is forgiven.
    fn insist_on_release(
        &self,
        session: &Session,
        rounds: &Rounds,
        kept: Result<(), Error>,
        mut released: Result<(), Error>,
    ) -> (Result<(), Error>, Result<(), Error>) {
        let forgivable = match &kept {
            Ok(()) => true,
            Err(error) => error.is_node_passive() || error.is_transport(),
        };
        let mut budget = rounds.fresh();
        while forgivable && released.as_ref().is_err_and(Error::is_node_passive) && budget.another() {
            let pause = match &released {
                Err(error) => budget.next_pause(error),
                Ok(()) => break,
            };
            if self.call.sleep(pause).is_err() {
                break;
            }
            released = self.release_after(session, false);
            if released.is_ok() {
                return (Ok(()), Ok(()));
            }
        }
        (kept, released)
    }
}

enum HandshakeFailure {
    Acquire(Error),
    Snapshot(Session, Error),
}

/// How many more rounds there may be, and when.
struct Rounds {
    used: u32,
    limit: Retries,
    backoff: Backoff,
    delay: Duration,
}

impl Rounds {
    /// Counts a retry; false when the limit is reached.
    fn another(&mut self) -> bool {
        if !self.limit.allow(self.used.saturating_add(1)) {
            return false;
        }
        self.used = self.used.saturating_add(1);
        true
    }

    /// The pause before the retry. What was slept is the base of the next one.
    fn next_pause(&mut self, error: &Error) -> Duration {
        let jittered = self.backoff.jittered(self.delay, fastrand::f64()).max(PAUSE_MIN);
        self.delay = pause(jittered, error.retry_after(), None);
        self.delay
    }

    /// The same limit and delays, unused.
    fn fresh(&self) -> Rounds {
        Rounds {
            used: 0,
            limit: self.limit,
            backoff: self.backoff,
            delay: self.backoff.base,
        }
    }
}

/// Renews the lease on a thread while the handler works.
struct Keeper {
    thread: JoinHandle<Result<(), Error>>,
}

impl Keeper {
    /// `None` without a time to live, or when the system has no thread to give: then the handler's work is bounded by the
    /// life of the lease.
    fn start(session: &Session, token: &CancelToken, ttl: Duration) -> Option<Self> {
        if ttl.is_zero() {
            return None;
        }
        let (session, token) = (session.clone(), token.clone());
        let interval = (ttl / 2).max(KEEPALIVE_INTERVAL_MIN);
        let thread = threads::spawn("lockd-keepalive", move || {
            while !token.wait(interval) {
                match session.keepalive(ttl) {
                    Ok(_) => {}
                    // The end of the handler cut this renewal short; that is no failure.
                    Err(_) if token.is_cancelled() => return Ok(()),
                    Err(error) => {
                        let inner = &session.shared.inner;
                        event!(inner.log, Warn, inner.cid(&session.call),
                            "client.acquire_for_update.keepalive_failed",
                            key = session.key(), lease_id = session.lease_id(), txn_id = session.txn_id(),
                            error = %error);
                        token.cancel();
                        return Err(error);
                    }
                }
            }
            Ok(())
        });
        thread.ok().map(|thread| Self { thread })
    }

    fn join(self) -> Result<(), Error> {
        self.thread.join().unwrap_or_else(|panic| Err(panicked(&*panic)))
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied().unwrap_or("no message");
    Error::Handler(format!("the keepalive thread panicked: {text}").into())
}

/// The names that the events of one round carry.
struct Names {
    key: String,
    lease_id: String,
    txn_id: String,
    cid: Option<String>,
}

impl Names {
    fn of(session: &Session) -> Self {
        Self {
            key: session.key().to_owned(),
            lease_id: session.lease_id().to_owned(),
            txn_id: session.txn_id().to_owned(),
            cid: session.correlation_id().map(str::to_owned),
        }
    }

    fn log(&self, client: &Client, level: Level, name: &str, more: &[(&'static str, Value<'_>)]) {
        let mut all = fields!(
            key = self.key.as_str(),
            lease_id = self.lease_id.as_str(),
            txn_id = self.txn_id.as_str()
        )
        .to_vec();
        all.extend_from_slice(more);
        let name = format!("client.acquire_for_update.{name}");
        client.inner.log.emit(level, self.cid.as_deref(), &name, &all);
    }

    fn log_retry(&self, client: &Client, name: &str, retries: u32, pause: Duration, error: &Error) {
        let (retry_after, qrf_state) = wishes(error);
        let (delay, retry_after) = (Span(pause), Span(retry_after));
        self.log(
            client,
            Level::Debug,
            name,
            &fields!(
                retries = retries,
                delay = %delay,
                retry_after = %retry_after,
                qrf_state = qrf_state,
                error = %error
            ),
        );
    }
}

/// What the server asked for.
fn wishes(error: &Error) -> (Duration, &str) {
    let qrf_state = error.api().map_or("", |api| api.qrf_state.as_str());
    (error.retry_after().unwrap_or_default(), qrf_state)
}

/// An error of a handler: one of ours when it is one, else something foreign.
pub(crate) fn from_handler(error: BoxError) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => *ours,
        Err(foreign) => Error::Handler(foreign),
    }
}

/// True when the lease was given back to a server that goes down, and the handler or the renewal then found it gone: the
/// client itself refuses calls under a lease that it has released. Had the call been a little earlier, the server would
/// have said `lease_required`, and this is the same thing.
fn given_back_under(session: &Session, error: &Error) -> bool {
    let without_token = match error {
        Error::Handler(foreign) => is_without_token(foreign.as_ref()),
        ours => ours.is_missing_fencing_token(),
    };
    without_token && session.shared.drain_release_started.load(Ordering::SeqCst)
}

/// Looks through a foreign error and its causes.
fn is_without_token(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<Error>())
        .any(Error::is_missing_fencing_token)
}

/// True when a new round may heal it: a time limit, a lost lease, an answer or a read that ended too early, an overloaded
/// or failing server. Everything else is for the caller: refusals, refused or reset connections, cancellation.
fn is_retryable(error: &Error) -> bool {
    error.any(&|single| match single {
        Error::DeadlineExceeded | Error::AcquireTimedOut { .. } => true,
        Error::Api(api) => api.status == 429 || 500 <= api.status || single.is_lease_required(),
        Error::Handler(foreign) => is_retryable_chain(foreign.as_ref()),
        Error::BodySource(source) => is_retryable_io(source),
        _ => single
            .last_transport_error()
            .is_some_and(|cause| cause.is_timeout() || cause.is_end_of_file()),
    })
}

/// Looks through a foreign error and its causes.
fn is_retryable_chain(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let here = if let Some(ours) = error.downcast_ref::<Error>() {
            is_retryable(ours)
        } else if let Some(io) = error.downcast_ref::<io::Error>() {
            is_retryable_io(io)
        } else {
            error
                .downcast_ref::<serde_json::Error>()
                .is_some_and(serde_json::Error::is_eof)
        };
        if here {
            return true;
        }
        next = error.source();
    }
    false
}

fn is_retryable_io(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{ApiError, Attempt, TransportError, Unreachable};

    fn answer(status: u16, code: &str) -> Error {
        Error::Api(Box::new(ApiError {
            status,
            code: code.to_owned(),
            ..ApiError::default()
        }))
    }

    fn unreachable(cause: TransportError) -> Error {
        Error::Unreachable(Unreachable {
            attempts: vec![Attempt {
                endpoint: "http://a:1".to_owned(),
                cause,
                sent: true,
            }],
            order: vec!["http://a:1".to_owned()],
        })
    }

    fn io(kind: io::ErrorKind) -> TransportError {
        TransportError::Io(kind.into())
    }

    /// CL-23: the predicate of a new round.
    #[test]
    fn only_what_a_new_round_may_heal_leads_to_one() {
        for (error, expected) in [
            (answer(403, "lease_required"), true),
            (answer(429, "throttled"), true),
            (answer(500, ""), true),
            (answer(409, "version_conflict"), false),
            (answer(409, "etag_mismatch"), false),
            (Error::Cancelled, false),
            (Error::DeadlineExceeded, true),
            (unreachable(TransportError::Timeout("exchange")), true),
            (unreachable(io(io::ErrorKind::UnexpectedEof)), true),
            (unreachable(io(io::ErrorKind::ConnectionRefused)), false),
            (unreachable(io(io::ErrorKind::ConnectionReset)), false),
            (Error::Handler("no".into()), false),
            (
                Error::Handler(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                true,
            ),
            (Error::Handler(serde_json::from_str::<u8>("").unwrap_err().into()), true),
            (
                Error::Handler(serde_json::from_str::<u8>("x").unwrap_err().into()),
                false,
            ),
            (
                Error::Joined(vec![Error::Cancelled, answer(403, "lease_required")]),
                true,
            ),
        ] {
            assert_eq!(is_retryable(&error), expected, "{error}");
        }
    }

    #[test]
    fn rounds_are_counted_up_to_their_limit() {
        let mut rounds = Rounds {
            used: 0,
            limit: Retries::Limited(2),
            backoff: Backoff::default(),
            delay: Duration::ZERO,
        };
        assert!(rounds.another() && rounds.another() && !rounds.another());
        assert_eq!(rounds.next_pause(&Error::Cancelled), PAUSE_MIN);
        assert!(rounds.fresh().another());
    }
}
