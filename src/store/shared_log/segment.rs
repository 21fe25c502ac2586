//! Files of the log: made, opened, appended to, read frame by frame. A segment grows at its end until it is sealed; a
//! snapshot is written once. Both have ever-new numbers and are never replaced.
//!
//! A new file is synced, and its directory too, before anything in the log names it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Step;
use super::engine::Counting;
use super::frame::{FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileKind, Flaw, FrameHead};
use super::network::read_past_the_cache;
use crate::store::StoreError;

/// What is read from the disk at once, unless a frame is longer.
const READ_BYTES: usize = 256 * 1024;
/// How often a number may turn out to be taken while a file is made.
const NUMBER_ATTEMPTS: usize = 100;

/// An open file of the log.
pub(super) struct LogFile {
    pub(super) header: FileHeader,
    pub(super) file: File,
    path: PathBuf,
}

/// Which file of a log. A segment and a snapshot that are made at the same moment may get the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileId {
    pub(super) number: u32,
    pub(super) is_snapshot: bool,
}

impl LogFile {
    /// Makes a file with the next number there is; `header` says everything but the number. Durable when it returns.
    pub(super) fn create(log_dir: &Path, header: FileHeader, counting: &Counting) -> io::Result<Self> {
        let mut number = header.number.max(next_number(log_dir)?);
        for _ in 0..NUMBER_ATTEMPTS {
            let header = FileHeader { number, ..header };
            let path = log_dir.join(file_name(header.kind, number));
            match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => {
                    let made = Self { header, file, path };
                    let durable = (read_past_the_cache(&made.file))
                        .and_then(|()| made.file.write_all_at(&header.encode(), 0))
                        .and_then(|()| counting.sync(&made.file, Step::CreateSync))
                        .and_then(|()| counting.sync_dir(log_dir));
                    if let Err(error) = durable {
                        // Nothing names it yet; if this fails too, it stays as a file that nothing will ever name.
                        let _ = fs::remove_file(&made.path);
                        return Err(error);
                    }
                    return Ok(made);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number = next_number(log_dir)?,
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("no number is free"))
    }

    /// Opens a file that something durable names.
    pub(super) fn open(log_dir: &Path, kind: FileKind, number: u32) -> Result<Self, StoreError> {
        Self::open_with(OpenOptions::new().read(true).write(true), log_dir, kind, number)
    }

    /// The same for somebody who will not lock it, nor write to it.
    pub(super) fn open_to_read(log_dir: &Path, kind: FileKind, number: u32) -> Result<Self, StoreError> {
        Self::open_with(OpenOptions::new().read(true), log_dir, kind, number)
    }

    fn open_with(options: &OpenOptions, log_dir: &Path, kind: FileKind, number: u32) -> Result<Self, StoreError> {
        let path = log_dir.join(file_name(kind, number));
        let file = options.open(&path).map_err(|cause| failed("opening", &path, &cause))?;
        read_past_the_cache(&file).map_err(|cause| failed("opening", &path, &cause))?;
        let mut bytes = [0; FILE_HEADER_BYTES];
        let decoded = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => FileHeader::decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Flaw::Short),
            Err(cause) => return Err(failed("reading", &path, &cause)),
        };
        let header = decoded.and_then(|header| {
            let as_named = header.kind == kind && header.number == number;
            if as_named { Ok(header) } else { Err(Flaw::Kind) }
        });
        match header {
            Ok(header) => Ok(Self { header, file, path }),
            Err(flaw) => Err(corrupt(&path, 0, flaw)),
        }
    }

    pub(super) fn number(&self) -> u32 {
        self.header.number
    }

    pub(super) fn id(&self) -> FileId {
        FileId {
            number: self.header.number,
            is_snapshot: self.header.kind == FileKind::Snapshot,
        }
    }

    pub(super) fn len_bytes(&self) -> Result<u64, StoreError> {
        let metadata = self.file.metadata();
        metadata
            .map(|metadata| metadata.len())
            .map_err(|cause| self.failed("measuring", &cause))
    }

    /// An I/O error of this file that leaves nothing in doubt; or, for what [`is_gone`], the error that [`is_missing`].
    pub(super) fn failed(&self, doing: &str, cause: &io::Error) -> StoreError {
        failed(doing, &self.path, cause)
    }

    /// Damage in this file.
    pub(super) fn corrupt(&self, offset: u64, flaw: Flaw) -> StoreError {
        corrupt(&self.path, offset, flaw)
    }

    /// Reads bytes that are there.
    pub(super) fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; length];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.corrupt(offset, Flaw::Shrunk)),
            Err(cause) => Err(self.failed("reading", &cause)),
        }
    }
}

/// The detail of a [`StoreError::Corrupt`] for a file that something names and that is not there.
const MISSING: &str = "the file is missing";

