//! Loggers as values: JSON lines for machines, one readable line per event at a terminal.
//!
//! Whoever logs is handed a [`Logger`] and names it in the macro, so that two servers in one process, or a test, see
//! exactly their own events:
//!
//! ```
//! # let log = lockd::logging::off();
//! # let address = String::from("127.0.0.1:9341");
//! log::info!(logger: log, target: "server.lifecycle.core", network = "tcp", address = address.as_str(); "listening");
//! ```
//!
//! The message is the event's name, the target is where it comes from (`sys` on the line), everything else is a
//! key-value. Numbers and booleans stay what they are; durations and errors are strings that the caller makes.
//!
//! A JSON line has its fields in this order: `ts` (RFC 3339, UTC, microseconds), `lvl`, `msg`, `app`, `sys`, then those
//! of the event in the order given. Only `main` installs the process-wide logger, and nothing of ours depends on it.
//!
//! Left out on purpose: rotation and reopening (the service manager does that), and filters by origin, but for one library
//! that calls a clean stop an error.

use std::env;
use std::error::Error;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use env_logger::Target;
use log::kv::{self, VisitSource, VisitValue};
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use serde::ser::{SerializeMap, Serializer};

/// A logger to hand around.
pub type Logger = Arc<dyn Log>;

/// The value of `app` on every line.
const APP: &str = "lockd";

/// Permissions of a log file when nothing else is asked for.
const FILE_MODE: u32 = 0o600;

/// The origin of lines that are never written. While its connections are served to their end, the library's accept loop can
/// be ended only by shutting its listener down, and it reports that as an error: each clean stop would look like a fault.
/// It has no other errors to report, and those of accept it also hands to the intake, which logs `http.accept.failed` for
/// those that are none of our doing.
const HTTP_LIBRARY: &str = "tiny_http";

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Time, level, origin, event, then `key=value` pairs.
    Console,
    /// One JSON object per line.
    Json,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// A file, appended to and created when missing.
    File(PathBuf),
    /// Standard error and a file.
    StderrAndFile(PathBuf),
}

impl Output {
    /// Reads `stderr`, `stdout` (or `-`), a path, or `stderr+PATH`.
    pub fn parse(text: &str) -> Output {
        match text.trim() {
            "" | "stderr" => Output::Stderr,
            "stdout" | "-" => Output::Stdout,
            text => match text.strip_prefix("stderr+") {
                Some(path) => Output::StderrAndFile(PathBuf::from(path)),
                None => Output::File(PathBuf::from(text)),
            },
        }
    }

    fn is_terminal(&self) -> bool {
        match self {
            Output::Stderr => io::stderr().is_terminal(),
            Output::Stdout => io::stdout().is_terminal(),
            Output::File(_) | Output::StderrAndFile(_) => false,
        }
    }
}

/// What to log and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// The least important level that is written.
    pub level: LevelFilter,
    /// The form of a line. `None`: JSON, except on a terminal.
    pub format: Option<Format>,
    /// Where lines go.
    pub output: Output,
    /// Permissions of a log file that is created.
    pub file_mode: u32,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            level: LevelFilter::Info,
            format: None,
            output: Output::Stderr,
            file_mode: FILE_MODE,
        }
    }
}

impl LogOptions {
    /// Options from `LOCKD_LOG_LEVEL`, `LOCKD_LOG_MODE`, `LOCKD_LOG_OUTPUT` and `LOCKD_LOG_OUTPUT_FILE_MODE` of the
    /// process.
    pub fn from_env() -> Result<Self, LogError> {
        Self::from_variables(|name| env::var(name).ok())
    }

