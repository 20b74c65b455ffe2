//! The faults: what is done to the lab, and the wait until it is well again.
//!
//! A signal goes to exactly the processes that were found, by pid and start time.

use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::Signal;

use super::ladder::{LadderFault, REPLACEMENT_TIMEOUT as REPLACEMENT_PATIENCE};
use super::recovery::{wait_until_moved, wait_until_promoted, wait_until_redundant};
use super::several::ControlFault;
use super::{Injected, controller, site};
use crate::api::wire::ClusterStatus;
use crate::domain::clock::Moment;
use crate::domain::operation::StepName;
use crate::lab::client::{self, Client, Session};
use crate::lab::clock;
use crate::lab::layout::NodeLayout;
use crate::lab::namespaces::OUTSIDE;
use crate::lab::network::{self, Direction, LinkState, Order};
use crate::lab::process::{self, Process, ProcessIdentity, postgres_family};
use crate::lab::progress::Step;
use crate::lab::up::{Lab, agent_family};
use crate::lab::volume;

/// The way back to redundancy, with a rewind or a new clone of a small database, is over by then.
pub(super) const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// After the failover, before stopped processes go on: they find a world that has moved on.
pub(super) const THAW_AFTER: Duration = Duration::from_secs(1);

/// A killed agent or guard is replaced by its other half by then.
pub(super) const REPLACEMENT_TIMEOUT: Duration = Duration::from_secs(15);

/// What is watched after a crash that nobody may notice: long enough for a lease to run out.
const WATCH_AFTER_CRASH: Duration = Duration::from_secs(4);

/// Argument of an agent that a guard started.
const UNDER_GUARD: &str = "--under-guard";

/// Writer number of the transaction that is held open.
const HELD_WRITER: u32 = 900;

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    KillPrimary,
    HangAll,
    HangPostmaster,
    Switchover { held: bool },
    KillAgent,
    KillGuard,
    HangAgent,
    KillController,
    KillPrimaryAndController,
    KillControllerDuringFailover { step: StepName },
    CutPrimaryFromController,
    CutController,
    PartitionPrimary,
    FillDisk,
    LoseHost,
    LoseSite { with_controller: bool },
    SwitchSite,
    Control(ControlFault),
    Ladder(LadderFault),
}

impl Fault {
    /// Name in the report.
    pub(super) fn label(self) -> &'static str {
        match self {
            Fault::KillPrimary => "kill-primary",
            Fault::HangAll => "hang-all",
            Fault::HangPostmaster => "hang-postmaster",
            Fault::Switchover { held: false } => "switchover",
            Fault::Switchover { held: true } => "switchover-held",
            Fault::KillAgent => "kill-agent",
            Fault::KillGuard => "kill-guard",
            Fault::HangAgent => "hang-agent",
            Fault::KillController => "kill-controller",
            Fault::KillPrimaryAndController => "kill-primary-and-controller",
            Fault::KillControllerDuringFailover { .. } => "kill-controller-during-failover",
            Fault::CutPrimaryFromController => "cut-primary-from-controller",
            Fault::CutController => "cut-controller-and-kill-agent",
            Fault::PartitionPrimary => "partition-primary",
            Fault::FillDisk => "fill-disk",
            Fault::LoseHost => "lose-host",
            Fault::LoseSite { with_controller: false } => "lose-site",
            Fault::LoseSite { with_controller: true } => "lose-site-and-controller",
            Fault::SwitchSite => "switchover-site",
            Fault::Control(fault) => fault.label(),
            Fault::Ladder(fault) => fault.label(),
        }
    }

    /// For people.
    pub(super) fn words(self) -> &'static str {
        match self {
            Fault::KillPrimary => "SIGKILL for every PostgreSQL process of the primary",
            Fault::HangAll => "SIGSTOP for every PostgreSQL process of the primary",
            Fault::HangPostmaster => "SIGSTOP for the primary's postmaster alone",
            Fault::Switchover { held: false } => "switchover",
            Fault::Switchover { held: true } => "switchover while a client holds a transaction open",
            Fault::KillAgent => "SIGKILL for the primary's agent",
            Fault::KillGuard => "SIGKILL for the guard of the primary's agent",
            Fault::HangAgent => "SIGSTOP for the primary's agent and its guard, then both go on",
            Fault::KillController => "SIGKILL for the controller, away for more than two leases",
            Fault::KillPrimaryAndController => "SIGKILL for the controller and for the primary's PostgreSQL",
            Fault::KillControllerDuringFailover { .. } => "SIGKILL for the controller in the middle of a failover",
            Fault::CutPrimaryFromController => "the primary cut off from the controller for more than two leases",
            Fault::CutController => "the controller cut off from every host, then SIGKILL for the primary's agent",
            Fault::PartitionPrimary => "the primary's host is cut off from every other one",
            Fault::FillDisk => "the volume of the primary's PostgreSQL is full",
            Fault::LoseHost => "the primary's host loses its line and its power",
            Fault::LoseSite { with_controller: false } => "all of the primary's site loses its lines and its power",
            Fault::LoseSite { with_controller: true } => "all of the primary's site is lost, with the only controller",
            Fault::SwitchSite => "switchover to the other site",
            Fault::Control(fault) => fault.words(),
            Fault::Ladder(fault) => fault.words(),
        }
    }

    /// True if another epoch must follow; false if nothing may change.
    pub(super) fn moves_primary(self) -> bool {
        match self {
            Fault::KillAgent
            | Fault::KillGuard
            | Fault::KillController
            | Fault::CutPrimaryFromController
            | Fault::CutController => false,
            Fault::Control(fault) => fault.moves_primary(),
            _ => true,
        }
    }
}

