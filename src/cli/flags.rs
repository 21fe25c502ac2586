//! Flags as clap knows them, made from the table of options, and read back as texts by name.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, parser::ValueSource};

use crate::settings::Flags;
use crate::settings::options::{
    ForeignOption, GLOBAL_OPTIONS, KnownOption, REFUSED_OPTIONS, SERVER_OPTIONS, SKIPPED_OPTIONS, Shape,
};

/// The flags that every command takes.
#[derive(Debug, Clone, Default)]
pub(super) struct GlobalFlags(pub(super) Flags);

/// The flags of the daemon.
#[derive(Debug, Clone, Default)]
pub(super) struct ServerFlags(pub(super) Flags);

impl Args for GlobalFlags {
    fn augment_args(command: Command) -> Command {
        GLOBAL_OPTIONS.iter().fold(command, |command, option| {
            let heading = if option.for_client {
                "Options of the client commands"
            } else {
                "Options of every command"
            };
            command.arg(known(&option.option).global(true).help_heading(heading))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for GlobalFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let names = GLOBAL_OPTIONS.iter().map(|option| option.option.name);
        Ok(Self(given(matches, names)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ServerFlags {
    fn augment_args(command: Command) -> Command {
        let command = SERVER_OPTIONS.iter().fold(command, |command, option| {
            command.arg(known(option).help_heading("Options of the daemon"))
        });
        let foreign_options = SKIPPED_OPTIONS.iter().chain(REFUSED_OPTIONS);
        foreign_options.fold(command, |command, option| command.arg(foreign(option)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServerFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let foreign = SKIPPED_OPTIONS.iter().chain(REFUSED_OPTIONS).map(|option| option.name);
        Ok(Self(given(
            matches,
            SERVER_OPTIONS.iter().map(|option| option.name).chain(foreign),
        )))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn known(option: &KnownOption) -> Arg {
    let arg = shaped(Arg::new(option.name).long(option.name), option.shape).help(option.help);
    match option.short {
        Some(letter) => arg.short(letter),
        None => arg,
    }
}

/// Hidden: it is there so that its use meets a clear word instead of "unexpected argument".
fn foreign(option: &ForeignOption) -> Arg {
    shaped(Arg::new(option.name).long(option.name), option.shape).hide(true)
}

fn shaped(arg: Arg, shape: Shape) -> Arg {
    match shape {
        Shape::Value(name) => arg.value_name(name),
        Shape::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("BOOL")
            .hide_possible_values(true),
    }
}

fn given(matches: &ArgMatches, names: impl Iterator<Item = &'static str>) -> Flags {
    let on_command_line = names.filter(|name| matches.value_source(name) == Some(ValueSource::CommandLine));
    let texts = on_command_line.filter_map(|name| Some((name.to_owned(), matches.get_one::<String>(name)?.clone())));
    texts.collect()
}
