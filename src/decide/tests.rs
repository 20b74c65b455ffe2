//! The protocol's traces that a deciding controller can walk into, by their names, and properties of every decision.
//!
//! What a DBA would want to read is in `tests/scenarios`; here is what must hold for any view whatever.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::domain::clock::{BootId, Moment, WallTime};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::{Address, ClusterName, NodeName, OperationId, SiteName, SystemIdentifier};
use crate::domain::lsn::{Fork, History, Lsn, Timeline};
use crate::domain::operation::{JOURNAL_FORMAT, OperationStatus, StepName};
use crate::domain::policy::DurabilityMode;
use crate::domain::proof;
use crate::domain::record::Member;
use crate::domain::report::{
    ControlData, LiveReport, PostgresReport, PostgresState, Probe, Probes, ReceiverReport, Report, StandbyRow,
    Standing, SynchronousReport, Tags,
};
use crate::domain::view::{Fact, NodeView};
use crate::operate::{self, Next};

const NOW: Moment = Moment(1_000_000_000);

pub(super) fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("valid")
}

pub(super) fn policy() -> Policy {
    Policy::for_rto(Duration::from_secs(5))
}

pub(super) fn record() -> ClusterRecord {
    ClusterRecord {
        epoch: Epoch(3),
        number: RecordNumber(10),
        holder_confirmed: true,
        eligible: [node("n2")].into(),
        synchronous: [node("n2")].into(),
        synchronous_number: RecordNumber(9),
        members: ["n1", "n2", "n3"].map(member).into(),
        ..ClusterRecord::first(
            ClusterName::new("main").expect("valid"),
            SystemIdentifier(1),
            node("n1"),
            Address::new("n1", 5432),
            DurabilityMode::Sync,
        )
    }
}

fn member(name: &str) -> (NodeName, Member) {
    (node(name), Member { site: SiteName::new("a").expect("valid"), address: Address::new(name, 5432) })
}

fn live(in_recovery: bool, lsn: u64) -> LiveReport {
    let row = |name: &str, sync_state: &str| StandbyRow {
        node: name.to_owned(),
        state: "streaming".to_owned(),
        sync_state: sync_state.to_owned(),
        flush_lsn: Some(Lsn(lsn)),
        replay_lsn: Some(Lsn(lsn)),
    };
    LiveReport {
        system_identifier: SystemIdentifier(1),
        in_recovery,
        history: History { timeline: Timeline(7), forks: vec![Fork { timeline: Timeline(6), switched_at: Lsn(400) }] },
        started_at_unix_seconds: None,
        major_version: 15,
        flush_lsn: Lsn(lsn),
        replay_lsn: Lsn(lsn),
        replay_paused: false,
        receiver: in_recovery.then_some(ReceiverReport { sender: None, streaming: true, last_message_age: None }),
        standbys: if in_recovery { vec![] } else { vec![row("n2", "sync"), row("n3", "async")] },
        synchronous: (!in_recovery).then(|| SynchronousReport {
            number: RecordNumber(9),
            names: vec![node("n2")],
            barrier_lsn: Lsn(450),
        }),
        waits: None,
        upkeep: None,
        work: None,
        connections: None,
        clock: Default::default(),
    }
}

fn report(name: &str, live: Option<LiveReport>) -> Report {
    Report {
        cluster: ClusterName::new("main").expect("valid"),
        node: node(name),
        site: SiteName::new("a").expect("valid"),
        address: Address::new(name, 5432),
        boot: BootId("boot".to_owned()),
        incarnation: "incarnation".to_owned(),
        sequence: 1,
        sent_at: Moment(0),
        version: "0".to_owned(),
        standing: Standing { highest_epoch: Epoch(3), ..Standing::default() },
        postgres: PostgresReport {
            state: if live.is_some() { PostgresState::Running } else { PostgresState::Stopped },
            control: Some(ControlData {
                system_identifier: SystemIdentifier(1),
                cluster_state: "shut down".to_owned(),
                timeline: Timeline(7),
                checkpoint: Lsn(500),
                major_version: 15,
            }),
            damage: None,
            live,
            probes: Probes::default(),
            disk: None,
            memory: None,
        },
        tags: Tags::default(),
        tasks: Default::default(),
        protection: None,
    }
}

