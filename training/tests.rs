//! The commands of the trainer on made-up machines: what they write, and what they refuse.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser as _;

use crate::{Arguments, Command, benchmark, calibrate, commands, publish};

/// Rows of three waves, of which the second rises at `fault`, a constant column, and some gaps.
fn rows(first: usize, count: usize, fault: Option<usize>) -> String {
    let mut text = "load,latency,constant\n".to_owned();
    for row in first..first + count {
        let at = row as f64;
        let load = (at * 0.31).sin() + 0.5 * (at * 0.067).cos();
        let raise = if fault.is_some_and(|fault| (fault..fault + 10).contains(&row)) { 8.0 } else { 0.0 };
        let latency = 5.0 + 0.3 * load + 0.1 * (at * 1.7).sin() + raise;
        let load = if row % 97 == 0 { String::new() } else { format!("{load:.5}") };
        let _ = writeln!(text, "{load},{latency:.5},4");
    }
    text
}

fn run(line: &[&str]) -> anyhow::Result<()> {
    let arguments = Arguments::try_parse_from(["stormglass-train"].iter().chain(line)).expect("a command line");
    match arguments.command {
        Command::Collect(arguments) => commands::collect(&arguments),
        Command::Fit(arguments) => commands::fit(&arguments),
        Command::Score(arguments) => commands::score(&arguments),
        Command::Calibrate(arguments) => calibrate::run(&arguments),
        Command::Evaluate(arguments) => commands::evaluate(&arguments),
        Command::Publish(arguments) => commands::publish(&arguments),
        Command::Benchmark(arguments) => benchmark::run(&arguments),
        Command::Report(arguments) => crate::report::run(&arguments),
        Command::BenchLstm(_) => panic!("not tested here"),
    }
}

fn refused(line: &[&str]) -> String {
    format!("{:#}", run(line).expect_err("refused"))
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a directory"));
        fs::write(place.path("train.csv"), rows(0, 800, None)).expect("written");
        fs::write(place.path("later.csv"), rows(800, 600, Some(1200))).expect("written");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn fit(&self, name: &str, version: &str, more: &[&str]) -> anyhow::Result<()> {
        let (train, out) = (self.text("train.csv"), self.text(name));
        let mut line = vec!["fit", "--csv", &train, "--out", &out, "--step", "60", "--name", "m", "--version", version];
        line.extend(more);
        run(&line)
    }
}

fn lines(path: &Path) -> Vec<f64> {
    let text = fs::read_to_string(path).expect("readable");
    text.lines().map(|line| line.parse().expect("a number")).collect()
}

#[test]
fn a_model_is_fitted_scores_and_gives_its_alarm_at_the_fault() {
    let place = Place::new();
    place.fit("a", "1", &["--steps", "2"]).expect("fitted");
    assert!(!place.path("a/.training.safetensors").exists(), "the checkpoint of a finished training is gone");
    let card = fs::read_to_string(place.path("a/README.md")).expect("a card");
    assert!(card.contains("LSTM") && card.contains("never changed: left out"), "{card}");
    let (model, history, input) = (place.text("a"), place.text("train.csv"), place.text("later.csv"));
    let (out, alarms) = (place.text("scores.csv"), place.text("alarms.csv"));
    run(&["score", "--model", &model, "--history", &history, "--input", &input, "--out", &out, "--alarms", &alarms])
        .expect("scored");
    let (scores, alarms) = (lines(&place.path("scores.csv")), lines(&place.path("alarms.csv")));
    assert_eq!((scores.len(), alarms.len()), (600, 600));
    assert!(alarms[400..410].contains(&1.0), "the fault is seen");
    assert_eq!(alarms[..400].iter().sum::<f64>(), 0.0, "nothing else is");
}

#[test]
fn a_column_that_stood_still_is_learnt_where_its_least_spread_is_known() {
    let place = Place::new();
    let features = place.text("features.toml");
    let describe = |spread: &str| {
        let entry = |name: &str, more: &str| format!("[[feature]]\nname = \"{name}\"\n{more}\n");
        let text = [entry("load", ""), entry("latency", ""), entry("constant", spread)].concat();
        fs::write(&features, text).expect("written");
    };
    describe("spread_min = 0.5");
    place.fit("a", "1", &["--linear", "--features", &features]).expect("fitted");
    let card = fs::read_to_string(place.path("a/README.md")).expect("a card");
    assert!(!card.contains("left out") && card.contains("| 0.5000 |"), "{card}");
    let document = fs::read_to_string(place.path("a/model.json")).expect("a model");
    assert!(!document.contains("spread_min"), "older programs read it, too");
    describe("spread_min = -1");
    let said = format!("{:#}", place.fit("b", "1", &["--linear", "--features", &features]).expect_err("refused"));
    assert!(said.contains("feature \"constant\": spread_min takes a number above zero"), "{said}");
}

