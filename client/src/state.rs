//! The JSON state of a key: reading it with or without a lease, replacing and removing it under one.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use log::kv::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call::CallOptions;
use crate::client::{Client, required_key};
use crate::error::Error;
use crate::inner::Inner;
use crate::lease::Session;
use crate::logging::fields;
use crate::retry::write_pause;
use crate::walk::{Body, Request, Route};
use crate::wire::{MetadataAttributes, MetadataRequest, MetadataResponse, RemoveResponse, UpdateResponse, headers};

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

/// A state to send.
pub struct StateInput<'a>(Input<'a>);

enum Input<'a> {
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
    Reader(Box<dyn Read + Send + 'a>),
}

impl<'a> StateInput<'a> {
    /// A source that is read into memory before the first attempt, so that the request can be repeated. For documents that
    /// should not be held in memory see [`Session::update_stream`].
    pub fn reader(source: impl Read + Send + 'a) -> Self {
        Self(Input::Reader(Box::new(source)))
    }

    fn read(self) -> Result<std::borrow::Cow<'a, [u8]>, Error> {
        match self.0 {
            Input::Borrowed(bytes) => Ok(bytes.into()),
            Input::Owned(bytes) => Ok(bytes.into()),
            Input::Reader(mut source) => {
                let mut bytes = Vec::new();
                source.read_to_end(&mut bytes).map_err(Error::BodySource)?;
                Ok(bytes.into())
            }
        }
    }
}

impl<'a> From<&'a [u8]> for StateInput<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self(Input::Borrowed(bytes))
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for StateInput<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self(Input::Borrowed(bytes))
    }
}

impl<'a> From<&'a Vec<u8>> for StateInput<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self(Input::Borrowed(bytes))
    }
}

impl<'a> From<&'a str> for StateInput<'a> {
    fn from(text: &'a str) -> Self {
        Self(Input::Borrowed(text.as_bytes()))
    }
}

impl<'a> From<&'a String> for StateInput<'a> {
    fn from(text: &'a String) -> Self {
        Self(Input::Borrowed(text.as_bytes()))
    }
}

impl From<Vec<u8>> for StateInput<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Input::Owned(bytes))
    }
}

impl From<String> for StateInput<'_> {
    fn from(text: String) -> Self {
        Self(Input::Owned(text.into_bytes()))
    }
}

/// What a write expects and says, beyond what the lease remembers. An empty value falls back to memory.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct WriteOptions {
    if_version: Option<i64>,
    if_state_etag: Option<String>,
    fencing_token: Option<i64>,
    txn_id: Option<String>,
    namespace: Option<String>,
    expected_sha256: Option<String>,
    expected_bytes: Option<i64>,
    query_hidden: Option<bool>,
}

impl WriteOptions {
    /// Nothing beyond memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fails with `version_conflict` unless the key has this version.
    pub fn if_version(mut self, version: i64) -> Self {
        self.if_version = Some(version);
        self
    }

    /// Fails with `etag_mismatch` unless the state has this etag.
    pub fn if_state_etag(mut self, etag: impl Into<String>) -> Self {
        self.if_state_etag = Some(etag.into()).filter(|etag| !etag.is_empty());
        self
    }

    /// Sends this fencing token.
    pub fn fencing_token(mut self, token: i64) -> Self {
        self.fencing_token = Some(token);
        self
    }

    /// Sends this transaction id.
    pub fn txn_id(mut self, id: impl Into<String>) -> Self {
        self.txn_id = Some(id.into()).filter(|id| !id.is_empty());
        self
    }

    /// Sends this namespace.
    pub fn namespace(mut self, name: impl Into<String>) -> Self {
        self.namespace = Some(name.into());
        self
    }

    /// Fails with `expected_sha256_mismatch` unless the server receives bytes of this SHA-256 (64 hex digits). Update only.
    pub fn expected_sha256(mut self, hex: impl Into<String>) -> Self {
        self.expected_sha256 = Some(hex.into()).filter(|hex| !hex.is_empty());
        self
    }

