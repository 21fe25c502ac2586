//! Acquiring a lease: one attempt is one walk, and attempts are repeated as the answer deserves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::call::CallOptions;
use crate::client::Client;
use crate::clock;
use crate::error::Error;
use crate::inner::Retries;
use crate::lease::{Grant, Lease};
use crate::logging::{Span, event};
use crate::retry::{Backoff, pause};
use crate::walk::{Request, Route, is_success};
use crate::wire::{AcquireRequest, AcquireResponse, headers};

/// Failures in a row that an acquire gets over unless told otherwise.
const FAILURE_RETRIES: Retries = Retries::Limited(5);

/// What to acquire, and how patiently. `Acquire::key("orders/4711")`, or simply `"orders/4711".into()`.
#[derive(Debug, Clone)]
#[must_use]
pub struct Acquire {
    pub(crate) key: String,
    pub(crate) namespace: Option<String>,
    pub(crate) owner: Option<String>,
    pub(crate) ttl: Duration,
    pub(crate) wait: Wait,
    pub(crate) if_not_exists: bool,
    pub(crate) txn_id: Option<String>,
    pub(crate) backoff: Backoff,
    pub(crate) failure_retries: Option<Retries>,
    pub(crate) auto_renew: bool,
}

/// What to do when the key is held, or the queue has nothing to deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Do not wait: one attempt, whose error is returned whatever it is. (A subscription ends when nothing is left, and asks
    /// again when there was nothing at all.)
    No,
    /// Wait without end; only the deadline or the cancel token of the call ends it. Note that also a server which keeps
    /// failing with 5xx is asked again for ever.
    Forever,
    /// Wait so long, then fail: an acquire with [`Error::AcquireTimedOut`], a dequeue with the server's `waiting`. A
    /// subscription asks again.
    UpTo(Duration),
}

impl Acquire {
    /// The lease of this key. An empty key makes the server invent one.
    pub fn key(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            namespace: None,
            owner: None,
            ttl: Duration::from_secs(30),
            wait: Wait::Forever,
            if_not_exists: false,
            txn_id: None,
            backoff: Backoff::default(),
            failure_retries: None,
            auto_renew: false,
        }
    }

    /// A key that the server invents; read it with [`Session::key`](crate::Session::key).
    pub fn generated_key() -> Self {
        Self::key("")
    }

    /// Namespace; default: that of the client.
    pub fn namespace(mut self, name: impl Into<String>) -> Self {
        self.namespace = Some(name.into());
        self
    }

    /// Who asks, for people who look at the key; default: host name and process id.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Life of the lease, in whole seconds, rounded up. Default 30 s; zero leaves the choice to the server.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// What to do when the key is held; default [`Wait::Forever`].
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    /// Fails with `already_exists` when the key has ever been acquired before.
    pub fn if_not_exists(mut self, on: bool) -> Self {
        self.if_not_exists = on;
        self
    }

    /// Joins this transaction.
    pub fn txn_id(mut self, id: impl Into<String>) -> Self {
        self.txn_id = Some(id.into()).filter(|id| !id.is_empty());
        self
    }

    /// Pacing of the attempts.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// How many failures in a row are got over; default 5. Being told to wait is not a failure, nor is 429 or 5xx.
    pub fn failure_retries(mut self, retries: Retries) -> Self {
        self.failure_retries = Some(retries);
        self
    }

    /// Renews the lease on a thread for as long as the [`Lease`] lives; see [`Lease::start_renewal`].
    pub fn auto_renew(mut self, on: bool) -> Self {
        self.auto_renew = on;
        self
    }
}

impl From<&str> for Acquire {
    fn from(key: &str) -> Self {
        Self::key(key)
    }
}

impl From<String> for Acquire {
    fn from(key: String) -> Self {
        Self::key(key)
    }
}

impl From<&Acquire> for Acquire {
    fn from(request: &Acquire) -> Self {
        request.clone()
    }
}

/// The owner of an acquire or a dequeue that names none: `host-pid`.
pub fn default_owner() -> String {
    format!("{}-{}", host_name(), std::process::id())
}

/// The name of this machine, or `unknown`.
pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}

impl Client {
    /// Acquires a lease. What is retried, and for how long, is a table in the [crate docs](crate).
    pub fn acquire(&self, request: impl Into<Acquire>) -> Result<Lease, Error> {
        let request = request.into();
        let lease = self.acquire_under(&self.call, &request)?;
        if request.auto_renew {
            lease.start_renewal(request.ttl)?;
        }
        Ok(lease)
    }

