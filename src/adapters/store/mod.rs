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
use crate::domain::trail::{AuditEntry, AuditRow, EventRow};
use crate::ports::store::{Card, Drawer, Page, Paged, Store, StoreError, Swap};
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

    async fn page_operations(&self, cluster: &ClusterName, page: Page) -> Result<Paged<Operation>, StoreError> {
        let cluster = cluster.clone();
        self.queue.call("list operations", move |connection| rows::page_operations(connection, &cluster, page)).await
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

    async fn page_events(&self, cluster: &ClusterName, page: Page) -> Result<Paged<EventRow>, StoreError> {
        let cluster = cluster.clone();
        self.queue.call("list events", move |connection| rows::page_events(connection, &cluster, page)).await
    }

    async fn append_audit(&self, row: &AuditRow) -> Result<(), StoreError> {
        let row = row.clone();
        self.queue.call("append an audit row", move |connection| rows::append_audit(connection, &row)).await
    }

    async fn page_audit(&self, page: Page) -> Result<Paged<AuditEntry>, StoreError> {
        self.queue.call("list audit rows", move |connection| rows::page_audit(connection, page)).await
    }

    async fn insert_card(&self, drawer: Drawer, card: &Card) -> Result<Option<Card>, StoreError> {
        let card = card.clone();
        self.queue.call("put a card in", move |connection| rows::insert_card(connection, drawer, &card)).await
    }

    async fn replace_card(&self, drawer: Drawer, card: &Card) -> Result<(), StoreError> {
        let card = card.clone();
        self.queue.call("replace a card", move |connection| rows::replace_card(connection, drawer, &card)).await
    }

    async fn load_card(&self, drawer: Drawer, key: &str) -> Result<Option<Card>, StoreError> {
        let key = key.to_owned();
        self.queue.call("load a card", move |connection| rows::load_card(connection, drawer, &key)).await
    }

    async fn list_cards(&self, drawer: Drawer) -> Result<Vec<Card>, StoreError> {
        self.queue.call("list cards", move |connection| rows::list_cards(connection, drawer)).await
    }

    async fn remove_card(&self, drawer: Drawer, key: &str) -> Result<bool, StoreError> {
        let key = key.to_owned();
        self.queue.call("remove a card", move |connection| rows::remove_card(connection, drawer, &key)).await
    }
}

#[cfg(test)]
mod tests;
