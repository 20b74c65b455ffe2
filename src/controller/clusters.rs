//! Several clusters, one controller: each has a loop and a store of its own, and the API finds the one that is meant. They come and
//! go while it runs.
//!
//! Decides nothing. What belongs to no cluster (tokens, the audit log, answers under idempotency keys) is kept by the first one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::ControllerHandle;
use super::keeping::{self, Kept, Workshop};
use super::replies;
use crate::api::authentication::{Caller, Identity, TokenDigest};
use crate::api::clusters::{ClusterAddRequest, ClusterDefinition, ClusterRemoveRequest};
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
use crate::config::ControllerConfig;
use crate::domain::alert::Alert;
use crate::domain::clock::WallTime;
use crate::domain::command::{HeartbeatReply, ProxyAssignment};
use crate::domain::incident::IncidentReport;
use crate::domain::operation::Operation;
use crate::domain::readiness::Readiness;
use crate::domain::report::{ProxyReport, Report};
use crate::domain::sequence::Sequence;
use crate::domain::trail::{AuditEntry, AuditRow, EventRow};
use crate::ports::DefinitionStore;

/// The API of a controller with several clusters, or with one to which others may come.
pub struct Clusters {
    first: Arc<ControllerHandle>,
    /// The first one is among them.
    all: RwLock<BTreeMap<String, Kept>>,
    definitions: Arc<dyn DefinitionStore>,
    workshop: Arc<dyn Workshop>,
    /// Clusters come and go one after the other.
    changing: Mutex<()>,
}

impl Clusters {
    /// Answers for `first`, which also keeps what belongs to no cluster, and for `others`.
    pub fn new(
        first: Kept,
        others: Vec<Kept>,
        definitions: Arc<dyn DefinitionStore>,
        workshop: Arc<dyn Workshop>,
    ) -> Self {
        let handle = first.handle.clone();
        let all = std::iter::once(first).chain(others).map(|kept| (kept.handle.cluster().to_string(), kept)).collect();
        Self { first: handle, all: RwLock::new(all), definitions, workshop, changing: Mutex::new(()) }
    }

    /// Every cluster, in the order of their names, as it is now.
    fn kept(&self) -> Vec<Arc<ControllerHandle>> {
        self.map().values().map(|kept| kept.handle.clone()).collect()
    }

