//! Configuration of a namespace: which engine answers its queries.

use std::sync::Arc;

use crate::client::Client;
use crate::error::Error;
use crate::logging::event;
use crate::walk::{Answer, Request, Route};
use crate::wire::{NamespaceConfig, NamespaceRequest, QueryEngines, headers};

/// A namespace configuration and the etag that names this version of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamespaceSettings {
    /// The configuration.
    pub config: NamespaceConfig,
    /// To be handed to [`Client::set_namespace_config`], so that nobody's change is overwritten.
    pub etag: String,
}

impl Client {
    /// Reads the configuration of a namespace; `None` means the default one.
    pub fn namespace_config(&self, namespace: Option<&str>) -> Result<NamespaceSettings, Error> {
        let namespace = self.inner.namespace(namespace)?;
        let request = Request::new("GET", "/v1/namespace", Some(self.inner.settings.http_timeout))
            .repeatable()
            .query("namespace", &namespace);
        self.namespace_call(Events::GET, &namespace, request)
    }

    /// Changes the configuration of a namespace; `None` means the default one. With `if_match`, only if it is still the
    /// version of that etag, else `namespace_config_conflict`.
    pub fn set_namespace_config(
        &self,
        namespace: Option<&str>,
        query: QueryEngines,
        if_match: Option<&str>,
    ) -> Result<NamespaceSettings, Error> {
        if query.preferred_engine.is_empty() && query.fallback_engine.is_empty() {
            return Err(Error::invalid("namespace query settings required"));
        }
        let namespace = self.inner.namespace(namespace)?;
        let request = Request::new("POST", "/v1/namespace", Some(self.inner.settings.http_timeout))
            .query("namespace", &namespace)
            .header_if(headers::IF_MATCH, if_match.filter(|etag| !etag.is_empty()))
            .json(&NamespaceRequest {
                namespace: namespace.clone(),
                query: Some(query),
            })?;
        self.namespace_call(Events::SET, &namespace, request)
    }

    fn namespace_call(
        &self,
        events: Events,
        namespace: &str,
        mut request: Request<'_>,
    ) -> Result<NamespaceSettings, Error> {
        let (inner, cid) = (&self.inner, self.inner.cid(&self.call));
        event!(
            inner.log,
            Trace,
            cid,
            events.start,
            namespace = namespace,
            endpoint = &*inner.last_endpoint()
        );
        let transport_error = |error: &Error| {
            event!(inner.log, Error, cid, events.transport_error, namespace = namespace, error = %error);
        };
        let answer: Answer = inner
            .walk(&self.call, &mut request, Route::Any)
            .inspect_err(transport_error)?;
        let endpoint = Arc::clone(&answer.endpoint);
        if answer.status != 200 {
            event!(
                inner.log,
                Warn,
                cid,
                events.error,
                namespace = namespace,
                endpoint = &*endpoint,
                status = answer.status
            );
            return Err(answer.into_error());
        }
        let etag = answer.etag();
        let config = answer.into_json().inspect_err(transport_error)?;
        event!(
            inner.log,
            Trace,
            cid,
            events.success,
            namespace = namespace,
            endpoint = &*endpoint,
            etag = etag.as_str()
        );
        Ok(NamespaceSettings { config, etag })
    }
}

/// The event names of one of the two calls.
struct Events {
    start: &'static str,
    success: &'static str,
    error: &'static str,
    transport_error: &'static str,
}

impl Events {
    const GET: Events = Events {
        start: "client.namespace.get.start",
        success: "client.namespace.get.success",
        error: "client.namespace.get.error",
        transport_error: "client.namespace.get.transport_error",
    };
    const SET: Events = Events {
        start: "client.namespace.set.start",
        success: "client.namespace.set.success",
        error: "client.namespace.set.error",
        transport_error: "client.namespace.set.transport_error",
    };
}
