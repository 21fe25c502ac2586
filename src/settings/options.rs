//! The options of the daemon by name: which ones this version has, which ones it takes without using them, and which
//! ones it refuses.
//!
//! One table for all three sources: an option `max-ttl` is the flag `--max-ttl`, the variable `LOCKD_MAX_TTL` and the
//! key `max-ttl` of the configuration file. No option can be known to one of them and forgotten in another.

/// How an option is written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `--name VALUE` or `--name=VALUE`; the word stands for the value in the help.
    Value(&'static str),
    /// `--name` or `--name=false`.
    Switch,
}

/// An option that this version has.
#[derive(Debug, Clone, Copy)]
pub struct KnownOption {
    /// Its name, as in the flag and the file.
    pub name: &'static str,
    /// Its one-letter flag.
    pub short: Option<char>,
    /// How it is written.
    pub shape: Shape,
    /// One line for the help. The default is part of it.
    pub help: &'static str,
}

/// An option that exists in the protocol's other server, or will exist in this one.
#[derive(Debug, Clone, Copy)]
pub struct ForeignOption {
    /// Its name, as in the flag and the file.
    pub name: &'static str,
    /// How it is written.
    pub shape: Shape,
}

const fn value(name: &'static str, value_name: &'static str, help: &'static str) -> KnownOption {
    KnownOption {
        name,
        short: None,
        shape: Shape::Value(value_name),
        help,
    }
}

const fn switch(name: &'static str, help: &'static str) -> KnownOption {
    KnownOption {
        name,
        short: None,
        shape: Shape::Switch,
        help,
    }
}

/// An option that stands before or after any command.
#[derive(Debug, Clone, Copy)]
pub struct GlobalOption {
    /// The option.
    pub option: KnownOption,
    /// It means something to the client commands alone.
    pub for_client: bool,
}

/// Options of every command, in the order of the help. For the client commands the variable of most begins with
/// `LOCKD_CLIENT_` and the key in the file with `client-`.
pub const GLOBAL_OPTIONS: &[GlobalOption] = &[
    shared(
        Some('c'),
        value(
            "config",
            "FILE",
            "Configuration file [default: config.yaml in ~/.lockd, if it exists]",
        ),
    ),
    shared(
        None,
        value(
            "log-level",
            "LEVEL",
            "trace, debug, info, warn, error or none [default: info; clients: none]",
        ),
    ),
    shared(
        None,
        value(
            "log-output",
            "OUTPUT",
            "stderr, stdout, a file, or stderr+FILE [default: stderr]",
        ),
    ),
    shared(
        Some('v'),
        switch("verbose", "Log everything, as --log-level trace does"),
    ),
    shared(
        None,
        switch(
            "disable-mtls",
            "Plain text without certificates; this version does nothing else",
        ),
    ),
    shared(
        Some('b'),
        value(
            "bundle",
            "FILE",
            "Certificates and key for TLS; not supported by this version",
        ),
    ),
    client(
        Some('s'),
        value(
            "server",
            "URLS",
            "Servers, separated by commas [default: http://127.0.0.1:9341]",
        ),
    ),
    client(
        None,
        value(
            "timeout",
            "DURATION",
            "Limit of one attempt at one server [default: 15s, with several: 3s]",
        ),
    ),
    client(
        None,
        value(
            "close-timeout",
            "DURATION",
            "Limit of a release at the end [default: 5s]",
        ),
    ),
    client(
        None,
        value("keepalive-timeout", "DURATION", "Limit of a keepalive [default: 5s]"),
    ),
    client(
        None,
        switch(
            "drain-aware-shutdown",
            "Release leases when their server goes down [default: true]",
        ),
    ),
];

const fn shared(short: Option<char>, option: KnownOption) -> GlobalOption {
    GlobalOption {
        option: KnownOption { short, ..option },
        for_client: false,
    }
}

const fn client(short: Option<char>, option: KnownOption) -> GlobalOption {
    GlobalOption {
        option: KnownOption { short, ..option },
        for_client: true,
    }
}

