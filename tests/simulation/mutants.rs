//! Promises of the outside that the rules rest on, each broken on purpose: whoever breaks one must be found by a check.
//!
//! Nothing of Stormglass is changed here; what it may rely on is.

use stormglass::domain::policy::{DurabilityMode, SyncScope};

use super::faults::Fault;
use super::scenarios::{Scenario, at};
use super::world::{Settings, State, World};

/// A mutant must be found within so many seeds.
pub const SEEDS_MAX: u64 = 300;

/// The primary renews with its standbys' promises; then nobody hears it, and the standbys' agents begin anew.
const FORGOTTEN_PROMISES: Scenario = Scenario {
    name: "promises_are_forgotten",
    controllers: 1,
    durability: DurabilityMode::Sync,
    faults: &[
        at(1_000, Fault::FromController(0), 20_000),
        at(5_000, Fault::Isolate(0), 10_000),
        at(10, Fault::KillAgents, 0),
    ],
    outage_seconds: 60,
};

const ISOLATED_PRIMARY: Scenario = Scenario {
    name: "primary_is_isolated",
    controllers: 1,
    durability: DurabilityMode::Sync,
    faults: &[at(1_000, Fault::Isolate(0), 15_000)],
    outage_seconds: 60,
};

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
    /// Standbys confirm WAL before they have it on disk.
    ConfirmsBeforeFlush,
}

impl Mutant {
    /// The world in which it does harm.
    pub fn settings(self) -> Settings {
        let (durability, sync_scope) = (DurabilityMode::Sync, SyncScope::Local);
        Settings { controllers: 1, durability, sync_scope, gentle: false, mutant: Some(self) }
    }

    /// The faults that bring it out, where chance would need many seeds.
    pub fn scenario(self) -> Option<&'static Scenario> {
        match self {
            Mutant::DiskForgets => Some(&FORGOTTEN_PROMISES),
            Mutant::PromisesNobodyGave | Mutant::ClockBeyondTheBound => Some(&ISOLATED_PRIMARY),
            Mutant::GuardDoesNotKill | Mutant::KillLeavesBackends | Mutant::ConfirmsBeforeFlush => None,
        }
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
