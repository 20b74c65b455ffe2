//! A real controller on a real store: what it tells, once a change, and what it says of a cancel that comes too late.
//!
//! Its agents are out of reach; their reports are handed to it as HTTP would. No decision is judged here.

#[path = "controller/alerts.rs"]
mod alerts;
#[path = "controller/audit.rs"]
mod audit;
#[path = "controller/backups.rs"]
mod backups;
#[path = "controller/harness.rs"]
mod harness;
#[path = "controller/notifications.rs"]
mod notifications;
#[path = "controller/receivers.rs"]
mod receivers;
#[path = "controller/sequences.rs"]
mod sequences;

use std::time::Duration;

use harness::{
    PATIENCE, Running, Setting, caller, cluster, node, record, run_on, start, start_for, start_in, start_with, until,
};
use stormglass::api::controller::ControllerHandler;
use stormglass::api::wire::{PauseRequest, SwitchoverRequest};
use stormglass::domain::clock::{Moment, WallTime};
use stormglass::domain::epoch::Epoch;
use stormglass::domain::evidence::{Occasion, Witness};
use stormglass::domain::ids::{OperationId, SystemIdentifier};
use stormglass::domain::operation::{
    JOURNAL_FORMAT, Operation, OperationKind, OperationStatus, StepEvent, StepName, StepState,
};
use stormglass::domain::report::{MemoryReport, PostgresState, Report};
use stormglass::domain::trail::AuditRow;

#[tokio::test]
async fn what_changes_is_told_once() {
    let controller = start(PATIENCE, &[]).await;
    assert_eq!(controller.until_told("controller_started", 1).await.len(), 1);
    let started = "stormglass_controller_start_timestamp_seconds ";
    let metrics = controller.handle.metrics();
    let value = metrics.lines().find_map(|line| line.strip_prefix(started)).expect("a sample");
    assert!(value.parse::<f64>().expect("a number") > 1e9, "{value}");

    let leased = |report: &mut Report| {
        (report.standing.lease_epoch, report.standing.lease_remaining) = (Some(Epoch(3)), Some(Duration::from_secs(1)));
    };
    for _ in 0..3 {
        controller.hear("n1", leased).await;
        controller
            .hear("n2", |report| {
                report.postgres.control.as_mut().expect("there").system_identifier = SystemIdentifier(8)
            })
            .await;
    }
    let unrenewed = controller.until_told("lease_not_renewed", 1).await;
    assert_eq!(unrenewed, ["The lease of n1 was not renewed: it has not consented to this epoch."]);
    let refused = controller.until_told("node_refused", 1).await;
    assert!(refused[0].starts_with("Node n2 cannot be used: other system identifier (8, "), "{refused:?}");
    let consenting = |report: &mut Report| {
        leased(report);
        report.standing.consented = Some(Epoch(3));
    };
    controller.hear("n1", consenting).await;
    controller.hear("n1", leased).await;
    assert_eq!(controller.until_told("lease_not_renewed", 2).await.len(), 2, "a new refusal after a renewal is news");

    for (leads_to, error) in
        [("n1", None), ("n2", None), ("n2", None), ("n2", Some("no answer")), ("n2", Some("still"))]
    {
        controller.hear_proxy(leads_to, error).await;
    }
    assert_eq!(controller.until_told("proxy_failed", 1).await, ["Proxy proxy1 does not follow: no answer."]);
    assert_eq!(controller.until_told("proxy_redirected", 1).await, ["Proxy proxy1 leads writes to n2:5432."]);
    for event in ["lease_not_renewed", "node_refused", "proxy_failed", "proxy_redirected", "controller_started"] {
        assert_eq!(controller.told(event).await.len(), 1 + usize::from(event == "lease_not_renewed"), "{event}");
    }
}

#[tokio::test]
async fn pauses_are_told_with_who_asked_and_when_they_expire() {
    let controller = start(PATIENCE, &[]).await;
    controller.handle.resume("main", &caller()).await.expect("harmless");
    let pause = |seconds| PauseRequest { duration_seconds: Some(seconds) };
    controller.handle.pause("main", pause(3600), &caller()).await.expect("stored");
    let paused = controller.until_told("paused_until", 1).await;
    assert!(paused[0].ends_with(", as on-call asked."), "{paused:?}");
    controller.handle.resume("main", &caller()).await.expect("stored");
    let resumed = controller.until_told("resumed", 1).await;
    assert_eq!(resumed, ["Automatic operations are on again, as on-call asked."]);
    controller.handle.pause("main", pause(1), &caller()).await.expect("stored");
    let resumed = controller.until_told("resumed", 2).await;
    assert_eq!(resumed[1], "Automatic operations are on again: the pause expired.");
}

