//! Clusters that come and go while the controller runs: what a definition is checked against, and what is said of one that leaves.
//!
//! A definition is stored before its cluster is kept, and out of the way before its cluster is let go: whatever happens in
//! between, the next start does what was asked. Decides nothing about any cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::ControllerHandle;
use crate::api::clusters::{ClusterDefinition, DefinedNode, DefinedProxy};
use crate::api::wire::{Problem, SCHEMA_VERSION};
use crate::config::ControllerConfig;
use crate::config::effective::policy_document;
use crate::domain::ids::{ClusterName, SiteName};
use crate::domain::operation::Operation;
use crate::domain::policy::Policy;
use crate::domain::record::ClusterRecord;
use crate::domain::timing::words;

/// What the configuration says of a cluster, for people. Holds no secret and no reference to one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Definition {
    /// The file.
    pub file: PathBuf,
    /// Where its record is.
    pub store: String,
    /// Every node.
    pub nodes: Vec<DefinedNode>,
    /// Every proxy.
    pub proxies: Vec<DefinedProxy>,
}

impl Definition {
    /// What `config`, read from `file`, says; `store`: where the record is.
    pub fn of(config: &ControllerConfig, file: &Path, store: String) -> Self {
        let nodes = config.nodes.iter();
        let proxies = config.proxies.iter();
        Self {
            file: file.to_owned(),
            store,
            nodes: nodes
                .map(|node| DefinedNode {
                    name: node.name.clone(),
                    site: node.site.clone(),
                    agent: node.agent.trim_end_matches('/').to_owned(),
                })
                .collect(),
            proxies: proxies
                .map(|proxy| DefinedProxy {
                    name: proxy.name.clone(),
                    site: proxy.site.clone(),
                    agent: proxy.agent.trim_end_matches('/').to_owned(),
                })
                .collect(),
        }
    }

    /// As the API shows it.
    pub(super) fn document(&self, cluster: &ClusterName, policy: &Policy, is_first: bool) -> ClusterDefinition {
        let sites = self.nodes.iter().map(|node| &node.site).chain(self.proxies.iter().map(|proxy| &proxy.site));
        let mut sites: Vec<SiteName> = sites.cloned().collect();
        sites.sort();
        sites.dedup();
        ClusterDefinition {
            schema_version: SCHEMA_VERSION,
            cluster: cluster.clone(),
            file: self.file.display().to_string(),
            store: self.store.clone(),
            is_first,
            sites,
            nodes: self.nodes.clone(),
            proxies: self.proxies.clone(),
            policy: policy_document(policy),
        }
    }

    /// Each agent that `other` of the cluster `cluster` has as well, in words.
    pub fn shared_agents(&self, cluster: &ClusterName, other: &Self) -> Vec<String> {
        let shared = self.agents().filter_map(|(whose, address)| {
            let (another, _) = other.agents().find(|(_, known)| *known == address)?;
            Some(format!(
                "{whose}: its agent {address} is that of {another} of the cluster {cluster}: an agent belongs to one cluster"
            ))
        });
        shared.collect()
    }

    /// Addresses of all agents, with who has each.
    fn agents(&self) -> impl Iterator<Item = (String, &str)> {
        let nodes = self.nodes.iter().map(|node| (format!("node {}", node.name), node.agent.as_str()));
        nodes.chain(self.proxies.iter().map(|proxy| (format!("proxy {}", proxy.name), proxy.agent.as_str())))
    }
}

/// A cluster that is kept.
#[derive(Clone)]
pub struct Kept {
    /// The way to its loop.
    pub handle: Arc<ControllerHandle>,
    /// Ends everything that is done for it.
    pub stop: watch::Sender<bool>,
}

/// Who reads definitions and makes controllers of them; `main`, which alone knows the adapters.
#[async_trait]
pub trait Workshop: Send + Sync + 'static {
    /// Reads a definition as `config check` does, secrets included, and holds it against what is common to all clusters of this
    /// controller. An error: everything that is wrong with it.
    async fn read(&self, text: String) -> Result<ControllerConfig, Vec<String>>;
    /// Where the store of a cluster is.
    fn store(&self, cluster: &ClusterName) -> PathBuf;
    /// Begins to keep the cluster that `file` defines. An error: why not; nothing of it runs then.
    async fn start(&self, config: &ControllerConfig, file: &Path) -> Result<Kept, String>;
    /// A cluster was let go, and everything that ran for it ends.
    fn let_go(&self, cluster: &ClusterName);
}

/// Why `config` cannot be kept beside `kept`: everything that is in the way, in words.
pub(super) fn conflicts<'k>(
    config: &ControllerConfig,
    kept: impl Iterator<Item = (&'k ClusterName, &'k Definition)>,
) -> Vec<String> {
    let wanted = Definition::of(config, Path::new(""), String::new());
    let mut found = Vec::new();
    for (cluster, definition) in kept {
        if *cluster == config.cluster.name {
            found.push(format!(
                "cluster.name: a cluster {cluster} is kept already, from {}: change that file and restart, or remove it first",
                definition.file.display()
            ));
        }
        found.extend(wanted.shared_agents(cluster, definition));
    }
    found
}

