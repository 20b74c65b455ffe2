//! Retraining: samples collected → challenger fitted → judged beside the champion, and published if it is better.
//!
//! The cluster is not touched, and the model that scores only by the last step; so nothing is undone, and a program that was killed
//! leaves the champion where it is.

use std::time::Duration;

use super::{Effect, Next, Step, until_done};
use crate::domain::operation::{Operation, OperationStatus, StepName};
use crate::domain::training::{TrainRun, TrainStage};
use crate::domain::view::View;

/// A month of samples from a busy Prometheus.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(3600);
/// Two models score the newer part.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) fn next(operation: &Operation, time_limit: Duration, view: &View) -> Next {
    let end = |status, message: String| Next::End { status, message };
    // What was ended while it published may have done so.
    let left = match operation.attempts(StepName::PublishModel) {
        0 => "the model that scores is as it was",
        _ => "see stormglass model list for the model that scores",
    };
    let failed = |message: String| end(OperationStatus::Failed, format!("{message}; {left}"));
    if operation.cancel_requested && !operation.succeeded(StepName::PublishModel) {
        return end(OperationStatus::Cancelled, format!("cancelled; {left}"));
    }
    let stages = [
        (StepName::CollectSamples, TrainStage::Collect, COLLECT_TIMEOUT, 2),
        (StepName::FitModel, TrainStage::Fit, time_limit, 1),
        (StepName::PublishModel, TrainStage::Publish, PUBLISH_TIMEOUT, 1),
    ];
    let mut said = String::new();
    for (name, stage, timeout, attempts_max) in stages {
        let run = TrainRun { stage, operation: operation.id.clone(), begun: operation.begun_wall };
        let effect = Effect::Train { run: Box::new(run) };
        let step = Step { name, attempt: 1, epoch: operation.epoch_before, effect, timeout };
        match until_done(operation, view.now, step, attempts_max, failed) {
            Ok(output) => said = output.note.clone().unwrap_or_default(),
            Err(next) => return next,
        }
    }
    end(OperationStatus::Succeeded, said)
}
