//! The bytes of a log file: one header, then frames. Pure: nothing here touches a disk.
//!
//! Segments and snapshots look alike. All numbers are little-endian.
//!
//! ```text
//! file   +------------------------- 64 bytes --------------------------+--------+--------+---
//!        | header                                                      | frame  | frame  | ...
//!        +-------------------------------------------------------------+--------+--------+---
//!
//! header  0 "lockdlog"   8 format u32   12 kind u32      16 number u32   20 start segment u32
//!        24 start offset u64            32 sequence u64  40 salt u64     48 zeroes
//!        60 crc32 of the 60 bytes before
//!
//! behind the last frame of a segment that is not sealed there may be zeroes: room that was made ahead. What is written
//! there changes no length, so a sync need not wait for the journal of the file system.
//!
//! frame   0 "lkfr"       4 kind u32      8 length u32    12 crc32 u32    16 sequence u64
//!        24 payload, `length` bytes
//! ```
//!
//! - *kind* of a file: 1 segment, 2 snapshot. *number*: the one in the file's name.
//! - *start segment* and *start offset* (snapshots): where in the log to go on after the snapshot is loaded.
//! - *sequence* of a header: the one that the first frame must carry (segment), or the one that the frame at the start
//!   position must carry (snapshot).
//! - *salt*: random, goes into the checksum of every frame. A frame of another file in a reused block of the disk, or one
//!   that a client has smuggled into a value, is no frame here.
//! - *crc32* of a frame: over salt, kind, length, sequence and payload.
//! - *sequence* of a frame: in a segment the first number that was unused before it; a group takes one number for each
//!   of its operations, any other frame takes one. Etags are such numbers. In a snapshot frames are counted from 1.

/// Bytes of a file's header.
pub(super) const FILE_HEADER_BYTES: usize = 64;
/// Bytes of a frame before its payload.
pub(super) const FRAME_HEADER_BYTES: usize = 24;
/// No payload is longer: one batch of the largest size together with a full group.
pub(super) const PAYLOAD_BYTES_MAX: usize = 64 * 1024 * 1024;

const FILE_MAGIC: [u8; 8] = *b"lockdlog";
pub(super) const FRAME_MAGIC: [u8; 4] = *b"lkfr";
/// The only format so far.
pub(super) const FORMAT: u32 = 1;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Segment,
    Snapshot,
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// Operations of a group of batches.
    Group,
    /// The last frame of a segment. Payload: number of the next segment, u32.
    Seal,
    /// Says that a snapshot exists. Payload: its number, u32.
    Compacted,
    /// Operations that make up a part of a snapshot.
    Entries,
    /// The last frame of a snapshot. Payload: number of operations in the snapshot, u64.
    End,
    /// What only a newer version can have written, if its checksum is right.
    Unknown(u32),
}

/// The header of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) kind: FileKind,
    pub(super) number: u32,
    pub(super) start_segment: u32,
    pub(super) start_offset: u64,
    pub(super) sequence: u64,
    pub(super) salt: u64,
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) kind: FrameKind,
    pub(super) length: usize,
    pub(super) sequence: u64,
    crc: u32,
}

/// What is wrong with bytes that should be a frame or a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    Short,
    Magic,
    Format,
    Kind,
    Length,
    Checksum,
    Sequence,
    Payload,
    Shrunk,
}

impl Flaw {
    /// In words, for an error.
    pub(super) fn detail(self) -> &'static str {
        match self {
            Flaw::Short => "the file ends inside a frame",
            Flaw::Magic => "no frame begins here",
            Flaw::Format => "a format that this version does not know",
            Flaw::Kind => "a kind that this version does not know",
            Flaw::Length => "a length beyond the limit",
            Flaw::Checksum => "the checksum does not match",
            Flaw::Sequence => "the frame does not follow the one before it",
            Flaw::Payload => "the payload cannot be read",
            Flaw::Shrunk => "the file is shorter than what was acknowledged",
        }
    }
}

impl FileHeader {
    pub(super) fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        let kind: u32 = match self.kind {
            FileKind::Segment => 1,
            FileKind::Snapshot => 2,
        };
        bytes[0..8].copy_from_slice(&FILE_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&kind.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.number.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.start_segment.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.start_offset.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Flaw> {
        if bytes.len() < FILE_HEADER_BYTES {
            return Err(Flaw::Short);
        }
        if bytes[0..8] != FILE_MAGIC {
            return Err(Flaw::Magic);
        }
        if read_u32(bytes, 60) != crc32fast::hash(&bytes[..60]) {
            return Err(Flaw::Checksum);
        }
        if read_u32(bytes, 8) != FORMAT {
            return Err(Flaw::Format);
        }
        let kind = match read_u32(bytes, 12) {
            1 => FileKind::Segment,
            2 => FileKind::Snapshot,
            _ => return Err(Flaw::Kind),
        };
        Ok(Self {
            kind,
            number: read_u32(bytes, 16),
            start_segment: read_u32(bytes, 20),
            start_offset: read_u64(bytes, 24),
            sequence: read_u64(bytes, 32),
            salt: read_u64(bytes, 40),
        })
    }
}

impl FrameHead {
    /// Reads the head of a frame; its payload is not looked at.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Flaw> {
        if bytes.len() < FRAME_HEADER_BYTES {
            return Err(Flaw::Short);
        }
        if bytes[0..4] != FRAME_MAGIC {
            return Err(Flaw::Magic);
        }
        let kind = match read_u32(bytes, 4) {
            1 => FrameKind::Group,
            2 => FrameKind::Seal,
            3 => FrameKind::Compacted,
            4 => FrameKind::Entries,
            5 => FrameKind::End,
            other => FrameKind::Unknown(other),
        };
        let length = read_u32(bytes, 8) as usize;
        if PAYLOAD_BYTES_MAX < length {
            return Err(Flaw::Length);
        }
        Ok(Self {
            kind,
            length,
            sequence: read_u64(bytes, 16),
            crc: read_u32(bytes, 12),
        })
    }

