//! Whether a model still knows the node that it scores.
//!
//! What lives here: [`Drift`]. What never enters: alarms; a node that drifts makes the model abstain, and nothing else.

/// Everyday scores so many times those of training mean that the forecasts are worth nothing here.
pub const RATIO_MAX: f64 = 5.0;

/// Rows of a node that must have been seen before anything is said.
const ROWS_MIN: u64 = 1000;

/// How a node's everyday scores compare with those of training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// The node's reference score over that of training.
    pub ratio: f64,
}

impl Drift {
    /// Compares natural logarithms of references. `None` until the node was seen long enough.
    #[must_use]
    pub fn between(training: f32, node: f32, rows: u64) -> Option<Self> {
        (rows >= ROWS_MIN && training.is_finite() && node.is_finite())
            .then(|| Self { ratio: f64::from(node - training).exp() })
    }

    /// The model should say nothing.
    #[must_use]
    pub fn is_too_far(self) -> bool {
        self.ratio > RATIO_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_judged_only_after_it_was_seen_long_enough() {
        assert_eq!(Drift::between(0.0, 9.0, 10), None);
        assert!(Drift::between(0.0, 9.0, 10_000).expect("seen").is_too_far());
        assert!(!Drift::between(0.0, 1.0, 10_000).expect("seen").is_too_far());
        assert!(!Drift::between(0.0, -9.0, 10_000).expect("seen").is_too_far(), "calmer than training is no drift");
    }
}
