//! Assignments: what the node shall be, taken from heartbeats and pushes, and put in force until it is so.
//!
//! Level-triggered: an older number is ignored, the same one again is harmless.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::local::Local;
use super::start::Role;
use super::{Agent, promises};
use crate::api::agent::AssignmentRefused;
use crate::domain::clock::Moment;
use crate::domain::command::{AssignedRole, Assignment};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::{NodeName, SystemIdentifier};
use crate::ports::postgres::{Presence, Upstream};

/// What is not in force yet is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// Slots are looked after this often, besides every change of the peers.
const SLOTS_INTERVAL: Duration = Duration::from_secs(30);

/// For one change of a running PostgreSQL.
pub(super) const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);

impl Agent {
    /// Stores an assignment, if it is for this node and not older than what is known.
    pub(super) async fn take_assignment(self: &Arc<Self>, assignment: Assignment) -> Result<(), AssignmentRefused> {
        if assignment.cluster != self.section.cluster {
            return Err(AssignmentRefused(format!(
                "the assignment is for cluster {}, this agent serves {}",
                assignment.cluster, self.section.cluster
            )));
        }
        if !self.is_own_data(assignment.system_identifier) {
            return Err(AssignmentRefused(format!(
                "the assignment is about data with system identifier {}, which this node's is not",
                assignment.system_identifier
            )));
        }
        let (refused, known) = self.keeper.read(|memory| {
            let refused = promises::assignment_refused_because(memory, assignment.epoch, assignment.number);
            (refused, memory.assignment.clone())
        });
        if let Some(refused) = refused {
            return Err(AssignmentRefused(refused));
        }
        if known.as_ref() == Some(&assignment) {
            return Ok(());
        }
        if self.keeper.read(|memory| memory.highest_epoch) == Epoch(0)
            && matches!(assignment.role, AssignedRole::Primary { .. })
        {
            self.spare_consenting_primary();
        }
        let stored = self.keeper.change(|memory| {
            memory.highest_epoch = memory.highest_epoch.max(assignment.epoch);
            memory.highest_number = memory.highest_number.max(assignment.number);
            // Changes made meanwhile may have brought a newer one.
            if memory.assignment.as_ref().is_none_or(|last| last.number <= assignment.number) {
                memory.operator_fenced = assignment.role == AssignedRole::Fenced;
                memory.assignment = Some(assignment.clone());
            }
        });
        stored.await.map_err(|error| AssignmentRefused(error.to_string()))?;
        self.assignment_wanted.notify_one();
        self.lease_changed.notify_one();
        if matches!(assignment.role, AssignedRole::Primary { .. }) {
            // Controllers wait for the acknowledgement.
            self.heartbeat_wanted.notify_one();
        }
        Ok(())
    }

    /// True unless the node has data of another cluster.
    pub(super) fn is_own_data(&self, identifier: SystemIdentifier) -> bool {
        self.system_identifier().is_none_or(|own| own == identifier)
    }

    /// Which cluster's data the node has, as PostgreSQL or `pg_control` says.
    pub(super) fn system_identifier(&self) -> Option<SystemIdentifier> {
        let local = self.local();
        let live = local.live.as_ref().map(|live| live.system_identifier);
        live.or_else(|| local.control.as_ref().map(|control| control.system_identifier))
    }

    /// Puts the last assignment in force, and tends the slots.
    pub(super) async fn assignment_loop(self: &Arc<Self>) {
        let mut slots: Option<(BTreeSet<NodeName>, Moment, Option<Role>)> = None;
        loop {
            if let Some(assignment) = self.keeper.read(|memory| memory.assignment.clone()) {
                self.put_in_force(&assignment).await;
                self.tend_slots(&assignment.peers, &mut slots).await;
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(RETRY) => {}
                () = self.assignment_wanted.notified() => {}
            }
        }
    }

    async fn put_in_force(self: &Arc<Self>, assignment: &Assignment) {
        if assignment.role == AssignedRole::Fenced {
            // Also what runs as a standby: a fence that an operator asked for waits for nothing.
            if self.local().postmaster.is_some() {
                let epoch = self.keeper.read(|memory| memory.highest_epoch);
                self.fence_until_done(epoch, "an operator fenced the node").await;
            }
            return;
        }
        let Ok(_one_at_a_time) = self.operating.try_lock() else { return };
        match &assignment.role {
            AssignedRole::Standby { primary, primary_address } => {
                let upstream = Upstream { node: primary.clone(), address: primary_address.clone() };
                self.follow(assignment, upstream).await;
            }
            AssignedRole::Primary { synchronous, synchronous_number, block_when_alone } => {
                self.apply_synchronous(synchronous, *synchronous_number, *block_when_alone).await;
            }
            AssignedRole::Fenced => {}
        }
    }

