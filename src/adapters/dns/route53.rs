//! Amazon Route 53: the exact old records go and the new ones come in one change batch, which is made whole or not at all.
//!
//! The companion is among what must be deleted exactly as it was read, so that a batch of whoever is behind is refused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use quick_xml::escape::escape;
use serde::Deserialize;

use super::wire::{self, Names, plain};
use crate::domain::ids::Address;
use crate::domain::name::{NameRecord, NameValue};
use crate::ports::Clock;
use crate::ports::name::{NameError, NameService, ServerAnswer};

/// Version of the API, part of every path.
const VERSION: &str = "2013-04-01";
/// Route 53 has one set of signing keys, whatever the region of the caller.
const SIGNING_REGION: &str = "us-east-1";
/// For one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A change is usually in force everywhere within a minute.
const IN_SYNC_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two questions whether it is; Route 53 takes five requests a second of an account.
const IN_SYNC_PAUSE: Duration = Duration::from_secs(1);
/// More types than that do not stand at one name.
const SETS_MAX: &str = "20";

/// Which name, in which zone, and as whom.
#[derive(Clone)]
pub struct Route53Settings {
    /// The name that clients use.
    pub name: String,
    /// The name of the companion TXT record.
    pub companion: String,
    /// The zone that both are in.
    pub zone: String,
    /// The zone's identity at Route 53.
    pub hosted_zone: String,
    /// Base URL of the API.
    pub endpoint: String,
    /// The account's key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// Authoritative servers to be asked for what they answer; may be empty.
    pub servers: Vec<Address>,
}

/// Keeps a name at Route 53.
pub struct Route53 {
    names: Names,
    settings: Route53Settings,
    http: reqwest::Client,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Deserialize)]
struct ListAnswer {
    #[serde(rename = "ResourceRecordSets", default)]
    sets: SetList,
}

#[derive(Debug, Default, Deserialize)]
struct SetList {
    #[serde(rename = "ResourceRecordSet", default)]
    list: Vec<RecordSet>,
}

/// One set of records as Route 53 has it: to be deleted, it must be named exactly so.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct RecordSet {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "TTL")]
    ttl_seconds: Option<u32>,
    #[serde(rename = "ResourceRecords")]
    records: Option<RecordList>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct RecordList {
    #[serde(rename = "ResourceRecord", default)]
    list: Vec<RecordValue>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct RecordValue {
    #[serde(rename = "Value")]
    value: String,
}

#[derive(Debug, Deserialize)]
struct ChangeAnswer {
    #[serde(rename = "ChangeInfo")]
    change: ChangeInfo,
}

#[derive(Debug, Deserialize)]
struct ChangeInfo {
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "Status")]
    status: String,
}

#[derive(Debug, Deserialize)]
struct ErrorAnswer {
    #[serde(rename = "Error")]
    error: ErrorDetail,
}

#[derive(Debug, Deserialize)]
struct ErrorDetail {
    #[serde(rename = "Code")]
    code: String,
    #[serde(rename = "Message", default)]
    message: String,
}