/// Options of the daemon that this version has, in the order of the help.
pub const SERVER_OPTIONS: &[KnownOption] = &[
    value(
        "listen",
        "ADDR",
        "Address to listen on, or the path of a unix socket [default: 127.0.0.1:9341]",
    ),
    value(
        "listen-proto",
        "PROTO",
        "Family of the socket: tcp, tcp4, tcp6 or unix [default: tcp]",
    ),
    switch(
        "allow-plaintext",
        "Allow plain text on an address that other machines can reach",
    ),
    value(
        "metrics-listen",
        "ADDR",
        "Address to tell metrics on, for Prometheus, in plain text: 127.0.0.1:9464; without it they are not counted",
    ),
    value(
        "store",
        "URL",
        "Where everything is kept: disk:///absolute/path, mem://, s3://host/bucket, aws://bucket or azure://account/container [default: data in $LOCKD_CONFIG_DIR, or in ~/.lockd]",
    ),
    value(
        "storage-retry-attempts",
        "NUMBER",
        "How often a request to an object store is tried [default: 6]",
    ),
    value(
        "storage-retry-base-delay",
        "DURATION",
        "Pause after the first failure of such a request [default: 100ms]",
    ),
    value(
        "storage-retry-max-delay",
        "DURATION",
        "Longest such pause [default: 5s]",
    ),
    value(
        "storage-retry-multiplier",
        "NUMBER",
        "Each such pause is so many times the one before [default: 2]",
    ),
    value(
        "s3-sse",
        "ALGORITHM",
        "Encryption by the store: AES256 or aws:kms; without it as the bucket is set up",
    ),
    value("s3-kms-key-id", "ID", "Key of the key management service for aws:kms"),
    value(
        "aws-region",
        "REGION",
        "Region of an aws:// bucket; else AWS_REGION or AWS_DEFAULT_REGION tells",
    ),
    value(
        "aws-kms-key-id",
        "ID",
        "The same key for aws:// alone; else AWS_KMS_KEY_ID or s3-kms-key-id",
    ),
    value(
        "azure-key",
        "KEY",
        "Key of the azure:// account; better in LOCKD_AZURE_ACCOUNT_KEY",
    ),
    value(
        "azure-sas-token",
        "TOKEN",
        "Token for the azure:// container instead; better in LOCKD_AZURE_SAS_TOKEN",
    ),
    value(
        "azure-endpoint",
        "URL",
        "Another address of the azure:// account than the one at Azure",
    ),
    KnownOption {
        name: "default-namespace",
        short: Some('n'),
        shape: Shape::Value("NAME"),
        help: "Namespace of requests that name none [default: default]",
    },
    value(
        "default-ttl",
        "DURATION",
        "Life of a lease when the request gives none [default: 30s]",
    ),
    value(
        "max-ttl",
        "DURATION",
        "Longest life of a lease; longer requests are cut to it [default: 30m]",
    ),
    value(
        "acquire-block",
        "DURATION",
        "Longest time an acquire may wait for a held key [default: 60s]",
    ),
    value("json-max", "SIZE", "Largest JSON body [default: 100MiB]"),
    value(
        "payload-spool-mem",
        "SIZE",
        "Memory per request before a body goes to a file [default: 4MiB]",
    ),
    value("workers", "N", "Threads that handle requests [default: 32]"),
    value(
        "sweeper-interval",
        "DURATION",
        "How often leftovers are cleared away [default: 5m]",
    ),
    value(
        "disk-retention",
        "DURATION",
        "Delete keys that have not changed for so long and are not held; 0 never [default: 0]",
    ),
    value(
        "disk-janitor-interval",
        "DURATION",
        "How often such keys are looked for; if not given, after half of disk-retention, 1m to 1h",
    ),
    value(
        "drain-grace",
        "DURATION",
        "How long a stop waits for leases to end; 0 not at all [default: 10s]",
    ),
    value(
        "shutdown-timeout",
        "DURATION",
        "How long a stop may take in all [default: 10s]",
    ),
    value(
        "ha",
        "MODE",
        "concurrent, failover, single or auto; all mean concurrent here [default: concurrent]",
    ),
    value(
        "queue-max-consumers",
        "N",
        "Consumers that may wait or be served at the same time; 64 per CPU, 128 to 4096, unless given",
    ),
    value(
        "queue-poll-interval",
        "DURATION",
        "Shortest time between two polls of a queue [default: 3s]",
    ),
    value(
        "queue-poll-jitter",
        "DURATION",
        "Up to this much is added to it at random [default: 500ms]",
    ),
    value(
        "queue-resilient-poll-interval",
        "DURATION",
        "How often a queue is polled although changes are heard of [default: 5m]",
    ),
    value(
        "queue-list-page-size",
        "N",
        "Messages of one page of a look at a queue [default: 128]",
    ),
    switch(
        "disk-queue-watch",
        "Hear of what other servers do to queues on a disk, instead of polling [default: true]",
    ),
    switch(
        "disable-mem-queue-watch",
        "Poll queues in memory instead of hearing of changes",
    ),
    switch(
        "disable-storage-encryption",
        "Keep plain text in the store; this version does nothing else",
    ),
];

const fn foreign(name: &'static str) -> ForeignOption {
    ForeignOption {
        name,
        shape: Shape::Value("VALUE"),
    }
}

const fn foreign_switch(name: &'static str) -> ForeignOption {
    ForeignOption {
        name,
        shape: Shape::Switch,
    }
}

