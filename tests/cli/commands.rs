//! Commands against a scripted controller: what is sent, what is asked, exit codes.

use serde_json::{Value, json};
use stormglass::domain::epoch::Epoch;
use stormglass::domain::operation::{Operation, OperationStatus, StepEvent, StepName};

use super::controller::{Controller, problem, run};
use super::documents::{begun, degraded, explanation, failover, healthy, no_primary, planned, unknown};

const CLUSTER: &str = "GET /api/v1/clusters/orders";
const SWITCHOVER: &str = "POST /api/v1/clusters/orders/switchover";
const FAILOVER: &str = "POST /api/v1/clusters/orders/failover";
const OPERATION: &str = "GET /api/v1/operations/019a-7c";

/// A controller on which a switchover can be planned, begun and followed to `end`.
async fn ready(end: OperationStatus) -> Controller {
    let controller = Controller::start().await;
    controller.on(CLUSTER, 200, healthy());
    for request in [SWITCHOVER, FAILOVER] {
        controller.on(request, 200, planned());
        controller.on(request, 202, begun());
    }
    let mut running = failover(OperationStatus::Running);
    running.journal.truncate(1);
    controller.on(OPERATION, 200, running);
    controller.on(OPERATION, 200, failover(end));
    controller
}

#[tokio::test]
async fn status_is_the_wire_document_and_needs_no_cluster_where_there_is_one() {
    let controller = Controller::start().await;
    controller.on(CLUSTER, 200, healthy());
    let ran = controller.run(&["status", "--output", "json"]).await;
    assert_eq!((ran.exit, ran.err.as_str()), (0, ""));
    let document: Value = serde_json::from_str(&ran.out).expect("one JSON document");
    assert_eq!(document, serde_json::to_value(healthy()).expect("plain data"));
    assert_eq!(controller.last_authorization().as_deref(), Some("Bearer secret-token"));
    let ran = controller.run(&["status", "orders", "-o", "yaml"]).await;
    let document: Value = serde_yaml_ng::from_str(&ran.out).expect("YAML");
    assert_eq!(document["cluster"], "orders");
}

#[tokio::test]
async fn status_check_tells_health_by_exit_code() {
    for (status, exit) in [(healthy(), 0), (degraded(), 20), (no_primary(), 21), (unknown(), 21)] {
        let controller = Controller::start().await;
        controller.on(CLUSTER, 200, &status);
        assert_eq!(controller.run(&["status", "--check"]).await.exit, exit, "{:?}", status.health);
        assert_eq!(controller.run(&["status"]).await.exit, 0);
    }
}

#[tokio::test]
async fn every_kind_of_refusal_has_its_exit_code() {
    for (status, exit) in [(400, 2), (401, 6), (403, 6), (404, 4), (409, 9), (500, 8), (503, 8)] {
        let controller = Controller::start().await;
        controller.on(CLUSTER, status, problem(status, "because of the test"));
        let ran = controller.run(&["status", "orders"]).await;
        assert_eq!(ran.exit, exit, "status {status}: {}", ran.err);
        assert!(ran.err.contains("because of the test"), "{}", ran.err);
        assert_eq!(ran.out, "");
    }
}

#[tokio::test]
async fn a_controller_out_of_reach_is_5_and_wrong_usage_2() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", free.local_addr().expect("bound"));
    drop(free);
    let ran = run(&url, &["status"], false, "").await;
    assert_eq!(ran.exit, 5, "{}", ran.err);
    assert!(ran.err.contains(&format!("error: cannot reach the controller at {url}")), "{}", ran.err);
    assert!(ran.err.contains("STORMGLASS_CONTROLLER"), "{}", ran.err);
    for arguments in [&["frobnicate"][..], &["status", "Not A Name"], &["fence"], &["operation", "show", "../x"]] {
        assert_eq!(run(&url, arguments, false, "").await.exit, 2, "{arguments:?}");
    }
    assert_eq!(run("ftp://nowhere", &["status"], false, "").await.exit, 2);
    assert_eq!(run(&url, &["--help"], false, "").await.exit, 0);
}

