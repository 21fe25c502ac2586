//! What a client command knows before it starts: how to reach the servers, and what an earlier `acquire` left in the
//! environment.
//!
//! A flag beats the environment. Flags about the connection can also be in the configuration file; what identifies a
//! lease cannot.

use std::time::Duration;

use clap::Args;
use lockd_client::wire::{DEFAULT_PORT, normalize_namespace, valid_correlation_id};

use crate::cli::CliError;
use crate::clock::SystemClock;
use crate::ids::IdMaker;
use crate::logging::{self, LogError, LogOptions, Logger, Output};
use crate::settings::{Flags, Layers, SettingsError, parse_bool, parse_duration};

/// Variables that `acquire` exports and later commands read.
pub(crate) mod variable {
    pub(crate) const LEASE: &str = "LOCKD_CLIENT_LEASE";
    pub(crate) const KEY: &str = "LOCKD_CLIENT_KEY";
    pub(crate) const OWNER: &str = "LOCKD_CLIENT_OWNER";
    pub(crate) const FENCING_TOKEN: &str = "LOCKD_CLIENT_FENCING_TOKEN";
    pub(crate) const TXN_ID: &str = "LOCKD_CLIENT_TXN_ID";
    pub(crate) const SERVER: &str = "LOCKD_CLIENT_SERVER";
    pub(crate) const VERSION: &str = "LOCKD_CLIENT_VERSION";
    pub(crate) const ETAG: &str = "LOCKD_CLIENT_ETAG";
    pub(crate) const EXPIRES_UNIX: &str = "LOCKD_CLIENT_EXPIRES_UNIX";
    pub(crate) const NAMESPACE: &str = "LOCKD_CLIENT_NAMESPACE";
    pub(crate) const RETRY_AFTER: &str = "LOCKD_CLIENT_RETRY_AFTER";
    pub(crate) const CORRELATION_ID: &str = "LOCKD_CLIENT_CORRELATION_ID";
}

/// Reads an environment variable.
pub(crate) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// How to reach the servers.
pub(crate) struct Connection {
    /// Addresses, separated by commas.
    pub(crate) server: String,
    pub(crate) timeout: Option<Duration>,
    pub(crate) close_timeout: Option<Duration>,
    pub(crate) keepalive_timeout: Option<Duration>,
    pub(crate) drain_aware: bool,
    pub(crate) logger: Logger,
}

impl Connection {
    /// Reads flags, environment and configuration file.
    pub(crate) fn load(flags: &Flags, variables: Variables<'_>) -> Result<Self, SettingsError> {
        let layers = Layers::open(flags, variables)?;
        let option = |name: &str| {
            let variable = format!("LOCKD_CLIENT_{}", name.to_ascii_uppercase().replace('-', "_"));
            layers.find(name, &variable, &format!("client-{name}"))
        };
        const NO_TLS: &str = "this version speaks plain text only, it has no TLS";
        if let Some(given) = option("disable-mtls")
            && !given.read(parse_bool)?
        {
            return Err(given.refused(NO_TLS));
        }
        if let Some(given) = option("bundle").filter(|given| !given.text.trim().is_empty()) {
            return Err(given.refused(NO_TLS));
        }
        let duration = |name| {
            let given = option(name).map(|given| given.read(positive_duration));
            given.transpose()
        };
        // The one variable without a hyphenated name: the word for it in the environment is shorter.
        let drain_aware = layers.find(
            "drain-aware-shutdown",
            "LOCKD_CLIENT_DRAIN_AWARE",
            "client-drain-aware-shutdown",
        );
        let server = option("server")
            .map(|given| given.text)
            .filter(|text| !text.trim().is_empty());
        Ok(Self {
            server: server.unwrap_or_else(|| format!("http://127.0.0.1:{DEFAULT_PORT}")),
            timeout: duration("timeout")?,
            close_timeout: duration("close-timeout")?,
            keepalive_timeout: duration("keepalive-timeout")?,
            drain_aware: drain_aware
                .map(|given| given.read(parse_bool))
                .transpose()?
                .unwrap_or(true),
            logger: logger(&layers, variables)?,
        })
    }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    match duration.is_zero() {
        true => Err("expected more than zero".to_owned()),
        false => Ok(duration),
    }
}

