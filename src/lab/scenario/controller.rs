//! Faults of the control plane: the controller dies, alone or with the primary, or cannot be reached.
//!
//! While it is away the primary goes on, because its standbys renew its lease: their agents' own count of that is the evidence.

use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::Signal;

use super::faults::{Half, RECOVERY_TIMEOUT, REPLACEMENT_TIMEOUT, kill_half, kill_primary};
use super::recovery::{wait_until_out_of_reach, wait_until_redundant};
use crate::api::wire::ClusterStatus;
use crate::domain::clock::Moment;
use crate::domain::operation::{Operation, OperationKind, OperationStatus, StepName};
use crate::lab::clock;
use crate::lab::control;
use crate::lab::layout::{CONTROLLER_HOST, NodeLayout};
use crate::lab::network::{self, Direction, LinkState, Order};
use crate::lab::process::ProcessIdentity;
use crate::lab::up::Lab;

/// How long a controller stays dead that died with the primary.
const AWAY_WITH_PRIMARY: Duration = Duration::from_secs(1);

/// Beyond two leases: this long no controller is there.
const AWAY_BEYOND: Duration = Duration::from_secs(2);

/// A lease is renewed six times while it would run; fewer than so many show that something is wrong.
const RENEWALS_A_LEASE_MIN: u64 = 2;

/// What is said between the controller and everybody else takes so long each way, so that a failover is seen under way.
const SLOW: Duration = Duration::from_millis(100);

/// Between two looks at an operation under way.
const LOOK: Duration = Duration::from_millis(5);

/// Steps in whose middle a controller may die, in their order.
pub(super) const STEPS: [StepName; 4] =
    [StepName::AdvanceEpoch, StepName::Freeze, StepName::Promote, StepName::Redirect];

/// SIGKILL, and away for longer than two leases. Returns how often the standbys renewed meanwhile.
pub(super) async fn kill(
    lab: &mut Lab,
    node: &NodeLayout,
    before: &ClusterStatus,
    at: &mut Moment,
) -> anyhow::Result<u64> {
    let controller = controller_process(lab)?;
    let earlier = renewals(node).await?;
    *at = clock::now();
    controller.signal(Signal::KILL);
    let counted = outlast(node, before, earlier).await;
    start_again(lab, controller).await?;
    counted
}

/// Cuts the links between the primary's host and the controller's. The controller must not lose sight of the primary.
pub(super) async fn cut_from_primary(
    lab: &mut Lab,
    node: &NodeLayout,
    before: &ClusterStatus,
    at: &mut Moment,
) -> anyhow::Result<u64> {
    let earlier = renewals(node).await?;
    let host = Some(node.name.to_string());
    *at = clock::now();
    order(lab, host.clone(), LinkState { cut: true, ..LinkState::default() }).await?;
    let counted = outlast(node, before, earlier).await;
    let shown = wait_until_out_of_reach(lab, &node.name, clock::now().plus(REPLACEMENT_TIMEOUT)).await;
    order(lab, host, LinkState::default()).await?;
    shown.context("the controller does not say that the standbys renew the primary's lease")?;
    counted
}

