//! How far values have strayed lately, feature by feature, so that a level that stays ceases to stand out.
//!
//! What lives here: [`FamiliarSizes`], one a node. What never enters: residuals. A burst that repeats must not hide the next one, but what
//! runs on another level since yesterday is no incident for ever.

/// Time constant of the mean squares: a day, because load repeats by the day.
const MEMORY_SECONDS: f32 = 86_400.0;

/// Running mean square of every scaled feature.
#[derive(Debug, Clone)]
pub struct FamiliarSizes {
    mean_squares: Vec<f32>,
    rate: f32,
}

impl FamiliarSizes {
    /// Before the first row every feature is as large as its spread.
    #[must_use]
    pub fn new(features: usize, step_seconds: u32) -> Self {
        Self { mean_squares: vec![1.0; features], rate: (step_seconds as f32 / MEMORY_SECONDS).min(1.0) }
    }

    /// Writes the scaled values of a row, each divided by its usual size where that is more than its spread, into `unfamiliar`; then
    /// takes the row into account.
    pub fn relate(&mut self, values: &[f32], unfamiliar: &mut Vec<f32>) {
        unfamiliar.clear();
        unfamiliar.extend(values.iter().zip(&mut self.mean_squares).map(|(&value, mean_square)| {
            let related = value / mean_square.max(1.0).sqrt();
            *mean_square += self.rate * (value * value - *mean_square);
            related
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn related(sizes: &mut FamiliarSizes, value: f32) -> f32 {
        let mut unfamiliar = Vec::new();
        sizes.relate(&[value], &mut unfamiliar);
        unfamiliar[0]
    }

    #[test]
    fn a_level_that_stays_is_unfamiliar_at_first_and_familiar_after_days() {
        let mut sizes = FamiliarSizes::new(1, 60);
        assert_eq!(related(&mut sizes, 8.0), 8.0);
        (0..3 * 1440).for_each(|_| {
            related(&mut sizes, 8.0);
        });
        let after = related(&mut sizes, 8.0);
        assert!(after < 1.1, "{after}");
    }

    #[test]
    fn a_feature_that_stands_still_does_not_become_nervous() {
        let mut sizes = FamiliarSizes::new(1, 60);
        (0..10 * 1440).for_each(|_| {
            related(&mut sizes, 0.0);
        });
        assert_eq!(related(&mut sizes, 2.0), 2.0);
    }

    #[test]
    fn what_is_familiar_is_a_matter_of_time_and_not_of_rows() {
        let [minutes, seconds] = [(60, 720), (1, 43_200)].map(|(step, rows)| {
            let mut sizes = FamiliarSizes::new(1, step);
            (0..rows).for_each(|_| {
                related(&mut sizes, 5.0);
            });
            related(&mut sizes, 5.0)
        });
        assert!((minutes - seconds).abs() < 0.01, "{minutes} {seconds}");
    }
}
