//! One node of the small world: an agent with its PostgreSQL, obeying commands exactly as `domain::command` documents them.
//!
//! It keeps its own promises whatever a controller asks; nothing here knows what an operation is.

use std::collections::BTreeMap;
use std::time::Duration;

use stormglass::domain::clock::BootId;
use stormglass::domain::command::{AssignedRole, Assignment, CommandEnvelope, CommandOutput};
use stormglass::domain::lsn::{Fork, History};
use stormglass::domain::report::{
    ControlData, LiveReport, PostgresReport, PostgresState, Probes, ReceiverReport, StandbyRow, Standing,
    SynchronousReport,
};
use stormglass::domain::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Postgres {
    NoData,
    Stopped,
    Standby,
    Primary,
}

#[derive(Debug, Clone)]
pub struct Agent {
    pub name: NodeName,
    pub site: SiteName,
    /// The controller and its peers reach it.
    pub reachable: bool,
    pub postgres: Postgres,
    /// The data directory is a primary's, running or not.
    pub primary_data: bool,
    pub history: History,
    pub lsn: Lsn,
    /// Bytes of WAL that its clients write while it writes a checkpoint.
    pub written_meanwhile: u64,
    pub standing: Standing,
    pub lease: Option<(Epoch, Moment)>,
    pub frozen: bool,
    pub follows: Option<NodeName>,
    pub synchronous: Option<SynchronousReport>,
    answered: BTreeMap<String, CommandState>,
    sequence: u64,
}

pub fn cluster() -> ClusterName {
    ClusterName::new("main").expect("valid")
}

pub fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("valid")
}

pub fn address(name: &NodeName) -> Address {
    Address::new(name.as_str(), 5432)
}

pub const IDENTIFIER: SystemIdentifier = SystemIdentifier(7_396_000_000_000_000_123);

