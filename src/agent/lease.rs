//! Bookkeeping of the node's own lease: what a grant is worth, when to stop, when it has run out.
//!
//! Pure: every moment is handed in. A grant never makes a deadline earlier, and never revives an epoch that was left.

use crate::domain::clock::Moment;
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::lease::{Grant, LeaseTimers};
use crate::ports::agent::HeldLease;

/// Why a grant is worth nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantRefused {
    /// For another epoch than the one the node knows.
    #[error("the grant is for epoch {granted} and the node is in epoch {known}")]
    OtherEpoch {
        /// Epoch granted in.
        granted: Epoch,
        /// Highest epoch of the node.
        known: Epoch,
    },
    /// The node confirmed that it will never write in that epoch again.
    #[error("the node confirmed its fence in epoch {0} and is authorised again only in a newer one")]
    Fenced(Epoch),
    /// From an older record than the grant before.
    #[error("the grant carries record number {granted}, older than {known}")]
    OldNumber {
        /// Number of this grant.
        granted: RecordNumber,
        /// Number of the one in force.
        known: RecordNumber,
    },
    /// The moment that it counts from has not come: it belongs to the clock of an earlier boot.
    #[error("the grant counts from a moment that has not come: the host was rebooted since the request")]
    OtherBoot,
    /// Already run out, or too late to stop PostgreSQL in time.
    #[error("the grant came when the time to stop PostgreSQL had already begun")]
    TooLate,
}

/// The lease that a node holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Epoch granted in.
    pub epoch: Epoch,
    /// Record number of the newest grant.
    pub number: RecordNumber,
    /// When it ends.
    pub deadline: Moment,
    /// Timers of the newest grant.
    pub timers: LeaseTimers,
}

impl Lease {
    /// The moment from which the newest grant counts.
    pub fn renewed_at(&self) -> Moment {
        self.deadline.minus(self.timers.lease)
    }

    /// When the agent begins to stop PostgreSQL.
    pub fn fence_at(&self) -> Moment {
        self.deadline.minus(self.timers.stop_budget)
    }

    /// When the guard kills PostgreSQL.
    pub fn kill_at(&self) -> Moment {
        self.deadline.minus(self.timers.kill_budget)
    }

    /// As the guard keeps it.
    pub fn held(&self) -> HeldLease {
        HeldLease { epoch: self.epoch, deadline: self.deadline, kill_at: self.kill_at() }
    }
}

/// The node's lease over time.
#[derive(Debug, Clone, Default)]
pub struct LeaseBook {
    current: Option<Lease>,
    barred: Option<Epoch>,
}

impl LeaseBook {
    /// What `grant` would make of the lease, counted from `counted_from`. Changes nothing yet: the guard is told first.
    pub fn weigh(
        &self,
        grant: &Grant,
        counted_from: Moment,
        known_epoch: Epoch,
        now: Moment,
    ) -> Result<Lease, GrantRefused> {
        if grant.epoch != known_epoch {
            return Err(GrantRefused::OtherEpoch { granted: grant.epoch, known: known_epoch });
        }
        if self.barred.is_some_and(|barred| barred >= grant.epoch) {
            return Err(GrantRefused::Fenced(grant.epoch));
        }
        let before = self.current.filter(|lease| lease.epoch == grant.epoch);
        if let Some(before) = before
            && grant.number < before.number
        {
            return Err(GrantRefused::OldNumber { granted: grant.number, known: before.number });
        }
        if counted_from > now {
            return Err(GrantRefused::OtherBoot);
        }
        let counted = counted_from.plus(grant.timers.lease);
        let deadline = before.map_or(counted, |before| before.deadline.max(counted));
        let lease = Lease { epoch: grant.epoch, number: grant.number, deadline, timers: grant.timers };
        if now >= lease.fence_at() { Err(GrantRefused::TooLate) } else { Ok(lease) }
    }

    /// Puts a weighed lease in force, unless the epoch was left meanwhile or a later deadline is in force.
    /// True if it is.
    pub fn accept(&mut self, lease: Lease) -> bool {
        if self.barred.is_some_and(|barred| barred >= lease.epoch) {
            return false;
        }
        match &mut self.current {
            Some(current) if current.epoch == lease.epoch => {
                current.number = current.number.max(lease.number);
                if lease.deadline > current.deadline {
                    current.deadline = lease.deadline;
                    current.timers = lease.timers;
                }
            }
            current => *current = Some(lease),
        }
        true
    }

