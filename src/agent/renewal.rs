//! Renewal of the lease when no controller answers, and the promises given to a holder in that situation (design, rule 2).
//!
//! What may be promised and what counts as a renewal is said in [`promises`]; here it is asked, stored and answered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::Agent;
use super::lease::Lease;
use super::promises::{self, Round};
use crate::domain::clock::Moment;
use crate::domain::command::{PromiseReply, PromiseRequest};
use crate::domain::ids::SystemIdentifier;
use crate::domain::lease::LeaseTimers;

impl Agent {
    /// Renews without a controller for as long as none grants, while the node holds a lease.
    pub(super) async fn renewal_loop(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(self.renewal_interval()).await;
            let now = self.now();
            let (lease, ungranted_since) = {
                let local = self.local();
                (local.leases.valid(now), local.controller_granted_at)
            };
            if let Some(lease) = lease
                && now.since(ungranted_since) >= patience(&lease.timers)
            {
                self.renew_without_controller(&lease, now).await;
            }
        }
    }

    async fn renew_without_controller(self: &Arc<Self>, lease: &Lease, now: Moment) {
        let Some(mut round) = self.keeper.read(|memory| Round::begin(memory, lease, now)) else { return };
        let Some(system_identifier) = self.own_system_identifier() else { return };
        let request = PromiseRequest {
            cluster: self.section.cluster.clone(),
            system_identifier,
            epoch: lease.epoch,
            holder: self.settings.node.clone(),
            timers: lease.timers,
        };
        let timeout = lease.timers.request_timeout.min(lease.fence_at().since(now));
        let renewers = round.renewers().clone();
        let mut answers: FuturesUnordered<_> = renewers
            .iter()
            .map(|(peer, agent)| {
                let request = &request;
                async move { (peer, self.peers.promise(peer, agent, request, timeout).await) }
            })
            .collect();
        while let Some((peer, answer)) = answers.next().await {
            match answer {
                Ok(PromiseReply::Promised) => round.promised(peer),
                Ok(PromiseReply::Refused { reason }) => {
                    tracing::warn!(%peer, reason, "a standby does not renew the lease");
                }
                Err(error) => tracing::warn!(%error, "a standby does not renew the lease"),
            }
        }
        let current = self.local().leases.valid(self.now());
        let Some(current) = current else { return };
        if let Some(grant) = self.keeper.read(|memory| round.grant(memory, &current)) {
            tracing::debug!(epoch = %grant.epoch, renewers = renewers.len(), "lease renewed without a controller");
            self.take_grant(&grant, round.begun_at()).await;
        }
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
        // Judged again on what is written: a consent may have come first.
        let stored = self.keeper.change(|memory| {
            if promises::no_promise_because(memory, request, now, &boot).is_none() {
                promises::promise(memory, request.epoch, &request.timers, now, &boot);
            }
        });
        if let Err(error) = stored.await {
            return PromiseReply::Refused { reason: error.to_string() };
        }
        match refused() {
            Some(reason) => PromiseReply::Refused { reason },
            None => PromiseReply::Promised,
        }
    }

    fn own_system_identifier(&self) -> Option<SystemIdentifier> {
        let local = self.local();
        let live = local.live.as_ref().map(|live| live.system_identifier);
        let stored = local.control.as_ref().map(|control| control.system_identifier);
        live.or(stored).or_else(|| {
            self.keeper.read(|memory| memory.assignment.as_ref().map(|assignment| assignment.system_identifier))
        })
    }
}

/// How long no controller may have granted anything before the standbys are asked: one heartbeat is lost by then, and there is time for
/// more than one round before PostgreSQL must be stopped.
fn patience(timers: &LeaseTimers) -> Duration {
    timers.renewal_interval + timers.request_timeout / 2
}
