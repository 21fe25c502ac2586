//! `lockd verify store`: whether all that a store says it holds is there and whole.
//!
//! For a disk store that nobody serves: every frame of the log, every snapshot, every body, every record, and every body
//! that a record names. It changes nothing.
//!
//! For a bucket, which others may be serving: credentials, rights, conditional writes, large bodies; and every record, and
//! whether the bodies are there that it names. It writes below a name of its own and removes that again.
//!
//! What was found goes to standard output, one line for each check; the exit
//! status is 0 when all is well and 1 when something is damaged or could not be looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::CliError;
use super::client::Context;
use crate::ids::BodyId;
use crate::keys::RecordKey;
use crate::record::bodies_named_by;
use crate::settings::{self, StoreLocation};
use crate::store::object::verify::{Examined, Step, examine};
use crate::store::object::{self, Location, ObjectStore};
use crate::store::shared_log::verify::{Check, Findings, verify};
use crate::store::{Store, StoreError};

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
            StoreLocation::Object(location) => verify_bucket(out, &location),
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

fn verify_bucket(out: &mut dyn Write, location: &Location) -> Result<(), CliError> {
    writeln!(out, "{location}\n")?;
    let Examined { steps, store } = examine(location, object::Options::default());
    for Step { name, outcome } in &steps {
        match outcome {
            Ok(remark) => writeln!(out, "{OK} {name}: {remark}")?,
            Err(reason) => writeln!(out, "{BAD} {name}: {reason}")?,
        }
    }
    let is_sound = match store {
        Some(store) => {
            let check = records_in(&store)?;
            show(out, &check)?;
            check.faults.is_empty()
        }
        None => false,
    };
    writeln!(out)?;
    if is_sound {
        writeln!(out, "Storage verification succeeded.")?;
        return Ok(());
    }
    if let Location::Aws(location) = location {
        writeln!(out, "These rights are needed:\n{}\n", location.policy())?;
    }
    out.flush()?;
    Err(CliError::new("storage verification failed"))
}

/// Looks at all records of a bucket. Others may be writing meanwhile, so what seems to be wrong is looked at once more.
fn records_in(store: &ObjectStore) -> Result<Check, CliError> {
    const PAGE: usize = 1000;
    let failed = |error: StoreError| CliError::new(format!("cannot read the records: {error}"));
    let mut records = Records::new();
    let mut after = None;
    loop {
        let page = store.list("", after.as_ref(), PAGE).map_err(failed)?;
        for row in &page {
            match store.read(&row.key) {
                Ok(Some(stored)) => records.take(&row.key, &stored.value),
                Ok(None) => {}
                Err(StoreError::Corrupt { place, offset, detail }) => records.check.fault(place, offset, detail),
                Err(other) => return Err(failed(other)),
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
            _ => break,
        }
    }
    // Whatever a record has named while it was looked at may have been dropped since, along with the record's change.
    let named: Vec<(BodyId, RecordKey)> = records.named.clone().into_iter().collect();
    let mut bodies: BTreeSet<BodyId> = store.leftovers(Duration::ZERO).map_err(failed)?.into_iter().collect();
    for (body, key) in named {
        if !bodies.contains(&body) {
            let still_named = match store.read(&key).map_err(failed)? {
                Some(stored) => bodies_named_by(&key, &stored.value)
                    .ok()
                    .flatten()
                    .unwrap_or_default()
                    .contains(&body),
                None => false,
            };
            if still_named && store.body_reader(&body).is_ok() {
                bodies.insert(body);
            } else if !still_named {
                records.named.remove(&body);
            }
        }
    }
    Ok(records.checked(&bodies))
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
    fn checked(mut self, bodies: &BTreeSet<BodyId>) -> Check {
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
