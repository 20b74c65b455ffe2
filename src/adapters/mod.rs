//! The real outside: one folder for each neighbour, each an implementation of a port.
//!
//! Decisions never enter.

pub mod agent_http;
pub mod agent_memory;
pub mod control;
pub mod controller_link;
pub mod definitions;
pub mod dns;
pub mod haproxy;
mod host_names;
pub mod models;
pub mod notifications;
pub mod openid;
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
pub mod vault;

/// An error and everything below it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        text.push_str(&format!(": {source}"));
        below = source.source();
    }
    text
}

/// True if what is sent to a URL, and what comes from there, can be read and changed on its way: it leaves this host without TLS.
fn is_readable_on_the_way(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let stays_here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    url.scheme() != "https" && !(url.scheme() == "http" && stays_here)
}
