//! Would we survive? Every precondition of a failover and of a recovery, looked at before it is needed.
//!
//! Reads the view and decides nothing. A new check is one function more in [`CHECKS`]; a fact that nobody knows is never called good.

use std::collections::BTreeSet;
use std::time::Duration;

use super::candidate::{self, Demand};
use super::primary::{self, Condition};
use super::{doctor_outside, doctor_traffic, strain};
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, OperationStatus};
use crate::domain::policy::{DurabilityMode, Policy};
use crate::domain::readiness::{Check, Circumstances, Readiness, Verdict};
use crate::domain::report::{LiveReport, StandbyRow};
use crate::domain::timing;
use crate::domain::view::{Fact, View};
use crate::domain::witness;

/// An inactive slot that keeps more WAL than this fills a disk in the end.
const SLOT_RETAINED_BYTES: u64 = 1 << 30;
/// Below this PostgreSQL is near the end of its disk.
const DISK_FREE_BYTES: u64 = 1 << 30;
/// Below this the next burst of WAL stops the writers.
const DISK_FREE_BYTES_MIN: u64 = 128 << 20;
/// Wall clocks decide nothing here, but logs and certificates are read by them.
const CLOCK_SKEW: Duration = Duration::from_secs(2);

/// What an examination rests on.
pub struct Patient<'a> {
    /// All that is known.
    pub view: &'a View,
    /// The rules.
    pub policy: &'a Policy,
    /// Those under way and the latest ended ones.
    pub operations: &'a [Operation],
    /// What no agent reports.
    pub circumstances: &'a Circumstances,
    /// The cluster's name, for the commands that are proposed.
    pub cluster: &'a str,
}

type Examination = fn(&Patient<'_>) -> Vec<Check>;

/// Every check, in the order in which they are shown.
const CHECKS: &[Examination] = &[
    writable,
    agents,
    knock,
    candidates,
    other_site,
    ledger,
    lag,
    slots,
    archiver,
    doctor_outside::backups,
    doctor_outside::repository,
    doctor_outside::drills,
    proxies,
    doctor_traffic::backends,
    doctor_outside::names,
    doctor_outside::transport,
    doctor_outside::certificates,
    clocks,
    disks,
    strains,
    watchdog,
    timers,
    doctor_outside::controllers,
    automation,
    stuck,
    doctor_outside::sequences,
    doctor_outside::stacks,
    doctor_outside::channels,
];

/// Looks at everything.
pub fn examine(patient: &Patient<'_>) -> Readiness {
    let checks = CHECKS.iter().flat_map(|examination| examination(patient)).collect();
    Readiness::new(patient.cluster, checks, patient.view.wall)
}

/// A finding about the whole cluster.
pub(super) fn of(check: &str, verdict: Verdict, detail: impl Into<String>) -> Check {
    Check { check: check.to_owned(), subject: None, verdict, detail: detail.into(), next: None }
}

impl Patient<'_> {
    fn primary(&self) -> Option<&LiveReport> {
        let record = self.view.record.as_ref()?;
        self.view.report(&record.holder)?.postgres.live.as_ref()
    }

    fn row(&self, node: &NodeName) -> Option<&StandbyRow> {
        self.primary()?.standbys.iter().find(|row| row.node == node.as_str())
    }

    fn standbys(&self) -> impl Iterator<Item = &NodeName> {
        let holder = self.view.record.as_ref().map(|record| &record.holder);
        self.view.nodes.keys().filter(move |node| Some(*node) != holder)
    }

    pub(super) fn command(&self, verb: &str) -> Option<String> {
        Some(format!("stormglass {verb} {}", self.cluster))
    }
}

impl Check {
    pub(super) fn about(self, subject: impl ToString) -> Self {
        Self { subject: Some(subject.to_string()), ..self }
    }

    pub(super) fn then(self, next: Option<String>) -> Self {
        Self { next, ..self }
    }
}

