//! Which events people are told of by notifications, and in which words.
//!
//! Says what a notice is; who gets it is the channels' to say.

use super::event::Event;
use crate::domain::clock::WallTime;
use crate::domain::epoch::Epoch;
use crate::domain::ids::ClusterName;
use crate::domain::notification::{Notice, NoticeKind};
use crate::domain::operation::OperationStatus;

/// What is no operation is told once in so long, even if controllers come and go.
const WINDOW_MICROSECONDS: i64 = 3_600_000_000;
/// An alert that fires anew is news.
const ALERT_WINDOW_MICROSECONDS: i64 = 60_000_000;

/// The notice of an event; `None`: it is for logs and dashboards alone.
pub fn notice(event: &Event, cluster: &ClusterName, epoch: Epoch, at: WallTime) -> Option<Notice> {
    let (key, kinds, subject) = match event {
        Event::OperationBegan { operation, kind, node, .. } => {
            (format!("{operation}/started"), vec![NoticeKind::OperationStarted], format!("{kind} of {node} began"))
        }
        Event::OperationEnded { operation, kind, node, outcome, .. } => {
            let mut kinds = Vec::new();
            match (*kind, outcome) {
                (_, OperationStatus::Succeeded) => kinds.push(NoticeKind::OperationSucceeded),
                (_, OperationStatus::Cancelled) => kinds.push(NoticeKind::OperationFailed),
                ("backup", _) => kinds.extend([NoticeKind::BackupFailed, NoticeKind::OperationFailed]),
                ("drill", _) => kinds.extend([NoticeKind::DrillFailed, NoticeKind::OperationFailed]),
                _ => kinds.push(NoticeKind::OperationFailed),
            }
            let ended = match outcome {
                OperationStatus::Succeeded => "succeeded",
                OperationStatus::Stuck => "is stuck",
                OperationStatus::Refused => "was refused",
                OperationStatus::Cancelled => "was cancelled",
                _ => "failed",
            };
            (format!("{operation}/{}", outcome.label()), kinds, format!("{kind} of {node} {ended}"))
        }
        Event::PrimaryLost { node, .. } => (
            standing("primary_lost", node.as_str(), epoch, at),
            vec![NoticeKind::PrimaryLost],
            format!("primary {node} is lost"),
        ),
        Event::AloneBegan { node } => (
            standing("alone", node.as_str(), epoch, at),
            vec![NoticeKind::Alone],
            format!("primary {node} confirms commits alone"),
        ),
        Event::RpoViolated { .. } => (
            standing("rpo_violated", "", epoch, at),
            vec![NoticeKind::RpoViolated],
            "a total loss would cost more than promised".to_owned(),
        ),
        Event::RiskBegan { reason } => {
            let node = reason.node.as_ref().map_or("a node", |node| node.as_str());
            (standing("risk", node, epoch, at), vec![NoticeKind::Risk], format!("trouble of {node} is expected"))
        }
        Event::StrainBegan { reason } => {
            let node = reason.node.as_ref().map_or("the cluster", |node| node.as_str());
            let what = reason.code.label().replace('_', " ");
            let about = format!("{}/{node}", reason.code.label());
            (standing("strain", &about, epoch, at), vec![NoticeKind::Strain], format!("{node} is under strain: {what}"))
        }
        Event::AlertHandled { fingerprint, name, action: "notify", outcome: "told", .. } => {
            let window = at.0.div_euclid(ALERT_WINDOW_MICROSECONDS);
            (format!("alert/{fingerprint}/{window}"), vec![NoticeKind::Alert], format!("alert {name}"))
        }
        _ => return None,
    };
    let (operation, operation_kind) = match event {
        Event::OperationBegan { operation, kind, .. } | Event::OperationEnded { operation, kind, .. } => {
            (Some(operation.clone()), Some((*kind).to_owned()))
        }
        _ => (None, None),
    };
    Some(Notice {
        key,
        kinds,
        cluster: cluster.clone(),
        epoch,
        severity: event.severity().label().to_owned(),
        subject,
        text: event.sentence(),
        operation,
        operation_kind,
        at,
    })
}

