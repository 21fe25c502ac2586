//! `lockd verify store`: whether all that a store says it holds is there and whole.
//!
//! For a disk store that nobody serves: every frame of the log, every snapshot, every body, every record, and every body
//! that a record names. It changes nothing. What was found goes to standard output, one line for each check; the exit
//! status is 0 when all is well and 1 when something is damaged or could not be looked at.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use clap::{Args, Subcommand};

use super::CliError;
use super::client::Context;
use crate::ids::BodyId;
use crate::keys::RecordKey;
use crate::record::bodies_named_by;
use crate::settings::{self, StoreLocation};
use crate::store::shared_log::verify::{Check, Findings, verify};

const OK: &str = "\u{2714}";
const BAD: &str = "\u{2718}";

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum VerifyCommand {
    /// Look through a store: every record, every body, every byte of the log
    Store(StoreArguments),
}

#[derive(Debug, Args)]
pub(super) struct StoreArguments {
    /// The store, as the daemon is told it [env: LOCKD_STORE; default: the daemon's]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

impl VerifyCommand {
    pub(super) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let VerifyCommand::Store(arguments) = self;
        let mut flags = context.flags.clone();
        flags.extend(arguments.store.clone().map(|url| ("store".to_owned(), url)));
        let location = settings::load(&flags, context.variables)?.settings.store;
        let out = &mut *context.stdout;
        match location {
            StoreLocation::Disk(root) | StoreLocation::DefaultDisk(root) => verify_disk(out, &root),
            StoreLocation::Object(_) => Err(CliError::new("this version verifies stores on a disk only")),
            StoreLocation::Memory => {
                writeln!(out, "Store: mem://\nProvider: mem\n")?;
                writeln!(out, "A memory store keeps nothing that could be verified.")?;
                Ok(())
            }
        }
    }
}

fn verify_disk(out: &mut dyn Write, root: &Path) -> Result<(), CliError> {
    writeln!(out, "Store: disk://{}\nProvider: disk\n", root.display())?;
    let mut records = Records::new();
    let looked = verify(root, |key, value| records.take(key, value));
    let Findings { mut checks, bodies } =
        looked.map_err(|error| CliError::new(format!("cannot verify the store in {}: {error}", root.display())))?;
    let sound_log = checks
        .iter()
        .all(|check| check.faults.is_empty() || check.name == "Bodies");
    if sound_log {
        checks.push(records.checked(&bodies));
    }
    for check in &checks {
        show(out, check)?;
    }
    if !sound_log {
        writeln!(out, "The records were not looked at, because the log is damaged.")?;
    }
    writeln!(out)?;
    if checks.iter().all(|check| check.faults.is_empty()) {
        writeln!(out, "Storage verification succeeded.")?;
        Ok(())
    } else {
        out.flush()?;
        Err(CliError::new("storage verification failed"))
    }
}

fn show(out: &mut dyn Write, check: &Check) -> Result<(), CliError> {
    if check.faults.is_empty() {
        writeln!(out, "{OK} {}: {}", check.name, check.extent)?;
    }
    for fault in &check.faults {
        writeln!(out, "{BAD} {}: {fault}", check.name)?;
    }
    for remark in &check.remarks {
        writeln!(out, "  {remark}")?;
    }
    Ok(())
}

/// The records, and what they name.
struct Records {
    check: Check,
    count: usize,
    of_unknown_kind: usize,
    named: BTreeMap<BodyId, RecordKey>,
}

impl Records {
    fn new() -> Self {
        Self {
            check: Check::new("Records"),
            count: 0,
            of_unknown_kind: 0,
            named: BTreeMap::new(),
        }
    }

    fn take(&mut self, key: &RecordKey, value: &[u8]) {
        self.count += 1;
        match bodies_named_by(key, value) {
            Ok(Some(bodies)) => self.named.extend(bodies.into_iter().map(|body| (body, key.clone()))),
            Ok(None) => self.of_unknown_kind += 1,
            Err(cause) => self.check.fault(format!("record {key}"), cause.offset, cause.detail),
        }
    }

    /// Compares what the records name with what is there.
    fn checked(mut self, bodies: &std::collections::BTreeSet<BodyId>) -> Check {
        for (body, key) in &self.named {
            if !bodies.contains(body) {
                let detail = format!("it names body {}, which is missing or damaged", body.as_str());
                self.check.fault(format!("record {key}"), 0, detail);
            }
        }
        self.check.extent = format!("records: {}, naming bodies: {}", self.count, self.named.len());
        if 0 < self.of_unknown_kind {
            let remark = format!("of kinds that this version does not know: {}", self.of_unknown_kind);
            self.check.remarks.push(remark);
        } else {
            let left_over = bodies.iter().filter(|body| !self.named.contains_key(*body)).count();
            if 0 < left_over {
                let remark = format!("bodies that no record names: {left_over}; the daemon removes them after a while");
                self.check.remarks.push(remark);
            }
        }
        self.check
    }
}
