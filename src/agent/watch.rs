//! The postmaster's life as the agent sees it: found, started, ended.
//!
//! Its end is told by the kernel, not found by polling. A dead primary is fenced before anything else happens.

use std::sync::Arc;
use std::time::Duration;

use super::start::{Found, Role, StartAction, decide};
use super::{Agent, AgentError};
use crate::domain::epoch::Epoch;
use crate::ports::agent::HeldLease;
use crate::ports::postgres::{PostgresError, Presence, StartMode, Upstream};

/// A standby that ended so often in a row, without ever answering, is left down for a human.
const FAILED_STARTS_MAX: u32 = 5;

/// Left down, it is tried again this often: a disk that was full may have space again.
const LEFT_DOWN_PAUSE: Duration = Duration::from_secs(30);

/// Pause before the second start; doubled with each further one.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// How long a primary that was left running waits for a lease.
const ASK_PERIOD: Duration = Duration::from_secs(5);

impl Agent {
    /// Deals with what is there when the agent starts.
    pub(super) async fn begin(self: &Arc<Self>) -> Result<(), AgentError> {
        let presence = self.postgres.presence().await;
        let secured = match presence {
            Presence::NoData => Ok(()),
            _ => self.postgres.secure_configuration().await,
        };
        match secured {
            Ok(()) => {}
            // A sick disk must not keep the agent from watching over a PostgreSQL that runs.
            Err(error) if matches!(presence, Presence::Running { .. }) => {
                tracing::error!(%error, "PostgreSQL's configuration on disk is not secured: make its directory writable");
            }
            Err(error) => return Err(AgentError::Secure(error)),
        }
        self.refresh_control().await;
        let (guarded, fenced_by_guard) = self.guard.at_start();
        if let Some(epoch) = fenced_by_guard {
            self.local().leases.bar(epoch);
            self.keeper.change(|memory| memory.confirm_fence(epoch)).await?;
        }
        let action = self.decide(&presence, guarded);
        tracing::info!(?presence, ?action, "agent begins");
        self.act(action, &presence).await;
        // What a writer's host finds dead at start cannot write in that epoch again; to say so saves the wait for its lease.
        let (highest, was_holder) = self.keeper.read(|memory| (memory.highest_epoch, memory.was_holder()));
        let is_down = matches!(presence, Presence::Stopped | Presence::NoData);
        if is_down && was_holder && highest > Epoch(0) && self.local().postmaster.is_none() {
            self.local().leases.bar(highest);
            // Not here: the agent begins at once, and the confirmation may have to wait for a promise to an older holder.
            let agent = self.clone();
            tokio::spawn(async move { agent.fence_until_done(highest, "found dead at start").await });
        }
        Ok(())
    }

    fn decide(&self, presence: &Presence, guarded: Option<HeldLease>) -> StartAction {
        let (now, boot) = (self.now(), self.clock.boot());
        let control = self.local().control.clone();
        self.keeper
            .read(|memory| decide(&Found { memory, guarded, presence, control: control.as_ref(), now, boot: &boot }))
    }

    async fn act(self: &Arc<Self>, action: StartAction, presence: &Presence) {
        let postmaster = match presence {
            Presence::Running { postmaster } => Some(*postmaster),
            _ => None,
        };
        self.local().is_empty = *presence == Presence::NoData;
        match (action, postmaster) {
            (StartAction::AdoptPrimary { lease }, Some(postmaster)) => {
                self.adopt(postmaster, Some(Role::Primary));
                self.resume_lease(lease).await;
                self.resume_admission(lease.epoch).await;
            }
            (StartAction::AskForLease { epoch }, Some(postmaster)) => {
                if epoch.is_some() {
                    self.local().asking_until = Some(self.now().plus(ASK_PERIOD));
                }
                self.adopt(postmaster, Some(Role::Primary));
            }
            (StartAction::AdoptStandby, Some(postmaster)) => self.adopt(postmaster, Some(Role::Standby)),
            (StartAction::Fence { reason }, _) => {
                let highest = self.keeper.read(|memory| memory.highest_epoch);
                self.fence_until_done(highest, reason).await;
            }
            (StartAction::StartStandby, _) => self.start_standby().await,
            (StartAction::StayDown { reason }, _) => self.local().down_because = Some(reason.to_owned()),
            (_, None) => tracing::error!(?presence, "nothing runs that could be adopted"),
        }
    }

    async fn resume_lease(&self, held: HeldLease) {
        let timers = self.timers();
        let number = self.keeper.read(|memory| memory.highest_number);
        let lease = super::lease::Lease { epoch: held.epoch, number, deadline: held.deadline, timers };
        if let Err(error) = self.guard.hold(held).await {
            tracing::warn!(%error, "the guard does not watch over the lease yet");
        }
        self.local().leases.accept(lease);
        self.lease_changed.notify_one();
    }

    /// Watches a postmaster from now on.
    pub(super) fn adopt(self: &Arc<Self>, postmaster: i32, role: Option<Role>) {
        self.local().began(postmaster, role);
        self.observe_wanted.notify_one();
        let agent = self.clone();
        tokio::spawn(async move {
            agent.postgres.wait_for_exit(postmaster).await;
            agent.on_exit(postmaster).await;
        });
    }

