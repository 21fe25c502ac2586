//! Letting go, and holding on: release and keepalive, which share their log events and their eye for a server that is
//! about to go down.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::call::CallOptions;
use crate::clock;
use crate::error::Error;
use crate::inner::Inner;
use crate::lease::{LeaseShared, Session};
use crate::logging::event;
use crate::threads;
use crate::walk::{Answer, Request, Route, is_success};
use crate::wire::{KeepaliveRequest, KeepaliveResponse, ReleaseRequest, ReleaseResponse, headers};

/// Each of the additional endpoints that hear of a release gets this long.
const EXTRA_ENDPOINT_TIMEOUT: Duration = Duration::from_secs(1);

impl Session {
    /// Renews the lease for `ttl` from now, cut to whole seconds but at least one. Returns the new end of the lease (Unix
    /// time). Tried once at each endpoint within the keepalive timeout.
    pub fn keepalive(&self, ttl: Duration) -> Result<i64, Error> {
        let shared = &self.shared;
        let (inner, cid) = (&shared.inner, shared.inner.cid(&self.call));
        let (key, lease_id, txn_id) = (shared.key.as_str(), shared.lease_id.as_str(), shared.txn_id.as_str());
        let ttl = Duration::from_secs(ttl.as_secs().max(1));
        let ttl_seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        event!(
            inner.log,
            Trace,
            cid,
            "client.keepalive.start",
            key = key,
            lease_id = lease_id,
            ttl_seconds = ttl_seconds
        );
        let token = inner.token(lease_id, None)?;
        event!(
            inner.log,
            Trace,
            cid,
            "client.keepalive.headers",
            key = key,
            lease_id = lease_id,
            fencing_token = token,
            txn_id = txn_id
        );

        let mut request = Request::new("POST", "/v1/keepalive", Some(inner.settings.http_timeout))
            .repeatable()
            .header(headers::FENCING_TOKEN, token)
            .header_if(headers::TXN_ID, Some(txn_id).filter(|id| !id.is_empty()))
            .json(&KeepaliveRequest {
                namespace: shared.namespace.clone(),
                key: key.to_owned(),
                lease_id: lease_id.to_owned(),
                ttl_seconds,
                txn_id: txn_id.to_owned(),
                fencing_token: None,
            })?;
        let asked_at = clock::now();
        let bounded = self.call.within(inner.settings.keepalive_timeout);
        let outcome = inner.post(&bounded, &mut request, Route::Any).and_then(|answer| {
            inner.refresh_token(lease_id, answer.header(headers::FENCING_TOKEN));
            answer.into_json::<KeepaliveResponse>()
        });
        match outcome {
            Ok(answer) => {
                shared.renewed(asked_at, ttl, answer.expires_at_unix);
                event!(
                    inner.log,
                    Trace,
                    cid,
                    "client.keepalive.success",
                    key = key,
                    lease_id = lease_id,
                    fencing_token = token,
                    txn_id = txn_id,
                    expires_at = answer.expires_at_unix
                );
                Ok(answer.expires_at_unix)
            }
            Err(error) => {
                event!(inner.log, Error, cid, "client.keepalive.error",
                    key = key, lease_id = lease_id, fencing_token = token, txn_id = txn_id, error = %error);
                shared.note_error(&error);
                Err(error)
            }
        }
    }

    /// Releases the lease and commits what was staged under it. Once it has succeeded, through any handle, further calls
    /// succeed without a request; after a failure it can be tried again. A lease that is gone already counts as released:
    /// whether its last commit came through cannot be learnt from this answer.
    pub fn release(&self) -> Result<(), Error> {
        self.release_as(&self.call, false)
    }

    /// Releases the lease and drops what was staged under it. Otherwise as [`release`](Self::release).
    pub fn rollback(&self) -> Result<(), Error> {
        self.release_as(&self.call, true)
    }

    /// Releases within the close timeout, whatever the deadline and cancel token of this handle say.
    pub fn close(&self) -> Result<(), Error> {
        self.close_with(false)
    }

    pub(crate) fn close_with(&self, rollback: bool) -> Result<(), Error> {
        let mut call = CallOptions::new().timeout(self.shared.inner.settings.close_timeout);
        if let Some(id) = self.call.cid() {
            call = call.correlation_id(id);
        }
        self.release_as(&call, rollback)
    }

    pub(crate) fn release_as(&self, call: &CallOptions, rollback: bool) -> Result<(), Error> {
        let shared = &self.shared;
        let mut released = shared.released.lock();
        if *released {
            return Ok(());
        }
        shared.inner.release(call, shared, rollback)?;
        *released = true;
        Ok(())
    }
}