    pub(crate) fn acquire_under(&self, call: &CallOptions, request: &Acquire) -> Result<Lease, Error> {
        let inner = &self.inner;
        let namespace = inner.namespace(request.namespace.as_deref())?;
        let mut wire = AcquireRequest {
            namespace,
            key: request.key.clone(),
            ttl_seconds: seconds_up(request.ttl),
            owner: request
                .owner
                .clone()
                .filter(|owner| !owner.is_empty())
                .unwrap_or_else(default_owner),
            block_seconds: 0,
            if_not_exists: request.if_not_exists,
            txn_id: request.txn_id.clone().unwrap_or_default(),
        };
        let mut patience = Patience::new(request, call);
        loop {
            patience.attempt += 1;
            wire.block_seconds = patience.block_seconds(call);
            let error = match self.acquire_once(call, request, &wire, &patience) {
                Ok(lease) => return Ok(lease),
                Err(error) => error,
            };
            let (pause, error) = self.judge(call, request, &wire, &mut patience, error)?;
            if let Err(ended) = call.sleep(pause) {
                return Err(self.acquire_ended(call, &wire.key, patience.attempt, ended));
            }
            // The pause may have used up the waiting time; another attempt would go beyond it.
            if patience.is_over() {
                return Err(self.acquire_timed_out(call, &wire, &patience, error));
            }
        }
    }

    fn acquire_once(
        &self,
        call: &CallOptions,
        request: &Acquire,
        wire: &AcquireRequest,
        patience: &Patience,
    ) -> Result<Lease, Error> {
        let (inner, cid) = (&self.inner, self.inner.cid(call));
        event!(
            inner.log,
            Trace,
            cid,
            "client.acquire.attempt",
            key = wire.key.as_str(),
            block_secs = wire.block_seconds,
            endpoint = &*inner.last_endpoint(),
            attempt = patience.attempt
        );
        let timeout = patience.attempt_timeout(wire.block_seconds, inner.settings.http_timeout);
        let mut message = Request::new("POST", "/v1/acquire", timeout)
            .header_if(headers::TXN_ID, request.txn_id.as_deref())
            .json(wire)?;
        let asked_at = clock::now();
        let answer = inner.walk(call, &mut message, Route::Any)?;
        if !is_success(answer.status) {
            let error = answer.into_error();
            self.log_refusal(call, &wire.key, patience.attempt, &error);
            return Err(error);
        }
        let endpoint = Arc::clone(&answer.endpoint);
        let header_cid = answer.header(headers::CORRELATION_ID).map(str::to_owned);
        let mut granted: AcquireResponse = answer.into_json()?;
        if granted.fencing_token <= 0 || granted.lease_id.is_empty() {
            return Err(Error::BadAnswer {
                endpoint: endpoint.to_string(),
                detail: "a grant without lease id or fencing token".to_owned(),
            });
        }
        if granted.key.is_empty() {
            granted.key = wire.key.clone();
        }
        if granted.namespace.is_empty() {
            granted.namespace = wire.namespace.clone();
        }
        event!(
            inner.log,
            Info,
            cid,
            "client.acquire.success",
            key = granted.key.as_str(),
            lease_id = granted.lease_id.as_str(),
            txn_id = granted.txn_id.as_str(),
            endpoint = &*endpoint,
            attempt = patience.attempt
        );
        let correlation_id = Some(std::mem::take(&mut granted.correlation_id))
            .filter(|id| !id.is_empty())
            .or(header_cid)
            .or_else(|| cid.map(str::to_owned));
        Ok(Lease::granted(
            self,
            Grant {
                answer: granted,
                endpoint,
                correlation_id,
                asked_at,
                ttl: request.ttl,
            },
        ))
    }

