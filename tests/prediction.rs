//! Samples from a real Prometheus, and a controller whose Prometheus or model is not as it should be: it abstains, says so, and
//! decides as before.

#[path = "prediction/retraining.rs"]
mod retraining;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stormglass::adapters::control::{HttpControl, TcpPrimaryProbe};
use stormglass::adapters::models::ModelFolder;
use stormglass::adapters::prometheus::{Credentials, PrometheusSettings, PrometheusSource};
use stormglass::adapters::store::SqliteStore;
use stormglass::adapters::system::SystemClock;
use stormglass::api::controller::ControllerHandler;
use stormglass::api::risk::ModelEntry;
use stormglass::controller::{self, ConfiguredNode, ControllerHandle, ControllerParts, Prediction};
use stormglass::domain::feature::{AbsentValue, Direction, Feature};
use stormglass::domain::ids::{ClusterName, NodeName, SiteName};
use stormglass::domain::policy::Policy;
use stormglass::ports::metrics::{MetricSource, Samples};
use stormglass::ports::{Clock, Sole, Store};
use stormglass::predict::document::TrainingSpan;
use stormglass::predict::fit::{Outline, Scales, finish};
use stormglass::predict::{Architecture, FeatureDescription, NetworkKind, Samples as PredictSamples};
use stormglass::telemetry::metrics::ControllerMetrics;
use tokio::sync::watch;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("valid")
}

fn feature(name: &str, query: &str) -> Feature {
    Feature {
        name: name.to_owned(),
        query: query.to_owned(),
        unit: "1".to_owned(),
        direction: Direction::High,
        absent: None,
        spread_min: None,
    }
}

