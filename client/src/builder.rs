//! Building a client.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use log::Log;
use parking_lot::Mutex;

use crate::call::CallOptions;
use crate::client::Client;
use crate::endpoints::Endpoints;
use crate::error::Error;
use crate::inner::{Inner, Retries, Settings};
use crate::logging::{EventLog, event};
use crate::wire::{DEFAULT_NAMESPACE, normalize_namespace, valid_correlation_id};

const HTTP_TIMEOUT: Duration = Duration::from_secs(15);
const HTTP_TIMEOUT_WITH_ALTERNATIVES: Duration = Duration::from_secs(3);

/// Collects the options of a [`Client`]. Building opens no connection.
#[must_use]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    shuffle: bool,
    disable_mtls: bool,
    http_timeout: Option<Duration>,
    close_timeout: Duration,
    keepalive_timeout: Duration,
    for_update_timeout: Duration,
    failure_retries: Retries,
    drain_aware: bool,
    http_trace: bool,
    default_namespace: String,
    correlation_id: Option<String>,
    logger: Option<Arc<dyn Log>>,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            shuffle: true,
            disable_mtls: true,
            http_timeout: None,
            close_timeout: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(5),
            for_update_timeout: Duration::from_secs(15 * 60),
            failure_retries: Retries::Limited(5),
            drain_aware: true,
            http_trace: false,
            default_namespace: DEFAULT_NAMESPACE.to_owned(),
            correlation_id: None,
            logger: None,
        }
    }
}

impl ClientBuilder {
    /// Adds an address, or several separated by commas: `http://host:port`, `host`, `unix:///path/to.sock`. A missing port
    /// is 9341. A unix socket must be the only endpoint.
    pub fn endpoint(mut self, address: impl Into<String>) -> Self {
        self.endpoints.push(address.into());
        self
    }

    /// Adds several addresses; see [`endpoint`](Self::endpoint).
    pub fn endpoints<S: Into<String>>(mut self, addresses: impl IntoIterator<Item = S>) -> Self {
        self.endpoints.extend(addresses.into_iter().map(Into::into));
        self
    }

    /// On (the default): each request tries the endpoints in a new random order. Off: in the order given.
    pub fn endpoint_shuffle(mut self, on: bool) -> Self {
        self.shuffle = on;
        self
    }

    /// Decides the scheme of an address that names none: `http://` when true (the default), `https://` when false. TLS
    /// itself is not supported yet, so the latter makes [`build`](Self::build) fail.
    pub fn disable_mtls(mut self, disable: bool) -> Self {
        self.disable_mtls = disable;
        self
    }

    /// Limit of one attempt at one endpoint, including the reading of the answer. Default 15 s, or 3 s when there are
    /// several endpoints. Zero is ignored. A waiting acquire is not bound by it.
    pub fn http_timeout(mut self, timeout: Duration) -> Self {
        if !timeout.is_zero() {
            self.http_timeout = Some(timeout);
        }
        self
    }