impl Route53 {
    /// Checks the names; speaks to nobody yet.
    pub fn new(settings: &Route53Settings, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let names = Names::of(&settings.name, &settings.companion, &settings.zone)?;
        for name in [&names.name, &names.companion] {
            if !names.zone.zone_of(name) {
                return Err(format!("{} is not in the zone {}", plain(name), plain(&names.zone)));
            }
        }
        let http = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .user_agent(concat!("stormglass/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| format!("make an HTTP client: {error}"))?;
        let settings = Route53Settings {
            endpoint: settings.endpoint.trim_end_matches('/').to_owned(),
            hosted_zone: settings.hosted_zone.trim_start_matches("/hostedzone/").to_owned(),
            ..settings.clone()
        };
        Ok(Self { names, settings, http, clock })
    }

    fn label(&self) -> String {
        format!("Route 53 at {}", self.settings.endpoint)
    }

    fn answered(&self, problem: impl Into<String>) -> NameError {
        NameError::Answered { server: self.label(), problem: problem.into() }
    }

    /// Sends a signed request and returns the body of a good answer.
    async fn call(&self, method: reqwest::Method, path: &str, body: String) -> Result<String, NameError> {
        let url = format!("{}/{VERSION}/{path}", self.settings.endpoint);
        let unsigned = |error: &dyn std::fmt::Display| self.answered(format!("nothing: sign the request: {error}"));
        let identity =
            Credentials::new(&self.settings.access_key, &self.settings.secret_key, None, None, "stormglass").into();
        let micros = u64::try_from(self.clock.wall().0).unwrap_or(0);
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(SIGNING_REGION)
            .name("route53")
            .time(SystemTime::UNIX_EPOCH + Duration::from_micros(micros))
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| unsigned(&error))?
            .into();
        let signable =
            SignableRequest::new(method.as_str(), &url, std::iter::empty(), SignableBody::Bytes(body.as_bytes()))
                .map_err(|error| unsigned(&error))?;
        let (headers, _) = sign(signable, &parameters).map_err(|error| unsigned(&error))?.into_parts().0.into_parts();
        let mut request = self.http.request(method, &url);
        for header in &headers {
            request = request.header(header.name(), header.value());
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/xml").body(body);
        }
        let unreachable =
            |error: reqwest::Error| NameError::Unreachable { server: self.label(), problem: root_cause(&error) };
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let text = answer.text().await.map_err(unreachable)?;
        if status.is_success() { Ok(text) } else { Err(self.refusal(status.as_u16(), &text)) }
    }

    /// What an answer that is none says.
    fn refusal(&self, status: u16, text: &str) -> NameError {
        let detail = quick_xml::de::from_str::<ErrorAnswer>(text).ok().map(|answer| answer.error);
        let (code, message) = detail.map_or_else(
            || (String::new(), text.chars().take(200).collect::<String>()),
            |detail| (detail.code, detail.message),
        );
        // moto objects to the form of a change whose old records are gone.
        if text.contains("InvalidChangeBatch") || code == "InvalidInput" && message.contains("Action=DELETE") {
            return NameError::Conflict;
        }
        if code == "RequestExpired" || message.contains("Signature expired") || message.contains("not yet current") {
            return NameError::ClockSkew { server: self.label() };
        }
        if status == 403 {
            let problem = if code.is_empty() { "403".to_owned() } else { code };
            return NameError::KeyRejected { server: self.label(), key: self.settings.access_key.clone(), problem };
        }
        if status >= 500 {
            return NameError::ServerFailure { server: self.label() };
        }
        self.answered(format!("{status} {code}: {message}"))
    }

    fn understood<T: serde::de::DeserializeOwned>(&self, text: &str) -> Result<T, NameError> {
        quick_xml::de::from_str(text).map_err(|error| self.answered(format!("what cannot be read: {error}")))
    }

    /// The sets at the name and at its companion, exactly as they are.
    async fn sets(&self) -> Result<Vec<RecordSet>, NameError> {
        let mut sets = Vec::new();
        for (name, kinds) in [(&self.names.name, &["A", "AAAA", "CNAME"][..]), (&self.names.companion, &["TXT"][..])] {
            let path =
                format!("hostedzone/{}/rrset?maxitems={SETS_MAX}&name={}", self.settings.hosted_zone, plain(name));
            let answer: ListAnswer = self.understood(&self.call(reqwest::Method::GET, &path, String::new()).await?)?;
            let wanted = plain(name);
            for set in answer.sets.list {
                let is_ours = set.name.trim_end_matches('.').eq_ignore_ascii_case(&wanted);
                if !is_ours || !kinds.contains(&set.kind.as_str()) || sets.contains(&set) {
                    continue;
                }
                if set.records.is_none() {
                    return Err(
                        self.answered(format!("an alias record of its own kind at {wanted}: make it a plain one"))
                    );
                }
                sets.push(set);
            }
        }
        Ok(sets)
    }

    fn record_of(&self, sets: &[RecordSet]) -> Result<NameRecord, NameError> {
        let mut record = NameRecord::default();
        for set in sets {
            for value in set.records.iter().flat_map(|records| &records.list) {
                if set.kind == "TXT" {
                    record.companion.insert(unquoted(&value.value));
                    continue;
                }
                let value = NameValue::parse(&value.value).map_err(|problem| self.answered(problem))?;
                record.values.insert(value);
                record.ttl_seconds = record.ttl_seconds.max(set.ttl_seconds.unwrap_or(0));
            }
        }
        Ok(record)
    }

    /// The sets that make up `wanted`.
    fn wanted_sets(&self, wanted: &NameRecord) -> Vec<RecordSet> {
        let set = |name: String, kind: &str, values: Vec<String>| RecordSet {
            name,
            kind: kind.to_owned(),
            ttl_seconds: Some(wanted.ttl_seconds),
            records: Some(RecordList { list: values.into_iter().map(|value| RecordValue { value }).collect() }),
        };
        let of_kind = |wanted_kind: &str| -> Vec<String> {
            wanted.values.iter().filter(|value| kind(value) == wanted_kind).map(ToString::to_string).collect()
        };
        let kinds: BTreeSet<&str> = wanted.values.iter().map(kind).collect();
        let mut sets: Vec<RecordSet> =
            kinds.into_iter().map(|kind| set(plain(&self.names.name), kind, of_kind(kind))).collect();
        let texts = wanted.companion.iter().map(|text| format!("\"{text}\"")).collect();
        sets.push(set(plain(&self.names.companion), "TXT", texts));
        sets
    }

    async fn wait_until_in_sync(&self, mut change: ChangeInfo) -> Result<(), NameError> {
        let since = self.clock.now();
        while change.status != "INSYNC" {
            if self.clock.now().since(since) > IN_SYNC_TIMEOUT {
                return Err(NameError::Unreachable {
                    server: self.label(),
                    problem: format!("the change is still {} after {} s", change.status, IN_SYNC_TIMEOUT.as_secs()),
                });
            }
            tokio::time::sleep(IN_SYNC_PAUSE).await;
            let path = format!("change/{}", change.id.trim_start_matches("/change/"));
            let text = self.call(reqwest::Method::GET, &path, String::new()).await?;
            change = self.understood::<ChangeAnswer>(&text)?.change;
        }
        Ok(())
    }
}

fn kind(value: &NameValue) -> &'static str {
    match value {
        NameValue::Address(std::net::IpAddr::V4(_)) => "A",
        NameValue::Address(std::net::IpAddr::V6(_)) => "AAAA",
        NameValue::Alias(_) => "CNAME",
    }
}

