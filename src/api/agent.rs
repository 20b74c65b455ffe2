//! HTTP of the agents: Patroni's health paths, metrics, and the commands of controllers.
//!
//! A route asks a handler and turns the answer into a status or JSON. What is healthy is said in [`health`];
//! how a command is carried out never enters.

pub mod health;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Json, Router, middleware};
use serde::de::DeserializeOwned;
use subtle::ConstantTimeEq;

use super::entrance::{Door, Entrance, Peer};
use super::wire::Problem;
use crate::domain::backup::Repository;
use crate::domain::certificate::CertificateRole;
pub use crate::domain::command::WAIT_HEADER;
use crate::domain::command::{
    Assignment, CommandEnvelope, CommandReply, PromiseReply, PromiseRequest, ProxyAssignment, ProxyReply,
};
use crate::domain::ids::HolderName;
use crate::domain::report::ProxyReport;
use health::{HealthPath, NodeSnapshot};

/// Largest body accepted. An assignment for a thousand nodes stays well below.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// How long a command is waited for before it is answered as running; a controller may ask for less.
const COMMAND_WAIT: Duration = Duration::from_secs(5);

/// Why an agent does not take an assignment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AssignmentRefused(pub String);

/// The agent of a database host.
#[async_trait]
pub trait AgentHandler: Send + Sync + 'static {
    /// Begins a command, or finds it under way or finished, and waits up to `wait` for its end.
    async fn command(&self, envelope: CommandEnvelope, wait: Duration) -> CommandReply;
    /// Takes an assignment.
    async fn assign(&self, assignment: Assignment) -> Result<(), AssignmentRefused>;
    /// Promises the holder of an epoch not to be promoted, or says why not.
    async fn promise(&self, request: PromiseRequest) -> PromiseReply;
    /// What is in the backup repository, as the repository itself says; an error in words.
    async fn backups(&self) -> Result<Repository, String> {
        Err("this agent has no backup repository".to_owned())
    }
    /// What the health paths answer from; must not wait.
    fn snapshot(&self) -> NodeSnapshot;
    /// Prometheus text.
    fn metrics(&self) -> String;
}

/// The agent of a proxy host.
#[async_trait]
pub trait ProxyHandler: Send + Sync + 'static {
    /// Puts an assignment in force; an older one than stored is answered with an error in the reply.
    async fn assign(&self, assignment: ProxyAssignment) -> ProxyReply;
    /// Carries out a command (`VerifyWrite`). The reply's `report` stays `None`: it is a node's.
    async fn command(&self, envelope: CommandEnvelope) -> CommandReply;
    /// Current facts; must not wait.
    fn report(&self) -> ProxyReport;
    /// Prometheus text.
    fn metrics(&self) -> String;
}

/// Who may command an agent: a controller by its certificate, and whoever has the token that controllers and agents may share.
/// Never shows the token.
#[derive(Clone)]
pub struct Gate {
    token: Option<Arc<str>>,
}

/// By what right a request was admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Right {
    /// Everything: the token, or a controller's certificate.
    Command,
    /// The certificate of the agent with this name: it may ask for promises to its own node.
    Agent(HolderName),
}

impl Gate {
    /// Certificates only.
    pub fn certificates() -> Self {
        Self { token: None }
    }

    /// Certificates, and this token.
    pub fn token(secret: &str) -> Self {
        Self { token: Some(secret.into()) }
    }

