//! What is asked of data: the verdict about a backup in the repository, the ledger of the live cluster, and the checks of a copy.

use std::path::Path;
use std::time::Duration;

use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::PgBackRest;
use super::copy;
use super::run::output;
use super::settings::LedgerTable;
use crate::domain::backup::{DrillMark, RowCount};
use crate::domain::clock::WallTime;
use crate::ports::backup::BackupError;

/// Reading every page and index of a large database.
const AMCHECK_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// From a switch of segments until PostgreSQL's archiver has brought it to the repository.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(120);
/// A small question to the live PostgreSQL, which may hang.
const LIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// `pg_amcheck` came with this version.
const AMCHECK_VERSION_MIN: u32 = 14;

/// What `verify --output=text` found wrong with `label` or with the WAL, in words; `None` if nothing.
pub(super) fn verdict(text: &str, label: &str) -> Option<String> {
    let mut wrong = Vec::new();
    let mut is_about_it = false;
    for line in text.lines().map(str::trim) {
        let is_backup = line.starts_with("backup:");
        is_about_it = if is_backup { line.contains(label) } else { is_about_it && !line.starts_with("archiveId:") };
        let is_invalid = is_backup && is_about_it && line.contains("status: invalid");
        let names_files = is_about_it
            && ["missing:", "checksum invalid:", "size invalid:", "other:"].iter().any(|word| line.starts_with(word))
            && !line.ends_with(": 0");
        let is_wal = line.starts_with("archiveId:") && !is_clean_archive(line);
        if is_invalid || names_files || is_wal {
            wrong.push(line.to_owned());
        }
    }
    (!wrong.is_empty()).then(|| {
        format!("the repository is damaged: {}; take a new full backup, and see the disk or bucket", wrong.join("; "))
    })
}

