//! Tokens that are made while it runs, idempotency keys, pages, the stream, quotas.

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use stormglass::api::tokens::TokenReply;
use stormglass::domain::access::Role;
use stormglass::domain::epoch::Epoch;
use stormglass::domain::ids::ClusterName;
use stormglass::domain::trail::EventRow;

use super::script::NOW;
use super::{Served, problem};

const SWITCHOVER: &str = "/api/v1/clusters/main/switchover";

async fn create(served: &Served, body: Value) -> TokenReply {
    let answer = served.post("/api/v1/tokens", Role::Admin).json(&body).send().await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
    answer.json().await.expect("a token")
}

#[tokio::test]
async fn a_token_works_from_its_creation_to_its_end_and_is_shown_once() {
    let served = Served::begin();
    let made = create(&served, json!({ "name": "robot", "role": "operator" })).await;
    let secret = made.secret.expect("shown once");
    let ask = || served.request(Method::POST, SWITCHOVER).bearer_auth(&secret).send();
    assert_eq!(ask().await.expect("an answer").status().as_u16(), 200);
    assert_eq!(served.script.rows().last().expect("audited").who, "robot");
    let list = served.get("/api/v1/tokens", Role::Admin).send().await.expect("an answer").text().await.expect("text");
    assert!(list.contains("robot") && list.contains("viewer") && !list.contains(&secret), "{list}");
    assert!(served.script.rows().iter().all(|row| !row.what.contains(&secret) && !row.outcome.contains(&secret)));

    let revoked = served.post("/api/v1/tokens/robot/revoke", Role::Admin).send().await.expect("an answer");
    assert_eq!(revoked.status().as_u16(), 200);
    problem(ask().await.expect("an answer"), 401).await;
    let taken = served.post("/api/v1/tokens", Role::Admin).json(&json!({ "name": "viewer", "role": "viewer" }));
    problem(taken.send().await.expect("an answer"), 409).await;
}

#[tokio::test]
async fn a_token_for_other_clusters_is_good_for_nothing_here() {
    let served = Served::begin();
    for (clusters, status) in [(json!(["main"]), 200), (json!([]), 200), (json!(["other"]), 403)] {
        let name = format!("robot{}", clusters.to_string().len());
        let made = create(&served, json!({ "name": name, "role": "operator", "clusters": clusters })).await;
        let secret = made.secret.expect("shown once");
        for request in [
            served.request(Method::GET, "/api/v1/clusters/main"),
            served.request(Method::GET, "/api/v1/operations"),
            served.request(Method::POST, SWITCHOVER),
        ] {
            let answer = request.bearer_auth(&secret).send().await.expect("an answer");
            assert_eq!(answer.status().as_u16(), status, "{clusters}");
        }
    }
    assert!(served.script.rows().last().expect("audited").outcome.starts_with("refused (403): "));
}

#[tokio::test]
async fn a_change_under_a_key_is_made_once_and_answered_again() {
    let served = Served::begin();
    let send = |key: &str, body: Value, role| {
        served.post(SWITCHOVER, role).header("idempotency-key", key.to_owned()).json(&body).send()
    };
    let first = send("k1", json!({ "to": "db2" }), Role::Operator).await.expect("an answer");
    assert!(!first.headers().contains_key("idempotency-replayed"));
    let first: Value = first.json().await.expect("JSON");
    let again = send("k1", json!({ "to": "db2" }), Role::Operator).await.expect("an answer");
    assert_eq!(again.headers()["idempotency-replayed"], "true");
    assert_eq!(again.json::<Value>().await.expect("JSON"), first);
    assert!(served.script.rows().last().expect("audited").what.ends_with("(repeated: answered as before)"));

    problem(send("k1", json!({ "to": "db3" }), Role::Operator).await.expect("an answer"), 422).await;
    let other = send("k1", json!({ "to": "db3" }), Role::Admin).await.expect("an answer");
    assert_eq!(other.status().as_u16(), 200, "a key belongs to its caller");

    problem(send("k2", json!({ "to": "db9" }), Role::Operator).await.expect("an answer"), 409).await;
    let refused = send("k2", json!({ "to": "db9" }), Role::Operator).await.expect("an answer");
    assert_eq!(refused.headers()["idempotency-replayed"], "true", "a refusal is an answer too");
    problem(refused, 409).await;
    for key in ["", &"x".repeat(256)] {
        problem(send(key, json!({}), Role::Operator).await.expect("an answer"), 400).await;
    }

    // Two at once: the second one finds the first one under way.
    let fence = || {
        served
            .post("/api/v1/clusters/main/fence", Role::Operator)
            .header("idempotency-key", "k3")
            .json(&json!({ "node": "db3" }))
            .send()
    };
    let waiting = tokio::spawn(fence());
    served.script.fence_began.notified().await;
    problem(fence().await.expect("an answer"), 409).await;
    served.script.fence_let_go.notify_one();
    assert_eq!(waiting.await.expect("no panic").expect("an answer").status().as_u16(), 200);
}

