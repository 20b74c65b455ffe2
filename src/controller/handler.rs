//! Answers the API: turns a question into an event for the loop, and the loop's answer into a document.
//!
//! Length: the trait has one method for each route, and each only asks the loop, the store or a neighbour.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};

use super::event_loop::{Event, Glance};
use super::notifications::{Notifications, Standing};
use super::prediction::Prediction;
use super::sequences::{self, SequenceAnswer, SequenceAsked, Sequences};
use super::tokens::Tokens;
use super::{ControllerParts, Definition, WaysIn};
use super::{backup, keeping, leading, models, replies, status};
use crate::api::authentication::{Caller, Identity, TokenDigest};
use crate::api::clusters::{ClusterAddRequest, ClusterDefinition, ClusterRemoveRequest};
use crate::api::controller::{ControllerHandler, no_channel, no_predictor};
use crate::api::listing::{Listing, Wanted};
use crate::api::notifications::ChannelDocument;
use crate::api::rendered::Rendered;
use crate::api::risk::{ModelList, PromoteRequest, RiskDocument};
use crate::api::tokens::{TokenDocument, TokenReply, TokenRequest};
use crate::api::webhook::AlertsReply;
use crate::api::wire::{
    BackupList, BackupRequest, ClusterStatus, DrillRequest, Explanation, FailoverRequest, LeaderAddress, MutationReply,
    NodeRequest, PauseRequest, Problem, RestoreRequest, RetrainRequest, SCHEMA_VERSION, SequenceRequest,
    SwitchoverRequest,
};
use crate::decide::doctor::{self, Patient};
use crate::decide::request::Request;
use crate::domain::alert::{AcceptedAlert, Alert};
use crate::domain::backup::RecoveryTarget;
use crate::domain::certificate::Protection;
use crate::domain::clock::WallTime;
use crate::domain::command::{HeartbeatReply, ProxyAssignment};
use crate::domain::ids::{ClusterName, OperationId, SiteName};
use crate::domain::incident::IncidentReport;
use crate::domain::name::NameRule;
use crate::domain::operation::{Operation, OperationKind};
use crate::domain::plan::Plan;
use crate::domain::policy::Policy;
use crate::domain::readiness::{ChannelFacts, Circumstances, Readiness, StackFacts};
use crate::domain::record::ScheduledSwitchover;
use crate::domain::report::{ProxyReport, Report};
use crate::domain::sequence::Sequence;
use crate::domain::trail::{AuditEntry, AuditRow, EventRow};
use crate::domain::view::Fact;
use crate::ports::{Card, Clock, Drawer, Leader, NodeControl, Page, Paged, Store, StoreError};
use crate::telemetry::metrics::ControllerMetrics;

/// A pause ends by itself after this, unless it was asked to last otherwise.
const PAUSE_DEFAULT: Duration = Duration::from_secs(3600);

/// A pause is a promise to look after the cluster: nobody does so for longer.
const PAUSE_MAX: Duration = Duration::from_secs(30 * 86_400);
/// How many of the newest operations are searched for what followed from one.
const RELATED_MAX: usize = 1000;
/// How long an operator's change may take to be stored.
const STORE_WAIT: Duration = Duration::from_secs(5);

/// The API's way to the loop.
#[derive(Clone)]
pub struct ControllerHandle {
    events: mpsc::Sender<Event>,
    name: String,
    cluster: ClusterName,
    definition: Arc<Definition>,
    policy: Policy,
    rule: Option<NameRule>,
    circumstances: Circumstances,
    protection: watch::Receiver<Protection>,
    sequences: Sequences,
    clock: Arc<dyn Clock>,
    store: Arc<dyn Store>,
    metrics: Arc<ControllerMetrics>,
    nodes: Arc<dyn NodeControl>,
    backups_from_standby: bool,
    has_backups: bool,
    ways: Arc<WaysIn>,
    alerts: mpsc::Sender<AcceptedAlert>,
    tokens: Arc<Tokens>,
    prediction: Option<Prediction>,
    stacks: watch::Receiver<Vec<StackFacts>>,
    channels: Notifications,
    standing: Arc<Standing>,
    /// As others see this controller, where several stand for the leadership.
    leader: Option<LeaderAddress>,
}

