//! Looking through a root without opening it as a store: every frame of every segment and snapshot, every body. Changes
//! nothing, not even what the next start would tidy up.
//!
//! While it looks, it holds the locks of the store in shared mode, so that nothing is written, compacted or removed under
//! its hands. It is made for a root that nobody serves; a daemon that does answers 503 to writes until this is done.
//!
//! A **fault** is what no crash and no loss of power can leave behind: somebody or something has damaged the root, and
//! what was acknowledged may be lost. A **remark** is what a crash may leave and the next start or compaction tidies up:
//! a torn tail behind the mark, a snapshot without its end, a body that was never finished.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::body;
use super::frame::{
    FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileKind, Flaw, FrameHead, FrameKind, holds_a_frame, is_room, read_u32,
};
use super::index::{Changes, Index};
use super::lock::{Mode, TURN_FILE, try_lock};
use super::mark::{LOCK_FILE, Position, format_line, read_format, read_mark};
use super::operation::Operations;
use super::recover::{BODIES_DIR, COMPACT_FILE, LOG_DIR, read_snapshot};
use super::segment::{FileId, FrameReader, LogFile, ReadError, file_name, list_files};
use crate::clock::{Clock, SystemClock};
use crate::store::{BodyId, RecordKey, StoreError};

/// How long to wait for those who hold the locks.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// More faults of one kind are counted and not listed.
const FAULTS_MAX: usize = 100;

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which file or record.
    pub place: String,
    /// Offset in bytes inside it.
    pub offset: u64,
    /// What is wrong there.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {}", self.place, self.offset, self.detail)
    }
}

/// What one part of the check came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, in a word.
    pub name: &'static str,
    /// How much of it there is.
    pub extent: String,
    /// What is wrong, in the order in which it was found.
    pub faults: Vec<Fault>,
    /// What is unfinished but harmless.
    pub remarks: Vec<String>,
}

impl Check {
    /// A check without findings yet.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// Adds a fault, unless there are very many.
    pub fn fault(&mut self, place: impl Into<String>, offset: u64, detail: impl Into<String>) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(Fault {
                place: place.into(),
                offset,
                detail: detail.into(),
            });
        }
    }

    fn store_error(&mut self, error: StoreError) {
        match error {
            StoreError::Corrupt { place, offset, detail } => self.fault(place, offset, detail),
            other => self.fault("", 0, other.to_string()),
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// The parts of the check.
    pub checks: Vec<Check>,
    /// All bodies that are there and whole.
    pub bodies: BTreeSet<BodyId>,
}

/// Why a root could not be looked through.
#[derive(Debug)]
#[non_exhaustive]
pub enum VerifyError {
    /// There is nothing at this path.
    Missing,
    /// Something else has this name.
    NotADirectory,
    /// The directory holds no store.
    NoStore,
    /// Somebody holds a lock of the store.
    Held {
        /// How long it was waited for.
        waited: Duration,
    },
    /// Something could not be read.
    Io {
        /// What.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VerifyError::Missing => f.write_str("the directory does not exist"),
            VerifyError::NotADirectory => f.write_str("it is not a directory"),
            VerifyError::NoStore => f.write_str("it holds no store"),
            VerifyError::Held { waited } => write!(
                f,
                "a process has held a lock of the store for more than {} s; is a daemon running?",
                waited.as_secs()
            ),
            VerifyError::Io { path, cause } => write!(f, "reading {}: {cause}", path.display()),
        }
    }
}

impl std::error::Error for VerifyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            VerifyError::Io { cause, .. } => Some(cause),
            _ => None,
        }
    }
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> VerifyError {
    let path = path.to_owned();
    move |cause| VerifyError::Io { path, cause }
}

