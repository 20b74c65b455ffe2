//! One seed from the first heartbeat to the last check.

use std::cell::RefCell;
use std::sync::{Arc, Once};
use std::time::Duration;

use stormglass::domain::operation::OperationStatus;

use super::scenarios::Scenario;
use super::world::{HOSTS, Settings, State, World, node};
use super::{agents, clients, controllers, faults};

/// The world moves in steps of this.
const STEP: Duration = Duration::from_millis(10);
/// A cluster that was just installed must be managed and redundant by then.
const BEGINNING_SECONDS: u64 = 40;
/// After the last fault everything must be well again by then.
const RECOVERY_SECONDS: u64 = 60;
/// No longer without an acknowledged commit while only the control plane is in trouble.
const GENTLE_OUTAGE: Duration = Duration::from_millis(1_000);
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
    pub faults: usize,
}

/// Runs one seed.
pub fn run(seed: u64, settings: Option<Settings>, scenario: Option<&'static Scenario>) -> Outcome {
    watch_panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing");
    PANIC.take();
    let mut outcome = runtime.block_on(simulate(seed, settings, scenario));
    // A task that panics is silent otherwise.
    if let Some(panic) = PANIC.take() {
        outcome.violation.get_or_insert(format!("a task panicked: {panic}"));
    }
    outcome
}

async fn simulate(seed: u64, settings: Option<Settings>, scenario: Option<&'static Scenario>) -> Outcome {
    let world = World::new(seed, settings.or(scenario.map(Scenario::settings)));
    let settings = world.lock().settings;
    world.note(format!("{settings:?}"));
    tokio::spawn(clients::tend_proxy(world.clone()));
    let began = until_well(&world, BEGINNING_SECONDS).await;
    if !began {
        fail(&world, "the cluster did not become redundant in the beginning");
    }
    if world.lock().trace.iter().any(|line| line.contains(" ended: ")) {
        fail(&world, "the running PostgreSQL was interrupted when the cluster was first managed");
    }
    {
        let mut state = world.lock();
        (state.ledger.outage, state.stormy) = (0, true);
    }
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
    let longest = scenario.map(|scenario| Duration::from_secs(scenario.outage_seconds));
    let longest = longest.or(settings.gentle.then_some(GENTLE_OUTAGE));
    if longest.is_some_and(|longest| outage > longest) {
        state.violate(&format!("clients waited for {outage:?}"));
    }
    Outcome {
        violation: state.violation.clone(),
        trace: std::mem::take(&mut state.trace),
        virtual_seconds: Duration::from_micros(now).as_secs_f64(),
        acknowledged: state.ledger.acknowledged.len(),
        faults: state.faults,
    }
}

/// Everything that happens by itself.
async fn step(world: &Arc<World>) {
    tokio::time::sleep(STEP).await;
    agents::guard_hosts(world);
    agents::start_agents(world);
    controllers::start_controllers(world);
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
    if state.violation.is_some() {
        return;
    }
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
        if !record.fenced.is_empty() || record.paused_until.is_some() {
            return Some("an operator's fence or pause is left".to_owned());
        }
        if let Some(operation) =
            self.store.operations.values().find(|operation| matches!(operation.status, OperationStatus::Stuck))
        {
            return Some(format!("{} is stuck", operation.id));
        }
        if let Some(operation) = self.store.operations.values().find(|operation| !operation.status.is_final()) {
            return Some(format!("{} {} does not end", operation.kind.label(), operation.id));
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
