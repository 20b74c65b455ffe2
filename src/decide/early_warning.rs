//! What a prediction may do: warn, and move the primary away from a single node that is about to fail (design, rule 9).
//!
//! All that ever comes out of here is a switchover, which loses nothing and is undone if it does not complete, or advice. It never
//! fences, fails over, or relaxes a guard. Without an alarm of the model it says nothing, so that a controller whose model is
//! missing, broken or silent does exactly what one without a model does.

use std::time::Duration;

use super::candidate::Demand;
use super::{request, strain};
use crate::domain::clock::Moment;
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, OperationKind};
use crate::domain::plan::{Intent, Reason, ReasonCode};
use crate::domain::policy::{Policy, PredictionMode};
use crate::domain::record::ClusterRecord;
use crate::domain::risk::{Outlook, Risk, WalCongestion};
use crate::domain::view::View;

/// A candidate that itself runs out of something is better only if it does so this many times later.
const LATER_MIN: u32 = 2;
/// Drivers that a reason names.
const DRIVERS_NAMED: usize = 3;

/// What follows from the predictions: an intent with its reasons, and the guards that refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warned {
    /// A switchover, or nothing.
    pub intent: Intent,
    /// Why.
    pub reasons: Vec<Reason>,
    /// What kept it from more.
    pub blocked_by: Vec<Reason>,
}

/// The memory of an alarm that neither flickers on nor off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Alarm {
    since: Option<Moment>,
    last: Option<Moment>,
}

impl Alarm {
    /// The alarm after a sample at `now`. It begins with the model's, lasts while the risk still counts (`goes_on`), and ends only once
    /// neither was so for `release_after`: what else speaks for trouble may be seen some samples later, when the model has got used to it.
    #[must_use]
    pub fn heard(self, begins: bool, goes_on: bool, now: Moment, release_after: Duration) -> Self {
        if begins || goes_on && self.since.is_some() {
            return Self { since: self.since.or(Some(now)), last: Some(now) };
        }
        match self.last {
            Some(last) if now.since(last) < release_after => self,
            _ => Self::default(),
        }
    }

    /// For how long it has lasted: from the first to the last sample that said so.
    pub fn lasts(&self) -> Option<Duration> {
        Some(self.last?.since(self.since?))
    }
}

/// What else than the model speaks for trouble of `node`: by its own agent's word, never by Prometheus'.
pub fn evidence(view: &View, policy: &Policy, node: &NodeName) -> Vec<Reason> {
    let mut found = Vec::new();
    if let Some(outlook) = view.outlooks.get(node) {
        found.extend(outlook.exhaustions.iter().map(|exhaustion| {
            let detail = format!("{} in {:.0} s", exhaustion.resource.words(), exhaustion.remaining.as_secs_f64());
            Reason::about(node, ReasonCode::RunsOut, detail)
        }));
        found.extend(outlook.slowdown.map(|slowdown| {
            let (usual, now) = (slowdown.usual.as_secs_f64(), slowdown.now.as_secs_f64());
            Reason::about(
                node,
                ReasonCode::SlowsDown,
                format!("write probes took {now:.3} s or more several times of late, usually {usual:.3} s"),
            )
        }));
        found.extend(outlook.wal_congestion.map(|congestion| {
            let WalCongestion { waiting, writes_usual, writes_now, transactions } = congestion;
            let what_is_new = transactions.map_or("where hardly any did".to_owned(), |took| {
                let (usual, now) = (took.usual.as_secs_f64(), took.now.as_secs_f64());
                format!("and a transaction takes {now:.3} s, usually {usual:.3} s")
            });
            let detail = format!(
                "{waiting} clients wait for WAL to be flushed, {what_is_new}; {writes_now:.0} write transactions a second, usually {writes_usual:.0}"
            );
            Reason::about(node, ReasonCode::SlowsDown, detail)
        }));
    }
    let strains = strain::strains(view, policy).into_iter();
    found.extend(strains.filter(|reason| {
        let speaks =
            matches!(reason.code, ReasonCode::ConnectionsExhausted | ReasonCode::ProbeSlow | ReasonCode::LockPileUp);
        speaks && reason.node.as_ref() == Some(node)
    }));
    found
}

/// The model's alarm about `node`, once it has lasted long enough and the risk is high enough.
pub fn alarm(view: &View, policy: &Policy, node: &NodeName) -> Option<Reason> {
    let outlook = view.outlooks.get(node)?;
    let risk = outlook.risk.known()?;
    let probability = risk.probability.filter(|probability| probability.is_finite())?;
    let lasts = outlook.alarmed_for.filter(|lasts| *lasts >= policy.prediction.confirm_after)?;
    if risk.abstains.is_some() || probability * 1000.0 < f64::from(policy.prediction.risk_per_mille_min) {
        return None;
    }
    let detail = format!(
        "risk {:.0} %, an alarm for {:.0} s by model {}: {}",
        probability * 100.0,
        lasts.as_secs_f64(),
        risk.model,
        drivers(risk)
    );
    Some(Reason::about(node, ReasonCode::PredictedTrouble, detail))
}

