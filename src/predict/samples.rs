//! The samples of one node: a matrix [row, feature] on a fixed step, in which values may be missing.
//!
//! What lives here: [`Samples`]. What never enters: time, scaling.

/// Rows of samples. A missing value is kept as what is no number and handed out as `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Samples {
    features: usize,
    values: Vec<f32>,
}

impl Samples {
    /// No rows of so many features yet.
    #[must_use]
    pub fn new(features: usize) -> Self {
        Self { features, values: Vec::new() }
    }

    /// Adds a row. A value that is no finite number counts as missing.
    ///
    /// # Panics
    /// If the row has another number of features: a mistake of the caller.
    pub fn push(&mut self, row: &[Option<f32>]) {
        assert_eq!(row.len(), self.features, "a row of samples");
        self.values.extend(row.iter().map(|value| value.filter(|value| value.is_finite()).unwrap_or(f32::NAN)));
    }

    /// Features in a row.
    #[must_use]
    pub fn features(&self) -> usize {
        self.features
    }

    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.values.len().checked_div(self.features).unwrap_or(0)
    }

    /// Writes a row into `row`, in place of what was there.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn read(&self, index: usize, row: &mut Vec<Option<f32>>) {
        row.clear();
        row.extend(
            self.values[index * self.features..][..self.features]
                .iter()
                .map(|value| (!value.is_nan()).then_some(*value)),
        );
    }

    /// The values of one feature that are there, in order.
    #[must_use]
    pub fn column(&self, feature: usize) -> Vec<f32> {
        self.values
            .iter()
            .skip(feature)
            .step_by(self.features.max(1))
            .copied()
            .filter(|value| !value.is_nan())
            .collect()
    }

    /// Rows `from..to` alone.
    ///
    /// # Panics
    /// If there are no such rows.
    #[must_use]
    pub fn slice(&self, from: usize, to: usize) -> Self {
        Self { features: self.features, values: self.values[from * self.features..to * self.features].to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_stays_missing() {
        let mut samples = Samples::new(2);
        samples.push(&[Some(1.0), None]);
        samples.push(&[Some(f32::INFINITY), Some(2.0)]);
        let mut row = Vec::new();
        samples.read(1, &mut row);
        assert_eq!(row, [None, Some(2.0)]);
        assert_eq!((samples.rows(), samples.column(0), samples.column(1)), (2, vec![1.0], vec![2.0]));
        assert_eq!(samples.slice(1, 2).column(1), [2.0]);
    }
}
