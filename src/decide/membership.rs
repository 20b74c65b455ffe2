//! The durability ledger: which standby confirms commits, and from when on it counts as holding all of them (design, rule 7).
//!
//! Order is everything: first nobody affected is eligible (stored), then the primary applies the names and acknowledges with a
//! position read afterwards, then the standby passes that position, then it is proposed (stored), then the primary stores that it
//! renews with that standby's promises too, and acknowledges exactly that record, then it is eligible. The primary is told only
//! what is stored.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::domain::ids::{NodeName, SiteName};
use crate::domain::plan::{Reason, ReasonCode};
use crate::domain::policy::{DurabilityMode, Policy, SyncScope};
use crate::domain::record::{ClusterRecord, Member};
use crate::domain::report::{LiveReport, PostgresState, Report};
use crate::domain::view::View;

/// What the ledger needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Store this record.
    Store {
        /// The record.
        record: Box<ClusterRecord>,
        /// Why.
        reasons: Vec<Reason>,
    },
    /// Something must happen elsewhere first.
    Waiting(Vec<Reason>),
}

/// The record with every reporting node's site and address as it says them now: members are looked up while they are away, and
/// standbys and proxies are pointed at the holder's address. Asked only where the ledger itself is at rest, so that no growth
/// that waits for its acknowledgement is overtaken.
pub fn addresses(view: &View, record: &ClusterRecord) -> Option<(ClusterRecord, Reason)> {
    let mut next = record.changed();
    let mut changed = None;
    for report in view.nodes.values().filter_map(|node| node.report.known()) {
        let member = Member { site: report.site.clone(), address: report.address.clone() };
        if record.members.get(&report.node) == Some(&member) {
            continue;
        }
        let words = format!("it stands in site {} and listens at {}", member.site, member.address);
        changed = changed.or_else(|| Some(Reason::about(&report.node, ReasonCode::MembershipChange, words)));
        if report.node == record.holder {
            next.holder_address = member.address.clone();
        }
        next.members.insert(report.node.clone(), member);
    }
    changed.map(|reason| (next, reason))
}

/// The next change of the ledger. The primary must be writable.
pub fn change(view: &View, record: &ClusterRecord, policy: &Policy) -> Change {
    if record.durability != policy.durability {
        // What was earned in one mode says nothing in another.
        let next = ClusterRecord {
            durability: policy.durability,
            eligible: BTreeSet::new(),
            proposed: BTreeSet::new(),
            ..record.changed()
        };
        let words = format!("the durability mode becomes {}", policy.durability.label());
        return store(next, Reason::new(ReasonCode::MembershipChange, words));
    }
    let wanted = wanted(view, record, policy);
    if wanted != record.synchronous {
        return name(view, record, policy, wanted);
    }
    let alone = wanted.is_empty() && policy.durability == DurabilityMode::Sync;
    if alone != record.alone_since.is_some() && (alone || record.eligible == record.synchronous) {
        let alone_since = alone.then_some(view.wall);
        let words = match (alone, wanted.is_empty()) {
            (true, _) => "the primary confirms commits alone",
            (false, false) => "a standby confirms again",
            (false, true) => "the primary no longer confirms commits alone",
        };
        let reason = Reason::new(ReasonCode::NotRedundant, words);
        return store(ClusterRecord { alone_since, ..record.changed() }, reason);
    }
    if let Some(reason) = acknowledgement_lost(view, record) {
        let next = ClusterRecord { eligible: BTreeSet::new(), proposed: BTreeSet::new(), ..record.changed() };
        return store(next, reason);
    }
    let asynchronous = policy.durability == DurabilityMode::Async;
    if asynchronous && let Some(node) = record.renewers().iter().find(|node| is_lost(view, record, policy, node)) {
        let mut next = record.changed();
        next.eligible.remove(node);
        next.proposed.remove(node);
        return store(next, Reason::about(node, ReasonCode::MembershipChange, "it does not stream any more"));
    }
    let members: Vec<&NodeName> = if asynchronous {
        let streams = |node: &&NodeName| is_streaming(view, record, node) && !is_useless(view, record, node);
        view.nodes.keys().filter(|node| **node != record.holder).filter(streams).collect()
    } else {
        record.synchronous.iter().collect()
    };
    let mut waiting = Vec::new();
    for node in members.into_iter().filter(|node| !record.eligible.contains(*node)) {
        let earned = match policy.durability {
            DurabilityMode::Async => is_close(view, record, policy, node),
            DurabilityMode::Sync | DurabilityMode::SyncStrict => holds_everything(view, record, node),
        };
        match earned.and_then(|reason| grow(view, record, node, reason)) {
            Ok((next, reason)) => return store(next, reason),
            Err(reason) => waiting.push(reason),
        }
    }
    if waiting.is_empty() { Change::None } else { Change::Waiting(waiting) }
}

