//! The shell while no controller answers: who renews the lease, when it is not renewed, and what a standby stores before it promises.

use std::time::Duration;

use crate::agent::Agent;
use crate::agent::testing::{
    Bench, FakePostgres, HostClock, Peer, assignment, cluster, envelope, eventually, grant, memory, node, primary_role,
    renewed_by, standby_of, timers,
};
use crate::domain::command::{AssignedRole, Command, CommandState, PromiseReply, PromiseRequest};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::SystemIdentifier;
use crate::domain::operation::StepName;
use crate::domain::report::Renewal;
use crate::ports::agent::{HeldLease, OwnLease};
use crate::ports::clock::Clock;

fn own(lease: HeldLease) -> OwnLease {
    OwnLease { epoch: lease.epoch, deadline: lease.deadline, boot: HostClock.boot() }
}

/// n1, the primary of epoch 3, under a lease that a controller granted, with these renewers.
async fn leading(renewers: Option<&[&str]>) -> Bench {
    let mut remembered = memory(3);
    let lease = crate::agent::tests::held(3, timers().lease);
    remembered.lease = Some(own(lease));
    remembered.consented = Some(Epoch(3));
    let bench = Bench::begin(FakePostgres::running(false), remembered, Some(lease)).await;
    let told = assignment(3, 3, primary_role());
    bench.answer(Some(renewers.map_or(told.clone(), |names| renewed_by(names, told))), Some(grant(3)));
    eventually("told", || bench.stored().assignment.is_some() && renewals(&bench.agent, Renewal::Controller) > 0).await;
    bench
}

fn renewals(agent: &Agent, by: Renewal) -> u64 {
    agent.local().renewals.counts.get(&by).copied().unwrap_or(0)
}

/// Waits until more time has passed than a lease lasts.
async fn outlast_a_lease(bench: &Bench) {
    let end = bench.agent.now().plus(timers().lease * 2);
    eventually("two leases later", || bench.agent.now() > end).await;
}

async fn is_fenced_in_time(bench: &Bench) {
    eventually("fenced", || bench.stored().fence_confirmed == Some(Epoch(3))).await;
    assert!(!bench.postgres.is_running());
    assert_eq!(bench.postgres.count("stop_fast"), 1, "stopped, before the guard had to kill");
}

#[tokio::test]
async fn controllers_are_silent_and_the_standbys_renew() {
    let bench = leading(Some(&["n2", "n3"])).await;
    bench.peers.put("n2", Peer::Promises);
    bench.peers.put("n3", Peer::Promises);
    assert_eq!(bench.peers.asked(), 0, "a controller answers");
    bench.silence();
    outlast_a_lease(&bench).await;
    assert!(bench.postgres.is_running() && bench.stored().fence_confirmed.is_none());
    assert_eq!(bench.agent.report().standing.renewed_by, Some(Renewal::Standbys));
    assert!(
        bench
            .agent
            .metrics_text()
            .contains("stormglass_lease_renewals_total{cluster=\"main\",node=\"n1\",by=\"standbys\"}")
    );
    {
        let asked = bench.peers.asked.lock().unwrap();
        let (agent, request) = asked.iter().find(|(_, request)| request.standby == node("n3")).expect("n3 was asked");
        assert_eq!((agent.as_str(), request.epoch, &request.holder), ("http://n3", Epoch(3), &node("n1")));
    }
    bench.answer(Some(renewed_by(&["n2", "n3"], assignment(3, 3, primary_role()))), Some(grant(3)));
    eventually("a controller again", || bench.agent.report().standing.renewed_by == Some(Renewal::Controller)).await;
}

#[tokio::test]
async fn any_one_candidate_renews() {
    for missing in [Some(Peer::Refuses), Some(Peer::Hangs), None] {
        let bench = leading(Some(&["n2", "n3"])).await;
        bench.peers.put("n2", Peer::Promises);
        if let Some(peer) = missing {
            bench.peers.put("n3", peer);
        }
        bench.silence();
        is_fenced_in_time(&bench).await;
        assert_eq!(renewals(&bench.agent, Renewal::Standbys), 0, "{missing:?}");
        assert!(bench.peers.asked() > 2, "asked again before it was too late");
    }
}

#[tokio::test]
async fn a_lone_holder_renews_alone() {
    let bench = leading(Some(&[])).await;
    bench.silence();
    outlast_a_lease(&bench).await;
    assert!(bench.postgres.is_running());
    assert_eq!((bench.peers.asked(), bench.agent.report().standing.renewed_by), (0, Some(Renewal::Alone)));
}

#[tokio::test]
async fn a_controller_that_knows_no_promises_is_not_gone_round() {
    let bench = leading(None).await;
    bench.peers.put("n2", Peer::Promises);
    bench.silence();
    is_fenced_in_time(&bench).await;
    assert_eq!(bench.peers.asked(), 0);
}

#[tokio::test]
async fn a_leader_that_grants_nothing_is_not_gone_round() {
    let bench = leading(Some(&["n2"])).await;
    bench.peers.put("n2", Peer::Promises);
    bench.answer(Some(renewed_by(&["n2"], assignment(3, 3, primary_role()))), None);
    is_fenced_in_time(&bench).await;
    assert_eq!(bench.peers.asked(), 0, "it may be moving the primary");
}

#[tokio::test]
async fn a_controller_whose_store_is_older_stops_nobody() {
    let bench = leading(Some(&["n2"])).await;
    bench.peers.put("n2", Peer::Promises);
    bench.answer(Some(renewed_by(&[], assignment(2, 2, standby_of("n2")))), None);
    outlast_a_lease(&bench).await;
    assert!(bench.postgres.is_running());
    assert_eq!(bench.agent.report().standing.renewed_by, Some(Renewal::Standbys));
}