    /// A token that is sent counts alone; without one, the certificate of the connection does.
    fn right(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Option<Right> {
        if let Some(given) = headers.get(header::AUTHORIZATION) {
            let given = given.as_bytes().strip_prefix(b"Bearer ")?;
            // Takes the same time wherever the first difference is.
            let is_right: bool = given.ct_eq(self.token.as_ref()?.as_bytes()).into();
            return is_right.then_some(Right::Command);
        }
        let holder = peer?.holder.as_ref()?;
        match holder.role {
            CertificateRole::Controller => Some(Right::Command),
            CertificateRole::Agent => Some(Right::Agent(holder.name.clone())),
            CertificateRole::Client | CertificateRole::Server => None,
        }
    }
}

/// Routes of a database host.
pub fn node_router(handler: Arc<dyn AgentHandler>, gate: Gate) -> Router {
    let mut health = Router::new();
    for (path, kind) in HealthPath::ALL {
        health = health.route(path, health_route(*kind));
    }
    let open = health
        .route("/patroni", get(async |State(handler): Node| Json(handler.snapshot().patroni())))
        .route("/cluster", get(async |State(handler): Node| Json(handler.snapshot().cluster())))
        .route("/history", get(async |State(handler): Node| Json(handler.snapshot().history())))
        .route("/metrics", get(async |State(handler): Node| prometheus_text(handler.metrics())));
    let guarded = Router::new()
        .route("/v1/command", post(node_command))
        .route("/v1/assignment", post(node_assignment))
        .route("/v1/backups", get(node_backups))
        .layer(middleware::from_fn(require_command));
    let guarded = guarded
        .merge(Router::new().route("/v1/promise", post(node_promise)))
        .layer(middleware::from_fn_with_state(gate, require_right));
    finish(open.merge(guarded).with_state(handler))
}

/// Routes of a proxy host.
pub fn proxy_router(handler: Arc<dyn ProxyHandler>, gate: Gate) -> Router {
    let open = Router::new()
        .route("/health", get(proxy_health).options(proxy_health))
        .route("/readiness", get(proxy_health).options(proxy_health))
        .route("/liveness", get(async || StatusCode::OK).options(async || StatusCode::OK))
        .route("/metrics", get(async |State(handler): Proxy| prometheus_text(handler.metrics())));
    let guarded = Router::new()
        .route("/v1/command", post(proxy_command))
        .route("/v1/proxy/assignment", post(proxy_assignment))
        .layer(middleware::from_fn(require_command))
        .layer(middleware::from_fn_with_state(gate, require_right));
    finish(open.merge(guarded).with_state(handler))
}

/// Serves `router` on a socket that is already bound, until `shutdown` resolves.
pub async fn serve(
    door: impl Into<Door>,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let service = router.into_make_service_with_connect_info::<Peer>();
    axum::serve(Entrance::open(door.into())?, service).with_graceful_shutdown(shutdown).await
}

type Node = State<Arc<dyn AgentHandler>>;
type Proxy = State<Arc<dyn ProxyHandler>>;

fn finish(router: Router) -> Router {
    router
        .fallback(async || problem(StatusCode::NOT_FOUND, "no such path", "see docs: HTTP of the agent"))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

fn health_route(kind: HealthPath) -> MethodRouter<Arc<dyn AgentHandler>> {
    get(async move |State(handler): Node, Query(query): Query<Vec<(String, String)>>| {
        let snapshot = handler.snapshot();
        (health_status(&snapshot, kind, &query), Json(snapshot.patroni()))
    })
    .options(async move |State(handler): Node, Query(query): Query<Vec<(String, String)>>| {
        health_status(&handler.snapshot(), kind, &query)
    })
}

fn health_status(snapshot: &NodeSnapshot, kind: HealthPath, query: &[(String, String)]) -> StatusCode {
    let lag = query.iter().find(|(key, _)| key == "lag").map(|(_, value)| value.as_str());
    if snapshot.passes(kind, lag) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn require_right(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer.clone());
    match gate.right(request.headers(), peer.as_ref()) {
        Some(right) => {
            request.extensions_mut().insert(right);
            next.run(request).await
        }
        None => Problem::unauthorised(
            "send the agent token of this cluster as Authorization: Bearer, or connect with a controller's certificate",
        )
        .into_response(),
    }
}

async fn require_command(request: Request, next: Next) -> Response {
    match request.extensions().get::<Right>() {
        Some(Right::Command) => next.run(request).await,
        _ => Problem::forbidden("commands are for controllers: an agent's certificate does not carry them")
            .into_response(),
    }
}

async fn node_command(
    State(handler): Node,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<CommandReply>, Problem> {
    let envelope = document::<CommandEnvelope>(body)?;
    let asked = headers.get(WAIT_HEADER).and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_millis);
    Ok(Json(handler.command(envelope, asked.unwrap_or(COMMAND_WAIT).min(COMMAND_WAIT)).await))
}

async fn node_assignment(State(handler): Node, body: Result<Bytes, BytesRejection>) -> Result<StatusCode, Problem> {
    let assignment = document::<Assignment>(body)?;
    match handler.assign(assignment).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(refused) => Err(problem(StatusCode::CONFLICT, "assignment refused", &refused.0)),
    }
}

async fn node_promise(
    State(handler): Node,
    Extension(right): Extension<Right>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<PromiseReply>, Problem> {
    let request = document::<PromiseRequest>(body)?;
    match right {
        Right::Agent(name) if name.as_str() != request.holder.as_str() => Err(Problem::forbidden(format!(
            "the certificate is that of agent {name}, the promise is asked for by {}: each asks for itself",
            request.holder
        ))),
        _ => Ok(Json(handler.promise(request).await)),
    }
}

async fn node_backups(State(handler): Node) -> Result<Json<Repository>, Problem> {
    match handler.backups().await {
        Ok(repository) => Ok(Json(repository)),
        Err(why) => Err(problem(StatusCode::CONFLICT, "the repository cannot be listed", &why)),
    }
}

async fn proxy_health(State(handler): Proxy) -> (StatusCode, Json<ProxyReport>) {
    let report = handler.report();
    let status = if report.error.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report))
}

async fn proxy_command(
    State(handler): Proxy,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<CommandReply>, Problem> {
    Ok(Json(handler.command(document(body)?).await))
}

async fn proxy_assignment(
    State(handler): Proxy,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ProxyReply>, Problem> {
    Ok(Json(handler.assign(document(body)?).await))
}

fn document<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Problem> {
    let body = body.map_err(|rejection| problem(rejection.status(), "body refused", &rejection.body_text()))?;
    serde_json::from_slice(&body)
        .map_err(|error| problem(StatusCode::BAD_REQUEST, "malformed document", &format!("read the body: {error}")))
}

fn prometheus_text(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

fn problem(status: StatusCode, title: &str, detail: &str) -> Problem {
    Problem {
        kind: "about:blank".to_owned(),
        title: title.to_owned(),
        status: status.as_u16(),
        detail: detail.to_owned(),
        reasons: Vec::new(),
        leader: None,
    }
}
