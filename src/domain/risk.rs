//! What is expected of a node: the model's word about trouble to come, and what the agents' own numbers say of resources that run out.
//!
//! Plain data. No model, no threshold and no decision enters here: a risk is evidence, and never proof of anything.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::view::Fact;

/// What the model said of a node at one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Risk {
    /// Calibrated probability of trouble within the model's horizon, 0 to 1; `None` while the model abstains.
    pub probability: Option<f64>,
    /// How unusual the node is, for ranking: higher is worse, without a unit.
    pub score: f64,
    /// The model's own decision at this step.
    pub alarm: bool,
    /// Why it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abstains: Option<String>,
    /// It abstains because the node is unlike those of its training.
    #[serde(default)]
    pub drifts: bool,
    /// What drove the score, the greatest share first.
    #[serde(default)]
    pub drivers: Vec<Driver>,
    /// The model that said so.
    pub model: ModelName,
}

impl Risk {
    /// The probability in thousandths; `None` while the model abstains, and for what is no probability.
    pub fn per_mille(&self) -> Option<u16> {
        let probability = self.probability.filter(|_| self.abstains.is_none())?;
        // Checked: a NaN is in no range.
        (0.0..=1.0).contains(&probability).then(|| (probability * 1000.0).round() as u16)
    }
}

/// A model by name and version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct ModelName {
    /// Name of its folder.
    pub name: String,
    /// Version, as its document says.
    pub version: String,
}

impl fmt::Display for ModelName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.name, self.version)
    }
}

/// A feature that drove the score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Driver {
    /// The feature, as `features.toml` names it.
    pub feature: String,
    /// Its last value; `None` in a gap.
    pub value: Option<f64>,
    /// Unit of the value.
    pub unit: String,
    /// Its part of the score, 0 to 1.
    pub share: f64,
    /// How far it is from what was expected, in the node's own usual deviations; the sign says which way.
    pub deviation: f64,
}

impl fmt::Display for Driver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.deviation < 0.0 { "below" } else { "above" };
        write!(formatter, "{}", self.feature.replace('_', " "))?;
        if let Some(value) = self.value {
            write!(formatter, " is {} {}", short(value), self.unit)?;
        }
        write!(formatter, ", {:.1} deviations {way} what was expected", self.deviation.abs())?;
        write!(formatter, " ({:.0} % of the score)", self.share * 100.0)
    }
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e9 => format!("{:.2}e9", value / 1e9),
        size if size >= 1e6 => format!("{:.2}e6", value / 1e6),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// What a node can run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Space for data.
    DataSpace,
    /// Space for WAL.
    WalSpace,
    /// Client connections.
    Connections,
    /// Memory.
    Memory,
}

impl Resource {
    /// For labels of metrics: as in JSON.
    pub fn label(self) -> &'static str {
        match self {
            Resource::DataSpace => "data_space",
            Resource::WalSpace => "wal_space",
            Resource::Connections => "connections",
            Resource::Memory => "memory",
        }
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Resource::DataSpace => "space for data",
            Resource::WalSpace => "space for WAL",
            Resource::Connections => "client connections",
            Resource::Memory => "memory",
        }
    }
}

/// A resource that falls steadily, by the word of the node's own agent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Exhaustion {
    /// Of what.
    pub resource: Resource,
    /// What is left now: bytes, or connections.
    pub left: f64,
    /// Time until nothing is left, if it goes on like that.
    pub remaining: Duration,
}

/// What takes much longer than it used to, such as a probe of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slowdown {
    /// Median before.
    pub usual: Duration,
    /// Several of the last ones took so long, or longer.
    pub now: Duration,
}

/// A primary whose clients wait for WAL to be flushed, longer than before or where hardly any did, and of which fewer transactions that write
/// get through than usual: its disk has become slow, and it is not that there is more to do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WalCongestion {
    /// Clients that wait for a flush: the median of the last looks.
    pub waiting: u32,
    /// Transactions a second that wrote, before: the median.
    pub writes_usual: f64,
    /// The same of the last looks.
    pub writes_now: f64,
    /// How long a transaction's statements take, both medians, where PostgreSQL tells (from 14 on).
    #[serde(default)]
    pub transactions: Option<Slowdown>,
}

/// All that is expected of one node. The default is: nothing is known, and nothing follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outlook {
    /// The model's last word. Unknown once it is old; absent without a model.
    pub risk: Fact<Risk>,
    /// For how long the model's alarm has lasted; `None` while there is none.
    pub alarmed_for: Option<Duration>,
    /// For how long the risk has been at least so many per cent, for those limits that somebody set and that are reached.
    #[serde(default)]
    pub reached: BTreeMap<u32, Duration>,
    /// What runs out, by the agents' own numbers, soonest first. No model is needed for it.
    pub exhaustions: Vec<Exhaustion>,
    /// The write probe, if it has become slow.
    pub slowdown: Option<Slowdown>,
    /// Clients that queue for WAL to be flushed, if that is new.
    #[serde(default)]
    pub wal_congestion: Option<WalCongestion>,
}

impl Default for Outlook {
    fn default() -> Self {
        Self {
            risk: Fact::Absent,
            alarmed_for: None,
            reached: BTreeMap::new(),
            exhaustions: Vec::new(),
            slowdown: None,
            wal_congestion: None,
        }
    }
}

/// The primary's risk around an operation that moved it, in thousandths; `None` while nobody could say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PrimaryRisks {
    /// Of the primary at the decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_per_mille: Option<u16>,
    /// Of its successor, as soon as the model said anything of it as the primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_per_mille: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_risk_in_thousandths_is_known_or_it_is_not() {
        let risk = |probability: Option<f64>, abstains: Option<&str>| Risk {
            probability,
            score: 0.0,
            alarm: false,
            abstains: abstains.map(str::to_owned),
            drifts: false,
            drivers: Vec::new(),
            model: ModelName { name: "lab".to_owned(), version: "1".to_owned() },
        };
        assert_eq!(risk(Some(0.1236), None).per_mille(), Some(124));
        assert_eq!(risk(Some(1.0), None).per_mille(), Some(1000));
        for (probability, abstains) in
            [(None, None), (Some(f64::NAN), None), (Some(-0.1), None), (Some(1.1), None), (Some(0.5), Some("drift"))]
        {
            assert_eq!(risk(probability, abstains).per_mille(), None, "{probability:?} {abstains:?}");
        }
    }

    #[test]
    fn a_driver_is_a_sentence_with_its_number() {
        let driver = Driver {
            feature: "data_free_ratio".to_owned(),
            value: Some(0.1234),
            unit: "ratio".to_owned(),
            share: 0.62,
            deviation: -8.25,
        };
        assert_eq!(
            driver.to_string(),
            "data free ratio is 0.1234 ratio, 8.2 deviations below what was expected (62 % of the score)"
        );
    }

    #[test]
    fn nothing_is_known_by_default() {
        let outlook = Outlook::default();
        assert_eq!(outlook.risk, Fact::Absent);
        assert!(outlook.alarmed_for.is_none() && outlook.exhaustions.is_empty() && outlook.slowdown.is_none());
    }
}
