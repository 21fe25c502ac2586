//! The same through HTTP: a daemon with a short queue and one with a long one, driven by clients. What is delivered is what the
//! dispatcher takes for next: the oldest messages of the backlog.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use lockd::clock::{SharedClock, SystemClock};
use lockd_client::{Client, Dequeue, Wait};

use super::{Failure, Plan, Steps, in_threads, new_root, report_memory, resident_bytes, take_turns};

const QUEUE: &str = "backlog";
/// Far longer than a turn takes.
const VISIBILITY: Duration = Duration::from_secs(1_200);
/// Threads that fill a queue.
const FILLERS: usize = 32;
const START_MAX: Duration = Duration::from_secs(20);

/// A daemon with its queue. Dropping it ends the daemon.
struct Daemon {
    child: Child,
    client: Client,
}

pub(super) fn run(plan: &Plan, program: &Path) -> Result<(), Failure> {
    let clock = SystemClock::shared();
    let long = Daemon::start(plan, program, "long")?;
    // What the first message needs is not counted.
    long.fill(plan, plan.beside)?;
    let before = long.resident_bytes()?;
    let began = clock.now();
    long.fill(plan, plan.messages)?;
    let took = clock.now().since(began);
    report_memory(plan, took, long.resident_bytes()?.saturating_sub(before), before);
    let short = Daemon::start(plan, program, "short")?;
    short.fill(plan, plan.beside)?;
    let used = [short.cpu_micros()?, long.cpu_micros()?];
    take_turns(plan, || short.cycle(plan, &clock), || long.cycle(plan, &clock))?;
    let cycles = (plan.cycles * plan.rounds) as f64;
    let [few, many] = [
        (short.cpu_micros()? - used[0]) / cycles,
        (long.cpu_micros()? - used[1]) / cycles,
    ];
    println!(
        "all three take {few:.2} us of the daemon's processor time beside {}, {many:.2} us beside {}: ratio {:.2}",
        plan.beside,
        plan.messages,
        many / few
    );
    println!(
        "resident at the end: {} MiB beside {}, {} MiB beside {}",
        short.resident_bytes()? >> 20,
        plan.beside,
        long.resident_bytes()? >> 20,
        plan.messages
    );
    Ok(())
}

impl Daemon {
    fn start(plan: &Plan, program: &Path, name: &str) -> Result<Self, Failure> {
        let store = match &plan.root {
            None => "mem://".to_owned(),
            Some(root) => {
                let root = new_root(root, name)?;
                fs::create_dir_all(&root)?;
                format!("disk://{}", root.canonicalize()?.display())
            }
        };
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(program)
            .args([
                "--listen",
                &address.to_string(),
                "--store",
                &store,
                "--log-level",
                "warn",
            ])
            .stdin(Stdio::null())
            .spawn()?;
        let daemon = Self {
            child,
            client: Client::builder().endpoint(format!("http://{address}")).build()?,
        };
        let clock = SystemClock::shared();
        let began = clock.now();
        while TcpStream::connect(address).is_err() {
            if START_MAX < clock.now().since(began) {
                return Err(format!("{} does not serve on {address}", program.display()).into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    fn resident_bytes(&self) -> Result<u64, Failure> {
        resident_bytes(&self.child.id().to_string())
    }

    /// Processor time that it has used so far. A busy machine changes it less than it changes any other time.
    fn cpu_micros(&self) -> Result<f64, Failure> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field is a name in parentheses and may hold anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        Ok(ticks as f64 * 1e6 / rustix::param::clock_ticks_per_second() as f64)
    }

    fn fill(&self, plan: &Plan, messages: usize) -> Result<(), Failure> {
        let payload = vec![b'x'; plan.payload_bytes];
        in_threads(FILLERS, messages, |_| {
            self.client.enqueue(QUEUE, payload.as_slice())?;
            Ok(())
        })?;
        Ok(())
    }

    fn cycle(&self, plan: &Plan, clock: &SharedClock) -> Result<Steps, Failure> {
        let payload = vec![b'x'; plan.payload_bytes];
        let request = Dequeue::from_queue(QUEUE).visibility(VISIBILITY).wait(Wait::No);
        let start = clock.now();
        in_threads(plan.threads, plan.cycles, |_| {
            self.client.enqueue(QUEUE, payload.as_slice())?;
            Ok(())
        })?;
        let enqueued = clock.now();
        let held = in_threads(plan.threads, plan.cycles, |_| Ok(self.client.dequeue(&request)?))?;
        let delivered = clock.now();
        in_threads(plan.threads, plan.cycles, |at| Ok(held[at].ack()?))?;
        Ok([
            enqueued.since(start),
            delivered.since(enqueued),
            clock.now().since(delivered),
        ])
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
