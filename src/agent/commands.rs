//! Commands of controllers: refused, found, or run.
//!
//! Promises are on disk before the answer; an epoch that was left is never written in again.

use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use super::assignment::CHANGE_TIMEOUT;
use super::local::Frozen;
use super::observe::bounded;
use super::promises;
use super::start::Role;
use super::tasks::{Entry, Progress};
use crate::domain::clock::Moment;
use crate::domain::command::{Command, CommandEnvelope, CommandOutput, CommandState};
use crate::domain::epoch::Epoch;
use crate::domain::lease::Grant;
use crate::domain::lsn::Lsn;
use crate::ports::agent::OwnLease;
use crate::ports::postgres::{PostgresError, Presence, StartMode};

/// A checkpoint of a large, dirty cache takes minutes.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(600);

/// Crash recovery of a stopped former primary takes as long as its WAL since the last checkpoint.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(600);

/// A standby leaves recovery within this, unless it replays a large backlog.
const PROMOTE_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks at a PostgreSQL that is about to accept writes.
const LOOK: Duration = Duration::from_millis(5);

/// To make slots for the peers takes as long as a few flushes.
const RESERVE_TIMEOUT: Duration = Duration::from_secs(5);
/// But a promotion waits no longer for them: writers wait for it.
const RESERVED_WITHIN: Duration = Duration::from_millis(50);
/// A frozen standby follows again after this if the operation came to nothing.
const FROZEN_FOR: Duration = Duration::from_secs(15);

/// How a command did not succeed.
pub(super) enum Trouble {
    /// A guard of the agent.
    Refused(String),
    /// Tried, or impossible.
    Failed(String),
}

impl From<PostgresError> for Trouble {
    fn from(error: PostgresError) -> Self {
        Trouble::Failed(error.to_string())
    }
}

impl From<crate::ports::agent::MemoryError> for Trouble {
    fn from(error: crate::ports::agent::MemoryError) -> Self {
        Trouble::Failed(error.to_string())
    }
}

pub(super) type Outcome = Result<CommandOutput, Trouble>;

impl Agent {
    /// Begins or finds a command and waits up to `wait`.
    pub(super) async fn run_command(self: &Arc<Self>, envelope: CommandEnvelope, wait: Duration) -> CommandState {
        if let Some(reason) = self.refusal(&envelope) {
            return CommandState::Refused { reason };
        }
        let key = envelope.task_key();
        if let Some(state) = self.keeper.read(|memory| memory.result(&key).cloned()) {
            return state;
        }
        let state = match self.tasks.enter(&key) {
            Entry::Known(state) => state,
            Entry::New(progress, state) => {
                let agent = self.clone();
                tokio::spawn(async move { agent.carry_out(envelope, progress).await });
                state
            }
        };
        self.tasks.wait(&key, state, wait).await
    }

    fn refusal(&self, envelope: &CommandEnvelope) -> Option<String> {
        if envelope.cluster != self.section.cluster {
            return Some(format!(
                "the command is for cluster {}, this agent serves {}",
                envelope.cluster, self.section.cluster
            ));
        }
        if matches!(envelope.command, Command::VerifyWrite { .. }) {
            return Some("this agent has no proxy: send verify_write to a proxy host".to_owned());
        }
        self.keeper.read(|memory| promises::outdated_because(memory, envelope.epoch))
    }

    async fn carry_out(self: Arc<Self>, envelope: CommandEnvelope, progress: Progress) {
        let key = envelope.task_key();
        tracing::info!(task = key, command = ?envelope.command, "command begins");
        let outcome = self.execute(&envelope, &progress).await;
        let state = match outcome {
            Ok(output) => CommandState::Succeeded { output },
            Err(Trouble::Failed(error)) => CommandState::Failed { error },
            Err(Trouble::Refused(reason)) => CommandState::Refused { reason },
        };
        if matches!(state, CommandState::Succeeded { .. }) {
            self.keeper.change_soon(|memory| memory.remember_result(key.clone(), state.clone()));
        }
        tracing::info!(task = key, ?state, "command ended");
        progress.end(state);
        self.heartbeat_wanted.notify_one();
        // What an assignment asked for meanwhile had to wait for this command.
        self.assignment_wanted.notify_one();
    }

