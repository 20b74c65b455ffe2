//! PgBouncer's admin console: PAUSE and RESUME, and a mark on disk for as long as it may be paused.
//!
//! Every exchange has an end. When to pause is not decided here.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::haproxy::file;
use crate::domain::ids::Address;
use crate::ports::traffic::Pooler;

/// The database of the console.
const CONSOLE: &str = "pgbouncer";
/// How long PgBouncer may take to let an administrator in and to answer RESUME; it takes 1 ms.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// How long a pause waits for PgBouncer's logins, which take 2 to 20 ms.
const LOGINS_LIMIT: Duration = Duration::from_millis(100);
/// Between two looks at them.
const LOOK_FOR_LOGINS: Duration = Duration::from_millis(2);
/// What PgBouncer says where there is nothing to resume. Its errors have no codes of their own.
const NOT_PAUSED: [&str; 2] = ["not paused", "no such database"];

/// Where it is and who asks.
#[derive(Debug, Clone)]
pub struct PgbouncerSettings {
    /// The admin console; a host that begins with `/` is a socket's directory.
    pub admin: Address,
    /// One of its `admin_users`.
    pub user: String,
    /// The password.
    pub password: Option<String>,
    /// Databases to pause; all of them if none is named.
    pub databases: Vec<String>,
    /// A file that is there while PgBouncer may be paused.
    pub mark: PathBuf,
}

/// The PgBouncer of this host.
pub struct Pgbouncer {
    settings: PgbouncerSettings,
    config: Config,
    may_be_paused: AtomicBool,
    /// A PAUSE that was not answered yet: its connection has to stay, or PgBouncer takes it back.
    pending: Mutex<JoinSet<()>>,
}

impl Pgbouncer {
    /// Connects to nothing before its first call.
    pub fn new(settings: PgbouncerSettings) -> Self {
        let mut config = Config::new();
        config
            .host(&settings.admin.host)
            .port(settings.admin.port)
            .user(&settings.user)
            .dbname(CONSOLE)
            .connect_timeout(ANSWER_LIMIT)
            .ssl_mode(SslMode::Prefer);
        if let Some(password) = &settings.password {
            config.password(password);
        }
        let may_be_paused = AtomicBool::new(settings.mark.exists());
        Self { settings, config, may_be_paused, pending: Mutex::default() }
    }

    fn commands(&self, verb: &str) -> Vec<String> {
        if self.settings.databases.is_empty() {
            return vec![verb.to_owned()];
        }
        self.settings.databases.iter().map(|database| format!("{verb} \"{database}\"")).collect()
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn mark(&self) -> Result<(), String> {
        self.may_be_paused.store(true, Ordering::SeqCst);
        let path = self.settings.mark.clone();
        let written = spawn_blocking(move || file::replace(&path, b"paused\n")).await;
        let problem = |error: &dyn std::fmt::Display| format!("write {}: {error}", self.settings.mark.display());
        written.map_err(|error| problem(&error))?.map_err(|error| problem(&error))
    }

    async fn unmark(&self) -> Result<(), String> {
        match tokio::fs::remove_file(&self.settings.mark).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("remove {}: {error}", self.settings.mark.display()))
            }
            _ => {
                self.may_be_paused.store(false, Ordering::SeqCst);
                Ok(())
            }
        }
    }

    fn words(&self, what: &str, problem: &str) -> String {
        format!("{what} at PgBouncer's console {}: {problem}", self.settings.admin)
    }
}

#[async_trait]
impl Pooler for Pgbouncer {
    async fn pause(&self, within: Duration) -> Result<(), String> {
        // Before it is asked for: an agent that dies between the two leaves nothing paused.
        self.mark().await?;
        let (config, commands) = (self.config.clone(), self.commands("PAUSE"));
        let (answer, answered) = oneshot::channel();
        {
            let mut pending = self.pending();
            pending.abort_all();
            pending.spawn(async move {
                let outcome = async {
                    let console = Console::open(&config).await?;
                    console.wait_for_logins().await;
                    for command in commands {
                        console.say(&command).await?;
                    }
                    console.close().await;
                    Ok(())
                };
                let _nobody_waits_any_more = answer.send(outcome.await);
            });
        }
        match timeout(within, answered).await {
            Ok(Ok(outcome)) => outcome.map_err(|problem: String| self.words("PAUSE", &problem)),
            Ok(Err(_)) => Err(self.words("PAUSE", "taken back")),
            Err(_) => {
                Err(self
                    .words("PAUSE", &format!("transactions have not ended, or it does not answer, within {within:?}")))
            }
        }
    }

    async fn resume(&self) -> Result<(), String> {
        // First, so that no PAUSE follows: what its connection has sent is read before a connection that is made after it.
        self.pending().abort_all();
        let resumed = async {
            let console = Console::open(&self.config).await?;
            for command in self.commands("RESUME") {
                match console.say(&command).await {
                    Err(problem) if !NOT_PAUSED.iter().any(|words| problem.contains(words)) => return Err(problem),
                    _ => {}
                }
            }
            console.close().await;
            Ok(())
        };
        let outcome = timeout(ANSWER_LIMIT, resumed).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {ANSWER_LIMIT:?}")));
        outcome.map_err(|problem| self.words("RESUME", &problem))?;
        self.unmark().await
    }

    async fn may_be_paused(&self) -> bool {
        self.may_be_paused.load(Ordering::SeqCst)
    }
}

/// One connection. Dropped, it is cut at once, even in the middle of a command.
struct Console {
    client: Client,
    driver: JoinSet<()>,
}

impl Console {
    async fn open(config: &Config) -> Result<Self, String> {
        let (client, connection) = config.connect(NoTls).await.map_err(|error| words(&error))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            let _its_commands_say_so = connection.await;
        });
        Ok(Self { client, driver })
    }

    /// The console knows the simple protocol alone.
    async fn say(&self, command: &str) -> Result<(), String> {
        self.client.simple_query(command).await.map(drop).map_err(|error| words(&error))
    }

    /// A pause ends PgBouncer's logins, and it takes one that it ended itself for a server that is down: it refuses newcomers and tries
    /// nothing for `server_login_retry`. So they are let through first, where they come through at all.
    async fn wait_for_logins(&self) {
        let end = Instant::now() + LOGINS_LIMIT;
        while Instant::now() < end && self.logins().await.is_ok_and(|logins| logins > 0) {
            sleep(LOOK_FOR_LOGINS).await;
        }
    }

    /// Connections to PostgreSQL that are just being made.
    async fn logins(&self) -> Result<u64, String> {
        let rows = self.client.simple_query("SHOW POOLS").await.map_err(|error| words(&error))?;
        let logins = rows.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.try_get("sv_login").ok().flatten()?.parse::<u64>().ok(),
            _ => None,
        });
        Ok(logins.sum())
    }

    /// Says goodbye, so that PgBouncer does not log a lost connection.
    async fn close(mut self) {
        drop(self.client);
        self.driver.join_next().await;
    }
}

fn words(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    match (error.as_db_error(), error.source()) {
        (Some(said), _) => said.message().to_owned(),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}
