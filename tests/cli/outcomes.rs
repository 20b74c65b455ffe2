//! Changes without an operation: lost answers, gateways, quotas, dry runs and questions. What is said must be what happened.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::controller::{Controller, problem, run};
use super::documents::{healthy, planned};

const CREATE: &str = "POST /api/v1/tokens";
const REVOKE: &str = "POST /api/v1/tokens/robot/revoke";

/// A controller that gives these answers, then reads one more request and hangs up; its URL.
async fn hangs_up_after(answers: Vec<Value>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        for body in answers.into_iter().map(Some).chain([None]) {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = vec![0; 16 * 1024];
            let _ = stream.read(&mut request).await.expect("a request");
            if let Some(body) = body {
                let body = body.to_string();
                let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes()).await.expect("written");
            }
        }
    });
    url
}

#[tokio::test]
async fn a_lost_answer_is_an_unknown_outcome_whatever_was_asked() {
    let models = json!({ "schema_version": 1, "models": [] });
    let cases: [(&[&str], Vec<Value>, &str); 5] = [
        (&["token", "create", "robot", "--role", "viewer"], vec![], "next: stormglass token list"),
        (&["token", "revoke", "robot", "--yes"], vec![], "next: stormglass token list"),
        (&["model", "promote", "node", "--yes"], vec![models.clone()], "next: stormglass model list"),
        (&["model", "rollback", "--yes"], vec![models], "next: stormglass model list"),
        (&["notification", "test", "dba"], vec![], "look whether it arrived"),
    ];
    for (arguments, answers, next) in cases {
        let ran = run(&hangs_up_after(answers).await, arguments, false, "").await;
        assert_eq!(ran.exit, 10, "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains("may have been carried out"), "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(next), "{arguments:?}: {}", ran.err);
    }
}

#[tokio::test]
async fn a_504_of_the_controller_is_an_unknown_outcome_and_names_what_to_look_at() {
    let controller = Controller::start().await;
    controller.on("GET /api/v1/clusters/orders", 200, healthy());
    controller.on("POST /api/v1/clusters/orders/switchover", 200, planned());
    let unknown = json!({
        "type": "about:blank", "title": "outcome unknown", "status": 504, "detail": "see operation 019a-7c",
    });
    controller.on("POST /api/v1/clusters/orders/switchover", 504, &unknown);
    let ran = controller.run(&["switchover", "orders", "--yes"]).await;
    assert_eq!(ran.exit, 10, "{}", ran.err);
    assert!(ran.err.contains("019a-7c") && ran.err.contains("operation list orders"), "{}", ran.err);

    controller.on(REVOKE, 504, &unknown);
    assert_eq!(controller.run(&["token", "revoke", "robot", "--yes"]).await.exit, 10);
    for status in [502, 504] {
        let controller = Controller::start().await;
        controller.on(REVOKE, status, problem(status, "a proxy on the way"));
        assert_eq!(controller.run(&["token", "revoke", "robot", "--yes"]).await.exit, 10, "{status}");
        // Nothing can have happened to a question.
        controller.on("GET /api/v1/tokens", status, problem(status, "a proxy on the way"));
        assert_eq!(controller.run(&["token", "list"]).await.exit, 8, "{status}");
    }
}

#[tokio::test]
async fn asking_too_often_is_no_wrong_usage() {
    let controller = Controller::start().await;
    controller.on("GET /api/v1/tokens", 429, problem(429, "you ask too often: wait a second"));
    let ran = controller.run(&["token", "list"]).await;
    assert_eq!(ran.exit, 8, "{}", ran.err);
    assert!(ran.err.contains("too often"), "{}", ran.err);
}

#[tokio::test]
async fn a_dry_run_makes_and_ends_no_token() {
    let controller = Controller::start().await;
    let create = ["token", "create", "robot", "--role", "operator", "--cluster", "orders", "--expires-in", "30d"];
    let ran = controller.run(&[&create[..], &["--dry-run"]].concat()).await;
    assert_eq!(ran.exit, 0, "{}", ran.err);
    assert_eq!(ran.out, "would make the token robot with role operator for orders, which ends after 30d\n");
    let ran = controller.run(&["token", "revoke", "robot", "--dry-run"]).await;
    assert_eq!(ran.exit, 0, "{}", ran.err);
    assert!(ran.out.contains("end the token robot"), "{}", ran.out);
    assert_eq!(controller.changes(), 0);
}

#[tokio::test]
async fn a_token_is_ended_only_when_somebody_says_so() {
    let controller = Controller::start().await;
    controller.on(REVOKE, 200, json!({ "schema_version": 1, "message": "token robot was revoked" }));
    controller.on(CREATE, 200, json!({}));
    let ran = controller.run(&["token", "revoke", "robot"]).await;
    assert_eq!(ran.exit, 3, "{}", ran.err);
    assert!(ran.out.contains("end the token robot") && ran.err.contains("--yes"), "{} {}", ran.out, ran.err);
    assert_eq!(controller.run_typing(&["token", "revoke", "robot"], "n\n").await.exit, 7);
    assert_eq!(controller.changes(), 0);
    let ran = controller.run_typing(&["token", "revoke", "robot"], "y\n").await;
    assert_eq!((ran.exit, ran.out.as_str()), (0, "token robot was revoked\n"), "{}", ran.err);
    assert_eq!(controller.run(&["token", "revoke", "robot", "--yes"]).await.exit, 0);
    assert_eq!(controller.changes(), 2);
}