fn store(record: ClusterRecord, reason: Reason) -> Change {
    Change::Store { record: Box::new(record), reasons: vec![reason] }
}

/// The next step towards `node` being eligible: proposed first; eligible once the holder has exactly this record on disk, so that it
/// no longer renews its lease without this node's promise (traces `growth_ack_while_solo_lease_runs`,
/// `late_acknowledgement_after_shrink`).
fn grow(
    view: &View,
    record: &ClusterRecord,
    node: &NodeName,
    earned: Reason,
) -> Result<(ClusterRecord, Reason), Reason> {
    let mut next = record.changed();
    if !record.proposed.contains(node) {
        next.proposed.insert(node.clone());
        return Ok((next, earned));
    }
    if !has_acknowledged(view, record) {
        let detail = format!("{} has not stored record {} yet", record.holder, record.number);
        return Err(Reason::about(node, ReasonCode::MembershipChange, detail));
    }
    next.proposed.remove(node);
    next.eligible.insert(node.clone());
    next.alone_since = None;
    Ok((next, earned))
}

/// The holder has stored exactly this record, in this epoch. A later acknowledgement of an older record is none.
fn has_acknowledged(view: &View, record: &ClusterRecord) -> bool {
    view.report(&record.holder).is_some_and(|report| {
        report.standing.highest_epoch == record.epoch && report.standing.acknowledged == Some(record.number)
    })
}

/// Who shall confirm commits: one standby, or one of each site, the present one as long as it can.
///
/// Every name confirms every commit. One for each place that the scope asks for, and not a quorum of many: every further name would
/// be one more node whose word an automatic promotion needs.
fn wanted(view: &View, record: &ClusterRecord, policy: &Policy) -> BTreeSet<NodeName> {
    if policy.durability == DurabilityMode::Async {
        return BTreeSet::new();
    }
    let is_strict = policy.durability == DurabilityMode::SyncStrict;
    let own = site(view, &record.holder);
    match policy.sync_scope {
        SyncScope::Local => confirming(view, record, policy, |_| true),
        SyncScope::OtherSite => {
            let elsewhere = confirming(view, record, policy, |node| site(view, node) != own);
            // Better one of the own site than none; a strict cluster waits instead.
            if elsewhere.is_empty() && !is_strict { confirming(view, record, policy, |_| true) } else { elsewhere }
        }
        SyncScope::EachSite => {
            let mut all = BTreeSet::new();
            for place in other_places(view, record) {
                let there = confirming(view, record, policy, |node| site(view, node) == Some(place));
                // A site that cannot confirm yet: a strict cluster waits for it.
                if there.is_empty() && is_strict {
                    return BTreeSet::new();
                }
                all.extend(there);
            }
            all
        }
    }
}

/// Every site in which a node other than the holder stands.
fn other_places<'view>(view: &'view View, record: &ClusterRecord) -> BTreeSet<&'view SiteName> {
    view.nodes.values().filter(|node| node.node != record.holder).map(|node| &node.site).collect()
}

fn site<'view>(view: &'view View, node: &NodeName) -> Option<&'view SiteName> {
    view.nodes.get(node).map(|node| &node.site)
}

/// What the scope asks for and the ledger does not give: losing the primary's site, or its neighbour's, may lose commits.
pub fn scope_gap(view: &View, record: &ClusterRecord, policy: &Policy) -> Option<Reason> {
    if policy.durability == DurabilityMode::Async || policy.sync_scope == SyncScope::Local {
        return None;
    }
    let own = site(view, &record.holder)?;
    let held: BTreeSet<&SiteName> = record.eligible.iter().filter_map(|node| site(view, node)).collect();
    let scope = policy.sync_scope.label();
    let detail = match policy.sync_scope {
        SyncScope::Local => return None,
        SyncScope::OtherSite if held.iter().any(|place| *place != own) => return None,
        SyncScope::OtherSite => {
            format!("sync_scope is {scope}, and no standby outside site {own} holds every confirmed commit")
        }
        SyncScope::EachSite => {
            let missing = other_places(view, record).into_iter().find(|place| !held.contains(place))?;
            format!("sync_scope is {scope}, and no standby of site {missing} holds every confirmed commit")
        }
    };
    Some(Reason::new(ReasonCode::NotRedundant, detail))
}

