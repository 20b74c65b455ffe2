//! End to end: the built program runs every scenario of the lab on real PostgreSQL, HAProxy and Prometheus.
//!
//! No assertion about time beyond the scenarios' own. One lab at a time: they would slow each other down.

#[path = "lab_scenarios/api.rs"]
mod api;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_stormglass");

/// Held as long as a lab of these tests is up; released by the kernel, also after a crash.
struct OneLab {
    _file: File,
}

impl OneLab {
    fn wait() -> Self {
        let file =
            File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("one-lab.lock")).expect("make the lock file");
        flock(&file, FlockOperation::LockExclusive).expect("wait for the other lab");
        Self { _file: file }
    }
}

fn stormglass(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).output().expect("run stormglass")
}

fn words(output: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Directories of `lab run` that exist now.
fn run_directories() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(std::env::temp_dir())
        .expect("read the temporary directory")
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("stormglass-run-"))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Runs a scenario and checks what holds in every one.
fn run(scenario: &[&str]) -> Value {
    let _one = OneLab::wait();
    let before = run_directories();
    let mut arguments = vec!["lab", "run"];
    arguments.extend(scenario);
    arguments.extend(["--output", "json", "--seed", "7"]);
    let output = stormglass(&arguments);
    let said = words(&output);
    assert!(output.status.success(), "{said}");
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("not JSON: {error}\n{said}"));
    assert_eq!(report["scenario"], scenario[0], "{said}");
    assert_eq!(report["lost_commits"], 0, "{said}");
    assert_eq!(report["duplicate_commits"], 0, "{said}");
    assert_eq!(report["two_writers"], false, "{said}");
    assert_eq!(report["rejoined"], true, "{said}");
    assert_eq!(report["succeeded"], true, "{said}");
    assert!(report["acked_commits"].as_u64().is_some_and(|number| number > 300), "{said}");
    assert!(report["write_outage_seconds"].is_number(), "{said}");
    assert!(is_removed(&before), "the lab was not removed\n{said}");
    report
}

