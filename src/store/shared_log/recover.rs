//! Opening a root: checks, the first files, and what to start from.
//!
//! ```text
//! <root>/commit.lock    the lock, the format, the mark      made once
//! <root>/turn.lock      who gets the lock next              made once
//! <root>/compact.lock   who compacts                        made once
//! <root>/log/           0000000001.segment ...  0000000007.snapshot ...
//! <root>/bodies/        large bodies
//! ```
//!
//! The truth is in `log/`. Recovery lists it, loads the newest snapshot that is whole, and goes on in the log where the
//! snapshot says; from there every segment names the next. Without a snapshot the log begins with sequence 1. A snapshot
//! without its end does not exist; neither does a segment that no seal names. Then the end of the log is found under the
//! exclusive lock, exactly as every writer does it before each commit ([`settle`](super::follow)).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use super::OpenError;
use super::engine::Counting;
use super::follow::Tail;
use super::frame::{FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileKind, Flaw, FrameKind, read_u64};
use super::index::{Changes, Index};
use super::lock::TURN_FILE;
use super::mark::{LOCK_FILE, Position, format_line, read_format, write_format};
use super::network::read_past_the_cache;
use super::operation::Operations;
use super::segment::{FrameReader, LogFile, ReadError, list_files};
use crate::store::StoreError;

pub(super) const COMPACT_FILE: &str = "compact.lock";
pub(super) const LOG_DIR: &str = "log";
pub(super) const BODIES_DIR: &str = "bodies";
/// What a fresh file system brings along, and what another process that opens this root now makes right after the first.
const HARMLESS: [&str; 3] = ["lost+found", TURN_FILE, COMPACT_FILE];

/// The lock files of a root, open.
pub(super) struct LockFiles {
    pub(super) commit: Arc<File>,
    pub(super) turn: File,
    pub(super) compact: File,
}

/// Checks that a root can be used and opens its lock files, which are made if the root is empty.
pub(super) fn open_root(root: &Path) -> Result<LockFiles, OpenError> {
    if !root.is_absolute() {
        return Err(OpenError::NotAbsolute);
    }
    make_last_component(root)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(root).map_err(|cause| OpenError::io("listing", root, cause))? {
        let entry = entry.map_err(|cause| OpenError::io("listing", root, cause))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    // The lock file comes before everything else, so what is here without it is somebody else's.
    if !names.iter().any(|name| name == LOCK_FILE)
        && let Some(name) = names.into_iter().find(|name| !HARMLESS.contains(&name.as_str()))
    {
        return Err(OpenError::Foreign { name });
    }
    let open = |name: &str| {
        let path = root.join(name);
        let file = (OpenOptions::new().read(true).write(true).create(true).truncate(false)).open(&path);
        let file = file.and_then(|file| read_past_the_cache(&file).map(|()| file));
        file.map_err(|cause| match cause.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => OpenError::NotWritable { cause },
            _ => OpenError::io("opening", &path, cause),
        })
    };
    Ok(LockFiles {
        commit: Arc::new(open(LOCK_FILE)?),
        turn: open(TURN_FILE)?,
        compact: open(COMPACT_FILE)?,
    })
}

/// Makes the parts of a store that are missing. Under the exclusive lock. Every step may have been done before by somebody
/// who did not come to the next; the format line is the last one.
pub(super) fn make_store(root: &Path, commit: &File, counting: &Counting) -> Result<(), OpenError> {
    let io = |doing: &'static str| move |cause| OpenError::io(doing, root, cause);
    if let Some(found) = read_format(commit).map_err(io("reading the format of"))? {
        return if found == format_line() {
            Ok(())
        } else {
            Err(OpenError::OtherFormat { found })
        };
    }
    for name in [LOG_DIR, BODIES_DIR] {
        match DirBuilder::new().mode(0o700).create(root.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io("making directories in")(error));
            }
            _ => {}
        }
    }
    counting.sync_dir(root).map_err(io("syncing"))?;
    if let Some(parent) = root.parent() {
        counting
            .sync_dir(parent)
            .map_err(|cause| OpenError::io("syncing", parent, cause))?;
    }
    let log_dir = root.join(LOG_DIR);
    if list_files(&log_dir).map_err(io("listing the log of"))?.is_empty() {
        let header = FileHeader {
            kind: FileKind::Segment,
            number: 1,
            start_segment: 0,
            start_offset: 0,
            sequence: 1,
            salt: fastrand::u64(..),
        };
        LogFile::create(&log_dir, header, counting).map_err(io("making the first segment of"))?;
    }
    write_format(commit, counting).map_err(io("writing the format of"))
}

