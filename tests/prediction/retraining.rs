//! Retraining with the real program on samples of a real Prometheus: better models are published, and nothing else touches the champion.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use stormglass::adapters::models::ModelFolder;
use stormglass::adapters::prometheus::PrometheusSource;
use stormglass::adapters::store::SqliteStore;
use stormglass::adapters::training::{TrainProgram, TrainSettings};
use stormglass::api::authentication::Caller;
use stormglass::api::controller::ControllerHandler;
use stormglass::api::wire::RetrainRequest;
use stormglass::config::features::load_features;
use stormglass::controller::{Prediction, Training};
use stormglass::domain::access::Role;
use stormglass::domain::clock::WallTime;
use stormglass::domain::epoch::Epoch;
use stormglass::domain::ids::{Address, ClusterName, SystemIdentifier};
use stormglass::domain::operation::{Operation, OperationStatus, StepName, StepState};
use stormglass::domain::policy::DurabilityMode;
use stormglass::domain::record::ClusterRecord;
use stormglass::ports::Store;

use super::{Prometheus, Running, begin, node, now, seconds, settings};

/// Training takes its time on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Seconds between samples.
const STEP: i64 = 5;
/// Seconds of history: some 600 rows.
const SPAN: i64 = 3_000;
const TRAINER: &str = env!("CARGO_BIN_EXE_stormglass-train");
const FEATURES: &str = "[[feature]]\nname = \"load\"\nquery = 'load{node=~\"$node\"}'\nunit = \"1\"\ndirection = \"both\"\n\n\
                        [[feature]]\nname = \"latency\"\nquery = 'latency{node=~\"$node\"}'\nunit = \"s\"\ndirection = \"high\"\n\n\
                        [[feature]]\nname = \"unheard\"\nquery = 'unheard{node=~\"$node\"}'\nunit = \"1\"\ndirection = \"high\"\n";

