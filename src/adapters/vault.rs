//! HashiCorp Vault, and OpenBao, which speaks the same: one field of a secret of the key-value engine, version 1 or 2, by HTTP.
//!
//! Keeps nothing: each question is asked anew. Neither the token nor a value stands in an error.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Map, Value};

use super::{chain, is_readable_on_the_way};

/// Vault is near, and answers from memory or its own store; who starts waits no longer than this for each secret.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A connection within a region takes milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How much of Vault's own words is repeated, in characters.
const WORDS_LENGTH_MAX: usize = 200;
/// So many fields are named to whoever asked for one that is not there.
const FIELDS_NAMED_MAX: usize = 10;

/// How Vault is reached, as the environment says it. What is missing is an error when something is asked.
#[derive(Clone, Default)]
pub struct VaultSettings {
    /// Base URL.
    pub address: Option<String>,
    /// The token.
    pub token: Option<String>,
    /// A file that holds it, read for each question: Vault's agent writes a new one before the old one ends.
    pub token_file: Option<PathBuf>,
    /// Namespace, where there are some.
    pub namespace: Option<String>,
    /// Who signed its certificate, as PEM; the system's authorities if not given.
    pub authority_file: Option<PathBuf>,
}

/// A Vault.
pub struct Vault {
    settings: VaultSettings,
}

impl Vault {
    /// Connects with its first question.
    pub fn new(settings: VaultSettings) -> Self {
        Self { settings }
    }

    /// One field of the secret at a path, as in `secret/data/stormglass`. Blocks, some seconds at most; may be called from anywhere.
    pub fn read(&self, path: &str, field: &str) -> Result<String, String> {
        // A runtime of its own on a thread of its own: the caller may be within one, where nothing may wait for another.
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map_err(|error| format!("start a runtime: {error}"))?.block_on(self.ask(path, field))
            });
            asked.join().unwrap_or_else(|_| Err("the question to Vault ended early: see the log".to_owned()))
        })
    }

    async fn ask(&self, path: &str, field: &str) -> Result<String, String> {
        let Some(address) = &self.settings.address else {
            return Err(
                "VAULT_ADDR is not set: it says where Vault is, as in https://vault.example.org:8200".to_owned()
            );
        };
        let url = self.url(address, path)?;
        let client = self.client()?;
        let answer = client.get(url).headers(self.headers()?).send().await.map_err(|error| {
            let why = chain(&error.without_url());
            format!("reach Vault at {address}: {why}; check VAULT_ADDR and VAULT_CACERT")
        })?;
        let status = answer.status();
        let body = answer
            .bytes()
            .await
            .map_err(|error| format!("read the answer of Vault at {address}: {}", chain(&error)))?;
        let document: Value = serde_json::from_slice(&body).unwrap_or_default();
        match status {
            StatusCode::OK => {}
            StatusCode::FORBIDDEN => {
                return Err(format!(
                    "Vault at {address} refuses {path} (403): its token may not read that, or has ended; check its policy and \
                     VAULT_TOKEN or VAULT_TOKEN_FILE"
                ));
            }
            StatusCode::NOT_FOUND => {
                return Err(format!(
                    "Vault at {address} has nothing at {path} (404): check the path; with version 2 of the key-value engine it is \
                     MOUNT/data/PATH"
                ));
            }
            other => return Err(format!("Vault at {address} answered {other} for {path}: {}", words(&document))),
        }
        let Some(fields) = fields(&document) else {
            return Err(format!("Vault at {address} answered for {path} with no key-value secret: check the path"));
        };
        match fields.get(field) {
            Some(Value::String(value)) => Ok(value.clone()),
            Some(_) => Err(format!("the field {field} at {path} in Vault is no text")),
            None => Err(format!("there is no field {field} at {path} in Vault: it has {}", known(fields))),
        }
    }

    fn url(&self, address: &str, path: &str) -> Result<reqwest::Url, String> {
        let mut url = reqwest::Url::parse(address)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| format!("VAULT_ADDR is {address:?}, no URL as in https://vault.example.org:8200"))?;
        if is_readable_on_the_way(&url) {
            return Err(format!(
                "VAULT_ADDR is {address}: without TLS everybody on the way reads token and secrets; use https://, with VAULT_CACERT \
                 where its certificate is your own"
            ));
        }
        if let Ok(mut steps) = url.path_segments_mut() {
            steps.pop_if_empty().push("v1").extend(path.split('/'));
        }
        Ok(url)
    }

    fn client(&self) -> Result<reqwest::Client, String> {
        let mut builder = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            // The token goes where VAULT_ADDR says, and nowhere else.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if let Some(file) = &self.settings.authority_file {
            let pem = std::fs::read(file).map_err(|error| format!("read VAULT_CACERT, {}: {error}", file.display()))?;
            let found = reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default();
            if found.is_empty() {
                return Err(format!("VAULT_CACERT, {}, holds no certificate in PEM", file.display()));
            }
            builder = builder.tls_certs_only(found);
        }
        builder.build().map_err(|error| format!("prepare the way to Vault: {}", chain(&error)))
    }

    fn headers(&self) -> Result<HeaderMap, String> {
        let token = match (&self.settings.token, &self.settings.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(file)) => std::fs::read_to_string(file)
                .map_err(|error| format!("read VAULT_TOKEN_FILE, {}: {error}", file.display()))?,
            (None, None) => {
                return Err("neither VAULT_TOKEN nor VAULT_TOKEN_FILE is set: Vault asks for a token".to_owned());
            }
        };
        let value = |name: &str, text: &str| {
            HeaderValue::from_str(text.trim())
                .map_err(|_| format!("{name} holds what no header can: look for a line break"))
        };
        let mut token = value("the token of Vault", &token)?;
        token.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert("x-vault-token", token);
        // Vault's agent may insist on it: no browser sends it by itself.
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        if let Some(namespace) = &self.settings.namespace {
            headers.insert("x-vault-namespace", value("VAULT_NAMESPACE", namespace)?);
        }
        Ok(headers)
    }
}

/// The fields of a secret: version 2 wraps them, beside metadata.
fn fields(document: &Value) -> Option<&Map<String, Value>> {
    let data = document.get("data")?.as_object()?;
    match (data.get("data"), data.get("metadata")) {
        (Some(Value::Object(inner)), Some(Value::Object(_))) => Some(inner),
        // A deleted version: metadata alone.
        (Some(Value::Null), Some(Value::Object(_))) => None,
        _ => Some(data),
    }
}

fn known(fields: &Map<String, Value>) -> String {
    let named: Vec<&str> = fields.keys().map(String::as_str).take(FIELDS_NAMED_MAX).collect();
    if named.is_empty() { "none".to_owned() } else { named.join(", ") }
}

fn words(document: &Value) -> String {
    let errors = document.get("errors").and_then(Value::as_array);
    let said: Vec<&str> = errors.into_iter().flatten().filter_map(Value::as_str).collect();
    let said: String = said.join("; ").chars().filter(|letter| !letter.is_control()).take(WORDS_LENGTH_MAX).collect();
    if said.is_empty() { "see its log".to_owned() } else { said }
}
