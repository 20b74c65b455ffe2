//! Webhooks: one POST a message, with its identity in `Idempotency-Key`.

use async_trait::async_trait;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::TIMEOUT;
use crate::adapters::chain;
use crate::domain::notification::Message;
use crate::ports::notification::{Notifier, NotifyError};

/// Version of the JSON document.
const SCHEMA_VERSION: u32 = 1;
/// How much of an answer is repeated in an error.
const ANSWER_LENGTH_MAX: usize = 200;

/// What is posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookFormat {
    /// As Slack's incoming webhooks take it, and Mattermost's and Rocket.Chat's after them.
    Slack,
    /// A document with every field.
    Json,
}

/// Where messages are posted.
#[derive(Clone)]
pub struct WebhookSettings {
    /// The URL, which is a secret with most services.
    pub url: String,
    /// Form of the body.
    pub format: WebhookFormat,
    /// Bearer token.
    pub token: Option<String>,
    /// Who signed the server's certificate, as PEM; the system's authorities if not given.
    pub authority: Option<Vec<u8>>,
}

/// A URL that takes messages.
pub struct Webhook {
    client: reqwest::Client,
    url: reqwest::Url,
    format: WebhookFormat,
}

impl Webhook {
    /// A channel that connects with its first message. An error says what is wrong with the settings, and never holds the URL.
    pub fn new(settings: &WebhookSettings) -> Result<Self, String> {
        let url = reqwest::Url::parse(&settings.url).map_err(|error| format!("url is no URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("url must begin with https:// or http:// and name a host".to_owned());
        }
        let mut headers = HeaderMap::new();
        if let Some(token) = &settings.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| "token holds what no header can: look for a line break".to_owned())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut builder = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .default_headers(headers);
        if let Some(pem) = &settings.authority {
            let certificate = reqwest::Certificate::from_pem(pem)
                .map_err(|error| format!("ca_file is no certificate in PEM: {error}"))?;
            builder = builder.tls_certs_only([certificate]);
        }
        let client = builder.build().map_err(|error| format!("prepare the client: {}", chain(&error)))?;
        Ok(Self { client, url, format: settings.format })
    }

    /// Where it goes, without what is secret in the URL.
    fn place(&self) -> String {
        format!("{}://{}", self.url.scheme(), self.url.host_str().unwrap_or_default())
    }
}

fn body(format: WebhookFormat, message: &Message) -> Value {
    let notice = &message.notice;
    match format {
        WebhookFormat::Slack => {
            let sign = match notice.severity.as_str() {
                "error" => ":red_circle: ",
                "warning" => ":warning: ",
                _ => "",
            };
            let mut text = format!("{sign}*{}*\n{}", escaped(&message.subject()), escaped(&notice.text));
            if let Some(link) = &message.link {
                text.push_str(&format!("\n<{}|Read more>", escaped(link).replace('|', "%7C")));
            }
            json!({ "text": text })
        }
        WebhookFormat::Json => json!({
            "schema_version": SCHEMA_VERSION,
            "key": notice.key,
            "kind": notice.kinds.first(),
            "cluster": notice.cluster,
            "epoch": notice.epoch,
            "severity": notice.severity,
            "subject": notice.subject,
            "text": notice.text,
            "operation": notice.operation,
            "operation_kind": notice.operation_kind,
            "at": notice.at,
            "link": message.link,
        }),
    }
}

/// What Slack would read as markup of its own.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[async_trait]
impl Notifier for Webhook {
    async fn send(&self, message: &Message) -> Result<(), NotifyError> {
        let key: String = message.notice.key.chars().filter(char::is_ascii_graphic).collect();
        let asked = self
            .client
            .post(self.url.clone())
            .header("idempotency-key", key)
            .json(&body(self.format, message))
            .send()
            .await;
        let answer = asked.map_err(|error| {
            // The URL is a secret.
            NotifyError::Failed(format!("post to {}: {}", self.place(), chain(&error.without_url())))
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let text = answer.text().await.unwrap_or_default();
        let said: String = text.chars().filter(|letter| !letter.is_control()).take(ANSWER_LENGTH_MAX).collect();
        let words = format!("{} answered {status}: {said}", self.place());
        let may_change = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        if status.is_client_error() && !may_change {
            Err(NotifyError::Refused(words))
        } else {
            Err(NotifyError::Failed(words))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::WallTime;
    use crate::domain::epoch::Epoch;
    use crate::domain::ids::{ClusterName, OperationId};
    use crate::domain::notification::{Notice, NoticeKind};

    fn message() -> Message {
        Message {
            notice: Notice {
                key: "0190/failed".to_owned(),
                kinds: vec![NoticeKind::OperationFailed],
                cluster: ClusterName::new("main").expect("valid"),
                epoch: Epoch(4),
                severity: "warning".to_owned(),
                subject: "failover of db2 failed".to_owned(),
                text: "It failed: <n1> & n2.".to_owned(),
                operation: Some(OperationId("0190".to_owned())),
                operation_kind: Some("failover".to_owned()),
                at: WallTime(1_795_000_000_000_000),
            },
            link: Some("https://stormglass.example.org/?operation=0190".to_owned()),
        }
    }

    #[test]
    fn slack_gets_its_markup_and_nobody_elses() {
        assert_eq!(
            body(WebhookFormat::Slack, &message()),
            json!({ "text": ":warning: *[Stormglass] main: failover of db2 failed*\nIt failed: &lt;n1&gt; &amp; n2.\n\
                             <https://stormglass.example.org/?operation=0190|Read more>" })
        );
    }

    #[test]
    fn json_has_every_field() {
        assert_eq!(
            body(WebhookFormat::Json, &message()),
            json!({
                "schema_version": 1, "key": "0190/failed", "kind": "operation_failed", "cluster": "main", "epoch": 4,
                "severity": "warning", "subject": "failover of db2 failed", "text": "It failed: <n1> & n2.",
                "operation": "0190", "operation_kind": "failover", "at": "2026-11-18T11:06:40Z",
                "link": "https://stormglass.example.org/?operation=0190"
            })
        );
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_being_told() {
        let settings = |url: &str| WebhookSettings {
            url: url.to_owned(),
            format: WebhookFormat::Slack,
            token: None,
            authority: None,
        };
        for url in ["hooks.example.org/secret", "file:///secret", "https://"] {
            let problem = Webhook::new(&settings(url)).err().expect("refused");
            assert!(!problem.contains("secret"), "{problem}");
        }
        let mut hooked = settings("https://hooks.example.org/services/secret");
        assert_eq!(Webhook::new(&hooked).expect("good").place(), "https://hooks.example.org");
        hooked.token = Some("a\nb".to_owned());
        assert!(Webhook::new(&hooked).is_err());
    }
}
