//! How long the loop rests where nothing happens. Decides nothing.

use std::time::Duration;

use super::event_loop::Controller;
use crate::decide::health::{Health, health};
use crate::domain::clock::Moment;
use crate::domain::plan::Intent;
use crate::domain::record::ClusterRecord;
use crate::domain::view::View;

/// Fallback for what no event announces: the passing of a deadline.
const TICK: Duration = Duration::from_millis(100);
/// The same while everything is as it should be and the next deadline is known: with a thousand clusters, turns in which nothing can change
/// are most of what a controller does.
const CALM_TICK: Duration = Duration::from_millis(500);
/// A report counts up to its last moment.
const JUST_AFTER: Duration = Duration::from_millis(1);

impl Controller {
    /// For how long only an event can change what is decided, after a turn that saw `view`.
    pub(super) fn rest(&self, view: &View) -> Duration {
        if !self.is_calm(view) {
            return TICK;
        }
        let stale = self.state.policy.report_stale_after;
        let nodes = self.state.nodes.values().filter_map(|node| Some(heard(&node.report)?.plus(stale)));
        let proxies = self.state.proxies.values().filter_map(|proxy| Some(heard(&proxy.report)?.plus(stale * 2)));
        calm_rest(view.now, nodes.chain(proxies).min())
    }

    /// Nothing is under way or wished for, nothing waits for a time, everybody reports, and all is well.
    fn is_calm(&self, view: &View) -> bool {
        let state = &self.state;
        let waits_for_a_time = |record: &ClusterRecord| record.scheduled.is_some() || record.paused_until.is_some();
        state.last_plan.as_ref().is_some_and(|plan| plan.intent == Intent::Hold)
            && state.operations.iter().all(|operation| operation.status.is_final())
            && !state.update_in_flight
            && state.wishes.is_empty()
            && view.record.as_ref().is_some_and(|record| !waits_for_a_time(record))
            && view.nodes.values().all(|node| node.report.known().is_some())
            && view.proxies.values().all(|proxy| proxy.report.known().is_some())
            && health(view, &state.policy).0 == Health::Healthy
    }
}

/// Until the first report expires, at `first_silent`, or for a while.
fn calm_rest(now: Moment, first_silent: Option<Moment>) -> Duration {
    first_silent.map_or(CALM_TICK, |at| (at.since(now) + JUST_AFTER).min(CALM_TICK))
}

fn heard<T>(report: &Option<(T, Moment)>) -> Option<Moment> {
    report.as_ref().map(|(_, at)| *at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_is_seen_as_soon_as_a_report_expires() {
        let now = Moment(1_000_000);
        let rest = |left: Duration| calm_rest(now, Some(now.plus(left)));
        assert_eq!(rest(Duration::from_millis(30)), Duration::from_millis(31));
        assert_eq!(rest(Duration::from_secs(3)), CALM_TICK);
        assert_eq!(calm_rest(now, None), CALM_TICK);
        // It has expired already: at once, and not never.
        assert_eq!(calm_rest(now, Some(Moment(0))), JUST_AFTER);
    }
}
