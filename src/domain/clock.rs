//! Two kinds of time, kept apart: moments that decide, wall times that are only shown.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A point on one host's CLOCK_BOOTTIME, in microseconds since boot.
///
/// Moments of different hosts, or of different boots, must never be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// Time from `earlier` to `self`; zero if `self` is not later.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The moment `duration` later.
    pub fn plus(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The moment `duration` earlier, not before boot.
    pub fn minus(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_sub(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// Identity of one boot of a host (`/proc/sys/kernel/random/boot_id`): moments are void in another boot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

/// Wall-clock time in microseconds since 1970-01-01 UTC. Shown to people; decides nothing.
///
/// Written in JSON as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, format = DateTime)]
pub struct WallTime(pub i64);

/// A text that is no RFC 3339 time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time: expected RFC 3339, as in 2026-11-21T03:12:09.5Z")]
pub struct InvalidTime(String);

/// 9999-12-31T23:59:59Z: the last second that RFC 3339 can write.
const LATEST_MICROSECONDS: i64 = 253_402_300_799_000_000;

impl WallTime {
    /// The time `duration` later.
    pub fn plus(self, duration: Duration) -> WallTime {
        let later = self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX));
        WallTime(later.min(LATEST_MICROSECONDS))
    }

    /// Time from `earlier` to `self`; zero if `self` is not later.
    pub fn since(self, earlier: WallTime) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000)
            .ok()
            .and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok());
        formatter.pad(text.as_deref().unwrap_or("(out of range)"))
    }
}

impl TryFrom<String> for WallTime {
    type Error = InvalidTime;
    fn try_from(text: String) -> Result<Self, InvalidTime> {
        time::OffsetDateTime::parse(&text, &time::format_description::well_known::Rfc3339)
            .ok()
            .and_then(|at| i64::try_from(at.unix_timestamp_nanos() / 1_000).ok())
            .map(WallTime)
            .ok_or(InvalidTime(text))
    }
}

impl From<WallTime> for String {
    fn from(at: WallTime) -> String {
        at.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_survives_json() {
        let at = WallTime(1_795_000_000_123_456);
        let text = serde_json::to_string(&at).expect("serialise");
        assert_eq!(serde_json::from_str::<WallTime>(&text).expect("parse"), at);
        assert!(serde_json::from_str::<WallTime>("\"yesterday\"").is_err());
    }

    #[test]
    fn moments_never_run_backwards() {
        assert_eq!(Moment(5).since(Moment(9)), Duration::ZERO);
        assert_eq!(Moment(5).minus(Duration::from_secs(1)), Moment(0));
    }
}
