//! Who may ask for what.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Names under which the controller itself begins operations. No token has one: the audit log must tell who asked from that nobody did.
pub const RESERVED_NAMES: [&str; 3] = ["automatic", "schedule", "drift"];

/// Roles, each containing the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads, and takes backups.
    Backup,
    /// Runs operations.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// The role as the configuration writes it.
    pub fn label(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Backup => "backup",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}
