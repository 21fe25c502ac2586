//! What a backlog costs: the time of enqueue, deliver and ack beside few messages and beside many, and the memory that a
//! waiting message takes.
//!
//! This drives the library over a store, without HTTP and without a dispatcher, so that it shows what the records and the
//! engine cost and nothing else. Two queues of one store's kind, one short and one long, take turns, so that whatever else
//! the machine does hits both. With `--served` each queue has a daemon, and what is measured goes through HTTP and the
//! dispatcher (see [`served`]).

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it reports to whoever runs it")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use lexopt::{Arg, Parser, ValueExt};
use lockd::clock::{SharedClock, SystemClock};
use lockd::ids::IdMaker;
use lockd::keys::{MessageId, Namespace, QueueId, QueueName};
use lockd::lease::table::KeyTable;
use lockd::news::NobodyListens;
use lockd::queue::rules::{Holder, NewMessage};
use lockd::queue::{DeliverRequest, EnqueueMeta, Queues};
use lockd::store::Store;
use lockd::store::memory::MemoryStore;
use lockd::store::shared_log::{Options, SharedLogStore};

const HELP: &str = "\
What a backlog costs, in memory or on a disk.

  cargo bench --bench backlog -- --messages N [options]

  --messages N     length of the long queue
  --beside N       length of the short queue (1000)
  --root DIR       below this directory, on a disk; without it in memory
  --threads N      threads that work at the same time (1; on a disk they share syncs)
  --cycles N       enqueue, deliver and ack so many messages in each turn (10000)
  --rounds N       how often the queues take turns (5)
  --payload N      bytes of a payload (100)
  --served LOCKD   through HTTP: starts this program once for each queue
";

mod served;

type Failure = Box<dyn Error + Send + Sync>;

struct Plan {
    messages: usize,
    beside: usize,
    root: Option<PathBuf>,
    threads: usize,
    cycles: usize,
    rounds: usize,
    payload_bytes: usize,
    served: Option<PathBuf>,
}

/// How long the three steps of a turn take.
type Steps = [Duration; 3];

fn main() -> ExitCode {
    match read_plan().and_then(|plan| plan.map_or(Ok(()), |plan| run(&plan))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("backlog: {cause}");
            ExitCode::FAILURE
        }
    }
}

/// `None`: called by cargo among other targets, or for help.
fn read_plan() -> Result<Option<Plan>, Failure> {
    let mut plan = Plan {
        messages: 0,
        beside: 1_000,
        root: None,
        threads: 1,
        cycles: 10_000,
        rounds: 5,
        payload_bytes: 100,
        served: None,
    };
    let mut parser = Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("messages") => plan.messages = parser.value()?.parse()?,
            Arg::Long("beside") => plan.beside = parser.value()?.parse()?,
            Arg::Long("root") => plan.root = Some(parser.value()?.into()),
            Arg::Long("threads") => plan.threads = parser.value()?.parse()?,
            Arg::Long("cycles") => plan.cycles = parser.value()?.parse()?,
            Arg::Long("rounds") => plan.rounds = parser.value()?.parse()?,
            Arg::Long("payload") => plan.payload_bytes = parser.value()?.parse()?,
            Arg::Long("served") => plan.served = Some(parser.value()?.into()),
            Arg::Long("help") => {
                print!("{HELP}");
                return Ok(None);
            }
            Arg::Long("bench") => {}
            other => return Err(other.unexpected().into()),
        }
    }
    if plan.threads == 0 || plan.rounds == 0 {
        return Err("--threads and --rounds are at least 1".into());
    }
    Ok((0 < plan.messages).then_some(plan))
}

fn run(plan: &Plan) -> Result<(), Failure> {
    if let Some(program) = &plan.served {
        return served::run(plan, program);
    }
    let clock = SystemClock::shared();
    let before = resident_bytes("self")?;
    let long = Backlog::open(plan, "long", &clock)?;
    let empty = resident_bytes("self")?;
    let began = clock.now();
    long.fill(plan, plan.messages)?;
    let took = clock.now().since(began);
    report_memory(plan, took, resident_bytes("self")?.saturating_sub(empty), before);
    let short = Backlog::open(plan, "short", &clock)?;
    short.fill(plan, plan.beside)?;
    take_turns(plan, || short.cycle(plan, &clock), || long.cycle(plan, &clock))
}

fn report_memory(plan: &Plan, took: Duration, taken: u64, before: u64) {
    println!(
        "{} messages of {} bytes in {took:.1?}: {} bytes of memory each, {} MiB before",
        plan.messages,
        plan.payload_bytes,
        taken / plan.messages as u64,
        before >> 20
    );
}

