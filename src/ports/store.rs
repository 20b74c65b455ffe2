//! What a controller must not forget: the cluster's record, operations with their journals, events, the audit log, and cards:
//! small documents under a name (accepted alerts, tokens, answers already given, jobs).
//!
//! Everything is on disk before a call returns `Ok`.

use crate::domain::epoch::RecordNumber;
use crate::domain::ids::{ClusterName, OperationId};
use crate::domain::operation::Operation;
use crate::domain::record::ClusterRecord;
pub use crate::domain::trail::{AuditEntry, AuditRow, EventRow};
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

/// A piece of a list, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Rows at most.
    pub limit: usize,
    /// Only rows before this place, as [`Paged::next`] gave it; `None`: from the newest.
    pub before: Option<u64>,
}

impl Page {
    /// The newest `limit` rows.
    pub fn newest(limit: usize) -> Self {
        Self { limit, before: None }
    }
}

/// Rows, newest first, and where to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paged<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// [`Page::before`] of the next piece; `None`: there is nothing older.
    pub next: Option<u64>,
}

/// What cards are about. Each kind has its own names and its own bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drawer {
    /// Alerts that were accepted, and what became of them.
    Alerts,
    /// Tokens that were made while the controller ran, as hashes.
    Tokens,
    /// Answers to requests with an idempotency key.
    Replies,
    /// Retraining jobs.
    Jobs,
    /// Notifications that were sent.
    Notifications,
}

impl Drawer {
    /// Every drawer.
    pub const ALL: [Drawer; 5] = [Drawer::Alerts, Drawer::Tokens, Drawer::Replies, Drawer::Jobs, Drawer::Notifications];

    /// Name in the store.
    pub fn label(self) -> &'static str {
        match self {
            Drawer::Alerts => "alerts",
            Drawer::Tokens => "tokens",
            Drawer::Replies => "replies",
            Drawer::Jobs => "jobs",
            Drawer::Notifications => "notifications",
        }
    }

    /// How many are kept; the oldest go first. Nobody has so many tokens: [`Drawer::Tokens`] refuses more instead.
    pub fn kept(self) -> usize {
        match self {
            Drawer::Alerts | Drawer::Replies => 2_000,
            Drawer::Notifications => 1_000,
            Drawer::Tokens => 1_000,
            Drawer::Jobs => 100,
        }
    }
}

/// A small document under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its name, unique in its drawer.
    pub key: String,
    /// JSON text.
    pub body: String,
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

    /// Operations, newest first.
    async fn page_operations(&self, cluster: &ClusterName, page: Page) -> Result<Paged<Operation>, StoreError>;

    /// The newest `limit` operations, newest first.
    async fn list_operations(&self, cluster: &ClusterName, limit: usize) -> Result<Vec<Operation>, StoreError> {
        Ok(self.page_operations(cluster, Page::newest(limit)).await?.rows)
    }

    /// Operations that have not ended, oldest first: what a new leader resumes.
    async fn unfinished_operations(&self, cluster: &ClusterName) -> Result<Vec<Operation>, StoreError>;

    /// Adds an event.
    async fn append_event(&self, event: &EventRow) -> Result<(), StoreError>;

    /// Events, newest first.
    async fn page_events(&self, cluster: &ClusterName, page: Page) -> Result<Paged<EventRow>, StoreError>;

    /// The newest `limit` events, newest first.
    async fn list_events(&self, cluster: &ClusterName, limit: usize) -> Result<Vec<EventRow>, StoreError> {
        Ok(self.page_events(cluster, Page::newest(limit)).await?.rows)
    }

    /// Adds an audit row to the end of the chain.
    async fn append_audit(&self, row: &AuditRow) -> Result<(), StoreError>;

    /// Audit rows with their places in the chain, newest first. [`Page::before`] is a row's number.
    async fn page_audit(&self, page: Page) -> Result<Paged<AuditEntry>, StoreError>;

    /// The newest `limit` audit rows, newest first.
    async fn list_audit(&self, limit: usize) -> Result<Vec<AuditRow>, StoreError> {
        let page = self.page_audit(Page::newest(limit)).await?;
        Ok(page.rows.into_iter().map(|entry| entry.row).collect())
    }

    /// Puts a card in, unless there is one of its name: that one is returned, and nothing is written.
    async fn insert_card(&self, drawer: Drawer, card: &Card) -> Result<Option<Card>, StoreError>;

    /// Writes a new body on a card; does nothing where the card is gone.
    async fn replace_card(&self, drawer: Drawer, card: &Card) -> Result<(), StoreError>;

    /// One card.
    async fn load_card(&self, drawer: Drawer, key: &str) -> Result<Option<Card>, StoreError>;

    /// Every card of a drawer, newest first.
    async fn list_cards(&self, drawer: Drawer) -> Result<Vec<Card>, StoreError>;

    /// Takes a card out; true if there was one.
    async fn remove_card(&self, drawer: Drawer, key: &str) -> Result<bool, StoreError>;
}