    async fn follow(self: &Arc<Self>, assignment: &Assignment, upstream: Upstream) {
        let now = self.now();
        let (runs, due) = {
            let mut local = self.local();
            if local.frozen.is_some_and(|frozen| {
                now >= frozen.until || assignment.epoch > frozen.epoch || assignment.number > frozen.number
            }) {
                local.frozen = None;
            }
            (local.postmaster.is_some(), is_follow_due(&local, &upstream))
        };
        if !runs {
            let presence = self.postgres.presence().await;
            if presence == Presence::Stopped && self.may_start_standby() {
                self.start_standby().await;
            }
            return;
        }
        // A consent given for an epoch stops the receiver until that epoch's own assignment says whom to follow.
        let consented = self.keeper.read(|memory| memory.consented);
        if !due || consented.is_some_and(|consented| assignment.epoch < consented) {
            return;
        }
        match self.postgres.follow(Some(&upstream), CHANGE_TIMEOUT).await {
            Ok(_) => {
                tracing::info!(primary = %upstream.node, address = %upstream.address, "following");
                self.local().following = Some(upstream);
                self.observe_wanted.notify_one();
            }
            Err(error) => tracing::warn!(%error, primary = %upstream.node, "cannot follow yet"),
        }
    }

    fn may_start_standby(&self) -> bool {
        let is_standby_data = self.local().control.as_ref().map(super::start::role) == Some(Role::Standby);
        let forbidden = self.keeper.read(|memory| memory.operator_fenced || memory.half_rejoined);
        is_standby_data && !forbidden && self.is_start_due()
    }

    async fn apply_synchronous(
        self: &Arc<Self>,
        names: &BTreeSet<NodeName>,
        number: RecordNumber,
        block_when_alone: bool,
    ) {
        let due = {
            let local = self.local();
            let acknowledged = local.synchronous.as_ref();
            local.is_primary()
                && !local.stopping
                && !local.closed
                && local.live.as_ref().is_some_and(|live| !live.in_recovery)
                && local.leases.valid(self.now()).is_some()
                && acknowledged.is_none_or(|last| {
                    last.number != number || !last.names.iter().eq(names) || local.blocks_when_alone != block_when_alone
                })
        };
        if !due {
            return;
        }
        match self.postgres.apply_synchronous(names, number, block_when_alone, CHANGE_TIMEOUT).await {
            Ok(report) => {
                self.local().acknowledge(report, block_when_alone);
                self.heartbeat_wanted.notify_one();
            }
            Err(error) => tracing::warn!(%error, %number, "synchronous_standby_names is not in force yet"),
        }
    }

    async fn tend_slots(
        &self,
        peers: &BTreeSet<NodeName>,
        done: &mut Option<(BTreeSet<NodeName>, Moment, Option<Role>)>,
    ) {
        let (role, answers) = {
            let local = self.local();
            // Slots of a candidate were made for what it is about to become.
            (local.role, local.live.is_some() && !local.stopping && local.frozen.is_none())
        };
        let is_done = done.as_ref().is_some_and(|(tended, at, as_role)| {
            tended == peers && *as_role == role && self.now().since(*at) < SLOTS_INTERVAL
        });
        if !answers || is_done {
            return;
        }
        match self.postgres.tend_slots(peers, CHANGE_TIMEOUT).await {
            Ok(()) => *done = Some((peers.clone(), self.now(), role)),
            Err(error) => tracing::warn!(%error, "replication slots are not as they should be"),
        }
    }
}

/// True if the standby runs, is not frozen, and does not follow `upstream` yet.
fn is_follow_due(local: &Local, upstream: &Upstream) -> bool {
    let streams_from_it = local
        .live
        .as_ref()
        .and_then(|live| live.receiver.as_ref())
        .is_some_and(|receiver| receiver.streaming && receiver.sender.as_ref() == Some(&upstream.address));
    local.role == Some(Role::Standby)
        && !local.stopping
        && local.frozen.is_none()
        && local.live.is_some()
        && local.following.as_ref() != Some(upstream)
        && !(local.following.is_none() && streams_from_it)
}
