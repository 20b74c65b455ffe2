//! One seed from the first heartbeat to the last check.

use std::cell::RefCell;
use std::sync::{Arc, Once};
use std::time::Duration;

use stormglass::controller::{self, ConfiguredNode, ControllerParts};
use stormglass::domain::policy::{DurabilityMode, Policy};
use stormglass::ports::Sole;
use stormglass::telemetry::metrics::ControllerMetrics;

use super::network::ControllerPort;
use super::scenarios::Scenario;
use super::world::{ControllerProcess, HOSTS, Process, State, World, cluster, node, site};
use super::{agents, clients, faults};

/// The world moves in steps of this.
const STEP: Duration = Duration::from_millis(10);
/// A cluster that was just installed must be managed and redundant by then.
const BEGINNING_SECONDS: u64 = 40;
/// After the last fault everything must be well again by then.
const RECOVERY_SECONDS: u64 = 60;
/// And stay so for this long.
const CALM_STEPS: u64 = 50;

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics of this thread are kept, besides being shown.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANIC.with(|kept| *kept.borrow_mut() = Some(panic.to_string()));
            before(panic);
        }));
    });
}

/// How a seed ended.
pub struct Outcome {
    pub violation: Option<String>,
    pub trace: Vec<String>,
    pub virtual_seconds: f64,
    pub acknowledged: usize,
}

/// Runs one seed.
pub fn run(seed: u64, scenario: Option<&'static Scenario>) -> Outcome {
    watch_panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing");
    PANIC.take();
    let mut outcome = runtime.block_on(simulate(seed, scenario));
    // A task that panics is silent otherwise.
    if let Some(panic) = PANIC.take() {
        outcome.violation.get_or_insert(format!("a task panicked: {panic}"));
    }
    outcome
}

async fn simulate(seed: u64, scenario: Option<&'static Scenario>) -> Outcome {
    let world = World::new(seed);
    tokio::spawn(clients::tend_proxy(world.clone()));
    let began = until_well(&world, BEGINNING_SECONDS).await;
    if !began {
        fail(&world, "the cluster did not become redundant in the beginning");
    }
    if world.lock().trace.iter().any(|line| line.contains(" ended: ")) {
        fail(&world, "the running PostgreSQL was interrupted when the cluster was first managed");
    }
    world.lock().ledger.outage = 0;
    world.note("-- faults begin");
    let storm = tokio::spawn(faults::storm(world.clone(), scenario.map(|scenario| scenario.faults)));
    while !storm.is_finished() && !world.is_broken() {
        step(&world).await;
    }
    world.note("-- faults are over");
    if !world.is_broken() && !until_well(&world, RECOVERY_SECONDS).await {
        fail(&world, "one primary, writes and redundancy did not come back");
    }
    let mut state = world.lock();
    let now = state.now();
    if let Some(primary) = (0..HOSTS).find(|host| state.hosts[*host].server.writes(now)) {
        state.check_nothing_lost(primary);
    }
    let outage = Duration::from_micros(state.ledger.outage);
    if let Some(scenario) = scenario
        && outage > Duration::from_secs(scenario.outage_seconds)
    {
        state.violate(&format!("clients waited for {outage:?}"));
    }
    Outcome {
        violation: state.violation.clone(),
        trace: std::mem::take(&mut state.trace),
        virtual_seconds: Duration::from_micros(now).as_secs_f64(),
        acknowledged: state.ledger.acknowledged.len(),
    }
}

/// Everything that happens by itself.
async fn step(world: &Arc<World>) {
    tokio::time::sleep(STEP).await;
    agents::guard_hosts(world);
    agents::start_agents(world);
    start_controller(world);
    let mut state = world.lock();
    state.clients();
    state.replicate();
    state.check();
}

/// True once all was well for a while; false if that takes too long, or a rule was broken.
async fn until_well(world: &Arc<World>, seconds: u64) -> bool {
    let end = world.lock().now() + seconds * 1_000_000;
    let mut calm = 0;
    loop {
        step(world).await;
        let state = world.lock();
        if state.violation.is_some() {
            return true;
        }
        calm = if state.unwell().is_none() { calm + 1 } else { 0 };
        if calm > CALM_STEPS {
            return true;
        }
        if state.now() > end {
            return false;
        }
    }
}

