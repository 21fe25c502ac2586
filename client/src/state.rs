//! Reading the JSON state of a key, with or without a lease.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use log::kv::Value;
use serde::de::DeserializeOwned;

use crate::call::CallOptions;
use crate::client::{Client, required_key};
use crate::error::Error;
use crate::inner::Inner;
use crate::lease::Session;
use crate::logging::fields;
use crate::walk::{Request, Route};
use crate::wire::headers;

/// A body of this size or less is read together with the head of a get answer, which frees its connection.
const PREFETCH_BYTES: usize = 64 * 1024;

/// The state of a key as one read saw it.
pub struct State {
    /// Namespace of the key.
    pub namespace: String,
    /// The key.
    pub key: String,
    /// Etag of the state; empty when there is none.
    pub etag: String,
    /// Version of the state; 0 when there is none.
    pub version: i64,
    body: Option<StateBody>,
}

struct StateBody {
    prefetched: io::Cursor<Vec<u8>>,
    rest: Option<Box<dyn Read + Send>>,
}

impl State {
    /// False when the key has no state: never saved, or removed.
    pub fn exists(&self) -> bool {
        self.body.is_some()
    }

    /// Reads the body into memory; empty when there is no state.
    pub fn into_bytes(self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.into_reader().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Decodes the body; `None` when there is no state.
    pub fn into_json<T: DeserializeOwned>(self) -> io::Result<Option<T>> {
        if !self.exists() {
            return Ok(None);
        }
        let bytes = self.into_bytes()?;
        serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from)
    }

    /// The body as a stream, which can be read once. It obeys the time limit of the get that brought it. Without state it
    /// is empty.
    pub fn into_reader(self) -> impl Read + Send {
        let (prefetched, rest) = match self.body {
            Some(body) => (body.prefetched, body.rest),
            None => (io::Cursor::default(), None),
        };
        prefetched.chain(rest.unwrap_or_else(|| Box::new(io::empty())))
    }

    /// Reads ahead until so many bytes of the body are in memory, or all of it.
    pub(crate) fn prefetch(&mut self, bytes_max: usize) -> io::Result<()> {
        let Some(body) = &mut self.body else { return Ok(()) };
        let Some(rest) = &mut body.rest else { return Ok(()) };
        let have = body.prefetched.get_mut();
        let wanted = bytes_max.saturating_sub(have.len()) as u64;
        let got = rest.take(wanted).read_to_end(have)? as u64;
        // Fewer bytes than asked for, or none behind them: the end was seen and the connection is free again.
        if got < wanted {
            body.rest = None;
            return Ok(());
        }
        let mut next = [0];
        match rest.read(&mut next)? {
            0 => body.rest = None,
            _ => have.push(next[0]),
        }
        Ok(())
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("namespace", &self.namespace)
            .field("key", &self.key)
            .field("etag", &self.etag)
            .field("version", &self.version)
            .field("exists", &self.exists())
            .finish()
    }
}

/// Which state to read.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct ReadOptions {
    namespace: Option<String>,
    lease_id: Option<String>,
    leased_only: bool,
}

impl ReadOptions {
    /// The default namespace; leased when the client has a default lease, else public.
    pub fn new() -> Self {
        Self::default()
    }

    /// Namespace of the key.
    pub fn namespace(mut self, name: impl Into<String>) -> Self {
        self.namespace = Some(name.into());
        self
    }

    /// Reads what this lease sees, staged changes included.
    pub fn lease_id(mut self, id: impl Into<String>) -> Self {
        self.lease_id = Some(id.into()).filter(|id| !id.is_empty());
        self
    }

    /// Fails, without a request, when no lease is in play, instead of reading the public state.
    pub fn leased_only(mut self) -> Self {
        self.leased_only = true;
        self
    }
}

impl Client {
    /// Reads the state of a key: what the [default lease](Client::set_default_lease) sees, or the last published one.
    pub fn get(&self, key: &str) -> Result<State, Error> {
        self.get_with(key, &ReadOptions::new())
    }

    /// Reads the last published state of a key. Needs no lease and does not care who holds one.
    pub fn get_public(&self, key: &str) -> Result<State, Error> {
        self.get_public_with(key, &ReadOptions::new())
    }

    /// As [`get`](Self::get).
    pub fn get_with(&self, key: &str, options: &ReadOptions) -> Result<State, Error> {
        let key = required_key(key)?;
        let lease_id = options
            .lease_id
            .clone()
            .or_else(|| self.inner.default_lease.lock().clone());
        let namespace = self.inner.namespace(options.namespace.as_deref())?;
        match lease_id {
            Some(lease_id) => {
                let token = self.inner.token(&lease_id, None)?;
                let reader = Reader::Lease {
                    lease_id: &lease_id,
                    token,
                };
                self.inner.get(&self.call, &namespace, key, reader)
            }
            None if options.leased_only => Err(Error::invalid(format!("lease_id required for key {key}"))),
            None => self.inner.get(&self.call, &namespace, key, Reader::Public),
        }
    }

