//! The daemon on a disk under kills: several servers on one root, several clients, SIGKILL at any moment and at chosen
//! steps on the disk; and a judge who holds everything that the clients saw against what the protocol promises.
//!
//! What must hold of every round, whatever was killed when:
//!
//! - *nothing acknowledged is lost*: every answer fits into one order of effects, up to a last look after a restart;
//! - *nothing is half there*: a call without an answer has happened as a whole or not at all, a transaction over all its
//!   keys, a state to its last byte;
//! - *fencing tokens rise by one with each grant and never go back*;
//! - what one round has left is still the same when all rounds are over, and the store is sound to the last byte.
//!
//! That the judge would notice is tested too: servers whose store lies, in one of the ways that `crash/lies.rs` lists, are
//! found out after a round or a few.
//!
//! ```sh
//! LOCKD_CRASH_ROUNDS=1000 LOCKD_SEED=42 cargo test --test crash -- --nocapture
//! ```
//!
//! The seed decides what clients want and when servers die, not how threads and processes come to interleave; so it finds
//! a fault again by chance only. The history of a round that went wrong is kept and says everything.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is how a test fails, and seeds and figures are printed"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};

use clients::{Client, Field};
use daemons::Daemon;
use history::{Entry, judge};
use lies::{Lie, Told};
use model::{Answer, Call};

#[path = "crash/checker_tests.rs"]
mod checker_tests;
#[path = "crash/clients.rs"]
mod clients;
#[path = "crash/daemons.rs"]
mod daemons;
#[path = "crash/history.rs"]
mod history;
#[allow(dead_code, reason = "made for the suites, which need more of it")]
#[path = "suite/http.rs"]
mod http;
#[path = "crash/lies.rs"]
mod lies;
#[path = "crash/linear.rs"]
mod linear;
#[path = "crash/model.rs"]
mod model;

/// Rounds of a plain `cargo test`.
const ROUNDS: usize = 10;
/// Rounds within which a lie must have been noticed: so many that no loaded machine makes it a matter of luck.
const LYING_ROUNDS: usize = 30;
/// Clients that change things, and those that only look.
const WORKERS: usize = 6;
const READERS: usize = 2;
const QUIET_WORKERS: usize = 2;
const SERVERS_MAX: usize = 3;
/// How many keys each group has: transactions stay within a group.
const GROUPS: [usize; 4] = [1, 1, 2, 3];

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// What happened in all rounds together.
#[derive(Debug, Default)]
struct Figures {
    kills: usize,
    deaths_at_a_step: usize,
    calls: usize,
    unanswered: usize,
    commits: usize,
    conflicts: usize,
    states_looked_at: usize,
    longest_search: usize,
}

