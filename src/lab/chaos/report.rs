//! What chaos found: the JSON report (fields are added, never renamed) and the table for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::domain::ids::NodeName;
use crate::lab::report::Spread;

/// Version of the document.
pub const CHAOS_SCHEMA_VERSION: u32 = 1;

/// A whole run of `lab chaos`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChaosReport {
    /// [`CHAOS_SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Repeats what was drawn.
    pub seed: u64,
    /// True if every check held.
    pub succeeded: bool,
    /// True if it was stopped before its end.
    pub interrupted: bool,
    /// What did not hold beyond a single fault.
    pub failures: Vec<String>,
    /// Faults that were left out, and why.
    pub skipped: Vec<Skipped>,
    /// Every fault, in the order in which they happened.
    pub faults: Vec<Outcome>,
    /// Commits acknowledged to any writer, also to those that bypass HAProxy.
    pub acked_commits: u64,
    /// Acknowledged and not on the primary at the end of their lab; `null` if one could not be read.
    pub lost_commits: Option<u64>,
    /// On it more than once.
    pub duplicate_commits: Option<u64>,
    /// True if any writer had a commit of an older timeline acknowledged after the first of a newer one.
    pub two_writers: bool,
    /// Least, median and greatest write outage in seconds.
    pub write_outage: Option<Spread>,
    /// The same for each fault that happened more than once.
    pub write_outage_by_fault: BTreeMap<String, Repeated>,
}

/// A fault that happened more than once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Repeated {
    /// How often.
    pub count: usize,
    /// Least, median and greatest write outage in seconds.
    pub write_outage: Spread,
}

/// A fault that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its name.
    pub fault: String,
    /// Why.
    pub reason: String,
}

/// One fault.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its name.
    pub fault: String,
    /// True if it was drawn.
    pub random: bool,
    /// How long it lasted.
    pub lasted_seconds: f64,
    /// Longest gap between acknowledged commits of the writers behind HAProxy, until all was well again.
    pub write_outage_seconds: Option<f64>,
    /// From its end until the cluster was redundant again; `null` if it was not in time.
    pub whole_after_seconds: Option<f64>,
    /// Commits acknowledged while it was watched.
    pub acked_commits: u64,
    /// Acknowledged and not on the primary afterwards; `null` if it could not be read.
    pub lost_commits: Option<u64>,
    /// True if two primaries acknowledged commits.
    pub two_writers: bool,
    /// By how much the epoch grew.
    pub moves: u64,
    /// Primary before it.
    pub old_primary: Option<NodeName>,
    /// Primary after it.
    pub new_primary: Option<NodeName>,
    /// What the controller did, in its own words.
    pub decisions: Vec<String>,
    /// Commits a second before it.
    pub load_commits_per_second: f64,
    /// The same as the write outage for the writers that bypass HAProxy: what differs is the proxies' part.
    #[serde(default)]
    pub bypass_outage_seconds: Option<f64>,
    /// Errors that the writers behind HAProxy saw, by their first words.
    #[serde(default)]
    pub client_errors: BTreeMap<String, u64>,
    /// What did not hold.
    pub failures: Vec<String>,
}

impl Outcome {
    /// One line of the table.
    pub fn line(&self) -> String {
        let seconds = |value: Option<f64>| value.map_or("?".to_owned(), |value| format!("{value:.2}"));
        let lost = self.lost_commits.map_or("?".to_owned(), |lost| lost.to_string());
        let name = |node: &Option<NodeName>| node.as_ref().map_or("?".to_owned(), NodeName::to_string);
        let primary = match self.old_primary == self.new_primary {
            true => name(&self.old_primary),
            false => format!("{}>{}", name(&self.old_primary), name(&self.new_primary)),
        };
        let writers = if self.two_writers { "TWO" } else { "one" };
        let decisions = if self.decisions.is_empty() { "nothing".to_owned() } else { self.decisions.join("; ") };
        let mut line = format!(
            "{:<23}{:>7.1}{:>9}{:>8}{:>6}{:>8}{:>7}  {:<8}{decisions}",
            self.fault,
            self.lasted_seconds,
            seconds(self.write_outage_seconds),
            seconds(self.whole_after_seconds),
            lost,
            writers,
            self.moves,
            primary
        );
        for failure in &self.failures {
            let _ = write!(line, "\n  FAILED: {failure}");
        }
        line
    }
}

