//! One line of a structured log, taken apart.
//!
//! Entries come from two places: from the `log` facade of this process, or from the JSON lines of a daemon that a test
//! has spawned. Both look the same to an assertion. A line that cannot be read is kept as it came, never dropped.

use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::{Level, Record, kv};
use serde_json::{Map, Value};

use crate::clock::{Clock, Moment, SystemClock};

/// One log entry. The message of a structured entry is the name of its event, e.g. `client.http.error`.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where the entry stands in arrival order, counted from 0 among all entries its recorder kept.
    pub position: usize,
    /// When it was recorded, to the microsecond or better; for a line of another process when that process says.
    pub at: SystemTime,
    /// Its level; `None` when a line of another process has none we know.
    pub level: Option<Level>,
    /// What logged it: the target of the record (by default a module path), or the line's `sys`.
    pub target: String,
    /// The message, which is the event name in structured logs.
    pub message: String,
    /// All other keys with their values, numbers and booleans kept as such.
    pub fields: Vec<(String, Value)>,
    /// The line as it came from another process.
    line: Option<String>,
}

impl Entry {
    /// Takes a record of this process. The caller sets position and time once the entry has its place.
    pub(super) fn from_record(record: &Record<'_>) -> Self {
        let mut fields = FieldCollector(Vec::new());
        // The collector never fails; a failing source loses its remaining keys, the entry stays.
        let _ = record.key_values().visit(&mut fields);
        Self {
            position: 0,
            at: UNIX_EPOCH,
            level: Some(record.level()),
            target: record.target().to_owned(),
            message: record.args().to_string(),
            fields: fields.0,
            line: None,
        }
    }

    /// Reads one JSON line of another process: `ts` (RFC 3339), `lvl`, `msg`, everything else is a field. A missing or
    /// unreadable `ts` becomes the time of this call. A line that is no JSON object becomes an entry `unparsed` of
    /// unknown level, whose field `error` says why.
    pub fn parse_line(line: &str) -> Self {
        let line = line.trim_end_matches(['\r', '\n']);
        let mut entry = Self {
            position: 0,
            at: now(),
            level: None,
            target: String::new(),
            message: "unparsed".to_owned(),
            fields: Vec::new(),
            line: Some(line.to_owned()),
        };
        match serde_json::from_str::<Map<String, Value>>(line) {
            Ok(mut keys) => {
                if let Some(at) = keys.remove("ts").as_ref().and_then(Value::as_str).and_then(parse_time) {
                    entry.at = at;
                }
                entry.level = keys
                    .remove("lvl")
                    .as_ref()
                    .and_then(Value::as_str)
                    .and_then(parse_level);
                entry.message = match keys.remove("msg") {
                    Some(Value::String(message)) => message,
                    Some(other) => other.to_string(),
                    None => String::new(),
                };
                if let Some(Value::String(origin)) = keys.get("sys") {
                    entry.target.clone_from(origin);
                }
                entry.fields = keys.into_iter().collect();
            }
            Err(error) => entry
                .fields
                .push(("error".to_owned(), Value::String(error.to_string()))),
        }
        entry
    }

    /// The value of a field, if the entry has it.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// The text of a field; `None` if it is absent or no text.
    pub fn str_field(&self, name: &str) -> Option<&str> {
        self.field(name)?.as_str()
    }

