//! Large bodies: one file each, under `bodies/`, with the name of the body.
//!
//! ```text
//! the bytes of the body | "lkbody" 0 1 | length u64 | crc32 of the bytes u32 | 0 u32
//! ```
//!
//! The end comes last so that a body can be written in one pass. A file and then its directory are synced before any
//! record can name the body, so what a record names is there and whole; a file without its end was never finished, and
//! nobody names it. A body that is dropped is removed after the batch that drops it is durable; whoever has opened it
//! reads on. On NFS that takes more: a file that one machine removes breaks off under a reader on another. So there the
//! file stays for a grace, and meanwhile every process that has heard of the drop takes the body for missing.
//!
//! A crash between the two leaves a file that no record names. Its process removes it when it opens the root again and
//! reads the batch anew, unless a snapshot has taken the batch's place by then. A body that was streamed and never named
//! is not known to the log at all. Finding such orphans needs to know what records name, which is above
//! this floor; it only tells which files are old.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::Step;
use super::engine::Core;
use super::frame::{read_u32, read_u64};
use super::keeper::Task;
use super::segment::is_gone;
use crate::store::{BodyId, BodyWriter, StoreError};

const END_BYTES: usize = 24;
const END_MAGIC: [u8; 8] = *b"lkbody\x00\x01";
/// A body of a batch that is tried again may meet its own file.
const NAME_ATTEMPTS: usize = 10;

impl Core {
    /// Writes a body of a batch to a file. True: the file is new, so it goes again if the batch is refused.
    pub(super) fn write_body_file(&self, id: &BodyId, bytes: &[u8]) -> Result<bool, StoreError> {
        let path = self.body_path(id)?;
        let (file, is_new) = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => (file, true),
            // The same batch again, after an answer that was lost: the file is overwritten with what it holds already.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let file = OpenOptions::new().write(true).open(&path);
                (file.map_err(|cause| failed("opening", id, &cause))?, false)
            }
            Err(cause) => return Err(failed("making", id, &cause)),
        };
        let end = encode_end(bytes.len() as u64, crc32fast::hash(bytes));
        let written = (file.write_all_at(bytes, 0))
            .and_then(|()| file.write_all_at(&end, bytes.len() as u64))
            .and_then(|()| file.set_len((bytes.len() + END_BYTES) as u64))
            .and_then(|()| self.counting.sync(&file, Step::BodySync))
            .and_then(|()| self.counting.sync_dir(&self.bodies_dir));
        written.map(|()| is_new).map_err(|cause| {
            if is_new {
                let _ = fs::remove_file(&path);
            }
            failed("writing", id, &cause)
        })
    }

    /// The files of bodies that a durable batch has dropped may go.
    pub(super) fn let_body_files_go(&self, ids: Vec<BodyId>) {
        if !self.network {
            ids.iter().for_each(|id| self.remove_body_file(id));
        } else if !ids.is_empty() {
            self.hide_bodies(ids, true);
        }
    }

    /// From now on these bodies are missing; after a grace their files are removed, if that is up to this process. On NFS.
    pub(super) fn hide_bodies(&self, ids: Vec<BodyId>, remove: bool) {
        self.hidden_bodies.lock().extend(ids.iter().cloned());
        let due = self.clock.now().after(self.options.delete_grace);
        // The keeper is gone only when the whole engine goes. What it did not come to, whoever opens the root next does.
        let _ = self.tasks.send(Task::ForgetBodies { ids, due, remove });
    }

    /// The grace of these bodies is over.
    pub(super) fn forget_hidden_bodies(&self, ids: &[BodyId], remove: bool) {
        if remove {
            ids.iter().for_each(|id| self.remove_body_file(id));
        }
        let mut hidden = self.hidden_bodies.lock();
        ids.iter().for_each(|id| {
            hidden.remove(id);
        });
    }

    /// Those of these bodies that have files. Asked of the directory, once for all of them.
    pub(super) fn with_files(&self, ids: Vec<BodyId>) -> Vec<BodyId> {
        if ids.is_empty() {
            return ids;
        }
        let Ok(entries) = fs::read_dir(&self.bodies_dir) else {
            return vec![];
        };
        let there: HashSet<OsString> = entries.flatten().map(|entry| entry.file_name()).collect();
        ids.into_iter()
            .filter(|id| there.contains(OsStr::new(id.as_str())))
            .collect()
    }

    /// Removes the file of a body. One that is not there is fine, and one that cannot be removed is an orphan.
    pub(super) fn remove_body_file(&self, id: &BodyId) {
        if let Ok(path) = self.body_path(id) {
            let _ = fs::remove_file(path);
        }
    }

    /// Opens a body that lives in a file.
    pub(super) fn open_body_file(&self, id: &BodyId) -> Result<Box<dyn Read + Send>, StoreError> {
        let missing = || StoreError::BodyMissing { body: id.clone() };
        let path = self.body_path(id).map_err(|_| missing())?;
        if self.hidden_bodies.lock().contains(id) {
            return Err(missing());
        }
        open_file(&path, id)
    }

    /// Bodies whose files were written longer ago than this. Those in the log come and go with the batch of their record.
    pub(super) fn old_body_files(&self, older_than: Duration) -> Result<Vec<BodyId>, StoreError> {
        let failed = |cause: io::Error| StoreError::NotDone {
            detail: format!("listing bodies: {cause}"),
        };
        let now = UNIX_EPOCH + Duration::from_millis(u64::try_from(self.clock.wall_ms()).unwrap_or(0));
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.bodies_dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| is_lawful_name(name)) else {
                continue;
            };
            // One that is gone by now, or younger than the clock, is not old.
            let written = entry.metadata().and_then(|metadata| metadata.modified()).ok();
            let age = written.and_then(|written| now.duration_since(written).ok());
            if age.is_some_and(|age| older_than <= age) {
                found.push(BodyId::new(name));
            }
        }
        Ok(found)
    }

    /// Begins a body that arrives piece by piece.
    pub(super) fn stream_body(self: &Arc<Self>) -> Result<Box<dyn BodyWriter>, StoreError> {
        for _ in 0..NAME_ATTEMPTS {
            let id = BodyId::new(format!("s-{}", self.ids.uuid()));
            let path = self.body_path(&id)?;
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    return Ok(Box::new(FileBodyWriter {
                        core: self.clone(),
                        id,
                        path: Some(path),
                        file: io::BufWriter::new(file),
                        hasher: crc32fast::Hasher::new(),
                        length: 0,
                    }));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(failed("making", &id, &cause)),
            }
        }
        Err(StoreError::NotDone {
            detail: "no name is free for a body".to_owned(),
        })
    }

    /// Where a body lives. Its name must not lead anywhere else.
    fn body_path(&self, id: &BodyId) -> Result<PathBuf, StoreError> {
        let name = id.as_str();
        if is_lawful_name(name) {
            Ok(self.bodies_dir.join(name))
        } else {
            Err(StoreError::NotDone {
                detail: format!("{name:?} is no name of a body"),
            })
        }
    }
}

