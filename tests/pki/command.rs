//! The command as an operator uses it: files, exit codes, documents.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::support::Authority;

fn code(output: &Output) -> i32 {
    output.status.code().expect("no signal")
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn document(authority: &Authority, verb: &str, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
    serde_json::from_str(&authority.done(verb, &arguments)).expect("one document")
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

/// OpenSSL's word on a certificate, with every check of a server that is called at `address`.
fn openssl_accepts(authority: &Authority, file: &str, purpose: &str, address: Option<&str>) -> bool {
    let mut command = Command::new("openssl");
    command.args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"]).arg(authority.path("authorities.crt"));
    if let Some(address) = address {
        command.args(["-verify_ip", address]);
    }
    command.arg(authority.path(file)).output().expect("openssl is installed").status.success()
}

#[test]
fn certificates_are_what_openssl_takes_for_their_purpose() {
    let authority = Authority::new();
    let address = ["--address", "10.0.1.11", "--address", "db1.example.com"];
    let issued = document(&authority, "issue", &[&["db1", "--role", "agent"][..], &address].concat());
    assert_eq!(issued["certificates"][0]["role"], "agent");
    assert_eq!(issued["certificates"][0]["addresses"], serde_json::json!(["10.0.1.11", "db1.example.com"]));
    authority.done("issue", &["ann", "--role", "client"]);
    assert!(openssl_accepts(&authority, "db1.crt", "sslserver", Some("10.0.1.11")));
    assert!(openssl_accepts(&authority, "db1.crt", "sslclient", None), "agents call controllers, too");
    assert!(!openssl_accepts(&authority, "db1.crt", "sslserver", Some("10.0.1.12")));
    assert!(openssl_accepts(&authority, "ann.crt", "sslclient", None));
    assert!(!openssl_accepts(&authority, "ann.crt", "sslserver", None), "a person serves nobody");
    for key in ["authority.key", "db1.key", "ann.key"] {
        assert_eq!(mode(&authority.path(key)), 0o600, "{key}");
    }
    assert_eq!(mode(&authority.path("db1.crt")), 0o644);
}

#[test]
fn nothing_is_overwritten_and_every_mistake_has_its_exit_code() {
    let authority = Authority::new();
    authority.issue("db1", "agent");
    let before = std::fs::read(authority.path("db1.key")).expect("it is there");
    let again = authority.run("issue", &["db1", "--role", "agent", "--address", "10.0.0.1"]);
    assert_eq!(code(&again), 9, "{}", words(&again));
    assert!(words(&again).contains("stormglass pki rotate db1"), "{}", words(&again));
    assert_eq!(std::fs::read(authority.path("db1.key")).expect("it is there"), before);
    assert_eq!(code(&authority.run("init", &[])), 9);
    for (arguments, expected, says) in [
        (&["db2", "--role", "agent"][..], 2, "--address"),
        (&["db2", "--role", "agent", "--address", "10.0.0.1:8008"], 2, "neither an IP address nor a host name"),
        (&["db2", "--role", "agent", "--address", "0.0.0.0"], 2, "nobody can connect"),
        (&["db2", "--role", "root"], 2, "known roles"),
        (&["DB 2", "--role", "client"], 2, "not a valid name"),
        (&["authority", "--role", "client"], 2, "choose another one"),
        (&["db2", "--role", "client", "--valid", "9999d"], 9, "pki rotate --authority"),
    ] {
        let output = authority.run("issue", arguments);
        assert_eq!(code(&output), expected, "{arguments:?}: {}", words(&output));
        assert!(words(&output).contains(says), "{arguments:?}: {}", words(&output));
    }
    let nobody = authority.run("rotate", &["db9"]);
    assert_eq!(code(&nobody), 4, "{}", words(&nobody));
    let elsewhere = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_stormglass"))
        .args(["pki", "issue", "ann", "--role", "client", "--directory"])
        .arg(elsewhere.path())
        .output()
        .expect("built");
    assert_eq!(code(&output), 4, "{}", words(&output));
    assert!(words(&output).contains("stormglass pki init"), "{}", words(&output));
    assert_eq!(std::fs::read_dir(elsewhere.path()).expect("a directory").count(), 0);
}

#[test]
fn a_dry_run_writes_nothing() {
    let authority = Authority::new();
    authority.issue("db1", "agent");
    let listing = || {
        let mut all: Vec<(String, Vec<u8>)> = std::fs::read_dir(authority.directory())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .map(|path| (path.display().to_string(), std::fs::read(&path).expect("a file")))
            .collect();
        all.sort();
        all
    };
    let before = listing();
    for (verb, arguments) in [
        ("issue", &["db2", "--role", "client", "--dry-run"][..]),
        ("rotate", &["db1", "--dry-run"]),
        ("rotate", &["--authority", "--dry-run"]),
    ] {
        let told = document(&authority, verb, arguments);
        assert_eq!(told["dry_run"], true, "{arguments:?}");
        assert!(!told["files"].as_array().expect("files").is_empty(), "{arguments:?}");
    }
    assert_eq!(listing(), before);
}

#[test]
fn a_rotation_keeps_name_role_addresses_and_length_and_nothing_else() {
    let authority = Authority::new();
    let address = ["--address", "10.0.1.11", "--address", "db1.example.com"];
    let first = document(&authority, "issue", &[&["db1", "--role", "agent", "--valid", "20d"][..], &address].concat());
    authority.issue("db2", "agent");
    let key = std::fs::read(authority.path("db1.key")).expect("a key");
    let second = document(&authority, "rotate", &["--expiring-within", "30d"]);
    let names: Vec<&Value> = second["certificates"].as_array().expect("a list").iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["db1"], "db2 holds for 90 days");
    let (first, second) = (&first["certificates"][0], &second["certificates"][0]);
    for same in ["role", "name", "addresses"] {
        assert_eq!(first[same], second[same], "{same}");
    }
    assert_ne!(first["serial"], second["serial"]);
    assert_ne!(std::fs::read(authority.path("db1.key")).expect("a key"), key);
    assert_eq!(mode(&authority.path("db1.key")), 0o600);
    assert!(openssl_accepts(&authority, "db1.crt", "sslserver", Some("10.0.1.11")));
    let none = document(&authority, "rotate", &["--expiring-within", "10d"]);
    assert_eq!(none["certificates"], serde_json::json!([]), "20 days again: {none}");
}

#[test]
fn a_new_authority_stands_beside_the_former_until_nothing_rests_on_that() {
    let authority = Authority::new();
    authority.issue("db1", "agent");
    authority.done("rotate", &["--authority"]);
    assert!(openssl_accepts(&authority, "db1.crt", "sslserver", None), "certificates of the former one go on");
    let early = authority.run("rotate", &["--drop-previous"]);
    assert_eq!(code(&early), 9, "{}", words(&early));
    assert!(words(&early).contains("db1"), "{}", words(&early));
    authority.issue("db2", "agent");
    authority.done("rotate", &["--all"]);
    authority.done("rotate", &["--drop-previous"]);
    for file in ["db1.crt", "db2.crt"] {
        assert!(openssl_accepts(&authority, file, "sslserver", None), "{file}");
    }
    let bundle = std::fs::read_to_string(authority.path("authorities.crt")).expect("a bundle");
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1);
}
