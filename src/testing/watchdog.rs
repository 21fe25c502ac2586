//! Ends a hung test, after saying all that can be found out about where it hangs.
//!
//! Safe code cannot print the stacks of other threads. What the kernel tells about each thread (name, state, what it
//! waits in) together with the notes of the test is usually enough; threads of lockd have telling names.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fs, io, process};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use crate::threads;

/// How long the notes may take all together. One that waits for a lock of the hung test would never come back.
const NOTES_LIMIT: Duration = Duration::from_secs(2);

/// How many lines of a thread's kernel stack are printed.
const STACK_LINES: usize = 6;

type Note = (String, Box<dyn Fn() -> String + Send>);

/// A guard: if it is not dropped within its limit, it prints a report to standard error and aborts the process.
///
/// ```
/// use std::time::Duration;
/// use lockd::testing::{Recorder, Watchdog};
///
/// let recorder = Recorder::new(log::Level::Trace);
/// let watchdog = Watchdog::start("failover", Duration::from_secs(60)).unwrap();
/// watchdog.note("client log", move || recorder.summary());
/// ```
#[must_use = "a watchdog that is dropped at once watches nothing"]
pub struct Watchdog {
    notes: Arc<Mutex<Vec<Note>>>,
    /// Dropped to call the dog off.
    leash: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts to count. `what` names the test in the report. Fails if no thread can be started.
    pub fn start(what: &str, limit: Duration) -> io::Result<Self> {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let (leash, called_off) = bounded::<()>(0);
        let watched = (what.to_owned(), Arc::clone(&notes));
        let thread = threads::spawn("watchdog", move || {
            if called_off.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let (what, notes) = watched;
                report(&what, limit, notes);
                process::abort();
            }
        })?;
        Ok(Self {
            notes,
            leash: Some(leash),
            thread: Some(thread),
        })
    }

    /// Adds something to the report. It is called when the limit has passed; all notes together have 2 seconds.
    pub fn note(&self, title: &str, text: impl Fn() -> String + Send + 'static) {
        self.notes.lock().push((title.to_owned(), Box::new(text)));
    }
}

/// Calls the dog off. Once this returns it cannot bite any more.
impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.leash.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn report(what: &str, limit: Duration, notes: Arc<Mutex<Vec<Note>>>) {
    say(&format!(
        "watchdog: {what} is not done after {limit:?}; threads:\n{}",
        all_threads()
    ));
    let (done, all_said) = bounded::<()>(0);
    let speaker = threads::spawn("watchdog-notes", move || {
        for (title, text) in notes.lock().iter() {
            say(&format!("watchdog: {title}:\n{}\n", text()));
        }
        drop(done);
    });
    if speaker.is_ok() && all_said.recv_timeout(NOTES_LIMIT) == Err(RecvTimeoutError::Timeout) {
        say("watchdog: the notes do not come to an end\n");
    }
    say("watchdog: aborting the process\n");
}

/// Writes past the test runner, which would lose what it has collected when the process aborts.
fn say(text: &str) {
    // Nobody is left to be told about a failure.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// One line per thread of this process, with the top of its kernel stack where we may see it (as root).
fn all_threads() -> String {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return "  (this system does not show them)\n".to_owned();
    };
    let mut text = String::new();
    for task in tasks.flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let status = read("status");
        let state = status
            .lines()
            .find_map(|line| line.strip_prefix("State:"))
            .unwrap_or("?");
        let id = task.file_name();
        let _ = write!(
            text,
            "  {} {:?} state {}, waits in {:?}, system call {:?}",
            id.to_string_lossy(),
            read("comm").trim(),
            state.trim(),
            read("wchan").trim(),
            read("syscall").split(' ').next().unwrap_or_default().trim(),
        );
        text.push('\n');
        for frame in read("stack").lines().take(STACK_LINES) {
            let _ = writeln!(text, "      {frame}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::testing::child::{is_child, run_this_test_as_child, run_this_test_as_child_with};

    const SIGABRT: i32 = 6;

    #[test]
    fn a_hung_test_is_reported_and_aborted() {
        if is_child() {
            let watchdog = Watchdog::start("the hung one", Duration::from_millis(250)).unwrap();
            watchdog.note("what it was about", || "step 7 of 9".to_owned());
            let _stuck = threads::spawn("stuck-worker", || {
                loop {
                    std::thread::park();
                }
            });
            loop {
                std::thread::park();
            }
        }
        let child = run_this_test_as_child("testing::watchdog::tests::a_hung_test_is_reported_and_aborted", &[]);
        assert_eq!(child.status.signal(), Some(SIGABRT), "{child:?}");
        let said = &child.stderr;
        assert!(
            said.contains("watchdog: the hung one is not done after 250ms; threads:"),
            "{said}"
        );
        assert!(said.contains(r#""stuck-worker" state S"#), "{said}");
        assert!(said.contains("watchdog: what it was about:\nstep 7 of 9\n"), "{said}");
    }

    #[test]
    fn notes_that_hang_or_panic_do_not_save_the_process() {
        if is_child() {
            let notes_panic = std::env::var_os("LOCKD_TEST_NOTE_PANICS").is_some();
            let watchdog = Watchdog::start("the hung one", Duration::from_millis(10)).unwrap();
            watchdog.note("bad", move || {
                assert!(!notes_panic, "a note that panics");
                loop {
                    std::thread::park();
                }
            });
            loop {
                std::thread::park();
            }
        }
        let name = "testing::watchdog::tests::notes_that_hang_or_panic_do_not_save_the_process";
        let hangs = run_this_test_as_child(name, &[]);
        assert_eq!(hangs.status.signal(), Some(SIGABRT), "{hangs:?}");
        assert!(hangs.stderr.contains("the notes do not come to an end"), "{hangs:?}");
        let variables = [("LOCKD_TEST_NOTE_PANICS", "1")];
        let panics = run_this_test_as_child_with(name, &[], &variables);
        assert_eq!(panics.status.signal(), Some(SIGABRT), "{panics:?}");
        assert!(!panics.stderr.contains("the notes do not come to an end"), "{panics:?}");
    }

    /// The drop joins the thread: a dog that was not called off would keep it until it bites, and the child would die.
    #[test]
    fn a_dropped_watchdog_does_not_bite() {
        if is_child() {
            drop(Watchdog::start("quick", Duration::from_secs(20)).unwrap());
            return;
        }
        let child = run_this_test_as_child("testing::watchdog::tests::a_dropped_watchdog_does_not_bite", &[]);
        assert!(child.status.success(), "{child:?}");
    }
}
