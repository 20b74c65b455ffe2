//! All reports at one moment: what the controller knows, and how well.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock::{Moment, WallTime};
use super::ids::{NodeName, ProxyName, SiteName};
use super::record::ClusterRecord;
use super::report::{LiveReport, ProxyReport, Report};
use super::risk::Outlook;
use super::witness::Sighting;

/// A fact, and how well it is known. Unknown is a value: nothing may treat it as a default.
///
/// What was heard is shared with every other view of it: a controller looks at all it knows several times a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub enum Fact<T> {
    /// Heard `age` ago.
    Known {
        /// What was heard.
        value: Arc<T>,
        /// How long ago.
        age: Duration,
    },
    /// Was heard once, or never, and is out of reach.
    Unknown {
        /// What was last heard, for display and for facts that cannot change back (stored epochs).
        last: Option<Arc<T>>,
        /// For how long; since the controller began, if never heard.
        for_duration: Duration,
    },
    /// Certainly not there.
    Absent,
}

impl<T> Fact<T> {
    /// The value, if it is known now.
    pub fn known(&self) -> Option<&T> {
        match self {
            Fact::Known { value, .. } => Some(value.as_ref()),
            Fact::Unknown { .. } | Fact::Absent => None,
        }
    }

    /// The value last heard, however old: only for what can never change back, and for display.
    pub fn last_heard(&self) -> Option<&T> {
        match self {
            Fact::Known { value, .. } => Some(value.as_ref()),
            Fact::Unknown { last, .. } => last.as_deref(),
            Fact::Absent => None,
        }
    }
}

/// What is known of one configured node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// The node.
    pub node: NodeName,
    /// Where it stands, by configuration.
    pub site: SiteName,
    /// Its agent's last report.
    pub report: Fact<Report>,
    /// The leader's last grant to it in the current epoch, on the leader's clock.
    pub last_grant: Option<Moment>,
    /// What its PostgreSQL answered last before that report, where the report no longer says: positions that it had certainly reached.
    pub last_live: Option<LiveReport>,
    /// For how long the primary has not been streaming to it, as far as the controller could see; `None` while it does.
    pub not_streaming_for: Option<Duration>,
}

/// What is known of one proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyView {
    /// The proxy.
    pub proxy: ProxyName,
    /// Its agent's last report.
    pub report: Fact<ProxyReport>,
}

/// All that a decision may rest on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// The leader's clock.
    pub now: Moment,
    /// For display and for expiry of a pause; decides nothing else.
    pub wall: WallTime,
    /// Since when this controller leads. Grants of earlier leaders may run one full wait from here.
    pub leading_since: Moment,
    /// For how much longer this controller certainly leads; `None`: it is the only one.
    #[serde(default)]
    pub leads_for: Option<Duration>,
    /// The store's record; `None` before the first epoch.
    pub record: Option<ClusterRecord>,
    /// Every configured node.
    pub nodes: BTreeMap<NodeName, NodeView>,
    /// Every configured proxy.
    pub proxies: BTreeMap<ProxyName, ProxyView>,
    /// What the controller saw of the primary itself.
    #[serde(default)]
    pub sighting: Option<Sighting>,
    /// What is expected of nodes. Nothing is where nothing is expected.
    #[serde(default)]
    pub outlooks: BTreeMap<NodeName, Outlook>,
}

impl View {
    /// The report of `node`, if it is known now.
    pub fn report(&self, node: &NodeName) -> Option<&Report> {
        self.nodes.get(node).and_then(|view| view.report.known())
    }

    /// True if `at` was less than `duration` ago. A moment in the future was stored in another boot of the leader's host:
    /// how long ago cannot be told, and nothing is held up by it.
    pub fn is_within(&self, at: Moment, duration: Duration) -> bool {
        at <= self.now && self.now.since(at) < duration
    }

    /// What the PostgreSQL of `node` last answered, however long ago.
    pub fn last_live(&self, node: &NodeName) -> Option<&LiveReport> {
        let view = self.nodes.get(node)?;
        view.report.last_heard().and_then(|report| report.postgres.live.as_ref()).or(view.last_live.as_ref())
    }

    /// The last report of `node`, however old.
    pub fn last_report(&self, node: &NodeName) -> Option<&Report> {
        self.nodes.get(node).and_then(|view| view.report.last_heard())
    }
}
