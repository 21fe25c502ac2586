//! How the values of options are written: durations, sizes, booleans.

use std::time::Duration;

use bytesize::ByteSize;

/// Longest duration that an option takes: ten years. Beyond it lie typing errors and arithmetic that overflows.
pub const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Reads a duration in Go's manner: `250ms`, `30s`, `1h30m`, `1.5s`, or a bare `0`. The error says what would be good.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    // The crate also knows months (M), which here could only be somebody's minutes.
    if text.contains(|c: char| c.is_ascii_uppercase()) {
        return Err("expected a duration such as 250ms, 30s, 5m or 1h30m".to_owned());
    }
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("expected a duration such as 250ms, 30s, 5m or 1h30m ({error})"))?;
    if duration > DURATION_MAX {
        return Err("a duration of more than ten years".to_owned());
    }
    Ok(duration)
}

/// Reads a size: `100MB` is 100,000,000 bytes, `100MiB` is 104,857,600, a bare number is bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let size = text.trim().parse::<ByteSize>();
    size.map(|size| size.as_u64())
        .map_err(|error| format!("expected a size such as 512KiB, 100MB or 1048576 ({error})"))
}

/// Reads a boolean: `1 t true` and `0 f false`, in any case.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Ok(true),
        "0" | "f" | "false" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("1m0.5s"), Ok(Duration::from_millis(60_500)));
        assert_eq!(parse_duration(" 0 "), Ok(Duration::ZERO));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "30", "-1s", "5M", "1S", "forever", "s", "99999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_mean_what_they_say() {
        assert_eq!(parse_size("100MB"), Ok(100_000_000));
        assert_eq!(parse_size("100MiB"), Ok(104_857_600));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("1.5KiB"), Ok(1536));
        for bad in ["", "-1", "MB", "5 parsecs"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn booleans_are_one_t_true_or_zero_f_false() {
        for yes in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(parse_bool(yes), Ok(true));
        }
        for no in ["0", "f", "F", "false", "False"] {
            assert_eq!(parse_bool(no), Ok(false));
        }
        for bad in ["yes", "on", "", "2"] {
            assert!(parse_bool(bad).is_err(), "{bad:?}");
        }
    }
}
