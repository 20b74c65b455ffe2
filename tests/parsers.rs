//! Everything that reads what a network or a user sent, fed arbitrary bytes and damaged good examples: it never panics, ends soon, and
//! what it refuses it refuses in words of bounded length that say what is wrong and where.
//!
//! CSV is read by the trainer alone: `training/tests.rs` has its part.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use proptest::sample::Index;
use serde::de::DeserializeOwned;
use stormglass::adapters::haproxy::{backends, socket, template};
use stormglass::adapters::prometheus::{Credentials, PrometheusSettings, PrometheusSource};
use stormglass::api::authentication::presented_token;
use stormglass::api::body;
use stormglass::api::tokens::TokenRequest;
use stormglass::api::webhook::AlertmanagerPost;
use stormglass::api::wire::{
    BackupRequest, DrillRequest, FailoverRequest, NodeRequest, PauseRequest, Problem, RestoreRequest, SequenceRequest,
    SwitchoverRequest,
};
use stormglass::config::features::load_features;
use stormglass::config::load::{load_agent_with, load_controller_with};
use stormglass::config::read_any;
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

const WEBHOOK: &str = r#"{"receiver":"hook","status":"firing","alerts":[{"status":"firing","labels":{"alertname":"PgPrimaryDown","cluster":"main","node":"n1"},"annotations":{"summary":"PostgreSQL n1 down"},"startsAt":"2026-11-20T09:51:49.439Z","endsAt":"0001-01-01T00:00:00Z","generatorURL":"http://vm:21024/graph","fingerprint":"01a88acc357e86bc"}],"groupLabels":{},"externalURL":"http://vm:21025","version":"4","groupKey":"{}:{}","truncatedAlerts":0}"#;
const MUTATIONS: &[&str] = &[
    r#"{"to":"db2","site":null,"dry_run":true}"#,
    r#"{"to":"db2","accept_data_loss":true,"old_primary_is_off":false,"dry_run":false}"#,
    r#"{"node":"db2","reclone":true,"dry_run":false}"#,
    r#"{"duration_seconds":3600}"#,
    r#"{"type":"incr","dry_run":true}"#,
    r#"{"to_time":"2026-11-21T03:12:09Z","to_lsn":null,"site":"west","into":"/srv/copy","dry_run":false}"#,
    r#"{"name":"ci","role":"operator","clusters":["main"],"expires_in_seconds":60}"#,
];
const REPORT: &str = r#"{"cluster":"main","node":"n1","site":"a","address":{"host":"n1","port":5432},"boot":"boot","incarnation":"1","sequence":7,"sent_at":1,"version":"0"}"#;
const SERVERS: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
    srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id \
    srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n\
    3 write 1 primary 127.0.0.1 2 0 1 1 7 6 3 4 6 0 0 0 - 5432 - 0 0 - - 0\n";
const STATISTICS: &str =
    "# pxname,svname,qcur,qmax,scur,smax,slim,stot\nwrite,FRONTEND,,,1,2,2000,7\nwrite,BACKEND,3,4,1,2,200,7\n";
const SESSIONS: &str =
    "0x5581: proto=tcpv4 src=127.0.0.1:4 fe=write be=write srv=<none> ts=00 age=1s calls=1 cpu=0 lat=0\n";
const MATRIX: &str = r#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"node":"n1"},"values":[[0,"1"],[1,"2.5"],[2,"NaN"],[3,"+Inf"]]}]}}"#;
const FEATURES: &str = "[[feature]]\nname = \"up\"\nquery = 'up{node=~\"$node\"}'\nunit = \"1\"\ndirection = \"low\"\n";
const CONTROLLER: &str = include_str!("../examples/controller.toml");
const DATABASE: &str = include_str!("../examples/agent-postgresql.toml");
const MODEL: &str = include_str!("../models/lab-1s/model.json");
const WEIGHTS: &[u8] = include_bytes!("../models/lab-1s/weights.safetensors");

/// What happens to good bytes on their way.
#[derive(Debug, Clone)]
enum Damage {
    Overwrite(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
    CutOff(Index),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let end = |at: usize, length: usize| (at + length).min(bytes.len());
        match self {
            Damage::Overwrite(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Damage::Insert(at, piece) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, piece.iter().copied());
            }
            Damage::Remove(at, length) => {
                let at = at.index(bytes.len());
                drop(bytes.drain(at..end(at, *length)));
            }
            Damage::Repeat(at, length) => {
                let at = at.index(bytes.len());
                let piece = bytes[at..end(at, *length)].to_vec();
                bytes.splice(at..at, piece);
            }
            Damage::CutOff(at) => bytes.truncate(at.index(bytes.len())),
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let telling = prop_oneof![
        Just(b"\"".to_vec()),
        Just(b"{".to_vec()),
        Just(b"[".repeat(200)),
        Just(b"-99999999999999999999".to_vec()),
        Just(b"1e999".to_vec()),
        Just(b"\\u0000".to_vec()),
        Just(b"\xff\xfe".to_vec()),
        Just("ü\u{202e}".as_bytes().to_vec()),
        Just(b"x".repeat(10_000)),
        proptest::collection::vec(any::<u8>(), 1..8),
    ];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Overwrite(at, byte)),
        (any::<Index>(), telling).prop_map(|(at, piece)| Damage::Insert(at, piece)),
        (any::<Index>(), 1..40_usize).prop_map(|(at, length)| Damage::Remove(at, length)),
        (any::<Index>(), 1..200_usize).prop_map(|(at, length)| Damage::Repeat(at, length)),
        any::<Index>().prop_map(Damage::CutOff),
    ]
}

