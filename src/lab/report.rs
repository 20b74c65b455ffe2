//! What a scenario found: the JSON report (a contract: fields are added, never renamed) and the table for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::client::held::HeldTally;
use super::load::StatusLoadReport;
use super::phases::{Phases, StepTime};
use crate::domain::clock::WallTime;
use crate::domain::ids::NodeName;

/// Version of the document.
pub const REPORT_SCHEMA_VERSION: u32 = 1;

/// One run of a scenario.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Which scenario.
    pub scenario: String,
    /// With it the run can be repeated.
    pub seed: u64,
    /// True if every check of the scenario held.
    pub succeeded: bool,
    /// What did not hold.
    pub failures: Vec<String>,
    /// Longest gap between acknowledged commits of the writers behind HAProxy, from the fault until all was well again.
    pub write_outage_seconds: Option<f64>,
    /// Waiting for a name to expire; `null` without DNS.
    pub dns_ttl_wait_seconds: Option<f64>,
    /// Where the time went, for the fault with the longest outage.
    pub phases: Phases,
    /// Commits acknowledged to any writer, also to those that bypass HAProxy.
    pub acked_commits: u64,
    /// Acknowledged to any writer and not on the final primary; `null` if it could not be read.
    pub lost_commits: Option<u64>,
    /// On the final primary more than once.
    pub duplicate_commits: Option<u64>,
    /// Writes through HAProxy that were not acknowledged.
    pub failed_commits: u64,
    /// Connections through HAProxy that were refused or closed before PostgreSQL let the client in.
    pub refused_connections: u64,
    /// Connections through HAProxy that were not answered in time.
    pub unanswered_connections: u64,
    /// True if any writer had a commit of an older epoch acknowledged after the first of a newer one.
    pub two_writers: bool,
    /// Primary before the fault.
    pub old_primary: Option<NodeName>,
    /// Primary at the end.
    pub new_primary: Option<NodeName>,
    /// Epoch at the end.
    pub epoch: Option<u64>,
    /// What the name leads to; `null` without DNS.
    pub dns_answer: Option<String>,
    /// True if at the end every former primary streams as a standby, or is the primary.
    pub rejoined: bool,
    /// What was done until redundancy was back.
    pub restore_sequence: Vec<StepTime>,
    /// From the fault until the cluster was as redundant as before.
    pub redundant_after_seconds: Option<f64>,
    /// Predictive scenarios only.
    pub risk_lead_seconds: Option<f64>,
    /// Commits a second through HAProxy before the fault.
    pub load_commits_per_second: f64,
    /// Each fault that was injected.
    pub faults: Vec<FaultReport>,
    /// Errors that the writers behind HAProxy saw.
    pub client_errors: BTreeMap<String, u64>,
    /// `healthy-load` only: what alarmed although nothing was wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub false_alarms: Vec<FalseAlarms>,
    /// Scenario `restore` only.
    #[serde(default)]
    pub restore: Option<RestoreReport>,
    /// `switchover --held`: the longest statement that a client of PgBouncer waited for.
    pub longest_statement_seconds: Option<f64>,
    /// `switchover --held`: newcomers, each with a connection of its own through HAProxy, who were not let in.
    pub failed_new_connections: Option<u64>,
    /// `switchover --held`: transactions through PgBouncer that failed for whatever reason.
    pub pool_errors: Option<u64>,
    /// `switchover --held`: all that those clients saw.
    pub held: Option<HeldTally>,
    /// `--status-rate`: what the status requests saw; `null` of the runs without them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_load: Option<StatusLoadReport>,
    /// At the end, the site that serves the application at each proxy; `null` from one that does not answer.
    pub application_served_from: BTreeMap<String, Option<String>>,
}

/// What a prediction made of a growing fault.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PredictionReport {
    /// What predictions could do.
    pub mode: String,
    /// From the beginning of the fault to the decision to move the primary; `null`: there was none.
    pub decided_after_seconds: Option<f64>,
    /// From the beginning of the fault to the first commit or connection that failed, or commit of more than a second; in the
    /// control run.
    pub trouble_after_seconds: Option<f64>,
    /// The second less the first.
    pub lead_seconds: Option<f64>,
    /// The decision came before any commit of its own run failed or was slow.
    pub moved_before_trouble: Option<bool>,
    /// Why it was decided.
    pub reasons: Vec<String>,
    /// What the usual alert rules said of the control run.
    pub baselines: Vec<Baseline>,
}

