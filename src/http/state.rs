//! Get, update, metadata, remove, describe.

use lockd_client::wire::{
    DescribeResponse, METADATA_BODY_BYTES_MAX, MetadataAttributes, MetadataRequest, MetadataResponse, RemoveResponse,
    UpdateResponse, codes, headers,
};

use super::exchange::Exchange;
use super::reply::{BadRequest, Failure, Reply, ReplyBody};
use super::request::{self, Query};
use super::{Next, Service};
use crate::lease::rules::{Credentials, Expected};
use crate::lease::table::KeyName;
use crate::record::Attributes;
use crate::state::{Announced, OutgoingBytes};

/// `GET|POST /v1/get`
pub(super) fn get(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let query = Query::parse(exchange.query());
    if query.get("key").is_empty() {
        return Err(BadRequest::new(codes::MISSING_PARAMS, "key is required").into());
    }
    let lease_id = exchange.header(headers::LEASE_ID).unwrap_or_default().to_owned();
    // A lease id makes it a leased read, whatever else is asked for.
    let is_public = lease_id.is_empty() && query.is_set("public");
    let token = if is_public {
        None
    } else {
        Some(request::fencing_token(exchange.header(headers::FENCING_TOKEN))?)
    };
    let namespace = request::namespace(query.get("namespace"), &service.limits.default_namespace)?;
    let name = KeyName {
        namespace,
        key: request::key(query.get("key"))?,
    };
    let found = match token {
        None => service.states.read_public(&name)?,
        Some(_) if lease_id.is_empty() => {
            return Err(BadRequest::new(codes::MISSING_PARAMS, "X-Lease-ID is required unless public=1").into());
        }
        Some(fencing_token) => {
            let by = Credentials {
                lease_id,
                fencing_token,
                txn_id: None,
            };
            service.states.read_leased(&name, &by)?
        }
    };
    // A 204 tells no version: clients take one for the sign of a state.
    let Some(found) = found else {
        return Ok(Next::Reply(Reply::empty(204)));
    };
    let body = match found.bytes {
        OutgoingBytes::Whole(bytes) => ReplyBody::Shared(bytes),
        OutgoingBytes::Stream(reader) => ReplyBody::Stream {
            reader,
            length: found.value.bytes,
        },
    };
    let reply = Reply::state(body)
        .with(headers::ETAG, &found.value.etag)
        .with(headers::KEY_VERSION, found.version);
    Ok(Next::Reply(match token {
        Some(token) => reply.with(headers::FENCING_TOKEN, token),
        None => reply,
    }))
}

/// `POST /v1/update`
pub(super) fn update(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let query = Query::parse(exchange.query());
    let name = query_name(&query, service)?;
    let by = header_credentials(exchange)?;
    let version = expected_version(exchange)?;
    let announced = announced(exchange)?;
    let attributes = Attributes {
        query_hidden: request::query_hidden(exchange.header(headers::META_QUERY_HIDDEN))?,
    };
    let announced = with_sha256(exchange, announced)?;
    let expected = Expected {
        version,
        etag: request::etag(exchange.header(headers::IF_STATE_ETAG)),
    };

    let mut incoming = service.states.incoming(announced);
    exchange.read_body(&service.edge, service.limits.json_bytes_max, |bytes| {
        incoming.push(bytes)
    })?;
    let arrived = incoming.finish()?;
    let bytes = arrived.value.bytes;
    let record = service.states.update(&name, &by, &expected, arrived, attributes)?;
    let etag = record
        .effective_state()
        .map(|value| value.etag.to_string())
        .unwrap_or_default();
    let answer = UpdateResponse {
        new_version: record.effective_version(),
        new_state_etag: etag.clone(),
        bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
        metadata: shown(record.effective_attributes()),
    };
    Ok(Next::Reply(
        Reply::json(200, &answer)
            .with(headers::ETAG, etag)
            .with(headers::KEY_VERSION, record.effective_version()),
    ))
}

/// `POST /v1/metadata`
pub(super) fn metadata(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let query = Query::parse(exchange.query());
    let asked_key = query.get("key").to_owned();
    let asked_namespace = query.get("namespace").to_owned();
    if asked_key.is_empty() {
        return Err(BadRequest::new(codes::MISSING_KEY, "key is required").into());
    }
    let by = header_credentials(exchange)?;
    let from_header = request::query_hidden(exchange.header(headers::META_QUERY_HIDDEN))?;
    let body = exchange.read_whole_body(&service.edge, METADATA_BODY_BYTES_MAX as u64)?;
    let from_body: MetadataRequest = if body.is_empty() {
        MetadataRequest::default()
    } else {
        request::json(&body)?
    };
    let Some(query_hidden) = from_header.or(from_body.query_hidden) else {
        return Err(BadRequest::new(codes::INVALID_METADATA, "query_hidden is required").into());
    };
    let expected = Expected {
        version: expected_version(exchange)?,
        etag: None,
    };
    let namespace = request::namespace(&asked_namespace, &service.limits.default_namespace)?;
    let name = KeyName {
        namespace,
        key: request::key(&asked_key)?,
    };
    let attributes = Attributes {
        query_hidden: Some(query_hidden),
    };
    let record = service.states.set_attributes(&name, &by, &expected, attributes)?;
    let answer = MetadataResponse {
        namespace: name.namespace.as_str().to_owned(),
        key: asked_key,
        version: record.effective_version(),
        metadata: shown(record.effective_attributes()),
    };
    Ok(Next::Reply(
        Reply::json(200, &answer).with(headers::KEY_VERSION, record.effective_version()),
    ))
}

