//! The lock around writing: `flock` through fs2, with a bounded wait that polls.
//!
//! Two files are locked, both made once and never renamed. `commit.lock` is the lock that counts. `turn.lock` is held only
//! while waiting for it: a process that has just committed and wants to again must first get its turn, and cannot while
//! somebody else waits. Without it a busy process would find the lock free at once every time and starve the others.
//!
//! The kernel frees both the moment their holder dies. A holder that is stopped keeps them; then the wait ends at its
//! bound, and the answer is [`StoreError::Unavailable`]: better refused than hung. Waiting polls because a blocking
//! `flock` has no bound, and on NFS sleeps through the expiry of a dead holder.
//!
//! Who waits in line behind somebody that has waited in vain would wait as long again, and the tenth in line ten times as
//! long. So after a wait in vain those that follow wait for a fraction only, until the lock was had again.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::clock::{Moment, SharedClock};
use crate::store::StoreError;

/// Its name under the root.
pub(super) const TURN_FILE: &str = "turn.lock";

/// The first pause between two attempts; each is twice the one before.
const PAUSE_MIN: Duration = Duration::from_micros(50);
const PAUSE_MAX_LOCAL: Duration = Duration::from_millis(1);
/// Over a network every attempt is a request to the server.
const PAUSE_MAX_NETWORK: Duration = Duration::from_millis(20);

/// Into how many parts the bound of a wait is cut once one was in vain.
const IMPATIENCE: u32 = 20;

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Shared,
    Exclusive,
}

/// The two files of one open engine. Within a process its owner takes care that only one thread at a time is here: the
/// lock belongs to the open file, not to the thread.
pub(super) struct CommitLock {
    pub(super) commit: Arc<File>,
    pub(super) turn: File,
    pub(super) clock: SharedClock,
    /// The longest wait.
    pub(super) wait: Duration,
    pub(super) network: bool,
    /// The last wait was in vain.
    pub(super) waited_in_vain: Cell<bool>,
}

/// The lock, held until dropped.
pub(super) struct Held<'a>(&'a File);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Unlocking an open file that is locked cannot fail in a way that could be helped here.
        let _ = fs2::FileExt::unlock(self.0);
    }
}

impl CommitLock {
    /// Waits for the lock, at most as long as the bound says.
    pub(super) fn acquire(&self, mode: Mode) -> Result<Held<'_>, StoreError> {
        let start = self.clock.now();
        let held = self.acquire_since(start, mode);
        let in_vain = matches!(held, Err(StoreError::Unavailable { .. }));
        self.waited_in_vain.set(in_vain);
        held
    }

    fn acquire_since(&self, start: Moment, mode: Mode) -> Result<Held<'_>, StoreError> {
        // The turn is given back as soon as the lock is there.
        let _turn = self.poll(&self.turn, Mode::Exclusive, start)?;
        self.poll(&self.commit, mode, start)
    }

    fn poll<'a>(&self, file: &'a File, mode: Mode, start: Moment) -> Result<Held<'a>, StoreError> {
        let wait = match self.waited_in_vain.get() {
            true => self.wait / IMPATIENCE,
            false => self.wait,
        };
        let mut pause = PAUSE_MIN;
        let pause_max = if self.network {
            PAUSE_MAX_NETWORK
        } else {
            PAUSE_MAX_LOCAL
        };
        loop {
            match try_lock(file, mode) {
                Ok(true) => return Ok(Held(file)),
                Ok(false) => {}
                Err(cause) => {
                    return Err(StoreError::NotDone {
                        detail: format!("locking the store: {cause}"),
                    });
                }
            }
            if wait <= self.clock.now().since(start) {
                return Err(StoreError::Unavailable {
                    detail: format!(
                        "another process has held the lock of the store for more than {} ms",
                        wait.as_millis()
                    ),
                });
            }
            thread::sleep(pause);
            pause = (2 * pause).min(pause_max);
        }
    }
}

/// One attempt. False: somebody else holds it.
pub(super) fn try_lock(file: &File, mode: Mode) -> io::Result<bool> {
    let attempt = match mode {
        Mode::Shared => fs2::FileExt::try_lock_shared(file),
        Mode::Exclusive => fs2::FileExt::try_lock_exclusive(file),
    };
    match attempt {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == fs2::lock_contended_error().raw_os_error() => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}
