//! Questions to PostgreSQL: probes, observation, space left. Each on its own task, never two of a kind at a time.
//!
//! A result changes facts and may call for a heartbeat. It never fences: whether a gray primary moves is decided above.

use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use super::local::{Answers, ProbeHistory};
use crate::domain::report::{MemoryReport, PostgresState};
use crate::ports::postgres::PostgresError;

/// While PostgreSQL starts it is asked this often, so that nobody waits for the next regular question.
const STARTING_INTERVAL: Duration = Duration::from_millis(20);

/// Space is asked for this often.
const DISK_INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks at the memory that is left: it may go faster than a disk fills, and to look costs next to nothing.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);

/// The adapters keep their own deadlines; this one holds when they do not.
const DEADLINE_SLACK: Duration = Duration::from_millis(250);

impl Agent {
    /// Asks for everything that SQL tells.
    pub(super) async fn observe_loop(self: &Arc<Self>) {
        loop {
            self.observe_once().await;
            let state = self.local().state();
            let interval = if state == PostgresState::Starting { STARTING_INTERVAL } else { self.renewal_interval() };
            tokio::select! {
                biased;
                () = tokio::time::sleep(interval) => {}
                () = self.observe_wanted.notified() => {}
            }
        }
    }

    /// One observation.
    pub(super) async fn observe_once(self: &Arc<Self>) {
        let Some(postmaster) = self.local().postmaster else { return };
        let timeout = self.settings.probe_timeout;
        let asked = self.postgres.observe(timeout);
        let result = bounded("observe PostgreSQL", timeout, asked).await;
        let now = self.now();
        let changed = {
            let mut local = self.local();
            if local.postmaster != Some(postmaster) {
                return;
            }
            local.observed(result, now)
        };
        if changed {
            self.heartbeat_wanted.notify_one();
            self.assignment_wanted.notify_one();
        }
        self.fence_if_unleased().await;
    }

    /// Observes and probes once, so that the first health check does not find an agent that knows nothing.
    pub(super) async fn first_look(self: &Arc<Self>) {
        self.observe_once().await;
        if self.local().is_primary() {
            let timeout = self.settings.probe_timeout;
            let probe = bounded("write and flush", timeout, self.postgres.probe_write(timeout));
            self.probe("write", probe, |local| &mut local.write).await;
        }
    }

    /// Opens new connections.
    pub(super) async fn connect_probe_loop(self: &Arc<Self>) {
        loop {
            if self.local().postmaster.is_some() {
                let timeout = self.settings.probe_timeout;
                let probe = bounded("open a connection", timeout, self.postgres.probe_connect(timeout));
                self.probe("connect", probe, |local| &mut local.connect).await;
            }
            tokio::time::sleep(self.settings.probe_interval).await;
        }
    }

    /// Writes and flushes, on a primary.
    pub(super) async fn write_probe_loop(self: &Arc<Self>) {
        loop {
            let writes = {
                let local = self.local();
                local.is_primary() && !local.stopping && !local.closed && local.answers != Answers::NotYet
            };
            if writes {
                let timeout = self.settings.probe_timeout;
                let probe = bounded("write and flush", timeout, self.postgres.probe_write(timeout));
                self.probe("write", probe, |local| &mut local.write).await;
            }
            tokio::time::sleep(self.settings.probe_interval).await;
        }
    }

    async fn probe(
        &self,
        name: &str,
        probe: impl Future<Output = Result<(), PostgresError>>,
        history: impl Fn(&mut super::local::Local) -> &mut ProbeHistory,
    ) {
        let (began, postmaster) = (self.now(), self.local().postmaster);
        let result = probe.await;
        let now = self.now();
        let changed = {
            let mut local = self.local();
            // What the agent reaches over its own socket says nothing while clients are kept out.
            let counts = local.postmaster == postmaster && !(local.closed && result.is_ok());
            // What was refused at once says nothing of how long anything takes.
            if counts && matches!(result, Ok(()) | Err(PostgresError::NoAnswer { .. })) {
                history(&mut local).count(now.since(began));
                self.probe_durations.observe(name, now.since(began));
            }
            counts && history(&mut local).record(&result, began, now)
        };
        if changed {
            if let Err(error) = result {
                tracing::warn!(%error, "a probe began to fail");
            }
            self.heartbeat_wanted.notify_one();
        }
    }

    /// Asks for space left.
    pub(super) async fn disk_loop(self: &Arc<Self>) {
        loop {
            // Whatever the adapter does: an old answer is none.
            let disk = tokio::time::timeout(DISK_INTERVAL, self.postgres.disk()).await.ok().flatten();
            self.local().disk = disk;
            tokio::time::sleep(DISK_INTERVAL).await;
        }
    }

    /// Of a run that has ended meanwhile nothing is left to tell.
    fn hear_memory(&self, postmaster: Option<i32>, memory: Option<MemoryReport>) {
        let mut local = self.local();
        if local.postmaster == postmaster {
            local.memory = memory;
        }
    }

    /// Asks for memory left.
    pub(super) async fn memory_loop(self: &Arc<Self>) {
        loop {
            let postmaster = self.local().postmaster;
            let memory = match postmaster {
                Some(postmaster) => {
                    tokio::time::timeout(MEMORY_INTERVAL, self.postgres.memory(postmaster)).await.ok().flatten()
                }
                None => None,
            };
            self.hear_memory(postmaster, memory);
            tokio::time::sleep(MEMORY_INTERVAL).await;
        }
    }
}

/// A question with an end, whatever the adapter does.
pub(super) async fn bounded<T>(
    action: &'static str,
    timeout: Duration,
    question: impl Future<Output = Result<T, PostgresError>>,
) -> Result<T, PostgresError> {
    tokio::time::timeout(timeout + DEADLINE_SLACK, question)
        .await
        .unwrap_or(Err(PostgresError::NoAnswer { action, timeout }))
}
