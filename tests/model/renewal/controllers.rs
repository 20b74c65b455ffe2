//! What controllers and the store do: heartbeats, grants, membership, operations, leader changes. No agent's rule enters.

use super::super::words::*;
use super::views::real_operation;
use super::*;
use stormglass::decide::{lease, membership};
use stormglass::domain::*;
use stormglass::operate::{self, Effect, Next};

impl Renewal {
    pub(super) fn controllers(&self, state: &State, next: &mut Vec<(Action, State)>) {
        for node in self.all() {
            let at = usize::from(node);
            let said = self.said(node, &state.nodes[at]);
            for at_deposed in [false, true] {
                if let Some(after) = self.heard(state, node, said, at_deposed, true) {
                    next.push((Action::Heartbeat { node, at_deposed }, after));
                }
                if let Some(late) = state.nodes[at].late
                    && let Some(after) = self.heard(state, node, late, at_deposed, true)
                {
                    next.push((Action::LateReportArrives { node, at_deposed }, after));
                }
            }
            if self.bounds.stalls
                && let Some(after) = self.heard(state, node, said, false, false)
            {
                next.push((Action::HeardWithoutGrant(node), after));
            }
            if state.late < self.bounds.late && state.nodes[at].late != Some(said) {
                let mut after = state.clone();
                after.late += 1;
                after.nodes[at].late = Some(said);
                next.push((Action::ReportIsSent(node), after));
            }
            self.orders(state, node, next);
        }
        self.store(state, next);
        if state.leader.moving.is_some() {
            self.drives(state, next);
        } else {
            self.begins(state, next);
        }
        self.memberships(state, next);
        if state.leader_changes < self.bounds.leader_changes && state.deposed.is_none() {
            next.push((Action::LeaderChanges, self.leader_changes(state)));
        }
    }

    /// A report reaches a controller, and its answer sets out.
    pub(super) fn heard(
        &self,
        state: &State,
        node: u8,
        said: Said,
        at_deposed: bool,
        may_grant: bool,
    ) -> Option<State> {
        let at = usize::from(node);
        let mut after = state.clone();
        let report = self.reported(node, &said, None);
        let leader = &mut after.leader;
        let (record, pauses, left) = if at_deposed {
            let deposed = state.deposed?;
            (deposed.record, deposed.pauses, deposed.left)
        } else {
            // Only a consent's age matters later; no number does.
            let age = if said.consented > 1 { said.age } else { LEASE };
            // That a standby promised only holds a failover up; what a fenced node promised is waited for.
            let promised = said.promised.filter(|_| said.fenced > 0 || self.recovers);
            leader.heard[at] = Some(Said { number: 0, age, promised, ..said });
            let counts = self.removed != Removed::ReportedLeaseCounts;
            if counts && lease::shows_renewal(&self.record(&leader.record), &report) {
                leader.granted = 0;
            }
            let moving = leader.moving.as_ref().map(real_operation);
            (leader.record, lease::swap_in_flight(moving.as_ref()), self.bounds.ttl)
        };
        let grant = lease::grant(&self.record(&record), &report, &self.policy(), pauses, self.leads_for(left));
        let lease = grant.filter(|_| may_grant).map_or(0, |grant| small(grant.timers.lease.as_secs()));
        if lease > 0 && !at_deposed {
            after.leader.granted = 0;
        }
        let told = Told {
            epoch: record.epoch,
            number: record.number,
            holder: record.holder,
            renewers: mask(&self.record(&record).renewers()),
        };
        let here = &state.nodes[at];
        // An answer that changes nothing is not worth a state.
        let is_news = here.told != Some(told) && told.number >= here.number && told.epoch >= here.seen;
        let lease = if lease > said.age { lease } else { 0 };
        if is_news || lease > 0 {
            let age = if lease > 0 { said.age } else { LEASE };
            after.nodes[at].reply = Some(Reply { told, lease, age });
            if !self.bounds.delays {
                self.take_reply(&mut after.nodes[at], node);
            }
        }
        (after != *state).then_some(after)
    }

