//! The listener of those who watch: one small page for each connection, beside the listener of the clients and apart from
//! it, so that a server whose workers are all busy can still be looked at.
//!
//! It needs next to nothing of HTTP: `GET` and `HEAD`, a head of a few kilobytes, an answer with a length, and then the
//! connection ends. What it does need is to stay reachable. Nobody who sends or reads slowly keeps others from being
//! answered: each connection has a thread of its own and a limit in time, there is room for a few at once, and when all
//! places are taken the one who has been there longest goes. When nobody comes it costs a thread that sleeps.
//!
//! A stop cuts whoever is still sending a request and lets an answer under way reach its client, but not for long.
//!
//! Left out on purpose: connections that are kept, bodies, compression, TLS.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::SockRef;
use tiny_http::StatusCode;

use crate::clock::{Clock, Moment, SystemClock};
use crate::logging::Logger;
use crate::threads;

const SYS: &str = "api.http.metrics";
/// Connections at the same time. Who watches is one or two.
const PLACES: usize = 8;
/// Threads, with those that are ending; then a new connection waits until one of these has ended.
const THREADS_MAX: usize = 4 * PLACES;
/// A connection lasts no longer, whatever its client does.
const TIME: Duration = Duration::from_secs(10);
/// How long a client may take to close its side once it has been answered.
const LINGER: Duration = Duration::from_secs(1);
/// How long a stop waits for answers under way.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// Largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// After an accept that failed, for want of descriptors most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An answer.
#[derive(Debug)]
pub struct Page {
    /// Status code.
    pub status: u16,
    /// What the body is.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

/// Makes the page of a path, for a client that accepts these types; `None` when there is no such page.
pub type Pages = Box<dyn Fn(&str, &str) -> Option<Page> + Send + Sync>;

/// The listener, running.
pub struct Scrapes {
    shared: Arc<Shared>,
    listener: TcpListener,
    accepting: JoinHandle<()>,
}

struct Shared {
    pages: Pages,
    log: Logger,
    clock: SystemClock,
    stopping: AtomicBool,
    answering: AtomicUsize,
    visits: Mutex<Vec<Visit>>,
}

/// A connection and its thread, oldest first.
struct Visit {
    socket: TcpStream,
    is_over: bool,
    thread: JoinHandle<()>,
}

impl Scrapes {
    /// Serves these pages on a listener.
    pub fn start(listener: TcpListener, log: Logger, pages: Pages) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            pages,
            log,
            clock: SystemClock::new(),
            stopping: AtomicBool::new(false),
            answering: AtomicUsize::new(0),
            visits: Mutex::new(Vec::new()),
        });
        let (taker, taken) = (Arc::clone(&shared), listener.try_clone()?);
        let accepting = threads::spawn("metrics", move || taker.accept(&taken))?;
        Ok(Self {
            shared,
            listener,
            accepting,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Ends. Returns when nothing of it runs any more.
    pub fn stop(self) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread in its accept. Not connected is what some systems say of a listener; it has stopped all the same.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        let _ = self.accepting.join();
        let visits = std::mem::take(&mut *shared.visits.lock());
        for visit in &visits {
            let _ = visit.socket.shutdown(Shutdown::Read);
        }
        let until = shared.clock.now().after(STOP_PATIENCE);
        while shared.answering.load(Ordering::SeqCst) != 0 && shared.clock.now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        for visit in visits {
            let _ = visit.socket.shutdown(Shutdown::Both);
            let _ = visit.thread.join();
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept();
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            if let Err(cause) = accepted.and_then(|(socket, _)| self.receive(socket)) {
                let error = cause.to_string();
                log::warn!(logger: self.log, target: SYS, error; "metrics.accept.failed");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }

    /// Gives a connection a place and a thread.
    fn receive(self: &Arc<Self>, socket: TcpStream) -> io::Result<()> {
        let mut visits = self.visits.lock();
        visits.retain(|visit| !visit.thread.is_finished());
        let here = visits.iter().filter(|visit| !visit.is_over).count();
        if PLACES <= here
            && let Some(oldest) = visits.iter_mut().find(|visit| !visit.is_over)
        {
            oldest.is_over = true;
            let _ = oldest.socket.shutdown(Shutdown::Both);
        }
        if THREADS_MAX <= visits.len()
            && let Some(ending) = visits.iter().position(|visit| visit.is_over)
        {
            // Its socket is shut, so nothing holds it up. Who comes now waits that long, rather than being sent away.
            let _ = visits.remove(ending).thread.join();
        }
        let (shared, visitor) = (Arc::clone(self), socket.try_clone()?);
        let thread = threads::spawn("metrics-page", move || {
            // A client that is too slow, or leaves, has no answer. It knows.
            let _ = shared.serve(&visitor);
            let _ = visitor.shutdown(Shutdown::Both);
        })?;
        visits.push(Visit {
            socket,
            is_over: false,
            thread,
        });
        Ok(())
    }

    fn serve(&self, mut socket: &TcpStream) -> io::Result<()> {
        let deadline = self.clock.now().after(TIME);
        let head = self.read_head(socket, deadline)?;
        let answering = Answering::begin(self);
        let answer = self.answer(&head);
        socket.set_write_timeout(Some(self.time_left(deadline)?))?;
        socket.write_all(&answer)?;
        socket.shutdown(Shutdown::Write)?;
        drop(answering);
        // Closing with something unread would reset the connection, and the client might lose the answer.
        self.linger(socket)
    }

    fn read_head(&self, mut socket: &TcpStream, deadline: Moment) -> io::Result<String> {
        let (mut head, mut piece) = (Vec::new(), [0; 1024]);
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if HEAD_BYTES_MAX < head.len() {
                return Err(ErrorKind::InvalidData.into());
            }
            socket.set_read_timeout(Some(self.time_left(deadline)?))?;
            match socket.read(&mut piece)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => head.extend_from_slice(&piece[..count]),
            }
        }
        String::from_utf8(head).map_err(|_| ErrorKind::InvalidData.into())
    }

    fn answer(&self, head: &str) -> Vec<u8> {
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let accept = lines
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("accept"))
            .map_or("", |(_, types)| types.trim());
        let path = target.split('?').next().unwrap_or_default();
        let page = match method {
            "GET" | "HEAD" => (self.pages)(path, accept).unwrap_or_else(|| plain(404, "there is no such page\n")),
            _ => plain(405, "this listener takes GET\n"),
        };
        let allow = if page.status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
        let reason = StatusCode(page.status).default_reason_phrase();
        let mut answer = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
            page.status,
            page.content_type,
            page.body.len()
        );
        if method != "HEAD" {
            answer.push_str(&page.body);
        }
        answer.into_bytes()
    }

    fn linger(&self, mut socket: &TcpStream) -> io::Result<()> {
        let deadline = self.clock.now().after(LINGER);
        let mut waste = [0; 1024];
        loop {
            socket.set_read_timeout(Some(self.time_left(deadline)?))?;
            if socket.read(&mut waste)? == 0 {
                return Ok(());
            }
        }
    }

    fn time_left(&self, deadline: Moment) -> io::Result<Duration> {
        match deadline.since(self.clock.now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }
}

/// Counts an answer as under way until it is dropped.
struct Answering<'a>(&'a AtomicUsize);

impl<'a> Answering<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.answering.fetch_add(1, Ordering::SeqCst);
        Self(&shared.answering)
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn plain(status: u16, body: &str) -> Page {
    Page {
        status,
        content_type: "text/plain; charset=utf-8",
        body: body.to_owned(),
    }
}
