//! What one connection says: the requests of each workload and how an answer leads to the next request.
//!
//! Nothing here reads or writes a socket, so the same conversation serves every way of driving connections.

use std::io::Write;

use crate::http::{Answer, json_field};
use crate::measure::Errors;
use crate::options::Options;

/// The digits at the beginning of each payload, and thus the shortest payload.
pub(crate) const STAMP_BYTES: usize = 20;
/// How long a dequeue waits. There is always a message for it, but perhaps not yet.
const DEQUEUE_WAIT_SECONDS: u64 = 20;
const BOUNDARY: &str = "b0undary-of-the-load-generator-4c1f3a";

/// The shortest document: `{"n":"` and ten digits and `"}`.
pub(crate) const DOCUMENT_BYTES_MIN: usize = 18;

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    Health,
    Lease,
    Lock,
    PublicRead,
    Queue,
    /// Not a conversation that repeats; see the module `subscribe`.
    QueueSubscribe,
    /// Not a conversation that repeats; see the module `parked`.
    Parked,
    /// The same with messages.
    ParkedQueue,
}

impl Workload {
    /// The workload of this name.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        let all = [
            Self::Health,
            Self::Lease,
            Self::Lock,
            Self::PublicRead,
            Self::Queue,
            Self::QueueSubscribe,
            Self::Parked,
            Self::ParkedQueue,
        ];
        all.into_iter().find(|workload| workload.name() == name).ok_or_else(|| {
            "the workloads are health, lease, lock, public-read, queue, queue-subscribe, parked and parked-queue"
                .to_owned()
        })
    }

    /// Its name on the command line and in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Lease => "lease",
            Self::Lock => "lock",
            Self::PublicRead => "public-read",
            Self::Queue => "queue",
            Self::QueueSubscribe => "queue-subscribe",
            Self::Parked => "parked",
            Self::ParkedQueue => "parked-queue",
        }
    }
}

/// What requests are made of; the same for all connections of one run.
#[derive(Debug, Clone)]
pub(crate) struct Phrases {
    host: String,
    namespace: String,
    key_prefix: String,
    ttl_seconds: i64,
    block_seconds: i64,
    document_bytes: usize,
    payload_bytes: usize,
}

