//! Several clusters, one controller: each has a loop and a store of its own, and the API finds the one that is meant.
//!
//! Decides nothing. What belongs to no cluster (tokens, the audit log, answers under idempotency keys) is kept by the first one.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::ControllerHandle;
use crate::api::authentication::{Caller, Identity, TokenDigest};
use crate::api::controller::{ControllerHandler, no_channel};
use crate::api::listing::{Listing, Wanted};
use crate::api::notifications::ChannelDocument;
use crate::api::rendered::Rendered;
use crate::api::risk::{ModelList, PromoteRequest, RiskDocument};
use crate::api::tokens::{TokenDocument, TokenReply, TokenRequest};
use crate::api::webhook::AlertsReply;
use crate::api::wire::{
    BackupList, BackupRequest, ClusterStatus, DrillRequest, Explanation, FailoverRequest, MutationReply, NodeRequest,
    PauseRequest, Problem, RestoreRequest, RetrainRequest, SequenceRequest, SwitchoverRequest,
};
use crate::domain::alert::Alert;
use crate::domain::clock::WallTime;
use crate::domain::command::{HeartbeatReply, ProxyAssignment};
use crate::domain::incident::IncidentReport;
use crate::domain::operation::Operation;
use crate::domain::readiness::Readiness;
use crate::domain::report::{ProxyReport, Report};
use crate::domain::sequence::Sequence;
use crate::domain::trail::{AuditEntry, AuditRow, EventRow};

/// The API of a controller with several clusters.
pub struct Clusters {
    first: ControllerHandle,
    all: BTreeMap<String, ControllerHandle>,
}

impl Clusters {
    /// Answers for `first`, which also keeps what belongs to no cluster, and for `others`.
    pub fn new(first: ControllerHandle, others: Vec<ControllerHandle>) -> Self {
        let handles = std::iter::once(first.clone()).chain(others);
        Self { all: handles.map(|handle| (handle.cluster().to_string(), handle)).collect(), first }
    }

    fn of(&self, cluster: &str) -> Result<&ControllerHandle, Problem> {
        self.all.get(cluster).ok_or_else(|| {
            let known: Vec<&str> = self.all.keys().map(String::as_str).take(NAMED_MAX).collect();
            let more = if self.all.len() > NAMED_MAX { ", …" } else { "" };
            Problem::not_found(format!("no cluster {cluster:?} here: this controller keeps {}{more}", known.join(", ")))
        })
    }

    /// Whose operation it is.
    async fn owner(&self, id: &str) -> Result<&ControllerHandle, Problem> {
        for handle in self.all.values() {
            match handle.operation(id).await {
                Ok(_) => return Ok(handle),
                Err(problem) if problem.status == 404 => {}
                Err(problem) => return Err(problem),
            }
        }
        Err(Problem::not_found(format!("no operation {id:?}: see stormglass operation list")))
    }

    /// The cluster whose models are meant: the only one that predicts.
    fn predicting(&self) -> Result<&ControllerHandle, Problem> {
        let mut predicting = self.all.values().filter(|handle| handle.predicts());
        match (predicting.next(), predicting.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Ok(&self.first),
            (Some(_), Some(_)) => Err(Problem::refused(
                "several clusters of this controller have a predictor, and this request names none: give them controllers of their \
                 own, or write predictor.model into their configuration",
                Vec::new(),
            )),
        }
    }
}

/// So many clusters are named to whoever asked for one that is not there.
const NAMED_MAX: usize = 10;

#[async_trait]
impl ControllerHandler for Clusters {
    async fn heartbeat(&self, report: Report) -> Result<HeartbeatReply, Problem> {
        self.of(report.cluster.as_str())?.heartbeat(report).await
    }

    async fn proxy_heartbeat(&self, report: ProxyReport) -> Result<ProxyAssignment, Problem> {
        self.of(report.cluster.as_str())?.proxy_heartbeat(report).await
    }

    async fn clusters(&self) -> Result<Vec<ClusterStatus>, Problem> {
        let mut found = Vec::new();
        for (name, handle) in &self.all {
            found.push(handle.status(name).await?.document.clone());
        }
        Ok(found)
    }

