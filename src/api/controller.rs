//! What the controller answers over HTTP: the trait that its shell implements.
//!
//! Never decides: a route turns a request into a question for [`ControllerHandler`] and the answer into JSON.

use std::sync::Arc;

use async_trait::async_trait;

use super::authentication::{Caller, Identity, TokenDigest};
use super::listing::{Listing, Wanted};
use super::notifications::ChannelDocument;
use super::rendered::Rendered;
use super::risk::{ModelList, PromoteRequest, RiskDocument};
use super::tokens::{TokenDocument, TokenReply, TokenRequest};
use super::webhook::AlertsReply;
use super::wire::{
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

/// The controller as its API sees it. A cluster that it does not keep is [`Problem::not_found`].
///
/// A mutation runs to its end even if the caller hangs up, and is audited by the router, whatever its outcome.
#[async_trait]
pub trait ControllerHandler: Send + Sync + 'static {
    /// A node's agent reports; the report's cluster is the route's.
    async fn heartbeat(&self, report: Report) -> Result<HeartbeatReply, Problem>;
    /// A proxy's agent reports; the report's cluster is the route's.
    async fn proxy_heartbeat(&self, report: ProxyReport) -> Result<ProxyAssignment, Problem>;

    /// Every cluster.
    async fn clusters(&self) -> Result<Vec<ClusterStatus>, Problem>;
    /// One cluster.
    async fn status(&self, cluster: &str) -> Result<Arc<Rendered<ClusterStatus>>, Problem>;
    /// What would be done now, and why.
    async fn explain(&self, cluster: &str) -> Result<Explanation, Problem>;
    /// Would it survive the next fault, and what is to be done?
    async fn doctor(&self, cluster: &str) -> Result<Readiness, Problem>;
    /// What is expected of every node.
    async fn risk(&self, cluster: &str) -> Result<RiskDocument, Problem> {
        Err(no_predictor(cluster))
    }
    /// Every model.
    async fn models(&self) -> Result<ModelList, Problem> {
        Err(no_predictor("this controller"))
    }
    /// Makes a model the one that scores.
    async fn promote_model(&self, _request: PromoteRequest, _caller: &Caller) -> Result<MutationReply, Problem> {
        Err(no_predictor("this controller"))
    }
    /// Makes the model before it the one that scores again.
    async fn roll_back_model(&self, _caller: &Caller) -> Result<MutationReply, Problem> {
        Err(no_predictor("this controller"))
    }
    /// Channels of notifications.
    async fn notifications(&self) -> Result<Vec<ChannelDocument>, Problem> {
        Ok(Vec::new())
    }
    /// Sends a test over one of them.
    async fn test_notification(&self, name: &str, _caller: &Caller) -> Result<MutationReply, Problem> {
        Err(no_channel(name, &[]))
    }
    /// The newest events, newest first.
    async fn events(&self, cluster: &str, limit: usize) -> Result<Vec<EventRow>, Problem>;
    /// The newest operations, newest first, of one cluster or of all.
    async fn operations(&self, cluster: Option<&str>, limit: usize) -> Result<Vec<Operation>, Problem>;
    /// One operation.
    async fn operation(&self, id: &str) -> Result<Operation, Problem>;
    /// What one operation did, why, and what it cost.
    async fn report(&self, id: &str) -> Result<IncidentReport, Problem>;

    /// Stops an operation before its point of no return.
    async fn cancel(&self, id: &str, caller: &Caller) -> Result<MutationReply, Problem>;
    /// Moves the primary without loss.
    async fn switchover(
        &self,
        cluster: &str,
        request: SwitchoverRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem>;
    /// Replaces a lost primary.
    async fn failover(
        &self,
        cluster: &str,
        request: FailoverRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem>;
    /// Keeps a node unable to accept writes.
    async fn fence(&self, cluster: &str, request: NodeRequest, caller: &Caller) -> Result<MutationReply, Problem>;
    /// Lifts an operator's fence.
    async fn unfence(&self, cluster: &str, request: NodeRequest, caller: &Caller) -> Result<MutationReply, Problem>;
    /// Brings a node back as a standby.
    async fn rejoin(&self, cluster: &str, request: NodeRequest, caller: &Caller) -> Result<MutationReply, Problem>;
    /// Sequences that there are.
    async fn sequences(&self, cluster: &str) -> Result<Vec<Sequence>, Problem>;
    /// Begins one by name.
    async fn begin_sequence(
        &self,
        cluster: &str,
        name: &str,
        request: SequenceRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem>;
    /// What is in the backup repository.
    async fn backups(&self, cluster: &str) -> Result<BackupList, Problem>;
    /// Takes a backup.
    async fn backup(&self, cluster: &str, request: BackupRequest, caller: &Caller) -> Result<MutationReply, Problem>;
    /// Restores a backup where nobody uses it, checks it and removes it.
    async fn drill(&self, cluster: &str, request: DrillRequest, caller: &Caller) -> Result<MutationReply, Problem>;
    /// Trains a model anew.
    async fn retrain(&self, cluster: &str, _: RetrainRequest, _: &Caller) -> Result<MutationReply, Problem> {
        Err(no_predictor(cluster))
    }
    /// Begins the cluster anew from the repository, or makes a copy beside it.
    async fn restore(&self, cluster: &str, request: RestoreRequest, caller: &Caller) -> Result<MutationReply, Problem>;
    /// Stops automatic operations for a while.
    async fn pause(&self, cluster: &str, request: PauseRequest, caller: &Caller) -> Result<MutationReply, Problem>;
    /// Lets automatic operations go on.
    async fn resume(&self, cluster: &str, caller: &Caller) -> Result<MutationReply, Problem>;

    /// Takes alerts: what shall be done about them is stored before this returns, and carried out after it.
    async fn alerts(&self, alerts: Vec<Alert>, caller: &Caller) -> Result<AlertsReply, Problem>;

    /// Events, page by page.
    async fn page_of_events(&self, cluster: &str, wanted: Wanted) -> Result<Listing<EventRow>, Problem>;
    /// Operations, page by page, of one cluster or of all.
    async fn page_of_operations(&self, cluster: Option<&str>, wanted: Wanted) -> Result<Listing<Operation>, Problem>;
    /// The audit log, page by page.
    async fn page_of_audit(&self, wanted: Wanted) -> Result<Listing<AuditEntry>, Problem>;

    /// Keeps `body` under `key`, unless there is something: that is returned.
    async fn claim_reply(&self, key: &str, body: String) -> Result<Option<String>, Problem>;
    /// Keeps another body under a key, or forgets the key; a failure to do so is the handler's to log.
    async fn keep_reply(&self, key: &str, body: Option<String>);

    /// Whose token this is, of those that were made while controllers ran. An error: this controller cannot know.
    fn stored_token(&self, digest: &TokenDigest) -> Result<Option<Identity>, Problem>;
    /// Tokens that were made while controllers ran.
    async fn tokens(&self) -> Result<Vec<TokenDocument>, Problem>;
    /// Makes a token. That its name is free among those of the configuration is the router's to check.
    async fn create_token(&self, request: TokenRequest, caller: &Caller) -> Result<TokenReply, Problem>;
    /// Ends a token.
    async fn revoke_token(&self, name: &str, caller: &Caller) -> Result<MutationReply, Problem>;
    /// Stores an audit row; a failure to do so is the handler's to log as an error.
    async fn record_audit(&self, row: AuditRow);

    /// `Err` says why the controller cannot work now: it stops, or another one leads.
    fn ready(&self) -> Result<(), String>;
    /// The text of `/metrics`.
    fn metrics(&self) -> String;
    /// The wall clock, for audit rows.
    fn wall(&self) -> WallTime;
}

/// What whoever asks for predictions is told where there are none.
pub fn no_predictor(whose: &str) -> Problem {
    Problem::not_found(format!(
        "{whose} has no predictor: add [predictor] and [prometheus] to the controller's configuration"
    ))
}

/// What whoever names a channel of notifications is told where there is none of that name.
pub fn no_channel(name: &str, known: &[&str]) -> Problem {
    let known = if known.is_empty() { "no [[notification]] is configured".to_owned() } else { known.join(", ") };
    Problem::not_found(format!("there is no notification channel {name:?}: {known}"))
}
