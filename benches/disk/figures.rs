//! The tables.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use lockd::clock::{Clock, SystemClock};

use crate::Choice;
use crate::report::{Measured, median};
use crate::served::Served;

/// Connections for the figures by the number of keys.
const CONNECTIONS: usize = 32;

/// By the number of connections: how much of what the HTTP edge can do is left when every answer is durable.
pub(crate) fn groups(choice: &Choice) {
    let place = Place::new(choice);
    println!(
        "one sync of a file that grew by 1 KiB takes {:.0} us here, alone\n",
        sync_us(&place.path)
    );
    println!(
        "| connections | healthz/s | lock requests/s | ratio | syncs per request | batches per group | p50 | p99 |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for &connections in &choice.connections {
        let mut served = Served::start(&place.root(&format!("groups-{connections}")));
        served.drive("lock", connections, 1.0);
        let (mut health, mut lock, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
        let mut per_request = Vec::new();
        let mut per_group = Vec::new();
        let (mut p50, mut p99) = (Vec::new(), Vec::new());
        for _ in 0..choice.rounds {
            let edge = rate(&served.drive("health", connections, choice.seconds));
            let before = served.counters();
            let measured = served.drive("lock", connections, choice.seconds);
            let after = served.counters();
            let [syncs, groups, batches] = [0, 1, 2].map(|n| after[n] - before[n]);
            health.push(edge);
            lock.push(rate(&measured));
            ratio.push(rate(&measured) / edge);
            per_request.push(syncs / measured.tally.requests as f64);
            per_group.push(batches / groups);
            // An operation is three requests.
            p50.push(measured.tally.latency_ns.value_at_quantile(0.5) as f64 / 1e6);
            p99.push(measured.tally.latency_ns.value_at_quantile(0.99) as f64 / 1e6);
        }
        println!(
            "| {connections} | {:.0} | {:.0} | {:.2} | {:.3} | {:.1} | {:.2} ms | {:.2} ms |",
            median(health),
            median(lock),
            median(ratio),
            median(per_request),
            median(per_group),
            median(p50),
            median(p99),
        );
    }
    println!();
}

/// By the number of keys in the store.
pub(crate) fn keys(choice: &Choice) {
    let place = Place::new(choice);
    let empty = Served::start(&place.root("keys-none")).resident_bytes();
    println!(
        "| keys | restart | memory per key | healthz/s | lock requests/s | ratio | server processor per request |"
    );
    println!("|---|---|---|---|---|---|---|");
    for &keys in &choice.keys {
        let root = place.root(&format!("keys-{keys}"));
        Served::fill(&root, keys);
        let restarts: Vec<f64> = (0..choice.rounds)
            .map(|_| Served::start(&root).started_in.as_secs_f64() * 1e3)
            .collect();
        let served = Served::start(&root);
        let per_key = served.resident_bytes().saturating_sub(empty) as f64 / keys as f64;
        served.drive("lock", CONNECTIONS, 1.0);
        let (mut health, mut lock, mut ratio, mut cpu_us) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..choice.rounds {
            let edge = rate(&served.drive("health", CONNECTIONS, choice.seconds));
            let measured = served.drive("lock", CONNECTIONS, choice.seconds);
            health.push(edge);
            lock.push(rate(&measured));
            ratio.push(rate(&measured) / edge);
            let cpu_seconds = measured.cpu.server_seconds.unwrap_or_default();
            cpu_us.push(cpu_seconds * 1e6 / measured.tally.requests as f64);
        }
        println!(
            "| {keys} | {:.0} ms | {per_key:.0} bytes | {:.0} | {:.0} | {:.2} | {:.1} us |",
            median(restarts),
            median(health),
            median(lock),
            median(ratio),
            median(cpu_us),
        );
    }
    println!();
}

fn rate(measured: &Measured) -> f64 {
    measured.tally.requests as f64 / measured.seconds
}

/// What the disk itself asks for one append that is made durable.
fn sync_us(dir: &Path) -> f64 {
    let path = dir.join("sync-probe");
    let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
    let clock = SystemClock::new();
    let spans: Vec<f64> = (0..300)
        .map(|_| {
            let start = clock.now();
            file.write_all(&[1; 1024]).unwrap();
            file.sync_data().unwrap();
            clock.now().since(start).as_secs_f64() * 1e6
        })
        .collect();
    let _ = std::fs::remove_file(path);
    median(spans)
}

/// Where the stores are.
struct Place {
    path: PathBuf,
    /// Removed in the end, unless the place was chosen.
    _temporary: Option<tempfile::TempDir>,
}

impl Place {
    fn new(choice: &Choice) -> Self {
        if choice.dir.as_os_str().is_empty() {
            let temporary = tempfile::tempdir().unwrap();
            return Self {
                path: temporary.path().to_owned(),
                _temporary: Some(temporary),
            };
        }
        std::fs::create_dir_all(&choice.dir).unwrap();
        Self {
            path: choice.dir.canonicalize().unwrap(),
            _temporary: None,
        }
    }

    fn root(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}
