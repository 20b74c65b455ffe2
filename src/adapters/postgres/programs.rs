//! Runs PostgreSQL's own programs: as its user, without a terminal, and killed when nobody waits for them any more.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::errors::{failed, within};
use super::settings::Setup;
use crate::adapters::system::priority;
use crate::ports::postgres::PostgresError;

/// How much of what a failed program said goes into the error.
const COMPLAINT_LINES_MAX: usize = 8;

/// A command of one of PostgreSQL's programs.
pub(super) fn command(setup: &Setup, action: &'static str, name: &str) -> Result<Command, PostgresError> {
    let program = setup.program(name).map_err(|problem| failed(action, problem))?;
    // The agent may run before others; the database and its tools compete with their clients as everywhere.
    let mut command = match priority::ordinary() {
        Some(steps) => {
            let mut nice = Command::new("nice");
            nice.arg("-n").arg(steps.to_string()).arg(program);
            nice
        }
        None => Command::new(program),
    };
    command.stdin(Stdio::null()).kill_on_drop(true).current_dir("/");
    if setup.owner.switch {
        // libpq looks for certificates and .pgpass at home, and fails where it may not look.
        command.uid(setup.owner.uid).gid(setup.owner.gid).env("HOME", &setup.settings.private_socket_directory);
    }
    Ok(command)
}

/// What a program printed, and what it reported beside that.
pub(super) struct Said {
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program whose output is read by us: in English.
pub(super) async fn run(mut command: Command, action: &'static str, timeout: Duration) -> Result<Said, PostgresError> {
    command.env("LC_ALL", "C");
    let output =
        within(timeout, action, async { command.output().await.map_err(|error| failed(action, error)) }).await?;
    said(action, &output)
}

/// What a program that ended has printed, or that it failed.
pub(super) fn said(action: &'static str, output: &std::process::Output) -> Result<Said, PostgresError> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = Said { stdout: text(&output.stdout), stderr: text(&output.stderr) };
    if output.status.success() {
        Ok(said)
    } else {
        Err(failed(action, format!("{}: {}", output.status, last_lines(&(said.stdout + &said.stderr)))))
    }
}

/// The last lines of what a program or server said, on one line, with a hint where the trouble is a well-known one.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(COMPLAINT_LINES_MAX)..].join(" | ");
    match HINTS.iter().find(|(sign, _)| last.contains(sign)) {
        Some((_, hint)) => format!("{last} ({hint})"),
        None => last,
    }
}

/// What a complaint contains, and what to do.
const HINTS: [(&str, &str); 9] = [
    ("Address already in use", "another server has the port: stop it, or change the port of this node's address"),
    ("Cannot assign requested address", "listen_addresses names an address that this host does not have"),
    ("No space left on device", "free disk space"),
    ("unrecognized configuration parameter", "correct or remove the parameter"),
    ("invalid value for parameter", "correct the parameter's value"),
    ("password authentication failed", "check replication_user and replication_password"),
    ("no password supplied", "set replication_password"),
    ("no pg_hba.conf entry", "allow the replication role in the primary's pg_hba.conf"),
    ("need to use either data checksums or", "without checksums and wal_log_hints only a reclone helps"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_short_and_say_what_to_do() {
        let text = format!("{}LOG:  could not bind: Address already in use\n\n", "noise\n".repeat(50));
        let last = last_lines(&text);
        assert_eq!(last.matches('|').count(), COMPLAINT_LINES_MAX - 1);
        assert!(last.ends_with("change the port of this node's address)"));
    }
}
