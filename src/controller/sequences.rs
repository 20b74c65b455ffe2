//! Sequences at work: which begins by itself, which an operator begins, and what a dry run shows.
//!
//! The steps themselves run in tasks of their own, by way of a port; nothing here waits.

use std::sync::Arc;

use super::event_loop::Controller;
use super::stacks::Stacks;
use crate::decide;
use crate::domain::operation::{Operation, OperationKind};
use crate::domain::plan::{Intent, Plan, Reason, ReasonCode};
use crate::domain::sequence::{Sequence, Trigger};
use crate::domain::view::View;
use crate::operate::sequence::run_of;
use crate::ports::steps::{NoSteps, StepRunner};

/// The configured sequences, and who carries their steps out.
#[derive(Clone)]
pub struct Sequences {
    /// As configured.
    pub all: Arc<[Sequence]>,
    /// Carries steps out.
    pub runner: Arc<dyn StepRunner>,
    /// Stacks that are compared with what is there.
    pub stacks: Stacks,
}

impl Default for Sequences {
    fn default() -> Self {
        Self { all: Arc::new([]), runner: Arc::new(NoSteps), stacks: Stacks::default() }
    }
}

/// An operator's, an alert's or a prediction's wish for a sequence.
pub(super) struct SequenceAsked {
    /// Which.
    pub name: String,
    /// Who asks.
    pub origin: String,
    /// Only plan.
    pub dry_run: bool,
}

/// What came of it. `Err`: there is no such sequence; the names that there are.
pub(super) type SequenceAnswer = Result<(Plan, Option<Operation>), Vec<String>>;

impl Controller {
    /// The risks, in per cent, at which a sequence begins.
    pub(super) fn risk_limits(&self) -> Vec<u32> {
        let triggers = self.parts.sequences.all.iter().flat_map(|sequence| &sequence.when);
        triggers
            .filter_map(|trigger| match trigger {
                Trigger::OnRisk { percent } => Some(*percent),
                _ => None,
            })
            .collect()
    }

    /// Begins every sequence that the last failover or the primary's risk calls for.
    pub(super) fn begin_due_sequences(&mut self, view: &View) {
        if self.parts.sequences.all.is_empty() {
            return;
        }
        let all = self.parts.sequences.all.clone();
        // Each begun one is no longer due.
        for _ in 0..all.len() {
            let operations = &self.state.operations;
            let after_failover = decide::sequence::due(view, operations, &all).map(|(sequence, cause)| {
                let why = Reason::new(ReasonCode::OperationUnderWay, format!("failover {} succeeded", cause.id));
                (sequence, Some(cause), why)
            });
            let by_risk = || {
                let (sequence, why) = decide::sequence::due_by_risk(view, &self.state.policy, operations, &all)?;
                Some((sequence, None, why))
            };
            let Some((sequence, cause, why)) = after_failover.or_else(by_risk) else { return };
            let plan = decide::sequence::plan(view, operations, sequence, cause, why);
            let Intent::Start { operation } = plan.intent.clone() else { return };
            let begun = self.begin(operation, &plan, "automatic");
            self.save(begun);
        }
    }

    /// One by name.
    pub(super) fn ask_sequence(&mut self, asked: &SequenceAsked) -> SequenceAnswer {
        let all = self.parts.sequences.all.clone();
        let Some(sequence) = all.iter().find(|sequence| sequence.name == asked.name) else {
            return Err(all.iter().map(|sequence| sequence.name.clone()).collect());
        };
        let view = self.view();
        let why = Reason::new(ReasonCode::OperatorRequest, asked.origin.clone());
        let plan = decide::sequence::plan(&view, &self.state.operations, sequence, None, why);
        let Intent::Start { operation } = plan.intent.clone() else { return Ok((plan, None)) };
        if asked.dry_run {
            let dry = self.planned(operation, &plan, &asked.origin);
            return Ok((plan, Some(dry)));
        }
        let operation = self.begin(operation, &plan, &asked.origin);
        self.save(operation.clone());
        Ok((plan, Some(operation)))
    }
}

/// Every step of an operation that is not begun, in words.
pub(super) fn preview(operation: &Operation, runner: &dyn StepRunner) -> Vec<String> {
    let OperationKind::Sequence { steps, .. } = &operation.kind else { return Vec::new() };
    let one = |index| {
        let run = run_of(operation, steps, index, 1);
        runner.preview(&run).unwrap_or_else(|error| format!("{}: {error}", steps[index].name))
    };
    (0..steps.len()).map(one).collect()
}
