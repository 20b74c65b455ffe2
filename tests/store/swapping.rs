//! Compare-and-swap: exactly one of many wins, no rule of the record is broken, and whatever the order of
//! calls, the store answers as a plain variable would.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use stormglass::domain::clock::WallTime;
use stormglass::domain::epoch::{Epoch, RecordNumber};
use stormglass::domain::ids::{Address, ClusterName, SystemIdentifier};
use stormglass::domain::record::ClusterRecord;
use stormglass::ports::store::{Store, StoreError, Swap};

use super::{Scratch, cluster, node, record};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_swaps_at_once_exactly_one_wins() {
    let scratch = Scratch::new();
    let store = Arc::new(scratch.open());
    let mut expected = None;
    for round in 1..=10 {
        let tasks: Vec<_> = (0..16)
            .map(|rival| {
                let store = store.clone();
                let wanted = ClusterRecord { holder_since: WallTime(rival), ..record(round) };
                tokio::spawn(async move { (store.swap_record(expected, &wanted).await.expect("swap"), wanted) })
            })
            .collect();
        let mut winners = Vec::new();
        let mut losers = Vec::new();
        for task in tasks {
            match task.await.expect("no panic") {
                (Swap::Stored, wanted) => winners.push(wanted),
                (Swap::Conflict(now), _) => losers.push(now.map(|now| *now)),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        assert!(losers.iter().all(|now| now.as_ref() == winners.first()), "a loser was told of another record");
        assert_eq!(store.load_record(&cluster()).await.expect("load").as_ref(), winners.first());
        expected = Some(RecordNumber(round));
    }
}

#[tokio::test]
async fn a_swap_on_the_wrong_number_tells_the_record() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let early = store.swap_record(Some(RecordNumber(1)), &record(2)).await.expect("swap");
    assert_eq!(early, Swap::Conflict(None));
    assert_eq!(store.swap_record(None, &record(1)).await.expect("swap"), Swap::Stored);
    let late = store.swap_record(None, &record(1)).await.expect("swap");
    assert_eq!(late, Swap::Conflict(Some(Box::new(record(1)))));
}

#[tokio::test]
async fn every_rule_of_the_record_is_kept() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let with_standby = ClusterRecord {
        synchronous: BTreeSet::from([node("db2")]),
        eligible: BTreeSet::from([node("db2")]),
        epoch: Epoch(5),
        ..record(1)
    };
    store.swap_record(None, &with_standby).await.expect("swap");

    let next = with_standby.changed();
    let violations = [
        ("one cluster", ClusterRecord { system_identifier: SystemIdentifier(1), ..next.clone() }),
        ("exactly one", ClusterRecord { number: RecordNumber(3), ..next.clone() }),
        ("exactly one", with_standby.clone()),
        ("never shrinks", ClusterRecord { epoch: Epoch(4), ..next.clone() }),
        ("one holder", ClusterRecord { holder: node("db2"), ..next.clone() }),
        ("start of an epoch", ClusterRecord { epoch: Epoch(6), ..next.clone() }),
        ("own standby", ClusterRecord { synchronous: BTreeSet::from([node("db1"), node("db2")]), ..next.clone() }),
        ("only a named standby", ClusterRecord { synchronous: BTreeSet::new(), ..next.clone() }),
    ];
    for (words, violation) in violations {
        let refused = store.swap_record(Some(RecordNumber(1)), &violation).await.expect_err(words);
        assert!(matches!(refused, StoreError::Failed { .. }), "{refused}");
        assert!(refused.to_string().contains(words), "{refused} does not mention {words:?}");
        assert_eq!(store.load_record(&cluster()).await.expect("load").as_ref(), Some(&with_standby));
    }
    let promoted = with_standby.with_next_epoch(node("db2"), Address::new("127.0.0.1", 5433), WallTime(9));
    assert_eq!(store.swap_record(Some(RecordNumber(1)), &promoted).await.expect("swap"), Swap::Stored);
}

#[tokio::test]
async fn clusters_do_not_disturb_each_other() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let other = ClusterRecord { cluster: ClusterName::new("other").expect("valid"), ..record(1) };
    assert_eq!(store.swap_record(None, &record(1)).await.expect("swap"), Swap::Stored);
    assert_eq!(store.swap_record(None, &other).await.expect("swap"), Swap::Stored);
    assert_eq!(store.load_record(&cluster()).await.expect("load"), Some(record(1)));
}

/// One step of the random walk.
#[derive(Debug, Clone)]
struct Try {
    expected: Option<u64>,
    number: u64,
    epoch: u64,
    holder: u8,
    eligible: bool,
    reopen: bool,
}

fn tries() -> impl Strategy<Value = Vec<Try>> {
    // Small ranges, so that right guesses are as frequent as wrong ones.
    let one = (proptest::option::weighted(0.9, 0..4_u64), 0..3_u64, 0..3_u64, 0..2_u8, any::<bool>(), 0..8_u8);
    let one = one.prop_map(|(expected, number, epoch, holder, eligible, reopen)| Try {
        expected,
        number,
        epoch,
        holder,
        eligible,
        reopen: reopen == 0,
    });
    proptest::collection::vec(one, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_swaps_ends_as_in_a_plain_variable(tries in tries()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
        let scratch = Scratch::new();
        let mut store = scratch.open();
        let mut model: Option<ClusterRecord> = None;
        for each in tries {
            if each.reopen {
                drop(store);
                store = scratch.open();
            }
            let current = model.as_ref().map_or(0, |record| record.number.0);
            // Guesses are relative to what is stored: one below, the same, one above.
            let expected = each.expected.map(|guess| RecordNumber((current + guess).saturating_sub(1)));
            let standbys = if each.eligible { BTreeSet::from([node("db3")]) } else { BTreeSet::new() };
            let wanted = ClusterRecord {
                epoch: Epoch(model.as_ref().map_or(1, |record| record.epoch.0) + each.epoch).max(Epoch(1)),
                holder: node(&format!("db{}", each.holder + 1)),
                eligible: standbys.clone(),
                synchronous: standbys,
                ..record(current + each.number)
            };
            let answer = runtime.block_on(store.swap_record(expected, &wanted));
            if expected != model.as_ref().map(|record| record.number) {
                prop_assert_eq!(answer, Ok(Swap::Conflict(model.clone().map(Box::new))));
            } else if model.as_ref().is_some_and(|record| wanted.violation_after(record).is_some()) {
                let refused = matches!(answer, Err(StoreError::Failed { .. }));
                prop_assert!(refused);
            } else {
                prop_assert_eq!(answer, Ok(Swap::Stored));
                model = Some(wanted);
            }
            prop_assert_eq!(runtime.block_on(store.load_record(&cluster())), Ok(model.clone()));
        }
    }
}
