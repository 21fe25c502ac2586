//! Transactions over several keys.

pub mod rules;
