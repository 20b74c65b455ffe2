//! Scenarios that a DBA can read and write: a cluster in words, what is asked about it, and beside it what the code answered.
//!
//! `scenarios/README.md` lists the words. `UPDATE_GOLDEN=1 cargo test --test scenarios` rewrites the answers; review them as code.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use stormglass::decide::{self, candidate, candidate::Demand, health, request, request::Request, strain};
use stormglass::domain::*;

#[path = "scenarios/cluster.rs"]
mod cluster;
#[path = "scenarios/words.rs"]
mod words;

use cluster::Cluster;
use words::{Trouble, Words};

#[test]
fn scenarios_answer_as_written() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<PathBuf> = fs::read_dir(&directory)
        .expect("the directory of scenarios")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 10, "found only {} scenarios in {}", paths.len(), directory.display());
    let update = std::env::vars().any(|(key, value)| key == "UPDATE_GOLDEN" && value == "1");
    let differing: Vec<String> = paths.iter().filter_map(|path| compare(path, update)).collect();
    assert!(differing.is_empty(), "answers differ; UPDATE_GOLDEN=1 rewrites them\n{}", differing.join("\n"));
}

fn compare(path: &Path, update: bool) -> Option<String> {
    let text = fs::read_to_string(path).expect("readable");
    let actual = play(&text).unwrap_or_else(|trouble| panic!("{}: {trouble}", path.display()));
    let golden = path.with_extension("golden");
    if update {
        fs::write(&golden, &actual).expect("write the golden file");
    }
    let expected = fs::read_to_string(&golden).unwrap_or_default();
    let (line, (new, old)) = (1..)
        .zip(actual.lines().chain([""]).zip(expected.lines().chain([""])))
        .find(|(_, (new, old))| new != old)
        .or_else(|| (actual != expected).then_some((0, ("", ""))))?;
    Some(format!("{}:{line}\n  was {old}\n  is  {new}", golden.display()))
}

/// The scenario with the answers under its questions. A line `scenario …` begins with an empty cluster.
fn play(text: &str) -> Result<String, Trouble> {
    let mut cluster = Cluster::new();
    let mut last = None;
    let mut answers = String::new();
    for (number, line) in (1..).zip(text.lines()) {
        writeln!(answers, "{line}").map_err(|error| error.to_string())?;
        if Words::new(line).optional().is_none() {
            continue;
        }
        let answer = perform(&mut cluster, &mut last, line).map_err(|trouble| format!("line {number}: {trouble}"))?;
        answer.iter().for_each(|line| answers.push_str(&format!("    {line}\n")));
    }
    Ok(answers)
}

fn perform(cluster: &mut Cluster, last: &mut Option<Plan>, line: &str) -> Result<Vec<String>, Trouble> {
    if cluster.direct(line)? {
        return Ok(Vec::new());
    }
    let mut words = Words::new(line);
    let view = cluster.view();
    let plan = match words.word()? {
        "scenario" => {
            *cluster = Cluster::new();
            return Ok(Vec::new());
        }
        "decide" => decide::decide(&view, &cluster.policy, &cluster.operations),
        "request" => request::plan(&view, &cluster.policy, &cluster.operations, &read_request(words)?),
        "store" => {
            let Some(Plan { intent: Intent::UpdateRecord { record }, .. }) = last.take() else {
                return Err("nothing was to be stored".to_owned());
            };
            let before = cluster.record.as_ref().ok_or("there is no record")?;
            if let Some(violation) = record.violation_after(before) {
                return Err(format!("no store would take it: {violation}"));
            }
            cluster.record = Some(*record);
            return Ok(Vec::new());
        }
        "assess" => {
            let record = cluster.record.as_ref().ok_or("there is no record")?;
            let assessments = candidate::assess(&view, record, &cluster.policy, &Demand::automatic());
            return Ok(assessments.iter().map(describe_assessment).collect());
        }
        "health" => {
            let (health, reasons) = health::health(&view, &cluster.policy);
            return Ok(std::iter::once(word(health).to_owned()).chain(lines("", &reasons)).collect());
        }
        "witnesses" => {
            let record = cluster.record.as_ref().ok_or("there is no record")?;
            return Ok(lines("", &witness::words(&view, record)));
        }
        "strains" => return Ok(lines("", &strain::strains(&view, &cluster.policy))),
        other => return Err(format!("{other:?} is no word of scenarios")),
    };
    let answer = describe(&plan, cluster.record.as_ref());
    *last = Some(plan);
    Ok(answer)
}

