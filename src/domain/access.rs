//! Who may ask for what.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
