//! The embedded store against the real file system: what it refuses to open, what survives a killed process,
//! who wins a swap, and whether it remembers exactly what it was told.
//!
//! Power loss is not tested here; that a flush happens before an answer is SQLite's `synchronous = FULL`.

mod durability;
mod opening;
mod swapping;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use stormglass::adapters::store::SqliteStore;
use stormglass::domain::clock::{Moment, WallTime};
use stormglass::domain::epoch::{Epoch, RecordNumber};
use stormglass::domain::ids::{Address, ClusterName, NodeName, OperationId, SystemIdentifier};
use stormglass::domain::operation::{JOURNAL_FORMAT, Operation, OperationKind, OperationStatus};
use stormglass::domain::policy::DurabilityMode;
use stormglass::domain::record::{ClusterRecord, RECORD_FORMAT};
use stormglass::domain::trail::{AuditRow, EventRow};
use stormglass::ports::store::Store;

fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("valid")
}

fn cluster() -> ClusterName {
    ClusterName::new("main").expect("valid")
}

fn record(number: u64) -> ClusterRecord {
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

fn operation(id: &str, status: OperationStatus) -> Operation {
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

fn event(message: &str) -> EventRow {
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

/// A store in a directory that goes with it.
struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("controller.db")
    }

    fn open(&self) -> SqliteStore {
        SqliteStore::open(&self.path()).expect("open the store")
    }

    fn refusal(&self) -> String {
        refusal(&self.path())
    }
}

fn refusal(path: &Path) -> String {
    let error = SqliteStore::open(path).map(|_| ()).expect_err("this file must be refused");
    let text = error.to_string();
    assert!(text.contains("controller.db"), "names no file: {text}");
    text
}

#[tokio::test]
async fn what_is_stored_is_there_after_reopening() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.swap_record(None, &record(1)).await.expect("swap");
    store.append_event(&event("first")).await.expect("event");
    store.append_event(&event("second")).await.expect("event");
    let row = AuditRow {
        wall: WallTime(6),
        who: "ann".to_owned(),
        from: "127.0.0.1:5".to_owned(),
        what: "pause main".to_owned(),
        outcome: "accepted: paused".to_owned(),
    };
    store.append_audit(&row).await.expect("audit");
    drop(store);

    let store = scratch.open();
    assert_eq!(store.load_record(&cluster()).await.expect("load"), Some(record(1)));
    let other = ClusterName::new("other").expect("valid");
    assert_eq!(store.load_record(&other).await.expect("load"), None);
    let events = store.list_events(&cluster(), 10).await.expect("events");
    assert_eq!(events, [event("second"), event("first")]);
    assert_eq!(store.list_events(&cluster(), 1).await.expect("events"), [event("second")]);
    assert_eq!(store.list_events(&other, 10).await.expect("events"), []);
    assert_eq!(store.list_audit(10).await.expect("audit"), [row]);
}

#[tokio::test]
async fn operations_keep_the_order_in_which_they_began() {
    let scratch = Scratch::new();
    let store = scratch.open();
    // Identities deliberately do not sort by age: the wall clock may have been set back.
    for id in ["c", "a", "b"] {
        store.save_operation(&operation(id, OperationStatus::Running)).await.expect("save");
    }
    let ended = Operation { message: Some("done".to_owned()), ..operation("a", OperationStatus::Succeeded) };
    store.save_operation(&ended).await.expect("save");

    let names = |operations: Vec<Operation>| operations.into_iter().map(|each| each.id.0).collect::<Vec<_>>();
    assert_eq!(names(store.list_operations(&cluster(), 10).await.expect("list")), ["b", "a", "c"]);
    assert_eq!(names(store.list_operations(&cluster(), 1).await.expect("list")), ["b"]);
    assert_eq!(names(store.unfinished_operations(&cluster()).await.expect("list")), ["c", "b"]);
    let id = OperationId("a".to_owned());
    assert_eq!(store.load_operation(&id).await.expect("load"), Some(ended));
    assert_eq!(store.load_operation(&OperationId("x".to_owned())).await.expect("load"), None);
}
