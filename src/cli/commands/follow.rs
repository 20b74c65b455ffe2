//! Following an operation until it has ended: live on a terminal, one line a step elsewhere.
//!
//! Only looks: neither Ctrl-C nor a time-out here stops the operation.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::watch::limit_reached;
use super::{Session, operation_id};
use crate::api::client::{Client, Document, Event};
use crate::cli::exit::{Exit, Failure};
use crate::cli::render::{self, operation as text};
use crate::domain::clock::WallTime;
use crate::domain::operation::{Operation, OperationKind, OperationStatus, StepName, StepState};

/// A whole switchover takes some tenths of a second, and its steps are to be seen.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Silence of the controller after which following is given up: longer than a restart takes.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Looks at the operation for one at its words.
const WORDS_EVERY: u32 = 10;
/// Events that are looked through for them.
const WORDS_MAX: usize = 50;

impl Session<'_> {
    /// `operation watch`.
    pub(super) async fn operation_watch(&mut self, id: &str) -> Result<Exit, Failure> {
        let ended = self.follow(operation_id(id)?).await?;
        self.emit(&ended.raw, |look| text::render(&ended.value, look))?;
        Ok(exit_of(&ended.value))
    }

    /// `operation cancel`.
    pub(super) async fn operation_cancel(&mut self, id: &str) -> Result<Exit, Failure> {
        let id = operation_id(id)?;
        let found = self.client.operation(id).await?;
        let what = render::words::operation(&found.value.kind);
        if found.value.status.is_final() {
            let message = format!("{what} has ended already: {}", found.value.status.label());
            return Err(Failure::new(Exit::Refused, message).advise(format!("stormglass operation show {id}")));
        }
        let plan =
            format!("Will     stop {what} ({id}), if it has not passed its point of no return, and undo what it did\n");
        if self.global.dry_run {
            self.emit(&found.raw, |_| plan)?;
            return Ok(Exit::Done);
        }
        self.confirm(&found.raw, &plan, None).await?;
        let look = format!("stormglass operation show {id}");
        self.client.cancel(id).await.map_err(|error| super::mutate::lost_answer(error, &look))?;
        if !self.waits() {
            self.console.note(&format!("Asked for. Next: stormglass operation watch {id}"));
            return Ok(Exit::Done);
        }
        let ended = self.follow(id).await?;
        self.emit(&ended.raw, |look| text::render(&ended.value, look))?;
        Ok(match ended.value.status {
            OperationStatus::Cancelled | OperationStatus::Failed if ended.value.left_behind().is_none() => Exit::Done,
            // Too late: it went forward to its end.
            OperationStatus::Succeeded => Exit::Failed,
            _ => exit_of(&ended.value),
        })
    }

    /// True unless `--no-wait`.
    pub(super) fn waits(&self) -> bool {
        !self.global.no_wait
    }

    /// Shows the steps of an operation until it has ended. Fails with [`Exit::Unknown`] when the user or the clock ends it first.
    pub(super) async fn follow(&mut self, id: &str) -> Result<Document<Operation>, Failure> {
        let limit = self.global.timeout;
        let left = |why: &str| {
            Failure::new(Exit::Unknown, format!("{why}; operation {id} goes on"))
                .advise(format!("stormglass operation watch {id}"))
        };
        tokio::select! {
            ended = self.follow_to_the_end(id) => ended,
            () = limit_reached(limit) => Err(left("the time-out ran out before the operation ended")),
            _ = tokio::signal::ctrl_c() => Err(left("detached")),
        }
    }

    async fn follow_to_the_end(&mut self, id: &str) -> Result<Document<Operation>, Failure> {
        let mut progress = Progress::new(self.console.err_is_terminal);
        let mut silent = Duration::ZERO;
        let mut words = Words::default();
        loop {
            match self.client.operation(id).await {
                Ok(found) => {
                    silent = Duration::ZERO;
                    for line in progress.show(&found.value) {
                        self.console.note(&line);
                    }
                    for line in words.new_ones(&self.client, &found.value).await {
                        self.console.note(&format!("    {line}"));
                    }
                    if found.value.status.is_final() {
                        progress.finish();
                        return Ok(found);
                    }
                }
                Err(error) => {
                    let failure = Failure::from(error);
                    if failure.exit != Exit::Unreachable && failure.exit != Exit::ControllerError {
                        return Err(failure);
                    }
                    if silent.is_zero() {
                        self.console.note("The controller does not answer; trying again.");
                    }
                    silent += POLL_INTERVAL;
                    if silent >= SILENCE_MAX {
                        let message = failure.message.unwrap_or_default();
                        return Err(Failure::new(
                            Exit::Unknown,
                            format!("outcome of operation {id} unknown: {message}"),
                        )
                        .advise(format!("stormglass operation watch {id}")));
                    }
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// What an operation says between its steps: a retraining, how far it is.
#[derive(Default)]
struct Words {
    polls: u32,
    last: Option<WallTime>,
}

impl Words {
    /// Events of the operation that were not shown, oldest first; asked for now and then.
    async fn new_ones(&mut self, client: &Client, operation: &Operation) -> Vec<String> {
        let is_due = self.polls.is_multiple_of(WORDS_EVERY);
        self.polls = self.polls.wrapping_add(1);
        if !is_due || !matches!(operation.kind, OperationKind::Retrain { .. }) {
            return Vec::new();
        }
        // What cannot be had now is shown the next time.
        let Ok(found) = client.events(operation.cluster.as_str(), WORDS_MAX).await else { return Vec::new() };
        let last = self.last;
        let is_new = |row: &&Event| {
            row.event == "retraining_progressed"
                && row.operation.as_ref() == Some(&operation.id.0)
                && last.is_none_or(|last| row.wall > last)
        };
        let rows: Vec<&Event> = found.value.iter().rev().filter(is_new).collect();
        self.last = rows.last().map(|row| row.wall).or(self.last);
        rows.into_iter().map(|row| row.message.clone()).collect()
    }
}

/// How a command ends whose operation ended so.
pub(super) fn exit_of(operation: &Operation) -> Exit {
    match operation.status {
        OperationStatus::Succeeded => Exit::Done,
        // Neither unchanged nor undone: whoever scripts this must look before going on.
        OperationStatus::Failed | OperationStatus::Cancelled if operation.left_behind().is_some() => Exit::Unknown,
        OperationStatus::Failed | OperationStatus::Cancelled => Exit::Failed,
        OperationStatus::Refused => Exit::Refused,
        // Stuck is neither unchanged nor undone.
        OperationStatus::Stuck | OperationStatus::Running | OperationStatus::Undoing => Exit::Unknown,
    }
}

/// The steps seen so far.
struct Progress {
    live: Option<MultiProgress>,
    bars: BTreeMap<(StepName, u32), ProgressBar>,
    seen: usize,
}

impl Progress {
    fn new(live: bool) -> Self {
        Self { live: live.then(MultiProgress::new), bars: BTreeMap::new(), seen: 0 }
    }

    /// Shows what is new in the journal; returns the lines for a stderr that is no terminal.
    fn show(&mut self, operation: &Operation) -> Vec<String> {
        let mut lines = Vec::new();
        for index in self.seen..operation.journal.len() {
            let (before, event) = (&operation.journal[..index], &operation.journal[index]);
            let line = text::step_line(operation, before, event);
            let Some(live) = &self.live else {
                lines.push(format!("  {line}"));
                continue;
            };
            let bar = self.bars.entry((event.step, event.attempt)).or_insert_with(|| {
                let style = ProgressStyle::with_template("  {spinner} {msg} {elapsed}");
                let bar = ProgressBar::new_spinner().with_style(style.expect("the template is constant"));
                let bar = live.add(bar);
                bar.enable_steady_tick(POLL_INTERVAL);
                bar
            });
            if event.state == StepState::Started {
                bar.set_message(line);
            } else {
                let style = ProgressStyle::with_template("    {msg}").expect("the template is constant");
                bar.set_style(style);
                bar.finish_with_message(line);
            }
        }
        self.seen = operation.journal.len();
        lines
    }

    /// Leaves no spinner turning.
    fn finish(&mut self) {
        for bar in self.bars.values().filter(|bar| !bar.is_finished()) {
            bar.abandon();
        }
    }
}
