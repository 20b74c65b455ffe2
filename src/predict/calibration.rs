//! From scores to surprise, and from surprise to risk.
//!
//! Thresholds on scores do not carry over between hosts, so nothing here looks at a score alone: a score counts by how far it lies above
//! what the same node showed in nine of ten rows lately ([`surprise`](Calibration::surprise), a difference of logarithms), or, on a node with
//! bursts, above what they reach. What a surprise is
//! worth is one curve for all hosts, monotone, learnt on labelled incidents of machines other than those it is used on.
//! What never enters: a threshold of a single host.

use serde::{Deserialize, Serialize};

use super::levels::LevelHistory;
use super::scores::{COMPONENTS, FORESEEN, PLAIN, Scores};
use super::shipped_curve::SHIPPED_CURVE;

/// So much more surprising, as a natural logarithm, the network may find a row than the running mean does before it has a say. It can
/// lower a surprise, and never raise it: what it foresaw is none, and where it errs the linear twin stands. Chosen on the SMD machines,
/// where every margin from 0.2 to 0.4 did as well.
const FORESIGHT_MARGIN: f32 = 0.3;

/// Rows that the model's own reference counts for against a node's: about the time that the forecasts need to settle.
const PRIOR_ROWS: f32 = 300.0;

/// What a node shows rarely, so that it is no surprise when it does so again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// This quantile of a node's scores is reached rarely.
    pub quantile: f32,
    /// So far, as a natural logarithm, it may lie above the everyday one before it counts.
    pub allowance: f32,
}

/// What the network's own surprise is worth beside that of the running mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkRole {
    /// It can lower a surprise and never raise it: safe on a node that is unlike the training.
    #[default]
    Lowers,
    /// Its surprise is the surprise. Only `stormglass-train calibrate` chooses that, where it did better on runs that were left out.
    Decides,
}

/// One point of the curve from surprise to risk.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RiskPoint {
    /// Natural logarithm of the score over the node's reference.
    pub surprise: f32,
    /// Share of rows with such a surprise in which there was trouble, or trouble began within the horizon.
    pub risk: f32,
}

/// How scores become risk and alarms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Natural logarithm of the reference of each component in training, until a node has its own.
    pub references: [f32; COMPONENTS],
    /// The reference of a node is this quantile of its scores.
    pub reference_quantile: f32,
    /// On a node with bursts the reference is what they reach, less the allowance, where that is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<Tail>,
    /// Time constant with which a node's scores are forgotten.
    pub memory_seconds: u32,
    /// What the network has to say.
    #[serde(default)]
    pub network_role: NetworkRole,
    /// An alarm is a surprise of at least this.
    pub alarm_surprise: f32,
    /// From surprise to risk, ascending in both; straight between the points, level beyond them.
    pub risk_curve: Vec<RiskPoint>,
}

impl Calibration {
    /// The shipped setting, the same for every host. Chosen on the eight development machines of `training/REPORT.md`.
    #[must_use]
    pub fn shipped(references: [f32; COMPONENTS]) -> Self {
        Self {
            references,
            reference_quantile: 0.9,
            tail: Some(Tail { quantile: 0.99, allowance: 1.0 }),
            memory_seconds: 7 * 86_400,
            network_role: NetworkRole::default(),
            alarm_surprise: 1.2,
            risk_curve: SHIPPED_CURVE.iter().map(|&(surprise, risk)| RiskPoint { surprise, risk }).collect(),
        }
    }

