//! Stores operations in the order in which they changed: a write that was begun earlier never takes back a later one.
//!
//! What an operation says is decided elsewhere. Invariant: the audit log has the end of what somebody asked for before the journal
//! has it, so that a controller that is killed in between writes the row again, and none is missing.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use tokio::sync::Mutex;

use super::audit;
use super::drive::STORE_PAUSE;
use super::event_loop::Controller;
use crate::domain::ids::OperationId;
use crate::domain::operation::Operation;
use crate::domain::trail::AuditRow;
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

impl Controller {
    /// Stores an operation without a step that would.
    pub(super) fn save(&self, operation: Operation) {
        self.store_operation(operation, None);
    }

    /// Stores the end of an operation, and tells the audit log of it where somebody asked for it.
    pub(super) fn save_end(&self, operation: Operation) {
        let row = audit::end_row(&operation, &self.parts.name);
        self.store_operation(operation, row);
    }

    /// An end is stored however long that takes: the next leader would resume an operation that never ended.
    fn store_operation(&self, operation: Operation, row: Option<AuditRow>) {
        let (journal, events) = (self.journal.clone(), self.events.clone());
        let log = self.parts.audit.clone().unwrap_or_else(|| self.store());
        tokio::spawn(async move {
            if let Some(row) = row
                && let Err(error) = log.append_audit(&row).await
            {
                tracing::error!(%error, who = row.who, what = row.what, "audit row not stored");
            }
            while let Err(error) = journal.save(&operation).await {
                tracing::error!(operation = %operation.id, %error, "the store did not take an operation");
                tokio::time::sleep(STORE_PAUSE).await;
                if !operation.status.is_final() || events.is_closed() {
                    break;
                }
            }
        });
    }
}
