//! Leases, fences, epochs and consent (design, rules 1 to 4): never two writers.
//!
//! Two nodes, a leader that may be replaced in the middle of everything and whose messages and store writes outlive it, late and
//! repeated commands, reboots with and without memory, and clocks that lose a tick within the stated bound. When to start a
//! failover and when to change the membership is left to chance: safety must not rest on judgement.
//! Length: one model in one place: its state, its steps, and how they are turned into the words of the real code.

use std::time::Duration;

use super::search::Model;
use super::words::*;
use stormglass::agent::lease::{Lease as Held, LeaseBook};
use stormglass::agent::promises;
use stormglass::decide::lease;
use stormglass::domain::clock::BootId;
use stormglass::domain::report::{PostgresState, Standing};
use stormglass::domain::*;
use stormglass::operate::{self, Effect, Next};
use stormglass::ports::agent::{Memory, StampedMoment};

/// One rule of the protocol, taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    Nothing,
    /// Grants go on between the decision and the outcome of the swap.
    PauseDuringSwap,
    /// The store compares the epoch and not the number.
    SwapComparesNumber,
    /// A new leader takes up the failover that its predecessor journalled.
    JournalResumed,
    /// A new leader waits for what its predecessor may have granted.
    NewLeaderWaits,
    /// The wait is longer than the lease, by the drift.
    DriftInWait,
    /// A confirmation counts for its own epoch.
    FenceNamesEpoch,
    /// A node that confirmed its fence is not authorised again in that epoch.
    FenceIsFinal,
    /// A young memory waits before it consents.
    YoungMemoryWaits,
    /// What was seen and consented to is on disk.
    PromisesAreStored,
}

/// How much can happen.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub epochs: u8,
    pub numbers: u8,
    pub failovers: u8,
    pub leader_changes: u8,
    pub reboots: u8,
    pub wipes: bool,
    pub timeouts: u8,
    pub slow: bool,
    pub ticks: u8,
    pub heartbeats: u8,
}

pub struct Lease {
    pub removed: Removed,
    pub bounds: Bounds,
}

const NODES: usize = 2;
const WAIT: u8 = LEASE + DRIFT;

