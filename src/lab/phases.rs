//! Where the time went: the phases of an operation, from its journal. Pure.
//!
//! Moments of the journal are those of a controller on this host, so that they can be held against the lab's own.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::clock::Moment;
use crate::domain::incident::{SequenceLine, sequence_lines};
use crate::domain::operation::{Operation, OperationKind, OperationStatus, StepName, StepState};

/// Seconds of each phase; `None` where the operation had no such phase, or where there was no operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// From the fault (or the request) to the controller's first sight of it.
    pub detect: Option<f64>,
    /// From there to the decision.
    pub decide: Option<f64>,
    /// Until the old primary certainly cannot write; in a switchover: drain and shutdown. The checkpoint before it is no
    /// part of the outage; [`steps`] shows it.
    pub fence: Option<f64>,
    /// New epoch, consent and promotion until the first write is flushed.
    pub promote: Option<f64>,
    /// Every proxy leads to the new primary.
    pub redirect: Option<f64>,
    /// A real write through the client path.
    pub verify: Option<f64>,
}

/// One step of an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    /// Which step.
    pub step: String,
    /// `succeeded`, `failed`, `unknown` or `running`.
    pub outcome: String,
    /// From its first start to its last end.
    pub seconds: Option<f64>,
}

/// The phases of `operation` after a fault at `fault`.
pub fn phases(operation: &Operation, fault: Moment) -> Phases {
    Phases {
        detect: Some(seconds(operation.detected_at.since(fault))),
        decide: Some(seconds(operation.decided_at.since(operation.detected_at))),
        fence: union(operation, &[StepName::Fence, StepName::Drain, StepName::Demote]),
        promote: union(operation, &[StepName::AdvanceEpoch, StepName::Freeze, StepName::Promote]),
        redirect: union(operation, &[StepName::Redirect]),
        verify: union(operation, &[StepName::Verify]),
    }
}

/// Every step of `operation`, in the order in which they began.
pub fn steps(operation: &Operation) -> Vec<StepTime> {
    if matches!(operation.kind, OperationKind::Sequence { .. }) {
        let time = |line: SequenceLine| {
            let is_passed_over = line.detail.as_deref().is_some_and(|detail| detail.starts_with("passed over"));
            let outcome = if is_passed_over { "passed_over".to_owned() } else { line.outcome };
            StepTime { step: line.step, outcome, seconds: line.seconds }
        };
        return sequence_lines(operation).into_iter().map(time).collect();
    }
    let mut order: Vec<StepName> = Vec::new();
    for event in &operation.journal {
        if !order.contains(&event.step) {
            order.push(event.step);
        }
    }
    order
        .into_iter()
        .map(|step| StepTime {
            step: step.label().to_owned(),
            outcome: outcome(operation, step).to_owned(),
            seconds: union(operation, &[step]),
        })
        .collect()
}

/// The operation that moved the primary between `fault` and `until`: the first that succeeded, else the latest.
pub fn movement(history: &[Operation], fault: Moment, until: Moment) -> Option<&Operation> {
    let moves = || {
        history.iter().filter(|operation| {
            operation.kind.moves_primary() && operation.decided_at >= fault && operation.decided_at <= until
        })
    };
    moves()
        .filter(|operation| operation.status == OperationStatus::Succeeded)
        .min_by_key(|operation| operation.decided_at)
        .or_else(|| moves().max_by_key(|operation| operation.decided_at))
}

fn outcome(operation: &Operation, step: StepName) -> &'static str {
    match operation.last(step).map(|event| &event.state) {
        Some(StepState::Succeeded { .. }) => "succeeded",
        Some(StepState::Failed { .. }) => "failed",
        Some(StepState::Unknown { .. }) => "unknown",
        Some(StepState::Started) | None => "running",
    }
}

/// Time that the steps took together; time in which two ran at once counts once.
fn union(operation: &Operation, steps: &[StepName]) -> Option<f64> {
    let mut spans: Vec<(Moment, Moment)> = steps.iter().flat_map(|step| spans(operation, *step)).collect();
    if spans.is_empty() {
        return None;
    }
    spans.sort_unstable();
    let mut total = Duration::ZERO;
    let mut reached = Moment::default();
    for (from, to) in spans {
        total += to.since(from.max(reached));
        reached = reached.max(to);
    }
    Some(seconds(total))
}

/// From each start of `step` to the end that follows it.
fn spans(operation: &Operation, step: StepName) -> Vec<(Moment, Moment)> {
    let mut spans = Vec::new();
    let mut began = None;
    for event in operation.journal.iter().filter(|event| event.step == step) {
        match (&event.state, began) {
            (StepState::Started, None) => began = Some(event.at),
            // Resumed by a controller that came after a crash: the first start counts.
            (StepState::Started, Some(_)) => {}
            (_, Some(from)) => {
                spans.push((from, event.at));
                began = None;
            }
            // An end without a start: the step was found done.
            (_, None) => spans.push((event.at, event.at)),
        }
    }
    spans
}

