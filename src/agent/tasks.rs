//! Commands under way and commands that ended: what makes a repeated command harmless.
//!
//! A success is answered again and again and never run again. A failure is told once; asked for after that, the command
//! runs again, so that a step can be retried under the same key.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::domain::command::CommandState;
use crate::domain::report::TaskState;

/// Ended tasks that are kept for the report.
const ENDED_MAX: usize = 16;

/// The commands of one agent.
#[derive(Default)]
pub(super) struct Tasks(Mutex<BTreeMap<String, Task>>);

struct Task {
    state: watch::Receiver<CommandState>,
    told: bool,
}

/// What a command has to do to be found.
pub(super) enum Entry {
    /// It is there; wait for its end.
    Known(watch::Receiver<CommandState>),
    /// It is new: run it and tell its state here.
    New(Progress, watch::Receiver<CommandState>),
}

/// Where a running command tells how it stands.
#[derive(Clone)]
pub(super) struct Progress(Arc<watch::Sender<CommandState>>);

impl Progress {
    /// For people.
    pub(super) fn tell(&self, progress: impl Into<String>) {
        self.0.send_replace(CommandState::Running { progress: progress.into() });
    }

    /// The end.
    pub(super) fn end(&self, state: CommandState) {
        self.0.send_replace(state);
    }
}

impl Tasks {
    /// Finds the task with this key or makes it.
    pub(super) fn enter(&self, key: &str) -> Entry {
        let mut tasks = self.lock();
        if let Some(task) = tasks.get(key) {
            let failed = matches!(&*task.state.borrow(), CommandState::Failed { .. });
            if !(failed && task.told) {
                return Entry::Known(task.state.clone());
            }
        }
        let (sender, state) = watch::channel(CommandState::Running { progress: "waiting".to_owned() });
        tasks.insert(key.to_owned(), Task { state: state.clone(), told: false });
        let ended: Vec<String> = tasks
            .iter()
            .filter(|(_, task)| !matches!(&*task.state.borrow(), CommandState::Running { .. }))
            .map(|(key, _)| key.clone())
            .collect();
        // Keys begin with the operation's identity, which sorts by time.
        for old in ended.iter().rev().skip(ENDED_MAX) {
            tasks.remove(old);
        }
        Entry::New(Progress(Arc::new(sender)), state)
    }

    /// Waits up to `wait` for the end; the state as it is then.
    pub(super) async fn wait(
        &self,
        key: &str,
        mut state: watch::Receiver<CommandState>,
        wait: Duration,
    ) -> CommandState {
        let ended = state.wait_for(|state| !matches!(state, CommandState::Running { .. }));
        let ended = tokio::time::timeout(wait, ended).await.map(|end| end.map(|state| state.clone()));
        match ended {
            Ok(Ok(state)) => {
                if let Some(task) = self.lock().get_mut(key) {
                    task.told = true;
                }
                state
            }
            Ok(Err(_sender_gone)) => {
                self.lock().remove(key);
                CommandState::Failed { error: "the command was abandoned by its agent: send it again".to_owned() }
            }
            Err(_elapsed) => state.borrow().clone(),
        }
    }

    /// For the report.
    pub(super) fn report(&self) -> BTreeMap<String, TaskState> {
        let state = |task: &Task| match &*task.state.borrow() {
            CommandState::Running { progress } => TaskState::Running { progress: progress.clone() },
            CommandState::Succeeded { .. } => TaskState::Succeeded,
            CommandState::Failed { error } => TaskState::Failed { error: error.clone() },
            CommandState::Refused { reason } => TaskState::Failed { error: reason.clone() },
        };
        self.lock().iter().map(|(key, task)| (key.clone(), state(task))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Task>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