    async fn execute(self: &Arc<Self>, envelope: &CommandEnvelope, progress: &Progress) -> Outcome {
        let epoch = envelope.epoch;
        if let Command::Fence = envelope.command {
            // Waits for nothing, not even for the file: the fence itself stores the epoch.
            progress.tell("killing PostgreSQL");
            self.fence(epoch, "a controller asked for it").await.map_err(Trouble::Failed)?;
            return Ok(CommandOutput::default());
        }
        if let Command::Checkpoint = envelope.command {
            // It may take minutes and changes nothing: no assignment waits for it.
            progress.tell("writing a checkpoint");
            let redo = self.postgres.checkpoint(CHECKPOINT_TIMEOUT).await?;
            return Ok(CommandOutput { lsn: Some(redo), ..CommandOutput::default() });
        }
        // What takes hours, and leaves the live PostgreSQL alone.
        if let Some(outcome) = self.repository_command(envelope, progress).await {
            return outcome;
        }
        let _one_at_a_time = self.operating.lock().await;
        let known = self.keeper.read(|memory| memory.highest_epoch);
        if epoch > known {
            if known == Epoch(0) {
                self.spare_consenting_primary();
            }
            self.keeper.change(|memory| memory.highest_epoch = memory.highest_epoch.max(epoch)).await?;
            self.lease_changed.notify_one();
        }
        match &envelope.command {
            Command::SetAside => {
                progress.tell("putting the data aside");
                self.set_aside(&envelope.operation).await
            }
            Command::AdoptCopy => {
                progress.tell("putting the restored data in place");
                self.adopt_copy(&envelope.operation).await
            }
            Command::Fence
            | Command::Checkpoint
            | Command::VerifyWrite { .. }
            | Command::PrepareRepository
            | Command::Backup { .. }
            | Command::VerifyBackup { .. }
            | Command::MarkLedger
            | Command::CheckRestore { .. }
            | Command::RestoreCopy { .. }
            | Command::RecoverCopy { .. }
            | Command::CheckCopy { .. }
            | Command::RemoveCopy { .. } => Err(Trouble::Refused("not a command for this place".to_owned())),
            Command::Demote { timeout } => {
                progress.tell("fast shutdown");
                self.demote(epoch, *timeout).await
            }
            Command::Freeze { consent_to, fence_confirmed } => {
                progress.tell("stopping the WAL receiver");
                self.freeze(*consent_to, *fence_confirmed).await
            }
            Command::Promote { grant, counts_from, required_lsn, block_when_alone } => {
                progress.tell("promoting");
                self.promote(epoch, grant, *required_lsn, *counts_from, *block_when_alone).await
            }
            Command::Rewind { primary, primary_address } => {
                progress.tell("rewinding");
                self.rewind(primary, primary_address).await
            }
            Command::Reclone { primary, primary_address } => {
                self.reclone(primary, primary_address, progress.clone()).await
            }
            Command::StartStandby { primary, primary_address } => {
                progress.tell("starting as a standby");
                self.start_as_standby(epoch, primary, primary_address).await
            }
        }
    }

    async fn demote(self: &Arc<Self>, epoch: Epoch, timeout: Duration) -> Outcome {
        let runs = {
            let mut local = self.local();
            local.stopping = local.postmaster.is_some();
            local.stopping
        };
        let clean = if runs { self.postgres.stop_fast(timeout).await } else { Ok(()) };
        if let Err(error) = clean {
            tracing::warn!(%error, "fast shutdown did not end in time: killing PostgreSQL");
            self.fence(epoch, "its fast shutdown took too long").await.map_err(Trouble::Failed)?;
            return Err(Trouble::Failed(format!("{error}; PostgreSQL was killed and is fenced in epoch {epoch}")));
        }
        self.local().ended();
        let (fenced, control) = tokio::join!(self.fence(epoch, "demoted"), self.postgres.control_data());
        fenced.map_err(Trouble::Failed)?;
        let control =
            control?.ok_or_else(|| Trouble::Failed("there is no pg_control after the shutdown".to_owned()))?;
        if !control.is_shut_down() {
            return Err(Trouble::Failed(format!(
                "PostgreSQL is fenced in epoch {epoch}, but did not shut down cleanly: pg_control says {:?}",
                control.cluster_state
            )));
        }
        let lsn = Some(control.checkpoint);
        self.local().control = Some(control);
        Ok(CommandOutput { lsn, note: None })
    }

