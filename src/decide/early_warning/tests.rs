//! What a prediction may do, guard by guard; and that without one nothing changes, whatever the view.

use proptest::prelude::*;

use super::*;
use crate::decide::decide;
use crate::decide::tests::{any_case, node, operation, policy, record, view};
use crate::domain::clock::WallTime;
use crate::domain::plan::Plan;
use crate::domain::risk::{Driver, Exhaustion, ModelName, Resource, Risk, Slowdown, WalCongestion};
use crate::domain::view::Fact;

const HOUR: Duration = Duration::from_secs(3600);

fn risk(probability: Option<f64>) -> Risk {
    Risk {
        probability,
        score: 1.0,
        alarm: probability.is_some_and(|probability| probability >= 0.5),
        drifts: false,
        abstains: None,
        drivers: vec![Driver {
            feature: "data_free_bytes".to_owned(),
            value: Some(1e8),
            unit: "bytes".to_owned(),
            share: 0.7,
            deviation: -9.0,
        }],
        model: ModelName { name: "lab".to_owned(), version: "1".to_owned() },
    }
}

fn known(risk: Risk) -> Fact<Risk> {
    Fact::Known { value: risk.into(), age: Duration::ZERO }
}

fn calm() -> Outlook {
    Outlook { risk: known(risk(Some(0.02))), ..Outlook::default() }
}

fn sick() -> Outlook {
    let exhaustion = Exhaustion { resource: Resource::DataSpace, left: 1e8, remaining: Duration::from_secs(30) };
    Outlook {
        risk: known(risk(Some(0.9))),
        alarmed_for: Some(Duration::from_secs(60)),
        exhaustions: vec![exhaustion],
        ..Outlook::default()
    }
}

fn acting() -> Policy {
    let mut policy = policy();
    policy.prediction.mode = PredictionMode::Act;
    policy
}

/// The primary is about to fail; everybody else is well.
fn warned() -> View {
    let mut view = view(&record());
    view.wall = WallTime(0).plus(HOUR * 24 * 365);
    view.outlooks =
        [("n1", sick()), ("n2", calm()), ("n3", calm())].map(|(name, outlook)| (node(name), outlook)).into();
    view
}

fn codes(reasons: &[Reason]) -> Vec<ReasonCode> {
    reasons.iter().map(|reason| reason.code).collect()
}

/// What blocks the move in `view`, which the same view without `change` would begin.
fn blocked(change: impl FnOnce(&mut View, &mut Policy)) -> Vec<ReasonCode> {
    let (mut view, mut policy) = (warned(), acting());
    change(&mut view, &mut policy);
    let plan = decide(&view, &policy, &[]);
    assert_eq!(plan.intent, Intent::Hold, "{plan:?}");
    codes(&plan.blocked_by)
}

fn outlook<'a>(view: &'a mut View, name: &str) -> &'a mut Outlook {
    view.outlooks.get_mut(&node(name)).expect("there")
}

#[test]
fn a_primary_that_is_about_to_fail_is_left_in_time_and_the_plan_says_why() {
    let plan = decide(&warned(), &acting(), &[]);
    let expected = OperationKind::Switchover { from: node("n1"), to: node("n2") };
    assert_eq!(plan.intent, Intent::Start { operation: expected });
    let found = codes(&plan.reasons);
    assert_eq!(found[..2], [ReasonCode::PredictedTrouble, ReasonCode::RunsOut], "{plan:?}");
    assert!(found.contains(&ReasonCode::HoldsEveryConfirmedCommit), "{plan:?}");
    let words = plan.reasons[0].to_string();
    assert!(words.contains("risk 90 %") && words.contains("data free bytes") && words.contains("lab 1"), "{words}");
}

#[test]
fn advice_says_what_would_be_done_and_does_nothing() {
    let plan = decide(&warned(), &policy(), &[]);
    assert_eq!(plan.intent, Intent::Hold);
    assert_eq!(codes(&plan.blocked_by), [ReasonCode::PredictionAdvises]);
    assert!(plan.blocked_by[0].detail.contains("n2"), "{plan:?}");
    assert_eq!(plan.reasons[0].code, ReasonCode::PredictedTrouble);
}

#[test]
fn who_only_observes_decides_as_without_a_model() {
    let mut observing = policy();
    observing.prediction.mode = PredictionMode::Observe;
    let without = View { outlooks: Default::default(), ..warned() };
    assert_eq!(decide(&warned(), &observing, &[]), decide(&without, &observing, &[]));
}

