//! Controllers as processes: one with its own store, or three that elect a leader in etcd; each runs the real controller while it
//! leads, and begins again when its term is over.

use std::sync::Arc;
use std::time::Duration;

use stormglass::controller::{self, ConfiguredNode, ControllerHandle, ControllerParts};
use stormglass::domain::clock::{BootId, Moment, WallTime};
use stormglass::domain::policy::Policy;
use stormglass::ports::clock::Clock;
use stormglass::ports::{Leadership, Term};
use stormglass::telemetry::metrics::ControllerMetrics;
use tokio::sync::watch;

use super::clients;
use super::etcd::{Election, LEADERSHIP_TTL};
use super::signal;
use super::world::{HOSTS, Life, Process, State, World, cluster, node, site};

/// After its store could not be read, a controller tries again.
const TRIES_AGAIN: Duration = Duration::from_millis(500);

/// A controller's place, with or without a process.
pub struct Slot {
    pub process: Option<ControllerProcess>,
    /// Nobody starts it before this.
    pub rests_until: u64,
    /// Its clock's error, in millionths.
    pub rate: i64,
}

impl Slot {
    pub fn new(rate: i64) -> Self {
        Self { process: None, rests_until: 0, rate }
    }
}

/// A controller that runs.
pub struct ControllerProcess {
    pub life: signal::Sender<Life>,
    pub process: Process,
    /// While it believes that it leads.
    pub leads: Option<Leads>,
}

pub struct Leads {
    handle: Arc<ControllerHandle>,
    shutdown: watch::Sender<bool>,
}

/// A controller's ways out.
#[derive(Clone)]
pub struct ControllerPort {
    pub world: Arc<World>,
    pub index: usize,
    pub process: Process,
    /// The session under which it writes to etcd; `None`: the store is its own.
    pub session: Option<u64>,
}

impl State {
    pub fn kill_controller(&mut self, index: usize, rests_micros: u64) {
        self.controllers[index].rests_until = self.now() + rests_micros;
        if let Some(controller) = self.controllers[index].process.take() {
            controller.life.send_replace(Life::Dead);
            if let Some(leads) = controller.leads {
                leads.shutdown.send_replace(true);
            }
        }
    }

    pub fn pause_controller(&mut self, index: usize, life: Life) {
        if let Some(controller) = &self.controllers[index].process {
            controller.life.send_replace(life);
        }
    }

    /// One that believes that it leads, or the first.
    pub fn leader(&self) -> usize {
        let leads = |slot: &Slot| slot.process.as_ref().is_some_and(|controller| controller.leads.is_some());
        self.controllers.iter().position(leads).unwrap_or(0)
    }
}

/// The controller that answers at `index`, if it believes that it leads.
pub fn leading(world: &World, index: usize) -> Option<(Process, Arc<ControllerHandle>)> {
    let state = world.lock();
    let controller = state.controllers[index].process.as_ref()?;
    Some((controller.process.clone(), controller.leads.as_ref()?.handle.clone()))
}

/// Starts every controller that should run and does not.
pub fn start_controllers(world: &Arc<World>) {
    let mut state = world.lock();
    let now = state.now();
    for index in 0..state.controllers.len() {
        if state.controllers[index].process.is_some() || now < state.controllers[index].rests_until {
            continue;
        }
        let (life, process) = Process::new();
        state.controllers[index].process = Some(ControllerProcess { life, process: process.clone(), leads: None });
        tokio::spawn(live(world.clone(), index, process));
    }
}

/// Leads, term after term.
async fn live(world: Arc<World>, index: usize, process: Process) {
    let port = ControllerPort { world: world.clone(), index, process: process.clone(), session: None };
    let election = Election::new(port.clone());
    loop {
        let Ok(term) = election.lead().await else {
            tokio::time::sleep(TRIES_AGAIN).await;
            continue;
        };
        let (shutdown, ends) = watch::channel(false);
        let begun = controller::start(parts(&port, term.clone()), ends).await;
        process.pass().await;
        match begun {
            Ok(handle) => {
                {
                    let mut state = world.lock();
                    state.note(&format!("c{} leads", index + 1));
                    let Some(controller) = state.controllers[index].process.as_mut() else { return };
                    controller.leads = Some(Leads { handle: Arc::new(handle), shutdown: shutdown.clone() });
                }
                term.ended().await;
                process.pass().await;
                let mut state = world.lock();
                state.note(&format!("c{} leads no more", index + 1));
                if let Some(controller) = state.controllers[index].process.as_mut() {
                    controller.leads = None;
                }
                drop(state);
                shutdown.send_replace(true);
            }
            Err(error) => {
                world.note(format!("c{} does not start: {error}", index + 1));
                term.resign().await;
                tokio::time::sleep(TRIES_AGAIN).await;
            }
        }
    }
}

fn parts(port: &ControllerPort, term: Arc<dyn Term>) -> ControllerParts {
    let control = Arc::new(port.clone());
    ControllerParts {
        audit: None,
        backup: None,
        name: format!("c{}", port.index + 1),
        cluster: cluster(),
        policy: policy(&port.world.lock()),
        definition: Default::default(),
        circumstances: Default::default(),
        protection: tokio::sync::watch::channel(Default::default()).1,
        sequences: Default::default(),
        nodes: (0..HOSTS).map(configured).collect(),
        traffic: Default::default(),
        proxies: vec![clients::proxy_name()],
        clock: control.clone(),
        term,
        node_control: control.clone(),
        proxy_control: control.clone(),
        primary_probe: control,
        name_service: None,
        metrics: Arc::new(ControllerMetrics::new("simulated")),
        ways: Default::default(),
        notifications: Default::default(),
        prediction: None,
    }
}

fn policy(state: &State) -> Policy {
    let leadership_ttl = if state.controllers.len() == 1 { Duration::ZERO } else { LEADERSHIP_TTL };
    let (durability, sync_scope) = (state.settings.durability, state.settings.sync_scope);
    let policy = Policy { durability, sync_scope, leadership_ttl, ..Policy::for_rto(Duration::from_secs(5)) };
    assert!(policy.timers.check().is_ok());
    policy
}

fn configured(host: usize) -> ConfiguredNode {
    ConfiguredNode { name: node(host), site: site(host), agent: format!("http://{}", node(host)) }
}

impl Clock for ControllerPort {
    fn now(&self) -> Moment {
        let state = self.world.lock();
        // Each host has been up for another time: a moment means nothing on another one.
        let before = [5_000_000_000, 50_000_000, 900_000_000][self.index];
        Moment(before + state.skewed(0, state.controllers[self.index].rate))
    }
    fn wall(&self) -> WallTime {
        WallTime(1_800_000_000_000_000 + i64::try_from(self.world.lock().now()).expect("short"))
    }
    fn boot(&self) -> BootId {
        BootId("controller".to_owned())
    }
}
