//! A small world around the pure code: agents, a store with compare-and-swap, proxies, clients that write, and what a
//! controller knows of all that.
//!
//! Safety is asserted after every change: never two writers, no promotion without consent, no confirmed commit lost.

use std::collections::BTreeMap;
use std::time::Duration;

use stormglass::decide;
use stormglass::domain::command::{AssignedRole, Assignment, CommandEnvelope, CommandOutput};
use stormglass::domain::lsn::History;
use stormglass::domain::report::StandbyRow;
use stormglass::domain::*;
use stormglass::operate::{Effect, Step};

use super::agent::{Agent, Postgres, address, cluster};
use super::driver::Fault;

/// What a controller process knows; gone when it dies.
#[derive(Default)]
pub struct Controller {
    pub record: Option<ClusterRecord>,
    pub operations: Vec<Operation>,
    pub reports: BTreeMap<NodeName, (Report, Moment)>,
    pub last_grant: BTreeMap<NodeName, Moment>,
    pub not_streaming_since: BTreeMap<NodeName, Moment>,
    pub leading_since: Moment,
}

pub struct World {
    pub now: Moment,
    pub policy: Policy,
    pub agents: BTreeMap<NodeName, Agent>,
    pub store: Option<ClusterRecord>,
    pub saved: BTreeMap<OperationId, String>,
    proxy_target: Option<Address>,
    pub proxy_holds: bool,
    confirmed: (Timeline, Lsn),
    pub controller: Controller,
    pub faults: Vec<(StepName, Fault)>,
    pub late: Option<(Moment, OperationId, Step)>,
    renewed: Moment,
    /// Losing confirmed commits was allowed by an operator, or by the mode.
    pub may_lose: bool,
    pub steps_run: Vec<StepName>,
    /// Why the next operation begins.
    pub reasons: Vec<Reason>,
}

pub struct Done {
    pub state: StepState,
    pub record: Option<ClusterRecord>,
    pub reports: Vec<Report>,
}

pub fn failed(error: &str) -> StepState {
    StepState::Failed { error: error.to_owned() }
}

fn noted(note: &str) -> StepState {
    StepState::Succeeded { output: CommandOutput { lsn: None, note: Some(note.to_owned()) } }
}

fn succeeded() -> StepState {
    StepState::Succeeded { output: CommandOutput::default() }
}

impl World {
    pub fn new(agents: Vec<Agent>) -> Self {
        let now = Moment(1_000_000_000);
        Self {
            now,
            policy: Policy::for_rto(Duration::from_secs(5)),
            agents: agents.into_iter().map(|agent| (agent.name.clone(), agent)).collect(),
            store: None,
            saved: BTreeMap::new(),
            proxy_target: None,
            proxy_holds: false,
            confirmed: (Timeline(1), Lsn(0)),
            controller: Controller { leading_since: now, ..Default::default() },
            faults: Vec::new(),
            late: None,
            renewed: Moment(0),
            may_lose: false,
            steps_run: Vec::new(),
            reasons: Vec::new(),
        }
    }

    pub fn agent(&mut self, name: &NodeName) -> &mut Agent {
        self.agents.get_mut(name).expect("configured")
    }

    pub fn writer(&self) -> Option<&Agent> {
        self.agents.values().find(|agent| agent.writes(self.now))
    }

    /// Clients, leases, heartbeats go on for so long.
    pub fn pass(&mut self, duration: Duration) {
        let end = self.now.plus(duration);
        while self.now < end {
            self.now = self.now.plus(Duration::from_millis(50)).min(end);
            for agent in self.agents.values_mut() {
                agent.tick(self.now, self.policy.timers.stop_budget);
            }
            if self.late.as_ref().is_some_and(|(at, ..)| *at <= self.now) {
                let (_, id, step) = self.late.take().expect("just seen");
                drop(self.effect(&id, &step));
            }
            if self.now.since(self.renewed) >= self.policy.timers.renewal_interval {
                self.renewed = self.now;
                self.heartbeats();
            }
            self.commit();
            self.check();
        }
    }

    fn streams(&self, standby: &Agent, primary: &Agent) -> bool {
        standby.postgres == Postgres::Standby
            && primary.postgres == Postgres::Primary
            && standby.follows.as_ref() == Some(&primary.name)
            && !standby.frozen
            && standby.reachable == primary.reachable
            && primary.history.contains(standby.history.timeline, standby.lsn)
    }