/// What stands over the lines.
pub fn header() -> String {
    format!(
        "{:<23}{:>7}{:>9}{:>8}{:>6}{:>8}{:>7}  {:<8}decision",
        "fault", "lasted", "outage", "whole", "lost", "writers", "moves", "primary"
    )
}

impl ChaosReport {
    /// Draws the conclusion.
    pub fn conclude(&mut self) {
        self.write_outage = Spread::of(self.faults.iter().filter_map(|outcome| outcome.write_outage_seconds).collect());
        let mut outages: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for outcome in &self.faults {
            outages.entry(&outcome.fault).or_default().extend(outcome.write_outage_seconds);
        }
        self.write_outage_by_fault = outages
            .into_iter()
            .filter(|(_, seconds)| seconds.len() > 1)
            .filter_map(|(fault, seconds)| {
                let count = seconds.len();
                Spread::of(seconds).map(|write_outage| (fault.to_owned(), Repeated { count, write_outage }))
            })
            .collect();
        self.succeeded = !self.interrupted
            && !self.faults.is_empty()
            && self.failures.is_empty()
            && self.faults.iter().all(|outcome| outcome.failures.is_empty());
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = header() + "\n";
        for outcome in &self.faults {
            let _ = writeln!(text, "{}", outcome.line());
        }
        let bad = self.faults.iter().filter(|outcome| !outcome.failures.is_empty()).count();
        let number = |value: Option<u64>| value.map_or("?".to_owned(), |value| value.to_string());
        let _ = writeln!(
            text,
            "\n{}  (seed {})  {} faults, {bad} of them with something that did not hold",
            if self.succeeded { "succeeded" } else { "FAILED" },
            self.seed,
            self.faults.len()
        );
        let _ = writeln!(
            text,
            "ledger: {} commits acknowledged, {} lost, {} duplicate; two writers: {}",
            self.acked_commits,
            number(self.lost_commits),
            number(self.duplicate_commits),
            if self.two_writers { "yes" } else { "never" }
        );
        if let Some(outage) = self.write_outage {
            let Spread { min, median, max } = outage;
            let _ = writeln!(text, "write outage: {min:.2} s at least, {median:.2} s median, {max:.2} s at most");
        }
        for (fault, Repeated { count, write_outage }) in &self.write_outage_by_fault {
            let Spread { min, median, max } = write_outage;
            let times = format!("{count} times");
            let _ = writeln!(text, "  {fault:<23}{times:>10}: {min:.2} s, {median:.2} s median, {max:.2} s at most");
        }
        for failure in &self.failures {
            let _ = writeln!(text, "FAILED: {failure}");
        }
        for Skipped { fault, reason } in &self.skipped {
            let _ = writeln!(text, "skipped {fault}: {reason}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_more_than_once_has_a_spread_of_its_own() {
        let outcome = |fault: &str, seconds| Outcome {
            fault: fault.into(),
            write_outage_seconds: Some(seconds),
            ..Outcome::default()
        };
        let mut report = ChaosReport {
            faults: vec![outcome("host-lost", 3.0), outcome("kill-postgres", 0.1), outcome("host-lost", 2.0)],
            ..ChaosReport::default()
        };
        report.conclude();
        assert_eq!(report.write_outage_by_fault.keys().collect::<Vec<_>>(), ["host-lost"]);
        assert_eq!(report.write_outage_by_fault["host-lost"].count, 2);
        assert_eq!(report.write_outage_by_fault["host-lost"].write_outage.max, 3.0);
        assert!(report.table().contains("2 times: 2.00 s, 2.50 s median, 3.00 s at most"), "{}", report.table());
    }

    #[test]
    fn one_fault_that_did_not_hold_fails_the_whole() {
        let good = Outcome { fault: "loss-5".into(), write_outage_seconds: Some(0.2), ..Outcome::default() };
        let bad = Outcome { failures: vec!["1 commit is lost".into()], ..good.clone() };
        let conclude = |faults| {
            let mut report = ChaosReport { faults, seed: 7, ..ChaosReport::default() };
            report.conclude();
            report
        };
        assert!(conclude(vec![good.clone()]).succeeded);
        assert!(!conclude(Vec::new()).succeeded, "nothing proves nothing");
        let failed = conclude(vec![good, bad]);
        assert!(!failed.succeeded);
        assert!(failed.table().contains("1 commit is lost") && failed.table().contains("seed 7"));
    }
}
