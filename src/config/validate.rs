//! Rules between settings that types alone cannot hold, and the policy that follows from them.
//!
//! Opens nothing but the names of directories: whether PostgreSQL or an address answers is for the process to find out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path, PathBuf};

use super::agent::{PostgresqlSection, ProxySection};
use super::error::{ConfigError, Place, Violation, key_text};
use super::oidc::OidcSection;
use super::predictor::PredictorSection;
use super::tls::{TlsSection, listener};
use super::{AgentConfig, ControllerConfig};
use crate::domain::access::RESERVED_NAMES;
use crate::domain::ids::Address;
use crate::domain::lease::{LeaseTimers, RTO_MIN, TimerContradiction};
use crate::domain::policy::{DurabilityMode, Policy, SyncScope};
use crate::domain::timing;

/// Parameters that the agent sets itself; another value would lead standbys or clients past it.
const AGENT_PARAMETERS: &[&str] = &[
    "data_directory",
    "listen_addresses",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_target_timeline",
    "synchronous_standby_names",
    "unix_socket_directories",
];

/// Parameters that follow from `[backup]`.
const ARCHIVE_PARAMETERS: &[&str] = &["archive_mode", "archive_command", "archive_library", "archive_timeout"];

/// Parameters without which a confirmed commit may not survive a crash.
const DURABLE_PARAMETERS: &[&str] = &["fsync", "full_page_writes"];

impl ControllerConfig {
    /// The rules of every decision: what follows from `failover.rto`, and the overrides.
    pub fn policy(&self) -> Result<Policy, ConfigError> {
        self.derive_policy().map_err(|violation| ConfigError::Invalid {
            place: Place { origin: None, key: key_text(&violation.key) },
            problem: violation.problem,
        })
    }

    fn derive_policy(&self) -> Result<Policy, Violation> {
        let failover = &self.failover;
        if failover.rto < RTO_MIN {
            let least = humantime::format_duration(RTO_MIN);
            return Err(Violation::at("failover.rto", format!("must be at least {least}: in less time no lease fits")));
        }
        let derived = Policy::for_rto(failover.rto);
        let timers = LeaseTimers {
            lease: failover.lease.unwrap_or(derived.timers.lease),
            renewal_interval: failover.renewal_interval.unwrap_or(derived.timers.renewal_interval),
            request_timeout: failover.request_timeout.unwrap_or(derived.timers.request_timeout),
            stop_budget: failover.stop_budget.unwrap_or(derived.timers.stop_budget),
            kill_budget: failover.kill_budget.unwrap_or(derived.timers.kill_budget),
            ..derived.timers
        };
        // The drift bound grows with the lease, wherever the lease comes from.
        let drift = failover.drift.unwrap_or(timers.drift.max(timers.lease.mul_f64(0.01)));
        let timers = LeaseTimers { drift, ..timers };
        for (key, duration) in [
            ("failover.lease", timers.lease),
            ("failover.renewal_interval", timers.renewal_interval),
            ("failover.request_timeout", timers.request_timeout),
            ("failover.stop_budget", timers.stop_budget),
            ("failover.gray_after", failover.gray_after.unwrap_or(derived.gray_after)),
        ] {
            if duration.is_zero() {
                return Err(Violation::at(key, "must be more than 0s"));
            }
        }
        timers.check().map_err(|contradiction| {
            let key = match contradiction {
                TimerContradiction::KillBeforeStop { .. } | TimerContradiction::KillTooShort { .. }
                    if failover.kill_budget.is_some() =>
                {
                    "failover.kill_budget"
                }
                TimerContradiction::DriftTooSmall { .. } if failover.drift.is_some() => "failover.drift",
                _ => "failover",
            };
            Violation::at(key, contradiction.to_string())
        })?;
        self.store.violation(&timers)?;
        let fallback = if self.nodes.len() > 1 { DurabilityMode::Sync } else { DurabilityMode::Async };
        let policy = Policy {
            durability: self.cluster.durability.unwrap_or(fallback),
            sync_scope: self.cluster.sync_scope,
            timers,
            sync_standby_patience: self.cluster.sync_standby_patience.unwrap_or(timers.renewal_interval * 3),
            leadership_ttl: self.store.leadership_ttl(&timers),
            max_lag_bytes: self.cluster.max_lag_bytes,
            gray_after: failover.gray_after.unwrap_or(derived.gray_after),
            switchover_max_dirty_bytes: failover.switchover_max_dirty_bytes,
            report_stale_after: timers.renewal_interval * 3,
            rejoin_automatically: self.cluster.rejoin_automatically,
            keeps_name: self.dns.is_some(),
            prediction: self.predictor.as_ref().map(PredictorSection::policy).unwrap_or_default(),
            ..derived
        };
        // What `config check` prints as a rule holds, or there is no policy.
        match timing::inequalities(&policy).into_iter().find(|rule| !rule.is_expectation && !rule.holds()) {
            Some(broken) => Err(Violation::at("failover", broken.to_string())),
            None => Ok(policy),
        }
    }

