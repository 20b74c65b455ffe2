//! Samples from Prometheus by range queries: one query a feature for all nodes.
//!
//! What is late, missing, NaN or of another node is a gap. Nothing is filled in by guessing, and nothing is decided here.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use prometheus_http_query::response::{Data, RangeVector};
use prometheus_http_query::{Client, Error};

use crate::adapters::chain;
use crate::domain::feature::{AbsentValue, Feature};
use crate::domain::ids::NodeName;
use crate::ports::metrics::{MetricError, MetricSource, Sample, Samples};

/// Queries under way at once: enough to hide the round trips, few enough for Prometheus' own limit of 20.
const QUERIES_AT_ONCE: usize = 8;
/// How much of its words is repeated.
const WORDS_LENGTH_MAX: usize = 400;
/// The label that tells nodes apart.
const NODE_LABEL: &str = "node";
/// More steps than that are no question of a controller (Prometheus refuses 11 000).
const STEPS_MAX: i64 = 10_000;

/// How Prometheus is reached.
#[derive(Clone)]
pub struct PrometheusSettings {
    /// Base URL.
    pub url: String,
    /// Who asks.
    pub credentials: Credentials,
    /// Who signed its certificate, as PEM.
    pub authority: Option<Vec<u8>>,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// Who asks.
#[derive(Clone)]
pub enum Credentials {
    /// Nobody in particular.
    None,
    /// `Authorization: Bearer …`.
    Bearer(String),
    /// `Authorization: Basic …`.
    Basic {
        /// User.
        user: String,
        /// Password.
        password: String,
    },
}

/// A Prometheus.
pub struct PrometheusSource {
    client: Client,
    url: String,
    features: Vec<Feature>,
    nodes: Vec<NodeName>,
}

impl PrometheusSource {
    /// A client that connects with its first question.
    pub fn new(
        settings: &PrometheusSettings,
        features: Vec<Feature>,
        nodes: Vec<NodeName>,
    ) -> Result<Self, MetricError> {
        use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
        let refuse = |problem: String| MetricError { location: settings.url.clone(), problem };
        let mut headers = HeaderMap::new();
        let authorization = match &settings.credentials {
            Credentials::None => None,
            Credentials::Bearer(token) => Some(format!("Bearer {token}")),
            Credentials::Basic { user, password } => {
                use base64::Engine as _;
                let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
                Some(format!("Basic {encoded}"))
            }
        };
        if let Some(text) = authorization {
            let mut value = HeaderValue::from_str(&text)
                .map_err(|_| refuse("the credentials hold what no header can: look for a line break".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut builder = reqwest::Client::builder()
            .timeout(settings.timeout)
            .connect_timeout(settings.timeout)
            .default_headers(headers)
            // A proxy for web pages in the environment leads to no Prometheus.
            .no_proxy();
        if let Some(pem) = &settings.authority {
            let certificate = reqwest::Certificate::from_pem(pem)
                .map_err(|error| refuse(format!("prometheus.ca_file is no certificate in PEM: {error}")))?;
            builder = builder.tls_certs_only([certificate]);
        }
        let http = builder.build().map_err(|error| refuse(chain(&error)))?;
        let client = Client::from(http, settings.url.trim_end_matches('/')).map_err(|error| refuse(chain(&error)))?;
        Ok(Self { client, url: settings.url.clone(), features, nodes })
    }

    /// The nodes that have series of a cluster: values of the label `node` beside this value of the label `cluster`.
    pub async fn nodes_of(settings: &PrometheusSettings, cluster: &str) -> Result<Vec<NodeName>, MetricError> {
        let source = Self::new(settings, Vec::new(), Vec::new())?;
        let escaped = cluster.replace('\\', "\\\\").replace('"', "\\\"");
        let query = format!("count by ({NODE_LABEL}) ({{cluster=\"{escaped}\", {NODE_LABEL}!=\"\"}})");
        let found = source.client.query(query).get().await;
        let found = found.map_err(|error| MetricError { location: source.url.clone(), problem: words(&error) })?;
        let Data::Vector(series) = found.data() else { return Ok(Vec::new()) };
        let names = series.iter().filter_map(|one| NodeName::new(one.metric().get(NODE_LABEL)?.as_str()).ok());
        Ok(names.collect())
    }

    async fn column(&self, feature: &Feature, seconds: &RangeInclusive<i64>, step: u32) -> Answer {
        let query = feature.filled_in(self.nodes.iter().map(NodeName::as_str), step);
        let asked = self.client.query_range(query, *seconds.start(), *seconds.end(), f64::from(step));
        match asked.get().await {
            Ok(result) => match result.data() {
                Data::Matrix(series) => self.sorted(feature, series, seconds, step),
                _ => Answer::Refused(format!("feature {}: the answer is no matrix", feature.name)),
            },
            Err(Error::Prometheus(error)) if error.is_bad_data() || error.is_execution() => {
                Answer::Refused(format!("feature {}: {}", feature.name, bounded(error.message())))
            }
            Err(error) => Answer::Failed(words(&error)),
        }
    }

    /// Series of one feature to the places where they belong.
    fn sorted(&self, feature: &Feature, series: &[RangeVector], seconds: &RangeInclusive<i64>, step: u32) -> Answer {
        let steps = steps(seconds, step);
        let mut columns = BTreeMap::new();
        for one in series {
            let Some(label) = one.metric().get(NODE_LABEL) else {
                let problem =
                    "its result has no label `node`: aggregate by (node), and set the label where it is scraped";
                return Answer::Refused(format!("feature {}: {problem}", feature.name));
            };
            let Some(node) = self.nodes.iter().find(|node| node.as_str() == label) else { continue };
            let column = columns.entry(node.clone()).or_insert_with(|| vec![None; steps]);
            for sample in one.samples() {
                let offset = (sample.timestamp() - *seconds.start() as f64) / f64::from(step);
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a place that is none of the matrix is not found in it"
                )]
                let place = usize::try_from(offset.round() as i64).ok().and_then(|place| column.get_mut(place));
                if let Some(place) = place {
                    #[expect(
                        clippy::cast_possible_truncation,
                        reason = "models count in f32; what is beyond it is a gap"
                    )]
                    let value = sample.value() as f32;
                    *place = Some(value).filter(|value| value.is_finite());
                }
            }
        }
        Answer::Columns(columns)
    }
}

