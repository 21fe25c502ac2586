//! The servers that a client may ask: how an address is written, and in which order they are tried.
//!
//! There is no memory of good and bad endpoints: every walk starts anew, shuffled unless told otherwise.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;

use crate::error::Error;
use crate::transport::{LookupOnConnect, SocketConnector};
use crate::wire::DEFAULT_PORT;

/// Idle connections that are kept per endpoint.
const IDLE_CONNECTIONS_MAX: usize = 128;
/// Idle connections are dropped after this time.
const IDLE_AGE_MAX: Duration = Duration::from_secs(90);

/// One server and the connections to it.
pub(crate) struct Endpoint {
    /// The address in its normal form; what logs and errors show.
    pub(crate) name: Arc<str>,
    /// What request paths are appended to.
    base: String,
    unix_socket: Option<PathBuf>,
    agent: Mutex<Agent>,
}

impl Endpoint {
    /// Takes one address; see [`parse_list`] for the rules.
    fn parse(text: &str, default_scheme: &str) -> Result<Self, Error> {
        let (name, base, unix_socket) = match text.strip_prefix("unix://") {
            Some(rest) => {
                let (socket, base) = parse_unix(text, rest)?;
                (text.to_owned(), base, Some(socket))
            }
            None => {
                let url = parse_url(text, default_scheme)?;
                (url.clone(), url, None)
            }
        };
        Ok(Self {
            name: name.into(),
            base,
            agent: Mutex::new(new_agent(unix_socket.as_ref())),
            unix_socket,
        })
    }

    /// The URL of a path on this server.
    pub(crate) fn url(&self, path_and_query: &str) -> String {
        format!("{}{path_and_query}", self.base)
    }

    pub(crate) fn agent(&self) -> Agent {
        self.agent.lock().clone()
    }

    /// Closes every idle connection. Those in use are closed when they come back.
    pub(crate) fn drop_idle(&self) {
        *self.agent.lock() = new_agent(self.unix_socket.as_ref());
    }

    fn is_https(&self) -> bool {
        self.base.starts_with("https://")
    }
}

/// The endpoints of a client.
pub(crate) struct Endpoints {
    all: Vec<Arc<Endpoint>>,
    shuffle: bool,
}

impl Endpoints {
    /// Takes a list of addresses, each of which may again be a comma separated list.
    pub(crate) fn parse(addresses: &[String], default_scheme: &str, shuffle: bool) -> Result<Self, Error> {
        let all = parse_list(addresses, default_scheme)?;
        if let Some(secure) = all.iter().find(|endpoint| endpoint.is_https()) {
            return Err(Error::InvalidConfig(format!(
                "TLS is not supported yet (endpoint {}); use http:// or unix://",
                secure.name
            )));
        }
        Ok(Self {
            all: all.into_iter().map(Arc::new).collect(),
            shuffle,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.all.iter()
    }

    pub(crate) fn drop_idle(&self) {
        self.all.iter().for_each(|endpoint| endpoint.drop_idle());
    }

    /// The order of one walk. The preferred endpoint changes places with the first one; an unknown one changes nothing.
    pub(crate) fn order(&self, preferred: Option<&str>) -> Vec<Arc<Endpoint>> {
        let mut order = self.all.clone();
        if self.shuffle {
            fastrand::shuffle(&mut order);
        }
        if let Some(name) = preferred
            && let Some(index) = order.iter().position(|endpoint| &*endpoint.name == name)
        {
            order.swap(0, index);
        }
        order
    }
}

/// Brings addresses into their normal form. Parts are separated by commas and trimmed, blanks dropped, order and duplicates
/// kept; a bare `host[:port]` gets the default scheme, a missing port becomes 9341, a trailing `/` goes, a path stays.
fn parse_list(addresses: &[String], default_scheme: &str) -> Result<Vec<Endpoint>, Error> {
    let parts: Vec<&str> = addresses
        .iter()
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect();
    if parts.is_empty() {
        return Err(Error::InvalidConfig("no server endpoints provided".to_owned()));
    }
    if 1 < parts.len() && parts.iter().any(|part| part.starts_with("unix://")) {
        return Err(Error::InvalidConfig(
            "unix endpoints cannot be combined with others".to_owned(),
        ));
    }
    parts
        .into_iter()
        .map(|part| Endpoint::parse(part, default_scheme))
        .collect()
}

fn parse_url(text: &str, default_scheme: &str) -> Result<String, Error> {
    let bad = |why: &str| Error::InvalidConfig(format!("parse endpoint \"{text}\": {why}"));
    let full = match text.contains("://") {
        true => text.to_owned(),
        false => format!("{default_scheme}://{text}"),
    };
    let uri: Uri = full.parse().map_err(|error| bad(&format!("{error}")))?;
    let scheme = match uri.scheme_str() {
        Some(scheme @ ("http" | "https")) => scheme,
        Some(other) => return Err(bad(&format!("unknown scheme {other}"))),
        None => return Err(bad("no scheme")),
    };
    let authority = uri.authority().ok_or_else(|| bad("no host"))?;
    let host = authority.host();
    if host.is_empty() || authority.as_str().contains('@') {
        return Err(bad("host expected"));
    }
    if uri.query().is_some() {
        return Err(bad("a query is not allowed"));
    }
    let after_host = &authority.as_str()[host.len()..];
    let port = match after_host.strip_prefix(':') {
        None | Some("") => DEFAULT_PORT,
        Some(port) => port.parse().map_err(|_| bad("invalid port"))?,
    };
    let path = uri.path().trim_end_matches('/');
    Ok(format!("{scheme}://{host}:{port}{path}"))
}

/// `unix:///a/b?path=/prefix` is the socket `/a/b` and the base path `/prefix`; so is `unix://a/b`.
fn parse_unix(text: &str, rest: &str) -> Result<(PathBuf, String), Error> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = path.trim_start_matches('/');
    if path.is_empty() {
        return Err(Error::InvalidConfig(format!(
            "parse endpoint \"{text}\": socket path expected"
        )));
    }
    let prefix = form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "path")
        .map(|(_, prefix)| format!("/{}", prefix.trim_matches('/')))
        .filter(|prefix| prefix != "/")
        .unwrap_or_default();
    Ok((PathBuf::from(format!("/{path}")), format!("http://unix{prefix}")))
}