/// A client logs only when it is told to: its standard error is for people and its standard output for programs.
fn logger(layers: &Layers<'_>, variables: Variables<'_>) -> Result<Logger, SettingsError> {
    let level = layers.find("log-level", "LOCKD_CLIENT_LOG_LEVEL", "client-log-level");
    let level = level.map(|given| {
        given.read(|text| logging::parse_level(text).ok_or_else(|| LogError::Level(text.to_owned()).to_string()))
    });
    let level = level.transpose()?;
    let verbose = layers.flag("verbose").map(|given| given.read(parse_bool)).transpose()?;
    let level = match verbose {
        Some(true) => log::LevelFilter::Trace,
        _ => level.unwrap_or(log::LevelFilter::Off),
    };
    if level == log::LevelFilter::Off {
        return Ok(logging::off());
    }
    let output = layers.find("log-output", "LOCKD_CLIENT_LOG_OUTPUT", "client-log-output");
    let options = LogOptions {
        level,
        output: output.map_or(Output::Stderr, |given| Output::parse(&given.text)),
        file_mode: 0o644,
        ..LogOptions::from_variables(variables)?
    };
    Ok(options.build()?)
}

/// Where a key is.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct KeyFlags {
    /// Key [env: LOCKD_CLIENT_KEY]
    #[arg(long, short)]
    key: Option<String>,
    /// Namespace [env: LOCKD_CLIENT_NAMESPACE; default: default]
    #[arg(long, short)]
    namespace: Option<String>,
}

/// Which lease.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct LeaseFlags {
    #[command(flatten)]
    at: KeyFlags,
    /// Lease id [env: LOCKD_CLIENT_LEASE]
    #[arg(long)]
    lease: Option<String>,
    /// Fencing token [env: LOCKD_CLIENT_FENCING_TOKEN]
    #[arg(long)]
    fencing_token: Option<String>,
}

/// Which transaction.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TxnFlags {
    /// Transaction id [env: LOCKD_CLIENT_TXN_ID]
    #[arg(long)]
    txn_id: Option<String>,
}

/// A lease as a command names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedLease {
    pub(crate) namespace: Option<String>,
    pub(crate) key: String,
    pub(crate) lease_id: String,
    pub(crate) fencing_token: i64,
}

impl KeyFlags {
    /// The key, which must be known.
    pub(crate) fn key(&self, variables: Variables<'_>) -> Result<String, CliError> {
        let key = given(self.key.as_deref(), variable::KEY, variables);
        key.ok_or_else(|| CliError::new("key required (specify --key/-k or export LOCKD_CLIENT_KEY)"))
    }

    /// The key of the flag alone, for acquire, which makes up a key rather than take that of another lease.
    pub(crate) fn key_flag(&self) -> Option<&str> {
        self.key.as_deref().filter(|key| !key.trim().is_empty())
    }

    /// The namespace, if there is one.
    pub(crate) fn namespace(&self, variables: Variables<'_>) -> Result<Option<String>, CliError> {
        namespace(self.namespace.as_deref(), variables)
    }
}

impl LeaseFlags {
    /// The key alone, for reads that need no lease.
    pub(crate) fn at(&self) -> &KeyFlags {
        &self.at
    }

    /// The lease, of which everything must be known.
    pub(crate) fn named(&self, variables: Variables<'_>) -> Result<NamedLease, CliError> {
        let key = self.at.key(variables)?;
        let lease_id = given(self.lease.as_deref(), variable::LEASE, variables);
        let lease_id = lease_id.ok_or_else(|| CliError::new("--lease is required (or set LOCKD_CLIENT_LEASE)"))?;
        let token = given(self.fencing_token.as_deref(), variable::FENCING_TOKEN, variables)
            .ok_or_else(|| CliError::new("--fencing-token is required (or set LOCKD_CLIENT_FENCING_TOKEN)"))?;
        let fencing_token = token.parse().ok().filter(|token| 0 < *token);
        Ok(NamedLease {
            namespace: self.at.namespace(variables)?,
            key,
            lease_id,
            fencing_token: fencing_token
                .ok_or_else(|| CliError::new(format!("fencing token {token:?}: expected a positive integer")))?,
        })
    }
}

