//! `operation list`, `history` and `events`: newest last, where the eye is on a terminal.

use super::{Cell, Look, Table, Tone, operation, words};
use crate::api::client::Event;
use crate::domain::operation::Operation;

/// Operations, given newest first.
pub fn operations(newest_first: &[Operation], look: Look) -> String {
    let mut table = Table::new(&["BEGAN", "OPERATION", "OUTCOME", ">TOOK", ">EPOCH", "BY", "ID"]);
    for one in newest_first.iter().rev() {
        let took = match operation::took(one) {
            Some(took) if look.terminal => words::measured(took),
            Some(took) => took.as_secs_f64().to_string(),
            None => "-".to_owned(),
        };
        table.row(vec![
            one.begun_wall.to_string().into(),
            words::operation(&one.kind).into(),
            Cell::toned(one.status.label(), operation::tone(one.status)),
            took.into(),
            one.epoch_after.unwrap_or(one.epoch_before).to_string().into(),
            one.origin.as_str().into(),
            one.id.0.as_str().into(),
        ]);
    }
    if table.is_empty() && look.terminal {
        return "No operation yet.\n".to_owned();
    }
    table.render(look)
}

/// Events, given newest first.
pub fn events(newest_first: &[Event], look: Look) -> String {
    let mut table = Table::new(&["TIME", "SEVERITY", "EVENT", "NODE", ">EPOCH", "MESSAGE"]);
    for event in newest_first.iter().rev() {
        let tone = match event.severity.as_str() {
            "error" => Tone::Bad,
            "warning" => Tone::Warning,
            _ => Tone::Plain,
        };
        table.row(vec![
            event.wall.to_string().into(),
            Cell::toned(event.severity.as_str(), tone),
            event.event.as_str().into(),
            event.node.as_deref().unwrap_or("-").into(),
            event.epoch.to_string().into(),
            event.message.as_str().into(),
        ]);
    }
    if table.is_empty() && look.terminal {
        return "No event yet.\n".to_owned();
    }
    table.render(look)
}