/// One standby among those that `belongs` names, as a set; empty if there is none, and none is waited for.
fn confirming(
    view: &View,
    record: &ClusterRecord,
    policy: &Policy,
    belongs: impl Fn(&NodeName) -> bool,
) -> BTreeSet<NodeName> {
    let streams = |node: &NodeName| is_streaming(view, record, node);
    let present: BTreeSet<NodeName> = record.synchronous.iter().filter(|node| belongs(node)).cloned().collect();
    if let Some(able) = present.iter().find(|node| streams(node) && !is_barred(view, record, node)) {
        return BTreeSet::from([able.clone()]);
    }
    let mut others: Vec<&NodeName> = view
        .nodes
        .keys()
        .filter(|node| **node != record.holder && belongs(node) && streams(node) && !is_barred(view, record, node))
        .collect();
    // Somebody promotable first: a synchronous standby that may not be promoted protects data and not writers.
    others.sort_by_key(|node| {
        let report = view.report(node);
        let promotable = report.is_some_and(|report| !report.tags.no_failover && report.tags.failover_priority > 0);
        let same_site = site(view, node) == site(view, &record.holder);
        (!promotable, !same_site, report.map_or(0, |report| -report.tags.failover_priority), (*node).clone())
    });
    if let Some(best) = others.first() {
        return BTreeSet::from([(*best).clone()]);
    }
    // Nobody streams. Writers wait for the present one for a moment: it may only be reconnecting.
    let gone_for = present.iter().map(|node| gone_for(view, record, node)).min();
    let patience = policy.sync_standby_patience;
    match gone_for {
        // One that lost its data is dropped in strict mode too: while the ledger names it, it cannot be copied anew.
        Some(gone_for)
            if gone_for < patience || policy.durability == DurabilityMode::SyncStrict && gone_for < Duration::MAX =>
        {
            present
        }
        _ => BTreeSet::new(),
    }
}

/// Names change: whoever is affected stops being eligible in the same write, before the primary hears of it
/// (traces `standby_swap_old_one_still_eligible`, `alone_before_the_ledger`).
fn name(view: &View, record: &ClusterRecord, policy: &Policy, wanted: BTreeSet<NodeName>) -> Change {
    let mut next = record.changed();
    next.eligible = record.eligible.intersection(&wanted).cloned().collect();
    next.proposed = record.proposed.intersection(&wanted).cloned().collect();
    next.synchronous_number = next.number;
    next.alone_since = match (wanted.is_empty(), policy.durability) {
        (true, DurabilityMode::Sync) => record.alone_since.or(Some(view.wall)),
        _ => record.alone_since,
    };
    let words = if wanted.is_empty() {
        "nobody: the primary confirms commits alone".to_owned()
    } else {
        wanted.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    next.synchronous = wanted;
    Change::Store {
        record: Box::new(next),
        reasons: vec![Reason::new(ReasonCode::MembershipChange, format!("synchronous: {words}"))],
    }
}

/// Whether `node` has every commit that was, or will be, confirmed: names in force under the current number, then flushed past the
/// barrier on the same history, and shown as synchronous.
fn holds_everything(view: &View, record: &ClusterRecord, node: &NodeName) -> Result<Reason, Reason> {
    let wait = |detail: &str| Reason::about(node, ReasonCode::MembershipChange, detail);
    let primary = primary_live(view, record).ok_or_else(|| wait("the primary does not answer"))?;
    let acknowledged = primary
        .synchronous
        .as_ref()
        .filter(|names| names.number == record.synchronous_number && names.names.iter().eq(record.synchronous.iter()))
        .ok_or_else(|| wait("the primary has not applied the names yet"))?;
    let standby = view
        .report(node)
        .filter(|report| report.postgres.state == PostgresState::Running)
        .and_then(|report| report.postgres.live.as_ref())
        .ok_or_else(|| wait("the standby does not answer"))?;
    if standby.history.timeline != primary.history.timeline {
        return Err(wait("the standby is on another timeline"));
    }
    if standby.flush_lsn < acknowledged.barrier_lsn {
        return Err(wait(&format!("flushed {}, barrier {}", standby.flush_lsn, acknowledged.barrier_lsn)));
    }
    let confirms = primary.standbys.iter().any(|row| row.node == node.as_str() && row.is_synchronous());
    if !confirms {
        return Err(wait("the primary does not show it as synchronous yet"));
    }
    Ok(Reason::about(
        node,
        ReasonCode::HoldsEveryConfirmedCommit,
        format!("flushed {} past {}", standby.flush_lsn, acknowledged.barrier_lsn),
    ))
}

/// In `async` mode: whether `node` is close enough to the primary to take over without asking a human.
fn is_close(view: &View, record: &ClusterRecord, policy: &Policy, node: &NodeName) -> Result<Reason, Reason> {
    let wait = |detail: &str| Reason::about(node, ReasonCode::MembershipChange, detail);
    let primary = primary_live(view, record).ok_or_else(|| wait("the primary does not answer"))?;
    let live = view.report(node).and_then(|report| report.postgres.live.as_ref());
    let live = live.ok_or_else(|| wait("the standby does not answer"))?;
    if live.history.timeline != primary.history.timeline {
        return Err(wait("the standby is on another timeline"));
    }
    let missing = primary.flush_lsn.bytes_after(live.flush_lsn);
    if missing > policy.max_lag_bytes {
        return Err(wait(&format!("{missing} bytes behind, limit {}", policy.max_lag_bytes)));
    }
    Ok(Reason::about(node, ReasonCode::MembershipChange, format!("streams, {missing} bytes behind")))
}

/// In `async` mode: whether a member was away for so long, or is of so little use, that the holder shall renew without it.
fn is_lost(view: &View, record: &ClusterRecord, policy: &Policy, node: &NodeName) -> bool {
    is_useless(view, record, node) || gone_for(view, record, node) >= policy.report_stale_after
}

/// The primary runs with other names than the ledger's: somebody changed them, and commits may have been confirmed by nobody.
fn acknowledgement_lost(view: &View, record: &ClusterRecord) -> Option<Reason> {
    let primary = primary_live(view, record)?;
    let in_force = primary.synchronous.as_ref().is_some_and(|names| {
        names.number == record.synchronous_number && names.names.iter().eq(record.synchronous.iter())
    });
    (record.durability != DurabilityMode::Async && !record.renewers().is_empty() && !in_force).then(|| {
        Reason::about(
            &record.holder,
            ReasonCode::MembershipChange,
            "its synchronous_standby_names are not the ledger's",
        )
    })
}

fn primary_live<'view>(view: &'view View, record: &ClusterRecord) -> Option<&'view LiveReport> {
    view.report(&record.holder)?.postgres.live.as_ref().filter(|live| !live.in_recovery)
}

