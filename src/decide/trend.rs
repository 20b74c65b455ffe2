//! What a node's own agent has said lately, and what runs out if it goes on like that. No model and no Prometheus is needed for it.
//!
//! The controller keeps one [`Trend`] a node and feeds it every report; nothing here decides.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::Duration;

use crate::domain::clock::Moment;
use crate::domain::report::{LiveReport, ProbeTimes, Report};
use crate::domain::risk::{Exhaustion, Resource, Slowdown, WalCongestion};
use crate::domain::work::WorkReport;

/// Samples that are kept: as many as the horizon has steps.
const SAMPLES_KEPT: usize = 60;
/// A line is drawn through the last of them: a third of the horizon says where the rest of it leads.
const SAMPLES_FITTED: usize = 20;
/// Fewer are an accident.
const SAMPLES_MIN: usize = 8;
/// Share of the variance that the line must explain: a checkpoint's sawtooth and a busy hour are no line.
const FIT_MIN: f64 = 0.9;
/// Memory comes and goes by the moment, with every process that begins and every page that is read: it is the median of so many samples.
const MEMORY_STEADIED_OVER: usize = 5;
/// What has been lost while the line was drawn, of what was there: less is noise, whatever the line says.
const LOST_MIN: f64 = 0.05;
/// So many of the last samples must be slow: a disk that is about to fail makes some writes wait long before it makes all wait, and one
/// slow write is an accident.
const PROBES_SLOW: usize = 3;
/// The last samples of the write probe, of which so many count.
const PROBES_NOW: usize = 10;
/// Earlier ones without which nobody can say what is usual.
const PROBES_USUAL_MIN: usize = 15;
/// So much slower than usual is worth a word.
const SLOWER_MIN: f64 = 5.0;
/// But a checkpoint slows some writes of a healthy node, too: worth a word is what is slower than the slowest ones before.
const SLOWER_THAN_SLOWEST_MIN: f64 = 1.5;
/// And less than this is quick, however slow it is for this node.
const SLOW_MIN: Duration = Duration::from_millis(20);
/// So many clients that wait for WAL at the same moment are a crowd: one flushes and the others wait for it.
const WAL_CROWD: u32 = 3;
/// The last samples, in so many of which there must be a crowd.
const CROWDS_NOW: usize = 8;
const CROWDS_MIN: usize = 5;
/// How much longer a transaction takes in such a crowd than among the slowest ones before, if that is new.
const TRANSACTIONS_SLOWER_MIN: u32 = 2;
/// But what takes less is quick, however slow it is for this node.
const TRANSACTIONS_SLOW_MIN: Duration = Duration::from_millis(5);
/// Where nobody knows how long transactions take: a crowd in so many of as many samples before is nothing new. Bulk loads and checkpoints do
/// that.
const CROWDS_USUAL: usize = 3;
/// Not counted among what was before: the time in which a disk has become slow already.
const CROWDS_LATELY: usize = SAMPLES_KEPT / 2;
/// Transactions a second that write, of those before: a crowd that gets as much done as before is a busy hour. Those that only read do not
/// count: they may come and go, and the crowd is none of theirs.
const WRITES_LESS: f64 = 0.8;

/// What one report said, as far as it can run out.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    at: Moment,
    data_free_bytes: Option<f64>,
    wal_free_bytes: Option<f64>,
    connections_free: Option<f64>,
    memory_free_bytes: Option<f64>,
    in_recovery: bool,
    /// The mean of the probes since the sample before.
    write_probe: Option<Duration>,
    work: Option<Work>,
}

/// What a primary's clients got done since the sample before.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Work {
    /// Clients that wait for WAL to be flushed, at that moment.
    waiting_for_wal: u32,
    /// Transactions that had something to write.
    writes_per_second: f64,
    /// The mean time of its statements; `None` where PostgreSQL does not tell. Where none was committed, all of the time.
    transaction: Option<Duration>,
}

/// The last reports of one node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trend {
    samples: VecDeque<Sample>,
    /// Write probes by the last sample.
    writes: ProbeTimes,
    /// What the last sample said of the work that was done.
    work: Option<(WorkReport, Moment)>,
}

