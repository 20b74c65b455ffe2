//! What the agents do: self-fences, rounds of promises, answers to controllers, restarts. No controller enters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::words::*;
use super::*;
use stormglass::agent::lease::{Lease as Held, LeaseBook};
use stormglass::agent::promises::{self, Round};
use stormglass::domain::clock::BootId;
use stormglass::domain::command::PromiseRequest;
use stormglass::domain::*;
use stormglass::ports::agent::{Memory, OwnLease, Promise, StampedMoment};

impl Renewal {
    pub(super) fn agents(&self, state: &State, next: &mut Vec<(Action, State)>) {
        for name in self.all() {
            let at = usize::from(name);
            let here = &state.nodes[at];
            if here.lease > 0 && (here.left == 0 || here.lease < here.seen) {
                let mut after = state.clone();
                fence(&mut after.nodes[at], here.lease);
                next.push((Action::SelfFence(name), after));
            }
            self.rounds(state, name, next);
            if here.reply.is_some() {
                let mut after = state.clone();
                self.take_reply(&mut after.nodes[at], name);
                next.push((Action::ReplyArrives(name), after));
            }
            if state.restarts < self.bounds.restarts && self.restart(state, at).nodes != state.nodes {
                next.push((Action::Restart(name), self.restart(state, at)));
            }
            if state.reboots < self.bounds.reboots {
                for wiped in [false, true] {
                    if !wiped || self.bounds.wipes {
                        next.push((Action::Reboot { node: name, wiped }, self.reboot(state, name, wiped)));
                    }
                }
            }
        }
    }

    fn rounds(&self, state: &State, name: u8, next: &mut Vec<(Action, State)>) {
        let at = usize::from(name);
        let here = &state.nodes[at];
        // A full lease gains nothing by a round.
        if here.asking.is_none() && here.left > 0 && here.left < LEASE {
            let memory = self.memory(name, here);
            if let Some(round) = Round::begin(&memory, &held(here, DRIFT), NOW) {
                let mut after = state.clone();
                if !self.bounds.rounds {
                    if self.renews(&mut after, name, round) {
                        next.push((Action::Renews(name), after));
                    }
                    return;
                }
                after.nodes[at].asking = Some(Asking { epoch: here.lease, told: here.told, promised: 0, age: 0 });
                next.push((Action::RoundBegins(name), after));
            }
        }
        let Some(asking) = here.asking else { return };
        let Some(round) = self.round(name, here, asking) else { return };
        for peer in round.renewers().keys().map(index).filter(|peer| asking.promised & bit(*peer) == 0) {
            if let Some(there) = self.promises(name, here, peer, &state.nodes[usize::from(peer)]) {
                let mut after = state.clone();
                after.nodes[usize::from(peer)] = there;
                let all = self.removed == Removed::AllPromise;
                let promised = if all { mask(round.renewers().keys()) } else { asking.promised | bit(peer) };
                after.nodes[at].asking = Some(Asking { promised, ..asking });
                next.push((Action::Promises { peer, to: name }, after));
            }
        }
        let mut after = state.clone();
        after.nodes[at].asking = None;
        if here.left > 0 {
            let mut memory = self.memory(name, here);
            if self.removed == Removed::RoundKeepsMembership {
                memory.assignment = asking.told.map(|told| assignment(name, told));
            }
            let grant = round.grant(&memory, &held(here, DRIFT));
            if let Some(grant) = grant.filter(|grant| promises::may_renew(&memory, grant.epoch)) {
                let known = Epoch(u64::from(here.seen));
                self.hold(&mut after.nodes[at], known, &grant, round.begun_at());
            }
        }
        next.push((Action::RoundEnds(name), after));
    }

