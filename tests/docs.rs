//! The documents against the program: links, files, dependencies, routes, metrics, events.
//!
//! Tables between `<!-- generated: NAME -->` and `<!-- end -->` are made from the code; `UPDATE_GOLDEN=1` rewrites them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand as _;
use stormglass::api::agent::health::HealthPath;
use stormglass::api::routes::{Access, ROUTES};
use stormglass::domain::backup::Repository;
use stormglass::domain::certificate::CertificateFacts;
use stormglass::domain::clock::WallTime;
use stormglass::domain::epoch::{Epoch, RecordNumber};
use stormglass::domain::ids::{ClusterName, NodeName, OperationId, ProxyName};
use stormglass::domain::operation::{OperationStatus, StepName};
use stormglass::domain::plan::{Intent, Reason, ReasonCode};
use stormglass::domain::risk::{ModelName, Resource};
use stormglass::lab::arguments::LabCommand;
use stormglass::telemetry::backup_metrics::DrillFigures;
use stormglass::telemetry::event::{Event, StepOutcome};
use stormglass::telemetry::metrics::{ALL, ClusterGauges, ControllerMetrics, NodeGauges};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// Every document, as a path from the root.
fn documents() -> Vec<String> {
    let mut found = Vec::new();
    for directory in ["", "docs", "docs/runbooks", "haproxy", "packaging", "tests/scenarios"] {
        let Ok(entries) = fs::read_dir(root().join(directory)) else { continue };
        for entry in entries {
            let name = entry.expect("a readable directory").file_name().to_string_lossy().into_owned();
            if name.ends_with(".md") {
                found.push(Path::new(directory).join(name).to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    assert!(found.len() >= 5, "found only {found:?}");
    found
}

/// Lines outside code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        inside ^= is_fence;
        !inside && !is_fence
    })
}

/// What stands between `begin` and `end`, everywhere in a line.
fn between<'text>(line: &'text str, begin: &'text str, end: &'text str) -> impl Iterator<Item = &'text str> {
    line.split(begin).skip(1).filter_map(move |rest| rest.split_once(end).map(|(inner, _)| inner))
}

