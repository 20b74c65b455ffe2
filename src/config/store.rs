//! Settings of the controller's store: an embedded file for one controller, etcd for several.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::duration::DurationText;
use super::error::Violation;
use super::secret::SecretReference;
use super::validate::absolute;
use crate::domain::lease::LeaseTimers;

/// etcd grants no shorter lease with its usual timers (one and a half of its election timeout, in whole seconds).
const LEADERSHIP_TTL_MIN: Duration = Duration::from_secs(2);

/// `[store]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Where the controller's memory is.
    pub kind: StoreKind,
    /// Client URLs of etcd's members.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// In etcd everything is kept below it. Clusters that share an etcd need one each.
    pub prefix: String,
    /// How long a dead controller is still taken for the leader; derived from `failover` if not given.
    #[serde(with = "super::duration::optional", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DurationText>)]
    pub leadership_ttl: Option<Duration>,
    /// User of etcd, where it asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretReference>,
    /// Who signed the members' certificates, as PEM; for `https` endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ca_file: Option<PathBuf>,
    /// The own certificate, where etcd asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub certificate_file: Option<PathBuf>,
    /// The key of the own certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub key_file: Option<PathBuf>,
}

/// Kinds of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// A file of the controller, which is the only one.
    #[default]
    Embedded,
    /// etcd, which elects one of several controllers.
    Etcd,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self {
            kind: StoreKind::Embedded,
            endpoints: Vec::new(),
            prefix: "/stormglass".to_owned(),
            leadership_ttl: None,
            user: None,
            password: None,
            ca_file: None,
            certificate_file: None,
            key_file: None,
        }
    }
}

/// So long that a leadership outlives a full lease although the last keep-alive is two renewal intervals old; etcd counts whole
/// seconds.
fn least_leadership_ttl(timers: &LeaseTimers) -> Duration {
    let least = timers.lease + 2 * timers.renewal_interval;
    Duration::from_secs(least.as_secs() + u64::from(least.subsec_nanos() > 0)).max(LEADERSHIP_TTL_MIN)
}

impl StoreSection {
    /// For how long a deposed controller may believe that it leads: zero where there is only one.
    pub fn leadership_ttl(&self, timers: &LeaseTimers) -> Duration {
        match self.kind {
            StoreKind::Embedded => Duration::ZERO,
            StoreKind::Etcd => self.leadership_ttl.unwrap_or_else(|| least_leadership_ttl(timers)),
        }
    }

    /// The first rule that is broken.
    pub(super) fn violation(&self, timers: &LeaseTimers) -> Result<(), Violation> {
        match self.kind {
            StoreKind::Embedded => self.embedded_violation(),
            StoreKind::Etcd => self.etcd_violation(timers),
        }
    }

    fn embedded_violation(&self) -> Result<(), Violation> {
        let set = [
            ("store.endpoints", !self.endpoints.is_empty()),
            ("store.leadership_ttl", self.leadership_ttl.is_some()),
            ("store.user", self.user.is_some()),
            ("store.password", self.password.is_some()),
            ("store.ca_file", self.ca_file.is_some()),
            ("store.certificate_file", self.certificate_file.is_some()),
            ("store.key_file", self.key_file.is_some()),
        ];
        match set.iter().find(|(_, is_set)| *is_set) {
            Some((key, _)) => Err(Violation::at(key, "belongs to kind = \"etcd\": take it out, or choose that kind")),
            None => Ok(()),
        }
    }

    fn etcd_violation(&self, timers: &LeaseTimers) -> Result<(), Violation> {
        if self.endpoints.is_empty() {
            return Err(Violation::at(
                "store.endpoints",
                "must name the members of etcd, as in [\"http://10.0.0.5:2379\"]",
            ));
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let key = format!("store.endpoints.{index}");
            let parsed = reqwest::Url::parse(endpoint).ok().filter(|url| url.has_host() && url.path() == "/");
            let Some(scheme) = parsed.map(|url| url.scheme().to_owned()) else {
                let problem = format!("{endpoint:?} is no URL of a member, as in \"http://10.0.0.5:2379\"");
                return Err(Violation::at(&key, problem));
            };
            match (scheme.as_str(), &self.ca_file) {
                ("http", None) | ("https", Some(_)) => {}
                ("http", Some(_)) => {
                    return Err(Violation::at(&key, "begins with http://, but store.ca_file is set: use https://"));
                }
                ("https", None) => {
                    return Err(Violation::at("store.ca_file", "must name who signed the members' certificates"));
                }
                _ => return Err(Violation::at(&key, format!("{endpoint:?} must begin with http:// or https://"))),
            }
        }
        if !self.prefix.starts_with('/') || self.prefix.trim_matches('/').is_empty() {
            return Err(Violation::at("store.prefix", "must begin with / and say more, as in \"/stormglass\""));
        }
        match (&self.user, &self.password) {
            (Some(_), None) => return Err(Violation::at("store.password", "missing: store.user needs one")),
            (None, Some(_)) => return Err(Violation::at("store.user", "missing: whose is store.password?")),
            _ => {}
        }
        if self.certificate_file.is_some() != self.key_file.is_some() {
            return Err(Violation::at(
                "store.certificate_file",
                "and store.key_file come together: set both or neither",
            ));
        }
        if self.certificate_file.is_some() && self.ca_file.is_none() {
            return Err(Violation::at("store.certificate_file", "is for https:// endpoints, which need store.ca_file"));
        }
        for (key, file) in [
            ("store.ca_file", &self.ca_file),
            ("store.certificate_file", &self.certificate_file),
            ("store.key_file", &self.key_file),
        ] {
            if let Some(file) = file {
                absolute(key, file)?;
            }
        }
        let time_to_live = self.leadership_ttl(timers);
        let least = least_leadership_ttl(timers);
        if time_to_live.subsec_nanos() > 0 || time_to_live < least {
            let problem = format!(
                "must be whole seconds, at least {}, which is failover.lease + 2 × failover.renewal_interval: no lease is granted \
                 beyond the leadership, so a shorter one would leave agents without an answer; and etcd grants none below {}",
                humantime::format_duration(least),
                humantime::format_duration(LEADERSHIP_TTL_MIN)
            );
            return Err(Violation::at("store.leadership_ttl", problem));
        }
        Ok(())
    }
}
