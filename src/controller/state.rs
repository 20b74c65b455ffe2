//! What the controller holds in memory: the last reports, the record as last stored, operations; and the view made of them.
//!
//! Nothing here waits or decides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::name::{NameSight, Wanted};
use super::outlook::OutlookState;
use super::prediction::Tallied;
use crate::decide;
use crate::decide::early_warning;
use crate::domain::clock::{Moment, WallTime};
use crate::domain::command::{AssignedRole, Assignment, HeartbeatReply, ProxyAssignment, ProxyTarget};
use crate::domain::ids::{Address, ClusterName, NodeName, OperationId, ProxyName, SiteName};
use crate::domain::lsn::Lsn;
use crate::domain::operation::{Operation, OperationKind, OperationStatus, StepName, StepState};
use crate::domain::plan::{Plan, ReasonCode};
use crate::domain::policy::{DurabilityMode, Policy};
use crate::domain::readiness::BackupFacts;
use crate::domain::record::{ClusterRecord, ScheduledSwitchover};
use crate::domain::report::{LiveReport, ProxyReport, Report};
use crate::domain::risk::{ModelName, Resource};
use crate::domain::traffic::{Backends, Member, TrafficDefinition};
use crate::domain::view::{Fact, NodeView, ProxyView, View};
use crate::domain::witness::Sighting;

/// A configured node.
pub(super) struct NodeState {
    pub site: SiteName,
    pub agent: String,
    pub report: Option<(Arc<Report>, Moment)>,
    /// What its PostgreSQL answered last, where the report does not say.
    pub last_live: Option<LiveReport>,
    pub last_grant: Option<Moment>,
    pub streaming_lost_at: Option<Moment>,
    /// A position of the primary that it had not flushed, and since when.
    pub behind_since: Option<(Lsn, Moment)>,
}

impl NodeState {
    /// The primary's view of a standby whose host is gone lives until `wal_sender_timeout`. With a silent agent, one that confirms
    /// nothing for as long as that agent may be silent does not stream, whatever the primary shows.
    fn stalled_since(&self, now: Moment, stale: Duration) -> Option<Moment> {
        let silent = self.report.as_ref().is_none_or(|(_, heard)| now.since(*heard) > stale);
        let (_, since) = self.behind_since?;
        (silent && now.since(since) >= stale).then_some(since)
    }
}

/// The predictor, as far as the loop knows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct PredictorState {
    /// The model that scores; `None` without one.
    pub model: Option<ModelName>,
    /// Why nothing is predicted at the moment.
    pub abstains: Option<String>,
    /// Why a newer model was not taken.
    pub refused_model: Option<String>,
    /// What the model has said since it was loaded, and after it the challenger, whose word counts for nothing.
    pub tallied: Vec<Tallied>,
}

/// A configured proxy.
pub(super) struct ProxyState {
    pub report: Option<(Arc<ProxyReport>, Moment)>,
}

/// A change of the record that an operator asked for: made on whatever the record is when its turn comes.
#[derive(Debug, Clone)]
pub(super) enum Wish {
    /// Automatic operations are off until then, or on.
    Pause {
        /// When it ends.
        until: Option<WallTime>,
        /// Who asked.
        who: String,
    },
    /// A node must not write.
    Fence(NodeName),
    /// It may come back.
    Unfence(NodeName),
    /// A switchover waits for its time, or none does.
    Schedule(Option<ScheduledSwitchover>),
}

impl Wish {
    /// The record with the wish in it.
    pub fn apply(&self, record: &ClusterRecord) -> ClusterRecord {
        let mut next = record.changed();
        match self {
            Wish::Pause { until, .. } => next.paused_until = *until,
            Wish::Fence(node) => drop(next.fenced.insert(node.clone())),
            Wish::Unfence(node) => drop(next.fenced.remove(node)),
            Wish::Schedule(scheduled) => next.scheduled.clone_from(scheduled),
        }
        next
    }
}