/// An alert rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// What it watches.
    pub rule: String,
    /// From the beginning of the fault until it fires; `null`: it never does.
    pub fires_after_seconds: Option<f64>,
    /// Before the first trouble of the control run.
    pub lead_seconds: Option<f64>,
}

/// How often something alarmed although nothing was wrong.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FalseAlarms {
    /// What.
    pub detector: String,
    /// How often.
    pub alarms: u64,
    /// For how long, times how many nodes.
    pub node_days: f64,
    /// One divided by the other.
    pub alarms_per_node_day: f64,
    /// The true rate is below this, with 95 % confidence.
    pub upper_bound_95_per_node_day: f64,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Up to where.
    pub target: WallTime,
    /// From the request until the restored primary accepted writes through HAProxy.
    pub rto_seconds: Option<f64>,
    /// Acknowledged before the target: all of them must be there.
    pub commits_before_target: u64,
    /// Acknowledged between the target and the end of the data: gone, as it was wished.
    pub commits_after_target: u64,
}

/// One fault.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FaultReport {
    /// What was done.
    pub fault: String,
    /// Longest gap between acknowledged commits around it.
    pub write_outage_seconds: Option<f64>,
    /// From the fault until the cluster was as redundant as before.
    pub redundant_after_seconds: Option<f64>,
    /// Where the time went.
    pub phases: Phases,
    /// Steps of the operation that moved the primary.
    pub steps: Vec<StepTime>,
    /// Primary before it.
    pub old_primary: Option<NodeName>,
    /// Primary after it.
    pub new_primary: Option<NodeName>,
    /// Epoch after it.
    pub epoch: Option<u64>,
    /// How often the standbys renewed the primary's lease while no controller answered; `null` where one did.
    pub lease_renewals_by_standbys: Option<u64>,
    /// Growing faults only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<PredictionReport>,
}

/// Several runs of one scenario.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// [`REPORT_SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Which scenario.
    pub scenario: String,
    /// True if every run succeeded.
    pub succeeded: bool,
    /// Least, median and greatest of the outage and of each phase, in seconds.
    pub summary: BTreeMap<String, Spread>,
    /// Every run.
    pub runs: Vec<Report>,
}

/// Least, median and greatest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Least.
    pub min: f64,
    /// Median; of an even number the mean of the two in the middle.
    pub median: f64,
    /// Greatest.
    pub max: f64,
}

/// Names and values of the phases, in order.
fn named(phases: &Phases) -> [(&'static str, Option<f64>); 6] {
    [
        ("detect", phases.detect),
        ("decide", phases.decide),
        ("fence", phases.fence),
        ("promote", phases.promote),
        ("redirect", phases.redirect),
        ("verify", phases.verify),
    ]
}

impl Spread {
    /// Of `values`; `None` if there are none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { min, median, max })
    }
}