fn holder() -> Report {
    let mut holder = report("n1", Some(live(false, 500)));
    (holder.standing.lease_epoch, holder.standing.consented) = (Some(Epoch(3)), Some(Epoch(3)));
    holder
}

/// n1 writes, n2 confirms every commit, n3 only follows.
pub(super) fn view(record: &ClusterRecord) -> View {
    let nodes = [holder(), report("n2", Some(live(true, 500))), report("n3", Some(live(true, 490)))];
    let nodes = nodes.map(|report| {
        let view = NodeView {
            node: report.node.clone(),
            site: report.site.clone(),
            last_grant: (report.node == record.holder).then_some(NOW),
            report: Fact::Known { value: report.into(), age: Duration::ZERO },
            last_live: None,
            not_streaming_for: None,
        };
        (view.node.clone(), view)
    });
    View {
        now: NOW,
        wall: WallTime(0),
        leading_since: Moment(0),
        leads_for: None,
        record: Some(record.clone()),
        nodes: nodes.into(),
        sighting: None,
        outlooks: Default::default(),
        proxies: Default::default(),
    }
}

pub(super) fn edit(view: &mut View, name: &str, change: impl FnOnce(&mut Report)) {
    if let Some(NodeView { report: Fact::Known { value, .. }, .. }) = view.nodes.get_mut(&node(name)) {
        change(std::sync::Arc::make_mut(value));
    }
}

fn stored(view: &View) -> ClusterRecord {
    match decide(view, &policy(), &[]).intent {
        Intent::UpdateRecord { record } => *record,
        other => panic!("nothing to store: {other:?}"),
    }
}

#[test]
fn no_grant_while_epoch_swap_in_flight() {
    assert!(lease::grant(&record(), &holder(), &policy(), false, None).is_some());
    assert_eq!(lease::grant(&record(), &holder(), &policy(), true, None), None);
}

#[test]
fn fence_confirmed_then_same_epoch_again() {
    let mut holder = holder();
    for (confirmed, granted) in [(2, true), (3, false), (4, false)] {
        holder.standing.fence_confirmed = Some(Epoch(confirmed));
        assert_eq!(lease::grant(&record(), &holder, &policy(), false, None).is_some(), granted, "epoch {confirmed}");
    }
}

#[test]
fn wiped_agent_consents_again() {
    let mut holder = holder();
    holder.standing = Standing::default();
    assert_eq!(lease::grant(&record(), &holder, &policy(), false, None), None, "it forgot its consent");
    holder.standing.consented = Some(Epoch(2));
    assert_eq!(lease::grant(&record(), &holder, &policy(), false, None), None, "consent to an older epoch");
}

#[test]
fn forgotten_consent_lets_epoch_2_rise_after_3() {
    let old = ClusterRecord { epoch: Epoch(2), ..record() };
    let mut holder = holder();
    holder.standing.consented = Some(Epoch(2));
    assert_eq!(lease::grant(&old, &holder, &policy(), false, None), None, "it saw epoch 3");
}

#[test]
fn ledger_not_emptied_at_promotion() {
    let next = record().with_next_epoch(node("n2"), Address::new("n2", 5432), WallTime(0));
    assert!(next.eligible.is_empty() && next.synchronous.is_empty());
    assert_eq!(next.violation_after(&record()), None);
    let carried = ClusterRecord { eligible: [node("n3")].into(), synchronous: [node("n3")].into(), ..next };
    assert!(carried.violation_after(&record()).is_some(), "a store would take it");
}

#[test]
fn eligible_standby_recloned() {
    let record = record();
    let mut view = view(&record);
    edit(&mut view, "n2", |report| report.standing.half_rejoined = true);
    let refusal = rejoin::guard(&view, &record, &policy(), &[], &node("n2")).expect("the ledger names it");
    assert_eq!(refusal.code, ReasonCode::HoldsEveryConfirmedCommit);
    let named = ClusterRecord { eligible: BTreeSet::new(), ..record };
    assert!(rejoin::guard(&view, &named, &policy(), &[], &node("n2")).is_some(), "named and not eligible yet");
}

#[test]
fn standby_swap_old_one_still_eligible() {
    let record = record();
    let mut view = view(&record);
    edit(&mut view, "n1", |report| {
        let live = report.postgres.live.as_mut().expect("running");
        live.standbys.retain(|row| row.node != "n2");
    });
    let next = stored(&view);
    assert_eq!((&next.synchronous, &next.eligible), (&[node("n3")].into(), &BTreeSet::new()));
    assert_eq!(next.synchronous_number, next.number, "the acknowledgement must name this very change");
}

