//! Precedence, defaults, refusals.

use std::fs;
use std::path::PathBuf;

use log::LevelFilter;

use super::*;
use crate::store::object::Encryption;

type Pairs<'a> = &'a [(&'a str, &'a str)];

/// Of whoever does not say otherwise. Nothing there is touched.
const HOME: &str = "/home/me";

fn try_load(flags: Pairs<'_>, variables: Pairs<'_>) -> Result<Loaded, SettingsError> {
    let at_home = [variables, &[("HOME", HOME)]].concat();
    load_homeless(flags, &at_home)
}

fn load_homeless(flags: Pairs<'_>, variables: Pairs<'_>) -> Result<Loaded, SettingsError> {
    let flags = flags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let variables = |name: &str| {
        let found = variables.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    load(&flags, &variables)
}

fn defaults() -> Settings {
    Settings {
        store: StoreLocation::DefaultDisk(PathBuf::from("/home/me/.lockd/data")),
        ..Settings::default()
    }
}

fn settings(flags: Pairs<'_>, variables: Pairs<'_>) -> Settings {
    try_load(flags, variables).unwrap().settings
}

fn refusal(flags: Pairs<'_>, variables: Pairs<'_>) -> String {
    try_load(flags, variables).unwrap_err().to_string()
}

#[test]
fn nothing_given_means_the_defaults_and_a_word_about_the_store() {
    let loaded = try_load(&[], &[]).unwrap();
    assert_eq!(loaded.settings, defaults());
    assert_eq!(loaded.settings.listen.to_string(), "127.0.0.1:9341");
    assert_eq!(loaded.settings.json_bytes_max, 104_857_600);
    let about_the_store = Notice::DefaultStore {
        root: PathBuf::from("/home/me/.lockd/data"),
        address: "127.0.0.1:9341".to_owned(),
    };
    assert_eq!(loaded.notices, [about_the_store]);
    assert_eq!(try_load(&[("store", "mem://")], &[]).unwrap().notices, []);
}

#[test]
fn the_default_store_is_in_the_configuration_directory() {
    let store = |variables: Pairs<'_>| load_homeless(&[], variables).map(|loaded| loaded.settings.store);
    let at = |path: &str| StoreLocation::DefaultDisk(PathBuf::from(path));
    assert_eq!(
        store(&[("LOCKD_CONFIG_DIR", "/etc/lockd")]).unwrap(),
        at("/etc/lockd/data")
    );
    let both = [("LOCKD_CONFIG_DIR", "~/conf"), ("HOME", HOME)];
    assert_eq!(store(&both).unwrap(), at("/home/me/conf/data"));
    let here = std::env::current_dir().unwrap();
    let relative = store(&[("LOCKD_CONFIG_DIR", "conf")]).unwrap();
    assert_eq!(relative, StoreLocation::DefaultDisk(here.join("conf/data")));
    let words = store(&[]).unwrap_err().to_string();
    assert!(words.contains("--store") && words.contains("HOME"), "{words}");
    assert_eq!(store(&[("LOCKD_STORE", "mem://")]).unwrap(), StoreLocation::Memory);
}

#[test]
fn the_help_tells_the_defaults_in_force() {
    let told = |option: &options::KnownOption| {
        let (_, rest) = option.help.split_once("[default: ")?;
        Some((option.name.to_owned(), rest.strip_suffix(']')?.to_owned()))
    };
    let mut flags: Flags = SERVER_OPTIONS.iter().filter_map(told).collect();
    assert_eq!(flags.len(), 24, "{flags:?}");
    // That of the store tells where it is; the value itself depends on who asks.
    let store = flags.remove("store").unwrap();
    assert!(store.starts_with("data in $LOCKD_CONFIG_DIR"), "{store}");
    flags.insert("store".to_owned(), "mem://".to_owned());
    assert_eq!(load(&flags, &|_| None).unwrap().settings, Settings::default());
}

#[test]
fn flag_beats_variable_beats_file_beats_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lockd.yaml");
    fs::write(
        &path,
        "store: mem://\ndefault-ttl: 11s\nmax-ttl: 12s\nacquire-block: 13s\n",
    )
    .unwrap();
    let file = path.to_str().unwrap();
    let loaded = try_load(
        &[("config", file), ("default-ttl", "1s")],
        &[
            ("LOCKD_DEFAULT_TTL", "5s"),
            ("LOCKD_MAX_TTL", "6s"),
            ("LOCKD_ACQUIRE_BLOCK", " "),
        ],
    )
    .unwrap();
    assert_eq!(loaded.settings.default_ttl, Duration::from_secs(1));
    assert_eq!(loaded.settings.max_ttl, Duration::from_secs(6));
    assert_eq!(loaded.settings.acquire_block_max, Duration::from_secs(13));
    assert_eq!(loaded.settings.drain_grace, Duration::from_secs(10));
    assert_eq!(loaded.notices, [Notice::ConfigFile(path)]);
}

