//! The shell on fakes of its ports: who may write, who may be told what, what is on disk before an answer.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::testing::{
    Bench, FakePostgres, HostClock, assignment, envelope, eventually, grant, memory, node, primary_role, standby_of,
    timers,
};
use crate::domain::command::{AssignedRole, Command, CommandEnvelope, CommandState};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::{Address, ClusterName, SystemIdentifier};
use crate::domain::lsn::Lsn;
use crate::domain::operation::StepName;
use crate::domain::report::PostgresState;
use crate::ports::agent::{HeldLease, Memory, OwnLease};
use crate::ports::clock::Clock;

pub(super) fn held(epoch: u64, lasts: Duration) -> HeldLease {
    let deadline = HostClock.now().plus(lasts);
    HeldLease { epoch: Epoch(epoch), deadline, kill_at: deadline.minus(timers().kill_budget) }
}

fn succeeded(state: &CommandState) -> bool {
    matches!(state, CommandState::Succeeded { .. })
}

fn refused(state: &CommandState) -> bool {
    matches!(state, CommandState::Refused { .. })
}

fn rejoin_of(primary: &str) -> (crate::domain::ids::NodeName, Address) {
    (node(primary), Address::new("127.0.0.1", 5433))
}

/// A primary of epoch 3 with a renewed lease.
pub(super) async fn leading() -> Bench {
    let mut remembered = memory(3);
    let lease = held(3, timers().lease);
    remembered.lease = Some(OwnLease { epoch: Epoch(3), deadline: lease.deadline, boot: HostClock.boot() });
    let bench = Bench::begin(FakePostgres::running(false), remembered, Some(lease)).await;
    bench.answer(Some(assignment(3, 3, primary_role())), Some(grant(3)));
    eventually("writable", || bench.agent.report().postgres.probes.write.last_success_age.is_some()).await;
    bench
}

#[tokio::test]
async fn a_crashed_primary_is_fenced_and_told_of_at_once() {
    let bench = leading().await;
    let heard_before = bench.controllers.heard.lock().unwrap().len();
    let began = HostClock.now();
    bench.postgres.crash();
    eventually("fence told", || {
        let heard = bench.controllers.heard.lock().unwrap();
        heard.iter().skip(heard_before).any(|report| report.standing.fence_confirmed == Some(Epoch(3)))
    })
    .await;
    let took = HostClock.now().since(began);
    assert!(took < Duration::from_millis(500), "it took {took:?}");
    assert_eq!(bench.stored().fence_confirmed, Some(Epoch(3)), "on disk before it is told");
    assert_eq!(*bench.guard.released.lock().unwrap(), Some(Epoch(3)));
    assert!(bench.postgres.count("kill_family") > 0 && bench.postgres.count("start") == 0);
}

#[tokio::test]
async fn after_a_crash_of_a_process_the_primary_lets_clients_in_once_its_standby_has_everything() {
    let bench = leading().await;
    eventually("assigned", || bench.agent.keeper.read(|memory| memory.assignment.is_some())).await;
    bench.postgres.crashes_in_order.store(true, Ordering::SeqCst);
    bench.postgres.standby_flushed.store(999, Ordering::SeqCst);
    bench.postgres.crash();
    let is_back = || bench.postgres.count("start Recovering") == 1 && bench.agent.local().postmaster == Some(200);
    eventually("started again", is_back).await;
    let heard = bench.controllers.heard.lock().unwrap().len();
    eventually("more heartbeats", || bench.controllers.heard.lock().unwrap().len() > heard + 2).await;
    let report = bench.agent.report();
    assert_eq!((report.postgres.state, report.postgres.live), (PostgresState::Starting, None), "to others it starts");
    assert_eq!(bench.postgres.count("open_to_clients"), 0, "the standby lacks a byte");
    bench.postgres.standby_flushed.store(1_000, Ordering::SeqCst);
    eventually("opened", || bench.postgres.count("open_to_clients") == 1).await;
    eventually("writable", || bench.agent.report().postgres.probes.write.last_success_age.is_some()).await;
    let first_open = || {
        let reports = bench.controllers.heard.lock().unwrap();
        reports[heard..].iter().find_map(|report| report.postgres.live.clone())
    };
    eventually("told", || first_open().is_some()).await;
    let names = first_open().and_then(|live| live.synchronous).map(|names| names.number);
    assert_eq!(names, Some(RecordNumber(1)), "the first report after opening acknowledges");
    assert_eq!(bench.postgres.count("kill_family"), 0);
    assert_eq!(bench.stored().fence_confirmed, None, "it goes on in its epoch");

    bench.postgres.crash();
    eventually("fenced", || bench.stored().fence_confirmed == Some(Epoch(3))).await;
    assert_eq!(bench.postgres.count("start Recovering"), 1, "one that goes on crashing is moved");
}

