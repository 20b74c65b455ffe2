//! Documents of the wire for the tests of the command line: one cluster in several states.

use stormglass::api::wire::{
    ClusterStatus, ExpectedOutage, Explanation, FailoverPreview, Health, MutationReply, NodeExplanation, NodeStatus,
    ProxyStatus, SCHEMA_VERSION, TimerRule, TimerStatus, Warning,
};
use stormglass::domain::clock::{Moment, WallTime};
use stormglass::domain::command::CommandOutput;
use stormglass::domain::epoch::{Epoch, RecordNumber};
use stormglass::domain::evidence::{Observation, Occasion, Witness};
use stormglass::domain::ids::{Address, ClusterName, NodeName, OperationId};
use stormglass::domain::lsn::Lsn;
use stormglass::domain::operation::{
    JOURNAL_FORMAT, Operation, OperationKind, OperationStatus, StepEvent, StepName, StepState,
};
use stormglass::domain::plan::{Intent, Loss, Plan, Reason, ReasonCode};

/// 2026-11-21T03:12:09Z.
pub const NOW: WallTime = WallTime(1_795_230_729_000_000);

pub fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("valid")
}

fn before(seconds: i64) -> WallTime {
    WallTime(NOW.0 - seconds * 1_000_000)
}

fn node_status(name: &str, site: &str, role: &str, state: &str) -> NodeStatus {
    NodeStatus {
        name: node(name),
        site: site.to_owned(),
        address: Some(Address::new("10.0.0.1", 5432)),
        role: role.to_owned(),
        state: state.to_owned(),
        timeline: Some(7),
        flush_lsn: Some("5/3A21F8C8".to_owned()),
        replay_lsn: Some("5/3A21F8C8".to_owned()),
        lag_bytes: Some(0),
        sync_state: Some("quorum".to_owned()),
        eligible: true,
        lease_remaining_seconds: None,
        seen_seconds: Some(0.2),
        risk: None,
        assessment: Vec::new(),
    }
}

pub fn healthy() -> ClusterStatus {
    let primary = NodeStatus {
        lag_bytes: None,
        sync_state: None,
        lease_remaining_seconds: Some(2.8),
        ..node_status("db1", "east", "primary", "writable")
    };
    let behind = NodeStatus {
        replay_lsn: Some("5/39FFE010".to_owned()),
        lag_bytes: Some(2_202_010),
        sync_state: Some("async".to_owned()),
        eligible: false,
        assessment: vec![Reason::about(&node("db3"), ReasonCode::NotEligible, "2.1 MiB behind")],
        ..node_status("db3", "west", "standby", "streaming")
    };
    ClusterStatus {
        schema_version: SCHEMA_VERSION,
        cluster: "orders".to_owned(),
        health: Health::Healthy,
        primary: Some(node("db1")),
        primary_since: Some(before(4 * 3_600 + 3 * 86_400)),
        timeline: Some(7),
        epoch: 8,
        record_number: 41,
        durability: "sync".to_owned(),
        eligible: vec![node("db2")],
        synchronous: vec![node("db2")],
        alone_since: None,
        automation: true,
        paused_until: None,
        scheduled_switchover: None,
        nodes: vec![primary, node_status("db2", "east", "standby", "streaming"), behind],
        proxies: vec![ProxyStatus {
            name: "proxy-east".to_owned(),
            site: "east".to_owned(),
            write_address: Some(Address::new("10.0.0.9", 5000)),
            write_target: Some(Address::new("10.0.0.1", 5432)),
            agrees: true,
            error: None,
            holding: false,
            traffic: None,
        }],
        name: None,
        failover_now: FailoverPreview {
            candidate: Some(node("db2")),
            reasons: vec![Reason::about(&node("db2"), ReasonCode::HoldsEveryConfirmedCommit, "")],
        },
        operations: Vec::new(),
        warnings: Vec::new(),
        timers: TimerStatus {
            rto_seconds: 5.0,
            lease_seconds: 3.0,
            renewal_interval_seconds: 0.5,
            request_timeout_seconds: 1.0,
            stop_budget_seconds: 0.8,
            wait_seconds: 3.05,
            kill_budget_seconds: 0.3,
            drift_seconds: 0.05,
            promise_seconds: 3.05,
            leadership_ttl_seconds: None,
            rules: vec![TimerRule {
                rule: "lease + drift <= wait".to_owned(),
                left_seconds: 3.05,
                right_seconds: 3.05,
                holds: true,
                statement: "lease + drift <= wait: 3s 50ms <= 3s 50ms, holds".to_owned(),
            }],
            outages: vec![ExpectedOutage {
                fault: "host lost".to_owned(),
                at_most_seconds: Some(3.05),
                statement: "host lost: at most 3s 50ms".to_owned(),
            }],
        },
        predictor: None,
        controller: "controller-1".to_owned(),
        leader: None,
        at: NOW,
    }
}