    async fn freeze(self: &Arc<Self>, consent_to: Option<Epoch>, fence_confirmed: Option<Epoch>) -> Outcome {
        if let Some(epoch) = consent_to {
            self.outlive_promises(epoch, fence_confirmed).await;
        }
        if let Some(epoch) = consent_to
            && let Some(reason) = self.keeper.read(|memory| promises::no_consent_because(memory, epoch))
        {
            return Err(Trouble::Refused(reason));
        }
        if consent_to.is_some() {
            // Also with a lease: a store that was made anew gives the primary its next epoch while it writes.
            self.spare_consenting_primary();
            self.begin_to_reserve_slots();
        }
        let (lsn, consented) = tokio::join!(self.stop_receiving(), self.consent(consent_to));
        consented?;
        Ok(CommandOutput { lsn: Some(lsn?), note: None })
    }

    /// What the peers will need of this node's WAL is kept from now on, if it is a standby that may be promoted in a moment. Without it
    /// they need a new copy where a rewind would have done, which is no reason to keep writers waiting for long.
    fn begin_to_reserve_slots(self: &Arc<Self>) {
        let is_standby = {
            let local = self.local();
            local.role == Some(Role::Standby) && local.postmaster.is_some()
        };
        let peers = self.keeper.read(|memory| memory.assignment.as_ref().map(|assignment| assignment.peers.clone()));
        let Some(peers) = peers.filter(|_| is_standby) else { return };
        let agent = self.clone();
        let reserving = tokio::spawn(async move {
            if let Err(error) = agent.postgres.reserve_slots(&peers, RESERVE_TIMEOUT).await {
                tracing::warn!(%error, "what the peers need to be rewound may be removed by the promotion");
            }
        });
        self.local().reserving = Some(reserving);
    }

    /// Slots that are made after the promotion's checkpoint has begun keep nothing that was before it.
    async fn slots_reserved(&self) {
        let reserving = self.local().reserving.take();
        let Some(reserving) = reserving else { return };
        if tokio::time::timeout(RESERVED_WITHIN, reserving).await.is_err() {
            tracing::warn!("promotes without slots for the peers: what they need to be rewound may be removed");
        }
    }

    /// A primary that nobody ever managed, or that consents to an epoch of its own, goes on writing until that epoch begins:
    /// nobody else writes, and nobody else can be given an epoch before this node confirms a fence.
    pub(super) fn spare_consenting_primary(&self) {
        let timers = self.timers();
        let until = self.now().plus(timers.promise() + timers.lease);
        let mut local = self.local();
        if local.is_primary() {
            local.asking_until = Some(until);
        }
    }

    /// Waits until nothing that was promised to the holder of an older epoch binds any more; what a lost memory had promised has run
    /// out one promise after it was lost, or after the host's boot. The epoch was stored before, so nothing is promised meanwhile.
    async fn outlive_promises(&self, epoch: Epoch, fence_confirmed: Option<Epoch>) {
        let (boot, promise) = (self.clock.boot(), self.timers().promise());
        loop {
            let now = self.now();
            let left = self.keeper.read(|memory| {
                let forgotten = promises::consent_waits(memory, now, &boot, promise);
                forgotten.max(promises::promise_waits(memory, epoch, fence_confirmed, now, &boot))
            });
            if left.is_zero() {
                return;
            }
            tracing::info!(?left, "consent waits for a promise to run out");
            tokio::time::sleep(left).await;
        }
    }

    async fn consent(&self, consent_to: Option<Epoch>) -> Result<(), Trouble> {
        let Some(epoch) = consent_to else { return Ok(()) };
        let boot = self.clock.boot();
        self.keeper.change(|memory| promises::consent(memory, epoch, &boot)).await?;
        Ok(())
    }

