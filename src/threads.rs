//! Threads with a name and somebody who joins them.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread under this name (at most 15 bytes of it show in the kernel's tools). The caller keeps the handle
/// and joins it: a thread that nobody joins outlives what it works on.
pub fn spawn<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(body)
}
