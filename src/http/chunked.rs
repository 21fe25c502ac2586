//! Answers whose length is not known when they begin: in chunks, or, for a client of HTTP/1.0, up to the end of its
//! connection.
//!
//! What is written is collected until it is worth sending or [`Chunked::flush`] asks for it, so that a whole small answer
//! leaves in one piece.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use super::edge::Edge;
use super::responder::Responder;

/// What is collected before it is sent, in bytes.
const PENDING_BYTES_MAX: usize = 64 * 1024;

/// An answer under way.
pub(super) struct Chunked {
    edge: Arc<Edge>,
    /// Keeps the request counted as under way.
    way: Responder,
    writer: Box<dyn Write + Send>,
    pending: Vec<u8>,
    is_chunked: bool,
    is_patient: bool,
    is_finished: bool,
}

impl Chunked {
    /// Begins with this head, which is complete. Nothing is sent yet.
    pub(super) fn new(
        edge: Arc<Edge>,
        way: Responder,
        writer: Box<dyn Write + Send>,
        head: Vec<u8>,
        is_chunked: bool,
    ) -> Self {
        Self {
            edge,
            way,
            writer,
            pending: head,
            is_chunked,
            is_patient: false,
            is_finished: false,
        }
    }

    /// From now on a client that reads nothing for long is waited for, as long as it is there.
    pub(super) fn be_patient(&mut self) {
        self.is_patient = true;
    }

    /// The way back, for what is known of the client.
    pub(super) fn way(&self) -> &Responder {
        &self.way
    }

    /// Adds to the answer.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.is_chunked {
            self.pending
                .extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
        }
        self.pending.extend_from_slice(bytes);
        if self.is_chunked {
            self.pending.extend_from_slice(b"\r\n");
        }
        if PENDING_BYTES_MAX <= self.pending.len() {
            self.send_pending()?;
        }
        Ok(())
    }

    /// Adds exactly so many bytes from a reader.
    pub(super) fn copy(&mut self, reader: &mut dyn Read, length: u64) -> io::Result<()> {
        let mut buffer = vec![0; usize::try_from(length.min(PENDING_BYTES_MAX as u64)).unwrap_or(PENDING_BYTES_MAX)];
        let mut left = length;
        while 0 < left {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            match reader.read(&mut buffer[..wanted]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.write(&buffer[..count])?;
                    left -= count as u64;
                }
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// Sends what was written.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.send_pending()?;
        self.patiently(|writer| writer.flush())
    }

    /// Ends the answer well.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.is_chunked {
            self.pending.extend_from_slice(b"0\r\n\r\n");
        }
        self.flush()?;
        // What goes up to the end of its connection ends with it.
        self.is_finished = self.is_chunked;
        Ok(())
    }

    fn send_pending(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let mut left = &pending[..];
        while !left.is_empty() {
            let count = self.patiently(|writer| writer.write(left))?;
            if count == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            left = &left[count..];
        }
        Ok(())
    }

    /// A time-out of the socket means that the client is slow, not that it is gone; nothing is lost by trying again.
    fn patiently<T>(&mut self, mut attempt: impl FnMut(&mut dyn Write) -> io::Result<T>) -> io::Result<T> {
        loop {
            let cause = match attempt(&mut *self.writer) {
                Ok(done) => return Ok(done),
                Err(cause) => cause,
            };
            let is_slow = matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            let waits = is_slow && self.is_patient && !self.edge.is_closing() && !self.edge.is_gone(self.way.peer());
            if !waits && cause.kind() != ErrorKind::Interrupted {
                return Err(cause);
            }
        }
    }
}

impl Drop for Chunked {
    /// Cuts the connection of an answer that was not finished, so that its client sees that it is not whole.
    fn drop(&mut self) {
        if !self.is_finished {
            self.edge.sever(self.way.address().as_slice());
        }
    }
}
