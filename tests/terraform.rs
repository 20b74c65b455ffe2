//! The Terraform stacks: formatted, within policy, and without a door to PostgreSQL for everybody. Nothing is planned or applied here:
//! providers are not fetched. The lab's own stack is applied by `stormglass lab run rejoin-ladder`.
//!
//! Programs that are not installed are skipped with a message.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    let own = root().join("target/checkov/bin/checkov");
    let program = if own.exists() { own } else { PathBuf::from("checkov") };
    let run = Command::new(program)
        .args(["--framework", "terraform", "--skip-download", "--compact", "--quiet", "--directory"])
        .arg(root().join("terraform"))
        .arg("--config-file")
        .arg(root().join("terraform/checkov.yaml"))
        .output();
    let Ok(output) = run else {
        eprintln!("skipped: checkov is not installed here; scripts/setup-policies installs it");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
