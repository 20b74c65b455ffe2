//! A model from fit to assessment, on made-up nodes: what it says, when it says nothing, and which models are refused.

use super::fit::{Outline, Scales, finish};
use super::*;

const FEATURES: [&str; 3] = ["load", "latency", "constant"];

/// Two waves that never repeat exactly, and a column that never changes.
fn sample(row: usize) -> Vec<Option<f32>> {
    let row = row as f32;
    let load = (row * 0.31).sin() + 0.5 * (row * 0.067).cos();
    let latency = 5.0 + 0.3 * load + 0.1 * (row * 1.7).sin();
    vec![Some(load), Some(latency), Some(4.0)]
}

fn history(rows: usize) -> Samples {
    let mut samples = Samples::new(FEATURES.len());
    (0..rows).for_each(|row| samples.push(&sample(row)));
    samples
}

fn outline() -> Outline {
    let feature = |name: &&str| FeatureDescription {
        name: (*name).to_owned(),
        unit: String::new(),
        direction: Direction::default(),
        spread_min: None,
    };
    Outline {
        name: "test".to_owned(),
        version: "1".to_owned(),
        step_seconds: 60,
        horizon_seconds: 900,
        features: FEATURES.iter().map(feature).collect(),
        architecture: Architecture { network: NetworkKind::None, baseline_rows: 20, horizons: vec![1, 5] },
        training: document::TrainingSpan::default(),
        data_sha256: String::new(),
    }
}

fn fitted() -> (ModelDocument, Vec<u8>) {
    let nodes = [history(2000)];
    finish(outline(), &nodes, &Scales::of(&nodes), None).expect("the linear twin always fits")
}

fn model() -> Model {
    let (document, weights) = fitted();
    Model::new(document, &weights).expect("what was fitted can be used")
}

fn warm(model: &Model) -> NodeScorer {
    let mut scorer = NodeScorer::new(model);
    scorer.warm_up(model, &history(1000));
    scorer
}

#[test]
fn what_stood_still_in_the_training_is_left_out_unless_its_least_spread_is_known() {
    let nodes = [history(2000)];
    let alarms = |spread_min: Option<f32>| {
        let mut outline = outline();
        outline.features[2].spread_min = spread_min;
        let scales = Scales::of_features(&nodes, &outline.features);
        let (document, weights) = finish(outline, &nodes, &scales, None).expect("the linear twin always fits");
        let model = Model::new(document, &weights).expect("what was fitted can be used");
        let mut scorer = warm(&model);
        let fills = |row: usize| {
            let mut sample = sample(1000 + row);
            sample[2] = Some(4.0 + 0.1 * row as f32);
            sample
        };
        (0..60).filter(|&row| scorer.push(&model, &fills(row)).alarm).count()
    };
    assert_eq!(alarms(None), 0);
    assert!(alarms(Some(0.1)) > 0);
}

#[test]
fn a_usual_sample_has_little_risk_and_a_wild_one_an_alarm_with_its_reason() {
    let model = model();
    let mut scorer = warm(&model);
    let usual = scorer.push(&model, &sample(1000));
    assert_eq!((usual.abstains, usual.alarm), (None, false));
    let mut wild = sample(1001);
    wild[1] = Some(20.0);
    let wild = scorer.push(&model, &wild);
    assert!(wild.alarm && wild.risk > usual.risk && wild.score > usual.score, "{wild:?}");
    let reason = wild.contributions[0];
    assert_eq!(reason.feature, 1);
    assert!(reason.share > 0.9 && reason.deviation > 3.0, "{reason:?}");
}