/// Two nodes' past, as Prometheus' own tool writes it.
fn history(directory: &Path) {
    let last = seconds() - 10;
    let mut text = String::new();
    for (metric, pace) in [("load", 0.31), ("latency", 0.067)] {
        text.push_str(&format!("# TYPE {metric} gauge\n"));
        for (name, shift) in [("n1", 0.0), ("n2", 1.3)] {
            for row in 0..SPAN / STEP {
                let at = last - SPAN + row * STEP;
                let value = 5.0 + (row as f64 * pace + shift).sin() + 0.3 * (row as f64 * 1.7).cos();
                text.push_str(&format!("{metric}{{node=\"{name}\",cluster=\"main\"}} {value:.5} {at}\n"));
            }
        }
    }
    text.push_str("# EOF\n");
    let file = directory.join("history.txt");
    std::fs::write(&file, text).expect("written");
    let mut command = Command::new("promtool");
    command.args(["tsdb", "create-blocks-from", "openmetrics"]).arg(&file).arg(directory.join("data"));
    let output = command.output().expect("promtool comes with prometheus");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

struct Place {
    prometheus: Prometheus,
    directory: tempfile::TempDir,
    store: Arc<dyn Store>,
}

impl Place {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("features.toml"), FEATURES).expect("written");
        std::fs::create_dir(directory.path().join("models")).expect("made");
        let prometheus = Prometheus::start_with(None, history).await;
        let store = SqliteStore::open(&directory.path().join("store.db")).expect("a new store");
        store.swap_record(None, &record()).await.expect("stored");
        let place = Self { prometheus, directory, store: Arc::new(store) };
        place.until_it_answers().await;
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn trainer(&self, network: bool) -> TrainProgram {
        TrainProgram::new(TrainSettings {
            program: PathBuf::from(TRAINER),
            directory: self.path("retraining"),
            models: self.path("models"),
            name: "main-5s".to_owned(),
            prometheus: settings(&self.prometheus.url),
            authority_file: None,
            features: Some(self.path("features.toml")),
            nodes: vec![node("n1"), node("n2")],
            step_seconds: 5,
            span: Duration::from_secs(3_600),
            memory_bytes_max: 2 << 30,
            has_network: network,
        })
    }

    async fn until_it_answers(&self) {
        let features = load_features(Some(&self.path("features.toml"))).expect("good");
        let source =
            PrometheusSource::new(&settings(&self.prometheus.url), features, vec![node("n1")]).expect("a client");
        super::samples(&source, |_| true).await;
    }

    async fn controller(&self, network: bool) -> Running {
        let features = load_features(Some(&self.path("features.toml"))).expect("good");
        let nodes = vec![node("n1"), node("n2")];
        let source = PrometheusSource::new(&settings(&self.prometheus.url), features.clone(), nodes).expect("a client");
        let training = Training {
            trainer: Arc::new(self.trainer(network)),
            schedule: None,
            time_zone: "UTC".to_owned(),
            on_drift: false,
            time_limit: PATIENCE,
        };
        let prediction = Prediction {
            source: Arc::new(source),
            models: Arc::new(ModelFolder::new(self.path("models"))),
            features: Arc::new(features),
            step_seconds: 5,
            model: None,
            challenger: None,
            training: Some(training),
        };
        begin(self.store.clone(), prediction).await
    }

    /// Waits until the store has the end of everything: it is shown a moment before.
    async fn until_stored(&self) {
        let began = now();
        let cluster = record().cluster;
        while !self.store.unfinished_operations(&cluster).await.expect("read").is_empty() {
            assert!(now().duration_since(began) < PATIENCE, "the end is not stored");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn promoted(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("models/PROMOTED")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn record() -> ClusterRecord {
    ClusterRecord {
        epoch: Epoch(3),
        holder_confirmed: true,
        ..ClusterRecord::first(
            ClusterName::new("main").expect("valid"),
            SystemIdentifier(7),
            node("n1"),
            Address::new("n1", 5432),
            DurabilityMode::Async,
        )
    }
}

fn caller() -> Caller {
    Caller { name: "on-call".to_owned(), role: Role::Operator, clusters: Vec::new(), peer: ([127, 0, 0, 1], 1).into() }
}

async fn retrain(running: &Running) -> Operation {
    let reply = running.handle.retrain("main", RetrainRequest::default(), &caller()).await.expect("begun");
    reply.operation.expect("an operation")
}

/// Waits until the operation is as wanted.
async fn until(running: &Running, id: &str, is_so: impl Fn(&Operation) -> bool) -> Operation {
    let began = now();
    loop {
        let operation = running.handle.operation(id).await.expect("there");
        if is_so(&operation) {
            return operation;
        }
        assert!(now().duration_since(began) < PATIENCE, "not in time: {operation:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn ended(running: &Running, id: &str) -> Operation {
    until(running, id, |operation| operation.status.is_final()).await
}

/// Process ids of the training program that works for an operation.
fn programs(operation: &Operation) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("readable").flatten();
    let works_for = |id: &i32| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&operation.id.0)
    };
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(works_for).collect()
}

#[test]
fn a_model_is_fitted_straight_from_prometheus() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let place = runtime.block_on(Place::new());
    let run = |words: &[&str]| Command::new(TRAINER).args(words).output().expect("it runs");
    let (out, features) = (place.path("fitted"), place.path("features.toml"));
    let (out_text, features) = (out.display().to_string(), features.display().to_string());
    let end = WallTime(seconds() * 1_000_000).to_string();
    let start = WallTime((seconds() - 3_600) * 1_000_000).to_string();
    let url = place.prometheus.url.clone();
    let words = [
        "fit",
        "--prometheus",
        &url,
        "--cluster",
        "main",
        "--start",
        &start,
        "--end",
        &end,
        "--step",
        "5",
        "--features",
        &features,
        "--linear",
        "--name",
        "m",
        "--version",
        "1",
        "--out",
        &out_text,
    ];
    let output = run(&words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("rows of 2 nodes"), "{said}");
    let document: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("model.json")).expect("written")).expect("JSON");
    assert_eq!(document["training"]["source"], "n1, n2");

    let nobody: Vec<&str> = words.iter().map(|word| if *word == "main" { "other" } else { word }).collect();
    let output = run(&nobody);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("no series has cluster=\"other\""), "{said}");
    let backwards: Vec<&str> =
        words.iter().map(|word| if *word == end { "2001-01-01T00:00:00Z" } else { word }).collect();
    let said = String::from_utf8_lossy(&run(&backwards).stderr).into_owned();
    assert!(said.contains("is not before --end"), "{said}");
}

