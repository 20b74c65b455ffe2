//! What the agent knows of its PostgreSQL at the moment, and the report made of it.
//!
//! Facts only. A fact that was not learnt, or belongs to a PostgreSQL that is gone, is absent.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::lease::LeaseBook;
use super::promises;
use super::start::Role;
use crate::domain::clock::{BootId, Moment, WallTime};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::lsn::Lsn;
use crate::domain::report::{
    ControlData, DiskReport, LiveReport, MemoryReport, PostgresReport, PostgresState, Probe, ProbeTimes, Probes,
    Renewal, Standing, SynchronousReport,
};
use crate::ports::agent::Memory;
use crate::ports::postgres::{PostgresError, Upstream};

/// State of the node as the agent's tasks share it.
#[derive(Debug, Default)]
pub(super) struct Local {
    /// The postmaster that is watched.
    pub postmaster: Option<i32>,
    /// What it runs as. Kept while it does not answer.
    pub role: Option<Role>,
    /// There is no data.
    pub is_empty: bool,
    /// How the last question went.
    pub answers: Answers,
    /// `pg_controldata`.
    pub control: Option<ControlData>,
    /// What is wrong with it.
    pub damage: Option<String>,
    /// Why this run of the standby will never go on.
    pub stranded: Option<String>,
    /// What SQL told last.
    pub live: Option<LiveReport>,
    /// The last acknowledged change of `synchronous_standby_names`.
    pub synchronous: Option<SynchronousReport>,
    /// Whether that change has commits wait while nobody is named.
    pub blocks_when_alone: bool,
    /// New connections.
    pub connect: ProbeHistory,
    /// Writes.
    pub write: ProbeHistory,
    /// Space left.
    pub disk: Option<DiskReport>,
    /// Memory left.
    pub memory: Option<MemoryReport>,
    /// The own lease.
    pub leases: LeaseBook,
    /// Until then a primary without a lease waits for one instead of being fenced.
    pub asking_until: Option<Moment>,
    /// It recovers, or has recovered, from a crash, and keeps clients out until a standby has what it recovered.
    pub closed: bool,
    /// When it was last started again after a crash.
    pub restarted_at: Option<Moment>,
    /// Slots for the peers that are being made, before the node is promoted.
    pub reserving: Option<JoinHandle<()>>,
    /// The agent itself stops PostgreSQL: its end is no crash.
    pub stopping: bool,
    /// Whom the standby follows.
    pub following: Option<Upstream>,
    /// WAL receiver stopped by a `Freeze`.
    pub frozen: Option<Frozen>,
    /// The cluster is paused.
    pub paused: bool,
    /// When a controller was last heard, for people.
    pub controller_seen: Option<WallTime>,
    /// When one with authority was, on the host's clock.
    pub controller_answered_at: Option<Moment>,
    /// How the lease was renewed.
    pub renewals: Renewals,
    /// The primary is being left running: what its next agent is to find on disk stays as it is.
    pub leaving: bool,
    /// How far the primary had flushed, by the controller's word, and when that was heard.
    pub primary_position: Option<(Lsn, Moment)>,
    /// Starts of the standby that failed, one after the other.
    pub failed_starts: u32,
    /// When the last of them failed.
    pub failed_at: Moment,
    /// Why PostgreSQL is down, for people.
    pub down_because: Option<String>,
    /// What a rejoin kept aside, until the step that did so has told of it.
    pub divergent: Option<String>,
    /// A copy came from the repository, and the node has not streamed since: the next one comes from the primary.
    pub copied_in_vain: bool,
    /// When the heartbeat loop last turned.
    pub turned_at: Moment,
    /// Reports sent.
    pub sequence: u64,
    /// How long the last fence took, in seconds; for metrics.
    pub fence_seconds: Option<f64>,
}

/// How the lease was renewed, and what people were told of it.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    /// By whom, and how often.
    pub counts: BTreeMap<Renewal, u64>,
    /// By whom last.
    pub last: Option<Renewal>,
    /// A round without a controller came to nothing, and people know.
    pub trouble_told: bool,
}

/// How PostgreSQL answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Answers {
    /// Not asked since it started, or it says that it starts.
    #[default]
    NotYet,
    /// In time.
    InTime,
    /// Not in time, or not at all.
    No,
}

/// A standby whose WAL receiver was stopped on purpose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frozen {
    /// Record number known at that time: a newer assignment ends it.
    pub number: RecordNumber,
    /// Epoch known at that time.
    pub epoch: Epoch,
    /// An operation that was given up must not leave a standby behind for ever.
    pub until: Moment,
}

