//! The fence: making this node unable to write, and saying so only when it is true.
//!
//! Nothing here waits for a disk of PostgreSQL, for SQL, or for a controller.

use std::sync::Arc;
use std::time::Duration;

use super::lease::Lease;
use super::{Agent, promises};
use crate::domain::clock::Moment;
use crate::domain::epoch::Epoch;

/// One attempt at killing; processes that are left after it are named and tried again.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// After this many attempts a human is told, and the command that asked fails.
const KILL_ATTEMPTS: u32 = 3;

/// How often the lease is looked at, at least: tokio's clock stands still while the host sleeps, the lease's does not.
const LEASE_LOOK: Duration = Duration::from_millis(200);

/// How long a controller may take to store that a primary is left running.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
const LEAVE_LOOK: Duration = Duration::from_millis(100);

/// Shares of the time between the beginning of the stop and the guard's kill, in per cent.
/// What is left is for the agent's own kill, before the guard's.
const FAST_SHARE: u32 = 50;
const IMMEDIATE_SHARE: u32 = 25;

impl Agent {
    /// Kills PostgreSQL and confirms, on disk, that this node writes no more in `epoch` and before.
    pub(super) async fn fence(self: &Arc<Self>, epoch: Epoch, reason: &str) -> Result<(), String> {
        {
            let mut local = self.local();
            local.leases.bar(epoch);
            local.stopping = true;
        }
        self.lease_changed.notify_one();
        let took = self.kill().await?;
        {
            let mut local = self.local();
            local.ended();
            local.asking_until = None;
            local.fence_seconds = Some(took.as_secs_f64());
            local.down_because = Some(format!("fenced in epoch {epoch}: {reason}"));
        }
        self.outlive_older_leases(epoch).await?;
        let confirmed = self.keeper.change(|memory| {
            memory.highest_epoch = memory.highest_epoch.max(epoch);
            memory.confirm_fence(epoch);
        });
        confirmed.await.map_err(|error| format!("confirm the fence in epoch {epoch}: {error}"))?;
        self.guard.release(epoch);
        self.heartbeat_wanted.notify_one();
        tracing::warn!(%epoch, kill_seconds = took.as_secs_f64(), reason, "PostgreSQL is fenced");
        let agent = self.clone();
        tokio::spawn(async move { agent.refresh_control().await });
        Ok(())
    }

    /// Waits until no lease of an older epoch runs that this node renewed: the confirmation speaks of that epoch too.
    async fn outlive_older_leases(&self, epoch: Epoch) -> Result<(), String> {
        let (boot, promise) = (self.clock.boot(), self.timers().promise());
        let waits = || {
            let now = self.now();
            self.keeper.read(|memory| promises::confirmation_waits(memory, epoch, now, &boot, promise))
        };
        if waits().is_zero() {
            return Ok(());
        }
        // From here on nothing more is promised to the older holder.
        let stored = self.keeper.change(|memory| memory.highest_epoch = memory.highest_epoch.max(epoch)).await;
        stored.map_err(|error| format!("store epoch {epoch}: {error}"))?;
        loop {
            let left = waits();
            if left.is_zero() {
                return Ok(());
            }
            tracing::info!(?left, %epoch, "the fence is confirmed once a promise to an older holder has run out");
            tokio::time::sleep(left).await;
        }
    }

    async fn kill(&self) -> Result<Duration, String> {
        let began = self.now();
        let mut attempt = 1;
        loop {
            match self.postgres.kill_family(KILL_TIMEOUT).await {
                Ok(_) if self.starting.try_lock().is_ok() => return Ok(self.now().since(began)),
                // A start was under way: what it brings to life must go too.
                Ok(_) => drop(self.starting.lock().await),
                Err(error) if attempt < KILL_ATTEMPTS => tracing::warn!(%error, attempt, "killing again"),
                Err(error) => {
                    tracing::error!(%error, "PostgreSQL cannot be killed: power the host off");
                    return Err(error.to_string());
                }
            }
            attempt += 1;
        }
    }

