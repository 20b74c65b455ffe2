//! Positions in the write-ahead log, timelines and their ancestry.
//!
//! An LSN alone orders nothing across histories: compare positions only through [`History`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A WAL position in bytes, written as PostgreSQL writes it (`5/3A21F8C8`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$", examples("5/3A21F8C8"))]
pub struct Lsn(pub u64);

/// A text that is no LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an LSN: expected two hexadecimal numbers, as in 5/3A21F8C8")]
pub struct InvalidLsn(String);

impl Lsn {
    /// Bytes from `earlier` to `self`; 0 if `self` is not later.
    pub fn bytes_after(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&format!("{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF))
    }
}

impl FromStr for Lsn {
    type Err = InvalidLsn;
    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let invalid = || InvalidLsn(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(invalid)?;
        let part = |digits: &str| {
            if digits.is_empty() || digits.len() > 8 {
                return Err(invalid());
            }
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            u64::from_str_radix(digits, 16).map_err(|_| invalid())
        };
        Ok(Self(part(high)? << 32 | part(low)?))
    }
}

impl TryFrom<String> for Lsn {
    type Error = InvalidLsn;
    fn try_from(text: String) -> Result<Self, InvalidLsn> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> String {
        lsn.to_string()
    }
}

/// PostgreSQL's timeline number: raised by every promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

/// One line of a timeline history file: `timeline` was left at `switched_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// Where its successor begins.
    pub switched_at: Lsn,
}

/// The timeline a node is on and every ancestor with the point where it was left, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The current timeline.
    pub timeline: Timeline,
    /// Ancestors, oldest first.
    pub forks: Vec<Fork>,
}

impl History {
    /// A history without ancestors.
    pub fn root(timeline: Timeline) -> Self {
        Self { timeline, forks: Vec::new() }
    }

    /// Up to which position this history contains what was written on `timeline`:
    /// everything on the current timeline, up to the fork on an ancestor, nothing on a stranger.
    pub fn reach_on(&self, timeline: Timeline) -> Option<Lsn> {
        if timeline == self.timeline {
            return Some(Lsn(u64::MAX));
        }
        self.forks.iter().find(|fork| fork.timeline == timeline).map(|fork| fork.switched_at)
    }

    /// True if a node at `position` on `timeline` can follow this history without losing WAL of its own
    /// (timeline ancestry, not LSN alone; trace `longer_divergent_old_primary_counts_as_caught_up`).
    pub fn contains(&self, timeline: Timeline, position: Lsn) -> bool {
        self.reach_on(timeline).is_some_and(|reach| position <= reach)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_reads_what_postgresql_prints() {
        for text in ["0/0", "5/3A21F8C8", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().expect("valid").to_string(), text);
        }
        for bad in ["", "5", "5/", "/5", "5/G", "123456789/0", "1/2/3", "+1/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn ancestry_bounds_what_a_history_contains() {
        let history = History {
            timeline: Timeline(3),
            forks: vec![
                Fork { timeline: Timeline(1), switched_at: Lsn(100) },
                Fork { timeline: Timeline(2), switched_at: Lsn(200) },
            ],
        };
        assert!(history.contains(Timeline(1), Lsn(100)));
        assert!(!history.contains(Timeline(1), Lsn(101)), "WAL beyond the fork diverges");
        assert!(history.contains(Timeline(3), Lsn(9_000)));
        assert!(!history.contains(Timeline(4), Lsn(1)), "a stranger's timeline");
    }
}
