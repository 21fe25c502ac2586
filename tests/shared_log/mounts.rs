//! What only a network file system can get wrong: one machine's view of what another has done meanwhile.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use lockd::store::reopened::ReopenedStore;
use lockd::store::shared_log::{Options, SharedLogStore, Step, StepHook};
use lockd::store::{Batch, BodyId, Change, Precondition, RecordKey, RecordWrite, Store, StoreError, Written};
use lockd::testing::{exclusive, shared};

use crate::DEMANDS;
use crate::root::TestDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than what an index keeps in memory, so that it is read from the log each time.
const VALUE_BYTES: usize = 600;

/// An engine on each mount, on the only one twice if there is but one.
fn on_both_mounts(dir: &TestDir, options: &Options) -> [SharedLogStore; 2] {
    let last = dir.mounts.last().unwrap();
    [&dir.mounts[0], last].map(|mount| {
        let root = mount.join("place");
        SharedLogStore::open_as_another_process(&root, options.clone()).unwrap()
    })
}

/// Small segments, and files that go soon after they have been superseded.
fn hasty() -> Options {
    Options {
        segment_bytes_max: 4_000,
        compact_bytes_min: u64::MAX,
        delete_grace: Duration::from_millis(200),
        ..Options::default()
    }
}

fn put(store: &dyn Store, name: &str, value: Vec<u8>) {
    assert!(matches!(try_put(store, name, value), Ok(Written::Done(_))));
}

fn try_put(store: &dyn Store, name: &str, value: Vec<u8>) -> Result<Written, StoreError> {
    let write = RecordWrite {
        key: RecordKey::new(name),
        precondition: Precondition::Any,
        change: Change::Put(Arc::from(value)),
    };
    let batch = Batch {
        records: vec![write],
        ..Batch::default()
    };
    store.write(batch)
}

fn read(store: &dyn Store, name: &str) -> Option<Vec<u8>> {
    let stored = store.read(&RecordKey::new(name)).unwrap()?;
    Some(stored.value.to_vec())
}

fn segments(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut segments: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|kind| kind == "segment"))
        .collect();
    segments.sort();
    segments
}