impl ControllerHandle {
    pub(super) fn new(
        events: mpsc::Sender<Event>,
        parts: &ControllerParts,
        store: Arc<dyn Store>,
        alerts: mpsc::Sender<AcceptedAlert>,
        tokens: Arc<Tokens>,
        stacks: watch::Receiver<Vec<StackFacts>>,
        standing: Arc<Standing>,
    ) -> Self {
        Self {
            events,
            name: parts.name.clone(),
            cluster: parts.cluster.clone(),
            definition: parts.definition.clone(),
            policy: parts.policy.clone(),
            rule: parts.name_service.as_ref().map(|kept| kept.rule.clone()),
            circumstances: parts.circumstances.clone(),
            protection: parts.protection.clone(),
            sequences: parts.sequences.clone(),
            clock: parts.clock.clone(),
            store,
            metrics: parts.metrics.clone(),
            nodes: parts.node_control.clone(),
            backups_from_standby: parts.backup.as_ref().is_some_and(|section| section.from_standby),
            has_backups: parts.backup.is_some(),
            ways: parts.ways.clone(),
            alerts,
            tokens,
            prediction: parts.prediction.clone(),
            stacks,
            channels: parts.notifications.clone(),
            standing,
            leader: None,
        }
    }

    /// The same, saying in every status that `own` leads.
    pub(super) fn announced(self, own: &Leader) -> Self {
        Self { leader: Some(leading::address(own)), ..self }
    }

    pub(super) fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// What the cluster is configured as.
    pub(super) fn defined(&self) -> &Definition {
        &self.definition
    }

    /// As the API shows it. `is_first`: tokens and audit log are in its store.
    pub(super) fn definition_document(&self, is_first: bool) -> ClusterDefinition {
        self.definition.document(&self.cluster, &self.policy, is_first)
    }

    /// What becomes of the cluster if it is let go now; refused while an operation is under way.
    pub(super) async fn farewell(&self) -> Result<Vec<String>, Problem> {
        let glance = self.glance().await?;
        match glance.operations.iter().find(|operation| !operation.status.is_final()) {
            Some(under_way) => Err(keeping::is_busy(under_way)),
            None => Ok(keeping::farewell(glance.view.record.as_ref(), &self.policy)),
        }
    }

    /// Ends the loop, unless an operation is under way. Nothing is decided for this cluster after an `Ok`.
    pub(super) async fn retire(&self) -> Result<(), Problem> {
        match self.ask(|reply| Event::Retire { reply }).await? {
            Some(under_way) => Err(keeping::is_busy(&under_way)),
            None => Ok(()),
        }
    }

    /// Returns once the loop has ended, or after a while that no loop needs.
    pub(super) async fn gone(&self) {
        if tokio::time::timeout(STORE_WAIT, self.events.closed()).await.is_err() {
            tracing::error!(cluster = %self.cluster, "the loop of a cluster that was let go has not ended");
        }
    }

    /// Counters and gauges of this controller.
    pub(super) fn registry(&self) -> &ControllerMetrics {
        &self.metrics
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }

    /// The memory that it writes to.
    pub fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    pub(super) fn ways(&self) -> &WaysIn {
        &self.ways
    }

    pub(super) fn configured_sequences(&self) -> &[Sequence] {
        &self.sequences.all
    }

    pub(super) fn inbox(&self) -> &mpsc::Sender<Event> {
        &self.events
    }

    pub(super) async fn queue_alert(&self, accepted: AcceptedAlert) -> Result<(), Problem> {
        self.alerts.send(accepted).await.map_err(|_| shutting_down())
    }

    /// The state as it is now.
    pub(super) async fn glance(&self) -> Result<Arc<Glance>, Problem> {
        self.ask(|reply| Event::Look { reply }).await
    }

    /// Plans a request and begins what follows from it.
    pub(super) async fn plan(&self, request: Request, origin: String) -> Result<(Plan, Option<Operation>), Problem> {
        self.ask(|reply| Event::Ask { request, origin, dry_run: false, reply }).await
    }

