//! Holding a lease.
//!
//! A [`Lease`] is the right to hold and the duty to let go: it releases on drop. A [`Session`] is a handle to the same
//! lease, cheap to clone and to send to other threads, with every call that can be made under it; it has no duty. What is
//! learnt from answers (version, etag, token, expiry) is remembered once for all handles and sent along with later writes.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::call::CallOptions;
use crate::client::{Client, required_key};
use crate::clock;
use crate::error::Error;
use crate::inner::Inner;
use crate::renew::Renewal;
use crate::wire::AcquireResponse;

/// The server's default life of a lease, for grants that asked for none.
const DEFAULT_TTL: Duration = Duration::from_secs(30);

/// A lease that this program holds.
///
/// Dropping it releases it, as [`Session::close`] does: what was staged is committed, unless the thread is panicking, in
/// which case it is rolled back. The drop blocks for the close timeout at most and swallows errors; a lease that could not
/// be released ends by itself after its life. Call [`Session::release`] to know. [`Lease::detach`] keeps the lease beyond
/// this value.
#[derive(Debug)]
pub struct Lease {
    session: Session,
    renewal: Mutex<Option<Renewal>>,
    armed: bool,
}

/// A handle to a lease.
#[derive(Clone)]
pub struct Session {
    pub(crate) shared: Arc<LeaseShared>,
    pub(crate) call: CallOptions,
}

/// Names a lease that was acquired elsewhere.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct LeaseRef {
    key: String,
    lease_id: String,
    namespace: Option<String>,
    txn_id: String,
    fencing_token: Option<i64>,
}

impl LeaseRef {
    /// The lease of this id on this key.
    pub fn new(key: impl Into<String>, lease_id: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            lease_id: lease_id.into(),
            ..Self::default()
        }
    }

    /// Namespace of the key; default: that of the client.
    pub fn namespace(mut self, name: impl Into<String>) -> Self {
        self.namespace = Some(name.into());
        self
    }

    /// Transaction of the lease. Servers ask for it in every call but reads.
    pub fn txn_id(mut self, id: impl Into<String>) -> Self {
        self.txn_id = id.into();
        self
    }

    /// Fencing token of the lease; default: what the client knows already.
    pub fn fencing_token(mut self, token: i64) -> Self {
        self.fencing_token = Some(token);
        self
    }
}

/// What all handles of one lease share.
pub(crate) struct LeaseShared {
    pub(crate) inner: Arc<Inner>,
    pub(crate) namespace: String,
    pub(crate) key: String,
    pub(crate) owner: String,
    pub(crate) lease_id: String,
    pub(crate) txn_id: String,
    /// Who granted it; `None` when it was acquired elsewhere.
    pub(crate) endpoint: Option<Arc<str>>,
    pub(crate) memory: Mutex<Memory>,
    /// True once released. Held during a release, so that two never run at once.
    pub(crate) released: Mutex<bool>,
    pub(crate) drain_release_started: AtomicBool,
    lost: Mutex<Option<String>>,
    lost_changed: Condvar,
}

/// What answers have taught us.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    /// 0 when unknown.
    pub(crate) version: i64,
    /// Empty when unknown.
    pub(crate) etag: String,
    pub(crate) expires_at_unix: i64,
    /// Until when the lease lives for sure, by our own clock.
    pub(crate) valid_until: Option<Instant>,
}

/// A fresh grant.
pub(crate) struct Grant {
    pub(crate) answer: AcquireResponse,
    pub(crate) endpoint: Arc<str>,
    pub(crate) correlation_id: Option<String>,
    pub(crate) asked_at: Instant,
    pub(crate) ttl: Duration,
}

impl Lease {
    pub(crate) fn granted(client: &Client, grant: Grant) -> Self {
        let answer = grant.answer;
        let inner = &client.inner;
        inner
            .tokens
            .lock()
            .insert(answer.lease_id.clone(), answer.fencing_token);
        let shared = Arc::new(LeaseShared {
            inner: Arc::clone(inner),
            namespace: answer.namespace,
            key: answer.key,
            owner: answer.owner,
            lease_id: answer.lease_id.clone(),
            txn_id: answer.txn_id,
            endpoint: Some(grant.endpoint),
            memory: Mutex::new(Memory {
                version: answer.version,
                etag: answer.state_etag,
                expires_at_unix: answer.expires_at_unix,
                valid_until: valid_until(grant.asked_at, grant.ttl),
            }),
            released: Mutex::new(false),
            drain_release_started: AtomicBool::new(false),
            lost: Mutex::new(None),
            lost_changed: Condvar::new(),
        });
        inner.leases.lock().insert(answer.lease_id, Arc::downgrade(&shared));
        let mut call = CallOptions::new();
        if let Some(id) = &grant.correlation_id {
            call = call.correlation_id(id);
        }
        Self {
            session: Session { shared, call },
            renewal: Mutex::new(None),
            armed: true,
        }
    }