#[tokio::test]
async fn a_crashed_primary_whose_standby_does_not_come_fences_itself() {
    let bench = leading().await;
    eventually("assigned", || bench.agent.keeper.read(|memory| memory.assignment.is_some())).await;
    bench.postgres.crashes_in_order.store(true, Ordering::SeqCst);
    bench.postgres.crash();
    eventually("fenced", || bench.stored().fence_confirmed == Some(Epoch(3))).await;
    assert!(bench.postgres.count("start Recovering") == 1 && bench.postgres.count("open_to_clients") == 0);
    assert!(!bench.postgres.is_running());
}

/// Closed after a crash: its standby does not come.
async fn closed() -> Bench {
    let bench = leading().await;
    eventually("assigned", || bench.agent.keeper.read(|memory| memory.assignment.is_some())).await;
    bench.postgres.crashes_in_order.store(true, Ordering::SeqCst);
    bench.postgres.crash();
    let is_back = || bench.agent.local().closed && bench.agent.local().postmaster == Some(200);
    eventually("started again", is_back).await;
    bench
}

#[tokio::test]
async fn a_closed_primary_is_not_left_running_while_paused() {
    let bench = closed().await;
    bench.agent.local().paused = true;
    bench.agent.stop_service().await;
    let stored = bench.stored();
    assert_eq!((stored.fence_confirmed, stored.left_running), (Some(Epoch(3)), None));
    assert!(!bench.postgres.is_running());
}

#[tokio::test]
async fn a_closed_primary_is_not_promoted() {
    let bench = closed().await;
    let consented = |memory: &mut Memory| {
        (memory.consented, memory.consented_boot) = (Some(Epoch(3)), Some(HostClock.boot()));
    };
    bench.agent.keeper.change(consented).await.unwrap();
    let counts_from = bench.agent.now();
    let promote = Command::Promote { grant: grant(3), counts_from, required_lsn: None, block_when_alone: false };
    let state = bench.command(envelope(3, StepName::Promote, promote)).await;
    assert!(matches!(&state, CommandState::Failed { error } if error.contains("closed to clients")), "{state:?}");
    assert_eq!(bench.postgres.count("promote"), 0);
}

#[tokio::test]
async fn a_closed_primary_is_not_opened_under_another_lease() {
    let bench = closed().await;
    bench.silence();
    let lease = {
        let mut local = bench.agent.local();
        let lease = local.leases.current().expect("it leads");
        let newer = super::lease::Lease { epoch: Epoch(4), ..lease };
        assert!(local.leases.accept(newer));
        newer
    };
    bench.postgres.standby_flushed.store(1_000, Ordering::SeqCst);
    eventually("ended", || bench.agent.now() >= lease.deadline && !bench.postgres.is_running()).await;
    assert_eq!(bench.postgres.count("open_to_clients"), 0);
}

#[test]
fn a_fence_of_an_older_epoch_takes_no_newer_lease() {
    let mut remembered = memory(4);
    remembered.lease = Some(OwnLease { epoch: Epoch(4), deadline: HostClock.now(), boot: HostClock.boot() });
    remembered.left_running = Some(Epoch(4));
    remembered.confirm_fence(Epoch(3));
    assert!(remembered.lease.is_some() && remembered.left_running == Some(Epoch(4)));
    remembered.confirm_fence(Epoch(4));
    assert!(remembered.lease.is_none() && remembered.left_running.is_none());
}

#[tokio::test]
async fn a_primary_that_ends_again_while_it_recovers_is_fenced() {
    let bench = leading().await;
    eventually("assigned", || bench.agent.keeper.read(|memory| memory.assignment.is_some())).await;
    bench.postgres.crashes_in_order.store(true, Ordering::SeqCst);
    bench.postgres.crash();
    let is_back = || bench.postgres.count("start Recovering") == 1 && bench.agent.local().postmaster == Some(200);
    eventually("started again", is_back).await;
    bench.postgres.crash();
    eventually("fenced", || bench.stored().fence_confirmed == Some(Epoch(3))).await;
    assert_eq!(bench.postgres.count("start Recovering"), 1);
}

