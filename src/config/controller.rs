//! Settings of a controller and of the cluster it keeps.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::backup::ControllerBackupSection;
use super::dns::DnsSection;
use super::duration::DurationText;
use super::error::ConfigError;
use super::notification::NotificationSection;
use super::oidc::OidcSection;
pub use super::predictor::{PredictorSection, PrometheusSection};
use super::secret::SecretReference;
use super::sequence::SequenceSection;
use super::store::{StoreKind, StoreSection};
use super::terraform::TerraformSection;
use super::tls::TlsSection;
pub use super::traffic::{ApplicationSection, ApplicationServerSection, ReadsSection};
use super::webhook::WebhookSection;
pub use crate::domain::access::Role;
use crate::domain::ids::{ClusterName, NodeName, ProxyName, SiteName};
use crate::domain::policy::{self, DurabilityMode, SyncScope};
use crate::domain::sequence::Sequence;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// The controller itself.
    pub controller: ControllerSection,
    /// The cluster.
    pub cluster: ClusterSection,
    /// Where the controller's memory is, and whether there are others.
    #[serde(default)]
    pub store: StoreSection,
    /// One target, from which every timer follows.
    #[serde(default)]
    pub failover: FailoverSection,
    /// Who may ask for what.
    pub authentication: AuthenticationSection,
    /// `[[node]]`: every database host.
    #[serde(rename = "node")]
    pub nodes: Vec<NodeSection>,
    /// `[[proxy]]`: every proxy host.
    #[serde(rename = "proxy", default)]
    pub proxies: Vec<ProxyHostSection>,
    /// Who may serve reads.
    #[serde(default)]
    pub reads: ReadsSection,
    /// `[[application]]`: what else stands behind the proxies and follows the primary's site.
    #[serde(rename = "application", default, skip_serializing_if = "Vec::is_empty")]
    pub applications: Vec<ApplicationSection>,
    /// What is done about alerts.
    #[serde(default)]
    pub webhook: WebhookSection,
    /// Where the time series are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusSection>,
    /// The name that clients connect to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsSection>,
    /// `[[sequence]]`: what is done after a failover, on an alert or by name.
    #[serde(rename = "sequence", default, skip_serializing_if = "Vec::is_empty")]
    pub sequences: Vec<SequenceSection>,
    /// Stacks that are compared with what is there.
    #[serde(default)]
    pub terraform: TerraformSection,
    /// When backups and drills are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<ControllerBackupSection>,
    /// `[[notification]]`: who is told what, and how.
    #[serde(rename = "notification", default, skip_serializing_if = "Vec::is_empty")]
    pub notifications: Vec<NotificationSection>,
    /// What scores them. Without it nothing is predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predictor: Option<PredictorSection>,
    /// The own certificate, and whose certificates count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSection>,
}

/// `[controller]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ControllerSection {
    /// Name in logs and in the journal.
    pub name: String,
    /// API, metrics, dashboard.
    #[schema(value_type = String)]
    pub listen: SocketAddr,
    /// Listen without TLS where others reach it. For a network that is trusted; told at start and by the doctor.
    #[serde(default)]
    pub insecure: bool,
    /// Base URL that followers send others to; `https://` with `[tls]`, else `http://`, and `listen` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where the embedded store is. Not used with etcd.
    #[serde(default = "default_data_directory")]
    #[schema(value_type = String)]
    pub data_directory: PathBuf,
}

impl ControllerConfig {
    /// Base URL of this controller, as others are told.
    pub fn url(&self) -> String {
        match &self.controller.url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None if self.tls.is_some() => format!("https://{}", self.controller.listen),
            None => format!("http://{}", self.controller.listen),
        }
    }

    /// Every sequence, as domain data.
    pub fn sequences(&self) -> Result<Vec<Sequence>, ConfigError> {
        super::sequence::sequences(&self.sequences).map_err(|violation| violation.without_place())
    }

    /// True if this is one of several controllers.
    pub fn has_election(&self) -> bool {
        self.store.kind == StoreKind::Etcd
    }
}

