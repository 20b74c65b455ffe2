//! What controllers and agents call each other with: kept-open connections, a token or a certificate, and the reason of a failure
//! in words.
//!
//! What is asked, and what an answer means, never enters.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
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

/// Reasons that are told of one silence; more would be noise.
const REASONS_TOLD_MAX: usize = 8;

/// Tells once for each reason that no controller answers, and once that one does again: heartbeats are many. Of an agent that began
/// before its controller did, the second reason is the one that counts.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// The reasons that were told since a controller answered last.
    told: Mutex<Vec<String>>,
}

impl Silence {
    /// A controller answered.
    pub(super) fn ended(&self) {
        if !std::mem::take(&mut *self.told()).is_empty() {
            tracing::info!("a controller answers again");
        }
    }

    /// None did.
    pub(super) fn lasts(&self, problems: &str) {
        if self.is_news(problems) {
            tracing::warn!(problems, "no controller answers");
        }
    }

    fn is_news(&self, problems: &str) -> bool {
        let mut told = self.told();
        let is_news = told.len() < REASONS_TOLD_MAX && !told.iter().any(|one| one == problems);
        if is_news {
            told.push(problems.to_owned());
        }
        is_news
    }

    fn told(&self) -> MutexGuard<'_, Vec<String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_of_a_silence_is_told_once_and_anew_in_the_next_one() {
        let silence = Silence::default();
        let told = |problems: &str| silence.is_news(problems);
        assert!(told("connection refused") && !told("connection refused"));
        assert!(told("the certificate is that of agent p2") && !told("connection refused"));
        silence.ended();
        assert!(told("connection refused"));
        let more = (0..2 * REASONS_TOLD_MAX).filter(|number| told(&format!("reason {number}"))).count();
        assert_eq!(more, REASONS_TOLD_MAX - 1, "an endless row of reasons is cut off");
    }
}