/// The primary streams to it, and its own agent does not say that it is down. A new one must also be heard of itself.
fn is_streaming(view: &View, record: &ClusterRecord, node: &NodeName) -> bool {
    let by_primary = primary_live(view, record)
        .is_some_and(|live| live.standbys.iter().any(|row| row.node == node.as_str() && row.state == "streaming"));
    by_primary
        && match view.report(node) {
            Some(report) => report.postgres.state == PostgresState::Running,
            None => {
                record.synchronous.contains(node)
                    && view.nodes.get(node).is_some_and(|node| node.not_streaming_for.is_none())
            }
        }
}

/// In `async` mode: a node that may never be promoted. Its promise would be one more that the holder needs, for nothing; that it
/// must not be named in `synchronous_standby_names` says nothing here.
fn is_useless(view: &View, record: &ClusterRecord, node: &NodeName) -> bool {
    let tagged = |report: &Report| report.tags.no_failover || report.tags.failover_priority <= 0;
    record.fenced.contains(node) || view.last_report(node).is_some_and(tagged)
}

fn is_barred(view: &View, record: &ClusterRecord, node: &NodeName) -> bool {
    record.fenced.contains(node) || view.last_report(node).is_some_and(|report| report.tags.no_sync)
}

/// For how long a named standby has not been there.
fn gone_for(view: &View, record: &ClusterRecord, node: &NodeName) -> Duration {
    let emptied = view.report(node).is_some_and(|report| report.postgres.state == PostgresState::NoData);
    if emptied || record.fenced.contains(node) {
        return Duration::MAX;
    }
    view.nodes.get(node).map_or(Duration::MAX, |view| view.not_streaming_for.unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use crate::decide::decide;
    use crate::decide::tests::{node, policy, record, view};
    use crate::domain::ids::Address;
    use crate::domain::plan::Intent;
    use crate::domain::view::Fact;

    #[test]
    fn the_record_follows_a_node_that_moved_or_is_new_once_the_ledger_is_at_rest() {
        let (mut record, mut policy) = (record(), policy());
        policy.rejoin_automatically = false;
        record.members.remove(&node("n3"));
        let mut view = view(&record);
        let Fact::Known { value: holder, .. } = &mut view.nodes.get_mut(&node("n1")).expect("there").report else {
            panic!("n1 reports")
        };
        std::sync::Arc::make_mut(holder).address = holder_address();
        let plan = decide(&view, &policy, &[]);
        let Intent::UpdateRecord { record: next } = plan.intent else { panic!("nothing is stored: {plan:?}") };
        assert_eq!((&next.members[&node("n1")].address, &next.holder_address), (&holder_address(), &holder_address()));
        assert_eq!((next.members.len(), next.violation_after(&record)), (3, None));
        view.record = Some(*next);
        assert_eq!(decide(&view, &policy, &[]).intent, Intent::Hold, "told once");
    }

    fn holder_address() -> Address {
        Address::new("elsewhere", 5432)
    }
}
