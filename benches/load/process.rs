//! What the kernel knows about a process: processor time, memory, open files. Reads `/proc`.

use std::{fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Whom to ask about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Myself,
    Pid(u32),
}

impl Process {
    /// Processor time used so far by all its threads, in seconds. The kernel counts it in hundredths.
    pub(crate) fn cpu_seconds(self) -> io::Result<f64> {
        let stat = self.read("stat")?;
        // The second field is the program's name in parentheses and may contain anything, a parenthesis too.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let mut ticks = fields
            .split_whitespace()
            .skip(11)
            .map_while(|field| field.parse::<u64>().ok());
        match (ticks.next(), ticks.next()) {
            (Some(user), Some(system)) => Ok((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64),
            _ => Err(io::Error::other("/proc/.../stat is not as expected")),
        }
    }

    /// Resident memory in bytes: now, and the most it ever was.
    pub(crate) fn resident_bytes(self) -> io::Result<(u64, u64)> {
        let status = self.read("status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        match (field("VmRSS:"), field("VmHWM:")) {
            (Some(now), Some(most)) => Ok((now * 1024, most * 1024)),
            _ => Err(io::Error::other(
                "/proc/.../status shows no memory: is it still running?",
            )),
        }
    }

    fn read(self, name: &str) -> io::Result<String> {
        let path = match self {
            Self::Myself => format!("/proc/self/{name}"),
            Self::Pid(pid) => format!("/proc/{pid}/{name}"),
        };
        fs::read_to_string(&path).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
    }
}

/// Raises the limit of open files as far as it goes. Fails when fewer than `needed` files can be open at once.
pub(crate) fn allow_open_files(needed: u64) -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    if enough(limit.current) {
        return Ok(());
    }
    if !enough(limit.maximum) {
        let maximum = limit.maximum.unwrap_or_default();
        return Err(io::Error::other(format!(
            "{needed} open files are needed, the hard limit is {maximum}"
        )));
    }
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )?;
    Ok(())
}