#[test]
fn what_clients_see_is_one_order_of_effects_however_servers_are_killed() {
    let rounds = number_from("LOCKD_CRASH_ROUNDS").map_or(ROUNDS, |rounds| usize::try_from(rounds).unwrap());
    let seed = number_from("LOCKD_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("LOCKD_SEED={seed} LOCKD_CRASH_ROUNDS={rounds}");
    let clock = SystemClock::new();
    let start = clock.now();
    let mut stage = Stage::new(seed, None);
    // What was last seen of every key: it must be the same at the end.
    let mut last: Vec<(String, http::Answer)> = Vec::new();
    for round in 0..rounds {
        let (field, verdict) = stage.play(round);
        if let Err(wrong) = verdict {
            stage.give_up(round, &wrong);
        }
        let names = field.names.iter().flatten();
        let server = stage.servers[0].address;
        last.extend(names.map(|name| (name.clone(), read(server, name))));
        if round % 50 == 49 {
            eprintln!("round {}: {:?}", round + 1, stage.figures);
        }
    }
    stage.verify();
    stage.restart();
    for (name, before) in &last {
        let now = read(stage.servers[0].address, name);
        let seen = |answer: &http::Answer| {
            let version = answer.header("X-Key-Version").map(str::to_owned);
            (answer.status, version, answer.body.clone())
        };
        assert!(
            seen(&now) == seen(before),
            "{name} has changed: {before:?} is now {now:?}"
        );
    }
    let seconds = clock.now().since(start).as_secs_f64();
    eprintln!("{rounds} rounds in {seconds:.0} s: {:?}", stage.figures);
}

/// The judge must notice what it is there for. Mostly the first round is enough, and ten rounds practically always.
#[test]
fn every_lie_of_a_store_is_noticed() {
    let seed = number_from("LOCKD_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("LOCKD_SEED={seed}");
    for lie in Lie::ALL {
        let mut stage = Stage::new(seed, Some(lie));
        let noticed = (0..LYING_ROUNDS).find_map(|round| stage.play(round).1.err().map(|wrong| (round + 1, wrong)));
        let (round, wrong) = noticed.unwrap_or_else(|| panic!("{lie:?} has not been noticed in {LYING_ROUNDS} rounds"));
        eprintln!("{lie:?}: noticed in round {round} by {}; {:?}", wrong.by, stage.figures);
    }
}

/// What cannot be right about a round.
struct Wrong {
    /// Who has noticed it.
    by: &'static str,
    group: usize,
    /// For a reader.
    history: String,
}

fn read(server: std::net::SocketAddr, name: &str) -> http::Answer {
    http::send(server, "GET", &format!("/v1/get?key={name}&public=1"), &[], b"")
}

/// One root with the servers on it.
struct Stage {
    seed: u64,
    rng: fastrand::Rng,
    dir: tempfile::TempDir,
    servers: Vec<Daemon>,
    /// What all servers lie about.
    lie: Option<Lie>,
    /// The round is a quiet one.
    quiet: bool,
    started: usize,
    figures: Figures,
}

impl Stage {
    fn new(seed: u64, lie: Option<Lie>) -> Self {
        Self {
            seed,
            lie,
            quiet: false,
            rng: fastrand::Rng::with_seed(seed),
            dir: tempfile::tempdir().unwrap(),
            servers: Vec::new(),
            started: 0,
            figures: Figures::default(),
        }
    }

    fn start_server(&mut self) -> Daemon {
        let root = self.dir.path().join("store");
        let number = self.started;
        self.started += 1;
        {
            let told = Told {
                deaf: self.quiet || self.rng.u8(..4) == 0,
                lie: self.lie,
            };
            Daemon::start(&root, self.dir.path(), number, told, &mut self.rng)
        }
    }

    fn kill_all(&mut self) {
        self.servers.iter_mut().for_each(Daemon::kill);
        self.servers.clear();
    }

    /// Kills all servers and starts one that can be believed.
    fn restart(&mut self) {
        self.kill_all();
        let lie = self.lie.take();
        loop {
            let mut server = self.start_server();
            // One that dies by itself is no witness.
            if server.death.is_none() {
                self.servers.push(server);
                break;
            }
            server.kill();
        }
        self.lie = lie;
    }

    /// Looks through the store that nobody serves. Crashes leave remarks, never faults.
    fn verify(&mut self) {
        self.kill_all();
        let done = Command::new(env!("CARGO_BIN_EXE_lockd"))
            .env_clear()
            .args(["verify", "store", "--store"])
            .arg(format!("disk://{}", self.dir.path().join("store").display()))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&done.stdout);
        if !done.status.success() {
            let path = self.keep(0, 0, &text);
            panic!(
                "LOCKD_SEED={}: the store is damaged, see {}:\n{text}",
                self.seed,
                path.display()
            );
        }
    }

    /// Lets clients work while servers are killed, looks at what is left, and judges.
    fn play(&mut self, round: usize) -> (Field, Result<(), Wrong>) {
        let names: Vec<Vec<String>> = (GROUPS.iter().enumerate())
            .map(|(group, keys)| (0..*keys).map(|key| format!("r{round}/{group}-{key}")).collect())
            .collect();
        // Half of the rounds are quiet: few clients, and no server that hears of the others. Then it takes no luck to ask a
        // server that has had no occasion to catch up.
        self.quiet = self.rng.bool();
        let field = Field::new(round, names, self.quiet);
        let (workers, readers) = if self.quiet {
            (QUIET_WORKERS, 0)
        } else {
            (WORKERS, READERS)
        };
        let wanted = if self.quiet {
            SERVERS_MAX
        } else {
            self.rng.usize(1..=SERVERS_MAX)
        };
        if self.lie.is_some() || self.quiet {
            // Nobody is left who tells the truth, or who hears.
            self.kill_all();
        }
        while self.servers.len() < wanted {
            let server = self.start_server();
            self.servers.push(server);
        }
        self.announce(&field);
        let seeds: Vec<u64> = (0..=workers + readers).map(|_| self.rng.u64(..)).collect();
        let mut entries: Vec<Entry> = Vec::new();
        thread::scope(|scope| {
            let clients: Vec<_> = (0..workers + readers)
                .map(|number| {
                    let client = Client::new(number, &field, seeds[number]);
                    scope.spawn(move || match number < workers {
                        true => client.run(),
                        false => client.run_as_reader(),
                    })
                })
                .collect();
            self.kill_about(&field);
            entries.extend(clients.into_iter().flat_map(|client| client.join().unwrap()));
        });
        if self.rng.u8(..10) == 0 {
            self.verify();
        }
        self.restart();
        field.over.store(false, Ordering::SeqCst);
        self.announce(&field);
        entries.extend(Client::new(workers + readers, &field, seeds[workers + readers]).read_all());
        let verdict = self.judge_all(&field, &entries);
        (field, verdict)
    }

    fn announce(&self, field: &Field) {
        *field.servers.lock() = self
            .servers
            .iter()
            .map(|server| (server.number, server.address))
            .collect();
    }

    /// Kills servers at random moments and starts others, until all are killed at the end of the round.
    fn kill_about(&mut self, field: &Field) {
        let clock = SystemClock::new();
        let end = clock.now().after(Duration::from_millis(self.rng.u64(200..1_200)));
        let mut next_kill = clock.now().after(Duration::from_millis(self.rng.u64(20..600)));
        while clock.now() < end {
            thread::sleep(Duration::from_micros(self.rng.u64(500..3_000)));
            let died = self.servers.iter_mut().position(Daemon::has_died);
            let killed = if let Some(died) = died {
                self.figures.deaths_at_a_step += 1;
                Some(died)
            } else if next_kill <= clock.now() {
                next_kill = clock.now().after(Duration::from_millis(self.rng.u64(20..600)));
                let victim = self.rng.usize(..self.servers.len());
                self.servers[victim].kill();
                self.figures.kills += 1;
                Some(victim)
            } else {
                None
            };
            if let Some(gone) = killed {
                self.servers.remove(gone);
                self.announce(field);
                let server = self.start_server();
                self.servers.push(server);
                self.announce(field);
            }
        }
        self.servers.iter_mut().for_each(Daemon::kill);
        self.figures.kills += self.servers.len();
        field.over.store(true, Ordering::SeqCst);
    }

    fn judge_all(&mut self, field: &Field, entries: &[Entry]) -> Result<(), Wrong> {
        self.figures.calls += entries.len();
        for entry in entries {
            self.figures.unanswered += usize::from(entry.answer == Answer::Unknown);
            self.figures.conflicts += usize::from(entry.answer == Answer::Conflict);
            let is_commit = matches!(entry.call, Call::Release { rollback: false, .. });
            self.figures.commits += usize::from(is_commit && entry.answer == Answer::Released);
        }
        for (group, names) in field.names.iter().enumerate() {
            let of_group: Vec<Entry> = entries.iter().filter(|entry| entry.group == group).cloned().collect();
            let visited = judge(&of_group, names).map_err(|history| Wrong {
                by: "the order of effects",
                group,
                history,
            })?;
            self.figures.states_looked_at += visited;
            self.figures.longest_search = self.figures.longest_search.max(visited);
        }
        let faults = field.faults.lock();
        if faults.is_empty() {
            return Ok(());
        }
        Err(Wrong {
            by: "an answer that there cannot be",
            group: 0,
            history: format!("{faults:#?}"),
        })
    }

    /// Ends the test over a round that went wrong.
    fn give_up(&mut self, round: usize, wrong: &Wrong) -> ! {
        let path = self.keep(round, wrong.group, &wrong.history);
        panic!(
            "LOCKD_SEED={}: round {round} went wrong in group {}, says {}; the history and the store are in {}",
            self.seed,
            wrong.group,
            wrong.by,
            path.display()
        );
    }

    /// Keeps what a reader needs to find out what went wrong.
    fn keep(&mut self, round: usize, group: usize, history: &str) -> PathBuf {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-{}-{round}", self.seed));
        fs::create_dir_all(&kept).unwrap();
        fs::write(kept.join(format!("history-{group}.txt")), history).unwrap();
        self.servers.iter_mut().for_each(Daemon::kill);
        self.dir.disable_cleanup(true);
        let store = Command::new("cp")
            .arg("-r")
            .args([self.dir.path(), &kept.join("stage")])
            .status();
        if let Err(cause) = store {
            eprintln!("the store stays in {}: {cause}", self.dir.path().display());
        }
        kept
    }
}
