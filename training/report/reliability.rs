//! What a surprise is worth: the curve from surprise to risk, and whether risk means what it says on machines that it was not learnt on.
//!
//! Isotonic regression (Ayer et al., "An empirical distribution function for sampling with incomplete information", 1955) on the share of
//! rows with trouble now or within the horizon. What never enters: rows of the machine that is judged.

use stormglass::predict::calibration::{Calibration, RiskPoint};
use stormglass::predict::scores::COMPONENTS;

/// Surprises are grouped in steps of this.
const STEP: f32 = 0.25;
/// Groups: up to a surprise of 4; what lies beyond goes to the last.
const GROUPS: usize = 17;
/// Surprises below zero are one group, at this.
const CALM: f32 = -0.125;

/// One machine's surprises and whether there was trouble in the row, or it began within the horizon.
#[derive(Debug, Clone)]
pub struct Outcomes {
    /// A surprise a row.
    pub surprises: Vec<f32>,
    /// Trouble now or within the horizon.
    pub trouble: Vec<bool>,
}

/// Rows in which there is trouble, or begins within so many rows.
pub fn trouble_within(labels: &[bool], rows: usize) -> Vec<bool> {
    let mut trouble = labels.to_vec();
    for (row, label) in labels.iter().enumerate() {
        if *label {
            trouble[row.saturating_sub(rows)..row].fill(true);
        }
    }
    trouble
}

fn group(surprise: f32) -> usize {
    if surprise < 0.0 { 0 } else { (1 + (surprise / STEP) as usize).min(GROUPS) }
}

/// Learns the curve from several machines, every machine counting as much as its rows.
pub fn curve<'machines>(machines: impl Iterator<Item = &'machines Outcomes>) -> Vec<RiskPoint> {
    let mut counts = [(0.0_f64, 0.0_f64); GROUPS + 1];
    for machine in machines {
        for (surprise, trouble) in machine.surprises.iter().zip(&machine.trouble) {
            let count = &mut counts[group(*surprise)];
            count.0 += 1.0;
            count.1 += f64::from(u8::from(*trouble));
        }
    }
    // Pool adjacent violators: (rows, troubled rows, groups).
    let mut pools: Vec<(f64, f64, usize)> = Vec::new();
    for (rows, troubled) in counts {
        pools.push((rows, troubled, 1));
        while let [.., before, last] = pools[..] {
            if before.0 > 0.0 && (last.0 == 0.0 || before.1 * last.0 <= last.1 * before.0) && last.0 > 0.0 {
                break;
            }
            pools.pop();
            pools.pop();
            pools.push((before.0 + last.0, before.1 + last.1, before.2 + last.2));
        }
    }
    let mut points = Vec::new();
    let mut group = 0;
    for (rows, troubled, groups) in pools {
        for _ in 0..groups {
            let surprise = if group == 0 { CALM } else { (group as f32 - 0.5) * STEP };
            points.push(RiskPoint { surprise, risk: (troubled / rows.max(1.0)) as f32 });
            group += 1;
        }
    }
    points
}

/// What of a curve is claimed: where every row was in trouble there were too few of them for certainty, and the risk of the point before it
/// stays. Points of an end that is level are left out.
pub fn claimed(mut points: Vec<RiskPoint>) -> Vec<RiskPoint> {
    for index in 1..points.len() {
        if points[index].risk >= 1.0 {
            points[index].risk = points[index - 1].risk;
        }
    }
    while let [.., before, last] = points[..]
        && before.risk >= last.risk
    {
        points.pop();
    }
    points
}

/// A curve as the source text of the shipped one.
pub fn source_text(points: &[RiskPoint]) -> String {
    let rows: String =
        points.iter().map(|point| format!("    ({:.3}, {:.3}),\n", point.surprise, point.risk)).collect();
    format!(
        "//! From surprise to risk, as `stormglass-train report --curve` wrote it; it writes it again.\n\
         //!\n\
         //! What never enters: a figure typed by hand.\n\n\
         /// The curve of all development machines, as far as it is claimed.\n\
         pub(super) const SHIPPED_CURVE: &[(f32, f32)] = &[\n{rows}];\n"
    )
}

/// The risk of every row by the curve of the other machines, and whether there was trouble.
pub fn leave_one_out(machines: &[Outcomes]) -> Vec<(f64, bool)> {
    let mut predictions = Vec::new();
    for (index, machine) in machines.iter().enumerate() {
        let others = machines.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, machine)| machine);
        let mut calibration = Calibration::shipped([0.0; COMPONENTS]);
        calibration.risk_curve = curve(others);
        let rows = machine.surprises.iter().zip(&machine.trouble);
        predictions.extend(rows.map(|(surprise, trouble)| (calibration.risk(*surprise), *trouble)));
    }
    predictions
}