    pub(super) async fn ask_for_sequence(&self, asked: SequenceAsked) -> Result<SequenceAnswer, Problem> {
        self.ask(|reply| Event::Sequence { asked, reply }).await
    }

    /// The cluster as the doctor sees it, with what the store remembers of backups and drills.
    pub(super) async fn examine(&self) -> Result<Readiness, Problem> {
        let glance = self.glance().await?;
        let mut circumstances = self.circumstances.clone();
        circumstances.stacks = self.stacks.borrow().clone();
        circumstances.protection = self.protection.borrow().clone();
        if self.has_backups {
            let known = stored(self.store.list_operations(&self.cluster, backup::LOOKED_THROUGH).await)?;
            circumstances.backup = Some(backup::facts(&known));
        }
        let channels = self.standing.list(&self.channels).into_iter();
        circumstances.channels =
            channels.map(|channel| ChannelFacts { name: channel.name, problem: channel.problem }).collect();
        let (view, operations) = (&glance.view, &glance.operations[..]);
        let (policy, circumstances, cluster) = (&self.policy, &circumstances, self.cluster.as_str());
        Ok(doctor::examine(&Patient { view, policy, operations, circumstances, cluster }))
    }

    async fn ask<T>(&self, event: impl FnOnce(oneshot::Sender<T>) -> Event) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        self.events.send(event(reply)).await.map_err(|_| shutting_down())?;
        answer.await.map_err(|_| shutting_down())
    }

    /// For how long no configured agent has been heard, since this controller began to lead at most.
    pub(super) async fn silence(&self) -> Result<Duration, Problem> {
        let glance = self.ask(|reply| Event::Look { reply }).await?;
        let silences = glance.view.nodes.values().map(|node| match &node.report {
            Fact::Unknown { for_duration, .. } => *for_duration,
            Fact::Known { .. } | Fact::Absent => Duration::ZERO,
        });
        Ok(silences.min().unwrap_or_default())
    }

    async fn look(&self, cluster: &str) -> Result<Arc<Glance>, Problem> {
        self.check(cluster)?;
        self.ask(|reply| Event::Look { reply }).await
    }

    fn check(&self, cluster: &str) -> Result<(), Problem> {
        if cluster == self.cluster.as_str() {
            Ok(())
        } else {
            Err(Problem::not_found(format!("no cluster {cluster:?} here: this controller keeps {}", self.cluster)))
        }
    }

    async fn request(
        &self,
        cluster: &str,
        request: Request,
        caller: &Caller,
        dry_run: bool,
    ) -> Result<MutationReply, Problem> {
        self.check(cluster)?;
        let origin = caller.name.clone();
        let (plan, operation) = self.ask(|reply| Event::Ask { request, origin, dry_run, reply }).await?;
        if !plan.blocked_by.is_empty() {
            let why: Vec<String> = plan.blocked_by.iter().map(ToString::to_string).collect();
            return Err(Problem::refused(why.join("; "), plan.blocked_by));
        }
        Ok(replies::reply(plan, operation, dry_run))
    }
}

fn shutting_down() -> Problem {
    Problem::unavailable("the controller is shutting down")
}

fn stored<T>(answer: Result<T, StoreError>) -> Result<T, Problem> {
    answer.map_err(|error| Problem::internal(error.to_string()))
}

fn page(wanted: Wanted) -> Page {
    Page { limit: wanted.limit, before: wanted.before }
}

fn listing<T>(paged: Paged<T>) -> Listing<T> {
    Listing { rows: paged.rows, next: paged.next }
}

fn site(text: Option<String>) -> Result<Option<SiteName>, Problem> {
    text.map(SiteName::new).transpose().map_err(|error| Problem::bad_request(error.to_string()))
}

#[async_trait]
impl ControllerHandler for ControllerHandle {
    async fn heartbeat(&self, report: Report) -> Result<HeartbeatReply, Problem> {
        self.check(report.cluster.as_str())?;
        let (reply, answer) = oneshot::channel();
        let heard = Event::Heartbeat { report: Box::new(report), reply };
        self.events.send(heard).await.map_err(|_| shutting_down())?;
        // The loop leaves a report without an answer when the leadership may end before any lease: look elsewhere.
        answer.await.map_err(|_| {
            Problem::not_the_leader(
                "the store has not confirmed this controller's leadership for long enough to grant a lease: see its log",
                None,
            )
        })
    }

