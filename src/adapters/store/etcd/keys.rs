//! Names of keys. Nothing else knows how they are written.

use crate::domain::ids::{ClusterName, OperationId};
use crate::ports::store::Drawer;

/// The keys below one prefix. Folders end with a slash, so that no name is the beginning of another.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').to_owned() }
    }

    /// Everything.
    pub fn all(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// Candidates for the leadership.
    pub fn leaders(&self) -> String {
        format!("{}/leaders/", self.prefix)
    }

    /// One candidate; etcd's own clients write leases so, too.
    pub fn leader(&self, lease: i64) -> String {
        format!("{}{lease:x}", self.leaders())
    }

    pub fn record(&self, cluster: &ClusterName) -> String {
        format!("{}/record/{cluster}", self.prefix)
    }

    pub fn barrier(&self, cluster: &ClusterName) -> String {
        format!("{}/barrier/{cluster}", self.prefix)
    }

    /// Operations of every cluster.
    pub fn all_operations(&self) -> String {
        format!("{}/operations/", self.prefix)
    }

    pub fn operations(&self, cluster: &ClusterName) -> String {
        format!("{}{cluster}/", self.all_operations())
    }

    pub fn operation(&self, cluster: &ClusterName, id: &OperationId) -> String {
        format!("{}{}", self.operations(cluster), id.0)
    }

    pub fn unfinished(&self, cluster: &ClusterName) -> String {
        format!("{}/unfinished/{cluster}/", self.prefix)
    }

    pub fn unfinished_operation(&self, cluster: &ClusterName, id: &OperationId) -> String {
        format!("{}{}", self.unfinished(cluster), id.0)
    }

    /// The index that belongs to a folder of operations.
    pub fn unfinished_beside(&self, operations: &str) -> String {
        let cluster = operations.strip_prefix(&self.all_operations()).unwrap_or_default();
        format!("{}/unfinished/{cluster}", self.prefix)
    }

    pub fn events(&self, cluster: &ClusterName) -> String {
        format!("{}/events/{cluster}/", self.prefix)
    }

    pub fn audit(&self) -> String {
        format!("{}/audit/", self.prefix)
    }

    /// One row of the audit log by its number in the chain.
    pub fn audit_row(&self, number: u64) -> String {
        format!("{}{number:020}", self.audit())
    }

    pub fn drawer(&self, drawer: Drawer) -> String {
        format!("{}/cards/{}/", self.prefix, drawer.label())
    }

    pub fn card(&self, drawer: Drawer, key: &str) -> String {
        format!("{}{key}", self.drawer(drawer))
    }

    pub fn schema(&self) -> String {
        format!("{}/schema", self.prefix)
    }
}