impl Phrases {
    /// Phrases for keys that no earlier run has used.
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            host: options.host.clone(),
            namespace: options.namespace.clone(),
            key_prefix: format!("bench-{:08x}", fastrand::u32(..)),
            ttl_seconds: options.ttl_seconds,
            block_seconds: options.block_seconds,
            document_bytes: options.document_bytes,
            payload_bytes: options.payload_bytes,
        }
    }

    /// Replaces the content of `out` by a request for `/healthz`.
    pub(crate) fn health(&self, out: &mut Vec<u8>) {
        out.clear();
        push(
            out,
            format_args!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", self.host),
        );
    }

    /// The same for acquire, waiting as the options say.
    pub(crate) fn acquire(&self, out: &mut Vec<u8>, key: u64) {
        self.acquire_blocking(out, key, self.block_seconds);
    }

    /// The same for acquire.
    pub(crate) fn acquire_blocking(&self, out: &mut Vec<u8>, key: u64, block_seconds: i64) {
        let Self {
            namespace,
            key_prefix,
            ttl_seconds,
            ..
        } = self;
        self.post_json(out, "/v1/acquire", "", |out| {
            push(
                out,
                format_args!(
                    r#"{{"namespace":"{namespace}","key":"{key_prefix}-{key:08}","ttl_seconds":{ttl_seconds},"#
                ),
            );
            push(
                out,
                format_args!(r#""owner":"bench","block_seconds":{block_seconds}}}"#),
            );
        });
    }

    /// The same for release.
    pub(crate) fn release(&self, out: &mut Vec<u8>, key: u64, lease: &Lease) {
        let Self {
            namespace, key_prefix, ..
        } = self;
        self.post_json(out, "/v1/release", &lease.token, |out| {
            push(
                out,
                format_args!(
                    r#"{{"namespace":"{namespace}","key":"{key_prefix}-{key:08}","lease_id":"{}","txn_id":"{}"}}"#,
                    lease.id, lease.txn
                ),
            );
        });
    }

    /// The same for update. Every document differs from the last, so that no server may skip the write.
    pub(crate) fn update(&self, out: &mut Vec<u8>, key: u64, lease: &Lease, number: u64) {
        out.clear();
        let Self {
            host,
            namespace,
            key_prefix,
            document_bytes,
            ..
        } = self;
        push(
            out,
            format_args!("POST /v1/update?namespace={namespace}&key={key_prefix}-{key:08} HTTP/1.1\r\n"),
        );
        push(out, format_args!("Host: {host}\r\nContent-Type: application/json\r\n"));
        let Lease { id, txn, token } = lease;
        push(
            out,
            format_args!("X-Lease-ID: {id}\r\nX-Txn-ID: {txn}\r\nX-Fencing-Token: {token}\r\n"),
        );
        push(out, format_args!("Content-Length: {document_bytes}\r\n\r\n{{\"n\":\""));
        out.resize(out.len() + document_bytes - DOCUMENT_BYTES_MIN, b'x');
        push(out, format_args!("{:010}\"}}", number % 10_000_000_000));
    }

    /// The same for a public read.
    pub(crate) fn public_read(&self, out: &mut Vec<u8>, key: u64) {
        out.clear();
        let Self {
            host,
            namespace,
            key_prefix,
            ..
        } = self;
        push(
            out,
            format_args!("GET /v1/get?namespace={namespace}&key={key_prefix}-{key:08}&public=1 HTTP/1.1\r\n"),
        );
        push(out, format_args!("Host: {host}\r\n\r\n"));
    }

    /// The same for enqueue. The payload begins with this number.
    pub(crate) fn enqueue(&self, out: &mut Vec<u8>, queue: u64, stamp: u64) {
        let Self {
            host,
            namespace,
            key_prefix,
            payload_bytes,
            ..
        } = self;
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"meta\"\r\nContent-Type: application/json\r\n\r\n\
             {{\"namespace\":\"{namespace}\",\"queue\":\"{key_prefix}-{queue:08}\"}}\r\n--{BOUNDARY}\r\n\
             Content-Disposition: form-data; name=\"payload\"\r\n\r\n"
        );
        let tail = format!("\r\n--{BOUNDARY}--\r\n");
        let length = head.len() + payload_bytes + tail.len();
        out.clear();
        push(
            out,
            format_args!(
                "POST /v1/queue/enqueue HTTP/1.1\r\nHost: {host}\r\n\
                 Content-Type: multipart/related; boundary={BOUNDARY}\r\nContent-Length: {length}\r\n\r\n"
            ),
        );
        out.extend_from_slice(head.as_bytes());
        push(out, format_args!("{stamp:0STAMP_BYTES$}"));
        out.resize(out.len() + payload_bytes - STAMP_BYTES, b'x');
        out.extend_from_slice(tail.as_bytes());
    }

    /// The same for dequeue.
    pub(crate) fn dequeue(&self, out: &mut Vec<u8>, queue: u64) {
        self.take(out, "/v1/queue/dequeue", queue, "bench", DEQUEUE_WAIT_SECONDS, 1);
    }

    /// The same for subscribe, waiting without limit.
    pub(crate) fn subscribe(&self, out: &mut Vec<u8>, queue: u64, owner: usize, prefetch: usize) {
        let owner = format!("bench-{owner}");
        self.take(out, "/v1/queue/subscribe", queue, &owner, 0, prefetch);
    }

    /// The same for a dequeue that waits, as long as the options say.
    pub(crate) fn wait_for_message(&self, out: &mut Vec<u8>, queue: u64) {
        let wait_seconds = u64::try_from(self.block_seconds).unwrap_or(0);
        self.take(out, "/v1/queue/dequeue", queue, "bench", wait_seconds, 1);
    }

    fn take(&self, out: &mut Vec<u8>, path: &str, queue: u64, owner: &str, wait_seconds: u64, page: usize) {
        let Self {
            namespace,
            key_prefix,
            ttl_seconds,
            ..
        } = self;
        self.post_json(out, path, "", |out| {
            push(
                out,
                format_args!(r#"{{"namespace":"{namespace}","queue":"{key_prefix}-{queue:08}","owner":"{owner}","#),
            );
            push(
                out,
                format_args!(
                    r#""visibility_timeout_seconds":{ttl_seconds},"wait_seconds":{wait_seconds},"page_size":{page}}}"#
                ),
            );
        });
    }

    /// The same for ack.
    pub(crate) fn ack(&self, out: &mut Vec<u8>, queue: u64, delivery: &Delivery) {
        self.settle(out, "/v1/queue/ack", queue, delivery, "");
    }

    /// The same for a nack that is no failure: the message can be delivered again at once.
    pub(crate) fn defer(&self, out: &mut Vec<u8>, queue: u64, delivery: &Delivery) {
        self.settle(out, "/v1/queue/nack", queue, delivery, r#","intent":"defer""#);
    }

    fn settle(&self, out: &mut Vec<u8>, path: &str, queue: u64, delivery: &Delivery, more: &str) {
        let Self {
            namespace, key_prefix, ..
        } = self;
        let Delivery { message, lease, etag } = delivery;
        self.post_json(out, path, "", |out| {
            push(
                out,
                format_args!(
                    r#"{{"namespace":"{namespace}","queue":"{key_prefix}-{queue:08}","message_id":"{message}","#
                ),
            );
            push(
                out,
                format_args!(
                    r#""lease_id":"{}","txn_id":"{}","fencing_token":{},"meta_etag":"{etag}"{more}}}"#,
                    lease.id, lease.txn, lease.token
                ),
            );
        });
    }

    fn post_json(&self, out: &mut Vec<u8>, path: &str, token: &str, body: impl FnOnce(&mut Vec<u8>)) {
        out.clear();
        push(out, format_args!("POST {path} HTTP/1.1\r\nHost: {}\r\n", self.host));
        if !token.is_empty() {
            push(out, format_args!("X-Fencing-Token: {token}\r\n"));
        }
        // The length is written over once it is known.
        push(
            out,
            format_args!("Content-Type: application/json\r\nContent-Length: 0000\r\n\r\n"),
        );
        let start = out.len();
        body(out);
        let length = out.len() - start;
        for (place, digit) in [1000, 100, 10, 1].into_iter().enumerate() {
            // Names are at most 128 bytes long, so a body never needs a fifth digit.
            out[start - 8 + place] = b'0' + u8::try_from(length / digit % 10).unwrap_or(0);
        }
    }
}

fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a vector does not fail");
}