    /// Checks a payload against the head, in a file of this salt.
    pub(super) fn verify(&self, salt: u64, payload: &[u8]) -> Result<(), Flaw> {
        let crc = checksum(salt, kind_number(self.kind), self.sequence, payload);
        if payload.len() == self.length && crc == self.crc {
            Ok(())
        } else {
            Err(Flaw::Checksum)
        }
    }
}

/// A frame that is being filled: space for the head, then the payload grows behind it.
pub(super) fn begin_frame() -> Vec<u8> {
    vec![0; FRAME_HEADER_BYTES]
}

/// Writes the head in front of the payload that has been added since [`begin_frame`].
pub(super) fn finish_frame(frame: &mut [u8], kind: FrameKind, sequence: u64, salt: u64) {
    let (head, payload) = frame.split_at_mut(FRAME_HEADER_BYTES);
    let kind = kind_number(kind);
    // Callers keep payloads below PAYLOAD_BYTES_MAX, which fits.
    let length = payload.len() as u32;
    head[0..4].copy_from_slice(&FRAME_MAGIC);
    head[4..8].copy_from_slice(&kind.to_le_bytes());
    head[8..12].copy_from_slice(&length.to_le_bytes());
    head[12..16].copy_from_slice(&checksum(salt, kind, sequence, payload).to_le_bytes());
    head[16..24].copy_from_slice(&sequence.to_le_bytes());
}

/// A whole frame with this payload.
pub(super) fn encode_frame(kind: FrameKind, sequence: u64, salt: u64, payload: &[u8]) -> Vec<u8> {
    let mut frame = begin_frame();
    frame.extend_from_slice(payload);
    finish_frame(&mut frame, kind, sequence, salt);
    frame
}

/// True for what lies behind the last frame of a segment that has room: nothing yet.
pub(super) fn is_room(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// True if a valid frame begins anywhere in these bytes.
pub(super) fn holds_a_frame(bytes: &[u8], salt: u64) -> bool {
    let mut from = 0;
    while let Some(found) = bytes[from..]
        .windows(FRAME_MAGIC.len())
        .position(|window| window == FRAME_MAGIC)
    {
        let rest = &bytes[from + found..];
        if let Ok(head) = FrameHead::decode(rest)
            && let Some(payload) = rest.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + head.length)
            && head.verify(salt, payload).is_ok()
        {
            return true;
        }
        from += found + 1;
    }
    false
}

fn kind_number(kind: FrameKind) -> u32 {
    match kind {
        FrameKind::Group => 1,
        FrameKind::Seal => 2,
        FrameKind::Compacted => 3,
        FrameKind::Entries => 4,
        FrameKind::End => 5,
        FrameKind::Unknown(number) => number,
    }
}

fn checksum(salt: u64, kind: u32, sequence: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&kind.to_le_bytes());
    hasher.update(&(payload.len() as u32).to_le_bytes());
    hasher.update(&sequence.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

pub(super) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u64 = 0x1234_5678_9abc_def0;

    #[test]
    fn a_header_comes_back_and_any_flipped_bit_shows() {
        let header = FileHeader {
            kind: FileKind::Snapshot,
            number: 7,
            start_segment: 5,
            start_offset: 1 << 40,
            sequence: 99,
            salt: SALT,
        };
        let bytes = header.encode();
        assert_eq!(FileHeader::decode(&bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(FileHeader::decode(&bad).is_err(), "bit {bit}");
        }
        assert_eq!(FileHeader::decode(&bytes[..63]), Err(Flaw::Short));
    }

    #[test]
    fn a_frame_comes_back_and_any_flipped_bit_or_missing_byte_shows() {
        let bytes = encode_frame(FrameKind::Group, 42, SALT, b"some payload");
        let whole = |bytes: &[u8]| {
            let head = FrameHead::decode(bytes)?;
            let payload = bytes.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + head.length);
            head.verify(SALT, payload.ok_or(Flaw::Short)?).map(|()| head)
        };
        let head = whole(&bytes).unwrap();
        assert_eq!((head.kind, head.sequence, head.length), (FrameKind::Group, 42, 12));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(whole(&bad).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(whole(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn frames_are_found_behind_garbage_but_only_those_of_this_file() {
        let mut bytes = b"garbage lkfr and more of lkf".to_vec();
        assert!(!holds_a_frame(&bytes, SALT));
        bytes.extend(encode_frame(FrameKind::Group, 42, SALT, b"payload"));
        assert!(holds_a_frame(&bytes, SALT));
        assert!(!holds_a_frame(&bytes, SALT + 1), "a frame of another file");
        bytes.pop();
        assert!(!holds_a_frame(&bytes, SALT), "a torn frame");
    }
}
