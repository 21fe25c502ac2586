//! The cases: who puts how many messages in, who takes them out, and how.

use std::path::PathBuf;
use std::time::Duration;

use lockd_client::Wait;

use crate::switches::Switches;

/// One case.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) store: StoreKind,
    /// Where a store on a disk may be.
    pub(crate) root: Option<PathBuf>,
    /// Servers over one store, each with one client; worker `i` uses client `i` modulo their number.
    pub(crate) servers: usize,
    /// Producers that work at the same time as the consumers; none when the queue is filled before.
    pub(crate) producers: usize,
    pub(crate) consumers: usize,
    pub(crate) messages: usize,
    pub(crate) page: u32,
    pub(crate) call: Call,
    pub(crate) payload_bytes: usize,
    pub(crate) poll: Duration,
    pub(crate) poll_jitter: Duration,
    pub(crate) resilient: Duration,
    /// The longest that the workers may take.
    pub(crate) limit: Duration,
    /// A lease that is lost makes it a failure.
    pub(crate) guards_leases: bool,
}

/// Where messages are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreKind {
    Memory,
    Disk,
}

/// How consumers take messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Subscribe(Wait),
    Batch,
}

const NO_WAIT: Call = Call::Subscribe(Wait::No);
const WAIT_30: Call = Call::Subscribe(Wait::UpTo(Duration::from_secs(30)));

/// All cases, with the numbers that the environment chose.
pub(crate) fn all(switches: &Switches) -> Vec<Case> {
    // name, servers, producers (0: filled before), consumers, messages, page, call
    let memory = [
        ("single_server_prefetch1_100p_100c", 1, 100, 100, 2000, 1, NO_WAIT),
        ("single_server_prefetch4_100p_100c", 1, 100, 100, 2000, 4, NO_WAIT),
        ("single_server_subscribe_100p_1c", 1, 0, 1, 200, 16, WAIT_30),
        ("double_server_subscribe_100p_1c", 2, 0, 1, 200, 16, WAIT_30),
        ("double_server_dequeue_100p_1c", 2, 0, 1, 200, 16, Call::Batch),
        ("single_server_dequeue_guard", 1, 1, 1, 200, 8, Call::Batch),
        ("double_server_prefetch4_100p_100c", 2, 100, 100, 2000, 4, NO_WAIT),
    ];
    let mut cases: Vec<Case> = memory
        .into_iter()
        .map(|(name, servers, producers, consumers, messages, page, call)| {
            let chosen_page = match servers {
                1 => switches.prefetch,
                _ => switches.prefetch_double,
            };
            let producers = match producers {
                0 => 0,
                usual => switches.producers.unwrap_or(usual),
            };
            Case {
                name,
                store: StoreKind::Memory,
                root: None,
                servers,
                producers,
                consumers: switches.consumers.unwrap_or(consumers),
                messages: switches.messages.unwrap_or_else(|| match switches.producers {
                    Some(_) if 0 < producers => (producers * 20).clamp(200, 2000),
                    _ => messages,
                }),
                page: chosen_page.unwrap_or(page),
                call,
                payload_bytes: 1024,
                poll: Duration::from_micros(500),
                poll_jitter: Duration::from_micros(500),
                resilient: Duration::from_millis(5),
                limit: Duration::from_secs(60),
                guards_leases: false,
            }
        })
        .collect();
    let own = &switches.ack_lease;
    for (name, store) in [
        ("ack_lease_mem", StoreKind::Memory),
        ("ack_lease_disk", StoreKind::Disk),
    ] {
        cases.push(Case {
            name,
            store,
            root: None,
            servers: 1,
            producers: own.producers.unwrap_or(8),
            consumers: own.consumers.unwrap_or(8),
            messages: own.messages.unwrap_or(200),
            page: own.prefetch.unwrap_or(4),
            call: NO_WAIT,
            payload_bytes: 256,
            poll: Duration::from_millis(25),
            poll_jitter: Duration::ZERO,
            resilient: Duration::from_millis(250),
            limit: own.timeout.unwrap_or(Duration::from_secs(60)),
            guards_leases: !own.allow_mismatch,
        });
    }
    cases
}
