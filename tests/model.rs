//! Every order of events in a small world around the protocol's own code: what must never happen is looked for exhaustively.
//!
//! Each known trace of a weaker protocol is a test: with its rule taken away the search must find a violation, and with the rule
//! in place the same search must find none. `STORMGLASS_MODEL_STATES` sets how many states a search may reach (a deeper run);
//! the table goes to standard error when the last search has ended.
//!
//! Two kinds of rows are no mutants: what `live` names asks of every state that the search reaches whether a fair continuation, taken by
//! the real decisions, leads to one writer; and a rule that others make redundant is said to be so.

#[path = "model/lease.rs"]
mod lease;
#[path = "model/ledger.rs"]
mod ledger;
#[path = "model/renewal.rs"]
mod renewal;
#[path = "model/search.rs"]
mod search;
#[path = "model/words.rs"]
mod words;

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Mutex;

use lease::Lease;
use ledger::{Begins, Ledger};
use renewal::{Begins as Start, Removed, Renewal};
use search::{Model, explore};
use stormglass::domain::{DurabilityMode, SyncScope};

/// States that one search may reach in an ordinary run.
const STATES_MAX: usize = 100_000;

/// Rows of the table; printed when as many tests have ended.
static TABLE: Mutex<Vec<String>> = Mutex::new(Vec::new());
const SEARCHES: usize = 38;

/// States from which the way to one writer is followed.
const LIVE_STATES_MAX: usize = 8_000;
/// States that one search of the renewal may reach: each is dearer than one of the other searches.
const RENEWAL_STATES_MAX: usize = 25_000;