impl Series {
    /// Sums runs up.
    pub fn of(scenario: &str, runs: Vec<Report>) -> Self {
        let mut summary = BTreeMap::new();
        let mut add = |name: &str, values: Vec<f64>| {
            if let Some(spread) = Spread::of(values) {
                summary.insert(name.to_owned(), spread);
            }
        };
        let (loaded, quiet): (Vec<&Report>, Vec<&Report>) = runs.iter().partition(|run| run.status_load.is_some());
        let outages = |runs: &[&Report]| runs.iter().filter_map(|run| run.write_outage_seconds).collect::<Vec<f64>>();
        add("write_outage", outages(&quiet));
        let loads = || loaded.iter().filter_map(|run| run.status_load.as_ref());
        add("write_outage_under_load", outages(&loaded));
        add("status_p50", loads().map(|load| load.p50_seconds).collect());
        add("status_p99", loads().map(|load| load.p99_seconds).collect());
        add("status_max", loads().map(|load| load.max_seconds).collect());
        add("longest_statement", runs.iter().filter_map(|run| run.longest_statement_seconds).collect());
        for (place, (name, _)) in named(&Phases::default()).into_iter().enumerate() {
            add(name, runs.iter().filter_map(|run| named(&run.phases)[place].1).collect());
        }
        Self {
            schema_version: REPORT_SCHEMA_VERSION,
            scenario: scenario.to_owned(),
            succeeded: !runs.is_empty() && runs.iter().all(|run| run.succeeded),
            summary,
            runs,
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let good = self.runs.iter().filter(|run| run.succeeded).count();
        let mut text = format!("{}: {good} of {} runs succeeded\n", self.scenario, self.runs.len());
        let _ = writeln!(text, "{:<24}{:>10}{:>10}{:>10}", "seconds", "min", "median", "max");
        let names =
            ["write_outage", "write_outage_under_load", "status_p50", "status_p99", "status_max", "longest_statement"];
        let names = names.into_iter().chain(named(&Phases::default()).map(|(name, _)| name));
        for name in names {
            if let Some(spread) = self.summary.get(name) {
                let shown = name.replace('_', " ");
                let _ = writeln!(text, "{shown:<24}{:>10.3}{:>10.3}{:>10.3}", spread.min, spread.median, spread.max);
            }
        }
        let sum = |pick: fn(&Report) -> u64| self.runs.iter().map(pick).sum::<u64>();
        let _ = writeln!(
            text,
            "commits: {} acknowledged, {} lost, {} duplicate, {} failed; {} connections refused; two writers: {}",
            sum(|run| run.acked_commits),
            sum(|run| run.lost_commits.unwrap_or(0)),
            sum(|run| run.duplicate_commits.unwrap_or(0)),
            sum(|run| run.failed_commits),
            sum(|run| run.refused_connections),
            yes(self.runs.iter().any(|run| run.two_writers)),
        );
        text.push_str(&StatusLoadReport::words(self.runs.iter().filter_map(|run| run.status_load.as_ref())));
        for run in self.runs.iter().filter(|run| !run.succeeded) {
            let _ = writeln!(text, "seed {}: {}", run.seed, run.failures.join("; "));
        }
        text
    }
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let verdict = if self.succeeded { "succeeded" } else { "FAILED" };
        let mut text = format!("{}  {verdict}  (seed {})\n\n", self.scenario, self.seed);
        for fault in &self.faults {
            fault.describe(&mut text);
        }
        let unknown = || "?".to_owned();
        let number = |value: Option<u64>| value.map_or_else(unknown, |value| value.to_string());
        for (name, value) in [
            ("write outage", self.write_outage_seconds.map_or_else(unknown, |seconds| format!("{seconds:.3} s"))),
            (
                "acknowledged",
                format!(
                    "{} commits, {:.0} a second before the fault",
                    self.acked_commits, self.load_commits_per_second
                ),
            ),
            ("lost", number(self.lost_commits)),
            ("duplicate", number(self.duplicate_commits)),
            ("failed", format!("{} (told so, or unknown; never retried)", self.failed_commits)),
            ("refused", format!("{} connections", self.refused_connections)),
            ("two writers", yes(self.two_writers).to_owned()),
            ("rejoined", yes(self.rejoined).to_owned()),
        ] {
            let _ = writeln!(text, "{name:<14}{value}");
        }
        if let Some(held) = &self.held {
            let _ = writeln!(
                text,
                "{:<14}{} transactions, {} errors, longest statement {:.3} s\n{:<14}{} connections, {} failed, longest {:.3} s",
                "PgBouncer",
                held.pooled.served,
                held.pooled.errors,
                held.pooled.longest_seconds,
                "newcomers",
                held.newcomers.served,
                held.newcomers.errors,
                held.newcomers.longest_seconds,
            );
        }
        for step in &self.restore_sequence {
            let _ = writeln!(text, "  {:<14}{:<10}{}", step.step.replace('_', " "), step.outcome, shown(step.seconds));
        }
        for one in &self.false_alarms {
            let _ = writeln!(
                text,
                "{:>4} alarms in {:.4} node-days, at most {:.1} a node-day (95 %)  {}",
                one.alarms, one.node_days, one.upper_bound_95_per_node_day, one.detector
            );
        }
        if !self.failures.is_empty() {
            text.push_str("\nwhat did not hold:\n");
            for failure in &self.failures {
                let _ = writeln!(text, "  {failure}");
            }
            for (error, count) in &self.client_errors {
                let _ = writeln!(text, "  client: {count} x {error}");
            }
            let held = self.held.iter().flat_map(|held| [("PgBouncer", &held.pooled), ("newcomer", &held.newcomers)]);
            for (who, (error, count)) in held.flat_map(|(who, tally)| tally.words.iter().map(move |words| (who, words)))
            {
                let _ = writeln!(text, "  {who}: {count} x {error}");
            }
        }
        text
    }
}