    /// A client commits wherever a node lets it; asynchronous standbys are one commit behind.
    fn commit(&mut self) {
        let Some(writer) = self.writer().map(|agent| agent.name.clone()) else { return };
        let primary = self.agent(&writer);
        let names = primary.synchronous.clone().map_or_else(Vec::new, |applied| applied.names);
        let before = primary.lsn;
        primary.lsn = Lsn(before.0 + 0x100);
        let (written, history) = (primary.lsn, primary.history.clone());
        let mut confirmed = names.is_empty();
        for name in self.streaming_from(&writer) {
            let is_named = names.contains(&name);
            confirmed |= is_named;
            let standby = self.agent(&name);
            standby.lsn = if is_named { written } else { standby.lsn.max(before) };
            standby.history = history.clone();
        }
        if confirmed {
            self.confirmed = (history.timeline, written);
        }
    }

    fn streaming_from(&self, primary: &NodeName) -> Vec<NodeName> {
        let Some(primary) = self.agents.get(primary) else { return Vec::new() };
        self.agents
            .values()
            .filter(|standby| self.streams(standby, primary))
            .map(|standby| standby.name.clone())
            .collect()
    }

    fn report(&mut self, name: &NodeName) -> Report {
        let names = self.agents[name].synchronous.clone().map_or_else(Vec::new, |applied| applied.names);
        let rows = self.streaming_from(name).into_iter().map(|standby| StandbyRow {
            node: standby.to_string(),
            state: "streaming".to_owned(),
            sync_state: if names.contains(&standby) { "sync" } else { "async" }.to_owned(),
            flush_lsn: Some(self.agents[&standby].lsn),
            replay_lsn: Some(self.agents[&standby].lsn),
        });
        let rows = rows.collect();
        let upstream = self.agents[name].follows.clone();
        let streaming = upstream.is_some_and(|primary| self.streaming_from(&primary).contains(name));
        let now = self.now;
        self.agent(name).report(now, rows, streaming)
    }

    fn heartbeats(&mut self) {
        for name in self.agents.keys().cloned().collect::<Vec<_>>() {
            if !self.agents[&name].reachable {
                continue;
            }
            let report = self.report(&name);
            self.hear(report.clone());
            let pending = self.swap_pending();
            let Some(record) = self.controller.record.clone() else { continue };
            if let Some(grant) = decide::lease::grant(&record, &report, &self.policy, pending, None) {
                self.controller.last_grant.insert(name.clone(), self.now);
                let until = report.sent_at.plus(grant.timers.lease);
                let agent = self.agent(&name);
                assert!(agent.standing.fence_confirmed < Some(grant.epoch), "granted to {name}, which is fenced");
                assert_eq!(agent.standing.consented, Some(grant.epoch), "granted to {name} without consent");
                agent.lease = Some((grant.epoch, until));
            }
            let role = if record.fenced.contains(&name) {
                AssignedRole::Fenced
            } else if record.holder == name {
                AssignedRole::Primary {
                    synchronous: record.synchronous.clone(),
                    synchronous_number: record.synchronous_number,
                    block_when_alone: false,
                }
            } else {
                let (primary, primary_address) = (record.holder.clone(), record.holder_address.clone());
                AssignedRole::Standby { primary, primary_address }
            };
            let (system_identifier, epoch, number) = (record.system_identifier, record.epoch, record.number);
            let peers = Default::default();
            let assignment = Assignment {
                cluster: cluster(),
                system_identifier,
                epoch,
                number,
                role,
                peers,
                eligible: Default::default(),
                renewers: None,
            };
            self.agent(&name).assigned(&assignment, record.holder_confirmed);
        }
    }

    pub fn hear(&mut self, report: Report) {
        let now = self.now;
        if self.controller.record.as_ref().is_some_and(|record| record.holder == report.node)
            && let Some(live) = &report.postgres.live
        {
            for name in self.agents.keys() {
                if live.standbys.iter().any(|row| row.node == name.as_str()) {
                    self.controller.not_streaming_since.remove(name);
                } else {
                    self.controller.not_streaming_since.entry(name.clone()).or_insert(now);
                }
            }
        }
        self.controller.reports.insert(report.node.clone(), (report, now));
    }

    pub fn adopt(&mut self, record: ClusterRecord) {
        let current = self.controller.record.as_ref();
        if current.is_none_or(|current| record.number > current.number) {
            if current.is_none_or(|current| record.epoch > current.epoch) {
                self.controller.last_grant.clear();
                self.controller.not_streaming_since.clear();
            }
            self.controller.record = Some(record);
        }
    }

