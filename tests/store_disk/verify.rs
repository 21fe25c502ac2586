//! Looking through a root: what is sound is called sound whatever crash it comes from, what is damaged is found and
//! located, and nothing is changed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockd::store::shared_log::Options;
use lockd::store::shared_log::verify::{Fault, VerifyError, verify};
use lockd::store::{Batch, BodyId, Store};

use super::tools::*;

/// A root with several segments and a snapshot, records of all sizes, and bodies in both places.
fn filled_root(root: &Path) {
    let options = Options {
        segment_bytes_max: 1_500,
        ..Options::default()
    };
    let store = open_with(root, options);
    for n in 0..12 {
        put(&store, &format!("record/{n}"), &[n; 100]);
        put(&store, &format!("large/{n}"), &[n; 400]);
    }
    assert!(store.compact().unwrap());
    let bodies = [("inside", 1_000), ("outside", 100_000), ("dropped", 10)];
    store
        .write(Batch {
            bodies: (bodies.iter())
                .map(|(name, length)| (BodyId::new(*name), Arc::from(vec![b'o'; *length])))
                .collect(),
            ..Batch::default()
        })
        .unwrap();
    drop_body(&store, &BodyId::new("dropped"));
    for n in 0..6 {
        put(&store, &format!("record/{n}"), &[n + 1; 100]);
    }
}

fn faults(root: &Path) -> Vec<Fault> {
    let findings = verify(root, |_, _| ()).unwrap();
    findings.checks.into_iter().flat_map(|check| check.faults).collect()
}

fn remarks(root: &Path) -> Vec<String> {
    let findings = verify(root, |_, _| ()).unwrap();
    findings.checks.into_iter().flat_map(|check| check.remarks).collect()
}

