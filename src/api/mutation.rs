//! What people can ask the controller to change: read from a body, written into the audit log, given to the handler.

use std::fmt;

use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::authentication::Caller;
use super::body;
use super::controller::ControllerHandler;
use super::risk::PromoteRequest;
use super::routes::Endpoint;
use super::wire::{FailoverRequest, MutationReply, NodeRequest, PauseRequest, Problem, SwitchoverRequest};

/// A change that was asked for.
pub(super) enum Mutation {
    Cancel,
    Switchover(SwitchoverRequest),
    Failover(FailoverRequest),
    Fence(NodeRequest),
    Unfence(NodeRequest),
    Rejoin(NodeRequest),
    Pause(PauseRequest),
    Resume,
    ModelPromote(PromoteRequest),
    ModelRollback,
}

/// The body of a request without settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Mutation {
    pub(super) fn parse(endpoint: Endpoint, headers: &HeaderMap, body: &[u8]) -> Result<Self, Problem> {
        Ok(match endpoint {
            Endpoint::Switchover => Self::Switchover(body::parse(headers, body)?),
            Endpoint::Failover => Self::Failover(body::parse(headers, body)?),
            Endpoint::Fence => Self::Fence(body::parse(headers, body)?),
            Endpoint::Unfence => Self::Unfence(body::parse(headers, body)?),
            Endpoint::Rejoin => Self::Rejoin(body::parse(headers, body)?),
            Endpoint::Pause => Self::Pause(body::parse(headers, body)?),
            Endpoint::ModelPromote => Self::ModelPromote(body::parse(headers, body)?),
            Endpoint::ModelRollback => body::parse::<Nothing>(headers, body).map(|_| Self::ModelRollback)?,
            Endpoint::Cancel => body::parse::<Nothing>(headers, body).map(|_| Self::Cancel)?,
            Endpoint::Resume => body::parse::<Nothing>(headers, body).map(|_| Self::Resume)?,
            endpoint => return Err(Problem::internal(format!("{} changes nothing", endpoint.verb()))),
        })
    }

    /// `target` is the cluster, or the operation to cancel.
    pub(super) async fn run(
        self,
        handler: &dyn ControllerHandler,
        target: &str,
        caller: &Caller,
    ) -> Result<MutationReply, Problem> {
        match self {
            Self::Cancel => handler.cancel(target, caller).await,
            Self::Switchover(request) => handler.switchover(target, request, caller).await,
            Self::Failover(request) => handler.failover(target, request, caller).await,
            Self::Fence(request) => handler.fence(target, request, caller).await,
            Self::Unfence(request) => handler.unfence(target, request, caller).await,
            Self::Rejoin(request) => handler.rejoin(target, request, caller).await,
            Self::Pause(request) => handler.pause(target, request, caller).await,
            Self::Resume => handler.resume(target, caller).await,
            Self::ModelPromote(request) => handler.promote_model(request, caller).await,
            Self::ModelRollback => handler.roll_back_model(caller).await,
        }
    }
}

/// The settings as one line of JSON; nothing for a request without settings.
impl fmt::Display for Mutation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn line<T: Serialize>(request: &T) -> String {
            serde_json::to_string(request).expect("requests are plain data and always have a JSON form")
        }
        let line = match self {
            Self::Cancel | Self::Resume | Self::ModelRollback => return Ok(()),
            Self::Switchover(request) => line(request),
            Self::Failover(request) => line(request),
            Self::Fence(request) | Self::Unfence(request) | Self::Rejoin(request) => line(request),
            Self::Pause(request) => line(request),
            Self::ModelPromote(request) => line(request),
        };
        formatter.write_str(&line)
    }
}