#[tokio::test]
async fn nobody_to_ask_prints_the_plan_and_changes_nothing() {
    let controller = ready(OperationStatus::Succeeded).await;
    let ran = controller.run(&["switchover", "orders", "--to", "db2"]).await;
    assert_eq!(ran.exit, 3);
    assert!(ran.out.starts_with("Plan     switchover db1 -> db2\n"), "{}", ran.out);
    assert!(ran.out.contains("Expect   writes pause for about 0.1 s\n"), "{}", ran.out);
    assert!(ran.err.contains("--yes"), "{}", ran.err);
    assert_eq!(controller.changes(), 0);
    assert_eq!(controller.bodies(SWITCHOVER), [json!({"to": "db2", "site": null, "dry_run": true})]);
}

#[tokio::test]
async fn dry_run_is_the_plan_and_changes_nothing() {
    let controller = ready(OperationStatus::Succeeded).await;
    let ran = controller.run(&["switchover", "--dry-run", "--output", "json"]).await;
    assert_eq!(ran.exit, 0, "{}", ran.err);
    let document: Value = serde_json::from_str(&ran.out).expect("one JSON document");
    assert_eq!(document["plan"]["intent"]["operation"]["to"], json!("db2"));
    assert_eq!(controller.changes(), 0);
}

#[tokio::test]
async fn yes_runs_the_operation_to_its_end() {
    let controller = ready(OperationStatus::Succeeded).await;
    let ran = controller.run(&["switchover", "orders", "--yes"]).await;
    assert_eq!(ran.exit, 0, "{}", ran.err);
    assert_eq!(controller.changes(), 1);
    for line in ["fence started", "fence succeeded in 31 ms", "promote succeeded in 120 ms", "succeeded in 200 ms"] {
        assert!(ran.err.contains(line), "{line:?} is not in\n{}", ran.err);
    }
    assert!(ran.err.contains("Next: stormglass status orders"), "{}", ran.err);
    assert!(ran.out.starts_with("cluster\torders\thealthy\tdb1\t"), "{}", ran.out);
}

#[tokio::test]
async fn json_of_a_mutation_is_the_operation_alone() {
    let controller = ready(OperationStatus::Succeeded).await;
    let ran = controller.run(&["switchover", "orders", "--yes", "--output", "json"]).await;
    let document: Value = serde_json::from_str(&ran.out).expect("one JSON document");
    assert_eq!((ran.exit, &document["status"]), (0, &json!("succeeded")));
}

#[tokio::test]
async fn an_operation_that_ends_badly_is_told_from_one_whose_outcome_is_unknown() {
    for (end, exit) in [(OperationStatus::Refused, 9), (OperationStatus::Stuck, 10)] {
        let ran = ready(end).await.run(&["switchover", "orders", "--yes"]).await;
        assert_eq!(ran.exit, exit, "{end:?}: {}", ran.err);
        assert!(ran.err.contains("Next: stormglass operation show 019a-7c"), "{}", ran.err);
    }
}

#[tokio::test]
async fn a_failure_is_1_only_if_nothing_was_changed_or_all_of_it_undone() {
    let whole = failover(OperationStatus::Failed);
    let cut = |steps, epoch_after| Operation { journal: whole.journal[..steps].to_vec(), epoch_after, ..whole.clone() };
    let mut given_back = cut(2, Some(Epoch(10)));
    given_back.journal.push(StepEvent { step: StepName::Reinstate, ..whole.journal[1].clone() });
    let mut proven = cut(2, None);
    proven.journal.remove(0);
    for (ended, exit, words) in [
        (cut(0, None), 1, ""),
        (proven, 1, ""),
        (given_back, 1, ""),
        (cut(2, None), 10, "db1 was told to stop, and stays fenced until it gets another epoch"),
        (cut(2, Some(Epoch(9))), 10, "epoch 9 was given to db2, which was not promoted"),
        (whole.clone(), 10, "epoch 9 was given to db2, which was promoted"),
        (cut(3, Some(Epoch(9))), 10, "epoch 9 was given to db2, which may have been promoted"),
    ] {
        for status in [OperationStatus::Failed, OperationStatus::Cancelled] {
            let controller = Controller::start().await;
            controller.on(CLUSTER, 200, healthy());
            controller.on(FAILOVER, 200, planned());
            controller.on(FAILOVER, 202, begun());
            controller.on(OPERATION, 200, Operation { status, ..ended.clone() });
            let ran = controller.run(&["failover", "orders", "--yes"]).await;
            assert_eq!(ran.exit, exit, "{status:?}, {words:?}: {}", ran.err);
            assert_eq!(ran.err.contains("not undone: "), exit == 10, "{}", ran.err);
            assert!(ran.err.contains(words), "{words:?} is not in\n{}", ran.err);
        }
    }
}