    /// The same from any source of variables. A variable that is empty counts as not set.
    pub fn from_variables(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, LogError> {
        let variable = |name| lookup(name).filter(|value| !value.trim().is_empty());
        let mut options = Self::default();
        if let Some(level) = variable("LOCKD_LOG_LEVEL") {
            options.level = parse_level(&level).ok_or(LogError::Level(level))?;
        }
        if let Some(mode) = variable("LOCKD_LOG_MODE") {
            options.format = Some(match mode.trim().to_ascii_lowercase().as_str() {
                "console" => Format::Console,
                "structured" | "json" => Format::Json,
                _ => return Err(LogError::Mode(mode)),
            });
        }
        if let Some(output) = variable("LOCKD_LOG_OUTPUT") {
            options.output = Output::parse(&output);
        }
        if let Some(mode) = variable("LOCKD_LOG_OUTPUT_FILE_MODE") {
            let digits = mode.trim().trim_start_matches("0o");
            let bits = u32::from_str_radix(digits, 8).ok().filter(|bits| *bits <= 0o777);
            options.file_mode = bits.ok_or(LogError::FileMode(mode))?;
        }
        Ok(options)
    }

    /// Builds the logger and opens its file, if it has one.
    pub fn build(&self) -> Result<Logger, LogError> {
        let open = |path: &Path| open_log_file(path, self.file_mode);
        let target = match &self.output {
            Output::Stderr => Target::Stderr,
            Output::Stdout => Target::Stdout,
            Output::File(path) => Target::Pipe(Box::new(open(path)?)),
            Output::StderrAndFile(path) => Target::Pipe(Box::new(StderrAndFile(open(path)?))),
        };
        let format = self.format.unwrap_or(match self.output.is_terminal() {
            true => Format::Console,
            false => Format::Json,
        });
        Ok(build(target, format, self.level))
    }
}

/// A logger that writes into `sink`, one write call per line.
pub fn to_sink(sink: impl Write + Send + 'static, format: Format, level: LevelFilter) -> Logger {
    build(Target::Pipe(Box::new(sink)), format, level)
}

/// A logger that drops everything.
pub fn off() -> Logger {
    Arc::new(Off)
}

/// Lets events up to this level reach any logger of the process. The `log` macros ask a process-wide maximum before
/// they ask the logger that they were given, and that maximum starts at "nothing". It is raised here, never lowered:
/// each logger filters for itself.
pub fn raise_max_level(level: LevelFilter) {
    // Under a lock, or the lower of two that raise at once could win.
    static RAISING: Mutex<()> = Mutex::new(());
    let _raising = RAISING.lock();
    if level > log::max_level() {
        log::set_max_level(level);
    }
}

/// Reads a level: `trace`, `debug`, `info`, `warn`, `error`, or one of `none`, `off`, `disabled`.
pub fn parse_level(text: &str) -> Option<LevelFilter> {
    match text.trim().to_ascii_lowercase().as_str() {
        "trace" => Some(LevelFilter::Trace),
        "debug" => Some(LevelFilter::Debug),
        "info" => Some(LevelFilter::Info),
        "warn" | "warning" => Some(LevelFilter::Warn),
        "error" => Some(LevelFilter::Error),
        "none" | "off" | "disabled" => Some(LevelFilter::Off),
        _ => None,
    }
}

/// Why there is no logger.
#[derive(Debug)]
#[non_exhaustive]
pub enum LogError {
    /// No such level.
    Level(String),
    /// No such form of lines.
    Mode(String),
    /// Not the octal permissions of a file.
    FileMode(String),
    /// The log file cannot be opened.
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogError::Level(text) => {
                write!(
                    f,
                    "log level {text:?}: expected trace, debug, info, warn, error or none"
                )
            }
            LogError::Mode(text) => write!(f, "log mode {text:?}: expected console, structured or json"),
            LogError::FileMode(text) => write!(f, "log file mode {text:?}: expected octal permissions such as 0600"),
            LogError::Open { path, source } => write!(f, "open log file {}: {source}", path.display()),
        }
    }
}

impl Error for LogError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            LogError::Open { source, .. } => Some(source),
            _ => None,
        }
    }
}

fn build(target: Target, format: Format, level: LevelFilter) -> Logger {
    raise_max_level(level);
    let logger = env_logger::Builder::new()
        .filter_level(level)
        .filter_module(HTTP_LIBRARY, LevelFilter::Off)
        .target(target)
        .format(move |line, record| match format {
            Format::Console => write_console(line, record),
            Format::Json => write_json(line, record),
        })
        .build();
    Arc::new(logger)
}