    /// Limit of a release that nobody waits for: [`Session::close`](crate::Session::close), the drop of a lease, the
    /// release when a server shuts down. Default 5 s.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        if !timeout.is_zero() {
            self.close_timeout = timeout;
        }
        self
    }

    /// Limit of a keepalive over all endpoints. Default 5 s, never more than the close timeout.
    pub fn keepalive_timeout(mut self, timeout: Duration) -> Self {
        if !timeout.is_zero() {
            self.keepalive_timeout = timeout;
        }
        self
    }

    /// Limit of acquire and first read in acquire-for-update; the handler is not bound by it. Default 15 min.
    pub fn for_update_timeout(mut self, timeout: Duration) -> Self {
        if !timeout.is_zero() {
            self.for_update_timeout = timeout;
        }
        self
    }

    /// How many failures in a row an update and acquire-for-update get over. Default 5.
    pub fn failure_retries(mut self, retries: Retries) -> Self {
        self.failure_retries = retries;
        self
    }

    /// On (the default): when a server announces its shutdown, the leases it granted are released in the background.
    pub fn drain_aware(mut self, on: bool) -> Self {
        self.drain_aware = on;
        self
    }

    /// On: the log also tells, as `client.http.trace.*`, when an exchange got its connection, had sent its request, saw the
    /// first byte of the answer, and gave the connection back. Default off.
    pub fn http_trace(mut self, on: bool) -> Self {
        self.http_trace = on;
        self
    }

    /// The namespace of calls that name none. Default `default`.
    pub fn default_namespace(mut self, name: impl Into<String>) -> Self {
        self.default_namespace = name.into();
        self
    }

    /// Sends this correlation id with every request, whatever the call says. An invalid id is ignored.
    pub fn correlation_id(mut self, id: &str) -> Self {
        if let Some(id) = valid_correlation_id(id) {
            self.correlation_id = Some(id.to_owned());
        }
        self
    }

    /// Where log events go. Default: the global logger of the `log` crate. A logger given here sees every event of this
    /// client and of no other, and filters by itself.
    pub fn logger(mut self, logger: Arc<dyn Log>) -> Self {
        self.logger = Some(logger);
        self
    }

    /// Builds the client. Fails with [`Error::InvalidConfig`] on addresses or names that make no sense.
    pub fn build(self) -> Result<Client, Error> {
        let default_scheme = if self.disable_mtls { "http" } else { "https" };
        let endpoints = Endpoints::parse(&self.endpoints, default_scheme, self.shuffle)?;
        let default_namespace = normalize_namespace(&self.default_namespace)
            .ok_or_else(|| Error::InvalidConfig(format!("invalid namespace {:?}", self.default_namespace)))?;
        let http_timeout = self.http_timeout.unwrap_or(match endpoints.len() {
            1 => HTTP_TIMEOUT,
            _ => HTTP_TIMEOUT_WITH_ALTERNATIVES,
        });
        let names: Vec<String> = endpoints.iter().map(|endpoint| endpoint.name.to_string()).collect();
        let log = EventLog::new(self.logger);
        event!(log, Info, None, "client.init", endpoints = ?names);
        Ok(Client::from_parts(
            Inner {
                settings: Settings {
                    http_timeout,
                    close_timeout: self.close_timeout,
                    keepalive_timeout: self.keepalive_timeout.min(self.close_timeout),
                    for_update_timeout: self.for_update_timeout,
                    failure_retries: self.failure_retries,
                    drain_aware: self.drain_aware,
                    http_trace: self.http_trace,
                    fixed_correlation_id: self.correlation_id,
                },
                log,
                default_namespace: Mutex::new(default_namespace),
                last_endpoint: Mutex::new(names[0].as_str().into()),
                tokens: Mutex::new(HashMap::new()),
                default_lease: Mutex::new(None),
                leases: Mutex::new(HashMap::new()),
                shutdown_seen: AtomicBool::new(false),
                endpoints,
            },
            CallOptions::new(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http_timeout(builder: ClientBuilder) -> Duration {
        builder.build().unwrap().inner.settings.http_timeout
    }

    /// CL-10: 15 s alone, 3 s with alternatives, and what is set explicitly stays as it is.
    #[test]
    fn several_endpoints_shorten_only_the_default_timeout() {
        let of = |list: &str| Client::builder().endpoint(list);
        assert_eq!(http_timeout(of("a")), Duration::from_secs(15));
        assert_eq!(http_timeout(of("a,b")), Duration::from_secs(3));
        assert_eq!(
            http_timeout(of("a,b").http_timeout(Duration::from_secs(15))),
            Duration::from_secs(15)
        );
        assert_eq!(
            http_timeout(of("a").http_timeout(Duration::ZERO)),
            Duration::from_secs(15)
        );
    }

    /// CL-1: with mTLS a bare host means https, which this version cannot speak and says so.
    #[test]
    fn https_is_refused_with_a_clear_word() {
        for builder in [
            Client::builder().endpoint("a").disable_mtls(false),
            Client::builder().endpoint("https://a"),
        ] {
            let error = builder.build().unwrap_err().to_string();
            assert!(
                error.contains("TLS is not supported yet (endpoint https://a:9341)"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_keepalive_timeout_never_exceeds_the_close_timeout() {
        let client = Client::builder()
            .endpoint("a")
            .close_timeout(Duration::from_secs(2))
            .build()
            .unwrap();
        assert_eq!(client.inner.settings.keepalive_timeout, Duration::from_secs(2));
    }

    #[test]
    fn a_bad_default_namespace_is_refused() {
        assert!(
            Client::builder()
                .endpoint("a")
                .default_namespace("a b")
                .build()
                .is_err()
        );
    }
}
