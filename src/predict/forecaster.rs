//! Forecasts of every feature, and how far off they were: the running mean, and what the network adds to it.
//!
//! What lives here: [`Forecaster`], the same for all nodes, and [`ForecasterState`], one a node. A row costs one step of the network and
//! allocates nothing. What never enters: what is no number; a missing value counts as the forecast, and its residual as zero.

use super::document::{Architecture, Direction};
use super::lstm::{Lstm, LstmState};
use super::residuals::dot;

/// An LSTM and the linear layer after it.
#[derive(Debug, Clone)]
pub struct Network {
    /// Reads [deviation from the running mean, running mean] of every feature.
    pub lstm: Lstm,
    /// [horizons × features, units], row by row.
    pub head_weight: Vec<f32>,
    /// [horizons × features].
    pub head_bias: Vec<f32>,
}

/// How a model forecasts.
#[derive(Debug, Clone)]
pub struct Forecaster {
    features: usize,
    horizons: Vec<usize>,
    rate: f32,
    directions: Vec<Direction>,
    network: Option<Network>,
}

/// What forecasting remembers of one node.
#[derive(Debug, Clone)]
pub struct ForecasterState {
    rows: u64,
    values: Vec<f32>,
    baseline: Vec<f32>,
    /// For each horizon as many rows of forecasts as it is long; the one that is due comes next.
    forecasts: Vec<Vec<f32>>,
    /// The same of the running mean alone; empty without a network.
    plain_forecasts: Vec<Vec<f32>>,
    residuals: Vec<f32>,
    plain_residuals: Vec<f32>,
    input: Vec<f32>,
    lstm: Option<LstmState>,
}

impl Forecaster {
    /// A forecaster of an architecture; `None` for the network is the linear twin.
    #[must_use]
    pub fn new(architecture: &Architecture, directions: Vec<Direction>, network: Option<Network>) -> Self {
        Self {
            features: directions.len(),
            horizons: architecture.horizons.clone(),
            rate: 1.0 / architecture.baseline_rows.max(1) as f32,
            directions,
            network,
        }
    }

    /// Numbers in a row of residuals: horizons × features.
    #[must_use]
    pub fn residual_count(&self) -> usize {
        self.horizons.len() * self.features
    }

    /// Whether it is more than the linear twin.
    #[must_use]
    pub fn has_network(&self) -> bool {
        self.network.is_some()
    }

    /// Rows after which every horizon's forecast has been made from a settled running mean.
    #[must_use]
    pub fn settling_rows(&self) -> u64 {
        (1.0 / self.rate) as u64 + self.horizons.iter().max().copied().unwrap_or(0) as u64
    }

    /// The state before the first row.
    #[must_use]
    pub fn start(&self) -> ForecasterState {
        let rings = || self.horizons.iter().map(|horizon| vec![0.0; horizon * self.features]).collect();
        let (plain_forecasts, plain_residuals) =
            if self.has_network() { (rings(), vec![0.0; self.residual_count()]) } else { Default::default() };
        ForecasterState {
            rows: 0,
            values: vec![0.0; self.features],
            baseline: vec![0.0; self.features],
            forecasts: rings(),
            plain_forecasts,
            residuals: vec![0.0; self.residual_count()],
            plain_residuals,
            input: vec![0.0; 2 * self.features],
            lstm: self.network.as_ref().map(|network| LstmState::new(&network.lstm)),
        }
    }

    /// Takes the next row of scaled values and forms its residuals; then forecasts what is to come.
    ///
    /// # Panics
    /// If the row has another number of features or the state is another forecaster's: mistakes of the caller.
    pub fn advance(&self, state: &mut ForecasterState, scaled: &[Option<f32>]) {
        assert_eq!(scaled.len(), self.features, "a row of scaled values");
        for ((value, scaled), baseline) in state.values.iter_mut().zip(scaled).zip(&mut state.baseline) {
            if state.rows == 0 {
                *baseline = scaled.unwrap_or(0.0);
            }
            *value = scaled.unwrap_or(*baseline);
        }
        let (rows, values) = (state.rows, &state.values);
        self.compare(rows, scaled, values, &state.forecasts, &mut state.residuals);
        self.compare(rows, scaled, values, &state.plain_forecasts, &mut state.plain_residuals);
        // A plain mean until there are enough rows for the exponential one.
        let rate = self.rate.max(1.0 / (state.rows + 1) as f32);
        for (baseline, value) in state.baseline.iter_mut().zip(&state.values) {
            *baseline += rate * (value - *baseline);
        }
        self.forecast(state);
        state.rows += 1;
    }

    /// Forms the residuals of forecasts that are due.
    fn compare(
        &self,
        rows: u64,
        scaled: &[Option<f32>],
        values: &[f32],
        forecasts: &[Vec<f32>],
        residuals: &mut [f32],
    ) {
        let all = self.horizons.iter().zip(forecasts).zip(residuals.chunks_exact_mut(self.features));
        for ((&horizon, forecasts), residuals) in all {
            let slot = (rows % horizon as u64) as usize * self.features;
            let due = &forecasts[slot..][..self.features];
            let is_made = rows >= horizon as u64;
            for (feature, residual) in residuals.iter_mut().enumerate() {
                let off = if is_made && scaled[feature].is_some() { values[feature] - due[feature] } else { 0.0 };
                *residual = self.directions[feature].bad_part(off);
            }
        }
    }