/// Turn by turn the short queue and the long one; then the middle of each step.
fn take_turns(
    plan: &Plan,
    mut short: impl FnMut() -> Result<Steps, Failure>,
    mut long: impl FnMut() -> Result<Steps, Failure>,
) -> Result<(), Failure> {
    let mut times: [[Vec<Duration>; 3]; 2] = Default::default();
    for _ in 0..plan.rounds {
        for (steps, times) in [short()?, long()?].into_iter().zip(&mut times) {
            for (times, took) in times.iter_mut().zip(steps) {
                times.push(took);
            }
        }
    }
    let micros = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e6 / plan.cycles as f64
    };
    let [beside_few, beside_many] = &mut times;
    for (name, (few, many)) in ["enqueue", "deliver", "ack"]
        .into_iter()
        .zip(beside_few.iter_mut().zip(beside_many))
    {
        let (few, many) = (micros(few), micros(many));
        println!(
            "{name:<8} {few:8.2} us beside {}, {many:8.2} us beside {}: ratio {:.2}",
            plan.beside,
            plan.messages,
            many / few
        );
    }
    Ok(())
}

/// A queue with its store.
struct Backlog {
    queues: Queues,
}

impl Backlog {
    fn open(plan: &Plan, name: &str, clock: &SharedClock) -> Result<Self, Failure> {
        let store: Arc<dyn Store> = match &plan.root {
            None => Arc::new(MemoryStore::new()),
            Some(root) => Arc::new(SharedLogStore::open(&new_root(root, name)?, Options::default())?),
        };
        let table = KeyTable::new(store, Arc::clone(clock), Arc::new(NobodyListens));
        let ids = Arc::new(IdMaker::new(Arc::clone(clock)));
        Ok(Self {
            queues: Queues::new(Arc::new(table), ids, 64 * 1024),
        })
    }

    fn fill(&self, plan: &Plan, messages: usize) -> Result<(), Failure> {
        // A sync costs the same for many messages as for one.
        let threads = if plan.root.is_some() { 64 } else { plan.threads };
        in_threads(threads, messages, |_| self.enqueue(plan).map(drop))?;
        Ok(())
    }

    fn enqueue(&self, plan: &Plan) -> Result<MessageId, Failure> {
        let message = NewMessage {
            correlation_id: "0198f2aa-6d10-7c3b-9e55-0b1c2d3e4f50".into(),
            ..NewMessage::default()
        };
        let mut writer = self.queues.enqueue_writer(EnqueueMeta {
            queue: queue()?,
            message,
        });
        writer.push(&vec![b'x'; plan.payload_bytes])?;
        Ok(writer.finish()?.id)
    }

    /// How long each of the three steps takes for all messages of a turn. What is enqueued is what is delivered: which
    /// messages are next is for a dispatcher to know.
    fn cycle(&self, plan: &Plan, clock: &SharedClock) -> Result<Steps, Failure> {
        let queue = queue()?;
        let request = DeliverRequest {
            owner: "backlog".into(),
            visibility_seconds: 600,
            txn_id: None,
            with_state: false,
        };
        let start = clock.now();
        let ids = in_threads(plan.threads, plan.cycles, |_| self.enqueue(plan))?;
        let enqueued = clock.now();
        let held = in_threads(plan.threads, plan.cycles, |at| {
            let delivered = (self.queues.deliver(&queue, ids[at], &request)).map_err(|why| format!("{why:?}"))?;
            let lease = delivered.record.lease.as_ref().ok_or("a delivery without a lease")?;
            Ok(Holder {
                lease_id: lease.id.as_str().to_owned(),
                fencing_token: delivered.record.fencing_token,
                meta_etag: Some(delivered.record.meta_etag()),
                ..Holder::default()
            })
        })?;
        let delivered = clock.now();
        in_threads(plan.threads, plan.cycles, |at| {
            self.queues.ack(&queue, ids[at], &held[at])?;
            Ok(())
        })?;
        Ok([
            enqueued.since(start),
            delivered.since(enqueued),
            clock.now().since(delivered),
        ])
    }
}

fn queue() -> Result<QueueId, Failure> {
    Ok(QueueId {
        namespace: Namespace::parse("default")?,
        queue: QueueName::parse("backlog")?,
    })
}

/// Does something `times` times, spread over threads, and returns what came of it in order.
fn in_threads<T: Send>(
    threads: usize,
    times: usize,
    act: impl Fn(usize) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    if threads == 1 {
        return (0..times).map(act).collect();
    }
    let share = times.div_ceil(threads).max(1);
    let act = &act;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..times)
            .step_by(share)
            .map(|from| scope.spawn(move || (from..times.min(from + share)).map(act).collect::<Result<Vec<T>, _>>()))
            .collect();
        let mut all = Vec::with_capacity(times);
        for worker in workers {
            all.extend(worker.join().map_err(|_| "a thread panicked")??);
        }
        Ok(all)
    })
}

fn new_root(root: &Path, name: &str) -> Result<PathBuf, Failure> {
    let path = root.join(format!("backlog-{}-{name}", std::process::id()));
    fs::create_dir_all(root)?;
    Ok(path)
}

/// Of a process, by its number or as `self`.
fn resident_bytes(process: &str) -> Result<u64, Failure> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: u64 = kib.ok_or("/proc/.../status shows no memory")?.parse()?;
    Ok(kib * 1024)
}
