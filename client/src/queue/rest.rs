//! What a server has delivered ahead into a subscription that ends: it is given back at once, without a failed attempt. It would
//! come back by itself, but not before its visibility timeout.
//!
//! The connection is closed first, so that nothing of it comes again the same way. A message that its server sends in that very
//! moment is lost to this, and so is everything when the client is killed: that does come back after its visibility timeout.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::delivery::{Content, SharedDeliveries};
use super::message::{Message, Origin};
use crate::call::CallOptions;
use crate::cancel::{Abort, CancelToken};
use crate::client::Client;
use crate::logging::event;
use crate::threads;
use crate::wire::Delivery;

/// The deliveries of a subscription that nobody has seen.
pub(super) struct Rest {
    shared: Arc<Shared>,
    /// At work when the subscription was cancelled under its handler.
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    client: Client,
    deliveries: SharedDeliveries,
}

impl Rest {
    pub(super) fn of(client: &Client, deliveries: &SharedDeliveries) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared {
                client: client.clone(),
                deliveries: Arc::clone(deliveries),
            }),
            thread: Mutex::default(),
        })
    }

    /// Ends the stream and gives back what it still brings, `first` included.
    pub(super) fn give_back(&self, first: Option<Delivery>) {
        self.shared.give_back(first);
    }

    /// Waits until all is given back, whoever is at it.
    pub(super) fn join(&self) {
        if let Some(thread) = self.thread.lock().take() {
            // A panic has been reported by the runtime.
            let _ = thread.join();
        }
    }
}

/// A handler may be at work for long, and what lies behind its message shall not wait for it.
impl Abort for Rest {
    fn abort(&self) {
        // Whoever holds the lock reads, and hears of the same token.
        if self.shared.deliveries.try_lock().is_none() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        match threads::spawn("lockd-give-back", move || shared.give_back(None)) {
            Ok(thread) => *self.thread.lock() = Some(thread),
            // At least nothing more is delivered into it.
            Err(_) => drop(self.shared.deliveries.try_lock().map(|mut deliveries| deliveries.end())),
        }
    }
}

impl Shared {
    fn give_back(&self, first: Option<Delivery>) {
        let (endpoint, rest) = {
            let mut deliveries = self.deliveries.lock();
            (Arc::clone(deliveries.endpoint()), deliveries.rest())
        };
        let rest: Vec<Delivery> = first.into_iter().chain(rest).collect();
        if rest.is_empty() {
            return;
        }
        let (total, mut returned) = (rest.len(), 0_u64);
        for delivery in rest {
            let origin = Origin {
                endpoint: Arc::clone(&endpoint),
                close_delay: std::time::Duration::ZERO,
                call: CallOptions::new(),
                token: CancelToken::new(),
                heir: None,
            };
            let message = Message::received(&self.client, delivery, Content::Closed, origin).detach();
            match message.return_unseen() {
                Ok(()) => returned += 1,
                // It has ended otherwise; the others have not.
                Err(error) if error.api().is_some() => {}
                Err(_) => break,
            }
        }
        event!(
            self.client.inner.log,
            Debug,
            None,
            "client.queue.subscribe.returned",
            endpoint = &*endpoint,
            messages = total,
            returned = returned
        );
    }
}
