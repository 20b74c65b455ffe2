//! What controllers and agents call each other with: kept-open connections, a token or a certificate, and the reason of a failure
//! in words.
//!
//! What is asked, and what an answer means, never enters.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::RequestBuilder;
use rustls::ClientConfig;

use super::host_names::HostNameResolver;
use super::tls::Tls;

/// A client's connections that are not used for this long are closed: heartbeats come many times as often.
const IDLE: Duration = Duration::from_secs(15);
/// The same for those on which a controller commands agents. The steps of an operation follow each other faster; and a controller of a
/// thousand clusters that starts would hold three thousand at once, with their buffers, for commands that come once a month.
pub(super) const COMMANDS_IDLE: Duration = Duration::from_secs(2);

/// How a process shows who it is: by the token that controllers and agents share, by its certificate, or both.
#[derive(Clone, Default)]
pub struct Credentials {
    token: Option<String>,
    tls: Option<ClientConfig>,
}

impl Credentials {
    /// A token, a certificate, or both: the token then counts.
    pub fn new(token: Option<String>, tls: Option<&Tls>) -> Self {
        Self { token, tls: tls.map(Tls::client) }
    }

    /// The token, if there is one.
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Adds the token, if there is one.
    pub(super) fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// A client that waits for nothing but the other side. A proxy of the environment would stand between the hosts of one cluster.
    pub(super) fn client(&self) -> reqwest::ClientBuilder {
        let builder = reqwest::Client::builder()
            .tcp_nodelay(true)
            .no_proxy()
            .pool_idle_timeout(IDLE)
            .dns_resolver(HostNameResolver);
        match &self.tls {
            Some(tls) => builder.tls_backend_preconfigured(tls.clone()),
            None => builder,
        }
    }

    /// The same for an agent.
    pub(super) fn agent_client(&self) -> Result<reqwest::Client, reqwest::Error> {
        self.client().user_agent(concat!("stormglass-agent/", env!("CARGO_PKG_VERSION"))).build()
    }
}

impl From<&str> for Credentials {
    fn from(token: &str) -> Self {
        Self::new(Some(token.to_owned()), None)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credentials(..)")
    }
}

/// Tells once that no controller answers, and why, and once that one does again: heartbeats are many.
#[derive(Debug, Default)]
pub(super) struct Silence(AtomicBool);

impl Silence {
    /// A controller answered.
    pub(super) fn ended(&self) {
        if self.0.swap(false, Ordering::Relaxed) {
            tracing::info!("a controller answers again");
        }
    }

    /// None did.
    pub(super) fn lasts(&self, problems: &str) {
        if !self.0.swap(true, Ordering::Relaxed) {
            tracing::warn!(problems, "no controller answers");
        }
    }
}

/// reqwest's own text repeats the URL and hides the reason.
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
