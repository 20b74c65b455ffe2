//! From what was forecast to scores: how large the residuals are, and how unusual together, with the network and without it.
//!
//! What lives here: [`Scores`], the covariances that [`Whitenings`] come from, and in what order scores stand. What never enters: time,
//! what is usual on a node, thresholds.

use super::forecaster::{Forecaster, ForecasterState};
use super::residuals::{Covariance, Whitening, root_mean_square};

/// Kinds of scores.
pub const COMPONENTS: usize = 5;

/// Natural logarithms of: the size of the residuals and their whitened distance; the same of the residuals of the running mean alone (the
/// linear twin's); the whitened distance of the values themselves. Without a network the second pair is the first.
pub type Scores = [f32; COMPONENTS];

/// Where the scores of the network's residuals stand.
pub(super) const FORESEEN: [usize; 2] = [0, 1];
/// Where those of the running mean stand.
pub(super) const PLAIN: [usize; 2] = [2, 3];
/// Where that of the values stands.
const LEVEL: usize = 4;

/// A score below this is this: the logarithm of zero is no number.
const SCORE_MIN: f32 = 1e-3;

/// How everything that is scored usually strays together.
#[derive(Debug, Clone)]
pub struct Whitenings {
    /// Residuals of the forecasts.
    pub residuals: Whitening,
    /// Residuals of the running mean; `None` where there is no network: they are the same.
    pub plain: Option<Whitening>,
    /// Values.
    pub levels: Whitening,
}

/// Sums from which [`Whitenings`] are made.
#[derive(Debug)]
pub struct Covariances {
    residuals: Covariance,
    plain: Option<Covariance>,
    levels: Covariance,
}

impl Covariances {
    /// No rows yet.
    #[must_use]
    pub fn new(forecaster: &Forecaster, features: usize) -> Self {
        Self {
            residuals: Covariance::new(forecaster.residual_count()),
            plain: forecaster.has_network().then(|| Covariance::new(forecaster.residual_count())),
            levels: Covariance::new(features),
        }
    }

    /// Adds a row.
    pub fn add(&mut self, state: &ForecasterState) {
        self.residuals.add(state.residuals());
        if let Some(plain) = &mut self.plain {
            plain.add(state.plain_residuals());
        }
        self.levels.add(state.values());
    }

    /// How these rows stray together.
    #[must_use]
    pub fn whitenings(&self) -> Whitenings {
        Whitenings {
            residuals: self.residuals.whitening(),
            plain: self.plain.as_ref().map(Covariance::whitening),
            levels: self.levels.whitening(),
        }
    }
}

impl Whitenings {
    /// The scores of the last row of a node on which so many features vary. `centred` is overwritten.
    pub fn scores(&self, state: &ForecasterState, varying: usize, centred: &mut Vec<f32>) -> Scores {
        let residuals = state.residuals();
        let used = residuals.len() / state.values().len().max(1) * varying;
        let foreseen = [root_mean_square(residuals, used), self.residuals.distance(residuals, centred)];
        let plain = self.plain.as_ref().map_or(foreseen, |whitening| {
            let residuals = state.plain_residuals();
            [root_mean_square(residuals, used), whitening.distance(residuals, centred)]
        });
        let level = self.levels.distance(state.values(), centred);
        [foreseen[0], foreseen[1], plain[0], plain[1], level].map(|score| score.max(SCORE_MIN).ln())
    }
}

/// What orders the rows of a node: the geometric mean of three distances, of which the first two are those with the network or without it,
/// whichever is less. What either of them expected is nothing unusual: a network that is wrong cannot make a row stand out.
#[must_use]
pub fn ranking(scores: &Scores) -> f32 {
    let residuals: f32 = FORESEEN.iter().zip(PLAIN).map(|(&foreseen, plain)| scores[foreseen].min(scores[plain])).sum();
    ((residuals + scores[LEVEL]) / 3.0).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_either_forecast_expected_does_not_stand_out() {
        let usual = ranking(&[0.0; COMPONENTS]);
        assert!((ranking(&[3.0, 3.0, 0.0, 0.0, 0.0]) - usual).abs() < 1e-6, "the network alone was wrong");
        assert!((ranking(&[0.0, 0.0, 3.0, 3.0, 0.0]) - usual).abs() < 1e-6, "the network foresaw it");
        assert!(ranking(&[3.0; COMPONENTS]) > 10.0 * usual);
    }
}
