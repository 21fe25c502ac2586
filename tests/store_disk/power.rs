//! Loss of power: only what was synced is still there. A history runs, and at every sync point, just before the sync, the
//! test works out what the disk would hold if the power went now, opens that, and compares.
//!
//! The model of the disk is the harshest that the engine's assumptions allow: a file has the bytes of its last sync, and a
//! directory the names of its own last sync. More images are tried at each point, because a disk may also have written
//! more than it was asked to: the unsynced mark arrived; the first half of what was written to each file arrived, or the
//! second half alone; files that were removed are gone although nothing else arrived; everything did. The directory above
//! the root is a part of the model too.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lockd::store::shared_log::Options;
use lockd::store::{Batch, BodyId, Precondition, Store, Written};
use parking_lot::Mutex;

use super::tools::*;

/// Every body; too large for the log.
const BODY: [u8; 2_000] = [b'b'; 2_000];

type Contents = BTreeMap<String, Vec<u8>>;

/// What a disk is sure to hold.
struct Disk {
    /// The directory above the root.
    parent: PathBuf,
    /// Bytes of each file at its last sync, by inode.
    bytes: HashMap<u64, Vec<u8>>,
    /// Names in each directory at its last sync: the inode, and whether it is a directory.
    names: HashMap<u64, BTreeMap<String, (u64, bool)>>,
}

/// How much more than that it holds.
#[derive(Debug, Clone, Copy)]
enum Luck {
    None,
    Mark,
    FirstHalf,
    SecondHalf,
    Removals,
    All,
}

const ALL_LUCK: [Luck; 6] = [
    Luck::None,
    Luck::Mark,
    Luck::FirstHalf,
    Luck::SecondHalf,
    Luck::Removals,
    Luck::All,
];

impl Disk {
    fn synced(&mut self, file: &File) {
        let metadata = file.metadata().unwrap();
        // By way of the descriptor: a file may have any name.
        let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)));
        if metadata.is_dir() {
            self.names.insert(metadata.ino(), names_in(&path));
        } else {
            self.bytes.insert(metadata.ino(), fs::read(&path).unwrap());
        }
    }

    /// Lays out at `target` what is left of the directory with this inode.
    fn lay_out(&self, dir: u64, now: &Path, target: &Path, luck: Luck) {
        fs::create_dir(target).unwrap();
        let mut names = match luck {
            Luck::All => names_in(now),
            _ => self.names.get(&dir).cloned().unwrap_or_default(),
        };
        if matches!(luck, Luck::Removals) {
            let now = names_in(now);
            names.retain(|name, _| now.contains_key(name));
        }
        for (name, (inode, is_dir)) in names {
            let (now, target) = (now.join(&name), target.join(&name));
            if is_dir {
                self.lay_out(inode, &now, &target, luck);
                continue;
            }
            let synced = self.bytes.get(&inode).cloned().unwrap_or_default();
            // A file that has been removed since is there again: its removal was not synced either.
            let written = fs::read(&now).unwrap_or_else(|_| synced.clone());
            let bytes = match luck {
                Luck::All => written,
                Luck::Mark if name == "commit.lock" => written,
                // Its first line and its mark are shorter than what a disk writes at once.
                Luck::FirstHalf | Luck::SecondHalf if name != "commit.lock" => half_written(&synced, &written, luck),
                _ => synced,
            };
            fs::write(target, bytes).unwrap();
        }
    }
}

/// A file of which one half of what has changed since its last sync has arrived.
fn half_written(synced: &[u8], written: &[u8], luck: Luck) -> Vec<u8> {
    let before = |at: usize| synced.get(at).copied().unwrap_or(0);
    let has_changed = |at: &usize| written[*at] != before(*at);
    let (Some(first), Some(last)) = (
        (0..written.len()).find(has_changed),
        (0..written.len()).rfind(has_changed),
    ) else {
        return synced.to_vec();
    };
    let middle = (first + last).div_ceil(2);
    if matches!(luck, Luck::FirstHalf) {
        return [&written[..middle], synced.get(middle..).unwrap_or_default()].concat();
    }
    let first_half: Vec<u8> = (0..middle).map(before).collect();
    [&first_half, &written[middle..]].concat()
}

fn names_in(dir: &Path) -> BTreeMap<String, (u64, bool)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        (
            entry.file_name().to_str().unwrap().to_owned(),
            (metadata.ino(), metadata.is_dir()),
        )
    });
    entries.collect()
}

/// What must be there, and what may be there instead because it is being written.
#[derive(Default)]
struct Promise {
    acknowledged: Contents,
    under_way: Option<Contents>,
    images: usize,
}

