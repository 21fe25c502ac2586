//! Renewing a lease on a thread of its own.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::call::CallOptions;
use crate::cancel::CancelToken;
use crate::clock;
use crate::lease::Session;
use crate::threads;

/// Shortest pause between two renewals.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// A running renewal. Dropping it stops the thread, also in the middle of a request, and joins it.
#[derive(Debug)]
pub(crate) struct Renewal {
    stop: CancelToken,
    thread: Option<JoinHandle<()>>,
}

impl Renewal {
    /// Renews every third of `ttl`. The thread holds the lease's shared part, not the lease: it does not keep it alive
    /// beyond its owner.
    pub(crate) fn start(session: &Session, ttl: Duration) -> std::io::Result<Self> {
        let stop = CancelToken::new();
        let weak = session.shared.weak();
        let mut call = CallOptions::new().cancel(stop.clone());
        if let Some(id) = session.call.cid() {
            call = call.correlation_id(id);
        }
        let interval = (ttl / 3).max(PAUSE_MIN);
        let token = stop.clone();
        let thread = threads::spawn("lockd-renew", move || {
            let mut pause = interval;
            while !token.wait(pause) {
                let Some(shared) = weak.upgrade() else { return };
                let session = Session {
                    shared: Arc::clone(&shared),
                    call: call.clone(),
                };
                if session.is_released() {
                    return;
                }
                match session.keepalive(ttl) {
                    Ok(_) => pause = interval,
                    Err(error) if error.is_cancelled() || session.is_released() => return,
                    Err(error) if error.is_missing_fencing_token() => return,
                    Err(error) if error.is_lease_lost() => return,
                    Err(error) => {
                        // The network or the server is in trouble; while the lease lives, it is worth trying again soon.
                        let until = shared.memory.lock().valid_until;
                        if until.is_some_and(|until| until <= clock::now()) {
                            shared.mark_lost(format!("the lease could not be renewed: {error}"));
                            return;
                        }
                        pause = (interval / 4).max(PAUSE_MIN);
                    }
                }
            }
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}
