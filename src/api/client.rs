//! Client of the controller's API, for the command line and the lab.
//!
//! Keeps every document as it came, beside what was read from it, so that `--output json` shows the wire and nothing else.
//! Of several controllers it asks the next one where one is out of reach or does not lead. Otherwise it never repeats a mutation:
//! an answer that got lost is an unknown outcome, and said to be one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::header::LINK;
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::clusters::{ClusterAddRequest, ClusterDefinition, ClusterRemoveRequest};
use super::notifications::ChannelDocument;
use super::risk::{ModelList, RiskDocument};
use super::wire::{BackupList, ClusterStatus, Explanation, MutationReply, Problem};
use crate::domain::clock::WallTime;
use crate::domain::incident::IncidentReport;
use crate::domain::operation::Operation;
use crate::domain::readiness::Readiness;
use crate::domain::sequence::Sequence;

/// A controller on the same host answers a connect at once; across sites this is many round trips.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A controller answers from memory; mutations wait for its disk at most.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Why there is no answer, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL given for the controller is none.
    #[error("{url:?} is no URL of a controller, as in https://10.0.0.5:8432")]
    BadUrl {
        /// As given.
        url: String,
    },
    /// A file for TLS cannot be used.
    #[error("{path}: {problem}")]
    BadFile {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The request was certainly not received.
    #[error("cannot reach the controller at {url}")]
    Unreachable {
        /// Base URL.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The request was sent, and its answer did not come or could not be read.
    #[error("no usable answer from the controller at {url}")]
    NoAnswer {
        /// Base URL.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The controller said no.
    #[error("{}", problem.detail)]
    Problem {
        /// Its document.
        problem: Box<Problem>,
    },
    /// The answer is not what this version understands.
    #[error("the controller's answer to {path} is not understood: versions of command line and controller may differ")]
    Malformed {
        /// What was asked.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// Files for `https://` controllers, as PEM.
#[derive(Debug, Clone, Default)]
pub struct ClientFiles {
    /// Who signed the controllers' certificates; the system's authorities if not given.
    pub authorities: Option<PathBuf>,
    /// An own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ClientFiles {
    fn prepare(&self, mut builder: reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, ClientError> {
        let wrong = |path: &Path, problem: String| ClientError::BadFile { path: path.to_owned(), problem };
        let read = |path: &Path| std::fs::read(path).map_err(|error| wrong(path, format!("read the file: {error}")));
        if let Some(path) = &self.authorities {
            let found = reqwest::Certificate::from_pem_bundle(&read(path)?).unwrap_or_default();
            if found.is_empty() {
                return Err(wrong(path, "holds no certificate in PEM".to_owned()));
            }
            builder = builder.tls_certs_only(found);
        }
        if let Some((certificate, key)) = &self.identity {
            let pem = [read(certificate)?, read(key)?].join(&b'\n');
            let identity = reqwest::Identity::from_pem(&pem)
                .map_err(|_| wrong(certificate, format!("is no certificate in PEM, or {} is no key", key.display())))?;
            builder = builder.identity(identity);
        }
        Ok(builder)
    }
}

/// A document as read, and as it came.
#[derive(Debug, Clone)]
pub struct Document<T> {
    /// As read.
    pub value: T,
    /// As it came.
    pub raw: Value,
}

/// One line of `events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Event {
    /// Stable name of the event type.
    pub event: String,
    /// `info`, `warning` or `error`.
    pub severity: String,
    /// When.
    pub wall: WallTime,
    /// About which node.
    #[serde(default)]
    pub node: Option<String>,
    /// Part of which operation.
    #[serde(default)]
    pub operation: Option<String>,
    /// Epoch at that time.
    pub epoch: u64,
    /// A full English sentence.
    pub message: String,
}

/// Connections to one controller, or to one of several.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    bases: Vec<String>,
    /// The controller that answered last.
    preferred: Arc<AtomicUsize>,
    token: Option<String>,
}

impl Client {
    /// A client of the controllers at `urls` (separated by commas), with a bearer token if there is one. Connects with the first
    /// request.
    pub fn new(urls: &str, token: Option<String>) -> Result<Self, ClientError> {
        Self::with_files(urls, token, &ClientFiles::default())
    }

    /// The same, with files for TLS.
    pub fn with_files(urls: &str, token: Option<String>, files: &ClientFiles) -> Result<Self, ClientError> {
        let mut bases = Vec::new();
        for url in urls.split(',').map(str::trim) {
            let valid = reqwest::Url::parse(url)
                .is_ok_and(|parsed| ["http", "https"].contains(&parsed.scheme()) && parsed.has_host());
            if !valid {
                return Err(ClientError::BadUrl { url: url.to_owned() });
            }
            bases.push(url.trim_end_matches('/').to_owned());
        }
        let http = files
            .prepare(reqwest::Client::builder())?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            // A proxy for web pages in the environment leads to no controller.
            .no_proxy()
            .build()
            .map_err(|source| ClientError::Unreachable { url: urls.to_owned(), source })?;
        Ok(Self { http, bases, preferred: Arc::default(), token })
    }

    /// Names of the clusters that the controller keeps.
    pub async fn clusters(&self) -> Result<Vec<String>, ClientError> {
        const PATH: &str = "/api/v1/clusters";
        let raw = self.get(PATH).await?;
        let rows = items(&raw).ok_or_else(|| malformed(PATH, "a list of clusters was expected"))?;
        rows.iter()
            .map(|row| {
                let name = row.as_str().or_else(|| row.get("cluster")?.as_str()).or_else(|| row.get("name")?.as_str());
                name.map(str::to_owned).ok_or_else(|| malformed(PATH, "a cluster without a name"))
            })
            .collect()
    }

    /// How the cluster stands.
    pub async fn status(&self, cluster: &str) -> Result<Document<ClusterStatus>, ClientError> {
        self.document(&format!("/api/v1/clusters/{cluster}")).await
    }

    /// What the cluster is configured as.
    pub async fn definition(&self, cluster: &str) -> Result<Document<ClusterDefinition>, ClientError> {
        self.document(&format!("/api/v1/clusters/{cluster}/definition")).await
    }

    /// Has the controller keep another cluster.
    pub async fn add_cluster(&self, request: &ClusterAddRequest) -> Result<Document<MutationReply>, ClientError> {
        self.change("/api/v1/clusters", &body("/api/v1/clusters", request)?).await
    }

    /// Has it keep one no longer.
    pub async fn remove_cluster(
        &self,
        cluster: &str,
        request: &ClusterRemoveRequest,
    ) -> Result<Document<MutationReply>, ClientError> {
        self.mutate(cluster, "remove", request).await
    }

    /// What the controller would do now, and why.
    pub async fn explain(&self, cluster: &str) -> Result<Document<Explanation>, ClientError> {
        self.document(&format!("/api/v1/clusters/{cluster}/explain")).await
    }

    /// What is in the backup repository.
    pub async fn backups(&self, cluster: &str) -> Result<Document<BackupList>, ClientError> {
        self.document(&format!("/api/v1/clusters/{cluster}/backups")).await
    }

    /// Would it survive the next fault?
    pub async fn doctor(&self, cluster: &str) -> Result<Document<Readiness>, ClientError> {
        self.document(&format!("/api/v1/clusters/{cluster}/doctor")).await
    }

    /// The incident report of one operation.
    pub async fn report(&self, id: &str) -> Result<Document<IncidentReport>, ClientError> {
        self.document(&format!("/api/v1/operations/{id}/report")).await
    }

    /// What is expected of every node.
    pub async fn risk(&self, cluster: &str) -> Result<Document<RiskDocument>, ClientError> {
        self.document(&format!("/api/v1/clusters/{cluster}/risk")).await
    }

    /// Every model of the predictor.
    pub async fn models(&self) -> Result<Document<ModelList>, ClientError> {
        self.document("/api/v1/models").await
    }

    /// Makes a model the one that scores.
    pub async fn promote_model(&self, name: &str) -> Result<Document<MutationReply>, ClientError> {
        self.change("/api/v1/models/promote", &serde_json::json!({ "name": name })).await
    }

    /// Makes the model before it the one that scores again.
    pub async fn roll_back_model(&self) -> Result<Document<MutationReply>, ClientError> {
        self.change("/api/v1/models/rollback", &serde_json::json!({})).await
    }

    async fn change(&self, path: &str, body: &Value) -> Result<Document<MutationReply>, ClientError> {
        let raw = self.send(Method::POST, path, Some(body)).await?;
        Ok(Document { value: read(path, &raw)?, raw })
    }

    /// Channels of notifications.
    pub async fn notifications(&self) -> Result<Document<Vec<ChannelDocument>>, ClientError> {
        self.list("/api/v1/notifications").await
    }

    /// Sends a test over one of them.
    pub async fn test_notification(&self, name: &str) -> Result<Document<MutationReply>, ClientError> {
        self.change(&format!("/api/v1/notifications/{name}/test"), &serde_json::json!({})).await
    }

    /// The configured sequences.
    pub async fn sequences(&self, cluster: &str) -> Result<Document<Vec<Sequence>>, ClientError> {
        self.list(&format!("/api/v1/clusters/{cluster}/sequences")).await
    }

    /// The newest events, newest first.
    pub async fn events(&self, cluster: &str, limit: usize) -> Result<Document<Vec<Event>>, ClientError> {
        self.list(&format!("/api/v1/clusters/{cluster}/events?limit={limit}")).await
    }

    /// The newest operations that ended, newest first.
    pub async fn history(&self, cluster: &str, limit: usize) -> Result<Document<Vec<Operation>>, ClientError> {
        self.list(&format!("/api/v1/clusters/{cluster}/history?limit={limit}")).await
    }

    /// The newest operations, newest first.
    pub async fn operations(&self, cluster: &str, limit: usize) -> Result<Document<Vec<Operation>>, ClientError> {
        self.list(&format!("/api/v1/clusters/{cluster}/operations?limit={limit}")).await
    }

    /// One operation with its journal.
    pub async fn operation(&self, id: &str) -> Result<Document<Operation>, ClientError> {
        let path = format!("/api/v1/operations/{id}");
        let raw = self.get(&path).await?;
        let inner = raw.get("operation").filter(|inner| inner.is_object()).unwrap_or(&raw);
        let value = read(&path, inner)?;
        Ok(Document { value, raw })
    }

    /// Asks that an operation be stopped before its point of no return.
    pub async fn cancel(&self, id: &str) -> Result<Value, ClientError> {
        let path = format!("/api/v1/operations/{id}/cancel");
        self.send(Method::POST, &path, Some(&serde_json::json!({}))).await
    }

    /// `POST …/{verb}`: switchover, failover, pause, resume, fence, unfence, rejoin, backup, drill, restore.
    pub async fn mutate(
        &self,
        cluster: &str,
        verb: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<Document<MutationReply>, ClientError> {
        let path = format!("/api/v1/clusters/{cluster}/{verb}");
        self.change(&path, &self::body(&path, body)?).await
    }

    /// Any document below the base URL, as it comes.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.send(Method::GET, path, None).await
    }

    /// Any change below the base URL, with its answer as it comes.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.send(Method::POST, path, Some(body)).await
    }

    /// One page of a list, and the path of the next one.
    pub async fn page(&self, path: &str) -> Result<(Value, Option<String>), ClientError> {
        self.ask(Method::GET, path, None).await
    }

    async fn document<T: DeserializeOwned>(&self, path: &str) -> Result<Document<T>, ClientError> {
        let raw = self.get(path).await?;
        Ok(Document { value: read(path, &raw)?, raw })
    }

    async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Document<Vec<T>>, ClientError> {
        let raw = self.get(path).await?;
        let rows = items(&raw).ok_or_else(|| malformed(path, "a list was expected"))?;
        let value = rows.iter().map(|row| read(path, row)).collect::<Result<_, _>>()?;
        Ok(Document { value, raw })
    }

    /// Asks one controller after another until one answers that is in charge.
    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        self.ask(method, path, body).await.map(|(value, _)| value)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(Value, Option<String>), ClientError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut refusal = None;
        for step in 0..self.bases.len() {
            let place = (first + step) % self.bases.len();
            match self.send_to(&self.bases[place], method.clone(), path, body).await {
                Ok(answer) => {
                    self.preferred.store(place, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) if error.leaves_another_to_ask(&method) => {
                    // That somebody else leads says more than that somebody is out of reach.
                    let says_more = matches!(error, ClientError::Problem { .. });
                    if refusal.is_none() || says_more {
                        refusal = Some(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(refusal.expect("there is at least one controller, and its refusal was kept"))
    }

    async fn send_to(
        &self,
        base: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(Value, Option<String>), ClientError> {
        let mut request = self.http.request(method, format!("{base}{path}"));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|source| {
            let source = source.without_url();
            let url = base.to_owned();
            if source.is_connect() || source.is_builder() {
                ClientError::Unreachable { url, source }
            } else {
                ClientError::NoAnswer { url, source }
            }
        })?;
        let status = response.status();
        let next = response.headers().get(LINK).and_then(|link| next_page(link.to_str().ok()?));
        let body = response
            .bytes()
            .await
            .map_err(|source| ClientError::NoAnswer { url: base.to_owned(), source: source.without_url() })?;
        if !status.is_success() {
            return Err(ClientError::Problem { problem: Box::new(problem(status, &body)) });
        }
        if body.is_empty() {
            return Ok((Value::Null, next));
        }
        let value =
            serde_json::from_slice(&body).map_err(|source| ClientError::Malformed { path: path.to_owned(), source })?;
        Ok((value, next))
    }
}

impl ClientError {
    /// True if the request certainly changed nothing, and another controller may answer it.
    fn leaves_another_to_ask(&self, method: &Method) -> bool {
        match self {
            ClientError::Unreachable { .. } => true,
            ClientError::NoAnswer { .. } => *method == Method::GET,
            ClientError::Problem { problem } => problem.is_not_the_leader(),
            ClientError::BadUrl { .. } | ClientError::BadFile { .. } | ClientError::Malformed { .. } => false,
        }
    }
}

/// The problem document, or one made of what came instead: a proxy in between knows no problem documents.
fn problem(status: StatusCode, body: &[u8]) -> Problem {
    let mut problem = serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(body);
        let detail = match text.trim() {
            "" => format!("answered {status}"),
            text => format!("answered {status}: {}", text.chars().take(300).collect::<String>()),
        };
        let title = status.canonical_reason().unwrap_or("error").to_owned();
        Problem { kind: "about:blank".to_owned(), title, status: 0, detail, reasons: Vec::new(), leader: None }
    });
    problem.status = status.as_u16();
    problem
}

/// The path in `</path?query>; rel="next"`.
fn next_page(link: &str) -> Option<String> {
    let (target, rest) = link.strip_prefix('<')?.split_once('>')?;
    (target.starts_with('/') && rest.contains("rel=\"next\"")).then(|| target.to_owned())
}

fn body(path: &str, body: &(impl Serialize + Sync)) -> Result<Value, ClientError> {
    serde_json::to_value(body).map_err(|source| ClientError::Malformed { path: path.to_owned(), source })
}

/// A list stands alone, or as the one array of its document.
fn items(raw: &Value) -> Option<&Vec<Value>> {
    match raw {
        Value::Array(rows) => Some(rows),
        Value::Object(fields) => fields.values().find_map(Value::as_array),
        _ => None,
    }
}

fn read<T: DeserializeOwned>(path: &str, raw: &Value) -> Result<T, ClientError> {
    T::deserialize(raw).map_err(|source| ClientError::Malformed { path: path.to_owned(), source })
}

fn malformed(path: &str, why: &str) -> ClientError {
    ClientError::Malformed { path: path.to_owned(), source: serde::de::Error::custom(why) }
}
