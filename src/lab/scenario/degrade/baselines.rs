//! What the usual alert rules would have said of the same run, and when: fixed thresholds and `predict_linear`, from the mixins of
//! postgres_exporter and node_exporter, with their windows shortened as the lab's faults are.
//!
//! Without the rules' own `for`, which could only make them later.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use super::unix_seconds;
use crate::domain::clock::WallTime;
use crate::domain::ids::NodeName;
use crate::domain::rate::poisson_upper_95;
use crate::lab::control;
use crate::lab::layout::{Layout, url};
use crate::lab::report::{Baseline, FalseAlarms};

/// The rules: name, and an expression with `$node` that has a series a node while it fires. A day of the mixins is a minute of the lab.
/// node_exporter shows no mounts of a user namespace, so that the space is the agents' own metric, of a volume of 512 MiB.
const RULES: [(&str, &str); 11] = [
    (
        "threshold: less than 5 % of the volume is free",
        "min by (node) (stormglass_data_free_bytes{node=~\"$node\"}) / 536870912 < 0.05",
    ),
    (
        "threshold: less than 15 % of the volume is free",
        "min by (node) (stormglass_data_free_bytes{node=~\"$node\"}) / 536870912 < 0.15",
    ),
    (
        "predict_linear: less than 40 % free, and full within a minute",
        "(min by (node) (stormglass_data_free_bytes{node=~\"$node\"}) / 536870912 < 0.4) \
         and on (node) (min by (node) (predict_linear(stormglass_data_free_bytes{node=~\"$node\"}[15s], 60)) < 0)",
    ),
    (
        "predict_linear: full within a minute",
        "min by (node) (predict_linear(stormglass_data_free_bytes{node=~\"$node\"}[15s], 60)) < 0",
    ),
    (
        "threshold: more than 80 % of the connections are in use",
        "max by (node) (stormglass_connections_used{node=~\"$node\"} / stormglass_connections_allowed{node=~\"$node\"}) > 0.8",
    ),
    (
        "predict_linear: no connection left within a minute",
        "max by (node) (predict_linear(stormglass_connections_used{node=~\"$node\"}[15s], 60)) \
         - max by (node) (stormglass_connections_allowed{node=~\"$node\"}) > 0",
    ),
    (
        "threshold: a slot that nobody reads",
        "max by (node) (pg_replication_slots_pg_wal_lsn_diff{node=~\"$node\",slot_name=\"forgotten_consumer\"}) >= 0",
    ),
    // The usual rules ask node_exporter, to which the host's memory is one: of a control group the agents alone tell.
    (
        "threshold: less than 10 % of the memory is available",
        "min by (node) (stormglass_memory_available_bytes{node=~\"$node\"} / stormglass_memory_total_bytes{node=~\"$node\"}) < 0.1",
    ),
    (
        "predict_linear: no memory left within a minute",
        "min by (node) (predict_linear(stormglass_memory_available_bytes{node=~\"$node\"}[15s], 60)) < 0",
    ),
    // The usual rules ask node_exporter how long the device takes; what holds writes back before the device is not in that.
    (
        "threshold: a write probe takes more than 100 ms",
        "max by (node) (stormglass_probe_seconds{node=~\"$node\",probe=\"write\"}) > 0.1",
    ),
    (
        "predict_linear: a write probe takes more than a second within a minute",
        "max by (node) (predict_linear(stormglass_probe_seconds{node=~\"$node\",probe=\"write\"}[15s], 60)) > 1",
    ),
];

/// The model's own alarm, as the controller shows it.
const MODEL: (&str, &str) = ("model: risk alarm", "max by (node) (stormglass_risk_alarm{node=~\"$node\"}) > 0");

/// Steps at most in one question.
const STEP_SECONDS: u64 = 1;

#[derive(Deserialize)]
struct Answer {
    data: Matrix,
}

#[derive(Deserialize)]
struct Matrix {
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    values: Vec<(f64, String)>,
}