#[test]
fn the_models_word_alone_moves_nothing() {
    let refused = blocked(|view, _| outlook(view, "n1").exhaustions.clear());
    assert_eq!(refused, [ReasonCode::Uncorroborated]);
    let mut view = warned();
    *outlook(&mut view, "n1") = Outlook {
        exhaustions: Vec::new(),
        slowdown: Some(Slowdown { usual: Duration::from_millis(4), now: Duration::from_millis(90) }),
        ..sick()
    };
    assert!(matches!(decide(&view, &acting(), &[]).intent, Intent::Start { .. }), "a slow probe is another kind");
    let transactions = Some(Slowdown { usual: Duration::from_millis(3), now: Duration::from_millis(12) });
    let wal_congestion = Some(WalCongestion { waiting: 8, writes_usual: 480.0, writes_now: 300.0, transactions });
    *outlook(&mut view, "n1") = Outlook { exhaustions: Vec::new(), wal_congestion, ..sick() };
    let decided = decide(&view, &acting(), &[]);
    assert!(matches!(decided.intent, Intent::Start { .. }), "and so are clients that wait for WAL");
    let told = "8 clients wait for WAL to be flushed, and a transaction takes 0.012 s, usually 0.003 s; 300 write transactions a second, usually 480";
    assert!(decided.reasons.iter().any(|reason| reason.detail == told), "{:?}", decided.reasons);
}

#[test]
fn what_runs_out_without_an_alarm_moves_nothing_and_blocks_nothing() {
    let mut view = warned();
    outlook(&mut view, "n1").risk = known(risk(Some(0.1)));
    let without = View { outlooks: Default::default(), ..warned() };
    assert_eq!(decide(&view, &acting(), &[]), decide(&without, &acting(), &[]));
}

#[test]
fn a_cluster_that_is_sick_as_a_whole_is_not_moved() {
    assert_eq!(blocked(|view, _| *outlook(view, "n3") = sick()), [ReasonCode::SeveralNodesSick]);
    // A spike in the metrics of all of them, and nothing behind it by the agents' word.
    let spike = blocked(|view, _| {
        for outlook in view.outlooks.values_mut() {
            *outlook = Outlook { exhaustions: Vec::new(), ..sick() };
        }
    });
    assert!(spike.contains(&ReasonCode::Uncorroborated), "{spike:?}");
}

#[test]
fn a_candidate_must_be_a_better_place() {
    for (words, there) in [
        ("its risk is as high", Outlook { alarmed_for: None, exhaustions: Vec::new(), ..sick() }),
        ("it runs out as soon", Outlook { exhaustions: sick().exhaustions, ..calm() }),
        ("nobody knows", Outlook::default()),
        ("the model abstains", Outlook { risk: known(risk(None)), ..Outlook::default() }),
        ("its risk is NaN", Outlook { risk: known(risk(Some(f64::NAN))), ..Outlook::default() }),
        (
            "its probe is slow",
            Outlook {
                slowdown: Some(Slowdown { usual: Duration::from_millis(4), now: Duration::from_millis(90) }),
                ..calm()
            },
        ),
    ] {
        assert_eq!(blocked(|view, _| *outlook(view, "n2") = there), [ReasonCode::CandidateNotBetter], "{words}");
    }
}

#[test]
fn without_a_candidate_the_guards_of_a_switchover_refuse() {
    let refused = blocked(|view, _| {
        for name in ["n2", "n3"] {
            view.nodes.get_mut(&node(name)).expect("there").report =
                Fact::Unknown { last: None, for_duration: Duration::from_secs(9) };
        }
    });
    assert!(!refused.is_empty() && !refused.contains(&ReasonCode::PredictionAdvises), "{refused:?}");
}

#[test]
fn a_storm_of_alarms_moves_once_in_a_window_also_after_a_restart_and_a_clock_that_was_set_back() {
    let policy = acting();
    let view = warned();
    let begun = |wall: WallTime, reasons: &[Reason]| {
        let mut moved = operation(OperationKind::Switchover { from: node("n2"), to: node("n1") });
        moved.status = crate::domain::operation::OperationStatus::Failed;
        (moved.begun_wall, moved.reasons) = (wall, reasons.to_vec());
        moved
    };
    let Plan { reasons, .. } = decide(&view, &policy, &[]);
    let ago = |ago: Duration| WallTime(view.wall.0 - ago.as_micros() as i64);
    for (words, wall, may_move) in [
        ("just now", ago(Duration::ZERO), false),
        ("five hours ago", ago(HOUR * 5), false),
        ("seven hours ago", ago(HOUR * 7), true),
        ("tomorrow, by the clock of then", view.wall.plus(HOUR * 24), false),
    ] {
        let plan = decide(&view, &policy, &[begun(wall, &reasons)]);
        assert_eq!(matches!(plan.intent, Intent::Start { .. }), may_move, "{words}: {plan:?}");
        assert_eq!(codes(&plan.blocked_by).contains(&ReasonCode::PredictionBudget), !may_move, "{words}");
    }
    let by_hand = begun(ago(Duration::ZERO), &[Reason::new(ReasonCode::OperatorRequest, "")]);
    assert!(!is_predictive(&by_hand), "an operator has no budget");
    assert!(matches!(decide(&view, &policy, &[by_hand]).intent, Intent::Start { .. }));
}

