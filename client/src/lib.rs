//! Blocking client for lockd.

#![forbid(unsafe_code)]

pub mod wire;
