//! Reaches agents over HTTP: `ports::NodeControl` and `ports::ProxyControl`.
//!
//! Connections are kept open, so that a message of a failover costs one round trip. What an error says about delivery
//! is the point of this file: *unreachable* is claimed only where no byte of the message can have arrived.

mod primary_probe;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::HeaderValue;
use reqwest::{Client, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::agent_http::{COMMANDS_IDLE, Credentials};
use crate::domain::backup::Repository;
use crate::domain::command::{Assignment, CommandEnvelope, CommandReply, ProxyAssignment, ProxyReply, WAIT_HEADER};
use crate::domain::ids::{NodeName, ProxyName};
use crate::ports::control::{ControlError, NodeControl, ProxyControl};
pub use primary_probe::TcpPrimaryProbe;

/// How long a connection may take to come about; a host in the same region answers in a hundredth of it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest part of a strange answer that is repeated to people.
const QUOTE_LENGTH_MAX: usize = 300;

/// Settings that no message could be sent with.
#[derive(Debug, thiserror::Error)]
pub enum ControlSetupError {
    /// The address of an agent is no URL.
    #[error(
        "the agent of {agent} has the address {url:?}, which is not a URL such as http://10.0.0.5:8008: correct it in the configuration"
    )]
    NotAUrl {
        /// Node or proxy.
        agent: String,
        /// What was configured.
        url: String,
    },
    /// The token does not fit into a header.
    #[error("the agents' token has characters that an HTTP header cannot carry: use printable ASCII")]
    Token,
    /// The client cannot be made.
    #[error("prepare the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// Reaches every agent of a cluster.
pub struct HttpControl {
    client: Client,
    credentials: Credentials,
    nodes: BTreeMap<NodeName, String>,
    proxies: BTreeMap<ProxyName, String>,
}

impl HttpControl {
    /// Base URLs of the agents (`https://10.0.0.5:8008`), and what the controller shows them.
    pub fn new(
        nodes: BTreeMap<NodeName, String>,
        proxies: BTreeMap<ProxyName, String>,
        credentials: impl Into<Credentials>,
    ) -> Result<Self, ControlSetupError> {
        let credentials = credentials.into();
        if credentials.token().is_some_and(|token| HeaderValue::from_str(token).is_err()) {
            return Err(ControlSetupError::Token);
        }
        let client = credentials
            .client()
            .pool_idle_timeout(COMMANDS_IDLE)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(ControlSetupError::Client)?;
        Ok(Self { client, credentials, nodes: base_urls(nodes)?, proxies: base_urls(proxies)? })
    }

    /// Reaches the agents of another cluster, with the same client and credentials.
    pub fn beside(
        &self,
        nodes: BTreeMap<NodeName, String>,
        proxies: BTreeMap<ProxyName, String>,
    ) -> Result<Self, ControlSetupError> {
        let (client, credentials) = (self.client.clone(), self.credentials.clone());
        Ok(Self { client, credentials, nodes: base_urls(nodes)?, proxies: base_urls(proxies)? })
    }

    /// Posts `message` to `path` of the agent of `name` and reads the answer.
    async fn post<M: Serialize + Sync>(
        &self,
        agent: &Agent<'_>,
        path: &str,
        message: &M,
        timeout: Duration,
        wait: Option<Duration>,
    ) -> Result<Vec<u8>, ControlError> {
        let Some(base) = agent.base else {
            return Err(agent.unreachable("it is not in the configuration".to_owned()));
        };
        let send = || {
            let request = self.client.post(format!("{base}{path}")).timeout(timeout).json(message);
            let request = self.credentials.sign(request);
            let request = match wait {
                Some(wait) => request.header(WAIT_HEADER, wait.as_millis().to_string()),
                None => request,
            };
            request.send()
        };
        let exchange = async {
            let answer = match send().await {
                // The agent closed a kept connection in the moment it was used. It may have read the message, but every
                // message may be repeated, and the answer to the second one tells more than none.
                Err(error) if !error.is_connect() && !error.is_timeout() => {
                    send().await.map_err(|again| agent.unknown(words(&again)))
                }
                Err(error) if error.is_connect() => Err(agent.unreachable(words(&error))),
                Err(error) => Err(agent.unknown(words(&error))),
                Ok(answer) => Ok(answer),
            }?;
            agent.read(answer).await
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(result) => result,
            Err(_) => Err(agent.unknown(format!("nothing came within {timeout:?}"))),
        }
    }

    fn node<'a>(&'a self, node: &'a NodeName) -> Agent<'a> {
        Agent { name: node.as_str(), base: self.nodes.get(node).map(String::as_str) }
    }

