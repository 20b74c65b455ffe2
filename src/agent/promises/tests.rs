//! Promises and consent, each rule by itself. The traces are those of the design.

use std::collections::BTreeSet;

use super::*;
use crate::domain::command::Assignment;
use crate::domain::ids::{Address, ClusterName, NodeName, SystemIdentifier};
use crate::ports::agent::StampedMoment;

const HOUR: Moment = Moment(3_600_000_000);
const DATA: SystemIdentifier = SystemIdentifier(7);

fn boot() -> BootId {
    BootId("this".to_owned())
}

fn later_boot() -> BootId {
    BootId("the next".to_owned())
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

fn cluster() -> ClusterName {
    ClusterName::new("main").unwrap()
}

fn timers() -> LeaseTimers {
    LeaseTimers::for_rto(Duration::from_secs(5))
}

/// The memory of n2, which follows n1, the holder of epoch 3, and began long ago.
fn standby() -> Memory {
    let since = StampedMoment { boot: boot(), at: Moment(0) };
    let mut memory = Memory::new(cluster(), node("n2"), since);
    memory.highest_epoch = Epoch(3);
    memory.highest_number = RecordNumber(9);
    let role = AssignedRole::Standby { primary: node("n1"), primary_address: Address::new("n1", 5432) };
    memory.assignment = Some(assignment(3, role));
    memory
}

fn assignment(epoch: u64, role: AssignedRole) -> Assignment {
    Assignment {
        cluster: cluster(),
        system_identifier: DATA,
        epoch: Epoch(epoch),
        number: RecordNumber(9),
        role,
        eligible: BTreeSet::new(),
        renewers: Some(Default::default()),
        peers: BTreeSet::new(),
    }
}

fn request() -> PromiseRequest {
    PromiseRequest {
        cluster: cluster(),
        system_identifier: DATA,
        epoch: Epoch(3),
        holder: node("n1"),
        standby: node("n2"),
        timers: timers(),
    }
}

fn refusal(memory: &Memory, request: &PromiseRequest) -> Option<String> {
    no_promise_because(memory, request, HOUR, &boot())
}

fn give(memory: &mut Memory) {
    promise(memory, Epoch(3), &timers(), HOUR, &boot());
}

#[test]
fn a_standby_promises_the_holder_that_it_follows() {
    assert_eq!(refusal(&standby(), &request()), None);
    let mut fenced = standby();
    fenced.assignment = Some(assignment(3, AssignedRole::Fenced));
    fenced.operator_fenced = true;
    assert_eq!(refusal(&fenced, &request()), None, "it cannot be promoted anyway");
}

#[test]
fn nothing_is_promised_to_anybody_else() {
    for wrong in [
        PromiseRequest { cluster: ClusterName::new("other").unwrap(), ..request() },
        PromiseRequest { system_identifier: SystemIdentifier(8), ..request() },
        PromiseRequest { epoch: Epoch(2), ..request() },
        PromiseRequest { epoch: Epoch(4), ..request() },
        PromiseRequest { holder: node("n3"), ..request() },
    ] {
        assert!(refusal(&standby(), &wrong).is_some(), "promised {wrong:?}");
    }
    let mut untold = standby();
    untold.assignment = Some(assignment(2, AssignedRole::Fenced));
    assert!(refusal(&untold, &request()).is_some(), "it was never told who holds epoch 3");
    let mut holder = standby();
    let role = AssignedRole::Primary {
        synchronous: BTreeSet::new(),
        synchronous_number: RecordNumber(9),
        block_when_alone: false,
    };
    holder.assignment = Some(assignment(3, role));
    assert!(refusal(&holder, &request()).is_some(), "the holder promises nobody");
}

#[test]
fn any_one_candidate_renews_for_nobody_but_itself() {
    let misrouted = PromiseRequest { standby: node("n3"), ..request() };
    assert!(refusal(&standby(), &misrouted).is_some(), "n2 was reached by the address of n3 and promised in its place");
}

#[test]
fn a_consent_grants_nothing_in_older_epochs() {
    let mut memory = standby();
    consent(&mut memory, Epoch(4), &boot());
    assert!(refusal(&memory, &request()).is_some());
    let mut candidate = standby();
    consent(&mut candidate, Epoch(3), &boot());
    assert!(refusal(&candidate, &request()).is_some(), "nor in the epoch that it agreed to lead");
}

#[test]
fn wiped_agent_promises_again() {
    let mut wiped = standby();
    wiped.memory_since.at = HOUR.minus(timers().promise() / 2);
    assert!(refusal(&wiped, &request()).is_some(), "it may have agreed to a newer epoch before it forgot");
    wiped.memory_since.at = HOUR.minus(timers().promise());
    assert_eq!(refusal(&wiped, &request()), None);
}

#[test]
fn a_promise_binds_for_lease_and_drift() {
    let mut memory = standby();
    give(&mut memory);
    for (passed, binds) in
        [(Duration::ZERO, true), (timers().lease, true), (timers().promise(), false), (timers().lease * 2, false)]
    {
        assert_eq!(promised(&memory, HOUR.plus(passed), &boot()).is_some(), binds, "after {passed:?}");
    }
}

#[test]
fn consent_waits_for_a_promise() {
    let mut memory = standby();
    let waits = |memory: &Memory, epoch, fenced, now| promise_waits(memory, Epoch(epoch), fenced, now, &boot());
    assert_eq!(waits(&memory, 4, None, HOUR), Duration::ZERO, "nothing was promised");
    give(&mut memory);
    assert_eq!(waits(&memory, 4, None, HOUR), timers().promise());
    assert_eq!(waits(&memory, 3, None, HOUR), Duration::ZERO, "the promise was to the holder of that very epoch");
    assert_eq!(waits(&memory, 4, None, HOUR.plus(timers().promise())), Duration::ZERO, "it has run out");
}

#[test]
fn a_confirmed_fence_replaces_a_promise() {
    let mut memory = standby();
    give(&mut memory);
    let waits = |fenced| promise_waits(&memory, Epoch(4), fenced, HOUR, &boot());
    assert_eq!(waits(Some(Epoch(3))), Duration::ZERO);
    assert_eq!(waits(Some(Epoch(2))), timers().promise(), "trace fence_confirmation_of_epoch_1_heard_in_epoch_3");
}

#[test]
fn a_promise_runs_one_full_length_from_a_reboot() {
    let mut memory = standby();
    give(&mut memory);
    let up = |seconds| Moment(0).plus(Duration::from_secs_f64(seconds));
    let promise_seconds = timers().promise().as_secs_f64();
    assert!(promised(&memory, up(promise_seconds - 0.1), &later_boot()).is_some());
    assert!(promised(&memory, up(promise_seconds), &later_boot()).is_none());
    let left = promise_waits(&memory, Epoch(4), None, up(1.0), &later_boot());
    assert_eq!(left, timers().promise() - Duration::from_secs(1));
    let young = no_promise_because(&memory, &request(), up(1.0), &later_boot());
    assert!(young.is_some(), "nothing new is promised before everything promised before the reboot has run out");
}

#[test]
fn a_shorter_promise_never_ends_a_longer_one() {
    let short = LeaseTimers::for_rto(Duration::from_secs(2));
    let mut memory = standby();
    give(&mut memory);
    promise(&mut memory, Epoch(3), &short, HOUR, &boot());
    assert!(promised(&memory, HOUR.plus(timers().lease), &boot()).is_some());
    // After a reboot too, also when the shorter one was given after it.
    promise(&mut memory, Epoch(3), &short, Moment(1), &later_boot());
    assert!(promised(&memory, Moment(0).plus(timers().lease), &later_boot()).is_some());
    promise(&mut memory, Epoch(4), &short, HOUR, &later_boot());
    assert_eq!(promised(&memory, HOUR, &later_boot()).unwrap().remaining, short.promise(), "an epoch of its own");
}

#[test]
fn forgotten_consent_lets_epoch_2_rise_after_3() {
    let mut memory = standby();
    consent(&mut memory, Epoch(5), &boot());
    consent(&mut memory, Epoch(4), &boot());
    assert_eq!((memory.consented, memory.highest_epoch), (Some(Epoch(5)), Epoch(5)));
    assert!(no_consent_because(&memory, Epoch(4)).is_some());
}

#[test]
fn late_shrink_after_regrowth() {
    let memory = standby();
    let refused = |epoch, number| assignment_refused_because(&memory, Epoch(epoch), RecordNumber(number)).is_some();
    assert!(refused(3, 8) && refused(2, 10), "older, whatever it says");
    assert!(!refused(3, 9) && !refused(4, 10));
}
