//! The durability ledger (design, rule 7): no confirmed commit is missing on a later primary.
//!
//! Three nodes, one writer at a time (the lease's own search sees to that), leader changes, writes of the store that are late or
//! overtaken, reports of any age, assignments that are late or repeated, standbys that lose their connection, reclones,
//! and failovers of a primary that still writes when it is decided. WAL is the set of commits in it.
//! Length: one model in one place: its state, its steps, and how they are turned into the words of the real code.

use std::time::Duration;

use super::search::Model;
use super::words::*;
use stormglass::agent::promises;
use stormglass::decide::{candidate, membership, primary, rejoin};
use stormglass::domain::clock::BootId;
use stormglass::domain::lsn::{Fork, History};
use stormglass::domain::report::{LiveReport, PostgresState, StandbyRow, Standing, SynchronousReport};
use stormglass::domain::*;
use stormglass::operate::{self, Effect, Next};
use stormglass::ports::agent::{Memory, StampedMoment};

/// One rule of the protocol, taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    Nothing,
    /// The names change and whoever was eligible stays so.
    AffectedStopsBeingEligible,
    /// The acknowledged position predates the names.
    BarrierAfterNames,
    /// Positions are compared without their history.
    History,
    /// The primary's agent lets commits go on alone.
    OnlyTheStoreLetsAlone,
    /// The new epoch keeps the old one's eligible set.
    EmptiedAtPromotion,
    /// The ledger does not keep a named standby from being recloned, nor its agent from consenting half-way.
    NamedIsNotRecloned,
    /// The store compares the epoch and not the number, nor what may follow what: a standby that was proposed anew has caught up,
    /// so [`ClusterRecord::violation_after`] alone would keep the stale write out too.
    SwapComparesNumber,
    /// An older assignment is put in force.
    OlderNumberIgnored,
    /// The target of a failover is not looked up again in the record that the swap builds on.
    TargetStillEligible,
}

/// How much can happen.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub commits: u8,
    pub numbers: u8,
    pub failovers: u8,
    pub leader_changes: u8,
    pub breaks: u8,
    pub reclones: u8,
}

/// Where a search begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// The primary, one eligible standby, one more.
    Healthy,
    /// The same, the standby is named and not eligible yet, and a deposed leader's write that makes it so is on its way.
    StaleWriteOnItsWay,
    /// The same as healthy, and an assignment of an older number, with other names, is on its way.
    OldAssignmentOnItsWay,
    /// After a failover from the first to the second node; the first has an unconfirmed commit of its own.
    AfterFailover,
}

pub struct Ledger {
    pub removed: Removed,
    pub begins: Begins,
    pub bounds: Bounds,
    /// The third node stands in a site of its own.
    pub scope: SyncScope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Runs {
    Primary,
    Standby,
    Stopped,
    Empty,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Node {
    runs: Runs,
    timeline: u8,
    wal: u8,
    connected: bool,
    names: u8,
    names_number: u8,
    barrier: u8,
    fenced: u8,
    half: bool,
    seen: u8,
    /// Number of the last assignment of its present epoch that it stored; 0: none.
    acknowledged: u8,
}

/// What a report says, as the leader last heard it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Heard {
    runs: Runs,
    timeline: u8,
    position: u8,
    rows: u8,
    names: u8,
    names_number: u8,
    barrier: u8,
    fenced: u8,
    half: bool,
    acknowledged: u8,
}

/// A failover under way; its journal survives the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Moving {
    from: u8,
    to: u8,
    before: u8,
    attempts: u8,
    state: u8,
}
const BEGUN: u8 = 0;
const FAILED: u8 = 1;

/// A write that is on its way to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Write {
    expected: u8,
    record: Record,
    /// The leader that sent it still waits for the outcome.
    awaited: bool,
    is_swap: bool,
}