    /// The first rule that is broken.
    pub(super) fn violation(&self) -> Result<(), Violation> {
        if self.controller.name.trim().is_empty() {
            return Err(Violation::at("controller.name", "must not be empty: logs and the journal name it"));
        }
        absolute("controller.data_directory", &self.controller.data_directory)?;
        let tls = self.tls.as_ref();
        tls.map_or(Ok(()), TlsSection::violation)?;
        listener("controller", self.controller.listen, self.controller.insecure, tls)?;
        if tls.is_none() && self.authentication.agent_token.is_none() {
            let problem = "missing: without [tls] it is what controllers and agents know each other by";
            return Err(Violation::at("authentication.agent_token", problem));
        }
        match &self.controller.url {
            Some(url) => base_url("controller.url", url)?,
            None if self.has_election() && self.controller.listen.ip().is_unspecified() => {
                let problem = format!(
                    "missing: with several controllers followers send others to the leader, and nobody can connect to {}",
                    self.controller.listen
                );
                return Err(Violation::at("controller.url", problem));
            }
            None => {}
        }
        if self.nodes.is_empty() {
            return Err(Violation::at("node", "a cluster needs at least one [[node]]"));
        }
        unique("node", "name", self.nodes.iter().map(|node| node.name.to_string()))?;
        unique("proxy", "name", self.proxies.iter().map(|proxy| proxy.name.to_string()))?;
        for (index, node) in self.nodes.iter().enumerate() {
            self.agent_url(&format!("node.{index}.agent"), &node.agent)?;
        }
        for (index, proxy) in self.proxies.iter().enumerate() {
            self.agent_url(&format!("proxy.{index}.agent"), &proxy.agent)?;
        }
        unique("node", "agent", self.nodes.iter().map(|node| node.agent.trim_end_matches('/').to_owned()))?;
        unique("proxy", "agent", self.proxies.iter().map(|proxy| proxy.agent.trim_end_matches('/').to_owned()))?;
        for (index, proxy) in self.proxies.iter().enumerate() {
            if self.nodes.iter().any(|node| node.agent.trim_end_matches('/') == proxy.agent.trim_end_matches('/')) {
                let problem = format!("{} is a node's agent already: a proxy has an agent of its own", proxy.agent);
                return Err(Violation::at(&format!("proxy.{index}.agent"), problem));
            }
        }
        super::sequence::sequences(&self.sequences)?;
        unique("authentication.token", "name", self.authentication.tokens.iter().map(|token| token.name.clone()))?;
        if self.authentication.requests_per_second == 0 {
            return Err(Violation::at("authentication.requests_per_second", "must be more than 0"));
        }
        let is_taken = |name: &str| RESERVED_NAMES.contains(&name) || name.starts_with("oidc:");
        if let Some(index) = self.authentication.tokens.iter().position(|token| is_taken(&token.name)) {
            let problem = "is a name by which the audit log knows somebody else: the controller itself, or, after \"oidc:\", whom an \
                           issuer of OpenID tokens knows; take another one";
            return Err(Violation::at(&format!("authentication.token.{index}.name"), problem));
        }
        self.authentication.oidc.as_ref().map_or(Ok(()), OidcSection::violation)?;
        let sequences: Vec<&str> = self.sequences.iter().map(|sequence| sequence.name.as_str()).collect();
        self.webhook.violation(&sequences, self.predictor.is_some())?;
        self.terraform.violation()?;
        unique("notification", "name", self.notifications.iter().map(|channel| channel.name.clone()))?;
        for (index, channel) in self.notifications.iter().enumerate() {
            channel.violation(index)?;
        }
        if let Some(prometheus) = &self.prometheus {
            prometheus.violation()?;
        }
        if let Some(predictor) = &self.predictor {
            predictor.violation()?;
            if self.prometheus.is_none() {
                return Err(Violation::at("predictor", "needs [prometheus] with a url: the samples come from there"));
            }
        }
        let sites: BTreeSet<_> = self.nodes.iter().map(|node| &node.site).collect();
        if self.cluster.sync_scope != SyncScope::Local && sites.len() < 2 {
            let problem = "every [[node]] stands in one site: add a node elsewhere, or choose \"local\"";
            return Err(Violation::at("cluster.sync_scope", problem));
        }
        if self.cluster.sync_scope != SyncScope::Local && self.cluster.durability == Some(DurabilityMode::Async) {
            let problem =
                "with durability = \"async\" no standby confirms a commit: take it out, or choose another mode";
            return Err(Violation::at("cluster.sync_scope", problem));
        }
        if let Some(backup) = &self.backup {
            backup.violation()?;
        }
        let synchronous = matches!(self.cluster.durability, Some(DurabilityMode::Sync | DurabilityMode::SyncStrict));
        if synchronous && self.nodes.len() < 2 {
            return Err(Violation::at(
                "cluster.durability",
                "there is one [[node]], and no standby that could confirm a commit: add a node or choose \"async\"",
            ));
        }
        if let Some(dns) = &self.dns {
            dns.violation(&sites)?;
        }
        self.traffic_violation()?;
        self.derive_policy().map(drop)
    }

