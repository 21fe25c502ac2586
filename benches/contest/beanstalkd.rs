//! beanstalkd: put, reserve, delete.

use std::io::Write;
use std::net::SocketAddr;

use crate::contender::{Failure, Session, Task};
use crate::wire::Lines;

pub(crate) struct Beanstalkd {
    lines: Lines,
    put: Vec<u8>,
}

impl Beanstalkd {
    pub(crate) fn open(address: SocketAddr, task: Task) -> Result<Self, Failure> {
        let mut lines = Lines::open(address)?;
        let tube = task.queue_name();
        for command in [
            format!("use {tube}\r\n"),
            format!("watch {tube}\r\n"),
            "ignore default\r\n".to_owned(),
        ] {
            lines.send(command.as_bytes())?;
            let said = lines.line()?;
            if !said.starts_with("USING") && !said.starts_with("WATCHING") {
                return Err(format!("beanstalkd: {said}").into());
            }
        }
        let document = task.document();
        let mut put = Vec::new();
        write!(put, "put 100 0 60 {}\r\n{document}\r\n", document.len())?;
        Ok(Self { lines, put })
    }

    fn expect(&mut self, wanted: &str) -> Result<String, Failure> {
        let said = self.lines.line()?;
        if said.starts_with(wanted) {
            Ok(said.to_owned())
        } else {
            Err(format!("beanstalkd: {said}").into())
        }
    }
}

impl Session for Beanstalkd {
    fn cycle(&mut self) -> Result<(), Failure> {
        self.lines.send(&self.put)?;
        self.expect("INSERTED")?;
        self.lines.send(b"reserve-with-timeout 20\r\n")?;
        let reserved = self.expect("RESERVED")?;
        let mut words = reserved.split(' ').skip(1);
        let id = words.next().ok_or("beanstalkd: no id")?.to_owned();
        let bytes: usize = words.next().ok_or("beanstalkd: no length")?.parse()?;
        self.lines.block(bytes + 2)?;
        self.lines.send(format!("delete {id}\r\n").as_bytes())?;
        self.expect("DELETED")?;
        Ok(())
    }
}
