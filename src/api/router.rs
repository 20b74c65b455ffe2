//! The controller's routes at work: who asks, may they, what do they ask, and the trace it leaves.
//!
//! Answers come from [`ControllerHandler`]; nothing is decided here but access.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, FromRequestParts, RawPathParams, Request, State};
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Method as HttpMethod, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::authentication::{Authentication, Caller, Identity, TokenDigest, presented_token};
use super::body;
use super::controller::ControllerHandler;
use super::entrance::Peer;
use super::idempotency::{Claim, Key, REPLAYED_HEADER};
use super::limits::{Limits, REQUESTS_PER_SECOND_DEFAULT, Strangers};
use super::listing::{Listing, Wanted};
use super::mutation::{Done, Mutation, Wish};
use super::openapi::OPENAPI;
use super::openid;
use super::question::{Question, printable};
use super::routes::{Access, Endpoint, Method, ROUTES, Route};
use super::stream;
use super::tokens::{TokenDocument, TokenRequest};
use super::wire::{Problem, Word};
use crate::domain::certificate::CertificateRole;
use crate::domain::ids::ClusterName;
use crate::domain::operation::Operation;
use crate::domain::report::{ProxyReport, Report};

/// The page for people.
const DASHBOARD: &str = include_str!("dashboard.html");
/// The page loads nothing from elsewhere, and nobody else shows it.
const DASHBOARD_POLICY: &str = "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; \
                                frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Puts the controller's API together.
pub fn router(handler: Arc<dyn ControllerHandler>, authentication: Arc<Authentication>) -> Router {
    limited(handler, authentication, REQUESTS_PER_SECOND_DEFAULT)
}

/// The same, with so many requests a second for each caller.
pub fn limited(
    handler: Arc<dyn ControllerHandler>,
    authentication: Arc<Authentication>,
    requests_per_second: u32,
) -> Router {
    let limits = Arc::new(Limits::new(requests_per_second));
    let state = Api { handler, authentication, limits, strangers: Arc::default() };
    let mut router = Router::new();
    for route in ROUTES {
        let filter = match route.method {
            Method::Get => MethodFilter::GET,
            Method::Post => MethodFilter::POST,
        };
        router = router.route(
            route.path,
            on(filter, move |State(api): State<Api>, request: Request| async move { api.answer(route, request).await }),
        );
    }
    let browser = SwaggerUi::new("/api/docs").config(Config::from("/api/v1/openapi.json").validator_url("none"));
    router.merge(browser).method_not_allowed_fallback(wrong_method).fallback(unknown_route).with_state(state)
}

async fn unknown_route(method: HttpMethod, uri: Uri) -> Problem {
    Problem::not_found(format!("there is no route {method} {}; see /api/v1/openapi.json", uri.path()))
}

async fn wrong_method(method: HttpMethod, uri: Uri) -> Problem {
    Problem::method_not_allowed(format!("{} does not take {method}; see /api/v1/openapi.json", uri.path()))
}

#[derive(Clone)]
struct Api {
    handler: Arc<dyn ControllerHandler>,
    authentication: Arc<Authentication>,
    limits: Arc<Limits>,
    strangers: Arc<Mutex<Strangers>>,
}

impl Api {
    async fn answer(self, route: &'static Route, request: Request) -> Response {
        let (mut parts, body) = request.into_parts();
        let parameters = match RawPathParams::from_request_parts(&mut parts, &()).await {
            Ok(found) => found.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            Err(error) => return Problem::bad_request(error.to_string()).into_response(),
        };
        let Some(ConnectInfo(Peer { address: peer, holder })) = parts.extensions.get::<ConnectInfo<Peer>>().cloned()
        else {
            return Problem::internal("the peer's address is not known: serve the router with api::server")
                .into_response();
        };
        let question = Question { route, parameters, peer, holder, parts };
        let identity = match self.admit(&question).await {
            Ok(identity) => identity,
            Err(problem) => return problem.into_response(),
        };
        let body = match route.method {
            Method::Get => Bytes::new(),
            Method::Post => match body::read(body, route.body_length_max).await {
                Ok(body) => body,
                Err(problem) => {
                    self.audit(&question, &name(identity.as_ref()), "", &Err(problem.clone())).await;
                    return problem.into_response();
                }
            },
        };
        match (route.access, identity) {
            (Access::Open, _) => self.open(route.endpoint),
            (Access::Agents, _) => self.agent(&question, &body).await.unwrap_or_else(Problem::into_response),
            (Access::AtLeast(_), Some(Identity::Person { name, role, clusters })) => {
                let caller = Caller { name, role, clusters, peer: question.peer };
                if route.is_mutation() {
                    self.mutate_to_the_end(question, caller, body).await
                } else {
                    self.read(&question).await.unwrap_or_else(Problem::into_response)
                }
            }
            (Access::AtLeast(_), _) => Problem::internal("a route for people admitted nobody").into_response(),
        }
    }

