//! The host's clocks. The only place that reads them.

use std::time::{Duration, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::domain::clock::{BootId, Moment, WallTime};
use crate::ports::Clock;

/// Where the kernel tells one boot from another.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// CLOCK_BOOTTIME, the wall clock and the boot of this host.
#[derive(Debug, Clone)]
pub struct SystemClock {
    boot: BootId,
}

impl SystemClock {
    /// Reads the boot's identity once: it cannot change under a running process.
    pub fn new() -> std::io::Result<Self> {
        let boot = std::fs::read_to_string(BOOT_ID_FILE)?;
        Ok(Self { boot: BootId(boot.trim().to_owned()) })
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        Moment::default().plus(boot_time())
    }

    #[expect(clippy::disallowed_methods, reason = "the port's own implementation reads the wall clock")]
    fn wall(&self) -> WallTime {
        let since = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallTime(0).plus(since)
    }

    fn boot(&self) -> BootId {
        self.boot.clone()
    }
}

/// Time since boot, counted on while the host sleeps. For code below the port, such as the fence.
pub fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).expect("the kernel keeps nanoseconds below one second"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_run_forward_within_one_boot() {
        let clock = SystemClock::new().expect("this host has a boot id");
        let before = clock.now();
        assert!(clock.now() >= before);
        assert_eq!(clock.boot().0.len(), 36, "a UUID");
        assert!(clock.wall() > WallTime(1_700_000_000_000_000), "later than 2023");
    }
}