#[test]
fn the_same_seed_gives_the_same_model_and_another_seed_another() {
    let place = Place::new();
    for (name, seed) in [("a", "7"), ("b", "7"), ("c", "8")] {
        place.fit(name, "1", &["--steps", "25", "--seed", seed]).expect("fitted");
    }
    let weights = |name: &str| fs::read(place.path(name).join(publish::WEIGHTS)).expect("weights");
    assert_eq!(weights("a"), weights("b"));
    assert_ne!(weights("a"), weights("c"));
}

#[test]
fn every_machine_of_a_folder_is_benchmarked() {
    let place = Place::new();
    fs::create_dir(place.path("data")).expect("made");
    for machine in ["one", "two"] {
        fs::write(place.path(&format!("data/{machine}.train.csv")), rows(0, 500, None)).expect("written");
        fs::write(place.path(&format!("data/{machine}.test.csv")), rows(500, 200, Some(600))).expect("written");
    }
    run(&["benchmark", "--data", &place.text("data"), "--out", &place.text("out"), "--linear"]).expect("done");
    for machine in ["one", "two"] {
        assert_eq!(lines(&place.path(&format!("out/scores/{machine}.csv"))).len(), 200);
        let alarms = lines(&place.path(&format!("out/alarms/{machine}.csv")));
        assert!(alarms[100..110].contains(&1.0) && alarms.len() == 200);
    }
    fs::remove_file(place.path("data/two.test.csv")).expect("removed");
    let said = refused(&["benchmark", "--data", &place.text("data"), "--out", &place.text("out")]);
    assert!(said.contains("two.train.csv has no test part"), "{said}");
}

#[test]
fn bad_input_is_refused_with_its_place() {
    let place = Place::new();
    fs::write(place.path("train.csv"), "a,b\n1,2\n2,3\n3,4\n").expect("written");
    let said = format!("{:#}", place.fit("a", "1", &[]).expect_err("three rows"));
    assert!(said.contains("train.csv: 3 rows are too few"), "{said}");
    fs::write(place.path("train.csv"), "a\n".to_owned() + &"5\n".repeat(500)).expect("written");
    let said = format!("{:#}", place.fit("a", "1", &[]).expect_err("constant"));
    assert!(said.contains("no column ever changes"), "{said}");
    fs::write(place.path("train.csv"), rows(0, 800, None)).expect("written");
    place.fit("a", "1", &["--linear"]).expect("fitted");
    fs::write(place.path("wrong.csv"), "load,constant\n1,2\n").expect("written");
    let (model, input, out) = (place.text("a"), place.text("wrong.csv"), place.text("out.csv"));
    let said = refused(&["score", "--model", &model, "--input", &input, "--out", &out]);
    assert!(said.contains("wrong.csv: column \"latency\" is missing"), "{said}");
    let weights = fs::read(place.path("a").join(publish::WEIGHTS)).expect("weights");
    fs::write(place.path("a").join(publish::WEIGHTS), &weights[..weights.len() / 2]).expect("truncated");
    let said = refused(&["score", "--model", &model, "--input", &input, "--out", &out]);
    assert!(said.contains("SHA-256"), "{said}");
}