#[tokio::test]
async fn a_time_out_leaves_the_operation_running_and_names_it() {
    let controller = ready(OperationStatus::Running).await;
    let ran = controller.run(&["switchover", "orders", "--yes", "--timeout", "300ms"]).await;
    assert_eq!(ran.exit, 10, "{}", ran.err);
    assert!(ran.err.contains("next: stormglass operation watch 019a-7c"), "{}", ran.err);
}

#[tokio::test]
async fn no_wait_returns_with_the_id() {
    let controller = ready(OperationStatus::Running).await;
    let ran = controller.run(&["switchover", "orders", "--yes", "--no-wait"]).await;
    assert_eq!((ran.exit, ran.out.as_str()), (0, "019a-7c\n"));
    assert!(ran.err.contains("stormglass operation watch 019a-7c"), "{}", ran.err);
}

#[tokio::test]
async fn a_guard_that_refuses_is_named_before_anybody_is_asked() {
    let controller = Controller::start().await;
    controller.on(CLUSTER, 200, healthy());
    let mut refusal = problem(409, "the switchover cannot be lossless; wait, or use failover");
    refusal["reasons"] = json!([{"code": "receiver_frozen", "node": "db2", "detail": "for 4 s"}]);
    controller.on(SWITCHOVER, 409, refusal);
    let ran = controller.run_typing(&["switchover", "orders"], "y\n").await;
    assert_eq!(ran.exit, 9);
    assert!(ran.err.contains("error: refused: the switchover cannot be lossless"), "{}", ran.err);
    assert!(ran.err.contains("db2: receiver frozen (for 4 s)"), "{}", ran.err);
    assert_eq!(controller.changes(), 0);
}

#[tokio::test]
async fn on_a_terminal_the_answer_decides() {
    for (input, exit, changes) in [("y\n", 0, 1), ("yes\n", 0, 1), ("n\n", 7, 0), ("\n", 7, 0), ("", 7, 0)] {
        let controller = ready(OperationStatus::Succeeded).await;
        let ran = controller.run_typing(&["switchover", "orders"], input).await;
        assert_eq!((ran.exit, controller.changes()), (exit, changes), "{input:?}: {}", ran.err);
        assert!(ran.err.contains("Continue? [y/N]"), "{}", ran.err);
    }
}

#[tokio::test]
async fn a_failover_asks_for_the_clusters_name() {
    for (input, exit, changes) in [("orders\n", 0, 1), ("y\n", 7, 0)] {
        let controller = ready(OperationStatus::Succeeded).await;
        let ran = controller.run_typing(&["failover", "orders", "--accept-data-loss"], input).await;
        assert_eq!((ran.exit, controller.changes()), (exit, changes), "{input:?}: {}", ran.err);
        assert!(ran.err.contains("Risk     confirmed commits that the new primary lacks are lost"), "{}", ran.err);
    }
}

