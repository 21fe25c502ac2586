//! Two more ways to keep a log: a bounded capture of some kinds of entries, and a verbose log that is shown only when
//! its test fails.

use std::sync::Arc;
use std::time::Duration;

use log::{Level, Log, Metadata, Record};

use super::entry::Entry;
use super::tape::{Tape, print_to_test_output};

/// How many lines a [`TestingLogger`] keeps.
const TESTING_LOGGER_LINES: usize = 2_000;

/// What a [`LogCapture`] keeps.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// The most severe levels down to this one.
    pub level: Level,
    /// Only messages that begin with one of these; an empty list lets all pass.
    pub prefixes: Vec<String>,
    /// How many entries are kept (at least 1); the oldest go first.
    pub entries_max: usize,
    /// Whether entries are also written to the output of the test.
    pub forward: bool,
}

/// Everything at trace level, the last 10,000 entries, not forwarded.
impl Default for CaptureOptions {
    fn default() -> Self {
        Self {
            level: Level::Trace,
            prefixes: Vec::new(),
            entries_max: 10_000,
            forward: false,
        }
    }
}

/// Keeps the last entries of some kinds. Positions count all entries ever kept, so a position taken before something
/// happens still means the same afterwards, also when old entries had to go.
pub struct LogCapture {
    tape: Tape,
}

impl LogCapture {
    /// A capture with these options. Raises [`log::max_level`] if needed.
    pub fn new(options: CaptureOptions) -> Arc<Self> {
        let CaptureOptions {
            level,
            prefixes,
            entries_max,
            forward,
        } = options;
        Arc::new(Self {
            tape: Tape::new(level, prefixes, entries_max, forward),
        })
    }

    /// How many entries were captured so far, including those that had to go since. Also the position of the next one.
    pub fn len(&self) -> usize {
        self.tape.len()
    }

    /// Whether nothing was captured so far.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries were captured from this position on, including those that had to go since.
    pub fn count_since(&self, position: usize) -> usize {
        self.len().saturating_sub(position)
    }

    /// The entries from this position on that are still here.
    pub fn entries_since(&self, position: usize) -> Vec<Arc<Entry>> {
        self.tape.since(position)
    }

    /// The same as compact JSON lines, for searching raw text.
    pub fn lines_since(&self, position: usize) -> Vec<String> {
        let entries = self.tape.since(position);
        entries.iter().map(|entry| entry.json_line().into_owned()).collect()
    }

    /// The first entry that matches, of those here and those that arrive within the limit.
    pub fn wait_for(&self, limit: Duration, matches: impl Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        self.tape.wait_for(limit, matches)
    }

    /// Takes a JSON line of a spawned daemon, see [`Entry::parse_line`].
    pub fn record_line(&self, line: &str) {
        self.tape.record_line(line);
    }
}

impl Log for LogCapture {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.tape.takes(metadata.level())
    }

    fn log(&self, record: &Record<'_>) {
        self.tape.record(record);
    }

    fn flush(&self) {}
}

/// Keeps the last 2,000 lines of a verbose log and shows them only if the test fails, so that green runs stay quiet.
///
/// ```
/// use lockd::testing::TestingLogger;
///
/// let logger = TestingLogger::new("server", log::Level::Debug);
/// let _shown_on_failure = logger.print_on_failure();
/// // Hand `logger.clone()` to a server.
/// ```
pub struct TestingLogger {
    whose: String,
    tape: Tape,
}

impl TestingLogger {
    /// A logger for this level and everything more severe. `whose` is the first word of its headline, e.g. `server`.
    pub fn new(whose: &str, level: Level) -> Arc<Self> {
        Arc::new(Self {
            whose: whose.to_owned(),
            tape: Tape::new(level, Vec::new(), TESTING_LOGGER_LINES, false),
        })
    }

    /// The guard that prints the log if its thread is panicking when the guard goes. Keep it in the test function. Once
    /// it is gone the logger ignores everything: the test is over.
    pub fn print_on_failure(self: &Arc<Self>) -> PrintOnFailure {
        PrintOnFailure {
            logger: Arc::clone(self),
        }
    }

    /// What would be printed: `server log (last N entries):` and the lines.
    pub fn report(&self) -> String {
        let entries = self.tape.since(0);
        let mut text = format!("{} log (last {} entries):", self.whose, entries.len());
        for entry in entries {
            text.push('\n');
            text.push_str(&entry.to_string());
        }
        text
    }
}

impl Log for TestingLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.tape.takes(metadata.level())
    }

    fn log(&self, record: &Record<'_>) {
        self.tape.record(record);
    }

    fn flush(&self) {}
}

/// Prints a [`TestingLogger`] if the test fails. A test that fails by returning an error does not panic and prints
/// nothing; let it panic.
#[must_use = "the log is shown when this guard goes at the end of the test"]
pub struct PrintOnFailure {
    logger: Arc<TestingLogger>,
}

