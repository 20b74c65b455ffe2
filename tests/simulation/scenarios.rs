//! What the simulator once found, as scripts: they stay the same scenario when the code around them changes, as a seed does not.

use stormglass::domain::policy::DurabilityMode;

use super::faults::Fault;
use super::server::{Disk, Hang};
use super::world::Settings;

/// One fault of a script.
pub struct Scripted {
    /// After the one before it.
    pub after_millis: u64,
    pub fault: Fault,
    pub lasts_millis: u64,
}

/// A script with a name.
pub struct Scenario {
    pub name: &'static str,
    pub controllers: usize,
    pub durability: DurabilityMode,
    pub faults: &'static [Scripted],
    /// No longer without an acknowledged commit.
    pub outage_seconds: u64,
}

impl Scenario {
    pub fn settings(&self) -> Settings {
        Settings { controllers: self.controllers, durability: self.durability, gentle: false, mutant: None }
    }
}

const fn at(after_millis: u64, fault: Fault, lasts_millis: u64) -> Scripted {
    Scripted { after_millis, fault, lasts_millis }
}

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        // The operation held up every failover until the old primary streamed, or a minute was over.
        name: "new_primary_dies_while_a_switchover_brings_the_old_one_back",
        controllers: 1,
        durability: DurabilityMode::Sync,
        faults: &[at(500, Fault::Switchover, 0), at(460, Fault::KillPrimary, 0)],
        outage_seconds: 3,
    },
    Scenario {
        // Nobody confirms its commits yet, so the cluster waits for that host, and for nothing else.
        name: "new_primary_host_lost_while_a_switchover_brings_the_old_one_back",
        controllers: 1,
        durability: DurabilityMode::Sync,
        faults: &[at(500, Fault::Switchover, 0), at(460, Fault::CrashHost(1), 9_000)],
        outage_seconds: 14,
    },
    Scenario {
        // Five starts failed on the full disk, and nobody tried a sixth time.
        name: "standby_left_down_by_a_full_disk_comes_back_when_there_is_space",
        controllers: 1,
        durability: DurabilityMode::Sync,
        faults: &[at(1_000, Fault::Disk(0, Disk::Full), 12_000)],
        outage_seconds: 6,
    },
    Scenario {
        // Every failover waited for the checkpoint of a primary that hung, up to five minutes.
        name: "primary_hangs_before_the_checkpoint_of_a_switchover",
        controllers: 1,
        durability: DurabilityMode::Sync,
        faults: &[at(1_000, Fault::Hang(0, Hang::All), 20_000), at(20, Fault::Switchover, 0)],
        outage_seconds: 6,
    },
    Scenario {
        name: "controller_dies_in_the_middle_of_a_switchover",
        controllers: 1,
        durability: DurabilityMode::Sync,
        faults: &[at(500, Fault::Switchover, 0), at(100, Fault::KillLeader, 700)],
        outage_seconds: 6,
    },
];
