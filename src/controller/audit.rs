//! How operations that somebody asked for ended, as rows of the audit log: the row of the request says only that it was accepted.
//!
//! What is asked, and by whom, is the API's to write; when a row is written, the journal's.

use crate::domain::access::RESERVED_NAMES;
use crate::domain::operation::{Operation, OperationKind};
use crate::domain::trail::AuditRow;

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
