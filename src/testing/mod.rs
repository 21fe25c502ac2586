//! What tests against lockd need: real servers with their surroundings, and eyes to see what happened.
//!
//! lockd tests itself with these pieces, and a program that uses lockd can do the same. Nothing here pretends to be a
//! server: a [`Recorder`] only watches, a [`ChaosProxy`] only relays badly, a [`Watchdog`] only waits.
//!
//! | piece | for |
//! |---|---|
//! | [`TestServer`] | a real server in the test process, with clients |
//! | [`InProcess`] | just a client, its server hidden behind it |
//! | [`Recorder`] | asserting on the log of one client or server, entry by entry |
//! | [`LogCapture`] | counting some kinds of entries in a long log |
//! | [`TestingLogger`] | a verbose log that is only shown when the test fails |
//! | [`ChaosProxy`] | a slow, lossy, breaking connection |
//! | [`Watchdog`] | ending a hung test with a report |
//! | [`exclusive`], [`shared`] | keeping tests that measure time away from the others |
//! | [`close_profile`] | how test servers close |

mod capture;
mod chaos;
#[cfg(test)]
mod child;
pub mod close_profile;
mod entry;
mod in_process;
mod recorder;
mod server;
mod tape;
mod turns;
mod watchdog;

pub use capture::{CaptureOptions, LogCapture, PrintOnFailure, TestingLogger};
pub use chaos::{ChaosConfig, ChaosProxy};
pub use close_profile::{CloseDefaults, CloseOptions};
pub use entry::Entry;
pub use in_process::{InProcess, InProcessError};
pub use recorder::Recorder;
pub use server::{StartError, TestServer, TestServerBuilder};
pub use turns::{Turn, exclusive, shared};
pub use watchdog::Watchdog;
