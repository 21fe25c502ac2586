//! One checked value with everything that the daemon can be told.
//!
//! Every option comes from a flag, else from a `LOCKD_*` variable, else from a flat YAML file, else it has a default.
//! What is read here is complete and consistent: whoever holds [`Settings`] made by [`load`] need not check again, and
//! whoever makes one by hand (a test, an embedding program) calls [`Settings::check`].
//!
//! An option that this version cannot honour is an error and not a shrug: a daemon that starts without the encryption or
//! the metrics that somebody asked for is worse than one that does not start.

use std::path::PathBuf;
use std::time::Duration;

use lockd_client::wire::{DEFAULT_NAMESPACE, normalize_namespace};

use crate::logging::{self, LogError, LogOptions, Output};
use crate::store::object::{Location, Lookup};
use crate::store::retry::RetryPolicy;

mod error;
mod layers;
mod listen;
mod notice;
pub mod options;
mod queue;
mod values;

pub use error::SettingsError;
pub use layers::{Flags, Given, Layers, Source, config_dir, expand_home};
pub use listen::{Family, Listen};
pub use notice::Notice;
pub use queue::{LIST_PAGE_SIZE_MAX, QueueSettings};
pub use values::{DURATION_MAX, parse_bool, parse_duration, parse_size};

use options::{ForeignOption, REFUSED_OPTIONS, SERVER_OPTIONS, SKIPPED_OPTIONS};

/// Most request threads that may be asked for.
pub const WORKERS_MAX: usize = 4096;

/// The directory of the default store, in the configuration directory.
const DEFAULT_STORE: &str = "data";

/// Everything that the daemon can be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where to listen.
    pub listen: Listen,
    /// Plain text is wanted on an address that other machines can reach.
    pub allow_plaintext: bool,
    /// Where metrics are told, on a listener of their own; `None`: nowhere.
    pub metrics_listen: Option<Listen>,
    /// Where everything is kept.
    pub store: StoreLocation,
    /// How often a request to an object store is tried.
    pub storage_retry: RetryPolicy,
    /// Namespace of requests that name none, in its normal form.
    pub default_namespace: String,
    /// Life of a lease when the request gives none.
    pub default_ttl: Duration,
    /// Longest life of a lease; longer requests are cut to it.
    pub max_ttl: Duration,
    /// Longest time that an acquire may wait for a held key.
    pub acquire_block_max: Duration,
    /// Largest JSON body, in bytes.
    pub json_bytes_max: u64,
    /// Memory that one request may use for a body before the rest goes to a file, in bytes.
    pub payload_spool_bytes: u64,
    /// Threads that handle requests, 1 to [`WORKERS_MAX`].
    pub workers: usize,
    /// How often leftovers are cleared away.
    pub sweeper_interval: Duration,
    /// Keys that have not changed for so long and are not held are deleted. Zero: never.
    pub retention: Duration,
    /// How often such keys are looked for. Zero: see [`Settings::janitor_interval`].
    pub janitor_interval: Duration,
    /// How long a stop waits for leases to end. Zero: not at all.
    pub drain_grace: Duration,
    /// How long a stop may take in all, the waiting included.
    pub shutdown_timeout: Duration,
    /// The mode that was asked for. All modes mean the same: every server of a store serves.
    pub ha: HaMode,
    /// Queues.
    pub queue: QueueSettings,
}

/// What the daemon does when it is told nothing, but for the store: these settings keep everything in memory, so that a
/// program which embeds a server writes nowhere unless it says so.
impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Listen::default(),
            allow_plaintext: false,
            metrics_listen: None,
            store: StoreLocation::Memory,
            storage_retry: RetryPolicy::default(),
            default_namespace: DEFAULT_NAMESPACE.to_owned(),
            default_ttl: Duration::from_secs(30),
            max_ttl: Duration::from_secs(30 * 60),
            acquire_block_max: Duration::from_secs(60),
            json_bytes_max: 100 * 1024 * 1024,
            payload_spool_bytes: 4 * 1024 * 1024,
            workers: 32,
            sweeper_interval: Duration::from_secs(5 * 60),
            retention: Duration::ZERO,
            janitor_interval: Duration::ZERO,
            drain_grace: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(10),
            ha: HaMode::Concurrent,
            queue: QueueSettings::default(),
        }
    }
}

/// Where everything is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreLocation {
    /// `mem://`: in the memory of the process. Nothing survives a restart.
    Memory,
    /// `disk:///absolute/path`: in a directory, on a local disk or NFS. Any number of servers may serve it together. Only the
    /// last component is made if it is missing: a path with a typing error must not become a second, empty store.
    Disk(PathBuf),
    /// What [`load`] takes when nobody says anything: `data` in the configuration directory, likewise on a disk. It is made
    /// with all directories above it, for this user alone.
    DefaultDisk(PathBuf),
    /// `s3://`, `aws://` or `azure://`: in a bucket. Any number of servers may serve it together.
    Object(Box<Location>),
}

