//! A copy of the database beside the live one: restored, recovered by a PostgreSQL that nobody else reaches, and stopped.
//!
//! Invariant: the copy listens nowhere but in a directory of PostgreSQL's user alone, archives nothing, subscribes to nothing and
//! loads no library of the user's: it must not act as the database that it is a copy of.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::NoTls;

use super::PgBackRest;
use super::info;
use super::preflight::{bin_directory, occupied};
use super::run::{complaint, output};
use crate::domain::backup::{RecoveryTarget, is_label};
use crate::domain::lsn::Lsn;
use crate::ports::backup::{BackupError, Progress};

/// Restoring, and replaying, a large database.
const COPY_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// From `pg_ctl` to its answer.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A shutdown checkpoint of everything that was replayed.
const STOP_TIMEOUT: Duration = Duration::from_secs(3600);
/// Between two looks at a copy that recovers.
const LOOK: Duration = Duration::from_millis(50);
/// Between two words about how far it is.
const TELL: Duration = Duration::from_secs(1);
/// Port in the name of the copy's socket; no port is opened.
const PORT: u16 = 5432;

/// A file beside a directory that was made here: only such a one is ever removed. Within it pgBackRest would take it for foreign.
pub(super) fn mark_of(directory: &Path) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(".stormglass-copy");
    PathBuf::from(name)
}

/// See [`crate::ports::backup::BackupRepository::release`].
pub(super) fn release(directory: &Path) -> Result<(), BackupError> {
    match fs::remove_file(mark_of(directory)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(BackupError::new("release the copy", format!("{}: {error}", directory.display())))
        }
        _ => Ok(()),
    }
}

/// See [`crate::ports::backup::BackupRepository::restore`].
pub(super) async fn restore(
    backup: &PgBackRest,
    label: &str,
    directory: &Path,
    progress: Progress<'_>,
) -> Result<(), BackupError> {
    const ACTION: &str = "restore the backup";
    let failed = |error: std::io::Error| BackupError::new(ACTION, format!("{}: {error}", directory.display()));
    if !is_label(label) {
        return Err(BackupError::new(ACTION, format!("{label:?} is no name of a backup")));
    }
    stop(backup, directory, "immediate").await?;
    let is_begun = mark_of(directory).exists();
    if !is_begun && fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(BackupError::new(ACTION, format!("{} is not empty, and is left alone", directory.display())));
    }
    if is_begun {
        clear_unless_known(backup, directory).map_err(failed)?;
    }
    backup.make_directory(directory).map_err(failed)?;
    backup.write_private(&mark_of(directory), label).map_err(failed)?;
    let tablespaces = tablespaces_of(directory);
    let mut command = restore_command(backup, label);
    command.arg(format!("--pg1-path={}", directory.display()));
    command.arg(format!("--tablespace-map-all={}", tablespaces.display()));
    run_restore(command, ACTION, directory, progress).await
}

/// pgBackRest goes on only where one of two files tells it that a directory is PostgreSQL's. A copy that was killed before either was
/// there holds nothing worth keeping, and would be in the way for ever.
fn clear_unless_known(backup: &PgBackRest, directory: &Path) -> std::io::Result<()> {
    let is_known = ["PG_VERSION", "backup.manifest"].iter().any(|name| directory.join(name).exists());
    if is_known || !directory.exists() {
        return Ok(());
    }
    // Whoever still writes there has not got so far yet, and holds this lock: the next attempt finds it further, or gone.
    let lock = fs::OpenOptions::new().write(true).open(lock_file(backup));
    match lock.map(|lock| rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map(|()| lock))
    {
        Ok(Ok(_held)) => fs::remove_dir_all(directory),
        Ok(Err(_busy)) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => fs::remove_dir_all(directory),
        Err(error) => Err(error),
    }
}

/// Held while pgBackRest restores.
fn lock_file(backup: &PgBackRest) -> PathBuf {
    backup.settings.directory.join("copy.lock")
}

/// `pgbackrest restore` of a backup, that uses what is there. One that was orphaned by a crash of the agent must have ended before the
/// next one writes to the same files.
pub(super) fn restore_command(backup: &PgBackRest, label: &str) -> tokio::process::Command {
    let inner = backup.pgbackrest(&backup.settings.file(), "restore");
    let mut command = backup.program(Path::new("/usr/bin/flock"));
    command.arg("--nonblock").arg(lock_file(backup));
    command.arg(inner.as_std().get_program()).args(inner.as_std().get_args());
    command.args(["--type=none", "--delta"]).arg(format!("--set={label}"));
    command
}

