//! The calls of the queue endpoints, as short as a test wants them, and a reader of deliveries that is strict about every
//! byte of their framing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockd::clock::SharedClock;
use serde_json::{Value, json};

use super::fixture::{Backend, ServerOptions, TestServer};
use super::http::{Answer, Connection, send};

/// Conditions come true within this time, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// How queues learn of what other servers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As the store can.
    Feed,
    /// By polling alone.
    Polling,
}

/// Whether a claim is to be run: those about queues by polling in memory, and those that take long, only if asked for.
pub fn is_wanted(module: &str, backend: &str, mode: Mode, takes_long: bool) -> bool {
    let asked = |variable: &str| std::env::var(variable).is_ok_and(|value| value == "1");
    let polls = module.starts_with("queue") && backend == "mem" && mode == Mode::Polling;
    if takes_long && !asked("LOCKD_LQ_EXTENDED") {
        eprintln!("SKIPPED: takes long; LOCKD_LQ_EXTENDED=1 runs it");
        return false;
    }
    if polls && !asked("LOCKD_LQ_INCLUDE_POLLING") && !asked("LOCKD_LQ_EXTENDED") {
        eprintln!("SKIPPED: queues by polling; LOCKD_LQ_INCLUDE_POLLING=1 runs it");
        return false;
    }
    true
}

/// Settings of the queue suites, in the mode of the backend.
pub fn queue_options(backend: &dyn Backend) -> ServerOptions {
    let mut options = ServerOptions::default();
    options.settings.max_ttl = Duration::from_secs(120);
    let queue = &mut options.settings.queue;
    queue.poll_jitter = Duration::ZERO;
    if backend.queue_mode() == Mode::Polling {
        queue.watch_mem = false;
        queue.watch_disk = false;
        queue.poll_interval = Duration::from_millis(if backend.name() == "mem" { 5 } else { 50 });
    }
    options.log = Some(log::Level::Trace);
    options
}

/// One server over a fresh place.
pub fn queue_server(backend: &dyn Backend) -> TestServer {
    queue_server_with(backend, |_| ())
}

/// The same with other settings.
pub fn queue_server_with(backend: &dyn Backend, change: impl FnOnce(&mut ServerOptions)) -> TestServer {
    let mut options = queue_options(backend);
    change(&mut options);
    TestServer::start(backend.open().store(), options)
}

/// One server whose clock only the test moves.
pub fn queue_server_at(backend: &dyn Backend, clock: SharedClock) -> TestServer {
    queue_server_with(backend, |options| options.clock = clock)
}

/// `POST` of a JSON body to a queue endpoint.
pub fn post(address: SocketAddr, endpoint: &str, body: &Value) -> Answer {
    send(
        address,
        "POST",
        &format!("/v1/queue/{endpoint}"),
        &[],
        body.to_string().as_bytes(),
    )
}

/// The body of an enqueue.
pub fn enqueue_body(boundary: &str, meta: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"meta\"\r\nContent-Type: application/json\r\n\r\n\
         {meta}\n\r\n--{boundary}\r\nContent-Disposition: form-data; name=\"payload\"\r\n\
         Content-Type: text/plain\r\n\r\n"
    );
    [head.as_bytes(), payload, format!("\r\n--{boundary}--\r\n").as_bytes()].concat()
}

/// `POST /v1/queue/enqueue` with this meta part.
pub fn enqueue_with(address: SocketAddr, headers: &[(&str, &str)], meta: &Value, payload: &[u8]) -> Answer {
    let boundary = "b0undary-of-the-tests";
    let content_type = format!("multipart/related; boundary={boundary}");
    let mut all = vec![("Content-Type", content_type.as_str())];
    all.extend_from_slice(headers);
    let body = enqueue_body(boundary, &meta.to_string(), payload);
    send(address, "POST", "/v1/queue/enqueue", &all, &body)
}

/// Enqueues a text and insists. Returns the id.
#[track_caller]
pub fn enqueue(address: SocketAddr, queue: &str, payload: &[u8]) -> String {
    enqueue_meta(address, &json!({"queue": queue}), payload)
}

/// The same with more to say.
#[track_caller]
pub fn enqueue_meta(address: SocketAddr, meta: &Value, payload: &[u8]) -> String {
    let answer = enqueue_with(address, &[], meta, payload).expect(200);
    answer.field("message_id").as_str().expect("an id").to_owned()
}

/// A message as its consumer knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub address: SocketAddr,
    pub meta: Value,
    pub payload: Vec<u8>,
    /// The file names of the parts, when they have one.
    pub files: Option<(String, String)>,
}

/// The body of a dequeue or subscribe that does not wait, for 30 seconds.
pub fn wish(queue: &str) -> Value {
    json!({"queue": queue, "owner": "test", "visibility_timeout_seconds": 30, "wait_seconds": -1})
}

/// The same, and waits.
pub fn wish_waiting(queue: &str, seconds: i64) -> Value {
    json!({"queue": queue, "owner": "test", "visibility_timeout_seconds": 30, "wait_seconds": seconds})
}

