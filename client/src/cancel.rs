//! Cancelling a blocking call from another thread.
//!
//! A [`CancelToken`] reaches a call wherever it is: between two attempts, in a pause before the next one, and inside a
//! read, a write or a connect that blocks. The last is done by shutting the socket down: the thread that sits on it wakes
//! at once, so nothing here polls. A connection that was cut this way is never used again.
//!
//! Tokens form a tree: cancelling one cancels those made from it by [`CancelToken::child`], never its parent.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::clock;

/// A switch that ends the calls it was given to. Clones are the same switch. It cannot be reset.
#[derive(Clone, Default)]
pub struct CancelToken {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    cancelled: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    /// Keeps the way from the root open: a token in between may have been dropped by its makers.
    _parent: Option<Arc<Shared>>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    blocked: HashMap<u64, Weak<dyn Abort>>,
    children: Vec<Weak<Shared>>,
}

/// Something that a thread blocks on and that another thread can make return.
pub(crate) trait Abort: Send + Sync {
    /// Makes the blocked call return, with whatever result.
    fn abort(&self);
}

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that is cancelled with this one, and can be cancelled alone.
    pub fn child(&self) -> Self {
        let child = Self {
            shared: Arc::new(Shared {
                _parent: Some(Arc::clone(&self.shared)),
                ..Shared::default()
            }),
        };
        let mut state = self.shared.state.lock();
        // Checked under the lock: `cancel` sets the flag before it takes the list.
        if self.is_cancelled() {
            child.shared.cancelled.store(true, Ordering::SeqCst);
        } else {
            state.children.retain(|known| known.strong_count() > 0);
            state.children.push(Arc::downgrade(&child.shared));
        }
        child
    }

    /// Ends every call that runs or will run under this token. Calling it again does nothing.
    pub fn cancel(&self) {
        self.shared.cancel();
    }

    /// True once [`cancel`](Self::cancel) was called here or on an ancestor.
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::SeqCst)
    }

    /// Waits until the token is cancelled, at most so long. Returns whether it is cancelled.
    pub fn wait(&self, at_most: Duration) -> bool {
        let until = clock::now().checked_add(at_most);
        let mut state = self.shared.state.lock();
        while !self.is_cancelled() {
            match until {
                Some(until) if self.shared.changed.wait_until(&mut state, until).timed_out() => break,
                Some(_) => {}
                None => self.shared.changed.wait(&mut state),
            }
        }
        self.is_cancelled()
    }

    /// Has `blocked` aborted when the token is cancelled, for as long as the returned guard lives. `None` when the token
    /// is cancelled already: then there is nothing to begin.
    pub(crate) fn watch(&self, blocked: Weak<dyn Abort>) -> Option<Watch> {
        let mut state = self.shared.state.lock();
        if self.is_cancelled() {
            return None;
        }
        state.next_id += 1;
        let id = state.next_id;
        state.blocked.insert(id, blocked);
        Some(Watch {
            shared: Arc::clone(&self.shared),
            id,
        })
    }
}

impl std::fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelToken")
            .field("cancelled", &self.is_cancelled())
            .finish()
    }
}

impl Shared {
    fn cancel(&self) {
        let (blocked, children) = {
            let mut state = self.state.lock();
            self.cancelled.store(true, Ordering::SeqCst);
            (std::mem::take(&mut state.blocked), std::mem::take(&mut state.children))
        };
        self.changed.notify_all();
        for call in blocked.values().filter_map(Weak::upgrade) {
            call.abort();
        }
        for child in children.iter().filter_map(Weak::upgrade) {
            child.cancel();
        }
    }
}

/// Ends the watching when dropped.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.state.lock().blocked.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Flag(AtomicBool);

    impl Abort for Flag {
        fn abort(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn flag() -> (Arc<Flag>, Weak<dyn Abort>) {
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let weak = Arc::downgrade(&flag);
        (flag, weak)
    }

    #[test]
    fn cancelling_aborts_what_is_blocked_and_nothing_that_has_ended() {
        let token = CancelToken::new();
        let (blocked, weak_blocked) = flag();
        let (ended, weak_ended) = flag();
        let _watch = token.watch(weak_blocked);
        drop(token.watch(weak_ended));
        token.cancel();
        assert!(blocked.0.load(Ordering::SeqCst));
        assert!(!ended.0.load(Ordering::SeqCst));
        assert!(
            token.watch(flag().1).is_none(),
            "nothing begins under a cancelled token"
        );
    }

    /// A grandchild once stayed alive because its parent, the only link to the root, had been dropped.
    #[test]
    fn a_child_falls_with_its_parent_but_not_the_other_way() {
        let parent = CancelToken::new();
        let first = parent.child();
        let second = parent.child().child();
        first.cancel();
        assert!(!parent.is_cancelled());
        assert!(!second.is_cancelled());
        parent.cancel();
        assert!(second.is_cancelled());
        assert!(parent.child().is_cancelled());
    }

    #[test]
    fn waiting_ends_at_cancellation() {
        let token = CancelToken::new();
        assert!(!token.wait(Duration::from_millis(1)));
        let other = token.clone();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(move || other.wait(Duration::from_secs(30)));
            token.cancel();
            assert!(waiter.join().unwrap());
        });
    }
}
