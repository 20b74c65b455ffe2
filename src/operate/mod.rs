//! Operations as sagas: given the journal and the view, what is the next step? Pure; nothing is remembered but the journal.
//!
//! The same journal and view always give the same answer, so any controller can go on where another one stopped. Steps are
//! idempotent and carry (operation, step, epoch); a step that may have happened is asked for again, never assumed.

pub mod backup;
pub mod drill;
pub mod failover;
pub mod fence;
mod moving;
pub mod rejoin;
pub mod restore;
pub mod retrain;
pub mod sequence;
pub mod switchover;

use std::time::Duration;

use crate::domain::clock::Moment;
use crate::domain::command::{Command, CommandOutput};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::{Address, NodeName, SiteName};
use crate::domain::operation::{
    JOURNAL_FORMAT, JOURNAL_FORMAT_OLDEST, Operation, OperationKind, OperationStatus, StepEvent, StepName, StepState,
};
use crate::domain::policy::Policy;
use crate::domain::record::ClusterRecord;
use crate::domain::sequence::StepRun;
use crate::domain::training::TrainRun;
use crate::domain::view::View;

/// What to do with an operation now.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Journal the start of this step, run its effect, journal the outcome.
    Run(Box<Step>),
    /// The view already shows what the step is for: journal it as done.
    Satisfied {
        /// Which step.
        step: StepName,
        /// The epoch it belongs to.
        epoch: Epoch,
        /// For later steps and for people.
        output: CommandOutput,
    },
    /// Nothing before this moment, unless the view changes.
    Wait {
        /// When to ask again.
        until: Moment,
        /// For what, for people.
        why: String,
    },
    /// Unwind from here.
    Undo {
        /// Why.
        why: String,
    },
    /// The end.
    End {
        /// How.
        status: OperationStatus,
        /// Why, in a sentence.
        message: String,
    },
}

/// A step with its effect, complete enough that carrying it out needs no choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Which.
    pub name: StepName,
    /// Counts from 1; the same number again when a controller resumes a step that it cannot know the outcome of.
    pub attempt: u32,
    /// The epoch that it carries.
    pub epoch: Epoch,
    /// What to do.
    pub effect: Effect,
    /// After this the outcome is unknown.
    pub timeout: Duration,
}

/// Effects at the edge.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// A command for one agent.
    Command {
        /// Whose.
        node: NodeName,
        /// What.
        command: Command,
    },
    /// The same command for several agents at once; done when all have done it.
    Each {
        /// Whose.
        nodes: Vec<NodeName>,
        /// What.
        command: Command,
    },
    /// Raise the epoch: compare-and-swap on the record that this was derived from.
    Swap {
        /// The number that the store must still have; `None`: no record yet.
        expected: Option<RecordNumber>,
        /// The record to store.
        record: Box<ClusterRecord>,
    },
    /// Freeze the candidate with its consent and, beside it, every other standby without.
    Freeze {
        /// Who shall consent.
        candidate: NodeName,
        /// Who else stops receiving.
        others: Vec<NodeName>,
        /// The epoch whose holder confirmed its fence, which replaces what the candidate promised that holder.
        fence_confirmed: Option<Epoch>,
    },
    /// Every proxy holds new write connections.
    HoldWrites,
    /// Every proxy leads to the primary of the record.
    RedirectWrites,
    /// A real write through every proxy must arrive at this address; one success suffices.
    VerifyWrites {
        /// Where.
        expect: Address,
    },
    /// The name leads to this site at every authoritative server, and a write through a proxy there arrives at this address.
    VerifyName {
        /// Where the primary stands.
        site: SiteName,
        /// Where it listens.
        expect: Address,
    },
    /// A step of a sequence that reaches outside.
    RunStep {
        /// Which, with all that it needs.
        run: Box<StepRun>,
    },
    /// A stage of a retraining, by the training program.
    Train {
        /// Which, with all that it needs.
        run: Box<TrainRun>,
    },
    /// Begin an operation, unless `origin` has begun it already, and wait for its end.
    Begin {
        /// Which.
        what: sequence::Errand,
        /// Who asks for it, as its journal names it.
        origin: String,
    },
    /// Nothing but waiting until it is so.
    Await {
        /// What.
        what: sequence::Awaited,
    },
}

/// What to do with `operation` now.
pub fn next(operation: &Operation, view: &View, policy: &Policy) -> Next {
    if !(JOURNAL_FORMAT_OLDEST..=JOURNAL_FORMAT).contains(&operation.format) {
        return Next::End {
            status: OperationStatus::Stuck,
            message: format!(
                "its journal has format {}, this version knows {JOURNAL_FORMAT_OLDEST} to {JOURNAL_FORMAT}: nothing was changed; finish \
                 it with the version that began it, or look at the cluster and begin again",
                operation.format
            ),
        };
    }
    match &operation.kind {
        OperationKind::Failover { .. } => failover::next(operation, view, policy),
        OperationKind::Switchover { .. } => switchover::next(operation, view, policy),
        OperationKind::Rejoin { node, reclone } => rejoin::next(operation, node, *reclone, view, policy),
        OperationKind::Fence { node } => fence::next(operation, node, view),
        OperationKind::Sequence { steps, .. } => sequence::next(operation, steps, view),
        OperationKind::Backup { node, backup_type } => backup::next(operation, node, *backup_type, view),
        OperationKind::Drill { node, manifests } => drill::next(operation, node, manifests, view),
        OperationKind::Retrain { time_limit_seconds, .. } => {
            retrain::next(operation, Duration::from_secs(*time_limit_seconds), view)
        }
        OperationKind::Restore { .. } => restore::next(operation, view, policy),
    }
}

