//! Sequences at a real controller: begun by an alert, by a risk, by name; and steps that are operations of their own.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use stormglass::adapters::models::ModelFolder;
use stormglass::api::controller::ControllerHandler;
use stormglass::api::wire::{PauseRequest, SequenceRequest};
use stormglass::controller::Prediction;
use stormglass::domain::alert::{Alert, AlertState};
use stormglass::domain::backup::BackupType;
use stormglass::domain::feature::{Direction, Feature};
use stormglass::domain::operation::{Operation, OperationKind, OperationStatus};
use stormglass::domain::plan::ReasonCode;
use stormglass::domain::sequence::{OnError, Sequence, SequenceStep, StepAction, Trigger};
use stormglass::ports::metrics::{MetricError, MetricSource, Sample, Samples};

use super::{PATIENCE, Running, Setting, caller, node, start_in};

fn step(name: &str, action: StepAction) -> SequenceStep {
    SequenceStep {
        name: name.to_owned(),
        action,
        timeout_seconds: 20,
        retries: 0,
        on_error: OnError::Stop,
        condition: None,
    }
}

fn sequence(name: &str, when: Vec<Trigger>, action: StepAction) -> Sequence {
    Sequence { name: name.to_owned(), when, steps: vec![step("one", action)] }
}

fn say(words: &str) -> StepAction {
    StepAction::Command {
        command: vec!["echo".to_owned(), words.to_owned()],
        environment: Default::default(),
        directory: None,
    }
}

fn names(operations: &[Operation]) -> Vec<String> {
    let name = |operation: &Operation| match &operation.kind {
        OperationKind::Sequence { name, .. } => name.clone(),
        other => other.label().to_owned(),
    };
    operations.iter().map(name).collect()
}

fn alert(controller: &Running, name: &str) -> Alert {
    Alert {
        fingerprint: "01a88acc357e86bc".to_owned(),
        state: AlertState::Firing,
        labels: [("alertname".to_owned(), name.to_owned())].into(),
        summary: None,
        starts_at: controller.handle.wall(),
    }
}

#[tokio::test]
async fn an_alert_begins_every_sequence_that_names_it_once_and_none_while_paused() {
    let on = |name: &str| vec![Trigger::OnAlert { alert: name.to_owned() }];
    let sequences = vec![
        sequence("first", on("Alone"), say("{{ new_primary }} is alone")),
        sequence("second", on("Alone"), say("two")),
        sequence("other", on("Else"), say("three")),
    ];
    let controller = start_in(Setting { sequences, ..Setting::default() }).await;
    let alone = alert(&controller, "Alone");
    let reply = controller.handle.alerts(vec![alone.clone()], &caller()).await.expect("accepted");
    assert_eq!((reply.accepted, reply.unmatched), (1, 0), "no route is needed");
    let mut ended = names(&controller.until_ended("sequence", 2).await);
    ended.sort();
    assert_eq!(ended, ["first", "second"]);
    let operations = controller.handle.operations(None, 10).await.expect("listed");
    assert!(operations.iter().all(|operation| operation.origin == "alert:01a88acc357e86bc"));
    assert!(operations.iter().all(|operation| operation.status == OperationStatus::Succeeded), "{operations:#?}");
    let journal = format!("{:?}", operations.iter().map(|operation| &operation.journal).collect::<Vec<_>>());
    assert!(journal.contains("n1 is alone"), "{journal}");
    let reply = controller.handle.alerts(vec![alone], &caller()).await.expect("accepted");
    assert_eq!((reply.accepted, reply.repeated), (0, 1), "the same alert in the same epoch");

    controller.until_told("alert_handled", 2).await;
    let pause = PauseRequest { duration_seconds: Some(3600) };
    controller.handle.pause("main", pause, &caller()).await.expect("stored");
    let other = alert(&controller, "Else");
    assert_eq!(controller.handle.alerts(vec![other], &caller()).await.expect("accepted").accepted, 1);
    let handled = controller.until_told("alert_handled", 3).await;
    assert!(handled[2].contains("refused") && handled[2].contains("paused"), "{handled:?}");
    assert_eq!(controller.handle.operations(None, 10).await.expect("listed").len(), 2);
}

/// Features of the published model; on n1 they are as usual until a time, then everything is as bad as can be.
struct Sickening {
    features: Vec<Feature>,
    sick_from: i64,
}

#[async_trait]
impl MetricSource for Sickening {
    async fn samples(&self, seconds: RangeInclusive<i64>, step_seconds: u32) -> Result<Samples, MetricError> {
        let rows = |is_sick: bool| -> Vec<Sample> {
            let row = |second: i64| {
                let wave = (second % 7) as f32 / 100.0;
                let value = |feature: &Feature| match (feature.direction, is_sick && second >= self.sick_from) {
                    (Direction::Low, false) | (Direction::High, true) => 1e9 * (1.0 + wave),
                    (Direction::Both, _) => wave,
                    (Direction::Low, true) | (Direction::High, false) => 1.0 + wave,
                };
                self.features.iter().map(|feature| Some(value(feature))).collect()
            };
            seconds.clone().step_by(step_seconds as usize).map(row).collect()
        };
        let nodes = [(node("n1"), rows(true)), (node("n2"), rows(false))];
        Ok(Samples { nodes: nodes.into(), problems: Vec::new() })
    }
}

