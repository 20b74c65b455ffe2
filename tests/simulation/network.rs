//! The network between hosts and the controller: every message is late, lost, repeated or refused as its link says.
//!
//! A message that was sent is delivered, whether or not the sender still waits for the answer.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use stormglass::domain::command::*;
use stormglass::domain::ids::{Address, NodeName, ProxyName};
use stormglass::ports::control::{ControlError, NodeControl, PrimaryProbe, ProxyControl};
use tokio::sync::oneshot;

use super::controllers::ControllerPort;
use super::world::{Process, World, index_at, index_of};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Host(usize),
    Controller(usize),
    /// etcd, where there are three controllers.
    Store,
}

/// One direction between two places.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub cut: bool,
    /// Per cent.
    pub loss: u64,
    /// Per cent.
    pub repeats: u64,
    pub delay_millis: (u64, u64),
}

impl Default for Link {
    fn default() -> Self {
        Self { cut: false, loss: 0, repeats: 0, delay_millis: (0, 2) }
    }
}

/// Links that are not as usual.
#[derive(Default)]
pub struct Network(pub BTreeMap<(Place, Place), Link>);

impl Network {
    pub fn link(&self, from: Place, to: Place) -> Link {
        self.0.get(&(from, to)).copied().unwrap_or_default()
    }

    pub fn change(&mut self, from: Place, to: Place, change: impl Fn(&mut Link)) {
        change(self.0.entry((from, to)).or_default());
    }

    pub fn open(&self, from: Place, to: Place) -> bool {
        !self.link(from, to).cut
    }

    pub fn delay_micros(&self, from: Place, to: Place) -> u64 {
        self.link(from, to).delay_millis.1 * 1_000
    }
}

pub type Answer<T> = Pin<Box<dyn Future<Output = Option<T>> + Send>>;

/// Why there is no answer.
pub enum Silence {
    /// Nobody listens there.
    Refused,
    /// Nothing came back in time.
    Lost,
}

/// How long this message travels; `None`: it never arrives.
pub fn travel(world: &World, from: Place, to: Place) -> Option<Duration> {
    let mut state = world.lock();
    let link = state.network.link(from, to);
    let lost = state.random.percent(link.loss);
    let (least, most) = link.delay_millis;
    let delay = state.random.millis(least, most);
    (!link.cut && !lost).then_some(delay)
}

pub async fn rest(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

/// Sends a question; `deliver` is what the other side does with it, `None` if nobody listens.
pub async fn ask<T: Send + 'static>(
    world: &Arc<World>,
    from: Place,
    to: Place,
    timeout: Duration,
    deliver: impl Fn() -> Answer<T> + Send + Sync + 'static,
) -> Result<T, Silence> {
    let (sender, receiver) = oneshot::channel();
    let (far, deliver) = (world.clone(), Arc::new(deliver));
    let repeats = {
        let mut state = world.lock();
        let chance = state.network.link(from, to).repeats;
        state.random.percent(chance)
    };
    if repeats {
        let (world, deliver) = (world.clone(), deliver.clone());
        tokio::spawn(async move {
            if let Some(delay) = travel(&world, from, to) {
                rest(delay + Duration::from_millis(300)).await;
                deliver().await;
            }
        });
    }
    tokio::spawn(async move {
        let Some(there) = travel(&far, from, to) else { return };
        rest(there).await;
        if let Place::Host(host) = to
            && !far.lock().hosts[host].up
        {
            return;
        }
        let answer = deliver().await;
        if let Some(back) = travel(&far, to, from) {
            rest(back).await;
            // The sender may have given up.
            let _ = sender.send(answer);
        }
    });
    match tokio::time::timeout(timeout, receiver).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err(Silence::Refused),
        // Lost: the sender learns of it by waiting.
        Ok(Err(_)) => {
            rest(timeout).await;
            Err(Silence::Lost)
        }
        Err(_) => Err(Silence::Lost),
    }
}

fn trouble(agent: &str, silence: Silence) -> ControlError {
    let (agent, url) = (agent.to_owned(), "simulated".to_owned());
    match silence {
        Silence::Refused => ControlError::Unreachable { agent, url, problem: "connection refused".to_owned() },
        Silence::Lost => ControlError::Unknown { agent, url, problem: "timed out".to_owned() },
    }
}

