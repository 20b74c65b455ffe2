//! The measuring client: eight writers through HAProxy, and one a node that bypasses it all the time.
//!
//! It runs on a thread and a runtime of its own, so that nothing else the lab does delays an acknowledgement.
//! Invariant: a write whose fate is unknown is never retried; the next write has the next number.

pub mod held;
mod session;
mod writer;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};

pub use session::{Session, WriteError};

use super::clock;
use super::layout::{Layout, ProxyLayout};
use super::ledger::{Acknowledgement, Rows};
use super::naming::Naming;
use crate::domain::clock::Moment;
use crate::domain::ids::Address;
use writer::{Way, Writer};

/// The table that every writer writes to.
pub const TABLE: &str = "stormglass_ledger";

/// Writers through HAProxy.
const WRITERS: u32 = 8;

/// Between two writes of one of them: together 400 a second if nothing is slow, and more than 100 in any case.
const WRITE_INTERVAL: Duration = Duration::from_millis(20);

/// Between two writes of a bypassing writer: enough to see a second writer, and little load.
const BYPASS_INTERVAL: Duration = Duration::from_millis(50);

/// After an error, before the next attempt.
const BACKOFF: Duration = Duration::from_millis(20);

/// The writer that keeps what the name led to.
const KEEPING: u32 = 200;

/// Writers that bypass HAProxy are numbered from here.
const BYPASS_FIRST: u32 = 100;

/// A commit that takes longer is trouble.
pub const SLOW: Duration = Duration::from_secs(1);

/// Deadline of a connection attempt.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A primary that lets nobody in for so long is none.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Deadline of a statement. The client keeps it itself: a server that is stopped keeps none.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);

/// What a client did.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Acknowledged commits of the writers behind HAProxy.
    pub proxied: Vec<Acknowledgement>,
    /// Acknowledged commits of those that bypass it.
    pub bypassing: Vec<Acknowledgement>,
    /// Acknowledged commits of the one that keeps what the name led to for its time to live.
    pub keeping: Vec<Acknowledgement>,
    /// Writes through HAProxy without an acknowledgement.
    pub failed: u64,
    /// Connection attempts to HAProxy that were refused, or closed before PostgreSQL let the client in.
    pub refused_connections: u64,
    /// Connection attempts to HAProxy that nobody answered within [`CONNECT_TIMEOUT`].
    pub unanswered_connections: u64,
    /// Errors by their first words.
    pub errors: BTreeMap<String, u64>,
    /// When a writer behind HAProxy was in trouble: a write or a connection failed, or a commit took more than [`SLOW`].
    pub troubles: Vec<Moment>,
}

/// How writers behave.
#[derive(Debug, Clone, Copy, Default)]
pub struct Habits {
    /// A new connection after so many acknowledged writes; else one for ever.
    pub reconnect_after: Option<u64>,
    /// The name is resolved at each connection, and one writer more keeps its answer for as long as resolvers do.
    pub by_name: bool,
    /// Through PgBouncer, which stands before HAProxy's write port: a planned move is to cost them no error.
    pub pooled: bool,
}

impl Record {
    /// Every acknowledgement.
    pub fn all(&self) -> Vec<Acknowledgement> {
        self.proxied.iter().chain(&self.bypassing).chain(&self.keeping).cloned().collect()
    }
}

/// Nothing is measured yet: on a busy host the first connection may take a second try.
async fn connect_patiently(primary: &Address) -> anyhow::Result<Session> {
    let deadline = tokio::time::Instant::now() + SETUP_TIMEOUT;
    loop {
        match Session::open(primary, "lab-setup").await {
            Ok(session) => return Ok(session),
            Err(_) if tokio::time::Instant::now() < deadline => tokio::time::sleep(BACKOFF).await,
            Err(error) => {
                return Err(anyhow!("{error}")).with_context(|| format!("connect to the primary at {primary}"));
            }
        }
    }
}

/// What is seen of a client while it runs.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    last_acknowledgement: AtomicU64,
    acknowledgements: AtomicU64,
    last_kept_acknowledgement: AtomicU64,
    /// When a writer behind HAProxy was in trouble last.
    last_trouble: AtomicU64,
    /// Filled when a writer ends.
    record: Mutex<Record>,
}

/// A running client.
pub struct Client {
    run: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Makes the table on `primary` and starts every writer.
    pub async fn start(layout: &Layout, primary: &Address, run: &str) -> anyhow::Result<Self> {
        Self::start_with(layout, primary, run, Habits::default()).await
    }

