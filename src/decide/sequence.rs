//! Which sequence begins by itself, and with which variables. Reads the view; whether an alert names one is `alert`'s to say.

use std::collections::BTreeMap;

use super::{alert, early_warning};
use crate::domain::ids::OperationId;
use crate::domain::operation::{Operation, OperationKind, OperationStatus};
use crate::domain::plan::{Intent, Plan, Reason, ReasonCode};
use crate::domain::policy::{Policy, PredictionMode};
use crate::domain::sequence::{Sequence, Trigger};
use crate::domain::view::View;

/// The next sequence that a failover of the present epoch calls for, with that failover; `None`: nothing is due.
pub fn due<'a>(
    view: &View,
    operations: &'a [Operation],
    sequences: &'a [Sequence],
) -> Option<(&'a Sequence, &'a Operation)> {
    let record = view.record.as_ref()?;
    let moved = operations.iter().find(|operation| {
        let to_another = matches!(&operation.kind, OperationKind::Failover { from, to, .. } if from != to);
        to_another && operation.status == OperationStatus::Succeeded && operation.epoch_after == Some(record.epoch)
    })?;
    let begun = |sequence: &Sequence| {
        operations.iter().any(|other| {
            matches!(&other.kind, OperationKind::Sequence { name, cause, .. }
                if *name == sequence.name && cause.as_ref() == Some(&moved.id))
        })
    };
    let wanted = |sequence: &&Sequence| sequence.when.contains(&Trigger::AfterFailover) && !begun(sequence);
    sequences.iter().find(wanted).map(|sequence| (sequence, moved))
}

/// The next sequence that the primary's risk calls for, and why; `None`: nothing is due.
///
/// A risk counts as a prediction's alarm does: it must have been there for `confirm_after`, it is over after `release_after`, each
/// sequence has one beginning in each window of the budget, and nothing begins while automatic operations are paused or predictions
/// are only shown.
pub fn due_by_risk<'a>(
    view: &View,
    policy: &Policy,
    operations: &[Operation],
    sequences: &'a [Sequence],
) -> Option<(&'a Sequence, Reason)> {
    let record = view.record.as_ref()?;
    if policy.prediction.mode == PredictionMode::Observe || alert::is_paused(view) {
        return None;
    }
    let outlook = view.outlooks.get(&record.holder)?;
    let risk = outlook.risk.known()?;
    let lasts = |sequence: &Sequence| {
        let limits = sequence.when.iter().filter_map(|trigger| match trigger {
            Trigger::OnRisk { percent } => Some(*percent),
            _ => None,
        });
        limits
            .filter(|percent| early_warning::reaches(risk, *percent))
            .filter_map(|percent| Some((percent, *outlook.reached.get(&percent)?)))
            .find(|(_, lasts)| *lasts >= policy.prediction.confirm_after)
    };
    // A time in the future counts as now: a clock that was set back buys nothing.
    let is_spent = |sequence: &Sequence| {
        operations.iter().any(|other| {
            matches!(&other.kind, OperationKind::Sequence { name, .. } if *name == sequence.name)
                && (!other.status.is_final()
                    || early_warning::is_by_prediction(other)
                        && view.wall.since(other.begun_wall) < policy.prediction.budget_window)
        })
    };
    sequences.iter().filter(|sequence| !is_spent(sequence)).find_map(|sequence| {
        let (percent, lasts) = lasts(sequence)?;
        let detail = format!(
            "risk {:.0} %, at least {percent} % for {:.0} s by model {}: {}",
            risk.probability? * 100.0,
            lasts.as_secs_f64(),
            risk.model,
            early_warning::drivers(risk)
        );
        Some((sequence, Reason::about(&record.holder, ReasonCode::PredictedTrouble, detail)))
    })
}

