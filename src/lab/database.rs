//! The first node's data directory: `initdb`, roles, who may connect. The agents do everything after that.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::client::{TABLE, table_statement};
use super::configuration::write;
use super::layout::{APPLICATION_ROLE, DATABASE, Layout, NodeLayout};
use super::namespaces;
use super::programs::Programs;

/// Who may connect. The superuser only through the agent's private socket; the client's role without a password, so
/// that no key derivation is measured along with a failover.
fn access_rules(layout: &Layout) -> String {
    let network = if layout.has_namespaces { namespaces::NETWORK } else { "127.0.0.0/8" };
    format!(
        "# TYPE  DATABASE     USER        ADDRESS       METHOD\n\
         local   all          all                       trust\n\
         host    {DATABASE}          {APPLICATION_ROLE}         {network}   trust\n\
         host    all          replicator  {network}   scram-sha-256\n\
         host    replication  replicator  {network}   scram-sha-256\n\
         host    postgres     exporter    {network}   scram-sha-256\n"
    )
}

/// Roles and databases, one statement a line as the single-user mode wants it.
fn statements(replicator_password: &str, exporter_password: &str) -> String {
    let mut text = format!(
        "CREATE ROLE {APPLICATION_ROLE} LOGIN\n\
         CREATE DATABASE {DATABASE} OWNER {APPLICATION_ROLE}\n\
         CREATE ROLE exporter LOGIN PASSWORD '{exporter_password}' IN ROLE pg_monitor\n\
         CREATE ROLE replicator LOGIN REPLICATION PASSWORD '{replicator_password}'\n"
    );
    // What pg_rewind reads through; a superuser is not needed.
    for function in [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    ] {
        text.push_str(&format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO replicator\n"));
    }
    text
}

/// Makes the data directory of `node`. No server runs afterwards.
pub fn initialise(layout: &Layout, node: &NodeLayout, programs: &Programs) -> anyhow::Result<()> {
    let data = node.data_directory();
    let log = layout.log_directory().join("initdb.log");
    let mut initdb = Command::new(programs.postgres.join("initdb"));
    initdb
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums"])
        // Only the files of the empty database are not flushed one by one; PostgreSQL itself runs with fsync on.
        .args(["--no-sync", "--no-instructions", "--pgdata"])
        .arg(&data);
    run(initdb, "", &log)?;

    let read = |name: &str| -> anyhow::Result<String> {
        let file = layout.secret(name);
        Ok(fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?.trim().to_owned())
    };
    let single = |database: &str| {
        let mut single = Command::new(programs.postgres.join("postgres"));
        single.args(["--single", "-D"]).arg(&data).args(["-c", "exit_on_error=on", database]);
        single
    };
    run(single("postgres"), &statements(&read("replicator")?, &read("exporter")?), &log)?;
    // Drills count its rows, whether or not a client was ever there.
    let table = format!("{}\nALTER TABLE {TABLE} OWNER TO {APPLICATION_ROLE}\n", table_statement());
    run(single(DATABASE), &table, &log)?;

    write(&data.join("pg_hba.conf"), &access_rules(layout))?;
    // Started by hand, without the agent, the node cannot be reached.
    let settings = data.join("postgresql.conf");
    fs::OpenOptions::new()
        .append(true)
        .open(&settings)
        .and_then(|mut file| file.write_all(b"\nlisten_addresses = ''\n"))
        .with_context(|| format!("write {}", settings.display()))
}

fn run(mut command: Command, input: &str, log: &Path) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open the log {}", log.display()))?;
    let errors = out.try_clone().context("open the log twice")?;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(out)
        .stderr(errors)
        .env("LC_ALL", "C.UTF-8")
        .spawn()
        .with_context(|| format!("start {program}"))?;
    // A program that fails early closes its input; its own words in the log say more than that.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let status = child.wait().with_context(|| format!("wait for {program}"))?;
    if !status.success() || written.is_err() {
        bail!("{program} ended with {status}; the end of its output:\n{}", super::log_tail(log));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_reaches_the_superuser_over_the_network() {
        let layout = Layout::in_namespaces(Path::new("/tmp/lab")).expect("layout");
        for line in access_rules(&layout).lines().filter(|line| line.starts_with("host")) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            assert!(["app", "replicator", "exporter"].contains(&fields[2]), "{line}");
            assert_eq!(fields[3], namespaces::NETWORK, "{line}");
        }
    }

    #[test]
    fn every_statement_is_one_line() {
        let text = statements("secret1", "secret2");
        assert_eq!(text.lines().count(), 8);
        assert!(text.lines().all(|line| line.starts_with("CREATE ") || line.starts_with("GRANT ")));
    }
}
