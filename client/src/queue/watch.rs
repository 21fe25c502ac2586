//! News of a queue, as server-sent events.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use super::required_queue;
use crate::client::Client;
use crate::error::Error;
use crate::walk::{Request, Route};
use crate::wire::{QueueRequest, QueueWatchEvent};

/// The pause before a stream that has ended is opened again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Longest line of a stream, and most data of one event, in bytes.
const EVENT_BYTES_MAX: usize = 64 * 1024;
/// The only event that counts, besides those without a name.
const EVENT_NAME: &[u8] = b"queue_watch";

/// The changes of a queue as they happen: the first item tells how it is now, and each further one that another message is next,
/// or none. Watching takes nothing out of the queue.
///
/// It never ends by itself: when a stream ends, or breaks off, a new one is opened. An error is the last item.
#[derive(Debug)]
#[must_use = "a watch does nothing unless it is iterated over"]
pub struct QueueWatch {
    client: Client,
    request: QueueRequest,
    stream: Option<EventStream>,
    /// A stream was open before.
    reconnects: bool,
    done: bool,
}

impl Client {
    /// Watches a queue of the default namespace. Nothing is sent before the first item is asked for; deadline and cancel token of
    /// [`with_options`](Client::with_options) end the iteration with their error.
    pub fn watch_queue(&self, queue: &str) -> Result<QueueWatch, Error> {
        self.watch_queue_in(None, queue)
    }

    /// As [`watch_queue`](Self::watch_queue), in this namespace.
    pub fn watch_queue_in(&self, namespace: Option<&str>, queue: &str) -> Result<QueueWatch, Error> {
        Ok(QueueWatch {
            request: QueueRequest {
                namespace: self.inner.namespace(namespace)?,
                queue: required_queue(queue)?,
            },
            client: self.clone(),
            stream: None,
            reconnects: false,
            done: false,
        })
    }
}

impl Iterator for QueueWatch {
    type Item = Result<QueueWatchEvent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.wait();
        self.done = item.is_err();
        if self.done {
            self.stream = None;
        }
        Some(item)
    }
}

impl QueueWatch {
    fn wait(&mut self) -> Result<QueueWatchEvent, Error> {
        loop {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => self.open()?,
            };
            match stream.next() {
                Ok(Some(data)) => {
                    let event = serde_json::from_slice(&data).map_err(|error| Error::BadAnswer {
                        endpoint: stream.endpoint.to_string(),
                        detail: format!("an event of a queue: {error}"),
                    });
                    self.stream = Some(stream);
                    return event;
                }
                Ok(None) => {}
                Err(Broken::TooLong) => {
                    return Err(Error::BadAnswer {
                        endpoint: stream.endpoint.to_string(),
                        detail: "an event of a queue is too long".to_owned(),
                    });
                }
                // The caller's end of patience is an error, that of the connection a reason to open another one.
                Err(Broken::Read) => self.client.call.check()?,
            }
        }
    }

    fn open(&mut self) -> Result<EventStream, Error> {
        let (inner, call) = (&self.client.inner, &self.client.call);
        if self.reconnects {
            call.sleep(RECONNECT_PAUSE)?;
        }
        self.reconnects = true;
        let mut http = Request::new("POST", "/v1/queue/watch", None)
            .header("Accept", "text/event-stream")
            .json(&self.request)?;
        let answer = inner.walk(call, &mut http, Route::Any)?;
        inner.note_shutdown(call, &answer);
        if answer.status != 200 {
            return Err(answer.into_error());
        }
        let endpoint = Arc::clone(&answer.endpoint);
        if !answer.content_type().trim().starts_with("text/event-stream") {
            return Err(Error::BadAnswer {
                endpoint: endpoint.to_string(),
                detail: format!("expected an event stream, not {:?}", answer.content_type()),
            });
        }
        Ok(EventStream::new(answer.into_stream(), endpoint))
    }
}

enum Broken {
    Read,
    TooLong,
}

/// The lines of a stream, put together to events.
struct EventStream {
    source: Box<dyn Read + Send>,
    endpoint: Arc<str>,
    buffer: Vec<u8>,
    /// What of the buffer is consumed.
    start: usize,
}

impl EventStream {
    fn new(source: Box<dyn Read + Send>, endpoint: Arc<str>) -> Self {
        Self {
            source,
            endpoint,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// The data of the next event that counts; `None` at the end of the stream.
    fn next(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        let (mut name, mut data) = (Vec::new(), None::<Vec<u8>>);
        while let Some(line) = self.line()? {
            if line.is_empty() {
                let (named, complete) = (std::mem::take(&mut name), data.take());
                match complete {
                    Some(complete) if named.is_empty() || named == EVENT_NAME => return Ok(Some(complete)),
                    _ => continue,
                }
            }
            let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
            let (field, value) = (&line[..colon], line.get(colon + 1..).unwrap_or_default());
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match field {
                b"event" => name = value.to_vec(),
                b"data" => match &mut data {
                    None => data = Some(value.to_vec()),
                    Some(data) => {
                        if EVENT_BYTES_MAX < data.len() + value.len() {
                            return Err(Broken::TooLong);
                        }
                        data.push(b'\n');
                        data.extend_from_slice(value);
                    }
                },
                // Comments, which have no field name, ids, which are of no use to us, and what is not known.
                _ => {}
            }
        }
        Ok(None)
    }

    /// A line without its end, which is LF or CR LF; `None` at the end of the stream.
    fn line(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        loop {
            let held = &self.buffer[self.start..];
            if let Some(end) = held.iter().position(|byte| *byte == b'\n') {
                let line = &held[..end];
                let line = line.strip_suffix(b"\r").unwrap_or(line).to_vec();
                self.start += end + 1;
                return Ok(Some(line));
            }
            if EVENT_BYTES_MAX < held.len() {
                return Err(Broken::TooLong);
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            let mut piece = [0; 4096];
            match self.source.read(&mut piece) {
                Ok(0) => return Ok(None),
                Ok(count) => self.buffer.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken::Read),
            }
        }
    }
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> Vec<String> {
        let source = std::io::Cursor::new(text.as_bytes().to_vec());
        let mut stream = EventStream::new(Box::new(source), "e".into());
        let mut all = Vec::new();
        while let Ok(Some(data)) = stream.next() {
            all.push(String::from_utf8(data).unwrap());
        }
        all
    }

    /// CL-42: comments, foreign events and half events are passed over; several data lines are one text.
    #[test]
    fn only_complete_events_of_the_queue_come_out() {
        let text = ": hello\n\nid: 1\nevent: queue_watch\ndata: {\"a\":\ndata:1}\n\n: keepalive\n\n\
                    event: other\ndata: no\n\ndata: unnamed\r\n\r\nevent: queue_watch\n\ndata\n\ndata: cut off";
        assert_eq!(events(text), ["{\"a\":\n1}", "unnamed", ""]);
    }

    #[test]
    fn lines_and_events_have_a_longest_length() {
        let long = format!("data: {}\n\n", "x".repeat(EVENT_BYTES_MAX + 5000));
        assert_eq!(events(&long), [] as [String; 0]);
        let many = format!("{}\n", format!("data: {}\n", "x".repeat(1000)).repeat(100));
        assert_eq!(events(&many), [] as [String; 0]);
        let legal = format!("data: {}\n\n", "x".repeat(60_000));
        assert_eq!(events(&legal).len(), 1);
    }
}
