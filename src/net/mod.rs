//! What the kernel knows about our sockets and the HTTP library keeps to itself: whether a peer is still there
//! ([`peer`]), and a way to close connections that somebody else holds ([`sever`]).

pub mod peer;
pub mod sever;
#[cfg(target_os = "linux")]
mod sock_diag;
