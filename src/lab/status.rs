//! `lab status`: where everything of a lab is. The JSON document is a contract with scripts.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

use super::control::Controller;
use super::layout::{Layout, url};
use super::manifest::Manifest;
use super::namespaces;
use crate::domain::ids::Address;

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LabStatus {
    /// The cluster's name.
    pub cluster: String,
    /// The controller's API.
    pub controller_url: String,
    /// The APIs of every controller, this one among them.
    pub controller_urls: Vec<String>,
    /// A bearer token for each role.
    pub tokens: Tokens,
    /// Prometheus.
    pub prometheus_url: String,
    /// Alertmanager.
    pub alertmanager_url: String,
    /// Every HAProxy.
    pub haproxy: Vec<HaproxyStatus>,
    /// The name server; `null`: not part of the lab yet.
    pub dns_server: Option<String>,
    /// Every node.
    pub nodes: Vec<NodeStatus>,
    /// Where the lab's files are.
    pub directory: PathBuf,
    /// The words before a command that bring it into the lab's network; `null` where the loopback is that network.
    pub entrance: Option<String>,
    /// Processes that were started and do not live any more.
    pub dead_processes: Vec<String>,
}

/// Bearer tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// Reads.
    pub viewer: String,
    /// Reads, and takes backups.
    pub backup: String,
    /// Runs operations.
    pub operator: String,
    /// Everything.
    pub admin: String,
}

/// One HAProxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HaproxyStatus {
    /// Where it stands.
    pub site: String,
    /// `host:port` for writes.
    pub write: String,
    /// `host:port` for reads.
    pub read: String,
    /// URL of its statistics.
    pub stats: String,
    /// `host:port` of PgBouncer, which leads to the port for writes.
    pub pgbouncer: Option<String>,
    /// URL of the application behind it.
    pub application: Option<String>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub site: String,
    /// `primary` or `standby` by the controller's word; `null` if it does not answer.
    pub role: Option<String>,
    /// Where PostgreSQL listens.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// PGDATA.
    pub data_directory: PathBuf,
    /// Base URL of its agent.
    pub agent_url: String,
}

/// Reads the lab in `directory`.
pub async fn read(manifest: &Manifest) -> anyhow::Result<LabStatus> {
    let layout = &manifest.layout;
    let controller = Controller::of(layout)?;
    let answer = controller.status().await.ok();
    let role = |name: &str| {
        let status = answer.as_ref()?;
        status.nodes.iter().find(|node| node.name.as_str() == name).map(|node| node.role.clone())
    };
    // Of several of one name (a restarted controller) the last counts.
    let dead = manifest.processes.iter().enumerate().filter(|(place, entry)| {
        !manifest.processes[place + 1..].iter().any(|later| later.name == entry.name)
            && !entry.identity.is_some_and(super::process::ProcessIdentity::is_alive)
    });
    Ok(LabStatus {
        cluster: layout.cluster.to_string(),
        controller_url: layout.controller_url(),
        controller_urls: layout.controllers().map(url).collect(),
        tokens: tokens(layout)?,
        prometheus_url: url(&layout.prometheus),
        alertmanager_url: url(&layout.alertmanager),
        haproxy: layout
            .proxies
            .iter()
            .map(|proxy| HaproxyStatus {
                site: proxy.site.to_string(),
                write: proxy.write.to_string(),
                read: proxy.read.to_string(),
                stats: url(&proxy.stats),
                pgbouncer: proxy.pgbouncer.as_ref().map(ToString::to_string),
                application: layout.application_port.map(|port| url(&Address::new(proxy.write.host.clone(), port))),
            })
            .collect(),
        dns_server: None,
        nodes: layout
            .nodes
            .iter()
            .map(|node| NodeStatus {
                name: node.name.to_string(),
                site: node.site.to_string(),
                role: role(node.name.as_str()),
                host: node.postgres.host.clone(),
                port: node.postgres.port,
                data_directory: node.data_directory(),
                agent_url: url(&node.agent),
            })
            .collect(),
        directory: layout.directory.clone(),
        entrance: if layout.has_namespaces { Some(namespaces::door(manifest)?.join(" ")) } else { None },
        dead_processes: dead.map(|(_, entry)| entry.name.clone()).collect(),
    })
}

fn tokens(layout: &Layout) -> anyhow::Result<Tokens> {
    let read = |name: &str| -> anyhow::Result<String> {
        let file = layout.secret(name);
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(text.trim().to_owned())
    };
    Ok(Tokens { viewer: read("viewer")?, backup: read("backup")?, operator: read("operator")?, admin: read("admin")? })
}

impl LabStatus {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!("Lab {}\n", self.directory.display());
        for controller in &self.controller_urls {
            let _ = writeln!(text, "controller    {controller}");
        }
        let _ = writeln!(text, "prometheus    {}", self.prometheus_url);
        let _ = writeln!(text, "alertmanager  {}", self.alertmanager_url);
        for proxy in &self.haproxy {
            let HaproxyStatus { site, write, read, stats, pgbouncer, application } = proxy;
            let _ = writeln!(text, "haproxy {site:<6}write {write:<22}read {read:<22}stats {stats}");
            for (name, address) in [("pgbouncer", pgbouncer), ("application", application)] {
                if let Some(address) = address {
                    let _ = writeln!(text, "        {site:<6}{name} {address}");
                }
            }
        }
        let _ = writeln!(text, "{:<6}{:<6}{:<9}{:<24}AGENT", "NODE", "SITE", "ROLE", "POSTGRESQL");
        for node in &self.nodes {
            let address = format!("{}:{}", node.host, node.port);
            let role = node.role.as_deref().unwrap_or("?");
            let _ = writeln!(text, "{:<6}{:<6}{role:<9}{address:<24}{}", node.name, node.site, node.agent_url);
        }
        if !self.dead_processes.is_empty() {
            let _ = writeln!(text, "not running: {}", self.dead_processes.join(", "));
        }
        if let Some(entrance) = &self.entrance {
            let _ = writeln!(
                text,
                "\nIts addresses are in a network of its own. As root, enter that first:\n  {entrance} bash"
            );
        }
        text.push_str(&look_around(
            &self.directory,
            &self.controller_urls.join(","),
            self.haproxy.first(),
            &self.nodes,
        ));
        text
    }
}

/// What a newcomer can do with a lab that runs.
fn look_around(directory: &Path, controller: &str, proxy: Option<&HaproxyStatus>, nodes: &[NodeStatus]) -> String {
    let mut text = format!(
        "\nLook around:\n  export STORMGLASS_CONTROLLER={controller} STORMGLASS_TOKEN=$(cat {})\n  stormglass status\n  stormglass watch\n",
        directory.join("secrets/operator").display()
    );
    if let Some((host, port)) = proxy.and_then(|proxy| proxy.write.rsplit_once(':')) {
        let _ = writeln!(text, "  psql -h {host} -p {port} -U app app");
    }
    let primary = nodes.iter().find(|node| node.role.as_deref() == Some("primary"));
    if let Some(primary) = primary {
        let _ = writeln!(
            text,
            "Cause a failover ({} is the primary), and watch:\n  kill -9 $(head -1 {})",
            primary.name,
            primary.data_directory.join("postmaster.pid").display()
        );
    }
    let _ = writeln!(text, "Take it down:\n  stormglass lab down");
    text
}
