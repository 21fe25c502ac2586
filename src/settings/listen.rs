//! The address that the daemon listens on.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use lockd_client::wire::DEFAULT_PORT;

/// The port for metrics when none is given.
pub const DEFAULT_METRICS_PORT: u16 = 9464;

/// Which addresses of a host count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Both.
    Any,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP port.
    Tcp {
        /// A name or an address; empty means every address of the machine.
        host: String,
        /// The port; 0 lets the system choose.
        port: u16,
        /// Which addresses of the host count.
        family: Family,
    },
    /// A unix socket at this path.
    Unix(PathBuf),
}

impl Default for Listen {
    fn default() -> Self {
        Listen::Tcp {
            host: Ipv4Addr::LOCALHOST.to_string(),
            port: DEFAULT_PORT,
            family: Family::Any,
        }
    }
}

impl Listen {
    /// 127.0.0.1 with a port that the system chooses: what a test wants.
    pub fn loopback_any_port() -> Self {
        Listen::Tcp {
            host: Ipv4Addr::LOCALHOST.to_string(),
            port: 0,
            family: Family::Any,
        }
    }

    /// Reads `HOST`, `HOST:PORT`, `:PORT`, `[V6]` or `[V6]:PORT` for `tcp`, `tcp4` and `tcp6`, a path for `unix`.
    pub fn parse(proto: &str, address: &str) -> Result<Self, String> {
        let family = match proto.trim().to_ascii_lowercase().as_str() {
            "tcp" => Family::Any,
            "tcp4" => Family::V4,
            "tcp6" => Family::V6,
            "unix" => return parse_unix(address),
            _ => return Err(format!("listen protocol {proto:?}: expected tcp, tcp4, tcp6 or unix")),
        };
        let (host, port) = split_port(address.trim(), DEFAULT_PORT)?;
        let fits = match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => family != Family::V6,
            Ok(IpAddr::V6(_)) => family != Family::V4,
            Err(_) => true,
        };
        if !fits {
            return Err(format!("{address:?} is not an address for {proto}"));
        }
        Ok(Listen::Tcp { host, port, family })
    }

    /// Reads the TCP address for metrics, likewise, but that the port is 9464 when none is given.
    pub fn parse_metrics(address: &str) -> Result<Self, String> {
        let (host, port) = split_port(address.trim(), DEFAULT_METRICS_PORT)?;
        let family = Family::Any;
        Ok(Listen::Tcp { host, port, family })
    }

    /// True when only this machine can connect.
    pub fn is_local(&self) -> bool {
        match self {
            Listen::Unix(_) => true,
            Listen::Tcp { host, .. } => match host.parse::<IpAddr>() {
                Ok(ip) => ip.is_loopback(),
                Err(_) => host.eq_ignore_ascii_case("localhost"),
            },
        }
    }

    /// The addresses to try to bind, best first; none for a unix socket. Without a host that is the IPv6 wildcard,
    /// which on most systems takes IPv4 along, then the one of IPv4. A host name is resolved here.
    pub fn socket_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let Listen::Tcp { host, port, family } = self else {
            return Ok(Vec::new());
        };
        let found: Vec<SocketAddr> = if host.is_empty() {
            vec![
                SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port)),
                SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port)),
            ]
        } else {
            (host.as_str(), *port).to_socket_addrs()?.collect()
        };
        let wanted = |address: &SocketAddr| match family {
            Family::Any => true,
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        };
        let wanted: Vec<_> = found.into_iter().filter(wanted).collect();
        if wanted.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("{self} has no address of the wanted family"),
            ));
        }
        Ok(wanted)
    }

    /// The network as logs name it: `tcp`, `tcp4`, `tcp6` or `unix`.
    pub fn network(&self) -> &'static str {
        match self {
            Listen::Unix(_) => "unix",
            Listen::Tcp { family, .. } => match family {
                Family::Any => "tcp",
                Family::V4 => "tcp4",
                Family::V6 => "tcp6",
            },
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Unix(path) => write!(f, "{}", path.display()),
            Listen::Tcp { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Listen::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
        }
    }
}

