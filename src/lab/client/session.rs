//! One connection of the client, with deadlines that the client itself keeps.
//!
//! Invariant: a statement that PostgreSQL confirmed with a warning is not confirmed. PostgreSQL warns where it gave up
//! waiting for a synchronous standby: the commit is on the primary's disk and nowhere else.

use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::poll_fn;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, NoTls, SimpleQueryMessage};

use super::{CONNECT_TIMEOUT, STATEMENT_TIMEOUT};
use crate::domain::ids::Address;
use crate::lab::layout::{APPLICATION_ROLE, DATABASE};

/// How long reading the whole table may take.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection.
pub struct Session {
    client: tokio_postgres::Client,
    warned: Arc<AtomicBool>,
    driver: JoinHandle<()>,
}

/// Why a connection or a statement failed.
#[derive(Debug)]
pub enum WriteError {
    /// No answer before the client's deadline.
    Deadline,
    /// PostgreSQL, or the network, said no.
    Postgres(tokio_postgres::Error),
    /// Confirmed with a warning.
    Warned,
    /// PostgreSQL confirmed, and its answer is not what was asked for.
    Answer,
}

impl WriteError {
    /// True where the server is a standby, or not allowed to write: the connection is good.
    pub fn is_read_only(&self) -> bool {
        matches!(self, WriteError::Postgres(error) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION))
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WriteError::Deadline => formatter.write_str("no answer in time"),
            WriteError::Warned => formatter.write_str("confirmed with a warning"),
            WriteError::Answer => formatter.write_str("unexpected answer"),
            WriteError::Postgres(error) => match (error.as_db_error(), error.source()) {
                (Some(database), _) => formatter.write_str(database.message()),
                (None, Some(source)) => write!(formatter, "{error}: {source}"),
                (None, None) => write!(formatter, "{error}"),
            },
        }
    }
}

impl Session {
    /// Connects as the application's role.
    pub async fn open(address: &Address, name: &str) -> Result<Self, WriteError> {
        Self::open_within(address, name, CONNECT_TIMEOUT).await
    }

    /// The same with another deadline.
    pub async fn open_within(address: &Address, name: &str, timeout: Duration) -> Result<Self, WriteError> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(&address.host)
            .port(address.port)
            .user(APPLICATION_ROLE)
            .dbname(DATABASE)
            .application_name(name)
            .connect_timeout(timeout)
            .tcp_user_timeout(STATEMENT_TIMEOUT);
        let (client, mut connection) = tokio::time::timeout(timeout, config.connect(NoTls))
            .await
            .map_err(|_| WriteError::Deadline)?
            .map_err(WriteError::Postgres)?;
        let warned = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&warned);
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notice(notice) = message
                    && *notice.code() == SqlState::WARNING
                {
                    flag.store(true, Ordering::Release);
                }
            }
        });
        Ok(Self { client, warned, driver })
    }

    /// Runs a statement and returns its rows as text.
    pub async fn query(&self, statement: &str) -> Result<Vec<Vec<String>>, WriteError> {
        self.query_within(statement, AUDIT_TIMEOUT).await
    }

    /// Runs a statement that must be confirmed, without a warning, within [`STATEMENT_TIMEOUT`].
    pub async fn execute(&self, statement: &str) -> Result<Vec<Vec<String>>, WriteError> {
        self.execute_within(statement, STATEMENT_TIMEOUT).await
    }

    /// The same with another deadline.
    pub async fn execute_within(&self, statement: &str, timeout: Duration) -> Result<Vec<Vec<String>>, WriteError> {
        self.warned.store(false, Ordering::Release);
        let rows = self.query_within(statement, timeout).await?;
        if self.warned.load(Ordering::Acquire) { Err(WriteError::Warned) } else { Ok(rows) }
    }

    async fn query_within(&self, statement: &str, timeout: Duration) -> Result<Vec<Vec<String>>, WriteError> {
        // The simple protocol: one round trip, and no statement to prepare on a new connection.
        let messages = tokio::time::timeout(timeout, self.client.simple_query(statement))
            .await
            .map_err(|_| WriteError::Deadline)?
            .map_err(WriteError::Postgres)?;
        Ok(messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
                }
                _ => None,
            })
            .collect())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The driver of a connection to a stopped server would wait for its answer for ever.
        self.driver.abort();
    }
}