/// Looks through a root, and hands out every record that a start would find, if the log is sound.
pub fn verify(root: &Path, mut take: impl FnMut(&RecordKey, &[u8])) -> Result<Findings, VerifyError> {
    let metadata = fs::metadata(root).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => VerifyError::Missing,
        _ => unreadable(root)(cause),
    })?;
    if !metadata.is_dir() {
        return Err(VerifyError::NotADirectory);
    }
    let lock_path = root.join(LOCK_FILE);
    let lock_file = File::open(&lock_path).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => VerifyError::NoStore,
        _ => unreadable(&lock_path)(cause),
    })?;
    // Nobody compacts, then nobody begins to write. Files that are missing lock nobody out.
    let _held = [COMPACT_FILE, TURN_FILE, LOCK_FILE]
        .into_iter()
        .filter_map(|name| File::open(root.join(name)).ok())
        .map(hold)
        .collect::<Result<Vec<File>, VerifyError>>()?;

    let mut format = Check::new("Format");
    let found = read_format(&lock_file).map_err(unreadable(&lock_path))?;
    match found {
        Some(found) if found == format_line() => format.extent = found.trim_end().to_owned(),
        Some(found) => format.fault(
            lock_path.display().to_string(),
            0,
            format!(
                "its format is {:?}, this version knows {:?}",
                found.trim_end(),
                format_line().trim_end()
            ),
        ),
        None => format.fault(
            lock_path.display().to_string(),
            0,
            "the store was never completely made, or its format is lost",
        ),
    }
    if !format.faults.is_empty() {
        return Ok(Findings {
            checks: vec![format],
            ..Findings::default()
        });
    }
    let mark = read_mark(&lock_file).map_err(unreadable(&lock_path))?;
    if mark.is_none() {
        format
            .remarks
            .push("the mark cannot be read; the next start finds the end of the log without it".to_owned());
    }
    let log_dir = root.join(LOG_DIR);
    let files = list_files(&log_dir).map_err(unreadable(&log_dir))?;
    let mut log = LogCheck {
        log_dir: &log_dir,
        // A lost mark hides where a torn tail may begin; what lies before the last whole frame is judged all the same.
        mark: mark.unwrap_or_default(),
        index: Index::default(),
        segments: Check::new("Segments"),
        snapshots: Check::new("Snapshots"),
        frames: 0,
        bytes: 0,
        announced: BTreeSet::new(),
    };
    log.look_through(&files);
    let mut findings = Findings::default();
    let mut unread = Vec::new();
    // With damage in the log these would not be the records that the store should hold.
    let records = log.index.records.iter().filter(|_| log.segments.faults.is_empty());
    for (key, record) in records {
        match log.index.fetch(&record.place).bytes() {
            Ok(bytes) => take(key, &bytes),
            Err(error) => unread.push(error),
        }
    }
    unread.into_iter().for_each(|error| log.segments.store_error(error));
    findings.bodies.extend(log.index.bodies.keys().cloned());
    let bodies = look_at_bodies(&root.join(BODIES_DIR), &mut findings.bodies)?;
    findings.checks = vec![format, log.segments, log.snapshots, bodies];
    Ok(findings)
}

fn hold(file: File) -> Result<File, VerifyError> {
    let clock = SystemClock::new();
    let start = clock.now();
    loop {
        match try_lock(&file, Mode::Shared) {
            Ok(true) => return Ok(file),
            Ok(false) if clock.now().since(start) < LOCK_WAIT => std::thread::sleep(Duration::from_millis(20)),
            Ok(false) => return Err(VerifyError::Held { waited: LOCK_WAIT }),
            Err(cause) => return Err(unreadable(Path::new(LOCK_FILE))(cause)),
        }
    }
}

/// The log on the way through its files.
struct LogCheck<'a> {
    log_dir: &'a Path,
    mark: Position,
    /// What a start would load.
    index: Index,
    segments: Check,
    snapshots: Check,
    frames: u64,
    bytes: u64,
    /// Snapshots that the log speaks of.
    announced: BTreeSet<u32>,
}

/// What a segment leads to.
struct Walked {
    file: Arc<LogFile>,
    /// The number that the frame behind its last one carries.
    sequence: u64,
    /// Where the frames end.
    end: u64,
    sealed_for: Option<u32>,
}

