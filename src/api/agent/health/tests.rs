//! The health paths over every state that matters to a load balancer.

use std::time::Duration;

use super::*;
use crate::domain::clock::{BootId, Moment};
use crate::domain::epoch::Epoch;
use crate::domain::ids::{ClusterName, SiteName, SystemIdentifier};
use crate::domain::lsn::{History, Lsn, Timeline};
use crate::domain::report::{PostgresReport, Probe, Probes, ReceiverReport, Standing, Tags};

fn node(in_recovery: bool) -> NodeSnapshot {
    let receiver = ReceiverReport { sender: None, streaming: true, last_message_age: None };
    let live = LiveReport {
        system_identifier: SystemIdentifier(1),
        in_recovery,
        history: History::root(Timeline(1)),
        started_at_unix_seconds: Some(1.5),
        major_version: 15,
        flush_lsn: Lsn(20 << 20),
        replay_lsn: Lsn(10 << 20),
        replay_paused: false,
        receiver: in_recovery.then_some(receiver),
        standbys: Vec::new(),
        synchronous: None,
        waits: None,
        upkeep: None,
        work: None,
        connections: None,
        clock: Default::default(),
    };
    let write = Probe { last_success_age: Some(Duration::ZERO), ..Probe::default() };
    let lease = (!in_recovery).then_some(Duration::from_secs(2));
    let report = Report {
        cluster: ClusterName::new("main").unwrap(),
        node: NodeName::new("n1").unwrap(),
        site: SiteName::new("a").unwrap(),
        address: Address::new("127.0.0.1", 5432),
        boot: BootId("b".into()),
        incarnation: "i".into(),
        sequence: 1,
        sent_at: Moment(1),
        version: "0".into(),
        standing: Standing { lease_epoch: lease.map(|_| Epoch(1)), lease_remaining: lease, ..Standing::default() },
        postgres: PostgresReport {
            state: PostgresState::Running,
            control: None,
            damage: None,
            live: Some(live),
            probes: Probes { connect: Probe::default(), write },
            disk: None,
            memory: None,
        },
        tags: Tags::default(),
        tasks: std::collections::BTreeMap::new(),
        protection: None,
    };
    NodeSnapshot {
        report,
        primary: None,
        is_synchronous: Some(false),
        primary_position: None,
        controller_seen: None,
        is_alive: true,
    }
}

fn passing(snapshot: &NodeSnapshot) -> Vec<&'static str> {
    HealthPath::ALL.iter().filter(|(_, kind)| snapshot.passes(*kind, None)).map(|(path, _)| *path).collect()
}

#[test]
fn a_primary_with_lease_and_passing_write_probe() {
    let expected = ["/", "/primary", "/master", "/read-write", "/leader", "/read-only", "/read-only-sync"];
    let more = ["/read-only-quorum", "/health", "/liveness", "/readiness"];
    assert_eq!(passing(&node(false)), [expected.as_slice(), &more].concat());
}

#[test]
fn a_primary_without_lease_or_with_failing_writes_is_no_primary() {
    let mut unleased = node(false);
    unleased.report.standing.lease_remaining = None;
    assert_eq!(passing(&unleased), ["/health", "/liveness"]);
    let mut gray = node(false);
    gray.report.postgres.probes.write.failing_for = Some(Duration::from_millis(1));
    assert_eq!(passing(&gray), ["/leader", "/health", "/liveness"]);
    let mut untried = node(false);
    untried.report.postgres.probes.write = Probe::default();
    assert!(!untried.passes(HealthPath::Primary, None), "nobody saw it write yet");
}

#[test]
fn a_standby() {
    let common = ["/replica", "/read-only"];
    let mut standby = node(true);
    assert_eq!(
        passing(&standby),
        [common.as_slice(), &["/async", "/asynchronous", "/health", "/liveness", "/readiness"]].concat()
    );
    standby.is_synchronous = Some(true);
    assert_eq!(
        passing(&standby),
        [
            common.as_slice(),
            &["/read-only-sync", "/sync", "/synchronous", "/quorum", "/read-only-quorum"],
            &["/health", "/liveness", "/readiness"]
        ]
        .concat()
    );
}

#[test]
fn a_postgresql_that_does_not_answer_passes_nothing() {
    for state in [PostgresState::Unresponsive, PostgresState::Starting, PostgresState::Stopped, PostgresState::NoData] {
        let mut snapshot = node(false);
        snapshot.report.postgres.state = state;
        assert_eq!(passing(&snapshot), ["/liveness"]);
        snapshot.is_alive = false;
        assert!(passing(&snapshot).is_empty());
    }
}

#[test]
fn lag_is_a_limit_in_bytes_and_what_is_unknown_exceeds_it() {
    let mut standby = node(true);
    for (limit, passes) in
        [("10MB", true), ("9MB", false), ("10240kB", true), ("1GB", true), ("5", false), ("x", false)]
    {
        assert_eq!(standby.passes(HealthPath::Replica, Some(limit)), passes, "lag={limit}");
    }
    standby.report.postgres.live.as_mut().unwrap().receiver = None;
    assert!(!standby.passes(HealthPath::Replica, Some("1TB")));
    assert!(standby.passes(HealthPath::Replica, None));
}

#[test]
fn lag_is_measured_against_the_primarys_last_known_position() {
    let mut standby = node(true);
    // 10 MB are received and not replayed; the primary is 80 MB further.
    standby.primary_position = Some((Lsn(100 << 20), Duration::from_secs(1)));
    for path in [HealthPath::Replica, HealthPath::ReadOnly, HealthPath::Asynchronous, HealthPath::Readiness] {
        assert!(!standby.passes(path, Some("89MB")), "{path:?} hides what was not received");
        assert!(standby.passes(path, Some("90MB")), "{path:?}");
    }
    standby.report.postgres.live.as_mut().unwrap().receiver = None;
    assert!(standby.passes(HealthPath::Replica, Some("90MB")), "a fresh word of the controller suffices");
    standby.primary_position = Some((Lsn(100 << 20), Duration::from_secs(60)));
    assert!(!standby.passes(HealthPath::Replica, Some("1TB")), "nobody knows where the primary is now");
    standby.primary_position = Some((Lsn(1 << 20), Duration::ZERO));
    assert!(!standby.passes(HealthPath::Replica, Some("9MB")), "what it received itself counts too");
    assert!(node(false).passes(HealthPath::Readiness, Some("0")), "a primary is behind nobody");
}

#[test]
fn there_are_no_standby_clusters_under_either_spelling() {
    let paths: Vec<_> = HealthPath::ALL.iter().filter(|(_, kind)| *kind == HealthPath::StandbyLeader).collect();
    assert_eq!(paths.len(), 2);
    assert!([node(true), node(false)].iter().all(|node| !node.passes(HealthPath::StandbyLeader, None)));
}

#[test]
fn patronis_fields_keep_their_names() {
    let document = node(true).patroni();
    assert_eq!(document["state"], "streaming");
    assert_eq!(document["role"], "replica");
    assert_eq!(document["xlog"]["received_location"], 20 << 20);
    assert_eq!(document["patroni"]["scope"], "main");
    assert_eq!(node(false).patroni()["role"], "primary");
}