#[test]
fn alone_before_the_ledger() {
    let record = record();
    let mut view = view(&record);
    edit(&mut view, "n1", |report| report.postgres.live.as_mut().expect("running").standbys.clear());
    let gone = |view: &mut View, duration| {
        view.nodes.values_mut().for_each(|node| node.not_streaming_for = Some(duration));
    };
    gone(&mut view, Duration::from_millis(100));
    assert_eq!(decide(&view, &policy(), &[]).intent, Intent::Hold, "it may only be reconnecting");
    gone(&mut view, Duration::from_secs(60));
    let next = stored(&view);
    assert!(next.synchronous.is_empty() && next.eligible.is_empty() && next.alone_since.is_some());
}

#[test]
fn barrier_lsn_read_before_names_applied() {
    let record = ClusterRecord { eligible: BTreeSet::new(), ..record() };
    let mut view = view(&record);
    assert_eq!(stored(&view).proposed, [node("n2")].into(), "acknowledged under the current number, and passed");
    let acknowledge = |view: &mut View, number, names: Vec<NodeName>, barrier| {
        edit(view, "n1", |report| {
            report.postgres.live.as_mut().expect("running").synchronous =
                Some(SynchronousReport { number: RecordNumber(number), names, barrier_lsn: Lsn(barrier) });
        });
    };
    for (number, names, barrier) in
        [(8, vec![node("n2")], 450), (9, vec![node("n3")], 450), (9, vec![], 450), (9, vec![node("n2")], 501)]
    {
        acknowledge(&mut view, number, names.clone(), barrier);
        let plan = decide(&view, &policy(), &[]);
        assert_eq!(plan.intent, Intent::Hold, "number {number}, names {names:?}, barrier {barrier}");
    }
}

#[test]
fn a_standby_is_eligible_once_the_holder_needs_its_promise() {
    let record = ClusterRecord { eligible: BTreeSet::new(), proposed: [node("n2")].into(), ..record() };
    let mut view = view(&record);
    for (acknowledged, epoch, eligible) in
        [(None, 3, false), (Some(9), 3, false), (Some(11), 3, false), (Some(10), 4, false), (Some(10), 3, true)]
    {
        edit(&mut view, "n1", |report| {
            report.standing.acknowledged = acknowledged.map(RecordNumber);
            report.standing.highest_epoch = Epoch(epoch);
        });
        let grown = match decide(&view, &policy(), &[]).intent {
            Intent::UpdateRecord { record } => record.eligible.contains(&node("n2")),
            _ => false,
        };
        assert_eq!(grown, eligible, "acknowledged {acknowledged:?} in epoch {epoch}");
    }
}

#[test]
fn what_one_durability_mode_earned_says_nothing_in_another() {
    let relaxed = Policy { durability: DurabilityMode::Async, ..policy() };
    let Intent::UpdateRecord { record: next } = decide(&view(&record()), &relaxed, &[]).intent else {
        panic!("the record must say so first");
    };
    assert_eq!((next.durability, next.renewers()), (DurabilityMode::Async, BTreeSet::new()));
    assert_eq!(next.violation_after(&record()), None);
}

#[test]
fn without_a_fence_only_an_eligible_standby_is_promoted() {
    let record = ClusterRecord { durability: DurabilityMode::Async, ..record() };
    let relaxed = Policy { durability: DurabilityMode::Async, max_lag_bytes: u64::MAX, ..policy() };
    let mut view = view(&record);
    view.now = view.now.plus(Duration::from_secs(60));
    let silent = |view: &mut View, name: &str| {
        let node = view.nodes.get_mut(&node(name)).expect("there");
        let last = node.report.last_heard().cloned();
        node.report = Fact::Unknown { last: last.map(Into::into), for_duration: Duration::from_secs(60) };
    };
    silent(&mut view, "n1");
    let promoted = |view: &View| match decide(view, &relaxed, &[]).intent {
        Intent::Start { operation: OperationKind::Failover { to, .. } } => Some(to),
        _ => None,
    };
    assert_eq!(promoted(&view), Some(node("n2")));
    silent(&mut view, "n2");
    assert_eq!(promoted(&view), None, "n3 cannot know whether n2 went on renewing for the primary");
}

