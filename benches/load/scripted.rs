//! A small server for the tests of the load generator: it answers like lockd, keeps leases in memory and can be told to
//! misbehave. A thread per connection; waiting acquires wait in their thread.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// How the server misbehaves.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manners {
    /// Ends each connection after so many answers; 0 never.
    pub(crate) answers_per_connection: u64,
    /// Refuses every n-th update; 0 none.
    pub(crate) refused_update: u64,
    /// Sends bodies in chunks of this many bytes; 0 with a length.
    pub(crate) chunk_bytes: usize,
}

/// A server on a port of its own. It serves until the process ends.
#[derive(Debug)]
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    manners: Manners,
    keys: Mutex<HashMap<String, Key>>,
    updates: AtomicU64,
    requests: AtomicU64,
}

#[derive(Debug, Default)]
struct Key {
    /// Wakes one of those who wait for this key.
    released: Arc<Condvar>,
    token: i64,
    held: bool,
    staged: Option<Vec<u8>>,
    state: Option<Vec<u8>>,
    version: i64,
}

impl Scripted {
    pub(crate) fn start(manners: Manners) -> Self {
        Self::listen(TcpListener::bind("127.0.0.1:0").unwrap(), manners)
    }

    pub(crate) fn listen(listener: TcpListener, manners: Manners) -> Self {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            manners,
            ..Shared::default()
        });
        let serving = shared.clone();
        let accept = move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serving = serving.clone();
                let serve = move || serving.serve(&stream).unwrap_or_default();
                thread::Builder::new().stack_size(128 * 1024).spawn(serve).unwrap();
            }
        };
        thread::Builder::new().spawn(accept).unwrap();
        Self { address, shared }
    }

    /// Requests answered so far.
    pub(crate) fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Keys that are leased now.
    pub(crate) fn held(&self) -> usize {
        self.shared.keys.lock().unwrap().values().filter(|key| key.held).count()
    }

    /// The committed states, and the versions they have.
    pub(crate) fn states(&self) -> Vec<(Vec<u8>, i64)> {
        let keys = self.shared.keys.lock().unwrap();
        keys.values()
            .filter_map(|key| Some((key.state.clone()?, key.version)))
            .collect()
    }
}

impl Shared {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        let mut answers = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
            let mut headers = HashMap::new();
            loop {
                line.clear();
                reader.read_line(&mut line)?;
                let Some((name, value)) = line.trim_end().split_once(": ") else {
                    break;
                };
                headers.insert(name.to_ascii_lowercase(), value.to_owned());
            }
            let length = headers
                .get("content-length")
                .map_or(0, |length| length.parse().unwrap());
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let (status, answer) = self.answer(&target, &headers, &body);
            self.requests.fetch_add(1, Ordering::SeqCst);
            answers += 1;
            let last = answers == self.manners.answers_per_connection;
            let mut out = format!("HTTP/1.1 {status} Reason\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n").into_bytes();
            if last {
                out.extend_from_slice(b"Connection: close\r\n");
            }
            if self.manners.chunk_bytes == 0 {
                write!(
                    out,
                    "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                    answer.len()
                )?;
                out.extend_from_slice(&answer);
            } else {
                out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                for chunk in answer.chunks(self.manners.chunk_bytes) {
                    write!(out, "{:x}\r\n", chunk.len())?;
                    out.extend_from_slice(chunk);
                    out.extend_from_slice(b"\r\n");
                }
                out.extend_from_slice(b"0\r\n\r\n");
            }
            (&*stream).write_all(&out)?;
            if last {
                return Ok(());
            }
        }
    }

    fn answer(&self, target: &str, headers: &HashMap<String, String>, body: &[u8]) -> (u16, Vec<u8>) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        let query_key = || {
            let pair = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "key");
            pair.map(|(_, value)| value.into_owned()).unwrap_or_default()
        };
        let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
        let mut keys = self.keys.lock().unwrap();
        match path {
            "/healthz" => (200, Vec::new()),
            "/v1/acquire" => {
                let name = text("key");
                let block = json["block_seconds"].as_i64().unwrap();
                while let Some(key) = keys.get(&name).filter(|key| key.held) {
                    if block < 0 {
                        return refusal(409, "waiting");
                    }
                    let released = key.released.clone();
                    keys = released.wait(keys).unwrap();
                }
                let key = keys.entry(name.clone()).or_default();
                key.held = true;
                key.token += 1;
                let answer = format!(
                    r#"{{"namespace":"default","lease_id":"{0}","txn_id":"{0}g","key":"{name}","owner":"bench","expires_at_unix":1767261660,"version":{1},"fencing_token":{2},"correlation_id":"0198d2b5-11f0-7c42-b3a7-9e5d04c6812f"}}"#,
                    lease_id(key),
                    key.version,
                    key.token
                );
                (200, answer.into_bytes())
            }
            "/v1/update" => {
                let number = self.updates.fetch_add(1, Ordering::SeqCst) + 1;
                if self.manners.refused_update > 0 && number.is_multiple_of(self.manners.refused_update) {
                    return refusal(503, "staging_unavailable");
                }
                let Some(key) = keys.get_mut(&query_key()) else {
                    return refusal(403, "lease_required");
                };
                if !key.held || header("x-lease-id") != lease_id(key) {
                    return refusal(403, "lease_required");
                }
                if header("x-fencing-token") != key.token.to_string() {
                    return refusal(403, "fencing_mismatch");
                }
                if header("x-txn-id") != lease_id(key) + "g" || json.is_null() {
                    return refusal(400, "invalid_body");
                }
                key.staged = Some(body.to_vec());
                let version = key.version + 1;
                (
                    200,
                    format!(r#"{{"new_version":{version},"bytes":{},"metadata":{{}}}}"#, body.len()).into_bytes(),
                )
            }
            "/v1/release" => {
                if let Some(key) = keys.get_mut(&text("key"))
                    && key.held
                    && text("lease_id") == lease_id(key)
                    && text("txn_id") == lease_id(key) + "g"
                    && header("x-fencing-token") == key.token.to_string()
                {
                    key.held = false;
                    if let Some(state) = key.staged.take() {
                        key.state = Some(state);
                        key.version += 1;
                    }
                    key.released.notify_one();
                }
                (200, b"{\"released\":true}\n".to_vec())
            }
            "/v1/get" => match keys.get(&query_key()).and_then(|key| key.state.clone()) {
                Some(state) if query.contains("public=1") => (200, state),
                Some(_) => refusal(400, "missing_fencing_token"),
                None => (204, Vec::new()),
            },
            _ => refusal(404, "not_found"),
        }
    }
}

fn lease_id(key: &Key) -> String {
    format!("d4k7q2m0h5r8{:07}", key.token)
}

fn refusal(status: u16, code: &str) -> (u16, Vec<u8>) {
    (
        status,
        format!(r#"{{"error":"{code}","detail":"as scripted"}}"#).into_bytes(),
    )
}
