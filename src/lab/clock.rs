//! The lab's clock: CLOCK_BOOTTIME, the same that controller and agents of this host count on.
//!
//! Everything the lab measures is a difference of two of these moments; wall time never enters.

use rustix::time::{ClockId, clock_gettime};

use crate::domain::clock::Moment;

/// The moment now.
pub fn now() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Moment(seconds * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000)
}
