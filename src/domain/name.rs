//! The name that clients connect to, and which value it shall have in which epoch.
//!
//! Invariant: a value is never compared alone. It goes A → B → A; the epoch of the companion record only grows, and whoever has
//! read an older one may not write.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::epoch::Epoch;
use super::ids::{ClusterName, SiteName};

/// What the companion record begins with.
const COMPANION_MARK: &str = "stormglass";

/// What a name leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NameValue {
    /// An A or AAAA record.
    Address(IpAddr),
    /// A CNAME record: another name, absolute, in lower case, without its last dot.
    Alias(String),
}

impl NameValue {
    /// An address, or else a name.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address));
        }
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        let is_label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_".contains(letter))
        };
        // Four numbers with a slip in them are no name either.
        let looks_numeric =
            name.rsplit('.').next().is_some_and(|last| last.chars().all(|letter| letter.is_ascii_digit()));
        if name.len() > 253 || looks_numeric || !name.split('.').all(is_label) {
            return Err(format!("{text:?} is neither an IP address nor a name"));
        }
        Ok(Self::Alias(name))
    }
}

impl fmt::Display for NameValue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameValue::Address(address) => write!(formatter, "{address}"),
            NameValue::Alias(name) => formatter.write_str(name),
        }
    }
}

impl TryFrom<String> for NameValue {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<NameValue> for String {
    fn from(value: NameValue) -> String {
        value.to_string()
    }
}

/// The values in words.
pub fn words(values: &BTreeSet<NameValue>) -> String {
    if values.is_empty() {
        return "nothing".to_owned();
    }
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The name and its companion, as one authoritative server answers, or as they shall be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NameRecord {
    /// Where the name leads; empty: there is no such record.
    pub values: BTreeSet<NameValue>,
    /// How long resolvers may keep the answer.
    pub ttl_seconds: u32,
    /// Text of the companion TXT record; empty: there is none. More than one is never written here.
    pub companion: BTreeSet<String>,
}

/// How what is there stands to what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameVerdict {
    /// Nothing to do.
    Right,
    /// To be written, if the companion is still what was read.
    Due,
    /// A newer epoch has written it: this controller, or this store, is behind.
    Overtaken(Epoch),
    /// The companion is somebody else's: nothing is written.
    Foreign(String),
}

/// Text of the companion record.
pub fn companion(cluster: &ClusterName, epoch: Epoch) -> String {
    format!("{COMPANION_MARK} cluster={cluster} epoch={epoch}")
}

/// Cluster and epoch of a companion record.
pub fn read_companion(text: &str) -> Option<(ClusterName, Epoch)> {
    let rest = text.strip_prefix(COMPANION_MARK)?.trim_start().strip_prefix("cluster=")?;
    let (cluster, epoch) = rest.split_once(" epoch=")?;
    Some((ClusterName::new(cluster).ok()?, Epoch(epoch.parse().ok()?)))
}

impl NameRecord {
    /// The epoch in which it was written, if `cluster` wrote it.
    pub fn epoch(&self) -> Option<Epoch> {
        self.companion.iter().find_map(|text| read_companion(text)).map(|(_, epoch)| epoch)
    }
}

/// When the name is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NameOccasion {
    /// Where it must lead elsewhere: the primary moved to another site, or somebody changed the record.
    #[default]
    SiteChange,
    /// In every epoch: the companion always names the current one.
    Always,
}

/// What the operator wants of the name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRule {
    /// The name that clients use, absolute, without its last dot.
    pub name: String,
    /// How long resolvers may keep an answer.
    pub ttl: Duration,
    /// When it is written.
    pub when: NameOccasion,
    /// What stands for the primary in each site.
    pub sites: BTreeMap<SiteName, BTreeSet<NameValue>>,
}

impl NameRule {
    /// The record while the primary of `epoch` stands in `site`; `None` where nothing is said about that site.
    pub fn wanted(&self, cluster: &ClusterName, epoch: Epoch, site: &SiteName) -> Option<NameRecord> {
        Some(NameRecord {
            values: self.sites.get(site)?.clone(),
            ttl_seconds: u32::try_from(self.ttl.as_secs()).unwrap_or(u32::MAX),
            companion: BTreeSet::from([companion(cluster, epoch)]),
        })
    }

