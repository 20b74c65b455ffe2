//! What an agent does with the PostgreSQL that it finds when it starts.
//!
//! Pure: one table, from what is remembered and what is there. When in doubt, nothing writes.

use crate::domain::clock::{BootId, Moment};
use crate::domain::epoch::Epoch;
use crate::domain::report::ControlData;
use crate::ports::agent::{HeldLease, Memory};
use crate::ports::postgres::Presence;

/// What to do first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartAction {
    /// It runs under a lease that has not run out: go on as if nothing had happened.
    AdoptPrimary {
        /// The lease.
        lease: HeldLease,
    },
    /// It runs as a primary that was left running on purpose, or that nobody ever managed: ask for a lease first.
    AskForLease {
        /// The epoch it may be granted in; `None` if the node was never managed: then it is left alone whatever the answer.
        epoch: Option<Epoch>,
    },
    /// It runs as a standby.
    AdoptStandby,
    /// It runs without a right to: kill it.
    Fence {
        /// Why.
        reason: &'static str,
    },
    /// Start it as a standby.
    StartStandby,
    /// Leave it down until a command comes.
    StayDown {
        /// Why.
        reason: &'static str,
    },
}

/// What is known at start.
#[derive(Debug, Clone)]
pub struct Found<'a> {
    /// What the node remembers.
    pub memory: &'a Memory,
    /// The lease that the guard held.
    pub guarded: Option<HeldLease>,
    /// What is there.
    pub presence: &'a Presence,
    /// `pg_controldata`.
    pub control: Option<&'a ControlData>,
    /// Now.
    pub now: Moment,
    /// This boot.
    pub boot: &'a BootId,
}

/// The table.
pub fn decide(found: &Found<'_>) -> StartAction {
    let memory = found.memory;
    let managed = memory.highest_epoch > Epoch(0);
    let forbidden = if memory.half_rejoined {
        Some("a rewind or reclone did not finish: rejoin the node")
    } else if memory.operator_fenced {
        Some("an operator fenced the node")
    } else {
        None
    };
    match found.presence {
        Presence::NoData => StartAction::StayDown { reason: "there is no data: reclone the node" },
        Presence::Orphans if managed => StartAction::Fence { reason: "processes without a postmaster are left" },
        Presence::Orphans => StartAction::StayDown { reason: "processes without a postmaster are left" },
        Presence::Running { .. } => match (forbidden, found.control.map(role)) {
            (Some(reason), _) => StartAction::Fence { reason },
            (None, Some(Role::Standby)) => StartAction::AdoptStandby,
            (None, Some(Role::Primary)) => running_primary(found, managed),
            // A control file that cannot be read belongs to a sick disk: only a lease speaks for this PostgreSQL.
            (None, None) => running_primary(found, managed),
        },
        Presence::Stopped => match (forbidden, found.control.map(role)) {
            (Some(reason), _) => StartAction::StayDown { reason },
            (None, Some(Role::Standby)) => StartAction::StartStandby,
            (None, Some(Role::Primary)) => StartAction::StayDown {
                reason: "the data is a primary's and may have diverged: promote or rejoin the node",
            },
            (None, None) => StartAction::StayDown { reason: "pg_control cannot be read" },
        },
    }
}

fn running_primary(found: &Found<'_>, managed: bool) -> StartAction {
    let memory = found.memory;
    if !managed {
        return StartAction::AskForLease { epoch: None };
    }
    if let Some(lease) = unexpired_lease(found) {
        return StartAction::AdoptPrimary { lease };
    }
    match memory.left_running {
        Some(epoch) if epoch == memory.highest_epoch && !memory.is_fenced_in(epoch) => {
            StartAction::AskForLease { epoch: Some(epoch) }
        }
        _ => StartAction::Fence { reason: "it runs as a primary without a lease" },
    }
}

/// The guard's word counts before the file's: the file is written less often than the lease is renewed.
fn unexpired_lease(found: &Found<'_>) -> Option<HeldLease> {
    let memory = found.memory;
    let stored =
        memory.lease.as_ref().filter(|lease| lease.boot == *found.boot).zip(memory.timers).map(|(lease, timers)| {
            HeldLease {
                epoch: lease.epoch,
                deadline: lease.deadline,
                kill_at: lease.deadline.minus(timers.kill_budget),
            }
        });
    found
        .guarded
        .into_iter()
        .chain(stored)
        .filter(|lease| lease.epoch == memory.highest_epoch && !memory.is_fenced_in(lease.epoch))
        .filter(|lease| found.now < lease.kill_at)
        .max_by_key(|lease| lease.deadline)
}

/// Whose data it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Written by a primary: `in production`, `shut down`, or on the way there.
    Primary,
    /// Written by a standby.
    Standby,
}