#[tokio::test]
async fn what_runs_out_has_a_series_until_it_no_longer_does() {
    // A sample each 30 ms, a horizon of 1.8 s, and memory that would last 4 s.
    let controller = start_in(Setting { step: Duration::from_millis(30), ..Setting::default() }).await;
    let began = tokio::time::Instant::now();
    let say = async |lost: f64| {
        let memory = |report: &mut Report| {
            let available_bytes = (1e9 * (1.0 - lost)) as u64;
            report.postgres.memory = Some(MemoryReport { available_bytes, total_bytes: 1_000_000_000 });
        };
        controller.hear("n1", memory).await;
        controller
            .handle
            .metrics()
            .contains("\nstormglass_exhaustion_seconds{cluster=\"main\",node=\"n1\",resource=\"memory\"} ")
    };
    // It comes back and goes again, for a machine that was too busy to see it the first time.
    let lost = || began.elapsed().as_secs_f64() % 4.0 / 4.0;
    until("memory runs out", async || say(lost()).await.then_some(())).await;
    let rest = lost();
    until("it does no longer", async || (!say(rest).await).then_some(())).await;
}

#[tokio::test]
async fn silence_is_told_once_and_so_is_its_end() {
    let controller = start(Duration::from_millis(200), &[]).await;
    controller.hear("n2", |_| {}).await;
    let silent = |rows: Vec<String>| rows.into_iter().filter(|row| row.contains(" n2 ")).count();
    let until = async |count| {
        while silent(controller.told("agent_silent").await) < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, until(1)).await.expect("its silence is told");
    controller.hear("n2", |_| {}).await;
    assert_eq!(controller.until_told("agent_heard", 2).await[1], "The agent of n2 reports.");
    tokio::time::timeout(PATIENCE, until(2)).await.expect("the next silence is another one");
}

#[tokio::test]
async fn a_store_that_takes_no_writes_is_told_once() {
    let controller = start(PATIENCE, &[]).await;
    controller.until_told("controller_started", 1).await;
    let file = rusqlite::Connection::open(controller.directory.path().join("store.db")).expect("the controller's file");
    file.busy_timeout(PATIENCE).expect("set");
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON audit BEGIN SELECT RAISE(FAIL, 'no room'); END";
    file.execute_batch(refuse).expect("made");
    let row = || AuditRow {
        wall: WallTime(0),
        who: "on-call".to_owned(),
        from: "here".to_owned(),
        what: "test".to_owned(),
        outcome: "none".to_owned(),
    };
    for _ in 0..3 {
        controller.handle.record_audit(row()).await;
    }
    let failed = controller.until_told("store_failed", 1).await;
    assert!(failed[0].contains("no room"), "{failed:?}");
    file.execute_batch("DROP TRIGGER refuse").expect("dropped");
    controller.handle.record_audit(row()).await;
    file.execute_batch(refuse).expect("made");
    controller.handle.record_audit(row()).await;
    assert_eq!(controller.until_told("store_failed", 2).await.len(), 2, "news only after a write that was taken");
    let metrics = controller.handle.metrics();
    for action in ["append_audit", "append_event", "load_record"] {
        let sample = format!("stormglass_store_seconds_count{{action=\"{action}\"}} ");
        assert!(metrics.contains(&sample), "{action} is not timed:\n{metrics}");
    }
}

