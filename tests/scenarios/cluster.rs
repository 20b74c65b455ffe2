//! The cluster that a scenario describes: directives in, a view out.
//!
//! One word, one fact; what a scenario does not say is as in a healthy cluster. The words are listed in `scenarios/README.md`.
//! Length: one table of words, read from top to bottom.

use std::collections::BTreeMap;
use std::time::Duration;

use stormglass::domain::clock::BootId;
use stormglass::domain::lsn::{Fork, History};
use stormglass::domain::operation::JOURNAL_FORMAT;
use stormglass::domain::record::Member;
use stormglass::domain::report::*;
use stormglass::domain::*;

use super::words::{Trouble, Words};

#[path = "witnesses.rs"]
mod witnesses;

use witnesses::Witnesses;

#[derive(Clone)]
struct Node {
    site: SiteName,
    report: Report,
    /// Whether its agent is heard: `None` since ever, `Some(since)` since then.
    silent: Option<Option<Moment>>,
    not_streaming_since: Option<Moment>,
    last_grant: Option<Moment>,
    /// What its PostgreSQL last answered before it ended.
    last_live: Option<LiveReport>,
}

pub struct Cluster {
    pub policy: Policy,
    pub record: Option<ClusterRecord>,
    pub operations: Vec<Operation>,
    nodes: BTreeMap<NodeName, Node>,
    now: Moment,
    leading_since: Moment,
    witnesses: Witnesses,
}

impl Cluster {
    pub fn new() -> Self {
        let now = Moment(3_600_000_000);
        Self {
            policy: Policy::for_rto(Duration::from_secs(5)),
            record: None,
            operations: Vec::new(),
            nodes: BTreeMap::new(),
            now,
            leading_since: now.minus(Duration::from_secs(600)),
            witnesses: Witnesses::default(),
        }
    }

