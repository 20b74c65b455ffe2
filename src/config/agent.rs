//! Settings of one agent: of a database host (`[postgresql]`) or of a proxy host (`[proxy]`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::backup::AgentBackupSection;
use super::duration::DurationText;
use super::secret::SecretReference;
use super::tls::TlsSection;
pub use super::traffic::PgbouncerSection;
use crate::domain::ids::{Address, ClusterName, NodeName, ProxyName, SiteName};
use crate::domain::report::Tags;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// The agent itself.
    pub agent: AgentSection,
    /// On a database host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgresql: Option<PostgresqlSection>,
    /// On a proxy host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxySection>,
    /// Placement tags of the node.
    #[serde(default)]
    pub tags: Tags,
    /// On a database host: the backup repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<AgentBackupSection>,
    /// The own certificate, and whose certificates count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSection>,
}

/// `[agent]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentSection {
    /// The cluster.
    pub cluster: ClusterName,
    /// Where the host stands.
    pub site: SiteName,
    /// Health paths, metrics and commands. Patroni's port, 8008, by habit.
    #[schema(value_type = String)]
    pub listen: SocketAddr,
    /// Listen without TLS where others reach it. For a network that is trusted; told at start and by the doctor.
    #[serde(default)]
    pub insecure: bool,
    /// Epochs, promises, guard socket. Must be on a disk that survives a reboot, and not on the one of the data directory.
    #[schema(value_type = String)]
    pub state_directory: PathBuf,
    /// Base URLs of the controllers.
    pub controllers: Vec<String>,
    /// Shared by controllers and agents. Not needed with `[tls]`: they show certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretReference>,
    /// `[agent.peers]`: base URLs of other nodes' agents, where this host reaches them elsewhere than the controllers do.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<NodeName, String>,
}

/// `[postgresql]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresqlSection {
    /// The node's name.
    pub node: NodeName,
    /// PGDATA.
    #[schema(value_type = String)]
    pub data_directory: PathBuf,
    /// Where `postgresql.conf` and `pg_hba.conf` lie if that is not PGDATA, as in Debian's /etc/postgresql/15/main.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub config_directory: Option<PathBuf>,
    /// Where `postgres`, `pg_ctl`, `pg_rewind` are; found below /usr/lib/postgresql for the data directory's version if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub bin_directory: Option<PathBuf>,
    /// Where clients, standbys and proxies reach this PostgreSQL. Its port is the server's port.
    pub address: Address,
    /// `listen_addresses` while the node may be reached; empty on disk.
    pub listen_addresses: String,
    /// Socket directories for clients, besides the agent's private one.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub unix_socket_directories: Vec<PathBuf>,
    /// Role the agent manages with, over the private socket.
    #[serde(default = "default_superuser")]
    pub superuser: String,
    /// Its password, where `pg_hba.conf` asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superuser_password: Option<SecretReference>,
    /// Role that standbys stream and rewind with. Needs REPLICATION and, for pg_rewind, the file functions.
    #[serde(default = "default_replication_user")]
    pub replication_user: String,
    /// Its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_password: Option<SecretReference>,
    /// Further parameters that the agent sets on start.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// Time between two probes.
    #[serde(default = "default_probe_interval", with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub probe_interval: Duration,
    /// How long one probe may take.
    #[serde(default = "default_probe_timeout", with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub probe_timeout: Duration,
    /// Where divergent WAL is kept aside before a rewind; `<state_directory>/divergent` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub divergent_directory: Option<PathBuf>,
}

/// `[proxy]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxySection {
    /// The proxy's name.
    pub name: ProxyName,
    /// HAProxy's stats socket, level admin.
    #[schema(value_type = String)]
    pub stats_socket: PathBuf,
    /// HAProxy's master socket, for reloads.
    #[schema(value_type = String)]
    pub master_socket: PathBuf,
    /// The configuration file that the agent writes.
    #[schema(value_type = String)]
    pub config_file: PathBuf,
    /// The template that it is made from; the built-in one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub template: Option<PathBuf>,
    /// Where clients connect for writes (recipe with one unchecked server that the agent moves).
    pub write: Address,
    /// Where clients connect for reads.
    pub read: Address,
    /// Checked port for existing configurations: HAProxy asks every node's `/primary`.
    pub checked: Address,
    /// HAProxy's statistics page.
    pub stats: Address,
    /// Nodes as this proxy reaches them. One that is not listed is reached where the controllers say that it is.
    #[serde(default)]
    pub nodes: Vec<ProxyNode>,
    /// Start HAProxy if it does not run. Off where systemd does it.
    #[serde(default)]
    pub manage_process: bool,
    /// How long one try to reach the primary may take, and how long a waiting connection rests between two tries: the longest
    /// that it lags behind a redirect. Must exceed the round trip to the farthest node; raise it where a site is far away.
    #[serde(default = "default_connect_timeout", with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub connect_timeout: Duration,
    /// Role and database for the verifying write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifySection>,
    /// The PgBouncer that clients connect to, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgbouncer: Option<PgbouncerSection>,
}

/// A node behind a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyNode {
    /// The node.
    pub name: NodeName,
    /// Where its PostgreSQL listens.
    pub address: Address,
    /// What its PostgreSQL itself says of where it listens, if addresses are translated on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_address: Option<Address>,
    /// Where its agent listens.
    pub agent: Address,
}

/// `[proxy.verify]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifySection {
    /// Role; needs EXECUTE on `pg_logical_emit_message`, nothing else.
    pub user: String,
    /// Its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretReference>,
    /// Database.
    pub database: String,
}

fn default_superuser() -> String {
    "postgres".to_owned()
}

fn default_replication_user() -> String {
    "replicator".to_owned()
}

fn default_connect_timeout() -> Duration {
    Duration::from_millis(50)
}

fn default_probe_interval() -> Duration {
    Duration::from_millis(250)
}

fn default_probe_timeout() -> Duration {
    Duration::from_secs(1)
}