    async fn proxy_heartbeat(&self, report: ProxyReport) -> Result<ProxyAssignment, Problem> {
        self.check(report.cluster.as_str())?;
        self.ask(|reply| Event::ProxyHeartbeat { report: Box::new(report), reply }).await
    }

    async fn clusters(&self) -> Result<Vec<ClusterStatus>, Problem> {
        Ok(vec![self.status(self.cluster.as_str()).await?.document.clone()])
    }

    async fn status(&self, cluster: &str) -> Result<Arc<Rendered<ClusterStatus>>, Problem> {
        let glance = self.look(cluster).await?;
        let rendered = glance.status.get_or_init(|| {
            let document = status::document(&glance, cluster, &self.policy, &self.name, self.rule.as_ref());
            Rendered::of(ClusterStatus { leader: self.leader.clone(), ..document }).map(Arc::new)
        });
        rendered.clone()
    }

    async fn definition(&self, cluster: &str) -> Result<ClusterDefinition, Problem> {
        self.check(cluster)?;
        Ok(self.definition_document(true))
    }

    async fn add_cluster(&self, _: ClusterAddRequest, _: &Caller) -> Result<MutationReply, Problem> {
        Err(keeping::keeps_one_cluster(self.leader.is_some()))
    }

    async fn remove_cluster(
        &self,
        cluster: &str,
        _: ClusterRemoveRequest,
        _: &Caller,
    ) -> Result<MutationReply, Problem> {
        self.check(cluster)?;
        Err(keeping::keeps_one_cluster(self.leader.is_some()))
    }

    async fn explain(&self, cluster: &str) -> Result<Explanation, Problem> {
        let glance = self.look(cluster).await?;
        Ok(status::explanation(&glance, cluster, &self.policy))
    }

    async fn doctor(&self, cluster: &str) -> Result<Readiness, Problem> {
        self.check(cluster)?;
        self.examine().await
    }

    async fn risk(&self, cluster: &str) -> Result<RiskDocument, Problem> {
        let glance = self.look(cluster).await?;
        Ok(status::risks(&glance, cluster, &self.policy))
    }

    async fn models(&self) -> Result<ModelList, Problem> {
        let prediction = self.prediction()?;
        let glance = self.look(self.cluster.as_str()).await?;
        models::list(prediction, glance.predictor.clone().unwrap_or_default()).await
    }

    async fn promote_model(&self, request: PromoteRequest, _caller: &Caller) -> Result<MutationReply, Problem> {
        models::promote(models::changeable(self.prediction()?)?, &request.name).await
    }

    async fn roll_back_model(&self, _caller: &Caller) -> Result<MutationReply, Problem> {
        models::roll_back(models::changeable(self.prediction()?)?).await
    }

    async fn notifications(&self) -> Result<Vec<ChannelDocument>, Problem> {
        Ok(self.standing.list(&self.channels))
    }

    async fn test_notification(&self, name: &str, caller: &Caller) -> Result<MutationReply, Problem> {
        let Some(kept) = self.channels.iter().find(|kept| kept.channel.name == name) else {
            let known: Vec<&str> = self.channels.iter().map(|kept| kept.channel.name.as_str()).collect();
            return Err(no_channel(name, &known));
        };
        let epoch = self.glance().await?.view.record.as_ref().map_or_else(Default::default, |record| record.epoch);
        let message = kept.channel.trial(&self.cluster, epoch, self.clock.wall(), &caller.name);
        match kept.notifier.send(&message).await {
            Ok(()) => Ok(replies::done(format!("a test went out over {name}: look whether it arrived"))),
            Err(error) => Err(Problem::unavailable(format!("the test did not go out over {name}: {error}"))),
        }
    }

    async fn events(&self, cluster: &str, limit: usize) -> Result<Vec<EventRow>, Problem> {
        self.check(cluster)?;
        stored(self.store.list_events(&self.cluster, limit).await)
    }

    async fn operations(&self, cluster: Option<&str>, limit: usize) -> Result<Vec<Operation>, Problem> {
        if let Some(cluster) = cluster {
            self.check(cluster)?;
        }
        stored(self.store.list_operations(&self.cluster, limit).await)
    }