/// The role that wrote the control file last.
pub fn role(control: &ControlData) -> Role {
    match control.cluster_state.as_str() {
        "in archive recovery" | "shut down in recovery" => Role::Standby,
        _ => Role::Primary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{ClusterName, NodeName, SystemIdentifier};
    use crate::domain::lease::LeaseTimers;
    use crate::domain::lsn::{Lsn, Timeline};
    use crate::ports::agent::{OwnLease, StampedMoment};
    use std::time::Duration;

    const RUNNING: Presence = Presence::Running { postmaster: 7 };

    fn boot() -> BootId {
        BootId("this".into())
    }

    fn memory(epoch: u64) -> Memory {
        let since = StampedMoment { boot: boot(), at: Moment(0) };
        let mut memory = Memory::new(ClusterName::new("main").unwrap(), NodeName::new("n1").unwrap(), since);
        memory.highest_epoch = Epoch(epoch);
        memory
    }

    fn control(state: &str) -> ControlData {
        ControlData {
            system_identifier: SystemIdentifier(1),
            cluster_state: state.to_owned(),
            timeline: Timeline(1),
            checkpoint: Lsn(1),
            major_version: 15,
        }
    }

    fn held(epoch: u64) -> HeldLease {
        HeldLease { epoch: Epoch(epoch), deadline: Moment(1_000), kill_at: Moment(900) }
    }

    fn action(memory: &Memory, presence: &Presence, state: Option<&str>, guarded: Option<HeldLease>) -> StartAction {
        let control = state.map(control);
        let boot = boot();
        let found = Found { memory, guarded, presence, control: control.as_ref(), now: Moment(500), boot: &boot };
        decide(&found)
    }

    fn is_fence(action: &StartAction) -> bool {
        matches!(action, StartAction::Fence { .. })
    }

    fn stays_down(action: &StartAction) -> bool {
        matches!(action, StartAction::StayDown { .. })
    }

    #[test]
    fn a_primary_goes_on_only_under_an_unexpired_lease() {
        let primary = Some("in production");
        assert_eq!(action(&memory(3), &RUNNING, primary, Some(held(3))), StartAction::AdoptPrimary { lease: held(3) });
        assert!(is_fence(&action(&memory(3), &RUNNING, primary, None)));
        assert!(is_fence(&action(&memory(3), &RUNNING, primary, Some(held(2)))), "a lease of an older epoch");
        let late = HeldLease { kill_at: Moment(500), ..held(3) };
        assert!(is_fence(&action(&memory(3), &RUNNING, primary, Some(late))), "the guard is about to kill");
        let mut fenced = memory(3);
        fenced.confirm_fence(Epoch(3));
        assert!(is_fence(&action(&fenced, &RUNNING, primary, Some(held(3)))));
    }

    #[test]
    fn a_stored_lease_is_void_in_another_boot() {
        let mut remembered = memory(3);
        remembered.timers = Some(LeaseTimers::for_rto(Duration::from_secs(5)));
        let deadline = Moment(10_000_000);
        remembered.lease = Some(OwnLease { epoch: Epoch(3), deadline, boot: boot() });
        assert!(matches!(
            action(&remembered, &RUNNING, Some("in production"), None),
            StartAction::AdoptPrimary { lease } if lease.deadline == deadline
        ));
        remembered.lease = Some(OwnLease { epoch: Epoch(3), deadline, boot: BootId("other".into()) });
        assert!(is_fence(&action(&remembered, &RUNNING, Some("in production"), None)));
    }

    #[test]
    fn a_node_that_was_never_managed_is_left_alone() {
        let primary = Some("in production");
        assert_eq!(action(&memory(0), &RUNNING, primary, None), StartAction::AskForLease { epoch: None });
        assert!(stays_down(&action(&memory(0), &Presence::Stopped, Some("shut down"), None)));
        assert!(stays_down(&action(&memory(0), &Presence::Orphans, primary, None)));
        assert!(is_fence(&action(&memory(1), &Presence::Orphans, primary, None)));
    }

    #[test]
    fn a_primary_left_running_while_paused_is_asked_about() {
        let mut left = memory(3);
        left.left_running = Some(Epoch(3));
        assert_eq!(
            action(&left, &RUNNING, Some("in production"), None),
            StartAction::AskForLease { epoch: Some(Epoch(3)) }
        );
        left.highest_epoch = Epoch(4);
        assert!(is_fence(&action(&left, &RUNNING, Some("in production"), None)), "the cluster went on without it");
    }

    #[test]
    fn standbys_start_and_primaries_data_stays_down() {
        for state in ["shut down in recovery", "in archive recovery"] {
            assert_eq!(action(&memory(2), &Presence::Stopped, Some(state), None), StartAction::StartStandby);
            assert_eq!(action(&memory(2), &RUNNING, Some(state), None), StartAction::AdoptStandby);
        }
        for state in ["in production", "shut down", "shutting down", "in crash recovery", "starting up"] {
            assert!(stays_down(&action(&memory(2), &Presence::Stopped, Some(state), Some(held(2)))), "{state}");
        }
        assert!(stays_down(&action(&memory(2), &Presence::NoData, None, None)));
        assert!(stays_down(&action(&memory(2), &Presence::Stopped, None, None)));
    }

    #[test]
    fn fenced_and_half_rejoined_nodes_never_run() {
        let mut fenced = memory(2);
        fenced.operator_fenced = true;
        let mut half = memory(2);
        half.half_rejoined = true;
        for remembered in [fenced, half] {
            for state in [Some("in archive recovery"), Some("in production"), None] {
                assert!(is_fence(&action(&remembered, &RUNNING, state, Some(held(2)))));
                assert!(stays_down(&action(&remembered, &Presence::Stopped, state, None)));
            }
        }
    }
}
