//! The store of several controllers: etcd elects, compares and swaps, watches; nothing of consensus is written here.
//!
//! Layout below the prefix, all values JSON, so that `etcdctl get --prefix` can be read:
//! `leaders/LEASE` the candidates, of whom the oldest leads; `record/CLUSTER`; `operations/CLUSTER/ID` with its journal;
//! `unfinished/CLUSTER/ID` an index; `events/CLUSTER/ID`; `audit/NUMBER`; `cards/DRAWER/NAME`; `barrier/CLUSTER` (see `write.rs`);
//! `schema`.
//! Order is that of creation in etcd; wall clocks and identities decide nothing.
//!
//! Invariant: every write is one transaction that compares the create revision of the writer's own leader key. A deposed leader
//! can write nothing, however late its requests arrive.

mod cards;
mod connection;
mod election;
mod keys;
mod read;
mod session;
mod write;

use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::epoch::RecordNumber;
use crate::domain::ids::{ClusterName, OperationId};
use crate::domain::operation::Operation;
use crate::domain::record::ClusterRecord;
use crate::domain::trail::{AuditEntry, AuditRow, EventRow};
use crate::ports::store::{Card, Drawer, Page, Paged, Store, StoreError, Swap};

pub use connection::{EtcdSettings, EtcdTls};
pub use election::EtcdLeadership;

use connection::Connection;
use keys::Keys;
use write::Writer;

/// What is kept of each kind; the oldest goes first. etcd holds everything in memory and on every member, so less than in a file.
pub(super) mod kept {
    /// Ended operations of one cluster.
    pub const OPERATIONS: usize = 500;
    /// Events of one cluster.
    pub const EVENTS: usize = 5_000;
    /// Rows of the audit log.
    pub const AUDIT: usize = 5_000;
}

/// A controller's memory in etcd. Without a term it only reads.
pub struct EtcdStore {
    connection: Arc<Connection>,
    keys: Keys,
    writer: Option<Writer>,
}

impl EtcdStore {
    /// A store that reads and refuses every write. Connects with the first call.
    pub fn reader(settings: &EtcdSettings) -> Result<Self, StoreError> {
        Ok(Self { connection: Arc::new(Connection::new(settings)?), keys: Keys::new(&settings.prefix), writer: None })
    }

    /// True if nothing was ever stored below the prefix. Candidates for the leadership do not count.
    pub async fn is_empty(&self) -> Result<bool, StoreError> {
        self.nothing_stored().await
    }

    fn writer(&self, action: &'static str) -> Result<&Writer, StoreError> {
        self.writer
            .as_ref()
            .ok_or_else(|| self.connection.failed(action, "this controller does not lead, and only the leader writes"))
    }
}

#[async_trait]
impl Store for EtcdStore {
    /// After a swap with an unknown outcome, the record that this returns is final: what was on its way can land no more.
    async fn load_record(&self, cluster: &ClusterName) -> Result<Option<ClusterRecord>, StoreError> {
        if let Some(writer) = &self.writer {
            self.settle(writer, cluster).await?;
        }
        Ok(self.read_record(cluster).await?.map(|stored| stored.record))
    }

    async fn swap_record(&self, expected: Option<RecordNumber>, record: &ClusterRecord) -> Result<Swap, StoreError> {
        self.swap(self.writer("swap the record")?, expected, record).await
    }

    async fn save_operation(&self, operation: &Operation) -> Result<(), StoreError> {
        self.save(self.writer("save an operation")?, operation).await
    }

    async fn load_operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        self.read_operation(id).await
    }

    async fn page_operations(&self, cluster: &ClusterName, page: Page) -> Result<Paged<Operation>, StoreError> {
        self.newest_operations(cluster, page).await
    }

    async fn unfinished_operations(&self, cluster: &ClusterName) -> Result<Vec<Operation>, StoreError> {
        self.open_operations(cluster).await
    }

    async fn append_event(&self, event: &EventRow) -> Result<(), StoreError> {
        const ACTION: &str = "append an event";
        let folder = self.keys.events(&event.cluster);
        self.append(self.writer(ACTION)?, ACTION, &folder, event, kept::EVENTS).await
    }

    async fn page_events(&self, cluster: &ClusterName, page: Page) -> Result<Paged<EventRow>, StoreError> {
        self.newest("list events", "an event", &self.keys.events(cluster), page).await
    }

    async fn append_audit(&self, row: &AuditRow) -> Result<(), StoreError> {
        self.append_chained(self.writer("append an audit row")?, row).await
    }

    /// [`Page::before`] is a create revision here, and not a row's number.
    async fn page_audit(&self, page: Page) -> Result<Paged<AuditEntry>, StoreError> {
        self.newest("list audit rows", "an audit row", &self.keys.audit(), page).await
    }

    async fn insert_card(&self, drawer: Drawer, card: &Card) -> Result<Option<Card>, StoreError> {
        self.put_card_in(self.writer("put a card in")?, drawer, card).await
    }

    async fn replace_card(&self, drawer: Drawer, card: &Card) -> Result<(), StoreError> {
        self.rewrite_card(self.writer("replace a card")?, drawer, card).await
    }

    async fn load_card(&self, drawer: Drawer, key: &str) -> Result<Option<Card>, StoreError> {
        Ok(self.read_card(drawer, key).await?.map(|(card, _)| card))
    }

    async fn list_cards(&self, drawer: Drawer) -> Result<Vec<Card>, StoreError> {
        self.read_cards(drawer).await
    }

    async fn remove_card(&self, drawer: Drawer, key: &str) -> Result<bool, StoreError> {
        self.take_card_out(self.writer("remove a card")?, drawer, key).await
    }
}
