//! Threads with a name.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread under this name.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(body)
}
