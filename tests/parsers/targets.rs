//! What every parser that faces a network or a user is held to: one function for each, called by the property tests and by the
//! fuzzers (`fuzz/`). Whatever the bytes, a function returns; it panics where a promise is broken.
//!
//! Makes no input: bytes come from the caller.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use serde::de::DeserializeOwned;
use stormglass::adapters::haproxy::{backends, socket, template};
use stormglass::adapters::prometheus::{Credentials, PrometheusSettings, PrometheusSource};
use stormglass::api::authentication::{Identity, presented_token};
use stormglass::api::body;
use stormglass::api::clusters::{ClusterAddRequest, ClusterRemoveRequest};
use stormglass::api::openid::{KeySet, OpenId, OpenIdRules};
use stormglass::api::tokens::TokenRequest;
use stormglass::api::webhook::AlertmanagerPost;
use stormglass::api::wire::{
    BackupRequest, DrillRequest, FailoverRequest, NodeRequest, PauseRequest, Problem, RestoreRequest, SequenceRequest,
    SwitchoverRequest,
};
use stormglass::config::features::load_features;
use stormglass::config::load::{load_agent_with, load_controller_with};
use stormglass::config::read_any;
use stormglass::domain::access::Role;
use stormglass::domain::clock::WallTime;
use stormglass::domain::command::CommandEnvelope;
use stormglass::domain::feature::{Direction, Feature};
use stormglass::domain::ids::NodeName;
use stormglass::domain::lsn::Lsn;
use stormglass::domain::report::{ProxyReport, Report};
use stormglass::domain::sequence::outputs_of;
use stormglass::ports::MetricSource;
use stormglass::predict::{Model, ModelDocument};

/// Longest refusal: somebody reads it.
const WORDS_MAX: usize = 2_000;

/// Weights that fit the document of the same directory.
const WEIGHTS: &[u8] = include_bytes!("../../models/lab-1s/weights.safetensors");
const DOCUMENT: &str = include_str!("../../models/lab-1s/model.json");

/// What is fed to a parser, by the name of its directory below `fuzz/seeds`.
pub type Target = (&'static str, fn(&[u8]));

/// Every one of them.
#[allow(dead_code, reason = "the fuzzers call the functions by name")]
pub const TARGETS: &[Target] = &[
    ("webhook", webhook),
    ("bodies", bodies),
    ("reports", reports),
    ("tokens", tokens),
    ("openid", openid),
    ("haproxy", haproxy),
    ("words", words),
    ("configuration", configuration),
    ("model", model),
    ("weights", weights),
    ("prometheus", prometheus),
];

/// A refusal that nobody can use is as bad as none.
fn check_words(words: &str) {
    assert!(!words.trim().is_empty(), "a refusal without words");
    assert!(
        words.len() <= WORDS_MAX,
        "{} bytes of refusal: {}…",
        words.len(),
        words.chars().take(200).collect::<String>()
    );
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    match body::parse::<T>(&headers, bytes) {
        Ok(value) => Some(value),
        Err(Problem { status, detail, .. }) => {
            assert!((400..500).contains(&status), "{status}");
            assert!(detail.contains("line ") || detail.contains("empty"), "it says no place: {detail}");
            check_words(&detail);
            None
        }
    }
}

/// What Alertmanager posts.
pub fn webhook(bytes: &[u8]) {
    if let Some(post) = parse::<AlertmanagerPost>(bytes) {
        match post.into_alerts() {
            Ok(alerts) => assert!(alerts.len() <= 10_000),
            Err(problem) => {
                assert_eq!(problem.status, 400);
                check_words(&problem.detail);
            }
        }
    }
}

/// Bodies of requests, each read as every kind.
pub fn bodies(bytes: &[u8]) {
    parse::<SwitchoverRequest>(bytes);
    parse::<FailoverRequest>(bytes);
    parse::<NodeRequest>(bytes);
    parse::<PauseRequest>(bytes);
    parse::<BackupRequest>(bytes);
    parse::<DrillRequest>(bytes);
    parse::<RestoreRequest>(bytes);
    parse::<SequenceRequest>(bytes);
    parse::<ClusterAddRequest>(bytes);
    parse::<ClusterRemoveRequest>(bytes);
    if let Some(request) = parse::<TokenRequest>(bytes)
        && let Some(problem) = request.name_problem()
    {
        check_words(&problem);
    }
}

/// What agents send, and what controllers send them.
pub fn reports(bytes: &[u8]) {
    parse::<Report>(bytes);
    parse::<ProxyReport>(bytes);
    parse::<CommandEnvelope>(bytes);
}

/// `Authorization`.
pub fn tokens(bytes: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
        assert!(presented_token(&headers).is_none_or(|token| !token.is_empty() && token.trim() == token));
    }
}

/// Key set of the issuer that signed the good examples.
const KEYS: &str = include_str!("../../fuzz/seeds/openid/keys.json");

/// OpenID tokens, and the key sets that issuers publish. What is admitted is what the issuer signed, whatever was done to it.
pub fn openid(bytes: &[u8]) {
    const NOW: WallTime = WallTime(1_795_000_000_000_000);
    static JUDGE: OnceLock<OpenId> = OnceLock::new();
    if let Err(error) = KeySet::parse(bytes) {
        check_words(&error.to_string());
    }
    let judge = JUDGE.get_or_init(|| {
        let rules = OpenIdRules {
            issuer: "https://idp.example.org".to_owned(),
            audience: "stormglass".to_owned(),
            role_claim: "groups".to_owned(),
            roles: [(Role::Operator, vec!["dba".to_owned()])].into(),
            name_claim: "sub".to_owned(),
            clusters_claim: None,
        };
        let judge = OpenId::new(rules, Arc::default());
        judge.take(Ok(KEYS.as_bytes()), NOW).expect("good keys");
        judge
    });
    match judge.judge(&String::from_utf8_lossy(bytes), NOW) {
        Ok(identity) => {
            let ann = Identity::Person { name: "oidc:ann".to_owned(), role: Role::Operator, clusters: Vec::new() };
            assert_eq!(identity, ann);
        }
        Err(refusal) => check_words(&refusal.to_string()),
    }
}

