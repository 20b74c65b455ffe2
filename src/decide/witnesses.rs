//! What every witness says at this moment, as sentences that an operation keeps: who said what when, for people.
//!
//! Reads the view and decides nothing. A new kind of witness is one function more in [`WITNESSES`].

use std::time::Duration;

use crate::domain::epoch::Epoch;
use crate::domain::evidence::{OBSERVATIONS_MAX, Observation, Occasion, Witness};
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, OperationKind, StepName};
use crate::domain::policy::Policy;
use crate::domain::proof;
use crate::domain::record::ClusterRecord;
use crate::domain::report::{PostgresState, Probe, Report};
use crate::domain::view::{Fact, View};

/// What is asked of every witness.
pub struct Hearing<'a> {
    /// All that is known.
    pub view: &'a View,
    /// The rules, for the waits.
    pub policy: &'a Policy,
    /// What is under way.
    pub operation: &'a Operation,
}

/// What one witness says: whose word, about which node, what.
type Statement = (Witness, String, NodeName, String);

/// What proves that the old primary cannot write. First: if there is no room for all, the others are left out.
const OF_THE_PROOF: &[fn(&Hearing<'_>) -> Vec<Statement>] = &[books, primary_agent];

/// Every other kind of witness, in the order in which they are written down.
const WITNESSES: &[fn(&Hearing<'_>) -> Vec<Statement>] = &[promises, standbys, proxies];

/// Asks every witness; for [`Occasion::Fenced`] only those of the proof.
pub fn hear(hearing: &Hearing<'_>, occasion: Occasion) -> Vec<Observation> {
    let (at, wall) = (hearing.view.now, hearing.view.wall);
    let wrap =
        |(witness, source, node, statement)| Observation { at, wall, occasion, witness, source, node, statement };
    let others = if occasion == Occasion::Fenced { &[] } else { WITNESSES };
    OF_THE_PROOF.iter().chain(others).flat_map(|witness| witness(hearing)).map(wrap).collect()
}

/// Adds what was heard to the operation, as far as there is room.
pub fn keep(operation: &mut Operation, mut heard: Vec<Observation>) {
    let room = OBSERVATIONS_MAX.saturating_sub(operation.evidence.len());
    if heard.len() > room {
        let left_out = heard.len() - room;
        heard.truncate(room);
        if let Some(last) = heard.last_mut() {
            last.statement.push_str(&format!("; {left_out} more statements are left out"));
        }
    }
    operation.evidence.extend(heard);
}

impl Hearing<'_> {
    /// The primary that the operation moves away from, or works against.
    fn primary(&self) -> Option<NodeName> {
        match &self.operation.kind {
            OperationKind::Failover { from, .. }
            | OperationKind::Switchover { from, .. }
            | OperationKind::Restore { from, .. } => Some(from.clone()),
            OperationKind::Rejoin { .. }
            | OperationKind::Fence { .. }
            | OperationKind::Backup { .. }
            | OperationKind::Drill { .. }
            | OperationKind::Retrain { .. }
            | OperationKind::Sequence { .. } => self.view.record.as_ref().map(|record| record.holder.clone()),
        }
    }

    fn is_raised(&self, record: &ClusterRecord) -> bool {
        record.epoch > self.operation.epoch_before
    }
}

fn controller(node: &NodeName, statement: String) -> Statement {
    (Witness::Controller, "controller".to_owned(), node.clone(), statement)
}

/// The controller's books: the record, the last grant with its wait, and the proof.
fn books(hearing: &Hearing<'_>) -> Vec<Statement> {
    let (Some(primary), Some(record)) = (hearing.primary(), &hearing.view.record) else { return Vec::new() };
    let mut said = vec![controller(
        &primary,
        format!(
            "record {} of epoch {}: holder {}, eligible {}, proposed {}",
            record.number,
            record.epoch,
            record.holder,
            names(record.eligible.iter()),
            names(record.proposed.iter())
        ),
    )];
    if !hearing.operation.kind.moves_primary() {
        return said;
    }
    // Once the epoch was raised, the record speaks of the next holder: what proved the old one's end is in the journal.
    if hearing.is_raised(record) {
        let proved = [StepName::Fence, StepName::Demote].into_iter().find_map(|step| hearing.operation.output(step));
        let words =
            proved.and_then(|output| output.note.clone()).unwrap_or_else(|| "its agent confirmed it".to_owned());
        said.push(controller(&primary, format!("cannot write in epoch {}: {words}", hearing.operation.epoch_before)));
        return said;
    }
    said.push(controller(&primary, last_grant(hearing, record, &primary)));
    said.push(controller(
        &primary,
        match proof::proof(hearing.view, record, hearing.policy) {
            Ok(proof) => format!("proof that it cannot write: {}", proof.reason(record)),
            Err(missing) => format!("no proof yet that it cannot write: {missing}"),
        },
    ));
    said
}

fn last_grant(hearing: &Hearing<'_>, record: &ClusterRecord, primary: &NodeName) -> String {
    let view = hearing.view;
    let expires = proof::expiry(view, record, hearing.policy);
    let end = if view.now < expires {
        format!("every lease has run out in {}", seconds(expires.since(view.now)))
    } else {
        format!("every lease has run out since {}", seconds(view.now.since(expires)))
    };
    match view.nodes.get(primary).and_then(|node| node.last_grant) {
        Some(granted) => format!(
            "its lease was last renewed, or seen renewed, {} ago; one wait is {}; {end}",
            seconds(view.now.since(granted)),
            seconds(hearing.policy.timers.wait().max(record.longest_wait))
        ),
        None => format!(
            "this controller, which leads for {}, has renewed no lease of it; {end}",
            seconds(view.now.since(view.leading_since))
        ),
    }
}

/// The word of the old primary's own agent.
fn primary_agent(hearing: &Hearing<'_>) -> Vec<Statement> {
    hearing.primary().map(|primary| agent(hearing.view, &primary)).into_iter().collect()
}

fn agent(view: &View, node: &NodeName) -> Statement {
    let words = match heard(view, node) {
        None => "never heard of by this controller".to_owned(),
        Some((report, age, is_known)) => {
            let silent = if is_known { "" } else { ", silent since" };
            format!("reported {} ago{silent}: {}", seconds(age), facts(report))
        }
    };
    (Witness::Agent, node.to_string(), node.clone(), words)
}

/// The last report, its age, and whether it counts as known.
fn heard<'view>(view: &'view View, node: &NodeName) -> Option<(&'view Report, Duration, bool)> {
    match &view.nodes.get(node)?.report {
        Fact::Known { value, age } => Some((value.as_ref(), *age, true)),
        Fact::Unknown { last: Some(last), for_duration } => Some((last.as_ref(), *for_duration, false)),
        Fact::Unknown { last: None, .. } | Fact::Absent => None,
    }
}

fn facts(report: &Report) -> String {
    let state = match report.postgres.state {
        PostgresState::NoData => "no data",
        PostgresState::Stopped => "PostgreSQL is stopped",
        PostgresState::Starting => "PostgreSQL is starting",
        PostgresState::Running => "PostgreSQL runs",
        PostgresState::Unresponsive => "PostgreSQL runs and does not answer",
    };
    let mut words = vec![state.to_owned()];
    if let Some(live) = &report.postgres.live {
        let role = if live.in_recovery { "standby" } else { "primary" };
        words.push(format!("{role} on timeline {} at {}", live.history.timeline, live.flush_lsn));
    }
    let is_standby = report.postgres.live.as_ref().is_some_and(|live| live.in_recovery);
    let probes = &report.postgres.probes;
    words.extend(probe("connect probe", &probes.connect));
    // Nothing is written on a standby.
    words.extend(probe("write probe", &probes.write).filter(|_| !is_standby));
    let standing = &report.standing;
    words.push(match (standing.lease_epoch, standing.lease_remaining) {
        (Some(epoch), Some(left)) => format!("holds the lease of epoch {epoch} for another {}", seconds(left)),
        _ => "holds no lease".to_owned(),
    });
    words.extend(standing.fence_confirmed.map(|epoch| format!("confirmed its fence in epoch {epoch}")));
    words.extend(standing.consented.map(|epoch| format!("consented to epoch {epoch}")).filter(|_| is_standby));
    words.join(", ")
}

fn probe(name: &str, probe: &Probe) -> Option<String> {
    match (probe.failing_for, probe.last_success_age) {
        (Some(failing), _) => {
            let error = probe.last_error.as_deref().unwrap_or("no answer");
            Some(format!("{name} fails for {} ({error})", seconds(failing)))
        }
        (None, Some(age)) => Some(format!("{name} passed {} ago", seconds(age))),
        (None, None) => None,
    }
}

/// Promises that bind: with them the old primary may have renewed its lease without a controller.
fn promises(hearing: &Hearing<'_>) -> Vec<Statement> {
    let Some(primary) = hearing.primary().filter(|_| hearing.operation.kind.moves_primary()) else { return Vec::new() };
    let standbys = hearing.view.nodes.keys().filter(|node| **node != primary);
    standbys
        .filter_map(|node| {
            let (epoch, left) = promise_left(hearing.view, node)?;
            let words = format!("not to be promoted while epoch {epoch} is renewed, for another {}", seconds(left));
            Some((Witness::Promise, node.to_string(), node.clone(), words))
        })
        .collect()
}

/// The promise of `node` that still binds, and for how long.
pub fn promise_left(view: &View, node: &NodeName) -> Option<(Epoch, Duration)> {
    let (report, age, _) = heard(view, node)?;
    let promised = report.standing.promised?;
    let left = promised.remaining.saturating_sub(age);
    (!left.is_zero()).then_some((promised.epoch, left))
}

/// The standbys' agents, and their WAL receivers: does the old primary still send?
fn standbys(hearing: &Hearing<'_>) -> Vec<Statement> {
    let Some(primary) = hearing.primary() else { return Vec::new() };
    let subject = hearing.operation.kind.subject();
    let is_asked = |node: &NodeName| hearing.operation.kind.moves_primary() || node == subject;
    let mut said = Vec::new();
    for node in hearing.view.nodes.keys().filter(|node| **node != primary && is_asked(node)) {
        said.push(agent(hearing.view, node));
        let live = heard(hearing.view, node).and_then(|(report, age, _)| Some((report.postgres.live.as_ref()?, age)));
        let Some((live, age)) = live.filter(|(live, _)| live.in_recovery) else { continue };
        let words = match &live.receiver {
            Some(receiver) => {
                let from = receiver.sender.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string);
                let state = if receiver.streaming { "streams" } else { "does not stream" };
                let message = receiver.last_message_age.map_or_else(
                    || "no message yet".to_owned(),
                    |last| format!("last message {} ago", seconds(last + age)),
                );
                format!("{state} from {from}, {message}")
            }
            None => "no WAL receiver runs".to_owned(),
        };
        said.push((Witness::WalReceiver, node.to_string(), primary.clone(), words));
    }
    said
}

/// Where the proxies lead.
fn proxies(hearing: &Hearing<'_>) -> Vec<Statement> {
    let Some(primary) = hearing.primary().filter(|_| hearing.operation.kind.moves_primary()) else { return Vec::new() };
    let word = |report: &Fact<crate::domain::report::ProxyReport>| {
        let (report, age) = match report {
            Fact::Known { value, age } => (value, *age),
            Fact::Unknown { last: Some(last), for_duration } => (last, *for_duration),
            Fact::Unknown { last: None, .. } | Fact::Absent => return "never heard of by this controller".to_owned(),
        };
        let target = report.write_target.as_ref().map_or_else(|| "nowhere".to_owned(), ToString::to_string);
        let holding = if report.holding { ", new connections wait" } else { "" };
        let error = report.error.as_ref().map_or_else(String::new, |error| format!(", {error}"));
        format!("reported {} ago: writes lead to {target}{holding}{error}", seconds(age))
    };
    let said = hearing.view.proxies.values();
    said.map(|proxy| (Witness::Proxy, proxy.proxy.to_string(), primary.clone(), word(&proxy.report))).collect()
}

fn names<'a>(nodes: impl Iterator<Item = &'a NodeName>) -> String {
    let names: Vec<&str> = nodes.map(NodeName::as_str).collect();
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::tests::{edit, node, operation, policy, record, view};
    use crate::domain::command::CommandOutput;
    use crate::domain::epoch::RecordNumber;
    use crate::domain::operation::{StepEvent, StepState};
    use crate::domain::report::Promised;

    fn failover() -> Operation {
        operation(OperationKind::Failover {
            from: node("n1"),
            to: node("n2"),
            accept_data_loss: false,
            old_primary_is_off: false,
        })
    }

    fn words(heard: &[Observation], witness: Witness, source: &str) -> Vec<String> {
        let of = heard.iter().filter(|said| said.witness == witness && said.source == source);
        of.map(|said| said.statement.clone()).collect()
    }

    #[test]
    fn every_witness_is_heard_with_the_age_of_its_word() {
        let (mut view, policy) = (view(&record()), policy());
        let last = view.last_report(&node("n1")).cloned();
        let silent = Fact::Unknown { last: last.map(Into::into), for_duration: Duration::from_secs(2) };
        view.nodes.get_mut(&node("n1")).expect("there").report = silent;
        edit(&mut view, "n2", |report| {
            report.standing.promised = Some(Promised { epoch: Epoch(3), remaining: Duration::from_secs(1) });
            let live = report.postgres.live.as_mut().expect("runs");
            live.receiver.as_mut().expect("streams").last_message_age = Some(Duration::from_millis(1500));
        });
        let failover = failover();
        let heard = hear(&Hearing { view: &view, policy: &policy, operation: &failover }, Occasion::Decided);
        let primary = words(&heard, Witness::Agent, "n1");
        assert!(primary[0].starts_with("reported 2.000 s ago, silent since: PostgreSQL runs, primary"), "{primary:?}");
        assert_eq!(words(&heard, Witness::WalReceiver, "n2"), ["streams from ?, last message 1.500 s ago"]);
        let promise = "not to be promoted while epoch 3 is renewed, for another 1.000 s";
        assert_eq!(words(&heard, Witness::Promise, "n2"), [promise]);
        let books = words(&heard, Witness::Controller, "controller");
        assert!(books[1].contains("seen renewed, 0.000 s ago; one wait is 3.050 s"), "{books:?}");
        assert!(books[2].starts_with("no proof yet that it cannot write: n1: lease may run"), "{books:?}");
        let again = hear(&Hearing { view: &view, policy: &policy, operation: &failover }, Occasion::Fenced);
        assert!(again.iter().all(|said| said.node == node("n1")), "only the proof: {again:?}");
    }

    #[test]
    fn once_the_epoch_was_raised_the_journal_says_what_proved_the_fence() {
        let mut record = record();
        (record.epoch, record.number, record.holder) = (Epoch(4), RecordNumber(11), node("n2"));
        record.eligible.clear();
        let (view, policy) = (view(&record), policy());
        let mut failover = failover();
        let note = Some("the lease of n1 has certainly run out".to_owned());
        failover.journal.push(StepEvent {
            step: StepName::Fence,
            attempt: 1,
            state: StepState::Succeeded { output: CommandOutput { lsn: None, note } },
            epoch: Epoch(3),
            at: view.now,
            wall: view.wall,
        });
        let heard = hear(&Hearing { view: &view, policy: &policy, operation: &failover }, Occasion::Promoted);
        let books = words(&heard, Witness::Controller, "controller");
        assert_eq!(books[1], "cannot write in epoch 3: the lease of n1 has certainly run out");
        assert_eq!(books.len(), 2, "{books:?}");
    }

    #[test]
    fn an_operation_keeps_a_bounded_number_and_says_what_is_left_out() {
        let (view, policy, mut failover) = (view(&record()), policy(), failover());
        for _ in 0..OBSERVATIONS_MAX {
            let heard = hear(&Hearing { view: &view, policy: &policy, operation: &failover }, Occasion::Decided);
            keep(&mut failover, heard);
        }
        assert_eq!(failover.evidence.len(), OBSERVATIONS_MAX);
        let left_out = failover.evidence.iter().filter(|said| said.statement.contains("more statements are left out"));
        assert!(left_out.count() <= 1, "said once");
    }
}
