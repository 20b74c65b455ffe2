//! Waiting for the cluster to be well again, by the controller's word, with a deadline.

use std::time::Duration;

use anyhow::bail;

use crate::api::wire::{ClusterStatus, Health};
use crate::domain::clock::Moment;
use crate::domain::ids::NodeName;
use crate::lab::clock;
use crate::lab::up::{Lab, redundancy};

/// Between two questions.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Waits until the cluster is as redundant as it can be.
pub(super) async fn wait_until_redundant(lab: &mut Lab, deadline: Moment) -> anyhow::Result<ClusterStatus> {
    wait(lab, deadline, redundancy).await
}

/// Waits until the cluster is redundant in a later epoch than `epoch`.
pub(super) async fn wait_until_moved(lab: &mut Lab, epoch: u64, deadline: Moment) -> anyhow::Result<ClusterStatus> {
    wait(
        lab,
        deadline,
        move |status| {
            if status.epoch > epoch { redundancy(status) } else { Err(format!("still in epoch {epoch}")) }
        },
    )
    .await
}

/// Waits until somebody is the primary of a later epoch than `epoch`, redundant or not.
pub(super) async fn wait_until_promoted(lab: &mut Lab, epoch: u64, deadline: Moment) -> anyhow::Result<ClusterStatus> {
    wait(lab, deadline, move |status| match (&status.primary, status.epoch > epoch) {
        (Some(_), true) => Ok(()),
        _ => Err(format!("still no primary after epoch {epoch}")),
    })
    .await
}

/// Waits until the controller calls `primary` the primary that it cannot reach: only the standbys' word says that it lives.
pub(super) async fn wait_until_out_of_reach(
    lab: &mut Lab,
    primary: &NodeName,
    deadline: Moment,
) -> anyhow::Result<ClusterStatus> {
    wait(lab, deadline, |status| {
        let state = status.nodes.iter().find(|node| node.name == *primary).map(|node| node.state.as_str());
        match (status.primary.as_ref() == Some(primary), state, status.health) {
            (true, Some("unreachable"), Health::Degraded) => Ok(()),
            (_, state, health) => Err(format!("{primary} is {}, the cluster {}", state.unwrap_or("?"), health.words())),
        }
    })
    .await
}

/// Waits until `question` has no objection to the controller's status.
pub(in crate::lab) async fn wait(
    lab: &mut Lab,
    deadline: Moment,
    question: impl Fn(&ClusterStatus) -> Result<(), String>,
) -> anyhow::Result<ClusterStatus> {
    loop {
        // What a scenario killed must not stay a zombie.
        lab.reap();
        let missing = match lab.controller.status().await {
            Ok(status) => match question(&status) {
                Ok(()) => return Ok(status),
                Err(missing) => missing,
            },
            Err(error) => format!("{error:#}"),
        };
        if clock::now() > deadline {
            bail!("the cluster is not well again in time: {missing}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// True if `node` is the primary, or streams as a standby.
pub(super) fn serves(status: &ClusterStatus, node: &NodeName) -> bool {
    status.primary.as_ref() == Some(node)
        || status.nodes.iter().any(|one| one.name == *node && one.role == "standby" && one.state == "streaming")
}
