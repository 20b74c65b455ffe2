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
use crate::domain::trail::{AuditEntry, AuditRow, EventRow};
use crate::ports::store::{Card, Drawer, Page, Paged, Swap};
use crate::telemetry::chain;

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

pub(super) fn page_operations(
    connection: &Connection,
    cluster: &ClusterName,
    page: Page,
) -> Result<Paged<Operation>, Failure> {
    let rows = operations(
        connection,
        "SELECT id, format, body FROM operation WHERE cluster = ?1 AND sequence < ?2 ORDER BY sequence DESC LIMIT ?3",
        params![cluster.as_str(), before(page), bound(page.limit)],
    )?;
    let next = last_sequence(
        connection,
        "SELECT sequence FROM operation WHERE cluster = ?1 AND sequence < ?2 ORDER BY sequence DESC LIMIT 1 OFFSET ?3",
        cluster,
        page,
    )?;
    Ok(Paged { rows, next })
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

pub(super) fn page_events(
    connection: &Connection,
    cluster: &ClusterName,
    page: Page,
) -> Result<Paged<EventRow>, Failure> {
    let rows = bodies(
        connection,
        "an event",
        "SELECT body FROM event WHERE cluster = ?1 AND sequence < ?2 ORDER BY sequence DESC LIMIT ?3",
        params![cluster.as_str(), before(page), bound(page.limit)],
    )?;
    let next = last_sequence(
        connection,
        "SELECT sequence FROM event WHERE cluster = ?1 AND sequence < ?2 ORDER BY sequence DESC LIMIT 1 OFFSET ?3",
        cluster,
        page,
    )?;
    Ok(Paged { rows, next })
}

/// Where the next page begins: before the last row of this one, if there is anything before it.
fn last_sequence(
    connection: &Connection,
    query: &str,
    cluster: &ClusterName,
    page: Page,
) -> Result<Option<u64>, Failure> {
    if page.limit == 0 {
        return Ok(None);
    }
    let mut statement = connection.prepare_cached(query)?;
    let mut at = |offset: usize| {
        statement
            .query_row(params![cluster.as_str(), before(page), bound(offset)], |row| row.get::<_, i64>(0))
            .optional()
    };
    // The row after the page proves that there is one; the cursor is the page's own last row.
    Ok(match at(page.limit)? {
        Some(_) => at(page.limit - 1)?.and_then(|sequence| u64::try_from(sequence).ok()),
        None => None,
    })
}

pub(super) fn append_audit(connection: &Connection, row: &AuditRow) -> Result<(), Failure> {
    let last: Option<AuditEntry> =
        bodies(connection, "an audit row", "SELECT body FROM audit ORDER BY sequence DESC LIMIT 1", [])?
            .into_iter()
            .next();
    let entry = chain::append(last.as_ref(), row.clone());
    connection.prepare_cached("INSERT INTO audit (body) VALUES (?1)")?.execute([body(&entry)?])?;
    Ok(())
}

pub(super) fn page_audit(connection: &Connection, page: Page) -> Result<Paged<AuditEntry>, Failure> {
    // Numbers are those of the chain; a sequence may have gaps and is only the order.
    let rows: Vec<AuditEntry> = bodies(
        connection,
        "an audit row",
        "SELECT body FROM audit WHERE json_extract(body, '$.number') < ?1 ORDER BY sequence DESC LIMIT ?2",
        params![before(page), bound(page.limit)],
    )?;
    let next = rows.last().map(|last| last.number).filter(|number| *number > 1 && rows.len() == page.limit);
    Ok(Paged { rows, next })
}

pub(super) fn insert_card(connection: &Connection, drawer: Drawer, card: &Card) -> Result<Option<Card>, Failure> {
    if let Some(found) = load_card(connection, drawer, &card.key)? {
        return Ok(Some(found));
    }
    let count: i64 = connection
        .prepare_cached("SELECT count(*) FROM card WHERE drawer = ?1")?
        .query_row([drawer.label()], |row| row.get(0))?;
    if count >= bound(drawer.kept()) {
        if drawer == Drawer::Tokens {
            return Err(Failure::Rule(format!("there are {count} {} already: revoke some", drawer.label())));
        }
        connection
            .prepare_cached(
                "DELETE FROM card WHERE sequence IN
                     (SELECT sequence FROM card WHERE drawer = ?1 ORDER BY sequence LIMIT ?2)",
            )?
            .execute(params![drawer.label(), count + 1 - bound(drawer.kept())])?;
    }
    connection.prepare_cached("INSERT INTO card (drawer, key, body) VALUES (?1, ?2, ?3)")?.execute(params![
        drawer.label(),
        card.key,
        card.body
    ])?;
    Ok(None)
}

pub(super) fn replace_card(connection: &Connection, drawer: Drawer, card: &Card) -> Result<(), Failure> {
    connection.prepare_cached("UPDATE card SET body = ?3 WHERE drawer = ?1 AND key = ?2")?.execute(params![
        drawer.label(),
        card.key,
        card.body
    ])?;
    Ok(())
}

pub(super) fn load_card(connection: &Connection, drawer: Drawer, key: &str) -> Result<Option<Card>, Failure> {
    Ok(connection
        .prepare_cached("SELECT body FROM card WHERE drawer = ?1 AND key = ?2")?
        .query_row(params![drawer.label(), key], |row| row.get(0))
        .optional()?
        .map(|body| Card { key: key.to_owned(), body }))
}

pub(super) fn list_cards(connection: &Connection, drawer: Drawer) -> Result<Vec<Card>, Failure> {
    let mut statement =
        connection.prepare_cached("SELECT key, body FROM card WHERE drawer = ?1 ORDER BY sequence DESC")?;
    let rows = statement.query_map([drawer.label()], |row| Ok(Card { key: row.get(0)?, body: row.get(1)? }))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn remove_card(connection: &Connection, drawer: Drawer, key: &str) -> Result<bool, Failure> {
    let removed = connection
        .prepare_cached("DELETE FROM card WHERE drawer = ?1 AND key = ?2")?
        .execute(params![drawer.label(), key])?;
    Ok(removed > 0)
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

/// The upper bound of a page's sequences.
fn before(page: Page) -> i64 {
    page.before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX)
}
