//! How the primary is: judged from its agent's report, its probes and its silence.
//!
//! Saturation is not death: a probe that is merely slow never lands here, only one that failed for the whole of `gray_after`.

use std::time::Duration;

use crate::domain::plan::{Reason, ReasonCode};
use crate::domain::policy::Policy;
use crate::domain::proof::{self, Proof};
use crate::domain::record::ClusterRecord;
use crate::domain::report::{PostgresState, Probe};
use crate::domain::view::View;

/// A crash-restart cycle after one backend's death needs no failover while it is shorter than this many RTOs.
const RESTART_GRACE_RTOS: u32 = 2;

/// The primary's condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Accepts writes under its lease.
    Writable,
    /// Not writable, and it is too early, or impossible, to act.
    Uncertain(Vec<Reason>),
    /// Certainly unable to write, for this reason.
    Gone(Proof, Vec<Reason>),
    /// Down, by the word of its own agent, which can fence what may be left.
    Down(Vec<Reason>),
    /// Runs and cannot commit: its agent must fence it before anybody else is promoted.
    Gray(Vec<Reason>),
}

impl Condition {
    /// True if somebody else should take over.
    pub fn is_lost(&self) -> bool {
        matches!(self, Condition::Gone(..) | Condition::Down(_) | Condition::Gray(_))
    }

    /// As reasons.
    pub fn reasons(&self, record: &ClusterRecord) -> Vec<Reason> {
        match self {
            Condition::Writable => vec![Reason::about(&record.holder, ReasonCode::Healthy, "writable")],
            Condition::Uncertain(reasons) | Condition::Down(reasons) | Condition::Gray(reasons) => reasons.clone(),
            Condition::Gone(proof, reasons) => {
                let mut all = reasons.clone();
                all.push(proof.reason(record));
                all
            }
        }
    }
}

/// Judges the holder of the record's epoch.
pub fn condition(view: &View, record: &ClusterRecord, policy: &Policy) -> Condition {
    let holder = &record.holder;
    let proof = proof::proof(view, record, policy);
    let Some(report) = view.report(holder) else {
        let silent = Reason::about(holder, ReasonCode::AgentSilent, "no report");
        return match proof {
            Ok(proof) => Condition::Gone(proof, vec![silent]),
            Err(reason) => Condition::Uncertain(vec![silent, reason]),
        };
    };
    if let Ok(Proof::FenceConfirmed) = proof {
        return Condition::Gone(Proof::FenceConfirmed, vec![Reason::about(holder, ReasonCode::PostgresDown, "fenced")]);
    }
    let probes = &report.postgres.probes;
    match report.postgres.state {
        PostgresState::NoData | PostgresState::Stopped => {
            Condition::Down(vec![Reason::about(holder, ReasonCode::PostgresDown, "no postmaster runs")])
        }
        PostgresState::Starting => {
            let why = Reason::about(holder, ReasonCode::PostgresDown, "starting or recovering");
            if failing_for(&probes.connect) >= policy.rto * RESTART_GRACE_RTOS {
                Condition::Gray(vec![why])
            } else {
                Condition::Uncertain(vec![why])
            }
        }
        PostgresState::Running | PostgresState::Unresponsive => {
            let in_recovery = report.postgres.live.as_ref().is_some_and(|live| live.in_recovery);
            if in_recovery {
                let why = Reason::about(holder, ReasonCode::PromotionUnfinished, "still in recovery");
                return Condition::Down(vec![why]);
            }
            let mut failing = Vec::new();
            for (code, probe) in
                [(ReasonCode::WriteProbeFailing, &probes.write), (ReasonCode::ConnectProbeFailing, &probes.connect)]
            {
                if probe.failing_for.is_some() {
                    let error = probe.last_error.as_deref().unwrap_or("no answer");
                    failing.push(Reason::about(
                        holder,
                        code,
                        format!("for {:.1} s: {error}", failing_for(probe).as_secs_f64()),
                    ));
                }
            }
            if failing_for(&probes.write).max(failing_for(&probes.connect)) >= policy.gray_after {
                Condition::Gray(failing)
            } else if !failing.is_empty() {
                Condition::Uncertain(failing)
            } else if report.standing.lease_epoch == Some(record.epoch) {
                Condition::Writable
            } else {
                Condition::Uncertain(vec![Reason::about(holder, ReasonCode::PromotionUnfinished, "holds no lease yet")])
            }
        }
    }
}

fn failing_for(probe: &Probe) -> Duration {
    probe.failing_for.unwrap_or(Duration::ZERO)
}