/// Waits until no directory is left that was not there `before`: somebody else may run a lab beside the tests, and ends it.
fn is_removed(before: &[PathBuf]) -> bool {
    (0..600).any(|_| {
        let is_gone = run_directories().iter().all(|directory| before.contains(directory));
        if !is_gone {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        is_gone
    })
}

fn assert_phases(report: &Value, phases: &[&str]) {
    for phase in phases {
        assert!(report["phases"][phase].as_f64().is_some_and(|seconds| seconds >= 0.0), "{phase}: {report:#}");
    }
}

#[test]
fn kill_primary() {
    let report = run(&["kill-primary"]);
    assert_ne!(report["old_primary"], report["new_primary"]);
    assert!(report["epoch"].as_u64().is_some_and(|epoch| epoch >= 2));
    assert_phases(&report, &["detect", "decide", "fence", "promote", "redirect", "verify"]);
    let steps = report["restore_sequence"].as_array().expect("a list");
    let ended: Vec<(&str, &str)> =
        steps.iter().filter_map(|step| Some((step["step"].as_str()?, step["outcome"].as_str()?))).collect();
    // Nothing is configured to follow: redundancy is waited for, and proven, all the same.
    for step in ["start_standby", "redundancy", "verify"] {
        assert!(ended.contains(&(step, "succeeded")), "{step}: {ended:?}");
    }
    assert!(report["redundant_after_seconds"].as_f64().is_some_and(|seconds| seconds <= 15.0), "{report:#}");
}

#[test]
fn restore() {
    let report = run(&["restore"]);
    assert!(report["restore"]["commits_before_target"].as_u64().is_some_and(|number| number > 300), "{report:#}");
    assert!(report["restore"]["commits_after_target"].as_u64().is_some_and(|number| number > 0), "{report:#}");
    assert!(report["restore"]["rto_seconds"].is_number(), "{report:#}");
    let steps: Vec<&str> =
        report["restore_sequence"].as_array().expect("steps").iter().filter_map(|it| it["step"].as_str()).collect();
    for step in ["preflight", "fence", "restore_copy", "recover_copy", "adopt_copy", "promote", "reclone"] {
        assert!(steps.contains(&step), "{step} is not in {steps:?}");
    }
}

#[test]
fn rejoin_ladder() {
    let report = run(&["rejoin-ladder"]);
    let faults: Vec<&str> =
        report["faults"].as_array().expect("faults").iter().filter_map(|fault| fault["fault"].as_str()).collect();
    assert_eq!(faults, ["divergent-wal", "data-directory-removed", "host-gone"], "{report:#}");
}

#[test]
fn hang_primary() {
    let report = run(&["hang-primary"]);
    let faults = report["faults"].as_array().expect("list of faults");
    assert_eq!(faults.len(), 2, "all processes, then a postmaster alone");
    for fault in faults {
        assert!(fault["epoch"].is_u64(), "{fault:#}");
    }
    assert_phases(&report, &["detect", "decide", "fence", "promote", "redirect"]);
}

#[test]
fn nobody_is_promoted_beside_a_primary_whose_agent_and_guard_hang() {
    let report = run(&["hang-primary", "--fault", "agent"]);
    assert!(report["epoch"].as_u64().is_some_and(|epoch| epoch >= 2), "the fence after the thaw: {report:#}");
}

#[test]
fn switchover() {
    let report = run(&["switchover"]);
    assert_ne!(report["old_primary"], report["new_primary"]);
    assert_phases(&report, &["detect", "decide", "fence", "promote", "redirect", "verify"]);
}

#[test]
fn switchover_while_a_transaction_is_held_open() {
    let report = run(&["switchover", "--held"]);
    assert_ne!(report["old_primary"], report["new_primary"]);
    // Newcomers wait at HAProxy, clients of PgBouncer in PgBouncer; nobody is told no.
    assert_eq!(report["refused_connections"], 0, "{report:#}");
    assert_eq!(report["failed_new_connections"], 0, "{report:#}");
    assert_eq!(report["pool_errors"], 0, "{report:#}");
    assert!(report["longest_statement_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{report:#}");
    let served = &report["application_served_from"];
    assert!(served["p1"].is_string() && served["p1"] == served["p2"], "{report:#}");
}

#[test]
fn agent_crash() {
    let report = run(&["agent-crash"]);
    assert_eq!(report["old_primary"], report["new_primary"]);
    assert_eq!(report["failed_commits"], 0, "clients noticed: {report:#}");
    assert_eq!(report["faults"].as_array().map(Vec::len), Some(2), "the agent, then its guard");
}

/// The primary went on where no controller could be asked, because its standbys renewed its lease.
fn assert_renewed(report: &Value, faults: usize) {
    assert_eq!(report["old_primary"], report["new_primary"]);
    assert_eq!(report["epoch"], 1, "{report:#}");
    assert_eq!(report["failed_commits"], 0, "clients noticed: {report:#}");
    let listed = report["faults"].as_array().expect("list of faults");
    assert_eq!(listed.len(), faults, "{report:#}");
    for fault in listed {
        assert!(fault["lease_renewals_by_standbys"].as_u64().is_some_and(|count| count > 0), "{fault:#}");
    }
}

#[test]
fn controller_crash() {
    assert_renewed(&run(&["controller-crash"]), 1);
}

#[test]
fn controller_crash_during_failover() {
    let report = run(&["controller-crash", "--during-failover"]);
    assert_eq!(
        report["faults"].as_array().map(Vec::len),
        Some(2),
        "with the primary, then in the middle of a failover"
    );
    assert!(report["epoch"].as_u64().is_some_and(|epoch| epoch >= 3), "{report:#}");
}

#[test]
fn partition_controller() {
    assert_renewed(&run(&["partition-controller"]), 2);
}

#[test]
fn controller_crash_with_three_controllers() {
    let report = run(&["controller-crash", "--controllers", "3"]);
    let faults = report["faults"].as_array().expect("a list");
    let names: Vec<&str> = faults.iter().filter_map(|fault| fault["fault"].as_str()).collect();
    assert_eq!(names, ["kill-leader", "pause-leader", "lose-etcd-majority", "kill-leader-and-primary"], "{report:#}");
    assert!(report["epoch"].as_u64().is_some_and(|epoch| epoch >= 2), "{report:#}");
}

#[test]
fn partition_primary() {
    let report = run(&["partition-primary"]);
    assert_ne!(report["old_primary"], report["new_primary"]);
    assert!(report["epoch"].as_u64().is_some_and(|epoch| epoch >= 2), "{report:#}");
    assert_phases(&report, &["detect", "decide", "fence", "promote", "redirect", "verify"]);
    // It could not be told to stop: somebody waited until its lease had certainly run out.
    assert!(report["write_outage_seconds"].as_f64().is_some_and(|seconds| seconds > 1.0), "{report:#}");
}

#[test]
fn disk_full() {
    let report = run(&["disk-full"]);
    assert_ne!(report["old_primary"], report["new_primary"]);
    assert_phases(&report, &["detect", "decide", "fence", "promote", "redirect", "verify"]);
}

#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    let _one = OneLab::wait();
    let before = run_directories();
    let child = Command::new(PROGRAM)
        .args(["lab", "run", "kill-primary"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run stormglass");
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("a pid");
    let deadline = std::thread::spawn(move || child.wait_with_output().expect("wait for the run"));
    // Somewhere in the middle of the build: as soon as there is something to remove.
    while run_directories() == before && !deadline.is_finished() {
        std::thread::yield_now();
    }
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("send SIGTERM");
    let output = deadline.join().expect("the run ended");
    assert_eq!(output.status.code(), Some(7), "{}", words(&output));
    assert_eq!(run_directories(), before, "{}", words(&output));
}

#[test]
fn a_lab_goes_up_tells_where_it_is_and_goes_down() {
    let _one = OneLab::wait();
    let directory = std::env::temp_dir().join(format!("stormglass-test-{}", std::process::id()));
    let place = directory.to_str().expect("UTF-8");
    let up = stormglass(&["lab", "up", "--directory", place]);
    assert!(up.status.success(), "{}", words(&up));

    let again = stormglass(&["lab", "up", "--directory", place]);
    let status = stormglass(&["lab", "status", "--output", "json", "--directory", place]);
    let down = stormglass(&["lab", "down", "--directory", place]);
    let after = stormglass(&["lab", "status", "--output", "json", "--directory", place]);

    assert_eq!(again.status.code(), Some(1), "a second lab in one place: {}", words(&again));
    assert!(status.status.success(), "{}", words(&status));
    let document: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(document["cluster"], "main");
    for role in ["viewer", "backup", "operator", "admin"] {
        assert!(document["tokens"][role].as_str().is_some_and(|token| !token.is_empty()), "{role}");
    }
    assert_eq!(document["haproxy"].as_array().map(Vec::len), Some(2));
    let nodes = document["nodes"].as_array().expect("list of nodes");
    assert_eq!(nodes.iter().filter(|node| node["role"] == "primary").count(), 1, "{document:#}");
    assert_eq!(nodes.iter().filter(|node| node["role"] == "standby").count(), 2, "{document:#}");
    assert!(down.status.success(), "{}", words(&down));
    assert!(!directory.exists(), "down leaves nothing");
    assert_eq!(after.status.code(), Some(4), "{}", words(&after));
}

#[test]
fn an_option_of_another_scenario_is_a_usage_error() {
    let output = stormglass(&["lab", "run", "kill-primary", "--held"]);
    assert_eq!(output.status.code(), Some(2), "{}", words(&output));
}

#[test]
fn lose_site() {
    let report = run(&["lose-site"]);
    assert_ne!(report["old_primary"], report["new_primary"]);
    assert!(report["dns_answer"].is_string(), "{report:#}");
    assert!(report["dns_ttl_wait_seconds"].is_number(), "{report:#}");
    let steps = report["faults"][0]["steps"].as_array().expect("steps").clone();
    assert!(steps.iter().any(|step| step["step"] == "verify_name" && step["outcome"] == "succeeded"), "{report:#}");
}

/// A controller with an empty store moves the primary on an operator's word, and whoever was lost rejoins.
#[test]
fn lose_site_and_the_only_controller() {
    let report = run(&["lose-site", "--with-controller"]);
    assert_ne!(report["old_primary"], report["new_primary"]);
    assert!(
        report["epoch"].as_u64() > Some(1_000_000),
        "beyond what the lost controller may have given out: {report:#}"
    );
    assert_eq!(report["rejoined"], true, "{report:#}");
}

#[test]
fn switchover_to_the_other_site_and_back() {
    let report = run(&["switchover", "--to-site"]);
    assert_eq!(report["faults"].as_array().map(Vec::len), Some(2), "{report:#}");
    assert!(report["dns_answer"].is_string(), "{report:#}");
}
