//! `operation list`, `history` and `events`: newest last, where the eye is on a terminal.

use super::{Cell, Look, Table, Tone, operation, words};
use crate::api::client::Event;
use crate::api::tokens::TokenDocument;
use crate::domain::clock::WallTime;
use crate::domain::ids::ClusterName;
use crate::domain::operation::Operation;
use crate::domain::trail::AuditEntry;

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

/// Tokens, as they are listed.
pub fn tokens(tokens: &[TokenDocument], look: Look) -> String {
    let mut table = Table::new(&["NAME", "ROLE", "CLUSTERS", "MADE", "BY", "ENDS"]);
    let time = |at: Option<WallTime>, none: &str| at.map_or_else(|| none.to_owned(), |at| at.to_string());
    for token in tokens {
        let clusters: Vec<&str> = token.clusters.iter().map(ClusterName::as_str).collect();
        table.row(vec![
            token.name.as_str().into(),
            token.role.label().into(),
            if clusters.is_empty() { "all".to_owned() } else { clusters.join(",") }.into(),
            time(token.created, "in the configuration").into(),
            token.created_by.as_deref().unwrap_or("-").into(),
            time(token.expires, "never").into(),
        ]);
    }
    table.render(look)
}

/// Rows of the audit log, given newest first.
pub fn audit(newest_first: &[AuditEntry], look: Look) -> String {
    let mut table = Table::new(&[">NUMBER", "TIME", "WHO", "FROM", "WHAT", "OUTCOME"]);
    for entry in newest_first.iter().rev() {
        let row = &entry.row;
        table.row(vec![
            entry.number.to_string().into(),
            row.wall.to_string().into(),
            row.who.as_str().into(),
            row.from.as_str().into(),
            row.what.as_str().into(),
            row.outcome.as_str().into(),
        ]);
    }
    if table.is_empty() && look.terminal {
        return "Nobody asked for anything yet.\n".to_owned();
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
