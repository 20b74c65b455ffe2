//! When a resource that fills will be full: disks, connections, transaction identifiers.
//!
//! What lives here: a robust line through the recent past, drawn on to the limit. Source: Theil 1950, Sen 1968 (the median of the slopes
//! between all pairs; a burst or a cleanup among the samples does not turn it). What never enters: a clock; time is what the samples say.

/// Fewer samples than this say nothing of a trend.
const SAMPLES_MIN: usize = 5;

/// More are thinned out evenly: all pairs are compared.
const SAMPLES_MAX: usize = 128;

/// One observation of a resource.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// When, in seconds on any scale.
    pub at_seconds: f64,
    /// How much, in any unit.
    pub value: f64,
}

/// When the limit will be reached if things go on as they did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Exhaustion {
    /// There are too few samples, or they say nothing.
    Unknown,
    /// It is reached already.
    Reached,
    /// Not along this trend.
    NotInSight,
    /// So many seconds after the last sample.
    In {
        /// Along the median slope.
        seconds: f64,
        /// Along the upper quartile of the slopes: if things go worse than usual.
        earliest_seconds: f64,
    },
}

/// Draws the trend of `levels` (in order of time) on to `limit`, which may lie above (used space) or below (free space).
/// Samples that are no finite numbers are left out.
#[must_use]
pub fn time_to_exhaustion(levels: &[Level], limit: f64) -> Exhaustion {
    let levels: Vec<Level> =
        levels.iter().copied().filter(|level| level.at_seconds.is_finite() && level.value.is_finite()).collect();
    if levels.len() < SAMPLES_MIN || !limit.is_finite() {
        return Exhaustion::Unknown;
    }
    // As if the limit were always above: where the middle of the past lies says on which side it is.
    let mut values: Vec<f64> = levels.iter().map(|level| level.value).collect();
    values.sort_unstable_by(f64::total_cmp);
    let sign = if limit >= values[values.len() / 2] { 1.0 } else { -1.0 };
    let last = levels[levels.len() - 1];
    let room = sign * (limit - last.value);
    if room <= 0.0 {
        return Exhaustion::Reached;
    }
    let stride = levels.len().div_ceil(SAMPLES_MAX);
    let thinned: Vec<Level> = levels.iter().rev().step_by(stride).copied().collect();
    let mut slopes = Vec::with_capacity(thinned.len() * thinned.len() / 2);
    for (index, later) in thinned.iter().enumerate() {
        for earlier in &thinned[index + 1..] {
            let seconds = later.at_seconds - earlier.at_seconds;
            if seconds > 0.0 {
                slopes.push(sign * (later.value - earlier.value) / seconds);
            }
        }
    }
    if slopes.is_empty() {
        return Exhaustion::Unknown;
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let slope = slopes[slopes.len() / 2];
    let steep = slopes[slopes.len() * 3 / 4];
    if slope <= 0.0 {
        return Exhaustion::NotInSight;
    }
    Exhaustion::In { seconds: room / slope, earliest_seconds: room / steep }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(values: impl IntoIterator<Item = f64>) -> Vec<Level> {
        values.into_iter().enumerate().map(|(row, value)| Level { at_seconds: row as f64 * 15.0, value }).collect()
    }

    #[test]
    fn a_disk_that_fills_evenly_is_full_when_arithmetic_says() {
        let filling = levels((0..20).map(|row| 30.0 + f64::from(row)));
        let Exhaustion::In { seconds, earliest_seconds } = time_to_exhaustion(&filling, 100.0) else { panic!() };
        assert!((seconds - 51.0 * 15.0).abs() < 1e-6 && (earliest_seconds - seconds).abs() < 1e-6, "{seconds}");
    }

    #[test]
    fn free_space_runs_down_to_a_limit_below() {
        let falling = levels((0..20).map(|row| 50.0 - 2.0 * f64::from(row)));
        let Exhaustion::In { seconds, .. } = time_to_exhaustion(&falling, 0.0) else { panic!() };
        assert!((seconds - 6.0 * 15.0).abs() < 1e-6, "{seconds}");
    }

    #[test]
    fn a_burst_and_a_cleanup_do_not_turn_the_trend() {
        let mut filling = levels((0..40).map(f64::from));
        filling[10].value = 500.0;
        filling[20].value = 0.0;
        let Exhaustion::In { seconds, .. } = time_to_exhaustion(&filling, 100.0) else { panic!() };
        assert!((seconds / 15.0 - 61.0).abs() < 2.0, "{seconds}");
    }

    #[test]
    fn noise_around_a_level_is_earliest_before_it_is_likely() {
        let noisy = levels((0..60).map(|row| f64::from(row) + f64::from(row * 7919 % 11)));
        let Exhaustion::In { seconds, earliest_seconds } = time_to_exhaustion(&noisy, 200.0) else { panic!() };
        assert!(earliest_seconds < seconds, "{earliest_seconds} {seconds}");
    }

    #[test]
    fn what_stands_still_or_empties_never_fills() {
        assert_eq!(time_to_exhaustion(&levels([40.0; 20]), 100.0), Exhaustion::NotInSight);
        assert_eq!(
            time_to_exhaustion(&levels((0..20).map(|row| 60.0 - f64::from(row))), 100.0),
            Exhaustion::NotInSight
        );
    }

    #[test]
    fn too_little_or_no_numbers_say_nothing() {
        assert_eq!(time_to_exhaustion(&levels([1.0, 2.0]), 9.0), Exhaustion::Unknown);
        assert_eq!(time_to_exhaustion(&levels([f64::NAN; 20]), 9.0), Exhaustion::Unknown);
        assert_eq!(time_to_exhaustion(&levels((0..9).map(f64::from)), f64::NAN), Exhaustion::Unknown);
        let at_once = vec![Level { at_seconds: 1.0, value: 1.0 }; 9];
        assert_eq!(time_to_exhaustion(&at_once, 9.0), Exhaustion::Unknown);
    }

    #[test]
    fn a_limit_that_is_reached_is_said_to_be() {
        assert_eq!(time_to_exhaustion(&levels((0..20).map(|row| 85.0 + f64::from(row))), 100.0), Exhaustion::Reached);
    }

    #[test]
    fn a_long_history_is_thinned_and_still_right() {
        let filling = levels((0..10_000).map(f64::from));
        let Exhaustion::In { seconds, .. } = time_to_exhaustion(&filling, 10_100.0) else { panic!() };
        assert!((seconds / 15.0 - 101.0).abs() < 1.0, "{seconds}");
    }
}
