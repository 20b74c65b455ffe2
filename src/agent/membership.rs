//! Whose promises renew the lease of a holder that no controller answers, and whether all of them came (design, rule 2).
//!
//! Pure, so that the exploration of the protocol runs these very rules. No clock, no disk, no network enters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::lease::Lease;
use super::promises::{assignment_refused_because, may_renew};
use crate::domain::clock::Moment;
use crate::domain::command::{AssignedRole, HeartbeatReply};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::NodeName;
use crate::domain::lease::{Grant, LeaseTimers};
use crate::ports::agent::Memory;

/// Whose promises the holder of `epoch` needs to renew without a controller, and the number of the record that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// `None`: the epoch is so new that its holder was told of no record in it; nobody is eligible then.
    pub number: Option<RecordNumber>,
    /// Base URLs of their agents by name. Empty: the holder renews alone.
    pub renewers: BTreeMap<NodeName, String>,
}

/// The membership that the node has on disk as holder of `epoch`; `None` if only a controller may renew.
pub fn membership(memory: &Memory, epoch: Epoch) -> Option<Membership> {
    let last = memory.assignment.as_ref()?;
    // A controller that says nothing of renewers calls a lease expired without asking for an acknowledgement.
    let renewers = last.renewers.clone()?;
    match &last.role {
        AssignedRole::Primary { .. } if last.epoch == epoch => Some(Membership { number: Some(last.number), renewers }),
        // Nobody was eligible when the epoch began, and nobody is before the holder acknowledged a record of it.
        _ if last.epoch < epoch => Some(Membership { number: None, renewers: BTreeMap::new() }),
        _ => None,
    }
}

/// True if the answer to a heartbeat comes from a controller that knows at least what this node knows. One whose store is older,
/// or empty, grants nothing, and must not keep the node from renewing without it.
pub fn has_authority(memory: &Memory, reply: &HeartbeatReply) -> bool {
    reply.assignment.as_ref().is_some_and(|told| assignment_refused_because(memory, told.epoch, told.number).is_none())
}

/// How long no controller may have answered before the standbys are asked: one heartbeat is lost by then, and several rounds can
/// begin before PostgreSQL must be stopped.
pub fn patience(timers: &LeaseTimers) -> Duration {
    timers.renewal_interval + timers.request_timeout / 2
}

/// One attempt to renew the lease without a controller: every renewer must promise (trace `any_one_candidate_renews`), under the
/// membership with which it began (trace `peer_round_begun_under_old_membership`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    epoch: Epoch,
    begun_at: Moment,
    timers: LeaseTimers,
    membership: Membership,
    waits_for: BTreeSet<NodeName>,
}

impl Round {
    /// Begins to renew `lease`, if the node may renew it without a controller at all.
    pub fn begin(memory: &Memory, lease: &Lease, now: Moment) -> Option<Self> {
        if lease.epoch != memory.highest_epoch || !may_renew(memory, lease.epoch) || memory.operator_fenced {
            return None;
        }
        let membership = membership(memory, lease.epoch)?;
        let waits_for = membership.renewers.keys().cloned().collect();
        Some(Self { epoch: lease.epoch, begun_at: now, timers: lease.timers, membership, waits_for })
    }

    /// Whom to ask, and where.
    pub fn renewers(&self) -> &BTreeMap<NodeName, String> {
        &self.membership.renewers
    }

    /// The epoch that it renews in.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The moment that its grant counts from: before anybody was asked.
    pub fn begun_at(&self) -> Moment {
        self.begun_at
    }

    /// The timers that are asked for, and granted: a promise binds no longer than it was asked for.
    pub fn timers(&self) -> LeaseTimers {
        self.timers
    }

    /// `renewer` promised.
    pub fn promised(&mut self, renewer: &NodeName) {
        self.waits_for.remove(renewer);
    }

    /// The renewal, once everybody promised; nothing if the membership has changed since. `lease`: the one held now.
    pub fn grant(&self, memory: &Memory, lease: &Lease) -> Option<Grant> {
        let stands = self.waits_for.is_empty()
            && lease.epoch == self.epoch
            && memory.highest_epoch == self.epoch
            && membership(memory, self.epoch).as_ref() == Some(&self.membership);
        // The number shows that no controller's grant told of a newer record, which may name further renewers.
        let number = self.membership.number.unwrap_or(lease.number);
        stands.then_some(Grant { epoch: self.epoch, number, timers: self.timers })
    }
}

#[cfg(test)]
mod tests;
