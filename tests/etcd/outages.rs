//! Members that die or hang, and etcd without its majority.

use std::time::Duration;

use rustix::process::Signal;
use stormglass::domain::epoch::RecordNumber;
use stormglass::ports::{Leadership, StoreError, Swap};

use super::contract::{cluster, event, record};
use super::server::{Etcd, until};
use super::{candidate, candidate_for, elected, leader, now};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_dies_or_hangs_is_not_missed() {
    let mut etcd = Etcd::start(3).await;
    // Longer than etcd's own elections take on a busy machine.
    let leadership = candidate_for(&etcd, "c1", Duration::from_secs(20));
    let term = elected(&leadership).await;
    let mut expected = None;
    for number in 0..3_u64 {
        let member = usize::try_from(number).expect("small");
        if number == 1 {
            etcd.signal(member, Signal::STOP);
        } else {
            etcd.kill(member);
        }
        // etcd may have to elect a leader of its own first; what is then unknown is settled by reading.
        let wanted = record(number + 1);
        until("the record is stored", async || match term.store().swap_record(expected, &wanted).await {
            Ok(Swap::Stored) => true,
            Ok(Swap::Conflict(now)) => now.as_deref() == Some(&wanted),
            Err(_) => term.store().load_record(&cluster()).await.is_ok_and(|now| now.as_ref() == Some(&wanted)),
        })
        .await;
        expected = Some(RecordNumber(number + 1));
        if number == 1 {
            etcd.signal(member, Signal::CONT);
        } else {
            etcd.launch(member);
        }
        etcd.until_healthy().await;
    }
    assert!(term.leads_until().expect("limited") > now(), "the term went on all the time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_the_term_ends_and_nothing_is_said_to_be_stored() {
    let mut etcd = Etcd::start(3).await;
    let (first, second) = (candidate(&etcd, "c1"), candidate(&etcd, "c2"));
    let term = elected(&first).await;
    term.store().swap_record(None, &record(1)).await.expect("swap");
    let waiting = tokio::spawn({
        let second = second.clone();
        async move { second.lead().await }
    });
    etcd.kill(0);
    etcd.kill(1);
    let swapped = term.store().swap_record(Some(RecordNumber(1)), &record(2)).await;
    assert!(matches!(swapped, Err(StoreError::Unknown { .. })), "a time-out is not an outcome: {swapped:?}");
    term.ended().await;
    assert!(term.leads_until().expect("limited") <= now());
    assert!(waiting.await.expect("no panic").is_err(), "elected without a majority");
    until("nobody claims to know who leads", async || first.leader().is_none() && second.leader().is_none()).await;

    etcd.launch(0);
    etcd.launch(1);
    etcd.until_healthy().await;
    let successor = elected(&second).await;
    until("the former leader knows its successor", async || first.leader() == Some(leader("c2"))).await;
    let found = successor.store().load_record(&cluster()).await.expect("load").expect("there is a record");
    assert!(found == record(1) || found == record(2), "{found:?}");
    assert!(term.store().append_event(&event("late")).await.is_err(), "the former leader writes");
    assert_eq!(successor.store().load_record(&cluster()).await.expect("load"), Some(found));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_refuses_by_name_and_keeps_its_leader_and_what_it_has() {
    let etcd = Etcd::start_with_quota(1, 4 << 20).await;
    let term = elected(&candidate(&etcd, "c1")).await;
    let store = term.store();
    assert_eq!(store.swap_record(None, &record(1)).await.expect("swap"), Swap::Stored);

    // Another tenant of the same etcd fills it.
    let value = "x".repeat(100_000);
    let full = (0..200).find_map(|number| etcd.try_ctl(&["put", &format!("/other/{number}"), &value]).err());
    assert!(full.expect("the quota is reached").contains("space exceeded"));

    let refused = store.swap_record(Some(RecordNumber(1)), &record(2)).await.expect_err("there is no space");
    assert!(matches!(refused, StoreError::Failed { .. }), "certainly not written: {refused}");
    for word in ["space exceeded", "etcdctl compact", "alarm disarm"] {
        assert!(refused.to_string().contains(word), "{word}: {refused}");
    }
    assert_eq!(store.load_record(&cluster()).await.expect("load"), Some(record(1)));
    // Longer than a term: it is renewed without space.
    let first = term.leads_until().expect("limited");
    until("the term is renewed", async || term.leads_until().is_some_and(|renewed| renewed > first)).await;

    etcd.ctl(&["del", "--prefix", "/other/"]);
    let status = etcd.ctl(&["endpoint", "status", "--write-out", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let revision = status[0]["Status"]["header"]["revision"].as_i64().expect("a revision").to_string();
    etcd.ctl(&["compact", &revision]);
    etcd.ctl(&["defrag"]);
    etcd.ctl(&["alarm", "disarm"]);
    assert_eq!(store.swap_record(Some(RecordNumber(1)), &record(2)).await.expect("swap"), Swap::Stored);
}
