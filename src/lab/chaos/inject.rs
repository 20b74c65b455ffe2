//! Begins a fault, holds it for its time, and heals it. What was begun is healed whatever happens in between.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::Signal;

use super::catalogue::{Action, Fault, Hold, Host, Peers, STARVED, Victim};
use super::rhythm;
use crate::api::wire::ClusterStatus;
use crate::domain::clock::Moment;
use crate::domain::ids::NodeName;
use crate::domain::operation::{OperationKind, StepName};
use crate::lab::arguments::ChaosArguments;
use crate::lab::client::Session;
use crate::lab::clock;
use crate::lab::layout::{CONTROLLER_HOST, NodeLayout, ProxyLayout};
use crate::lab::namespaces::{HOSTS, OUTSIDE};
use crate::lab::network::{self, Direction, LinkState, Order};
use crate::lab::process::{self, ProcessIdentity, postgres_family};
use crate::lab::random::Random;
use crate::lab::scenario::{halves, wait_until};
use crate::lab::up::{Lab, agent_family};
use crate::lab::{volume, wall_clock};

/// By then somebody else is promoted, or never.
const MOVE_TIMEOUT: Duration = Duration::from_secs(40);

/// After the promotion, before the former primary is let go.
const AFTER_MOVE: Duration = Duration::from_secs(1);

/// An operation that the fault calls for begins by then. Without one the fault heals.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(20);

/// A clock is seen to have jumped by then.
const JUMP_TIMEOUT: Duration = Duration::from_secs(5);

/// So often a directory is removed in which somebody writes.
const REMOVALS: u32 = 100;

/// Between two looks at the controller.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How a part of a fault ends.
pub(super) enum Undo {
    Line(Order),
    Continue(Vec<ProcessIdentity>),
    Controller,
    Node(NodeLayout),
    Clock(NodeLayout),
    Ballast(PathBuf),
    Busy(Arc<AtomicBool>),
}

/// Who is who when a fault begins.
pub(super) struct Scene {
    pub(super) primary: NodeLayout,
    pub(super) standbys: Vec<NodeLayout>,
    standby: NodeLayout,
    proxies: Vec<ProxyLayout>,
    pub(super) before: ClusterStatus,
}

impl Scene {
    /// Looks around. Of the standbys it takes one that commits wait for: it is missed the most.
    pub(super) fn of(lab: &Lab, before: &ClusterStatus) -> anyhow::Result<Self> {
        let layout = lab.layout();
        let primary = layout.node(before.primary.as_ref().context("a whole cluster has a primary")?)?.clone();
        let standbys: Vec<NodeLayout> = layout.nodes.iter().filter(|node| node.name != primary.name).cloned().collect();
        let waited_for = standbys.iter().find(|node| before.synchronous.contains(&node.name));
        let standby = waited_for.or(standbys.first()).context("the lab has no standby")?.clone();
        Ok(Self { primary, standbys, standby, proxies: layout.proxies.clone(), before: before.clone() })
    }

    fn node(&self, host: Host) -> &NodeLayout {
        if host == Host::Standby { &self.standby } else { &self.primary }
    }

    fn name(&self, host: Host) -> String {
        match host {
            Host::Primary | Host::Standby => self.node(host).name.to_string(),
            Host::Controller => CONTROLLER_HOST.to_owned(),
            Host::FirstProxy => self.proxies[0].name.to_string(),
        }
    }

    fn peers(&self, peers: Peers) -> Vec<Option<String>> {
        match peers {
            Peers::All => vec![None],
            Peers::Controller => vec![Some(CONTROLLER_HOST.to_owned())],
            Peers::ControllerAndStandby => vec![Some(CONTROLLER_HOST.to_owned()), Some(self.standby.name.to_string())],
            Peers::Standbys => self.standbys.iter().map(|node| Some(node.name.to_string())).collect(),
            Peers::Proxies => self.proxies.iter().map(|proxy| Some(proxy.name.to_string())).collect(),
        }
    }
}

