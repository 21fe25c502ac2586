//! Clients that acquire, update, remove, release and read at random servers, several at a time, and write down what they
//! saw. None of them knows when a server is about to be killed.
//!
//! What shows a mistake is a look at the right moment at the right server, so three things are done for that. Some clients
//! only read, all the time, and half of it on one key that is changed all the time, so that between any two changes somebody
//! looks. Whoever has changed something looks at once at all the *other* servers, which have had no time to hear of it. And
//! reads are of every kind that there is: the state, the description, the answer to an acquire.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::history::{Entry, Stopwatch};
use crate::http::{self, Connection};
use crate::model::{Answer, Call, KeyNo, LeaseNo, TxnNo, ValueNo};

/// A group of one key, on which more is going on than on others.
const HOT_GROUP: usize = 0;
/// Readers pause so long, so that they are no load.
const READER_PAUSE_US: u64 = 4_000;

/// A state that no client has written.
const FOREIGN: ValueNo = ValueNo::MAX;

/// What the clients of one round share.
pub(crate) struct Field {
    round: usize,
    /// There are few clients, who look twice.
    quiet: bool,
    /// The keys by group.
    pub(crate) names: Vec<Vec<String>>,
    pub(crate) watch: Stopwatch,
    /// The servers that run, by number.
    pub(crate) servers: Mutex<Vec<(usize, SocketAddr)>>,
    /// No more calls.
    pub(crate) over: AtomicBool,
    /// What no kill explains.
    pub(crate) faults: Mutex<Vec<String>>,
    numbers: AtomicU32,
    values: AtomicU64,
    etags: Mutex<HashMap<String, ValueNo>>,
}

impl Field {
    pub(crate) fn new(round: usize, names: Vec<Vec<String>>, quiet: bool) -> Self {
        Self {
            round,
            quiet,
            names,
            watch: Stopwatch::new(),
            servers: Mutex::new(Vec::new()),
            over: AtomicBool::new(false),
            faults: Mutex::new(Vec::new()),
            numbers: AtomicU32::new(1),
            values: AtomicU64::new(1),
            etags: Mutex::new(HashMap::new()),
        }
    }

    fn next_number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn new_value(&self) -> (ValueNo, Vec<u8>) {
        let value = self.values.fetch_add(1, Ordering::Relaxed);
        let bytes = bytes_of(value);
        self.etags
            .lock()
            .insert(lockd::state::hex(&Sha256::digest(&bytes)), value);
        (value, bytes)
    }

    /// Which state has this etag.
    fn value_of(&self, etag: &str) -> ValueNo {
        match etag {
            "" => 0,
            etag => self.etags.lock().get(etag).copied().unwrap_or(FOREIGN),
        }
    }
}

/// The state of this number: most are small, some become a body in the log, some a file, some are streamed there.
fn bytes_of(value: ValueNo) -> Vec<u8> {
    let pad = match value % 20 {
        0 => 90_000,
        1 | 2 => 30_000,
        3..=5 => 6_000,
        other => other as usize * 10,
    };
    format!("{{\"id\":{value},\"pad\":\"{}\"}}", "x".repeat(pad)).into_bytes()
}

/// One client.
pub(crate) struct Client<'a> {
    number: usize,
    field: &'a Field,
    rng: fastrand::Rng,
    connections: HashMap<usize, Connection>,
    entries: Vec<Entry>,
}

/// A lease as its holder knows it.
#[derive(Clone)]
struct Held {
    group: usize,
    key: KeyNo,
    number: LeaseNo,
    lease_id: String,
    txn_id: String,
    token: i64,
}

