//! Quantities, reasons and operations in words.

use std::time::Duration;

use crate::domain::ids::NodeName;
use crate::domain::operation::OperationKind;
use crate::domain::plan::{Reason, ReasonCode};

/// A span of time, rounded for people: `0.4s`, `42s`, `3m 10s`, `3d 4h`.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |whole: u64, unit: char, part: u64, part_unit: char| match part {
        0 => format!("{whole}{unit}"),
        part => format!("{whole}{unit} {part}{part_unit}"),
    };
    match seconds {
        0..10 => format!("{:.1}s", duration.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, 'm', seconds % 60, 's'),
        3_600..86_400 => two(seconds / 3_600, 'h', seconds % 3_600 / 60, 'm'),
        _ => two(seconds / 86_400, 'd', seconds % 86_400 / 3_600, 'h'),
    }
}

/// A span that was measured: `31 ms`, `1.24 s`, `3m 10s`.
pub fn measured(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else if duration < Duration::from_secs(60) {
        format!("{:.2} s", duration.as_secs_f64())
    } else {
        span(duration)
    }
}

/// A span of a document, which may hold any number.
pub fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)
}

/// `0 B`, `812 B`, `2.1 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `switchover db1 -> db2`.
pub fn operation(kind: &OperationKind) -> String {
    match kind {
        OperationKind::Failover { from, to, .. } if from == to => format!("failover of {from} in place"),
        OperationKind::Failover { from, to, .. } => format!("failover {from} -> {to}"),
        OperationKind::Switchover { from, to } => format!("switchover {from} -> {to}"),
        OperationKind::Rejoin { node, reclone: true } => format!("rejoin {node} by reclone"),
        OperationKind::Rejoin { node, reclone: false } => format!("rejoin {node}"),
        OperationKind::Fence { node } => format!("fence {node}"),
        OperationKind::Sequence { name, .. } => format!("sequence {name}"),
        OperationKind::Backup { node, backup_type } => format!("{backup_type} backup of {node}"),
        OperationKind::Drill { node, .. } => format!("drill on {node}"),
        OperationKind::Retrain { .. } => "retraining".to_owned(),
        OperationKind::Restore { node, target, into: None, .. } => format!("restore {node} to {target}"),
        OperationKind::Restore { node, target, into: Some(directory), .. } => {
            format!("copy to {directory} on {node}, restored to {target}")
        }
    }
}

/// The reason in a place where `about` is named already.
pub fn reason(reason: &Reason, about: Option<&NodeName>) -> String {
    let hidden = about.is_some() && reason.node.as_ref() == about;
    if hidden { Reason { node: None, ..reason.clone() }.to_string() } else { reason.to_string() }
}

/// Several reasons in one cell.
pub fn reasons(all: &[Reason], about: Option<&NodeName>) -> String {
    all.iter().map(|one| reason(one, about)).collect::<Vec<_>>().join("; ")
}

/// True for what speaks against promoting a node.
pub fn is_obstacle(code: ReasonCode) -> bool {
    use ReasonCode as C;
    matches!(
        code,
        C::AgentSilent
            | C::PostgresDown
            | C::ConnectProbeFailing
            | C::WriteProbeFailing
            | C::NotEligible
            | C::TaggedNoFailover
            | C::LagOverLimit
            | C::OtherSystemIdentifier
            | C::DivergedTimeline
            | C::ReplayBroken
            | C::NotAStandby
            | C::OperatorFenced
            | C::HalfRejoined
            | C::ReceiverFrozen
            | C::NeedsRejoin
            | C::WouldLoseCommits
            | C::UnknownNode
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_well() {
        assert_eq!(span(Duration::from_millis(420)), "0.4s");
        assert_eq!(span(Duration::from_secs(190)), "3m 10s");
        assert_eq!(span(Duration::from_secs(3_600)), "1h");
        assert_eq!(span(Duration::from_secs(4 * 3_600 + 3 * 86_400)), "3d 4h");
        assert_eq!(measured(Duration::from_micros(31_900)), "31 ms");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(2_202_010), "2.1 MiB");
        assert_eq!(seconds(f64::NAN), Duration::ZERO);
    }
}
