//! How often one caller may ask. Agents are not counted: a lease must not wait for a quota.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::domain::clock::WallTime;

/// Requests a second of one known caller, unless the configuration says otherwise.
pub const REQUESTS_PER_SECOND_DEFAULT: u32 = 2_000;
/// Requests a second without a known token, of one address: guessing, or a wrong configuration.
const STRANGER_REQUESTS_PER_SECOND: u32 = 50;
/// Strangers may begin with this many.
const STRANGER_BURST: u32 = 500;
/// Requests after which callers that were quiet are forgotten, so that the table stays small.
const REQUESTS_BETWEEN_CLEARINGS: usize = 10_000;

/// Unauthenticated attempts that are written down in each minute: everybody can make them, and the disk is finite.
const STRANGERS_PER_MINUTE: u32 = 10;

/// The quotas of one controller.
pub struct Limits {
    callers: DefaultKeyedRateLimiter<String>,
    strangers: DefaultKeyedRateLimiter<IpAddr>,
    asked: AtomicUsize,
}

impl Limits {
    /// So many requests a second for each known caller, and twice as many at once.
    pub fn new(requests_per_second: u32) -> Self {
        let number = |value: u32| NonZeroU32::new(value).unwrap_or(NonZeroU32::MIN);
        let quota =
            Quota::per_second(number(requests_per_second)).allow_burst(number(requests_per_second.saturating_mul(2)));
        let strangers = Quota::per_second(number(STRANGER_REQUESTS_PER_SECOND)).allow_burst(number(STRANGER_BURST));
        Self {
            callers: RateLimiter::keyed(quota),
            strangers: RateLimiter::keyed(strangers),
            asked: AtomicUsize::new(0),
        }
    }

    /// Whether this caller may ask now.
    pub fn admit(&self, name: &str) -> bool {
        self.clear();
        self.callers.check_key(&name.to_owned()).is_ok()
    }

    /// Whether somebody without a known token may ask now.
    pub fn admit_stranger(&self, address: IpAddr) -> bool {
        self.clear();
        self.strangers.check_key(&address).is_ok()
    }

    fn clear(&self) {
        if self.asked.fetch_add(1, Ordering::Relaxed) % REQUESTS_BETWEEN_CLEARINGS == REQUESTS_BETWEEN_CLEARINGS - 1 {
            self.callers.retain_recent();
            self.strangers.retain_recent();
        }
    }
}

impl std::fmt::Debug for Limits {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Limits(..)")
    }
}

/// How many attempts without a known token were written down in the current minute.
#[derive(Default)]
pub(super) struct Strangers {
    minute: Option<WallTime>,
    written: u32,
}

impl Strangers {
    /// Whether one more is written down.
    pub(super) fn may_write(&mut self, now: WallTime) -> bool {
        let fresh = self.minute.is_some_and(|begun| begun <= now && now.since(begun) < Duration::from_secs(60));
        if !fresh {
            *self = Self { minute: Some(now), written: 0 };
        }
        self.written += 1;
        self.written <= STRANGERS_PER_MINUTE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_that_asks_too_often_waits_and_others_do_not() {
        let limits = Limits::new(1);
        assert!(limits.admit("ann") && limits.admit("ann"), "twice at once");
        assert!(!limits.admit("ann"));
        assert!(limits.admit("bob"));
        let address = IpAddr::from([127, 0, 0, 1]);
        let admitted = (0..2_000).filter(|_| limits.admit_stranger(address)).count();
        assert!((500..2_000).contains(&admitted), "{admitted}");
    }
}