/// One probe over time.
#[derive(Debug, Clone, Default)]
pub(in crate::agent) struct ProbeHistory {
    last_success: Option<Moment>,
    failing_since: Option<Moment>,
    last_error: Option<String>,
    took: Option<Duration>,
    times: ProbeTimes,
}

impl ProbeHistory {
    /// Takes a result; true if the probe changed between passing and failing.
    pub(in crate::agent) fn record<T>(&mut self, result: &Result<T, impl Display>, began: Moment, now: Moment) -> bool {
        match result {
            Ok(_) => {
                let changed = self.failing_since.is_some() || self.last_success.is_none();
                let times = self.times;
                *self = Self { last_success: Some(now), took: Some(now.since(began)), times, ..Self::default() };
                changed
            }
            Err(error) => {
                let changed = self.failing_since.is_none();
                // The trouble was there when the probe began, not when its patience ended.
                self.failing_since.get_or_insert(began);
                self.last_error = Some(error.to_string());
                changed
            }
        }
    }

    /// Counts a probe that passed or ran into its time limit.
    pub(in crate::agent) fn count(&mut self, took: Duration) {
        self.times = self.times.and(took);
    }

    /// What failed because PostgreSQL was starting is no sign of a PostgreSQL that runs and does not commit.
    fn begin_anew(&mut self, now: Moment) {
        if let Some(since) = &mut self.failing_since {
            *since = now;
        }
    }

    pub(in crate::agent) fn report(&self, now: Moment) -> Probe {
        Probe {
            last_success_age: self.last_success.map(|at| now.since(at)),
            failing_for: self.failing_since.map(|since| now.since(since)),
            last_error: self.last_error.clone(),
            took: self.took,
            times: self.times,
        }
    }
}

impl Local {
    /// A postmaster was started or found.
    pub(super) fn began(&mut self, postmaster: i32, role: Option<Role>) {
        self.forget_run();
        self.postmaster = Some(postmaster);
        self.role = role;
        self.is_empty = false;
        self.down_because = None;
    }

    /// Clients are let in again: that they were kept out says nothing about how PostgreSQL answers now.
    pub(super) fn opened(&mut self) {
        self.closed = false;
        self.connect = ProbeHistory::default();
        self.write = ProbeHistory::default();
    }

    /// The names are in force.
    pub(super) fn acknowledge(&mut self, report: SynchronousReport, blocks_when_alone: bool) {
        if let Some(live) = self.live.as_mut() {
            live.synchronous = Some(report.clone());
        }
        self.synchronous = Some(report);
        self.blocks_when_alone = blocks_when_alone;
    }

    /// The postmaster is gone, and with it everything that was known of its run.
    pub(super) fn ended(&mut self) {
        self.forget_run();
        self.postmaster = None;
        self.role = None;
    }

    fn forget_run(&mut self) {
        self.live = None;
        self.memory = None;
        self.stranded = None;
        self.synchronous = None;
        self.answers = Answers::NotYet;
        self.connect = ProbeHistory::default();
        self.write = ProbeHistory::default();
        self.following = None;
        self.stopping = false;
        self.closed = false;
    }

    /// A start of the standby came to nothing.
    pub(super) fn start_failed(&mut self, now: Moment) {
        self.failed_starts += 1;
        self.failed_at = now;
    }

    /// True if it runs, and not as a standby.
    pub(super) fn is_primary(&self) -> bool {
        self.postmaster.is_some() && self.role == Some(Role::Primary)
    }

    /// In one word.
    pub(super) fn state(&self) -> PostgresState {
        match (self.postmaster, self.answers) {
            // To everybody else it starts.
            (_, _) if self.closed => PostgresState::Starting,
            (None, _) if self.is_empty => PostgresState::NoData,
            (None, _) => PostgresState::Stopped,
            (Some(_), Answers::NotYet) => PostgresState::Starting,
            (Some(_), Answers::InTime) => PostgresState::Running,
            (Some(_), Answers::No) => PostgresState::Unresponsive,
        }
    }

    /// Takes what SQL told, or did not; true if a controller should hear of it at once.
    pub(super) fn observed(&mut self, result: Result<LiveReport, PostgresError>, now: Moment) -> bool {
        let state_before = self.state();
        let before = self.live.take();
        match result {
            Ok(live) => {
                self.role = Some(if live.in_recovery { Role::Standby } else { Role::Primary });
                // Names that somebody changed behind our back are not in force: they are applied, and acknowledged, again.
                self.synchronous = live.synchronous.clone();
                if self.answers == Answers::NotYet {
                    self.connect.begin_anew(now);
                    self.write.begin_anew(now);
                }
                self.answers = Answers::InTime;
                self.failed_starts = 0;
                self.live = Some(live);
            }
            Err(PostgresError::NotAccepting { .. }) => self.answers = Answers::NotYet,
            Err(_) => self.answers = Answers::No,
        }
        state_before != self.state() || before.as_ref().map(gist) != self.live.as_ref().map(gist)
    }

