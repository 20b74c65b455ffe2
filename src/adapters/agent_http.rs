//! What every HTTP client of an agent is made of: kept-open connections, and the reason of a failure in words.
//!
//! What is asked, and what an answer means, never enters.

use std::time::Duration;

/// Connections that are not used for this long are closed. Heartbeats come many times as often.
const IDLE: Duration = Duration::from_secs(90);

/// A client that waits for nothing but the other side.
pub(super) fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .tcp_nodelay(true)
        .no_proxy()
        .pool_idle_timeout(IDLE)
        .user_agent(concat!("stormglass-agent/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// reqwest's own text repeats the URL and hides the reason.
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
