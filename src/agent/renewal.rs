//! Renewal of the lease when no controller answers, and the promises given to a holder in that situation (design, rule 2).
//!
//! Who must promise is said in [`membership`], what may be promised in [`promises`]; here it is asked, stored, answered, and told
//! to people, once and not in every round.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::Agent;
use super::lease::Lease;
use super::membership::{self, Round};
use super::promises;
use crate::domain::clock::Moment;
use crate::domain::command::{PromiseReply, PromiseRequest};
use crate::domain::epoch::Epoch;
use crate::domain::ids::SystemIdentifier;
use crate::domain::report::Renewal;

/// A round that waits for a standby holds up no other one; more than so many would be asking in vain.
const ROUNDS_MAX: usize = 8;

/// By how much rounds follow each other faster than heartbeats: all must answer each, and packets get lost.
const HASTE: u32 = 2;

impl Agent {
    /// Renews without a controller for as long as none grants, while the node holds a lease.
    pub(super) async fn renewal_loop(self: &Arc<Self>) {
        let under_way = Arc::new(AtomicUsize::new(0));
        loop {
            let interval = self.renewal_interval();
            let pause = match self.due(self.now()) {
                Some((lease, Duration::ZERO)) => {
                    if under_way.load(Ordering::Acquire) < ROUNDS_MAX {
                        under_way.fetch_add(1, Ordering::AcqRel);
                        let (agent, under_way) = (self.clone(), under_way.clone());
                        tokio::spawn(async move {
                            agent.renew_without_controller(&lease).await;
                            under_way.fetch_sub(1, Ordering::AcqRel);
                        });
                    }
                    interval / HASTE
                }
                Some((_, left)) => left.min(interval),
                None => interval,
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// The lease to be renewed without a controller, and in how long at the earliest.
    fn due(&self, now: Moment) -> Option<(Lease, Duration)> {
        let local = self.local();
        // Whoever has begun to stop PostgreSQL needs no more time than there is.
        let lease = local.leases.valid(now).filter(|_| !local.stopping)?;
        // Nobody has answered an agent that took over a moment ago: its lease tells when somebody answered the one before.
        let heard = local.controller_answered_at.unwrap_or(lease.renewed_at());
        Some((lease, membership::patience(&lease.timers).saturating_sub(now.since(heard))))
    }

    async fn renew_without_controller(self: &Arc<Self>, lease: &Lease) {
        let now = self.now();
        let Some(mut round) = self.keeper.read(|memory| Round::begin(memory, lease, now)) else {
            return self.note_trouble(lease, "nobody else may renew the lease by what this node was told last");
        };
        let Some(system_identifier) = self.own_system_identifier() else {
            return self.note_trouble(lease, "the node does not know whose data it has");
        };
        let timeout = lease.timers.request_timeout.min(lease.fence_at().since(now));
        let renewers = round.renewers().clone();
        let mut answers: FuturesUnordered<_> = renewers
            .iter()
            .map(|(standby, agent)| {
                let request = PromiseRequest {
                    cluster: self.section.cluster.clone(),
                    system_identifier,
                    epoch: round.epoch(),
                    holder: self.settings.node.clone(),
                    standby: standby.clone(),
                    timers: round.timers(),
                };
                async move { (standby, self.peers.promise(standby, agent, &request, timeout).await) }
            })
            .collect();
        while let Some((standby, answer)) = answers.next().await {
            match answer {
                Ok(PromiseReply::Promised) => round.promised(standby),
                Ok(PromiseReply::Refused { reason }) => {
                    self.note_trouble(lease, &format!("{standby} does not renew it: {reason}"));
                }
                Err(error) => self.note_trouble(lease, &error.to_string()),
            }
        }
        let current = {
            let local = self.local();
            // A controller that has answered meanwhile granted, or withheld, with better reasons than this round.
            let is_silent = local.controller_answered_at.is_none_or(|at| at < round.begun_at());
            local.leases.valid(self.now()).filter(|_| !local.stopping && is_silent)
        };
        let Some(current) = current else { return };
        if let Some(grant) = self.keeper.read(|memory| round.grant(memory, &current)) {
            let by = if renewers.is_empty() { Renewal::Alone } else { Renewal::Standbys };
            self.take_grant(&grant, round.begun_at(), by).await;
        }
    }

    /// The lease was renewed: counts it, and says so when somebody else renewed it before.
    pub(super) fn note_renewal(&self, by: Renewal, epoch: Epoch) {
        let (before, was_trouble) = {
            let mut local = self.local();
            let renewals = &mut local.renewals;
            *renewals.counts.entry(by).or_default() += 1;
            (renewals.last.replace(by), std::mem::take(&mut renewals.trouble_told))
        };
        let is_new = before != Some(by);
        match by {
            Renewal::Controller if was_trouble || is_new && before.is_some() => {
                tracing::info!(%epoch, "a controller answers again and renews the lease");
            }
            Renewal::Standbys if is_new => {
                tracing::warn!(%epoch, "no controller answers: the standbys renew the lease");
            }
            Renewal::Alone if is_new => {
                tracing::warn!(%epoch, "no controller answers: this primary, which has no eligible standby, renews its lease alone");
            }
            Renewal::Standbys | Renewal::Alone if was_trouble => {
                tracing::info!(%epoch, "the lease is renewed again without a controller");
            }
            _ => {}
        }
    }

    /// A round came to nothing. The first of a row is told, unless the lease was renewed meanwhile.
    fn note_trouble(&self, lease: &Lease, problem: &str) {
        let now = self.now();
        let left = {
            let mut local = self.local();
            let Some(current) = local.leases.valid(now).filter(|current| current.deadline <= lease.deadline) else {
                return;
            };
            if std::mem::replace(&mut local.renewals.trouble_told, true) {
                return;
            }
            current.fence_at().since(now)
        };
        tracing::warn!(
            epoch = %lease.epoch, problem, stops_in_seconds = left.as_secs_f64(),
            "no controller answers, and the lease is not renewed without one"
        );
    }

    /// Promises a holder not to be promoted, or says why not. The promise is on disk before the answer.
    pub(super) async fn give_promise(&self, request: &PromiseRequest) -> PromiseReply {
        let (now, boot) = (self.now(), self.clock.boot());
        if let Err(contradiction) = request.timers.check() {
            return PromiseReply::Refused { reason: contradiction.to_string() };
        }
        let refused = || self.keeper.read(|memory| promises::no_promise_because(memory, request, now, &boot));
        if let Some(reason) = refused() {
            return PromiseReply::Refused { reason };
        }
        let was_bound = self.keeper.read(|memory| promises::promised(memory, now, &boot)).is_some();
        // Judged again on what is written: a consent may have come first.
        let stored = self.keeper.change(|memory| {
            if promises::no_promise_because(memory, request, now, &boot).is_none() {
                promises::promise(memory, request.epoch, &request.timers, now, &boot);
            }
        });
        if let Err(error) = stored.await {
            return PromiseReply::Refused { reason: error.to_string() };
        }
        if let Some(reason) = refused() {
            return PromiseReply::Refused { reason };
        }
        if !was_bound {
            tracing::info!(
                holder = %request.holder, epoch = %request.epoch,
                "no controller answers the primary: promised not to be promoted while its lease runs"
            );
            // A controller that hears this node and not the primary learns that the primary lives.
            self.heartbeat_wanted.notify_one();
        }
        PromiseReply::Promised
    }

    /// What the last assignment was about stands in for a PostgreSQL that has not answered this agent yet.
    fn own_system_identifier(&self) -> Option<SystemIdentifier> {
        let assigned = || self.keeper.read(|memory| memory.assignment.as_ref().map(|last| last.system_identifier));
        self.system_identifier().or_else(assigned)
    }
}

#[cfg(test)]
mod tests;
