//! What can only be tested from inside: a database that may not grow, and work that fails beside work that does not.

use super::SqliteStore;
use super::queue::Failure;
use crate::domain::clock::WallTime;
use crate::domain::trail::AuditRow;
use crate::ports::store::{Store, StoreError};

fn row(what: &str) -> AuditRow {
    AuditRow {
        wall: WallTime(1),
        who: "ann".to_owned(),
        from: "127.0.0.1:1".to_owned(),
        what: what.to_owned(),
        outcome: "accepted".to_owned(),
    }
}

#[tokio::test]
async fn a_database_that_cannot_grow_says_so_and_keeps_what_it_has() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(&directory.path().join("controller.db")).expect("open");
    store.append_audit(&row("before")).await.expect("append");
    let limit = |pages: u32| {
        store.queue.call("limit", move |connection| {
            connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).map_err(Failure::from)
        })
    };
    limit(1).await.expect("a limit below the present size means the present size");
    let refused = store.append_audit(&row(&"x".repeat(100_000))).await.expect_err("no space");
    assert!(matches!(&refused, StoreError::Failed { problem, .. } if problem.contains("disk is full")), "{refused}");
    assert_eq!(store.list_audit(10).await.expect("list"), [row("before")]);

    limit(1_000_000).await.expect("lift the limit");
    store.append_audit(&row("after")).await.expect("append");
    assert_eq!(store.list_audit(10).await.expect("list"), [row("after"), row("before")]);
}

#[test]
fn sqlite_is_built_for_many_small_stores() {
    let connection = rusqlite::Connection::open_in_memory().expect("open");
    let mut options = connection.prepare("PRAGMA compile_options").expect("a pragma");
    let options: Vec<String> =
        options.query_map([], |row| row.get(0)).expect("asked").collect::<Result<_, _>>().expect("words");
    for wanted in ["DEFAULT_LOOKASIDE=0,0", "DEFAULT_PCACHE_INITSZ=0"] {
        assert!(options.iter().any(|option| option == wanted), ".cargo/config.toml asks for {wanted}: {options:?}");
    }
    let shared = "ENABLE_MEMORY_MANAGEMENT";
    assert!(!options.iter().any(|option| option == shared), "{shared}: one store's quiet would be another one's loss");
}

#[tokio::test]
async fn after_a_quiet_moment_a_store_goes_on_and_its_log_is_written_back() {
    const COMMITS: usize = 64;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("controller.db");
    let store = SqliteStore::open(&path).expect("open");
    let file_begins_with = std::fs::metadata(&path).expect("there").len();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    // More commits than a checkpoint waits for, each more than a page, then nothing: the file itself grows.
    for _ in 0..COMMITS {
        store.append_audit(&row(&"x".repeat(5_000))).await.expect("append");
    }
    while std::fs::metadata(&path).expect("there").len() < file_begins_with + COMMITS as u64 * 4_096 {
        assert!(tokio::time::Instant::now() < deadline, "the log is not written back");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    store.append_audit(&row("after")).await.expect("append");
    let kept = store.list_audit(1000).await.expect("list");
    assert_eq!((kept.len(), kept[0].what.as_str()), (COMMITS + 1, "after"));
}

#[tokio::test]
async fn work_that_fails_takes_nothing_of_its_neighbours_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(&directory.path().join("controller.db")).expect("open");
    let appends = futures_util::future::join_all((0..40).map(|index| {
        store.queue.call("test", move |connection| {
            super::rows::append_audit(connection, &row(&index.to_string()))?;
            if index % 2 == 0 { Ok(()) } else { Err(Failure::Rule("odd".to_owned())) }
        })
    }));
    let answers = appends.await;
    for (index, answer) in answers.iter().enumerate() {
        assert_eq!(answer.is_ok(), index % 2 == 0, "{index}: {answer:?}");
    }
    let mut kept: Vec<u32> =
        store.list_audit(100).await.expect("list").iter().map(|row| row.what.parse().expect("a number")).collect();
    kept.sort_unstable();
    assert_eq!(kept, (0..40).step_by(2).collect::<Vec<u32>>());
}