#[test]
fn longer_divergent_old_primary_counts_as_caught_up() {
    let record = ClusterRecord { eligible: BTreeSet::new(), ..record() };
    let mut view = view(&record);
    edit(&mut view, "n2", |report| {
        let live = report.postgres.live.as_mut().expect("running");
        (live.history, live.flush_lsn) = (History::root(Timeline(6)), Lsn(9_000));
    });
    assert!(!matches!(decide(&view, &policy(), &[]).intent, Intent::UpdateRecord { .. }), "it holds another history");
    let relaxed = Policy { durability: DurabilityMode::Async, ..policy() };
    let ranked = candidate::assess(&view, &record, &relaxed, &Demand::automatic());
    let n2 = ranked.iter().find(|assessment| assessment.node == node("n2")).expect("assessed");
    assert!(!n2.promotable && n2.reasons[0].code == ReasonCode::DivergedTimeline, "{n2:?}");
}

#[test]
fn moments_of_another_boot_hold_nothing_up() {
    let record = record();
    let mut view = view(&record);
    edit(&mut view, "n1", |report| report.postgres.state = PostgresState::Stopped);
    let Intent::Start { operation: kind } = decide(&view, &policy(), &[]).intent else { panic!("no failover") };
    let mut ended = operation(kind);
    ended.status = OperationStatus::Failed;
    ended.ended_at = Some(view.now);
    assert_eq!(decide(&view, &policy(), std::slice::from_ref(&ended)).intent, Intent::Hold, "a moment ago");
    ended.ended_at = Some(view.now.plus(Duration::from_secs(86_400)));
    assert_ne!(decide(&view, &policy(), &[ended]).intent, Intent::Hold, "in another boot of the controller's host");
}

pub(super) fn operation(kind: OperationKind) -> Operation {
    Operation {
        format: JOURNAL_FORMAT,
        id: OperationId("operation".to_owned()),
        cluster: ClusterName::new("main").expect("valid"),
        kind,
        status: OperationStatus::Running,
        origin: "test".to_owned(),
        reasons: Vec::new(),
        epoch_before: Epoch(3),
        epoch_after: None,
        cancel_requested: false,
        detected_at: NOW,
        decided_at: NOW,
        begun_wall: WallTime(0),
        ended_at: None,
        ended_wall: None,
        message: None,
        journal: Vec::new(),
        evidence: Vec::new(),
        risks: Default::default(),
        loss: None,
    }
}

/// Anything that could be heard of one node.
fn any_node(name: &'static str) -> impl Strategy<Value = NodeView> {
    let standing = (
        prop::option::of(1..5_u64),
        prop::option::of(1..5_u64),
        prop::option::of(2..4_u64),
        0..5_u64,
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
    );
    let postgres = (0..6_u8, 6..9_u32, 380..520_u64, prop::option::of(0..12_000_u64), 0..3_u8);
    let heard = (0..5_u8, prop::option::of(0..8_000_u64), prop::option::of(0..8_000_u64));
    (standing, postgres, heard).prop_map(move |(standing, postgres, heard)| {
        let (fenced, consented, lease, highest, operator_fenced, half_rejoined) = standing;
        let (state, timeline, lsn, failing, rows) = postgres;
        let running = state < 4;
        let mut told = report(name, running.then(|| live(state != 0 && name != "n1" || state == 3, lsn)));
        told.standing = Standing {
            highest_epoch: Epoch(highest.min(3)),
            fence_confirmed: fenced.map(Epoch),
            consented: consented.map(Epoch),
            lease_epoch: lease.map(Epoch),
            operator_fenced,
            half_rejoined,
            ..Standing::default()
        };
        if let Some(live) = &mut told.postgres.live {
            live.history.timeline = Timeline(timeline);
            live.standbys.truncate(rows.into());
        } else if state == 5 {
            (told.postgres.state, told.postgres.control) = (PostgresState::NoData, None);
        }
        let failing_for = failing.map(Duration::from_millis);
        told.postgres.probes.write = Probe { failing_for, ..Probe::default() };
        let (known, granted, away) = heard;
        let report = match known {
            0 => Fact::Unknown { last: None, for_duration: Duration::from_secs(9) },
            1 => Fact::Unknown { last: Some(told.into()), for_duration: Duration::from_secs(9) },
            _ => Fact::Known { value: told.into(), age: Duration::ZERO },
        };
        NodeView {
            node: node(name),
            site: SiteName::new("a").expect("valid"),
            report,
            last_grant: granted.map(|ago| NOW.minus(Duration::from_millis(ago))),
            last_live: None,
            not_streaming_for: away.map(Duration::from_millis),
        }
    })
}

