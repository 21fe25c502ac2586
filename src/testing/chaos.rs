//! A relay for TCP that makes a connection slow, lossy or short-lived.
//!
//! It stands between a client and a server and knows nothing of what it carries, so TLS passes through. Two threads serve
//! each connection, one per direction; at most 1,024 connections are served, more are closed at once. All randomness
//! comes from one seed: the n-th connection of a proxy with a given seed meets the same delays and drops again, chunk by
//! chunk.
//!
//! Chaos makes rare interleavings likely. It proves nothing by itself: a test that needs a server to be gone must stop
//! that server.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::{Condvar, Mutex};
use socket2::SockRef;

use crate::clock::{Clock, Moment, SystemClock};
use crate::threads;

const CHUNK_BYTES: usize = 32 * 1024;
const CONNECTIONS_MAX: usize = 1_024;
const CONNECT_LIMIT: Duration = Duration::from_millis(200);

/// How long the accept loop rests after an error, so that a lack of descriptors does not make it spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What the proxy does to connections. The default does nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct ChaosConfig {
    /// Seed of all random choices; 0 takes a random one, see [`ChaosProxy::seed`].
    pub seed: u64,
    /// Shortest delay of a chunk.
    pub delay_min: Duration,
    /// Longest delay of a chunk; not less than the shortest.
    pub delay_max: Duration,
    /// How likely a chunk is swallowed, 0 to 1.
    pub drop_probability: f64,
    /// How likely a connection is reset right after it was accepted, 0 to 1. Decided once per connection.
    pub reset_probability: f64,
    /// Cuts a connection this long after it was accepted.
    pub disconnect_after: Option<Duration>,
    /// How many connections are cut like that in total, the first ones; 0 means all.
    pub disconnects_max: usize,
    /// How many bytes pass per second, for each direction of each connection; 0 means any number.
    pub bandwidth_bytes_per_s: u64,
    /// How much is relayed at a time; at least 1.
    pub chunk_bytes: usize,
}

impl Default for ChaosConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            delay_min: Duration::ZERO,
            delay_max: Duration::ZERO,
            drop_probability: 0.0,
            reset_probability: 0.0,
            disconnect_after: None,
            disconnects_max: 0,
            bandwidth_bytes_per_s: 0,
            chunk_bytes: CHUNK_BYTES,
        }
    }
}

impl ChaosConfig {
    fn check(&self) -> io::Result<()> {
        let complaint = if self.delay_max < self.delay_min {
            "the longest delay is shorter than the shortest"
        } else if !(0.0..=1.0).contains(&self.drop_probability) || !(0.0..=1.0).contains(&self.reset_probability) {
            "a probability lies outside of 0 to 1"
        } else if self.chunk_bytes == 0 {
            "a chunk must hold at least one byte"
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, complaint))
    }

    /// How long a read or write may block before the pump looks up.
    fn slice(&self) -> Duration {
        let for_delays = self
            .delay_max
            .saturating_mul(2)
            .saturating_add(Duration::from_millis(50));
        for_delays.max(Duration::from_millis(500))
    }
}

/// A running proxy on a free port of 127.0.0.1. Closed when dropped.
pub struct ChaosProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

impl ChaosProxy {
    /// Starts to relay to `upstream`. Each connection has 200 ms to reach it; a client whose connection cannot be relayed
    /// sees it end at once.
    ///
    /// Fails on a configuration that makes no sense (`InvalidInput`), or if no socket or thread is to be had.
    pub fn start(upstream: SocketAddr, mut config: ChaosConfig) -> io::Result<Self> {
        config.check()?;
        while config.seed == 0 {
            config.seed = fastrand::u64(..);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            config,
            clock: SystemClock::new(),
            state: Mutex::new(State::default()),
            closing: Condvar::new(),
        });
        let accepting = {
            let shared = Arc::clone(&shared);
            threads::spawn("chaos-accept", move || shared.accept_all(&listener))?
        };
        Ok(Self {
            address,
            shared,
            accepting: Mutex::new(Some(accepting)),
        })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The seed in use. Print it where a failure should be repeatable.
    pub fn seed(&self) -> u64 {
        self.shared.config.seed
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.state.lock().accepted
    }

