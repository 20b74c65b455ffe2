//! Renewal by the candidates (design, rules 2 to 4 and 4c): a lease that runs while no controller answers, and never two writers.
//!
//! One holder, one or two candidates, a leading controller and a deposed one that still believes that it leads, a store. Every
//! message may be lost, late, repeated or overtaken; agents are restarted, hosts rebooted, memories wiped; clocks lose a tick
//! within the stated bound. When to start an operation, and which, when to renew, and who streams, is left to chance: safety
//! must not rest on judgement. Decided, promised, granted and carried out is by the real code alone.
//!
//! That a round ends with nothing if the membership changed since it began is a second line: its grant counts from before anybody was
//! asked, hence from before the acknowledgement that the leader counts as a renewal, and an older number is refused. A tick is
//! half a lease here, too coarse to tell a round that counts from its end. Commits are the ledger's search.
//! Length: the state of the search with its beginnings in one place; what happens in it is split by who acts.

use std::cell::RefCell;
use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use super::search::{Mixer, Model};
use super::words::{DRIFT, LEASE, Record};
use stormglass::domain::{DurabilityMode, StepName};

#[path = "renewal/agents.rs"]
mod agents;
#[path = "renewal/controllers.rs"]
mod controllers;
#[path = "renewal/recovery.rs"]
mod recovery;
#[path = "renewal/views.rs"]
mod views;

/// One rule of the protocol, taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    Nothing,
    /// A report that shows the holder's lease counts as a renewal.
    ReportedLeaseCounts,
    /// The new epoch begins with nobody eligible.
    EmptiedAtPromotion,
    /// An acknowledgement names the record's own number.
    AcknowledgementNamesNumber,
    /// The holder has the membership on disk.
    MembershipIsStored,
    /// A promise is on disk.
    PromiseIsStored,
    /// All renewers must promise.
    AllPromise,
    /// A round counts only under the membership that it began with.
    RoundKeepsMembership,
    /// A new leader waits for the leadership before it to run out.
    WaitCoversLeadership,
    /// No grant outlives the leadership.
    GrantEndsWithLeadership,
    /// The promise is longer than the lease, by the drift.
    DriftInPromise,
    /// The wait is longer than the lease, by the drift.
    DriftInWait,
    /// A consent waits for the promise to run out.
    PromiseBinds,
    /// A fence in an epoch that was never used is confirmed only once the lease before it has run out.
    ConfirmationWaits,
    /// An expired lease suffices only for an eligible node.
    ExpiryBindsEligible,
    /// A lone holder's lease never counts as expired.
    LoneHolderNeverExpires,
}

/// How much can happen.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub nodes: u8,
    pub mode: DurabilityMode,
    pub epochs: u8,
    pub numbers: u8,
    /// Failovers to an eligible node, or to the holder itself.
    pub failovers: u8,
    /// Failovers to any node: an operator accepts that commits are lost, or the mode is `async`.
    pub losses: u8,
    pub switchovers: u8,
    pub leader_changes: u8,
    /// How long a deposed leader may believe that it leads.
    pub ttl: u8,
    pub restarts: u8,
    pub reboots: u8,
    pub wipes: bool,
    pub timeouts: u8,
    /// Reports that are heard late.
    pub late: u8,
    pub slow: bool,
    /// Answers to heartbeats and writes of the store travel; else they arrive at once. A grant counts from before it was asked
    /// for, so one that travels is worth less: what is lost without it is only what is overtaken.
    pub delays: bool,
    /// Promises are collected one by one; else all at once, which binds the peers for the shortest time.
    pub rounds: bool,
    /// The leader may hear a heartbeat and grant nothing: its leadership has too little time left.
    pub stalls: bool,
}

/// Where a search begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// The holder of epoch 1 knows that these are eligible.
    With(u8),
    /// The same, and it has confirmed its fence since.
    Fenced(u8),
    /// The same as at first, and it has renewed with the second node's promise; the leader, which knows of no such renewal, has
    /// granted nothing for long.
    Renewed(u8),
    /// The same as at first, and another controller has just taken the leadership away from the one that granted.
    Deposed(u8),
}

pub struct Renewal {
    pub removed: Removed,
    pub begins: Begins,
    pub bounds: Bounds,
    /// From every state, some fair continuation must lead to one writer.
    pub recovers: bool,
    /// States that are known to.
    pub recovered: RefCell<HashSet<State, BuildHasherDefault<Mixer>>>,
}

const NODES: usize = 3;
/// Ticks that a leader waits after its last grant, and that a promise lasts.
const WAIT: u8 = LEASE + DRIFT;

/// An assignment: who holds the epoch, and whose promises renew its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Told {
    epoch: u8,
    number: u8,
    holder: u8,
    renewers: u8,
}

/// A promise: the epoch whose holder it was given to, and for how long it binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Bound {
    epoch: u8,
    left: u8,
}

