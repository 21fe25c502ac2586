//! Acquire, keepalive, release.

use std::time::Duration;

use lockd_client::wire::{
    AcquireRequest, AcquireResponse, KeepaliveRequest, KeepaliveResponse, ReleaseRequest, ReleaseResponse, codes,
    headers,
};

use super::exchange::Exchange;
use super::reply::{BadRequest, Failure, Reply};
use super::request::{self, Query};
use super::responder::Responder;
use super::{Grant, Next, Service};
use crate::clock::Moment;
use crate::dispatch::{Outcome, Parked, Waiter};
use crate::error::Error;
use crate::ids::Xid;
use crate::keys::{Namespace, echoed_key};
use crate::lease::rules::{Credentials, Reason};
use crate::lease::table::KeyName;
use crate::lease::{Released, Wanted};
use crate::net::peer::Peer;
use crate::record::KeyRecord;

/// An acquire that waits.
pub struct ParkedAcquire {
    pub(super) responder: Responder,
    wanted: Wanted,
    echoed_key: String,
}

impl Parked for ParkedAcquire {
    fn peer(&self) -> Option<Peer> {
        self.responder.peer()
    }
}

/// An acquire that may have to wait.
pub struct WaitingAcquire {
    wanted: Wanted,
    echoed_key: String,
    deadline: Option<Moment>,
}

/// `POST /v1/acquire`
pub(super) fn acquire(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let body = exchange.read_whole_body(&service.edge, service.limits.json_bytes_max)?;
    let body: AcquireRequest = request::json(&body)?;
    let query = Query::parse(exchange.query());
    let namespace = request::namespace(
        or(&body.namespace, query.get("namespace")),
        &service.limits.default_namespace,
    )?;
    if body.owner.is_empty() {
        return Err(BadRequest::new(codes::MISSING_OWNER, "owner is required").into());
    }
    let asked_key = or(&body.key, query.get("key"));
    let echoed_key = if asked_key.is_empty() {
        service.ids.uuid()
    } else {
        echoed_key(asked_key, &namespace).to_owned()
    };
    // One leading slash and the namespace are gone by now; another slash is an empty segment.
    if echoed_key.starts_with('/') {
        return Err(BadRequest::new(codes::INVALID_KEY, "key has an empty segment").into());
    }
    let key = request::key(&echoed_key)?;
    if service.edge.is_draining() {
        log::info!(logger: service.edge.log, target: "api.http.router.acquire", namespace = namespace.as_str(),
            key = key.as_str(), cid = exchange.correlation_id(); "lease.acquire.reject_shutdown");
        return Err(Error::Draining {
            retry_after_seconds: service.edge.drain_seconds_left(),
        }
        .into());
    }
    let asked_txn = or(&body.txn_id, exchange.header(headers::TXN_ID).unwrap_or_default());
    let txn_id = match asked_txn {
        "" => None,
        text => Some(Xid::parse(text).ok_or_else(|| BadRequest::new(codes::INVALID_TXN, "txn_id must be an xid"))?),
    };
    let wanted = Wanted {
        name: KeyName { namespace, key },
        owner: body.owner,
        ttl_seconds: body.ttl_seconds,
        create_only: body.if_not_exists,
        txn_id,
    };
    if exchange.has_waited() && service.edge.is_gone(exchange.peer()) {
        // It was behind a request that waited, and its client has left meanwhile.
        return Err(Failure::Busy("the client has closed its side of the connection"));
    }
    // Only 0 waits without limit; every negative number means not to wait.
    let may_wait = 0 <= body.block_seconds && !wanted.create_only && !service.limits.acquire_block.is_zero();
    let patience = u64::try_from(body.block_seconds)
        .ok()
        .filter(|seconds| *seconds != 0)
        .map(Duration::from_secs);
    let deadline = patience.map(|patience| exchange.arrived().after(patience));
    if may_wait && service.dispatcher.has_waiters(&wanted.name.record_key()) {
        // Others were here first.
        return Ok(Next::Park(WaitingAcquire {
            wanted,
            echoed_key,
            deadline,
        }));
    }
    match service.leases.acquire(&wanted) {
        Ok(granted) => {
            let reply = grant_reply(&wanted, &echoed_key, &granted, exchange.correlation_id());
            Ok(Next::Grant(Box::new(Grant { reply, wanted, granted })))
        }
        Err(error) if may_wait && matches!(error.reason(), Some(Reason::Held { .. })) => {
            Ok(Next::Park(WaitingAcquire {
                wanted,
                echoed_key,
                deadline,
            }))
        }
        Err(error) => Err(error.into()),
    }
}

