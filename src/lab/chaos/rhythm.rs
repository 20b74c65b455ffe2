//! Faults with a rhythm of their own: a line that flaps, and restarts that go round the cluster as an operator would do them.
//!
//! What never enters: faults that begin, last and heal; those are `inject`'s.

use std::time::Duration;

use anyhow::Context as _;

use super::inject::{Scene, heal, line};
use crate::domain::clock::Moment;
use crate::lab::clock;
use crate::lab::layout::NodeLayout;
use crate::lab::network::{Direction, LinkState};
use crate::lab::process::{ProcessIdentity, postgres_family};
use crate::lab::scenario::wait_until;
use crate::lab::up::{Lab, redundancy};

/// Half of a flap.
const FLAP: Duration = Duration::from_secs(10);

/// One restart, and the way back to redundancy, take no longer.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);

/// Down and up, `count` times. The primary that it began with keeps flapping when another one has taken over.
pub(super) async fn flap(lab: &mut Lab, scene: &Scene, count: u32, at: &mut Moment) -> anyhow::Result<Moment> {
    *at = clock::now();
    for _ in 0..count {
        let mut undos = Vec::new();
        line(lab, scene.primary.name.as_str(), None, Direction::Both, LinkState::CUT, &mut undos).await?;
        tokio::time::sleep(FLAP).await;
        for undo in undos {
            heal(lab, undo).await?;
        }
        lab.reap();
        tokio::time::sleep(FLAP).await;
    }
    Ok(clock::now())
}

/// Standbys first, then a switchover, then the former primary; as docs/operations.md tells for a minor upgrade.
pub(super) async fn rolling_restart(lab: &mut Lab, scene: &Scene, at: &mut Moment) -> anyhow::Result<Moment> {
    *at = clock::now();
    for standby in &scene.standbys {
        restart(lab, standby).await?;
    }
    lab.controller.switchover().await?;
    let epoch = scene.before.epoch;
    wait_until(lab, clock::now().plus(RESTART_TIMEOUT), |status| match status.epoch > epoch {
        true => redundancy(status),
        false => Err(format!("still in epoch {epoch}")),
    })
    .await?;
    restart(lab, &scene.primary).await?;
    Ok(clock::now())
}

/// Fences a standby, which ends its PostgreSQL, lets it go, and waits until the cluster is whole with it.
async fn restart(lab: &mut Lab, node: &NodeLayout) -> anyhow::Result<()> {
    let (uid, data) = (lab.manifest.uid, node.data_directory());
    let postmaster =
        || -> Option<ProcessIdentity> { postgres_family(uid, &data).first().map(|process| process.identity) };
    let before = postmaster().with_context(|| format!("{} runs no PostgreSQL to restart", node.name))?;
    lab.controller.fence(&node.name).await?;
    wait_until(lab, clock::now().plus(RESTART_TIMEOUT), |_| match postmaster() {
        Some(running) if running == before => Err(format!("PostgreSQL of {} still runs", node.name)),
        _ => Ok(()),
    })
    .await?;
    lab.controller.unfence(&node.name).await?;
    wait_until(lab, clock::now().plus(RESTART_TIMEOUT), redundancy).await?;
    Ok(())
}