/// What a store URL looks like.
const STORE_FORMS: &str = "mem://, disk:///absolute/path, s3://host[:port]/bucket[/prefix], \
                           aws://bucket[/prefix] or azure://account/container[/prefix]";

impl StoreLocation {
    /// Reads a store URL. Secrets that belong to it come from the environment of the process.
    pub fn parse(url: &str) -> Result<Self, String> {
        Self::parse_with(url, &|name| std::env::var(name).ok())
    }

    /// Reads a store URL. Secrets that belong to it, and options that may stand in for its parameters, come from
    /// `variables`.
    pub fn parse_with(url: &str, variables: Lookup<'_>) -> Result<Self, String> {
        if let Some(location) = Location::parse(url, variables) {
            return Ok(StoreLocation::Object(Box::new(location?)));
        }
        let (scheme, rest) = url.trim().split_once("://").unwrap_or((url.trim(), ""));
        match scheme {
            "mem" | "memory" if rest.is_empty() || rest == "/" => Ok(StoreLocation::Memory),
            "mem" | "memory" => Err("mem:// takes no path".to_owned()),
            "disk" if rest.starts_with('/') => Ok(StoreLocation::Disk(PathBuf::from(rest))),
            "disk" => Err("disk:// takes an absolute path: disk:///var/lib/lockd".to_owned()),
            _ => Err(format!("expected {STORE_FORMS}")),
        }
    }
}

/// How several servers of one store share the work elsewhere. Here all of them always serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HaMode {
    /// Every server serves.
    Concurrent,
    /// One server serves, the others stand by.
    Failover,
    /// There is one server.
    Single,
    /// One until another one comes.
    Auto,
}

impl HaMode {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            HaMode::Concurrent => "concurrent",
            HaMode::Failover => "failover",
            HaMode::Single => "single",
            HaMode::Auto => "auto",
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let modes = [HaMode::Concurrent, HaMode::Failover, HaMode::Single, HaMode::Auto];
        let found = modes
            .into_iter()
            .find(|mode| mode.word().eq_ignore_ascii_case(text.trim()));
        found.ok_or_else(|| "expected concurrent, failover, single or auto".to_owned())
    }
}

impl Settings {
    /// How often keys are looked for that are older than [`retention`](Settings::retention): as configured, else after
    /// half of it, but neither more than once a minute nor less than once an hour.
    pub fn janitor_interval(&self) -> Duration {
        if self.janitor_interval.is_zero() {
            (self.retention / 2).clamp(Duration::from_secs(60), Duration::from_secs(60 * 60))
        } else {
            self.janitor_interval
        }
    }

    /// Checks what single values cannot show.
    pub fn check(&self) -> Result<(), SettingsError> {
        let conflict = |message: String| Err(SettingsError::Conflict(message));
        if self.max_ttl < self.default_ttl {
            return conflict(format!(
                "max-ttl ({}) is shorter than default-ttl ({})",
                humantime::format_duration(self.max_ttl),
                humantime::format_duration(self.default_ttl)
            ));
        }
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            return conflict(format!("workers ({}): expected 1 to {WORKERS_MAX}", self.workers));
        }
        self.queue.check()?;
        if !self.listen.is_local() && !self.allow_plaintext {
            return conflict(format!(
                "{} can be reached by other machines, and this version serves plain text only: whoever can connect \
                 may do anything. Listen on 127.0.0.1 or a unix socket, or pass --allow-plaintext",
                self.listen
            ));
        }
        match &self.metrics_listen {
            Some(Listen::Unix(_)) => return conflict("metrics-listen takes a TCP address".to_owned()),
            Some(listen) if !listen.is_local() && !self.allow_plaintext => {
                return conflict(format!(
                    "metrics-listen: {listen} can be reached by other machines, which could read the names of queues \
                     and how busy they are. Listen on 127.0.0.1, or pass --allow-plaintext"
                ));
            }
            Some(_) | None => {}
        }
        Ok(())
    }
}

/// What [`load`] found.
#[derive(Debug)]
pub struct Loaded {
    /// The settings, checked.
    pub settings: Settings,
    /// What to log and where.
    pub log: LogOptions,
    /// What should be said about it once there is a logger.
    pub notices: Vec<Notice>,
}

