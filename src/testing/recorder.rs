//! A recorder keeps every entry that a client or server logs, so that a test can say what must have happened, and in
//! which order.
//!
//! It watches and nothing else: it answers no question of the program and delays it only by its own lock. Each entry is
//! also written to the output of the test (which the test runner shows when the test fails). It keeps everything; for a
//! long log take a [`LogCapture`](super::LogCapture), which is bounded.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use log::{Level, Log, Metadata, Record};

use super::entry::Entry;
use super::tape::Tape;

/// How many entries a summary shows.
const SUMMARY_ENTRIES: usize = 15;

/// Records what is logged to it. Any number of threads may log; what the methods return is a copy of that moment.
///
/// ```
/// use std::time::Duration;
/// use log::Level;
/// use lockd::testing::Recorder;
///
/// let recorder = Recorder::new(Level::Trace);
/// // Hand `recorder.clone()` to a client or server; here we log ourselves.
/// log::trace!(logger: recorder, endpoint = "http://a"; "client.http.error");
/// log::trace!(logger: recorder, endpoint = "http://b"; "client.http.success");
///
/// let failed = recorder.first(|e| e.is("client.http.error", "http://a")).expect("a failed");
/// let moved_on = recorder.first_after(failed.at, |e| e.is("client.http.success", "http://b"));
/// assert!(moved_on.is_some_and(|e| failed.position < e.position), "{}", recorder.summary());
/// ```
pub struct Recorder {
    tape: Tape,
}

impl Recorder {
    /// A recorder for this level and everything more severe. It coerces to [`Logger`](crate::logging::Logger),
    /// which clients and servers take. Raises [`log::max_level`] if needed, because the macros of `log` ask that first.
    pub fn new(level: Level) -> Arc<Self> {
        Arc::new(Self {
            tape: Tape::new(level, Vec::new(), usize::MAX, true),
        })
    }

    /// All entries so far, in arrival order.
    pub fn events(&self) -> Vec<Arc<Entry>> {
        self.tape.since(0)
    }

    /// The first entry that matches.
    pub fn first(&self, matches: impl Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        self.events().into_iter().find(|entry| matches(entry))
    }

    /// The first entry in arrival order that is not earlier than this time and matches. An equal time counts. To be sure
    /// that one entry came after another, compare their positions as well.
    pub fn first_after(&self, at: SystemTime, matches: impl Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        self.first(|entry| at <= entry.at && matches(entry))
    }

    /// The first entry that matches, of those recorded so far and those that arrive within the limit.
    pub fn wait_for(&self, limit: Duration, matches: impl Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        self.tape.wait_for(limit, matches)
    }

    /// Takes a JSON line of a spawned daemon, see [`Entry::parse_line`].
    pub fn record_line(&self, line: &str) {
        self.tape.record_line(line);
    }

    /// The last 15 entries under a headline, for the message of a failed assertion.
    pub fn summary(&self) -> String {
        let all = self.events();
        if all.is_empty() {
            return "<no log entries recorded>".to_owned();
        }
        let shown = &all[all.len().saturating_sub(SUMMARY_ENTRIES)..];
        let mut text = format!("last {}/{} log entries:", shown.len(), all.len());
        for entry in shown {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{entry}");
        }
        text
    }
}

