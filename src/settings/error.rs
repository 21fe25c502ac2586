//! Why there are no settings, in words for whoever wrote them.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Source;
use crate::logging::LogError;

/// Why there are no settings.
#[derive(Debug)]
#[non_exhaustive]
pub enum SettingsError {
    /// The configuration file cannot be read.
    ConfigRead {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The configuration file is not the flat YAML that it should be.
    ConfigSyntax {
        /// The file.
        path: PathBuf,
        /// What and where.
        reason: String,
    },
    /// A value cannot be used.
    Value {
        /// Who gave it.
        source: Source,
        /// The value.
        text: String,
        /// What would be good.
        reason: String,
    },
    /// An option of a capability that this version lacks.
    Unsupported {
        /// Who set it.
        source: Source,
        /// What is lacking.
        reason: &'static str,
    },
    /// Nobody said where to keep everything, and there is no directory of this user to fall back on.
    NoStore,
    /// Values that do not go together.
    Conflict(String),
    /// The variables about logging are wrong.
    Log(LogError),
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SettingsError::ConfigRead { path, source } => {
                write!(f, "read configuration file {}: {source}", path.display())
            }
            SettingsError::ConfigSyntax { path, reason } => {
                write!(f, "configuration file {}: {reason}", path.display())
            }
            SettingsError::Value { source, text, reason } => write!(f, "{source} {text:?}: {reason}"),
            SettingsError::Unsupported { source, reason } => write!(f, "{source}: {reason}"),
            SettingsError::NoStore => f.write_str(
                "there is nowhere to keep anything: neither --store nor LOCKD_CONFIG_DIR nor HOME is set. Pass \
                 --store disk:///absolute/path, or --store mem:// for what may be forgotten",
            ),
            SettingsError::Conflict(message) => f.write_str(message),
            SettingsError::Log(error) => error.fmt(f),
        }
    }
}

impl Error for SettingsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            SettingsError::ConfigRead { source, .. } => Some(source),
            SettingsError::Log(error) => Some(error),
            _ => None,
        }
    }
}

impl From<LogError> for SettingsError {
    fn from(error: LogError) -> Self {
        SettingsError::Log(error)
    }
}
