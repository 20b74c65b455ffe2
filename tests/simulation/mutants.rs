//! Promises of the outside that the rules rest on, each broken on purpose: whoever breaks one must be found by a check.
//!
//! Nothing of Stormglass is changed here; what it may rely on is.

use stormglass::domain::policy::DurabilityMode;

use super::world::{Settings, State, World};

/// A mutant must be found within so many seeds.
pub const SEEDS_MAX: u64 = 300;

/// A promise that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The guard sees its deadline pass and does nothing.
    GuardDoesNotKill,
    /// The agent's disk says that it has written, and has not.
    DiskForgets,
    /// A standby's promise arrives that no standby gave.
    PromisesNobodyGave,
    /// SIGKILL is reported as done, and PostgreSQL runs on.
    KillLeavesBackends,
    /// Clocks of hosts run at six tenths of the right speed.
    ClockBeyondTheBound,
    /// etcd keeps sessions alive, and lets them write, after it gave the leadership to another.
    StoreIgnoresSessions,
    /// The store writes whatever it is asked to, whichever record is there.
    SwapWithoutCompare,
    /// Standbys confirm WAL before they have it on disk.
    ConfirmsBeforeFlush,
}

impl Mutant {
    pub const ALL: [Mutant; 8] = [
        Mutant::GuardDoesNotKill,
        Mutant::DiskForgets,
        Mutant::PromisesNobodyGave,
        Mutant::KillLeavesBackends,
        Mutant::ClockBeyondTheBound,
        Mutant::StoreIgnoresSessions,
        Mutant::SwapWithoutCompare,
        Mutant::ConfirmsBeforeFlush,
    ];

    /// The world in which it does harm.
    pub fn settings(self) -> Settings {
        let controllers = if self == Mutant::StoreIgnoresSessions { 3 } else { 1 };
        Settings { controllers, durability: DurabilityMode::Sync, gentle: false, mutant: Some(self) }
    }
}

/// A rule of safety is broken, not only a cluster that does not come back.
pub fn is_breach(violation: &str) -> bool {
    !violation.contains("did not") && !violation.contains("panicked")
}

impl State {
    pub fn is(&self, mutant: Mutant) -> bool {
        self.settings.mutant == Some(mutant)
    }
}

impl World {
    pub fn is(&self, mutant: Mutant) -> bool {
        self.lock().is(mutant)
    }
}