#[expect(clippy::disallowed_methods, reason = "a deeper run is asked for by whoever starts the tests")]
fn states_max(ordinary: usize) -> usize {
    std::env::var("STORMGLASS_MODEL_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(ordinary)
}

/// With the rule: nothing is found. Without it: a violation.
fn check<M: Model>(trace: &str, rule: &str, ordinary: usize, whole: &M, weakened: Option<&M>) {
    let found = weakened.map(|weakened| explore(weakened, states_max(ordinary).max(2_000_000)));
    // What holds is explored at least as far as what does not.
    let reach = found.as_ref().map_or(0, |found| found.states);
    let clean = explore(whole, states_max(ordinary).max(reach));
    assert!(clean.violation.is_none(), "{trace}: the protocol itself: {}", clean.trace());
    let extent = if clean.exhausted { "all" } else { "first" };
    let mut row = format!(
        "{trace:<52} {rule:<5} {extent:>5} {:>9} states {:>9} steps {:>6.1?}",
        clean.states, clean.steps, clean.took
    );
    if let Some(found) = found {
        assert!(found.violation.is_some(), "{trace}: without the rule {} states were clean", found.states);
        let _ = write!(row, "   found after {:>8} states, {:>6.1?}", found.states, found.took);
        println!("{trace}: {}", found.trace());
    }
    let mut table = TABLE.lock().expect("no row panics");
    table.push(row);
    if table.len() == SEARCHES {
        table.sort();
        // Around the capture of the test harness: the table is for everybody.
        let _ = writeln!(std::io::stderr(), "\ntrace, rule, explored with the rule, without it\n{}", table.join("\n"));
    }
}

const LEASE: lease::Bounds = lease::Bounds {
    epochs: 3,
    numbers: 1,
    failovers: 1,
    leader_changes: 0,
    reboots: 0,
    wipes: false,
    timeouts: 0,
    slow: false,
    ticks: 3,
    heartbeats: 2,
};
const TWICE: lease::Bounds = lease::Bounds { failovers: 2, ticks: 0, heartbeats: 1, ..LEASE };

fn leases(trace: &str, rule: &str, removed: lease::Removed, bounds: lease::Bounds) {
    let whole = Lease { removed: lease::Removed::Nothing, bounds };
    let weakened = Lease { removed, bounds };
    check(trace, rule, STATES_MAX, &whole, (removed != lease::Removed::Nothing).then_some(&weakened));
}

#[test]
fn leases_hold() {
    let bounds = lease::Bounds {
        numbers: 3,
        failovers: 2,
        leader_changes: 1,
        reboots: 1,
        wipes: true,
        timeouts: 1,
        slow: true,
        ticks: u8::MAX,
        heartbeats: u8::MAX,
        ..LEASE
    };
    leases("leases_hold", "1-4", lease::Removed::Nothing, bounds);
}

#[test]
fn no_grant_while_epoch_swap_in_flight() {
    leases("no_grant_while_epoch_swap_in_flight", "4b", lease::Removed::PauseDuringSwap, LEASE);
}

#[test]
fn reelected_leader_old_swap_arrives() {
    let bounds = lease::Bounds { leader_changes: 1, ..LEASE };
    leases("reelected_leader_old_swap_arrives", "4b,10", lease::Removed::JournalResumed, bounds);
}

#[test]
fn new_leader_does_not_wait() {
    let bounds = lease::Bounds { leader_changes: 1, ..LEASE };
    leases("new_leader_does_not_wait", "4", lease::Removed::NewLeaderWaits, bounds);
}

#[test]
fn slow_clock_at_exactly_one_lease() {
    let bounds = lease::Bounds { slow: true, ..LEASE };
    leases("slow_clock_at_exactly_one_lease", "3", lease::Removed::DriftInWait, bounds);
}

/// Where the controller restarts a node in place, two epochs are enough.
#[test]
fn fence_confirmation_of_epoch_1_heard_in_epoch_3() {
    leases("fence_confirmation_of_epoch_1_heard_in_epoch_3", "3", lease::Removed::FenceNamesEpoch, TWICE);
}

#[test]
fn fence_confirmed_then_same_epoch_again() {
    let bounds = lease::Bounds { timeouts: 1, ..TWICE };
    leases("fence_confirmed_then_same_epoch_again", "3,4", lease::Removed::FenceIsFinal, bounds);
}

#[test]
fn wiped_agent_consents_again() {
    let bounds = lease::Bounds { reboots: 1, wipes: true, ..TWICE };
    leases("wiped_agent_consents_again", "4", lease::Removed::YoungMemoryWaits, bounds);
}

#[test]
fn forgotten_consent_lets_epoch_2_rise_after_3() {
    let bounds = lease::Bounds { reboots: 1, ..TWICE };
    leases("forgotten_consent_lets_epoch_2_rise_after_3", "4", lease::Removed::PromisesAreStored, bounds);
}

const LEDGER: ledger::Bounds =
    ledger::Bounds { commits: 1, numbers: 4, failovers: 1, leader_changes: 0, breaks: 1, reclones: 0 };

fn ledgers(trace: &str, removed: ledger::Removed, begins: Begins, bounds: ledger::Bounds) {
    let scope = SyncScope::Local;
    let whole = Ledger { removed: ledger::Removed::Nothing, begins, bounds, scope };
    let weakened = Ledger { removed, begins, bounds, scope };
    check(trace, "7", STATES_MAX, &whole, (removed != ledger::Removed::Nothing).then_some(&weakened));
}

#[test]
fn ledger_holds() {
    let bounds = ledger::Bounds { commits: 2, numbers: 9, failovers: 2, leader_changes: 1, breaks: 2, reclones: 1 };
    ledgers("ledger_holds", ledger::Removed::Nothing, Begins::Healthy, bounds);
}

/// Two names, of two sites, that both confirm.
#[test]
fn ledger_holds_across_sites() {
    let bounds = ledger::Bounds { commits: 2, numbers: 9, failovers: 1, leader_changes: 1, breaks: 1, reclones: 0 };
    for scope in [SyncScope::OtherSite, SyncScope::EachSite] {
        let whole = Ledger { removed: ledger::Removed::Nothing, begins: Begins::Healthy, bounds, scope };
        check("ledger_holds_across_sites", "7", STATES_MAX, &whole, None);
    }
}

#[test]
fn failover_swap_overtaken_by_shrink_then_growth() {
    let trace = "failover_swap_overtaken_by_shrink_then_growth";
    ledgers(trace, ledger::Removed::TargetStillEligible, Begins::Healthy, LEDGER);
}

#[test]
fn standby_swap_old_one_still_eligible() {
    let trace = "standby_swap_old_one_still_eligible";
    ledgers(trace, ledger::Removed::AffectedStopsBeingEligible, Begins::Healthy, LEDGER);
}

#[test]
fn barrier_lsn_read_before_names_applied() {
    let trace = "barrier_lsn_read_before_names_applied";
    ledgers(trace, ledger::Removed::BarrierAfterNames, Begins::Healthy, LEDGER);
}

#[test]
fn alone_before_the_ledger() {
    ledgers("alone_before_the_ledger", ledger::Removed::OnlyTheStoreLetsAlone, Begins::Healthy, LEDGER);
}

#[test]
fn longer_divergent_old_primary_counts_as_caught_up() {
    let trace = "longer_divergent_old_primary_counts_as_caught_up";
    let bounds = ledger::Bounds { commits: 3, breaks: 0, numbers: 5, ..LEDGER };
    ledgers(trace, ledger::Removed::History, Begins::AfterFailover, bounds);
}

#[test]
fn ledger_not_emptied_at_promotion() {
    let bounds = ledger::Bounds { numbers: 1, failovers: 2, breaks: 0, ..LEDGER };
    ledgers("ledger_not_emptied_at_promotion", ledger::Removed::EmptiedAtPromotion, Begins::Healthy, bounds);
}

#[test]
fn eligible_standby_recloned() {
    let bounds = ledger::Bounds { numbers: 1, reclones: 1, breaks: 0, ..LEDGER };
    ledgers("eligible_standby_recloned", ledger::Removed::NamedIsNotRecloned, Begins::Healthy, bounds);
}

#[test]
fn stale_eligible_write() {
    let bounds = ledger::Bounds { numbers: 2, leader_changes: 1, ..LEDGER };
    ledgers("stale_eligible_write", ledger::Removed::SwapComparesNumber, Begins::StaleWriteOnItsWay, bounds);
}

#[test]
fn late_shrink_after_regrowth() {
    let bounds = ledger::Bounds { numbers: 2, breaks: 0, ..LEDGER };
    ledgers("late_shrink_after_regrowth", ledger::Removed::OlderNumberIgnored, Begins::OldAssignmentOnItsWay, bounds);
}

const RENEWAL: renewal::Bounds = renewal::Bounds {
    nodes: 2,
    mode: DurabilityMode::Sync,
    epochs: 3,
    numbers: 1,
    failovers: 1,
    losses: 0,
    switchovers: 0,
    leader_changes: 0,
    ttl: 0,
    restarts: 0,
    reboots: 0,
    wipes: false,
    timeouts: 0,
    late: 0,
    slow: false,
    delays: false,
    rounds: false,
    stalls: false,
};

fn renewals(trace: &str, rule: &str, removed: Removed, begins: Start, bounds: renewal::Bounds) {
    let whole = Renewal::new(Removed::Nothing, begins, bounds);
    let weakened = Renewal::new(removed, begins, bounds);
    check(trace, rule, RENEWAL_STATES_MAX, &whole, (removed != Removed::Nothing).then_some(&weakened));
}

const GROWTH: renewal::Bounds = renewal::Bounds { numbers: 3, mode: DurabilityMode::Async, ..RENEWAL };

#[test]
fn consent_while_a_promise_binds() {
    renewals("consent_while_a_promise_binds", "2,4c", Removed::PromiseBinds, Start::Renewed(2), RENEWAL);
}

#[test]
fn fence_of_an_unused_epoch_while_the_older_lease_runs() {
    let bounds = renewal::Bounds { failovers: 2, timeouts: 1, ..RENEWAL };
    let trace = "fence_of_an_unused_epoch_while_the_older_lease_runs";
    renewals(trace, "3,4a", Removed::ConfirmationWaits, Start::Renewed(2), bounds);
}

#[test]
fn growth_ack_while_solo_lease_runs() {
    let bounds = renewal::Bounds { numbers: 3, ttl: 3, stalls: true, ..GROWTH };
    renewals("growth_ack_while_solo_lease_runs", "2", Removed::ReportedLeaseCounts, Start::With(0), bounds);
}

#[test]
fn new_epoch_starts_with_empty_membership() {
    let bounds = renewal::Bounds { failovers: 2, ..RENEWAL };
    renewals("new_epoch_starts_with_empty_membership", "4c", Removed::EmptiedAtPromotion, Start::Fenced(2), bounds);
}

#[test]
fn late_acknowledgement_after_shrink() {
    let bounds = GROWTH;
    renewals("late_acknowledgement_after_shrink", "2", Removed::AcknowledgementNamesNumber, Start::With(0), bounds);
}

#[test]
fn restart_reverts_membership() {
    let bounds = renewal::Bounds { restarts: 1, ..GROWTH };
    renewals("restart_reverts_membership", "4", Removed::MembershipIsStored, Start::With(0), bounds);
}

#[test]
fn restart_forgets_a_promise() {
    let bounds = renewal::Bounds { restarts: 1, ..RENEWAL };
    renewals("restart_forgets_a_promise", "4", Removed::PromiseIsStored, Start::Renewed(2), bounds);
}

#[test]
fn any_one_candidate_renews() {
    let bounds = renewal::Bounds { nodes: 3, mode: DurabilityMode::Async, ..RENEWAL };
    renewals("any_one_candidate_renews", "2", Removed::AllPromise, Start::With(6), bounds);
}

/// Redundant, see the head of the search: without the rule nothing is found either, which is what is held here.
#[test]
fn peer_round_begun_under_old_membership() {
    let bounds = renewal::Bounds { rounds: true, ..GROWTH };
    let weakened = Renewal::new(Removed::RoundKeepsMembership, Start::With(0), bounds);
    check("peer_round_begun_under_old_membership (redundant)", "2", RENEWAL_STATES_MAX, &weakened, None);
}

/// Everything at once, as far as it goes.
#[test]
fn renewals_hold() {
    let bounds = renewal::Bounds {
        numbers: 3,
        failovers: 2,
        losses: 1,
        switchovers: 1,
        leader_changes: 1,
        ttl: 3,
        restarts: 1,
        reboots: 1,
        wipes: true,
        timeouts: 1,
        late: 1,
        slow: true,
        delays: true,
        rounds: true,
        stalls: true,
        nodes: 3,
        mode: DurabilityMode::Async,
        epochs: 4,
    };
    renewals("renewals_hold", "1-4", Removed::Nothing, Start::With(2), bounds);
}

/// A switchover, undone or not, while candidates renew.
#[test]
fn switchover_while_candidates_renew() {
    let bounds = renewal::Bounds { failovers: 0, switchovers: 1, timeouts: 1, ..RENEWAL };
    renewals("switchover_while_candidates_renew", "4", Removed::Nothing, Start::With(2), bounds);
}

/// Once nothing fails any more, the real decisions lead to one writer: asked of every state that the search reaches.
#[test]
fn one_writer_in_the_end() {
    let bounds = renewal::Bounds { timeouts: 1, ..RENEWAL };
    let mut whole = Renewal::new(Removed::Nothing, Start::With(2), bounds);
    whole.recovers = true;
    check("one_writer_in_the_end", "live", LIVE_STATES_MAX, &whole, None);
}

/// The same after a reboot that may wipe a memory.
#[test]
fn one_writer_in_the_end_after_a_reboot() {
    let bounds = renewal::Bounds { reboots: 1, wipes: true, failovers: 0, ..RENEWAL };
    let mut whole = Renewal::new(Removed::Nothing, Start::With(2), bounds);
    whole.recovers = true;
    check("one_writer_in_the_end_after_a_reboot", "live", LIVE_STATES_MAX, &whole, None);
}

const DEPOSED: renewal::Bounds = renewal::Bounds { ttl: 3, ..RENEWAL };

/// Without the rule a new leader waits for one lease, which is shorter than the leadership before it.
#[test]
fn revoked_leader_grants_until_its_ttl() {
    let bounds = renewal::Bounds { ttl: 4, ..DEPOSED };
    renewals("revoked_leader_grants_until_its_ttl", "4", Removed::WaitCoversLeadership, Start::Deposed(2), bounds);
}

#[test]
fn grant_outlives_the_leadership() {
    let bounds = renewal::Bounds { slow: true, ..DEPOSED };
    renewals("grant_outlives_the_leadership", "4", Removed::GrantEndsWithLeadership, Start::Deposed(2), bounds);
}

#[test]
fn slow_clock_outlasts_the_promise() {
    let bounds = renewal::Bounds { slow: true, ..RENEWAL };
    renewals("slow_clock_outlasts_the_promise", "3", Removed::DriftInPromise, Start::Renewed(2), bounds);
}

#[test]
fn slow_clock_outlasts_the_wait() {
    let bounds = renewal::Bounds { slow: true, ..RENEWAL };
    renewals("slow_clock_outlasts_the_wait", "3", Removed::DriftInWait, Start::With(2), bounds);
}

#[test]
fn expired_lease_promotes_a_node_that_promised_nothing() {
    let bounds = renewal::Bounds { nodes: 3, failovers: 0, losses: 1, ..RENEWAL };
    let trace = "expired_lease_promotes_a_node_that_promised_nothing";
    renewals(trace, "2,4a", Removed::ExpiryBindsEligible, Start::With(2), bounds);
}

#[test]
fn lone_holder_counts_as_expired() {
    let bounds = renewal::Bounds { failovers: 0, losses: 1, ..RENEWAL };
    renewals("lone_holder_counts_as_expired", "2", Removed::LoneHolderNeverExpires, Start::With(0), bounds);
}
