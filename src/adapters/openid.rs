//! The public keys of an issuer of OpenID tokens: found by discovery or where the configuration says, and fetched again and again.
//!
//! What a key proves is not judged here. Nothing waits for the issuer but this.

use std::convert::Infallible;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Notify;

use super::{chain, is_readable_on_the_way};

/// Between two fetches. Issuers publish a new key hours before they sign with it.
const FETCH_INTERVAL: Duration = Duration::from_secs(300);
/// After a fetch that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A key set of a hundred keys with their certificates is less.
const DOCUMENT_LENGTH_MAX: usize = 1024 * 1024;
/// Where an issuer describes itself (OpenID Connect Discovery 1.0, 4).
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Who publishes keys.
#[derive(Debug, Clone)]
pub struct IssuerSettings {
    /// `iss` of its tokens: a URL.
    pub issuer: String,
    /// Where its keys are; by discovery if not given.
    pub keys_url: Option<String>,
    /// Who signed its certificate, as PEM; the system's authorities if not given.
    pub authority: Option<Vec<u8>>,
}

/// An issuer of tokens.
pub struct Issuer {
    client: reqwest::Client,
    settings: IssuerSettings,
}

/// What is read of an issuer's description.
#[derive(Deserialize)]
struct Description {
    issuer: String,
    jwks_uri: String,
}

impl Issuer {
    /// Connects with its first question. An error says what is wrong with the settings.
    pub fn new(settings: IssuerSettings) -> Result<Self, String> {
        let mut builder = reqwest::Client::builder()
            .timeout(TIMEOUT)
            // Keys come from where the issuer says, over TLS, and from nowhere else.
            .redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = &settings.authority {
            let found = reqwest::Certificate::from_pem_bundle(pem).unwrap_or_default();
            if found.is_empty() {
                return Err("ca_file holds no certificate in PEM".to_owned());
            }
            builder = builder.tls_certs_only(found);
        }
        let client = builder.build().map_err(|error| format!("prepare the client: {}", chain(&error)))?;
        Ok(Self { client, settings })
    }

    /// The key set as it is published now.
    pub async fn fetch(&self) -> Result<Vec<u8>, String> {
        let keys_url = match &self.settings.keys_url {
            Some(url) => url.clone(),
            None => self.discover().await?,
        };
        self.get(&keys_url).await
    }

    async fn discover(&self) -> Result<String, String> {
        let issuer = &self.settings.issuer;
        let url = format!("{}{DISCOVERY}", issuer.trim_end_matches('/'));
        let text = self.get(&url).await?;
        let description: Description =
            serde_json::from_slice(&text).map_err(|error| format!("{url} is no description of an issuer: {error}"))?;
        if description.issuer != *issuer {
            return Err(format!(
                "{url} describes the issuer {:?}: write authentication.oidc.issuer exactly so, or check it",
                description.issuer.chars().take(200).collect::<String>()
            ));
        }
        Ok(description.jwks_uri)
    }

    async fn get(&self, url: &str) -> Result<Vec<u8>, String> {
        let parsed = reqwest::Url::parse(url).map_err(|error| format!("{url:?} is no URL: {error}"))?;
        if is_readable_on_the_way(&parsed) {
            return Err(format!("{url} is no https:// URL: keys that come without TLS prove nothing"));
        }
        let failed = |error: reqwest::Error| format!("get {url}: {}", chain(&error.without_url()));
        let mut answer = self.client.get(parsed).send().await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(format!("{url} answered {}", answer.status()));
        }
        let mut text = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(failed)? {
            text.extend_from_slice(&piece);
            if text.len() > DOCUMENT_LENGTH_MAX {
                return Err(format!("{url} answered more than {DOCUMENT_LENGTH_MAX} bytes"));
            }
        }
        Ok(text)
    }

    /// Fetches again and again, at once when `wanted` says so, and hands over what came or why nothing did. `take` may refuse it.
    pub async fn keep(
        &self,
        wanted: &Notify,
        take: impl Fn(Result<&[u8], String>) -> Result<(), String>,
    ) -> Infallible {
        let issuer = &self.settings.issuer;
        let mut problem_before: Option<String> = None;
        loop {
            let taken = match self.fetch().await {
                Ok(text) => take(Ok(text.as_slice())),
                Err(problem) => take(Err(problem)),
            };
            let problem = taken.err();
            match (&problem, &problem_before) {
                (Some(problem), before) if before.as_ref() != Some(problem) => tracing::warn!(
                    issuer,
                    problem,
                    "the keys of the issuer of OpenID tokens were not fetched; those fetched before count for a day"
                ),
                (None, Some(_)) => tracing::info!(issuer, "the keys of the issuer of OpenID tokens were fetched again"),
                _ => {}
            }
            let pause = if problem.is_some() { RETRY_INTERVAL } else { FETCH_INTERVAL };
            problem_before = problem;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = wanted.notified() => {}
            }
        }
    }
}
