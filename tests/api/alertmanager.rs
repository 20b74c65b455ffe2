//! The webhook: what it answers, and the real Alertmanager in front of it; the rules that are shipped.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use stormglass::domain::access::Role;
use stormglass::domain::alert::AlertState;
use stormglass::telemetry::metrics::ALL;

use super::{AGENT, Served, problem, secret};

const PATH: &str = "/webhooks/alertmanager";
const PATIENCE: Duration = Duration::from_secs(30);

fn alert(number: usize) -> Value {
    json!({
        "status": "firing",
        "labels": { "alertname": "Down", "cluster": "main", "filler": "x".repeat(500) },
        "annotations": { "summary": "down" },
        "startsAt": "2026-11-20T09:51:49.439Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus/graph",
        "fingerprint": format!("{number:016x}"),
    })
}

fn post(alerts: Vec<Value>) -> Value {
    json!({ "version": "4", "status": "firing", "receiver": "hook", "groupKey": "{}:{a=\"b\"}", "truncatedAlerts": 0, "alerts": alerts })
}

#[tokio::test]
async fn a_well_formed_post_of_an_operator_is_accepted_whatever_it_is_about() {
    let served = Served::begin();
    for alerts in [vec![], vec![alert(1)], (0..1000).map(alert).collect::<Vec<_>>()] {
        let count = alerts.len();
        let answer = served.post(PATH, Role::Operator).json(&post(alerts)).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 202);
        let reply: Value = answer.json().await.expect("JSON");
        assert_eq!(reply["unmatched"], count);
    }
    let rows = served.script.rows();
    assert_eq!(rows.len(), 3, "every post is audited");
    assert_eq!(rows[1].what, "alerts 1 firing, 0 resolved, receiver \"hook\"");
    assert!(rows[2].outcome.starts_with("accepted: "), "{:?}", rows[2]);
}

#[tokio::test]
async fn everything_else_is_refused_and_says_why() {
    let served = Served::begin();
    let anybody = served.request(reqwest::Method::POST, PATH).json(&post(vec![alert(1)]));
    problem(anybody.send().await.expect("an answer"), 401).await;
    for token in [secret(Role::Viewer), secret(Role::Backup), AGENT.to_owned()] {
        let request = served.request(reqwest::Method::POST, PATH).bearer_auth(token).json(&post(vec![alert(1)]));
        problem(request.send().await.expect("an answer"), 403).await;
    }
    let other_version = json!({ "version": "3", "alerts": [] });
    let mut no_start = alert(1);
    no_start.as_object_mut().expect("an object").remove("startsAt");
    let mut odd_labels = alert(1);
    odd_labels["labels"]["alertname"] = json!(["a"]);
    for body in [
        other_version,
        json!({}),
        json!([]),
        json!("4"),
        json!({ "version": "4", "alerts": {} }),
        post(vec![no_start]),
        post(vec![odd_labels]),
        post(vec![Value::Null]),
    ] {
        let answer = served.post(PATH, Role::Operator).json(&body).send().await.expect("an answer");
        assert!(!problem(answer, 400).await.detail.is_empty(), "{body}");
    }
    let nested = format!("{{\"version\":\"4\",\"alerts\":{}", "[".repeat(200_000));
    let request = served.post(PATH, Role::Operator).header("content-type", "application/json");
    problem(request.body(nested).send().await.expect("an answer"), 400).await;
    let huge = " ".repeat(stormglass::api::webhook::POST_LENGTH_MAX + 1);
    let request = served.post(PATH, Role::Operator).header("content-type", "application/json");
    problem(request.body(huge).send().await.expect("an answer"), 413).await;
    problem(served.get(PATH, Role::Operator).send().await.expect("an answer"), 405).await;
    assert!(served.script.alerts.lock().expect("no panic").is_empty());
}

#[tokio::test]
async fn a_token_for_other_clusters_is_answered_with_202_too() {
    let served = Served::begin();
    let request = json!({ "name": "am", "role": "operator", "clusters": ["other"] });
    let made = served.post("/api/v1/tokens", Role::Admin).json(&request).send().await.expect("an answer");
    let made: Value = made.json().await.expect("JSON");
    let token = made["secret"].as_str().expect("shown once");
    let post = served.request(reqwest::Method::POST, PATH).bearer_auth(token).json(&post(vec![alert(1)]));
    assert_eq!(post.send().await.expect("an answer").status().as_u16(), 202);
    let last = served.script.rows().last().expect("audited").clone();
    assert!(last.who == "am" && last.outcome.starts_with("accepted: "), "{last:?}");
    // What else it asks of a cluster that it is not for is refused as before.
    let other = served.request(reqwest::Method::POST, "/api/v1/clusters/main/resume").bearer_auth(token);
    problem(other.send().await.expect("an answer"), 403).await;
}

