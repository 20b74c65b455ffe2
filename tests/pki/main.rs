//! Certificates from `stormglass pki`, and what they open: the command itself, connections that outlive a renewal, the expiry, and
//! controllers and agents that know each other by nothing else.

mod command;
mod processes;
mod renewal;
#[path = "../support/pki.rs"]
mod support;
