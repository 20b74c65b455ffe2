//! The clocks of one host.

use crate::domain::clock::{BootId, Moment, WallTime};

/// Reads the host's clocks.
pub trait Clock: Send + Sync {
    /// CLOCK_BOOTTIME: counts on while the host sleeps; decides everything.
    fn now(&self) -> Moment;
    /// The wall clock: shown to people, decides nothing.
    fn wall(&self) -> WallTime;
    /// The boot in which [`Clock::now`] counts.
    fn boot(&self) -> BootId;
}
