//! The agent's HTTP and its way to the controllers, over real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use stormglass::adapters::agent_http::Credentials;
use stormglass::adapters::control::HttpControl;
use stormglass::adapters::controller_link::HttpControllerLink;
use stormglass::adapters::peer_link::HttpPeerLink;
use stormglass::api::agent::health::NodeSnapshot;
use stormglass::api::agent::{AgentHandler, AssignmentRefused, Gate, ProxyHandler, node_router, proxy_router, serve};
use stormglass::api::entrance::Door;
use stormglass::domain::command::{
    Assignment, Command, CommandEnvelope, CommandOutput, CommandReply, CommandState, PromiseReply, PromiseRequest,
    ProxyAssignment, ProxyReply,
};
use stormglass::domain::epoch::{Epoch, RecordNumber};
use stormglass::domain::ids::{Address, ClusterName, NodeName, OperationId, ProxyName, SiteName, SystemIdentifier};
use stormglass::domain::lease::LeaseTimers;
use stormglass::domain::operation::StepName;
use stormglass::domain::report::ProxyReport;
use stormglass::ports::agent::{ControllerLink, PeerLink};
use stormglass::ports::control::ProxyControl;
use support::{Authority, client};

#[path = "support/pki.rs"]
mod support;

struct Proxy;

fn report() -> ProxyReport {
    ProxyReport {
        cluster: ClusterName::new("main").expect("valid"),
        proxy: ProxyName::new("p1").expect("valid"),
        site: SiteName::new("a").expect("valid"),
        write_address: Address::new("127.0.0.1", 5000),
        sequence: 1,
        incarnation: "i".to_owned(),
        write_target: None,
        holding: false,
        epoch: Epoch(1),
        path: None,
        error: None,
        traffic: None,
        protection: None,
    }
}

#[async_trait]
impl ProxyHandler for Proxy {
    async fn assign(&self, _assignment: ProxyAssignment) -> ProxyReply {
        ProxyReply { error: None, report: report() }
    }
    async fn command(&self, _envelope: CommandEnvelope) -> CommandReply {
        CommandReply { state: CommandState::Succeeded { output: CommandOutput::default() }, report: None }
    }
    fn report(&self) -> ProxyReport {
        report()
    }
    fn metrics(&self) -> String {
        "stormglass_node_up 1\n".to_owned()
    }
}

async fn serving(router: Router) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(serve(listener, router, std::future::pending()));
    url
}

#[tokio::test]
async fn commands_need_the_token_and_health_does_not() {
    let url = serving(proxy_router(Arc::new(Proxy), Gate::token("secret"))).await;
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    for method in [reqwest::Method::GET, reqwest::Method::HEAD, reqwest::Method::OPTIONS] {
        let answer = client.request(method, format!("{url}/health")).send().await.expect("answer");
        assert_eq!(answer.status(), StatusCode::OK);
    }
    let envelope = CommandEnvelope {
        cluster: ClusterName::new("main").expect("valid"),
        epoch: Epoch(1),
        operation: OperationId("o".to_owned()),
        step: StepName::Verify,
        attempt: 1,
        command: Command::VerifyWrite { expect: Address::new("127.0.0.1", 1) },
    };
    for token in [None, Some(""), Some("secre"), Some("secret2"), Some("wrong!")] {
        let mut request = client.post(format!("{url}/v1/command")).json(&envelope);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.expect("answer");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{token:?}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
    }
    let answer = client.post(format!("{url}/v1/command")).bearer_auth("secret").json(&envelope).send().await;
    let reply: CommandReply = answer.expect("answer").json().await.expect("a reply");
    assert!(matches!(reply.state, CommandState::Succeeded { .. }));
}

#[tokio::test]
async fn bad_bodies_are_refused_with_a_problem() {
    let url = serving(proxy_router(Arc::new(Proxy), Gate::token("secret"))).await;
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let too_long = "x".repeat(1024 * 1024 + 1);
    for (body, status) in
        [("{", StatusCode::BAD_REQUEST), ("{}", StatusCode::BAD_REQUEST), (&too_long, StatusCode::PAYLOAD_TOO_LARGE)]
    {
        let request = client.post(format!("{url}/v1/proxy/assignment")).bearer_auth("secret").body(body.to_owned());
        assert_eq!(request.send().await.expect("answer").status(), status);
    }
    assert_eq!(client.get(format!("{url}/nothing")).send().await.expect("answer").status(), StatusCode::NOT_FOUND);
}

