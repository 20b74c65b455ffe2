//! What an agent may still promise and do: consent, promotion, renewal, promises to a holder, judged by nothing but its memory.
//! Whose promises a holder needs is said in [`super::membership`].
//!
//! Pure, so that the exploration of the protocol runs these very rules. No clock, no disk, no PostgreSQL enters.

use std::time::Duration;

pub use super::membership::{Membership, Round, membership};
use crate::domain::clock::{BootId, Moment};
use crate::domain::command::{AssignedRole, PromiseRequest};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::lease::{Grant, LeaseTimers};
use crate::domain::report::Promised;
use crate::ports::agent::{Memory, Promise};

/// Why a command of `epoch` is refused before anything else is asked.
pub fn outdated_because(memory: &Memory, epoch: Epoch) -> Option<String> {
    let highest = memory.highest_epoch;
    (epoch < highest).then(|| format!("the command is of epoch {epoch}, the node has seen epoch {highest}"))
}

/// Why an assignment of this epoch and number is not taken: it is older than what is known.
pub fn assignment_refused_because(memory: &Memory, epoch: Epoch, number: RecordNumber) -> Option<String> {
    let (known_epoch, known_number) = (memory.highest_epoch, memory.highest_number);
    (epoch < known_epoch || number < known_number).then(|| {
        format!(
            "the assignment is of epoch {epoch} and record number {number}, the node knows epoch {known_epoch} and \
             number {known_number}"
        )
    })
}

/// How long a memory this young must still wait before it consents: what a lost one had promised has run out one
/// promise after it was lost, or after the host's boot (trace `wiped_agent_consents_again`).
pub fn consent_waits(memory: &Memory, now: Moment, boot: &BootId, promise: Duration) -> Duration {
    let began = if memory.memory_since.boot == *boot { memory.memory_since.at } else { Moment(0) };
    promise.saturating_sub(now.since(began))
}

/// Why the node does not consent to be promoted in `epoch`.
pub fn no_consent_because(memory: &Memory, epoch: Epoch) -> Option<String> {
    if memory.is_fenced_in(epoch) {
        return Some(format!("the node confirmed its fence in epoch {epoch}"));
    }
    if epoch < memory.highest_epoch {
        return Some(format!("the node has seen epoch {}", memory.highest_epoch));
    }
    if memory.half_rejoined {
        return Some("a rewind or reclone of the node did not finish: rejoin it".to_owned());
    }
    if memory.operator_fenced {
        return Some("an operator fenced the node: unfence it".to_owned());
    }
    None
}

/// Stores the consent; what was consented to, and seen, before is never unsaid.
pub fn consent(memory: &mut Memory, epoch: Epoch, boot: &BootId) {
    memory.consented = memory.consented.max(Some(epoch));
    memory.consented_boot = Some(boot.clone());
    memory.highest_epoch = memory.highest_epoch.max(epoch);
}

/// Why a command to become the primary of `epoch` under `grant` is refused.
pub fn no_promotion_because(memory: &Memory, epoch: Epoch, grant: &Grant, boot: &BootId) -> Option<String> {
    if grant.epoch != epoch {
        return Some(format!("the grant is for epoch {}, the command is of epoch {epoch}", grant.epoch));
    }
    if memory.consented != Some(epoch) {
        return Some(format!("the node has not consented to be promoted in epoch {epoch}: freeze it first"));
    }
    // The lease counts from the consent, by a clock that began again with the reboot.
    if memory.consented_boot.as_ref() != Some(boot) {
        return Some(format!("the host was rebooted after the node consented to epoch {epoch}"));
    }
    if memory.is_fenced_in(epoch) {
        return Some(format!("the node confirmed its fence in epoch {epoch}"));
    }
    if memory.operator_fenced {
        return Some("an operator fenced the node: unfence it".to_owned());
    }
    memory.half_rejoined.then(|| "a rewind or reclone of the node did not finish: rejoin it".to_owned())
}

/// True if the node may use grants of `epoch` at all: it holds that epoch's lease, or consented to it, and left it by no fence.
pub fn may_renew(memory: &Memory, epoch: Epoch) -> bool {
    let leased = memory.lease.as_ref().is_some_and(|lease| lease.epoch == epoch);
    (leased || memory.consented == Some(epoch)) && !memory.is_fenced_in(epoch)
}