impl TxnFlags {
    /// The transaction, if there is one.
    pub(crate) fn txn(&self, variables: Variables<'_>) -> Option<String> {
        given(self.txn_id.as_deref(), variable::TXN_ID, variables)
    }

    /// The transaction, which must be known.
    pub(crate) fn required(&self, variables: Variables<'_>) -> Result<String, CliError> {
        let txn = self.txn(variables);
        txn.ok_or_else(|| CliError::new("--txn-id is required (or set LOCKD_CLIENT_TXN_ID)"))
    }
}

/// The namespace of a flag or of the environment, in its normal form.
pub(crate) fn namespace(flag: Option<&str>, variables: Variables<'_>) -> Result<Option<String>, CliError> {
    let Some(name) = given(flag, variable::NAMESPACE, variables) else {
        return Ok(None);
    };
    let normal = normalize_namespace(&name);
    normal.map(Some).ok_or_else(|| {
        CliError::new(format!(
            "namespace {name:?}: expected 1 to 128 characters of a-z 0-9 . _ -"
        ))
    })
}

/// The correlation id that an earlier command left, or a new one.
pub(crate) fn correlation_id(variables: Variables<'_>) -> String {
    let given = given(None, variable::CORRELATION_ID, variables);
    let given = given.filter(|id| valid_correlation_id(id).is_some());
    given.unwrap_or_else(|| IdMaker::new(SystemClock::shared()).uuid())
}