/// An assignment on its way to the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Told {
    to: u8,
    epoch: u8,
    number: u8,
    names: u8,
    names_number: u8,
    /// The primary's position when it was sent.
    position: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    store: Record,
    /// The leader's own copy.
    record: Record,
    heard: [Option<Heard>; 3],
    moving: Option<Moving>,
    writes: Vec<Write>,
    told: [Option<Told>; 2],
    nodes: [Node; 3],
    /// Where each timeline left its parent, by timeline.
    lineage: [(u8, u8); 6],
    /// A rejoin command on its way.
    reclone: Option<u8>,
    issued: u8,
    confirmed: u8,
    failovers: u8,
    leader_changes: u8,
    breaks: u8,
    reclones: u8,
    broken: Option<&'static str>,
}

/// One step. What it carries is for whoever reads a trace.
#[derive(Debug, Clone, Copy)]
#[expect(dead_code, reason = "traces are printed with Debug")]
pub enum Action {
    Commit(u8),
    Stream(u8),
    Confirm(u8),
    Connect(u8),
    Break(u8),
    Hear(u8),
    LedgerWrites { patient: bool },
    Lands(usize),
    Lost(usize),
    LeaderChanges,
    Tell,
    Apply(usize),
    GoesAlone(u8),
    FailoverBegins { to: u8 },
    FailoverDrives,
    Fence(u8),
    Promote(u8),
    AskReclone(u8),
    Wipe(u8),
    Copied(u8),
}

const LOST: &str = "a confirmed commit is missing on a later primary";
const SHRANK: &str = "the record's number or epoch did not grow by a step";

fn bit(node: u8) -> u8 {
    1 << node
}

fn position(wal: u8) -> u8 {
    u8::try_from(wal.count_ones()).expect("eight bits")
}

/// `part` is how `whole` began.
fn is_prefix(part: u8, whole: u8) -> bool {
    let reach = u8::try_from(8 - part.leading_zeros()).expect("eight bits");
    part == whole & (((1_u16 << reach) - 1) as u8)
}

impl Model for Ledger {
    type State = State;
    type Action = Action;

    fn initial(&self) -> State {
        let standby = Node {
            runs: Runs::Standby,
            timeline: 1,
            wal: 0,
            connected: true,
            names: 0,
            names_number: 0,
            barrier: 0,
            fenced: 0,
            half: false,
            seen: 1,
            acknowledged: 0,
        };
        let primary =
            Node { runs: Runs::Primary, connected: false, names: bit(1), names_number: 1, acknowledged: 1, ..standby };
        let record = Record {
            epoch: 1,
            number: 1,
            holder: 0,
            confirmed: true,
            synchronous: bit(1),
            synchronous_number: 1,
            eligible: bit(1),
            proposed: 0,
        };
        let healthy = State {
            store: record,
            record,
            heard: [None; 3],
            moving: None,
            writes: Vec::new(),
            told: [None; 2],
            nodes: [primary, standby, standby],
            lineage: [(0, 0); 6],
            reclone: None,
            issued: 0,
            confirmed: 0,
            failovers: 0,
            leader_changes: 0,
            breaks: 0,
            reclones: 0,
            broken: None,
        };
        match self.begins {
            Begins::Healthy => healthy,
            Begins::StaleWriteOnItsWay => {
                let late = Record { number: 2, ..record };
                let record = Record { eligible: 0, proposed: bit(1), ..record };
                let writes = vec![Write { expected: 1, record: late, awaited: false, is_swap: false }];
                State { store: record, record, writes, ..healthy }
            }
            Begins::OldAssignmentOnItsWay => {
                let record = Record { number: 2, synchronous_number: 2, ..record };
                let mut nodes = healthy.nodes;
                (nodes[0].seen, nodes[0].names_number, nodes[0].acknowledged) = (2, 2, 2);
                let old = Told { to: 0, epoch: 1, number: 1, names: bit(2), names_number: 1, position: 0 };
                State { store: record, record, nodes, told: [None, Some(old)], ..healthy }
            }
            Begins::AfterFailover => {
                let record = Record {
                    epoch: 2,
                    number: 2,
                    holder: 1,
                    synchronous: 0,
                    synchronous_number: 2,
                    eligible: 0,
                    ..record
                };
                let old = Node { wal: 0b11, connected: false, fenced: 1, ..standby };
                let new =
                    Node { wal: 0b01, timeline: 2, seen: 2, names: 0, names_number: 2, acknowledged: 2, ..primary };
                let mut lineage = healthy.lineage;
                lineage[2] = (1, 1);
                let empty = Node { runs: Runs::Empty, connected: false, ..standby };
                let nodes = [old, new, empty];
                State { store: record, record, nodes, lineage, issued: 2, confirmed: 1, ..healthy }
            }
        }
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        state.broken
    }