/// Cuts every link of the controller's host, and after two leases kills the primary's agent: the next one finds the lease with
/// the guard, and has no controller to ask.
pub(super) async fn cut_from_all(
    lab: &mut Lab,
    node: &NodeLayout,
    before: &ClusterStatus,
    at: &mut Moment,
) -> anyhow::Result<u64> {
    let earlier = renewals(node).await?;
    let mut killed_at = clock::now();
    *at = killed_at;
    order(lab, None, LinkState { cut: true, ..LinkState::default() }).await?;
    let counted = match outlast(node, before, earlier).await {
        Ok(counted) => match kill_half(lab, node, Half::Agent, &mut killed_at).await {
            // The next agent counts from nothing.
            Ok(()) => enough(renewals(node).await?, 1).map(|more| counted + more),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    order(lab, None, LinkState::default()).await?;
    counted
}

/// SIGKILL for the controller, and before it has heard, for the primary's PostgreSQL.
pub(super) async fn kill_with_primary(lab: &mut Lab, node: &NodeLayout, at: &mut Moment) -> anyhow::Result<()> {
    let controller = controller_process(lab)?;
    controller.signal(Signal::KILL);
    kill_primary(lab, node, at)?;
    tokio::time::sleep(AWAY_WITH_PRIMARY).await;
    start_again(lab, controller).await
}

/// SIGKILL for the controller while `step` of the failover is under way. The one that follows must complete that failover.
pub(super) async fn kill_during_failover(
    lab: &mut Lab,
    node: &NodeLayout,
    step: StepName,
    at: &mut Moment,
) -> anyhow::Result<()> {
    let controller = controller_process(lab)?;
    order(lab, None, LinkState { delay: SLOW, ..LinkState::default() }).await?;
    kill_primary(lab, node, at)?;
    let begun = wait_for_step(lab, step).await;
    controller.signal(Signal::KILL);
    let killed_at = clock::now();
    order(lab, None, LinkState::default()).await?;
    let begun = begun?;
    tokio::time::sleep(AWAY_WITH_PRIMARY).await;
    start_again(lab, controller).await?;
    let deadline = clock::now().plus(RECOVERY_TIMEOUT);
    let well = wait_until_redundant(lab, deadline).await;
    let operations = lab.controller.history().await?;
    let completed = operations.iter().any(|operation| {
        operation.id == begun.id
            && operation.status == OperationStatus::Succeeded
            && operation.ended_at.is_some_and(|ended| ended > killed_at)
    });
    if !completed {
        bail!("the failover in whose {} the controller died was not completed by the next one", step.label());
    }
    well.map(|_| ())
}

/// Waits until the failover under way has begun `step`.
async fn wait_for_step(lab: &mut Lab, step: StepName) -> anyhow::Result<Operation> {
    let deadline = clock::now().plus(RECOVERY_TIMEOUT);
    loop {
        lab.reap();
        let operations = lab.controller.status().await.map(|status| status.operations).unwrap_or_default();
        let is_there = |operation: &Operation| {
            matches!(operation.kind, OperationKind::Failover { .. }) && operation.last(step).is_some()
        };
        if let Some(operation) = operations.into_iter().find(is_there) {
            return Ok(operation);
        }
        if clock::now() > deadline {
            bail!("no failover was seen in its step {}", step.label());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits for longer than two leases. Returns how often the standbys renewed the lease of `node` meanwhile.
async fn outlast(node: &NodeLayout, before: &ClusterStatus, earlier: u64) -> anyhow::Result<u64> {
    let lease = Duration::from_secs_f64(before.timers.lease_seconds);
    tokio::time::sleep(lease * 2 + AWAY_BEYOND).await;
    enough(renewals(node).await?.saturating_sub(earlier), 2)
}

fn enough(counted: u64, leases: u64) -> anyhow::Result<u64> {
    if counted < leases * RENEWALS_A_LEASE_MIN {
        bail!("the standbys renewed the primary's lease only {counted} times while no controller answered");
    }
    Ok(counted)
}

/// How often standbys renewed the lease of `node`, by its agent's metrics.
async fn renewals(node: &NodeLayout) -> anyhow::Result<u64> {
    let page = control::text(&format!("http://{}/metrics", node.agent)).await?;
    count_in(&page).with_context(|| format!("the agent of {} counts no renewals by standbys", node.name))
}

fn count_in(page: &str) -> Option<u64> {
    let of_standbys =
        |line: &&str| line.starts_with("stormglass_lease_renewals_total{") && line.contains("by=\"standbys\"");
    page.lines().find(of_standbys)?.rsplit(' ').next()?.parse().ok()
}

/// Changes the links between the controller's host and `peer`, or everybody.
async fn order(lab: &Lab, peer: Option<String>, state: LinkState) -> anyhow::Result<()> {
    network::order(lab.layout(), &Order { host: CONTROLLER_HOST.to_owned(), peer, direction: Direction::Both, state })
        .await
        .map(|_| ())
}

pub(super) fn controller_process(lab: &Lab) -> anyhow::Result<ProcessIdentity> {
    lab.manifest.process("controller").and_then(|entry| entry.identity).context("no controller was started")
}

/// SIGKILL, and its store with it: the next one begins with nothing.
pub(super) async fn lose(lab: &mut Lab, former: ProcessIdentity) -> anyhow::Result<()> {
    former.signal(Signal::KILL);
    wait_until_gone(former).await?;
    let store = lab.layout().controller_directory().join("store");
    std::fs::remove_dir_all(&store).with_context(|| format!("remove {}", store.display()))?;
    lab.start_controller()
}

async fn start_again(lab: &mut Lab, former: ProcessIdentity) -> anyhow::Result<()> {
    wait_until_gone(former).await?;
    lab.start_controller()
}

async fn wait_until_gone(former: ProcessIdentity) -> anyhow::Result<()> {
    let deadline = clock::now().plus(REPLACEMENT_TIMEOUT);
    while former.is_alive() {
        if clock::now() > deadline {
            bail!("the controller survives SIGKILL");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_by_standbys_are_read_from_the_agents_metrics() {
        let page = "# TYPE stormglass_lease_renewals_total counter\n\
                    stormglass_lease_renewals_total{cluster=\"main\",node=\"n1\",by=\"controller\"} 41\n\
                    stormglass_lease_renewals_total{cluster=\"main\",node=\"n1\",by=\"standbys\"} 17\n";
        assert_eq!(count_in(page), Some(17));
        assert_eq!(count_in("stormglass_epoch 3\n"), None);
    }
}