    fn agent_url(&self, key: &str, url: &str) -> Result<(), Violation> {
        called_url(key, url, self.tls.is_some(), self.authentication.agent_token.is_some())
    }
}

impl AgentConfig {
    /// The first rule that is broken.
    pub(super) fn violation(&self) -> Result<(), Violation> {
        absolute("agent.state_directory", &self.agent.state_directory)?;
        let (tls, has_token) = (self.tls.as_ref(), self.agent.token.is_some());
        tls.map_or(Ok(()), TlsSection::violation)?;
        listener("agent", self.agent.listen, self.agent.insecure, tls)?;
        if tls.is_none() && !has_token {
            let problem = "missing: without [tls] it is what controllers and agents know each other by";
            return Err(Violation::at("agent.token", problem));
        }
        if self.agent.controllers.is_empty() {
            return Err(Violation::at(
                "agent.controllers",
                "must name at least one controller, as in \"http://10.0.0.5:8432\"",
            ));
        }
        for (index, controller) in self.agent.controllers.iter().enumerate() {
            called_url(&format!("agent.controllers.{index}"), controller, tls.is_some(), has_token)?;
        }
        for (node, peer) in &self.agent.peers {
            called_url(&format!("agent.peers.{node}"), peer, tls.is_some(), has_token)?;
        }
        if let Some(backup) = &self.backup {
            if self.postgresql.is_none() {
                return Err(Violation::at("backup", "belongs to the agent of a database host: take it out"));
            }
            backup.violation()?;
            let name = self.agent.cluster.as_str();
            if backup.stanza.is_none() && !super::backup::is_stanza(name) {
                return Err(Violation::at("backup.stanza", format!("missing: {name:?} is no name for pgBackRest")));
            }
        }
        match (&self.postgresql, &self.proxy) {
            (Some(postgresql), None) => self.check_postgresql(postgresql),
            (None, Some(proxy)) => self.check_proxy(proxy),
            (Some(_), Some(_)) => Err(Violation::at(
                "proxy",
                "an agent serves either [postgresql] or [proxy]: run one agent for each, with a state_directory of its own",
            )),
            (None, None) => {
                Err(Violation::at("", "an agent needs [postgresql] on a database host or [proxy] on a proxy host"))
            }
        }
    }

