//! Proof that the holder of an epoch cannot write any more: what every promotion rests on (design, rules 2, 3 and 4a).
//!
//! Shared by the decision and by the operation that carries it out, so that the two cannot disagree.

use std::time::Duration;

use super::clock::Moment;
use super::ids::NodeName;
use super::plan::{Reason, ReasonCode};
use super::policy::Policy;
use super::record::ClusterRecord;
use super::view::{Fact, View};
use super::witness;

/// A WAL receiver that heard its sender this recently proves that the sender lives.
const WAL_FRESH: Duration = Duration::from_secs(1);

/// Why the holder of the record's epoch can certainly not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Its agent confirmed: no process can run again.
    FenceConfirmed,
    /// The last possible grant has run out, drift included.
    LeaseExpired,
}

impl Proof {
    /// True if this proof suffices to promote `to`. A lease that ran out binds only those whose promises could have renewed it:
    /// anybody else may have missed that the eligible ones went on renewing (trace `any_one_candidate_renews`).
    pub fn suffices_for(self, record: &ClusterRecord, to: &NodeName) -> bool {
        match self {
            Proof::FenceConfirmed => true,
            Proof::LeaseExpired => record.eligible.contains(to) || record.holder == *to,
        }
    }

    /// As a reason.
    pub fn reason(self, record: &ClusterRecord) -> Reason {
        let code = match self {
            Proof::FenceConfirmed => ReasonCode::FenceConfirmed,
            Proof::LeaseExpired => ReasonCode::LeaseExpired,
        };
        Reason::about(&record.holder, code, format!("epoch {}", record.epoch))
    }
}

/// The proof, or why there is none yet.
pub fn proof(view: &View, record: &ClusterRecord, policy: &Policy) -> Result<Proof, Reason> {
    // A confirmation is final, so it counts however old the report is; it counts for its own epoch only
    // (trace `fence_confirmation_of_epoch_1_heard_in_epoch_3`).
    let confirmed = view.last_report(&record.holder).is_some_and(|report| {
        report.standing.fence_confirmed == Some(record.epoch) && report.cluster == record.cluster
    });
    if confirmed {
        return Ok(Proof::FenceConfirmed);
    }
    let left = view.last_report(&record.holder).is_some_and(|report| report.standing.left_running);
    if record.left_running || left {
        let detail =
            "its PostgreSQL was left running while the cluster was paused: only a fence proves that it stopped";
        return Err(Reason::about(&record.holder, ReasonCode::LeaseMayRun, detail));
    }
    if record.eligible.is_empty() {
        // A lone holder needs nobody's grant, so its lease never counts as expired for anybody else (rule 2).
        return Err(Reason::about(
            &record.holder,
            ReasonCode::LeaseMayRun,
            "it renews its lease alone: only a fence proves that it stopped",
        ));
    }
    let expires = expiry(view, record, policy);
    if view.now < expires {
        let left = expires.since(view.now).as_secs_f64();
        return Err(Reason::about(&record.holder, ReasonCode::LeaseMayRun, format!("for another {left:.1} s")));
    }
    if let Some(reason) = renewed_by_standby(view, record) {
        return Err(reason);
    }
    if let Some(reason) = wal_arrives(view, record, view.now.since(expires)) {
        return Err(reason);
    }
    if let Some(reason) = witness::veto(view, record, policy) {
        return Err(reason);
    }
    Ok(Proof::LeaseExpired)
}

/// When every lease that a controller granted to the holder has certainly run out: one wait after this leader's last grant, and after
/// this leadership began, because an earlier leader may have granted until then.
pub fn expiry(view: &View, record: &ClusterRecord, policy: &Policy) -> Moment {
    let before = view.leading_since.plus(policy.new_leader_wait().max(record.longest_wait));
    let granted = view.nodes.get(&record.holder).and_then(|node| node.last_grant);
    granted.map_or(before, |granted| before.max(granted.plus(policy.timers.wait().max(record.longest_wait))))
}