    fn steps(&self, state: &State, next: &mut Vec<(Action, State)>) {
        self.postgres(state, next);
        self.agents(state, next);
        self.controller(state, next);
    }
}

impl Ledger {
    /// Commits, replication, connections.
    fn postgres(&self, state: &State, next: &mut Vec<(Action, State)>) {
        for node in 0..3_u8 {
            let at = usize::from(node);
            let here = state.nodes[at];
            if here.runs == Runs::Primary {
                if state.issued < self.bounds.commits {
                    let mut after = state.clone();
                    after.nodes[at].wal |= bit(state.issued);
                    after.issued += 1;
                    next.push((Action::Commit(node), after));
                }
                // Every name confirms every commit; without a name the primary does alone.
                let mut holds = here.wal;
                for standby in (0..3).filter(|other| here.names & bit(*other) != 0) {
                    let there = state.nodes[usize::from(standby)];
                    let streams = there.connected && there.timeline == here.timeline;
                    holds &= if streams { there.wal } else { 0 };
                }
                if holds & !state.confirmed != 0 {
                    let mut after = state.clone();
                    after.confirmed |= holds;
                    next.push((Action::Confirm(node), after));
                }
            }
            if here.runs != Runs::Standby {
                continue;
            }
            let Some(primary) = state.nodes.iter().find(|other| other.runs == Runs::Primary) else { continue };
            if here.connected {
                let missing = primary.wal & !here.wal;
                if missing != 0 {
                    let mut after = state.clone();
                    after.nodes[at].wal |= missing & missing.wrapping_neg();
                    next.push((Action::Stream(node), after));
                }
                if state.breaks < self.bounds.breaks {
                    let mut after = state.clone();
                    after.nodes[at].connected = false;
                    after.breaks += 1;
                    next.push((Action::Break(node), after));
                }
            } else {
                let follows = if self.removed == Removed::History {
                    position(here.wal) <= position(primary.wal)
                } else {
                    is_prefix(here.wal, primary.wal)
                };
                if follows {
                    let mut after = state.clone();
                    after.nodes[at].connected = true;
                    after.nodes[at].timeline = primary.timeline;
                    next.push((Action::Connect(node), after));
                }
            }
        }
    }

