//! Compare-and-swap: exactly one of many wins, no rule of the record is broken, and whatever the order of
//! calls, the store answers as a plain variable would.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use stormglass::domain::epoch::{Epoch, RecordNumber};
use stormglass::domain::record::ClusterRecord;
use stormglass::ports::store::{Store, StoreError, Swap};

use super::{Scratch, cluster, contract, node, record};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_swaps_at_once_exactly_one_wins() {
    let scratch = Scratch::new();
    contract::of_many_swaps_at_once_exactly_one_wins(Arc::new(scratch.open())).await;
}

#[tokio::test]
async fn a_swap_on_the_wrong_number_tells_the_record() {
    contract::a_swap_on_the_wrong_number_tells_the_record(&Scratch::new().open()).await;
}

#[tokio::test]
async fn every_rule_of_the_record_is_kept() {
    contract::every_rule_of_the_record_is_kept(&Scratch::new().open()).await;
}

#[tokio::test]
async fn clusters_do_not_disturb_each_other() {
    contract::clusters_do_not_disturb_each_other(&Scratch::new().open()).await;
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
