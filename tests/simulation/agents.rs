//! A host as its agent sees it: clock, memory, guard and the way to the controller; and how agents are started.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{FuturesUnordered, StreamExt};
use stormglass::agent;
use stormglass::api::controller::ControllerHandler;
use stormglass::config::AgentConfig;
use stormglass::domain::clock::{BootId, Moment, WallTime};
use stormglass::domain::command::{HeartbeatReply, PromiseReply, PromiseRequest, ProxyAssignment};
use stormglass::domain::epoch::Epoch;
use stormglass::domain::ids::NodeName;
use stormglass::domain::report::{ProxyReport, Report};
use stormglass::ports::agent::{
    AgentMemory, ControllerLink, GuardError, GuardEvent, GuardLink, HeldLease, LinkError, Memory, MemoryError, PeerLink,
};
use stormglass::ports::clock::Clock;
use tokio::task::JoinSet;

use super::controllers::leading;
use super::mutants::Mutant;
use super::network::{self, Place};
use super::world::{AgentProcess, HOSTS, Process, World, index_of, node, parts, site};

/// Everything that one agent process can reach.
#[derive(Clone)]
pub struct HostPort {
    pub world: Arc<World>,
    pub host: usize,
    pub process: Process,
}

/// Settings of the agent on this host.
pub fn config(host: usize) -> AgentConfig {
    let text = format!(
        "[agent]\ncluster = \"main\"\nsite = \"{}\"\nlisten = \"127.0.0.1:0\"\nstate_directory = \"/simulated\"\n\
         controllers = []\ntoken = \"env:NONE\"\n\
         [postgresql]\nnode = \"{}\"\ndata_directory = \"/simulated\"\n\
         address = {{ host = \"10.0.0.{}\", port = 5432 }}\nlisten_addresses = \"*\"\n",
        site(host),
        node(host),
        host + 1
    );
    toml::from_str(&text).expect("a valid configuration")
}

/// Starts every agent that should run and does not.
pub fn start_agents(world: &Arc<World>) {
    for host in 0..HOSTS {
        let (life, process) = Process::new();
        {
            let mut state = world.lock();
            let now = state.now();
            let here = &mut state.hosts[host];
            if !here.up || here.frozen || here.agent.is_some() || now < here.agent_rests_until {
                continue;
            }
            here.agent = Some(AgentProcess { life, process: process.clone(), handler: None, loops: None });
            state.note(&format!("{} agent starts", node(host)));
        }
        let world = world.clone();
        tokio::spawn(async move {
            let mut loops = JoinSet::new();
            let begun = agent::spawn(parts(&world, host, &process), &mut loops).await;
            let mut state = world.lock();
            if process.is_dead() {
                return;
            }
            match begun {
                Ok(handler) => {
                    if let Some(agent) = state.hosts[host].agent.as_mut() {
                        (agent.handler, agent.loops) = (Some(handler), Some(loops));
                    }
                }
                Err(error) => {
                    state.note(&format!("{} agent does not begin: {error}", node(host)));
                    state.kill_agent(host, 1_000_000);
                }
            }
        });
    }
}

/// What guards do at their deadline: the agent first, then PostgreSQL, then a new agent.
pub fn guard_hosts(world: &Arc<World>) {
    let mut state = world.lock();
    if state.is(Mutant::GuardDoesNotKill) {
        return;
    }
    let now = state.now();
    for host in 0..HOSTS {
        if !state.hosts[host].up || state.hosts[host].frozen {
            continue;
        }
        let clock = state.clock(host);
        let due = state.hosts[host].guard.held.filter(|held| clock >= held.kill_at);
        match (due, state.hosts[host].guard.killing_until) {
            (Some(held), None) => {
                state.note(&format!("{} guard kills, epoch {}", node(host), held.epoch));
                state.kill_agent(host, 600_000);
                let takes = state.random.between(0, 80_000);
                state.hosts[host].guard.killing_until = Some(now + takes);
            }
            (Some(held), Some(until)) if now >= until => {
                state.kill_server(host, "killed by the guard");
                let guard = &mut state.hosts[host].guard;
                guard.held = None;
                guard.killing_until = None;
                guard.fenced = guard.fenced.max(Some(held.epoch));
                guard.released = guard.released.max(Some(held.epoch));
            }
            _ => {}
        }
    }
}

impl HostPort {
    /// `None` from a controller that does not lead: it has no authority to answer.
    async fn heartbeat_to(&self, controller: usize, report: &Report, timeout: Duration) -> Option<HeartbeatReply> {
        let (world, report) = (self.world.clone(), report.clone());
        let there = Place::Controller(controller);
        let answer = network::ask(&self.world, Place::Host(self.host), there, timeout, move || {
            let (world, report) = (world.clone(), report.clone());
            Box::pin(async move {
                let (process, handle) = leading(&world, controller)?;
                process.pass().await;
                let reply = handle.heartbeat(report).await.ok()?;
                process.pass().await;
                Some(reply)
            })
        });
        answer.await.ok()
    }
}