/// True for what may be the name of a body.
pub(super) fn is_lawful_name(name: &str) -> bool {
    let lawful = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(lawful)
}

/// Opens the file of a body. One without its end is damage here: a record names only what has been finished.
pub(super) fn open_file(path: &Path, id: &BodyId) -> Result<Box<dyn Read + Send>, StoreError> {
    let failed = |doing: &str, cause: &io::Error| match is_gone(cause) {
        true => StoreError::BodyMissing { body: id.clone() },
        false => failed(doing, id, cause),
    };
    let file = File::open(path).map_err(|cause| failed("opening", &cause))?;
    let file_bytes = file.metadata().map_err(|cause| failed("measuring", &cause))?.len();
    let mut end = [0; END_BYTES];
    let found = match file_bytes.checked_sub(END_BYTES as u64) {
        Some(at) => (file.read_exact_at(&mut end, at))
            .map(|()| decode_end(&end).filter(|(length, _)| *length == at))
            .map_err(|cause| failed("reading", &cause))?,
        None => None,
    };
    let Some((length, crc)) = found else {
        return Err(StoreError::Corrupt {
            place: path.display().to_string(),
            offset: file_bytes.saturating_sub(END_BYTES as u64),
            detail: "the end of the body is missing".to_owned(),
        });
    };
    Ok(Box::new(BodyReader {
        file: BufReader::new(file).take(length),
        hasher: crc32fast::Hasher::new(),
        crc,
        path: path.to_owned(),
    }))
}

struct FileBodyWriter {
    core: Arc<Core>,
    id: BodyId,
    /// None once the body is finished, so that it stays.
    path: Option<PathBuf>,
    file: io::BufWriter<File>,
    hasher: crc32fast::Hasher,
    length: u64,
}

impl Write for FileBodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BodyWriter for FileBodyWriter {
    fn finish(mut self: Box<Self>) -> Result<BodyId, StoreError> {
        self.core.check_latch()?;
        let end = encode_end(self.length, self.hasher.clone().finalize());
        let finished = (self.file.write_all(&end))
            .and_then(|()| self.file.flush())
            .and_then(|()| self.core.counting.sync(self.file.get_ref(), Step::BodySync))
            .and_then(|()| self.core.counting.sync_dir(&self.core.bodies_dir));
        finished.map_err(|cause| failed("writing", &self.id, &cause))?;
        self.path = None;
        Ok(self.id.clone())
    }
}

impl Drop for FileBodyWriter {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Reads a body and checks it at its end.
struct BodyReader {
    file: io::Take<BufReader<File>>,
    hasher: crc32fast::Hasher,
    crc: u32,
    path: PathBuf,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        let at_end = self.file.limit() == 0 || (count == 0 && !buffer.is_empty());
        if at_end && (self.file.limit() != 0 || self.hasher.clone().finalize() != self.crc) {
            let message = format!("the body in {} is damaged", self.path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(count)
    }
}

fn encode_end(length: u64, crc: u32) -> [u8; END_BYTES] {
    let mut end = [0; END_BYTES];
    end[0..8].copy_from_slice(&END_MAGIC);
    end[8..16].copy_from_slice(&length.to_le_bytes());
    end[16..20].copy_from_slice(&crc.to_le_bytes());
    end
}

fn decode_end(end: &[u8; END_BYTES]) -> Option<(u64, u32)> {
    (end[0..8] == END_MAGIC).then(|| (read_u64(end, 8), read_u32(end, 16)))
}

fn failed(doing: &str, id: &BodyId, cause: &io::Error) -> StoreError {
    StoreError::NotDone {
        detail: format!("{doing} body {}: {cause}", id.as_str()),
    }
}