/// Dequeues with this body: messages, or the refusal.
pub fn dequeue_with(address: SocketAddr, endpoint: &str, body: &Value) -> Result<Vec<Message>, Answer> {
    let answer = post(address, endpoint, body);
    if answer.status == 200 {
        Ok(deliveries(address, &answer))
    } else {
        Err(answer)
    }
}

/// Dequeues one message and insists; waits up to 10 s.
#[track_caller]
pub fn take(address: SocketAddr, queue: &str) -> Message {
    take_by(address, "dequeue", &wish_waiting(queue, 10))
}

/// The same with state.
#[track_caller]
pub fn take_with_state(address: SocketAddr, queue: &str) -> Message {
    take_by(address, "dequeueWithState", &wish_waiting(queue, 10))
}

/// Dequeues one message in the given way and insists.
#[track_caller]
pub fn take_by(address: SocketAddr, endpoint: &str, body: &Value) -> Message {
    let mut messages = dequeue_with(address, endpoint, body).unwrap_or_else(|answer| panic!("{answer:?}"));
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

/// Fails unless a dequeue without patience finds nothing.
#[track_caller]
pub fn assert_empty(address: SocketAddr, queue: &str) {
    let answer = dequeue_with(address, "dequeue", &wish(queue)).expect_err("the queue is empty");
    assert_eq!(answer.error(), (409, "waiting".to_owned()));
}

/// What stats say.
pub fn stats(address: SocketAddr, queue: &str) -> Value {
    post(address, "stats", &json!({"queue": queue})).expect(200).json()
}

impl Message {
    fn text(&self, name: &str) -> String {
        self.meta[name].as_str().unwrap_or_default().to_owned()
    }

    pub fn id(&self) -> String {
        self.text("message_id")
    }

    pub fn number(&self, name: &str) -> i64 {
        self.meta[name].as_i64().unwrap_or_default()
    }

    /// The same message for a consumer of another server.
    pub fn at(&self, address: SocketAddr) -> Self {
        Self {
            address,
            ..self.clone()
        }
    }

    /// What its holder sends along with every call about it.
    pub fn proof(&self) -> Value {
        let mut proof = json!({"namespace": self.meta["namespace"], "queue": self.meta["queue"],
            "message_id": self.meta["message_id"], "lease_id": self.meta["lease_id"], "txn_id": self.meta["txn_id"],
            "fencing_token": self.meta["fencing_token"], "meta_etag": self.meta["meta_etag"]});
        for name in ["state_lease_id", "state_fencing_token"] {
            if let Some(value) = self.meta.get(name) {
                proof[name] = value.clone();
            }
        }
        proof
    }

    /// The proof with other or more members.
    pub fn proof_with(&self, more: &Value) -> Value {
        let mut proof = self.proof();
        for (name, value) in more.as_object().expect("an object") {
            proof[name] = value.clone();
        }
        proof
    }

    pub fn ack(&self) -> Answer {
        post(self.address, "ack", &self.proof())
    }

    pub fn nack(&self, more: &Value) -> Answer {
        post(self.address, "nack", &self.proof_with(more))
    }

    pub fn extend(&self, seconds: i64) -> Answer {
        post(
            self.address,
            "extend",
            &self.proof_with(&json!({"extend_by_seconds": seconds})),
        )
    }
}

/// The messages of a whole answer.
#[track_caller]
pub fn deliveries(address: SocketAddr, answer: &Answer) -> Vec<Message> {
    let boundary = boundary_of(answer);
    let mut rest = answer.body.as_slice();
    let mut messages = Vec::new();
    let delimiter = format!("--{boundary}");
    rest = rest.strip_prefix(delimiter.as_bytes()).expect("the first delimiter");
    while rest != b"--\r\n" {
        let (message, used) = read_delivery(address, rest, &boundary).expect("a delivery is whole");
        messages.push(message);
        rest = &rest[used..];
        let delimiter = format!("\r\n--{boundary}");
        rest = rest.strip_prefix(delimiter.as_bytes()).expect("the next delimiter");
    }
    messages
}

/// The boundary of an answer: 60 hex digits.
#[track_caller]
pub fn boundary_of(answer: &Answer) -> String {
    let content_type = answer.header("Content-Type").expect("a media type");
    let boundary = content_type.strip_prefix("multipart/related; boundary=");
    let boundary = boundary.unwrap_or_else(|| panic!("{content_type}"));
    assert_eq!(boundary.len(), 60);
    assert!(
        boundary
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    );
    boundary.to_owned()
}

/// Reads one delivery, from behind its first delimiter up to the end of its payload. `None`: not all of it is here.
fn read_delivery(address: SocketAddr, bytes: &[u8], boundary: &str) -> Option<(Message, usize)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("heads are text");
    let meta_at = find(bytes, b"\r\n\r\n")? + 4;
    let meta_head = text(&bytes[..meta_at]);
    let meta_end = meta_at + find(&bytes[meta_at..], b"\n\r\n--")?;
    let payload_head_at = meta_end + 1 + 4 + boundary.len();
    let payload_at = payload_head_at + find(bytes.get(payload_head_at..)?, b"\r\n\r\n")? + 4;
    assert_eq!(
        &bytes[meta_end..payload_head_at],
        format!("\n\r\n--{boundary}").as_bytes()
    );
    let payload_head = text(&bytes[payload_head_at..payload_at]);
    let delivery: Value = serde_json::from_slice(&bytes[meta_at..meta_end]).expect("the meta part is JSON");
    assert_eq!(delivery.as_object().expect("an object").len(), 1);
    let meta = delivery["message"].clone();
    let length = meta["payload_bytes"].as_u64().expect("a length");
    let payload_type = meta["payload_content_type"].as_str().expect("a media type");
    // Every byte of both heads is known, but for the file names.
    let files = file_name(&meta_head).zip(file_name(&payload_head));
    let shown = |name: Option<&String>| name.map_or(String::new(), |name| format!("; filename=\"{name}\""));
    let expected_meta = format!(
        "\r\nContent-Disposition: form-data; name=\"meta\"{}\r\nContent-Type: application/json\r\n\r\n",
        shown(files.as_ref().map(|files| &files.0))
    );
    let expected_payload = format!(
        "\r\nContent-Disposition: form-data; name=\"payload\"{}\r\nContent-Length: {length}\r\n\
         Content-Type: {payload_type}\r\n\r\n",
        shown(files.as_ref().map(|files| &files.1))
    );
    assert_eq!((meta_head, payload_head), (expected_meta, expected_payload));
    let end = payload_at + usize::try_from(length).unwrap();
    let payload = bytes.get(payload_at..end)?.to_vec();
    let message = Message {
        address,
        meta,
        payload,
        files,
    };
    Some((message, end))
}