/// What acquire grants.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lease {
    id: String,
    txn: String,
    token: String,
}

impl Lease {
    /// Takes the lease from the answer to a successful acquire. False if a field is missing.
    pub(crate) fn read(&mut self, body: &[u8]) -> bool {
        let fields = [
            ("lease_id", &mut self.id),
            ("txn_id", &mut self.txn),
            ("fencing_token", &mut self.token),
        ];
        fields.into_iter().all(|(name, field)| {
            field.clear();
            let value = json_field(body, name).and_then(|value| str::from_utf8(value).ok());
            field.push_str(value.unwrap_or_default());
            !field.is_empty()
        })
    }
}

/// What a delivery says that an ack needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Delivery {
    message: String,
    lease: Lease,
    etag: String,
}

impl Delivery {
    /// Takes it from the body of a delivery, of which the description comes first. False if a field is missing.
    pub(crate) fn read(&mut self, body: &[u8]) -> bool {
        let fields = [("message_id", &mut self.message), ("meta_etag", &mut self.etag)];
        let found = fields.into_iter().all(|(name, field)| {
            field.clear();
            let value = json_field(body, name).and_then(|value| str::from_utf8(value).ok());
            field.push_str(value.unwrap_or_default());
            !field.is_empty()
        });
        found && self.lease.read(body)
    }
}

/// The keys of one connection, one after the other. While there are at least as many keys as connections, no two
/// connections share one.
#[derive(Debug, Clone)]
pub(crate) struct KeyCycle {
    /// The key to use now.
    pub(crate) current: u64,
    first: u64,
    step: u64,
    keys: u64,
}

impl KeyCycle {
    /// The keys of the connection with this number.
    pub(crate) fn new(connection: u64, connections: u64, keys: u64) -> Self {
        let first = connection % keys;
        Self {
            current: first,
            first,
            step: connections,
            keys,
        }
    }

