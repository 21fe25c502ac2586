//! The client: calls that need no lease. Those under a lease are methods of [`Session`].

use std::fmt;
use std::sync::Arc;

use crate::builder::ClientBuilder;
use crate::call::CallOptions;
use crate::error::Error;
use crate::inner::Inner;
use crate::lease::{LeaseRef, Session};
use crate::logging::event;
use crate::walk::{Request, Route};
use crate::wire::DescribeResponse;

/// A client of one lockd service, which may have several endpoints. Clones are cheap and share connections, fencing tokens
/// and settings; use one from any number of threads. Dropping it only closes idle connections: leases have their own life.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
    pub(crate) call: CallOptions,
}

impl Client {
    /// Begins a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    pub(crate) fn from_parts(inner: Inner, call: CallOptions) -> Self {
        Self {
            inner: Arc::new(inner),
            call,
        }
    }

    /// The same client, its calls under these options. A lease acquired through it does not inherit the deadline and the
    /// cancel token, only the correlation id.
    pub fn with_options(&self, options: CallOptions) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            call: options,
        }
    }

    /// Closes idle connections. Running calls and leases are not touched, and the client stays usable.
    pub fn close(&self) {
        self.inner.endpoints.drop_idle();
    }

    /// The endpoints in their normal form, in configured order.
    pub fn endpoints(&self) -> Vec<String> {
        self.inner
            .endpoints
            .iter()
            .map(|endpoint| endpoint.name.to_string())
            .collect()
    }

    /// The namespace of calls that name none.
    pub fn default_namespace(&self) -> String {
        self.inner.default_namespace.lock().clone()
    }

    /// Changes the namespace of calls that name none, for all clones of this client.
    pub fn set_default_namespace(&self, name: &str) -> Result<(), Error> {
        let name = self.inner.namespace(Some(name))?;
        *self.inner.default_namespace.lock() = name;
        Ok(())
    }

    /// Tells the client the fencing token of a lease that was acquired elsewhere.
    pub fn register_token(&self, lease_id: &str, fencing_token: i64) {
        self.inner.tokens.lock().insert(lease_id.to_owned(), fencing_token);
    }

    /// Makes `lease_id` the lease of reads that name none, until it is released or replaced; `None` clears it.
    pub fn set_default_lease(&self, lease_id: Option<&str>) {
        *self.inner.default_lease.lock() = lease_id.map(str::to_owned);
    }

    /// A handle to a lease that was acquired elsewhere, perhaps by another process. It knows no version and no etag until
    /// it has read or written, and it is not released when dropped.
    pub fn session(&self, lease: LeaseRef) -> Result<Session, Error> {
        Session::adopt(self, lease)
    }

    /// What the server knows about a key of the default namespace: lease, version, etag. Needs no lease; an unknown key has
    /// version 0. Bound by the options of this client alone.
    pub fn describe(&self, key: &str) -> Result<DescribeResponse, Error> {
        let (inner, cid) = (&self.inner, self.inner.cid(&self.call));
        let key = required_key(key)?;
        event!(
            inner.log,
            Trace,
            cid,
            "client.describe.start",
            key = key,
            endpoint = &*inner.last_endpoint()
        );
        let mut request = Request::new("GET", "/v1/describe", None)
            .repeatable()
            .query("key", key)
            .query("namespace", &self.default_namespace());
        let answer = inner.walk(&self.call, &mut request, Route::Any).inspect_err(|error| {
            event!(inner.log, Error, cid, "client.describe.transport_error", key = key, error = %error);
        })?;
        let endpoint = Arc::clone(&answer.endpoint);
        if answer.status != 200 {
            event!(
                inner.log,
                Warn,
                cid,
                "client.describe.error",
                key = key,
                endpoint = &*endpoint,
                status = answer.status
            );
            return Err(answer.into_error());
        }
        let described: DescribeResponse = answer.into_json()?;
        event!(
            inner.log,
            Trace,
            cid,
            "client.describe.success",
            key = key,
            endpoint = &*endpoint,
            version = described.version,
            state_etag = described.state_etag.as_str()
        );
        Ok(described)
    }
}

/// A key that is not blank, as it was given.
pub(crate) fn required_key(key: &str) -> Result<&str, Error> {
    if key.trim().is_empty() {
        return Err(Error::invalid("key required"));
    }
    Ok(key)
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoints", &self.endpoints())
            .finish_non_exhaustive()
    }
}