fn read_request(mut words: Words<'_>) -> Result<Request, Trouble> {
    let verb = words.word()?;
    if matches!(verb, "fence" | "unfence" | "rejoin") {
        let node = words.parse()?;
        return Ok(match verb {
            "fence" => Request::Fence { node },
            "unfence" => Request::Unfence { node },
            _ => Request::Rejoin { node, reclone: words.optional() == Some("reclone") },
        });
    }
    let (mut to, mut site, mut accept_data_loss, mut old_primary_is_off) = (None, None, false, false);
    while let Some(word) = words.optional() {
        match word {
            "to" => to = Some(words.parse()?),
            "site" => site = Some(words.parse()?),
            "accept_data_loss" => accept_data_loss = true,
            "old_primary_is_off" => old_primary_is_off = true,
            other => return Err(format!("{other:?} says nothing about a request")),
        }
    }
    match verb {
        "switchover" => Ok(Request::Switchover { to, site }),
        "failover" => Ok(Request::Failover { to, site, accept_data_loss, old_primary_is_off }),
        other => Err(format!("request {other:?}")),
    }
}

fn describe(plan: &Plan, record: Option<&ClusterRecord>) -> Vec<String> {
    let intent = match &plan.intent {
        Intent::Hold => "hold".to_owned(),
        Intent::Start { operation } => describe_operation(operation),
        Intent::UpdateRecord { record: next } => format!("store {}", describe_change(record, next)),
    };
    std::iter::once(intent)
        .chain(lines("because ", &plan.reasons))
        .chain(lines("blocked by ", &plan.blocked_by))
        .collect()
}

fn describe_operation(operation: &OperationKind) -> String {
    match operation {
        OperationKind::Failover { from, to, accept_data_loss, old_primary_is_off } => format!(
            "failover from {from} to {to}{}{}",
            if *accept_data_loss { ", losing data" } else { "" },
            if *old_primary_is_off { ", the old primary is off" } else { "" }
        ),
        OperationKind::Switchover { from, to } => format!("switchover from {from} to {to}"),
        OperationKind::Rejoin { node, reclone } => {
            format!("rejoin {node}{}", if *reclone { " by a new copy" } else { "" })
        }
        OperationKind::Fence { node } => format!("fence {node}"),
        OperationKind::Sequence { name, .. } => format!("sequence {name}"),
        OperationKind::Backup { node, .. } => format!("backup of {node}"),
        OperationKind::Drill { node, .. } => format!("drill on {node}"),
        OperationKind::Retrain { .. } => "retraining".to_owned(),
        OperationKind::Restore { node, .. } => format!("restore of {node}"),
    }
}

/// What differs from the record before.
fn describe_change(before: Option<&ClusterRecord>, next: &ClusterRecord) -> String {
    let names = |nodes: &std::collections::BTreeSet<NodeName>| {
        let names: Vec<&str> = nodes.iter().map(NodeName::as_str).collect();
        if names.is_empty() { "nobody".to_owned() } else { names.join(",") }
    };
    let Some(before) = before else { return format!("the first record: epoch {}, holder {}", next.epoch, next.holder) };
    let mut changes = vec![format!("number {}", next.number)];
    if before.synchronous != next.synchronous {
        changes.push(format!("synchronous {} (named in {})", names(&next.synchronous), next.synchronous_number));
    }
    if before.eligible != next.eligible {
        changes.push(format!("eligible {}", names(&next.eligible)));
    }
    if before.fenced != next.fenced {
        changes.push(format!("fenced {}", names(&next.fenced)));
    }
    if before.alone_since.is_some() != next.alone_since.is_some() {
        changes.push(if next.alone_since.is_some() { "alone" } else { "not alone" }.to_owned());
    }
    if before.holder_confirmed != next.holder_confirmed {
        changes.push("holder confirmed".to_owned());
    }
    changes.join(", ")
}

fn word(health: health::Health) -> &'static str {
    match health {
        health::Health::Healthy => "healthy",
        health::Health::Degraded => "degraded",
        health::Health::NoPrimary => "no primary",
        health::Health::Unknown => "unknown",
    }
}

fn describe_assessment(assessment: &candidate::Assessment) -> String {
    let reasons: Vec<String> =
        assessment.reasons.iter().map(|reason| Reason { node: None, ..reason.clone() }.to_string()).collect();
    let verdict = if assessment.promotable { "yes" } else { "no " };
    format!("{verdict} {}: {}", assessment.node, reasons.join("; "))
}

fn lines(prefix: &str, reasons: &[Reason]) -> Vec<String> {
    reasons.iter().map(|reason| format!("{prefix}{reason}")).collect()
}

#[test]
fn a_line_that_is_not_understood_is_named() {
    for (text, trouble) in [
        ("node n1 primry", "line 1: \"primry\" says nothing about a node"),
        ("\nnode n1 primary\nrecord epoch x", "line 3: \"x\": invalid digit"),
        ("crash n9", "line 1: no node n9 was described"),
        ("decied", "line 1: \"decied\" is no word of scenarios"),
    ] {
        let found = play(text).expect_err("must not be understood");
        assert!(found.starts_with(trouble), "expected {trouble:?}, found {found:?}");
    }
}
