//! Scaling of each feature by what is usual for the node it comes from.
//!
//! What lives here: centres and spreads, and how they are learnt. What never enters: a spread of zero in a division, and what is no number.

use serde::{Deserialize, Serialize};

/// Scaled values beyond this many spreads count as this many: one wild sample must not fill every sum.
pub const CLIP: f32 = 20.0;

/// Share of values cut off at each end before a spread is taken, so that a few incidents in the history do not hide the next.
const TRIM: f64 = 0.001;

/// A node's own spread is never taken for less than this share of the spread that the model was trained with: a node that stood still
/// during its short history is not nervous.
const OWN_SPREAD_MIN: f32 = 0.1;

/// How one feature is scaled: `(value − center) / spread`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureScale {
    /// Its usual value, in the feature's unit.
    pub center: f32,
    /// How far it usually strays, in the feature's unit; zero for a feature that never changed, which is then left out.
    pub spread: f32,
}

impl FeatureScale {
    /// From a history: mean and standard deviation, after values beyond the outermost 0.1 % at each end were drawn in.
    /// `None` without a single number.
    #[must_use]
    pub fn of(values: &[f32]) -> Option<Self> {
        let mut sorted: Vec<f32> = values.iter().copied().filter(|value| value.is_finite()).collect();
        if sorted.is_empty() {
            return None;
        }
        sorted.sort_unstable_by(f32::total_cmp);
        let cut = (sorted.len() as f64 * TRIM) as usize;
        let (low, high) = (sorted[cut], sorted[sorted.len() - 1 - cut]);
        let mean = sorted.iter().map(|value| f64::from(value.clamp(low, high))).sum::<f64>() / sorted.len() as f64;
        let variance = sorted.iter().map(|value| (f64::from(value.clamp(low, high)) - mean).powi(2)).sum::<f64>()
            / sorted.len() as f64;
        let spread = variance.sqrt();
        // What is left of rounding in a constant column is no spread.
        let is_constant = spread <= 1e-6 * mean.abs().max(1e-6);
        Some(Self { center: mean as f32, spread: if is_constant { 0.0 } else { spread as f32 } })
    }

    /// This node's own scale, where the model knows the feature: never much narrower than the model's.
    #[must_use]
    pub fn at_least(self, model: Self) -> Self {
        self.no_narrower_than(OWN_SPREAD_MIN * model.spread)
    }

    /// The same centre, and this spread if its own is less.
    #[must_use]
    pub fn no_narrower_than(self, spread: f32) -> Self {
        Self { center: self.center, spread: self.spread.max(spread) }
    }

    /// A value in spreads from its centre, within ±[`CLIP`]; `None` for what is missing, no number, or never changed.
    #[must_use]
    pub fn scale(self, value: Option<f32>) -> Option<f32> {
        let value = value.filter(|value| value.is_finite())?;
        let scaled = (value - self.center) / self.spread;
        (self.spread > 0.0 && !scaled.is_nan()).then(|| scaled.clamp(-CLIP, CLIP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_scaled_by_its_mean_and_deviation() {
        let scale = FeatureScale::of(&[1.0, 3.0, 1.0, 3.0]).expect("numbers");
        assert_eq!((scale.center, scale.spread), (2.0, 1.0));
        assert_eq!(scale.scale(Some(5.0)), Some(3.0));
        assert_eq!(scale.scale(Some(f32::MAX)), Some(CLIP), "a wild value is clipped");
    }

    #[test]
    fn what_is_missing_or_no_number_never_enters_arithmetic() {
        let scale = FeatureScale::of(&[1.0, f32::NAN, 3.0, f32::INFINITY]).expect("numbers");
        assert_eq!((scale.center, scale.spread), (2.0, 1.0));
        for missing in [None, Some(f32::NAN), Some(f32::NEG_INFINITY)] {
            assert_eq!(scale.scale(missing), None);
        }
        assert_eq!(FeatureScale::of(&[f32::NAN]), None);
        assert_eq!(FeatureScale::of(&[]), None);
    }

    #[test]
    fn a_constant_column_is_left_out_instead_of_divided_by() {
        let scale = FeatureScale::of(&[0.1; 1000]).expect("numbers");
        assert_eq!(scale.spread, 0.0);
        assert_eq!(scale.scale(Some(7.0)), None);
    }

    #[test]
    fn one_incident_in_a_long_history_does_not_widen_the_spread() {
        let mut history: Vec<f32> = (0..10_000).map(|row| (row % 2) as f32).collect();
        history[5000] = 1e6;
        assert!(FeatureScale::of(&history).expect("numbers").spread < 0.6);
    }

    #[test]
    fn a_node_that_stood_still_takes_its_spread_from_the_model() {
        let own = FeatureScale::of(&[4.0; 100]).expect("numbers");
        let scale = own.at_least(FeatureScale { center: 0.0, spread: 5.0 });
        assert_eq!((scale.center, scale.spread), (4.0, 0.5));
    }
}
