//! The controller of the small world: applies what `operate::next` says as the real one does, with faults at chosen steps.
//!
//! Every line of a journal goes through JSON; a restart forgets everything but the store.

use std::time::Duration;

use stormglass::decide;
use stormglass::domain::operation::{JOURNAL_FORMAT, StepEvent};
use stormglass::domain::*;
use stormglass::operate::{self, Effect, Next, Step};

use super::agent::cluster;
use super::world::{Controller, Done, World, failed};

/// What goes wrong at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    FailsOnce,
    FailsForEver,
    /// The effect happens, the controller dies before it hears of it.
    OutcomeLost,
    /// The start is journalled, the controller dies before the effect.
    RestartBefore,
    /// The outcome is journalled, the controller dies after that.
    RestartAfter,
    UnknownDone,
    UnknownNotDone,
    /// Reported unknown, and the effect happens a second later.
    UnknownLate,
    Twice,
    CancelBefore,
    CancelDuring,
}

pub const FAULTS: &[Fault] = &[
    Fault::FailsOnce,
    Fault::FailsForEver,
    Fault::OutcomeLost,
    Fault::RestartBefore,
    Fault::RestartAfter,
    Fault::UnknownDone,
    Fault::UnknownNotDone,
    Fault::UnknownLate,
    Fault::Twice,
    Fault::CancelBefore,
    Fault::CancelDuring,
];

impl World {
    pub fn begin(&mut self, kind: OperationKind) -> OperationId {
        let view = self.view();
        let operation = Operation {
            format: JOURNAL_FORMAT,
            id: OperationId(format!("operation-{}", self.saved.len() + 1)),
            cluster: cluster(),
            kind,
            status: OperationStatus::Running,
            origin: "test".to_owned(),
            reasons: self.reasons.clone(),
            epoch_before: view.record.as_ref().map_or(Epoch(0), |record| record.epoch),
            epoch_after: None,
            cancel_requested: false,
            detected_at: view.now,
            decided_at: view.now,
            begun_wall: view.wall,
            ended_at: None,
            ended_wall: None,
            message: None,
            journal: Vec::new(),
            evidence: Vec::new(),
            risks: Default::default(),
            loss: None,
        };
        let id = operation.id.clone();
        self.save(&operation);
        self.controller.operations.push(operation);
        id
    }

    fn save(&mut self, operation: &Operation) {
        let text = serde_json::to_string(operation).expect("an operation is serialisable");
        assert_eq!(serde_json::from_str::<Operation>(&text).expect("readable"), *operation, "JSON changed it");
        self.saved.insert(operation.id.clone(), text);
    }

    pub fn operation(&mut self, id: &OperationId) -> &mut Operation {
        self.controller.operations.iter_mut().find(|operation| operation.id == *id).expect("begun")
    }

    /// Another controller begins with what the store holds, and has heard of nobody.
    pub fn restart(&mut self) {
        let operations = self.saved.values().map(|text| serde_json::from_str(text).expect("saved by this world"));
        self.controller = Controller {
            record: self.store.clone(),
            operations: operations.collect(),
            leading_since: self.now,
            ..Default::default()
        };
    }

    fn take_fault(&mut self, step: StepName, wanted: impl Fn(Fault) -> bool) -> Option<Fault> {
        let at = self.faults.iter().position(|(name, fault)| *name == step && wanted(*fault))?;
        let (_, fault) = self.faults[at];
        if fault != Fault::FailsForEver {
            self.faults.remove(at);
        }
        Some(fault)
    }

    /// Moves an operation as `controller::drive` does, up to and with one step. `false` once it has ended.
    pub fn turn(&mut self, id: &OperationId) -> bool {
        loop {
            let view = self.view();
            let (now, wall, policy) = (view.now, view.wall, self.policy.clone());
            let operation = self.operation(id);
            if operation.status.is_final() {
                return false;
            }
            match operate::next(operation, &view, &policy) {
                Next::Satisfied { step, epoch, output } => {
                    let attempt = operation.attempts(step) + 1;
                    let state = StepState::Succeeded { output };
                    operation.journal.push(StepEvent { step, attempt, state, epoch, at: now, wall });
                    if matches!(step, StepName::AdvanceEpoch | StepName::Reinstate) {
                        operation.epoch_after = Some(epoch);
                    }
                }
                Next::Run(step) => {
                    if self.take_fault(step.name, |fault| fault == Fault::CancelBefore).is_some() {
                        self.operation(id).cancel_requested = true;
                        continue;
                    }
                    self.run(id, &step, now, wall);
                    return true;
                }
                Next::Wait { until, .. } => {
                    let wait = until.since(now).clamp(Duration::from_millis(10), Duration::from_millis(100));
                    self.pass(wait);
                    return true;
                }
                Next::Undo { why } => {
                    assert_ne!(operation.status, OperationStatus::Undoing, "undone twice");
                    (operation.status, operation.message) = (OperationStatus::Undoing, Some(why));
                }
                Next::End { status, message } => {
                    (operation.status, operation.message) = (status, Some(message));
                    (operation.ended_at, operation.ended_wall) = (Some(now), Some(wall));
                    let ended = operation.clone();
                    self.save(&ended);
                    return false;
                }
            }
        }
    }