fn open_log_file(path: &Path, mode: u32) -> Result<File, LogError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(mode)
        .open(path)
        .map_err(|source| LogError::Open {
            path: path.to_owned(),
            source,
        })
}

/// The trouble of one side does not keep the line from the other.
struct StderrAndFile(File);

impl Write for StderrAndFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let to_stderr = io::stderr().write_all(line);
        self.0.write_all(line).and(to_stderr).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

struct Off;

impl Log for Off {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        false
    }

    fn log(&self, _: &Record<'_>) {}

    fn flush(&self) {}
}

#[allow(
    clippy::disallowed_methods,
    reason = "a line tells the machine's time also when a test holds the clock that decides about leases"
)]
fn timestamp() -> impl fmt::Display {
    humantime::format_rfc3339_micros(SystemTime::now())
}

fn write_console(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    let mut line = format!(
        "{} {:<5} {} {}",
        timestamp(),
        record.level(),
        record.target(),
        record.args()
    );
    // Visiting fails only when a visitor does, and this one does not.
    let _ = record.key_values().visit(&mut ConsoleFields(&mut line));
    line.push('\n');
    out.write_all(line.as_bytes())
}

fn write_json(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    let mut line = Vec::with_capacity(256);
    let mut serializer = serde_json::Serializer::new(&mut line);
    let mut object = serializer.serialize_map(None)?;
    object.serialize_entry("ts", &format_args!("{}", timestamp()))?;
    object.serialize_entry("lvl", level_word(record.level()))?;
    object.serialize_entry("msg", record.args())?;
    object.serialize_entry("app", APP)?;
    object.serialize_entry("sys", record.target())?;
    record
        .key_values()
        .visit(&mut JsonFields(&mut object))
        .map_err(io::Error::other)?;
    SerializeMap::end(object)?;
    line.push(b'\n');
    out.write_all(&line)
}

fn level_word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

struct ConsoleFields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for ConsoleFields<'_> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        let text = value.to_string();
        let plain = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c == '"' || c.is_control());
        self.0.push(' ');
        self.0.push_str(key.as_str());
        self.0.push('=');
        if plain {
            self.0.push_str(&text);
        } else {
            self.0.push_str(&format!("{text:?}"));
        }
        Ok(())
    }
}

struct JsonFields<'a, M>(&'a mut M);

impl<'kvs, M: SerializeMap> VisitSource<'kvs> for JsonFields<'_, M> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        value.visit(JsonField {
            object: self.0,
            key: key.as_str(),
        })
    }
}

struct JsonField<'a, M> {
    object: &'a mut M,
    key: &'a str,
}

impl<M: SerializeMap> JsonField<'_, M> {
    fn put(&mut self, value: &(impl serde::Serialize + ?Sized)) -> Result<(), kv::Error> {
        self.object
            .serialize_entry(self.key, value)
            .map_err(|_| kv::Error::msg("a log field cannot be written as JSON"))
    }
}

