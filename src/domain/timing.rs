//! What the timers prove, and what they cost: the inequalities of design rule 3 with their numbers, and how long each class of
//! fault may stop the writers before a promotion begins.
//!
//! What holds by definition is no inequality and does not stand here: `wait` and `promise` are `lease + drift`, whatever these are.
//! One wording for `config check`, `config show` and `status -v`. How long a promotion itself takes is measured, not derived,
//! and never enters.

use std::fmt;
use std::time::Duration;

use super::lease::KILL_WORST;
use super::policy::Policy;

/// One rule that the timers must keep, or one thing that is expected of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inequality {
    /// The rule, in the words of the settings.
    pub rule: &'static str,
    /// Left side, worked out.
    pub left: Duration,
    /// Right side.
    pub right: Duration,
    /// `<`; otherwise `<=`.
    pub is_strict: bool,
    /// Nothing is unsafe where it is not met: a target is missed.
    pub is_expectation: bool,
}

impl Inequality {
    /// True if the timers keep it.
    pub fn holds(&self) -> bool {
        if self.is_strict { self.left < self.right } else { self.left <= self.right }
    }
}

impl fmt::Display for Inequality {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.is_strict { "<" } else { "<=" };
        let verdict = match (self.is_expectation, self.holds()) {
            (false, true) => "holds",
            (false, false) => "DOES NOT HOLD",
            (true, true) => "expected, and met",
            (true, false) => "expected, and NOT MET",
        };
        write!(formatter, "{}: {} {sign} {}, {verdict}", self.rule, words(self.left), words(self.right))
    }
}

/// How long one class of fault may stop the writers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// What happens.
    pub fault: &'static str,
    /// At most so long until the promotion begins, or until writers go on; `None`: until a human acts.
    pub at_most: Option<Duration>,
    /// What that time is spent on.
    pub why: &'static str,
}

impl fmt::Display for Outage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = match self.at_most {
            Some(Duration::ZERO) => "none".to_owned(),
            Some(most) => format!("at most {}", words(most)),
            None => "no bound".to_owned(),
        };
        write!(formatter, "{}: {most} ({})", self.fault, self.why)
    }
}

/// Every rule, with its numbers; then what is expected.
pub fn inequalities(policy: &Policy) -> Vec<Inequality> {
    let timers = &policy.timers;
    let rule = |rule, left, right, is_strict| Inequality { rule, left, right, is_strict, is_expectation: false };
    let mut all = vec![
        rule(
            "renewal_interval + request_timeout < lease - stop_budget",
            timers.renewal_interval + timers.request_timeout,
            timers.lease.saturating_sub(timers.stop_budget),
            true,
        ),
        rule("worst SIGKILL of the family <= kill_budget", KILL_WORST, timers.kill_budget, false),
        rule("kill_budget <= stop_budget", timers.kill_budget, timers.stop_budget, false),
        rule("two healthy clocks apart after a lease <= drift", timers.drift_least(), timers.drift, false),
    ];
    if !policy.leadership_ttl.is_zero() {
        all.push(rule(
            "lease + 2 * renewal_interval <= leadership_ttl",
            timers.lease + timers.renewal_interval * 2,
            policy.leadership_ttl,
            false,
        ));
    }
    let target = rule("wait < rto, the rest is for the promotion", timers.wait(), policy.rto, true);
    all.push(Inequality { is_expectation: true, ..target });
    all
}