/// Tells how far it is, until it has ended.
pub(super) async fn run_restore(
    command: tokio::process::Command,
    action: &'static str,
    directory: &Path,
    progress: Progress<'_>,
) -> Result<(), BackupError> {
    let work = output(command, action, COPY_TIMEOUT);
    tokio::pin!(work);
    let ended = loop {
        tokio::select! {
            ended = &mut work => break ended,
            () = tokio::time::sleep(TELL) => progress(format!("restored {} bytes", occupied(directory))),
        }
    };
    ended.map(drop).map_err(|error| match error.problem.starts_with("exit code 1: ") && error.problem.len() < 16 {
        true => BackupError::new(action, "an earlier restore is still under way: it is tried again"),
        false => error,
    })
}

fn tablespaces_of(directory: &Path) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(".tablespaces");
    PathBuf::from(name)
}

/// The copy's own configuration, sockets and log. Its name is short: the path of a socket is, too.
fn run_directory(backup: &PgBackRest) -> PathBuf {
    backup.settings.directory.join("copy")
}

fn configuration(backup: &PgBackRest, directory: &Path, target: &RecoveryTarget) -> String {
    let quote = |value: &str| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"));
    let run = run_directory(backup);
    let path = |path: &Path| quote(&path.display().to_string());
    let mut text = String::from("# Written by the agent for a copy that nobody uses.\n");
    let mut set = |name: &str, value: String| text.push_str(&format!("{name} = {value}\n"));
    set("data_directory", path(directory));
    set("hba_file", path(&run.join("hba.conf")));
    set("ident_file", path(&run.join("ident.conf")));
    set("listen_addresses", quote(""));
    set("unix_socket_directories", path(&run));
    set("port", PORT.to_string());
    set("archive_mode", "off".to_owned());
    set("autovacuum", "off".to_owned());
    // Without it the settings of the former primary need not be matched; there is nobody who would read meanwhile.
    set("hot_standby", "off".to_owned());
    set("max_logical_replication_workers", "0".to_owned());
    set("max_wal_senders", "0".to_owned());
    set("max_prepared_transactions", "1000".to_owned());
    set("max_wal_size", quote("4GB"));
    set("ssl", "off".to_owned());
    set("logging_collector", "off".to_owned());
    set("log_destination", quote("stderr"));
    set("lc_messages", quote("C"));
    set("restore_command", quote(&backup.settings.restore_command(directory)));
    set("recovery_target_timeline", quote("latest"));
    set("recovery_target_action", quote("promote"));
    match target {
        RecoveryTarget::Latest => {}
        // Names of time zones, `Z` among them, are not known yet where PostgreSQL reads this.
        RecoveryTarget::Time { at } => {
            let at = at.to_string().replace('T', " ").replace('Z', "+00");
            set("recovery_target_time", quote(&at));
        }
        RecoveryTarget::Lsn { lsn } => set("recovery_target_lsn", quote(&lsn.to_string())),
    }
    text
}

/// See [`crate::ports::backup::BackupRepository::recover`].
pub(super) async fn recover(
    backup: &PgBackRest,
    directory: &Path,
    target: &RecoveryTarget,
    stays: bool,
) -> Result<Lsn, BackupError> {
    const ACTION: &str = "replay WAL in the copy";
    let failed = |problem: String| BackupError::new(ACTION, problem);
    let at = |error: std::io::Error| BackupError::new(ACTION, format!("{}: {error}", directory.display()));
    let major: u32 = fs::read_to_string(directory.join("PG_VERSION"))
        .map_err(at)?
        .trim()
        .parse()
        .map_err(|error| failed(format!("PG_VERSION: {error}")))?;
    let bin = bin_directory(backup, major).map_err(failed)?;
    stop(backup, directory, "immediate").await?;
    let run = run_directory(backup);
    if !is_recovered(directory) {
        let log = run.join("log");
        backup.make_directory(&run).map_err(at)?;
        let _former = fs::remove_file(&log);
        for (name, text) in [
            ("postgresql.conf", configuration(backup, directory, target)),
            ("hba.conf", "local all all trust\n".to_owned()),
            ("ident.conf", String::new()),
        ] {
            backup.write_private(&run.join(name), &text).map_err(at)?;
        }
        for name in ["standby.signal", "postmaster.pid", "postmaster.opts"] {
            let _not_there = fs::remove_file(directory.join(name));
        }
        backup.write_private(&directory.join("recovery.signal"), "").map_err(at)?;
        start(backup, &bin, directory, &log, ACTION).await?;
        wait_until_writable(backup, directory, &log).await?;
        let client = connect(backup, "postgres").await.map_err(|error| failed(error.to_string()))?;
        client.simple_query("checkpoint").await.map_err(|error| failed(format!("checkpoint: {error}")))?;
    } else if stays {
        start(backup, &bin, directory, &run.join("log"), ACTION).await?;
        wait_until_writable(backup, directory, &run.join("log")).await?;
    }
    let reached = reached(directory).ok_or_else(|| failed("the copy has no timeline of its own".to_owned()))?;
    if !stays {
        stop(backup, directory, "fast").await?;
    }
    Ok(reached)
}

