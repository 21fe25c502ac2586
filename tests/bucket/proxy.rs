//! Bad days between a server and its store: a proxy that understands requests and lets them go wrong, from a seed.
//!
//! | what goes wrong | what the engine sees | what the store has done |
//! |---|---|---|
//! | cut before | a connection that breaks | nothing |
//! | cut after | a connection that breaks | what was asked |
//! | cut, then late | a connection that breaks | what was asked, but only a while later |
//! | cut in the answer | half an answer | what was asked |
//! | refused | 503 | nothing |
//! | failed after | 500 | what was asked |
//! | slow | the answer, late | what was asked |
//!
//! The head of a request is passed on as it came, so that signatures stay good.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

/// How often each kind of fault strikes, of a thousand requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) cut_before: u32,
    pub(crate) cut_after: u32,
    pub(crate) cut_then_late: u32,
    pub(crate) cut_in_answer: u32,
    pub(crate) refused: u32,
    pub(crate) failed_after: u32,
    pub(crate) slow: u32,
}

impl Rates {
    pub(crate) const NONE: Rates = Rates::all(0);

    pub(crate) const fn all(each: u32) -> Self {
        Self {
            cut_before: each,
            cut_after: each,
            cut_then_late: each,
            cut_in_answer: each,
            refused: each,
            failed_after: each,
            slow: each,
        }
    }

    fn kinds(self) -> [(Fault, u32); 7] {
        [
            (Fault::CutBefore, self.cut_before),
            (Fault::CutAfter, self.cut_after),
            (Fault::CutThenLate, self.cut_then_late),
            (Fault::CutInAnswer, self.cut_in_answer),
            (Fault::Refused, self.refused),
            (Fault::FailedAfter, self.failed_after),
            (Fault::Slow, self.slow),
        ]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    CutBefore,
    CutAfter,
    CutThenLate,
    CutInAnswer,
    Refused,
    FailedAfter,
    Slow,
}

const FAULT_CODE: &str = "InternalError";

/// A proxy on a loopback port, in front of one store.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    rates: Rates,
    seed: u64,
    /// Headers that are taken off on the way.
    taken_off: &'static [&'static str],
    requests: AtomicU64,
    faults: AtomicU64,
    stopped: AtomicBool,
    /// By method, in the order of [`METHODS`].
    by_method: [AtomicU64; 5],
    /// The heads of all requests, once somebody wants to read them.
    heads: Mutex<Option<Vec<String>>>,
    end: Mutex<Option<End>>,
    /// The store is gone, as far as anybody on this side can tell.
    is_dead: AtomicBool,
    refuses_puts: AtomicBool,
}

/// When the store shall be gone: with the request that this is true for, which is still carried out.
type End = Box<dyn FnMut(&str) -> bool + Send>;

/// What is counted apart. A listing is a GET with a query.
pub(crate) const METHODS: [&str; 5] = ["GET", "LIST", "PUT", "POST", "DELETE"];

#[allow(dead_code, reason = "each suite needs a part of it")]
impl Proxy {
    pub(crate) fn start(upstream: SocketAddr, rates: Rates, seed: u64, taken_off: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            upstream,
            rates,
            seed,
            taken_off,
            requests: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            by_method: Default::default(),
            heads: Mutex::new(None),
            end: Mutex::new(None),
            is_dead: AtomicBool::new(false),
            refuses_puts: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (client, serving) = (client.unwrap(), Arc::clone(&accepting));
                // One that breaks is what this is for.
                thread::spawn(move || drop(serving.serve(client)));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests that came, and how many of them went wrong.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let [requests, faults] = [&self.shared.requests, &self.shared.faults].map(|count| count.load(Ordering::SeqCst));
        (requests, faults)
    }

    /// Keeps the heads of requests from now on, for [`heads`](Self::heads).
    pub(crate) fn keep_heads(&self) {
        *self.shared.heads.lock() = Some(Vec::new());
    }

    /// The heads of the requests that came since heads are kept or were last asked for.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.shared
            .heads
            .lock()
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// From the first request on for which this is true of its head, the store is gone: that one is carried out, but its
    /// answer does not arrive.
    pub(crate) fn end_with(&self, end: impl FnMut(&str) -> bool + Send + 'static) {
        *self.shared.end.lock() = Some(Box::new(end));
    }

    /// From now on nobody has the right to put anything.
    pub(crate) fn refuse_puts(&self) {
        self.shared.refuses_puts.store(true, Ordering::SeqCst);
    }

    /// Whether the store is gone.
    pub(crate) fn is_dead(&self) -> bool {
        self.shared.is_dead.load(Ordering::SeqCst)
    }

    /// Requests that came, by the order of [`METHODS`].
    pub(crate) fn by_method(&self) -> [u64; 5] {
        [0, 1, 2, 3, 4].map(|method| self.shared.by_method[method].load(Ordering::SeqCst))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // The accept that is under way ends with this.
        drop(TcpStream::connect(self.address));
    }
}

