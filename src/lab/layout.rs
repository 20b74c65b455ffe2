//! Where everything of one lab is: addresses, ports, directories. Pure data, kept in the manifest.
//!
//! Every "host" has a loopback address of its own, so that addresses in logs and metrics tell hosts apart.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::namespaces;
use super::random::Random;
use crate::domain::ids::{Address, ClusterName, NodeName, ProxyName, SiteName};
use crate::domain::policy::{DurabilityMode, PredictionMode, SyncScope};

/// The lab's only cluster.
pub const CLUSTER: &str = "main";

/// Database that the client writes to.
pub const DATABASE: &str = "app";

/// Role that the client writes with.
pub const APPLICATION_ROLE: &str = "app";

/// Names of the database hosts.
pub const NODE_NAMES: [&str; 3] = ["n1", "n2", "n3"];

/// Where each of them stands.
const NODE_SITES: [&str; 3] = ["a", "a", "b"];

/// Servers of the application in each site.
const APPLICATION_SERVERS: u8 = 3;

/// Ports of a lab in namespaces follow this one.
const PORT_FIRST: u16 = 7400;

/// One lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Everything the lab writes is below it.
    pub directory: PathBuf,
    /// The cluster's name.
    pub cluster: ClusterName,
    /// The controller's API.
    pub controller: Address,
    /// Prometheus.
    pub prometheus: Address,
    /// The name server, on the controller's host.
    pub name_server: Address,
    /// Alertmanager, beside Prometheus.
    pub alertmanager: Address,
    /// Database hosts; the first one is initialised, the others are cloned from it.
    pub nodes: Vec<NodeLayout>,
    /// Proxy hosts.
    pub proxies: Vec<ProxyLayout>,
    /// Links between hosts that can be broken; empty where everything is connected directly.
    #[serde(default)]
    pub links: Vec<LinkLayout>,
    /// True where every host is a network namespace of its own; false where all share the loopback.
    #[serde(default)]
    pub has_namespaces: bool,
    /// The cluster's durability mode; the product's default if not given.
    #[serde(default)]
    pub durability: Option<DurabilityMode>,
    /// Who confirms commits.
    #[serde(default)]
    pub sync_scope: SyncScope,
    /// How long a proxy tries to reach the primary before it tries anew.
    #[serde(default = "one_region")]
    pub connect_timeout: Duration,
    /// True where a restore sequence follows each failover.
    #[serde(default)]
    pub has_ladder: bool,
    /// Controllers besides the first one.
    #[serde(default)]
    pub more_controllers: Vec<Address>,
    /// Members of etcd; none where there is one controller.
    #[serde(default)]
    pub etcd: Vec<EtcdLayout>,
    /// What predictions may do; `None`: there is no predictor.
    #[serde(default)]
    pub prediction: Option<PredictionMode>,
    /// Port of the application on every proxy.
    #[serde(default)]
    pub application_port: Option<u16>,
    /// Its servers, by site.
    #[serde(default)]
    pub applications: Vec<ApplicationLayout>,
}

/// One way from a host to a server on another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkLayout {
    /// Host that connects; [`ANY_DATABASE_CLIENT`] where one address serves all.
    pub from: String,
    /// Host of the server.
    pub to: String,
    /// Where the host connects.
    pub listen: Address,
    /// Where the server is.
    pub target: Address,
}

/// The controller's name as a host.
pub const CONTROLLER_HOST: &str = "controller";

/// Prometheus' name as a host.
pub const PROMETHEUS_HOST: &str = "prometheus";

/// A member of etcd, where the lab has several controllers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdLayout {
    /// Its name.
    pub name: String,
    /// Where its files are.
    pub directory: PathBuf,
    /// Where controllers connect.
    pub client: Address,
    /// Where the other members connect.
    pub peer: Address,
}

/// Whoever connects to a PostgreSQL: HAProxy, standbys, clients. A node has one address for all of them.
pub const ANY_DATABASE_CLIENT: &str = "database";

/// A database host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLayout {
    /// Its name.
    pub name: NodeName,
    /// Where it stands.
    pub site: SiteName,
    /// Where its files are.
    pub directory: PathBuf,
    /// A filesystem of limited size that PGDATA is on; `None` where it lies beside the other files.
    #[serde(default)]
    pub volume: Option<PathBuf>,
    /// PostgreSQL.
    pub postgres: Address,
    /// Its agent.
    pub agent: Address,
    /// Its exporter.
    pub exporter: Address,
    /// The exporter of the host.
    pub host_exporter: Address,
}