/// The synchronous standby is gone, and the primary goes on alone.
pub fn degraded() -> ClusterStatus {
    let mut status = healthy();
    status.health = Health::Degraded;
    status.eligible.clear();
    status.synchronous.clear();
    status.alone_since = Some(before(95));
    status.nodes[1] = NodeStatus {
        timeline: None,
        replay_lsn: None,
        flush_lsn: None,
        lag_bytes: None,
        sync_state: None,
        seen_seconds: Some(97.0),
        ..node_status("db2", "east", "unknown", "unreachable")
    };
    status.failover_now = FailoverPreview {
        candidate: None,
        reasons: vec![Reason::new(ReasonCode::NoCandidate, "nobody holds every confirmed commit")],
    };
    status.warnings = vec![Warning {
        message: "db2 has not been heard of for 1m 37s.".to_owned(),
        next: Some("stormglass explain db2".to_owned()),
    }];
    status
}

/// The primary is lost, and a failover is under way.
pub fn no_primary() -> ClusterStatus {
    let mut status = healthy();
    status.health = Health::NoPrimary;
    status.primary = None;
    status.primary_since = None;
    status.timeline = None;
    status.nodes[0] = NodeStatus { sync_state: None, ..node_status("db1", "east", "primary", "stopped") };
    status.nodes[0].lag_bytes = None;
    status.proxies[0].agrees = false;
    status.proxies[0].write_target = None;
    let mut running = failover(OperationStatus::Running);
    running.journal.truncate(3);
    status.operations = vec![running];
    status
}

/// A node that never spoke, and nobody knows who is primary.
pub fn unknown() -> ClusterStatus {
    let mut status = healthy();
    status.health = Health::Unknown;
    status.primary = None;
    status.primary_since = None;
    status.timeline = None;
    status.proxies.clear();
    status.nodes.truncate(1);
    status.nodes[0] = NodeStatus {
        address: None,
        timeline: None,
        flush_lsn: None,
        replay_lsn: None,
        lag_bytes: None,
        sync_state: None,
        seen_seconds: None,
        ..node_status("db1", "east", "unknown", "unreachable")
    };
    status.failover_now = FailoverPreview {
        candidate: None,
        reasons: vec![Reason::about(&node("db1"), ReasonCode::AgentSilent, "never heard of")],
    };
    status
}

pub fn paused() -> ClusterStatus {
    ClusterStatus { automation: false, paused_until: Some(WallTime(NOW.0 + 2_940_000_000)), ..healthy() }
}

pub fn explanation() -> Explanation {
    Explanation {
        witnesses: Vec::new(),
        schema_version: SCHEMA_VERSION,
        cluster: "orders".to_owned(),
        plan: Plan {
            intent: Intent::Hold,
            reasons: vec![Reason::new(ReasonCode::Healthy, "")],
            blocked_by: vec![Reason::new(ReasonCode::Paused, "until 03:40")],
            based_on: Some((Epoch(8), RecordNumber(41))),
            loss: None,
        },
        nodes: vec![
            NodeExplanation {
                outlook: None,
                node: node("db3"),
                promotable: false,
                rank: None,
                reasons: vec![Reason::about(&node("db3"), ReasonCode::NotEligible, "2.1 MiB behind")],
            },
            NodeExplanation {
                outlook: None,
                node: node("db2"),
                promotable: true,
                rank: Some(1),
                reasons: vec![
                    Reason::about(&node("db2"), ReasonCode::HoldsEveryConfirmedCommit, ""),
                    Reason::about(&node("db2"), ReasonCode::MostWalReceived, "5/3A21F8C8"),
                ],
            },
        ],
    }
}

fn said(
    occasion: Occasion,
    witness: Witness,
    source: &str,
    about: &str,
    statement: &str,
    milliseconds: u64,
) -> Observation {
    Observation {
        at: Moment(1_000_000 + milliseconds * 1_000),
        wall: NOW,
        occasion,
        witness,
        source: source.to_owned(),
        node: node(about),
        statement: statement.to_owned(),
    }
}