/// What became of one query.
enum Answer {
    /// Values of each node that has any.
    Columns(BTreeMap<NodeName, Vec<Option<f32>>>),
    /// Prometheus does not take this one: the others may be good.
    Refused(String),
    /// Prometheus cannot be asked.
    Failed(String),
}

#[async_trait]
impl MetricSource for PrometheusSource {
    async fn samples(&self, seconds: RangeInclusive<i64>, step_seconds: u32) -> Result<Samples, MetricError> {
        let fail = |problem: String| MetricError { location: self.url.clone(), problem };
        let count = (seconds.end() - seconds.start()) / i64::from(step_seconds.max(1));
        if step_seconds == 0 || !(0..STEPS_MAX).contains(&count) {
            return Err(fail(format!("{count} steps of {step_seconds} s cannot be asked for")));
        }
        let mut answers = Vec::with_capacity(self.features.len());
        for some in self.features.chunks(QUERIES_AT_ONCE) {
            let asked = some.iter().map(|feature| self.column(feature, &seconds, step_seconds));
            for answer in join_all(asked).await {
                if let Answer::Failed(problem) = answer {
                    return Err(fail(problem));
                }
                answers.push(answer);
            }
        }
        let empty = vec![vec![None; self.features.len()]; steps(&seconds, step_seconds)];
        let mut nodes: BTreeMap<NodeName, Vec<Sample>> =
            self.nodes.iter().map(|node| (node.clone(), empty.clone())).collect();
        let mut problems = Vec::new();
        let mut zeros = Vec::new();
        for (place, (feature, answer)) in self.features.iter().zip(answers).enumerate() {
            match answer {
                Answer::Columns(columns) => {
                    for (node, column) in columns {
                        let Some(rows) = nodes.get_mut(&node) else { continue };
                        for (row, value) in rows.iter_mut().zip(column) {
                            row[place] = value;
                        }
                    }
                    if feature.absent == Some(AbsentValue::Zero) {
                        zeros.push(place);
                    }
                }
                Answer::Refused(problem) => problems.push(problem),
                Answer::Failed(problem) => return Err(fail(problem)),
            }
        }
        for row in nodes.values_mut().flatten() {
            // Nothing at all is a node that is not scraped: there, nothing is zero.
            if row.iter().any(Option::is_some) {
                for place in &zeros {
                    row[*place].get_or_insert(0.0);
                }
            }
        }
        Ok(Samples { nodes, problems })
    }
}

fn steps(seconds: &RangeInclusive<i64>, step: u32) -> usize {
    usize::try_from((seconds.end() - seconds.start()) / i64::from(step.max(1))).unwrap_or(0) + 1
}

fn words(error: &Error) -> String {
    match error {
        Error::Client(client) => match client.inner() {
            Some(inner) if inner.is_timeout() => "no answer in time; it may be overloaded".to_owned(),
            Some(inner) => bounded(&chain(inner)),
            None => bounded(&error.to_string()),
        },
        Error::Prometheus(problem) => format!("it answers {}", bounded(problem.message())),
        other => bounded(&other.to_string()),
    }
}

/// Words of another server, which may be endless.
fn bounded(words: &str) -> String {
    words.chars().filter(|letter| !letter.is_control()).take(WORDS_LENGTH_MAX).collect()
}
