//! Operators: they ask for what they like, whatever the cluster is busy with, and put back what they changed.

use std::sync::Arc;
use std::time::Duration;

use stormglass::api::authentication::Caller;
use stormglass::api::controller::ControllerHandler;
use stormglass::api::wire::{MutationReply, NodeRequest, PauseRequest, Problem, SwitchoverRequest};
use stormglass::controller::ControllerHandle;
use stormglass::domain::access::Role;

use super::controllers::leading;
use super::world::{HOSTS, World, node};

/// No operator waits longer for an answer.
const PATIENCE: Duration = Duration::from_secs(6);
/// Between two attempts to put something back, and how many there are.
const AGAIN: Duration = Duration::from_millis(500);
const ATTEMPTS: u32 = 120;

fn caller() -> Caller {
    Caller {
        name: "operator".to_owned(),
        role: Role::Operator,
        clusters: Vec::new(),
        peer: "127.0.0.1:1".parse().expect("an address"),
    }
}

/// What the controller that leads says; `None`: nobody answers.
async fn ask<F>(world: &Arc<World>, what: &str, question: impl FnOnce(Arc<ControllerHandle>) -> F) -> Option<bool>
where
    F: Future<Output = Result<MutationReply, Problem>>,
{
    let leader = world.lock().leader();
    let (process, handle) = leading(world, leader)?;
    let asked = async {
        process.pass().await;
        let answer = question(handle).await;
        process.pass().await;
        answer
    };
    let (words, done) = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(_)) => ("taken".to_owned(), Some(true)),
        Ok(Err(problem)) => (format!("refused: {}", problem.detail), Some(false)),
        Err(_) => ("no answer".to_owned(), None),
    };
    world.note(format!("operator {what}: {words}"));
    done
}

pub async fn switch_over(world: &Arc<World>) {
    let to = {
        let mut state = world.lock();
        let named = state.random.percent(50);
        named.then(|| node(state.random.index(HOSTS)))
    };
    let request = SwitchoverRequest { to, ..SwitchoverRequest::default() };
    ask(world, "switchover", |handle| async move { handle.switchover("main", request, &caller()).await }).await;
}

/// Stops whatever is under way.
pub async fn cancel(world: &Arc<World>) {
    let unfinished = {
        let state = world.lock();
        state.store.operations.values().find(|operation| !operation.status.is_final()).map(|it| it.id.0.clone())
    };
    if let Some(id) = unfinished {
        ask(world, "cancel", |handle| async move { handle.cancel(&id, &caller()).await }).await;
    }
}

pub async fn pause(world: &Arc<World>) {
    let request = PauseRequest { duration_seconds: Some(60) };
    ask(world, "pause", |handle| async move { handle.pause("main", request, &caller()).await }).await;
}

pub async fn resume(world: &Arc<World>) {
    for _ in 0..ATTEMPTS {
        if world.lock().store.record.as_ref().is_some_and(|record| record.paused_until.is_none()) {
            return;
        }
        ask(world, "resume", |handle| async move { handle.resume("main", &caller()).await }).await;
        tokio::time::sleep(AGAIN).await;
    }
}

pub async fn fence(world: &Arc<World>, host: usize) {
    let request = NodeRequest { node: node(host), dry_run: false, reclone: false };
    ask(world, "fence", |handle| async move { handle.fence("main", request, &caller()).await }).await;
}

pub async fn unfence(world: &Arc<World>, host: usize) {
    let mut free = 0;
    for _ in 0..ATTEMPTS {
        // A wish that was taken may be stored a little later.
        let is_fenced = world.lock().store.record.as_ref().is_none_or(|record| record.fenced.contains(&node(host)));
        free = if is_fenced { 0 } else { free + 1 };
        if free > 4 {
            return;
        }
        if is_fenced {
            let request = NodeRequest { node: node(host), dry_run: false, reclone: false };
            ask(world, "unfence", |handle| async move { handle.unfence("main", request, &caller()).await }).await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
