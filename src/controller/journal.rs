//! Stores operations in the order in which they changed: a write that was begun earlier never takes back a later one.
//!
//! What an operation says is decided elsewhere; nothing here retries.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::domain::ids::OperationId;
use crate::domain::operation::Operation;
use crate::ports::{Store, StoreError};

/// How far an operation is: ended, and the length of its journal.
type Progress = (bool, usize);

/// The way of operations to the store.
pub(super) struct Journal {
    store: Arc<dyn Store>,
    written: Mutex<BTreeMap<OperationId, Progress>>,
}

impl Journal {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, written: Mutex::default() }
    }

    /// Stores `operation` as it is here, unless it was stored as it was later.
    pub async fn save(&self, operation: &Operation) -> Result<(), StoreError> {
        let mut written = self.written.lock().await;
        let progress = (operation.status.is_final(), operation.journal.len());
        let furthest = written.entry(operation.id.clone()).or_insert(progress);
        if progress < *furthest {
            return Ok(());
        }
        *furthest = progress;
        self.store.save_operation(operation).await
    }
}
