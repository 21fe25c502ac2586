//! Where the value of an option comes from: the command line, else the environment, else the configuration file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::SettingsError;

/// Flags by name (without dashes), as given on the command line.
pub type Flags = BTreeMap<String, String>;

/// Where a value was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A flag; its name without dashes.
    Flag(String),
    /// An environment variable.
    Variable(String),
    /// A key of the configuration file.
    File(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag(name) => write!(f, "--{name}"),
            Source::Variable(name) => write!(f, "{name}"),
            Source::File(key) => write!(f, "{key} (configuration file)"),
        }
    }
}

/// A value and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The text as it was written.
    pub text: String,
    /// Who wrote it.
    pub source: Source,
}

impl Given {
    /// Reads the text, and blames the source when it cannot be read.
    pub fn read<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, SettingsError> {
        parse(&self.text).map_err(|reason| self.refused(reason))
    }

    /// An error that names source and value.
    pub fn refused(&self, reason: impl Into<String>) -> SettingsError {
        SettingsError::Value {
            source: self.source.clone(),
            text: self.text.clone(),
            reason: reason.into(),
        }
    }
}

/// The three sources, in order.
pub struct Layers<'a> {
    flags: &'a Flags,
    variables: &'a dyn Fn(&str) -> Option<String>,
    file: ConfigFile,
}

impl<'a> Layers<'a> {
    /// Finds and reads the configuration file: the one named by `--config` or `LOCKD_CONFIG`, which must exist, else
    /// `config.yaml` in the configuration directory, which need not.
    pub fn open(flags: &'a Flags, variables: &'a dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let flag = flags.get("config").cloned();
        let named = flag
            .or_else(|| variables("LOCKD_CONFIG"))
            .filter(|path| !path.trim().is_empty());
        let file = match named {
            Some(path) => ConfigFile::read(&expand_home(path.trim(), variables))?,
            None => match config_dir(variables).map(|dir| dir.join("config.yaml")) {
                Some(path) if path.is_file() => ConfigFile::read(&path)?,
                _ => ConfigFile::default(),
            },
        };
        Ok(Self { flags, variables, file })
    }

    /// The value of a daemon's option. The variable is `LOCKD_` and the name.
    pub fn option(&self, name: &str) -> Option<Given> {
        let variable = format!("LOCKD_{}", name.to_ascii_uppercase().replace('-', "_"));
        self.find(name, &variable, name)
    }

    /// The value of a flag alone.
    pub fn flag(&self, name: &str) -> Option<Given> {
        self.flags.get(name).map(|text| Given {
            text: text.clone(),
            source: Source::Flag(name.to_owned()),
        })
    }

    /// The first value of a flag, a variable and a key of the file. A variable or a key that is empty counts as not
    /// set; a flag that is empty is a value, so that it can switch off what the others say.
    pub fn find(&self, flag: &str, variable: &str, key: &str) -> Option<Given> {
        let given = |text: String, source| Some(Given { text, source });
        if let Some(found) = self.flag(flag) {
            return Some(found);
        }
        if let Some(text) = (self.variables)(variable).filter(|text| !text.trim().is_empty()) {
            return given(text, Source::Variable(variable.to_owned()));
        }
        let text = self.file.values.get(key).filter(|text| !text.trim().is_empty())?;
        given(text.clone(), Source::File(key.to_owned()))
    }

    /// The configuration file that was read, if any.
    pub fn file_path(&self) -> Option<&Path> {
        self.file.path.as_deref()
    }

    /// The keys of the configuration file.
    pub fn file_keys(&self) -> impl Iterator<Item = &str> {
        self.file.values.keys().map(String::as_str)
    }
}

/// The directory of configuration and credentials: `LOCKD_CONFIG_DIR`, else `~/.lockd`. `None` when neither is known,
/// which is no error: a daemon without a home can do without.
pub fn config_dir(variables: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let set = |name| variables(name).filter(|value| !value.trim().is_empty());
    match set("LOCKD_CONFIG_DIR") {
        Some(dir) => Some(expand_home(&dir, variables)),
        None => set("HOME").map(|home| Path::new(&home).join(".lockd")),
    }
}

/// Replaces a leading `~/` when the home directory is known.
pub fn expand_home(path: &str, variables: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let home = variables("HOME").filter(|home| !home.is_empty());
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    }
}

/// A flat YAML file: option names and plain values.
#[derive(Debug, Default)]
struct ConfigFile {
    path: Option<PathBuf>,
    values: BTreeMap<String, String>,
}

impl ConfigFile {
    fn read(path: &Path) -> Result<Self, SettingsError> {
        let unreadable = |source| SettingsError::ConfigRead {
            path: path.to_owned(),
            source,
        };
        if path.is_dir() {
            return Err(unreadable(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let values = parse(&text).map_err(|reason| SettingsError::ConfigSyntax {
            path: path.to_owned(),
            reason,
        })?;
        Ok(Self {
            path: Some(path.to_owned()),
            values,
        })
    }
}

fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    // Parsed into no particular type first, so that the error of a nested value can name its key.
    let object = match serde_saphyr::from_str::<Value>(text).map_err(|error| error.to_string())? {
        Value::Object(object) => object,
        Value::Null => return Ok(BTreeMap::new()),
        _ => return Err("expected lines of the form name: value".to_owned()),
    };
    let plain = |key: &str, value: Value| match value {
        Value::Null => Ok(String::new()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Number(value) => Ok(value.to_string()),
        Value::String(value) => Ok(value),
        Value::Array(_) | Value::Object(_) => Err(format!("{key}: expected a plain value")),
    };
    let pairs = object
        .into_iter()
        .map(|(key, value)| plain(&key, value).map(|text| (key, text)));
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_flat_and_its_values_are_plain() {
        let values = parse("store: mem://\nmax-ttl: 1h30m\nworkers: 8\nallow-plaintext: true\nbundle:\n").unwrap();
        let pairs: Vec<_> = values.iter().map(|(key, text)| (key.as_str(), text.as_str())).collect();
        let expected = [
            ("allow-plaintext", "true"),
            ("bundle", ""),
            ("max-ttl", "1h30m"),
            ("store", "mem://"),
            ("workers", "8"),
        ];
        assert_eq!(pairs, expected);
        assert!(parse("# nothing but a comment\n").unwrap().is_empty());
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn a_file_that_is_no_flat_mapping_is_refused() {
        assert!(
            parse("listen: [a, b]")
                .unwrap_err()
                .contains("listen: expected a plain value")
        );
        assert!(parse("- a\n- b\n").unwrap_err().contains("name: value"));
        assert!(parse("listen: \"unclosed\nstore: mem://\n").is_err());
        assert!(parse("store: mem://\nstore: mem://\n").is_err(), "a key given twice");
    }
}