impl Inner {
    fn release(self: &Arc<Self>, call: &CallOptions, lease: &LeaseShared, rollback: bool) -> Result<(), Error> {
        let cid = self.cid(call);
        let (key, lease_id, txn_id) = (lease.key.as_str(), lease.lease_id.as_str(), lease.txn_id.as_str());
        event!(
            self.log,
            Trace,
            cid,
            "client.release.start",
            key = key,
            lease_id = lease_id,
            txn_id = txn_id
        );
        let Ok(token) = self.token(lease_id, None) else {
            event!(
                self.log,
                Debug,
                cid,
                "client.release.no_token",
                key = key,
                lease_id = lease_id,
                txn_id = txn_id
            );
            self.forget(lease_id);
            return Ok(());
        };
        event!(
            self.log,
            Trace,
            cid,
            "client.release.headers",
            key = key,
            lease_id = lease_id,
            txn_id = txn_id,
            fencing_token = token
        );
        let message = ReleaseRequest {
            namespace: lease.namespace.clone(),
            key: key.to_owned(),
            lease_id: lease_id.to_owned(),
            txn_id: txn_id.to_owned(),
            rollback,
            fencing_token: None,
        };
        let preferred = lease.endpoint.as_deref();
        let first = self.release_once(call, &message, token, preferred.map_or(Route::Any, Route::Prefer));
        let outcome = match (first, preferred) {
            (Err(error), Some(preferred)) if error.is_timeout() => {
                self.release_elsewhere(call, &message, token, preferred, error)
            }
            (outcome, _) => outcome,
        };
        match outcome {
            Ok(answered_by) => {
                self.tell_the_others(call, &message, token, answered_by.as_deref());
                self.forget(lease_id);
                event!(
                    self.log,
                    Trace,
                    cid,
                    "client.release.success",
                    key = key,
                    lease_id = lease_id,
                    txn_id = txn_id,
                    fencing_token = token
                );
                Ok(())
            }
            Err(error) => {
                event!(self.log, Error, cid, "client.release.error",
                    key = key, lease_id = lease_id, txn_id = txn_id, fencing_token = token, error = %error);
                Err(error)
            }
        }
    }

