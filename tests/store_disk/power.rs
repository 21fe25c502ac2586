//! Loss of power: only what was synced is still there. A history runs, and at every sync point, just before the sync, the
//! test works out what the disk would hold if the power went now, opens that, and compares.
//!
//! The model of the disk is the harshest that the engine's assumptions allow: a file has the bytes of its last sync, and a
//! directory the names of its own last sync. Three more images are tried at each point, because a disk may also have
//! written more than it was asked to: the unsynced mark arrived; half of what was appended arrived; everything did.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lockd::store::shared_log::Options;
use lockd::store::{Batch, BodyId, Precondition, Store, Written};
use parking_lot::Mutex;

use super::tools::*;

type Contents = BTreeMap<String, Vec<u8>>;

/// What a disk is sure to hold.
struct Disk {
    root: PathBuf,
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
    Half,
    All,
}

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
        let names = match luck {
            Luck::All => names_in(now),
            _ => self.names.get(&dir).cloned().unwrap_or_default(),
        };
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
                Luck::Half if synced.len() < written.len() => {
                    let half = synced.len() + (written.len() - synced.len()).div_ceil(2);
                    written[..half].to_vec()
                }
                _ => synced,
            };
            fs::write(target, bytes).unwrap();
        }
    }
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
    let (dir, root) = new_root();
    fs::create_dir(&root).unwrap();
    let disk = Arc::new(Mutex::new(Disk {
        root: root.clone(),
        bytes: HashMap::new(),
        names: HashMap::new(),
    }));
    let promise = Arc::new(Mutex::new(Promise::default()));
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    let hook = {
        let (disk, promise) = (disk.clone(), promise.clone());
        move |_, file: Option<&File>| -> io::Result<()> {
            if let Some(file) = file {
                let mut disk = disk.lock();
                for luck in [Luck::None, Luck::Mark, Luck::Half, Luck::All] {
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
        // A record that names a body; a new body takes the place of the one before.
        let body = n % 4 == 0;
        if body {
            next.insert("names-a-body".to_owned(), n.to_string().into_bytes());
            records.push(("names-a-body".to_owned(), n.to_string().into_bytes()));
        }
        let body_id = |n: u64| BodyId::new(format!("body-{n}"));
        let batch = Batch {
            bodies: body
                .then(|| (body_id(n), Arc::from(vec![n as u8; 2_000])))
                .into_iter()
                .collect(),
            records: (records.iter())
                .map(|(name, value)| write_of(name, Precondition::Any, value))
                .collect(),
            drop_bodies: (body && 4 <= n).then(|| body_id(n - 4)).into_iter().collect(),
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
    let root_inode = fs::metadata(&disk.root).unwrap().ino();
    disk.lay_out(root_inode, &disk.root, &target, luck);
    let store = open(&target);
    let found: Contents = contents(&store)
        .into_iter()
        .map(|(name, (value, _))| (name, value))
        .collect();
    let lawful = found == promise.acknowledged || Some(&found) == promise.under_way.as_ref();
    assert!(lawful, "image {} with {luck:?}", promise.images - 1);
    if let Some(n) = found.get("names-a-body") {
        let n: u64 = str::from_utf8(n).unwrap().parse().unwrap();
        let mut bytes = Vec::new();
        let mut reader = store.body_reader(&BodyId::new(format!("body-{n}"))).unwrap();
        io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
        assert!(bytes == vec![n as u8; 2_000], "image {}", promise.images - 1);
    }
    put(&store, "after", b"life goes on");
    drop(store);
    fs::remove_dir_all(&target).unwrap();
}