#[test]
fn the_file_is_found_in_the_configuration_directory() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap();
    fs::create_dir(dir.path().join(".lockd")).unwrap();
    fs::write(dir.path().join(".lockd/config.yaml"), "workers: 3\nstore: mem://\n").unwrap();
    assert_eq!(settings(&[], &[("HOME", home)]).workers, 3);
    let config_dir = dir.path().join(".lockd");
    assert_eq!(
        settings(&[], &[("LOCKD_CONFIG_DIR", config_dir.to_str().unwrap())]).workers,
        3
    );
    assert_eq!(
        settings(&[("config", "~/.lockd/config.yaml")], &[("HOME", home)]).workers,
        3
    );
    assert_eq!(
        settings(&[], &[("LOCKD_CONFIG", "~/.lockd/config.yaml"), ("HOME", home)]).workers,
        3
    );
    // A directory without the file is no error; a file that was named is.
    assert_eq!(
        settings(&[], &[("LOCKD_CONFIG_DIR", home)]).workers,
        Settings::default().workers
    );
    assert!(refusal(&[("config", home)], &[]).contains("is a directory"));
    assert!(refusal(&[], &[("LOCKD_CONFIG", "/nowhere/lockd.yaml")]).contains("/nowhere/lockd.yaml"));
}

#[test]
fn a_wrong_value_is_refused_under_the_name_it_was_given_by() {
    assert!(refusal(&[("max-ttl", "5 parsecs")], &[]).starts_with("--max-ttl \"5 parsecs\": expected a duration"));
    assert!(refusal(&[], &[("LOCKD_JSON_MAX", "big")]).starts_with("LOCKD_JSON_MAX \"big\": expected a size"));
    assert!(refusal(&[("workers", "many")], &[]).contains("expected a number"));
    assert!(refusal(&[("ha", "raft")], &[]).contains("expected concurrent"));
    assert!(refusal(&[("default-namespace", ".txns")], &[]).contains("begin with a dot"));
    assert!(refusal(&[("listen", "a:b")], &[]).contains("HOST:PORT"));
    assert!(refusal(&[("listen-proto", "unix")], &[]).contains("needs a path"));
    assert!(refusal(&[("log-level", "loud")], &[]).contains("expected trace"));
    assert!(refusal(&[], &[("LOCKD_LOG_MODE", "xml")]).contains("expected console"));
    assert!(refusal(&[("allow-plaintext", "yes")], &[]).contains("expected true or false"));
}

#[test]
fn values_that_do_not_go_together_are_refused() {
    assert!(refusal(&[("max-ttl", "10s")], &[]).contains("max-ttl (10s) is shorter than default-ttl (30s)"));
    assert!(refusal(&[("workers", "0")], &[]).contains("expected 1 to 4096"));
    assert!(refusal(&[("workers", "4097")], &[]).contains("expected 1 to 4096"));
}

#[test]
fn other_machines_are_let_in_only_on_request() {
    assert!(refusal(&[("listen", ":9341")], &[]).contains("--allow-plaintext"));
    assert!(refusal(&[("listen", "0.0.0.0:9341"), ("allow-plaintext", "false")], &[]).contains("--allow-plaintext"));
    let open = settings(&[("listen", ":9341"), ("allow-plaintext", "true")], &[]);
    assert_eq!(open.listen.to_string(), ":9341");
    let unix = settings(&[("listen", "/run/lockd.sock"), ("listen-proto", "unix")], &[]);
    assert_eq!(unix.listen, Listen::Unix(PathBuf::from("/run/lockd.sock")));
}

