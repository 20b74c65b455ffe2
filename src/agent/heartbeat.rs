//! Heartbeats: what the node says, how often, and what it takes from the answers.
//!
//! One goes out every renewal interval and at once on every change. A slow controller delays none of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Agent, membership, promises};
use crate::domain::clock::Moment;
use crate::domain::command::{AssignedRole, Assignment, HeartbeatReply};
use crate::domain::epoch::Epoch;
use crate::domain::lease::Grant;
use crate::domain::report::Renewal;
use crate::ports::agent::OwnLease;

/// Before the first grant.
const FIRST_INTERVAL: Duration = Duration::from_millis(500);

/// So many may wait for an answer at a time; further changes are told together once one came back.
const IN_FLIGHT_MAX: usize = 4;

/// The same while a lease is overdue: what is lost on the way is not waited for.
const IN_FLIGHT_OVERDUE_MAX: usize = 12;

/// By how much heartbeats come faster while the lease is overdue.
const HASTE: u32 = 4;

/// A heartbeat that says good-bye is not waited for longer.
const LAST_TIMEOUT: Duration = Duration::from_secs(1);

impl Agent {
    /// Sends for as long as the agent runs.
    pub(super) async fn heartbeat_loop(self: &Arc<Self>) {
        let in_flight = Arc::new(AtomicUsize::new(0));
        loop {
            let now = self.now();
            self.local().turned_at = now;
            let is_overdue = self.is_overdue(now);
            let most = if is_overdue { IN_FLIGHT_OVERDUE_MAX } else { IN_FLIGHT_MAX };
            if in_flight.load(Ordering::Acquire) < most {
                in_flight.fetch_add(1, Ordering::AcqRel);
                let (agent, in_flight) = (self.clone(), in_flight.clone());
                tokio::spawn(async move {
                    agent.send_heartbeat().await;
                    if in_flight.fetch_sub(1, Ordering::AcqRel) == most {
                        agent.heartbeat_wanted.notify_one();
                    }
                });
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(self.renewal_interval() / if is_overdue { HASTE } else { 1 }) => {}
                () = self.heartbeat_wanted.notified() => {}
            }
        }
    }

    /// Time between two heartbeats.
    pub(super) fn renewal_interval(&self) -> Duration {
        self.keeper.read(|memory| memory.timers).map_or(FIRST_INTERVAL, |timers| timers.renewal_interval)
    }

    /// True if the node holds a lease and the last heartbeat but one renewed nothing. Where packets are lost, one more attempt
    /// helps more than the patience of the one before, which TCP spends on waiting longer and longer.
    pub(super) fn is_overdue(&self, now: Moment) -> bool {
        let lease = self.local().leases.valid(now);
        lease.is_some_and(|lease| now.since(lease.renewed_at()) > lease.timers.renewal_interval * 3 / 2)
    }

    /// Tells controllers how the node was left.
    pub(super) async fn send_last_heartbeat(&self) {
        let report = self.report();
        if let Err(error) = self.controllers.heartbeat(&report, LAST_TIMEOUT).await {
            tracing::warn!(%error, "no controller heard that the service was stopped");
        }
    }

    async fn send_heartbeat(self: &Arc<Self>) {
        let report = self.report();
        let sent_at = report.sent_at;
        match self.controllers.heartbeat(&report, self.timers().request_timeout).await {
            Ok(reply) => self.take_reply(reply, sent_at).await,
            Err(error) => tracing::debug!(%error, "heartbeat without an answer"),
        }
    }