    /// As [`get_public`](Self::get_public). Of the options only the namespace counts.
    pub fn get_public_with(&self, key: &str, options: &ReadOptions) -> Result<State, Error> {
        let key = required_key(key)?;
        let namespace = self.inner.namespace(options.namespace.as_deref())?;
        self.inner.get(&self.call, &namespace, key, Reader::Public)
    }
}

/// Who reads.
#[derive(Clone, Copy)]
enum Reader<'a> {
    Public,
    Lease { lease_id: &'a str, token: i64 },
}

impl Inner {
    fn get(&self, call: &CallOptions, namespace: &str, key: &str, reader: Reader<'_>) -> Result<State, Error> {
        let cid = self.cid(call);
        let mut request = Request::new("POST", "/v1/get", Some(self.settings.http_timeout))
            .repeatable()
            .query("key", key)
            .query("namespace", namespace);
        let last_endpoint = self.last_endpoint();
        // The fields that say who reads; the start event of a public read has a name of its own.
        let who: Vec<(&str, Value<'_>)> = match &reader {
            Reader::Public => fields!(public = true).to_vec(),
            Reader::Lease { lease_id, token } => fields!(lease_id = *lease_id, fencing_token = *token).to_vec(),
        };
        let emit = |level, name: &str, more: &[(&'static str, Value<'_>)]| {
            let mut all = fields!(key = key, namespace = namespace).to_vec();
            all.extend_from_slice(more);
            all.extend_from_slice(&who);
            self.log.emit(level, cid, name, &all);
        };
        let start = match reader {
            Reader::Public => "client.get_public.start",
            Reader::Lease { .. } => "client.get.start",
        };
        emit(log::Level::Trace, start, &fields!(endpoint = &*last_endpoint));
        match reader {
            Reader::Public => request = request.query("public", "1"),
            Reader::Lease { lease_id, token } => {
                request = request
                    .header(headers::LEASE_ID, lease_id)
                    .header(headers::FENCING_TOKEN, token);
            }
        }
        let transport_error = |error: &Error| {
            emit(
                log::Level::Error,
                "client.get.transport_error",
                &fields!(endpoint = &*self.last_endpoint(), error = %error),
            );
        };
        let answer = self.walk(call, &mut request, Route::Any).inspect_err(transport_error)?;
        let endpoint = Arc::clone(&answer.endpoint);
        if !matches!(answer.status, 200 | 204) {
            let status = answer.status;
            emit(
                log::Level::Warn,
                "client.get.error",
                &fields!(endpoint = &*endpoint, status = status),
            );
            return Err(answer.into_error());
        }
        if let Reader::Lease { lease_id, .. } = reader {
            self.refresh_token(lease_id, answer.header(headers::FENCING_TOKEN));
        }
        let mut state = State {
            namespace: namespace.to_owned(),
            key: key.to_owned(),
            etag: answer.etag(),
            version: answer
                .header(headers::KEY_VERSION)
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0),
            body: None,
        };
        if answer.status == 204 {
            emit(log::Level::Debug, "client.get.empty", &fields!(endpoint = &*endpoint));
            return Ok(state);
        }
        let small = answer.length.is_some_and(|length| length <= PREFETCH_BYTES as u64);
        state.body = Some(StateBody {
            prefetched: io::Cursor::default(),
            rest: Some(answer.into_stream()),
        });
        if small {
            state
                .prefetch(PREFETCH_BYTES)
                .map_err(|error| interrupted(call, &endpoint, error))
                .inspect_err(transport_error)?;
        }
        emit(
            log::Level::Trace,
            "client.get.success",
            &fields!(
                endpoint = &*endpoint,
                etag = state.etag.as_str(),
                version = state.version
            ),
        );
        Ok(state)
    }
}

/// The error for a body that broke off.
pub(crate) fn interrupted(call: &CallOptions, endpoint: &str, error: io::Error) -> Error {
    call.check().err().unwrap_or_else(|| {
        Error::Interrupted(crate::error::Attempt {
            endpoint: endpoint.to_owned(),
            cause: crate::error::TransportError::from_io(error),
            sent: true,
        })
    })
}

impl Session {
    /// Reads the state as this lease sees it, staged changes included.
    pub fn get(&self) -> Result<State, Error> {
        let shared = &self.shared;
        let token = shared.inner.token(&shared.lease_id, None)?;
        let reader = Reader::Lease {
            lease_id: &shared.lease_id,
            token,
        };
        let state = shared
            .inner
            .get(&self.call, &shared.namespace, &shared.key, reader)
            .inspect_err(|error| shared.note_error(error))?;
        let mut memory = shared.memory.lock();
        if !state.etag.is_empty() {
            memory.etag.clone_from(&state.etag);
        }
        if 0 < state.version {
            memory.version = state.version;
        }
        drop(memory);
        Ok(state)
    }

    /// Reads and decodes the state; `None` when there is none.
    pub fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        let state = self.get()?;
        let endpoint = self.shared.inner.last_endpoint();
        let exists = state.exists();
        let bytes = state
            .into_bytes()
            .map_err(|error| interrupted(&self.call, &endpoint, error))?;
        if !exists {
            return Ok(None);
        }
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::BadAnswer {
                endpoint: endpoint.to_string(),
                detail: format!("the state is not what was expected: {error}"),
            })
    }
}
