//! A sequence: its steps in their order, each tried as often as it may be, until one that must not fail has failed.
//!
//! Nothing is undone: what a step did outside is known to the step alone. A step that was cut off is run again under the same key.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Effect, Next, Progress, Step, progress, still_to_wait};
use crate::domain::backup::BackupType;
use crate::domain::operation::{Operation, OperationStatus, StepName, StepState};
use crate::domain::sequence::{OnError, SequenceStep, StepAction, StepRun, outputs_of};
use crate::domain::sequence_step::SequenceIndex;
use crate::domain::view::View;

/// Between two attempts at a step.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// The runner ends a step at its own time-out; this is for a runner that does not.
const SLACK: Duration = Duration::from_secs(15);

/// What a built-in step waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Awaited {
    /// This node streams from the primary.
    Standby(String),
    /// Every node streams, and the ledger names a standby.
    Redundancy,
}

/// An operation that a built-in step begins and waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// A backup.
    Backup(BackupType),
    /// A drill.
    Drill,
}

/// `Ok`: it is so, in words; `Err`: what is missing.
pub fn is_met(awaited: &Awaited, view: &View) -> Result<String, String> {
    let record = view.record.as_ref().ok_or("there is no epoch yet")?;
    let primary = view.report(&record.holder).and_then(|report| report.postgres.live.as_ref());
    let primary = primary.filter(|live| !live.in_recovery).ok_or_else(|| format!("{} is no primary", record.holder))?;
    let streams = |node: &str| primary.standbys.iter().any(|row| row.node == node && row.state == "streaming");
    match awaited {
        Awaited::Standby(node) if *node == record.holder.as_str() => Ok(format!("{node} is the primary again")),
        Awaited::Standby(node) if streams(node) => Ok(format!("{node} streams from {}", record.holder)),
        Awaited::Standby(node) => Err(format!("{node} does not stream from {}", record.holder)),
        Awaited::Redundancy => {
            let others = view.nodes.keys().filter(|node| **node != record.holder);
            let missing: Vec<&str> = others.map(|node| node.as_str()).filter(|node| !streams(node)).collect();
            if !missing.is_empty() {
                return Err(format!("{} does not stream", missing.join(", ")));
            }
            if record.eligible.is_empty() {
                return Err("no standby is known to hold every confirmed commit".to_owned());
            }
            Ok(format!("{} standbys stream", view.nodes.len() - 1))
        }
    }
}

pub(super) fn next(operation: &Operation, steps: &[SequenceStep], view: &View) -> Next {
    let epoch = operation.epoch_before;
    let end = |status, message| Next::End { status, message };
    let mut passed_over: Vec<String> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let Some(place) = SequenceIndex::new(index) else { break };
        let name = StepName::Sequence(place);
        let attempt = match progress(operation, name, epoch) {
            Progress::Done(_) => continue,
            Progress::Due(attempt) => attempt,
            Progress::Failed { attempts, error, .. } if attempts > step.retries => match step.on_error {
                OnError::Continue => {
                    passed_over.push(format!("{} failed and was passed over: {}", step.name, first_line(error)));
                    continue;
                }
                OnError::Stop if operation.cancel_requested => {
                    let message = format!("cancelled at step {}: {}", step.name, first_line(error));
                    return end(OperationStatus::Cancelled, message);
                }
                OnError::Stop => {
                    let message = format!("step {} failed: {}", step.name, first_line(error));
                    return end(OperationStatus::Failed, message);
                }
            },
            Progress::Failed { attempts, at, .. } => match still_to_wait(view.now, at, RETRY_PAUSE) {
                None => attempts + 1,
                Some(until) => return Next::Wait { until, why: format!("before step {} is tried again", step.name) },
            },
        };
        if operation.cancel_requested {
            return end(OperationStatus::Cancelled, format!("cancelled before step {}", step.name));
        }
        // What was configured for one primary must not be done for another.
        if let Some(record) = view.record.as_ref().filter(|record| record.epoch != epoch) {
            let message =
                format!("not gone on with at step {}: the primary moved on to epoch {}", step.name, record.epoch);
            return end(OperationStatus::Failed, message);
        }
        let effect = effect(operation, steps, index, attempt, view);
        let timeout = Duration::from_secs(step.timeout_seconds);
        let timeout = if matches!(effect, Effect::RunStep { .. }) { timeout + SLACK } else { timeout };
        return Next::Run(Box::new(Step { name, attempt, epoch, effect, timeout }));
    }
    let done = match steps.len() - passed_over.len() {
        1 => "1 step was carried out".to_owned(),
        count => format!("{count} steps were carried out"),
    };
    passed_over.insert(0, done);
    end(OperationStatus::Succeeded, passed_over.join("; "))
}

