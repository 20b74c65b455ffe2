//! The stores: one SQLite file for one controller, here; etcd for several, in `etcd`.
//!
//! `ports::Store` is implemented here. One thread owns the file's connection; callers wait for it without blocking a runtime.
//! Invariant: a call returns `Ok` only after its commit was flushed (write-ahead log, `synchronous = FULL`; etcd: by its majority).

pub mod etcd;
mod file;
mod format;
pub mod migration;
mod queue;
mod rows;
mod schema;

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::domain::epoch::RecordNumber;
use crate::domain::ids::{ClusterName, OperationId};
use crate::domain::operation::Operation;
use crate::domain::record::ClusterRecord;
use crate::domain::trail::{AuditRow, EventRow};
use crate::ports::store::{Store, StoreError, Swap};
use queue::Queue;

/// A controller's memory in one file.
pub struct SqliteStore {
    queue: Queue,
    location: PathBuf,
}

impl SqliteStore {
    /// Opens the store at `path`, or makes it if there is nothing. Takes the file for this process alone, checks it,
    /// and brings an older schema up to date. Blocks for as long as that takes: call it before serving.
    ///
    /// A file that is truncated, damaged, foreign, newer than this program or in use is refused and left as it is.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let opened = file::open(path)?;
        let queue = Queue::begin(opened, path.display().to_string())?;
        Ok(Self { queue, location: path.to_owned() })
    }

    /// Where the file is.
    pub fn location(&self) -> &Path {
        &self.location
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn load_record(&self, cluster: &ClusterName) -> Result<Option<ClusterRecord>, StoreError> {
        let cluster = cluster.clone();
        self.queue.call("load the record", move |connection| rows::load_record(connection, &cluster)).await
    }

    async fn swap_record(&self, expected: Option<RecordNumber>, record: &ClusterRecord) -> Result<Swap, StoreError> {
        let record = record.clone();
        self.queue.call("swap the record", move |connection| rows::swap_record(connection, expected, &record)).await
    }

    async fn save_operation(&self, operation: &Operation) -> Result<(), StoreError> {
        let operation = operation.clone();
        self.queue.call("save an operation", move |connection| rows::save_operation(connection, &operation)).await
    }

    async fn load_operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        let id = id.clone();
        self.queue.call("load an operation", move |connection| rows::load_operation(connection, &id)).await
    }

    async fn list_operations(&self, cluster: &ClusterName, limit: usize) -> Result<Vec<Operation>, StoreError> {
        let cluster = cluster.clone();
        self.queue.call("list operations", move |connection| rows::list_operations(connection, &cluster, limit)).await
    }

    async fn unfinished_operations(&self, cluster: &ClusterName) -> Result<Vec<Operation>, StoreError> {
        let cluster = cluster.clone();
        self.queue
            .call("list unfinished operations", move |connection| rows::unfinished_operations(connection, &cluster))
            .await
    }

    async fn append_event(&self, event: &EventRow) -> Result<(), StoreError> {
        let event = event.clone();
        self.queue.call("append an event", move |connection| rows::append_event(connection, &event)).await
    }

    async fn list_events(&self, cluster: &ClusterName, limit: usize) -> Result<Vec<EventRow>, StoreError> {
        let cluster = cluster.clone();
        self.queue.call("list events", move |connection| rows::list_events(connection, &cluster, limit)).await
    }

    async fn append_audit(&self, row: &AuditRow) -> Result<(), StoreError> {
        let row = row.clone();
        self.queue.call("append an audit row", move |connection| rows::append_audit(connection, &row)).await
    }

    async fn list_audit(&self, limit: usize) -> Result<Vec<AuditRow>, StoreError> {
        self.queue.call("list audit rows", move |connection| rows::list_audit(connection, limit)).await
    }
}

#[cfg(test)]
mod tests;
