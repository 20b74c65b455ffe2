//! A real write through the write port, the way clients make it.
//!
//! The deadline is the client's: `statement_timeout` does not cover the wait at commit.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

use crate::adapters::host_names::sockets;
use crate::domain::ids::Address;
use crate::ports::traffic::WriteVerifier;

/// Between two tries: a new primary is there within tens of milliseconds.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// One try must leave time for another: a session that the proxy led astray may never answer.
const TRIES_MIN: u32 = 3;

/// One round trip, one transaction with an xid that flushes WAL.
const WRITE: &str = "begin; select pg_logical_emit_message(true, 'stormglass-verify', ''), host(inet_server_addr()), \
    inet_server_port(); commit";

/// Who writes.
#[derive(Clone)]
pub struct VerifyCredentials {
    /// Role.
    pub user: String,
    /// Its password.
    pub password: Option<String>,
    /// Database.
    pub database: String,
}

/// Writes through `write`.
#[derive(Clone)]
pub struct PostgresWriteVerifier {
    config: Config,
    write: Address,
    translated: BTreeMap<Address, Address>,
}

impl PostgresWriteVerifier {
    /// `write` is the write port as configured; where it is bound to every address, loopback is used.
    pub fn new(write: &Address, credentials: &VerifyCredentials) -> Self {
        let host = match write.host.as_str() {
            "0.0.0.0" | "*" | "" => "127.0.0.1",
            "::" => "::1",
            other => other,
        };
        let mut config = Config::new();
        config
            .user(&credentials.user)
            .dbname(&credentials.database)
            .application_name("stormglass-verify")
            // Whether a standby confirms is another fact than whether the write port leads to the primary.
            .options("-c synchronous_commit=local")
            .ssl_mode(SslMode::Prefer);
        if let Some(password) = &credentials.password {
            config.password(password);
        }
        Self { config, write: Address::new(host, write.port), translated: BTreeMap::new() }
    }

    /// Where a server is reached by one address and says another one of itself.
    pub fn translating(mut self, translated: impl IntoIterator<Item = (Address, Address)>) -> Self {
        self.translated.extend(translated);
        self
    }

    /// The settings with the addresses of the write port's host, which the client would look up at each connection.
    async fn resolved(&self) -> Result<Config, String> {
        let mut config = self.config.clone();
        let host = &self.write.host;
        let found =
            sockets(host, self.write.port).await.map_err(|error| format!("connect to {}: {error}", self.write))?;
        for socket in found {
            config.host(host).port(self.write.port).hostaddr(socket.ip());
        }
        Ok(config)
    }

    async fn try_once(&self, expect: &Address) -> Result<String, String> {
        let (client, connection) = self
            .resolved()
            .await?
            .connect(NoTls)
            .await
            .map_err(|error| format!("connect to {}: {}", self.write, words(&error)))?;
        // Aborted with this future, so that a session which is never answered leaves nothing behind.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let answer = client.simple_query(WRITE).await;
        let row = answer
            .map_err(|error| format!("write through {}: {}", self.write, words(&error)))?
            .into_iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            })
            .ok_or_else(|| format!("write through {}: the server answered without a row", self.write))?;
        // Says goodbye, so that the server does not log a lost connection.
        drop(client);
        driver.join_next().await;
        let lsn = row.get(0).unwrap_or_default();
        let host = row.get(1);
        let port = row.get(2).and_then(|port| port.parse::<u16>().ok());
        let seen = match (host, port) {
            (Some(host), Some(port)) => format!("{host} port {port}"),
            _ => "a unix socket".to_owned(),
        };
        if arrived(host, port, self.translated.get(expect).unwrap_or(expect)).await {
            Ok(format!("committed at {lsn} on {seen}"))
        } else {
            Err(format!("the write through {} arrived at {seen} and not at {expect}", self.write))
        }
    }
}

#[async_trait]
impl WriteVerifier for PostgresWriteVerifier {
    async fn verify_write(&self, expect: &Address, deadline: Duration) -> Result<String, String> {
        let end = Instant::now() + deadline;
        let mut last = format!("no answer within {deadline:?}");
        loop {
            let try_end = (Instant::now() + deadline / TRIES_MIN).min(end);
            match timeout_at(try_end, self.try_once(expect)).await {
                Ok(Ok(seen)) => return Ok(seen),
                Ok(Err(problem)) => last = problem,
                Err(_) => {
                    last = format!(
                        "the write through {} was not answered within {:?}; {last}",
                        self.write,
                        deadline / TRIES_MIN
                    )
                }
            }
            if Instant::now() + TRY_AGAIN >= end {
                return Err(last);
            }
            sleep(TRY_AGAIN).await;
        }
    }

    async fn try_write(&self, expect: &Address, timeout: Duration) -> Result<String, String> {
        let tried = tokio::time::timeout(timeout, self.try_once(expect)).await;
        tried.unwrap_or_else(|_| Err(format!("the write through {} was not answered within {timeout:?}", self.write)))
    }
}

/// Compares what the server says of itself with where the write was to go. The port decides together with the address;
/// a server reached over a unix socket says neither and could be any.
async fn arrived(host: Option<&str>, port: Option<u16>, expect: &Address) -> bool {
    let (Some(Ok(host)), Some(port)) = (host.map(str::parse::<IpAddr>), port) else { return false };
    if port != expect.port {
        return false;
    }
    match expect.host.parse::<IpAddr>() {
        Ok(expected) => expected == host,
        Err(_) => sockets(&expect.host, expect.port)
            .await
            .is_ok_and(|addresses| addresses.iter().any(|address| address.ip() == host)),
    }
}

fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{}: {} ({})", said.severity(), said.message(), said.code().code()),
        None => {
            use std::error::Error as _;
            error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
        }
    }
}