    async fn stop_receiving(&self) -> Result<Lsn, Trouble> {
        let (postmaster, role, is_spared) = {
            let local = self.local();
            (local.postmaster, local.role, local.asking_until.is_some_and(|until| self.now() < until))
        };
        if postmaster.is_none() {
            let control = self.postgres.control_data().await?;
            let control = control.ok_or_else(|| Trouble::Failed("there is no data: reclone the node".to_owned()))?;
            return Ok(control.checkpoint);
        }
        if role == Some(Role::Primary) && is_spared {
            let timeout = self.settings.probe_timeout;
            let live = bounded("observe PostgreSQL", timeout, self.postgres.observe(timeout)).await?;
            return Ok(live.flush_lsn);
        }
        if role == Some(Role::Primary) {
            return Err(Trouble::Failed("PostgreSQL runs as a primary: there is no WAL receiver to stop".to_owned()));
        }
        let (epoch, number) = self.keeper.read(|memory| (memory.highest_epoch, memory.highest_number));
        {
            let mut local = self.local();
            local.frozen = Some(Frozen { number, epoch, until: self.now().plus(FROZEN_FOR) });
            local.following = None;
        }
        Ok(self.postgres.follow(None, CHANGE_TIMEOUT).await?)
    }

    async fn promote(
        self: &Arc<Self>,
        epoch: Epoch,
        grant: &Grant,
        required: Option<Lsn>,
        counts_from: Moment,
        block_when_alone: bool,
    ) -> Outcome {
        let boot = self.clock.boot();
        if let Some(refusal) = self.keeper.read(|memory| promises::no_promotion_because(memory, epoch, grant, &boot)) {
            return Err(Trouble::Refused(refusal));
        }
        let presence = self.postgres.presence().await;
        let is_running = matches!(presence, Presence::Running { .. });
        if is_running && self.local().closed {
            let problem =
                "PostgreSQL recovers from a crash and is closed to clients: promote once it is open or fenced";
            return Err(Trouble::Failed(problem.to_owned()));
        }
        match presence {
            Presence::Running { .. } => self.check_received(required).await?,
            Presence::Stopped => {}
            Presence::NoData | Presence::Orphans => {
                return Err(Trouble::Failed(format!("PostgreSQL is not there to be promoted: {presence:?}")));
            }
        }
        self.slots_reserved().await;
        self.take_lease(grant, counts_from).await?;
        let writable = if is_running {
            self.promote_running(epoch, block_when_alone).await
        } else {
            self.promote_stopped(epoch, block_when_alone).await
        };
        let lsn = match writable {
            Ok(lsn) => lsn,
            Err(error) => {
                // It may have left recovery already: nothing must write that nobody knows of.
                self.fence_until_done(epoch, "its promotion failed").await;
                return Err(Trouble::Failed(format!("{error}; the node is fenced in epoch {epoch}")));
            }
        };
        self.local().frozen = None;
        self.heartbeat_wanted.notify_one();
        Ok(CommandOutput { lsn: Some(lsn), note: None })
    }

    async fn check_received(&self, required: Option<Lsn>) -> Result<(), Trouble> {
        let Some(required) = required else { return Ok(()) };
        let timeout = self.settings.probe_timeout;
        let live = bounded("observe PostgreSQL", timeout, self.postgres.observe(timeout)).await?;
        if live.flush_lsn < required {
            return Err(Trouble::Failed(format!(
                "the standby received up to {}, and {required} is required: it would lose commits",
                live.flush_lsn
            )));
        }
        Ok(())
    }

    /// The lease, watched over by the guard, before anything can write.
    async fn take_lease(&self, grant: &Grant, counts_from: Moment) -> Result<(), Trouble> {
        let weighed = self.local().leases.weigh(grant, counts_from, grant.epoch, self.now());
        let lease = weighed.map_err(|refused| Trouble::Failed(refused.to_string()))?;
        let boot = self.clock.boot();
        self.keeper.change_soon(|memory| {
            memory.timers = Some(grant.timers);
            memory.lease = Some(OwnLease { epoch: lease.epoch, deadline: lease.deadline, boot });
        });
        self.guard.hold(lease.held()).await.map_err(|error| Trouble::Failed(error.to_string()))?;
        // As at a renewal: whoever fences gives the lease back to the guard once nothing runs any more.
        if !self.local().leases.accept(lease) {
            return Err(Trouble::Refused(format!("the node was fenced in epoch {} meanwhile", lease.epoch)));
        }
        self.lease_changed.notify_one();
        Ok(())
    }