#[test]
fn a_model_carries_over_to_a_node_of_another_size() {
    let model = model();
    let larger = |row: usize| -> Vec<Option<f32>> {
        sample(row).into_iter().map(|value| value.map(|value| 1000.0 * value + 7.0)).collect()
    };
    let mut samples = Samples::new(FEATURES.len());
    (0..1000).for_each(|row| samples.push(&larger(row)));
    let mut scorer = NodeScorer::new(&model);
    scorer.warm_up(&model, &samples);
    let mut original = warm(&model);
    for row in 1000..1050 {
        let there = scorer.push(&model, &larger(row));
        let here = original.push(&model, &sample(row));
        assert!((there.surprise - here.surprise).abs() < 0.05, "{there:?} {here:?}");
    }
}

#[test]
fn it_says_nothing_until_it_has_seen_enough() {
    let model = model();
    let mut scorer = NodeScorer::new(&model);
    for row in 0..25 {
        let said = scorer.push(&model, &sample(row));
        assert_eq!(said.abstains, Some(Abstention::WarmingUp { rows_missing: 25 - row as u64 }));
        assert_eq!((said.risk, said.alarm), (None, false));
    }
    assert_eq!(scorer.push(&model, &sample(25)).abstains, None);
}

#[test]
fn gaps_and_what_is_no_number_make_it_abstain_and_never_enter_arithmetic() {
    let model = model();
    let mut scorer = warm(&model);
    let said = scorer.push(&model, &[Some(f32::NAN), None, Some(4.0)]);
    assert_eq!(said.abstains, Some(Abstention::FewFeatures { present: 0, expected: 2 }));
    let said = scorer.push(&model, &[None, sample(1000)[1], Some(f32::INFINITY)]);
    assert_eq!(said.abstains, None, "one of two features is enough");
    assert!(said.score.is_finite() && said.surprise.is_finite());
    let said = scorer.push(&model, &[Some(1.0)]);
    assert_eq!(said.abstains, Some(Abstention::Width { found: 1, expected: 3 }));
}

#[test]
fn after_a_long_gap_the_forecasts_settle_again_and_what_is_usual_stays_known() {
    let model = model();
    let mut scorer = warm(&model);
    let scales = scorer.scaler().to_vec();
    for _ in 0..100 {
        scorer.push(&model, &[None, None, None]);
    }
    assert!(matches!(scorer.push(&model, &sample(1)).abstains, Some(Abstention::WarmingUp { .. })));
    assert_eq!(scorer.scaler(), scales);
}

#[test]
fn a_node_that_is_nothing_like_training_is_left_alone() {
    let model = model();
    let mut scorer = warm(&model);
    let mut last = None;
    for row in 0..20_000 {
        let wild = if row % 2 == 0 { 1e6 } else { -1e6 };
        last = scorer.push(&model, &[Some(wild), Some(-wild), Some(0.0)]).abstains;
    }
    assert!(matches!(last, Some(Abstention::Drift { ratio }) if ratio > drift::RATIO_MAX), "{last:?}");
}

#[test]
fn scoring_is_the_same_from_its_files() {
    let (document, weights) = fitted();
    let read = ModelDocument::from_json(&document.to_json()).expect("what was written can be read");
    assert_eq!(read, document);
    let (left, right) = (model(), Model::new(read, &weights).expect("the same model"));
    assert_eq!(warm(&left).push(&left, &sample(3)), warm(&right).push(&right, &sample(3)));
}

#[test]
fn a_model_of_before_there_was_a_half_whitening_says_the_same_and_ranks_by_size() {
    let (mut document, weights) = fitted();
    let mut tensors = weights::read(&weights).expect("tensors");
    tensors.remove("residuals.half_whitening").expect("is there");
    let before = weights::write(&tensors).expect("bytes");
    document.weights_sha256 = model::sha256(&before);
    let (old, new) = (Model::new(document, &before).expect("it can be used"), model());
    let mut wild = sample(1000);
    wild[1] = Some(7.0);
    let (mut of_old, mut of_new) = (warm(&old), warm(&new));
    let (old_said, new_said) = (of_old.push(&old, &wild), of_new.push(&new, &wild));
    assert_eq!((old_said.surprise, old_said.alarm), (new_said.surprise, new_said.alarm));
    assert_ne!(old_said.score, new_said.score);
    assert!(of_old.push(&old, &wild).score > old_said.score, "it ranks all the same");
}