impl Log for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.tape.takes(metadata.level())
    }

    fn log(&self, record: &Record<'_>) {
        self.tape.record(record);
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::testing::child::{is_child, run_this_test_as_child};
    use crate::threads;

    fn lines(recorder: &Recorder, messages: &[&str]) {
        for message in messages {
            log::info!(logger: recorder, "{message}");
        }
    }

    #[test]
    fn entries_at_or_above_the_level_are_kept_in_arrival_order() {
        let recorder = Recorder::new(Level::Info);
        log::debug!(logger: recorder, "too fine");
        log::info!(logger: recorder, n = 1; "first");
        log::error!(logger: recorder, n = 2; "second");
        let events = recorder.events();
        let seen: Vec<_> = events
            .iter()
            .map(|e| (e.position, e.message.as_str(), e.int_field("n")))
            .collect();
        assert_eq!(seen, [(0, "first", Some(1)), (1, "second", Some(2))]);
        let as_log: Arc<dyn Log> = recorder.clone();
        assert!(!as_log.enabled(&Metadata::builder().level(Level::Debug).build()));
        assert!(as_log.enabled(&Metadata::builder().level(Level::Info).build()));
    }

    #[test]
    fn times_never_go_back_when_many_threads_log() {
        let recorder = Recorder::new(Level::Trace);
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let recorder = recorder.clone();
                let body = move || (0..250).for_each(|n| log::trace!(logger: recorder, writer, n; "entry"));
                threads::spawn("writer", body).unwrap()
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let events = recorder.events();
        assert_eq!(events.len(), 1_000);
        assert!(events.windows(2).all(|pair| pair[0].at <= pair[1].at));
        assert!(events.iter().enumerate().all(|(index, entry)| entry.position == index));
        for writer in 0..4 {
            let own = events.iter().filter(|e| e.int_field("writer") == Some(writer));
            assert!(own.map(|e| e.int_field("n").unwrap()).eq(0..250));
        }
        // A clock that only shows milliseconds would show the same few ones a thousand times over.
        let nanos = |e: &Arc<Entry>| e.at.duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
        assert!(events.iter().any(|e| !nanos(e).is_multiple_of(1_000_000)));
    }

    #[test]
    fn first_is_the_first_in_arrival_order_or_none() {
        let recorder = Recorder::new(Level::Trace);
        lines(&recorder, &["a", "b", "b"]);
        assert_eq!(recorder.first(|e| e.message == "b").unwrap().position, 1);
        assert!(recorder.first(|e| e.message == "c").is_none());
    }

    #[test]
    fn first_after_takes_equal_times_and_refuses_earlier_ones() {
        let recorder = Recorder::new(Level::Trace);
        let line =
            |ts: &str, msg: &str| recorder.record_line(&format!(r#"{{"ts":"{ts}","lvl":"info","msg":"{msg}"}}"#));
        line("2026-01-01T10:00:00.100Z", "success");
        line("2026-01-01T10:00:00.200Z", "error");
        let failed = recorder.first(|e| e.message == "error").unwrap();
        assert!(recorder.first_after(failed.at, |e| e.message == "success").is_none());
        line("2026-01-01T10:00:00.200Z", "success");
        line("2026-01-01T10:00:00.300Z", "success");
        let after = recorder.first_after(failed.at, |e| e.message == "success").unwrap();
        assert_eq!(after.position, 2);
    }

    #[test]
    fn a_summary_shows_the_last_fifteen_with_time_and_endpoint() {
        let recorder = Recorder::new(Level::Trace);
        assert_eq!(recorder.summary(), "<no log entries recorded>");
        for n in 0..20 {
            log::trace!(logger: recorder, endpoint = format!("http://{n}").as_str(); "client.http.attempt");
        }
        let summary = recorder.summary();
        let mut rows = summary.lines();
        assert_eq!(rows.next(), Some("last 15/20 log entries:"));
        let rows: Vec<_> = rows.collect();
        assert_eq!(rows.len(), 15);
        for (row, entry) in rows.iter().zip(&recorder.events()[5..]) {
            let at = humantime::format_rfc3339_micros(entry.at);
            let endpoint = entry.str_field("endpoint").unwrap();
            assert_eq!(*row, format!("{at} [trace] client.http.attempt endpoint={endpoint}"));
        }
        let few = Recorder::new(Level::Trace);
        lines(&few, &["only"]);
        assert!(few.summary().starts_with("last 1/1 log entries:\n"));
    }

    #[test]
    fn unreadable_lines_of_a_daemon_are_kept_whatever_the_level() {
        let recorder = Recorder::new(Level::Warn);
        recorder.record_line(r#"{"lvl":"info","msg":"too fine"}"#);
        recorder.record_line("panicked at 'index out of bounds'");
        recorder.record_line(r#"{"lvl":"error","msg":"command failed"}"#);
        let events = recorder.events();
        let seen: Vec<_> = events.iter().map(|e| (e.level_name(), e.message.as_str())).collect();
        assert_eq!(seen, [("unknown", "unparsed"), ("error", "command failed")]);
    }

    #[test]
    fn waiting_ends_when_the_entry_arrives_and_not_before() {
        let recorder = Recorder::new(Level::Trace);
        let arrived = Arc::new(AtomicBool::new(false));
        let late = {
            let (recorder, arrived) = (recorder.clone(), arrived.clone());
            threads::spawn("late", move || {
                lines(&recorder, &["noise", "noise"]);
                arrived.store(true, Ordering::SeqCst);
                lines(&recorder, &["awaited"]);
            })
            .unwrap()
        };
        let found = recorder
            .wait_for(Duration::from_secs(30), |e| e.message == "awaited")
            .unwrap();
        assert!(arrived.load(Ordering::SeqCst));
        assert_eq!(found.position, 2);
        late.join().unwrap();
        assert!(recorder.wait_for(Duration::ZERO, |e| e.message == "awaited").is_some());
        assert!(
            recorder
                .wait_for(Duration::from_millis(1), |e| e.message == "never")
                .is_none()
        );
    }

    /// A predicate or an argument may log to the very recorder that runs it. With the lock held that would hang.
    #[test]
    fn predicates_and_arguments_may_log_themselves() {
        struct Chatty<'a>(&'a Recorder);
        impl std::fmt::Display for Chatty<'_> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                log::info!(logger: self.0, "from an argument");
                f.write_str("outer")
            }
        }
        let recorder = Recorder::new(Level::Trace);
        log::info!(logger: recorder, "{}", Chatty(&recorder));
        let found = recorder.first(|e| {
            log::info!(logger: recorder, "from a predicate");
            e.message == "outer"
        });
        assert_eq!(found.unwrap().position, 1);
        assert_eq!(recorder.events().len(), 4);
    }

    #[test]
    fn each_line_goes_to_the_output_of_the_test() {
        let name = "testing::recorder::tests::each_line_goes_to_the_output_of_the_test";
        if is_child() {
            let recorder = Recorder::new(Level::Trace);
            let logger = recorder.clone();
            let body = move || log::warn!(logger: logger, endpoint = "http://a"; "client.http.error");
            threads::spawn("worker", body).unwrap().join().unwrap();
            return;
        }
        let line = "[warn] client.http.error endpoint=http://a";
        let shown = run_this_test_as_child(name, &["--show-output"]);
        assert!(shown.status.success() && shown.stdout.contains(line), "{shown:?}");
        // Collected by the runner, not thrown past it: a green run stays quiet.
        let quiet = run_this_test_as_child(name, &[]);
        assert!(quiet.status.success(), "{quiet:?}");
        assert!(
            !quiet.stdout.contains(line) && !quiet.stderr.contains(line),
            "{quiet:?}"
        );
    }
}