    async fn status(&self, cluster: &str) -> Result<Arc<Rendered<ClusterStatus>>, Problem> {
        self.of(cluster)?.status(cluster).await
    }

    async fn explain(&self, cluster: &str) -> Result<Explanation, Problem> {
        self.of(cluster)?.explain(cluster).await
    }

    async fn doctor(&self, cluster: &str) -> Result<Readiness, Problem> {
        self.of(cluster)?.doctor(cluster).await
    }

    async fn risk(&self, cluster: &str) -> Result<RiskDocument, Problem> {
        self.of(cluster)?.risk(cluster).await
    }

    async fn models(&self) -> Result<ModelList, Problem> {
        self.predicting()?.models().await
    }

    async fn promote_model(&self, request: PromoteRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.predicting()?.promote_model(request, caller).await
    }

    async fn roll_back_model(&self, caller: &Caller) -> Result<MutationReply, Problem> {
        self.predicting()?.roll_back_model(caller).await
    }

    async fn notifications(&self) -> Result<Vec<ChannelDocument>, Problem> {
        let mut found = Vec::new();
        for handle in self.all.values() {
            found.extend(handle.notifications().await?);
        }
        Ok(found)
    }

    async fn test_notification(&self, name: &str, caller: &Caller) -> Result<MutationReply, Problem> {
        let mut known = Vec::new();
        for handle in self.all.values() {
            let channels = handle.notifications().await?;
            if channels.iter().any(|channel| channel.name == name) {
                return handle.test_notification(name, caller).await;
            }
            known.extend(channels.into_iter().map(|channel| channel.name));
        }
        let known: Vec<&str> = known.iter().map(String::as_str).take(NAMED_MAX).collect();
        Err(no_channel(name, &known))
    }

    async fn events(&self, cluster: &str, limit: usize) -> Result<Vec<EventRow>, Problem> {
        self.of(cluster)?.events(cluster, limit).await
    }

    async fn operations(&self, cluster: Option<&str>, limit: usize) -> Result<Vec<Operation>, Problem> {
        if let Some(cluster) = cluster {
            return self.of(cluster)?.operations(Some(cluster), limit).await;
        }
        let mut found = Vec::new();
        for (name, handle) in &self.all {
            found.extend(handle.operations(Some(name), limit).await?);
        }
        found.sort_by(|one, other| (other.begun_wall, &other.id).cmp(&(one.begun_wall, &one.id)));
        found.truncate(limit);
        Ok(found)
    }

    async fn operation(&self, id: &str) -> Result<Operation, Problem> {
        self.owner(id).await?.operation(id).await
    }

    async fn report(&self, id: &str) -> Result<IncidentReport, Problem> {
        self.owner(id).await?.report(id).await
    }

    async fn cancel(&self, id: &str, caller: &Caller) -> Result<MutationReply, Problem> {
        self.owner(id).await?.cancel(id, caller).await
    }