/// A proxy host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyLayout {
    /// Its name.
    pub name: ProxyName,
    /// Where it stands.
    pub site: SiteName,
    /// Where its files are.
    pub directory: PathBuf,
    /// Its agent.
    pub agent: Address,
    /// Port for writes.
    pub write: Address,
    /// Port for reads.
    pub read: Address,
    /// Port that follows the health checks.
    pub checked: Address,
    /// HAProxy's statistics.
    pub stats: Address,
    /// PgBouncer, which leads to the port for writes.
    #[serde(default)]
    pub pgbouncer: Option<Address>,
}

/// Servers of the lab's application in one site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationLayout {
    /// Where they stand.
    pub site: SiteName,
    /// The proxy host that they share.
    pub host: ProxyName,
    /// Where each listens.
    pub servers: Vec<Address>,
}

/// Enough inside a region, and a lab's hosts are one.
fn one_region() -> Duration {
    Duration::from_millis(20)
}

impl NodeLayout {
    /// PGDATA.
    pub fn data_directory(&self) -> PathBuf {
        self.volume.as_ref().unwrap_or(&self.directory).join("data")
    }

    /// The agent's configuration.
    pub fn agent_config(&self) -> PathBuf {
        self.directory.join("agent.toml")
    }
}

impl ProxyLayout {
    /// The agent's configuration.
    pub fn agent_config(&self) -> PathBuf {
        self.directory.join("agent.toml")
    }
}

impl Layout {
    /// Finds addresses and free ports for a lab in `directory`.
    pub fn find(directory: &Path, random: &mut Random) -> anyhow::Result<Self> {
        // One /24 of 127/8 for each lab: two labs on one host do not meet even before the ports are looked at.
        let (second, third) = (10 + random.below(240) as u8, random.below(256) as u8);
        Self::of(directory, |last| Ipv4Addr::new(127, second, third, last), &mut Ports::default())
    }

    /// Addresses for a lab whose hosts are network namespaces: nobody else is in them, so that nothing is looked for.
    pub fn in_namespaces(directory: &Path) -> anyhow::Result<Self> {
        let mut ports = Ports { next: Some(PORT_FIRST), ..Ports::default() };
        Ok(Self { has_namespaces: true, ..Self::of(directory, namespaces::address, &mut ports)? })
    }

