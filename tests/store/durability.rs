//! What was answered with `Ok` is there after `kill -9`, and a full disk leaves no half of anything.
//!
//! The process that is killed is this test binary itself, started again for one ignored test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use stormglass::adapters::store::SqliteStore;
use stormglass::domain::epoch::RecordNumber;
use stormglass::domain::operation::OperationStatus;
use stormglass::ports::store::{Store, StoreError, Swap};

use super::{Scratch, cluster, event, operation, record, refusal};

/// Tells the child which file is meant.
const PATH_VARIABLE: &str = "STORMGLASS_TEST_STORE";

fn child(test: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", test, "--nocapture"]).env(PATH_VARIABLE, path);
    command
}

/// `None` in the test run itself, where the process of another test has nothing to do.
fn path_of_child() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "the only way to tell a restarted test binary something")]
    std::env::var(PATH_VARIABLE).ok().map(PathBuf::from)
}

/// Kills what a failed test would leave running.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn writes_until_it_is_killed() {
    let Some(path) = path_of_child() else { return };
    let store = SqliteStore::open(&path).expect("open");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    runtime.block_on(async {
        let mut expected = None;
        for number in 1.. {
            let operation = operation(&format!("{number:020}"), OperationStatus::Running);
            let message = number.to_string();
            let (event, record) = (event(&message), record(number));
            let (saved, told, swapped) = tokio::join!(
                store.save_operation(&operation),
                store.append_event(&event),
                store.swap_record(expected, &record)
            );
            saved.expect("save");
            told.expect("event");
            assert_eq!(swapped.expect("swap"), Swap::Stored);
            expected = Some(RecordNumber(number));
            println!("acknowledged {number}");
        }
    });
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let scratch = Scratch::new();
    let mut acknowledged = 0;
    for round in 0..3 {
        let path = scratch.path();
        if round > 0 {
            // The child begins from nothing each time; only the killed file of the last round stays.
            std::fs::remove_dir_all(scratch.directory.path()).expect("remove");
            std::fs::create_dir(scratch.directory.path()).expect("create");
        }
        let writer = child("durability::writes_until_it_is_killed", &path).stdout(Stdio::piped()).spawn();
        let mut writer = Killed(writer.expect("start the writer"));
        let output = BufReader::new(writer.0.stdout.take().expect("piped"));
        let enough = 20 + 70 * round;
        for line in output.lines() {
            let line = line.expect("read");
            if let Some(number) = line.strip_prefix("acknowledged ") {
                acknowledged = number.parse().expect("a number");
                if acknowledged == 1 {
                    assert!(refusal(&path).contains("has it open"), "the lock of another process was not seen");
                }
                if acknowledged >= enough {
                    break;
                }
            }
        }
        assert!(acknowledged >= enough, "the writer ended by itself");
        writer.0.kill().expect("kill");
        writer.0.wait().expect("wait");

        let store = scratch.open();
        let record = store.load_record(&cluster()).await.expect("load").expect("a record");
        assert!(record.number.0 >= acknowledged, "{} is stored, {acknowledged} was acknowledged", record.number);
        let operations = store.unfinished_operations(&cluster()).await.expect("list").len() as u64;
        assert!(operations >= acknowledged, "{operations} operations of {acknowledged}");
        let events = store.list_events(&cluster(), 10_000).await.expect("list").len() as u64;
        assert!(events >= acknowledged, "{events} events of {acknowledged}");
        acknowledged = 0;
    }
}

#[test]
fn fills_the_disk() {
    let Some(path) = path_of_child() else { return };
    let store = SqliteStore::open(&path).expect("open");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    runtime.block_on(async {
        store.swap_record(None, &record(1)).await.expect("swap");
        let mut written = 0;
        let refused = loop {
            match store.append_event(&event(&"x".repeat(20_000))).await {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 10_000, "the disk does not fill up");
        };
        assert!(matches!(refused, StoreError::Failed { .. }), "{refused}");
        assert!(refused.to_string().contains("disk is full"), "{refused}");
        let mut big = operation("big", OperationStatus::Running);
        big.message = Some("y".repeat(200_000));
        let refused = store.save_operation(&big).await.expect_err("no space for it");
        assert!(matches!(refused, StoreError::Failed { .. }), "{refused}");
        // Reading goes on, and nothing is half there.
        assert_eq!(store.load_record(&cluster()).await.expect("load"), Some(record(1)));
        assert_eq!(store.list_events(&cluster(), 10_000).await.expect("list").len(), written);
        assert_eq!(store.list_operations(&cluster(), 10).await.expect("list"), []);
    });
    println!("full as expected");
}

/// A real full disk needs a mount, which an ordinary user may make in a namespace of their own where the kernel allows it.
/// The same is tested without a mount by the unit tests of the store.
#[test]
fn a_full_disk_is_a_clear_error_and_changes_nothing() {
    let scratch = Scratch::new();
    let mount = "mount -t tmpfs -o size=1m none \"$0\" && exec \"$@\"";
    let script = child("durability::fills_the_disk", &scratch.path());
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", mount])
        .arg(scratch.directory.path())
        .arg(script.get_program())
        .args(script.get_args())
        .env(PATH_VARIABLE, scratch.path())
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: there is no unshare(1) here");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !said.contains("running 1 test") {
        eprintln!("skipped: no mount in a user namespace here: {said}");
        return;
    }
    assert!(output.status.success() && said.contains("full as expected"), "{said}");
}
