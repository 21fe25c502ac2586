//! What is worth saying about the settings once there is a logger.

use std::path::PathBuf;

use super::{HaMode, Source};
use crate::logging::Logger;

/// Something that an operator should hear about the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// This configuration file was read.
    ConfigFile(PathBuf),
    /// This option is accepted and not used.
    Skipped(Source),
    /// The configuration file has a key that means nothing.
    UnknownKey(String),
    /// Nobody chose a store, so it is the default one.
    DefaultStore {
        /// Where that is.
        root: PathBuf,
        /// Where the daemon listens.
        address: String,
    },
    /// This mode was asked for and means `concurrent`.
    HaMeansConcurrent(HaMode),
}

impl Notice {
    /// Says it.
    pub fn log(&self, log: &Logger) {
        const SYS: &str = "server.lifecycle.init";
        match self {
            Notice::ConfigFile(path) => {
                log::info!(logger: log, target: SYS, path:% = path.display(); "loaded config file");
            }
            Notice::Skipped(source) => {
                log::debug!(logger: log, target: SYS, option:% = source; "settings.option.ignored");
            }
            Notice::UnknownKey(key) => {
                log::warn!(logger: log, target: SYS, key = key.as_str(); "settings.key.unknown");
            }
            Notice::DefaultStore { root, address } => log::info!(
                logger: log, target: SYS, store:% = format_args!("disk://{}", root.display()), address = address.as_str();
                "no store was chosen: everything is kept in the configuration directory; plain text, no TLS"
            ),
            Notice::HaMeansConcurrent(mode) => log::info!(
                logger: log, target: SYS,
                requested = mode.word(), effective = HaMode::Concurrent.word(),
                reason = "every server of a store serves";
                "ha.mode.override"
            ),
        }
    }
}
