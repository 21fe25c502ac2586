//! Processes: a daemon, a shell whose commands talk to it, and what a command left behind.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use rustix::process::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Far beyond what anything here takes; only a test that hangs gets here.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program.
pub(crate) const LOCKD: &str = env!("CARGO_BIN_EXE_lockd");

/// The program with these arguments and an empty environment.
pub(crate) fn lockd(arguments: &[&str]) -> Command {
    let mut command = Command::new(LOCKD);
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

/// A running daemon, killed when the test is over.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    dir: TempDir,
    /// The log line that says where it listens.
    pub(crate) listening: Value,
}

impl Daemon {
    /// A daemon on memory and on a free port, unless the arguments say otherwise.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = lockd(&[]);
        if !arguments.contains(&"--store") {
            command.args(["--store", "mem://"]);
        }
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(arguments);
        Self::start_from(command)
    }

    /// A daemon by this command.
    pub(crate) fn start_from(mut command: Command) -> Self {
        let dir = TempDir::new().unwrap();
        let log = dir.path().join("daemon.log");
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        let mut daemon = Self {
            child,
            dir,
            listening: Value::Null,
        };
        let line = wait_for_line(&log, "\"msg\":\"listening\"");
        daemon.listening = serde_json::from_str(&line).unwrap();
        daemon
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.listening["address"].as_str().unwrap())
    }

    /// All it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap()
    }

    /// A file in a directory that goes away with the daemon.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A shell whose commands talk to this daemon.
    pub(crate) fn shell(&self) -> Shell {
        let mut shell = Shell {
            variables: BTreeMap::new(),
        };
        shell.set("LOCKD_CLIENT_SERVER", &self.url());
        shell
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let clock = SystemClock::new();
        let give_up = clock.now().after(PATIENCE);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(clock.now() < give_up, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The environment of client commands, as a person's shell keeps it.
pub(crate) struct Shell {
    pub(crate) variables: BTreeMap<String, String>,
}

impl Shell {
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    /// Takes over what acquire exported. Only for values without anything to unquote.
    pub(crate) fn eval(&mut self, exports: &str) {
        for line in exports.lines() {
            let (name, value) = line.strip_prefix("export ").unwrap().split_once('=').unwrap();
            let value = value.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
            assert!(!value.contains(['\\', '"']), "{line}");
            self.set(name, value);
        }
    }

    pub(crate) fn acquire(&mut self, key: &str) {
        let exports = self.ok(&["client", "acquire", "-k", key]).stdout;
        self.eval(&exports);
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = lockd(arguments);
        command
            .envs(&self.variables)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    pub(crate) fn run(&self, arguments: &[&str], input: Option<&str>) -> Done {
        let mut command = lockd(arguments);
        command
            .envs(&self.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that reads nothing may be gone by now; what it did is what the test looks at.
        let _ = stdin.write_all(input.unwrap_or_default().as_bytes());
        drop(stdin);
        Done::from(child.wait_with_output().unwrap())
    }

    pub(crate) fn ok(&self, arguments: &[&str]) -> Done {
        let done = self.run(arguments, None);
        assert!(done.status.success(), "{arguments:?}: {done:?}");
        done
    }

    pub(crate) fn ok_with_input(&self, arguments: &[&str], input: &str) -> Done {
        let done = self.run(arguments, Some(input));
        assert!(done.status.success(), "{arguments:?}: {done:?}");
        done
    }

    /// Runs a command that must fail with status 1 and nothing on standard output. Returns standard error.
    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments, None);
        assert_eq!(
            (done.status.code(), done.stdout.as_str()),
            (Some(1), ""),
            "{arguments:?}: {done:?}"
        );
        done.stderr
    }
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            status: output.status,
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Done {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }

    pub(crate) fn json_from_stderr(&self) -> Value {
        serde_json::from_str(&self.stderr).unwrap()
    }
}

pub(crate) fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Waits for a whole line with this text in a log file that somebody writes.
pub(crate) fn wait_for_line(log: &Path, text: &str) -> String {
    let clock = SystemClock::new();
    let give_up = clock.now().after(PATIENCE);
    loop {
        let written = fs::read_to_string(log).unwrap_or_default();
        let whole_lines = written.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        if let Some(line) = whole_lines.into_iter().find(|line| line.contains(text)) {
            return line.to_owned();
        }
        assert!(clock.now() < give_up, "no line with {text:?} in: {written}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
