//! From what was forecast to scores: how large the residuals are, and how unusual together, with the network and without it.
//!
//! What lives here: [`Scores`], the covariances that [`Whitenings`] come from, and in what order scores stand. What never enters: time,
//! what is usual on a node, thresholds.

use super::forecaster::{Forecaster, ForecasterState};
use super::residuals::{Covariance, Whitening, root_mean_square};

/// Kinds of scores.
pub const COMPONENTS: usize = 5;

/// Natural logarithms of: the size of the residuals and their whitened distance; the same of the residuals of the running mean alone (the
/// linear twin's); the whitened distance of the values themselves, of each what is more than familiar. Without a network the second pair is
/// the first.
pub type Scores = [f32; COMPONENTS];

/// Natural logarithms of the half-whitened distances of the residuals, with the network and without it.
pub type HalfScores = [f32; 2];

/// Where the scores of the network's residuals stand.
pub(super) const FORESEEN: [usize; 2] = [0, 1];
/// Where those of the running mean stand.
pub(super) const PLAIN: [usize; 2] = [2, 3];
/// Where that of the values stands.
const LEVEL: usize = 4;

/// A score below this is this: the logarithm of zero is no number.
const SCORE_MIN: f32 = 1e-3;

/// How residuals usually stray together.
#[derive(Debug, Clone)]
pub struct ResidualWhitening {
    /// Whitened, and shrunk.
    pub whole: Whitening,
    /// Half way there; models made before there was one have none.
    pub half: Option<Whitening>,
}

/// How everything that is scored usually strays together.
#[derive(Debug, Clone)]
pub struct Whitenings {
    /// Residuals of the forecasts.
    pub residuals: ResidualWhitening,
    /// Residuals of the running mean; `None` where there is no network: they are the same.
    pub plain: Option<ResidualWhitening>,
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
    /// No rows yet of features, some of which are known to stray.
    #[must_use]
    pub fn new(forecaster: &Forecaster, may_stray: Vec<bool>) -> Self {
        // Residuals are [horizons, features].
        let each: Vec<bool> = may_stray.iter().copied().cycle().take(forecaster.residual_count()).collect();
        Self {
            residuals: Covariance::expecting(each.clone()),
            plain: forecaster.has_network().then(|| Covariance::expecting(each)),
            levels: Covariance::expecting(may_stray),
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
        let of = |covariance: &Covariance| ResidualWhitening {
            whole: covariance.whitening(),
            half: Some(covariance.half_whitening()),
        };
        Whitenings {
            residuals: of(&self.residuals),
            plain: self.plain.as_ref().map(of),
            levels: self.levels.whitening(),
        }
    }
}

impl Whitenings {
    /// The scores of the last row of a node on which so many features vary, and whose `unfamiliar` values are what
    /// [`super::familiar::FamiliarSizes`] made of them. `centred` is overwritten.
    pub fn scores(
        &self,
        state: &ForecasterState,
        unfamiliar: &[f32],
        varying: usize,
        centred: &mut Vec<f32>,
    ) -> Scores {
        let residuals = state.residuals();
        let used = residuals.len() / state.values().len().max(1) * varying;
        let foreseen = [root_mean_square(residuals, used), self.residuals.whole.distance(residuals, centred)];
        let plain = self.plain.as_ref().map_or(foreseen, |whitening| {
            let residuals = state.plain_residuals();
            [root_mean_square(residuals, used), whitening.whole.distance(residuals, centred)]
        });
        let level = self.levels.distance(unfamiliar, centred);
        [foreseen[0], foreseen[1], plain[0], plain[1], level].map(logarithm)
    }

    /// The half-whitened distances of the same row; where the model has none, the sizes in their place.
    pub fn half_scores(&self, state: &ForecasterState, scores: &Scores, centred: &mut Vec<f32>) -> HalfScores {
        let mut of = |whitening: &ResidualWhitening, residuals: &[f32], size: f32| {
            whitening.half.as_ref().map_or(size, |half| logarithm(half.distance(residuals, centred)))
        };
        let foreseen = of(&self.residuals, state.residuals(), scores[FORESEEN[0]]);
        let plain = self.plain.as_ref();
        [foreseen, plain.map_or(foreseen, |plain| of(plain, state.plain_residuals(), scores[PLAIN[0]]))]
    }
}

fn logarithm(score: f32) -> f32 {
    score.max(SCORE_MIN).ln()
}

/// What orders the rows of a node: the geometric mean of three distances: of the residuals, half and wholly whitened, of each that with the
/// network or without it, whichever is less; and of what is unfamiliar in the values. What either of them expected is nothing unusual: a
/// network that is wrong cannot make a row stand out.
#[must_use]
pub fn ranking(scores: &Scores, halves: &HalfScores) -> f32 {
    let whole = scores[FORESEEN[1]].min(scores[PLAIN[1]]);
    ((halves[0].min(halves[1]) + whole + scores[LEVEL]) / 3.0).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_either_forecast_expected_does_not_stand_out() {
        let usual = ranking(&[0.0; COMPONENTS], &[0.0; 2]);
        assert!((ranking(&[3.0, 3.0, 0.0, 0.0, 0.0], &[3.0, 0.0]) - usual).abs() < 1e-6, "the network alone was wrong");
        assert!((ranking(&[0.0, 0.0, 3.0, 3.0, 0.0], &[0.0, 3.0]) - usual).abs() < 1e-6, "the network foresaw it");
        assert!(ranking(&[3.0; COMPONENTS], &[3.0; 2]) > 10.0 * usual);
    }
}