    /// Takes one line in; `false` if its first word is none of these.
    pub fn direct(&mut self, line: &str) -> Result<bool, Trouble> {
        let mut words = Words::new(line);
        match words.word()? {
            "cluster" => self.configure(words)?,
            "node" | "set" => self.describe(words)?,
            "record" => self.store(words)?,
            "crash" => {
                let name = words.parse()?;
                let epoch = self.record.as_ref().map(|record| record.epoch);
                let node = self.node(&name)?;
                node.last_live = node.report.postgres.live.clone();
                stop(&mut node.report);
                node.report.standing.fence_confirmed = epoch;
                self.cut(&name);
            }
            "silent" => {
                let name = words.parse()?;
                let now = self.now;
                self.node(&name)?.silent = Some(Some(now));
                self.cut(&name);
            }
            "unheard" => {
                let name = words.parse()?;
                self.node(&name)?.silent = Some(None);
            }
            "heard" => {
                let name = words.parse()?;
                self.node(&name)?.silent = None;
            }
            "receiving" => {
                let name: NodeName = words.parse()?;
                let holder = self.record.as_ref().map(|record| record.holder_address.clone());
                if let Some(live) = &mut self.node(&name)?.report.postgres.live {
                    live.receiver = Some(receiver(holder));
                }
            }
            "granted" => {
                let name = words.parse()?;
                let at = self.now.minus(words.duration()?);
                self.node(&name)?.last_grant = Some(at);
            }
            kind @ ("knock" | "path") => self.witness(kind, words)?,
            "wait" => self.now = self.now.plus(words.duration()?),
            "started" => self.leading_since = self.now,
            "operation" => self.remember(words)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn node(&mut self, name: &NodeName) -> Result<&mut Node, Trouble> {
        self.nodes.get_mut(name).ok_or_else(|| format!("no node {name} was described"))
    }

    /// Nothing streams from it any more.
    fn cut(&mut self, name: &NodeName) {
        if self.record.as_ref().is_some_and(|record| record.holder == *name) {
            self.nodes.values_mut().for_each(|node| edit_live(&mut node.report, |live| live.receiver = None));
        }
    }

    fn configure(&mut self, mut words: Words<'_>) -> Result<(), Trouble> {
        while let Some(word) = words.optional() {
            match word {
                "rto" => {
                    self.policy = Policy { durability: self.policy.durability, ..Policy::for_rto(words.duration()?) }
                }
                "durability" => {
                    self.policy.durability = match words.word()? {
                        "sync" => DurabilityMode::Sync,
                        "sync_strict" => DurabilityMode::SyncStrict,
                        "async" => DurabilityMode::Async,
                        other => return Err(format!("durability {other:?}")),
                    }
                }
                "scope" => {
                    let label = words.word()?;
                    let known = SyncScope::ALL.into_iter().find(|scope| scope.label() == label);
                    self.policy.sync_scope = known.ok_or_else(|| format!("scope {label:?}"))?;
                }
                "max_lag_bytes" => self.policy.max_lag_bytes = words.parse()?,
                "patience" => self.policy.sync_standby_patience = words.duration()?,
                "rejoin" => self.policy.rejoin_automatically = words.word()? == "automatic",
                other => return Err(format!("{other:?} says nothing about a cluster")),
            }
        }
        Ok(())
    }

    fn describe(&mut self, mut words: Words<'_>) -> Result<(), Trouble> {
        let name: NodeName = words.parse()?;
        let mut node = self.nodes.get(&name).cloned().unwrap_or_else(|| new_node(&name));
        let report = &mut node.report;
        while let Some(word) = words.optional() {
            match word {
                "site" => {
                    node.site = words.parse()?;
                    report.site = node.site.clone();
                }
                "primary" => run(report, false),
                "standby" => run(report, true),
                "stopped" => stop(report),
                "empty" => {
                    stop(report);
                    (report.postgres.state, report.postgres.control) = (PostgresState::NoData, None);
                }
                "starting" => (report.postgres.state, report.postgres.live) = (PostgresState::Starting, None),
                "unresponsive" => (report.postgres.state, report.postgres.live) = (PostgresState::Unresponsive, None),
                "timeline" => {
                    let timeline = Timeline(words.parse()?);
                    edit_live(report, |live| live.history = History::root(timeline));
                    edit_control(report, |control| control.timeline = timeline);
                }
                "fork" => {
                    let fork = words.word()?;
                    let (timeline, at) = fork.split_once('@').ok_or("a fork is written TIMELINE@LSN")?;
                    let timeline = Timeline(timeline.parse().map_err(|error| format!("{timeline:?}: {error}"))?);
                    let switched_at = at.parse().map_err(|error| format!("{error}"))?;
                    edit_live(report, |live| live.history.forks.push(Fork { timeline, switched_at }));
                }
                "flush" => {
                    let lsn = words.parse()?;
                    edit_live(report, |live| (live.flush_lsn, live.replay_lsn) = (lsn, lsn));
                    edit_control(report, |control| control.checkpoint = lsn);
                }
                "system" => {
                    let identifier = SystemIdentifier(words.parse()?);
                    edit_live(report, |live| live.system_identifier = identifier);
                    edit_control(report, |control| control.system_identifier = identifier);
                }
                "damaged" => {
                    report.postgres.control = None;
                    report.postgres.damage = Some("the checksum of global/pg_control is wrong".to_owned());
                }
                "replay_paused" => edit_live(report, |live| live.replay_paused = true),
                "connections" => {
                    let (used, allowed) = (words.parse()?, words.parse()?);
                    edit_live(report, |live| live.connections = Some(ConnectionReport { used, allowed }));
                }
                "checksum_failures" => {
                    let pages = words.parse()?;
                    edit_live(report, |live| {
                        live.upkeep = Some(UpkeepReport { checksum_failures: Some(pages), ..UpkeepReport::default() });
                    });
                }
                "locks" => {
                    let (waiting_for_locks, longest_lock_wait) = (words.parse()?, words.duration()?);
                    let waits = WaitReport { waiting_for_locks, longest_lock_wait, ..WaitReport::default() };
                    edit_live(report, |live| live.waits = Some(waits));
                }
                "transaction" => {
                    let waits = WaitReport { oldest_transaction: Some(words.duration()?), ..WaitReport::default() };
                    edit_live(report, |live| live.waits = Some(waits));
                }
                "write_took" => {
                    let took = Some(words.duration()?);
                    report.postgres.probes.write =
                        Probe { last_success_age: Some(Duration::ZERO), took, ..Probe::default() };
                }
                "acknowledges" => {
                    let (number, barrier_lsn) = (RecordNumber(words.parse()?), words.parse()?);
                    let names: Vec<NodeName> = words.nodes()?;
                    edit_live(report, |live| {
                        live.synchronous = Some(SynchronousReport { number, names, barrier_lsn });
                    });
                }
                "write_failing" => report.postgres.probes.write = failing(words.duration()?, "disk full"),
                "connect_failing" => report.postgres.probes.connect = failing(words.duration()?, "no answer"),
                "write_slow" => report.postgres.probes.write.last_success_age = Some(words.duration()?),
                "probes_good" => report.postgres.probes = Probes::default(),
                "lease" => report.standing.lease_epoch = Some(Epoch(words.parse()?)),
                "no_lease" => report.standing.lease_epoch = None,
                "fenced_in" => report.standing.fence_confirmed = Some(Epoch(words.parse()?)),
                "saw_epoch" => report.standing.highest_epoch = Epoch(words.parse()?),
                "stored" => report.standing.acknowledged = Some(RecordNumber(words.parse()?)),
                "promised" => {
                    let (epoch, remaining) = (Epoch(words.parse()?), words.duration()?);
                    report.standing.promised = Some(Promised { epoch, remaining });
                }
                "operator_fenced" => report.standing.operator_fenced = true,
                "half_rejoined" => report.standing.half_rejoined = true,
                "no_failover" => report.tags.no_failover = true,
                "no_sync" => report.tags.no_sync = true,
                "priority" => report.tags.failover_priority = words.parse()?,
                "streams" => {
                    node.not_streaming_since = None;
                    edit_live(report, |live| live.receiver = Some(receiver(None)));
                }
                "not_streaming" => {
                    node.not_streaming_since = Some(self.now.minus(words.duration()?));
                    edit_live(report, |live| live.receiver = None);
                }
                other => return Err(format!("{other:?} says nothing about a node")),
            }
        }
        self.nodes.insert(name, node);
        Ok(())
    }

    fn store(&mut self, mut words: Words<'_>) -> Result<(), Trouble> {
        let first = self.nodes.keys().next().cloned().ok_or("describe the nodes before the record")?;
        let mut record = self.record.clone().unwrap_or_else(|| new_record(&first, self.policy.durability));
        while let Some(word) = words.optional() {
            match word {
                "epoch" => record.epoch = Epoch(words.parse()?),
                "number" => record.number = RecordNumber(words.parse()?),
                "holder" => {
                    record.holder = words.parse()?;
                    record.holder_address = address(&record.holder);
                }
                "synchronous" => record.synchronous = words.nodes()?,
                "named_in" => record.synchronous_number = RecordNumber(words.parse()?),
                "eligible" => record.eligible = words.nodes()?,
                "proposed" => record.proposed = words.nodes()?,
                "unconfirmed" => record.holder_confirmed = false,
                "fenced" => record.fenced = words.nodes()?,
                "alone" => record.alone_since = Some(WallTime(0)),
                "paused" => record.paused_until = Some(self.wall().plus(Duration::from_secs(3600))),
                "none" => {
                    self.record = None;
                    return Ok(());
                }
                other => return Err(format!("{other:?} says nothing about a record")),
            }
        }
        // Whoever is in a healthy cluster saw its epoch, and the holder has its lease.
        for (name, node) in &mut self.nodes {
            let standing = &mut node.report.standing;
            standing.highest_epoch = standing.highest_epoch.max(record.epoch);
            let writes = node.report.postgres.live.as_ref().is_some_and(|live| !live.in_recovery);
            if *name == record.holder && writes {
                (standing.lease_epoch, standing.consented) = (Some(record.epoch), Some(record.epoch));
                node.last_grant.get_or_insert(self.now);
            }
        }
        self.record = Some(record);
        Ok(())
    }

    /// `operation failover n1 n2 failed 1s` (ago), `operation rejoin n3 running`.
    fn remember(&mut self, mut words: Words<'_>) -> Result<(), Trouble> {
        let kind = match words.word()? {
            "failover" => OperationKind::Failover {
                from: words.parse()?,
                to: words.parse()?,
                accept_data_loss: false,
                old_primary_is_off: false,
            },
            "switchover" => OperationKind::Switchover { from: words.parse()?, to: words.parse()? },
            "rejoin" => OperationKind::Rejoin { node: words.parse()?, reclone: false },
            other => return Err(format!("operation {other:?}")),
        };
        let status = match words.word()? {
            "running" => OperationStatus::Running,
            "failed" => OperationStatus::Failed,
            other => return Err(format!("status {other:?}")),
        };
        let ended_at = if status.is_final() { Some(self.now.minus(words.duration()?)) } else { None };
        self.operations.push(Operation {
            format: JOURNAL_FORMAT,
            id: OperationId(format!("op{}", self.operations.len() + 1)),
            cluster: ClusterName::new("main").expect("valid"),
            kind,
            status,
            origin: "automatic".to_owned(),
            reasons: Vec::new(),
            epoch_before: self.record.as_ref().map_or(Epoch(0), |record| record.epoch),
            epoch_after: None,
            cancel_requested: false,
            detected_at: self.now,
            decided_at: self.now,
            begun_wall: self.wall(),
            ended_at,
            ended_wall: None,
            message: None,
            journal: Vec::new(),
            evidence: Vec::new(),
            risks: Default::default(),
            loss: None,
        });
        Ok(())
    }

    fn wall(&self) -> WallTime {
        WallTime(1_795_000_000_000_000 + i64::try_from(self.now.0).expect("small"))
    }

    pub fn view(&self) -> View {
        let mut nodes = BTreeMap::new();
        for (name, node) in &self.nodes {
            let mut report = node.report.clone();
            if let Some(live) = &mut report.postgres.live
                && !live.in_recovery
            {
                live.standbys = self.rows(name, live);
            }
            let report = match node.silent {
                None => Fact::Known { value: report.into(), age: Duration::from_millis(100) },
                Some(None) => Fact::Unknown { last: None, for_duration: self.now.since(self.leading_since) },
                Some(Some(since)) => Fact::Unknown { last: Some(report.into()), for_duration: self.now.since(since) },
            };
            let view = NodeView {
                node: name.clone(),
                site: node.site.clone(),
                report,
                last_grant: node.last_grant,
                last_live: node.report.postgres.live.clone().or_else(|| node.last_live.clone()),
                not_streaming_for: node.not_streaming_since.map(|since| self.now.since(since)),
            };
            nodes.insert(name.clone(), view);
        }
        View {
            now: self.now,
            wall: self.wall(),
            leading_since: self.leading_since,
            leads_for: None,
            record: self.record.clone().map(|record| ClusterRecord { members: self.members(), ..record }),
            nodes,
            proxies: self.witnesses.proxies(self.now),
            sighting: self.witnesses.sighting(),
            outlooks: Default::default(),
        }
    }

    fn members(&self) -> BTreeMap<NodeName, Member> {
        let member = |node: &Node| Member { site: node.report.site.clone(), address: node.report.address.clone() };
        self.nodes.iter().map(|(name, node)| (name.clone(), member(node))).collect()
    }

    fn rows(&self, primary: &NodeName, live: &LiveReport) -> Vec<StandbyRow> {
        let applied = live.synchronous.as_ref().map_or(&[][..], |applied| applied.names.as_slice());
        let standbys = self.nodes.iter().filter(|(name, node)| {
            let streams = node.report.postgres.live.as_ref().is_some_and(|live| live.receiver.is_some());
            *name != primary && streams && node.not_streaming_since.is_none()
        });
        standbys
            .map(|(name, node)| StandbyRow {
                node: name.to_string(),
                state: "streaming".to_owned(),
                sync_state: if applied.contains(name) { "sync" } else { "async" }.to_owned(),
                flush_lsn: node.report.postgres.live.as_ref().map(|live| live.flush_lsn),
                replay_lsn: node.report.postgres.live.as_ref().map(|live| live.replay_lsn),
            })
            .collect()
    }
}

fn address(name: &NodeName) -> Address {
    Address::new(name.as_str(), 5432)
}

const IDENTIFIER: SystemIdentifier = SystemIdentifier(7_396_000_000_000_000_123);

fn failing(duration: Duration, error: &str) -> Probe {
    Probe { failing_for: Some(duration), last_error: Some(error.to_owned()), ..Probe::default() }
}

fn receiver(sender: Option<Address>) -> ReceiverReport {
    ReceiverReport { sender, streaming: true, last_message_age: Some(Duration::from_millis(100)) }
}

fn edit_live(report: &mut Report, edit: impl FnOnce(&mut LiveReport)) {
    if let Some(live) = &mut report.postgres.live {
        edit(live);
    }
}

fn edit_control(report: &mut Report, edit: impl FnOnce(&mut ControlData)) {
    if let Some(control) = &mut report.postgres.control {
        edit(control);
    }
}

fn run(report: &mut Report, in_recovery: bool) {
    let state = if in_recovery { "in archive recovery" } else { "in production" };
    report.postgres.state = PostgresState::Running;
    edit_control(report, |control| control.cluster_state = state.to_owned());
    report.postgres.live = Some(LiveReport {
        system_identifier: IDENTIFIER,
        in_recovery,
        history: History::root(Timeline(7)),
        started_at_unix_seconds: None,
        major_version: 15,
        flush_lsn: Lsn(0x500_0000),
        replay_lsn: Lsn(0x500_0000),
        replay_paused: false,
        receiver: in_recovery.then(|| receiver(None)),
        standbys: Vec::new(),
        synchronous: None,
        waits: None,
        upkeep: None,
        work: None,
        connections: None,
        clock: Default::default(),
    });
}

fn stop(report: &mut Report) {
    report.postgres.state = PostgresState::Stopped;
    report.postgres.live = None;
    report.standing.lease_epoch = None;
    edit_control(report, |control| {
        if control.cluster_state == "in archive recovery" {
            control.cluster_state = "shut down in recovery".to_owned();
        }
    });
}

fn new_node(name: &NodeName) -> Node {
    let site = SiteName::new("a").expect("valid");
    let control = ControlData {
        system_identifier: IDENTIFIER,
        cluster_state: "in production".to_owned(),
        timeline: Timeline(7),
        checkpoint: Lsn(0x500_0000),
        major_version: 15,
    };
    let report = Report {
        cluster: ClusterName::new("main").expect("valid"),
        node: name.clone(),
        site: site.clone(),
        address: address(name),
        boot: BootId("boot".to_owned()),
        incarnation: "incarnation".to_owned(),
        sequence: 1,
        sent_at: Moment(0),
        version: "0".to_owned(),
        standing: Standing::default(),
        postgres: PostgresReport {
            state: PostgresState::Stopped,
            control: Some(control),
            damage: None,
            live: None,
            probes: Probes::default(),
            disk: None,
            memory: None,
        },
        tags: Tags::default(),
        tasks: BTreeMap::new(),
        protection: None,
    };
    Node { site, report, silent: None, not_streaming_since: None, last_grant: None, last_live: None }
}

fn new_record(holder: &NodeName, durability: DurabilityMode) -> ClusterRecord {
    ClusterRecord {
        epoch: Epoch(3),
        number: RecordNumber(10),
        holder_confirmed: true,
        synchronous_number: RecordNumber(9),
        ..ClusterRecord::first(
            ClusterName::new("main").expect("valid"),
            IDENTIFIER,
            holder.clone(),
            address(holder),
            durability,
        )
    }
}
