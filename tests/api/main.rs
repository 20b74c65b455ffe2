//! The controller's API over real HTTP on loopback, in front of a scripted controller: who may do what, how errors look,
//! what the audit log holds, how the server starts and stops.
//!
//! What the controller answers is not tested here.

mod access;
mod alertmanager;
mod audit;
mod certificates;
mod openid;
mod problems;
mod script;
mod serving;
#[path = "../support/pki.rs"]
mod support;
mod tokens;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use reqwest::{Client, Method, RequestBuilder, Response};
use stormglass::api::authentication::{Authentication, Token};
use stormglass::api::entrance::Door;
use stormglass::api::routes::Route;
use stormglass::api::wire::Problem;
use stormglass::api::{router, server};
use stormglass::domain::access::Role;
use tokio::sync::oneshot;

use script::Script;

const AGENT: &str = "agent-secret";
const ROLES: [Role; 4] = [Role::Viewer, Role::Backup, Role::Operator, Role::Admin];

fn secret(role: Role) -> String {
    format!("{}-secret", role.label())
}

/// A served API.
struct Served {
    address: SocketAddr,
    script: Arc<Script>,
    client: Client,
    stop: Option<oneshot::Sender<()>>,
    ended: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Served {
    fn begin() -> Self {
        Self::begin_behind(|listener| listener.into())
    }

    fn begin_behind(door: impl FnOnce(TcpListener) -> Door) -> Self {
        Self::begin_with(door, |authentication| authentication)
    }

    fn begin_with(
        door: impl FnOnce(TcpListener) -> Door,
        change: impl FnOnce(Authentication) -> Authentication,
    ) -> Self {
        let script = Arc::new(Script::default());
        let tokens =
            ROLES.map(|role| Token { name: role.label().to_owned(), role, clusters: Vec::new(), secret: secret(role) });
        let authentication = change(Authentication::new(AGENT, tokens).expect("valid tokens"));
        let router = router::router(script.clone(), Arc::new(authentication));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = tokio::spawn(server::serve(door(listener), router, async {
            // A dropped sender stops the server too.
            let _ = stopped.await;
        }));
        let client = Client::builder().no_proxy().build().expect("a client");
        Self { address, script, client, stop: Some(stop), ended }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address))
    }

    fn get(&self, path: &str, role: Role) -> RequestBuilder {
        self.request(Method::GET, path).bearer_auth(secret(role))
    }

    fn post(&self, path: &str, role: Role) -> RequestBuilder {
        self.request(Method::POST, path).bearer_auth(secret(role))
    }

    /// A well-formed request for a route, without a token.
    fn valid(&self, route: &Route) -> RequestBuilder {
        let path = route.path.replace("{cluster}", "main").replace("{id}", "op-1");
        let request = self.request(method(route), &path);
        match script::body(route.endpoint) {
            Some(body) => request.json(&body),
            None => request,
        }
    }
}

fn method(route: &Route) -> Method {
    route.method.name().parse().expect("a method")
}

/// Checks that an answer is a problem document of this status, and returns it.
async fn problem(answer: Response, status: u16) -> Problem {
    let url = answer.url().clone();
    assert_eq!(answer.status().as_u16(), status, "{url}");
    assert_eq!(answer.headers()["content-type"], "application/problem+json", "{url}");
    assert_eq!(answer.headers().contains_key("www-authenticate"), status == 401, "{url}");
    let problem: Problem = answer.json().await.expect("a problem document");
    assert_eq!((problem.status, problem.kind.as_str()), (status, "about:blank"), "{url}");
    assert!(!problem.title.is_empty() && !problem.detail.is_empty(), "{url}: {problem:?}");
    problem
}
