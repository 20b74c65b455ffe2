//! Channels of notifications, as the API shows them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::clock::WallTime;
use crate::domain::ids::ClusterName;
use crate::domain::notification::NoticeKind;

/// One channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChannelDocument {
    /// Its name.
    pub name: String,
    /// `email`, `slack` or `json`.
    pub kind: String,
    /// What it is told.
    pub on: Vec<NoticeKind>,
    /// For which clusters; all if none is named.
    pub clusters: Vec<ClusterName>,
    /// When a message last went out, since this controller began to lead.
    pub last_sent: Option<WallTime>,
    /// Why the last attempt failed, if it did.
    pub problem: Option<String>,
}
