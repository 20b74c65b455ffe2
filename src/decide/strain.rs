//! Saturation is not death: what strains a cluster is told, and moves nothing. A move would take the load along.

use std::time::Duration;

use crate::domain::plan::{Reason, ReasonCode};
use crate::domain::policy::Policy;
use crate::domain::record::ClusterRecord;
use crate::domain::report::{LiveReport, Probe};
use crate::domain::view::{Fact, View};
use crate::domain::witness;

/// Client connections in use, of those allowed.
const CONNECTIONS_PER_CENT: u32 = 90;
/// So many clients that wait for locks, one of them for so long, are no coincidence.
const LOCK_WAITERS: u32 = 5;
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Holds back vacuum on the whole cluster, and a fast shutdown of nobody.
const TRANSACTION_AGE: Duration = Duration::from_secs(900);
/// A probe that takes this share of the time after which its failure would count is worth a look.
const PROBE_SHARE: u32 = 4;

/// What an operator should look at before it becomes an outage, node by node.
pub fn strains(view: &View, policy: &Policy) -> Vec<Reason> {
    let mut all = Vec::new();
    for node in view.nodes.values() {
        let Some(report) = node.report.known() else { continue };
        if let Some(live) = &report.postgres.live {
            all.extend(of_sessions(live).into_iter().map(|(code, detail)| Reason::about(&node.node, code, detail)));
        }
        let probes = &report.postgres.probes;
        let limit = policy.gray_after / PROBE_SHARE;
        all.extend([("write", &probes.write), ("connection", &probes.connect)].into_iter().filter_map(
            |(what, probe)| {
                let took = probe.took.filter(|took| probe.failing_for.is_none() && *took >= limit)?;
                let detail =
                    format!("the {what} probe took {:.2} s, limit {:.2} s", took.as_secs_f64(), limit.as_secs_f64());
                Some(Reason::about(&node.node, ReasonCode::ProbeSlow, detail))
            },
        ));
    }
    if let Some(record) = &view.record {
        all.extend(cut_off(view, record));
    }
    all
}

fn of_sessions(live: &LiveReport) -> Vec<(ReasonCode, String)> {
    let mut found = Vec::new();
    if let Some(used) = live.connections
        && used.used * 100 >= used.allowed * CONNECTIONS_PER_CENT
    {
        let detail = format!("{} of {} client connections in use", used.used, used.allowed);
        found.push((ReasonCode::ConnectionsExhausted, detail));
    }
    if let Some(waits) = live.waits {
        if waits.waiting_for_locks >= LOCK_WAITERS && waits.longest_lock_wait >= LOCK_WAIT {
            let longest = waits.longest_lock_wait.as_secs_f64();
            let detail = format!("{} sessions wait for locks, one for {longest:.1} s", waits.waiting_for_locks);
            found.push((ReasonCode::LockPileUp, detail));
        }
        if let Some(age) = waits.oldest_transaction.filter(|age| *age >= TRANSACTION_AGE) {
            found.push((ReasonCode::LongTransaction, format!("open for {:.0} s", age.as_secs_f64())));
        }
    }
    // Nor is damage: a move would help only if the standby has the same page whole, which nobody has looked at.
    if let Some(pages) = live.upkeep.as_ref().and_then(|upkeep| upkeep.checksum_failures).filter(|pages| *pages > 0) {
        let detail = format!("pages with a wrong checksum were read {pages} times");
        found.push((ReasonCode::ChecksumFailures, detail));
    }
    found
}

/// The primary writes, and no client's write reaches it through any proxy: a way is lost, not a primary.
fn cut_off(view: &View, record: &ClusterRecord) -> Option<Reason> {
    let writes = |probe: &Probe| probe.failing_for.is_none() && probe.last_success_age.is_some();
    let primary = view.report(&record.holder)?;
    let paths: Vec<_> = witness::testimonies(view, record)
        .into_iter()
        .filter(|word| matches!(word.reason.code, ReasonCode::ClientPathWorks | ReasonCode::ClientPathFails))
        .collect();
    let all_know = view.proxies.values().all(|proxy| matches!(proxy.report, Fact::Known { .. }));
    let is_cut_off = !paths.is_empty() && all_know && paths.iter().all(|path| !path.is_alive);
    let reason = paths.into_iter().next()?.reason;
    (is_cut_off && writes(&primary.postgres.probes.write)).then_some(reason)
}
