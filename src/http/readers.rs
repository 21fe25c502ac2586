//! Lets go of what is kept for reading while a request is parked.
//!
//! For each connection the HTTP library keeps a thread that waits for the next request, with a stack, buffers and a
//! descriptor: about 19 KB of the 23 KB that a parked request costs in all. A client that waits for its answer sends
//! nothing. So when many wait, the reading side is ended for those that have waited longest. The library takes that for the
//! end of the input and lets go; the way of the answer stays open. The answer says that it is the last one
//! (`Connection: close`), and the client connects anew for its next request.
//!
//! With few who wait nothing of this happens: their connections are kept, as long as the library reads them.

use std::sync::Arc;
use std::time::Duration;

use super::{Service, Work};
use crate::clock::Moment;
use crate::net::peer::Peer;

/// Parked requests whose connections are read.
const READ_MAX: usize = 1000;
/// Who is served sooner keeps the connection.
const LEAST_WAIT: Duration = Duration::from_secs(1);
/// Pause between two looks at all descriptors of the process, at least.
const PAUSE: Duration = Duration::from_secs(1);
/// And so many times what the last look took.
const PAUSE_FACTOR: u32 = 10;

impl Service {
    /// What is to be done every few seconds, more often while requests come in.
    pub fn tend(&self) {
        self.cut_stuck_connections();
        let unread = self.turns.thin_readers(READ_MAX, LEAST_WAIT, self.edge.clock.now());
        if !unread.is_empty() {
            self.queue.push(Work::EndReading(unread));
        }
    }

    /// Ends the reading side of these connections.
    pub(super) fn end_reading(self: &Arc<Self>, peers: &[Peer]) {
        let began = self.edge.clock.now();
        let next = match self.edge.end_reading(peers) {
            Ok(count) => {
                log::debug!(logger: self.edge.log, target: "api.http.server", count; "http.readers.thinned");
                let now = self.edge.clock.now();
                now.after(PAUSE.max(now.since(began) * PAUSE_FACTOR))
            }
            Err(cause) => {
                let error = cause.to_string();
                log::info!(logger: self.edge.log, target: "api.http.server", error; "http.readers.kept");
                Moment::MAX
            }
        };
        self.turns.next_thinning_at(next);
    }
}