/// All of it.
pub(super) struct State {
    pub cluster: ClusterName,
    pub policy: Policy,
    pub record: Option<ClusterRecord>,
    pub leading_since: Moment,
    pub nodes: BTreeMap<NodeName, NodeState>,
    pub proxies: BTreeMap<ProxyName, ProxyState>,
    /// Reads and applications behind the proxies.
    pub traffic: TrafficDefinition,
    /// Under way, and the latest ended ones.
    pub operations: Vec<Operation>,
    /// Operations whose step is being carried out at the moment.
    pub in_flight: Vec<OperationId>,
    /// A record outside any operation is being stored.
    pub update_in_flight: bool,
    /// What operators want changed in the record and is not stored yet, oldest first.
    pub wishes: VecDeque<(Wish, Option<oneshot::Sender<()>>)>,
    /// The oldest of them is being stored.
    pub wish_in_flight: bool,
    /// Since when the primary has not been seen writable.
    pub trouble_since: Option<Moment>,
    /// The last decision, for `explain` and to tell changes.
    pub last_plan: Option<Plan>,
    /// Identity of this process in proxy assignments.
    pub leader: String,
    /// The last proxy assignment given out, with its number.
    pub proxy_target: Option<(Option<ProxyTarget>, bool, Backends)>,
    pub proxy_sequence: u64,
    /// What was last seen of the primary itself.
    pub sighting: Option<Sighting>,
    /// When the doctor last looked.
    pub examined_at: Option<Moment>,
    /// What strains the cluster, with when it was last seen.
    pub strains: BTreeMap<(ReasonCode, Option<NodeName>), Moment>,
    /// What was last found of the name that clients connect to.
    pub name: Option<NameSight>,
    /// What is expected of each node.
    pub outlooks: BTreeMap<NodeName, OutlookState>,
    /// The predictor; `None` where none is configured.
    pub predictor: Option<PredictorState>,
    /// SHA-256 of the manifests of backups that were read back, by label.
    pub manifests: BTreeMap<String, String>,
    /// What the journals say of backups and drills; `None` where none are configured.
    pub backups: Option<BackupFacts>,
    /// Nodes of which trouble is expected, as was told.
    pub told_risks: BTreeSet<NodeName>,
    /// What runs out, by the gauges.
    pub shown_exhaustions: BTreeSet<(NodeName, Resource)>,
}

impl State {
    /// The view at `now`.
    pub fn view(&self, now: Moment, wall: WallTime, leads_for: Option<Duration>) -> View {
        let stale = self.policy.report_stale_after;
        let nodes = self.nodes.iter().map(|(name, node)| {
            let view = NodeView {
                node: name.clone(),
                site: node.site.clone(),
                report: fact(&node.report, now, self.leading_since, stale),
                last_grant: node.last_grant,
                last_live: node.last_live.clone(),
                not_streaming_for: node
                    .streaming_lost_at
                    .or(node.stalled_since(now, stale))
                    .map(|lost| now.since(lost)),
            };
            (name.clone(), view)
        });
        let proxies = self.proxies.iter().map(|(name, proxy)| {
            let view =
                ProxyView { proxy: name.clone(), report: fact(&proxy.report, now, self.leading_since, stale * 2) };
            (name.clone(), view)
        });
        View {
            now,
            wall,
            leading_since: self.leading_since,
            leads_for,
            record: self.record.clone(),
            nodes: nodes.collect(),
            proxies: proxies.collect(),
            sighting: self.sighting.clone(),
            outlooks: self.outlooks.iter().map(|(node, state)| (node.clone(), self.outlook(state, now))).collect(),
        }
    }

    /// Takes a report in; `false` if it is late, or of a node that is not configured.
    pub fn hear(&mut self, report: Arc<Report>, now: Moment) -> bool {
        let Some(node) = self.nodes.get_mut(&report.node) else { return false };
        let late = node
            .report
            .as_ref()
            .is_some_and(|(last, _)| last.incarnation == report.incarnation && report.sequence < last.sequence);
        if late || report.cluster != self.cluster {
            return false;
        }
        if self.record.as_ref().is_some_and(|record| decide::lease::shows_renewal(record, &report)) {
            node.last_grant = node.last_grant.max(Some(now));
        }
        node.last_live = match (&report.postgres.live, &node.report) {
            (Some(_), _) => None,
            (None, Some((last, _))) if last.postgres.live.is_some() => last.postgres.live.clone(),
            (None, _) => node.last_live.take(),
        };
        let horizon = self.policy.prediction.horizon;
        self.outlooks.entry(report.node.clone()).or_default().hear(&report, now, horizon);
        node.report = Some((Arc::clone(&report), now));
        let is_holder = self.record.as_ref().is_some_and(|record| record.holder == report.node);
        if let Some(primary) = report.postgres.live.as_ref().filter(|_| is_holder) {
            for (name, node) in &mut self.nodes {
                let row = primary.standbys.iter().find(|row| row.node == name.as_str() && row.state == "streaming");
                let Some(row) = row else {
                    node.streaming_lost_at.get_or_insert(now);
                    continue;
                };
                node.streaming_lost_at = None;
                let reached = |position| row.flush_lsn.is_some_and(|flushed| flushed >= position);
                if node.behind_since.is_none_or(|(position, _)| reached(position)) {
                    node.behind_since = (!reached(primary.flush_lsn)).then_some((primary.flush_lsn, now));
                }
            }
        }
        true
    }