fn seconds(duration: Duration) -> f64 {
    // Microseconds are what the clock has.
    duration.as_micros() as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::WallTime;
    use crate::domain::command::CommandOutput;
    use crate::domain::epoch::Epoch;
    use crate::domain::ids::{ClusterName, NodeName, OperationId};
    use crate::domain::operation::{JOURNAL_FORMAT, OperationKind, StepEvent};

    fn operation(kind: OperationKind, decided_milliseconds: u64, journal: &[(StepName, &str, u64)]) -> Operation {
        let done = StepState::Succeeded { output: CommandOutput::default() };
        Operation {
            format: JOURNAL_FORMAT,
            id: OperationId("o".into()),
            cluster: ClusterName::new("main").expect("valid"),
            kind,
            status: OperationStatus::Succeeded,
            origin: "automatic".into(),
            reasons: Vec::new(),
            epoch_before: Epoch(1),
            epoch_after: Some(Epoch(2)),
            cancel_requested: false,
            detected_at: Moment((decided_milliseconds - 2) * 1000),
            decided_at: Moment(decided_milliseconds * 1000),
            begun_wall: WallTime(0),
            ended_at: None,
            ended_wall: None,
            message: None,
            evidence: Vec::new(),
            risks: Default::default(),
            loss: None,
            journal: journal
                .iter()
                .map(|(step, state, at)| StepEvent {
                    step: *step,
                    attempt: 1,
                    state: match *state {
                        "started" => StepState::Started,
                        "failed" => StepState::Failed { error: "no".into() },
                        _ => done.clone(),
                    },
                    epoch: Epoch(1),
                    at: Moment(at * 1000),
                    wall: WallTime(0),
                })
                .collect(),
        }
    }

    fn failover() -> OperationKind {
        let name = |name| NodeName::new(name).expect("valid");
        OperationKind::Failover { from: name("n1"), to: name("n2"), accept_data_loss: false, old_primary_is_off: false }
    }

    #[test]
    fn phases_come_from_the_journal_and_the_fault() {
        use StepName::{AdvanceEpoch, Fence, Freeze, Promote, Redirect, Verify};
        let operation = operation(
            failover(),
            107,
            &[
                (Fence, "started", 107),
                (Fence, "done", 110),
                (Freeze, "started", 110),
                (AdvanceEpoch, "started", 112),
                (Freeze, "done", 114),
                (AdvanceEpoch, "done", 116),
                (Promote, "started", 116),
                (Promote, "failed", 126),
                (Promote, "started", 136),
                (Promote, "done", 146),
                (Redirect, "started", 146),
                (Redirect, "done", 148),
            ],
        );
        let phases = phases(&operation, Moment(100_000));
        assert_eq!(phases.detect, Some(0.005));
        assert_eq!(phases.decide, Some(0.002));
        assert_eq!(phases.fence, Some(0.003));
        // 110..116 once although two steps overlap, and both attempts without the pause between them.
        assert_eq!(phases.promote, Some(0.026));
        assert_eq!(phases.redirect, Some(0.002));
        assert_eq!(phases.verify, None, "there was no such step");
        let order: Vec<String> = steps(&operation).into_iter().map(|step| step.step).collect();
        assert_eq!(order, ["fence", "freeze", "advance_epoch", "promote", "redirect"]);
        assert!(!order.contains(&Verify.label().to_owned()));
    }

    #[test]
    fn a_step_resumed_after_a_crash_counts_from_its_first_start() {
        let operation = operation(
            failover(),
            100,
            &[
                (StepName::Promote, "started", 100),
                (StepName::Promote, "started", 1100),
                (StepName::Promote, "done", 1150),
                (StepName::Redirect, "done", 1151),
            ],
        );
        let phases = phases(&operation, Moment(99_000));
        assert_eq!(phases.promote, Some(1.05));
        assert_eq!(phases.redirect, Some(0.0), "found done");
    }

    #[test]
    fn the_movement_is_the_one_that_belongs_to_the_fault() {
        let rejoin = OperationKind::Rejoin { node: NodeName::new("n1").expect("valid"), reclone: false };
        let mut refused = operation(failover(), 190, &[]);
        refused.status = OperationStatus::Refused;
        let history = [
            operation(failover(), 900, &[]),
            operation(failover(), 50, &[]),
            refused,
            operation(failover(), 200, &[]),
            operation(rejoin, 150, &[]),
        ];
        let found = |from: u64, until: u64| {
            movement(&history, Moment(from * 1000), Moment(until * 1000)).map(|operation| operation.decided_at.0 / 1000)
        };
        assert_eq!(found(100, 500), Some(200), "not the one before the fault, and not the next fault's");
        assert_eq!(found(100, 195), Some(190), "what failed says more than nothing");
        assert_eq!(found(300, 500), None);
    }
}