/// What a report says, and how long ago, by the node's own clock, it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Said {
    seen: u8,
    number: u8,
    fenced: u8,
    consented: u8,
    lease: u8,
    acknowledged: u8,
    promised: Option<Bound>,
    writes: bool,
    age: u8,
}

/// The answer to a heartbeat: an assignment and, if `lease` is not 0, a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reply {
    told: Told,
    lease: u8,
    age: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Order {
    Fence,
    Demote,
    /// Consent to the order's epoch; the epoch in which the old primary confirmed its fence.
    Freeze(u8),
    Promote {
        number: u8,
        lease: u8,
        age: u8,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Waits,
    Done,
    Failed,
}

/// The last command that a node was sent. It may come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sent {
    order: Order,
    step: StepName,
    epoch: u8,
    attempt: u8,
    outcome: Outcome,
}

/// Promises that a holder is collecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Asking {
    epoch: u8,
    /// What the holder had on disk when it began.
    told: Option<Told>,
    promised: u8,
    age: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Node {
    // On disk.
    seen: u8,
    number: u8,
    fenced: u8,
    consented: u8,
    consent_of_this_boot: bool,
    told: Option<Told>,
    promise: Option<Bound>,
    // Volatile.
    young: u8,
    lease: u8,
    lease_number: u8,
    left: u8,
    writes: bool,
    asking: Option<Asking>,
    // On the way.
    late: Option<Said>,
    reply: Option<Reply>,
    order: Option<Sent>,
}

/// (step, attempt, how it stands, epoch)
type Line = (StepName, u8, u8, u8);
const STARTED: u8 = 0;
const SUCCEEDED: u8 = 1;
const FAILED: u8 = 2;
const UNKNOWN: u8 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Failover,
    Loss,
    Switchover,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Moving {
    kind: Kind,
    from: u8,
    to: u8,
    before: u8,
    after: u8,
    undoing: bool,
    journal: Vec<Line>,
}

/// The controller whose session the store knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Leader {
    record: Record,
    leading: u8,
    /// Ticks since the last renewal of the holder that it knows of.
    granted: u8,
    heard: [Option<Said>; NODES],
    moving: Option<Moving>,
    awaits: Option<(StepName, u8, u8)>,
    updating: bool,
}

/// A controller that was deposed and does not know: it can store nothing and therefore begin nothing, but it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Deposed {
    record: Record,
    /// Ticks until it knows.
    left: u8,
    /// It waits for the outcome of a swap.
    pauses: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Write {
    expected: u8,
    record: Record,
    is_swap: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    store: Record,
    journal: Option<Moving>,
    leader: Leader,
    deposed: Option<Deposed>,
    writes: Vec<Write>,
    nodes: [Node; NODES],
    promoted: [u8; 8],
    /// Ticks until a clock may lose the next one.
    steady: u8,
    failovers: u8,
    losses: u8,
    switchovers: u8,
    leader_changes: u8,
    restarts: u8,
    reboots: u8,
    timeouts: u8,
    late: u8,
    broken: Option<&'static str>,
}

/// One step. What it carries is for whoever reads a trace.
#[derive(Debug, Clone, Copy)]
#[expect(dead_code, reason = "traces are printed with Debug")]
pub enum Action {
    Tick { lost_by: Option<u8> },
    SelfFence(u8),
    RoundBegins(u8),
    Promises { peer: u8, to: u8 },
    RoundEnds(u8),
    Renews(u8),
    ReplyArrives(u8),
    OrderArrives { node: u8, answered: bool },
    ReportIsSent(u8),
    LateReportArrives { node: u8, at_deposed: bool },
    Heartbeat { node: u8, at_deposed: bool },
    HeardWithoutGrant(u8),
    Restart(u8),
    Reboot { node: u8, wiped: bool },
    OperationBegins { kind: &'static str, to: u8 },
    OperationDrives { silent: bool },
    StepTimesOut,
    MembershipChanges { streaming: u8 },
    WriteLands(usize),
    LeaderChanges,
}

fn bit(node: u8) -> u8 {
    1 << node
}

impl Renewal {
    pub fn new(removed: Removed, begins: Begins, bounds: Bounds) -> Self {
        Self { removed, begins, bounds, recovers: false, recovered: RefCell::default() }
    }

    fn all(&self) -> std::ops::Range<u8> {
        0..self.bounds.nodes
    }

    /// The longest that anybody waits; ages beyond it are all the same.
    fn longest(&self) -> u8 {
        WAIT.max(self.bounds.ttl + DRIFT)
    }

    fn time(&self, state: &State, next: &mut Vec<(Action, State)>) {
        let may_lose = self.bounds.slow && state.steady == 0;
        let deposed = self.bounds.nodes;
        let slow = self.all().chain(state.deposed.map(|_| deposed)).filter(|clock| {
            may_lose && (*clock == deposed || state.nodes.get(usize::from(*clock)).is_some_and(|node| node.left > 0))
        });
        for lost_by in std::iter::once(None).chain(slow.map(Some)) {
            next.push((Action::Tick { lost_by }, self.tick(state, lost_by)));
        }
    }

