//! What the writers were told, and what follows from it: outage, lost and duplicate commits, two writers. Pure.
//!
//! Invariant: only a write that PostgreSQL confirmed without a warning is an acknowledgement.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::clock::Moment;

/// One acknowledged commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// Who wrote.
    pub writer: u32,
    /// What: counts from 0 for each writer; a number is never used twice.
    pub sequence: u64,
    /// When the client had the confirmation in hand.
    pub at: Moment,
    /// Where, by the server's own word.
    pub server: String,
    /// On which timeline, by the server's own word.
    pub timeline: u32,
}

/// How often each (writer, sequence) is in the table of the final primary.
pub type Rows = BTreeMap<(u32, u64), u64>;

/// Acknowledgements held against the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Audit {
    /// Acknowledged and not there.
    pub lost: u64,
    /// There more than once.
    pub duplicate: u64,
    /// There and never acknowledged: unknown outcomes that happened. Allowed.
    pub unacknowledged: u64,
}

/// Holds acknowledgements against the table.
pub fn audit(acknowledgements: &[Acknowledgement], rows: &Rows) -> Audit {
    let acknowledged: std::collections::BTreeSet<(u32, u64)> =
        acknowledgements.iter().map(|ack| (ack.writer, ack.sequence)).collect();
    Audit {
        lost: acknowledged.iter().filter(|key| !rows.contains_key(*key)).count() as u64,
        duplicate: rows.values().filter(|count| **count > 1).count() as u64,
        unacknowledged: rows.keys().filter(|key| !acknowledged.contains(*key)).count() as u64,
    }
}

/// The longest time between two acknowledged commits that touches `[fault, healed]`; a silence that lasts until
/// `observed_until` counts as far as it was observed. `None` if nothing was ever acknowledged.
pub fn longest_gap(
    acknowledgements: &[Acknowledgement],
    fault: Moment,
    healed: Moment,
    observed_until: Moment,
) -> Option<Duration> {
    let mut times: Vec<Moment> = acknowledgements.iter().map(|ack| ack.at).collect();
    times.sort_unstable();
    let last = *times.last()?;
    if last < observed_until {
        times.push(observed_until);
    }
    times
        .windows(2)
        .filter(|pair| pair[1] >= fault && pair[0] <= healed)
        .map(|pair| pair[1].since(pair[0]))
        .max()
        .or(Some(Duration::ZERO))
}

/// True if any writer had a commit of an older epoch acknowledged after the first of a newer one. What a server itself says of its
/// epoch is its timeline: each promotion begins one. So two servers on one timeline are two writers as well.
pub fn two_writers(acknowledgements: &[Acknowledgement]) -> bool {
    let mut first: BTreeMap<u32, (Moment, &str)> = BTreeMap::new();
    for ack in acknowledgements {
        let (at, _) = first.entry(ack.timeline).or_insert((ack.at, &ack.server));
        *at = (*at).min(ack.at);
    }
    acknowledgements.iter().any(|ack| {
        let is_late = first.range(ack.timeline.saturating_add(1)..).any(|(_, (newer_began, _))| ack.at > *newer_began);
        is_late || first.get(&ack.timeline).is_some_and(|(_, server)| *server != ack.server)
    })
}

/// Commits in each second of `[from, to]`, for the check that the load was as strong as promised.
pub fn rate_per_second(acknowledgements: &[Acknowledgement], from: Moment, to: Moment) -> f64 {
    let count = acknowledgements.iter().filter(|ack| ack.at >= from && ack.at <= to).count();
    let seconds = to.since(from).as_secs_f64();
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(writer: u32, sequence: u64, at_milliseconds: u64, timeline: u32) -> Acknowledgement {
        Acknowledgement { writer, sequence, at: Moment(at_milliseconds * 1000), server: "127.0.0.1".into(), timeline }
    }

    fn milliseconds(number: u64) -> Moment {
        Moment(number * 1000)
    }

    #[test]
    fn the_outage_is_the_longest_gap_around_the_fault_and_not_one_before_it() {
        let acks = [ack(0, 0, 0, 1), ack(0, 1, 900, 1), ack(1, 0, 1000, 1), ack(1, 1, 1250, 2), ack(0, 2, 1260, 2)];
        let gap = longest_gap(&acks, milliseconds(1010), milliseconds(1300), milliseconds(1300));
        assert_eq!(gap, Some(Duration::from_millis(250)));
        let touching = longest_gap(&acks, milliseconds(500), milliseconds(600), milliseconds(1300));
        assert_eq!(touching, Some(Duration::from_millis(900)), "the fault lies inside the gap");
    }

    #[test]
    fn acknowledgements_may_come_in_any_order() {
        let acks = [ack(1, 0, 1250, 2), ack(0, 0, 1000, 1)];
        assert_eq!(
            longest_gap(&acks, milliseconds(1100), milliseconds(1300), milliseconds(1300)),
            Some(Duration::from_millis(250))
        );
    }

    #[test]
    fn a_silence_without_end_is_an_outage_as_long_as_somebody_looked() {
        let acks = [ack(0, 0, 0, 1), ack(0, 1, 100, 1)];
        assert_eq!(
            longest_gap(&acks, milliseconds(100), milliseconds(9000), milliseconds(9000)),
            Some(Duration::from_millis(8900))
        );
        assert_eq!(longest_gap(&[], milliseconds(0), milliseconds(1), milliseconds(1)), None);
    }

    #[test]
    fn two_writers_is_an_older_timeline_after_the_first_of_a_newer_one() {
        assert!(!two_writers(&[ack(0, 0, 10, 1), ack(1, 0, 20, 1), ack(0, 1, 30, 2), ack(1, 1, 40, 2)]));
        assert!(two_writers(&[ack(0, 0, 10, 1), ack(0, 1, 30, 2), ack(9, 0, 31, 1)]), "a bypassing writer counts");
        assert!(two_writers(&[ack(0, 0, 10, 1), ack(0, 1, 50, 3), ack(1, 1, 60, 2)]), "any pair of timelines");
        assert!(!two_writers(&[]));
        let elsewhere = Acknowledgement { server: "127.0.0.2".into(), ..ack(1, 0, 20, 1) };
        assert!(two_writers(&[ack(0, 0, 10, 1), elsewhere]), "two servers on one timeline");
    }

    #[test]
    fn lost_duplicate_and_unacknowledged_are_told_apart() {
        let acks = [ack(0, 0, 10, 1), ack(0, 1, 20, 1), ack(1, 0, 30, 1)];
        let rows = Rows::from([((0, 0), 1), ((1, 0), 2), ((1, 7), 1)]);
        assert_eq!(audit(&acks, &rows), Audit { lost: 1, duplicate: 1, unacknowledged: 1 });
        assert_eq!(audit(&[], &Rows::new()), Audit::default());
    }

    #[test]
    fn the_rate_counts_only_the_window() {
        let acks: Vec<_> = (0..100).map(|number| ack(0, number, number * 20, 1)).collect();
        let rate = rate_per_second(&acks, milliseconds(0), milliseconds(999));
        assert!((rate - 50.0).abs() < 1.0, "{rate}");
    }
}