/// A standby that renewed the holder's lease a moment ago: the holder lives, and only its way to the controllers is lost.
pub fn renewed_by_standby(view: &View, record: &ClusterRecord) -> Option<Reason> {
    record.eligible.iter().find_map(|name| {
        let (report, age) = match &view.nodes.get(name)?.report {
            Fact::Known { value, age } => (value, *age),
            Fact::Unknown { last, for_duration } => (last.as_ref()?, *for_duration),
            Fact::Absent => return None,
        };
        let promised = report.standing.promised.filter(|promised| promised.epoch == record.epoch)?;
        let left = promised.remaining.saturating_sub(age);
        (!left.is_zero()).then(|| {
            let detail = format!("{} renewed it without a controller, for another {:.1} s", name, left.as_secs_f64());
            Reason::about(&record.holder, ReasonCode::LeaseMayRun, detail)
        })
    })
}

/// A standby that still receives WAL from the holder after the expiry: somebody there writes without a lease (rule 5).
fn wal_arrives(view: &View, record: &ClusterRecord, expired_for: Duration) -> Option<Reason> {
    view.nodes.values().filter(|node| node.node != record.holder).find_map(|node| {
        let receiver = node.report.known()?.postgres.live.as_ref()?.receiver.as_ref()?;
        let from_holder = receiver.sender.as_ref().is_none_or(|sender| *sender == record.holder_address);
        let fresh = receiver.last_message_age.is_some_and(|age| age < WAL_FRESH.min(expired_for));
        (receiver.streaming && from_holder && fresh)
            .then(|| Reason::about(&node.node, ReasonCode::WalStillArriving, format!("from {}", record.holder)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::{BootId, WallTime};
    use crate::domain::epoch::{Epoch, RecordNumber};
    use crate::domain::ids::{Address, ClusterName, NodeName, SiteName, SystemIdentifier};
    use crate::domain::lsn::{History, Lsn, Timeline};
    use crate::domain::policy::DurabilityMode;
    use crate::domain::report::{
        LiveReport, PostgresReport, PostgresState, Probes, ReceiverReport, Report, Standing, Tags,
    };
    use crate::domain::view::{Fact, NodeView};

    const START: Moment = Moment(1_000_000_000);

    fn node(name: &str) -> NodeName {
        NodeName::new(name).expect("valid")
    }

    fn report(name: &str, live: Option<LiveReport>) -> Report {
        Report {
            cluster: ClusterName::new("main").expect("valid"),
            node: node(name),
            site: SiteName::new("a").expect("valid"),
            address: Address::new(name, 5432),
            boot: BootId("boot".to_owned()),
            incarnation: "incarnation".to_owned(),
            sequence: 1,
            sent_at: Moment(0),
            version: "0".to_owned(),
            standing: Standing::default(),
            postgres: PostgresReport {
                state: PostgresState::Running,
                control: None,
                damage: None,
                live,
                probes: Probes::default(),
                disk: None,
                memory: None,
            },
            tags: Tags::default(),
            tasks: Default::default(),
            protection: None,
        }
    }

    fn standby_receiving(age: Duration) -> Report {
        let receiver = ReceiverReport { sender: None, streaming: true, last_message_age: Some(age) };
        let live = LiveReport {
            system_identifier: SystemIdentifier(1),
            in_recovery: true,
            history: History::root(Timeline(1)),
            started_at_unix_seconds: None,
            major_version: 15,
            flush_lsn: Lsn(1),
            replay_lsn: Lsn(1),
            replay_paused: false,
            receiver: Some(receiver),
            standbys: Vec::new(),
            synchronous: None,
            connections: None,
            clock: Default::default(),
            waits: None,
            upkeep: None,
            work: None,
        };
        report("n2", Some(live))
    }

    /// n1 holds epoch 3 and has been silent for ten seconds; its last lease was granted at `START`.
    fn silent_holder() -> (View, ClusterRecord, Policy) {
        let record = ClusterRecord {
            epoch: Epoch(3),
            number: RecordNumber(10),
            holder_confirmed: true,
            eligible: [node("n2")].into(),
            synchronous: [node("n2")].into(),
            synchronous_number: RecordNumber(9),
            ..ClusterRecord::first(
                ClusterName::new("main").expect("valid"),
                SystemIdentifier(1),
                node("n1"),
                Address::new("n1", 5432),
                DurabilityMode::Sync,
            )
        };
        let silent = Duration::from_secs(10);
        let holder = NodeView {
            node: node("n1"),
            site: SiteName::new("a").expect("valid"),
            report: Fact::Unknown { last: Some(report("n1", None).into()), for_duration: silent },
            last_grant: Some(START),
            last_live: None,
            not_streaming_for: None,
        };
        let standby = NodeView {
            node: node("n2"),
            report: Fact::Known { value: report("n2", None).into(), age: Duration::ZERO },
            last_grant: None,
            ..holder.clone()
        };
        let view = View {
            now: START.plus(silent),
            wall: WallTime(0),
            leading_since: Moment(0),
            leads_for: None,
            record: Some(record.clone()),
            nodes: [(node("n1"), holder), (node("n2"), standby)].into(),
            proxies: Default::default(),
            sighting: None,
            outlooks: Default::default(),
        };
        (view, record, Policy::for_rto(Duration::from_secs(5)))
    }

    fn confirm(view: &mut View, epoch: Epoch) {
        let mut last = report("n1", None);
        last.standing.fence_confirmed = Some(epoch);
        view.nodes.get_mut(&node("n1")).expect("there").report =
            Fact::Unknown { last: Some(last.into()), for_duration: Duration::from_secs(10) };
    }

    #[test]
    fn fence_confirmation_of_epoch_1_heard_in_epoch_3() {
        let (mut view, record, policy) = silent_holder();
        view.now = START;
        for epoch in [Epoch(1), Epoch(2)] {
            confirm(&mut view, epoch);
            assert!(proof(&view, &record, &policy).is_err(), "a confirmation of epoch {epoch} was taken for epoch 3");
        }
        confirm(&mut view, Epoch(3));
        assert_eq!(proof(&view, &record, &policy), Ok(Proof::FenceConfirmed), "final, however old the report");
    }

    #[test]
    fn slow_clock_at_exactly_one_lease() {
        let (mut view, record, policy) = silent_holder();
        let timers = policy.timers;
        for (waited, expired) in
            [(timers.lease, false), (timers.wait() - Duration::from_micros(1), false), (timers.wait(), true)]
        {
            view.now = START.plus(waited);
            assert_eq!(proof(&view, &record, &policy).is_ok(), expired, "after {waited:?}");
        }
    }

    #[test]
    fn revoked_leader_grants_until_its_ttl() {
        let (mut view, record, policy) = silent_holder();
        view.leading_since = view.now.minus(policy.timers.lease);
        assert!(proof(&view, &record, &policy).is_err(), "the leader before may have granted until this one began");
        view.nodes.get_mut(&node("n1")).expect("there").last_grant = None;
        assert!(proof(&view, &record, &policy).is_err(), "no grant of its own proves nothing");
        view.leading_since = view.now.minus(policy.timers.wait());
        assert_eq!(proof(&view, &record, &policy), Ok(Proof::LeaseExpired));
    }

    #[test]
    fn a_lone_holders_lease_never_expires_for_others() {
        let (mut view, mut record, policy) = silent_holder();
        record.eligible.clear();
        view.now = START.plus(Duration::from_secs(86_400));
        assert!(proof(&view, &record, &policy).is_err());
    }

    #[test]
    fn wal_that_still_arrives_vetoes_expiry_and_never_a_fence() {
        let (mut view, record, policy) = silent_holder();
        let standby = |view: &mut View, age| {
            view.nodes.get_mut(&node("n2")).expect("there").report =
                Fact::Known { value: standby_receiving(age).into(), age: Duration::ZERO };
        };
        standby(&mut view, Duration::from_millis(200));
        assert_eq!(proof(&view, &record, &policy).expect_err("vetoed").code, ReasonCode::WalStillArriving);
        confirm(&mut view, Epoch(3));
        assert_eq!(proof(&view, &record, &policy), Ok(Proof::FenceConfirmed));
        let (mut view, record, policy) = silent_holder();
        standby(&mut view, Duration::from_secs(9));
        assert_eq!(
            proof(&view, &record, &policy),
            Ok(Proof::LeaseExpired),
            "what arrived before the expiry is no veto"
        );
    }
}
