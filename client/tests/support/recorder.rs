//! Remembers log records.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use log::kv::{Key, Value, VisitSource};
use log::{Level, Log, Metadata, Record};

/// One record.
#[derive(Debug, Clone)]
pub struct Event {
    pub at: Instant,
    pub level: Level,
    pub target: String,
    pub name: String,
    pub fields: BTreeMap<String, String>,
}

impl Event {
    pub fn field(&self, name: &str) -> &str {
        self.fields
            .get(name)
            .unwrap_or_else(|| panic!("{} has no field {name}: {:?}", self.name, self.fields))
    }

    /// The names of the fields, in alphabetical order.
    pub fn field_names(&self) -> Vec<&str> {
        self.fields.keys().map(String::as_str).collect()
    }
}

/// A logger that keeps everything.
#[derive(Default)]
pub struct Recorder {
    events: Mutex<Vec<Event>>,
}

impl Recorder {
    pub fn shared() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub fn all(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    pub fn named(&self, name: &str) -> Vec<Event> {
        self.all().into_iter().filter(|event| event.name == name).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        !self.named(name).is_empty()
    }

    /// The only event of this name.
    pub fn one(&self, name: &str) -> Event {
        let mut found = self.named(name);
        assert_eq!(found.len(), 1, "{name} among {:#?}", self.names());
        found.remove(0)
    }

    pub fn names(&self) -> Vec<String> {
        self.all().into_iter().map(|event| event.name).collect()
    }

    pub fn clear(&self) {
        self.events.lock().unwrap().clear();
    }
}

impl Log for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        struct Collect(BTreeMap<String, String>);
        impl<'kvs> VisitSource<'kvs> for Collect {
            fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
                let before = self.0.insert(key.to_string(), value.to_string());
                assert!(before.is_none(), "field {key} twice");
                Ok(())
            }
        }
        let mut collect = Collect(BTreeMap::new());
        record.key_values().visit(&mut collect).unwrap();
        self.events.lock().unwrap().push(Event {
            at: Instant::now(),
            level: record.level(),
            target: record.target().to_owned(),
            name: record.args().to_string(),
            fields: collect.0,
        });
    }

    fn flush(&self) {}
}