/// True when there is no such file, or, on NFS, when there is none any more: what another machine has removed cannot be read
/// here either, although it is open. Once the server has been restarted, it has not even heard of the opening, and the
/// descriptor is called a bad one, which no other can be.
pub(super) fn is_gone(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle
    ) || cause.raw_os_error() == Some(rustix::io::Errno::BADF.raw_os_error())
}

/// True for the error about a file that something names and that is not there.
pub(super) fn is_missing(error: &StoreError) -> bool {
    matches!(error, StoreError::Corrupt { detail, .. } if detail == MISSING)
}

/// Reads one file from front to back, many frames at a time.
#[derive(Default)]
pub(super) struct FrameReader {
    buffer: Vec<u8>,
    /// Which bytes of which file the buffer holds.
    number: u32,
    at: u64,
}

/// Why a frame could not be read.
pub(super) enum ReadError {
    /// There is none.
    Flaw(Flaw),
    /// The disk does not say.
    Io(io::Error),
}

impl FrameReader {
    /// Reads the frame that begins at `offset` and ends at `end` or before.
    pub(super) fn read(&mut self, file: &LogFile, offset: u64, end: u64) -> Result<(FrameHead, &[u8]), ReadError> {
        let head = FrameHead::decode(self.bytes(file, offset, FRAME_HEADER_BYTES, end)?).map_err(ReadError::Flaw)?;
        let frame = self.bytes(file, offset, FRAME_HEADER_BYTES + head.length, end)?;
        let payload = &frame[FRAME_HEADER_BYTES..];
        head.verify(file.header.salt, payload).map_err(ReadError::Flaw)?;
        Ok((head, payload))
    }

    fn bytes(&mut self, file: &LogFile, offset: u64, length: usize, end: u64) -> Result<&[u8], ReadError> {
        if end < offset + length as u64 {
            return Err(ReadError::Flaw(Flaw::Short));
        }
        let buffered = self.at..self.at + self.buffer.len() as u64;
        let wanted_end = offset + length as u64;
        if self.number != file.number() || offset < buffered.start || buffered.end < wanted_end {
            let ahead = usize::try_from(end - offset).unwrap_or(usize::MAX).min(READ_BYTES);
            self.buffer.resize(ahead.max(length), 0);
            (self.number, self.at) = (file.number(), offset);
            let read = read_up_to(&file.file, &mut self.buffer, offset);
            self.buffer.truncate(*read.as_ref().unwrap_or(&0));
            read.map_err(ReadError::Io)?;
            if self.buffer.len() < length {
                return Err(ReadError::Flaw(Flaw::Shrunk));
            }
        }
        // Both fit into memory: the range has just been read.
        let from = (offset - self.at) as usize;
        Ok(&self.buffer[from..from + length])
    }

    /// Forgets what was read, because the file may have changed there.
    pub(super) fn forget(&mut self) {
        self.buffer.clear();
    }
}

/// The files of a log, by listing: no name is looked up before it is known to exist.
pub(super) fn list_files(log_dir: &Path) -> io::Result<Vec<FileId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(log_dir)? {
        let name = entry?.file_name();
        let Some((number, extension)) = name.to_str().and_then(|name| name.split_once('.')) else {
            continue;
        };
        let is_snapshot = match extension {
            "segment" => false,
            "snapshot" => true,
            _ => continue,
        };
        if let Ok(number) = number.parse() {
            found.push(FileId { number, is_snapshot });
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes a file of the log. One that is not there is fine.
pub(super) fn remove_file(log_dir: &Path, found: FileId) -> io::Result<()> {
    let kind = if found.is_snapshot {
        FileKind::Snapshot
    } else {
        FileKind::Segment
    };
    match fs::remove_file(log_dir.join(file_name(kind, found.number))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read_at(&mut buffer[count..], offset + count as u64) {
            Ok(0) => break,
            Ok(read) => count += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

fn next_number(log_dir: &Path) -> io::Result<u32> {
    let last = list_files(log_dir)?.last().map_or(0, |found| found.number);
    last.checked_add(1)
        .ok_or_else(|| io::Error::other("all numbers are used up"))
}

pub(super) fn file_name(kind: FileKind, number: u32) -> String {
    match kind {
        FileKind::Segment => format!("{number:010}.segment"),
        FileKind::Snapshot => format!("{number:010}.snapshot"),
    }
}

fn failed(doing: &str, path: &Path, cause: &io::Error) -> StoreError {
    if is_gone(cause) {
        return StoreError::Corrupt {
            place: path.display().to_string(),
            offset: 0,
            detail: MISSING.to_owned(),
        };
    }
    StoreError::NotDone {
        detail: format!("{doing} {}: {cause}", path.display()),
    }
}

fn corrupt(path: &Path, offset: u64, flaw: Flaw) -> StoreError {
    StoreError::Corrupt {
        place: path.display().to_string(),
        offset,
        detail: flaw.detail().to_owned(),
    }
}