    /// A handle to use elsewhere. The lease still ends with this value.
    pub fn session(&self) -> Session {
        self.session.clone()
    }

    /// Renews the lease on a thread of its own, every third of `ttl`, until the lease is released or this value is
    /// dropped. When a renewal fails for good, or for so long that the lease may be over, the lease counts as lost: see
    /// [`Session::lost`]. Starting it again changes the rhythm. Zero means the server's default life of 30 s.
    pub fn start_renewal(&self, ttl: Duration) -> Result<(), Error> {
        let ttl = if ttl.is_zero() { DEFAULT_TTL } else { ttl };
        let renewal = Renewal::start(&self.session, ttl)
            .map_err(|error| Error::invalid(format!("start the renewal thread: {error}")))?;
        // The old thread, if any, is stopped and joined by its drop, outside the lock.
        let old = self.renewal.lock().replace(renewal);
        drop(old);
        Ok(())
    }

    /// Gives up the duty to release: the lease lives on until it is released through a session or until its life is over.
    /// A renewal thread is stopped.
    pub fn detach(mut self) -> Session {
        self.armed = false;
        self.session.clone()
    }
}

impl Deref for Lease {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.renewal.get_mut().take());
        if self.armed {
            // The error has been logged as an event; there is nobody here to hand it to, and nobody to try again.
            if self.session.close_with(std::thread::panicking()).is_err() {
                self.session.shared.inner.forget(self.session.lease_id());
            }
        }
    }
}

impl Session {
    pub(crate) fn adopt(client: &Client, lease: LeaseRef) -> Result<Self, Error> {
        let inner = &client.inner;
        let key = required_key(&lease.key)?.to_owned();
        if lease.lease_id.trim().is_empty() {
            return Err(Error::invalid("lease_id required"));
        }
        if let Some(token) = lease.fencing_token {
            if token <= 0 {
                return Err(Error::MissingFencingToken);
            }
            client.register_token(&lease.lease_id, token);
        }
        Ok(Self {
            shared: Arc::new(LeaseShared {
                inner: Arc::clone(inner),
                namespace: inner.namespace(lease.namespace.as_deref())?,
                key,
                owner: String::new(),
                lease_id: lease.lease_id,
                txn_id: lease.txn_id,
                endpoint: None,
                memory: Mutex::new(Memory::default()),
                released: Mutex::new(false),
                drain_release_started: AtomicBool::new(false),
                lost: Mutex::new(None),
                lost_changed: Condvar::new(),
            }),
            call: client.call.clone(),
        })
    }

    /// The same lease, its calls under these options. Without a correlation id of its own, the options take that of the
    /// lease.
    pub fn with_options(&self, options: CallOptions) -> Self {
        let call = match (options.cid(), self.call.cid()) {
            (None, Some(id)) => options.correlation_id(id),
            _ => options,
        };
        Self {
            shared: Arc::clone(&self.shared),
            call,
        }
    }

    /// The key; for a generated one, what the server made up.
    pub fn key(&self) -> &str {
        &self.shared.key
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.shared.namespace
    }

    /// The owner as granted; empty when the lease was acquired elsewhere.
    pub fn owner(&self) -> &str {
        &self.shared.owner
    }

    /// The id of the lease.
    pub fn lease_id(&self) -> &str {
        &self.shared.lease_id
    }

    /// The transaction to which everything staged under this lease belongs.
    pub fn txn_id(&self) -> &str {
        &self.shared.txn_id
    }

    /// The endpoint that granted the lease; `None` when it was acquired elsewhere.
    pub fn endpoint(&self) -> Option<&str> {
        self.shared.endpoint.as_deref()
    }

    /// The correlation id that calls under this handle carry.
    pub fn correlation_id(&self) -> Option<&str> {
        self.shared.inner.cid(&self.call)
    }

    /// The fencing token. Hand it to systems that guard against stale holders. `None` after release.
    pub fn fencing_token(&self) -> Option<i64> {
        self.shared.inner.tokens.lock().get(&self.shared.lease_id).copied()
    }

    /// The version as last seen; 0 when there is no state or nothing is known.
    pub fn version(&self) -> i64 {
        self.shared.memory.lock().version
    }

    /// The state etag as last seen; empty when there is no state or nothing is known.
    pub fn state_etag(&self) -> String {
        self.shared.memory.lock().etag.clone()
    }

    /// When the lease is over by the server's clock (Unix time); 0 when not known.
    pub fn expires_at_unix(&self) -> i64 {
        self.shared.memory.lock().expires_at_unix
    }

    /// True once the lease was released through any handle.
    pub fn is_released(&self) -> bool {
        // While a release is running the answer is not known yet: not released.
        self.shared.released.try_lock().is_some_and(|released| *released)
    }