impl Injected {
    /// For people, once it is over.
    pub(super) fn words(&self) -> String {
        let primary = |status: &ClusterStatus| status.primary.as_ref().map_or("nobody".to_owned(), ToString::to_string);
        let after = self.after.as_ref().map_or("?".to_owned(), primary);
        format!("{}: {} -> {after}, redundant again", self.fault.words(), primary(&self.before))
    }
}

/// Does it, and waits until the cluster is redundant again. The second part says what did not go as it should.
pub(super) async fn inject(
    lab: &mut Lab,
    fault: Fault,
    client: &Client,
    step: &mut Step,
) -> anyhow::Result<(Injected, Option<String>)> {
    let before = wait_until_redundant(lab, clock::now().plus(RECOVERY_TIMEOUT)).await?;
    let primary = before.primary.clone().context("a redundant cluster has a primary")?;
    let node = lab.layout().node(&primary)?.clone();
    let mut at = clock::now();
    let mut renewals = None;
    let count = |counted| renewals = Some(counted);
    let outcome = match fault {
        Fault::KillPrimary => kill_primary(lab, &node, &mut at).map(|_| ()),
        Fault::HangAll => hang(lab, &node, &before, false, &mut at).await,
        Fault::HangPostmaster => hang(lab, &node, &before, true, &mut at).await,
        Fault::Switchover { held } => switchover(lab, &before, held, client, &mut at).await,
        Fault::KillAgent => kill_half(lab, &node, Half::Agent, &mut at).await,
        Fault::KillGuard => kill_half(lab, &node, Half::Guard, &mut at).await,
        Fault::HangAgent => hang_agent(lab, &node, &before, &mut at).await,
        Fault::KillController => controller::kill(lab, &node, &before, &mut at).await.map(count),
        Fault::CutPrimaryFromController => controller::cut_from_primary(lab, &node, &before, &mut at).await.map(count),
        Fault::CutController => controller::cut_from_all(lab, &node, &before, &mut at).await.map(count),
        Fault::KillPrimaryAndController => controller::kill_with_primary(lab, &node, &mut at).await,
        Fault::KillControllerDuringFailover { step } => {
            controller::kill_during_failover(lab, &node, step, &mut at).await
        }
        Fault::PartitionPrimary => partition(lab, &node, &before, &mut at).await,
        Fault::FillDisk => fill_disk(lab, &node, &before, &mut at).await,
        Fault::LoseHost => lose_host(lab, &node, &before, &mut at).await,
        Fault::LoseSite { with_controller } => {
            site::lose(lab, &node.site, with_controller, &before, client, &mut at).await
        }
        Fault::SwitchSite => site::switch(lab, &node.site, &before, &mut at).await,
        Fault::Control(fault) => fault.inject(lab, &node, &mut at).await,
        Fault::Ladder(fault) => fault.inject(lab, &node, &mut at).await,
    };
    let mut injected = Injected { fault, at, healed: None, before, after: None, renewals };
    if let Err(error) = outcome {
        return Ok((injected, Some(format!("{}: {error:#}", fault.label()))));
    }
    step.note("waiting until the cluster is redundant again");
    let patience = if matches!(fault, Fault::Ladder(_)) { REPLACEMENT_PATIENCE } else { RECOVERY_TIMEOUT };
    let deadline = clock::now().plus(patience);
    let well = if fault.moves_primary() {
        wait_until_moved(lab, injected.before.epoch, deadline).await
    } else {
        wait_until_redundant(lab, deadline).await
    };
    match well {
        Ok(status) => {
            injected.healed = Some(clock::now());
            injected.after = Some(status);
            if let Fault::Ladder(ladder) = fault
                && let Err(error) = ladder.inspect(lab, &node, at).await
            {
                return Ok((injected, Some(format!("{}: {error:#}", fault.label()))));
            }
            Ok((injected, None))
        }
        Err(error) => {
            injected.after = lab.controller.status().await.ok();
            Ok((injected, Some(format!("{}: {error:#}", fault.label()))))
        }
    }
}