fn parse_unix(address: &str) -> Result<Listen, String> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    if path.is_empty() {
        return Err("a unix socket needs a path: --listen /run/lockd.sock".to_owned());
    }
    Ok(Listen::Unix(PathBuf::from(path)))
}

fn split_port(address: &str, default_port: u16) -> Result<(String, u16), String> {
    let bad = || format!("{address:?} is not of the form HOST:PORT");
    // A bare IPv6 address has colons that separate no port.
    if address.parse::<Ipv6Addr>().is_ok() {
        return Ok((address.to_owned(), default_port));
    }
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or_else(bad)?;
            host.parse::<Ipv6Addr>().map_err(|_| bad())?;
            match after {
                "" => (host, None),
                _ => (host, Some(after.strip_prefix(':').ok_or_else(bad)?)),
            }
        }
        None => match address.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    if host.is_empty() && port.is_none() {
        return Err(bad());
    }
    if host.contains(|c: char| c.is_whitespace() || c == '/') || (host.contains(':') && !address.starts_with('[')) {
        return Err(bad());
    }
    let port = match port {
        Some(port) => port.parse().map_err(|_| bad())?,
        None => default_port,
    };
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str) -> String {
        Listen::parse("tcp", address).map_or_else(|error| format!("error: {error}"), |listen| listen.to_string())
    }

    #[test]
    fn addresses_are_completed_with_the_default_port() {
        assert_eq!(tcp("127.0.0.1"), "127.0.0.1:9341");
        assert_eq!(tcp("localhost:80"), "localhost:80");
        assert_eq!(tcp(":9341"), ":9341");
        assert_eq!(tcp("::1"), "[::1]:9341");
        assert_eq!(tcp("[::1]"), "[::1]:9341");
        assert_eq!(tcp("[::1]:80"), "[::1]:80");
        assert_eq!(tcp("127.0.0.1:0"), "127.0.0.1:0");
    }

    #[test]
    fn the_address_for_metrics_has_a_default_port_of_its_own() {
        let metrics = |address| Listen::parse_metrics(address).map(|listen| listen.to_string());
        assert_eq!(metrics("127.0.0.1").unwrap(), "127.0.0.1:9464");
        assert_eq!(metrics("[::1]:80").unwrap(), "[::1]:80");
        assert!(metrics("http://a").unwrap_err().contains("HOST:PORT"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in [
            "",
            "a:b",
            "a:99999",
            "[::1",
            "[::1]80",
            "[a]:80",
            "http://a:80",
            "a b:80",
            "1:2:3",
        ] {
            assert!(tcp(bad).starts_with("error: "), "{bad:?} gave {}", tcp(bad));
        }
        assert!(Listen::parse("udp", ":1").unwrap_err().contains("expected tcp"));
        assert!(Listen::parse("tcp6", "127.0.0.1:1").is_err());
        assert!(Listen::parse("tcp4", "[::1]:1").is_err());
        assert!(Listen::parse("unix", "").unwrap_err().contains("needs a path"));
    }

    #[test]
    fn only_loopback_and_unix_sockets_are_local() {
        let local = |proto, address| Listen::parse(proto, address).unwrap().is_local();
        assert!(local("tcp", "127.0.0.1:1"));
        assert!(local("tcp", "127.9.9.9:1"));
        assert!(local("tcp", "[::1]:1"));
        assert!(local("tcp", "LocalHost:1"));
        assert!(local("unix", "/run/lockd.sock"));
        for reachable in [":1", "0.0.0.0:1", "[::]:1", "192.168.0.1:1", "lockd.example:1"] {
            assert!(!local("tcp", reachable), "{reachable}");
        }
    }

    #[test]
    fn no_host_means_every_address_of_the_family() {
        let found = |proto| {
            let addresses = Listen::parse(proto, ":7").unwrap().socket_addresses().unwrap();
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(found("tcp"), ["[::]:7", "0.0.0.0:7"]);
        assert_eq!(found("tcp4"), ["0.0.0.0:7"]);
        assert_eq!(found("tcp6"), ["[::]:7"]);
    }
}