/// The operation that carries `sequence` out, or why it must not begin. `cause`: the failover that it follows.
pub fn plan(
    view: &View,
    operations: &[Operation],
    sequence: &Sequence,
    cause: Option<&Operation>,
    reason: Reason,
) -> Plan {
    let plan = |intent, reasons, blocked_by| Plan {
        intent,
        reasons,
        blocked_by,
        based_on: view.record.as_ref().map(|record| (record.epoch, record.number)),
        loss: None,
    };
    let Some(record) = &view.record else {
        let why = Reason::new(ReasonCode::WaitingForEveryNode, "there is no first epoch yet");
        return plan(Intent::Hold, Vec::new(), vec![why]);
    };
    let running = operations.iter().find(|other| {
        !other.status.is_final()
            && matches!(&other.kind, OperationKind::Sequence { name, .. } if *name == sequence.name)
    });
    if let Some(running) = running {
        let why = Reason::new(
            ReasonCode::OperationUnderWay,
            format!("sequence {} is operation {}", sequence.name, running.id),
        );
        return plan(Intent::Hold, Vec::new(), vec![why]);
    }
    // Without a cause the latest move of the primary is what templates speak of.
    let latest = || {
        let moves =
            operations.iter().filter(|other| other.kind.moves_primary() && other.status == OperationStatus::Succeeded);
        moves.max_by_key(|other| other.epoch_after)
    };
    let old_primary = cause.or_else(latest).and_then(|operation| match &operation.kind {
        OperationKind::Failover { from, to, .. } | OperationKind::Switchover { from, to } if from != to => Some(from),
        _ => None,
    });
    let site = |node| view.nodes.get(node).map(|node| node.site.to_string()).unwrap_or_default();
    let variables = [
        ("cluster", record.cluster.to_string()),
        ("epoch", record.epoch.to_string()),
        ("new_primary", record.holder.to_string()),
        ("primary_host", record.holder_address.host.clone()),
        ("primary_port", record.holder_address.port.to_string()),
        ("site", site(&record.holder)),
        ("old_primary", old_primary.map(ToString::to_string).unwrap_or_default()),
        ("old_site", old_primary.map(site).unwrap_or_default()),
    ];
    let operation = OperationKind::Sequence {
        name: sequence.name.clone(),
        cause: cause.map(|operation| OperationId(operation.id.0.clone())),
        primary: record.holder.clone(),
        steps: sequence.steps.clone(),
        variables: variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>(),
    };
    plan(Intent::Start { operation }, vec![reason], Vec::new())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::decide::tests::{operation, policy, record, view};
    use crate::domain::clock::WallTime;
    use crate::domain::risk::{ModelName, Outlook, Risk};
    use crate::domain::view::Fact;

    const HOUR: Duration = Duration::from_secs(3600);

    fn sequences() -> Vec<Sequence> {
        let named = |name: &str, when: Vec<Trigger>| Sequence { name: name.to_owned(), when, steps: Vec::new() };
        vec![
            named("after", vec![Trigger::AfterFailover]),
            named("early", vec![Trigger::OnRisk { percent: 30 }]),
            named("late", vec![Trigger::OnAlert { alert: "Down".to_owned() }, Trigger::OnRisk { percent: 80 }]),
        ]
    }

    /// The primary's risk, and for how many seconds it has been at least 30 and 80 per cent.
    fn risky(probability: f64, reached: &[(u32, u64)]) -> View {
        let mut view = view(&record());
        let risk = Risk {
            probability: Some(probability),
            score: 1.0,
            alarm: true,
            drifts: false,
            abstains: None,
            drivers: Vec::new(),
            model: ModelName { name: "lab".to_owned(), version: "1".to_owned() },
        };
        let outlook = Outlook {
            risk: Fact::Known { value: risk.into(), age: Duration::ZERO },
            reached: reached.iter().map(|(percent, seconds)| (*percent, Duration::from_secs(*seconds))).collect(),
            ..Outlook::default()
        };
        view.outlooks.insert(record().holder, outlook);
        view
    }

    fn names(view: &View, policy: &Policy, operations: &[Operation]) -> Vec<String> {
        let all = sequences();
        let mut found = Vec::new();
        let mut operations = operations.to_vec();
        while let Some((sequence, why)) = due_by_risk(view, policy, &operations, &all) {
            found.push(sequence.name.clone());
            operations.push(begun(sequence, WallTime(0), &[why]));
            assert!(found.len() <= all.len(), "it begins again and again: {found:?}");
        }
        found
    }

    fn begun(sequence: &Sequence, wall: WallTime, reasons: &[Reason]) -> Operation {
        let kind = OperationKind::Sequence {
            name: sequence.name.clone(),
            cause: None,
            primary: record().holder,
            steps: Vec::new(),
            variables: BTreeMap::new(),
        };
        let mut operation = operation(kind);
        (operation.status, operation.begun_wall, operation.reasons) =
            (OperationStatus::Succeeded, wall, reasons.to_vec());
        operation
    }

    #[test]
    fn a_risk_begins_a_sequence_once_it_has_lasted() {
        let policy = policy();
        let confirm = policy.prediction.confirm_after.as_secs();
        assert_eq!(names(&risky(0.9, &[(30, confirm), (80, confirm)]), &policy, &[]), ["early", "late"]);
        assert_eq!(names(&risky(0.9, &[(30, confirm), (80, confirm - 1)]), &policy, &[]), ["early"]);
        assert_eq!(names(&risky(0.5, &[(30, confirm), (80, confirm)]), &policy, &[]), ["early"], "it fell meanwhile");
        assert_eq!(names(&risky(0.2, &[(30, confirm)]), &policy, &[]), [""; 0]);
        assert_eq!(names(&risky(f64::NAN, &[(30, confirm)]), &policy, &[]), [""; 0]);
        assert_eq!(names(&view(&record()), &policy, &[]), [""; 0], "without a word of a model");
        let (all, view) = (sequences(), risky(0.9, &[(30, confirm)]));
        let (_, why) = due_by_risk(&view, &policy, &[], &all).expect("due");
        assert_eq!(why.code, ReasonCode::PredictedTrouble);
        assert!(why.detail.contains("risk 90 %, at least 30 % for 45 s by model lab 1"), "{}", why.detail);
    }

    #[test]
    fn what_is_old_unsure_or_of_others_begins_nothing() {
        let policy = policy();
        let confirm = policy.prediction.confirm_after.as_secs();
        let sure = risky(0.9, &[(30, confirm)]);
        let change = |change: &dyn Fn(&mut Outlook)| {
            let mut view = sure.clone();
            change(view.outlooks.get_mut(&record().holder).expect("there"));
            names(&view, &policy, &[])
        };
        let risk = sure.outlooks[&record().holder].risk.known().expect("known").clone();
        assert_eq!(change(&|_| {}), ["early"]);
        let stale = Fact::Unknown { last: Some(risk.clone().into()), for_duration: HOUR };
        assert_eq!(change(&|outlook| outlook.risk = stale.clone()), [""; 0]);
        let silent = Risk { abstains: Some("drift".to_owned()), ..risk };
        let silent = Fact::Known { value: silent.into(), age: Duration::ZERO };
        assert_eq!(change(&|outlook| outlook.risk = silent.clone()), [""; 0]);
        let mut standby = sure.clone();
        let outlook = standby.outlooks.remove(&record().holder).expect("there");
        standby.outlooks.insert(crate::decide::tests::node("n2"), outlook);
        assert_eq!(names(&standby, &policy, &[]), [""; 0], "the risk of a standby");
    }

    #[test]
    fn nothing_begins_while_paused_observed_only_under_way_or_over_the_budget() {
        let mut policy = policy();
        let mut view = risky(0.9, &[(30, policy.prediction.confirm_after.as_secs())]);
        view.wall = WallTime(1_795_000_000_000_000);
        let early = &sequences()[1];
        let predicted = [Reason::new(ReasonCode::PredictedTrouble, "")];
        let ago = |ago: Duration| WallTime(view.wall.0 - ago.as_micros() as i64);
        for (words, before, begins) in [
            ("five hours ago", begun(early, ago(HOUR * 5), &predicted), false),
            ("seven hours ago", begun(early, ago(HOUR * 7), &predicted), true),
            ("tomorrow, by the clock of then", begun(early, view.wall.plus(HOUR * 24), &predicted), false),
            ("by hand, just now", begun(early, ago(Duration::ZERO), &[]), true),
            ("another one", begun(&sequences()[2], ago(Duration::ZERO), &predicted), true),
            (
                "by hand, under way",
                Operation { status: OperationStatus::Running, ..begun(early, ago(HOUR), &[]) },
                false,
            ),
        ] {
            assert_eq!(due_by_risk(&view, &policy, &[before], &sequences()).is_some(), begins, "{words}");
        }
        let mut paused = view.clone();
        paused.record.as_mut().expect("there").paused_until = Some(view.wall.plus(HOUR));
        assert!(due_by_risk(&paused, &policy, &[], &sequences()).is_none(), "paused");
        paused.record.as_mut().expect("there").paused_until = Some(view.wall);
        assert!(due_by_risk(&paused, &policy, &[], &sequences()).is_some(), "the pause is over");
        for (mode, begins) in
            [(PredictionMode::Observe, false), (PredictionMode::Advise, true), (PredictionMode::Act, true)]
        {
            policy.prediction.mode = mode;
            assert_eq!(due_by_risk(&view, &policy, &[], &sequences()).is_some(), begins, "{mode:?}");
        }
    }
}