    fn orders(&self, state: &State, node: u8, next: &mut Vec<(Action, State)>) {
        let Some(sent) = state.nodes[usize::from(node)].order else { return };
        let Some(mut after) = self.obey(state, node, sent) else { return };
        let ended = after.nodes[usize::from(node)].order.map(|sent| sent.outcome);
        if ended != Some(Outcome::Waits) {
            if state.timeouts < self.bounds.timeouts && sent.outcome == Outcome::Waits {
                next.push((Action::OrderArrives { node, answered: false }, after.clone()));
            }
            self.answered(&mut after, node, sent, ended == Some(Outcome::Done));
        }
        if after != *state {
            next.push((Action::OrderArrives { node, answered: true }, after));
        }
    }

    fn answered(&self, after: &mut State, node: u8, sent: Sent, done: bool) {
        if after.leader.awaits == Some((sent.step, sent.attempt, sent.epoch)) {
            let said = self.said(node, &after.nodes[usize::from(node)]);
            if let Some(after_hearing) = self.heard(after, node, said, false, false) {
                // A report that comes with an answer is answered by no grant.
                after.leader = after_hearing.leader;
            }
            after.nodes[usize::from(node)].late = None;
            ended(&mut after.leader, if done { SUCCEEDED } else { FAILED });
        }
    }

    fn begins(&self, state: &State, next: &mut Vec<(Action, State)>) {
        let record = state.leader.record;
        if record.epoch >= self.bounds.epochs {
            return;
        }
        for to in self.all() {
            let mut begin = |kind, label, to| {
                let mut after = state.clone();
                match kind {
                    Kind::Failover => after.failovers += 1,
                    Kind::Loss => after.losses += 1,
                    Kind::Switchover => after.switchovers += 1,
                }
                let (from, before) = (record.holder, record.epoch);
                let journal = Vec::new();
                after.leader.moving = Some(Moving { kind, from, to, before, after: 0, undoing: false, journal });
                next.push((Action::OperationBegins { kind: label, to }, after));
            };
            let is_eligible = record.eligible & bit(to) != 0;
            if (is_eligible || to == record.holder) && state.failovers < self.bounds.failovers {
                begin(Kind::Failover, "failover", to);
            }
            if !is_eligible && to != record.holder && state.losses < self.bounds.losses {
                begin(Kind::Loss, "failover with loss", to);
            }
            if to != record.holder && state.switchovers < self.bounds.switchovers {
                begin(Kind::Switchover, "switchover", to);
            }
        }
    }

    fn drives(&self, state: &State, next: &mut Vec<(Action, State)>) {
        let leader = &state.leader;
        if leader.awaits.is_some() {
            if state.timeouts < self.bounds.timeouts {
                let mut after = state.clone();
                after.timeouts += 1;
                ended(&mut after.leader, UNKNOWN);
                next.push((Action::StepTimesOut, after));
            }
            return;
        }
        let Some(moving) = &leader.moving else { return };
        // Who is silent matters after something went wrong.
        let trouble = moving.journal.last().is_some_and(|line| line.2 >= FAILED);
        for silent in [false, true] {
            if (!silent || trouble)
                && let Some(after) = self.drive(state, if silent { bit(moving.to) } else { 0 })
            {
                next.push((Action::OperationDrives { silent }, after));
            }
        }
    }

