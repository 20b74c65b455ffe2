//! Every mutation leaves a row: who, what, when, from where, outcome; the refused ones and the ones nobody waited for too.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use stormglass::domain::access::Role;
use stormglass::domain::trail::AuditRow;

use super::script::NOW;
use super::{Served, problem, secret};

const SWITCHOVER: &str = "/api/v1/clusters/main/switchover";

/// The one row that a request left.
async fn row_of(served: &Served, request: reqwest::RequestBuilder) -> AuditRow {
    let before = served.script.rows().len();
    request.send().await.expect("an answer");
    let rows = served.script.rows();
    assert_eq!(rows.len(), before + 1, "{rows:?}");
    let row = rows.last().expect("one").clone();
    assert_eq!(row.wall, NOW);
    assert!(row.from.starts_with("127.0.0.1:"), "{row:?}");
    row
}

#[tokio::test]
async fn mutations_are_audited_whatever_comes_of_them() {
    let served = Served::begin();
    let post = |role| served.post(SWITCHOVER, role);

    let row = row_of(&served, post(Role::Operator).json(&json!({ "to": "db2" }))).await;
    assert_eq!(row.who, "operator");
    assert_eq!(row.what, "switchover main {\"to\":\"db2\",\"site\":null,\"dry_run\":false}");
    assert_eq!(row.outcome, "accepted: switchover begun");

    let row = row_of(&served, post(Role::Admin).json(&json!({ "to": "db9" }))).await;
    assert_eq!((row.who.as_str(), row.outcome.as_str()), ("admin", "refused (409): db9 is not known"));

    let row = row_of(&served, served.post("/api/v1/clusters/main/failover", Role::Operator)).await;
    assert!(row.outcome.starts_with("unknown (504): "), "{row:?}");

    let row = row_of(&served, post(Role::Viewer).json(&json!({ "to": "db2" }))).await;
    assert_eq!((row.who.as_str(), row.what.as_str()), ("viewer", "switchover main"));
    assert!(row.outcome.starts_with("refused (403): "), "{row:?}");

    let row = row_of(&served, post(Role::Operator).json(&json!({ "unknown": 1 }))).await;
    assert!(row.outcome.starts_with("refused (400): "), "{row:?}");

    let row = row_of(&served, post(Role::Operator).body(" ".repeat(2 << 20))).await;
    assert!(row.outcome.starts_with("refused (413): "), "{row:?}");

    let row = row_of(&served, served.post("/api/v1/operations/op-1/cancel", Role::Operator)).await;
    assert_eq!((row.what.as_str(), row.outcome.as_str()), ("cancel op-1", "accepted: asked to stop"));

    let wrong = json!({ "definition": "token = \"hunter2\"" });
    let row = row_of(&served, served.post("/api/v1/clusters", Role::Admin).json(&wrong)).await;
    assert_eq!(row.what, "cluster-add {\"definition_bytes\":17,\"dry_run\":false}", "never what was sent");
    let row = row_of(&served, served.post("/api/v1/clusters/main/remove", Role::Admin)).await;
    assert_eq!(
        (row.what.as_str(), row.outcome.as_str()),
        ("cluster-remove main {\"dry_run\":false}", "accepted: kept no longer")
    );

    let row = row_of(&served, served.post("/api/v1/clusters/a%0Ab/resume", Role::Operator)).await;
    assert_eq!(row.what, "resume ab", "a row is one line");
}

#[tokio::test]
async fn reading_and_reporting_leave_no_row() {
    let served = Served::begin();
    served.get("/api/v1/clusters/main", Role::Viewer).send().await.expect("an answer");
    served.get("/api/v1/audit", Role::Viewer).send().await.expect("an answer");
    served.request(Method::POST, "/api/v1/clusters/main/heartbeat").send().await.expect("an answer");
    assert_eq!(served.script.rows(), []);
}

#[tokio::test]
async fn strangers_are_written_down_but_cannot_fill_the_disk() {
    let served = Served::begin();
    for _ in 0..30 {
        let answer = served.request(Method::POST, SWITCHOVER).bearer_auth("guess").send().await;
        problem(answer.expect("an answer"), 401).await;
    }
    let rows = served.script.rows();
    assert_eq!(rows.len(), 10);
    assert!(rows.iter().all(|row| row.outcome.starts_with("refused (401): ") && !row.outcome.contains("guess")));
}

#[tokio::test]
async fn a_mutation_whose_caller_hangs_up_runs_to_its_end_and_is_audited() {
    let served = Served::begin();
    let request = served.post("/api/v1/clusters/main/fence", Role::Operator).json(&json!({ "node": "db3" }));
    let waiting = tokio::spawn(request.send());
    served.script.fence_began.notified().await;
    waiting.abort();
    assert!(waiting.await.expect_err("aborted").is_cancelled());
    served.script.fence_let_go.notify_one();
    let deadline = tokio::time::timeout(Duration::from_secs(10), async {
        while served.script.rows().is_empty() {
            tokio::task::yield_now().await;
        }
    });
    deadline.await.expect("the row is written in time");
    assert_eq!(served.script.rows()[0].outcome, "accepted: fenced");
}

#[tokio::test]
async fn the_log_is_read_newest_first_by_administrators() {
    let served = Served::begin();
    for path in ["pause", "resume"] {
        served.post(&format!("/api/v1/clusters/main/{path}"), Role::Operator).send().await.expect("an answer");
    }
    let rows: Vec<AuditRow> = served
        .request(Method::GET, "/api/v1/audit?limit=1")
        .bearer_auth(secret(Role::Admin))
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("rows");
    assert_eq!(rows.iter().map(|row| row.what.as_str()).collect::<Vec<_>>(), ["resume main"]);
}
