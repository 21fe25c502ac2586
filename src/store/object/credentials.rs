//! Who we are to an S3-compatible store, and how that stays true while a server runs for months.
//!
//! Keys that were handed out for a time are renewed a little before they end, by whichever request comes first, while the
//! others go on with the old ones. If that fails, the old ones are used for as long as they are good, and it is tried
//! again, though not with every request.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use s3::creds::Credentials;
use time::OffsetDateTime;

use super::bucket::Failure;
use crate::clock::SharedClock;
use crate::logging::Logger;

/// Keys are renewed when they have so long left to live.
const RENEW_AHEAD: Duration = Duration::from_secs(5 * 60);
/// How long to wait after a renewal that failed.
const RENEW_PAUSE: Duration = Duration::from_secs(10);

/// How long the metadata service of the machine may take to show that it is there.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);
/// How long whoever hands out keys may take for an answer. A request of somebody waits for it.
const KEYS_TIMEOUT: Duration = Duration::from_secs(5);

/// What a request is signed with.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) access_key: String,
    pub(super) secret_key: String,
    pub(super) session_token: Option<String>,
}

/// Gives out the keys of the moment.
pub(super) struct KeySource {
    /// None: requests are not signed.
    current: RwLock<Current>,
    /// The one who renews holds this.
    renewal: Mutex<Renewal>,
    clock: SharedClock,
    logger: Logger,
}

#[derive(Clone)]
struct Current {
    keys: Option<Arc<Keys>>,
    /// In milliseconds of Unix time; `None` if they do not end.
    ends_ms: Option<i64>,
}

struct Renewal {
    credentials: Credentials,
    /// In milliseconds of Unix time; not before.
    next_try_ms: i64,
}

impl KeySource {
    pub(super) fn new(credentials: Credentials, clock: SharedClock, logger: Logger) -> Self {
        Self {
            current: RwLock::new(Current::of(&credentials)),
            renewal: Mutex::new(Renewal {
                next_try_ms: renewal_due_ms(&credentials),
                credentials,
            }),
            clock,
            logger,
        }
    }

    /// The keys to sign with now; `None` for a store that lets strangers in.
    pub(super) fn keys(&self) -> Result<Option<Arc<Keys>>, Failure> {
        let now_ms = self.clock.wall_ms();
        if let Some(mut renewal) = self.renewal.try_lock()
            && renewal.next_try_ms <= now_ms
        {
            self.renew(&mut renewal, now_ms)?;
        }
        let Current { keys, ends_ms } = self.current.read().clone();
        if ends_ms.is_some_and(|ends_ms| ends_ms <= now_ms) {
            return Err(Failure::NotDone(
                "the credentials have ended, and there are no new ones yet".to_owned(),
            ));
        }
        Ok(keys)
    }

    fn renew(&self, renewal: &mut Renewal, now_ms: i64) -> Result<(), Failure> {
        let ends_ms = ends_ms(&renewal.credentials).unwrap_or(i64::MAX);
        let mut candidate = renewal.credentials.clone();
        // The library renews what has ended, and only that.
        candidate.expiration = Some(OffsetDateTime::UNIX_EPOCH.into());
        match candidate.refresh() {
            Ok(()) => {
                renewal.next_try_ms = renewal_due_ms(&candidate).max(now_ms + millis(RENEW_PAUSE));
                *self.current.write() = Current::of(&candidate);
                renewal.credentials = candidate;
                log::debug!(logger: self.logger, target: "storage.object.credentials", "credentials renewed");
                Ok(())
            }
            Err(cause) => {
                renewal.next_try_ms = now_ms + millis(RENEW_PAUSE);
                log::warn!(
                    logger: self.logger, target: "storage.object.credentials",
                    seconds_left = (ends_ms - now_ms) / 1000, error:% = cause;
                    "credentials not renewed"
                );
                if now_ms < ends_ms {
                    return Ok(());
                }
                Err(Failure::NotDone(format!(
                    "the credentials have ended and cannot be renewed: {cause}"
                )))
            }
        }
    }
}

/// Looks for credentials where programs on AWS find theirs, the environment's own keys excepted: the token of a service
/// account, the credentials file, the container's agent, the machine's metadata service.
pub(super) fn find_aws_credentials(profile: Option<&str>) -> Result<Credentials, String> {
    awscreds::set_request_timeout(Some(KEYS_TIMEOUT));
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_set("AWS_WEB_IDENTITY_TOKEN_FILE") && is_set("AWS_ROLE_ARN") {
        return Credentials::from_sts_env("lockd").map_err(|cause| format!("AWS_WEB_IDENTITY_TOKEN_FILE: {cause}"));
    }
    match Credentials::from_profile(profile) {
        Ok(credentials) => return Ok(credentials),
        // A profile that was asked for must be there.
        Err(cause) if profile.is_some() => return Err(format!("AWS_PROFILE: {cause}")),
        Err(_) => {}
    }
    if is_set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") || is_set("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        return Credentials::from_container_credentials_provider()
            .map_err(|cause| format!("AWS_CONTAINER_CREDENTIALS_*: {cause}"));
    }
    if !is_set("AWS_EC2_METADATA_DISABLED") {
        // Elsewhere than on EC2 nobody answers, and that should not take long.
        let usual = awscreds::set_request_timeout(Some(METADATA_TIMEOUT));
        let found = Credentials::from_instance_metadata_v2(true);
        awscreds::set_request_timeout(usual);
        if let Ok(credentials) = found {
            return Ok(credentials);
        }
    }
    Err(
        "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role \
         is assigned"
            .to_owned(),
    )
}

impl Current {
    fn of(credentials: &Credentials) -> Self {
        Self {
            keys: keys_of(credentials),
            ends_ms: ends_ms(credentials),
        }
    }
}

fn keys_of(credentials: &Credentials) -> Option<Arc<Keys>> {
    let token = credentials.session_token.clone();
    Some(Arc::new(Keys {
        access_key: credentials.access_key.clone()?,
        secret_key: credentials.secret_key.clone()?,
        session_token: token.or_else(|| credentials.security_token.clone()),
    }))
}

fn ends_ms(credentials: &Credentials) -> Option<i64> {
    credentials
        .expiration
        .map(|end| end.0.unix_timestamp().saturating_mul(1000))
}

/// When to begin to renew; never, for keys that do not end.
fn renewal_due_ms(credentials: &Credentials) -> i64 {
    ends_ms(credentials).map_or(i64::MAX, |end| end.saturating_sub(millis(RENEW_AHEAD)))
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}
