//! What others would have said: scores without a model, computed in the same run on the same rows.
//!
//! Causal, statistics of the training rows only. What never enters: labels.

use stormglass::predict::Samples;
use stormglass::predict::fit::{Scales, scale_row};
use stormglass::predict::residuals::Covariance;
use stormglass::predict::scaler::FeatureScale;

/// Weight of the newest value in the control chart.
const CHART_WEIGHT: f32 = 0.2;
/// Span of the line of `predict_linear`, and how far it looks ahead.
const LINE_SECONDS: u32 = 3600;

/// Scores of the test rows by every method without a model, with its name.
pub fn scores(train: &Samples, test: &Samples, step_seconds: u32) -> Vec<(&'static str, Vec<f64>)> {
    let scales = Scales::of(std::slice::from_ref(train)).pooled;
    vec![
        ("largest z of a metric", largest_z(&scales, test)),
        ("EWMA control chart", control_chart(&scales, test)),
        ("predict_linear, 1 h", predict_linear(train, test, (LINE_SECONDS / step_seconds).max(3) as usize)),
        ("Mahalanobis distance of levels", mahalanobis(&scales, train, test)),
    ]
}

/// Values in spreads from their centre, without a limit; 0 for what is missing or never changed.
fn z(scale: FeatureScale, value: Option<f32>) -> f32 {
    match value {
        Some(value) if scale.spread > 0.0 => (value - scale.center) / scale.spread,
        _ => 0.0,
    }
}

fn each_row(samples: &Samples, mut visit: impl FnMut(&[Option<f32>]) -> f64) -> Vec<f64> {
    let mut row = Vec::new();
    (0..samples.rows())
        .map(|index| {
            samples.read(index, &mut row);
            visit(&row)
        })
        .collect()
}

fn largest_z(scales: &[FeatureScale], test: &Samples) -> Vec<f64> {
    each_row(test, |row| {
        f64::from(scales.iter().zip(row).map(|(scale, value)| z(*scale, *value).abs()).fold(0.0, f32::max))
    })
}

fn control_chart(scales: &[FeatureScale], test: &Samples) -> Vec<f64> {
    let mut means = vec![0.0_f32; scales.len()];
    let spread = (CHART_WEIGHT / (2.0 - CHART_WEIGHT)).sqrt();
    each_row(test, |row| {
        let mut worst = 0.0_f32;
        for ((mean, scale), value) in means.iter_mut().zip(scales).zip(row) {
            *mean += CHART_WEIGHT * (z(*scale, *value) - *mean);
            worst = worst.max(mean.abs() / spread);
        }
        f64::from(worst)
    })
}

fn mahalanobis(scales: &[FeatureScale], train: &Samples, test: &Samples) -> Vec<f64> {
    let mut covariance = Covariance::new(scales.len());
    let mut scaled = Vec::new();
    let mut plain = Vec::new();
    let fill = |row: &[Option<f32>], scaled: &mut Vec<Option<f32>>, plain: &mut Vec<f32>| {
        scale_row(scales, row, scaled);
        plain.clear();
        plain.extend(scaled.iter().map(|value| value.unwrap_or(0.0)));
    };
    each_row(train, |row| {
        fill(row, &mut scaled, &mut plain);
        covariance.add(&plain);
        0.0
    });
    let whitening = covariance.whitening();
    let mut centred = Vec::new();
    each_row(test, |row| {
        fill(row, &mut scaled, &mut plain);
        f64::from(whitening.distance(&plain, &mut centred))
    })
}

/// As Prometheus draws it: a least-squares line through the last hour, looked at an hour ahead; the score is how far it leaves the range
/// of training, in widths of that range.
fn predict_linear(train: &Samples, test: &Samples, span: usize) -> Vec<f64> {
    let features = train.features();
    let ranges: Vec<(f32, f32)> = (0..features)
        .map(|feature| {
            let column = train.column(feature);
            column
                .iter()
                .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)))
        })
        .collect();
    let mut history: Vec<Vec<f32>> = vec![Vec::with_capacity(test.rows()); features];
    let middle = (span - 1) as f32 / 2.0;
    let squares: f32 = (0..span).map(|at| (at as f32 - middle).powi(2)).sum();
    each_row(test, |row| {
        let mut worst = 0.0_f32;
        for ((values, value), (low, high)) in history.iter_mut().zip(row).zip(&ranges) {
            let value = value.or(values.last().copied()).unwrap_or(0.0);
            values.push(value);
            if values.len() < span || high <= low {
                continue;
            }
            let window = &values[values.len() - span..];
            let mean = window.iter().sum::<f32>() / span as f32;
            let slope =
                window.iter().zip(0..span).map(|(value, at)| (at as f32 - middle) * (value - mean)).sum::<f32>()
                    / squares;
            let ahead = mean + slope * (middle + span as f32);
            worst = worst.max((ahead - high).max(low - ahead) / (high - low));
        }
        f64::from(worst)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: impl Iterator<Item = f32>) -> Samples {
        let mut samples = Samples::new(1);
        values.for_each(|value| samples.push(&[Some(value)]));
        samples
    }

    #[test]
    fn a_line_that_leads_out_of_the_range_scores_as_far_as_it_leads() {
        let train = samples((0..100).map(|row| (row % 11) as f32));
        let test = samples((0..20).map(|row| row as f32 / 2.0));
        let scores = predict_linear(&train, &test, 10);
        // After row 19 (9.5) the line reaches 9.5 + 10 · 0.5 = 14.5 ten rows ahead; the range is 0 to 10.
        assert!((scores[19] - 0.45).abs() < 1e-5, "{}", scores[19]);
        assert_eq!(scores[5], 0.0, "no line before there is an hour");
    }

    #[test]
    fn every_baseline_scores_every_row_with_a_number() {
        let train = samples((0..500).map(|row| (row as f32 * 0.7).sin()));
        let test = samples((0..100).map(|row| if row == 50 { 30.0 } else { (row as f32 * 0.7).sin() }));
        for (name, scores) in scores(&train, &test, 300) {
            assert_eq!(scores.len(), 100, "{name}");
            assert!(scores.iter().all(|score| score.is_finite()), "{name}");
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert!(scores[50..63].contains(&largest), "{name} does not see the spike");
        }
    }
}
