//! For every node, everything that speaks for and against promoting it now: more than a decision needs, for people.
//!
//! Whether a node may be promoted, and its rank, are [`super::candidate`]'s word; this only adds what stands behind it.

use super::candidate::{self, Demand};
use super::{primary, witnesses};
use crate::domain::ids::NodeName;
use crate::domain::plan::{Reason, ReasonCode};
use crate::domain::policy::Policy;
use crate::domain::record::ClusterRecord;
use crate::domain::view::{Fact, View};

/// One node, explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// The node.
    pub node: NodeName,
    /// Whether it would be promoted if the primary were lost now, and nobody of a better rank were there.
    pub promotable: bool,
    /// From 1, among those.
    pub rank: Option<u32>,
    /// Why, or why not: first what decides, then the facts behind it.
    pub reasons: Vec<Reason>,
}

/// Every node: the holder, then the others, best first.
pub fn nodes(view: &View, record: &ClusterRecord, policy: &Policy) -> Vec<Explained> {
    let mut rank = 0;
    let others = candidate::assess(view, record, policy, &Demand::automatic()).into_iter().map(|assessment| {
        rank += u32::from(assessment.promotable);
        let mut reasons = assessment.reasons;
        for fact in facts(view, record, &assessment.node) {
            // What decides is said already; here it has its numbers.
            match reasons.iter_mut().find(|reason| reason.code == fact.code) {
                Some(said) => said.detail = fact.detail,
                None => reasons.push(fact),
            }
        }
        Explained {
            node: assessment.node,
            promotable: assessment.promotable,
            rank: assessment.promotable.then_some(rank),
            reasons,
        }
    });
    std::iter::once(holder(view, record, policy)).chain(others).collect()
}

fn holder(view: &View, record: &ClusterRecord, policy: &Policy) -> Explained {
    let node = &record.holder;
    let mut reasons = vec![Reason::about(node, ReasonCode::AlreadyPrimary, format!("epoch {}", record.epoch))];
    let condition = primary::condition(view, record, policy);
    reasons.extend(condition.reasons(record));
    if condition.is_lost()
        && let Some(last_resort) = candidate::restart_in_place(view, record, &condition)
    {
        reasons.push(last_resort);
    }
    Explained { node: node.clone(), promotable: false, rank: None, reasons }
}

/// What is known of a standby, whether or not it decides: silence, data, place in the ledger, tags, promises.
fn facts(view: &View, record: &ClusterRecord, node: &NodeName) -> Vec<Reason> {
    let mut found = Vec::new();
    let mut add = |code, detail: String| found.push(Reason::about(node, code, detail));
    if let Some(Fact::Unknown { last, for_duration }) = view.nodes.get(node).map(|view| &view.report) {
        let silent = format!("for {:.1} s", for_duration.as_secs_f64());
        add(ReasonCode::AgentSilent, if last.is_some() { silent } else { format!("never heard of, {silent}") });
    }
    if record.fenced.contains(node) {
        add(ReasonCode::OperatorFenced, "until unfence".to_owned());
    }
    if record.proposed.contains(node) {
        let acknowledged = view.report(&record.holder).and_then(|report| report.standing.acknowledged);
        let heard = acknowledged.map_or_else(|| "none".to_owned(), |number| number.to_string());
        add(
            ReasonCode::MembershipChange,
            format!(
                "proposed; eligible once {} acknowledges record {}, it acknowledged {heard}",
                record.holder, record.number
            ),
        );
    } else if record.synchronous.contains(node) && !record.eligible.contains(node) {
        add(
            ReasonCode::MembershipChange,
            format!("commits wait for it since record {}; not yet shown to hold every one", record.synchronous_number),
        );
    }
    let Some(report) = view.last_report(node) else { return found };
    if report.standing.operator_fenced {
        add(ReasonCode::OperatorFenced, "by its agent's word".to_owned());
    }
    if report.standing.half_rejoined {
        add(ReasonCode::HalfRejoined, "a rewind or reclone has to end first".to_owned());
    }
    if let Some((epoch, left)) = witnesses::promise_left(view, node) {
        let left = left.as_secs_f64();
        add(
            ReasonCode::PromiseOutstanding,
            format!("it renewed epoch {epoch}: without a confirmed fence it consents in {left:.1} s at the earliest"),
        );
    }
    let tags = &report.tags;
    if tags.no_failover || tags.failover_priority <= 0 {
        add(
            ReasonCode::TaggedNoFailover,
            format!("no_failover {}, failover_priority {}", tags.no_failover, tags.failover_priority),
        );
    }
    let Some(live) = view.last_live(node) else { return found };
    let lag = candidate::missing_bytes(view, record, live)
        .map_or_else(|| "lag unknown".to_owned(), |bytes| format!("{bytes} bytes behind"));
    add(
        ReasonCode::Position,
        format!("timeline {}, received {}, replayed {}, {lag}", live.history.timeline, live.flush_lsn, live.replay_lsn),
    );
    let streaming = live.receiver.as_ref().is_some_and(|receiver| receiver.streaming);
    if !streaming && live.in_recovery {
        add(ReasonCode::ReceiverFrozen, "its WAL receiver does not stream".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::decide::tests::{node, policy, record, view};
    use crate::domain::epoch::Epoch;
    use crate::domain::report::{Promised, Report};

    fn reasons_of<'a>(all: &'a [Explained], node: &str) -> Vec<(ReasonCode, &'a str)> {
        let explained = all.iter().find(|explained| explained.node.as_str() == node).expect("every node is explained");
        explained.reasons.iter().map(|reason| (reason.code, reason.detail.as_str())).collect()
    }

    #[test]
    fn a_promise_a_proposal_a_tag_and_silence_are_all_told() {
        let (mut record, policy) = (record(), policy());
        (record.eligible, record.proposed) = ([].into(), [node("n2")].into());
        let mut view = view(&record);
        let mut change = |name: &str, change: &dyn Fn(&mut Report)| {
            let Fact::Known { value, .. } = &mut view.nodes.get_mut(&node(name)).expect("there").report else {
                panic!("{name} reports")
            };
            change(std::sync::Arc::make_mut(value));
        };
        let promised = Promised { epoch: Epoch(3), remaining: Duration::from_secs(2) };
        change("n2", &|report| report.standing.promised = Some(promised));
        change("n3", &|report| report.tags.no_failover = true);
        let all = nodes(&view, &record, &policy);
        let codes = |name| reasons_of(&all, name).into_iter().map(|(code, _)| code).collect::<Vec<_>>();
        assert_eq!(codes("n1"), [ReasonCode::AlreadyPrimary, ReasonCode::Healthy]);
        let expected = [
            ReasonCode::NotEligible,
            ReasonCode::MembershipChange,
            ReasonCode::PromiseOutstanding,
            ReasonCode::Position,
        ];
        assert_eq!(codes("n2"), expected);
        assert_eq!(codes("n3"), [ReasonCode::TaggedNoFailover, ReasonCode::NotEligible, ReasonCode::Position]);

        let last = view.last_report(&node("n3")).cloned();
        let silent = Fact::Unknown { last: last.map(Into::into), for_duration: Duration::from_secs(9) };
        view.nodes.get_mut(&node("n3")).expect("there").report = silent;
        let all = nodes(&view, &record, &policy);
        let told = reasons_of(&all, "n3");
        assert_eq!(told[0], (ReasonCode::AgentSilent, "for 9.0 s"), "what decides comes first, with its number");
        assert!(told.iter().any(|(code, _)| *code == ReasonCode::TaggedNoFailover), "hidden by the silence: {told:?}");
    }
}