    /// As the controller judges it: from deciding to raise the epoch until the outcome is known.
    fn swap_pending(&self) -> bool {
        let Some(operation) = decide::moving(&self.controller.operations) else { return false };
        let open = |step| {
            operation
                .last(step)
                .is_some_and(|event| !matches!(event.state, StepState::Succeeded { .. } | StepState::Failed { .. }))
        };
        operation.epoch_after.is_none() && matches!(operation.kind, OperationKind::Failover { .. })
            || open(StepName::AdvanceEpoch)
            || open(StepName::Reinstate)
    }

    pub fn view(&self) -> View {
        let fact = |name: &NodeName| match self.controller.reports.get(name) {
            Some((report, at)) if self.now.since(*at) <= self.policy.report_stale_after => {
                Fact::Known { value: report.clone().into(), age: self.now.since(*at) }
            }
            Some((report, at)) => {
                Fact::Unknown { last: Some(report.clone().into()), for_duration: self.now.since(*at) }
            }
            None => Fact::Unknown { last: None, for_duration: self.now.since(self.controller.leading_since) },
        };
        let nodes = self.agents.values().map(|agent| {
            let view = NodeView {
                node: agent.name.clone(),
                site: agent.site.clone(),
                report: fact(&agent.name),
                last_grant: self.controller.last_grant.get(&agent.name).copied(),
                last_live: self
                    .controller
                    .reports
                    .get(&agent.name)
                    .and_then(|(report, _)| report.postgres.live.clone()),
                not_streaming_for: self
                    .controller
                    .not_streaming_since
                    .get(&agent.name)
                    .map(|since| self.now.since(*since)),
            };
            (agent.name.clone(), view)
        });
        View {
            now: self.now,
            wall: WallTime(i64::try_from(self.now.0).expect("small")),
            leading_since: self.controller.leading_since,
            leads_for: None,
            record: self.controller.record.clone(),
            nodes: nodes.collect(),
            sighting: None,
            outlooks: Default::default(),
            proxies: BTreeMap::new(),
        }
    }

    pub fn effect(&mut self, id: &OperationId, step: &Step) -> Done {
        let done = match &step.effect {
            Effect::Command { node, command } => self.command(id, step, node, command.clone()),
            Effect::Each { nodes, command } => {
                let done: Vec<Done> = nodes.iter().map(|node| self.command(id, step, node, command.clone())).collect();
                let trouble = done.iter().find(|done| !matches!(done.state, StepState::Succeeded { .. }));
                let state = trouble.map_or_else(succeeded, |done| done.state.clone());
                Done { state, record: None, reports: done.into_iter().flat_map(|done| done.reports).collect() }
            }
            Effect::Swap { expected, record } => self.swap(*expected, record),
            Effect::Freeze { candidate, others, fence_confirmed } => {
                for other in others {
                    self.command(
                        id,
                        step,
                        other,
                        Command::Freeze { consent_to: None, fence_confirmed: *fence_confirmed },
                    );
                }
                self.command(
                    id,
                    step,
                    candidate,
                    Command::Freeze { consent_to: Some(step.epoch), fence_confirmed: *fence_confirmed },
                )
            }
            Effect::HoldWrites => {
                self.proxy_holds = true;
                Done { state: succeeded(), record: None, reports: vec![] }
            }
            Effect::RedirectWrites => {
                self.proxy_holds = false;
                self.proxy_target = self.controller.record.as_ref().map(|record| record.holder_address.clone());
                Done { state: succeeded(), record: None, reports: vec![] }
            }
            // The name itself is a matter of the shell; the write is the same.
            Effect::VerifyWrites { expect } | Effect::VerifyName { expect, .. } => {
                let arrives = self.proxy_target.as_ref() == Some(expect)
                    && self.writer().is_some_and(|writer| address(&writer.name) == *expect);
                let state = if arrives { succeeded() } else { failed("the write did not arrive") };
                Done { state, record: None, reports: vec![] }
            }
            // Steps of sequences reach outside this world: `src/operate/sequence.rs` has their tests.
            // So does the training program: `tests/prediction/retraining.rs` runs it.
            Effect::RunStep { .. } | Effect::Await { .. } | Effect::Train { .. } | Effect::Begin { .. } => {
                Done { state: succeeded(), record: None, reports: vec![] }
            }
        };
        self.check();
        done
    }

    pub fn swap(&mut self, expected: Option<RecordNumber>, record: &ClusterRecord) -> Done {
        let holds = self.store.as_ref().map(|stored| stored.number) == expected
            && self.store.as_ref().is_none_or(|stored| record.violation_after(stored).is_none());
        if holds {
            self.store = Some(record.clone());
        }
        let state = if self.store.as_ref() == Some(record) { succeeded() } else { failed("another change came first") };
        Done { state, record: self.store.clone(), reports: vec![] }
    }

