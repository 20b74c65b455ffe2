//! The store: survives every controller, writes whole or not at all, and may not answer. A controller alone has it on its own disk;
//! three reach it as etcd, where a write lands only under the session that holds the leader key.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use stormglass::domain::epoch::RecordNumber;
use stormglass::domain::ids::{ClusterName, NodeName, OperationId};
use stormglass::domain::operation::Operation;
use stormglass::domain::record::ClusterRecord;
use stormglass::ports::store::{AuditEntry, AuditRow, Card, Drawer, EventRow, Page, Paged, Store, StoreError, Swap};

use super::controllers::ControllerPort;
use super::etcd::Session;
use super::world::State;

/// What is on the store's disk.
#[derive(Default)]
pub struct StoreDisk {
    pub record: Option<ClusterRecord>,
    pub operations: BTreeMap<OperationId, Operation>,
    pub trouble: StoreTrouble,
    /// etcd only: who holds the leader key.
    pub leader: Option<Session>,
    /// Sessions that were ever begun.
    pub sessions: u64,
}

impl StoreDisk {
    /// Everything that it held is gone.
    pub fn lose(&mut self) {
        (self.record, self.leader) = (None, None);
        self.operations.clear();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoreTrouble {
    #[default]
    None,
    /// Nothing is written; of etcd: no majority.
    Fails,
    /// Answers late.
    Slow,
    /// Perhaps written, nobody knows.
    Unknown,
}

fn failed(action: &'static str, problem: &str) -> StoreError {
    StoreError::Failed { action, location: "simulated".to_owned(), problem: problem.to_owned() }
}

impl ControllerPort {
    /// One write: before, during or after it anything may happen.
    async fn write<T: Send + 'static>(
        &self,
        action: &'static str,
        write: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        if let Some(session) = self.session {
            let written = self.etcd(action, move |state| state.is_leading_session(session).then(|| write(state)));
            return written.await?.ok_or_else(|| failed(action, "another controller leads"));
        }
        self.process.pass().await;
        let (takes, trouble, lands) = {
            let mut state = self.world.lock();
            let takes = state.random.millis(0, 4);
            let lands = state.random.percent(50);
            (takes, state.store.trouble, lands)
        };
        tokio::time::sleep(takes).await;
        match trouble {
            StoreTrouble::Fails => return Err(failed(action, "disk full")),
            StoreTrouble::Slow => tokio::time::sleep(Duration::from_millis(1_500)).await,
            StoreTrouble::None | StoreTrouble::Unknown => {}
        }
        self.process.pass().await;
        if trouble == StoreTrouble::Unknown {
            if lands {
                write(&mut self.world.lock());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            let (location, problem) = ("simulated".to_owned(), "no answer".to_owned());
            return Err(StoreError::Unknown { action, location, problem });
        }
        let written = write(&mut self.world.lock());
        self.process.pass().await;
        Ok(written)
    }

    async fn read<T: Send + 'static>(
        &self,
        action: &'static str,
        read: impl FnOnce(&StoreDisk) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        if self.session.is_some() {
            return self.etcd(action, move |state| read(&state.store)).await;
        }
        self.process.pass().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let state = self.world.lock();
        match state.store.trouble {
            StoreTrouble::Fails => Err(failed(action, "disk full")),
            _ => Ok(read(&state.store)),
        }
    }
}

#[async_trait]
impl Store for ControllerPort {
    async fn load_record(&self, _cluster: &ClusterName) -> Result<Option<ClusterRecord>, StoreError> {
        self.read("load the record", |disk| disk.record.clone()).await
    }

    async fn swap_record(&self, expected: Option<RecordNumber>, record: &ClusterRecord) -> Result<Swap, StoreError> {
        let record = record.clone();
        let swapped = self.write("swap the record", move |state| {
            let fits = state.store.record.as_ref().map(|stored| stored.number) == expected;
            if !fits {
                return Ok(Swap::Conflict(state.store.record.clone().map(Box::new)));
            }
            let violation = state.store.record.as_ref().and_then(|stored| record.violation_after(stored));
            if let Some(violation) = violation {
                return Err(failed("swap the record", violation));
            }
            state.note(&describe(&record));
            state.store.record = Some(record);
            Ok(Swap::Stored)
        });
        swapped.await?
    }