    fn check_postgresql(&self, postgresql: &PostgresqlSection) -> Result<(), Violation> {
        absolute("postgresql.data_directory", &postgresql.data_directory)?;
        if is_inside(&self.agent.state_directory, &postgresql.data_directory) {
            return Err(Violation::at(
                "agent.state_directory",
                "is inside postgresql.data_directory: a rewind or reclone would delete what the agent promised; move it out",
            ));
        }
        if let Some(directory) = &postgresql.divergent_directory {
            absolute("postgresql.divergent_directory", directory)?;
            if is_inside(directory, &postgresql.data_directory) {
                return Err(Violation::at(
                    "postgresql.divergent_directory",
                    "is inside postgresql.data_directory, which a rewind rewrites: move it out",
                ));
            }
        }
        if let Some(directory) = &postgresql.config_directory {
            absolute("postgresql.config_directory", directory)?;
        }
        if let Some(directory) = &postgresql.bin_directory {
            absolute("postgresql.bin_directory", directory)?;
        }
        reachable("postgresql.address", &postgresql.address)?;
        clashes("postgresql.address", &postgresql.address, self.agent.listen)?;
        if postgresql.listen_addresses.trim().is_empty() {
            return Err(Violation::at(
                "postgresql.listen_addresses",
                "must not be empty: it is what clients and standbys reach while the node may be reached, as in \"*\"",
            ));
        }
        for (index, directory) in postgresql.unix_socket_directories.iter().enumerate() {
            absolute(&format!("postgresql.unix_socket_directories.{index}"), directory)?;
        }
        for (key, value) in [
            ("postgresql.superuser", &postgresql.superuser),
            ("postgresql.replication_user", &postgresql.replication_user),
        ] {
            if value.is_empty() {
                return Err(Violation::at(key, "must not be empty"));
            }
        }
        for (key, duration) in [
            ("postgresql.probe_interval", postgresql.probe_interval),
            ("postgresql.probe_timeout", postgresql.probe_timeout),
        ] {
            if duration.is_zero() {
                return Err(Violation::at(key, "must be more than 0s"));
            }
        }
        for (name, value) in &postgresql.parameters {
            let key = format!("postgresql.parameters.{name}");
            if self.backup.is_some() && ARCHIVE_PARAMETERS.contains(&name.to_ascii_lowercase().as_str()) {
                return Err(Violation::at(&key, "is set by the agent where there is [backup]: take one of them out"));
            }
            if AGENT_PARAMETERS.contains(&name.to_ascii_lowercase().as_str()) {
                return Err(Violation::at(&key, "is set by the agent: take it out"));
            }
            let off = ["off", "false", "no", "0"].contains(&value.to_ascii_lowercase().as_str());
            if off && DURABLE_PARAMETERS.contains(&name.to_ascii_lowercase().as_str()) {
                return Err(Violation::at(&key, "must stay on: without it a confirmed commit may not survive a crash"));
            }
        }
        Ok(())
    }

