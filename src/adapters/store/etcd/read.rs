//! Reading: linearizable, so that a new leader finds everything that its predecessors were told was stored.

use etcd_client::{GetOptions, GetResponse, KeyValue, SortOrder, SortTarget};
use serde::de::DeserializeOwned;

use super::EtcdStore;
use crate::adapters::store::format;
use crate::domain::ids::{ClusterName, OperationId};
use crate::domain::operation::{JOURNAL_FORMAT, Operation};
use crate::domain::record::{ClusterRecord, RECORD_FORMAT};
use crate::ports::store::{Card, Drawer, Page, Paged, StoreError};

/// Operations fetched at once: journals are some kilobytes each, and an answer of more than four megabytes is refused.
const OPERATIONS_AT_ONCE: usize = 16;
/// Rows fetched at once, for the same reason.
const ROWS_AT_ONCE: usize = 2_000;

/// A record with the revision that a swap is conditional on.
#[derive(Debug, Clone)]
pub(super) struct StoredRecord {
    pub record: ClusterRecord,
    pub revision: i64,
}

impl EtcdStore {
    pub(super) async fn get(
        &self,
        action: &'static str,
        key: &str,
        options: GetOptions,
    ) -> Result<GetResponse, StoreError> {
        self.connection
            .read(action, |mut client| {
                let (key, options) = (key.to_owned(), options.clone());
                async move { client.get(key, Some(options)).await }
            })
            .await
    }

    /// The keys of a folder, in the order of their creation.
    pub(super) async fn names(
        &self,
        action: &'static str,
        folder: &str,
        order: SortOrder,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(0);
        let options =
            GetOptions::new().with_prefix().with_keys_only().with_sort(SortTarget::Create, order).with_limit(limit);
        let found = self.get(action, folder, options).await?;
        Ok(found.kvs().iter().map(|pair| String::from_utf8_lossy(pair.key()).into_owned()).collect())
    }

    pub(super) async fn nothing_stored(&self) -> Result<bool, StoreError> {
        const ACTION: &str = "look for what is stored";
        let all = GetOptions::new().with_prefix().with_count_only();
        let stored = self.get(ACTION, &self.keys.all(), all.clone()).await?.count();
        let candidates = self.get(ACTION, &self.keys.leaders(), all).await?.count();
        // The version of the layout is written by every leader, before there is anything to keep.
        let schema = self.get(ACTION, &self.keys.schema(), GetOptions::new().with_count_only()).await?.count();
        Ok(stored <= candidates + schema)
    }

    pub(super) async fn read_record(&self, cluster: &ClusterName) -> Result<Option<StoredRecord>, StoreError> {
        let found = self.get("load the record", &self.keys.record(cluster), GetOptions::new()).await?;
        found.kvs().first().map(|pair| self.parse_record(pair, cluster)).transpose()
    }

    pub(super) fn parse_record(&self, pair: &KeyValue, cluster: &ClusterName) -> Result<StoredRecord, StoreError> {
        let record: ClusterRecord = format::parse("the record", RECORD_FORMAT, pair.value())
            .map_err(|problem| self.connection.failed("load the record", problem))?;
        if record.cluster != *cluster {
            let problem = format!("the record of {cluster} contradicts its own key: restore a copy of etcd");
            return Err(self.connection.failed("load the record", problem));
        }
        Ok(StoredRecord { record, revision: pair.mod_revision() })
    }

