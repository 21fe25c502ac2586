//! Time as the lease commands take it: lives in whole seconds, and how long to wait.

use std::time::Duration;

use lockd_client::Wait;

use crate::settings::{DURATION_MAX, parse_duration};

/// Reads the life of a lease: a duration above zero, rounded up to whole seconds.
pub(crate) fn parse_ttl(text: &str) -> Result<Duration, String> {
    match whole_seconds(parse_duration(text)?) {
        Duration::ZERO => Err("expected more than zero".to_owned()),
        ttl => Ok(ttl),
    }
}

/// Reads how long to wait for a held key: not at all (`nowait`, `no-wait`, anything negative), without end (`0`,
/// `forever`, `infinite`, `wait-forever`, nothing), or so many seconds (a number, or a duration, rounded up).
pub(crate) fn parse_wait(text: &str) -> Result<Wait, String> {
    let text = text.trim().to_ascii_lowercase();
    match text.as_str() {
        "nowait" | "no-wait" => return Ok(Wait::No),
        "" | "forever" | "infinite" | "wait-forever" => return Ok(Wait::Forever),
        _ => {}
    }
    let (negative, amount) = match text.strip_prefix('-') {
        Some(amount) => (true, amount),
        None => (false, text.as_str()),
    };
    let span = match amount.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => parse_duration(amount)?,
    };
    match whole_seconds(span) {
        Duration::ZERO => Ok(Wait::Forever),
        _ if negative => Ok(Wait::No),
        span if span <= DURATION_MAX => Ok(Wait::UpTo(span)),
        _ => Err("more than ten years; say forever to wait without end".to_owned()),
    }
}

fn whole_seconds(span: Duration) -> Duration {
    let more = u64::from(span.subsec_nanos() > 0);
    Duration::from_secs(span.as_secs().saturating_add(more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_whole_seconds_and_not_zero() {
        assert_eq!(parse_ttl("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_ttl("1.2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_ttl("1ms"), Ok(Duration::from_secs(1)));
        for bad in ["0", "0s", "-1s", "30", ""] {
            assert!(parse_ttl(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn waiting_has_many_spellings() {
        for none in ["-1", "nowait", "NoWait", "no-wait", "-5s", "-1ms"] {
            assert_eq!(parse_wait(none), Ok(Wait::No), "{none}");
        }
        for endless in ["0", "0s", "forever", "infinite", "wait-forever", "", " "] {
            assert_eq!(parse_wait(endless), Ok(Wait::Forever), "{endless:?}");
        }
        assert_eq!(parse_wait("7"), Ok(Wait::UpTo(Duration::from_secs(7))));
        assert_eq!(parse_wait("1m30s"), Ok(Wait::UpTo(Duration::from_secs(90))));
        assert_eq!(parse_wait("1500ms"), Ok(Wait::UpTo(Duration::from_secs(2))));
        for bad in ["soon", "-", "1x", "99999999999999999999"] {
            assert!(parse_wait(bad).is_err(), "{bad:?}");
        }
    }
}
