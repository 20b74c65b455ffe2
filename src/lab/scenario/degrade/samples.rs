//! Samples of a run as tables for the trainer: one CSV a node, one column a feature, one row a step.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::baselines::range;
use super::unix_seconds;
use crate::config::features::load_features;
use crate::domain::feature::AbsentValue;
use crate::lab::control::Controller;
use crate::lab::layout::Layout;

/// The lab's step.
const STEP_SECONDS: u32 = 1;

/// Writes the samples of the last `length` below `directory`.
pub(super) async fn write(layout: &Layout, directory: &Path, length: Duration) -> anyhow::Result<()> {
    let features = load_features(None)?;
    let until = unix_seconds(Controller::of(layout)?.status().await?.at) - 2;
    let from = until - i64::try_from(length.as_secs()).context("count the seconds of the run")?;
    let rows = usize::try_from(until - from).unwrap_or(0) + 1;
    let mut tables: BTreeMap<String, Vec<Vec<Option<f64>>>> =
        layout.nodes.iter().map(|node| (node.name.to_string(), vec![vec![None; features.len()]; rows])).collect();
    for (column, feature) in features.iter().enumerate() {
        let query = feature.filled_in(layout.nodes.iter().map(|node| node.name.as_str()), STEP_SECONDS);
        for (labels, values) in range(layout, &query, from, until, STEP_SECONDS.into()).await? {
            let Some(table) = labels.get("node").and_then(|node| tables.get_mut(node)) else { continue };
            for (second, value) in values {
                if let Some(row) = usize::try_from(second - from).ok().and_then(|place| table.get_mut(place)) {
                    row[column] = Some(value).filter(|value| value.is_finite());
                }
            }
        }
    }
    std::fs::create_dir_all(directory).with_context(|| format!("make the directory {}", directory.display()))?;
    for (node, table) in tables {
        let mut text = features.iter().map(|feature| feature.name.as_str()).collect::<Vec<_>>().join(",") + "\n";
        for row in table {
            let is_known = row.iter().any(Option::is_some);
            let cells = row.iter().zip(&features).map(|(value, feature)| match (value, feature.absent) {
                (Some(value), _) => value.to_string(),
                (None, Some(AbsentValue::Zero)) if is_known => "0".to_owned(),
                (None, _) => String::new(),
            });
            text += &(cells.collect::<Vec<_>>().join(",") + "\n");
        }
        let file = directory.join(format!("{node}.csv"));
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}
