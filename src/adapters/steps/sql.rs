//! `sql` steps: statements over a connection of their own, ended at the time-out by the server and by the client.

use std::time::Duration;

use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

use super::Prepared;
use crate::domain::sequence::StepAction;
use crate::ports::steps::StepError;

/// To open the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Rows that are kept.
const ROWS_MAX: usize = 50;

struct Statement {
    config: Config,
    text: String,
    at: String,
}

fn statement(prepared: &Prepared<'_>) -> Result<Statement, StepError> {
    let StepAction::Sql { host, port, user, password, database, statement } = &prepared.run.step.action else {
        return Err(StepError::Failed("no statement".to_owned()));
    };
    let host = prepared.text(host.as_deref().unwrap_or("{{ primary_host }}"))?;
    let port_text = prepared.text(port.as_deref().unwrap_or("{{ primary_port }}"))?;
    let port: u16 = port_text
        .parse()
        .map_err(|_| StepError::Failed(format!("{port_text:?} is no port: check `port` of the step")))?;
    let (user, database) = (prepared.text(user)?, prepared.text(database)?);
    let mut config = Config::new();
    config.host(&host).port(port).user(&user).dbname(&database);
    config.application_name("stormglass-sequence").connect_timeout(CONNECT_TIMEOUT);
    if let Some(password) = password {
        config.password(prepared.secret(password)?);
    }
    Ok(Statement { config, text: prepared.text(statement)?, at: format!("{user}@{host}:{port}/{database}") })
}

pub(super) fn preview(prepared: &Prepared<'_>) -> Result<String, StepError> {
    let statement = statement(prepared)?;
    Ok(format!("at {}: {}", statement.at, statement.text.trim()))
}

pub(super) async fn run(prepared: &Prepared<'_>) -> Result<String, StepError> {
    let statement = statement(prepared)?;
    let (client, connection) = tokio::time::timeout(CONNECT_TIMEOUT, statement.config.connect(NoTls))
        .await
        .map_err(|_| StepError::Failed(format!("connect to {}: no answer in time", statement.at)))?
        .map_err(|error| StepError::Failed(format!("connect to {}: {}", statement.at, words(&error))))?;
    let connection = tokio::spawn(connection);
    let work = async {
        let timeout = prepared.timeout();
        let set = format!(
            "set statement_timeout = {}; set stormglass.idempotency_key = '{}'",
            timeout.as_millis(),
            prepared.run.key.replace('\'', "''")
        );
        client.batch_execute(&set).await?;
        client.simple_query(&statement.text).await
    };
    let answered = tokio::time::timeout(prepared.timeout(), work).await;
    let result = match answered {
        Ok(Ok(messages)) => Ok(rows(&messages)),
        Ok(Err(error)) if error.as_db_error().is_some() => {
            Err(StepError::Failed(format!("{}: {}", statement.at, words(&error))))
        }
        Ok(Err(error)) => Err(StepError::Unknown(format!("{}: the connection broke: {error}", statement.at))),
        Err(_) => {
            let _ = client.cancel_token().cancel_query(NoTls).await;
            let seconds = prepared.run.step.timeout_seconds;
            Err(StepError::Unknown(format!("{}: no answer within {seconds} s; it was cancelled", statement.at)))
        }
    };
    drop(client);
    connection.abort();
    result
}

/// The server's own words, which say what is wrong.
fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => error.to_string(),
    }
}

fn rows(messages: &[SimpleQueryMessage]) -> String {
    let mut lines = Vec::new();
    let mut left_out = 0;
    for message in messages {
        match message {
            SimpleQueryMessage::Row(row) if lines.len() < ROWS_MAX => {
                let cells: Vec<&str> = (0..row.len()).map(|column| row.get(column).unwrap_or("")).collect();
                lines.push(cells.join("\t"));
            }
            SimpleQueryMessage::Row(_) => left_out += 1,
            SimpleQueryMessage::CommandComplete(count) => lines.push(format!("({count} rows)")),
            _ => {}
        }
    }
    if left_out > 0 {
        lines.push(format!("{left_out} more rows are not kept"));
    }
    lines.join("\n")
}