/// A request as it goes over the wire.
struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl<'a> Client<'a> {
    pub(crate) fn new(number: usize, field: &'a Field, seed: u64) -> Self {
        Self {
            number,
            field,
            rng: fastrand::Rng::with_seed(seed),
            connections: HashMap::new(),
            entries: Vec::new(),
        }
    }

    /// Works until the round is over.
    pub(crate) fn run(mut self) -> Vec<Entry> {
        while !self.field.over.load(Ordering::SeqCst) {
            match self.rng.u8(..10) {
                0..=3 => self.change_one(),
                4..=7 => self.change_several(),
                _ => self.read_several(),
            }
        }
        self.entries
    }

    /// Reads until the round is over.
    pub(crate) fn run_as_reader(mut self) -> Vec<Entry> {
        while !self.field.over.load(Ordering::SeqCst) {
            let group = match self.rng.bool() {
                true => HOT_GROUP,
                false => self.rng.usize(..self.field.names.len()),
            };
            let key = self.rng.usize(..self.field.names[group].len());
            match self.rng.u8(..4) {
                0 => self.describe(group, key),
                _ => self.read_public(group, key),
            }
            std::thread::sleep(Duration::from_micros(self.rng.u64(..READER_PAUSE_US)));
        }
        self.entries
    }

    /// Reads everything once, in both ways that there are.
    pub(crate) fn read_all(mut self) -> Vec<Entry> {
        for group in 0..self.field.names.len() {
            for key in 0..self.field.names[group].len() {
                self.read_public(group, key);
                self.describe(group, key);
            }
        }
        self.entries
    }

    fn change_one(&mut self) {
        let group = match self.rng.u8(..3) {
            0 => HOT_GROUP,
            _ => self.rng.usize(..self.field.names.len()),
        };
        let key = self.rng.usize(..self.field.names[group].len());
        let Some(held) = self.acquire(group, key, None) else {
            return;
        };
        for _ in 0..self.rng.usize(..3) {
            self.use_lease(&held);
        }
        self.finish(&held);
    }

    /// A transaction: all leases first, then changes under some of them, then one release decides.
    fn change_several(&mut self) {
        let groups: Vec<usize> = (0..self.field.names.len())
            .filter(|group| 1 < self.field.names[*group].len())
            .collect();
        let group = groups[self.rng.usize(..groups.len())];
        let mut keys: Vec<KeyNo> = (0..self.field.names[group].len()).collect();
        self.rng.shuffle(&mut keys);
        // Named by the client, or the one that the first acquire has minted.
        let mut txn = self.rng.bool().then(|| {
            let number = self.field.next_number();
            (number, txn_id(self.field.round, number))
        });
        let mut held: Vec<Held> = Vec::new();
        for key in keys {
            let Some(lease) = self.acquire(group, key, txn.clone()) else {
                break;
            };
            txn.get_or_insert_with(|| (lease.number, lease.txn_id.clone()));
            held.push(lease);
        }
        for lease in &held.clone() {
            if self.rng.u8(..5) != 0 {
                self.use_lease(lease);
            }
        }
        // Sometimes long enough for a lease to end in the middle of the transaction.
        if self.rng.u8(..8) == 0 {
            std::thread::sleep(Duration::from_millis(self.rng.u64(..800)));
        }
        self.rng.shuffle(&mut held);
        for lease in &held {
            self.finish(lease);
        }
    }

    fn read_several(&mut self) {
        let group = self.rng.usize(..self.field.names.len());
        for _ in 0..self.rng.usize(1..4) {
            let key = self.rng.usize(..self.field.names[group].len());
            self.read_public(group, key);
        }
    }

    fn acquire(&mut self, group: usize, key: KeyNo, txn: Option<(TxnNo, String)>) -> Option<Held> {
        let number = self.field.next_number();
        let ttl_seconds = [1, 1, 2, 30][self.rng.usize(..4)];
        let block_seconds = if self.rng.u8(..4) == 0 { 1 } else { -1 };
        let mut body = json!({"key": self.field.names[group][key], "owner": format!("client {}", self.number),
            "ttl_seconds": ttl_seconds, "block_seconds": block_seconds});
        let txn_number = txn.as_ref().map_or(0, |(number, _)| *number);
        if let Some((_, id)) = txn {
            body["txn_id"] = id.into();
        }
        let call = Call::Acquire {
            lease: number,
            txn: txn_number,
            ttl_seconds,
        };
        let request = post("acquire", body.to_string().into_bytes());
        let (answer, got) = self.call(group, key, call, request)?;
        let Answer::Granted { token, .. } = answer else {
            if answer == Answer::Waiting {
                // Somebody else is at it; a real client would do something else for a while, too.
                std::thread::sleep(Duration::from_millis(self.rng.u64(..10)));
            }
            return None;
        };
        let text = |name: &str| got[name].as_str().unwrap_or_default().to_owned();
        Some(Held {
            group,
            key,
            number,
            lease_id: text("lease_id"),
            txn_id: text("txn_id"),
            token,
        })
    }

    fn use_lease(&mut self, held: &Held) {
        let (call, endpoint, body) = match self.rng.u8(..8) {
            0 => (Call::Remove { lease: held.number }, "remove", Vec::new()),
            1 => (Call::ReadLeased { lease: held.number }, "get", Vec::new()),
            _ => {
                let (value, bytes) = self.field.new_value();
                let lease = held.number;
                (Call::Update { lease, value }, "update", bytes)
            }
        };
        // After an answer that never came, the same call is made again, perhaps elsewhere.
        for _ in 0..3 {
            let request = Request {
                headers: vec![
                    ("X-Lease-ID", held.lease_id.clone()),
                    ("X-Txn-ID", held.txn_id.clone()),
                    ("X-Fencing-Token", held.token.to_string()),
                ],
                path: format!("/v1/{endpoint}?key={}", self.field.names[held.group][held.key]),
                ..post(endpoint, body.clone())
            };
            match self.call(held.group, held.key, call, request) {
                Some((Answer::Unknown, _)) if self.rng.bool() => {}
                _ => return,
            }
        }
    }

    /// Ends a lease: mostly commits, sometimes rolls back, seldom forgets it.
    fn finish(&mut self, held: &Held) {
        let choice = self.rng.u8(..20);
        if choice == 0 {
            return;
        }
        let rollback = choice < 4;
        let body = json!({"key": self.field.names[held.group][held.key], "lease_id": held.lease_id,
            "txn_id": held.txn_id, "rollback": rollback});
        for _ in 0..3 {
            let request = Request {
                headers: vec![("X-Fencing-Token", held.token.to_string())],
                ..post("release", body.to_string().into_bytes())
            };
            let call = Call::Release {
                lease: held.number,
                rollback,
            };
            match self.call(held.group, held.key, call, request) {
                Some((Answer::Unknown, _)) if self.rng.u8(..4) != 0 => {}
                // What was just committed must be there at once, whichever server is asked.
                Some(_) if self.field.quiet || self.rng.u8(..4) != 0 => {
                    return self.read_elsewhere(held.group, held.key);
                }
                _ => return,
            }
        }
    }

    /// Reads a key at every server but the one that has answered last.
    fn read_elsewhere(&mut self, group: usize, key: KeyNo) {
        let last = self.entries.last().map(|entry| entry.server);
        let servers = self.field.servers.lock().clone();
        for (server, _) in servers.iter().filter(|(number, _)| Some(*number) != last) {
            // Only where no time is lost by connecting.
            if self.connections.contains_key(server) {
                let path = format!("/v1/get?key={}&public=1", self.field.names[group][key]);
                self.call_at(*server, group, key, Call::ReadPublic, get(path));
            }
        }
    }

    fn read_public(&mut self, group: usize, key: KeyNo) {
        let path = format!("/v1/get?key={}&public=1", self.field.names[group][key]);
        self.call(group, key, Call::ReadPublic, get(path));
    }

    fn describe(&mut self, group: usize, key: KeyNo) {
        let path = format!("/v1/describe?key={}", self.field.names[group][key]);
        self.call(group, key, Call::ReadPublic, get(path));
    }

    /// Makes one call at a random server and writes it down. None: there was no server to call, so nothing was called.
    fn call(&mut self, group: usize, key: KeyNo, call: Call, request: Request) -> Option<(Answer, Value)> {
        let server = self.connect()?;
        self.call_at(server, group, key, call, request)
    }

    /// The same at a server to which there is a connection.
    fn call_at(
        &mut self,
        server: usize,
        group: usize,
        key: KeyNo,
        call: Call,
        request: Request,
    ) -> Option<(Answer, Value)> {
        let connection = self.connections.get_mut(&server)?;
        let called = self.field.watch.stamp();
        let got = request.send(connection);
        let ended = self.field.watch.stamp();
        let (answer, json, note) = match got {
            Ok(got) => self.understand(call, &got),
            Err(cause) => {
                self.connections.remove(&server);
                (Answer::Unknown, Value::Null, cause.to_string())
            }
        };
        self.entries.push(Entry {
            client: self.number,
            server,
            group,
            key,
            call,
            answer,
            called,
            ended,
            note,
        });
        Some((answer, json))
    }

    /// Chooses a server that can be reached.
    fn connect(&mut self) -> Option<usize> {
        while !self.field.over.load(Ordering::SeqCst) {
            let servers = self.field.servers.lock().clone();
            if let Some((number, address)) = servers.get(self.rng.usize(..servers.len().max(1))) {
                if self.connections.contains_key(number) {
                    return Some(*number);
                }
                if let Ok(connection) = Connection::try_open(*address) {
                    self.connections.insert(*number, connection);
                    return Some(*number);
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        None
    }

    fn understand(&self, call: Call, got: &http::Answer) -> (Answer, Value, String) {
        let json: Value = serde_json::from_slice(&got.body).unwrap_or(Value::Null);
        let (mut note, code) = (String::new(), json["error"].as_str().unwrap_or_default());
        let number = |name: &str| json[name].as_i64().unwrap_or_default();
        let answer = match (got.status, call) {
            (200, Call::Acquire { .. }) => Answer::Granted {
                token: number("fencing_token"),
                version: number("version"),
                value: self.field.value_of(json["state_etag"].as_str().unwrap_or_default()),
                expires_at_unix: number("expires_at_unix"),
            },
            (200, Call::Update { .. }) => Answer::Staged(number("new_version")),
            (200, Call::Remove { .. }) if json["removed"] == json!(true) => Answer::Staged(number("new_version")),
            (200, Call::Remove { .. }) => Answer::NothingToRemove(number("new_version")),
            (200, Call::Release { .. }) => Answer::Released,
            (204, Call::ReadLeased { .. } | Call::ReadPublic) => Answer::NoState,
            (200, Call::ReadLeased { .. } | Call::ReadPublic) => match got.header("X-Key-Version") {
                Some(version) => Answer::State {
                    version: version.parse().unwrap_or(-1),
                    value: json["id"]
                        .as_u64()
                        .filter(|value| bytes_of(*value) == got.body)
                        .unwrap_or_else(|| {
                            note = format!(
                                "a state that nobody has written: {:.80}",
                                String::from_utf8_lossy(&got.body)
                            );
                            FOREIGN
                        }),
                },
                // An answer to describe.
                None if json["state_etag"].is_null() => Answer::NoState,
                None => Answer::State {
                    version: number("version"),
                    value: self.field.value_of(json["state_etag"].as_str().unwrap_or_default()),
                },
            },
            (403, _) if matches!(code, "lease_required" | "lease_expired") => Answer::NotHolder,
            (409, Call::Acquire { .. }) if code == "waiting" => Answer::Waiting,
            (409, Call::Release { .. }) if code == "txn_conflict" => Answer::Conflict,
            (503, _) => {
                note = code.to_owned();
                Answer::Unknown
            }
            _ => {
                note = format!("{} {:.200}", got.status, String::from_utf8_lossy(&got.body));
                self.field.faults.lock().push(format!("{call:?}: {note}"));
                Answer::Unknown
            }
        };
        (answer, json, note)
    }
}

impl Request {
    fn send(&self, connection: &mut Connection) -> io::Result<http::Answer> {
        let headers: Vec<(&str, &str)> = self
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        connection.try_send_request(self.method, &self.path, &headers, &self.body)?;
        connection.try_read_answer()
    }
}

fn post(endpoint: &str, body: Vec<u8>) -> Request {
    Request {
        method: "POST",
        path: format!("/v1/{endpoint}"),
        headers: vec![],
        body,
    }
}

fn get(path: String) -> Request {
    Request {
        method: "GET",
        path,
        headers: vec![],
        body: vec![],
    }
}

/// An xid for a transaction that a client names: never used before on this root, and no server mints one like it.
fn txn_id(round: usize, number: TxnNo) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let digits = |mut part: u64, count: usize| {
        let mut digits: Vec<u8> = Vec::new();
        for _ in 0..count {
            digits.push(ALPHABET[(part % 32) as usize]);
            part /= 32;
        }
        digits.into_iter().rev().map(char::from).collect::<String>()
    };
    format!("0crash{}{}g", digits(round as u64, 6), digits(u64::from(number), 7))
}
