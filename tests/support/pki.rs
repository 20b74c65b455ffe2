//! Certificates for tests, made with the built program as an operator makes them.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use stormglass::adapters::tls::{Tls, TlsFiles};

/// An authority in a directory of its own.
pub struct Authority {
    home: tempfile::TempDir,
}

impl Authority {
    /// Made by `pki init`.
    pub fn new() -> Self {
        let authority = Self { home: tempfile::tempdir().expect("a temporary directory") };
        authority.done("init", &["--name", "orders"]);
        authority
    }

    pub fn directory(&self) -> &Path {
        self.home.path()
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.home.path().join(file)
    }

    /// Runs `stormglass pki VERB ARGUMENTS --directory …`.
    pub fn run(&self, verb: &str, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_stormglass"))
            .args(["pki", verb])
            .args(arguments)
            .arg("--directory")
            .arg(self.home.path())
            .output()
            .expect("built")
    }

    /// The same, and it must be done.
    pub fn done(&self, verb: &str, arguments: &[&str]) -> String {
        let output = self.run(verb, arguments);
        assert!(output.status.success(), "{verb} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// A certificate for 127.0.0.1.
    pub fn issue(&self, name: &str, role: &str) {
        self.done("issue", &[name, "--role", role, "--address", "127.0.0.1"]);
    }

    pub fn files(&self, name: &str) -> TlsFiles {
        TlsFiles {
            certificate: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
            authorities: self.path("authorities.crt"),
        }
    }

    /// What a process with this certificate speaks with; issued if it is not there yet.
    pub fn tls(&self, name: &str, role: &str) -> Tls {
        let files = self.files(name);
        if !files.certificate.exists() {
            self.issue(name, role);
        }
        Tls::load(files).expect("good files")
    }
}

/// An HTTP client with the certificate of `tls`.
pub fn client(tls: &Tls) -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls.client());
    builder.build().expect("a client")
}
