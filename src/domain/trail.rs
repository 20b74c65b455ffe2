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
