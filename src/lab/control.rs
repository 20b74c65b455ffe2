//! The lab's own small client of the controller's API.
//!
//! Every request has a deadline; the lab measures and must not hang where the product does.

use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::layout::{Layout, url};
use crate::api::wire::{
    BackupRequest, ClusterStatus, FailoverRequest, MutationReply, NodeRequest, Problem, RestoreRequest,
    SwitchoverRequest,
};
use crate::domain::backup::BackupType;
use crate::domain::ids::{NodeName, OperationId};
use crate::domain::operation::Operation;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// A switchover's request is answered when it was begun; waiting for more is the caller's business.
const MUTATION_TIMEOUT: Duration = Duration::from_secs(15);

/// The controller of one lab.
#[derive(Clone)]
pub struct Controller {
    http: reqwest::Client,
    bases: Vec<String>,
    cluster: String,
    token: String,
}

/// Operations, bare or wrapped with the version of the document.
#[derive(Deserialize)]
#[serde(untagged)]
enum Operations {
    Bare(Vec<Operation>),
    Wrapped { operations: Vec<Operation> },
}

impl Controller {
    /// The controller of `layout`, asked as an operator.
    pub fn of(layout: &Layout) -> anyhow::Result<Self> {
        let file = layout.secret("operator");
        let token = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(1))
            .build()
            .context("make the HTTP client")?;
        Ok(Self {
            http,
            bases: layout.controllers().map(url).collect(),
            cluster: layout.cluster.to_string(),
            token: token.trim().to_owned(),
        })
    }

    /// What the controller says of the cluster.
    pub async fn status(&self) -> anyhow::Result<ClusterStatus> {
        self.get(&format!("/api/v1/clusters/{}", self.cluster)).await
    }

    /// The latest operations, with their journals; in no particular order.
    pub async fn history(&self) -> anyhow::Result<Vec<Operation>> {
        Ok(match self.get(&format!("/api/v1/clusters/{}/history", self.cluster)).await? {
            Operations::Bare(operations) | Operations::Wrapped { operations } => operations,
        })
    }

    /// Asks for a switchover to the best candidate.
    pub async fn switchover(&self) -> anyhow::Result<MutationReply> {
        self.post(&format!("/api/v1/clusters/{}/switchover", self.cluster), &SwitchoverRequest::default()).await
    }

    /// Asks for a switchover to a site.
    pub async fn switchover_to(&self, site: &str) -> anyhow::Result<MutationReply> {
        let request = SwitchoverRequest { site: Some(site.to_owned()), ..SwitchoverRequest::default() };
        self.post(&format!("/api/v1/clusters/{}/switchover", self.cluster), &request).await
    }

    /// Asks for a failover to a site, with everything that a human has to say where no controller remembers anything.
    pub async fn failover_by_oath(&self, site: &str) -> anyhow::Result<MutationReply> {
        let request = FailoverRequest {
            site: Some(site.to_owned()),
            accept_data_loss: true,
            old_primary_is_off: true,
            ..FailoverRequest::default()
        };
        self.post(&format!("/api/v1/clusters/{}/failover", self.cluster), &request).await
    }

    /// Keeps a node from accepting writes, which ends its PostgreSQL.
    pub async fn fence(&self, node: &NodeName) -> anyhow::Result<MutationReply> {
        self.post(&format!("/api/v1/clusters/{}/fence", self.cluster), &of_node(node)).await
    }

    /// Takes the fence back.
    pub async fn unfence(&self, node: &NodeName) -> anyhow::Result<MutationReply> {
        self.post(&format!("/api/v1/clusters/{}/unfence", self.cluster), &of_node(node)).await
    }

    /// One operation with its journal.
    pub async fn operation(&self, id: &OperationId) -> anyhow::Result<Operation> {
        self.get(&format!("/api/v1/operations/{id}")).await
    }

    /// Asks for a backup.
    pub async fn backup(&self, backup_type: BackupType) -> anyhow::Result<MutationReply> {
        let request = BackupRequest { backup_type: Some(backup_type), dry_run: false };
        self.post(&format!("/api/v1/clusters/{}/backup", self.cluster), &request).await
    }

    /// Asks for a restore of the whole cluster.
    pub async fn restore(&self, request: &RestoreRequest) -> anyhow::Result<MutationReply> {
        self.post(&format!("/api/v1/clusters/{}/restore", self.cluster), request).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.send(|base| self.http.get(format!("{base}{path}")).timeout(REQUEST_TIMEOUT)).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> anyhow::Result<T> {
        self.send(|base| self.http.post(format!("{base}{path}")).json(body).timeout(MUTATION_TIMEOUT)).await
    }

    /// Asks every controller at once: of several, only the leader answers with success, and a stopped one not at all.
    async fn send<T: DeserializeOwned>(&self, request: impl Fn(&str) -> reqwest::RequestBuilder) -> anyhow::Result<T> {
        let mut answers: FuturesUnordered<_> = self.bases.iter().map(|base| self.send_one(request(base))).collect();
        let mut problems = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => problems.push(format!("{error:#}")),
            }
        }
        bail!("{}", problems.join("; "))
    }

    async fn send_one<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> anyhow::Result<T> {
        let response = request.bearer_auth(&self.token).send().await.context("ask the controller")?;
        let status = response.status();
        let body = response.bytes().await.context("read the controller's answer")?;
        if status.is_success() {
            return serde_json::from_slice(&body).context("understand the controller's answer");
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => bail!("the controller answered {status}: {}: {}", problem.title, problem.detail),
            Err(_) => bail!("the controller answered {status}"),
        }
    }
}

fn of_node(node: &NodeName) -> NodeRequest {
    NodeRequest { node: node.clone(), dry_run: false, reclone: false }
}

/// What `GET url` is answered with.
pub async fn text(url: &str) -> anyhow::Result<String> {
    let client =
        reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build().context("make the HTTP client")?;
    let response = client.get(url).send().await.and_then(reqwest::Response::error_for_status);
    response.with_context(|| format!("ask {url}"))?.text().await.with_context(|| format!("read the answer of {url}"))
}

/// True if `GET url` is answered with success in time.
pub async fn answers(url: &str) -> bool {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(1)).build();
    match client {
        Ok(client) => client.get(url).send().await.is_ok_and(|response| response.status().is_success()),
        Err(_) => false,
    }
}