    /// The operation that moves the primary.
    pub fn moving(&self) -> Option<&Operation> {
        decide::moving(&self.operations)
    }

    /// The answer to a node's heartbeat; remembers what it grants.
    pub fn heartbeat_reply(
        &mut self,
        node: &NodeName,
        now: Moment,
        wall: WallTime,
        leads_for: Option<Duration>,
    ) -> HeartbeatReply {
        let pending = decide::lease::swap_in_flight(self.moving());
        let grant = self.record.as_ref().and_then(|record| {
            let (report, _) = self.nodes.get(node)?.report.as_ref()?;
            decide::lease::grant(record, report, &self.policy, pending, leads_for)
        });
        if grant.is_some()
            && let Some(state) = self.nodes.get_mut(node)
        {
            state.last_grant = state.last_grant.max(Some(now));
        }
        let paused = self.record.as_ref().is_some_and(|record| record.paused_until.is_some_and(|until| until > wall));
        let may_leave = self.record.as_ref().is_some_and(|record| record.holder == *node && record.left_running);
        let primary = self.record.as_ref().and_then(|record| self.nodes.get(&record.holder)?.report.as_ref());
        let primary_flush_lsn = primary
            .filter(|(_, heard)| now.since(*heard) <= self.policy.report_stale_after)
            .and_then(|(report, _)| report.postgres.live.as_ref())
            .filter(|live| !live.in_recovery)
            .map(|live| live.flush_lsn);
        HeartbeatReply { assignment: self.assignment(node), grant, paused, may_leave, primary_flush_lsn }
    }

    /// What `node` shall be, by the record.
    pub fn assignment(&self, node: &NodeName) -> Option<Assignment> {
        let record = self.record.as_ref()?;
        let role = if record.fenced.contains(node) {
            AssignedRole::Fenced
        } else if record.holder == *node {
            AssignedRole::Primary {
                synchronous: record.synchronous.clone(),
                synchronous_number: record.synchronous_number,
                block_when_alone: self.policy.durability == DurabilityMode::SyncStrict,
            }
        } else {
            AssignedRole::Standby { primary: record.holder.clone(), primary_address: record.holder_address.clone() }
        };
        Some(Assignment {
            cluster: self.cluster.clone(),
            system_identifier: record.system_identifier,
            epoch: record.epoch,
            number: record.number,
            role,
            // In `async` the ledger names who is close; nobody is synchronous.
            eligible: if record.durability == DurabilityMode::Async {
                BTreeSet::new()
            } else {
                record.eligible.clone()
            },
            renewers: Some(self.agents(&record.renewers())),
            peers: self.nodes.keys().filter(|other| *other != node).cloned().collect(),
        })
    }

    /// Base URLs of the agents of `nodes`. One that is not configured has none, and therefore never promises anything.
    fn agents(&self, nodes: &BTreeSet<NodeName>) -> BTreeMap<NodeName, String> {
        let agent = |node| self.nodes.get(node).map(|node: &NodeState| node.agent.clone()).unwrap_or_default();
        nodes.iter().map(|node| (node.clone(), agent(node))).collect()
    }

    /// Where the write ports shall lead.
    pub fn proxy_assignment(&mut self) -> ProxyAssignment {
        let target = self
            .record
            .as_ref()
            .map(|record| ProxyTarget { node: record.holder.clone(), address: record.holder_address.clone() });
        let hold = self.holds_writes();
        let backends = self.backends();
        let said = (target.clone(), hold, backends.clone());
        if self.proxy_target.as_ref() != Some(&said) {
            self.proxy_target = Some(said);
            self.proxy_sequence += 1;
        }
        ProxyAssignment {
            cluster: self.cluster.clone(),
            epoch: self.record.as_ref().map_or_else(Default::default, |record| record.epoch),
            number: self.record.as_ref().map_or_else(Default::default, |record| record.number),
            primary: target,
            hold,
            leader: self.leader.clone(),
            sequence: self.proxy_sequence,
            backends: Some(backends),
        }
    }

    /// Reads and applications behind the write ports.
    fn backends(&self) -> Backends {
        let holder = self.record.as_ref().map(|record| &record.holder);
        let members = self.nodes.iter().map(|(name, node)| Member {
            node: name.clone(),
            site: node.site.clone(),
            address: node.report.as_ref().map(|(report, _)| report.address.clone()),
            agent: host_and_port(&node.agent),
            serves_reads: holder != Some(name)
                && !self.record.as_ref().is_some_and(|record| record.fenced.contains(name)),
        });
        Backends {
            active_site: holder.and_then(|holder| self.nodes.get(holder)).map(|node| node.site.clone()),
            members: members.collect(),
            reads: self.traffic.reads,
            applications: self.traffic.applications.clone(),
        }
    }