#[test]
fn an_alarm_neither_flickers_on_nor_off() {
    let second = |seconds: u64| Moment(1_000_000 * seconds);
    let release = Duration::from_secs(5);
    let mut alarm = Alarm::default();
    assert_eq!(alarm.lasts(), None);
    for (at, begins, goes_on, lasts) in [
        (9, false, true, None),
        (10, false, false, None),
        (11, true, true, Some(0)),
        (12, false, false, Some(0)),
        (14, true, true, Some(3)),
        (17, false, true, Some(6)),
        (21, false, false, Some(6)),
        (22, false, true, Some(11)),
        (26, false, false, Some(11)),
        (27, false, false, None),
        (28, false, true, None),
        (29, true, true, Some(0)),
    ] {
        alarm = alarm.heard(begins, goes_on, second(at), release);
        assert_eq!(alarm.lasts(), lasts.map(Duration::from_secs), "at {at} s");
    }
    let short = blocked_by_nothing(Duration::from_secs(44));
    assert!(short, "an alarm of less than three steps does not count");
}

/// True if an alarm that has lasted for `lasts` changes nothing.
fn blocked_by_nothing(lasts: Duration) -> bool {
    let mut view = warned();
    outlook(&mut view, "n1").alarmed_for = Some(lasts);
    let without = View { outlooks: Default::default(), ..warned() };
    decide(&view, &acting(), &[]) == decide(&without, &acting(), &[])
}

/// What a model that is missing, broken, stale or silent leaves behind, with whatever the agents say of resources.
fn any_silence() -> impl Strategy<Value = Outlook> {
    let broken = Risk { abstains: Some("the model gives NaN".to_owned()), ..risk(None) };
    let facts = vec![
        Fact::Absent,
        Fact::Unknown { last: None, for_duration: HOUR },
        Fact::Unknown { last: Some(risk(Some(0.99)).into()), for_duration: HOUR },
        known(broken.clone()),
        known(Risk { alarm: true, ..broken }),
        known(risk(Some(f64::NAN))),
        known(risk(Some(0.49))),
        known(risk(Some(0.0))),
    ];
    let exhaustions = prop::option::of(1_u64..100).prop_map(|seconds| {
        let runs_out = |seconds| Exhaustion {
            resource: Resource::Connections,
            left: 3.0,
            remaining: Duration::from_secs(seconds),
        };
        seconds.map(runs_out).into_iter().collect::<Vec<_>>()
    });
    let alarms = prop::option::of(0_u64..100).prop_map(|seconds| seconds.map(Duration::from_secs));
    (prop::sample::select(facts), exhaustions, alarms).prop_map(|(risk, exhaustions, alarmed_for)| Outlook {
        risk,
        alarmed_for,
        exhaustions,
        ..Outlook::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_048, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rule 9 as an equality: no model, a broken model, and a model that says nothing give the very same plan.
    #[test]
    fn without_a_word_of_the_model_the_plan_is_the_one_without_a_model(
        (view, _record, policy) in any_case(),
        silences in prop::collection::vec(any_silence(), 3),
        mode in prop::sample::select(vec![PredictionMode::Observe, PredictionMode::Advise, PredictionMode::Act]),
    ) {
        let mut policy = policy;
        let without = decide(&view, &policy, &[]);
        policy.prediction.mode = mode;
        let names = ["n1", "n2", "n3"].map(node);
        let outlooks = names.into_iter().zip(silences).collect();
        let silent = View { outlooks, ..view };
        prop_assert_eq!(decide(&silent, &policy, &[]), without);
    }

    /// Whatever a model says, nothing but a switchover away from a primary that writes ever comes of it: every other plan stays.
    #[test]
    fn a_prediction_starts_nothing_but_a_switchover((view, _record, policy) in any_case()) {
        let without = decide(&view, &policy, &[]);
        let mut policy = policy;
        policy.prediction.mode = PredictionMode::Act;
        let outlooks = [("n1", sick()), ("n2", calm()), ("n3", calm())].map(|(name, outlook)| (node(name), outlook));
        let loud = View { outlooks: outlooks.into(), ..view };
        let with = decide(&loud, &policy, &[]);
        if let Intent::Start { operation: OperationKind::Switchover { from, to } } = &with.intent {
            prop_assert!(from != to && without.intent == Intent::Hold);
        } else {
            prop_assert_eq!(with.intent, without.intent);
        }
    }
}