    async fn on_exit(self: &Arc<Self>, postmaster: i32) {
        let (highest, lease_epoch) = (self.keeper.read(|memory| memory.highest_epoch), self.local().leases.current());
        let epoch = lease_epoch.map_or(highest, |lease| lease.epoch);
        let names = self.names_to_wait_for(epoch);
        let (role, stopping) = {
            let mut local = self.local();
            if local.postmaster != Some(postmaster) {
                return;
            }
            let before = (local.role, local.stopping);
            // One that ends again while it recovers is not started a third time.
            let is_left = local.stopping || local.leaving;
            let may_restart = names.is_some() && !local.closed && !is_left && local.role == Some(Role::Primary);
            local.ended();
            (local.stopping, local.closed) = (before.1, may_restart);
            before
        };
        if stopping {
            return;
        }
        let was_primary = role != Some(Role::Standby);
        if was_primary && highest > Epoch(0) {
            match self.restart_after_crash(epoch, names).await {
                Ok(()) => {}
                Err(reason) => self.fence_until_done(epoch, &reason).await,
            }
            return;
        }
        tracing::warn!(postmaster, "PostgreSQL ended by itself");
        self.heartbeat_wanted.notify_one();
        self.refresh_control().await;
        if was_primary {
            self.local().down_because = Some("it ended by itself and was not managed".to_owned());
        } else {
            self.restart_standby().await;
        }
    }

    async fn restart_standby(self: &Arc<Self>) {
        let failures = {
            let mut local = self.local();
            local.start_failed(self.now());
            local.failed_starts
        };
        if failures > FAILED_STARTS_MAX {
            let problem = format!(
                "it ended {FAILED_STARTS_MAX} times in a row without answering: read its log; it is tried again every {LEFT_DOWN_PAUSE:?}"
            );
            tracing::error!(problem, "the standby is left down");
            self.local().down_because = Some(problem);
            self.heartbeat_wanted.notify_one();
            return;
        }
        if failures > 1 {
            tokio::time::sleep(RESTART_PAUSE * 2_u32.pow(failures - 2)).await;
        }
        let _one_at_a_time = self.operating.lock().await;
        let presence = self.postgres.presence().await;
        if self.local().postmaster.is_none() && self.decide(&presence, None) == StartAction::StartStandby {
            self.start_standby().await;
        }
    }

    /// True unless it failed too often, and too lately.
    pub(super) fn is_start_due(&self) -> bool {
        let local = self.local();
        local.failed_starts < FAILED_STARTS_MAX || self.now().since(local.failed_at) >= LEFT_DOWN_PAUSE
    }

    /// Starts the data as a standby of the last assigned primary.
    pub(super) async fn start_standby(self: &Arc<Self>) {
        let upstream = self.assigned_upstream();
        if let Err(error) = self.start_postgres(&StartMode::Standby { upstream }).await {
            tracing::error!(%error, "the standby does not start");
            let now = self.now();
            let mut local = self.local();
            local.start_failed(now);
            local.down_because = Some(error.to_string());
        }
    }

    /// Starts PostgreSQL and watches it. A primary is started only while its epoch is open to this node.
    pub(super) async fn start_postgres(self: &Arc<Self>, mode: &StartMode) -> Result<(), PostgresError> {
        let _a_fence_waits = self.starting.lock().await;
        let role = match mode {
            StartMode::Primary { .. } | StartMode::Recovering { .. } => {
                if self.local().leases.valid(self.now()).is_none() {
                    let problem = "the lease ended before the start: promote again in a newer epoch".to_owned();
                    return Err(PostgresError::Failed { action: "start PostgreSQL", problem });
                }
                Role::Primary
            }
            StartMode::Standby { .. } => Role::Standby,
        };
        let postmaster = self.postgres.start(mode).await?;
        self.adopt(postmaster, Some(role));
        self.local().closed = matches!(mode, StartMode::Recovering { .. });
        if let StartMode::Standby { upstream } = mode {
            self.local().following = upstream.clone();
        }
        self.heartbeat_wanted.notify_one();
        Ok(())
    }

    /// Whom the last assignment wants to be followed.
    pub(super) fn assigned_upstream(&self) -> Option<Upstream> {
        self.keeper.read(|memory| {
            let (node, address) = memory.assigned_primary()?;
            Some(Upstream { node: node.clone(), address: address.clone() })
        })
    }

    /// Reads `pg_controldata` again.
    pub(super) async fn refresh_control(&self) {
        match self.postgres.control_data().await {
            Ok(control) => {
                let mut local = self.local();
                local.control = control;
                local.damage = None;
            }
            Err(error) => {
                tracing::warn!(%error, "pg_control cannot be read");
                let mut local = self.local();
                local.control = None;
                local.damage = match error {
                    PostgresError::Damaged { problem, .. } => Some(problem),
                    _ => None,
                };
            }
        }
        self.heartbeat_wanted.notify_one();
    }

    /// Finds a PostgreSQL that somebody else started, or data that somebody else put there.
    pub(super) async fn presence_loop(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(self.renewal_interval()).await;
            let Ok(_one_at_a_time) = self.operating.try_lock() else { continue };
            if self.local().postmaster.is_some() {
                continue;
            }
            let presence = self.postgres.presence().await;
            match presence {
                Presence::Running { .. } | Presence::Orphans => {
                    self.refresh_control().await;
                    let action = self.decide(&presence, None);
                    if !matches!(action, StartAction::StayDown { .. }) {
                        tracing::warn!(?presence, ?action, "PostgreSQL was started by somebody else");
                        self.act(action, &presence).await;
                    }
                }
                Presence::NoData | Presence::Stopped => {
                    let empty = presence == Presence::NoData;
                    if std::mem::replace(&mut self.local().is_empty, empty) != empty {
                        self.refresh_control().await;
                    }
                }
            }
        }
    }
}