/// The newest state that can be loaded without looking at the log behind it.
pub(super) fn load(log_dir: &Path) -> Result<(Index, Tail), StoreError> {
    let files = list_files(log_dir).map_err(|cause| StoreError::NotDone {
        detail: format!("listing {}: {cause}", log_dir.display()),
    })?;
    let mut broken = None;
    for found in files.iter().rev().filter(|found| found.is_snapshot) {
        match load_snapshot(log_dir, found.number) {
            Ok(loaded) => return Ok(loaded),
            // Never finished, or damaged. An older state is as good as long as the log since then is there; if it is not,
            // this is why.
            Err(error @ StoreError::Corrupt { .. }) => broken = broken.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    let place = || log_dir.display().to_string();
    let Some(first) = files.iter().find(|found| !found.is_snapshot) else {
        return Err(broken.unwrap_or(StoreError::Corrupt {
            place: place(),
            offset: 0,
            detail: "the log has no segments".to_owned(),
        }));
    };
    let file = LogFile::open(log_dir, FileKind::Segment, first.number)?;
    if file.header.sequence != 1 {
        return Err(broken.unwrap_or_else(|| file.corrupt(0, Flaw::Sequence)));
    }
    let start = Position {
        segment: first.number,
        offset: FILE_HEADER_BYTES as u64,
    };
    Ok(begin(Index::default(), Arc::new(file), start, 1))
}

fn load_snapshot(log_dir: &Path, number: u32) -> Result<(Index, Tail), StoreError> {
    let snapshot = Arc::new(LogFile::open(log_dir, FileKind::Snapshot, number)?);
    let header = snapshot.header;
    let mut index = Index::default();
    read_snapshot(&snapshot, |payload, payload_offset| {
        (index.apply(payload, snapshot.id(), payload_offset, &mut Changes::default())).map_err(|_| Flaw::Payload)
    })?;
    let start = Position {
        segment: header.start_segment,
        offset: header.start_offset,
    };
    let file = LogFile::open(log_dir, FileKind::Segment, header.start_segment)?;
    index.files.insert(snapshot.id(), snapshot);
    index.snapshot = Some((number, start));
    Ok(begin(index, Arc::new(file), start, header.sequence))
}

fn begin(mut index: Index, file: Arc<LogFile>, start: Position, sequence: u64) -> (Index, Tail) {
    index.applied = start;
    index.files.insert(file.id(), file.clone());
    let tail = Tail {
        file,
        offset: start.offset,
        sequence,
        reader: FrameReader::default(),
        held: None,
        room_is_clean: false,
    };
    (index, tail)
}

/// Reads a snapshot from front to back and hands out its payloads with their offsets. An error says that it is not whole.
pub(super) fn read_snapshot(
    snapshot: &LogFile,
    mut take: impl FnMut(&[u8], u64) -> Result<(), Flaw>,
) -> Result<(), StoreError> {
    let length = snapshot.len_bytes()?;
    let mut reader = FrameReader::default();
    let mut offset = FILE_HEADER_BYTES as u64;
    let mut operations = 0;
    for sequence in 1.. {
        let (head, payload) = reader.read(snapshot, offset, length).map_err(|error| match error {
            ReadError::Flaw(flaw) => snapshot.corrupt(offset, flaw),
            ReadError::Io(cause) => snapshot.failed("reading", &cause),
        })?;
        if head.sequence != sequence {
            return Err(snapshot.corrupt(offset, Flaw::Sequence));
        }
        match head.kind {
            FrameKind::Entries => {
                operations += Operations::new(payload).count() as u64;
                take(payload, offset + FRAME_HEADER_BYTES as u64).map_err(|flaw| snapshot.corrupt(offset, flaw))?;
            }
            FrameKind::End if head.length == 8 && read_u64(payload, 0) == operations => return Ok(()),
            _ => return Err(snapshot.corrupt(offset, Flaw::Kind)),
        }
        offset += (FRAME_HEADER_BYTES + head.length) as u64;
    }
    Ok(())
}

fn make_last_component(root: &Path) -> Result<(), OpenError> {
    match DirBuilder::new().mode(0o700).create(root) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if root.is_dir() {
                Ok(())
            } else {
                Err(OpenError::NotADirectory)
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OpenError::ParentMissing),
        Err(cause) => Err(match cause.kind() {
            io::ErrorKind::NotADirectory => OpenError::ParentNotADirectory,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => OpenError::NotWritable { cause },
            _ => OpenError::io("making", root, cause),
        }),
    }
}