#[test]
fn only_a_better_challenger_is_published_and_old_ones_go() {
    let place = Place::new();
    let models = place.text("models");
    let input = place.text("later.csv");
    place.fit("a", "1", &["--linear"]).expect("fitted");
    run(&["publish", "--model", &place.text("a"), "--models", &models]).expect("the first needs no comparison");
    place.fit("b", "2", &["--linear"]).expect("fitted");
    let publish = |name: &str, more: &[&str]| {
        let folder = place.text(name);
        let mut line = vec!["publish", "--model", &folder, "--models", &models, "--keep", "2"];
        line.extend(more);
        run(&line)
    };
    let said = format!("{:#}", publish("b", &["--input", &input]).expect_err("it is the same model"));
    assert!(said.contains("m-1 stays"), "{said}");
    let said = format!("{:#}", publish("b", &[]).expect_err("nothing to compare on"));
    assert!(said.contains("give --input"), "{said}");
    place.fit("c", "3", &["--linear"]).expect("fitted");
    publish("b", &["--force"]).expect("forced");
    publish("c", &["--force"]).expect("forced");
    let promoted = fs::read_to_string(place.path("models/PROMOTED")).expect("readable");
    assert_eq!(promoted, "m-3\nm-2\n");
    assert!(!place.path("models/m-1").exists() && place.path("models/m-2").exists(), "two are kept");
    publish("c", &["--force"]).expect("the very same model again changes nothing");
    place.fit("d", "3", &["--linear", "--horizon", "600"]).expect("fitted");
    let said = format!("{:#}", publish("d", &["--force"]).expect_err("a version is published once"));
    assert!(said.contains("m-3 is there already"), "{said}");
    assert_eq!(fs::read_to_string(place.path("models/PROMOTED")).expect("readable"), "m-3\nm-2\n");
}

#[test]
fn a_training_that_was_interrupted_goes_on_to_the_same_weights() {
    let place = Place::new();
    place.fit("whole", "1", &["--steps", "50"]).expect("fitted");
    crate::network::interrupt_after(25, || {
        assert!(place.fit("cut", "1", &["--steps", "50"]).is_err());
    });
    assert!(place.path("cut/.training.safetensors").exists());
    place.fit("cut", "1", &["--steps", "50"]).expect("it goes on");
    let weights = |name: &str| fs::read(place.path(name).join(publish::WEIGHTS)).expect("weights");
    assert_eq!(weights("whole"), weights("cut"));
}

#[test]
fn a_report_is_written_with_its_pictures() {
    let place = Place::new();
    fs::create_dir_all(place.path("data/smd/labels")).expect("made");
    fs::write(place.path("data/smd/one.train.csv"), rows(0, 400, None)).expect("written");
    fs::write(place.path("data/smd/one.test.csv"), rows(400, 400, Some(600))).expect("written");
    let labels: String = (400..800).map(|row| if (600..610).contains(&row) { "1\n" } else { "0\n" }).collect();
    fs::write(place.path("data/smd/labels/one.csv"), labels).expect("written");
    let (data, out) = (place.text("data"), place.text("REPORT.md"));
    run(&["report", "--data", &data, "--out", &out, "--seeds", "1", "--steps", "2"]).expect("written");
    let report = fs::read_to_string(place.path("REPORT.md")).expect("readable");
    assert!(
        report.contains("| one | 1 |") && report.contains("linear twin") && report.contains("over the series: median "),
        "{report}"
    );
    for picture in ["one", "vus_pr", "reliability"] {
        let png = fs::read(place.path(&format!("figures/{picture}.png"))).expect("a picture");
        assert!(png.starts_with(b"\x89PNG"), "{picture}");
    }
}

#[test]
fn alarms_and_risk_are_learnt_on_other_runs_and_the_card_says_how_they_did() {
    let place = Place::new();
    place.fit("a", "1", &["--linear"]).expect("fitted");
    let fault = |name: &str, first: usize| {
        fs::write(place.path(&format!("{name}.csv")), rows(first, 300, Some(first + 290))).expect("written");
        let labels = (0..300).map(|row| format!("{}\n", u8::from(row >= 290))).collect::<String>();
        fs::write(place.path(&format!("{name}.labels.csv")), "fault\n".to_owned() + &labels).expect("written");
        format!("latency={}", place.text(&format!("{name}.csv")))
    };
    let (one, other) = (fault("one", 2000), fault("other", 3000));
    fs::write(place.path("calm.csv"), rows(4000, 500, None)).expect("written");
    let (model, calm) = (place.text("a"), place.text("calm.csv"));
    let given = ["calibrate", "--model", &model, "--healthy", &calm, "--source", "a test", "--fault"];
    let before = publish::read_model(&place.path("a")).expect("a model").document().clone();
    assert!(refused(&[given.as_slice(), &["latency=/nowhere.csv"]].concat()).contains("/nowhere.csv"));
    assert!(refused(&[given.as_slice(), &[&one, "--learn", "300"]].concat()).contains("none is left to judge"));
    assert!(refused(&[given.as_slice(), &[&one, "--learn", "295"]].concat()).contains("begins before row 295"));
    assert_eq!(publish::read_model(&place.path("a")).expect("a model").document(), &before, "nothing half-applied");

    run(&[given.as_slice(), &[&one, &other]].concat()).expect("calibrated");
    let after = publish::read_model(&place.path("a")).expect("a model").document().clone();
    assert_ne!(after.calibration, before.calibration);
    let figures = after.calibrated_on.expect("it says on what").own;
    assert_eq!((figures.faults[0].runs, figures.faults[0].alarmed, figures.false_alarms), (2, 2, 0));
    assert!(figures.brier < figures.brier_of_mean, "{figures:?}");
    let card = fs::read_to_string(place.path("a/README.md")).expect("a card");
    assert!(card.contains("a test") && card.contains("| latency: seen, shortest lead | 2 of 2"), "{card}");
}

