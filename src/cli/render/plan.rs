//! What a mutation would do: the plan, what to expect, what may be lost.

use super::{Look, Tone, words};
use crate::api::wire::MutationReply;
use crate::domain::plan::Intent;

/// The intent in words.
pub fn intent(intent: &Intent) -> String {
    match intent {
        Intent::Hold => "hold".to_owned(),
        Intent::UpdateRecord { record } => {
            format!("update the record to number {} (epoch {}, holder {})", record.number, record.epoch, record.holder)
        }
        Intent::Start { operation } => words::operation(operation),
    }
}

/// The reply to a dry run, with what the command itself has to add.
pub fn render(reply: &MutationReply, risks: &[String], look: Look) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    if let Some(plan) = &reply.plan {
        lines.extend(plan.loss.iter().map(|loss| ("Loses", loss.to_string())));
        lines.push(("Plan", intent(&plan.intent)));
        lines.extend(plan.reasons.iter().map(|reason| ("Because", reason.to_string())));
        lines.extend(plan.blocked_by.iter().map(|reason| ("Blocked", reason.to_string())));
    }
    if !reply.message.is_empty() && (reply.plan.is_none() || reply.expect.is_empty()) {
        lines.push(("Will", reply.message.clone()));
    }
    lines.extend(reply.expect.iter().map(|line| ("Expect", line.clone())));
    lines.extend(risks.iter().map(|line| ("Risk", line.clone())));
    let mut text = String::new();
    let mut last = "";
    for (label, line) in lines {
        let shown = if label == last { "" } else { label };
        let tone = if matches!(label, "Loses" | "Risk" | "Blocked") { Tone::Warning } else { Tone::Plain };
        text.push_str(&format!("{shown:<8} {}\n", look.paint(tone, &line)));
        last = label;
    }
    text
}