    /// Why the lease is lost, or `None` while there is no sign of it. A lease is lost when a server has said so in answer to
    /// any call under it, when its life is over by our own clock without a renewal, or when it was released because its
    /// server went down. A release by the holder is no loss.
    pub fn lost(&self) -> Option<String> {
        self.shared.lost()
    }

    /// Waits until the lease is lost, at most so long; see [`lost`](Self::lost). Meant for a thread that watches over work.
    pub fn wait_lost(&self, at_most: Duration) -> Option<String> {
        self.shared.wait_lost(at_most)
    }
}

impl Drop for LeaseShared {
    fn drop(&mut self) {
        // A release has removed it already; this is for leases that were let go without one.
        if self.endpoint.is_some() {
            let mut leases = self.inner.leases.lock();
            if leases
                .get(&self.lease_id)
                .is_some_and(|lease| lease.strong_count() == 0)
            {
                leases.remove(&self.lease_id);
            }
        }
    }
}

impl LeaseShared {
    pub(crate) fn weak(self: &Arc<Self>) -> Weak<Self> {
        Arc::downgrade(self)
    }

    /// Marks the lease as lost, unless it is already.
    pub(crate) fn mark_lost(&self, why: impl Into<String>) {
        let mut lost = self.lost.lock();
        if lost.is_none() {
            *lost = Some(why.into());
            self.lost_changed.notify_all();
        }
    }

    /// Takes note when an error says that the lease is gone.
    pub(crate) fn note_error(&self, error: &Error) {
        if error.is_lease_lost() {
            self.mark_lost(error.to_string());
        }
    }

    /// Takes note of a renewal that was asked for at this moment.
    pub(crate) fn renewed(&self, asked_at: Instant, ttl: Duration, expires_at_unix: i64) {
        let mut memory = self.memory.lock();
        memory.expires_at_unix = expires_at_unix;
        memory.valid_until = valid_until(asked_at, ttl);
    }

    fn lost(&self) -> Option<String> {
        let known = self.lost.lock().clone();
        let expired = || {
            let until = self.memory.lock().valid_until?;
            (until <= clock::now() && !self.released.try_lock().is_some_and(|released| *released))
                .then(|| "the lease was not renewed in time".to_owned())
        };
        known.or_else(expired)
    }

    fn wait_lost(&self, at_most: Duration) -> Option<String> {
        let end = clock::now().checked_add(at_most);
        loop {
            if let Some(why) = self.lost() {
                return Some(why);
            }
            let now = clock::now();
            if end.is_some_and(|end| end <= now) {
                return None;
            }
            let valid_until = self.memory.lock().valid_until.filter(|until| now < *until);
            let mut lost = self.lost.lock();
            if lost.is_some() {
                continue;
            }
            match valid_until.into_iter().chain(end).min() {
                Some(wake) => {
                    self.lost_changed.wait_until(&mut lost, wake);
                }
                None => self.lost_changed.wait(&mut lost),
            }
        }
    }
}

/// Servers round the end of a lease down to a whole second, so up to one second of its life is not there.
fn valid_until(asked_at: Instant, ttl: Duration) -> Option<Instant> {
    let ttl = if ttl.is_zero() { DEFAULT_TTL } else { ttl };
    let sure = ttl.saturating_sub(Duration::from_secs(1)).max(ttl / 2);
    asked_at.checked_add(sure)
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("namespace", &self.shared.namespace)
            .field("key", &self.shared.key)
            .field("lease_id", &self.shared.lease_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_valid_for_what_is_left_after_rounding() {
        let now = clock::now();
        let sure = |ttl_ms: u64| valid_until(now, Duration::from_millis(ttl_ms)).unwrap() - now;
        assert_eq!(sure(30_000), Duration::from_secs(29));
        assert_eq!(sure(1_000), Duration::from_millis(500));
        assert_eq!(sure(0), Duration::from_secs(29), "the server's default life");
    }

    /// Leases that are let go without a release once stayed in the registry for ever.
    #[test]
    fn a_lease_that_is_gone_leaves_no_trace() {
        let client = Client::builder().endpoint("127.0.0.1:1").build().unwrap();
        let grant = || Grant {
            answer: AcquireResponse {
                lease_id: "lease-1".to_owned(),
                key: "k".to_owned(),
                fencing_token: 1,
                ..AcquireResponse::default()
            },
            endpoint: "http://127.0.0.1:1".into(),
            correlation_id: None,
            asked_at: clock::now(),
            ttl: Duration::ZERO,
        };
        // Nobody listens there: the release of the drop fails.
        drop(Lease::granted(&client, grant()));
        assert!(client.inner.leases.lock().is_empty() && client.inner.tokens.lock().is_empty());

        drop(Lease::granted(&client, grant()).detach());
        assert!(client.inner.leases.lock().is_empty());
        assert_eq!(
            client.inner.tokens.lock().len(),
            1,
            "a detached lease may be taken up again"
        );
    }
}