    fn of(directory: &Path, host: impl Fn(u8) -> Ipv4Addr, ports: &mut Ports) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for (number, (name, site)) in NODE_NAMES.into_iter().zip(NODE_SITES).enumerate() {
            let address = host(101 + number as u8);
            nodes.push(NodeLayout {
                name: NodeName::new(name)?,
                site: SiteName::new(site)?,
                directory: directory.join(name),
                volume: None,
                postgres: ports.free(address)?,
                agent: ports.free(address)?,
                exporter: ports.free(address)?,
                host_exporter: ports.free(address)?,
            });
        }
        let mut proxies = Vec::new();
        let mut applications = Vec::new();
        // The same on every proxy.
        let application_port = ports.free(host(11))?.port;
        for (number, (name, site)) in [("p1", "a"), ("p2", "b")].into_iter().enumerate() {
            let address = host(11 + number as u8);
            if number > 0 && ports.next.is_none() {
                ports.find(address, application_port)?;
            }
            applications.push(ApplicationLayout {
                site: SiteName::new(site)?,
                host: ProxyName::new(name)?,
                servers: (0..APPLICATION_SERVERS).map(|_| ports.free(address)).collect::<anyhow::Result<_>>()?,
            });
            proxies.push(ProxyLayout {
                name: ProxyName::new(name)?,
                site: SiteName::new(site)?,
                directory: directory.join(name),
                agent: ports.free(address)?,
                write: ports.free(address)?,
                read: ports.free(address)?,
                checked: ports.free(address)?,
                stats: ports.free(address)?,
                pgbouncer: Some(ports.free(address)?),
            });
        }
        Ok(Self {
            directory: directory.to_owned(),
            cluster: ClusterName::new(CLUSTER)?,
            controller: ports.free(host(1))?,
            prometheus: ports.free(host(2))?,
            name_server: ports.free(host(1))?,
            alertmanager: ports.free(host(2))?,
            nodes,
            proxies,
            links: Vec::new(),
            has_namespaces: false,
            durability: None,
            sync_scope: SyncScope::Local,
            connect_timeout: one_region(),
            has_ladder: false,
            more_controllers: Vec::new(),
            etcd: Vec::new(),
            prediction: None,
            application_port: Some(application_port),
            applications,
        })
    }

    /// Makes it a lab of `count` controllers on as many members of etcd.
    pub fn add_controllers(&mut self, count: u8) -> anyhow::Result<()> {
        let SocketAddr::V4(first) = socket(&self.controller)? else {
            anyhow::bail!("the controller has no IPv4 address")
        };
        let [first, second, third, _] = first.ip().octets();
        let mut ports = Ports::default();
        for number in 0..count {
            // Controllers stand on .1, .3, .4; each member of etcd beside one of them.
            let host = Ipv4Addr::new(first, second, third, if number == 0 { 1 } else { 2 + number });
            if number > 0 {
                self.more_controllers.push(ports.free(host)?);
            }
            let name = format!("etcd-{}", number + 1);
            self.etcd.push(EtcdLayout {
                directory: self.directory.join(&name),
                name,
                client: ports.free(host)?,
                peer: ports.free(host)?,
            });
        }
        Ok(())
    }

    /// Every controller.
    pub fn controllers(&self) -> impl Iterator<Item = &Address> {
        std::iter::once(&self.controller).chain(&self.more_controllers)
    }

    /// Name of the process and of the directory of a controller.
    pub fn controller_name(&self, number: usize) -> String {
        if number == 0 { "controller".to_owned() } else { format!("controller-{}", number + 1) }
    }

    /// Puts a link in every way from one host to another. What a host says to itself stays direct, and so does the
    /// lab's own view of everything.
    pub fn lay_links(&mut self) -> anyhow::Result<()> {
        let mut ports = Ports::default();
        let mut links = Vec::new();
        let mut lay = |from: &str, to: &str, target: &Address, port: Option<u16>| -> anyhow::Result<()> {
            // Links have addresses of their own: what leads to host .101 has .201.
            let SocketAddr::V4(socket) = socket(target)? else { anyhow::bail!("{target} is not an IPv4 address") };
            let [first, second, third, last] = socket.ip().octets();
            let listen = ports.find(Ipv4Addr::new(first, second, third, last + 100), port.unwrap_or(0))?;
            links.push(LinkLayout { from: from.to_owned(), to: to.to_owned(), listen, target: target.clone() });
            Ok(())
        };
        for node in &self.nodes {
            // PostgreSQL's port is part of what the agent tells others, so it is the same on both addresses.
            lay(ANY_DATABASE_CLIENT, node.name.as_str(), &node.postgres, Some(node.postgres.port))?;
            lay(CONTROLLER_HOST, node.name.as_str(), &node.agent, None)?;
            for controller in self.controllers() {
                lay(node.name.as_str(), CONTROLLER_HOST, controller, None)?;
            }
            for peer in self.nodes.iter().filter(|peer| peer.name != node.name) {
                lay(peer.name.as_str(), node.name.as_str(), &node.agent, None)?;
            }
            for proxy in &self.proxies {
                lay(proxy.name.as_str(), node.name.as_str(), &node.agent, None)?;
            }
        }
        for proxy in &self.proxies {
            lay(CONTROLLER_HOST, proxy.name.as_str(), &proxy.agent, None)?;
            for controller in self.controllers() {
                lay(proxy.name.as_str(), CONTROLLER_HOST, controller, None)?;
            }
        }
        self.links = links;
        Ok(())
    }

    /// Where host `from` reaches `target`.
    pub fn way(&self, from: &str, target: &Address) -> Address {
        let link = self.links.iter().find(|link| link.from == from && link.target == *target);
        link.map_or(target, |link| &link.listen).clone()
    }

    /// Where the network takes orders.
    pub fn network_socket(&self) -> PathBuf {
        self.directory.join("network.sock")
    }

    /// The controller's directory.
    pub fn controller_directory(&self) -> PathBuf {
        self.directory.join("controller")
    }

    /// Models of the predictor.
    pub fn model_directory(&self) -> PathBuf {
        self.directory.join("models")
    }

    /// Prometheus' directory.
    pub fn prometheus_directory(&self) -> PathBuf {
        self.directory.join("prometheus")
    }

    /// The name server's directory.
    pub fn name_server_directory(&self) -> PathBuf {
        self.directory.join("dns")
    }

    /// Every host of a site, with its directory.
    pub fn hosts_in(&self, site: &SiteName) -> Vec<(String, PathBuf)> {
        let nodes = self.nodes.iter().map(|node| (&node.site, node.name.to_string(), &node.directory));
        let proxies = self.proxies.iter().map(|proxy| (&proxy.site, proxy.name.to_string(), &proxy.directory));
        let there = nodes.chain(proxies).filter(|(place, _, _)| *place == site);
        there.map(|(_, name, directory)| (name, directory.clone())).collect()
    }

    /// The backup repository.
    pub fn repository_directory(&self) -> PathBuf {
        self.directory.join("repository")
    }

    /// Alertmanager's directory.
    pub fn alertmanager_directory(&self) -> PathBuf {
        self.directory.join("alertmanager")
    }

    /// Logs of every process.
    pub fn log_directory(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// A secret's file.
    pub fn secret(&self, name: &str) -> PathBuf {
        self.directory.join("secrets").join(name)
    }

    /// The lab's own copy of the program, so that a rebuild does not change a lab that runs.
    pub fn program(&self) -> PathBuf {
        self.directory.join("bin").join("stormglass")
    }

    /// Base URL of the controller.
    pub fn controller_url(&self) -> String {
        url(&self.controller)
    }

    /// The node called `name`.
    pub fn node(&self, name: &NodeName) -> anyhow::Result<&NodeLayout> {
        self.nodes.iter().find(|node| node.name == *name).with_context(|| format!("the lab has no node {name}"))
    }
}