fn settings(url: &str) -> PrometheusSettings {
    PrometheusSettings {
        url: url.to_owned(),
        credentials: Credentials::None,
        authority: None,
        timeout: Duration::from_secs(10),
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

#[expect(clippy::disallowed_methods, reason = "a test waits by the clock of the host that runs it")]
fn now() -> Instant {
    Instant::now()
}

/// A Prometheus that scrapes itself once a second as node n1, and knows a target n2 that is not there.
struct Prometheus {
    child: Child,
    url: String,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    async fn start(password_hash: Option<&str>) -> Self {
        Self::start_with(password_hash, |_| {}).await
    }

    /// With what `prepare` puts below `data` in its directory.
    async fn start_with(password_hash: Option<&str>, prepare: impl FnOnce(&std::path::Path)) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        prepare(directory.path());
        let (port, nobody) = (free_port(), free_port());
        let authentication =
            if password_hash.is_some() { "    basic_auth: {username: reader, password: secret}\n" } else { "" };
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n  - job_name: self\n{authentication}\
             \x20   static_configs:\n      - targets: ['127.0.0.1:{port}']\n        labels: {{node: n1}}\n\
             \x20     - targets: ['127.0.0.1:{nobody}']\n        labels: {{node: n2}}\n\
             \x20     - targets: ['127.0.0.1:{nobody}']\n        labels: {{node: stranger}}\n"
        );
        let file = directory.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("written");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(["--log.level=error"]);
        if let Some(hash) = password_hash {
            let web = directory.path().join("web.yml");
            std::fs::write(&web, format!("basic_auth_users:\n  reader: '{hash}'\n")).expect("written");
            command.arg(format!("--web.config.file={}", web.display()));
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("prometheus is installed");
        Self { child, url: format!("http://127.0.0.1:{port}"), _directory: directory }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn seconds() -> i64 {
    SystemClock::new().expect("a clock").wall().0 / 1_000_000
}

/// Asks for the last seconds until `is_good` likes the answer.
async fn samples(source: &PrometheusSource, is_good: impl Fn(&Samples) -> bool) -> Samples {
    let began = now();
    loop {
        let last = seconds() - 1;
        let answer = source.samples(last - 5..=last, 1).await;
        if let Ok(samples) = &answer
            && is_good(samples)
        {
            return samples.clone();
        }
        assert!(now().duration_since(began) < PATIENCE, "not in time: {answer:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn every_node_has_its_matrix_and_what_is_missing_is_a_gap() {
    let prometheus = Prometheus::start(None).await;
    let features = vec![
        feature("up", "up{node=~\"$node\"}"),
        feature("heads", "max by (node) (prometheus_tsdb_head_series{node=~\"$node\"})"),
        feature("nothing", "max by (node) (no_such_metric{node=~\"$node\"})"),
        Feature {
            absent: Some(AbsentValue::Zero),
            ..feature("zero", "max by (node) (no_such_metric{node=~\"$node\"})")
        },
        feature("nan", "up{node=~\"$node\"} * 0 / 0"),
        feature("broken", "rate(up{node=~\"$node\"}[$window"),
        feature("nameless", "sum(up{node=~\"$node\"})"),
    ];
    let nodes = vec![node("n1"), node("n2")];
    let source = PrometheusSource::new(&settings(&prometheus.url), features, nodes).expect("a client");
    let is_full =
        |samples: &Samples| samples.nodes[&node("n1")].iter().all(|row| row[1].is_some_and(|series| series > 10.0));
    let found = samples(&source, is_full).await;
    assert_eq!(found.nodes.keys().cloned().collect::<Vec<_>>(), [node("n1"), node("n2")], "strangers stay out");
    for row in &found.nodes[&node("n1")] {
        assert_eq!(row.len(), 7);
        assert_eq!((row[0], row[2], row[3], row[4]), (Some(1.0), None, Some(0.0), None), "{row:?}");
        assert!(row[1].is_some_and(|series| series > 10.0));
    }
    let last = found.nodes[&node("n2")].last().expect("rows");
    assert_eq!((last[0], last[1]), (Some(0.0), None), "a target that is down is no gap, and has nothing else");
    assert_eq!(found.nodes[&node("n1")].len(), 6, "both ends are included");
    let problems = found.problems.join("\n");
    assert!(problems.contains("feature broken: ") && problems.contains("parse error"), "{problems}");
    assert!(problems.contains("feature nameless: its result has no label `node`"), "{problems}");
}

#[tokio::test]
async fn prometheus_that_wants_a_password_gets_it_or_says_so() {
    // bcrypt of "secret".
    let hash = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";
    let prometheus = Prometheus::start(Some(hash)).await;
    let up = || vec![feature("up", "up{node=~\"$node\"}")];
    let began = now();
    let refused = loop {
        let source = PrometheusSource::new(&settings(&prometheus.url), up(), vec![node("n1")]).expect("a client");
        let error = source.samples(0..=1, 1).await.expect_err("nobody in particular may ask").to_string();
        if !error.contains("refused") || now().duration_since(began) > PATIENCE {
            break error;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(refused.contains("401") || refused.to_lowercase().contains("unauthorized"), "{refused}");
    let credentials = Credentials::Basic { user: "reader".to_owned(), password: "secret".to_owned() };
    let reader = PrometheusSettings { credentials, ..settings(&prometheus.url) };
    let source = PrometheusSource::new(&reader, up(), vec![node("n1")]).expect("a client");
    let found = samples(&source, |samples| samples.nodes[&node("n1")].iter().any(|row| row[0] == Some(1.0))).await;
    assert!(found.problems.is_empty(), "{:?}", found.problems);
}

struct Running {
    handle: ControllerHandle,
    shutdown: watch::Sender<bool>,
    _directory: Option<tempfile::TempDir>,
}

/// A controller with a predictor, and agents that nobody reaches.
async fn controller(url: &str, timeout: Duration, models: &std::path::Path, challenger: Option<&str>) -> Running {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = SqliteStore::open(&directory.path().join("store.db")).expect("a new store");
    let features = vec![feature("up", "up{node=~\"$node\"}")];
    let settings = PrometheusSettings { timeout, ..settings(url) };
    let source = PrometheusSource::new(&settings, features.clone(), vec![node("n1")]).expect("a client");
    let prediction = Prediction {
        source: Arc::new(source),
        models: Arc::new(ModelFolder::new(models)),
        features: Arc::new(features),
        step_seconds: 1,
        model: None,
        challenger: challenger.map(str::to_owned),
        training: None,
    };
    Running { _directory: Some(directory), ..begin(Arc::new(store), prediction).await }
}

/// A controller with this predictor on this store.
async fn begin(store: Arc<dyn Store>, prediction: Prediction) -> Running {
    let nowhere = "http://127.0.0.1:1";
    let control =
        Arc::new(HttpControl::new([(node("n1"), nowhere.to_owned())].into(), BTreeMap::new(), "token").expect("good"));
    let (shutdown, stopped) = watch::channel(false);
    let parts = ControllerParts {
        audit: None,
        backup: None,
        name: "controller-1".to_owned(),
        cluster: ClusterName::new("main").expect("valid"),
        policy: Policy::for_rto(Duration::from_secs(5)),
        definition: Default::default(),
        circumstances: Default::default(),
        protection: tokio::sync::watch::channel(Default::default()).1,
        sequences: Default::default(),
        traffic: Default::default(),
        nodes: vec![ConfiguredNode {
            name: node("n1"),
            site: SiteName::new("a").expect("valid"),
            agent: nowhere.to_owned(),
        }],
        proxies: Vec::new(),
        clock: Arc::new(SystemClock::new().expect("a clock")),
        term: Arc::new(Sole::new(store)),
        node_control: control.clone(),
        proxy_control: control,
        primary_probe: Arc::new(TcpPrimaryProbe),
        name_service: None,
        metrics: Arc::new(ControllerMetrics::new("test")),
        prediction: Some(prediction),
        ways: Default::default(),
        notifications: Default::default(),
    };
    let handle = controller::start(parts, stopped).await.expect("starts");
    Running { handle, shutdown, _directory: None }
}

/// Waits until the predictor abstains for a reason that holds `words`, while the controller answers all the time.
async fn abstains(running: &Running, words: &str) {
    let began = now();
    loop {
        let asked = now();
        let status = running.handle.status("main").await.expect("a status");
        assert!(now().duration_since(asked) < Duration::from_secs(10), "the loop waits for the predictor");
        let status = &status.document;
        let predictor = status.predictor.clone().expect("one is configured");
        let why = predictor.abstains.unwrap_or_default();
        if why.contains(words) {
            assert!(status.nodes.iter().all(|node| node.risk.is_none()));
            assert!(status.warnings.iter().any(|warning| warning.message.contains(words)), "{:?}", status.warnings);
            return;
        }
        assert!(now().duration_since(began) < PATIENCE, "it says {why:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn without_a_model_and_with_a_broken_one_the_predictor_abstains_and_says_which() {
    let models = tempfile::tempdir().expect("a temporary directory");
    let running = controller("http://127.0.0.1:1", Duration::from_secs(1), models.path(), None).await;
    abstains(&running, "no model for a step of 1 s").await;
    let broken = models.path().join("broken");
    std::fs::create_dir(&broken).expect("made");
    std::fs::write(broken.join("weights.safetensors"), [0; 7]).expect("written");
    std::fs::write(broken.join("model.json"), "{\"schema_version\": 99}").expect("written");
    std::fs::write(models.path().join("PROMOTED"), "broken\n").expect("written");
    abstains(&running, "model broken: ").await;
    let list = running.handle.models().await.expect("a list");
    assert_eq!(list.models.len(), 1);
    assert!(list.models[0].problem.is_some() && list.models[0].promoted && !list.models[0].scores);
}

/// Rows 65 of the failure modes: what is wrong with Prometheus ends in words, and in nothing else.
#[tokio::test]
async fn prometheus_that_is_away_slow_or_wrong_makes_the_predictor_abstain() {
    let features = || vec![feature("up", "up{node=~\"$node\"}")];
    let ask = async |url: &str, timeout: Duration| {
        let settings = PrometheusSettings { timeout, ..settings(url) };
        let source = PrometheusSource::new(&settings, features(), vec![node("n1")]).expect("a client");
        source.samples(0..=5, 1).await.expect_err("no samples").to_string()
    };
    let away = ask(&format!("http://127.0.0.1:{}", free_port()), Duration::from_secs(5)).await;
    assert!(away.contains("refused"), "{away}");
    // It accepts and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    let slow = ask(&format!("http://{address}"), Duration::from_millis(300)).await;
    assert!(slow.contains("no answer in time"), "{slow}");
    // Another server than Prometheus.
    let other = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().expect("a connection");
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
    });
    let wrong = ask(&format!("http://{address}"), Duration::from_secs(5)).await;
    assert!(!wrong.is_empty());
    let _ = other.join();
}

/// A small model of the feature `up`, without a network: it knows its node after a few samples.
fn write_model(models: &std::path::Path, name: &str, baseline_rows: u32) {
    let mut node = PredictSamples::new(1);
    (0..100_u8).for_each(|row| node.push(&[Some(f32::from(row % 2))]));
    let nodes = [node];
    let outline = Outline {
        name: name.to_owned(),
        version: "1".to_owned(),
        step_seconds: 1,
        horizon_seconds: 60,
        features: vec![FeatureDescription {
            name: "up".to_owned(),
            unit: "1".to_owned(),
            direction: stormglass::predict::Direction::Both,
            spread_min: None,
        }],
        architecture: Architecture { network: NetworkKind::None, baseline_rows, horizons: vec![1] },
        training: TrainingSpan::default(),
        data_sha256: String::new(),
    };
    let (document, weights) = finish(outline, &nodes, &Scales::of(&nodes), None).expect("a model");
    let folder = models.join(name);
    std::fs::create_dir_all(&folder).expect("made");
    std::fs::write(folder.join("weights.safetensors"), weights).expect("written");
    std::fs::write(folder.join("model.json"), document.to_json()).expect("written");
}

/// Waits until the list of models is as `is_good` wants it.
async fn models(running: &Running, is_good: impl Fn(&[ModelEntry]) -> bool) -> Vec<ModelEntry> {
    let began = now();
    loop {
        let list = running.handle.models().await.expect("a list").models;
        if is_good(&list) {
            return list;
        }
        assert!(now().duration_since(began) < PATIENCE, "not in time: {list:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_challenger_scores_beside_the_champion_and_only_the_champion_is_heard() {
    let prometheus = Prometheus::start(None).await;
    let folder = tempfile::tempdir().expect("a temporary directory");
    write_model(folder.path(), "champion", 3);
    write_model(folder.path(), "challenger", 4);
    let running = controller(&prometheus.url, Duration::from_secs(5), folder.path(), Some("challenger")).await;
    std::fs::write(folder.path().join("PROMOTED"), "champion\n").expect("written");
    let judged = |model: &ModelEntry| model.figures.as_ref().is_some_and(|figures| figures.forecast_error.is_some());
    let both = models(&running, |list| list.len() == 2 && list.iter().all(judged)).await;
    let states: Vec<_> = both.iter().map(|model| (model.name.as_str(), model.scores, model.challenges)).collect();
    assert_eq!(states, [("challenger", false, true), ("champion", true, false)]);
    let status = running.handle.status("main").await.expect("a status");
    assert_eq!(
        status.document.predictor.clone().and_then(|predictor| predictor.model).expect("one scores").name,
        "champion"
    );

    // A challenger that breaks is told of, and takes nothing along.
    std::fs::write(folder.path().join("challenger").join("model.json"), "{}").expect("written");
    let samples = |list: &[ModelEntry]| list[1].figures.as_ref().map_or(0, |figures| figures.samples);
    let before = samples(&both);
    let after = models(&running, |list| list[0].problem.is_some() && samples(list) > before + 1).await;
    assert!(after[1].scores);
}
