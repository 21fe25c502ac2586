//! What the tests of the disk engine have in common.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use lockd::store::shared_log::{OpenError, Options, SharedLogStore};
use lockd::store::{Batch, BodyId, Change, Etag, Precondition, RecordKey, RecordWrite, Store, Written};
use tempfile::TempDir;

pub(crate) fn new_root() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    (dir, root)
}

/// An engine of its own, so that everything comes from the disk.
pub(crate) fn open(root: &Path) -> SharedLogStore {
    open_with(root, Options::default())
}

pub(crate) fn open_with(root: &Path, options: Options) -> SharedLogStore {
    SharedLogStore::open_as_another_process(root, options).unwrap()
}

pub(crate) fn try_open(root: &Path) -> Result<SharedLogStore, OpenError> {
    SharedLogStore::open_as_another_process(root, Options::default())
}

pub(crate) fn write_of(name: &str, precondition: Precondition, value: &[u8]) -> RecordWrite {
    RecordWrite {
        key: RecordKey::new(name),
        precondition,
        change: Change::Put(Arc::from(value)),
    }
}

pub(crate) fn batch_of(records: Vec<RecordWrite>) -> Batch {
    Batch {
        records,
        ..Batch::default()
    }
}

pub(crate) fn put(store: &dyn Store, name: &str, value: &[u8]) -> Etag {
    match store
        .write(batch_of(vec![write_of(name, Precondition::Any, value)]))
        .unwrap()
    {
        Written::Done(mut etags) => etags.remove(0).unwrap(),
        Written::Refused { .. } => panic!("refused"),
    }
}

pub(crate) fn drop_body(store: &dyn Store, id: &BodyId) {
    let batch = Batch {
        drop_bodies: vec![id.clone()],
        ..Batch::default()
    };
    assert_eq!(store.write(batch), Ok(Written::Done(vec![])));
}

/// All records with their etags.
pub(crate) fn contents(store: &dyn Store) -> BTreeMap<String, (Vec<u8>, Etag)> {
    let rows = store.list("", None, usize::MAX).unwrap();
    rows.into_iter()
        .map(|row| {
            let stored = store.read(&row.key).unwrap().unwrap();
            assert_eq!(stored.etag, row.etag);
            (row.key.as_str().to_owned(), (stored.value.to_vec(), stored.etag))
        })
        .collect()
}

pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let clock = SystemClock::new();
    let start = clock.now();
    while !is_so() {
        assert!(
            clock.now().since(start) < Duration::from_secs(30),
            "waited in vain until {what}"
        );
        thread::sleep(Duration::from_millis(2));
    }
}

/// Copies a root that nobody has open.
pub(crate) fn copy_root(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_root(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The files of the log with this extension, in order.
pub(crate) fn log_files(root: &Path, extension: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(root.join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    paths
}

/// Where the frames of a file begin, and where the last one ends: see the picture in `frame.rs`.
pub(crate) fn frame_offsets(bytes: &[u8]) -> Vec<usize> {
    let mut offsets = vec![64];
    let mut at = 64;
    // Behind the last frame there may be room: zeroes.
    while bytes[at..].iter().any(|byte| *byte != 0) {
        assert_eq!(&bytes[at..at + 4], b"lkfr");
        at += 24 + u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
        offsets.push(at);
    }
    offsets
}

/// This test binary, run again in a role.
pub(crate) struct Helper {
    pub(crate) child: Child,
    pub(crate) lines: BufReader<ChildStdout>,
}

impl Helper {
    pub(crate) fn start(role: &str, root: &Path, argument: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "processes::helper",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("LOCKD_HELPER_ROLE", role)
            .env("LOCKD_HELPER_ROOT", root)
            .env("LOCKD_HELPER_ARGUMENT", argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Reads lines until one begins like this; returns its rest. None at the end.
    pub(crate) fn find_line(&mut self, beginning: &str) -> Option<String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(at) = line.find(beginning) {
                return Some(line[at + beginning.len()..].trim_end().to_owned());
            }
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // A test that fails must not leave a process behind, stopped or not.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A frame as `frame.rs` draws it, of any kind.
pub(crate) fn frame_of(kind: u32, salt: u64, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&kind.to_le_bytes());
    hasher.update(&length.to_le_bytes());
    hasher.update(&sequence.to_le_bytes());
    hasher.update(payload);
    let mut frame = b"lkfr".to_vec();
    for number in [kind, length, hasher.finalize()] {
        frame.extend(number.to_le_bytes());
    }
    frame.extend(sequence.to_le_bytes());
    frame.extend(payload);
    frame
}