/// The PostgreSQL processes of `node`, the postmaster first.
fn family(lab: &Lab, node: &NodeLayout) -> anyhow::Result<Vec<Process>> {
    let family = postgres_family(lab.manifest.uid, &node.data_directory());
    if family.is_empty() {
        bail!("no PostgreSQL runs on {}", node.data_directory().display());
    }
    Ok(family)
}

/// Sends `signal` to all that were found, and to children that the postmaster started in the meantime.
/// The postmaster comes first: after it is hit there are no new ones.
fn hit_family(lab: &Lab, node: &NodeLayout, signal: Signal, at: &mut Moment) -> anyhow::Result<Vec<ProcessIdentity>> {
    let family = family(lab, node)?;
    let postmaster = family[0].identity;
    *at = clock::now();
    let mut hit: Vec<ProcessIdentity> = Vec::new();
    for process in &family {
        process.identity.signal(signal);
        hit.push(process.identity);
    }
    // The agent may have begun anew already: only children of the postmaster that was hit, or of init, are late ones.
    for process in postgres_family(lab.manifest.uid, &node.data_directory()) {
        let is_late = process.identity.started_ticks <= newest(&hit) && !hit.contains(&process.identity);
        if is_late || process.parent == postmaster.pid {
            process.identity.signal(signal);
            hit.push(process.identity);
        }
    }
    Ok(hit)
}

fn newest(identities: &[ProcessIdentity]) -> u64 {
    identities.iter().map(|identity| identity.started_ticks).max().unwrap_or(0)
}

pub(super) fn kill_primary(lab: &Lab, node: &NodeLayout, at: &mut Moment) -> anyhow::Result<Vec<ProcessIdentity>> {
    hit_family(lab, node, Signal::KILL, at)
}

/// Stops processes, waits for the failover, and lets go on whatever the fence left.
async fn hang(
    lab: &mut Lab,
    node: &NodeLayout,
    before: &ClusterStatus,
    postmaster_alone: bool,
    at: &mut Moment,
) -> anyhow::Result<()> {
    let stopped = if postmaster_alone {
        let postmaster = family(lab, node)?[0].identity;
        *at = clock::now();
        postmaster.signal(Signal::STOP);
        vec![postmaster]
    } else {
        hit_family(lab, node, Signal::STOP, at)?
    };
    let promoted = wait_until_promoted(lab, before.epoch, clock::now().plus(RECOVERY_TIMEOUT)).await;
    if promoted.is_ok() {
        tokio::time::sleep(THAW_AFTER).await;
    }
    for identity in stopped {
        identity.signal(Signal::CONT);
    }
    promoted.map(|_| ())
}

/// Cuts every link of the host, waits for the failover, and heals: the former primary finds a world that has moved on.
async fn partition(lab: &mut Lab, node: &NodeLayout, before: &ClusterStatus, at: &mut Moment) -> anyhow::Result<()> {
    let order = |state| Order { host: node.name.to_string(), peer: None, state, direction: Direction::Both };
    *at = clock::now();
    network::order(lab.layout(), &order(LinkState::CUT)).await?;
    let promoted = wait_until_promoted(lab, before.epoch, clock::now().plus(RECOVERY_TIMEOUT)).await;
    if promoted.is_ok() {
        tokio::time::sleep(THAW_AFTER).await;
    }
    network::order(lab.layout(), &order(LinkState::default())).await?;
    promoted.map(|_| ())
}

