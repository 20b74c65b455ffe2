//! The catalogue of features: what is asked of Prometheus about a node, and which direction is bad.
//!
//! Plain data with its rules; no query is made here.

use serde::{Deserialize, Serialize};

/// Stands for the nodes in a query: a regular expression that matches every one of them.
pub const NODE_PLACEHOLDER: &str = "$node";
/// Stands for the span of a rate: five steps, at least five seconds.
pub const WINDOW_PLACEHOLDER: &str = "$window";
/// Stands for the span of a rate of rare events: twenty steps.
pub const LONG_WINDOW_PLACEHOLDER: &str = "$long";
/// Stands for how far ahead a straight line is followed: sixty steps, in seconds.
pub const HORIZON_PLACEHOLDER: &str = "$horizon";
/// Stands for one step, the resolution of a subquery.
pub const STEP_PLACEHOLDER: &str = "$step";

/// Which way of a feature is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// More is worse: latency, lag, errors.
    High,
    /// Less is worse: free space, hits.
    Low,
    /// Either may be: load.
    Both,
}

/// One feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// In lower case with underscores; models name it.
    pub name: String,
    /// PromQL whose result has one series a node, with the label `node`; the placeholders of this file are filled in.
    pub query: String,
    /// Unit of its values.
    pub unit: String,
    /// Which way is bad.
    pub direction: Direction,
    /// Its value where Prometheus has no series although the node answers, such as replication on a standby; a gap if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent: Option<AbsentValue>,
    /// Training never takes its spread for less, in its unit: a disk of which nothing is used up while a model learns may fill all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_min: Option<f32>,
}

/// A value for what is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AbsentValue {
    /// Nothing is there, and that is what it is.
    Zero,
}

/// What is wrong with a least spread, wherever it was read.
#[must_use]
pub fn problem_of_spread(spread_min: Option<f32>) -> Option<&'static str> {
    let is_wrong = spread_min.is_some_and(|spread| !spread.is_finite() || spread <= 0.0);
    is_wrong.then_some("spread_min takes a number above zero")
}

impl Feature {
    /// What is wrong with it, and what to do.
    pub fn problem(&self) -> Option<String> {
        let good_name =
            self.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if self.name.is_empty() || !good_name {
            return Some("the name takes lower-case letters, digits and underscores".to_owned());
        }
        if self.unit.trim().is_empty() {
            return Some("the unit is missing".to_owned());
        }
        if !self.query.contains(NODE_PLACEHOLDER) {
            return Some(format!("the query must select nodes with node=~\"{NODE_PLACEHOLDER}\""));
        }
        if let Some(problem) = problem_of_spread(self.spread_min) {
            return Some(problem.to_owned());
        }
        let unknown = self.query.split('$').skip(1).find(|rest| {
            !["node", "window", "long", "horizon", "step"].iter().any(|known| {
                rest.strip_prefix(known).is_some_and(|after| !after.starts_with(|next: char| next.is_alphanumeric()))
            })
        });
        unknown.map(|rest| {
            let word: String = rest.chars().take_while(|letter| letter.is_alphanumeric()).collect();
            format!("${word} is not known: $node, $window, $long, $horizon and $step are filled in")
        })
    }

    /// The query for these nodes and this step.
    pub fn filled_in<'n>(&self, nodes: impl Iterator<Item = &'n str>, step_seconds: u32) -> String {
        // Names of nodes are letters, digits, dots, dashes and underscores: of these only the dot means something.
        let nodes: Vec<String> = nodes.map(|node| node.replace('.', "[.]")).collect();
        self.query
            .replace(NODE_PLACEHOLDER, &nodes.join("|"))
            .replace(WINDOW_PLACEHOLDER, &format!("{}s", (step_seconds * 5).max(5)))
            .replace(LONG_WINDOW_PLACEHOLDER, &format!("{}s", step_seconds * 20))
            .replace(HORIZON_PLACEHOLDER, &(step_seconds * 60).to_string())
            .replace(STEP_PLACEHOLDER, &format!("{step_seconds}s"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(query: &str) -> Feature {
        Feature {
            name: "commits".to_owned(),
            query: query.to_owned(),
            unit: "1/s".to_owned(),
            direction: Direction::Both,
            absent: None,
            spread_min: None,
        }
    }

    #[test]
    fn placeholders_are_filled_in() {
        let feature =
            feature("sum by (node) (rate(x{node=~\"$node\"}[$window])) + rate(y{node=~\"$node\"}[$long:$step])");
        assert_eq!(feature.problem(), None);
        let query = feature.filled_in(["n1", "db.east"].into_iter(), 15);
        assert_eq!(
            query,
            "sum by (node) (rate(x{node=~\"n1|db[.]east\"}[75s])) + rate(y{node=~\"n1|db[.]east\"}[300s:15s])"
        );
    }

    #[test]
    fn a_query_for_nobody_and_a_word_that_is_not_known_are_problems() {
        assert!(feature("up").problem().is_some_and(|problem| problem.contains("$node")));
        let problem = feature("rate(x{node=~\"$node\"}[$windows])").problem().expect("unknown word");
        assert!(problem.contains("$windows"), "{problem}");
        let nameless = Feature { name: "Bad Name".to_owned(), ..feature("x{node=~\"$node\"}") };
        assert!(nameless.problem().is_some());
    }
}