    /// Lets in whom the route is for; everybody else is answered, and written down where a mutation was asked for.
    async fn admit(&self, question: &Question) -> Result<Option<Identity>, Problem> {
        let needed = match question.route.access {
            Access::Open => return Ok(None),
            needed => needed,
        };
        // An error: who follows knows no stored tokens; the leader does.
        let (identity, words) = match self.identify(question).await? {
            Speaker::Known(identity) => (Some(identity), String::new()),
            Speaker::Unknown(words) => (None, words),
        };
        self.limit(question, identity.as_ref())?;
        let problem = match (needed, &identity) {
            (_, None) => Problem::unauthorised(words),
            (_, Some(Identity::WithoutRole { why, .. })) => Problem::forbidden(why.clone()),
            (Access::Agents, Some(Identity::Agent | Identity::AgentOf(_))) => return Ok(identity),
            (Access::AtLeast(needed), Some(Identity::Person { name, role, clusters })) if *role >= needed => {
                match self.scope_problem(question, name, clusters).await {
                    None => return Ok(identity),
                    Some(problem) => problem,
                }
            }
            (Access::AtLeast(needed), Some(Identity::Person { name, role, .. })) => Problem::forbidden(format!(
                "{} needs the role {}; token {name:?} has the role {}",
                question.route.verb,
                needed.label(),
                role.label()
            )),
            (_, Some(_)) => Problem::forbidden(match needed {
                Access::Agents => "this route is for agents: it takes the agents' token or an agent's certificate only",
                _ => "this route is for people and scripts: it takes their tokens only",
            }),
        };
        if identity.is_some() {
            self.audit(question, &name(identity.as_ref()), "", &Err(problem.clone())).await;
        } else if self.strangers.lock().unwrap_or_else(PoisonError::into_inner).may_write(self.handler.wall()) {
            tracing::warn!(
                peer = %question.peer,
                route = question.route.path,
                "refused a request without a known token"
            );
            self.audit(question, "(no known token)", "", &Err(problem.clone())).await;
        }
        Err(problem)
    }

    /// Whose token a request carries: of the configuration, of an issuer of OpenID tokens, or of the store.
    async fn identify(&self, question: &Question) -> Result<Speaker, Problem> {
        let Some(token) = presented_token(&question.parts.headers) else {
            // Without a token the certificate speaks, and only an agent's says enough.
            let agent = question.holder.as_ref().filter(|holder| holder.role == CertificateRole::Agent);
            let words = "send a token: authorization: Bearer TOKEN, or x-api-token: TOKEN";
            return Ok(agent.map_or_else(
                || Speaker::Unknown(words.to_owned()),
                |holder| Speaker::Known(Identity::AgentOf(holder.name.clone())),
            ));
        };
        if let Some(identity) = self.authentication.identify(token) {
            return Ok(Speaker::Known(identity.clone()));
        }
        // No agent has an OpenID token, and no heartbeat waits for an issuer.
        let judge = self.authentication.open_id().filter(|_| question.route.access != Access::Agents);
        if let Some(judge) = judge.filter(|_| openid::looks_like_one(token)) {
            let judged = judge.identify(token, self.handler.wall()).await;
            return Ok(judged.map_or_else(|refusal| Speaker::Unknown(refusal.to_string()), Speaker::Known));
        }
        let words = "the token is not known here: check it, or ask an administrator for one";
        let stored = self.handler.stored_token(&TokenDigest::of(token))?;
        Ok(stored.map_or_else(|| Speaker::Unknown(words.to_owned()), Speaker::Known))
    }

    /// Whether this caller may ask once more now.
    fn limit(&self, question: &Question, identity: Option<&Identity>) -> Result<(), Problem> {
        let may = match identity {
            Some(Identity::Agent | Identity::AgentOf(_)) => true,
            Some(Identity::Person { name, .. } | Identity::WithoutRole { name, .. }) => self.limits.admit(name),
            None => self.limits.admit_stranger(question.peer.ip()),
        };
        if may { Ok(()) } else { Err(Problem::too_many("you ask too often: wait a second")) }
    }