    async fn switchover(
        &self,
        cluster: &str,
        request: SwitchoverRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem> {
        self.of(cluster)?.switchover(cluster, request, caller).await
    }

    async fn failover(
        &self,
        cluster: &str,
        request: FailoverRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem> {
        self.of(cluster)?.failover(cluster, request, caller).await
    }

    async fn fence(&self, cluster: &str, request: NodeRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.of(cluster)?.fence(cluster, request, caller).await
    }

    async fn unfence(&self, cluster: &str, request: NodeRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.of(cluster)?.unfence(cluster, request, caller).await
    }

    async fn rejoin(&self, cluster: &str, request: NodeRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.of(cluster)?.rejoin(cluster, request, caller).await
    }

    async fn sequences(&self, cluster: &str) -> Result<Vec<Sequence>, Problem> {
        self.of(cluster)?.sequences(cluster).await
    }

    async fn begin_sequence(
        &self,
        cluster: &str,
        name: &str,
        request: SequenceRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem> {
        self.of(cluster)?.begin_sequence(cluster, name, request, caller).await
    }

    async fn backups(&self, cluster: &str) -> Result<BackupList, Problem> {
        self.of(cluster)?.backups(cluster).await
    }

    async fn backup(&self, cluster: &str, request: BackupRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.of(cluster)?.backup(cluster, request, caller).await
    }

    async fn drill(&self, cluster: &str, request: DrillRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.of(cluster)?.drill(cluster, request, caller).await
    }

    async fn retrain(&self, cluster: &str, request: RetrainRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.of(cluster)?.retrain(cluster, request, caller).await
    }

    async fn restore(&self, cluster: &str, request: RestoreRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.of(cluster)?.restore(cluster, request, caller).await
    }

    async fn pause(&self, cluster: &str, request: PauseRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.of(cluster)?.pause(cluster, request, caller).await
    }

    async fn resume(&self, cluster: &str, caller: &Caller) -> Result<MutationReply, Problem> {
        self.of(cluster)?.resume(cluster, caller).await
    }

    /// Each alert goes to the cluster that its label names; the first one says what is said of the others.
    async fn alerts(&self, alerts: Vec<Alert>, caller: &Caller) -> Result<AlertsReply, Problem> {
        let mut of_each: BTreeMap<&str, Vec<Alert>> = BTreeMap::new();
        for alert in alerts {
            let named = alert.labels.get("cluster").and_then(|name| self.all.get_key_value(name));
            let cluster = named.map_or(self.first.cluster().as_str(), |(name, _)| name.as_str());
            of_each.entry(cluster).or_default().push(alert);
        }
        let mut sum = AlertsReply::new();
        let mut failure = None;
        for (cluster, alerts) in of_each {
            match self.of(cluster)?.alerts(alerts, caller).await {
                Ok(reply) => sum.add(&reply),
                // Alertmanager sends all of them again; what was taken is known by then.
                Err(problem) => failure = Some(problem),
            }
        }
        failure.map_or(Ok(sum), Err)
    }

    async fn page_of_events(&self, cluster: &str, wanted: Wanted) -> Result<Listing<EventRow>, Problem> {
        self.of(cluster)?.page_of_events(cluster, wanted).await
    }

    async fn page_of_operations(&self, cluster: Option<&str>, wanted: Wanted) -> Result<Listing<Operation>, Problem> {
        match (cluster, wanted.before) {
            (Some(cluster), _) => self.of(cluster)?.page_of_operations(Some(cluster), wanted).await,
            (None, None) => Ok(Listing { rows: self.operations(None, wanted.limit).await?, next: None }),
            (None, Some(_)) => Err(Problem::bad_request(
                "before counts within one cluster: page through /api/v1/clusters/{cluster}/operations",
            )),
        }
    }

    async fn page_of_audit(&self, wanted: Wanted) -> Result<Listing<AuditEntry>, Problem> {
        self.first.page_of_audit(wanted).await
    }

    async fn claim_reply(&self, key: &str, body: String) -> Result<Option<String>, Problem> {
        self.first.claim_reply(key, body).await
    }

    async fn keep_reply(&self, key: &str, body: Option<String>) {
        self.first.keep_reply(key, body).await;
    }

    fn stored_token(&self, digest: &TokenDigest) -> Result<Option<Identity>, Problem> {
        self.first.stored_token(digest)
    }

    async fn tokens(&self) -> Result<Vec<TokenDocument>, Problem> {
        self.first.tokens().await
    }

    async fn create_token(&self, request: TokenRequest, caller: &Caller) -> Result<TokenReply, Problem> {
        self.first.create_token(request, caller).await
    }

    async fn revoke_token(&self, name: &str, caller: &Caller) -> Result<MutationReply, Problem> {
        self.first.revoke_token(name, caller).await
    }

    async fn record_audit(&self, row: AuditRow) {
        self.first.record_audit(row).await;
    }

    fn ready(&self) -> Result<(), String> {
        self.all.values().try_for_each(|handle| handle.ready())
    }

    /// One registry for all: every series names its cluster.
    fn metrics(&self) -> String {
        self.first.metrics()
    }

    fn wall(&self) -> WallTime {
        self.first.wall()
    }
}