#[tokio::test]
async fn silence_of_the_controllers_ends_in_a_fence_before_the_lease_does() {
    let bench = leading().await;
    *bench.controllers.reply.lock().unwrap() = None;
    eventually("last renewal seen", || bench.guard.held.lock().unwrap().is_some()).await;
    let deadline = {
        // The last answers may still be on their way.
        let mut last = bench.guard.held.lock().unwrap().unwrap();
        while let Some(now) = {
            tokio::time::sleep(Duration::from_millis(20)).await;
            *bench.guard.held.lock().unwrap()
        } {
            last = now;
        }
        last
    };
    assert!(!bench.postgres.is_running());
    assert!(HostClock.now() < deadline.kill_at.plus(Duration::from_millis(30)), "the agent is there before the guard");
    assert_eq!(bench.stored().fence_confirmed, Some(Epoch(3)));
    assert_eq!(bench.postgres.count("stop_fast"), 1);
}

#[tokio::test]
async fn a_lease_that_no_guard_watches_over_is_not_renewed() {
    let bench = leading().await;
    bench.guard.is_gone.store(true, Ordering::SeqCst);
    eventually("fenced", || bench.stored().fence_confirmed == Some(Epoch(3))).await;
    assert!(!bench.postgres.is_running());
}

#[tokio::test]
async fn fence_confirmed_then_same_epoch_again() {
    let bench = leading().await;
    assert!(succeeded(&bench.command(envelope(3, StepName::Fence, Command::Fence)).await));
    let heard = bench.controllers.heard.lock().unwrap().len();
    eventually("more heartbeats", || bench.controllers.heard.lock().unwrap().len() > heard + 2).await;
    assert_eq!(bench.agent.report().standing.lease_epoch, None, "grants of epoch 3 go on and are worth nothing");
    let counts_from = bench.agent.now();
    let promote = Command::Promote { grant: grant(3), counts_from, required_lsn: None, block_when_alone: false };
    assert!(refused(&bench.command(envelope(3, StepName::Promote, promote)).await));
    let freeze = Command::Freeze { consent_to: Some(Epoch(3)), fence_confirmed: None };
    assert!(refused(&bench.command(envelope(3, StepName::Freeze, freeze)).await));
}

#[tokio::test]
async fn a_primary_promoted_by_hand_is_fenced() {
    let bench = Bench::begin(FakePostgres::running(true), memory(3), None).await;
    eventually("observed", || bench.agent.report().postgres.state == PostgresState::Running).await;
    bench.postgres.in_recovery.store(false, Ordering::SeqCst);
    eventually("fenced", || !bench.postgres.is_running()).await;
}

#[tokio::test]
async fn the_first_epoch_begins_without_a_promotion() {
    let bench = Bench::begin(FakePostgres::running(false), memory(0), None).await;
    eventually("observed", || bench.agent.report().postgres.live.is_some()).await;
    bench.answer(Some(assignment(1, 1, primary_role())), Some(grant(1)));
    eventually("leased", || bench.agent.report().standing.lease_epoch == Some(Epoch(1))).await;
    eventually("names in force", || bench.postgres.count("apply_synchronous") == 1).await;
    assert!(bench.postgres.is_running() && bench.postgres.count("kill_family") == 0);
    assert_eq!(bench.stored().highest_epoch, Epoch(1));
}

#[tokio::test]
async fn a_standby_is_promoted_only_with_consent_and_with_all_it_must_have() {
    let bench = Bench::begin(FakePostgres::running(true), memory(3), None).await;
    eventually("observed", || bench.agent.report().postgres.live.is_some()).await;
    let counts_from = bench.agent.now();
    let promote =
        |required| Command::Promote { grant: grant(4), counts_from, required_lsn: required, block_when_alone: false };
    assert!(refused(&bench.command(envelope(4, StepName::Promote, promote(None))).await), "without consent");
    let freeze = Command::Freeze { consent_to: Some(Epoch(4)), fence_confirmed: None };
    let state = bench.command(envelope(4, StepName::Freeze, freeze)).await;
    assert!(matches!(&state, CommandState::Succeeded { output } if output.lsn == Some(Lsn(1_000))), "{state:?}");
    assert_eq!(bench.stored().consented, Some(Epoch(4)), "on disk before the answer");

    let mut again = envelope(4, StepName::Promote, promote(Some(Lsn(1_001))));
    again.operation.0 = "operation-2".to_owned();
    let state = bench.command(again.clone()).await;
    assert!(matches!(&state, CommandState::Failed { error } if error.contains("lose commits")), "{state:?}");
    assert!(bench.postgres.in_recovery.load(Ordering::SeqCst) && bench.guard.held.lock().unwrap().is_none());

    again.command = promote(Some(Lsn(1_000)));
    let state = bench.command(again.clone()).await;
    assert!(matches!(&state, CommandState::Succeeded { output } if output.lsn == Some(Lsn(1_024))), "{state:?}");
    let report = bench.agent.report();
    assert_eq!(report.standing.lease_epoch, Some(Epoch(4)));
    assert!(!report.postgres.live.unwrap().in_recovery && report.postgres.probes.write.last_success_age.is_some());
    assert!(succeeded(&bench.command(again).await), "repeated: answered");
    assert_eq!(bench.postgres.count("promote"), 1, "and not run again");
}

