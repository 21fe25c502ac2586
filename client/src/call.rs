//! What one call may take from its caller: a deadline, a cancel switch, a correlation id.

use std::time::{Duration, Instant};

use crate::cancel::CancelToken;
use crate::clock;
use crate::error::Error;
use crate::wire::valid_correlation_id;

/// Options that every call accepts: see [`Client::with_options`](crate::Client::with_options) and
/// [`Session::with_options`](crate::Session::with_options). The default limits nothing.
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    deadline: Option<Instant>,
    cancel: Option<CancelToken>,
    correlation_id: Option<String>,
}

impl CallOptions {
    /// No deadline, no switch, no id.
    pub fn new() -> Self {
        Self::default()
    }

    /// The call ends with [`Error::DeadlineExceeded`] at this moment.
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// As [`deadline`](Self::deadline), counted from now.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.deadline = clock::now().checked_add(timeout);
        self
    }

    /// The call ends with [`Error::Cancelled`] when this token is cancelled, also in the middle of a read or a pause.
    pub fn cancel(mut self, token: CancelToken) -> Self {
        self.cancel = Some(token);
        self
    }

    /// Sends this correlation id and puts it on every log event of the call, as `cid`. An id that may not be sent (it has
    /// 1 to 128 characters of printable ASCII) is ignored.
    pub fn correlation_id(mut self, id: &str) -> Self {
        if let Some(id) = valid_correlation_id(id) {
            self.correlation_id = Some(id.to_owned());
        }
        self
    }

    pub(crate) fn cid(&self) -> Option<&str> {
        self.correlation_id.as_deref()
    }

    pub(crate) fn token(&self) -> Option<&CancelToken> {
        self.cancel.as_ref()
    }

    pub(crate) fn deadline_at(&self) -> Option<Instant> {
        self.deadline
    }

    /// The same options with the earlier of the two deadlines.
    pub(crate) fn within(&self, span: Duration) -> Self {
        let limit = clock::now().checked_add(span);
        let deadline = match (self.deadline, limit) {
            (Some(mine), Some(limit)) => Some(mine.min(limit)),
            (mine, limit) => mine.or(limit),
        };
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// Time left until the deadline; `None` without one.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|at| at.saturating_duration_since(clock::now()))
    }

    /// Fails once the caller has cancelled or the deadline has passed.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
            return Err(Error::Cancelled);
        }
        if self.remaining().is_some_and(|left| left.is_zero()) {
            return Err(Error::DeadlineExceeded);
        }
        Ok(())
    }

    /// Pauses, cut short by cancellation or deadline, which are then the error.
    pub(crate) fn sleep(&self, pause: Duration) -> Result<(), Error> {
        self.check()?;
        let span = self.remaining().map_or(pause, |left| left.min(pause));
        match &self.cancel {
            Some(token) => {
                token.wait(span);
            }
            None => std::thread::sleep(span),
        }
        self.check()
    }
}