/// What becomes of a cluster whose controller lets it go, in the state of its record. `None`: it has none yet.
pub(super) fn farewell(record: Option<&ClusterRecord>, policy: &Policy) -> Vec<String> {
    let Some(record) = record else {
        return vec!["it has no epoch yet: no node holds a lease, and every node stays as it is".to_owned()];
    };
    let (holder, epoch) = (&record.holder, record.epoch);
    let renewers: Vec<String> = record.renewers().iter().map(ToString::to_string).collect();
    let mut lines = vec![format!(
        "{holder} keeps epoch {epoch}, and this controller renews its lease no more; the last renewal lasts {}",
        words(policy.timers.lease)
    )];
    if !record.holder_confirmed {
        lines.push(format!("{holder} has not confirmed epoch {epoch}: whether it holds a lease is not known"));
    }
    if record.fenced.contains(holder) {
        lines.push(format!("an operator has fenced {holder}: it stays down, and nobody accepts writes"));
    } else if record.left_running {
        lines.push(format!(
            "{holder} was left running without a lease while the cluster was paused: its agent fences it as soon as it is started, \
             for no controller answers"
        ));
    } else if renewers.is_empty() {
        lines.push(format!(
            "no standby is eligible: {holder} renews its lease alone, and writes go on for as long as it runs"
        ));
    } else {
        let (all, wait) = (renewers.join(", "), words(policy.timers.lease.saturating_sub(policy.timers.stop_budget)));
        lines.push(format!(
            "it renews by promises of its eligible standbys: each of {all} must promise every time not to be promoted meanwhile, \
             and writes go on for as long as all of them do"
        ));
        lines.push(format!(
            "if one of them is lost or promises no more, {holder} stops accepting writes {wait} after the last renewal, and \
             nobody takes the lost one out of the set"
        ));
    }
    lines.push(
        "nothing is promoted, rejoined, backed up or told until a controller keeps the cluster again; a PostgreSQL that \
         stops or is fenced stays so"
            .to_owned(),
    );
    lines
}

/// The refusal while an operation is under way: who lets go in the middle leaves it half done.
pub(super) fn is_busy(under_way: &Operation) -> Problem {
    Problem::refused(
        format!(
            "the {} {} is under way: wait for it (stormglass operation watch {}), or cancel it",
            under_way.kind.label(),
            under_way.id,
            under_way.id
        ),
        Vec::new(),
    )
}

/// The refusal of a controller that keeps the one cluster that it was started with.
pub(super) fn keeps_one_cluster(has_election: bool) -> Problem {
    Problem::refused(
        if has_election {
            "this controller is one of several on etcd, and such a group keeps one cluster: run controllers for each cluster, with \
             a store.prefix of its own"
        } else {
            "this controller was started with one file, and keeps its cluster for as long as it runs: put the file into a \
             directory of its own that the controller may write to, and start it with controller --config DIRECTORY; tokens, audit log \
             and store stay"
        },
        Vec::new(),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::epoch::Epoch;
    use crate::domain::ids::{Address, NodeName, SystemIdentifier};
    use crate::domain::policy::DurabilityMode;

    fn node(name: &str) -> NodeName {
        NodeName::new(name).expect("valid")
    }

    fn config(cluster: &str, agents: &[&str]) -> ControllerConfig {
        let nodes: String = agents
            .iter()
            .enumerate()
            .map(|(at, agent)| format!("[[node]]\nname = \"{cluster}-{at}\"\nsite = \"a\"\nagent = \"{agent}\"\n"))
            .collect();
        toml::from_str(&format!(
            "[controller]\nname = \"c\"\nlisten = \"127.0.0.1:8432\"\n[cluster]\nname = \"{cluster}\"\n\
             [authentication]\nagent_token = \"env:T\"\n{nodes}"
        ))
        .expect("a configuration")
    }

    #[test]
    fn a_name_and_every_agent_that_are_taken_are_all_told() {
        let main = config("main", &["http://10.0.0.1:8008", "http://10.0.0.2:8008/"]);
        let kept = Definition::of(&main, Path::new("/c/1.toml"), String::new());
        let name = ClusterName::new("main").expect("valid");
        let against = |wanted: &ControllerConfig| conflicts(wanted, [(&name, &kept)].into_iter());
        assert!(against(&config("orders", &["http://10.0.0.3:8008"])).is_empty());
        let found =
            against(&config("main", &["http://10.0.0.3:8008", "http://10.0.0.2:8008", "http://10.0.0.1:8008/"]));
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(found[0].contains("kept already, from /c/1.toml"), "{found:#?}");
        assert!(
            found[1].starts_with("node main-1: its agent http://10.0.0.2:8008 is that of node main-1"),
            "{found:#?}"
        );
    }

    #[test]
    fn what_becomes_of_the_primary_is_said_as_its_record_is() {
        let policy = Policy::for_rto(Duration::from_secs(5));
        assert!(farewell(None, &policy)[0].contains("no epoch yet"));
        let name = ClusterName::new("main").expect("valid");
        let address = Address::new("10.0.0.1", 5432);
        let first = ClusterRecord::first(name, SystemIdentifier(1), node("db1"), address, DurabilityMode::Sync);
        let mut record = ClusterRecord { epoch: Epoch(4), holder_confirmed: true, ..first };
        let alone = farewell(Some(&record), &policy).join("\n");
        assert!(alone.contains("db1 renews its lease alone") && !alone.contains("promise"), "{alone}");
        record.eligible = [node("db2")].into();
        record.proposed = [node("db3")].into();
        let held = farewell(Some(&record), &policy).join("\n");
        assert!(held.contains("each of db2, db3 must promise"), "{held}");
        assert!(held.contains("db1 stops accepting writes 2s 200ms after the last renewal"), "{held}");
        record.left_running = true;
        let left = farewell(Some(&record), &policy).join("\n");
        assert!(left.contains("its agent fences it") && !left.contains("must promise"), "{left}");
        record.fenced = [node("db1")].into();
        assert!(farewell(Some(&record), &policy).join("\n").contains("it stays down"));
        record.holder_confirmed = false;
        assert!(farewell(Some(&record), &policy).join("\n").contains("has not confirmed epoch 4"));
    }
}