impl LogCheck<'_> {
    fn look_through(&mut self, files: &[FileId]) {
        let numbers = |is_snapshot: bool| {
            let of_kind = files.iter().filter(move |file| file.is_snapshot == is_snapshot);
            of_kind.map(|file| file.number).collect::<Vec<u32>>()
        };
        let (segments, snapshots) = (numbers(false), numbers(true));
        // The newest snapshot that is whole is what a start begins with; without any, the first segment.
        let mut broken: Vec<(u32, StoreError)> = Vec::new();
        let mut start = None;
        for number in snapshots.iter().rev() {
            match self.look_at_snapshot(*number, start.is_none()) {
                Ok(begin) => start = start.or(Some(begin)),
                Err(error) => broken.push((*number, error)),
            }
        }
        let start = match start {
            Some(start) => start,
            None => self.start_of_history(&segments, &mut broken),
        };
        if segments.is_empty() {
            self.segments
                .fault(self.log_dir.display().to_string(), 0, "the log has no segments");
        }
        let mut walked: Vec<Walked> = Vec::new();
        let mut unmade: Vec<(u32, StoreError)> = Vec::new();
        for number in &segments {
            match self.walk(*number, &start) {
                Ok(segment) => walked.push(segment),
                Err(error) if self.was_never_made(*number) => unmade.push((*number, error)),
                Err(error) => self.segments.store_error(error),
            }
        }
        for (number, error) in unmade {
            let is_named = walked.iter().any(|other| other.sealed_for == Some(number));
            if is_named || number == start.position.segment {
                self.segments.store_error(error);
            } else {
                let remark = format!("segment {number} was never completely made");
                self.segments.remarks.push(remark);
            }
        }
        self.follow_chain(&start, &segments, &walked);
        for (number, error) in broken {
            if self.announced.contains(&number) {
                self.snapshots.store_error(error);
            } else {
                let remark = format!("snapshot {number} was never finished; the next compaction removes it");
                self.snapshots.remarks.push(remark);
            }
        }
        self.segments.extent = format!(
            "files: {}, frames: {}, bytes: {}",
            segments.len(),
            self.frames,
            self.bytes
        );
        self.snapshots.extent = format!("files: {}", snapshots.len());
    }

    /// True when not even the header of this segment reached the disk. Its name is there first, and what names it comes last.
    fn was_never_made(&self, number: u32) -> bool {
        let path = self.log_dir.join(segment_name(number));
        let is_short = |metadata: fs::Metadata| metadata.len() <= FILE_HEADER_BYTES as u64;
        fs::metadata(&path).is_ok_and(is_short)
            && fs::read(&path).is_ok_and(|bytes| bytes.len() < FILE_HEADER_BYTES || is_room(&bytes))
    }

    /// Where a log begins that was never compacted. If it was, its snapshots are at fault.
    fn start_of_history(&mut self, segments: &[u32], broken: &mut Vec<(u32, StoreError)>) -> Start {
        let first = segments.first().copied().unwrap_or(0);
        let whole_history = LogFile::open_to_read(self.log_dir, FileKind::Segment, first)
            .map_or(true, |file| file.header.sequence == 1);
        if !whole_history {
            broken
                .drain(..)
                .for_each(|(_, error)| self.snapshots.store_error(error));
        }
        Start {
            position: Position {
                segment: first,
                offset: FILE_HEADER_BYTES as u64,
            },
            sequence: 1,
        }
    }

    fn look_at_snapshot(&mut self, number: u32, load: bool) -> Result<Start, StoreError> {
        let snapshot = Arc::new(LogFile::open_to_read(self.log_dir, FileKind::Snapshot, number)?);
        let mut index = Index::default();
        let mut frames = 0;
        read_snapshot(&snapshot, |payload, payload_offset| {
            frames += 1;
            (index.apply(payload, snapshot.id(), payload_offset, &mut Changes::default())).map_err(|_| Flaw::Payload)
        })?;
        let header = snapshot.header;
        if load {
            index.files.insert(snapshot.id(), snapshot);
            self.index = index;
        }
        Ok(Start {
            position: Position {
                segment: header.start_segment,
                offset: header.start_offset,
            },
            sequence: header.sequence,
        })
    }

    /// Reads a segment from front to back, and applies what lies behind the start.
    fn walk(&mut self, number: u32, start: &Start) -> Result<Walked, StoreError> {
        let file = Arc::new(LogFile::open_to_read(self.log_dir, FileKind::Segment, number)?);
        self.index.files.insert(file.id(), file.clone());
        let length = file.len_bytes()?;
        self.bytes += length;
        let mut reader = FrameReader::default();
        let mut walked = Walked {
            sequence: file.header.sequence,
            file: file.clone(),
            end: FILE_HEADER_BYTES as u64,
            sealed_for: None,
        };
        let mut meets_start = number != start.position.segment;
        while walked.end < length && walked.sealed_for.is_none() {
            let position = Position {
                segment: number,
                offset: walked.end,
            };
            if position == start.position {
                meets_start = walked.sequence == start.sequence;
            }
            let (head, payload) = match reader.read(&file, walked.end, length) {
                Ok(frame) => frame,
                Err(ReadError::Io(cause)) => return Err(file.failed("reading", &cause)),
                Err(ReadError::Flaw(flaw)) => {
                    self.judge_flaw(&file, position, length, flaw)?;
                    break;
                }
            };
            if head.sequence != walked.sequence {
                return Err(file.corrupt(walked.end, Flaw::Sequence));
            }
            let applies = start.position <= position;
            let numbers = self.take_frame(&file, walked.end, head, payload, applies, &mut walked.sealed_for)?;
            walked.sequence += numbers;
            walked.end += (FRAME_HEADER_BYTES + head.length) as u64;
            self.frames += 1;
        }
        if walked.end < length && walked.sealed_for.is_some() && !is_room(&rest_of(&file, walked.end, length)?) {
            return Err(file.corrupt(walked.end, Flaw::Magic));
        }
        let end = Position {
            segment: number,
            offset: walked.end,
        };
        if number == self.mark.segment && end < self.mark {
            return Err(file.corrupt(length, Flaw::Shrunk));
        }
        if end == start.position {
            meets_start = walked.sequence == start.sequence;
        }
        if !meets_start {
            return Err(file.corrupt(start.position.offset, Flaw::Sequence));
        }
        Ok(walked)
    }

    /// Reads what a frame says. Returns how many numbers it takes.
    fn take_frame(
        &mut self,
        file: &LogFile,
        offset: u64,
        head: FrameHead,
        payload: &[u8],
        applies: bool,
        sealed_for: &mut Option<u32>,
    ) -> Result<u64, StoreError> {
        match head.kind {
            FrameKind::Group => {
                let mut numbers = 0;
                for operation in Operations::new(payload) {
                    operation.map_err(|_| file.corrupt(offset, Flaw::Payload))?;
                    numbers += 1;
                }
                if applies {
                    let payload_offset = offset + FRAME_HEADER_BYTES as u64;
                    (self.index)
                        .apply(payload, file.id(), payload_offset, &mut Changes::default())
                        .map_err(|_| file.corrupt(offset, Flaw::Payload))?;
                }
                Ok(numbers)
            }
            FrameKind::Compacted if head.length == 4 => {
                self.announced.insert(read_u32(payload, 0));
                Ok(1)
            }
            FrameKind::Seal if head.length == 4 => {
                *sealed_for = Some(read_u32(payload, 0));
                Ok(1)
            }
            _ => Err(file.corrupt(offset, Flaw::Kind)),
        }
    }

    /// Bytes that are no frame: a torn tail if they lie behind the mark and no frame follows them, else damage.
    fn judge_flaw(&mut self, file: &LogFile, position: Position, length: u64, flaw: Flaw) -> Result<(), StoreError> {
        let rest = rest_of(file, position.offset, length)?;
        if position < self.mark || holds_a_frame(rest.get(1..).unwrap_or_default(), file.header.salt) {
            return Err(file.corrupt(position.offset, flaw));
        }
        let torn_bytes = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if torn_bytes == 0 {
            return Ok(());
        }
        self.segments.remarks.push(format!(
            "segment {} ends with {} bytes of a write that was never finished; the next start cuts them off",
            position.segment, torn_bytes
        ));
        Ok(())
    }

    /// Goes from the start to the end of the log, as a start of the daemon does.
    fn follow_chain(&mut self, start: &Start, segments: &[u32], walked: &[Walked]) {
        let of = |number: u32| walked.iter().find(|segment| segment.file.number() == number);
        let Some(mut current) = of(start.position.segment) else {
            // It is damaged, which has been said, or it is missing.
            if !segments.contains(&start.position.segment) {
                self.missing(start.position.segment);
            }
            return;
        };
        if start.position.offset == FILE_HEADER_BYTES as u64 && current.file.header.sequence != start.sequence {
            let error = current.file.corrupt(0, Flaw::Sequence);
            return self.segments.store_error(error);
        }
        while let Some(number) = current.sealed_for {
            let Some(next) = of(number) else {
                if !segments.contains(&number) {
                    self.missing(number);
                }
                return;
            };
            if next.file.header.sequence != current.sequence || number <= current.file.number() {
                let error = next.file.corrupt(0, Flaw::Sequence);
                return self.segments.store_error(error);
            }
            current = next;
        }
        let last = Position {
            segment: current.file.number(),
            offset: current.end,
        };
        if last < self.mark {
            let error = current.file.corrupt(current.end, Flaw::Short);
            return self.segments.store_error(error);
        }
        for segment in walked.iter().filter(|segment| segment.sealed_for.is_none()) {
            let number = segment.file.number();
            let is_named = walked.iter().any(|other| other.sealed_for == Some(number));
            if number == last.segment {
                continue;
            } else if segment.end == FILE_HEADER_BYTES as u64 && !is_named {
                let remark = format!("segment {number} was made and never used");
                self.segments.remarks.push(remark);
            } else if last.segment < number {
                // There is more log than its last segment leads to.
                let error = current.file.corrupt(current.end, Flaw::Short);
                self.segments.store_error(error);
            } else {
                let error = segment.file.corrupt(segment.end, Flaw::Short);
                self.segments.store_error(error);
            }
        }
    }

    fn missing(&mut self, number: u32) {
        let place = self.log_dir.join(segment_name(number));
        self.segments
            .fault(place.display().to_string(), 0, "the file is missing");
    }
}

