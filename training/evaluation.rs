//! How good scores and alarms are, row by row and as an operator meets them. Nothing is point-adjusted.
//!
//! What lives here: AUC-PR, volume under the range-PR surface (Paparrizos et al., "Volume Under the Surface", VLDB 2022; tolerance
//! 0–100 rows, 250 thresholds, existence by connected segments as in TSB-AD), events caught and false alarms a day.
//! What never enters: a choice of threshold for the product; the "best" figures are upper bounds and named so.

use serde::Serialize;

/// Tolerance of the range metrics, in rows.
const VUS_WINDOW: usize = 100;
/// Thresholds of the surface.
const VUS_THRESHOLDS: usize = 250;
/// Alarms are not false so long after an incident.
const GRACE_SECONDS: f64 = 900.0;
/// Alarms closer than this are one.
const MERGE_SECONDS: f64 = 900.0;
/// A false alarm that stays counts again after this.
const REPEAT_SECONDS: f64 = 3600.0;
/// Thresholds tried for the best event F1.
const THRESHOLDS_MAX: usize = 400;

/// First and last row of every run of `true`.
pub fn runs(mask: &[bool]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut first = None;
    for (row, &is_set) in mask.iter().enumerate() {
        match (is_set, first) {
            (true, None) => first = Some(row),
            (false, Some(begin)) => {
                found.push((begin, row - 1));
                first = None;
            }
            _ => {}
        }
    }
    found.extend(first.map(|begin| (begin, mask.len() - 1)));
    found
}

/// Rows from the highest score to the lowest; equal ones in their order.
fn descending(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&left, &right| scores[right].total_cmp(&scores[left]));
    order
}

/// Area under the precision-recall curve, row by row (average precision, ties together).
pub fn auc_pr(labels: &[bool], scores: &[f64]) -> f64 {
    let positives = labels.iter().filter(|label| **label).count() as f64;
    let (mut area, mut found, mut found_before) = (0.0, 0.0, 0.0);
    let order = descending(scores);
    for (rank, &row) in order.iter().enumerate() {
        found += f64::from(u8::from(labels[row]));
        let is_last_of_tie = order.get(rank + 1).is_none_or(|&next| scores[next] != scores[row]);
        if is_last_of_tie {
            area += (found - found_before) / positives * found / (rank + 1) as f64;
            found_before = found;
        }
    }
    area
}

/// Volume under the range-PR surface.
pub fn vus_pr(labels: &[bool], scores: &[f64]) -> f64 {
    let rows = scores.len();
    let events = runs(labels);
    let order = descending(scores);
    let positives = labels.iter().filter(|label| **label).count() as f64;
    let step = (rows - 1) as f64 / (VUS_THRESHOLDS - 1) as f64;
    let thresholds: Vec<f64> = (0..VUS_THRESHOLDS)
        .map(|index| if index + 1 == VUS_THRESHOLDS { rows - 1 } else { (index as f64 * step) as usize })
        .map(|rank| scores[order[rank]])
        .collect();
    let predicted: Vec<usize> =
        thresholds.iter().map(|threshold| order.partition_point(|&row| scores[row] >= *threshold)).collect();
    let labelled = |extended: &[f64]| -> Vec<f64> {
        let mut sum = 0.0;
        let cumulative: Vec<f64> = order
            .iter()
            .map(|&row| {
                sum += extended[row];
                sum
            })
            .collect();
        predicted.iter().map(|count| cumulative[count - 1]).collect()
    };
    let plain: Vec<f64> = labels.iter().map(|label| f64::from(u8::from(*label))).collect();
    let inside = labelled(&plain);
    let mut volume = 0.0;
    for window in 0..=VUS_WINDOW {
        let half = window / 2;
        let mut extended = plain.clone();
        for &(first, last) in &events {
            let decay = |distance: usize| (1.0 - distance as f64 / window as f64).sqrt();
            let after = (last + 1).min(rows)..(last + half + 1).min(rows);
            extended[after].iter_mut().zip(1..).for_each(|(value, distance)| *value += decay(distance));
            let before = first.saturating_sub(half)..first;
            extended[before].iter_mut().rev().zip(1..).for_each(|(value, distance)| *value += decay(distance));
        }
        extended.iter_mut().for_each(|value| *value = value.min(1.0));
        let mut peaks: Vec<f64> = Vec::new();
        let mut begin = events[0].0.saturating_sub(half);
        for (index, &(_, last)) in events.iter().enumerate() {
            let next = events.get(index + 1).map(|next| next.0);
            if next.is_none_or(|next| last + half + half < next) {
                let end = (last + half).min(rows - 1);
                peaks.push(scores[begin..=end].iter().copied().fold(f64::NEG_INFINITY, f64::max));
                begin = next.unwrap_or(0).saturating_sub(half);
            }
        }
        peaks.sort_unstable_by(f64::total_cmp);
        let mut recall_before = 0.0;
        for (index, found) in labelled(&extended).into_iter().enumerate() {
            let existing = peaks.len() - peaks.partition_point(|peak| *peak < thresholds[index]);
            let wanted = f64::midpoint(positives, positives + found - inside[index]);
            let recall = (found / wanted).min(1.0) * existing as f64 / peaks.len() as f64;
            volume += (recall - recall_before) * found / predicted[index] as f64;
            recall_before = recall;
        }
    }
    volume / (VUS_WINDOW + 1) as f64
}