#[test]
fn the_loss_of_power_at_any_sync_point_loses_nothing_acknowledged() {
    let (dir, _) = new_root();
    // Only the root is in it, and even that is not synced yet.
    let parent = dir.path().join("parent");
    fs::create_dir(&parent).unwrap();
    let root = parent.join("store");
    let disk = Arc::new(Mutex::new(Disk {
        parent,
        bytes: HashMap::new(),
        names: HashMap::new(),
    }));
    let promise = Arc::new(Mutex::new(Promise::default()));
    // What is left over is opened hundreds of times, on a file system in memory if there is one.
    let images_dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let images = images_dir.path().to_owned();
    let hook = {
        let (disk, promise) = (disk.clone(), promise.clone());
        move |_, file: Option<&File>| -> io::Result<()> {
            if let Some(file) = file {
                let mut disk = disk.lock();
                for luck in ALL_LUCK {
                    check_image(&disk, luck, &images, &mut promise.lock());
                }
                disk.synced(file);
            }
            Ok(())
        }
    };
    let options = Options {
        segment_bytes_max: 3_000,
        body_bytes_in_log_max: 1_000,
        // Compaction happens when the history says so.
        compact_bytes_min: u64::MAX,
        delete_grace: Duration::ZERO,
        step_hook: Some(Arc::new(hook)),
        ..Options::default()
    };
    let store = open_with(&root, options);
    let mut rng = fastrand::Rng::with_seed(23);
    let mut last_body: Option<BodyId> = None;
    for n in 0..60_u64 {
        if n % 20 == 19 {
            store.compact().unwrap();
            // The files before it go, and the next new segment makes that durable.
            wait_until("old files are gone", || {
                log_files(&root, "snapshot").len() == 1 && log_files(&root, "segment").len() == 1
            });
        }
        let mut next = promise.lock().acknowledged.clone();
        let mut records = Vec::new();
        for _ in 0..rng.usize(1..4) {
            let name = format!("k/{}", rng.u32(..12));
            let value = vec![n as u8; rng.usize(1..600)];
            // One record, one write: the last value is the one that counts.
            records.retain(|(known, _)| *known != name);
            next.insert(name.clone(), value.clone());
            records.push((name, value));
        }
        // A record that names a body; a new body takes the place of the one before. Some are streamed.
        let body = n % 4 == 0;
        let mut streamed = None;
        if n % 6 == 1 {
            let mut writer = store.body_writer().unwrap();
            writer.write_all(&BODY).unwrap();
            streamed = Some(writer.finish().unwrap());
        }
        let body_id = |n: u64| BodyId::new(format!("body-{n}"));
        let named = body.then(|| body_id(n)).or_else(|| streamed.clone());
        if let Some(named) = &named {
            next.insert("names-a-body".to_owned(), named.as_str().as_bytes().to_vec());
            records.push(("names-a-body".to_owned(), named.as_str().as_bytes().to_vec()));
        }
        let replaced = (named.is_some())
            .then(|| std::mem::replace(&mut last_body, named))
            .flatten();
        let batch = Batch {
            bodies: body.then(|| (body_id(n), Arc::from(BODY))).into_iter().collect(),
            records: (records.iter())
                .map(|(name, value)| write_of(name, Precondition::Any, value))
                .collect(),
            drop_bodies: replaced.into_iter().collect(),
        };
        promise.lock().under_way = Some(next.clone());
        assert!(matches!(store.write(batch), Ok(Written::Done(_))));
        let mut promise = promise.lock();
        promise.acknowledged = next;
        promise.under_way = None;
    }
    let images = promise.lock().images;
    eprintln!("{images} images");
    assert!(400 < images);
}

fn check_image(disk: &Disk, luck: Luck, images: &Path, promise: &mut Promise) {
    let target = images.join(promise.images.to_string());
    promise.images += 1;
    let inode = fs::metadata(&disk.parent).unwrap().ino();
    disk.lay_out(inode, &disk.parent, &target, luck);
    let store = open(&target.join("store"));
    let found: Contents = contents(&store)
        .into_iter()
        .map(|(name, (value, _))| (name, value))
        .collect();
    let lawful = found == promise.acknowledged || Some(&found) == promise.under_way.as_ref();
    assert!(lawful, "image {} with {luck:?}", promise.images - 1);
    if let Some(name) = found.get("names-a-body") {
        let body = BodyId::new(str::from_utf8(name).unwrap());
        let mut bytes = Vec::new();
        let mut reader = (store.body_reader(&body))
            .unwrap_or_else(|error| panic!("image {} with {luck:?}: {error}", promise.images - 1));
        io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
        assert!(bytes == BODY, "image {}", promise.images - 1);
    }
    put(&store, "after", b"life goes on");
    drop(store);
    fs::remove_dir_all(&target).unwrap();
}