    /// What the agents do: assignments, fences, promotions, reclones.
    fn agents(&self, state: &State, next: &mut Vec<(Action, State)>) {
        for (slot, told) in state.told.iter().enumerate() {
            let Some(told) = told else { continue };
            let node = &state.nodes[usize::from(told.to)];
            let mut memory = memory(told.to, node);
            if self.removed == Removed::OlderNumberIgnored {
                memory.highest_number = RecordNumber(0);
            }
            let (epoch, number) = (Epoch(u64::from(told.epoch)), RecordNumber(u64::from(told.number)));
            let refused = promises::assignment_refused_because(&memory, epoch, number).is_some();
            let mut after = state.clone();
            after.told[slot] = None;
            let target = &mut after.nodes[usize::from(told.to)];
            if !refused && node.runs == Runs::Primary && node.timeline == told.epoch {
                target.seen = target.seen.max(told.number);
                target.acknowledged = told.number;
                if (node.names, node.names_number) != (told.names, told.names_number) {
                    target.names = told.names;
                    target.names_number = told.names_number;
                    let early = self.removed == Removed::BarrierAfterNames;
                    target.barrier = if early { told.position } else { position(node.wal) };
                }
            }
            next.push((Action::Apply(slot), after));
        }
        for node in 0..3_u8 {
            let at = usize::from(node);
            let here = state.nodes[at];
            if self.removed == Removed::OnlyTheStoreLetsAlone && here.runs == Runs::Primary && here.names != 0 {
                let mut after = state.clone();
                after.nodes[at].names = 0;
                next.push((Action::GoesAlone(node), after));
            }
            if here.runs == Runs::Primary && state.moving.is_some_and(|moving| moving.from == node) {
                let mut after = state.clone();
                after.nodes[at].runs = Runs::Stopped;
                after.nodes[at].fenced = state.store.epoch;
                for other in &mut after.nodes {
                    other.connected = false;
                }
                next.push((Action::Fence(node), after));
            }
            if state.store.holder == node && here.timeline < state.store.epoch && here.runs != Runs::Primary {
                let epoch = Epoch(u64::from(state.store.epoch));
                let mut memory = memory(node, &here);
                memory.half_rejoined &= self.removed != Removed::NamedIsNotRecloned;
                if promises::no_consent_because(&memory, epoch).is_none() {
                    next.push((Action::Promote(node), promoted(state, node)));
                }
            }
            if state.reclone == Some(node) && here.runs != Runs::Primary {
                let mut after = state.clone();
                after.reclone = None;
                let (fenced, seen) = (here.fenced, here.seen);
                after.nodes[at] =
                    Node { runs: Runs::Empty, wal: 0, connected: false, half: true, fenced, seen, ..here };
                next.push((Action::Wipe(node), after));
            }
            if here.half
                && let Some(primary) = state.nodes.iter().find(|other| other.runs == Runs::Primary)
            {
                let mut after = state.clone();
                after.nodes[at].runs = Runs::Standby;
                after.nodes[at].half = false;
                after.nodes[at].wal = primary.wal;
                after.nodes[at].timeline = primary.timeline;
                next.push((Action::Copied(node), after));
            }
        }
    }