/// One labelled series as an operator meets it.
#[derive(Debug, Clone)]
pub struct Operations {
    step_seconds: f64,
    events: Vec<(usize, usize)>,
    quiet: Vec<bool>,
    quiet_days: f64,
}

/// What alarms were worth, of one series or of several together.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct Judgement {
    /// Incidents.
    pub events: usize,
    /// Of which there was an alarm in so many.
    pub caught: usize,
    /// Groups of alarm rows outside incidents, counted again every hour.
    pub false_alarms: usize,
    /// Time outside incidents.
    pub quiet_days: f64,
    /// From the start of an incident to its first alarm row, of each that was caught.
    pub delays_seconds: Vec<f64>,
}

impl Judgement {
    /// Share of incidents caught.
    pub fn recall(&self) -> f64 {
        self.caught as f64 / self.events.max(1) as f64
    }

    /// Harmonic mean of the share of incidents caught and the share of alarms that were right.
    pub fn event_f1(&self) -> f64 {
        if self.caught == 0 {
            return 0.0;
        }
        let precision = self.caught as f64 / (self.caught + self.false_alarms) as f64;
        2.0 * precision * self.recall() / (precision + self.recall())
    }

    /// False alarms a day.
    pub fn false_alarms_per_day(&self) -> f64 {
        self.false_alarms as f64 / self.quiet_days
    }

    /// The middle delay.
    pub fn median_delay_seconds(&self) -> Option<f64> {
        median(self.delays_seconds.clone())
    }

    /// Both together.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.events += other.events;
        self.caught += other.caught;
        self.false_alarms += other.false_alarms;
        self.quiet_days += other.quiet_days;
        self.delays_seconds.extend(other.delays_seconds);
        self
    }
}

impl Operations {
    /// A series of labels on a fixed step.
    pub fn new(labels: &[bool], step_seconds: f64) -> Self {
        let events = runs(labels);
        let grace = (GRACE_SECONDS / step_seconds).round() as usize;
        let mut quiet = vec![true; labels.len()];
        for &(first, last) in &events {
            quiet[first..(last + grace + 1).min(labels.len())].fill(false);
        }
        let quiet_days = quiet.iter().filter(|quiet| **quiet).count() as f64 * step_seconds / 86_400.0;
        Self { step_seconds, events, quiet, quiet_days }
    }

