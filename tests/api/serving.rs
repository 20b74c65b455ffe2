//! The server itself: what it answers besides JSON, and that it stops as it should.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use stormglass::api::wire::ClusterStatus;
use stormglass::domain::access::Role;
use stormglass::domain::command::HeartbeatReply;
use stormglass::domain::operation::Operation;

use super::{AGENT, Served, script};

const ENOUGH: Duration = Duration::from_secs(10);

#[tokio::test]
async fn answers_are_what_the_handler_said() {
    let served = Served::begin();
    let status = served.get("/api/v1/clusters/main", Role::Viewer).send().await.expect("an answer");
    assert_eq!(status.json::<ClusterStatus>().await.expect("a status"), script::status());

    let request = served.request(Method::POST, "/api/v1/clusters/main/heartbeat").bearer_auth(AGENT);
    let answer = request.json(&script::report()).send().await.expect("an answer");
    let reply: HeartbeatReply = answer.json().await.expect("a reply");
    assert_eq!(reply.grant, None);

    let history = served.get("/api/v1/clusters/main/history?limit=2", Role::Viewer).send().await.expect("an answer");
    let history: Vec<Operation> = history.json().await.expect("operations");
    let ids: Vec<_> = history.iter().map(|operation| operation.id.0.as_str()).collect();
    assert_eq!(ids, ["op-2", "op-1"], "what is under way is no history");
}

#[tokio::test]
async fn metrics_have_the_type_that_prometheus_asks_for() {
    let served = Served::begin();
    let answer = served.request(Method::GET, "/metrics").send().await.expect("an answer");
    assert!(answer.headers()["content-type"].to_str().expect("text").starts_with("text/plain; version=0.0.4"));
    assert!(answer.text().await.expect("text").contains("stormglass_epoch"));
    let head = served.request(Method::HEAD, "/health").send().await.expect("an answer");
    assert_eq!(head.status().as_u16(), 200);
}

#[tokio::test]
async fn a_stop_lets_requests_finish_and_frees_the_port() {
    let mut served = Served::begin();
    let request = served.post("/api/v1/clusters/main/fence", Role::Operator).json(&json!({ "node": "db3" }));
    let waiting = tokio::spawn(request.send());
    served.script.fence_began.notified().await;
    served.stop.take().expect("once").send(()).expect("the server runs");
    served.script.fence_let_go.notify_one();
    let answer = tokio::time::timeout(ENOUGH, waiting).await.expect("in time").expect("no panic").expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
    drop(served.client);
    tokio::time::timeout(ENOUGH, served.ended).await.expect("in time").expect("no panic").expect("a clean end");
    std::net::TcpListener::bind(served.address).expect("the port is free");
}

#[tokio::test]
async fn a_request_without_end_does_not_hold_up_a_stop() {
    let mut served = Served::begin();
    let request = served.post("/api/v1/clusters/main/fence", Role::Operator).json(&json!({ "node": "db3" }));
    let _waiting = tokio::spawn(request.send());
    served.script.fence_began.notified().await;
    served.stop.take().expect("once").send(()).expect("the server runs");
    tokio::time::timeout(ENOUGH, served.ended).await.expect("in time").expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn the_document_can_be_browsed_without_a_network() {
    let served = Served::begin();
    let page = served.request(Method::GET, "/api/docs/").send().await.expect("an answer");
    assert_eq!(page.status().as_u16(), 200);
    let page = page.text().await.expect("text");
    assert!(page.contains("swagger-ui-bundle.js") && !page.contains("//unpkg") && !page.contains("https://"), "{page}");
    let start = served.request(Method::GET, "/api/docs/swagger-initializer.js").send().await.expect("an answer");
    assert!(start.text().await.expect("text").contains("/api/v1/openapi.json"));
}
