//! A look at a queue that changes nothing.

use super::required_queue;
use crate::client::Client;
use crate::error::Error;
use crate::logging::event;
use crate::walk::{Request, Route};
use crate::wire::{QueueRequest, QueueStatsResponse};

impl Client {
    /// What the server that answers knows about a queue of the default namespace: who waits for it, and which message is next.
    /// An unknown queue is an empty one.
    pub fn queue_stats(&self, queue: &str) -> Result<QueueStatsResponse, Error> {
        self.queue_stats_in(None, queue)
    }

    /// As [`queue_stats`](Self::queue_stats), in this namespace.
    pub fn queue_stats_in(&self, namespace: Option<&str>, queue: &str) -> Result<QueueStatsResponse, Error> {
        let (inner, cid) = (&self.inner, self.inner.cid(&self.call));
        let request = QueueRequest {
            namespace: inner.namespace(namespace)?,
            queue: required_queue(queue)?,
        };
        event!(
            inner.log,
            Trace,
            cid,
            "client.queue.stats.start",
            queue = request.queue.as_str(),
            namespace = request.namespace.as_str()
        );
        let mut http = Request::new("POST", "/v1/queue/stats", Some(inner.settings.http_timeout))
            .repeatable()
            .json(&request)?;
        let stats: QueueStatsResponse = inner.post(&self.call, &mut http, Route::Any)?.into_json()?;
        event!(
            inner.log,
            Trace,
            cid,
            "client.queue.stats.success",
            queue = request.queue.as_str(),
            namespace = request.namespace.as_str(),
            available = stats.available,
            head_message_id = stats.head_message_id.as_str()
        );
        Ok(stats)
    }
}
