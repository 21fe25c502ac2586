//! What all clones of a client share.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::call::CallOptions;
use crate::endpoints::Endpoints;
use crate::error::Error;
use crate::lease::LeaseShared;
use crate::logging::EventLog;
use crate::wire::normalize_namespace;

pub(crate) struct Inner {
    pub(crate) endpoints: Endpoints,
    pub(crate) settings: Settings,
    pub(crate) log: EventLog,
    pub(crate) default_namespace: Mutex<String>,
    /// For log fields only: the endpoint of the latest answer, at first the first one.
    pub(crate) last_endpoint: Mutex<Arc<str>>,
    /// Fencing tokens by lease id.
    pub(crate) tokens: Mutex<HashMap<String, i64>>,
    /// The lease that calls use which name none.
    pub(crate) default_lease: Mutex<Option<String>>,
    /// Live leases by lease id.
    pub(crate) leases: Mutex<HashMap<String, Weak<LeaseShared>>>,
    /// A server has announced its shutdown to this client before.
    pub(crate) shutdown_seen: AtomicBool,
}

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) http_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) keepalive_timeout: Duration,
    pub(crate) for_update_timeout: Duration,
    pub(crate) failure_retries: Retries,
    pub(crate) drain_aware: bool,
    /// Emit the `client.http.trace.*` events.
    pub(crate) http_trace: bool,
    /// Sent with every request instead of the call's own id.
    pub(crate) fixed_correlation_id: Option<String>,
}

/// How many failures in a row a call gets over before it gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retries {
    /// At most so many retries; 0 means none.
    Limited(u32),
    /// Only the deadline or cancellation ends the call.
    Unlimited,
}

impl Retries {
    /// True when `used` retries are still within the limit.
    pub(crate) fn allow(self, used: u32) -> bool {
        match self {
            Retries::Limited(limit) => used <= limit,
            Retries::Unlimited => true,
        }
    }
}

impl Inner {
    /// The correlation id that this call sends.
    pub(crate) fn cid<'a>(&'a self, call: &'a CallOptions) -> Option<&'a str> {
        self.settings.fixed_correlation_id.as_deref().or_else(|| call.cid())
    }

    /// The endpoint for log fields of events that come before an answer.
    pub(crate) fn last_endpoint(&self) -> Arc<str> {
        Arc::clone(&self.last_endpoint.lock())
    }

    /// The namespace to send: the given one in its normal form, or the client's default.
    pub(crate) fn namespace(&self, given: Option<&str>) -> Result<String, Error> {
        match given.map(str::trim).filter(|name| !name.is_empty()) {
            None => Ok(self.default_namespace.lock().clone()),
            Some(name) => {
                normalize_namespace(name).ok_or_else(|| Error::invalid(format!("invalid namespace {name:?}")))
            }
        }
    }

    /// The fencing token of a lease: the explicit one, else the remembered one.
    pub(crate) fn token(&self, lease_id: &str, explicit: Option<i64>) -> Result<i64, Error> {
        let token = explicit.or_else(|| self.tokens.lock().get(lease_id).copied());
        token.filter(|token| 0 < *token).ok_or(Error::MissingFencingToken)
    }

    /// Takes over the token that an answer carries, if it carries one.
    pub(crate) fn refresh_token(&self, lease_id: &str, header: Option<&str>) {
        if let Some(token) = header.and_then(|text| text.trim().parse::<i64>().ok())
            && 0 < token
        {
            self.tokens.lock().insert(lease_id.to_owned(), token);
        }
    }
}
