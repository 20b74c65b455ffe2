//! HTTP from a proxy host: heartbeats to the controllers, `/primary` of the nodes' agents.
//!
//! Connections are kept; every request has its own time limit.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::{Client, StatusCode};

use crate::adapters::agent_http::{Credentials, Silence};
use crate::adapters::tls::Tls;
use crate::domain::command::ProxyAssignment;
use crate::domain::ids::{Address, ClusterName};
use crate::domain::report::ProxyReport;
use crate::ports::traffic::{NodeHealth, ProxyControllerLink};

/// Bytes of an error document that are worth showing.
const SHOWN_BYTES_MAX: usize = 200;

/// The controllers of one cluster.
#[derive(Debug)]
pub struct HttpControllerLink {
    client: Client,
    urls: Vec<String>,
    credentials: Credentials,
    silence: Silence,
}

impl HttpControllerLink {
    /// `controllers`: base URLs.
    pub fn new(
        controllers: &[String],
        cluster: &ClusterName,
        credentials: impl Into<Credentials>,
    ) -> Result<Self, reqwest::Error> {
        let urls = controllers
            .iter()
            .map(|base| format!("{}/api/v1/clusters/{cluster}/proxy-heartbeat", base.trim_end_matches('/')))
            .collect();
        let credentials = credentials.into();
        Ok(Self { client: credentials.agent_client()?, urls, credentials, silence: Silence::default() })
    }

    async fn tell(&self, url: &str, report: &ProxyReport, timeout: Duration) -> Result<ProxyAssignment, String> {
        let request = self.credentials.sign(self.client.post(url)).json(report).timeout(timeout);
        let response = request.send().await.map_err(|error| format!("{url}: {}", causes(&error)))?;
        let status = response.status();
        if status.is_success() {
            return response.json().await.map_err(|error| format!("{url}: {}", causes(&error)));
        }
        let body = response.text().await.unwrap_or_default();
        let shown: String = body.chars().take(SHOWN_BYTES_MAX).collect();
        Err(format!("{url} answered {status}: {shown}"))
    }
}

#[async_trait]
impl ProxyControllerLink for HttpControllerLink {
    async fn heartbeat(&self, report: &ProxyReport, timeout: Duration) -> Result<ProxyAssignment, String> {
        let mut answers: FuturesUnordered<_> = self.urls.iter().map(|url| self.tell(url, report, timeout)).collect();
        let mut problems = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(assignment) => {
                    self.silence.ended();
                    return Ok(assignment);
                }
                Err(problem) => problems.push(problem),
            }
        }
        let problems = problems.join("; ");
        self.silence.lasts(&problems);
        Err(if problems.is_empty() { "no controller is configured".to_owned() } else { problems })
    }
}

/// The agents of database hosts.
#[derive(Debug, Clone)]
pub struct HttpNodeHealth {
    client: Client,
    scheme: &'static str,
}

impl HttpNodeHealth {
    /// Needs no token: health paths are open. With a certificate, agents are asked over TLS.
    pub fn new(tls: Option<&Tls>) -> Result<Self, reqwest::Error> {
        let client = Credentials::new(None, tls).agent_client()?;
        Ok(Self { client, scheme: if tls.is_some() { "https" } else { "http" } })
    }
}

#[async_trait]
impl NodeHealth for HttpNodeHealth {
    async fn is_primary(&self, agent: &Address, timeout: Duration) -> Result<bool, String> {
        let answer = self.client.get(format!("{}://{agent}/primary", self.scheme)).timeout(timeout).send().await;
        answer.map(|response| response.status() == StatusCode::OK).map_err(|error| causes(&error))
    }
}

/// An error with its sources: reqwest's own words leave out why.
fn causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use axum::routing::post;
    use axum::{Json, Router};

    use super::*;
    use crate::domain::epoch::{Epoch, RecordNumber};
    use crate::domain::ids::{ProxyName, SiteName};

    const PATIENCE: Duration = Duration::from_secs(10);

    fn report() -> ProxyReport {
        ProxyReport {
            cluster: ClusterName::new("main").expect("valid"),
            proxy: ProxyName::new("proxy-a").expect("valid"),
            site: SiteName::new("site-a").expect("valid"),
            write_address: Address::new("10.0.0.9", 5432),
            sequence: 1,
            incarnation: "test".to_owned(),
            write_target: None,
            holding: true,
            epoch: Epoch(0),
            path: None,
            traffic: None,
            protection: None,
            error: None,
        }
    }

    async fn serve(router: Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    #[tokio::test]
    async fn the_controller_that_answers_is_heard_and_every_silent_one_is_named() {
        let path = "/api/v1/clusters/main/proxy-heartbeat";
        let leader = Router::new().route(
            path,
            post(async |headers: axum::http::HeaderMap, Json(report): Json<ProxyReport>| {
                assert_eq!(headers["authorization"], "Bearer secret");
                Json(ProxyAssignment {
                    cluster: report.cluster,
                    epoch: Epoch(7),
                    number: RecordNumber(8),
                    primary: None,
                    hold: true,
                    leader: "c1".to_owned(),
                    sequence: 1,
                    backends: None,
                })
            }),
        );
        let follower = Router::new().route(path, post(async || (StatusCode::SERVICE_UNAVAILABLE, "not the leader")));
        let cluster = ClusterName::new("main").expect("valid");
        let (leader, follower) = (serve(leader).await, serve(follower).await);
        let link = HttpControllerLink::new(&[follower.clone(), leader], &cluster, "secret").expect("client");
        assert_eq!(link.heartbeat(&report(), PATIENCE).await.expect("the leader answers").epoch, Epoch(7));

        let nobody = "http://127.0.0.1:1".to_owned();
        let link = HttpControllerLink::new(&[follower, nobody], &cluster, "secret").expect("client");
        let problem = link.heartbeat(&report(), PATIENCE).await.expect_err("none leads");
        assert!(problem.contains("503 Service Unavailable: not the leader"), "{problem}");
        assert!(problem.contains("127.0.0.1:1/api") && problem.contains("refused"), "{problem}");
    }
}
