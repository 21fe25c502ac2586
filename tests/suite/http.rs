//! A client that sends exactly the bytes a test wants and reads whatever comes back.
//!
//! Not the product's client on purpose: a test of the wire must be able to say things that a good client never says.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// No answer of a sound server takes longer, but for those that wait on purpose.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection to a server.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// True when the body comes in chunks.
    pub fn is_chunked(&self) -> bool {
        self.header("Transfer-Encoding") == Some("chunked")
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|cause| panic!("{cause}: {self:?}"))
    }

    /// A member of the body.
    pub fn field(&self, name: &str) -> Value {
        self.json().get(name).cloned().unwrap_or(Value::Null)
    }

    /// The error code of the body.
    pub fn code(&self) -> String {
        self.field("error").as_str().unwrap_or_default().to_owned()
    }

    /// Status and code at once, for comparisons that show both when they fail.
    pub fn error(&self) -> (u16, String) {
        (self.status, self.code())
    }

    /// The answer itself, if it has this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        Self::try_open(address).expect("the server listens")
    }

    /// Connects to a server that may have gone.
    pub fn try_open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Connects from a port of one's own, which may have been another connection's a moment ago.
    pub fn open_from(port: u16, address: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::new(address.ip(), port).into()).unwrap();
        socket.connect(&address.into()).expect("the server listens");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// The socket, for tests that close it half or drop it.
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("the server takes bytes");
    }

    /// Sends a request with a length and a body.
    pub fn send_request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        self.try_send_request(method, path, headers, body)
            .expect("the server takes bytes");
    }

    /// The same to a server that may be gone.
    pub fn try_send_request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        self.try_send(&[head.as_bytes(), body].concat())
    }

    /// Sends what the server may refuse to take.
    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Says that nothing more will come, and still listens. The server may have reset the connection already.
    pub fn close_sending_side(&self) {
        if let Err(cause) = self.socket().shutdown(Shutdown::Write) {
            assert_eq!(cause.kind(), ErrorKind::NotConnected);
        }
    }

    /// Ends the connection with a reset, as a killed process with unread data does.
    pub fn abort(self) {
        let socket = socket2::SockRef::from(self.socket());
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// True when the server closes the connection within this time, whatever else it still sends.
    pub fn ends_within(mut self, patience: Duration) -> bool {
        self.socket().set_read_timeout(Some(patience)).unwrap();
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(cause) => !matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    /// True when nothing comes within this time.
    pub fn is_silent_for(&mut self, span: Duration) -> bool {
        self.socket().set_read_timeout(Some(span)).unwrap();
        let silent = self
            .stream
            .fill_buf()
            .is_err_and(|cause| matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        self.socket().set_read_timeout(Some(PATIENCE)).unwrap();
        silent
    }

    /// Sends a request and reads its answer; the connection stays.
    pub fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.send_request(method, path, headers, body);
        self.read_answer()
    }

    /// Reads the answer to a request HEAD, which announces a body and sends none.
    pub fn read_head_answer(&mut self) -> Answer {
        let (status, headers) = self.head().expect("the server answers");
        let body = Vec::new();
        Answer { status, headers, body }
    }

    /// Reads one answer; interim answers (100) are returned as they come.
    pub fn read_answer(&mut self) -> Answer {
        self.try_read_answer().expect("the server answers")
    }

    /// Reads one answer, or says why there is none.
    pub fn try_read_answer(&mut self) -> std::io::Result<Answer> {
        let mut answer = self.try_read_head()?;
        if answer.is_chunked() {
            while let Some(chunk) = self.try_read_chunk()? {
                answer.body.extend_from_slice(&chunk);
            }
            return Ok(answer);
        }
        let length = answer
            .header("Content-Length")
            .map_or(0, |length| length.parse().expect("a length"));
        answer.body.resize(length, 0);
        self.stream.read_exact(&mut answer.body)?;
        Ok(answer)
    }

    /// Reads status and headers of an answer; the body is left to the caller.
    pub fn try_read_head(&mut self) -> std::io::Result<Answer> {
        let (status, headers) = self.head()?;
        let body = Vec::new();
        Ok(Answer { status, headers, body })
    }

    /// Reads until the server closes the connection.
    pub fn read_to_the_end(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).expect("the server closes");
        bytes
    }

    /// Reads exactly so many bytes.
    pub fn read_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("the server sends them");
        bytes
    }

    /// Reads the next chunk of a body; `None` is its end.
    pub fn try_read_chunk(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let length = usize::from_str_radix(&line, 16).map_err(|_| std::io::Error::other(format!("chunk {line:?}")))?;
        let mut chunk = vec![0; length];
        self.stream.read_exact(&mut chunk)?;
        if self.line()?.is_empty() {
            return Ok((length != 0).then_some(chunk));
        }
        Err(std::io::Error::other("a chunk is longer than it says"))
    }

    fn head(&mut self) -> std::io::Result<(u16, Vec<(String, String)>)> {
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other(format!("no status line: {status_line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            match line.split_once(':') {
                Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
                None => return Ok((status, headers)),
            }
        }
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// Sends one request on a connection of its own and returns the answer.
pub fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut connection = Connection::open(address);
    connection.send_request(method, path, headers, body);
    connection.read_answer()
}

/// Bytes as a chunked body, in chunks of this size.
pub fn chunked(bytes: &[u8], chunk: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for chunk in bytes.chunks(chunk) {
        body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        body.extend_from_slice(chunk);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    body
}
