//! The configuration of a namespace.

use lockd_client::wire::{NAMESPACE_BODY_BYTES_MAX, NamespaceConfig, NamespaceRequest, codes, headers};

use super::exchange::Exchange;
use super::reply::{BadRequest, Failure, Reply};
use super::request::{self, Query};
use super::{Next, Service};
use crate::keys::Namespace;
use crate::namespace::{Engines, EnginesChange, Fallback, Preferred};

/// `GET /v1/namespace`
pub(super) fn read(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let query = Query::parse(exchange.query());
    let namespace = request::namespace(query.get("namespace"), &service.limits.default_namespace)?;
    let (engines, etag) = service.namespaces.read(&namespace)?;
    Ok(Next::Reply(config_reply(&namespace, engines, etag)))
}

/// `POST|PUT /v1/namespace`
pub(super) fn set(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let body = exchange.read_whole_body(&service.edge, NAMESPACE_BODY_BYTES_MAX as u64)?;
    let body: NamespaceRequest = request::json(&body)?;
    let query = Query::parse(exchange.query());
    let asked = if body.namespace.trim().is_empty() {
        query.get("namespace")
    } else {
        &body.namespace
    };
    let namespace = request::namespace(asked, &service.limits.default_namespace)?;
    let Some(wanted) = body.query else {
        return Err(BadRequest::new(codes::INVALID_NAMESPACE_REQUEST, "query is required").into());
    };
    let preferred = match wanted.preferred_engine.trim().to_ascii_lowercase().as_str() {
        "" => None,
        "index" => Some(Preferred::Index),
        "scan" => Some(Preferred::Scan),
        _ => return Err(BadRequest::new(codes::INVALID_BODY, "preferred_engine is index or scan").into()),
    };
    let fallback = match wanted.fallback_engine.trim().to_ascii_lowercase().as_str() {
        "" => None,
        "scan" => Some(Fallback::Scan),
        "none" => Some(Fallback::None),
        _ => return Err(BadRequest::new(codes::INVALID_BODY, "fallback_engine is scan or none").into()),
    };
    let expected = request::etag(exchange.header(headers::IF_MATCH));
    let change = EnginesChange { preferred, fallback };
    let (engines, etag) = service.namespaces.change(&namespace, change, expected.as_deref())?;
    Ok(Next::Reply(config_reply(&namespace, engines, Some(etag))))
}

fn config_reply(namespace: &Namespace, engines: Engines, etag: Option<String>) -> Reply {
    let config = NamespaceConfig {
        namespace: namespace.as_str().to_owned(),
        query: engines.to_wire(),
    };
    let reply = Reply::json(200, &config);
    match etag {
        Some(etag) => reply.with(headers::ETAG, etag),
        None => reply,
    }
}