    /// How many connections were cut because their time was over.
    pub fn disconnects(&self) -> usize {
        self.shared.state.lock().disconnected
    }

    /// How many chunks were swallowed.
    pub fn dropped_chunks(&self) -> usize {
        self.shared.state.lock().dropped_chunks
    }

    /// Cuts all connections, takes no more, and waits until all threads are gone. Does nothing the second time.
    pub fn close(&self) {
        let mut accepting = self.accepting.lock();
        let Some(thread) = accepting.take() else {
            return;
        };
        self.shared.close();
        // The accept loop sleeps in the kernel; a connection wakes it. If none can be made it is failing and awake.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        let _ = thread.join();
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        self.close();
    }
}

struct Shared {
    upstream: SocketAddr,
    config: ChaosConfig,
    clock: SystemClock,
    state: Mutex<State>,
    /// Wakes whoever sleeps here when the proxy closes.
    closing: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    accepted: usize,
    disconnected: usize,
    dropped_chunks: usize,
    /// Sockets of the connections being served, so that closing can interrupt their threads.
    open: HashMap<usize, Link>,
}

/// The two sockets of one connection, shared by its two pumps.
#[derive(Clone)]
struct Link {
    client: Arc<TcpStream>,
    server: Arc<TcpStream>,
    /// When its time is over.
    cut_at: Option<Moment>,
    /// Set by the first pump that finds its time over, so that it is counted once.
    counted: Arc<AtomicBool>,
}

