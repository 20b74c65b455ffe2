//! Posts of Prometheus' Alertmanager, webhook version 4, as it documents and sends them.
//!
//! Turns a post into alerts; what is done about one is decided elsewhere. Fields that Alertmanager may add are let pass.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::wire::{Problem, SCHEMA_VERSION};
use crate::domain::alert::{Alert, AlertState};
use crate::domain::clock::WallTime;

/// Longest post taken, in bytes: a thousand alerts with a hundred labels each are less.
pub const POST_LENGTH_MAX: usize = 8 * 1024 * 1024;

/// Alerts of one post that are looked at; Alertmanager's own `max_alerts` bounds them before.
const ALERTS_MAX: usize = 10_000;

/// The version that is understood.
const VERSION: &str = "4";

/// Body of `POST /webhooks/alertmanager`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AlertmanagerPost {
    /// `4`.
    #[schema(pattern = "^4$")]
    pub version: String,
    /// The alerts.
    pub alerts: Vec<AlertmanagerAlert>,
    /// Whether any of them goes on.
    #[serde(default)]
    pub status: Option<AlertState>,
    /// Name of the receiver in Alertmanager's configuration.
    #[serde(default)]
    pub receiver: Option<String>,
    /// What Alertmanager groups by.
    #[serde(default)]
    pub group_key: Option<String>,
    /// Alerts that it left out.
    #[serde(default, deserialize_with = "super::body::whole_number")]
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    pub truncated_alerts: Option<u64>,
}

/// One alert of a post.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AlertmanagerAlert {
    /// Whether it goes on.
    pub status: AlertState,
    /// What it is about.
    pub labels: BTreeMap<String, String>,
    /// For people.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// When it began.
    pub starts_at: WallTime,
    /// When it ended; year 1 while it goes on.
    #[serde(default)]
    pub ends_at: Option<WallTime>,
    /// Where it was raised.
    #[serde(default, rename = "generatorURL")]
    pub generator_url: Option<String>,
    /// Hash of the labels.
    #[schema(pattern = "^[0-9A-Za-z-]{1,64}$")]
    pub fingerprint: String,
}

/// Answer to a post: how many alerts went which way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlertsReply {
    /// The document's version.
    pub schema_version: u32,
    /// Stored, and carried out as far as the guards allow.
    pub accepted: usize,
    /// Known from an earlier post in the same epoch.
    pub repeated: usize,
    /// Over.
    pub resolved: usize,
    /// A route says so.
    pub ignored: usize,
    /// Began too long ago, or in the future.
    pub out_of_time: usize,
    /// About another cluster.
    pub other_cluster: usize,
    /// About a cluster that the token is not for: refused.
    #[serde(default)]
    pub out_of_scope: usize,
    /// No route fits.
    pub unmatched: usize,
}

impl AlertsReply {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { schema_version: SCHEMA_VERSION, ..Self::default() }
    }

    /// Counts another part of the same post.
    pub fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.repeated += other.repeated;
        self.resolved += other.resolved;
        self.ignored += other.ignored;
        self.out_of_time += other.out_of_time;
        self.other_cluster += other.other_cluster;
        self.out_of_scope += other.out_of_scope;
        self.unmatched += other.unmatched;
    }

    /// One line.
    pub fn sentence(&self) -> String {
        let Self { accepted, repeated, resolved, ignored, out_of_time, other_cluster, unmatched, .. } = self;
        let mut sentence = format!(
            "{accepted} alerts accepted, {repeated} repeated, {resolved} resolved, {ignored} ignored, {out_of_time} out of time, \
             {other_cluster} of other clusters, {unmatched} without a route"
        );
        if self.out_of_scope > 0 {
            sentence.push_str(&format!(", {} refused: of clusters that the token is not for", self.out_of_scope));
        }
        sentence
    }
}

impl AlertmanagerPost {
    /// The alerts, or what is wrong with the post.
    pub fn into_alerts(self) -> Result<Vec<Alert>, Problem> {
        if self.version != VERSION {
            return Err(Problem::bad_request(format!(
                "the post has version {:?}; Alertmanager's webhook version {VERSION:?} is understood",
                excerpt(&self.version)
            )));
        }
        if self.alerts.len() > ALERTS_MAX {
            return Err(Problem::bad_request(format!(
                "{} alerts in one post: set max_alerts in Alertmanager's webhook_configs to {ALERTS_MAX} or less",
                self.alerts.len()
            )));
        }
        self.alerts.into_iter().enumerate().map(|(index, alert)| alert.into_alert(index)).collect()
    }

