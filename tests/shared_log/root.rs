//! Where the suites on a file system may write: below the directory that `LOCKD_STORE` names, and nowhere else.
//!
//! The variable is mandatory. Without it, or with one that cannot be right, the first test that needs the root ends the
//! whole run with one clear line: a suite that quietly went to a temporary directory, often a file system in memory,
//! would prove nothing about disks. Every test has a directory of its own, removed when the test has passed and kept for
//! whoever wants to know when it has not.

use std::env;
use std::fs;
use std::io::{Write, stderr};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use lockd::settings::StoreLocation;
use uuid::Uuid;

/// The variable with the URL of the root.
pub(crate) const STORE: &str = "LOCKD_STORE";
/// The variable with the same directory by another mount, where there is one.
pub(crate) const SECOND_MOUNT: &str = "LOCKD_STORE_SECOND_MOUNT";

/// Stopped servers may take a moment to let go of their last file.
const REMOVE_PATIENCE: Duration = Duration::from_secs(10);

/// What a suite demands of its roots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demands {
    /// The name of the suite.
    pub(crate) suite: &'static str,
    /// The file that sets the variable, for the message.
    pub(crate) env_file: &'static str,
    /// Whether the root must be on NFS, or must not be.
    pub(crate) on_nfs: bool,
}

impl Demands {
    /// The root by each of its mounts, the first one first. Ends the process if there is none.
    pub(crate) fn mounts(self) -> Vec<PathBuf> {
        let first = self.checked(STORE).unwrap_or_else(|reason| self.refuse(&reason));
        let mut mounts = vec![first];
        if self.on_nfs && env::var_os(SECOND_MOUNT).is_some() {
            let second = self.checked(SECOND_MOUNT);
            mounts.push(second.unwrap_or_else(|reason| self.refuse(&reason)));
        }
        mounts
    }

    fn checked(self, variable: &str) -> Result<PathBuf, String> {
        let url = env::var(variable).map_err(|_| format!("{variable} is not set"))?;
        let wrong = |reason: &str| Err(format!("{variable} is {url:?}: {reason}"));
        let root = match StoreLocation::parse(&url) {
            Ok(StoreLocation::Disk(root)) => root,
            Ok(_) => return wrong("expected disk:///absolute/path"),
            Err(reason) => return wrong(&reason),
        };
        if !root.is_dir() {
            return wrong("there is no such directory; make it first");
        }
        match (self.on_nfs, is_on_nfs(&root)) {
            (true, false) => wrong("the directory is not on NFS"),
            (false, true) => wrong("the directory is on NFS, which has a suite of its own (integration-nfs)"),
            _ => Ok(root),
        }
    }

    /// Past the capture of the test runner, and before any other test can say the same.
    fn refuse(self, reason: &str) -> ! {
        let Self { suite, env_file, .. } = self;
        let text = format!(
            "\nthe {suite} suite has no place to write: {reason}\n\
             {STORE} must name a directory for it, as {env_file} explains; after editing that file:\n\
             \n    set -a && source {env_file} && set +a && cargo test --features integration-{suite} --test {suite}\n\n"
        );
        // If even this cannot be written, the exit status is all there is to say.
        let _ = stderr().lock().write_all(text.as_bytes());
        process::exit(1);
    }
}

fn is_on_nfs(root: &Path) -> bool {
    rustix::fs::statfs(root).is_ok_and(|found| found.f_type == rustix::fs::NFS_SUPER_MAGIC)
}

/// The directory of one test, by each of its mounts.
pub(crate) struct TestDir {
    pub(crate) mounts: Vec<PathBuf>,
}

impl TestDir {
    /// Makes a new one. Its name tells the test.
    pub(crate) fn create(demands: Demands, test: &str) -> Self {
        let name = format!("{test}-{}", Uuid::now_v7());
        let mounts: Vec<PathBuf> = (demands.mounts().into_iter()).map(|root| root.join(&name)).collect();
        fs::create_dir(&mounts[0]).unwrap_or_else(|cause| demands.refuse(&format!("making {name}: {cause}")));
        Self { mounts }
    }

    /// Removes it with all that is in it. Not reached by a test that fails.
    pub(crate) fn remove(self) {
        let dir = &self.mounts[0];
        let began = Instant::now();
        while let Err(cause) = fs::remove_dir_all(dir) {
            assert!(began.elapsed() < REMOVE_PATIENCE, "{} stays: {cause}", dir.display());
            thread::sleep(Duration::from_millis(20));
        }
    }
}
