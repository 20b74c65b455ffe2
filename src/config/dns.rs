//! Settings of the name that clients connect to: which provider keeps it, and what stands for the primary in each site.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::duration::DurationText;
use super::error::Violation;
use super::secret::SecretReference;
use crate::domain::ids::{Address, SiteName};
use crate::domain::name::{NameOccasion, NameRule, NameValue};

/// Where Route 53 is asked if nothing else is said.
const ROUTE53_ENDPOINT: &str = "https://route53.amazonaws.com";
/// Put before the name for its companion, if nothing else is said: nothing may stand beside a CNAME.
const COMPANION_LABEL: &str = "_stormglass";
/// A resolver may not be told to keep an answer for longer than this; nobody wants it after a failover.
const TTL_MAX: Duration = Duration::from_secs(86_400);

/// `[dns]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsSection {
    /// Who keeps the zone.
    pub provider: DnsProvider,
    /// The name that clients use.
    pub name: String,
    /// The zone that it is in.
    pub zone: String,
    /// How long resolvers may keep an answer.
    #[serde(default = "default_ttl", with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub ttl: Duration,
    /// When the name is written.
    #[serde(default)]
    pub when: NameOccasion,
    /// Name of the companion TXT record; `_stormglass.` before the name if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub companion: Option<String>,
    /// Authoritative servers: with `rfc2136` changes go to the first, and each is asked what it answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<Address>,
    /// `rfc2136`: name of the TSIG key, `hmac-sha256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
    /// `rfc2136`: its secret, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_secret: Option<SecretReference>,
    /// `route53`: identity of the hosted zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosted_zone: Option<String>,
    /// `route53`: base URL of the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// `route53`: access key of the account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key: Option<SecretReference>,
    /// `route53`: its secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key: Option<SecretReference>,
    /// What stands for the primary while it is in a site: addresses, or one other name.
    #[schema(value_type = BTreeMap<String, Vec<String>>)]
    pub sites: BTreeMap<SiteName, Vec<NameValue>>,
}

/// Who keeps the zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DnsProvider {
    /// A server that takes dynamic updates: BIND, Knot, PowerDNS, …
    Rfc2136,
    /// Amazon Route 53.
    Route53,
}

fn default_ttl() -> Duration {
    Duration::from_secs(5)
}

impl DnsSection {
    /// The name of the companion TXT record.
    pub fn companion(&self) -> String {
        self.companion.clone().unwrap_or_else(|| format!("{COMPANION_LABEL}.{}", self.name))
    }

    /// Base URL of Route 53.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone().unwrap_or_else(|| ROUTE53_ENDPOINT.to_owned())
    }

    /// What the controller keeps to.
    pub fn rule(&self) -> NameRule {
        NameRule {
            name: self.name.trim_end_matches('.').to_ascii_lowercase(),
            ttl: self.ttl,
            when: self.when,
            sites: self
                .sites
                .iter()
                .map(|(site, values)| (site.clone(), values.iter().cloned().collect::<BTreeSet<_>>()))
                .collect(),
        }
    }

    /// Every reference to a secret, with its key.
    pub(super) fn secrets(&self) -> Vec<(String, &SecretReference)> {
        [("key_secret", &self.key_secret), ("access_key", &self.access_key), ("secret_key", &self.secret_key)]
            .into_iter()
            .filter_map(|(key, reference)| reference.as_ref().map(|it| (format!("dns.{key}"), it)))
            .collect()
    }

    /// The first rule that is broken. `sites`: those in which nodes stand.
    pub(super) fn violation(&self, sites: &BTreeSet<&SiteName>) -> Result<(), Violation> {
        let companion = self.companion();
        let zone = self.zone.trim_end_matches('.').to_ascii_lowercase();
        for (key, name) in [("dns.name", &self.name), ("dns.companion", &companion)] {
            let plain = name.trim_end_matches('.').to_ascii_lowercase();
            if !matches!(NameValue::parse(&plain), Ok(NameValue::Alias(_))) {
                return Err(Violation::at(key, format!("{name:?} is no name")));
            }
            if !plain.ends_with(&format!(".{zone}")) && plain != zone {
                return Err(Violation::at(key, format!("{name} is not in the zone {zone}")));
            }
        }
        if self.ttl.is_zero() || self.ttl.subsec_nanos() != 0 || self.ttl > TTL_MAX {
            return Err(Violation::at("dns.ttl", "must be whole seconds, from 1s to 1day"));
        }
        let needed: [(&str, bool, DnsProvider); 5] = [
            ("dns.key_name", self.key_name.is_some(), DnsProvider::Rfc2136),
            ("dns.key_secret", self.key_secret.is_some(), DnsProvider::Rfc2136),
            ("dns.hosted_zone", self.hosted_zone.is_some(), DnsProvider::Route53),
            ("dns.access_key", self.access_key.is_some(), DnsProvider::Route53),
            ("dns.secret_key", self.secret_key.is_some(), DnsProvider::Route53),
        ];
        for (key, is_set, provider) in needed {
            if provider == self.provider && !is_set {
                return Err(Violation::at(key, "missing: this provider needs it"));
            }
            if provider != self.provider && is_set {
                return Err(Violation::at(key, "belongs to the other provider: take it out"));
            }
        }
        if self.provider == DnsProvider::Rfc2136 && self.endpoint.is_some() {
            return Err(Violation::at("dns.endpoint", "belongs to the other provider: take it out"));
        }
        if self.provider == DnsProvider::Rfc2136 && self.servers.is_empty() {
            return Err(Violation::at(
                "dns.servers",
                "missing: name the server that takes updates, as { host = \"10.0.0.53\", port = 53 }",
            ));
        }
        for (site, values) in &self.sites {
            let key = format!("dns.sites.{site}");
            if !sites.contains(site) {
                return Err(Violation::at(&key, "no [[node]] stands in this site"));
            }
            if values.is_empty() {
                return Err(Violation::at(&key, "names nothing that the name could lead to"));
            }
            let has_alias = values.iter().any(|value| matches!(value, NameValue::Alias(_)));
            if has_alias && values.len() > 1 {
                return Err(Violation::at(&key, "another name stands alone: give addresses, or one name"));
            }
            if has_alias && companion.trim_end_matches('.').eq_ignore_ascii_case(self.name.trim_end_matches('.')) {
                return Err(Violation::at(
                    "dns.companion",
                    "no other record can stand beside a CNAME: choose another name",
                ));
            }
        }
        match sites.iter().find(|site| !self.sites.contains_key(**site)) {
            Some(site) => {
                let problem = format!("{site} is missing: a primary there would have no value for the name");
                Err(Violation::at("dns.sites", problem))
            }
            None => Ok(()),
        }
    }
}