/// `http://` in front.
pub fn url(address: &Address) -> String {
    format!("http://{address}")
}

/// The address as a socket address; the lab's addresses are all numeric.
pub fn socket(address: &Address) -> anyhow::Result<SocketAddr> {
    let host: IpAddr = address.host.parse().with_context(|| format!("{} is not an IP address", address.host))?;
    Ok(SocketAddr::new(host, address.port))
}

/// Hands out free ports; holds each one until all are found, so that none is handed out twice.
#[derive(Default)]
struct Ports {
    held: Vec<TcpListener>,
    /// The next one where all are free.
    next: Option<u16>,
}

impl Ports {
    fn free(&mut self, host: Ipv4Addr) -> anyhow::Result<Address> {
        self.find(host, 0)
    }

    /// Port 0: any.
    fn find(&mut self, host: Ipv4Addr, port: u16) -> anyhow::Result<Address> {
        if let Some(next) = &mut self.next {
            *next += 1;
            return Ok(Address::new(host.to_string(), *next));
        }
        let listener = TcpListener::bind((host, port))
            .with_context(|| format!("find a free port on {host}; the lab needs all of 127.0.0.0/8 on the loopback"))?;
        let port = listener.local_addr().context("read the port that was found")?.port();
        self.held.push(listener);
        Ok(Address::new(host.to_string(), port))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_layout_has_two_sites_and_no_address_twice() {
        let layout = Layout::find(Path::new("/tmp/lab"), &mut Random::new(1)).expect("layout");
        let sites: Vec<&str> = layout.nodes.iter().map(|node| node.site.as_str()).collect();
        assert_eq!(sites, ["a", "a", "b"]);
        let mut seen = BTreeSet::from([
            layout.controller.clone(),
            layout.prometheus.clone(),
            layout.alertmanager.clone(),
            layout.name_server.clone(),
        ]);
        let nodes =
            layout.nodes.iter().flat_map(|node| [&node.postgres, &node.agent, &node.exporter, &node.host_exporter]);
        let proxies = layout
            .proxies
            .iter()
            .flat_map(|proxy| [&proxy.agent, &proxy.write, &proxy.read, &proxy.checked, &proxy.stats]);
        for address in nodes.chain(proxies) {
            assert!(seen.insert(address.clone()), "{address} twice");
        }
        let hosts: BTreeSet<&str> = seen.iter().map(|address| address.host.as_str()).collect();
        assert_eq!(hosts.len(), 7, "one address for each host: {hosts:?}");
    }

    #[test]
    fn in_namespaces_every_host_has_the_address_that_the_switch_knows() {
        let layout = Layout::in_namespaces(Path::new("/tmp/lab")).expect("layout");
        for (name, address) in [
            ("n1", &layout.nodes[0].postgres),
            ("n3", &layout.nodes[2].exporter),
            ("p2", &layout.proxies[1].write),
            (CONTROLLER_HOST, &layout.controller),
            (PROMETHEUS_HOST, &layout.prometheus),
            (CONTROLLER_HOST, &layout.name_server),
        ] {
            let last = namespaces::number(name).expect("a host of the lab");
            assert_eq!(address.host, namespaces::address(last).to_string(), "{name}");
        }
    }

    #[test]
    fn every_way_between_hosts_has_a_link_of_its_own_and_the_same_port_for_postgres() {
        let mut layout = Layout::find(Path::new("/tmp/lab"), &mut Random::new(2)).expect("layout");
        let node = layout.nodes[0].clone();
        assert_eq!(layout.way("p1", &node.agent), node.agent, "direct without links");
        layout.lay_links().expect("laid");
        let listens: BTreeSet<&Address> = layout.links.iter().map(|link| &link.listen).collect();
        assert_eq!(listens.len(), layout.links.len());
        assert_eq!(listens.len(), 3 * (3 + 2 + 2) + 2 * 2);
        let advertised = layout.way(ANY_DATABASE_CLIENT, &node.postgres);
        assert_eq!(advertised.port, node.postgres.port);
        assert_ne!(advertised.host, node.postgres.host);
        assert_ne!(layout.way("n1", &layout.controller), layout.way("n2", &layout.controller));
        assert_eq!(layout.way("n1", &node.agent), node.agent, "to itself");
    }
}
