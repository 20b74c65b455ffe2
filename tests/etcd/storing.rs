//! The store's contract on etcd, and its own rules: bounded trails, plain values, no writer without a term.

use std::time::Duration;

use stormglass::adapters::store::etcd::{EtcdSettings, EtcdStore};
use stormglass::domain::epoch::RecordNumber;
use stormglass::domain::operation::OperationStatus;
use stormglass::ports::{Store, StoreError, Swap};

use stormglass::ports::store::Page;

use super::contract::{self, cluster, event, operation, record};
use super::server::Etcd;
use super::{candidate, elected};

fn below(settings: EtcdSettings, prefix: &str) -> EtcdSettings {
    EtcdSettings { prefix: prefix.to_owned(), ..settings }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rule_of_a_store_holds() {
    let etcd = Etcd::start(1).await;
    let reader = EtcdStore::reader(&etcd.settings()).expect("settings are good");
    let term = elected(&candidate(&etcd, "c1")).await;
    assert!(reader.is_empty().await.expect("asked"), "a leader alone is nothing stored");

    contract::write_everything(term.store().as_ref()).await;
    contract::find_everything(&reader).await;
    assert!(!reader.is_empty().await.expect("asked"));
    let written = etcd.ctl(&["get", "--print-value-only", "/stormglass/record/main"]);
    assert!(written.contains("\"holder\":\"db1\""), "a DBA can read it: {written}");
    contract::operations_keep_the_order_in_which_they_began(term.store().as_ref(), &reader).await;

    let refused = reader.append_event(&event("by nobody")).await.expect_err("only a leader writes");
    assert!(matches!(refused, StoreError::Failed { .. }), "{refused}");
    assert!(refused.to_string().contains("does not lead"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_are_those_of_a_plain_variable() {
    let etcd = Etcd::start(1).await;
    type Check = for<'s> fn(&'s dyn Store) -> std::pin::Pin<Box<dyn Future<Output = ()> + 's>>;
    let checks: [Check; 3] = [
        |store| Box::pin(contract::a_swap_on_the_wrong_number_tells_the_record(store)),
        |store| Box::pin(contract::every_rule_of_the_record_is_kept(store)),
        |store| Box::pin(contract::clusters_do_not_disturb_each_other(store)),
    ];
    for check in checks {
        let term = elected(&candidate(&etcd, "c1")).await;
        check(term.store().as_ref()).await;
        term.resign().await;
        etcd.ctl(&["del", "--prefix", "/stormglass/"]);
    }
    let term = elected(&candidate(&etcd, "c1")).await;
    contract::of_many_swaps_at_once_exactly_one_wins(term.store()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_chains_and_cards_are_kept_as_in_a_file() {
    let etcd = Etcd::start(1).await;
    let reader = EtcdStore::reader(&etcd.settings()).expect("settings are good");
    let term = elected(&candidate(&etcd, "c1")).await;
    contract::lists_are_turned_page_by_page(term.store().as_ref(), &reader).await;
    contract::cards_are_put_in_once_and_found_again(term.store().as_ref(), &reader).await;
    term.resign().await;
    // The next leader goes on with the chain where the last one ended.
    let term = elected(&candidate(&etcd, "c2")).await;
    term.store().append_audit(&contract::audit_row("by the next")).await.expect("audit");
    let newest = reader.page_audit(Page::newest(1)).await.expect("audit").rows;
    assert_eq!(newest[0].number, 8);
    term.resign().await;
    etcd.ctl(&["del", "--prefix", "/stormglass/"]);
    let term = elected(&candidate(&etcd, "c3")).await;
    contract::rows_that_are_appended_at_once_are_still_one_chain(term.store()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_barrier_that_was_written_twice_stops_one_swap_and_no_more() {
    let etcd = Etcd::start(1).await;
    let term = elected(&candidate(&etcd, "c1")).await;
    let store = term.store();
    assert_eq!(store.swap_record(None, &record(1)).await.expect("swap"), Swap::Stored);
    // As a write that was sent twice leaves it.
    etcd.ctl(&["put", "/stormglass/barrier/main", ""]);
    let stopped = store.swap_record(Some(RecordNumber(1)), &record(2)).await.expect("swap");
    assert_eq!(stopped, Swap::Conflict(Some(Box::new(record(1)))));
    assert_eq!(store.swap_record(Some(RecordNumber(1)), &record(2)).await.expect("swap"), Swap::Stored);
    assert_eq!(store.load_record(&cluster()).await.expect("load"), Some(record(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefixes_do_not_see_each_other() {
    let etcd = Etcd::start(1).await;
    let term = elected(&candidate(&etcd, "c1")).await;
    contract::write_everything(term.store().as_ref()).await;
    for prefix in ["/stormglass2", "/storm"] {
        let other = EtcdStore::reader(&below(etcd.settings(), prefix)).expect("settings are good");
        assert_eq!(other.load_record(&cluster()).await.expect("load"), None);
        assert!(other.is_empty().await.expect("asked"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_leader_finds_the_record_and_the_open_operations() {
    let etcd = Etcd::start(1).await;
    let first = elected(&candidate(&etcd, "c1")).await;
    first.store().swap_record(None, &record(1)).await.expect("swap");
    first.store().save_operation(&operation("a", OperationStatus::Running)).await.expect("save");
    first.resign().await;

    let second = elected(&candidate(&etcd, "c2")).await;
    let store = second.store();
    assert_eq!(store.load_record(&cluster()).await.expect("load"), Some(record(1)));
    let open = store.unfinished_operations(&cluster()).await.expect("list");
    assert_eq!(open, [operation("a", OperationStatus::Running)]);
    assert_eq!(store.swap_record(Some(RecordNumber(1)), &record(2)).await.expect("swap"), Swap::Stored);
    store.save_operation(&operation("a", OperationStatus::Succeeded)).await.expect("save");
    assert_eq!(store.unfinished_operations(&cluster()).await.expect("list"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_operations_go_and_those_under_way_stay() {
    const KEPT: usize = 500;
    let etcd = Etcd::start(1).await;
    let term = elected(&candidate(&etcd, "c1")).await;
    let store = term.store();
    store.save_operation(&operation("running", OperationStatus::Running)).await.expect("save");
    for number in 0..KEPT + 100 {
        store.save_operation(&operation(&format!("o{number}"), OperationStatus::Succeeded)).await.expect("save");
    }
    let left = store.list_operations(&cluster(), usize::MAX).await.expect("list");
    assert!(left.len() >= KEPT && left.len() <= KEPT + 100, "{} are left", left.len());
    assert_eq!(left[0].id.0, format!("o{}", KEPT + 99), "the newest stays");
    assert!(!left.iter().any(|operation| operation.id.0 == "o0"), "the oldest is gone");
    let open = store.unfinished_operations(&cluster()).await.expect("list");
    assert_eq!(open.iter().map(|operation| operation.id.0.as_str()).collect::<Vec<_>>(), ["running"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_asked_for_and_shown() {
    let etcd = Etcd::start(1).await;
    for arguments in [
        ["user", "add", "root:secret"].as_slice(),
        &["user", "grant-role", "root", "root"],
        &["role", "add", "stormglass"],
        &["role", "grant-permission", "stormglass", "--prefix=true", "readwrite", "/stormglass/"],
        &["user", "add", "stormglass:pass word"],
        &["user", "grant-role", "stormglass", "stormglass"],
        &["auth", "enable"],
    ] {
        etcd.ctl(arguments);
    }
    let stranger = EtcdStore::reader(&etcd.settings()).expect("settings are good");
    assert!(stranger.load_record(&cluster()).await.is_err(), "nobody reads without a password");

    let user = Some(("stormglass".to_owned(), "pass word".to_owned()));
    let settings = EtcdSettings { user, ..etcd.settings() };
    let clock = std::sync::Arc::new(stormglass::adapters::system::SystemClock::new().expect("clock"));
    let leadership = stormglass::adapters::store::etcd::EtcdLeadership::new(
        &settings,
        super::leader("c1"),
        Duration::from_secs(2),
        clock,
    )
    .expect("settings are good");
    let term = elected(&leadership).await;
    contract::write_everything(term.store().as_ref()).await;
    contract::find_everything(&EtcdStore::reader(&settings).expect("settings are good")).await;
}