/// Recovery has ended, by what is on disk: with it PostgreSQL takes the signal away and puts the backup's label aside.
fn is_recovered(directory: &Path) -> bool {
    let is_there = |name: &str| directory.join(name).exists();
    !is_there("recovery.signal") && !is_there("backup_label") && is_there("backup_label.old")
}

/// Where the timeline that recovery ended on began: up to there the copy replayed.
fn reached(directory: &Path) -> Option<Lsn> {
    let newest = fs::read_dir(directory.join("pg_wal")).ok()?.flatten().filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        u32::from_str_radix(name.strip_suffix(".history")?, 16).ok().map(|timeline| (timeline, entry.path()))
    });
    let (_, file) = newest.max_by_key(|(timeline, _)| *timeline)?;
    info::parse_history(&fs::read_to_string(file).ok()?).last().map(|fork| fork.switched_at)
}

async fn start(
    backup: &PgBackRest,
    bin: &Path,
    directory: &Path,
    log: &Path,
    action: &'static str,
) -> Result<(), BackupError> {
    let file = run_directory(backup).join("postgresql.conf");
    let quoted = format!("'{}'", file.display().to_string().replace('\'', "'\\''"));
    let mut command = backup.program(&bin.join("pg_ctl"));
    command.arg("start").arg("-W").arg("-D").arg(directory).arg("-l").arg(log);
    command.arg("-o").arg(format!("-c config_file={quoted}"));
    command.kill_on_drop(false);
    output(command, action, START_TIMEOUT).await.map(drop)
}