#[test]
fn a_challenger_is_judged_on_every_file_of_a_folder() {
    let place = Place::new();
    place.fit("a", "1", &["--linear"]).expect("fitted");
    for folder in ["held-out", "train"] {
        fs::create_dir(place.path(folder)).expect("made");
        for (node, first) in [("n1", 0), ("n2", 300)] {
            let first = if folder == "train" { first } else { first + 800 };
            fs::write(place.path(&format!("{folder}/{node}.csv")), rows(first, 600, None)).expect("written");
        }
    }
    let (model, models) = (place.text("a"), place.text("models"));
    run(&["publish", "--model", &model, "--models", &models]).expect("there is no champion");
    let promoted = || fs::read_to_string(place.path("models/PROMOTED")).expect("readable");
    assert_eq!(promoted(), "m-1\n");
    run(&["publish", "--model", &model, "--models", &models]).expect("an attempt that was cut off is made again");
    assert_eq!(promoted(), "m-1\n");

    place.fit("b", "2", &["--linear"]).expect("fitted");
    let (model, input, history) = (place.text("b"), place.text("held-out"), place.text("train"));
    let publish = ["publish", "--model", &model, "--models", &models];
    assert!(refused(&publish).contains("m-1 is in use: give --input"));
    let said = refused(&[&publish[..], &["--input", &input, "--history", &history]].concat());
    assert!(said.contains("m-1 stays: the challenger is not better on "), "the same training is not better: {said}");
    let one = place.text("train/n1.csv");
    let said = refused(&[&publish[..], &["--input", &input, "--history", &one]].concat());
    assert!(said.contains("2 files of --input, but 1 of --history"), "{said}");
    // A champion of another name that nobody promoted counts too.
    fs::remove_file(place.path("models/PROMOTED")).expect("removed");
    assert!(refused(&publish).contains("m-1 is in use"));
    assert_eq!(promoted_names(&place), ["m-1"]);
}

fn promoted_names(place: &Place) -> Vec<String> {
    let names = fs::read_dir(place.path("models")).expect("readable").flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_feature_that_prometheus_never_had_is_no_obstacle() {
    let place = Place::new();
    let with_gap = |first, count| {
        let text = rows(first, count, None);
        let mut lines = text.lines().map(|line| format!("{line},"));
        let header = lines.next().unwrap_or_default() + "unheard";
        header + "\n" + &lines.collect::<Vec<_>>().join("\n") + "\n"
    };
    fs::write(place.path("train.csv"), with_gap(0, 800)).expect("written");
    place.fit("a", "1", &["--steps", "2"]).expect("fitted");
    fs::write(place.path("later.csv"), with_gap(800, 200)).expect("written");
    let (model, history, input) = (place.text("a"), place.text("train.csv"), place.text("later.csv"));
    let out = place.text("scores.csv");
    run(&["score", "--model", &model, "--history", &history, "--input", &input, "--out", &out]).expect("scored");
    assert!(lines(&place.path("scores.csv")).iter().all(|score| score.is_finite()));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Arbitrary bytes and damaged tables are read, or refused with file and line; nothing panics.
    #[test]
    fn tables_of_anything_are_read_or_refused_with_their_place(
        anything in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        at in proptest::prelude::any::<proptest::sample::Index>(),
        is_damaged in proptest::prelude::any::<bool>(),
    ) {
        let bytes = if is_damaged {
            let mut bytes = rows(0, 5, None).into_bytes();
            let at = at.index(bytes.len());
            bytes.splice(at..at, anything);
            bytes
        } else {
            anything
        };
        match crate::table::Table::parse(&bytes[..], "table.csv") {
            Ok(table) => proptest::prop_assert_eq!(table.samples.features(), table.columns.len()),
            Err(error) => proptest::prop_assert!(format!("{error:#}").starts_with("table.csv: "), "{:#}", error),
        }
    }
}