    /// The whole number in a field; `None` if it is absent, no number or out of range. Fractions are cut off.
    pub fn int_field(&self, name: &str) -> Option<i64> {
        let number = self.field(name)?;
        if let Some(whole) = number.as_i64() {
            return Some(whole);
        }
        let fraction = number.as_f64()?.trunc();
        // 2^63 itself does not fit; both bounds are exact as f64.
        let fits = (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&fraction);
        #[allow(
            clippy::cast_possible_truncation,
            reason = "the range was checked and the fraction cut off"
        )]
        fits.then_some(fraction as i64)
    }

    /// Whether this is that event at that endpoint, which is what most assertions ask.
    pub fn is(&self, message: &str, endpoint: &str) -> bool {
        self.message == message && self.str_field("endpoint") == Some(endpoint)
    }

    /// `trace`, `debug`, `info`, `warn`, `error` or `unknown`.
    pub fn level_name(&self) -> &'static str {
        match self.level {
            Some(Level::Trace) => "trace",
            Some(Level::Debug) => "debug",
            Some(Level::Info) => "info",
            Some(Level::Warn) => "warn",
            Some(Level::Error) => "error",
            None => "unknown",
        }
    }

    /// The entry as one compact JSON line, for searching raw text: `ts`, `lvl`, `msg`, `sys`, then the fields in their
    /// order. A line of another process comes back as it was.
    pub fn json_line(&self) -> Cow<'_, str> {
        if let Some(line) = &self.line {
            return Cow::Borrowed(line);
        }
        let ts = humantime::format_rfc3339_micros(self.at).to_string();
        let head = [
            ("ts", Value::String(ts)),
            ("lvl", Value::String(self.level_name().to_owned())),
            ("msg", Value::String(self.message.clone())),
            ("sys", Value::String(self.target.clone())),
        ];
        let tail = self.fields.iter().map(|(key, value)| (key.as_str(), value));
        let pairs: Vec<String> = head
            .iter()
            .map(|(key, value)| (*key, value))
            .chain(tail)
            .map(|(key, value)| format!("{}:{value}", Value::String(key.to_owned())))
            .collect();
        Cow::Owned(format!("{{{}}}", pairs.join(",")))
    }
}

/// `<timestamp> [<level>] <message> <fields>`, fields as `key=value`.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = humantime::format_rfc3339_micros(self.at);
        write!(f, "{at} [{}] {}", self.level_name(), self.message)?;
        for (key, value) in &self.fields {
            match value {
                Value::String(text) if reads_as_one_word(text) => write!(f, " {key}={text}")?,
                other => write!(f, " {key}={other}")?,
            }
        }
        if self.message == "unparsed"
            && let Some(line) = &self.line
        {
            write!(f, " line={}", Value::String(line.clone()))?;
        }
        Ok(())
    }
}

/// The time of entries: wall time at the first use in this process, moved on by the monotonic clock. So it never goes
/// back, it is finer than a millisecond, and entries of different recorders can be compared.
pub(super) fn now() -> SystemTime {
    static BASE: LazyLock<(SystemClock, SystemTime, Moment)> = LazyLock::new(|| {
        let clock = SystemClock::new();
        let wall = Duration::from_millis(u64::try_from(clock.wall_ms()).unwrap_or(0));
        let start = clock.now();
        (clock, UNIX_EPOCH + wall, start)
    });
    let (clock, wall, start) = &*BASE;
    *wall + clock.now().since(*start)
}

/// Collects key-values with their types.
struct FieldCollector(Vec<(String, Value)>);

impl<'kvs> kv::VisitSource<'kvs> for FieldCollector {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        let mut typed = TypedValue(Value::Null);
        value.visit(&mut typed)?;
        self.0.push((key.to_string(), typed.0));
        Ok(())
    }
}

struct TypedValue(Value);

impl<'v> kv::VisitValue<'v> for &mut TypedValue {
    fn visit_any(&mut self, value: kv::Value<'_>) -> Result<(), kv::Error> {
        self.0 = Value::String(value.to_string());
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.0 = Value::Null;
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.0 = Value::from(value);
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.0 = Value::from(value);
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        self.0 = Value::from(value);
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.0 = Value::Bool(value);
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        self.0 = Value::String(value.to_owned());
        Ok(())
    }
}