    fn map(&self) -> RwLockReadGuard<'_, BTreeMap<String, Kept>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Kept>)) {
        change(&mut self.all.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn of(&self, cluster: &str) -> Result<Arc<ControllerHandle>, Problem> {
        let all = self.map();
        all.get(cluster).map(|kept| kept.handle.clone()).ok_or_else(|| {
            let known: Vec<&str> = all.keys().map(String::as_str).take(NAMED_MAX).collect();
            let more = if all.len() > NAMED_MAX { ", …" } else { "" };
            Problem::not_found(format!("no cluster {cluster:?} here: this controller keeps {}{more}", known.join(", ")))
        })
    }

    /// Whose operation it is.
    async fn owner(&self, id: &str) -> Result<Arc<ControllerHandle>, Problem> {
        for handle in self.kept() {
            match handle.operation(id).await {
                Ok(_) => return Ok(handle),
                Err(problem) if problem.status == 404 => {}
                Err(problem) => return Err(problem),
            }
        }
        Err(Problem::not_found(format!("no operation {id:?}: see stormglass operation list")))
    }

    /// The cluster whose models are meant: the only one that predicts.
    fn predicting(&self) -> Result<Arc<ControllerHandle>, Problem> {
        let mut predicting = self.kept().into_iter().filter(|handle| handle.predicts());
        match (predicting.next(), predicting.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Ok(self.first.clone()),
            (Some(_), Some(_)) => Err(Problem::refused(
                "several clusters of this controller have a predictor, and this request names none: give them controllers of their \
                 own, or write predictor.model into their configuration",
                Vec::new(),
            )),
        }
    }

    fn is_first(&self, handle: &ControllerHandle) -> bool {
        handle.cluster() == self.first.cluster()
    }

    /// What `text` defines, if it can be kept beside the clusters that there are.
    async fn examined(&self, text: String) -> Result<ControllerConfig, Problem> {
        let wrong = |problems: Vec<String>| Problem::bad_request(format!("the definition: {}", problems.join("; ")));
        let config = self.workshop.read(text).await.map_err(wrong)?;
        let kept = self.kept();
        let found = keeping::conflicts(&config, kept.iter().map(|handle| (handle.cluster(), handle.defined())));
        if found.is_empty() { Ok(config) } else { Err(Problem::refused(found.join("; "), Vec::new())) }
    }

    /// The definition of a cluster that is not let go comes back to its place.
    async fn kept_after_all(&self, aside: &Path, file: &Path, problem: Problem) -> Problem {
        match self.definitions.take_back(aside, file).await {
            Ok(()) => problem,
            Err(error) => Problem::internal(format!(
                "{}; its definition is {} now, rename it to {} before the next start: {error}",
                problem.detail,
                aside.display(),
                file.display()
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
        for handle in self.kept() {
            found.push(handle.status(handle.cluster().as_str()).await?.document.clone());
        }
        Ok(found)
    }

    async fn status(&self, cluster: &str) -> Result<Arc<Rendered<ClusterStatus>>, Problem> {
        self.of(cluster)?.status(cluster).await
    }

    async fn definition(&self, cluster: &str) -> Result<ClusterDefinition, Problem> {
        let handle = self.of(cluster)?;
        Ok(handle.definition_document(self.is_first(&handle)))
    }

    async fn add_cluster(&self, request: ClusterAddRequest, _caller: &Caller) -> Result<MutationReply, Problem> {
        let _one_after_the_other = self.changing.lock().await;
        let config = self.examined(request.definition.clone()).await?;
        let cluster = &config.cluster.name;
        let file = self.definitions.place(cluster);
        if file.exists() {
            let problem = format!(
                "there is a file {} already, which this controller did not read: look at it, and move it away",
                file.display()
            );
            return Err(Problem::refused(problem, Vec::new()));
        }
        let store = self.workshop.store(cluster);
        let mut expect = vec![format!("its definition is {}, its store {}", file.display(), store.display())];
        if store.exists() {
            expect.push(
                "there is a store of a cluster of that name: its record, operations and events are gone on with"
                    .to_owned(),
            );
        }
        if request.dry_run {
            let message = format!("would keep the cluster {cluster}");
            return Ok(MutationReply { expect, ..replies::done(message) });
        }
        let failed = |problem: String| Problem::unavailable(format!("the cluster {cluster} is not kept: {problem}"));
        self.definitions.keep(&file, &request.definition).await.map_err(|error| failed(error.to_string()))?;
        let kept = match self.workshop.start(&config, &file).await {
            Ok(kept) => kept,
            Err(problem) => {
                return Err(match self.definitions.forget(&file).await {
                    Ok(()) => failed(problem),
                    Err(error) => Problem::internal(format!(
                        "the cluster {cluster} is not kept: {problem}; its definition stays and would be read at the next start: {error}"
                    )),
                });
            }
        };
        tracing::info!(%cluster, file = %file.display(), "a cluster was added, and is kept from now on");
        self.change(|all| drop(all.insert(cluster.to_string(), kept)));
        Ok(MutationReply { expect, ..replies::done(format!("the cluster {cluster} is kept from now on")) })
    }

    async fn remove_cluster(
        &self,
        cluster: &str,
        request: ClusterRemoveRequest,
        _caller: &Caller,
    ) -> Result<MutationReply, Problem> {
        let _one_after_the_other = self.changing.lock().await;
        let handle = self.of(cluster)?;
        let (definition, store) = (handle.defined(), self.workshop.store(handle.cluster()));
        if self.is_first(&handle) {
            let problem = format!(
                "{cluster} is the first cluster of this controller, whose store holds its tokens and its audit log: it is kept for as \
                 long as the controller runs ({})",
                definition.file.display()
            );
            return Err(Problem::refused(problem, Vec::new()));
        }
        let mut expect = handle.farewell().await?;
        if request.dry_run {
            expect.push(format!(
                "{} gets another name; the store {} stays",
                definition.file.display(),
                store.display()
            ));
            return Ok(MutationReply {
                expect,
                ..replies::done(format!("would keep the cluster {cluster} no longer"))
            });
        }
        let at = self.wall();
        let aside = self
            .definitions
            .put_aside(&definition.file, at)
            .await
            .map_err(|error| Problem::unavailable(format!("the cluster {cluster} is kept as before: {error}")))?;
        if let Err(problem) = handle.retire().await {
            return Err(self.kept_after_all(&aside, &definition.file, problem).await);
        }
        let mut left = None;
        self.change(|all| left = all.remove(cluster));
        if let Some(kept) = left {
            // Whoever listens may have ended already.
            let _ = kept.stop.send(true);
        }
        handle.gone().await;
        handle.registry().forget_cluster(handle.cluster());
        self.workshop.let_go(handle.cluster());
        tracing::warn!(cluster, aside = %aside.display(), "a cluster was removed: its nodes go on without this controller");
        expect.push(format!("its definition is {} now; its store {} stays", aside.display(), store.display()));
        Ok(MutationReply { expect, ..replies::done(format!("the cluster {cluster} is kept no longer")) })
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
        for handle in self.kept() {
            found.extend(handle.notifications().await?);
        }
        Ok(found)
    }

    async fn test_notification(&self, name: &str, caller: &Caller) -> Result<MutationReply, Problem> {
        let mut known = Vec::new();
        for handle in self.kept() {
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
        for handle in self.kept() {
            found.extend(handle.operations(None, limit).await?);
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
        let mut of_each: BTreeMap<String, Vec<Alert>> = BTreeMap::new();
        for alert in alerts {
            let named = alert.labels.get("cluster").filter(|name| self.map().contains_key(*name));
            let cluster = named.map_or(self.first.cluster().as_str(), String::as_str).to_owned();
            of_each.entry(cluster).or_default().push(alert);
        }
        let mut sum = AlertsReply::new();
        let mut failure = None;
        for (cluster, alerts) in of_each {
            match self.of(&cluster)?.alerts(alerts, caller).await {
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
            (None, _) if self.map().len() == 1 => self.first.page_of_operations(None, wanted).await,
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
        self.kept().iter().try_for_each(|handle| handle.ready())
    }

    /// One registry for all: every series names its cluster.
    fn metrics(&self) -> String {
        self.first.metrics()
    }

    fn wall(&self) -> WallTime {
        self.first.wall()
    }
}