    /// One step of the real saga.
    pub(super) fn drive(&self, state: &State, silent: u8) -> Option<State> {
        let mut after = state.clone();
        loop {
            let leader = &mut after.leader;
            let moving = leader.moving.as_ref()?;
            match operate::next(&real_operation(moving), &self.view(leader, 0, silent), &self.policy()) {
                Next::Satisfied { step, epoch, .. } => {
                    let line = (step, attempts(moving, step) + 1, SUCCEEDED, small(epoch.0));
                    journal(leader.moving.as_mut()?, line);
                }
                Next::Undo { .. } => leader.moving.as_mut()?.undoing = true,
                Next::Run(step) => {
                    let (attempt, epoch) = (small(u64::from(step.attempt)), small(step.epoch.0));
                    let (effect, name) = (step.effect, step.name);
                    journal(leader.moving.as_mut()?, (name, attempt, STARTED, epoch));
                    leader.awaits = Some((name, attempt, epoch));
                    let (node, order) = match effect {
                        Effect::Swap { expected, record } => {
                            let record = Record::of(&record);
                            let write = Write { expected: small(expected?.0), record, is_swap: true };
                            after.writes.push(self.carried(state, write));
                            after.journal = after.leader.moving.clone();
                            return Some(if self.bounds.delays { after } else { self.landed(&after, 0) });
                        }
                        Effect::Freeze { candidate, fence_confirmed, .. } => {
                            (index(&candidate), Order::Freeze(fence_confirmed.map_or(0, |epoch| small(epoch.0))))
                        }
                        Effect::Command { node, command: Command::Fence } => (index(&node), Order::Fence),
                        Effect::Command { node, command: Command::Demote { .. } } => (index(&node), Order::Demote),
                        Effect::Command { node, command: Command::Promote { grant, counts_from, .. } } => {
                            leader.granted = 0;
                            let age = small(NOW.since(counts_from).as_secs());
                            let (number, lease) = (small(grant.number.0), small(grant.timers.lease.as_secs()));
                            (index(&node), Order::Promote { number, lease, age })
                        }
                        // Proxies, the checkpoint: nothing of the protocol.
                        _ if matches!(name, StepName::Checkpoint | StepName::Drain | StepName::Release) => {
                            ended(leader, SUCCEEDED);
                            continue;
                        }
                        // From here on the old primary comes back.
                        _ => {
                            (leader.moving, leader.awaits, after.journal) = (None, None, None);
                            return Some(after);
                        }
                    };
                    after.journal = after.leader.moving.clone();
                    let slot = &mut after.nodes[usize::from(node)].order;
                    // The same attempt again is answered and not run again.
                    let same = slot.filter(|sent| (sent.step, sent.attempt, sent.epoch) == (name, attempt, epoch));
                    let outcome = same.map_or(Outcome::Waits, |sent| sent.outcome);
                    *slot = Some(Sent { order, step: name, epoch, attempt, outcome });
                    return Some(after);
                }
                Next::End { .. } => {
                    (leader.moving, after.journal) = (None, None);
                    return Some(after);
                }
                Next::Wait { .. } => return (after != *state).then_some(after),
            }
        }
    }

    /// What a mutant carries into the next epoch.
    fn carried(&self, state: &State, write: Write) -> Write {
        let mut write = write;
        if self.removed == Removed::EmptiedAtPromotion {
            let others = ((1 << self.bounds.nodes) - 1) & !bit(write.record.holder);
            write.record.eligible = others;
            write.record.synchronous = if state.store.synchronous == 0 { 0 } else { others };
        }
        write
    }

    fn memberships(&self, state: &State, next: &mut Vec<(Action, State)>) {
        let leader = &state.leader;
        let record = leader.record;
        let holder = leader.heard[usize::from(record.holder)];
        let is_writable = holder.is_some_and(|said| said.writes && said.lease == record.epoch);
        let may_change = leader.moving.is_none() || !record.confirmed;
        if !is_writable || !may_change || leader.updating || record.number >= self.bounds.numbers {
            return;
        }
        let standbys = ((1 << self.bounds.nodes) - 1) & !bit(record.holder);
        for streaming in (0..1 << self.bounds.nodes).filter(|streaming| streaming & !standbys == 0) {
            if let Some(wanted) = self.wanted(leader, streaming) {
                let mut after = state.clone();
                after.leader.updating = true;
                after.writes.push(Write { expected: record.number, record: wanted, is_swap: false });
                let after = if self.bounds.delays { after } else { self.landed(&after, 0) };
                next.push((Action::MembershipChanges { streaming }, after));
            }
        }
    }