#[tokio::test]
async fn who_may_be_promoted_keeps_what_its_peers_need_and_nobody_else_does() {
    let bench = Bench::begin(FakePostgres::running(true), memory(3), None).await;
    bench.answer(Some(assignment(3, 3, standby_of("n2"))), None);
    eventually("follows", || bench.postgres.count("follow n2") == 1).await;
    let freeze = |epoch, consent_to| {
        envelope(epoch, StepName::Freeze, Command::Freeze { consent_to, fence_confirmed: Some(Epoch(3)) })
    };
    assert!(succeeded(&bench.command(freeze(3, None)).await), "it only stands still");
    assert!(succeeded(&bench.command(freeze(4, Some(Epoch(4)))).await));
    let promote = Command::Promote {
        grant: grant(4),
        counts_from: bench.agent.now(),
        required_lsn: None,
        block_when_alone: false,
    };
    assert!(succeeded(&bench.command(envelope(4, StepName::Promote, promote)).await));
    let calls = bench.postgres.calls.lock().unwrap().clone();
    let both = |call: &String| call.starts_with("reserve slots") || call.starts_with("promote");
    let both: Vec<&str> = calls.iter().filter(|call| both(call)).map(String::as_str).collect();
    assert_eq!(both, ["reserve slots for n2", "promote"], "once, and before the promotion's checkpoint");
}

#[tokio::test]
async fn a_frozen_standby_does_not_follow_the_old_primary_again() {
    let bench = Bench::begin(FakePostgres::running(true), memory(3), None).await;
    bench.answer(Some(assignment(3, 3, standby_of("n2"))), None);
    eventually("follows", || bench.postgres.count("follow n2") == 1).await;
    assert!(succeeded(
        &bench
            .command(envelope(3, StepName::Freeze, Command::Freeze { consent_to: None, fence_confirmed: None }))
            .await
    ));
    let heard = bench.controllers.heard.lock().unwrap().len();
    eventually("heartbeats", || bench.controllers.heard.lock().unwrap().len() > heard + 3).await;
    assert_eq!(bench.postgres.count("follow n2"), 1);
    bench.answer(Some(assignment(4, 4, standby_of("n3"))), None);
    eventually("follows the new one", || bench.postgres.count("follow n3") == 1).await;
}

#[tokio::test]
async fn demote_says_where_the_shutdown_record_is() {
    let bench = leading().await;
    let demote = envelope(3, StepName::Demote, Command::Demote { timeout: Duration::from_secs(5) });
    let state = bench.command(demote).await;
    assert!(matches!(&state, CommandState::Succeeded { output } if output.lsn == Some(Lsn(500))), "{state:?}");
    assert_eq!(bench.stored().fence_confirmed, Some(Epoch(3)));
    assert_eq!(*bench.guard.released.lock().unwrap(), Some(Epoch(3)));
}

#[tokio::test]
async fn a_demotion_that_takes_too_long_fails_and_fences_all_the_same() {
    let bench = leading().await;
    bench.postgres.hangs.store(true, Ordering::SeqCst);
    let demote = envelope(3, StepName::Demote, Command::Demote { timeout: Duration::from_millis(50) });
    let state = bench.command(demote).await;
    assert!(matches!(&state, CommandState::Failed { error } if error.contains("fenced in epoch 3")), "{state:?}");
    assert!(!bench.postgres.is_running());
    assert_eq!(bench.stored().fence_confirmed, Some(Epoch(3)));
}

