//! Blocking connections: one for HTTP, one for protocols of lines and counted blocks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::contender::Failure;
use crate::http::AnswerReader;

const TIME_OUT: Duration = Duration::from_secs(20);

fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect_timeout(&address, TIME_OUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIME_OUT))?;
    stream.set_write_timeout(Some(TIME_OUT))?;
    Ok(stream)
}

/// An HTTP connection that is kept alive.
pub(crate) struct Http {
    stream: TcpStream,
    answer: AnswerReader,
    request: Vec<u8>,
}

impl Http {
    pub(crate) fn open(address: SocketAddr) -> Result<Self, Failure> {
        Ok(Self {
            stream: connect(address)?,
            answer: AnswerReader::default(),
            request: Vec::new(),
        })
    }

    /// Posts a body and returns the body of the answer, which must be 200.
    pub(crate) fn post(&mut self, path: &str, headers: &str, body: &[u8]) -> Result<&[u8], Failure> {
        self.request.clear();
        write!(
            self.request,
            "POST {path} HTTP/1.1\r\nHost: contest\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        )?;
        self.request.extend_from_slice(body);
        self.stream.write_all(&self.request)?;
        self.answer.clear();
        while self.answer.answer()?.is_none() {
            if self.answer.read_from(&mut self.stream)? == 0 && self.answer.answer()?.is_none() {
                return Err("the connection was closed".into());
            }
        }
        let answer = self.answer.answer()?.ok_or("no answer")?;
        if answer.status != 200 {
            let said = String::from_utf8_lossy(answer.body).into_owned();
            return Err(format!("{path}: {} {said}", answer.status).into());
        }
        Ok(answer.body)
    }
}

/// A connection whose answers are lines, some of them followed by a block of bytes.
pub(crate) struct Lines {
    stream: BufReader<TcpStream>,
    line: Vec<u8>,
}

impl Lines {
    pub(crate) fn open(address: SocketAddr) -> Result<Self, Failure> {
        Ok(Self {
            stream: BufReader::new(connect(address)?),
            line: Vec::new(),
        })
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    /// The next line, without its line end.
    pub(crate) fn line(&mut self) -> Result<&str, Failure> {
        self.line.clear();
        if self.stream.read_until(b'\n', &mut self.line)? == 0 {
            return Err("the connection was closed".into());
        }
        Ok(str::from_utf8(&self.line)?.trim_end())
    }

    /// The next `count` bytes.
    pub(crate) fn block(&mut self, count: usize) -> Result<Vec<u8>, Failure> {
        let mut block = vec![0; count];
        self.stream.read_exact(&mut block)?;
        Ok(block)
    }
}