    /// The ledger's next change, if it is one of the membership, or that the holder was seen to write.
    pub(super) fn wanted(&self, leader: &Leader, streaming: u8) -> Option<Record> {
        let record = leader.record;
        if !record.confirmed {
            return Some(Record { confirmed: true, number: record.number + 1, ..record });
        }
        let view = self.view(leader, streaming, 0);
        let membership::Change::Store { record: wanted, .. } =
            membership::change(&view, &self.record(&record), &self.policy())
        else {
            return None;
        };
        let wanted = Record::of(&wanted);
        let members = |record: &Record| (record.synchronous, record.eligible, record.proposed);
        (members(&wanted) != members(&record)).then_some(wanted)
    }

    fn store(&self, state: &State, next: &mut Vec<(Action, State)>) {
        for slot in 0..state.writes.len() {
            next.push((Action::WriteLands(slot), self.landed(state, slot)));
        }
    }

    /// The store decides about a write, and the leader hears of it.
    pub(super) fn landed(&self, state: &State, slot: usize) -> State {
        let mut after = state.clone();
        let write = after.writes.remove(slot);
        let allowed = self.removed == Removed::EmptiedAtPromotion
            || self.record(&write.record).violation_after(&self.record(&state.store)).is_none();
        let stored = write.expected == state.store.number && allowed;
        if stored {
            after.store = write.record;
        }
        let leader = &mut after.leader;
        let swaps = |step| matches!(step, StepName::AdvanceEpoch | StepName::Reinstate);
        let awaited = write.is_swap && leader.awaits.is_some_and(|(step, ..)| swaps(step));
        if awaited || !write.is_swap {
            adopt(leader, after.store, self.longest());
        }
        if awaited {
            ended(leader, if stored { SUCCEEDED } else { FAILED });
        }
        leader.updating &= write.is_swap;
        after
    }

    /// Leadership is taken away, be it early: nothing that the deposed leader writes lands any more.
    fn leader_changes(&self, state: &State) -> State {
        let mut after = state.clone();
        after.leader_changes += 1;
        after.writes.clear();
        let moving = state.leader.moving.as_ref();
        after.deposed = (self.bounds.ttl > 0).then(|| Deposed {
            record: state.leader.record,
            left: self.bounds.ttl,
            pauses: lease::swap_in_flight(moving.map(real_operation).as_ref()),
        });
        after.leader = Leader {
            record: state.store,
            leading: 0,
            granted: self.longest(),
            heard: [None; NODES],
            moving: state.journal.clone(),
            awaits: None,
            updating: false,
        };
        after
    }
}

fn attempts(moving: &Moving, step: StepName) -> u8 {
    moving.journal.iter().filter(|line| line.0 == step).map(|line| line.1).max().unwrap_or(0)
}

/// A line, in place of the one that said that the attempt began.
fn journal(moving: &mut Moving, line: Line) {
    let (step, attempt, how, epoch) = line;
    moving.journal.retain(|last| *last != (step, attempt, STARTED, epoch));
    moving.journal.push(line);
    if matches!(step, StepName::AdvanceEpoch | StepName::Reinstate) && how == SUCCEEDED {
        moving.after = epoch;
    }
}

/// The outcome of the step that is awaited, into the journal.
pub(super) fn ended(leader: &mut Leader, how: u8) {
    let Some((step, attempt, epoch)) = leader.awaits.take() else { return };
    if let Some(moving) = &mut leader.moving {
        journal(moving, (step, attempt, how, epoch));
    }
}

fn adopt(leader: &mut Leader, record: Record, longest: u8) {
    if record.number <= leader.record.number {
        return;
    }
    if record.epoch > leader.record.epoch {
        leader.granted = longest;
    }
    leader.record = record;
}