impl<'v, M: SerializeMap> VisitValue<'v> for JsonField<'_, M> {
    fn visit_any(&mut self, value: kv::Value<'_>) -> Result<(), kv::Error> {
        self.put(&format_args!("{value}"))
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.put(&())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.put(&value)
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.put(&value)
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        self.put(&value)
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.put(&value)
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        self.put(value)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use serde_json::Value;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    fn options(variables: &[(&str, &str)]) -> Result<LogOptions, LogError> {
        LogOptions::from_variables(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    struct Holder {
        log: Logger,
    }

    #[test]
    fn a_json_line_has_its_fields_in_order_and_keeps_numbers() {
        let sink = Sink::default();
        let holder = Holder {
            log: to_sink(sink.clone(), Format::Json, LevelFilter::Info),
        };
        let address = String::from("127.0.0.1:9341");
        let elapsed = humantime::format_duration(Duration::from_millis(1500)).to_string();
        log::info!(
            logger: holder.log, target: "server.lifecycle.core",
            network = "tcp", address = address.as_str(), workers = 64, ratio = 0.5, draining = false,
            elapsed = elapsed.as_str(), error:% = io::Error::other("say \"no\"");
            "listening"
        );
        let line = sink.text();
        let rest = line.strip_prefix(r#"{"ts":""#).unwrap();
        let (ts, rest) = rest.split_once('"').unwrap();
        assert_eq!(ts.len(), "2026-01-02T03:04:05.678901Z".len(), "{ts}");
        assert!(ts.ends_with('Z'), "{ts}");
        assert_eq!(
            rest,
            concat!(
                r#","lvl":"info","msg":"listening","app":"lockd","sys":"server.lifecycle.core","#,
                r#""network":"tcp","address":"127.0.0.1:9341","workers":64,"ratio":0.5,"draining":false,"#,
                r#""elapsed":"1s 500ms","error":"say \"no\""}"#,
                "\n"
            )
        );
    }

    #[test]
    fn an_event_with_line_breaks_stays_on_one_line() {
        let sink = Sink::default();
        for format in [Format::Json, Format::Console] {
            let log = to_sink(sink.clone(), format, LevelFilter::Info);
            log::warn!(logger: log, target: "a", text = "one\ntwo\t\"three\""; "odd");
        }
        let text = sink.text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        let object: Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!(object["text"], "one\ntwo\t\"three\"");
        assert!(
            lines[1].ends_with(r#" WARN  a odd text="one\ntwo\t\"three\"""#),
            "{}",
            lines[1]
        );
    }

    #[test]
    fn each_logger_filters_for_itself() {
        let (quiet_sink, chatty_sink) = (Sink::default(), Sink::default());
        let quiet = to_sink(quiet_sink.clone(), Format::Json, LevelFilter::Warn);
        let chatty = to_sink(chatty_sink.clone(), Format::Json, LevelFilter::Trace);
        for log in [&quiet, &chatty, &off()] {
            log::trace!(logger: log, target: "a", "detail");
        }
        assert_eq!(quiet_sink.text(), "");
        assert!(chatty_sink.text().contains(r#""lvl":"trace","msg":"detail""#));
    }

    #[test]
    fn variables_choose_level_form_and_output() {
        assert_eq!(options(&[]).unwrap(), LogOptions::default());
        assert_eq!(options(&[("LOCKD_LOG_LEVEL", " ")]).unwrap(), LogOptions::default());
        let all = options(&[
            ("LOCKD_LOG_LEVEL", "Debug"),
            ("LOCKD_LOG_MODE", "structured"),
            ("LOCKD_LOG_OUTPUT", "stderr+/var/log/lockd.log"),
            ("LOCKD_LOG_OUTPUT_FILE_MODE", "0640"),
        ]);
        let expected = LogOptions {
            level: LevelFilter::Debug,
            format: Some(Format::Json),
            output: Output::StderrAndFile(PathBuf::from("/var/log/lockd.log")),
            file_mode: 0o640,
        };
        assert_eq!(all.unwrap(), expected);
    }

    #[test]
    fn bad_variables_are_refused_with_what_would_be_good() {
        let message = |name, value| options(&[(name, value)]).unwrap_err().to_string();
        assert!(message("LOCKD_LOG_LEVEL", "loud").contains("expected trace, debug"));
        assert!(message("LOCKD_LOG_MODE", "xml").contains("expected console"));
        assert!(message("LOCKD_LOG_OUTPUT_FILE_MODE", "rw").contains("octal"));
        assert!(message("LOCKD_LOG_OUTPUT_FILE_MODE", "7777").contains("octal"));
    }

    #[test]
    fn a_log_file_is_appended_to_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lockd.log");
        let options = LogOptions {
            output: Output::File(path.clone()),
            ..LogOptions::default()
        };
        for event in ["first", "second"] {
            let log = options.build().unwrap();
            log::info!(logger: log, target: "a", "{event}");
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().next().unwrap().contains("first"), "{text}");
        assert!(text.lines().nth(1).unwrap().contains("second"), "{text}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let nowhere = LogOptions {
            output: Output::File(dir.path().join("missing/lockd.log")),
            ..LogOptions::default()
        };
        assert!(matches!(nowhere.build(), Err(LogError::Open { .. })));
    }
}
