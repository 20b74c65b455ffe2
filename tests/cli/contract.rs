//! The command line against its contract: every verb and flag that scripts may rely on, as somebody types it.
//!
//! A line may be added; taking one out breaks somebody's script.

use clap::{CommandFactory as _, Subcommand as _};
use stormglass::cli::Cli;
use stormglass::lab::arguments::LabCommand;

/// Every verb, with every flag of its own.
const LINES: &[&str] = &[
    "controller --config FILE",
    "agent --config FILE",
    "status",
    "status main --check",
    "watch",
    "watch main",
    "explain",
    "explain main",
    "explain db1",
    "switchover main --to db2 --site b",
    "switchover main --at 2026-11-21T03:12:09Z",
    "failover main --to db2 --site b --accept-data-loss --old-primary-is-off",
    "pause main",
    "resume main",
    "fence main db1",
    "unfence main db1",
    "rejoin main db1",
    "backup main --type full",
    "backup main --type incr",
    "backups main",
    "restore main --latest --site b --into /srv/copy",
    "restore main --to-time 2026-11-21T03:12:09Z",
    "restore main --to-lsn 5/3A21F8C8",
    "drill main",
    "doctor",
    "doctor main",
    "history",
    "history main",
    "events",
    "events main",
    "operation list",
    "operation show 019a-7c",
    "operation watch 019a-7c",
    "operation cancel 019a-7c",
    "cluster list",
    "cluster show main",
    "cluster add orders.toml",
    "cluster add -",
    "cluster remove main",
    "model list",
    "model show lab-1s",
    "model promote lab-1s",
    "model rollback",
    "retrain",
    "retrain main",
    "token create robot --role viewer",
    "token list",
    "token revoke robot",
    "pki init --directory /root/pki",
    "pki issue db1 --role agent",
    "pki rotate --all",
    "audit list",
    "audit verify",
    "config check controller.toml",
    "config show controller.toml --effective",
    "config schema",
    "config schema controller",
    "config schema agent",
    "lab up",
    "lab down",
    "lab status",
    "lab run kill-primary --seed 1",
    "lab run hang-primary",
    "lab run partition-primary",
    "lab run disk-full",
    "lab run lose-site",
    "lab run agent-crash",
    "lab run controller-crash --during-failover",
    "lab run switchover --held",
    "lab run degrade-primary --fault disk-filling",
    "lab run restore",
    "lab run rejoin-ladder",
];

/// Flags of every verb.
const GLOBAL: &[&str] = &[
    "-v",
    "--output table",
    "--output json",
    "--output yaml",
    "--controller http://127.0.0.1:8432",
    "--yes",
    "--dry-run",
    "--wait",
    "--no-wait",
    "--timeout 30s",
    "--color auto",
    "--color always",
    "--color never",
];

/// Why a line is not understood, if it is not. As in `main`, which adds the laboratory.
fn misunderstood(line: &str) -> Option<String> {
    let lab = LabCommand::augment_subcommands(clap::Command::new("lab"));
    let program = Cli::command().subcommand(lab);
    let words = std::iter::once("stormglass").chain(line.split(' '));
    program.try_get_matches_from(words).err().map(|error| format!("{line}: {error}"))
}

#[test]
fn every_verb_and_flag_of_the_contract_is_understood() {
    let wrong: Vec<String> = LINES.iter().filter_map(|line| misunderstood(line)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_global_flag_is_understood_before_and_behind_a_verb() {
    for flag in GLOBAL {
        for line in [format!("{flag} status main"), format!("status main {flag}"), format!("operation list {flag}")] {
            assert_eq!(misunderstood(&line), None);
        }
    }
}

#[test]
fn the_training_program_has_its_verbs() {
    for verb in ["fit", "evaluate", "score", "publish", "benchmark"] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_stormglass-train"))
            .args([verb, "--help"])
            .output()
            .expect("built");
        assert!(output.status.success(), "stormglass-train {verb}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_stormglass-train"))
        .args(["benchmark", "--help"])
        .output()
        .expect("built");
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for flag in ["--data", "--out", "--seed", "--step"] {
        assert!(help.contains(flag), "stormglass-train benchmark has no {flag}: {help}");
    }
}