/// A message as it came: its head with the empty line, and its body.
struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Message {
    /// `None` at the end of the connection.
    fn read(stream: &mut impl BufRead, is_answer_to_head: bool) -> io::Result<Option<Self>> {
        let mut head = Vec::new();
        loop {
            let line_from = head.len();
            if stream.read_until(b'\n', &mut head)? == 0 {
                return Ok(None);
            }
            if head[line_from..] == *b"\r\n" {
                break;
            }
        }
        let mut message = Self { head, body: Vec::new() };
        if is_answer_to_head {
            return Ok(Some(message));
        }
        if let Some(length) = message.header("content-length") {
            let length: usize = length.parse().map_err(io::Error::other)?;
            message.body = vec![0; length];
            stream.read_exact(&mut message.body)?;
        } else if message
            .header("transfer-encoding")
            .is_some_and(|coding| coding == "chunked")
        {
            message.read_chunks(stream)?;
        }
        Ok(Some(message))
    }

    /// Keeps the framing as it is.
    fn read_chunks(&mut self, stream: &mut impl BufRead) -> io::Result<()> {
        loop {
            let mut line = Vec::new();
            stream.read_until(b'\n', &mut line)?;
            let text = String::from_utf8_lossy(&line);
            let size = usize::from_str_radix(text.trim().split(';').next().unwrap_or_default(), 16);
            let size = size.map_err(io::Error::other)?;
            self.body.extend_from_slice(&line);
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk)?;
            self.body.extend_from_slice(&chunk);
            if size == 0 {
                return Ok(());
            }
        }
    }

    fn header(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.head).into_owned();
        text.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }

    fn without(mut self, headers: &[&str]) -> Self {
        let text = String::from_utf8_lossy(&self.head).into_owned();
        let stays = |line: &&str| {
            let name = line.split(':').next().unwrap_or_default();
            !headers.iter().any(|header| header.eq_ignore_ascii_case(name))
        };
        self.head = text
            .split_inclusive('\n')
            .filter(stays)
            .collect::<String>()
            .into_bytes();
        self
    }

    fn send(&self, stream: &mut impl Write) -> io::Result<()> {
        stream.write_all(&[&self.head[..], &self.body].concat())
    }
}

impl Shared {
    fn serve(&self, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut from_client = BufReader::new(client.try_clone()?);
        let mut to_client = client;
        while let Some(request) = Message::read(&mut from_client, false)? {
            let number = self.requests.fetch_add(1, Ordering::SeqCst);
            self.count(&request);
            if self.is_dead.load(Ordering::SeqCst) {
                return to_client.shutdown(Shutdown::Both);
            }
            if self.refuses_puts.load(Ordering::SeqCst) && request.head.starts_with(b"PUT ") {
                answer_with(&mut to_client, "403 Forbidden", "AccessDenied")?;
                continue;
            }
            if self.ends_with(&request) {
                self.ask(&request)?;
                return to_client.shutdown(Shutdown::Both);
            }
            let request = request.without(self.taken_off);
            let fault = self.draw(number);
            self.faults.fetch_add(u64::from(fault.is_some()), Ordering::SeqCst);
            match fault {
                Some(Fault::CutBefore) => return to_client.shutdown(Shutdown::Both),
                Some(Fault::CutThenLate) => {
                    to_client.shutdown(Shutdown::Both)?;
                    thread::sleep(Duration::from_millis(100 + number % 400));
                    return self.ask(&request).map(drop);
                }
                Some(Fault::Refused) => answer_with(&mut to_client, "503 Service Unavailable", FAULT_CODE)?,
                Some(Fault::Slow) => {
                    thread::sleep(Duration::from_millis(number % 300));
                    self.ask(&request)?.send(&mut to_client)?;
                }
                Some(Fault::CutAfter) => {
                    self.ask(&request)?;
                    return to_client.shutdown(Shutdown::Both);
                }
                Some(Fault::CutInAnswer) => {
                    let answer = self.ask(&request)?;
                    let whole = [answer.head, answer.body].concat();
                    to_client.write_all(&whole[..whole.len() / 2])?;
                    return to_client.shutdown(Shutdown::Both);
                }
                Some(Fault::FailedAfter) => {
                    self.ask(&request)?;
                    answer_with(&mut to_client, "500 Internal Server Error", FAULT_CODE)?;
                }
                None => self.ask(&request)?.send(&mut to_client)?,
            }
        }
        Ok(())
    }

    /// Each request has a connection of its own to the store. One that was kept might be closed just then, and a request that
    /// is sent twice for that may be refused for what it has done itself: a lie that no store tells.
    fn ask(&self, request: &Message) -> io::Result<Message> {
        let mut stream = TcpStream::connect(self.upstream)?;
        stream.set_nodelay(true)?;
        request.send(&mut stream)?;
        let answer = Message::read(&mut BufReader::new(stream), request.head.starts_with(b"HEAD"))?;
        answer.ok_or_else(|| io::ErrorKind::ConnectionAborted.into())
    }

    fn draw(&self, number: u64) -> Option<Fault> {
        let mut rng = fastrand::Rng::with_seed(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut drawn = rng.u32(..1000);
        for (fault, rate) in self.rates.kinds() {
            if drawn < rate {
                return Some(fault);
            }
            drawn -= rate;
        }
        None
    }

    /// True for the last request that is carried out.
    fn ends_with(&self, request: &Message) -> bool {
        let head = String::from_utf8_lossy(&request.head);
        if let Some(heads) = &mut *self.heads.lock() {
            heads.push(head.to_string());
        }
        let mut end = self.end.lock();
        let is_last = end.as_mut().is_some_and(|end| end(&head));
        if is_last {
            *end = None;
            self.is_dead.store(true, Ordering::SeqCst);
        }
        is_last
    }

    fn count(&self, request: &Message) {
        let text = String::from_utf8_lossy(&request.head);
        let mut words = text.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let method = match method {
            "GET" if target.contains("list-type=") || target.contains("comp=list") => "LIST",
            method => method,
        };
        if let Some(place) = METHODS.iter().position(|known| *known == method) {
            self.by_method[place].fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn answer_with(client: &mut TcpStream, status: &str, code: &str) -> io::Result<()> {
    let body = format!("<Error><Code>{code}</Code><Message>injected</Message></Error>");
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\r\n{body}");
    client.write_all(text.as_bytes())
}