fn new_agent(unix_socket: Option<&PathBuf>) -> Agent {
    let config: Config = Agent::config_builder()
        .http_status_as_error(false)
        // A lock service does not move in the middle of a request, and lease headers go to nobody else.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(IDLE_CONNECTIONS_MAX)
        .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
        .max_idle_age(IDLE_AGE_MAX)
        .user_agent(concat!("lockd-client/", env!("CARGO_PKG_VERSION")))
        .proxy(None)
        .build();
    let connector = match unix_socket {
        Some(path) => SocketConnector::Unix(path.clone()),
        None => SocketConnector::Tcp,
    };
    Agent::with_parts(config, connector, LookupOnConnect)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(addresses: &[&str], scheme: &str) -> Result<Vec<String>, String> {
        let addresses: Vec<String> = addresses.iter().map(|&text| text.to_owned()).collect();
        parse_list(&addresses, scheme)
            .map(|all| all.iter().map(|endpoint| endpoint.name.to_string()).collect())
            .map_err(|error| error.to_string())
    }

    /// CL-1: table 1.1.
    #[test]
    fn addresses_are_brought_into_one_form() {
        for (text, expected) in [
            ("a", "http://a:9341"),
            ("a:1", "http://a:1"),
            ("[::1]", "http://[::1]:9341"),
            ("[::1]:80", "http://[::1]:80"),
            ("http://a", "http://a:9341"),
            ("https://a", "https://a:9341"),
            ("http://a:80/base/", "http://a:80/base"),
            ("http://a/", "http://a:9341"),
            ("unix:///run/x.sock", "unix:///run/x.sock"),
        ] {
            assert_eq!(names(&[text], "http"), Ok(vec![expected.to_owned()]), "{text}");
        }
    }

    /// CL-1: a bare host takes the scheme that the mTLS switch implies; one that is written out stays.
    #[test]
    fn only_bare_hosts_take_the_default_scheme() {
        assert_eq!(
            names(&["a,b:2, http://c"], "https"),
            Ok(vec![
                "https://a:9341".into(),
                "https://b:2".into(),
                "http://c:9341".into()
            ])
        );
    }

    /// CL-1: separators, blanks, order, duplicates.
    #[test]
    fn lists_are_split_and_keep_order_and_duplicates() {
        assert_eq!(
            names(&[" b , ,a,", "b"], "http"),
            Ok(vec![
                "http://b:9341".into(),
                "http://a:9341".into(),
                "http://b:9341".into()
            ])
        );
        assert_eq!(
            names(&[" , "], "http"),
            Err("lockd: no server endpoints provided".into())
        );
    }

    /// CL-1: unix sockets stand alone, and only there a query has a meaning.
    #[test]
    fn unix_sockets_stand_alone() {
        assert_eq!(
            names(&["unix:///x,http://a"], "http"),
            Err("lockd: unix endpoints cannot be combined with others".into())
        );
        let socket = |text: &str| parse_unix(text, text.strip_prefix("unix://").unwrap()).unwrap();
        assert_eq!(
            socket("unix:///var/x.sock"),
            (PathBuf::from("/var/x.sock"), "http://unix".into())
        );
        assert_eq!(
            socket("unix://a/b?path=/p/"),
            (PathBuf::from("/a/b"), "http://unix/p".into())
        );
        assert!(names(&["unix://"], "http").is_err());
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_text() {
        for bad in [
            "ftp://a",
            "http://",
            "http://a:port",
            "http://u@a",
            "http://a?x=1",
            "a b",
        ] {
            let error = names(&[bad], "http").unwrap_err();
            assert!(
                error.starts_with(&format!("lockd: parse endpoint \"{bad}\": ")),
                "{error}"
            );
        }
    }

    fn three(shuffle: bool) -> Endpoints {
        Endpoints::parse(&["a,b,c".to_owned()], "http", shuffle).unwrap()
    }

    fn order(endpoints: &Endpoints, preferred: Option<&str>) -> Vec<String> {
        endpoints
            .order(preferred)
            .iter()
            .map(|endpoint| endpoint.name.to_string())
            .collect()
    }

    /// CL-2: off means the order given.
    #[test]
    fn without_shuffle_the_given_order_is_kept_and_a_preferred_endpoint_changes_places() {
        let endpoints = three(false);
        assert_eq!(
            order(&endpoints, None),
            ["http://a:9341", "http://b:9341", "http://c:9341"]
        );
        assert_eq!(
            order(&endpoints, Some("http://c:9341")),
            ["http://c:9341", "http://b:9341", "http://a:9341"]
        );
        assert_eq!(order(&endpoints, Some("http://z:1")), order(&endpoints, None));
    }

    /// CL-2: a new draw for every walk. 64 equal draws of six orders have a chance of 6^-63.
    #[test]
    fn every_walk_is_shuffled_anew() {
        let endpoints = three(true);
        let first = order(&endpoints, None);
        assert!((0..64).any(|_| order(&endpoints, None) != first));
        assert!((0..64).all(|_| order(&endpoints, Some("http://b:9341"))[0] == "http://b:9341"));
    }
}