#[tokio::test]
async fn an_agent_that_takes_over_while_no_controller_answers_renews_in_time() {
    let bench = leading(Some(&["n2"])).await;
    bench.peers.put("n2", Peer::Promises);
    bench.silence();
    eventually("renewed by n2", || renewals(&bench.agent, Renewal::Standbys) > 1).await;
    let bench = bench.restart().await;
    bench.peers.put("n2", Peer::Promises);
    outlast_a_lease(&bench).await;
    assert!(bench.postgres.is_running() && bench.postgres.count("stop_fast") == 0);
    assert_eq!(bench.agent.report().standing.lease_epoch, Some(Epoch(3)));
}

#[tokio::test]
async fn a_primary_that_is_being_stopped_asks_nobody_for_more_time() {
    let bench = leading(Some(&["n2"])).await;
    bench.peers.put("n2", Peer::Promises);
    bench.agent.local().stopping = true;
    bench.silence();
    eventually("its lease ended", || bench.stored().fence_confirmed == Some(Epoch(3))).await;
    assert_eq!(bench.peers.asked(), 0);
}

#[tokio::test]
async fn a_primary_that_is_left_running_finds_no_lease_on_disk() {
    let bench = leading(Some(&[])).await;
    bench.agent.local().leaving = true;
    bench.agent.keeper.change(|memory| (memory.left_running, memory.lease) = (Some(Epoch(3)), None)).await.unwrap();
    let before = renewals(&bench.agent, Renewal::Controller);
    eventually("renewed", || renewals(&bench.agent, Renewal::Controller) > before + 1).await;
    bench.silence();
    eventually("renewed alone", || renewals(&bench.agent, Renewal::Alone) > 1).await;
    let stored = bench.stored();
    assert_eq!((stored.left_running, stored.lease), (Some(Epoch(3)), None));
}

/// n1, a standby of n2, the holder of epoch 3.
async fn following() -> Bench {
    let mut remembered = memory(3);
    remembered.assignment = Some(renewed_by(&["n1"], assignment(3, 3, standby_of("n2"))));
    remembered.highest_number = RecordNumber(3);
    Bench::begin(FakePostgres::running(true), remembered, None).await
}

fn request() -> PromiseRequest {
    PromiseRequest {
        cluster: cluster(),
        system_identifier: SystemIdentifier(7),
        epoch: Epoch(3),
        holder: node("n2"),
        standby: node("n1"),
        timers: timers(),
    }
}

fn freeze(fence_confirmed: Option<Epoch>) -> crate::domain::command::CommandEnvelope {
    envelope(4, StepName::Freeze, Command::Freeze { consent_to: Some(Epoch(4)), fence_confirmed })
}

fn refused(reply: &PromiseReply) -> bool {
    matches!(reply, PromiseReply::Refused { .. })
}

#[tokio::test]
async fn a_promise_is_on_disk_before_it_is_answered_and_survives_a_restart() {
    let bench = following().await;
    let given_at = bench.agent.now();
    assert_eq!(bench.agent.give_promise(&request()).await, PromiseReply::Promised);
    let stored = bench.stored().promise.expect("on disk");
    assert_eq!((stored.epoch, stored.length), (Epoch(3), timers().promise()));
    assert!(stored.until >= given_at.plus(timers().promise()));

    let bench = bench.restart().await;
    let told = bench.agent.report().standing.promised.expect("still bound, and says so");
    assert_eq!(told.epoch, Epoch(3));
    assert!(matches!(bench.command(freeze(None)).await, CommandState::Succeeded { .. }));
    assert!(bench.agent.now() >= stored.until, "it consented while its promise bound it");
    assert!(refused(&bench.agent.give_promise(&request()).await), "nothing in older epochs after that");
}

#[tokio::test]
async fn a_confirmed_fence_replaces_a_promise() {
    let bench = following().await;
    assert_eq!(bench.agent.give_promise(&request()).await, PromiseReply::Promised);
    assert!(matches!(bench.command(freeze(Some(Epoch(3)))).await, CommandState::Succeeded { .. }));
    assert!(bench.agent.report().standing.promised.is_some(), "it did not wait");
}

#[tokio::test]
async fn nothing_is_promised_while_a_consent_waits() {
    let bench = following().await;
    assert_eq!(bench.agent.give_promise(&request()).await, PromiseReply::Promised);
    let waiting = bench.agent.run_command(freeze(None), Duration::from_millis(1)).await;
    assert!(matches!(waiting, CommandState::Running { .. }), "{waiting:?}");
    eventually("the new epoch is on disk", || bench.stored().highest_epoch == Epoch(4)).await;
    assert!(refused(&bench.agent.give_promise(&request()).await), "it would wait for ever");
}

#[tokio::test]
async fn contradicting_timers_are_promised_nothing() {
    let bench = following().await;
    let endless =
        PromiseRequest { timers: crate::domain::lease::LeaseTimers { drift: Duration::ZERO, ..timers() }, ..request() };
    assert!(refused(&bench.agent.give_promise(&endless).await));
    assert_eq!(bench.stored().promise, None);
}

#[tokio::test]
async fn an_older_assignment_lifts_no_operators_fence() {
    let bench = following().await;
    let lift = assignment(3, 4, standby_of("n2"));
    let fence = assignment(3, 5, AssignedRole::Fenced);
    // Both pass the first look before either is on disk.
    let (_, _) = tokio::join!(bench.agent.take_assignment(fence), bench.agent.take_assignment(lift));
    let stored = bench.stored();
    assert!(stored.operator_fenced && stored.highest_number == RecordNumber(5));
}
