//! The API of a real controller, asked whatever its OpenAPI document allows and forbids, by schemathesis (`scripts/setup` installs it).
//!
//! Whatever is found is a fault of the document or of the API. Without more said the requests are the same each time; for so many
//! `SCHEMATHESIS_SECONDS` requests by chance, and by what earlier ones answered, follow from `SCHEMATHESIS_SEED`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{OneLab, is_removed, run_directories, stormglass, words};

/// For each operation, beside what the document itself suggests.
const REQUESTS: &str = "15";
/// The same requests each time.
const SEED_DEFAULT: &str = "1";

/// A lab that ends with the test, also with one that fails.
struct Lab {
    directory: PathBuf,
}

impl Lab {
    fn begin() -> Self {
        // `lab run` takes away what such a directory is left of.
        let lab = Self { directory: std::env::temp_dir().join(format!("stormglass-run-api-{}", std::process::id())) };
        let output = stormglass(&["lab", "up", "--directory", &lab.path()]);
        assert!(output.status.success(), "{}", words(&output));
        lab
    }

    fn path(&self) -> String {
        self.directory.display().to_string()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        stormglass(&["lab", "down", "--directory", &self.path()]);
    }
}

#[expect(clippy::disallowed_methods, reason = "where setup puts programs, and how long to search")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn ask(url: &str, token: &str, arguments: &[&str]) {
    let home = variable("HOME").expect("a home");
    let program = Path::new(&home).join(".cache/stormglass/schemathesis/bin/st");
    let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab_scenarios/schemathesis.toml");
    // It leaves files where it runs.
    let place = tempfile::tempdir().expect("a temporary directory");
    let seed = variable("SCHEMATHESIS_SEED").unwrap_or_else(|| SEED_DEFAULT.to_owned());
    let output = Command::new(&program)
        .arg("--config-file")
        .arg(configuration)
        .args(["run", &format!("{url}/api/v1/openapi.json"), "--url", url, "--seed", &seed])
        .args([
            "--header",
            &format!("Authorization: Bearer {token}"),
            "--workers",
            "1",
            "--continue-on-failure",
            "--no-color",
        ])
        .args(arguments)
        .current_dir(place.path())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("run {}: {error}; scripts/setup installs it", program.display()));
    assert!(output.status.success(), "st {}\n{}", arguments.join(" "), words(&output));
}

#[test]
fn schemathesis_finds_nothing() {
    let _one = OneLab::wait();
    let before = run_directories();
    let lab = Lab::begin();
    let output = stormglass(&["lab", "status", "--directory", &lab.path(), "--output", "json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", words(&output)));
    let url = status["controller_url"].as_str().expect("a controller");
    let admin = status["tokens"]["admin"].as_str().expect("a token");
    let agent = std::fs::read_to_string(lab.directory.join("secrets/agent")).expect("the agents' token");
    let seconds = variable("SCHEMATHESIS_SECONDS");
    let chance: &[&str] = match &seconds {
        Some(seconds) => &["--phases", "fuzzing,stateful", "--max-time", seconds],
        None => &["--phases", "fuzzing", "--max-examples", REQUESTS],
    };

    // A stream has no end: each request of it costs its timeout.
    ask(url, admin, &["--phases", "coverage", "--include-path-regex", "/stream$", "--request-timeout", "1"]);
    let others = ["--exclude-path-regex", "/stream$|heartbeat$", "--request-timeout", "20"];
    ask(url, admin, &[&["--phases", "examples,coverage"], &others[..]].concat());
    ask(url, admin, &[chance, &others[..]].concat());
    // The document leaves the fields of reports to the agents: whatever comes is answered as it says, and seldom taken.
    let reports = [
        "--include-path-regex",
        "heartbeat$",
        "--request-timeout",
        "20",
        "--exclude-checks",
        "positive_data_acceptance",
    ];
    ask(url, agent.trim(), &[&["--phases", "coverage"], &reports[..]].concat());
    ask(url, agent.trim(), &[chance, &reports[..]].concat());

    drop(lab);
    assert!(is_removed(&before), "the lab was not removed");
}