    async fn operation(&self, id: &str) -> Result<Operation, Problem> {
        // The one in memory is ahead of the stored one by the step under way.
        let glance = self.look(self.cluster.as_str()).await?;
        if let Some(running) = glance.operations.iter().find(|operation| operation.id.0 == id) {
            return Ok(running.clone());
        }
        let found = stored(self.store.load_operation(&OperationId(id.to_owned())).await)?;
        found.ok_or_else(|| Problem::not_found(format!("no operation {id:?}: see stormglass operation list")))
    }

    async fn report(&self, id: &str) -> Result<IncidentReport, Problem> {
        let operation = self.operation(id).await?;
        let all = stored(self.store.list_operations(&self.cluster, RELATED_MAX).await)?;
        Ok(IncidentReport::of(&operation, &all))
    }

    async fn cancel(&self, id: &str, _caller: &Caller) -> Result<MutationReply, Problem> {
        let operation = OperationId(id.to_owned());
        let found = self.ask(|reply| Event::Cancel { operation, reply }).await?;
        let Some(answer) = found else {
            return Err(Problem::not_found(format!("no operation {id:?} is under way: see stormglass operation list")));
        };
        let operation = answer.map_err(|why| {
            Problem::refused(format!("operation {id} cannot be cancelled any more: {why}"), Vec::new())
        })?;
        let message = match &operation.kind {
            OperationKind::Switchover { from, .. } => format!("the switchover is undone: {from} stays the primary"),
            OperationKind::Failover { from, .. } => {
                format!("the failover ends before the epoch is raised; if {from} was fenced meanwhile, it stays so")
            }
            other => format!("the {} ends before its first step", other.label()),
        };
        Ok(MutationReply {
            schema_version: SCHEMA_VERSION,
            operation: Some(operation),
            plan: None,
            expect: Vec::new(),
            message,
        })
    }