    async fn promote_running(self: &Arc<Self>, epoch: Epoch, block_when_alone: bool) -> Result<Lsn, PostgresError> {
        let lsn = {
            let _a_fence_waits = self.starting.lock().await;
            self.still_entitled(epoch)?;
            self.postgres.promote(block_when_alone, PROMOTE_TIMEOUT).await?
        };
        {
            let mut local = self.local();
            local.role = Some(Role::Primary);
            local.following = None;
        }
        self.await_first_write(PROMOTE_TIMEOUT).await?;
        Ok(lsn)
    }

    /// A stopped standby is started as one and promoted: started without `standby.signal` it would write on the timeline
    /// that it followed, and nobody could tell the two histories apart.
    async fn promote_stopped(self: &Arc<Self>, epoch: Epoch, block_when_alone: bool) -> Result<Lsn, PostgresError> {
        let control = self.postgres.control_data().await?;
        let was_standby = control.is_some_and(|control| {
            matches!(control.cluster_state.as_str(), "in archive recovery" | "shut down in recovery")
        });
        if !was_standby {
            return self.start_primary(block_when_alone).await;
        }
        self.start_postgres(&StartMode::Standby { upstream: None }).await?;
        self.await_connections(RECOVERY_TIMEOUT).await?;
        self.promote_running(epoch, block_when_alone).await
    }

    /// A fence may have come between taking the lease and this moment: what it confirmed must stay true. Asked under the
    /// lock that a fence waits for.
    fn still_entitled(&self, epoch: Epoch) -> Result<(), PostgresError> {
        let is_held = self.local().leases.valid(self.now()).is_some_and(|lease| lease.epoch == epoch);
        if is_held {
            return Ok(());
        }
        let problem = format!("the node was fenced in epoch {epoch}, or its lease ended, before it was promoted");
        Err(PostgresError::Failed { action: "promote", problem })
    }

    async fn await_connections(&self, within: Duration) -> Result<(), PostgresError> {
        let timeout = self.settings.probe_timeout;
        let end = self.now().plus(within);
        loop {
            let connected = bounded("connect", timeout, self.postgres.probe_connect(timeout)).await;
            if connected.is_ok() || self.now() >= end || self.local().postmaster.is_none() {
                return connected;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn start_primary(self: &Arc<Self>, block_when_alone: bool) -> Result<Lsn, PostgresError> {
        // Nobody is synchronous at the start of an epoch; the assignment that follows names them.
        let mode = StartMode::Primary { synchronous: std::collections::BTreeSet::new(), block_when_alone };
        self.start_postgres(&mode).await?;
        self.await_first_write(RECOVERY_TIMEOUT).await?;
        let timeout = self.settings.probe_timeout;
        Ok(bounded("observe PostgreSQL", timeout, self.postgres.observe(timeout)).await?.flush_lsn)
    }

    /// Returns when the first write was flushed, with the facts that a controller waits for.
    async fn await_first_write(self: &Arc<Self>, within: Duration) -> Result<(), PostgresError> {
        let timeout = self.settings.probe_timeout;
        let end = self.now().plus(within);
        loop {
            let began = self.now();
            let written = bounded("write and flush", timeout, self.postgres.probe_write(timeout)).await;
            let postmaster = self.local().postmaster;
            if postmaster.is_none() {
                let problem = "PostgreSQL ended before its first write: read its log".to_owned();
                return Err(PostgresError::Failed { action: "promote", problem });
            }
            if written.is_ok() {
                let observed = bounded("observe PostgreSQL", timeout, self.postgres.observe(timeout)).await;
                let mut local = self.local();
                local.write.record(&written, began, self.now());
                if local.postmaster == postmaster && observed.is_ok() {
                    local.observed(observed, self.now());
                }
                return Ok(());
            }
            if self.now() >= end {
                return written;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