    async fn save_operation(&self, operation: &Operation) -> Result<(), StoreError> {
        let operation = operation.clone();
        let saved = self.write("save an operation", move |state| {
            let Operation { kind, status, message, journal, .. } = &operation;
            let step = journal.last().map(|event| format!("{} {:?}", event.step, event.state)).unwrap_or_default();
            let line = format!(
                "store {} of {}: {} {step} {}",
                kind.label(),
                kind.subject(),
                status.label(),
                message.as_deref().unwrap_or_default()
            );
            state.note(line.trim_end());
            let before = state.store.operations.get(&operation.id).map_or(0, |stored| stored.journal.len());
            // etcd may take a request in after the controller gave it up; a disk does what it is told when it is told.
            if operation.journal.len() < before && state.controllers.len() == 1 {
                state.violate(&format!("the journal of {} went backwards", operation.id));
            }
            state.store.operations.insert(operation.id.clone(), operation);
        });
        saved.await
    }

    async fn load_operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        let id = id.clone();
        self.read("load an operation", move |disk| disk.operations.get(&id).cloned()).await
    }

    async fn page_operations(&self, _cluster: &ClusterName, page: Page) -> Result<Paged<Operation>, StoreError> {
        let newest = move |disk: &StoreDisk| disk.operations.values().rev().take(page.limit).cloned().collect();
        Ok(Paged { rows: self.read("list operations", newest).await?, next: None })
    }

    async fn unfinished_operations(&self, _cluster: &ClusterName) -> Result<Vec<Operation>, StoreError> {
        let unfinished = |disk: &StoreDisk| {
            disk.operations.values().filter(|operation| !operation.status.is_final()).cloned().collect()
        };
        self.read("list operations", unfinished).await
    }

    async fn append_event(&self, _event: &EventRow) -> Result<(), StoreError> {
        Ok(())
    }

    async fn page_events(&self, _cluster: &ClusterName, _page: Page) -> Result<Paged<EventRow>, StoreError> {
        Ok(Paged { rows: Vec::new(), next: None })
    }

    async fn append_audit(&self, _row: &AuditRow) -> Result<(), StoreError> {
        Ok(())
    }

    async fn page_audit(&self, _page: Page) -> Result<Paged<AuditEntry>, StoreError> {
        Ok(Paged { rows: Vec::new(), next: None })
    }

    async fn insert_card(&self, _drawer: Drawer, _card: &Card) -> Result<Option<Card>, StoreError> {
        Ok(None)
    }

    async fn replace_card(&self, _drawer: Drawer, _card: &Card) -> Result<(), StoreError> {
        Ok(())
    }

    async fn load_card(&self, _drawer: Drawer, _key: &str) -> Result<Option<Card>, StoreError> {
        Ok(None)
    }

    async fn list_cards(&self, _drawer: Drawer) -> Result<Vec<Card>, StoreError> {
        Ok(Vec::new())
    }

    async fn remove_card(&self, _drawer: Drawer, _key: &str) -> Result<bool, StoreError> {
        Ok(false)
    }
}

fn describe(record: &ClusterRecord) -> String {
    let ClusterRecord { epoch, number, holder, holder_confirmed, eligible, proposed, synchronous, .. } = record;
    let names =
        |nodes: &BTreeSet<NodeName>| nodes.iter().map(|node| node.as_str().to_owned()).collect::<Vec<_>>().join(" ");
    format!(
        "store record {number}: epoch {epoch} of {holder}, confirmed {holder_confirmed}, eligible [{}], proposed [{}], synchronous [{}]",
        names(eligible),
        names(proposed),
        names(synchronous)
    )
}