/// The number of a file of the log.
fn number_of(path: &Path) -> u32 {
    path.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

/// Where the log goes on behind the snapshot: segment and offset.
fn start_of(root: &Path) -> (u32, usize) {
    let snapshot = fs::read(&log_files(root, "snapshot")[0]).unwrap();
    let offset = u64::from_le_bytes(snapshot[24..32].try_into().unwrap());
    (
        u32::from_le_bytes(snapshot[20..24].try_into().unwrap()),
        usize::try_from(offset).unwrap(),
    )
}

/// Everything under a root, to see that nothing has changed.
fn files_of(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_of(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

#[test]
fn a_sound_root_has_no_faults_and_its_records_and_bodies_are_all_found() {
    let (_dir, root) = new_root();
    filled_root(&root);
    let before = files_of(&root);
    let mut found = BTreeMap::new();
    let findings = verify(&root, |key, value| {
        found.insert(key.as_str().to_owned(), value.to_vec());
    })
    .unwrap();
    assert_eq!(faults(&root), []);
    assert_eq!(remarks(&root), [] as [String; 0]);
    assert_eq!(files_of(&root), before);
    assert!(findings.checks.iter().all(|check| !check.extent.is_empty()));
    let bodies: Vec<&str> = findings.bodies.iter().map(BodyId::as_str).collect();
    assert_eq!(bodies, ["inside", "outside"]);
    let expected: BTreeMap<String, Vec<u8>> = (contents(&open(&root)).into_iter())
        .map(|(name, (value, _))| (name, value))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn a_flipped_bit_anywhere_in_the_log_is_a_fault_of_its_frame_and_opening_agrees() {
    let (dir, root) = new_root();
    filled_root(&root);
    let bad_root = dir.path().join("bad");
    copy_root(&root, &bad_root);
    let mut rng = fastrand::Rng::with_seed(17);
    let snapshots = log_files(&bad_root, "snapshot");
    assert_eq!(snapshots.len(), 1);
    let segments = log_files(&bad_root, "segment");
    let start = start_of(&root);
    assert!(number_of(&segments[0]) < start.0 && 2 < segments.len());
    for path in snapshots.iter().chain(&segments) {
        let good = fs::read(path).unwrap();
        let offsets = frame_offsets(&good);
        for at in (0..*offsets.last().unwrap()).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 1 << rng.u32(..8);
            fs::write(path, &bad).unwrap();
            let frame = *offsets.iter().rfind(|offset| **offset <= at).unwrap_or(&0);
            let found = faults(&bad_root);
            let located = |fault: &Fault| {
                let offset = usize::try_from(fault.offset).unwrap();
                fault.place == path.display().to_string() && (offset == frame || offset == good.len())
            };
            assert!(
                found.first().is_some_and(located),
                "byte {at} of {}: {found:?}",
                path.display()
            );
            // A store opens without what lies before its snapshot, or without the snapshot as long as that is there.
            let is_header = at < 64 && start.0 <= number_of(path);
            let is_needed = segments.contains(path) && (is_header || start <= (number_of(path), frame));
            assert_eq!(
                try_open(&bad_root).is_err(),
                is_needed,
                "byte {at} of {}",
                path.display()
            );
        }
        fs::write(path, &good).unwrap();
    }
    assert_eq!(faults(&bad_root), []);
}

#[test]
fn a_missing_or_shortened_file_of_the_log_is_a_fault() {
    let (dir, root) = new_root();
    filled_root(&root);
    for path in log_files(&root, "segment").into_iter().skip(1) {
        let bad_root = dir.path().join("bad");
        copy_root(&root, &bad_root);
        let bad_path = bad_root.join("log").join(path.file_name().unwrap());
        let bytes = fs::read(&path).unwrap();
        let frames = frame_offsets(&bytes);
        fs::write(&bad_path, &bytes[..frames[frames.len() - 1] - 5]).unwrap();
        let found = faults(&bad_root);
        assert_eq!(found[0].place, bad_path.display().to_string(), "{found:?}");
        assert_eq!(found[0].offset, frames[frames.len() - 2] as u64, "{found:?}");

        // Cut between two frames, all that is left is whole.
        fs::write(&bad_path, &bytes[..frames[frames.len() - 2]]).unwrap();
        assert_eq!(faults(&bad_root).len(), 1, "{}", path.display());

        fs::remove_file(&bad_path).unwrap();
        let is_needed = start_of(&root).0 <= number_of(&path);
        assert_eq!(!faults(&bad_root).is_empty(), is_needed, "{}", path.display());
        assert_eq!(try_open(&bad_root).is_err(), is_needed);
        fs::remove_dir_all(&bad_root).unwrap();
    }
}

#[test]
fn a_snapshot_that_is_missed_is_a_fault_also_when_nothing_speaks_of_it() {
    let (_dir, root) = new_root();
    filled_root(&root);
    let snapshot = log_files(&root, "snapshot").remove(0);
    // As compaction leaves it after the grace.
    let first_needed = start_of(&root).0;
    for segment in log_files(&root, "segment") {
        if number_of(&segment) < first_needed {
            fs::remove_file(segment).unwrap();
        }
    }
    assert_eq!(faults(&root), []);
    fs::write(&snapshot, &fs::read(&snapshot).unwrap()[..100]).unwrap();
    let found = faults(&root);
    assert!(
        found.iter().any(|fault| fault.place == snapshot.display().to_string()),
        "{found:?}"
    );
    fs::remove_file(&snapshot).unwrap();
    assert!(!faults(&root).is_empty());
}

#[test]
fn what_a_crash_leaves_is_a_remark_and_stays_as_it_is() {
    let (_dir, root) = new_root();
    filled_root(&root);
    let last = log_files(&root, "segment").pop().unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(&last).unwrap();
    let end = frame_offsets(&fs::read(&last).unwrap()).pop().unwrap();
    file.set_len(end as u64).unwrap();
    file.write_all(b"lkfr and the rest of it was never written").unwrap();
    let snapshot = log_files(&root, "snapshot").remove(0);
    let unfinished = fs::read(&snapshot).unwrap();
    fs::write(root.join("log/0000000099.snapshot"), &unfinished[..64]).unwrap();
    fs::write(root.join("bodies/s-unfinished"), b"half").unwrap();
    let before = files_of(&root);
    assert_eq!(faults(&root), []);
    let remarks = remarks(&root);
    assert_eq!(remarks.len(), 3, "{remarks:?}");
    assert!(remarks[0].contains("41 bytes of a write"), "{remarks:?}");
    assert_eq!(files_of(&root), before);
    open(&root);

    // The same garbage with a frame behind it is damage.
    file.write_all(b"lkfr and more").unwrap();
    let whole = fs::read(&last).unwrap();
    let frames = frame_offsets(&before[&last][..before[&last].len() - 41]);
    let frame = &whole[frames[0]..frames[1]];
    file.write_all(frame).unwrap();
    assert!(!faults(&root).is_empty());
}

/// Killed just after it was made; or the power was lost before its header had reached the disk.
#[test]
fn a_segment_that_was_never_completely_made_is_a_remark_unless_the_log_goes_on_there() {
    for bytes in [&[][..], b"lk", &[0; 7], &[0; 40]] {
        let (_dir, root) = new_root();
        filled_root(&root);
        let last = number_of(&log_files(&root, "segment").pop().unwrap());
        let unmade = root.join(format!("log/{:010}.segment", last + 1));
        fs::write(&unmade, bytes).unwrap();
        assert_eq!(faults(&root), [], "{bytes:?}");
        let remarks = remarks(&root);
        assert_eq!(remarks, [format!("segment {} was never completely made", last + 1)]);
        // A start does not stumble over it, and the log goes on behind it.
        let options = Options {
            segment_bytes_max: 1_500,
            ..Options::default()
        };
        let store = open_with(&root, options);
        for n in 0..20 {
            put(&store, &format!("more/{n}"), &[1; 500]);
        }
        drop(store);
        assert!(number_of(&log_files(&root, "segment").pop().unwrap()) > last + 1);
        assert_eq!(faults(&root), [], "{bytes:?}");
        // One that the log names is another matter.
        let named = log_files(&root, "segment").pop().unwrap();
        fs::write(&named, bytes).unwrap();
        assert_ne!(faults(&root), [], "{bytes:?}");
    }
}

#[test]
fn a_damaged_body_is_a_fault_of_its_file() {
    let (_dir, root) = new_root();
    filled_root(&root);
    let path = root.join("bodies/outside");
    let mut bytes = fs::read(&path).unwrap();
    bytes[50_000] ^= 4;
    fs::write(&path, &bytes).unwrap();
    let found = faults(&root);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].place, path.display().to_string());
    assert!(
        !verify(&root, |_, _| ())
            .unwrap()
            .bodies
            .contains(&BodyId::new("outside"))
    );
}

#[test]
fn a_format_line_that_is_not_ours_is_a_fault_and_a_lost_mark_is_not() {
    let (_dir, root) = new_root();
    filled_root(&root);
    let path = root.join("commit.lock");
    let good = fs::read(&path).unwrap();
    let mut other = good.clone();
    other[25] = b'9';
    fs::write(&path, &other).unwrap();
    let found = faults(&root);
    assert_eq!((found.len(), found[0].offset), (1, 0));
    assert!(found[0].detail.contains("format 9"), "{found:?}");

    let mut lost = good;
    lost[64..].fill(0);
    fs::write(&path, &lost).unwrap();
    assert_eq!(faults(&root), []);
    assert!(remarks(&root)[0].contains("mark"));
}

#[test]
fn what_is_no_store_is_said() {
    let (dir, root) = new_root();
    assert!(matches!(verify(&root, |_, _| ()), Err(VerifyError::Missing)));
    assert!(matches!(verify(dir.path(), |_, _| ()), Err(VerifyError::NoStore)));
    fs::write(&root, b"").unwrap();
    assert!(matches!(verify(&root, |_, _| ()), Err(VerifyError::NotADirectory)));
}