    /// Watches over the lease: stops PostgreSQL in time when it is not renewed, at once when it is not ours any more.
    pub(super) async fn lease_loop(self: &Arc<Self>) {
        loop {
            let due = self.local().leases.current();
            let Some(lease) = due else {
                self.lease_changed.notified().await;
                continue;
            };
            let highest = self.keeper.read(|memory| memory.highest_epoch);
            let is_adopted = self.local().asking_until.is_some_and(|until| self.now() < until);
            if lease.epoch < highest && !is_adopted {
                self.fence_until_done(lease.epoch, "the cluster is in a newer epoch").await;
            } else if self.now() >= lease.fence_at() {
                self.stop_in_time(lease).await;
            } else {
                let left = lease.fence_at().since(self.now()).min(LEASE_LOOK);
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(left) => {}
                    () = self.lease_changed.notified() => {}
                }
            }
        }
    }

    /// Fast, immediate, SIGKILL: each with its share of what is left until the guard kills.
    async fn stop_in_time(self: &Arc<Self>, lease: Lease) {
        tracing::warn!(epoch = %lease.epoch, "the lease was not renewed in time: stopping PostgreSQL");
        let window = lease.timers.stop_budget.saturating_sub(lease.timers.kill_budget);
        let began = self.now();
        self.local().stopping = true;
        if self.local().postmaster.is_some()
            && !self.ends_by(began.plus(window * FAST_SHARE / 100), self.postgres.stop_fast(window)).await
        {
            let by = began.plus(window * (FAST_SHARE + IMMEDIATE_SHARE) / 100);
            let postmaster = self.local().postmaster;
            let stopped = async {
                self.postgres.stop_immediate().await;
                if let Some(postmaster) = postmaster {
                    self.postgres.wait_for_exit(postmaster).await;
                }
            };
            self.ends_by(by, stopped).await;
        }
        self.fence_until_done(lease.epoch, "its lease was not renewed").await;
    }

    /// True if `stop` came to an end before `by`. How it ended does not matter: the kill that follows finds out.
    async fn ends_by<T>(&self, by: Moment, stop: impl Future<Output = T>) -> bool {
        tokio::time::timeout(by.since(self.now()), stop).await.is_ok()
    }

    /// For fences that nobody asked for, and nobody will repeat.
    pub(super) async fn fence_until_done(self: &Arc<Self>, epoch: Epoch, reason: &str) {
        while let Err(error) = self.fence(epoch, reason).await {
            tracing::error!(%error, %epoch, "fencing again");
            tokio::time::sleep(LEASE_LOOK).await;
        }
    }

    /// A primary without a lease was promoted or started by hand.
    pub(super) async fn fence_if_unleased(self: &Arc<Self>) {
        let (highest, now) = (self.keeper.read(|memory| memory.highest_epoch), self.now());
        let unleased = {
            let local = self.local();
            local.is_primary()
                && !local.stopping
                && highest.0 > 0
                && local.asking_until.is_none_or(|until| now >= until)
                && local.leases.valid(now).is_none()
        };
        if unleased {
            self.fence_until_done(highest, "it ran as a primary without a lease").await;
        }
    }

    /// Leaves the primary running without a lease: only once a controller has stored that nobody may be promoted before this
    /// node has confirmed a fence.
    async fn leave_running(&self, epoch: Epoch) -> bool {
        self.local().leaving = true;
        // The lease goes with it: the next start asks for a new one instead of stopping with the rest of this one.
        let left = self.keeper.change(|memory| (memory.left_running, memory.lease) = (Some(epoch), None));
        if let Err(error) = left.await {
            tracing::error!(%error, "PostgreSQL cannot be left running: the next start would not know of it");
            return false;
        }
        let end = self.now().plus(LEAVE_TIMEOUT);
        while self.now() < end {
            let report = self.report();
            if self.controllers.heartbeat(&report, LEAVE_TIMEOUT).await.is_ok_and(|reply| reply.may_leave) {
                tracing::info!(%epoch, "PostgreSQL is left running: the cluster is paused");
                return true;
            }
            tokio::time::sleep(LEAVE_LOOK).await;
        }
        tracing::warn!("no controller took note that PostgreSQL is to be left running: fencing it");
        if let Err(error) = self.keeper.change(|memory| memory.left_running = None).await {
            tracing::error!(%error, "the next start asks for a lease first");
        }
        false
    }

    /// The service ends. A primary is fenced, unless the cluster is paused; a standby goes on.
    pub(super) async fn stop_service(self: &Arc<Self>) {
        let (is_primary, may_stay, lease) = {
            let local = self.local();
            // Nobody would open one that is closed to clients.
            (local.is_primary(), local.paused && !local.closed, local.leases.current())
        };
        let highest = self.keeper.read(|memory| memory.highest_epoch);
        if !is_primary || highest.0 == 0 {
            return;
        }
        if may_stay && self.leave_running(highest).await {
            return self.guard.release(highest);
        }
        tracing::info!("the service is stopped on a primary: fencing PostgreSQL and giving the lease back");
        self.local().stopping = true;
        let window = self.timers().stop_budget;
        if !self.ends_by(self.now().plus(window), self.postgres.stop_fast(window)).await {
            tracing::warn!("fast shutdown did not end in time");
        }
        self.fence_until_done(lease.map_or(highest, |lease| lease.epoch), "the service was stopped").await;
        self.send_last_heartbeat().await;
    }
}