/// Options that are accepted and not used: tuning of machinery that this server does not have, in the configuration of
/// people who come from the other one. Nobody is less safe, and nothing is kept or limited differently, because they
/// are skipped.
pub const SKIPPED_OPTIONS: &[ForeignOption] = &[
    foreign_switch("connguard-enabled"),
    foreign("connguard-failure-threshold"),
    foreign("connguard-failure-window"),
    foreign("connguard-block-duration"),
    foreign("connguard-probe-timeout"),
    foreign_switch("qrf-disabled"),
    foreign("qrf-queue-soft-limit"),
    foreign("qrf-queue-hard-limit"),
    foreign("qrf-queue-consumer-soft-limit"),
    foreign("qrf-queue-consumer-hard-limit"),
    foreign("qrf-lock-soft-limit"),
    foreign("qrf-lock-hard-limit"),
    foreign("qrf-query-soft-limit"),
    foreign("qrf-query-hard-limit"),
    foreign("qrf-memory-soft-limit"),
    foreign("qrf-memory-hard-limit"),
    foreign("qrf-memory-soft-limit-percent"),
    foreign("qrf-memory-hard-limit-percent"),
    foreign("qrf-memory-strict-headroom-percent"),
    foreign("qrf-swap-soft-limit"),
    foreign("qrf-swap-hard-limit"),
    foreign("qrf-swap-soft-limit-percent"),
    foreign("qrf-swap-hard-limit-percent"),
    foreign("qrf-cpu-soft-limit"),
    foreign("qrf-cpu-hard-limit"),
    foreign("qrf-load-soft-limit-multiplier"),
    foreign("qrf-load-hard-limit-multiplier"),
    foreign("qrf-recovery-samples"),
    foreign("qrf-soft-delay"),
    foreign("qrf-engaged-delay"),
    foreign("qrf-recovery-delay"),
    foreign("qrf-max-wait"),
    foreign("lsf-sample-interval"),
    foreign("lsf-log-interval"),
    foreign("json-util"),
    foreign("disk-lock-file-cache-size"),
    foreign_switch("disable-krypto-pool"),
    foreign_switch("disable-logstore-compaction-throttling"),
    foreign("http2-max-concurrent-streams"),
    foreign("ha-lease-ttl"),
    foreign("ha-single-presence-ttl"),
];

/// Options of capabilities that this version lacks. Whoever sets one counts on something, so the daemon does not start
/// as if it were there. An empty value, a zero or a false asks for nothing and passes.
pub const REFUSED_OPTIONS: &[ForeignOption] = &[
    foreign("bootstrap"),
    foreign("denylist-path"),
    foreign("self"),
    foreign("join"),
    foreign("tc-join"),
    foreign("tc-trust-dir"),
    foreign_switch("tc-disable-auth"),
    foreign_switch("tc-allow-default-ca"),
    foreign("tc-client-bundle"),
    foreign("tc-fanout-timeout"),
    foreign("tc-fanout-attempts"),
    foreign("tc-fanout-base-delay"),
    foreign("tc-fanout-max-delay"),
    foreign("tc-fanout-multiplier"),
    foreign("tc-decision-retention"),
    foreign("txn-replay-interval"),
    foreign_switch("storage-encryption-snappy"),
    foreign("state-cache-bytes"),
    foreign("logstore-commit-max-ops"),
    foreign("logstore-segment-size"),
    foreign_switch("logstore-compaction"),
    foreign("logstore-compaction-interval"),
    foreign("logstore-compaction-min-segments"),
    foreign("logstore-compaction-min-reclaim-size"),
    foreign("logstore-compaction-delete-grace"),
    foreign("logstore-compaction-max-io-bytes-per-sec"),
    foreign("s3-max-part-size"),
    foreign("s3-encrypt-buffer-budget"),
    foreign("queue-decision-cache-ttl"),
    foreign("queue-decision-max-apply"),
    foreign("queue-decision-apply-timeout"),
    foreign("indexer-flush-docs"),
    foreign("indexer-flush-interval"),
    foreign("query-doc-prefetch"),
    foreign("idle-sweep-grace"),
    foreign("idle-sweep-op-delay"),
    foreign("idle-sweep-max-ops"),
    foreign("idle-sweep-max-runtime"),
    foreign("pprof-listen"),
    foreign_switch("enable-profiling-metrics"),
    foreign("otlp-endpoint"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_name_is_in_two_tables() {
        let global = GLOBAL_OPTIONS.iter().map(|option| option.option.name);
        let known = SERVER_OPTIONS.iter().map(|option| option.name).chain(global);
        let foreign = SKIPPED_OPTIONS.iter().chain(REFUSED_OPTIONS).map(|option| option.name);
        let mut seen = BTreeSet::new();
        for name in known.chain(foreign) {
            assert!(seen.insert(name), "{name} is listed twice");
        }
    }
}
