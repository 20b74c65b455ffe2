//! The controller's store: survives every controller, writes whole or not at all, and may not answer.

use std::time::Duration;

use async_trait::async_trait;
use stormglass::domain::clock::{BootId, Moment, WallTime};
use stormglass::domain::epoch::RecordNumber;
use stormglass::domain::ids::{ClusterName, OperationId};
use stormglass::domain::operation::Operation;
use stormglass::domain::record::ClusterRecord;
use stormglass::ports::clock::Clock;
use stormglass::ports::store::{AuditRow, EventRow, Store, StoreError, Swap};

use super::network::ControllerPort;
use super::world::{StoreDisk, StoreTrouble};

fn failed(action: &'static str) -> StoreError {
    StoreError::Failed { action, location: "simulated".to_owned(), problem: "disk full".to_owned() }
}

impl ControllerPort {
    /// One write: before, during or after it anything may happen.
    async fn write<T>(&self, action: &'static str, write: impl FnOnce(&mut StoreDisk) -> T) -> Result<T, StoreError> {
        self.process.pass().await;
        let (takes, trouble, lands) = {
            let mut state = self.world.lock();
            let takes = state.random.millis(0, 4);
            let lands = state.random.percent(50);
            (takes, state.store.trouble, lands)
        };
        tokio::time::sleep(takes).await;
        match trouble {
            StoreTrouble::Fails => return Err(failed(action)),
            StoreTrouble::Slow => tokio::time::sleep(Duration::from_millis(1_500)).await,
            StoreTrouble::None | StoreTrouble::Unknown => {}
        }
        self.process.pass().await;
        if trouble == StoreTrouble::Unknown {
            if lands {
                write(&mut self.world.lock().store);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            let (location, problem) = ("simulated".to_owned(), "no answer".to_owned());
            return Err(StoreError::Unknown { action, location, problem });
        }
        let written = write(&mut self.world.lock().store);
        self.process.pass().await;
        Ok(written)
    }

    async fn read<T>(&self, action: &'static str, read: impl FnOnce(&StoreDisk) -> T) -> Result<T, StoreError> {
        self.process.pass().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let state = self.world.lock();
        match state.store.trouble {
            StoreTrouble::Fails => Err(failed(action)),
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
        let world = self.world.clone();
        let swapped = self.write("swap the record", |disk| {
            if disk.record.as_ref().map(|stored| stored.number) != expected {
                return Ok(Swap::Conflict(disk.record.clone().map(Box::new)));
            }
            if disk.record.as_ref().and_then(|stored| record.violation_after(stored)).is_some() {
                return Err(failed("swap the record"));
            }
            disk.record = Some(record.clone());
            Ok(Swap::Stored)
        });
        let swapped = swapped.await??;
        if swapped == Swap::Stored {
            let ClusterRecord { epoch, number, holder, holder_confirmed, eligible, synchronous, .. } = record;
            let (eligible, synchronous): (Vec<_>, Vec<_>) =
                (eligible.iter().map(|it| it.as_str()).collect(), synchronous.iter().map(|it| it.as_str()).collect());
            world.note(format!(
                "store record {number}: epoch {epoch} of {holder}, confirmed {holder_confirmed}, eligible {eligible:?}, synchronous {synchronous:?}"
            ));
        }
        Ok(swapped)
    }

    async fn save_operation(&self, operation: &Operation) -> Result<(), StoreError> {
        self.write("save an operation", |disk| {
            disk.operations.insert(operation.id.clone(), operation.clone());
        })
        .await?;
        let Operation { kind, status, message, journal, .. } = operation;
        let step = journal.last().map(|event| format!("{} {:?}", event.step, event.state)).unwrap_or_default();
        let line = format!(
            "store {} of {}: {} {step} {}",
            kind.label(),
            kind.subject(),
            status.label(),
            message.as_deref().unwrap_or_default()
        );
        self.world.note(line.trim_end());
        Ok(())
    }

    async fn load_operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        self.read("load an operation", |disk| disk.operations.get(id).cloned()).await
    }

    async fn list_operations(&self, _cluster: &ClusterName, limit: usize) -> Result<Vec<Operation>, StoreError> {
        self.read("list operations", |disk| disk.operations.values().rev().take(limit).cloned().collect()).await
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

    async fn list_events(&self, _cluster: &ClusterName, _limit: usize) -> Result<Vec<EventRow>, StoreError> {
        Ok(Vec::new())
    }

    async fn append_audit(&self, _row: &AuditRow) -> Result<(), StoreError> {
        Ok(())
    }

    async fn list_audit(&self, _limit: usize) -> Result<Vec<AuditRow>, StoreError> {
        Ok(Vec::new())
    }
}

impl Clock for ControllerPort {
    fn now(&self) -> Moment {
        Moment(50_000_000 + self.world.lock().now())
    }
    fn wall(&self) -> WallTime {
        WallTime(1_800_000_000_000_000 + i64::try_from(self.world.lock().now()).expect("short"))
    }
    fn boot(&self) -> BootId {
        BootId("controller".to_owned())
    }
}