/// RFC 3339 with a fraction or without, in any zone. Go daemons print their local one.
fn parse_time(text: &str) -> Option<SystemTime> {
    let (utc, ahead_seconds) = split_zone(text)?;
    let local = humantime::parse_rfc3339_weak(utc).ok()?;
    let since_epoch = local.duration_since(UNIX_EPOCH).ok()?;
    let seconds = i64::try_from(since_epoch.as_secs()).ok()?.checked_sub(ahead_seconds)?;
    // What lies outside of 1970 to 9999 could not be printed again.
    let seconds = u64::try_from(seconds).ok().filter(|&s| s < 253_402_300_800)?;
    Some(UNIX_EPOCH + Duration::new(seconds, since_epoch.subsec_nanos()))
}

/// Splits `2026-01-01T10:00:00.5+02:00` into the time and how many seconds its zone is ahead of UTC.
fn split_zone(text: &str) -> Option<(&str, i64)> {
    if let Some(utc) = text.strip_suffix(['Z', 'z']) {
        return Some((utc, 0));
    }
    let (time, zone) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let ahead = match zone.as_bytes()[0] {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let &[_, h1, h2, b':', m1, m2] = zone.as_bytes() else {
        return None;
    };
    let two_digits = |tens: u8, ones: u8| {
        let digits = tens.is_ascii_digit() && ones.is_ascii_digit();
        digits.then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
    };
    let hours = two_digits(h1, h2).filter(|&hours| hours < 24)?;
    let minutes = two_digits(m1, m2).filter(|&minutes| minutes < 60)?;
    let seconds = hours * 3_600 + minutes * 60;
    Some((time, ahead * seconds))
}

fn parse_level(text: &str) -> Option<Level> {
    match text.to_ascii_lowercase().as_str() {
        "trace" => Some(Level::Trace),
        "debug" => Some(Level::Debug),
        "info" => Some(Level::Info),
        "warn" | "warning" => Some(Level::Warn),
        // Some loggers have levels above error; for an assertion they are errors.
        "error" | "fatal" | "panic" => Some(Level::Error),
        _ => None,
    }
}

fn reads_as_one_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix_ms(entry: &Entry) -> u128 {
        entry.at.duration_since(UNIX_EPOCH).unwrap().as_millis()
    }

    #[test]
    fn a_record_keeps_its_event_name_its_target_and_typed_fields() {
        let fields: &[(&str, kv::Value<'_>)] = &[
            ("endpoint", "http://a".into()),
            ("attempt", 2_u64.into()),
            ("offset", (-3).into()),
            ("ratio", 0.5.into()),
            ("last", true.into()),
            ("order", kv::Value::from_debug(&["x", "y"])),
            ("nothing", kv::Value::null()),
        ];
        let entry = Entry::from_record(
            &Record::builder()
                .level(Level::Warn)
                .target("client.sdk")
                .args(format_args!("client.http.error"))
                .key_values(&fields)
                .build(),
        );
        assert_eq!(
            (entry.message.as_str(), entry.target.as_str()),
            ("client.http.error", "client.sdk")
        );
        assert_eq!(entry.level, Some(Level::Warn));
        assert!(entry.is("client.http.error", "http://a"));
        assert!(!entry.is("client.http.error", "http://b"));
        assert_eq!(entry.int_field("attempt"), Some(2));
        assert_eq!(entry.int_field("offset"), Some(-3));
        assert_eq!(entry.field("last"), Some(&Value::Bool(true)));
        assert_eq!(entry.str_field("order"), Some(r#"["x", "y"]"#));
        assert_eq!(entry.field("nothing"), Some(&Value::Null));
    }

    #[test]
    fn fields_that_are_absent_or_of_another_type_are_none() {
        let entry =
            Entry::parse_line(r#"{"msg":"m","text":"7","number":7.9,"huge":1e300,"most":18446744073709551615}"#);
        assert_eq!((entry.str_field("absent"), entry.int_field("absent")), (None, None));
        assert_eq!((entry.str_field("number"), entry.int_field("text")), (None, None));
        assert_eq!(entry.int_field("number"), Some(7));
        assert_eq!((entry.int_field("huge"), entry.int_field("most")), (None, None));
    }

    #[test]
    fn a_json_line_of_a_daemon_is_taken_apart() {
        let line = r#"{"ts":"2026-01-01T10:00:00.25Z","lvl":"info","msg":"listening","sys":"server","port":9341}"#;
        let entry = Entry::parse_line(&format!("{line}\r\n"));
        assert_eq!(unix_ms(&entry), 1_767_261_600_250);
        assert_eq!((entry.level, entry.message.as_str()), (Some(Level::Info), "listening"));
        assert_eq!((entry.target.as_str(), entry.int_field("port")), ("server", Some(9341)));
        assert_eq!(entry.field("ts"), None);
        assert_eq!(entry.json_line(), line);
    }

    #[test]
    fn times_are_read_in_any_zone() {
        let ms = |ts: &str| unix_ms(&Entry::parse_line(&format!(r#"{{"ts":"{ts}","msg":"m"}}"#)));
        assert_eq!(ms("2026-01-01T10:00:00Z"), 1_767_261_600_000);
        assert_eq!(ms("2026-01-01T12:00:00+02:00"), 1_767_261_600_000);
        assert_eq!(ms("2026-01-01T04:30:00.125-05:30"), 1_767_261_600_125);
    }

    #[test]
    fn a_missing_or_unreadable_time_becomes_the_time_of_receipt() {
        let bad = [
            r#""nope""#,
            r#""2026-13-01T10:00:00Z""#,
            r#""1970-01-01T00:00:00+01:00""#,
            r#""9999-12-31T23:59:59-01:00""#,
            r#""2026-01-01T10:00:00+2:000""#,
            r#""+00:00""#,
            "\"\u{e9}\u{e9}\u{e9}\u{e9}\"",
            "17",
            "null",
        ];
        for ts in bad {
            let before = now();
            let entry = Entry::parse_line(&format!(r#"{{"ts":{ts},"msg":"m"}}"#));
            assert!(before <= entry.at && entry.at <= now(), "{ts}");
            assert_eq!(entry.message, "m");
        }
    }

    #[test]
    fn a_line_that_is_no_json_object_is_kept_as_unparsed() {
        for line in ["thread 'main' panicked", "", "42", "[1]", r#"{"msg":"cut"#] {
            let entry = Entry::parse_line(line);
            assert_eq!(
                (entry.message.as_str(), entry.level_name()),
                ("unparsed", "unknown"),
                "{line}"
            );
            assert!(
                entry.str_field("error").is_some_and(|error| !error.is_empty()),
                "{line}"
            );
            assert_eq!(entry.json_line(), line);
            assert!(
                entry.to_string().contains(&Value::String(line.to_owned()).to_string()),
                "{line}"
            );
        }
    }

    #[test]
    fn an_entry_prints_as_time_level_message_and_fields() {
        let mut entry = Entry::parse_line(r#"{"msg":"client.http.error","lvl":"warn"}"#);
        entry.line = None;
        entry.at = UNIX_EPOCH + Duration::from_micros(1_767_261_600_000_001);
        entry.fields = vec![
            ("endpoint".to_owned(), Value::from("http://a")),
            ("error".to_owned(), Value::from("connection \"refused\"")),
            ("attempt".to_owned(), Value::from(1)),
        ];
        assert_eq!(
            entry.to_string(),
            r#"2026-01-01T10:00:00.000001Z [warn] client.http.error endpoint=http://a error="connection \"refused\"" attempt=1"#
        );
        assert_eq!(
            entry.json_line(),
            concat!(
                r#"{"ts":"2026-01-01T10:00:00.000001Z","lvl":"warn","msg":"client.http.error","sys":"","#,
                r#""endpoint":"http://a","error":"connection \"refused\"","attempt":1}"#
            )
        );
        assert_eq!(Entry::parse_line(&entry.json_line()).int_field("attempt"), Some(1));
    }
}