#[test]
fn metrics_are_told_to_other_machines_only_on_request() {
    let listen = |flags: Pairs<'_>, variables: Pairs<'_>| {
        let found = settings(flags, variables).metrics_listen;
        found.map(|listen| listen.to_string())
    };
    assert_eq!(listen(&[], &[]), None);
    assert_eq!(
        listen(&[], &[("LOCKD_METRICS_LISTEN", "localhost")]),
        Some("localhost:9464".to_owned())
    );
    assert!(refusal(&[("metrics-listen", ":9464")], &[]).contains("--allow-plaintext"));
    assert!(refusal(&[("metrics-listen", "a:b")], &[]).contains("HOST:PORT"));
    let open = [("metrics-listen", ":9464"), ("allow-plaintext", "true")];
    assert_eq!(listen(&open, &[]), Some(":9464".to_owned()));
}

#[test]
fn zero_means_the_default_except_for_the_drain_window() {
    let zeros = [
        ("default-ttl", "0"),
        ("max-ttl", "0s"),
        ("acquire-block", "0"),
        ("json-max", "0"),
        ("shutdown-timeout", "0"),
        ("drain-grace", "0"),
    ];
    let expected = Settings {
        drain_grace: Duration::ZERO,
        ..defaults()
    };
    assert_eq!(settings(&zeros, &[]), expected);
}

#[test]
fn old_keys_are_looked_for_after_half_their_age_within_bounds_unless_told() {
    assert_eq!(settings(&[], &[]).retention, Duration::ZERO);
    let interval = |flags: Pairs<'_>| settings(flags, &[]).janitor_interval();
    assert_eq!(interval(&[("disk-retention", "1m")]), Duration::from_secs(60));
    assert_eq!(interval(&[("disk-retention", "10m")]), Duration::from_secs(5 * 60));
    assert_eq!(interval(&[("disk-retention", "720h")]), Duration::from_secs(60 * 60));
    let told = [("disk-retention", "720h"), ("disk-janitor-interval", "7m")];
    assert_eq!(interval(&told), Duration::from_secs(7 * 60));
    assert_eq!(settings(&told, &[]).retention, Duration::from_secs(30 * 24 * 60 * 60));
}

#[test]
fn stores_that_do_not_exist_yet_are_refused() {
    assert_eq!(
        settings(&[], &[("LOCKD_STORE", "memory://")]).store,
        StoreLocation::Memory
    );
    assert!(refusal(&[("store", "azure://account/container")], &[]).contains("no credentials"));
    assert!(refusal(&[("store", "mem://a")], &[]).contains("takes no path"));
    assert!(refusal(&[("store", "ftp://a")], &[]).contains("expected mem://"));
}

#[test]
fn a_bucket_is_named_by_a_url_and_its_secrets_come_from_elsewhere() {
    let keys = [("LOCKD_S3_ACCESS_KEY_ID", "id"), ("LOCKD_S3_SECRET_ACCESS_KEY", "hush")];
    let found = settings(&[("store", "s3://h:9000/b/p?insecure=1"), ("s3-sse", "AES256")], &keys);
    let StoreLocation::Object(location) = &found.store else {
        panic!("{:?}", found.store)
    };
    let Location::S3(location) = &**location else {
        panic!("{location:?}")
    };
    assert_eq!((&*location.endpoint, &*location.prefix), ("http://h:9000", "p"));
    assert_eq!(location.encryption, Encryption::Managed);
    assert!(!format!("{found:?}").contains("hush"));
    let retry = [("storage-retry-attempts", "9"), ("storage-retry-multiplier", "1.5")];
    let retry = settings(&[&[("store", "aws://b?region=r")], &retry[..]].concat(), &[]).storage_retry;
    assert_eq!((retry.attempts, retry.multiplier), (9, 1.5));
    let refused = refusal(&[("store", "s3://h/b?insecure=2&sas=hush")], &[]);
    assert!(refused.contains("insecure=") && !refused.contains("hush"), "{refused}");
}

#[test]
fn a_store_on_a_disk_is_named_by_an_absolute_path() {
    let store = settings(&[("store", "disk:///var/lib/lockd")], &[]).store;
    assert_eq!(store, StoreLocation::Disk("/var/lib/lockd".into()));
    for url in ["disk://", "disk://var/lib", "disk"] {
        let words = refusal(&[("store", url)], &[]);
        assert!(words.contains("absolute path"), "{url}: {words}");
    }
}

