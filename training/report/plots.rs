//! Pictures of the report, as PNG.
//!
//! Without text: the program carries no font, and what axes mean stands in the report under each picture. What never enters: figures that
//! are not in the tables.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

use super::reliability::Reliability;

/// Bars of one group side by side, in the order of `values`, each between 0 and 1.
pub fn bars(path: &Path, values: &[Vec<f64>]) -> anyhow::Result<()> {
    let width = 60 * values.len() as u32 + 40;
    let root = BitMapBackend::new(path, (width.max(200), 300)).into_drawing_area();
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root).margin(15).build_cartesian_2d(0.0..values.len() as f64, 0.0..1.0)?;
        chart.draw_series((0..=10).map(|tenth| {
            let height = f64::from(tenth) / 10.0;
            let colour = if tenth % 5 == 0 { BLACK.mix(0.5) } else { BLACK.mix(0.12) };
            PathElement::new(vec![(0.0, height), (values.len() as f64, height)], colour)
        }))?;
        for (group, bars) in values.iter().enumerate() {
            let share = 0.8 / bars.len() as f64;
            for (index, value) in bars.iter().enumerate() {
                let left = group as f64 + 0.1 + index as f64 * share;
                let corners = [(left, 0.0), (left + share * 0.9, value.clamp(0.0, 1.0))];
                chart.draw_series([Rectangle::new(corners, Palette99::pick(index).filled())])?;
            }
        }
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| anyhow!("draw {}: {error}", path.display()))
}

/// Predicted against observed risk; the diagonal is what it should be, the size of a point its rows.
pub fn reliability(path: &Path, points: &[Reliability]) -> anyhow::Result<()> {
    let root = BitMapBackend::new(path, (360, 360)).into_drawing_area();
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root).margin(15).build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
        for tenth in 0..=10 {
            let at = f64::from(tenth) / 10.0;
            let colour = BLACK.mix(if tenth % 5 == 0 { 0.5 } else { 0.12 });
            chart.draw_series([PathElement::new(vec![(0.0, at), (1.0, at)], colour)])?;
            chart.draw_series([PathElement::new(vec![(at, 0.0), (at, 1.0)], colour)])?;
        }
        chart.draw_series([PathElement::new(vec![(0.0, 0.0), (1.0, 1.0)], BLUE)])?;
        let line: Vec<(f64, f64)> = points.iter().map(|point| (point.predicted, point.observed)).collect();
        chart.draw_series([PathElement::new(line, RED.stroke_width(2))])?;
        chart.draw_series(points.iter().map(|point| {
            let size = 2 + (point.rows as f64).log10().max(0.0) as i32;
            Circle::new((point.predicted, point.observed), size, RED.filled())
        }))?;
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| anyhow!("draw {}: {error}", path.display()))
}

/// A machine's surprise over time; incidents shaded, alarms marked at the bottom, the threshold a line.
pub fn timeline(
    path: &Path,
    surprises: &[f32],
    labels: &[bool],
    alarms: &[bool],
    threshold: f32,
) -> anyhow::Result<()> {
    let root = BitMapBackend::new(path, (1200, 220)).into_drawing_area();
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        root.fill(&WHITE)?;
        let rows = surprises.len();
        let mut chart = ChartBuilder::on(&root).margin(10).build_cartesian_2d(0..rows, -2.0_f32..5.0)?;
        for (first, last) in crate::evaluation::runs(labels) {
            let last = last.max(first + rows / 600);
            chart.draw_series([Rectangle::new([(first, -2.0), (last, 5.0)], RED.mix(0.25).filled())])?;
        }
        let line = surprises.iter().enumerate().map(|(row, surprise)| (row, surprise.clamp(-2.0, 5.0)));
        chart.draw_series([PathElement::new(line.collect::<Vec<_>>(), BLUE)])?;
        chart.draw_series([PathElement::new(vec![(0, threshold), (rows, threshold)], BLACK)])?;
        for (first, last) in crate::evaluation::runs(alarms) {
            let last = last.max(first + rows / 400);
            chart.draw_series([Rectangle::new([(first, -2.0), (last, -1.4)], BLACK.filled())])?;
        }
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| anyhow!("draw {}: {error}", path.display()))
}
