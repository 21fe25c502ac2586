//! lockd, and whoever else speaks its protocol over plain HTTP.

use std::net::SocketAddr;

use crate::contender::{Failure, Session, Task, Work};
use crate::http::json_field;
use crate::wire::Http;

pub(crate) struct Lockd {
    http: Http,
    task: Task,
    document: String,
    enqueue: Vec<u8>,
    acquire: String,
    dequeue: String,
}

const BOUNDARY: &str = "contest-boundary-4f1c";
const ENQUEUE_TYPE: &str = "Content-Type: multipart/related; boundary=contest-boundary-4f1c\r\n";

impl Lockd {
    pub(crate) fn open(address: SocketAddr, task: Task) -> Result<Self, Failure> {
        let document = task.document();
        let (key, queue) = (task.lock_name(), task.queue_name());
        let enqueue = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"meta\"\r\nContent-Type: application/json\r\n\r\n\
             {{\"queue\":\"{queue}\"}}\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"payload\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n{document}\r\n--{BOUNDARY}--\r\n"
        );
        Ok(Self {
            http: Http::open(address)?,
            task,
            enqueue: enqueue.into_bytes(),
            acquire: format!(r#"{{"key":"{key}","owner":"contest","ttl_seconds":60,"block_seconds":-1}}"#),
            dequeue: format!(r#"{{"queue":"{queue}","owner":"contest","wait_seconds":20}}"#),
            document,
        })
    }

    fn lock(&mut self, with_update: bool) -> Result<(), Failure> {
        let key = self.task.lock_name();
        let granted = self.http.post("/v1/acquire", "", self.acquire.as_bytes())?;
        let (lease, txn) = (text(granted, "lease_id")?, text(granted, "txn_id")?);
        let token = text(granted, "fencing_token")?;
        if with_update {
            let headers = format!("X-Lease-ID: {lease}\r\nX-Txn-ID: {txn}\r\nX-Fencing-Token: {token}\r\n");
            self.http
                .post(&format!("/v1/update?key={key}"), &headers, self.document.as_bytes())?;
        }
        let release = format!(r#"{{"key":"{key}","lease_id":"{lease}","txn_id":"{txn}"}}"#);
        let headers = format!("X-Fencing-Token: {token}\r\n");
        self.http.post("/v1/release", &headers, release.as_bytes())?;
        Ok(())
    }

    fn queue(&mut self) -> Result<(), Failure> {
        self.http.post("/v1/queue/enqueue", ENQUEUE_TYPE, &self.enqueue)?;
        let queue = self.task.queue_name();
        let got = self.http.post("/v1/queue/dequeue", "", self.dequeue.as_bytes())?;
        let ack = format!(
            r#"{{"queue":"{queue}","message_id":"{}","lease_id":"{}","txn_id":"{}","fencing_token":{},"meta_etag":"{}"}}"#,
            text(got, "message_id")?,
            text(got, "lease_id")?,
            text(got, "txn_id")?,
            text(got, "fencing_token")?,
            text(got, "meta_etag")?,
        );
        self.http.post("/v1/queue/ack", "", ack.as_bytes())?;
        Ok(())
    }
}

impl Session for Lockd {
    fn cycle(&mut self) -> Result<(), Failure> {
        match self.task.work {
            Work::Lock => self.lock(false),
            Work::Update => self.lock(true),
            Work::Queue => self.queue(),
        }
    }
}

fn text(body: &[u8], name: &str) -> Result<String, Failure> {
    let value = json_field(body, name).ok_or_else(|| format!("no {name} in the answer"))?;
    Ok(str::from_utf8(value)?.to_owned())
}