    /// One line for the audit log.
    pub fn line(&self) -> String {
        let firing = self.alerts.iter().filter(|alert| alert.status == AlertState::Firing).count();
        let receiver = self.receiver.as_deref().map(excerpt).unwrap_or_default();
        format!("{firing} firing, {} resolved, receiver {receiver:?}", self.alerts.len() - firing)
    }
}

impl AlertmanagerAlert {
    fn into_alert(mut self, index: usize) -> Result<Alert, Problem> {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
        if self.fingerprint.is_empty() || self.fingerprint.len() > 64 || !self.fingerprint.chars().all(is_plain) {
            return Err(Problem::bad_request(format!(
                "alerts[{index}].fingerprint {:?} is none: 1 to 64 letters and digits are expected",
                excerpt(&self.fingerprint)
            )));
        }
        let summary = self.annotations.remove("summary").or_else(|| self.annotations.remove("description"));
        Ok(Alert {
            fingerprint: self.fingerprint,
            state: self.status,
            labels: self.labels,
            summary: summary.map(|text| text.chars().filter(|letter| !letter.is_control()).take(500).collect()),
            starts_at: self.starts_at,
        })
    }
}

/// Somebody else's text for a message: one line, not endless.
fn excerpt(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As Alertmanager 0.25 sent it.
    const RECORDED: &str = r#"{"receiver":"hook","status":"firing","alerts":[{"status":"firing","labels":{"alertname":"PgPrimaryDown","cluster":"main","instance":"127.0.0.1:21011","job":"pg","node":"n1","severity":"critical"},"annotations":{"description":"value 0","summary":"PostgreSQL n1 down"},"startsAt":"2026-11-20T09:51:49.439Z","endsAt":"0001-01-01T00:00:00Z","generatorURL":"http://vm:21024/graph?g0.expr=pg_up&g0.tab=1","fingerprint":"01a88acc357e86bc"}],"groupLabels":{"alertname":"PgPrimaryDown","cluster":"main"},"commonLabels":{"alertname":"PgPrimaryDown"},"commonAnnotations":{"description":"value 0"},"externalURL":"http://vm:21025","version":"4","groupKey":"{}:{alertname=\"PgPrimaryDown\", cluster=\"main\"}","truncatedAlerts":0}"#;

    fn parse(text: &str) -> Result<Vec<Alert>, String> {
        let post: AlertmanagerPost = serde_json::from_str(text).map_err(|error| error.to_string())?;
        post.into_alerts().map_err(|problem| problem.detail)
    }

    #[test]
    fn a_recorded_post_is_understood() {
        let alerts = parse(RECORDED).expect("understood");
        assert_eq!(alerts.len(), 1);
        let alert = &alerts[0];
        assert_eq!((alert.name(), alert.label("node"), alert.state), ("PgPrimaryDown", Some("n1"), AlertState::Firing));
        assert_eq!(alert.starts_at.to_string(), "2026-11-20T09:51:49.439Z");
        assert_eq!(alert.summary.as_deref(), Some("PostgreSQL n1 down"));
    }

    #[test]
    fn other_versions_and_odd_fingerprints_are_refused() {
        for (from, to, says) in [
            (r#""version":"4""#, r#""version":"5""#, "version \"5\""),
            (r#""version":"4""#, r#""version":4"#, "invalid type"),
            (r#""version":"4","#, "", "missing field `version`"),
            ("01a88acc357e86bc", "", "fingerprint"),
            ("01a88acc357e86bc", "../../record", "fingerprint"),
            (r#""status":"firing","labels""#, r#""status":"smoking","labels""#, "unknown variant"),
            ("2026-11-20T09:51:49.439Z", "yesterday", "not a time"),
        ] {
            let said = parse(&RECORDED.replacen(from, to, 1)).expect_err(to);
            assert!(said.contains(says), "{to}: {said}");
        }
    }

    proptest! {
        /// Whatever is sent, there is an answer.
        #[test]
        fn no_text_brings_it_down(text in "\\PC*") {
            let _ = parse(&text);
        }

        /// A field of any kind in the place of another.
        #[test]
        fn no_value_brings_it_down(place in 0_usize..6, value in any::<i64>(), word in "\\PC{0,40}") {
            let mut post: serde_json::Value = serde_json::from_str(RECORDED).expect("JSON");
            let pointer = ["/version", "/alerts/0/status", "/alerts/0/labels", "/alerts/0/startsAt", "/alerts/0/endsAt", "/alerts"][place];
            for value in [serde_json::json!(value), serde_json::json!(word), serde_json::json!([word]), serde_json::Value::Null] {
                *post.pointer_mut(pointer).expect("there") = value;
                let _ = parse(&post.to_string());
            }
        }
    }
}
