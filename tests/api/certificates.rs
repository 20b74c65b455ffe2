//! What a client certificate opens at a controller: reports of its own name, and nothing that a token is for.

use reqwest::{Client, Method, RequestBuilder};
use stormglass::api::entrance::Door;
use stormglass::domain::access::Role;

use super::support::{Authority, client};
use super::{AGENT, Served, problem, script, secret};

struct Secured {
    served: Served,
    authority: Authority,
}

impl Secured {
    fn begin() -> Self {
        let authority = Authority::new();
        let tls = authority.tls("c1", "controller");
        let served = Served::begin_behind(|listener| Door::new(listener, Some(tls.server())));
        Self { served, authority }
    }

    fn with(&self, name: &str, role: &str) -> Client {
        client(&self.authority.tls(name, role))
    }

    /// Without a certificate.
    fn anybody(&self) -> Client {
        let pem = std::fs::read(self.authority.path("authorities.crt")).expect("a bundle");
        let authorities = reqwest::Certificate::from_pem_bundle(&pem).expect("certificates");
        Client::builder().no_proxy().tls_certs_only(authorities).build().expect("a client")
    }

    fn request(&self, client: &Client, method: Method, path: &str) -> RequestBuilder {
        client.request(method, format!("https://{}{path}", self.served.address))
    }

    fn report(&self, client: &Client) -> RequestBuilder {
        self.request(client, Method::POST, "/api/v1/clusters/main/heartbeat").json(&script::report())
    }
}

#[tokio::test]
async fn an_agent_reports_as_itself_by_its_certificate_and_as_nobody_else() {
    let secured = Secured::begin();
    let node = script::report().node;
    let own = secured.with(node.as_str(), "agent");
    assert_eq!(secured.report(&own).send().await.expect("an answer").status(), 200);
    let other = secured.with("another", "agent");
    let refused = problem(secured.report(&other).send().await.expect("an answer"), 403).await;
    assert!(refused.detail.contains("agent another") && refused.detail.contains(node.as_str()), "{refused:?}");
    let proxy = serde_json::to_value(script::body(stormglass::api::routes::Endpoint::ProxyHeartbeat)).expect("JSON");
    let request = secured.request(&other, Method::POST, "/api/v1/clusters/main/proxy-heartbeat").json(&proxy);
    problem(request.send().await.expect("an answer"), 403).await;
    let again = secured.report(&other).bearer_auth(AGENT).send().await.expect("an answer");
    assert_eq!(again.status(), 200, "who has the token may report as any node");
}

#[tokio::test]
async fn no_certificate_is_a_role_of_the_api() {
    let secured = Secured::begin();
    for (name, role) in [("ann", "client"), ("db1", "agent"), ("c2", "controller"), ("etcd-1", "server")] {
        let client = secured.with(name, role);
        let status = || secured.request(&client, Method::GET, "/api/v1/clusters/main");
        let answer = status().send().await.expect("an answer");
        assert!([401, 403].contains(&answer.status().as_u16()), "{role}: {}", answer.status());
        let answer = status().bearer_auth(secret(Role::Viewer)).send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "{role} with a token");
        if role != "agent" {
            problem(secured.report(&client).send().await.expect("an answer"), 401).await;
        }
        // A wrong token is not made good by a certificate.
        problem(secured.report(&client).bearer_auth("wrong").send().await.expect("an answer"), 401).await;
    }
    let anybody = secured.anybody();
    assert_eq!(secured.request(&anybody, Method::GET, "/health").send().await.expect("an answer").status(), 200);
    assert_eq!(secured.report(&anybody).bearer_auth(AGENT).send().await.expect("an answer").status(), 200);
}

#[tokio::test]
async fn certificates_of_another_authority_open_nothing_not_even_a_connection() {
    let secured = Secured::begin();
    let stranger = Authority::new();
    stranger.issue("db1", "agent");
    // Believes the controller, and shows what a stranger signed.
    std::fs::copy(secured.authority.path("authorities.crt"), stranger.path("authorities.crt")).expect("copied");
    let client = client(&stranger.tls("db1", "agent"));
    secured.report(&client).bearer_auth(AGENT).send().await.expect_err("refused in the handshake");
    let plain = format!("http://{}/health", secured.served.address);
    secured.served.client.get(plain).send().await.expect_err("TLS only");
}

#[tokio::test]
async fn events_stream_over_tls() {
    let secured = Secured::begin();
    let client = secured.with("ann", "client");
    let request = secured.request(&client, Method::GET, "/api/v1/clusters/main/events/stream");
    let answer = request.bearer_auth(secret(Role::Viewer)).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert!(answer.headers()["content-type"].to_str().expect("text").starts_with("text/event-stream"));
}
