//! etcd through its JSON gateway: its own lock service, and its key-value store for the document.

use std::net::SocketAddr;

use data_encoding::BASE64;

use crate::contender::{Failure, Session, Task, Work};
use crate::http::json_field;
use crate::wire::Http;

pub(crate) struct Etcd {
    http: Http,
    with_update: bool,
    lock: String,
    put: String,
}

impl Etcd {
    /// The lease is granted once and held by the session, as its own clients do it.
    pub(crate) fn open(address: SocketAddr, task: Task) -> Result<Self, Failure> {
        let mut http = Http::open(address)?;
        let granted = http.post("/v3/lease/grant", "", br#"{"TTL":600}"#)?;
        let lease = str::from_utf8(json_field(granted, "ID").ok_or("no lease id")?)?.to_owned();
        let name = BASE64.encode(task.lock_name().as_bytes());
        let key = BASE64.encode(format!("{}-document", task.lock_name()).as_bytes());
        let value = BASE64.encode(task.document().as_bytes());
        Ok(Self {
            http,
            with_update: task.work == Work::Update,
            lock: format!(r#"{{"name":"{name}","lease":"{lease}"}}"#),
            put: format!(r#"{{"key":"{key}","value":"{value}"}}"#),
        })
    }
}

impl Session for Etcd {
    fn cycle(&mut self) -> Result<(), Failure> {
        let locked = self.http.post("/v3/lock/lock", "", self.lock.as_bytes())?;
        let key = str::from_utf8(json_field(locked, "key").ok_or("no key of the lock")?)?.to_owned();
        if self.with_update {
            self.http.post("/v3/kv/put", "", self.put.as_bytes())?;
        }
        let unlock = format!(r#"{{"key":"{key}"}}"#);
        self.http.post("/v3/lock/unlock", "", unlock.as_bytes())?;
        Ok(())
    }
}