impl Link {
    fn cut(&self) {
        // Either end may be gone already.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

/// Why a direction ended.
enum End {
    /// The sender has said all it had to say; the other direction goes on.
    Finished,
    /// Time is over, a socket failed, or the proxy closes: both directions end.
    Broken,
}

impl Shared {
    fn accept_all(self: Arc<Self>, listener: &TcpListener) {
        let mut serving: Vec<JoinHandle<()>> = Vec::new();
        loop {
            let accepted = listener.accept();
            if self.is_closed() {
                break;
            }
            let Ok((client, _)) = accepted else {
                self.sleep(ACCEPT_PAUSE);
                continue;
            };
            let accepted_at = self.clock.now();
            let number = {
                let mut state = self.state.lock();
                state.accepted += 1;
                state.accepted - 1
            };
            serving.retain(|thread| !thread.is_finished());
            if serving.len() < CONNECTIONS_MAX {
                let shared = Arc::clone(&self);
                // Without a thread the connection just ends, as one too many does.
                serving.extend(threads::spawn("chaos-up", move || {
                    shared.serve(number, accepted_at, client);
                }));
            }
        }
        for thread in serving {
            let _ = thread.join();
        }
    }

    /// Serves one connection to its end: this thread relays to the server, a second one relays back.
    fn serve(self: Arc<Self>, number: usize, accepted_at: Moment, client: TcpStream) {
        let mut rng = Rng::with_seed(self.config.seed.wrapping_add(number as u64));
        if rng.f64() < self.config.reset_probability {
            // Lingering for no time makes the close a reset.
            let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
            return;
        }
        let Ok(server) = TcpStream::connect_timeout(&self.upstream, CONNECT_LIMIT) else {
            return;
        };
        let cut_at = match self.config.disconnect_after {
            Some(span) if self.config.disconnects_max == 0 || number < self.config.disconnects_max => {
                Some(accepted_at.after(span))
            }
            _ => None,
        };
        let link = Link {
            client: Arc::new(client),
            server: Arc::new(server),
            cut_at,
            counted: Arc::default(),
        };
        let prepared = link.client.set_nodelay(true).and(link.server.set_nodelay(true));
        if prepared.is_err() || !self.register(number, &link) {
            return;
        }
        let back = {
            let (shared, link, rng) = (Arc::clone(&self), link.clone(), rng.fork());
            threads::spawn("chaos-down", move || {
                shared.relay(&link.server, &link.client, &link, rng);
            })
        };
        match back {
            Ok(back) => {
                self.relay(&link.client, &link.server, &link, rng);
                let _ = back.join();
            }
            Err(_) => link.cut(),
        }
        self.state.lock().open.remove(&number);
    }

    /// Makes the connection known, unless the proxy has been closed in the meantime.
    fn register(&self, number: usize, link: &Link) -> bool {
        let mut state = self.state.lock();
        if !state.closed {
            state.open.insert(number, link.clone());
        }
        !state.closed
    }

    fn relay(&self, from: &TcpStream, to: &TcpStream, link: &Link, mut rng: Rng) {
        match self.pump(from, to, link.cut_at, &mut rng) {
            End::Finished => {
                let _ = to.shutdown(Shutdown::Write);
            }
            End::Broken => {
                self.count_disconnect(link);
                link.cut();
            }
        }
    }

    /// Counts the cut before anybody can see it.
    fn count_disconnect(&self, link: &Link) {
        let time_over = link.cut_at.is_some_and(|cut_at| cut_at <= self.clock.now());
        let mut state = self.state.lock();
        if time_over && !state.closed && !link.counted.swap(true, Ordering::SeqCst) {
            state.disconnected += 1;
        }
    }

    /// Relays one direction, chunk by chunk.
    fn pump(&self, mut from: &TcpStream, to: &TcpStream, cut_at: Option<Moment>, rng: &mut Rng) -> End {
        let mut chunk = vec![0; self.config.chunk_bytes];
        loop {
            let Some(left) = self.time_left(cut_at) else {
                return End::Broken;
            };
            if from.set_read_timeout(Some(left.min(self.config.slice()))).is_err() {
                return End::Broken;
            }
            let len = match from.read(&mut chunk) {
                Ok(0) => return End::Finished,
                Ok(len) => len,
                Err(error) if is_no_end(&error) => continue,
                Err(_) => return End::Broken,
            };
            // Both choices are made for every chunk, so that one setting does not shift the draws of the other.
            let delay = self.delay(len, rng);
            let dropped = rng.f64() < self.config.drop_probability;
            match self.time_left(cut_at) {
                Some(left) => self.sleep(delay.min(left)),
                None => return End::Broken,
            }
            if dropped {
                self.state.lock().dropped_chunks += 1;
            } else if !self.deliver(&chunk[..len], to, cut_at) {
                return End::Broken;
            }
        }
    }

    /// The random delay of a chunk, and how long it takes on a line of the given bandwidth.
    fn delay(&self, chunk_len: usize, rng: &mut Rng) -> Duration {
        let ChaosConfig {
            delay_min, delay_max, ..
        } = self.config;
        let random = delay_min + (delay_max - delay_min).mul_f64(rng.f64());
        let nanos_on_line = (chunk_len as u64)
            .saturating_mul(1_000_000_000)
            .checked_div(self.config.bandwidth_bytes_per_s);
        random.saturating_add(Duration::from_nanos(nanos_on_line.unwrap_or(0)))
    }

    /// Writes the whole chunk; `false` if the connection ended first.
    fn deliver(&self, mut rest: &[u8], mut to: &TcpStream, cut_at: Option<Moment>) -> bool {
        while !rest.is_empty() {
            // A peer that does not read must not keep its pump past the end of the connection's time.
            let Some(left) = self.time_left(cut_at) else {
                return false;
            };
            if to.set_write_timeout(Some(left.min(self.config.slice()))).is_err() {
                return false;
            }
            match to.write(rest) {
                Ok(0) => return false,
                Ok(len) => rest = &rest[len..],
                Err(error) if is_no_end(&error) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// How long a connection still has, never zero; `None` if its time is over or the proxy closes.
    fn time_left(&self, cut_at: Option<Moment>) -> Option<Duration> {
        if self.is_closed() {
            return None;
        }
        let left = cut_at.map_or(Duration::MAX, |cut_at| cut_at.since(self.clock.now()));
        (!left.is_zero()).then_some(left)
    }

    /// Sleeps, but not beyond the closing of the proxy.
    fn sleep(&self, span: Duration) {
        if span.is_zero() {
            return;
        }
        let until = self.clock.now().after(span);
        let mut state = self.state.lock();
        while !state.closed {
            let left = until.since(self.clock.now());
            if left.is_zero() {
                break;
            }
            self.closing.wait_for(&mut state, left);
        }
    }

    fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.open.values().for_each(Link::cut);
        self.closing.notify_all();
    }
}

/// A timeout of one slice or an interruption, after which the pump just goes on.
fn is_no_end(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

#[cfg(test)]
#[path = "chaos_tests.rs"]
mod tests;