    /// What controllers and the store do.
    fn controller(&self, state: &State, next: &mut Vec<(Action, State)>) {
        for node in 0..3_u8 {
            let says = Some(heard(state, node));
            if state.heard[usize::from(node)] != says {
                let mut after = state.clone();
                after.heard[usize::from(node)] = says;
                next.push((Action::Hear(node), after));
            }
        }
        for (slot, write) in state.writes.iter().enumerate() {
            next.push((Action::Lands(slot), self.landed(state, slot, *write)));
            let mut after = state.clone();
            after.writes.remove(slot);
            if !write.awaited {
                next.push((Action::Lost(slot), after));
            }
        }
        if state.leader_changes < self.bounds.leader_changes {
            let mut after = state.clone();
            after.leader_changes += 1;
            after.record = state.store;
            after.heard = [None; 3];
            for write in &mut after.writes {
                write.awaited = false;
            }
            next.push((Action::LeaderChanges, after));
        }
        let record = state.record;
        let told = Told {
            to: record.holder,
            epoch: record.epoch,
            number: record.number,
            names: record.synchronous,
            names_number: record.synchronous_number,
            position: position(state.nodes[usize::from(record.holder)].wal),
        };
        let known = state.told[0].is_some_and(|last| last.number >= record.number);
        let holder = &state.nodes[usize::from(record.holder)];
        // What changes nothing for the holder is not told here: it would only be acknowledged.
        let news = holder.names_number != record.synchronous_number
            || record.proposed != 0 && holder.acknowledged != record.number;
        if !known && news {
            let mut after = state.clone();
            after.told = [Some(told), state.told[0]];
            next.push((Action::Tell, after));
        }
        if state.moving.is_some() {
            self.drive(state, next);
            return;
        }
        let writing = state.writes.iter().any(|write| write.awaited);
        let writes_seen = state.heard[usize::from(record.holder)].is_some_and(|heard| heard.runs == Runs::Primary);
        if !writing && writes_seen && record.number < self.bounds.numbers {
            for patient in [false, true] {
                let view = self.view(state, patient);
                if let membership::Change::Store { record: wanted, .. } =
                    membership::change(&view, &record.real(), &self.policy())
                {
                    let mut wanted = Record::of(&wanted);
                    if self.removed == Removed::AffectedStopsBeingEligible {
                        wanted.eligible |= record.eligible;
                    }
                    let members = |record: &Record| (record.synchronous, record.eligible, record.proposed);
                    if members(&wanted) == members(&record) {
                        continue;
                    }
                    let mut after = state.clone();
                    after.writes.push(Write { expected: record.number, record: wanted, awaited: true, is_swap: false });
                    next.push((Action::LedgerWrites { patient }, after));
                }
            }
        }
        if state.failovers < self.bounds.failovers {
            let view = self.view(state, true);
            let choice = candidate::best(&view, &record.real(), &self.policy(), &candidate::Demand::automatic());
            let down = primary::Condition::Down(Vec::new());
            let in_place = candidate::restart_in_place(&view, &record.real(), &down).map(|_| record.holder);
            if let Some(to) = choice.ok().map(|choice| index(&choice.node)).or(in_place) {
                let mut after = state.clone();
                after.failovers += 1;
                after.moving =
                    Some(Moving { from: record.holder, to, before: record.epoch, attempts: 0, state: BEGUN });
                next.push((Action::FailoverBegins { to }, after));
            }
        }
        self.reclones(state, next);
    }

    fn reclones(&self, state: &State, next: &mut Vec<(Action, State)>) {
        if state.reclones >= self.bounds.reclones || state.reclone.is_some() {
            return;
        }
        let view = self.view(state, true);
        for node in (0..3).filter(|node| *node != state.record.holder) {
            let guarded = self.removed != Removed::NamedIsNotRecloned;
            let refused = rejoin::guard(&view, &state.record.real(), &self.policy(), &[], &name(node)).is_some();
            if !(guarded && refused) {
                let mut after = state.clone();
                after.reclones += 1;
                after.reclone = Some(node);
                next.push((Action::AskReclone(node), after));
            }
        }
    }

    /// One step of the real saga.
    fn drive(&self, state: &State, next: &mut Vec<(Action, State)>) {
        let Some(moving) = state.moving else { return };
        if state.writes.iter().any(|write| write.is_swap && write.awaited) {
            return;
        }
        let mut seen = state.clone();
        if self.removed == Removed::TargetStillEligible {
            seen.record.eligible |= bit(moving.to);
            seen.record.synchronous |= bit(moving.to);
        }
        let view = self.view(&seen, true);
        let mut journal = Vec::new();
        if moving.attempts > 0 {
            let step = if moving.state == FAILED { failed() } else { StepState::Started };
            journal.push(event(StepName::AdvanceEpoch, u32::from(moving.attempts), step, moving.before + 1));
        }
        let mut operation = operation(moving.from, moving.to, moving.before, None, journal);
        let mut after = state.clone();
        loop {
            match operate::next(&operation, &view, &self.policy()) {
                Next::Satisfied { step: StepName::Fence, epoch, .. } => {
                    operation.journal.push(event(StepName::Fence, 1, succeeded(), small(epoch.0)));
                    continue;
                }
                Next::Run(step) => match step.effect {
                    Effect::Swap { expected, record } => {
                        let expected = small(expected.expect("there is a record").0);
                        let mut record = Record::of(&record);
                        if self.removed == Removed::EmptiedAtPromotion {
                            record.synchronous = state.record.synchronous & !bit(record.holder);
                            record.eligible = state.record.eligible & !bit(record.holder);
                            record.proposed = state.record.proposed & !bit(record.holder);
                        }
                        after.writes.push(Write { expected, record, awaited: true, is_swap: true });
                        let attempts = small(u64::from(step.attempt));
                        after.moving = Some(Moving { attempts, state: BEGUN, ..moving });
                    }
                    // The fence is what `Action::Fence` does.
                    _ => return,
                },
                Next::End { .. } | Next::Satisfied { .. } => after.moving = None,
                Next::Wait { .. } | Next::Undo { .. } => return,
            }
            break;
        }
        next.push((Action::FailoverDrives, after));
    }

