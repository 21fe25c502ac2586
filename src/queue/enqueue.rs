//! A message on its way in.
//!
//! A payload of up to [`INLINE_BYTES_MAX`] bytes lives in the record, one of up to the spool limit is written in one batch
//! with it, and whatever is larger streams into a body of the store while it is still arriving. In the first two cases the
//! whole enqueue is one write.

use std::io::Write as _;
use std::sync::Arc;

use super::Queues;
use super::rules::{self, NewMessage};
use crate::error::Error;
use crate::keys::{self, MessageId, QueueId};
use crate::news::News;
use crate::record::{Body, INLINE_BYTES_MAX, MessagePayload, MessageRecord, encode_message};
use crate::store::{BodyId, BodyWriter, Change, Precondition, RecordWrite, StoreError};

/// What is known of a message before its payload arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnqueueMeta {
    /// Where it goes.
    pub queue: QueueId,
    /// What the producer asks for.
    pub message: NewMessage,
}

/// A message that is durable and can be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enqueued {
    /// Queue.
    pub queue: QueueId,
    /// Its id.
    pub id: MessageId,
    /// Everything else, defaults filled in.
    pub record: MessageRecord,
}

/// Takes the payload of a message in, piece by piece. Dropping it leaves nothing behind.
pub struct EnqueueWriter<'a> {
    queues: &'a Queues,
    meta: EnqueueMeta,
    spool: Vec<u8>,
    bytes: u64,
    body: Option<Box<dyn BodyWriter>>,
}

impl Queues {
    /// Begins a message.
    pub fn enqueue_writer(&self, meta: EnqueueMeta) -> EnqueueWriter<'_> {
        EnqueueWriter {
            queues: self,
            meta,
            spool: Vec::new(),
            bytes: 0,
            body: None,
        }
    }
}

impl EnqueueWriter<'_> {
    /// Takes the next bytes of the payload.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.bytes += piece.len() as u64;
        let spool_bytes_max = self.queues.spool_bytes_max.max(INLINE_BYTES_MAX);
        if self.spool.len() + piece.len() <= spool_bytes_max {
            self.spool.extend_from_slice(piece);
            return Ok(());
        }
        let writer = match &mut self.body {
            Some(writer) => writer,
            None => self.body.insert(self.queues.table.store().body_writer()?),
        };
        writer.write_all(&self.spool).map_err(|cause| not_written(&cause))?;
        self.spool.clear();
        writer.write_all(piece).map_err(|cause| not_written(&cause))
    }

    /// The payload is whole: the message exists from here on, or not at all.
    pub fn finish(mut self) -> Result<Enqueued, Error> {
        let table = &self.queues.table;
        let mut along = Vec::new();
        let mut written_ahead = None;
        let body = match self.body.take() {
            Some(mut writer) => {
                writer.write_all(&self.spool).map_err(|cause| not_written(&cause))?;
                let id = writer.finish()?;
                written_ahead = Some(id.clone());
                Body::Stored(id)
            }
            None if self.spool.len() <= INLINE_BYTES_MAX => Body::Inline(self.spool.into()),
            None => {
                let id = BodyId::new(self.queues.ids.uuid());
                along.push((id.clone(), Arc::from(self.spool)));
                Body::Stored(id)
            }
        };
        let payload = MessagePayload {
            bytes: self.bytes,
            body,
        };
        let EnqueueMeta { queue, message } = self.meta;
        let record = rules::enqueued(message, payload, table.now());
        let id = MessageId::new(self.queues.ids.raw_uuid());
        let written = table.transact(&along, |view| {
            let write = RecordWrite {
                key: keys::message_record(&queue, id),
                precondition: Precondition::Absent,
                change: Change::Put(encode_message(&record)),
            };
            let news = News::Visible {
                queue: queue.clone(),
                id,
                from_ms: record.visible_from_ms,
            };
            view.put_stored(write, Vec::new(), Some(news));
            Ok(())
        });
        if let Err(cause) = written {
            if let Some(body) = written_ahead.filter(|_| cause.is_certainly_not_done()) {
                // The answer matters more than its garbage: a body that cannot be dropped now costs space and nothing else.
                let _ = table.drop_bodies(vec![body]);
            }
            return Err(cause);
        }
        Ok(Enqueued { queue, id, record })
    }
}

fn not_written(cause: &std::io::Error) -> Error {
    Error::Store(StoreError::NotDone {
        detail: format!("writing a payload: {cause}"),
    })
}
