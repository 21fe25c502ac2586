//! Who takes part, and what each can do.

use std::error::Error;
use std::net::SocketAddr;

use crate::{beanstalkd, etcd, lockd, postgres, redis};

/// Any failure of a contender or of the way to it.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// What a cycle does; see the head of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Lock,
    Update,
    Queue,
}

impl Work {
    pub(crate) const ALL: [Work; 3] = [Work::Lock, Work::Update, Work::Queue];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Update => "update",
            Self::Queue => "queue",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|work| work.name() == name)
    }
}

/// Which program speaks behind an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Lockd,
    Etcd,
    Redis,
    Beanstalkd,
    Postgres,
}

impl Kind {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "lockd" => Self::Lockd,
            "etcd" => Self::Etcd,
            "redis" => Self::Redis,
            "beanstalkd" => Self::Beanstalkd,
            "postgres" => Self::Postgres,
            _ => return None,
        })
    }

    /// Whether this program can do the work at all.
    pub(crate) fn can(self, work: Work) -> bool {
        match self {
            Self::Lockd | Self::Redis | Self::Postgres => true,
            Self::Etcd => work != Work::Queue,
            Self::Beanstalkd => work == Work::Queue,
        }
    }
}

/// One who takes part.
#[derive(Debug, Clone)]
pub(crate) struct Contender {
    /// Its name in the table.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
}

/// One connection of a contender, driven by one thread.
pub(crate) trait Session: Send {
    /// Does one whole cycle.
    fn cycle(&mut self) -> Result<(), Failure>;
}

/// What a session is opened for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task {
    pub(crate) work: Work,
    /// The worker's number: its lock is its own.
    pub(crate) worker: usize,
    /// Size of document or message in bytes.
    pub(crate) payload_bytes: usize,
    /// Keeps the runs of one program apart.
    pub(crate) run_id: u32,
}

impl Task {
    /// A document of the wanted size: one JSON string.
    pub(crate) fn document(self) -> String {
        format!("\"{}\"", "x".repeat(self.payload_bytes.saturating_sub(2)))
    }

    /// The name of the worker's own lock.
    pub(crate) fn lock_name(self) -> String {
        format!("contest-{}-{}", self.run_id, self.worker)
    }

    /// The name of the queue that all workers share.
    pub(crate) fn queue_name(self) -> String {
        format!("contest-{}", self.run_id)
    }
}

impl Contender {
    /// Opens a connection and prepares what the cycles need.
    pub(crate) fn open(&self, task: Task) -> Result<Box<dyn Session>, Failure> {
        Ok(match self.kind {
            Kind::Lockd => Box::new(lockd::Lockd::open(self.address, task)?),
            Kind::Etcd => Box::new(etcd::Etcd::open(self.address, task)?),
            Kind::Redis => Box::new(redis::Redis::open(self.address, task)?),
            Kind::Beanstalkd => Box::new(beanstalkd::Beanstalkd::open(self.address, task)?),
            Kind::Postgres => Box::new(postgres::Postgres::open(self.address, task)?),
        })
    }
}