    /// The store decides about a write.
    fn landed(&self, state: &State, slot: usize, write: Write) -> State {
        let mut after = state.clone();
        after.writes.remove(slot);
        let mut record = write.record;
        let current = if self.removed == Removed::SwapComparesNumber {
            // "The epoch is the same" in place of "the number is the same".
            let swaps = u8::from(write.is_swap);
            record.number = state.store.number + 1;
            record.epoch == state.store.epoch + swaps
        } else {
            write.expected == state.store.number
        };
        let breaks_shape = record.real().violation_after(&state.store.real()).is_some();
        let allowed = !breaks_shape
            || matches!(
                self.removed,
                Removed::AffectedStopsBeingEligible | Removed::EmptiedAtPromotion | Removed::SwapComparesNumber
            );
        let stored = current && allowed;
        if stored {
            if record.number != state.store.number + 1 || record.epoch < state.store.epoch {
                after.broken = Some(SHRANK);
            }
            after.store = record;
        }
        if write.awaited {
            let newer = after.store.epoch > after.record.epoch;
            after.record = after.store;
            if write.is_swap {
                after.moving = match state.moving {
                    Some(moving) if !stored => Some(Moving { state: FAILED, ..moving }),
                    _ => None,
                };
            } else if newer {
                after.moving = None;
            }
        }
        after
    }

    fn policy(&self) -> Policy {
        Policy { sync_scope: self.scope, ..policy(DRIFT) }
    }

    fn view(&self, state: &State, patient: bool) -> View {
        let gone_for = Duration::from_secs(if patient { 0 } else { 3600 });
        let nodes = (0..3_u8).map(|node| {
            let report = match state.heard[usize::from(node)] {
                Some(heard) => Fact::Known { value: self.reported(state, node, &heard).into(), age: Duration::ZERO },
                None => Fact::Unknown { last: None, for_duration: Duration::ZERO },
            };
            let rows = state.heard[usize::from(state.record.holder)].map_or(0, |heard| heard.rows);
            let not_streaming_for = (rows & bit(node) == 0).then_some(gone_for);
            NodeView {
                node: name(node),
                site: if node == 2 { SiteName::new("there").expect("valid") } else { site() },
                report,
                last_grant: Some(NOW),
                last_live: None,
                not_streaming_for,
            }
        });
        view(&state.record, NOW, nodes)
    }