impl Trend {
    /// Takes a report in, at most one for each sixtieth of `horizon`. True if it was taken.
    pub fn hear(&mut self, report: &Report, now: Moment, horizon: Duration) -> bool {
        let interval = horizon / SAMPLES_KEPT as u32;
        if self.samples.back().is_some_and(|last| now.since(last.at) < interval) {
            return false;
        }
        let live = report.postgres.live.as_ref();
        let disk = report.postgres.disk;
        let write = &report.postgres.probes.write;
        // Agents of older versions do not count.
        let write_probe = if write.times.count == 0 { write.took } else { write.times.mean_since(self.writes) };
        self.writes = write.times;
        let work = self.work_done(live, now);
        self.samples.push_back(Sample {
            at: now,
            data_free_bytes: disk.map(|disk| number(disk.data_free_bytes)),
            wal_free_bytes: disk.map(|disk| number(disk.wal_free_bytes)),
            connections_free: live
                .and_then(|live| live.connections)
                .map(|used| f64::from(used.allowed.saturating_sub(used.used))),
            memory_free_bytes: report.postgres.memory.map(|memory| number(memory.available_bytes)),
            in_recovery: live.is_some_and(|live| live.in_recovery),
            write_probe: write_probe.filter(|_| live.is_some_and(|live| !live.in_recovery)),
            work,
        });
        while self.samples.len() > SAMPLES_KEPT {
            self.samples.pop_front();
        }
        true
    }

    fn work_done(&mut self, live: Option<&LiveReport>, now: Moment) -> Option<Work> {
        let told = live.and_then(|live| live.work).map(|work| (work, now));
        let before = std::mem::replace(&mut self.work, told);
        let ((until, at), (from, since)) = (told?, before?);
        let span = at.since(since);
        Some(Work {
            waiting_for_wal: until.waiting_for_wal,
            writes_per_second: number(until.writes?.checked_sub(from.writes?)?) / span.as_secs_f64(),
            transaction: transaction(&from, &until, span),
        })
    }

    /// The samples since the node was a standby, if it ever was.
    fn term(&self) -> impl Iterator<Item = &Sample> {
        let begins = self.samples.iter().rposition(|sample| sample.in_recovery).map_or(0, |last| last + 1);
        self.samples.iter().skip(begins)
    }

    /// Resources of which nothing is left within `horizon`, soonest first.
    pub fn exhaustions(&self, horizon: Duration) -> Vec<Exhaustion> {
        let data = self.series(horizon, |sample| sample.data_free_bytes);
        let wal = self.series(horizon, |sample| sample.wal_free_bytes);
        let connections = self.series(horizon, |sample| sample.connections_free);
        let memory = steadied(&self.series(horizon, |sample| sample.memory_free_bytes), MEMORY_STEADIED_OVER);
        // One filesystem is one resource.
        let wal = if wal == data { Vec::new() } else { wal };
        let resources = [
            (Resource::DataSpace, data),
            (Resource::WalSpace, wal),
            (Resource::Connections, connections),
            (Resource::Memory, memory),
        ];
        let mut found: Vec<Exhaustion> = resources
            .into_iter()
            .filter_map(|(resource, series)| {
                let (left, remaining) = time_to_nothing(&series)?;
                (remaining <= horizon).then_some(Exhaustion { resource, left, remaining })
            })
            .collect();
        found.sort_by_key(|exhaustion| (exhaustion.remaining, exhaustion.resource));
        found
    }

    /// The write probe, if it took much longer in several of the last samples than it used to take.
    pub fn slowdown(&self) -> Option<Slowdown> {
        let probes: Vec<Duration> = self.term().filter_map(|sample| sample.write_probe).collect();
        if probes.len() < PROBES_NOW + PROBES_USUAL_MIN {
            return None;
        }
        let (before, last) = probes.split_at(probes.len() - PROBES_NOW);
        let (usual, slowest, now) = (median(before), among_slowest(before), among_slowest(last));
        let is_slow = now >= SLOW_MIN
            && now.as_secs_f64() >= usual.as_secs_f64() * SLOWER_MIN
            && now.as_secs_f64() >= slowest.as_secs_f64() * SLOWER_THAN_SLOWEST_MIN;
        is_slow.then_some(Slowdown { usual, now })
    }