/// The key of a condition: the same while it lasts, and anew in another epoch or an hour later.
fn standing(what: &str, about: &str, epoch: Epoch, at: WallTime) -> String {
    format!("{what}/{about}/{epoch}/{}", at.0.div_euclid(WINDOW_MICROSECONDS))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::ids::{NodeName, OperationId};
    use crate::domain::plan::{Reason, ReasonCode};

    const AT: WallTime = WallTime(1_795_000_000_000_000);

    fn of(event: &Event, epoch: u64, at: WallTime) -> Option<Notice> {
        notice(event, &ClusterName::new("main").expect("valid"), Epoch(epoch), at)
    }

    fn ended(kind: &'static str, outcome: OperationStatus) -> Notice {
        let event = Event::OperationEnded {
            operation: OperationId("0190".to_owned()),
            kind,
            node: NodeName::new("db2").expect("valid"),
            outcome,
            took: Duration::from_secs(3),
            message: Some("why".to_owned()),
        };
        of(&event, 4, AT).expect("a notice")
    }

    #[test]
    fn the_end_of_an_operation_has_its_kind_its_words_and_a_key_of_its_own() {
        let cases = [
            (
                "failover",
                OperationStatus::Succeeded,
                "failover of db2 succeeded",
                &[NoticeKind::OperationSucceeded][..],
            ),
            ("failover", OperationStatus::Stuck, "failover of db2 is stuck", &[NoticeKind::OperationFailed]),
            ("switchover", OperationStatus::Refused, "switchover of db2 was refused", &[NoticeKind::OperationFailed]),
            ("backup", OperationStatus::Cancelled, "backup of db2 was cancelled", &[NoticeKind::OperationFailed]),
            (
                "backup",
                OperationStatus::Failed,
                "backup of db2 failed",
                &[NoticeKind::BackupFailed, NoticeKind::OperationFailed],
            ),
            (
                "drill",
                OperationStatus::Failed,
                "drill of db2 failed",
                &[NoticeKind::DrillFailed, NoticeKind::OperationFailed],
            ),
        ];
        for (kind, outcome, subject, kinds) in cases {
            let notice = ended(kind, outcome);
            assert_eq!((notice.subject.as_str(), &notice.kinds[..]), (subject, kinds));
            assert_eq!(notice.key, format!("0190/{}", outcome.label()));
            assert_eq!(notice.operation_kind.as_deref(), Some(kind));
        }
        assert_eq!(ended("failover", OperationStatus::Stuck).severity, "error");
    }

    #[test]
    fn a_condition_is_told_once_an_hour_and_epoch() {
        let node = NodeName::new("db2").expect("valid");
        let event = Event::RiskBegan { reason: Reason::about(&node, ReasonCode::PostgresDown, "soon") };
        let key = |epoch, minutes: i64| of(&event, epoch, WallTime(AT.0 + minutes * 60_000_000)).expect("a notice").key;
        assert_eq!(key(4, 0), key(4, 5));
        assert_ne!(key(4, 0), key(5, 0));
        assert_ne!(key(4, 0), key(4, 60));
    }

    #[test]
    fn an_alert_that_only_notifies_is_told_and_one_that_acts_is_told_by_its_operation() {
        let handled = |action, outcome| Event::AlertHandled {
            fingerprint: "01a8".to_owned(),
            name: "DiskSlow".to_owned(),
            action,
            outcome,
            detail: "n1 is slow".to_owned(),
            operation: None,
        };
        let notice = of(&handled("notify", "told"), 4, AT).expect("a notice");
        assert_eq!((notice.subject.as_str(), &notice.kinds[..]), ("alert DiskSlow", &[NoticeKind::Alert][..]));
        assert_eq!(of(&handled("failover", "begun"), 4, AT), None);
        assert_eq!(of(&handled("notify", "refused"), 4, AT), None);
        assert_eq!(of(&Event::Resumed { who: None }, 4, AT), None);
    }
}
