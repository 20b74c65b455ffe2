//! May this node be granted a lease, and for how long? Rules 1, 3 and 4 of the design, for a controller that answers.
//!
//! When in doubt the answer is no: a lease that is not renewed costs an outage, one too many costs data.

use std::time::Duration;

use crate::domain::lease::Grant;
use crate::domain::operation::{Operation, OperationKind, StepName, StepState};
use crate::domain::policy::Policy;
use crate::domain::record::ClusterRecord;
use crate::domain::report::Report;

/// A grant for the node that reported, or `None`.
///
/// `swap_in_flight`: an epoch swap was begun and its outcome is unknown; nothing is granted in the old epoch meanwhile
/// (trace `no_grant_while_epoch_swap_in_flight`). `leads_for`: for how much longer this controller certainly leads; no grant
/// outlives that (trace `revoked_leader_grants_until_its_ttl`). `None`: it is the only one.
pub fn grant(
    record: &ClusterRecord,
    report: &Report,
    policy: &Policy,
    swap_in_flight: bool,
    leads_for: Option<Duration>,
) -> Option<Grant> {
    let timers = policy.timers_within(leads_for)?;
    let refused = refusal(record, report, policy, swap_in_flight).is_some();
    (!refused).then_some(Grant { epoch: record.epoch, number: record.number, timers })
}

/// Why the node that reported is granted nothing; `None` if nothing but the leadership's own end speaks against it.
pub fn refusal(record: &ClusterRecord, report: &Report, policy: &Policy, swap_in_flight: bool) -> Option<&'static str> {
    let standing = &report.standing;
    let guards = [
        (swap_in_flight, "the primary is being moved: nothing is granted in its epoch any more"),
        (report.cluster != record.cluster, "it belongs to another cluster"),
        (report.node != record.holder, "another node holds the epoch"),
        (standing.highest_epoch > record.epoch, "it knows a newer epoch than the store: the store is outdated"),
        (standing.highest_number > record.number, "it knows a newer record than the store: the store is outdated"),
        // A later leader waits for the longest lease that the record allows, not for ours.
        (
            !record.longest_wait.is_zero() && policy.timers.wait() > record.longest_wait,
            "the record does not allow leases as long as this controller's yet",
        ),
        // Final: this node is authorised again only in a newer epoch (trace `fence_confirmed_then_same_epoch_again`).
        (standing.fence_confirmed.is_some_and(|epoch| epoch >= record.epoch), "it confirmed its fence in this epoch"),
        // Nobody becomes primary who did not agree to this very epoch, on its own disk.
        (standing.consented != Some(record.epoch), "it has not consented to this epoch"),
        (standing.operator_fenced || record.fenced.contains(&report.node), "an operator fenced it"),
    ];
    guards.into_iter().find_map(|(refuses, why)| refuses.then_some(why))
}

/// True if the holder may have been renewed until the moment that it sent this report, by whomever: by its candidates, or alone.
/// That counts as a renewal by the leader that hears of it (rule 2, trace `growth_ack_while_solo_lease_runs`).
pub fn shows_renewal(record: &ClusterRecord, report: &Report) -> bool {
    report.node == record.holder && report.standing.lease_epoch == Some(record.epoch)
}

/// True from deciding to raise the epoch until the outcome is known: nothing is granted in the old one (rule 4b).
/// `moving`: the operation that moves the primary at the moment.
pub fn swap_in_flight(moving: Option<&Operation>) -> bool {
    let Some(operation) = moving else { return false };
    if operation.epoch_after.is_none() && matches!(operation.kind, OperationKind::Failover { .. }) {
        return true;
    }
    let open = |step| {
        operation
            .last(step)
            .is_some_and(|event| !matches!(event.state, StepState::Succeeded { .. } | StepState::Failed { .. }))
    };
    open(StepName::AdvanceEpoch) || open(StepName::Reinstate)
}