impl Service {
    /// Parks an acquire with the dispatcher.
    pub(super) fn park(&self, mut responder: Responder, waiting: WaitingAcquire) {
        responder.park(&self.edge);
        let WaitingAcquire {
            wanted,
            echoed_key,
            deadline,
        } = waiting;
        let key = wanted.name.record_key();
        self.dispatcher.park(
            key,
            deadline,
            ParkedAcquire {
                responder,
                wanted,
                echoed_key,
            },
        );
    }

    /// Tries for a parked acquire, and reports to the dispatcher.
    pub(super) fn try_parked(&self, waiter: Waiter<ParkedAcquire>) {
        let mut report = Report {
            service: self,
            outcome: Some(Outcome::Answered { held_until: None }),
            key: &waiter.key.clone(),
        };
        if self.edge.is_gone(waiter.parked.peer()) {
            waiter.parked.responder.abandon();
            return;
        }
        match self.leases.acquire(&waiter.parked.wanted) {
            Err(Error::Refused(refusal)) if matches!(refusal.reason, Reason::Held { .. }) => {
                let Reason::Held { until_unix } = refusal.reason else {
                    return;
                };
                let until = self.moment_of(until_unix);
                report.outcome = Some(Outcome::StillHeld { waiter, until });
            }
            outcome => {
                let granted_until = outcome.as_ref().ok().and_then(|granted| granted.lease.as_ref());
                let held_until = granted_until.map(|lease| self.moment_of(lease.expires_at_unix));
                if self.answer_parked(waiter.parked, outcome) {
                    report.outcome = Some(Outcome::Answered { held_until });
                }
            }
        }
    }

    /// Tries a last time for an acquire whose patience is over, and answers in any case.
    pub(super) fn time_up(&self, waiter: Waiter<ParkedAcquire>) {
        if self.edge.is_gone(waiter.parked.peer()) {
            waiter.parked.responder.abandon();
            return;
        }
        let outcome = self.leases.acquire(&waiter.parked.wanted);
        self.answer_parked(waiter.parked, outcome);
    }

    /// Tells a parked acquire that the server goes down.
    pub(super) fn refuse_parked(&self, waiter: Waiter<ParkedAcquire>) {
        let refusal = Error::Draining {
            retry_after_seconds: self.edge.drain_seconds_left(),
        };
        self.answer_parked(waiter.parked, Err(refusal));
    }

    /// Delivers a grant, and takes it back when it cannot be delivered. True: it was delivered.
    pub(super) fn deliver(&self, responder: Responder, reply: Reply, wanted: &Wanted, granted: &KeyRecord) -> bool {
        let Err(cause) = responder.answer(&self.edge, reply) else {
            return true;
        };
        let (error, key) = (cause.to_string(), wanted.name.key.as_str());
        log::debug!(logger: self.edge.log, target: "api.http.router.acquire", error, key; "lease.acquire.undelivered");
        if let Err(cause) = self.leases.give_back(&wanted.name, granted) {
            let error = cause.to_string();
            log::warn!(logger: self.edge.log, target: "api.http.router.acquire", error, key; "lease.give_back.failed");
        }
        false
    }

    fn answer_parked(&self, parked: ParkedAcquire, outcome: Result<KeyRecord, Error>) -> bool {
        let ParkedAcquire {
            responder,
            wanted,
            echoed_key,
        } = parked;
        match outcome {
            Ok(granted) => {
                let reply = grant_reply(&wanted, &echoed_key, &granted, responder.correlation_id());
                self.deliver(responder, reply, &wanted, &granted)
            }
            Err(error) => {
                let reply = self.failure_reply(error.into(), "acquire", responder.correlation_id());
                // A client that does not hear of a refusal has lost nothing.
                let _ = responder.answer(&self.edge, reply);
                false
            }
        }
    }

    /// The moment at which the wall clock will show this second, as far as one can tell now.
    fn moment_of(&self, unix: i64) -> Moment {
        let left_ms = unix
            .saturating_mul(1000)
            .saturating_sub(self.edge.clock.wall_ms())
            .max(0);
        self.edge.clock.now().after(Duration::from_millis(
            u64::try_from(left_ms).unwrap_or(0).saturating_add(1),
        ))
    }
}

/// Reports to the dispatcher what became of a waiter, also when a panic cuts the way short: otherwise the queue of the
/// key would wait for the report for ever.
struct Report<'a> {
    service: &'a Service,
    key: &'a crate::store::RecordKey,
    outcome: Option<Outcome<ParkedAcquire>>,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            self.service.dispatcher.tried(self.key.clone(), outcome);
        }
    }
}

