//! Writing: one transaction each, conditional on the writer's own leader key.
//!
//! A request that got lost may still arrive. So every one is also conditional on the revision of what it replaces, and after a swap
//! whose outcome is unknown nothing is said about the record before a write to the barrier key has made that swap impossible.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, SortOrder, Txn, TxnOp, TxnOpResponse};
use serde::Serialize;

use super::read::StoredRecord;
use super::session::Session;
use super::{EtcdStore, kept};
use crate::adapters::store::format;
use crate::domain::epoch::RecordNumber;
use crate::domain::ids::ClusterName;
use crate::domain::operation::{JOURNAL_FORMAT, Operation};
use crate::domain::record::{ClusterRecord, RECORD_FORMAT};
use crate::domain::trail::AuditEntry;
use crate::ports::store::{StoreError, Swap};

/// Version of the layout, in the key `schema`.
const SCHEMA: &str = "1";
/// After so many new rows of a kind the oldest are looked for: reading thousands of names for each row would cost more than the row.
const ROWS_BETWEEN_TRIMS: usize = 64;
/// Keys removed in one transaction; etcd takes 128 operations by default.
const REMOVED_AT_ONCE: usize = 64;
/// How often a write is tried again because its own former try had landed.
const TRIES: usize = 4;

/// The right to write, and what the writer knows of what is stored.
pub(super) struct Writer {
    session: Arc<Session>,
    known: Mutex<Known>,
    /// The last row of the audit log, once this leader knows it.
    audit_head: tokio::sync::Mutex<Option<AuditEntry>>,
}

#[derive(Default)]
struct Known {
    /// Records as this leader stored or read them last.
    records: BTreeMap<ClusterName, StoredRecord>,
    /// Revision of each cluster's barrier.
    barriers: BTreeMap<ClusterName, i64>,
    /// Clusters with a swap whose outcome is unknown.
    unsettled: BTreeSet<ClusterName>,
    /// Revisions of operations.
    operations: BTreeMap<String, i64>,
    /// Rows appended to each folder since it was trimmed.
    appended: BTreeMap<String, usize>,
}

/// How a conditional write went.
pub(super) enum Written {
    /// At this revision.
    Done(i64),
    /// The key had been changed; this is it now.
    Differs(Option<KeyValue>),
}

impl Writer {
    pub fn new(session: Arc<Session>) -> Self {
        Self { session, known: Mutex::default(), audit_head: tokio::sync::Mutex::default() }
    }