prop_compose! {
    pub(super) fn any_case()(
        nodes in (any_node("n1"), any_node("n2"), any_node("n3")),
        named in prop::collection::btree_set(prop::sample::select(vec!["n2", "n3"]), 0..3),
        eligible in prop::collection::btree_set(prop::sample::select(vec!["n2", "n3"]), 0..3),
        mode in prop::sample::select(vec![DurabilityMode::Sync, DurabilityMode::SyncStrict, DurabilityMode::Async]),
        leading in 0..10_000_u64,
        confirmed in any::<bool>(),
    ) -> (View, ClusterRecord, Policy) {
        let synchronous: BTreeSet<NodeName> = named.into_iter().map(node).collect();
        let eligible = eligible.into_iter().map(node).filter(|node| synchronous.contains(node)).collect();
        let record = ClusterRecord { synchronous, eligible, holder_confirmed: confirmed, ..record() };
        let mut view = view(&record);
        view.leading_since = NOW.minus(Duration::from_millis(leading));
        view.nodes = [nodes.0, nodes.1, nodes.2].into_iter().map(|view| (view.node.clone(), view)).collect();
        (view, record, Policy { durability: mode, ..policy() })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_096, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nobody is promoted who may lack a confirmed commit, and nothing is promoted before the proof.
    #[test]
    fn no_view_promotes_what_may_lack_commits((view, record, policy) in any_case()) {
        if let Intent::Start { operation: kind @ OperationKind::Failover { .. } } = decide(&view, &policy, &[]).intent {
            let to = kind.subject().clone();
            if record.durability != DurabilityMode::Async && policy.durability != DurabilityMode::Async {
                prop_assert!(to == record.holder || record.eligible.contains(&to), "{to} is not eligible");
            }
            let proven = proof::proof(&view, &record, &policy).is_ok_and(|proof| proof.suffices_for(&record, &to));
            let can_come = view.report(&record.holder).is_some();
            prop_assert!(proven || can_come, "no proof, and nobody who could give one");
            match operate::next(&operation(kind), &view, &policy) {
                Next::Satisfied { step, .. } => prop_assert!(step == StepName::Fence && proven),
                Next::Run(step) => prop_assert!(step.name == StepName::Fence && !proven),
                other => prop_assert!(matches!(other, Next::Wait { .. }), "{other:?}"),
            }
        }
    }

    /// Whatever is to be stored, a store takes; nobody is named and eligible in one write; no eligible standby is touched.
    #[test]
    fn no_view_breaks_the_ledger((view, record, policy) in any_case()) {
        match decide(&view, &policy, &[]).intent {
            Intent::UpdateRecord { record: next } => {
                prop_assert_eq!(next.violation_after(&record), None);
                let grown: Vec<_> = next.eligible.difference(&record.eligible).collect();
                prop_assert!(grown.is_empty() || next.synchronous == record.synchronous, "named and eligible at once");
                prop_assert!(next.synchronous == record.synchronous || next.synchronous_number == next.number);
                prop_assert!(next.eligible.is_subset(&record.renewers()), "eligible before the holder needs its promise");
            }
            Intent::Start { operation: OperationKind::Rejoin { node, .. } } => {
                prop_assert!(!record.eligible.contains(&node) && !record.synchronous.contains(&node));
            }
            Intent::Start { .. } | Intent::Hold => {}
        }
    }

    /// A lease is for the holder that consented to this epoch, never confirmed its fence in it, while no swap is under way.
    #[test]
    fn no_report_earns_a_lease_it_must_not_have((view, record, policy) in any_case(), pending in any::<bool>()) {
        for told in view.nodes.values().filter_map(|node| node.report.last_heard()) {
            let Some(grant) = lease::grant(&record, told, &policy, pending, None) else { continue };
            prop_assert!(!pending && told.node == record.holder && grant.epoch == record.epoch);
            prop_assert_eq!(told.standing.consented, Some(record.epoch));
            prop_assert!(told.standing.fence_confirmed < Some(record.epoch));
            prop_assert!(!told.standing.operator_fenced);
        }
    }
}
