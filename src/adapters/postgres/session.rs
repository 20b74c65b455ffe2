//! Connections of the agent to its own PostgreSQL, over the private socket.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::errors::{from_client, is_lost};
use super::settings::Setup;
use crate::ports::postgres::PostgresError;

/// Time for saying goodbye. Longer than a healthy server needs; a hung one is left without.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(50);

/// A server that cannot fork says so at once, before it is asked anything.
const FORK_FAILURE_TIMEOUT: Duration = Duration::from_millis(100);

/// Settings of the role or the database must not change what the agent's questions mean, nor cut them short.
/// Waiting for a standby is no failure of this server, hence `synchronous_commit = local`.
const OPTIONS: &str = "-c search_path=pg_catalog -c synchronous_commit=local -c statement_timeout=0 -c lock_timeout=0 \
     -c idle_in_transaction_session_timeout=0 -c default_transaction_read_only=off -c standard_conforming_strings=on \
     -c client_encoding=UTF8 -c jit=off";

/// One connection. Dropping it closes the socket at once, whatever the server is doing.
pub(super) struct Session {
    client: Option<Client>,
    driver: JoinHandle<()>,
}

impl Session {
    pub(super) async fn open(setup: &Setup, action: &'static str) -> Result<Self, PostgresError> {
        Self::connect(setup).await.map_err(|error| from_client(action, &error))
    }

    pub(super) async fn connect(setup: &Setup) -> Result<Self, tokio_postgres::Error> {
        let settings = &setup.settings;
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&settings.private_socket_directory)
            .port(settings.address.port)
            .user(&settings.superuser)
            .dbname("postgres")
            .application_name("stormglass")
            .options(OPTIONS);
        if let Some(password) = &settings.superuser_password {
            config.password(password.expose());
        }
        let (client, connection) = config.connect(NoTls).await?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to PostgreSQL ended");
            }
        });
        Ok(Self { client: Some(client), driver })
    }

    /// First column of the first row, in one round trip.
    pub(super) async fn ask(&self, sql: &str) -> Result<Option<String>, tokio_postgres::Error> {
        let client = self.client.as_ref().expect("only close() takes the client, and it takes the session with it");
        let answer = client.simple_query(sql).await?;
        Ok(answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        }))
    }

    /// Like [`Session::ask`], for callers that do not look at the kind of error.
    pub(super) async fn query(&self, action: &'static str, sql: &str) -> Result<Option<String>, PostgresError> {
        self.ask(sql).await.map_err(|error| from_client(action, &error))
    }

    /// Says goodbye properly, so that the server has nothing to complain of in its log.
    pub(super) async fn close(mut self) {
        self.client = None;
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, &mut self.driver).await;
    }

    fn is_closed(&self) -> bool {
        self.client.as_ref().is_none_or(Client::is_closed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// True if the postmaster answers and has no process left for whoever knocks: it then says so without being asked, in words
/// of a protocol that nobody speaks any more.
pub(super) async fn cannot_fork(setup: &Setup) -> bool {
    let settings = &setup.settings;
    let socket = settings.private_socket_directory.join(format!(".s.PGSQL.{}", settings.address.port));
    let first_byte = async { UnixStream::connect(socket).await?.read_u8().await };
    matches!(tokio::time::timeout(FORK_FAILURE_TIMEOUT, first_byte).await, Ok(Ok(b'E')))
}

/// A connection that is kept between questions. One that failed or timed out is not put back.
#[derive(Default)]
pub(super) struct Held(Mutex<Option<Session>>);

impl Held {
    /// The held connection, or a new one. True: it was held, and may turn out to be lost.
    pub(super) async fn take(&self, setup: &Setup, action: &'static str) -> Result<(Session, bool), PostgresError> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match held.filter(|session| !session.is_closed()) {
            Some(session) => Ok((session, true)),
            None => Ok((Session::open(setup, action).await?, false)),
        }
    }

    pub(super) fn put_back(&self, session: Session) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }

    /// Asks over the held connection; over a new one if that was lost meanwhile. The question must be safe to repeat.
    pub(super) async fn ask(
        &self,
        setup: &Setup,
        action: &'static str,
        sql: &str,
    ) -> Result<Option<String>, PostgresError> {
        let (mut session, was_held) = self.take(setup, action).await?;
        let mut answer = session.ask(sql).await;
        if was_held && answer.as_ref().is_err_and(is_lost) {
            session = Session::open(setup, action).await?;
            answer = session.ask(sql).await;
        }
        // An SQL error leaves the connection usable; it is opened anew all the same, as nobody knows what else is wrong.
        let answer = answer.map_err(|error| from_client(action, &error))?;
        self.put_back(session);
        Ok(answer)
    }
}
