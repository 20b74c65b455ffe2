//! What clients see of a planned move who need not see anything: a pool behind PgBouncer in transaction mode, and newcomers,
//! each with a connection of its own through HAProxy.
//!
//! They run on a thread and a runtime of their own. Nothing is retried: whatever goes wrong is an error.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::session::Session;
use super::{BACKOFF, TABLE};
use crate::domain::ids::Address;
use crate::lab::layout::Layout;

/// Clients of PgBouncer.
const POOLED: u32 = 8;

/// Between two transactions of one of them: 200 a second together.
const POOLED_INTERVAL: Duration = Duration::from_millis(40);

/// Their numbers in the table.
const POOLED_FIRST: u32 = 200;

/// Between two newcomers.
const NEWCOMER_INTERVAL: Duration = Duration::from_millis(20);

/// How long they wait before they call it an error: who is held is told nothing, and how long it took is measured.
const PATIENCE: Duration = Duration::from_secs(15);

/// What one kind of client saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Transactions, or connections, that were served.
    pub served: u64,
    /// Those that were not, for whatever reason.
    pub errors: u64,
    /// Connections among them that nobody accepted.
    pub refused_connections: u64,
    /// The longest statement, or the longest that a connection took.
    pub longest_seconds: f64,
    /// The errors by their first words.
    pub words: BTreeMap<String, u64>,
}

impl Tally {
    fn note(&mut self, took: Duration, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.served += 1,
            Err(words) => {
                self.errors += 1;
                self.refused_connections += u64::from(words.contains("refused"));
                *self.words.entry(words.chars().take(90).collect()).or_default() += 1;
            }
        }
        self.longest_seconds = self.longest_seconds.max(took.as_secs_f64());
    }
}

/// Both kinds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldTally {
    /// Clients of PgBouncer: transactions.
    pub pooled: Tally,
    /// Newcomers: connections through HAProxy's write port.
    pub newcomers: Tally,
}

/// They run.
pub struct HeldClients {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<HeldTally>>,
    thread: Option<JoinHandle<()>>,
}

impl HeldClients {
    /// Starts all of them. The table is there.
    pub fn start(layout: &Layout, run: &str) -> anyhow::Result<Self> {
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<HeldTally>>::default());
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start more clients")?;
        let poolers: Vec<Address> = layout.proxies.iter().filter_map(|proxy| proxy.pgbouncer.clone()).collect();
        let ports: Vec<Address> = layout.proxies.iter().map(|proxy| proxy.write.clone()).collect();
        let (halt, notes, run) = (Arc::clone(&stop), Arc::clone(&tally), run.to_owned());
        let thread = std::thread::Builder::new().name("held-clients".to_owned()).spawn(move || {
            runtime.block_on(async {
                let mut tasks = tokio::task::JoinSet::new();
                for number in 0..POOLED {
                    let Some(pooler) = poolers.get(number as usize % poolers.len().max(1)).cloned() else { continue };
                    tasks.spawn(work_pooled(pooler, number, run.clone(), Arc::clone(&halt), Arc::clone(&notes)));
                }
                tasks.spawn(come(ports, halt, notes));
                while tasks.join_next().await.is_some() {}
            });
        });
        Ok(Self { stop, tally, thread: Some(thread.context("start the thread of more clients")?) })
    }

    /// Stops them and returns what they saw.
    pub async fn stop(mut self) -> anyhow::Result<HeldTally> {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            tokio::task::spawn_blocking(move || thread.join())
                .await
                .context("wait for more clients")?
                .map_err(|_| anyhow!("more clients broke down"))?;
        }
        Ok(std::mem::take(&mut *self.tally.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Drop for HeldClients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// One client of PgBouncer: a transaction of three statements at each beat; its connection to PgBouncer is never renewed
/// unless it fails.
async fn work_pooled(pooler: Address, number: u32, run: String, stop: Arc<AtomicBool>, tally: Arc<Mutex<HeldTally>>) {
    let note = |took, outcome| tally.lock().unwrap_or_else(PoisonError::into_inner).pooled.note(took, outcome);
    let mut session: Option<Session> = None;
    let mut beat = interval(POOLED_INTERVAL);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sequence = 0_u64;
    while !stop.load(Ordering::Acquire) {
        beat.tick().await;
        let begun = Instant::now();
        let open = match session.take() {
            Some(open) => open,
            None => match Session::open_within(&pooler, "lab-pooled", PATIENCE).await {
                Ok(open) => open,
                Err(error) => {
                    note(begun.elapsed(), Err(format!("connect: {error}")));
                    sleep(BACKOFF).await;
                    continue;
                }
            },
        };
        let writer = POOLED_FIRST + number;
        let insert = format!("INSERT INTO {TABLE} (run, writer, sequence) VALUES ('{run}', {writer}, {sequence})");
        let mut longest = Duration::ZERO;
        let mut outcome = Ok(());
        for statement in ["BEGIN", insert.as_str(), "COMMIT"] {
            let begun = Instant::now();
            outcome = open.execute_within(statement, PATIENCE).await.map(drop).map_err(|error| error.to_string());
            longest = longest.max(begun.elapsed());
            if outcome.is_err() {
                break;
            }
        }
        if outcome.is_ok() {
            session = Some(open);
        }
        note(longest, outcome);
        sequence += 1;
    }
}

/// Newcomers, one at each beat, whether or not the one before was served yet.
async fn come(ports: Vec<Address>, stop: Arc<AtomicBool>, tally: Arc<Mutex<HeldTally>>) {
    let mut beat = interval(NEWCOMER_INTERVAL);
    let mut waiting = tokio::task::JoinSet::new();
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        beat.tick().await;
        let Some(port) = ports.get(number % ports.len().max(1)).cloned() else { return };
        number += 1;
        let tally = Arc::clone(&tally);
        waiting.spawn(async move {
            let begun = Instant::now();
            let outcome = Session::open_within(&port, "lab-newcomer", PATIENCE)
                .await
                .map(drop)
                .map_err(|error| error.to_string());
            tally.lock().unwrap_or_else(PoisonError::into_inner).newcomers.note(begun.elapsed(), outcome);
        });
        while waiting.try_join_next().is_some() {}
    }
    while waiting.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_tells_refused_connections_from_other_errors() {
        let mut tally = Tally::default();
        tally.note(Duration::from_millis(5), Ok(()));
        tally.note(Duration::from_millis(7), Err("connect: Connection refused (os error 111)".to_owned()));
        tally.note(Duration::from_millis(6), Err("terminating connection".to_owned()));
        assert_eq!((tally.served, tally.errors, tally.refused_connections), (1, 2, 1));
        assert!((tally.longest_seconds - 0.007).abs() < 1e-9);
        assert_eq!(tally.words.len(), 2);
    }
}