    fn check_proxy(&self, proxy: &ProxySection) -> Result<(), Violation> {
        absolute("proxy.stats_socket", &proxy.stats_socket)?;
        absolute("proxy.master_socket", &proxy.master_socket)?;
        absolute("proxy.config_file", &proxy.config_file)?;
        if let Some(template) = &proxy.template {
            absolute("proxy.template", template)?;
        }
        unique("proxy.nodes", "name", proxy.nodes.iter().map(|node| node.name.to_string()))?;
        unique("proxy.nodes", "address", proxy.nodes.iter().map(|node| node.address.to_string()))?;
        for (index, node) in proxy.nodes.iter().enumerate() {
            reachable(&format!("proxy.nodes.{index}.address"), &node.address)?;
            reachable(&format!("proxy.nodes.{index}.agent"), &node.agent)?;
        }
        let ports = [
            ("proxy.write", &proxy.write),
            ("proxy.read", &proxy.read),
            ("proxy.checked", &proxy.checked),
            ("proxy.stats", &proxy.stats),
        ];
        for (index, (key, address)) in ports.iter().enumerate() {
            if address.port == 0 {
                return Err(Violation::at(key, "needs a port other than 0"));
            }
            if let Some((other, _)) = ports[..index].iter().find(|(_, other)| other == address) {
                return Err(Violation::at(key, format!("{address} is {other} already: each needs a port of its own")));
            }
            clashes(key, address, self.agent.listen)?;
        }
        super::traffic::pgbouncer_violation(proxy)?;
        match &proxy.verify {
            Some(verify) if verify.user.is_empty() => Err(Violation::at("proxy.verify.user", "must not be empty")),
            Some(verify) if verify.database.is_empty() => {
                Err(Violation::at("proxy.verify.database", "must not be empty"))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn unique(list: &str, field: &str, values: impl Iterator<Item = String>) -> Result<(), Violation> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (index, value) in values.enumerate() {
        if let Some(first) = seen.insert(value.clone(), index) {
            let problem = format!("{value:?} is {} already: every {field} is used once", key_text(&path(list, first)));
            return Err(Violation::at(&format!("{list}.{index}.{field}"), problem));
        }
    }
    Ok(())
}

fn path(list: &str, index: usize) -> Vec<String> {
    Violation::at(&format!("{list}.{index}"), "").key
}

/// A base URL that this process calls, with what it has to show there.
fn called_url(key: &str, url: &str, has_tls: bool, has_token: bool) -> Result<(), Violation> {
    base_url(key, url)?;
    match url.starts_with("https:") {
        true if !has_tls => {
            Err(Violation::at(key, "https needs [tls], whose client_authorities say whose certificate is good there"))
        }
        false if !has_token => Err(Violation::at(
            key,
            "without TLS only a token is understood there: use https://, or configure the token",
        )),
        _ => Ok(()),
    }
}

/// `http://host:port` or `https://host:port`, nothing after it.
fn base_url(key: &str, url: &str) -> Result<(), Violation> {
    let refused =
        |why: &str| Err(Violation::at(key, format!("{url:?} is no base URL as in \"https://10.0.0.5:8432\": {why}")));
    let parsed = match reqwest::Url::parse(url) {
        Ok(parsed) => parsed,
        Err(error) => return refused(&error.to_string()),
    };
    match parsed.scheme() {
        "http" | "https" => {}
        _ => return refused("it must begin with https:// or http://"),
    }
    if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() || parsed.fragment().is_some() {
        return refused("nothing may follow host and port");
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(Violation::at(
            key,
            "holds a user name or password: tokens are settings of their own, by reference",
        ));
    }
    match parsed.host_str() {
        None => refused("there is no host"),
        Some(host) if is_unspecified(host) => refused("nobody can connect to that address, name one that others reach"),
        Some(_) => Ok(()),
    }
}

pub(super) fn reachable(key: &str, address: &Address) -> Result<(), Violation> {
    if address.port == 0 {
        return Err(Violation::at(key, "needs a port other than 0"));
    }
    if address.host.is_empty() || is_unspecified(&address.host) {
        let problem = format!("nobody can connect to {:?}: name the host or address that others reach", address.host);
        return Err(Violation::at(key, problem));
    }
    Ok(())
}

fn is_unspecified(host: &str) -> bool {
    host == "*" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
}

/// Two servers of one host on one port.
fn clashes(key: &str, address: &Address, listen: SocketAddr) -> Result<(), Violation> {
    let same_host = listen.ip().is_unspecified()
        || is_unspecified(&address.host)
        || address.host.parse::<IpAddr>().is_ok_and(|host| host == listen.ip());
    if same_host && address.port == listen.port() {
        let problem = format!("port {} is agent.listen already: choose another one for either", address.port);
        return Err(Violation::at(key, problem));
    }
    Ok(())
}

pub(super) fn absolute(key: &str, path: &Path) -> Result<(), Violation> {
    if path.is_absolute() {
        return Ok(());
    }
    let problem = format!("{path:?} is relative, and would depend on where the process is started: begin it with /");
    Err(Violation::at(key, problem))
}

/// True if `inner` is `outer` or below it, also through symbolic links and `..`.
fn is_inside(inner: &Path, outer: &Path) -> bool {
    settled(inner).starts_with(settled(outer))
}

/// The path with `.` and `..` taken out and the part that exists resolved.
fn settled(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    for ancestor in plain.ancestors() {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), plain.strip_prefix(ancestor)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    plain
}
