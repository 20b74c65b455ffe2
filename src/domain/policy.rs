//! What the operator wants of a cluster; the same for every node and every decision.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lease::LeaseTimers;

/// When a commit counts as confirmed (design, rule 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DurabilityMode {
    /// Confirmed by a synchronous standby; the store may let a lone primary go on, loudly.
    Sync,
    /// Confirmed by a synchronous standby; without one, writes wait.
    SyncStrict,
    /// Confirmed by the primary alone; automatic failover only within `max_lag_bytes`.
    Async,
}

impl DurabilityMode {
    /// As it is written in the configuration.
    pub fn label(self) -> &'static str {
        match self {
            DurabilityMode::Sync => "sync",
            DurabilityMode::SyncStrict => "sync_strict",
            DurabilityMode::Async => "async",
        }
    }
}

/// Who confirms commits, in the synchronous modes (design, rule 7): whether a lost site can be left without loss, by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncScope {
    /// One standby, of the primary's own site if there is one: quick, and a lost site is a human's decision.
    #[default]
    Local,
    /// One standby of another site; in `sync` one of the own site while no other can, which is told.
    OtherSite,
    /// One standby of each site, the own one among them where the primary has a neighbour.
    EachSite,
}

impl SyncScope {
    /// Every one.
    pub const ALL: [SyncScope; 3] = [SyncScope::Local, SyncScope::OtherSite, SyncScope::EachSite];

    /// As it is written in the configuration.
    pub fn label(self) -> &'static str {
        match self {
            SyncScope::Local => "local",
            SyncScope::OtherSite => "other_site",
            SyncScope::EachSite => "each_site",
        }
    }
}

/// Rules that every decision obeys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// When a commit counts as confirmed.
    pub durability: DurabilityMode,
    /// Who confirms it, in the synchronous modes.
    #[serde(default)]
    pub sync_scope: SyncScope,
    /// Target for the time without writes after an unplanned loss.
    pub rto: Duration,
    /// The timers that follow from `rto`, after overrides.
    pub timers: LeaseTimers,
    /// For how long a controller that was deposed may believe that it leads; zero where there is only one controller.
    #[serde(default)]
    pub leadership_ttl: Duration,
    /// How long commits wait for a synchronous standby that is gone, where no other streams. Then, in `sync`, the primary goes on
    /// alone.
    #[serde(default = "default_patience")]
    pub sync_standby_patience: Duration,
    /// In `async`: a standby further behind, in bytes of WAL, is not promoted automatically.
    pub max_lag_bytes: u64,
    /// How long the write probe may fail, on a PostgreSQL that runs, before the primary counts as gray.
    pub gray_after: Duration,
    /// Age at which a node's last report no longer counts as known.
    pub report_stale_after: Duration,
    /// How long a switchover may take until it is undone.
    pub switchover_timeout: Duration,
    /// A switchover is refused while a standby lags more than this, in bytes of WAL.
    pub switchover_max_lag_bytes: u64,
    /// A switchover does not shut a primary down that has written more WAL than this since its checkpoint began: its shutdown
    /// would write as much once more, and clients would wait (design, rule 10).
    #[serde(default = "default_switchover_max_dirty_bytes")]
    pub switchover_max_dirty_bytes: u64,
    /// Former primaries and empty nodes are brought back without being asked.
    pub rejoin_automatically: bool,
    /// Rewind or reclone that failed is tried again after this.
    pub rejoin_retry_after: Duration,
    /// A name in DNS follows the primary from site to site.
    #[serde(default)]
    pub keeps_name: bool,
    /// What predictions may do.
    #[serde(default)]
    pub prediction: PredictionPolicy,
}

/// What predictions may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionMode {
    /// They are shown, and change nothing else.
    Observe,
    /// They warn, and say what would be done.
    #[default]
    Advise,
    /// They start a switchover, within their guards.
    Act,
}

impl PredictionMode {
    /// As it is written in the configuration.
    pub fn label(self) -> &'static str {
        match self {
            PredictionMode::Observe => "observe",
            PredictionMode::Advise => "advise",
            PredictionMode::Act => "act",
        }
    }
}

/// The guards of predictions (design, rule 9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PredictionPolicy {
    /// What they may do.
    pub mode: PredictionMode,
    /// An alarm counts once it has lasted for so long.
    pub confirm_after: Duration,
    /// An alarm is over once the model was silent for so long.
    pub release_after: Duration,
    /// A risk that is older counts as unknown.
    pub stale_after: Duration,
    /// The least risk that counts, in thousandths.
    pub risk_per_mille_min: u16,
    /// What runs out within this time counts.
    pub horizon: Duration,
    /// One predictive switchover in each window of this length.
    pub budget_window: Duration,
}

impl PredictionPolicy {
    /// What follows from the time between two samples: three of them confirm an alarm, and five end one.
    pub fn for_step(step: Duration) -> Self {
        Self {
            mode: PredictionMode::default(),
            confirm_after: step * 3,
            release_after: step * 5,
            stale_after: step * 4,
            risk_per_mille_min: 500,
            horizon: step * 60,
            budget_window: Duration::from_secs(6 * 3600),
        }
    }
}

impl Default for PredictionPolicy {
    fn default() -> Self {
        Self::for_step(Duration::from_secs(15))
    }
}

fn default_patience() -> Duration {
    Duration::from_millis(1_500)
}

/// A disk that writes 100 MB a second needs some seconds for it.
pub fn default_switchover_max_dirty_bytes() -> u64 {
    256 * 1024 * 1024
}

impl Policy {
    /// The timers of a grant that ends before the leadership may; `None` if there is no time for one. `leads_for`: for how much
    /// longer the controller certainly leads; `None`: it is the only one.
    pub fn timers_within(&self, leads_for: Option<Duration>) -> Option<LeaseTimers> {
        match leads_for {
            None => Some(self.timers),
            Some(left) => self.timers.shortened_to(left),
        }
    }

    /// How long a new leader waits before it calls any lease expired: what earlier leaders granted ends by then (rule 4).
    pub fn new_leader_wait(&self) -> Duration {
        self.timers.wait().max(self.leadership_ttl + self.timers.drift)
    }

    /// The policy that follows from a target RTO, everything else at its default.
    pub fn for_rto(rto: Duration) -> Self {
        let timers = LeaseTimers::for_rto(rto);
        Self {
            durability: DurabilityMode::Sync,
            sync_scope: SyncScope::Local,
            rto,
            timers,
            leadership_ttl: Duration::ZERO,
            sync_standby_patience: timers.renewal_interval * 3,
            max_lag_bytes: 1024 * 1024,
            gray_after: rto.mul_f64(0.3),
            report_stale_after: timers.renewal_interval * 3,
            switchover_timeout: Duration::from_secs(10),
            switchover_max_lag_bytes: 16 * 1024 * 1024,
            switchover_max_dirty_bytes: default_switchover_max_dirty_bytes(),
            rejoin_automatically: true,
            rejoin_retry_after: Duration::from_secs(10),
            keeps_name: false,
            prediction: PredictionPolicy::default(),
        }
    }
}