/// Does things to the network and to the NFS server: a shell that was started before any file was opened. A process that is
/// started later would close its copies of them, and closing a file on NFS waits until all that was written is at the server.
struct Disturber {
    shell: Child,
    orders: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Disturber {
    /// None, said aloud, where that cannot be done.
    fn start() -> Option<Self> {
        if env::var_os("LOCKD_NFS_MACHINE").is_none() {
            eprintln!("skipped: the network and the server cannot be disturbed here (see ci/nfs-machine)");
            return None;
        }
        let mut shell = Command::new("sh")
            .args(["-c", "while read -r order; do $order; echo $?; done"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Some(Self {
            orders: shell.stdin.take().unwrap(),
            reports: BufReader::new(shell.stdout.take().unwrap()),
            shell,
        })
    }

    fn run(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        let mut report = String::new();
        self.reports.read_line(&mut report).unwrap();
        assert_eq!(report, "0\n", "{order}");
    }
}

impl Drop for Disturber {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Writes, compacts, and waits until the first segment that was there is gone.
fn write_and_compact(store: &SharedLogStore, root: &Path) {
    let first = segments(root).remove(0);
    for n in 0..20 {
        put(store, &format!("k/{n}"), vec![b'n'; VALUE_BYTES]);
    }
    assert!(store.compact().unwrap());
    wait_until("the old segments are removed", || !segments(root).contains(&first));
}

/// A machine that heard nothing for longer than the grace of compaction finds the very file gone that it was reading. A
/// descriptor of a file that another machine has removed reads nothing any more, at the latest after the server has been
/// restarted.
#[test]
fn who_sleeps_through_a_compaction_goes_on_in_the_snapshot() {
    let _turn = shared();
    let mut disturber = Disturber::start();
    let dir = TestDir::create(DEMANDS, "sleeper");
    let root = dir.mounts[0].join("place");
    {
        let [busy, sleeper] = on_both_mounts(&dir, &hasty());
        put(&busy, "old", vec![b'o'; VALUE_BYTES]);
        assert_eq!(read(&sleeper, "old"), Some(vec![b'o'; VALUE_BYTES]));
        write_and_compact(&busy, &root);
        // After this the server knows nothing of files that are removed and still open.
        if let Some(disturber) = &mut disturber {
            disturber.run("nfs-restart");
        }
        assert_eq!(read(&sleeper, "old"), Some(vec![b'o'; VALUE_BYTES]));
        assert_eq!(read(&sleeper, "k/19"), Some(vec![b'n'; VALUE_BYTES]));
        put(&sleeper, "awake", b"yes".to_vec());
        assert_eq!(read(&busy, "awake"), Some(b"yes".to_vec()));
        assert!(sleeper.healthy());
    }
    dir.remove();
}

/// Here the sleeper has read far enough to be beyond what goes, but what it has yet to fetch is there.
#[test]
fn records_of_removed_segments_are_found_in_the_snapshot() {
    let _turn = shared();
    let mut disturber = Disturber::start();
    let dir = TestDir::create(DEMANDS, "removed");
    let root = dir.mounts[0].join("place");
    {
        let [busy, sleeper] = on_both_mounts(&dir, &hasty());
        put(&busy, "old", vec![b'o'; VALUE_BYTES]);
        for n in 0..20 {
            put(&busy, &format!("k/{n}"), vec![b'n'; VALUE_BYTES]);
        }
        assert_eq!(read(&sleeper, "k/19"), Some(vec![b'n'; VALUE_BYTES]));
        write_and_compact(&busy, &root);
        // After this the server knows nothing of files that are removed and still open.
        if let Some(disturber) = &mut disturber {
            disturber.run("nfs-restart");
        }
        for round in 0..3 {
            assert_eq!(read(&sleeper, "old"), Some(vec![b'o'; VALUE_BYTES]), "round {round}");
        }
        assert!(sleeper.healthy());
    }
    dir.remove();
}

/// A machine is cut off in the middle of a write: its bytes are in its memory, not yet at the server, and it holds the lock of
/// the store. When the server has given it up, another machine takes the lock and writes at the same place. Then the first one
/// comes back, and what it still has in memory must not get over what was acknowledged meanwhile.
#[test]
fn what_a_machine_has_left_to_write_after_it_was_given_up_harms_nobody() {
    let Some(disturber) = Disturber::start() else { return };
    let dir = TestDir::create(DEMANDS, "cut-off");
    {
        let (answer, other) = put_and_cut_off_at(Step::Append, &dir, disturber, |other| {
            wait_until("the lock is taken over", || {
                try_put(other, "meanwhile", vec![b'm'; VALUE_BYTES]).is_ok()
            });
            for n in 0..5 {
                put(other, &format!("k/{n}"), vec![b'n'; VALUE_BYTES]);
            }
        });
        assert!(answer.is_err(), "its lock was gone: {answer:?}");
        assert_eq!(read(&other, "meanwhile"), Some(vec![b'm'; VALUE_BYTES]));
        put(&other, "after", vec![b'a'; VALUE_BYTES]);
    }
    // Who opens the root now, by either mount, finds all that was acknowledged.
    for mount in &dir.mounts {
        let store = SharedLogStore::open_as_another_process(&mount.join("place"), Options::default()).unwrap();
        for (name, byte) in [
            ("before", b'b'),
            ("meanwhile", b'm'),
            ("k/0", b'n'),
            ("k/4", b'n'),
            ("after", b'a'),
        ] {
            assert_eq!(read(&store, name), Some(vec![byte; VALUE_BYTES]), "{name}");
        }
        put(&store, "again", b"yes".to_vec());
    }
    dir.remove();
}

/// Here the write is at the server already, and what it left to say is that it is there. If that comes too late, the machine
/// must not call done what nobody else finds.
#[test]
fn what_a_machine_calls_done_after_it_was_given_up_is_found_by_the_others() {
    let Some(disturber) = Disturber::start() else { return };
    let dir = TestDir::create(DEMANDS, "cut-off");
    {
        let (answer, other) = put_and_cut_off_at(Step::Mark, &dir, disturber, |other| {
            wait_until("the lock is taken over", || {
                other.read(&RecordKey::new("before")).is_ok()
            });
        });
        eprintln!("the late write: {answer:?}");
        if answer.is_ok() {
            assert_eq!(read(&other, "late"), Some(vec![b'l'; VALUE_BYTES]));
        }
        put(&other, "after", vec![b'a'; VALUE_BYTES]);
        // It was at the server, so by now it is a part of the log.
        assert_eq!(read(&other, "late"), Some(vec![b'l'; VALUE_BYTES]));
    }
    dir.remove();
}

/// The first machine is off the network until this is dropped, also by a test that fails: a write to a server that does not
/// answer waits for ever.
struct Cut(Disturber);

impl Cut {
    fn off(mut disturber: Disturber) -> Self {
        disturber.run("nfs-cut a");
        Self(disturber)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.0.run("nfs-heal a");
    }
}

/// Puts a record on the first machine, which is cut off at this step, and comes back when the other one has done something
/// meanwhile. Returns what became of the put, and the other one's store, once the first machine serves again.
fn put_and_cut_off_at(
    step: Step,
    dir: &TestDir,
    disturber: Disturber,
    meanwhile: impl FnOnce(&SharedLogStore),
) -> (Result<Written, StoreError>, SharedLogStore) {
    // Nobody else's writes should be cut off too.
    let _turn = exclusive();
    let (in_the_middle, reached) = bounded(1);
    let (go_on, released) = bounded::<()>(1);
    let armed = Arc::new(AtomicBool::new(false));
    let is_armed = armed.clone();
    let hook: StepHook = Arc::new(move |now, _| {
        if now == step && is_armed.swap(false, Ordering::SeqCst) {
            in_the_middle.send(()).unwrap();
            released.recv().unwrap();
        }
        Ok(())
    });
    let options = Options {
        step_hook: Some(hook),
        ..Options::default()
    };
    let place = dir.mounts[0].join("place");
    let first = SharedLogStore::open_as_another_process(&place, options).unwrap();
    let open_again = move || match SharedLogStore::open_as_another_process(&place, Options::default()) {
        Ok(store) => Ok(Arc::new(store) as Arc<dyn Store>),
        Err(cause) => Err(cause.to_string()),
    };
    let cut_off = ReopenedStore::new(Arc::new(first), Box::new(open_again), lockd::logging::off());
    let root = dir.mounts[1].join("place");
    let other = SharedLogStore::open_as_another_process(&root, Options::default()).unwrap();
    put(&cut_off, "before", vec![b'b'; VALUE_BYTES]);
    assert_eq!(read(&other, "before"), Some(vec![b'b'; VALUE_BYTES]));
    let answer = thread::scope(|scope| {
        armed.store(true, Ordering::SeqCst);
        let writing = scope.spawn(|| try_put(&cut_off, "late", vec![b'l'; VALUE_BYTES]));
        reached.recv_timeout(PATIENCE).unwrap();
        let cut = Cut::off(disturber);
        go_on.send(()).unwrap();
        meanwhile(&other);
        drop(cut);
        writing.join().unwrap()
    });
    wait_until("the first machine serves again", || {
        try_put(&cut_off, "back", vec![b'z'; VALUE_BYTES]).is_ok()
    });
    assert_eq!(read(&other, "back"), Some(vec![b'z'; VALUE_BYTES]));
    (answer, other)
}

/// The file goes in the end, though not while it may be read on another machine.
#[test]
fn the_file_of_a_dropped_body_stays_for_a_grace_and_then_goes() {
    let _turn = shared();
    let options = Options {
        delete_grace: Duration::from_secs(5),
        ..Options::default()
    };
    let dir = TestDir::create(DEMANDS, "dropped");
    let root = dir.mounts[0].join("place");
    {
        let [one, other] = on_both_mounts(&dir, &options);
        let mut writer = one.body_writer().unwrap();
        let bytes = vec![b'x'; 3_000_000];
        writer.write_all(&bytes).unwrap();
        let body = writer.finish().unwrap();
        let mut reader = other.body_reader(&body).unwrap();
        let mut beginning = [0; 1_000];
        reader.read_exact(&mut beginning).unwrap();
        drop_body(&one, &body);
        for store in [&one, &other] {
            // A read of any record brings the news.
            read(store, "any");
            let answer = store.body_reader(&body).err();
            assert_eq!(answer, Some(StoreError::BodyMissing { body: body.clone() }));
        }
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert!(beginning.len() + rest.len() == bytes.len());
        let bodies = root.join("bodies");
        wait_until("the file is gone", || fs::read_dir(&bodies).unwrap().next().is_none());
        let answer = other.body_reader(&body).err();
        assert_eq!(answer, Some(StoreError::BodyMissing { body }));
    }
    dir.remove();
}

fn drop_body(store: &dyn Store, body: &BodyId) {
    let batch = Batch {
        drop_bodies: vec![body.clone()],
        ..Batch::default()
    };
    assert_eq!(store.write(batch), Ok(Written::Done(vec![])));
}

/// What a client has in memory of a file it trusts when the server promises that nobody else writes to it, and it gets that
/// promise when it opens the file as the only one, even if what it has in memory is from before somebody else wrote.
#[test]
fn what_another_machine_wrote_before_it_closed_is_seen_by_all() {
    let _turn = shared();
    let dir = TestDir::create(DEMANDS, "closed");
    for round in 0..10 {
        let name = format!("place-{round}");
        let [one, other] = [0, dir.mounts.len() - 1].map(|mount| dir.mounts[mount].join(&name));
        let open = |root: &Path| SharedLogStore::open_as_another_process(root, Options::default()).unwrap();
        let stays = open(&other);
        put(&stays, "first", vec![b'f'; VALUE_BYTES]);
        {
            let goes = open(&one);
            put(&goes, "second", vec![b's'; VALUE_BYTES]);
        }
        let comes = open(&other);
        for store in [&stays, &comes] {
            assert_eq!(read(store, "first"), Some(vec![b'f'; VALUE_BYTES]), "round {round}");
            assert_eq!(read(store, "second"), Some(vec![b's'; VALUE_BYTES]), "round {round}");
        }
    }
    dir.remove();
}