    async fn switchover(
        &self,
        cluster: &str,
        request: SwitchoverRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem> {
        let SwitchoverRequest { to, site: place, at, unschedule, dry_run } = request;
        let site = site(place)?;
        let wanted = match (at, unschedule) {
            (None, false) => Request::Switchover { to, site },
            (Some(at), false) => {
                let who = caller.name.clone();
                Request::Schedule { scheduled: ScheduledSwitchover { at, to, site, who } }
            }
            (None, true) if to.is_none() && site.is_none() => Request::Unschedule,
            (_, true) => {
                return Err(Problem::contradictory(
                    "unschedule forgets the one that is scheduled: give no to, site or at",
                ));
            }
        };
        self.request(cluster, wanted, caller, dry_run).await
    }

    async fn failover(
        &self,
        cluster: &str,
        request: FailoverRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem> {
        let wanted = Request::Failover {
            to: request.to,
            site: site(request.site)?,
            accept_data_loss: request.accept_data_loss,
            old_primary_is_off: request.old_primary_is_off,
        };
        self.request(cluster, wanted, caller, request.dry_run).await
    }

    async fn fence(&self, cluster: &str, request: NodeRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.request(cluster, Request::Fence { node: request.node }, caller, request.dry_run).await
    }

    async fn unfence(&self, cluster: &str, request: NodeRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.request(cluster, Request::Unfence { node: request.node }, caller, request.dry_run).await
    }

    async fn rejoin(&self, cluster: &str, request: NodeRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        let wanted = Request::Rejoin { node: request.node, reclone: request.reclone };
        self.request(cluster, wanted, caller, request.dry_run).await
    }

    async fn sequences(&self, cluster: &str) -> Result<Vec<Sequence>, Problem> {
        self.check(cluster)?;
        Ok(self.sequences.all.to_vec())
    }

    async fn begin_sequence(
        &self,
        cluster: &str,
        name: &str,
        request: SequenceRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem> {
        self.check(cluster)?;
        let asked = SequenceAsked { name: name.to_owned(), origin: caller.name.clone(), dry_run: request.dry_run };
        let answer = self.ask_for_sequence(asked).await?;
        let (plan, operation) = answer.map_err(|names| {
            let known = if names.is_empty() { "none is configured".to_owned() } else { names.join(", ") };
            Problem::not_found(format!("there is no sequence {name:?}: {known}"))
        })?;
        if !plan.blocked_by.is_empty() {
            let why: Vec<String> = plan.blocked_by.iter().map(ToString::to_string).collect();
            return Err(Problem::refused(why.join("; "), plan.blocked_by));
        }
        let expect = operation.as_ref().map(|one| sequences::preview(one, self.sequences.runner.as_ref()));
        let message = if request.dry_run { "would begin: sequence" } else { "sequence" };
        Ok(MutationReply {
            schema_version: SCHEMA_VERSION,
            operation: operation.filter(|_| !request.dry_run),
            plan: Some(plan),
            expect: expect.unwrap_or_default(),
            message: format!("{message} {name}"),
        })
    }

    async fn backups(&self, cluster: &str) -> Result<BackupList, Problem> {
        let glance = self.look(cluster).await?;
        let seen = backup::list(self.nodes.as_ref(), &glance.view, backup::LIST_TIMEOUT_FOR_PEOPLE).await;
        let (seen_by, repository) = seen.map_err(|problems| {
            let words: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let nobody = "no agent is heard: see stormglass status".to_owned();
            Problem::unavailable(if words.is_empty() { nobody } else { words.join("; ") })
        })?;
        let operations = stored(self.store.list_operations(&self.cluster, backup::LOOKED_THROUGH).await)?;
        let cluster = cluster.to_owned();
        let verified = backup::verified(&operations);
        Ok(BackupList { schema_version: SCHEMA_VERSION, cluster, seen_by, repository, verified })
    }

    async fn backup(&self, cluster: &str, request: BackupRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        let wanted = Request::Backup {
            backup_type: request.backup_type.unwrap_or(backup::TYPE_DEFAULT),
            from_standby: self.backups_from_standby,
        };
        self.request(cluster, wanted, caller, request.dry_run).await
    }

    async fn drill(&self, cluster: &str, request: DrillRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.request(cluster, Request::Drill, caller, request.dry_run).await
    }

    async fn retrain(&self, cluster: &str, request: RetrainRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.check(cluster)?;
        let wanted = self.retraining()?;
        self.request(cluster, wanted, caller, request.dry_run).await
    }

    async fn restore(&self, cluster: &str, request: RestoreRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        let target = match (request.to_time, request.to_lsn) {
            (None, None) => RecoveryTarget::Latest,
            (Some(at), None) => RecoveryTarget::Time { at },
            (None, Some(lsn)) => RecoveryTarget::Lsn { lsn },
            (Some(_), Some(_)) => {
                return Err(Problem::contradictory("give to_time or to_lsn, not both"));
            }
        };
        if request.into.as_ref().is_some_and(|directory| !directory.starts_with('/') || directory.contains('\n')) {
            return Err(Problem::bad_request("into must be an absolute path on the node's host"));
        }
        let wanted = Request::Restore { target, site: site(request.site)?, into: request.into };
        self.request(cluster, wanted, caller, request.dry_run).await
    }

    async fn pause(&self, cluster: &str, request: PauseRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.check(cluster)?;
        let length = request.duration_seconds.map_or(PAUSE_DEFAULT, Duration::from_secs);
        if length.is_zero() || length > PAUSE_MAX {
            return Err(Problem::bad_request(format!("duration_seconds must be 1 to {}", PAUSE_MAX.as_secs())));
        }
        let until = self.clock.wall().plus(length);
        self.store_pause(Some(until), caller, format!("automatic operations are paused until {until}")).await
    }

    async fn resume(&self, cluster: &str, caller: &Caller) -> Result<MutationReply, Problem> {
        self.check(cluster)?;
        self.store_pause(None, caller, "automatic operations go on".to_owned()).await
    }

    async fn alerts(&self, alerts: Vec<Alert>, caller: &Caller) -> Result<AlertsReply, Problem> {
        self.take_alerts(alerts, caller).await
    }

    async fn page_of_events(&self, cluster: &str, wanted: Wanted) -> Result<Listing<EventRow>, Problem> {
        self.check(cluster)?;
        stored(self.store.page_events(&self.cluster, page(wanted)).await).map(listing)
    }

    async fn page_of_operations(&self, cluster: Option<&str>, wanted: Wanted) -> Result<Listing<Operation>, Problem> {
        if let Some(cluster) = cluster {
            self.check(cluster)?;
        }
        stored(self.store.page_operations(&self.cluster, page(wanted)).await).map(listing)
    }

    async fn page_of_audit(&self, wanted: Wanted) -> Result<Listing<AuditEntry>, Problem> {
        stored(self.store.page_audit(page(wanted)).await).map(listing)
    }

    async fn claim_reply(&self, key: &str, body: String) -> Result<Option<String>, Problem> {
        let card = Card { key: key.to_owned(), body };
        let known = self.store.insert_card(Drawer::Replies, &card).await;
        known.map(|known| known.map(|card| card.body)).map_err(|error| Problem::unavailable(error.to_string()))
    }

    async fn keep_reply(&self, key: &str, body: Option<String>) {
        let kept = match body {
            Some(body) => self.store.replace_card(Drawer::Replies, &Card { key: key.to_owned(), body }).await,
            None => self.store.remove_card(Drawer::Replies, key).await.map(drop),
        };
        if let Err(error) = kept {
            tracing::error!(%error, "the answer under an idempotency key was not kept");
        }
    }

    fn stored_token(&self, digest: &TokenDigest) -> Result<Option<Identity>, Problem> {
        Ok(self.tokens.identity(digest, self.clock.wall()))
    }

    async fn tokens(&self) -> Result<Vec<TokenDocument>, Problem> {
        Ok(self.tokens.list())
    }

    async fn create_token(&self, request: TokenRequest, caller: &Caller) -> Result<TokenReply, Problem> {
        self.tokens.create(self.store.as_ref(), request, caller, self.clock.wall()).await
    }

    async fn revoke_token(&self, name: &str, _caller: &Caller) -> Result<MutationReply, Problem> {
        let message = self.tokens.revoke(self.store.as_ref(), name).await?;
        Ok(MutationReply { schema_version: SCHEMA_VERSION, operation: None, plan: None, expect: Vec::new(), message })
    }

    async fn record_audit(&self, row: AuditRow) {
        if let Err(error) = self.store.append_audit(&row).await {
            tracing::error!(%error, who = row.who, what = row.what, "audit row not stored");
        }
    }

    fn ready(&self) -> Result<(), String> {
        if self.events.is_closed() { Err("the controller is shutting down".to_owned()) } else { Ok(()) }
    }

    fn metrics(&self) -> String {
        self.metrics.render()
    }

    fn wall(&self) -> WallTime {
        self.clock.wall()
    }
}

impl ControllerHandle {
    async fn store_pause(
        &self,
        until: Option<WallTime>,
        caller: &Caller,
        message: String,
    ) -> Result<MutationReply, Problem> {
        if self.look(self.cluster.as_str()).await?.view.record.is_none() {
            return Err(Problem::unavailable("the cluster has no first epoch yet: see stormglass status"));
        }
        let who = caller.name.clone();
        let stored = tokio::time::timeout(STORE_WAIT, self.ask(|reply| Event::Pause { until, who, reply })).await;
        stored.map_err(|_| {
            Problem::unavailable("not stored in time: the cluster may have no first epoch yet; see stormglass status")
        })??;
        Ok(MutationReply { schema_version: SCHEMA_VERSION, operation: None, plan: None, expect: Vec::new(), message })
    }

    /// The request for a retraining, where one could be carried out and would have an effect.
    pub(super) fn retraining(&self) -> Result<Request, Problem> {
        let training = models::changeable(self.prediction()?)?.training.as_ref();
        let Some(training) = training else {
            let words = "this controller trains nothing: its configuration has no [prometheus]";
            return Err(Problem::not_found(words));
        };
        Ok(training.request())
    }

    /// True if something is predicted here.
    pub(super) fn predicts(&self) -> bool {
        self.prediction.is_some()
    }

    fn prediction(&self) -> Result<&Prediction, Problem> {
        self.prediction.as_ref().ok_or_else(|| no_predictor("this controller"))
    }
}