#[tokio::test]
async fn an_oath_is_sworn_by_a_human_only() {
    let controller = ready(OperationStatus::Succeeded).await;
    let arguments = ["failover", "orders", "--old-primary-is-off", "--yes"];
    assert_eq!((controller.run(&arguments).await.exit, controller.changes()), (3, 0));
    let controller = ready(OperationStatus::Succeeded).await;
    assert_eq!((controller.run_typing(&arguments, "orders\n").await.exit, controller.changes()), (7, 0));
    let controller = ready(OperationStatus::Succeeded).await;
    assert_eq!((controller.run_typing(&arguments, "db1\n").await.exit, controller.changes()), (0, 1));
}

#[tokio::test]
async fn a_pause_sends_its_length_and_says_how_to_end_it() {
    let controller = Controller::start().await;
    controller.on(CLUSTER, 200, healthy());
    let paused =
        json!({"schema_version": 1, "operation": null, "plan": null, "expect": [], "message": "paused for 30m"});
    controller.on("POST /api/v1/clusters/orders/pause", 200, paused);
    let ran = controller.run(&["pause", "orders", "--for", "30m", "--yes"]).await;
    assert_eq!((ran.exit, ran.out.as_str()), (0, "paused for 30m\n"), "{}", ran.err);
    assert!(ran.err.contains("Next: stormglass resume orders"), "{}", ran.err);
    assert_eq!(controller.bodies("POST /api/v1/clusters/orders/pause"), [json!({"duration_seconds": 1800})]);
    assert_eq!(controller.run(&["pause", "orders"]).await.exit, 3);
    assert_eq!(controller.changes(), 1);
}

#[tokio::test]
async fn fencing_the_primary_is_a_risk_that_is_named() {
    let controller = Controller::start().await;
    controller.on(CLUSTER, 200, healthy());
    controller.on("POST /api/v1/clusters/orders/fence", 200, planned());
    let ran = controller.run(&["fence", "db1", "--dry-run"]).await;
    assert!(ran.out.contains("Risk     it is the primary: writes stop"), "{}", ran.out);
    let ran = controller.run(&["fence", "orders", "db2", "--dry-run"]).await;
    assert!(!ran.out.contains("Risk"), "{}", ran.out);
}

#[tokio::test]
async fn explain_finds_clusters_and_nodes() {
    let controller = Controller::start().await;
    controller.on("GET /api/v1/clusters/orders/explain", 200, explanation());
    assert!(controller.run(&["explain"]).await.out.starts_with("plan\thold"));
    assert!(controller.run(&["explain", "orders"]).await.out.starts_with("plan\thold"));
    let ran = controller.run(&["explain", "db3"]).await;
    assert_eq!(ran.out, "node\tdb3\tno\t-\tnot eligible (2.1 MiB behind)\n");
    let ran = controller.run(&["explain", "db9"]).await;
    assert_eq!(ran.exit, 4);
    assert!(ran.err.contains("it knows orders, db3, db2"), "{}", ran.err);
}

#[tokio::test]
async fn explain_of_an_operation_tells_what_the_witnesses_said() {
    let controller = Controller::start().await;
    controller.on("GET /api/v1/clusters/orders/explain", 200, explanation());
    controller.on(OPERATION, 200, failover(OperationStatus::Succeeded));
    let ran = controller.run(&["explain", "019a-7c"]).await;
    assert_eq!(ran.exit, 0, "{}", ran.err);
    let witness =
        "+0.004 s\twitness\t-\tdecided\t-\tagent db1 said of db1: reported 0.004 s ago: PostgreSQL is stopped\n";
    assert!(ran.out.contains(witness), "{}", ran.out);
    assert!(ran.out.lines().all(|line| line.split('\t').count() == 6), "{}", ran.out);
    let ran = controller.run(&["explain", "019a-7c", "--output", "json"]).await;
    let document: Value = serde_json::from_str(&ran.out).expect("one JSON document");
    assert_eq!(document["evidence"][1]["witness"], json!("wal_receiver"));
    assert_eq!(controller.run(&["explain", "no/such"]).await.exit, 2);
}

