//! What a count of rare events says of how often they happen.
//!
//! What lives here: the bound that a count leaves open. What never enters: what is counted, and over what time.

/// The largest mean of a Poisson distribution under which no more than `count` events are still seen in one of twenty spans: divided by
/// the span that was watched it is the 95 % upper bound of the rate.
#[must_use]
pub fn poisson_upper_95(count: u64) -> f64 {
    let at_most = |mean: f64| {
        let mut term = (-mean).exp();
        let mut sum = term;
        for event in 1..=count {
            term *= mean / event as f64;
            sum += term;
        }
        sum
    };
    let (mut low, mut high) = (0.0, 20.0 + 3.0 * count as f64);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if at_most(middle) > 0.05 { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_seen_is_no_proof_of_nothing() {
        assert!((poisson_upper_95(0) - 2.9957).abs() < 1e-3, "{}", poisson_upper_95(0));
        assert!((poisson_upper_95(1) - 4.7439).abs() < 1e-3, "{}", poisson_upper_95(1));
        assert!((poisson_upper_95(10) - 16.9622).abs() < 1e-3, "{}", poisson_upper_95(10));
    }
}