/// A failover of 0.2 s.
pub fn failover(status: OperationStatus) -> Operation {
    let event = |step, state, milliseconds: u64| StepEvent {
        step,
        attempt: 1,
        state,
        epoch: Epoch(9),
        at: Moment(1_000_000 + milliseconds * 1_000),
        wall: WallTime(NOW.0 + i64::try_from(milliseconds).expect("small") * 1_000),
    };
    let succeeded = || StepState::Succeeded { output: CommandOutput::default() };
    let written =
        StepState::Succeeded { output: CommandOutput { lsn: Some("5/3A220000".parse().expect("valid")), note: None } };
    let end = status.is_final();
    Operation {
        format: JOURNAL_FORMAT,
        id: OperationId("019a-7c".to_owned()),
        cluster: ClusterName::new("orders").expect("valid"),
        kind: OperationKind::Failover {
            from: node("db1"),
            to: node("db2"),
            accept_data_loss: false,
            old_primary_is_off: false,
        },
        status,
        origin: "automatic".to_owned(),
        reasons: vec![Reason::about(&node("db1"), ReasonCode::PostgresDown, "killed by signal 9")],
        epoch_before: Epoch(8),
        epoch_after: Some(Epoch(9)),
        cancel_requested: false,
        detected_at: Moment(1_000_000),
        decided_at: Moment(1_004_000),
        begun_wall: NOW,
        ended_at: end.then_some(Moment(1_200_000)),
        ended_wall: end.then_some(WallTime(NOW.0 + 200_000)),
        message: None,
        journal: vec![
            event(StepName::Fence, StepState::Started, 5),
            event(StepName::Fence, succeeded(), 36),
            event(StepName::Promote, StepState::Started, 40),
            event(StepName::Promote, written, 160),
            event(StepName::Redirect, StepState::Started, 161),
            event(StepName::Redirect, StepState::Failed { error: "proxy-east: no answer".to_owned() }, 200),
        ],
        risks: Default::default(),
        loss: None,
        evidence: vec![
            said(Occasion::Decided, Witness::Agent, "db1", "db1", "reported 0.004 s ago: PostgreSQL is stopped", 4),
            said(Occasion::Decided, Witness::WalReceiver, "db2", "db1", "no WAL receiver runs", 4),
            said(Occasion::Fenced, Witness::Controller, "controller", "db1", "fence confirmed (epoch 8)", 36),
        ],
    }
}

pub fn planned() -> MutationReply {
    MutationReply {
        schema_version: SCHEMA_VERSION,
        operation: None,
        plan: Some(Plan {
            intent: Intent::Start { operation: OperationKind::Switchover { from: node("db1"), to: node("db2") } },
            reasons: vec![Reason::new(ReasonCode::OperatorRequest, "on-call")],
            blocked_by: Vec::new(),
            based_on: Some((Epoch(8), RecordNumber(41))),
            loss: None,
        }),
        expect: vec!["writes pause for about 0.1 s".to_owned(), "no commit is lost".to_owned()],
        message: "would switch over".to_owned(),
    }
}

pub fn lossy() -> MutationReply {
    let loss = Loss {
        node: node("db3"),
        missing_bytes: Some(1 << 20),
        flush_lsn: Lsn(0x4F0_0000),
        last_commit_at: Some(WallTime(1_795_230_727_000_000)),
        primary: node("db1"),
        primary_flush_lsn: Some(Lsn(0x500_0000)),
        primary_seen_at: Some(WallTime(1_795_230_729_000_000)),
        holds_every_confirmed_commit: false,
    };
    let failover = OperationKind::Failover {
        from: node("db1"),
        to: node("db3"),
        accept_data_loss: true,
        old_primary_is_off: false,
    };
    let plan = Plan {
        intent: Intent::Start { operation: failover },
        reasons: vec![Reason::new(ReasonCode::OperatorRequest, "")],
        blocked_by: Vec::new(),
        based_on: Some((Epoch(8), RecordNumber(41))),
        loss: Some(loss),
    };
    MutationReply { plan: Some(plan), expect: Vec::new(), message: String::new(), ..planned() }
}

pub fn begun() -> MutationReply {
    MutationReply { operation: Some(failover(OperationStatus::Running)), ..planned() }
}
