//! Writing under a lease: replacing and removing the state, changing attributes. Everything is staged, and becomes public
//! with the release.

use std::borrow::Cow;
use std::io::Read;
use std::sync::Arc;

use log::kv::Value;
use serde::Serialize;

use crate::error::Error;
use crate::lease::Session;
use crate::logging::fields;
use crate::retry::write_pause;
use crate::walk::{Body, Request, Route};
use crate::wire::{MetadataAttributes, MetadataRequest, MetadataResponse, RemoveResponse, UpdateResponse, headers};

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

    fn read(self) -> Result<Cow<'a, [u8]>, Error> {
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

impl Session {
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