/// Waits until recovery has ended; until then nobody is let in.
async fn wait_until_writable(backup: &PgBackRest, directory: &Path, log: &Path) -> Result<(), BackupError> {
    const ACTION: &str = "replay WAL in the copy";
    let began = tokio::time::Instant::now();
    let deadline = began + COPY_TIMEOUT;
    // `pg_ctl -W` returns before the postmaster has written its lock file.
    let mut was_running = false;
    loop {
        if let Ok(client) = connect(backup, "postgres").await
            && is_writable(&client).await
        {
            return Ok(());
        }
        let runs = is_running(directory);
        was_running |= runs;
        if !runs {
            let said = fs::read_to_string(log).unwrap_or_default();
            if was_running || said.contains("FATAL:") || began.elapsed() > START_TIMEOUT {
                return Err(BackupError::new(ACTION, why_it_ended(&said)));
            }
        }
        if tokio::time::Instant::now() > deadline {
            return Err(BackupError::new(ACTION, format!("no end within {COPY_TIMEOUT:?}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn is_writable(client: &tokio_postgres::Client) -> bool {
    let answer = client.simple_query("select pg_is_in_recovery()").await;
    answer.is_ok_and(|rows| {
        rows.iter().any(|row| matches!(row, tokio_postgres::SimpleQueryMessage::Row(row) if row.get(0) == Some("f")))
    })
}

/// Why a copy ended while it recovered, by its log.
fn why_it_ended(log: &str) -> String {
    let fatal: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once("FATAL:").or_else(|| line.split_once("PANIC:")))
        .map(|(_, words)| words.trim())
        .filter(|words| !words.contains("the database system is"))
        .collect();
    let invalid = log.lines().filter_map(|line| line.split_once("LOG:")).find(|(_, words)| words.contains("parameter"));
    match fatal.last() {
        Some(words) if words.contains("contains errors") && invalid.is_some() => {
            invalid.map(|(_, words)| words.trim().to_owned()).unwrap_or_default()
        }
        Some(words) if words.contains("recovery ended before configured recovery target was reached") => {
            "the WAL in the repository ends before the target: no commit was archived after it; restore with --latest, or wait until \
             more is archived"
                .to_owned()
        }
        // What the repository said to PostgreSQL says more than what PostgreSQL made of it.
        Some(words) if log.contains("ERROR: [") => format!("{words}: {}", complaint(log)),
        Some(words) => (*words).to_owned(),
        None if log.trim().is_empty() => "PostgreSQL ended and said nothing".to_owned(),
        None => complaint(log),
    }
}

/// A connection to the copy.
pub(super) async fn connect(
    backup: &PgBackRest,
    database: &str,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config
        .host_path(run_directory(backup))
        .port(PORT)
        .user(&backup.settings.superuser)
        .dbname(database)
        .application_name("stormglass-copy")
        .options("-c search_path=pg_catalog -c statement_timeout=0");
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        // Whoever asked hears of it.
        let _ended = connection.await;
    });
    Ok(client)
}

/// Directory and port of the copy's socket, for PostgreSQL's own programs.
pub(super) fn socket(backup: &PgBackRest) -> (PathBuf, u16) {
    (run_directory(backup), PORT)
}

/// PostgreSQL's programs for the copy in `directory`.
pub(super) fn programs_of(backup: &PgBackRest, directory: &Path) -> Result<(PathBuf, u32), String> {
    let text = fs::read_to_string(directory.join("PG_VERSION")).map_err(|error| error.to_string())?;
    let major = text.trim().parse().map_err(|error| format!("PG_VERSION: {error}"))?;
    bin_directory(backup, major).map(|bin| (bin, major))
}

fn postmaster(directory: &Path) -> Option<i32> {
    let pid: i32 = fs::read_to_string(directory.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()?;
    // The number may be somebody else's by now.
    let stands_in = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (fs::canonicalize(directory).ok()? == stands_in).then_some(pid)
}

fn is_running(directory: &Path) -> bool {
    postmaster(directory).is_some()
}

/// Stops a copy that runs.
async fn stop(backup: &PgBackRest, directory: &Path, mode: &str) -> Result<(), BackupError> {
    const ACTION: &str = "stop the copy";
    if !is_running(directory) {
        return Ok(());
    }
    let (bin, _) = programs_of(backup, directory).map_err(|problem| BackupError::new(ACTION, problem))?;
    let mut command = backup.program(&bin.join("pg_ctl"));
    command.arg("stop").args(["-w", "-t", "3600", "-m", mode, "-D"]).arg(directory);
    match output(command, ACTION, STOP_TIMEOUT).await {
        Err(_) if !is_running(directory) => Ok(()),
        ended => ended.map(drop),
    }
}

/// See [`crate::ports::backup::BackupRepository::remove`].
pub(super) async fn remove(backup: &PgBackRest, directory: &Path) -> Result<(), BackupError> {
    const ACTION: &str = "remove the copy";
    if !directory.exists() {
        return release(directory);
    }
    if !mark_of(directory).exists() {
        return Err(BackupError::new(ACTION, format!("{} was not made here, and is left alone", directory.display())));
    }
    stop(backup, directory, "immediate").await?;
    for path in [tablespaces_of(directory), directory.to_owned()] {
        let gone = tokio::task::spawn_blocking({
            let path = path.clone();
            move || fs::remove_dir_all(path)
        });
        match gone.await {
            Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(BackupError::new(ACTION, format!("{}: {error}", path.display())));
            }
            Err(error) => return Err(BackupError::new(ACTION, error)),
            Ok(_) => {}
        }
    }
    release(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_an_end_is_the_last_fatal_one() {
        let log = "LOG:  starting\nFATAL:  the database system is starting up\n2026 FATAL:  recovery ended before configured recovery target was reached\nLOG:  shut down\n";
        assert!(why_it_ended(log).contains("ends before the target"));
        assert_eq!(
            why_it_ended("x FATAL:  could not locate required checkpoint record\n"),
            "could not locate required checkpoint record"
        );
    }
}