#[tokio::test]
async fn a_cancel_that_comes_too_late_is_no_success() {
    let undone = Operation { epoch_after: None, journal: Vec::new(), ..failover(OperationStatus::Cancelled) };
    for (end, exit) in
        [(undone, 0), (failover(OperationStatus::Cancelled), 10), (failover(OperationStatus::Succeeded), 1)]
    {
        let controller = Controller::start().await;
        controller.on(OPERATION, 200, failover(OperationStatus::Running));
        controller.on(OPERATION, 200, &end);
        controller.on("POST /api/v1/operations/019a-7c/cancel", 202, json!({}));
        let ran = controller.run(&["operation", "cancel", "019a-7c", "--yes"]).await;
        assert_eq!(ran.exit, exit, "{:?}: {}", end.status, ran.err);
    }
}

#[tokio::test]
async fn lists_read_bare_and_wrapped_documents() {
    let controller = Controller::start().await;
    let event = json!({"event": "primary_lost", "severity": "error", "wall": "2026-11-21T03:12:09Z", "cluster": "orders",
        "node": "db1", "operation": null, "epoch": 8, "message": "db1 is lost."});
    controller.on("GET /api/v1/clusters/orders/events", 200, json!([event]));
    controller.on("GET /api/v1/clusters/orders/events", 200, json!({"schema_version": 1, "events": [event]}));
    for _ in 0..2 {
        let ran = controller.run(&["events"]).await;
        assert_eq!(ran.out, "2026-11-21T03:12:09Z\terror\tprimary_lost\tdb1\t8\tdb1 is lost.\n", "{}", ran.err);
    }
    controller.on("GET /api/v1/clusters/orders/history", 200, [failover(OperationStatus::Succeeded)]);
    let ran = controller.run(&["history"]).await;
    assert!(ran.out.contains("\tfailover db1 -> db2\tsucceeded\t0.2\t9\tautomatic\t019a-7c\n"), "{}", ran.out);
}

#[tokio::test]
async fn watch_prints_a_line_for_every_change_and_ends_in_time() {
    let controller = Controller::start().await;
    controller.on(CLUSTER, 200, healthy());
    controller.on(CLUSTER, 200, degraded());
    let ran = controller.run(&["watch", "--timeout", "2500ms"]).await;
    assert_eq!(ran.exit, 0);
    let words: Vec<&str> = ran.out.lines().filter_map(|line| line.split('\t').nth(2)).collect();
    assert_eq!(words, ["healthy", "degraded"], "{}", ran.out);
}

#[tokio::test]
async fn an_answer_that_is_not_understood_is_the_controllers_error() {
    let controller = Controller::start().await;
    controller.on(CLUSTER, 200, json!({"cluster": "orders"}));
    assert_eq!(controller.run(&["status"]).await.exit, 8);
}

#[tokio::test]
async fn a_mutation_whose_answer_is_lost_has_an_unknown_outcome() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let status = serde_json::to_string(&healthy()).expect("plain data");
    let plan = serde_json::to_string(&planned()).expect("plain data");
    // Answers twice, reads the third request, and hangs up.
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for body in [Some(status), Some(plan), None] {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = vec![0; 16 * 1024];
            let _ = stream.read(&mut request).await.expect("a request");
            if let Some(body) = body {
                let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes()).await.expect("written");
            }
        }
    });
    let ran = run(&url, &["switchover", "orders", "--yes"], false, "").await;
    assert_eq!(ran.exit, 10, "{}", ran.err);
    assert!(ran.err.contains("may have been carried out"), "{}", ran.err);
    assert!(ran.err.contains("next: stormglass operation list orders"), "{}", ran.err);
}

#[tokio::test]
async fn config_commands_need_no_controller() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/controller.toml");
    let ran = run("http://127.0.0.1:1", &["config", "show", "--effective", example], false, "").await;
    assert_eq!(ran.exit, 0, "{}", ran.err);
    assert!(ran.out.contains("renewal_interval + request_timeout < lease - stop_budget"), "{}", ran.out);
    let ran = run("http://127.0.0.1:1", &["config", "check", "--config", example], false, "").await;
    assert_eq!(ran.exit, 2, "the secrets are not here");
    assert!(ran.err.contains("authentication.token[0].secret: the secret cannot be had"), "{}", ran.err);
}