/// Does it, from beginning to end. `at` becomes the moment of the fault; returns when it was healed.
pub(super) async fn inject(
    lab: &mut Lab,
    fault: &Fault,
    scene: &Scene,
    arguments: &ChaosArguments,
    random: &mut Random,
    at: &mut Moment,
) -> anyhow::Result<Moment> {
    match fault.action {
        Action::Flap => return rhythm::flap(lab, scene, arguments.flaps, at).await,
        Action::RollingRestart => return rhythm::rolling_restart(lab, scene, at).await,
        _ => {}
    }
    let mut undos = Vec::new();
    let mut outcome = begin(lab, fault.action, scene, random, at, &mut undos).await;
    if outcome.is_ok() {
        outcome = hold(lab, fault, scene, arguments, random).await;
    }
    let healed = clock::now();
    // The last thing done is undone first.
    for undo in undos.into_iter().rev() {
        let undone = heal(lab, undo).await;
        outcome = outcome.and(undone);
    }
    outcome.map(|()| healed)
}

async fn begin(
    lab: &mut Lab,
    action: Action,
    scene: &Scene,
    random: &mut Random,
    at: &mut Moment,
    undos: &mut Vec<Undo>,
) -> anyhow::Result<()> {
    let uid = lab.manifest.uid;
    *at = clock::now();
    match action {
        Action::Line(host, peers, direction, state) => {
            for peer in scene.peers(peers) {
                line(lab, &scene.name(host), peer, direction, state, undos).await?;
            }
        }
        Action::Flap | Action::RollingRestart => bail!("this fault has a rhythm of its own"),
        Action::Proxies => {
            for proxy in &scene.proxies {
                line(lab, proxy.name.as_str(), None, Direction::Both, LinkState::CUT, undos).await?;
            }
        }
        Action::LoseHost(host) => {
            let node = scene.node(host);
            let mut peers = vec![None];
            if lab.layout().has_namespaces {
                peers.push(Some(OUTSIDE.to_owned()));
            }
            // The last to be healed is the power: it comes back to a line that is there.
            undos.push(Undo::Node(node.clone()));
            for peer in peers {
                line(lab, node.name.as_str(), peer, Direction::Both, LinkState::CUT, undos).await?;
            }
            process::kill_all_of(uid, &node.directory);
        }
        Action::Pause(host) => {
            let directory = scene.node(host).directory.clone();
            let mut stopped = Vec::new();
            // Twice: what was started while the first round went on.
            for _ in 0..2 {
                stopped.extend(process::of_host(uid, &directory).into_iter().map(|process| process.identity));
                stopped.iter().for_each(|identity| {
                    identity.signal(Signal::STOP);
                });
            }
            undos.push(Undo::Continue(stopped));
        }
        Action::Stop { postmaster_alone } => {
            let family = postgres_family(uid, &scene.primary.data_directory());
            let count = if postmaster_alone { 1 } else { family.len() };
            let stopped: Vec<ProcessIdentity> = family.iter().take(count).map(|process| process.identity).collect();
            stopped.iter().for_each(|identity| {
                identity.signal(Signal::STOP);
            });
            undos.push(Undo::Continue(stopped));
        }
        Action::Kill(victim) => kill(lab, &scene.primary, victim)?,
        Action::KillStandby => kill(lab, &scene.standby, Victim::Postgres)?,
        Action::KillController => {
            controller(lab)?.signal(Signal::KILL);
            undos.push(Undo::Controller);
        }
        Action::PauseController => {
            let controller = controller(lab)?;
            controller.signal(Signal::STOP);
            undos.push(Undo::Continue(vec![controller]));
        }
        Action::KillProxy => {
            let killed = process::of_host(uid, &scene.proxies[0].directory);
            killed.iter().filter(|process| process.program() == "haproxy").for_each(|process| {
                process.identity.signal(Signal::KILL);
            });
        }
        Action::CutPromotion => {
            kill(lab, &scene.primary, Victim::Postgres)?;
            let candidate = promotion(lab).await?;
            let controller = Some(CONTROLLER_HOST.to_owned());
            line(lab, candidate.as_str(), controller, Direction::Both, LinkState::CUT, undos).await?;
        }
        Action::Clock(seconds) => {
            let before = wall_clock_of(&scene.primary).await?;
            undos.push(Undo::Clock(scene.primary.clone()));
            wall_clock::set(&scene.primary, seconds)?;
            // A jump that nobody sees proves nothing.
            let deadline = clock::now().plus(JUMP_TIMEOUT);
            while (wall_clock_of(&scene.primary).await? - before).abs() < seconds.abs() / 2 {
                if clock::now() > deadline {
                    bail!("the wall clock of {} did not jump: does libfaketime work here?", scene.primary.name);
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Action::FillDisk => {
            let volume = scene.primary.volume.clone().context("the node has no volume of limited size")?;
            undos.push(Undo::Ballast(volume.clone()));
            tokio::task::spawn_blocking(move || volume::fill(&volume)).await.context("fill the volume")??;
            *at = clock::now();
        }
        Action::PowerCycle => {
            let mut nodes = lab.layout().nodes.clone();
            for last in (1..nodes.len()).rev() {
                nodes.swap(last, random.below(last as u64 + 1) as usize);
            }
            for node in nodes {
                process::kill_all_of(uid, &node.directory);
                undos.push(Undo::Node(node));
            }
        }
        Action::RemoveData => {
            let data = scene.primary.data_directory();
            tokio::task::spawn_blocking(move || remove_under_a_running_server(&data)).await.context("remove it")??;
        }
        Action::DamageControlFile => {
            let file = scene.primary.data_directory().join("global/pg_control");
            std::fs::write(&file, [0x5a; 8192]).with_context(|| format!("overwrite {}", file.display()))?;
            kill(lab, &scene.primary, Victim::Postgres)?;
        }
        Action::Starve => {
            for (host, _) in HOSTS.iter().filter(|(name, _)| *name != OUTSIDE) {
                line(lab, host, None, Direction::Out, STARVED, undos).await?;
            }
            undos.push(Undo::Busy(keep_busy()?));
        }
    }
    Ok(())
}

pub(super) async fn line(
    lab: &Lab,
    host: &str,
    peer: Option<String>,
    direction: Direction,
    state: LinkState,
    undos: &mut Vec<Undo>,
) -> anyhow::Result<()> {
    let order = Order { host: host.to_owned(), peer, state, direction };
    undos.push(Undo::Line(Order { state: LinkState::default(), ..order.clone() }));
    network::order(lab.layout(), &order).await.map(|_| ())
}

pub(super) async fn heal(lab: &mut Lab, undo: Undo) -> anyhow::Result<()> {
    match undo {
        Undo::Line(order) => network::order(lab.layout(), &order).await.map(|_| ()),
        Undo::Continue(stopped) => {
            stopped.iter().for_each(|identity| {
                identity.signal(Signal::CONT);
            });
            Ok(())
        }
        Undo::Controller => {
            lab.reap();
            lab.start_controller()
        }
        Undo::Node(node) => {
            lab.reap();
            lab.start_node(&node)
        }
        Undo::Clock(node) => wall_clock::set(&node, 0),
        Undo::Ballast(volume) => volume::relieve(&volume),
        Undo::Busy(stop) => {
            stop.store(true, Ordering::Release);
            Ok(())
        }
    }
}

async fn hold(
    lab: &mut Lab,
    fault: &Fault,
    scene: &Scene,
    arguments: &ChaosArguments,
    random: &mut Random,
) -> anyhow::Result<()> {
    let epoch = scene.before.epoch;
    match fault.hold {
        Hold::Moment => {}
        Hold::Asked => tokio::time::sleep(arguments.duration).await,
        Hold::Seconds(least, most) => {
            let milliseconds = least * 1000 + random.below((most - least) * 1000);
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        }
        Hold::Move => {
            wait_until(lab, clock::now().plus(MOVE_TIMEOUT), |status| match (&status.primary, status.epoch > epoch) {
                (Some(_), true) => Ok(()),
                _ => Err(format!("still no primary after epoch {epoch}")),
            })
            .await?;
            tokio::time::sleep(AFTER_MOVE).await;
        }
        Hold::Operation => {
            let deadline = clock::now().plus(OPERATION_TIMEOUT);
            while clock::now() < deadline {
                let status = lab.controller.status().await;
                if status.is_ok_and(|status| status.epoch > epoch || !status.operations.is_empty()) {
                    break;
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    }
    Ok(())
}

/// What is written while it goes may put a directory back: asked again until all of it is gone.
fn remove_under_a_running_server(directory: &Path) -> anyhow::Result<()> {
    let mut outcome = Ok(());
    for _ in 0..REMOVALS {
        outcome = std::fs::remove_dir_all(directory);
        if !directory.exists() {
            return Ok(());
        }
    }
    outcome.with_context(|| format!("remove {}", directory.display()))
}

fn kill(lab: &Lab, node: &NodeLayout, victim: Victim) -> anyhow::Result<()> {
    let uid = lab.manifest.uid;
    let agents = || {
        halves(&agent_family(lab.layout(), uid, &node.agent_config(), &node.directory))
            .with_context(|| format!("agent and guard of {} do not both run", node.name))
    };
    let family = || postgres_family(uid, &node.data_directory());
    let victims: Vec<ProcessIdentity> = match victim {
        Victim::Agent => vec![agents()?[0]],
        Victim::Guard => vec![agents()?[1]],
        Victim::Postgres => family().iter().map(|process| process.identity).collect(),
        Victim::Backend => family()
            .iter()
            .find(|process| process.arguments.join(" ").contains(": app app "))
            .map(|process| process.identity)
            .into_iter()
            .collect(),
    };
    if victims.is_empty() {
        bail!("nothing of {} is there to be killed", node.name);
    }
    victims.iter().for_each(|identity| {
        identity.signal(Signal::KILL);
    });
    Ok(())
}

fn controller(lab: &Lab) -> anyhow::Result<ProcessIdentity> {
    lab.manifest.process(CONTROLLER_HOST).and_then(|entry| entry.identity).context("no controller was started")
}

/// What PostgreSQL takes for the time, in seconds.
async fn wall_clock_of(node: &NodeLayout) -> anyhow::Result<i64> {
    let session = Session::open(&node.postgres, "lab-clock").await.map_err(|error| anyhow::anyhow!("{error}"))?;
    let rows = session.query("SELECT extract(epoch FROM clock_timestamp())::bigint").await;
    let rows = rows.map_err(|error| anyhow::anyhow!("{error}")).context("ask PostgreSQL for the time")?;
    rows.first()
        .and_then(|row| row.first())
        .context("PostgreSQL does not tell the time")?
        .parse()
        .context("read the time")
}

/// Waits until somebody is being promoted, and names the node.
async fn promotion(lab: &Lab) -> anyhow::Result<NodeName> {
    let deadline = clock::now().plus(OPERATION_TIMEOUT);
    while clock::now() < deadline {
        let operations = lab.controller.status().await.map(|status| status.operations).unwrap_or_default();
        for operation in operations {
            if let OperationKind::Failover { to, .. } = &operation.kind
                && operation.last(StepName::Freeze).is_some()
            {
                return Ok(to.clone());
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    // It was over before anybody could look.
    let status = lab.controller.status().await?;
    status.primary.context("nobody is being promoted")
}

/// One busy thread a core, until told to stop.
fn keep_busy() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let cores = std::thread::available_parallelism().context("count the cores")?.get();
    for _ in 0..cores {
        let stop = Arc::clone(&stop);
        std::thread::Builder::new()
            .name("busy".to_owned())
            .spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
            })
            .context("start a busy thread")?;
    }
    Ok(stop)
}
