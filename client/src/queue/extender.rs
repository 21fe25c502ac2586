//! Prolonging the lease of the message that is being worked on.
//!
//! One thread serves a whole subscription, one message after the other. It is woken only when a message has been worked on for
//! half of its visibility timeout, so quick handlers cost it nothing.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

use super::message::MessageHandle;
use crate::call::CallOptions;
use crate::cancel::CancelToken;
use crate::clock;
use crate::error::Error;
use crate::threads;

const PERIOD_MIN: Duration = Duration::from_millis(250);
const PERIOD_MAX: Duration = Duration::from_secs(30);
/// The period for a message that does not say for how long it is leased.
const PERIOD_UNKNOWN: Duration = Duration::from_secs(15);
/// The shortest time that one extension may take.
const CALL_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// The thread that prolongs. Dropping it stops the thread, also in the middle of a request, and joins it.
pub(super) struct Extender {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    slot: Mutex<Slot>,
    changed: Condvar,
}

#[derive(Default)]
struct Slot {
    stopped: bool,
    kept: Option<Kept>,
    /// Counts the messages, so that an extension under way knows whether its message is still the current one.
    turn: u64,
    /// When the thread wakes by itself; `None` while it sleeps without end or does not exist.
    wakes_at: Option<Instant>,
    /// Ends the extension under way.
    calling: Option<CancelToken>,
    failure: Option<Error>,
}

struct Kept {
    handle: MessageHandle,
    due: Instant,
}

impl Extender {
    pub(super) fn new() -> Self {
        Self {
            shared: Arc::default(),
            thread: Mutex::default(),
        }
    }

    /// From now on this message is prolonged, and no other.
    pub(super) fn keep(&self, handle: &MessageHandle) -> io::Result<()> {
        let due = clock::now() + first_pause(handle);
        let must_wake = {
            let mut slot = self.shared.slot.lock();
            slot.turn += 1;
            slot.failure = None;
            slot.kept = Some(Kept {
                handle: handle.clone(),
                due,
            });
            slot.wakes_at.is_none_or(|wakes_at| due < wakes_at)
        };
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            *thread = Some(threads::spawn("lockd-extend", move || shared.run())?);
        } else if must_wake {
            self.shared.changed.notify_one();
        }
        Ok(())
    }

    /// The message is no longer prolonged. Returns why that had failed, if it had.
    pub(super) fn release(&self) -> Option<Error> {
        let mut slot = self.shared.slot.lock();
        slot.turn += 1;
        slot.kept = None;
        slot.failure.take()
    }
}

impl Drop for Extender {
    fn drop(&mut self) {
        let calling = {
            let mut slot = self.shared.slot.lock();
            slot.stopped = true;
            slot.kept = None;
            slot.calling.take()
        };
        if let Some(calling) = calling {
            calling.cancel();
        }
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.get_mut().take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut slot = self.slot.lock();
        while !slot.stopped {
            let now = clock::now();
            match &slot.kept {
                None => {
                    slot.wakes_at = None;
                    self.changed.wait(&mut slot);
                }
                Some(kept) if now < kept.due => {
                    let due = kept.due;
                    slot.wakes_at = Some(due);
                    self.changed.wait_until(&mut slot, due);
                }
                Some(kept) => {
                    let (handle, turn) = (kept.handle.clone(), slot.turn);
                    let token = handle.cancel_token().child();
                    slot.calling = Some(token.clone());
                    // Meanwhile `keep` need not wake anybody: the slot is looked at again afterwards.
                    slot.wakes_at = Some(now);
                    drop(slot);
                    let outcome = extend(&handle, &token);
                    slot = self.slot.lock();
                    slot.calling = None;
                    if slot.turn == turn && !slot.stopped {
                        slot.take_note(&handle, outcome);
                    }
                }
            }
        }
    }
}

impl Slot {
    fn take_note(&mut self, handle: &MessageHandle, outcome: Result<i64, Error>) {
        match outcome {
            Ok(_) => {
                if let Some(kept) = &mut self.kept {
                    kept.due = clock::now() + period(handle.visibility());
                }
            }
            // The work is done, or nobody wants it any more.
            Err(Error::MessageClosed) => self.kept = None,
            Err(_) if handle.cancel_token().is_cancelled() => self.kept = None,
            Err(error) => {
                handle
                    .shared
                    .lost
                    .lock()
                    .get_or_insert_with(|| format!("the lease of the message could not be prolonged: {error}"));
                self.kept = None;
                self.failure = Some(error);
                handle.cancel_token().cancel();
            }
        }
    }
}

/// One extension by the visibility timeout. It may take as long as the lease lasts for sure.
fn extend(handle: &MessageHandle, token: &CancelToken) -> Result<i64, Error> {
    let visibility = handle.visibility();
    let patience = visibility.saturating_sub(period(visibility)).max(CALL_TIMEOUT_MIN);
    let options = CallOptions::new().cancel(token.clone()).timeout(patience);
    let options = match handle.call.cid() {
        Some(id) => options.correlation_id(id),
        None => options,
    };
    let bound = handle.with_options(options);
    let attempt_timeout = bound.shared.inner.settings.http_timeout;
    bound.extend_under(&bound.call_options(), visibility, Some(attempt_timeout))
}

/// Half of the visibility timeout, within bounds.
fn period(visibility: Duration) -> Duration {
    match visibility.is_zero() {
        true => PERIOD_UNKNOWN,
        false => (visibility / 2).clamp(PERIOD_MIN, PERIOD_MAX),
    }
}

/// The pause before the first extension. A message that a subscription has leased ahead may have waited for its turn; when the
/// server's clock and ours agree enough to tell, what is left of its lease counts, not what it had.
fn first_pause(handle: &MessageHandle) -> Duration {
    let visibility = handle.visibility();
    let expires_at = u64::try_from(handle.lease_expires_at_unix()).unwrap_or(0);
    let left = (UNIX_EPOCH + Duration::from_secs(expires_at)).duration_since(clock::wall());
    sooner(visibility, left.ok())
}

fn sooner(visibility: Duration, left: Option<Duration>) -> Duration {
    let usual = period(visibility);
    match left {
        Some(left) if left <= visibility => usual.min((left / 2).max(PERIOD_MIN)),
        _ => usual,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// CL-40: every half visibility timeout, 250 ms to 30 s, 15 s when it is unknown.
    #[test]
    fn the_period_is_half_the_visibility_timeout_within_bounds() {
        for (visibility, expected) in [
            (0, 15_000),
            (100, 250),
            (1_000, 500),
            (30_000, 15_000),
            (3_600_000, 30_000),
        ] {
            assert_eq!(period(ms(visibility)), ms(expected), "{visibility}");
        }
    }

    #[test]
    fn a_lease_that_has_run_for_a_while_is_prolonged_sooner() {
        assert_eq!(sooner(ms(30_000), Some(ms(30_000))), ms(15_000));
        assert_eq!(sooner(ms(30_000), Some(ms(4_000))), ms(2_000));
        assert_eq!(sooner(ms(30_000), Some(ms(100))), PERIOD_MIN);
        // Clocks that do not agree tell nothing.
        assert_eq!(sooner(ms(30_000), Some(ms(31_000))), ms(15_000));
        assert_eq!(sooner(ms(30_000), None), ms(15_000));
    }
}