/// Every class of fault, least first.
pub fn outages(policy: &Policy) -> Vec<Outage> {
    let timers = &policy.timers;
    let outage = |fault, at_most, why| Outage { fault, at_most, why };
    let mut all = vec![
        outage(
            "controllers or their store lost, or the primary's way to them",
            Some(Duration::ZERO),
            "the standbys' promises renew the lease",
        ),
        outage(
            "primary's PostgreSQL killed",
            Some(timers.kill_budget),
            "its agent sees the end and kills what is left",
        ),
        outage(
            "synchronous standby lost",
            Some(policy.report_stale_after),
            "until the ledger drops it; with sync_strict, until another one confirms",
        ),
        outage(
            "primary hung or unable to commit",
            Some(policy.gray_after + timers.stop_budget),
            "gray_after and the stop budget, after the first probe that fails",
        ),
        outage(
            "primary's host lost, or cut off from everything",
            Some(timers.wait()),
            "until its last lease has certainly run out",
        ),
    ];
    all.push(if policy.leadership_ttl.is_zero() {
        outage(
            "controller and primary lost together",
            None,
            "until the only controller is back, and one wait after that",
        )
    } else {
        outage(
            "controller and primary lost together",
            Some(policy.leadership_ttl + policy.new_leader_wait()),
            "the leadership's time to live, then the wait of a new leader",
        )
    });
    all
}

/// A duration as it is written in the configuration.
pub fn words(duration: Duration) -> String {
    humantime::format_duration(Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derived_timers_keep_every_rule_and_the_target() {
        for seconds in [2.0, 5.0, 60.0] {
            let mut policy = Policy::for_rto(Duration::from_secs_f64(seconds));
            let sole = inequalities(&policy).len();
            policy.leadership_ttl = policy.timers.lease + policy.timers.renewal_interval * 2;
            let broken: Vec<_> = inequalities(&policy).into_iter().filter(|rule| !rule.holds()).collect();
            assert_eq!(broken, [], "rto {seconds} s");
            assert_eq!(inequalities(&policy).len(), sole + 1);
        }
    }

    #[test]
    fn a_broken_rule_says_so_with_its_numbers() {
        let mut policy = Policy::for_rto(Duration::from_secs(5));
        assert_eq!(
            inequalities(&policy)[0].to_string(),
            "renewal_interval + request_timeout < lease - stop_budget: 1s 500ms < 2s 200ms, holds"
        );
        policy.timers.request_timeout = Duration::from_secs(2);
        assert_eq!(policy.timers.check().is_ok(), inequalities(&policy)[0].holds());
        assert!(inequalities(&policy)[0].to_string().ends_with("2s 500ms < 2s 200ms, DOES NOT HOLD"));
        policy.rto = Duration::from_secs(3);
        let target = inequalities(&policy).pop().expect("one");
        assert!(target.is_expectation && !target.holds(), "the target cannot be met");
        assert!(target.to_string().ends_with("3s 50ms < 3s, expected, and NOT MET"), "{target}");
    }

    #[test]
    fn every_rule_can_fail() {
        let mut policy = Policy::for_rto(Duration::from_secs(5));
        policy.leadership_ttl = Duration::from_secs(4);
        let broken = |policy: &Policy| inequalities(policy).into_iter().filter(|rule| !rule.holds()).count();
        let change = |change: &dyn Fn(&mut Policy)| {
            let mut changed = policy.clone();
            change(&mut changed);
            broken(&changed)
        };
        assert_eq!(broken(&policy), 0);
        let (short, long) = (Duration::from_millis(1), Duration::from_secs(9));
        assert_eq!(change(&|policy| policy.timers.request_timeout = long), 1);
        assert_eq!(change(&|policy| policy.timers.kill_budget = short), 1);
        assert_eq!(change(&|policy| policy.timers.kill_budget = long), 1);
        assert_eq!(change(&|policy| policy.timers.drift = short), 1);
        assert_eq!(change(&|policy| policy.leadership_ttl = short), 1);
        assert_eq!(change(&|policy| policy.rto = short), 1);
    }

    #[test]
    fn with_one_controller_the_loss_of_both_has_no_bound() {
        let mut policy = Policy::for_rto(Duration::from_secs(5));
        let both = |policy: &Policy| outages(policy).last().expect("one").at_most;
        assert_eq!(both(&policy), None);
        policy.leadership_ttl = Duration::from_secs(4);
        assert_eq!(both(&policy), Some(Duration::from_secs(8) + policy.timers.drift));
    }
}
