//! Settings of notifications: who is told what, over which channel.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Violation;
use super::secret::SecretReference;
use super::validate::{absolute, reachable};
use crate::domain::ids::{Address, ClusterName};
use crate::domain::notification::{Channel, NoticeKind};

/// Kinds of operations that can be named in `operations`.
const OPERATIONS: [&str; 9] =
    ["failover", "switchover", "rejoin", "fence", "sequence", "backup", "drill", "restore", "retrain"];
/// Longest name of a channel: it stands in URLs and in the store.
const NAME_LENGTH_MAX: usize = 63;

/// `[[notification]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NotificationSection {
    /// Name in metrics, events and on the command line.
    pub name: String,
    /// `email`, `slack` or `json`.
    pub kind: ChannelKind,
    /// What is told.
    pub on: BTreeSet<NoticeKind>,
    /// Of operations only of these kinds; of all if none is named.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub operations: BTreeSet<String>,
    /// Only of these clusters; of all if none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<ClusterName>,
    /// Base URL of the dashboard as people reach it, for the link in each message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// `email`: the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Address>,
    /// `email`: `starttls` (the default), `implicit` or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<MailTls>,
    /// `email`: user, where the server asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `email`: the user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretReference>,
    /// `email`: sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// `email`: receivers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// `slack`, `json`: where messages are posted; a reference, because whoever knows it can post too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<SecretReference>,
    /// `json`: bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretReference>,
    /// Who signed the server's certificate, as PEM; the system's authorities if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ca_file: Option<PathBuf>,
}

/// How a channel reaches people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChannelKind {
    /// SMTP.
    Email,
    /// An incoming webhook as Slack, Mattermost and Rocket.Chat have it.
    Slack,
    /// Every field as JSON.
    Json,
}

impl ChannelKind {
    /// Word in the configuration.
    pub fn label(self) -> &'static str {
        match self {
            ChannelKind::Email => "email",
            ChannelKind::Slack => "slack",
            ChannelKind::Json => "json",
        }
    }
}

/// How mail is protected on its way to the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MailTls {
    /// After STARTTLS, without which nothing is sent.
    #[default]
    Starttls,
    /// From the first byte.
    Implicit,
    /// Not at all.
    None,
}

impl NotificationSection {
    /// What this channel wants.
    pub fn channel(&self) -> Channel {
        Channel {
            name: self.name.clone(),
            on: self.on.clone(),
            operations: self.operations.clone(),
            clusters: self.clusters.clone(),
            link: self.link.clone(),
        }
    }

    /// Every reference to a secret, with its key.
    pub(super) fn secrets(&self, index: usize) -> Vec<(String, &SecretReference)> {
        let named = [("password", &self.password), ("url", &self.url), ("token", &self.token)];
        let key = |name| format!("notification.{index}.{name}");
        named.into_iter().filter_map(|(name, secret)| Some((key(name), secret.as_ref()?))).collect()
    }

    pub(super) fn violation(&self, index: usize) -> Result<(), Violation> {
        let at = |name: &str, problem: String| Err(Violation::at(&format!("notification.{index}.{name}"), problem));
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
        if self.name.is_empty() || self.name.len() > NAME_LENGTH_MAX || !self.name.bytes().all(is_plain) {
            return at("name", format!("{:?} is not a valid name: use 1 to 63 of a-z, 0-9, '-' and '_'", self.name));
        }
        if self.on.is_empty() {
            let known: Vec<&str> = NoticeKind::ALL.into_iter().map(NoticeKind::label).collect();
            return at("on", format!("must name what is told: {}", known.join(", ")));
        }
        if let Some(unknown) = self.operations.iter().find(|kind| !OPERATIONS.contains(&kind.as_str())) {
            return at("operations", format!("{unknown:?} is no kind of operation: use {}", OPERATIONS.join(", ")));
        }
        if let Some(link) = &self.link {
            let is_good = reqwest::Url::parse(link).is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.has_host()
                    && url.query().is_none()
                    && url.fragment().is_none()
            });
            if !is_good {
                return at("link", format!("{link:?} is no base URL as in \"https://stormglass.example.org\""));
            }
        }
        if let Some(file) = &self.ca_file {
            absolute(&format!("notification.{index}.ca_file"), file)?;
        }
        let given = [
            ("server", self.server.is_some(), ChannelKind::Email),
            ("tls", self.tls.is_some(), ChannelKind::Email),
            ("user", self.user.is_some(), ChannelKind::Email),
            ("password", self.password.is_some(), ChannelKind::Email),
            ("from", self.from.is_some(), ChannelKind::Email),
            ("to", !self.to.is_empty(), ChannelKind::Email),
        ];
        if let Some((name, ..)) = given.iter().find(|(_, is_given, kind)| *is_given && *kind != self.kind) {
            return at(name, format!("belongs to kind = \"email\", not to {:?}: take it out", self.kind.label()));
        }
        if self.kind == ChannelKind::Email { self.mail_violation(index) } else { self.post_violation(index) }
    }

    fn mail_violation(&self, index: usize) -> Result<(), Violation> {
        let at = |name: &str, problem: &str| Err(Violation::at(&format!("notification.{index}.{name}"), problem));
        let Some(server) = &self.server else {
            return at("server", "missing: name the SMTP server, as in { host = \"smtp.example.org\", port = 587 }");
        };
        reachable(&format!("notification.{index}.server"), server)?;
        if self.from.is_none() {
            return at("from", "missing: name the sender, as in \"stormglass@example.org\"");
        }
        if self.to.is_empty() {
            return at("to", "missing: name at least one receiver");
        }
        let has_at = |address: &&String| !address.contains('@') || address.contains(['\n', '\r']);
        if let Some(address) = self.from.iter().chain(&self.to).find(has_at) {
            return at("to", &format!("{address:?} is no mail address, as in \"dba@example.org\""));
        }
        if self.user.is_some() != self.password.is_some() {
            return at("user", "needs password, and the other way round");
        }
        let tls = self.tls.unwrap_or_default();
        if tls == MailTls::None && (self.user.is_some() || self.ca_file.is_some()) {
            return at("tls", "\"none\" would send the password in the clear: use \"starttls\" or \"implicit\"");
        }
        for (name, is_given) in [("url", self.url.is_some()), ("token", self.token.is_some())] {
            if is_given {
                return at(name, "belongs to kind = \"slack\" or \"json\": take it out");
            }
        }
        Ok(())
    }

    fn post_violation(&self, index: usize) -> Result<(), Violation> {
        let at = |name: &str, problem: &str| Err(Violation::at(&format!("notification.{index}.{name}"), problem));
        if self.url.is_none() {
            return at("url", "missing: where messages are posted, as in \"file:/etc/stormglass/slack.url\"");
        }
        if self.kind == ChannelKind::Slack && self.token.is_some() {
            return at("token", "belongs to kind = \"json\": Slack's URL is the secret; take it out");
        }
        Ok(())
    }
}
