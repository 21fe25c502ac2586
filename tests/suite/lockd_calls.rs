//! The calls of the lease endpoints, as short as a test wants them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Answer, Connection, send};

/// Conditions come true within this time, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// A lease as its holder knows it.
#[derive(Debug, Clone)]
pub struct Held {
    pub address: SocketAddr,
    pub namespace: String,
    pub key: String,
    pub lease_id: String,
    pub txn_id: String,
    pub token: i64,
    pub version: i64,
    pub expires_at_unix: i64,
}

/// `POST /v1/acquire` with this body; no owner is added.
pub fn acquire_with(address: SocketAddr, body: &Value) -> Answer {
    send(address, "POST", "/v1/acquire", &[], body.to_string().as_bytes())
}

/// Acquires without waiting, for 30 seconds.
pub fn acquire(address: SocketAddr, key: &str) -> Answer {
    acquire_with(
        address,
        &json!({"key": key, "owner": "test", "ttl_seconds": 30, "block_seconds": -1}),
    )
}

/// Acquires without waiting and insists.
#[track_caller]
pub fn hold(address: SocketAddr, key: &str) -> Held {
    Held::from_answer(address, &acquire(address, key))
}

/// Acquires in a namespace and a transaction that the caller names, without waiting, for 30 seconds.
pub fn acquire_in(address: SocketAddr, namespace: &str, key: &str, txn_id: &str) -> Answer {
    acquire_with(
        address,
        &json!({"namespace": namespace, "key": key, "owner": "test", "ttl_seconds": 30, "block_seconds": -1,
            "txn_id": txn_id}),
    )
}

/// The same in the default namespace, and insists.
#[track_caller]
pub fn hold_in(address: SocketAddr, key: &str, txn_id: &str) -> Held {
    Held::from_answer(address, &acquire_in(address, "", key, txn_id))
}

/// Saves a state as one lease: acquire, update, release. Returns its etag.
#[track_caller]
pub fn save(address: SocketAddr, key: &str, state: &str) -> String {
    let held = hold(address, key);
    let etag = held.update(state).expect(200).field("new_state_etag");
    held.release().expect(200);
    etag.as_str().unwrap_or_default().to_owned()
}

/// Sends an acquire that waits (0: without limit) and does not read the answer.
pub fn begin_acquire(address: SocketAddr, key: &str, block_seconds: i64) -> Connection {
    let mut connection = Connection::open(address);
    let body = json!({"key": key, "owner": "waiter", "ttl_seconds": 30, "block_seconds": block_seconds});
    connection.send_request("POST", "/v1/acquire", &[], body.to_string().as_bytes());
    connection
}

/// Looks again and again until something is true.
#[track_caller]
pub fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_true() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// An acquire, an update, a release and a read, each on a connection of its own: what a healthy server can do.
#[track_caller]
pub fn assert_healthy(address: SocketAddr) {
    let held = Held::from_answer(
        address,
        &acquire_with(address, &json!({"owner": "healthy", "block_seconds": -1})),
    );
    held.update("{\"healthy\":true}").expect(200);
    held.release().expect(200);
    get_public(address, &held.key).expect(200);
}

/// The committed state for everybody.
pub fn get_public(address: SocketAddr, key: &str) -> Answer {
    send(address, "GET", &format!("/v1/get?key={key}&public=1"), &[], b"")
}

/// Describes a key.
pub fn describe(address: SocketAddr, key: &str) -> Answer {
    send(address, "GET", &format!("/v1/describe?key={key}"), &[], b"")
}

impl Held {
    /// The lease that an answer to acquire grants.
    #[track_caller]
    pub fn from_answer(address: SocketAddr, answer: &Answer) -> Self {
        let text = |name: &str| answer.field(name).as_str().unwrap_or_default().to_owned();
        let number = |name: &str| answer.field(name).as_i64().unwrap_or_default();
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        Self {
            address,
            namespace: text("namespace"),
            key: text("key"),
            lease_id: text("lease_id"),
            txn_id: text("txn_id"),
            token: number("fencing_token"),
            version: number("version"),
            expires_at_unix: number("expires_at_unix"),
        }
    }

    /// The same lease at another server.
    pub fn at(&self, address: SocketAddr) -> Self {
        Self {
            address,
            ..self.clone()
        }
    }

    /// Sends a request with the lease's headers and more.
    pub fn send(&self, method: &str, endpoint: &str, more: &[(&str, &str)], body: &[u8]) -> Answer {
        let token = self.token.to_string();
        let mut headers = vec![
            ("X-Lease-ID", self.lease_id.as_str()),
            ("X-Txn-ID", self.txn_id.as_str()),
            ("X-Fencing-Token", token.as_str()),
        ];
        headers.extend_from_slice(more);
        let path = format!("/v1/{endpoint}?key={}&namespace={}", self.key, self.namespace);
        send(self.address, method, &path, &headers, body)
    }

    pub fn update(&self, state: &str) -> Answer {
        self.send("POST", "update", &[], state.as_bytes())
    }

    pub fn update_if(&self, state: &str, preconditions: &[(&str, &str)]) -> Answer {
        self.send("POST", "update", preconditions, state.as_bytes())
    }

    pub fn get(&self) -> Answer {
        self.send("POST", "get", &[], b"")
    }

    pub fn remove(&self) -> Answer {
        self.send("POST", "remove", &[], b"")
    }

    pub fn remove_if(&self, preconditions: &[(&str, &str)]) -> Answer {
        self.send("POST", "remove", preconditions, b"")
    }

    pub fn hide(&self, hidden: bool) -> Answer {
        self.send(
            "POST",
            "metadata",
            &[],
            json!({"query_hidden": hidden}).to_string().as_bytes(),
        )
    }

    /// The public state of this key.
    pub fn get_public(&self) -> Answer {
        let path = format!("/v1/get?key={}&namespace={}&public=1", self.key, self.namespace);
        send(self.address, "GET", &path, &[], b"")
    }

    pub fn keepalive(&self, ttl_seconds: i64) -> Answer {
        let body = json!({"namespace": self.namespace, "key": self.key, "lease_id": self.lease_id,
            "txn_id": self.txn_id, "ttl_seconds": ttl_seconds});
        let token = self.token.to_string();
        send(
            self.address,
            "POST",
            "/v1/keepalive",
            &[("X-Fencing-Token", &token)],
            body.to_string().as_bytes(),
        )
    }

    pub fn release(&self) -> Answer {
        self.release_with(false)
    }

    pub fn rollback(&self) -> Answer {
        self.release_with(true)
    }

    fn release_with(&self, rollback: bool) -> Answer {
        let body = json!({"namespace": self.namespace, "key": self.key, "lease_id": self.lease_id,
            "txn_id": self.txn_id, "rollback": rollback});
        let token = self.token.to_string();
        send(
            self.address,
            "POST",
            "/v1/release",
            &[("X-Fencing-Token", &token)],
            body.to_string().as_bytes(),
        )
    }
}
