//! A primary that recovered from a crash and is closed to clients until a standby has what it recovered.
//!
//! It starts with a `pg_hba.conf` of the agent's that lets in standbys and the agent. `hba_file` cannot change while PostgreSQL
//! runs, so it names a symbolic link: opening leads that to the user's file, which PostgreSQL then reads as ever.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::errors::{blocking, failed};
use super::files::{remove, sync_parent, write_atomically};
use super::parameters::read_file;
use super::process;
use super::session::Session;
use super::settings::Setup;
use crate::ports::postgres::PostgresError;

const ACTION: &str = "open PostgreSQL to clients";

/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(2);

/// What `hba_file` names, in the private directory.
pub(super) fn link(setup: &Setup) -> PathBuf {
    setup.settings.private_socket_directory.join("hba.conf")
}

fn closed_file(setup: &Setup) -> PathBuf {
    setup.settings.private_socket_directory.join("hba-closed.conf")
}

/// True while clients are kept out.
pub(super) fn is_closed(setup: &Setup) -> bool {
    fs::read_link(link(setup)).is_ok_and(|target| target == closed_file(setup))
}

/// Before a start that is open from its beginning.
pub(super) fn forget(setup: &Setup) -> io::Result<()> {
    remove(&link(setup))
}

/// Before a start that keeps clients out. Fails where the user's file cannot be narrowed.
pub(super) fn close(setup: &Setup) -> Result<(), PostgresError> {
    let own = user_file(setup);
    let at = |path: &Path, error: io::Error| failed(ACTION, format!("{}: {error}", path.display()));
    let text = fs::read_to_string(&own).map_err(|error| at(&own, error))?;
    let narrowed = narrow(&text, &setup.settings.superuser)
        .map_err(|line| failed(ACTION, format!("{}: cannot be narrowed to standbys: {line}", own.display())))?;
    let closed = closed_file(setup);
    write_atomically(&closed, &narrowed, setup.owner).map_err(|error| at(&closed, error))?;
    lead_to(setup, &closed).map_err(|error| at(&link(setup), error))
}

/// See [`crate::ports::LocalPostgres::open_to_clients`].
pub(super) async fn open(setup: &Arc<Setup>) -> Result<(), PostgresError> {
    let loaded = "select pg_conf_load_time()::text";
    let ask = async || {
        let session = Session::open(setup, ACTION).await?;
        let answer = session.query(ACTION, loaded).await;
        session.close().await;
        answer
    };
    let before = ask().await?;
    let here = setup.clone();
    blocking(ACTION, move || lead_to(&here, &user_file(&here)).map_err(|error| failed(ACTION, error))).await?;
    if !process::signal_postmaster(setup, Signal::HUP).await {
        return Err(PostgresError::NotAccepting { action: ACTION, problem: "PostgreSQL does not run".to_owned() });
    }
    while ask().await? == before {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// The link is never absent: PostgreSQL may read it at any moment.
fn lead_to(setup: &Setup, target: &Path) -> io::Result<()> {
    let link = link(setup);
    let new = link.with_extension("new");
    remove(&new)?;
    symlink(target, &new)?;
    fs::rename(&new, &link)?;
    sync_parent(&link)
}

fn user_file(setup: &Setup) -> PathBuf {
    let configuration = setup.config_directory(&setup.data).join("postgresql.conf");
    let mut present = read_file(&configuration, "");
    present.extend(read_file(&setup.data.join("postgresql.auto.conf"), ""));
    let named = present.get("hba_file").filter(|file| !file.is_empty()).map_or("pg_hba.conf", String::as_str);
    setup.data.join(named)
}

/// The rules of `text` that concern standbys, and those by which the agent itself comes in. `Err`: a line that leads elsewhere.
fn narrow(text: &str, superuser: &str) -> Result<String, String> {
    let mut narrowed =
        String::from("# Written by the agent: standbys only, until one has what was recovered after a crash.\n");
    for line in text.lines() {
        let words = words(line);
        let [kind, databases, users, rest @ ..] = words.as_slice() else {
            if words.first().is_some_and(|first| first.starts_with("include")) {
                return Err(line.to_owned());
            }
            continue;
        };
        if kind.starts_with("include")
            || databases.contains('@')
            || users.contains('@')
            || line.trim_end().ends_with('\\')
        {
            return Err(line.to_owned());
        }
        let names = |list: &str, name: &str| list.split(',').any(|one| one == name);
        let rest = rest.join(" ");
        if kind == "local" {
            let is_ours = (names(databases, "all") || names(databases, "postgres"))
                && (names(users, "all") || names(&users.replace('"', ""), superuser));
            if is_ours {
                narrowed += &format!("local postgres \"{superuser}\" {rest}\n");
            }
        } else if names(databases, "replication") {
            narrowed += &format!("{kind} replication {users} {rest}\n");
        }
    }
    Ok(narrowed)
}

/// The words of a line, without its comment; quotes stay and hold spaces.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for character in line.chars() {
        match character {
            '#' if !quoted => break,
            '"' => {
                quoted = !quoted;
                word.push(character);
            }
            space if space.is_whitespace() && !quoted => {
                words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)))
            }
            other => word.push(other),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_standbys_and_the_agent_are_left() {
        let text = "# TYPE DATABASE USER ADDRESS METHOD\n\
                    local all all peer map=x  # comment\n\
                    local app app trust\n\
                    host all all 0.0.0.0/0 scram-sha-256\n\
                    hostssl all,replication \"the replicator\" 10.0.0.0 255.0.0.0 scram-sha-256\n\
                    host replication all ::1/128 reject\n";
        let narrowed = narrow(text, "postgres").expect("plain rules");
        let rules: Vec<&str> = narrowed.lines().skip(1).collect();
        assert_eq!(
            rules,
            [
                "local postgres \"postgres\" peer map=x",
                "hostssl replication \"the replicator\" 10.0.0.0 255.0.0.0 scram-sha-256",
                "host replication all ::1/128 reject",
            ]
        );
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for line in
            ["include other.conf", "include_dir rules.d", "host @databases all 0.0.0.0/0 md5", "host all all \\"]
        {
            assert!(narrow(line, "postgres").is_err(), "{line}");
        }
    }
}
