//! What the simulator once found, as scripts: they stay the same scenario when the code around them changes, as a seed does not.

use stormglass::domain::policy::{DurabilityMode, SyncScope};

use super::faults::Fault;
use super::server::{Disk, Hang};
use super::store::StoreTrouble;
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
        let sync_scope = SyncScope::Local;
        Settings { controllers: self.controllers, durability: self.durability, sync_scope, gentle: false, mutant: None }
    }
}

pub const fn at(after_millis: u64, fault: Fault, lasts_millis: u64) -> Scripted {
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
    Scenario {
        // The leader, about to be none, answered heartbeats and granted nothing; the primary took that for a renewal.
        name: "store_majority_lost_for_longer_than_a_leadership_lasts",
        controllers: 3,
        durability: DurabilityMode::Sync,
        faults: &[at(700, Fault::Store(StoreTrouble::Fails), 12_000)],
        outage_seconds: 1,
    },
    Scenario {
        // It waited for ever for a fence that was not wanted any more, and nothing else could be begun.
        name: "operator_takes_a_fence_back_before_the_agent_hears_of_it",
        controllers: 1,
        durability: DurabilityMode::Sync,
        faults: &[at(700, Fault::FromController(0), 6_000), at(100, Fault::OperatorFence(0), 200)],
        outage_seconds: 6,
    },
    Scenario {
        // The end was written once, and every later controller resumed an operation that was long over.
        name: "store_fails_at_the_end_of_a_failover",
        controllers: 1,
        durability: DurabilityMode::Sync,
        faults: &[at(700, Fault::KillPrimary, 0), at(330, Fault::Store(StoreTrouble::Fails), 4_000)],
        outage_seconds: 12,
    },
    Scenario {
        // The whole site loses its power, and comes back: every lease and promise is of another boot.
        name: "power_cycle_of_all_nodes_and_of_the_controller",
        controllers: 1,
        durability: DurabilityMode::Sync,
        faults: &[
            at(700, Fault::KillLeader, 9_000),
            at(0, Fault::CrashHost(0), 8_000),
            at(0, Fault::CrashHost(1), 8_000),
            at(0, Fault::CrashHost(2), 8_000),
        ],
        outage_seconds: 30,
    },
    Scenario {
        name: "every_controller_is_away_for_long",
        controllers: 3,
        durability: DurabilityMode::SyncStrict,
        faults: &[at(700, Fault::ControllersAway, 15_000)],
        outage_seconds: 1,
    },
    Scenario {
        name: "primary_cut_from_the_controllers_only",
        controllers: 3,
        durability: DurabilityMode::Sync,
        faults: &[at(700, Fault::FromController(0), 30_000)],
        outage_seconds: 1,
    },
    Scenario {
        name: "primary_cut_from_its_standbys_only",
        controllers: 3,
        durability: DurabilityMode::Sync,
        faults: &[at(700, Fault::FromHosts(0), 15_000)],
        outage_seconds: 6,
    },
    Scenario {
        name: "leadership_revoked_under_a_leader_that_believes_in_it",
        controllers: 3,
        durability: DurabilityMode::Sync,
        faults: &[at(700, Fault::RevokeLeadership, 0), at(1_500, Fault::KillPrimary, 0)],
        outage_seconds: 6,
    },
    Scenario {
        name: "leader_and_primary_host_lost_together",
        controllers: 3,
        durability: DurabilityMode::Sync,
        faults: &[at(700, Fault::CrashHost(0), 30_000), at(0, Fault::KillLeader, 30_000)],
        outage_seconds: 14,
    },
    Scenario {
        // The first write of its journal came after the second.
        name: "operator_fences_a_standby",
        controllers: 1,
        durability: DurabilityMode::Sync,
        faults: &[at(700, Fault::OperatorFence(2), 1_000)],
        outage_seconds: 1,
    },
    Scenario {
        // The promotion arrived after its node had reported as a standby: the old primary got the next epoch, without the
        // commits that the new one had confirmed.
        name: "store_lost_in_the_middle_of_a_failover",
        controllers: 1,
        durability: DurabilityMode::Sync,
        faults: &[
            at(700, Fault::SlowLinks(800), 12_000),
            at(500, Fault::KillPrimary, 0),
            at(1_500, Fault::LoseStore, 100),
        ],
        outage_seconds: 40,
    },
    Scenario {
        // Whoever is promoted dies soon: what all of them have in common kills them. Nobody is promoted who lacks a commit, and
        // the cluster is there as soon as the cause is gone.
        name: "every_primary_dies_soon_after_its_promotion",
        controllers: 1,
        durability: DurabilityMode::Sync,
        faults: &[
            at(700, Fault::KillPrimary, 0),
            at(2_500, Fault::KillPrimary, 0),
            at(2_500, Fault::KillPrimary, 0),
            at(2_500, Fault::KillPrimary, 0),
            at(2_500, Fault::KillPrimary, 0),
            at(2_500, Fault::KillPrimary, 0),
            at(2_500, Fault::KillPrimary, 0),
            at(2_500, Fault::KillPrimary, 0),
            at(2_500, Fault::KillPrimary, 0),
            at(2_500, Fault::KillPrimary, 0),
        ],
        outage_seconds: 6,
    },
    Scenario {
        name: "store_and_primary_host_lost_together",
        controllers: 3,
        durability: DurabilityMode::Sync,
        faults: &[at(700, Fault::CrashHost(0), 9_000), at(1_000, Fault::LoseStore, 0)],
        outage_seconds: 40,
    },
];
