//! Domain values in rows and back. A body is JSON; its format number stands in a column of its own and is looked at first.
//!
//! Every function runs inside a transaction that its caller commits.

use rusqlite::{Connection, OptionalExtension, Params, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::queue::Failure;
use crate::domain::epoch::RecordNumber;
use crate::domain::ids::{ClusterName, OperationId};
use crate::domain::operation::{JOURNAL_FORMAT, Operation, OperationStatus};
use crate::domain::record::{ClusterRecord, RECORD_FORMAT};
use crate::domain::trail::{AuditRow, EventRow};
use crate::ports::store::Swap;

/// Events kept, of all clusters together: weeks of quiet, days of trouble, and a file of some tens of megabytes.
const EVENTS_MAX: i64 = 50_000;

pub(super) fn load_record(connection: &Connection, cluster: &ClusterName) -> Result<Option<ClusterRecord>, Failure> {
    let row = connection
        .prepare_cached("SELECT number, format, body FROM record WHERE cluster = ?1")?
        .query_row([cluster.as_str()], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, u32>(1)?, row.get::<_, String>(2)?))
        })
        .optional()?;
    let Some((number, format, body)) = row else { return Ok(None) };
    check_format("the record", format, RECORD_FORMAT)?;
    let record: ClusterRecord = parse("the record", &body)?;
    if &record.cluster != cluster || to_integer(record.number)? != number {
        return Err(Failure::Rule(format!(
            "the record of {cluster} contradicts its own row: restore a copy of the file"
        )));
    }
    Ok(Some(record))
}

pub(super) fn swap_record(
    connection: &Connection,
    expected: Option<RecordNumber>,
    record: &ClusterRecord,
) -> Result<Swap, Failure> {
    let stored = load_record(connection, &record.cluster)?;
    if stored.as_ref().map(|stored| stored.number) != expected {
        return Ok(Swap::Conflict(stored.map(Box::new)));
    }
    check_format("the record", record.format, RECORD_FORMAT)?;
    if let Some(violation) = stored.as_ref().and_then(|stored| record.violation_after(stored)) {
        return Err(Failure::Rule(format!("{violation}; the record was not changed")));
    }
    connection
        .prepare_cached(
            "INSERT INTO record (cluster, number, format, body) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (cluster) DO UPDATE SET number = excluded.number, format = excluded.format, body = excluded.body",
        )?
        .execute(params![record.cluster.as_str(), to_integer(record.number)?, record.format, body(record)?])?;
    Ok(Swap::Stored)
}

pub(super) fn save_operation(connection: &Connection, operation: &Operation) -> Result<(), Failure> {
    // What another version began is not gone on with, and that is all that is ever written about it.
    if operation.status != OperationStatus::Stuck {
        check_format("the operation", operation.format, JOURNAL_FORMAT)?;
    }
    connection
        .prepare_cached(
            "INSERT INTO operation (id, cluster, finished, format, body) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO UPDATE SET cluster = excluded.cluster, finished = excluded.finished,
                 format = excluded.format, body = excluded.body",
        )?
        .execute(params![
            operation.id.0,
            operation.cluster.as_str(),
            operation.status.is_final(),
            operation.format,
            body(operation)?
        ])?;
    Ok(())
}

pub(super) fn load_operation(connection: &Connection, id: &OperationId) -> Result<Option<Operation>, Failure> {
    let found = operations(connection, "SELECT id, format, body FROM operation WHERE id = ?1", [&id.0])?;
    Ok(found.into_iter().next())
}

pub(super) fn list_operations(
    connection: &Connection,
    cluster: &ClusterName,
    limit: usize,
) -> Result<Vec<Operation>, Failure> {
    operations(
        connection,
        "SELECT id, format, body FROM operation WHERE cluster = ?1 ORDER BY sequence DESC LIMIT ?2",
        params![cluster.as_str(), bound(limit)],
    )
}

pub(super) fn unfinished_operations(connection: &Connection, cluster: &ClusterName) -> Result<Vec<Operation>, Failure> {
    operations(
        connection,
        "SELECT id, format, body FROM operation WHERE cluster = ?1 AND finished = 0 ORDER BY sequence",
        [cluster.as_str()],
    )
}

pub(super) fn append_event(connection: &Connection, event: &EventRow) -> Result<(), Failure> {
    connection
        .prepare_cached("INSERT INTO event (cluster, body) VALUES (?1, ?2)")?
        .execute(params![event.cluster.as_str(), body(event)?])?;
    connection
        .prepare_cached("DELETE FROM event WHERE sequence <= ?1")?
        .execute([connection.last_insert_rowid() - EVENTS_MAX])?;
    Ok(())
}

pub(super) fn list_events(
    connection: &Connection,
    cluster: &ClusterName,
    limit: usize,
) -> Result<Vec<EventRow>, Failure> {
    bodies(
        connection,
        "an event",
        "SELECT body FROM event WHERE cluster = ?1 ORDER BY sequence DESC LIMIT ?2",
        params![cluster.as_str(), bound(limit)],
    )
}

pub(super) fn append_audit(connection: &Connection, row: &AuditRow) -> Result<(), Failure> {
    connection.prepare_cached("INSERT INTO audit (body) VALUES (?1)")?.execute([body(row)?])?;
    Ok(())
}

pub(super) fn list_audit(connection: &Connection, limit: usize) -> Result<Vec<AuditRow>, Failure> {
    bodies(connection, "an audit row", "SELECT body FROM audit ORDER BY sequence DESC LIMIT ?1", params![bound(limit)])
}

fn operations(connection: &Connection, query: &str, parameters: impl Params) -> Result<Vec<Operation>, Failure> {
    let columns = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, u32>(1)?, row.get::<_, String>(2)?));
    let mut statement = connection.prepare_cached(query)?;
    let mut found = Vec::new();
    for row in statement.query_map(parameters, columns)? {
        let (id, format, body) = row?;
        let what = format!("operation {id}");
        // Of another format it may still be read: whoever drives operations ends it. If it cannot, nobody guesses.
        let operation: Operation = match parse(&what, &body) {
            Ok(operation) => operation,
            Err(unread) => {
                check_format(&what, format, JOURNAL_FORMAT)?;
                return Err(unread);
            }
        };
        found.push(operation);
    }
    Ok(found)
}

fn bodies<T: DeserializeOwned>(
    connection: &Connection,
    what: &str,
    query: &str,
    parameters: impl Params,
) -> Result<Vec<T>, Failure> {
    let mut statement = connection.prepare_cached(query)?;
    let rows = statement.query_map(parameters, |row| row.get::<_, String>(0))?;
    rows.map(|body| parse(what, &body?)).collect()
}

fn check_format(what: &str, format: u32, known: u32) -> Result<(), Failure> {
    super::format::check(what, format, known).map_err(Failure::Rule)
}

fn body<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::Rule(format!("it has no JSON form: {error}")))
}

fn parse<T: DeserializeOwned>(what: &str, body: &str) -> Result<T, Failure> {
    serde_json::from_str(body).map_err(|error| Failure::Rule(super::format::not_understood(what, &error)))
}

fn to_integer(number: RecordNumber) -> Result<i64, Failure> {
    i64::try_from(number.0).map_err(|_| Failure::Rule(format!("record number {number} does not fit the file")))
}

fn bound(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