    /// The same, for writers with habits.
    pub async fn start_with(layout: &Layout, primary: &Address, run: &str, habits: Habits) -> anyhow::Result<Self> {
        let setup = connect_patiently(primary).await?;
        setup
            .execute(&table_statement())
            .await
            .map_err(|error| anyhow!("{error}"))
            .context("make the client's table")?;
        drop(setup);

        let shared = Arc::new(Shared::default());
        let mut writers = Vec::new();
        let way_in = |proxy: &ProxyLayout| {
            if habits.pooled { proxy.pgbouncer.clone() } else { Some(proxy.write.clone()) }
        };
        let ports: Vec<Address> = layout.proxies.iter().filter_map(way_in).collect();
        ensure!(!ports.is_empty(), "the lab has no PgBouncer");
        for number in 0..WRITERS {
            // Each has a proxy of its own and takes the others only while that one does not serve.
            let own = number as usize % ports.len();
            let endpoints = ports[own..].iter().chain(&ports[..own]).cloned().collect();
            let way =
                if habits.by_name { Way::Named(Box::new(Naming::of(layout, false)?)) } else { Way::Fixed(endpoints) };
            writers.push(Writer {
                number,
                run: run.to_owned(),
                way,
                interval: WRITE_INTERVAL,
                first_delay: WRITE_INTERVAL * number / WRITERS,
                bypasses: false,
                keeps: false,
                habits,
            });
        }
        for (number, node) in (BYPASS_FIRST..).zip(&layout.nodes) {
            writers.push(Writer {
                number,
                run: run.to_owned(),
                way: Way::Fixed(vec![node.postgres.clone()]),
                interval: BYPASS_INTERVAL,
                first_delay: Duration::ZERO,
                bypasses: true,
                keeps: false,
                habits: Habits::default(),
            });
        }
        if habits.by_name {
            writers.push(Writer {
                number: KEEPING,
                run: run.to_owned(),
                way: Way::Named(Box::new(Naming::of(layout, true)?)),
                interval: WRITE_INTERVAL,
                first_delay: Duration::ZERO,
                bypasses: false,
                keeps: true,
                habits: Habits::default(),
            });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the client")?;
        let seen = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("client".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let tasks = writers.into_iter().map(|writer| tokio::spawn(writer.work(Arc::clone(&seen))));
                    futures_util::future::join_all(tasks.collect::<Vec<_>>()).await;
                });
            })
            .context("start the client's thread")?;
        Ok(Self { run: run.to_owned(), shared, thread: Some(thread) })
    }

    /// Name of the run in the table.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// When the last commit of a writer behind HAProxy was acknowledged; `None` before the first.
    pub fn last_acknowledgement(&self) -> Option<Moment> {
        match self.shared.last_acknowledgement.load(Ordering::Acquire) {
            0 => None,
            at => Some(Moment(at)),
        }
    }

    /// When the last commit of the writer that keeps the name's answer was acknowledged; `None` before the first.
    pub fn last_kept_acknowledgement(&self) -> Option<Moment> {
        match self.shared.last_kept_acknowledgement.load(Ordering::Acquire) {
            0 => None,
            at => Some(Moment(at)),
        }
    }

    /// When a writer behind HAProxy was in trouble last; `None` if none ever was.
    pub fn last_trouble(&self) -> Option<Moment> {
        match self.shared.last_trouble.load(Ordering::Acquire) {
            0 => None,
            at => Some(Moment(at)),
        }
    }

    /// Commits acknowledged so far through HAProxy.
    pub fn acknowledgements(&self) -> u64 {
        self.shared.acknowledgements.load(Ordering::Acquire)
    }

    /// Waits until commits were acknowledged without a pause of `pause` or more for `duration`.
    pub async fn steady(&self, duration: Duration, pause: Duration, deadline: Moment) -> anyhow::Result<()> {
        let mut since = clock::now();
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = clock::now();
            if self.last_acknowledgement().is_none_or(|at| now.since(at) >= pause) {
                since = now;
            }
            if now.since(since) >= duration {
                return Ok(());
            }
            if now > deadline {
                anyhow::bail!("writes through HAProxy do not flow for {} s without a pause", duration.as_secs_f64());
            }
        }
    }

    /// Stops every writer and returns what they did.
    pub async fn stop(mut self) -> anyhow::Result<Record> {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // Every await of a writer has a deadline, so that this ends.
            tokio::task::spawn_blocking(move || thread.join())
                .await
                .context("wait for the client")?
                .map_err(|_| anyhow!("the client broke down"))?;
        }
        let mut record = self.shared.record.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *record))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

/// Makes the table, in one line.
pub fn table_statement() -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {TABLE} (run text NOT NULL, writer int NOT NULL, sequence bigint NOT NULL, at timestamptz NOT NULL \
         DEFAULT clock_timestamp())"
    )
}

/// Reads how often each write of `run` is on `primary`.
pub async fn rows(primary: &Address, run: &str) -> anyhow::Result<Rows> {
    let session = Session::open(primary, "lab-audit").await.map_err(|error| anyhow!("{error}"))?;
    let statement = format!("SELECT writer, sequence, count(*) FROM {TABLE} WHERE run = '{run}' GROUP BY 1, 2");
    let mut rows = Rows::new();
    for row in session.query(&statement).await.map_err(|error| anyhow!("{error}")).context("read the client's table")? {
        let [writer, sequence, count] = row.as_slice() else {
            anyhow::bail!("read the client's table: {} columns instead of 3", row.len());
        };
        rows.insert((writer.parse()?, sequence.parse()?), count.parse()?);
    }
    Ok(rows)
}
