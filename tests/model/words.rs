//! Small numbers for the search, and the real words that the protocol's code is asked with.
//!
//! One tick is one second. Nodes are 0, 1, 2; sets of nodes are bit masks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stormglass::domain::clock::BootId;
use stormglass::domain::report::{LiveReport, PostgresReport, PostgresState, Probes, Standing, Tags};
use stormglass::domain::*;

/// Ticks that a grant lasts.
pub const LEASE: u8 = 2;
/// Ticks that two clocks may run apart in one lease and its wait.
pub const DRIFT: u8 = 1;
/// Every clock shows this now; older moments lie before it.
pub const NOW: Moment = Moment(1_000_000_000);

/// The store's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Record {
    pub epoch: u8,
    pub number: u8,
    pub holder: u8,
    pub confirmed: bool,
    pub synchronous: u8,
    pub synchronous_number: u8,
    pub eligible: u8,
    pub proposed: u8,
}

pub fn cluster() -> ClusterName {
    ClusterName::new("main").expect("valid")
}

pub fn name(node: u8) -> NodeName {
    NodeName::new(["a", "b", "c"][usize::from(node)]).expect("valid")
}

pub fn index(name: &NodeName) -> u8 {
    name.as_str().as_bytes()[0] - b'a'
}

pub fn address(node: u8) -> Address {
    Address::new(name(node).as_str(), 5432)
}

pub fn names(mask: u8) -> BTreeSet<NodeName> {
    (0..3).filter(|node| mask & (1 << node) != 0).map(name).collect()
}

pub fn mask<'a>(names: impl IntoIterator<Item = &'a NodeName>) -> u8 {
    names.into_iter().fold(0, |mask, name| mask | 1 << index(name))
}

pub fn boot() -> BootId {
    BootId("this".to_owned())
}

/// The moment so many ticks ago.
pub fn ago(ticks: u8) -> Moment {
    NOW.minus(Duration::from_secs(u64::from(ticks)))
}

impl Record {
    pub fn real(&self) -> ClusterRecord {
        ClusterRecord {
            epoch: Epoch(u64::from(self.epoch)),
            number: RecordNumber(u64::from(self.number)),
            holder_confirmed: self.confirmed,
            eligible: names(self.eligible),
            proposed: names(self.proposed),
            synchronous: names(self.synchronous),
            synchronous_number: RecordNumber(u64::from(self.synchronous_number)),
            alone_since: (self.synchronous == 0).then_some(WallTime(0)),
            ..ClusterRecord::first(
                cluster(),
                SystemIdentifier(1),
                name(self.holder),
                address(self.holder),
                DurabilityMode::Sync,
            )
        }
    }

    pub fn of(record: &ClusterRecord) -> Self {
        Self {
            epoch: small(record.epoch.0),
            number: small(record.number.0),
            holder: index(&record.holder),
            confirmed: record.holder_confirmed,
            synchronous: mask(&record.synchronous),
            synchronous_number: small(record.synchronous_number.0),
            eligible: mask(&record.eligible),
            proposed: mask(&record.proposed),
        }
    }
}

pub fn small(number: u64) -> u8 {
    u8::try_from(number).expect("searches are bounded")
}

/// The policy of every search; `drift` is what a mutant takes away.
pub fn policy(drift: u8) -> Policy {
    let mut policy = Policy::for_rto(Duration::from_secs(10));
    policy.timers.lease = Duration::from_secs(u64::from(LEASE));
    policy.timers.drift = Duration::from_secs(u64::from(drift));
    policy.timers.stop_budget = Duration::ZERO;
    policy.timers.kill_budget = Duration::ZERO;
    policy
}

pub fn report(node: u8, sent_at: Moment, standing: Standing, state: PostgresState, live: Option<LiveReport>) -> Report {
    Report {
        cluster: cluster(),
        node: name(node),
        site: site(),
        address: address(node),
        boot: boot(),
        incarnation: "one".to_owned(),
        sequence: 0,
        sent_at,
        version: String::new(),
        standing,
        postgres: PostgresReport {
            state,
            control: None,
            damage: None,
            live,
            probes: Probes::default(),
            disk: None,
            memory: None,
        },
        tags: Tags::default(),
        tasks: BTreeMap::new(),
        protection: None,
    }
}

pub fn site() -> SiteName {
    SiteName::new("here").expect("valid")
}

/// A view of these nodes; no proxies, so that redirect and verify have nothing to do.
pub fn view(record: &Record, leading_since: Moment, nodes: impl Iterator<Item = NodeView>) -> View {
    View {
        now: NOW,
        wall: WallTime(0),
        leading_since,
        leads_for: None,
        record: Some(record.real()),
        nodes: nodes.map(|node| (node.node.clone(), node)).collect(),
        proxies: BTreeMap::new(),
        sighting: None,
        outlooks: Default::default(),
    }
}

pub fn operation(from: u8, to: u8, before: u8, after: Option<u8>, journal: Vec<StepEvent>) -> Operation {
    Operation {
        format: stormglass::domain::operation::JOURNAL_FORMAT,
        id: OperationId("1".to_owned()),
        cluster: cluster(),
        kind: OperationKind::Failover {
            from: name(from),
            to: name(to),
            accept_data_loss: false,
            old_primary_is_off: false,
        },
        status: OperationStatus::Running,
        origin: "automatic".to_owned(),
        reasons: Vec::new(),
        epoch_before: Epoch(u64::from(before)),
        epoch_after: after.map(|epoch| Epoch(u64::from(epoch))),
        cancel_requested: false,
        detected_at: NOW,
        decided_at: NOW,
        begun_wall: WallTime(0),
        ended_at: None,
        ended_wall: None,
        message: None,
        journal,
        evidence: Vec::new(),
        risks: Default::default(),
        loss: None,
    }
}

/// A line of the journal, old enough that no pause before the next attempt is left.
pub fn event(step: StepName, attempt: u32, state: StepState, epoch: u8) -> StepEvent {
    StepEvent { step, attempt, state, epoch: Epoch(u64::from(epoch)), at: ago(60), wall: WallTime(0) }
}

pub fn failed() -> StepState {
    StepState::Failed { error: String::new() }
}

pub fn unknown() -> StepState {
    StepState::Unknown { error: String::new() }
}

pub fn succeeded() -> StepState {
    StepState::Succeeded { output: Default::default() }
}
