//! Stores operations in the order in which they changed: a write that was begun earlier never takes back a later one.
//!
//! What an operation says is decided elsewhere; nothing here retries.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use tokio::sync::Mutex;

use crate::domain::ids::OperationId;
use crate::domain::operation::Operation;
use crate::ports::{Store, StoreError};

/// How far an operation is: ended, and the length of its journal.
type Progress = (bool, usize);

/// The way of operations to the store.
pub(super) struct Journal {
    store: Arc<dyn Store>,
    written: std::sync::Mutex<BTreeMap<OperationId, Arc<Mutex<Progress>>>>,
}

impl Journal {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, written: std::sync::Mutex::default() }
    }

    /// Stores `operation` as it is here, unless it was stored as it was later.
    pub async fn save(&self, operation: &Operation) -> Result<(), StoreError> {
        let progress = (operation.status.is_final(), operation.journal.len());
        let written = {
            let mut all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(operation.id.clone()).or_default().clone()
        };
        // One operation's slow write holds up no other operation.
        let mut furthest = written.lock().await;
        if progress >= *furthest {
            self.store.save_operation(operation).await?;
            *furthest = progress;
        }
        Ok(())
    }
}
