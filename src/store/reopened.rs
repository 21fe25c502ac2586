//! A wrapper that opens a store anew after it has stopped for good.
//!
//! An engine that cannot know any more what its disk holds stops: it refuses everything until its root is opened anew, which
//! reads what is really there. That is what a restart of the process would do, and no more than that is needed. So a
//! thread of this wrapper does it, again and again until it works, and ends; while nothing is wrong there is no such
//! thread. Calls meanwhile get the refusals of the old engine.
//!
//! Damage is no reason: it would be found again.
//!
//! Whoever listens to the feed is told of every record once the store is open: what others have changed meanwhile is not
//! known, nor what became of a write of which nobody knew.

use std::io::Read;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::{Mutex, RwLock};

use super::{
    Batch, BodyId, BodyWriter, Capabilities, ChangeListener, Listed, RecordKey, Store, StoreError, Stored, Written,
};
use crate::logging::Logger;
use crate::metrics::Report;
use crate::threads;

/// How long to wait before each attempt.
const PAUSE: Duration = Duration::from_secs(1);
/// How many records one listing tells of.
const PAGE: usize = 1000;

/// Opens the store; the error is for the log.
pub type Opener = Box<dyn Fn() -> Result<Arc<dyn Store>, String> + Send + Sync>;

/// A store that is opened anew after it has stopped. See the [module documentation](self).
pub struct ReopenedStore {
    shared: Arc<Shared>,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    stopped: Receiver<()>,
    opening: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    store: RwLock<Arc<dyn Store>>,
    open: Opener,
    listeners: Mutex<Vec<ChangeListener>>,
    logger: Logger,
}

impl ReopenedStore {
    /// Over a store that `open` has opened, and will open again.
    pub fn new(store: Arc<dyn Store>, open: Opener, logger: Logger) -> Self {
        let (stop, stopped) = bounded(0);
        Self {
            shared: Arc::new(Shared {
                store: RwLock::new(store),
                open,
                listeners: Mutex::new(Vec::new()),
                logger,
            }),
            stop: Some(stop),
            stopped,
            opening: Mutex::new(None),
        }
    }

    /// True while a thread tries to open it.
    pub fn is_being_opened(&self) -> bool {
        self.opening.lock().as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn call<T>(&self, call: impl FnOnce(&dyn Store) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let store = self.shared.store();
        let answer = call(&*store);
        match &answer {
            Ok(_) | Err(StoreError::Corrupt { .. } | StoreError::BodyMissing { .. }) => {}
            Err(_) if store.healthy() => {}
            Err(error) => self.open_anew(error),
        }
        answer
    }

    /// Starts the thread, unless it runs.
    fn open_anew(&self, why: &StoreError) {
        let mut opening = self.opening.lock();
        let is_under_way = opening.as_ref().is_some_and(|thread| !thread.is_finished());
        if is_under_way || self.shared.store().healthy() {
            return;
        }
        let error = why.to_string();
        log::error!(logger: self.shared.logger, target: "storage.backend.core", error; "storage stopped");
        let (shared, stopped) = (Arc::clone(&self.shared), self.stopped.clone());
        // Without a thread the next call tries again.
        if let Ok(thread) = threads::spawn("lockd-reopen", move || shared.open_until(&stopped)) {
            *opening = Some(thread);
        }
    }
}

impl Shared {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store.read())
    }

    fn open_until(&self, stopped: &Receiver<()>) {
        while stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
            match (self.open)() {
                Ok(store) => {
                    log::info!(logger: self.logger, target: "storage.backend.core", "storage opened anew");
                    return self.go_on_with(store);
                }
                Err(error) => {
                    log::warn!(logger: self.logger, target: "storage.backend.core", error; "storage still stopped");
                }
            }
        }
    }

    fn go_on_with(&self, store: Arc<dyn Store>) {
        let listeners = {
            // Nobody begins to listen to the old one meanwhile.
            let listeners = self.listeners.lock();
            for listener in listeners.iter() {
                store.watch(Arc::clone(listener));
            }
            *self.store.write() = Arc::clone(&store);
            listeners.clone()
        };
        let mut after = None;
        while !listeners.is_empty() {
            // If it fails it has stopped again, and this will be done when it goes on.
            let Ok(page) = store.list("", after.as_ref(), PAGE) else {
                return;
            };
            let keys: Vec<RecordKey> = page.into_iter().map(|listed| listed.key).collect();
            let is_last = keys.len() < PAGE;
            listeners.iter().for_each(|listener| listener(&keys));
            after = keys.into_iter().next_back();
            if is_last {
                return;
            }
        }
    }
}

impl Drop for ReopenedStore {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.opening.get_mut().take() {
            let _ = thread.join();
        }
    }
}

impl Store for ReopenedStore {
    fn read(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        self.call(|store| store.read(key))
    }

    fn write(&self, batch: Batch) -> Result<Written, StoreError> {
        self.call(|store| store.write(batch))
    }

    fn list(&self, prefix: &str, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.call(|store| store.list(prefix, after, limit))
    }

    fn body_writer(&self) -> Result<Box<dyn BodyWriter>, StoreError> {
        self.call(|store| store.body_writer())
    }

    fn body_reader(&self, body: &BodyId) -> Result<Box<dyn Read + Send>, StoreError> {
        self.call(|store| store.body_reader(body))
    }

    fn leftovers(&self, older_than: Duration) -> Result<Vec<BodyId>, StoreError> {
        self.call(|store| store.leftovers(older_than))
    }

    fn watch(&self, listener: ChangeListener) -> bool {
        let mut listeners = self.shared.listeners.lock();
        let is_heard = self.shared.store().watch(Arc::clone(&listener));
        if is_heard {
            listeners.push(listener);
        }
        is_heard
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.store().capabilities()
    }

    fn report(&self, report: &mut Report) {
        self.shared.store().report(report);
    }

    fn healthy(&self) -> bool {
        self.shared.store().healthy()
    }
}