    /// Sends one release. Returns who took it; `None` when the lease was gone already.
    fn release_once(
        self: &Arc<Self>,
        call: &CallOptions,
        message: &ReleaseRequest,
        token: i64,
        route: Route<'_>,
    ) -> Result<Option<Arc<str>>, Error> {
        // Dead pooled connections need no special care here: repeating a release is always safe.
        let mut request = Request::new("POST", "/v1/release", Some(self.settings.http_timeout))
            .repeatable()
            .header(headers::FENCING_TOKEN, token)
            .json(message)?;
        let outcome = self.post(call, &mut request, route).and_then(|answer| {
            let endpoint = Arc::clone(&answer.endpoint);
            let reply: ReleaseResponse = answer.into_json()?;
            if reply.released {
                Ok(endpoint)
            } else {
                Err(Error::ReleaseDenied)
            }
        });
        match outcome {
            Ok(endpoint) => Ok(Some(endpoint)),
            Err(error) if error.is_lease_required() => {
                let cid = self.cid(call);
                let (key, lease_id, txn_id) = (&*message.key, &*message.lease_id, &*message.txn_id);
                match route {
                    Route::Only(endpoint) => event!(
                        self.log,
                        Debug,
                        cid,
                        "client.release.already_gone",
                        key = key,
                        lease_id = lease_id,
                        txn_id = txn_id,
                        endpoint = endpoint
                    ),
                    _ => event!(
                        self.log,
                        Debug,
                        cid,
                        "client.release.already_gone",
                        key = key,
                        lease_id = lease_id,
                        txn_id = txn_id
                    ),
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// After a timeout: asks every endpoint but the granting one, each for a while.
    fn release_elsewhere(
        self: &Arc<Self>,
        call: &CallOptions,
        message: &ReleaseRequest,
        token: i64,
        preferred: &str,
        mut error: Error,
    ) -> Result<Option<Arc<str>>, Error> {
        let cid = self.cid(call);
        let (key, lease_id, txn_id) = (&*message.key, &*message.lease_id, &*message.txn_id);
        for endpoint in self.endpoints.iter().filter(|endpoint| &*endpoint.name != preferred) {
            if call.check().is_err() {
                break;
            }
            event!(self.log, Warn, cid, "client.release.retry_different_endpoint",
                key = key, lease_id = lease_id, txn_id = txn_id, endpoint = &*endpoint.name, error = %error);
            let bounded = match call.deadline_at() {
                Some(_) => call.clone(),
                None => call.within(self.settings.close_timeout),
            };
            match self.release_once(&bounded, message, token, Route::Only(&endpoint.name)) {
                Ok(done) => return Ok(done),
                Err(failed) => {
                    event!(self.log, Warn, cid, "client.release.backup_failed",
                        key = key, lease_id = lease_id, txn_id = txn_id, endpoint = &*endpoint.name, error = %failed);
                    error = failed;
                }
            }
        }
        Err(error)
    }

    /// Repeats a successful release at the endpoints that did not hear of it: they may remember the lease. Failures do not
    /// matter.
    fn tell_the_others(
        self: &Arc<Self>,
        call: &CallOptions,
        message: &ReleaseRequest,
        token: i64,
        done_by: Option<&str>,
    ) {
        let done_by = done_by.map(str::to_owned);
        for endpoint in self.endpoints.iter() {
            if done_by.as_deref() == Some(&*endpoint.name) || call.check().is_err() {
                continue;
            }
            if done_by.is_none() && self.endpoints.len() == 1 {
                continue;
            }
            let bounded = call.within(EXTRA_ENDPOINT_TIMEOUT);
            if let Err(error) = self.release_once(&bounded, message, token, Route::Only(&endpoint.name)) {
                event!(self.log, Debug, self.cid(call), "client.release.extra_endpoint_error",
                    key = &*message.key, lease_id = &*message.lease_id, txn_id = &*message.txn_id,
                    endpoint = &*endpoint.name, error = %error);
            }
        }
    }

    /// Drops all that is remembered by lease id.
    pub(crate) fn forget(&self, lease_id: &str) {
        self.leases.lock().remove(lease_id);
        self.tokens.lock().remove(lease_id);
        let mut default_lease = self.default_lease.lock();
        if default_lease.as_deref() == Some(lease_id) {
            *default_lease = None;
        }
    }

    /// A walk with the events of a post. Any status that is not a success is an error.
    pub(crate) fn post(
        self: &Arc<Self>,
        call: &CallOptions,
        request: &mut Request<'_>,
        route: Route<'_>,
    ) -> Result<Answer, Error> {
        let (cid, path) = (self.cid(call), request.path);
        event!(
            self.log,
            Trace,
            cid,
            "client.http.post.start",
            path = path,
            endpoint = &*self.last_endpoint()
        );
        let answer = self.walk(call, request, route).inspect_err(|error| {
            event!(self.log, Error, cid, "client.http.post.transport_error", path = path, error = %error);
        })?;
        self.note_shutdown(call, &answer);
        let (endpoint, status) = (Arc::clone(&answer.endpoint), answer.status);
        if is_success(status) {
            event!(
                self.log,
                Trace,
                cid,
                "client.http.post.success",
                path = path,
                endpoint = &*endpoint,
                status = status
            );
            return Ok(answer);
        }
        event!(
            self.log,
            Warn,
            cid,
            "client.http.post.error",
            path = path,
            endpoint = &*endpoint,
            status = status
        );
        Err(answer.into_error())
    }

    /// Looks for the announcement of a shutdown, and begins to release what its server has granted.
    pub(crate) fn note_shutdown(self: &Arc<Self>, call: &CallOptions, answer: &Answer) {
        let announced = answer.header(headers::SHUTDOWN_IMMINENT).is_some_and(|value| {
            ["1", "true", "yes", "on"]
                .iter()
                .any(|word| value.trim().eq_ignore_ascii_case(word))
        });
        if !announced || !self.settings.drain_aware {
            return;
        }
        let cid = self.cid(call);
        let endpoint = &*answer.endpoint;
        match self.shutdown_seen.swap(true, Ordering::SeqCst) {
            false => event!(self.log, Info, cid, "client.shutdown.notice", endpoint = endpoint),
            true => event!(
                self.log,
                Debug,
                cid,
                "client.shutdown.notice.repeat",
                endpoint = endpoint
            ),
        }
        let leases: Vec<_> = self
            .leases
            .lock()
            .values()
            .filter_map(std::sync::Weak::upgrade)
            .collect();
        for lease in leases {
            let granted_here = lease
                .endpoint
                .as_deref()
                .is_none_or(|granted_by| granted_by == endpoint);
            // A lease whose release is running, or done, needs no second one.
            let idle = lease.released.try_lock().is_some_and(|released| !*released);
            if granted_here && idle && !lease.drain_release_started.swap(true, Ordering::SeqCst) {
                start_drain_release(lease, endpoint.to_owned());
            }
        }
    }
}

/// Releases on a thread of its own, within the close timeout. Nobody joins it: the program may be busy with what the lease
/// guards, and a release that does not come through ends with the lease's life.
fn start_drain_release(lease: Arc<LeaseShared>, endpoint: String) {
    let inner = Arc::clone(&lease.inner);
    let started = threads::spawn("lockd-drain", move || {
        let log = &lease.inner.log;
        let (key, lease_id) = (lease.key.as_str(), lease.lease_id.as_str());
        let reason = "server_shutdown";
        event!(
            log,
            Info,
            None,
            "client.shutdown.auto_release.start",
            key = key,
            lease_id = lease_id,
            endpoint = endpoint.as_str(),
            reason = reason
        );
        let session = Session {
            shared: Arc::clone(&lease),
            call: CallOptions::new(),
        };
        match session.close() {
            Ok(()) => {
                lease.mark_lost("released because its server is going down");
                event!(
                    log,
                    Info,
                    None,
                    "client.shutdown.auto_release.complete",
                    key = key,
                    lease_id = lease_id,
                    endpoint = endpoint.as_str(),
                    reason = reason
                );
            }
            Err(error) => event!(log, Warn, None, "client.shutdown.auto_release.error",
                key = key, lease_id = lease_id, endpoint = endpoint.as_str(), reason = reason, error = %error),
        }
    });
    if let Err(error) = started {
        event!(inner.log, Warn, None, "client.shutdown.auto_release.error",
            key = "", lease_id = "", endpoint = "", reason = "server_shutdown", error = %error);
    }
}