/// The line goes first, so that nobody hears anything end. Then the host is switched on again.
async fn lose_host(lab: &mut Lab, node: &NodeLayout, before: &ClusterStatus, at: &mut Moment) -> anyhow::Result<()> {
    let mut peers = vec![None];
    if lab.layout().has_namespaces {
        peers.push(Some(OUTSIDE.to_owned()));
    }
    let orders = |state| -> Vec<Order> {
        let order = |peer: &Option<String>| Order {
            host: node.name.to_string(),
            peer: peer.clone(),
            state,
            direction: Direction::Both,
        };
        peers.iter().map(order).collect()
    };
    *at = clock::now();
    for order in orders(LinkState::CUT) {
        network::order(lab.layout(), &order).await?;
    }
    process::kill_all_of(lab.manifest.uid, &node.directory);
    let promoted = wait_until_promoted(lab, before.epoch, clock::now().plus(RECOVERY_TIMEOUT)).await;
    if promoted.is_ok() {
        tokio::time::sleep(THAW_AFTER).await;
    }
    for order in orders(LinkState::default()) {
        network::order(lab.layout(), &order).await?;
    }
    lab.start_node(node)?;
    promoted.map(|_| ())
}

/// Takes all space of the volume, waits for the failover, and gives the space back.
async fn fill_disk(lab: &mut Lab, node: &NodeLayout, before: &ClusterStatus, at: &mut Moment) -> anyhow::Result<()> {
    let volume = node.volume.clone().context("the node has no volume of limited size")?;
    let filled = volume.clone();
    let taken = tokio::task::spawn_blocking(move || volume::fill(&filled)).await.context("fill the volume")??;
    // Until the last byte was taken there was space.
    *at = clock::now();
    tracing::info!(taken, volume = %volume.display(), "the volume is full");
    let promoted = wait_until_promoted(lab, before.epoch, clock::now().plus(RECOVERY_TIMEOUT)).await;
    if promoted.is_ok() {
        tokio::time::sleep(THAW_AFTER).await;
    }
    volume::relieve(&volume)?;
    promoted.map(|_| ())
}

async fn switchover(
    lab: &mut Lab,
    before: &ClusterStatus,
    held: bool,
    client: &Client,
    at: &mut Moment,
) -> anyhow::Result<()> {
    let holder = if held { Some(hold(lab, client.run()).await?) } else { None };
    *at = clock::now();
    lab.controller.switchover().await?;
    let Some(holder) = holder else { return Ok(()) };
    wait_until_promoted(lab, before.epoch, clock::now().plus(RECOVERY_TIMEOUT)).await?;
    // The server that held the transaction has shut down: the client is told, or its line is cut.
    match holder.execute("COMMIT").await {
        Err(_) => Ok(()),
        Ok(_) => bail!("a transaction that was open across the switchover was committed"),
    }
}

/// Opens a transaction through HAProxy and leaves it open.
async fn hold(lab: &Lab, run: &str) -> anyhow::Result<Session> {
    let proxy = lab.layout().proxies.first().context("the lab has no proxy")?;
    let session = Session::open(&proxy.write, "lab-held").await.map_err(|error| anyhow::anyhow!("{error}"))?;
    let insert = format!("INSERT INTO {} (run, writer, sequence) VALUES ('{run}', {HELD_WRITER}, 0)", client::TABLE);
    for statement in ["BEGIN", insert.as_str()] {
        session
            .execute(statement)
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))
            .context("hold a transaction open")?;
    }
    Ok(session)
}

/// One of the two processes of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Agent,
    Guard,
}

pub(super) async fn kill_half(lab: &mut Lab, node: &NodeLayout, half: Half, at: &mut Moment) -> anyhow::Result<()> {
    let victim = wait_for_halves(lab, node, &[]).await?.1[usize::from(half == Half::Guard)];
    *at = clock::now();
    victim.signal(Signal::KILL);
    // Its other half replaces it.
    wait_for_halves(lab, node, &[victim]).await?;
    tokio::time::sleep(WATCH_AFTER_CRASH).await;
    Ok(())
}