fn file_name(head: &str) -> Option<String> {
    let (_, rest) = head.split_once("filename=\"")?;
    rest.split_once('"').map(|(name, _)| name.to_owned())
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// A subscription under way.
pub struct Stream {
    address: SocketAddr,
    connection: Connection,
    boundary: String,
    /// What has arrived and is not read yet.
    arrived: Vec<u8>,
    ended: bool,
}

impl Stream {
    /// Subscribes and does not wait for anything.
    pub fn request(address: SocketAddr, endpoint: &str, body: &Value) -> Connection {
        let mut connection = Connection::open(address);
        let path = format!("/v1/queue/{endpoint}");
        connection.send_request("POST", &path, &[], body.to_string().as_bytes());
        connection
    }

    /// Subscribes and waits for the head, or for the refusal.
    pub fn open(address: SocketAddr, endpoint: &str, body: &Value) -> Result<Self, Answer> {
        Self::begin(address, Self::request(address, endpoint, body))
    }

    /// Waits for the head of what was requested, or for the refusal.
    pub fn begin(address: SocketAddr, mut connection: Connection) -> Result<Self, Answer> {
        let mut answer = connection.try_read_head().expect("the server answers");
        if answer.status != 200 {
            let length = answer.header("Content-Length").map_or(0, |text| text.parse().unwrap());
            answer.body = connection.read_bytes(length);
            return Err(answer);
        }
        assert!(answer.is_chunked());
        let boundary = boundary_of(&answer);
        let mut stream = Self {
            address,
            connection,
            boundary,
            arrived: Vec::new(),
            ended: false,
        };
        let first = format!("--{}", stream.boundary);
        while stream.arrived.len() < first.len() {
            assert!(stream.arrive());
        }
        assert_eq!(stream.arrived[..first.len()], *first.as_bytes());
        stream.arrived.drain(..first.len());
        Ok(stream)
    }

    /// The next message, as soon as its last byte is here; `None` when the closing line says that there is none. Panics if
    /// the stream breaks off.
    pub fn next(&mut self) -> Option<Message> {
        loop {
            if self.arrived.starts_with(b"--") {
                while !self.ended {
                    self.ended = !self.arrive();
                }
                // Nothing follows the closing line.
                assert_eq!(self.arrived, b"--\r\n");
                return None;
            }
            if let Some((message, used)) = read_delivery(self.address, &self.arrived, &self.boundary) {
                self.arrived.drain(..used);
                let next = format!("\r\n--{}", self.boundary);
                // The next delimiter comes along.
                while self.arrived.len() < next.len() {
                    assert!(self.arrive());
                }
                assert_eq!(self.arrived[..next.len()], *next.as_bytes());
                self.arrived.drain(..next.len());
                return Some(message);
            }
            assert!(self.arrive(), "the stream ended in the middle");
        }
    }

    /// True when nothing comes within this time.
    pub fn is_silent_for(&mut self, span: Duration) -> bool {
        self.arrived.is_empty() && self.connection.is_silent_for(span)
    }

    /// Closes the connection like a client that has gone.
    pub fn abort(self) {
        self.connection.abort();
    }

    fn arrive(&mut self) -> bool {
        match self.connection.try_read_chunk().expect("the stream goes on") {
            Some(chunk) => {
                self.arrived.extend_from_slice(&chunk);
                true
            }
            None => false,
        }
    }
}

/// Calls again and again until it gives something.
#[track_caller]
pub fn until_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