fn first_line(error: &str) -> &str {
    error.lines().next().unwrap_or(error)
}

fn effect(operation: &Operation, steps: &[SequenceStep], index: usize, attempt: u32, view: &View) -> Effect {
    let step = &steps[index];
    let run = run_of(operation, steps, index, attempt);
    match (&step.action, &view.record) {
        (StepAction::Rejoin, _) => {
            let node = run.variables.get("old_primary").cloned().unwrap_or_default();
            Effect::Await { what: Awaited::Standby(node) }
        }
        (StepAction::Redundancy, _) => Effect::Await { what: Awaited::Redundancy },
        (StepAction::Backup { backup_type }, _) => {
            Effect::Begin { what: Errand::Backup(*backup_type), origin: origin(&run) }
        }
        (StepAction::Drill, _) => Effect::Begin { what: Errand::Drill, origin: origin(&run) },
        (StepAction::Verify, Some(record)) => Effect::VerifyWrites { expect: record.holder_address.clone() },
        _ => Effect::RunStep { run: Box::new(run) },
    }
}

/// Who asks for the operation that an attempt at a step begins: another controller that goes on finds it by this.
fn origin(run: &StepRun) -> String {
    format!("sequence:{}/{}", run.key, run.attempt)
}

/// The step at `index`, with all that its templates may name.
pub fn run_of(operation: &Operation, steps: &[SequenceStep], index: usize, attempt: u32) -> StepRun {
    let (mut outputs, mut outcomes) = (BTreeMap::new(), BTreeMap::new());
    for (earlier, step) in steps[..index].iter().enumerate() {
        let Some(place) = SequenceIndex::new(earlier) else { break };
        let found = operation.journal.iter().rev().find_map(|event| match &event.state {
            StepState::Succeeded { output } if event.step == StepName::Sequence(place) => output.note.as_deref(),
            _ => None,
        });
        outputs.insert(step.name.clone(), outputs_of(found.unwrap_or_default()));
        let outcome = match operation.last(StepName::Sequence(place)).map(|event| &event.state) {
            Some(StepState::Succeeded { .. }) => "succeeded",
            Some(StepState::Failed { .. }) => "failed",
            Some(StepState::Unknown { .. }) => "unknown",
            // It is not known how it will end: what is shown before it began.
            Some(StepState::Started) | None => "",
        };
        outcomes.insert(step.name.clone(), outcome.to_owned());
    }
    let (sequence, variables) = match &operation.kind {
        crate::domain::operation::OperationKind::Sequence { name, variables, .. } => (name.clone(), variables.clone()),
        _ => (String::new(), BTreeMap::new()),
    };
    let step = steps[index].clone();
    StepRun {
        sequence,
        key: format!("{}/{}/{}", operation.id, step.name, operation.epoch_before),
        step,
        operation: operation.id.to_string(),
        attempt,
        variables,
        outcomes,
        outputs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::{Moment, WallTime};
    use crate::domain::command::CommandOutput;
    use crate::domain::epoch::Epoch;
    use crate::domain::ids::{ClusterName, NodeName, OperationId};
    use crate::domain::operation::{JOURNAL_FORMAT, OperationKind, StepEvent};

    fn step(name: &str, retries: u32, on_error: OnError) -> SequenceStep {
        let action =
            StepAction::Command { command: vec!["true".to_owned()], environment: BTreeMap::new(), directory: None };
        SequenceStep { name: name.to_owned(), action, timeout_seconds: 5, retries, on_error, condition: None }
    }

    fn operation(steps: Vec<SequenceStep>) -> Operation {
        let node = NodeName::new("n2").expect("valid");
        let variables = [("old_primary".to_owned(), "n1".to_owned())].into();
        Operation {
            format: JOURNAL_FORMAT,
            id: OperationId("op".to_owned()),
            cluster: ClusterName::new("main").expect("valid"),
            kind: OperationKind::Sequence { name: "restore".to_owned(), cause: None, primary: node, steps, variables },
            status: OperationStatus::Running,
            origin: "automatic".to_owned(),
            reasons: Vec::new(),
            epoch_before: Epoch(3),
            epoch_after: None,
            cancel_requested: false,
            detected_at: Moment(0),
            decided_at: Moment(0),
            begun_wall: WallTime(0),
            ended_at: None,
            ended_wall: None,
            message: None,
            journal: Vec::new(),
            evidence: Vec::new(),
            risks: Default::default(),
            loss: None,
        }
    }

    fn view() -> View {
        View {
            now: Moment(1_000_000_000),
            wall: WallTime(0),
            leading_since: Moment(0),
            leads_for: None,
            record: None,
            nodes: BTreeMap::new(),
            proxies: BTreeMap::new(),
            sighting: None,
            outlooks: Default::default(),
        }
    }

    /// Runs to the end; `fail` says which attempts fail. Returns what was run, and the end.
    fn drive(operation: &mut Operation, fail: impl Fn(&str, u32) -> bool) -> (Vec<String>, OperationStatus, String) {
        let mut ran = Vec::new();
        let mut view = view();
        for _ in 0..100 {
            view.now = view.now.plus(Duration::from_secs(10));
            let OperationKind::Sequence { steps, .. } = operation.kind.clone() else { unreachable!("made above") };
            match next(operation, &steps, &view) {
                Next::Run(step) => {
                    let Effect::RunStep { run } = &step.effect else { panic!("a step that reaches outside") };
                    ran.push(format!("{}#{} {}", run.step.name, step.attempt, run.key));
                    let state = if fail(&run.step.name, step.attempt) {
                        StepState::Failed { error: "it broke\ndetails".to_owned() }
                    } else {
                        let note = Some(format!("output: from={}", run.step.name));
                        StepState::Succeeded { output: CommandOutput { note, ..CommandOutput::default() } }
                    };
                    for state in [StepState::Started, state] {
                        let (at, wall) = (view.now, view.wall);
                        let (name, attempt, epoch) = (step.name, step.attempt, step.epoch);
                        operation.journal.push(StepEvent { step: name, attempt, state, epoch, at, wall });
                    }
                }
                Next::End { status, message } => return (ran, status, message),
                other => panic!("nothing else is to come: {other:?}"),
            }
        }
        panic!("it never ends")
    }

    #[test]
    fn steps_run_in_their_order_under_keys_that_attempts_share() {
        let mut one = operation(vec![step("first", 2, OnError::Stop), step("second", 0, OnError::Stop)]);
        let (ran, status, message) = drive(&mut one, |name, attempt| name == "first" && attempt < 3);
        assert_eq!(ran, ["first#1 op/first/3", "first#2 op/first/3", "first#3 op/first/3", "second#1 op/second/3"]);
        assert_eq!((status, message.as_str()), (OperationStatus::Succeeded, "2 steps were carried out"));
    }

    #[test]
    fn a_failure_stops_or_is_passed_over() {
        let mut stops = operation(vec![step("first", 0, OnError::Stop), step("second", 0, OnError::Stop)]);
        let (ran, status, message) = drive(&mut stops, |_, _| true);
        assert_eq!((ran.len(), status), (1, OperationStatus::Failed));
        assert_eq!(message, "step first failed: it broke");

        let mut goes_on = operation(vec![step("first", 0, OnError::Continue), step("second", 0, OnError::Stop)]);
        let (ran, status, message) = drive(&mut goes_on, |name, _| name == "first");
        assert_eq!((ran.len(), status), (2, OperationStatus::Succeeded));
        assert_eq!(message, "1 step was carried out; first failed and was passed over: it broke");
        let OperationKind::Sequence { steps, .. } = &goes_on.kind else { unreachable!("made above") };
        assert_eq!(run_of(&goes_on, steps, 1, 1).outcomes["first"], "failed");
    }

    #[test]
    fn outputs_reach_later_steps() {
        let mut one = operation(vec![step("first", 0, OnError::Stop), step("second", 0, OnError::Stop)]);
        drive(&mut one, |_, _| false);
        let OperationKind::Sequence { steps, .. } = &one.kind else { unreachable!("made above") };
        let run = run_of(&one, steps, 1, 1);
        assert_eq!(run.outputs["first"]["from"], "first");
        assert_eq!(run.variables["old_primary"], "n1");
    }

    #[test]
    fn a_cut_off_step_is_run_again_and_a_cancel_ends_before_the_next_one() {
        let mut one = operation(vec![step("first", 0, OnError::Stop)]);
        let OperationKind::Sequence { steps, .. } = one.kind.clone() else { unreachable!("made above") };
        let Next::Run(begun) = next(&one, &steps, &view()) else { panic!("it begins") };
        let event = StepEvent {
            step: begun.name,
            attempt: begun.attempt,
            state: StepState::Started,
            epoch: begun.epoch,
            at: Moment(0),
            wall: WallTime(0),
        };
        one.journal.push(event);
        let Next::Run(again) = next(&one, &steps, &view()) else { panic!("another controller goes on") };
        assert_eq!((again.attempt, again.effect), (begun.attempt, begun.effect));
        one.cancel_requested = true;
        let ended = next(&one, &steps, &view());
        assert!(matches!(ended, Next::End { status: OperationStatus::Cancelled, .. }), "{ended:?}");
    }
}
