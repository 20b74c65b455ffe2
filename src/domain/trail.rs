//! What the controller leaves behind for people: one row for each event, one for each mutation that somebody asked for.
//!
//! Rows are written once and never changed.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::clock::WallTime;
use super::epoch::Epoch;
use super::ids::{ClusterName, NodeName, OperationId};

/// One line of `stormglass events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventRow {
    /// Stable name of the event type, e.g. `primary_lost`.
    pub event: String,
    /// `info`, `warning` or `error`. An error always means that a human must look.
    pub severity: String,
    /// When.
    pub wall: WallTime,
    /// The cluster.
    pub cluster: ClusterName,
    /// The node, if it is about one.
    pub node: Option<NodeName>,
    /// The operation, if it is part of one.
    pub operation: Option<OperationId>,
    /// Epoch at that time.
    pub epoch: Epoch,
    /// A full English sentence.
    pub message: String,
}

/// One row of the audit log: every mutation, who, what, when, from where, outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRow {
    /// When.
    pub wall: WallTime,
    /// Who: the name of the token.
    pub who: String,
    /// From where: the peer's address.
    pub from: String,
    /// What was asked, as one line.
    pub what: String,
    /// How it ended.
    pub outcome: String,
}

/// An audit row with its place in the chain: each hash covers the row and the hash before it, so that no row can be changed,
/// taken out or put in between without every later hash being wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Counts from 1. 0: the row is older than the chain.
    #[serde(default)]
    pub number: u64,
    /// Hash of the row before it, in hexadecimal; empty for the first.
    #[serde(default)]
    pub previous: String,
    /// SHA-256 over the hash before it, the number and the row, in hexadecimal.
    #[serde(default)]
    pub hash: String,
    /// The row.
    #[serde(flatten)]
    pub row: AuditRow,
}
