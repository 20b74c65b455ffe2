//! Varied load beside the measuring client: what a working day and a nightly job do to a server, in small.
//!
//! Seeded, so that the control run has the same. Never measured itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::domain::ids::Address;
use crate::lab::client::Session;
use crate::lab::layout::Layout;
use crate::lab::random::Random;

/// Between two pieces of work at most.
const PAUSE_MILLISECONDS: u64 = 1500;
/// Rows of one bulk statement.
const ROWS: u64 = 4000;
/// Connections of one burst at most.
const BURST: u64 = 12;

/// The load, while it runs.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Load {
    /// Begins.
    pub fn start(layout: &Layout, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let ports: Vec<Address> = layout.proxies.iter().map(|proxy| proxy.write.clone()).collect();
        let task = tokio::spawn(async move {
            let mut random = Random::new(seed ^ 0x10AD);
            while !seen.load(Ordering::Acquire) {
                let port = &ports[random.below(ports.len() as u64) as usize];
                // What fails is tried again another time: the load is no measure of anything.
                let _ = work(port, &mut random, &seen).await;
                tokio::time::sleep(Duration::from_millis(random.below(PAUSE_MILLISECONDS))).await;
            }
        });
        Self { stop, task }
    }

    /// Ends.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.task.await;
    }
}

async fn work(port: &Address, random: &mut Random, stop: &AtomicBool) -> Result<(), crate::lab::client::WriteError> {
    let session = Session::open(port, "lab-load").await?;
    session
        .query(
            "CREATE TABLE IF NOT EXISTS lab_load (id bigserial PRIMARY KEY, batch int NOT NULL, filler text NOT NULL)",
        )
        .await?;
    let batch = random.below(50);
    match random.below(7) {
        0 | 1 => {
            let insert = format!(
                "INSERT INTO lab_load (batch, filler) SELECT {batch}, repeat('x', 80) FROM generate_series(1, {ROWS})"
            );
            session.query(&insert).await?;
            // A table that grows for ever would be a fault of its own.
            session.query("DELETE FROM lab_load WHERE id < (SELECT max(id) FROM lab_load) - 60000").await?;
        }
        2 => {
            session.query(&format!("UPDATE lab_load SET filler = repeat('y', 80) WHERE batch = {batch}")).await?;
        }
        3 => {
            session.query("SELECT batch, count(*), max(filler) FROM lab_load GROUP BY 1 ORDER BY 2 DESC").await?;
        }
        4 => {
            let mut burst = Vec::new();
            for _ in 0..=random.below(BURST) {
                burst.push(Session::open(port, "lab-burst").await?);
            }
            let held = Duration::from_millis(random.below(2500));
            for _ in 0..10 {
                if !stop.load(Ordering::Acquire) {
                    tokio::time::sleep(held / 10).await;
                }
            }
        }
        5 => {
            // The nightly job: much WAL at once.
            for _ in 0..4 {
                session.query("SELECT pg_logical_emit_message(false, 'lab', repeat('x', 2000000))").await?;
            }
        }
        _ => {
            session.query("VACUUM lab_load").await?;
        }
    }
    Ok(())
}
