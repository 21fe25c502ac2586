//! Log events: a name, a level and named fields, handed to a logger that is a value.
//!
//! The message of a record is the event name (`client.http.attempt`), the target is [`TARGET`], and everything else travels
//! as key-values. A client built without a logger writes to the global one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use log::kv::Value;
use log::{Level, Log, Metadata, Record};

/// Target of every record that a client writes.
pub const TARGET: &str = "client.sdk";

/// Where the events of one client go.
#[derive(Clone, Default)]
pub(crate) struct EventLog {
    logger: Option<Arc<dyn Log>>,
}

impl EventLog {
    pub(crate) fn new(logger: Option<Arc<dyn Log>>) -> Self {
        Self { logger }
    }

    /// The logger, when it wants events of this level. One of our own decides alone; the global maximum level belongs to the
    /// global one.
    fn logger_for(&self, level: Level) -> Option<&dyn Log> {
        let logger: &dyn Log = match &self.logger {
            Some(logger) => logger.as_ref(),
            None if level <= log::max_level() => log::logger(),
            None => return None,
        };
        let metadata = Metadata::builder().level(level).target(TARGET).build();
        logger.enabled(&metadata).then_some(logger)
    }

    /// True when an event of this level would be written; asked before its fields are put together.
    pub(crate) fn wants(&self, level: Level) -> bool {
        self.logger_for(level).is_some()
    }

    /// Writes one event. `cid` is the correlation id of the call, added as the last field when known.
    pub(crate) fn emit(&self, level: Level, cid: Option<&str>, event: &str, fields: &[(&str, Value<'_>)]) {
        let Some(logger) = self.logger_for(level) else { return };
        let mut pairs: Vec<(&str, Value<'_>)> = fields.to_vec();
        if let Some(cid) = cid
            && fields.iter().all(|(name, _)| *name != "cid")
        {
            pairs.push(("cid", Value::from(cid)));
        }
        logger.log(
            &Record::builder()
                .level(level)
                .target(TARGET)
                .module_path_static(Some(module_path!()))
                .key_values(&pairs.as_slice())
                .args(format_args!("{event}"))
                .build(),
        );
    }
}

impl fmt::Debug for EventLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.logger.is_some() {
            "EventLog(own)"
        } else {
            "EventLog(global)"
        })
    }
}

/// Writes an event: `event!(log, Warn, cid, "client.acquire.failure", key = key, error = %error)`. A plain value must be a
/// string, a number or a boolean; `%` takes anything that displays itself, `?` anything that has a debug form.
macro_rules! event {
    ($log:expr, $level:ident, $cid:expr, $name:expr $(, $($fields:tt)*)?) => {
        if $log.wants(log::Level::$level) {
            $log.emit(log::Level::$level, $cid, $name, &$crate::logging::fields!($($($fields)*)?));
        }
    };
}

/// The fields of an event as an array; see [`event!`].
macro_rules! fields {
    (@ [$($done:tt)*]) => { [$($done)*] };
    (@ [$($done:tt)*] $name:ident = % $value:expr $(, $($rest:tt)*)?) => {
        $crate::logging::fields!(@ [$($done)* (stringify!($name), log::kv::Value::from_display(&$value)),] $($($rest)*)?)
    };
    (@ [$($done:tt)*] $name:ident = ? $value:expr $(, $($rest:tt)*)?) => {
        $crate::logging::fields!(@ [$($done)* (stringify!($name), log::kv::Value::from_debug(&$value)),] $($($rest)*)?)
    };
    (@ [$($done:tt)*] $name:ident = $value:expr $(, $($rest:tt)*)?) => {
        $crate::logging::fields!(@ [$($done)* (stringify!($name), log::kv::Value::from($value)),] $($($rest)*)?)
    };
    ($($all:tt)*) => { $crate::logging::fields!(@ [] $($all)*) };
}

pub(crate) use {event, fields};

/// A duration as the log shows it: `1.5s`, `20ms`, `850us`, `2m30s`.
pub(crate) struct Span(pub(crate) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = self.0;
        if span.is_zero() {
            return f.write_str("0s");
        }
        if span < Duration::from_millis(1) {
            return write!(f, "{}us", decimal(span.as_nanos(), 1_000));
        }
        if span < Duration::from_secs(1) {
            return write!(f, "{}ms", decimal(span.as_micros(), 1_000));
        }
        let (hours, minutes) = (span.as_secs() / 3600, span.as_secs() / 60 % 60);
        if 0 < hours {
            write!(f, "{hours}h")?;
        }
        if 0 < hours || 0 < minutes {
            write!(f, "{minutes}m")?;
        }
        let rest = span - Duration::from_secs(hours * 3600 + minutes * 60);
        write!(f, "{}s", decimal(rest.as_millis(), 1_000))
    }
}

/// `value / unit` with up to three decimals and no trailing zeros.
fn decimal(value: u128, unit: u128) -> String {
    let text = format!("{}.{:03}", value / unit, value % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_the_ones_of_other_clients() {
        for (span, text) in [
            (Duration::ZERO, "0s"),
            (Duration::from_micros(850), "850us"),
            (Duration::from_micros(20_500), "20.5ms"),
            (Duration::from_millis(1_500), "1.5s"),
            (Duration::from_secs(150), "2m30s"),
            (Duration::from_secs(3_600), "1h0m0s"),
        ] {
            assert_eq!(Span(span).to_string(), text);
        }
    }
}