    /// Fails with `expected_bytes_mismatch` unless the server receives so many bytes. Update only.
    pub fn expected_bytes(mut self, count: i64) -> Self {
        self.expected_bytes = Some(count);
        self
    }

    /// Also hides the key from queries, or shows it again.
    pub fn query_hidden(mut self, hidden: bool) -> Self {
        self.query_hidden = Some(hidden);
        self
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
        let small = answer
            .header("Content-Length")
            .and_then(|text| text.parse::<usize>().ok())
            .is_some_and(|length| length <= PREFETCH_BYTES);
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

    /// Stages a new state, in JSON. It becomes public with the release. Version and etag that the lease remembers are sent
    /// as preconditions. Repeated on transport errors, see the table in the [crate docs](crate).
    pub fn update<'a>(&self, body: impl Into<StateInput<'a>>) -> Result<UpdateResponse, Error> {
        self.update_with(body, &WriteOptions::new())
    }

    /// As [`update`](Self::update), with options that beat what the lease remembers.
    pub fn update_with<'a>(
        &self,
        body: impl Into<StateInput<'a>>,
        options: &WriteOptions,
    ) -> Result<UpdateResponse, Error> {
        let bytes = body.into().read()?;
        let (inner, call) = (&self.shared.inner, &self.call);
        let write = self.write(options)?;
        self.log_write(
            log::Level::Trace,
            "client.update.start",
            &write,
            &fields!(endpoint = &*inner.last_endpoint()),
        );
        let mut retries = 0;
        loop {
            let error = match self.update_once(Body::Bytes(&bytes), "client.update", &write, options) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let worth_it = matches!(error, Error::Unreachable(_) | Error::Interrupted(_)) || error.is_node_passive();
            retries += 1;
            if !worth_it || !inner.settings.failure_retries.allow(retries) {
                self.shared.note_error(&error);
                return Err(error);
            }
            call.sleep(write_pause(retries, error.retry_after()))?;
        }
    }

    /// Stages a value as the new state; see [`update`](Self::update).
    pub fn save<T: Serialize + ?Sized>(&self, value: &T) -> Result<UpdateResponse, Error> {
        self.save_with(value, &WriteOptions::new())
    }

    /// As [`save`](Self::save), with options that beat what the lease remembers.
    pub fn save_with<T: Serialize + ?Sized>(&self, value: &T, options: &WriteOptions) -> Result<UpdateResponse, Error> {
        let bytes = serde_json::to_vec(value).map_err(|error| Error::invalid(format!("encode state: {error}")))?;
        self.update_with(bytes, options)
    }

    /// Stages a new state that is sent as it is read and never held in memory. It is sent once: there is no retry and no
    /// second endpoint.
    pub fn update_stream(&self, source: impl Read + Send) -> Result<UpdateResponse, Error> {
        self.update_stream_with(source, &WriteOptions::new())
    }

    /// As [`update_stream`](Self::update_stream), with options that beat what the lease remembers.
    pub fn update_stream_with(
        &self,
        mut source: impl Read + Send,
        options: &WriteOptions,
    ) -> Result<UpdateResponse, Error> {
        let write = self.write(options)?;
        self.update_once(Body::Stream(&mut source), "client.update_stream", &write, options)
            .inspect_err(|error| self.shared.note_error(error))
    }

    fn update_once(
        &self,
        body: Body<'_>,
        event: &str,
        write: &Write,
        options: &WriteOptions,
    ) -> Result<UpdateResponse, Error> {
        let shared = &self.shared;
        let inner = &shared.inner;
        let mut request = self
            .write_request("/v1/update", write)
            .header_if(headers::IF_STATE_ETAG, write.etag.as_deref())
            .header_if(headers::IF_VERSION, write.version)
            .header_if(headers::EXPECTED_SHA256, options.expected_sha256.as_deref())
            .header_if(headers::EXPECTED_BYTES, options.expected_bytes)
            .header_if(headers::META_QUERY_HIDDEN, options.query_hidden)
            .body(body);
        let route = shared.endpoint.as_deref().map_or(Route::Any, Route::Prefer);
        let transport_error = |error: &Error| {
            let fields = fields!(endpoint = "", error = %error);
            self.log_write(log::Level::Error, &format!("{event}.transport_error"), write, &fields);
        };
        let answer = inner
            .walk(&self.call, &mut request, route)
            .inspect_err(transport_error)?;
        let endpoint = Arc::clone(&answer.endpoint);
        if answer.status != 200 {
            let fields = fields!(endpoint = &*endpoint, status = answer.status);
            self.log_write(log::Level::Warn, &format!("{event}.error"), write, &fields);
            return Err(answer.into_error());
        }
        inner.refresh_token(&shared.lease_id, answer.header(headers::FENCING_TOKEN));
        let done: UpdateResponse = answer.into_json().inspect_err(transport_error)?;
        {
            let mut memory = shared.memory.lock();
            memory.version = done.new_version;
            memory.etag.clone_from(&done.new_state_etag);
        }
        let fields = fields!(
            endpoint = &*endpoint,
            new_version = done.new_version,
            new_etag = done.new_state_etag.as_str()
        );
        self.log_write(log::Level::Trace, &format!("{event}.success"), write, &fields);
        Ok(done)
    }

    /// Stages the removal of the state. Returns whether there was one. Not repeated on transport errors.
    pub fn remove(&self) -> Result<RemoveResponse, Error> {
        self.remove_with(&WriteOptions::new())
    }

    /// As [`remove`](Self::remove), with options that beat what the lease remembers.
    pub fn remove_with(&self, options: &WriteOptions) -> Result<RemoveResponse, Error> {
        let shared = &self.shared;
        let inner = &shared.inner;
        let write = self.write(options)?;
        self.log_write(
            log::Level::Trace,
            "client.remove.start",
            &write,
            &fields!(endpoint = &*inner.last_endpoint()),
        );
        let mut request = self
            .write_request("/v1/remove", &write)
            .header_if(headers::IF_STATE_ETAG, write.etag.as_deref())
            .header_if(headers::IF_VERSION, write.version);
        let transport_error = |error: &Error| {
            let endpoint = inner.last_endpoint();
            let fields = fields!(endpoint = &*endpoint, error = %error);
            self.log_write(log::Level::Error, "client.remove.transport_error", &write, &fields);
        };
        let answer = inner
            .walk(&self.call, &mut request, Route::Any)
            .inspect_err(transport_error)?;
        let endpoint = Arc::clone(&answer.endpoint);
        if answer.status != 200 {
            let fields = fields!(endpoint = &*endpoint, status = answer.status);
            self.log_write(log::Level::Warn, "client.remove.error", &write, &fields);
            let error = answer.into_error();
            shared.note_error(&error);
            return Err(error);
        }
        inner.refresh_token(&shared.lease_id, answer.header(headers::FENCING_TOKEN));
        let done: RemoveResponse = answer.into_json().inspect_err(transport_error)?;
        {
            let mut memory = shared.memory.lock();
            if 0 < done.new_version {
                memory.version = done.new_version;
            }
            memory.etag.clear();
        }
        let fields = fields!(
            endpoint = &*endpoint,
            removed = done.removed,
            new_version = done.new_version
        );
        self.log_write(log::Level::Trace, "client.remove.success", &write, &fields);
        Ok(done)
    }

    /// Stages attributes of the key. Works on keys without state. Not repeated on transport errors.
    pub fn update_metadata(&self, attributes: MetadataAttributes) -> Result<MetadataResponse, Error> {
        self.update_metadata_with(attributes, &WriteOptions::new())
    }

    /// As [`update_metadata`](Self::update_metadata), with options that beat what the lease remembers. The etag is not sent.
    pub fn update_metadata_with(
        &self,
        attributes: MetadataAttributes,
        options: &WriteOptions,
    ) -> Result<MetadataResponse, Error> {
        let query_hidden = attributes.query_hidden.or(options.query_hidden);
        if query_hidden.is_none() {
            return Err(Error::invalid("metadata options required"));
        }
        let shared = &self.shared;
        let (inner, cid) = (&shared.inner, shared.inner.cid(&self.call));
        let write = self.write(options)?;
        let emit = |level, name: &str, more: &[(&'static str, Value<'_>)]| {
            let mut all = fields!(
                key = shared.key.as_str(),
                lease_id = shared.lease_id.as_str(),
                txn_id = write.txn_id.as_str(),
                namespace = write.namespace.as_str()
            )
            .to_vec();
            all.extend_from_slice(more);
            inner.log.emit(level, cid, name, &all);
        };
        emit(log::Level::Trace, "client.metadata.start", &[]);
        let mut request = self
            .write_request("/v1/metadata", &write)
            .header_if(headers::IF_VERSION, write.version)
            .json(&MetadataRequest { query_hidden })?;
        let route = shared.endpoint.as_deref().map_or(Route::Any, Route::Prefer);
        let transport_error = |error: &Error| {
            let endpoint = inner.last_endpoint();
            let fields = fields!(endpoint = &*endpoint, error = %error);
            emit(log::Level::Error, "client.metadata.transport_error", &fields);
        };
        let answer = inner
            .walk(&self.call, &mut request, route)
            .inspect_err(transport_error)?;
        let endpoint = Arc::clone(&answer.endpoint);
        if answer.status != 200 {
            let fields = fields!(endpoint = &*endpoint, status = answer.status);
            emit(log::Level::Warn, "client.metadata.error", &fields);
            let error = answer.into_error();
            shared.note_error(&error);
            return Err(error);
        }
        inner.refresh_token(&shared.lease_id, answer.header(headers::FENCING_TOKEN));
        let done: MetadataResponse = answer.into_json().inspect_err(transport_error)?;
        if 0 < done.version {
            shared.memory.lock().version = done.version;
        }
        emit(
            log::Level::Trace,
            "client.metadata.success",
            &fields!(endpoint = &*endpoint, version = done.version),
        );
        Ok(done)
    }

    /// Settles what a write sends: explicit options first, then memory. Fails when no fencing token is known.
    fn write(&self, options: &WriteOptions) -> Result<Write, Error> {
        let shared = &self.shared;
        let namespace = match options
            .namespace
            .as_deref()
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            Some(name) => shared.inner.namespace(Some(name))?,
            None => shared.namespace.clone(),
        };
        let memory = shared.memory.lock().clone();
        Ok(Write {
            token: shared.inner.token(&shared.lease_id, options.fencing_token)?,
            txn_id: options.txn_id.clone().unwrap_or_else(|| shared.txn_id.clone()),
            namespace,
            version: options
                .if_version
                .or(Some(memory.version).filter(|version| 0 < *version)),
            etag: options
                .if_state_etag
                .clone()
                .or(Some(memory.etag).filter(|etag| !etag.is_empty())),
        })
    }

    fn write_request<'a>(&self, path: &'static str, write: &Write) -> Request<'a> {
        let shared = &self.shared;
        Request::new("POST", path, Some(shared.inner.settings.http_timeout))
            .query("key", &shared.key)
            .query("namespace", &write.namespace)
            .header(headers::LEASE_ID, &shared.lease_id)
            .header(headers::FENCING_TOKEN, write.token)
            .header_if(headers::TXN_ID, Some(&write.txn_id).filter(|id| !id.is_empty()))
    }

    /// Emits an event with the fields that every write has.
    fn log_write(&self, level: log::Level, name: &str, write: &Write, more: &[(&'static str, Value<'_>)]) {
        let shared = &self.shared;
        let mut all = fields!(
            key = shared.key.as_str(),
            lease_id = shared.lease_id.as_str(),
            txn_id = write.txn_id.as_str(),
            fencing_token = write.token
        )
        .to_vec();
        all.extend_from_slice(more);
        shared.inner.log.emit(level, shared.inner.cid(&self.call), name, &all);
    }
}

/// What one write sends.
struct Write {
    token: i64,
    txn_id: String,
    namespace: String,
    version: Option<i64>,
    etag: Option<String>,
}