fn unquoted(value: &str) -> String {
    value.split("\" \"").collect::<String>().trim_matches('"').to_owned()
}

fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn batch(old: &[RecordSet], new: &[RecordSet]) -> String {
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <ChangeResourceRecordSetsRequest xmlns=\"https://route53.amazonaws.com/doc/{VERSION}/\"><ChangeBatch><Changes>"
    );
    let changes = old.iter().map(|set| ("DELETE", set)).chain(new.iter().map(|set| ("CREATE", set)));
    for (action, set) in changes {
        text.push_str(&format!(
            "<Change><Action>{action}</Action><ResourceRecordSet><Name>{}</Name><Type>{}</Type><TTL>{}</TTL><ResourceRecords>",
            escape(set.name.as_str()),
            escape(set.kind.as_str()),
            set.ttl_seconds.unwrap_or(0)
        ));
        for record in set.records.iter().flat_map(|records| &records.list) {
            let value = escape(record.value.as_str());
            text.push_str(&format!("<ResourceRecord><Value>{value}</Value></ResourceRecord>"));
        }
        text.push_str("</ResourceRecords></ResourceRecordSet></Change>");
    }
    text.push_str("</Changes></ChangeBatch></ChangeResourceRecordSetsRequest>");
    text
}

#[async_trait]
impl NameService for Route53 {
    async fn read(&self) -> Result<NameRecord, NameError> {
        self.record_of(&self.sets().await?)
    }

    async fn swap(&self, seen: &NameRecord, wanted: &NameRecord) -> Result<(), NameError> {
        let old = self.sets().await?;
        if self.record_of(&old)? != *seen {
            return Err(NameError::Conflict);
        }
        let body = batch(&old, &self.wanted_sets(wanted));
        let path = format!("hostedzone/{}/rrset/", self.settings.hosted_zone);
        let text = self.call(reqwest::Method::POST, &path, body).await?;
        self.wait_until_in_sync(self.understood::<ChangeAnswer>(&text)?.change).await
    }

    async fn answers(&self) -> Vec<ServerAnswer> {
        wire::answers(&self.settings.servers, &self.names).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_route_53_lists_is_read_and_named_again_exactly() {
        let text = r#"<?xml version="1.0"?><ListResourceRecordSetsResponse xmlns="https://route53.amazonaws.com/doc/2013-04-01/">
            <ResourceRecordSets><ResourceRecordSet><Name>db.example.test.</Name><Type>A</Type><TTL>7</TTL>
            <ResourceRecords><ResourceRecord><Value>10.0.0.1</Value></ResourceRecord><ResourceRecord><Value>10.0.0.2</Value>
            </ResourceRecord></ResourceRecords></ResourceRecordSet></ResourceRecordSets><IsTruncated>false</IsTruncated>
            <MaxItems>20</MaxItems></ListResourceRecordSetsResponse>"#;
        let answer: ListAnswer = quick_xml::de::from_str(text).expect("understood");
        let batch = batch(&answer.sets.list, &[]);
        assert!(batch.contains(
            "<Action>DELETE</Action><ResourceRecordSet><Name>db.example.test.</Name><Type>A</Type><TTL>7</TTL>"
        ));
        assert_eq!(batch.matches("<ResourceRecord><Value>").count(), 2);
    }

    #[test]
    fn texts_lose_their_quotes() {
        assert_eq!(unquoted("\"one two\""), "one two");
        assert_eq!(unquoted("\"one\" \"two\""), "onetwo");
    }
}
