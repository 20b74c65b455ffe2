//! `operation show` and `explain ID`: every line of the journal with its time, how long each phase took, and which witness said
//! what when.

use std::time::Duration;

use super::{Cell, Look, Table, Tone, words};
use crate::domain::evidence::{Observation, Occasion, Witness};
use crate::domain::incident::offset;
pub use crate::domain::incident::{step_took, took};
use crate::domain::operation::{Operation, OperationStatus, StepEvent, StepName, StepState};

/// The whole operation.
pub fn render(operation: &Operation, look: Look) -> String {
    let mut text = String::new();
    if look.terminal {
        text.push_str(&head(operation, look));
        text.push('\n');
    }
    text.push_str(&timeline(operation).render(look));
    if look.terminal {
        text.push('\n');
        text.push_str(&phases(operation, look));
    }
    text + &witnesses(operation, look)
}

/// Why it was begun and carried on: the witnesses first, then the journal.
pub fn explained(operation: &Operation, look: Look) -> String {
    if !look.terminal {
        return render(operation, look);
    }
    let (head, said) = (head(operation, look), witnesses(operation, look));
    format!("{head}{said}\nWhat was done:\n{}", timeline(operation).render(look))
}

/// What every witness said, by occasion. Piped, a row has the columns of the journal's rows.
fn witnesses(operation: &Operation, look: Look) -> String {
    let at = |said: &Observation| format!("+{:.3} s", offset(operation, said.at, said.wall).as_secs_f64());
    if !look.terminal {
        let mut table = Table::new(&["AT", "STEP", "TRY", "STATE", "TOOK", "DETAIL"]);
        for said in &operation.evidence {
            let detail = format!("{} {} said of {}: {}", said.witness, said.source, said.node, said.statement);
            let cells = [at(said).as_str(), "witness", "-", said.occasion.label(), "-", &detail].map(Cell::from);
            table.row(cells.into());
        }
        return table.render(look);
    }
    let mut text = String::new();
    for heard in operation.evidence.chunk_by(|one, next| one.occasion == next.occasion) {
        text.push_str(&format!("\n{}:\n", occasion(heard[0].occasion)));
        let mut table = Table::new(&[">AT", "WITNESS", "SAID OF", "WHAT"]);
        for said in heard {
            let witness = match said.witness {
                Witness::Controller => said.source.clone(),
                other => format!("{other} {}", said.source),
            };
            table.row(vec![at(said).into(), witness.into(), said.node.as_str().into(), said.statement.as_str().into()]);
        }
        text.push_str(&table.render(look));
    }
    text
}

fn occasion(occasion: Occasion) -> &'static str {
    match occasion {
        Occasion::Decided => "What the witnesses said when it was decided",
        Occasion::Fenced => "What proved that the old primary cannot write",
        Occasion::Promoted => "What the witnesses said when asked again, before the promotion",
        Occasion::Other => "What the witnesses said later",
    }
}

fn head(operation: &Operation, look: Look) -> String {
    let outcome = look.paint(tone(operation.status), operation.status.label());
    let took = took(operation).map_or_else(String::new, |took| format!(" in {}", words::measured(took)));
    let epoch = match operation.epoch_after {
        Some(after) => format!("{} -> {after}", operation.epoch_before),
        None => operation.epoch_before.to_string(),
    };
    let mut text = format!(
        "Operation  {}\nWhat       {} in {}, {outcome}{took}\nBy         {}, at {}\nEpoch      {epoch}\n",
        operation.id,
        words::operation(&operation.kind),
        operation.cluster,
        operation.origin,
        operation.begun_wall,
    );
    for (index, reason) in operation.reasons.iter().enumerate() {
        text.push_str(&format!("{:<10} {reason}\n", if index == 0 { "Because" } else { "" }));
    }
    if operation.cancel_requested {
        text.push_str("Cancel     was asked for\n");
    }
    if let Some(message) = &operation.message {
        text.push_str(&format!("Outcome    {message}\n"));
    }
    if let Some(left) = operation.left_behind() {
        text.push_str(&format!("Left       {left}\n"));
    }
    text
}

