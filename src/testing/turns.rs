//! Tests that measure time or count log lines must not run next to others. The test runner knows no such thing, so they
//! take turns here, within one test process.
//!
//! A test that measures takes [`exclusive`] as its first act; every other test of the same binary that could disturb it
//! takes [`shared`]. Start a [`Watchdog`](super::Watchdog) after the turn has come, or it counts the waiting too.

use parking_lot::{RecursiveRwLock, RecursiveRwLockReadGuard, RecursiveRwLockWriteGuard};

/// Of the recursive kind, which lets a reader go past a waiting writer: otherwise the second turn of one test could wait
/// for a writer that waits for its first.
static TURNS: RecursiveRwLock<()> = RecursiveRwLock::new(());

/// The right to run, held until it is dropped.
#[must_use = "the turn ends when this is dropped"]
pub struct Turn {
    _held: Held,
}

#[expect(dead_code, reason = "the guards are held, not used")]
enum Held {
    Exclusive(RecursiveRwLockWriteGuard<'static, ()>),
    Shared(RecursiveRwLockReadGuard<'static, ()>),
}

/// Waits until no other turn is held, then keeps all others away. A thread that already holds a turn waits for itself.
pub fn exclusive() -> Turn {
    Turn {
        _held: Held::Exclusive(TURNS.write()),
    }
}

/// Waits until no exclusive turn is held. Any number of tests share a turn, and one test may ask more than once.
pub fn shared() -> Turn {
    Turn {
        _held: Held::Shared(TURNS.read()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::threads;

    /// One test for all claims: they share one lock with each other, and with whatever test of this binary uses it.
    #[test]
    fn exclusive_turns_keep_everybody_else_away() {
        let alone = Arc::new(AtomicUsize::new(0));
        let together = Arc::new(AtomicUsize::new(0));
        let mut all = Vec::new();
        for n in 0..8 {
            let (alone, together) = (alone.clone(), together.clone());
            let body = move || {
                for _ in 0..50 {
                    if n % 2 == 0 {
                        let _turn = exclusive();
                        assert_eq!(alone.fetch_add(1, Ordering::SeqCst), 0, "two exclusive turns at once");
                        assert_eq!(
                            together.load(Ordering::SeqCst),
                            0,
                            "a shared turn beside an exclusive one"
                        );
                        std::thread::yield_now();
                        alone.fetch_sub(1, Ordering::SeqCst);
                    } else {
                        let _turn = shared();
                        together.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(alone.load(Ordering::SeqCst), 0, "an exclusive turn beside a shared one");
                        std::thread::yield_now();
                        let _again = shared();
                        together.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            };
            all.push(threads::spawn("turn", body).unwrap());
        }
        all.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_turn_ends_when_its_test_panics() {
        let failed = threads::spawn("fails", || {
            let _turn = exclusive();
            panic!("a failing test");
        });
        assert!(failed.unwrap().join().is_err());
        drop(exclusive());
    }
}