    fn command(&mut self, id: &OperationId, step: &Step, name: &NodeName, command: Command) -> Done {
        let unreachable = Done { state: failed("the agent is out of reach"), record: None, reports: vec![] };
        if !self.agents[name].reachable {
            return unreachable;
        }
        if let Command::Demote { .. } = command {
            // A fast shutdown sends everything to whoever streams before it ends.
            let (lsn, history) = (self.agents[name].lsn, self.agents[name].history.clone());
            for standby in self.streaming_from(name) {
                let standby = self.agent(&standby);
                (standby.lsn, standby.history) = (lsn, history.clone());
            }
        }
        let envelope = CommandEnvelope {
            cluster: cluster(),
            epoch: step.epoch,
            operation: id.clone(),
            step: step.name,
            attempt: step.attempt,
            command: command.clone(),
        };
        let was_primary = self.agents[name].postgres == Postgres::Primary;
        let now = self.now;
        let answer = self.agent(name).command(&envelope, now);
        let state = match answer {
            CommandState::Succeeded { output } => self.copied(name, &command, output),
            CommandState::Refused { reason } | CommandState::Failed { error: reason } => failed(&reason),
            CommandState::Running { .. } => unreachable!("every command of this world ends at once"),
        };
        if let Command::Promote { grant, .. } = &command
            && matches!(state, StepState::Succeeded { .. })
            && !was_primary
        {
            self.check_promotion(name, grant.epoch);
        }
        Done { state, record: None, reports: vec![self.report(name)] }
    }

    /// What commands do to data directories.
    fn copied(&mut self, name: &NodeName, command: &Command, output: CommandOutput) -> StepState {
        let primary = match command {
            Command::Backup { .. } => return noted("20261128-143346F: full"),
            Command::MarkLedger => {
                return noted(r#"{"lsn":"0/5000000","rpo":{"secs":1,"nanos":0},"counts":[]}"#);
            }
            Command::CheckRestore { .. } => {
                return noted(
                    r#"{"label":"20261128-143346F","ended":"2026-11-28T14:33:53Z","last_segment":"000000010000000000000002","database_bytes":1,"free_bytes":9}"#,
                );
            }
            Command::AdoptCopy => {
                // Commits after the target are gone, as somebody wished.
                self.may_lose = true;
                return StepState::Succeeded { output };
            }
            Command::Rewind { primary, .. } | Command::Reclone { primary, .. } => primary,
            Command::StartStandby { primary, .. } => {
                return if self.streaming_from(primary).contains(name) {
                    StepState::Succeeded { output }
                } else {
                    failed("it does not stream")
                };
            }
            _ => return StepState::Succeeded { output },
        };
        let Some(Agent { history, lsn, postgres: Postgres::Primary, .. }) = self.agents.get(primary).cloned() else {
            return failed("no primary to copy from");
        };
        let reclone = matches!(command, Command::Reclone { .. });
        let agent = self.agent(name);
        if agent.postgres == Postgres::NoData && !reclone {
            return failed("no data to rewind");
        }
        agent.postgres = Postgres::Stopped;
        if reclone || !history.contains(agent.history.timeline, agent.lsn) {
            (agent.history, agent.lsn) = (history, lsn);
            agent.standing.half_rejoined = false;
        }
        StepState::Succeeded { output }
    }

    fn check(&self) {
        let writers: Vec<&NodeName> =
            self.agents.values().filter(|agent| agent.writes(self.now)).map(|agent| &agent.name).collect();
        assert!(writers.len() <= 1, "two writers: {writers:?}");
    }

    /// Design, rule 4: the store gave the epoch out, the candidate consented, nobody else can write, nothing confirmed is lost.
    fn check_promotion(&self, name: &NodeName, epoch: Epoch) {
        let record = self.store.as_ref().expect("promoted without a record");
        assert_eq!((&record.holder, record.epoch), (name, epoch), "the store gave this epoch to somebody else");
        let agent = &self.agents[name];
        assert_eq!(agent.standing.consented, Some(epoch), "promoted without consent");
        for other in self.agents.values().filter(|other| other.name != *name) {
            assert!(!other.writes(self.now), "{} may still write", other.name);
        }
        let (timeline, lsn) = self.confirmed;
        let holds = match agent.history.reach_on(timeline) {
            Some(Lsn(u64::MAX)) => agent.lsn >= lsn,
            Some(reach) => reach >= lsn,
            None => false,
        };
        let history: &History = &agent.history;
        assert!(self.may_lose || holds, "{name} at {} of {history:?} lacks confirmed {lsn} of {timeline}", agent.lsn);
    }
}