/// True once the operation may only go forward.
pub fn is_past_no_return(operation: &Operation) -> bool {
    operation.journal.iter().any(|event| event.step == StepName::Promote)
}

/// Why a request to cancel `operation` comes too late; `None`: the very next look at it honours one.
pub fn cancel_refusal(operation: &Operation) -> Option<&'static str> {
    if operation.status.is_final() {
        return Some("it has ended");
    }
    if operation.status == OperationStatus::Undoing {
        return Some("it is being undone already");
    }
    match &operation.kind {
        OperationKind::Failover { .. } if failover::may_have_risen(operation) => {
            Some("the epoch was raised, or nobody can tell whether it was: it only goes forward")
        }
        OperationKind::Switchover { .. } if is_past_no_return(operation) => {
            Some("the new primary may have been promoted: it only goes forward")
        }
        OperationKind::Rejoin { .. } if !operation.journal.is_empty() => {
            Some("the node's data is being rewritten, and is of no use before that has ended")
        }
        OperationKind::Fence { .. } => Some("the fence is the operator's own word: stormglass unfence lifts it"),
        OperationKind::Restore { into: None, .. } if restore::is_past_no_return(operation) => {
            Some("data directories may have been put aside: it only goes forward")
        }
        OperationKind::Failover { .. }
        | OperationKind::Switchover { .. }
        | OperationKind::Rejoin { .. }
        | OperationKind::Backup { .. }
        | OperationKind::Drill { .. }
        // Its program is ended.
        | OperationKind::Retrain { .. }
        | OperationKind::Restore { .. }
        // It ends before its next step.
        | OperationKind::Sequence { .. } => None,
    }
}

/// How one step of a saga stands, by the journal.
enum Progress<'journal> {
    /// Not begun in this epoch, or begun and cut off: (attempt to run).
    Due(u32),
    /// Done.
    Done(&'journal CommandOutput),
    /// Failed this often; the last failure and when.
    Failed { attempts: u32, error: &'journal str, at: Moment },
}

/// Events of another epoch do not count: undoing a switchover promotes a second time, in the next epoch.
fn progress(operation: &Operation, step: StepName, epoch: Epoch) -> Progress<'_> {
    let mut events = operation.journal.iter().filter(|event| event.step == step && event.epoch == epoch);
    let Some(last) = events.next_back() else { return Progress::Due(1) };
    match last {
        StepEvent { state: StepState::Succeeded { output }, .. } => Progress::Done(output),
        StepEvent { state: StepState::Failed { error } | StepState::Unknown { error }, attempt, at, .. } => {
            Progress::Failed { attempts: *attempt, error, at: *at }
        }
        StepEvent { state: StepState::Started, attempt, .. } => Progress::Due(*attempt),
    }
}

/// True if an attempt at `step` may still take effect: nobody heard how it ended.
fn is_in_doubt(operation: &Operation, step: StepName) -> bool {
    operation.journal.iter().any(|event| event.step == step && matches!(event.state, StepState::Unknown { .. }))
}

/// When `pause` after `at` is over, if that is still to come. What the journal dates in the future was written in another boot
/// of the controller's host: how long ago cannot be told, and nothing waits for it.
fn still_to_wait(now: Moment, at: Moment, pause: Duration) -> Option<Moment> {
    let until = at.plus(pause);
    (at <= now && now < until).then_some(until)
}

/// Between two attempts at a step.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Runs `step` until it succeeded: `Ok` when done; `Err` is what to do now. After `attempts_max` failures: `exhausted`.
fn until_done(
    operation: &Operation,
    now: Moment,
    step: Step,
    attempts_max: u32,
    exhausted: impl FnOnce(String) -> Next,
) -> Result<&CommandOutput, Next> {
    match progress(operation, step.name, step.epoch) {
        Progress::Done(output) => Ok(output),
        Progress::Due(attempt) => Err(Next::Run(Box::new(Step { attempt, ..step }))),
        Progress::Failed { attempts, error, .. } if attempts >= attempts_max => {
            Err(exhausted(format!("{} failed: {error}", step.name)))
        }
        Progress::Failed { attempts, at, .. } => Err(match still_to_wait(now, at, RETRY_PAUSE) {
            None => Next::Run(Box::new(Step { attempt: attempts + 1, ..step })),
            Some(until) => Next::Wait { until, why: format!("before {} is tried again", step.name) },
        }),
    }
}
