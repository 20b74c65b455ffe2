//! What an agent may still promise and do: consent, promotion, renewal, judged by nothing but its memory.
//!
//! Pure, so that the exploration of the protocol runs these very rules. No clock, no disk, no PostgreSQL enters.

use std::time::Duration;

use crate::domain::clock::{BootId, Moment};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::lease::Grant;
use crate::ports::agent::Memory;

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