fn grant_reply(wanted: &Wanted, echoed_key: &str, granted: &KeyRecord, correlation_id: &str) -> Reply {
    let lease = granted.lease.as_ref();
    let answer = AcquireResponse {
        namespace: wanted.name.namespace.as_str().to_owned(),
        lease_id: lease.map(|lease| lease.id.as_str().to_owned()).unwrap_or_default(),
        txn_id: lease.map(|lease| lease.txn_id.as_str().to_owned()).unwrap_or_default(),
        key: echoed_key.to_owned(),
        owner: wanted.owner.clone(),
        expires_at_unix: lease.map(|lease| lease.expires_at_unix).unwrap_or_default(),
        version: granted.version,
        state_etag: granted
            .committed_etag()
            .map(|etag| etag.to_string())
            .unwrap_or_default(),
        fencing_token: granted.fencing_token,
        retry_after_seconds: 0,
        correlation_id: correlation_id.to_owned(),
    };
    Reply::json(200, &answer)
        .with(headers::FENCING_TOKEN, granted.fencing_token)
        .with(headers::KEY_VERSION, granted.version)
}

/// `POST /v1/keepalive`
pub(super) fn keepalive(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let fencing_token = request::fencing_token(exchange.header(headers::FENCING_TOKEN))?;
    let body = exchange.read_whole_body(&service.edge, service.limits.json_bytes_max)?;
    let body: KeepaliveRequest = request::json(&body)?;
    let query = Query::parse(exchange.query());
    let name = body_name(&body.namespace, &body.key, &query, &service.limits.default_namespace)?;
    let lease_id = required_lease(&body.lease_id)?;
    let txn_id = or(exchange.header(headers::TXN_ID).unwrap_or_default(), &body.txn_id);
    let by = Credentials {
        lease_id,
        fencing_token,
        txn_id: (!txn_id.is_empty()).then(|| txn_id.to_owned()),
    };
    let record = service.leases.keepalive(&name, &by, body.ttl_seconds)?;
    let answer = KeepaliveResponse {
        expires_at_unix: record
            .lease
            .as_ref()
            .map(|lease| lease.expires_at_unix)
            .unwrap_or_default(),
        version: Some(record.effective_version()),
        state_etag: record
            .effective_state()
            .map(|value| value.etag.to_string())
            .unwrap_or_default(),
    };
    Ok(Next::Reply(
        Reply::json(200, &answer).with(headers::FENCING_TOKEN, record.fencing_token),
    ))
}

/// `POST /v1/release`
pub(super) fn release(service: &Service, exchange: &mut Exchange) -> Result<Next, Failure> {
    let fencing_token = request::fencing_token(exchange.header(headers::FENCING_TOKEN))?;
    let body = exchange.read_whole_body(&service.edge, service.limits.json_bytes_max)?;
    let body: ReleaseRequest = request::json(&body)?;
    let query = Query::parse(exchange.query());
    let name = body_name(&body.namespace, &body.key, &query, &service.limits.default_namespace)?;
    let lease_id = required_lease(&body.lease_id)?;
    let txn_id = body.txn_id.trim();
    if txn_id.is_empty() {
        return Err(BadRequest::new(codes::MISSING_TXN, "txn_id is required").into());
    }
    let by = Credentials {
        lease_id,
        fencing_token,
        txn_id: Some(txn_id.to_owned()),
    };
    if service.leases.release(&name, &by, body.rollback)? == Released::TooLate {
        log::info!(logger: service.edge.log, target: "api.http.router.release", namespace = name.namespace.as_str(),
            key = name.key.as_str(), lease_id = by.lease_id.as_str(), cid = exchange.correlation_id();
            "lease.release.too_late");
    }
    Ok(Next::Reply(Reply::json(200, &ReleaseResponse { released: true })))
}

fn body_name(namespace: &str, key: &str, query: &Query<'_>, default: &Namespace) -> Result<KeyName, BadRequest> {
    let namespace = request::namespace(or(namespace, query.get("namespace")), default)?;
    let key = or(key, query.get("key"));
    if key.is_empty() {
        return Err(BadRequest::new(codes::MISSING_KEY, "key is required"));
    }
    Ok(KeyName {
        namespace,
        key: request::key(key)?,
    })
}

fn required_lease(text: &str) -> Result<String, BadRequest> {
    match text.trim() {
        "" => Err(BadRequest::new(codes::MISSING_LEASE, "lease_id is required")),
        lease_id => Ok(lease_id.to_owned()),
    }
}

/// The first text that is not blank, trimmed.
fn or<'a>(first: &'a str, second: &'a str) -> &'a str {
    match first.trim() {
        "" => second.trim(),
        first => first,
    }
}
