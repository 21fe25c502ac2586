//! PostgreSQL over the simple query protocol: advisory locks, a table for documents, and `FOR UPDATE SKIP LOCKED`.
//!
//! Advisory locks live in memory and are never durable; documents and messages are.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::contender::{Failure, Session, Task, Work};

pub(crate) struct Postgres {
    stream: TcpStream,
    task: Task,
    document: String,
}

/// Kept apart from all other locks of the server.
const SETUP_LOCK: i64 = 7_300_001;

impl Postgres {
    /// Connects as user `postgres` without a password: the server must trust the loopback interface.
    pub(crate) fn open(address: SocketAddr, task: Task) -> Result<Self, Failure> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut body = Vec::new();
        body.extend_from_slice(&196_608_i32.to_be_bytes());
        body.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        let mut hello = i32::try_from(body.len() + 4)?.to_be_bytes().to_vec();
        hello.extend_from_slice(&body);
        stream.write_all(&hello)?;
        let mut session = Self {
            stream,
            task,
            document: task.document(),
        };
        session.answer()?;
        // All workers come at once, and `IF NOT EXISTS` alone races.
        session.query(&format!(
            "BEGIN; SELECT pg_advisory_xact_lock({SETUP_LOCK}); \
             CREATE TABLE IF NOT EXISTS contest_document (name text PRIMARY KEY, value text); \
             CREATE TABLE IF NOT EXISTS contest_queue (id bigserial PRIMARY KEY, queue text, value text); COMMIT"
        ))?;
        Ok(session)
    }

    /// Runs statements and returns the first column of the last row, if there was one.
    fn query(&mut self, statements: &str) -> Result<Option<String>, Failure> {
        let mut message = vec![b'Q'];
        message.extend_from_slice(&i32::try_from(statements.len() + 5)?.to_be_bytes());
        message.extend_from_slice(statements.as_bytes());
        message.push(0);
        self.stream.write_all(&message)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Option<String>, Failure> {
        let (mut row, mut failure) = (None, None);
        loop {
            let mut head = [0; 5];
            self.stream.read_exact(&mut head)?;
            let length = i32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            let mut body = vec![0; usize::try_from(length)?.saturating_sub(4)];
            self.stream.read_exact(&mut body)?;
            match head[0] {
                b'D' if 6 <= body.len() => {
                    let length = i32::from_be_bytes([body[2], body[3], body[4], body[5]]);
                    let value = usize::try_from(length).ok().and_then(|length| body.get(6..6 + length));
                    row = value.map(|value| String::from_utf8_lossy(value).into_owned());
                }
                b'E' => failure = Some(String::from_utf8_lossy(&body).replace('\0', " ")),
                b'R' if body.get(..4) != Some(&[0; 4]) => {
                    return Err("postgres: it wants a password; trust the loopback interface".into());
                }
                b'Z' => return failure.map_or(Ok(row), |failure| Err(format!("postgres: {failure}").into())),
                _ => {}
            }
        }
    }

    fn lock(&mut self, with_update: bool) -> Result<(), Failure> {
        let number = i64::from(self.task.run_id) * 10_000 + i64::try_from(self.task.worker)?;
        if self
            .query(&format!("SELECT pg_try_advisory_lock({number})"))?
            .as_deref()
            != Some("t")
        {
            return Err("postgres: the lock is held".into());
        }
        if with_update {
            let (name, document) = (self.task.lock_name(), &self.document);
            self.query(&format!(
                "INSERT INTO contest_document VALUES ('{name}', '{document}') \
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value"
            ))?;
        }
        self.query(&format!("SELECT pg_advisory_unlock({number})"))?;
        Ok(())
    }

    /// A message is taken and confirmed by the end of the transaction that found it: three round trips, two of them commits.
    fn queue(&mut self) -> Result<(), Failure> {
        let queue = self.task.queue_name();
        self.query(&format!(
            "INSERT INTO contest_queue (queue, value) VALUES ('{queue}', '{}')",
            self.document
        ))?;
        // A row that somebody else deletes while it is looked at leaves the answer empty although others wait: the
        // taker must look again.
        let id = loop {
            let found = self.query(&format!(
                "BEGIN; SELECT id, value FROM contest_queue WHERE queue = '{queue}' ORDER BY id LIMIT 1 \
                 FOR UPDATE SKIP LOCKED"
            ))?;
            match found {
                Some(id) => break id,
                None => self.query("ROLLBACK")?,
            };
        };
        self.query(&format!("DELETE FROM contest_queue WHERE id = {id}; COMMIT"))?;
        Ok(())
    }
}

impl Session for Postgres {
    fn cycle(&mut self) -> Result<(), Failure> {
        match self.task.work {
            Work::Lock => self.lock(false),
            Work::Update => self.lock(true),
            Work::Queue => self.queue(),
        }
    }
}
