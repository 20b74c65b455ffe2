//! What scorers learn from, and when.

use super::*;
use crate::domain::feature::Direction;
use crate::ports::metrics::ModelFiles;
use crate::predict::document::TrainingSpan;
use crate::predict::fit::{Outline, Scales, finish};
use crate::predict::{Architecture, FeatureDescription, NetworkKind, Samples};

/// A model of one feature, without a network, and without anything learnt of a node.
fn loaded() -> Loaded {
    let mut trained = Samples::new(1);
    (0..200_u8).for_each(|row| trained.push(&[Some(f32::from(row % 2))]));
    let nodes = [trained];
    let outline = Outline {
        name: "small".to_owned(),
        version: "1".to_owned(),
        step_seconds: 1,
        horizon_seconds: 60,
        features: vec![FeatureDescription {
            name: "load".to_owned(),
            unit: "1".to_owned(),
            direction: crate::predict::Direction::Both,
            spread_min: None,
        }],
        architecture: Architecture { network: NetworkKind::None, baseline_rows: 5, horizons: vec![1] },
        training: TrainingSpan::default(),
        data_sha256: String::new(),
    };
    let (document, weights) = finish(outline, &nodes, &Scales::of(&nodes), None).expect("a model");
    let files = ModelFiles { name: "small".to_owned(), document: document.to_json(), weights };
    let feature = Feature {
        name: "load".to_owned(),
        query: "load{node=~\"$node\"}".to_owned(),
        unit: "1".to_owned(),
        direction: Direction::Both,
        absent: None,
        spread_min: None,
    };
    let usable = model::open(&files, &[feature], 1).expect("it fits");
    Loaded { usable, stamp: ModelStamp("1".to_owned()), scorers: BTreeMap::new(), tally: Tally::default() }
}

fn rows(values: impl Iterator<Item = u8>) -> BTreeMap<NodeName, Vec<Sample>> {
    [(NodeName::new("n1").expect("valid"), values.map(|value| vec![Some(f32::from(value))]).collect())].into()
}

fn deviation(loaded: &mut Loaded, value: u8) -> f64 {
    let risks = loaded.score(&rows([value].into_iter()), false);
    let risk = risks.values().next().expect("one node");
    assert_eq!(risk.abstains, None);
    risk.drivers.first().map_or(0.0, |driver| driver.deviation.abs())
}

#[test]
fn scorers_learn_anew_whenever_there_is_twice_as_much_until_they_know_enough() {
    let (began, step) = (1_000, 15);
    let mut acquaintance = Acquaintance { began, steps: 142 };
    let mut learnt = Vec::new();
    for known in 0..3_000 {
        let newest = began + known * step;
        if let Some(first) = acquaintance.learns_from(newest, step) {
            learnt.push((known, (newest - first) / step));
            acquaintance.steps = known;
        }
    }
    assert_eq!(learnt, [(284, 142), (568, 284), (1136, 568)]);
    assert_eq!(Acquaintance { began, steps: 600 }.learns_from(i64::MAX / 2, step), None, "a start with a history");
    assert_eq!(Acquaintance::default().learns_from(1_800_000_000, step), None, "nothing was scored yet");
}

#[test]
fn what_a_node_did_when_it_was_set_up_is_forgotten() {
    let (mut stays, mut learns) = (loaded(), loaded());
    let needed = stays.usable.rows_to_wait();
    // Half of the first rows are those of a node that is being set up.
    let first = rows((0..needed).map(|row| if row < needed / 2 { 100 } else { u8::from(row % 2 == 0) }).chain([0]));
    for loaded in [&mut stays, &mut learns] {
        loaded.score(&first, true);
    }
    let later = rows((0..2 * needed).map(|row| u8::from(row % 2 == 0)));
    for loaded in [&mut stays, &mut learns] {
        loaded.score(&later, false);
    }
    learns.learn_again(&later);
    let (before, after) = (deviation(&mut stays, 9), deviation(&mut learns, 9));
    assert!(after > 10.0 * before, "{before} and {after} spreads");
}

#[test]
fn a_history_that_is_too_short_takes_nothing_away() {
    let mut loaded = loaded();
    let needed = loaded.usable.rows_to_wait();
    loaded.score(&rows((0..=needed).map(|row| u8::from(row % 2 == 0))), true);
    let before = deviation(&mut loaded, 1);
    loaded.learn_again(&rows([0, 1, 0].into_iter()));
    assert!((deviation(&mut loaded, 1) - before).abs() < before.max(1.0), "it still says something");
}

#[test]
fn the_first_samples_of_a_node_without_a_history_are_passed_over() {
    let mut loaded = loaded();
    let wait = loaded.usable.rows_to_wait();
    // A history that is too short to learn from: these two are the first ones, and the third is scored.
    loaded.score(&rows([100, 100, 100].into_iter()), true);
    let mut spoke_after = None;
    for row in 3..2 * wait {
        // While it is set up it is like nothing that comes later.
        let value = if row < wait / 2 { 100 } else { u8::from(row % 2 == 0) };
        let risks = loaded.score(&rows([value].into_iter()), false);
        if risks.values().all(|risk| risk.abstains.is_none()) {
            spoke_after.get_or_insert(row);
        }
    }
    assert_eq!(spoke_after, Some(wait));
    assert!(deviation(&mut loaded, 9) > 5.0, "judged by what came after it was set up");
}