    async fn take_reply(self: &Arc<Self>, reply: HeartbeatReply, sent_at: Moment) {
        // A leader that grants nothing has its reasons, and nobody goes round it; one that knows less than this node has none.
        let has_authority = self.keeper.read(|memory| membership::has_authority(memory, &reply));
        let pause_changed = {
            let mut local = self.local();
            local.controller_seen = Some(self.clock.wall());
            if has_authority {
                local.controller_answered_at = Some(self.now());
            }
            local.primary_position = reply.primary_flush_lsn.map(|lsn| (lsn, sent_at)).or(local.primary_position);
            std::mem::replace(&mut local.paused, reply.paused) != reply.paused
        };
        if pause_changed {
            self.guard.paused(reply.paused);
        }
        // The renewal of a known epoch waits for nothing, least of all for the disk that an assignment is stored on.
        let (grant, early) = (reply.grant, self.keeper.read(|memory| memory.highest_epoch));
        if let Some(grant) = grant.filter(|grant| grant.epoch == early) {
            self.take_grant(&grant, sent_at, Renewal::Controller).await;
        }
        if let Some(assignment) = reply.assignment {
            self.begin_first_epoch(&assignment, grant.as_ref(), sent_at).await;
            if let Err(refused) = self.take_assignment(assignment).await {
                tracing::debug!(%refused, "assignment not taken");
            }
        }
        if let Some(grant) = grant.filter(|grant| grant.epoch != early) {
            self.take_grant(&grant, sent_at, Renewal::Controller).await;
        }
    }

    /// A running primary that nobody ever managed becomes the holder of the first epoch it is told, without a promotion.
    async fn begin_first_epoch(&self, assignment: &Assignment, grant: Option<&Grant>, sent_at: Moment) {
        let Some(grant) = grant else { return };
        let is_first = matches!(assignment.role, AssignedRole::Primary { .. })
            && assignment.cluster == self.section.cluster
            && self.is_own_data(assignment.system_identifier)
            && grant.epoch == assignment.epoch
            && self.keeper.read(|memory| memory.highest_epoch == Epoch(0))
            && self.local().is_primary();
        if !is_first {
            return;
        }
        let deadline = sent_at.plus(grant.timers.lease);
        self.local().asking_until = Some(deadline);
        let boot = self.clock.boot();
        let stored = self.keeper.change(|memory| {
            memory.highest_epoch = grant.epoch;
            memory.timers = Some(grant.timers);
            memory.lease = Some(OwnLease { epoch: grant.epoch, deadline, boot: boot.clone() });
        });
        match stored.await {
            Ok(()) => tracing::info!(epoch = %grant.epoch, "this primary is managed from now on"),
            Err(error) => tracing::error!(%error, "the first epoch cannot be stored"),
        }
    }

    /// Renews the lease: the guard first, then the own book, then, when there is time, the file.
    pub(super) async fn take_grant(&self, grant: &Grant, sent_at: Moment, by: Renewal) {
        let (highest, entitled, stored) = self
            .keeper
            .read(|memory| (memory.highest_epoch, promises::may_renew(memory, grant.epoch), memory.lease.clone()));
        let runs = {
            let local = self.local();
            local.is_primary() && !local.stopping || local.leases.current().is_some_and(|now| now.epoch == grant.epoch)
        };
        if !entitled || !runs {
            tracing::debug!(epoch = %grant.epoch, "a grant that this node may not use");
            return;
        }
        let weighed = self.local().leases.weigh(grant, sent_at, highest, self.now());
        let lease = match weighed {
            Ok(lease) => lease,
            Err(refused) => return tracing::debug!(%refused, "grant not used"),
        };
        if let Err(error) = self.guard.hold(lease.held()).await {
            return tracing::warn!(%error, "the lease is not renewed: nobody would watch over it");
        }
        // A fence is under way. The guard watches on until that has ended, and is told so by it.
        if !self.local().leases.accept(lease) {
            return;
        }
        let leaving = {
            let mut local = self.local();
            local.asking_until = None;
            local.leaving
        };
        self.lease_changed.notify_one();
        self.note_renewal(by, lease.epoch);
        let boot = self.clock.boot();
        let is_stale = stored.is_none_or(|stored| {
            stored.epoch != lease.epoch || lease.deadline.since(stored.deadline) > lease.timers.lease / 3
        });
        // A lease on disk would make the next agent of a primary that is left running fence it.
        if is_stale && !leaving {
            self.keeper.change_soon(|memory| {
                memory.timers = Some(lease.timers);
                if !memory.is_fenced_in(lease.epoch) {
                    memory.lease = Some(OwnLease { epoch: lease.epoch, deadline: lease.deadline, boot });
                }
                memory.left_running = None;
            });
        }
    }
}