    /// Gives the lease back and accepts none of `epoch`, or before it, ever again.
    pub fn bar(&mut self, epoch: Epoch) {
        self.barred = self.barred.max(Some(epoch));
        if self.current.is_some_and(|lease| lease.epoch <= epoch) {
            self.current = None;
        }
    }

    /// The lease, while it has not run out.
    pub fn valid(&self, now: Moment) -> Option<Lease> {
        self.current.filter(|lease| now < lease.deadline)
    }

    /// The lease, run out or not.
    pub fn current(&self) -> Option<Lease> {
        self.current
    }

    /// True if nothing may run as primary in `epoch`.
    pub fn is_barred(&self, epoch: Epoch) -> bool {
        self.barred.is_some_and(|barred| barred >= epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn timers() -> LeaseTimers {
        LeaseTimers::for_rto(Duration::from_secs(5))
    }

    fn grant(epoch: u64, number: u64) -> Grant {
        Grant { epoch: Epoch(epoch), number: RecordNumber(number), timers: timers() }
    }

    fn seconds(count: u64) -> Moment {
        Moment(count * 1_000_000)
    }

    #[test]
    fn a_grant_counts_from_the_moment_the_heartbeat_was_sent() {
        let book = LeaseBook::default();
        let lease = book.weigh(&grant(3, 1), seconds(10), Epoch(3), seconds(11)).unwrap();
        assert_eq!(lease.deadline, seconds(13));
        assert_eq!(lease.fence_at(), seconds(13).minus(timers().stop_budget));
        assert!(lease.fence_at() < lease.kill_at() && lease.kill_at() < lease.deadline);
        assert_eq!(book.weigh(&grant(3, 1), seconds(10), Epoch(3), seconds(13)), Err(GrantRefused::TooLate));
    }

    #[test]
    fn a_grant_from_before_a_reboot_is_worth_nothing() {
        let book = LeaseBook::default();
        assert_eq!(book.weigh(&grant(3, 1), seconds(900_000), Epoch(3), seconds(30)), Err(GrantRefused::OtherBoot));
    }

    #[test]
    fn only_the_known_epoch_is_granted() {
        let book = LeaseBook::default();
        for granted in [2, 4] {
            assert!(matches!(
                book.weigh(&grant(granted, 1), seconds(1), Epoch(3), seconds(1)),
                Err(GrantRefused::OtherEpoch { .. })
            ));
        }
    }

    #[test]
    fn fence_confirmed_then_same_epoch_again() {
        let mut book = LeaseBook::default();
        let lease = book.weigh(&grant(3, 1), seconds(1), Epoch(3), seconds(1)).unwrap();
        book.bar(Epoch(3));
        assert!(!book.accept(lease), "a grant that was on its way while the node fenced itself");
        assert_eq!(book.weigh(&grant(3, 9), seconds(1), Epoch(3), seconds(1)), Err(GrantRefused::Fenced(Epoch(3))));
        let next = book.weigh(&grant(4, 10), seconds(1), Epoch(4), seconds(1)).unwrap();
        assert!(book.accept(next));
        book.bar(Epoch(3));
        assert_eq!(book.valid(seconds(1)), Some(next), "an old fence does not end a newer lease");
    }

    #[test]
    fn an_older_record_number_is_ignored() {
        let mut book = LeaseBook::default();
        let lease = book.weigh(&grant(3, 7), seconds(1), Epoch(3), seconds(1)).unwrap();
        book.accept(lease);
        assert!(matches!(
            book.weigh(&grant(3, 6), seconds(2), Epoch(3), seconds(2)),
            Err(GrantRefused::OldNumber { .. })
        ));
    }

    proptest! {
        #[test]
        fn a_deadline_only_grows(grants in prop::collection::vec((0_u64..20, 0_u64..5), 1..40)) {
            let mut book = LeaseBook::default();
            let mut latest = Moment(0);
            for (sent, number) in grants {
                if let Ok(lease) = book.weigh(&grant(1, number), seconds(sent), Epoch(1), seconds(sent)) {
                    book.accept(lease);
                }
                let deadline = book.current().map_or(Moment(0), |lease| lease.deadline);
                prop_assert!(deadline >= latest);
                latest = deadline;
            }
        }
    }
}