/// Damaged examples, and now and then anything at all.
fn bytes(examples: &[&'static [u8]]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let damaged = (proptest::sample::select(examples.to_vec()), proptest::collection::vec(damage(), 0..5)).prop_map(
        |(example, damages)| {
            let mut bytes = example.to_vec();
            damages.iter().for_each(|damage| damage.apply(&mut bytes));
            bytes
        },
    );
    prop_oneof![4 => damaged, 1 => proptest::collection::vec(any::<u8>(), 0..512)]
}

fn text(examples: &[&'static [u8]]) -> impl Strategy<Value = String> + use<> {
    bytes(examples).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Panics are found by proptest; this finds refusals that nobody can use.
fn check_words(words: &str) -> Result<(), TestCaseError> {
    prop_assert!(!words.trim().is_empty(), "a refusal without words");
    prop_assert!(
        words.len() <= WORDS_MAX,
        "{} bytes of refusal: {}…",
        words.len(),
        words.chars().take(200).collect::<String>()
    );
    Ok(())
}

fn headers() -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))])
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<T>, TestCaseError> {
    match body::parse::<T>(&headers(), bytes) {
        Ok(value) => Ok(Some(value)),
        Err(Problem { status, detail, .. }) => {
            prop_assert!((400..500).contains(&status), "{status}");
            prop_assert!(detail.contains("line ") || detail.contains("empty"), "it says no place: {detail}");
            check_words(&detail)?;
            Ok(None)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn posts_of_alertmanager(bytes in bytes(&[WEBHOOK.as_bytes()])) {
        if let Some(post) = parse::<AlertmanagerPost>(&bytes)? {
            match post.into_alerts() {
                Ok(alerts) => prop_assert!(alerts.len() <= 10_000),
                Err(problem) => {
                    prop_assert_eq!(problem.status, 400);
                    check_words(&problem.detail)?;
                }
            }
        }
    }

    #[test]
    fn bodies_of_requests(bytes in (0..MUTATIONS.len()).prop_flat_map(|index| {
        bytes(&[MUTATIONS[index].as_bytes()])
    })) {
        parse::<SwitchoverRequest>(&bytes)?;
        parse::<FailoverRequest>(&bytes)?;
        parse::<NodeRequest>(&bytes)?;
        parse::<PauseRequest>(&bytes)?;
        parse::<BackupRequest>(&bytes)?;
        parse::<DrillRequest>(&bytes)?;
        parse::<RestoreRequest>(&bytes)?;
        parse::<SequenceRequest>(&bytes)?;
        if let Some(request) = parse::<TokenRequest>(&bytes)?
            && let Some(problem) = request.name_problem()
        {
            check_words(&problem)?;
        }
    }

    #[test]
    fn reports_of_agents(bytes in bytes(&[REPORT.as_bytes()])) {
        parse::<Report>(&bytes)?;
        parse::<ProxyReport>(&bytes)?;
        parse::<CommandEnvelope>(&bytes)?;
    }

    #[test]
    fn tokens_in_headers(bytes in bytes(&[b"Bearer 0123456789abcdef", b"bearer  x", b"Basic YTpi"])) {
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
            prop_assert!(presented_token(&headers).is_none_or(|token| !token.is_empty() && token.trim() == token));
        }
    }

    #[test]
    fn answers_of_haproxy(text in text(&[SERVERS.as_bytes(), STATISTICS.as_bytes(), SESSIONS.as_bytes()])) {
        let _ = socket::server_state(&text, "write", "primary");
        let _ = socket::waiting_connections(&text, "write");
        let _ = socket::starting_sessions(&text, "write");
        let _ = backends::Seen::read(&text);
        let _ = backends::too_old(&text);
        let _ = template::shape(&text);
        let target: SocketAddr = ([127, 0, 0, 1], 5432).into();
        let _ = template::retargeted(&text, Some(target));
    }

    #[test]
    fn words_of_people(text in text(&[b"0/16B3748", b"2026-11-21T03:12:09.5Z", b"db-1", b"output: name=value\n"])) {
        // What is read is written as it was meant.
        if let Ok(lsn) = text.parse::<Lsn>() {
            prop_assert_eq!(lsn.to_string().parse::<Lsn>().ok(), Some(lsn));
        }
        if let Ok(at) = WallTime::try_from(text.clone()) {
            prop_assert_eq!(WallTime::try_from(at.to_string()).ok(), Some(at));
        }
        if let Ok(name) = NodeName::new(text.as_str()) {
            prop_assert_eq!(name.as_str(), text.as_str());
        }
        let _ = outputs_of(&text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_of_configuration(bytes in bytes(&[CONTROLLER.as_bytes(), DATABASE.as_bytes(), FEATURES.as_bytes()])) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("stormglass.toml");
        std::fs::write(&file, &bytes).expect("written");
        let errors = [
            load_controller_with(&file, []).map(drop).map_err(|error| chain(&error)),
            load_agent_with(&file, []).map(drop).map_err(|error| chain(&error)),
            read_any(&file).map(drop).map_err(|error| chain(&error)),
            load_features(Some(&file)).map(drop).map_err(|error| chain(&error)),
        ];
        for words in errors.into_iter().filter_map(Result::err) {
            prop_assert!(words.contains("stormglass.toml"), "it names no file: {words}");
        }
    }

    #[test]
    fn documents_and_weights_of_models(
        document in bytes(&[MODEL.as_bytes()]),
        weights in bytes(&[WEIGHTS]),
        keeps_document in any::<bool>(),
    ) {
        let text = if keeps_document { MODEL.to_owned() } else { String::from_utf8_lossy(&document).into_owned() };
        match ModelDocument::from_json(&text) {
            Ok(document) => {
                if let Err(error) = Model::new(document, &weights) {
                    prop_assert!(!error.to_string().is_empty());
                }
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    stormglass::cli::exit::chain(error)
}

/// Answers every request with what lies in the tray.
async fn prometheus(tray: Arc<Mutex<Vec<u8>>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let routes = axum::Router::new().fallback(move || {
        let body = tray.lock().expect("no panic").clone();
        async move { ([(CONTENT_TYPE, "application/json")], body) }
    });
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

#[test]
fn answers_of_prometheus() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let tray = Arc::new(Mutex::new(Vec::new()));
    let url = runtime.block_on(prometheus(tray.clone()));
    let settings =
        PrometheusSettings { url, credentials: Credentials::None, authority: None, timeout: Duration::from_secs(10) };
    let node = NodeName::new("n1").expect("valid");
    let feature = Feature {
        name: "up".to_owned(),
        query: "up{node=~\"$node\"}".to_owned(),
        unit: "1".to_owned(),
        direction: Direction::High,
        absent: None,
    };
    let source = PrometheusSource::new(&settings, vec![feature], vec![node.clone()]).expect("a client");
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(&bytes(&[MATRIX.as_bytes()]), |bytes| {
        *tray.lock().expect("no panic") = bytes;
        match runtime.block_on(source.samples(0..=3, 1)) {
            Ok(samples) => {
                let rows = &samples.nodes[&node];
                prop_assert_eq!(rows.len(), 4, "as many rows as were asked for, whatever came");
                prop_assert!(rows.iter().flatten().flatten().all(|value| value.is_finite()), "{:?}", rows);
                samples.problems.iter().try_for_each(|problem| check_words(problem))
            }
            Err(error) => check_words(&error.to_string()),
        }
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    *tray.lock().expect("no panic") = MATRIX.as_bytes().to_vec();
    let good = runtime.block_on(source.samples(0..=3, 1)).expect("the example is good");
    assert_eq!(good.nodes[&node], [vec![Some(1.0)], vec![Some(2.5)], vec![None], vec![None]]);
}

#[test]
fn the_examples_are_good() {
    let parse = |result: Result<Option<()>, TestCaseError>| assert!(matches!(result, Ok(Some(()))), "{result:?}");
    parse(parse_of::<AlertmanagerPost>(WEBHOOK));
    parse(parse_of::<SwitchoverRequest>(MUTATIONS[0]));
    parse(parse_of::<FailoverRequest>(MUTATIONS[1]));
    parse(parse_of::<NodeRequest>(MUTATIONS[2]));
    parse(parse_of::<PauseRequest>(MUTATIONS[3]));
    parse(parse_of::<BackupRequest>(MUTATIONS[4]));
    parse(parse_of::<RestoreRequest>(MUTATIONS[5]));
    parse(parse_of::<TokenRequest>(MUTATIONS[6]));
    assert!(socket::server_state(SERVERS, "write", "primary").is_some());
    assert_eq!(socket::waiting_connections(STATISTICS, "write"), Some(1));
    let most = "write,BACKEND,0,0,5\nwrite,a,0,0,18446744073709551615\nwrite,b,0,0,18446744073709551615\n";
    assert_eq!(socket::waiting_connections(most, "write"), Some(0), "no sum is too large");
    let document = ModelDocument::from_json(MODEL).expect("a good document");
    Model::new(document, WEIGHTS).expect("good weights");
}

fn parse_of<T: DeserializeOwned>(text: &str) -> Result<Option<()>, TestCaseError> {
    parse::<T>(text.as_bytes()).map(|found| found.map(drop))
}
