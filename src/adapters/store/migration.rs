//! Copies one cluster from one store into another, empty one. The record goes last: without it, what was copied counts for nothing.

use super::etcd::kept;
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::ClusterName;
use crate::domain::operation::Operation;
use crate::domain::record::ClusterRecord;
use crate::domain::trail::{AuditRow, EventRow};
use crate::ports::store::{Card, Drawer, Store, StoreError, Swap};

/// Everything that a store holds of one cluster; lists oldest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Contents {
    /// The record, if there was a first epoch.
    pub record: Option<ClusterRecord>,
    /// Operations with their journals.
    pub operations: Vec<Operation>,
    /// Events.
    pub events: Vec<EventRow>,
    /// The audit log. Its chain is made anew in the new store.
    pub audit: Vec<AuditRow>,
    /// Cards: tokens, accepted alerts, jobs.
    pub cards: Vec<(Drawer, Card)>,
}

/// What there is to copy, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inventory {
    /// Epoch and number of the record.
    pub record: Option<(Epoch, RecordNumber)>,
    /// Operations, and how many of them are under way.
    pub operations: usize,
    /// Operations under way, which the next leader resumes.
    pub unfinished: usize,
    /// Events.
    pub events: usize,
    /// Rows of the audit log.
    pub audit: usize,
}

/// Reads all that the new store keeps.
pub async fn read(source: &dyn Store, cluster: &ClusterName) -> Result<Contents, StoreError> {
    let mut operations = source.list_operations(cluster, kept::OPERATIONS).await?;
    operations.reverse();
    let mut older = source.unfinished_operations(cluster).await?;
    older.retain(|unfinished| operations.iter().all(|known| known.id != unfinished.id));
    operations.splice(0..0, older);
    let mut events = source.list_events(cluster, kept::EVENTS).await?;
    events.reverse();
    let mut audit = source.list_audit(kept::AUDIT).await?;
    audit.reverse();
    let mut cards = Vec::new();
    for drawer in Drawer::ALL {
        let found = source.list_cards(drawer).await?;
        cards.extend(found.into_iter().rev().map(|card| (drawer, card)));
    }
    Ok(Contents { cards, record: source.load_record(cluster).await?, operations, events, audit })
}

impl Contents {
    /// In numbers.
    pub fn inventory(&self) -> Inventory {
        Inventory {
            record: self.record.as_ref().map(|record| (record.epoch, record.number)),
            operations: self.operations.len(),
            unfinished: self.operations.iter().filter(|operation| !operation.status.is_final()).count(),
            events: self.events.len(),
            audit: self.audit.len(),
        }
    }

    /// Writes all of it. A failure in between leaves a store without a record.
    pub async fn write(&self, target: &dyn Store) -> Result<(), StoreError> {
        for row in &self.audit {
            target.append_audit(row).await?;
        }
        for event in &self.events {
            target.append_event(event).await?;
        }
        for (drawer, card) in &self.cards {
            target.insert_card(*drawer, card).await?;
        }
        for operation in &self.operations {
            target.save_operation(operation).await?;
        }
        let Some(record) = &self.record else { return Ok(()) };
        match target.swap_record(None, record).await? {
            Swap::Stored => Ok(()),
            Swap::Conflict(_) => Err(StoreError::Failed {
                action: "copy the record",
                location: "the new store".to_owned(),
                problem: "there is one already: somebody else writes to it".to_owned(),
            }),
        }
    }
}