    /// Clients that wait for WAL to be flushed, most of the time of late, while a transaction takes much longer and fewer of those that
    /// write get through than usual. Where as many or more do, there is more to do.
    pub fn wal_congestion(&self) -> Option<WalCongestion> {
        let term: Vec<&Sample> = self.term().collect();
        let (before, lately) = term.split_at(term.len().checked_sub(CROWDS_LATELY)?);
        let work = |samples: &[&Sample]| samples.iter().filter_map(|sample| sample.work).collect::<Vec<Work>>();
        let (before, last) = (work(before), work(&lately[CROWDS_LATELY - CROWDS_NOW..]));
        let crowds = |work: &[Work]| work.iter().filter(|work| work.waiting_for_wal >= WAL_CROWD).count();
        if before.len() < PROBES_USUAL_MIN || crowds(&last) < CROWDS_MIN {
            return None;
        }
        let took = |work: &[Work]| work.iter().filter_map(|work| work.transaction).collect::<Vec<Duration>>();
        let (took_before, took_now) = (took(&before), took(&last));
        let is_known = took_before.len() >= PROBES_USUAL_MIN && took_now.len() >= CROWDS_MIN;
        let transactions = is_known.then(|| Slowdown { usual: median(&took_before), now: median(&took_now) });
        let is_new = match transactions {
            Some(slowdown) => {
                slowdown.now >= TRANSACTIONS_SLOW_MIN
                    && slowdown.now >= among_slowest(&took_before) * TRANSACTIONS_SLOWER_MIN
            }
            None => !before.windows(CROWDS_NOW).any(|work| crowds(work) >= CROWDS_USUAL),
        };
        let writes = |work: &[Work]| median_by(work.iter().map(|work| work.writes_per_second), f64::total_cmp);
        let waiting = median_by(last.iter().map(|work| work.waiting_for_wal), u32::cmp);
        let (writes_usual, writes_now) = (writes(&before), writes(&last));
        let is_less = writes_now <= writes_usual * WRITES_LESS;
        (is_new && is_less).then_some(WalCongestion { waiting, writes_usual, writes_now, transactions })
    }

    /// The last values in order, with their time in seconds; empty where one of them is missing.
    fn series(&self, horizon: Duration, value: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else { return Vec::new() };
        let skip = self.samples.len().saturating_sub(SAMPLES_FITTED);
        // What was before a long silence and what came after it would make two clouds, and any two of them are a line.
        let recent = self.samples.iter().skip(skip).filter(|sample| last.at.since(sample.at) <= horizon / 2);
        recent
            .map(|sample| Some((sample.at.since(first.at).as_secs_f64(), value(sample)?)))
            .collect::<Option<_>>()
            .unwrap_or_default()
    }
}

/// Each value but the first ones becomes the median of itself and those before it, `over` in all, at its own time.
fn steadied(series: &[(f64, f64)], over: usize) -> Vec<(f64, f64)> {
    let middle = |window: &[(f64, f64)]| {
        (window[window.len() - 1].0, median_by(window.iter().map(|(_, value)| *value), f64::total_cmp))
    };
    series.windows(over).map(middle).collect()
}

/// What is left, and the time until a straight line (least squares) through the series reaches zero: none, if it has. `None` where there
/// is no such line.
fn time_to_nothing(series: &[(f64, f64)]) -> Option<(f64, Duration)> {
    if series.len() < SAMPLES_MIN {
        return None;
    }
    let count = series.len() as f64;
    let mean = |pick: fn(&(f64, f64)) -> f64| series.iter().map(pick).sum::<f64>() / count;
    let (time_mean, value_mean) = (mean(|point| point.0), mean(|point| point.1));
    let sum = |pick: &dyn Fn(f64, f64) -> f64| {
        series.iter().map(|(time, value)| pick(time - time_mean, value - value_mean)).sum::<f64>()
    };
    let (times, values, both) =
        (sum(&|time, _| time * time), sum(&|_, value| value * value), sum(&|time, value| time * value));
    let ((_, first), (_, last)) = (series[0], series[series.len() - 1]);
    // What is used up stays used up and no longer falls.
    if last <= 0.0 {
        return Some((0.0, Duration::ZERO));
    }
    if times <= 0.0 || values <= 0.0 || both >= 0.0 {
        return None;
    }
    let fit = both * both / (times * values);
    if fit < FIT_MIN || (first - last) / first < LOST_MIN {
        return None;
    }
    let lost_per_second = -both / times;
    Duration::try_from_secs_f64(last / lost_per_second).ok().map(|remaining| (last, remaining))
}