    /// Whoever appends holds it: rows are chained one after another.
    pub async fn audit_head(&self) -> tokio::sync::MutexGuard<'_, Option<AuditEntry>> {
        self.audit_head.lock().await
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EtcdStore {
    /// Carries out `writes` if this leader still leads and `conditions` hold; else looks at `key`.
    pub(super) async fn fenced(
        &self,
        writer: &Writer,
        action: &'static str,
        conditions: Vec<Compare>,
        writes: Vec<TxnOp>,
        key: &str,
    ) -> Result<Written, StoreError> {
        let session = &writer.session;
        let mut when = vec![session.is_ours()];
        when.extend(conditions);
        let transaction = Txn::new()
            .when(when)
            .and_then(writes)
            .or_else(vec![TxnOp::get(session.key(), Some(GetOptions::new().with_keys_only())), TxnOp::get(key, None)]);
        let answer = self
            .connection
            .write(action, |mut client| {
                let transaction = transaction.clone();
                async move { client.txn(transaction).await }
            })
            .await?;
        if answer.succeeded() {
            return Ok(Written::Done(answer.header().map_or(0, |header| header.revision())));
        }
        let mut found = answer.op_responses().into_iter().map(|response| match response {
            TxnOpResponse::Get(mut found) => found.take_kvs().into_iter().next(),
            _ => None,
        });
        let leader = found.next().flatten();
        if leader.is_none_or(|leader| leader.create_revision() != session.revision()) {
            session.end("its leader key is gone");
            return Err(self.connection.failed(action, "this controller does not lead any more; nothing was written"));
        }
        Ok(Written::Differs(found.next().flatten()))
    }

    pub(super) async fn swap(
        &self,
        writer: &Writer,
        expected: Option<RecordNumber>,
        record: &ClusterRecord,
    ) -> Result<Swap, StoreError> {
        const ACTION: &str = "swap the record";
        let cluster = &record.cluster;
        self.settle(writer, cluster).await?;
        let remembered = writer.known().records.get(cluster).cloned();
        let stored = match remembered {
            // This leader is the only one that writes, and the transaction makes sure of it.
            Some(stored) if Some(stored.record.number) == expected => Some(stored),
            _ => self.read_record(cluster).await?,
        };
        if stored.as_ref().map(|stored| stored.record.number) != expected {
            return Ok(Swap::Conflict(stored.map(|stored| Box::new(stored.record))));
        }
        format::check("the record", record.format, RECORD_FORMAT).map_err(|why| self.connection.failed(ACTION, why))?;
        if let Some(violation) = stored.as_ref().and_then(|stored| record.violation_after(&stored.record)) {
            return Err(self.connection.failed(ACTION, format!("{violation}; the record was not changed")));
        }
        let barrier = self.barrier_revision(writer, cluster).await?;
        let key = self.keys.record(cluster);
        let conditions = vec![
            unchanged(&key, stored.as_ref().map_or(0, |stored| stored.revision)),
            unchanged(&self.keys.barrier(cluster), barrier),
        ];
        let writes = vec![TxnOp::put(key.as_str(), self.body(ACTION, record)?, None)];
        let written = self.fenced(writer, ACTION, conditions, writes, &key).await;
        let mut known = writer.known();
        match written {
            Ok(Written::Done(revision)) => {
                known.records.insert(cluster.clone(), StoredRecord { record: record.clone(), revision });
                Ok(Swap::Stored)
            }
            Ok(Written::Differs(now)) => {
                known.records.remove(cluster);
                // A late duplicate of the barrier's write moves the barrier. Whatever is older than it compares an older revision.
                known.barriers.remove(cluster);
                drop(known);
                let now = now.map(|pair| self.parse_record(&pair, cluster)).transpose()?;
                // The first of two tries may have landed, and its answer been lost.
                Ok(match now {
                    Some(now) if now.record == *record => {
                        writer.known().records.insert(cluster.clone(), now);
                        Swap::Stored
                    }
                    now => Swap::Conflict(now.map(|now| Box::new(now.record))),
                })
            }
            Err(error) => {
                known.records.remove(cluster);
                if matches!(error, StoreError::Unknown { .. }) {
                    known.unsettled.insert(cluster.clone());
                }
                Err(error)
            }
        }
    }

    /// Makes it impossible that a swap whose outcome is unknown lands later.
    pub(super) async fn settle(&self, writer: &Writer, cluster: &ClusterName) -> Result<(), StoreError> {
        if !writer.known().unsettled.contains(cluster) {
            return Ok(());
        }
        let key = self.keys.barrier(cluster);
        let writes = vec![TxnOp::put(key.as_str(), "", None)];
        if let Written::Done(revision) = self.fenced(writer, "settle the record", Vec::new(), writes, &key).await? {
            let mut known = writer.known();
            known.barriers.insert(cluster.clone(), revision);
            known.unsettled.remove(cluster);
        }
        Ok(())
    }

    async fn barrier_revision(&self, writer: &Writer, cluster: &ClusterName) -> Result<i64, StoreError> {
        let known = writer.known().barriers.get(cluster).copied();
        if let Some(revision) = known {
            return Ok(revision);
        }
        let found = self.get("swap the record", &self.keys.barrier(cluster), GetOptions::new()).await?;
        let revision = found.kvs().first().map_or(0, KeyValue::mod_revision);
        writer.known().barriers.insert(cluster.clone(), revision);
        Ok(revision)
    }

    pub(super) async fn save(&self, writer: &Writer, operation: &Operation) -> Result<(), StoreError> {
        const ACTION: &str = "save an operation";
        format::check("the operation", operation.format, JOURNAL_FORMAT)
            .map_err(|why| self.connection.failed(ACTION, why))?;
        let key = self.keys.operation(&operation.cluster, &operation.id);
        let mark = self.keys.unfinished_operation(&operation.cluster, &operation.id);
        let body = self.body(ACTION, operation)?;
        for _ in 0..TRIES {
            let revision = writer.known().operations.get(&key).copied().unwrap_or(0);
            let mut writes = vec![TxnOp::put(key.as_str(), body.as_slice(), None)];
            if operation.status.is_final() {
                writes.push(TxnOp::delete(mark.as_str(), None));
            } else {
                writes.push(TxnOp::put(mark.as_str(), "", None));
            }
            match self.fenced(writer, ACTION, vec![unchanged(&key, revision)], writes, &key).await? {
                Written::Done(revision) => {
                    if operation.status.is_final() {
                        writer.known().operations.remove(&key);
                        self.trim(writer, &self.keys.operations(&operation.cluster), kept::OPERATIONS).await;
                    } else {
                        writer.known().operations.insert(key, revision);
                    }
                    return Ok(());
                }
                Written::Differs(Some(pair)) if pair.value() == body => return Ok(()),
                Written::Differs(now) => {
                    writer.known().operations.insert(key.clone(), now.map_or(0, |pair| pair.mod_revision()));
                }
            }
        }
        Err(self.connection.failed(ACTION, "another writer changes it all the time"))
    }

    /// Adds a row, and now and then removes the oldest.
    pub(super) async fn append<T: Serialize + Sync>(
        &self,
        writer: &Writer,
        action: &'static str,
        folder: &str,
        row: &T,
        kept: usize,
    ) -> Result<(), StoreError> {
        // Unique is enough: the order is that of creation in etcd.
        let key = format!("{folder}{}", uuid::Uuid::now_v7());
        let writes = vec![TxnOp::put(key.as_str(), self.body(action, row)?, None)];
        // A second try of what had landed finds its own key.
        self.fenced(writer, action, vec![unchanged(&key, 0)], writes, &key).await?;
        self.trim(writer, folder, kept).await;
        Ok(())
    }

    /// Removes the oldest of a folder, except what is under way. Failing to is no failure of the write before it.
    pub(super) async fn trim(&self, writer: &Writer, folder: &str, kept: usize) {
        {
            let mut known = writer.known();
            // A term begins with a look: its predecessors may have been short.
            let appended = known.appended.entry(folder.to_owned()).or_insert(ROWS_BETWEEN_TRIMS);
            *appended += 1;
            if *appended < ROWS_BETWEEN_TRIMS {
                return;
            }
            *appended = 0;
        }
        if let Err(error) = self.remove_oldest(writer, folder, kept).await {
            tracing::warn!(%error, folder, "old rows were not removed");
        }
    }

    async fn remove_oldest(&self, writer: &Writer, folder: &str, kept: usize) -> Result<(), StoreError> {
        const ACTION: &str = "remove old rows";
        let count = self.get(ACTION, folder, GetOptions::new().with_prefix().with_count_only()).await?.count();
        let excess = usize::try_from(count).unwrap_or(0).saturating_sub(kept);
        if excess == 0 {
            return Ok(());
        }
        let mut names = self.names(ACTION, folder, SortOrder::Ascend, excess).await?;
        if folder.starts_with(&self.keys.all_operations()) {
            let running = self.names(ACTION, &self.keys.unfinished_beside(folder), SortOrder::Ascend, 0).await?;
            let ids: BTreeSet<&str> = running.iter().filter_map(|mark| mark.rsplit('/').next()).collect();
            names.retain(|name| name.rsplit('/').next().is_none_or(|id| !ids.contains(id)));
        }
        for some in names.chunks(REMOVED_AT_ONCE) {
            let removals: Vec<TxnOp> =
                some.iter().map(|name| TxnOp::delete(name.as_str(), None::<DeleteOptions>)).collect();
            self.fenced(writer, ACTION, Vec::new(), removals, folder).await?;
        }
        Ok(())
    }

    /// Refuses a layout that a newer version wrote; writes the own one where there is none.
    pub(super) async fn claim_layout(&self, writer: &Writer) -> Result<(), StoreError> {
        const ACTION: &str = "open";
        let key = self.keys.schema();
        let found = self.get(ACTION, &key, GetOptions::new()).await?;
        match found.kvs().first() {
            None => {
                let writes = vec![TxnOp::put(key.as_str(), SCHEMA, None)];
                self.fenced(writer, ACTION, vec![unchanged(&key, 0)], writes, &key).await.map(drop)
            }
            Some(pair) if pair.value() == SCHEMA.as_bytes() => Ok(()),
            Some(pair) => Err(self.connection.failed(
                ACTION,
                format!(
                    "{key} says layout {}, and this version of stormglass knows {SCHEMA} only: start the version that wrote it",
                    String::from_utf8_lossy(pair.value())
                ),
            )),
        }
    }

    pub(super) fn body<T: Serialize>(&self, action: &'static str, value: &T) -> Result<Vec<u8>, StoreError> {
        serde_json::to_vec(value)
            .map_err(|error| self.connection.failed(action, format!("it has no JSON form: {error}")))
    }
}

/// The key is as it was at `revision`; 0: it is not there.
pub(super) fn unchanged(key: &str, revision: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, revision)
}