fn segment_name(number: u32) -> String {
    file_name(FileKind::Segment, number)
}

fn rest_of(file: &LogFile, offset: u64, length: u64) -> Result<Vec<u8>, StoreError> {
    file.read_at(offset, usize::try_from(length - offset).unwrap_or(usize::MAX))
}

/// Where a start goes on behind a snapshot.
struct Start {
    position: Position,
    sequence: u64,
}

/// Reads every body that lives in a file, and adds those that are whole.
fn look_at_bodies(bodies_dir: &Path, whole: &mut BTreeSet<BodyId>) -> Result<Check, VerifyError> {
    let mut check = Check::new("Bodies");
    let in_log = whole.len();
    let (mut in_files, mut bytes, mut unfinished) = (0, 0, 0);
    let mut names = Vec::new();
    for entry in fs::read_dir(bodies_dir).map_err(unreadable(bodies_dir))? {
        names.push(entry.map_err(unreadable(bodies_dir))?.file_name());
    }
    names.sort();
    for name in names {
        let path = bodies_dir.join(&name);
        let id = name.to_str().filter(|name| body::is_lawful_name(name)).map(BodyId::new);
        let Some(id) = id else {
            check.remarks.push(format!("{} is no body", path.display()));
            continue;
        };
        in_files += 1;
        let reader = match body::open_file(&path, &id) {
            Ok(reader) => reader,
            Err(StoreError::Corrupt { .. }) => {
                unfinished += 1;
                continue;
            }
            Err(error) => {
                check.store_error(error);
                continue;
            }
        };
        match io::copy(&mut { reader }, &mut io::sink()) {
            Ok(length) => {
                bytes += length;
                whole.insert(id);
            }
            Err(cause) => check.fault(path.display().to_string(), 0, cause.to_string()),
        }
    }
    if unfinished != 0 {
        let remark =
            format!("without an end: {unfinished}; uploads that were never finished, unless a record names them");
        check.remarks.push(remark);
    }
    check.extent = format!("in the log: {in_log}, in files: {in_files} ({bytes} bytes)");
    Ok(check)
}
