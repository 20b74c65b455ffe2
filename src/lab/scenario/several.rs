//! Faults of a lab with several controllers: the leader dies, is paused, dies with the primary; etcd loses its majority.
//!
//! Who leads is taken from the controllers' own answers.

use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::Signal;

use super::faults::{RECOVERY_TIMEOUT, kill_primary};
use crate::api::wire::Problem;
use crate::domain::clock::Moment;
use crate::lab::clock;
use crate::lab::layout::{NodeLayout, url};
use crate::lab::process::ProcessIdentity;
use crate::lab::up::Lab;

/// Longer than the leadership of a controller that etcd left, and two leases after it.
const WITHOUT_MAJORITY: Duration = Duration::from_secs(12);
/// What is watched after a fault that nobody may notice: long enough for a lease to run out.
const WATCH: Duration = Duration::from_secs(4);
/// Between two questions.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ControlFault {
    KillLeader,
    PauseLeader,
    LoseMajority,
    KillLeaderAndPrimary,
}

/// All, in the order in which they are run.
pub(super) const ALL: [ControlFault; 4] = [
    ControlFault::KillLeader,
    ControlFault::PauseLeader,
    ControlFault::LoseMajority,
    ControlFault::KillLeaderAndPrimary,
];

impl ControlFault {
    /// Name in the report.
    pub(super) fn label(self) -> &'static str {
        match self {
            ControlFault::KillLeader => "kill-leader",
            ControlFault::PauseLeader => "pause-leader",
            ControlFault::LoseMajority => "lose-etcd-majority",
            ControlFault::KillLeaderAndPrimary => "kill-leader-and-primary",
        }
    }

    /// For people.
    pub(super) fn words(self) -> &'static str {
        match self {
            ControlFault::KillLeader => "SIGKILL for the controller that leads",
            ControlFault::PauseLeader => "SIGSTOP for the controller that leads, until after another one was elected",
            ControlFault::LoseMajority => "SIGKILL for two of three members of etcd",
            ControlFault::KillLeaderAndPrimary => {
                "SIGKILL for the controller that leads and for the primary's PostgreSQL"
            }
        }
    }

    /// True if another epoch must follow.
    pub(super) fn moves_primary(self) -> bool {
        self == ControlFault::KillLeaderAndPrimary
    }

    /// Does it, and puts right what it broke of the control plane.
    pub(super) async fn inject(self, lab: &mut Lab, node: &NodeLayout, at: &mut Moment) -> anyhow::Result<()> {
        match self {
            ControlFault::LoseMajority => lose_majority(lab, at).await,
            ControlFault::PauseLeader => pause_leader(lab, at).await,
            ControlFault::KillLeader | ControlFault::KillLeaderAndPrimary => {
                let leader = leader(lab).await?;
                *at = clock::now();
                leader.process.signal(Signal::KILL);
                if self.moves_primary() {
                    kill_primary(lab, node, at)?;
                }
                another_leads(lab, &leader).await?;
                wait_until_gone(lab, leader.process).await?;
                lab.start_one_controller(leader.number)?;
                if !self.moves_primary() {
                    tokio::time::sleep(WATCH).await;
                }
                Ok(())
            }
        }
    }
}

/// The controller that leads.
struct Leading {
    number: usize,
    name: String,
    process: ProcessIdentity,
}

async fn leader(lab: &mut Lab) -> anyhow::Result<Leading> {
    let status = lab.controller.status().await?;
    let leader = status.leader.context("the lab has one controller: give --controllers 3")?;
    let layout = lab.layout();
    let number = layout
        .controllers()
        .position(|controller| url(controller) == leader.url)
        .with_context(|| format!("{} is no controller of this lab", leader.url))?;
    let name = layout.controller_name(number);
    let process = lab.manifest.process(&name).and_then(|entry| entry.identity);
    Ok(Leading { number, name: leader.name, process: process.with_context(|| format!("{name} was not started"))? })
}

/// Waits until a controller other than `former` answers as the leader.
async fn another_leads(lab: &mut Lab, former: &Leading) -> anyhow::Result<()> {
    let deadline = clock::now().plus(RECOVERY_TIMEOUT);
    loop {
        lab.reap();
        let leader = lab.controller.status().await.ok().and_then(|status| status.leader);
        if leader.is_some_and(|leader| leader.name != former.name) {
            return Ok(());
        }
        if clock::now() > deadline {
            bail!("no other controller leads instead of {}", former.name);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn wait_until_gone(lab: &mut Lab, process: ProcessIdentity) -> anyhow::Result<()> {
    let deadline = clock::now().plus(RECOVERY_TIMEOUT);
    while process.is_alive() {
        lab.reap();
        if clock::now() > deadline {
            bail!("a process survives SIGKILL");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// The thawed controller must find that it does not lead any more.
async fn pause_leader(lab: &mut Lab, at: &mut Moment) -> anyhow::Result<()> {
    let former = leader(lab).await?;
    *at = clock::now();
    former.process.signal(Signal::STOP);
    let replaced = another_leads(lab, &former).await;
    former.process.signal(Signal::CONT);
    replaced?;
    let address = lab.layout().controllers().nth(former.number).map(url).context("the controller has an address")?;
    let token = std::fs::read_to_string(lab.layout().secret("viewer")).context("read the viewer's token")?;
    let question = format!("{address}/api/v1/clusters/{}", lab.layout().cluster);
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(3)).build()?;
    let deadline = clock::now().plus(RECOVERY_TIMEOUT);
    loop {
        let answer = http.get(&question).bearer_auth(token.trim()).send().await;
        let problem = match answer {
            Ok(answer) => answer.json::<Problem>().await.ok(),
            Err(_) => None,
        };
        if problem.is_some_and(|problem| problem.is_not_the_leader()) {
            break;
        }
        if clock::now() > deadline {
            bail!("the controller that was paused does not say that another one leads");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    tokio::time::sleep(WATCH).await;
    Ok(())
}

/// While nobody can be elected, the standbys renew the primary's lease.
async fn lose_majority(lab: &mut Lab, at: &mut Moment) -> anyhow::Result<()> {
    let members: Vec<String> = lab.layout().etcd.iter().map(|member| member.name.clone()).collect();
    let majority = &members[..members.len() / 2 + 1];
    *at = clock::now();
    let mut killed = Vec::new();
    for name in majority {
        let process = lab.manifest.process(name).and_then(|entry| entry.identity);
        let process = process.with_context(|| format!("{name} was not started"))?;
        process.signal(Signal::KILL);
        killed.push(process);
    }
    tokio::time::sleep(WITHOUT_MAJORITY).await;
    let led = lab.controller.status().await.is_ok();
    for process in killed {
        wait_until_gone(lab, process).await?;
    }
    for name in majority {
        lab.start_etcd(name)?;
    }
    if led {
        bail!("a controller still leads although etcd has no majority");
    }
    Ok(())
}
