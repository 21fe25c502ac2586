//! Leaving a stream without losing what its server has sent already.
//!
//! Shutting a connection down makes the kernel throw away what is still on its way, and a message among it would be seen
//! by nobody before its lease is over. So a stream that is left wakes its reader, goes on with what is here or arrives within
//! a moment, and only then fails as a cancelled one does.
//!
//! On Linux bytes still arrive after the receiving side of a socket was shut down, as long as its sending side is open. Elsewhere
//! nothing does, and the stream is at its end at once.

use std::sync::Weak;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cancel::Abort;
use crate::clock;

/// So much silence ends a stream that was left. A server that delivers without being asked for more pauses for longer.
const SILENCE_MAX: Duration = Duration::from_millis(40);
/// How long a stream goes on after it was left, however much comes.
const TIME_MAX: Duration = Duration::from_secs(1);
/// The silence is looked at in steps of this length.
const STEP: Duration = Duration::from_millis(5);

/// The switch of one stream. Cancelling the token that it is registered with leaves the stream.
#[derive(Default)]
pub(crate) struct Leave {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Set once the stream is left: its end, whatever still comes.
    until: Option<Instant>,
    connection: Option<Weak<dyn Receives>>,
}

/// A connection whose reader can be woken without an end to what arrives.
pub(crate) trait Receives: Send + Sync {
    /// From now on nobody waits in a read.
    fn stop_waiting(&self);
}

impl Leave {
    /// Leaves the stream.
    pub(crate) fn leave(&self) {
        let connection = {
            let mut state = self.state.lock();
            state.until = state.until.or_else(|| clock::now().checked_add(TIME_MAX));
            state.connection.as_ref().and_then(Weak::upgrade)
        };
        if let Some(connection) = connection {
            connection.stop_waiting();
        }
    }

    /// Names the connection that is read from.
    pub(crate) fn reads(&self, connection: Weak<dyn Receives>) {
        let mut state = self.state.lock();
        if state.connection.is_none() {
            if let (Some(_), Some(connection)) = (state.until, connection.upgrade()) {
                connection.stop_waiting();
            }
            state.connection = Some(connection);
        }
    }

    /// True once the stream is left.
    pub(crate) fn is_left(&self) -> bool {
        self.state.lock().until.is_some()
    }

    /// True when the stream is left and its time is over.
    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().until.is_some_and(|until| until <= clock::now())
    }

    /// For the reader of a stream that was left, when there is nothing: waits a moment. False when that was long enough.
    pub(crate) fn linger(&self, silent_since: Instant) -> bool {
        let goes_on = !self.is_over() && silent_since.elapsed() < SILENCE_MAX;
        if goes_on {
            std::thread::sleep(STEP);
        }
        goes_on
    }
}

impl Abort for Leave {
    fn abort(&self) {
        self.leave();
    }
}