#[tokio::test]
async fn commands_of_a_lower_epoch_or_another_cluster_change_nothing() {
    let bench = leading().await;
    assert!(refused(&bench.command(envelope(2, StepName::Fence, Command::Fence)).await));
    let mut stranger = envelope(3, StepName::Fence, Command::Fence);
    stranger.cluster = ClusterName::new("other").unwrap();
    assert!(refused(&bench.command(stranger).await));
    let verify = Command::VerifyWrite { expect: Address::new("127.0.0.1", 1) };
    assert!(refused(&bench.command(envelope(3, StepName::Verify, verify)).await));
    assert!(bench.postgres.is_running());
}

#[tokio::test]
async fn assignments_that_are_older_or_of_other_data_are_not_taken() {
    let bench = Bench::begin(FakePostgres::running(true), memory(3), None).await;
    let mut stranger = assignment(9, 9, standby_of("n2"));
    stranger.system_identifier = SystemIdentifier(8);
    assert!(bench.agent.take_assignment(stranger).await.unwrap_err().0.contains("system identifier"));
    assert_eq!(bench.agent.take_assignment(assignment(4, 9, standby_of("n2"))).await, Ok(()));
    for (epoch, number) in [(3, 10), (4, 8)] {
        assert!(bench.agent.take_assignment(assignment(epoch, number, standby_of("n3"))).await.is_err());
    }
    assert_eq!(bench.stored().highest_epoch, Epoch(4));
}

#[tokio::test]
async fn a_primary_that_learns_of_a_newer_epoch_stops_at_once() {
    let bench = leading().await;
    bench.answer(Some(assignment(4, 4, standby_of("n2"))), None);
    eventually("fenced", || !bench.postgres.is_running()).await;
    eventually("stored", || bench.stored().highest_epoch == Epoch(4)).await;
    assert_eq!(bench.postgres.count("start"), 0, "its data may have diverged");
}

#[tokio::test]
async fn a_long_command_is_running_until_it_ends_and_runs_once() {
    let bench = leading().await;
    bench.postgres.holds_back.store(true, Ordering::SeqCst);
    let checkpoint = envelope(3, StepName::Checkpoint, Command::Checkpoint);
    for _ in 0..3 {
        let state = bench.agent.run_command(checkpoint.clone(), Duration::from_millis(20)).await;
        assert!(matches!(state, CommandState::Running { .. }), "{state:?}");
    }
    assert_eq!(bench.tasks().len(), 1);
    bench.postgres.held_back.notify_one();
    assert!(succeeded(&bench.command(checkpoint.clone()).await));
    assert!(succeeded(&bench.command(checkpoint).await));
    assert_eq!(bench.postgres.count("checkpoint"), 1);
}

#[tokio::test]
async fn a_fence_does_not_wait_for_a_command_under_way() {
    let bench = leading().await;
    bench.postgres.holds_back.store(true, Ordering::SeqCst);
    let checkpoint = envelope(3, StepName::Checkpoint, Command::Checkpoint);
    bench.agent.run_command(checkpoint, Duration::from_millis(20)).await;
    assert!(succeeded(&bench.command(envelope(3, StepName::Fence, Command::Fence)).await));
}

#[tokio::test]
async fn a_failure_is_told_once_and_then_tried_again() {
    let bench = Bench::begin(FakePostgres::stopped("shut down"), memory(3), None).await;
    let checkpoint = envelope(3, StepName::Checkpoint, Command::Checkpoint);
    for attempts in 1..=2 {
        assert!(matches!(bench.command(checkpoint.clone()).await, CommandState::Failed { .. }));
        assert_eq!(bench.postgres.count("checkpoint"), attempts);
    }
}

