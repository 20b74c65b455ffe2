//! Tables and the way from older ones.
//!
//! A migration is never changed once it was released; a new one is added to the end.

use rusqlite::Connection;

use crate::telemetry::chain;

/// Written into the file's header, so that another program's database is never taken for ours. "STRM" in ASCII.
pub(super) const APPLICATION_ID: u32 = 0x5354_524D;

/// The schema that this program reads and writes.
pub(super) const VERSION: u32 = MIGRATIONS.len() as u32;

/// Each brings a file from the version that is its index to the next one.
const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE record (
        cluster TEXT PRIMARY KEY,
        number  INTEGER NOT NULL,
        format  INTEGER NOT NULL,
        body    TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- sequence: order of creation; wall clocks and identities decide nothing.
    CREATE TABLE operation (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id       TEXT NOT NULL UNIQUE,
        cluster  TEXT NOT NULL,
        finished INTEGER NOT NULL,
        format   INTEGER NOT NULL,
        body     TEXT NOT NULL
    ) STRICT;
    CREATE INDEX operation_by_cluster ON operation (cluster, sequence);
    CREATE INDEX operation_unfinished ON operation (cluster, sequence) WHERE finished = 0;

    CREATE TABLE event (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        cluster  TEXT NOT NULL,
        body     TEXT NOT NULL
    ) STRICT;
    CREATE INDEX event_by_cluster ON event (cluster, sequence);

    CREATE TABLE audit (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        body     TEXT NOT NULL
    ) STRICT;
",
    "
    -- Small documents under a name; sequence: order of creation.
    CREATE TABLE card (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        drawer   TEXT NOT NULL,
        key      TEXT NOT NULL,
        body     TEXT NOT NULL,
        UNIQUE (drawer, key)
    ) STRICT;
",
];
/// From this version on the rows of the audit log are chained.
const CHAINED_SINCE: u32 = 2;

/// Marks an empty database as ours, at version 0.
pub(super) fn begin(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "PRAGMA application_id = {APPLICATION_ID};
         CREATE TABLE schema_version (only INTEGER PRIMARY KEY CHECK (only = 1), version INTEGER NOT NULL) STRICT;
         INSERT INTO schema_version VALUES (1, 0);"
    ))
}

/// The version of a database of ours.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.query_row("SELECT version FROM schema_version", [], |row| row.get(0))
}

/// Brings a database of version `from` to [`VERSION`], all or nothing.
pub(super) fn migrate(connection: &mut Connection, from: u32) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for migration in MIGRATIONS.iter().skip(from as usize) {
        transaction.execute_batch(migration)?;
    }
    if from < CHAINED_SINCE {
        chain(&transaction)?;
    }
    transaction.execute("UPDATE schema_version SET version = ?1", [VERSION])?;
    transaction.commit()
}

/// Gives the rows of an older log their places in the chain.
fn chain(connection: &Connection) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT sequence, body FROM audit ORDER BY sequence")?;
    let rows: Vec<(i64, String)> =
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
    let failed = |error: serde_json::Error| rusqlite::Error::ToSqlConversionFailure(Box::new(error));
    let mut last = None;
    for (sequence, body) in rows {
        let entry = chain::append(last.as_ref(), serde_json::from_str(&body).map_err(failed)?);
        let body = serde_json::to_string(&entry).map_err(failed)?;
        connection.execute("UPDATE audit SET body = ?2 WHERE sequence = ?1", rusqlite::params![sequence, body])?;
        last = Some(entry);
    }
    Ok(())
}
