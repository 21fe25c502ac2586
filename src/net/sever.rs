//! Stand-in while the real one is under way.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Address of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerAddr {
    /// TCP.
    Tcp(SocketAddr),
    /// Unix socket path.
    Unix(PathBuf),
}

/// Cut all.
pub fn sever_connections(_local: &ListenerAddr) -> io::Result<usize> {
    Ok(0)
}

/// Cut one.
pub fn sever_one(_local: SocketAddr, _remote: SocketAddr) -> io::Result<bool> {
    Ok(false)
}