fn words(reasons: &[crate::domain::plan::Reason]) -> String {
    reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn writable(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "primary";
    let Some(record) = &patient.view.record else {
        return vec![of(NAME, Verdict::Failing, "there is no first epoch yet").then(patient.command("explain"))];
    };
    let condition = primary::condition(patient.view, record, patient.policy);
    let check = match condition {
        Condition::Writable => {
            of(NAME, Verdict::Ok, format!("{} accepts writes in epoch {}", record.holder, record.epoch))
        }
        other => of(NAME, Verdict::Failing, words(&other.reasons(record))).then(patient.command("explain")),
    };
    vec![check.about(&record.holder)]
}

fn agents(patient: &Patient<'_>) -> Vec<Check> {
    let nodes = patient.view.nodes.values().map(|node| (node.node.to_string(), age(&node.report)));
    let proxies = patient.view.proxies.values().map(|proxy| (proxy.proxy.to_string(), age(&proxy.report)));
    let silent: Vec<Check> = nodes
        .chain(proxies)
        .filter_map(|(name, heard)| {
            let detail = heard.err()?;
            let check = of("agents", Verdict::Failing, detail).about(&name);
            Some(check.then(Some(format!("systemctl status stormglass-agent (on the host of {name})"))))
        })
        .collect();
    if silent.is_empty() {
        let count = patient.view.nodes.len() + patient.view.proxies.len();
        return vec![of("agents", Verdict::Ok, format!("all {count} agents report"))];
    }
    silent
}

/// `Err`: it is not heard, in words.
fn age<T>(report: &Fact<T>) -> Result<(), String> {
    match report {
        Fact::Known { .. } => Ok(()),
        Fact::Unknown { last: Some(_), for_duration } => {
            Err(format!("its agent has been silent for {:.1} s", for_duration.as_secs_f64()))
        }
        Fact::Unknown { last: None, .. } | Fact::Absent => Err("its agent was never heard".to_owned()),
    }
}

/// Whether this controller reaches the primary's PostgreSQL past its agent: a witness that a firewall takes away without a sign before the
/// night on which the agent is silent. Judged only while the primary is known to answer.
fn knock(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "knock";
    let Patient { view, policy, .. } = patient;
    let Some(record) = &view.record else { return Vec::new() };
    let seen = view.sighting.as_ref().filter(|seen| seen.address == record.holder_address);
    let is_writable = matches!(primary::condition(view, record, policy), Condition::Writable);
    let Some(seen) = seen.filter(|_| is_writable) else { return Vec::new() };
    let address = &record.holder_address;
    let is_recent = seen.answered_at.is_some_and(|at| view.now.since(at) < witness::fresh(policy));
    let check = match &seen.problem {
        Some(problem) if !is_recent => {
            let detail = format!(
                "this controller does not reach PostgreSQL at {address}: {problem}; without that witness an agent that is cut off looks more like a dead primary"
            );
            let ask = format!("pg_isready -h {} -p {} (on the controller's host)", address.host, address.port);
            of(NAME, Verdict::Warning, detail).then(Some(ask))
        }
        _ => of(NAME, Verdict::Ok, format!("this controller reaches PostgreSQL at {address} past its agent")),
    };
    vec![check.about(&record.holder)]
}

fn candidates(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "candidate";
    let Some(record) = &patient.view.record else { return Vec::new() };
    let assessments = candidate::assess(patient.view, record, patient.policy, &Demand::automatic());
    let able: Vec<&NodeName> =
        assessments.iter().filter(|one| one.promotable).map(|assessment| &assessment.node).collect();
    let check = match able[..] {
        [] => {
            let why: Vec<String> = assessments.iter().map(|one| words(&one.reasons)).collect();
            let why = if why.is_empty() { "there is no other node".to_owned() } else { why.join("; ") };
            of(NAME, Verdict::Failing, format!("nobody could take over: {why}")).then(patient.command("explain"))
        }
        [only] => of(NAME, Verdict::Ok, format!("{only} would take over")),
        [first, ..] => of(NAME, Verdict::Ok, format!("{first} would take over; {} nodes could", able.len())),
    };
    vec![check]
}

fn other_site(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "other_site";
    let Some(record) = &patient.view.record else { return Vec::new() };
    let sites: BTreeSet<_> = patient.view.nodes.values().map(|node| &node.site).collect();
    if sites.len() < 2 {
        return vec![of(NAME, Verdict::NotApplicable, "all nodes stand in one site: losing it loses the cluster")];
    }
    let own = patient.view.nodes.get(&record.holder).map(|node| &node.site);
    let assessments = candidate::assess(patient.view, record, patient.policy, &Demand::automatic());
    let elsewhere = assessments.iter().find(|one| {
        let site = patient.view.nodes.get(&one.node).map(|node| &node.site);
        one.promotable && site != own
    });
    vec![match elsewhere {
        Some(one) => {
            of(NAME, Verdict::Ok, format!("{} stands in another site and would take over from there", one.node))
        }
        None => of(
            NAME,
            Verdict::Warning,
            "no node of another site may be promoted automatically: a lost site needs a human, who may lose commits",
        )
        .then(patient.command("explain")),
    }]
}

fn ledger(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "sync_ledger";
    let Some(record) = &patient.view.record else { return Vec::new() };
    if patient.policy.durability == DurabilityMode::Async {
        let detail = format!("async: up to {} bytes of WAL may be lost by a failover", patient.policy.max_lag_bytes);
        return vec![of(NAME, Verdict::Warning, detail)];
    }
    let names: Vec<String> = record.eligible.iter().map(ToString::to_string).collect();
    vec![match (&record.alone_since, names.is_empty()) {
        (Some(since), _) => {
            let detail = format!("{} has confirmed commits alone since {since}: losing it loses them", record.holder);
            of(NAME, Verdict::Failing, detail).then(patient.command("status"))
        }
        (None, true) => {
            of(NAME, Verdict::Failing, "no standby holds every confirmed commit").then(patient.command("explain"))
        }
        (None, false) => of(NAME, Verdict::Ok, format!("{} holds every confirmed commit", names.join(", "))),
    }]
}

fn lag(patient: &Patient<'_>) -> Vec<Check> {
    let Some(primary) = patient.primary().filter(|live| !live.in_recovery) else { return Vec::new() };
    let one = |node: &NodeName| {
        let check = |verdict, detail: String| of("lag", verdict, detail).about(node);
        let Some(row) = patient.row(node).filter(|row| row.state == "streaming") else {
            let is_failing = check(Verdict::Failing, "the primary does not stream to it".to_owned());
            return is_failing.then(Some(format!("stormglass rejoin {} {node}", patient.cluster)));
        };
        let Some(flushed) = row.flush_lsn else {
            return check(Verdict::Warning, "it has not said how far it flushed".to_owned());
        };
        let behind = primary.flush_lsn.bytes_after(flushed);
        if behind > patient.policy.max_lag_bytes {
            let detail = format!("{behind} bytes behind, limit {}", patient.policy.max_lag_bytes);
            return check(Verdict::Warning, detail).then(Some(format!("stormglass explain {node}")));
        }
        check(Verdict::Ok, format!("streams, {behind} bytes behind"))
    };
    patient.standbys().map(one).collect()
}

fn slots(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "slots";
    let Some(upkeep) = patient.primary().and_then(|live| live.upkeep.as_ref()) else { return Vec::new() };
    let wrong: Vec<Check> = upkeep
        .slots
        .iter()
        .filter_map(|slot| {
            let retained = slot.retained_bytes.unwrap_or(0);
            let check = match slot.wal_status.as_deref() {
                Some(lost @ ("lost" | "unreserved")) => {
                    let detail = format!("slot {} is {lost}: whoever used it must be copied anew", slot.name);
                    of(NAME, Verdict::Failing, detail)
                }
                _ if !slot.active && retained > SLOT_RETAINED_BYTES => {
                    let detail = format!("nobody uses slot {}, and it keeps {retained} bytes of WAL", slot.name);
                    of(NAME, Verdict::Warning, detail)
                }
                _ => return None,
            };
            Some(check.then(patient.command("status")))
        })
        .collect();
    if wrong.is_empty() {
        return vec![of(NAME, Verdict::Ok, format!("{} slots, none lost or left behind", upkeep.slots.len()))];
    }
    wrong
}

fn archiver(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "archiving";
    let Some(archiver) = patient.primary().and_then(|live| live.upkeep.as_ref()?.archiver.as_ref()) else {
        return Vec::new();
    };
    if !archiver.is_on {
        let verdict = if patient.circumstances.backup.is_some() { Verdict::Failing } else { Verdict::Warning };
        return vec![of(NAME, verdict, "archive_mode is off: nothing can be restored to a point in time")];
    }
    let failing = archiver.last_failed_at > archiver.last_archived_at;
    vec![match (&archiver.last_archived_at, failing) {
        (_, true) => {
            let segment = archiver.last_failed_wal.as_deref().unwrap_or("a segment");
            let detail = format!("{segment} was not archived, {} failures so far: WAL piles up", archiver.failed);
            of(NAME, Verdict::Failing, detail).then(patient.command("backups"))
        }
        (Some(at), false) => of(NAME, Verdict::Ok, format!("the last segment was archived at {at}")),
        (None, false) => of(NAME, Verdict::Ok, "archive_mode is on, and no segment was due yet"),
    }]
}

fn proxies(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "proxies";
    if patient.view.proxies.is_empty() {
        return vec![of(
            NAME,
            Verdict::NotApplicable,
            "no proxy is configured: clients must find the primary themselves",
        )];
    }
    let Some(record) = &patient.view.record else { return Vec::new() };
    let one = |(name, proxy): (&crate::domain::ids::ProxyName, &crate::domain::view::ProxyView)| {
        let report = proxy.report.known()?;
        let check = |verdict, detail: String| of(NAME, verdict, detail).about(name).then(patient.command("status"));
        if let Some(error) = &report.error {
            return Some(check(Verdict::Failing, error.clone()));
        }
        match &report.write_target {
            None => return Some(check(Verdict::Failing, "HAProxy does not answer".to_owned())),
            Some(target) if *target != record.holder_address => {
                let detail = format!("its write port leads to {target}, the primary is at {}", record.holder_address);
                return Some(check(Verdict::Failing, detail));
            }
            Some(_) => {}
        }
        let failing = report.path.as_ref().and_then(|path| path.check.failing_for.map(|since| (since, &path.check)));
        Some(match (failing, &report.path) {
            (Some((since, probe)), _) => {
                let error = probe.last_error.as_deref().unwrap_or("no answer");
                check(Verdict::Failing, format!("no write gets through for {:.1} s: {error}", since.as_secs_f64()))
            }
            (None, Some(_)) => of(NAME, Verdict::Ok, "leads to the primary, and a write gets through").about(name),
            (None, None) => of(NAME, Verdict::Ok, "leads to the primary; no write is tried through it").about(name),
        })
    };
    patient.view.proxies.iter().filter_map(one).collect()
}

fn clocks(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "clock_skew";
    let mut wrong = Vec::new();
    let mut compared = 0;
    for node in patient.view.nodes.values() {
        let Fact::Known { value, age } = &node.report else { continue };
        let Some(said) = value.postgres.live.as_ref().and_then(|live| live.clock.answered_at) else { continue };
        compared += 1;
        // The answer may be as old as the report that brought it, and one observation more.
        let slack = *age + patient.policy.report_stale_after + CLOCK_SKEW;
        let wall = patient.view.wall;
        let (apart, word) = if said > wall { (said.since(wall), "ahead of") } else { (wall.since(said), "behind") };
        if apart > slack {
            let detail = format!("its clock is {:.1} s {word} this controller's", apart.as_secs_f64());
            let check = of(NAME, Verdict::Warning, detail).about(&node.node);
            wrong.push(check.then(Some(format!("timedatectl (on the host of {})", node.node))));
        }
    }
    if wrong.is_empty() && compared > 0 {
        return vec![of(NAME, Verdict::Ok, format!("{compared} clocks agree with this controller's"))];
    }
    wrong
}

fn disks(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "disk";
    let mut wrong = Vec::new();
    let mut seen = 0;
    for node in patient.view.nodes.values() {
        let Some(disk) = node.report.known().and_then(|report| report.postgres.disk) else { continue };
        seen += 1;
        let free = disk.data_free_bytes.min(disk.wal_free_bytes);
        let verdict = match free {
            0..DISK_FREE_BYTES_MIN => Verdict::Failing,
            DISK_FREE_BYTES_MIN..DISK_FREE_BYTES => Verdict::Warning,
            _ => continue,
        };
        wrong.push(of(NAME, verdict, format!("{free} bytes are left for PostgreSQL")).about(&node.node));
    }
    if wrong.is_empty() && seen > 0 {
        return vec![of(NAME, Verdict::Ok, format!("every one of {seen} nodes has room"))];
    }
    wrong
}

fn strains(patient: &Patient<'_>) -> Vec<Check> {
    let found = strain::strains(patient.view, patient.policy);
    if found.is_empty() {
        return vec![of("strain", Verdict::Ok, "nothing strains the cluster")];
    }
    let one = |reason: &crate::domain::plan::Reason| {
        of("strain", Verdict::Warning, reason.to_string()).then(patient.command("explain"))
    };
    found.iter().map(one).collect()
}

fn watchdog(patient: &Patient<'_>) -> Vec<Check> {
    let is_alone = patient.view.nodes.len() < 2;
    if patient.policy.durability != DurabilityMode::Async && !is_alone {
        let detail = "not needed: a host that was paused can confirm nothing once a standby took over";
        return vec![of("watchdog", Verdict::NotApplicable, detail)];
    }
    let detail = "none is used: a hypervisor that pauses the primary's whole host can wake an old primary for a moment";
    vec![of("watchdog", Verdict::Warning, detail)]
}

fn timers(patient: &Patient<'_>) -> Vec<Check> {
    let broken: Vec<Check> = timing::inequalities(patient.policy)
        .into_iter()
        .filter(|rule| !rule.holds())
        .map(|rule| {
            let verdict = if rule.is_expectation { Verdict::Warning } else { Verdict::Failing };
            of("timers", verdict, rule.to_string()).then(Some("stormglass config check FILE".to_owned()))
        })
        .collect();
    if broken.is_empty() {
        let rto = patient.policy.rto.as_secs_f64();
        return vec![of("timers", Verdict::Ok, format!("every rule between them holds, for a target of {rto} s"))];
    }
    broken
}

fn automation(patient: &Patient<'_>) -> Vec<Check> {
    let Some(record) = &patient.view.record else { return Vec::new() };
    let mut checks = Vec::new();
    match record.paused_until.filter(|until| *until > patient.view.wall) {
        Some(until) => {
            let detail = format!("automatic operations are paused until {until}: nobody fails over");
            checks.push(of("automation", Verdict::Failing, detail).then(patient.command("resume")));
        }
        None => checks.push(of("automation", Verdict::Ok, "automatic failover is on")),
    }
    for node in &record.fenced {
        let check = of("automation", Verdict::Warning, "an operator fenced it").about(node);
        checks.push(check.then(Some(format!("stormglass unfence {} {node}", patient.cluster))));
    }
    checks
}

fn stuck(patient: &Patient<'_>) -> Vec<Check> {
    let stuck = patient.operations.iter().filter(|operation| operation.status == OperationStatus::Stuck);
    let checks: Vec<Check> = stuck
        .map(|operation| {
            let why = operation.message.as_deref().unwrap_or("nobody knows why");
            let detail = format!("{} {} is stuck: {why}", operation.kind.label(), operation.id);
            of("operations", Verdict::Failing, detail).then(Some(format!("stormglass operation show {}", operation.id)))
        })
        .collect();
    if checks.is_empty() {
        return vec![of("operations", Verdict::Ok, "none is stuck")];
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::tests::{edit, node, policy, record, view};
    use crate::domain::certificate::{CertificateFacts, Protection};
    use crate::domain::clock::WallTime;
    use crate::domain::ids::Address;
    use crate::domain::readiness::{BackupFacts, ChannelFacts, NameFacts, StackFacts};
    use crate::domain::record::ClusterRecord;
    use crate::domain::report::{ArchiverReport, DiskReport, SlotReport, UpkeepReport};
    use crate::domain::witness::Sighting;

    fn look(view: &View, circumstances: &Circumstances) -> Readiness {
        examine(&Patient { view, policy: &policy(), operations: &[], circumstances, cluster: "main" })
    }

    /// Verdicts of one kind of check, with whom they are about.
    fn verdicts(readiness: &Readiness, name: &str) -> Vec<(Option<String>, Verdict)> {
        let found = readiness.checks.iter().filter(|check| check.check == name);
        found.map(|check| (check.subject.clone(), check.verdict)).collect()
    }

    fn verdict(view: &View, name: &str) -> Verdict {
        let found = verdicts(&look(view, &Circumstances::default()), name);
        found.into_iter().map(|(_, verdict)| verdict).max().unwrap_or_else(|| panic!("{name} was not looked at"))
    }

    fn upkeep(slots: Vec<SlotReport>, archiver: ArchiverReport) -> View {
        let mut view = view(&record());
        edit(&mut view, "n1", |report| {
            let live = report.postgres.live.as_mut().expect("it runs");
            live.upkeep = Some(UpkeepReport { slots, archiver: Some(archiver), checksum_failures: Some(0) });
        });
        view
    }

    fn archiver(is_on: bool, archived: Option<i64>, failed: Option<i64>) -> ArchiverReport {
        ArchiverReport {
            is_on,
            failed: 3,
            last_archived_at: archived.map(WallTime),
            last_failed_at: failed.map(WallTime),
            last_failed_wal: Some("000000010000000000000003".to_owned()),
        }
    }

    #[test]
    fn a_healthy_cluster_survives_and_what_is_missing_is_named() {
        let readiness = look(&view(&record()), &Circumstances::default());
        assert!(readiness.survives, "{:#?}", readiness.checks);
        assert_eq!(readiness.worst(), Verdict::Warning, "no backup, one controller");
        assert!(readiness.score > 0.7 && readiness.score < 1.0, "{}", readiness.score);
        assert_eq!(verdicts(&readiness, "backup"), [(None, Verdict::Warning)]);
        assert_eq!(verdicts(&readiness, "drill"), [(None, Verdict::NotApplicable)]);
        assert_eq!(verdicts(&readiness, "lag").len(), 2);
    }

    #[test]
    fn each_failing_check_names_the_next_command() {
        let mut alone = view(&ClusterRecord { alone_since: Some(WallTime(5)), eligible: [].into(), ..record() });
        edit(&mut alone, "n1", |report| {
            report.postgres.live.as_mut().expect("it runs").standbys.retain(|row| row.node != "n3");
        });
        alone.nodes.get_mut(&node("n2")).expect("n2").report =
            Fact::Unknown { last: None, for_duration: Duration::from_secs(9) };
        let readiness = look(&alone, &Circumstances::default());
        assert!(!readiness.survives);
        assert_eq!(verdicts(&readiness, "sync_ledger"), [(None, Verdict::Failing)]);
        assert_eq!(verdicts(&readiness, "agents"), [(Some("n2".to_owned()), Verdict::Failing)]);
        let lag = verdicts(&readiness, "lag");
        assert!(lag.contains(&(Some("n3".to_owned()), Verdict::Failing)), "{lag:?}");
        for check in readiness.checks.iter().filter(|check| check.verdict == Verdict::Failing) {
            assert!(check.next.is_some(), "{check:?}");
        }
    }

    #[test]
    fn a_door_that_is_closed_to_the_controller_is_found_while_the_primary_answers_its_agent() {
        let mut view = view(&record());
        let now = view.now;
        let knocked = |problem: Option<&str>, answered_at| Sighting {
            address: record().holder_address,
            asked_at: now,
            problem: problem.map(ToOwned::to_owned),
            answered_at,
        };
        let long_ago = now.minus(Duration::from_secs(60));
        let cases = [
            (knocked(None, Some(now)), Some(Verdict::Ok)),
            (knocked(Some("timeout"), None), Some(Verdict::Warning)),
            (knocked(Some("timeout"), Some(long_ago)), Some(Verdict::Warning)),
            (knocked(Some("one knock was lost"), Some(now)), Some(Verdict::Ok)),
            (Sighting { address: Address::new("elsewhere", 1), ..knocked(Some("timeout"), None) }, None),
        ];
        for (seen, expected) in cases {
            view.sighting = Some(seen.clone());
            let found = verdicts(&look(&view, &Circumstances::default()), "knock");
            assert_eq!(found.first().map(|found| found.1), expected, "{seen:?}");
        }
        view.sighting = Some(knocked(Some("timeout"), None));
        view.nodes.get_mut(&record().holder).expect("the holder").report =
            Fact::Unknown { last: None, for_duration: Duration::from_secs(9) };
        assert_eq!(verdicts(&look(&view, &Circumstances::default()), "knock"), [], "then the primary is the finding");
    }

    #[test]
    fn a_paused_cluster_does_not_fail_over() {
        let paused = ClusterRecord { paused_until: Some(WallTime(1)), ..record() };
        assert_eq!(verdict(&view(&paused), "automation"), Verdict::Failing);
        assert_eq!(verdict(&view(&record()), "automation"), Verdict::Ok);
    }

    #[test]
    fn lost_and_forgotten_slots_are_found() {
        let slot = |active, status: &str, retained| SlotReport {
            name: "n3".to_owned(),
            active,
            wal_status: Some(status.to_owned()),
            retained_bytes: Some(retained),
        };
        let on = archiver(true, Some(2), None);
        for (slot, expected) in [
            (slot(true, "reserved", 10), Verdict::Ok),
            (slot(true, "extended", 2 * SLOT_RETAINED_BYTES), Verdict::Ok),
            (slot(false, "extended", 2 * SLOT_RETAINED_BYTES), Verdict::Warning),
            (slot(false, "lost", 0), Verdict::Failing),
        ] {
            assert_eq!(verdict(&upkeep(vec![slot.clone()], on.clone()), "slots"), expected, "{slot:?}");
        }
    }

    #[test]
    fn an_archiver_counts_by_what_it_did_last() {
        for (archiver, expected) in [
            (archiver(false, None, None), Verdict::Warning),
            (archiver(true, None, None), Verdict::Ok),
            (archiver(true, Some(5), Some(4)), Verdict::Ok),
            (archiver(true, Some(5), Some(6)), Verdict::Failing),
            (archiver(true, None, Some(6)), Verdict::Failing),
        ] {
            assert_eq!(verdict(&upkeep(Vec::new(), archiver.clone()), "archiving"), expected, "{archiver:?}");
        }
    }

    #[test]
    fn a_full_disk_and_a_clock_that_is_off_are_found() {
        let mut view = view(&record());
        edit(&mut view, "n2", |report| {
            report.postgres.disk = Some(DiskReport { data_free_bytes: 1 << 40, wal_free_bytes: 1 << 20 });
            report.postgres.live.as_mut().expect("it runs").clock.answered_at = Some(WallTime(60_000_000));
        });
        let readiness = look(&view, &Circumstances::default());
        assert_eq!(verdicts(&readiness, "disk"), [(Some("n2".to_owned()), Verdict::Failing)]);
        assert_eq!(verdicts(&readiness, "clock_skew"), [(Some("n2".to_owned()), Verdict::Warning)]);
    }

    #[test]
    fn what_the_shell_gathered_is_judged() {
        const DAY: i64 = 86_400_000_000;
        let mut view = view(&record());
        view.wall = WallTime(100 * DAY);
        let circumstances = Circumstances {
            has_election: true,
            backup: Some(BackupFacts {
                last_success: Some(WallTime(97 * DAY)),
                objective_seconds: Some(86_400),
                last_drill: Some(WallTime(10 * DAY)),
                ..BackupFacts::default()
            }),
            names: Some(NameFacts { ttl_seconds: 5, problem: None }),
            protection: Protection::Tls {
                certificates: vec![CertificateFacts {
                    subject: "controller c1".to_owned(),
                    expires: WallTime(99 * DAY),
                }],
            },
            store_certificates: vec![CertificateFacts {
                subject: "controller c1".to_owned(),
                expires: WallTime(110 * DAY),
            }],
            sequences_after_failover: vec!["restore".to_owned()],
            stacks: vec![StackFacts { name: "terraform/standby".to_owned(), drift: Ok(true) }],
            channels: vec![ChannelFacts { name: "chat".to_owned(), problem: Some("403".to_owned()) }],
        };
        let readiness = look(&view, &circumstances);
        for (name, expected) in [
            ("backup", Verdict::Failing),
            ("drill", Verdict::Warning),
            ("dns", Verdict::Ok),
            ("transport", Verdict::Ok),
            ("certificates", Verdict::Failing),
            ("controllers", Verdict::Ok),
            ("restore_sequence", Verdict::Ok),
            ("stacks", Verdict::Warning),
            ("notifications", Verdict::Warning),
        ] {
            assert_eq!(verdicts(&readiness, name).first().map(|found| found.1), Some(expected), "{name}");
        }
        let soon: Vec<_> = readiness.checks.iter().filter(|check| check.check == "certificates").collect();
        assert_eq!(soon.len(), 2, "{soon:?}");
        assert_eq!((soon[1].verdict, soon[1].next.as_deref()), (Verdict::Warning, Some("stormglass pki rotate c1")));
        let slow = Circumstances { names: Some(NameFacts { ttl_seconds: 6, problem: None }), ..circumstances };
        assert_eq!(verdicts(&look(&view, &slow), "dns"), [(None, Verdict::Warning)], "longer than failover.rto");
    }

    #[test]
    fn every_agents_certificate_and_every_open_port_is_looked_at() {
        const DAY: i64 = 86_400_000_000;
        let tls = |expires: i64| Protection::Tls {
            certificates: vec![
                CertificateFacts { subject: "agent n2".to_owned(), expires: WallTime(expires * DAY) },
                CertificateFacts { subject: "authority orders".to_owned(), expires: WallTime(500 * DAY) },
            ],
        };
        let with = |protection: Option<Protection>| {
            let mut view = view(&record());
            view.wall = WallTime(100 * DAY);
            edit(&mut view, "n2", |report| report.protection = protection.clone());
            look(&view, &Circumstances::default())
        };
        for (expires, expected) in
            [(100, Verdict::Failing), (101, Verdict::Warning), (129, Verdict::Warning), (131, Verdict::Ok)]
        {
            let found = verdicts(&with(Some(tls(expires))), "certificates");
            let subject = (expected != Verdict::Ok).then(|| "agent n2".to_owned());
            assert_eq!(found, [(subject, expected)], "ends on day {expires} of 100");
        }
        let open = with(Some(Protection::Insecure));
        assert_eq!(verdicts(&open, "transport"), [(Some("n2".to_owned()), Verdict::Warning)]);
        assert_eq!(verdicts(&with(None), "transport"), [(None, Verdict::NotApplicable)]);
        assert_eq!(verdicts(&with(None), "certificates"), [(None, Verdict::NotApplicable)]);
        assert_eq!(verdicts(&with(Some(tls(131))), "transport"), [(None, Verdict::Ok)]);
    }
}