impl Drop for PrintOnFailure {
    fn drop(&mut self) {
        self.logger.tape.stop();
        if std::thread::panicking() {
            print_to_test_output(&self.logger.report());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::child::{is_child, run_this_test_as_child, run_this_test_as_child_with};

    #[test]
    fn a_capture_keeps_the_last_entries_and_positions_still_count_all() {
        let capture = LogCapture::new(CaptureOptions {
            entries_max: 3,
            ..CaptureOptions::default()
        });
        assert!(capture.is_empty());
        for n in 0..5 {
            log::trace!(logger: capture, n; "entry");
        }
        let kept = |since| {
            let entries = capture.entries_since(since);
            entries
                .iter()
                .map(|e| (e.position, e.int_field("n").unwrap()))
                .collect::<Vec<_>>()
        };
        assert_eq!(capture.len(), 5);
        assert_eq!(kept(0), [(2, 2), (3, 3), (4, 4)]);
        assert_eq!(kept(4), [(4, 4)]);
        assert_eq!(
            (capture.count_since(1), capture.count_since(5), capture.count_since(9)),
            (4, 0, 0)
        );
        assert!(kept(5).is_empty());
    }

    #[test]
    fn a_capture_filters_by_prefix_and_level() {
        let capture = LogCapture::new(CaptureOptions {
            level: Level::Debug,
            prefixes: vec![
                "queue.dispatcher.poll".to_owned(),
                "storage.list_objects.begin".to_owned(),
            ],
            ..CaptureOptions::default()
        });
        log::debug!(logger: capture, queue = "jobs"; "queue.dispatcher.poll.begin");
        log::debug!(logger: capture, "queue.dispatcher.config");
        log::trace!(logger: capture, "queue.dispatcher.poll.begin");
        log::debug!(logger: capture, "storage.list_objects.begin");
        let lines = capture.lines_since(0);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains(r#""msg":"queue.dispatcher.poll.begin""#), "{lines:?}");
        assert!(lines[0].contains(r#""queue":"jobs""#), "{lines:?}");
        assert!(lines[1].contains(r#""msg":"storage.list_objects.begin""#), "{lines:?}");
    }

    #[test]
    fn a_capture_forwards_only_when_asked() {
        let name = "testing::capture::tests::a_capture_forwards_only_when_asked";
        if is_child() {
            for (forward, message) in [(true, "told"), (false, "untold")] {
                let options = CaptureOptions {
                    forward,
                    ..CaptureOptions::default()
                };
                let capture = LogCapture::new(options);
                log::info!(logger: capture, "{message}");
            }
            return;
        }
        let child = run_this_test_as_child(name, &["--show-output"]);
        assert!(child.stdout.contains("[info] told"), "{child:?}");
        assert!(!child.stdout.contains("[info] untold"), "{child:?}");
    }

    #[test]
    fn waiting_sees_an_entry_that_has_its_place_behind_dropped_ones() {
        let capture = LogCapture::new(CaptureOptions {
            entries_max: 1,
            ..CaptureOptions::default()
        });
        log::info!(logger: capture, "old");
        log::info!(logger: capture, "new");
        assert!(capture.wait_for(Duration::ZERO, |e| e.message == "old").is_none());
        assert_eq!(
            capture
                .wait_for(Duration::ZERO, |e| e.message == "new")
                .unwrap()
                .position,
            1
        );
    }

    #[test]
    fn a_testing_logger_keeps_the_last_two_thousand_lines() {
        let logger = TestingLogger::new("server", Level::Debug);
        for n in 0..2_003 {
            log::debug!(logger: logger, n; "entry");
            log::trace!(logger: logger, "too fine");
        }
        let report = logger.report();
        let lines: Vec<_> = report.lines().collect();
        assert_eq!((lines[0], lines.len()), ("server log (last 2000 entries):", 2_001));
        assert!(lines[1].ends_with("entry n=3") && lines[2_000].ends_with("entry n=2002"));
    }

    #[test]
    fn a_testing_logger_prints_only_if_the_test_fails() {
        let name = "testing::capture::tests::a_testing_logger_prints_only_if_the_test_fails";
        if is_child() {
            let logger = TestingLogger::new("server", Level::Debug);
            let _shown = logger.print_on_failure();
            log::debug!(logger: logger, "seen");
            assert!(std::env::var_os("LOCKD_TEST_CHILD_PASSES").is_some(), "meant to fail");
            return;
        }
        let failed = run_this_test_as_child(name, &[]);
        assert!(!failed.status.success(), "{failed:?}");
        assert!(failed.stdout.contains("server log (last 1 entries):\n"), "{failed:?}");
        assert!(failed.stdout.contains("[debug] seen"), "{failed:?}");
        let passed = run_this_test_as_child_with(name, &["--show-output"], &[("LOCKD_TEST_CHILD_PASSES", "1")]);
        assert!(
            passed.status.success() && !passed.stdout.contains("server log"),
            "{passed:?}"
        );
    }

    #[test]
    fn a_testing_logger_is_silent_after_its_test() {
        let logger = TestingLogger::new("server", Level::Debug);
        let guard = logger.print_on_failure();
        log::debug!(logger: logger, "during");
        drop(guard);
        log::debug!(logger: logger, "after");
        assert!(logger.report().contains("during") && !logger.report().contains("after"));
    }
}