fn controller(status: StatusCode, asked: Arc<AtomicU32>) -> Router {
    let assignment = ProxyAssignment {
        cluster: ClusterName::new("main").expect("valid"),
        epoch: Epoch(7),
        number: RecordNumber(8),
        primary: None,
        hold: false,
        leader: "c1".to_owned(),
        sequence: 1,
        backends: None,
    };
    let path = "/api/v1/clusters/main/proxy-heartbeat";
    Router::new().route(
        path,
        post(async move || {
            asked.fetch_add(1, Ordering::SeqCst);
            (status, Json(assignment))
        }),
    )
}

#[tokio::test]
async fn the_first_controller_with_authority_counts() {
    let asked = Arc::new(AtomicU32::new(0));
    let follower = serving(controller(StatusCode::SERVICE_UNAVAILABLE, asked.clone())).await;
    let leader = serving(controller(StatusCode::OK, asked.clone())).await;
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        format!("http://{}/", listener.local_addr().expect("bound"))
    };
    let timeout = Duration::from_secs(5);
    let link = HttpControllerLink::new(&[dead.clone(), follower.clone(), leader], "secret").expect("client");
    let assignment = link.proxy_heartbeat(&report(), timeout).await.expect("the leader answers");
    assert_eq!(assignment.epoch, Epoch(7));

    let link = HttpControllerLink::new(&[dead, follower], "secret").expect("client");
    let error = link.proxy_heartbeat(&report(), timeout).await.expect_err("nobody leads").to_string();
    assert!(error.contains("503") && error.contains("refused"), "{error}");
}

/// A standby that promises what it is asked for by its own name.
struct Standby;

#[async_trait]
impl AgentHandler for Standby {
    async fn command(&self, _envelope: CommandEnvelope, _wait: Duration) -> CommandReply {
        unreachable!("nobody commands it")
    }
    async fn assign(&self, _assignment: Assignment) -> Result<(), AssignmentRefused> {
        unreachable!("nobody assigns it")
    }
    async fn promise(&self, request: PromiseRequest) -> PromiseReply {
        if request.standby == node("n2") {
            PromiseReply::Promised
        } else {
            PromiseReply::Refused { reason: "this is n2".to_owned() }
        }
    }
    fn snapshot(&self) -> NodeSnapshot {
        unreachable!("nobody asks for its health")
    }
    fn metrics(&self) -> String {
        String::new()
    }
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("valid")
}

fn promise_request(standby: &str) -> PromiseRequest {
    PromiseRequest {
        cluster: ClusterName::new("main").expect("valid"),
        system_identifier: SystemIdentifier(7),
        epoch: Epoch(3),
        holder: node("n1"),
        standby: node(standby),
        timers: LeaseTimers::for_rto(Duration::from_secs(5)),
    }
}

#[tokio::test]
async fn a_promise_needs_the_token() {
    let url = serving(node_router(Arc::new(Standby), Gate::token("secret"))).await;
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    for token in [None, Some("wrong")] {
        let mut request = client.post(format!("{url}/v1/promise")).json(&promise_request("n2"));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        assert_eq!(request.send().await.expect("answer").status(), StatusCode::UNAUTHORIZED, "{token:?}");
    }
    let request = client.post(format!("{url}/v1/promise")).bearer_auth("secret");
    assert_eq!(request.body("{}").send().await.expect("answer").status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_holder_asks_the_agents_of_its_standbys() {
    let url = serving(node_router(Arc::new(Standby), Gate::token("secret"))).await;
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        format!("http://{}", listener.local_addr().expect("bound"))
    };
    let timeout = Duration::from_secs(5);
    let link = HttpPeerLink::new([(node("n3"), format!("{url}/"))].into(), "secret").expect("client");
    let ask = async |standby: &str, agent: &str| {
        link.promise(&node(standby), agent, &promise_request(standby), timeout).await
    };
    assert_eq!(ask("n2", &url).await, Ok(PromiseReply::Promised));
    let elsewhere = ask("n3", &dead).await.expect("this host reaches n3 at another address than the controllers do");
    assert!(matches!(elsewhere, PromiseReply::Refused { .. }), "{elsewhere:?}");
    let error = ask("n2", &dead).await.expect_err("nobody is there").to_string();
    assert!(error.contains("n2") && error.contains(&dead), "{error}");
    let stranger = HttpPeerLink::new(Default::default(), "wrong").expect("client");
    let refused = stranger.promise(&node("n2"), &url, &promise_request("n2"), timeout).await;
    assert!(refused.expect_err("another token").to_string().contains("401"));
}

#[tokio::test]
async fn a_standby_that_never_answers_is_given_up_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", silent.local_addr().expect("bound"));
    let link = HttpPeerLink::new(Default::default(), "secret").expect("client");
    let answer = tokio::time::timeout(Duration::from_secs(10), async {
        link.promise(&node("n2"), &url, &promise_request("n2"), Duration::from_millis(100)).await
    });
    assert!(answer.await.expect("given up").is_err());
}