    /// Why it cannot be used.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let tail = self.tail.unwrap_or(Tail { quantile: 0.0, allowance: 0.0 });
        let numbers = self.references.iter().copied().chain([
            self.reference_quantile,
            self.alarm_surprise,
            tail.quantile,
            tail.allowance,
        ]);
        if numbers
            .chain(self.risk_curve.iter().flat_map(|point| [point.surprise, point.risk]))
            .any(|it| !it.is_finite())
        {
            return Err("calibration holds what is no number".to_owned());
        }
        if self.risk_curve.is_empty() || self.risk_curve.iter().any(|point| !(0.0..=1.0).contains(&point.risk)) {
            return Err("the risk curve needs at least one point, with risks between 0 and 1".to_owned());
        }
        let is_ascending =
            self.risk_curve.windows(2).all(|pair| pair[0].surprise < pair[1].surprise && pair[0].risk <= pair[1].risk);
        let are_shares = [self.reference_quantile, tail.quantile].iter().all(|share| (0.0..1.0).contains(share));
        if !is_ascending || !are_shares {
            return Err("the risk curve must ascend, and quantiles lie between 0 and 1".to_owned());
        }
        Ok(())
    }

    /// A history of a node's scores, for each kind.
    #[must_use]
    pub fn levels(&self, memory_rows: f32) -> [LevelHistory; COMPONENTS] {
        std::array::from_fn(|_| {
            let history = LevelHistory::new(self.reference_quantile, memory_rows);
            self.tail.map_or(history.clone(), |tail| history.with_tail(tail.quantile, tail.allowance))
        })
    }

    /// How many times the score lies above what is usual on its node, as a natural logarithm: the mean over the two scores of residuals,
    /// of the running mean or, where that is clearly less or the calibration says so, of the network. The values' own distance ranks rows, but is no surprise: a
    /// level that stays high would be an alarm for days.
    pub fn surprise(&self, scores: &Scores, levels: &mut [LevelHistory; COMPONENTS]) -> f32 {
        let mut of = |kinds: [usize; 2]| {
            let above = kinds.map(|kind| {
                let (level, prior) = (&mut levels[kind], self.references[kind]);
                let rows = level.rows() as f32;
                let own = level.reference().unwrap_or(prior);
                scores[kind] - (PRIOR_ROWS * prior + rows * own) / (PRIOR_ROWS + rows)
            });
            f32::midpoint(above[0], above[1])
        };
        let foreseen = of(FORESEEN);
        match self.network_role {
            NetworkRole::Lowers => of(PLAIN).min(foreseen + FORESIGHT_MARGIN),
            NetworkRole::Decides => foreseen,
        }
    }

    /// The risk of a surprise, in [0, 1].
    #[must_use]
    pub fn risk(&self, surprise: f32) -> f64 {
        let after = self.risk_curve.partition_point(|point| point.surprise <= surprise);
        let risk = match (self.risk_curve[..after].last(), self.risk_curve.get(after)) {
            (Some(low), Some(high)) => {
                let share = (surprise - low.surprise) / (high.surprise - low.surprise);
                low.risk + share * (high.risk - low.risk)
            }
            (Some(end), None) | (None, Some(end)) => end.risk,
            (None, None) => 0.0,
        };
        f64::from(risk.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn risk_follows_the_curve_and_never_leaves_it() {
        let mut calibration = Calibration::shipped([0.0; COMPONENTS]);
        calibration.risk_curve = vec![RiskPoint { surprise: 0.0, risk: 0.1 }, RiskPoint { surprise: 2.0, risk: 0.5 }];
        for (surprise, risk) in [(-9.0, 0.1), (0.0, 0.1), (1.0, 0.3), (2.0, 0.5), (f32::INFINITY, 0.5)] {
            assert!((calibration.risk(surprise) - risk).abs() < 1e-6, "{surprise}");
        }
    }

    #[test]
    fn the_shipped_calibration_is_sound() {
        assert_eq!(Calibration::shipped([0.0; COMPONENTS]).check(), Ok(()));
    }

    #[test]
    fn a_curve_that_falls_or_is_no_number_is_refused() {
        let mut calibration = Calibration::shipped([0.0; COMPONENTS]);
        calibration.risk_curve.reverse();
        assert!(calibration.check().is_err());
        let mut calibration = Calibration::shipped([f32::NAN; COMPONENTS]);
        assert!(calibration.check().is_err());
        calibration.references = [0.0; COMPONENTS];
        calibration.risk_curve.clear();
        assert!(calibration.check().is_err());
    }

    #[test]
    fn a_nodes_own_level_replaces_that_of_training() {
        let calibration = Calibration::shipped([0.0; COMPONENTS]);
        let mut levels = calibration.levels(1e6);
        assert_eq!(calibration.surprise(&[1.0; COMPONENTS], &mut levels), 1.0);
        levels.iter_mut().for_each(|level| (0..100_000).for_each(|_| level.add(3.0)));
        let surprise = calibration.surprise(&[3.0; COMPONENTS], &mut levels);
        assert!(surprise.abs() < 0.1, "{surprise}: what this node always shows is no surprise");
    }

    #[test]
    fn the_network_can_lower_a_surprise_and_raises_none_unless_it_was_calibrated_to() {
        let mut calibration = Calibration::shipped([0.0; COMPONENTS]);
        let surprise = |calibration: &Calibration, foreseen: f32, plain: f32| {
            calibration.surprise(&[foreseen, foreseen, plain, plain, 9.0], &mut calibration.levels(1e6))
        };
        assert_eq!(surprise(&calibration, 5.0, 1.0), 1.0, "its mistake is no surprise");
        assert_eq!(surprise(&calibration, 0.5, 2.0), 0.5 + FORESIGHT_MARGIN, "it foresaw most of it");
        assert_eq!(surprise(&calibration, 1.9, 2.0), 2.0, "a little better is not enough");
        calibration.network_role = NetworkRole::Decides;
        assert_eq!(surprise(&calibration, 5.0, 1.0), 5.0, "unless runs that were left out spoke for it");
    }
}