fn timeline(operation: &Operation) -> Table {
    let mut table = Table::new(&[">AT", "STEP", ">TRY", "STATE", ">TOOK", "DETAIL"]);
    for (index, event) in operation.journal.iter().enumerate() {
        let (state, tone, detail) = match &event.state {
            StepState::Started => ("started", Tone::Plain, String::new()),
            StepState::Succeeded { output } => {
                let lsn = output.lsn.map(|lsn| format!("LSN {lsn}"));
                let parts: Vec<String> = lsn.into_iter().chain(output.note.clone()).collect();
                ("succeeded", Tone::Good, parts.join(", "))
            }
            StepState::Failed { error } => ("failed", Tone::Bad, error.clone()),
            StepState::Unknown { error } => ("unknown", Tone::Warning, error.clone()),
        };
        let took = step_took(&operation.journal[..index], event);
        table.row(vec![
            format!("+{:.3} s", offset(operation, event.at, event.wall).as_secs_f64()).into(),
            operation.step_label(event.step).into(),
            event.attempt.to_string().into(),
            Cell::toned(state, tone),
            took.map_or_else(|| "-".to_owned(), words::measured).into(),
            if detail.is_empty() { "-".into() } else { detail.into() },
        ]);
    }
    table
}

/// Time of each phase, from its first start to its last end.
fn phases(operation: &Operation, look: Look) -> String {
    let mut table = Table::new(&["PHASE", ">BEGAN", ">TOOK"]);
    let mut add = |phase: &str, began: Duration, took: Option<Duration>| {
        let took = took.map_or_else(|| "-".to_owned(), words::measured);
        table.row(vec![phase.into(), format!("+{:.3} s", began.as_secs_f64()).into(), took.into()]);
    };
    add("decide", Duration::ZERO, Some(operation.decided_at.since(operation.detected_at)));
    let mut seen: Vec<StepName> = Vec::new();
    for event in &operation.journal {
        if seen.contains(&event.step) {
            continue;
        }
        seen.push(event.step);
        let ended = operation.journal.iter().rev().find(|it| it.step == event.step && it.state != StepState::Started);
        let began = offset(operation, event.at, event.wall);
        let took = ended.map(|end| offset(operation, end.at, end.wall).saturating_sub(began));
        add(operation.step_label(event.step), began, took);
    }
    add("in total", Duration::ZERO, took(operation));
    table.render(look)
}

/// One line for a step of the journal, as it happens.
pub fn step_line(operation: &Operation, before: &[StepEvent], event: &StepEvent) -> String {
    let name = operation.step_label(event.step);
    let took = step_took(before, event).map_or_else(String::new, |took| format!(" in {}", words::measured(took)));
    let again = if event.attempt > 1 { format!(" (attempt {})", event.attempt) } else { String::new() };
    match &event.state {
        StepState::Started => format!("{name} started{again}"),
        StepState::Succeeded { .. } => format!("{name} succeeded{again}{took}"),
        StepState::Failed { error } => format!("{name} failed{again}{took}: {error}"),
        StepState::Unknown { error } => format!("{name} has an unknown outcome{again}{took}: {error}"),
    }
}

/// One sentence on how it ended, or stands.
pub fn outcome(operation: &Operation) -> String {
    let took = took(operation).map_or_else(String::new, |took| format!(" in {}", words::measured(took)));
    let why = operation.message.as_ref().map_or_else(String::new, |message| format!(": {message}"));
    let left = operation.left_behind().map_or_else(String::new, |left| format!("; not undone: {left}"));
    format!("{} {}{took}{why}{left}", words::operation(&operation.kind), operation.status.label())
}

/// What the status means.
pub fn tone(status: OperationStatus) -> Tone {
    match status {
        OperationStatus::Succeeded => Tone::Good,
        OperationStatus::Running | OperationStatus::Undoing | OperationStatus::Cancelled => Tone::Warning,
        OperationStatus::Failed | OperationStatus::Refused | OperationStatus::Stuck => Tone::Bad,
    }
}
