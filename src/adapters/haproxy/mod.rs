//! HAProxy on this host: its configuration file, its runtime API, its process; and what the proxy role needs beside it.
//!
//! Which primary is right is not decided here: [`router::HaproxyRouter`] does what it is told and says what it sees.

pub mod backends;
pub mod file;
pub mod link;
pub mod memory;
pub mod process;
pub mod router;
pub mod socket;
pub mod template;
pub mod verify;

use std::path::PathBuf;
use std::time::Duration;

use crate::domain::ids::{Address, ClusterName, ProxyName};

pub use link::{HttpControllerLink, HttpNodeHealth};
pub use memory::FileMemory;
pub use router::HaproxyRouter;
pub use verify::{PostgresWriteVerifier, VerifyCredentials};

/// Everything that the configuration file and the sockets are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaproxySettings {
    /// The proxy's name.
    pub name: ProxyName,
    /// The cluster.
    pub cluster: ClusterName,
    /// Stats socket, level admin.
    pub stats_socket: PathBuf,
    /// Master socket.
    pub master_socket: PathBuf,
    /// The file that is written.
    pub config_file: PathBuf,
    /// Template to use in place of [`template::BUILT_IN`].
    pub template: Option<PathBuf>,
    /// Write port.
    pub write: Address,
    /// Read port.
    pub read: Address,
    /// Checked write port.
    pub checked: Address,
    /// Statistics page and metrics.
    pub stats: Address,
    /// Authorities of the agents' certificates, as PEM: HAProxy's own checks speak TLS. Plain HTTP without them.
    pub authorities: Option<PathBuf>,
    /// Start HAProxy when it does not run.
    pub manage_process: bool,
    /// The program; looked for where distributions put it if not given.
    pub program: Option<PathBuf>,
    /// How long one try to connect to the primary may take, and how long a connection that was refused waits before it tries
    /// again: the longest that a held connection lags behind a redirect. Must exceed the round trip to the farthest node.
    pub connect_timeout: Duration,
    /// Connections accepted at most.
    pub connections_max: u32,
    /// How long HAProxy may take to answer one exchange on a socket.
    pub answer_timeout: Duration,
}

impl HaproxySettings {
    /// Default of [`HaproxySettings::connect_timeout`]: ten round trips inside a region, and still below what a client notices.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(50);
    /// Default of [`HaproxySettings::connections_max`].
    pub const CONNECTIONS_MAX: u32 = 4000;
    /// Default of [`HaproxySettings::answer_timeout`]: three hundred times the slowest answer of a healthy HAProxy.
    pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

    fn beside(&self, extension: &str) -> PathBuf {
        self.config_file.with_extension(extension)
    }

    /// Where server states are kept across a reload.
    pub fn state_file(&self) -> PathBuf {
        self.beside("state")
    }

    /// Which site applications are served from first.
    pub fn map_file(&self) -> PathBuf {
        self.beside("sites.map")
    }

    /// What was in force before the last change.
    pub fn previous_file(&self) -> PathBuf {
        self.beside("cfg.previous")
    }

    /// The Lua action of the checked ports.
    pub fn lua_file(&self) -> PathBuf {
        self.beside("wait_primary.lua")
    }

    /// The master's process id, where the agent starts HAProxy.
    pub fn pid_file(&self) -> PathBuf {
        self.beside("pid")
    }

    /// What HAProxy prints, where the agent starts it.
    pub fn log_file(&self) -> PathBuf {
        self.beside("log")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::domain::ids::{ApplicationName, NodeName, ServerName, SiteName};
    use crate::domain::traffic::{Application, ApplicationServer};
    use crate::ports::traffic::{Arrangement, ReadServer};

    pub(super) fn settings(directory: &Path) -> HaproxySettings {
        HaproxySettings {
            name: ProxyName::new("proxy-a").expect("valid"),
            cluster: ClusterName::new("main").expect("valid"),
            stats_socket: directory.join("stats.sock"),
            master_socket: directory.join("master.sock"),
            config_file: directory.join("haproxy.cfg"),
            template: None,
            write: Address::new("0.0.0.0", 5432),
            read: Address::new("0.0.0.0", 5433),
            checked: Address::new("0.0.0.0", 5434),
            stats: Address::new("0.0.0.0", 8404),
            authorities: None,
            manage_process: true,
            program: None,
            connect_timeout: HaproxySettings::CONNECT_TIMEOUT,
            connections_max: HaproxySettings::CONNECTIONS_MAX,
            answer_timeout: HaproxySettings::ANSWER_TIMEOUT,
        }
    }

    pub(super) fn arrangement() -> Arrangement {
        let site = |name: &str| SiteName::new(name).expect("valid");
        let server = |name: &str, place: &str, host: &str| ApplicationServer {
            name: ServerName::new(name).expect("valid"),
            site: site(place),
            address: Address::new(host, 8080),
        };
        Arrangement {
            nodes: vec![ReadServer {
                node: NodeName::new("n1").expect("valid"),
                address: Address::new("10.0.0.1", 5432),
                agent: Address::new("10.0.0.1", 8008),
                weight: 10,
            }],
            read_max_lag_bytes: Some(1000),
            active_site: Some(site("east")),
            applications: vec![Application {
                name: ApplicationName::new("shop").expect("valid"),
                port: 8080,
                check: "/health".to_owned(),
                servers: vec![server("shop-1", "east", "10.0.1.1"), server("shop-4", "west", "10.0.2.1")],
            }],
        }
    }
}