    fn tick(&self, state: &State, lost_by: Option<u8>) -> State {
        let mut after = state.clone();
        after.steady = if lost_by.is_some() { self.longest() } else { state.steady.saturating_sub(1) };
        let leader = &mut after.leader;
        leader.leading = (leader.leading + 1).min(self.longest());
        leader.granted = (leader.granted + 1).min(self.longest());
        for heard in leader.heard.iter_mut().flatten() {
            heard.promised = heard.promised.and_then(aged);
        }
        if lost_by != Some(self.bounds.nodes)
            && let Some(deposed) = &mut after.deposed
        {
            deposed.left -= 1;
        }
        after.deposed = after.deposed.filter(|deposed| deposed.left > 0);
        for node in self.all().filter(|node| lost_by != Some(*node)) {
            let at = usize::from(node);
            if let Some(heard) = &mut after.leader.heard[at] {
                heard.age = (heard.age + 1).min(LEASE);
            }
            let node = &mut after.nodes[at];
            node.young = node.young.saturating_sub(1);
            node.promise = node.promise.and_then(aged);
            if let Some(late) = &mut node.late {
                late.age = (late.age + 1).min(LEASE);
            }
            if let Some(reply) = &mut node.reply {
                reply.age = (reply.age + 1).min(LEASE);
                // Too late to be worth anything.
                reply.lease = if reply.age >= reply.lease { 0 } else { reply.lease };
                reply.age = if reply.lease == 0 { LEASE } else { reply.age };
            }
            if let Some(asking) = &mut node.asking {
                asking.age += 1;
            }
            node.asking = node.asking.filter(|asking| asking.age < LEASE);
            if let Some(Sent { order: Order::Promote { age, .. }, .. }) = &mut node.order {
                *age = (*age + 1).min(LEASE);
            }
            if node.left > 0 {
                node.left -= 1;
                // The guard killed PostgreSQL; the agent bars and confirms when it gets to it.
                node.writes &= node.left > 0;
            }
        }
        after
    }
}

fn aged(bound: Bound) -> Option<Bound> {
    (bound.left > 1).then_some(Bound { left: bound.left.saturating_sub(1), ..bound })
}

impl Model for Renewal {
    type State = State;
    type Action = Action;

    fn initial(&self) -> State {
        let (Begins::With(eligible) | Begins::Fenced(eligible) | Begins::Renewed(eligible) | Begins::Deposed(eligible)) =
            self.begins;
        let synchronous = if self.bounds.mode == DurabilityMode::Async { 0 } else { eligible };
        let record = Record {
            epoch: 1,
            number: 1,
            holder: 0,
            confirmed: true,
            synchronous,
            synchronous_number: 1,
            eligible,
            proposed: 0,
        };
        let standby = Node {
            seen: 1,
            number: 1,
            fenced: 0,
            consented: 0,
            consent_of_this_boot: false,
            told: Some(Told { epoch: 1, number: 1, holder: 0, renewers: eligible }),
            promise: None,
            young: 0,
            lease: 0,
            lease_number: 0,
            left: 0,
            writes: false,
            asking: None,
            late: None,
            reply: None,
            order: None,
        };
        let primary = Node {
            consented: 1,
            consent_of_this_boot: true,
            lease: 1,
            lease_number: 1,
            left: LEASE,
            writes: true,
            ..standby
        };
        let leader = Leader {
            record,
            leading: self.longest(),
            granted: 0,
            heard: [None; NODES],
            moving: None,
            awaits: None,
            updating: false,
        };
        let mut primary = primary;
        if matches!(self.begins, Begins::Fenced(_)) {
            agents::fence(&mut primary, 1);
        }
        let (mut leader, mut second, mut deposed) = (leader, standby, None);
        match self.begins {
            Begins::With(_) | Begins::Fenced(_) => {}
            Begins::Renewed(_) => {
                leader.granted = self.longest();
                leader.heard[1] = Some(Said { number: 0, age: LEASE, ..self.said(1, &standby) });
                second.promise = Some(Bound { epoch: 1, left: WAIT });
            }
            Begins::Deposed(_) => {
                (leader.leading, leader.granted) = (0, self.longest());
                deposed = Some(Deposed { record, left: self.bounds.ttl, pauses: false });
            }
        }
        State {
            store: record,
            journal: None,
            leader,
            deposed,
            writes: Vec::new(),
            nodes: [primary, second, standby],
            promoted: [0, 1, 0, 0, 0, 0, 0, 0],
            steady: 0,
            failovers: 0,
            losses: 0,
            switchovers: 0,
            leader_changes: 0,
            restarts: 0,
            reboots: 0,
            timeouts: 0,
            late: 0,
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
        (self.recovers && !self.recovers(state)).then_some("no fair continuation leads to one writer")
    }

    fn steps(&self, state: &State, next: &mut Vec<(Action, State)>) {
        self.time(state, next);
        self.agents(state, next);
        self.controllers(state, next);
    }
}
