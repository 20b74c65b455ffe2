//! One leader at a time; whoever lost the leadership writes nothing, however it was lost.

use std::sync::Arc;

use stormglass::domain::epoch::RecordNumber;
use stormglass::domain::operation::OperationStatus;
use stormglass::ports::{Leadership, StoreError, Swap, Term};

use super::contract::{cluster, event, operation, record};
use super::server::{Etcd, until};
use super::{TIME_TO_LIVE, candidate, elected, leader, now};

/// The leader's key as `etcdctl` sees it.
fn leader_key(etcd: &Etcd) -> String {
    let keys = etcd.ctl(&["get", "--prefix", "--keys-only", "--sort-by=CREATE", "--limit=1", "/stormglass/leaders/"]);
    keys.lines().next().expect("somebody leads").to_owned()
}

/// Everything that a leader writes is refused, and certainly not written.
async fn writes_nothing(term: &Arc<dyn Term>) {
    let store = term.store();
    let expected = store.load_record(&cluster()).await.expect("reads go on");
    let next = expected.as_ref().map_or(record(1), |record| record.changed());
    let refusals = [
        store.swap_record(expected.as_ref().map(|record| record.number), &next).await.map(drop),
        store.save_operation(&operation("late", OperationStatus::Running)).await,
        store.append_event(&event("late")).await,
    ];
    for refusal in refusals {
        let error = refusal.expect_err("a deposed leader wrote");
        assert!(matches!(error, StoreError::Failed { .. }), "it is certain that nothing was written: {error}");
        assert!(error.to_string().contains("does not lead"), "{error}");
    }
    assert_eq!(store.load_record(&cluster()).await.expect("reads go on"), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_and_the_others_know_whom() {
    let etcd = Etcd::start(1).await;
    let (first, second) = (candidate(&etcd, "c1"), candidate(&etcd, "c2"));
    let term = elected(&first).await;
    let waiting = tokio::spawn({
        let second = second.clone();
        async move { elected(&second).await }
    });
    until("both know who leads", async || [&first, &second].iter().all(|each| each.leader() == Some(leader("c1"))))
        .await;
    assert!(!waiting.is_finished(), "two lead");
    let until_then = term.leads_until().expect("others may lead later");
    assert!(until_then > now() && until_then <= now().plus(TIME_TO_LIVE));

    term.resign().await;
    assert!(term.leads_until().expect("others may lead now") <= now());
    let successor = waiting.await.expect("no panic");
    until("both know the successor", async || [&first, &second].iter().all(|each| each.leader() == Some(leader("c2"))))
        .await;
    writes_nothing(&term).await;
    successor.store().append_event(&event("by the successor")).await.expect("the successor writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_term_lasts_for_as_long_as_it_is_kept_alive() {
    let etcd = Etcd::start(1).await;
    let term = elected(&candidate(&etcd, "c1")).await;
    let first = term.leads_until().expect("limited");
    until("it was prolonged beyond its first end", async || {
        term.leads_until().expect("limited") > first.plus(TIME_TO_LIVE)
    })
    .await;
    term.store().append_event(&event("still there")).await.expect("it still leads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_lease_ends_the_term_and_fences_its_writes() {
    let etcd = Etcd::start(1).await;
    let term = elected(&candidate(&etcd, "c1")).await;
    term.store().swap_record(None, &record(1)).await.expect("swap");
    let key = leader_key(&etcd);
    let lease = key.rsplit('/').next().expect("a key with a lease");
    etcd.ctl(&["lease", "revoke", lease]);
    // Before anything else could tell it: the transaction alone refuses.
    writes_nothing(&term).await;
    term.ended().await;
    assert!(term.leads_until().expect("limited") <= now());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_key_ends_the_term_without_any_write() {
    let etcd = Etcd::start(1).await;
    let term = elected(&candidate(&etcd, "c1")).await;
    etcd.ctl(&["del", &leader_key(&etcd)]);
    term.ended().await;
    assert!(term.leads_until().expect("limited") <= now());
    writes_nothing(&term).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposed_leader_does_not_overwrite_its_successor() {
    let etcd = Etcd::start(1).await;
    let deposed = elected(&candidate(&etcd, "c1")).await;
    deposed.store().swap_record(None, &record(1)).await.expect("swap");
    etcd.ctl(&["del", &leader_key(&etcd)]);
    let successor = elected(&candidate(&etcd, "c2")).await;
    let store = successor.store();
    assert_eq!(store.swap_record(Some(RecordNumber(1)), &record(2)).await.expect("swap"), Swap::Stored);
    // It still believes in number 1, and would be right if the record alone were compared with an older one.
    let late = deposed.store().swap_record(Some(RecordNumber(2)), &record(3)).await;
    assert!(matches!(late, Err(StoreError::Failed { .. })), "{late:?}");
    assert_eq!(store.load_record(&cluster()).await.expect("load"), Some(record(2)));
    writes_nothing(&deposed).await;
}
