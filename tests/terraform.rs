//! The Terraform stacks: formatted, within policy, and without a door to PostgreSQL for everybody. Nothing is planned or applied here:
//! providers are not fetched. The lab's own stack is applied by `stormglass lab run rejoin-ladder`.
//!
//! The wiring of the modules is compared by their texts.
//!
//! Programs that are not installed are skipped with a message.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Both stacks with all their modules have more; one that is no longer followed has less.
const PASSED_MIN: u64 = 100;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a readable directory") {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "tf") {
            found.push(path);
        }
    }
}

#[test]
fn stacks_are_formatted() {
    let run = Command::new("terraform")
        .args(["fmt", "-check", "-recursive", "-diff"])
        .arg(root().join("terraform"))
        .env_remove("TF_CLI_CONFIG_FILE")
        .env("CHECKPOINT_DISABLE", "1")
        .output();
    let Ok(output) = run else {
        eprintln!("skipped: terraform is not installed here");
        return;
    };
    assert!(output.status.success(), "terraform fmt -recursive terraform\n{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn nobody_outside_reaches_postgresql() {
    let mut found = Vec::new();
    sources(&root().join("terraform"), &mut found);
    assert!(found.len() > 8, "found only {found:?}");
    for path in found {
        let text = fs::read_to_string(&path).expect("readable");
        for block in text.split("\nresource ").filter(|block| block.contains("ingress")) {
            assert!(!block.contains("0.0.0.0/0"), "{}: {block}", path.display());
        }
        for word in ["access_key", "secret_key"] {
            assert!(!text.contains(word), "{} holds {word}: identities are roles", path.display());
        }
    }
}

#[test]
fn stacks_are_within_policy() {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let own = home.join(".cache/stormglass/checkov/bin/checkov");
    let program = if own.exists() { own } else { PathBuf::from("checkov") };
    let run = Command::new(program)
        .args(["--framework", "terraform", "--skip-download", "--compact", "--output", "json", "--directory"])
        .arg(root().join("terraform"))
        .arg("--config-file")
        .arg(root().join("terraform/checkov.yaml"))
        .output();
    let Ok(output) = run else {
        eprintln!("skipped: checkov is not installed here; scripts/setup installs it");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let summary = &said["summary"];
    let failed = said["results"]["failed_checks"].as_array().cloned().unwrap_or_default();
    let failed =
        failed.iter().map(|check| format!("{} {}: {}", check["check_id"], check["resource"], check["check_name"]));
    let failed: Vec<String> = failed.collect();
    assert!(output.status.success() && failed.is_empty(), "{failed:#?}\n{}", String::from_utf8_lossy(&output.stderr));
    // A file that is not understood is passed over in silence, and so would be a module that is not found.
    assert_eq!(summary["parsing_errors"], 0, "{summary}");
    assert!(summary["passed"].as_u64().is_some_and(|passed| passed > PASSED_MIN), "{summary}");
}

/// What `terraform validate` would find first, and cannot here: every module gets what it asks for, and nothing else; every output and
/// variable that is named is declared.
#[test]
fn modules_get_what_they_ask_for() {
    let mut found = Vec::new();
    sources(&root().join("terraform"), &mut found);
    let mut calls = 0;
    for path in &found {
        let text = fs::read_to_string(path).expect("readable");
        let directory = path.parent().expect("a directory");
        let variables = declared(directory, "variable");
        for name in named(&text, "var.") {
            assert!(variables.contains_key(&name), "{}: var.{name} is not declared", path.display());
        }
        for (name, block) in blocks(&text, "module") {
            calls += 1;
            let arguments: Vec<&str> = block
                .lines()
                .filter_map(|line| line.strip_prefix("  ")?.split_once('=').map(|(name, _)| name))
                .filter(|name| !name.starts_with([' ', '#']))
                .map(str::trim)
                .collect();
            let source =
                block.lines().find_map(|line| line.trim().strip_prefix("source")).expect("a module has a source");
            let source = directory.join(source.trim_start_matches([' ', '=']).trim_matches('"'));
            let wanted = declared(&source, "variable");
            for argument in arguments.iter().filter(|name| !["source", "for_each"].contains(name)) {
                assert!(wanted.contains_key(*argument), "{}: module {name} takes no {argument}", path.display());
            }
            for (variable, declaration) in &wanted {
                let is_optional = declaration.lines().any(|line| line.trim_start().starts_with("default"));
                let is_given = arguments.contains(&variable.as_str());
                assert!(is_optional || is_given, "{}: module {name} needs {variable}", path.display());
            }
            let outputs = declared(&source, "output");
            let everywhere = declared_text(directory);
            for output in named(&everywhere, &format!("module.{name}.")) {
                assert!(outputs.contains_key(&output), "{}: module {name} gives no {output}", path.display());
            }
        }
    }
    assert!(calls >= 7, "only {calls} calls of modules were found");
}

/// Blocks of `kind` by name, as `terraform fmt` leaves them.
fn blocks(text: &str, kind: &str) -> Vec<(String, String)> {
    let head = format!("\n{kind} \"");
    let text = format!("\n{text}");
    let mut rest = text.as_str();
    let mut found = Vec::new();
    while let Some((_, after)) = rest.split_once(head.as_str()) {
        let (name, body) = after.split_once('"').expect("a name ends");
        let first = body.lines().next().unwrap_or_default();
        let end = if first.trim_end().ends_with('}') { first.len() } else { body.find("\n}").expect("a block ends") };
        found.push((name.to_owned(), body[..end].to_owned()));
        rest = &body[end..];
    }
    found
}

fn declared_text(directory: &Path) -> String {
    let mut found: Vec<PathBuf> =
        fs::read_dir(directory).expect("a readable directory").flatten().map(|it| it.path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "tf"));
    found.iter().map(|path| fs::read_to_string(path).expect("readable")).collect::<Vec<_>>().join("\n")
}

fn declared(directory: &Path, kind: &str) -> BTreeMap<String, String> {
    blocks(&declared_text(directory), kind).into_iter().collect()
}

/// Every name that follows `prefix`.
fn named(text: &str, prefix: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let words = code.flat_map(|line| line.match_indices(prefix).map(move |(at, _)| (line, at)));
    // `each.value.name` and the like are somebody else's.
    let own = words
        .filter(|(line, at)| !line[..*at].ends_with(|before: char| before.is_alphanumeric() || "._".contains(before)));
    own.map(|(line, at)| {
        line[at + prefix.len()..].chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
    })
    .collect()
}

/// Every policy that is not kept says why, on its own line.
#[test]
fn every_exception_has_its_reason() {
    let text = fs::read_to_string(root().join("terraform/checkov.yaml")).expect("readable");
    let exceptions: Vec<&str> = text.lines().filter(|line| line.trim_start().starts_with("- ")).collect();
    assert!(!exceptions.is_empty());
    for line in exceptions {
        let reason = line.split_once('#').map(|(_, reason)| reason.trim()).unwrap_or_default();
        assert!(reason.split(' ').count() > 3, "no reason: {line}");
    }
}
