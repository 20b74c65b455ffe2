//! Every error is a problem document that says what, where, and what to do.

use reqwest::Method;
use serde_json::{Value, json};
use stormglass::api::body::BODY_LENGTH_MAX;
use stormglass::api::routes::ROUTES;
use stormglass::api::wire::Problem;
use stormglass::domain::access::Role;
use stormglass::domain::incident::IncidentReport;
use stormglass::domain::operation::OperationStatus;

use super::{AGENT, Served, problem, script};

const SWITCHOVER: &str = "/api/v1/clusters/main/switchover";

#[tokio::test]
async fn unknown_routes_clusters_and_operations_are_not_found() {
    let served = Served::begin();
    for path in ["/api/v1", "/api/v1/nothing", "/api/v2/clusters", "/api/v1/clusters/", "/health/"] {
        problem(served.get(path, Role::Admin).send().await.expect("an answer"), 404).await;
    }
    for path in ["/api/v1/clusters/other", "/api/v1/clusters/other/explain", "/api/v1/operations/op-9"] {
        problem(served.get(path, Role::Viewer).send().await.expect("an answer"), 404).await;
    }
    let answer = served.post("/api/v1/clusters/other/resume", Role::Operator).send().await.expect("an answer");
    problem(answer, 404).await;
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_one() {
    let served = Served::begin();
    let answer = served.get(SWITCHOVER, Role::Admin).send().await.expect("an answer");
    assert_eq!(answer.headers()["allow"], "POST");
    problem(answer, 405).await;
    let answer = served.post("/api/v1/operations", Role::Admin).send().await.expect("an answer");
    assert!(answer.headers()["allow"].to_str().expect("text").contains("GET"));
    problem(answer, 405).await;
}

#[tokio::test]
async fn bad_bodies_are_refused_with_what_and_where() {
    let served = Served::begin();
    let post = |path: &str, body: &str| {
        served.post(path, Role::Operator).header("content-type", "application/json").body(body.to_owned()).send()
    };
    for (path, body, says) in [
        (SWITCHOVER, "{\"too\": \"db2\"}", "unknown field `too`"),
        (SWITCHOVER, "{\"to\": \"DB 2\"}", "not a valid name"),
        (SWITCHOVER, "{\"to\": ", "line 1 column 7"),
        (SWITCHOVER, "[\"db2\"]", "expected a JSON object"),
        (SWITCHOVER, "{} {}", "trailing characters"),
        ("/api/v1/clusters/main/fence", "", "missing field `node`"),
        ("/api/v1/clusters/main/resume", "{\"now\": true}", "unknown field `now`"),
        ("/api/v1/clusters/main/pause", "{\"duration_seconds\": -1}", "expected a whole number, 0 or more"),
    ] {
        let refused = problem(post(path, body).await.expect("an answer"), 400).await;
        assert!(refused.detail.contains(says), "{body:?}: {}", refused.detail);
    }
    let binary = served.post(SWITCHOVER, Role::Operator).header("content-type", "application/json");
    problem(binary.body(vec![0xFF, 0xFE, 0x00]).send().await.expect("an answer"), 400).await;

    let form = served.post(SWITCHOVER, Role::Operator).header("content-type", "text/plain").body("{}");
    problem(form.send().await.expect("an answer"), 415).await;
    let bare = served.post(SWITCHOVER, Role::Operator).body("{}");
    problem(bare.send().await.expect("an answer"), 415).await;
    let empty = served.post(SWITCHOVER, Role::Operator).send().await.expect("an answer");
    assert_eq!(empty.status().as_u16(), 200, "a request without settings needs no body");
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_and_the_answer_arrives() {
    let served = Served::begin();
    for length in [BODY_LENGTH_MAX + 1, 5 * BODY_LENGTH_MAX] {
        let body = " ".repeat(length);
        let answer = served.post(SWITCHOVER, Role::Operator).header("content-type", "application/json").body(body);
        problem(answer.send().await.expect("an answer"), 413).await;
    }
    let fits = format!("{{}}{}", " ".repeat(BODY_LENGTH_MAX - 2));
    let answer = served.post(SWITCHOVER, Role::Operator).header("content-type", "application/json").body(fits);
    assert_eq!(answer.send().await.expect("an answer").status().as_u16(), 200);
}

#[tokio::test]
async fn deeply_nested_json_is_refused() {
    let served = Served::begin();
    let request = served.request(Method::POST, "/api/v1/clusters/main/heartbeat").bearer_auth(AGENT);
    let body = "{\"x\":".repeat(100_000);
    let answer = request.header("content-type", "application/json").body(body).send().await.expect("an answer");
    problem(answer, 400).await;
}

#[tokio::test]
async fn lists_are_bounded() {
    let served = Served::begin();
    let events = "/api/v1/clusters/main/events";
    for query in ["", "?limit=7", "?limit=1000"] {
        let answer = served.get(&format!("{events}{query}"), Role::Viewer).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200, "{query}");
    }
    assert_eq!(*served.script.limits.lock().expect("no panic"), [100, 7, 1000]);
    for query in ["?limit=0", "?limit=1001", "?limit=many", "?limit=-1", "?limits=5"] {
        problem(served.get(&format!("{events}{query}"), Role::Viewer).send().await.expect("an answer"), 400).await;
    }
}

#[tokio::test]
async fn a_path_that_is_not_utf_8_is_refused() {
    let served = Served::begin();
    problem(served.get("/api/v1/clusters/%FF", Role::Viewer).send().await.expect("an answer"), 400).await;
}

#[tokio::test]
async fn a_guard_that_refuses_gives_its_reasons() {
    let served = Served::begin();
    let answer = served.post(SWITCHOVER, Role::Operator).json(&json!({ "to": "db9" })).send().await;
    let refused = problem(answer.expect("an answer"), 409).await;
    assert_eq!(refused.reasons.len(), 1);
    assert_eq!(refused.reasons[0].code.label(), "unknown_node");
    let answer = served.post("/api/v1/clusters/main/failover", Role::Operator).send().await.expect("an answer");
    assert!(problem(answer, 504).await.detail.contains("op-1"));
}

#[tokio::test]
async fn a_report_of_another_cluster_is_refused() {
    let served = Served::begin();
    let request = served.request(Method::POST, "/api/v1/clusters/other/heartbeat").bearer_auth(AGENT);
    let answer = request.json(&script::report()).send().await.expect("an answer");
    assert!(problem(answer, 409).await.detail.contains("main"));
}

#[tokio::test]
async fn a_controller_that_cannot_work_is_not_ready() {
    let served = Served::begin();
    let ready = || served.request(Method::GET, "/ready").send();
    assert_eq!(ready().await.expect("an answer").json::<Value>().await.expect("JSON"), json!({ "status": "ready" }));
    *served.script.broken.lock().expect("no panic") = Some("the store does not answer".to_owned());
    assert_eq!(problem(ready().await.expect("an answer"), 503).await.detail, "the store does not answer");
    let health = served.request(Method::GET, "/health").send().await.expect("an answer");
    assert_eq!(health.status().as_u16(), 200, "the process lives");
}

/// The document is checked in; it must name every route, and no other.
#[tokio::test]
async fn the_openapi_document_has_the_routes_that_there_are() {
    let served = Served::begin();
    let answer = served.request(Method::GET, "/api/v1/openapi.json").send().await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "application/json");
    let document: Value = answer.json().await.expect("JSON");
    let mut documented = Vec::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            documented.push(format!("{} {path}", method.to_uppercase()));
            for reference in references(operation) {
                assert!(
                    document.pointer(&reference[1..]).is_some(),
                    "{path} refers to {reference}, which is not there"
                );
            }
        }
    }
    let mut routed: Vec<_> = ROUTES.iter().map(|route| format!("{} {}", route.method.name(), route.path)).collect();
    documented.sort();
    routed.sort();
    assert_eq!(documented, routed);
    for reference in references(&document["components"]) {
        assert!(document.pointer(&reference[1..]).is_some(), "{reference} is not there");
    }
}

fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, value)| match value {
                Value::String(target) if name == "$ref" => vec![target.clone()],
                other => references(other),
            })
            .collect(),
        Value::Array(values) => values.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// Documents as they are sent have exactly the fields that the OpenAPI document lists.
#[test]
fn documented_fields_are_the_fields() {
    let document: Value = serde_json::from_str(&stormglass::api::openapi::OPENAPI).expect("JSON");
    let mut refused = Problem::refused("no", script::plan().reasons);
    refused.leader = script::status().leader.map(Box::new);
    for (schema, example) in [
        ("ClusterStatus", serde_json::to_value(script::status())),
        ("Readiness", serde_json::to_value(script::readiness())),
        (
            "IncidentReport",
            serde_json::to_value(IncidentReport::of(&script::operation("op-1", OperationStatus::Running), &[])),
        ),
        ("TimerStatus", serde_json::to_value(script::status().timers)),
        ("FailoverPreview", serde_json::to_value(script::status().failover_now)),
        ("MutationReply", serde_json::to_value(script::reply("done"))),
        ("Operation", serde_json::to_value(script::reply("done").operation)),
        ("Plan", serde_json::to_value(script::plan())),
        ("Problem", serde_json::to_value(refused)),
    ] {
        let names = |value: &Value| {
            let mut names: Vec<String> = value.as_object().expect(schema).keys().cloned().collect();
            names.sort();
            names
        };
        let documented = &document["components"]["schemas"][schema]["properties"];
        assert_eq!(names(documented), names(&example.expect("JSON")), "{schema}");
    }
}