    /// A whole round at once, if everybody promises who must.
    fn renews(&self, after: &mut State, name: u8, mut round: Round) -> bool {
        let here = after.nodes[usize::from(name)];
        let peers: Vec<u8> = round.renewers().keys().map(index).collect();
        let willing: Vec<(u8, Node)> = peers
            .iter()
            .filter_map(|peer| Some((*peer, self.promises(name, &here, *peer, &after.nodes[usize::from(*peer)])?)))
            .take(if self.removed == Removed::AllPromise { 1 } else { NODES })
            .collect();
        for (peer, there) in &willing {
            after.nodes[usize::from(*peer)] = *there;
            round.promised(&super::super::words::name(*peer));
        }
        if self.removed == Removed::AllPromise && !willing.is_empty() {
            peers.iter().for_each(|peer| round.promised(&super::super::words::name(*peer)));
        }
        let memory = self.memory(name, &here);
        let grant = round.grant(&memory, &held(&here, DRIFT));
        grant.filter(|grant| promises::may_renew(&memory, grant.epoch)).is_some_and(|grant| {
            self.hold(&mut after.nodes[usize::from(name)], Epoch(u64::from(here.seen)), &grant, round.begun_at())
        })
    }

    /// The round as it stands.
    fn round(&self, name: u8, here: &Node, asking: Asking) -> Option<Round> {
        let before = Node { told: asking.told, lease: asking.epoch, seen: asking.epoch, fenced: 0, ..*here };
        let mut round = Round::begin(&self.memory(name, &before), &held(&before, DRIFT), ago(asking.age))?;
        names(asking.promised).iter().for_each(|peer| round.promised(peer));
        Some(round)
    }

    /// The peer's own rule, and its memory after it.
    fn promises(&self, holder: u8, here: &Node, peer: u8, there: &Node) -> Option<Node> {
        let drift = if self.removed == Removed::DriftInPromise { 0 } else { DRIFT };
        let request = PromiseRequest {
            cluster: cluster(),
            system_identifier: SystemIdentifier(1),
            epoch: Epoch(u64::from(here.lease)),
            holder: name(holder),
            standby: name(peer),
            timers: timers(drift),
        };
        let mut memory = self.memory(peer, there);
        if promises::no_promise_because(&memory, &request, NOW, &boot()).is_some() {
            return None;
        }
        promises::promise(&mut memory, request.epoch, &request.timers, NOW, &boot());
        Some(Node { promise: bound(&memory), ..*there })
    }

    pub(super) fn take_reply(&self, node: &mut Node, name: u8) {
        let Some(reply) = node.reply.take() else { return };
        let known = node.seen;
        if reply.told.epoch == known {
            self.take_grant(node, name, reply);
        }
        let (epoch, number) = (Epoch(u64::from(reply.told.epoch)), RecordNumber(u64::from(reply.told.number)));
        if promises::assignment_refused_because(&self.memory(name, node), epoch, number).is_none() {
            node.seen = node.seen.max(reply.told.epoch);
            node.number = node.number.max(reply.told.number);
            node.told = Some(reply.told);
        }
        if reply.told.epoch != known {
            self.take_grant(node, name, reply);
        }
    }

    fn take_grant(&self, node: &mut Node, name: u8, reply: Reply) {
        let epoch = Epoch(u64::from(reply.told.epoch));
        let runs = node.writes || node.lease == reply.told.epoch;
        if reply.lease > 0 && runs && promises::may_renew(&self.memory(name, node), epoch) {
            let timers = LeaseTimers { lease: seconds(reply.lease), ..timers(DRIFT) };
            let grant = Grant { epoch, number: RecordNumber(u64::from(reply.told.number)), timers };
            self.hold(node, Epoch(u64::from(node.seen)), &grant, ago(reply.age));
        }
    }

    /// The agent's own bookkeeping decides what a grant is worth.
    fn hold(&self, node: &mut Node, known: Epoch, grant: &Grant, counted_from: Moment) -> bool {
        let mut book = LeaseBook::default();
        if node.lease > 0 {
            book.accept(held(node, DRIFT));
        }
        if node.fenced > 0 {
            book.bar(Epoch(u64::from(node.fenced)));
        }
        let Ok(lease) = book.weigh(grant, counted_from, known, NOW) else { return false };
        if !book.accept(lease) {
            return false;
        }
        let held = book.current().expect("accepted a moment ago");
        node.lease = small(held.epoch.0);
        node.lease_number = small(held.number.0);
        node.left = small(held.deadline.since(NOW).as_secs());
        true
    }

