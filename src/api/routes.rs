//! Every route of the controller, with who may use it, what it takes and what it answers: the one list that the router, the
//! OpenAPI document and the tests of access are made from or held against.
//!
//! No code of a route enters here. A new route is a variant of [`Endpoint`], a line of [`ROUTES`], a method of
//! `ControllerHandler`, and an arm in `router` (a question) or `mutation` (a change).

use std::borrow::Cow;

use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{RefOr, schema};

use super::body::BODY_LENGTH_MAX;
use super::clusters::{ClusterAddRequest, ClusterDefinition, ClusterRemoveRequest};
use super::notifications::ChannelDocument;
use super::risk::{ModelList, PromoteRequest, RiskDocument};
use super::tokens::{TokenDocument, TokenReply, TokenRequest};
use super::webhook::{AlertmanagerPost, AlertsReply, POST_LENGTH_MAX};
use super::wire::{
    BackupList, BackupRequest, ClusterStatus, DrillRequest, Explanation, FailoverRequest, MutationReply, NodeRequest,
    PauseRequest, RestoreRequest, RetrainRequest, SequenceRequest, SwitchoverRequest, Word,
};
use crate::domain::access::Role;
use crate::domain::incident::IncidentReport;
use crate::domain::operation::Operation;
use crate::domain::readiness::Readiness;
use crate::domain::sequence::Sequence;
use crate::domain::trail::{AuditEntry, EventRow};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody, without a token.
    Open,
    /// Agents only.
    Agents,
    /// People and scripts of this role or a higher one.
    AtLeast(Role),
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// Is the process alive?
    Health,
    /// Can it work?
    Ready,
    /// Prometheus' text format.
    Metrics,
    /// The OpenAPI document.
    OpenApi,
    /// Every cluster.
    Clusters,
    /// One cluster.
    Status,
    /// What it is configured as.
    Definition,
    /// Keeps another cluster.
    ClusterAdd,
    /// Keeps one no longer.
    ClusterRemove,
    /// What would be done now, and why.
    Explain,
    /// Would it survive the next fault?
    Doctor,
    /// What is expected of every node.
    Risk,
    /// Every model.
    Models,
    /// Makes a model the one that scores.
    ModelPromote,
    /// Makes the one before it score again.
    ModelRollback,
    /// Channels of notifications.
    Notifications,
    /// Sends a test over one.
    NotificationTest,
    /// Sequences that there are.
    Sequences,
    /// Begins one.
    SequenceBegin,
    /// Newest events.
    Events,
    /// Newest operations that have ended.
    History,
    /// Newest operations of one cluster.
    ClusterOperations,
    /// Newest operations of all clusters.
    Operations,
    /// One operation.
    Operation,
    /// The incident report of one operation.
    Report,
    /// Newest audit rows.
    Audit,
    /// Events as they happen.
    EventStream,
    /// The page for people.
    Dashboard,
    /// Every token.
    Tokens,
    /// Makes a token.
    TokenCreate,
    /// Ends one.
    TokenRevoke,
    /// Stops an operation.
    Cancel,
    /// Planned move.
    Switchover,
    /// Unplanned move.
    Failover,
    /// Keeps a node down.
    Fence,
    /// Lifts that.
    Unfence,
    /// Brings a node back.
    Rejoin,
    /// What is in the backup repository.
    Backups,
    /// Takes a backup.
    Backup,
    /// Restores one on trial.
    Drill,
    /// Trains a model anew.
    Retrain,
    /// Begins anew from the repository.
    Restore,
    /// Automation off.
    Pause,
    /// Automation on.
    Resume,
    /// Alerts.
    Alertmanager,
    /// Report of a node's agent.
    Heartbeat,
    /// Report of a proxy's agent.
    ProxyHeartbeat,
}

/// HTTP method of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Reads; HEAD works too.
    Get,
    /// Changes.
    Post,
}

impl Method {
    /// As HTTP writes it.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
        }
    }
}

/// A JSON document by its Rust type, for the OpenAPI document.
#[derive(Debug, Clone, Copy)]
pub struct Document {
    /// Name of its schema.
    pub name: fn() -> Cow<'static, str>,
    /// Its schema.
    pub schema: fn() -> RefOr<Schema>,
    /// The schemas that it refers to.
    pub collect: fn(&mut Vec<(String, RefOr<Schema>)>),
    /// An array of them.
    pub is_list: bool,
}

impl Document {
    /// One `T`.
    pub const fn of<T: ToSchema>() -> Self {
        Self { name: T::name, schema: T::schema, collect: T::schemas, is_list: false }
    }