#[tokio::test]
async fn the_secret_of_a_token_is_not_repeated_for_a_key() {
    let served = Served::begin();
    let send = || {
        served
            .post("/api/v1/tokens", Role::Admin)
            .header("idempotency-key", "k")
            .json(&json!({ "name": "robot", "role": "viewer" }))
            .send()
    };
    let first: Value = send().await.expect("an answer").json().await.expect("JSON");
    let again: Value = send().await.expect("an answer").json().await.expect("JSON");
    assert!(first["secret"].is_string() && again["secret"].is_null());
    assert_eq!(first["token"], again["token"]);
}

fn event(message: &str) -> EventRow {
    EventRow {
        event: "primary_lost".to_owned(),
        severity: "warning".to_owned(),
        wall: NOW,
        cluster: ClusterName::new("main").expect("valid"),
        node: None,
        operation: None,
        epoch: Epoch(1),
        message: message.to_owned(),
    }
}

#[tokio::test]
async fn a_list_leads_to_its_next_page() {
    let served = Served::begin();
    *served.script.events.lock().expect("no panic") = ["a", "b", "c"].map(event).to_vec();
    let mut path = Some("/api/v1/clusters/main/events?limit=2".to_owned());
    let mut seen = Vec::new();
    while let Some(next) = path.take() {
        let answer = served.get(&next, Role::Viewer).send().await.expect("an answer");
        path = answer.headers().get("link").map(|link| {
            let link = link.to_str().expect("text");
            assert!(link.ends_with("; rel=\"next\""), "{link}");
            link[1..link.find('>').expect("an end")].to_owned()
        });
        seen.extend(answer.json::<Vec<EventRow>>().await.expect("rows").into_iter().map(|row| row.message));
    }
    assert_eq!(seen, ["c", "b", "a"]);
}

#[tokio::test]
async fn the_stream_tells_what_happens_from_now_on() {
    let served = Served::begin();
    served.script.events.lock().expect("no panic").push(event("before"));
    let answer = served.get("/api/v1/clusters/main/events/stream", Role::Viewer).send().await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    served.script.events.lock().expect("no panic").extend(["first", "second"].map(event));
    let mut pieces = answer.bytes_stream();
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(20), async {
        while !text.contains("second") {
            let piece = pieces.next().await.expect("goes on").expect("readable");
            text.push_str(&String::from_utf8_lossy(&piece));
        }
    })
    .await
    .expect("both are told");
    assert!(text.contains("event: event") && text.contains("first") && !text.contains("before"), "{text}");
    problem(served.get("/api/v1/clusters/other/events/stream", Role::Viewer).send().await.expect("an answer"), 404)
        .await;
}

#[tokio::test]
async fn who_asks_too_often_waits() {
    let served = Served::begin();
    let mut refused = None;
    for _ in 0..2_000 {
        let answer =
            served.request(Method::GET, "/api/v1/clusters").bearer_auth("guess").send().await.expect("an answer");
        if answer.status().as_u16() == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a stranger is stopped");
    assert_eq!(refused.headers()["retry-after"], "1");
    problem(refused, 429).await;
    let known = served.get("/api/v1/clusters", Role::Viewer).send().await.expect("an answer");
    assert_eq!(known.status().as_u16(), 200, "known callers have a quota of their own");
}