#[tokio::test]
async fn a_retraining_publishes_what_is_better_and_says_how_the_models_compare() {
    let place = Place::new().await;
    let running = place.controller(false).await;
    let first = ended(&running, &retrain(&running).await.id.0).await;
    assert_eq!(first.status, OperationStatus::Succeeded, "{first:#?}");
    assert_eq!(place.promoted().len(), 1, "where there was none, it scores");
    let note = |operation: &Operation, step| match operation.last(step).map(|event| event.state.clone()) {
        Some(StepState::Succeeded { output }) => output.note.unwrap_or_default(),
        other => panic!("{step}: {other:?}"),
    };
    assert!(note(&first, StepName::CollectSamples).contains("2 nodes, 3 features"), "{first:#?}");
    assert!(note(&first, StepName::FitModel).contains("rows of 2 nodes"), "{first:#?}");
    let champion = place.promoted()[0].clone();
    let message = first.message.clone().unwrap_or_default();
    assert!(message.contains(&format!("{champion} scores from now on")), "{message}");

    // A version is a second long.
    let second_begins = first.begun_wall.0 / 1_000_000 + 1;
    while seconds() < second_begins {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let second = ended(&running, &retrain(&running).await.id.0).await;
    assert_eq!(second.status, OperationStatus::Succeeded, "{second:#?}");
    let message = second.message.clone().unwrap_or_default();
    assert!(message.contains(&format!("champion {champion}: forecasts are off by ")), "{message}");
    let stays = message.contains("is not better");
    assert_eq!(stays, place.promoted()[0] == champion, "{message}: {:?}", place.promoted());
    let left = std::fs::read_dir(place.path("retraining")).expect("there").count();
    assert_eq!(left, 0, "samples and challengers are removed");
}

#[tokio::test]
async fn a_killed_training_leaves_the_champion_and_a_second_one_is_refused_meanwhile() {
    let place = Place::new().await;
    let quick = place.controller(false).await;
    ended(&quick, &retrain(&quick).await.id.0).await;
    place.until_stored().await;
    let champion = place.promoted();
    drop(quick);
    let running = place.controller(true).await;
    let operation = retrain(&running).await;
    let fits = |operation: &Operation| operation.under_way(StepName::FitModel) && !programs(operation).is_empty();
    let working = until(&running, &operation.id.0, fits).await;
    let refused =
        running.handle.retrain("main", RetrainRequest::default(), &caller()).await.expect_err("one at a time");
    assert!(refused.status == 409 && refused.detail.contains("watch or cancel it first"), "{refused:?}");
    let pid = programs(&working)[0];
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let nice = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(16)).expect("a column");
    assert_eq!(nice, "15");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
    let limit = limits.lines().find(|line| line.starts_with("Max address space")).expect("a line");
    assert!(limit.contains("2147483648"), "{limit}");
    let process = rustix::process::Pid::from_raw(pid).expect("a process");
    rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("killed");
    let failed = ended(&running, &operation.id.0).await;
    assert_eq!(failed.status, OperationStatus::Failed);
    let message = failed.message.unwrap_or_default();
    assert!(
        message.contains("was killed by a signal") && message.ends_with("the model that scores is as it was"),
        "{message}"
    );
    assert_eq!(place.promoted(), champion);
}

#[tokio::test]
async fn a_cancel_ends_the_program_and_the_next_controller_goes_on_where_one_died() {
    let place = Place::new().await;
    let running = place.controller(true).await;
    let fits = |operation: &Operation| operation.under_way(StepName::FitModel) && !programs(operation).is_empty();
    let first = retrain(&running).await;
    until(&running, &first.id.0, fits).await;
    running.handle.cancel(&first.id.0, &caller()).await.expect("accepted");
    let cancelled = ended(&running, &first.id.0).await;
    assert_eq!(cancelled.status, OperationStatus::Cancelled, "{cancelled:#?}");
    let gone = async |operation: &Operation| {
        let began = now();
        while !programs(operation).is_empty() {
            assert!(now().duration_since(began) < PATIENCE, "its program works on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    gone(&first).await;

    let second = retrain(&running).await;
    until(&running, &second.id.0, fits).await;
    running.shutdown.send(true).expect("it runs");
    gone(&second).await;
    let next = place.controller(false).await;
    let finished = ended(&next, &second.id.0).await;
    assert_eq!(finished.status, OperationStatus::Succeeded, "{finished:#?}");
    let collected = finished.journal.iter().filter(|event| event.step == StepName::CollectSamples).count();
    assert_eq!(collected, 2, "begun and ended once: {finished:#?}");
    assert_eq!(place.promoted().len(), 1);
}