/// What HAProxy answers on its socket (CSV and lists), and its configuration as a user wrote it.
pub fn haproxy(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = socket::server_state(&text, "write", "primary");
    let _ = socket::waiting_connections(&text, "write");
    let _ = socket::starting_sessions(&text, "write");
    let _ = backends::Seen::read(&text);
    let _ = backends::too_old(&text);
    let _ = template::shape(&text);
    let target: SocketAddr = ([127, 0, 0, 1], 5432).into();
    let _ = template::retargeted(&text, Some(target));
}

/// Values that people type. What is read is written as it was meant.
pub fn words(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse::<Lsn>().ok(), Some(lsn));
    }
    if let Ok(at) = WallTime::try_from(text.clone()) {
        assert_eq!(WallTime::try_from(at.to_string()).ok(), Some(at));
    }
    match NodeName::new(text.as_str()) {
        Ok(name) => assert_eq!(name.as_str(), text.as_str()),
        Err(error) => check_words(&error.to_string()),
    }
    let _ = outputs_of(&text);
}

/// Files of configuration, each read as every kind.
pub fn configuration(bytes: &[u8]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("stormglass.toml");
    std::fs::write(&file, bytes).expect("written");
    let chain = stormglass::cli::exit::chain;
    let errors = [
        load_controller_with(&file, []).map(drop).map_err(|error| chain(&error)),
        load_agent_with(&file, []).map(drop).map_err(|error| chain(&error)),
        read_any(&file).map(drop).map_err(|error| chain(&error)),
        load_features(Some(&file)).map(drop).map_err(|error| chain(&error)),
    ];
    for words in errors.into_iter().filter_map(Result::err) {
        assert!(words.contains("stormglass.toml"), "it names no file: {words}");
    }
}

/// `model.json`, beside good weights.
pub fn model(bytes: &[u8]) {
    read_model(&String::from_utf8_lossy(bytes), WEIGHTS);
}

/// Weights, beside a good `model.json`.
pub fn weights(bytes: &[u8]) {
    read_model(DOCUMENT, bytes);
}

fn read_model(document: &str, weights: &[u8]) {
    let read = ModelDocument::from_json(document).map_err(|error| error.to_string());
    let made = read.and_then(|document| Model::new(document, weights).map_err(|error| error.to_string()));
    if let Err(words) = made {
        assert!(!words.trim().is_empty(), "a refusal without words");
    }
}

/// Prometheus' answer to a range query, over HTTP: what exporters say reaches the controller in no other way.
pub fn prometheus(bytes: &[u8]) {
    let conversation = Conversation::get();
    match conversation.answered(bytes) {
        Ok(rows) => {
            assert_eq!(rows.len(), 4, "as many rows as were asked for, whatever came");
            assert!(rows.iter().flatten().flatten().all(|value| value.is_finite()), "{rows:?}");
        }
        Err(words) => check_words(&words),
    }
}

/// A web server that answers every request with what lies in its tray, and somebody who asks it.
pub struct Conversation {
    runtime: tokio::runtime::Runtime,
    tray: Arc<Mutex<Vec<u8>>>,
    source: PrometheusSource,
    node: NodeName,
    turn: Mutex<()>,
}

impl Conversation {
    /// The one of this process.
    pub fn get() -> &'static Self {
        static CONVERSATION: OnceLock<Conversation> = OnceLock::new();
        CONVERSATION.get_or_init(Self::begin)
    }

    fn begin() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let tray = Arc::new(Mutex::new(Vec::new()));
        let shared = tray.clone();
        let url = runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let url = format!("http://{}", listener.local_addr().expect("bound"));
            let routes = axum::Router::new().fallback(move || {
                let body = shared.lock().expect("no panic").clone();
                async move { ([(CONTENT_TYPE, "application/json")], body) }
            });
            tokio::spawn(async move { axum::serve(listener, routes).await });
            url
        });
        let credentials = Credentials::None;
        let settings = PrometheusSettings { url, credentials, authority: None, timeout: Duration::from_secs(10) };
        let node = NodeName::new("n1").expect("valid");
        let feature = Feature {
            name: "up".to_owned(),
            query: "up{node=~\"$node\"}".to_owned(),
            unit: "1".to_owned(),
            direction: Direction::High,
            absent: None,
            spread_min: None,
        };
        let source = PrometheusSource::new(&settings, vec![feature], vec![node.clone()]).expect("a client");
        Self { runtime, tray, source, node, turn: Mutex::new(()) }
    }

    /// The samples of four steps that were read from these bytes.
    pub fn answered(&self, bytes: &[u8]) -> Result<Vec<Vec<Option<f32>>>, String> {
        let _turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *self.tray.lock().expect("no panic") = bytes.to_vec();
        let read = self.runtime.block_on(self.source.samples(0..=3, 1)).map_err(|error| error.to_string())?;
        read.problems.iter().for_each(|problem| check_words(problem));
        Ok(read.nodes[&self.node].clone())
    }
}