#[tokio::test]
async fn a_risk_of_the_primary_that_lasts_begins_a_sequence_once() {
    let models = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let document = std::fs::read_to_string(models.join("lab-1s/model.json")).expect("a published model");
    let document: serde_json::Value = serde_json::from_str(&document).expect("JSON");
    let feature = |wanted: &serde_json::Value| Feature {
        name: wanted["name"].as_str().expect("a name").to_owned(),
        query: "is not asked".to_owned(),
        unit: wanted["unit"].as_str().expect("a unit").to_owned(),
        direction: serde_json::from_value(wanted["direction"].clone()).expect("a direction"),
        absent: None,
        spread_min: None,
    };
    let features: Vec<Feature> = document["features"].as_array().expect("features").iter().map(feature).collect();
    let begin = async |percent: u32| {
        let clock = super::start(PATIENCE, &[]).await;
        let sick_from = clock.handle.wall().0 / 1_000_000 + 5;
        let prediction = Prediction {
            source: Arc::new(Sickening { features: features.clone(), sick_from }),
            models: Arc::new(ModelFolder::new(&models)),
            features: Arc::new(features.clone()),
            step_seconds: 1,
            challenger: None,
            training: None,
            model: Some("lab-1s".to_owned()),
        };
        let sequences = vec![
            sequence("early", vec![Trigger::OnRisk { percent }], say("{{ new_primary }} is at risk")),
            sequence("never", vec![Trigger::OnAlert { alert: "Else".to_owned() }], say("no")),
        ];
        start_in(Setting { sequences, prediction: Some(prediction), ..Setting::default() }).await
    };
    let controller = begin(20).await;
    let ended = controller.until_ended("sequence", 1).await;
    assert_eq!(names(&ended), ["early"]);
    assert_eq!((ended[0].status, ended[0].origin.as_str()), (OperationStatus::Succeeded, "automatic"));
    let why = &ended[0].reasons[0];
    assert_eq!(why.code, ReasonCode::PredictedTrouble);
    assert!(why.detail.contains("at least 20 % for"), "{}", why.detail);
    // The risk goes on, turn by turn; the budget is spent.
    let scored = || {
        let metrics = controller.handle.metrics();
        metrics.lines().find_map(|line| line.strip_prefix("stormglass_scoring_seconds_count ")?.parse::<f64>().ok())
    };
    let before = scored().expect("it scores");
    tokio::time::timeout(PATIENCE, async {
        while scored().is_none_or(|now| now < before + 3.0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it goes on");
    let risk = controller.handle.risk("main").await.expect("known");
    let of_primary = risk.nodes.iter().find(|one| one.node == node("n1")).expect("the primary");
    assert!(of_primary.risk.is_some_and(|risk| risk >= 0.2), "{of_primary:?}");
    assert_eq!(controller.handle.operations(None, 10).await.expect("listed").len(), 1);
}

#[tokio::test]
async fn a_backup_in_a_sequence_is_an_operation_of_its_own_behind_the_guards_of_every_request() {
    let backup = StepAction::Backup { backup_type: BackupType::Full };
    let mut refused = sequence("refused", Vec::new(), backup.clone());
    refused.steps[0].timeout_seconds = 1;
    let sequences = vec![refused, sequence("backup", Vec::new(), backup), sequence("drill", vec![], StepAction::Drill)];
    let controller = start_in(Setting { sequences, ..Setting::default() }).await;
    let begin = async |name: &str| {
        let request = SequenceRequest::default();
        controller.handle.begin_sequence("main", name, request, &caller()).await.expect("begun");
    };
    begin("refused").await;
    let ended = controller.until_ended("sequence", 1).await;
    let message = ended[0].message.clone().unwrap_or_default();
    assert!(message.contains("step one failed: not begun within 1 s: ") && message.contains("n1"), "{message}");
    assert!(controller.handle.operations(None, 10).await.expect("listed").len() == 1, "no backup began");

    // The primary writes; no agent answers a command.
    controller.hear_a_healthy_primary().await;
    begin("backup").await;
    let ended = controller.until_ended("sequence", 2).await;
    let made = controller.until_ended("backup", 1).await;
    let message = ended[1].message.clone().unwrap_or_default();
    assert!(message.contains(&format!("backup {} failed", made[0].id)), "{message}");
    assert_eq!(made[0].origin, format!("sequence:{}/one/3/1", ended[1].id));
    assert!(matches!(made[0].kind, OperationKind::Backup { backup_type: BackupType::Full, .. }));
    assert_eq!(controller.until_told("backup_failed", 1).await.len(), 1);
    begin("drill").await;
    let made = controller.until_ended("drill", 1).await;
    assert_eq!(made[0].status, OperationStatus::Failed);
    assert_eq!(controller.until_told("drill_failed", 1).await.len(), 1);
}