    /// What these alarms are worth.
    pub fn judge(&self, is_alarm: impl Fn(usize) -> bool) -> Judgement {
        let merge = ((MERGE_SECONDS / self.step_seconds).round() as usize).max(1);
        let repeat = ((REPEAT_SECONDS / self.step_seconds).round() as usize).max(1);
        let mut delays_seconds = Vec::new();
        for &(first, last) in &self.events {
            if let Some(row) = (first..=last).find(|&row| is_alarm(row)) {
                delays_seconds.push((row - first) as f64 * self.step_seconds);
            }
        }
        let mut false_alarms = 0;
        let mut group: Option<(usize, usize)> = None;
        for row in (0..self.quiet.len()).filter(|&row| self.quiet[row] && is_alarm(row)) {
            group = match group {
                Some((begin, last)) if row - last <= merge => Some((begin, row)),
                before => {
                    false_alarms += before.map_or(0, |(begin, last)| (last - begin) / repeat + 1);
                    Some((row, row))
                }
            };
        }
        false_alarms += group.map_or(0, |(begin, last)| (last - begin) / repeat + 1);
        Judgement {
            events: self.events.len(),
            caught: delays_seconds.len(),
            false_alarms,
            quiet_days: self.quiet_days,
            delays_seconds,
        }
    }

    /// The highest score in each incident.
    fn peaks(&self, scores: &[f64]) -> Vec<f64> {
        self.events
            .iter()
            .map(|&(first, last)| scores[first..=last].iter().copied().fold(f64::NEG_INFINITY, f64::max))
            .collect()
    }
}

/// A series and its scores.
pub type Scored<'series> = (&'series Operations, &'series [f64]);

