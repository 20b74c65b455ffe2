//! Files that a controller must not take: each is refused with one error that names it and says what to do,
//! and is left as it is.

use std::fs;
use std::io::Write;

use rusqlite::{Connection, params};
use stormglass::domain::clock::{Moment, WallTime};
use stormglass::domain::epoch::RecordNumber;
use stormglass::domain::operation::{JOURNAL_FORMAT_OLDEST, OperationStatus};
use stormglass::domain::policy::Policy;
use stormglass::domain::trail::AuditEntry;
use stormglass::domain::view::View;
use stormglass::operate::{self, Next};
use stormglass::ports::store::{Page, Paged, Store};
use stormglass::telemetry::chain;

use super::{Scratch, cluster, contract, event, operation, record, refusal};

/// A closed store with enough in it to have many pages.
async fn filled() -> Scratch {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.swap_record(None, &record(1)).await.expect("swap");
    for _ in 0..200 {
        store.append_event(&event(&"x".repeat(500))).await.expect("event");
    }
    drop(store);
    scratch
}

#[tokio::test]
async fn a_truncated_file_is_refused() {
    for keep in [0, 50, 100, 4096, 10_000] {
        let scratch = filled().await;
        let file = fs::OpenOptions::new().write(true).open(scratch.path()).expect("open");
        file.set_len(keep).expect("truncate");
        let said = scratch.refusal();
        assert!(said.contains("truncated") || said.contains("damaged"), "{keep} bytes: {said}");
        assert!(said.contains("move the file aside"), "no way out: {said}");
        assert_eq!(fs::metadata(scratch.path()).expect("stat").len(), keep, "the file was changed");
    }
}

#[tokio::test]
async fn damaged_pages_are_refused() {
    use std::os::unix::fs::FileExt;
    let scratch = filled().await;
    let file = fs::OpenOptions::new().write(true).open(scratch.path()).expect("open");
    let length = file.metadata().expect("stat").len();
    for page in 1..length / 4096 {
        file.write_all_at(&[0x55; 64], page * 4096).expect("damage");
    }
    let said = scratch.refusal();
    assert!(said.contains("damaged"), "{said}");
}

#[test]
fn foreign_files_are_refused_and_left_alone() {
    let scratch = Scratch::new();
    let text =
        "[controller]\nname = \"a configuration, not a store, and longer than any header of a database\"\n".repeat(3);
    fs::write(scratch.path(), &text).expect("write");
    assert!(scratch.refusal().contains("not a SQLite database"));
    assert_eq!(fs::read_to_string(scratch.path()).expect("read"), text);

    fs::remove_file(scratch.path()).expect("remove");
    let other = Connection::open(scratch.path()).expect("open");
    other.execute_batch("CREATE TABLE invoice (id INTEGER)").expect("create");
    drop(other);
    let before = fs::read(scratch.path()).expect("read");
    assert!(scratch.refusal().contains("another program"));
    assert_eq!(fs::read(scratch.path()).expect("read"), before);
}