    fn reported(&self, state: &State, node: u8, heard: &Heard) -> Report {
        let runs = match heard.runs {
            Runs::Primary | Runs::Standby => PostgresState::Running,
            Runs::Stopped => PostgresState::Stopped,
            Runs::Empty => PostgresState::NoData,
        };
        let standing = Standing {
            highest_epoch: Epoch(u64::from(heard.timeline)),
            fence_confirmed: (heard.fenced > 0).then_some(Epoch(u64::from(heard.fenced))),
            half_rejoined: heard.half,
            acknowledged: (heard.acknowledged > 0).then_some(RecordNumber(u64::from(heard.acknowledged))),
            ..Standing::default()
        };
        let live = (runs == PostgresState::Running).then(|| {
            let at = Lsn(u64::from(heard.position));
            let rows = (0..3).filter(|standby| heard.rows & bit(*standby) != 0);
            LiveReport {
                system_identifier: SystemIdentifier(1),
                in_recovery: heard.runs == Runs::Standby,
                history: history(state, heard.timeline),
                started_at_unix_seconds: None,
                major_version: 15,
                flush_lsn: at,
                replay_lsn: at,
                replay_paused: false,
                receiver: None,
                standbys: rows
                    .map(|standby| StandbyRow {
                        node: name(standby).to_string(),
                        state: "streaming".to_owned(),
                        sync_state: if heard.names & bit(standby) != 0 { "sync" } else { "async" }.to_owned(),
                        flush_lsn: None,
                        replay_lsn: None,
                    })
                    .collect(),
                synchronous: (heard.names_number > 0).then(|| SynchronousReport {
                    number: RecordNumber(u64::from(heard.names_number)),
                    names: names(heard.names).into_iter().collect(),
                    barrier_lsn: Lsn(u64::from(heard.barrier)),
                }),
                waits: None,
                upkeep: None,
                work: None,
                connections: None,
                clock: Default::default(),
            }
        });
        report(node, NOW, standing, runs, live)
    }
}

fn heard(state: &State, node: u8) -> Heard {
    let here = &state.nodes[usize::from(node)];
    let primary = here.runs == Runs::Primary;
    let rows = (0..3_u8).filter(|other| primary && state.nodes[usize::from(*other)].connected);
    Heard {
        runs: here.runs,
        timeline: here.timeline,
        position: position(here.wal),
        rows: rows.fold(0, |rows, other| rows | bit(other)),
        names: if primary { here.names } else { 0 },
        names_number: if primary { here.names_number } else { 0 },
        barrier: if primary { here.barrier } else { 0 },
        fenced: here.fenced,
        half: here.half,
        acknowledged: if primary { here.acknowledged } else { 0 },
    }
}

fn history(state: &State, timeline: u8) -> History {
    let mut forks = Vec::new();
    let mut at = timeline;
    while state.lineage[usize::from(at)].0 != 0 {
        let (parent, left) = state.lineage[usize::from(at)];
        forks.insert(0, Fork { timeline: Timeline(u32::from(parent)), switched_at: Lsn(u64::from(left)) });
        at = parent;
    }
    History { timeline: Timeline(u32::from(timeline)), forks }
}

fn memory(node: u8, here: &Node) -> Memory {
    let since = StampedMoment { boot: BootId(String::new()), at: Moment(0) };
    let mut memory = Memory::new(cluster(), name(node), since);
    memory.highest_epoch = Epoch(u64::from(here.timeline));
    memory.highest_number = RecordNumber(u64::from(here.seen));
    memory.fence_confirmed = (here.fenced > 0).then_some(Epoch(u64::from(here.fenced)));
    memory.half_rejoined = here.half;
    memory
}

fn promoted(state: &State, node: u8) -> State {
    let at = usize::from(node);
    let mut after = state.clone();
    let epoch = state.store.epoch;
    let here = &mut after.nodes[at];
    after.lineage[usize::from(epoch)] = (here.timeline, position(here.wal));
    here.runs = Runs::Primary;
    here.timeline = epoch;
    here.seen = here.seen.max(state.store.number);
    (here.names, here.names_number, here.barrier, here.acknowledged) = (0, 0, 0, 0);
    if state.confirmed & !here.wal != 0 {
        after.broken = Some(LOST);
    }
    // Whoever was a primary before comes back as a standby, on its own history; only what did not diverge can follow.
    for (other, node) in after.nodes.iter_mut().enumerate() {
        node.connected = false;
        if other != at && node.runs == Runs::Stopped {
            node.runs = Runs::Standby;
        }
    }
    after
}