/// `POST /v1/remove`
pub(super) fn remove(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let query = Query::parse(exchange.query());
    let name = query_name(&query, service)?;
    let by = header_credentials(exchange)?;
    let expected = Expected {
        version: expected_version(exchange)?,
        etag: request::etag(exchange.header(headers::IF_STATE_ETAG)),
    };
    let removal = service.states.remove(&name, &by, &expected)?;
    let answer = RemoveResponse {
        removed: removal.removed,
        new_version: removal.version,
    };
    Ok(Next::Reply(
        Reply::json(200, &answer).with(headers::KEY_VERSION, removal.version),
    ))
}

/// `GET|POST /v1/describe`
pub(super) fn describe(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let query = Query::parse(exchange.query());
    let name = query_name(&query, service)?;
    let mut answer = DescribeResponse {
        namespace: name.namespace.as_str().to_owned(),
        key: query.get("key").to_owned(),
        ..DescribeResponse::default()
    };
    if let Some(record) = service.states.describe(&name)? {
        answer.version = record.version;
        answer.state_etag = record.committed_etag().map(|etag| etag.to_string()).unwrap_or_default();
        answer.updated_at_unix = record.updated_at_ms.div_euclid(1000);
        answer.metadata = shown(record.attributes);
        if let Some(lease) = record.lease {
            answer.owner = lease.owner;
            answer.lease_id = lease.id.as_str().to_owned();
            answer.expires_at_unix = lease.expires_at_unix;
        }
    }
    Ok(Next::Reply(Reply::json(200, &answer)))
}

fn query_name(query: &Query<'_>, service: &Service) -> Result<KeyName, BadRequest> {
    let key = query.get("key");
    if key.is_empty() {
        return Err(BadRequest::new(codes::MISSING_KEY, "key is required"));
    }
    let namespace = request::namespace(query.get("namespace"), &service.limits.default_namespace)?;
    Ok(KeyName {
        namespace,
        key: request::key(key)?,
    })
}

/// Lease, transaction and token from the headers, each of which must be there, in this order.
fn header_credentials(exchange: &Exchange) -> Result<Credentials, BadRequest> {
    let required = |name, code| match exchange.header(name) {
        None | Some("") => Err(BadRequest::new(code, format!("{name} is required"))),
        Some(value) => Ok(value.to_owned()),
    };
    let lease_id = required(headers::LEASE_ID, codes::MISSING_LEASE)?;
    let txn_id = required(headers::TXN_ID, codes::MISSING_TXN)?;
    let fencing_token = request::fencing_token(exchange.header(headers::FENCING_TOKEN))?;
    Ok(Credentials {
        lease_id,
        fencing_token,
        txn_id: Some(txn_id),
    })
}

fn expected_version(exchange: &Exchange) -> Result<Option<i64>, BadRequest> {
    request::integer(
        exchange.header(headers::IF_VERSION),
        codes::INVALID_VERSION,
        headers::IF_VERSION,
    )
}

fn announced(exchange: &Exchange) -> Result<Announced, BadRequest> {
    let given = exchange.header(headers::EXPECTED_BYTES);
    let bytes = request::integer(given, codes::INVALID_EXPECTED_BYTES, headers::EXPECTED_BYTES)?;
    let bytes = match bytes.map(u64::try_from) {
        Some(Err(_)) => {
            return Err(BadRequest::new(
                codes::INVALID_EXPECTED_BYTES,
                "a length is not negative",
            ));
        }
        Some(Ok(bytes)) => Some(bytes),
        None => None,
    };
    Ok(Announced { bytes, sha256: None })
}

fn with_sha256(exchange: &Exchange, announced: Announced) -> Result<Announced, BadRequest> {
    match exchange.header(headers::EXPECTED_SHA256) {
        None | Some("") => Ok(announced),
        Some(hash) if hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => Ok(Announced {
            sha256: Some(hash.to_owned()),
            ..announced
        }),
        Some(_) => Err(BadRequest::new(
            codes::INVALID_EXPECTED_SHA256,
            "X-Expected-SHA256 must be 64 hex digits",
        )),
    }
}

fn shown(attributes: Attributes) -> MetadataAttributes {
    MetadataAttributes {
        query_hidden: attributes.query_hidden,
    }
}