#[tokio::test]
async fn the_audit_log_of_an_older_version_is_chained_and_a_change_of_it_is_found() {
    let scratch = Scratch::new();
    let store = scratch.open();
    for what in ["pause main", "resume main", "fence main"] {
        store.append_audit(&contract::audit_row(what)).await.expect("append");
    }
    drop(store);
    // As version 1 of the schema had it: rows alone, and no cards.
    let connection = Connection::open(scratch.path()).expect("open");
    connection
        .execute_batch(
            "DROP TABLE card; UPDATE schema_version SET version = 1;
             UPDATE audit SET body = json_remove(body, '$.number', '$.previous', '$.hash');",
        )
        .expect("an older file");
    drop(connection);
    let store = scratch.open();
    store.append_audit(&contract::audit_row("unfence main")).await.expect("append");
    let entries = |page: Paged<AuditEntry>| page.rows.into_iter().rev().collect::<Vec<_>>();
    let found = entries(store.page_audit(Page::newest(10)).await.expect("list"));
    assert_eq!(found.iter().map(|entry| entry.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(chain::verify(&found).expect("the chain holds").rows, 4);
    drop(store);

    let connection = Connection::open(scratch.path()).expect("open");
    connection
        .execute("UPDATE audit SET body = json_set(body, '$.who', 'somebody else') WHERE sequence = 2", [])
        .expect("update");
    drop(connection);
    let found = entries(scratch.open().page_audit(Page::newest(10)).await.expect("list"));
    assert_eq!(chain::verify(&found), Err(chain::Broken::Changed(2)));
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let scratch = filled().await;
    let connection = Connection::open(scratch.path()).expect("open");
    connection.execute("UPDATE schema_version SET version = 99", []).expect("update");
    drop(connection);
    let said = scratch.refusal();
    assert!(said.contains("newer version") && said.contains("99"), "{said}");
}

#[tokio::test]
async fn a_journal_of_an_unknown_format_is_read_to_be_ended_and_never_gone_on_with() {
    let scratch = Scratch::new();
    scratch.open().save_operation(&operation("op", OperationStatus::Running)).await.expect("stored");
    let connection = Connection::open(scratch.path()).expect("open");
    connection
        .execute("UPDATE operation SET format = 99, body = json_set(body, '$.format', 99)", [])
        .expect("what a newer version wrote");
    drop(connection);
    let store = scratch.open();
    let mut found = store.unfinished_operations(&cluster()).await.expect("read").remove(0);
    let view = View {
        now: Moment(10),
        wall: WallTime(10),
        leading_since: Moment(1),
        leads_for: None,
        sighting: None,
        outlooks: Default::default(),
        record: None,
        nodes: Default::default(),
        proxies: Default::default(),
    };
    let policy = Policy::for_rto(std::time::Duration::from_secs(5));
    let Next::End { status, message } = operate::next(&found, &view, &policy) else { panic!("it was gone on with") };
    assert_eq!(status, OperationStatus::Stuck);
    assert!(message.contains("format 99") && message.contains("the version that began it"), "{message}");
    assert!(store.save_operation(&found).await.is_err(), "a running one of another version is not written");
    (found.status, found.message) = (status, Some(message));
    store.save_operation(&found).await.expect("that it is stuck is");
    assert!(store.unfinished_operations(&cluster()).await.expect("read").is_empty());
}

/// As the first version stored it, to the letter.
const OLDEST_JOURNAL: &str = r#"{"format":1,"id":"01a1f","cluster":"main","kind":{"operation":"fence","node":"db1"},"status":"running","origin":"automatic",
    "reasons":[],"epoch_before":3,"epoch_after":null,"cancel_requested":false,"detected_at":1,"decided_at":2,
    "begun_wall":"2026-11-21T03:12:09.5Z","ended_at":null,"ended_wall":null,"message":null,"journal":[]}"#;

#[tokio::test]
async fn a_journal_of_the_oldest_known_format_is_gone_on_with() {
    let scratch = Scratch::new();
    scratch.open().save_operation(&operation("01a1f", OperationStatus::Running)).await.expect("stored");
    let connection = Connection::open(scratch.path()).expect("open");
    connection
        .execute("UPDATE operation SET format = ?1, body = ?2", params![JOURNAL_FORMAT_OLDEST, OLDEST_JOURNAL])
        .expect("what the first version wrote");
    drop(connection);
    let found = scratch.open().unfinished_operations(&cluster()).await.expect("read").remove(0);
    assert_eq!(found.format, JOURNAL_FORMAT_OLDEST);
    let view = View {
        now: Moment(10),
        wall: WallTime(10),
        leading_since: Moment(1),
        leads_for: None,
        sighting: None,
        outlooks: Default::default(),
        record: None,
        nodes: Default::default(),
        proxies: Default::default(),
    };
    let next = operate::next(&found, &view, &Policy::for_rto(std::time::Duration::from_secs(5)));
    assert!(!matches!(next, Next::End { status: OperationStatus::Stuck, .. }), "{next:?}");
}

#[tokio::test]
async fn an_unknown_format_of_the_record_is_refused() {
    let scratch = filled().await;
    let connection = Connection::open(scratch.path()).expect("open");
    connection.execute("UPDATE record SET format = 7", []).expect("update");
    drop(connection);
    let store = scratch.open();
    let said = store.load_record(&cluster()).await.expect_err("refused").to_string();
    assert!(said.contains("format 7") && said.contains("controller.db"), "{said}");
    let swapped = store.swap_record(Some(RecordNumber(1)), &record(2)).await;
    assert!(swapped.is_err(), "a record that is not understood was overwritten");
}

#[test]
fn two_controllers_cannot_share_a_file() {
    let scratch = Scratch::new();
    let first = scratch.open();
    let said = scratch.refusal();
    assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
    let spelled_otherwise = scratch.directory.path().join(".").join("controller.db");
    refusal(&spelled_otherwise);
    let link = scratch.directory.path().join("link-to-controller.db");
    std::os::unix::fs::symlink(scratch.path(), &link).expect("link");
    refusal(&link);
    drop(first);
    scratch.open();
}

#[test]
fn a_log_without_its_file_is_refused() {
    let scratch = Scratch::new();
    let mut log = scratch.path().into_os_string();
    log.push("-wal");
    fs::File::create(&log).and_then(|mut file| file.write_all(b"rest")).expect("write");
    assert!(scratch.refusal().contains("its log"));
    assert!(fs::metadata(&log).is_ok());
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let scratch = Scratch::new();
    let path = scratch.directory.path().join("no").join("such").join("controller.db");
    assert!(refusal(&path).contains("check the directory"));
    let directory = scratch.directory.path().join("a-directory-named-controller.db");
    fs::create_dir(&directory).expect("create");
    refusal(&directory);
}

#[test]
fn a_draft_that_a_crash_left_behind_is_no_obstacle() {
    let scratch = Scratch::new();
    let mut draft = scratch.path().into_os_string();
    draft.push(".new");
    fs::write(&draft, "half a store").expect("write");
    scratch.open();
    assert!(!fs::exists(&draft).expect("stat"));
}

#[test]
fn nobody_else_can_read_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let _store = scratch.open();
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let mut path = scratch.path().into_os_string();
        path.push(suffix);
        if let Ok(facts) = fs::metadata(&path) {
            assert_eq!(facts.permissions().mode() & 0o077, 0, "{path:?}");
        }
    }
}
