//! `lockd` without a command: the daemon.

use std::error::Error;
use std::process::ExitCode;

use log::LevelFilter;

use crate::logging::{LogOptions, Logger};
use crate::settings::options::GLOBAL_OPTIONS;
use crate::settings::{self, Flags, Loaded, Settings};

/// Where a failure of the daemon is reported from.
const SYS: &str = "cli.root";

/// Reads the settings, makes the logger, serves until told to stop.
pub(super) fn run(flags: &Flags) -> ExitCode {
    let Loaded { settings, log, notices } = match load(flags) {
        Ok(loaded) => loaded,
        Err(error) => return fail(&last_words(), &*error),
    };
    let logger = match log.build() {
        Ok(logger) => logger,
        Err(error) => return fail(&last_words(), &error),
    };
    // Only for what the libraries say of themselves; nothing of ours depends on it, nor on being the first.
    let _ = log::set_boxed_logger(Box::new(logger.clone()));
    for notice in &notices {
        notice.log(&logger);
    }
    match serve(settings, logger.clone()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Also a daemon that was told to log nothing says why it ends.
            let silent = log.level == LevelFilter::Off;
            fail(&if silent { last_words() } else { logger }, &*error)
        }
    }
}

fn load(flags: &Flags) -> Result<Loaded, Box<dyn Error>> {
    let misplaced = GLOBAL_OPTIONS
        .iter()
        .find(|option| option.for_client && flags.contains_key(option.option.name));
    if let Some(option) = misplaced {
        return Err(format!(
            "--{} is an option of the client commands, not of the daemon",
            option.option.name
        )
        .into());
    }
    Ok(settings::load(flags, &|name| std::env::var(name).ok())?)
}

fn serve(settings: Settings, logger: Logger) -> Result<(), Box<dyn Error>> {
    Ok(crate::server::run(settings, logger)?)
}

/// A logger for the time when there is no better one: the environment's wish if it makes sense, else the default. It
/// always lets errors through.
fn last_words() -> Logger {
    let wished = LogOptions::from_env().unwrap_or_default();
    let audible = LogOptions {
        level: wished.level.max(LevelFilter::Error),
        ..wished
    };
    audible.build().unwrap_or_else(|_| {
        let default = LogOptions::default();
        default.build().unwrap_or_else(|_| crate::logging::off())
    })
}

fn fail(logger: &Logger, error: &dyn Error) -> ExitCode {
    log::error!(logger: logger, target: SYS, error:% = error; "command failed");
    logger.flush();
    ExitCode::FAILURE
}
