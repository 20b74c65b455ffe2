//! How operations that somebody asked for ended, as rows of the audit log: the row of the request says only that it was accepted.
//!
//! What is asked, and by whom, is the API's to write; when a row is written, the journal's.

use super::event_loop::Controller;
use crate::domain::access::RESERVED_NAMES;
use crate::domain::operation::{Operation, OperationKind};
use crate::domain::plan::{Plan, ReasonCode};
use crate::domain::record::ScheduledSwitchover;
use crate::domain::trail::AuditRow;

impl Controller {
    /// Who is behind what was decided now.
    pub(super) fn origin_of(&self, plan: &Plan) -> String {
        origin(plan, self.state.record.as_ref().and_then(|record| record.scheduled.as_ref()))
    }
}

/// Whoever scheduled it; else nobody asked for it.
fn origin(plan: &Plan, scheduled: Option<&ScheduledSwitchover>) -> String {
    let is_scheduled = plan.reasons.iter().any(|reason| reason.code == ReasonCode::Scheduled);
    scheduled.filter(|_| is_scheduled).map_or_else(|| "automatic".to_owned(), |scheduled| scheduled.who.clone())
}

/// The row for an operation that has ended; `None` where nobody asked for it. `controller` is who saw the end.
pub(super) fn end_row(operation: &Operation, controller: &str) -> Option<AuditRow> {
    if !operation.status.is_final() || !was_asked_for(&operation.origin) {
        return None;
    }
    let word = operation.status.label();
    let outcome = match operation.message.as_deref().unwrap_or_default() {
        "" => word.to_owned(),
        message => format!("{word}: {}", printable(message)),
    };
    let about = match &operation.kind {
        OperationKind::Sequence { name, .. } => name.clone(),
        kind => kind.subject().to_string(),
    };
    Some(AuditRow {
        wall: operation.ended_wall.unwrap_or(operation.begun_wall),
        who: operation.origin.clone(),
        from: format!("controller {controller}"),
        what: format!("end of {} {} {about}, operation {}", operation.kind.label(), operation.cluster, operation.id),
        outcome,
    })
}

/// A step of a sequence asks on behalf of the sequence, whose own end is told.
fn was_asked_for(origin: &str) -> bool {
    !RESERVED_NAMES.contains(&origin) && !origin.starts_with("sequence:")
}

/// One line.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::WallTime;
    use crate::domain::plan::{Intent, Reason};

    #[test]
    fn a_scheduled_switchover_is_its_operators_and_everything_else_nobodys() {
        let scheduled = ScheduledSwitchover { at: WallTime(0), to: None, site: None, who: "ann".to_owned() };
        let plan = |code| Plan {
            intent: Intent::Hold,
            reasons: vec![Reason::new(code, "")],
            blocked_by: Vec::new(),
            based_on: None,
            loss: None,
        };
        assert_eq!(origin(&plan(ReasonCode::Scheduled), Some(&scheduled)), "ann");
        assert_eq!(origin(&plan(ReasonCode::Healthy), Some(&scheduled)), "automatic", "a failover before its time");
        assert_eq!(origin(&plan(ReasonCode::Scheduled), None), "automatic");
        assert!(was_asked_for("ann") && was_asked_for("alert:01a88acc357e86bc") && was_asked_for("oidc:ann"));
        assert!(["automatic", "schedule", "drift", "sequence:k/1"].into_iter().all(|nobody| !was_asked_for(nobody)));
    }
}