fn fail(world: &World, rule: &str) {
    let mut state = world.lock();
    let why = state.unwell().unwrap_or_default();
    let hosts: Vec<String> = (0..HOSTS).map(|host| state.describe(host)).collect();
    for host in hosts {
        state.note(&host);
    }
    let record = format!("record {:?}", state.store.record);
    state.note(&record);
    state.violate(&format!("{rule}: {why}"));
}

impl State {
    /// What is not as it should be.
    fn unwell(&self) -> Option<String> {
        let now = self.now();
        let Some(record) = &self.store.record else { return Some("no record".to_owned()) };
        let writers: Vec<usize> = (0..HOSTS).filter(|host| self.hosts[*host].server.writes(now)).collect();
        let [primary] = writers[..] else { return Some(format!("{} primaries", writers.len())) };
        if node(primary) != record.holder || !record.holder_confirmed {
            return Some("the primary is not the confirmed holder".to_owned());
        }
        if now.saturating_sub(self.ledger.last_acknowledged_at) > 1_000_000 {
            return Some("no writes are acknowledged".to_owned());
        }
        if self.proxy.target() != Some(primary) {
            return Some("the proxy does not lead to the primary".to_owned());
        }
        if record.eligible.is_empty() {
            return Some("nobody is eligible".to_owned());
        }
        let run = self.hosts[primary].server.run.as_ref()?;
        (0..HOSTS)
            .find(|host| *host != primary && run.standbys[*host].is_none())
            .map(|host| format!("{} does not stream", node(host)))
    }

    fn describe(&self, host: usize) -> String {
        let here = &self.hosts[host];
        let run = here.server.run.as_ref().map(|run| (run.recovery, run.upstream, run.streams, run.hang));
        let data = here.server.data.as_ref().map(|data| (data.history.clone(), data.wal.len(), data.state, data.torn));
        format!(
            "{} up {} agent {} run {run:?} data {data:?} held {:?} memory {:?}",
            here.name,
            here.up,
            here.agent.as_ref().is_some_and(|agent| agent.handler.is_some()),
            here.guard.held,
            here.memory.as_ref().map(|memory| (
                memory.highest_epoch,
                memory.fence_confirmed,
                memory.consented,
                memory.half_rejoined
            ))
        )
    }
}

fn policy(strict: bool) -> Policy {
    let durability = if strict { DurabilityMode::SyncStrict } else { DurabilityMode::Sync };
    let policy = Policy { durability, ..Policy::for_rto(Duration::from_secs(5)) };
    assert!(policy.timers.check().is_ok());
    policy
}

fn configured(host: usize) -> ConfiguredNode {
    ConfiguredNode { name: node(host), site: site(host), agent: format!("http://{}", node(host)) }
}

fn start_controller(world: &Arc<World>) {
    {
        let state = world.lock();
        if state.controller.is_some() || state.now() < state.controller_rests_until {
            return;
        }
    }
    world.lock().controller_rests_until = u64::MAX;
    let (life, process) = Process::new();
    let world = world.clone();
    tokio::spawn(async move {
        let port = Arc::new(ControllerPort { world: world.clone(), process: process.clone() });
        let (shutdown, ends) = tokio::sync::watch::channel(false);
        let parts = ControllerParts {
            name: "c1".to_owned(),
            cluster: cluster(),
            policy: policy(world.lock().strict),
            nodes: (0..HOSTS).map(configured).collect(),
            proxies: vec![clients::proxy_name()],
            clock: port.clone(),
            term: Arc::new(Sole::new(port.clone())),
            node_control: port.clone(),
            proxy_control: port.clone(),
            primary_probe: port,
            metrics: Arc::new(ControllerMetrics::new("simulated")),
        };
        match controller::start(parts, ends).await {
            Ok(handle) => {
                let mut state = world.lock();
                state.note("controller starts");
                state.controller = Some(ControllerProcess { life, process, handle: Arc::new(handle), shutdown });
            }
            Err(error) => {
                let mut state = world.lock();
                state.note(&format!("controller does not start: {error}"));
                state.controller_rests_until = state.now() + 500_000;
            }
        }
    });
}