impl Agent {
    pub fn new(name: &str, site: &str, postgres: Postgres, lsn: Lsn) -> Self {
        Self {
            name: node(name),
            site: SiteName::new(site).expect("valid"),
            reachable: true,
            postgres,
            primary_data: matches!(postgres, Postgres::Primary | Postgres::Stopped),
            history: History::root(Timeline(1)),
            lsn,
            written_meanwhile: 0,
            standing: Standing::default(),
            lease: None,
            frozen: false,
            follows: None,
            synchronous: None,
            answered: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// Accepts a client's write.
    pub fn writes(&self, now: Moment) -> bool {
        self.postgres == Postgres::Primary && self.lease.is_some_and(|(_, until)| now < until)
    }

    /// The guard: in time before the lease ends nothing of PostgreSQL is left.
    pub fn tick(&mut self, now: Moment, stop_budget: Duration) {
        if let Some((epoch, until)) = self.lease
            && now.plus(stop_budget) >= until
        {
            self.fence(epoch);
        }
    }

    pub fn fence(&mut self, epoch: Epoch) {
        if self.postgres == Postgres::Primary {
            self.postgres = Postgres::Stopped;
        }
        self.lease = None;
        self.standing.fence_confirmed = self.standing.fence_confirmed.max(Some(epoch));
    }

    /// Takes what a heartbeat brings. An older number than the last one seen is ignored.
    pub fn assigned(&mut self, assignment: &Assignment, confirmed: bool) {
        if assignment.number < self.standing.highest_number || assignment.epoch < self.standing.highest_epoch {
            return;
        }
        self.standing.highest_number = assignment.number;
        self.standing.highest_epoch = assignment.epoch;
        self.standing.acknowledged = Some(assignment.number);
        match &assignment.role {
            AssignedRole::Fenced => {
                self.standing.operator_fenced = true;
                self.fence(assignment.epoch);
            }
            AssignedRole::Standby { primary, .. } => {
                self.standing.operator_fenced = false;
                self.follows = Some(primary.clone());
                self.frozen &= !confirmed;
            }
            AssignedRole::Primary { synchronous, synchronous_number, .. } => {
                self.standing.operator_fenced = false;
                if self.postgres == Postgres::Primary
                    && self.synchronous.as_ref().is_none_or(|applied| applied.number != *synchronous_number)
                {
                    self.synchronous = Some(SynchronousReport {
                        number: *synchronous_number,
                        names: synchronous.iter().cloned().collect(),
                        barrier_lsn: self.lsn,
                    });
                }
            }
        }
    }

    /// Idempotent: a repeated envelope is answered, not run again.
    pub fn command(&mut self, envelope: &CommandEnvelope, now: Moment) -> CommandState {
        if envelope.cluster != cluster() || envelope.epoch < self.standing.highest_epoch {
            return CommandState::Refused { reason: format!("epoch {} was seen", self.standing.highest_epoch) };
        }
        self.standing.highest_epoch = envelope.epoch;
        let key = envelope.task_key();
        if let Some(answer) = self.answered.get(&key) {
            return answer.clone();
        }
        let answer = match self.obey(envelope, now) {
            Ok(lsn) => CommandState::Succeeded { output: CommandOutput { lsn, note: None } },
            Err(reason) => CommandState::Refused { reason },
        };
        self.answered.insert(key, answer.clone());
        answer
    }

    fn obey(&mut self, envelope: &CommandEnvelope, now: Moment) -> Result<Option<Lsn>, String> {
        let refuse = |problem: &str| Err(problem.to_owned());
        match &envelope.command {
            Command::Fence => {
                self.fence(envelope.epoch);
                Ok(None)
            }
            Command::Checkpoint if self.postgres == Postgres::Primary => {
                let redo = self.lsn;
                self.lsn = Lsn(redo.0 + self.written_meanwhile);
                Ok(Some(redo))
            }
            Command::Demote { .. } if self.postgres == Postgres::Primary => {
                self.fence(envelope.epoch);
                Ok(Some(self.lsn))
            }
            Command::Checkpoint | Command::Demote { .. } => refuse("no primary runs here"),
            Command::Freeze { consent_to, .. } => {
                if let Some(epoch) = consent_to {
                    if self.standing.fence_confirmed >= Some(*epoch) || self.standing.operator_fenced {
                        return refuse("fenced in that epoch");
                    }
                    if self.standing.half_rejoined || self.postgres == Postgres::NoData {
                        return refuse("no data to be promoted");
                    }
                    self.standing.consented = Some(*epoch);
                }
                self.frozen = true;
                Ok(Some(self.lsn))
            }
            Command::Promote { grant, counts_from, required_lsn, .. } => {
                let until = counts_from.plus(grant.timers.lease);
                if self.standing.consented != Some(grant.epoch) || self.standing.fence_confirmed >= Some(grant.epoch) {
                    return refuse("not consented to, or fenced in, that epoch");
                }
                if *counts_from > now || now.plus(grant.timers.stop_budget) >= until {
                    return refuse("the lease has run out on the way");
                }
                if !self.primary_data && required_lsn.is_some_and(|required| self.lsn < required) {
                    return refuse("the shutdown record has not arrived");
                }
                if self.postgres != Postgres::Primary {
                    self.synchronous = None;
                }
                if !self.primary_data {
                    self.history.forks.push(Fork { timeline: self.history.timeline, switched_at: self.lsn });
                    self.history.timeline = Timeline(100 + u32::try_from(grant.epoch.0).expect("small"));
                }
                (self.postgres, self.primary_data, self.follows) = (Postgres::Primary, true, None);
                self.lease = Some((grant.epoch, until));
                Ok(Some(self.lsn))
            }
            Command::Rewind { .. } | Command::Reclone { .. } if self.postgres == Postgres::Primary => {
                refuse("a primary runs here")
            }
            // Which bytes change is the world's business: it knows the primary.
            Command::Rewind { .. } | Command::Reclone { .. } => Ok(None),
            Command::StartStandby { primary, .. } => {
                if self.standing.half_rejoined
                    || self.postgres == Postgres::NoData
                    || self.postgres == Postgres::Primary
                {
                    return refuse("nothing to start as a standby");
                }
                (self.postgres, self.primary_data, self.frozen) = (Postgres::Standby, false, false);
                self.follows = Some(primary.clone());
                Ok(None)
            }
            Command::PrepareRepository | Command::MarkLedger if self.postgres != Postgres::Primary => {
                refuse("no primary runs here")
            }
            // The repository and copies are the world's business.
            Command::PrepareRepository
            | Command::MarkLedger
            | Command::Backup { .. }
            | Command::VerifyBackup { .. }
            | Command::CheckRestore { .. }
            | Command::RestoreCopy { .. }
            | Command::RecoverCopy { .. }
            | Command::CheckCopy { .. }
            | Command::RemoveCopy { .. } => Ok(None),
            Command::SetAside | Command::AdoptCopy if self.postgres == Postgres::Primary => {
                refuse("a primary runs here")
            }
            Command::SetAside => {
                (self.postgres, self.primary_data, self.lsn) = (Postgres::NoData, false, Lsn(0));
                Ok(None)
            }
            Command::AdoptCopy => {
                self.history.forks.push(Fork { timeline: self.history.timeline, switched_at: Lsn(0x400_0000) });
                self.history.timeline = Timeline(50);
                (self.postgres, self.primary_data, self.lsn) = (Postgres::Stopped, true, Lsn(0x400_0000));
                Ok(None)
            }
            Command::VerifyWrite { .. } => refuse("not a proxy"),
        }
    }

    /// What it says of itself. `rows`: the standbys that stream from it.
    pub fn report(&mut self, now: Moment, rows: Vec<StandbyRow>, streaming: bool) -> Report {
        self.sequence += 1;
        let running = matches!(self.postgres, Postgres::Standby | Postgres::Primary);
        let in_recovery = self.postgres == Postgres::Standby;
        let live = running.then(|| LiveReport {
            system_identifier: IDENTIFIER,
            in_recovery,
            history: self.history.clone(),
            started_at_unix_seconds: None,
            major_version: 15,
            flush_lsn: self.lsn,
            replay_lsn: self.lsn,
            replay_paused: false,
            receiver: streaming.then(|| ReceiverReport {
                sender: self.follows.as_ref().map(address),
                streaming: true,
                last_message_age: Some(Duration::from_millis(20)),
            }),
            standbys: rows,
            synchronous: self.synchronous.clone().filter(|_| !in_recovery),
            waits: None,
            upkeep: None,
            work: None,
            connections: None,
            clock: Default::default(),
        });
        let control = (self.postgres != Postgres::NoData).then(|| ControlData {
            system_identifier: IDENTIFIER,
            cluster_state: match (self.primary_data, running) {
                (true, true) => "in production",
                (true, false) => "shut down",
                (false, true) => "in archive recovery",
                (false, false) => "shut down in recovery",
            }
            .to_owned(),
            timeline: self.history.timeline,
            checkpoint: self.lsn,
            major_version: 15,
        });
        Report {
            cluster: cluster(),
            node: self.name.clone(),
            site: self.site.clone(),
            address: address(&self.name),
            boot: BootId("boot".to_owned()),
            incarnation: "incarnation".to_owned(),
            sequence: self.sequence,
            sent_at: now,
            version: "0".to_owned(),
            standing: Standing {
                lease_epoch: self.lease.map(|(epoch, _)| epoch),
                lease_remaining: self.lease.map(|(_, until)| until.since(now)),
                ..self.standing.clone()
            },
            postgres: PostgresReport {
                state: match self.postgres {
                    Postgres::NoData => PostgresState::NoData,
                    Postgres::Stopped => PostgresState::Stopped,
                    Postgres::Standby | Postgres::Primary => PostgresState::Running,
                },
                control,
                damage: None,
                live,
                probes: Probes::default(),
                disk: None,
                memory: None,
            },
            tags: Default::default(),
            tasks: BTreeMap::new(),
            protection: None,
        }
    }
}
