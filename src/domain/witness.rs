//! Witnesses of the primary's life beside its own agent: the controller's own probe, the standbys' WAL, the clients' way through the
//! proxies. Good judgement rests on them, safety never: they veto a death that only a clock speaks for (design, rule 5).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock::Moment;
use super::ids::Address;
use super::plan::{Reason, ReasonCode};
use super::policy::Policy;
use super::record::ClusterRecord;
use super::report::{PathReport, Probe};
use super::view::{Fact, View};

/// What the controller saw when it last knocked at the primary's door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// Whose door.
    pub address: Address,
    /// When it knocked, on its clock.
    pub asked_at: Moment,
    /// Why nobody answered; `None`: somebody did.
    pub problem: Option<String>,
    /// When it last knocked and was answered.
    pub answered_at: Option<Moment>,
}

/// One witness's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Testimony {
    /// It says that the primary lives.
    pub is_alive: bool,
    /// How old its word is.
    pub age: Duration,
    /// Whether its word may veto a death by lease expiry. WAL has a rule of its own, in `proof`.
    pub is_veto: bool,
    /// In words, with a stable code.
    pub reason: Reason,
}

/// A word older than this does not veto. Whoever lost the primary together with its lease has heard nothing for longer when the
/// lease expires, whatever the timers: a lost host is replaced not a moment later for being watched.
pub fn fresh(policy: &Policy) -> Duration {
    policy.timers.wait().saturating_sub(policy.timers.renewal_interval) / 2
}

/// Between two knocks. Faster while the agent is silent: the last one before the expiry is to come after the fence.
pub fn probe_interval(policy: &Policy, is_agent_silent: bool) -> Duration {
    if is_agent_silent { policy.timers.kill_budget / 2 } else { policy.timers.renewal_interval }
}

/// How long an answer may take: far less than is left of a lease when its holder has missed one renewal.
pub fn probe_timeout(policy: &Policy) -> Duration {
    policy.timers.renewal_interval
}

/// What every witness says of the holder: the controller first, then standbys and proxies by name.
pub fn testimonies(view: &View, record: &ClusterRecord) -> Vec<Testimony> {
    let mut all: Vec<Testimony> = Vec::new();
    all.extend(view.sighting.as_ref().filter(|seen| seen.address == record.holder_address).map(|seen| {
        let age = view.now.since(seen.asked_at);
        let last = seen.answered_at.map_or("it never answered".to_owned(), |at| {
            format!("it last answered {:.1} s ago", view.now.since(at).as_secs_f64())
        });
        let (code, detail) = match &seen.problem {
            None => (ReasonCode::PrimaryAnswers, format!("asked by the controller {}", ago(age))),
            Some(problem) => {
                (ReasonCode::PrimaryDoesNotAnswer, format!("asked by the controller {}: {problem}; {last}", ago(age)))
            }
        };
        let reason = Reason::about(&record.holder, code, detail);
        Testimony { is_alive: seen.problem.is_none(), age, is_veto: true, reason }
    }));
    for node in view.nodes.values().filter(|node| node.node != record.holder) {
        let Fact::Known { value, age } = &node.report else { continue };
        let Some(receiver) = value.postgres.live.as_ref().and_then(|live| live.receiver.as_ref()) else { continue };
        let Some(heard) = receiver.last_message_age.map(|last| last + *age) else { continue };
        let from_holder = receiver.sender.as_ref().is_none_or(|sender| *sender == record.holder_address);
        let is_alive = receiver.streaming && from_holder && heard < WAL_FRESH;
        let code = if is_alive { ReasonCode::WalStillArriving } else { ReasonCode::WalNotArriving };
        let reason = Reason::about(&node.node, code, format!("from {}, last heard {}", record.holder, ago(heard)));
        all.push(Testimony { is_alive, age: heard, is_veto: false, reason });
    }
    for proxy in view.proxies.values() {
        let Fact::Known { value, age } = &proxy.report else { continue };
        let Some(PathReport { target, check }) = &value.path else { continue };
        if *target == record.holder_address {
            all.extend(path(&proxy.proxy.to_string(), check, *age));
        }
    }
    all
}

/// A sender heard from this recently lives.
const WAL_FRESH: Duration = Duration::from_secs(1);

fn path(proxy: &str, check: &Probe, report_age: Duration) -> Option<Testimony> {
    let say = |is_alive, age, code, detail: String| {
        Some(Testimony { is_alive, age, is_veto: true, reason: Reason::new(code, format!("proxy {proxy}: {detail}")) })
    };
    match (check.failing_for, check.last_success_age) {
        (Some(failing), _) => {
            let error = check.last_error.as_deref().unwrap_or("no answer");
            let detail = format!("no write for {:.1} s: {error}", (failing + report_age).as_secs_f64());
            say(false, report_age, ReasonCode::ClientPathFails, detail)
        }
        (None, Some(age)) => {
            let age = age + report_age;
            say(true, age, ReasonCode::ClientPathWorks, format!("a write was committed {}", ago(age)))
        }
        (None, None) => None,
    }
}

/// Somebody who saw the holder alive a moment ago: its lease ran out by the clock, and it goes on.
pub fn veto(view: &View, record: &ClusterRecord, policy: &Policy) -> Option<Reason> {
    let fresh = fresh(policy);
    let mut all = testimonies(view, record).into_iter();
    all.find(|word| word.is_veto && word.is_alive && word.age < fresh).map(|word| word.reason)
}

/// In words only: for `explain` and for the reasons of an operation.
pub fn words(view: &View, record: &ClusterRecord) -> Vec<Reason> {
    testimonies(view, record).into_iter().map(|word| word.reason).collect()
}

fn ago(age: Duration) -> String {
    format!("{:.1} s ago", age.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_was_lost_with_the_lease_is_not_fresh_when_it_expires() {
        for seconds in [2.0, 2.5, 5.0, 30.0, 300.0] {
            let policy = Policy::for_rto(Duration::from_secs_f64(seconds));
            let timers = &policy.timers;
            // Lost at the latest one renewal interval after the last grant, and seen then for the last time.
            let unseen_at_expiry = timers.wait() - timers.renewal_interval;
            assert!(fresh(&policy) < unseen_at_expiry, "rto {seconds} s");
            // A probe that was sent into the void has failed by then, and so has the one after it.
            assert!(probe_timeout(&policy) * 2 + probe_interval(&policy, false) < unseen_at_expiry, "rto {seconds} s");
            // Between fence and expiry there is at least one knock.
            assert!(probe_interval(&policy, true) < timers.kill_budget, "rto {seconds} s");
        }
    }
}
