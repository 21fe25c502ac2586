//! Which queue, which message: from flags, or from what an earlier `dequeue` left in the environment.

use clap::Args;
use lockd_client::MessageRef;

use crate::cli::CliError;
use crate::cli::client::session::{self, Variables, given};

/// Variables that `dequeue` exports and later commands read.
pub(super) mod variable {
    pub(in super::super) const NAMESPACE: &str = "LOCKD_QUEUE_NAMESPACE";
    pub(in super::super) const NAME: &str = "LOCKD_QUEUE_NAME";
    pub(in super::super) const MESSAGE_ID: &str = "LOCKD_QUEUE_MESSAGE_ID";
    pub(in super::super) const LEASE: &str = "LOCKD_QUEUE_LEASE";
    pub(in super::super) const FENCING_TOKEN: &str = "LOCKD_QUEUE_FENCING_TOKEN";
    pub(in super::super) const META_ETAG: &str = "LOCKD_QUEUE_META_ETAG";
    pub(in super::super) const PAYLOAD_PATH: &str = "LOCKD_QUEUE_PAYLOAD_PATH";
    pub(in super::super) const CURSOR: &str = "LOCKD_QUEUE_CURSOR";
    pub(in super::super) const STATE_LEASE: &str = "LOCKD_QUEUE_STATE_LEASE";
    pub(in super::super) const STATE_FENCING_TOKEN: &str = "LOCKD_QUEUE_STATE_FENCING_TOKEN";
    pub(in super::super) const STATE_ETAG: &str = "LOCKD_QUEUE_STATE_ETAG";
}

/// A queue.
#[derive(Debug, Clone, Args)]
pub(super) struct QueueFlags {
    /// Queue [env: LOCKD_QUEUE_NAME]
    #[arg(long, short)]
    queue: Option<String>,
    #[command(flatten)]
    namespace: NamespaceFlag,
}

/// Where queues are.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct NamespaceFlag {
    /// Namespace [env: LOCKD_QUEUE_NAMESPACE, LOCKD_CLIENT_NAMESPACE; default: default]
    #[arg(long, short)]
    namespace: Option<String>,
}

impl QueueFlags {
    pub(super) fn queue(&self, variables: Variables<'_>) -> Result<String, CliError> {
        given(self.queue.as_deref(), variable::NAME, variables)
            .ok_or_else(|| CliError::new("--queue is required (or set LOCKD_QUEUE_NAME)"))
    }

    pub(super) fn namespace(&self, variables: Variables<'_>) -> Result<Option<String>, CliError> {
        self.namespace.namespace(variables)
    }
}

impl NamespaceFlag {
    pub(super) fn namespace(&self, variables: Variables<'_>) -> Result<Option<String>, CliError> {
        let flag = given(self.namespace.as_deref(), variable::NAMESPACE, variables);
        session::namespace(flag.as_deref(), variables)
    }
}

/// A message that was dequeued before.
#[derive(Debug, Clone, Args)]
pub(super) struct MessageFlags {
    #[command(flatten)]
    at: QueueFlags,
    /// Message id [env: LOCKD_QUEUE_MESSAGE_ID]
    #[arg(long, value_name = "ID")]
    message: Option<String>,
    /// Lease of the message [env: LOCKD_QUEUE_LEASE]
    #[arg(long)]
    lease: Option<String>,
    /// Fencing token of the lease [env: LOCKD_QUEUE_FENCING_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    fencing_token: Option<String>,
    /// Entity tag of the message [env: LOCKD_QUEUE_META_ETAG]
    #[arg(long, value_name = "ETAG")]
    meta_etag: Option<String>,
    /// Lease of the state [env: LOCKD_QUEUE_STATE_LEASE]
    #[arg(long, value_name = "LEASE")]
    state_lease: Option<String>,
    /// Fencing token of the lease of the state [env: LOCKD_QUEUE_STATE_FENCING_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    state_fencing_token: Option<String>,
}

impl MessageFlags {
    /// The message, of which everything must be known.
    pub(super) fn named(&self, variables: Variables<'_>) -> Result<MessageRef, CliError> {
        let required = |flag: &Option<String>, name: &str, variable: &str| {
            given(flag.as_deref(), variable, variables)
                .ok_or_else(|| CliError::new(format!("--{name} is required (or set {variable})")))
        };
        let queue = self.at.queue(variables)?;
        let message = required(&self.message, "message", variable::MESSAGE_ID)?;
        let lease = required(&self.lease, "lease", variable::LEASE)?;
        let token = required(&self.fencing_token, "fencing-token", variable::FENCING_TOKEN)?;
        let meta_etag = required(&self.meta_etag, "meta-etag", variable::META_ETAG)?;
        let mut named = MessageRef::new(queue, message, lease, positive(&token)?).meta_etag(meta_etag);
        if let Some(namespace) = self.at.namespace(variables)? {
            named = named.namespace(namespace);
        }
        if let Some(lease) = given(self.state_lease.as_deref(), variable::STATE_LEASE, variables) {
            let token = required(
                &self.state_fencing_token,
                "state-fencing-token",
                variable::STATE_FENCING_TOKEN,
            )?;
            named = named.state_lease(lease, positive(&token)?);
        }
        Ok(named)
    }
}

fn positive(token: &str) -> Result<i64, CliError> {
    let number = token.parse().ok().filter(|token| 0 < *token);
    number.ok_or_else(|| CliError::new(format!("fencing token {token:?}: expected a positive integer")))
}