/// Ends with the test.
struct Alertmanager {
    child: Child,
    url: String,
    _directory: tempfile::TempDir,
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Alertmanager {
    async fn start(hook: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
        let configuration = directory.path().join("alertmanager.yml");
        std::fs::write(
            &configuration,
            format!(
                "route: {{receiver: hook, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1m}}\n\
                 receivers:\n- name: hook\n  webhook_configs:\n  - url: {hook}\n    send_resolved: true\n    \
                 http_config: {{authorization: {{type: Bearer, credentials: {}}}}}\n",
                secret(Role::Operator)
            ),
        )
        .expect("written");
        let program = ["/usr/bin/prometheus-alertmanager", "/usr/bin/alertmanager", "/usr/local/bin/alertmanager"]
            .into_iter()
            .find(|file| Path::new(file).exists())
            .expect("Alertmanager is installed: scripts/setup");
        let child = Command::new(program)
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!("--storage.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address=")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Alertmanager starts");
        Self { child, url: format!("http://127.0.0.1:{port}"), _directory: directory }
    }
}

#[tokio::test]
async fn the_real_alertmanager_is_understood_firing_and_resolved() {
    let served = Served::begin();
    let alertmanager = Alertmanager::start(&format!("http://{}{PATH}", served.address)).await;
    let raise =
        |fields: Value| served.client.post(format!("{}/api/v2/alerts", alertmanager.url)).json(&json!([fields])).send();
    let labels =
        json!({ "alertname": "StormglassPostgresDown", "cluster": "main", "node": "n1", "severity": "critical" });
    let fields = json!({ "labels": labels, "annotations": { "summary": "PostgreSQL n1 down" } });
    let seen = |state: AlertState| {
        served.script.alerts.lock().expect("no panic").iter().find(|alert| alert.state == state).cloned()
    };
    let firing = tokio::time::timeout(PATIENCE, async {
        loop {
            // It may not listen yet.
            let _ = raise(fields.clone()).await;
            if let Some(alert) = seen(AlertState::Firing) {
                break alert;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("the alert arrives");
    assert_eq!((firing.name(), firing.label("node")), ("StormglassPostgresDown", Some("n1")));
    assert_eq!(firing.summary.as_deref(), Some("PostgreSQL n1 down"));

    let mut over = fields;
    over["endsAt"] = json!(firing.starts_at);
    let resolved = tokio::time::timeout(PATIENCE, async {
        loop {
            let _ = raise(over.clone()).await;
            if let Some(alert) = seen(AlertState::Resolved) {
                break alert;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("its end arrives");
    assert_eq!(resolved.fingerprint, firing.fingerprint);
}

/// Words of an expression that could be metrics.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    expression
        .split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
        .filter(|word| word.starts_with("stormglass_") || word.starts_with("pg_") || *word == "up")
        .map(str::to_owned)
        .collect()
}

/// Every file of alert rules that is shipped.
const RULE_FILES: [&str; 2] = ["packaging/prometheus/rules.yml", "packaging/prometheus/backup-rules.yml"];

#[test]
fn every_rule_uses_metrics_that_exist_and_has_its_runbook() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules: Vec<serde_yaml_ng::Value> = RULE_FILES
        .iter()
        .flat_map(|file| {
            let text = std::fs::read_to_string(root.join(file)).expect(file);
            let document: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).expect("YAML");
            document["groups"][0]["rules"].as_sequence().expect("rules").clone()
        })
        .collect();
    assert!(rules.len() >= 10, "found only {}", rules.len());
    let mut runbooks = BTreeSet::new();
    for rule in &rules {
        let name = rule["alert"].as_str().expect("a name");
        let used = metrics_of(rule["expr"].as_str().expect("an expression"));
        assert!(!used.is_empty(), "{name} uses no metric");
        for metric in used {
            let known = ALL.iter().any(|(known, _)| *known == metric) || ["up", "pg_up"].contains(&metric.as_str());
            assert!(known, "{name} uses {metric}, which does not exist");
        }
        assert_eq!(rule["annotations"]["runbook"], format!("docs/runbooks/{name}.md").as_str(), "{name}");
        let page = std::fs::read_to_string(root.join(format!("docs/runbooks/{name}.md"))).expect(name);
        for heading in ["## Meaning", "## Impact", "## Diagnosis", "## Mitigation"] {
            assert!(page.contains(heading), "{name}: {heading}");
        }
        runbooks.insert(format!("{name}.md"));
    }
    let there: BTreeSet<String> = std::fs::read_dir(root.join("docs/runbooks"))
        .expect("the runbooks")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(there, runbooks, "docs/runbooks (left) against the rules (right)");
}

#[test]
fn promtool_takes_the_rules() {
    for file in RULE_FILES {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let output = Command::new("promtool").args(["check", "rules"]).arg(&rules).output().expect("promtool runs");
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
