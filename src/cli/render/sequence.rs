//! `sequence list`: every sequence with what begins it, and its steps.

use super::{Look, Table, words};
use crate::domain::sequence::{OnError, Sequence, Trigger};

/// All of them.
pub fn list(sequences: &[Sequence], look: Look) -> String {
    if sequences.is_empty() && look.terminal {
        return "No sequence is configured.\n".to_owned();
    }
    let mut table =
        Table::new(&["SEQUENCE", "BEGINS", ">STEP", "NAME", "KIND", ">TIMEOUT", ">RETRIES", "ON ERROR", "IF"]);
    for sequence in sequences {
        let begins: Vec<String> = sequence.when.iter().map(trigger).collect();
        let begins = if begins.is_empty() { "by name".to_owned() } else { begins.join(", ") };
        for (index, step) in sequence.steps.iter().enumerate() {
            let is_named = index == 0 || !look.terminal;
            let on_error = match step.on_error {
                OnError::Stop => "stop",
                OnError::Continue => "continue",
            };
            table.row(vec![
                if is_named { sequence.name.as_str().into() } else { "".into() },
                if is_named { begins.as_str().into() } else { "".into() },
                (index + 1).to_string().into(),
                step.name.as_str().into(),
                step.action.label().into(),
                words::span(std::time::Duration::from_secs(step.timeout_seconds)).into(),
                step.retries.to_string().into(),
                on_error.into(),
                step.condition.as_deref().unwrap_or("-").into(),
            ]);
        }
    }
    table.render(look)
}

fn trigger(trigger: &Trigger) -> String {
    match trigger {
        Trigger::AfterFailover => "after a failover".to_owned(),
        Trigger::OnAlert { alert } => format!("alert {alert}"),
        Trigger::OnRisk { percent } => format!("risk from {percent} %"),
    }
}