    /// A command, refused or obeyed, or, while it waits, only its epoch; `None` if nothing comes of it.
    pub(super) fn obey(&self, state: &State, name: u8, sent: Sent) -> Option<State> {
        let at = usize::from(name);
        let mut after = state.clone();
        if sent.outcome != Outcome::Waits {
            return Some(after);
        }
        let node = &mut after.nodes[at];
        let epoch = Epoch(u64::from(sent.epoch));
        let outdated = promises::outdated_because(&self.memory(name, node), epoch).is_some();
        if !outdated && !matches!(sent.order, Order::Fence) {
            node.seen = node.seen.max(sent.epoch);
        }
        let memory = self.memory(name, node);
        let done = match sent.order {
            _ if outdated => false,
            Order::Fence | Order::Demote => {
                let binds = promises::confirmation_waits(&memory, epoch, NOW, &boot(), timers(DRIFT).promise());
                if !binds.is_zero() && self.removed != Removed::ConfirmationWaits {
                    node.seen = node.seen.max(sent.epoch);
                    (node.writes, node.lease, node.left, node.lease_number) = (false, 0, 0, 0);
                    return (after != *state).then_some(after);
                }
                fence(node, sent.epoch);
                true
            }
            Order::Freeze(fenced) => {
                let young = promises::consent_waits(&memory, NOW, &boot(), timers(DRIFT).promise());
                let fenced = (fenced > 0).then_some(Epoch(u64::from(fenced)));
                let binds = promises::promise_waits(&memory, epoch, fenced, NOW, &boot());
                let binds = if self.removed == Removed::PromiseBinds { Duration::ZERO } else { binds };
                if !young.max(binds).is_zero() {
                    return (after != *state).then_some(after);
                }
                let agrees = promises::no_consent_because(&memory, epoch).is_none();
                if agrees {
                    let mut memory = memory;
                    promises::consent(&mut memory, epoch, &boot());
                    node.consented = memory.consented.map_or(0, |epoch| small(epoch.0));
                    node.seen = small(memory.highest_epoch.0);
                    node.promise = bound(&memory);
                    node.consent_of_this_boot = true;
                }
                // A PostgreSQL that runs as primary has no receiver to stop.
                agrees && !node.writes
            }
            Order::Promote { number, lease, age } => {
                let timers = LeaseTimers { lease: seconds(lease), ..timers(DRIFT) };
                let grant = Grant { epoch, number: RecordNumber(u64::from(number)), timers };
                let agrees = promises::no_promotion_because(&memory, epoch, &grant, &boot()).is_none();
                let promotes = agrees && self.hold(node, epoch, &grant, ago(age));
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
        };
        let outcome = if done { Outcome::Done } else { Outcome::Failed };
        after.nodes[at].order = Some(Sent { outcome, ..sent });
        Some(after)
    }

    /// The agent's process ends and begins again; the guard keeps the lease, the disk the memory.
    fn restart(&self, state: &State, at: usize) -> State {
        let mut after = state.clone();
        after.restarts += 1;
        let node = &mut after.nodes[at];
        node.asking = None;
        if self.removed == Removed::MembershipIsStored {
            (node.told, node.number) = (self.initial().nodes[at].told, 1);
        }
        if self.removed == Removed::PromiseIsStored {
            node.promise = None;
        }
        // The guard keeps no number: the newest that is on disk counts.
        node.lease_number = if node.lease > 0 { node.number } else { 0 };
        after
    }

    fn reboot(&self, state: &State, name: u8, wiped: bool) -> State {
        let mut after = state.clone();
        after.reboots += 1;
        let node = &mut after.nodes[usize::from(name)];
        (node.lease, node.lease_number, node.left, node.writes) = (0, 0, 0, false);
        (node.asking, node.reply, node.late, node.consent_of_this_boot) = (None, None, None, false);
        let mut memory = self.memory(name, node);
        if let Some(promise) = &mut memory.promise {
            promise.boot = BootId("other".to_owned());
        }
        // The clock began again.
        let left = promises::promised(&memory, Moment(0), &boot());
        node.promise = left.map(|left| Bound { epoch: small(left.epoch.0), left: small(left.remaining.as_secs()) });
        if let Some(sent) = &mut node.order
            && (wiped || sent.outcome == Outcome::Failed)
        {
            sent.outcome = Outcome::Waits;
        }
        if wiped {
            (node.seen, node.number, node.fenced, node.consented) = (0, 0, 0, 0);
            (node.told, node.promise, node.young) = (None, None, WAIT);
        }
        after
    }

    pub(super) fn said(&self, name: u8, node: &Node) -> Said {
        let memory = self.memory(name, node);
        let membership = promises::membership(&memory, memory.highest_epoch);
        Said {
            seen: node.seen,
            number: node.number,
            fenced: node.fenced,
            consented: node.consented,
            lease: if node.left > 0 { node.lease } else { 0 },
            acknowledged: membership.and_then(|membership| membership.number).map_or(0, |number| small(number.0)),
            promised: promises::promised(&memory, NOW, &boot())
                .map(|promised| Bound { epoch: small(promised.epoch.0), left: small(promised.remaining.as_secs()) }),
            writes: node.writes,
            age: 0,
        }
    }

    fn memory(&self, name_of: u8, node: &Node) -> Memory {
        let since = StampedMoment { boot: boot(), at: ago(WAIT - node.young) };
        let mut memory = Memory::new(cluster(), name(name_of), since);
        memory.highest_epoch = Epoch(u64::from(node.seen));
        memory.highest_number = RecordNumber(u64::from(node.number));
        memory.fence_confirmed = epoch(node.fenced);
        memory.consented = epoch(node.consented);
        memory.consented_boot = Some(if node.consent_of_this_boot { boot() } else { BootId("other".to_owned()) });
        memory.assignment = node.told.map(|told| assignment(name_of, told));
        memory.lease =
            epoch(node.lease).map(|epoch| OwnLease { epoch, deadline: NOW.plus(seconds(node.left)), boot: boot() });
        memory.promise = node.promise.map(|promise| Promise {
            epoch: Epoch(u64::from(promise.epoch)),
            until: NOW.plus(seconds(promise.left)),
            boot: boot(),
            length: timers(DRIFT).promise(),
        });
        memory
    }
}

fn assignment(node: u8, told: Told) -> Assignment {
    let role = if told.holder == node {
        AssignedRole::Primary {
            synchronous: BTreeSet::new(),
            synchronous_number: RecordNumber(0),
            block_when_alone: false,
        }
    } else {
        AssignedRole::Standby { primary: name(told.holder), primary_address: address(told.holder) }
    };
    Assignment {
        cluster: cluster(),
        system_identifier: SystemIdentifier(1),
        epoch: Epoch(u64::from(told.epoch)),
        number: RecordNumber(u64::from(told.number)),
        role,
        peers: BTreeSet::new(),
        eligible: BTreeSet::new(),
        renewers: Some(names(told.renewers).into_iter().map(|name| (name, String::new())).collect::<BTreeMap<_, _>>()),
    }
}

fn bound(memory: &Memory) -> Option<Bound> {
    let promised = promises::promised(memory, NOW, &boot())?;
    Some(Bound { epoch: small(promised.epoch.0), left: small(promised.remaining.as_secs()) })
}

fn held(node: &Node, drift: u8) -> Held {
    Held {
        epoch: Epoch(u64::from(node.lease)),
        number: RecordNumber(u64::from(node.lease_number)),
        deadline: NOW.plus(seconds(node.left)),
        timers: timers(drift),
    }
}

pub(super) fn epoch(number: u8) -> Option<Epoch> {
    (number > 0).then_some(Epoch(u64::from(number)))
}

pub(super) fn fence(node: &mut Node, epoch: u8) {
    node.writes = false;
    node.fenced = node.fenced.max(epoch);
    node.seen = node.seen.max(epoch);
    if node.lease <= epoch {
        (node.lease, node.left, node.lease_number) = (0, 0, 0);
    }
}

pub(super) fn seconds(ticks: u8) -> Duration {
    Duration::from_secs(u64::from(ticks))
}

/// Timers of the size of a tick. The smallest stop budget that is allowed is less than one.
pub(super) fn timers(drift: u8) -> LeaseTimers {
    LeaseTimers {
        lease: seconds(LEASE),
        renewal_interval: Duration::from_millis(100),
        request_timeout: Duration::from_millis(100),
        stop_budget: lease::KILL_WORST,
        kill_budget: lease::KILL_WORST,
        drift: seconds(drift),
    }
}