/// Serves over TLS with the certificate of `name`, to whoever has a good certificate.
async fn secured(router: Router, authority: &Authority, name: &str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("https://{}", listener.local_addr().expect("bound"));
    let door = Door::new(listener, Some(authority.tls(name, "agent").server()));
    tokio::spawn(serve(door, router, std::future::pending()));
    url
}

#[tokio::test]
async fn a_controllers_certificate_commands_in_place_of_the_token_and_no_other_does() {
    let authority = Authority::new();
    let url = secured(proxy_router(Arc::new(Proxy), Gate::certificates()), &authority, "p1").await;
    let proxy = ProxyName::new("p1").expect("valid");
    let envelope = CommandEnvelope {
        cluster: ClusterName::new("main").expect("valid"),
        epoch: Epoch(1),
        operation: OperationId("o".to_owned()),
        step: StepName::Verify,
        attempt: 1,
        command: Command::VerifyWrite { expect: Address::new("127.0.0.1", 1) },
    };
    let command = async |name: &str, role: &str, token: Option<&str>| {
        let credentials = Credentials::new(token.map(str::to_owned), Some(&authority.tls(name, role)));
        let control = HttpControl::new(Default::default(), [(proxy.clone(), url.clone())].into(), credentials);
        let control = control.expect("good settings");
        ProxyControl::command(&control, &proxy, &envelope, Duration::from_secs(10)).await
    };
    let reply = command("c1", "controller", None).await.expect("carried out");
    assert!(matches!(reply.state, CommandState::Succeeded { .. }));
    for (name, role, token) in [
        ("db1", "agent", None),
        ("ann", "client", None),
        ("etcd-1", "server", None),
        ("c1", "controller", Some("no token counts where none is configured")),
    ] {
        let refused = command(name, role, token).await.expect_err(role).to_string();
        assert!(refused.contains("401") || refused.contains("403"), "{role}: {refused}");
    }
    let health = client(&authority.tls("ann", "client")).get(format!("{url}/health")).send().await.expect("an answer");
    assert_eq!(health.status(), StatusCode::OK, "health is open");
}

#[tokio::test]
async fn an_agents_certificate_asks_for_promises_to_itself_only() {
    let authority = Authority::new();
    let url = secured(node_router(Arc::new(Standby), Gate::certificates()), &authority, "n2").await;
    let ask = async |name: &str, role: &str| {
        let credentials = Credentials::new(None, Some(&authority.tls(name, role)));
        let link = HttpPeerLink::new(Default::default(), credentials).expect("client");
        link.promise(&node("n2"), &url, &promise_request("n2"), Duration::from_secs(10)).await
    };
    assert_eq!(ask("n1", "agent").await, Ok(PromiseReply::Promised), "n1 is the holder in the request");
    for (name, role, status) in [("n3", "agent", "403"), ("ann", "client", "401")] {
        let refused = ask(name, role).await.expect_err("not the holder").to_string();
        assert!(refused.contains(status), "{name}: {refused}");
    }
    let backups = client(&authority.tls("n1", "agent")).get(format!("{url}/v1/backups")).send().await;
    assert_eq!(backups.expect("an answer").status(), StatusCode::FORBIDDEN);
}