#[tokio::test]
async fn a_rewind_that_broke_off_leaves_a_node_that_nothing_starts() {
    let bench = Bench::begin(FakePostgres::stopped("shut down"), memory(3), None).await;
    let (primary, primary_address) = rejoin_of("n2");
    let rewind = Command::Rewind { primary: primary.clone(), primary_address: primary_address.clone() };
    let rewind = |attempt| CommandEnvelope { attempt, ..envelope(3, StepName::Rewind, rewind.clone()) };
    bench.postgres.is_cut_off.store(true, Ordering::SeqCst);
    assert!(matches!(bench.command(rewind(1)).await, CommandState::Failed { .. }));
    assert!(!bench.stored().half_rejoined, "nothing was changed");
    bench.postgres.is_cut_off.store(false, Ordering::SeqCst);
    bench.postgres.hangs.store(true, Ordering::SeqCst);
    assert!(matches!(bench.command(rewind(2)).await, CommandState::Failed { .. }));
    assert!(bench.stored().half_rejoined);
    assert!(refused(&bench.command(rewind(3)).await), "half a rewind is not rewound");
    let start = Command::StartStandby { primary: primary.clone(), primary_address: primary_address.clone() };
    assert!(refused(&bench.command(envelope(3, StepName::StartStandby, start.clone())).await));
    let freeze = Command::Freeze { consent_to: Some(Epoch(4)), fence_confirmed: None };
    assert!(refused(&bench.command(envelope(4, StepName::Freeze, freeze)).await));
    let reclone = Command::Reclone { primary, primary_address };
    assert!(succeeded(&bench.command(envelope(4, StepName::Reclone, reclone)).await));
    assert!(!bench.stored().half_rejoined);
    assert!(succeeded(&bench.command(envelope(4, StepName::StartStandby, start)).await));
    assert!(bench.postgres.is_running());
}

#[tokio::test]
async fn the_primary_is_never_recloned() {
    let bench = leading().await;
    let (primary, primary_address) = rejoin_of("n2");
    let reclone = Command::Reclone { primary, primary_address };
    assert!(refused(&bench.command(envelope(3, StepName::Reclone, reclone)).await));
    assert!(bench.postgres.is_running());
}

#[tokio::test]
async fn an_operators_fence_lasts_until_it_is_lifted() {
    let bench = Bench::begin(FakePostgres::running(true), memory(3), None).await;
    bench.answer(Some(assignment(3, 3, AssignedRole::Fenced)), None);
    eventually("down", || !bench.postgres.is_running()).await;
    assert!(bench.stored().operator_fenced);
    bench.answer(Some(assignment(3, 4, standby_of("n2"))), None);
    eventually("lifted", || !bench.stored().operator_fenced).await;
    eventually("the standby starts again", || bench.postgres.is_running()).await;
}

#[tokio::test]
async fn a_crashed_standby_starts_again() {
    let bench = Bench::begin(FakePostgres::running(true), memory(3), None).await;
    eventually("observed", || bench.agent.report().postgres.live.is_some()).await;
    bench.postgres.crash();
    eventually("started", || bench.postgres.count("start Standby") == 1).await;
    assert_eq!(bench.stored().fence_confirmed, None);
}

#[tokio::test]
async fn wiped_agent_consents_again() {
    let mut remembered = memory(3);
    remembered.memory_since.boot = HostClock.boot();
    remembered.memory_since.at = HostClock.now();
    let bench = Bench::begin(FakePostgres::running(true), remembered, None).await;
    let freeze = envelope(4, StepName::Freeze, Command::Freeze { consent_to: Some(Epoch(4)), fence_confirmed: None });
    let lost_at = bench.stored().memory_since.at;
    assert!(
        succeeded(&bench.command(freeze).await),
        "it consents once every promise that it may have forgotten has run out"
    );
    assert!(bench.agent.now().since(lost_at) >= timers().promise());
}

#[tokio::test]
async fn a_former_holder_found_down_confirms_its_fence() {
    let mut remembered = memory(3);
    remembered.assignment = Some(assignment(3, 3, primary_role()));
    remembered.consented = Some(Epoch(3));
    let bench = Bench::begin(FakePostgres::stopped("in production"), remembered, None).await;
    eventually("the fence is confirmed", || bench.stored().fence_confirmed == Some(Epoch(3))).await;
    assert_eq!(bench.postgres.count("start"), 0);
}

/// It was named for an epoch that it never consented to, and may have promised the holder before it: the same rule as for a fence
/// that is asked for (trace `fence_of_an_unused_epoch_while_the_older_lease_runs`).
#[tokio::test]
async fn a_holder_by_name_alone_confirms_when_its_promise_has_run_out() {
    let mut remembered = memory(3);
    remembered.assignment = Some(assignment(3, 3, primary_role()));
    let bench = Bench::begin(FakePostgres::stopped("in production"), remembered, None).await;
    let began = bench.stored().memory_since.at;
    eventually("the fence is confirmed", || bench.stored().fence_confirmed == Some(Epoch(3))).await;
    assert!(bench.agent.now().since(began) >= timers().promise(), "a young memory may have forgotten a promise");
}
