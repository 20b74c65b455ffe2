//! The way from a primary's agent to those of its standbys, over HTTP with kept-open connections.
//!
//! What may be promised is the agents' matter.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

use super::agent_http::{Credentials, root_cause};
use crate::domain::command::{PromiseReply, PromiseRequest};
use crate::domain::ids::NodeName;
use crate::ports::agent::{LinkError, PeerLink};

/// Reaches other agents by their base URLs.
pub struct HttpPeerLink {
    client: reqwest::Client,
    elsewhere: BTreeMap<NodeName, String>,
    credentials: Credentials,
}

impl HttpPeerLink {
    /// `elsewhere`: peers that this host reaches at another base URL than the controllers do.
    pub fn new(
        elsewhere: BTreeMap<NodeName, String>,
        credentials: impl Into<Credentials>,
    ) -> Result<Self, reqwest::Error> {
        let credentials = credentials.into();
        Ok(Self { client: credentials.agent_client()?, elsewhere, credentials })
    }

    async fn ask(&self, url: &str, request: &PromiseRequest, timeout: Duration) -> Result<PromiseReply, String> {
        let sent = self.credentials.sign(self.client.post(url)).timeout(timeout).json(request).send().await;
        let response = sent.map_err(|error| root_cause(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(status.to_string());
        }
        response.json().await.map_err(|error| root_cause(&error))
    }
}

#[async_trait]
impl PeerLink for HttpPeerLink {
    async fn promise(
        &self,
        peer: &NodeName,
        agent: &str,
        request: &PromiseRequest,
        timeout: Duration,
    ) -> Result<PromiseReply, LinkError> {
        let base = self.elsewhere.get(peer).map_or(agent, String::as_str).trim_end_matches('/');
        let url = format!("{base}/v1/promise");
        self.ask(&url, request, timeout)
            .await
            .map_err(|problem| LinkError::Peer { peer: peer.clone(), problem: format!("{url}: {problem}") })
    }
}