/// How long the statements of a transaction took on average; all of the `span` where none was committed.
fn transaction(from: &WorkReport, until: &WorkReport, span: Duration) -> Option<Duration> {
    // The statistics may have been reset meanwhile.
    let commits = until.commits.checked_sub(from.commits)?;
    let milliseconds = until.statement_milliseconds?.checked_sub(from.statement_milliseconds?)?;
    if commits == 0 {
        return Some(span);
    }
    let took = Duration::try_from_secs_f64(number(milliseconds) / 1000.0 / number(commits)).ok();
    // With track_activities off PostgreSQL adds nothing up.
    took.filter(|took| !took.is_zero())
}

/// What so many probes took or more as make slow ones no accident.
fn among_slowest(probes: &[Duration]) -> Duration {
    let mut sorted = probes.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len().saturating_sub(PROBES_SLOW)]
}

fn median(values: &[Duration]) -> Duration {
    median_by(values.iter().copied(), Duration::cmp)
}

/// Of at least one value; of an even number the upper one of the two in the middle.
fn median_by<T: Copy>(values: impl Iterator<Item = T>, order: fn(&T, &T) -> Ordering) -> T {
    let mut sorted: Vec<T> = values.collect();
    sorted.sort_by(order);
    sorted[sorted.len() / 2]
}

