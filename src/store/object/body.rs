//! Bodies: an object each, put whole or in parts, read as a stream.
//!
//! A body that arrives piece by piece is held in memory up to the size of one part and then goes out part by part, so that
//! it never takes more memory than that. It becomes visible with its end. Parts of a body that is given up are thrown away;
//! a crash leaves them to the bucket's rule for uploads that were never finished.
//!
//! A stream that breaks off on the way here is taken up again where it broke.

use std::io::{self, Read, Write};
use std::mem;
use std::sync::Arc;

use super::Core;
use super::bucket::{Condition, Failure, Opened};
use crate::store::{BodyId, BodyWriter, StoreError};

impl Core {
    /// Puts a body whole. Its name is used for these bytes alone, so it may be put again and again.
    pub(super) fn put_body(&self, id: &BodyId, bytes: &[u8]) -> Result<(), StoreError> {
        let name = self.body_name(id)?;
        self.reaper.reclaim(&name).map_err(Failure::of_change)?;
        self.again(|| self.bucket.put(&name, bytes, &Condition::None)).map(drop)
    }

    /// Drops a body when its readers have had time to finish.
    pub(super) fn drop_body(&self, id: &BodyId) {
        if let Ok(name) = self.body_name(id) {
            self.reaper.later(name);
        }
    }

    pub(super) fn open_body(self: &Arc<Self>, id: &BodyId) -> Result<Box<dyn Read + Send>, StoreError> {
        let missing = || StoreError::BodyMissing { body: id.clone() };
        let name = self.body_name(id).map_err(|_| missing())?;
        let opened = self
            .noted(self.bucket.open(&name, 0, None))
            .map_err(Failure::of_question)?;
        let Opened {
            etag,
            bytes_left,
            reader,
        } = opened.ok_or_else(missing)?;
        Ok(Box::new(ObjectBodyReader {
            core: Arc::clone(self),
            name,
            etag,
            offset: 0,
            bytes_left,
            reader,
            failures_in_a_row: 0,
        }))
    }

    pub(super) fn stream_body(self: &Arc<Self>) -> Box<dyn BodyWriter> {
        let id = BodyId::new(format!("s-{}", self.ids.uuid()));
        Box::new(ObjectBodyWriter {
            core: Arc::clone(self),
            id,
            buffer: Vec::new(),
            upload: None,
            parts: Vec::new(),
        })
    }

    /// Repeats what may be repeated, until it is done.
    fn again<T>(&self, call: impl Fn() -> Result<T, Failure>) -> Result<T, StoreError> {
        let mut last = Failure::NotDone(String::new());
        for attempt in 0..self.attempts() {
            self.pause_before(attempt);
            match self.noted(call()) {
                Ok(answer) => return Ok(answer),
                Err(failure @ Failure::Denied(_)) => return Err(failure.of_change()),
                Err(failure) => last = failure,
            }
        }
        Err(last.of_question())
    }
}

struct ObjectBodyWriter {
    core: Arc<Core>,
    id: BodyId,
    /// What has not been sent yet; less than a part.
    buffer: Vec<u8>,
    /// Named once there is more than one part.
    upload: Option<String>,
    parts: Vec<String>,
}

impl ObjectBodyWriter {
    fn name(&self) -> Result<String, StoreError> {
        self.core.body_name(&self.id)
    }

    fn send_part(&mut self) -> Result<(), StoreError> {
        let (name, core) = (self.name()?, &self.core);
        let upload = match &self.upload {
            Some(upload) => upload,
            None => self.upload.insert(core.again(|| core.bucket.begin_upload(&name))?),
        };
        let number = u32::try_from(self.parts.len() + 1).unwrap_or(u32::MAX);
        let part = core.again(|| core.bucket.put_part(&name, upload, number, &self.buffer))?;
        self.parts.push(part);
        self.buffer.clear();
        Ok(())
    }

    fn finish_upload(&mut self, upload: &str) -> Result<(), StoreError> {
        let (name, core) = (self.name()?, &self.core);
        core.again(|| match core.bucket.finish_upload(&name, upload, &self.parts) {
            Ok(()) => Ok(()),
            // If it was finished after all, the upload is gone and the object is there: names are used once.
            Err(failure) => match core.bucket.open(&name, 0, None) {
                Ok(Some(_)) => Ok(()),
                _ => Err(failure),
            },
        })
    }
}

impl Write for ObjectBodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part_bytes = self.core.bucket.part_bytes();
        if self.buffer.len() == part_bytes {
            self.send_part().map_err(io::Error::other)?;
        }
        let count = bytes.len().min(part_bytes - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BodyWriter for ObjectBodyWriter {
    fn finish(mut self: Box<Self>) -> Result<BodyId, StoreError> {
        if self.upload.is_none() {
            let bytes = mem::take(&mut self.buffer);
            self.core.put_body(&self.id, &bytes)?;
            return Ok(self.id.clone());
        }
        if !self.buffer.is_empty() {
            self.send_part()?;
        }
        if let Some(upload) = self.upload.take()
            && let Err(error) = self.finish_upload(&upload)
        {
            self.upload = Some(upload);
            return Err(error);
        }
        Ok(self.id.clone())
    }
}

impl Drop for ObjectBodyWriter {
    fn drop(&mut self) {
        if let (Some(upload), Ok(name)) = (self.upload.take(), self.name()) {
            let _ = self.core.bucket.abort_upload(&name, &upload);
        }
    }
}

struct ObjectBodyReader {
    core: Arc<Core>,
    name: String,
    etag: String,
    offset: u64,
    bytes_left: u64,
    reader: Box<dyn Read + Send>,
    failures_in_a_row: u32,
}

impl ObjectBodyReader {
    /// Opens the rest anew after a failure.
    fn take_up_again(&mut self, cause: io::Error) -> io::Result<()> {
        self.failures_in_a_row += 1;
        if self.core.attempts() <= self.failures_in_a_row {
            return Err(cause);
        }
        self.core.pause_before(self.failures_in_a_row);
        match self
            .core
            .noted(self.core.bucket.open(&self.name, self.offset, Some(&self.etag)))
        {
            Ok(Some(opened)) if opened.bytes_left == self.bytes_left => {
                self.reader = opened.reader;
                Ok(())
            }
            Ok(_) => Err(io::Error::other(format!("{} was dropped while it was read", self.name))),
            Err(Failure::Denied(detail)) => Err(io::Error::other(detail)),
            // The next read fails at once and comes here again.
            Err(_) => Ok(()),
        }
    }
}

impl Read for ObjectBodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes_left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let cause = match self.reader.read(buffer) {
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(count) => {
                    let read = count as u64;
                    if self.bytes_left < read {
                        return Err(io::Error::other(format!("{} is longer than announced", self.name)));
                    }
                    self.offset += read;
                    self.bytes_left -= read;
                    self.failures_in_a_row = 0;
                    return Ok(count);
                }
                Err(cause) => cause,
            };
            self.take_up_again(cause)?;
        }
    }
}
