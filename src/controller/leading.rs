//! One of several controllers: stands for the leadership, leads while the term lasts, follows, stands again.
//!
//! A follower answers who leads and nothing else. Invariant: what leads was started after its election, on what it then read
//! from the store, and is stopped as soon as its term ends; steps under way may end, fenced by session and epoch.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{ControllerHandle, ControllerParts};
use crate::api::authentication::{Caller, Identity, TokenDigest};
use crate::api::clusters::{ClusterAddRequest, ClusterDefinition, ClusterRemoveRequest};
use crate::api::controller::ControllerHandler;
use crate::api::listing::{Listing, Wanted};
use crate::api::notifications::ChannelDocument;
use crate::api::rendered::Rendered;
use crate::api::risk::{ModelList, PromoteRequest, RiskDocument};
use crate::api::tokens::{TokenDocument, TokenReply, TokenRequest};
use crate::api::webhook::AlertsReply;
use crate::api::wire::{
    BackupList, BackupRequest, ClusterStatus, DrillRequest, Explanation, FailoverRequest, LeaderAddress, MutationReply,
    NodeRequest, PauseRequest, Problem, RestoreRequest, RetrainRequest, SequenceRequest, SwitchoverRequest,
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
use crate::ports::{Clock, Leader, Leadership, Term};
use crate::telemetry::metrics::ControllerMetrics;

/// After an election that failed, before the next one is stood for.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a leader looks whether it hears anybody.
const LOOK: Duration = Duration::from_secs(1);
/// A leader that heard nobody stands aside at least so long, so that another one is elected and heard.
const ASIDE_MIN: Duration = Duration::from_secs(3);

/// Why a term was left.
enum Left {
    /// The process shall stop.
    Stopping,
    /// It ended, or could not begin.
    Ended,
    /// No agent was heard: another controller may have a better place. Not to be stood for again before that time is over.
    Unheard(Duration),
}

/// What stands for the leadership.
pub struct Candidacy {
    /// As others see this controller.
    pub own: Leader,
    /// The election.
    pub leadership: Arc<dyn Leadership>,
    /// Clocks of this host.
    pub clock: Arc<dyn Clock>,
    /// What a follower shows.
    pub metrics: Arc<ControllerMetrics>,
    /// Makes a controller for a term; each has its own counters, so that a former leader shows nothing stale.
    pub parts: Box<dyn Fn(Arc<dyn Term>) -> ControllerParts + Send + Sync>,
}

/// The API of a controller that leads at times.
pub struct Seat {
    own: Leader,
    leadership: Arc<dyn Leadership>,
    clock: Arc<dyn Clock>,
    metrics: Arc<ControllerMetrics>,
    leading: RwLock<Option<Arc<ControllerHandle>>>,
}

/// Stands until `shutdown` turns true; the task ends once the leadership was given back.
pub fn stand(candidacy: Candidacy, shutdown: watch::Receiver<bool>) -> (Arc<Seat>, JoinHandle<()>) {
    candidacy.metrics.set_leading(false);
    let seat = Arc::new(Seat {
        own: candidacy.own.clone(),
        leadership: candidacy.leadership.clone(),
        clock: candidacy.clock.clone(),
        metrics: candidacy.metrics.clone(),
        leading: RwLock::new(None),
    });
    let task = tokio::spawn(run(candidacy, seat.clone(), shutdown));
    (seat, task)
}

async fn run(candidacy: Candidacy, seat: Arc<Seat>, mut shutdown: watch::Receiver<bool>) {
    loop {
        let elected = tokio::select! {
            biased;
            () = asked_to_stop(&mut shutdown) => return,
            elected = candidacy.leadership.lead() => elected,
        };
        let term = match elected {
            Ok(term) => term,
            Err(error) => {
                tracing::warn!(%error, "not elected; standing again");
                tokio::select! {
                    () = asked_to_stop(&mut shutdown) => return,
                    () = tokio::time::sleep(PAUSE) => continue,
                }
            }
        };
        tracing::info!(controller = candidacy.own.name, "elected: this controller leads");
        let left = lead(&candidacy, &seat, &term, &mut shutdown).await;
        term.resign().await;
        if matches!(left, Left::Stopping) {
            tracing::info!(controller = candidacy.own.name, "the leadership was given back");
            return;
        }
        tracing::warn!(controller = candidacy.own.name, "this controller does not lead any more");
        if let Left::Unheard(aside) = left {
            tokio::select! {
                () = asked_to_stop(&mut shutdown) => return,
                () = tokio::time::sleep(aside) => {}
            }
        }
    }
}

/// Leads until the term ends, the process shall stop, or nobody is heard.
async fn lead(candidacy: &Candidacy, seat: &Seat, term: &Arc<dyn Term>, shutdown: &mut watch::Receiver<bool>) -> Left {
    let parts = (candidacy.parts)(term.clone());
    parts.metrics.set_leading(true);
    let patience = parts.policy.new_leader_wait() + 2 * parts.policy.report_stale_after;
    let aside = parts.policy.leadership_ttl.max(ASIDE_MIN);
    let (stop, stopped) = watch::channel(false);
    let started = tokio::select! {
        biased;
        () = asked_to_stop(shutdown) => return Left::Stopping,
        () = term.ended() => return Left::Ended,
        started = super::start(parts, stopped) => started,
    };
    let handle = match started {
        Ok(handle) => Arc::new(handle.announced(&candidacy.own)),
        Err(error) => {
            tracing::error!(%error, "elected, and the store cannot be read: the leadership goes to another one");
            tokio::time::sleep(PAUSE).await;
            return Left::Ended;
        }
    };
    seat.sit(Some(handle.clone()));
    let left = tokio::select! {
        biased;
        () = term.ended() => Left::Ended,
        () = asked_to_stop(shutdown) => Left::Stopping,
        () = unheard(&handle, term.as_ref(), patience) => Left::Unheard(aside),
    };
    seat.sit(None);
    // The loop may have ended by itself.
    let _ = stop.send(true);
    left
}

/// Returns once no agent was heard for `patience`. Never, where nobody else could lead.
async fn unheard(handle: &ControllerHandle, term: &dyn Term, patience: Duration) {
    loop {
        tokio::time::sleep(LOOK).await;
        // A loop that does not answer has ended, and its term with it.
        let silence = handle.silence().await.unwrap_or_default();
        if term.leads_until().is_some() && silence >= patience {
            tracing::warn!(
                silence = %humantime::format_duration(silence),
                "no agent reaches this controller: the leadership goes to another one; look at the network between them"
            );
            return;
        }
    }
}

/// Where clients find a leader.
pub(super) fn address(leader: &Leader) -> LeaderAddress {
    LeaderAddress { name: leader.name.clone(), url: leader.url.clone() }
}

async fn asked_to_stop(shutdown: &mut watch::Receiver<bool>) {
    // A sender that is gone asks for nothing else any more.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

impl Seat {
    fn sit(&self, handle: Option<Arc<ControllerHandle>>) {
        *self.leading.write().unwrap_or_else(PoisonError::into_inner) = handle;
    }

    fn leading(&self) -> Option<Arc<ControllerHandle>> {
        self.leading.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn leader(&self) -> Result<Arc<ControllerHandle>, Problem> {
        self.leading().ok_or_else(|| self.not_the_leader())
    }

    fn not_the_leader(&self) -> Problem {
        let (words, leader) = self.who_leads();
        Problem::not_the_leader(words, leader.as_ref().map(address))
    }

    fn who_leads(&self) -> (String, Option<Leader>) {
        let own = &self.own.name;
        match self.leadership.leader() {
            Some(leader) if leader == self.own => {
                (format!("controller {own} was elected just now and is not ready yet: ask again"), None)
            }
            Some(leader) => {
                (format!("controller {own} follows; {} leads, at {}: ask there", leader.name, leader.url), Some(leader))
            }
            None => (format!("controller {own} follows, and knows of no leader: look at the store"), None),
        }
    }
}

#[async_trait]
impl ControllerHandler for Seat {
    async fn heartbeat(&self, report: Report) -> Result<HeartbeatReply, Problem> {
        self.leader()?.heartbeat(report).await
    }

    async fn proxy_heartbeat(&self, report: ProxyReport) -> Result<ProxyAssignment, Problem> {
        self.leader()?.proxy_heartbeat(report).await
    }

    async fn clusters(&self) -> Result<Vec<ClusterStatus>, Problem> {
        self.leader()?.clusters().await
    }

    async fn status(&self, cluster: &str) -> Result<Arc<Rendered<ClusterStatus>>, Problem> {
        self.leader()?.status(cluster).await
    }

    async fn definition(&self, cluster: &str) -> Result<ClusterDefinition, Problem> {
        self.leader()?.definition(cluster).await
    }

    async fn add_cluster(&self, request: ClusterAddRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.add_cluster(request, caller).await
    }

    async fn remove_cluster(
        &self,
        cluster: &str,
        request: ClusterRemoveRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem> {
        self.leader()?.remove_cluster(cluster, request, caller).await
    }

    async fn explain(&self, cluster: &str) -> Result<Explanation, Problem> {
        self.leader()?.explain(cluster).await
    }

    async fn risk(&self, cluster: &str) -> Result<RiskDocument, Problem> {
        self.leader()?.risk(cluster).await
    }

    async fn models(&self) -> Result<ModelList, Problem> {
        self.leader()?.models().await
    }

    async fn promote_model(&self, request: PromoteRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.promote_model(request, caller).await
    }

    async fn roll_back_model(&self, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.roll_back_model(caller).await
    }

    async fn notifications(&self) -> Result<Vec<ChannelDocument>, Problem> {
        self.leader()?.notifications().await
    }

    async fn test_notification(&self, name: &str, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.test_notification(name, caller).await
    }

    async fn events(&self, cluster: &str, limit: usize) -> Result<Vec<EventRow>, Problem> {
        self.leader()?.events(cluster, limit).await
    }

    async fn operations(&self, cluster: Option<&str>, limit: usize) -> Result<Vec<Operation>, Problem> {
        self.leader()?.operations(cluster, limit).await
    }

    async fn operation(&self, id: &str) -> Result<Operation, Problem> {
        self.leader()?.operation(id).await
    }

    async fn doctor(&self, cluster: &str) -> Result<Readiness, Problem> {
        self.leader()?.doctor(cluster).await
    }

    async fn report(&self, id: &str) -> Result<IncidentReport, Problem> {
        self.leader()?.report(id).await
    }

    async fn cancel(&self, id: &str, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.cancel(id, caller).await
    }

    async fn switchover(
        &self,
        cluster: &str,
        request: SwitchoverRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem> {
        self.leader()?.switchover(cluster, request, caller).await
    }

    async fn failover(
        &self,
        cluster: &str,
        request: FailoverRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem> {
        self.leader()?.failover(cluster, request, caller).await
    }

    async fn fence(&self, cluster: &str, request: NodeRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.fence(cluster, request, caller).await
    }

    async fn unfence(&self, cluster: &str, request: NodeRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.unfence(cluster, request, caller).await
    }

    async fn rejoin(&self, cluster: &str, request: NodeRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.rejoin(cluster, request, caller).await
    }

    async fn sequences(&self, cluster: &str) -> Result<Vec<Sequence>, Problem> {
        self.leader()?.sequences(cluster).await
    }

    async fn begin_sequence(
        &self,
        cluster: &str,
        name: &str,
        request: SequenceRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem> {
        self.leader()?.begin_sequence(cluster, name, request, caller).await
    }

    async fn backups(&self, cluster: &str) -> Result<BackupList, Problem> {
        self.leader()?.backups(cluster).await
    }

    async fn backup(&self, cluster: &str, request: BackupRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.backup(cluster, request, caller).await
    }

    async fn drill(&self, cluster: &str, request: DrillRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.drill(cluster, request, caller).await
    }

    async fn retrain(&self, cluster: &str, request: RetrainRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.retrain(cluster, request, caller).await
    }

    async fn restore(&self, cluster: &str, request: RestoreRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.restore(cluster, request, caller).await
    }

    async fn pause(&self, cluster: &str, request: PauseRequest, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.pause(cluster, request, caller).await
    }

    async fn resume(&self, cluster: &str, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.resume(cluster, caller).await
    }

    async fn alerts(&self, alerts: Vec<Alert>, caller: &Caller) -> Result<AlertsReply, Problem> {
        self.leader()?.alerts(alerts, caller).await
    }

    async fn page_of_events(&self, cluster: &str, wanted: Wanted) -> Result<Listing<EventRow>, Problem> {
        self.leader()?.page_of_events(cluster, wanted).await
    }

    async fn page_of_operations(&self, cluster: Option<&str>, wanted: Wanted) -> Result<Listing<Operation>, Problem> {
        self.leader()?.page_of_operations(cluster, wanted).await
    }

    async fn page_of_audit(&self, wanted: Wanted) -> Result<Listing<AuditEntry>, Problem> {
        self.leader()?.page_of_audit(wanted).await
    }

    async fn claim_reply(&self, key: &str, body: String) -> Result<Option<String>, Problem> {
        self.leader()?.claim_reply(key, body).await
    }

    async fn keep_reply(&self, key: &str, body: Option<String>) {
        // Who leads no more changed nothing that could be asked for again under this key.
        if let Some(leading) = self.leading() {
            leading.keep_reply(key, body).await;
        }
    }

    fn stored_token(&self, digest: &TokenDigest) -> Result<Option<Identity>, Problem> {
        self.leader()?.stored_token(digest)
    }

    async fn tokens(&self) -> Result<Vec<TokenDocument>, Problem> {
        self.leader()?.tokens().await
    }

    async fn create_token(&self, request: TokenRequest, caller: &Caller) -> Result<TokenReply, Problem> {
        self.leader()?.create_token(request, caller).await
    }

    async fn revoke_token(&self, name: &str, caller: &Caller) -> Result<MutationReply, Problem> {
        self.leader()?.revoke_token(name, caller).await
    }

    async fn record_audit(&self, row: AuditRow) {
        match self.leading() {
            Some(leading) => leading.record_audit(row).await,
            // Only the leader writes; whoever was sent on is audited there.
            None => tracing::info!(
                who = row.who,
                from = row.from,
                what = row.what,
                outcome = row.outcome,
                "audit row of a follower: logged, not stored"
            ),
        }
    }

    fn ready(&self) -> Result<(), String> {
        match self.leading() {
            Some(leading) => leading.ready(),
            None => Err(self.who_leads().0),
        }
    }

    fn metrics(&self) -> String {
        self.leading().map_or_else(|| self.metrics.render(), |leading| leading.metrics())
    }

    fn wall(&self) -> WallTime {
        self.clock.wall()
    }
}
