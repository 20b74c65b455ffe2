//! Who must promise, and what a round is worth. The traces are those of the design.

use super::*;
use crate::domain::clock::BootId;
use crate::domain::command::Assignment;
use crate::domain::ids::{Address, ClusterName, SystemIdentifier};
use crate::ports::agent::{OwnLease, StampedMoment};

const BEGAN: Moment = Moment(1_000_000);

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

fn primary() -> AssignedRole {
    AssignedRole::Primary { synchronous: BTreeSet::new(), synchronous_number: RecordNumber(1), block_when_alone: false }
}

fn standby() -> AssignedRole {
    AssignedRole::Standby { primary: node("n2"), primary_address: Address::new("n2", 5432) }
}

fn assignment(epoch: u64, number: u64, role: AssignedRole, renewers: Option<&[&str]>) -> Assignment {
    let urls = |names: &[&str]| names.iter().map(|name| (node(name), format!("http://{name}"))).collect();
    Assignment {
        cluster: ClusterName::new("main").unwrap(),
        system_identifier: SystemIdentifier(7),
        epoch: Epoch(epoch),
        number: RecordNumber(number),
        role,
        eligible: BTreeSet::new(),
        renewers: renewers.map(urls),
        peers: BTreeSet::new(),
    }
}

/// The memory of n1, holder of epoch 3 by record 9, which names these renewers.
fn holder(renewers: Option<&[&str]>) -> Memory {
    let boot = BootId("this".to_owned());
    let since = StampedMoment { boot: boot.clone(), at: Moment(0) };
    let mut memory = Memory::new(ClusterName::new("main").unwrap(), node("n1"), since);
    memory.highest_epoch = Epoch(3);
    memory.consented = Some(Epoch(3));
    memory.lease = Some(OwnLease { epoch: Epoch(3), deadline: lease().deadline, boot });
    tell(&mut memory, 9, renewers);
    memory
}

fn tell(memory: &mut Memory, number: u64, renewers: Option<&[&str]>) {
    memory.highest_number = RecordNumber(number);
    memory.assignment = Some(assignment(3, number, primary(), renewers));
}

fn lease() -> Lease {
    let timers = LeaseTimers::for_rto(Duration::from_secs(5));
    Lease { epoch: Epoch(3), number: RecordNumber(9), deadline: BEGAN.plus(timers.lease), timers }
}

fn begin(memory: &Memory) -> Option<Round> {
    Round::begin(memory, &lease(), BEGAN)
}

#[test]
fn any_one_candidate_renews() {
    let memory = holder(Some(&["n2", "n3"]));
    let mut round = begin(&memory).unwrap();
    assert_eq!(round.renewers().len(), 2);
    assert_eq!(round.grant(&memory, &lease()), None, "nobody promised");
    round.promised(&node("n2"));
    round.promised(&node("n2"));
    assert_eq!(round.grant(&memory, &lease()), None, "one promised, twice; the other may be promoted");
    round.promised(&node("n3"));
    let grant = round.grant(&memory, &lease()).expect("all promised");
    assert_eq!((grant.epoch, grant.number, grant.timers), (Epoch(3), RecordNumber(9), lease().timers));
    assert_eq!(round.begun_at(), BEGAN, "it counts from before anybody was asked");
}

#[test]
fn a_lone_holder_renews_alone() {
    let memory = holder(Some(&[]));
    assert!(begin(&memory).unwrap().grant(&memory, &lease()).is_some());
}

#[test]
fn peer_round_begun_under_old_membership() {
    for (before, after) in [(&[][..], &["n2"][..]), (&["n2"], &["n2", "n3"]), (&["n2"], &["n3"]), (&["n2"], &[])] {
        let mut memory = holder(Some(before));
        let mut round = begin(&memory).unwrap();
        before.iter().for_each(|name| round.promised(&node(name)));
        assert!(round.grant(&memory, &lease()).is_some());
        tell(&mut memory, 10, Some(after));
        assert_eq!(round.grant(&memory, &lease()), None, "{before:?} became {after:?} meanwhile");
    }
    let mut memory = holder(Some(&[]));
    let round = begin(&memory).unwrap();
    tell(&mut memory, 10, Some(&["n2"]));
    tell(&mut memory, 11, Some(&[]));
    assert_eq!(round.grant(&memory, &lease()), None, "the same names under another number are another membership");
}