/// `[cluster]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSection {
    /// Name.
    pub name: ClusterName,
    /// `sync`, `sync_strict` or `async`; `sync` where there are two nodes or more, else `async`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<DurabilityMode>,
    /// `local`, `other_site` or `each_site`: which standbys confirm a commit.
    #[serde(default)]
    pub sync_scope: SyncScope,
    /// How long commits wait for a synchronous standby that is gone, where no other streams; then, in `sync`, the primary goes on
    /// alone. Three renewal intervals if not given.
    #[serde(default, with = "super::duration::optional", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DurationText>)]
    pub sync_standby_patience: Option<Duration>,
    /// In `async`: more lag than this is not promoted automatically.
    #[serde(default = "default_max_lag_bytes")]
    pub max_lag_bytes: u64,
    /// Bring former primaries back without being asked.
    #[serde(default = "default_true")]
    pub rejoin_automatically: bool,
}

/// `[failover]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FailoverSection {
    /// Target for the time without writes after an unplanned loss.
    #[serde(with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub rto: Duration,
    /// Override of the lease.
    #[serde(with = "super::duration::optional", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DurationText>)]
    pub lease: Option<Duration>,
    /// Override of the renewal interval.
    #[serde(with = "super::duration::optional", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DurationText>)]
    pub renewal_interval: Option<Duration>,
    /// Override of the request timeout.
    #[serde(with = "super::duration::optional", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DurationText>)]
    pub request_timeout: Option<Duration>,
    /// Override of the stop budget.
    #[serde(with = "super::duration::optional", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DurationText>)]
    pub stop_budget: Option<Duration>,
    /// Override of the last part of the stop budget, in which SIGKILL is sent.
    #[serde(with = "super::duration::optional", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DurationText>)]
    pub kill_budget: Option<Duration>,
    /// Override of the bound on how far two hosts' clocks run apart during one lease.
    #[serde(with = "super::duration::optional", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DurationText>)]
    pub drift: Option<Duration>,
    /// A switchover does not shut a primary down that has written more WAL than this since its checkpoint began.
    pub switchover_max_dirty_bytes: u64,
    /// Override of the time after which a running primary that cannot commit is moved.
    #[serde(with = "super::duration::optional", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DurationText>)]
    pub gray_after: Option<Duration>,
}

impl Default for FailoverSection {
    fn default() -> Self {
        Self {
            rto: Duration::from_secs(5),
            lease: None,
            renewal_interval: None,
            request_timeout: None,
            stop_budget: None,
            kill_budget: None,
            drift: None,
            switchover_max_dirty_bytes: policy::default_switchover_max_dirty_bytes(),
            gray_after: None,
        }
    }
}

/// `[authentication]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuthenticationSection {
    /// Shared by controllers and agents. Not needed with `[tls]`: they show certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_token: Option<SecretReference>,
    /// `[[authentication.token]]`: bearer tokens of people and scripts.
    #[serde(rename = "token", default)]
    pub tokens: Vec<TokenSection>,
    /// Requests a second of one caller; twice as many at once.
    #[serde(default = "default_requests_per_second")]
    pub requests_per_second: u32,
    /// Tokens of an issuer that count beside them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<OidcSection>,
}

/// One bearer token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenSection {
    /// Name in the audit log.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// For which clusters; all if none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<ClusterName>,
    /// The token.
    pub secret: SecretReference,
}

/// `[[node]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    /// Name.
    pub name: NodeName,
    /// Where it stands.
    pub site: SiteName,
    /// Base URL of its agent.
    pub agent: String,
}

/// `[[proxy]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyHostSection {
    /// Name.
    pub name: ProxyName,
    /// Where it stands.
    pub site: SiteName,
    /// Base URL of its agent.
    pub agent: String,
}

fn default_data_directory() -> PathBuf {
    PathBuf::from("/var/lib/stormglass/controller")
}

fn default_max_lag_bytes() -> u64 {
    1024 * 1024
}

fn default_requests_per_second() -> u32 {
    2_000
}

fn default_true() -> bool {
    true
}