    /// Decides about a failed attempt: the pause before the next one, and what made it necessary, or the error to return.
    fn judge(
        &self,
        call: &CallOptions,
        request: &Acquire,
        wire: &AcquireRequest,
        patience: &mut Patience,
        error: Error,
    ) -> Result<(Duration, Error), Error> {
        let (inner, cid) = (&self.inner, self.inner.cid(call));
        let (key, attempt) = (wire.key.as_str(), patience.attempt);
        let verdict = Verdict::of(&error);
        match verdict {
            Verdict::Ended => return Err(self.acquire_ended(call, key, attempt, error)),
            Verdict::Forbidden => {
                event!(inner.log, Error, cid, "client.acquire.forbidden", key = key, error = %error, attempt = attempt);
                return Err(error);
            }
            Verdict::AlreadyExists | Verdict::Final => return Err(error),
            Verdict::Expected | Verdict::Failure if request.wait == Wait::No => {
                event!(inner.log, Error, cid, "client.acquire.failure", key = key, error = %error, attempt = attempt);
                return Err(error);
            }
            Verdict::Expected => {
                patience.failures = 0;
                if error.status() == Some(409) {
                    event!(inner.log, Debug, cid, "client.acquire.conflict",
                        key = key, error = %error, attempt = attempt);
                }
            }
            Verdict::Failure => {
                patience.failures += 1;
                let retries = patience.failures;
                if !request.failure_retries.unwrap_or(FAILURE_RETRIES).allow(retries) {
                    event!(inner.log, Error, cid, "client.acquire.failure_limit",
                        key = key, error = %error, retries = retries - 1, attempt = attempt);
                    return Err(error);
                }
                event!(inner.log, Warn, cid, "client.acquire.retry",
                    key = key, error = %error, retries = retries, attempt = attempt);
            }
        }
        if patience.is_over() {
            return Err(self.acquire_timed_out(call, wire, patience, error));
        }
        let retry_after = error.retry_after();
        let jittered = request.backoff.jittered(patience.delay, fastrand::f64());
        let delay = pause(jittered, retry_after, patience.remaining());
        patience.delay = request.backoff.next(patience.delay, retry_after);
        event!(inner.log, Trace, cid, "client.acquire.backoff",
            key = key, delay = %Span(delay), retry_after = %Span(retry_after.unwrap_or_default()),
            attempt = attempt, endpoint = &*inner.last_endpoint());
        Ok((delay, error))
    }

    /// The waiting time is over.
    fn acquire_timed_out(&self, call: &CallOptions, wire: &AcquireRequest, patience: &Patience, last: Error) -> Error {
        event!(self.inner.log, Warn, self.inner.cid(call), "client.acquire.timeout",
            key = wire.key.as_str(), block_secs = wire.block_seconds, attempt = patience.attempt, error = %last);
        Error::AcquireTimedOut {
            elapsed: clock::now().saturating_duration_since(patience.started),
            last: Box::new(last),
        }
    }

    /// Logs the end that the caller has set to the call.
    fn acquire_ended(&self, call: &CallOptions, key: &str, attempt: u32, error: Error) -> Error {
        let (log, cid) = (&self.inner.log, self.inner.cid(call));
        match error {
            Error::Cancelled => {
                event!(log, Error, cid, "client.acquire.context", key = key, error = %error, attempt = attempt);
            }
            _ => event!(log, Warn, cid, "client.acquire.deadline", key = key, attempt = attempt, error = %error),
        }
        error
    }

    /// Logs what kind of refusal an answer is.
    fn log_refusal(&self, call: &CallOptions, key: &str, attempt: u32, error: &Error) {
        let (log, cid) = (&self.inner.log, self.inner.cid(call));
        let Some(api) = error.api() else { return };
        let (endpoint, qrf_state) = (api.endpoint.as_str(), api.qrf_state.as_str());
        let retry_after = Span(api.retry_after.unwrap_or_default());
        match api.status {
            409 if error.is_already_exists() => {
                event!(
                    log,
                    Info,
                    cid,
                    "client.acquire.already_exists",
                    key = key,
                    endpoint = endpoint,
                    attempt = attempt
                );
            }
            409 => {
                event!(
                    log,
                    Debug,
                    cid,
                    "client.acquire.conflict_status",
                    key = key,
                    endpoint = endpoint,
                    attempt = attempt
                );
            }
            429 => {
                event!(log, Warn, cid, "client.acquire.throttled",
                    key = key, endpoint = endpoint, attempt = attempt,
                    retry_after = %retry_after, qrf_state = qrf_state);
            }
            status if 500 <= status => {
                event!(log, Warn, cid, "client.acquire.server_error",
                    key = key, status = status, endpoint = endpoint, attempt = attempt,
                    retry_after = %retry_after, qrf_state = qrf_state);
            }
            _ => {}
        }
    }
}

/// What a failed attempt means for the next one.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The caller cancelled or the caller's deadline is over.
    Ended,
    /// 403: asking again will not help.
    Forbidden,
    /// The create-only acquire met a key.
    AlreadyExists,
    /// Not worth another try: our own mistake, or an answer that is none.
    Final,
    /// Held by somebody else, or a server that asks for patience: no limit but time.
    Expected,
    /// Counts as a failure.
    Failure,
}

impl Verdict {
    fn of(error: &Error) -> Self {
        match error {
            Error::Cancelled | Error::DeadlineExceeded => Verdict::Ended,
            Error::Api(api) => match api.status {
                403 => Verdict::Forbidden,
                409 if error.is_already_exists() => Verdict::AlreadyExists,
                409 | 429 => Verdict::Expected,
                status if 500 <= status => Verdict::Expected,
                _ => Verdict::Failure,
            },
            Error::Unreachable(_) | Error::Interrupted(_) => Verdict::Failure,
            _ => Verdict::Final,
        }
    }
}