/// A heading as the fragment of a link.
fn fragment(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut broken = Vec::new();
    for document in documents() {
        let directory = Path::new(&document).parent().expect("a file has a parent").to_owned();
        for target in prose(&read(&document)).flat_map(|line| between(line, "](", ")")) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { PathBuf::from(&document) } else { directory.join(file) };
            if !root().join(&path).exists() {
                broken.push(format!("{document}: {target} does not exist"));
            } else if !heading.is_empty() {
                let text = read(&path.to_string_lossy());
                let has = prose(&text)
                    .filter_map(|line| line.strip_prefix('#').map(|rest| rest.trim_start_matches('#')))
                    .any(|found| fragment(found) == heading);
                if !has {
                    broken.push(format!("{document}: {target} has no such heading"));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_file_that_is_named_is_there() {
    let mut missing = Vec::new();
    for document in documents() {
        for name in prose(&read(&document)).flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let is_path = ["src/", "tests/", "docs/", "examples/", "packaging/", "scripts/", ".ci/"]
                .iter()
                .any(|directory| name.starts_with(directory));
            let is_plain = name.chars().all(|letter| letter.is_alphanumeric() || "/._-".contains(letter));
            if is_path && is_plain && !root().join(name).exists() {
                missing.push(format!("{document}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "named and not there:\n{}", missing.join("\n"));
}

/// The first cell of every row of the tables of a document, without its backticks.
fn first_cells(text: &str) -> BTreeSet<String> {
    prose(text)
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| line.split('`').nth(1))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_direct_dependency_has_its_reason() {
    let manifest: toml::Table = read("Cargo.toml").parse().expect("Cargo.toml is TOML");
    let mut used = BTreeSet::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        if let Some(toml::Value::Table(table)) = manifest.get(section) {
            used.extend(table.keys().cloned());
        }
    }
    assert_eq!(
        first_cells(&read("docs/dependencies.md")),
        used,
        "docs/dependencies.md (left) against Cargo.toml (right)"
    );
}

#[test]
fn every_route_is_documented_with_who_may_use_it() {
    let text = read("docs/http.md");
    let mut documented = BTreeSet::new();
    for line in prose(&text).filter(|line| line.starts_with("| GET |") || line.starts_with("| POST |")) {
        let cells: Vec<&str> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        documented.insert((cells[1].to_owned(), cells[2].to_owned(), cells[3].to_owned()));
    }
    let access = |access| match access {
        Access::Open => "everybody",
        Access::Agents => "agents",
        Access::AtLeast(role) => role.label(),
    };
    let served: BTreeSet<_> = ROUTES
        .iter()
        .map(|route| (route.method.name().to_owned(), route.path.to_owned(), access(route.access).to_owned()))
        .collect();
    assert_eq!(documented, served, "docs/http.md (left) against api::routes::ROUTES (right)");
}

#[test]
fn every_path_of_the_agents_is_documented() {
    let documented: BTreeSet<String> = first_cells(&read("docs/http.md"))
        .into_iter()
        .map(|cell| cell.trim_start_matches("GET ").trim_start_matches("POST ").to_owned())
        .collect();
    let mut served: BTreeSet<String> = HealthPath::ALL.iter().map(|(path, _)| (*path).to_owned()).collect();
    served.extend(between(&read("src/api/agent.rs"), ".route(\"", "\"").map(str::to_owned));
    assert_eq!(documented, served, "docs/http.md (left) against src/api/agent.rs (right)");
}

/// Compares a table with the one in a document, or writes it there.
fn check_generated(document: &str, name: &str, table: &str) {
    let text = read(document);
    let begin = format!("<!-- generated: {name} -->\n");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{document} has no {begin}"));
    let (written, after) = rest.split_once("<!-- end -->").unwrap_or_else(|| panic!("{document}: {name} has no end"));
    if written == table {
        return;
    }
    if std::env::vars().any(|(key, value)| key == "UPDATE_GOLDEN" && value == "1") {
        let renewed = format!("{before}{begin}{table}<!-- end -->{after}");
        fs::write(root().join(document), renewed).expect("write the document");
        return;
    }
    panic!(
        "{document}: {name} differs from the code; UPDATE_GOLDEN=1 rewrites it\n--- code\n{table}--- document\n{written}"
    );
}

fn node() -> NodeName {
    NodeName::new("n1").expect("valid")
}

/// The text of `/metrics` with at least one sample of everything.
fn rendered() -> String {
    let metrics = ControllerMetrics::new("0");
    let (cluster, node, proxy) =
        (ClusterName::new("main").expect("valid"), node(), ProxyName::new("p1").expect("valid"));
    metrics.show_cluster(&ClusterGauges {
        cluster: &cluster,
        health: "healthy",
        epoch: Epoch(1),
        number: RecordNumber(1),
        eligible: 0,
        alone_for: None,
        is_automation_enabled: true,
    });
    metrics.show_node(
        &cluster,
        &NodeGauges {
            node: &node,
            role: "primary",
            is_up: true,
            lag_bytes: Some(0),
            lease_remaining: Some(Duration::ZERO),
            report_age: Some(Duration::ZERO),
        },
    );
    metrics.show_proxy(&cluster, &proxy, true);
    metrics.show_name(&cluster, "db.example.test", true);
    metrics.show_readiness(&cluster, 1.0);
    metrics.show_certificates(&[CertificateFacts { subject: "controller c1".to_owned(), expires: WallTime(1) }]);
    metrics.show_risk(&cluster, &node, Some(0.5), true);
    metrics.show_exhaustion(&cluster, &node, Resource::Memory, Some(Duration::ZERO));
    metrics.show_model(Some(&ModelName { name: "lab".to_owned(), version: "1".to_owned() }));
    metrics.show_channel("dba");
    metrics.observe_scoring(Duration::ZERO);
    metrics.show_strain(&cluster, None, ReasonCode::LockPileUp, true);
    let operation = OperationId("1".to_owned());
    let (took, kind) = (Duration::ZERO, "failover");
    let reasons = vec![Reason::new(ReasonCode::Healthy, "")];
    for event in [
        Event::DecisionChanged { intent: Intent::Hold, reasons, blocked_by: Vec::new() },
        Event::StepEnded {
            operation: operation.clone(),
            kind,
            step: StepName::Fence,
            outcome: StepOutcome::Succeeded,
            took,
            error: None,
        },
        Event::OperationEnded { operation, kind, node, outcome: OperationStatus::Succeeded, took, message: None },
    ] {
        metrics.count(&event);
    }
    let set = serde_json::from_value(serde_json::json!({
        "label": "20261128-143346F", "backup_type": "full", "began": "2026-11-28T14:33:46Z",
        "ended": "2026-11-28T14:33:53Z", "start_lsn": "0/2000028", "stop_lsn": "0/2000100",
        "first_segment": "000000010000000000000002", "last_segment": "000000010000000000000002",
        "database_bytes": 1, "repository_bytes": 1, "reference": [], "major_version": 15, "has_error": false
    }))
    .expect("a backup");
    let repository = Repository { backups: vec![set], newest_wal_at: Some(WallTime(1)), ..Repository::default() };
    metrics.backups.show_repository(&cluster, Some(&repository), false);
    metrics.backups.show_drill(&cluster, None);
    let ended = WallTime(1);
    metrics.backups.show_drill(&cluster, Some(DrillFigures { rto_seconds: 1.0, rpo_seconds: 1.0, ended }));
    metrics.observe_store("load the record", took);
    metrics.observe_decision(took);
    metrics.render()
}

/// Everything that ships below a directory of `src`, as one text.
fn sources(directory: &str) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(root().join(directory)).expect("a readable directory") {
        let path = entry.expect("a readable directory").path();
        let relative = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
        if path.is_dir() {
            text += &sources(&relative);
        } else {
            text += &read(&relative);
        }
    }
    text
}

#[test]
fn metrics_of_the_controller_are_those_of_the_document() {
    let page = rendered();
    let kinds: BTreeMap<&str, &str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let shell = sources("src/controller") + &read("src/main.rs") + &sources("src/adapters");
    let setters = [
        ("stormglass_controller_start_timestamp_seconds", ".set_started("),
        ("stormglass_store_seconds", ".observe_store("),
    ];
    let mut table = String::from("| name | kind | labels | meaning |\n|---|---|---|---|\n");
    for (name, help) in ALL {
        let kind = kinds.get(name).unwrap_or_else(|| panic!("{name} is not rendered"));
        let sample = page.lines().find(|line| line.starts_with(name)).expect("a sample");
        let labels = between(sample, "{", "}").next().unwrap_or_default();
        let labels: Vec<String> = labels
            .split(',')
            .filter_map(|label| label.split_once('='))
            .filter(|(label, _)| *label != "le")
            .map(|(label, _)| format!("`{label}`"))
            .collect();
        let is_filled = setters.iter().all(|(unset, setter)| unset != name || shell.contains(setter));
        let note = if is_filled { "" } else { " Not filled by this version." };
        writeln!(table, "| `{name}` | {kind} | {} | {help}{note} |", labels.join(" "))
            .expect("a string takes everything");
    }
    check_generated("docs/metrics.md", "controller", &table);
}

#[test]
fn metrics_of_the_agents_are_those_of_the_document() {
    let documented = first_cells(&read("docs/metrics.md"));
    let node = read("src/agent/metrics.rs");
    let mut named: BTreeSet<String> = between(&node.replace(char::is_whitespace, ""), "page.gauge(\"", "\"")
        .chain(between(&node, "page.begin(\"", "\""))
        .map(|name| format!("stormglass_{name}"))
        .chain(between(&node, "HistogramOpts::new(\"", "\"").map(str::to_owned))
        .collect();
    named.extend(
        read("src/agent/proxy/metrics.rs")
            .split('"')
            .skip(1)
            .step_by(2)
            .filter(|text| text.starts_with("stormglass_"))
            .map(str::to_owned),
    );
    assert!(named.len() > 15, "found only {named:?}");
    let missing: Vec<_> = named.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/metrics.md lacks {missing:?}");
    let known: BTreeSet<String> = ALL.iter().map(|(name, _)| (*name).to_owned()).chain(named).collect();
    let unknown: Vec<_> = documented.difference(&known).collect();
    assert!(unknown.is_empty(), "docs/metrics.md has {unknown:?}, which nobody exports");
}

#[test]
fn events_are_those_of_the_document() {
    let source = read("src/telemetry/event.rs");
    let body = |function: &str| {
        let (_, rest) = source.split_once(function).expect("the function is there");
        rest.split_once("\n    }\n").expect("the function ends").0.to_owned()
    };
    let names: BTreeMap<String, String> = between(&body("pub fn name("), "Event::", ",\n")
        .filter_map(|arm| arm.split_once(" { .. } => "))
        .map(|(variant, name)| (variant.to_owned(), name.trim_matches('"').to_owned()))
        .collect();
    let (_, variants) = source.split_once("pub enum Event {").expect("the events are there");
    let variants = variants.split_once("\n}\n").expect("the enumeration ends").0;
    let shell = sources("src/controller");
    let mut meaning = String::new();
    let mut rows = BTreeMap::new();
    for line in variants.lines() {
        if let Some(words) = line.strip_prefix("    /// ") {
            meaning = words.to_owned();
        } else if let Some(variant) = line.strip_prefix("    ").and_then(|line| line.strip_suffix(" {"))
            && let Some(name) = names.get(variant)
        {
            let severities = severities(&body("pub fn severity("), variant);
            let told = if shell.contains(&format!("Event::{variant} {{")) { "yes" } else { "not by this version" };
            rows.insert(name.clone(), format!("| `{name}` | {severities} | {meaning} | {told} |\n"));
        }
    }
    assert_eq!(rows.len(), names.len(), "every variant has a doc comment and a name");
    let table = String::from("| event | severity | meaning | told |\n|---|---|---|---|\n")
        + &rows.into_values().collect::<String>();
    check_generated("docs/events.md", "events", &table);
}

/// The severities that a variant can have, by the arms of `Event::severity`.
fn severities(body: &str, variant: &str) -> String {
    let (mut found, mut always) = (Vec::new(), false);
    for arm in body.split_inclusive("=> Severity::").collect::<Vec<_>>().windows(2) {
        let label = arm[1].split(|letter: char| !letter.is_alphabetic()).next().unwrap_or_default().to_lowercase();
        if let Some((_, pattern)) = arm[0].split_once(&format!("Event::{variant} {{")) {
            found.push(label);
            always |= pattern.starts_with(" .. }");
        }
    }
    if !always {
        found.push("info".to_owned());
    }
    found.join(", ")
}

/// What is wrong with one row of `docs/failure-modes.md`.
fn faults_of(row: &str, number: usize) -> Vec<String> {
    let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
    let [no, fault, happens, outage, proof] = cells[..] else { return vec![format!("{row}: not five cells")] };
    let mut wrong = Vec::new();
    if no != number.to_string() || fault.is_empty() || fault == "-" {
        wrong.push(format!("row {no} stands where row {number} belongs, or names no fault"));
    }
    let is_open = proof.starts_with("open");
    if !is_open && (happens == "-" || outage == "-") {
        wrong.push(format!("row {no} has a test, and does not say what happens or for how long writes stop"));
    }
    let named: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
    let mut points_at = 0;
    let mut file = None;
    for name in named {
        if let Some(arguments) = name.strip_prefix("stormglass lab ") {
            let lab = LabCommand::augment_subcommands(clap::Command::new("lab").no_binary_name(true));
            if let Err(error) = lab.try_get_matches_from(arguments.split(' ')) {
                // A way to inject a fault by hand needs more words than a scenario; it proves nothing.
                if !is_open {
                    wrong.push(format!("row {no}: {name} cannot be run: {error}"));
                }
            }
            for chaos in arguments.split("--only ").skip(1).map(str::trim) {
                if !read("src/lab/chaos/catalogue.rs").contains(&format!("\"{chaos}\"")) {
                    wrong.push(format!("row {no}: {chaos} is no fault of stormglass lab chaos"));
                }
            }
            points_at += 1;
        } else if name.starts_with("tests/") || name.starts_with("src/") {
            let source = fs::read_to_string(root().join(name)).ok();
            if source.is_none() {
                wrong.push(format!("row {no}: {name} is not there"));
            }
            (file, points_at) = (source, points_at + 1);
        } else if !file.as_ref().is_some_and(|text| text.contains(name)) {
            wrong.push(format!("row {no}: {name} is not in the file named before it"));
        }
    }
    if !is_open && points_at == 0 {
        wrong.push(format!("row {no} is neither open nor shown by a test: {proof:?}"));
    }
    wrong
}

#[test]
fn every_fault_has_its_row_and_every_proof_exists() {
    let text = read("docs/failure-modes.md");
    let is_row = |line: &&str| {
        line.strip_prefix("| ").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    let rows: Vec<&str> = prose(&text).filter(is_row).collect();
    assert_eq!(rows.len(), 78, "the consolidated list has 78 faults");
    let wrong: Vec<String> = rows.iter().enumerate().flat_map(|(index, row)| faults_of(row, index + 1)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_row_that_proves_nothing_is_found() {
    for (row, problem) in [
        ("| 1 | kill | dies | 1 s | open |", None),
        ("| 1 | kill | dies | 1 s | `tests/docs.rs` (`a_row_that_proves_nothing_is_found`) |", None),
        ("| 1 | kill | dies | 1 s | `stormglass lab run kill-primary` |", None),
        ("| 2 | kill | dies | 1 s | open |", Some("stands where")),
        ("| 1 | kill | dies | open |", Some("not five cells")),
        ("| 1 | kill | dies | - | `tests/docs.rs` |", Some("for how long")),
        ("| 1 | kill | dies | 1 s | trust me |", Some("neither open nor shown")),
        ("| 1 | kill | dies | 1 s | `tests/nothing.rs` |", Some("is not there")),
        ("| 1 | kill | dies | 1 s | `stormglass lab run trust-me` |", Some("cannot be run")),
        (concat!("| 1 | kill | dies | 1 s | `tests/docs.rs` (`no_such", "_test`) |"), Some("is not in the file")),
    ] {
        let found = faults_of(row, 1).join("; ");
        assert_eq!(found.is_empty(), problem.is_none(), "{row}: {found}");
        assert!(problem.is_none_or(|problem| found.contains(problem)), "{row}: {found}");
    }
}