    /// A token for some clusters is good for nothing else. Alerts of one post are of several: each is judged where it is taken.
    async fn scope_problem(&self, question: &Question, name: &str, clusters: &[ClusterName]) -> Option<Problem> {
        if clusters.is_empty() || question.route.endpoint == Endpoint::Alertmanager {
            return None;
        }
        let named = question.parameters.iter().find(|(parameter, _)| parameter == "cluster");
        let touched = match named {
            Some((_, cluster)) => vec![cluster.clone()],
            None => match self.handler.clusters().await {
                Ok(kept) => kept.into_iter().map(|status| status.cluster).collect(),
                Err(problem) => return Some(problem),
            },
        };
        let outside = touched.iter().find(|cluster| !clusters.iter().any(|allowed| allowed.as_str() == *cluster))?;
        Some(Problem::forbidden(format!("token {name:?} is not for cluster {}", printable(outside))))
    }

    fn open(&self, endpoint: Endpoint) -> Response {
        match endpoint {
            Endpoint::Ready => match self.handler.ready() {
                Ok(()) => Json(Word::new("ready")).into_response(),
                Err(reason) => Problem::unavailable(reason).into_response(),
            },
            Endpoint::Metrics => {
                ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], self.handler.metrics()).into_response()
            }
            Endpoint::Dashboard => (
                [
                    (CONTENT_TYPE, "text/html; charset=utf-8"),
                    (CONTENT_SECURITY_POLICY, DASHBOARD_POLICY),
                    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
                    (REFERRER_POLICY, "no-referrer"),
                ],
                DASHBOARD,
            )
                .into_response(),
            Endpoint::OpenApi => ([(CONTENT_TYPE, "application/json")], OPENAPI.as_str()).into_response(),
            _ => Json(Word::new("ok")).into_response(),
        }
    }

    async fn agent(&self, question: &Question, body: &[u8]) -> Result<Response, Problem> {
        let headers = &question.parts.headers;
        if question.route.endpoint == Endpoint::Heartbeat {
            let report: Report = body::parse(headers, body)?;
            question.require_cluster(&report.cluster)?;
            question.require_speaker(report.node.as_str())?;
            Ok(Json(self.handler.heartbeat(report).await?).into_response())
        } else {
            let report: ProxyReport = body::parse(headers, body)?;
            question.require_cluster(&report.cluster)?;
            question.require_speaker(report.proxy.as_str())?;
            Ok(Json(self.handler.proxy_heartbeat(report).await?).into_response())
        }
    }

    async fn read(&self, question: &Question) -> Result<Response, Problem> {
        let target = question.target();
        let uri = &question.parts.uri;
        let wanted = Wanted::of(uri)?;
        let handler = &self.handler;
        Ok(match question.route.endpoint {
            Endpoint::Clusters => Json(handler.clusters().await?).into_response(),
            Endpoint::Status => handler.status(target).await?.answer(),
            Endpoint::Definition => Json(handler.definition(target).await?).into_response(),
            Endpoint::Explain => Json(handler.explain(target).await?).into_response(),
            Endpoint::Doctor => Json(handler.doctor(target).await?).into_response(),
            Endpoint::Risk => Json(handler.risk(target).await?).into_response(),
            Endpoint::Models => Json(handler.models().await?).into_response(),
            Endpoint::Notifications => Json(handler.notifications().await?).into_response(),
            Endpoint::Sequences => Json(handler.sequences(target).await?).into_response(),
            Endpoint::Events => handler.page_of_events(target, wanted).await?.into_answer(uri, wanted.limit),
            Endpoint::EventStream => stream::events(handler.clone(), target.to_owned()).await?,
            Endpoint::History => self.history(target, wanted).await?.into_answer(uri, wanted.limit),
            Endpoint::ClusterOperations => {
                handler.page_of_operations(Some(target), wanted).await?.into_answer(uri, wanted.limit)
            }
            Endpoint::Operations => handler.page_of_operations(None, wanted).await?.into_answer(uri, wanted.limit),
            Endpoint::Tokens => {
                let mut all: Vec<TokenDocument> = self.authentication.people().filter_map(configured).collect();
                all.extend(handler.tokens().await?);
                Json(all).into_response()
            }
            Endpoint::Operation => Json(handler.operation(target).await?).into_response(),
            Endpoint::Backups => Json(handler.backups(target).await?).into_response(),
            Endpoint::Report => Json(handler.report(target).await?).into_response(),
            Endpoint::Audit => handler.page_of_audit(wanted).await?.into_answer(uri, wanted.limit),
            _ => return Err(Problem::internal(format!("{} is no question", question.route.verb))),
        })
    }

    /// Operations that have ended: those under way are left out, so that a page may take more than one of all operations.
    async fn history(&self, cluster: &str, wanted: Wanted) -> Result<Listing<Operation>, Problem> {
        let mut history = Listing { rows: Vec::new(), next: wanted.before };
        loop {
            let rest = Wanted { limit: wanted.limit - history.rows.len(), before: history.next };
            let page = self.handler.page_of_operations(Some(cluster), rest).await?;
            history.next = page.next;
            history.rows.extend(page.rows.into_iter().filter(|operation| operation.status.is_final()));
            if history.next.is_none() || history.rows.len() >= wanted.limit {
                return Ok(history);
            }
        }
    }

    /// A change under a key is made once; without one it is made.
    async fn change(
        &self,
        question: &Question,
        caller: Caller,
        body: &[u8],
        mutation: Mutation,
    ) -> (bool, Result<Done, Problem>) {
        let headers = &question.parts.headers;
        let key = match Key::of(headers, &caller.name, question.parts.uri.path(), body) {
            Ok(key) => key,
            Err(problem) => return (false, Err(problem)),
        };
        if let Some(key) = &key {
            match key.claim(self.handler.as_ref()).await {
                Ok(Claim::First) => {}
                Ok(Claim::Replay(result)) => return (true, result),
                Err(problem) => return (false, Err(problem)),
            }
        }
        let target = question.target().to_owned();
        let name = question.second().to_owned();
        let result = mutation.run(Wish { handler: self.handler.clone(), target, caller, name }).await;
        if let Some(key) = &key {
            key.settle(self.handler.as_ref(), &result).await;
        }
        (false, result)
    }

    /// A name of the configuration is nobody else's.
    fn name_problem(&self, question: &Question, body: &[u8]) -> Option<Problem> {
        if question.route.endpoint != Endpoint::TokenCreate {
            return None;
        }
        let request: TokenRequest = serde_json::from_slice(body).ok()?;
        let taken = self.authentication.people().any(|known| known.to_string() == request.name);
        taken.then(|| {
            Problem::refused(
                format!("there is a token {} in the configuration: take another name", request.name),
                Vec::new(),
            )
        })
    }

    /// Runs a mutation in a task of its own: a caller that hangs up must leave neither half a mutation
    /// nor one that the audit log does not know.
    async fn mutate_to_the_end(self, question: Question, caller: Caller, body: Bytes) -> Response {
        let status = StatusCode::from_u16(question.route.status).unwrap_or(StatusCode::OK);
        let task = tokio::spawn(async move {
            let who = caller.name.clone();
            let parsed = Mutation::parse(question.route, &question.parts.headers, &body)
                .and_then(|mutation| self.name_problem(&question, &body).map_or(Ok(mutation), Err));
            let (mut request, (replayed, result)) = match parsed {
                Ok(mutation) => {
                    let request = mutation.line.clone();
                    (request, self.change(&question, caller, &body, mutation).await)
                }
                Err(problem) => (String::new(), (false, Err(problem))),
            };
            if replayed {
                request.push_str(" (repeated: answered as before)");
            }
            self.audit(&question, &who, request.trim_start(), &result).await;
            (replayed, result)
        });
        match task.await {
            Ok((replayed, result)) => {
                let mut response = match result {
                    Ok(done) => (status, Json(done.body)).into_response(),
                    Err(problem) => problem.into_response(),
                };
                if replayed {
                    response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
                }
                response
            }
            Err(_) => Problem::unknown_outcome(
                "the controller stopped or failed while it worked on this; see `stormglass operation list`",
            )
            .into_response(),
        }
    }

    async fn audit(&self, question: &Question, who: &str, request: &str, result: &Result<Done, Problem>) {
        if question.route.is_mutation() {
            self.handler.record_audit(question.row(self.handler.wall(), who, request, result)).await;
        }
    }
}

/// Who brings a request, as far as anybody can tell.
enum Speaker {
    Known(Identity),
    /// Nobody who is known; with what is said to that.
    Unknown(String),
}

/// A token of the configuration as it is listed.
fn configured(identity: &Identity) -> Option<TokenDocument> {
    let Identity::Person { name, role, clusters } = identity else { return None };
    let (name, role, clusters) = (name.clone(), *role, clusters.clone());
    Some(TokenDocument { name, role, clusters, created: None, created_by: None, expires: None })
}

fn name(identity: Option<&Identity>) -> String {
    identity.map(Identity::to_string).unwrap_or_default()
}