/// What a primary that writes, in a cluster where nothing else is to be done, should do because of the predictions.
pub fn consider(view: &View, record: &ClusterRecord, policy: &Policy, operations: &[Operation]) -> Option<Warned> {
    if policy.prediction.mode == PredictionMode::Observe {
        return None;
    }
    let primary = &record.holder;
    let predicted = alarm(view, policy, primary)?;
    let supporting = evidence(view, policy, primary);
    let mut blocked_by = Vec::new();
    if supporting.is_empty() {
        let why = "nothing but the model speaks for it: no resource runs out and no probe is slow by its agent's word";
        blocked_by.push(Reason::about(primary, ReasonCode::Uncorroborated, why));
    }
    blocked_by.extend(others_sick(view, record, policy));
    blocked_by.extend(over_budget(view, policy, operations));
    let mut reasons = vec![predicted];
    reasons.extend(supporting);
    let mut intent = Intent::Hold;
    match request::switchover(view, record, policy, operations, &Demand::automatic()) {
        Err(refused) => blocked_by.extend(refused),
        Ok((start, merits)) => {
            if let Intent::Start { operation: OperationKind::Switchover { to, .. } } = &start {
                blocked_by.extend(not_better(view, record, policy, to));
            }
            reasons.extend(merits);
            intent = start;
        }
    }
    if policy.prediction.mode == PredictionMode::Advise && blocked_by.is_empty() {
        let to =
            if let Intent::Start { operation } = &intent { operation.subject().to_string() } else { String::new() };
        let why = format!("a switchover to {to} is advised; [predictor] mode = \"act\" would do it");
        blocked_by.push(Reason::about(primary, ReasonCode::PredictionAdvises, why));
    }
    if !blocked_by.is_empty() {
        intent = Intent::Hold;
    }
    Some(Warned { intent, reasons, blocked_by })
}

/// A whole cluster that is in trouble is a matter of load, or of metrics that lie: no move helps.
fn others_sick(view: &View, record: &ClusterRecord, policy: &Policy) -> Vec<Reason> {
    view.nodes
        .keys()
        .filter(|node| **node != record.holder)
        .filter(|node| alarm(view, policy, node).is_some() && !evidence(view, policy, node).is_empty())
        .map(|node| Reason::about(node, ReasonCode::SeveralNodesSick, "trouble is predicted for it as well"))
        .collect()
}

/// One predictive move in each window, whatever came of it. A time in the future counts as now: a clock that was set back buys
/// nothing.
fn over_budget(view: &View, policy: &Policy, operations: &[Operation]) -> Option<Reason> {
    let window = policy.prediction.budget_window;
    let last = operations.iter().filter(|operation| is_predictive(operation)).map(|one| one.begun_wall).max()?;
    (view.wall.since(last) < window).then(|| {
        let detail =
            format!("the last predictive switchover began at {last}, the next one may at {}", last.plus(window));
        Reason::new(ReasonCode::PredictionBudget, detail)
    })
}

/// True for a switchover that a prediction began.
pub fn is_predictive(operation: &Operation) -> bool {
    matches!(operation.kind, OperationKind::Switchover { .. }) && is_by_prediction(operation)
}

/// True for whatever a prediction began; whoever keeps operations must keep the last of each kind for the budget's window.
pub fn is_by_prediction(operation: &Operation) -> bool {
    operation.reasons.iter().any(|reason| reason.code == ReasonCode::PredictedTrouble)
}

/// True if a risk is at least so many per cent. A NaN reaches nothing, and neither does a model that abstains.
pub fn reaches(risk: &Risk, percent: u32) -> bool {
    risk.abstains.is_none() && risk.probability.is_some_and(|probability| probability * 100.0 >= f64::from(percent))
}

/// What drives a risk, in words.
pub(super) fn drivers(risk: &Risk) -> String {
    risk.drivers.iter().take(DRIVERS_NAMED).map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why `to` is no better place: its own risk must be known and lower, without an alarm, and nothing runs out there about as soon.
fn not_better(view: &View, record: &ClusterRecord, policy: &Policy, to: &NodeName) -> Option<Reason> {
    let empty = Outlook::default();
    let outlook = |node| view.outlooks.get(node).unwrap_or(&empty);
    let (here, there) = (outlook(&record.holder), outlook(to));
    let probability = |outlook: &Outlook| outlook.risk.known().and_then(|risk| risk.probability);
    let refuse = |detail: String| Some(Reason::about(to, ReasonCode::CandidateNotBetter, detail));
    let Some(own) = probability(there) else {
        return refuse("its own risk is not known".to_owned());
    };
    // A NaN is lower than nothing.
    let is_lower = probability(here).is_some_and(|sick| own < sick);
    if !is_lower || alarm(view, policy, to).is_some() {
        return refuse(format!("its own risk is {:.0} %", own * 100.0));
    }
    let soonest = |outlook: &Outlook| outlook.exhaustions.first().map(|exhaustion| exhaustion.remaining);
    match (soonest(here), soonest(there)) {
        (_, None) => {}
        (Some(sick), Some(own)) if own >= sick * LATER_MIN => {}
        (_, Some(own)) => return refuse(format!("it runs out of something in {:.0} s itself", own.as_secs_f64())),
    }
    let is_slow = there.slowdown.is_some() || there.wal_congestion.is_some();
    if is_slow { refuse("its own disk has become slow".to_owned()) } else { None }
}

#[cfg(test)]
mod tests;