/// Stops both halves for longer than a lease: PostgreSQL writes without one, and whoever saw that must keep everybody from being
/// promoted beside it. When they go on they find the lease gone, fence, and there is a failover.
async fn hang_agent(lab: &mut Lab, node: &NodeLayout, before: &ClusterStatus, at: &mut Moment) -> anyhow::Result<()> {
    let halves = wait_for_halves(lab, node, &[]).await?.1;
    // The guard first: it replaces an agent that is gone, and must not be awake to miss one.
    for half in halves.iter().rev() {
        half.signal(Signal::STOP);
    }
    *at = clock::now();
    tokio::time::sleep(WATCH_AFTER_CRASH * 2).await;
    let status = lab.controller.status().await;
    for half in halves {
        half.signal(Signal::CONT);
    }
    let epoch = status?.epoch;
    if epoch != before.epoch {
        bail!("somebody was promoted into epoch {epoch} beside a primary that went on");
    }
    Ok(())
}

/// Waits until agent and guard both live and are none of `former`. Returns (all, [agent, guard]).
async fn wait_for_halves(
    lab: &mut Lab,
    node: &NodeLayout,
    former: &[ProcessIdentity],
) -> anyhow::Result<(usize, [ProcessIdentity; 2])> {
    let deadline = clock::now().plus(REPLACEMENT_TIMEOUT);
    loop {
        lab.reap();
        let family = agent_family(lab.layout(), lab.manifest.uid, &node.agent_config(), &node.directory);
        if let Some(halves) = halves(&family)
            && !halves.iter().any(|half| former.contains(half))
        {
            return Ok((family.len(), halves));
        }
        if clock::now() > deadline {
            bail!("agent and guard of {} do not both run: {} processes", node.name, family.len());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Tells agent and guard apart: the agent that a guard started carries a mark in its arguments; without one, the guard
/// is the parent.
pub(in crate::lab) fn halves(family: &[Process]) -> Option<[ProcessIdentity; 2]> {
    let [one, other] = family else { return None };
    let is_agent = |process: &Process| process.arguments.iter().any(|argument| argument == UNDER_GUARD);
    let one_is_agent = match (is_agent(one), is_agent(other)) {
        (true, false) => true,
        (false, true) => false,
        _ => one.parent == other.identity.pid,
    };
    Some(if one_is_agent { [one.identity, other.identity] } else { [other.identity, one.identity] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent: u32, arguments: &[&str]) -> Process {
        Process {
            identity: ProcessIdentity { pid, started_ticks: u64::from(pid) },
            parent,
            uid: 1,
            name: "stormglass".into(),
            state: 'S',
            executable: None,
            working_directory: None,
            arguments: arguments.iter().map(|part| (*part).to_owned()).collect(),
        }
    }

    #[test]
    fn agent_and_guard_are_told_apart_by_the_mark_before_descent() {
        let guard = process(10, 1, &["stormglass", "agent", "--config", "c"]);
        let agent = process(11, 10, &["stormglass", "agent", "--config", "c", "--under-guard"]);
        let expected = Some([agent.identity, guard.identity]);
        assert_eq!(halves(&[guard.clone(), agent.clone()]), expected);
        assert_eq!(halves(&[agent.clone(), guard.clone()]), expected);
        // The agent outlived its guard and started a new one: now the guard is the child.
        let later = process(12, 11, &["stormglass", "agent", "--config", "c", "--guard-of", "11"]);
        assert_eq!(halves(&[agent.clone(), later.clone()]), Some([agent.identity, later.identity]));
        let unmarked = process(13, 10, &["stormglass", "agent", "--config", "c"]);
        assert_eq!(halves(&[guard.clone(), unmarked.clone()]), Some([unmarked.identity, guard.identity]));
        assert_eq!(halves(&[agent]), None, "one of them is missing");
    }

    #[test]
    fn only_crashes_of_our_own_processes_must_change_nothing() {
        assert!(Fault::KillPrimary.moves_primary() && Fault::Switchover { held: true }.moves_primary());
        assert!(!Fault::KillAgent.moves_primary() && !Fault::KillGuard.moves_primary());
        for fault in [Fault::KillController, Fault::CutPrimaryFromController, Fault::CutController] {
            assert!(!fault.moves_primary(), "{fault:?}");
        }
        assert!(Fault::KillControllerDuringFailover { step: StepName::Promote }.moves_primary());
    }
}
