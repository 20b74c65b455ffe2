//! What a controller knows, and its operation, in the words of the real code. No step of the search enters.

use std::time::Duration;

use super::super::words::*;
use super::agents::{epoch, seconds, timers};
use super::*;
use stormglass::domain::command::CommandOutput;
use stormglass::domain::lsn::History;
use stormglass::domain::report::{LiveReport, PostgresState, Promised, StandbyRow, Standing, SynchronousReport};
use stormglass::domain::*;

/// Long enough for a standby to be given up.
const LONG: Duration = Duration::from_secs(3600);

impl Renewal {
    /// The controllers' policy; a new leader waits for `ttl`.
    pub(super) fn policy(&self) -> Policy {
        let drift = if self.removed == Removed::DriftInWait { 0 } else { DRIFT };
        let mut policy = Policy::for_rto(Duration::from_secs(10));
        policy.durability = self.bounds.mode;
        policy.timers = timers(drift);
        policy.report_stale_after = Duration::from_micros(1);
        if self.bounds.ttl > 0 && self.removed != Removed::WaitCoversLeadership {
            policy.leadership_ttl = seconds(self.bounds.ttl);
        }
        policy
    }

    /// What the leader may grant within.
    pub(super) fn leads_for(&self, left: u8) -> Option<Duration> {
        let limited = self.bounds.ttl > 0 && self.removed != Removed::GrantEndsWithLeadership;
        limited.then_some(seconds(left))
    }

    pub(super) fn record(&self, record: &Record) -> ClusterRecord {
        let mut real = record.real();
        real.durability = self.bounds.mode;
        if self.bounds.mode == DurabilityMode::Async {
            real.alone_since = None;
        }
        real
    }

    /// A report as it was heard; `live` where it matters what PostgreSQL answers.
    pub(super) fn reported(&self, node: u8, said: &Said, live: Option<LiveReport>) -> Report {
        let acknowledged = (said.acknowledged > 0).then_some(RecordNumber(u64::from(said.acknowledged)));
        let promised = said
            .promised
            .map(|promised| Promised { epoch: Epoch(u64::from(promised.epoch)), remaining: seconds(promised.left) });
        let standing = Standing {
            highest_epoch: Epoch(u64::from(said.seen)),
            highest_number: RecordNumber(u64::from(said.number)),
            lease_epoch: epoch(said.lease),
            fence_confirmed: epoch(said.fenced),
            consented: epoch(said.consented),
            acknowledged,
            promised,
            ..Standing::default()
        };
        let state = if live.is_some() { PostgresState::Running } else { PostgresState::Stopped };
        report(node, ago(said.age), standing, state, live)
    }

    /// All that `leader` knows. `streaming`: who is connected to the primary; `silent`: who is not heard at the moment.
    pub(super) fn view(&self, leader: &Leader, streaming: u8, silent: u8) -> View {
        let mut record = leader.record;
        let holder = record.holder;
        if self.removed == Removed::LoneHolderNeverExpires && record.eligible == 0 {
            record.eligible = mask(&names(7)) & ((1 << self.bounds.nodes) - 1) & !bit(holder);
        }
        if let Some(moving) = &leader.moving
            && self.removed == Removed::ExpiryBindsEligible
            && moving.to != holder
        {
            record.eligible |= bit(moving.to);
        }
        let nodes = self.all().map(|node| {
            let report = match &leader.heard[usize::from(node)] {
                Some(heard) => {
                    let mut heard = *heard;
                    if self.removed == Removed::AcknowledgementNamesNumber && heard.acknowledged > 0 {
                        heard.acknowledged = record.number;
                    }
                    let runs = node != holder || heard.writes;
                    let live = runs.then(|| self.live(&record, node, heard.writes, streaming));
                    let value = self.reported(node, &heard, live);
                    if silent & bit(node) != 0 {
                        Fact::Unknown { last: Some(value.into()), for_duration: LONG }
                    } else {
                        Fact::Known { value: value.into(), age: Duration::ZERO }
                    }
                }
                None => Fact::Unknown { last: None, for_duration: Duration::ZERO },
            };
            NodeView {
                node: name(node),
                site: site(),
                report,
                last_grant: (node == holder).then_some(ago(leader.granted)),
                last_live: None,
                not_streaming_for: (streaming & bit(node) == 0).then_some(LONG),
            }
        });
        let mut view = view(&record, ago(leader.leading), nodes);
        view.leads_for = self.leads_for(self.bounds.ttl);
        view.record = Some(self.record(&record));
        view
    }

    fn live(&self, record: &Record, node: u8, is_primary: bool, streaming: u8) -> LiveReport {
        let synchronous = |standby| record.synchronous & bit(standby) != 0;
        let rows = self.all().filter(|standby| is_primary && *standby != node && streaming & bit(*standby) != 0);
        LiveReport {
            system_identifier: SystemIdentifier(1),
            in_recovery: !is_primary,
            history: History::root(Timeline(1)),
            started_at_unix_seconds: None,
            major_version: 15,
            flush_lsn: Lsn(1),
            replay_lsn: Lsn(1),
            replay_paused: false,
            receiver: None,
            standbys: rows
                .map(|standby| StandbyRow {
                    node: name(standby).to_string(),
                    state: "streaming".to_owned(),
                    sync_state: if synchronous(standby) { "sync" } else { "async" }.to_owned(),
                    flush_lsn: None,
                    replay_lsn: None,
                })
                .collect(),
            // Names are applied at once: what may go wrong with them is the ledger's own search.
            synchronous: is_primary.then(|| SynchronousReport {
                number: RecordNumber(u64::from(record.synchronous_number)),
                names: names(record.synchronous).into_iter().collect(),
                barrier_lsn: Lsn(1),
            }),
            connections: None,
            clock: Default::default(),
            waits: None,
            upkeep: None,
            work: None,
        }
    }
}

pub(super) fn real_operation(moving: &Moving) -> Operation {
    let journal = moving.journal.iter().map(|(step, attempt, how, epoch)| {
        let state = match *how {
            STARTED => StepState::Started,
            SUCCEEDED => StepState::Succeeded { output: CommandOutput { lsn: Some(Lsn(1)), note: None } },
            FAILED => failed(),
            _ => unknown(),
        };
        event(*step, u32::from(*attempt), state, *epoch)
    });
    let after = (moving.after > 0).then_some(moving.after);
    let mut operation = operation(moving.from, moving.to, moving.before, after, journal.collect());
    match moving.kind {
        Kind::Failover => {}
        Kind::Loss => {
            operation.kind = OperationKind::Failover {
                from: name(moving.from),
                to: name(moving.to),
                accept_data_loss: true,
                old_primary_is_off: false,
            };
        }
        Kind::Switchover => {
            operation.kind = OperationKind::Switchover { from: name(moving.from), to: name(moving.to) };
        }
    }
    if moving.undoing {
        operation.status = OperationStatus::Undoing;
    }
    operation
}