/// Mean squared error of the risk, and that of always saying the mean.
pub fn brier(predictions: &[(f64, bool)]) -> (f64, f64) {
    let rows = predictions.len().max(1) as f64;
    let base = predictions.iter().filter(|(_, trouble)| *trouble).count() as f64 / rows;
    let error = |risk: f64, trouble: bool| (risk - f64::from(u8::from(trouble))).powi(2);
    (
        predictions.iter().map(|(risk, trouble)| error(*risk, *trouble)).sum::<f64>() / rows,
        predictions.iter().map(|(_, trouble)| error(base, *trouble)).sum::<f64>() / rows,
    )
}

/// One group of rows whose predicted risk was alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reliability {
    /// Mean of the risk that was predicted.
    pub predicted: f64,
    /// Share of rows with trouble.
    pub observed: f64,
    /// Rows.
    pub rows: usize,
}

/// Groups rows by predicted risk, in tenths, those without rows left out.
pub fn reliability(predictions: &[(f64, bool)]) -> Vec<Reliability> {
    let bounds = [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0 + 1e-9];
    bounds
        .windows(2)
        .filter_map(|bound| {
            let inside = predictions.iter().filter(|(risk, _)| (bound[0]..bound[1]).contains(risk));
            let (rows, risk, troubled) = inside.fold((0, 0.0, 0), |(rows, risk, troubled), (predicted, trouble)| {
                (rows + 1, risk + predicted, troubled + usize::from(*trouble))
            });
            (rows > 0).then(|| Reliability {
                predicted: risk / rows as f64,
                observed: troubled as f64 / rows as f64,
                rows,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_seen_coming_and_while_it_lasts() {
        let labels = [false, false, false, true, true, false];
        assert_eq!(trouble_within(&labels, 2), [false, true, true, true, true, false]);
    }

    #[test]
    fn the_shipped_curve_is_that_of_the_report() {
        let rows: String = Calibration::shipped([0.0; COMPONENTS])
            .risk_curve
            .iter()
            .map(|point| format!("| {:.3} | {:.3} |\n", point.surprise, point.risk))
            .collect();
        let report = include_str!("../REPORT.md");
        assert!(report.contains(&format!("| surprise | shipped risk |\n|---:|---:|\n{rows}\n")), "write both again");
    }

    #[test]
    fn certainty_is_not_claimed() {
        let points = [(0.0, 0.1), (1.0, 0.8), (2.0, 0.8), (3.0, 1.0), (4.0, 1.0)]
            .map(|(surprise, risk)| RiskPoint { surprise, risk });
        assert_eq!(claimed(points.to_vec()), points[..2]);
        assert!(source_text(&points[..2]).contains("&[\n    (0.000, 0.100),\n    (1.000, 0.800),\n];"));
    }

    #[test]
    fn the_curve_never_falls_and_says_what_was_seen() {
        let mut outcomes = Outcomes { surprises: Vec::new(), trouble: Vec::new() };
        for (surprise, rows, troubled) in [(-1.0, 100, 1), (0.3, 100, 5), (0.6, 100, 3), (2.1, 10, 8)] {
            for row in 0..rows {
                outcomes.surprises.push(surprise);
                outcomes.trouble.push(row < troubled);
            }
        }
        let points = curve([&outcomes].into_iter());
        assert_eq!(points.len(), GROUPS + 1);
        assert!(points.windows(2).all(|pair| pair[0].surprise < pair[1].surprise && pair[0].risk <= pair[1].risk));
        let at = |surprise: f32| points[group(surprise)].risk;
        assert!(
            (at(-1.0) - 0.01).abs() < 1e-6 && (at(0.3) - 0.04).abs() < 1e-6 && (at(2.1) - 0.8).abs() < 1e-6,
            "{points:?}"
        );
        assert!((at(0.6) - 0.04).abs() < 1e-6, "the two that fall are one");
    }

    #[test]
    fn a_prediction_that_is_right_is_reliable() {
        let predictions: Vec<(f64, bool)> = (0..100).map(|row| (0.25, row % 4 == 0)).collect();
        assert_eq!(reliability(&predictions), [Reliability { predicted: 0.25, observed: 0.25, rows: 100 }]);
    }
}