/// A failover from n1 to n2, as the store of a controller that went away would hold it.
fn failover(epoch_after: Option<Epoch>, journal: Vec<StepEvent>) -> Operation {
    Operation {
        format: JOURNAL_FORMAT,
        id: OperationId("op-1".to_owned()),
        cluster: cluster(),
        kind: OperationKind::Failover {
            from: node("n1"),
            to: node("n2"),
            accept_data_loss: true,
            old_primary_is_off: false,
        },
        status: OperationStatus::Running,
        origin: "on-call".to_owned(),
        reasons: Vec::new(),
        epoch_before: Epoch(3),
        epoch_after,
        cancel_requested: false,
        detected_at: Moment(1),
        decided_at: Moment(1),
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

#[tokio::test]
async fn a_cancel_is_accepted_only_where_it_is_honoured() {
    let controller = start(PATIENCE, &[failover(None, Vec::new())]).await;
    let reply = controller.handle.cancel("op-1", &caller()).await.expect("accepted");
    assert!(reply.message.starts_with("the failover ends before the epoch is raised"), "{}", reply.message);
    let ended = tokio::time::timeout(PATIENCE, async {
        loop {
            let operation = controller.handle.operation("op-1").await.expect("there");
            if operation.status.is_final() {
                return operation;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(ended.await.expect("it ends").status, OperationStatus::Cancelled);

    let at = StepEvent {
        step: StepName::AdvanceEpoch,
        attempt: 1,
        state: StepState::Unknown { error: "the store did not answer".to_owned() },
        epoch: Epoch(4),
        at: Moment(1),
        wall: WallTime(0),
    };
    let fenced = StepEvent {
        step: StepName::Fence,
        state: StepState::Succeeded { output: Default::default() },
        epoch: Epoch(3),
        ..at.clone()
    };
    let controller = start(PATIENCE, &[failover(None, vec![fenced, at])]).await;
    let refused = controller.handle.cancel("op-1", &caller()).await.expect_err("it may have risen");
    assert_eq!(refused.status, 409);
    assert!(refused.detail.contains("it only goes forward"), "{}", refused.detail);
    let operation = controller.handle.operation("op-1").await.expect("there");
    assert!(!operation.cancel_requested, "a refused wish is not written down");
}

#[tokio::test]
async fn an_operation_keeps_what_was_known_when_it_was_decided() {
    let controller = start(PATIENCE, &[]).await;
    controller.hear_proxy("n1", None).await;
    controller.hear("n2", |_| {}).await;
    // Its agent says that nothing runs: with nobody eligible, the primary is restarted in place.
    controller.hear("n1", |report| report.postgres.state = PostgresState::Stopped).await;
    let begun = tokio::time::timeout(PATIENCE, async {
        loop {
            let operations = controller.handle.operations(Some("main"), 10).await.expect("listed");
            if let Some(operation) = operations.into_iter().find(|operation| operation.kind.label() == "failover") {
                return operation;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let operation = begun.await.expect("a failover begins");
    let said = |witness, source: &str, words: &str| {
        operation.evidence.iter().any(|said| {
            (said.occasion, said.witness) == (Occasion::Decided, witness)
                && said.source == source
                && said.statement.contains(words)
        })
    };
    for (witness, source, words) in [
        (Witness::Agent, "n1", "PostgreSQL is stopped, holds no lease"),
        (Witness::Agent, "n2", "PostgreSQL runs"),
        (Witness::Controller, "controller", "no proof yet that it cannot write: n1: lease may run"),
        (Witness::Controller, "controller", "record 1 of epoch 3: holder n1, eligible nobody, proposed nobody"),
        (Witness::Controller, "controller", "has renewed no lease of it"),
        (Witness::Proxy, "proxy1", "writes lead to n1:5432"),
    ] {
        assert!(said(witness, source, words), "{witness:?} {source} did not say {words:?}: {:#?}", operation.evidence);
    }
    let decided: Vec<_> = operation.evidence.iter().filter(|said| said.occasion == Occasion::Decided).collect();
    assert!(decided.iter().all(|said| said.at == decided[0].at && said.at >= operation.decided_at), "one moment");
}

#[tokio::test]
async fn a_leadership_with_no_time_for_a_lease_is_none() {
    let stale_after = Duration::from_secs(5);
    let several = start_for(Some(Duration::from_secs(3600)), stale_after, &[]).await;
    several.hear("n1", |_| {}).await;
    let ending = start_for(Some(Duration::ZERO), stale_after, &[]).await;
    let problem =
        ending.answer("n1", |_| {}).await.expect_err("an answer would keep the holder from asking its standbys");
    assert!(problem.is_not_the_leader(), "{problem:?}");
}

#[tokio::test]
async fn a_scheduled_switchover_is_stored_told_shown_and_taken_back() {
    let controller = start(PATIENCE, &[]).await;
    let ask = async |request| controller.handle.switchover("main", request, &caller()).await;
    let at = controller.handle.wall().plus(Duration::from_secs(3600));
    let later = SwitchoverRequest { at: Some(at), ..SwitchoverRequest::default() };
    let dry = SwitchoverRequest { dry_run: true, ..later.clone() };
    let words = ask(dry).await.expect("it could be").message;
    assert_eq!(words, format!("would begin: switchover scheduled for {at}"));
    let scheduled =
        async || controller.handle.status("main").await.expect("answers").document.scheduled_switchover.clone();
    assert_eq!(scheduled().await, None, "a dry run changes nothing");

    assert_eq!(ask(later).await.expect("accepted").message, format!("switchover scheduled for {at}"));
    let told = controller.until_told("switchover_scheduled", 1).await;
    assert_eq!(told[0], format!("A switchover is scheduled for {at} (asked for by on-call)."));
    let shown = scheduled().await.expect("shown");
    assert_eq!((shown.at, shown.asked_by.as_str()), (at, "on-call"));
    let stored = controller.store.load_record(&cluster()).await.expect("read").expect("there");
    assert_eq!(stored.scheduled.map(|scheduled| scheduled.at), Some(at));

    let back = SwitchoverRequest { unschedule: true, ..SwitchoverRequest::default() };
    let both = SwitchoverRequest { at: Some(at), ..back.clone() };
    assert_eq!(ask(both).await.expect_err("which?").status, 422);
    ask(back.clone()).await.expect("taken back");
    let told = controller.until_told("switchover_unscheduled", 1).await;
    assert_eq!(told[0], format!("No switchover is scheduled for {at} any more: an operator took it back."));
    assert_eq!(ask(back).await.expect_err("there is none").status, 409);
    let past = SwitchoverRequest { at: Some(WallTime(0)), ..SwitchoverRequest::default() };
    assert_eq!(ask(past).await.expect_err("too late").status, 409);
}