    /// A list of `T`.
    pub const fn list_of<T: ToSchema>() -> Self {
        Self { is_list: true, ..Self::of::<T>() }
    }

    /// What agents and controllers of one version say to each other: an object that is no contract for anybody else.
    pub const fn of_agents() -> Self {
        Self { name: || Cow::Borrowed("AgentProtocol"), schema: agent_protocol, collect: |_| {}, is_list: false }
    }
}

fn agent_protocol() -> RefOr<Schema> {
    schema::ObjectBuilder::new()
        .schema_type(schema::Type::Object)
        .description(Some(
            "A report of an agent or its answer, as the types of `stormglass::domain` write it; not stable.",
        ))
        .additional_properties(Some(schema::AdditionalProperties::FreeForm(true)))
        .into()
}

/// What a route answers when all is well.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// JSON.
    Json(Document),
    /// Text of this media type.
    Text(&'static str),
}

/// A parameter of a query, always optional.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryParameter {
    /// Name.
    pub name: &'static str,
    /// True for a whole number, false for text.
    pub is_number: bool,
    /// What it does.
    pub says: &'static str,
}

/// How many rows a list has.
pub const LIMIT: QueryParameter =
    QueryParameter { name: "limit", is_number: true, says: "rows at most, 1 to 1000; 100 if not given" };

/// Where a list begins.
pub const BEFORE: QueryParameter = QueryParameter {
    name: "before",
    is_number: true,
    says: "only rows before this place; taken from the header `Link` of the page before",
};

/// One route.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Method.
    pub method: Method,
    /// Path; `{cluster}`, `{id}` and the like are parameters.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
    /// What it does.
    pub endpoint: Endpoint,
    /// The verb in the audit log and in messages.
    pub verb: &'static str,
    /// A sentence about it.
    pub says: &'static str,
    /// What may follow the question mark.
    pub query: &'static [QueryParameter],
    /// The body that it takes.
    pub body: Option<Document>,
    /// What comes back.
    pub answer: Answer,
    /// The status that comes with that.
    pub status: u16,
    /// Longest body taken, in bytes.
    pub body_length_max: usize,
}

impl Route {
    /// True for what changes something at a person's wish: audited, whatever comes of it.
    pub fn is_mutation(&self) -> bool {
        self.method == Method::Post && matches!(self.access, Access::AtLeast(_))
    }

    /// Names of the parameters in the path.
    pub fn path_parameters(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('{').skip(1).filter_map(|rest| rest.split_once('}').map(|(name, _)| name))
    }

    /// Takes a query.
    const fn asks(mut self, query: &'static [QueryParameter]) -> Self {
        self.query = query;
        self
    }

    /// Takes a body.
    const fn takes<T: ToSchema>(mut self) -> Self {
        self.body = Some(Document::of::<T>());
        self
    }

    /// Answers a document.
    const fn gives<T: ToSchema>(mut self) -> Self {
        self.answer = Answer::Json(Document::of::<T>());
        self
    }

    /// Answers a list of documents.
    const fn gives_list<T: ToSchema>(mut self) -> Self {
        self.answer = Answer::Json(Document::list_of::<T>());
        self.query = &[LIMIT, BEFORE];
        self
    }

    /// Answers before the work is done.
    const fn later(mut self) -> Self {
        self.status = 202;
        self
    }

    /// Takes bodies up to this length, in bytes.
    const fn up_to(mut self, length: usize) -> Self {
        self.body_length_max = length;
        self
    }

    /// Answers text.
    const fn gives_text(mut self, media_type: &'static str) -> Self {
        self.answer = Answer::Text(media_type);
        self
    }
}

const fn get(path: &'static str, access: Access, endpoint: Endpoint, verb: &'static str, says: &'static str) -> Route {
    let answer = Answer::Json(Document::of::<Value>());
    Route {
        method: Method::Get,
        path,
        access,
        endpoint,
        verb,
        says,
        query: &[],
        body: None,
        answer,
        status: 200,
        body_length_max: BODY_LENGTH_MAX,
    }
}

/// A change: it takes an empty body and answers a [`MutationReply`], unless it says otherwise.
const fn post(path: &'static str, access: Access, endpoint: Endpoint, verb: &'static str, says: &'static str) -> Route {
    let answer = Answer::Json(Document::of::<MutationReply>());
    Route {
        method: Method::Post,
        path,
        access,
        endpoint,
        verb,
        says,
        query: &[],
        body: None,
        answer,
        status: 200,
        body_length_max: BODY_LENGTH_MAX,
    }
}

