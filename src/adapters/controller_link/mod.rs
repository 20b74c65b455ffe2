//! The way from an agent to its controllers, over HTTP with kept-open connections.
//!
//! Every controller is asked at once, so that a dead one costs nothing; one that does not lead answers 503 and is not
//! listened to.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::agent_http::{Credentials, Silence, root_cause};
use crate::domain::command::{HeartbeatReply, ProxyAssignment};
use crate::domain::ids::ClusterName;
use crate::domain::report::{ProxyReport, Report};
use crate::ports::agent::{ControllerLink, LinkError};

/// Reaches controllers by their base URLs.
pub struct HttpControllerLink {
    client: reqwest::Client,
    controllers: Vec<String>,
    credentials: Credentials,
    silence: Silence,
}

impl HttpControllerLink {
    /// `controllers` are base URLs such as `https://10.0.0.1:8432`.
    pub fn new(controllers: &[String], credentials: impl Into<Credentials>) -> Result<Self, reqwest::Error> {
        let credentials = credentials.into();
        let client = credentials.agent_client()?;
        let controllers = controllers.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        Ok(Self { client, controllers, credentials, silence: Silence::default() })
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        cluster: &ClusterName,
        path: &str,
        body: &(impl Serialize + Sync),
        timeout: Duration,
    ) -> Result<T, LinkError> {
        let mut answers: FuturesUnordered<_> = self
            .controllers
            .iter()
            .map(|controller| {
                self.ask_one::<T>(format!("{controller}/api/v1/clusters/{cluster}/{path}"), body, timeout)
            })
            .collect();
        let mut problems = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(answer) => {
                    self.silence.ended();
                    return Ok(answer);
                }
                Err(problem) => problems.push(problem),
            }
        }
        let problems = problems.join("; ");
        self.silence.lasts(&problems);
        Err(LinkError::NoAnswer { problems })
    }

    async fn ask_one<T: DeserializeOwned>(
        &self,
        url: String,
        body: &(impl Serialize + Sync),
        timeout: Duration,
    ) -> Result<T, String> {
        let request = self.credentials.sign(self.client.post(&url)).timeout(timeout).json(body);
        let sent = request.send().await;
        let response = sent.map_err(|error| format!("{url}: {}", root_cause(&error)))?;
        let status = response.status();
        if !status.is_success() {
            let text = response.text().await.unwrap_or_default();
            let detail: String = text.chars().take(300).collect();
            return Err(format!("{url}: {status} {detail}"));
        }
        response.json().await.map_err(|error| format!("{url}: {}", root_cause(&error)))
    }
}

#[async_trait]
impl ControllerLink for HttpControllerLink {
    async fn heartbeat(&self, report: &Report, timeout: Duration) -> Result<HeartbeatReply, LinkError> {
        self.ask(&report.cluster, "heartbeat", report, timeout).await
    }

    async fn proxy_heartbeat(&self, report: &ProxyReport, timeout: Duration) -> Result<ProxyAssignment, LinkError> {
        self.ask(&report.cluster, "proxy-heartbeat", report, timeout).await
    }
}
