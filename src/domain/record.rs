//! The one record that the store holds for a cluster (design, rule 2).
//!
//! Every change raises [`ClusterRecord::number`] by one and is stored by compare-and-swap on it.
//! The record carries no timers: what a lease may last comes from the policy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock::WallTime;
use super::epoch::{Epoch, RecordNumber};
use super::ids::{Address, ClusterName, NodeName, SiteName, SystemIdentifier};
use super::policy::DurabilityMode;

/// Format of the stored record; raised when a field changes its meaning.
pub const RECORD_FORMAT: u32 = 1;

/// Who may write, and who holds every confirmed commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// [`RECORD_FORMAT`] of the writer.
    pub format: u32,
    /// The cluster.
    pub cluster: ClusterName,
    /// Which data this is about; another cluster's node is refused by it.
    pub system_identifier: SystemIdentifier,
    /// The current epoch.
    pub epoch: Epoch,
    /// Raised by every change.
    pub number: RecordNumber,
    /// The node that may hold the lease in `epoch`.
    pub holder: NodeName,
    /// Where the holder's PostgreSQL listens; standbys and proxies are pointed there.
    pub holder_address: Address,
    /// False from the swap that raised the epoch until the holder reported that it accepts writes.
    pub holder_confirmed: bool,
    /// Standbys that hold every confirmed commit (`async`: that are close enough), and whose promises the holder needs to renew
    /// its lease when no controller answers. Empty after a promotion.
    pub eligible: BTreeSet<NodeName>,
    /// Standbys that become eligible once the holder has stored exactly this record's number and acknowledged it: from then on
    /// it renews with their promises too (trace `growth_ack_while_solo_lease_runs`).
    #[serde(default)]
    pub proposed: BTreeSet<NodeName>,
    /// The mode in which `eligible` was earned. A change of mode begins with nobody eligible.
    #[serde(default = "synchronous_mode")]
    pub durability: DurabilityMode,
    /// What `synchronous_standby_names` shall hold; eligible once it is in force and caught up.
    pub synchronous: BTreeSet<NodeName>,
    /// The record number with which `synchronous` was last changed; its acknowledgement must name it.
    pub synchronous_number: RecordNumber,
    /// Since when the primary confirms commits alone in `sync` mode; shown loudly.
    pub alone_since: Option<WallTime>,
    /// Automatic operations are off until then.
    pub paused_until: Option<WallTime>,
    /// Nodes that an operator fenced.
    pub fenced: BTreeSet<NodeName>,
    /// Every node that was ever heard of, for display while it is away.
    pub members: BTreeMap<NodeName, Member>,
    /// When the current holder got its epoch.
    pub holder_since: WallTime,
    /// The longest that any leader of this epoch may have to wait for the holder's lease to run out. Raised before a longer
    /// lease is granted, so that a controller with shorter timers waits long enough (rule 4).
    #[serde(default)]
    pub longest_wait: Duration,
    /// The service of the holder's agent was stopped while the cluster was paused, and its PostgreSQL left running without a
    /// lease: only a fence proves that it stopped.
    #[serde(default)]
    pub left_running: bool,
    /// A switchover that waits for its time. A new primary ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<ScheduledSwitchover>,
}

/// A switchover that an operator planned for later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledSwitchover {
    /// When it begins, on the controller's wall clock.
    pub at: WallTime,
    /// Who shall take over; the best candidate then, if not given.
    pub to: Option<NodeName>,
    /// Only candidates of this site.
    pub site: Option<SiteName>,
    /// Who asked.
    pub who: String,
}

/// A node as the record remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where it stands.
    pub site: SiteName,
    /// Where its PostgreSQL listens.
    pub address: Address,
}

fn synchronous_mode() -> DurabilityMode {
    DurabilityMode::Sync
}

impl ClusterRecord {
    /// The first record of a cluster: `holder` may hold the lease of epoch 1 once it confirms, and nobody else is known of.
    pub fn first(
        cluster: ClusterName,
        system_identifier: SystemIdentifier,
        holder: NodeName,
        holder_address: Address,
        durability: DurabilityMode,
    ) -> Self {
        Self {
            format: RECORD_FORMAT,
            cluster,
            system_identifier,
            epoch: Epoch(1),
            number: RecordNumber(1),
            holder,
            holder_address,
            holder_confirmed: false,
            eligible: BTreeSet::new(),
            proposed: BTreeSet::new(),
            durability,
            synchronous: BTreeSet::new(),
            synchronous_number: RecordNumber(1),
            alone_since: None,
            paused_until: None,
            fenced: BTreeSet::new(),
            members: BTreeMap::new(),
            holder_since: WallTime(0),
            longest_wait: Duration::ZERO,
            left_running: false,
            scheduled: None,
        }
    }

    /// Standbys whose promises renew the holder's lease when no controller answers: every one that may ever be promoted
    /// without a fence, and those that are about to be.
    pub fn renewers(&self) -> BTreeSet<NodeName> {
        self.eligible.union(&self.proposed).cloned().collect()
    }

    /// The record after a change: same content, next number.
    pub fn changed(&self) -> ClusterRecord {
        ClusterRecord { number: self.number.next(), ..self.clone() }
    }

    /// The record that gives `holder` the next epoch. Nobody is eligible in it until the ledger says so
    /// (trace `ledger_not_emptied_at_promotion`).
    pub fn with_next_epoch(&self, holder: NodeName, holder_address: Address, now: WallTime) -> ClusterRecord {
        let number = self.number.next();
        ClusterRecord {
            epoch: self.epoch.next(),
            number,
            holder,
            holder_address,
            holder_confirmed: false,
            eligible: BTreeSet::new(),
            proposed: BTreeSet::new(),
            synchronous: BTreeSet::new(),
            synchronous_number: number,
            holder_since: now,
            left_running: false,
            scheduled: None,
            ..self.clone()
        }
    }

    /// Why this record may not follow `earlier` in the store; `None` if it may. Checked by every store before it writes.
    pub fn violation_after(&self, earlier: &ClusterRecord) -> Option<&'static str> {
        if self.cluster != earlier.cluster || self.system_identifier != earlier.system_identifier {
            return Some("a record describes one cluster for ever");
        }
        if self.number != earlier.number.next() {
            return Some("every change raises the record number by exactly one");
        }
        if self.epoch < earlier.epoch {
            return Some("an epoch never shrinks");
        }
        if self.epoch == earlier.epoch && self.holder != earlier.holder {
            return Some("an epoch has one holder");
        }
        if self.epoch > earlier.epoch && !self.renewers().is_empty() {
            return Some("nobody is eligible at the start of an epoch");
        }
        if self.durability != earlier.durability && !self.renewers().is_empty() {
            return Some("nobody is eligible when the durability mode changes");
        }
        if self.epoch == earlier.epoch && !self.eligible.is_subset(&earlier.renewers()) {
            return Some("a standby is proposed before it is eligible");
        }
        if self.renewers().contains(&self.holder) || self.synchronous.contains(&self.holder) {
            return Some("the holder is not its own standby");
        }
        if self.durability != DurabilityMode::Async && !self.renewers().is_subset(&self.synchronous) {
            return Some("only a named standby can be eligible");
        }
        None
    }
}
