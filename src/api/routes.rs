//! Every route of the controller, with who may use it: the one list that the router, the OpenAPI document and the
//! tests of access are held against.
//!
//! No code of a route enters here.

use crate::domain::access::Role;

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
    /// What would be done now, and why.
    Explain,
    /// What is expected of every node.
    Risk,
    /// Every model.
    Models,
    /// Makes a model the one that scores.
    ModelPromote,
    /// Makes the one before it score again.
    ModelRollback,
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
    /// Newest audit rows.
    Audit,
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
    /// Automation off.
    Pause,
    /// Automation on.
    Resume,
    /// Report of a node's agent.
    Heartbeat,
    /// Report of a proxy's agent.
    ProxyHeartbeat,
}

impl Endpoint {
    /// True for what changes something at a person's wish: audited, whatever comes of it.
    pub fn is_mutation(self) -> bool {
        use Endpoint::*;
        matches!(
            self,
            ModelPromote | ModelRollback | Cancel | Switchover | Failover | Fence | Unfence | Rejoin | Pause | Resume
        )
    }

    /// The verb in the audit log and in messages.
    pub fn verb(self) -> &'static str {
        match self {
            Endpoint::Health => "health",
            Endpoint::Ready => "ready",
            Endpoint::Metrics => "metrics",
            Endpoint::OpenApi => "openapi",
            Endpoint::Clusters => "clusters",
            Endpoint::Status => "status",
            Endpoint::Explain => "explain",
            Endpoint::Risk => "risk",
            Endpoint::Models => "model-list",
            Endpoint::ModelPromote => "model-promote",
            Endpoint::ModelRollback => "model-rollback",
            Endpoint::Events => "events",
            Endpoint::History => "history",
            Endpoint::ClusterOperations | Endpoint::Operations => "operations",
            Endpoint::Operation => "operation",
            Endpoint::Audit => "audit",
            Endpoint::Cancel => "cancel",
            Endpoint::Switchover => "switchover",
            Endpoint::Failover => "failover",
            Endpoint::Fence => "fence",
            Endpoint::Unfence => "unfence",
            Endpoint::Rejoin => "rejoin",
            Endpoint::Pause => "pause",
            Endpoint::Resume => "resume",
            Endpoint::Heartbeat => "heartbeat",
            Endpoint::ProxyHeartbeat => "proxy-heartbeat",
        }
    }
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

/// One route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Method.
    pub method: Method,
    /// Path, with `{cluster}` and `{id}` as parameters.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
    /// What it does.
    pub endpoint: Endpoint,
}

const fn get(path: &'static str, access: Access, endpoint: Endpoint) -> Route {
    Route { method: Method::Get, path, access, endpoint }
}

const fn post(path: &'static str, access: Access, endpoint: Endpoint) -> Route {
    Route { method: Method::Post, path, access, endpoint }
}

const VIEWER: Access = Access::AtLeast(Role::Viewer);
const OPERATOR: Access = Access::AtLeast(Role::Operator);
const ADMIN: Access = Access::AtLeast(Role::Admin);

/// Every route.
pub static ROUTES: [Route; 27] = [
    get("/health", Access::Open, Endpoint::Health),
    get("/ready", Access::Open, Endpoint::Ready),
    get("/metrics", Access::Open, Endpoint::Metrics),
    get("/api/v1/openapi.json", Access::Open, Endpoint::OpenApi),
    get("/api/v1/clusters", VIEWER, Endpoint::Clusters),
    get("/api/v1/clusters/{cluster}", VIEWER, Endpoint::Status),
    get("/api/v1/clusters/{cluster}/explain", VIEWER, Endpoint::Explain),
    get("/api/v1/clusters/{cluster}/risk", VIEWER, Endpoint::Risk),
    get("/api/v1/models", VIEWER, Endpoint::Models),
    post("/api/v1/models/promote", ADMIN, Endpoint::ModelPromote),
    post("/api/v1/models/rollback", ADMIN, Endpoint::ModelRollback),
    get("/api/v1/clusters/{cluster}/events", VIEWER, Endpoint::Events),
    get("/api/v1/clusters/{cluster}/history", VIEWER, Endpoint::History),
    get("/api/v1/clusters/{cluster}/operations", VIEWER, Endpoint::ClusterOperations),
    get("/api/v1/operations", VIEWER, Endpoint::Operations),
    get("/api/v1/operations/{id}", VIEWER, Endpoint::Operation),
    get("/api/v1/audit", ADMIN, Endpoint::Audit),
    post("/api/v1/operations/{id}/cancel", OPERATOR, Endpoint::Cancel),
    post("/api/v1/clusters/{cluster}/switchover", OPERATOR, Endpoint::Switchover),
    post("/api/v1/clusters/{cluster}/failover", OPERATOR, Endpoint::Failover),
    post("/api/v1/clusters/{cluster}/fence", OPERATOR, Endpoint::Fence),
    post("/api/v1/clusters/{cluster}/unfence", OPERATOR, Endpoint::Unfence),
    post("/api/v1/clusters/{cluster}/rejoin", OPERATOR, Endpoint::Rejoin),
    post("/api/v1/clusters/{cluster}/pause", OPERATOR, Endpoint::Pause),
    post("/api/v1/clusters/{cluster}/resume", OPERATOR, Endpoint::Resume),
    post("/api/v1/clusters/{cluster}/heartbeat", Access::Agents, Endpoint::Heartbeat),
    post("/api/v1/clusters/{cluster}/proxy-heartbeat", Access::Agents, Endpoint::ProxyHeartbeat),
];