fn not_the_leader() -> Value {
    json!({
        "type": "about:blank", "title": "not the leader", "status": 503, "detail": "controller c1 follows; c2 leads",
        "leader": {"name": "c2", "url": "http://c2.example:8432"},
    })
}

#[tokio::test]
async fn of_several_controllers_the_leader_is_found_also_for_a_mutation() {
    let (follower, leader) = (Controller::start().await, ready(OperationStatus::Succeeded).await);
    for request in [CLUSTER, SWITCHOVER] {
        follower.on(request, 503, not_the_leader());
    }
    let nobody = "http://127.0.0.1:9";
    let urls = format!("{nobody},{},{}", follower.url(), leader.url());
    let ran = run(&urls, &["switchover", "orders", "--yes"], false, "").await;
    assert_eq!(ran.exit, 0, "{}", ran.err);
    assert_eq!(leader.changes(), 1, "asked once, where it counts");

    let ran = run(&format!("{nobody},{}", follower.url()), &["status", "orders"], false, "").await;
    assert_eq!(ran.exit, 5, "nobody is in charge");
    assert!(ran.err.contains("c2 leads") && ran.err.contains("--controller"), "{}", ran.err);
}

#[tokio::test]
async fn a_mutation_is_sent_to_nobody_else_after_any_other_answer() {
    let (first, second) = (ready(OperationStatus::Succeeded).await, ready(OperationStatus::Succeeded).await);
    let failing = Controller::start().await;
    failing.on(CLUSTER, 200, healthy());
    failing.on(SWITCHOVER, 200, planned());
    failing.on(SWITCHOVER, 503, problem(503, "the controller is shutting down"));
    let urls = format!("{},{},{}", failing.url(), first.url(), second.url());
    let ran = run(&urls, &["switchover", "orders", "--yes"], false, "").await;
    assert_eq!(ran.exit, 8, "{}", ran.err);
    assert_eq!(first.changes() + second.changes(), 0, "it may have been begun already");
}

fn kept(message: &str) -> Value {
    json!({"schema_version": 1, "operation": null, "plan": null, "expect": ["its store stays"], "message": message})
}

#[tokio::test]
async fn a_cluster_is_removed_once_its_name_was_typed_and_not_before() {
    const REMOVE: &str = "POST /api/v1/clusters/orders/remove";
    let controller = Controller::start().await;
    controller.on(REMOVE, 200, kept("would keep the cluster orders no longer"));
    let ran = controller.run(&["cluster", "remove", "orders"]).await;
    assert!(ran.exit == 3 && ran.out.contains("would keep the cluster orders no longer"), "{}{}", ran.out, ran.err);
    let ran = controller.run_typing(&["cluster", "remove", "orders"], "billing\n").await;
    assert_eq!((ran.exit, controller.changes()), (7, 0), "{}", ran.err);
    let ran = controller.run_typing(&["cluster", "remove", "orders"], "orders\n").await;
    assert_eq!((ran.exit, controller.changes()), (0, 1), "{}", ran.err);
    assert!(ran.err.contains("its store stays"), "{}", ran.err);
}

#[tokio::test]
async fn a_definition_is_sent_as_it_is_from_a_file_or_standard_input() {
    const ADD: &str = "POST /api/v1/clusters";
    let controller = Controller::start().await;
    controller.on(ADD, 200, kept("the cluster billing is kept from now on"));
    let ran = controller.run_typing(&["cluster", "add", "-"], "[cluster]\nname = \"billing\"\n").await;
    assert!(ran.exit == 0 && ran.out.contains("kept from now on"), "{}{}", ran.out, ran.err);
    assert_eq!(controller.bodies(ADD), [json!({"definition": "[cluster]\nname = \"billing\"\n", "dry_run": false})]);
    let ran = controller.run(&["cluster", "add", "/nonexistent/billing.toml"]).await;
    assert!(ran.exit == 2 && ran.err.contains("/nonexistent/billing.toml"), "{}", ran.err);
}