/// When each rule fired first about `node`, in the time `length` from `fault` on.
pub(super) async fn fired(layout: &Layout, node: &NodeName, fault: WallTime, length: Duration) -> Vec<Baseline> {
    let from = unix_seconds(fault);
    let to = from + i64::try_from(length.as_secs()).unwrap_or(0) + 1;
    let mut found = Vec::new();
    for (rule, expression) in RULES {
        let fired = match moments(layout, expression, node.as_str(), from, to).await {
            Ok(moments) => moments.get(node.as_str()).and_then(|seconds| seconds.first().copied()),
            Err(error) => {
                tracing::warn!(rule, error = format!("{error:#}"), "the rule could not be asked for");
                None
            }
        };
        #[expect(clippy::cast_precision_loss, reason = "seconds of a scenario")]
        let after = fired.map(|second| (second - from).max(0) as f64);
        found.push(Baseline { rule: rule.to_owned(), fires_after_seconds: after, lead_seconds: None });
    }
    found
}

/// How often each detector fired in a healthy run of `length` that ended at `until`.
pub(super) async fn false_alarms(
    layout: &Layout,
    until: WallTime,
    length: Duration,
) -> anyhow::Result<Vec<FalseAlarms>> {
    let to = unix_seconds(until);
    let from = to - i64::try_from(length.as_secs()).unwrap_or(0);
    let node_days = length.as_secs_f64() / 86_400.0 * layout.nodes.len() as f64;
    let mut found = Vec::new();
    for (rule, expression) in std::iter::once(MODEL).chain(RULES) {
        let mut alarms = 0;
        for node in &layout.nodes {
            let all = moments(layout, expression, node.name.as_str(), from, to).await?;
            alarms += all.values().map(|seconds| episodes(seconds)).sum::<u64>();
        }
        found.push(FalseAlarms {
            detector: rule.to_owned(),
            alarms,
            node_days,
            alarms_per_node_day: alarms as f64 / node_days,
            upper_bound_95_per_node_day: poisson_upper_95(alarms) / node_days,
        });
    }
    Ok(found)
}

/// Seconds with a break of more than five between them are two alarms.
fn episodes(seconds: &[i64]) -> u64 {
    let breaks = seconds.windows(2).filter(|pair| pair[1] - pair[0] > 5).count() as u64;
    if seconds.is_empty() { 0 } else { breaks + 1 }
}

/// The seconds at which the expression has a value, node by node.
async fn moments(
    layout: &Layout,
    expression: &str,
    node: &str,
    from: i64,
    to: i64,
) -> anyhow::Result<BTreeMap<String, Vec<i64>>> {
    let answer = range(layout, &expression.replace("$node", node), from, to, STEP_SECONDS).await?;
    Ok(answer
        .into_iter()
        .filter_map(|(labels, values)| {
            let node = labels.get("node")?.clone();
            Some((node, values.into_iter().map(|(second, _)| second).collect()))
        })
        .collect())
}

/// Labels of a series, and its values with the second of each.
pub(super) type Values = Vec<(BTreeMap<String, String>, Vec<(i64, f64)>)>;

/// Asks the lab's Prometheus.
pub(super) async fn range(layout: &Layout, query: &str, from: i64, to: i64, step: u64) -> anyhow::Result<Values> {
    let mut address = reqwest::Url::parse(&format!("{}/api/v1/query_range", url(&layout.prometheus)))
        .context("make the address of Prometheus")?;
    address
        .query_pairs_mut()
        .append_pair("query", query)
        .append_pair("start", &from.to_string())
        .append_pair("end", &to.to_string())
        .append_pair("step", &step.to_string());
    let text = control::text(address.as_str()).await?;
    let answer: Answer = serde_json::from_str(&text).context("understand the answer of Prometheus")?;
    Ok(answer
        .data
        .result
        .into_iter()
        .map(|series| {
            #[expect(clippy::cast_possible_truncation, reason = "seconds since 1970")]
            let values = series
                .values
                .into_iter()
                .filter_map(|(at, value)| Some((at.round() as i64, value.parse().ok()?)))
                .collect();
            (series.metric, values)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_that_flickers_is_one() {
        assert_eq!(episodes(&[]), 0);
        assert_eq!(episodes(&[1, 2, 3, 5, 9]), 1);
        assert_eq!(episodes(&[1, 2, 20, 21, 40]), 3);
    }
}