/// For how much longer the promise given to the holder of an older epoch than `epoch` keeps the node from consenting.
/// `fence_confirmed`: nobody can write any more in that epoch and before it, which replaces the promises given there.
pub fn promise_waits(
    memory: &Memory,
    epoch: Epoch,
    fence_confirmed: Option<Epoch>,
    now: Moment,
    boot: &BootId,
) -> Duration {
    match promised(memory, now, boot) {
        Some(promised) if promised.epoch < epoch && fence_confirmed.is_none_or(|fenced| fenced < promised.epoch) => {
            promised.remaining
        }
        _ => Duration::ZERO,
    }
}

/// How long a fence in `epoch` is not confirmed yet although PostgreSQL is gone: a confirmation says that nobody writes in `epoch` and
/// before it, and a node that never got as far as consenting to `epoch` may have renewed the lease of the holder before it
/// (trace `fence_of_an_unused_epoch_while_the_older_lease_runs`).
pub fn confirmation_waits(memory: &Memory, epoch: Epoch, now: Moment, boot: &BootId, promise: Duration) -> Duration {
    // What it had promised ran out, or was replaced by a fence, before it held this epoch.
    let held = memory.consented == Some(epoch) || memory.lease.as_ref().is_some_and(|lease| lease.epoch == epoch);
    if held {
        return Duration::ZERO;
    }
    consent_waits(memory, now, boot, promise).max(promise_waits(memory, epoch, None, now, boot))
}

/// The promise that binds the node now.
pub fn promised(memory: &Memory, now: Moment, boot: &BootId) -> Option<Promised> {
    let promise = memory.promise.as_ref()?;
    let remaining = binds_until(promise, boot).since(now);
    (!remaining.is_zero()).then_some(Promised { epoch: promise.epoch, remaining })
}

/// A clock that began again tells nothing of a promise but its length.
fn binds_until(promise: &Promise, boot: &BootId) -> Moment {
    if promise.boot == *boot { promise.until } else { Moment(0).plus(promise.length) }
}

/// Why the node does not promise the holder of `request.epoch` to stay a standby.
pub fn no_promise_because(memory: &Memory, request: &PromiseRequest, now: Moment, boot: &BootId) -> Option<String> {
    let (epoch, known) = (request.epoch, memory.highest_epoch);
    if request.cluster != memory.cluster {
        return Some(format!("the request is of cluster {}, this node belongs to {}", request.cluster, memory.cluster));
    }
    // One node reached under two names would promise twice, and the other be promoted (trace `any_one_candidate_renews`).
    if request.standby != memory.node {
        return Some(format!(
            "the request is to {}, and this is {}: correct its agent's address",
            request.standby, memory.node
        ));
    }
    if epoch != known {
        return Some(format!("the request is of epoch {epoch}, the node knows epoch {known}"));
    }
    if memory.consented >= Some(epoch) {
        return Some(format!("the node itself consented to be promoted in epoch {epoch} or later"));
    }
    let assigned = memory.assignment.as_ref().filter(|last| last.epoch == epoch);
    if assigned.is_some_and(|last| last.system_identifier != request.system_identifier) {
        return Some(format!("the request is about data with system identifier {}", request.system_identifier));
    }
    let follows = assigned.map(|last| match &last.role {
        AssignedRole::Standby { primary, .. } => *primary == request.holder,
        // A fenced node may well promise what it could not break.
        AssignedRole::Fenced => true,
        AssignedRole::Primary { .. } => false,
    });
    if follows != Some(true) {
        return Some(format!("the node does not know {} as the holder of epoch {epoch}", request.holder));
    }
    let young = consent_waits(memory, now, boot, request.timers.promise());
    (!young.is_zero()).then(|| format!("the node's memory is young, it promises nothing for another {young:?}"))
}

/// Stores a promise; of two to the same epoch the one that binds longer stays, before a reboot and after it.
pub fn promise(memory: &mut Memory, epoch: Epoch, timers: &LeaseTimers, now: Moment, boot: &BootId) {
    let (mut until, mut length) = (now.plus(timers.promise()), timers.promise());
    if let Some(last) = memory.promise.as_ref().filter(|last| last.epoch == epoch) {
        until = until.max(binds_until(last, boot));
        length = length.max(last.length);
    }
    memory.promise = Some(Promise { epoch, until, boot: boot.clone(), length });
}

#[cfg(test)]
mod tests;