    fn run(&mut self, id: &OperationId, step: &Step, now: Moment, wall: WallTime) {
        self.steps_run.push(step.name);
        let event =
            |state| StepEvent { step: step.name, attempt: step.attempt, state, epoch: step.epoch, at: now, wall };
        self.operation(id).journal.push(event(StepState::Started));
        let started = self.operation(id).clone();
        self.save(&started);
        if let (StepName::Promote, Effect::Command { node, .. }) = (step.name, &step.effect) {
            self.controller.last_grant.insert(node.clone(), now);
        }
        let patience = step.timeout.min(Duration::from_secs(10));
        let fault = self.take_fault(step.name, |fault| fault != Fault::CancelBefore);
        let unknown =
            Done { state: StepState::Unknown { error: "no answer".to_owned() }, record: None, reports: vec![] };
        let done = match fault {
            None | Some(Fault::RestartAfter) => self.effect(id, step),
            Some(Fault::FailsOnce | Fault::FailsForEver) => Done { state: failed("injected"), ..unknown },
            Some(Fault::OutcomeLost) => {
                self.effect(id, step);
                return self.restart();
            }
            Some(Fault::RestartBefore) => return self.restart(),
            Some(Fault::UnknownDone) => {
                self.effect(id, step);
                self.pass(patience);
                unknown
            }
            Some(Fault::UnknownNotDone) => {
                self.pass(patience);
                unknown
            }
            Some(Fault::UnknownLate) => {
                self.late = Some((self.now.plus(patience + Duration::from_secs(1)), id.clone(), step.clone()));
                self.pass(patience);
                unknown
            }
            Some(Fault::Twice) => {
                let first = self.effect(id, step);
                self.effect(id, step);
                first
            }
            Some(Fault::CancelDuring) => {
                self.operation(id).cancel_requested = true;
                self.effect(id, step)
            }
            Some(Fault::CancelBefore) => unreachable!("taken before the step"),
        };
        self.pass(Duration::from_millis(10));
        done.reports.into_iter().for_each(|report| self.hear(report));
        done.record.into_iter().for_each(|record| self.adopt(record));
        let ended = StepEvent { at: self.now, ..event(done.state.clone()) };
        let operation = self.operation(id);
        if matches!(step.name, StepName::AdvanceEpoch | StepName::Reinstate)
            && matches!(done.state, StepState::Succeeded { .. })
        {
            operation.epoch_after = Some(step.epoch);
        }
        operation.journal.push(ended);
        if fault == Some(Fault::RestartAfter) {
            let ended = operation.clone();
            self.save(&ended);
            self.restart();
        }
    }

    /// The automatic controller takes over from here: true once somebody writes, confirmed, and nothing is left to do.
    pub fn settle(&mut self) -> bool {
        let mut quiet = 0;
        for _ in 0..2_000 {
            self.pass(Duration::from_millis(50));
            let running: Vec<OperationId> = self.controller.operations.iter().map(|it| it.id.clone()).collect();
            for id in running {
                self.turn(&id);
            }
            let plan = decide::decide(&self.view(), &self.policy, &self.controller.operations);
            match plan.intent {
                Intent::UpdateRecord { record } => {
                    let expected = self.controller.record.as_ref().map(|record| record.number);
                    let done = self.swap(expected, &record);
                    done.record.into_iter().for_each(|record| self.adopt(record));
                    quiet = 0;
                }
                Intent::Start { operation } => {
                    self.begin(operation);
                    quiet = 0;
                }
                Intent::Hold => quiet += 1,
            }
            let under_way = self.controller.operations.iter().any(|operation| !operation.status.is_final());
            if quiet > 100 && !under_way && self.writer().is_some() {
                return true;
            }
        }
        false
    }
}