/// What a flag says, or else the environment, trimmed; nothing when both are blank.
pub(crate) fn given(flag: Option<&str>, variable: &str, variables: Variables<'_>) -> Option<String> {
    let filled = |text: &String| !text.is_empty();
    let flag = flag.map(|text| text.trim().to_owned()).filter(filled);
    flag.or_else(|| variables(variable).map(|text| text.trim().to_owned()).filter(filled))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn lookup(pairs: Pairs<'_>) -> impl Fn(&str) -> Option<String> {
        let map: BTreeMap<_, _> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        move |name| map.get(name).cloned()
    }

    fn connection(flags: Pairs<'_>, variables: Pairs<'_>) -> Result<Connection, SettingsError> {
        let flags = flags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Connection::load(&flags, &lookup(variables))
    }

    fn lease(key: &str, lease: &str, token: &str) -> LeaseFlags {
        let flag = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        LeaseFlags {
            at: KeyFlags {
                key: flag(key),
                namespace: None,
            },
            lease: flag(lease),
            fencing_token: flag(token),
        }
    }

    const EXPORTED: Pairs<'static> = &[
        (variable::KEY, "orders"),
        (variable::LEASE, "l1"),
        (variable::FENCING_TOKEN, "7"),
        (variable::NAMESPACE, "Shop"),
    ];

    #[test]
    fn flags_beat_what_acquire_exported() {
        let variables = lookup(EXPORTED);
        let from_environment = lease("", "", "").named(&variables).unwrap();
        let expected = NamedLease {
            namespace: Some("shop".to_owned()),
            key: "orders".to_owned(),
            lease_id: "l1".to_owned(),
            fencing_token: 7,
        };
        assert_eq!(from_environment, expected);
        let from_flags = lease("other", "l2", "8").named(&variables).unwrap();
        assert_eq!((from_flags.key.as_str(), from_flags.lease_id.as_str()), ("other", "l2"));
        assert_eq!(from_flags.fencing_token, 8);
    }

    #[test]
    fn what_is_missing_is_asked_for_by_flag_and_variable() {
        let nothing = lookup(&[]);
        let asked = |flags: LeaseFlags| flags.named(&nothing).unwrap_err().to_string();
        assert_eq!(
            asked(lease("", "", "")),
            "key required (specify --key/-k or export LOCKD_CLIENT_KEY)"
        );
        assert_eq!(
            asked(lease("k", "", "")),
            "--lease is required (or set LOCKD_CLIENT_LEASE)"
        );
        assert_eq!(
            asked(lease("k", "l", "")),
            "--fencing-token is required (or set LOCKD_CLIENT_FENCING_TOKEN)"
        );
        let txn = TxnFlags::default().required(&nothing).unwrap_err().to_string();
        assert_eq!(txn, "--txn-id is required (or set LOCKD_CLIENT_TXN_ID)");
    }

    #[test]
    fn fencing_tokens_are_positive_integers() {
        for bad in ["0", "-1", "x", "1.5"] {
            let error = lease("k", "l", bad).named(&lookup(&[])).unwrap_err().to_string();
            assert!(error.contains("expected a positive integer"), "{error}");
        }
    }

    #[test]
    fn the_connection_follows_flag_environment_file_default() {
        assert_eq!(connection(&[], &[]).unwrap().server, "http://127.0.0.1:9341");
        assert!(connection(&[], &[]).unwrap().drain_aware);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(
            &path,
            "client-server: http://file\nclient-timeout: 3s\nclient-close-timeout: 4s\n",
        )
        .unwrap();
        let dir = dir.path().to_str().unwrap();
        let variables = [
            ("LOCKD_CONFIG_DIR", dir),
            ("LOCKD_CLIENT_TIMEOUT", "2s"),
            ("LOCKD_CLIENT_CLOSE_TIMEOUT", "5s"),
            ("LOCKD_CLIENT_DRAIN_AWARE", "false"),
        ];
        let found = connection(&[("close-timeout", "6s")], &variables).unwrap();
        assert_eq!(found.server, "http://file");
        assert_eq!(found.timeout, Some(Duration::from_secs(2)));
        assert_eq!(found.close_timeout, Some(Duration::from_secs(6)));
        assert_eq!(found.keepalive_timeout, None);
        assert!(!found.drain_aware);
    }

    #[test]
    fn tls_is_refused_rather_than_forgotten() {
        let refused = |flags: Pairs<'_>, variables: Pairs<'_>| connection(flags, variables).err().unwrap().to_string();
        assert!(refused(&[("bundle", "client.pem")], &[]).contains("no TLS"));
        assert!(refused(&[], &[("LOCKD_CLIENT_BUNDLE", "client.pem")]).starts_with("LOCKD_CLIENT_BUNDLE"));
        assert!(refused(&[("disable-mtls", "false")], &[]).contains("no TLS"));
        assert!(connection(&[("disable-mtls", "true"), ("bundle", "")], &[]).is_ok());
        assert!(refused(&[("timeout", "0")], &[]).contains("more than zero"));
    }

    #[test]
    fn a_client_is_silent_until_told_otherwise() {
        let level = |flags: Pairs<'_>, variables: Pairs<'_>| {
            let logger = connection(flags, variables).unwrap().logger;
            let levels = [
                log::Level::Trace,
                log::Level::Debug,
                log::Level::Info,
                log::Level::Warn,
                log::Level::Error,
            ];
            let enabled = |level: &log::Level| logger.enabled(&log::Metadata::builder().level(*level).build());
            levels.into_iter().find(enabled)
        };
        assert_eq!(
            level(&[], &[("LOCKD_LOG_LEVEL", "debug")]),
            None,
            "that is the daemon's"
        );
        assert_eq!(
            level(&[], &[("LOCKD_CLIENT_LOG_LEVEL", "warn")]),
            Some(log::Level::Warn)
        );
        assert_eq!(
            level(&[("log-level", "info")], &[("LOCKD_CLIENT_LOG_LEVEL", "warn")]),
            Some(log::Level::Info)
        );
        assert_eq!(
            level(&[("log-level", "none")], &[("LOCKD_CLIENT_LOG_LEVEL", "warn")]),
            None
        );
        assert_eq!(
            level(&[("verbose", "true"), ("log-level", "info")], &[]),
            Some(log::Level::Trace)
        );
    }

    #[test]
    fn a_correlation_id_is_inherited_or_new() {
        assert_eq!(correlation_id(&lookup(&[(variable::CORRELATION_ID, " abc ")])), "abc");
        let (first, second) = (correlation_id(&lookup(&[])), correlation_id(&lookup(&[])));
        assert_ne!(first, second);
        assert_eq!(first.len(), 36);
        assert_eq!(
            correlation_id(&lookup(&[(variable::CORRELATION_ID, "\u{1}")])).len(),
            36
        );
    }
}