/// A report of an agent.
const fn report(path: &'static str, endpoint: Endpoint, verb: &'static str, says: &'static str) -> Route {
    Route {
        body: Some(Document::of_agents()),
        answer: Answer::Json(Document::of_agents()),
        ..post(path, Access::Agents, endpoint, verb, says)
    }
}

const OPEN: Access = Access::Open;
const VIEWER: Access = Access::AtLeast(Role::Viewer);
const BACKUP: Access = Access::AtLeast(Role::Backup);
const OPERATOR: Access = Access::AtLeast(Role::Operator);
const ADMIN: Access = Access::AtLeast(Role::Admin);

/// Every route. `tests/docs.rs` wants each in docs/http.md.
#[rustfmt::skip]
pub static ROUTES: &[Route] = &[
    get("/health", OPEN, Endpoint::Health, "health", "Is the process alive?").gives::<Word>(),
    get("/ready", OPEN, Endpoint::Ready, "ready", "Can the controller work?").gives::<Word>(),
    get("/metrics", OPEN, Endpoint::Metrics, "metrics", "Metrics in Prometheus' text format.").gives_text("text/plain"),
    get("/api/v1/openapi.json", OPEN, Endpoint::OpenApi, "openapi", "This document."),

    get("/api/v1/clusters", VIEWER, Endpoint::Clusters, "clusters", "The status of every cluster.").gives_list::<ClusterStatus>().asks(&[]),
    get("/api/v1/clusters/{cluster}", VIEWER, Endpoint::Status, "status", "The status of one cluster.").gives::<ClusterStatus>(),
    get("/api/v1/clusters/{cluster}/definition", VIEWER, Endpoint::Definition, "definition", "What a cluster is configured as: nodes, proxies, sites, policy, file; never a secret.").gives::<ClusterDefinition>(),
    post("/api/v1/clusters", ADMIN, Endpoint::ClusterAdd, "cluster-add", "Checks the definition of another cluster, writes it to the controller's directory, and keeps the cluster from then on.").takes::<ClusterAddRequest>(),
    post("/api/v1/clusters/{cluster}/remove", ADMIN, Endpoint::ClusterRemove, "cluster-remove", "Keeps a cluster no longer. Its file gets another name, its store stays, its nodes go on without a controller.").takes::<ClusterRemoveRequest>(),
    get("/api/v1/clusters/{cluster}/explain", VIEWER, Endpoint::Explain, "explain", "What would be done now, and why.").gives::<Explanation>(),
    get("/api/v1/clusters/{cluster}/doctor", VIEWER, Endpoint::Doctor, "doctor", "Would it survive the next fault? Every check, and the share that passes.").gives::<Readiness>(),
    get("/api/v1/clusters/{cluster}/risk", VIEWER, Endpoint::Risk, "risk", "What is expected of every node, and why.").gives::<RiskDocument>(),
    get("/api/v1/models", VIEWER, Endpoint::Models, "models", "Models of the predictor.").gives::<ModelList>(),
    get("/api/v1/notifications", VIEWER, Endpoint::Notifications, "notifications", "Channels of notifications, and how each does.").gives_list::<ChannelDocument>().asks(&[]),
    get("/api/v1/clusters/{cluster}/sequences", VIEWER, Endpoint::Sequences, "sequences", "The configured sequences with their steps.").gives_list::<Sequence>().asks(&[]),
    get("/api/v1/clusters/{cluster}/events", VIEWER, Endpoint::Events, "events", "Newest events, newest first.").gives_list::<EventRow>(),
    get("/api/v1/clusters/{cluster}/history", VIEWER, Endpoint::History, "history", "Newest operations that have ended, newest first.").gives_list::<Operation>(),
    get("/api/v1/clusters/{cluster}/operations", VIEWER, Endpoint::ClusterOperations, "cluster_operations", "Newest operations of one cluster, newest first.").gives_list::<Operation>(),
    get("/api/v1/operations", VIEWER, Endpoint::Operations, "operations", "Newest operations of all clusters, newest first.").gives_list::<Operation>(),
    get("/api/v1/operations/{id}", VIEWER, Endpoint::Operation, "operation", "One operation with its journal.").gives::<Operation>(),
    get("/api/v1/operations/{id}/report", VIEWER, Endpoint::Report, "operation_report", "The incident report of one operation: what it did, why, and what it cost.").gives::<IncidentReport>(),
    get("/api/v1/audit", ADMIN, Endpoint::Audit, "audit", "Newest rows of the audit log, newest first.").gives_list::<AuditEntry>(),
    get("/api/v1/clusters/{cluster}/events/stream", VIEWER, Endpoint::EventStream, "event_stream", "Events as they happen, as server-sent events.").gives_text("text/event-stream"),
    get("/", OPEN, Endpoint::Dashboard, "dashboard", "A page for people; it asks for a token.").gives_text("text/html"),
    get("/api/v1/tokens", ADMIN, Endpoint::Tokens, "tokens", "Every token, without its secret.").gives_list::<TokenDocument>().asks(&[]),
    post("/api/v1/tokens", ADMIN, Endpoint::TokenCreate, "token-create", "Makes a token; its secret is in the answer, and nowhere else.").takes::<TokenRequest>().gives::<TokenReply>(),
    post("/api/v1/tokens/{name}/revoke", ADMIN, Endpoint::TokenRevoke, "token-revoke", "Ends a token at once."),

    post("/api/v1/operations/{id}/cancel", OPERATOR, Endpoint::Cancel, "cancel", "Stops an operation before its point of no return."),
    post("/api/v1/notifications/{name}/test", OPERATOR, Endpoint::NotificationTest, "notification-test", "Sends a test over a channel of notifications, and waits until it went out."),
    post("/api/v1/models/promote", OPERATOR, Endpoint::ModelPromote, "model-promote", "Makes a model the one that scores.").takes::<PromoteRequest>(),
    post("/api/v1/models/rollback", OPERATOR, Endpoint::ModelRollback, "model-rollback", "Makes the model before it score again."),
    post("/api/v1/clusters/{cluster}/switchover", OPERATOR, Endpoint::Switchover, "switchover", "Moves the primary, both sides healthy.").takes::<SwitchoverRequest>(),
    post("/api/v1/clusters/{cluster}/failover", OPERATOR, Endpoint::Failover, "failover", "Replaces a lost primary.").takes::<FailoverRequest>(),
    post("/api/v1/clusters/{cluster}/fence", OPERATOR, Endpoint::Fence, "fence", "Keeps a node unable to accept writes.").takes::<NodeRequest>(),
    post("/api/v1/clusters/{cluster}/unfence", OPERATOR, Endpoint::Unfence, "unfence", "Lifts an operator's fence.").takes::<NodeRequest>(),
    post("/api/v1/clusters/{cluster}/rejoin", OPERATOR, Endpoint::Rejoin, "rejoin", "Brings a node back as a standby.").takes::<NodeRequest>(),
    post("/api/v1/clusters/{cluster}/sequences/{name}", OPERATOR, Endpoint::SequenceBegin, "sequence", "Begins a sequence by its name.").takes::<SequenceRequest>(),
    get("/api/v1/clusters/{cluster}/backups", VIEWER, Endpoint::Backups, "backups", "What is in the backup repository.").gives::<BackupList>(),
    post("/api/v1/clusters/{cluster}/backup", BACKUP, Endpoint::Backup, "backup", "Takes a backup and reads it back.").takes::<BackupRequest>(),
    post("/api/v1/clusters/{cluster}/drill", BACKUP, Endpoint::Drill, "drill", "Restores the newest backup where nobody uses it, checks it and removes it.").takes::<DrillRequest>(),
    post("/api/v1/clusters/{cluster}/retrain", OPERATOR, Endpoint::Retrain, "retrain", "Trains a model on what Prometheus has, and publishes it if it is better than the one that scores.").takes::<RetrainRequest>(),
    post("/api/v1/clusters/{cluster}/restore", OPERATOR, Endpoint::Restore, "restore", "Begins the cluster anew from the repository, or makes a copy beside it.").takes::<RestoreRequest>(),
    post("/api/v1/clusters/{cluster}/pause", OPERATOR, Endpoint::Pause, "pause", "Stops automatic operations for a while.").takes::<PauseRequest>(),
    post("/api/v1/clusters/{cluster}/resume", OPERATOR, Endpoint::Resume, "resume", "Lets automatic operations go on."),

    post("/webhooks/alertmanager", OPERATOR, Endpoint::Alertmanager, "alerts", "Takes alerts of Prometheus' Alertmanager, webhook version 4.").takes::<AlertmanagerPost>().gives::<AlertsReply>().later().up_to(POST_LENGTH_MAX),

    report("/api/v1/clusters/{cluster}/heartbeat", Endpoint::Heartbeat, "heartbeat", "Report of a node's agent."),
    report("/api/v1/clusters/{cluster}/proxy-heartbeat", Endpoint::ProxyHeartbeat, "proxy-heartbeat", "Report of a proxy's agent."),
];
