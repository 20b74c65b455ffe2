//! The embedded store against the real file system: what it refuses to open, what survives a killed process,
//! who wins a swap, and whether it remembers exactly what it was told.
//!
//! Power loss is not tested here; that a flush happens before an answer is SQLite's `synchronous = FULL`.

mod contract;
mod durability;
mod opening;
mod swapping;

use std::path::{Path, PathBuf};

use contract::{cluster, event, node, operation, record};
use stormglass::adapters::store::SqliteStore;

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
    contract::write_everything(&store).await;
    drop(store);
    contract::find_everything(&scratch.open()).await;
}

#[tokio::test]
async fn operations_keep_the_order_in_which_they_began() {
    let scratch = Scratch::new();
    let store = scratch.open();
    contract::operations_keep_the_order_in_which_they_began(&store, &store).await;
}

#[tokio::test]
async fn lists_are_turned_page_by_page() {
    let scratch = Scratch::new();
    let store = scratch.open();
    contract::lists_are_turned_page_by_page(&store, &store).await;
}

#[tokio::test]
async fn rows_that_are_appended_at_once_are_still_one_chain() {
    let scratch = Scratch::new();
    contract::rows_that_are_appended_at_once_are_still_one_chain(std::sync::Arc::new(scratch.open())).await;
}

#[tokio::test]
async fn cards_are_put_in_once_and_found_again() {
    let scratch = Scratch::new();
    let store = scratch.open();
    contract::cards_are_put_in_once_and_found_again(&store, &store).await;
}