#[test]
fn what_this_version_lacks_is_refused_from_every_source() {
    assert_eq!(
        refusal(&[("pprof-listen", ":9465")], &[]),
        "--pprof-listen: not supported by this version"
    );
    assert!(
        refusal(&[], &[("LOCKD_LOGSTORE_SEGMENT_SIZE", "1MB")])
            .starts_with("LOCKD_LOGSTORE_SEGMENT_SIZE: not supported")
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    let file = path.to_str().unwrap();
    fs::write(&path, "logstore-segment-size: 1MB\n").unwrap();
    assert!(refusal(&[("config", file)], &[]).starts_with("logstore-segment-size (configuration file): not supported"));
    fs::write(&path, "mtls: true\n").unwrap();
    assert!(refusal(&[("config", file)], &[]).contains("no TLS"));
    assert!(refusal(&[("bundle", "/etc/lockd/server.pem")], &[]).contains("no TLS"));
    assert!(refusal(&[("disable-mtls", "false")], &[]).contains("no TLS"));
    assert!(refusal(&[], &[("LOCKD_DISABLE_STORAGE_ENCRYPTION", "0")]).contains("does not encrypt"));
}

#[test]
fn asking_for_nothing_passes() {
    let flags = [
        ("disable-mtls", "true"),
        ("disable-storage-encryption", "true"),
        ("bundle", ""),
    ];
    let variables = [
        ("LOCKD_OTLP_ENDPOINT", ""),
        ("LOCKD_METRICS_LISTEN", " "),
        ("LOCKD_DISK_RETENTION", "0"),
        ("LOCKD_LOGSTORE_COMPACTION", "false"),
    ];
    assert_eq!(settings(&flags, &variables), defaults());
}

#[test]
fn foreign_tuning_is_skipped_and_unknown_keys_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    fs::write(
        &path,
        "store: mem://\nconnguard-enabled: true\ncolour: blue\nclient-server: a\n",
    )
    .unwrap();
    let loaded = try_load(
        &[("config", path.to_str().unwrap()), ("ha", "failover")],
        &[("LOCKD_QRF_DISABLED", "true")],
    )
    .unwrap();
    let expected = [
        Notice::ConfigFile(path),
        Notice::Skipped(Source::File("connguard-enabled".to_owned())),
        Notice::Skipped(Source::Variable("LOCKD_QRF_DISABLED".to_owned())),
        Notice::UnknownKey("colour".to_owned()),
        Notice::HaMeansConcurrent(HaMode::Failover),
    ];
    assert_eq!(loaded.notices, expected);
}

#[test]
fn the_log_options_follow_the_same_order() {
    let log = |flags: Pairs<'_>, variables: Pairs<'_>| try_load(flags, variables).unwrap().log;
    assert_eq!(log(&[], &[("LOCKD_LOG_LEVEL", "debug")]).level, LevelFilter::Debug);
    assert_eq!(
        log(&[("log-level", "error")], &[("LOCKD_LOG_LEVEL", "debug")]).level,
        LevelFilter::Error
    );
    assert_eq!(
        log(&[("verbose", "true")], &[("LOCKD_LOG_LEVEL", "none")]).level,
        LevelFilter::Trace
    );
    assert_eq!(log(&[("log-output", "stdout")], &[]).output, Output::Stdout);
}

#[test]
fn queues_are_told_how_to_poll_and_how_many_to_serve() {
    let given = settings(
        &[
            ("queue-max-consumers", "7"),
            ("queue-poll-interval", "25ms"),
            ("queue-poll-jitter", "0"),
            ("queue-resilient-poll-interval", "0"),
            ("disk-queue-watch", "false"),
        ],
        &[
            ("LOCKD_QUEUE_LIST_PAGE_SIZE", "64"),
            ("LOCKD_DISABLE_MEM_QUEUE_WATCH", "1"),
            ("LOCKD_READY_CACHE_TRACE", "1"),
        ],
    );
    let expected = QueueSettings {
        max_consumers: 7,
        poll_interval: Duration::from_millis(25),
        poll_jitter: Duration::ZERO,
        list_page_size: 64,
        watch_disk: false,
        watch_mem: false,
        trace_ready: true,
        ..QueueSettings::default()
    };
    assert_eq!(given.queue, expected);
    assert!((128..=4096).contains(&QueueSettings::default().max_consumers));
    assert!(refusal(&[("queue-poll-jitter", "-1s")], &[]).contains("queue-poll-jitter"));
    assert!(refusal(&[("queue-list-page-size", "2000")], &[]).contains("queue-list-page-size"));
}