impl FaultReport {
    fn describe(&self, text: &mut String) {
        let name = |node: &Option<NodeName>| node.as_ref().map_or("?".to_owned(), NodeName::to_string);
        let (old, new) = (name(&self.old_primary), name(&self.new_primary));
        let epoch = self.epoch.map_or("?".to_owned(), |epoch| epoch.to_string());
        let _ = writeln!(text, "{}: {old} -> {new} (epoch {epoch})", self.fault);
        for (phase, seconds) in named(&self.phases) {
            if seconds.is_some() {
                let _ = writeln!(text, "  {phase:<14}{}", shown(seconds));
            }
        }
        if let Some(renewals) = self.lease_renewals_by_standbys {
            let _ = writeln!(text, "  {:<14}{renewals:>9} times by the standbys", "lease renewed");
        }
        if let Some(prediction) = &self.prediction {
            prediction.describe(text);
        }
        let _ = writeln!(text, "  {:<14}{}", "write outage", shown(self.write_outage_seconds));
        let _ = writeln!(text, "  {:<14}{}\n", "redundant", shown(self.redundant_after_seconds));
    }
}

impl PredictionReport {
    fn describe(&self, text: &mut String) {
        let _ = writeln!(text, "  {:<14}{} after its beginning", "decided", shown(self.decided_after_seconds));
        let _ =
            writeln!(text, "  {:<14}{} after it, without a predictor", "trouble", shown(self.trouble_after_seconds));
        let _ = writeln!(text, "  {:<14}{}", "lead", shown(self.lead_seconds));
        for reason in self.reasons.iter().take(3) {
            let _ = writeln!(text, "  {:<14}{reason}", "because");
        }
        for baseline in &self.baselines {
            let _ = writeln!(text, "  {:<14}{}  {}", "rule fires", shown(baseline.fires_after_seconds), baseline.rule);
        }
    }
}

fn shown(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| format!("{:>9}", "?"), |seconds| format!("{seconds:>9.3} s"))
}

fn yes(fact: bool) -> &'static str {
    if fact { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(outage: f64, promote: Option<f64>) -> Report {
        Report {
            scenario: "kill-primary".into(),
            succeeded: true,
            write_outage_seconds: Some(outage),
            phases: Phases { promote, ..Phases::default() },
            lost_commits: Some(0),
            duplicate_commits: Some(0),
            faults: vec![FaultReport { fault: "kill".into(), ..FaultReport::default() }],
            ..Report::default()
        }
    }

    #[test]
    fn the_report_has_every_promised_field_and_null_where_one_does_not_apply() {
        let document = serde_json::to_value(run(0.2, None)).expect("JSON");
        let fields = document.as_object().expect("object");
        for name in [
            "scenario",
            "write_outage_seconds",
            "dns_ttl_wait_seconds",
            "phases",
            "acked_commits",
            "lost_commits",
            "duplicate_commits",
            "failed_commits",
            "refused_connections",
            "two_writers",
            "old_primary",
            "new_primary",
            "epoch",
            "dns_answer",
            "rejoined",
            "restore_sequence",
            "risk_lead_seconds",
        ] {
            assert!(fields.contains_key(name), "{name} is missing");
        }
        for phase in ["detect", "decide", "fence", "promote", "redirect", "verify"] {
            assert!(fields["phases"].as_object().expect("object").contains_key(phase), "{phase} is missing");
        }
        assert!(fields["dns_answer"].is_null());
        assert!(fields["two_writers"].is_boolean() && fields["rejoined"].is_boolean());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let spread = Spread::of(vec![0.4, 0.1, 0.3, 0.2]).expect("values");
        assert!((spread.median - 0.25).abs() < 1e-9);
        assert_eq!((spread.min, spread.max), (0.1, 0.4));
        assert_eq!(Spread::of(vec![0.5]), Some(Spread { min: 0.5, median: 0.5, max: 0.5 }));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn a_series_sums_up_what_the_runs_had() {
        let series = Series::of("kill-primary", vec![run(0.1, Some(0.05)), run(0.3, None), run(0.2, Some(0.07))]);
        assert!(series.succeeded);
        assert_eq!(series.summary["write_outage"], Spread { min: 0.1, median: 0.2, max: 0.3 });
        assert!((series.summary["promote"].median - 0.06).abs() < 1e-9);
        assert!(!series.summary.contains_key("verify"));
        assert!(series.table().contains("3 of 3 runs succeeded"));
        assert!(!Series::of("kill-primary", Vec::new()).succeeded, "no run proves nothing");
    }

    #[test]
    fn what_failed_is_said_in_the_table() {
        let mut failed = run(0.2, None);
        failed.succeeded = false;
        failed.failures.push("n1 did not come back".into());
        assert!(failed.table().contains("FAILED") && failed.table().contains("n1 did not come back"));
    }
}
