//! What is expected of each node, as the loop hears it: the model's word, and what follows from the agents' own numbers.
//!
//! Remembers and does not decide: whether anything follows is `decide`'s to say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::state::{State, fact};
use crate::decide::early_warning::{self, Alarm};
use crate::decide::trend::Trend;
use crate::domain::clock::Moment;
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, OperationStatus};
use crate::domain::report::Report;
use crate::domain::risk::{Exhaustion, Outlook, Risk, Slowdown, WalCongestion};
use crate::domain::view::Fact;

/// What is expected of a node, and what it rests on.
#[derive(Default)]
pub(super) struct OutlookState {
    /// What its agent said lately.
    trend: Trend,
    /// What follows from that; worked out when a report is heard.
    exhaustions: Vec<Exhaustion>,
    slowdown: Option<Slowdown>,
    wal_congestion: Option<WalCongestion>,
    /// What the model said last.
    risk: Option<(Arc<Risk>, Moment)>,
    alarm: Alarm,
    /// The same for every limit, in per cent, at which a sequence begins.
    limits: BTreeMap<u32, Alarm>,
}

impl OutlookState {
    /// Takes in what the node's agent says.
    pub fn hear(&mut self, report: &Report, now: Moment, horizon: Duration) {
        if self.trend.hear(report, now, horizon) {
            self.exhaustions = self.trend.exhaustions(horizon);
            self.slowdown = self.trend.slowdown();
            self.wal_congestion = self.trend.wal_congestion();
        }
    }
}

impl State {
    pub(super) fn outlook(&self, state: &OutlookState, now: Moment) -> Outlook {
        let risk = match &state.risk {
            // Without a model there is nothing to be unknown.
            None => Fact::Absent,
            heard => fact(heard, now, self.leading_since, self.policy.prediction.stale_after),
        };
        let is_fresh = risk.known().is_some();
        Outlook {
            risk,
            alarmed_for: state.alarm.lasts().filter(|_| is_fresh),
            reached: state
                .limits
                .iter()
                .filter(|_| is_fresh)
                .filter_map(|(percent, alarm)| Some((*percent, alarm.lasts()?)))
                .collect(),
            exhaustions: state.exhaustions.clone(),
            slowdown: state.slowdown,
            wal_congestion: state.wal_congestion,
        }
    }

    /// Takes in what the model said of the nodes, at `now`. Nodes that are not configured are not heard of.
    ///
    /// `limits`: the risks, in per cent, at which a sequence begins.
    pub fn hear_risks(&mut self, risks: BTreeMap<NodeName, Risk>, limits: &[u32], now: Moment) {
        let (release_after, least) = (self.policy.prediction.release_after, self.policy.prediction.risk_per_mille_min);
        for (node, risk) in risks {
            if !self.nodes.contains_key(&node) {
                continue;
            }
            let state = self.outlooks.entry(node).or_default();
            let is_alarmed = risk.alarm && risk.abstains.is_none();
            let counts = risk.per_mille().is_some_and(|risk| risk >= least);
            state.alarm = state.alarm.heard(is_alarmed, counts, now, release_after);
            for percent in limits {
                let alarm = state.limits.entry(*percent).or_default();
                let is_reached = early_warning::reaches(&risk, *percent);
                *alarm = alarm.heard(is_reached, is_reached, now, release_after);
            }
            state.risk = Some((Arc::new(risk), now));
        }
    }

    /// What the model said last of a node, in thousandths.
    pub fn risk_per_mille(&self, node: &NodeName) -> Option<u16> {
        self.outlooks.get(node)?.risk.as_ref()?.0.per_mille()
    }

    /// The move to the present primary, if what the model says of that one is known now and not written down yet.
    pub fn risk_after_move(&mut self) -> Option<&Operation> {
        let (holder, epoch) = self.record.as_ref().map(|record| (record.holder.clone(), record.epoch))?;
        let risk = self.risk_per_mille(&holder)?;
        let moved = self.operations.iter_mut().find(|operation| {
            operation.kind.moves_primary()
                && operation.status == OperationStatus::Succeeded
                && operation.epoch_after == Some(epoch)
                && operation.risks.after_per_mille.is_none()
        })?;
        moved.risks.after_per_mille = Some(risk);
        Some(moved)
    }
}
