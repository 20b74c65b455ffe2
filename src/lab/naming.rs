//! The lab's name server, its zone and key, and how the client finds a proxy by name.
//!
//! The name itself is written by the controller alone. Knot, because it listens on any address of the loopback.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;

use super::configuration::write;
use super::layout::{Layout, socket};
use crate::config::SecretReference;
use crate::config::dns::{DnsProvider, DnsSection};
use crate::domain::ids::Address;
use crate::domain::name::{NameOccasion, NameValue};

/// The zone.
const ZONE: &str = "lab.test";

/// Name of the key that may change the name.
const KEY: &str = "stormglass";

/// How long resolvers may keep an answer: the product's default.
const TTL: Duration = Duration::from_secs(5);

/// For one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The name that leads to the primary's site.
pub fn name(layout: &Layout) -> String {
    format!("{}.{ZONE}", layout.cluster)
}

/// The name server's configuration.
pub fn configuration_file(layout: &Layout) -> PathBuf {
    layout.name_server_directory().join("knot.conf")
}

/// What the controller is told of it.
pub fn settings(layout: &Layout) -> anyhow::Result<DnsSection> {
    let mut sites: BTreeMap<_, Vec<NameValue>> = BTreeMap::new();
    for proxy in &layout.proxies {
        let value = NameValue::parse(&proxy.write.host).map_err(|problem| anyhow!(problem))?;
        sites.entry(proxy.site.clone()).or_default().push(value);
    }
    Ok(DnsSection {
        provider: DnsProvider::Rfc2136,
        name: name(layout),
        zone: ZONE.to_owned(),
        ttl: TTL,
        when: NameOccasion::SiteChange,
        companion: None,
        servers: vec![layout.name_server.clone()],
        key_name: Some(KEY.to_owned()),
        key_secret: Some(SecretReference::File(layout.secret("dns"))),
        hosted_zone: None,
        endpoint: None,
        access_key: None,
        secret_key: None,
        sites,
    })
}

/// Writes the configuration and an empty zone. The secret is there already.
pub fn write_files(layout: &Layout) -> anyhow::Result<()> {
    let directory = layout.name_server_directory();
    std::fs::create_dir_all(directory.join("db")).with_context(|| format!("make {}", directory.display()))?;
    // 64 characters of 0-9a-f are base64 too.
    let secret = std::fs::read_to_string(layout.secret("dns")).context("read the name server's key")?;
    let (name, companion) = (name(layout), settings(layout)?.companion());
    let (folder, host, port) = (directory.display(), &layout.name_server.host, layout.name_server.port);
    let configuration = format!(
        "server:\n    rundir: {folder}\n    listen: {host}@{port}\n    tcp-workers: 1\n    udp-workers: 1\n    background-workers: 1\n\
         log:\n  - target: stderr\n    any: notice\n\
         database:\n    storage: {folder}/db\n    journal-db-max-size: 16M\n    kasp-db-max-size: 8M\n    timer-db-max-size: 8M\n    \
         catalog-db-max-size: 8M\n\
         key:\n  - id: {KEY}\n    algorithm: hmac-sha256\n    secret: {}\n\
         acl:\n  - id: update\n    key: {KEY}\n    action: update\n    update-owner: name\n    update-owner-match: equal\n    \
         update-owner-name: [ {name}., {companion}. ]\n\
         zone:\n  - domain: {ZONE}\n    storage: {folder}\n    file: zone\n    zonefile-sync: 0\n    zonefile-load: difference\n    \
         journal-content: changes\n    journal-max-usage: 1M\n    acl: update\n",
        secret.trim()
    );
    write(&configuration_file(layout), &configuration)?;
    let zone = format!(
        "$TTL 60\n@ SOA ns.{ZONE}. hostmaster.{ZONE}. 1 3600 600 86400 60\n@ NS ns\nns A {}\n",
        layout.name_server.host
    );
    write(&directory.join("zone"), &zone)
}

/// Finds the write ports that a name leads to.
pub struct Naming {
    resolver: TokioResolver,
    name: String,
    /// One host, one proxy: a name holds no port.
    ports: BTreeMap<IpAddr, Address>,
}

impl Naming {
    /// Asks the lab's server. `keeps`: an answer is kept for its time to live, as resolvers do; else each question is asked.
    pub fn of(layout: &Layout, keeps: bool) -> anyhow::Result<Self> {
        let server = socket(&layout.name_server)?;
        let mut known = NameServerConfig::udp_and_tcp(server.ip());
        for connection in &mut known.connections {
            connection.port = server.port();
        }
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![known]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.timeout = ANSWER_TIMEOUT;
        options.attempts = 1;
        options.cache_size = if keeps { 32 } else { 0 };
        options.recursion_desired = false;
        let resolver = builder.build().map_err(|error| anyhow!("make a resolver: {error}"))?;
        let mut ports = BTreeMap::new();
        for proxy in &layout.proxies {
            ports.insert(socket(&proxy.write)?.ip(), proxy.write.clone());
        }
        Ok(Self { resolver, name: format!("{}.", name(layout)), ports })
    }

    /// Where the name leads now.
    pub async fn addresses(&self) -> Result<Vec<IpAddr>, String> {
        let answer = self.resolver.lookup_ip(self.name.as_str()).await.map_err(|error| error.to_string())?;
        Ok(answer.iter().collect())
    }

    /// The write ports there.
    pub async fn write_ports(&self) -> Result<Vec<Address>, String> {
        let found = self.addresses().await?;
        Ok(found.iter().filter_map(|address| self.ports.get(address).cloned()).collect())
    }
}

/// What the name leads to, by the word of its authoritative server; `None` if there is no answer.
pub async fn answer(layout: &Layout) -> Option<String> {
    let mut found = Naming::of(layout, false).ok()?.addresses().await.ok()?;
    found.sort_unstable();
    Some(found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}
