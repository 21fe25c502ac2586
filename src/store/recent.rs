//! Records as this process has last written them, so that whoever writes one again need not read it first.
//!
//! Where each read is a request over a network, a lock of a file there, or at least a look whether other processes have
//! written, a holder who renews, stages and releases would pay for a read with each write, of a record that nobody but him
//! has any business with. What is kept here is good for one thing only: as the state
//! that a conditional write names. If it is out of date, the store refuses the write, and the caller reads and begins again.
//! So nothing that is answered to anybody may rest on it: a refusal, a reading, a write without a condition.
//!
//! Kept are records that are leased until some time, at most a mebibyte of them in all.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::{RecordKey, Stored};

/// How many bytes of records are kept, names included.
const BYTES_MAX: usize = 1024 * 1024;
/// What an entry takes besides its name and its bytes, roughly.
const ENTRY_BYTES: usize = 200;

/// Remembers records.
#[derive(Default)]
pub struct Recent(Mutex<Generations>);

/// When the young generation has half of the room, the old one goes and the young one becomes old.
#[derive(Default)]
struct Generations {
    young: HashMap<RecordKey, Kept>,
    young_bytes: usize,
    old: HashMap<RecordKey, Kept>,
}

struct Kept {
    stored: Stored,
    until_ms: i64,
}

impl Recent {
    /// Remembers a record as it was just written, until this time (milliseconds of Unix time).
    pub fn remember(&self, key: RecordKey, stored: Stored, until_ms: i64) {
        let mut kept = self.0.lock();
        let bytes = key.as_str().len() + stored.value.len() + ENTRY_BYTES;
        if BYTES_MAX / 2 < bytes {
            kept.forget(&key);
            return;
        }
        if BYTES_MAX / 2 < kept.young_bytes + bytes {
            kept.old = std::mem::take(&mut kept.young);
            kept.young_bytes = 0;
        }
        kept.forget(&key);
        kept.young_bytes += bytes;
        kept.young.insert(key, Kept { stored, until_ms });
    }

    /// Forgets a record: it is not what it was, or may not be.
    pub fn forget(&self, key: &RecordKey) {
        self.0.lock().forget(key);
    }

    /// The record as it was last written here, if that is known and its time is not over.
    pub fn get(&self, key: &RecordKey, now_ms: i64) -> Option<Stored> {
        let kept = self.0.lock();
        let found = kept.young.get(key).or_else(|| kept.old.get(key))?;
        (now_ms < found.until_ms).then(|| found.stored.clone())
    }
}

impl Generations {
    fn forget(&mut self, key: &RecordKey) {
        if let Some(gone) = self.young.remove(key) {
            self.young_bytes -= key.as_str().len() + gone.stored.value.len() + ENTRY_BYTES;
        }
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Etag;
    use super::*;

    fn stored(etag: &str, bytes: usize) -> Stored {
        Stored {
            value: vec![b'x'; bytes].into(),
            etag: Etag::new(etag),
        }
    }

    fn etag_of(recent: &Recent, key: &str, now_ms: i64) -> Option<String> {
        let found = recent.get(&RecordKey::new(key), now_ms);
        found.map(|stored| stored.etag.as_str().to_owned())
    }

    #[test]
    fn the_last_state_is_remembered_until_its_time_is_over() {
        let recent = Recent::default();
        recent.remember(RecordKey::new("k"), stored("one", 10), 1_000);
        recent.remember(RecordKey::new("k"), stored("two", 10), 2_000);
        assert_eq!(etag_of(&recent, "k", 1_999).as_deref(), Some("two"));
        assert_eq!(etag_of(&recent, "k", 2_000), None);
        recent.forget(&RecordKey::new("k"));
        assert_eq!(etag_of(&recent, "k", 0), None);
        assert_eq!(etag_of(&recent, "other", 0), None);
    }

    #[test]
    fn however_much_is_written_no_more_is_kept_than_there_is_room_for() {
        let recent = Recent::default();
        for number in 0..10_000 {
            recent.remember(RecordKey::new(format!("k-{number}")), stored("e", 1_000), 1_000);
            // The latest is always there, and so is the one before.
            assert!(etag_of(&recent, &format!("k-{number}"), 0).is_some());
            assert!(number == 0 || etag_of(&recent, &format!("k-{}", number - 1), 0).is_some());
            let kept = recent.0.lock();
            assert!(kept.young_bytes <= BYTES_MAX / 2);
            assert!((kept.young.len() + kept.old.len()) * 1_000 <= BYTES_MAX);
        }
        recent.remember(RecordKey::new("large"), stored("e", BYTES_MAX), 1_000);
        assert_eq!(etag_of(&recent, "large", 0), None);
        (0..10_000).for_each(|number| recent.forget(&RecordKey::new(format!("k-{number}"))));
        let kept = recent.0.lock();
        assert_eq!((kept.young_bytes, kept.young.len(), kept.old.len()), (0, 0, 0));
    }
}
