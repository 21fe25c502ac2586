//! What the commands print: shell exports, indented JSON, `name: value` lines.

use std::convert::Infallible;
use std::fmt::Display;
use std::io::{self, Write};
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

/// What `--output` says. `json` in any case is JSON, every other word is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputForm {
    Text,
    Json,
}

impl FromStr for OutputForm {
    type Err = Infallible;

    fn from_str(word: &str) -> Result<Self, Infallible> {
        Ok(match word.trim().eq_ignore_ascii_case("json") {
            true => OutputForm::Json,
            false => OutputForm::Text,
        })
    }
}

/// One line `export NAME="value"`, for `eval`.
pub(crate) fn export(out: &mut dyn Write, name: &str, value: &dyn Display) -> io::Result<()> {
    let value = value.to_string();
    let mut quoted = String::with_capacity(value.len() + 2);
    for c in value.chars() {
        // Everything that means something between double quotes: a server's answer must never run as a command.
        if matches!(c, '"' | '\\' | '$' | '`') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    writeln!(out, "export {name}=\"{quoted}\"")
}

/// JSON indented by two spaces.
pub(crate) fn json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    writeln!(out, "{text}")
}

/// A Unix time as RFC 3339 in UTC; empty for one that has no such form.
pub(crate) fn iso_time(unix_seconds: i64) -> String {
    /// The last second of the year 9999.
    const LAST: u64 = 253_402_300_799;
    match u64::try_from(unix_seconds) {
        Ok(seconds) if seconds <= LAST => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exported(value: &str) -> String {
        let mut out = Vec::new();
        export(&mut out, "NAME", &value).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_export_survives_the_shell_whatever_is_in_it() {
        assert_eq!(exported("plain"), "export NAME=\"plain\"\n");
        let nasty = "a\"b\\c$(touch /tmp/x)`id`$HOME 'd'\n!e;f";
        let script = exported(nasty) + "printf %s \"$NAME\"";
        let shell = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert_eq!(String::from_utf8(shell.stdout).unwrap(), nasty);
    }

    #[test]
    fn times_without_a_form_are_empty() {
        assert_eq!(iso_time(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(iso_time(-1), "");
        assert_eq!(iso_time(i64::MAX), "");
    }

    #[test]
    fn only_the_word_json_means_json() {
        assert_eq!("JSON".parse(), Ok(OutputForm::Json));
        assert_eq!("text".parse(), Ok(OutputForm::Text));
        assert_eq!("xml".parse(), Ok(OutputForm::Text));
    }
}
