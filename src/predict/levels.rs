//! What is usual for a score on one node: a histogram of its logarithm that forgets slowly.
//!
//! What lives here: [`LevelHistory`]. Constant memory and, but for every tenth row, constant time.
//! What never enters: thresholds.

/// Scores from 10⁻³ to 10³ in steps of 5.5 %; what lies beyond goes to the outermost bins.
const BINS: usize = 256;
const LOWEST: f32 = -6.9078;
const WIDTH: f32 = 13.8155 / BINS as f32;

/// The quantile is looked up again after so many rows; it moves slowly.
const REFRESH_ROWS: u32 = 10;

/// Slowly forgotten scores of one node.
#[derive(Debug, Clone)]
pub struct LevelHistory {
    bins: Box<[f32; BINS]>,
    total: f32,
    /// Weight of the next row: it grows instead of all others shrinking.
    weight: f32,
    growth: f32,
    rows: u64,
    quantile: f32,
    tail: Option<(f32, f32)>,
    cached: f32,
    until_refresh: u32,
}

impl LevelHistory {
    /// An empty history of which the `quantile` (0–1) will be asked, with a time constant of so many rows.
    #[must_use]
    pub fn new(quantile: f32, memory_rows: f32) -> Self {
        Self {
            bins: Box::new([0.0; BINS]),
            total: 0.0,
            weight: 1.0,
            growth: 1.0 + 1.0 / memory_rows.max(1.0),
            rows: 0,
            quantile,
            tail: None,
            cached: 0.0,
            until_refresh: 0,
        }
    }

    /// With a `tail`, a higher quantile: where it lies more than `allowance` above, the reference is the tail less the allowance.
    #[must_use]
    pub fn with_tail(mut self, tail: f32, allowance: f32) -> Self {
        self.tail = Some((tail, allowance));
        self
    }

    /// Rows seen.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// What is usual, of all scores before, as a natural logarithm: the quantile, or what the tail says; `None` before the first.
    pub fn reference(&mut self) -> Option<f32> {
        if self.rows == 0 {
            return None;
        }
        if self.until_refresh == 0 {
            self.until_refresh = REFRESH_ROWS;
            let usual = self.look_up(self.quantile);
            self.cached = self.tail.map_or(usual, |(tail, allowance)| usual.max(self.look_up(tail) - allowance));
        }
        Some(self.cached)
    }

    /// Adds the natural logarithm of a score. What is no number is left out.
    pub fn add(&mut self, logarithm: f32) {
        if logarithm.is_nan() {
            return;
        }
        let bin = (((logarithm - LOWEST) / WIDTH).max(0.0) as usize).min(BINS - 1);
        self.bins[bin] += self.weight;
        self.total += self.weight;
        self.weight *= self.growth;
        self.rows += 1;
        self.until_refresh = self.until_refresh.saturating_sub(1);
        if self.weight > 1e6 {
            let shrink = 1.0 / self.weight;
            self.bins.iter_mut().for_each(|bin| *bin *= shrink);
            self.total = self.bins.iter().sum();
            self.weight = 1.0;
        }
    }

    fn look_up(&self, quantile: f32) -> f32 {
        let wanted = self.total * quantile;
        let mut below = 0.0;
        for (index, &bin) in self.bins.iter().enumerate() {
            if bin > 0.0 && below + bin >= wanted {
                return LOWEST + WIDTH * (index as f32 + ((wanted - below) / bin).clamp(0.0, 1.0));
            }
            below += bin;
        }
        LOWEST + WIDTH * BINS as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quantile_is_that_of_the_scores_within_a_bin() {
        let mut history = LevelHistory::new(0.9, 1e6);
        assert_eq!(history.reference(), None);
        for row in 0..1000 {
            history.add(((row % 100 + 1) as f32 / 100.0).ln());
        }
        let reference = history.reference().expect("rows were added").exp();
        assert!((reference - 0.9).abs() < 0.06, "{reference}");
    }

    #[test]
    fn bursts_that_a_node_knows_raise_what_is_usual_and_a_quiet_node_is_judged_as_before() {
        let fill = |burst: f32| {
            let mut history = LevelHistory::new(0.9, 1e6).with_tail(0.99, 1.0);
            (0..2000).for_each(|row| history.add(if row % 50 == 0 { burst } else { 0.0 }));
            history.reference().expect("rows")
        };
        assert!((fill(3.0) - 2.0).abs() < 0.1, "{}", fill(3.0));
        assert!(fill(0.8).abs() < 0.1, "{}: within the allowance", fill(0.8));
    }

    #[test]
    fn the_past_is_forgotten_at_the_pace_that_was_asked_for() {
        let mut history = LevelHistory::new(0.5, 100.0);
        (0..10_000).for_each(|_| history.add(0.0));
        (0..60).for_each(|_| history.add(3.0));
        assert!(history.reference().expect("rows").abs() < 0.1, "less than half of the weight is new");
        (0..60).for_each(|_| history.add(3.0));
        assert!(history.reference().expect("rows") > 2.9, "more than half of the weight is new");
    }

    #[test]
    fn scores_beyond_the_range_and_no_numbers_do_no_harm() {
        let mut history = LevelHistory::new(0.5, 10.0);
        for logarithm in [f32::NEG_INFINITY, -1e9, 1e9, f32::INFINITY, f32::NAN] {
            history.add(logarithm);
        }
        assert_eq!(history.rows(), 4);
        assert!(history.reference().expect("rows").is_finite());
    }
}