impl Clock for HostPort {
    fn now(&self) -> Moment {
        self.world.lock().clock(self.host)
    }
    fn wall(&self) -> WallTime {
        WallTime(1_800_000_000_000_000 + i64::try_from(self.world.lock().now()).expect("short"))
    }
    fn boot(&self) -> BootId {
        self.world.lock().boot(self.host)
    }
}

/// What `after` no longer knows of `before`.
fn forgets(before: &Memory, after: &Memory) -> Option<&'static str> {
    if after.highest_epoch < before.highest_epoch {
        return Some("an epoch that it had seen");
    }
    if after.highest_epoch == before.highest_epoch && after.highest_number < before.highest_number {
        return Some("a record that it had seen");
    }
    if after.fence_confirmed < before.fence_confirmed {
        return Some("a fence that it had confirmed");
    }
    if after.consented < before.consented {
        return Some("a consent that it had given");
    }
    let shorter = match (&before.promise, &after.promise) {
        (Some(before), Some(after)) if before.boot == after.boot => {
            after.epoch < before.epoch || after.epoch == before.epoch && after.until < before.until
        }
        (Some(_), None) => true,
        _ => false,
    };
    shorter.then_some("a promise that it had given")
}

#[async_trait]
impl AgentMemory for HostPort {
    fn load(&self) -> Result<Option<Memory>, MemoryError> {
        Ok(self.world.lock().hosts[self.host].memory.clone())
    }

    async fn store(&self, memory: &Memory) -> Result<(), MemoryError> {
        self.process.pass().await;
        let takes = self.world.lock().random.millis(0, 3);
        tokio::time::sleep(takes).await;
        self.process.pass().await;
        let mut state = self.world.lock();
        if let Some(forgotten) = state.hosts[self.host].memory.as_ref().and_then(|before| forgets(before, memory)) {
            state.violate(&format!("{} forgot {forgotten}", node(self.host)));
        }
        if state.is(Mutant::DiskForgets) && state.hosts[self.host].memory.is_some() {
            return Ok(());
        }
        state.hosts[self.host].memory = Some(memory.clone());
        Ok(())
    }
}

#[async_trait]
impl GuardLink for HostPort {
    fn at_start(&self) -> (Option<HeldLease>, Option<Epoch>) {
        let state = self.world.lock();
        let guard = &state.hosts[self.host].guard;
        (guard.held, guard.fenced)
    }

    async fn hold(&self, held: HeldLease) -> Result<(), GuardError> {
        self.process.pass().await;
        let mut state = self.world.lock();
        let guard = &mut state.hosts[self.host].guard;
        if guard.released.is_some_and(|released| released >= held.epoch) {
            return Err(GuardError("a lease of an epoch that was left".to_owned()));
        }
        let later = guard.held.is_none_or(|before| {
            held.epoch > before.epoch || held.epoch == before.epoch && held.deadline >= before.deadline
        });
        if later {
            guard.held = Some(held);
        }
        Ok(())
    }

    fn release(&self, epoch: Epoch) {
        if self.process.is_dead() {
            return;
        }
        let mut state = self.world.lock();
        let guard = &mut state.hosts[self.host].guard;
        guard.released = guard.released.max(Some(epoch));
        guard.held = guard.held.filter(|held| held.epoch > epoch);
    }

    fn paused(&self, _paused: bool) {}

    async fn next_event(&self) -> GuardEvent {
        std::future::pending().await
    }
}

#[async_trait]
impl ControllerLink for HostPort {
    async fn heartbeat(&self, report: &Report, timeout: Duration) -> Result<HeartbeatReply, LinkError> {
        self.process.pass().await;
        let controllers = self.world.lock().controllers.len();
        let mut answers: FuturesUnordered<_> =
            (0..controllers).map(|controller| self.heartbeat_to(controller, report, timeout)).collect();
        let mut first = None;
        while let Some(answer) = answers.next().await {
            if answer.is_some() {
                first = answer;
                break;
            }
        }
        self.process.pass().await;
        first.ok_or_else(|| LinkError::NoAnswer { problems: "simulated".to_owned() })
    }

    async fn proxy_heartbeat(&self, _: &ProxyReport, _: Duration) -> Result<ProxyAssignment, LinkError> {
        Err(LinkError::NoAnswer { problems: "this is a database host".to_owned() })
    }
}

#[async_trait]
impl PeerLink for HostPort {
    async fn promise(
        &self,
        peer: &NodeName,
        _agent: &str,
        request: &PromiseRequest,
        timeout: Duration,
    ) -> Result<PromiseReply, LinkError> {
        self.process.pass().await;
        let host = index_of(peer.as_str()).expect("configured");
        if self.world.is(Mutant::PromisesNobodyGave) {
            return Ok(PromiseReply::Promised);
        }
        let (world, request) = (self.world.clone(), request.clone());
        let answer = network::ask(&self.world, Place::Host(self.host), Place::Host(host), timeout, move || {
            let (world, request) = (world.clone(), request.clone());
            Box::pin(async move {
                let (process, handler) = network::agent_of(&world, host)?;
                process.pass().await;
                let reply = handler.promise(request).await;
                process.pass().await;
                Some(reply)
            })
        });
        let answer = answer.await;
        self.process.pass().await;
        answer.map_err(|_| LinkError::Peer { peer: peer.clone(), problem: "simulated".to_owned() })
    }
}
