//! The clusters that a controller keeps, as definitions: what the API says of them, and what it takes to add or remove one.
//!
//! A definition refers to secrets and never holds one; what is written here is for people, and read back by nobody.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::domain::ids::{ClusterName, NodeName, ProxyName, SiteName};

/// `GET /api/v1/clusters/{cluster}/definition`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterDefinition {
    /// The document's version.
    pub schema_version: u32,
    /// The cluster.
    pub cluster: ClusterName,
    /// Where it is defined.
    pub file: String,
    /// Where its record, operations and events are.
    pub store: String,
    /// It is kept as long as the controller is: tokens and audit log are in its store.
    pub is_first: bool,
    /// Every site with a node or a proxy.
    pub sites: Vec<SiteName>,
    /// Every configured node.
    pub nodes: Vec<DefinedNode>,
    /// Every configured proxy.
    pub proxies: Vec<DefinedProxy>,
    /// The rules of every decision, with defaults filled in and timers worked out. Its fields are for people and not stable.
    #[schema(value_type = Object)]
    pub policy: Value,
}

/// A node as it is configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DefinedNode {
    /// Its name.
    pub name: NodeName,
    /// Where it stands.
    pub site: SiteName,
    /// Base URL of its agent.
    pub agent: String,
}

/// A proxy as it is configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DefinedProxy {
    /// Its name.
    pub name: ProxyName,
    /// Where it stands.
    pub site: SiteName,
    /// Base URL of its agent.
    pub agent: String,
}

/// Body of `POST /api/v1/clusters`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterAddRequest {
    /// The configuration file of the cluster, in TOML, as `stormglass controller --config` takes it.
    pub definition: String,
    /// Check it and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

impl ClusterAddRequest {
    /// For the audit log: how much was sent, and never what. Somebody may have written a secret where a reference belongs.
    pub(super) fn line(&self) -> String {
        json!({ "definition_bytes": self.definition.len(), "dry_run": self.dry_run }).to_string()
    }
}

/// Body of `POST /api/v1/clusters/{cluster}/remove`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterRemoveRequest {
    /// Say what would happen and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_not_in_the_audit_log() {
        let request = ClusterAddRequest { definition: "secret = \"hunter2\"".to_owned(), dry_run: true };
        assert_eq!(request.line(), r#"{"definition_bytes":18,"dry_run":true}"#);
    }
}