/// `archiveId: 15-1, total WAL checked: 3, total valid WAL: 3`.
fn is_clean_archive(line: &str) -> bool {
    let number = |after: &str| {
        let (_, rest) = line.split_once(after)?;
        rest.trim_start().split(|letter: char| !letter.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    number("total WAL checked:") == number("total valid WAL:")
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn question(table: &LedgerTable) -> String {
    let name: Vec<String> = table.table.split('.').map(quote).collect();
    format!("select count(*) from {}", name.join("."))
}

async fn first(client: &tokio_postgres::Client, sql: &str) -> Result<Option<String>, String> {
    let answer = client.simple_query(sql).await.map_err(|error| {
        error.as_db_error().map_or_else(|| error.to_string(), |database| database.message().to_owned())
    })?;
    Ok(answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// See [`crate::ports::backup::BackupRepository::mark`].
pub(super) async fn mark(backup: &PgBackRest) -> Result<DrillMark, BackupError> {
    const ACTION: &str = "note what the live cluster holds";
    let failed = |problem: String| BackupError::new(ACTION, problem);
    let mut counts = Vec::new();
    for table in &backup.settings.ledger {
        let client = live(backup, &table.database).await.map_err(|error| failed(error.to_string()))?;
        let rows = first(&client, &question(table)).await.map_err(failed)?;
        let rows =
            rows.and_then(|rows| rows.parse().ok()).ok_or_else(|| failed("count(*) gave no number".to_owned()))?;
        counts.push(RowCount { table: format!("{}/{}", table.database, table.table), rows });
    }
    let client = live(backup, "postgres").await.map_err(|error| failed(error.to_string()))?;
    let ask = async |sql: &str| first(&client, sql).await.map_err(failed);
    let age = ask("select extract(epoch from now() - greatest(last_archived_time, pg_postmaster_start_time())) from pg_stat_archiver").await?;
    let rpo = age.and_then(|age| age.parse::<f64>().ok()).unwrap_or(0.0);
    let position = ask("select pg_current_wal_insert_lsn()").await?;
    let lsn =
        position.and_then(|lsn| lsn.parse().ok()).ok_or_else(|| failed("the server has no position".to_owned()))?;
    // Its record, and the segment that it is in, come after everything that was counted.
    let segment = ask("select pg_walfile_name(pg_switch_wal())").await?.unwrap_or_default();
    let deadline = tokio::time::Instant::now() + ARCHIVE_TIMEOUT;
    let question = format!(
        "select coalesce(last_archived_wal, '') >= '{segment}' or exists(select from pg_ls_archive_statusdir() where name = \
         '{segment}.done') from pg_stat_archiver"
    );
    while ask(&question).await?.as_deref() != Some("t") {
        if tokio::time::Instant::now() > deadline {
            let problem =
                ask("select coalesce(last_failed_wal, 'none') from pg_stat_archiver").await?.unwrap_or_default();
            return Err(failed(format!(
                "WAL segment {segment} was not archived within {ARCHIVE_TIMEOUT:?}; the last one that failed is {problem}: see \
                 PostgreSQL's log for archive_command"
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(DrillMark { lsn, rpo: Duration::try_from_secs_f64(rpo.max(0.0)).unwrap_or_default(), counts })
}

/// When the live primary last archived WAL; `None` on a standby, or where nobody answers.
pub(super) async fn newest_wal_at(backup: &PgBackRest) -> Option<WallTime> {
    const QUESTION: &str = "select case when pg_is_in_recovery() then null else (extract(epoch from last_archived_time) * 1000000)::bigint \
                            end from pg_stat_archiver";
    let ask = async {
        let client = live(backup, "postgres").await.ok()?;
        first(&client, QUESTION).await.ok()??.parse().ok().map(WallTime)
    };
    tokio::time::timeout(LIVE_TIMEOUT, ask).await.ok().flatten()
}

/// A connection to the live PostgreSQL, over the agent's private socket.
async fn live(backup: &PgBackRest, database: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let settings = &backup.settings;
    let mut config = tokio_postgres::Config::new();
    config
        .host_path(&settings.socket_directory)
        .port(settings.port)
        .user(&settings.superuser)
        .dbname(database)
        .application_name("stormglass-backup")
        .options("-c search_path=pg_catalog -c synchronous_commit=local -c lock_timeout=5s");
    if let Some(password) = &settings.superuser_password {
        config.password(password.expose());
    }
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        // Whoever asked hears of it.
        let _ended = connection.await;
    });
    Ok(client)
}

/// See [`crate::ports::backup::BackupRepository::check`].
pub(super) async fn check(backup: &PgBackRest, directory: &Path, mark: &DrillMark) -> Result<Vec<String>, BackupError> {
    const ACTION: &str = "check the data of the copy";
    let failed = |problem: String| BackupError::new(ACTION, problem);
    let mut said = vec![amcheck(backup, directory).await?];
    for (table, counted) in backup.settings.ledger.iter().zip(&mark.counts) {
        let client = copy::connect(backup, &table.database).await.map_err(|error| failed(error.to_string()))?;
        let rows = first(&client, &question(table)).await.map_err(failed)?;
        let rows: u64 = rows.and_then(|rows| rows.parse().ok()).unwrap_or(0);
        if rows < counted.rows {
            return Err(failed(format!(
                "{} has {rows} rows in the copy and had {} in the live cluster when the drill began: rows that were archived are missing",
                counted.table, counted.rows
            )));
        }
        said.push(format!("{}: {rows} rows, {} in the live cluster when the drill began", counted.table, counted.rows));
    }
    for check in &backup.settings.checks {
        let client = copy::connect(backup, &check.database).await.map_err(|error| failed(error.to_string()))?;
        let answer = first(&client, &check.sql).await.map_err(|error| failed(format!("{}: {error}", check.name)))?;
        if !matches!(answer.as_deref(), Some("t" | "true")) {
            let answer = answer.unwrap_or_else(|| "nothing".to_owned());
            return Err(failed(format!("the check {:?} did not return true but {answer}", check.name)));
        }
        said.push(format!("{}: true", check.name));
    }
    Ok(said)
}

async fn amcheck(backup: &PgBackRest, directory: &Path) -> Result<String, BackupError> {
    const ACTION: &str = "check every table and index of the copy";
    let (bin, major) = copy::programs_of(backup, directory).map_err(|problem| BackupError::new(ACTION, problem))?;
    let program = bin.join("pg_amcheck");
    if major < AMCHECK_VERSION_MIN || !program.is_file() {
        return Ok(format!("pg_amcheck: not there for PostgreSQL {major}"));
    }
    let (socket, port) = copy::socket(backup);
    let mut command = backup.program(&program);
    command.args(["--all", "--install-missing", "--no-password", "--host"]).arg(socket);
    command.args(["--port", &port.to_string(), "--username", &backup.settings.superuser]);
    output(command, ACTION, AMCHECK_TIMEOUT).await?;
    Ok("pg_amcheck: no damage in any table or index".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "stanza: main\nstatus: ok\n  archiveId: 15-1, total WAL checked: 3, total valid WAL: 3\n    missing: 0, checksum invalid: 0, size invalid: 0, other: 0\n  backup: 20261128-143346F, status: valid, total files checked: 965, total valid files: 965\n    missing: 0, checksum invalid: 0, size invalid: 0, other: 0\n";
    const BAD: &str = "stanza: main\nstatus: error\n  backup: 20261128-143346F, status: invalid, total files checked: 965, total valid files: 964\n    checksum invalid: 1\n";

    #[test]
    fn damage_to_the_backup_itself_is_found_and_other_backups_do_not_count() {
        assert_eq!(verdict(GOOD, "20261128-143346F"), None);
        assert_eq!(verdict("", "20261128-143346F"), None);
        let problem = verdict(BAD, "20261128-143346F").expect("damaged");
        assert!(problem.contains("checksum invalid: 1") && problem.contains("new full backup"), "{problem}");
        assert_eq!(verdict(BAD, "20261128-150000F"), None);
        let wal = GOOD.replace("total valid WAL: 3", "total valid WAL: 2");
        assert!(verdict(&wal, "20261128-143346F").is_some());
    }

    #[test]
    fn names_of_tables_are_quoted() {
        let table = LedgerTable { database: "app".into(), table: "public.Orders\"".into() };
        assert_eq!(question(&table), "select count(*) from \"public\".\"Orders\"\"\"");
    }
}
