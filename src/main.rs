//! The lockd daemon.

fn main() {}
