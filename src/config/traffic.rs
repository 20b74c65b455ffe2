//! What the definition of a cluster says about its proxies: who may serve reads, and the application backends.
//!
//! Where each proxy itself listens and how it reaches the nodes is in its agent's file.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ControllerConfig;
use super::agent::ProxySection;
use super::duration::DurationText;
use super::error::Violation;
use super::secret::SecretReference;
use super::validate::{reachable, unique};
use crate::domain::ids::{Address, ApplicationName, ServerName, SiteName};
use crate::domain::traffic::{
    Application, ApplicationServer, READ_MAX_LAG_BYTES, READ_OTHER_SITE_WEIGHT, READ_WEIGHT, ReadPolicy,
    TrafficDefinition,
};

/// Longest `pause_timeout`: a proxy must have answered a hold by then, or the switchover goes on without its word.
const PAUSE_TIMEOUT_MAX: Duration = Duration::from_millis(1500);

/// `[reads]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReadsSection {
    /// A standby further behind serves no reads.
    pub max_lag_bytes: u64,
    /// Weight of a standby in another site than the proxy's, in per cent of one in its own; 0: never.
    pub other_site_weight: u8,
}

impl Default for ReadsSection {
    fn default() -> Self {
        Self { max_lag_bytes: READ_MAX_LAG_BYTES, other_site_weight: READ_OTHER_SITE_WEIGHT }
    }
}

/// `[[application]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplicationSection {
    /// Its name.
    pub name: ApplicationName,
    /// Port on every proxy, on the address of its write port.
    pub port: u16,
    /// Path that a healthy server answers with 2xx.
    #[serde(default = "default_check")]
    pub check: String,
    /// `[[application.server]]`: its servers in every site.
    #[serde(rename = "server")]
    pub servers: Vec<ApplicationServerSection>,
}

/// `[[application.server]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplicationServerSection {
    /// Its name.
    pub name: ServerName,
    /// Where it stands.
    pub site: SiteName,
    /// Where it listens.
    pub address: Address,
}

/// `[proxy.pgbouncer]`: the PgBouncer that leads to this proxy's write port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PgbouncerSection {
    /// Where its admin console listens; a host that begins with `/` is a socket's directory.
    pub admin: Address,
    /// A user in its `admin_users`.
    pub user: String,
    /// The password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretReference>,
    /// Databases of PgBouncer that lead to this cluster; all of them if none is named.
    #[serde(default)]
    pub databases: Vec<String>,
    /// How long a move waits for open transactions to end before it goes on without.
    #[serde(default = "default_pause_timeout", with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub pause_timeout: Duration,
}

impl ControllerConfig {
    /// Reads and applications.
    pub fn traffic(&self) -> TrafficDefinition {
        let server = |server: &ApplicationServerSection| ApplicationServer {
            name: server.name.clone(),
            site: server.site.clone(),
            address: server.address.clone(),
        };
        let applications = self.applications.iter().map(|application| Application {
            name: application.name.clone(),
            port: application.port,
            check: application.check.clone(),
            servers: application.servers.iter().map(server).collect(),
        });
        let ReadsSection { max_lag_bytes, other_site_weight } = self.reads;
        TrafficDefinition {
            reads: ReadPolicy { max_lag_bytes, other_site_weight },
            applications: applications.collect(),
        }
    }

    /// The first rule about them that is broken.
    pub(super) fn traffic_violation(&self) -> Result<(), Violation> {
        if self.reads.other_site_weight > READ_WEIGHT {
            let problem = format!("must be at most {READ_WEIGHT}: the proxy's own site comes first");
            return Err(Violation::at("reads.other_site_weight", problem));
        }
        unique("application", "name", self.applications.iter().map(|application| application.name.to_string()))?;
        unique("application", "port", self.applications.iter().map(|application| application.port.to_string()))?;
        for (index, application) in self.applications.iter().enumerate() {
            let key = |rest: &str| format!("application.{index}.{rest}");
            if application.port == 0 {
                return Err(Violation::at(&key("port"), "needs a port other than 0"));
            }
            let is_path = application.check.starts_with('/')
                && application.check.chars().all(|letter| letter.is_ascii_graphic() && !"\"'\\#{}".contains(letter));
            if !is_path {
                let problem = format!("{:?} is no path as in \"/health\"", application.check);
                return Err(Violation::at(&key("check"), problem));
            }
            if application.servers.is_empty() {
                return Err(Violation::at(&key("server"), "an application needs at least one [[application.server]]"));
            }
            let list = key("server");
            unique(&list, "name", application.servers.iter().map(|server| server.name.to_string()))?;
            unique(&list, "address", application.servers.iter().map(|server| server.address.to_string()))?;
            for (place, server) in application.servers.iter().enumerate() {
                reachable(&key(&format!("server.{place}.address")), &server.address)?;
            }
        }
        Ok(())
    }
}

/// The first rule about a proxy's PgBouncer that is broken.
pub(super) fn pgbouncer_violation(proxy: &ProxySection) -> Result<(), Violation> {
    let Some(pgbouncer) = &proxy.pgbouncer else { return Ok(()) };
    if pgbouncer.user.is_empty() {
        return Err(Violation::at("proxy.pgbouncer.user", "must not be empty: name a user of PgBouncer's admin_users"));
    }
    if !pgbouncer.admin.host.starts_with('/') {
        reachable("proxy.pgbouncer.admin", &pgbouncer.admin)?;
    }
    let mut seen = BTreeMap::new();
    for (index, database) in pgbouncer.databases.iter().enumerate() {
        let key = format!("proxy.pgbouncer.databases.{index}");
        if database.is_empty() || database.contains(['"', '\0']) {
            return Err(Violation::at(&key, format!("{database:?} is no name of a database")));
        }
        if seen.insert(database, index).is_some() {
            return Err(Violation::at(&key, format!("{database:?} is there twice")));
        }
    }
    if pgbouncer.pause_timeout.is_zero() || pgbouncer.pause_timeout > PAUSE_TIMEOUT_MAX {
        let problem = format!(
            "must be more than 0s and at most {}: a switchover waits no longer for the word of a proxy",
            humantime::format_duration(PAUSE_TIMEOUT_MAX)
        );
        return Err(Violation::at("proxy.pgbouncer.pause_timeout", problem));
    }
    Ok(())
}

fn default_check() -> String {
    "/".to_owned()
}

fn default_pause_timeout() -> Duration {
    Duration::from_secs(1)
}