fn judge_all(series: &[Scored<'_>], threshold: f64) -> Judgement {
    series
        .iter()
        .map(|(operations, scores)| operations.judge(|row| scores[row] >= threshold))
        .fold(Judgement::default(), Judgement::and)
}

/// The judgement at the highest single threshold that still catches at least `recall` of all incidents.
pub fn at_recall(series: &[Scored<'_>], recall: f64) -> Judgement {
    let mut peaks: Vec<f64> = series.iter().flat_map(|(operations, scores)| operations.peaks(scores)).collect();
    peaks.sort_unstable_by(|left, right| right.total_cmp(left));
    let wanted = ((recall * peaks.len() as f64 - 1e-9).ceil() as usize).max(1);
    judge_all(series, peaks[wanted - 1])
}

/// The best event F1 of a single threshold, chosen with the labels: an upper bound, never a result of the product.
pub fn best_event_f1(series: &[Scored<'_>]) -> f64 {
    let mut peaks: Vec<f64> = series.iter().flat_map(|(operations, scores)| operations.peaks(scores)).collect();
    peaks.sort_unstable_by(f64::total_cmp);
    peaks.dedup();
    let count = peaks.len().min(THRESHOLDS_MAX);
    let stride = if count > 1 { (peaks.len() - 1) as f64 / (count - 1) as f64 } else { 0.0 };
    (0..count)
        .map(|index| peaks[(index as f64 * stride) as usize])
        .map(|threshold| judge_all(series, threshold).event_f1())
        .fold(0.0, f64::max)
}

/// The middle value; of an even number the mean of the middle two; `None` of none.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// All figures of one series.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Volume under the range-PR surface.
    pub vus_pr: f64,
    /// Area under the precision-recall curve.
    pub auc_pr: f64,
    /// Event F1 at the best threshold of this series.
    pub event_f1_best: f64,
    /// False alarms a day at the threshold that catches half of the incidents.
    pub false_alarms_per_day_at_50: f64,
    /// The same for 80 %.
    pub false_alarms_per_day_at_80: f64,
    /// Median delay at that threshold.
    pub delay_seconds_at_80: Option<f64>,
}

impl Figures {
    /// Judges the scores of a series with at least one incident; `None` without one.
    pub fn of(labels: &[bool], scores: &[f64], step_seconds: f64) -> Option<Self> {
        if !labels.contains(&true) || labels.len() != scores.len() {
            return None;
        }
        let operations = Operations::new(labels, step_seconds);
        let own = [(&operations, scores)];
        let (half, most) = (at_recall(&own, 0.5), at_recall(&own, 0.8));
        Some(Self {
            vus_pr: vus_pr(labels, scores),
            auc_pr: auc_pr(labels, scores),
            event_f1_best: best_event_f1(&own),
            false_alarms_per_day_at_50: half.false_alarms_per_day(),
            false_alarms_per_day_at_80: most.false_alarms_per_day(),
            delay_seconds_at_80: most.median_delay_seconds(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The series of `bench` notes: random numbers, five incidents, a few raised scores.
    fn series() -> (Vec<bool>, Vec<f64>) {
        let mut state: u64 = 12_345;
        let mut scores: Vec<f64> = (0..1500)
            .map(|_| {
                state = (1_103_515_245 * state + 12_345) % (1 << 31);
                ((state >> 8) % 1000) as f64 / 1000.0
            })
            .collect();
        let mut labels = vec![false; 1500];
        for (first, last) in [(100, 130), (400, 402), (420, 470), (900, 1000), (1490, 1499)] {
            labels[first..=last].fill(true);
        }
        for (range, raise) in [(105..120, 0.5), (450..455, 0.3), (905..990, 0.4), (1200..1290, 0.45), (1492..1493, 1.0)]
        {
            scores[range].iter_mut().for_each(|score| *score += raise);
        }
        (labels, scores)
    }

    /// Figures of the reference evaluator (numpy) for the same series.
    #[test]
    fn the_figures_are_those_of_the_reference_evaluator() {
        let (labels, scores) = series();
        let figures = Figures::of(&labels, &scores, 60.0).expect("there are incidents");
        assert!((figures.vus_pr - 0.353_783_694_322_594_3).abs() < 1e-9, "{figures:?}");
        assert!((figures.auc_pr - 0.285_243_197_044_181).abs() < 1e-9, "{figures:?}");
        assert!((figures.event_f1_best - 0.727_272_727_272_727_2).abs() < 1e-9, "{figures:?}");
        assert!((figures.false_alarms_per_day_at_50 - 3.472_668_810_289_389).abs() < 1e-9, "{figures:?}");
        assert!((figures.false_alarms_per_day_at_80 - 2.315_112_540_192_926).abs() < 1e-9, "{figures:?}");
        assert_eq!(figures.delay_seconds_at_80, Some(330.0));
        let own = Operations::new(&labels, 60.0).judge(|row| scores[row] >= 1.1);
        assert_eq!((own.events, own.caught, own.false_alarms), (5, 4, 2));
        assert!((own.quiet_days - 0.863_888_888_888_888_9).abs() < 1e-12);
    }

    #[test]
    fn perfect_scores_are_perfect_and_no_alarm_is_nothing() {
        let (labels, _) = series();
        let perfect: Vec<f64> = labels.iter().map(|label| f64::from(u8::from(*label))).collect();
        assert!((auc_pr(&labels, &perfect) - 1.0).abs() < 1e-12);
        let operations = Operations::new(&labels, 60.0);
        assert!((operations.judge(|row| labels[row]).event_f1() - 1.0).abs() < 1e-12);
        let silent = operations.judge(|_| false);
        assert_eq!((silent.event_f1(), silent.median_delay_seconds()), (0.0, None));
    }

    #[test]
    fn an_alarm_that_is_always_on_costs_one_an_hour() {
        let labels = vec![false; 1440];
        assert_eq!(Operations::new(&labels, 60.0).judge(|_| true).false_alarms, 24);
    }

    #[test]
    fn a_series_without_incidents_has_no_figures() {
        assert_eq!(Figures::of(&[false; 10], &[0.0; 10], 60.0), None);
    }
}