#[test]
fn the_score_rises_in_a_few_rows_and_falls_in_many() {
    let model = model();
    let mut scorer = warm(&model);
    let usual = scorer.push(&model, &sample(1000)).score;
    let mut wild = sample(1001);
    wild[1] = Some(9.0);
    let first = scorer.push(&model, &wild).score;
    wild = sample(1002);
    wild[1] = Some(9.0);
    let second = scorer.push(&model, &wild).score;
    assert!(first > 1.5 * usual && second > first, "{usual} {first} {second}");
    let calm = (1003..1010).map(|row| scorer.push(&model, &sample(row)).score).last().expect("rows");
    assert!(calm > 0.4 * second && calm < 0.8 * second, "{second} {calm}: seven rows of about ten");
}

#[test]
fn a_level_that_stays_for_days_ceases_to_stand_out() {
    let model = model();
    let mut scorer = warm(&model);
    let higher = |row: usize| {
        let mut sample = sample(row);
        sample[1] = sample[1].map(|latency| latency + 1.5);
        sample
    };
    let score_after = |scorer: &mut NodeScorer, rows: std::ops::Range<usize>| {
        rows.map(|row| scorer.push(&model, &higher(row)).score).last().expect("rows")
    };
    // The residuals forget the step within the hour; the rest is the level.
    let hours = score_after(&mut scorer, 1000..1200);
    let days = score_after(&mut scorer, 1200..1200 + 4 * 1440);
    assert!(days < 0.8 * hours, "{hours} {days}");
}

#[test]
fn a_damaged_or_foreign_model_is_refused_with_its_reason() {
    let (document, weights) = fitted();
    let refused =
        |document: ModelDocument, weights: &[u8]| Model::new(document, weights).expect_err("refused").to_string();

    assert!(refused(document.clone(), &weights[..weights.len() - 4]).contains("SHA-256"));

    let truncated = &weights[..weights.len() / 2];
    let mut foreign = document.clone();
    foreign.weights_sha256 = model::sha256(truncated);
    assert!(refused(foreign, truncated).contains("whole safetensors file"));

    let mut tensors = weights::read(&weights).expect("tensors");
    tensors.get_mut("residuals.mean").expect("is there").values[1] = f32::NAN;
    let poisoned = weights::write(&tensors).expect("bytes");
    let mut foreign = document.clone();
    foreign.weights_sha256 = model::sha256(&poisoned);
    assert!(refused(foreign, &poisoned).contains("\"residuals.mean\""));

    let mut foreign = document.clone();
    foreign.architecture.network = NetworkKind::Lstm { layers: 1, units: 8 };
    assert!(refused(foreign, &weights).contains("\"lstm.weight_ih_l0\" is missing"));

    let mut foreign = document.clone();
    foreign.scaler.pop();
    assert!(refused(foreign, &weights).contains("2 scales for 3 features"));

    let text = document.to_json().replace("\"schema_version\": 2", "\"schema_version\": 7");
    assert_eq!(ModelDocument::from_json(&text), Err(ModelError::Schema { found: 7 }));
    let text = document.to_json().replace("\"step_seconds\"", "\"step_secs\"");
    let said = ModelDocument::from_json(&text).expect_err("an unknown key").to_string();
    assert!(said.contains("step_secs") && said.contains("line"), "{said}");
}

#[test]
fn everything_in_the_ranking_is_causal() {
    let model = model();
    let (mut left, mut right) = (warm(&model), warm(&model));
    for row in 1000..1100 {
        assert_eq!(left.push(&model, &sample(row)), right.push(&model, &sample(row)));
    }
    left.push(&model, &[Some(99.0), Some(99.0), None]);
    assert_ne!(left.push(&model, &sample(1101)), right.push(&model, &sample(1101)));
}