    pub(super) async fn read_operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        const ACTION: &str = "load an operation";
        let end = format!("/{}", id.0);
        let names = self.names(ACTION, &self.keys.all_operations(), SortOrder::Descend, 0).await?;
        match names.iter().find(|name| name.ends_with(&end)) {
            Some(name) => Ok(self.operations_at(ACTION, std::slice::from_ref(name)).await?.pop()),
            None => Ok(None),
        }
    }

    pub(super) async fn newest_operations(
        &self,
        cluster: &ClusterName,
        page: Page,
    ) -> Result<Paged<Operation>, StoreError> {
        const ACTION: &str = "list operations";
        let (pairs, next) = self.keys_of(ACTION, &self.keys.operations(cluster), page).await?;
        Ok(Paged { rows: self.operations_at(ACTION, &pairs).await?, next })
    }

    /// The keys of one page of a folder, newest first, and where the next page begins.
    async fn keys_of(
        &self,
        action: &'static str,
        folder: &str,
        page: Page,
    ) -> Result<(Vec<String>, Option<u64>), StoreError> {
        if page.limit == 0 {
            return Ok((Vec::new(), None));
        }
        let mut options = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_sort(SortTarget::Create, SortOrder::Descend)
            .with_limit(i64::try_from(page.limit).unwrap_or(i64::MAX));
        if let Some(before) = page.before {
            options = options.with_max_create_revision(i64::try_from(before).unwrap_or(i64::MAX) - 1);
        }
        let found = self.get(action, folder, options).await?;
        let names = found.kvs().iter().map(|pair| String::from_utf8_lossy(pair.key()).into_owned()).collect();
        let next = found.more().then(|| found.kvs().last().and_then(|pair| u64::try_from(pair.create_revision()).ok()));
        Ok((names, next.flatten()))
    }

    pub(super) async fn open_operations(&self, cluster: &ClusterName) -> Result<Vec<Operation>, StoreError> {
        const ACTION: &str = "list unfinished operations";
        let folder = self.keys.unfinished(cluster);
        let marks = self.names(ACTION, &folder, SortOrder::Ascend, 0).await?;
        let names: Vec<String> = marks
            .iter()
            .filter_map(|mark| mark.strip_prefix(&folder))
            .map(|id| format!("{}{id}", self.keys.operations(cluster)))
            .collect();
        self.operations_at(ACTION, &names).await
    }

    /// Operations by their keys, in this order. One that was removed meanwhile is left out.
    async fn operations_at(&self, action: &'static str, names: &[String]) -> Result<Vec<Operation>, StoreError> {
        let mut operations = Vec::with_capacity(names.len());
        for some in names.chunks(OPERATIONS_AT_ONCE) {
            let found =
                futures_util::future::try_join_all(some.iter().map(|name| self.get(action, name, GetOptions::new())))
                    .await?;
            for pair in found.iter().filter_map(|found| found.kvs().first()) {
                let what = format!("operation {}", pair.key_str().unwrap_or_default());
                let operation = format::parse(&what, JOURNAL_FORMAT, pair.value());
                operations.push(operation.map_err(|problem| self.connection.failed(action, problem))?);
            }
        }
        Ok(operations)
    }

    /// The rows of one page of a folder, newest first. [`Page::before`] is a create revision.
    pub(super) async fn newest<T: DeserializeOwned>(
        &self,
        action: &'static str,
        what: &str,
        folder: &str,
        page: Page,
    ) -> Result<Paged<T>, StoreError> {
        let mut rows = Vec::new();
        let mut older_than = page.before.and_then(|before| i64::try_from(before).ok()).unwrap_or(0);
        let mut more = false;
        while rows.len() < page.limit {
            let wanted = (page.limit - rows.len()).min(ROWS_AT_ONCE);
            let mut options = GetOptions::new()
                .with_prefix()
                .with_sort(SortTarget::Create, SortOrder::Descend)
                .with_limit(i64::try_from(wanted).unwrap_or(i64::MAX));
            if older_than > 0 {
                options = options.with_max_create_revision(older_than - 1);
            }
            let found = self.get(action, folder, options).await?;
            for pair in found.kvs() {
                let row = serde_json::from_slice(pair.value())
                    .map_err(|error| self.connection.failed(action, format::not_understood(what, &error)))?;
                rows.push(row);
                older_than = pair.create_revision();
            }
            more = found.more();
            if found.kvs().len() < wanted {
                break;
            }
        }
        let next = u64::try_from(older_than).ok().filter(|_| more && !rows.is_empty());
        Ok(Paged { rows, next })
    }

    pub(super) async fn read_card(&self, drawer: Drawer, key: &str) -> Result<Option<(Card, i64)>, StoreError> {
        let found = self.get("load a card", &self.keys.card(drawer, key), GetOptions::new()).await?;
        Ok(found.kvs().first().map(|pair| {
            let body = String::from_utf8_lossy(pair.value()).into_owned();
            (Card { key: key.to_owned(), body }, pair.mod_revision())
        }))
    }

    pub(super) async fn read_cards(&self, drawer: Drawer) -> Result<Vec<Card>, StoreError> {
        let folder = self.keys.drawer(drawer);
        let options = GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Descend);
        let found = self.get("list cards", &folder, options).await?;
        let card = |pair: &KeyValue| Card {
            key: String::from_utf8_lossy(pair.key()).trim_start_matches(folder.as_str()).to_owned(),
            body: String::from_utf8_lossy(pair.value()).into_owned(),
        };
        Ok(found.kvs().iter().map(card).collect())
    }
}
