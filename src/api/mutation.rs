//! What people can ask the controller to change: read from a body, written into the audit log, given to the handler.
//!
//! A new kind of change is one arm in [`Mutation::parse`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::http::HeaderMap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::authentication::Caller;
use super::body;
use super::clusters::ClusterAddRequest;
use super::controller::ControllerHandler;
use super::routes::{Endpoint, Route};
use super::tokens::TokenReply;
use super::webhook::{AlertmanagerPost, AlertsReply};
use super::wire::{MutationReply, Problem};

/// A change that was carried out, or begun.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Done {
    /// For the audit log, one line.
    pub message: String,
    /// The answer's body.
    pub body: Value,
}

impl From<MutationReply> for Done {
    fn from(reply: MutationReply) -> Self {
        Self { message: reply.message.clone(), body: json(&reply) }
    }
}

impl From<TokenReply> for Done {
    fn from(reply: TokenReply) -> Self {
        Self { message: reply.message.clone(), body: json(&reply) }
    }
}

impl From<AlertsReply> for Done {
    fn from(reply: AlertsReply) -> Self {
        Self { message: reply.sentence(), body: json(&reply) }
    }
}

/// Who and what a change is about.
pub(super) struct Wish {
    pub handler: Arc<dyn ControllerHandler>,
    /// The first parameter of the path: the cluster, or the operation.
    pub target: String,
    pub caller: Caller,
    /// The second parameter of the path; empty where there is none.
    pub name: String,
}

type Outcome = Result<Done, Problem>;
type Run = Box<dyn FnOnce(Wish) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send>;

/// A change that was asked for.
pub(super) struct Mutation {
    /// The settings as one line of JSON; empty for a request without settings.
    pub line: String,
    run: Run,
}

/// The body of a request without settings.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// A change with settings: `takes!(headers, body, |wish, request: T| future)`.
macro_rules! takes {
    ($headers:expr, $body:expr, |$wish:ident, $request:ident| $call:expr) => {
        with_settings($headers, $body, |$wish: Wish, $request| Box::pin(async move { $call.await.map(Done::from) }))
    };
}

/// A change without settings.
macro_rules! asks {
    ($headers:expr, $body:expr, |$wish:ident| $call:expr) => {
        without_settings($headers, $body, |$wish: Wish| Box::pin(async move { $call.await.map(Done::from) }))
    };
}

impl Mutation {
    /// Reads what is asked.
    pub(super) fn parse(route: &Route, headers: &HeaderMap, body: &[u8]) -> Result<Self, Problem> {
        match route.endpoint {
            Endpoint::Switchover => {
                takes!(headers, body, |it, request| it.handler.switchover(&it.target, request, &it.caller))
            }
            Endpoint::Failover => {
                takes!(headers, body, |it, request| it.handler.failover(&it.target, request, &it.caller))
            }
            Endpoint::ModelPromote => {
                takes!(headers, body, |it, request| it.handler.promote_model(request, &it.caller))
            }
            Endpoint::NotificationTest => {
                asks!(headers, body, |it| it.handler.test_notification(&it.target, &it.caller))
            }
            Endpoint::ModelRollback => asks!(headers, body, |it| it.handler.roll_back_model(&it.caller)),
            Endpoint::Fence => takes!(headers, body, |it, request| it.handler.fence(&it.target, request, &it.caller)),
            Endpoint::Unfence => {
                takes!(headers, body, |it, request| it.handler.unfence(&it.target, request, &it.caller))
            }
            Endpoint::Rejoin => takes!(headers, body, |it, request| it.handler.rejoin(&it.target, request, &it.caller)),
            Endpoint::SequenceBegin => {
                takes!(headers, body, |it, request| it
                    .handler
                    .begin_sequence(&it.target, &it.name, request, &it.caller))
            }
            Endpoint::Backup => takes!(headers, body, |it, request| it.handler.backup(&it.target, request, &it.caller)),
            Endpoint::Drill => takes!(headers, body, |it, request| it.handler.drill(&it.target, request, &it.caller)),
            Endpoint::Retrain => {
                takes!(headers, body, |it, request| it.handler.retrain(&it.target, request, &it.caller))
            }
            Endpoint::Restore => {
                takes!(headers, body, |it, request| it.handler.restore(&it.target, request, &it.caller))
            }
            Endpoint::Pause => takes!(headers, body, |it, request| it.handler.pause(&it.target, request, &it.caller)),
            Endpoint::Cancel => asks!(headers, body, |it| it.handler.cancel(&it.target, &it.caller)),
            Endpoint::Resume => asks!(headers, body, |it| it.handler.resume(&it.target, &it.caller)),
            Endpoint::TokenCreate => {
                takes!(headers, body, |it, request| it.handler.create_token(request, &it.caller))
            }
            Endpoint::TokenRevoke => asks!(headers, body, |it| it.handler.revoke_token(&it.target, &it.caller)),
            Endpoint::ClusterAdd => {
                let request: ClusterAddRequest = body::parse(headers, body)?;
                Ok(Mutation {
                    line: request.line(),
                    run: Box::new(|it: Wish| {
                        Box::pin(async move { it.handler.add_cluster(request, &it.caller).await.map(Done::from) })
                    }),
                })
            }
            Endpoint::ClusterRemove => {
                takes!(headers, body, |it, request| it.handler.remove_cluster(&it.target, request, &it.caller))
            }
            Endpoint::Alertmanager => {
                let post: AlertmanagerPost = body::parse(headers, body)?;
                let line = post.line();
                let alerts = post.into_alerts()?;
                Ok(Mutation {
                    line,
                    run: Box::new(|it: Wish| {
                        Box::pin(async move { it.handler.alerts(alerts, &it.caller).await.map(Done::from) })
                    }),
                })
            }
            _ => Err(Problem::internal(format!("{} changes nothing", route.verb))),
        }
    }

    /// Carries it out.
    pub(super) async fn run(self, wish: Wish) -> Outcome {
        (self.run)(wish).await
    }
}

fn with_settings<T: DeserializeOwned + Serialize + Send + 'static>(
    headers: &HeaderMap,
    body: &[u8],
    run: impl FnOnce(Wish, T) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + 'static,
) -> Result<Mutation, Problem> {
    let request: T = body::parse(headers, body)?;
    // In the order of the fields, as people read it.
    let line = serde_json::to_string(&request).map_err(|error| Problem::internal(error.to_string()))?;
    Ok(Mutation { line, run: Box::new(move |wish| run(wish, request)) })
}

fn without_settings(
    headers: &HeaderMap,
    body: &[u8],
    run: impl FnOnce(Wish) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + 'static,
) -> Result<Mutation, Problem> {
    body::parse::<Nothing>(headers, body)?;
    Ok(Mutation { line: String::new(), run: Box::new(run) })
}

fn json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("requests and replies are plain data and always have a JSON form")
}
