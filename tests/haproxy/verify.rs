//! The verifying write, with a real PostgreSQL behind a real HAProxy.

use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use stormglass::adapters::haproxy::{PostgresWriteVerifier, VerifyCredentials};
use stormglass::domain::command::CommandState;
use stormglass::domain::ids::Address;
use stormglass::ports::traffic::{TrafficRouter as _, WriteVerifier as _};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::harness::{self, FakeController, Lab, assignment, until};
use crate::role::Running;

/// A throw-away server; PostgreSQL refuses root, so that a test as root runs it as `postgres`.
pub struct Postgres {
    pub address: Address,
    server: Child,
    _directory: TempDir,
}

impl Postgres {
    pub fn start(host: Ipv4Addr) -> Self {
        let directory = tempfile::Builder::new().prefix("sg-pg-").tempdir_in("/tmp").expect("a directory");
        let user = rustix::process::geteuid().is_root().then(postgres_user);
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(directory.path(), Some(uid), Some(gid)).expect("root may");
        }
        let data = directory.path().join("data");
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(bin_directory().join(program));
            command.arg("-D").arg(&data).args(arguments).current_dir(directory.path());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        let made = run("initdb", &["-U", "postgres", "-A", "trust", "-N"]).status().expect("initdb runs");
        assert!(made.success());
        let address = harness::free_address(host);
        let sockets = directory.path().display().to_string();
        let (port, listen) = (address.port.to_string(), address.host.clone());
        let access = data.join("pg_hba.conf");
        std::fs::write(&access, "host all all 127.0.0.0/8 trust\nlocal all all trust\n").expect("writes");
        let mut server = run("postgres", &["-p", &port, "-h", &listen, "-k", &sockets, "-F"]);
        Self { address, server: server.spawn().expect("postgres runs"), _directory: directory }
    }
}

impl Postgres {
    /// What a switchover does to the former primary: SIGINT, and every session is ended.
    pub fn stop_fast(&mut self) {
        harness::kill(i32::try_from(self.server.id()).expect("a pid fits"), rustix::process::Signal::INT);
        self.server.wait().expect("own child");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.server.try_wait().expect("own child").is_none() {
            let pid = i32::try_from(self.server.id()).expect("a pid fits");
            harness::kill(pid, rustix::process::Signal::QUIT);
            self.server.wait().expect("own child");
        }
    }
}

fn bin_directory() -> PathBuf {
    (13..=17)
        .rev()
        .map(|major| Path::new("/usr/lib/postgresql").join(major.to_string()).join("bin"))
        .find(|path| path.join("postgres").exists())
        .expect("a PostgreSQL is installed")
}

pub fn postgres_user() -> (u32, u32) {
    let users = std::fs::read_to_string("/etc/passwd").expect("readable");
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("there is a user postgres");
    let number = |index: usize| line.split(':').nth(index).and_then(|text| text.parse().ok()).expect("a number");
    (number(2), number(3))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verifying_write_tells_where_it_arrived() {
    let mut lab = Lab::new();
    let (right, wrong) = (Postgres::start(lab.host), Postgres::start(lab.host));
    let router = lab.router(Some(&right.address)).await;
    let credentials = VerifyCredentials { user: "postgres".into(), password: None, database: "postgres".into() };
    let verifier = PostgresWriteVerifier::new(&lab.settings.write, &credentials);
    until("PostgreSQL accepts", async || verifier.verify_write(&right.address, Duration::from_secs(1)).await.is_ok())
        .await;
    let begun = Instant::now();
    let seen = verifier.verify_write(&right.address, Duration::from_secs(2)).await.expect("arrives");
    println!("verifying write through HAProxy: {:?} ({seen})", begun.elapsed());
    assert!(seen.contains("committed at 0/") && seen.contains(&format!("port {}", right.address.port)), "{seen}");

    let begun = Instant::now();
    let error = verifier.verify_write(&wrong.address, Duration::from_millis(300)).await.expect_err("elsewhere");
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert!(error.contains("arrived at") && error.contains(&format!("not at {}", wrong.address)), "{error}");

    // A server that takes the connection and says nothing of PostgreSQL's: an error within the deadline.
    router.redirect(&lab.a.address).await.expect("redirects");
    let begun = Instant::now();
    verifier.verify_write(&right.address, Duration::from_millis(300)).await.expect_err("no PostgreSQL");
    assert!(begun.elapsed() < Duration::from_secs(3));

    // The same as a command, with retries until the primary is there.
    let controller = Arc::new(FakeController::default());
    let role = Running::start(&mut lab, &controller, Some("postgres"));
    assert_eq!(role.assign(&assignment(4, 4, Some(&right.address), false)).await.error, None);
    let state = role.verify(4, &right.address).await;
    assert!(matches!(state, CommandState::Succeeded { .. }), "{state:?}");
    assert!(matches!(role.verify(3, &right.address).await, CommandState::Refused { .. }));
    role.stop().await;
}