#[expect(clippy::cast_precision_loss, reason = "the last bytes of a petabyte do not matter")]
fn number(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::tests::{edit, node, record, view};
    use crate::domain::report::{ConnectionReport, DiskReport, MemoryReport};

    const HORIZON: Duration = Duration::from_secs(60);

    fn report(change: impl FnOnce(&mut Report)) -> Report {
        let mut view = view(&record());
        edit(&mut view, "n1", change);
        view.report(&node("n1")).expect("known").clone()
    }

    /// A node that says, second by second, what `change` makes of it.
    fn heard(seconds: u64, change: impl Fn(&mut Report, u64)) -> Trend {
        let mut trend = Trend::default();
        for second in 0..seconds {
            let report = report(|report| change(report, second));
            trend.hear(&report, Moment(second * 1_000_000), HORIZON);
        }
        trend
    }

    fn disk(free: u64) -> Option<DiskReport> {
        Some(DiskReport { data_free_bytes: free, wal_free_bytes: free })
    }

    #[test]
    fn a_disk_that_fills_is_seen_with_the_time_that_is_left() {
        let trend = heard(20, |report, second| report.postgres.disk = disk(600_000_000 - second * 10_000_000));
        let found = trend.exhaustions(HORIZON);
        assert_eq!(found.len(), 1, "one filesystem is one resource: {found:?}");
        assert_eq!(found[0].resource, Resource::DataSpace);
        assert!((found[0].remaining.as_secs_f64() - 41.0).abs() < 0.5, "{:?}", found[0].remaining);
        assert!(trend.exhaustions(Duration::from_secs(20)).is_empty(), "beyond the horizon");
    }

    #[test]
    fn connections_that_leak_are_seen() {
        let trend = heard(20, |report, second| {
            let live = report.postgres.live.as_mut().expect("runs");
            live.connections = Some(ConnectionReport { used: 20 + 5 * second as u32, allowed: 197 });
        });
        let found = trend.exhaustions(HORIZON);
        assert_eq!(found.iter().map(|one| one.resource).collect::<Vec<_>>(), [Resource::Connections]);
        assert!(found[0].remaining < Duration::from_secs(20), "{:?}", found[0].remaining);
    }

    #[test]
    fn memory_that_is_taken_away_is_seen() {
        let trend = heard(20, |report, second| {
            let available_bytes = (32 << 20) - second * (1 << 20);
            report.postgres.memory = Some(MemoryReport { available_bytes, total_bytes: 1 << 30 });
        });
        let found = trend.exhaustions(HORIZON);
        assert_eq!(found.iter().map(|one| one.resource).collect::<Vec<_>>(), [Resource::Memory]);
        // As of two seconds ago: the median of five.
        assert!((found[0].remaining.as_secs_f64() - 15.0).abs() < 0.5, "{:?}", found[0].remaining);
    }

    #[test]
    fn memory_that_comes_and_goes_while_it_is_taken_away_is_seen() {
        let megabytes = |second: u64| 64 - second + if second.is_multiple_of(4) { 0 } else { 8 } + second * 7 % 3;
        let memory = |report: &mut Report, megabytes: u64| {
            report.postgres.memory = Some(MemoryReport { available_bytes: megabytes << 20, total_bytes: 1 << 30 });
        };
        let trend = heard(40, |report, second| memory(report, megabytes(second)));
        let found = trend.exhaustions(HORIZON);
        assert_eq!(found.iter().map(|one| one.resource).collect::<Vec<_>>(), [Resource::Memory]);
        let comes_and_goes = heard(40, |report, second| memory(report, 24 + megabytes(second % 2)));
        assert_eq!(comes_and_goes.exhaustions(HORIZON), []);
    }

    #[test]
    fn a_sawtooth_a_step_and_a_trickle_run_out_of_nothing() {
        for (words, free) in [
            ("sawtooth", (|second| 600_000_000 - second % 7 * 20_000_000) as fn(u64) -> u64),
            ("step", |second| if second < 10 { 600_000_000 } else { 300_000_000 }),
            ("trickle", |second| 600_000_000 - second * 1_000),
            ("growth", |second| 600_000_000 + second * 10_000_000),
            ("still", |_| 600_000_000),
        ] {
            let trend = heard(20, |report, second| report.postgres.disk = disk(free(second)));
            assert_eq!(trend.exhaustions(Duration::from_secs(86_400)), [], "{words}");
        }
    }

    #[test]
    fn what_is_used_up_stays_so_until_there_is_some_again() {
        let full = |second| if second < 10 { 100_000_000 - second * 10_000_000 } else { 0 };
        for seconds in [12, 20, 60] {
            let trend = heard(seconds, |report, second| report.postgres.disk = disk(full(second)));
            let found = trend.exhaustions(HORIZON);
            assert_eq!((found.len(), found[0].left, found[0].remaining), (1, 0.0, Duration::ZERO), "after {seconds} s");
        }
        let freed = |second| if second < 40 { full(second) } else { 100_000_000 };
        let trend = heard(60, |report, second| report.postgres.disk = disk(freed(second)));
        assert_eq!(trend.exhaustions(HORIZON), []);
    }

    #[test]
    fn what_was_before_a_long_silence_makes_no_line_with_what_came_after() {
        let mut trend = Trend::default();
        for (second, free) in (0..10).map(|second| (second, 600)).chain((40..49).map(|second| (second, 200))) {
            let report = report(|report| report.postgres.disk = disk(free * 1_000_000));
            trend.hear(&report, Moment(second * 1_000_000), HORIZON);
        }
        assert_eq!(trend.exhaustions(HORIZON), []);
    }

    #[test]
    fn a_gap_and_too_few_reports_say_nothing() {
        let falling = |second: u64| disk(600_000_000 - second * 10_000_000);
        let gap = heard(20, |report, second| report.postgres.disk = falling(second).filter(|_| second != 12));
        assert_eq!(gap.exhaustions(HORIZON), []);
        let few = heard(5, |report, second| report.postgres.disk = falling(second));
        assert_eq!(few.exhaustions(HORIZON), []);
    }

    #[test]
    fn a_write_probe_that_slows_down_is_seen_by_the_nodes_own_measure() {
        let slow = probed(|second| if second < 30 { 4 } else { 60 });
        let found = slow.slowdown().expect("slower");
        assert_eq!((found.usual, found.now), (Duration::from_millis(4), Duration::from_millis(60)));
        let some =
            |slow_ones: &'static [u64]| probed(|second| if slow_ones.contains(&second) { 60 + second } else { 4 });
        let found = some(&[31, 34, 38]).slowdown().expect("three of ten");
        assert_eq!((found.usual, found.now), (Duration::from_millis(4), Duration::from_millis(91)), "or more");
        assert_eq!(some(&[34, 38]).slowdown(), None, "two may be an accident");
        assert_eq!(some(&[8, 9, 10, 34, 35, 38]).slowdown(), None, "a checkpoint does that here");
        assert_eq!(some(&[10, 34, 38]).slowdown(), None, "and one of long ago is none of the last");
        assert_eq!(probed(|_| 60).slowdown(), None, "always was so");
        assert_eq!(probed(|second| if second < 30 { 1 } else { 8 }).slowdown(), None, "quick");
    }

    /// Forty seconds of a node with one write probe a second, in each of which it takes so many milliseconds.
    fn probed(milliseconds: impl Fn(u64) -> u64) -> Trend {
        heard(40, |report, second| {
            let took = (0..=second).map(|second| Duration::from_millis(milliseconds(second)));
            report.postgres.probes.write.times = took.fold(ProbeTimes::default(), ProbeTimes::and);
        })
    }

    #[test]
    fn write_probes_between_two_samples_count_too() {
        let probes = |second| [4, 4, if second < 30 { 4 } else { 112 }, 4].map(Duration::from_millis);
        let trend = heard(40, |report, second| {
            let took = (0..=second).flat_map(probes);
            report.postgres.probes.write.times = took.fold(ProbeTimes::default(), ProbeTimes::and);
        });
        let found = trend.slowdown().expect("none of them is the last of its second");
        assert_eq!((found.usual, found.now), (Duration::from_millis(4), Duration::from_millis(31)));
    }

    #[test]
    fn an_agent_that_begins_anew_and_a_probe_that_has_not_ended_are_no_slow_probes() {
        let times = |count| ProbeTimes { count, took: Duration::from_millis(4) * u32::try_from(count).expect("few") };
        let trend = heard(40, |report, second| report.postgres.probes.write.times = times(1 + second % 20 / 2));
        assert!(trend.samples.iter().all(|sample| sample.write_probe.is_none_or(|took| took.as_millis() == 4)));
        assert_eq!(trend.samples.iter().filter(|sample| sample.write_probe.is_some()).count(), 20);
    }

    /// A minute of a primary, second by second: so many clients wait for WAL, and so many transactions that write get through.
    fn writing(look: impl Fn(u64) -> (u32, u64)) -> Trend {
        heard(60, |report, second| work(report, &look, second))
    }

    fn work(report: &mut Report, look: &impl Fn(u64) -> (u32, u64), second: u64) {
        let writes = (0..=second).map(|second| look(second).1).sum();
        let live = report.postgres.live.as_mut().expect("runs");
        live.work = Some(WorkReport {
            active: 8,
            waiting_for_wal: look(second).0,
            commits: writes,
            statement_milliseconds: None,
            writes: Some(writes),
        });
    }

    #[test]
    fn clients_that_queue_for_a_disk_that_gets_slower_are_seen() {
        let slow = |from: u64| move |second: u64| if second < from { (1, 480) } else { (8, 370) };
        let seen = Some(WalCongestion { waiting: 8, writes_usual: 480.0, writes_now: 370.0, transactions: None });
        assert_eq!(writing(slow(52)).wal_congestion(), seen);
        assert_eq!(writing(slow(55)).wal_congestion(), seen, "five of eight");
        assert_eq!(writing(slow(35)).wal_congestion(), seen, "for some time");
        assert_eq!(writing(slow(56)).wal_congestion(), None, "not for long enough");
        let flickers = |second: u64| if second < 52 || second.is_multiple_of(2) { (1, 370) } else { (8, 370) };
        assert_eq!(writing(flickers).wal_congestion(), None, "half of the time");
        let told_late = heard(60, |report, second| {
            if second >= 40 {
                work(report, &slow(52), second);
            }
        });
        assert_eq!(told_late.wal_congestion(), None, "what was not told before is not known to be new");
    }

    #[test]
    fn more_work_and_what_is_usual_are_no_slow_disk() {
        let late = |second| second >= 52;
        let more = |commits: u64| writing(move |second| if late(second) { (8, commits) } else { (1, 480) });
        assert_eq!(more(900).wal_congestion(), None, "more writers");
        assert_eq!(more(400).wal_congestion(), None, "nearly as many commits as usual");
        assert!(more(380).wal_congestion().is_some());
        let before = |waiting: u32| {
            writing(move |second| (if late(second) { 8 } else { waiting }, if late(second) { 300 } else { 480 }))
        };
        assert!(before(2).wal_congestion().is_some());
        assert_eq!(before(3).wal_congestion(), None, "always so");
        let checkpoint = |seconds: u64| {
            writing(
                move |second| if late(second) || (10..10 + seconds).contains(&second) { (8, 300) } else { (0, 480) },
            )
        };
        assert!(checkpoint(2).wal_congestion().is_some());
        assert_eq!(checkpoint(3).wal_congestion(), None, "it was so a minute ago");
    }

    /// A minute of a primary on which there is always a crowd: second by second so many transactions that write, so many that only read,
    /// and the milliseconds that a transaction takes.
    fn crowded(look: impl Fn(u64) -> (u64, u64, u64)) -> Option<WalCongestion> {
        heard(60, |report, second| {
            let sum = |of: fn((u64, u64, u64)) -> u64| Some((0..=second).map(|second| of(look(second))).sum::<u64>());
            work(report, &|_| (8, 0), second);
            let work = report.postgres.live.as_mut().expect("runs").work.as_mut().expect("told");
            work.writes = sum(|(writes, _, _)| writes);
            work.commits = sum(|(writes, reads, _)| writes + reads).expect("summed");
            work.statement_milliseconds = sum(|(writes, reads, milliseconds)| (writes + reads) * milliseconds);
        })
        .wal_congestion()
    }

    #[test]
    fn where_clients_always_queue_what_it_costs_them_is_new() {
        let slow = |from: u64, writes: u64, milliseconds: u64| {
            crowded(move |second| if second < from { (480, 0, 3) } else { (writes, 0, milliseconds) })
        };
        let found = slow(52, 300, 12).expect("slower");
        let took = Slowdown { usual: Duration::from_millis(3), now: Duration::from_millis(12) };
        assert_eq!(found.transactions, Some(took));
        assert!(slow(55, 300, 12).is_some(), "five of eight");
        assert_eq!(slow(57, 300, 12), None, "not for long enough");
        assert_eq!(slow(52, 300, 5), None, "hardly longer");
        assert_eq!(slow(52, 480, 12), None, "more to do");
        assert!(slow(52, 0, 0).is_some(), "nothing gets through");
        let checkpoint = |seconds: u64| {
            let is_slow = move |second: u64| second >= 52 || (10..10 + seconds).contains(&second);
            crowded(move |second| if is_slow(second) { (300, 0, 12) } else { (480, 0, 3) })
        };
        assert!(checkpoint(2).is_some());
        assert_eq!(checkpoint(3), None, "it was so a minute ago");
    }

    #[test]
    fn readers_that_leave_a_quick_disk_and_times_that_nobody_adds_up_are_no_slow_disk() {
        let readers_leave = crowded(|second| if second < 52 { (400, 3000, 2) } else { (400, 0, 10) });
        assert_eq!(readers_leave, None, "as many write as before");
        let quick = crowded(|second| if second < 52 { (480, 0, 1) } else { (300, 0, 4) });
        assert_eq!(quick, None, "nobody feels that");
        let not_tracked = crowded(|second| if second < 52 { (480, 0, 0) } else { (300, 0, 0) });
        assert_eq!(not_tracked, None, "and the crowd is nothing new");
    }

    #[test]
    fn what_a_node_did_before_it_was_a_standby_counts_no_more() {
        let slow = |second: u64| if second < 52 { (0, 480) } else { (8, 300) };
        let stood_by_at = |at: u64| {
            heard(60, move |report, second| {
                work(report, &slow, second);
                report.postgres.live.as_mut().expect("runs").in_recovery = second == at;
            })
        };
        assert!(stood_by_at(5).wal_congestion().is_some());
        assert_eq!(stood_by_at(30).wal_congestion(), None, "too short a time as a primary");
        assert_eq!(stood_by_at(59).wal_congestion(), None, "a standby");
    }

    #[test]
    fn no_more_is_remembered_than_the_horizon_needs() {
        let trend = heard(500, |report, _| report.postgres.disk = disk(1));
        assert_eq!(trend.samples.len(), SAMPLES_KEPT);
        let mut trend = Trend::default();
        let report = report(|_| {});
        assert!(trend.hear(&report, Moment(0), HORIZON));
        assert!(!trend.hear(&report, Moment(100_000), HORIZON), "ten reports a second are one sample");
    }
}
