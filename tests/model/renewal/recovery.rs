//! Liveness: from any state, once nothing fails any more, the real decisions lead to one writer. No fault enters.

use super::super::words::*;
use super::views::real_operation;
use super::*;
use stormglass::decide;
use stormglass::domain::*;

/// More turns than any continuation may take.
const TURNS_MAX: usize = 120;

impl Renewal {
    /// One fair continuation: every message arrives, every due step is taken, then time passes.
    pub(super) fn recovers(&self, state: &State) -> bool {
        let mut way = Vec::new();
        let mut now = state.clone();
        for _ in 0..TURNS_MAX {
            if is_well(&now) || self.recovered.borrow().contains(&now) {
                self.recovered.borrow_mut().extend(way);
                return true;
            }
            way.push(now.clone());
            now = self.turn(&now);
        }
        false
    }

    fn turn(&self, state: &State) -> State {
        let mut after = state.clone();
        while !after.writes.is_empty() {
            after = self.take(&after, |action| matches!(action, Action::WriteLands(0))).expect("it is on its way");
        }
        for node in self.all() {
            let at = usize::from(node);
            let due = |action: &Action| matches!(action, Action::SelfFence(fenced) if *fenced == node);
            after = self.take(&after, due).unwrap_or(after);
            let said = self.said(node, &after.nodes[at]);
            after = self.heard(&after, node, said, false, true).unwrap_or(after);
            let reply = |action: &Action| matches!(action, Action::ReplyArrives(to) if *to == node);
            after = self.take(&after, reply).unwrap_or(after);
            let order =
                |action: &Action| matches!(action, Action::OrderArrives { node: to, answered: true } if *to == node);
            after = self.take(&after, order).unwrap_or(after);
        }
        after = self.decide(&after);
        if is_well(&after) {
            return after;
        }
        if after != *state {
            // Heartbeats repeat for ever; what counts is whether anything else came of them.
            let mut quiet = after.clone();
            quiet.leader.granted = state.leader.granted;
            quiet.leader.heard = state.leader.heard;
            for (now, before) in quiet.nodes.iter_mut().zip(&state.nodes) {
                (now.reply, now.left) = (before.reply, before.left);
            }
            if quiet != *state {
                return after;
            }
        }
        if after.leader.awaits.is_some() {
            // The command was overtaken or lost: its time runs out with the next ticks.
            super::controllers::ended(&mut after.leader, UNKNOWN);
        }
        self.tick(&after, None)
    }

    fn take(&self, state: &State, which: impl Fn(&Action) -> bool) -> Option<State> {
        let mut next = Vec::new();
        self.agents(state, &mut next);
        self.controllers(state, &mut next);
        next.into_iter().find(|(action, _)| which(action)).map(|(_, after)| after)
    }

    /// The controller's turn, by its real decision.
    fn decide(&self, state: &State) -> State {
        let mut after = state.clone();
        if after.leader.moving.is_some() && after.leader.awaits.is_none() {
            after = self.drive(&after, 0).unwrap_or(after);
        }
        let leader = &mut after.leader;
        if leader.moving.is_some() || leader.updating {
            return after;
        }
        let operations: Vec<Operation> = leader.moving.as_ref().map(real_operation).into_iter().collect();
        let streaming = ((1 << self.bounds.nodes) - 1) & !bit(leader.record.holder);
        let view = self.view(leader, streaming, 0);
        match decide::decide(&view, &self.policy(), &operations).intent {
            Intent::UpdateRecord { record } => {
                leader.updating = true;
                let expected = leader.record.number;
                after.writes.push(Write { expected, record: Record::of(&record), is_swap: false });
            }
            Intent::Start { operation: OperationKind::Failover { from, to, .. } } => {
                let (from, to, before) = (index(&from), index(&to), leader.record.epoch);
                let journal = Vec::new();
                leader.moving =
                    Some(Moving { kind: Kind::Failover, from, to, before, after: 0, undoing: false, journal });
            }
            _ => {}
        }
        after
    }
}

/// The store's holder writes under its lease, and the leader knows.
fn is_well(state: &State) -> bool {
    let holder = &state.nodes[usize::from(state.store.holder)];
    holder.writes
        && holder.left > 0
        && holder.lease == state.store.epoch
        && state.leader.moving.is_none()
        && state.leader.record == state.store
        && state.leader.granted == 0
}
