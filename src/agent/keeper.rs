//! The agent's memory while it runs: what it knows, and what of it is on disk.
//!
//! A promise is made with [`Keeper::change`], which returns once it is on disk. What may be lost goes through
//! [`Keeper::change_soon`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::ports::agent::{AgentMemory, Memory, MemoryError};

/// Keeps the memory.
pub(super) struct Keeper {
    current: Mutex<Memory>,
    store: Arc<dyn AgentMemory>,
    writing: tokio::sync::Mutex<()>,
    soon: Notify,
}

impl Keeper {
    /// Takes over a memory that is on disk.
    pub(super) fn new(memory: Memory, store: Arc<dyn AgentMemory>) -> Self {
        Self { current: Mutex::new(memory), store, writing: tokio::sync::Mutex::new(()), soon: Notify::new() }
    }

    /// Looks at the memory.
    pub(super) fn read<R>(&self, look: impl FnOnce(&Memory) -> R) -> R {
        look(&self.lock())
    }

    /// Makes a change that is on disk when this returns `Ok`; on an error it was not made.
    /// `change` runs twice, on the copy that is written and on the memory itself, so that what was changed meanwhile stays.
    pub(super) async fn change(&self, change: impl Fn(&mut Memory)) -> Result<(), MemoryError> {
        let _one_writer = self.writing.lock().await;
        let mut next = self.lock().clone();
        change(&mut next);
        self.store.store(&next).await?;
        change(&mut self.lock());
        Ok(())
    }

    /// Makes a change at once and has it written when there is time.
    pub(super) fn change_soon(&self, change: impl FnOnce(&mut Memory)) {
        change(&mut self.lock());
        self.soon.notify_one();
    }

    /// Writes what `change_soon` left behind, for as long as the agent runs.
    pub(super) async fn write_behind(&self) {
        loop {
            self.soon.notified().await;
            if let Err(error) = self.change(|_| ()).await {
                tracing::error!(%error, "the agent's state could not be written: free space on its disk");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                self.soon.notify_one();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // A panic elsewhere leaves the memory whole: every change is one assignment after the other.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