/// What a report says, and how long ago, by the node's own clock, it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Said {
    seen: u8,
    fenced: u8,
    consented: u8,
    lease: u8,
    age: u8,
    /// A newer report was heard: this one is late.
    late: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reply {
    epoch: u8,
    number: u8,
    granted: bool,
    age: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Order {
    Fence,
    Freeze,
    /// Its grant's number, and the age of the moment that the lease counts from.
    Promote(u8, u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Waits,
    Done,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sent {
    order: Order,
    epoch: u8,
    attempt: u8,
    session: u8,
    outcome: Outcome,
}

impl Sent {
    fn step(&self) -> StepName {
        match self.order {
            Order::Fence => StepName::Fence,
            Order::Freeze => StepName::Freeze,
            Order::Promote(..) => StepName::Promote,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Answer {
    step: StepName,
    epoch: u8,
    attempt: u8,
    session: u8,
    done: bool,
    said: Said,
    /// A heartbeat was sent after it.
    outrun: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Node {
    // On disk.
    seen: u8,
    number: u8,
    fenced: u8,
    consented: u8,
    consent_of_this_boot: bool,
    // Volatile.
    young: u8,
    barred: u8,
    lease: u8,
    lease_number: u8,
    left: u8,
    writes: bool,
    /// Ticks until its clock may lose the next one.
    steady: u8,
    // On the way.
    heartbeat: Option<Said>,
    reply: Option<Reply>,
    orders: [Option<Sent>; 3],
    answer: Option<Answer>,
}

/// (step, attempt, how it stands, epoch)
type Line = (StepName, u8, u8, u8);
const STARTED: u8 = 0;
const SUCCEEDED: u8 = 1;
const FAILED: u8 = 2;
const UNKNOWN: u8 = 3;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Moving {
    from: u8,
    to: u8,
    before: u8,
    after: u8,
    journal: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Leader {
    session: u8,
    record: Record,
    leading: u8,
    granted: [u8; NODES],
    heard: [Option<Said>; NODES],
    moving: Option<Moving>,
    awaits: Option<(StepName, u8, u8)>,
    updating: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Write {
    expected: u8,
    record: Record,
    session: u8,
    is_swap: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    store: Record,
    journal: Option<Moving>,
    leader: Leader,
    writes: Vec<Write>,
    nodes: [Node; NODES],
    promoted: [u8; 5],
    failovers: u8,
    reboots: u8,
    timeouts: u8,
    ticks: u8,
    heartbeats: u8,
    broken: Option<&'static str>,
}

/// One step. What it carries is for whoever reads a trace.
#[derive(Debug, Clone, Copy)]
#[expect(dead_code, reason = "traces are printed with Debug")]
pub enum Action {
    Tick { loses_it: Option<u8> },
    Heartbeat(u8),
    SelfFence(u8),
    HeartbeatArrives(u8),
    ReplyArrives(u8),
    FailoverBegins { to: u8 },
    FailoverDrives,
    OrderArrives(u8, usize),
    AnswerArrives(u8),
    StepTimesOut,
    MembershipChanges,
    WriteLands(usize),
    LeaderChanges,
    Reboot { node: u8, wiped: bool },
}

impl Model for Lease {
    type State = State;
    type Action = Action;

    fn initial(&self) -> State {
        let standby = Node {
            seen: 1,
            number: 1,
            fenced: 0,
            consented: 0,
            consent_of_this_boot: false,
            young: 0,
            barred: 0,
            lease: 0,
            lease_number: 0,
            left: 0,
            writes: false,
            steady: 0,
            heartbeat: None,
            reply: None,
            orders: [None; 3],
            answer: None,
        };
        let primary = Node {
            consented: 1,
            consent_of_this_boot: true,
            lease: 1,
            lease_number: 1,
            left: LEASE,
            writes: true,
            ..standby.clone()
        };
        let record = Record {
            epoch: 1,
            number: 1,
            holder: 0,
            confirmed: true,
            synchronous: 2,
            synchronous_number: 1,
            eligible: 2,
            proposed: 0,
        };
        let leader = Leader {
            session: 0,
            record,
            leading: WAIT,
            granted: [0, WAIT],
            heard: [None; NODES],
            moving: None,
            awaits: None,
            updating: false,
        };
        State {
            store: record,
            journal: None,
            leader,
            writes: Vec::new(),
            nodes: [primary, standby],
            promoted: [0, 1, 0, 0, 0],
            failovers: 0,
            reboots: 0,
            timeouts: 0,
            ticks: 0,
            heartbeats: 0,
            broken: None,
        }
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        if state.broken.is_some() {
            return state.broken;
        }
        if state.nodes.iter().filter(|node| node.left > 0).count() > 1 {
            return Some("two valid leases");
        }
        let old = state.nodes.iter().any(|node| node.left > 0 && node.lease < state.store.epoch);
        old.then_some("the epoch was raised while a lease of an older one is valid")
    }

    fn steps(&self, state: &State, next: &mut Vec<(Action, State)>) {
        self.time(state, next);
        self.nodes(state, next);
        self.controller(state, next);
        self.store(state, next);
    }
}

impl Lease {
    fn time(&self, state: &State, next: &mut Vec<(Action, State)>) {
        if state.ticks >= self.bounds.ticks {
            return;
        }
        let slow = (0..2_u8).filter(|node| self.bounds.slow && state.nodes[usize::from(*node)].steady == 0).map(Some);
        for loses_it in std::iter::once(None).chain(slow) {
            let mut after = state.clone();
            after.ticks += u8::from(self.bounds.ticks < u8::MAX);
            let leader = &mut after.leader;
            leader.leading = (leader.leading + 1).min(WAIT);
            for (at, node) in after.nodes.iter_mut().enumerate() {
                leader.granted[at] = (leader.granted[at] + 1).min(WAIT);
                if loses_it.is_some_and(|slow| usize::from(slow) == at) {
                    node.steady = WAIT;
                    continue;
                }
                node.steady = node.steady.saturating_sub(1);
                node.young = node.young.saturating_sub(1);
                let older = |age: &mut u8| *age = (*age + 1).min(LEASE);
                node.heartbeat.iter_mut().for_each(|said| older(&mut said.age));
                node.reply.iter_mut().for_each(|reply| older(&mut reply.age));
                node.answer.iter_mut().for_each(|answer| older(&mut answer.said.age));
                leader.heard[at].iter_mut().for_each(|said| older(&mut said.age));
                for sent in node.orders.iter_mut().flatten() {
                    if let Order::Promote(_, age) = &mut sent.order {
                        older(age);
                    }
                }
                if node.left > 0 {
                    node.left -= 1;
                    if node.left == 0 {
                        // The guard killed PostgreSQL; the agent bars and confirms when it gets to it.
                        node.writes = false;
                    }
                }
            }
            next.push((Action::Tick { loses_it }, after));
        }
    }

    fn nodes(&self, state: &State, next: &mut Vec<(Action, State)>) {
        for node in 0..2_u8 {
            let at = usize::from(node);
            let here = &state.nodes[at];
            let said = said(here);
            // Nobody asks a node twice about the same moment.
            let is_news = state.leader.heard[at].is_none_or(|heard| Said { age: 0, late: false, ..heard } != said);
            let asks = here.heartbeat != Some(said) && here.reply.is_none_or(|reply| reply.age > 0);
            if asks && (is_news || here.lease > 0) && state.heartbeats < self.bounds.heartbeats {
                let mut after = state.clone();
                after.heartbeats += u8::from(self.bounds.heartbeats < u8::MAX);
                after.nodes[at].heartbeat = Some(said);
                after.nodes[at].answer.iter_mut().for_each(|answer| answer.outrun = true);
                next.push((Action::Heartbeat(node), after));
            }
            if here.lease > 0 && here.left == 0 {
                let mut after = state.clone();
                fence(&mut after.nodes[at], here.lease);
                next.push((Action::SelfFence(node), after));
            }
            if let Some(reply) = here.reply {
                let mut after = state.clone();
                self.take_reply(&mut after.nodes[at], node, reply);
                next.push((Action::ReplyArrives(node), after));
            }
            for (slot, sent) in here.orders.iter().enumerate() {
                if let Some(sent) = sent
                    && let Some(after) = self.obey(state, node, slot, *sent)
                {
                    next.push((Action::OrderArrives(node, slot), after));
                }
            }
            if state.reboots < self.bounds.reboots {
                for wiped in [false, true] {
                    if !wiped || self.bounds.wipes {
                        next.push((Action::Reboot { node, wiped }, self.reboot(state, at, wiped)));
                    }
                }
            }
        }
    }

    fn reboot(&self, state: &State, at: usize, wiped: bool) -> State {
        let mut after = state.clone();
        after.reboots += 1;
        let node = &mut after.nodes[at];
        (node.lease, node.left, node.writes, node.reply) = (0, 0, false, None);
        node.young = WAIT;
        node.consent_of_this_boot = false;
        let forgets = wiped || self.removed == Removed::PromisesAreStored;
        if forgets {
            (node.seen, node.number, node.consented, node.fenced) = (0, 0, 0, 0);
            node.young = if wiped { WAIT } else { 0 };
        }
        node.barred = node.fenced;
        for sent in node.orders.iter_mut().flatten() {
            if forgets || sent.outcome == Outcome::Failed {
                sent.outcome = Outcome::Waits;
            }
        }
        after
    }

    fn take_reply(&self, node: &mut Node, name: u8, reply: Reply) {
        node.reply = None;
        let (epoch, number) = (Epoch(u64::from(reply.epoch)), RecordNumber(u64::from(reply.number)));
        if promises::assignment_refused_because(&self.memory(name, node), epoch, number).is_none() {
            node.seen = node.seen.max(reply.epoch);
            node.number = node.number.max(reply.number);
        }
        if reply.granted
            && promises::may_renew(&self.memory(name, node), epoch)
            && (node.writes || node.lease == reply.epoch)
        {
            self.hold(node, Epoch(u64::from(node.seen)), reply);
        }
    }

    /// The agent's own bookkeeping decides what a grant is worth.
    fn hold(&self, node: &mut Node, known: Epoch, reply: Reply) -> bool {
        let timers = policy(DRIFT).timers;
        let mut book = LeaseBook::default();
        if node.lease > 0 {
            book.accept(Held {
                epoch: Epoch(u64::from(node.lease)),
                number: RecordNumber(u64::from(node.lease_number)),
                deadline: NOW.plus(Duration::from_secs(u64::from(node.left))),
                timers,
            });
        }
        if self.removed != Removed::FenceIsFinal {
            book.bar(Epoch(u64::from(node.barred)));
        }
        let grant =
            Grant { epoch: Epoch(u64::from(reply.epoch)), number: RecordNumber(u64::from(reply.number)), timers };
        let Ok(lease) = book.weigh(&grant, ago(reply.age), known, NOW) else { return false };
        if !book.accept(lease) {
            return false;
        }
        let held = book.current().expect("accepted a moment ago");
        node.lease = small(held.epoch.0);
        node.lease_number = small(held.number.0);
        node.left = small(held.deadline.since(NOW).as_secs());
        true
    }

    /// A command, refused or obeyed; `None` while it waits or was answered already.
    fn obey(&self, state: &State, name: u8, slot: usize, sent: Sent) -> Option<State> {
        let at = usize::from(name);
        let mut after = state.clone();
        let node = &mut after.nodes[at];
        let epoch = Epoch(u64::from(sent.epoch));
        let mut outcome = sent.outcome;
        if outcome == Outcome::Waits {
            let memory = self.memory(name, node);
            let done = if promises::outdated_because(&memory, epoch).is_some() {
                false
            } else {
                match sent.order {
                    Order::Fence => {
                        fence(node, sent.epoch);
                        true
                    }
                    Order::Freeze => {
                        let waits = promises::consent_waits(&memory, NOW, &boot(), policy(DRIFT).timers.promise());
                        if !waits.is_zero() && self.removed != Removed::YoungMemoryWaits {
                            return None;
                        }
                        let agrees = promises::no_consent_because(&memory, epoch).is_none();
                        if agrees {
                            let mut memory = memory;
                            promises::consent(&mut memory, epoch, &boot());
                            node.consented = memory.consented.map_or(0, |epoch| small(epoch.0));
                            node.seen = small(memory.highest_epoch.0);
                            node.consent_of_this_boot = true;
                        }
                        agrees && !node.writes
                    }
                    Order::Promote(number, age) => {
                        let timers = policy(DRIFT).timers;
                        let grant = Grant { epoch, number: RecordNumber(u64::from(number)), timers };
                        node.seen = node.seen.max(sent.epoch);
                        let agrees = promises::no_promotion_because(&memory, epoch, &grant, &boot()).is_none();
                        let reply = Reply { epoch: sent.epoch, number, granted: true, age };
                        let promotes = agrees && self.hold(node, epoch, reply);
                        if promotes {
                            node.writes = true;
                            let given = &mut after.promoted[usize::from(sent.epoch)];
                            if *given != 0 && *given != name + 1 {
                                after.broken = Some("two nodes were promoted in one epoch");
                            }
                            *given = name + 1;
                        }
                        promotes
                    }
                }
            };
            outcome = if done { Outcome::Done } else { Outcome::Failed };
        } else if state.nodes[at].answer.is_some() {
            return None;
        }
        let node = &mut after.nodes[at];
        node.orders[slot] = Some(Sent { outcome, ..sent });
        node.answer = Some(Answer {
            step: sent.step(),
            epoch: sent.epoch,
            attempt: sent.attempt,
            session: sent.session,
            done: outcome == Outcome::Done,
            said: said(node),
            outrun: false,
        });
        Some(after)
    }

    fn controller(&self, state: &State, next: &mut Vec<(Action, State)>) {
        let leader = &state.leader;
        for node in 0..2_u8 {
            let at = usize::from(node);
            if let Some(said) = state.nodes[at].heartbeat {
                next.push((Action::HeartbeatArrives(node), self.heartbeat(state, node, said)));
            }
            if let Some(answer) = state.nodes[at].answer {
                let mut after = state.clone();
                after.nodes[at].answer = None;
                let awaited = leader.awaits == Some((answer.step, answer.attempt, answer.epoch));
                if awaited && answer.session == leader.session {
                    if !answer.said.late {
                        after.leader.heard[at] = Some(answer.said);
                    }
                    if !answer.outrun {
                        after.nodes[at].heartbeat.iter_mut().for_each(|said| said.late = true);
                    }
                    ended(&mut after.leader, if answer.done { SUCCEEDED } else { FAILED });
                }
                next.push((Action::AnswerArrives(node), after));
            }
        }
        if leader.awaits.is_some() && state.timeouts < self.bounds.timeouts {
            let mut after = state.clone();
            after.timeouts += 1;
            ended(&mut after.leader, UNKNOWN);
            next.push((Action::StepTimesOut, after));
        }
        let holder = leader.heard[usize::from(leader.record.holder)];
        let is_writable = holder.is_some_and(|said| said.lease == leader.record.epoch);
        let may_change = leader.moving.is_none() || !leader.record.confirmed;
        if is_writable && may_change && !leader.updating && leader.record.number < self.bounds.numbers {
            let mut record = Record::of(&leader.record.real().changed());
            if record.confirmed {
                record.eligible ^= 1 << (1 - record.holder);
                record.synchronous = record.eligible;
                record.synchronous_number = record.number;
            }
            record.confirmed = true;
            let mut after = state.clone();
            after.leader.updating = true;
            let expected = leader.record.number;
            after.writes.push(Write { expected, record, session: leader.session, is_swap: false });
            next.push((Action::MembershipChanges, after));
        }
        if leader.moving.is_none()
            && state.failovers < self.bounds.failovers
            && leader.record.epoch < self.bounds.epochs
        {
            let record = leader.record;
            for to in (0..2).filter(|to| *to == record.holder || record.eligible & (1 << to) != 0) {
                let mut after = state.clone();
                after.failovers += 1;
                let moving = Moving { from: record.holder, to, before: record.epoch, after: 0, journal: Vec::new() };
                after.leader.moving = Some(moving);
                next.push((Action::FailoverBegins { to }, after));
            }
        }
        if leader.moving.is_some()
            && leader.awaits.is_none()
            && let Some(after) = self.drive(state)
        {
            next.push((Action::FailoverDrives, after));
        }
    }

    fn heartbeat(&self, state: &State, node: u8, said: Said) -> State {
        let at = usize::from(node);
        let mut after = state.clone();
        let leader = &mut after.leader;
        after.nodes[at].heartbeat = None;
        if !said.late {
            leader.heard[at] = Some(said);
            after.nodes[at].answer.iter_mut().filter(|answer| answer.outrun).for_each(|answer| answer.said.late = true);
        }
        let moving = leader.moving.as_ref().map(real_operation);
        let pause = lease::swap_in_flight(moving.as_ref()) && self.removed != Removed::PauseDuringSwap;
        let grant = leader.heard[at].and_then(|heard| {
            let mut report = self.reported(node, &heard, &leader.record);
            if self.removed == Removed::FenceIsFinal {
                report.standing.fence_confirmed = None;
            }
            lease::grant(&leader.record.real(), &report, &policy(DRIFT), pause, None)
        });
        if grant.is_some() {
            leader.granted[at] = 0;
        }
        let (epoch, number) = (leader.record.epoch, leader.record.number);
        after.nodes[at].reply = Some(Reply { epoch, number, granted: grant.is_some(), age: said.age });
        after
    }

    /// One step of the real saga.
    fn drive(&self, state: &State) -> Option<State> {
        let mut after = state.clone();
        let drift = if self.removed == Removed::DriftInWait { 0 } else { DRIFT };
        loop {
            let leader = &mut after.leader;
            let moving = leader.moving.as_ref()?;
            match operate::next(&real_operation(moving), &self.view(leader), &policy(drift)) {
                Next::Satisfied { step, epoch, .. } => {
                    let moving = leader.moving.as_mut()?;
                    let line = (step, attempts(moving, step) + 1, SUCCEEDED, small(epoch.0));
                    moving.journal.push(line);
                    if step == StepName::AdvanceEpoch {
                        moving.after = small(epoch.0);
                    }
                }
                Next::Run(step) => {
                    let (attempt, epoch) = (small(u64::from(step.attempt)), small(step.epoch.0));
                    let (session, to) = (leader.session, moving.to);
                    let moving = leader.moving.as_mut()?;
                    let line = (step.name, attempt, STARTED, epoch);
                    if moving.journal.last() != Some(&line) {
                        moving.journal.push(line);
                    }
                    let (target, order) = match step.effect {
                        Effect::Swap { expected, record } => {
                            let expected = small(expected?.0);
                            let record = Record::of(&record);
                            after.writes.push(Write { expected, record, session, is_swap: true });
                            (to, None)
                        }
                        Effect::Freeze { .. } => (to, Some(Order::Freeze)),
                        Effect::Command { node, command: Command::Fence } => (index(&node), Some(Order::Fence)),
                        Effect::Command { command: Command::Promote { grant, counts_from, .. }, .. } => {
                            leader.granted[usize::from(to)] = 0;
                            let age = small(NOW.since(counts_from).as_secs());
                            (to, Some(Order::Promote(small(grant.number.0), age)))
                        }
                        // Redirect: nothing of the protocol is left.
                        _ => {
                            leader.moving = None;
                            after.journal = None;
                            return Some(after);
                        }
                    };
                    leader.awaits = Some((step.name, attempt, epoch));
                    after.journal = leader.moving.clone();
                    if let Some(order) = order {
                        let orders = &mut after.nodes[usize::from(target)].orders;
                        // The same attempt again is answered and not run again.
                        let known = orders
                            .iter()
                            .flatten()
                            .find(|sent| sent.epoch == epoch && sent.attempt == attempt && sent.step() == step.name);
                        let outcome = known.map_or(Outcome::Waits, |sent| sent.outcome);
                        let sent = Sent { order, epoch, attempt, session, outcome };
                        *orders = [Some(sent), orders[0], orders[1]];
                    }
                    return Some(after);
                }
                Next::End { .. } => {
                    leader.moving = None;
                    after.journal = None;
                    return Some(after);
                }
                Next::Wait { .. } | Next::Undo { .. } => return None,
            }
        }
    }

    fn store(&self, state: &State, next: &mut Vec<(Action, State)>) {
        for (slot, write) in state.writes.iter().enumerate() {
            let mut after = state.clone();
            after.writes.remove(slot);
            let mut record = write.record;
            let current = if self.removed == Removed::SwapComparesNumber && write.is_swap {
                record.number = state.store.number + 1;
                record.epoch == state.store.epoch + 1
            } else {
                write.expected == state.store.number
            };
            let stored = current && record.real().violation_after(&state.store.real()).is_none();
            if stored {
                after.store = record;
            }
            let leader = &mut after.leader;
            if write.session == leader.session {
                let awaited = write.is_swap && leader.awaits.is_some_and(|(step, ..)| step == StepName::AdvanceEpoch);
                if awaited || !write.is_swap {
                    adopt(leader, after.store);
                }
                if awaited {
                    ended(leader, if stored { SUCCEEDED } else { FAILED });
                }
                leader.updating &= write.is_swap;
            }
            next.push((Action::WriteLands(slot), after));
        }
        if state.leader.session < self.bounds.leader_changes {
            let mut after = state.clone();
            let forgets = self.removed == Removed::JournalResumed;
            after.leader = Leader {
                session: state.leader.session + 1,
                record: state.store,
                leading: if self.removed == Removed::NewLeaderWaits { WAIT } else { 0 },
                granted: [WAIT; NODES],
                heard: [None; NODES],
                moving: if forgets { None } else { state.journal.clone() },
                awaits: None,
                updating: false,
            };
            next.push((Action::LeaderChanges, after));
        }
    }

    fn view(&self, leader: &Leader) -> View {
        let nodes = (0..2_u8).map(|node| {
            let at = usize::from(node);
            let report = match leader.heard[at] {
                Some(heard) => {
                    let value = self.reported(node, &heard, &leader.record);
                    Fact::Known { value: value.into(), age: Duration::ZERO }
                }
                None => Fact::Unknown { last: None, for_duration: Duration::ZERO },
            };
            let last_grant = Some(ago(leader.granted[at]));
            NodeView { node: name(node), site: site(), report, last_grant, last_live: None, not_streaming_for: None }
        });
        view(&leader.record, ago(leader.leading), nodes)
    }

    fn reported(&self, node: u8, said: &Said, record: &Record) -> Report {
        let mut fenced = epoch(said.fenced);
        if self.removed == Removed::FenceNamesEpoch && fenced.is_some() {
            fenced = epoch(record.epoch);
        }
        let standing = Standing {
            highest_epoch: Epoch(u64::from(said.seen)),
            lease_epoch: epoch(said.lease),
            fence_confirmed: fenced,
            consented: epoch(said.consented),
            ..Standing::default()
        };
        report(node, ago(said.age), standing, PostgresState::Stopped, None)
    }

    fn memory(&self, name_of: u8, node: &Node) -> Memory {
        let since = StampedMoment { boot: boot(), at: ago(WAIT - node.young) };
        let mut memory = Memory::new(cluster(), name(name_of), since);
        memory.highest_epoch = Epoch(u64::from(node.seen));
        memory.highest_number = RecordNumber(u64::from(node.number));
        memory.fence_confirmed = epoch(node.fenced).filter(|_| self.removed != Removed::FenceIsFinal);
        memory.consented = epoch(node.consented);
        let other = BootId("other".to_owned());
        memory.consented_boot = Some(if node.consent_of_this_boot { boot() } else { other });
        memory
    }
}

fn epoch(number: u8) -> Option<Epoch> {
    (number > 0).then_some(Epoch(u64::from(number)))
}

fn fence(node: &mut Node, epoch: u8) {
    node.writes = false;
    node.barred = node.barred.max(epoch);
    node.fenced = node.fenced.max(epoch);
    node.seen = node.seen.max(epoch);
    if node.lease <= epoch {
        (node.lease, node.left, node.lease_number) = (0, 0, 0);
    }
}

fn said(node: &Node) -> Said {
    let lease = if node.left > 0 { node.lease } else { 0 };
    Said { seen: node.seen, fenced: node.fenced, consented: node.consented, lease, age: 0, late: false }
}

fn attempts(moving: &Moving, step: StepName) -> u8 {
    moving.journal.iter().filter(|line| line.0 == step).map(|line| line.1).max().unwrap_or(0)
}

/// The outcome of the step that is awaited, into the journal.
fn ended(leader: &mut Leader, how: u8) {
    let Some((step, attempt, epoch)) = leader.awaits.take() else { return };
    let Some(moving) = &mut leader.moving else { return };
    moving.journal.push((step, attempt, how, epoch));
    if step == StepName::AdvanceEpoch && how == SUCCEEDED {
        moving.after = epoch;
    }
}

fn adopt(leader: &mut Leader, record: Record) {
    if record.number <= leader.record.number {
        return;
    }
    if record.epoch > leader.record.epoch {
        leader.granted = [WAIT; NODES];
    }
    leader.record = record;
}

fn real_operation(moving: &Moving) -> Operation {
    let journal = moving.journal.iter().map(|(step, attempt, how, epoch)| {
        let state = match *how {
            STARTED => StepState::Started,
            SUCCEEDED => succeeded(),
            FAILED => failed(),
            _ => unknown(),
        };
        event(*step, u32::from(*attempt), state, *epoch)
    });
    let after = (moving.after > 0).then_some(moving.after);
    operation(moving.from, moving.to, moving.before, after, journal.collect())
}