    fn forecast(&self, state: &mut ForecasterState) {
        let hidden = match (&self.network, &mut state.lstm) {
            (Some(network), Some(lstm)) => {
                let (deviations, baselines) = state.input.split_at_mut(self.features);
                for (deviation, (value, baseline)) in
                    deviations.iter_mut().zip(state.values.iter().zip(&state.baseline))
                {
                    *deviation = value - baseline;
                }
                baselines.copy_from_slice(&state.baseline);
                let hidden = network.lstm.step(lstm, &state.input).expect("the state was started by this forecaster");
                Some((network, hidden))
            }
            _ => None,
        };
        for (index, &horizon) in self.horizons.iter().enumerate() {
            let slot = (state.rows % horizon as u64) as usize * self.features;
            let forecast = &mut state.forecasts[index][slot..][..self.features];
            forecast.copy_from_slice(&state.baseline);
            if let Some((network, hidden)) = hidden {
                state.plain_forecasts[index][slot..][..self.features].copy_from_slice(&state.baseline);
                let units = hidden.len();
                for (feature, forecast) in forecast.iter_mut().enumerate() {
                    let output = index * self.features + feature;
                    *forecast +=
                        network.head_bias[output] + dot(&network.head_weight[output * units..][..units], hidden);
                }
            }
        }
    }
}

impl ForecasterState {
    /// Rows taken.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Residuals of the last row, [horizons, features]; for a feature with a direction only its bad part.
    #[must_use]
    pub fn residuals(&self) -> &[f32] {
        &self.residuals
    }

    /// What the residuals of the last row would be without the network.
    #[must_use]
    pub fn plain_residuals(&self) -> &[f32] {
        if self.lstm.is_some() { &self.plain_residuals } else { &self.residuals }
    }

    /// Scaled values of the last row, those that were missing replaced by their running mean.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The running mean of every feature after the last row, scaled.
    #[must_use]
    pub fn baseline(&self) -> &[f32] {
        &self.baseline
    }
}

#[cfg(test)]
mod tests {
    use super::super::document::NetworkKind;
    use super::super::lstm::LstmShape;
    use super::*;

    fn architecture() -> Architecture {
        Architecture { network: NetworkKind::None, baseline_rows: 10, horizons: vec![1, 3] }
    }

    #[test]
    fn the_linear_twin_forecasts_the_running_mean() {
        let forecaster = Forecaster::new(&architecture(), vec![Direction::Both; 2], None);
        let mut state = forecaster.start();
        for _ in 0..50 {
            forecaster.advance(&mut state, &[Some(2.0), Some(-1.0)]);
        }
        assert!(state.residuals().iter().all(|residual| residual.abs() < 1e-6));
        forecaster.advance(&mut state, &[Some(5.0), Some(-1.0)]);
        assert_eq!(state.residuals(), [3.0, 0.0, 3.0, 0.0], "both horizons knew nothing of the jump");
        forecaster.advance(&mut state, &[Some(5.0), Some(-1.0)]);
        assert!(state.residuals()[0] < 2.8 && state.residuals()[2] == 3.0, "only the shorter one has seen it");
    }

    #[test]
    fn a_missing_value_is_neither_a_surprise_nor_a_change_of_the_mean() {
        let forecaster = Forecaster::new(&architecture(), vec![Direction::Both; 2], None);
        let mut state = forecaster.start();
        for _ in 0..20 {
            forecaster.advance(&mut state, &[Some(2.0), Some(1.0)]);
        }
        forecaster.advance(&mut state, &[None, Some(1.0)]);
        assert_eq!(state.residuals()[0], 0.0);
        assert_eq!(state.baseline(), [2.0, 1.0]);
    }

    #[test]
    fn a_move_in_the_good_direction_is_no_residual() {
        let forecaster = Forecaster::new(&architecture(), vec![Direction::High, Direction::Low], None);
        let mut state = forecaster.start();
        for _ in 0..20 {
            forecaster.advance(&mut state, &[Some(0.0), Some(0.0)]);
        }
        forecaster.advance(&mut state, &[Some(-4.0), Some(4.0)]);
        assert!(state.residuals().iter().all(|residual| *residual == 0.0));
        forecaster.advance(&mut state, &[Some(4.0), Some(-4.0)]);
        assert!(state.residuals()[0] > 3.0 && state.residuals()[1] < -3.0);
    }

    #[test]
    fn a_network_with_a_head_of_zeros_is_the_linear_twin() {
        let shape = LstmShape { features: 2, units: 3, layers: 1 };
        let mut next = 0.0_f32;
        let lstm = Lstm::from_random(shape, || {
            next = (next + 0.37) % 1.0;
            next
        })
        .expect("a shape");
        let network = Network { lstm, head_weight: vec![0.0; 6], head_bias: vec![0.0; 2] };
        let twin = Architecture { horizons: vec![2], ..architecture() };
        let with = Forecaster::new(&twin, vec![Direction::Both], Some(network));
        let without = Forecaster::new(&twin, vec![Direction::Both], None);
        let (mut left, mut right) = (with.start(), without.start());
        for row in 0..40_u8 {
            let value = [Some(f32::from(row % 7))];
            with.advance(&mut left, &value);
            without.advance(&mut right, &value);
            assert_eq!(left.residuals(), right.residuals());
            assert_eq!(left.plain_residuals(), right.residuals());
        }
    }
}