/// How far an acquire has got, and how long it may go on.
struct Patience {
    wait: Wait,
    started: Instant,
    until: Option<Instant>,
    attempt: u32,
    failures: u32,
    delay: Duration,
}

impl Patience {
    fn new(request: &Acquire, call: &CallOptions) -> Self {
        let started = clock::now();
        let until = match request.wait {
            Wait::UpTo(span) => started.checked_add(span),
            Wait::No | Wait::Forever => None,
        };
        // A deadline of the caller cuts pauses and waiting times too, but it ends the call as what it is.
        let until = match (until, call.deadline_at()) {
            (Some(until), Some(deadline)) if deadline < until => None,
            (until, _) => until,
        };
        Self {
            wait: request.wait,
            started,
            until,
            attempt: 0,
            failures: 0,
            delay: request.backoff.base,
        }
    }

    fn remaining(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(clock::now()))
    }

    fn is_over(&self) -> bool {
        self.remaining().is_some_and(|left| left.is_zero())
    }

    /// What the server is told: -1 no waiting, 0 without end, else whole seconds, at least 1.
    fn block_seconds(&self, call: &CallOptions) -> i64 {
        if self.wait == Wait::No {
            return -1;
        }
        match self.remaining().into_iter().chain(call.remaining()).min() {
            Some(left) => seconds_up(left).max(1),
            None => 0,
        }
    }

    /// Limit of one attempt. The server holds a waiting acquire open, so the normal limit starts when it should have
    /// answered; waiting without end has none.
    fn attempt_timeout(&self, block_seconds: i64, http_timeout: Duration) -> Option<Duration> {
        match self.wait {
            Wait::No => Some(http_timeout),
            Wait::Forever => None,
            Wait::UpTo(_) => {
                let block = Duration::from_secs(u64::try_from(block_seconds).unwrap_or(0));
                Some(block.saturating_add(http_timeout))
            }
        }
    }
}

/// Whole seconds, rounded up.
pub(crate) fn seconds_up(span: Duration) -> i64 {
    let whole = span.as_secs() + u64::from(0 < span.subsec_nanos());
    i64::try_from(whole).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ApiError;

    fn answer(status: u16, code: &str) -> Error {
        Error::Api(Box::new(ApiError {
            status,
            code: code.to_owned(),
            ..ApiError::default()
        }))
    }

    /// CL-14: which answers cost nothing, which end the call, which count.
    #[test]
    fn answers_are_sorted_by_what_they_mean_for_the_next_attempt() {
        for (status, code, verdict) in [
            (409, "waiting", Verdict::Expected),
            (409, "already_exists", Verdict::AlreadyExists),
            (429, "throttled", Verdict::Expected),
            (500, "internal_error", Verdict::Expected),
            (503, "shutdown_draining", Verdict::Expected),
            (403, "namespace_forbidden", Verdict::Forbidden),
            (400, "invalid_key", Verdict::Failure),
            (404, "", Verdict::Failure),
        ] {
            assert_eq!(Verdict::of(&answer(status, code)), verdict, "{status} {code}");
        }
        assert_eq!(Verdict::of(&Error::Cancelled), Verdict::Ended);
        assert_eq!(Verdict::of(&Error::DeadlineExceeded), Verdict::Ended);
    }

    fn patience(wait: Wait, call: &CallOptions) -> Patience {
        Patience::new(&Acquire::key("k").wait(wait), call)
    }

    /// CL-15: waiting without end under a deadline tells the server a number above 0.
    #[test]
    fn the_server_is_told_how_long_the_caller_has() {
        let free = CallOptions::new();
        let bound = CallOptions::new().timeout(Duration::from_millis(2_500));
        assert_eq!(patience(Wait::No, &bound).block_seconds(&bound), -1);
        assert_eq!(patience(Wait::Forever, &free).block_seconds(&free), 0);
        assert_eq!(patience(Wait::Forever, &bound).block_seconds(&bound), 3);
        let up_to = Wait::UpTo(Duration::from_millis(7_900));
        assert_eq!(patience(up_to, &free).block_seconds(&free), 8);
        assert_eq!(patience(up_to, &bound).block_seconds(&bound), 3);
        assert_eq!(patience(Wait::UpTo(Duration::ZERO), &free).block_seconds(&free), 1);
    }

    #[test]
    fn seconds_are_rounded_up() {
        assert_eq!(seconds_up(Duration::ZERO), 0);
        assert_eq!(seconds_up(Duration::from_millis(1)), 1);
        assert_eq!(seconds_up(Duration::from_secs(2)), 2);
    }
}
