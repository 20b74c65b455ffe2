//! Timers of a cluster as a status shows them: what is in force, what they prove, what they cost.
//!
//! Nothing is worked out here.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Timers of the lease protocol, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TimerStatus {
    /// Target.
    pub rto_seconds: f64,
    /// Length of a lease.
    pub lease_seconds: f64,
    /// Between renewals.
    pub renewal_interval_seconds: f64,
    /// For one renewal.
    pub request_timeout_seconds: f64,
    /// Kept for stopping PostgreSQL.
    pub stop_budget_seconds: f64,
    /// How long a leader waits for expiry.
    pub wait_seconds: f64,
    /// The last part of the stop budget, for SIGKILL.
    #[serde(default)]
    pub kill_budget_seconds: f64,
    /// Bound on how far clocks run apart during one lease.
    #[serde(default)]
    pub drift_seconds: f64,
    /// How long a standby's promise binds.
    #[serde(default)]
    pub promise_seconds: f64,
    /// For how long a deposed controller may believe that it leads; `null` with one controller.
    #[serde(default)]
    pub leadership_ttl_seconds: Option<f64>,
    /// What must hold between them, with its numbers.
    #[serde(default)]
    pub rules: Vec<TimerRule>,
    /// How long each class of fault stops the writers before a promotion begins.
    #[serde(default)]
    pub outages: Vec<ExpectedOutage>,
}

/// A rule that the timers must keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TimerRule {
    /// In the words of the settings.
    pub rule: String,
    /// Left side, worked out.
    pub left_seconds: f64,
    /// Right side.
    pub right_seconds: f64,
    /// Whether it holds.
    pub holds: bool,
    /// Expected, and no matter of safety.
    #[serde(default)]
    pub is_expectation: bool,
    /// The whole of it as `config check` prints it.
    pub statement: String,
}

/// How long one class of fault stops the writers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExpectedOutage {
    /// What happens.
    pub fault: String,
    /// At most, before a promotion begins; `null`: no bound.
    pub at_most_seconds: Option<f64>,
    /// The whole of it as `config check` prints it.
    pub statement: String,
}
