//! A primary whose own process crashed while commits waited for a standby: it comes back under its lease, and nobody reads what it
//! recovered before every standby that the ledger names has it.
//!
//! The bound is one lease from the end of recovery. Beyond it the node fences itself, and the ledger decides: an eligible standby takes over, or, if there is
//! none, this node goes on in an epoch in which nobody else can be promoted without what it recovered.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use super::assignment::CHANGE_TIMEOUT;
use super::observe::bounded;
use crate::domain::clock::Moment;
use crate::domain::command::AssignedRole;
use crate::domain::epoch::Epoch;
use crate::domain::ids::NodeName;
use crate::domain::lsn::Lsn;
use crate::domain::report::{LiveReport, SynchronousReport};
use crate::ports::postgres::{PostgresError, StartMode};

/// How long another change may hold up the start.
const BUSY: Duration = Duration::from_millis(300);

/// In so many leases it is started again once. One that goes on crashing is the controller's to move.
const BUDGET_LEASES: u32 = 10;

/// Between two looks at the standbys.
const LOOK: Duration = Duration::from_millis(10);

impl Agent {
    /// Starts PostgreSQL again in its own epoch, if it crashed and waits for `names`. `Err`: why the node has to be fenced.
    pub(super) async fn restart_after_crash(
        self: &Arc<Self>,
        epoch: Epoch,
        names: Option<BTreeSet<NodeName>>,
    ) -> Result<(), String> {
        let fence = || "PostgreSQL ended by itself".to_owned();
        let names = names.filter(|_| self.local().closed).ok_or_else(fence)?;
        // Whatever changes this PostgreSQL at the moment finds it gone; one that takes longer is not worth waiting for.
        let _one_at_a_time = tokio::time::timeout(BUSY, self.operating.lock()).await.map_err(|_busy| fence())?;
        let (now, spell) = (self.now(), self.timers().lease * BUDGET_LEASES);
        if self.local().restarted_at.is_some_and(|at| now.since(at) < spell) {
            return Err(format!("one of its processes crashed for the second time within {spell:?}"));
        }
        if !self.postgres.ended_after_crash().await {
            return Err(fence());
        }
        self.local().restarted_at = Some(now);
        tracing::warn!(%epoch, "a process of PostgreSQL crashed: starting it again, closed to clients until a standby has all of it");
        let mode = StartMode::Recovering { synchronous: names.clone() };
        let started = self.start_postgres(&mode).await;
        started
            .map_err(|error| format!("one of its processes crashed, and PostgreSQL does not start again: {error}"))?;
        self.watch_admission(epoch, names);
        Ok(())
    }

    /// An agent that was restarted finds its primary closed.
    pub(super) async fn resume_admission(self: &Arc<Self>, epoch: Epoch) {
        if !self.postgres.is_closed_to_clients().await {
            return;
        }
        self.local().closed = true;
        match self.names_to_wait_for(epoch) {
            Some(names) => self.watch_admission(epoch, names),
            None => self.fence_until_done(epoch, "it is closed to clients, and the ledger names nobody").await,
        }
    }

    /// Whom commits of this node wait for, while it holds the lease of this epoch.
    pub(super) fn names_to_wait_for(&self, epoch: Epoch) -> Option<BTreeSet<NodeName>> {
        let is_held = self.holds_lease_of(epoch);
        let named = self.keeper.read(|memory| {
            let last = memory.assignment.as_ref().filter(|last| last.epoch == epoch)?;
            match &last.role {
                AssignedRole::Primary { synchronous, .. } => Some(synchronous.clone()),
                AssignedRole::Standby { .. } | AssignedRole::Fenced => None,
            }
        });
        named.filter(|names| is_held && !names.is_empty())
    }

    fn holds_lease_of(&self, epoch: Epoch) -> bool {
        self.local().leases.valid(self.now()).is_some_and(|lease| lease.epoch == epoch)
    }

    /// True while it is this postmaster, under the lease of this epoch, that is to be opened or fenced. Everything else has other
    /// keepers: the lease's own loop, a fence, a promotion.
    fn is_admitting(&self, epoch: Epoch, postmaster: i32) -> bool {
        self.local().postmaster == Some(postmaster) && self.holds_lease_of(epoch)
    }

