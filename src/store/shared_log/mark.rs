//! The file `commit.lock`: what is locked to write, and the mark up to which the log is durable.
//!
//! ```text
//! 0   "lockd shared log, format 1\n", then zeroes
//! 64  segment u32   68 zeroes u32   72 offset u64   80 crc32 of the 16 bytes before, u32
//! ```
//!
//! The mark is a position in the log: everything before it has been synced. Whoever appends moves it after its
//! `fdatasync` and before it answers, under the exclusive lock. So:
//!
//! - Who finds the mark where it was knows everything that was ever acknowledged, for the price of one short read and
//!   without a lock; and what lies before the mark may be read without a lock, because nobody changes it any more.
//! - Damage before the mark is damage, never a torn tail, even in the very last frame.
//!
//! The mark itself is not synced. After a loss of power it may be older than the log, never newer; recovery looks behind
//! it. One that cannot be read counts as none, and the next visit under the exclusive lock writes it anew.
//!
//! The file is created once and never renamed or replaced.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Step;
use super::engine::Counting;
use super::frame::{FORMAT, read_u32, read_u64};
use super::segment::read_up_to;

/// Its name under the root.
pub(super) const LOCK_FILE: &str = "commit.lock";

const MARK_OFFSET: u64 = 64;
const MARK_BYTES: usize = 20;
/// A reader may meet a writer in the middle of the mark. It tries this often before it asks for the lock.
const READ_ATTEMPTS: usize = 20;

/// A place between two frames. Segments are numbered in their order, so positions are ordered too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Position {
    pub(super) segment: u32,
    pub(super) offset: u64,
}

/// The first line of the file.
pub(super) fn format_line() -> String {
    format!("lockd shared log, format {FORMAT}\n")
}

/// Reads the first line: `None` while the file is empty, that is, until a store has been made here.
pub(super) fn read_format(file: &File) -> io::Result<Option<String>> {
    let mut bytes = [0; MARK_OFFSET as usize];
    let count = read_up_to(file, &mut bytes, 0)?;
    if bytes[..count].iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let line = bytes[..count].split_inclusive(|byte| *byte == b'\n').next();
    Ok(line.map(|line| String::from_utf8_lossy(line).into_owned()))
}

/// Writes the first line and makes it durable.
pub(super) fn write_format(file: &File, counting: &Counting) -> io::Result<()> {
    let mut bytes = [0; MARK_OFFSET as usize];
    let line = format_line();
    bytes[..line.len()].copy_from_slice(line.as_bytes());
    file.write_all_at(&bytes, 0)?;
    counting.sync(file, Step::FormatSync)
}

/// Reads the mark; `None` if there is none that can be read.
pub(super) fn read_mark(file: &File) -> io::Result<Option<Position>> {
    for _ in 0..READ_ATTEMPTS {
        let mut bytes = [0; MARK_BYTES];
        if read_up_to(file, &mut bytes, MARK_OFFSET)? == MARK_BYTES
            && read_u32(&bytes, 16) == crc32fast::hash(&bytes[..16])
        {
            return Ok(Some(Position {
                segment: read_u32(&bytes, 0),
                offset: read_u64(&bytes, 8),
            }));
        }
    }
    Ok(None)
}

/// Moves the mark.
pub(super) fn write_mark(file: &File, position: Position) -> io::Result<()> {
    let mut bytes = [0; MARK_BYTES];
    bytes[0..4].copy_from_slice(&position.segment.to_le_bytes());
    bytes[8..16].copy_from_slice(&position.offset.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..16]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&bytes, MARK_OFFSET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_and_a_damaged_one_counts_as_none() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(read_format(&file).unwrap(), None);
        assert_eq!(read_mark(&file).unwrap(), None);
        write_format(&file, &Counting::new(None)).unwrap();
        assert_eq!(read_format(&file).unwrap(), Some(format_line()));
        assert_eq!(read_mark(&file).unwrap(), None);
        let position = Position {
            segment: 3,
            offset: 1 << 40,
        };
        write_mark(&file, position).unwrap();
        assert_eq!(read_mark(&file).unwrap(), Some(position));
        file.write_all_at(&[7], MARK_OFFSET + 5).unwrap();
        assert_eq!(read_mark(&file).unwrap(), None);
        assert_eq!(read_format(&file).unwrap(), Some(format_line()));
    }
}