    /// What is to be done, given what the server that takes changes answers.
    pub fn verdict(&self, cluster: &ClusterName, epoch: Epoch, seen: &NameRecord, wanted: &NameRecord) -> NameVerdict {
        let mut latest = None;
        for text in &seen.companion {
            match read_companion(text) {
                Some((owner, written)) if owner == *cluster => latest = latest.max(Some(written)),
                _ => return NameVerdict::Foreign(text.clone()),
            }
        }
        match latest {
            Some(written) if written > epoch => return NameVerdict::Overtaken(written),
            _ => {}
        }
        let is_current = match self.when {
            NameOccasion::Always => seen.companion == wanted.companion,
            // Without a companion nothing would keep a stale controller away.
            NameOccasion::SiteChange => latest.is_some() && seen.companion.len() == 1,
        };
        if is_current && seen.values == wanted.values && seen.ttl_seconds == wanted.ttl_seconds {
            NameVerdict::Right
        } else {
            NameVerdict::Due
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterName {
        ClusterName::new("main").expect("valid")
    }

    fn rule(when: NameOccasion) -> NameRule {
        let value = |text: &str| BTreeSet::from([NameValue::parse(text).expect("valid")]);
        let site = |name: &str| SiteName::new(name).expect("valid");
        NameRule {
            name: "db.example.test".to_owned(),
            ttl: Duration::from_secs(5),
            when,
            sites: BTreeMap::from([(site("a"), value("10.0.1.1")), (site("b"), value("10.0.2.1"))]),
        }
    }

    fn verdict(when: NameOccasion, epoch: u64, site: &str, seen: &NameRecord) -> NameVerdict {
        let rule = rule(when);
        let wanted = rule.wanted(&cluster(), Epoch(epoch), &SiteName::new(site).expect("valid")).expect("a known site");
        rule.verdict(&cluster(), Epoch(epoch), seen, &wanted)
    }

    fn written(epoch: u64, site: &str) -> NameRecord {
        let site = SiteName::new(site).expect("valid");
        rule(NameOccasion::Always).wanted(&cluster(), Epoch(epoch), &site).expect("a known site")
    }

    #[test]
    fn a_value_is_an_address_or_a_name() {
        assert_eq!(NameValue::parse("::1"), Ok(NameValue::Address("::1".parse().expect("address"))));
        assert_eq!(NameValue::parse("P2.example.TEST."), Ok(NameValue::Alias("p2.example.test".to_owned())));
        for bad in ["", "10.0.0.300", "a b", "a..b", "1.2.3"] {
            assert!(NameValue::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_companion_can_be_read_again() {
        assert_eq!(read_companion(&companion(&cluster(), Epoch(7))), Some((cluster(), Epoch(7))));
        for bad in ["", "v=spf1 -all", "stormglass", "stormglass cluster=main epoch=x"] {
            assert_eq!(read_companion(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_value_that_returns_is_no_licence_for_the_stale() {
        // Epoch 5 in a, 6 in b, 7 in a again: to whoever is still in epoch 5 the value looks as it left it.
        let seen = written(7, "a");
        assert_eq!(verdict(NameOccasion::SiteChange, 5, "a", &seen), NameVerdict::Overtaken(Epoch(7)));
        assert_eq!(verdict(NameOccasion::SiteChange, 6, "b", &seen), NameVerdict::Overtaken(Epoch(7)));
        assert_eq!(verdict(NameOccasion::SiteChange, 7, "a", &seen), NameVerdict::Right);
    }

    #[test]
    fn a_move_within_a_site_changes_nothing_unless_asked() {
        let seen = written(7, "a");
        assert_eq!(verdict(NameOccasion::SiteChange, 8, "a", &seen), NameVerdict::Right);
        assert_eq!(verdict(NameOccasion::Always, 8, "a", &seen), NameVerdict::Due);
        assert_eq!(verdict(NameOccasion::SiteChange, 8, "b", &seen), NameVerdict::Due);
    }

    #[test]
    fn a_record_without_companion_is_adopted_and_a_strangers_is_not() {
        let bare = NameRecord { companion: BTreeSet::new(), ..written(7, "a") };
        assert_eq!(verdict(NameOccasion::SiteChange, 7, "a", &bare), NameVerdict::Due);
        for text in ["stormglass cluster=other epoch=1", "v=spf1 -all"] {
            let seen = NameRecord { companion: BTreeSet::from([text.to_owned()]), ..written(7, "a") };
            assert_eq!(verdict(NameOccasion::SiteChange, 7, "a", &seen), NameVerdict::Foreign(text.to_owned()));
        }
    }
}
