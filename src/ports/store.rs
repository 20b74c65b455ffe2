//! What a controller must not forget: the cluster's record, operations with their journals, events, the audit log.
//!
//! Everything is on disk before a call returns `Ok`.

use crate::domain::epoch::RecordNumber;
use crate::domain::ids::{ClusterName, OperationId};
use crate::domain::operation::Operation;
use crate::domain::record::ClusterRecord;
pub use crate::domain::trail::{AuditRow, EventRow};
use async_trait::async_trait;

/// Why the store did not answer or did not write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Certainly not written.
    #[error("{action} in the store {location}: {problem}")]
    Failed {
        /// Verb and object.
        action: &'static str,
        /// File or URL.
        location: String,
        /// What went wrong, and what to do.
        problem: String,
    },
    /// Perhaps written: a time-out is not an outcome (design, rule 4b).
    #[error("{action} in the store {location} has an unknown outcome: {problem}")]
    Unknown {
        /// Verb and object.
        action: &'static str,
        /// File or URL.
        location: String,
        /// What went wrong.
        problem: String,
    },
}

/// Outcome of a compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// The new record is on disk.
    Stored,
    /// Another change came first; this is the record now.
    Conflict(Option<Box<ClusterRecord>>),
}

/// The controller's memory.
#[async_trait]
pub trait Store: Send + Sync {
    /// The record, or `None` before the first epoch.
    async fn load_record(&self, cluster: &ClusterName) -> Result<Option<ClusterRecord>, StoreError>;

    /// Stores `record` if the stored number still is `expected` (`None`: if there is no record yet).
    /// Refuses what [`ClusterRecord::violation_after`] refuses.
    async fn swap_record(&self, expected: Option<RecordNumber>, record: &ClusterRecord) -> Result<Swap, StoreError>;

    /// Stores an operation with its whole journal, replacing what was stored under its identity.
    async fn save_operation(&self, operation: &Operation) -> Result<(), StoreError>;

    /// One operation.
    async fn load_operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError>;

    /// The newest `limit` operations, newest first.
    async fn list_operations(&self, cluster: &ClusterName, limit: usize) -> Result<Vec<Operation>, StoreError>;

    /// Operations that have not ended, oldest first: what a new leader resumes.
    async fn unfinished_operations(&self, cluster: &ClusterName) -> Result<Vec<Operation>, StoreError>;

    /// Adds an event.
    async fn append_event(&self, event: &EventRow) -> Result<(), StoreError>;

    /// The newest `limit` events, newest first.
    async fn list_events(&self, cluster: &ClusterName, limit: usize) -> Result<Vec<EventRow>, StoreError>;

    /// Adds an audit row.
    async fn append_audit(&self, row: &AuditRow) -> Result<(), StoreError>;

    /// The newest `limit` audit rows, newest first.
    async fn list_audit(&self, limit: usize) -> Result<Vec<AuditRow>, StoreError>;
}