    /// Turns to the next key.
    pub(crate) fn advance(&mut self) {
        self.current += self.step;
        if self.current >= self.keys {
            self.current = self.first;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Asked {
    Only,
    Acquire,
    Update,
    Release,
    Enqueue,
    Dequeue,
    Ack,
}

/// What to do after an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Next {
    /// Send what is in [`Conversation::request`].
    Send,
    /// The operation is over; true if everything in it succeeded.
    Over(bool),
}

/// The state of one connection's operation.
#[derive(Debug)]
pub(crate) struct Conversation {
    workload: Workload,
    phrases: Phrases,
    keys: KeyCycle,
    asked: Asked,
    lease: Lease,
    delivery: Delivery,
    number: u64,
    refused: bool,
    request: Vec<u8>,
}

impl Conversation {
    /// The conversation of the connection with this number.
    pub(crate) fn new(workload: Workload, phrases: &Phrases, options: &Options, connection: usize) -> Self {
        let keys = match workload {
            Workload::PublicRead => 1,
            Workload::Queue => options.queues,
            _ => options.keys,
        };
        let mut conversation = Self {
            workload,
            phrases: phrases.clone(),
            keys: KeyCycle::new(connection as u64, options.connections as u64, keys),
            asked: Asked::Only,
            lease: Lease::default(),
            delivery: Delivery::default(),
            number: 0,
            refused: false,
            request: Vec::new(),
        };
        match workload {
            Workload::PublicRead => conversation.phrases.public_read(&mut conversation.request, 0),
            _ => conversation.phrases.health(&mut conversation.request),
        }
        conversation
    }

    /// Begins an operation: its first request is then in [`Conversation::request`].
    pub(crate) fn begin(&mut self) {
        self.refused = false;
        self.number += 1;
        if matches!(self.workload, Workload::Lease | Workload::Lock) {
            self.asked = Asked::Acquire;
            self.phrases.acquire(&mut self.request, self.keys.current);
        }
        if self.workload == Workload::Queue {
            self.asked = Asked::Enqueue;
            self.phrases.enqueue(&mut self.request, self.keys.current, self.number);
        }
    }

    /// The bytes to send.
    pub(crate) fn request(&self) -> &[u8] {
        &self.request
    }

    /// Takes an answer. Whatever is not a success is counted in `errors`; a lease that was granted is released even if
    /// the request in between was refused.
    pub(crate) fn answered(&mut self, answer: &Answer<'_>, errors: &mut Errors) -> Next {
        let mut success = answer.status == 200;
        if !success {
            errors.refused(answer.status, answer.body);
        }
        match self.asked {
            Asked::Acquire if success => {
                if !self.lease.read(answer.body) {
                    errors.other("acquire answered without lease_id, txn_id or fencing_token");
                    success = false;
                } else if self.workload == Workload::Lock {
                    self.asked = Asked::Update;
                    self.phrases
                        .update(&mut self.request, self.keys.current, &self.lease, self.number);
                    return Next::Send;
                } else {
                    return self.release();
                }
            }
            Asked::Update => {
                self.refused = !success;
                return self.release();
            }
            Asked::Enqueue if success => {
                self.asked = Asked::Dequeue;
                self.phrases.dequeue(&mut self.request, self.keys.current);
                return Next::Send;
            }
            Asked::Dequeue if success => {
                if self.delivery.read(answer.body) {
                    self.asked = Asked::Ack;
                    self.phrases.ack(&mut self.request, self.keys.current, &self.delivery);
                    return Next::Send;
                }
                errors.other("dequeue answered without a field that ack needs");
                success = false;
            }
            Asked::Only | Asked::Acquire | Asked::Release | Asked::Enqueue | Asked::Dequeue | Asked::Ack => {}
        }
        self.keys.advance();
        Next::Over(success && !self.refused)
    }

    /// The connection was lost in the middle of an operation. The key that may still be leased is left alone, unless it
    /// is the only one.
    pub(crate) fn cut_off(&mut self) {
        self.keys.advance();
    }

    fn release(&mut self) -> Next {
        self.asked = Asked::Release;
        self.phrases.release(&mut self.request, self.keys.current, &self.lease);
        Next::Send
    }
}
