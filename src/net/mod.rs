//! What the kernel knows about our sockets and the HTTP library keeps to itself: whether a peer is still there
//! ([`peer`]), and a way to close connections that somebody else owns ([`sever`]).
//!
//! Both are for Linux. Elsewhere they compile and say that they do not know.

pub mod peer;
pub mod sever;
#[cfg(target_os = "linux")]
mod sock_diag;