/// Reads all sources. `flags` are those of the command line by name, `variables` is the environment.
pub fn load(flags: &Flags, variables: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, SettingsError> {
    let layers = Layers::open(flags, variables)?;
    let mut notices: Vec<_> = layers
        .file_path()
        .map(|path| Notice::ConfigFile(path.to_owned()))
        .into_iter()
        .collect();
    refuse_what_is_missing(&layers)?;
    notices.extend(
        SKIPPED_OPTIONS
            .iter()
            .filter_map(|option| layers.option(option.name))
            .map(|given| Notice::Skipped(given.source)),
    );
    notices.extend(
        layers
            .file_keys()
            .filter(|key| !is_known(key))
            .map(|key| Notice::UnknownKey(key.to_owned())),
    );

    let settings = read_settings(&layers, variables)?;
    settings.check()?;
    if let StoreLocation::DefaultDisk(root) = &settings.store {
        notices.push(Notice::DefaultStore {
            root: root.clone(),
            address: settings.listen.to_string(),
        });
    }
    if settings.ha != HaMode::Concurrent {
        notices.push(Notice::HaMeansConcurrent(settings.ha));
    }
    Ok(Loaded {
        log: read_log_options(&layers, variables)?,
        settings,
        notices,
    })
}

fn read_settings(layers: &Layers<'_>, variables: &dyn Fn(&str) -> Option<String>) -> Result<Settings, SettingsError> {
    let mut settings = Settings::default();
    let proto = layers.option("listen-proto");
    let address = layers.option("listen");
    if let Some(given) = address.as_ref().or(proto.as_ref()) {
        let default_address = settings.listen.to_string();
        let proto_text = proto.as_ref().map_or("tcp", |given| &given.text);
        let text = match address.as_ref() {
            Some(address) => &address.text,
            // The default address is none for a unix socket or IPv6; say so rather than guess.
            None if matches!(proto_text.trim(), "unix" | "tcp6") => "",
            None => &default_address,
        };
        settings.listen = Listen::parse(proto_text, text).map_err(|reason| given.refused(reason))?;
    }
    if let Some(given) = layers
        .option("metrics-listen")
        .filter(|given| asks_for_something(&given.text))
    {
        settings.metrics_listen = Some(given.read(Listen::parse_metrics)?);
    }
    let duration = |name: &str, target: &mut Duration, zero_is_a_value: bool| {
        let Some(given) = layers.option(name) else {
            return Ok(());
        };
        let value = given.read(parse_duration)?;
        if zero_is_a_value || !value.is_zero() {
            *target = value;
        }
        Ok::<_, SettingsError>(())
    };
    duration("default-ttl", &mut settings.default_ttl, false)?;
    duration("max-ttl", &mut settings.max_ttl, false)?;
    duration("acquire-block", &mut settings.acquire_block_max, false)?;
    duration("sweeper-interval", &mut settings.sweeper_interval, false)?;
    duration("disk-retention", &mut settings.retention, true)?;
    duration("disk-janitor-interval", &mut settings.janitor_interval, true)?;
    duration("drain-grace", &mut settings.drain_grace, true)?;
    duration("shutdown-timeout", &mut settings.shutdown_timeout, false)?;
    settings.queue.read(layers)?;
    let size = |name: &str, target: &mut u64| {
        let value = layers.option(name).map(|given| given.read(parse_size)).transpose()?;
        *target = value.filter(|bytes| *bytes > 0).unwrap_or(*target);
        Ok::<_, SettingsError>(())
    };
    size("json-max", &mut settings.json_bytes_max)?;
    size("payload-spool-mem", &mut settings.payload_spool_bytes)?;
    if let Some(given) = layers.option("default-namespace") {
        settings.default_namespace = given.read(parse_namespace)?;
    }
    if let Some(given) = layers.option("workers") {
        settings.workers = given.read(|text| text.trim().parse().map_err(|_| "expected a number".to_owned()))?;
    }
    if let Some(given) = layers.option("ha") {
        settings.ha = given.read(HaMode::parse)?;
    }
    if let Some(given) = layers.option("allow-plaintext") {
        settings.allow_plaintext = given.read(parse_bool)?;
    }
    // Last, so that who has no home hears of a typing error first.
    settings.store = match layers.option("store") {
        Some(given) => read_store(&given, layers, variables)?,
        None => default_store(variables)?,
    };
    read_storage_retry(layers, &mut settings.storage_retry)?;
    Ok(settings)
}

fn read_store(
    given: &Given,
    layers: &Layers<'_>,
    variables: &dyn Fn(&str) -> Option<String>,
) -> Result<StoreLocation, SettingsError> {
    // What is an option may also be given as a flag or in the file.
    let option = |name: &str| {
        let name = name.strip_prefix("LOCKD_")?.to_ascii_lowercase().replace('_', "-");
        Some(layers.option(&name)?.text)
    };
    let lookup = |name: &str| option(name).or_else(|| variables(name));
    StoreLocation::parse_with(&given.text, &lookup).map_err(|reason| {
        // The query of a store URL may hold a secret, which is nobody's business.
        let text = given.text.split('?').next().unwrap_or_default().to_owned();
        let source = given.source.clone();
        Given { text, source }.refused(reason)
    })
}

fn read_storage_retry(layers: &Layers<'_>, policy: &mut RetryPolicy) -> Result<(), SettingsError> {
    if let Some(given) = layers.option("storage-retry-attempts") {
        let attempts: u32 = given.read(|text| text.trim().parse().map_err(|_| "expected a number".to_owned()))?;
        if attempts != 0 {
            policy.attempts = attempts;
        }
    }
    for (name, delay) in [
        ("storage-retry-base-delay", &mut policy.base_delay),
        ("storage-retry-max-delay", &mut policy.max_delay),
    ] {
        if let Some(given) = layers.option(name) {
            let value = given.read(parse_duration)?;
            if !value.is_zero() {
                *delay = value;
            }
        }
    }
    if let Some(given) = layers.option("storage-retry-multiplier") {
        let multiplier = given.read(|text| {
            let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
            number.ok_or_else(|| "expected a number such as 2 or 1.5".to_owned())
        })?;
        if multiplier != 0.0 {
            policy.multiplier = multiplier;
        }
    }
    Ok(())
}

fn default_store(variables: &dyn Fn(&str) -> Option<String>) -> Result<StoreLocation, SettingsError> {
    // Memory would do without a directory, and forget everything without a word at the next restart.
    let dir = config_dir(variables).ok_or(SettingsError::NoStore)?;
    let root = std::path::absolute(dir.join(DEFAULT_STORE)).map_err(|_| SettingsError::NoStore)?;
    Ok(StoreLocation::DefaultDisk(root))
}

fn parse_namespace(text: &str) -> Result<String, String> {
    let name = normalize_namespace(text).filter(|name| !name.starts_with('.'));
    name.ok_or_else(|| "expected 1 to 128 characters of a-z 0-9 . _ - that do not begin with a dot".to_owned())
}

fn read_log_options(
    layers: &Layers<'_>,
    variables: &dyn Fn(&str) -> Option<String>,
) -> Result<LogOptions, SettingsError> {
    let mut options = LogOptions::from_variables(variables)?;
    if let Some(given) = layers.option("log-level") {
        options.level = given
            .read(|text| logging::parse_level(text).ok_or_else(|| LogError::Level(text.to_owned()).to_string()))?;
    }
    if let Some(given) = layers.option("log-output") {
        options.output = Output::parse(&given.text);
    }
    let verbose = layers.flag("verbose").map(|given| given.read(parse_bool)).transpose()?;
    if verbose == Some(true) {
        options.level = log::LevelFilter::Trace;
    }
    Ok(options)
}

/// Switches that ask for plain text, which is all there is, and their opposites.
const PLAIN_TEXT_SWITCHES: [(&str, bool, &str); 4] = [
    ("disable-mtls", true, NO_TLS),
    ("mtls", false, NO_TLS),
    ("disable-storage-encryption", true, NO_STORAGE_ENCRYPTION),
    ("storage-encryption", false, NO_STORAGE_ENCRYPTION),
];
const NO_TLS: &str = "this version serves plain text only, it has no TLS";
const NO_STORAGE_ENCRYPTION: &str = "this version does not encrypt its store";

fn refuse_what_is_missing(layers: &Layers<'_>) -> Result<(), SettingsError> {
    for (name, plain, reason) in PLAIN_TEXT_SWITCHES {
        if let Some(given) = layers.option(name)
            && given.read(parse_bool)? != plain
        {
            return Err(SettingsError::Unsupported {
                source: given.source,
                reason,
            });
        }
    }
    if let Some(given) = layers.option("bundle").filter(|given| !given.text.trim().is_empty()) {
        return Err(SettingsError::Unsupported {
            source: given.source,
            reason: NO_TLS,
        });
    }
    for ForeignOption { name, .. } in REFUSED_OPTIONS {
        if let Some(given) = layers.option(name).filter(|given| asks_for_something(&given.text)) {
            return Err(SettingsError::Unsupported {
                source: given.source,
                reason: "not supported by this version",
            });
        }
    }
    Ok(())
}

fn asks_for_something(text: &str) -> bool {
    let zero = parse_duration(text).is_ok_and(|duration| duration.is_zero());
    !(text.trim().is_empty() || zero || parse_bool(text) == Ok(false))
}

fn is_known(key: &str) -> bool {
    const OTHERS: [&str; 6] = [
        "bundle",
        "disable-mtls",
        "mtls",
        "storage-encryption",
        "log-level",
        "log-output",
    ];
    let foreign = SKIPPED_OPTIONS.iter().chain(REFUSED_OPTIONS).map(|option| option.name);
    let mut known = SERVER_OPTIONS
        .iter()
        .map(|option| option.name)
        .chain(foreign)
        .chain(OTHERS);
    key.starts_with("client-") || known.any(|name| name == key)
}

#[cfg(test)]
mod tests;
