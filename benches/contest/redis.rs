//! Redis: SET NX PX and a delete that checks the token; a list and a list of what is being worked on.

use std::io::Write;
use std::net::SocketAddr;

use crate::contender::{Failure, Session, Task, Work};
use crate::wire::Lines;

const DELETE_IF_MINE: &str =
    "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";

pub(crate) struct Redis {
    lines: Lines,
    task: Task,
    document: String,
    token: u64,
    request: Vec<u8>,
}

impl Redis {
    pub(crate) fn open(address: SocketAddr, task: Task) -> Result<Self, Failure> {
        Ok(Self {
            lines: Lines::open(address)?,
            task,
            document: task.document(),
            token: 0,
            request: Vec::new(),
        })
    }

    /// Sends a command and returns the answer: the text of a line, or a block.
    fn call(&mut self, words: &[&str]) -> Result<Option<String>, Failure> {
        self.request.clear();
        write!(self.request, "*{}\r\n", words.len())?;
        for word in words {
            write!(self.request, "${}\r\n{word}\r\n", word.len())?;
        }
        self.lines.send(&self.request)?;
        let line = self.lines.line()?;
        let (kind, rest) = line.split_at(line.len().min(1));
        match kind {
            "+" | ":" => Ok(Some(rest.to_owned())),
            "$" | "*" if rest == "-1" => Ok(None),
            "$" => {
                let count: usize = rest.parse()?;
                let mut block = self.lines.block(count + 2)?;
                block.truncate(count);
                Ok(Some(String::from_utf8(block)?))
            }
            _ => Err(format!("redis: {line}").into()),
        }
    }

    fn lock(&mut self, with_update: bool) -> Result<(), Failure> {
        self.token += 1;
        let (key, token) = (self.task.lock_name(), self.token.to_string());
        if self.call(&["SET", &key, &token, "NX", "PX", "60000"])?.as_deref() != Some("OK") {
            return Err("redis: the lock is held".into());
        }
        if with_update {
            let document = std::mem::take(&mut self.document);
            let done = self.call(&["SET", &format!("{key}-document"), &document]);
            self.document = document;
            done?;
        }
        match self.call(&["EVAL", DELETE_IF_MINE, "1", &key, &token])?.as_deref() {
            Some("1") => Ok(()),
            _ => Err("redis: the lock was lost".into()),
        }
    }

    /// Messages are made distinct, as a list that is searched by value needs it.
    fn queue(&mut self) -> Result<(), Failure> {
        self.token += 1;
        let queue = self.task.queue_name();
        let taken = format!("{queue}-taken");
        let message = format!("{}:{}:{}", self.task.worker, self.token, self.document);
        self.call(&["LPUSH", &queue, &message])?;
        let got = self
            .call(&["BRPOPLPUSH", &queue, &taken, "20"])?
            .ok_or("redis: the queue is empty")?;
        match self.call(&["LREM", &taken, "1", &got])?.as_deref() {
            Some("1") => Ok(()),
            _ => Err("redis: the message was lost".into()),
        }
    }
}

impl Session for Redis {
    fn cycle(&mut self) -> Result<(), Failure> {
        match self.task.work {
            Work::Lock => self.lock(false),
            Work::Update => self.lock(true),
            Work::Queue => self.queue(),
        }
    }
}
