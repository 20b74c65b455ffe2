//! What a caller may ask for in the body of a request. Unknown keys are refused.
//!
//! What is done about it is decided elsewhere; the answers are in [`super::wire`].

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::backup::BackupType;
use crate::domain::clock::WallTime;
use crate::domain::ids::NodeName;
use crate::domain::lsn::Lsn;

/// Body of `POST …/switchover`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SwitchoverRequest {
    /// Who shall take over; the best candidate if not given.
    pub to: Option<NodeName>,
    /// Only candidates of this site.
    #[schema(pattern = "^[a-z0-9][a-z0-9_-]{0,62}$")]
    pub site: Option<String>,
    /// Not now, but then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<WallTime>,
    /// Forget the one that is scheduled, and do nothing else.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unschedule: bool,
    /// Only plan.
    pub dry_run: bool,
}

/// Body of `POST …/failover`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FailoverRequest {
    /// Who shall take over; the best candidate if not given.
    pub to: Option<NodeName>,
    /// Only candidates of this site.
    #[schema(pattern = "^[a-z0-9][a-z0-9_-]{0,62}$")]
    pub site: Option<String>,
    /// Accept that commits are lost.
    pub accept_data_loss: bool,
    /// The operator swears that the old primary is off.
    pub old_primary_is_off: bool,
    /// Only plan.
    pub dry_run: bool,
}

/// Body of `POST …/fence`, `…/unfence` and `…/rejoin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeRequest {
    /// Which node.
    pub node: NodeName,
    /// Only plan.
    #[serde(default)]
    pub dry_run: bool,
    /// `rejoin`: skip the rewind.
    #[serde(default)]
    pub reclone: bool,
}

/// Body of `POST …/sequences/{name}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SequenceRequest {
    /// Only plan: `expect` says what each step would do.
    pub dry_run: bool,
}

/// Body of `POST …/pause`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PauseRequest {
    /// How long, in seconds; one hour if not given.
    #[serde(deserialize_with = "super::body::whole_number")]
    #[schema(minimum = 1, maximum = 2_592_000)]
    pub duration_seconds: Option<u64>,
}

/// Body of `POST …/backup`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BackupRequest {
    /// `full`, `diff` or `incr`; incremental if not given.
    #[serde(rename = "type")]
    pub backup_type: Option<BackupType>,
    /// Only plan.
    pub dry_run: bool,
}

/// Body of `POST …/drill`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DrillRequest {
    /// Only plan.
    pub dry_run: bool,
}

/// Body of `POST …/retrain`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetrainRequest {
    /// Only plan.
    pub dry_run: bool,
}

/// Body of `POST …/restore`. To the end of the WAL in the repository, unless it says up to where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RestoreRequest {
    /// To the last commit made until then.
    pub to_time: Option<WallTime>,
    /// To this position.
    pub to_lsn: Option<Lsn>,
    /// Only nodes of this site.
    #[schema(pattern = "^[a-z0-9][a-z0-9_-]{0,62}$")]
    pub site: Option<String>,
    /// Only a copy, in this directory of a node's host.
    #[schema(pattern = r"^/[^\n]*$")]
    pub into: Option<String>,
    /// Only plan.
    pub dry_run: bool,
}