    fn proxy<'a>(&'a self, proxy: &'a ProxyName) -> Agent<'a> {
        Agent { name: proxy.as_str(), base: self.proxies.get(proxy).map(String::as_str) }
    }
}

fn base_urls<N: Ord + fmt::Display>(urls: BTreeMap<N, String>) -> Result<BTreeMap<N, String>, ControlSetupError> {
    let checked = urls.into_iter().map(|(name, url)| match Url::parse(&url) {
        Ok(parsed) if ["http", "https"].contains(&parsed.scheme()) && parsed.has_host() => {
            Ok((name, url.trim_end_matches('/').to_owned()))
        }
        _ => Err(ControlSetupError::NotAUrl { agent: name.to_string(), url }),
    });
    checked.collect()
}

/// Whom a message goes to.
struct Agent<'a> {
    name: &'a str,
    base: Option<&'a str>,
}

/// The part of a problem document that people need.
#[derive(Deserialize)]
struct ProblemDetail {
    detail: String,
}

impl Agent<'_> {
    fn url(&self) -> String {
        self.base.unwrap_or("(no address)").to_owned()
    }

    fn unreachable(&self, problem: String) -> ControlError {
        ControlError::Unreachable { agent: self.name.to_owned(), url: self.url(), problem }
    }

    fn unknown(&self, problem: String) -> ControlError {
        ControlError::Unknown { agent: self.name.to_owned(), url: self.url(), problem }
    }

    /// An answer's body, if it is a success. Only 4xx says that nothing was done.
    async fn read(&self, answer: Response) -> Result<Vec<u8>, ControlError> {
        let status = answer.status();
        let body = answer.bytes().await.map_err(|error| self.unknown(words(&error)))?;
        if status.is_success() {
            return Ok(body.into());
        }
        let said = match serde_json::from_slice::<ProblemDetail>(&body) {
            Ok(problem) => problem.detail,
            Err(_) => String::from_utf8_lossy(&body).chars().take(QUOTE_LENGTH_MAX).collect(),
        };
        let problem = format!("{} {said}", status.as_u16());
        if status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT {
            Err(ControlError::Rejected { agent: self.name.to_owned(), url: self.url(), problem })
        } else {
            Err(self.unknown(problem))
        }
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ControlError> {
        serde_json::from_slice(body).map_err(|error| {
            self.unknown(format!(
                "its answer is not understood ({error}): do agent and controller have the same version?"
            ))
        })
    }
}

/// An error with its causes: reqwest's own text leaves them out.
fn words(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[async_trait]
impl NodeControl for HttpControl {
    async fn command(
        &self,
        node: &NodeName,
        envelope: &CommandEnvelope,
        timeout: Duration,
    ) -> Result<CommandReply, ControlError> {
        let agent = self.node(node);
        // An agent that is at it still says so in time.
        let wait = timeout.mul_f64(0.75);
        agent.parse(&self.post(&agent, "/v1/command", envelope, timeout, Some(wait)).await?)
    }

    async fn assign(&self, node: &NodeName, assignment: &Assignment, timeout: Duration) -> Result<(), ControlError> {
        self.post(&self.node(node), "/v1/assignment", assignment, timeout, None).await.map(|_| ())
    }

    async fn backups(&self, node: &NodeName, timeout: Duration) -> Result<Repository, ControlError> {
        let agent = self.node(node);
        let Some(base) = agent.base else {
            return Err(agent.unreachable("it is not in the configuration".to_owned()));
        };
        let request = self.credentials.sign(self.client.get(format!("{base}/v1/backups"))).timeout(timeout);
        let answer = request.send().await.map_err(|error| agent.unknown(words(&error)))?;
        agent.parse(&agent.read(answer).await?)
    }
}

#[async_trait]
impl ProxyControl for HttpControl {
    async fn assign(
        &self,
        proxy: &ProxyName,
        assignment: &ProxyAssignment,
        timeout: Duration,
    ) -> Result<ProxyReply, ControlError> {
        let agent = self.proxy(proxy);
        agent.parse(&self.post(&agent, "/v1/proxy/assignment", assignment, timeout, None).await?)
    }

    async fn command(
        &self,
        proxy: &ProxyName,
        envelope: &CommandEnvelope,
        timeout: Duration,
    ) -> Result<CommandReply, ControlError> {
        let agent = self.proxy(proxy);
        agent.parse(&self.post(&agent, "/v1/command", envelope, timeout, None).await?)
    }
}

#[cfg(test)]
mod tests;
