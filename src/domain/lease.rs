//! The lease: the right to accept writes until a time, and the timers that keep it safe.
//!
//! All timers derive from one target, `failover.rto`, and can be overridden one by one;
//! [`LeaseTimers::check`] proves the inequality of rule 3 before anything starts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::epoch::{Epoch, RecordNumber};

/// Smallest write outage that the timers can promise. Below it, the time that SIGKILL of a large family of
/// processes takes no longer fits the stop budget.
pub const RTO_MIN: Duration = Duration::from_secs(2);

/// The timers of the lease protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTimers {
    /// How long a grant lasts, counted by the holder from the moment it *sent* the request.
    pub lease: Duration,
    /// Time between two heartbeats, each of which renews.
    pub renewal_interval: Duration,
    /// How long one heartbeat may take.
    pub request_timeout: Duration,
    /// Before the lease ends, time kept for stopping PostgreSQL: fast, then immediate, then SIGKILL.
    pub stop_budget: Duration,
    /// The last part of the stop budget, in which the guard sends SIGKILL without asking anybody.
    pub kill_budget: Duration,
    /// Bound on how far two hosts' clocks run apart during one lease. Lengthens the wait and every promise, never the lease.
    pub drift: Duration,
}

/// A timer setting that could lead to two writers, or that leaves no room for one lost heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimerContradiction {
    /// The healthy primary would be fenced by one slow heartbeat.
    #[error(
        "renewal_interval {renewal_interval:?} + request_timeout {request_timeout:?} must be less than lease {lease:?} - stop_budget {stop_budget:?}: \
         shorten the first two or lengthen the lease"
    )]
    RenewalTooSlow {
        /// See [`LeaseTimers::renewal_interval`].
        renewal_interval: Duration,
        /// See [`LeaseTimers::request_timeout`].
        request_timeout: Duration,
        /// See [`LeaseTimers::lease`].
        lease: Duration,
        /// See [`LeaseTimers::stop_budget`].
        stop_budget: Duration,
    },
    /// The guard would begin to kill before the agent may begin to stop.
    #[error("kill_budget {kill_budget:?} must not exceed stop_budget {stop_budget:?}")]
    KillBeforeStop {
        /// See [`LeaseTimers::kill_budget`].
        kill_budget: Duration,
        /// See [`LeaseTimers::stop_budget`].
        stop_budget: Duration,
    },
    /// SIGKILL of a family of processes was measured to take longer than this.
    #[error(
        "kill_budget {kill_budget:?} is less than {least:?}, the worst time that killing PostgreSQL's processes takes"
    )]
    KillTooShort {
        /// See [`LeaseTimers::kill_budget`].
        kill_budget: Duration,
        /// [`KILL_WORST`].
        least: Duration,
    },
    /// Clocks may differ by more than the bound.
    #[error(
        "drift {drift:?} is less than 0.5 % of the lease {lease:?}: two healthy clocks may run apart by more, and a lease would be \
         called expired while its holder still writes"
    )]
    DriftTooSmall {
        /// See [`LeaseTimers::drift`].
        drift: Duration,
        /// See [`LeaseTimers::lease`].
        lease: Duration,
    },
}

/// Bound on the time to kill a family of PostgreSQL processes until two scans are empty.
/// Each fence logs and exports how long it really took, so that a host where this is too short is seen.
pub const KILL_WORST: Duration = Duration::from_millis(120);

impl LeaseTimers {
    /// Timers for a target RTO: 60 % of it is the lease, so that a lost host is replaced with 40 % to spare;
    /// a lease holds six renewals, so that three lost heartbeats in a row fence nobody.
    pub fn for_rto(rto: Duration) -> Self {
        let lease = rto.mul_f64(0.6);
        Self {
            lease,
            renewal_interval: rto.mul_f64(0.1),
            request_timeout: rto.mul_f64(0.2),
            stop_budget: rto.mul_f64(0.16),
            kill_budget: rto.mul_f64(0.06).max(KILL_WORST),
            drift: lease.mul_f64(0.01) + Duration::from_millis(20),
        }
    }

    /// How long a leader waits after its last possible grant before it calls the lease expired.
    pub fn wait(&self) -> Duration {
        self.lease + self.drift
    }

    /// How long a candidate that granted a lease promises not to be promoted.
    pub fn promise(&self) -> Duration {
        self.lease + self.drift
    }

    /// How far two healthy clocks may run apart during one lease: no smaller bound is safe.
    pub fn drift_least(&self) -> Duration {
        self.lease.mul_f64(0.005)
    }

    /// The same timers with a lease of at most `longest`; `None` if no safe lease is that short.
    pub fn shortened_to(&self, longest: Duration) -> Option<Self> {
        let shortened = Self { lease: self.lease.min(longest), ..*self };
        shortened.check().is_ok().then_some(shortened)
    }

    /// Proves the inequality of design rule 3.
    pub fn check(&self) -> Result<(), TimerContradiction> {
        if self.renewal_interval + self.request_timeout >= self.lease.saturating_sub(self.stop_budget) {
            return Err(TimerContradiction::RenewalTooSlow {
                renewal_interval: self.renewal_interval,
                request_timeout: self.request_timeout,
                lease: self.lease,
                stop_budget: self.stop_budget,
            });
        }
        if self.kill_budget > self.stop_budget {
            return Err(TimerContradiction::KillBeforeStop {
                kill_budget: self.kill_budget,
                stop_budget: self.stop_budget,
            });
        }
        if self.kill_budget < KILL_WORST {
            return Err(TimerContradiction::KillTooShort { kill_budget: self.kill_budget, least: KILL_WORST });
        }
        if self.drift < self.drift_least() {
            return Err(TimerContradiction::DriftTooSmall { drift: self.drift, lease: self.lease });
        }
        Ok(())
    }
}

/// The right to accept writes in `epoch` for `timers.lease`, counted from the moment the holder sent its request.
///
/// The timers travel with the right, so that controller and agent cannot disagree about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The epoch granted in.
    pub epoch: Epoch,
    /// The record number the grantor knew.
    pub number: RecordNumber,
    /// Length of the lease and everything that the holder derives from it.
    pub timers: LeaseTimers,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_timers_hold_the_inequality_for_every_target() {
        for seconds in [2.0, 2.5, 5.0, 30.0, 300.0] {
            let timers = LeaseTimers::for_rto(Duration::from_secs_f64(seconds));
            assert_eq!(timers.check(), Ok(()), "rto {seconds}s gave {timers:?}");
            // The drift bound lengthens the leader's wait and every promise, never the lease.
            assert_eq!((timers.wait(), timers.promise()), (timers.lease + timers.drift, timers.lease + timers.drift));
        }
    }

    #[test]
    fn contradicting_timers_are_refused() {
        let good = LeaseTimers::for_rto(Duration::from_secs(5));
        let slow = LeaseTimers { request_timeout: Duration::from_secs(2), ..good };
        assert!(matches!(slow.check(), Err(TimerContradiction::RenewalTooSlow { .. })));
        let inverted = LeaseTimers { kill_budget: Duration::from_secs(1), ..good };
        assert!(matches!(inverted.check(), Err(TimerContradiction::KillBeforeStop { .. })));
        let hasty = LeaseTimers { kill_budget: Duration::from_millis(1), ..good };
        assert!(matches!(hasty.check(), Err(TimerContradiction::KillTooShort { .. })));
        let drifting = LeaseTimers { drift: Duration::ZERO, ..good };
        assert!(matches!(drifting.check(), Err(TimerContradiction::DriftTooSmall { .. })));
    }
}