    fn watch_admission(self: &Arc<Self>, epoch: Epoch, names: BTreeSet<NodeName>) {
        let Some(postmaster) = self.local().postmaster else { return };
        let agent = self.clone();
        tokio::spawn(async move {
            if let Err(error) = agent.admit_clients(epoch, postmaster, &names).await
                && agent.is_admitting(epoch, postmaster)
            {
                agent.fence_until_done(epoch, &format!("it crashed, and clients stay out: {error}")).await;
            }
        });
    }

    async fn admit_clients(
        self: &Arc<Self>,
        epoch: Epoch,
        postmaster: i32,
        names: &BTreeSet<NodeName>,
    ) -> Result<(), PostgresError> {
        const ACTION: &str = "wait until a standby has what was recovered";
        let (patience, timeout) = (self.timers().lease, self.settings.probe_timeout);
        let given_up = || {
            let problem = format!("PostgreSQL ended, or the lease of epoch {epoch} did");
            PostgresError::NotAccepting { action: ACTION, problem }
        };
        // How long recovery may take is the controller's to judge, as at every start; patience counts from its end.
        let mut recovered: Option<(Lsn, Moment)> = None;
        loop {
            let live = bounded(ACTION, timeout, self.postgres.observe(timeout)).await;
            if !self.is_admitting(epoch, postmaster) {
                return Err(given_up());
            }
            if let Ok(live) = live {
                // Nobody writes while it is closed, so the first position that is seen lies behind everything recovered.
                let (goal, _) = *recovered.get_or_insert((live.flush_lsn, self.now()));
                if names.iter().all(|name| has_flushed(&live, name, goal)) {
                    break;
                }
            }
            if recovered.is_some_and(|(_, at)| self.now().since(at) >= patience) {
                return Err(PostgresError::NoAnswer { action: ACTION, timeout: patience });
            }
            tokio::time::sleep(LOOK).await;
        }
        // No promotion meanwhile, and no other start whose closed door this would open.
        let one_at_a_time = tokio::time::timeout(patience, self.operating.lock()).await;
        let _one_at_a_time =
            one_at_a_time.map_err(|_busy| PostgresError::NoAnswer { action: ACTION, timeout: patience })?;
        let acknowledged = self.apply_assigned_names(epoch, patience.min(CHANGE_TIMEOUT)).await;
        if !self.is_admitting(epoch, postmaster) {
            return Err(given_up());
        }
        self.postgres.open_to_clients(CHANGE_TIMEOUT).await?;
        {
            let mut local = self.local();
            if local.postmaster != Some(postmaster) {
                return Err(given_up());
            }
            // Both at once: a report that shows it open without the acknowledgement would cost the ledger its standbys.
            if let Some((report, blocks_when_alone)) = acknowledged {
                local.acknowledge(report, blocks_when_alone);
            }
            local.opened();
        }
        tracing::warn!("the standbys have what was recovered after the crash: open to clients again");
        self.heartbeat_wanted.notify_one();
        self.observe_wanted.notify_one();
        self.assignment_wanted.notify_one();
        Ok(())
    }

    /// Has the names of the last assignment in force before anybody can commit. Without an answer the assignment's own loop does it.
    async fn apply_assigned_names(&self, epoch: Epoch, timeout: Duration) -> Option<(SynchronousReport, bool)> {
        let assignment = self.keeper.read(|memory| memory.assignment.clone()).filter(|last| last.epoch == epoch)?;
        let AssignedRole::Primary { synchronous, synchronous_number, block_when_alone } = assignment.role else {
            return None;
        };
        match self.postgres.apply_synchronous(&synchronous, synchronous_number, block_when_alone, timeout).await {
            Ok(report) => Some((report, block_when_alone)),
            Err(error) => {
                tracing::warn!(%error, number = %synchronous_number, "synchronous_standby_names is not acknowledged yet");
                None
            }
        }
    }
}

fn has_flushed(live: &LiveReport, name: &NodeName, goal: Lsn) -> bool {
    live.standbys.iter().any(|row| {
        row.node == name.as_str() && row.state == "streaming" && row.flush_lsn.is_some_and(|flushed| flushed >= goal)
    })
}