#[test]
fn growth_ack_while_solo_lease_runs() {
    // The acknowledged number and the need for the promise are one and the same fact.
    let mut memory = holder(Some(&[]));
    assert_eq!(membership(&memory, Epoch(3)).unwrap().number, Some(RecordNumber(9)));
    tell(&mut memory, 10, Some(&["n2"]));
    let acknowledged = membership(&memory, Epoch(3)).unwrap();
    assert_eq!(acknowledged.number, Some(RecordNumber(10)));
    assert_eq!(begin(&memory).unwrap().renewers(), &acknowledged.renewers);
    assert_eq!(begin(&memory).unwrap().grant(&memory, &lease()), None, "no longer alone");
}

#[test]
fn restart_reverts_membership() {
    let memory = holder(Some(&["n2"]));
    let read: Memory = serde_json::from_str(&serde_json::to_string(&memory).unwrap()).unwrap();
    assert_eq!(begin(&read), begin(&memory), "what was acknowledged is what is found after a restart");
}

#[test]
fn new_epoch_starts_with_empty_membership() {
    for (role, renewers) in [(standby(), &["n3"][..]), (primary(), &["n2"])] {
        let mut memory = holder(None);
        memory.assignment = Some(assignment(2, 8, role, Some(renewers)));
        let fresh = membership(&memory, Epoch(3)).expect("nobody is eligible in an epoch that has just begun");
        assert_eq!((fresh.number, fresh.renewers.len()), (None, 0), "and nothing is acknowledged in it");
        let round = begin(&memory).unwrap();
        assert_eq!(round.grant(&memory, &lease()).unwrap().number, lease().number);
        memory.assignment = Some(assignment(3, 9, primary(), Some(&["n2"])));
        assert_eq!(round.grant(&memory, &lease()), None, "begun before the holder was told");
    }
}

#[test]
fn a_controller_that_knows_no_promises_is_not_gone_round() {
    assert_eq!(begin(&holder(None)), None);
    let mut memory = holder(None);
    memory.assignment = Some(assignment(2, 8, standby(), None));
    assert_eq!(begin(&memory), None, "nor in an epoch of its making: it calls leases expired by itself");
    memory.assignment = None;
    assert_eq!(begin(&memory), None, "nor by a node that was never told anything");
}

#[test]
fn only_the_holder_of_the_newest_epoch_renews() {
    let told = holder(Some(&[]));
    let newer = Memory { highest_epoch: Epoch(4), ..told.clone() };
    let fenced = Memory { fence_confirmed: Some(Epoch(3)), ..told.clone() };
    let by_operator = Memory { operator_fenced: true, ..told.clone() };
    let standby = Memory { assignment: Some(assignment(3, 9, standby(), Some(&[]))), ..told.clone() };
    let held = Memory { assignment: Some(assignment(3, 10, AssignedRole::Fenced, Some(&[]))), ..told.clone() };
    let unentitled = Memory { lease: None, consented: None, ..told.clone() };
    let round = begin(&told).expect("the holder does");
    for memory in [newer, fenced, by_operator, standby, held, unentitled] {
        assert_eq!(begin(&memory), None, "{memory:?}");
    }
    let newer = Memory { highest_epoch: Epoch(4), ..told.clone() };
    assert_eq!(round.grant(&newer, &lease()), None, "a newer epoch came meanwhile");
    let held = Memory { assignment: Some(assignment(3, 10, AssignedRole::Fenced, Some(&[]))), ..told };
    assert_eq!(round.grant(&held, &lease()), None, "an operator's fence came meanwhile");
}

#[test]
fn a_promise_is_worth_what_was_asked_for() {
    let memory = holder(Some(&["n2"]));
    let short = LeaseTimers::for_rto(Duration::from_secs(2));
    let mut round = Round::begin(&memory, &Lease { timers: short, ..lease() }, BEGAN).unwrap();
    round.promised(&node("n2"));
    let grant = round.grant(&memory, &lease()).unwrap();
    assert_eq!(grant.timers, short, "a controller lengthened the lease meanwhile; n2 promised for the shorter one");
}

#[test]
fn only_a_controller_that_knows_enough_has_authority() {
    let memory = holder(Some(&["n2"]));
    let reply = |assignment| HeartbeatReply {
        assignment,
        grant: None,
        paused: false,
        may_leave: false,
        primary_flush_lsn: None,
    };
    let told = |epoch, number| has_authority(&memory, &reply(Some(assignment(epoch, number, standby(), Some(&[])))));
    assert!(told(3, 9) && told(4, 10), "also if it grants nothing, and says that somebody else leads");
    assert!(!told(3, 8) && !told(2, 10), "a store that came back from a copy");
    assert!(!has_authority(&memory, &reply(None)), "an empty store");
}
