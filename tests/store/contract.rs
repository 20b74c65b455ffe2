//! What every store must do, said once: the embedded one and etcd are held to it by their own tests.
//!
//! Each check takes stores that hold nothing of the cluster `main` yet. `again` sees what `store` wrote, from elsewhere or later.

use std::collections::BTreeSet;
use std::sync::Arc;

use stormglass::domain::clock::{Moment, WallTime};
use stormglass::domain::epoch::{Epoch, RecordNumber};
use stormglass::domain::ids::{Address, ClusterName, NodeName, OperationId, SystemIdentifier};
use stormglass::domain::operation::{JOURNAL_FORMAT, Operation, OperationKind, OperationStatus};
use stormglass::domain::policy::DurabilityMode;
use stormglass::domain::record::ClusterRecord;
use stormglass::domain::trail::{AuditRow, EventRow};
use stormglass::ports::store::{Card, Drawer, Page, Store, StoreError, Swap};
use stormglass::telemetry::chain;

pub fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("valid")
}

pub fn cluster() -> ClusterName {
    ClusterName::new("main").expect("valid")
}

pub fn record(number: u64) -> ClusterRecord {
    ClusterRecord {
        number: RecordNumber(number),
        holder_confirmed: true,
        synchronous_number: RecordNumber(number),
        holder_since: WallTime(1_795_000_000_000_000),
        longest_wait: std::time::Duration::from_secs(3),
        ..ClusterRecord::first(
            cluster(),
            SystemIdentifier(7_396_000_000_000_000_123),
            node("db1"),
            Address::new("127.0.0.1", 5432),
            DurabilityMode::Sync,
        )
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
        risks: Default::default(),
        loss: None,
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

pub async fn lists_are_turned_page_by_page(store: &dyn Store, again: &dyn Store) {
    for number in 0..7 {
        store.append_event(&event(&number.to_string())).await.expect("event");
        store.append_audit(&audit_row(&number.to_string())).await.expect("audit");
        let id = format!("page-{number}");
        store.save_operation(&operation(&id, OperationStatus::Succeeded)).await.expect("save");
    }
    let (mut events, mut operations, mut audit) = (Vec::new(), Vec::new(), Vec::new());
    let mut page = Page::newest(3);
    loop {
        let found = again.page_events(&cluster(), page).await.expect("events");
        events.extend(found.rows.into_iter().map(|row| row.message));
        match found.next {
            Some(next) => page.before = Some(next),
            None => break,
        }
    }
    let mut page = Page::newest(3);
    loop {
        let found = again.page_operations(&cluster(), page).await.expect("operations");
        operations.extend(found.rows.into_iter().map(|row| row.id.0));
        match found.next {
            Some(next) => page.before = Some(next),
            None => break,
        }
    }
    let mut page = Page::newest(3);
    loop {
        let found = again.page_audit(page).await.expect("audit");
        audit.extend(found.rows);
        match found.next {
            Some(next) => page.before = Some(next),
            None => break,
        }
    }
    assert_eq!(events, ["6", "5", "4", "3", "2", "1", "0"]);
    assert_eq!(operations, (0..7).rev().map(|number| format!("page-{number}")).collect::<Vec<_>>());
    assert_eq!(audit.iter().map(|entry| entry.number).collect::<Vec<_>>(), [7, 6, 5, 4, 3, 2, 1]);
    audit.reverse();
    let verified = chain::verify(&audit).expect("the chain holds");
    assert_eq!((verified.rows, verified.last), (7, 7));
}

pub async fn rows_that_are_appended_at_once_are_still_one_chain(store: Arc<dyn Store>) {
    let tasks: Vec<_> = (0..40)
        .map(|number: u32| {
            let store = store.clone();
            tokio::spawn(async move { store.append_audit(&audit_row(&number.to_string())).await.expect("audit") })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let mut entries = store.page_audit(Page::newest(100)).await.expect("audit").rows;
    entries.reverse();
    assert_eq!(chain::verify(&entries).expect("the chain holds").rows, 40);
}

pub async fn cards_are_put_in_once_and_found_again(store: &dyn Store, again: &dyn Store) {
    let card = |key: &str, body: &str| Card { key: key.to_owned(), body: body.to_owned() };
    assert_eq!(store.insert_card(Drawer::Alerts, &card("a|1", "{}")).await.expect("insert"), None);
    let taken = store.insert_card(Drawer::Alerts, &card("a|1", "[]")).await.expect("insert");
    assert_eq!(taken, Some(card("a|1", "{}")), "the first one stays");
    assert_eq!(store.insert_card(Drawer::Tokens, &card("a|1", "1")).await.expect("insert"), None, "another drawer");
    store.insert_card(Drawer::Alerts, &card("b", "2")).await.expect("insert");
    store.replace_card(Drawer::Alerts, &card("a|1", "3")).await.expect("replace");
    store.replace_card(Drawer::Alerts, &card("gone", "3")).await.expect("nothing to do");
    assert_eq!(again.load_card(Drawer::Alerts, "a|1").await.expect("load"), Some(card("a|1", "3")));
    assert_eq!(again.load_card(Drawer::Alerts, "gone").await.expect("load"), None);
    assert_eq!(again.list_cards(Drawer::Alerts).await.expect("list"), [card("b", "2"), card("a|1", "3")]);
    assert!(store.remove_card(Drawer::Alerts, "b").await.expect("remove"));
    assert!(!store.remove_card(Drawer::Alerts, "b").await.expect("remove"));
    assert_eq!(again.list_cards(Drawer::Alerts).await.expect("list"), [card("a|1", "3")]);
    for number in 0..=Drawer::Jobs.kept() + 70 {
        store.insert_card(Drawer::Jobs, &card(&number.to_string(), "{}")).await.expect("insert");
    }
    let kept = again.list_cards(Drawer::Jobs).await.expect("list").len();
    assert!((Drawer::Jobs.kept()..=Drawer::Jobs.kept() + 70).contains(&kept), "{kept} cards: the oldest go first");
}
