//! What a proxy serves beside the write port: reads, and the application backends that follow the primary's site.
//!
//! How HAProxy is told so never enters here.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{Address, ApplicationName, NodeName, ServerName, SiteName};

/// Weight of a standby that stands in the proxy's own site.
pub const READ_WEIGHT: u8 = 100;

/// Reads are not sent to a standby that is further behind; 16 MiB is one WAL segment.
pub const READ_MAX_LAG_BYTES: u64 = 16 * 1024 * 1024;

/// Weight of a standby in another site, where [`READ_WEIGHT`] is that of one in the proxy's own.
pub const READ_OTHER_SITE_WEIGHT: u8 = 10;

/// What the definition of a cluster says about reads and applications.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrafficDefinition {
    /// Reads.
    pub reads: ReadPolicy,
    /// Applications.
    pub applications: Vec<Application>,
}

/// Who may serve reads, and how many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadPolicy {
    /// A standby further behind the primary serves none.
    pub max_lag_bytes: u64,
    /// Weight of a standby in another site than the proxy's, of [`READ_WEIGHT`]; 0: never.
    pub other_site_weight: u8,
}

impl Default for ReadPolicy {
    fn default() -> Self {
        Self { max_lag_bytes: READ_MAX_LAG_BYTES, other_site_weight: READ_OTHER_SITE_WEIGHT }
    }
}

/// What every proxy of a cluster shall serve now, but for where its write port leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backends {
    /// The primary's site; `None` before the first epoch. Applications are served from there first.
    pub active_site: Option<SiteName>,
    /// Every node of the cluster.
    pub members: Vec<Member>,
    /// Who may serve reads.
    pub reads: ReadPolicy,
    /// Every application.
    pub applications: Vec<Application>,
}

/// A node as a proxy needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node.
    pub node: NodeName,
    /// Where it stands.
    pub site: SiteName,
    /// Where its PostgreSQL listens; `None` until its agent has said so.
    pub address: Option<Address>,
    /// Where its agent listens.
    pub agent: Option<Address>,
    /// It is a standby that nobody fenced. Whether it streams is for the proxy's own checks to say.
    pub serves_reads: bool,
}

/// An application that runs in one site or several, behind every proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    /// Its name.
    pub name: ApplicationName,
    /// Port on every proxy.
    pub port: u16,
    /// Path that a healthy server answers with 2xx.
    pub check: String,
    /// Its servers.
    pub servers: Vec<ApplicationServer>,
}

/// One HTTP server of an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationServer {
    /// Its name.
    pub name: ServerName,
    /// Where it stands.
    pub site: SiteName,
    /// Where it listens.
    pub address: Address,
}

impl Application {
    /// Every site with servers of it, each once, in the order of the definition.
    pub fn sites(&self) -> Vec<&SiteName> {
        let mut sites: Vec<&SiteName> = Vec::new();
        for server in &self.servers {
            if !sites.contains(&&server.site) {
                sites.push(&server.site);
            }
        }
        sites
    }
}

/// What a proxy's agent sees of its HAProxy, for `status` and `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct TrafficReport {
    /// HAProxy's own word on its version; `None` while it does not answer.
    pub haproxy_version: Option<String>,
    /// The site that applications are served from first, as the running HAProxy has it.
    pub active_site: Option<SiteName>,
    /// The file on disk is what a restart should come up with, and the running HAProxy has read it.
    pub is_settled: bool,
    /// What differs at this moment between the file, the running HAProxy and what is wanted, beyond what is under way.
    pub drift: Vec<String>,
    /// How often something of that kind was found and put right since the agent started.
    pub repairs: u64,
    /// The last of them.
    pub last_repair: Option<String>,
    /// Every application.
    pub applications: Vec<ApplicationReport>,
    /// The PgBouncer of this host; `None` without `[proxy.pgbouncer]`.
    pub pooler: Option<PoolerReport>,
}

/// An application as HAProxy's checks see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApplicationReport {
    /// Which.
    pub name: ApplicationName,
    /// Its servers.
    pub servers: u32,
    /// Those that pass their check.
    pub servers_up: u32,
    /// The site whose servers take requests now; `None`: no server is up.
    pub served_from: Option<SiteName>,
}

/// The PgBouncer in the clients' path.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PoolerReport {
    /// It holds transactions back.
    pub is_paused: bool,
    /// What went wrong last.
    pub problem: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_come_once_and_in_the_order_of_the_definition() {
        let server = |name: &str, site: &str| ApplicationServer {
            name: ServerName::new(name).expect("valid"),
            site: SiteName::new(site).expect("valid"),
            address: Address::new("10.0.0.1", 8080),
        };
        let application = Application {
            name: ApplicationName::new("shop").expect("valid"),
            port: 8080,
            check: "/health".to_owned(),
            servers: vec![server("a", "west"), server("b", "east"), server("c", "west")],
        };
        let sites: Vec<&str> = application.sites().into_iter().map(SiteName::as_str).collect();
        assert_eq!(sites, ["west", "east"]);
    }
}