    /// What a report says of PostgreSQL.
    pub(super) fn postgres_report(&self, now: Moment) -> PostgresReport {
        PostgresReport {
            state: self.state(),
            control: self.control.clone(),
            damage: self.damage.clone().or_else(|| self.stranded.clone()),
            live: self.live.clone().filter(|_| !self.closed),
            probes: Probes { connect: self.connect.report(now), write: self.write.report(now) },
            disk: self.disk,
            memory: self.memory,
        }
    }

    /// What a report says of rights and promises.
    pub(super) fn standing(&self, memory: &Memory, now: Moment, boot: &BootId) -> Standing {
        let lease = self.leases.valid(now);
        Standing {
            highest_epoch: memory.highest_epoch,
            highest_number: memory.highest_number,
            lease_epoch: lease.map(|lease| lease.epoch),
            lease_remaining: lease.map(|lease| lease.deadline.since(now)),
            fence_confirmed: memory.fence_confirmed,
            consented: memory.consented,
            operator_fenced: memory.operator_fenced,
            half_rejoined: memory.half_rejoined,
            left_running: memory.left_running.is_some() && memory.left_running == Some(memory.highest_epoch),
            acknowledged: promises::membership(memory, memory.highest_epoch).and_then(|membership| membership.number),
            promised: promises::promised(memory, now, boot),
            renewed_by: lease.and(self.renewals.last),
        }
    }
}

/// What of a live report is worth a heartbeat of its own: positions grow all the time, these do not.
fn gist(live: &LiveReport) -> impl PartialEq + use<> {
    let standbys: BTreeMap<String, (String, String)> =
        live.standbys.iter().map(|row| (row.node.clone(), (row.state.clone(), row.sync_state.clone()))).collect();
    let receiver = live.receiver.as_ref().map(|receiver| (receiver.sender.clone(), receiver.streaming));
    let synchronous = live.synchronous.as_ref().map(|report| report.number);
    (live.in_recovery, live.history.timeline, live.replay_paused, receiver, standbys, synchronous)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::ids::SystemIdentifier;
    use crate::domain::lsn::{History, Lsn, Timeline};

    fn live() -> LiveReport {
        LiveReport {
            system_identifier: SystemIdentifier(1),
            in_recovery: false,
            history: History::root(Timeline(1)),
            started_at_unix_seconds: None,
            major_version: 15,
            flush_lsn: Lsn(1),
            replay_lsn: Lsn(1),
            replay_paused: false,
            receiver: None,
            standbys: Vec::new(),
            synchronous: None,
            connections: None,
            clock: Default::default(),
            waits: None,
            upkeep: None,
            work: None,
        }
    }

    /// A backend was killed: PostgreSQL restarts itself for two seconds and then serves again, before any probe was
    /// there to see it.
    #[test]
    fn what_failed_while_postgresql_restarted_itself_does_not_count_against_it_afterwards() {
        let at = |milliseconds: u64| Moment(milliseconds * 1000);
        let starting = || PostgresError::NotAccepting { action: "ask", problem: "in recovery mode".to_owned() };
        let mut local = Local::default();
        local.began(4711, Some(Role::Primary));
        local.observed(Ok(live()), at(0));
        local.write.record(&Err::<(), _>(starting()), at(100), at(110));
        local.connect.record(&Err::<(), _>(starting()), at(120), at(130));
        local.observed(Err(starting()), at(200));
        assert_eq!(local.state(), PostgresState::Starting);
        assert_eq!(local.postgres_report(at(2100)).probes.write.failing_for, Some(Duration::from_secs(2)));

        local.observed(Ok(live()), at(2200));
        assert_eq!(local.state(), PostgresState::Running);
        let probes = local.postgres_report(at(2300)).probes;
        assert_eq!(probes.write.failing_for, Some(Duration::from_millis(100)), "it counts from the end of the start");
        assert_eq!(probes.connect.failing_for, Some(Duration::from_millis(100)));

        // A server that answers all the while gets no such pardon.
        local.observed(Ok(live()), at(2900));
        assert_eq!(local.postgres_report(at(3200)).probes.write.failing_for, Some(Duration::from_secs(1)));
    }
}
