//! What every store must do, said once: the embedded one and etcd are held to it by their own tests.
//!
//! Each check takes stores that hold nothing of the cluster `main` yet. `again` sees what `store` wrote, from elsewhere or later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stormglass::domain::clock::{Moment, WallTime};
use stormglass::domain::epoch::{Epoch, RecordNumber};
use stormglass::domain::ids::{Address, ClusterName, NodeName, OperationId, SystemIdentifier};
use stormglass::domain::operation::{JOURNAL_FORMAT, Operation, OperationKind, OperationStatus};
use stormglass::domain::policy::DurabilityMode;
use stormglass::domain::record::{ClusterRecord, RECORD_FORMAT};
use stormglass::domain::trail::{AuditRow, EventRow};
use stormglass::ports::store::{Store, StoreError, Swap};

pub fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("valid")
}

pub fn cluster() -> ClusterName {
    ClusterName::new("main").expect("valid")
}

pub fn record(number: u64) -> ClusterRecord {
    ClusterRecord {
        format: RECORD_FORMAT,
        cluster: cluster(),
        system_identifier: SystemIdentifier(7_396_000_000_000_000_123),
        epoch: Epoch(1),
        number: RecordNumber(number),
        holder: node("db1"),
        holder_address: Address::new("127.0.0.1", 5432),
        holder_confirmed: true,
        eligible: BTreeSet::new(),
        proposed: BTreeSet::new(),
        durability: DurabilityMode::Sync,
        synchronous: BTreeSet::new(),
        synchronous_number: RecordNumber(number),
        alone_since: None,
        paused_until: None,
        fenced: BTreeSet::new(),
        members: BTreeMap::new(),
        holder_since: WallTime(1_795_000_000_000_000),
        longest_wait: std::time::Duration::from_secs(3),
        left_running: false,
    }
}

pub fn operation(id: &str, status: OperationStatus) -> Operation {
    Operation {
        format: JOURNAL_FORMAT,
        id: OperationId(id.to_owned()),
        cluster: cluster(),
        kind: OperationKind::Switchover { from: node("db1"), to: node("db2") },
        status,
        origin: "automatic".to_owned(),
        reasons: Vec::new(),
        epoch_before: Epoch(1),
        epoch_after: None,
        cancel_requested: false,
        detected_at: Moment(1),
        decided_at: Moment(2),
        begun_wall: WallTime(3),
        ended_at: None,
        ended_wall: None,
        message: None,
        journal: Vec::new(),
        evidence: Vec::new(),
    }
}

pub fn event(message: &str) -> EventRow {
    EventRow {
        event: "primary_lost".to_owned(),
        severity: "warning".to_owned(),
        wall: WallTime(5),
        cluster: cluster(),
        node: Some(node("db1")),
        operation: None,
        epoch: Epoch(1),
        message: message.to_owned(),
    }
}

pub fn audit_row(what: &str) -> AuditRow {
    AuditRow {
        wall: WallTime(6),
        who: "ann".to_owned(),
        from: "127.0.0.1:5".to_owned(),
        what: what.to_owned(),
        outcome: "accepted: paused".to_owned(),
    }
}

/// Writes one of everything.
pub async fn write_everything(store: &dyn Store) {
    assert_eq!(store.swap_record(None, &record(1)).await.expect("swap"), Swap::Stored);
    store.append_event(&event("first")).await.expect("event");
    store.append_event(&event("second")).await.expect("event");
    store.append_audit(&audit_row("pause main")).await.expect("audit");
}

/// Finds what [`write_everything`] wrote, and nothing else.
pub async fn find_everything(store: &dyn Store) {
    assert_eq!(store.load_record(&cluster()).await.expect("load"), Some(record(1)));
    let other = ClusterName::new("other").expect("valid");
    assert_eq!(store.load_record(&other).await.expect("load"), None);
    let events = store.list_events(&cluster(), 10).await.expect("events");
    assert_eq!(events, [event("second"), event("first")]);
    assert_eq!(store.list_events(&cluster(), 1).await.expect("events"), [event("second")]);
    assert_eq!(store.list_events(&other, 10).await.expect("events"), []);
    assert_eq!(store.list_audit(10).await.expect("audit"), [audit_row("pause main")]);
}

pub async fn operations_keep_the_order_in_which_they_began(store: &dyn Store, again: &dyn Store) {
    // Identities deliberately do not sort by age: the wall clock may have been set back.
    for id in ["c", "a", "b"] {
        store.save_operation(&operation(id, OperationStatus::Running)).await.expect("save");
    }
    let ended = Operation { message: Some("done".to_owned()), ..operation("a", OperationStatus::Succeeded) };
    store.save_operation(&ended).await.expect("save");

    let names = |operations: Vec<Operation>| operations.into_iter().map(|each| each.id.0).collect::<Vec<_>>();
    assert_eq!(names(again.list_operations(&cluster(), 10).await.expect("list")), ["b", "a", "c"]);
    assert_eq!(names(again.list_operations(&cluster(), 1).await.expect("list")), ["b"]);
    assert_eq!(names(again.unfinished_operations(&cluster()).await.expect("list")), ["c", "b"]);
    let id = OperationId("a".to_owned());
    assert_eq!(again.load_operation(&id).await.expect("load"), Some(ended));
    assert_eq!(again.load_operation(&OperationId("x".to_owned())).await.expect("load"), None);
}

pub async fn of_many_swaps_at_once_exactly_one_wins(store: Arc<dyn Store>) {
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

pub async fn a_swap_on_the_wrong_number_tells_the_record(store: &dyn Store) {
    let early = store.swap_record(Some(RecordNumber(1)), &record(2)).await.expect("swap");
    assert_eq!(early, Swap::Conflict(None));
    assert_eq!(store.swap_record(None, &record(1)).await.expect("swap"), Swap::Stored);
    let late = store.swap_record(None, &record(1)).await.expect("swap");
    assert_eq!(late, Swap::Conflict(Some(Box::new(record(1)))));
}

pub async fn every_rule_of_the_record_is_kept(store: &dyn Store) {
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

pub async fn clusters_do_not_disturb_each_other(store: &dyn Store) {
    let other = ClusterRecord { cluster: ClusterName::new("other").expect("valid"), ..record(1) };
    assert_eq!(store.swap_record(None, &record(1)).await.expect("swap"), Swap::Stored);
    assert_eq!(store.swap_record(None, &other).await.expect("swap"), Swap::Stored);
    assert_eq!(store.load_record(&cluster()).await.expect("load"), Some(record(1)));
}