    /// Where the name shall lead: to the site of a primary that accepts writes.
    pub fn name_wanted(&self) -> Option<Wanted> {
        let record = self.record.as_ref().filter(|record| record.holder_confirmed)?;
        let site = self.nodes.get(&record.holder)?.site.clone();
        Some(Wanted { epoch: record.epoch, site })
    }

    /// Proxies whose agents say that they stand in `site`.
    pub fn proxies_in(&self, site: &SiteName) -> Vec<ProxyName> {
        let stands_there = |proxy: &ProxyState| proxy.report.as_ref().is_some_and(|(report, _)| report.site == *site);
        self.proxies.iter().filter(|(_, proxy)| stands_there(proxy)).map(|(name, _)| name.clone()).collect()
    }

    /// Proxies whose agents were heard lately.
    pub fn proxies_heard(&self, now: Moment) -> BTreeSet<ProxyName> {
        let stale = self.policy.report_stale_after;
        let is_heard = |proxy: &ProxyState| proxy.report.as_ref().is_some_and(|(_, at)| now.since(*at) <= stale);
        self.proxies.iter().filter(|(_, proxy)| is_heard(proxy)).map(|(name, _)| name.clone()).collect()
    }

    /// New write connections wait while a switchover drains, and while the holder of the epoch does not accept writes yet.
    fn holds_writes(&self) -> bool {
        let Some(record) = &self.record else { return false };
        let Some(operation) = self.moving() else { return !record.holder_confirmed };
        let promoted = operation.journal.iter().any(|event| {
            event.step == StepName::Promote
                && event.epoch == record.epoch
                && matches!(event.state, StepState::Succeeded { .. })
        });
        if record.holder_confirmed && record.epoch > operation.epoch_before || promoted {
            return false;
        }
        if record.epoch > operation.epoch_before {
            return true;
        }
        operation.last(StepName::Drain).is_some() && operation.last(StepName::Release).is_none()
    }

    /// An operation by its identity.
    pub fn operation_mut(&mut self, id: &OperationId) -> Option<&mut Operation> {
        self.operations.iter_mut().find(|operation| operation.id == *id)
    }

    /// Forgets the oldest ended operations, but never the last one of its kind that a prediction began: the budget counts from it.
    pub fn trim(&mut self, keep: usize) {
        let mut last: BTreeMap<(&str, &str), &Operation> = BTreeMap::new();
        for operation in self.operations.iter().filter(|operation| early_warning::is_by_prediction(operation)) {
            let name = match &operation.kind {
                OperationKind::Sequence { name, .. } => name.as_str(),
                _ => "",
            };
            let kept = last.entry((operation.kind.label(), name)).or_insert(operation);
            if operation.begun_wall > kept.begun_wall {
                *kept = operation;
            }
        }
        let last: BTreeSet<OperationId> = last.into_values().map(|operation| operation.id.clone()).collect();
        let mut ended: Vec<(Option<WallTime>, OperationId)> = self
            .operations
            .iter()
            .filter(|operation| operation.status.is_final() && !last.contains(&operation.id))
            .map(|operation| (operation.ended_wall, operation.id.clone()))
            .collect();
        ended.sort();
        let excess = ended.len().saturating_sub(keep);
        for (_, id) in ended.into_iter().take(excess) {
            self.operations.retain(|operation| operation.id != id);
        }
    }

    /// True if any operation of this kind label is under way for `node`.
    pub fn is_rejoining(&self, node: &NodeName) -> bool {
        self.operations.iter().any(|operation| {
            operation.status == OperationStatus::Running
                && matches!(&operation.kind, OperationKind::Rejoin { node: other, .. } if other == node)
        })
    }
}

/// Of a base URL, which configuration has checked.
fn host_and_port(url: &str) -> Option<Address> {
    let rest = url.strip_prefix("http://")?.trim_end_matches('/');
    let (host, port) = match rest.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
        Some((host, Ok(port))) => (host, port),
        _ => (rest, 80),
    };
    Some(Address::new(host.trim_matches(['[', ']']), port))
}

/// What was heard, at `now`: known for `stale`; what was never heard is unknown since `since`.
pub(super) fn fact<T>(heard: &Option<(Arc<T>, Moment)>, now: Moment, since: Moment, stale: Duration) -> Fact<T> {
    match heard {
        Some((value, at)) if now.since(*at) <= stale => Fact::Known { value: Arc::clone(value), age: now.since(*at) },
        Some((value, at)) => Fact::Unknown { last: Some(Arc::clone(value)), for_duration: now.since(*at) },
        None => Fact::Unknown { last: None, for_duration: now.since(since) },
    }
}
