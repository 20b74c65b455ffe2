//! The switchover that a prediction begins away from a disk that is about to fail: when it goes its own way, and when it does not.

use super::*;

/// What a prediction begins a switchover with where the write probe has become slow.
pub fn predicted(name: &str) -> Vec<Reason> {
    let about = |code| Reason::about(&node(name), code, "");
    vec![about(ReasonCode::PredictedTrouble), about(ReasonCode::SlowsDown)]
}

#[test]
fn only_a_prediction_about_a_slow_primary_leaves_the_checkpoint_out() {
    let steps = |reasons: Vec<Reason>, to: &str| {
        let mut world = healthy();
        world.reasons = reasons;
        let id = world.begin(OperationKind::Switchover { from: node("n1"), to: node(to) });
        assert_eq!(drive(&mut world, &id).status, OperationStatus::Succeeded);
        world.steps_run
    };
    let both = predicted("n1");
    assert!(steps(both.clone(), "n2").starts_with(&[StepName::Drain, StepName::Fence, StepName::AdvanceEpoch]));
    for (reasons, to, words) in [
        (Vec::new(), "n2", "an operator's"),
        (both[..1].to_vec(), "n2", "a disk that fills"),
        (both[1..].to_vec(), "n2", "an operator's, of a slow primary"),
        (predicted("n2"), "n2", "another node's disk"),
        (both, "n3", "to a standby that confirms nothing"),
    ] {
        assert!(steps(reasons, to).starts_with(&[StepName::Checkpoint, StepName::Drain, StepName::Demote]), "{words}");
    }
}

#[test]
fn nobody_is_killed_for_a_standby_that_confirms_no_longer() {
    let mut world = healthy();
    world.reasons = predicted("n1");
    let id = world.begin(OperationKind::Switchover { from: node("n1"), to: node("n2") });
    while world.operation(&id).attempts(StepName::Drain) == 0 {
        assert!(world.turn(&id), "ended early");
    }
    let mut record = world.store.clone().expect("stored").changed();
    record.eligible.clear();
    world.store = Some(record.clone());
    world.controller.record = Some(record);
    let ended = drive(&mut world, &id);
    assert_eq!(ended.status, OperationStatus::Failed);
    assert!(ended.message.is_some_and(|message| message.contains("does not confirm every commit")));
    assert!(!world.steps_run.contains(&StepName::Fence), "{:?}", world.steps_run);
    assert_eq!(who_writes(&world), "n1 writes in epoch 3");
    assert!(!world.proxy_holds, "writers go on");
}
