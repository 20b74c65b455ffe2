//! The real outside: one folder for each neighbour, each an implementation of a port.
//!
//! Decisions never enter.

pub mod agent_http;
pub mod agent_memory;
pub mod control;
pub mod controller_link;
pub mod dns;
pub mod haproxy;
pub mod models;
pub mod notifications;
pub mod peer_link;
pub mod pgbackrest;
pub mod pgbouncer;
pub mod postgres;
pub mod prometheus;
pub mod steps;
pub mod store;
pub mod system;
pub mod tls;
pub mod training;