/// What the agent's HTTP server does: nothing while its process is stopped, nothing ever once it is dead.
pub fn agent_of(world: &World, host: usize) -> Option<(Process, Arc<dyn stormglass::api::agent::AgentHandler>)> {
    let state = world.lock();
    let agent = state.hosts[host].agent.as_ref()?;
    Some((agent.process.clone(), agent.handler.clone()?))
}

#[async_trait]
impl NodeControl for ControllerPort {
    async fn command(
        &self,
        node: &NodeName,
        envelope: &CommandEnvelope,
        timeout: Duration,
    ) -> Result<CommandReply, ControlError> {
        self.process.pass().await;
        let host = index_of(node.as_str()).expect("configured");
        let (world, envelope) = (self.world.clone(), envelope.clone());
        let wait = timeout.mul_f64(0.75).min(Duration::from_secs(5));
        let answer = ask(&self.world, Place::Controller(self.index), Place::Host(host), timeout, move || {
            let (world, envelope) = (world.clone(), envelope.clone());
            Box::pin(async move {
                let (process, handler) = agent_of(&world, host)?;
                process.pass().await;
                let reply = handler.command(envelope, wait).await;
                process.pass().await;
                Some(reply)
            })
        });
        let answer = answer.await;
        self.process.pass().await;
        answer.map_err(|silence| trouble(node.as_str(), silence))
    }

    async fn assign(&self, node: &NodeName, assignment: &Assignment, timeout: Duration) -> Result<(), ControlError> {
        self.process.pass().await;
        let host = index_of(node.as_str()).expect("configured");
        let (world, assignment) = (self.world.clone(), assignment.clone());
        let answer = ask(&self.world, Place::Controller(self.index), Place::Host(host), timeout, move || {
            let (world, assignment) = (world.clone(), assignment.clone());
            Box::pin(async move {
                let (process, handler) = agent_of(&world, host)?;
                process.pass().await;
                let taken = handler.assign(assignment).await;
                process.pass().await;
                Some(taken)
            })
        });
        let answer = answer.await;
        self.process.pass().await;
        match answer {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refused)) => Err(ControlError::Rejected {
                agent: node.to_string(),
                url: "simulated".to_owned(),
                problem: refused.to_string(),
            }),
            Err(silence) => Err(trouble(node.as_str(), silence)),
        }
    }
}

#[async_trait]
impl ProxyControl for ControllerPort {
    async fn assign(
        &self,
        _proxy: &ProxyName,
        assignment: &ProxyAssignment,
        _timeout: Duration,
    ) -> Result<ProxyReply, ControlError> {
        self.process.pass().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let report = self.world.lock().proxy.take(assignment);
        Ok(ProxyReply { error: None, report })
    }

    async fn command(
        &self,
        _proxy: &ProxyName,
        envelope: &CommandEnvelope,
        _timeout: Duration,
    ) -> Result<CommandReply, ControlError> {
        self.process.pass().await;
        for _ in 0..400 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let state = self.world.lock();
            let led = state.proxy.target().is_some_and(|host| state.hosts[host].server.writes(state.now()));
            if led && matches!(&envelope.command, Command::VerifyWrite { .. }) {
                let output = CommandOutput::default();
                return Ok(CommandReply { state: CommandState::Succeeded { output }, report: None });
            }
        }
        let error = "the write did not arrive".to_owned();
        Ok(CommandReply { state: CommandState::Failed { error }, report: None })
    }
}

#[async_trait]
impl PrimaryProbe for ControllerPort {
    async fn probe(&self, address: &Address, timeout: Duration) -> Result<(), String> {
        self.process.pass().await;
        let host = index_at(address).ok_or("no such address")?;
        let world = self.world.clone();
        let answer = ask(&self.world, Place::Controller(self.index), Place::Host(host), timeout, move || {
            let world = world.clone();
            Box::pin(async move {
                let (accepts, hangs) = {
                    let state = world.lock();
                    let here = &state.hosts[host];
                    (!here.frozen && here.server.accepts(state.now()), here.frozen || here.server.run.is_some())
                };
                if !accepts && hangs {
                    // Neither an answer nor a refusal: longer than anybody waits.
                    tokio::time::sleep(timeout * 2).await;
                }
                accepts.then_some(())
            })
        });
        let answer = answer.await;
        self.process.pass().await;
        answer.map_err(|silence| trouble("postgres", silence).to_string())
    }
}
